//! Several workers that call a plugin at once, as the kubelet does for several pods.

use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::exec;
use super::sim::cluster::{Cluster, Member};
use super::sim::traffic::Place;

pub const WORKERS: usize = 4;

/// Calls the plugin for each of these pods of one node, whichever worker is free, and tells how long it took for all of them.
pub fn at_once(cluster: &Cluster, pods: &[Member], verb: &str) -> Duration {
    let (barrier, next) = (Barrier::new(WORKERS + 1), AtomicUsize::new(0));
    let work = || {
        barrier.wait();
        while let Some(pod) = pods.get(next.fetch_add(1, Ordering::Relaxed)) {
            exec::alone(&mut pod.sandbox.command(verb), &pod.sandbox.conf);
        }
    };
    let node = cluster.node(pods[0].node);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(|| node.run(work))).collect();
        barrier.wait();
        let since = Instant::now();
        workers.into_iter().for_each(|worker| worker.join().expect("it does not panic"));
        since.elapsed()
    })
}
