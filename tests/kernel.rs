//! Every rtnetlink noun in a fresh namespace: add, list, repeat, remove.

use std::path::Path;

use terway::error::{Cause, Error};
use terway::happening::{Happening, LinkNow, Scope};
use terway::ip::Mac;
use terway::kernel::netns::Netns;
use terway::kernel::{self, Kernel, Watch};
use terway::ours;
use terway::plan::{
    Addr, Family, Filter, FilterAction, Ifb, Link, Neigh, Object, Plan, Redirect, Route, Rule, RuleAction, Side,
    Sysctl, Tbf,
};
use terway::rate::Rate;
use terway::rpc::Marker;

use crate::sim::cluster::{SOON, within};
use crate::sim::ns::Ns;

fn has_link(name: &str) -> bool {
    std::fs::read_to_string("/proc/thread-self/net/dev").unwrap().contains(&format!("{name}:"))
}

#[test]
fn a_closure_runs_inside_the_namespace_and_nowhere_else() {
    let ns = Ns::new("in");
    ns.sh("ip link add probe0 type veth peer name probe1");
    let netns = Netns::open(ns.path()).unwrap();
    assert!(netns.run(|| Ok::<_, Error>(has_link("probe0"))).unwrap());
    assert!(!has_link("probe0"));
}

#[test]
fn what_is_not_a_network_namespace_of_a_pod_is_refused() {
    let refused = |path: &str| match Netns::open(Path::new(path)).unwrap_err().cause {
        Cause::Refused(why) => why,
        other => panic!("{path}: {other:?}"),
    };
    assert_eq!(refused("/dev/null"), "it is not a namespace");
    assert_eq!(refused("/proc/self/ns/mnt"), "it is a namespace, but not one of the network");
    assert_eq!(refused("/proc/self/ns/net"), "it is the network namespace of the node, not one of a pod");
    assert!(Netns::open(Path::new("/run/netns/never-made")).unwrap_err().is_absent());
}

/// A namespace with the link `a0` up, whose other end is `a1`.
fn one_link(tag: &str) -> Ns {
    let ns = Ns::new(tag);
    ns.sh("ip link add a0 address 02:00:00:00:00:0a type veth peer name a1; ip link set a0 up; ip link set a1 up");
    // IPv6 gives links addresses and routes in its own time; not while a test looks on.
    ns.sh("sysctl -qw net.ipv6.conf.a0.disable_ipv6=1 net.ipv6.conf.a1.disable_ipv6=1; sleep 0.01; sysctl -qw net.ipv6.conf.a0.disable_ipv6=0");
    ns.sh("ip -6 addr flush dev a0; sleep 0.01; ip -6 route flush dev a0; true");
    ns
}

/// Makes the object, sees it in what the tool prints, makes it again without effect, removes it twice.
fn comes_and_goes(ns: &Ns, object: Object, list: &str, shown: &str) {
    let plan = Plan { host: vec![object], pod: Vec::new() };
    let kernel = || ns.run(|| Kernel::host().unwrap());
    let before = ns.sh(list);
    assert!(!before.contains(shown), "{shown} is not there yet: {before}");
    ns.run(|| kernel().apply(&plan).unwrap());
    let made = ns.sh(list);
    assert!(made.contains(shown), "{plan}{made}");
    assert_eq!(ns.run(|| kernel().check(&plan).unwrap()), None);
    ns.run(|| kernel().apply(&plan).unwrap());
    assert_eq!(ns.sh(list), made);
    ns.run(|| kernel().undo(&plan).unwrap());
    assert_eq!(ns.sh(list), before);
    ns.run(|| kernel().undo(&plan).unwrap());
    assert!(ns.run(|| kernel().check(&plan).unwrap()).is_some());
}

fn addr(net: &str) -> Object {
    Object::Addr(Addr { net: net.parse().unwrap(), link: "a0".into() })
}

fn route(to: &str, via: Option<&str>, table: Option<u32>) -> Route {
    let via = via.map(|via| via.parse().unwrap());
    Route { to: to.parse().unwrap(), via, link: "a0".into(), table, onlink: via.is_some() }
}

