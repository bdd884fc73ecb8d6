//! What the cluster's Services mean on this node: who connects to what is led where.
//!
//! Pure: no clock, no I/O, no log. What is wanted is a function of the present objects, never of the order in which they came:
//! a change marks Services, and [`Model::changes`] works out anew all that a marked one wants.

mod claims;
mod endpoints;
mod refusal;
mod room;
mod show;
pub mod table;

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod oracle;
#[cfg(test)]
mod rewrite;
#[cfg(test)]
mod tests;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::ops::Bound::{Included, Unbounded};
use std::sync::Arc;

use crate::cluster::{EndpointSlice, Member, Name, Protocol, Service, Tag, is_unicast};
use crate::heard::Heard;
use claims::{Claim, Place, Reach};

pub use endpoints::Backend;
pub use refusal::{About, Refusal, Refused};
pub use show::Led;

/// What somebody connects to. A node port stands for all nodes' addresses of a family: [`ANY_V4`] or [`ANY_V6`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    pub addr: Ipv6Addr,
    pub port: u16,
    pub protocol: Protocol,
}

pub const ANY_V4: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0);
pub const ANY_V6: Ipv6Addr = Ipv6Addr::UNSPECIFIED;

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.addr {
            ANY_V4 => write!(f, "node port {}/{}", self.port, self.protocol),
            ANY_V6 => write!(f, "node port {}/{} (IPv6)", self.port, self.protocol),
            addr => write!(f, "{}/{}", SocketAddr::new(addr.to_canonical(), self.port), self.protocol),
        }
    }
}

/// Endpoints that several frontends share: those of one port of a Service, in one family, as far as they are meant for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Set {
    /// Never used again, also not for a Service of the same name.
    service: u32,
    port: u16,
    protocol: Protocol,
    is_v4: bool,
    reach: Reach,
}

/// Where a frontend leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub set: Set,
    /// In order, each once. Nobody: whoever connects is refused at once.
    pub backends: Arc<[Backend]>,
    /// How many seconds a client stays with its backend; 0: not at all.
    pub affinity: u32,
    /// For the node's own addresses only; what goes to another node's is that node's to answer.
    pub own_node_only: bool,
}

/// What is to change.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Where these lead from now on, or that they lead nowhere any more.
    pub frontends: BTreeMap<Frontend, Option<Target>>,
    /// All addresses of nodes, and which are our own, where that has changed.
    pub nodes: Option<BTreeMap<Ipv6Addr, bool>>,
    /// What is refused and was not before.
    pub refused: Vec<Refused>,
}

/// What is known of the node itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Here {
    pub name: String,
    /// Addresses that it has whether its node object says so or not.
    pub addresses: BTreeSet<Ipv6Addr>,
    /// Where the API server is, if that is known as an address.
    pub api: Option<Ipv6Addr>,
}

pub struct Model {
    here: Here,
    node: Tag,
    /// The zone of our node, as its object says.
    zone: Tag,
    buckets: BTreeMap<Name, Bucket>,
    slices: BTreeMap<Name, EndpointSlice>,
    members: BTreeMap<Name, Member>,
    pods: BTreeSet<Ipv6Addr>,
    /// Who wants what. Of several that want one frontend, the first here has it.
    claimed: BTreeSet<Claimed>,
    held: Held,
    /// Services that name these addresses as their external ones.
    external: BTreeMap<Ipv6Addr, BTreeSet<Name>>,
    /// Those of them that no endpoint was compared with yet.
    unlooked: BTreeSet<Ipv6Addr>,
    dirty: BTreeSet<Name>,
    nodes_changed: bool,
    /// Slices with faults, until they are told.
    faulty: Vec<Refused>,
    heard: [bool; 4],
    next: u32,
}

/// A Service and its slices; either may come first.
#[derive(Default)]
struct Bucket {
    id: u32,
    service: Option<Box<Service>>,
    slices: Vec<Name>,
    claims: Box<[Claim]>,
    /// When the Service was created that claimed them.
    created: u64,
    /// What is wrong with the Service as it stands.
    own: Box<[Refusal]>,
    /// All that was told.
    refused: Box<[Refusal]>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Claimed {
    frontend: Frontend,
    created: u64,
    service: Name,
}

/// Addresses that somebody has, and how many times.
#[derive(Default)]
struct Held {
    /// Of those that a Service names as external.
    endpoints: Count,
    nodes: Count,
    services: Count,
}

#[derive(Default)]
struct Count(HashMap<Ipv6Addr, u32>);

impl Count {
    /// Whether it is the first.
    fn add(&mut self, addr: Ipv6Addr) -> bool {
        let count = self.0.entry(addr).or_default();
        *count += 1;
        *count == 1
    }

