//! What the oldest kernel that we serve, 3.10, makes of our requests: it knows every attribute, or there is another way.
//!
//! The numbers are from `include/uapi/linux` of 3.10.22: of each set of attributes the last that it knows. A kernel reads
//! over attributes with higher numbers than its own.

use std::collections::BTreeSet;

use super::message::{Message, text, u16_at, u32_at};
use super::{addr, link, neigh, route, rule, tc};
use crate::ip::Mac;
use crate::plan::{Family, Route, Rule, RuleAction, Tbf, Veth};
use crate::rate::Rate;

/// A set of attributes: its last number in 3.10, and which of them hold sets, after so many other bytes.
struct Set {
    name: &'static str,
    last: u16,
    holds: &'static [(u16, usize, &'static Set)],
    /// Which of them names a module, and the one that 3.10 has.
    kind: Option<(u16, &'static str)>,
}

const fn flat(name: &'static str, last: u16) -> Set {
    Set { name, last, holds: &[], kind: None }
}

/// if_link.h: IFLA_CARRIER; IFLA_INFO_XSTATS; IFLA_INET6_TOKEN. veth.h: VETH_INFO_PEER. socket.h: AF_NFC.
static LINK: Set = Set { holds: &[(18, 0, &INFO), (26, 0, &FAMILIES)], ..flat("link", 33) };
static INFO: Set = Set { holds: &[(2, 0, &VETH)], kind: Some((1, "veth")), ..flat("info", 3) };
static FAMILIES: Set = Set { holds: &[(10, 0, &INET6)], ..flat("families", 39) };
static INET6: Set = flat("inet6", 7);
static IFB_LINK: Set = Set { holds: &[(18, 0, &IFB)], ..flat("link", 33) };
static IFB: Set = Set { kind: Some((1, "ifb")), ..flat("info", 3) };
/// if_link.h: IFLA_INFO_XSTATS. There is no such kind.
static SLAVE_LINK: Set = Set { holds: &[(18, 0, &SLAVE)], ..flat("link", 33) };
static SLAVE: Set = Set { kind: Some((1, "")), ..flat("slave", 3) };
static VETH: Set = Set { holds: &[(1, 16, &LINK)], ..flat("veth", 1) };
/// if_addr.h: IFA_MULTICAST. neighbour.h: NDA_IFINDEX. rtnetlink.h: RTA_MFC_STATS. fib_rules.h: FRA_OIFNAME.
static ADDR: Set = flat("addr", 7);
static NEIGH: Set = flat("neigh", 8);
static ROUTE: Set = flat("route", 17);
static RULE: Set = flat("rule", 17);
/// rtnetlink.h: TCA_STAB. pkt_cls.h: TCA_U32_MARK; TCA_ACT_MAX_PRIO; TCA_ACT_STATS. tc_skbedit.h: TCA_SKBEDIT_MARK.
static QDISC: Set = Set { kind: Some((1, "ingress")), ..flat("qdisc", 8) };
/// pkt_sched.h: TCA_TBF_PTAB.
static TBF_QDISC: Set = Set { holds: &[(2, 0, &TBF)], kind: Some((1, "tbf")), ..flat("qdisc", 8) };
static TBF: Set = flat("tbf", 3);
static FILTER: Set = Set { holds: &[(2, 0, &U32)], kind: Some((1, "u32")), ..flat("filter", 8) };
static U32: Set = Set { holds: &[(7, 0, &ACTIONS)], ..flat("u32", 10) };
static ACTIONS: Set = Set { holds: &[(1, 0, &ACTION)], ..flat("actions", 32) };
static ACTION: Set = Set { holds: &[(2, 0, &SKBEDIT)], kind: Some((1, "skbedit")), ..flat("action", 4) };
static REDIRECT: Set = Set { holds: &[(2, 0, &REDIRECT_U32)], kind: Some((1, "u32")), ..flat("filter", 8) };
static REDIRECT_U32: Set = Set { holds: &[(7, 0, &REDIRECT_ACTIONS)], ..flat("u32", 10) };
static REDIRECT_ACTIONS: Set = Set { holds: &[(1, 0, &REDIRECT_ACTION)], ..flat("actions", 32) };
static REDIRECT_ACTION: Set = Set { holds: &[(2, 0, &MIRRED)], kind: Some((1, "mirred")), ..flat("action", 4) };
/// tc_mirred.h: TCA_MIRRED_PARMS.
static MIRRED: Set = flat("mirred", 2);
static SKBEDIT: Set = flat("skbedit", 5);
/// There is no such classifier.
static BPF_FILTER: Set = Set { holds: &[(2, 0, &BPF)], kind: Some((1, "u32")), ..flat("filter", 8) };
static BPF: Set = flat("bpf", 0);

