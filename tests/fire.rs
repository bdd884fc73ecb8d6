//! Correctness under fire: kill -9, lost and repeated replies, throttling.
//!
//! Kubelets add, check and delete pods on two nodes while a storm kills daemons and plugins and troubles cloud and API
//! server. At every moment no two living pods hold one address, each can be reached, every answer is in time and in form.
//! Afterwards cloud, pool, ledger and kernel tell the same story. `FIRE_SEED=…` runs a failed seed again (the processes are
//! real: the same decisions, not the same microseconds), `FIRE_ROUNDS=…` runs so many new ones.

mod books;
mod guests;
mod storm;
mod story;

use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fastrand::Rng;
use serde_json::{Value, json};

use crate::sim::cloud::{Config, Delays, InstanceType};
use crate::sim::cluster::{Cluster, Member};
use crate::sim::node::Daemon;
use crate::sim::world::{self, MORE_PODS, PODS};
use guests::Kubelet;
use story::Story;

/// Run always, besides one from the clock.
const SEEDS: [u64; 2] = [1, 2];
/// Rounds that run side by side.
const AT_ONCE: usize = 3;
const NODES: usize = 2;
/// Kubelets of one node; each has its own pods.
const KUBELETS: usize = 3;
/// How long an address rests: short, so that addresses go round.
const COOLDOWN: Duration = Duration::from_secs(2);
/// From the end of the storm until the books must agree.
const RECONCILE: Duration = Duration::from_secs(45);

#[test]
fn cloud_ledger_and_kernel_agree_after_the_fire() {
    let seeds = seeds();
    let calls: usize = seeds.chunks(AT_ONCE).map(rounds).sum();
    assert!(calls >= 100 * seeds.len(), "only {calls} ADD and DEL");
}

/// Each round has a world of its own, and waits most of the time.
fn rounds(seeds: &[u64]) -> usize {
    thread::scope(|scope| {
        let rounds: Vec<_> = seeds.iter().map(|seed| scope.spawn(|| round(*seed))).collect();
        rounds.into_iter().map(|round| joined(round.join())).sum()
    })
}

fn seeds() -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().expect("a number"));
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970").as_micros() as u64;
    match (number("FIRE_SEED"), number("FIRE_ROUNDS")) {
        (Some(seed), _) => vec![seed],
        (None, Some(rounds)) => (clock..clock + rounds).collect(),
        (None, None) => SEEDS.into_iter().chain([clock]).collect(),
    }
}

/// Tells how many ADD and DEL there were.
fn round(seed: u64) -> usize {
    eprintln!("FIRE_SEED={seed} runs this round again");
    let cluster = stage(seed);
    let story = Story::new(seed, &cluster);
    let (guests, mut daemons) = burn(&cluster, &story, seed);
    story.note("* the storm is over");
    calm(&cluster, &story, &mut daemons);
    if seed.is_multiple_of(2) {
        forget_the_missing(&cluster, &story, &guests);
    }
    settle(&cluster, &story, &guests);
    for guest in guests {
        guests::end(&cluster, &story, guest);
    }
    settle(&cluster, &story, &[]);
    let drops = cluster.world.fabric.drops();
    assert_eq!((drops.wrong_mac, drops.wrong_ip, drops.wrong_arp), (0, 0, 0), "spoofed packets: {drops:?}");
    story.sum_up()
}

/// A cloud that takes its time, as the real one does, and small pools that must work for their addresses.
fn stage(seed: u64) -> Cluster {
    let mut dice = Rng::with_seed(seed);
    let ms = |dice: &mut Rng, most: u64| Duration::from_millis(dice.u64(..=most));
    let delays = Delays {
        create: ms(&mut dice, 300),
        attach: ms(&mut dice, 600),
        detach: ms(&mut dice, 600),
        delete: ms(&mut dice, 300),
        change: ms(&mut dice, 200),
    };
    let mut config = Config { delays, seed, ..world::config() };
    // Many small ENIs, some large ones, or few: 15 to 20 addresses for at most 9 pods, and those that rest.
    let (enis, addresses) = [(7, 3), (5, 5), (3, 10)][dice.usize(..3)];
    config.instance_types.push(InstanceType {
        id: "ecs.sim.fire".into(),
        eni_quantity: enis,
        eni_private_ip_address_quantity: addresses,
        eni_ipv6_address_quantity: addresses,
        eni_total_quantity: enis,
    });
    let cluster = Cluster::new(config, NODES, "ecs.sim.fire");
    for n in 0..NODES {
        configure(&cluster, n, &mut dice);
    }
    cluster
}