fn rule() -> Rule {
    Rule { priority: 700, family: Family::V4, from: None, mark: None, iif: None, action: RuleAction::Lookup(1234) }
}

#[test]
fn addresses_come_and_go() {
    let ns = one_link("addr");
    comes_and_goes(&ns, addr("192.0.2.1/32"), "ip -o addr", "inet 192.0.2.1/32 scope global a0");
    comes_and_goes(&ns, addr("192.0.2.1/24"), "ip -o addr", "inet 192.0.2.1/24 scope global a0");
    comes_and_goes(&ns, addr("2001:db8::1/128"), "ip -o addr", "inet6 2001:db8::1/128 scope global nodad");
}

#[test]
fn an_ipv6_address_with_another_prefix_is_corrected() {
    let ns = one_link("addr6");
    ns.sh("ip addr add 2001:db8::1/64 dev a0 nodad");
    comes_and_goes(&ns, addr("2001:db8::2/128"), "ip -o addr", "2001:db8::2/128");
    let plan = Plan { host: vec![addr("2001:db8::1/128")], pod: Vec::new() };
    ns.run(|| Kernel::host().unwrap().apply(&plan).unwrap());
    assert!(ns.sh("ip -o addr").contains("2001:db8::1/128"));
}

#[test]
fn routes_come_and_go() {
    let ns = one_link("route");
    let list = "ip route show table all; ip -6 route show table all";
    let go = |route, shown: &str| comes_and_goes(&ns, Object::Route(route), list, shown);
    go(route("192.0.2.5/32", None, Some(1000)), "192.0.2.5 dev a0 table 1000 proto 116 scope link");
    go(route("192.0.2.0/24", None, None), "192.0.2.0/24 dev a0 proto 116 scope link");
    go(route("0.0.0.0/0", Some("169.254.1.1"), None), "default via 169.254.1.1 dev a0 proto 116 onlink");
    go(
        route("0.0.0.0/0", Some("203.0.113.1"), Some(1003)),
        "default via 203.0.113.1 dev a0 table 1003 proto 116 onlink",
    );
    go(route("2001:db8::5/128", None, Some(1000)), "2001:db8::5 dev a0 table 1000 proto 116 metric 1024");
    go(route("::/0", Some("fe80::1"), None), "default via fe80::1 dev a0 proto 116 metric 1024");
}

#[test]
fn a_route_in_the_place_of_ours_is_replaced_and_one_beside_it_stays() {
    let ns = one_link("route");
    ns.sh("ip addr add 203.0.113.1/24 dev a0; ip route add 192.0.2.5 via 203.0.113.9; ip route add 192.0.2.5 via 203.0.113.8 metric 50");
    ns.sh("ip -6 route add 2001:db8::5 dev a1 metric 1024 || ip -6 route add 2001:db8::5 dev lo");
    let wanted =
        vec![Object::Route(route("192.0.2.5/32", None, None)), Object::Route(route("2001:db8::5/128", None, None))];
    let plan = Plan { host: wanted, pod: Vec::new() };
    let mut kernel = ns.run(|| Kernel::host().unwrap());
    assert!(kernel.check(&plan).unwrap().unwrap().to_string().contains("via 203.0.113.9"));
    kernel.apply(&plan).unwrap();
    assert_eq!(kernel.check(&plan).unwrap(), None);
    let routes = ns.sh("ip route show 192.0.2.5; ip -6 route show 2001:db8::5");
    let lines: Vec<&str> = routes.lines().map(str::trim_end).collect();
    assert_eq!(
        lines,
        [
            "192.0.2.5 dev a0 proto 116 scope link",
            "192.0.2.5 via 203.0.113.8 dev a0 metric 50",
            "2001:db8::5 dev a0 proto 116 metric 1024 pref medium",
        ]
    );
}

