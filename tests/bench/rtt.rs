//! Round trips between pods: beside a node with few pods, and beside a node with the old layout of two rules a pod.

use std::fmt::Write as _;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use serde_json::Value;
use terway::ours;
use terway::pod::PodName;

use super::RULES;
use super::sim::cluster::{Cluster, Member};
use super::sim::traffic::Place;
use super::table::{Goal, Row, Table, Times, micros};

const ROUNDS: usize = 150;
const TRIPS: usize = 200;
/// Longer than any round trip here; a lost datagram ends the measurement.
const LOST: Duration = Duration::from_secs(2);

/// The pods of the three nodes that are compared, and one of a further node.
pub struct Pods<'a> {
    pub few: &'a [Member],
    pub full: &'a [Member],
    pub rules: &'a [Member],
    pub remote: &'a Member,
}

pub fn measure(pods: &Pods, table: &mut Table) {
    let nodes = [pods.few, pods.full, pods.rules];
    let remote = nodes.map(|members| Pair::open(middle(members), pods.remote));
    let local = nodes.map(|members| Pair::open(middle(members), &members[members.len() / 2 - 1]));
    let mut times = [[const { Vec::new() }; 3], [const { Vec::new() }; 3]];
    for round in 0..ROUNDS {
        for (pairs, times) in [&remote, &local].into_iter().zip(&mut times) {
            // Nobody is always the one after the same other.
            for turn in 0..nodes.len() {
                let node = (round + turn) % nodes.len();
                times[node].push(pairs[node].trips());
            }
        }
    }
    let [remote, local] = times.map(|nodes| nodes.map(Series::of));
    let pair = |a: &Series, b: &Series| [micros(a.p50), micros(b.p50)];
    let row = |name, what, a: &Series, b: &Series, goal| {
        let row = Row::beside(name, what, "µs", pair(a, b), goal);
        row.with("ours_min", micros(a.min)).with("baseline_min", micros(b.min))
    };
    let what = "UDP round trip to a pod on another node, median: 250 pods on the node beside 4";
    table.push(row("rtt_250_vs_4_remote", what, &remote[1], &remote[0], Goal::RatioAtMost(1.05)));
    let what = "UDP round trip to a pod on the same node, median: 250 pods on the node beside 4";
    table.push(row("rtt_250_vs_4_local", what, &local[1], &local[0], Goal::RatioAtMost(1.05)));
    let what = "UDP round trip to a pod on another node, median, 250 pods: beside two rules a pod";
    let row = row("rtt_vs_rule_layout", what, &remote[1], &remote[2], Goal::RatioBelow(1.0));
    table.push(row.with("ours_local", micros(local[1].p50)).with("baseline_local", micros(local[2].p50)));
}

fn middle(members: &[Member]) -> &Member {
    &members[members.len() / 2]
}

/// Two sockets in two pods. One thread serves both, so that a round trip is the path through the kernel and back, without the
/// scheduler's share.
struct Pair {
    near: UdpSocket,
    far: UdpSocket,
}

impl Pair {
    fn open(near: &Member, far: &Member) -> Pair {
        let open = |member: &Member| {
            let socket = member.pod.run(|| UdpSocket::bind((member.ip.as_str(), 0))).expect("the pod has its address");
            socket.set_read_timeout(Some(LOST)).expect("a timeout above zero");
            socket
        };
        let (near, far) = (open(near), open(far));
        near.connect(far.local_addr().expect("it is bound")).expect("it has a route");
        far.connect(near.local_addr().expect("it is bound")).expect("it has a route");
        let pair = Pair { near, far };
        pair.trips();
        pair
    }

    /// The median of some round trips in a row, and the least.
    fn trips(&self) -> (Duration, Duration) {
        let mut times: Vec<Duration> = (0..TRIPS).map(|_| self.trip()).collect();
        times.sort();
        (times[TRIPS / 2], times[0])
    }

    fn trip(&self) -> Duration {
        let mut word = [7; 8];
        let start = Instant::now();
        self.near.send(&word).expect("it goes out");
        self.far.recv(&mut word).expect("it arrives");
        self.far.send(&word).expect("it goes out");
        self.near.recv(&mut word).expect("it comes back");
        start.elapsed()
    }
}

struct Series {
    p50: Duration,
    min: Duration,
}

impl Series {
    fn of(rounds: Vec<(Duration, Duration)>) -> Series {
        let mut medians = Times::default();
        rounds.iter().for_each(|(p50, _)| medians.push(*p50));
        Series { p50: medians.p50(), min: rounds.iter().map(|(_, min)| *min).min().expect("there are rounds") }
    }
}

/// Gives the node the layout that the old Terway makes: rules at 512 `to` and at 2048 `from` each pod, and its route in main.
/// Its daemon must be stopped; links, ENIs and the ENIs' tables stay as they are.
pub fn convert(cluster: &Cluster, members: &[Member], shown: &Value) {
    let leases = shown["leases"].as_array().expect("a list");
    let table_of = |pod: &PodName| {
        let lease = leases.iter().find(|lease| lease["pod"]["name"] == pod.name.as_str()).expect("it holds a lease");
        lease["eni"]["table"].as_u64().expect("a number")
    };
    let (mut ip, mut tc) = (String::new(), String::new());
    for Member { sandbox, ip: addr, .. } in members {
        let (veth, table) = (ours::host_veth(&sandbox.pod, &sandbox.ifname), table_of(&sandbox.pod));
        writeln!(ip, "route add {addr}/32 dev {veth} scope link").expect("a String takes all");
        writeln!(ip, "rule add priority 512 to {addr}/32 lookup main").expect("a String takes all");
        writeln!(ip, "rule add priority 2048 from {addr}/32 lookup {table}").expect("a String takes all");
        writeln!(tc, "qdisc del dev {veth} clsact").expect("a String takes all");
    }
    let node = cluster.node(RULES);
    for priority in [ours::TO_POD_PRIORITY, ours::NODE_WAY_PRIORITY, ours::FROM_POD_PRIORITY, ours::STRAY_PRIORITY] {
        node.sh(&format!("while ip rule del priority {priority} 2>/dev/null; do :; done"));
    }
    node.sh(&format!("ip route flush table {}", ours::PODS_TABLE));
    node.write_file("/run/ip.batch", &ip);
    node.write_file("/run/tc.batch", &tc);
    node.sh("ip -batch /run/ip.batch && tc -batch /run/tc.batch");
    let rules = node.sh("ip rule").lines().count();
    assert_eq!(rules, 2 * members.len() + 3, "the rules of the old layout and the kernel's three");
}
