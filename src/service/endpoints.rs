//! Which of a Service's endpoints are used: kube-proxy's rules, of ready and terminating ones and of hints.

use std::net::Ipv6Addr;

use super::claims::Reach;
use super::is_v4;
use crate::cluster::{Endpoint, EndpointSlice, Hints, ServicePort, SlicePort, Tag};

/// Where a connection is led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    pub addr: Ipv6Addr,
    pub port: u16,
}

/// An endpoint of one port, as we see it from here.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    backend: Backend,
    is_ready: bool,
    /// It goes away and still serves.
    is_leaving: bool,
    is_local: bool,
    for_nodes: Meant,
    for_zones: Meant,
}

/// What hints of a kind say.
#[derive(Debug, Clone, Copy, Default)]
struct Meant {
    for_some: bool,
    for_us: bool,
}

impl Meant {
    fn of(hints: &[Tag], us: Tag) -> Meant {
        Meant { for_some: !hints.is_empty(), for_us: us.is_some() && hints.contains(&us) }
    }

    fn or(self, other: Meant) -> Meant {
        Meant { for_some: self.for_some || other.for_some, for_us: self.for_us || other.for_us }
    }
}

/// The endpoints of a port in one family, in order; `us`: our node and its zone.
pub fn of<'a>(
    slices: impl Iterator<Item = &'a EndpointSlice>,
    port: &ServicePort,
    v4: bool,
    reach: Reach,
    us: (Tag, Tag),
) -> Vec<Backend> {
    let mut all = candidates(slices, port, v4, us);
    if reach == Reach::Local {
        all.retain(|c| c.is_local);
    }
    let ready: Vec<Candidate> = all.iter().copied().filter(|c| c.is_ready).collect();
    if ready.is_empty() {
        return all.iter().filter(|c| c.is_leaving).map(|c| c.backend).collect();
    }
    let is_meant = meant(&ready, reach);
    ready.iter().filter(|c| is_meant(c)).map(|c| c.backend).collect()
}

/// Hints count where every ready endpoint has some and one is for us; those for nodes before those for zones.
fn meant(ready: &[Candidate], reach: Reach) -> fn(&Candidate) -> bool {
    let holds =
        |of: fn(&Candidate) -> Meant| ready.iter().all(|c| of(c).for_some) && ready.iter().any(|c| of(c).for_us);
    match reach {
        Reach::Cluster if holds(|c| c.for_nodes) => |c| c.for_nodes.for_us,
        Reach::Cluster if holds(|c| c.for_zones) => |c| c.for_zones.for_us,
        _ => |_| true,
    }
}

/// One that several slices name counts once, as the best that any of them says.
fn candidates<'a>(
    slices: impl Iterator<Item = &'a EndpointSlice>,
    port: &ServicePort,
    v4: bool,
    us: (Tag, Tag),
) -> Vec<Candidate> {
    let mut all = Vec::new();
    for slice in slices {
        let fits = |p: &&SlicePort| p.name == port.name && p.protocol == port.protocol;
        for number in slice.ports.iter().filter(fits).map(|p| p.port) {
            let of_family = slice.endpoints.iter().filter(|endpoint| is_v4(endpoint.addr) == v4);
            all.extend(of_family.map(|endpoint| Candidate::of(endpoint, number, us)));
        }
    }
    all.sort_by_key(|c| c.backend);
    all.dedup_by(|next, kept| {
        let is_same = next.backend == kept.backend;
        if is_same {
            kept.merge(next);
        }
        is_same
    });
    all
}

impl Candidate {
    fn of(endpoint: &Endpoint, port: u16, (node, zone): (Tag, Tag)) -> Candidate {
        let hints = endpoint.hints.as_deref().unwrap_or(Hints::NONE);
        Candidate {
            backend: Backend { addr: endpoint.addr, port },
            is_ready: endpoint.ready,
            is_leaving: endpoint.serving && endpoint.terminating,
            is_local: node.is_some() && endpoint.node == node,
            for_nodes: Meant::of(&hints.nodes, node),
            for_zones: Meant::of(&hints.zones, zone),
        }
    }

    fn merge(&mut self, other: &Candidate) {
        self.is_ready |= other.is_ready;
        self.is_leaving |= other.is_leaving;
        self.is_local |= other.is_local;
        self.for_nodes = self.for_nodes.or(other.for_nodes);
        self.for_zones = self.for_zones.or(other.for_zones);
    }
}
