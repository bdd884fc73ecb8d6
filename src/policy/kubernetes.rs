//! NetworkPolicy of networking.k8s.io: only allows, all added up.

use super::form::{Kind, Order, Peer, Place, Policy, PolicyName, Port, Rule, Space, Tier, Who, Whom};
use super::read::{At, ByProtocol, Faults, protocol};
use super::selector::Selector;
use crate::netpol::Document;
use crate::peer::namespace_of;
use crate::rules::{Action, Direction, TCP};

/// Where policies of Kubernetes stand among those of Calico.
const ORDER: f64 = 1000.0;

/// A policy with a fault allows nothing to what it selects.
pub fn read(document: &Document) -> Policy {
    let mut faults = Faults::default();
    let namespace: Box<str> = namespace_of(&document.name).into();
    let body = document.body();
    let root = At::root(&body);
    let spec = root.field("spec");
    let mut subject = Selector::All;
    let mut types = [true, true];
    let mut rules = [Vec::new(), Vec::new()];
    if let Some(spec) = &spec {
        spec.has_only(&["podSelector", "ingress", "egress", "policyTypes"], &mut faults);
        rules = [
            direction(spec, Direction::Ingress, &namespace, &mut faults),
            direction(spec, Direction::Egress, &namespace, &mut faults),
        ];
        types = policy_types(spec, &mut faults);
        let before = faults.count();
        subject = spec.field("podSelector").map_or(Selector::All, |at| at.selector(&mut faults));
        if faults.count() > before {
            subject = Selector::All;
        }
    } else {
        faults.say("spec is not there".to_owned());
    }
    let is_whole = faults.count() == 0;
    if !is_whole {
        faults.say("until that is right, the policy allows nothing to what it selects".to_owned());
    }
    let [ingress, egress] = rules.map(|rules| if is_whole { rules.into() } else { Box::from([]) });
    let name = PolicyName { name: document.name.clone(), kind: Kind::Kubernetes };
    Policy {
        text: name.to_string().into(),
        name,
        place: Place { tier: Tier::Default, order: Order::of(ORDER), is_kubernetes: true },
        subject: Who::pods(Space::One(namespace), subject),
        ingress: types[0].then_some(ingress),
        egress: types[1].then_some(egress),
        faults: faults.kept(),
        is_void: false,
    }
}

/// Whether it speaks of ingress, and of egress; both where that cannot be read.
fn policy_types(spec: &At, faults: &mut Faults) -> [bool; 2] {
    let before = faults.count();
    let listed = spec.items("policyTypes", faults);
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
    let has_egress =
        spec.field("egress").is_some_and(|egress| egress.value.as_array().is_none_or(|all| !all.is_empty()));
    if listed.is_empty() { [true, has_egress] } else { types }
}

fn direction(spec: &At, direction: Direction, namespace: &str, faults: &mut Faults) -> Vec<Rule> {
    let (name, others) = match direction {
        Direction::Ingress => ("ingress", "from"),
        Direction::Egress => ("egress", "to"),
    };
    let mut rules = Vec::new();
    for (index, rule) in spec.items(name, faults).iter().enumerate() {
        rule.has_only(&[others, "ports"], faults);
        let index = u16::try_from(index).unwrap_or(u16::MAX);
        let peers = rule.items(others, faults);
        let mut peers: Vec<Peer> = peers.iter().map(|at| peer(at, direction, namespace, faults)).collect();
        // A list that is not there and one that is empty both mean everyone.
        if peers.is_empty() {
            peers.push(Peer::default());
        }
        let ports = ports(rule, faults);
        for peer in peers {
            let rule = Rule { peer: peer.into(), ..Rule::of_all(index, Action::Allow) };
            match &ports {
                None => rules.push(rule),
                Some(ports) => rules.extend(ports.rules(&rule, direction == Direction::Ingress)),
            }
        }
    }
    rules
}

fn peer(at: &At, direction: Direction, namespace: &str, faults: &mut Faults) -> Peer {
    at.has_only(&["podSelector", "namespaceSelector", "ipBlock"], faults);
    let pods = at.field("podSelector").map(|at| at.selector(faults));
    let spaces = at.field("namespaceSelector").map(|at| at.selector(faults));
    let block = at.field("ipBlock");
    if let (Some(block), None, None) = (&block, &pods, &spaces) {
        block.has_only(&["cidr", "except"], faults);
        let net = block.field("cidr").and_then(|at| at.net(faults));
        if net.is_none() {
            faults.say(format!("{}.cidr is not there or wrong", block.path()));
        }
        let except = block.items("except", faults).iter().filter_map(|at| at.net(faults)).collect();
        return Peer { nets: Some(net.into_iter().collect()), not_nets: except, ..Peer::default() };
    }
    if block.is_some() || pods.is_none() && spaces.is_none() {
        faults.add(at, "podSelector, namespaceSelector, both of these, or ipBlock alone");
    }
    let space = spaces.map_or_else(|| Space::One(namespace.into()), Space::Matching);
    // A node's address stands for all that is on it, which is a way to let too many in, but not to lead astray.
    let whom = if direction == Direction::Egress { Whom::PodsAndHosts } else { Whom::Pods };
    let who = Who { whom, ..Who::pods(space, pods.unwrap_or(Selector::All)) };
    Peer { who: Some(who), ..Peer::default() }
}

/// None: all ports, and all that has none.
fn ports(rule: &At, faults: &mut Faults) -> Option<ByProtocol> {
    let listed = rule.items("ports", faults);
    if listed.is_empty() {
        return None;
    }
    let mut all = ByProtocol::default();
    for at in &listed {
        at.has_only(&["protocol", "port", "endPort"], faults);
        let of = at.words("protocol", faults).map_or(Some(TCP), |(at, name)| {
            let number = ["TCP", "UDP", "SCTP"].contains(&name).then(|| protocol(name)).flatten();
            if number.is_none() {
                faults.add(&at, "TCP, UDP or SCTP");
            }
            number
        });
        let port = port(at, faults);
        all.add(of.unwrap_or(TCP), port);
    }
    Some(all)
}

fn port(at: &At, faults: &mut Faults) -> Option<Port> {
    let end = at.field("endPort");
    let Some(port) = at.field("port") else {
        if let Some(end) = end {
            faults.add(&end, "with a port");
        }
        return None;
    };
    if port.value.is_string() {
        if let Some(end) = end {
            faults.add(&end, "with a port that is a number");
        }
        let name = port.text(faults);
        if !name.bytes().any(|b| b.is_ascii_lowercase()) {
            faults.add(&port, "a number or the name of a port");
        }
        return Some(Port::Named(name.into()));
    }
    let from = port.number(1, 65535, faults)?;
    let to = match end {
        None => from,
        Some(end) => end.number(from, 65535, faults)?,
    };
    Some(Port::Range(from as u16, to as u16))
}
