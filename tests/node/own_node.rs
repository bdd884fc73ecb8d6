//! The node as Kubernetes sees it, and as it sees itself there.

use serde_json::json;

use super::{events_about, idle_node, nothing};
use crate::sim::cluster::{node_name, soon};
use crate::sim::kube;

const LARGE: &str = "ecs.sim.large";

#[test]
fn a_node_object_of_another_machine_is_named_and_not_written_to() {
    let mut cluster = idle_node(LARGE, &nothing());
    cluster.kube.put(kube::node(&node_name(0), "cn-hangzhou.i-another"));
    cluster.start_ready(0);
    let told = || events_about(&cluster, &node_name(0)).into_iter().find(|(reason, _)| reason == "ConfigError");
    soon("it is told", || told().is_some());
    let said = told().expect("it was there").1;
    assert!(said.contains("node node-1 is instance i-another in Kubernetes"), "{said}");
    assert!(said.contains("this machine is i-1") && said.contains("set node_name"), "{said}");
    assert_eq!(cluster.kube.count("patch", "nodes") + cluster.kube.count("patch", "nodes/status"), 0);
    cluster.add(0, "web");

    // Put right: nothing more is said.
    cluster.kube.amend("Node", "", &node_name(0), &json!({"spec": {"providerID": "cn-hangzhou.i-1"}}));
    cluster.add(0, "web-2");
    assert_eq!(cluster.log(0).matches("ConfigError").count(), 1);
}
