//! Chains and sets, walked as ipset(8), iptables(8) and iptables-extensions(8) say, against the specifications.
//!
//! `POLICY_SEED=17 cargo test --lib policy::walked` replays one seed, `POLICY_SEEDS=1000` runs more of them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::fuzz::{Asked, walk};
use crate::chains::{Chains, FAMILIES, Family, Led, Members, Memory, Use, chains, sets};
use crate::cluster::Name;
use crate::rules::{DIRECTIONS, Direction, ICMP, ICMPV6, Packet, Placed, Pods, Rules};

const SEEDS: u64 = 10;
const PACKETS: u32 = 150;

#[derive(Clone, Copy, Debug)]
struct Seen {
    src: IpAddr,
    dst: IpAddr,
    /// By which pod's link it comes.
    by: u16,
    protocol: u8,
    /// Of ICMP type and code, in the second.
    ports: (u16, u16),
    is_reply: bool,
    is_related: bool,
    /// IPVS leads it: it is for a Service, or on its way from there.
    is_led: bool,
}

impl Seen {
    /// Its answer; none: conntrack knows of no such thing.
    fn answered(self) -> Option<Seen> {
        let ports = match self.protocol {
            ICMP | ICMPV6 => {
                let [asked, code] = self.ports.1.to_be_bytes();
                let answer = match (self.protocol, asked) {
                    (ICMP, 8) => 0,
                    (ICMP, 13 | 15 | 17) => asked + 1,
                    (ICMPV6, 128 | 139) => asked + 1,
                    _ => return None,
                };
                (0, u16::from_be_bytes([answer, code]))
            }
            _ => (self.ports.1, self.ports.0),
        };
        Some(Seen { src: self.dst, dst: self.src, ports, is_reply: true, ..self })
    }
}

struct Kernel {
    sets: BTreeMap<String, Members>,
    chains: Chains,
    is_v6: bool,
}

#[derive(PartialEq)]
enum End {
    Drop,
    Return,
}

impl Kernel {
    /// Whatever is remembered, chains are the same.
    fn of(rules: &Rules, pods: &Pods, family: Family, memory: &mut Memory) -> Kernel {
        let sets = sets(rules, pods, family);
        let names: BTreeMap<Use, String> =
            sets.keys().enumerate().map(|(n, used)| (*used, format!("TERWAY-P-{n}"))).collect();
        let led = Led::by(family, |name| Ok(name.ends_with("CLUSTER-IP"))).unwrap();
        let forgetful = chains(rules, pods, &sets, &names, family, &led, &mut Memory::default());
        let chains = chains(rules, pods, &sets, &names, family, &led, memory);
        assert_eq!(chains, forgetful);
        assert!(chains.keys().all(|name| name.len() <= 28));
        let sets = sets.into_iter().map(|(used, members)| (names[&used].clone(), members)).collect();
        Kernel { sets, chains, is_v6: family == Family::V6 }
    }

    fn passes(&self, hook: &str, seen: &Seen) -> bool {
        !self.chains.contains_key(hook) || self.run(hook, seen) == End::Return
    }

    /// A chain that was gone to returns to where the last jump was.
    fn run(&self, chain: &str, seen: &Seen) -> End {
        for line in self.chains[chain].iter() {
            let Some(target) = self.target(line, seen) else { continue };
            match target {
                ("-j", "DROP") => return End::Drop,
                ("-j", "RETURN") => return End::Return,
                ("-j", "LOG") => {}
                ("-j", chain) => {
                    if self.run(chain, seen) == End::Drop {
                        return End::Drop;
                    }
                }
                (_, chain) => return self.run(chain, seen),
            }
        }
        End::Return
    }

