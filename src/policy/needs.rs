//! What must be watched: nothing that no policy for a pod of ours asks for.

use std::collections::BTreeSet;

use super::Objects;
use super::form::{Peer, Policy, Space, Who, Whom};
use super::selector::Selector;
use crate::cluster::Name;
use crate::peer::{Pod, namespace_of};

/// One watch. Pods of our own node are watched anyway.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// Policies of this namespace.
    Policies(Box<str>),
    /// Policies of the whole cluster.
    GlobalPolicies,
    Pods(Scope),
    Namespaces(Scope),
    Accounts(Scope),
    Nodes(Scope),
    /// Network sets of a namespace, or all of them.
    Sets(Option<Box<str>>),
}

/// Which objects of a kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Scope {
    /// Of one namespace; of the kind of namespaces itself, the one of this name.
    pub space: Option<Box<str>>,
    /// As `labelSelector=`.
    pub labels: Box<str>,
}

/// From so many namespaces on, one watch of all is less than a watch of each.
const MANY: usize = 16;

pub fn needs<'a>(
    locals: impl Iterator<Item = &'a Pod>,
    policies: impl Iterator<Item = &'a Policy> + Clone,
    applies: impl Fn(&Policy) -> bool,
    objects: &Objects,
    peers: impl Iterator<Item = &'a Peer>,
) -> BTreeSet<Need> {
    let mut all = BTreeSet::from([Need::GlobalPolicies]);
    let asks_accounts = policies.clone().any(Policy::asks_accounts);
    // Pods are many, and their namespaces few.
    let spaces: BTreeSet<&str> = locals.map(|pod| namespace_of(&pod.name)).collect();
    for space in spaces {
        let space: Box<str> = space.into();
        if asks_accounts {
            all.insert(Need::Accounts(Scope { space: Some(space.clone()), labels: Box::default() }));
        }
        all.insert(Need::Namespaces(Scope { space: Some(space.clone()), labels: Box::default() }));
        all.insert(Need::Policies(space));
    }
    for peer in peers {
        // What a port's name means is asked of pods that the rule selects in some other way.
        let whos = peer.who.iter().chain(&peer.not_who).filter(|who| who.port.is_none());
        whos.for_each(|who| of_who(who, objects, &mut all));
    }
    // Where it selects nobody, any pod may be meant.
    let asks_all = |policy: &&Policy| {
        let mut rules = policy.ingress.iter().chain(&policy.egress).flatten();
        rules.any(|rule| rule.what.peer.names().next().is_some() && rule.peer.who.is_none())
    };
    if policies.filter(asks_all).any(applies) {
        all.insert(Need::Pods(Scope::default()));
    }
    without_covered(all)
}

fn of_who(who: &Who, objects: &Objects, all: &mut BTreeSet<Need>) {
    let labels = said(&who.labels);
    if who.whom == Whom::Nodes {
        all.insert(Need::Nodes(Scope { space: None, labels }));
        return;
    }
    let by_labels = |prefix| who.whom == Whom::Calico && who.labels.asks(prefix);
    if by_labels("pcns.") {
        let space = if let Space::One(name) = &who.space { Some(name.clone()) } else { None };
        all.insert(Need::Namespaces(Scope { space, labels: Box::default() }));
    }
    let spaces = match &who.space {
        Space::Any => None,
        Space::One(name) => Some(vec![name.clone()]),
        Space::Matching(Selector::All) => None,
        Space::Matching(selector) => {
            all.insert(Need::Namespaces(Scope { space: None, labels: said(selector) }));
            let matching = objects.spaces.iter().filter(|(name, _)| objects.is_in(name, who));
            let matching: Vec<Box<str>> = matching.map(|(name, _)| (**name).into()).collect();
            (matching.len() <= MANY).then_some(matching)
        }
    };
    let spaces = spaces.map_or(vec![None], |some| some.into_iter().map(Some).collect());
    for space in spaces {
        if who.account.as_ref().is_some_and(|account| account.labels != Selector::All) || by_labels("pcsa.") {
            all.insert(Need::Accounts(Scope { space: space.clone(), labels: Box::default() }));
        }
        if who.whom == Whom::Calico {
            all.insert(Need::Sets(space.clone()));
        }
        all.insert(Need::Pods(Scope { space, labels: labels.clone() }));
    }
    if who.whom == Whom::Calico && matches!(who.space, Space::Matching(_)) {
        all.insert(Need::Sets(None));
    }
}

/// As the server takes it; labels that only Calico sees are no labels there.
fn said(selector: &Selector) -> Box<str> {
    selector.without_given().for_server().unwrap_or_default().into()
}

/// A watch of everything makes the others of its kind needless.
fn without_covered(all: BTreeSet<Need>) -> BTreeSet<Need> {
    let covers = |wide: &Scope, scope: &Scope| {
        wide != scope
            && (wide.space.is_none() || wide.space == scope.space)
            && (wide.labels.is_empty() || wide.labels == scope.labels)
    };
    let is_covered = |need: &Need| {
        all.iter().any(|other| match (other, need) {
            (Need::Pods(wide), Need::Pods(scope))
            | (Need::Namespaces(wide), Need::Namespaces(scope))
            | (Need::Accounts(wide), Need::Accounts(scope))
            | (Need::Nodes(wide), Need::Nodes(scope)) => covers(wide, scope),
            (Need::Sets(None), Need::Sets(Some(_))) => true,
            _ => false,
        })
    };
    all.iter().filter(|need| !is_covered(need)).cloned().collect()
}

impl Objects {
    /// Whether pods of a namespace can be selected.
    fn is_in(&self, space: &Name, who: &Who) -> bool {
        let Space::Matching(selector) = &who.space else { return true };
        let labels = self.spaces.get(space);
        let label = |key: &str| match (who.whom, key) {
            (Whom::Calico, "projectcalico.org/name") => Some(&**space),
            _ => labels?.get(key),
        };
        selector.holds(&label, true)
    }
}
