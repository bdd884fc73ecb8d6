//! What the cluster's network policies mean for the pods of this node, as data that every renderer can write into the kernel.
//!
//! Pure: no clock, no I/O, no log. What holds is a function of the present objects, never of the order in which they came: a change
//! marks pods and addresses, and [`Model::changes`] works out anew all that a marked one has.

mod admin;
mod alike;
mod calico;
mod compile;
mod form;
mod index;
mod kubernetes;
mod needs;
mod once;
mod read;
mod refusal;
mod selector;
mod store;
mod table;
mod why;

#[cfg(test)]
pub(crate) mod fuzz;
#[cfg(test)]
mod oracle;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod walked;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::cluster::Name;
use crate::heard::Heard;
use crate::netpol::Document;
use crate::peer::{ContainerPort, Labels, Namespace, Node, Pod, ServiceAccount, namespace_of};
use crate::rules::{DIRECTIONS, Origin, PodSets, Rules, Write};
use alike::Alike;
use calico::NetworkSet;
use compile::Subject;
use form::{Kind, Peer, Policy, PolicyName};
use index::{Entity, Key, WhoId, may_select};
use once::Once;
use store::Store;
use table::Table;

pub use needs::{Need, Scope};
pub use refusal::{About, Refusal, Refused};
#[cfg(fuzzing)]
pub use selector::parse as selector;
pub use why::{Side, Why};

/// What is known of the node itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Here {
    pub name: String,
    /// By which the node reaches its own pods.
    pub addresses: BTreeSet<IpAddr>,
}

/// Kinds that are read as documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Told {
    NetworkPolicy,
    ClusterNetworkPolicy,
    CalicoNetworkPolicy,
    CalicoGlobalNetworkPolicy,
    NetworkSet,
    GlobalNetworkSet,
    HostEndpoint,
}

/// What is to change.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// In the order in which they are to be made.
    pub writes: Vec<Write>,
    /// What is refused and was not before.
    pub refused: Vec<Refused>,
}

pub struct Model {
    here: Here,
    node_nets: Box<[IpNet]>,
    objects: Objects,
    /// Pods of this node that have rules.
    locals: BTreeMap<Name, Local>,
    /// How many pods say of a port's name and protocol that it is this number.
    numbers: BTreeMap<(Box<str>, u8), BTreeMap<u16, u32>>,
    store: Store,
    dirty: BTreeSet<Key>,
    dirty_locals: BTreeSet<Name>,
    untold: Vec<Refused>,
    shared: Shared,
}

/// What thousands of objects have in common.
#[derive(Default)]
struct Shared {
    words: Once<str>,
    labels: Once<Labels>,
    ports: Once<[ContainerPort]>,
    peers: Once<Peer>,
}

impl Shared {
    fn pod(&mut self, pod: &mut Pod) {
        self.words.share(&mut pod.node);
        self.words.share(&mut pod.account);
        self.labels.share(&mut pod.labels);
        self.ports.share(&mut pod.ports);
    }

    fn policy(&mut self, policy: &mut Policy) {
        for rule in policy.ingress.iter_mut().chain(&mut policy.egress).flatten() {
            self.peers.share(&mut rule.peer);
            self.peers.share(&mut rule.own);
        }
    }
}

#[derive(Default)]
struct Objects {
    pods: BTreeMap<Name, Pod>,
    alike: Alike,
    /// Those of them whose rules are ours to enforce.
    ours: BTreeSet<Name>,
    /// Addresses that we gave to pods of ours, which their objects may not say yet.
    given: BTreeMap<Name, Box<[IpAddr]>>,
    spaces: BTreeMap<Name, Labels>,
    accounts: BTreeMap<Name, Labels>,
    nodes: BTreeMap<Name, Node>,
    sets: BTreeMap<Name, NetworkSet>,
    policies: BTreeMap<PolicyName, Policy>,
    host_endpoints: BTreeSet<Name>,
}

struct Local {
    sets: PodSets,
    /// Names of ports that mean something elsewhere.
    names: BTreeSet<(Box<str>, u8)>,
}

