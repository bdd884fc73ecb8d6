//! Calico's NetworkPolicy, GlobalNetworkPolicy and network sets: ordered rules that allow, deny, log or pass.

use ipnet::IpNet;

use super::form::{
    Account, Kind, Order, Peer, Place, Policy, PolicyName, Port, Ports, Rule, Space, Tier, What, Who, Whom,
};
use super::read::{At, Faults, has_ports, protocol};
use super::selector::{self, Selector};
use crate::netpol::Document;
use crate::peer::{Labels, namespace_of};
use crate::rules::{Action, Direction, ICMP, ICMPV6, Icmp};

const POLICY: &[&str] = &[
    "tier",
    "order",
    "selector",
    "namespaceSelector",
    "serviceAccountSelector",
    "types",
    "ingress",
    "egress",
    "doNotTrack",
    "preDNAT",
    "applyOnForward",
    "performanceHints",
];
const RULE: &[&str] =
    &["action", "ipVersion", "protocol", "notProtocol", "icmp", "notICMP", "source", "destination", "metadata"];
const ENTITY: &[&str] =
    &["nets", "notNets", "selector", "notSelector", "namespaceSelector", "serviceAccounts", "ports", "notPorts"];

/// A policy with a fault denies everything to what it selects, in its place among the others.
pub fn read(document: &Document) -> Policy {
    let mut faults = Faults::default();
    let namespace = namespace_of(&document.name);
    let body = document.body();
    let root = At::root(&body);
    let mut form = Form {
        order: Order::LAST,
        subject: subject_of_all(namespace),
        directions: [Some(deny()), Some(deny())],
        is_void: false,
    };
    let mut told = Vec::new();
    match root.field("spec") {
        Some(spec) => {
            form.read(&spec, namespace, &mut faults);
            form.is_void = unsupported(&spec, &mut faults, &mut told);
        }
        None => faults.say("spec is not there".to_owned()),
    }
    let kind = if namespace.is_empty() { Kind::GlobalCalico } else { Kind::Calico };
    let name = PolicyName { name: document.name.clone(), kind };
    let [ingress, egress] = form.directions;
    told.extend(faults.kept());
    Policy {
        text: name.to_string().into(),
        name,
        place: Place { tier: Tier::Default, order: form.order, is_kubernetes: false },
        subject: form.subject,
        ingress,
        egress,
        faults: told.into(),
        is_void: form.is_void,
    }
}

struct Form {
    order: Order,
    subject: Who,
    directions: [Option<Box<[Rule]>>; 2],
    is_void: bool,
}

fn subject_of_all(namespace: &str) -> Who {
    let space = if namespace.is_empty() { Space::Any } else { Space::One(namespace.into()) };
    Who { whom: Whom::Calico, ..Who::pods(space, Selector::All) }
}

fn deny() -> Box<[Rule]> {
    Box::new([Rule::of_all(0, Action::Deny)])
}

/// What is for the node's own traffic, which no policy of ours governs; whether the policy is for nothing else.
fn unsupported(spec: &At, faults: &mut Faults, told: &mut Vec<Box<str>>) -> bool {
    let mut is_void = false;
    for (field, is_for_hosts) in [("doNotTrack", true), ("preDNAT", true), ("applyOnForward", false)] {
        if spec.flag(field, faults) {
            let what =
                if is_for_hosts { "the policy has no effect" } else { "the field has no effect, the policy has" };
            told.push(format!("spec.{field} is for host endpoints, which are not supported; {what}").into());
            is_void |= is_for_hosts;
        }
    }
    is_void
}

