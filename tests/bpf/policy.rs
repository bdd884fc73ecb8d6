//! Network policies: the programs over packets that no link has carried, and what is written for them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::thread::{CpuSet, sched_getcpu, sched_setaffinity};
use terway::cluster::Name;
use terway::kernel::bpf::load::{Aligned, Program};
use terway::kernel::bpf::monitor::Monitor;
use terway::kernel::bpf::pin::{self, Age};
use terway::kernel::bpf::policy::{PROGRAMS, Policy, remove};
use terway::ours;
use terway::rules::{
    Block, Cell, ClassId, Direction, Entry, FRAGMENTS, ICMP, ICMPV6, Key, Origin, Placed, PodSets, Pods,
    Program as Said, Renderer, RuleSet, Rules, SCTP, Set, TCP, Tier, UDP, Write,
};
use terway::verdict::{Event, Sizes, Why};

use super::maps::{BpfFs, rewrite};
use super::packets::{ACK, Packet, SYN};
use crate::sim::skip;
use crate::sim::traffic::{LOST, Place};
use crate::vm::without_bpf;

static MARKED: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/policy_marked.o")));

const SIZES: Sizes = Sizes { seats: 16, classes: 64, pairs: 64, programs: 256, tracks: 4096 };
const SEAT: u16 = 7;
const POD: &str = "10.0.0.1";
const POD6: &str = "fd00::1";
const OTHER: &str = "10.0.0.9";
const OTHER6: &str = "fd00::9";
const ROUTER: &str = "10.0.0.254";

/// Protocol and port; of ICMP its type × 256 + code. None is the table of fragments.
type Allowed = (u8, Option<u16>);

/// One pod, and the programs.
struct Bench {
    policy: Policy,
    rules: Rules,
    pods: Pods,
    programs: [Program; 2],
    number: u32,
    fs: BpfFs,
}

fn name() -> Name {
    Name::from("s/p")
}

fn cell(allow: bool) -> Cell {
    Cell { allow, log: false, origin: Origin::Free }
}

fn said(allowed: &[Allowed]) -> Said {
    let key = |(protocol, port): &Allowed| Key {
        protocol: *protocol,
        table: if port.is_some() { 0 } else { FRAGMENTS },
        block: port.map_or(Block::ALL, |port| Block::around(port, 16)),
    };
    let entries: BTreeMap<Key, Entry> = allowed.iter().map(|at| (key(at), Entry::Answer(cell(true)))).collect();
    Said { entries: entries.into_iter().collect(), other: cell(false) }
}

impl Bench {
    fn new(tag: &str) -> Bench {
        Bench::sized(tag, &SIZES)
    }

    fn sized(tag: &str, sizes: &Sizes) -> Bench {
        let fs = BpfFs::new(tag);
        let (policy, age) = Policy::open_as(fs.path(), sizes, &MARKED.0).unwrap();
        assert_eq!(age, Age::New);
        let linked = policy.linked().unwrap();
        let programs = PROGRAMS.map(|program| linked.load(program.name()).unwrap());
        let pods = Pods::from([(name(), placed(SEAT, POD))]);
        Bench { policy, rules: Rules::default(), pods, programs, number: 0, fs }
    }

    /// The pod may exchange this and nothing else; None: whatever it likes.
    fn say(&mut self, ingress: Option<&[Allowed]>, egress: Option<&[Allowed]>) {
        let before = self.rules.pods.get(&name()).copied();
        let mut writes = Vec::new();
        let mut set = |allowed: Option<&[Allowed]>| {
            self.number += 1;
            let end = Some(cell(false));
            let tiers = allowed.map(|_| Tier { rules: Box::default(), end }).into_iter().collect();
            let program = allowed.map_or(Said { entries: Box::default(), other: cell(true) }, said);
            writes.push(Write::Program(self.number, Some(Arc::new(program))));
            let rules = Arc::new(RuleSet { tiers });
            writes.push(Write::Set(self.number, Some(Set { rules, program: self.number })));
            self.number
        };
        let sets = PodSets { ingress: set(ingress), egress: set(egress) };
        writes.push(Write::Pod(name(), Some(sets)));
        for set in before.iter().flat_map(|sets| [sets.ingress, sets.egress]) {
            writes.extend([Write::Set(set, None), Write::Program(set, None)]);
        }
        self.write(&writes);
    }

    fn write(&mut self, writes: &[Write]) {
        writes.iter().for_each(|write| self.rules.apply(write));
        self.policy.apply(writes, &self.rules, &self.pods).unwrap();
    }

    fn passes(&self, packet: &Packet) -> bool {
        let is_to_pod = [POD, POD6].contains(&packet.dst.to_string().as_str());
        passes(&self.programs[usize::from(!is_to_pod)], &packet.frame(), SEAT)
    }

    #[track_caller]
    fn pass(&self, packet: &Packet) {
        assert!(self.passes(packet));
    }

    #[track_caller]
    fn drop(&self, packet: &Packet, why: Why) {
        let before = self.policy.counts().unwrap().of(why);
        assert!(!self.passes(packet));
        let after = self.policy.counts().unwrap().of(why);
        assert_eq!(after.iter().sum::<u64>(), before.iter().sum::<u64>() + 1, "{:?}", self.policy.counts());
    }
}

fn placed(seat: u16, ip: &str) -> Placed {
    Placed::new(seat, [ip.parse().unwrap()])
}