#[test]
fn rules_come_and_go() {
    let ns = one_link("rule");
    let list = "ip rule; ip -6 rule";
    let go = |rule, shown: &str| comes_and_goes(&ns, Object::Rule(rule), list, shown);
    go(rule(), "700:\tfrom all lookup 1234");
    go(Rule { mark: Some((0x20, 0x7e0)), ..rule() }, "700:\tfrom all fwmark 0x20/0x7e0 lookup 1234");
    go(Rule { from: Some("192.0.2.5/32".parse().unwrap()), ..rule() }, "700:\tfrom 192.0.2.5 lookup 1234");
    go(Rule { iif: Some("a0".into()), action: RuleAction::Blackhole, ..rule() }, "700:\tfrom all iif a0 blackhole");
    go(
        Rule { family: Family::V6, from: Some("2001:db8::5/128".parse().unwrap()), ..rule() },
        "700:\tfrom 2001:db8::5 lookup 1234",
    );
}

#[test]
fn a_rule_that_says_more_than_ours_is_another_rule() {
    let ns = one_link("rule");
    for more in
        ["to 192.0.2.0/24", "oif a1", "not from 192.0.2.7", "ipproto tcp", "tos 0x10", "suppress_prefixlength 0"]
    {
        ns.sh(&format!("ip rule add priority 700 {more} lookup 1234"));
    }
    let plan = Plan { host: vec![Object::Rule(rule())], pod: Vec::new() };
    let mut kernel = ns.run(|| Kernel::host().unwrap());
    assert_eq!(kernel.check(&plan).unwrap().unwrap().to_string(), "rule priority 700 from all lookup 1234: absent");
    kernel.apply(&plan).unwrap();
    assert_eq!(kernel.check(&plan).unwrap(), None);
    assert_eq!(ns.sh("ip rule | grep -c 700:").trim(), "7");
}

#[test]
fn copies_of_a_rule_go_together() {
    let ns = one_link("rule");
    let plan = Plan { host: vec![Object::Rule(rule())], pod: Vec::new() };
    let mut kernel = ns.run(|| Kernel::host().unwrap());
    kernel.apply(&plan).unwrap();
    // This is how the kernel can still be brought to hold a rule twice.
    ns.sh("ip rule add priority 700 lookup 1234 protocol 7");
    kernel.undo(&plan).unwrap();
    assert!(!ns.sh("ip rule").contains("700:"));
}

#[test]
fn neighbours_come_and_go() {
    let ns = one_link("neigh");
    let neigh = |addr: &str| {
        Object::Neigh(Neigh { addr: addr.parse().unwrap(), mac: Mac([2, 0, 0, 0, 0, 9]), link: "a0".into() })
    };
    let go = |addr: &str| {
        comes_and_goes(
            &ns,
            neigh(addr),
            "ip neigh show nud permanent",
            &format!("{addr} dev a0 lladdr 02:00:00:00:00:09 PERMANENT"),
        );
    };
    go("192.0.2.5");
    go("169.254.1.1");
    go("fe80::1");
}

#[test]
fn filters_come_with_their_qdisc_and_go_with_it() {
    let ns = one_link("tc");
    let action = FilterAction::BpfMark(0x20, 0x7e0);
    let filter = Object::Filter(Filter { link: "a0".into(), priority: 2049, action });
    comes_and_goes(
        &ns,
        filter.clone(),
        "tc qdisc; tc filter show dev a0 ingress",
        "pref 2049 bpf chain 0 handle 0x1 bpf mark 0x20/0x7e0 direct-action",
    );
    // Not with what somebody else put on it.
    ns.sh("tc qdisc add dev a0 clsact; tc filter add dev a0 egress prio 7 protocol ip u32 match u32 0 0");
    comes_and_goes(
        &ns,
        filter.clone(),
        "tc qdisc; tc filter show dev a0 ingress; tc filter show dev a0 egress",
        "pref 2049 bpf",
    );
    // The qdisc of kernels before 4.5.
    ns.sh("tc qdisc del dev a0 clsact; tc qdisc add dev a0 ingress; tc filter add dev a0 ingress prio 7 protocol ip u32 match u32 0 0");
    comes_and_goes(&ns, filter, "tc qdisc; tc filter show dev a0 ingress", "pref 2049 bpf");
}

fn tbf(bits: u64, burst: u32, limit: u32) -> Object {
    Object::Tbf(Tbf { link: "a0".into(), rate: Rate::from_bits(bits).unwrap(), burst, limit })
}

