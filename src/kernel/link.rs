//! Links: what the kernel says of them, and the requests that make, change and delete them.

use std::os::fd::RawFd;

use super::message::{CREATE, EXCL, Message, attr, attrs, text, u16_at, u32_at};
use crate::ip::Mac;
use crate::plan::Veth;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_OPERSTATE: u16 = 16;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_GROUP: u16 = 27;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_NUM_TX_QUEUES: u16 = 31;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_IPVLAN_MODE: u16 = 1;
const IFLA_IPVLAN_FLAGS: u16 = 2;
/// IPVLAN_MODE_L2.
pub const L2: u16 = 0;
/// Neither private nor vepa: slaves reach each other.
const BRIDGE: u16 = 0;
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;
/// RFC 2863's "up" (linux/if.h).
const IF_OPER_UP: u8 = 6;
const IFF_UP: u32 = libc::IFF_UP as u32;
const IFF_NOARP: u32 = libc::IFF_NOARP as u32;

/// Links that bear the MAC of another link.
const BORROWERS: [&str; 8] = ["bond", "bridge", "ipvlan", "ipvtap", "macvlan", "macvtap", "team", "vlan"];

/// A link as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkSeen {
    pub name: String,
    pub ifindex: u32,
    /// `None` for a link that has no Ethernet address.
    pub mac: Option<Mac>,
    pub mtu: u32,
    pub up: bool,
    /// It takes and brings packets: up, and its other end too.
    pub running: bool,
    /// It asks its neighbours for their MACs.
    pub asks: bool,
    /// `None` for hardware.
    pub kind: Option<String>,
    pub alias: Option<String>,
    pub group: u32,
    /// Index of the other end of a veth, or of the link below. Kernels before 4.1 do not tell it of a veth, and some
    /// later ones not where it equals `ifindex`.
    pub peer: Option<u32>,
    /// The namespace that `peer` counts in, if not ours.
    pub peer_netnsid: Option<u32>,
    /// The mode of an IPvlan slave.
    pub mode: Option<u16>,
}

impl LinkSeen {
    pub fn is_ifb(&self) -> bool {
        self.kind.as_deref() == Some("ifb")
    }

    /// It is an IPvlan slave.
    pub fn is_slave(&self) -> bool {
        self.kind.as_deref() == Some("ipvlan")
    }

    /// The link below.
    pub fn parent(&self) -> u32 {
        self.peer.unwrap_or(self.ifindex)
    }

    pub fn is_veth(&self) -> bool {
        self.kind.as_deref() == Some("veth")
    }

    /// Whether this is the ENI with this MAC, and not a link on top of it.
    pub fn is_eni(&self, mac: Mac) -> bool {
        let borrowed = self.kind.as_deref().is_some_and(|kind| BORROWERS.contains(&kind));
        self.mac == Some(mac) && !borrowed && !self.name.starts_with("cali")
    }

    pub(super) fn parse(body: &[u8]) -> Option<LinkSeen> {
        let mut link = LinkSeen {
            name: String::new(),
            ifindex: u32_at(body, 4)?,
            mac: None,
            mtu: 0,
            up: u32_at(body, 8)? & IFF_UP != 0,
            running: false,
            asks: u32_at(body, 8)? & IFF_NOARP == 0,
            kind: None,
            alias: None,
            group: 0,
            peer: None,
            peer_netnsid: None,
            mode: None,
        };
        let ethernet = u16_at(body, 2)? == libc::ARPHRD_ETHER;
        for (kind, value) in attrs(body.get(16..)?) {
            match kind {
                IFLA_ADDRESS if ethernet => link.mac = value.try_into().ok().map(Mac),
                IFLA_IFNAME => link.name = text(value),
                IFLA_MTU => link.mtu = u32_at(value, 0)?,
                IFLA_LINK => link.peer = u32_at(value, 0),
                IFLA_LINKINFO => {
                    link.kind = attr(value, IFLA_INFO_KIND).map(text);
                    let data = attr(value, IFLA_INFO_DATA).filter(|_| link.is_slave());
                    link.mode = data.and_then(|data| u16_at(attr(data, IFLA_IPVLAN_MODE)?, 0));
                }
                IFLA_IFALIAS => link.alias = Some(text(value)),
                IFLA_GROUP => link.group = u32_at(value, 0)?,
                IFLA_OPERSTATE => link.running = value.first() == Some(&IF_OPER_UP),
                IFLA_LINK_NETNSID => link.peer_netnsid = u32_at(value, 0),
                _ => {}
            }
        }
        Some(link)
    }
}

