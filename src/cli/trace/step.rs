//! One step of a packet's way, and what became of it.

use serde_json::{Value, json};

use super::super::face::{Failure, Hue, paint};
use crate::error::Error;
use crate::ours;
use crate::plan::{Family, Object, RuleAction};

#[derive(Debug, Clone)]
pub struct Step {
    /// Where: in the pod, on the node, in a table of ours.
    pub place: &'static str,
    pub what: String,
    pub outcome: Outcome,
}

#[derive(Debug, Clone)]
pub enum Outcome {
    Passes,
    /// It goes on, and a person should know this.
    Noted(String),
    Stops {
        why: String,
        remedy: String,
    },
}

/// Why the walk ends before its end.
pub enum Halt {
    /// The last step says why.
    Stopped,
    /// What becomes of it is somebody else's to know.
    Unknown,
    Failed(Failure),
}

impl From<Error> for Halt {
    fn from(e: Error) -> Halt {
        Halt::Failed(e.into())
    }
}

impl Step {
    pub fn text(&self) -> String {
        let line = |hue, word: &str| format!("  {:<5} {:<9} {}", paint(hue, word), self.place, self.what);
        match &self.outcome {
            Outcome::Passes => line(Hue::Good, "ok   ") + "\n",
            Outcome::Noted(note) => format!("{}: {note}\n", line(Hue::Odd, "note ")),
            Outcome::Stops { why, remedy } => {
                format!("{}: {why}\n                  do: {remedy}\n", line(Hue::Bad, "STOP "))
            }
        }
    }

    pub fn json(&self) -> Value {
        let (result, why, remedy) = match &self.outcome {
            Outcome::Passes => ("passes", None, None),
            Outcome::Noted(note) => ("noted", Some(note), None),
            Outcome::Stops { why, remedy } => ("stops", Some(why), Some(remedy)),
        };
        json!({"place": self.place, "what": self.what, "result": result, "why": why, "remedy": remedy})
    }
}

/// What becomes of packets where an object of a plan is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// They stop.
    Carries,
    /// They pass, and nobody judges them.
    Judges,
    /// They pass all the same.
    Aside,
}

pub fn need(object: &Object) -> Need {
    const CARRIERS: [&str; 3] = ["/ip_forward", "/forwarding", "/disable_ipv6"];
    match object {
        Object::Hook(hook) if hook.priority == ours::POLICY_PRIORITY => Need::Judges,
        Object::Sysctl(sysctl) if CARRIERS.iter().any(|end| sysctl.path.ends_with(end)) => Need::Carries,
        Object::Rule(rule) if rule.action == RuleAction::Blackhole => Need::Aside,
        Object::Sysctl(_) | Object::Tbf(_) | Object::Ifb(_) | Object::Redirect(_) | Object::Iptables(_) => Need::Aside,
        _ => Need::Carries,
    }
}

/// Whether packets of this family have to do with it.
pub fn concerns(object: &Object, family: Family) -> bool {
    match object {
        Object::Addr(addr) => Family::of(&addr.net.addr()) == family,
        Object::Route(route) => Family::of(&route.to.addr()) == family,
        Object::Neigh(neigh) => Family::of(&neigh.addr) == family,
        Object::Rule(rule) => rule.family == family,
        Object::Sysctl(sysctl) => sysctl.path.starts_with("net/ipv6/") == (family == Family::V6),
        _ => true,
    }
}
