//! Policy routing rules.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::message::{CREATE, Message, attrs, ip, ip_bytes, text, u32_at};
use crate::plan::{Family, Rule, RuleAction};

const FRA_DST: u16 = 1;
const FRA_SRC: u16 = 2;
const FRA_IIFNAME: u16 = 3;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_SUPPRESS_IFGROUP: u16 = 13;
const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const FRA_PROTOCOL: u16 = 21;
const FRA_FLOW: u16 = 11;
const FR_ACT_TO_TBL: u8 = 1;
const FR_ACT_BLACKHOLE: u8 = 6;
const FIB_RULE_INVERT: u32 = 2;

/// Reads a rule as one of ours might be; `None` for one that says more than we ever say.
pub(super) fn parse(body: &[u8]) -> Option<Rule> {
    parse_with_to(body).and_then(|(rule, to)| to.is_none().then_some(rule))
}

/// The same, and the destination that the rule is for, if it is for one.
pub(super) fn parse_with_to(body: &[u8]) -> Option<(Rule, Option<IpNet>)> {
    let [af, to_len, from_len, tos, table, _, _, action] = *body.get(..8)? else { return None };
    let (family, any): (_, IpAddr) = match i32::from(af) {
        libc::AF_INET => (Family::V4, Ipv4Addr::UNSPECIFIED.into()),
        libc::AF_INET6 => (Family::V6, Ipv6Addr::UNSPECIFIED.into()),
        _ => return None,
    };
    if tos != 0 || u32_at(body, 8)? & FIB_RULE_INVERT != 0 {
        return None;
    }
    let (mut from, mut to, mut iif, mut priority, mut table) = (any, any, None, 0, u32::from(table));
    let (mut value, mut mask) = (0, 0);
    for (kind, bytes) in attrs(body.get(12..)?) {
        match kind {
            FRA_DST => to = ip(bytes)?,
            FRA_SRC => from = ip(bytes)?,
            FRA_IIFNAME => iif = Some(text(bytes)),
            FRA_PRIORITY => priority = u32_at(bytes, 0)?,
            FRA_FWMARK => value = u32_at(bytes, 0)?,
            FRA_FWMASK => mask = u32_at(bytes, 0)?,
            FRA_TABLE => table = u32_at(bytes, 0)?,
            // The kernel says "suppress nothing" of every rule that it looks up a table for.
            FRA_SUPPRESS_IFGROUP | FRA_SUPPRESS_PREFIXLEN if u32_at(bytes, 0)? == u32::MAX => {}
            FRA_PROTOCOL => {}
            FRA_FLOW if u32_at(bytes, 0)? == 0 => {}
            _ => return None,
        }
    }
    let rule = Rule {
        priority,
        family,
        from: (from_len != 0).then(|| IpNet::new(from, from_len)).transpose().ok()?,
        mark: (mask != 0).then_some((value, mask)),
        iif,
        action: match action {
            FR_ACT_TO_TBL => RuleAction::Lookup(table),
            FR_ACT_BLACKHOLE => RuleAction::Blackhole,
            _ => return None,
        },
    };
    Some((rule, (to_len != 0).then(|| IpNet::new(to, to_len)).transpose().ok()?))
}

/// `struct fib_rule_hdr` and all that the rule says.
fn request(kind: u16, flags: u16, rule: &Rule, to: Option<IpNet>) -> Message {
    let family = match rule.family {
        Family::V4 => libc::AF_INET as u8,
        Family::V6 => libc::AF_INET6 as u8,
    };
    let [from_len, to_len] = [rule.from, to].map(|net| net.map_or(0, |net| net.prefix_len()));
    let (action, table) = match rule.action {
        RuleAction::Lookup(table) => (FR_ACT_TO_TBL, Some(table)),
        RuleAction::Blackhole => (FR_ACT_BLACKHOLE, None),
    };
    let short = table.and_then(|table| u8::try_from(table).ok()).unwrap_or(libc::RT_TABLE_UNSPEC);
    Message::new(kind, flags, &[family, to_len, from_len, 0, short, 0, 0, action, 0, 0, 0, 0])
        .u32(FRA_PRIORITY, rule.priority)
        .maybe(to, |m, net| m.attr(FRA_DST, &ip_bytes(net.addr())))
        .maybe(rule.from, |m, net| m.attr(FRA_SRC, &ip_bytes(net.addr())))
        .maybe(rule.mark, |m, (value, mask)| m.u32(FRA_FWMARK, value).u32(FRA_FWMASK, mask))
        .maybe(rule.iif.as_deref(), |m, iif| m.text(FRA_IIFNAME, iif))
        .maybe(table, |m, table| m.u32(FRA_TABLE, table))
}

pub fn add(rule: &Rule) -> Message {
    // Not NLM_F_EXCL, which takes some rules that say more for the same one; who adds a rule has looked.
    request(libc::RTM_NEWRULE, CREATE, rule, None)
}

pub fn remove(rule: &Rule) -> Message {
    request(libc::RTM_DELRULE, 0, rule, None)
}

/// The same for a rule that is for one destination.
pub fn remove_with_to(rule: &Rule, to: Option<IpNet>) -> Message {
    request(libc::RTM_DELRULE, 0, rule, to)
}
