//! What policies mean for a pod: its rules in order, and from these the answer for each class, protocol and port.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::form::{NamedPort, Peer, Policy, Port, Ports, Rule, Space, Tier, Who, Whom};
use super::index::Entity;
use super::selector::Selector;
use crate::rules::{
    self, Action, Block, Cell, Direction, Entry, FRAGMENTS, Key, Origin, PeerId, PortList, Program, RuleSet,
};

/// A pod of this node, and what its rules rest on besides the policies.
pub struct Subject<'a> {
    pub entity: Entity<'a>,
    pub nets: &'a [IpNet],
    /// The node's own addresses.
    pub node: &'a [IpNet],
    /// What decides and is not known.
    pub unknown: Option<Origin>,
}

/// What names of ports mean elsewhere, and how peers are numbered.
pub trait Known {
    fn peer(&mut self, peer: &Peer) -> PeerId;

    /// Every number that a port of this name has in some pod.
    fn numbers(&mut self, name: &str, protocol: u8) -> Vec<u16>;
}

/// The policies are those that select the pod, in order.
pub fn rule_set(subject: &Subject, direction: Direction, policies: &[&Policy], known: &mut impl Known) -> RuleSet {
    let mut tiers = Vec::new();
    match &subject.unknown {
        Some(origin) => {
            let end = Cell { allow: false, log: false, origin: origin.clone() };
            tiers.push(rules::Tier { rules: Box::default(), end: Some(end) });
        }
        None => {
            let all = [Tier::Admin, Tier::Default, Tier::Baseline];
            tiers.extend(all.into_iter().filter_map(|of| tier(of, subject, direction, policies, known)));
        }
    }
    if direction == Direction::Ingress && !tiers.is_empty() && !subject.node.is_empty() {
        let peer = Peer { nets: Some(subject.node.into()), ..Peer::default() };
        let rule = rules::Rule {
            peer: Some(known.peer(&peer)),
            traffic: rules::Traffic::default(),
            action: Action::Allow,
            origin: Origin::Node,
        };
        tiers.insert(0, rules::Tier { rules: Box::new([rule]), end: None });
    }
    RuleSet { tiers: tiers.into() }
}

fn tier(
    of: Tier,
    subject: &Subject,
    direction: Direction,
    policies: &[&Policy],
    known: &mut impl Known,
) -> Option<rules::Tier> {
    let mut all = Vec::new();
    let mut last = None;
    for policy in policies.iter().filter(|policy| policy.place.tier == of) {
        let says = if direction == Direction::Ingress { &policy.ingress } else { &policy.egress };
        let Some(rules) = says else { continue };
        last = Some(*policy);
        all.extend(rules.iter().filter_map(|rule| self::rule(rule, policy, subject, direction, known)));
    }
    let last = last?;
    let end = (of == Tier::Default).then(|| Cell {
        allow: false,
        log: false,
        origin: Origin::Policy { policy: last.text.clone(), rule: None },
    });
    Some(rules::Tier { rules: all.into(), end })
}

/// None: it cannot match anything of this pod.
fn rule(
    rule: &Rule,
    policy: &Policy,
    subject: &Subject,
    direction: Direction,
    known: &mut impl Known,
) -> Option<rules::Rule> {
    let peer = with_families(&rule.own, subject, &rule.peer)?;
    // Of the pod itself we know which number a name has; of others their addresses decide.
    let is_kubernetes = policy.place.is_kubernetes;
    let protocol = rule.what.protocol.unwrap_or_default();
    let own = own_ports(&rule.what.own, protocol, subject)?;
    let other = peer_ports(&rule.what.peer, protocol, is_kubernetes, known)?;
    let (from, to) = match direction {
        Direction::Ingress => (other, own),
        Direction::Egress => (own, other),
    };
    Some(rules::Rule {
        peer: (!peer.is_everyone()).then(|| known.peer(&peer)),
        traffic: rules::Traffic {
            protocol: rule.what.protocol,
            not_protocol: rule.what.not_protocol,
            icmp: rule.what.icmp,
            not_icmp: rule.what.not_icmp,
            from,
            to,
        },
        action: rule.action,
        origin: Origin::Policy { policy: policy.text.clone(), rule: Some(rule.index) },
    })
}

