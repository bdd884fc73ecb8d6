//! One watch on a thread of its own: which objects of which kind, and how what it tells reaches the loop.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use super::News;
use super::scout::Scout;
use crate::cluster::Name;
use crate::daemon::news::{End, follow, heard};
use crate::daemon::threads;
use crate::error::Error;
use crate::kube::{Change, Select, Stop};
use crate::netpol::{self, Collection, Document};
use crate::object::Object;
use crate::peer::{Namespace, Node, Pod, ServiceAccount};
use crate::policy::{Need, Scope, Told};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Told(Told),
    Pods,
    Namespaces,
    Accounts,
    Nodes,
}

/// What one watch is asked for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wish {
    pub kind: Kind,
    /// Empty: of all namespaces.
    pub space: Box<str>,
    /// Empty: whatever its name is.
    pub name: Box<str>,
    pub labels: Box<str>,
}

/// Objects of any kind.
#[derive(Debug, Clone, PartialEq)]
pub enum Thing {
    Document(Document),
    Pod(Pod),
    Namespace(Namespace),
    Account(ServiceAccount),
    Node(Node),
}

impl Thing {
    pub fn name(&self) -> &Name {
        match self {
            Thing::Document(one) => &one.name,
            Thing::Pod(one) => &one.name,
            Thing::Namespace(one) => &one.0.name,
            Thing::Account(one) => &one.0.name,
            Thing::Node(one) => &one.name,
        }
    }

    pub fn version(&self) -> &str {
        match self {
            Thing::Document(one) => &one.version,
            Thing::Pod(one) => &one.version,
            Thing::Namespace(one) => &one.0.version,
            Thing::Account(one) => &one.0.version,
            Thing::Node(one) => &one.version,
        }
    }
}

impl Kind {
    /// Where it is found; the second place is asked where there is no first.
    fn places(self) -> &'static [Collection] {
        const PODS: [Collection; 1] = [Collection::of::<Pod>()];
        const NAMESPACES: [Collection; 1] = [Collection::of::<Namespace>()];
        const ACCOUNTS: [Collection; 1] = [Collection::of::<ServiceAccount>()];
        const NODES: [Collection; 1] = [Collection::of::<Node>()];
        match self {
            Kind::Told(Told::NetworkPolicy) => &[netpol::NETWORK_POLICIES],
            Kind::Told(Told::ClusterNetworkPolicy) => &[netpol::CLUSTER_POLICIES],
            Kind::Told(Told::CalicoNetworkPolicy) => &netpol::CALICO_POLICIES,
            Kind::Told(Told::CalicoGlobalNetworkPolicy) => &netpol::CALICO_GLOBAL_POLICIES,
            Kind::Told(Told::NetworkSet) => &netpol::CALICO_SETS,
            Kind::Told(Told::GlobalNetworkSet) => &netpol::CALICO_GLOBAL_SETS,
            Kind::Told(Told::HostEndpoint) => &netpol::CALICO_HOST_ENDPOINTS,
            Kind::Pods => &PODS,
            Kind::Namespaces => &NAMESPACES,
            Kind::Accounts => &ACCOUNTS,
            Kind::Nodes => &NODES,
        }
    }

    /// A cluster may be without it.
    fn may_be_absent(self) -> bool {
        matches!(self, Kind::Told(told) if told != Told::NetworkPolicy)
    }

    /// For people.
    pub fn plural(self) -> &'static str {
        match self {
            Kind::Told(Told::CalicoNetworkPolicy) => "network policies of Calico",
            Kind::Told(Told::NetworkPolicy) => "network policies",
            kind => kind.places()[0].plural,
        }
    }
}

/// The watches that a need comes to.
pub fn wishes(need: &Need) -> Vec<Wish> {
    let told = |told, space: &str| Wish {
        kind: Kind::Told(told),
        space: space.into(),
        name: Box::default(),
        labels: Box::default(),
    };
    let scoped = |kind, Scope { space, labels }: &Scope| Wish {
        kind,
        space: space.clone().unwrap_or_default(),
        name: Box::default(),
        labels: labels.clone(),
    };
    match need {
        Need::Policies(space) => vec![told(Told::NetworkPolicy, space), told(Told::CalicoNetworkPolicy, space)],
        Need::GlobalPolicies => vec![
            told(Told::ClusterNetworkPolicy, ""),
            told(Told::CalicoGlobalNetworkPolicy, ""),
            told(Told::HostEndpoint, ""),
        ],
        Need::Pods(scope) => vec![scoped(Kind::Pods, scope)],
        Need::Accounts(scope) => vec![scoped(Kind::Accounts, scope)],
        Need::Nodes(scope) => vec![scoped(Kind::Nodes, scope)],
        Need::Namespaces(scope) => {
            let Wish { kind, space: name, labels, .. } = scoped(Kind::Namespaces, scope);
            vec![Wish { kind, space: Box::default(), name, labels }]
        }
        Need::Sets(Some(space)) => vec![told(Told::NetworkSet, space)],
        Need::Sets(None) => vec![told(Told::NetworkSet, ""), told(Told::GlobalNetworkSet, "")],
    }
}

