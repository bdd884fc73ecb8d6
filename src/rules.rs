//! Compiled policy as data, before any renderer: of which class an address is, and what a pod may exchange with that class.
//!
//! Three look-ups lead from a packet to its verdict, as a program in the kernel makes them: the longest prefix of the other side's
//! address gives a class, the pod's rule set and that class give a program, and the program finds protocol and port.
//! How much there is of each follows from what the policies say: pods with the same rules share a set, and equal answers a program.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::cluster::Name;
use crate::error::Error;
use crate::ip::host_net;

/// A condition on the other side's address that some rule names.
pub type PeerId = u32;
/// The peers that an address matches, all of them. 0: none.
pub type ClassId = u32;
/// What is said of each protocol and port.
pub type ProgramId = u32;
/// The rules of a direction that some pods share.
pub type SetId = u32;

/// No prefix of it is listed, or it matches nobody's peer.
pub const NO_CLASS: ClassId = 0;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const SCTP: u8 = 132;
pub const ICMP: u8 = 1;
pub const ICMPV6: u8 = 58;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// To the pod.
    Ingress,
    /// From the pod.
    Egress,
}

pub const DIRECTIONS: [Direction; 2] = [Direction::Ingress, Direction::Egress];

/// Who says so.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// Nobody says anything.
    Free,
    /// A node reaches its own pods, whatever the policies are.
    Node,
    /// No rule: the policy selects the pod, and nothing allows it.
    Policy { policy: Name, rule: Option<u16> },
    /// Something that decides which policies there are for the pod is not known yet.
    Unknown(Name),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Free => f.write_str("no policy"),
            Origin::Node => f.write_str("the pod's own node"),
            Origin::Policy { policy, rule: Some(rule) } => write!(f, "{policy} rule {rule}"),
            Origin::Policy { policy, rule: None } => write!(f, "{policy} (no rule allows it)"),
            Origin::Unknown(what) => write!(f, "{what} is not known yet"),
        }
    }
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cell {
    pub allow: bool,
    /// A rule with action `Log` was passed on the way.
    pub log: bool,
    pub origin: Origin,
}

/// A power of two of ports that begin at a multiple of it: `length` bits of `start` count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Block {
    pub start: u16,
    pub length: u8,
}

impl Block {
    pub const ALL: Block = Block { start: 0, length: 0 };

    /// The block of this length that a port is in.
    pub fn around(port: u16, length: u8) -> Block {
        let mask = u16::MAX.checked_shl(16 - u32::from(length)).unwrap_or(0);
        Block { start: port & mask, length }
    }

    /// The fewest blocks that together are these ports.
    pub fn cover(from: u16, to: u16) -> Vec<Block> {
        let mut blocks = Vec::new();
        let mut at = u32::from(from);
        while at <= u32::from(to) {
            let aligned = if at == 0 { 16 } else { at.trailing_zeros().min(16) };
            let fits = (u32::from(to) - at + 1).ilog2();
            let size = aligned.min(fits);
            blocks.push(Block { start: at as u16, length: (16 - size) as u8 });
            at += 1 << size;
        }
        blocks
    }
}

/// Within a program: a table of ports. 0 is asked first, by the destination port; of ICMP that is type × 256 + code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub protocol: u8,
    pub table: u16,
    pub block: Block,
}

/// The table of what has no ports: a fragment that is not the first.
pub const FRAGMENTS: u16 = u16::MAX;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Entry {
    Answer(Cell),
    /// The source port decides, in this table.
    BySource(u16),
}

/// What is said of each protocol and port. The longest block counts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Program {
    /// In order.
    pub entries: Box<[(Key, Entry)]>,
    /// Of protocols that have no entry.
    pub other: Cell,
}

/// What a program is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    pub protocol: u8,
    /// Source and destination; of ICMP the second is type × 256 + code. None in a fragment that is not the first: it passes where
    /// anything of its protocol may pass, since without a first one nobody can put it together.
    pub ports: Option<(u16, u16)>,
}

impl Packet {
    /// Neighbour discovery is no business of policies: without it nothing is reached.
    pub fn is_exempt(&self) -> bool {
        self.protocol == ICMPV6 && self.ports.is_some_and(|(_, icmp)| (133..=137).contains(&(icmp >> 8)))
    }
}