impl Objects {
    fn pod<'a>(&'a self, key: &'a Key, pod: &'a Pod) -> Entity<'a> {
        Entity {
            key,
            labels: &pod.labels,
            space: self.spaces.get(namespace_of(&pod.name)),
            is_on_host: pod.is_on_host,
            account: pod.account.split_once('/').map_or("", |(_, account)| account),
            account_labels: self.accounts.get(&pod.account),
            ports: &pod.ports,
        }
    }

    fn addresses(&self, pod: &Pod) -> Box<[IpNet]> {
        let given = self.given.get(&pod.name).into_iter().flatten();
        let all: BTreeSet<IpNet> = pod.addresses.iter().chain(given).map(|addr| IpNet::from(*addr)).collect();
        all.into_iter().collect()
    }

    /// None: it is gone, or over.
    fn entity<'a>(&'a self, key: &'a Key) -> Option<Entity<'a>> {
        let bare = |labels, space| Entity {
            key,
            labels,
            space,
            is_on_host: false,
            account: "",
            account_labels: None,
            ports: &[],
        };
        match key {
            Key::Pod(name) => self.pods.get(name).filter(|pod| !pod.is_over).map(|pod| self.pod(key, pod)),
            Key::Node(name) => self.nodes.get(name).map(|node| bare(&node.labels, None)),
            Key::Set(name) => self.sets.get(name).map(|set| bare(&set.labels, self.spaces.get(namespace_of(name)))),
        }
    }

    /// Where it is found.
    fn nets(&self, key: &Key) -> Box<[IpNet]> {
        match key {
            Key::Pod(name) => self.pods.get(name).map(|pod| self.addresses(pod)).unwrap_or_default(),
            Key::Node(name) => {
                self.nodes.get(name).into_iter().flat_map(|n| &n.addresses).map(|a| IpNet::from(*a)).collect()
            }
            Key::Set(name) => {
                let nets: BTreeSet<IpNet> =
                    self.sets.get(name).into_iter().flat_map(|set| &set.nets).copied().collect();
                nets.into_iter().collect()
            }
        }
    }

    /// All that has addresses and is no pod.
    fn others(&self) -> impl Iterator<Item = Key> {
        self.nodes.keys().cloned().map(Key::Node).chain(self.sets.keys().cloned().map(Key::Set))
    }

    fn our_pods(&self) -> impl Iterator<Item = &Pod> {
        self.ours.iter().filter_map(|name| self.pods.get(name))
    }

    /// All pods of a namespace.
    fn pods_in(&self, space: &str) -> impl Iterator<Item = &Pod> {
        within(&self.pods, space).map(|(_, pod)| pod)
    }

    /// What decides on a pod and is not known: nothing may pass until it is.
    fn unknown(&self, pod: &Pod) -> Option<Origin> {
        let space = namespace_of(&pod.name);
        let lacks_space = !self.spaces.contains_key(space);
        if lacks_space && self.policies.values().any(Policy::asks_spaces) {
            return Some(Origin::Unknown(format!("namespace {space}").into()));
        }
        let lacks_account = !self.accounts.contains_key(&pod.account);
        (lacks_account && self.policies.values().any(Policy::asks_accounts))
            .then(|| Origin::Unknown(format!("serviceaccount {}", pod.account).into()))
    }
}

fn within<'a, T>(all: &'a BTreeMap<Name, T>, space: &str) -> impl Iterator<Item = (&'a Name, &'a T)> {
    let prefix = format!("{space}/");
    let from: Name = prefix.as_str().into();
    all.range(from..).take_while(move |(name, _)| name.starts_with(&prefix))
}

impl Model {
    pub fn new(here: Here) -> Model {
        Model {
            node_nets: here.addresses.iter().map(|addr| IpNet::from(*addr)).collect(),
            here,
            objects: Objects::default(),
            locals: BTreeMap::new(),
            numbers: BTreeMap::new(),
            store: Store::default(),
            dirty: BTreeSet::new(),
            dirty_locals: BTreeSet::new(),
            untold: Vec::new(),
            shared: Shared::default(),
        }
    }