    /// Whether it was the last.
    fn remove(&mut self, addr: Ipv6Addr) -> bool {
        let Some(count) = self.0.get_mut(&addr) else { return false };
        *count -= 1;
        *count == 0 && self.0.remove(&addr).is_some()
    }

    fn of(&self, addr: &Ipv6Addr) -> u32 {
        self.0.get(addr).copied().unwrap_or_default()
    }
}

impl Model {
    pub fn new(here: Here) -> Model {
        Model {
            node: Tag::of(&here.name),
            here,
            zone: Tag::default(),
            buckets: BTreeMap::new(),
            slices: BTreeMap::new(),
            members: BTreeMap::new(),
            pods: BTreeSet::new(),
            claimed: BTreeSet::new(),
            held: Held::default(),
            external: BTreeMap::new(),
            unlooked: BTreeSet::new(),
            dirty: BTreeSet::new(),
            nodes_changed: true,
            faulty: Vec::new(),
            heard: [false; 4],
            next: 1,
        }
    }

    /// All of every kind has been heard: before, what is wanted is not known.
    pub fn is_complete(&self) -> bool {
        self.heard == [true; 4]
    }

    /// How many Services there are, and how many endpoints, for people.
    pub fn size(&self) -> (usize, usize) {
        let services = self.buckets.values().filter(|b| b.service.is_some()).count();
        (services, self.slices.values().map(|slice| slice.endpoints.len()).sum())
    }

    // What is heard

    pub fn hear_services(&mut self, news: Heard<Service>) {
        match news {
            Heard::All(all) => {
                self.heard[0] = true;
                let mut gone: BTreeSet<Name> =
                    self.buckets.iter().filter(|(_, b)| b.service.is_some()).map(|(name, _)| name.clone()).collect();
                for service in all {
                    gone.remove(&service.name);
                    self.set_service(service);
                }
                gone.iter().for_each(|name| self.drop_service(name));
            }
            Heard::One(service) => self.set_service(service),
            Heard::Gone(name) => self.drop_service(&name),
        }
    }

    pub fn hear_slices(&mut self, news: Heard<EndpointSlice>) {
        match news {
            Heard::All(all) => {
                self.heard[1] = true;
                let mut gone: BTreeSet<Name> = self.slices.keys().cloned().collect();
                for slice in all {
                    gone.remove(&slice.name);
                    self.set_slice(slice);
                }
                gone.iter().for_each(|name| self.drop_slice(name));
            }
            Heard::One(slice) => self.set_slice(slice),
            Heard::Gone(name) => self.drop_slice(&name),
        }
    }

    pub fn hear_nodes(&mut self, news: Heard<Member>) {
        match news {
            Heard::All(all) => {
                self.heard[2] = true;
                let mut gone: BTreeSet<Name> = self.members.keys().cloned().collect();
                for member in all {
                    gone.remove(&member.name);
                    self.set_member(member);
                }
                gone.iter().for_each(|name| self.drop_member(name));
            }
            Heard::One(member) => self.set_member(member),
            Heard::Gone(name) => self.drop_member(&name),
        }
    }

    /// Our own node, whole: of others it is enough to know where they are.
    pub fn hear_here(&mut self, news: Heard<Member>) {
        match news {
            Heard::All(all) => {
                self.heard[3] = true;
                all.into_iter().for_each(|member| self.set_member(member));
            }
            Heard::One(member) => self.set_member(member),
            Heard::Gone(name) => self.drop_member(&name),
        }
    }

    /// The addresses of the node's own pods, all of them.
    pub fn hear_pods(&mut self, pods: BTreeSet<Ipv6Addr>) {
        let before = std::mem::replace(&mut self.pods, pods);
        let changed: Vec<Ipv6Addr> = before.symmetric_difference(&self.pods).copied().collect();
        changed.into_iter().for_each(|addr| self.recheck(addr));
    }