impl Wish {
    /// The namespace of pods of ours that it is about, if it is about no others.
    pub fn own_space(&self) -> Option<&str> {
        let space = match self.kind {
            Kind::Told(Told::NetworkPolicy | Told::CalicoNetworkPolicy) => &self.space,
            Kind::Namespaces => &self.name,
            _ => return None,
        };
        Some(space).filter(|space| !space.is_empty()).map(|space| &**space)
    }

    fn select(&self) -> Select {
        let fields = if self.name.is_empty() { String::new() } else { format!("metadata.name={}", self.name) };
        Select { namespace: self.space.to_string(), fields, labels: self.labels.to_string(), rows: false }
    }

    /// Begins to fulfil it; how to end that.
    pub fn begin(&self, by: u32, scout: &Arc<Scout>, to: &Sender<News>) -> Vec<Stop> {
        match self.kind {
            Kind::Told(Told::HostEndpoint) => self.glance(by, scout, to),
            Kind::Told(_) => self.follow(by, scout, to, Thing::Document),
            Kind::Pods => self.follow(by, scout, to, Thing::Pod),
            Kind::Namespaces => self.follow(by, scout, to, Thing::Namespace),
            Kind::Accounts => self.follow(by, scout, to, Thing::Account),
            Kind::Nodes => self.follow(by, scout, to, Thing::Node),
        }
    }

    fn follow<T: Object + 'static>(
        &self,
        by: u32,
        scout: &Arc<Scout>,
        to: &Sender<News>,
        keep: fn(T) -> Thing,
    ) -> Vec<Stop> {
        let watch = |place: &Collection| scout.kube.watch_at::<T>(place.api, place.plural, self.select()).keeping(keep);
        let watches: Vec<_> = self.kind.places().iter().map(watch).collect();
        let stops = watches.iter().map(|watch| watch.stopper()).collect();
        attend(self.kind, by, watches, Arc::clone(scout), to.clone());
        stops
    }

    /// Of those nothing is used, and there may be one for each node of the cluster: that there are any is all that people are told.
    fn glance(&self, by: u32, scout: &Arc<Scout>, to: &Sender<News>) -> Vec<Stop> {
        let look = |place: &Collection| scout.kube.glimpse_at(place.api, place.plural, Thing::Document);
        let looks: Vec<_> = self.kind.places().iter().map(look).collect();
        let stops = looks.iter().map(|look| look.stopper()).collect();
        attend(self.kind, by, looks, Arc::clone(scout), to.clone());
        stops
    }
}

/// Hears one place after the other on a thread of its own, the next where there is no such.
fn attend(
    kind: Kind,
    by: u32,
    sources: Vec<impl Iterator<Item = Result<Change<Thing>, Error>> + Send + 'static>,
    scout: Arc<Scout>,
    to: Sender<News>,
) {
    threads::start(move || {
        for (source, place) in sources.into_iter().zip(kind.places()) {
            if kind.may_be_absent() && scout.is_lacking(place) {
                continue;
            }
            let is_final = |e: &Error| {
                // Who may not read a kind is not told whether there is one.
                let is_lacking = || matches!(scout.kube.has(place.api, place.plural), Ok(false));
                let is_gone = kind.may_be_absent() && (e.is_absent() || e.is_forbidden() && is_lacking());
                let doubt = match is_gone.then(|| scout.kube.health()) {
                    Some(Ok(())) => return true,
                    Some(Err(doubt)) => format!("; {doubt}"),
                    None => String::new(),
                };
                let right = if e.is_forbidden() { "; grant what cni-conf/rbac.yaml lists" } else { "" };
                let why = format!("{e}{doubt}{right}");
                let _ = to.send(News::Trouble { by, why, is_forbidden: e.is_forbidden() });
                false
            };
            let end = follow(source, kind.plural(), is_final, |change| {
                let heard = heard(change, |one| one.name().clone());
                heard.is_none_or(|heard| to.send(News::Heard { by, kind, heard }).is_ok())
            });
            if end == End::Unheard {
                return;
            }
        }
        let _ = to.send(News::Absent { by });
    });
}