impl Form {
    fn read(&mut self, spec: &At, namespace: &str, faults: &mut Faults) {
        spec.has_only(POLICY, faults);
        if let Some(order) = spec.field("order") {
            match order.value.as_f64() {
                Some(number) => self.order = Order::of(number),
                None => faults.add(&order, "a number"),
            }
        }
        if let Some((at, tier)) = spec.words("tier", faults)
            && tier != "default"
        {
            faults.add(&at, "default, the one tier that is supported");
        }
        let before = faults.count();
        let subject = subject(spec, namespace, faults);
        if faults.count() == before {
            self.subject = subject;
        }
        let rules =
            [rules(spec, Direction::Ingress, namespace, faults), rules(spec, Direction::Egress, namespace, faults)];
        let types = types(spec, faults);
        let is_whole = faults.count() == 0;
        if !is_whole {
            faults.say("until that is right, the policy denies everything to what it selects".to_owned());
        }
        let mut types = types.into_iter();
        self.directions = rules.map(|rules| {
            let says = types.next().unwrap_or(true);
            says.then(|| if is_whole { rules.into() } else { deny() })
        });
    }
}

fn subject(spec: &At, namespace: &str, faults: &mut Faults) -> Who {
    let labels = selector(spec, "selector", faults).unwrap_or(Selector::All);
    let space = match (selector_of_spaces(spec, faults), namespace) {
        (Some(spaces), "") => Space::Matching(spaces),
        (Some(_), _) => {
            faults.say("spec.namespaceSelector is for global policies only".to_owned());
            Space::Any
        }
        (None, "") => Space::Any,
        (None, namespace) => Space::One(namespace.into()),
    };
    let account = selector(spec, "serviceAccountSelector", faults);
    let account = account.map(|labels| Account { names: Box::default(), labels });
    Who { whom: Whom::Calico, account, ..Who::pods(space, labels) }
}

/// Whether it speaks of ingress, and of egress; both where that cannot be read.
fn types(spec: &At, faults: &mut Faults) -> [bool; 2] {
    let before = faults.count();
    let listed = spec.items("types", faults);
    let mut types = [false, false];
    for one in &listed {
        match one.text(faults) {
            "Ingress" => types[0] = true,
            "Egress" => types[1] = true,
            _ => faults.add(one, "Ingress or Egress"),
        }
    }
    if faults.count() > before {
        return [true, true];
    }
    let has = |name| spec.field(name).is_some_and(|field| field.value.as_array().is_none_or(|all| !all.is_empty()));
    match (listed.is_empty(), has("ingress"), has("egress")) {
        (false, ..) => types,
        (true, ingress, egress) => [ingress || !egress, egress],
    }
}

fn rules(spec: &At, direction: Direction, namespace: &str, faults: &mut Faults) -> Vec<Rule> {
    let name = match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    };
    let listed = spec.items(name, faults);
    let read =
        |(index, at): (usize, &At)| rule(at, u16::try_from(index).unwrap_or(u16::MAX), direction, namespace, faults);
    listed.iter().enumerate().map(read).collect()
}

fn rule(at: &At, index: u16, direction: Direction, namespace: &str, faults: &mut Faults) -> Rule {
    at.has_only(RULE, faults);
    let action = match at.words("action", faults).map(|(_, action)| action) {
        Some("Allow") => Action::Allow,
        Some("Deny") => Action::Deny,
        Some("Pass") => Action::Pass,
        Some("Log") => Action::Log,
        _ => {
            faults.say(format!("{}.action must be Allow, Deny, Log or Pass", at.path()));
            Action::Deny
        }
    };
    let source = at.field("source").map(|at| entity(&at, namespace, faults)).unwrap_or_default();
    let destination = at.field("destination").map(|at| entity(&at, namespace, faults)).unwrap_or_default();
    let ((peer, from), (own, to)) = match direction {
        Direction::Ingress => (source, destination),
        Direction::Egress => (destination, source),
    };
    let what = What {
        protocol: at.field("protocol").and_then(|at| number_of(&at, faults)),
        not_protocol: at.field("notProtocol").and_then(|at| number_of(&at, faults)),
        icmp: at.field("icmp").and_then(|at| icmp(&at, faults)),
        not_icmp: at.field("notICMP").and_then(|at| icmp(&at, faults)),
        own: to,
        peer: from,
    };
    let asks = |ports: &Ports| ports.any_of.is_some() || !ports.none_of.is_empty();
    if (asks(&what.own) || asks(&what.peer)) && !what.protocol.is_some_and(has_ports) {
        faults.say(format!("{}.protocol must be TCP, UDP or SCTP where there are ports", at.path()));
    }
    if (what.icmp.is_some() || what.not_icmp.is_some()) && !matches!(what.protocol, Some(ICMP | ICMPV6)) {
        faults.say(format!("{}.protocol must be ICMP or ICMPv6 where icmp is given", at.path()));
    }
    let peer = of_version(at, peer, faults);
    Rule { index, action, peer: peer.into(), own: own.into(), what }
}