fn passes(program: &Program, frame: &[u8], seat: u16) -> bool {
    match program.run(frame, seat.into(), 1).unwrap().0 {
        -1 => true,
        2 => false,
        other => panic!("a verdict of {other}"),
    }
}

fn to_pod(ports: (u16, u16), flags: u8) -> Packet {
    Packet::tcp(OTHER, POD, ports, flags)
}

fn from_pod(ports: (u16, u16), flags: u8) -> Packet {
    Packet::tcp(POD, OTHER, ports, flags)
}

#[test]
fn answers_pass_and_what_is_not_asked_for_does_not() {
    let mut bench = Bench::new("answers");
    bench.say(Some(&[]), Some(&[(TCP, Some(443)), (UDP, Some(53)), (SCTP, Some(9)), (47, Some(0))]));
    bench.drop(&to_pod((443, 1000), SYN), Why::Rules);
    bench.drop(&from_pod((1000, 80), SYN), Why::Rules);
    bench.pass(&from_pod((1000, 443), SYN));
    bench.pass(&to_pod((443, 1000), SYN | ACK));
    bench.pass(&to_pod((443, 1000), ACK));
    bench.pass(&from_pod((1000, 443), ACK));
    // Who begins from the other side is told apart by that, and does the connection no harm.
    bench.drop(&to_pod((443, 1000), SYN), Why::Rules);
    bench.pass(&to_pod((443, 1000), ACK));
    // Nobody has seen these begin: they can only be answers, and of what the pod may ask.
    bench.pass(&to_pod((443, 1001), ACK));
    bench.pass(&to_pod((443, 1002), SYN | ACK));
    bench.drop(&to_pod((80, 1001), ACK), Why::Rules);
    bench.drop(&to_pod((80, 1002), SYN | ACK), Why::Rules);
    for (protocol, port) in [(UDP, 53), (SCTP, 9), (47, 0)] {
        let (here, there) = if port == 0 { (0, 0) } else { (1000, port) };
        bench.drop(&Packet::ports(OTHER, POD, protocol, (there, here)), Why::Rules);
        bench.pass(&Packet::ports(POD, OTHER, protocol, (here, there)));
        bench.pass(&Packet::ports(OTHER, POD, protocol, (there, here)));
    }
    let counts = bench.policy.counts().unwrap();
    assert_eq!(counts.of(Why::TrackNew), [2, 4], "{counts:?}");
    let pressure = bench.policy.pressure().unwrap();
    assert_eq!((pressure.flows, pressure.room, pressure.evicted), (6, 4096, 0));
}

#[test]
fn a_flow_follows_its_policy_from_the_next_packet_on() {
    let mut bench = Bench::new("follows");
    bench.say(Some(&[(TCP, Some(80)), (UDP, Some(53))]), None);
    bench.pass(&to_pod((1000, 80), SYN));
    bench.pass(&from_pod((80, 1000), SYN | ACK));
    bench.pass(&Packet::ports(OTHER, POD, UDP, (1000, 53)));
    bench.pass(&Packet::ports(POD, OTHER, UDP, (53, 1000)));
    // The pod may say what it likes, but not go on with this.
    bench.say(Some(&[]), None);
    bench.drop(&from_pod((80, 1000), ACK), Why::Flow);
    bench.drop(&to_pod((1000, 80), ACK), Why::Flow);
    bench.drop(&Packet::ports(POD, OTHER, UDP, (53, 1000)), Why::Flow);
    bench.drop(&Packet::ports(OTHER, POD, UDP, (1000, 53)), Why::Flow);
    bench.drop(&to_pod((1000, 80), SYN), Why::Flow);
    // A connection that it begins itself is another one.
    bench.pass(&from_pod((80, 1000), SYN));
    bench.pass(&to_pod((1000, 80), SYN | ACK));
    bench.say(Some(&[(UDP, Some(53))]), Some(&[]));
    bench.drop(&to_pod((1000, 80), ACK), Why::Flow);
    bench.pass(&Packet::ports(OTHER, POD, UDP, (1000, 53)));
    bench.pass(&Packet::ports(POD, OTHER, UDP, (53, 1000)));
    let asked = bench.policy.counts().unwrap().of(Why::TrackAsked);
    assert!(asked.iter().sum::<u64>() >= 4, "{asked:?}");
}

#[test]
fn a_policy_that_comes_later_knows_who_began() {
    let mut bench = Bench::new("later");
    bench.say(None, None);
    bench.pass(&to_pod((1000, 80), SYN));
    bench.pass(&to_pod((1000, 80), ACK));
    bench.pass(&from_pod((1001, 443), SYN));
    bench.pass(&Packet::ports(OTHER, POD, UDP, (1000, 53)));
    bench.pass(&Packet::ports(POD, OTHER, UDP, (1001, 53)));
    bench.pass(&Packet::ports(OTHER, POD, UDP, (1002, 53)).with_part(0x2000));
    bench.pass(&Packet::ports(OTHER, POD, UDP, (1002, 53)).with_part(3));
    bench.say(Some(&[]), None);
    bench.drop(&to_pod((1000, 80), ACK), Why::Flow);
    bench.drop(&from_pod((80, 1000), ACK), Why::Flow);
    bench.drop(&Packet::ports(OTHER, POD, UDP, (1000, 53)), Why::Flow);
    bench.pass(&to_pod((443, 1001), ACK));
    bench.pass(&Packet::ports(OTHER, POD, UDP, (53, 1001)));
}