    /// All that holds since the last [`Model::changes`].
    pub fn rules(&self) -> &Rules {
        self.store.rules()
    }

    // What is heard

    /// By which addresses the node reaches its own pods.
    pub fn stand_at(&mut self, addresses: &BTreeSet<IpAddr>) {
        self.here.addresses.clone_from(addresses);
        self.node_nets = addresses.iter().map(|addr| IpNet::from(*addr)).collect();
        self.dirty_locals.extend(self.objects.ours.iter().cloned());
    }

    pub fn hear_pods(&mut self, news: Heard<Pod>) {
        hear(
            self,
            news,
            |m| m.objects.pods.keys().cloned().collect(),
            |pod| pod.name.clone(),
            |m, name, pod| {
                m.set_pod(name, pod);
            },
        );
    }

    /// The addresses that a pod of ours was given; none: it has none of ours any more.
    pub fn give(&mut self, name: &Name, addresses: Option<Box<[IpAddr]>>) {
        if replace(&mut self.objects.given, name, addresses) {
            self.dirty.insert(Key::Pod(name.clone()));
            self.sort(name);
        }
    }

    pub fn hear_namespaces(&mut self, news: Heard<Namespace>) {
        hear(
            self,
            news,
            |m| m.objects.spaces.keys().cloned().collect(),
            |one| one.0.name.clone(),
            |m, name, one| {
                if !replace(&mut m.objects.spaces, &name, one.map(|one| one.0.labels)) {
                    return;
                }
                let pods: Vec<Name> = m.objects.pods_in(&name).map(|pod| pod.name.clone()).collect();
                let sets = within(&m.objects.sets, &name).map(|(name, _)| Key::Set(name.clone()));
                m.dirty.extend(sets.chain(pods.iter().cloned().map(Key::Pod)));
                m.dirty_locals.extend(pods);
            },
        );
    }

    pub fn hear_accounts(&mut self, news: Heard<ServiceAccount>) {
        hear(
            self,
            news,
            |m| m.objects.accounts.keys().cloned().collect(),
            |one| one.0.name.clone(),
            |m, name, one| {
                if !replace(&mut m.objects.accounts, &name, one.map(|one| one.0.labels)) {
                    return;
                }
                let space = namespace_of(&name);
                let pods = m.objects.pods_in(space).filter(|pod| pod.account == name).map(|pod| pod.name.clone());
                let pods: Vec<Name> = pods.collect();
                m.dirty.extend(pods.iter().cloned().map(Key::Pod));
                m.dirty_locals.extend(pods);
            },
        );
    }

    pub fn hear_nodes(&mut self, news: Heard<Node>) {
        hear(
            self,
            news,
            |m| m.objects.nodes.keys().cloned().collect(),
            |one| one.name.clone(),
            |m, name, one| {
                let one = one.map(|node| Node { version: Box::default(), ..node });
                if replace(&mut m.objects.nodes, &name, one) {
                    m.dirty.insert(Key::Node(name));
                }
            },
        );
    }

    pub fn hear(&mut self, kind: Told, news: Heard<Document>) {
        match kind {
            Told::NetworkPolicy => self.hear_policies(Kind::Kubernetes, news, kubernetes::read),
            Told::ClusterNetworkPolicy => self.hear_policies(Kind::Cluster, news, admin::read),
            Told::CalicoNetworkPolicy => self.hear_policies(Kind::Calico, news, calico::read),
            Told::CalicoGlobalNetworkPolicy => self.hear_policies(Kind::GlobalCalico, news, calico::read),
            Told::NetworkSet => self.hear_sets(news, false),
            Told::GlobalNetworkSet => self.hear_sets(news, true),
            Told::HostEndpoint => {
                let names = |m: &Model| m.objects.host_endpoints.clone();
                hear(
                    self,
                    news,
                    names,
                    |one| one.name.clone(),
                    |m, name, one| m.set_host_endpoint(name, one.is_some()),
                );
            }
        }
    }