/// What is newer, since when, and what becomes of it before.
const NEWER: &[(&str, &str, &str)] = &[
    ("link 29: bit 3", "4.4", "RTEXT_FILTER_SKIP_STATS: statistics come along and nobody reads them"),
    ("link::delete_group 27", "4.1", "EINVAL, and the links are deleted one by one"),
    ("slave ipvlan", "3.19", "EOPNOTSUPP where it is tried out, and pods get a veth"),
    (
        "inet6 8",
        "3.17",
        "IFLA_INET6_ADDR_GEN_MODE: EINVAL, then asked without it, and the link gets a link-local address",
    ),
    ("qdisc clsact", "4.5", "ENOENT, and ingress is taken"),
    ("skbedit 8", "4.10", "TCA_SKBEDIT_MASK: read over, and the whole of a mark that was 0 is set"),
    ("filter bpf", "3.13", "bpf(2) fails before this is sent, and skbedit is taken"),
    ("bpf 3", "3.13", "TCA_BPF_CLASSID: the same"),
    ("bpf 6", "4.1", "TCA_BPF_FD: the same"),
    ("bpf 7", "4.1", "TCA_BPF_NAME: the same"),
    ("bpf 8", "4.4", "TCA_BPF_FLAGS: the same before 4.2; 4.2 and 4.3 mark, but check takes the filter for another"),
    ("tbf 4", "3.13", "TCA_TBF_RATE64: read over, and what is faster than 34 Gbit/s becomes that"),
    ("tbf 6", "3.14", "TCA_TBF_BURST: read over, and the burst of the parameters is taken, which is larger"),
];

/// One request of every function that makes any, with the length of its fixed part.
fn requests() -> Vec<(&'static str, Message, usize, &'static Set)> {
    let net = "2001:db8::5/128".parse().expect("a prefix");
    let addr = "192.0.2.1".parse().expect("an address");
    let mac = Mac([2, 0, 0, 0, 0, 1]);
    let name = |name: &str| name.to_string();
    let veth =
        Veth { name: name("cali1"), mac, mtu: 1500, alias: name("terway c1/eth0"), peer: name("eth0"), peer_mac: mac };
    let (table, via) = (Some(1003), Some(addr));
    let to = "0.0.0.0/0".parse().expect("a prefix");
    let gateway = Route { to, via, link: name("eth1"), table, onlink: true };
    let (from, mark, iif) = (Some(net), Some((0x20, 0x7e0)), Some(name("eth1")));
    let wide = Rule { priority: 7, family: Family::V6, from, mark, iif, action: RuleAction::Lookup(1003) };
    let fast = Rate::from_bits(40_000_000_000).expect("more than none");
    let tbf = Tbf { link: name("cali1"), rate: fast, burst: 50_000_000, limit: 175_000_000 };
    vec![
        ("link::get", link::get("eth0"), 16, &LINK),
        ("link::list", link::list(), 16, &LINK),
        ("link::create_veth", link::create_veth(&veth, 3), 16, &LINK),
        ("link::and_no_own_address", link::and_no_own_address(link::set_alias(1, "terway c1/eth0")), 16, &LINK),
        ("link::create_ifb", link::create_ifb("shape-in"), 16, &IFB_LINK),
        ("link::create_slave", link::create_slave("eth0", 3, 1500, Some(3)), 16, &SLAVE_LINK),
        ("link::set_l2", link::set_l2(1), 16, &SLAVE_LINK),
        ("link::no_arp", link::no_arp(1), 16, &LINK),
        ("link::set_up", link::set_up(1, Some(1500), Some(mac)), 16, &LINK),
        ("link::set_down", link::set_down(1), 16, &LINK),
        ("link::rename", link::rename(1, "eth0"), 16, &LINK),
        ("link::give", link::give(1, 3, "eth0"), 16, &LINK),
        ("link::set_alias", link::set_alias(1, "terway c1/eth0"), 16, &LINK),
        ("link::set_group", link::set_group(1, 2), 16, &LINK),
        ("link::delete", link::delete(1), 16, &LINK),
        ("link::delete_group", link::delete_group(2), 16, &LINK),
        ("addr::add", addr::add(net, 1), 8, &ADDR),
        ("addr::remove", addr::remove(net, 1), 8, &ADDR),
        ("neigh::replace", neigh::replace(addr, mac, 1), 12, &NEIGH),
        ("neigh::remove", neigh::remove(addr, 1), 12, &NEIGH),
        ("route::replace", route::replace(&gateway, 1), 12, &ROUTE),
        ("route::remove", route::remove(to, 1003, via, Some(1)), 12, &ROUTE),
        ("route::get", route::get(addr, 1), 12, &ROUTE),
        ("route::list", route::list(libc::AF_INET, 1000), 12, &ROUTE),
        ("rule::add", rule::add(&wide), 12, &RULE),
        ("rule::remove", rule::remove(&wide), 12, &RULE),
        ("rule::remove_with_to", rule::remove_with_to(&wide, Some(net)), 12, &RULE),
        ("tc::add_qdisc", tc::add_qdisc(1, "clsact"), 20, &QDISC),
        ("tc::remove_qdisc", tc::remove_qdisc(1), 20, &QDISC),
        ("tc::add_bpf", tc::add_bpf(1, 2049, 3, "bpf mark"), 20, &BPF_FILTER),
        ("tc::hook", tc::hook(1, tc::EGRESS, 2052, 3, "terway_leaving", Some(7)), 20, &BPF_FILTER),
        ("tc::add_skbedit", tc::add_skbedit(1, 2049, 0x20, 0x7e0), 20, &FILTER),
        ("tc::set_tbf", tc::set_tbf(1, &tbf), 20, &TBF_QDISC),
        ("tc::remove_tbf", tc::remove_tbf(1), 20, &TBF_QDISC),
        ("tc::add_redirect", tc::add_redirect(1, tc::EGRESS, 2050, 2), 20, &REDIRECT),
        ("tc::remove_filter", tc::remove_filter(1, tc::INGRESS, 2049), 20, &FILTER),
    ]
}

