//! Restarts and upgrades while clients connect through Services all the time: not one request fails.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use terway::kernel::bpf::pin;

use super::{Bench, ask, led, put_endpoints, serve};
use crate::bpf::cell::Threads;
use crate::sim::builds::Build;
use crate::sim::cluster::{Cluster, Member, SOON, binary, soon};
use crate::sim::traffic::Place;

const KILLS: u32 = 100;
const UPGRADES: u32 = 20;

/// Connects from the pod without a pause while the story is told: how many did, and the first that failed.
fn hammered(threads: &Threads, client: &Member, story: impl FnOnce()) -> (u32, Option<String>) {
    let (over, count) = (AtomicBool::new(false), AtomicU32::new(0));
    let failed = thread::scope(|scope| {
        let hammer = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                if let Err(e) = ask(threads, &client.pod, "172.21.0.80:80", SOON) {
                    return Some(format!("request {}: {e}", count.load(Ordering::Relaxed)));
                }
                count.fetch_add(1, Ordering::Relaxed);
            }
            None
        });
        struct Over<'a>(&'a AtomicBool);
        impl Drop for Over<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let end = Over(&over);
        story();
        drop(end);
        hammer.join().expect("the hammer does not panic")
    });
    (count.into_inner(), failed)
}

/// How many daemons have come as far as to attach their programs.
fn lives(bench: &Bench) -> usize {
    let log = bench.cluster.node(0).read_file("/var/log/terwayd.log").expect("daemons have a log");
    log.matches("are led at the socket").count()
}

#[test]
fn a_hundred_kills_cost_no_request() {
    let mut bench = Bench::new(json!({}));
    let (one, other, client) =
        (bench.cluster.add(0, "one"), bench.cluster.add(0, "other"), bench.cluster.add(0, "client"));
    let servers = serve(&[&one, &other]);
    let (a, b) = (servers[0].1, servers[1].1);
    bench.service("web", "172.21.0.80", json!({}));
    bench.endpoints("web", &[(a, json!({})), (b, json!({}))]);
    bench.leads(&client.pod, "172.21.0.80:80", &[a, b]);
    bench.cluster.stop(0);
    let begun = Instant::now();
    let (count, failed) = hammered(&bench.threads, &client, || {
        for n in 0..KILLS {
            let known = lives(&bench);
            let daemon = bench.cluster.launch(0, &["--log-level", "info"]);
            // Half of them die when they have just begun to serve and the endpoints change, the others anywhere on the way there.
            match n % 2 {
                0 => soon("it serves", || lives(&bench) > known),
                _ => thread::sleep(Duration::from_millis(fastrand::u64(..400))),
            }
            put_endpoints(&bench.cluster.kube, "web", &[[(a, json!({}))], [(b, json!({}))]][n as usize / 2 % 2]);
            thread::sleep(Duration::from_micros(fastrand::u64(..10_000)));
            daemon.kill();
        }
    });
    assert_eq!(failed, None, "after {count} requests");
    eprintln!("{count} requests during {KILLS} kills in {:?}", begun.elapsed());
    assert!(count > KILLS, "{count} requests are none");
    bench.cluster.start_ready(0);
    bench.endpoints("web", &[(b, json!({}))]);
    bench.leads(&client.pod, "172.21.0.80:80", &[b]);
}

/// How the map of nodes is made (`BPF_F_…`).
fn flags(cluster: &Cluster) -> u32 {
    let folder = Path::new("/sys/fs/bpf/terway/v1");
    let nodes = cluster.node(0).run(|| pin::open(folder, "nodes").expect("look at the pin"));
    nodes.expect("it is there").shape().flags
}

/// To and fro between this build and one of other programs, compiled for another machine, and of another layout of their maps.
#[test]
fn twenty_upgrades_cost_no_request() {
    let (mut bench, [_one, client], _servers) = led();
    let tomorrow = Build::of_tomorrow();
    let programs = |bench: &Bench| bench.cluster.node(0).sh("ls /sys/fs/bpf/terway/*");
    let before = programs(&bench);
    // What a release of another layout has pinned, too.
    bench.cluster.node(0).sh("mkdir /sys/fs/bpf/terway/v0");
    let cgroup = bench.threads.path().to_owned();
    let (count, failed) = hammered(&bench.threads, &client, || {
        for n in 0..UPGRADES {
            bench.cluster.stop(0);
            // Its maps are new, also where it is another size that is wanted, and its programs take over once they are filled.
            let (frontends, build) = if n % 2 == 0 { (1000, tomorrow.path.clone()) } else { (65536, binary()) };
            bench.cluster.release(0, &build);
            bench.cluster.configure(
                0,
                &json!({"ebpf_services": true, "cgroup_root": cgroup.clone(), "service_frontends": frontends}),
            );
            bench.cluster.start_ready(0);
            soon("it serves", || bench.cluster.show(0)["services"]["frontends"] == 1);
            assert_eq!(flags(&bench.cluster), 1 - n % 2, "the maps of build {n}");
        }
    });
    assert_eq!(failed, None, "after {count} requests");
    assert!(count > UPGRADES, "{count} requests are none");
    assert_eq!(programs(&bench), before, "pins that are left");
}
