//! The specifications once more, as plainly as they are written: one packet at a time, from the objects as they were sent.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::{Map, Value, json};

use crate::rules::Direction;

pub const US: &str = "n1";
pub const NODE: [&str; 2] = ["192.168.0.1", "fd00:192::1"];

/// By `namespace/name`, or name. What has a fault says so in the annotation `broken`, or in the name of its rule.
#[derive(Default, Clone)]
pub struct World {
    pub pods: BTreeMap<String, Value>,
    pub spaces: BTreeMap<String, Value>,
    pub accounts: BTreeMap<String, Value>,
    pub nodes: BTreeMap<String, Value>,
    pub policies: BTreeMap<String, Value>,
    pub admin: BTreeMap<String, Value>,
    pub calico: BTreeMap<String, Value>,
    pub global: BTreeMap<String, Value>,
    pub sets: BTreeMap<String, Value>,
    pub global_sets: BTreeMap<String, Value>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    pub allow: bool,
    pub log: bool,
    /// Policy and rule.
    pub by: Option<(String, u16)>,
}

#[derive(Debug, Clone, Copy)]
pub struct Flow<'a> {
    pub pod: &'a str,
    pub direction: Direction,
    pub other: IpAddr,
    pub protocol: u8,
    /// Of ICMP the second is type and code.
    pub from: u16,
    pub to: u16,
}