#[test]
fn token_buckets_come_and_go() {
    let ns = one_link("tbf");
    let go = |object, shown: &str| {
        comes_and_goes(&ns, object, "tc qdisc show dev a0 root | sed 's/ refcnt [0-9]*//'", shown)
    };
    go(tbf(1_000_000, 2018, 14162), "qdisc tbf 7e4: root rate 1Mbit burst 2018b");
    go(tbf(10_000_000, 12_500, 43_750), "qdisc tbf 7e4: root rate 10Mbit burst 12500b");
    go(tbf(5_000_000_000, 6_250_000, 21_875_000), "qdisc tbf 7e4: root rate 5Gbit burst 624");
    // More than 32 bits of bytes a second.
    go(tbf(100_000_000_000, 125_000_000, 437_500_000), "qdisc tbf 7e4: root rate 100Gbit burst");
    go(tbf(1000, 1518, 13_662), "qdisc tbf 7e4: root rate 1Kbit burst 1518b");
}

#[test]
fn a_token_bucket_that_differs_is_corrected_and_one_that_is_not_ours_stays() {
    let ns = one_link("tbf");
    let mut kernel = ns.run(|| Kernel::host().unwrap());
    let plan = |object| Plan { host: vec![object], pod: Vec::new() };
    let (slow, fast) = (plan(tbf(1_000_000, 2018, 14_162)), plan(tbf(2_000_000, 2518, 14_662)));
    ns.sh("tc qdisc add dev a0 root handle 1: tbf rate 1mbit burst 2018 limit 14162");
    let difference = kernel.check(&slow).unwrap().unwrap().to_string();
    assert!(difference.starts_with("qdisc of a0: tbf 1: rate 1000000bit burst 201"), "{difference}");
    kernel.undo(&slow).unwrap();
    assert!(ns.sh("tc qdisc show dev a0 root").contains("tbf 1: root"));
    for (plan, rate) in [(&slow, "1Mbit"), (&fast, "2Mbit"), (&slow, "1Mbit")] {
        assert!(kernel.check(plan).unwrap().is_some());
        kernel.apply(plan).unwrap();
        assert_eq!(kernel.check(plan).unwrap(), None);
        let shown = ns.sh("tc qdisc show dev a0 root");
        assert!(
            shown.contains("tbf 7e4: root") && shown.contains(&format!("rate {rate} ")) && shown.lines().count() == 1,
            "{shown}"
        );
    }
    for change in
        ["rate 1mbit burst 3000 limit 14162", "rate 1mbit burst 2018 limit 20000", "rate 2mbit burst 2018 limit 14162"]
    {
        ns.sh(&format!("tc qdisc change dev a0 root handle 7e4: tbf {change}"));
        assert!(kernel.check(&slow).unwrap().is_some(), "{change}");
        kernel.apply(&slow).unwrap();
    }
    // A limit that is not known any more is undone all the same.
    kernel.undo(&fast).unwrap();
    assert!(ns.sh("tc qdisc show dev a0 root").contains("noqueue"));
}

fn redirect(side: Side) -> Object {
    Object::Redirect(Redirect { link: "a0".into(), side, priority: 2050, through: "shape-in".into() })
}