/// The peer, limited to the families in which the rule is about the pod's own address.
fn with_families<'a>(own: &Peer, subject: &Subject, peer: &'a Peer) -> Option<Cow<'a, Peer>> {
    let selects = |who: &Option<Who>| who.as_ref().map(|who| subject.entity.is_selected(who));
    if selects(&own.who) == Some(false) || selects(&own.not_who) == Some(true) {
        return None;
    }
    let fits = |net: &&IpNet| {
        own.nets.as_ref().is_none_or(|nets| nets.iter().any(|n| n.contains(*net)))
            && !own.not_nets.iter().any(|n| n.contains(*net))
    };
    let (fitting, others): (Vec<&IpNet>, Vec<&IpNet>) = subject.nets.iter().partition(|net| fits(net));
    if others.is_empty() {
        return (!fitting.is_empty() || own.is_everyone() || own.nets.is_none()).then_some(Cow::Borrowed(peer));
    }
    let is_v4 = matches!(fitting.first()?, IpNet::V4(_));
    let nets = match &peer.nets {
        Some(nets) => nets.iter().filter(|net| matches!(net, IpNet::V4(_)) == is_v4).copied().collect(),
        None => Box::from([if is_v4 { "0.0.0.0/0" } else { "::/0" }.parse().expect("it is one")]),
    };
    Some(Cow::Owned(Peer { nets: Some(nets), ..peer.clone() }))
}

fn own_ports(ports: &Ports, protocol: u8, subject: &Subject) -> Option<rules::Ports> {
    let read = |some: &[Port]| {
        let numbers = some.iter().flat_map(|port| match port {
            Port::Range(from, to) => vec![(*from, *to)],
            Port::Named(name) => {
                let of = subject.entity.ports.iter().filter(|p| p.protocol == protocol && p.name == *name);
                of.map(|p| (p.number, p.number)).collect()
            }
        });
        PortList { ranges: merged(numbers.collect()), named: Box::default() }
    };
    in_use(rules::Ports { any_of: ports.any_of.as_deref().map(read), none_of: read(&ports.none_of) })
}

fn peer_ports(ports: &Ports, protocol: u8, with_hosts: bool, known: &mut impl Known) -> Option<rules::Ports> {
    let mut read = |some: &[Port]| {
        let mut list = (Vec::new(), BTreeSet::new());
        for port in some {
            match port {
                Port::Range(from, to) => list.0.push((*from, *to)),
                Port::Named(name) => {
                    for number in known.numbers(name, protocol) {
                        let port = NamedPort { name: name.clone(), protocol, number };
                        list.1.insert((known.peer(&bearer(port, with_hosts)), number));
                    }
                }
            }
        }
        PortList { ranges: merged(list.0), named: list.1.into_iter().collect() }
    };
    let any_of = ports.any_of.as_deref().map(&mut read);
    in_use(rules::Ports { any_of, none_of: read(&ports.none_of) })
}

/// Pods in which a name means this number.
fn bearer(port: NamedPort, with_hosts: bool) -> Peer {
    let whom = if with_hosts { Whom::PodsAndHosts } else { Whom::Pods };
    let who = Who { whom, port: Some(port), ..Who::pods(Space::Any, Selector::All) };
    Peer { who: Some(who), ..Peer::default() }
}

/// None: a list without a port in it matches nothing.
fn in_use(ports: rules::Ports) -> Option<rules::Ports> {
    let is_nothing = |list: &PortList| list.ranges.is_empty() && list.named.is_empty();
    (!ports.any_of.as_ref().is_some_and(is_nothing)).then_some(ports)
}

