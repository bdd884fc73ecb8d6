//! What others do to the network of the node: the kernel's notifications, read one burst at a time.
//!
//! Most of what the kernel tells is no news to us: addresses that come, neighbours that are learnt, whatever our own ADDs
//! make. A filter in the kernel keeps that from waking anybody; what it lets through is looked at once more here.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use neli::consts::socket::{Msg, NlFamily};
use neli::socket::NlSocket;
use neli::utils::Groups;

use super::addr::AddrSeen;
use super::link::LinkSeen;
use super::message::{Answer, answers, attr, u32_at};
use super::neigh::NeighSeen;
use super::route::RouteSeen;
use super::rule;
use crate::error::{Context, Error};
use crate::happening::{Happening, LinkNow, Scope};
use crate::ours;

/// RTNLGRP_* of linux/rtnetlink.h: LINK, NEIGH, TC, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, IPV6_IFADDR, IPV6_ROUTE, IPV6_RULE.
const GROUPS: [u32; 9] = [1, 3, 4, 5, 7, 8, 9, 11, 19];
/// IPV4_NETCONF and IPV6_NETCONF; kernels before 3.8 have neither.
const NETCONF_GROUPS: [u32; 2] = [24, 25];
const RTM_NEWNETCONF: u16 = 80;
const NETCONFA_IFINDEX: u16 = 1;
/// NETCONFA_IFINDEX_ALL and NETCONFA_IFINDEX_DEFAULT.
const CONF_ALL: u32 = -1_i32 as u32;
const CONF_DEFAULT: u32 = -2_i32 as u32;

/// What may wait to be read: the links of a thousand pods going away at once. The kernel takes it only as it is needed.
const BACKLOG: libc::c_int = 8 << 20;
/// No notification is longer; should one be, it counts as lost.
const LONGEST: usize = 16 << 10;
/// So many at a time; what is left is read the next time.
const BURST: usize = 4096;

/// Notifications of the namespace in which it was opened.
pub struct Watch {
    nl: NlSocket,
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open for as long as the socket lives, which the borrow does not outlive.
        unsafe { BorrowedFd::borrow_raw(self.nl.as_raw_fd()) }
    }
}

impl Watch {
    pub fn open() -> Result<Watch, Error> {
        Watch::start().context(|| "listen to what happens in the kernel")
    }

    fn start() -> Result<Watch, Error> {
        let nl = NlSocket::connect(NlFamily::Route, None, Groups::empty())?;
        nl.nonblock()?;
        // Beyond the limit of the machine, where we may.
        set(&nl, libc::SO_RCVBUFFORCE, &BACKLOG).or_else(|_| set(&nl, libc::SO_RCVBUF, &BACKLOG))?;
        let filter = filter();
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
        set(&nl, libc::SO_ATTACH_FILTER, &program)?;
        nl.add_mcast_membership(Groups::new_groups(&GROUPS))?;
        // Without them, parameters are looked at with the next comparison.
        let _ = nl.add_mcast_membership(Groups::new_groups(&NETCONF_GROUPS));
        Ok(Watch { nl })
    }

    /// Everything that has happened since the last time, without waiting for more.
    pub fn hear(&self) -> Result<Vec<Happening>, Error> {
        let mut heard = Vec::new();
        let mut buffer = [0; LONGEST];
        for _ in 0..BURST {
            match self.nl.recv(&mut buffer, Msg::TRUNC) {
                Ok((len, _)) if len > LONGEST => heard.push(Happening::Lost),
                Ok((len, _)) => heard.extend(happenings(&buffer[..len])),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => heard.push(Happening::Lost),
                Err(e) => return Err(e).context(|| "hear what happens in the kernel"),
            }
        }
        Ok(heard)
    }
}

