//! ADD, DEL and VERSION beside the peer's: how long, how much CPU, how many a second, and what else they touch.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use super::exec::{self, Cost};
use super::peer;
use super::sim::cluster::{Cluster, Member};
use super::sim::traffic::Place;
use super::table::{Goal, Row, Table, Times, micros};
use super::workers::{WORKERS, at_once};
use super::{OURS, PEER};

/// Blocks of pods that are added and deleted, ours and the peer's by turns.
const BLOCKS: usize = 5;
const PODS: usize = 30;
/// Pods that are deleted in a row before it is the other's turn.
const DELETED: usize = 10;
/// What a DEL leaves for later is over after this time, and no matter of who comes next.
const SETTLED: Duration = Duration::from_millis(400);
/// What an ADD sets going in the kernel (carrier, IPv6 addresses) is over after this time, and not in the way of the other's.
const QUIET: Duration = Duration::from_millis(30);
const ROUNDS: usize = 4;
const PODS_OF_WORKER: usize = 10;
const VERSIONS: usize = 200;
const TRACED: usize = 5;

/// All figures of the verbs; takes some 315 idle addresses.
pub fn measure(cluster: &mut Cluster, table: &mut Table) {
    let (_first, of_an_eni) = settle(cluster);
    version(cluster, table);
    add_and_del(cluster, of_an_eni, table);
    rate(cluster, table);
    fsyncs(cluster, table);
}

/// A pod on each ENI, which stays. The first pod of an ENI is told to the API server, once (`aliyun/eni` goes down), and is not
/// what an ADD costs. Also the requests that such a pod makes.
fn settle(cluster: &Cluster) -> (Vec<Member>, f64) {
    let enis = cluster.show(OURS)["pool"]["enis"].as_array().expect("a list").len();
    thread::sleep(SETTLED);
    let before = cluster.kube.journal().len();
    let pods = (0..enis).map(|i| {
        let pod = cluster.add(OURS, &format!("first-{i}"));
        thread::sleep(SETTLED);
        pod
    });
    let pods: Vec<Member> = pods.collect();
    let requests = cluster.kube.journal().len() - before;
    (pods, (requests as f64 / enis as f64 * 100.0).round() / 100.0)
}

fn call(cluster: &Cluster, member: &Member, verb: &str) -> Cost {
    let sandbox = &member.sandbox;
    cluster.node(member.node).run(|| exec::alone(&mut sandbox.command(verb), &sandbox.conf))
}

fn pods(cluster: &Cluster, count: usize, tag: &str) -> [Vec<Member>; 2] {
    let ours = (0..count).map(|i| cluster.schedule(OURS, &format!("{tag}-{i}"))).collect();
    let theirs = (0..count).map(|i| peer::pod(cluster, PEER, &format!("{tag}-{i}"))).collect();
    // The watch has told the daemon by then, as it has long before a sandbox stands.
    thread::sleep(SETTLED);
    [ours, theirs]
}

