//! The configuration changes while pods run: of one node by its file, of the other by a ConfigMap that its label names.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::screen::{Screen, Step, millis};
use crate::sim::cloud::EniKind;
use crate::sim::cluster::{Cluster, node_name, within};
use crate::sim::node::Pod;
use crate::sim::traffic::Place;
use crate::sim::{cloud::EniView, kube};

const CONFIG: &str = "/etc/eni/eni.json";
const GROUPS: [&str; 2] = ["sg-sim", "sg-web"];
/// No daemon takes so long to change two ENIs.
const PATIENCE: Duration = Duration::from_secs(10);

/// Changes both nodes; what is not as it should be in the end.
pub fn show(screen: Screen, cluster: &Cluster, pod: &Pod, other: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let step = screen.step(format!("{}: its file names one more group", node_name(0)));
    regroup(cluster);
    let in_them = |eni: &EniView| eni.security_groups == GROUPS;
    faults.extend(wait(cluster, 0, step, "in sg-web too", in_them));
    let step = screen.step(format!("{}: a ConfigMap for it names a tag", node_name(1)));
    label(cluster);
    let tagged = |eni: &EniView| eni.tags.get("pool").is_some_and(|pool| pool == "gpu");
    faults.extend(wait(cluster, 1, step, "tagged pool=gpu", tagged));
    if pod.ping(other).is_none() {
        faults.push("pods do not speak any more after the configuration has changed".into());
    }
    faults
}

fn regroup(cluster: &Cluster) {
    let text = cluster.node(0).read_file(CONFIG).expect("the node is configured");
    let mut config: Value = serde_json::from_str(&text).expect("the configuration is JSON");
    config["security_groups"] = json!(GROUPS);
    cluster.node(0).write_file(CONFIG, &config.to_string());
}

fn label(cluster: &Cluster) {
    cluster.kube.put(json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "gpu", "namespace": "kube-system"},
        "data": {"eni_conf": r#"{"eni_tags": {"pool": "gpu"}}"#},
    }));
    let name = node_name(1);
    if cluster.kube.get("Node", "", &name).is_none() {
        cluster.kube.put(kube::node(&name, &format!("cn-hangzhou.{}", cluster.node(1).id)));
    }
    cluster.kube.amend("Node", "", &name, &json!({"metadata": {"labels": {"terway-config": "gpu"}}}));
}

/// Waits until all secondary ENIs of the node are so; a fault if they do not come to be.
fn wait(cluster: &Cluster, n: usize, step: Step, what: &str, so: impl Fn(&EniView) -> bool) -> Option<String> {
    let start = Instant::now();
    let enis =
        || cluster.world.cloud.enis_of(&cluster.node(n).id).into_iter().filter(|eni| eni.kind == EniKind::Secondary);
    if within(PATIENCE, || enis().all(|eni| so(&eni))) {
        step.done(&format!("{} ENIs {what} after {}", enis().count(), millis(start.elapsed())));
        return None;
    }
    step.failed("nothing happens");
    Some(format!("the ENIs of {} are not {what}", node_name(n)))
}