impl Program {
    /// At most two look-ups.
    pub fn answer(&self, packet: &Packet) -> &Cell {
        let Packet { protocol, ports } = *packet;
        let (first, port) = ports.map_or((FRAGMENTS, 0), |(_, to)| (0, to));
        let from = ports.map_or(0, |(from, _)| from);
        match self.longest(protocol, first, port) {
            Some(Entry::Answer(cell)) => cell,
            Some(Entry::BySource(table)) => match self.longest(protocol, *table, from) {
                Some(Entry::Answer(cell)) => cell,
                _ => &self.other,
            },
            None => &self.other,
        }
    }

    fn longest(&self, protocol: u8, table: u16, port: u16) -> Option<&Entry> {
        let blocks = (0..=16).rev().map(|length| Block::around(port, length));
        let keys = blocks.map(|block| Key { protocol, table, block });
        keys.filter_map(|key| self.entries.binary_search_by_key(&key, |(key, _)| *key).ok())
            .map(|at| &self.entries[at].1)
            .next()
    }
}

/// The rules of a direction in order, for renderers that walk them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleSet {
    /// Where all tiers are passed, the packet is allowed.
    pub tiers: Box<[Tier]>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tier {
    pub rules: Box<[Rule]>,
    /// What becomes of a packet that no rule decides on; none: the next tier is asked.
    pub end: Option<Cell>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    /// None: everyone.
    pub peer: Option<PeerId>,
    pub traffic: Traffic,
    pub action: Action,
    pub origin: Origin,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    Allow,
    Deny,
    /// The next tier decides.
    Pass,
    /// The next rule decides.
    Log,
}

/// Where there are ports, the protocol has some and is named.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Traffic {
    pub protocol: Option<u8>,
    pub not_protocol: Option<u8>,
    pub icmp: Option<Icmp>,
    pub not_icmp: Option<Icmp>,
    pub from: Ports,
    pub to: Ports,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Icmp {
    pub r#type: u8,
    pub code: Option<u8>,
}