type Label<'a> = dyn Fn(&str) -> Option<String> + 'a;
type Selector = (&'static str, fn(&Label) -> bool);

/// Calico selectors that are used here, and what they mean.
pub const SELECTORS: [Selector; 12] = [
    ("all()", |_| true),
    ("a == 'x'", |l| l("a").as_deref() == Some("x")),
    ("a != 'x'", |l| l("a").as_deref() != Some("x")),
    ("has(a) && b in {'x', 'y'}", |l| l("a").is_some() && matches!(l("b").as_deref(), Some("x" | "y"))),
    ("!has(b) || a == \"y\"", |l| l("b").is_none() || l("a").as_deref() == Some("y")),
    ("a starts with 'x'", |l| l("a").is_some_and(|v| v.starts_with('x'))),
    ("b ends with 'y'", |l| l("b").is_some_and(|v| v.ends_with('y'))),
    ("a not in {'y', 'z'}", |l| !matches!(l("a").as_deref(), Some("y" | "z"))),
    ("a contains 'x' && !(b == 'y')", |l| l("a").is_some_and(|v| v.contains('x')) && l("b").as_deref() != Some("y")),
    ("projectcalico.org/namespace == 's2'", |l| l("projectcalico.org/namespace").as_deref() == Some("s2")),
    ("pcns.team == 'x' || pcsa.role == 'x'", |l| {
        l("pcns.team").as_deref() == Some("x") || l("pcsa.role").as_deref() == Some("x")
    }),
    ("has(projectcalico.org/serviceaccount) && a == 'x'", |l| {
        l("projectcalico.org/serviceaccount").is_some() && l("a").as_deref() == Some("x")
    }),
];

/// Those of namespaces: also by the name of one.
pub const SPACE_SELECTORS: [Selector; 4] = [
    ("team == 'x'", |l| l("team").as_deref() == Some("x")),
    ("team != 'x'", |l| l("team").as_deref() != Some("x")),
    ("projectcalico.org/name == 's1'", |l| l("projectcalico.org/name").as_deref() == Some("s1")),
    ("has(team)", |l| l("team").is_some()),
];

fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    value.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

fn list<'a>(value: &'a Value, path: &str) -> &'a [Value] {
    value.pointer(path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn is_broken(policy: &Value) -> bool {
    text(policy, "/metadata/annotations/broken") == "yes"
}

/// Bit by bit.
pub fn is_within(addr: IpAddr, net: &str) -> bool {
    let (base, length) = net.split_once('/').unwrap_or((net, "128"));
    let base: IpAddr = base.parse().unwrap();
    let bits = |addr: IpAddr| match addr {
        IpAddr::V4(v4) => (u128::from(u32::from(v4)) << 96, 32),
        IpAddr::V6(v6) => (u128::from(v6), 128),
    };
    let ((a, width), (b, base_width)) = (bits(addr), bits(base));
    width == base_width && (0..length.parse::<u32>().unwrap().min(width)).all(|i| (a ^ b) >> (127 - i) & 1 == 0)
}

fn is_number(value: &Value) -> Option<u16> {
    value.as_u64().and_then(|n| u16::try_from(n).ok())
}

impl World {
    fn live(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.pods.iter().filter(|(_, pod)| !matches!(text(pod, "/status/phase"), "Succeeded" | "Failed"))
    }

    fn pods_at(&self, addr: IpAddr) -> Vec<&Value> {
        let has = |pod: &Value| list(pod, "/status/podIPs").iter().any(|ip| text(ip, "/ip").parse() == Ok(addr));
        self.live().filter(|(_, pod)| has(pod)).map(|(_, pod)| pod).collect()
    }

    fn space_of(&self, object: &Value) -> Option<&Value> {
        self.spaces.get(text(object, "/metadata/namespace"))
    }

    fn account_of(&self, pod: &Value) -> Option<&Value> {
        self.accounts.get(&format!("{}/{}", text(pod, "/metadata/namespace"), text(pod, "/spec/serviceAccountName")))
    }

    pub fn says(&self, flow: &Flow) -> Said {
        let nobody = |allow| Said { allow, log: false, by: None };
        if flow.direction == Direction::Ingress && NODE.iter().any(|own| own.parse() == Ok(flow.other)) {
            return nobody(true);
        }
        let pod = &self.pods[flow.pod];
        if self.is_unknown(pod) {
            return nobody(false);
        }
        let mut log = false;
        if let Some(said) = self.admin_tier(flow, "Admin") {
            return said;
        }
        let (is_selected, said) = self.namespaces_tier(flow, &mut log);
        match said {
            Some(said) => return said,
            None if is_selected => return Said { allow: false, log, by: None },
            None => {}
        }
        let last = self.admin_tier(flow, "Baseline").unwrap_or_else(|| nobody(true));
        Said { log, ..last }
    }

    /// Labels that decide which policies there are for the pod, or which rules of them, and that nobody has told.
    fn is_unknown(&self, pod: &Value) -> bool {
        let calico = || self.calico.values().chain(self.global.values());
        let asks = |field: &str, prefix: &str| {
            calico().any(|policy| {
                let subject = ["/spec/selector", field].map(|path| text(policy, path));
                let of_subject = !is_broken_subject(policy) && (subject[0].contains(prefix) || !subject[1].is_empty());
                of_subject
                    || own_ends(policy).any(|end| {
                        let labels = ["/selector", "/notSelector"].map(|path| text(end, path));
                        let by = if prefix == "pcsa." { "serviceAccounts" } else { "namespaceSelector" };
                        labels.iter().any(|labels| labels.contains(prefix)) || end.get(by).is_some()
                    })
            })
        };
        let by_space = !self.admin.is_empty() || asks("/spec/namespaceSelector", "pcns.");
        by_space && self.space_of(pod).is_none()
            || asks("/spec/serviceAccountSelector", "pcsa.") && self.account_of(pod).is_none()
    }

    // ClusterNetworkPolicy

    fn admin_tier(&self, flow: &Flow, tier: &str) -> Option<Said> {
        let mut policies: Vec<(&String, &Value)> =
            self.admin.iter().filter(|(_, policy)| text(policy, "/spec/tier") == tier).collect();
        policies.sort_by_key(|(name, policy)| (policy["spec"]["priority"].as_i64(), (*name).clone()));
        for (name, policy) in policies {
            if !self.is_pods(&policy["spec"]["subject"], &self.pods[flow.pod]) {
                continue;
            }
            let (rules, others) = match flow.direction {
                Direction::Ingress => ("/spec/ingress", "/from"),
                Direction::Egress => ("/spec/egress", "/to"),
            };
            for (index, rule) in list(policy, rules).iter().enumerate() {
                let action = text(rule, "/action");
                let said = |allow| {
                    Some(Said { allow, log: false, by: Some((format!("clusternetworkpolicy {name}"), index as u16)) })
                };
                if text(rule, "/name") == "broken" {
                    match action {
                        "Accept" => continue,
                        _ => return said(false),
                    }
                }
                let is_peer = list(rule, others).iter().any(|peer| self.is_admin_peer(peer, flow.other));
                let is_protocol = rule.get("protocols").is_none()
                    || list(rule, "/protocols").iter().any(|one| self.is_admin_protocol(one, flow));
                if is_peer && is_protocol {
                    match action {
                        "Accept" => return said(true),
                        "Deny" => return said(false),
                        _ => return None,
                    }
                }
            }
        }
        None
    }

    /// Pods by `namespaces` or `pods`, never those on the host's network.
    fn is_pods(&self, peer: &Value, pod: &Value) -> bool {
        if pod["spec"]["hostNetwork"] == true {
            return false;
        }
        if let Some(spaces) = peer.get("namespaces") {
            return self.is_in(spaces, pod);
        }
        let Some(pods) = peer.get("pods") else { return false };
        self.is_in(&pods["namespaceSelector"], pod) && is_selected(&pods["podSelector"], pod)
    }

    /// One that selects all namespaces needs to know nothing of the pod's.
    fn is_in(&self, spaces: &Value, pod: &Value) -> bool {
        let says = |field| spaces.get(field).is_some_and(|value| *value != json!({}) && *value != json!([]));
        !says("matchLabels") && !says("matchExpressions")
            || self.space_of(pod).is_some_and(|space| is_selected(spaces, space))
    }

    fn is_admin_peer(&self, peer: &Value, addr: IpAddr) -> bool {
        if peer.get("networks").is_some() {
            return list(peer, "/networks").iter().any(|net| is_within(addr, net.as_str().unwrap()));
        }
        if let Some(nodes) = peer.get("nodes") {
            let at =
                |node: &Value| list(node, "/status/addresses").iter().any(|a| text(a, "/address").parse() == Ok(addr));
            return self.nodes.values().any(|node| at(node) && is_selected(nodes, node));
        }
        self.pods_at(addr).into_iter().any(|pod| self.is_pods(peer, pod))
    }

    fn is_admin_protocol(&self, one: &Value, flow: &Flow) -> bool {
        if let Some(name) = one.get("destinationNamedPort").and_then(Value::as_str) {
            return self.means(name, flow.protocol, flow.to, flow, flow.direction == Direction::Egress, false);
        }
        [("tcp", 6), ("udp", 17), ("sctp", 132)].iter().any(|(name, number)| {
            let Some(of) = one.get(name) else { return false };
            if *number != flow.protocol {
                return false;
            }
            match of.get("destinationPort") {
                None => true,
                Some(port) => match port.get("range") {
                    Some(range) => {
                        (is_number(&range["start"]).unwrap()..=is_number(&range["end"]).unwrap()).contains(&flow.to)
                    }
                    None => is_number(&port["number"]) == Some(flow.to),
                },
            }
        })
    }

    /// Whether a port's name is this number: in the other side's pod, or in our own.
    fn means(&self, name: &str, protocol: u8, number: u16, flow: &Flow, of_other: bool, with_hosts: bool) -> bool {
        let pods = if of_other { self.pods_at(flow.other) } else { vec![&self.pods[flow.pod]] };
        pods.into_iter().filter(|pod| with_hosts || pod["spec"]["hostNetwork"] != true).any(|pod| {
            list(pod, "/spec/containers").iter().flat_map(|c| list(c, "/ports")).any(|port| {
                let is = match text(port, "/protocol") {
                    "UDP" => 17,
                    "SCTP" => 132,
                    _ => 6,
                };
                text(port, "/name") == name && is == protocol && is_number(&port["containerPort"]) == Some(number)
            })
        })
    }

    // Kubernetes and Calico

    /// Whether any policy selects the pod, and what the first rule that decides says. `Pass` leaves the tier.
    fn namespaces_tier(&self, flow: &Flow, log: &mut bool) -> (bool, Option<Said>) {
        let pod = &self.pods[flow.pod];
        let mut selected = false;
        let mut ordered: Vec<(f64, u8, &String, &Value)> = Vec::new();
        for (kind, policies) in [(0, &self.global), (1, &self.calico), (2, &self.policies)] {
            for (name, policy) in policies.iter() {
                let order = if kind == 2 { 1000.0 } else { policy["spec"]["order"].as_f64().unwrap_or(f64::INFINITY) };
                ordered.push((order, kind, name, policy));
            }
        }
        ordered.sort_by(|a, b| {
            let key = |p: &(f64, u8, &String, &Value)| (p.1 == 2, p.2.clone(), p.1);
            a.0.total_cmp(&b.0).then_with(|| key(a).cmp(&key(b)))
        });
        for (_, kind, name, policy) in ordered {
            if kind == 2 {
                let is_ours = text(policy, "/metadata/namespace") == text(pod, "/metadata/namespace");
                if !is_ours || !is_selected(&policy["spec"]["podSelector"], pod) || !speaks(policy, flow.direction) {
                    continue;
                }
                selected = true;
                if let Some(index) = self.kubernetes_rule(policy, flow) {
                    let by = Some((format!("networkpolicy {name}"), index));
                    return (true, Some(Said { allow: true, log: *log, by }));
                }
                continue;
            }
            if !self.is_calico_subject(policy, pod, kind == 0) || !calico_speaks(policy, flow.direction) {
                continue;
            }
            if text(policy, "/metadata/annotations/void") == "yes" {
                continue;
            }
            selected = true;
            let kind = if kind == 0 { "globalnetworkpolicy" } else { "calico networkpolicy" };
            let said = |allow, log, index| Some(Said { allow, log, by: Some((format!("{kind} {name}"), index)) });
            if is_broken(policy) {
                return (true, said(false, *log, 0));
            }
            let rules = if flow.direction == Direction::Ingress { "/spec/ingress" } else { "/spec/egress" };
            for (index, rule) in list(policy, rules).iter().enumerate() {
                if !self.is_calico_rule(rule, policy, flow) {
                    continue;
                }
                match text(rule, "/action") {
                    "Allow" => return (true, said(true, *log, index as u16)),
                    "Deny" => return (true, said(false, *log, index as u16)),
                    "Pass" => return (false, None),
                    _ => *log = true,
                }
            }
        }
        (selected, None)
    }

    fn kubernetes_rule(&self, policy: &Value, flow: &Flow) -> Option<u16> {
        if is_broken(policy) {
            return None;
        }
        let (rules, others) = match flow.direction {
            Direction::Ingress => ("/spec/ingress", "/from"),
            Direction::Egress => ("/spec/egress", "/to"),
        };
        let at = list(policy, rules).iter().position(|rule| {
            let peers = list(rule, others);
            let ports = list(rule, "/ports");
            (peers.is_empty() || peers.iter().any(|peer| self.is_kubernetes_peer(peer, policy, flow)))
                && (ports.is_empty() || ports.iter().any(|port| self.is_kubernetes_port(port, flow)))
        });
        at.map(|index| index as u16)
    }

    fn is_kubernetes_peer(&self, peer: &Value, policy: &Value, flow: &Flow) -> bool {
        if let Some(block) = peer.get("ipBlock") {
            let except = list(block, "/except").iter().any(|net| is_within(flow.other, net.as_str().unwrap()));
            return is_within(flow.other, text(block, "/cidr")) && !except;
        }
        self.pods_at(flow.other).into_iter().any(|pod| {
            let is_in = match peer.get("namespaceSelector") {
                Some(spaces) => self.is_in(spaces, pod),
                None => text(pod, "/metadata/namespace") == text(policy, "/metadata/namespace"),
            };
            let may_be = pod["spec"]["hostNetwork"] != true || flow.direction == Direction::Egress;
            is_in && may_be && peer.get("podSelector").is_none_or(|pods| is_selected(pods, pod))
        })
    }

    fn is_kubernetes_port(&self, port: &Value, flow: &Flow) -> bool {
        let protocol = match text(port, "/protocol") {
            "UDP" => 17,
            "SCTP" => 132,
            _ => 6,
        };
        if protocol != flow.protocol {
            return false;
        }
        match &port["port"] {
            Value::Null => true,
            Value::String(name) => self.means(name, protocol, flow.to, flow, flow.direction == Direction::Egress, true),
            number => {
                let from = is_number(number).unwrap();
                (from..=is_number(&port["endPort"]).unwrap_or(from)).contains(&flow.to)
            }
        }
    }

    fn is_calico_subject(&self, policy: &Value, pod: &Value, is_global: bool) -> bool {
        let space = text(pod, "/metadata/namespace");
        if !is_global && text(policy, "/metadata/namespace") != space {
            return false;
        }
        if is_broken_subject(policy) {
            return true;
        }
        let spaces = text(policy, "/spec/namespaceSelector");
        let accounts = text(policy, "/spec/serviceAccountSelector");
        self.is_calico_pod(text(policy, "/spec/selector"), pod)
            && (spaces.is_empty() || self.is_calico_space(spaces, pod))
            && (accounts.is_empty() || self.is_account(accounts, pod))
    }

    fn is_calico_pod(&self, selector: &str, object: &Value) -> bool {
        let is_pod = object.get("status").is_some();
        let space = text(object, "/metadata/namespace");
        let label = |key: &str| match key {
            "projectcalico.org/namespace" => (!space.is_empty()).then(|| space.to_owned()),
            "projectcalico.org/serviceaccount" if is_pod => Some(text(object, "/spec/serviceAccountName").to_owned()),
            "pcns.team" => self.space_of(object).and_then(|space| label_of(space, "team")),
            "pcsa.role" if is_pod => self.account_of(object).and_then(|account| label_of(account, "role")),
            key => label_of(object, key),
        };
        if selector.is_empty() {
            return true;
        }
        SELECTORS.iter().find(|(text, _)| *text == selector).unwrap().1(&label)
    }

    fn is_calico_space(&self, selector: &str, object: &Value) -> bool {
        let name = text(object, "/metadata/namespace");
        let is_in_any = !name.is_empty();
        match selector {
            "global()" => return !is_in_any,
            "all()" => return is_in_any,
            _ => {}
        }
        let space = self.space_of(object);
        if is_in_any && space.is_none() {
            return false;
        }
        let label = |key: &str| match key {
            "projectcalico.org/name" if is_in_any => Some(name.to_owned()),
            key => space.and_then(|space| label_of(space, key)),
        };
        SPACE_SELECTORS.iter().find(|(text, _)| *text == selector).unwrap().1(&label)
    }

    fn is_account(&self, selector: &str, pod: &Value) -> bool {
        let Some(account) = self.account_of(pod) else { return selector == "all()" };
        SELECTORS.iter().find(|(text, _)| *text == selector).unwrap().1(&|key| label_of(account, key))
    }

    fn is_calico_rule(&self, rule: &Value, policy: &Value, flow: &Flow) -> bool {
        let number = |name: &Value| match name {
            Value::String(name) => Some(match name.as_str() {
                "TCP" => 6,
                "UDP" => 17,
                "SCTP" => 132,
                "ICMP" => 1,
                _ => 58,
            }),
            number => number.as_u64(),
        };
        let protocol = u64::from(flow.protocol);
        let is_icmp = |icmp: &Value| {
            icmp["type"].as_u64() == Some(u64::from(flow.to >> 8))
                && icmp.get("code").is_none_or(|code| code.as_u64() == Some(u64::from(flow.to & 0xff)))
        };
        let version = if flow.other.is_ipv4() { 4 } else { 6 };
        let (source, destination) = match flow.direction {
            Direction::Ingress => (true, false),
            Direction::Egress => (false, true),
        };
        rule.get("protocol").is_none_or(|name| number(name) == Some(protocol))
            && rule.get("notProtocol").is_none_or(|name| number(name) != Some(protocol))
            && rule.get("icmp").is_none_or(is_icmp)
            && !rule.get("notICMP").is_some_and(is_icmp)
            && rule.get("ipVersion").is_none_or(|is| is.as_u64() == Some(version))
            && self.is_entity(&rule["source"], policy, flow, source, flow.from)
            && self.is_entity(&rule["destination"], policy, flow, destination, flow.to)
    }

    fn is_entity(&self, entity: &Value, policy: &Value, flow: &Flow, is_other: bool, port: u16) -> bool {
        // Whoever stands at that end, as pods or as network sets.
        let own = &self.pods[flow.pod];
        let own_addr = || {
            let ips = list(own, "/status/podIPs").iter().map(|ip| text(ip, "/ip").parse::<IpAddr>().unwrap());
            ips.into_iter().find(|ip| ip.is_ipv4() == flow.other.is_ipv4())
        };
        let addr = if is_other { Some(flow.other) } else { own_addr() };
        let standing: Vec<&Value> = match is_other {
            false => vec![own],
            true => {
                let pods = self.pods_at(flow.other).into_iter().filter(|pod| pod["spec"]["hostNetwork"] != true);
                let sets = self.sets.values().chain(self.global_sets.values());
                let has =
                    |set: &&Value| list(set, "/spec/nets").iter().any(|n| is_within(flow.other, n.as_str().unwrap()));
                pods.chain(sets.filter(has)).collect()
            }
        };
        let selector = text(entity, "/selector");
        let not_selector = text(entity, "/notSelector");
        let spaces = text(entity, "/namespaceSelector");
        let accounts = entity.get("serviceAccounts");
        let own_space = text(policy, "/metadata/namespace");
        let is_in = |object: &Value| match spaces {
            "" => own_space.is_empty() || text(object, "/metadata/namespace") == own_space,
            spaces => self.is_calico_space(spaces, object),
        };
        let runs = |object: &Value| {
            accounts.is_none_or(|accounts| {
                let names = list(accounts, "/names");
                let selector = text(accounts, "/selector");
                object.get("status").is_some()
                    && (names.is_empty() || names.iter().any(|name| *name == object["spec"]["serviceAccountName"]))
                    && (selector.is_empty() || self.is_account(selector, object))
            })
        };
        let asks = !selector.is_empty() || !spaces.is_empty() || accounts.is_some();
        let asks = asks || !not_selector.is_empty() && !own_space.is_empty();
        if asks && !standing.iter().any(|object| self.is_calico_pod(selector, object) && is_in(object) && runs(object))
        {
            return false;
        }
        if !not_selector.is_empty() && standing.iter().any(|object| self.is_calico_pod(not_selector, object)) {
            return false;
        }
        let within =
            |path| list(entity, path).iter().any(|n| addr.is_some_and(|addr| is_within(addr, n.as_str().unwrap())));
        if !list(entity, "/nets").is_empty() && !within("/nets") || within("/notNets") {
            return false;
        }
        let is_port = |path| {
            list(entity, path).iter().any(|one| match one {
                Value::String(name) => match name.split_once(':') {
                    Some((from, to)) => (from.parse().unwrap()..=to.parse().unwrap()).contains(&port),
                    None => self.means(name, flow.protocol, port, flow, is_other, false),
                },
                number => is_number(number) == Some(port),
            })
        };
        (list(entity, "/ports").is_empty() || is_port("/ports")) && !is_port("/notPorts")
    }
}

/// Nobody can tell whom it selects.
fn is_broken_subject(policy: &Value) -> bool {
    text(policy, "/metadata/annotations/subject") == "broken"
}

/// What rules of Calico's say of the pod itself.
fn own_ends(policy: &Value) -> impl Iterator<Item = &Value> {
    let ends = [(Direction::Ingress, "/spec/ingress", "/destination"), (Direction::Egress, "/spec/egress", "/source")];
    let spoken = ends.into_iter().filter(|(direction, ..)| !is_broken(policy) && calico_speaks(policy, *direction));
    spoken.flat_map(|(_, rules, end)| list(policy, rules).iter().filter_map(move |rule| rule.pointer(end)))
}

/// Whether a policy of Kubernetes is about this direction.
fn speaks(policy: &Value, direction: Direction) -> bool {
    let types = list(policy, "/spec/policyTypes");
    match direction {
        _ if !types.is_empty() => types.iter().any(|one| *one == format!("{direction:?}").as_str()),
        Direction::Ingress => true,
        Direction::Egress => !list(policy, "/spec/egress").is_empty(),
    }
}

fn calico_speaks(policy: &Value, direction: Direction) -> bool {
    let types = list(policy, "/spec/types");
    if is_broken_subject(policy) && policy.get("spec").is_none() {
        return true;
    }
    let (ingress, egress) = (!list(policy, "/spec/ingress").is_empty(), !list(policy, "/spec/egress").is_empty());
    match direction {
        _ if !types.is_empty() => types.iter().any(|one| *one == format!("{direction:?}").as_str()),
        Direction::Ingress => ingress || !egress,
        Direction::Egress => egress,
    }
}

fn label_of(object: &Value, key: &str) -> Option<String> {
    object["metadata"]["labels"].get(key).and_then(Value::as_str).map(str::to_owned)
}

/// A label selector of Kubernetes; one that is not there selects everything.
fn is_selected(selector: &Value, object: &Value) -> bool {
    let empty = Map::new();
    let labels = selector.get("matchLabels").and_then(Value::as_object).unwrap_or(&empty);
    labels.iter().all(|(key, value)| label_of(object, key).as_deref() == value.as_str())
        && list(selector, "/matchExpressions").iter().all(|one| {
            let label = label_of(object, text(one, "/key"));
            let is_in = || list(one, "/values").iter().any(|value| label.as_deref() == value.as_str());
            match text(one, "/operator") {
                "In" => is_in(),
                "NotIn" => !is_in(),
                "Exists" => label.is_some(),
                _ => label.is_none(),
            }
        })
}
