//! What terway costs while nothing happens: the size of its file, the daemon's memory, how often it wakes.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use super::FULL;
use super::sim::cluster::{Cluster, binary};
use super::table::{Row, Table};

/// How long the daemon is watched.
const WATCHED: Duration = Duration::from_secs(20);

pub fn measure(cluster: &mut Cluster, table: &mut Table) {
    let bytes = fs::metadata(binary()).expect("the binary is there").len();
    let what = "the one binary that is plugin, daemon and cli";
    table.push(Row::alone("binary_bytes", what, "B", bytes as f64, 8e6));
    let daemon = cluster.daemon(FULL).pid();
    let (before, start) = (switches(daemon), Instant::now());
    thread::sleep(WATCHED);
    let rate = (switches(daemon) - before) as f64 / start.elapsed().as_secs_f64();
    let what = "context switches a second of all threads of terwayd with 250 pods, nothing happening for 20 s";
    table.push(Row::alone("idle_wakeups", what, "/s", (rate * 1000.0).round() / 1000.0, 1.0));
    let what = "resident memory of terwayd with 250 pods";
    table.push(Row::alone("rss_250_pods", what, "B", memory(daemon) as f64, 10e6));
}

/// Resident memory of a process, in bytes. Counted page by page: the sum in `status` is kept by each CPU for itself and is off
/// by up to 64 pages a CPU.
pub fn memory(pid: u32) -> u64 {
    field(&format!("/proc/{pid}/smaps_rollup"), "Rss:") * 1024
}

/// Voluntary or not, of every thread that lives.
fn switches(pid: u32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs").flatten();
    tasks
        .map(|task| {
            let status = task.path().join("status");
            let status = status.to_str().expect("digits");
            field(status, "voluntary_ctxt_switches:") + field(status, "nonvoluntary_ctxt_switches:")
        })
        .sum()
}

fn field(path: &str, name: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("read {path}: {e}"));
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next());
    value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{path} has no {name}"))
}