    /// The name as it is kept already, if it is: a Service and its slices need it only once.
    fn shared(&self, name: Name) -> Name {
        self.buckets.get_key_value(&name).map_or(name, |(known, _)| known.clone())
    }

    /// Fills memory up after a large load: trees that grew in order are half empty.
    pub fn pack(&mut self) {
        pack(&mut self.buckets);
        pack(&mut self.slices);
        self.claimed = std::mem::take(&mut self.claimed).into_iter().collect();
    }

    fn set_service(&mut self, mut service: Service) {
        service.version = Box::default();
        let name = service.name.clone();
        if name.is_empty() {
            return;
        }
        let name = self.shared(name);
        service.name = name.clone();
        let bucket = self.buckets.entry(name.clone()).or_default();
        if bucket.service.as_deref() == Some(&service) {
            return;
        }
        let before = bucket.service.take();
        if before.is_none() {
            bucket.id = self.next;
            self.next += 1;
        }
        let cluster_ips = service.cluster_ips.clone();
        let external: Vec<Ipv6Addr> = outer(&service).collect();
        bucket.service = Some(Box::new(service));
        self.disown(&name, before.as_deref());
        for addr in cluster_ips {
            self.held.services.add(addr);
            self.recheck(addr);
        }
        for addr in external {
            let services = self.external.entry(addr).or_default();
            if services.is_empty() {
                self.unlooked.insert(addr);
            }
            services.insert(name.clone());
        }
        self.dirty.insert(name);
    }

    fn drop_service(&mut self, name: &Name) {
        let Some(bucket) = self.buckets.get_mut(name) else { return };
        let before = bucket.service.take();
        self.disown(name, before.as_deref());
        self.dirty.insert(name.clone());
    }

    /// Forgets which addresses a Service had.
    fn disown(&mut self, name: &Name, service: Option<&Service>) {
        let Some(service) = service else { return };
        for addr in &service.cluster_ips {
            self.held.services.remove(*addr);
            self.recheck(*addr);
        }
        let stays = |addr: &Ipv6Addr| self.buckets[name].service.iter().any(|now| outer(now).any(|a| a == *addr));
        let gone: Vec<Ipv6Addr> = outer(service).filter(|addr| !stays(addr)).collect();
        for addr in gone {
            if let Some(services) = self.external.get_mut(&addr) {
                services.remove(name);
                if services.is_empty() {
                    self.external.remove(&addr);
                    self.unlooked.remove(&addr);
                    self.held.endpoints.0.remove(&addr);
                }
            }
        }
    }

    /// Counts the endpoints that have an address which is external since the last time.
    fn look(&mut self) {
        let fresh = std::mem::take(&mut self.unlooked);
        if fresh.is_empty() {
            return;
        }
        let endpoints = self.slices.values().flat_map(|slice| &slice.endpoints);
        endpoints.filter(|endpoint| fresh.contains(&endpoint.addr)).for_each(|endpoint| {
            self.held.endpoints.add(endpoint.addr);
        });
    }

    /// Of interest, and counted.
    fn is_counted(&self, addr: &Ipv6Addr) -> bool {
        self.external.contains_key(addr) && !self.unlooked.contains(addr)
    }

    fn set_slice(&mut self, mut slice: EndpointSlice) {
        slice.version = Box::default();
        let before = self.slices.get(&slice.name);
        if slice.name.is_empty() || before == Some(&slice) {
            return;
        }
        let told = before.map(|slice| slice.faults.clone()).unwrap_or_default();
        let fresh = slice.faults.iter().filter(|fault| !told.contains(fault));
        self.faulty.extend(
            fresh.map(|fault| Refused {
                about: About::Slice(slice.name.clone()),
                reason: Refusal::Fault(fault.clone()),
            }),
        );
        // First added, then removed: what stays is not gone in between.
        for endpoint in &slice.endpoints {
            if self.is_counted(&endpoint.addr) && self.held.endpoints.add(endpoint.addr) {
                recheck(&self.external, &mut self.dirty, endpoint.addr);
            }
        }
        self.drop_slice(&slice.name.clone());
        if let Some(service) = slice.service.take().map(|service| self.shared(service)) {
            let bucket = self.buckets.entry(service.clone()).or_default();
            bucket.slices.reserve_exact(1);
            bucket.slices.push(slice.name.clone());
            self.dirty.insert(service.clone());
            slice.service = Some(service);
        }
        self.slices.insert(slice.name.clone(), slice);
    }