/// `struct ifinfomsg`.
fn ifinfo(ifindex: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut fixed = [0; 16];
    fixed[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    fixed[8..12].copy_from_slice(&flags.to_ne_bytes());
    fixed[12..16].copy_from_slice(&change.to_ne_bytes());
    fixed
}

/// Asks for one link by name.
pub fn get(name: &str) -> Message {
    Message::new(libc::RTM_GETLINK, 0, &ifinfo(0, 0, 0))
        .u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
        .text(IFLA_IFNAME, name)
}

/// Asks for all links.
pub fn list() -> Message {
    Message::new(libc::RTM_GETLINK, super::message::DUMP, &ifinfo(0, 0, 0)).u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
}

/// Makes both ends of a veth, the inner one in the namespace of this descriptor, both down. The alias cannot be part of it:
/// the kernel does not take it here.
pub fn create_veth(veth: &Veth, netns: RawFd) -> Message {
    let outer = Message::new(libc::RTM_NEWLINK, CREATE | EXCL, &ifinfo(0, 0, 0));
    end(outer, &veth.name, veth.mac, veth.mtu).nest(IFLA_LINKINFO, |m| {
        m.text(IFLA_INFO_KIND, "veth").nest(IFLA_INFO_DATA, |m| {
            m.nest(VETH_INFO_PEER, |m| {
                let inner = m.raw(&ifinfo(0, 0, 0));
                end(inner, &veth.peer, veth.peer_mac, veth.mtu).u32(IFLA_NET_NS_FD, netns as u32)
            })
        })
    })
}

pub fn create_ifb(name: &str) -> Message {
    Message::new(libc::RTM_NEWLINK, CREATE | EXCL, &ifinfo(0, 0, 0))
        .text(IFLA_IFNAME, name)
        .u32(IFLA_NUM_TX_QUEUES, 1)
        .u32(IFLA_NUM_RX_QUEUES, 1)
        .nest(IFLA_LINKINFO, |m| m.text(IFLA_INFO_KIND, "ifb"))
}

/// Makes an IPvlan slave of the link with this index, which is ours; in the namespace of this descriptor, where there is one.
pub fn create_slave(name: &str, parent: u32, mtu: u32, netns: Option<RawFd>) -> Message {
    Message::new(libc::RTM_NEWLINK, CREATE | EXCL, &ifinfo(0, 0, 0))
        .text(IFLA_IFNAME, name)
        .u32(IFLA_LINK, parent)
        .u32(IFLA_MTU, mtu)
        .maybe(netns, |m, netns| m.u32(IFLA_NET_NS_FD, netns as u32))
        .nest(IFLA_LINKINFO, l2)
}

/// The mode is its parent's, and that of all its slaves: the last word counts.
pub fn set_l2(ifindex: u32) -> Message {
    Message::new(libc::RTM_NEWLINK, 0, &ifinfo(ifindex, 0, 0)).nest(IFLA_LINKINFO, l2)
}

fn l2(message: Message) -> Message {
    let u16_attr = |m: Message, kind, value: u16| m.attr(kind, &value.to_ne_bytes());
    message
        .text(IFLA_INFO_KIND, "ipvlan")
        .nest(IFLA_INFO_DATA, |m| u16_attr(u16_attr(m, IFLA_IPVLAN_MODE, L2), IFLA_IPVLAN_FLAGS, BRIDGE))
}

pub fn no_arp(ifindex: u32) -> Message {
    Message::new(libc::RTM_SETLINK, 0, &ifinfo(ifindex, IFF_NOARP, IFF_NOARP))
}

/// One end of a veth. It uses one queue each way; the kernel would make one for every CPU, which takes a fifth longer
/// with two CPUs already.
fn end(message: Message, name: &str, mac: Mac, mtu: u32) -> Message {
    message
        .text(IFLA_IFNAME, name)
        .attr(IFLA_ADDRESS, &mac.0)
        .u32(IFLA_MTU, mtu)
        .u32(IFLA_NUM_TX_QUEUES, 1)
        .u32(IFLA_NUM_RX_QUEUES, 1)
}

/// With another request: keeps the kernel from giving the link an IPv6 address of its own accord when it comes up. A kernel that is too
/// old for it refuses the whole (`inet6_validate_link_af`, before anything is changed).
pub fn and_no_own_address(request: Message) -> Message {
    request.nest(IFLA_AF_SPEC, |m| {
        m.nest(libc::AF_INET6 as u16, |m| m.attr(IFLA_INET6_ADDR_GEN_MODE, &[IN6_ADDR_GEN_MODE_NONE]))
    })
}

/// Brings a link up, with this MTU and MAC where they are given.
pub fn set_up(ifindex: u32, mtu: Option<u32>, mac: Option<Mac>) -> Message {
    Message::new(libc::RTM_SETLINK, 0, &ifinfo(ifindex, IFF_UP, IFF_UP))
        .maybe(mtu, |m, mtu| m.u32(IFLA_MTU, mtu))
        .maybe(mac, |m, mac| m.attr(IFLA_ADDRESS, &mac.0))
}

pub fn set_down(ifindex: u32) -> Message {
    Message::new(libc::RTM_SETLINK, 0, &ifinfo(ifindex, 0, IFF_UP))
}

/// A link must be down for that before 6.2.
pub fn rename(ifindex: u32, name: &str) -> Message {
    Message::new(libc::RTM_SETLINK, 0, &ifinfo(ifindex, 0, 0)).text(IFLA_IFNAME, name)
}

/// Moves a link into the namespace of this descriptor, where it bears this name from the first moment on. It gets there down
/// and bare: the kernel takes addresses, routes and qdiscs off it.
pub fn give(ifindex: u32, netns: RawFd, name: &str) -> Message {
    rename(ifindex, name).u32(IFLA_NET_NS_FD, netns as u32)
}

/// An empty alias is none.
pub fn set_alias(ifindex: u32, alias: &str) -> Message {
    // Without a NUL: the kernel takes the alias by its length.
    Message::new(libc::RTM_SETLINK, 0, &ifinfo(ifindex, 0, 0)).attr(IFLA_IFALIAS, alias.as_bytes())
}

pub fn set_group(ifindex: u32, group: u32) -> Message {
    Message::new(libc::RTM_SETLINK, 0, &ifinfo(ifindex, 0, 0)).u32(IFLA_GROUP, group)
}

pub fn delete(ifindex: u32) -> Message {
    Message::new(libc::RTM_DELLINK, 0, &ifinfo(ifindex, 0, 0))
}

/// Deletes all links of a group, if the kernel is 4.1 or later.
pub fn delete_group(group: u32) -> Message {
    Message::new(libc::RTM_DELLINK, 0, &ifinfo(0, 0, 0)).u32(IFLA_GROUP, group)
}
