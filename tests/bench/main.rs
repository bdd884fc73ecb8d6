//! `make bench`: our numbers beside those of a peer, in one run, as a table and as `target/bench.json`.
//!
//! With `--strict` a missed goal is a failure; `verbs`, `ordinary` (with the verbs), `shape`, `large`, `services`, `connect`, `ipvlan`, `policy`, `repair` or `start` (a piece of
//! `ordinary`) measures that part only. `versus PATH` measures the verbs and their rates beside another build of ours instead.

mod burst;
mod churn;
mod connect;
mod exec;
mod idle;
mod peer;
mod policy;
mod repair;
mod rtt;
mod services;
mod shape;
#[path = "../sim/mod.rs"]
#[allow(dead_code, unused_imports)]
mod sim;
mod slave;
mod start;
mod table;
mod verbs;
mod versus;
mod workers;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use sim::cloud::{Config, InstanceType};
use sim::cluster::{self, Cluster, Member};
use sim::world::{self, World};
use table::Table;

/// The nodes by what they are for.
const OURS: usize = 0;
const PEER: usize = 1;
const FEW: usize = 2;
const FULL: usize = 3;
const RULES: usize = 4;

/// How many pods the nodes have that are compared.
const FEW_PODS: usize = 4;
const FULL_PODS: usize = 250;
/// Idle addresses that the verbs take.
const ADDRESSES: usize = 335;
const BINARY: &str = "target/x86_64-unknown-linux-musl/release/terway";
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let installed = root().join("target/bench/terway");
    if cluster::binary() != installed {
        return again_with(&installed);
    }
    // All that we start inherits it, the peer too: what else this machine does is in nobody's figures.
    if let Err(e) = rustix::process::setpriority_process(None, -20) {
        eprintln!("no priority over other processes: {e}");
    }
    let start = Instant::now();
    let mut table = Table::default();
    measure(&mut table);
    table.print();
    table.write(&root().join("target/bench.json"));
    println!("measured in {} s", start.elapsed().as_secs());
    let strict = std::env::args().any(|arg| arg == "--strict");
    if strict && !table.all_met() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn root() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

