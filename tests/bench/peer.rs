//! The peer: Debian's `ptp` with `host-local`, on a node like ours.

use std::path::Path;

use serde_json::{Value, json};
use terway::pod::PodName;

use super::sim::cluster::{Cluster, Member};
use super::sim::cni::Sandbox;

/// Puts the peer onto a node.
pub fn install(cluster: &Cluster, n: usize) {
    for program in ["ptp", "host-local"] {
        let from = Path::new("/usr/lib/cni").join(program);
        cluster.node(n).install(&from, &format!("/opt/cni/bin/{program}"));
    }
}

/// A pod with its namespace, before ADD.
pub fn pod(cluster: &Cluster, n: usize, name: &str) -> Member {
    let member = cluster.sandbox(n, PodName::new("default", name));
    let sandbox = Sandbox { plugin: "/opt/cni/bin/ptp".into(), conf: conf().to_string(), ..member.sandbox };
    Member { sandbox, ..member }
}

/// Nothing that costs it more than needed: no masquerading, no second address.
fn conf() -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "peer",
        "type": "ptp",
        "mtu": 1500,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "198.18.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]},
    })
}
