//! What the kernel holds, and the writes that lead from there to what is wanted, in an order in which nobody ever sees half of it.
//!
//! Who reads a frontend finds a run of slots, each naming a backend of the frontend's set. A change fills a new run, then replaces the
//! frontend's one element, and takes away what is not used any more only after that. Where the daemon dies in between, the next life
//! reads back what there is and goes on from there.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::Ipv6Addr;
use std::sync::Arc;

use super::room::{Ids, Runs};
use super::{Backend, Changes, Frontend, Set, Target};
use crate::cluster::{Protocol, mapped};
use crate::maps::{self, FrontendKey, Proto, Sizes, Tables, Write};

pub struct Table {
    sizes: Sizes,
    /// What each frontend's element is, and whose set that is; of another life's not yet known.
    frontends: BTreeMap<Frontend, (maps::Frontend, Option<Set>)>,
    sets: BTreeMap<Set, Block>,
    nodes: BTreeMap<Ipv6Addr, u32>,
    runs: Runs,
    ids: Ids,
    next_set: u32,
    /// What is wanted and did not fit.
    waiting: BTreeMap<Frontend, Target>,
    waiting_nodes: usize,
    full: BTreeSet<Map>,
    /// Sets that have lost a frontend.
    idle: BTreeSet<Set>,
    /// Datagrams were led to these, and are not any more; by id.
    gone: BTreeMap<u32, maps::Backend>,
    /// Nothing has been put in place yet.
    is_new: bool,
    inherited: Option<Inherited>,
}

/// The backends of a set: in slots from `base` on, in order, each with its id.
#[derive(Debug)]
struct Block {
    number: u32,
    base: u32,
    members: Box<[(Backend, u32)]>,
    /// Frontends that lead here.
    users: u32,
}

/// What another life left, until all that is wanted has been put in its place.
struct Inherited {
    slots: HashMap<u32, u32>,
    backends: BTreeMap<u32, maps::Backend>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Map {
    Frontends,
    Backends,
    Slots,
    Nodes,
}

/// A map that holds no more: what is in it goes on working, and as many Services' addresses (or nodes) wait for room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full {
    pub map: Map,
    pub limit: u32,
    pub waiting: usize,
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Full { map, limit, waiting } = self;
        match map {
            Map::Frontends => write!(
                f,
                "eBPF map frontends is full ({limit}): {waiting} addresses of Services wait; raise service_frontends"
            ),
            Map::Backends | Map::Slots => {
                let name = if *map == Map::Slots { "slots" } else { "backends" };
                write!(
                    f,
                    "eBPF map {name} is full ({limit}): {waiting} addresses of Services wait; raise service_backends"
                )
            }
            Map::Nodes => {
                write!(f, "eBPF map nodes is full ({limit}): node ports of {waiting} addresses are left to kube-proxy")
            }
        }
    }
}

/// What nobody uses once the frontends are written.
#[derive(Default)]
struct Spare {
    runs: Vec<(u32, u32)>,
    backends: Vec<(u32, maps::Backend)>,
}

impl Block {
    /// Backends as the kernel has them.
    fn backends(&self, protocol: Protocol) -> impl Iterator<Item = (u32, maps::Backend)> {
        let of_set = move |(backend, id): &(Backend, u32)| (*id, of_set(backend, self.number, protocol));
        self.members.iter().map(of_set)
    }
}

impl Table {
    /// Goes on from what the kernel holds, whoever wrote it.
    pub fn adopt(tables: Tables, sizes: Sizes) -> Table {
        let slots: HashMap<u32, u32> = tables.slots.into_iter().collect();
        let backends: BTreeMap<u32, maps::Backend> = tables.backends.into_iter().collect();
        let frontends: BTreeMap<Frontend, _> =
            tables.frontends.into_iter().map(|(key, value)| (frontend(&key), (value, None))).collect();
        let runs = frontends.values().map(|(value, _)| (value.base, value.count)).collect();
        let numbers = frontends.values().map(|(value, _)| value.set).chain(backends.values().map(|b| b.set));
        Table {
            sizes,
            runs: Runs::without(sizes.slots, runs),
            ids: Ids::without(sizes.backends, &backends.keys().copied().collect()),
            next_set: numbers.max().map_or(1, |last| last.wrapping_add(1).max(1)),
            frontends,
            sets: BTreeMap::new(),
            nodes: tables.nodes.into_iter().map(|(addr, flags)| (mapped(addr), flags)).collect(),
            waiting: BTreeMap::new(),
            waiting_nodes: 0,
            full: BTreeSet::new(),
            idle: BTreeSet::new(),
            gone: BTreeMap::new(),
            is_new: true,
            inherited: Some(Inherited { slots, backends }),
        }
    }