fn version(cluster: &Cluster, table: &mut Table) {
    let (mut ours, mut theirs) = (Times::default(), Times::default());
    for _ in 0..VERSIONS {
        for (n, plugin, times) in [(OURS, "/opt/cni/bin/terway", &mut ours), (PEER, "/opt/cni/bin/ptp", &mut theirs)] {
            let mut command = Command::new(plugin);
            command.env_clear().env("CNI_COMMAND", "VERSION");
            times.push(cluster.node(n).run(|| exec::alone(&mut command, r#"{"cniVersion":"1.0.0"}"#)).took);
        }
    }
    let what = "exec to exit of VERSION, median; ptp's beside it";
    table.push(Row::times("exec_ratio", what, [&ours, &theirs], Goal::RatioAtMost(0.2)));
}

/// What is summed up over the blocks, ours and the peer's.
#[derive(Default)]
struct Sums {
    add: [Times; 2],
    del: [Times; 2],
    add_cpu: [Duration; 2],
    del_cpu: [Duration; 2],
    cloud: usize,
    api: usize,
}

fn add_and_del(cluster: &mut Cluster, of_an_eni: f64, table: &mut Table) {
    let mut sums = Sums::default();
    let daemon = cluster.daemon(OURS).pid();
    for block in 0..BLOCKS {
        let pods = pods(cluster, PODS, &format!("single{block}"));
        add(cluster, &pods, daemon, &mut sums);
        del(cluster, &pods, daemon, &mut sums);
        for pod in &pods[0] {
            cluster.kube.delete("Pod", "default", &pod.sandbox.pod.name);
        }
    }
    let count = (BLOCKS * PODS) as u32;
    let pair = |times: &'_ [Times; 2]| [times[0].clone(), times[1].clone()];
    let [ours, theirs] = pair(&sums.add);
    let what = "ADD with an idle address: exec to exit, median; ptp + host-local beside it";
    table.push(Row::times("add_p50_ratio", what, [&ours, &theirs], Goal::RatioAtMost(1.0 / 8.0)));
    let cpu = |sums: [Duration; 2]| sums.map(|sum| micros(sum / count));
    let what = "user and system time of an ADD, the daemon's share included; ptp + host-local beside it";
    table.push(Row::beside("add_cpu_ratio", what, "µs", cpu(sums.add_cpu), Goal::RatioAtMost(0.2)));
    let [ours, theirs] = pair(&sums.del);
    let what = "DEL: exec to exit, median; ptp + host-local beside it";
    let [ours_cpu, theirs_cpu] = cpu(sums.del_cpu);
    let row = Row::times("del_p50_ratio", what, [&ours, &theirs], Goal::RatioAtMost(0.25));
    table.push(row.with("ours_cpu", ours_cpu).with("baseline_cpu", theirs_cpu));
    let each = |calls: usize| calls as f64 / f64::from(count);
    let what = "calls of the cloud's API and metadata in such an ADD, by the simulator's journal";
    table.push(Row::alone("add_cloud_calls", what, "calls", each(sums.cloud), 0.0));
    let what =
        "requests to the API server in such an ADD, on an ENI that carries pods already, by the simulator's journal";
    let row = Row::alone("add_api_requests", what, "calls", each(sums.api), 0.0);
    table.push(row.with("first_of_an_eni", of_an_eni));
}

/// One of ours, one of the peer's, and so on, each on a quiet kernel.
fn add(cluster: &Cluster, pods: &[Vec<Member>; 2], daemon: u32, sums: &mut Sums) {
    let journals = || (cluster.world.cloud.journal().len(), cluster.kube.journal().len());
    let (before, used) = (journals(), exec::cpu_of(daemon));
    for turn in 0..PODS {
        for (side, pods) in pods.iter().enumerate() {
            let cost = call(cluster, &pods[turn], "ADD");
            sums.add[side].push(cost.took);
            sums.add_cpu[side] += cost.cpu;
            thread::sleep(QUIET);
        }
    }
    thread::sleep(SETTLED);
    sums.add_cpu[0] += exec::cpu_of(daemon) - used;
    let after = journals();
    sums.cloud += after.0 - before.0;
    sums.api += after.1 - before.1;
}

/// Some of ours, some of the peer's, and so on, with a pause in which our daemon deletes the links: that is in the CPU, and
/// not in the way of the peer.
fn del(cluster: &Cluster, pods: &[Vec<Member>; 2], daemon: u32, sums: &mut Sums) {
    let used = exec::cpu_of(daemon);
    for turn in 0..PODS / DELETED {
        for (side, pods) in pods.iter().enumerate() {
            for pod in &pods[turn * DELETED..][..DELETED] {
                let cost = call(cluster, pod, "DEL");
                sums.del[side].push(cost.took);
                sums.del_cpu[side] += cost.cpu;
            }
            thread::sleep(SETTLED);
        }
    }
    sums.del_cpu[0] += exec::cpu_of(daemon) - used;
}

/// Some workers at once, each with its own pods; rounds of ours and the peer's by turns.
fn rate(cluster: &Cluster, table: &mut Table) {
    let mut rates = [Vec::new(), Vec::new()];
    for round in 0..ROUNDS {
        for (side, pods) in pods(cluster, WORKERS * PODS_OF_WORKER, &format!("rate{round}")).iter().enumerate() {
            let time = at_once(cluster, pods, "ADD");
            rates[side].push(pods.len() as f64 / time.as_secs_f64());
            for pod in pods {
                call(cluster, pod, "DEL");
            }
            thread::sleep(SETTLED);
        }
    }
    let pair = rates.map(|mut rates| {
        rates.sort_by(f64::total_cmp);
        (rates[rates.len() / 2] * 10.0).round() / 10.0
    });
    let what = "ADDs a second of four workers; ptp + host-local beside it";
    table.push(Row::beside("add_rate_ratio", what, "/s", pair, Goal::RatioAtLeast(5.0)));
}

/// The system calls that wait for a disk, in daemon and plugin.
fn fsyncs(cluster: &mut Cluster, table: &mut Table) {
    let daemon = cluster.daemon(OURS).pid();
    let [ours, theirs] = pods(cluster, TRACED, "traced");
    let (mut count, mut peers) = (0, 0);
    cluster.node(OURS).run(|| {
        let file = "/run/daemon.strace";
        let mut strace = strace(file);
        let mut strace = strace.args(["-p", &daemon.to_string()]).spawn().expect("strace is installed");
        await_tracer(daemon);
        for pod in &ours {
            count += traced(pod);
        }
        rustix::process::kill_process(rustix::process::Pid::from_child(&strace), rustix::process::Signal::INT)
            .expect("it is our child");
        strace.wait().expect("it is our child");
        let calls = fs::read_to_string(file).expect("strace wrote it");
        assert!(calls.matches("accept4(").count() >= TRACED, "strace has not seen the daemon at work:\n{calls}");
        count += syncs(&calls);
    });
    cluster.node(PEER).run(|| theirs.iter().for_each(|pod| peers += traced(pod)));
    let each = |count: usize| count as f64 / TRACED as f64;
    let what = "fsync and its kin in plugin and daemon in an ADD, by strace";
    table.push(Row::alone("add_fsyncs", what, "calls", each(count), 0.0).with("baseline_fsyncs", each(peers)));
    for pod in ours.iter().chain(&theirs) {
        call(cluster, pod, "DEL");
    }
}

fn strace(file: &str) -> Command {
    let mut command = Command::new("strace");
    let what = "trace=fsync,fdatasync,sync,syncfs,sync_file_range,msync,accept4,execve";
    command.args(["-f", "-qq", "-o", file, "-e", what]);
    command
}

fn await_tracer(pid: u32) {
    let start = Instant::now();
    while fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs").contains("TracerPid:\t0\n") {
        assert!(start.elapsed() < Duration::from_secs(5), "strace does not attach to {pid}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// ADDs the pod under strace and counts what waited for a disk.
fn traced(pod: &Member) -> usize {
    let file = "/run/plugin.strace";
    let plugin = pod.sandbox.command("ADD");
    let mut command = strace(file);
    command.arg(plugin.get_program());
    command.env_clear().envs(plugin.get_envs().filter_map(|(name, value)| Some((name, value?))));
    exec::run(&mut command, &pod.sandbox.conf);
    let calls = fs::read_to_string(file).expect("strace wrote it");
    assert!(calls.contains("execve("), "strace has not seen the plugin at work:\n{calls}");
    syncs(&calls)
}

fn syncs(calls: &str) -> usize {
    calls.lines().filter(|line| line.contains("sync")).count()
}
