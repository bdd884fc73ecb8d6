//! Neighbours.

use std::net::IpAddr;

use super::message::{CREATE, Message, REPLACE, attrs, family, ip, ip_bytes, u16_at, u32_at};
use crate::ip::Mac;

/// A neighbour as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NeighSeen {
    pub addr: IpAddr,
    pub ifindex: u32,
    pub mac: Option<Mac>,
    /// It needs no proof and does not age.
    pub permanent: bool,
    /// It was asked for, and did not answer.
    pub unanswered: bool,
}

impl NeighSeen {
    pub(super) fn parse(body: &[u8]) -> Option<NeighSeen> {
        let (mut addr, mut mac) = (None, None);
        for (kind, value) in attrs(body.get(12..)?) {
            match kind {
                libc::NDA_DST => addr = ip(value),
                libc::NDA_LLADDR => mac = value.try_into().ok().map(Mac),
                _ => {}
            }
        }
        let state = u16_at(body, 8)?;
        let (permanent, unanswered) = (state & libc::NUD_PERMANENT != 0, state & libc::NUD_FAILED != 0);
        Some(NeighSeen { addr: addr?, ifindex: u32_at(body, 4)?, mac, permanent, unanswered })
    }

    pub(super) fn key(&self) -> (u32, IpAddr) {
        (self.ifindex, self.addr)
    }
}

/// `struct ndmsg` and the address.
fn request(kind: u16, flags: u16, addr: IpAddr, ifindex: u32) -> Message {
    let mut fixed = [0; 12];
    fixed[0] = family(&addr);
    fixed[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    fixed[8..10].copy_from_slice(&libc::NUD_PERMANENT.to_ne_bytes());
    Message::new(kind, flags, &fixed).attr(libc::NDA_DST, &ip_bytes(addr))
}

pub fn replace(addr: IpAddr, mac: Mac, ifindex: u32) -> Message {
    request(libc::RTM_NEWNEIGH, CREATE | REPLACE, addr, ifindex).attr(libc::NDA_LLADDR, &mac.0)
}

pub fn remove(addr: IpAddr, ifindex: u32) -> Message {
    request(libc::RTM_DELNEIGH, 0, addr, ifindex)
}
