//! What must be watched: nothing that no policy for a pod of ours asks for.

use std::collections::{BTreeMap, BTreeSet};

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

/// From so many namespaces on, one watch of all is less than a watch of each; and so it is with selectors in a namespace.
const MANY: usize = 16;
/// So many watches of a kind at most: each is a thread here, and a connection.
const MOST: usize = 64;

/// Of which objects, kind by kind, anything is asked.
#[derive(Default)]
struct Asked {
    pods: BTreeSet<Scope>,
    namespaces: BTreeSet<Scope>,
    accounts: BTreeSet<Scope>,
    nodes: BTreeSet<Scope>,
    sets: BTreeSet<Scope>,
}

pub fn needs<'a>(
    locals: impl Iterator<Item = &'a Pod>,
    policies: impl Iterator<Item = &'a Policy> + Clone,
    applies: impl Fn(&Policy) -> bool,
    objects: &Objects,
    peers: impl Iterator<Item = &'a Peer>,
) -> BTreeSet<Need> {
    let (mut all, mut asked) = (BTreeSet::from([Need::GlobalPolicies]), Asked::default());
    let asks_accounts = policies.clone().any(Policy::asks_accounts);
    // Pods are many, and their namespaces few.
    let spaces: BTreeSet<&str> = locals.map(|pod| namespace_of(&pod.name)).collect();
    for space in spaces {
        if asks_accounts {
            asked.accounts.insert(Scope::of(Some(space)));
        }
        asked.namespaces.insert(Scope::of(Some(space)));
        all.insert(Need::Policies(space.into()));
    }
    for peer in peers {
        // What a port's name means is asked of pods that the rule selects in some other way.
        let whos = peer.who.iter().chain(&peer.not_who).filter(|who| who.port.is_none());
        whos.for_each(|who| of_who(who, objects, &mut asked));
    }
    // Where it selects nobody, any pod may be meant.
    let asks_all = |policy: &&Policy| {
        let mut rules = policy.ingress.iter().chain(&policy.egress).flatten();
        rules.any(|rule| rule.what.peer.names().next().is_some() && rule.peer.who.is_none())
    };
    if policies.filter(asks_all).any(applies) {
        asked.pods.insert(Scope::default());
    }
    let mut few = |scopes, need: fn(Scope) -> Need| all.extend(fewest(scopes).into_iter().map(need));
    few(asked.pods, Need::Pods);
    few(asked.namespaces, Need::Namespaces);
    few(asked.accounts, Need::Accounts);
    few(asked.nodes, Need::Nodes);
    few(asked.sets, |scope| Need::Sets(scope.space));
    all
}

fn of_who(who: &Who, objects: &Objects, asked: &mut Asked) {
    let labels = said(&who.labels);
    if who.whom == Whom::Nodes {
        asked.nodes.insert(Scope { space: None, labels });
        return;
    }
    let by_labels = |prefix| who.whom == Whom::Calico && who.labels.asks(prefix);
    if by_labels("pcns.") {
        asked.namespaces.insert(Scope::of(if let Space::One(name) = &who.space { Some(name) } else { None }));
    }
    let spaces = match &who.space {
        Space::Any => None,
        Space::One(name) => Some(vec![&**name]),
        Space::Matching(Selector::All) => None,
        Space::Matching(selector) => {
            asked.namespaces.insert(Scope { space: None, labels: said(selector) });
            let matching = objects.spaces.iter().filter(|(name, _)| objects.is_in(name, who));
            let matching: Vec<&str> = matching.map(|(name, _)| &**name).collect();
            (matching.len() <= MANY).then_some(matching)
        }
    };
    let spaces = spaces.map_or(vec![None], |some| some.into_iter().map(Some).collect());
    for space in spaces {
        if who.account.as_ref().is_some_and(|account| account.labels != Selector::All) || by_labels("pcsa.") {
            asked.accounts.insert(Scope::of(space));
        }
        if who.whom == Whom::Calico {
            asked.sets.insert(Scope::of(space));
        }
        asked.pods.insert(Scope { labels: labels.clone(), ..Scope::of(space) });
    }
    if who.whom == Whom::Calico && matches!(who.space, Space::Matching(_)) {
        asked.sets.insert(Scope::default());
    }
}

/// As the server takes it; labels that only Calico sees are no labels there.
fn said(selector: &Selector) -> Box<str> {
    selector.without_given().for_server().unwrap_or_default().into()
}

/// No more than [`MOST`] that cover these: of all of a namespace where many selectors are about it, or where there are too many over all,
/// and at last of everything.
fn fewest(scopes: BTreeSet<Scope>) -> BTreeSet<Scope> {
    let scopes = without_covered(&scopes);
    let widened = [MANY, 1].into_iter().map(|most| with_whole_spaces(&scopes, most));
    widened.into_iter().find(|few| few.len() <= MOST).unwrap_or_else(|| BTreeSet::from([Scope::default()]))
}

/// Instead of more selectors than `most` in one namespace all of it.
fn with_whole_spaces(scopes: &BTreeSet<Scope>, most: usize) -> BTreeSet<Scope> {
    let mut counts: BTreeMap<Option<&str>, usize> = BTreeMap::new();
    scopes.iter().for_each(|scope| *counts.entry(scope.space.as_deref()).or_default() += 1);
    let widened = |scope: &Scope| match counts[&scope.space.as_deref()] > most {
        true => Scope::of(scope.space.as_deref()),
        false => scope.clone(),
    };
    without_covered(&scopes.iter().map(widened).collect())
}

/// A watch of more makes those of a part of it needless.
fn without_covered(scopes: &BTreeSet<Scope>) -> BTreeSet<Scope> {
    let is_covered = |scope: &Scope| {
        let all_spaces = Scope { space: None, labels: scope.labels.clone() };
        let wider = [Scope::default(), all_spaces, Scope::of(scope.space.as_deref())];
        wider.iter().any(|wide| wide != scope && scopes.contains(wide))
    };
    scopes.iter().filter(|scope| !is_covered(scope)).cloned().collect()
}

impl Scope {
    /// All of a namespace, or of the cluster.
    fn of(space: Option<&str>) -> Scope {
        Scope { space: space.map(Box::from), labels: Box::default() }
    }
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