/// `ipVersion` leaves the prefixes of one family.
fn of_version(at: &At, peer: Peer, faults: &mut Faults) -> Peer {
    let Some(version) = at.field("ipVersion") else { return peer };
    let is_v4 = match version.value.as_i64() {
        Some(4) => true,
        Some(6) => false,
        _ => {
            faults.add(&version, "4 or 6");
            return peer;
        }
    };
    let family = |net: &&IpNet| matches!(net, IpNet::V4(_)) == is_v4;
    let all = if is_v4 { "0.0.0.0/0" } else { "::/0" };
    let nets = match &peer.nets {
        Some(nets) => nets.iter().filter(family).copied().collect(),
        None => Box::from([all.parse().expect("it is one")]),
    };
    Peer { nets: Some(nets), ..peer }
}

fn number_of(at: &At, faults: &mut Faults) -> Option<u8> {
    let number = match at.value.as_str() {
        Some(name) => protocol(name).or_else(|| name.parse().ok()),
        None => at.value.as_i64().and_then(|number| u8::try_from(number).ok()),
    };
    // By 0 some understand every protocol.
    let number = number.filter(|number| *number != 0);
    if number.is_none() {
        faults.add(at, "TCP, UDP, SCTP, ICMP, ICMPv6, UDPLite or a number from 1 to 255");
    }
    number
}

