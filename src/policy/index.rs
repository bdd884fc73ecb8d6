//! Who is selected by whom: each selector in use once, and what it selects, kept up as either side changes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::form::{Account, Space, Who, Whom};
use super::selector::{Selector, is_given};
use crate::cluster::Name;
use crate::peer::{ContainerPort, Labels, namespace_of};

/// A selector that some peer rests on.
pub type WhoId = u32;

/// Something that has addresses.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Pod(Name),
    Node(Name),
    /// A network set.
    Set(Name),
}

/// What is asked of it.
pub struct Entity<'a> {
    pub key: &'a Key,
    pub labels: &'a Labels,
    /// Of its namespace, where that is known.
    pub space: Option<&'a Labels>,
    /// It has its node's addresses.
    pub is_on_host: bool,
    pub account: &'a str,
    pub account_labels: Option<&'a Labels>,
    pub ports: &'a [ContainerPort],
}

impl<'a> Entity<'a> {
    fn namespace(&self) -> &'a str {
        match self.key {
            Key::Pod(name) | Key::Set(name) => namespace_of(name),
            Key::Node(_) => "",
        }
    }

    /// A label as Calico sees it: its own, those that it has by itself, and those of its namespace and account.
    fn calico_label(&self, key: &str) -> Option<&'a str> {
        let is_pod = matches!(self.key, Key::Pod(_));
        let space = Some(self.namespace()).filter(|name| !name.is_empty());
        match key {
            "projectcalico.org/namespace" => space,
            "projectcalico.org/orchestrator" if is_pod => Some("k8s"),
            "projectcalico.org/serviceaccount" if is_pod => Some(self.account),
            _ => self.labels.get(key).or_else(|| {
                if let Some(key) = key.strip_prefix("pcns.") {
                    return self.space_label(key);
                }
                self.account_label(key.strip_prefix("pcsa.").filter(|_| is_pod)?)
            }),
        }
    }

    fn space_label(&self, key: &str) -> Option<&'a str> {
        space_label(self.namespace(), self.space, key)
    }

    fn account_label(&self, key: &str) -> Option<&'a str> {
        if key == "projectcalico.org/name" { Some(self.account) } else { self.account_labels?.get(key) }
    }

    /// What is not known of it is selected by nothing.
    pub fn is_selected(&self, by: &Who) -> bool {
        let is_kind = match (by.whom, self.key) {
            (Whom::Pods, Key::Pod(_)) => !self.is_on_host,
            (Whom::PodsAndHosts, Key::Pod(_)) => true,
            (Whom::Calico, Key::Pod(_)) => !self.is_on_host,
            (Whom::Calico, Key::Set(_)) | (Whom::Nodes, Key::Node(_)) => true,
            _ => false,
        };
        is_kind
            && by.port.as_ref().is_none_or(|port| {
                let is =
                    |p: &ContainerPort| (&*p.name, p.protocol, p.number) == (&*port.name, port.protocol, port.number);
                self.ports.iter().any(is)
            })
            && self.is_in(&by.space, by.whom == Whom::Calico)
            && match by.whom {
                Whom::Calico => by.labels.matches(&|key: &str| self.calico_label(key)),
                _ => by.labels.matches(&|key: &str| self.labels.get(key)),
            }
            && by.account.as_ref().is_none_or(|account| self.runs_as(account))
    }

    fn is_in(&self, space: &Space, is_calico: bool) -> bool {
        is_in(self.namespace(), self.space, space, is_calico)
    }

    fn runs_as(&self, account: &Account) -> bool {
        let any = account.labels == Selector::All;
        matches!(self.key, Key::Pod(_))
            && (account.names.is_empty() || account.names.iter().any(|name| **name == *self.account))
            && (any || self.account_labels.is_some() && account.labels.matches(&|key: &str| self.account_label(key)))
    }
}

/// Whether a pod of this namespace with these labels may be selected; what else is asked differs from one such pod to the other.
pub fn may_select(by: &Who, namespace: &str, space: Option<&Labels>, labels: &Labels) -> bool {
    let is_calico = by.whom == Whom::Calico;
    by.whom != Whom::Nodes
        && is_in(namespace, space, &by.space, is_calico)
        && (is_calico && by.labels.asks_given() || by.labels.matches(&|key: &str| labels.get(key)))
}

