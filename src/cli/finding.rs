//! Something that is wrong, and what a person does about it.

use serde_json::{Value, json};

use super::face::{Hue, paint};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// Pods suffer by it, or will.
    Problem,
    /// Good to know.
    Note,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub weight: Weight,
    pub what: String,
    pub remedy: String,
}

impl Finding {
    pub fn problem(what: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding { weight: Weight::Problem, what: what.into(), remedy: remedy.into() }
    }

    pub fn note(what: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding { weight: Weight::Note, what: what.into(), remedy: remedy.into() }
    }

    pub fn is_problem(&self) -> bool {
        self.weight == Weight::Problem
    }

    pub fn text(&self) -> String {
        let (hue, word) = match self.weight {
            Weight::Problem => (Hue::Bad, "problem"),
            Weight::Note => (Hue::Odd, "note"),
        };
        let remedy = if self.remedy.is_empty() { String::new() } else { format!("         do: {}\n", self.remedy) };
        format!("{:<8} {}\n{remedy}", paint(hue, word), self.what)
    }

    pub fn json(&self) -> Value {
        let weight = if self.is_problem() { "problem" } else { "note" };
        json!({"weight": weight, "what": self.what, "remedy": self.remedy})
    }
}

/// What a person does where the daemon refuses for this reason (`rpc::Refusal`).
pub fn remedy(why: &str) -> &'static str {
    match why {
        "node_full" => {
            "fewer pods on this node (kubelet --max-pods), or an instance type with more ENIs: terway-cli plan-cluster"
        }
        "quota" => {
            "have the account's quota raised in the console (ENIs, addresses), or give back ENIs that nobody uses"
        }
        "v_switch_empty" => {
            "add a vSwitch of this zone to `vswitches` in /etc/eni/eni.json, which is taken over at once"
        }
        "throttled" => {
            "nothing: calls are made more slowly until the cloud has recovered; others may use up the account's rate"
        }
        "forbidden" => {
            "give the role or key the rights in /usr/share/doc/terway/ram-policy.json; terway-cli doctor asks again"
        }
        "cloud_down" => "nothing while the cloud fails; else see whether the API is reached: terway-cli doctor",
        "api_down" => "see whether the API server is reached with the daemon's kubeconfig: terway-cli doctor",
        "policies" => "see what is not known yet: terway-cli show, under policies",
        "local" => "look at the journal (journalctl -u terwayd) and for room in /run (df /run)",
        "starting" => "wait; journalctl -u terwayd says what for",
        _ => "journalctl -u terwayd",
    }
}