    fn hear_policies(&mut self, kind: Kind, news: Heard<Document>, read: fn(&Document) -> Policy) {
        let names = |m: &Model| {
            let of_kind = m.objects.policies.keys().filter(|policy| policy.kind == kind);
            of_kind.map(|policy| policy.name.clone()).collect()
        };
        hear(
            self,
            news,
            names,
            |one| one.name.clone(),
            |m, name, one| {
                m.set_policy(PolicyName { name, kind }, one.map(|document| read(&document)));
            },
        );
    }

    fn hear_sets(&mut self, news: Heard<Document>, is_global: bool) {
        let names = |m: &Model| {
            let names = m.objects.sets.keys().filter(|name| namespace_of(name).is_empty() == is_global);
            names.cloned().collect()
        };
        hear(
            self,
            news,
            names,
            |one| one.name.clone(),
            |m, name, one| {
                let set = one.map(|document| calico::read_set(&document));
                let before = m.objects.sets.get(&name).map(|set| set.faults.clone()).unwrap_or_default();
                if let Some(set) = &set {
                    let fresh = set.faults.iter().filter(|fault| !before.contains(fault)).cloned();
                    m.untold.extend(
                        fresh.map(|fault| Refused { about: About::Set(name.clone()), reason: Refusal::Set(fault) }),
                    );
                }
                if replace(&mut m.objects.sets, &name, set) {
                    m.dirty.insert(Key::Set(name));
                }
            },
        );
    }

    fn set_pod(&mut self, name: Name, pod: Option<Pod>) {
        let mut pod = pod.map(|pod| Pod { version: Box::default(), ..pod });
        if self.objects.pods.get(&name) == pod.as_ref() || name.is_empty() {
            return;
        }
        pod.iter_mut().for_each(|pod| self.shared.pod(pod));
        let named = |pod: &Pod| if pod.is_over { <Arc<[ContainerPort]>>::default() } else { pod.ports.clone() };
        let ports = pod.as_ref().map(named).unwrap_or_default();
        pod.iter().for_each(|pod| self.objects.alike.add(pod));
        let labels = pod.as_ref().map(|pod| pod.labels.clone());
        let before = match pod {
            Some(pod) => self.objects.pods.insert(name.clone(), pod),
            None => self.objects.pods.remove(&name),
        };
        before.iter().filter(|pod| labels.as_ref() != Some(&pod.labels)).for_each(|pod| self.objects.alike.remove(pod));
        let had = before.as_ref().map(named).unwrap_or_default();
        if had != ports {
            self.count(&had, false);
            self.count(&ports, true);
        }
        self.sort(&name);
        self.dirty.insert(Key::Pod(name));
    }

    /// Whether a pod's rules are ours to enforce: of one that is over as long as it has its addresses from us, since something of it may
    /// run until they are taken.
    fn sort(&mut self, name: &Name) {
        let is_placed = self.objects.given.contains_key(name);
        let is_ours = |pod: &Pod| *pod.node == *self.here.name && !pod.is_on_host && (is_placed || !pod.is_over);
        match self.objects.pods.get(name).is_some_and(is_ours) {
            true => self.objects.ours.insert(name.clone()),
            false => self.objects.ours.remove(name),
        };
        self.dirty_locals.insert(name.clone());
    }

    /// Counts the names of a pod's ports; who goes by a name whose meaning changes is marked.
    fn count(&mut self, ports: &[ContainerPort], is_there: bool) {
        for port in ports {
            let key = (port.name.clone(), port.protocol);
            let numbers = self.numbers.entry(key.clone()).or_default();
            let uses = numbers.entry(port.number).or_default();
            *uses = if is_there { *uses + 1 } else { *uses - 1 };
            let is_news = *uses == u32::from(is_there);
            if *uses == 0 {
                numbers.remove(&port.number);
            }
            if numbers.is_empty() {
                self.numbers.remove(&key);
            }
            if is_news {
                let users = self.locals.iter().filter(|(_, local)| local.names.contains(&key));
                self.dirty_locals.extend(users.map(|(name, _)| name.clone()));
            }
        }
    }

