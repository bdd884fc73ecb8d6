//! How long what somebody takes away stays away: each kind of object, on a node with 250 pods.

use std::thread;
use std::time::Duration;

use serde_json::{Map, Value};

use super::sim::cluster::Cluster;
use super::sim::damage::{self, KINDS};
use super::table::{Row, Table, Times, micros};

/// Fewer in a row than make the daemon think that somebody fights it.
const ROUNDS: usize = 12;
/// Between two damages: what one brought about is over.
const QUIET: Duration = Duration::from_millis(40);

/// From the first step of each damage until all of it is undone.
pub fn measure(cluster: &Cluster, n: usize, table: &mut Table) {
    let seen = damage::look(cluster, n);
    let (mut all, mut by_kind) = (Times::default(), Map::new());
    for (kind, damage) in KINDS {
        let mut times = Times::default();
        for round in 0..ROUNDS {
            let damage = damage(&seen, round);
            let took = damage::time(cluster, n, &damage).unwrap_or_else(|| panic!("not repaired: {}", damage.line));
            times.push(took);
            all.push(took);
            thread::sleep(QUIET);
        }
        by_kind.insert((*kind).into(), millis(times.percentile(100)).into());
    }
    let what = "from the flush of rules, routes, neighbours … until all is back, at 250 pods, 99th percentile";
    let row = Row::alone("repair_p99_ms", what, "ms", millis(all.percentile(99)), 100.0);
    table.push(row.with("p50", millis(all.p50())).with("worst_of_kind", Value::Object(by_kind)));
}

fn millis(time: Duration) -> f64 {
    (micros(time) / 10.0).round() / 100.0
}
