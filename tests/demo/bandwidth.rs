//! Bandwidth: a pod that runs is given limits by annotations, and is flooded both ways.

use std::thread;

use serde_json::json;

use crate::screen::{Cell, Screen, Table};
use crate::sim::cluster::{Cluster, Member, SOON, within};
use crate::sim::flood::flood;
use crate::sim::traffic::Place;
use crate::story::End;

/// One family counts bytes to the base 1024, the other bits.
const INGRESS: (&str, &str, u64) = ("k8s.aliyun.com/ingress-bandwidth", "1M", 8 << 20);
const EGRESS: (&str, &str, u64) = ("kubernetes.io/egress-bandwidth", "1M", 1_000_000);

/// Shows the measured beside the limit; how many are off by more than a busy machine explains.
pub fn show(screen: &Screen, cluster: &Cluster, pod: &Member, other: &Member) -> Result<usize, End> {
    let name = &pod.sandbox.pod.name;
    let step = screen.step(format!("{name} runs, and gets annotations"));
    let annotations = json!({INGRESS.0: INGRESS.1, EGRESS.0: EGRESS.1});
    cluster.kube.amend("Pod", "default", name, &json!({"metadata": {"annotations": annotations}}));
    // On which link depends on how the pod is wired.
    let shaped = || pod.pod.sh("tc qdisc show").contains("tbf");
    if !within(SOON, shaped) {
        return Err(End::Failed(format!("{name} has no limit")));
    }
    step.done("in force");
    let step = screen.step("a second of UDP both ways, 1.5 × the limit");
    let seen = thread::scope(|scope| {
        let offer = |limit| limit / 2 * 3;
        let ingress = scope.spawn(move || flood(&other.pod, &pod.pod, &pod.ip, offer(INGRESS.2), 1));
        let egress = scope.spawn(move || flood(&pod.pod, &other.pod, &other.ip, offer(EGRESS.2), 1));
        [ingress, egress].map(|flood| flood.join().expect("a flood ends")[0])
    });
    step.done("");
    let mut table = Table::new([
        Cell::left("annotation"),
        Cell::left("value"),
        Cell::right("limit, kbit/s"),
        Cell::right("first second"),
        Cell::right("off by"),
    ]);
    let mut faults = 0;
    for ((key, value, limit), bits) in [INGRESS, EGRESS].into_iter().zip(seen) {
        let off = (bits as f64 / limit as f64 - 1.0) * 100.0;
        let good = (-20.0..=5.0).contains(&off);
        faults += usize::from(!good);
        let kbit = |bits: u64| (bits / 1000).to_string();
        table.row(vec![
            Cell::left(key),
            Cell::left(value),
            Cell::right(kbit(limit)),
            Cell::right(kbit(bits)),
            Cell::figure(good, &format!("{off:+.1} %")),
        ]);
    }
    screen.line("");
    screen.table(&table);
    Ok(faults)
}

/// Takes the annotations away again.
pub fn lift(cluster: &Cluster, pod: &Member) {
    let annotations = json!({INGRESS.0: null, EGRESS.0: null});
    cluster.kube.amend("Pod", "default", &pod.sandbox.pod.name, &json!({"metadata": {"annotations": annotations}}));
}
