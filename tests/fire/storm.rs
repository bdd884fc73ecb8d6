//! Everything that goes wrong: daemons die, the cloud loses, repeats and falsifies replies, the API server breaks off.

use std::thread;
use std::time::Duration;

use fastrand::Rng;
use rustix::process::{Pid, Signal, kill_process};

use super::{NODES, configure, story::Story};
use crate::sim::cloud::{Cloud, Kind, Lie, Rate, When};
use crate::sim::cluster::Cluster;
use crate::sim::kube::Trouble;
use crate::sim::node::Daemon;

pub const DEBUG: [&str; 2] = ["--log-level", "debug"];
const CHANGES: [&str; 6] = [
    "CreateNetworkInterface",
    "AttachNetworkInterface",
    "DetachNetworkInterface",
    "DeleteNetworkInterface",
    "AssignPrivateIpAddresses",
    "UnassignPrivateIpAddresses",
];

/// Starts the daemons and rages until the kubelets are done.
pub fn rage(cluster: &Cluster, story: &Story, mut dice: Rng) -> Vec<Daemon> {
    let mut daemons: Vec<Daemon> = (0..NODES).map(|n| cluster.launch(n, &DEBUG)).collect();
    for _ in 0..4 {
        trouble_cloud(&cluster.world.cloud, story, &mut dice);
    }
    while !story.is_over() {
        let n = dice.usize(..NODES);
        match dice.u8(..18) {
            0..=3 => kill(cluster, story, &mut dice, &mut daemons, n),
            4 => terminate(cluster, story, &mut daemons, n),
            5..=6 => reload(cluster, story, &mut dice, &daemons[n], n),
            7..=9 => trouble_watch(cluster, story, &mut dice),
            10..=14 => trouble_cloud(&cluster.world.cloud, story, &mut dice),
            15 => {
                story.note("* the cloud is calm");
                cluster.world.cloud.calm();
            }
            16 => outage(&cluster.world.cloud, story, &mut dice),
            _ => limit(&cluster.world.cloud, story, &mut dice),
        }
        pause(&mut dice, 400);
    }
    daemons
}

pub fn calm(cluster: &Cluster) {
    let cloud = &cluster.world.cloud;
    cloud.calm();
    cloud.outage(false);
    cloud.limit("*", None);
}

fn kill(cluster: &Cluster, story: &Story, dice: &mut Rng, daemons: &mut Vec<Daemon>, n: usize) {
    for _ in 0..dice.u8(1..=2) {
        story.note(format!("* kill -9 of the daemon of node {n}"));
        let dead = daemons.remove(n);
        dead.kill();
        pause(dice, 700);
        story.note(format!("* the daemon of node {n} starts"));
        daemons.insert(n, cluster.launch(n, &DEBUG));
        pause(dice, 300);
    }
}

fn terminate(cluster: &Cluster, story: &Story, daemons: &mut Vec<Daemon>, n: usize) {
    story.note(format!("* SIGTERM for the daemon of node {n}"));
    let status = daemons.remove(n).terminate(Duration::from_secs(10));
    if status.is_none() {
        story.fail(&[], format!("the daemon of node {n} does not end at SIGTERM"));
    }
    daemons.insert(n, cluster.launch(n, &DEBUG));
}

fn reload(cluster: &Cluster, story: &Story, dice: &mut Rng, daemon: &Daemon, n: usize) {
    let (min, max) = configure(cluster, n, dice);
    story.note(format!("* SIGHUP for the daemon of node {n}: {min} to {max} idle"));
    let pid = Pid::from_raw(daemon.pid() as i32).expect("a pid is above zero");
    kill_process(pid, Signal::HUP).expect("it is our child and not waited for");
}

fn trouble_watch(cluster: &Cluster, story: &Story, dice: &mut Rng) {
    let kube = &cluster.kube;
    match dice.u8(..4) {
        0 => {
            story.note("* the API server forgets and breaks off its watches");
            kube.forget();
            kube.disconnect();
        }
        1 => {
            story.note("* a watch is torn");
            kube.tear();
        }
        2 => {
            let (verb, status) = (["get", "list", "watch"][dice.usize(..3)], [429, 500, 503][dice.usize(..3)]);
            story.note(format!("* the API server answers {verb} with {status}"));
            kube.fail(dice.usize(1..4), verb, Trouble::Status(status, "trouble on purpose"));
        }
        _ => {
            story.note("* the API server breaks off its watches");
            kube.disconnect();
        }
    }
}

fn trouble_cloud(cloud: &Cloud, story: &Story, dice: &mut Rng) {
    let kind = match dice.u8(..14) {
        0..=2 => Kind::LoseReply,
        3..=4 => Kind::Repeat,
        5 => Kind::Late(Duration::from_millis(dice.u64(50..1500))),
        6 => Kind::Truncate(dice.usize(..200)),
        7 => Kind::Garbage,
        8..=9 => Kind::throttling(),
        10 => Kind::internal_error(),
        11 => Kind::Lie(Lie::Outside),
        12 => Kind::Lie(Lie::Duplicate),
        _ => Kind::Lie(Lie::Short),
    };
    let odds = dice.f64() * 0.7;
    if dice.u8(..5) == 0 && !matches!(kind, Kind::Lie(_)) {
        let odds = odds / 5.0;
        story.note(format!("* trouble for {odds:.2} of all calls: {kind:?}"));
        return cloud.trouble_anywhere(When::Odds(odds), kind);
    }
    // Half of all troubles befall what pods wait for most often.
    let action = if dice.bool() { CHANGES[4] } else { CHANGES[dice.usize(..CHANGES.len())] };
    story.note(format!("* trouble for {odds:.2} of {action}: {kind:?}"));
    cloud.trouble(action, When::Odds(odds), kind);
}

fn outage(cloud: &Cloud, story: &Story, dice: &mut Rng) {
    story.note("* the cloud is silent");
    cloud.outage(true);
    pause(dice, 1200);
    cloud.outage(false);
    story.note("* the cloud speaks again");
}

fn limit(cloud: &Cloud, story: &Story, dice: &mut Rng) {
    let rate = Rate { per_second: 1.0 + dice.f64() * 4.0, burst: dice.u32(1..5) };
    story.note(format!("* the cloud takes {:.1} calls a second", rate.per_second));
    cloud.limit("*", Some(rate));
    pause(dice, 1500);
    cloud.limit("*", None);
    story.note("* the cloud takes any number of calls");
}

fn pause(dice: &mut Rng, most: u64) {
    thread::sleep(Duration::from_millis(dice.u64(..=most)));
}