#[test]
fn a_flow_without_an_end_is_over_after_a_while() {
    let mut bench = Bench::new("idle");
    bench.say(Some(&[]), Some(&[(UDP, Some(53)), (TCP, Some(80)), (47, Some(0)), (ICMP, Some(8 << 8))]));
    let asks = [
        (Packet::ports(POD, OTHER, UDP, (1000, 53)), Packet::ports(OTHER, POD, UDP, (53, 1000)), 128),
        (Packet::ports(POD, OTHER, 47, (0, 0)), Packet::ports(OTHER, POD, 47, (0, 0)), 512),
        (Packet::echo(POD, OTHER, 8, 1), Packet::echo(OTHER, POD, 0, 1), 32),
    ];
    let tracks = pin::open(bench.policy.folder(), "tracks").unwrap().unwrap();
    // So many units of 2^30 ns ago there was the last packet.
    let age = |units: u32| {
        rewrite(&tracks, |value| {
            let last = u32::from_ne_bytes(value[8..12].try_into().unwrap());
            value[8..12].copy_from_slice(&last.wrapping_sub(units).to_ne_bytes());
        });
    };
    for (ask, answer, idle) in &asks {
        bench.pass(ask);
        age(idle - 12);
        // Which keeps it.
        bench.pass(answer);
        age(idle - 12);
        bench.pass(answer);
        // Another CPU has seen a later one.
        age(1u32.wrapping_neg());
        bench.pass(answer);
        age(idle + 1);
        bench.drop(answer, Why::Rules);
    }
    bench.pass(&from_pod((1000, 80), SYN));
    age(1_000_000);
    bench.pass(&to_pod((80, 1000), ACK));
    // What is denied lasts as long as who opened it goes on, and not by who answers.
    let (ask, answer, idle) = &asks[0];
    bench.say(None, Some(&[(UDP, Some(53))]));
    bench.pass(ask);
    bench.say(None, Some(&[]));
    bench.drop(answer, Why::Flow);
    age(idle - 12);
    bench.drop(ask, Why::Flow);
    age(idle - 12);
    bench.drop(answer, Why::Flow);
    // Nor where rules have changed meanwhile.
    bench.say(None, Some(&[]));
    bench.drop(answer, Why::Flow);
    age(idle - 12);
    bench.pass(answer);
}

/// What is known of a flow, told once more in the words of `bpf/README.md`.
#[derive(Default)]
struct Told {
    /// By protocol, own port, other port and other address: who opened it, and whether it may go on.
    flows: BTreeMap<(u8, u16, u16, String), (Direction, bool)>,
    may: [Option<Vec<Allowed>>; 2],
}

impl Told {
    fn may(&self, direction: Direction, protocol: u8, port: Option<u16>) -> bool {
        let allowed = &self.may[usize::from(direction == Direction::Egress)];
        allowed.as_ref().is_none_or(|allowed| allowed.contains(&(protocol, port)))
    }

    /// Those that policies have changed for are asked for again.
    fn turn(&mut self) {
        let flows = std::mem::take(&mut self.flows);
        for (key, (opener, _)) in flows {
            let port = if opener == Direction::Egress { key.2 } else { key.1 };
            let allowed = self.may(opener, key.0, Some(port));
            self.flows.insert(key, (opener, allowed));
        }
    }

    fn passes(&mut self, direction: Direction, protocol: u8, own: u16, other: u16, addr: &str, flags: u8) -> bool {
        let back = if direction == Direction::Egress { Direction::Ingress } else { Direction::Egress };
        let to = |opener| if opener == Direction::Egress { other } else { own };
        let key = (protocol, own, other, addr.to_string());
        let known = self.flows.get(&key).copied();
        let opens = protocol == TCP && flags == SYN;
        if let Some((_, allowed)) = known.filter(|_| !opens) {
            return allowed;
        }
        let openers = match flags {
            _ if protocol != TCP || opens => vec![direction],
            _ if flags == SYN | ACK => vec![back],
            _ => vec![direction, back],
        };
        let opener = openers.into_iter().find(|opener| self.may(*opener, protocol, Some(to(*opener))));
        let unseen = self.may == [None, None] && protocol == TCP && !opens;
        match (opener, known) {
            (Some(_), _) if unseen => {}
            (Some(opener), _) => drop(self.flows.insert(key, (opener, true))),
            (None, Some((opener, _))) if opener == direction => drop(self.flows.insert(key, (opener, false))),
            (None, _) => {}
        }
        opener.is_some()
    }
}

