//! Why a packet passes or not: what each side's rules say, and who said so.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::cluster::Name;
use crate::rules::{Cell, ClassId, Direction, Packet, Rules};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Why {
    pub allow: bool,
    /// By the rules of the source, if that is a pod of ours.
    pub egress: Option<Side>,
    pub ingress: Option<Side>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Side {
    pub pod: Name,
    pub cell: Cell,
    /// Of the other side's address, and the peers that this stands for.
    pub class: ClassId,
    pub peers: Vec<Arc<str>>,
}

/// The packet's ends, and which pods of ours they are.
pub fn why(rules: &Rules, src: (IpAddr, Option<&Name>), dst: (IpAddr, Option<&Name>), packet: &Packet) -> Why {
    // A pod always reaches itself: that never leaves it.
    if src.1.is_some() && src.1 == dst.1 {
        return Why { allow: true, egress: None, ingress: None };
    }
    let egress = src.1.and_then(|pod| side(rules, pod, Direction::Egress, dst.0, packet));
    let ingress = dst.1.and_then(|pod| side(rules, pod, Direction::Ingress, src.0, packet));
    let allow = [&egress, &ingress].into_iter().flatten().all(|side| side.cell.allow);
    Why { allow, egress, ingress }
}

fn side(rules: &Rules, pod: &Name, direction: Direction, other: IpAddr, packet: &Packet) -> Option<Side> {
    let other = other.to_canonical();
    let class = rules.class(other);
    let peers = rules.classes.get(&class).into_iter().flat_map(|peers| peers.iter());
    let peers = peers.filter_map(|peer| rules.peers.get(peer).cloned()).collect();
    Some(Side { pod: pod.clone(), cell: rules.answer(pod, direction, other, packet)?, class, peers })
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.allow { "allowed" } else { "denied" })?;
        for (name, side) in [("egress", &self.egress), ("ingress", &self.ingress)] {
            let Some(Side { pod, cell, class, peers }) = side else { continue };
            let verdict = if cell.allow { "allowed" } else { "denied" };
            write!(f, "\n{name} of {pod}: {verdict} by {}; the other side is of class {class}", cell.origin)?;
            peers.iter().try_for_each(|peer| write!(f, "\n  {peer}"))?;
        }
        Ok(())
    }
}