#[test]
fn links_to_wait_at_and_the_filters_that_lead_there_come_and_go() {
    let ns = one_link("ifb");
    comes_and_goes(
        &ns,
        Object::Ifb(Ifb { name: "shape-in".into() }),
        "ip -o link | sed 's/^[0-9]*//'",
        ": shape-in: <",
    );
    ns.sh("ip link add shape-in type ifb; ip link set shape-in up");
    for (side, name) in [(Side::Ingress, "ingress"), (Side::Egress, "egress")] {
        let list = format!("tc qdisc; tc filter show dev a0 {name}");
        comes_and_goes(&ns, redirect(side), &list, "mirred (Egress Redirect to device shape-in) stolen");
        // Not with what is on the other side of the qdisc that both share.
        let action = FilterAction::BpfMark(0x20, 0x7e0);
        let mark =
            Plan { host: vec![Object::Filter(Filter { link: "a0".into(), priority: 2049, action })], pod: Vec::new() };
        ns.run(|| Kernel::host().unwrap().apply(&mark).unwrap());
        comes_and_goes(&ns, redirect(side), &list, "mirred (Egress Redirect to device shape-in) stolen");
        ns.run(|| Kernel::host().unwrap().undo(&mark).unwrap());
    }
    // What bears the name and is something else stays.
    ns.sh("ip link del shape-in; ip link add shape-in type veth peer name other");
    let plan = Plan { host: vec![Object::Ifb(Ifb { name: "shape-in".into() })], pod: Vec::new() };
    let mut kernel = ns.run(|| Kernel::host().unwrap());
    assert_eq!(kernel.check(&plan).unwrap().unwrap().to_string(), "kind of shape-in: veth, not ifb");
    assert!(kernel.apply(&plan).is_err());
    kernel.undo(&plan).unwrap();
    assert!(ns.sh("ip link").contains("shape-in@other"));
}

/// The qdisc of kernels before 4.5.
#[test]
fn what_leaves_is_not_led_away_by_a_qdisc_for_what_arrives() {
    let ns = one_link("ingress");
    ns.sh("ip link add shape-in type ifb; tc qdisc add dev a0 ingress");
    let apply = |side| ns.run(|| Kernel::host().unwrap().apply(&Plan { host: vec![redirect(side)], pod: Vec::new() }));
    let e = apply(Side::Egress).unwrap_err().to_string();
    assert!(e.contains("the qdisc ingress of a0 holds no filters on what leaves"), "{e}");
    let filters = || ns.sh("tc filter show dev a0 parent ffff:").matches("mirred").count();
    assert_eq!(filters(), 0);
    apply(Side::Ingress).unwrap();
    assert_eq!(filters(), 1);
}

#[test]
fn a_redirect_leads_to_the_link_that_has_the_name_by_now() {
    let ns = one_link("ifb");
    ns.sh("ip link add shape-in type ifb; ip link add other type ifb; ip link set shape-in up");
    ns.sh("tc qdisc add dev a0 clsact; tc filter add dev a0 ingress prio 2050 protocol all u32 match u32 0 0 action mirred egress redirect dev other");
    let plan = Plan { host: vec![redirect(Side::Ingress)], pod: Vec::new() };
    let mut kernel = ns.run(|| Kernel::host().unwrap());
    assert!(kernel.check(&plan).unwrap().is_some());
    kernel.apply(&plan).unwrap();
    assert_eq!(kernel.check(&plan).unwrap(), None);
    assert!(ns.sh("tc filter show dev a0 ingress").contains("to device shape-in"));
}

#[test]
fn what_holds_two_links_to_one_bandwidth_is_tried_out() {
    let ns = Ns::new("shaper");
    ns.run(kernel::ifb).unwrap();
    assert_eq!(ns.sh("ip -o link | wc -l").trim(), "1");
}

#[test]
fn a_link_is_brought_up_with_its_mtu() {
    let ns = one_link("link");
    ns.sh("ip link set a0 down mtu 1280");
    let link = Link { name: "a0".into(), mtu: Some(1400) };
    let plan = Plan { host: vec![Object::Link(link)], pod: Vec::new() };
    let mut kernel = ns.run(|| Kernel::host().unwrap());
    assert_eq!(kernel.check(&plan).unwrap().unwrap().to_string(), "mtu of a0: 1280, not 1400");
    kernel.apply(&plan).unwrap();
    kernel.undo(&plan).unwrap();
    let seen = kernel.link("a0").unwrap().unwrap();
    assert_eq!((seen.mtu, seen.up), (1400, true));
    ns.sh("ip link del a0");
    let error = kernel.apply(&plan).unwrap_err();
    assert_eq!(error.to_string(), "ip link set a0 up mtu 1400: link a0: not found");
    assert!(error.is_absent());
}