    fn drop_slice(&mut self, name: &Name) {
        let Some(slice) = self.slices.remove(name) else { return };
        for endpoint in &slice.endpoints {
            if self.is_counted(&endpoint.addr) && self.held.endpoints.remove(endpoint.addr) {
                recheck(&self.external, &mut self.dirty, endpoint.addr);
            }
        }
        if let Some(service) = slice.service {
            if let Some(bucket) = self.buckets.get_mut(&service) {
                bucket.slices.retain(|slice| slice != name);
            }
            self.dirty.insert(service);
        }
    }

    fn set_member(&mut self, mut member: Member) {
        member.version = Box::default();
        let known = self.members.get(&member.name);
        let is_known_better = member.zone.is_none() && known.is_some_and(|known| known.zone.is_some());
        if member.name.is_empty() || known == Some(&member) || is_known_better {
            return;
        }
        self.drop_member(&member.name.clone());
        self.nodes_changed = true;
        for addr in member.addresses.clone() {
            self.held.nodes.add(addr);
            self.recheck(addr);
        }
        if *member.name == *self.here.name {
            self.move_to(member.zone.unwrap_or_default());
        }
        self.members.insert(member.name.clone(), member);
    }

    fn drop_member(&mut self, name: &Name) {
        let Some(member) = self.members.remove(name) else { return };
        self.nodes_changed = true;
        for addr in member.addresses {
            self.held.nodes.remove(addr);
            self.recheck(addr);
        }
        if *member.name == *self.here.name {
            self.move_to(Tag::default());
        }
    }

    /// Hints may mean others now.
    fn move_to(&mut self, zone: Tag) {
        self.nodes_changed = true;
        if std::mem::replace(&mut self.zone, zone) != zone {
            self.dirty.extend(self.buckets.keys().cloned());
        }
    }

    /// Somebody has this address, or nobody any more: who names it as external may be refused, or allowed.
    fn recheck(&mut self, addr: Ipv6Addr) {
        recheck(&self.external, &mut self.dirty, addr);
    }

    // What is wanted

    /// Everything that was marked since the last call, worked out anew.
    pub fn changes(&mut self) -> Changes {
        self.look();
        let mut changes = Changes { refused: std::mem::take(&mut self.faulty), ..Changes::default() };
        let mut work = std::mem::take(&mut self.dirty);
        let mut touched = BTreeSet::new();
        work.iter().for_each(|name| self.claim(name, &mut touched));
        for frontend in touched {
            let mut any = false;
            for claimed in self.claimants(frontend) {
                any = true;
                work.insert(claimed.service.clone());
            }
            if !any {
                changes.frontends.insert(frontend, None);
            }
        }
        work.iter().for_each(|name| self.settle(name, &mut changes));
        if std::mem::take(&mut self.nodes_changed) {
            changes.nodes = Some(self.nodes());
        }
        changes
    }

    /// Everything that is wanted, whatever was asked before.
    pub fn everything(&mut self) -> Changes {
        self.dirty.extend(self.buckets.keys().cloned());
        self.nodes_changed = true;
        self.changes()
    }

    fn nodes(&self) -> BTreeMap<Ipv6Addr, bool> {
        let mut all: BTreeMap<Ipv6Addr, bool> = BTreeMap::new();
        for member in self.members.values() {
            let own = *member.name == *self.here.name;
            member.addresses.iter().for_each(|addr| *all.entry(*addr).or_default() |= own);
        }
        all.extend(self.here.addresses.iter().map(|addr| (*addr, true)));
        all
    }

    /// Replaces what a Service claims by what it claims now, and notes frontends that came or went.
    fn claim(&mut self, name: &Name, touched: &mut BTreeSet<Frontend>) {
        let Some(bucket) = self.buckets.get(name) else { return };
        let service = bucket.service.as_deref();
        let (claims, own) = service.map_or_else(Default::default, |service| {
            claims::of(service, |place, addr| self.objection(service, place, addr))
        });
        let created = service.map_or(0, |service| service.created);
        let before = claimed(name, &bucket.claims, bucket.created);
        let now = claimed(name, &claims, created);
        for gone in before.difference(&now) {
            self.claimed.remove(gone);
            touched.insert(gone.frontend);
        }
        for new in now.difference(&before) {
            self.claimed.insert(new.clone());
            touched.insert(new.frontend);
        }
        let bucket = self.buckets.get_mut(name).expect("it was just there");
        (bucket.claims, bucket.created, bucket.own) = (claims.into(), created, own.into());
    }

