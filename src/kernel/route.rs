//! Routes.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::message::{CREATE, DUMP, Message, REPLACE, attrs, family, ip, ip_bytes, u32_at};
use crate::ours;
use crate::plan::Route;

/// The main routing table.
pub const MAIN: u32 = libc::RT_TABLE_MAIN as u32;
/// The table in which the kernel keeps the addresses and groups of links.
pub(super) const LOCAL: u32 = libc::RT_TABLE_LOCAL as u32;

const RTNH_F_ONLINK: u32 = 4;
/// What IPv6 makes of a route without a metric (`IP6_RT_PRIO_USER`).
const METRIC_V6: u32 = 1024;

/// A route as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteSeen {
    pub to: IpNet,
    pub via: Option<IpAddr>,
    /// `None` for a route that leads nowhere, or several ways.
    pub oif: Option<u32>,
    pub table: u32,
    pub scope: u8,
    pub kind: u8,
    pub protocol: u8,
    pub metric: u32,
    pub source: Option<IpAddr>,
    pub onlink: bool,
}

impl RouteSeen {
    pub(super) fn parse(body: &[u8]) -> Option<RouteSeen> {
        let [af, prefix, _, tos, table, protocol, scope, kind] = *body.get(..8)? else { return None };
        let any: IpAddr = match i32::from(af) {
            libc::AF_INET => Ipv4Addr::UNSPECIFIED.into(),
            libc::AF_INET6 => Ipv6Addr::UNSPECIFIED.into(),
            _ => return None,
        };
        let flags = u32_at(body, 8)?;
        // Clones (what a cache holds) and routes for one type of service are not what anyone here speaks of.
        if tos != 0 || flags & libc::RTM_F_CLONED != 0 {
            return None;
        }
        let mut route = RouteSeen {
            to: IpNet::new(any, prefix).ok()?,
            via: None,
            oif: None,
            table: table.into(),
            scope,
            kind,
            protocol,
            metric: 0,
            source: None,
            onlink: flags & RTNH_F_ONLINK != 0,
        };
        for (kind, value) in attrs(body.get(12..)?) {
            match kind {
                libc::RTA_DST => route.to = IpNet::new(ip(value)?, prefix).ok()?,
                libc::RTA_GATEWAY => route.via = ip(value),
                libc::RTA_OIF => route.oif = u32_at(value, 0),
                libc::RTA_TABLE => route.table = u32_at(value, 0)?,
                libc::RTA_PRIORITY => route.metric = u32_at(value, 0)?,
                libc::RTA_PREFSRC => route.source = ip(value),
                _ => {}
            }
        }
        Some(route)
    }

    pub(super) fn key(&self) -> (u32, IpNet) {
        (self.table, self.to)
    }

    /// It stands where the wanted route has to stand: the kernel would not hold both.
    pub fn is_in_place_of(&self, want: &Route) -> bool {
        let metric = if want.to.addr().is_ipv6() { METRIC_V6 } else { 0 };
        self.to == want.to && self.table == want.table.unwrap_or(MAIN) && self.metric == metric
    }

    /// It is the wanted route. IPv6 knows neither scopes nor, before 4.16, a use for `onlink`.
    pub fn is(&self, want: &Route, oif: u32) -> bool {
        let v6 = want.to.addr().is_ipv6();
        self.is_in_place_of(want)
            && self.kind == libc::RTN_UNICAST
            && self.oif == Some(oif)
            && self.via == want.via
            && self.source.is_none()
            && (v6 || (self.scope == scope(want) && self.onlink == want.onlink))
    }
}

impl fmt::Display for RouteSeen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "type {}", self.kind)?;
        if let Some(via) = self.via {
            write!(f, " via {via}")?;
        }
        if let Some(oif) = self.oif {
            write!(f, " dev {oif}")?;
        }
        if let Some(source) = self.source {
            write!(f, " src {source}")?;
        }
        write!(f, " scope {}{}", self.scope, if self.onlink { " onlink" } else { "" })
    }
}

fn scope(want: &Route) -> u8 {
    if want.via.is_some() { libc::RT_SCOPE_UNIVERSE } else { libc::RT_SCOPE_LINK }
}

/// `struct rtmsg`, and the table and destination that every request names.
fn request(kind: u16, flags: u16, to: IpNet, table: u32, fixed: [u8; 3], onlink: bool) -> Message {
    let [protocol, scope, route_type] = fixed;
    let short = u8::try_from(table).unwrap_or(libc::RT_TABLE_UNSPEC);
    let addr = to.addr();
    let mut head = [family(&addr), to.prefix_len(), 0, 0, short, protocol, scope, route_type, 0, 0, 0, 0];
    if onlink {
        head[8..].copy_from_slice(&RTNH_F_ONLINK.to_ne_bytes());
    }
    Message::new(kind, flags, &head).u32(libc::RTA_TABLE, table).attr(libc::RTA_DST, &ip_bytes(addr))
}

/// Adds the route, or puts it in the place of the one with its destination and metric.
pub fn replace(want: &Route, oif: u32) -> Message {
    let fixed = [ours::PROTOCOL, scope(want), libc::RTN_UNICAST];
    let table = want.table.unwrap_or(MAIN);
    request(libc::RTM_NEWROUTE, CREATE | REPLACE, want.to, table, fixed, want.onlink)
        .maybe(want.via, |m, via| m.attr(libc::RTA_GATEWAY, &ip_bytes(via)))
        .u32(libc::RTA_OIF, oif)
}

/// Asks for all routes of a family in a table; before 4.20 the kernel tells those of all tables.
pub fn list(family: i32, table: u32) -> Message {
    let head = [family as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    Message::new(libc::RTM_GETROUTE, DUMP, &head).u32(libc::RTA_TABLE, table)
}

/// Asks where packets to this address go that belong to this link.
pub fn get(to: IpAddr, oif: u32) -> Message {
    let length = if to.is_ipv4() { 32 } else { 128 };
    Message::new(libc::RTM_GETROUTE, 0, &[family(&to), length, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
        .attr(libc::RTA_DST, &ip_bytes(to))
        .u32(libc::RTA_OIF, oif)
}

/// Whether the answer says that they stay here.
pub fn is_local(answer: &[u8]) -> bool {
    answer.get(7) == Some(&libc::RTN_LOCAL)
}

/// Removes the first route to this destination in this table, or the one through this link.
pub fn remove(to: IpNet, table: u32, via: Option<IpAddr>, oif: Option<u32>) -> Message {
    request(libc::RTM_DELROUTE, 0, to, table, [0, libc::RT_SCOPE_NOWHERE, 0], false)
        .maybe(via, |m, via| m.attr(libc::RTA_GATEWAY, &ip_bytes(via)))
        .maybe(oif, |m, oif| m.u32(libc::RTA_OIF, oif))
}