/// `POLICY_FLOWS=1000000 cargo test --test main bpf::policy::any` for more of them.
#[test]
fn any_sequence_of_packets_and_policies_is_judged_as_it_is_told() {
    let count = std::env::var("POLICY_FLOWS").ok().and_then(|n| n.parse().ok()).unwrap_or(40_000);
    let mut bench = Bench::new("sequences");
    let (mut told, mut rng) = (Told::default(), fastrand::Rng::with_seed(11));
    const PORTS: [u16; 3] = [53, 80, 81];
    let mut verdicts = [0u32; 2];
    for n in 0..count {
        if n % 37 == 0 {
            let mut some = || {
                let mut all = Vec::new();
                for protocol in [TCP, UDP, SCTP] {
                    all.extend(PORTS.iter().filter(|_| rng.bool()).map(|port| (protocol, Some(*port))));
                }
                (rng.u8(..3) > 0).then_some(all)
            };
            told.may = [some(), some()];
            bench.say(told.may[0].as_deref(), told.may[1].as_deref());
            // A life that begins changes nothing.
            if rng.u8(..8) == 0 {
                let (rules, pods) = (bench.rules.clone(), bench.pods.clone());
                bench.policy.restore(&rules, &pods).unwrap();
            }
            told.turn();
        }
        let mut any = |some: &[u16]| some[rng.usize(..some.len())];
        let (own, other) = (any(&PORTS), any(&PORTS));
        let protocol = any(&[TCP.into(), TCP.into(), UDP.into(), SCTP.into()]) as u8;
        let flags = any(&[SYN.into(), (SYN | ACK).into(), ACK.into(), ACK.into()]) as u8;
        let is_v6 = any(&[0, 0, 1]) == 1;
        let (pod, addr) = if is_v6 { (POD6, OTHER6) } else { (POD, [OTHER, "10.0.0.8"][usize::from(any(&[0, 1]))]) };
        let direction = if any(&[0, 1]) == 0 { Direction::Ingress } else { Direction::Egress };
        let (src, dst, ports) =
            if direction == Direction::Egress { (pod, addr, (own, other)) } else { (addr, pod, (other, own)) };
        let packet = if protocol == TCP {
            Packet::tcp(src, dst, ports, flags)
        } else {
            Packet::ports(src, dst, protocol, ports)
        };
        let want = told.passes(direction, protocol, own, other, addr, flags);
        assert_eq!(
            bench.passes(&packet),
            want,
            "packet {n}: {direction:?} {protocol} {own} {other} {addr} {flags}, {:?}",
            told.may
        );
        verdicts[usize::from(want)] += 1;
    }
    println!("{verdicts:?} dropped and passed");
    assert!(verdicts.iter().all(|n| *n > count / 10));
}

#[test]
fn icmp_is_judged_by_what_it_is_about() {
    let mut bench = Bench::new("icmp");
    let echo = [(ICMP, 8, 0, POD, OTHER), (ICMPV6, 128, 129, POD6, OTHER6)];
    let allowed: Vec<Allowed> = echo.iter().map(|(p, ask, ..)| (*p, Some(*ask << 8))).collect();
    bench.say(Some(&[]), Some(&[&allowed[..], &[(UDP, Some(53))]].concat()));
    for (_, ask, answer, pod, other) in echo {
        let (ask, answer) = (ask as u8, answer);
        bench.drop(&Packet::echo(other, pod, answer, 5), Why::Rules);
        bench.pass(&Packet::echo(pod, other, ask, 5));
        bench.pass(&Packet::echo(other, pod, answer, 5));
        bench.drop(&Packet::echo(other, pod, answer, 6), Why::Rules);
        // The same number, but it asks.
        bench.drop(&Packet::echo(other, pod, ask, 5), Why::Rules);
    }
    // An error is as welcome as what it is about.
    let (sent, unsent) = (Packet::ports(POD, OTHER, UDP, (1000, 53)), Packet::ports(POD, OTHER, UDP, (1001, 53)));
    bench.pass(&sent);
    bench.pass(&sent.about(ROUTER, 3));
    bench.pass(&sent.about(ROUTER, 11));
    bench.drop(&unsent.about(ROUTER, 3), Why::Rules);
    bench.drop(&sent.about(ROUTER, 5), Why::Rules);
    bench.pass(&Packet::echo(POD, OTHER, 8, 5).about(ROUTER, 11));
    let sent = Packet::ports(POD6, OTHER6, UDP, (1000, 53));
    bench.pass(&sent);
    bench.pass(&sent.about("fd00::fe", 2));
    // The pod's own errors about what it was sent.
    bench.say(Some(&[(UDP, Some(53))]), Some(&[]));
    let heard = Packet::ports(OTHER, POD, UDP, (2000, 53));
    bench.pass(&heard);
    bench.pass(&heard.about(POD, 3));
    bench.say(Some(&[]), Some(&[]));
    bench.drop(&heard.about(POD, 3), Why::Flow);
}

#[test]
fn fragments_pass_where_anything_of_their_protocol_may() {
    let mut bench = Bench::new("fragments");
    bench.say(Some(&[]), Some(&[(UDP, Some(53)), (UDP, None)]));
    let later = |src, dst, protocol| Packet::ports(src, dst, protocol, (1, 2)).with_part(3);
    bench.pass(&later(POD, OTHER, UDP));
    // It may belong to an answer.
    bench.pass(&later(OTHER, POD, UDP));
    bench.drop(&later(POD, OTHER, TCP), Why::Rules);
    bench.drop(&later(OTHER, POD, TCP), Why::Rules);
    // The first has its ports, and goes by them.
    bench.pass(&Packet::ports(POD, OTHER, UDP, (1000, 53)).with_part(0x2000));
    bench.drop(&Packet::ports(POD, OTHER, UDP, (1000, 54)).with_part(0x2000), Why::Rules);
    bench.drop(&from_pod((1000, 443), ACK).with_part(1), Why::Overlap);
    let part = |at: u16| [&[0][..], &at.to_be_bytes(), &[0; 4]].concat();
    let v6 = |port| Packet::ports(POD6, OTHER6, UDP, (1000, port));
    bench.pass(&v6(53).with(44, &part(1)));
    bench.pass(&v6(53).with(44, &part(0)));
    bench.drop(&v6(54).with(44, &part(1)), Why::Rules);
    bench.pass(&v6(54).with(44, &part(64)));
    bench.drop(&Packet::tcp(POD6, OTHER6, (1, 2), ACK).with(44, &part(8)), Why::Overlap);
}