#[test]
fn sysctls_are_of_the_namespace_that_the_plan_puts_them_in() {
    let (node, pod) = (Ns::new("node"), Ns::new("pod"));
    let forward = |value: &str| Object::Sysctl(Sysctl { path: "net/ipv4/ip_forward".into(), value: value.into() });
    let unknown = Object::Sysctl(Sysctl { path: "net/ipv4/no_such_thing".into(), value: "1".into() });
    let plan = Plan { host: vec![forward("0"), unknown.clone()], pod: vec![forward("1"), unknown] };
    node.sh("sysctl -qw net.ipv4.ip_forward=0");
    pod.sh("sysctl -qw net.ipv4.ip_forward=0");
    node.run(|| {
        let mut kernel = Kernel::host().unwrap();
        kernel.enter(pod.path()).unwrap();
        let difference = kernel.check(&plan).unwrap().unwrap();
        assert_eq!(difference.to_string(), "sysctl net/ipv4/ip_forward: 0, not 1");
        kernel.apply(&plan).unwrap();
        assert_eq!(kernel.check(&plan).unwrap(), None);
    });
    assert_eq!(node.sh("sysctl -n net.ipv4.ip_forward"), "0\n");
    assert_eq!(pod.sh("sysctl -n net.ipv4.ip_forward"), "1\n");
}

#[test]
fn links_are_seen_as_they_are() {
    let (node, pod) = (Ns::new("node"), Ns::new("pod"));
    node.sh(&format!("ip link add cali01 address 02:00:00:00:00:01 mtu 1400 group 7 type veth peer name eth0 netns {}; ip link set cali01 alias 'terway c1/eth0'", pod.name()));
    node.sh("ip link add eth1 address 02:00:00:00:00:02 type veth peer name up1; ip link set eth1 up");
    let mut kernel = node.run(|| Kernel::host().unwrap());
    let cali = kernel.link("cali01").unwrap().unwrap();
    assert_eq!((cali.mac, cali.mtu, cali.up, cali.group), (Some(Mac([2, 0, 0, 0, 0, 1])), 1400, false, 7));
    assert_eq!((cali.kind.as_deref(), cali.alias.as_deref()), (Some("veth"), Some("terway c1/eth0")));
    assert!(cali.peer.is_some() && cali.peer_netnsid.is_some());
    assert!(kernel.link("eth1").unwrap().unwrap().up);
    assert_eq!(kernel.link("eth9").unwrap(), None);
    let lo = kernel.link("lo").unwrap().unwrap();
    assert_eq!((lo.mac, lo.kind, lo.up), (None, None, true));
    assert_eq!(kernel.links().unwrap().len(), 4);
    assert_eq!(kernel.link_by_mac(Mac([2, 0, 0, 0, 0, 2])).unwrap().unwrap().name, "eth1");
    assert_eq!(kernel.link_by_mac(Mac([2, 0, 0, 0, 0, 1])).unwrap(), None);
    let look = kernel.look().unwrap();
    let pods: Vec<_> = look.pod_links().collect();
    assert_eq!(pods.len(), 1);
    assert_eq!((pods[0].0.to_string().as_str(), pods[0].1.name.as_str()), ("c1/eth0", "cali01"));
}

#[test]
fn the_node_is_known_by_the_addresses_of_its_default_routes() {
    let ns = one_link("default");
    let mut kernel = ns.run(|| Kernel::host().unwrap());
    assert!(kernel.default_source().unwrap().is_empty());
    ns.sh("ip addr add 203.0.113.9/32 dev a0; ip addr add 192.0.2.9/24 dev a0; ip addr add 192.0.2.10/24 dev a0");
    ns.sh("ip route add default via 192.0.2.253 dev a0 metric 100; ip addr add 198.51.100.1/24 dev a1; ip route add default dev a1 metric 200");
    assert_eq!(kernel.default_source().unwrap().to_string(), "192.0.2.9");
    ns.sh("ip route add default via 192.0.2.253 dev a0 metric 50 src 192.0.2.10");
    assert_eq!(kernel.default_source().unwrap().to_string(), "192.0.2.10");
    ns.sh("ip addr add 2001:db8::9/64 dev a0 nodad; ip -6 route add default via fe80::2 dev a0");
    assert_eq!(kernel.default_source().unwrap().to_string(), "192.0.2.10,2001:db8::9");
}

