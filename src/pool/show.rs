//! The pool as people see it, and its numbers.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::eni::{Address, Goal, Kernel, Nic};
use super::state::State;
use crate::ip::Mac;
use crate::rpc::Refusal;

/// How much there is of what. To count it takes no look at each address, unlike what is shown to people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Figures {
    /// Pods have ENIs, not addresses of them.
    pub whole: bool,
    pub capacity: u32,
    pub min_idle: u32,
    pub max_idle: u32,
    pub max_enis: u32,
    pub idle: u32,
    pub leased: u32,
    pub cooling: u32,
    pub reserved: u32,
    pub waiting: u32,
    pub lost: u32,
    /// Why no address can be had.
    pub trouble: Option<Refusal>,
    /// The addresses of each ENI.
    pub enis: Vec<(Mac, u32)>,
}

impl State {
    pub fn figures(&self) -> Figures {
        let reserved = self.rests.values().filter(|r| r.reserved.is_some()).count();
        Figures {
            whole: self.settings.whole,
            capacity: self.max_enis() * self.per_eni(),
            min_idle: self.settings.min_idle,
            max_idle: self.settings.max_idle,
            max_enis: self.max_enis(),
            idle: self.idle(),
            leased: self.leases.len() as u32,
            cooling: (self.rests.len() - reserved) as u32,
            reserved: reserved as u32,
            waiting: self.waiting.len() as u32,
            lost: self.lost.len() as u32,
            trouble: self.obstacle().map(|refused| refused.why),
            enis: self.nics.values().map(|nic| (nic.mac, nic.addresses.len() as u32)).collect(),
        }
    }

    pub fn show(&self) -> Value {
        json!({
            "ip_stack": self.settings.stack,
            "eni_per_pod": self.settings.whole,
            "capacity": self.max_enis() * self.per_eni(),
            "idle": self.idle(),
            "leased": self.leases.len(),
            "cooling": self.rests.values().filter(|r| r.reserved.is_none()).count(),
            "reserved": self.rests.values().filter(|r| r.reserved.is_some()).count(),
            "min_idle": self.settings.min_idle,
            "max_idle": self.settings.max_idle,
            "max_enis": self.max_enis(),
            "enis": self.nics.iter().map(|(id, nic)| self.show_nic(id, nic)).collect::<Vec<_>>(),
            "creating": self.creates.len(),
            "lost": self.lost.iter().map(|a| self.show_lost(a)).collect::<Vec<_>>(),
            "waiting": self.waiting.iter().map(|w| json!({
                "ticket": w.ticket,
                "pod": w.pod.to_string(),
                "waited_secs": self.now.saturating_sub(w.since).as_secs(),
                "left_secs": w.deadline.saturating_sub(self.now).as_secs(),
            })).collect::<Vec<_>>(),
            "vswitches": self.vswitches.show(self.now),
            "trouble": self.obstacle().map(|r| json!({"why": r.why, "reason": r.reason})),
            "cloud": {
                "calls": self.calls.len(),
                "at_once": self.gate.width,
                "gap_millis": self.gate.gap().as_millis() as u64,
                "outage": self.gate.outage().map(|(fault, next)| json!({
                    "fault": fault.to_string(),
                    "next_try_secs": next.saturating_sub(self.now).as_secs(),
                })),
                "refused": self.blocks.iter().map(|(verb, block)| json!({
                    "verb": format!("{verb:?}"),
                    "why": block.refused.why,
                    "reason": block.refused.reason,
                    "next_try_secs": block.until.saturating_sub(self.now).as_secs(),
                })).collect::<Vec<_>>(),
            },
        })
    }

    fn show_nic(&self, id: &str, nic: &Nic) -> Value {
        let addresses = nic.addresses.iter().map(|(ip, a)| self.show_address(nic, *ip, a)).collect::<Vec<_>>();
        json!({
            "id": id,
            "mac": nic.mac,
            "vswitch": nic.vswitch,
            "security_groups": nic.dress.groups(),
            "tags": nic.dress.tags,
            "prefixes": nic.prefixes,
            "state": state(nic),
            "link": match &nic.kernel {
                Kernel::Ready(link) => json!({"ifindex": link.ifindex, "slot": link.slot}),
                _ => Value::Null,
            },
            "complaint": nic.complaint,
            "failures": nic.retry.fails,
            "addresses": addresses,
            "not_used": nic.suspect,
        })
    }

    fn show_address(&self, nic: &Nic, ip: IpAddr, address: &Address) -> Value {
        let mut value = json!({"ip": ip, "primary": ip == IpAddr::V4(nic.primary)});
        if let Some(held) = self.leases.values().find(|h| h.ip.iter().any(|held| held == ip)) {
            value["state"] = "leased".into();
            value["pod"] = held.pod.to_string().into();
            value["attachment"] = held.sandbox.attachment.to_string().into();
        } else if let Some(until) = self.resting.get(&ip) {
            let kept = self.rests.iter().find(|(pair, r)| r.reserved.is_some() && pair.iter().any(|other| other == ip));
            match kept.and_then(|(_, rest)| rest.reserved.as_ref()) {
                Some(pod) => (value["state"], value["pod"]) = ("reserved".into(), pod.to_string().into()),
                None => value["state"] = "cooling".into(),
            }
            value["left_secs"] = until.saturating_sub(self.now).as_secs().into();
        } else {
            value["state"] = if address.leaving { "leaving" } else { "idle" }.into();
        }
        value
    }

    fn show_lost(&self, attachment: &crate::pod::Attachment) -> Value {
        let held = &self.leases[attachment];
        json!({"attachment": attachment.to_string(), "pod": held.pod.to_string(), "eni": held.eni, "ip": held.ip})
    }
}

fn state(nic: &Nic) -> String {
    match nic {
        Nic { missing: true, .. } => "missing".into(),
        Nic { goal: Goal::Leave, .. } => "left alone: tags of the configuration keep us from it".into(),
        Nic { goal: Goal::GiveBack, .. } => format!("giving back: {:?}", nic.state),
        _ if nic.serves_one() => "lent".into(),
        _ if nic.serves() => "serving".into(),
        _ => format!("{:?}", nic.state),
    }
}
