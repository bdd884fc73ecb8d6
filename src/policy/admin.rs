//! ClusterNetworkPolicy of policy.networking.k8s.io: before the policies of namespaces, or for those whom none of these selects.

use super::form::{Kind, Order, Peer, Place, Policy, PolicyName, Port, Rule, Space, Tier, Who, Whom};
use super::read::{At, ByProtocol, Faults};
use super::selector::Selector;
use crate::netpol::Document;
use crate::rules::{Action, Direction, SCTP, TCP, UDP};

/// A rule with a fault accepts nothing, and denies all where it would deny or pass: so it is specified. A policy whose subject or
/// place cannot be read denies all.
pub fn read(document: &Document) -> Policy {
    let mut faults = Faults::default();
    let body = document.body();
    let root = At::root(&body);
    let mut place = Place { tier: Tier::Admin, order: Order::of(0.0), is_kubernetes: false };
    let mut subject = Who::pods(Space::Any, Selector::All);
    let mut directions = [None, None];
    match root.field("spec") {
        Some(spec) => {
            spec.has_only(&["tier", "priority", "subject", "ingress", "egress"], &mut faults);
            place = self::place(&spec, &mut faults).unwrap_or(place);
            let before = faults.count();
            let selected = spec.field("subject").and_then(|at| pods(&at, &["namespaces", "pods"], &mut faults));
            match selected {
                Some(who) if faults.count() == before => subject = who,
                _ => faults.say("spec.subject must be namespaces or pods; all pods are taken for selected".to_owned()),
            }
            let is_whole = faults.count() == 0;
            directions = [Direction::Ingress, Direction::Egress].map(|direction| rules(&spec, direction, &mut faults));
            if !is_whole {
                directions = [Some(deny()), Some(deny())];
            }
        }
        None => faults.say("spec is not there".to_owned()),
    }
    let name = PolicyName { name: document.name.clone(), kind: Kind::Cluster };
    let [ingress, egress] = directions;
    Policy {
        text: name.to_string().into(),
        name,
        place,
        subject,
        is_void: ingress.is_none() && egress.is_none(),
        ingress,
        egress,
        faults: faults.kept(),
    }
}

fn deny() -> Box<[Rule]> {
    Box::new([Rule::of_all(0, Action::Deny)])
}

fn place(spec: &At, faults: &mut Faults) -> Option<Place> {
    let tier = match spec.words("tier", faults).map(|(_, tier)| tier) {
        Some("Admin") => Some(Tier::Admin),
        Some("Baseline") => Some(Tier::Baseline),
        _ => {
            faults.say("spec.tier must be Admin or Baseline".to_owned());
            None
        }
    };
    let priority = match spec.field("priority") {
        Some(at) => at.number(0, 1000, faults),
        None => {
            faults.say("spec.priority is not there; it must be a number from 0 to 1000".to_owned());
            None
        }
    };
    Some(Place { tier: tier?, order: Order::of(priority? as f64), is_kubernetes: false })
}

fn rules(spec: &At, direction: Direction, faults: &mut Faults) -> Option<Box<[Rule]>> {
    let (name, others) = match direction {
        Direction::Ingress => ("ingress", "from"),
        Direction::Egress => ("egress", "to"),
    };
    let before = faults.count();
    let listed = spec.items(name, faults);
    if faults.count() > before {
        return Some(deny());
    }
    let mut all = Vec::new();
    for (index, at) in listed.iter().enumerate() {
        let index = u16::try_from(index).unwrap_or(u16::MAX);
        let before = faults.count();
        let action = action(at, faults);
        let rules = rule(at, index, action, others, faults);
        match (faults.count() == before, action) {
            (true, _) => all.extend(rules),
            (false, Action::Allow) => {}
            (false, _) => all.push(Rule::of_all(index, Action::Deny)),
        }
    }
    (!listed.is_empty()).then(|| all.into())
}

fn action(at: &At, faults: &mut Faults) -> Action {
    match at.words("action", faults).map(|(_, action)| action) {
        Some("Accept") => Action::Allow,
        Some("Deny") => Action::Deny,
        Some("Pass") => Action::Pass,
        _ => {
            faults.say(format!("{}.action must be Accept, Deny or Pass", at.path()));
            Action::Deny
        }
    }
}

