//! The eBPF maps of network policies: their keys and values, twins of `bpf/policy.h`, as bytes.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

use crate::cluster::Name;
use crate::error::Error;
use crate::rules::{ClassId, Direction, Entry, Placed, Program, ProgramId, RuleSet, SetId};

/// The layout of all maps together. Maps of another layout are pinned elsewhere.
pub const LAYOUT: u32 = 1;

/// The class of a set's program for all classes that have no pair with it.
pub const REST: ClassId = ClassId::MAX;

/// For how much there is room. Maps of rules have twice as much: a new life writes its rules beside the old one's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Pods.
    pub seats: u32,
    /// Prefixes.
    pub classes: u32,
    /// Of a set and a class.
    pub pairs: u32,
    /// Blocks of ports of all programs.
    pub programs: u32,
    /// Flows; the one that was idle the longest makes room for a new one.
    pub tracks: u32,
}

/// Keys of the configuration that say how much room there is.
pub const ADDRESSES_KEY: &str = "policy_addresses";
pub const PAIRS_KEY: &str = "policy_pairs";
pub const PORTS_KEY: &str = "policy_ports";
pub const FLOWS_KEY: &str = "policy_flows";

/// That there are more than there is room for, and what can be done.
pub fn overfull(what: &str, needed: usize, room: u32, key: &str) -> Error {
    Error::refused(format!(
        "the policies of this node need room for {needed} {what}, and {key} is {room}: raise it in eni.json and restart terwayd, or have the \
         policies say less"
    ))
}

impl Default for Sizes {
    fn default() -> Sizes {
        Sizes { seats: 4096, classes: 131_072, pairs: 524_288, programs: 262_144, tracks: 65_536 }
    }
}

/// What a seat's filters go by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seat {
    /// Of this pod in this seat, and of no other before or after.
    pub life: u32,
    pub bank: u32,
    /// To the pod, from the pod.
    pub sets: [SetId; 2],
    /// By direction: nobody says anything.
    pub free: [bool; 2],
    /// [`owner`] of the pod.
    pub owner: u32,
}

impl Seat {
    pub fn to_bytes(self, seat: u16) -> [u8; 28] {
        let free = u32::from(self.free[0]) | u32::from(self.free[1]) << 1;
        let words = [self.life, self.bank, self.sets[0], self.sets[1], free, self.owner];
        let seal = words.iter().fold(mix(1, seat.into()), |seal, word| mix(seal, *word));
        let mut bytes = [0; 28];
        for (n, word) in [seal].iter().chain(&words).enumerate() {
            bytes[4 * n..][..4].copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    pub fn from_bytes(bytes: &[u8]) -> Option<Seat> {
        let word = |n: usize| word(bytes, 4 * n);
        let free = word(5)?;
        Some(Seat {
            life: word(1)?,
            bank: word(2)?,
            sets: [word(3)?, word(4)?],
            free: [free & 1 != 0, free & 2 != 0],
            owner: word(6)?,
        })
    }
}

/// What tells a pod in a seat from another one there.
pub fn owner(name: &Name, placed: &Placed) -> u32 {
    let digest = sha1_smol::Sha1::from(format!("{name} {:?}", placed.ips)).digest().bytes();
    u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]])
}

/// Whether these rules never deny, and never log, anything.
pub fn is_free(rules: &RuleSet) -> bool {
    rules.tiers.iter().all(|tier| tier.rules.is_empty() && tier.end.is_none())
}

/// `mix` of `bpf/policy.bpf.c`.
fn mix(seal: u32, word: u32) -> u32 {
    (seal ^ word).wrapping_mul(0x9e37_79b1).wrapping_add(seal >> 15)
}

/// `struct net`.
pub fn net_key(bank: u32, net: &IpNet) -> [u8; 24] {
    let is_v4 = net.addr().is_ipv4();
    let (before, bank) = (if is_v4 { 128 } else { 32 }, bank << 1 | u32::from(!is_v4));
    let mut key = [0; 24];
    key[..4].copy_from_slice(&(u32::from(net.prefix_len()) + before).to_ne_bytes());
    key[4..8].copy_from_slice(&bank.to_ne_bytes());
    key[8..].copy_from_slice(&address(net.network()));
    key
}

/// `struct pair_key`.
pub fn pair_key(bank: u32, set: SetId, class: ClassId) -> [u8; 12] {
    let mut key = [0; 12];
    for (n, word) in [bank, set, class].into_iter().enumerate() {
        key[4 * n..][..4].copy_from_slice(&word.to_ne_bytes());
    }
    key
}

/// `struct pair`.
pub fn pair(bank: u32, set: SetId, class: ClassId, program: ProgramId) -> [u8; 8] {
    let seal = [bank, set, class, program].into_iter().fold(2, mix);
    let mut value = [0; 8];
    value[..4].copy_from_slice(&seal.to_ne_bytes());
    value[4..].copy_from_slice(&program.to_ne_bytes());
    value
}

/// Of an element of `pairs`: the [`pair_key`] of its set's [`REST`], and how the keys of its program's elements go on after their length.
pub fn reach(key: &[u8], value: &[u8]) -> Option<([u8; 12], [u8; 8])> {
    let (bank, set, program) = (word(key, 0)?, word(key, 4)?, word(value, 4)?);
    let mut start = [0; 8];
    start[..4].copy_from_slice(&bank.to_ne_bytes());
    start[4..].copy_from_slice(&program.to_ne_bytes());
    Some((pair_key(bank, set, REST), start))
}

