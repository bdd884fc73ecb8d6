//! What an ENI bears beside its addresses, security groups and tags: compared with the settings, and set right one call at a time.

use std::collections::{BTreeMap, BTreeSet};

use super::calls::{enis_of, may_say_again, verb};
use super::eni::{self, Goal, Kernel, Next};
use super::rate::action;
use super::retry::{Backoff, LATE};
use super::state::State;
use super::{Call, Settings};
use crate::eni::{Eni, EniKind, EniState, Fault, FaultKind};
use crate::gather::Gather;
use crate::ours;

/// What the cloud showed of an ENI last.
pub(super) struct Dress {
    groups: BTreeSet<String>,
    pub tags: BTreeMap<String, String>,
    /// After a refusal that only a person can change.
    retry: Backoff,
    /// What was told of it last.
    complaint: Option<String>,
}

impl Dress {
    pub fn of(eni: &Eni) -> Dress {
        let groups = eni.security_groups.iter().cloned().gather();
        Dress { groups, tags: eni.tags.clone(), retry: Backoff::default(), complaint: None }
    }

    pub fn groups(&self) -> &BTreeSet<String> {
        &self.groups
    }

    /// Takes up what the cloud shows now.
    pub fn see(&mut self, eni: &Eni) {
        let groups: BTreeSet<&String> = eni.security_groups.iter().gather();
        if !self.groups.iter().eq(groups) {
            self.groups = eni.security_groups.iter().cloned().gather();
        }
        if self.tags != eni.tags {
            self.tags = eni.tags.clone();
        }
    }

    /// The next call that brings the ENI nearer to what it should bear.
    fn next(&self, id: &str, groups: &BTreeSet<String>, wanted: &BTreeMap<String, String>) -> Option<Call> {
        let eni = id.to_owned();
        if !groups.is_empty() && self.groups != *groups {
            return Some(Call::Regroup { eni, security_groups: groups.clone() });
        }
        let keys = self.unwanted(wanted);
        if !keys.is_empty() {
            return Some(Call::Untag { eni, keys });
        }
        let tags = self.missing(wanted);
        (!tags.is_empty()).then_some(Call::Tag { eni, tags })
    }

    /// Whether the tag with this key, which is there, is one that we have set.
    fn is_ours(&self, key: &str) -> bool {
        let marks = self.tags.get(ours::TAGS_TAG).map_or("", String::as_str);
        [ours::ENI_TAG.0, ours::NODE_TAG, ours::TAGS_TAG].contains(&key) || ours::marks_tag(marks, key)
    }

    /// Somebody else has given this tag another value.
    fn is_others(&self, key: &str, value: &str) -> bool {
        self.tags.get(key).is_some_and(|there| there != value) && !self.is_ours(key)
    }

    /// Tags that we have set and that nobody wants any more.
    fn unwanted(&self, wanted: &BTreeMap<String, String>) -> BTreeSet<String> {
        self.tags.keys().filter(|key| self.is_ours(key) && !wanted.contains_key(*key)).cloned().gather()
    }

    /// Tags that are not there, or have another value although they are ours.
    fn missing(&self, wanted: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        let ours = |(key, value): &(&String, &String)| !self.is_others(key, value);
        let mut all: BTreeMap<String, String> =
            wanted.iter().filter(ours).map(|(key, value)| (key.clone(), value.clone())).gather();
        mark(&mut all);
        all.retain(|key, value| self.tags.get(key) != Some(value));
        all
    }
}

/// The tag is one of `eni_tags`, not one that every ENI of ours bears.
fn is_operators(key: &str) -> bool {
    ![ours::ENI_TAG.0, ours::NODE_TAG, ours::TAGS_TAG].contains(&key)
}

/// Adds to tags the one that says which of them are ours.
pub(super) fn mark(tags: &mut BTreeMap<String, String>) {
    let marks = ours::tag_marks(tags.keys().map(String::as_str).filter(|key| is_operators(key)));
    tags.remove(ours::TAGS_TAG);
    if !marks.is_empty() {
        tags.insert(ours::TAGS_TAG.to_owned(), marks);
    }
}

impl State {
    /// The security groups for our ENIs.
    pub fn groups(&self) -> BTreeSet<String> {
        let own = &self.settings.security_groups;
        if own.is_empty() { &self.instance_groups } else { own }.iter().cloned().gather()
    }

    /// An ENI that has nothing better to do is brought nearer to the groups and tags of the settings.
    pub fn dress(&mut self) {
        let groups = self.groups();
        let ids: Vec<String> = self.nics.keys().cloned().collect();
        for id in ids {
            self.dress_one(&id, &groups);
        }
    }

    fn dress_one(&mut self, id: &str, groups: &BTreeSet<String>) {
        let nic = &self.nics[id];
        if !nic.kept() || nic.state != EniState::InUse || nic.next() != Next::Nothing || nic.busy.is_some() {
            return;
        }
        let Some(call) = nic.dress.next(id, groups, &self.settings.tags) else { return self.mind_others(id) };
        let due = nic.retry.next.max(nic.dress.retry.next);
        if due > self.now {
            return self.at(due);
        }
        if self.may(verb(&call)) {
            self.start(call);
        }
    }

    /// A tag that somebody else has set stays as it is, and that is said.
    fn mind_others(&mut self, id: &str) {
        let dress = &self.nics[id].dress;
        let others = self.settings.tags.iter().filter(|(key, value)| dress.is_others(key, value));
        let others: Vec<String> =
            others.map(|(key, value)| format!("{key}={} (eni_tags says {value:?})", dress.tags[key])).collect();
        if !others.is_empty() {
            let list = others.join(", ");
            self.complain(id, format!("{id} bears tags that terway has not set and does not change: {list}"));
        }
    }