/// Notes what in these attributes 3.10 does not know.
fn walk(request: &str, mut bytes: &[u8], set: &Set, newer: &mut BTreeSet<String>) {
    while let Some(len) = u16_at(bytes, 0) {
        // Its flags too: 3.10 does not take them off.
        let number = u16_at(bytes, 2).expect("an attribute has a number");
        let value = &bytes[4..len.into()];
        if number > set.last {
            newer.insert(format!("{} {number}", set.name));
        }
        if set.kind.is_some_and(|(kind, known)| kind == number && text(value) != known) {
            newer.insert(format!("{} {}", set.name, text(value)));
        }
        if (set.name, number) == ("link", 29) {
            let bits = u32_at(value, 0).expect("a mask");
            // 3.10 knows RTEXT_FILTER_VF and RTEXT_FILTER_BRVLAN.
            newer.extend((2..32).filter(|bit| bits & (1 << bit) != 0).map(|bit| format!("link 29: bit {bit}")));
        }
        if (request, number) == ("link::delete_group", 27) {
            newer.insert(format!("{request} {number}"));
        }
        for (_, skip, inner) in set.holds.iter().filter(|(holder, ..)| *holder == number) {
            walk(request, &value[*skip..], inner, newer);
        }
        bytes = bytes.get(usize::from(len).next_multiple_of(4)..).unwrap_or_default();
    }
}

#[test]
fn a_kernel_3_10_knows_what_we_ask_or_there_is_another_way() {
    let mut newer = BTreeSet::new();
    for (name, request, fixed, set) in requests() {
        let bytes = request.finish(1, 0);
        let (kind, flags) = (u16_at(&bytes, 4).unwrap(), u16_at(&bytes, 6).unwrap());
        assert!(kind <= 86, "{name}: 3.10 ends with RTM_GETMDB");
        assert_eq!(flags & !0x0701, 0, "{name}: flags besides REQUEST, REPLACE (ROOT), EXCL (MATCH) and CREATE");
        walk(name, &bytes[16 + fixed..], set, &mut newer);
    }
    let noted: BTreeSet<String> = NEWER.iter().map(|(what, ..)| what.to_string()).collect();
    assert_eq!(newer, noted);
}

#[test]
fn no_request_is_forgotten_here() {
    let named: BTreeSet<&str> = requests().iter().map(|(name, ..)| *name).collect();
    let mut made = BTreeSet::new();
    for (noun, source) in [
        ("addr", include_str!("addr.rs")),
        ("link", include_str!("link.rs")),
        ("neigh", include_str!("neigh.rs")),
        ("route", include_str!("route.rs")),
        ("rule", include_str!("rule.rs")),
        ("tc", include_str!("tc.rs")),
    ] {
        let signatures = source.lines().filter_map(|line| line.strip_prefix("pub fn "));
        let messages = signatures.filter(|line| line.contains("-> Message"));
        made.extend(messages.map(|line| format!("{noun}::{}", line.split('(').next().unwrap_or_default())));
    }
    assert_eq!(made.iter().map(String::as_str).collect::<BTreeSet<_>>(), named);
}
