//! What people hear of the policies: events, what is shown, and why a packet passes or not.

use std::fs;
use std::net::IpAddr;
use std::time::SystemTime;

use serde_json::{Value, json};

use super::feed::Kind;
use super::{Chosen, Loop, name_of};
use crate::daemon::node::Input;
use crate::error::Error;
use crate::object::{self, Event, EventType};
use crate::pod::PodName;
use crate::policy::{About, Refused, Side};
use crate::rpc::{End, Refusal, Reply, Request, Why};
use crate::rules::{DIRECTIONS, Direction, ICMP, ICMPV6, Rule, RuleSet, Rules, SetId, Tier};
use crate::verdict::{Sizes, size};

impl Loop {
    pub(super) fn tell_choice(&self, chosen: &Chosen) {
        let message = format!("network policies are enforced by {}: {}", chosen.way, chosen.why);
        log::info!("{message}");
        // The life before may have told.
        if fs::read(&self.note).is_ok_and(|told| told == message.as_bytes()) {
            return;
        }
        self.tell(object::About::node(&self.node_name), EventType::Normal, "NetworkPolicy", &message);
        if let Err(e) = fs::write(&self.note, &message) {
            log::warn!("write {}: {e}", self.note.display());
        }
    }

    /// What policies there are for new pods is not known then; what is in force goes on.
    pub(super) fn tell_forbidden(&self, what: &str) {
        let message = format!("no new pod is let in while its policies are not known: {what}");
        log::warn!("{message}");
        self.tell(object::About::node(&self.node_name), EventType::Warning, "NetworkPolicyFailed", &message);
    }

    /// Once for each reason, until it is over.
    pub(super) fn complain(&mut self, e: &Error) {
        let why = e.to_string();
        let message = format!(
            "network policies cannot be enforced: {why}; what the kernel holds goes on to hold, pods that come wait; again in {} s",
            self.pause.as_secs()
        );
        log::warn!("{message}");
        if self.complaint.as_ref() != Some(&why) {
            self.tell(object::About::node(&self.node_name), EventType::Warning, "NetworkPolicyFailed", &message);
            self.complaint = Some(why);
        }
    }

    /// The others are held.
    pub(super) fn tell_unheld(&mut self, e: &Error) {
        let why = format!("policies of pods whose packets pass no netfilter of the node cannot be enforced: {e}");
        if self.lameness.as_ref() == Some(&why) {
            return;
        }
        let names: Vec<&str> = self.unheld.iter().map(|name| &**name).collect();
        let message = format!("{why}; others go on; again in {} s: {}", super::RETRY.1.as_secs(), names.join(" "));
        log::warn!("{message}");
        self.tell(object::About::node(&self.node_name), EventType::Warning, "NetworkPolicyFailed", &message);
        self.lameness = Some(why);
    }

    pub(super) fn tell_damaged(&self, what: &str) {
        let message = format!("{what} of network policies were changed by somebody else, and are written anew");
        log::warn!("{message}");
        self.tell(object::About::node(&self.node_name), EventType::Warning, "NetworkPolicyRepaired", &message);
    }

    pub(super) fn tell_refused(&self, Refused { about, reason }: &Refused) {
        log::warn!("{about}: {reason}");
        let text = about.to_string();
        let about = match about {
            About::Policy(name) => policy(name),
            About::Set(name) if name.contains('/') => object::About::named(CALICO, "NetworkSet", name, String::new()),
            About::Set(name) => object::About::named(CALICO, "GlobalNetworkSet", name, String::new()),
            About::HostEndpoint(name) => object::About::named(CALICO, "HostEndpoint", name, String::new()),
        };
        self.tell(about, EventType::Warning, "PolicyRefused", &format!("{text}: {reason}"));
    }

    fn tell(&self, about: object::About, kind: EventType, reason: &str, message: &str) {
        let event = Event::new(about, &self.node_name, kind, reason, message, SystemTime::now());
        let _ = self.inputs.send_blocking(Input::Tell(Box::new(event)));
    }