    fn complain(&mut self, id: &str, message: String) {
        let Some(nic) = self.nics.get_mut(id) else { return };
        if nic.dress.complaint.as_ref() != Some(&message) {
            nic.dress.complaint = Some(message.clone());
            self.tell(None, true, "ResourceInvalid", message);
        }
    }

    /// The call was carried out.
    pub fn dressed(&mut self, call: &Call) {
        let Some(nic) = enis_of(call).first().and_then(|id| self.nics.get_mut(id)) else { return };
        let dress = &mut nic.dress;
        match call {
            Call::Regroup { security_groups, .. } => dress.groups = security_groups.clone(),
            Call::Tag { tags, .. } => dress.tags.extend(tags.clone()),
            Call::Untag { keys, .. } => dress.tags.retain(|key, _| !keys.contains(key)),
            _ => {}
        }
        dress.retry.restart(self.now);
        dress.complaint = None;
    }

    /// Pods go on as they are; what only a person can change is told, and tried again late.
    pub fn dress_failed(&mut self, id: &str, call: &Call, fault: &Fault) {
        if may_say_again(fault.kind) || fault.kind == FaultKind::Gone {
            return self.later(id, fault.kind != FaultKind::Throttled);
        }
        if fault.kind == FaultKind::Forbidden {
            let first = !self.blocks.contains_key(&verb(call));
            self.block(verb(call), fault);
            if first {
                let message =
                    format!("{}: {fault}; allow ecs:{} in the RAM policy", intention(call), action(verb(call)).0);
                self.tell(None, true, "ResourceInvalid", message);
            }
            return;
        }
        let Some(nic) = self.nics.get_mut(id) else { return };
        nic.dress.retry.fail(self.now, &LATE, &mut self.rng);
        // What has failed may be what we believe of the ENI.
        nic.stale = true;
        self.complain(id, format!("{}: {fault}", intention(call)));
    }

    // -- what is kept from us --

    /// All that was refused may be tried at once.
    fn lift_refusals(&mut self) {
        self.blocks.clear();
        for nic in self.nics.values_mut() {
            nic.dress.retry = Backoff::default();
            nic.dress.complaint = None;
        }
    }

    /// What was refused to others, or not answered elsewhere, says nothing any more.
    pub fn cloud_changed(&mut self) {
        self.lift_refusals();
        self.gate.hurry(self.now);
        self.survey.hurry(self.now);
        self.vswitches.refresh.next = self.vswitches.refresh.next.min(self.now);
    }

    /// Under new settings what was refused under the old ones may be tried.
    pub fn settings_changed(&mut self) {
        self.lift_refusals();
        let ids: Vec<String> = self.nics.keys().cloned().collect();
        for id in ids {
            self.admit(&id);
        }
    }

    /// Leaves an ENI alone that is kept from us, and takes one up that is not any more.
    pub fn admit(&mut self, id: &str) {
        let (settings, now) = (&self.settings, self.now);
        let Some(nic) = self.nics.get_mut(id) else { return };
        match (nic.goal, eni::admits(settings, &nic.dress.tags)) {
            (Goal::Leave, true) => nic.goal = Goal::Keep,
            (Goal::Keep | Goal::GiveBack, false) => nic.goal = Goal::Leave,
            _ => return,
        }
        self.survey.hurry(now);
    }

    /// Forgets ENIs that are kept from us once nothing of ours is on them; the cloud keeps them as they are.
    pub fn let_go(&mut self) {
        let left: Vec<String> = self
            .nics
            .iter()
            .filter(|(_, n)| n.goal == Goal::Leave && n.busy.is_none() && n.kernel != Kernel::Asked)
            .map(|(id, _)| id.clone())
            .collect();
        for id in left.into_iter().filter(|id| !self.needed(id)).collect::<Vec<_>>() {
            self.forget(&id);
            self.foreign += 1;
        }
    }

    /// Of the whole picture: the instance's own security groups, and the ENIs that take places beside ours.
    pub fn see_instance(&mut self, enis: &[Eni]) {
        let here = |e: &&Eni| e.kind == EniKind::Primary && e.instance.as_ref() == Some(&self.settings.instance);
        if let Some(own) = enis.iter().find(here).filter(|own| !own.security_groups.is_empty()) {
            self.instance_groups = own.security_groups.clone();
        }
        let others = enis.iter().filter(|e| eni::foreign(e, &self.settings) && !self.nics.contains_key(&e.id));
        self.foreign = others.count() as u32;
    }
}

/// What a call was to bring about, naming ENI and groups or tags.
fn intention(call: &Call) -> String {
    match call {
        Call::Regroup { eni, security_groups } => {
            let groups: Vec<&str> = security_groups.iter().map(String::as_str).collect();
            format!("{eni} should be in security groups {}", groups.join(", "))
        }
        Call::Tag { eni, tags } => {
            let tags: Vec<String> = tags.iter().map(|(key, value)| format!("{key}={value}")).collect();
            format!("{eni} should bear the tags {}", tags.join(", "))
        }
        Call::Untag { eni, keys } => {
            let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
            format!("{eni} should not bear the tags {} any more", keys.join(", "))
        }
        other => format!("{other:?}"),
    }
}

/// An ENI without our own tags would not be known as ours after a crash, and one without those of the filter be kept from us.
pub(super) fn with_our_tags(mut settings: Settings) -> Settings {
    settings.tags.extend(settings.tag_filter.clone());
    let (key, value) = ours::ENI_TAG;
    settings.tags.insert(key.to_owned(), value.to_owned());
    settings.tags.insert(ours::NODE_TAG.to_owned(), settings.instance.clone());
    mark(&mut settings.tags);
    settings
}