fn rule(at: &At, index: u16, action: Action, others: &str, faults: &mut Faults) -> Vec<Rule> {
    at.has_only(&["name", "action", others, "protocols"], faults);
    let peers = at.items(others, faults);
    if peers.is_empty() {
        faults.say(format!("{}.{others} must have an item", at.path()));
    }
    let protocols = at.field("protocols").map(|field| protocols(&field, faults));
    let mut rules = Vec::new();
    for peer in &peers {
        let Some(peer) = self::peer(peer, others, faults) else { continue };
        let rule = Rule { peer: peer.into(), ..Rule::of_all(index, action) };
        match &protocols {
            None => rules.push(rule),
            Some(some) => rules.extend(some.rules(&rule, others == "from")),
        }
    }
    rules
}

fn peer(at: &At, others: &str, faults: &mut Faults) -> Option<Peer> {
    if others == "to"
        && let Some(networks) = at.field("networks")
    {
        at.has_only(&["networks"], faults);
        let nets = networks.list(faults).iter().filter_map(|net| net.net(faults)).collect();
        return Some(Peer { nets: Some(nets), ..Peer::default() });
    }
    if others == "to"
        && let Some(nodes) = at.field("nodes")
    {
        at.has_only(&["nodes"], faults);
        let who = Who { whom: Whom::Nodes, ..Who::pods(Space::Any, nodes.selector(faults)) };
        return Some(Peer { who: Some(who), ..Peer::default() });
    }
    let who = pods(at, &["namespaces", "pods"], faults)?;
    Some(Peer { who: Some(who), ..Peer::default() })
}

/// Exactly one of the fields.
fn pods(at: &At, fields: &[&str], faults: &mut Faults) -> Option<Who> {
    at.has_only(fields, faults);
    match (at.field("namespaces"), at.field("pods")) {
        (Some(spaces), None) => Some(Who::pods(Space::Matching(spaces.selector(faults)), Selector::All)),
        (None, Some(pods)) => {
            pods.has_only(&["namespaceSelector", "podSelector"], faults);
            let mut selector = |name| pods.field(name).map_or(Selector::All, |at| at.selector(faults));
            Some(Who::pods(Space::Matching(selector("namespaceSelector")), selector("podSelector")))
        }
        _ => {
            faults.add(at, "one of the fields that are known");
            None
        }
    }
}

fn protocols(field: &At, faults: &mut Faults) -> ByProtocol {
    let mut all = ByProtocol::default();
    let listed = field.list(faults);
    if listed.is_empty() {
        faults.add(field, "a list with an item");
    }
    for at in &listed {
        at.has_only(&["tcp", "udp", "sctp", "destinationNamedPort"], faults);
        let some: Vec<(u8, At)> =
            [("tcp", TCP), ("udp", UDP), ("sctp", SCTP)].iter().filter_map(|(n, p)| Some((*p, at.field(n)?))).collect();
        match (&some[..], at.words("destinationNamedPort", faults)) {
            // A name has the protocol that the container's port has.
            ([], Some((_, name))) => {
                [TCP, UDP, SCTP].map(|of| all.add(of, Some(Port::Named(name.into())))).into_iter().collect()
            }
            ([(of, at)], None) => {
                at.has_only(&["destinationPort"], faults);
                let port = at.field("destinationPort").and_then(|at| port(&at, faults));
                all.add(*of, port);
            }
            _ => faults.add(at, "one of tcp, udp, sctp and destinationNamedPort"),
        }
    }
    all
}

fn port(at: &At, faults: &mut Faults) -> Option<Port> {
    at.has_only(&["number", "range"], faults);
    match (at.field("number"), at.field("range")) {
        (Some(number), None) => {
            let number = number.number(1, 65535, faults)? as u16;
            Some(Port::Range(number, number))
        }
        (None, Some(range)) => {
            range.has_only(&["start", "end"], faults);
            let (Some(start), Some(end)) = (range.field("start"), range.field("end")) else {
                faults.add(&range, "a start and an end");
                return None;
            };
            let start = start.number(1, 65535, faults)?;
            Some(Port::Range(start as u16, end.number(start, 65535, faults)? as u16))
        }
        _ => {
            faults.add(at, "a number or a range");
            None
        }
    }
}