    fn set_policy(&mut self, name: PolicyName, mut policy: Option<Policy>) {
        if self.objects.policies.get(&name) == policy.as_ref() || name.name.is_empty() {
            return;
        }
        policy.iter_mut().for_each(|policy| self.shared.policy(policy));
        let before = self.objects.policies.remove(&name);
        if let Some(policy) = &policy {
            let told = before.as_ref().map(|policy| policy.faults.clone()).unwrap_or_default();
            let fresh = policy.faults.iter().filter(|fault| !told.contains(fault)).cloned();
            let refused =
                |fault| Refused { about: About::Policy(name.to_string().into()), reason: Refusal::Policy(fault) };
            self.untold.extend(fresh.map(refused));
        }
        // What must be known of a pod depends on what is asked at all.
        let asks = |policy: &Policy| policy.asks_accounts() || policy.asks_spaces();
        let of_all = [&before, &policy].into_iter().flatten().any(asks);
        for pod in self.objects.our_pods() {
            let key = Key::Pod(pod.name.clone());
            let entity = self.objects.pod(&key, pod);
            let selected = [&before, &policy].into_iter().flatten().any(|policy| entity.is_selected(&policy.subject));
            let is_unknown = of_all && (entity.space.is_none() || entity.account_labels.is_none());
            if selected || is_unknown {
                self.dirty_locals.insert(pod.name.clone());
            }
        }
        if let Some(policy) = policy {
            self.objects.policies.insert(name, policy);
        }
    }

    fn set_host_endpoint(&mut self, name: Name, is_there: bool) {
        if !is_there {
            self.objects.host_endpoints.remove(&name);
        } else if self.objects.host_endpoints.insert(name.clone()) {
            self.untold.push(Refused { about: About::HostEndpoint(name), reason: Refusal::HostEndpoint });
        }
    }

    // What follows

    /// All that has changed since the last time.
    pub fn changes(&mut self) -> Changes {
        // New peers come first, so that the rules that ask for them find every address in its class; pods have their new rules
        // at once; what nobody asks for any more goes last.
        let pods = self.recompile();
        self.compare();
        self.store.settle();
        self.store.switch(pods);
        self.store.retire();
        self.store.settle();
        Changes { writes: self.store.sweep(), refused: std::mem::take(&mut self.untold) }
    }

    fn recompile(&mut self) -> Vec<(Name, Option<PodSets>)> {
        let mut pods = Vec::new();
        for name in std::mem::take(&mut self.dirty_locals) {
            let is_there = self.objects.ours.contains(&name);
            let before = self.locals.remove(&name);
            if !is_there {
                pods.extend(before.map(|_| (name, None)));
                continue;
            }
            let local = self.compile(&name);
            if before.is_none_or(|before| before.sets != local.sets) {
                pods.push((name.clone(), Some(local.sets)));
            }
            self.locals.insert(name, local);
        }
        pods
    }

    /// All that a pod of ours has.
    fn compile(&mut self, name: &Name) -> Local {
        let (key, pod) = (Key::Pod(name.clone()), &self.objects.pods[name]);
        let entity = self.objects.pod(&key, pod);
        let policies = self.objects.policies.values().filter(|policy| !policy.is_void);
        let mut policies: Vec<&Policy> = policies.filter(|policy| entity.is_selected(&policy.subject)).collect();
        policies.sort_by_key(|policy| (policy.place, &policy.name));
        let nets = self.objects.addresses(pod);
        let subject = Subject { entity, nets: &nets, node: &self.node_nets, unknown: self.objects.unknown(pod) };
        let mut known = store::Numbering::new(&mut self.store, &self.numbers);
        let [ingress, egress] =
            DIRECTIONS.map(|direction| compile::rule_set(&subject, direction, &policies, &mut known));
        let names = known.names();
        let sets = PodSets { ingress: self.store.set(ingress), egress: self.store.set(egress) };
        Local { sets, names }
    }