fn is_in(namespace: &str, space: Option<&Labels>, wanted: &Space, is_calico: bool) -> bool {
    match wanted {
        Space::Any => true,
        Space::One(name) => **name == *namespace,
        // A set of the whole cluster: labels of a namespace it has none.
        // Of all namespaces nobody needs to know anything.
        Space::Matching(Selector::All) => !namespace.is_empty(),
        Space::Matching(selector) if namespace.is_empty() => selector.holds(&|_: &str| None, false),
        Space::Matching(selector) => space.is_some_and(|labels| match is_calico {
            true => selector.holds(&|key: &str| space_label(namespace, space, key), true),
            false => selector.holds(&|key: &str| labels.get(key), true),
        }),
    }
}

fn space_label<'a>(namespace: &'a str, space: Option<&'a Labels>, key: &str) -> Option<&'a str> {
    if key == "projectcalico.org/name" { Some(namespace) } else { space?.get(key) }
}

const SPACE: &str = "\0namespace";
const PORT: &str = "\0port";

#[derive(Default)]
pub struct Index {
    whos: BTreeMap<WhoId, (Arc<Who>, u32)>,
    ids: HashMap<Arc<Who>, WhoId>,
    /// Those that select nothing without this label of that value.
    anchored: HashMap<Box<str>, HashMap<Box<str>, BTreeSet<WhoId>>>,
    loose: BTreeSet<WhoId>,
    next: WhoId,
}

impl Index {
    pub fn who(&self, id: WhoId) -> &Arc<Who> {
        &self.whos[&id].0
    }

    /// One more use of it; true: it is new.
    pub fn hold(&mut self, who: &Who) -> (WhoId, bool) {
        if let Some(id) = self.ids.get(who) {
            self.whos.get_mut(id).expect("it has an id").1 += 1;
            return (*id, false);
        }
        self.next += 1;
        let (id, who) = (self.next, Arc::new(who.clone()));
        match anchor(&who) {
            Some((key, value)) => {
                self.anchored.entry(key.into()).or_default().entry(value.into()).or_default().insert(id);
            }
            None => drop(self.loose.insert(id)),
        }
        self.ids.insert(who.clone(), id);
        self.whos.insert(id, (who, 1));
        (id, true)
    }

    /// One use less; true: it was the last.
    pub fn release(&mut self, id: WhoId) -> bool {
        let Some((who, uses)) = self.whos.get_mut(&id) else { return false };
        *uses -= 1;
        if *uses > 0 {
            return false;
        }
        let who = who.clone();
        match anchor(&who) {
            Some((key, value)) => {
                let values = self.anchored.get_mut(key).expect("it was put there");
                let some = values.get_mut(value).expect("it was put there");
                some.remove(&id);
                if some.is_empty() {
                    values.remove(value);
                }
                if values.is_empty() {
                    self.anchored.remove(key);
                }
            }
            None => drop(self.loose.remove(&id)),
        }
        self.ids.remove(&who);
        self.whos.remove(&id).is_some()
    }

    /// All that select it, in order.
    pub fn selecting(&self, entity: &Entity) -> Vec<WhoId> {
        let mut found: Vec<WhoId> = self.candidates(entity).filter(|id| entity.is_selected(self.who(*id))).collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    fn candidates<'a>(&'a self, entity: &'a Entity) -> impl Iterator<Item = WhoId> + 'a {
        let space = [(SPACE, entity.namespace())];
        let ports = entity.ports.iter().map(|port| (PORT, &*port.name));
        let keys = entity.labels.iter().chain(space).chain(ports);
        let anchored = keys.filter_map(|(key, value)| self.anchored.get(key)?.get(value)).flatten();
        anchored.chain(&self.loose).copied()
    }
}

fn anchor(who: &Who) -> Option<(&str, &str)> {
    if let Some(port) = &who.port {
        return Some((PORT, &port.name));
    }
    let label = who.labels.anchor().filter(|(key, _)| who.whom != Whom::Calico || !is_given(key));
    label.or(match &who.space {
        Space::One(name) => Some((SPACE, name)),
        _ => None,
    })
}