    /// For `terway-cli show`, and for ADDs that can wait no longer.
    pub(super) fn shown(&self) -> Value {
        let rules = self.model.rules();
        let watches: Vec<Value> =
            self.watches.show().map(|(what, answered)| json!({"what": what, "answered": answered})).collect();
        json!({
            "state": match self.lack() {
                Some(lack) => lack,
                None => "enforced".into(),
            },
            "renderer": self.chosen.as_ref().map(|chosen| chosen.way.to_string()),
            "because": self.chosen.as_ref().map(|chosen| &chosen.why),
            "pods": self.pods.len(),
            "peers": rules.peers.len(),
            "classes": rules.classes.len(),
            "prefixes": rules.prefixes.len(),
            "rule_sets": rules.sets.len(),
            "programs": rules.programs.len(),
            "pairs": rules.pairs.len() + rules.sets.len(),
            "ports": rules.programs.values().map(|program| size(program)).sum::<usize>(),
            "room": self.chosen.as_ref().map(|chosen| {
                let Sizes { classes, pairs, programs, .. } = chosen.room;
                json!({"prefixes": classes, "pairs": pairs, "ports": programs})
            }),
            "writes": self.writes,
            "figures": self.figures,
            "known_pods": self.shelf.count(Kind::Pods),
            "watches": watches,
            "watches_begun": self.watches.begun(),
        })
    }

    pub(super) fn answer(&self, request: Request) -> Reply {
        let answer = match request {
            Request::Why(why) => self.why(&why),
            // Of one that nobody can answer, the others are answered all the same.
            Request::Whys(all) => Ok(all.iter().map(|why| self.why(why).unwrap_or_default()).collect()),
            Request::Rules { pod } => self.rules_of(&pod),
            _ => Err("not a question about policies".into()),
        };
        answer.map_or_else(|reason| Reply::Refused { why: Refusal::BadRequest, reason }, Reply::Show)
    }

    fn why(&self, Why { src, dst, protocol, ports }: &Why) -> Result<Value, String> {
        let (from, to) = (self.addresses(src)?, self.addresses(dst)?);
        let pair = from.iter().find_map(|a| Some((*a, *to.iter().find(|b| a.is_ipv4() == b.is_ipv4())?)));
        let (src, dst) = pair.ok_or("the two have no family of addresses in common")?;
        // Who says ICMP means that of the family.
        let (protocol, ports) = match (*protocol, src) {
            (ICMP, IpAddr::V6(_)) => (ICMPV6, Some((0, ECHO_V6))),
            (protocol, _) => (protocol, *ports),
        };
        let why = self.model.why(src, dst, protocol, ports);
        let side = |side: &Side| {
            json!({
                "pod": &*side.pod,
                "allow": side.cell.allow,
                "by": side.cell.origin.to_string(),
                "class": side.class,
                "peers": side.peers.iter().map(|peer| &**peer).collect::<Vec<_>>(),
            })
        };
        let mut text = format!("{src} -> {dst}: {why}\n");
        if why.egress.is_none() && why.ingress.is_none() {
            text += "neither of the two is a pod of this node with other than itself to speak to: no rules here are asked\n";
        }
        text += &self.lack().map(|lack| format!("not all is known: {lack}\n")).unwrap_or_default();
        Ok(json!({
            "text": text,
            "src": src,
            "dst": dst,
            "src_pod": self.model.pod_at(src).map(|name| &**name),
            "dst_pod": self.model.pod_at(dst).map(|name| &**name),
            "allow": why.allow,
            "egress": why.egress.as_ref().map(side),
            "ingress": why.ingress.as_ref().map(side),
            "lack": self.lack(),
        }))
    }

