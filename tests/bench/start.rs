//! How soon a daemon that starts on a full node serves an ADD.

use std::thread;
use std::time::{Duration, Instant};

use super::sim::cluster::{Cluster, Member};
use super::sim::traffic::Place;
use super::table::{Row, Table, Times};

/// Starts of the daemon, each with a pod of its own; so many idle addresses are needed.
pub const STARTS: usize = 15;
/// What the last life and the deleted pod have left is over after this time.
const SETTLED: Duration = Duration::from_millis(700);
const PATIENCE: Duration = Duration::from_secs(20);

/// The node has its pods, and idle addresses enough.
pub fn measure(cluster: &mut Cluster, n: usize, table: &mut Table) {
    let mut times = Times::default();
    for i in 0..STARTS {
        let pod = cluster.schedule(n, &format!("start-{i}"));
        cluster.stop(n);
        thread::sleep(SETTLED);
        times.push(until_served(cluster, n, &pod));
        cluster.del(pod);
        thread::sleep(SETTLED);
    }
    let millis = |time: Duration| (time.as_secs_f64() * 1e5).round() / 1e2;
    let what = "terwayd with 250 pods: from its exec to the exit of the first ADD served, which is said again until it is; median";
    table.push(Row::alone("start_to_add_ms", what, "ms", millis(times.p50()), 50.0).with("times", times.json()));
}

/// A runtime's ADD that finds the daemon starting is refused with "try again later"; here it tries again at once.
fn until_served(cluster: &mut Cluster, n: usize, pod: &Member) -> Duration {
    let start = Instant::now();
    cluster.start_with(n, &[]);
    cluster.node(n).run(|| {
        loop {
            let answer = pod.sandbox.call("ADD");
            if answer.code == Some(0) {
                return start.elapsed();
            }
            assert_eq!(answer.json()["code"], 11, "{answer:?}");
            assert!(start.elapsed() < PATIENCE, "terwayd does not serve: {answer:?}");
        }
    })
}