impl Icmp {
    /// As the ports that stand for it.
    pub fn range(self) -> (u16, u16) {
        let r#type = u16::from(self.r#type) << 8;
        self.code.map_or((r#type, r#type | 0xff), |code| (r#type | u16::from(code), r#type | u16::from(code)))
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ports {
    pub any_of: Option<PortList>,
    pub none_of: PortList,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortList {
    /// In order and apart from each other.
    pub ranges: Box<[(u16, u16)]>,
    /// A port, where the other side's address matches the peer: what a name means there.
    pub named: Box<[(PeerId, u16)]>,
}

impl PortList {
    pub fn has(&self, port: u16, is_peer: &impl Fn(PeerId) -> bool) -> bool {
        let at = self.ranges.partition_point(|(_, to)| *to < port);
        self.ranges.get(at).is_some_and(|(from, _)| *from <= port)
            || self.named.iter().any(|(peer, number)| *number == port && is_peer(*peer))
    }
}

impl Ports {
    pub fn admit(&self, port: u16, is_peer: &impl Fn(PeerId) -> bool) -> bool {
        self.any_of.as_ref().is_none_or(|any| any.has(port, is_peer)) && !self.none_of.has(port, is_peer)
    }

    pub fn lists(&self) -> impl Iterator<Item = &PortList> {
        self.any_of.iter().chain([&self.none_of])
    }
}

impl RuleSet {
    /// Every peer that it asks for.
    pub fn peers(&self) -> BTreeSet<PeerId> {
        let rules = self.tiers.iter().flat_map(|tier| tier.rules.iter());
        rules.flat_map(|rule| rule.peer.into_iter().chain(rule.traffic.named().map(|(peer, _)| peer))).collect()
    }
}

/// Prints with a blank in front, or as nothing.
impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |protocol: u8| match protocol {
            TCP => "TCP".into(),
            UDP => "UDP".into(),
            SCTP => "SCTP".into(),
            ICMP => "ICMP".into(),
            ICMPV6 => "ICMPv6".into(),
            other => format!("protocol {other}"),
        };
        let icmp = |icmp: Icmp| match icmp.code {
            Some(code) => format!("type {} code {code}", icmp.r#type),
            None => format!("type {}", icmp.r#type),
        };
        self.protocol.map_or(Ok(()), |protocol| write!(f, " {}", name(protocol)))?;
        self.not_protocol.map_or(Ok(()), |protocol| write!(f, " not {}", name(protocol)))?;
        self.icmp.map_or(Ok(()), |one| write!(f, " {}", icmp(one)))?;
        self.not_icmp.map_or(Ok(()), |one| write!(f, " not {}", icmp(one)))?;
        for (side, ports) in [("from", &self.from), ("to", &self.to)] {
            ports.any_of.as_ref().map_or(Ok(()), |list| write!(f, " {side} {list}"))?;
            if ports.none_of != PortList::default() {
                write!(f, " {side} none of {}", ports.none_of)?;
            }
        }
        Ok(())
    }
}

/// A named port prints as what it means for those that it is meant of.
impl fmt::Display for PortList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges =
            self.ranges.iter().map(|(from, to)| if from == to { from.to_string() } else { format!("{from}-{to}") });
        let named = self.named.iter().map(|(peer, port)| format!("{port} where it is peer {peer}"));
        let all: Vec<String> = ranges.chain(named).collect();
        f.write_str(if all.is_empty() { "no port" } else { "port " })?;
        f.write_str(&all.join(", "))
    }
}

impl Traffic {
    pub fn named(&self) -> impl Iterator<Item = (PeerId, u16)> {
        self.from.lists().chain(self.to.lists()).flat_map(|list| list.named.iter().copied())
    }
}

/// A rule set, and the program for addresses of a class that has no program of its own with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    pub rules: Arc<RuleSet>,
    pub program: ProgramId,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodSets {
    pub ingress: SetId,
    pub egress: SetId,
}

impl PodSets {
    pub fn of(&self, direction: Direction) -> SetId {
        match direction {
            Direction::Ingress => self.ingress,
            Direction::Egress => self.egress,
        }
    }
}

/// How a renderer finds a pod of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// Its number among the pods of this node, which its links bear.
    pub seat: u16,
    /// Of all its interfaces, sorted.
    pub ips: Box<[IpAddr]>,
    /// The node's ends of its links that may carry what has a link-local source: whose that is, no address tells.
    pub veths: Box<[String]>,
}

impl Placed {
    pub fn new(seat: u16, ips: impl IntoIterator<Item = IpAddr>) -> Placed {
        let ips: BTreeSet<IpAddr> = ips.into_iter().collect();
        Placed { seat, ips: ips.into_iter().collect(), veths: Box::default() }
    }

    /// Wired by these.
    pub fn by(self, veths: impl IntoIterator<Item = String>) -> Placed {
        let veths: BTreeSet<String> = veths.into_iter().collect();
        Placed { veths: veths.into_iter().collect(), ..self }
    }
}

pub type Pods = BTreeMap<Name, Placed>;

/// What puts rules into the kernel.
pub trait Renderer: Send {
    /// Has the kernel hold exactly this; what an earlier life left there counts until it is replaced, and goes then.
    fn restore(&mut self, rules: &Rules, pods: &Pods) -> Result<(), Error>;

    /// Makes these changes; `after` is what holds then. Where that fails, [`Renderer::restore`] is next.
    fn apply(&mut self, writes: &[Write], after: &Rules, pods: &Pods) -> Result<(), Error>;

    /// Those pods whose rules are not in the kernel although the others' are, and why: the next change tries again, be it none.
    fn unheld(&self) -> Option<(Vec<Name>, Error)> {
        None
    }

    /// Whether links are to have other programs than when this was asked last.
    fn has_renewed(&mut self) -> bool {
        false
    }

    /// What finds out what it has counted. None: it counts nothing.
    fn tally(&self) -> Option<Tally> {
        None
    }
}

/// Looks at all there is, so that whoever has changes to write leaves it to another thread.
pub type Tally = Box<dyn FnOnce() -> Result<Counted, Error> + Send>;

/// What a look has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted {
    /// As people are shown them.
    pub figures: serde_json::Value,
    /// What of that which had been written when the look was asked for the kernel does not hold any more.
    pub damage: Option<String>,
    /// It is to be written anew by what somebody else has there by now.
    pub is_stale: bool,
}

/// One change. Done in the order given, every packet in between gets the answer from before or the one from after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// What it says, for people.
    Peer(PeerId, Option<Arc<str>>),
    Class(ClassId, Option<Arc<[PeerId]>>),
    Program(ProgramId, Option<Arc<Program>>),
    Set(SetId, Option<Set>),
    Pair(SetId, ClassId, Option<ProgramId>),
    Prefix(IpNet, Option<ClassId>),
    Pod(Name, Option<PodSets>),
}

/// All of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    pub peers: BTreeMap<PeerId, Arc<str>>,
    pub classes: BTreeMap<ClassId, Arc<[PeerId]>>,
    pub programs: BTreeMap<ProgramId, Arc<Program>>,
    pub sets: BTreeMap<SetId, Set>,
    pub pairs: BTreeMap<(SetId, ClassId), ProgramId>,
    pub prefixes: BTreeMap<IpNet, ClassId>,
    pub pods: BTreeMap<Name, PodSets>,
}

