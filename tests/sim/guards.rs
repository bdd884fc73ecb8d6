//! What keeps the VPC from carrying what is forged: by nftables, or, on a kernel without nf_tables, by filters of tc, which let through the
//! same and count the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

use ipnet::IpNet;
use terway::ip::Mac;

use super::fabric::{Drops, feed};
use super::ns::Ns;

pub enum Guards {
    Nft,
    Tc(Filters),
}

/// A port as the guards know it: the router's link, and whose MAC may speak there.
pub struct Passport<'a> {
    pub link: &'a str,
    pub mac: &'a Mac,
}

impl Guards {
    pub fn new(router: &Ns, vpc: &[IpNet]) -> Guards {
        if router.try_sh("nft add table inet trial && nft delete table inet trial") {
            nft(router, &rules(vpc));
            return Guards::Nft;
        }
        let guards = Filters::default();
        tc(router, &nowhere(vpc));
        Guards::Tc(guards)
    }

    /// Lets the MAC speak on its port.
    pub fn admit(&mut self, router: &Ns, port: &Passport) {
        match self {
            Guards::Nft => nft(router, &port.cards("add")),
            Guards::Tc(filters) => filters.admit(router, port),
        }
    }

    /// The port is going, with these addresses.
    pub fn dismiss(&mut self, router: &Ns, port: &Passport, addrs: &BTreeSet<IpAddr>) {
        match self {
            Guards::Nft => nft(router, &format!("{}{}", port.ownership("delete", addrs), port.cards("delete"))),
            Guards::Tc(filters) => filters.dismiss(router, port),
        }
    }

    /// Lets in what comes from these addresses.
    pub fn grant(&mut self, router: &Ns, port: &Passport, addrs: &BTreeSet<IpAddr>) {
        match self {
            Guards::Nft => nft(router, &port.ownership("add", addrs)),
            Guards::Tc(filters) => filters.grant(router, port, addrs),
        }
    }

    pub fn revoke(&mut self, router: &Ns, port: &Passport, addrs: &BTreeSet<IpAddr>) {
        match self {
            Guards::Nft => nft(router, &port.ownership("delete", addrs)),
            Guards::Tc(filters) => filters.revoke(router, port, addrs),
        }
    }

    /// The link was made anew: what hung on it is gone.
    pub fn renew(&mut self, router: &Ns, port: &Passport, addrs: &BTreeSet<IpAddr>) {
        if let Guards::Tc(filters) = self {
            filters.admit(router, port);
            filters.grant(router, port, addrs);
        }
    }

    pub fn drops(&self, router: &Ns) -> Drops {
        match self {
            Guards::Nft => counted_by_nft(router),
            Guards::Tc(filters) => filters.drops(router),
        }
    }
}

fn counted_by_nft(router: &Ns) -> Drops {
    let text = router.sh("nft -j list counters");
    let all: serde_json::Value = serde_json::from_str(&text).expect("nft prints JSON");
    let count = |name: &str| {
        let counters = all["nftables"].as_array().expect("a list").iter().map(|item| &item["counter"]);
        let mut named = counters.filter(|counter| counter["name"] == name);
        named.next().and_then(|counter| counter["packets"].as_u64()).expect("the counter is in our rules")
    };
    Drops {
        wrong_mac: count("wrong_mac"),
        wrong_ip: count("wrong_ip"),
        wrong_arp: count("wrong_arp"),
        nowhere: count("nowhere"),
    }
}

impl Passport<'_> {
    /// `nft` lines that let the MAC speak on this port, or no longer.
    fn cards(&self, verb: &str) -> String {
        let Passport { link, mac } = self;
        format!(
            "{verb} element inet vpc cards {{ {link} . {mac} }}\n\
             {verb} element arp vpc cards {{ {link} . {mac} . {mac} }}\n"
        )
    }

    /// `nft` lines that let packets from these addresses in, or no longer.
    fn ownership(&self, verb: &str, addrs: &BTreeSet<IpAddr>) -> String {
        let Passport { link, mac } = self;
        let element = |addr: &IpAddr| {
            let set = if addr.is_ipv4() { "owned4" } else { "owned6" };
            format!("{verb} element inet vpc {set} {{ {link} . {mac} . {addr} }}\n")
        };
        addrs.iter().map(element).collect()
    }
}