    /// The writes that lead to what is wanted. The first changes are everything: what they do not name goes. Later ones name all
    /// frontends of a set whose backends change.
    pub fn change(&mut self, mut changes: Changes) -> Vec<Write> {
        let mut writes = Vec::new();
        self.full.clear();
        if std::mem::take(&mut self.is_new) {
            for frontend in self.frontends.keys() {
                changes.frontends.entry(*frontend).or_insert(None);
            }
            self.take_over(&changes);
        }
        self.note_nodes(changes.nodes, &mut writes);
        for (frontend, target) in changes.frontends {
            match target {
                Some(target) => drop(self.waiting.insert(frontend, target)),
                None => self.remove(frontend, &mut writes),
            }
        }
        loop {
            let wanted = std::mem::take(&mut self.waiting);
            self.full.remove(&Map::Frontends);
            let has_freed = self.place(wanted, &mut writes);
            if self.waiting.is_empty() || !has_freed {
                return writes;
            }
        }
    }

    /// Maps that are full, if something waits for them.
    pub fn full(&self) -> Vec<Full> {
        let waiting = |map| if map == Map::Nodes { self.waiting_nodes } else { self.waiting.len() };
        let full = self.full.iter().map(|map| Full { map: *map, limit: self.limit(*map), waiting: waiting(*map) });
        full.filter(|full| full.waiting > 0).collect()
    }

    /// Backends that sockets may still be connected to, since they were asked for last: of UDP, where nothing tells their owners.
    pub fn take_gone(&mut self) -> BTreeMap<u32, maps::Backend> {
        std::mem::take(&mut self.gone)
    }

    /// See [`super::Model::pack`].
    pub fn pack(&mut self) {
        super::pack(&mut self.frontends);
        super::pack(&mut self.sets);
    }

    /// How many frontends and backends there are.
    pub fn size(&self) -> (usize, usize) {
        (self.frontends.len(), self.sets.values().map(|block| block.members.len()).sum())
    }

    fn limit(&self, map: Map) -> u32 {
        match map {
            Map::Frontends => self.sizes.frontends,
            Map::Backends => self.sizes.backends,
            Map::Slots => self.sizes.slots,
            Map::Nodes => self.sizes.nodes,
        }
    }

    fn note_nodes(&mut self, nodes: Option<BTreeMap<Ipv6Addr, bool>>, writes: &mut Vec<Write>) {
        let Some(nodes) = nodes else { return };
        let gone: Vec<Ipv6Addr> = self.nodes.keys().filter(|addr| !nodes.contains_key(addr)).copied().collect();
        for addr in gone {
            self.nodes.remove(&addr);
            writes.push(Write::RemoveNode(addr.to_canonical()));
        }
        self.waiting_nodes = 0;
        for (addr, own) in nodes {
            let flags = if own { maps::NODE_OWN } else { 0 };
            if !self.nodes.contains_key(&addr) && self.nodes.len() >= self.sizes.nodes as usize {
                self.waiting_nodes += 1;
                self.full.insert(Map::Nodes);
            } else if self.nodes.insert(addr, flags) != Some(flags) {
                writes.push(Write::Node { addr: addr.to_canonical(), flags });
            }
        }
    }

    fn remove(&mut self, frontend: Frontend, writes: &mut Vec<Write>) {
        self.waiting.remove(&frontend);
        let Some((_, set)) = self.frontends.remove(&frontend) else { return };
        writes.push(Write::RemoveFrontend(key(&frontend)));
        if let Some(set) = set {
            self.leave(set);
        }
    }

    fn leave(&mut self, set: Set) {
        if let Some(block) = self.sets.get_mut(&set) {
            block.users -= 1;
            self.idle.insert(set);
        }
    }

