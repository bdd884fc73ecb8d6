//! What the node object shows of us: desired against seen, and the patch between the two.

use std::time::Duration;

use fastrand::Rng;
use serde_json::{Map, Value, json};

use super::sufficiency::Sufficiency;
use super::{AGAIN, Facts, Now, Pace, Topic};
use crate::object::{Condition, Node, Write};

/// The condition that says whether pods can have addresses.
pub const SUFFICIENT: &str = "SufficientIP";

/// What was written has lasted when it has been there for this long.
const LASTS: Duration = Duration::from_secs(60);

#[derive(Default)]
pub(super) struct Board {
    facts: Option<Facts>,
    sufficiency: Sufficiency,
    status: Pace,
    meta: Pace,
}

impl Board {
    pub fn publish(&mut self, now: Now, facts: Facts) {
        self.sufficiency.hear(now, facts.lack.clone());
        let told = |f: &Facts| (f.resources.clone(), f.annotations.clone());
        if self.facts.as_ref().map(told) != Some(told(&facts)) {
            (self.status, self.meta) = Default::default();
        }
        self.facts = Some(facts);
    }

    pub fn next(&mut self, now: Now, stamp: &str, own: Option<&Node>, rng: &mut Rng) -> Option<(Topic, Write)> {
        let before = self.sufficiency.shown().map(|lack| lack.is_some());
        self.sufficiency.advance(now);
        if before != self.sufficiency.shown().map(|lack| lack.is_some()) {
            self.status = Pace::default();
        }
        let own = own?;
        for (topic, patch) in [(Topic::Status, self.status_patch(own, stamp)), (Topic::Meta, self.meta_patch(own))] {
            let pace = if topic == Topic::Status { &mut self.status } else { &mut self.meta };
            match patch {
                None if pace.next + LASTS <= now => *pace = Pace::default(),
                Some(patch) if pace.next <= now => {
                    pace.later(now, AGAIN, rng);
                    let write = if topic == Topic::Status {
                        Write::node_status(own, patch)
                    } else {
                        Write::node_meta(own, patch)
                    };
                    return Some((topic, write));
                }
                _ => {}
            }
        }
        None
    }

    pub fn due(&self, own: Option<&Node>) -> Option<Now> {
        let wanting = |patch: Option<Value>, pace: &Pace| patch.map(|_| pace.next);
        let written = own.and_then(|own| {
            let status = wanting(self.status_patch(own, ""), &self.status);
            [status, wanting(self.meta_patch(own), &self.meta)].into_iter().flatten().min()
        });
        [written, self.sufficiency.due()].into_iter().flatten().min()
    }

    fn status_patch(&self, own: &Node, stamp: &str) -> Option<Value> {
        let facts = self.facts.as_ref()?;
        let (mut capacity, mut allocatable) = (Map::new(), Map::new());
        for (name, want) in &facts.resources {
            match want {
                Some(count) if own.status.capacity.count(name) != Some(u64::from(*count)) => {
                    capacity.insert((*name).into(), count.to_string().into());
                }
                None if own.status.capacity.contains(name) || own.status.allocatable.contains(name) => {
                    capacity.insert((*name).into(), Value::Null);
                    // The kubelet does the same, later; it fills in what is to be there.
                    allocatable.insert((*name).into(), Value::Null);
                }
                _ => {}
            }
        }
        let mut status = Map::new();
        for (part, resources) in [("capacity", capacity), ("allocatable", allocatable)] {
            if !resources.is_empty() {
                status.insert(part.into(), resources.into());
            }
        }
        if let Some(condition) = self.condition(own, stamp) {
            status.insert("conditions".into(), json!([condition]));
        }
        (!status.is_empty()).then(|| json!({ "status": status }))
    }

    /// The condition to write, unless it is there as it should be. It has changed its mind when its status changes.
    fn condition(&self, own: &Node, stamp: &str) -> Option<Condition> {
        let lack = self.sufficiency.shown()?;
        let seen = own.status.conditions.iter().find(|c| c.r#type == SUFFICIENT);
        let (status, reason, message) = match lack {
            None => ("True", "SufficientIP", "pods can have addresses"),
            Some(lack) => ("False", "InsufficientIP", lack.reason.as_str()),
        };
        let same = seen.is_some_and(|seen| seen.status == status);
        if same && seen.is_some_and(|seen| seen.reason == reason && seen.message == message) {
            return None;
        }
        let since = seen.filter(|seen| same && !seen.last_transition_time.is_empty());
        Some(Condition {
            r#type: SUFFICIENT.into(),
            status: status.into(),
            reason: reason.into(),
            message: message.into(),
            last_heartbeat_time: stamp.into(),
            last_transition_time: since.map_or(stamp, |seen| &seen.last_transition_time).into(),
        })
    }

    fn meta_patch(&self, own: &Node) -> Option<Value> {
        let mut annotations = Map::new();
        for (name, want) in &self.facts.as_ref()?.annotations {
            if own.meta.annotations.get(*name) != want.as_ref() {
                annotations.insert((*name).into(), want.clone().map_or(Value::Null, Value::String));
            }
        }
        (!annotations.is_empty()).then(|| json!({"metadata": {"annotations": annotations}}))
    }
}