#[test]
fn ipv6_extension_headers_are_walked_as_far_as_is_said() {
    let mut bench = Bench::new("extensions");
    bench.say(Some(&[(UDP, Some(53))]), Some(&[]));
    let plain = |port| Packet::ports(OTHER6, POD6, UDP, (1000, port));
    let options = [0, 1, 4, 0, 0, 0, 0];
    let long = [&[1][..], &[0; 14]].concat();
    let authentication = [&[4][..], &[0; 22]].concat();
    for port in [53, 54] {
        let packet = plain(port)
            .with(0, &options)
            .with(60, &long)
            .with(43, &options)
            .with(51, &authentication)
            .with(60, &options);
        match port {
            53 => bench.pass(&packet),
            _ => bench.drop(&packet, Why::Rules),
        }
    }
    let many = |n: usize| (0..n).fold(plain(53), |packet, _| packet.with(60, &options));
    bench.pass(&many(6));
    bench.drop(&many(7), Why::Headers);
    let mut short = plain(53).with(60, &[255, 0, 0, 0, 0, 0, 0]);
    short.body.truncate(4);
    bench.drop(&short, Why::Short);
    let mut short = to_pod((1, 2), SYN);
    short.body.truncate(10);
    bench.drop(&short, Why::Short);
}

#[test]
fn what_finds_others_passes_and_what_hides_others_does_not() {
    let mut bench = Bench::new("links");
    bench.say(Some(&[]), Some(&[]));
    let raw = |kind: u16| [&[0; 12][..], &kind.to_be_bytes(), &[0; 46]].concat();
    for program in &bench.programs {
        assert!(passes(program, &raw(0x0806), SEAT) && passes(program, &raw(0x88cc), SEAT));
        assert!(!passes(program, &raw(0x8100), SEAT) && !passes(program, &raw(0x88a8), SEAT));
    }
    for r#type in 133..=137 {
        bench.pass(&Packet::echo(OTHER6, POD6, r#type, 0));
        bench.pass(&Packet::echo(POD6, OTHER6, r#type, 0));
    }
    bench.drop(&Packet::echo(OTHER6, POD6, 138, 0), Why::Rules);
    // Of IPv6 alone: what bears the number in IPv4 finds nobody.
    let body = [135, 0, 0, 0, 0, 0, 0, 0].to_vec();
    bench.drop(&Packet::new(POD, OTHER, ICMPV6, body.clone()), Why::Rules);
    bench.drop(&Packet::new(OTHER, POD, ICMPV6, body), Why::Rules);
    // Nobody's link.
    assert!(!passes(&bench.programs[0], &to_pod((1, 80), SYN).frame(), SEAT + 1));
    assert!(passes(&bench.programs[0], &raw(0x0806), SEAT + 1));
    assert_eq!(bench.policy.counts().unwrap().of(Why::Seat), [1, 0]);
    assert_eq!(bench.policy.counts().unwrap().of(Why::Vlan), [2, 2]);
}

#[test]
fn who_takes_a_seat_inherits_nothing() {
    let mut bench = Bench::new("seats");
    bench.say(Some(&[]), Some(&[(UDP, Some(53))]));
    bench.pass(&Packet::ports(POD, OTHER, UDP, (1000, 53)));
    bench.pass(&Packet::ports(OTHER, POD, UDP, (53, 1000)));
    // The same pod in the next life goes on.
    let (mut next, age) = Policy::open_as(bench.fs.path(), &SIZES, &MARKED.0).unwrap();
    assert_eq!(age, Age::Old);
    next.restore(&bench.rules, &bench.pods).unwrap();
    bench.pass(&Packet::ports(OTHER, POD, UDP, (53, 1000)));
    // Another one does not.
    let sets = bench.rules.pods[&name()];
    let other = Name::from("s/q");
    for write in [Write::Pod(name(), None), Write::Pod(other.clone(), Some(sets))] {
        bench.rules.apply(&write);
    }
    next.restore(&bench.rules, &Pods::from([(other.clone(), placed(SEAT, POD))])).unwrap();
    bench.drop(&Packet::ports(OTHER, POD, UDP, (53, 1000)), Why::Rules);
    next.apply(&[Write::Pod(other, None)], &bench.rules, &Pods::new()).unwrap();
    bench.drop(&Packet::ports(POD, OTHER, UDP, (1000, 53)), Why::Seat);
}

#[test]
fn a_full_map_is_named_and_what_is_there_goes_on() {
    let mut bench = Bench::sized("full", &Sizes { programs: 8, pairs: 6, classes: 2, ..SIZES });
    bench.say(Some(&[(TCP, Some(80))]), Some(&[]));
    bench.pass(&to_pod((1000, 80), SYN));
    let many: Vec<Allowed> = (0..9).map(|port| (UDP, Some(port))).collect();
    let write = Write::Program(100, Some(Arc::new(said(&many))));
    let mut after = bench.rules.clone();
    after.apply(&write);
    let refused = bench.policy.apply(&[write], &after, &bench.pods).unwrap_err().to_string();
    assert!(
        refused
            .starts_with("write changes of network policies into the kernel: the policies of this node need room for")
    );
    assert!(refused.contains("ranges of ports, and policy_ports is 8: raise it"), "{refused}");
    let refused = bench.policy.restore(&after, &bench.pods).unwrap_err().to_string();
    assert!(refused.contains("ranges of ports, and policy_ports is 8: raise it"), "{refused}");
    bench.pass(&to_pod((1001, 80), SYN));
    bench.drop(&to_pod((1001, 81), SYN), Why::Rules);
    bench.policy.restore(&bench.rules, &bench.pods).unwrap();
    bench.pass(&to_pod((1001, 80), SYN));
    let prefixes: Vec<Write> =
        (0..3).map(|n| Write::Prefix(format!("10.{n}.0.0/16").parse().unwrap(), Some(1))).collect();
    let mut after = bench.rules.clone();
    prefixes.iter().for_each(|write| after.apply(write));
    let e = bench.policy.apply(&prefixes, &after, &bench.pods).unwrap_err().to_string();
    assert!(e.contains("3 addresses and prefixes, and policy_addresses is 2"), "{e}");
}

#[test]
fn other_sizes_or_another_release_mean_other_programs_and_nothing_is_left_behind() {
    let bench = Bench::new("releases");
    let (root, folder) = (bench.fs.path(), bench.policy.folder());
    let is_pinned = || PROGRAMS.map(|program| folder.join(program.name()).exists());
    // There are no rules yet for which they could stand.
    assert_eq!(is_pinned(), [false; 2]);
    let older = pin::folder(root, "terway/policy0").unwrap();
    let (mut policy, _) = Policy::open_as(root, &SIZES, &MARKED.0).unwrap();
    policy.restore(&Rules::default(), &Pods::new()).unwrap();
    assert_eq!((is_pinned(), older.exists()), ([true; 2], false));
    let releases = || {
        let names = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("release-")).collect::<Vec<_>>()
    };
    let before = releases();
    let (_, age) = Policy::open(root, &SIZES).unwrap();
    assert_eq!((age, releases().len(), releases() == before), (Age::Old, 1, false));
    let (_, age) = Policy::open(root, &Sizes { tracks: 2048, ..SIZES }).unwrap();
    assert_eq!((age, releases().len(), is_pinned()), (Age::New, 0, [true; 2]));
    // A life that ends before it has written rules leaves empty maps to the next.
    let (_, age) = Policy::open(root, &Sizes { tracks: 2048, ..SIZES }).unwrap();
    assert_eq!((age, releases().len()), (Age::Old, 0));
    remove(root).unwrap();
    assert!(!root.join("terway").exists());
}

/// The rules of one life, numbered as it likes: from OTHER the pod takes TCP port 80, from others nothing.
#[test]
fn those_who_open_at_once_open_the_same_maps() {
    let fs = BpfFs::new("atonce");
    let open = || Policy::open_as(fs.path(), &SIZES, &MARKED.0).map(|(_, age)| age);
    let ages = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(open)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap().unwrap()).collect::<Vec<Age>>()
    });
    assert_eq!(ages.iter().filter(|age| **age == Age::New).count(), 1, "{ages:?}");
}

