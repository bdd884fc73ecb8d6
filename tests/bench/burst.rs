//! A hundred pods at once on a node that has no address yet: how many calls that costs, and how long the last one waits.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use super::sim::cluster::{Cluster, Member};
use super::sim::traffic::Place;
use super::table::{Row, Table};

const PODS: usize = 100;
/// What the watch needs to tell of them.
const SETTLED: Duration = Duration::from_millis(400);

/// The node's daemon serves, keeps no idle address, and has none.
pub fn measure(cluster: &Cluster, n: usize, table: &mut Table) {
    let shown = cluster.show(n);
    assert_eq!(shown["pool"]["idle"], 0, "the pool is not empty: {shown:#}");
    let pods: Vec<Member> = (0..PODS).map(|i| cluster.schedule(n, &format!("burst-{i}"))).collect();
    thread::sleep(SETTLED);
    let before = cluster.world.cloud.journal().len();
    let took = all_at_once(cluster, &pods);
    let mut calls: BTreeMap<String, usize> = BTreeMap::new();
    let journal = cluster.world.cloud.journal();
    let from = cluster.node(n).addr;
    for call in journal[before..].iter().filter(|call| call.from == from) {
        *calls.entry(call.action.clone()).or_default() += 1;
    }
    let what =
        "100 ADDs at once, no address idle, ENIs of 30 addresses: all calls of the cloud until the last is served";
    let row = Row::alone("burst_cloud_calls", what, "calls", calls.values().sum::<usize>() as f64, 12.0);
    table.push(
        row.with("seconds", (took.as_secs_f64() * 1000.0).round() / 1000.0).with("calls", serde_json::json!(calls)),
    );
}

/// From the start of the first ADD to the end of the last.
fn all_at_once(cluster: &Cluster, pods: &[Member]) -> Duration {
    cluster.node(pods[0].node).run(|| {
        let start = Instant::now();
        let plugins: Vec<_> = pods.iter().map(|pod| pod.sandbox.begin("ADD")).collect();
        for (mut plugin, pod) in plugins.into_iter().zip(pods) {
            let status = plugin.wait().expect("it is our child");
            assert!(status.success(), "ADD {}: {status}", pod.sandbox.pod);
        }
        start.elapsed()
    })
}
