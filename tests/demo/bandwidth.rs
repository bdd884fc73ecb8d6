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
/// Less than this, in percent off, may be a machine that did not get to send: then it is tried again, and the best counts.
const TOO_LOW: f64 = -20.0;
const TRIES: usize = 3;

/// Shows the measured beside the limit; how many are off by more than a busy machine explains.
pub fn show(screen: &Screen, cluster: &Cluster, pod: &Member, other: &Member) -> Result<usize, End> {
    let name = &pod.sandbox.pod.name;
    let step = screen.step(format!("{name} runs, and gets annotations"));
    let annotations = json!({INGRESS.0: INGRESS.1, EGRESS.0: EGRESS.1});
    cluster.kube.amend("Pod", "default", name, &json!({"metadata": {"annotations": annotations}}));
    // On which links depends on how the pod is wired: CHECK knows them all.
    let shaped = || pod.pod.sh("tc qdisc show").contains("tbf") && cluster.call_for(pod, "CHECK").code == Some(0);
    if !within(SOON, shaped) {
        return Err(End::Failed(format!("{name} has no limit")));
    }
    step.done("in force");
    let step = screen.step("a second of UDP both ways, 1.5 × the limit");
    let limits = [INGRESS.2, EGRESS.2];
    let mut seen = [0; 2];
    for _ in 0..TRIES {
        let more = floods(pod, other, limits.map(|limit| limit / 2 * 3));
        seen = [seen[0].max(more[0]), seen[1].max(more[1])];
        if seen.into_iter().zip(limits).all(|(bits, limit)| off(bits, limit) >= TOO_LOW) {
            break;
        }
    }
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
        let off = off(bits, limit);
        let good = (TOO_LOW..=5.0).contains(&off);
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

/// The first second of a flood to the pod and of one from it, both at once; the bits of each.
fn floods(pod: &Member, other: &Member, [ingress, egress]: [u64; 2]) -> [u64; 2] {
    thread::scope(|scope| {
        let ingress = scope.spawn(move || flood(&other.pod, &pod.pod, &pod.ip, ingress, 1));
        let egress = scope.spawn(move || flood(&pod.pod, &other.pod, &other.ip, egress, 1));
        [ingress, egress].map(|flood| flood.join().expect("a flood ends")[0])
    })
}

/// In percent of the limit.
fn off(bits: u64, limit: u64) -> f64 {
    (bits as f64 / limit as f64 - 1.0) * 100.0
}

/// Takes the annotations away again.
pub fn lift(cluster: &Cluster, pod: &Member) {
    let annotations = json!({INGRESS.0: null, EGRESS.0: null});
    cluster.kube.amend("Pod", "default", &pod.sandbox.pod.name, &json!({"metadata": {"annotations": annotations}}));
}
