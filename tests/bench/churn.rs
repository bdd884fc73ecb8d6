//! A thousand pods that come and go, ours and the peer's by turns; and what ten thousand of them leave in the daemon's memory.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use terway::pod::PodName;

use super::sim::cluster::{self, Cluster, Member, node_name};
use super::sim::kube;
use super::table::{Goal, Row, Table, micros};
use super::workers::at_once;
use super::{idle, peer};

pub const PODS: usize = 1000;
/// Pods in a row before it is the other's turn.
const BLOCK: usize = 250;
/// So many times a thousand pods for the daemon's memory.
const ROUNDS: usize = 10;
/// What a block leaves to kernel and daemon is over after this time, and not in the other's figures.
const SETTLED: Duration = Duration::from_millis(600);
/// How long addresses rest on our node, so that ten rounds find idle ones.
pub const COOLDOWN: &str = "1s";

/// What the kernel counts CPU time in.
const TICK: Duration = Duration::from_millis(10);

/// The two nodes must have room for a thousand pods each.
pub fn measure(cluster: &mut Cluster, ours: usize, theirs: usize, table: &mut Table) {
    let mut pods = namespaces(cluster, ours, theirs);
    let [add, del] = ["ADD", "DEL"].map(|verb| by_turns(cluster, &pods, verb));
    let what = "1,000 pods on a node by four workers, ADDs a second; ptp + host-local beside it";
    table.push(add.row("churn_add_ratio", what));
    let what = "the same 1,000 pods by four workers, DELs a second; ptp + host-local beside it";
    table.push(del.row("churn_del_ratio", what));
    memory(cluster, &mut pods[0], table);
}

/// Pods with their namespaces, before ADD; the API server knows those of our node.
fn namespaces(cluster: &Cluster, ours: usize, theirs: usize) -> [Vec<Member>; 2] {
    let start = Instant::now();
    let pods = thread::scope(|scope| {
        let ours = scope.spawn(move || (0..PODS).map(|i| cluster.schedule(ours, &name(1, i))).collect());
        let theirs = scope.spawn(move || (0..PODS).map(|i| peer::pod(cluster, theirs, &name(1, i))).collect());
        [ours, theirs].map(|made| made.join().expect("it does not panic"))
    });
    eprintln!("{} namespaces stand after {:?}", 2 * PODS, start.elapsed());
    thread::sleep(SETTLED);
    pods
}

fn name(round: usize, i: usize) -> String {
    format!("churn{round}-{i}")
}

/// What all blocks of one verb took, ours and the peer's.
#[derive(Default)]
struct Sums {
    took: [Duration; 2],
    /// Of the whole machine, with what the kernel and our daemon do afterwards.
    cpu: [Duration; 2],
}

impl Sums {
    fn row(&self, name: &'static str, what: &'static str) -> Row {
        let rates = self.took.map(|took| (PODS as f64 / took.as_secs_f64() * 10.0).round() / 10.0);
        let [ours, theirs] = self.cpu.map(|cpu| micros(cpu / PODS as u32));
        let row = Row::beside(name, what, "/s", rates, Goal::RatioAtLeast(8.0));
        row.with("ours_machine_cpu_us", ours).with("baseline_machine_cpu_us", theirs)
    }
}

fn by_turns(cluster: &Cluster, pods: &[Vec<Member>; 2], verb: &str) -> Sums {
    let mut sums = Sums::default();
    for block in 0..PODS / BLOCK {
        for (side, pods) in pods.iter().enumerate() {
            let used = machine_cpu();
            sums.took[side] += at_once(cluster, &pods[block * BLOCK..][..BLOCK], verb);
            thread::sleep(SETTLED);
            sums.cpu[side] += machine_cpu() - used;
        }
    }
    sums
}

/// What all CPUs have worked so far, for whomever.
fn machine_cpu() -> Duration {
    let text = fs::read_to_string("/proc/stat").expect("procfs is there");
    let line = text.lines().next().and_then(|line| line.strip_prefix("cpu ")).expect("its first line sums up the CPUs");
    let ticks: Vec<u64> = line.split_whitespace().map_while(|n| n.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq
    let busy = [0, 1, 2, 5, 6].iter().map(|n| ticks[*n] as u32).sum::<u32>();
    busy * TICK
}

/// Further rounds of new pods in the namespaces there are, and the daemon's memory after the first and after the last.
fn memory(cluster: &mut Cluster, pods: &mut [Member], table: &mut Table) {
    forget(cluster, pods);
    let before = memory_at_rest(cluster, pods[0].node);
    let start = Instant::now();
    for round in 2..=ROUNDS {
        renew(cluster, pods, round);
        for verb in ["ADD", "DEL"] {
            at_once(cluster, pods, verb);
        }
        memory_at_rest(cluster, pods[0].node);
        forget(cluster, pods);
    }
    let after = memory_at_rest(cluster, pods[0].node);
    eprintln!("{} further rounds took {:?}", ROUNDS - 1, start.elapsed());
    let what = "resident memory of terwayd after 10,000 ADDs and DELs, beside that after 1,000";
    let goal = Goal::RatioAtMost(1.02);
    table.push(Row::beside("rss_churn_ratio", what, "B", [after as f64, before as f64], goal));
}

/// Once no link of a pod is left, no address rests, and the daemon has heard that the pods are no more.
fn memory_at_rest(cluster: &mut Cluster, node: usize) -> u64 {
    cluster::soon("the last round is over", || {
        let pool = &cluster.show(node)["pool"];
        cluster.ledger(node, "resting").is_empty() && pool["idle"].as_u64() >= Some(PODS as u64)
    });
    thread::sleep(SETTLED);
    idle::memory(cluster.daemon(node).pid())
}

/// The pods are deleted in Kubernetes too.
fn forget(cluster: &Cluster, pods: &[Member]) {
    for pod in pods {
        cluster.kube.delete("Pod", &pod.sandbox.pod.namespace, &pod.sandbox.pod.name);
    }
}

/// Other pods and containers take the namespaces over.
fn renew(cluster: &Cluster, pods: &mut [Member], round: usize) {
    for (i, pod) in pods.iter_mut().enumerate() {
        pod.sandbox.pod = PodName::new("default", name(round, i));
        pod.sandbox.container = format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..));
        let PodName { namespace, name } = &pod.sandbox.pod;
        cluster.kube.put(kube::pod(namespace, name, &node_name(pod.node)));
        pod.sandbox.uid = cluster.uid(&pod.sandbox.pod);
    }
    thread::sleep(SETTLED);
}