fn merged(mut ranges: Vec<(u16, u16)>) -> Box<[(u16, u16)]> {
    ranges.sort_unstable();
    let mut all: Vec<(u16, u16)> = Vec::new();
    for (from, to) in ranges {
        match all.last_mut() {
            Some((_, end)) if u32::from(from) <= u32::from(*end) + 1 => *end = (*end).max(to),
            _ => all.push((from, to)),
        }
    }
    all.into()
}

/// The answers for addresses that match these peers of the set, and none of its others.
pub fn program(set: &RuleSet, is_peer: &impl Fn(PeerId) -> bool) -> Program {
    let tiers: Vec<Layer> = set.tiers.iter().map(|tier| Layer::of(tier, is_peer)).collect();
    let traffic = || tiers.iter().flat_map(|layer| layer.rules.iter()).map(|rule| &rule.traffic);
    let protocols: BTreeSet<u8> = traffic().flat_map(|t| t.protocol.into_iter().chain(t.not_protocol)).collect();
    let other = walk(&tiers, |traffic| traffic.protocol.is_none());
    let mut entries = BTreeMap::new();
    for protocol in protocols {
        let of = |t: &rules::Traffic| t.protocol.is_none_or(|p| p == protocol) && t.not_protocol != Some(protocol);
        let tiers: Vec<Layer> = tiers.iter().map(|layer| layer.only(of)).collect();
        let pieces = pieces(&tiers, is_peer);
        if !matches!(&pieces[..], [(_, Piece::One(cell))] if *cell == other) {
            write(protocol, &pieces, &mut entries);
        }
    }
    Program { entries: entries.into_iter().collect(), other }
}

/// A tier as far as it matters.
struct Layer<'a> {
    rules: Vec<&'a rules::Rule>,
    end: Option<&'a Cell>,
}

impl<'a> Layer<'a> {
    fn of(tier: &'a rules::Tier, is_peer: &impl Fn(PeerId) -> bool) -> Layer<'a> {
        Layer {
            rules: tier.rules.iter().filter(|rule| rule.peer.is_none_or(is_peer)).collect(),
            end: tier.end.as_ref(),
        }
    }

    fn only(&self, matches: impl Fn(&rules::Traffic) -> bool) -> Layer<'a> {
        Layer { rules: self.rules.iter().copied().filter(|rule| matches(&rule.traffic)).collect(), end: self.end }
    }
}

/// The first rule that matches and decides.
fn walk(tiers: &[Layer], matches: impl Fn(&rules::Traffic) -> bool) -> Cell {
    let mut log = false;
    'tiers: for tier in tiers {
        for rule in tier.rules.iter().filter(|rule| matches(&rule.traffic)) {
            match rule.action {
                Action::Log => log = true,
                Action::Pass => continue 'tiers,
                action => return Cell { allow: action == Action::Allow, log, origin: rule.origin.clone() },
            }
        }
        if let Some(end) = tier.end {
            return Cell { log, ..end.clone() };
        }
    }
    Cell { allow: true, log, origin: Origin::Free }
}

/// What is said of some ports.
#[derive(PartialEq)]
enum Piece {
    One(Cell),
    /// By source port.
    Split(Vec<((u16, u16), Cell)>),
}

/// The answers of one protocol by destination port.
fn pieces(tiers: &[Layer], is_peer: &impl Fn(PeerId) -> bool) -> Vec<((u16, u16), Piece)> {
    let to = |t: &rules::Traffic, port: u16| {
        let within = |icmp: rules::Icmp| (icmp.range().0..=icmp.range().1).contains(&port);
        t.icmp.is_none_or(within) && !t.not_icmp.is_some_and(within) && t.to.admit(port, is_peer)
    };
    let traffic = || tiers.iter().flat_map(|layer| layer.rules.iter()).map(|rule| &rule.traffic);
    let icmp = |t: &rules::Traffic| t.icmp.into_iter().chain(t.not_icmp).map(rules::Icmp::range).collect::<Vec<_>>();
    let ranges = traffic().flat_map(|t| icmp(t).into_iter().chain(ranges(&t.to, is_peer)));
    split(ranges, |port| {
        let tiers: Vec<Layer> = tiers.iter().map(|layer| layer.only(|t| to(t, port))).collect();
        let traffic = || tiers.iter().flat_map(|layer| layer.rules.iter()).map(|rule| &rule.traffic);
        let ranges = traffic().flat_map(|t| self::ranges(&t.from, is_peer));
        let mut by_source = split(ranges, |from| walk(&tiers, |t| t.from.admit(from, is_peer)));
        if by_source.len() == 1 { Piece::One(by_source.remove(0).1) } else { Piece::Split(by_source) }
    })
}

