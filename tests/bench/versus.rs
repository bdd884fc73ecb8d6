//! Another build of ours in the place of the peer: the same verbs by turns on two nodes, each with its own daemon.

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use super::exec;
use super::idle;
use super::sim::cluster::{Cluster, Member};
use super::sim::traffic::Place;
use super::table::{Goal, Row, Table, Times, micros};
use super::workers::at_once;

const PODS: usize = 150;
const PLUGIN: &str = "/opt/cni/bin/terway";
/// What an ADD sets going in the kernel is over after this time.
const QUIET: Duration = Duration::from_millis(20);
const SETTLED: Duration = Duration::from_millis(600);
/// Pods in a row by several workers before it is the other's turn, and how often all come and go.
const BLOCK: usize = 30;
const ROUNDS: usize = 8;
/// Addresses are idle again after this time.
const RESTED: Duration = Duration::from_millis(1500);

/// The node gets the other build, before its daemon starts.
pub fn install(cluster: &Cluster, n: usize, other: &Path) {
    for path in [PLUGIN, "/opt/terway/terwayd", "/opt/terway/terway-cli"] {
        cluster.node(n).sh(&format!("rm {path}"));
        cluster.node(n).install(other, path);
    }
}

/// Time and CPU of one verb, of this build and of the other.
#[derive(Default)]
struct Sums {
    took: [Times; 2],
    plugin: [Duration; 2],
    daemon: [Duration; 2],
}

impl Sums {
    fn push(&self, table: &mut Table, names: [&'static str; 2], what: [&'static str; 2]) {
        let [ours, other] = &self.took;
        table.push(Row::times(names[0], what[0], [ours, other], Goal::RatioAtMost(1.0)));
        let each = |cpu: Duration| micros(cpu / PODS as u32);
        let whole = [0, 1].map(|side| each(self.plugin[side] + self.daemon[side]));
        let row = Row::beside(names[1], what[1], "µs", whole, Goal::RatioAtMost(1.0));
        let daemons = self.daemon.map(each);
        table.push(row.with("ours_daemon", daemons[0]).with("baseline_daemon", daemons[1]));
    }
}

/// Both daemons serve and have idle addresses.
pub fn measure(cluster: &mut Cluster, nodes: [usize; 2], table: &mut Table) {
    version(cluster, nodes, table);
    let daemons = nodes.map(|n| cluster.daemon(n).pid());
    let pods = nodes.map(|n| (0..PODS).map(|i| cluster.schedule(n, &format!("n{n}-{i}"))).collect::<Vec<Member>>());
    thread::sleep(SETTLED);
    let add = by_turns(cluster, &pods, daemons, "ADD");
    add.push(table, ["add", "add_cpu"], ["ADD: exec to exit, median", "CPU of an ADD, the daemon's share included"]);
    let del = by_turns(cluster, &pods, daemons, "DEL");
    del.push(table, ["del", "del_cpu"], ["DEL: exec to exit, median", "CPU of a DEL, the daemon's share included"]);
    rates(cluster, &pods, table);
    let memory = daemons.map(|pid| idle::memory(pid) as f64);
    table.push(Row::beside("rss", "resident memory of terwayd then", "B", memory, Goal::RatioAtMost(1.0)));
}

/// Blocks of pods by several workers: what an ADD leaves to the kernel's threads shows here.
fn rates(cluster: &Cluster, pods: &[Vec<Member>; 2], table: &mut Table) {
    let mut took = [[Duration::ZERO; 2]; 2];
    for _ in 0..ROUNDS {
        thread::sleep(RESTED);
        for (verb, took) in ["ADD", "DEL"].iter().zip(&mut took) {
            for block in 0..PODS / BLOCK {
                for (side, pods) in pods.iter().enumerate() {
                    took[side] += at_once(cluster, &pods[block * BLOCK..][..BLOCK], verb);
                    thread::sleep(10 * QUIET);
                }
            }
        }
    }
    let rate = |took: Duration| ((ROUNDS * PODS) as f64 / took.as_secs_f64()).round();
    let names = [("add_rate", "ADDs a second, four workers"), ("del_rate", "DELs a second, four workers")];
    for ((name, what), took) in names.into_iter().zip(took) {
        table.push(Row::beside(name, what, "/s", took.map(rate), Goal::RatioAtLeast(1.0)));
    }
}

fn version(cluster: &Cluster, nodes: [usize; 2], table: &mut Table) {
    let mut sums = Sums::default();
    for turn in 0..2 * PODS {
        let mut command = Command::new(PLUGIN);
        command.env_clear().env("CNI_COMMAND", "VERSION");
        let cost = cluster.node(nodes[turn % 2]).run(|| exec::alone(&mut command, r#"{"cniVersion":"1.0.0"}"#));
        sums.took[turn % 2].push(cost.took);
        sums.plugin[turn % 2] += cost.cpu;
    }
    sums.push(table, ["version", "version_cpu"], ["VERSION: exec to exit, median", "CPU of a VERSION"]);
}

fn by_turns(cluster: &Cluster, pods: &[Vec<Member>; 2], daemons: [u32; 2], verb: &str) -> Sums {
    let mut sums = Sums::default();
    let before = daemons.map(exec::cpu_of);
    for turn in 0..PODS {
        for (side, pods) in pods.iter().enumerate() {
            let sandbox = &pods[turn].sandbox;
            let cost = cluster.node(pods[turn].node).run(|| exec::alone(&mut sandbox.command(verb), &sandbox.conf));
            sums.took[side].push(cost.took);
            sums.plugin[side] += cost.cpu;
            thread::sleep(QUIET);
        }
    }
    thread::sleep(SETTLED);
    sums.daemon = [0, 1].map(|side| exec::cpu_of(daemons[side]) - before[side]);
    sums
}