/// The anti-spoofing rules. ARP may name any sender address: nobody here believes it. What every IPv6 host mutters to its
/// link is not counted.
fn rules(vpc: &[IpNet]) -> String {
    let nowhere = |net: &IpNet| {
        let family = if net.addr().is_ipv4() { "ip" } else { "ip6" };
        format!("        {family} daddr {net} oifname out counter name nowhere drop\n")
    };
    let nowhere: String = vpc.iter().map(nowhere).collect();
    format!(
        "table inet vpc {{
    counter wrong_mac {{ }}
    counter wrong_ip {{ }}
    counter nowhere {{ }}
    set cards {{ type ifname . ether_addr; }}
    set owned4 {{ type ifname . ether_addr . ipv4_addr; }}
    set owned6 {{ type ifname . ether_addr . ipv6_addr; }}
    chain prerouting {{
        type filter hook prerouting priority raw;
        iifname {{ lo, out }} accept
        iifname . ether saddr . ip saddr @owned4 accept
        iifname . ether saddr . ip6 saddr @owned6 accept
        ip6 saddr {{ fe80::/10, :: }} ip6 daddr {{ fe80::/10, ff02::/16 }} iifname . ether saddr @cards accept
        ip6 saddr {{ fe80::/10, :: }} drop
        iifname . ether saddr != @cards counter name wrong_mac drop
        counter name wrong_ip drop
    }}
    chain forward {{
        type filter hook forward priority filter;
{nowhere}    }}
    chain output {{
        type filter hook output priority filter;
        icmpv6 type nd-redirect drop
    }}
}}
table arp vpc {{
    counter wrong_arp {{ }}
    set cards {{ type ifname . ether_addr . ether_addr; }}
    chain input {{
        type filter hook input priority filter;
        iifname out accept
        iifname . ether saddr . arp saddr ether @cards accept
        counter name wrong_arp drop
    }}
}}
"
    )
}

/// Filters of tc on the ports.
#[derive(Default)]
pub struct Filters {
    /// The number of the filter for each address of a port; numbers are not used again.
    granted: BTreeMap<(String, IpAddr), u32>,
    ports: BTreeSet<String>,
    last: u32,
    /// What ports that are gone had counted.
    before: Drops,
}

/// Priorities of the filters that drop and count, in the order of [`Drops`]' fields. Of one protocol each, since tc wants it so.
const WRONG_MAC: [u64; 2] = [21, 23];
const WRONG_IP: [u64; 2] = [20, 22];
const WRONG_ARP: [u64; 1] = [31];
const NOWHERE: [u64; 2] = [40, 41];

impl Filters {
    fn admit(&mut self, router: &Ns, port: &Passport) {
        let Passport { link, mac } = port;
        self.granted.retain(|(of, _), _| of != link);
        self.ports.insert(link.to_string());
        let add = |side: &str, rest: String| format!("filter add dev {link} {side} {rest}\n");
        let mut lines = format!("qdisc add dev {link} clsact\n");
        for src in ["fe80::/10", "::/128"] {
            for dst in ["fe80::/10", "ff02::/16"] {
                let words = format!("src_mac {mac} src_ip {src} dst_ip {dst} action pass");
                lines += &add("ingress", format!("protocol ipv6 prio 10 flower {words}"));
            }
            lines += &add("ingress", format!("protocol ipv6 prio 11 flower src_ip {src} action drop"));
        }
        for (protocol, [wrong_ip, wrong_mac]) in [("ip", [20, 21]), ("ipv6", [22, 23])] {
            lines += &add("ingress", format!("protocol {protocol} prio {wrong_ip} flower src_mac {mac} action drop"));
            lines += &add("ingress", format!("protocol {protocol} prio {wrong_mac} matchall action drop"));
        }
        lines += &add("ingress", format!("protocol arp prio 30 flower src_mac {mac} arp_sha {mac} action pass"));
        lines += &add("ingress", "protocol arp prio 31 matchall action drop".into());
        lines += &add("egress", "protocol ipv6 prio 1 flower ip_proto icmpv6 type 137 action drop".into());
        tc(router, &lines);
    }

