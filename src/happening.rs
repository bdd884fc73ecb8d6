//! What others did to the kernel's network, as its notifications tell it: only what can hurt a plan.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::ip::Mac;
use crate::plan::Rule;

/// One thing that happened in the namespace of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Happening {
    /// A link is there and looks like this now.
    Link(LinkNow),
    /// It was deleted, or moved to another namespace.
    LinkGone {
        ifindex: u32,
    },
    /// An address was taken from the link, and with its last one perhaps every route through it.
    AddrGone {
        ifindex: u32,
    },
    /// A route was deleted, or another one put into its place.
    Route {
        table: u32,
        to: IpNet,
    },
    RuleGone(Rule),
    /// A neighbour was deleted, or set for good by somebody.
    Neigh {
        ifindex: u32,
        addr: IpAddr,
        gone: bool,
    },
    /// A qdisc or a filter was deleted or replaced.
    Traffic {
        ifindex: u32,
    },
    /// A kernel parameter of a link, or of all of them, was written.
    Parameter(Scope),
    /// More happened than the kernel could tell: everything may have changed.
    Lost,
}

/// What kernel parameters are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    All,
    Default,
    Link(u32),
}

/// A link, as far as anybody can spoil it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkNow {
    pub ifindex: u32,
    pub name: String,
    pub mac: Option<Mac>,
    pub mtu: u32,
    pub up: bool,
    /// Its other end is up too.
    pub running: bool,
    pub alias: Option<String>,
}