/// The numbers are those of the released binary and no other, copied as an installation would: the page cache holds a file
/// that a linker wrote in smaller pieces, and execs it a fifth slower. The peer was installed by its package.
fn again_with(installed: &Path) -> ExitCode {
    let released = std::env::var_os("TERWAY_BINARY").map_or_else(|| root().join(BINARY), PathBuf::from);
    let _ = fs::remove_file(installed);
    let copied = fs::create_dir_all(root().join("target/bench")).and_then(|()| fs::copy(&released, installed));
    if let Err(e) = copied {
        eprintln!("copy {} to {}: {e} (make build makes it)", released.display(), installed.display());
        return ExitCode::FAILURE;
    }
    let us = std::env::current_exe().expect("we were started from a file");
    let status = Command::new(us).args(std::env::args_os().skip(1)).env("TERWAY_BINARY", installed).status();
    if status.expect("we can be started again").success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn measure(table: &mut Table) {
    let asked: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    if let [what, other] = asked.as_slice()
        && what == "versus"
    {
        return versus(Path::new(other), table);
    }
    let is_asked = |part: &str| asked.is_empty() || asked.iter().any(|a| a == part);
    if is_asked("ordinary") {
        ordinary(table);
    } else if is_asked("verbs") {
        drop(verbs(2, table));
    }
    if is_asked("shape") {
        bandwidth(table);
    }
    if is_asked("large") {
        large(table);
    }
    if asked.iter().any(|part| part == "start") {
        let mut cluster = Cluster::new(config(), 1, "ecs.sim.250");
        let _pods = populate(&mut cluster, 0, FULL_PODS, start::STARTS);
        start::measure(&mut cluster, 0, table);
    }
    if is_asked("services") {
        let mut cluster = Cluster::new(config(), 1, "ecs.sim.large");
        services::measure(&mut cluster, 0, table);
    }
    if is_asked("connect") {
        let mut cluster = Cluster::new(config(), connect::NODES, "ecs.sim.large");
        connect::measure(&mut cluster, table);
    }
    if is_asked("policy") {
        let mut cluster = Cluster::new(config(), 1, "ecs.sim.250");
        fill_with(&mut cluster, 0, policy::HERE + 4, &json!({"policy_renderer": "ebpf"}));
        let _pods: Vec<Member> = (0..policy::HERE).map(|i| cluster.add(0, &format!("n0-{i}"))).collect();
        policy::measure(&mut cluster, 0, table);
    }
    if is_asked("ipvlan") {
        slave::measure(table);
    }
    if is_asked("repair") {
        let mut cluster = Cluster::new(config(), 1, "ecs.sim.250");
        let _pods = populate(&mut cluster, 0, FULL_PODS, 0);
        repair::measure(&cluster, 0, table);
    }
}

/// The verbs beside those of another build.
fn versus(other: &Path, table: &mut Table) {
    let mut cluster = Cluster::new(config(), 2, "ecs.sim.250");
    versus::install(&cluster, PEER, &fs::canonicalize(other).expect("the other build is there"));
    for n in [OURS, PEER] {
        fill_with(&mut cluster, n, ADDRESSES, &json!({"ip_cooldown": churn::COOLDOWN}));
    }
    versus::measure(&mut cluster, [OURS, PEER], table);
}

/// The verbs beside the peer's, on the first two of so many nodes.
fn verbs(nodes: usize, table: &mut Table) -> Cluster {
    let mut cluster = Cluster::new(config(), nodes, "ecs.sim.250");
    peer::install(&cluster, PEER);
    // The pods that each ENI is to have first are spread over all of them.
    fill_with(&mut cluster, OURS, ADDRESSES, &json!({"eni_selection_policy": "least_ips"}));
    verbs::measure(&mut cluster, table);
    cluster
}

/// Nodes with 4 to 250 pods.
fn ordinary(table: &mut Table) {
    let mut cluster = verbs(5, table);

    let few = populate(&mut cluster, FEW, FEW_PODS, 0);
    let full = populate(&mut cluster, FULL, FULL_PODS, start::STARTS);
    let rules = populate(&mut cluster, RULES, FULL_PODS, 0);
    let shown = cluster.show(RULES);
    cluster.stop(RULES);
    rtt::convert(&cluster, &rules, &shown);
    let remote = cluster.add(OURS, "remote");
    rtt::measure(&rtt::Pods { few: &few, full: &full, rules: &rules, remote: &remote }, table);
    idle::measure(&mut cluster, table);
    start::measure(&mut cluster, FULL, table);
}

/// Two nodes with pods that have limits.
fn bandwidth(table: &mut Table) {
    let (ours, theirs) = (0, 1);
    let mut cluster = Cluster::new(config(), 2, "ecs.sim.large");
    peer::install(&cluster, theirs);
    cluster.start_with(ours, &[]);
    cluster.wait_ready(ours);
    shape::measure(&cluster, ours, theirs, table);
}

/// A node with a thousand pods beside the peer's, and one that a hundred pods meet at once.
fn large(table: &mut Table) {
    let mut world = World::new(config());
    world.add_node(world::instance("i-churn", "ecs.sim.1100"));
    world.add_node(world::instance("i-peer", "ecs.sim.1100"));
    world.add_node(world::instance("i-burst", "ecs.sim.8xlarge"));
    let (ours, theirs, burst) = (0, 1, 2);
    let mut cluster = Cluster::over(world);
    peer::install(&cluster, theirs);
    cluster.configure(burst, &json!({"min_pool_size": 0}));
    cluster.start_with(burst, &[]);
    cluster.wait_ready(burst);
    burst::measure(&cluster, burst, table);
    cluster.stop(burst);
    fill_with(&mut cluster, ours, churn::PODS + 40, &json!({"ip_cooldown": churn::COOLDOWN}));
    churn::measure(&mut cluster, ours, theirs, table);
}

/// A cloud with instance types that have room for 250 pods and for a thousand.
fn config() -> Config {
    let mut config = world::config();
    let kind = |id: &str, enis| InstanceType {
        id: id.into(),
        eni_quantity: enis,
        eni_private_ip_address_quantity: 30,
        eni_ipv6_address_quantity: 30,
        eni_total_quantity: enis,
    };
    config.instance_types.extend([kind("ecs.sim.250", 15), kind("ecs.sim.1100", 38)]);
    config
}

/// A node with so many pods, and idle addresses for some more.
fn populate(cluster: &mut Cluster, n: usize, pods: usize, more: usize) -> Vec<Member> {
    fill(cluster, n, pods + more);
    (0..pods).map(|i| cluster.add(n, &format!("n{n}-{i}"))).collect()
}

/// Starts the daemon of a node and waits until it has so many idle addresses. From then on it asks for no more before they
/// run out: an ADD finds an idle address, and the cloud has no part in it.
fn fill(cluster: &mut Cluster, n: usize, idle: usize) {
    fill_with(cluster, n, idle, &json!({}));
}

/// The same with a configuration of its own, but for the bounds of the pool.
fn fill_with(cluster: &mut Cluster, n: usize, idle: usize, over: &Value) {
    let start = Instant::now();
    let configure = |cluster: &Cluster, min: usize| {
        let mut over = over.clone();
        (over["min_pool_size"], over["max_pool_size"]) = (json!(min), json!(idle + 10));
        cluster.configure(n, &over);
    };
    configure(cluster, idle);
    cluster.start_with(n, &[]);
    cluster.wait_ready(n);
    while cluster.show(n)["pool"]["idle"].as_u64() < Some(idle as u64) {
        assert!(start.elapsed() < PATIENCE, "no {idle} idle addresses on node {n}: {:#}", cluster.show(n)["pool"]);
        thread::sleep(Duration::from_millis(50));
    }
    configure(cluster, 0);
    let daemon = cluster.daemon(n).pid();
    let daemon = Pid::from_raw(daemon as i32).expect("no process is 0");
    kill_process(daemon, Signal::HUP).expect("it is our child");
    while cluster.show(n)["pool"]["min_idle"] != 0 {
        assert!(start.elapsed() < PATIENCE, "node {n} does not take its new configuration up");
        thread::sleep(Duration::from_millis(10));
    }
    eprintln!("node {n} has {idle} idle addresses after {:?}", start.elapsed());
}