#[test]
fn rules_and_routes_are_listed_for_who_has_to_remember() {
    let ns = one_link("list");
    ns.sh("ip rule add priority 2048 fwmark 0x20/0x7e0 lookup 1003; ip rule add priority 2049 iif a0 blackhole");
    ns.sh("ip route add 192.0.2.5 dev a0 table 1000; ip route add 192.0.2.6 dev a0 table 1000; ip route add 192.0.2.7 dev a0");
    let mut kernel = ns.run(|| Kernel::host().unwrap());
    let rules = kernel.rules().unwrap();
    let printed: Vec<String> =
        rules.iter().filter(|r| (2048..=2049).contains(&r.priority)).map(|r| r.to_string()).collect();
    assert_eq!(
        printed,
        [
            "ip rule add priority 2048 from all fwmark 0x20/0x7e0 lookup 1003",
            "ip rule add priority 2049 from all iif a0 blackhole",
        ]
    );
    let to = |kernel: &mut Kernel| -> Vec<String> {
        kernel.routes(1000).unwrap().iter().map(|r| r.to.to_string()).collect()
    };
    assert_eq!(to(&mut kernel), ["192.0.2.5/32", "192.0.2.6/32"]);
    kernel.delete_rule(&rules.into_iter().find(|r| r.priority == 2048).unwrap()).unwrap();
    assert!(!ns.sh("ip rule").contains("fwmark"));
}

#[test]
fn the_doomed_die_together_and_nobody_else_dies() {
    let ns = one_link("doom");
    for n in 0..5 {
        ns.sh(&format!("ip link add d{n} type veth peer name e{n}"));
    }
    let mut kernel = ns.run(|| Kernel::host().unwrap());
    kernel.delete_doomed().unwrap();
    for name in ["d0", "d1", "d2", "d3"] {
        let ifindex = kernel.link(name).unwrap().unwrap().ifindex;
        kernel.doom(ifindex).unwrap();
    }
    let single = kernel.link("d4").unwrap().unwrap().ifindex;
    kernel.delete_link(single).unwrap();
    kernel.delete_link(single).unwrap();
    kernel.doom(single).unwrap();
    assert_eq!(kernel.links().unwrap().iter().filter(|l| l.group == ours::DOOMED_GROUP).count(), 4);
    kernel.delete_doomed().unwrap();
    let left: Vec<String> = kernel.links().unwrap().into_iter().map(|l| l.name).collect();
    assert_eq!(left, ["lo", "a1", "a0"]);
}

#[test]
fn this_kernel_marks_by_ebpf_and_the_trial_leaves_nothing() {
    let before = crate::sim::ns::sh("ip -o link | sort; tc qdisc");
    let found = Kernel::host().unwrap().marker();
    assert_eq!(found, (Marker::Bpf, "eBPF works".to_string()));
    assert_eq!(crate::sim::ns::sh("ip -o link | sort; tc qdisc"), before);
}

#[test]
fn the_kernel_s_own_words_are_in_the_error() {
    let ns = one_link("words");
    let unreachable = Route { onlink: false, ..route("192.0.2.0/24", Some("203.0.113.1"), None) };
    let plan = Plan { host: vec![Object::Route(unreachable)], pod: Vec::new() };
    let error = ns.run(|| Kernel::host().unwrap().apply(&plan).unwrap_err());
    assert_eq!(
        error.to_string(),
        "ip route replace 192.0.2.0/24 via 203.0.113.1 dev a0: network is unreachable (Nexthop has invalid gateway)"
    );
}

/// Runs the line, and listens until it is told. The kernel tells of links from another thread.
#[track_caller]
fn is_heard(ns: &Ns, watch: &Watch, line: &str, told: impl Fn(&Happening) -> bool) {
    watch.hear().unwrap();
    ns.sh(line);
    let mut heard = Vec::new();
    let is_told = within(SOON, || {
        heard.extend(watch.hear().unwrap());
        heard.iter().any(&told)
    });
    assert!(is_told, "{line}: {heard:?}");
}

