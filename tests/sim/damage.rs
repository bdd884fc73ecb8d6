//! Damage of every kind that somebody can do to a node's network, and how long it stays.

use std::thread;
use std::time::{Duration, Instant};

use terway::datapath::{self, EniSetup, NodeSetup, Setup};
use terway::ip::Mac;
use terway::kernel::Kernel;
use terway::ours;
use terway::plan::Plan;
use terway::rpc::{EniLease, Lease};

use super::cluster::Cluster;
use super::ns::sh;
use super::traffic::Place;

/// A damage that stays this long is not undone.
const LOST: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_micros(300);
/// At once, as far as may be: meanwhile the daemon itself has no way to anybody.
const FLUSH_RULES: &str =
    "printf 'rule %s\\n' flush 'add priority 32766 lookup main' 'add priority 32767 lookup default' | ip -batch -";

/// What is taken away in a round, and how to see that it is back.
pub struct Damage {
    pub line: String,
    back: Back,
}

enum Back {
    /// These plans are as they should be.
    Plans(Vec<Plan>),
    /// So many pods have their route.
    Routes(usize),
    /// The link has this MAC.
    Mac(String, Mac),
}

/// The node as its daemon shows it.
pub struct Seen {
    leases: Vec<Lease>,
    enis: Vec<(EniLease, String)>,
}

pub fn look(cluster: &Cluster, n: usize) -> Seen {
    let shown = cluster.show(n);
    let leases: Vec<Lease> = serde_json::from_value(shown["leases"].clone()).expect("leases");
    let mut by_table: Vec<EniLease> = leases.iter().map(|lease| lease.eni.clone()).collect();
    by_table.sort_by_key(|eni| eni.table);
    by_table.dedup();
    let links = cluster.node(n).run(|| Kernel::host().and_then(|mut kernel| kernel.links())).expect("links");
    let name = |eni: &EniLease| links.iter().find(|link| link.is_eni(eni.mac)).expect("it has a link").name.clone();
    let enis = by_table.into_iter().map(|eni| (eni.clone(), name(&eni))).collect();
    Seen { leases, enis }
}

/// Does the damage, and waits until all of it is undone: the time from its first step, unless it stays.
pub fn time(cluster: &Cluster, n: usize, damage: &Damage) -> Option<Duration> {
    cluster.node(n).run(|| {
        let mut kernel = Kernel::host().expect("a socket");
        let start = Instant::now();
        sh(&damage.line);
        while !is_back(&mut kernel, &damage.back) {
            if start.elapsed() > LOST {
                return None;
            }
            thread::sleep(POLL);
        }
        Some(start.elapsed())
    })
}

fn is_back(kernel: &mut Kernel, back: &Back) -> bool {
    kernel.look_again();
    match back {
        Back::Plans(plans) => plans.iter().all(|plan| kernel.survey(plan, None).is_ok_and(|found| found.is_empty())),
        Back::Mac(link, mac) => kernel.link(link).is_ok_and(|link| link.is_some_and(|link| link.is_eni(*mac))),
        Back::Routes(count) => kernel.routes(ours::PODS_TABLE).is_ok_and(|routes| routes.len() == *count),
    }
}

pub type Make = fn(&Seen, usize) -> Damage;

/// Each kind, and how to do it for the n-th time.
pub const KINDS: &[(&str, Make)] = &[
    ("rules", |seen, _| Damage {
        line: FLUSH_RULES.into(),
        back: Back::Plans(
            (0..seen.enis.len()).map(|i| seen.eni(i)).chain([datapath::node(&NodeSetup::default())]).collect(),
        ),
    }),
    ("routes of all pods", |seen, _| Damage {
        line: format!("ip route flush table {}", ours::PODS_TABLE),
        back: Back::Routes(seen.leases.len()),
    }),
    ("route of an ENI", |seen, i| seen.hurt_eni(i, "ip route flush table TABLE")),
    ("address of an ENI", |seen, i| seen.hurt_eni(i, "ip addr flush dev LINK")),
    ("ENI set down", |seen, i| seen.hurt_eni(i, "ip link set LINK down")),
    ("MTU of an ENI", |seen, i| seen.hurt_eni(i, "ip link set LINK mtu 1400")),
    ("MAC of an ENI", |seen, i| {
        let (eni, link) = &seen.enis[i % seen.enis.len()];
        let line = format!("ip link set {link} address 02:00:00:00:00:77");
        Damage { line, back: Back::Mac(link.clone(), eni.mac) }
    }),
    ("rp_filter of an ENI", |seen, i| seen.hurt_eni(i, "sysctl -qw net.ipv4.conf.LINK.rp_filter=1")),
    ("ip_forward", |_, _| Damage {
        line: "sysctl -qw net.ipv4.ip_forward=0".into(),
        back: Back::Plans(vec![datapath::node(&NodeSetup::default())]),
    }),
    ("neighbour of a pod", |seen, i| seen.hurt_pod(i, "ip neigh flush dev LINK nud permanent")),
    ("qdisc of a pod", |seen, i| seen.hurt_pod(i, "tc qdisc del dev LINK clsact")),
    ("pod's link set down", |seen, i| seen.hurt_pod(i, "ip link set LINK down")),
    ("MAC of a pod's link", |seen, i| seen.hurt_pod(i, "ip link set LINK address 02:00:00:00:00:77")),
    ("pod's link deleted", |seen, i| seen.hurt_pod(i, "ip link del LINK")),
];

impl Seen {
    fn eni(&self, i: usize) -> Plan {
        let (eni, link) = &self.enis[i % self.enis.len()];
        datapath::eni(&EniSetup { eni, link, mtu: 1500, node: &self.leases[0].node })
    }

    fn hurt_eni(&self, i: usize, line: &str) -> Damage {
        let (eni, link) = &self.enis[i % self.enis.len()];
        let line = line.replace("TABLE", &eni.table.to_string()).replace("LINK", link);
        Damage { line, back: Back::Plans(vec![self.eni(i)]) }
    }

    fn hurt_pod(&self, i: usize, line: &str) -> Damage {
        let lease = &self.leases[(i * 7) % self.leases.len()];
        let veth = ours::host_veth(&lease.pod, &lease.sandbox.attachment.ifname);
        let plan = datapath::pod(&Setup::new(lease, 1500));
        Damage { line: line.replace("LINK", &veth), back: Back::Plans(vec![plan]) }
    }
}