    fn grant(&mut self, router: &Ns, port: &Passport, addrs: &BTreeSet<IpAddr>) {
        let Passport { link, mac } = port;
        let mut lines = String::new();
        for addr in addrs {
            self.last += 1;
            let (protocol, prio) = family(addr);
            let words = format!("handle {:#x} flower src_mac {mac} src_ip {addr} action pass", self.last);
            writeln!(lines, "filter add dev {link} ingress protocol {protocol} prio {prio} {words}").expect("a String");
            self.granted.insert((link.to_string(), *addr), self.last);
        }
        tc(router, &lines);
    }

    fn revoke(&mut self, router: &Ns, port: &Passport, addrs: &BTreeSet<IpAddr>) {
        let mut lines = String::new();
        for addr in addrs {
            let Some(handle) = self.granted.remove(&(port.link.to_string(), *addr)) else { continue };
            let (protocol, prio) = family(addr);
            let words = format!("protocol {protocol} prio {prio} handle {handle:#x} flower");
            writeln!(lines, "filter del dev {} ingress {words}", port.link).expect("a String");
        }
        // With its link gone, they are too.
        let _ = feed(router, &["tc", "-force", "-batch", "-"], std::process::Stdio::null(), &lines);
    }

    fn dismiss(&mut self, router: &Ns, port: &Passport) {
        let counted = counted_on(router, port.link, "ingress");
        self.before.wrong_mac += sum(&counted, &WRONG_MAC);
        self.before.wrong_ip += sum(&counted, &WRONG_IP);
        self.before.wrong_arp += sum(&counted, &WRONG_ARP);
        self.ports.remove(port.link);
        self.granted.retain(|(of, _), _| of != port.link);
    }

    fn drops(&self, router: &Ns) -> Drops {
        let mut drops = Drops { nowhere: sum(&counted_on(router, "out", "egress"), &NOWHERE), ..self.before };
        for link in &self.ports {
            let counted = counted_on(router, link, "ingress");
            drops.wrong_mac += sum(&counted, &WRONG_MAC);
            drops.wrong_ip += sum(&counted, &WRONG_IP);
            drops.wrong_arp += sum(&counted, &WRONG_ARP);
        }
        drops
    }
}

fn family(addr: &IpAddr) -> (&'static str, u32) {
    if addr.is_ipv4() { ("ip", 1) } else { ("ipv6", 2) }
}

fn nowhere(vpc: &[IpNet]) -> String {
    let filter = |net: &IpNet| {
        let (protocol, n) = family(&net.addr());
        let prio = NOWHERE[n as usize - 1];
        format!("filter add dev out egress protocol {protocol} prio {prio} flower dst_ip {net} action drop\n")
    };
    format!("qdisc add dev out clsact\n{}", vpc.iter().map(filter).collect::<String>())
}

/// Packets that each priority's filters have dropped. A link that is gone has dropped none.
fn counted_on(router: &Ns, link: &str, side: &str) -> Vec<(u64, u64)> {
    let text = router.sh(&format!("tc -s -j filter show dev {link} {side} 2>/dev/null || echo '[]'"));
    let all: serde_json::Value = serde_json::from_str(&text).expect("tc prints JSON");
    let filters = all.as_array().expect("a list").iter();
    let actions = filters.filter_map(|f| Some((f["pref"].as_u64()?, f["options"]["actions"].as_array()?)));
    actions.map(|(pref, actions)| (pref, actions.iter().filter_map(|a| a["stats"]["packets"].as_u64()).sum())).collect()
}

fn sum(counted: &[(u64, u64)], of: &[u64]) -> u64 {
    counted.iter().filter(|(pref, _)| of.contains(pref)).map(|(_, packets)| packets).sum()
}

/// Loads `nft` lines in the namespace, all or none.
fn nft(ns: &Ns, lines: &str) {
    feed(ns, &["nft", "-f", "-"], std::process::Stdio::piped(), lines)
        .unwrap_or_else(|e| panic!("{}: {e}:\n{lines}", ns.name()));
}

fn tc(ns: &Ns, lines: &str) {
    feed(ns, &["tc", "-batch", "-"], std::process::Stdio::piped(), lines)
        .unwrap_or_else(|e| panic!("{}: {e}:\n{lines}", ns.name()));
}