fn icmp(at: &At, faults: &mut Faults) -> Option<Icmp> {
    at.has_only(&["type", "code"], faults);
    let Some(r#type) = at.field("type") else {
        faults.add(at, "a type, and a code where that matters");
        return None;
    };
    // By 255 netfilter understands every type.
    let r#type = r#type.number(0, 254, faults)? as u8;
    let code = at.field("code").and_then(|code| code.number(0, 255, faults)).map(|code| code as u8);
    Some(Icmp { r#type, code })
}

fn entity(at: &At, namespace: &str, faults: &mut Faults) -> (Peer, Ports) {
    at.has_only(ENTITY, faults);
    let labels = selector(at, "selector", faults);
    let spaces = selector_of_spaces(at, faults);
    let account = at.field("serviceAccounts").and_then(|at| account(&at, faults));
    let without = selector(at, "notSelector", faults);
    let is_limited = spaces.is_some() || !namespace.is_empty() && without.is_some();
    let space = match (spaces, namespace) {
        (Some(spaces), _) => Space::Matching(spaces),
        (None, "") => Space::Any,
        (None, namespace) => Space::One(namespace.into()),
    };
    let who = (labels.is_some() || account.is_some() || is_limited).then(|| Who {
        whom: Whom::Calico,
        account,
        ..Who::pods(space, labels.unwrap_or(Selector::All))
    });
    let not_who = without.map(|labels| Who { whom: Whom::Calico, ..Who::pods(Space::Any, labels) });
    let nets = nets(at, "nets", faults);
    let peer =
        Peer { who, not_who, nets: (!nets.is_empty()).then_some(nets), not_nets: self::nets(at, "notNets", faults) };
    let ports = ports(at, "ports", faults);
    (peer, Ports { any_of: (!ports.is_empty()).then_some(ports), none_of: self::ports(at, "notPorts", faults) })
}

fn account(at: &At, faults: &mut Faults) -> Option<Account> {
    at.has_only(&["names", "selector"], faults);
    let names: Box<[Box<str>]> = at.items("names", faults).iter().map(|name| name.text(faults).into()).collect();
    let labels = selector(at, "selector", faults);
    (labels.is_some() || !names.is_empty()).then(|| Account { names, labels: labels.unwrap_or(Selector::All) })
}

/// None: there is none, or it is empty.
fn selector(at: &At, name: &str, faults: &mut Faults) -> Option<Selector> {
    let selector = text_selector(at, name, faults)?;
    if selector.names_global() {
        faults.say(format!("{}.{name} says global(), which is for namespaceSelector", at.path()));
    }
    Some(selector)
}

fn selector_of_spaces(at: &At, faults: &mut Faults) -> Option<Selector> {
    text_selector(at, "namespaceSelector", faults)
}

fn text_selector(at: &At, name: &str, faults: &mut Faults) -> Option<Selector> {
    let (field, text) = at.words(name, faults)?;
    let read = selector::parse(text);
    if let Err(error) = &read {
        faults.say(format!("{} is {:?}, {error}", field.path(), crate::json::shortened(text)));
    }
    read.ok()
}

fn nets(at: &At, name: &str, faults: &mut Faults) -> Box<[IpNet]> {
    at.items(name, faults).iter().filter_map(|net| self::net(net, faults)).collect()
}

/// An address alone is its own prefix.
fn net(at: &At, faults: &mut Faults) -> Option<IpNet> {
    match at.value.as_str().and_then(|text| text.parse::<std::net::IpAddr>().ok()) {
        Some(addr) => Some(addr.into()),
        None => at.net(faults),
    }
}

fn ports(at: &At, name: &str, faults: &mut Faults) -> Box<[Port]> {
    let listed = at.items(name, faults);
    let read = |at: &At| {
        let port = port(at);
        if port.is_none() {
            faults.add(at, "a port, a range such as 80:90, or the name of a port");
        }
        port
    };
    listed.iter().filter_map(read).collect()
}

fn port(at: &At) -> Option<Port> {
    if let Some(number) = at.value.as_i64() {
        let number = u16::try_from(number).ok()?;
        return Some(Port::Range(number, number));
    }
    let text = at.value.as_str()?;
    if let Ok(number) = text.parse() {
        return Some(Port::Range(number, number));
    }
    if let Some((from, to)) = text.split_once(':') {
        let (from, to) = (from.parse().ok()?, to.parse().ok()?);
        return (from <= to).then_some(Port::Range(from, to));
    }
    let is_name = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
    (is_name && text.bytes().any(|b| b.is_ascii_alphabetic())).then(|| Port::Named(text.into()))
}

/// Addresses that have labels as pods have them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkSet {
    pub labels: Labels,
    pub nets: Box<[IpNet]>,
    pub faults: Box<[Box<str>]>,
}

/// What is wrong within a set is left out of it.
pub fn read_set(document: &Document) -> NetworkSet {
    let mut faults = Faults::default();
    let body = document.body();
    let root = At::root(&body);
    let labels = root.field("metadata").and_then(|meta| meta.field("labels"));
    let object = labels.as_ref().and_then(|labels| labels.value.as_object());
    let labels =
        object.into_iter().flatten().filter_map(|(key, value)| Some((key.as_str().into(), value.as_str()?.into())));
    let spec = root.field("spec");
    spec.iter().for_each(|spec| spec.has_only(&["nets"], &mut faults));
    let nets = spec.map(|spec| nets(&spec, "nets", &mut faults)).unwrap_or_default();
    NetworkSet { labels: labels.collect(), nets, faults: faults.kept() }
}
