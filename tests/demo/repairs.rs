//! Somebody flushes what makes the pods' network, again and again, and each time it is there again.

use crate::screen::{Screen, millis};
use crate::sim::cluster::Cluster;
use crate::sim::damage::{self, KINDS};
use crate::sim::fabric::OUTSIDE;
use crate::sim::node::Pod;
use crate::sim::traffic::Place;

/// Shows each kind of damage on a node; what is not as it should be in the end.
pub fn show(screen: Screen, cluster: &Cluster, n: usize, pod: &Pod) -> Vec<String> {
    let seen = damage::look(cluster, n);
    let mut faults = Vec::new();
    for (i, (kind, damage)) in KINDS.iter().enumerate() {
        let step = screen.step(format!("{kind}: taken away"));
        let damage = damage(&seen, i);
        match damage::time(cluster, n, &damage) {
            Some(took) => step.done(&format!("back after {}", millis(took))),
            None => {
                step.failed("not repaired");
                faults.push(format!("{kind} is not repaired after {}", damage.line));
            }
        }
    }
    if pod.ping(OUTSIDE).is_none() {
        faults.push("a pod does not reach the outside after the repairs".into());
    }
    faults
}
