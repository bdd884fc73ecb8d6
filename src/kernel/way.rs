//! Asks the kernel where a packet would go, and whether a neighbour answers, without sending one.

use std::net::IpAddr;
use std::path::Path;

use super::Kernel;
use super::message::{Message, attrs, family, ip, ip_bytes, u32_at};
use super::place::Place;
use crate::error::{Context, Error};

const RTM_F_LOOKUP_TABLE: u32 = 0x1000;

/// A packet that somebody asks about.
#[derive(Debug, Clone)]
pub struct Packet {
    pub to: IpAddr,
    pub from: Option<IpAddr>,
    /// Index of the link it comes in by; none for one that is sent here.
    pub iif: Option<u32>,
    pub mark: u32,
}

/// Where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// It is for this very namespace.
    Here,
    Out {
        link: String,
        via: Option<IpAddr>,
        table: u32,
    },
}

impl Kernel {
    /// Where the node sends a packet. The errno of a failure is what its sender would hear.
    pub fn way(&mut self, packet: &Packet) -> Result<Way, Error> {
        way(&mut self.host, packet)
    }

    /// Where a pod sends one.
    pub fn way_inside(&mut self, netns: &Path, packet: &Packet) -> Result<Way, Error> {
        self.enter(netns)?;
        let pod = self.pod.as_mut().expect("it was entered");
        let found = way(&mut pod.place, packet);
        self.pod = None;
        found
    }

    /// Whether the node has asked for the MAC of this neighbour and heard nothing.
    pub fn is_unanswered(&mut self, ifindex: u32, addr: IpAddr) -> Result<bool, Error> {
        Ok(self.host.neighs()?.iter().any(|n| n.ifindex == ifindex && n.addr == addr && n.unanswered))
    }
}

fn way(place: &mut Place, packet: &Packet) -> Result<Way, Error> {
    let outcome = place.change(vec![question(packet)])?.pop().expect("as many outcomes as requests");
    let answer = outcome.context(|| format!("ask for the way to {}", packet.to))?;
    let (kind, oif, via, table) = read(&answer).ok_or_else(|| Error::malformed("no answer about a way"))?;
    if kind == libc::RTN_LOCAL {
        return Ok(Way::Here);
    }
    let link = place.links()?.into_iter().find(|link| Some(link.ifindex) == oif);
    Ok(Way::Out { link: link.map(|link| link.name).unwrap_or_default(), via, table })
}

fn question(packet: &Packet) -> Message {
    let length = |addr: &IpAddr| if addr.is_ipv4() { 32 } else { 128 };
    let mut head =
        [family(&packet.to), length(&packet.to), packet.from.as_ref().map_or(0, length), 0, 0, 0, 0, 0, 0, 0, 0, 0];
    head[8..].copy_from_slice(&RTM_F_LOOKUP_TABLE.to_ne_bytes());
    Message::new(libc::RTM_GETROUTE, 0, &head)
        .attr(libc::RTA_DST, &ip_bytes(packet.to))
        .maybe(packet.from, |m, from| m.attr(libc::RTA_SRC, &ip_bytes(from)))
        .maybe(packet.iif, |m, iif| m.u32(libc::RTA_IIF, iif))
        .maybe((packet.mark != 0).then_some(packet.mark), |m, mark| m.u32(libc::RTA_MARK, mark))
}

/// Type, link, gateway and table.
fn read(body: &[u8]) -> Option<(u8, Option<u32>, Option<IpAddr>, u32)> {
    let (mut table, kind) = (u32::from(*body.get(4)?), *body.get(7)?);
    let (mut oif, mut via) = (None, None);
    for (attribute, value) in attrs(body.get(12..)?) {
        match attribute {
            libc::RTA_OIF => oif = u32_at(value, 0),
            libc::RTA_GATEWAY => via = ip(value),
            libc::RTA_TABLE => table = u32_at(value, 0)?,
            _ => {}
        }
    }
    Some((kind, oif, via, table))
}
