//! `terway-cli plan-cluster`: what it says with a table, and with the cloud's own word.

use std::process::Command;

use serde_json::{Value, json};

use super::idle_node;
use crate::sim::cluster::Cluster;
use crate::sim::traffic::Place;
use crate::sim::world;

const NETWORKS: &str =
    "--vpc 192.168.0.0/16 --node-vswitch 192.168.0.0/19 --pod-vswitch 192.168.32.0/19 --service-cidr 172.21.0.0/20";

/// Exit code, what is said, and what is complained of.
fn plan(cluster: &Cluster, words: &str) -> (i32, String, String) {
    let line = format!("/opt/terway/terway-cli plan-cluster {NETWORKS} {words}");
    let done = cluster.node(0).run(|| Command::new("sh").args(["-c", &line]).output().expect("start sh"));
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (done.status.code().expect("it exits"), text(done.stdout), text(done.stderr))
}

#[test]
fn the_cloud_is_asked_where_there_are_credentials_and_the_table_where_there_are_none() {
    let cluster = idle_node("ecs.sim.2xlarge", &json!({}));
    let (code, said, _) = plan(&cluster, "--instance-type ecs.sim.2xlarge --nodes 10 --json");
    let shown: Value = serde_json::from_str(&said).unwrap();
    let types = world::config().instance_types;
    let limits = types.iter().find(|t| t.id == "ecs.sim.2xlarge").unwrap();
    let pods = (limits.eni_quantity - 1) * limits.eni_private_ip_address_quantity;
    assert_eq!((code, &shown["limits_by"]), (0, &json!("as the cloud says")));
    assert_eq!((&shown["report"]["pods_per_node"], &shown["report"]["pods"]), (&json!(pods), &json!(10 * pods)));

    // The cloud does not know it, the table does.
    let (code, said, complaint) = plan(&cluster, "--instance-type ecs.g6.2xlarge --nodes 50");
    assert_eq!(code, 0);
    assert!(said.contains("30 = (4 ENIs - 1) x 10 addresses") && said.contains("1500: the instance type"), "{said}");
    assert!(complaint.contains("knows no instance type ecs.g6.2xlarge"), "{complaint}");

    let nowhere = "--config /nowhere --instance-type ecs.g6.2xlarge --nodes 50";
    let (code, said, complaint) = plan(&cluster, &format!("{nowhere} --mode exclusive"));
    assert_eq!((code, complaint.as_str()), (0, ""));
    assert!(said.contains("3 = 4 ENIs - 1") && said.contains("by the built-in table"), "{said}");
    let (code, said, _) = plan(&cluster, &format!("{nowhere} --node-vswitch 10.0.0.0/19"));
    assert_eq!(code, 1);
    assert!(said.contains("error: the nodes' vSwitch 10.0.0.0/19 is not in the VPC 192.168.0.0/16"), "{said}");
}

#[test]
fn what_makes_no_sense_is_refused_with_what_would() {
    let cluster = idle_node("ecs.sim.large", &json!({}));
    for (words, what) in [
        ("--nodes 5", "either --instance-type, or both --enis and --ips-per-eni"),
        ("--nodes 5 --enis 4", "either --instance-type, or both"),
        ("--nodes 5 --config /nowhere --instance-type ecs.x1.large", "say --enis and --ips-per-eni"),
        ("--nodes 5 --pod-vswitch 192.168.32.1/19", "192.168.32.0/19 is meant"),
        ("--nodes many --enis 4 --ips-per-eni 10", "many"),
        ("--nodes 5 --enis 4 --ips-per-eni 10 --mode both", "neither shared nor exclusive"),
        ("--enis 4 --ips-per-eni 10", "--nodes"),
    ] {
        let (code, said, complaint) = plan(&cluster, words);
        // What the cloud and the table do not know may be there all the same.
        let want = if words.contains("ecs.x1.large") { 1 } else { 2 };
        assert_eq!((code, said.as_str()), (want, ""), "{words}");
        assert!(complaint.contains(what), "{words}: {complaint}");
    }
    assert_eq!(plan(&cluster, "--nodes 5 --enis 4 --ips-per-eni 10").0, 0);
}