    /// Those who want a frontend; the first has it.
    fn claimants(&self, frontend: Frontend) -> impl Iterator<Item = &Claimed> {
        let first = Claimed { frontend, created: 0, service: "".into() };
        self.claimed.range((Included(first), Unbounded)).take_while(move |claimed| claimed.frontend == frontend)
    }

    /// Why a Service may not stand for this address, if so.
    fn objection(&self, service: &Service, place: Place, addr: Ipv6Addr) -> Option<Refusal> {
        let own = service.cluster_ips.iter().filter(|ip| **ip == addr).count() as u32;
        let external = place == Place::External;
        Some(match () {
            () if !is_unicast(addr) => Refusal::NoUnicast(addr),
            () if self.held.services.of(&addr) > own => Refusal::OfService(addr),
            () if external && self.here.api == Some(addr) => Refusal::OfApi(addr),
            () if external && (self.held.nodes.of(&addr) > 0 || self.here.addresses.contains(&addr)) => {
                Refusal::OfNode(addr)
            }
            () if external && (self.held.endpoints.of(&addr) > 0 || self.pods.contains(&addr)) => Refusal::OfPod(addr),
            () => return None,
        })
    }

    /// Works out where all frontends of a Service lead.
    fn settle(&mut self, name: &Name, changes: &mut Changes) {
        let Some(bucket) = self.buckets.get(name) else { return };
        let Some(service) = &bucket.service else {
            let told = !bucket.refused.is_empty();
            if bucket.slices.is_empty() {
                self.buckets.remove(name);
            } else if told {
                self.buckets.get_mut(name).expect("it was just there").refused = Box::default();
            }
            return;
        };
        let mut refused = bucket.own.to_vec();
        let mut known = BTreeMap::<Set, Arc<[Backend]>>::new();
        for claim in &bucket.claims {
            if let Some(first) = self.claimants(claim.frontend).next().filter(|first| first.service != *name) {
                refused.push(Refusal::Taken(claim.frontend, first.service.clone()));
                continue;
            }
            let port = &service.ports[usize::from(claim.port)];
            let is_v4 = is_v4(claim.frontend.addr);
            let set = Set { service: bucket.id, port: port.port, protocol: port.protocol, is_v4, reach: claim.reach };
            let chosen = || {
                let slices = bucket.slices.iter().filter_map(|slice| self.slices.get(slice));
                endpoints::of(slices, port, is_v4, claim.reach, (self.node, self.zone)).into()
            };
            let target = Target {
                set,
                backends: known.entry(set).or_insert_with(chosen).clone(),
                affinity: service.affinity,
                own_node_only: claim.own_node_only,
            };
            changes.frontends.insert(claim.frontend, Some(target));
        }
        let about = About::Service { name: name.clone(), uid: service.uid.clone() };
        let fresh = refused.iter().filter(|reason| !bucket.refused.contains(reason));
        changes.refused.extend(fresh.map(|reason| Refused { about: about.clone(), reason: reason.clone() }));
        self.buckets.get_mut(name).expect("it was just there").refused = refused.into();
    }
}

fn pack<K: Ord, V>(tree: &mut BTreeMap<K, V>) {
    *tree = std::mem::take(tree).into_iter().collect();
}

/// Addresses by which a Service is reached from outside.
fn outer(service: &Service) -> impl Iterator<Item = Ipv6Addr> {
    service.external_ips.iter().chain(&service.ingress).copied()
}

fn is_v4(addr: Ipv6Addr) -> bool {
    addr.to_ipv4_mapped().is_some()
}

fn claimed(service: &Name, claims: &[Claim], created: u64) -> BTreeSet<Claimed> {
    let one = |claim: &Claim| Claimed { frontend: claim.frontend, created, service: service.clone() };
    claims.iter().map(one).collect()
}

fn recheck(external: &BTreeMap<Ipv6Addr, BTreeSet<Name>>, dirty: &mut BTreeSet<Name>, addr: Ipv6Addr) {
    dirty.extend(external.get(&addr).into_iter().flatten().cloned());
}