/// The bank of an element of `classes` (24 bytes), `programs` (20) or `pairs` (12), by its key.
pub fn bank(key: &[u8]) -> u32 {
    let word = |at| word(key, at).unwrap_or(0);
    match key.len() {
        12 => word(0),
        20 => word(4),
        _ => word(4) >> 1,
    }
}

/// How many [`elements`] a program has.
pub fn size(program: &Program) -> usize {
    program.entries.len() + 1
}

/// `struct rule` and its answer, for all that a program says: what it says of all else first.
pub fn elements(bank: u32, id: ProgramId, program: &Program) -> impl Iterator<Item = ([u8; 20], [u8; 4])> {
    let key = move |bits: u32, protocol: u8, table: u16, port: u16| {
        let mut key = [0; 20];
        key[..4].copy_from_slice(&bits.to_ne_bytes());
        key[4..8].copy_from_slice(&bank.to_ne_bytes());
        key[8..12].copy_from_slice(&id.to_ne_bytes());
        key[12] = protocol;
        key[14..16].copy_from_slice(&table.to_be_bytes());
        key[16..18].copy_from_slice(&port.to_be_bytes());
        key
    };
    let other = (key(64, 0, 0, 0), answer(&Entry::Answer(program.other.clone())));
    let entries = program.entries.iter().map(move |(at, entry)| {
        (key(96 + u32::from(at.block.length), at.protocol, at.table, at.block.start), answer(entry))
    });
    std::iter::once(other).chain(entries)
}

fn answer(entry: &Entry) -> [u8; 4] {
    match entry {
        Entry::Answer(cell) => u32::from(cell.allow) | u32::from(cell.log) << 1,
        Entry::BySource(table) => 4 | u32::from(table.to_be()) << 16,
    }
    .to_ne_bytes()
}

/// An element of `state`: the first is written by who renders, the second by who listens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct State {
    /// What was answered in another one is asked again.
    pub epoch: u32,
    pub listen: u32,
    /// The last that was given to a seat.
    pub life: u32,
}

/// Somebody hears of what is dropped, and of what is allowed and to be logged.
pub const LISTEN_DROPS: u32 = 1;
/// And of every other answer of the rules.
pub const LISTEN_VERDICTS: u32 = 2;

impl State {
    pub const RENDERER: [u8; 4] = 0u32.to_ne_bytes();
    pub const LISTENER: [u8; 4] = 1u32.to_ne_bytes();

    pub fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        for (n, word) in [self.epoch, self.listen, self.life].into_iter().enumerate() {
            bytes[4 * n..][..4].copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    pub fn from_bytes(bytes: &[u8]) -> Option<State> {
        Some(State { epoch: word(bytes, 0)?, listen: word(bytes, 4)?, life: word(bytes, 8)? })
    }
}

/// Why a packet is dropped, and what else is counted; each for packets to pods and from pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Why {
    Passed = 0,
    Rules,
    Flow,
    Seat,
    Torn,
    Short,
    Headers,
    Overlap,
    Vlan,
    TrackNew,
    TrackAsked,
    TrackFull,
}

impl Why {
    pub const ALL: [Why; 12] = [
        Why::Passed,
        Why::Rules,
        Why::Flow,
        Why::Seat,
        Why::Torn,
        Why::Short,
        Why::Headers,
        Why::Overlap,
        Why::Vlan,
        Why::TrackNew,
        Why::TrackAsked,
        Why::TrackFull,
    ];

    /// In a few words, as a label of a figure.
    pub fn label(self) -> &'static str {
        match self {
            Why::Passed => "passed",
            Why::Rules => "policy",
            Why::Flow => "flow_denied",
            Why::Seat => "unknown_pod",
            Why::Torn => "rules_missing",
            Why::Short => "short",
            Why::Headers => "extension_headers",
            Why::Overlap => "overlapping_fragment",
            Why::Vlan => "vlan",
            Why::TrackNew => "flows_new",
            Why::TrackAsked => "flows_asked_again",
            Why::TrackFull => "flows_full",
        }
    }

    /// Whether it counts packets that were dropped.
    pub fn is_drop(self) -> bool {
        (Why::Rules..=Why::Vlan).contains(&self)
    }

    fn of(number: u8) -> Option<Why> {
        Why::ALL.into_iter().find(|why| *why as u8 == number)
    }
}

/// What was told of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    pub seat: u16,
    pub direction: Direction,
    pub why: Why,
    pub protocol: u8,
    /// A rule wants it to be logged.
    pub log: bool,
    pub own: IpAddr,
    pub other: IpAddr,
    /// Of ICMP 0, and type × 256 + code.
    pub ports: (u16, u16),
    pub class: ClassId,
    /// 0: no rules were asked.
    pub program: ProgramId,
}

impl Event {
    pub fn from_bytes(bytes: &[u8]) -> Option<Event> {
        let port = |at: usize| bytes.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes);
        Some(Event {
            seat: bytes.get(..2)?.try_into().ok().map(u16::from_ne_bytes)?,
            direction: if *bytes.get(2)? == 0 { Direction::Ingress } else { Direction::Egress },
            why: Why::of(*bytes.get(3)?)?,
            protocol: *bytes.get(4)?,
            log: *bytes.get(5)? != 0,
            ports: (port(6)?, port(8)?),
            class: word(bytes, 12)?,
            program: word(bytes, 16)?,
            own: from_16(bytes.get(20..36)?)?,
            other: from_16(bytes.get(36..52)?)?,
        })
    }
}

/// `struct addr`.
fn address(addr: IpAddr) -> [u8; 16] {
    match addr {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn from_16(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 16]>::try_from(bytes).ok().map(|octets| IpAddr::V6(Ipv6Addr::from(octets)).to_canonical())
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}