fn set<T>(nl: &NlSocket, option: libc::c_int, value: &T) -> io::Result<()> {
    let (at, len) = (std::ptr::from_ref(value).cast(), size_of::<T>() as libc::socklen_t);
    // SAFETY: the kernel reads `len` bytes of `value`, and of a program also its instructions, which outlive the call.
    match unsafe { libc::setsockopt(nl.as_raw_fd(), libc::SOL_SOCKET, option, at, len) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What the notifications of one datagram mean, as far as they can mean harm.
pub(super) fn happenings(datagram: &[u8]) -> impl Iterator<Item = Happening> {
    answers(datagram).filter_map(|told| happening(&told))
}

/// What a notification means, if it can mean harm.
fn happening(told: &Answer) -> Option<Happening> {
    let body = told.body;
    match told.kind {
        libc::RTM_NEWLINK | libc::RTM_DELLINK if body.first() != Some(&(libc::AF_UNSPEC as u8)) => None,
        libc::RTM_NEWLINK => LinkSeen::parse(body).map(|link| Happening::Link(now(link))),
        libc::RTM_DELLINK => Some(Happening::LinkGone { ifindex: u32_at(body, 4)? }),
        libc::RTM_DELADDR => AddrSeen::parse(body).map(|addr| Happening::AddrGone { ifindex: addr.ifindex }),
        libc::RTM_NEWROUTE | libc::RTM_DELROUTE => route(told),
        libc::RTM_DELRULE => rule::parse(body).map(Happening::RuleGone),
        libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH => {
            let seen = NeighSeen::parse(body)?;
            let gone = told.kind == libc::RTM_DELNEIGH;
            (gone || seen.permanent).then_some(Happening::Neigh { ifindex: seen.ifindex, addr: seen.addr, gone })
        }
        libc::RTM_DELQDISC | libc::RTM_DELTFILTER => Some(Happening::Traffic { ifindex: u32_at(body, 4)? }),
        libc::RTM_NEWTFILTER if i32::from(told.flags) & libc::NLM_F_EXCL == 0 => {
            Some(Happening::Traffic { ifindex: u32_at(body, 4)? })
        }
        RTM_NEWNETCONF => parameter(body),
        _ => None,
    }
}

/// A route of ours that was deleted, or another's that was put into the place of one.
fn route(told: &Answer) -> Option<Happening> {
    let seen = RouteSeen::parse(told.body)?;
    let ours = seen.protocol == ours::PROTOCOL;
    let replaces = i32::from(told.flags) & libc::NLM_F_REPLACE != 0;
    let harm = if told.kind == libc::RTM_DELROUTE { ours } else { replaces && !ours };
    harm.then_some(Happening::Route { table: seen.table, to: seen.to })
}

fn parameter(body: &[u8]) -> Option<Happening> {
    Some(Happening::Parameter(match u32_at(attr(body.get(4..)?, NETCONFA_IFINDEX)?, 0)? {
        CONF_ALL => Scope::All,
        CONF_DEFAULT => Scope::Default,
        ifindex => Scope::Link(ifindex),
    }))
}

fn now(link: LinkSeen) -> LinkNow {
    let LinkSeen { name, ifindex, mac, mtu, up, running, alias, .. } = link;
    LinkNow { ifindex, name, mac, mtu, up, running, alias }
}

/// The same decisions as in [`happening`], as far as fixed fields tell, in the instructions of a socket filter. It sees the
/// first message of a datagram; where there are two (a qdisc in the place of another) that is the one of interest.
fn filter() -> Vec<libc::sock_filter> {
    const TYPE: u32 = 4;
    const FLAGS: u32 = 6;
    const BODY: u32 = 16;
    const PASS: u32 = u32::MAX;
    let family_is = |family: libc::c_int, then: Vec<libc::sock_filter>| branch(byte(BODY), family as u32, then, deny());
    let passes = || vec![answer(PASS)];
    let route_is_ours = |yes, no| branch(byte(BODY + 5), u32::from(ours::PROTOCOL), yes, no);
    let replaces = || test(half(FLAGS), host16(libc::NLM_F_REPLACE as u16), passes(), deny());
    let excludes = || test(half(FLAGS), host16(libc::NLM_F_EXCL as u16), deny(), passes());
    let permanent = || test(half(BODY + 8), host16(libc::NUD_PERMANENT), passes(), deny());
    let not_bridged = |then| branch(byte(BODY), libc::AF_BRIDGE as u32, deny(), then);
    let kinds: Vec<(u16, Vec<libc::sock_filter>)> = vec![
        (libc::RTM_NEWLINK, family_is(libc::AF_UNSPEC, passes())),
        (libc::RTM_DELLINK, family_is(libc::AF_UNSPEC, passes())),
        (libc::RTM_DELADDR, passes()),
        (libc::RTM_NEWROUTE, route_is_ours(deny(), replaces())),
        (libc::RTM_DELROUTE, route_is_ours(passes(), deny())),
        (libc::RTM_DELRULE, passes()),
        (libc::RTM_NEWNEIGH, not_bridged(permanent())),
        (libc::RTM_DELNEIGH, not_bridged(passes())),
        (libc::RTM_DELQDISC, passes()),
        (libc::RTM_DELTFILTER, passes()),
        (libc::RTM_NEWTFILTER, excludes()),
        (RTM_NEWNETCONF, passes()),
    ];
    kinds.into_iter().rev().fold(deny(), |rest, (kind, then)| branch(half(TYPE), host16(kind), then, rest))
}

/// What a filter sees of a number that the kernel wrote in the order of this machine: filters read in network order.
fn host16(value: u16) -> u32 {
    u32::from(value.to_be())
}

fn byte(at: u32) -> libc::sock_filter {
    instruction(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, at)
}

fn half(at: u32) -> libc::sock_filter {
    instruction(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, 0, 0, at)
}

fn answer(bytes: u32) -> libc::sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, 0, 0, bytes)
}