    /// Brings up to date who is selected by whom.
    fn compare(&mut self) {
        let dirty = std::mem::take(&mut self.dirty);
        let table = self.store.table();
        for key in &dirty {
            match self.objects.entity(key) {
                Some(entity) => table.put(&entity, self.objects.nets(key)),
                None => table.remove(key),
            }
        }
        if table.has_fresh() {
            let compare = |table: &mut Table, key: Key, fresh: &[WhoId]| {
                if !dirty.contains(&key)
                    && let Some(entity) = self.objects.entity(&key)
                {
                    table.compare(&entity, fresh, || self.objects.nets(&key));
                }
            };
            let all = table.fresh(|_| true);
            self.objects.others().for_each(|key| compare(table, key, &all));
            for (space, labels, pods) in self.objects.alike.groups() {
                let fresh = table.fresh(|who| may_select(who, space, self.objects.spaces.get(space), labels));
                if !fresh.is_empty() {
                    pods.iter().for_each(|name| compare(table, Key::Pod(name.clone()), &fresh));
                }
            }
        }
        table.compared();
    }

    /// Why a packet passes or does not, by the rules of both sides as far as they are pods of ours.
    pub fn why(&self, src: IpAddr, dst: IpAddr, protocol: u8, ports: Option<(u16, u16)>) -> Why {
        let pod = |addr: IpAddr| {
            let net = IpNet::from(addr.to_canonical());
            self.locals.keys().find(|name| self.objects.addresses(&self.objects.pods[*name]).contains(&net))
        };
        why::why(self.rules(), (src, pod(src)), (dst, pod(dst)), &crate::rules::Packet { protocol, ports })
    }

    /// The addresses of a pod that is known, sorted.
    pub fn addresses(&self, name: &str) -> Option<Vec<IpAddr>> {
        let pod = self.objects.pods.get(name)?;
        Some(self.objects.addresses(pod).iter().map(|net| net.addr()).collect())
    }

    /// Whose address it is, of the pods that are known.
    pub fn pod_at(&self, addr: IpAddr) -> Option<&Name> {
        let has = |(name, pod): &(&Name, &Pod)| {
            let given = self.objects.given.get(*name).is_some_and(|given| given.contains(&addr));
            given || !pod.is_on_host && !pod.is_over && pod.addresses.contains(&addr)
        };
        self.objects.pods.iter().find(has).map(|(name, _)| name)
    }

    /// What must be watched for the policies that apply to pods of ours, and no more.
    pub fn needs(&self) -> BTreeSet<Need> {
        let locals: Vec<&Pod> = self.objects.our_pods().collect();
        let policies = self.objects.policies.values();
        let applies = |policy: &Policy| {
            !policy.is_void
                && locals
                    .iter()
                    .any(|pod| self.objects.pod(&Key::Pod(pod.name.clone()), pod).is_selected(&policy.subject))
        };
        needs::needs(locals.iter().copied(), policies, applies, &self.objects, self.store.peers())
    }
}

/// Whether that is news.
fn replace<T: PartialEq>(all: &mut BTreeMap<Name, T>, name: &Name, value: Option<T>) -> bool {
    if all.get(name) == value.as_ref() || name.is_empty() {
        return false;
    }
    match value {
        Some(value) => drop(all.insert(name.clone(), value)),
        None => drop(all.remove(name)),
    }
    true
}

fn hear<T>(
    model: &mut Model,
    news: Heard<T>,
    names: impl Fn(&Model) -> BTreeSet<Name>,
    name: impl Fn(&T) -> Name,
    mut set: impl FnMut(&mut Model, Name, Option<T>),
) {
    match news {
        Heard::All(all) => {
            let mut gone = names(model);
            for one in all {
                gone.remove(&name(&one));
                set(model, name(&one), Some(one));
            }
            gone.into_iter().for_each(|name| set(model, name, None));
        }
        Heard::One(one) => set(model, name(&one), Some(one)),
        Heard::Gone(name) => set(model, name, None),
    }
}