/// What the line makes heard, once it is over.
fn heard(ns: &Ns, watch: &Watch, line: &str) -> Vec<Happening> {
    watch.hear().unwrap();
    ns.sh(line);
    // The kernel tells of links from another thread, a moment later.
    std::thread::sleep(std::time::Duration::from_millis(20));
    watch.hear().unwrap()
}

#[test]
fn what_others_take_away_is_heard() {
    let ns = one_link("heard");
    ns.sh("ip route add 198.51.100.1 dev a0 table 1000 proto 116; ip rule add priority 512 lookup 1000
           ip neigh add 198.51.100.1 lladdr 02:00:00:00:00:01 dev a0 nud permanent; ip addr add 198.51.100.2/32 dev a0
           tc qdisc add dev a0 clsact; tc filter add dev a0 ingress u32 match u32 0 0");
    let watch = ns.run(|| Watch::open().unwrap());
    let ifindex = ns.sh("ip -o link show a0 | cut -d: -f1").trim().parse().unwrap();
    let (to, addr) = ("198.51.100.1/32".parse().unwrap(), "198.51.100.1".parse().unwrap());
    let rule =
        Rule { priority: 512, family: Family::V4, from: None, mark: None, iif: None, action: RuleAction::Lookup(1000) };
    for (line, told) in [
        ("ip route del 198.51.100.1 table 1000", Happening::Route { table: 1000, to }),
        ("ip rule del priority 512", Happening::RuleGone(rule)),
        ("ip neigh del 198.51.100.1 dev a0", Happening::Neigh { ifindex, addr, gone: true }),
        (
            "ip neigh add 198.51.100.1 lladdr 02:00:00:00:00:02 dev a0 nud permanent",
            Happening::Neigh { ifindex, addr, gone: false },
        ),
        ("ip addr del 198.51.100.2/32 dev a0", Happening::AddrGone { ifindex }),
        ("tc filter del dev a0 ingress", Happening::Traffic { ifindex }),
        ("tc qdisc del dev a0 clsact", Happening::Traffic { ifindex }),
        ("sysctl -qw net.ipv4.conf.a0.rp_filter=2", Happening::Parameter(Scope::Link(ifindex))),
        ("sysctl -qw net.ipv4.conf.all.rp_filter=2", Happening::Parameter(Scope::All)),
        ("sysctl -qw net.ipv4.conf.default.rp_filter=2", Happening::Parameter(Scope::Default)),
    ] {
        is_heard(&ns, &watch, line, |happening| *happening == told);
    }
    for (line, spoilt) in [
        ("ip link set a0 mtu 1400", |link: &LinkNow| link.mtu == 1400),
        ("ip link set a0 address 02:00:00:00:00:0b", |link: &LinkNow| link.mac == Some(Mac([2, 0, 0, 0, 0, 0xb]))),
        ("ip link set a0 alias mine", |link: &LinkNow| link.alias.as_deref() == Some("mine")),
        ("ip link set a1 down", |link: &LinkNow| link.up && !link.running),
        ("ip link set a0 down", |link: &LinkNow| !link.up),
    ] as [(&str, fn(&LinkNow) -> bool); 5]
    {
        let told = |h: &Happening| matches!(h, Happening::Link(link) if link.ifindex == ifindex && spoilt(link));
        is_heard(&ns, &watch, line, told);
    }
    is_heard(&ns, &watch, "ip link del a0", |happening| *happening == Happening::LinkGone { ifindex });
}

#[test]
fn what_comes_or_is_not_ours_is_not_heard() {
    let ns = one_link("unheard");
    let watch = ns.run(|| Watch::open().unwrap());
    for line in [
        "ip route add 198.51.100.1 dev a0 table 1000 proto 116",
        "ip route add 198.51.100.3 dev a0; ip route del 198.51.100.3 dev a0",
        "ip rule add priority 512 lookup 1000",
        "ip neigh add 198.51.100.1 lladdr 02:00:00:00:00:01 dev a0 nud reachable",
        "ip addr add 198.51.100.2/32 dev a0",
        "tc qdisc add dev a0 clsact",
        "tc filter add dev a0 ingress u32 match u32 0 0",
    ] {
        assert_eq!(heard(&ns, &watch, line), [], "{line}");
    }
}