fn ranges(ports: &rules::Ports, is_peer: &impl Fn(PeerId) -> bool) -> Vec<(u16, u16)> {
    let named = |list: &PortList| {
        list.named.iter().filter(|(peer, _)| is_peer(*peer)).map(|(_, n)| (*n, *n)).collect::<Vec<_>>()
    };
    ports.lists().flat_map(|list| list.ranges.iter().copied().chain(named(list)).collect::<Vec<_>>()).collect()
}

/// All ports in stretches of the same answer, where answers change at the ends of these ranges only.
fn split<T: PartialEq>(ranges: impl Iterator<Item = (u16, u16)>, answer: impl Fn(u16) -> T) -> Vec<((u16, u16), T)> {
    let ends = ranges.flat_map(|(from, to)| [Some(from), to.checked_add(1)]).flatten();
    let starts: BTreeSet<u16> = ends.chain([0]).collect();
    let mut all: Vec<((u16, u16), T)> = Vec::new();
    for start in starts {
        if let Some(((_, end), _)) = all.last_mut() {
            *end = start - 1;
        }
        let answer = answer(start);
        match all.last_mut() {
            Some(((_, end), before)) if *before == answer => *end = u16::MAX,
            _ => all.push(((start, u16::MAX), answer)),
        }
    }
    all
}

fn write(protocol: u8, pieces: &[((u16, u16), Piece)], entries: &mut BTreeMap<Key, Entry>) {
    let mut tables = 0;
    let flat: Vec<((u16, u16), Entry)> = pieces
        .iter()
        .map(|(range, piece)| {
            (
                *range,
                match piece {
                    Piece::One(cell) => Entry::Answer(cell.clone()),
                    Piece::Split(by_source) => {
                        tables += 1;
                        let answers: Vec<_> =
                            by_source.iter().map(|(range, cell)| (*range, Entry::Answer(cell.clone()))).collect();
                        blocks(protocol, tables, &answers, entries);
                        Entry::BySource(tables)
                    }
                },
            )
        })
        .collect();
    blocks(protocol, 0, &flat, entries);
    let cells = pieces.iter().flat_map(|(_, piece)| match piece {
        Piece::One(cell) => vec![cell],
        Piece::Split(by_source) => by_source.iter().map(|(_, cell)| cell).collect(),
    });
    let all: Vec<&Cell> = cells.collect();
    let any = all.iter().find(|cell| cell.allow).or(all.first()).expect("all ports are in some piece");
    entries.insert(Key { protocol, table: FRAGMENTS, block: Block::ALL }, Entry::Answer((*any).clone()));
}

/// What most ports have is said once, and the others lie in it.
fn blocks(protocol: u8, table: u16, answers: &[((u16, u16), Entry)], entries: &mut BTreeMap<Key, Entry>) {
    let mut sizes = BTreeMap::<&Entry, u32>::new();
    for ((from, to), entry) in answers {
        *sizes.entry(entry).or_default() += u32::from(to - from) + 1;
    }
    let most = *sizes.iter().max_by_key(|(_, size)| **size).expect("all ports are in some piece").0;
    entries.insert(Key { protocol, table, block: Block::ALL }, most.clone());
    for ((from, to), entry) in answers.iter().filter(|(_, entry)| entry != most) {
        for block in Block::cover(*from, *to) {
            entries.insert(Key { protocol, table, block }, entry.clone());
        }
    }
}