fn deny() -> Vec<libc::sock_filter> {
    vec![answer(0)]
}

/// Loads, and goes on with `yes` where that equals the value.
fn branch(
    load: libc::sock_filter,
    value: u32,
    yes: Vec<libc::sock_filter>,
    no: Vec<libc::sock_filter>,
) -> Vec<libc::sock_filter> {
    jump(libc::BPF_JEQ, load, value, yes, no)
}

/// The same where it has one of the bits.
fn test(
    load: libc::sock_filter,
    bits: u32,
    yes: Vec<libc::sock_filter>,
    no: Vec<libc::sock_filter>,
) -> Vec<libc::sock_filter> {
    jump(libc::BPF_JSET, load, bits, yes, no)
}

/// `yes` follows, and is short; every way through it ends in an answer.
fn jump(
    how: u32,
    load: libc::sock_filter,
    value: u32,
    yes: Vec<libc::sock_filter>,
    no: Vec<libc::sock_filter>,
) -> Vec<libc::sock_filter> {
    let over = u8::try_from(yes.len()).expect("a few instructions");
    let mut code = vec![load, instruction(libc::BPF_JMP | how | libc::BPF_K, 0, over, value)];
    code.extend(yes);
    code.extend(no);
    code
}

fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt, jf, k }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::message::{CREATE, EXCL, Message, REPLACE};

    /// Runs the filter over a datagram as the kernel would.
    fn passes(datagram: &[u8]) -> bool {
        let code = filter();
        let (mut at, mut word) = (0, 0);
        loop {
            let libc::sock_filter { code: op, jt, jf, k } = code[at];
            at += 1;
            match u32::from(op) & 7 {
                libc::BPF_RET => return k != 0,
                libc::BPF_LD if u32::from(op) & 0x18 == libc::BPF_B => word = u32::from(datagram[k as usize]),
                libc::BPF_LD => {
                    word = u32::from(u16::from_be_bytes([datagram[k as usize], datagram[k as usize + 1]]));
                }
                _ => {
                    let holds = if u32::from(op) & 0xf0 == libc::BPF_JEQ { word == k } else { word & k != 0 };
                    at += usize::from(if holds { jt } else { jf });
                }
            }
        }
    }

    fn told(kind: u16, flags: u16, body: Message) -> (bool, Option<Happening>) {
        let mut bytes = body.finish(1, 0);
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        (passes(&bytes), happening(&answers(&bytes).next().unwrap()))
    }

    fn route_body(protocol: u8) -> Message {
        Message::new(0, 0, &[2, 32, 0, 0, 0, protocol, 253, 1, 0, 0, 0, 0])
            .u32(libc::RTA_TABLE, 1000)
            .attr(libc::RTA_DST, &[192, 168, 32, 5])
    }

    fn neigh_body(family: u8, state: u16) -> Message {
        let mut fixed = [0; 12];
        (fixed[0], fixed[4]) = (family, 7);
        fixed[8..10].copy_from_slice(&state.to_ne_bytes());
        Message::new(0, 0, &fixed).attr(libc::NDA_DST, &[192, 168, 32, 5])
    }

    #[test]
    fn what_can_hurt_passes_and_is_understood() {
        let to = "192.168.32.5/32".parse().unwrap();
        let route = Some(Happening::Route { table: 1000, to });
        assert_eq!(told(libc::RTM_DELROUTE, 0, route_body(ours::PROTOCOL)), (true, route.clone()));
        assert_eq!(told(libc::RTM_NEWROUTE, CREATE | REPLACE, route_body(4)), (true, route));
        let neigh = |gone| Some(Happening::Neigh { ifindex: 7, addr: "192.168.32.5".parse().unwrap(), gone });
        assert_eq!(told(libc::RTM_DELNEIGH, 0, neigh_body(2, libc::NUD_FAILED)), (true, neigh(true)));
        assert_eq!(told(libc::RTM_NEWNEIGH, 0, neigh_body(2, libc::NUD_PERMANENT)), (true, neigh(false)));
        let conf = |ifindex: u32| Message::new(0, 0, &[2]).u32(NETCONFA_IFINDEX, ifindex);
        for (ifindex, scope) in [(CONF_ALL, Scope::All), (CONF_DEFAULT, Scope::Default), (5, Scope::Link(5))] {
            assert_eq!(told(RTM_NEWNETCONF, 0, conf(ifindex)), (true, Some(Happening::Parameter(scope))));
        }
        let mut link = [0; 16];
        link[4] = 9;
        let link = || Message::new(0, 0, &link);
        assert_eq!(told(libc::RTM_DELLINK, 0, link()), (true, Some(Happening::LinkGone { ifindex: 9 })));
        let mut tc = [0; 20];
        tc[4] = 9;
        let tc = || Message::new(0, 0, &tc);
        for (kind, flags) in
            [(libc::RTM_DELQDISC, 0), (libc::RTM_DELTFILTER, EXCL), (libc::RTM_NEWTFILTER, CREATE), (37, 0)]
        {
            assert_eq!(told(kind, flags, tc()), (true, Some(Happening::Traffic { ifindex: 9 })));
        }
    }

    #[test]
    fn what_our_own_work_and_everyday_traffic_bring_wakes_nobody() {
        let link = Message::new(0, 0, &[7; 16]);
        for (kind, flags, body) in [
            (libc::RTM_NEWROUTE, CREATE | REPLACE, route_body(ours::PROTOCOL)),
            (libc::RTM_NEWROUTE, CREATE, route_body(4)),
            (libc::RTM_DELROUTE, 0, route_body(4)),
            (libc::RTM_NEWNEIGH, 0, neigh_body(2, libc::NUD_REACHABLE)),
            (libc::RTM_DELNEIGH, 0, neigh_body(libc::AF_BRIDGE as u8, libc::NUD_PERMANENT)),
            (libc::RTM_NEWTFILTER, CREATE | EXCL, Message::new(0, 0, &[0; 20])),
            (libc::RTM_NEWQDISC, CREATE | EXCL, Message::new(0, 0, &[0; 20])),
            (libc::RTM_NEWADDR, 0, Message::new(0, 0, &[2, 32, 0, 0, 1, 0, 0, 0])),
            (libc::RTM_NEWRULE, 0, Message::new(0, 0, &[2, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0])),
            (libc::RTM_NEWLINK, 0, link),
        ] {
            let (passed, meant) = told(kind, flags, body);
            assert!(!passed, "kind {kind} with flags {flags:#x} wakes the daemon");
            // A bridge's neighbour reads as any other: the filter is what keeps it away.
            assert!(meant.is_none() || kind == libc::RTM_DELNEIGH, "kind {kind} means {meant:?}");
        }
    }
}