    fn addresses(&self, end: &End) -> Result<Vec<IpAddr>, String> {
        let pod = match end {
            End::Address(addr) => return Ok(vec![*addr]),
            End::Pod(pod) => pod,
        };
        let known = self.model.addresses(&name_of(pod)).filter(|all| !all.is_empty());
        known.ok_or_else(|| {
            format!(
                "the addresses of pod {pod} are not known on this node: its name may be wrong, it may have none, or no policy here \
                 asks for it; give its address"
            )
        })
    }

    fn rules_of(&self, pod: &PodName) -> Result<Value, String> {
        let (name, rules) = (name_of(pod), self.model.rules());
        let sets =
            rules.pods.get(&name).ok_or_else(|| format!("pod {pod} is none whose policies are enforced here"))?;
        let placed = self.pods.get(&name);
        let mut text = format!("pod {pod}");
        if let Some(placed) = placed {
            placed.ips.iter().for_each(|ip| text += &format!(", {ip}"));
            text += &format!(", seat {}", placed.seat);
        }
        text.push('\n');
        for direction in DIRECTIONS {
            text += &set(rules, direction, sets.of(direction));
        }
        Ok(json!({
            "text": text,
            "pod": pod.to_string(),
            "seat": placed.map(|placed| placed.seat),
            "addresses": placed.map(|placed| &placed.ips),
            "ingress": tiers(rules, sets.ingress),
            "egress": tiers(rules, sets.egress),
        }))
    }
}

/// Type 128, code 0.
const ECHO_V6: u16 = 128 << 8;

const CALICO: &str = "crd.projectcalico.org/v1";

/// What the model calls `networkpolicy shop/web`.
fn policy(name: &str) -> object::About {
    let (kind, name) = name.rsplit_once(' ').unwrap_or(("", name));
    let (api, kind) = match kind {
        "globalnetworkpolicy" => (CALICO, "GlobalNetworkPolicy"),
        "calico networkpolicy" => (CALICO, "NetworkPolicy"),
        "clusternetworkpolicy" => ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy"),
        _ => ("networking.k8s.io/v1", "NetworkPolicy"),
    };
    object::About::named(api, kind, name, String::new())
}

fn set(rules: &Rules, direction: Direction, id: SetId) -> String {
    let direction = if direction == Direction::Ingress { "ingress" } else { "egress" };
    let tiers = rules.sets.get(&id).map(|set| &set.rules.tiers).filter(|tiers| !tiers.is_empty());
    let Some(tiers) = tiers else { return format!("{direction}: everything is allowed, no policy says anything\n") };
    let mut text = format!("{direction}:\n");
    for Tier { rules: all, end } in tiers.iter() {
        all.iter().for_each(|rule| text += &format!("  {}\n", words(rules, rule)));
        if let Some(end) = end {
            let verdict = if end.allow { "allow" } else { "deny" };
            text += &format!("  {verdict} the rest: {}\n", end.origin);
        }
    }
    text
}

fn words(rules: &Rules, rule: &Rule) -> String {
    let action = format!("{:?}", rule.action).to_lowercase();
    format!("{action} {}{}: {}", peer(rules, rule), rule.traffic, rule.origin)
}

fn peer(rules: &Rules, rule: &Rule) -> String {
    rule.peer.map_or("everyone".into(), |peer| rules.peers.get(&peer).map_or_else(String::new, |text| text.to_string()))
}

fn tiers(rules: &Rules, id: SetId) -> Vec<Value> {
    let tiers = |set: &RuleSet| {
        let rule = |rule: &Rule| {
            json!({
                "action": format!("{:?}", rule.action).to_lowercase(),
                "peer": peer(rules, rule),
                "traffic": rule.traffic.to_string().trim_start(),
                "by": rule.origin.to_string(),
            })
        };
        let tier = |tier: &Tier| {
            json!({
                "rules": tier.rules.iter().map(rule).collect::<Vec<_>>(),
                "end": tier.end.as_ref().map(|end| json!({"allow": end.allow, "by": end.origin.to_string()})),
            })
        };
        set.tiers.iter().map(tier).collect()
    };
    rules.sets.get(&id).map(|set| tiers(&set.rules)).unwrap_or_default()
}