impl Rules {
    pub fn apply(&mut self, write: &Write) {
        fn put<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
            match value {
                Some(value) => drop(map.insert(key, value)),
                None => drop(map.remove(&key)),
            }
        }
        match write.clone() {
            Write::Peer(id, text) => put(&mut self.peers, id, text),
            Write::Class(id, peers) => put(&mut self.classes, id, peers),
            Write::Program(id, program) => put(&mut self.programs, id, program),
            Write::Set(id, set) => put(&mut self.sets, id, set),
            Write::Pair(set, class, program) => put(&mut self.pairs, (set, class), program),
            Write::Prefix(net, class) => put(&mut self.prefixes, net, class),
            Write::Pod(name, sets) => put(&mut self.pods, name, sets),
        }
    }

    /// By the longest prefix.
    pub fn class(&self, addr: IpAddr) -> ClassId {
        let longest = host_net(addr).prefix_len();
        let nets = (0..=longest).rev().filter_map(|len| IpNet::new(addr, len).ok());
        nets.map(|net| net.trunc()).find_map(|net| self.prefixes.get(&net)).copied().unwrap_or(NO_CLASS)
    }

    /// None: there is no such pod.
    pub fn program(&self, pod: &str, direction: Direction, class: ClassId) -> Option<&Arc<Program>> {
        let set = self.pods.get(pod)?.of(direction);
        let id = self.pairs.get(&(set, class)).copied().or_else(|| self.sets.get(&set).map(|set| set.program));
        self.programs.get(&id?)
    }

    /// What becomes of a packet between a pod and an address that is not its own.
    pub fn answer(&self, pod: &str, direction: Direction, other: IpAddr, packet: &Packet) -> Option<Cell> {
        if packet.is_exempt() {
            return Some(Cell { allow: true, log: false, origin: Origin::Free });
        }
        Some(self.program(pod, direction, self.class(other))?.answer(packet).clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_covered_by_few_blocks_and_by_no_other_ports() {
        let mut rng = fastrand::Rng::with_seed(3);
        for case in 0..400 {
            let (a, b) = (rng.u16(..), rng.u16(..));
            let (from, to) = match case {
                0 => (0, u16::MAX),
                1 => (1, u16::MAX - 1),
                2 => (u16::MAX, u16::MAX),
                _ => (a.min(b), a.max(b)),
            };
            let blocks = Block::cover(from, to);
            assert!(blocks.len() <= 30, "{from}-{to}");
            let count: u32 = blocks.iter().map(|block| 1 << (16 - block.length)).sum();
            assert_eq!(count, u32::from(to) - u32::from(from) + 1);
            for port in [from, to, from + (to - from) / 2, from.wrapping_sub(1), to.wrapping_add(1), rng.u16(..)] {
                let is_in = blocks.iter().any(|block| Block::around(port, block.length) == *block);
                assert_eq!(is_in, (from..=to).contains(&port), "{port} in {from}-{to}");
            }
        }
    }

    #[test]
    fn the_longest_block_counts_and_the_source_is_asked_where_it_decides() {
        let cell = |allow: bool| Cell { allow, log: false, origin: Origin::Free };
        let at = |table, start, length| Key { protocol: TCP, table, block: Block { start, length } };
        let program = Program {
            entries: BTreeMap::from_iter([
                (at(0, 0, 0), Entry::Answer(cell(false))),
                (at(0, 80, 16), Entry::BySource(1)),
                (at(0, 0x1000, 4), Entry::Answer(cell(true))),
                (at(1, 0, 0), Entry::Answer(cell(false))),
                (at(1, 53, 16), Entry::Answer(cell(true))),
                (at(FRAGMENTS, 0, 0), Entry::Answer(cell(true))),
            ])
            .into_iter()
            .collect(),
            other: cell(true),
        };
        for (ports, want) in [
            (Some((1, 1)), false),
            (Some((1, 0x1fff)), true),
            (Some((1, 0x2000)), false),
            (Some((53, 80)), true),
            (Some((54, 80)), false),
            (None, true),
        ] {
            assert_eq!(program.answer(&Packet { protocol: TCP, ports }).allow, want, "{ports:?}");
        }
        assert!(program.answer(&Packet { protocol: UDP, ports: Some((1, 1)) }).allow);
    }
}
