//! The node as Kubernetes sees it, and a pod that comes and goes while the cloud is dead.

use std::time::Duration;

use serde_json::Value;

use crate::screen::{Screen, millis};
use crate::sim::cluster::{Cluster, node_name, within};

/// What a node's object shows of us; what is not as it should be.
pub fn show_node(screen: Screen, cluster: &Cluster, n: usize, addresses: &str) -> Vec<String> {
    let step = screen.step(format!("{} in Kubernetes", node_name(n)));
    let mut seen = (Value::Null, Value::Null);
    let shows = within(Duration::from_secs(5), || {
        let node = cluster.kube.get("Node", "", &node_name(n)).unwrap_or_default();
        let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
        let sufficient = conditions.clone().find(|c| c["type"] == "SufficientIP").map(|c| c["status"].clone());
        seen = (node["status"]["capacity"]["aliyun/eniip"].clone(), sufficient.unwrap_or_default());
        seen.0 == addresses && seen.1 == "True"
    });
    let said = format!("aliyun/eniip {}, SufficientIP {}", text(&seen.0), text(&seen.1));
    if shows {
        step.done(&said);
        return Vec::new();
    }
    step.failed(&said);
    vec![format!("{} does not show aliyun/eniip {addresses} and SufficientIP True", node_name(n))]
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("missing")
}

/// A pod comes from the pool and goes again while no call of the cloud is answered.
pub fn pod_in_outage(screen: Screen, cluster: &Cluster, n: usize) -> Vec<String> {
    cluster.world.cloud.outage(true);
    let member = cluster.schedule(n, "in-outage");
    let mut faults = Vec::new();
    for verb in ["ADD", "STATUS", "DEL"] {
        let step = screen.step(format!("the cloud's API is dead: {verb}"));
        let answer =
            if verb == "STATUS" { cluster.call(n, verb, &Value::Null) } else { cluster.call_for(&member, verb) };
        if answer.code == Some(0) {
            step.done(&millis(answer.took));
        } else {
            step.failed(&answer.stdout);
            faults.push(format!("{verb} fails while the cloud is dead: {}{}", answer.stdout, answer.stderr));
        }
    }
    faults
}