    /// Where a line leads, if it matches.
    fn target<'a>(&self, line: &'a str, seen: &Seen) -> Option<(&'a str, &'a str)> {
        let words: Vec<&str> = line.split_whitespace().collect();
        assert!(words.len() < 128, "more words than iptables-restore(8) takes: {line}");
        let (mut at, mut is_not, mut protocol) = (0, false, None);
        while at < words.len() {
            let next = |n: usize| words[at + n];
            let (holds, used) = match words[at] {
                "!" => {
                    is_not = true;
                    at += 1;
                    continue;
                }
                "-s" => (is_masked(seen.src, next(1)), 2),
                "-d" => (is_masked(seen.dst, next(1)), 2),
                "-i" => {
                    let link = veth(seen.by);
                    (next(1).strip_suffix('+').map_or(link == next(1), |start| link.starts_with(start)), 2)
                }
                "-p" => {
                    protocol = (!is_not).then(|| next(1).parse::<u8>().unwrap());
                    (next(1).parse() == Ok(seen.protocol), 2)
                }
                "-m" => {
                    at += 2;
                    continue;
                }
                "--match-set" if next(1).starts_with("KUBE-") => (seen.is_led && next(2) == "dst,dst", 3),
                "--src-type" => (!seen.is_led, 2),
                "--match-set" => {
                    let addr = if next(2) == "src" { seen.src } else { seen.dst };
                    (is_in(&self.sets[next(1)], addr), 3)
                }
                "--sports" | "--dports" => {
                    assert!(matches!(protocol, Some(6 | 17 | 132)), "multiport needs a protocol: {line}");
                    let port = if words[at] == "--sports" { seen.ports.0 } else { seen.ports.1 };
                    assert!(next(1).split([',', ':']).count() <= 15, "too many: {line}");
                    let mut ranges = next(1).split(',').map(|r| r.split_once(':').unwrap_or((r, r)));
                    (ranges.any(|(a, b)| (a.parse().unwrap()..=b.parse().unwrap()).contains(&port)), 2)
                }
                kind @ ("--icmp-type" | "--icmpv6-type") => {
                    assert_eq!(
                        (kind == "--icmpv6-type", protocol),
                        (self.is_v6, Some(if self.is_v6 { 58 } else { 1 }))
                    );
                    let [r#type, code] = seen.ports.1.to_be_bytes();
                    let (of, with) = next(1).split_once('/').map_or((next(1), None), |(t, c)| (t, Some(c)));
                    (of.parse() == Ok(r#type) && with.is_none_or(|c| c.parse() == Ok(code)), 2)
                }
                "--ctdir" => (seen.is_reply, 2),
                "--ctstate" => (seen.is_related, 2),
                "-j" | "-g" => return Some((words[at], words[at + 1])),
                "--limit" | "--limit-burst" => (true, 2),
                other => panic!("{other} in {line}"),
            };
            if holds == is_not {
                return None;
            }
            (at, is_not) = (at + used, false);
        }
        panic!("{line} leads nowhere")
    }
}

fn is_masked(addr: IpAddr, text: &str) -> bool {
    let (base, mask) = text.split_once('/').unwrap_or((text, ""));
    let bits = |addr: IpAddr| match addr {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => v6.into(),
    };
    let first = |length: u32| u128::MAX << (128 - length);
    let mask = mask.parse().map_or_else(|_| mask.parse().map_or(u128::MAX, first), bits);
    bits(addr) & mask == bits(base.parse().unwrap())
}

/// Prefix lengths are tried from the longest on; a `nomatch` that is met ends it.
fn is_in(set: &Members, addr: IpAddr) -> bool {
    let longest = set.iter().filter(|(net, _)| net.contains(&addr)).max_by_key(|(net, _)| net.prefix_len());
    longest.is_some_and(|(_, is_in)| *is_in)
}

fn veth(seat: u16) -> String {
    format!("cali{:x}{seat:010x}", seat % 16)
}

/// Where the pods of a world are: nobody's rules are about these addresses but by wide prefixes.
fn placed(rules: &Rules) -> Pods {
    let place =
        |n: u16| Placed::new(n, [IpAddr::from([10, 99, 0, n as u8]), IpAddr::from([0xfd99, 0, 0, 0, 0, 0, 0, n])]);
    rules.pods.keys().zip(1..).map(|(name, n)| (name.clone(), place(n).by([veth(n)]))).collect()
}

/// The packet between the pod and the other side, and the chain that it meets.
fn seen(asked: &Asked, pods: &Pods) -> Option<Seen> {
    let placed = &pods[&asked.pod];
    let own = *placed.ips.iter().find(|addr| addr.is_ipv4() == asked.other.is_ipv4())?;
    let strange = if asked.other.is_ipv4() { ICMPV6 } else { ICMP };
    let ports = asked.packet.ports?;
    if [0, strange].contains(&asked.packet.protocol) {
        return None;
    }
    let (src, dst) = match asked.direction {
        Direction::Ingress => (asked.other, own),
        Direction::Egress => (own, asked.other),
    };
    let (by, protocol) = (placed.seat, asked.packet.protocol);
    Some(Seen { src, dst, by, protocol, ports, is_reply: false, is_related: false, is_led: false })
}

#[test]
fn chains_and_sets_say_what_the_specifications_say() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let (mut judged, mut denied, mut answers) = (0u64, 0u64, 0u64);
    let seeds = number("POLICY_SEED").map_or(0..number("POLICY_SEEDS").unwrap_or(SEEDS), |seed| seed..seed + 1);
    for seed in seeds {
        let mut memories = FAMILIES.map(|_| Memory::default());
        walk(seed, PACKETS, &mut |_, rules, asked| {
            let mut rules = rules.clone();
            // Many pods, in every other world.
            let first = rules.pods.iter().next().map(|(_, sets)| *sets);
            for n in (0..40).filter(|_| seed % 2 == 1) {
                rules.pods.extend(first.map(|sets| (Name::from(format!("z/{n}")), sets)));
            }
            let pods = placed(&rules);
            let [v4, v6] = &mut memories;
            let kernels = [(Family::V4, v4), (Family::V6, v6)].map(|(family, m)| Kernel::of(&rules, &pods, family, m));
            for asked in asked {
                let Some(seen) = seen(asked, &pods) else { continue };
                let kernel = &kernels[usize::from(seen.src.is_ipv6())];
                let context = || format!("POLICY_SEED={seed}: {seen:?}\n{:#?}\n{:#?}", kernel.chains, kernel.sets);
                assert_eq!(kernel.passes("TERWAY-P-FORWARD", &seen), asked.allow, "{}", context());
                let led = Seen { is_led: true, ..seen };
                assert_eq!(kernel.passes("TERWAY-P-OUTPUT", &led), asked.allow, "led by IPVS: {}", context());
                assert!(kernel.passes("TERWAY-P-INPUT", &led), "to a Service: {}", context());
                if asked.direction == Direction::Egress {
                    assert_eq!(kernel.passes("TERWAY-P-INPUT", &seen), asked.allow, "to the node: {}", context());
                    let near = Seen { src: "fe80::7".parse().unwrap(), ..seen };
                    if seen.src.is_ipv6() {
                        assert_eq!(kernel.passes("TERWAY-P-INPUT", &near), asked.allow, "nearby: {}", context());
                        assert!(kernel.passes("TERWAY-P-INPUT", &Seen { by: 0, ..near }), "of nobody: {}", context());
                    }
                }
                if let Some(answer) = seen.answered() {
                    assert_eq!(kernel.passes("TERWAY-P-FORWARD", &answer), asked.allow, "answer of {}", context());
                    answers += 1;
                    if asked.direction == Direction::Egress {
                        assert_eq!(
                            kernel.passes("TERWAY-P-OUTPUT", &answer),
                            asked.allow,
                            "of the node: {}",
                            context()
                        );
                        let error = Seen { is_related: true, ..answer };
                        let is_icmp = [ICMP, ICMPV6].contains(&answer.protocol);
                        assert!(!is_icmp || kernel.passes("TERWAY-P-OUTPUT", &error), "an error: {}", context());
                    } else {
                        assert!(kernel.passes("TERWAY-P-INPUT", &answer), "the node has asked: {}", context());
                    }
                }
                judged += 1;
                denied += u64::from(!asked.allow);
            }
            let own = pods.values().flat_map(|placed| placed.ips.iter().copied());
            for addr in own.filter(|addr| addr.is_ipv4()) {
                let seen = Seen {
                    src: addr,
                    dst: addr,
                    by: 0,
                    protocol: 6,
                    ports: (1, 80),
                    is_reply: false,
                    is_related: false,
                    is_led: false,
                };
                assert!(kernels[0].passes("TERWAY-P-FORWARD", &seen), "a pod reaches itself");
            }
        });
    }
    assert!(number("POLICY_SEED").is_some() || denied > 1000 && judged - denied > 1000 && answers > 1000);
    println!("{judged} packets and {answers} answers, {denied} denied");
}

#[test]
fn sets_have_the_longest_prefix_and_no_member_twice() {
    let mut compared = 0;
    for seed in 0..20 {
        walk(seed, 0, &mut |_, rules, _| {
            for family in FAMILIES {
                let sets = sets(rules, &Pods::new(), family);
                for peer in rules.peers.keys() {
                    let empty = Members::new();
                    let members = sets.get(&Use::Peer(*peer)).unwrap_or(&empty);
                    assert!(members.keys().all(|net| net.prefix_len() > 0), "{members:?}");
                    let nets = rules.prefixes.keys().filter(|net| Family::of(&net.addr()) == family);
                    for net in nets.flat_map(|net| [net.addr(), IpNet::broadcast(net)]) {
                        let has = rules.classes.get(&rules.class(net)).is_some_and(|peers| peers.contains(peer));
                        assert_eq!(is_in(members, net), has, "seed {seed}: {net} in {members:?}");
                        compared += 1;
                    }
                }
            }
        });
    }
    assert!(compared > 1000);
}

#[test]
fn a_pod_that_nobody_knows_any_more_hears_its_node_alone() {
    let rules = Rules::default();
    let own: IpAddr = [10, 0, 0, 1].into();
    let pods = Pods::from([("s/p".into(), Placed::new(0, [own]))]);
    let kernel = Kernel::of(&rules, &pods, Family::V4, &mut Memory::default());
    let other = IpAddr::from([10, 0, 0, 2]);
    let ports = (1, 80);
    let to_it =
        Seen { src: other, dst: own, by: 0, protocol: 6, ports, is_reply: false, is_related: false, is_led: false };
    let from_it = Seen { src: own, dst: other, ..to_it };
    for (hook, seen, passes) in [
        ("TERWAY-P-FORWARD", to_it, false),
        ("TERWAY-P-FORWARD", from_it, false),
        ("TERWAY-P-INPUT", from_it, false),
        ("TERWAY-P-INPUT", from_it.answered().unwrap(), true),
        ("TERWAY-P-OUTPUT", to_it, true),
        ("TERWAY-P-OUTPUT", Seen { is_led: true, ..to_it }, false),
    ] {
        assert_eq!(kernel.passes(hook, &seen), passes, "{hook} {seen:?}");
    }
}

#[test]
fn who_has_no_rules_costs_no_chain() {
    let rules = Rules::default();
    for family in FAMILIES {
        let kernel = Kernel::of(&rules, &placed(&rules), family, &mut Memory::default());
        assert!(kernel.chains.is_empty() && kernel.sets.is_empty());
    }
    let packet = Packet { protocol: 6, ports: Some((1, 80)) };
    assert!(
        DIRECTIONS
            .iter()
            .all(|direction| rules.answer("s/p", *direction, IpAddr::from([10, 0, 0, 1]), &packet).is_none())
    );
}
