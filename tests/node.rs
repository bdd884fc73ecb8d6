//! The real binary by its three names against the simulator.

mod bandwidth;
mod config;
mod connectivity;
mod daemon;
mod exclusive;
mod ipvlan;
mod outage;
mod own_node;
mod planning;
mod pool;
mod ports;
mod repair;
mod rights;
mod semantics;
mod socket;
mod stacks;
mod starts;
mod sticky;
mod upgrade;
pub mod watched;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    apply_filter,
};
use serde_json::{Value, json};

use crate::sim::cluster::{Cluster, soon};
use crate::sim::traffic::{Pinger, Place, STRAGGLERS};
use crate::sim::world;

/// A node of 20 pods on two ENIs, its daemon serving; `over` is laid over its configuration.
fn node(over: &Value) -> Cluster {
    let mut cluster = idle_node("ecs.sim.large", over);
    cluster.start_ready(0);
    cluster
}

/// The same before its daemon is started.
fn idle_node(instance_type: &str, over: &Value) -> Cluster {
    let cluster = Cluster::new(world::config(), 1, instance_type);
    cluster.configure(0, over);
    cluster
}

/// Runs the closure where no process that it starts can hear what happens in the kernel, as on one that refuses to tell.
fn deaf<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    let is = |argument, value: i32| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value as u64).expect("an argument")
    };
    let listens =
        SeccompRule::new(vec![is(1, libc::SOL_SOCKET), is(2, libc::SO_ATTACH_FILTER)]).expect("two conditions");
    let rules = BTreeMap::from([(libc::SYS_setsockopt, vec![listens])]);
    let arch = std::env::consts::ARCH.try_into().expect("seccompiler knows this machine");
    let refusal = SeccompAction::Errno(libc::EPERM as u32);
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refusal, arch).expect("a filter");
    let filter: BpfProgram = filter.try_into().expect("a program");
    let inside = || {
        apply_filter(&filter).expect("install a seccomp filter");
        f()
    };
    match thread::scope(|scope| scope.spawn(inside).join()) {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Pings all the while the closure runs, and tells how many were lost of how many.
fn pings_during(place: &(impl Place + Sync), to: &str, story: impl FnOnce()) -> (u32, u32) {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let pinging = scope.spawn(|| {
            place.run(|| {
                let (mut pinger, mut lost, mut sent) = (Pinger::new(to, None), 0, 0);
                while !done.load(Ordering::Relaxed) {
                    sent += 1;
                    lost += u32::from(pinger.ping(STRAGGLERS).is_none());
                    thread::sleep(Duration::from_millis(5));
                }
                (lost, sent)
            })
        });
        let end = Done(&done);
        story();
        drop(end);
        pinging.join().expect("the pings do not panic")
    })
}

/// What this comes to, which takes less than a second; in one of three tries, since the machine may be kept from it.
fn at_once<T>(mut act: impl FnMut() -> T) -> T {
    let mut took = Vec::new();
    for _ in 0..3 {
        let start = Instant::now();
        let done = act();
        took.push(start.elapsed());
        if took.last() < Some(&Duration::from_secs(1)) {
            return done;
        }
    }
    panic!("it took {took:?}");
}

/// Says that it is done, also when the story panics: the pings must end.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What the pool shows, such as `/pool/leased`.
fn shown(cluster: &Cluster, pointer: &str) -> Value {
    let show = cluster.show(0);
    show.pointer(pointer).cloned().unwrap_or_else(|| panic!("no {pointer} in {show:#}"))
}

/// Waits until the node has so many ENIs that serve.
fn wait_for_enis(cluster: &Cluster, count: usize) {
    soon(&format!("{count} ENIs serve"), || serving(cluster) == count);
}

fn serving(cluster: &Cluster) -> usize {
    let enis = shown(cluster, "/pool/enis");
    enis.as_array().expect("a list").iter().filter(|eni| eni["state"] == "serving").count()
}

/// Nothing of ours is left on the node: no veth, no route to a pod.
fn is_bare(cluster: &Cluster) -> bool {
    let node = cluster.node(0);
    !node.sh("ip -o link").contains("cali") && node.sh("ip route show table 1000 2>/dev/null || true").is_empty()
}

/// Every event in the API server about this pod, or the node where it has no namespace, with its reason and words.
fn events_about(cluster: &Cluster, name: &str) -> Vec<(String, String)> {
    let text = |event: &Value, key: &str| event[key].as_str().unwrap_or_default().to_owned();
    let events = cluster.kube.events();
    let about = events.iter().filter(|event| event["involvedObject"]["name"] == name);
    about.map(|event| (text(event, "reason"), text(event, "message"))).collect()
}

fn nothing() -> Value {
    json!({})
}