    /// Puts in place what fits; the rest waits. Whether something has become free.
    fn place(&mut self, wanted: BTreeMap<Frontend, Target>, writes: &mut Vec<Write>) -> bool {
        let mut room = (self.sizes.frontends as usize).saturating_sub(self.frontends.len());
        let (mut placed, mut sets) = (Vec::new(), BTreeMap::<Set, Arc<[Backend]>>::new());
        for (frontend, target) in wanted {
            let is_new = !self.frontends.contains_key(&frontend);
            if is_new && room == 0 {
                self.full.insert(Map::Frontends);
                self.waiting.insert(frontend, target);
                continue;
            }
            room -= usize::from(is_new);
            sets.entry(target.set).or_insert_with(|| target.backends.clone());
            placed.push((frontend, target));
        }
        let (mut slots, mut spare) = (Vec::new(), Spare::default());
        for (set, backends) in sets {
            if let Err(map) = self.fill(set, &backends, writes, &mut slots, &mut spare) {
                self.full.insert(map);
                let (wait, go) = placed.into_iter().partition::<Vec<_>, _>(|(_, target)| target.set == set);
                for (frontend, target) in wait {
                    // What led elsewhere, to another Service of its address, is not kept: the proxy of the node may know better.
                    if self.frontends.get(&frontend).is_some_and(|(_, now)| now.is_some_and(|now| now != set)) {
                        self.remove(frontend, writes);
                    }
                    self.waiting.insert(frontend, target);
                }
                placed = go;
            }
        }
        writes.append(&mut slots);
        placed.into_iter().for_each(|(frontend, target)| self.point(frontend, &target, writes));
        self.clean(spare, writes)
    }

    /// Fills a new run for the set, unless it holds these backends already.
    fn fill(
        &mut self,
        set: Set,
        wanted: &[Backend],
        writes: &mut Vec<Write>,
        slots: &mut Vec<Write>,
        spare: &mut Spare,
    ) -> Result<(), Map> {
        let old = self.sets.get(&set);
        let members: &[(Backend, u32)] = old.map_or(&[], |block| &block.members);
        if old.is_some() && members.iter().map(|(backend, _)| backend).eq(wanted) {
            return Ok(());
        }
        let known = |backend| members.binary_search_by_key(backend, |(b, _)| *b).ok().map(|at| members[at].1);
        if wanted.iter().filter(|backend| known(backend).is_none()).count() > self.ids.len() {
            return Err(Map::Backends);
        }
        let base = if wanted.is_empty() { 0 } else { self.runs.take(wanted.len() as u32).ok_or(Map::Slots)? };
        let number = old.map_or(self.next_set, |block| block.number);
        let mut fresh = Vec::new();
        for (at, backend) in (base..).zip(wanted) {
            let id = known(backend).unwrap_or_else(|| {
                let id = self.ids.take().expect("they were counted");
                writes.push(Write::Backend { id, value: Some(of_set(backend, number, set.protocol)) });
                id
            });
            slots.push(Write::Slot { at, backend: id });
            fresh.push((*backend, id));
        }
        if let Some(block) = old {
            spare.runs.push((block.base, block.members.len() as u32));
            let is_kept = |addr| wanted.binary_search_by_key(&addr, |b| (b.addr, b.port)).is_ok();
            let gone = block.backends(set.protocol).filter(|(_, b)| !is_kept((mapped(b.addr), b.port)));
            spare.backends.extend(gone);
        }
        if number == self.next_set {
            self.next_set = self.next_set.wrapping_add(1).max(1);
        }
        let users = old.map_or(0, |block| block.users);
        self.sets.insert(set, Block { number, base, members: fresh.into(), users });
        Ok(())
    }

    /// Has the frontend lead to its set.
    fn point(&mut self, frontend: Frontend, target: &Target, writes: &mut Vec<Write>) {
        let block = self.sets.get_mut(&target.set).expect("it was filled");
        let value = maps::Frontend {
            set: block.number,
            base: block.base,
            count: block.members.len() as u32,
            affinity: target.affinity,
            flags: if target.own_node_only { maps::OWN_NODE_ONLY } else { 0 },
        };
        let before = self.frontends.insert(frontend, (value, Some(target.set)));
        if before.is_none_or(|(_, set)| set != Some(target.set)) {
            block.users += 1;
            if let Some((_, Some(old))) = before {
                self.leave(old);
            }
        }
        if before.is_none_or(|(before, _)| before != value) {
            writes.push(Write::Frontend { key: key(&frontend), value });
        }
    }

    /// Takes away what nobody uses any more. Whether there was something.
    fn clean(&mut self, mut spare: Spare, writes: &mut Vec<Write>) -> bool {
        for set in std::mem::take(&mut self.idle) {
            if self.sets.get(&set).is_some_and(|block| block.users == 0)
                && let Some(block) = self.sets.remove(&set)
            {
                spare.runs.push((block.base, block.members.len() as u32));
                spare.backends.extend(block.backends(set.protocol));
            }
        }
        if let Some(inherited) = self.inherited.take() {
            return self.clean_inherited(inherited, spare, writes);
        }
        let has_freed = !spare.backends.is_empty() || spare.runs.iter().any(|(_, len)| *len > 0);
        spare.runs.into_iter().for_each(|(base, len)| self.runs.give(base, len));
        for (id, backend) in spare.backends {
            writes.push(Write::Backend { id, value: None });
            self.ids.give(id);
            self.note_gone(id, backend);
        }
        has_freed
    }

