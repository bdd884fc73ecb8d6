//! The RAM policy that we publish is what a node asks of the cloud, and no more.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::sim::cluster::{Cluster, Member, soon};
use crate::sim::world::{self, World};

#[test]
fn the_ram_policy_allows_what_a_node_calls_and_nothing_else() {
    let mut world = World::with_nodes(world::config(), 1, "ecs.sim.large");
    world.speak_v6(0);
    let mut cluster = Cluster::over(world);
    let configure = |cluster: &Cluster, over: Value| {
        let mut all = json!({
            "ip_stack": "dual", "security_groups": [], "min_pool_size": 1, "max_pool_size": 1, "ip_cooldown": "0s",
            "eni_idle_release_after": "10s", "eni_tags": {"team": "a"},
        });
        let over = over.as_object().expect("an object").clone();
        all.as_object_mut().expect("an object").extend(over);
        cluster.configure(0, &all);
    };
    configure(&cluster, json!({}));
    cluster.start_ready(0);
    let pods: Vec<Member> = (0..4).map(|n| cluster.add(0, &format!("web-{n}"))).collect();
    configure(&cluster, json!({"security_groups": ["sg-web"], "eni_tags": {"env": "b"}}));
    let calls = |action: &str| cluster.world.cloud.calls_ending(action, "OK");
    soon("tags and groups are what the configuration says", || {
        calls("UntagResources") > 0 && calls("TagResources") > 0 && calls("ModifyNetworkInterfaceAttribute") > 0
    });
    pods.into_iter().for_each(|pod| {
        cluster.del(pod);
    });
    soon("addresses that are too many go", || {
        calls("UnassignPrivateIpAddresses") > 0 && calls("UnassignIpv6Addresses") > 0
    });
    configure(&cluster, json!({"min_pool_size": 0, "max_pool_size": 0}));
    soon("the ENI goes", || calls("DeleteNetworkInterface") > 0);

    let journal = cluster.world.cloud.journal();
    let called: BTreeSet<String> =
        journal.iter().filter(|call| call.action != "metadata").map(|call| right(&call.action)).collect();
    assert_eq!(called, allowed(include_str!("../../cni-conf/ram-policy.json")));
}

/// What RAM calls the right to do this.
fn right(action: &str) -> String {
    let service = if action == "DescribeVSwitches" { "vpc" } else { "ecs" };
    format!("{service}:{action}")
}

fn allowed(policy: &str) -> BTreeSet<String> {
    let policy: Value = serde_json::from_str(policy).expect("JSON");
    let statements = policy["Statement"].as_array().expect("a list");
    let actions = statements.iter().flat_map(|statement| statement["Action"].as_array().expect("a list"));
    actions.map(|action| action.as_str().expect("text").to_owned()).collect()
}