fn numbered(base: u32) -> Rules {
    let mut rules = Rules::default();
    let (open, shut): (u32, u32) = (base + 1, base + 2);
    let class: ClassId = base + 7;
    let end = Some(cell(false));
    let set = Arc::new(RuleSet { tiers: [Tier { rules: Box::default(), end }].into() });
    let writes = [
        Write::Class(class, Some([1].into())),
        Write::Program(open, Some(Arc::new(said(&[(TCP, Some(80))])))),
        Write::Program(shut, Some(Arc::new(said(&[])))),
        Write::Set(base + 3, Some(Set { rules: set, program: shut })),
        Write::Pair(base + 3, class, Some(open)),
        Write::Prefix(format!("{OTHER}/32").parse().unwrap(), Some(class)),
        Write::Pod(name(), Some(PodSets { ingress: base + 3, egress: base + 3 })),
    ];
    writes.iter().for_each(|write| rules.apply(write));
    rules
}

#[test]
fn a_new_life_takes_over_without_one_wrong_verdict() {
    let mut bench = Bench::new("lives");
    bench.policy.restore(&numbered(0), &bench.pods).unwrap();
    let (over, judged) = (AtomicBool::new(false), AtomicU64::new(0));
    let judge = |packet: Packet, want: bool| {
        let frame = packet.frame();
        while !over.load(Ordering::Relaxed) {
            assert_eq!(passes(&bench.programs[0], &frame, SEAT), want);
            judged.fetch_add(1, Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| {
        let allowed = scope.spawn(|| judge(to_pod((1000, 80), SYN), true));
        let denied = scope.spawn(|| judge(Packet::tcp("10.0.0.8", POD, (1000, 80), SYN), false));
        let foreign = scope.spawn(|| judge(to_pod((1000, 81), SYN), false));
        for life in 1..40u32 {
            let (mut policy, _) = Policy::open_as(bench.fs.path(), &SIZES, &MARKED.0).unwrap();
            // Numbers that mean something else than they did.
            policy.restore(&numbered(life % 3), &bench.pods).unwrap();
            if allowed.is_finished() || denied.is_finished() || foreign.is_finished() {
                break;
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    println!("{judged:?} packets");
    assert!(judged.into_inner() > 1000);
}

#[test]
fn without_batches_a_new_life_takes_over_as_well() {
    const BATCHES: &[u64] = &[24, 25, 26, 27];
    let mut bench = Bench::new("single-lives");
    without_bpf::run_without(BATCHES, libc::EINVAL, || {
        bench.policy.restore(&numbered(0), &bench.pods).unwrap();
        for life in 1..4 {
            let (mut policy, _) = Policy::open_as(bench.fs.path(), &SIZES, &MARKED.0).unwrap();
            policy.restore(&numbered(life), &bench.pods).unwrap();
            bench.pass(&to_pod((1000, 80), SYN));
            bench.drop(&to_pod((1000, 81), SYN), Why::Rules);
            assert_eq!(policy.pressure().unwrap().flows, 1);
        }
    });
}

#[test]
fn a_class_is_of_the_longest_prefix_and_of_its_family() {
    let mut bench = Bench::new("classes");
    bench.say(Some(&[]), Some(&[]));
    let sets = bench.rules.pods[&name()];
    let mut writes = vec![Write::Program(50, Some(Arc::new(said(&[(TCP, Some(80))]))))];
    writes.extend([Write::Class(1, Some([1].into())), Write::Class(2, Some([2].into()))]);
    writes.push(Write::Pair(sets.ingress, 1, Some(50)));
    for (net, class) in [("::/0", 1), ("10.1.0.0/16", 1), ("10.1.2.0/24", 2), ("10.1.2.3/32", 1)] {
        writes.push(Write::Prefix(net.parse().unwrap(), Some(class)));
    }
    bench.write(&writes);
    let passes = |bench: &Bench, src: &str| {
        let pod = if src.parse::<IpAddr>().unwrap().is_ipv4() { POD } else { POD6 };
        bench.passes(&Packet::tcp(src, pod, (1000, 80), SYN))
    };
    assert_eq!(
        ["10.1.9.9", "10.1.2.9", "10.1.2.3", "fd00::9"].map(|src| passes(&bench, src)),
        [true, false, true, true]
    );
    // No prefix of IPv6 is about IPv4.
    assert!(!passes(&bench, "10.2.0.1"));
    bench.write(&[Write::Prefix("10.1.2.0/24".parse().unwrap(), None)]);
    assert!(passes(&bench, "10.1.2.9"));
}

#[test]
fn what_is_dropped_is_told_to_who_listens() {
    if !Path::new("/proc/sys/kernel/perf_event_paranoid").exists() {
        return skip::because("needs perf events");
    }
    let mut bench = Bench::new("told");
    bench.say(Some(&[(TCP, Some(80))]), None);
    let (good, bad) = (to_pod((1000, 80), SYN), to_pod((1000, 81), SYN));
    bench.drop(&bad, Why::Rules);
    let heard = |monitor: &mut Monitor| {
        let mut events: Vec<Event> = Vec::new();
        monitor.wait(std::time::Duration::from_millis(10));
        assert_eq!(monitor.read(|event| events.push(event)), 0);
        events
    };
    let mut monitor = Monitor::open(bench.fs.path(), false).unwrap();
    assert_eq!(heard(&mut monitor), []);
    bench.pass(&good);
    bench.drop(&bad, Why::Rules);
    let sets = bench.rules.pods[&name()];
    let event = Event {
        seat: SEAT,
        direction: Direction::Ingress,
        why: Why::Rules,
        protocol: TCP,
        log: false,
        own: POD.parse().unwrap(),
        other: OTHER.parse().unwrap(),
        ports: (81, 1000),
        class: 0,
        program: sets.ingress,
    };
    assert_eq!(heard(&mut monitor), [event]);
    bench.drop(&Packet::echo(OTHER6, POD6, 128, 1), Why::Rules);
    let ping = Event { protocol: ICMPV6, ports: (0, 128 << 8), own: POD6.parse().unwrap(), ..event };
    assert_eq!(heard(&mut monitor), [Event { other: OTHER6.parse().unwrap(), ..ping }]);
    drop(monitor);
    // Every answer of the rules, once for a flow.
    let mut monitor = Monitor::open(bench.fs.path(), true).unwrap();
    bench.pass(&good);
    bench.pass(&to_pod((1000, 80), ACK));
    let passed = Event { why: Why::Passed, ports: (80, 1000), ..event };
    assert_eq!(heard(&mut monitor), [passed]);
    // What passes with a log is told in any case.
    drop(monitor);
    let mut monitor = Monitor::open(bench.fs.path(), false).unwrap();
    bench.pass(&good);
    assert_eq!(heard(&mut monitor), []);
    let mut logged = said(&[]);
    logged.other = Cell { log: true, ..cell(true) };
    let sets = bench.rules.sets[&sets.ingress].clone();
    let writes = [
        Write::Program(90, Some(Arc::new(logged))),
        Write::Set(91, Some(Set { program: 90, ..sets })),
        Write::Pod(name(), Some(PodSets { ingress: 91, egress: 91 })),
    ];
    bench.write(&writes);
    bench.pass(&good);
    assert_eq!(heard(&mut monitor), [Event { log: true, program: 90, ..passed }]);
    // More than there is room for is counted, and told with the next that there is room for on the same CPU.
    let frame = good.frame();
    let mut count = 0;
    let mut told = |times: usize| {
        (0..times).for_each(|_| assert!(passes(&bench.programs[0], &frame, SEAT)));
        monitor.read(|_| count += 1)
    };
    let lost = on_one_cpu(|| told(5000) + told(10));
    println!("{count} heard, {lost} lost");
    assert!(count > 500 && lost > 0 && count + lost == 5010, "{count} {lost}");
}

/// Runs the closure on a thread that stays on the CPU where it begins.
fn on_one_cpu<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    let stay = || {
        let mut cpu = CpuSet::new();
        cpu.set(sched_getcpu());
        sched_setaffinity(None, &cpu).unwrap();
        f()
    };
    std::thread::scope(|scope| scope.spawn(stay).join().unwrap())
}

/// Has the node's pods take from anybody this and nothing else, and send what they like, for as long as a test wants.
pub fn guard(node: &impl Place, pods: &[(&str, u16)], ingress: &[Allowed]) -> Policy {
    let (mut rules, mut seats) = (Rules::default(), Pods::new());
    let end = Some(cell(false));
    let shut = Arc::new(RuleSet { tiers: [Tier { rules: Box::default(), end }].into() });
    let writes = [
        Write::Program(1, Some(Arc::new(said(ingress)))),
        Write::Program(2, Some(Arc::new(Said { entries: Box::default(), other: cell(true) }))),
        Write::Set(1, Some(Set { rules: shut, program: 1 })),
        Write::Set(2, Some(Set { rules: Arc::new(RuleSet { tiers: Box::default() }), program: 2 })),
    ];
    writes.iter().for_each(|write| rules.apply(write));
    for (name, seat) in pods {
        rules.apply(&Write::Pod(Name::from(*name), Some(PodSets { ingress: 1, egress: 2 })));
        seats.insert(Name::from(*name), Placed::new(*seat, []));
    }
    node.run(|| {
        let (mut policy, _) = Policy::open(Path::new(ours::BPF_ROOT), &SIZES).unwrap();
        policy.restore(&rules, &seats).unwrap();
        policy
    })
}

/// The port that [`guarded`] finds open, with ping.
pub const OPEN: [Allowed; 4] = [(TCP, Some(7000)), (UDP, Some(7000)), (ICMP, Some(8 << 8)), (ICMPV6, Some(128 << 8))];

/// A pod that is guarded so is reached where it is open, and nowhere else.
pub fn guarded(from: &impl Place, what: &str, to: &impl Place, ip: IpAddr) {
    assert!(from.reaches(&ip.to_string()), "no ping {what} ({ip})");
    let [open, shut] = [7000, 7001].map(|port| SocketAddr::new(ip, port).to_string());
    let _echo = [&open, &shut].map(|at| (to.tcp_echo(at), to.udp_echo(at)));
    from.tcp(&open).unwrap_or_else(|e| panic!("no TCP {what} ({open}): {e}"));
    assert_eq!(from.udp(&open, 1).len(), 1, "UDP {what} ({open})");
    assert!(from.tcp_within(&shut, 2 * LOST).is_err(), "TCP {what} ({shut})");
    assert!(from.udp_within(&shut, 1, LOST).is_empty(), "UDP {what} ({shut})");
}

/// `cargo test --test main bpf::policy::figures -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn figures() {
    const TIMES: u32 = 200_000;
    let mut bench = Bench::sized("figures", &Sizes { classes: 65_536, programs: 65_536, pairs: 65_536, ..SIZES });
    let measure = |bench: &Bench, what: &str| {
        for (kind, packet) in [
            ("SYN", to_pod((1000, 80), SYN)),
            ("established", to_pod((1000, 80), ACK)),
            ("UDP", Packet::ports(POD, OTHER, UDP, (9, 53))),
        ] {
            let program = &bench.programs[usize::from(kind == "UDP")];
            let mut times: Vec<u32> =
                (0..5).map(|_| program.run(&packet.frame(), SEAT.into(), TIMES).unwrap().1).collect();
            times.sort_unstable();
            println!("{what}: {kind} {} ns", times[2]);
        }
    };
    bench.say(None, None);
    measure(&bench, "no policy");
    bench.say(Some(&[(TCP, Some(80))]), Some(&[(UDP, Some(53))]));
    measure(&bench, "one policy");
    let sets = bench.rules.pods[&name()];
    let mut writes: Vec<Write> = vec![Write::Class(1, Some([1].into()))];
    for n in 0..10_000u32 {
        let id = 1000 + n;
        let allowed = [(TCP, Some(80)), (TCP, Some(n as u16)), (UDP, Some(53))];
        writes.push(Write::Program(id, Some(Arc::new(said(&allowed)))));
        writes.push(Write::Class(id, Some([id].into())));
        writes.push(Write::Pair(sets.ingress, id, Some(id)));
        let net = format!("10.{}.{}.{}/32", n >> 16, n >> 8 & 255, n & 255);
        writes.push(Write::Prefix(net.parse().unwrap(), Some(id)));
    }
    let start = std::time::Instant::now();
    bench.write(&writes);
    println!("{} writes in {:?}", writes.len(), start.elapsed());
    measure(&bench, "10,000 rules");
}