/// Other bounds each time, so that addresses come and go.
fn configure(cluster: &Cluster, n: usize, dice: &mut Rng) -> (u32, u32) {
    let min_idle = dice.u32(..5);
    let max_idle = min_idle + dice.u32(..3);
    let cooldown = format!("{}s", COOLDOWN.as_secs());
    cluster.configure(
        n,
        &json!({
            "min_pool_size": min_idle,
            "max_pool_size": max_idle,
            "ip_cooldown": cooldown,
            "eni_idle_release_after": "10s",
            "orphan_release_after": "1s",
            "vswitches": {"cn-hangzhou-h": [PODS, MORE_PODS]},
        }),
    );
    (min_idle, max_idle)
}

/// The fire itself; gives the pods that live on after it.
fn burn(cluster: &Cluster, story: &Story, seed: u64) -> (Vec<Member>, Vec<Daemon>) {
    thread::scope(|scope| {
        let storm = scope.spawn(|| story.guard(|| storm::rage(cluster, story, Rng::with_seed(seed ^ 0x5708))));
        let kubelets: Vec<_> = (0..NODES * KUBELETS)
            .map(|k| {
                let dice = Rng::with_seed(seed.wrapping_mul(31).wrapping_add(k as u64));
                scope.spawn(move || story.guard(|| Kubelet::new(cluster, story, k, dice).run()))
            })
            .collect();
        let guests = kubelets.into_iter().flat_map(|kubelet| joined(kubelet.join())).collect();
        story.end();
        (guests, joined(storm.join()))
    })
}

fn joined<T>(result: thread::Result<T>) -> T {
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// No more trouble, and every daemon begins anew: this is the one reconcile.
fn calm(cluster: &Cluster, story: &Story, daemons: &mut Vec<Daemon>) {
    storm::calm(cluster);
    daemons.clear();
    daemons.extend((0..NODES).map(|n| cluster.launch(n, &storm::DEBUG)));
    for n in 0..NODES {
        let start = Instant::now();
        while cluster.call(n, "STATUS", &Value::Null).code != Some(0) {
            if start.elapsed() > RECONCILE {
                story.fail(&[], format!("the daemon of node {n} does not serve in fair weather"));
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
}

/// The runtime says which attachments it knows: those whose DEL never came are not among them. In every other round the
/// daemon has to find out by itself.
fn forget_the_missing(cluster: &Cluster, story: &Story, guests: &[Member]) {
    for n in 0..NODES {
        let valid: Vec<Value> = guests
            .iter()
            .filter(|g| g.node == n)
            .map(|g| json!({"containerID": g.sandbox.container, "ifname": g.sandbox.ifname}))
            .collect();
        let answer = cluster.call(n, "GC", &json!({"cni.dev/valid-attachments": valid}));
        if answer.code != Some(0) {
            story.fail(&[], format!("GC on node {n}: {answer:?}"));
        }
    }
}

/// Waits until all books agree that these are the pods.
fn settle(cluster: &Cluster, story: &Story, guests: &[Member]) {
    let start = Instant::now();
    for n in 0..NODES {
        let here: Vec<&Member> = guests.iter().filter(|g| g.node == n).collect();
        while let Err(difference) = books::agree(cluster, n, &here) {
            if start.elapsed() > RECONCILE {
                let words: Vec<&str> = difference.split([',', '/', ' ', '[', ']']).filter(|w| w.len() > 6).collect();
                story.fail(&words, format!("node {n}, {} pods: {difference}", here.len()));
            }
            thread::sleep(Duration::from_millis(200));
        }
    }
    for guest in guests {
        guests::inspect(cluster, story, guest);
    }
    story.note(format!("* the books agree on {} pods after {:?}", guests.len(), start.elapsed()));
}
