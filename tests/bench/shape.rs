//! How well a limit is held to, in every second from the first on, beside the peer: `ptp` with `bandwidth` chained to it.

use std::path::Path;
use std::thread;

use serde_json::{Value, json};
use terway::pod::PodName;

use super::peer;
use super::sim::cluster::{Cluster, Member, node_name};
use super::sim::cni::Sandbox;
use super::sim::flood::{error, flood};
use super::sim::kube;
use super::sim::traffic::Place;
use super::table::{Goal, Row, Table};

/// Both at once, as one leaves most of the machine idle; then each alone.
const SLOW: [u64; 2] = [1_000_000, 10_000_000];
const FAST: [u64; 3] = [100_000_000, 1_000_000_000, 5_000_000_000];
const SECONDS: usize = 3;
/// What containerd passes where nobody names a burst: so many bits at once.
const BURST: u32 = u32::MAX;

/// What came of one flood.
struct Seen {
    side: usize,
    direction: &'static str,
    limit: u64,
    seconds: Vec<u64>,
}

/// A pod with a limit in both directions, and one on the same node that floods it and is flooded.
struct Pair {
    side: usize,
    limit: u64,
    limited: Member,
    other: Member,
}

pub fn measure(cluster: &Cluster, ours: usize, theirs: usize, table: &mut Table) {
    cluster.node(theirs).install(Path::new("/usr/lib/cni/bandwidth"), "/opt/cni/bin/bandwidth");
    let pairs: Vec<Pair> = SLOW
        .into_iter()
        .chain(FAST)
        .flat_map(|limit| [our_pair(cluster, ours, limit), their_pair(cluster, theirs, limit)])
        .collect();
    let (slow, fast): (Vec<&Pair>, Vec<&Pair>) = pairs.iter().partition(|pair| SLOW.contains(&pair.limit));
    let mut seen: Vec<Seen> = thread::scope(|scope| {
        let floods: Vec<_> =
            slow.iter().flat_map(|pair| [scope.spawn(|| pair.receives()), scope.spawn(|| pair.sends())]).collect();
        floods.into_iter().map(|flood| flood.join().expect("a flood ends")).collect()
    });
    for pair in fast {
        seen.extend([pair.receives(), pair.sends()]);
    }
    push(&seen, table);
}

fn push(seen: &[Seen], table: &mut Table) {
    let what = "how far the worst second is from the limit: UDP, both directions, 1 Mbit/s to 5 Gbit/s, \
                the first second included; ptp + bandwidth beside it";
    let worst = [0, 1].map(|side| {
        let errors = seen.iter().filter(|seen| seen.side == side).map(|seen| error(&seen.seconds, seen.limit).abs());
        (errors.fold(0.0, f64::max) * 1000.0).round() / 1000.0
    });
    let mut row = Row::beside("shape_error_pct", what, "%", worst, Goal::AtMost(2.0));
    for (side, name) in ["ours_seconds", "baseline_seconds"].into_iter().enumerate() {
        let floods = seen.iter().filter(|seen| seen.side == side).map(
            |seen| json!({"limit": seen.limit, "direction": seen.direction, "bits": seen.seconds, "unit": "bit/s"}),
        );
        row = row.with(name, floods.collect::<Value>());
    }
    table.push(row);
}

impl Pair {
    fn receives(&self) -> Seen {
        self.flood("ingress", &self.other, &self.limited)
    }

    fn sends(&self) -> Seen {
        self.flood("egress", &self.limited, &self.other)
    }

    fn flood(&self, direction: &'static str, from: &Member, to: &Member) -> Seen {
        let seconds = flood(&from.pod, &to.pod, &to.ip, self.limit / 10 * 13, SECONDS);
        Seen { side: self.side, direction, limit: self.limit, seconds }
    }
}

fn our_pair(cluster: &Cluster, n: usize, limit: u64) -> Pair {
    let name = PodName::new("default", format!("limit-{limit}"));
    let mut pod = kube::pod(&name.namespace, &name.name, &node_name(n));
    let quantity = limit.to_string();
    pod["metadata"]["annotations"] =
        json!({"kubernetes.io/ingress-bandwidth": quantity, "kubernetes.io/egress-bandwidth": quantity});
    cluster.kube.put(pod);
    let mut limited = cluster.sandbox(n, name);
    cluster.wire(&mut limited);
    Pair { side: 0, limit, limited, other: cluster.add(n, &format!("other-{limit}")) }
}

fn their_pair(cluster: &Cluster, n: usize, limit: u64) -> Pair {
    let mut limited = peer::pod(cluster, n, &format!("limit-{limit}"));
    let result = cluster.wire(&mut limited);
    let conf = json!({
        "cniVersion": "1.0.0",
        "name": "peer",
        "type": "bandwidth",
        "capabilities": {"bandwidth": true},
        "runtimeConfig": {
            "bandwidth": {"ingressRate": limit, "ingressBurst": BURST, "egressRate": limit, "egressBurst": BURST},
        },
        "prevResult": result,
    });
    let plugin = "/opt/cni/bin/bandwidth".into();
    let chained = Sandbox { plugin, conf: conf.to_string(), ..limited.sandbox.clone() };
    cluster.node(n).run(|| chained.call("ADD")).ok();
    let mut other = peer::pod(cluster, n, &format!("other-{limit}"));
    cluster.wire(&mut other);
    Pair { side: 1, limit, limited, other }
}