    fn note_gone(&mut self, id: u32, backend: maps::Backend) {
        if backend.proto == Proto::Udp {
            self.gone.insert(id, backend);
        }
    }

    // What another life left

    /// Keeps the sets whose frontends all belong together still, with their ids: whoever was led to one of their backends stays there.
    fn take_over(&mut self, changes: &Changes) {
        let Some(inherited) = &self.inherited else { return };
        let mut heirs = BTreeMap::<u32, (Option<Set>, maps::Frontend)>::new();
        for (frontend, target) in &changes.frontends {
            let (Some(target), Some((value, _))) = (target, self.frontends.get(frontend)) else { continue };
            let (heir, _) = heirs.entry(value.set).or_insert((Some(target.set), *value));
            *heir = heir.filter(|heir| *heir == target.set);
        }
        for (number, (heir, value)) in heirs {
            let Some(set) = heir.filter(|set| !self.sets.contains_key(set)) else { continue };
            if let Some(members) = inherited.members(&value, set.protocol) {
                self.sets.insert(set, Block { number, base: value.base, members: members.into(), users: 0 });
            }
        }
    }

    /// Clears everything that neither a set nor a frontend that waits for its own holds.
    fn clean_inherited(&mut self, mut inherited: Inherited, spare: Spare, writes: &mut Vec<Write>) -> bool {
        // Taken over for frontends that wait: they hold on to what they have without it.
        self.sets.retain(|_, block| block.users > 0);
        let strange: Vec<maps::Frontend> =
            self.frontends.values().filter(|(_, set)| set.is_none()).map(|(value, _)| *value).collect();
        let mut used: BTreeSet<u32> = strange.iter().flat_map(|value| inherited.ids(value)).collect();
        used.extend(self.sets.values().flat_map(|block| block.members.iter().map(|(_, id)| *id)));
        let mut cleared: BTreeMap<u32, maps::Backend> = spare.backends.into_iter().collect();
        cleared.extend(inherited.backends.extract_if(.., |id, _| !used.contains(id)));
        cleared.retain(|id, _| !used.contains(id));
        for (id, backend) in &cleared {
            writes.push(Write::Backend { id: *id, value: None });
            self.note_gone(*id, *backend);
        }
        let mut runs: Vec<(u32, u32)> = strange.iter().map(|value| (value.base, value.count)).collect();
        runs.extend(self.sets.values().map(|block| (block.base, block.members.len() as u32)));
        self.runs = Runs::without(self.sizes.slots, runs);
        self.ids = Ids::without(self.sizes.backends, &used);
        self.inherited = (!strange.is_empty()).then_some(inherited);
        !cleared.is_empty()
    }
}

impl Inherited {
    /// The ids in a frontend's slots.
    fn ids(&self, value: &maps::Frontend) -> impl Iterator<Item = u32> {
        let most = (self.slots.len() as u32).min(value.count);
        (value.base..value.base.saturating_add(most)).filter_map(|at| self.slots.get(&at).copied())
    }

    /// The backends of a frontend, if all of them are there and as we write them: of its set, in order, each once.
    fn members(&self, value: &maps::Frontend, protocol: Protocol) -> Option<Vec<(Backend, u32)>> {
        let fits = |backend: &&maps::Backend| backend.set == value.set && backend.proto == proto(protocol);
        let member = |id: u32| {
            let backend = self.backends.get(&id).filter(fits)?;
            Some((Backend { addr: mapped(backend.addr), port: backend.port }, id))
        };
        let members: Vec<(Backend, u32)> = self.ids(value).map(member).collect::<Option<_>>()?;
        let is_whole = members.len() == value.count as usize && members.is_sorted_by(|a, b| a.0 < b.0);
        is_whole.then_some(members)
    }
}

fn of_set(backend: &Backend, set: u32, protocol: Protocol) -> maps::Backend {
    maps::Backend { set, addr: backend.addr.to_canonical(), port: backend.port, proto: proto(protocol) }
}

fn proto(protocol: Protocol) -> Proto {
    if protocol == Protocol::Udp { Proto::Udp } else { Proto::Tcp }
}

fn key(frontend: &Frontend) -> FrontendKey {
    FrontendKey { addr: frontend.addr.to_canonical(), port: frontend.port, proto: proto(frontend.protocol) }
}

fn frontend(key: &FrontendKey) -> Frontend {
    let protocol = if key.proto == Proto::Udp { Protocol::Udp } else { Protocol::Tcp };
    Frontend { addr: mapped(key.addr), port: key.port, protocol }
}
