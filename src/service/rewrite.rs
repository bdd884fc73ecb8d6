//! Random wishes, and a kernel that takes the writes one by one: after any of them the daemon may die, and whoever reads sees for each
//! frontend all of the old backends or all of the new.
//!
//! `SERVICE_SEED=17 cargo test --lib service::rewrite` replays one seed, `SERVICE_SEEDS=5000` runs more of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use fastrand::Rng;

use super::table::{Full, Map, Table};
use super::{ANY_V4, ANY_V6, Backend, Changes, Frontend, Reach, Set, Target};
use crate::cluster::{Protocol, mapped};
use crate::maps::{self, FrontendKey, Sizes, Tables, Write};

const SEEDS: u64 = 120;
const STEPS: u32 = 60;

/// What the maps hold.
#[derive(Default, Clone)]
struct Kernel {
    frontends: BTreeMap<FrontendKey, maps::Frontend>,
    slots: BTreeMap<u32, u32>,
    backends: BTreeMap<u32, maps::Backend>,
    nodes: BTreeMap<std::net::IpAddr, u32>,
}

impl Kernel {
    fn carry_out(&mut self, write: &Write, sizes: &Sizes) {
        match *write {
            Write::Slot { at, backend } => {
                assert!(at < sizes.slots);
                self.slots.insert(at, backend);
            }
            Write::Backend { id, value: Some(value) } => {
                assert!(id > 0 && id < sizes.backends, "{id} is no id");
                assert!(!self.backends.contains_key(&id), "{id} means two things");
                self.backends.insert(id, value);
            }
            Write::Backend { id, value: None } => assert!(self.backends.remove(&id).is_some(), "{id} is cleared twice"),
            Write::Frontend { key, value } => drop(self.frontends.insert(key, value)),
            Write::RemoveFrontend(key) => assert!(self.frontends.remove(&key).is_some()),
            Write::Node { addr, flags } => drop(self.nodes.insert(addr, flags)),
            Write::RemoveNode(addr) => assert!(self.nodes.remove(&addr).is_some()),
        }
        assert!(self.frontends.len() <= sizes.frontends as usize && self.nodes.len() <= sizes.nodes as usize);
    }

    /// Where a frontend leads, as the programs read it.
    fn backends(&self, value: &maps::Frontend) -> Vec<Backend> {
        let slots = (value.base..value.base + value.count).map(|at| self.slots.get(&at).expect("a slot"));
        slots
            .map(|id| {
                let backend = self.backends.get(id).expect("a backend");
                assert_eq!(backend.set, value.set, "a backend of another set");
                Backend { addr: mapped(backend.addr), port: backend.port }
            })
            .collect()
    }

    fn shown(&self) -> Shown {
        self.frontends.iter().map(|(key, value)| (*key, (self.backends(value), value.affinity, value.flags))).collect()
    }

    fn tables(&self) -> Tables {
        Tables {
            frontends: self.frontends.clone().into_iter().collect(),
            slots: self.slots.clone().into_iter().collect(),
            backends: self.backends.clone().into_iter().collect(),
            nodes: self.nodes.clone().into_iter().collect(),
        }
    }
}

type Shown = BTreeMap<FrontendKey, (Vec<Backend>, u32, u32)>;

fn shown(wanted: &BTreeMap<Frontend, Target>) -> Shown {
    let target = |t: &Target| (t.backends.to_vec(), t.affinity, u32::from(t.own_node_only));
    wanted.iter().map(|(f, t)| (key(f), target(t))).collect()
}

fn key(frontend: &Frontend) -> FrontendKey {
    let proto = if frontend.protocol == Protocol::Udp { maps::Proto::Udp } else { maps::Proto::Tcp };
    FrontendKey { addr: frontend.addr.to_canonical(), port: frontend.port, proto }
}

#[test]
fn whoever_reads_sees_all_of_the_old_or_all_of_the_new() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    if let Some(seed) = number("SERVICE_SEED") {
        return episode(seed);
    }
    for seed in 0..number("SERVICE_SEEDS").unwrap_or(SEEDS) {
        catch_unwind(AssertUnwindSafe(|| episode(seed))).unwrap_or_else(|panic| {
            eprintln!("replay with SERVICE_SEED={seed}");
            resume_unwind(panic)
        });
    }
}

fn sizes(rng: &mut Rng) -> Sizes {
    let tight = rng.bool();
    let (frontends, backends, slots) = if tight { (8, 24, 30) } else { (64, 256, 512) };
    Sizes { frontends, backends, slots, nodes: 3, affinity: 8, flows: 8 }
}

fn episode(seed: u64) {
    let mut rng = Rng::with_seed(seed);
    let sizes = sizes(&mut rng);
    let (mut kernel, mut world) = (Kernel::default(), World { services: BTreeMap::new(), next: 1 });
    let mut table = Table::adopt(kernel.tables(), sizes);
    let mut is_new = true;
    for _ in 0..STEPS {
        let before = world.wanted();
        world.change(&mut rng);
        let wanted = world.wanted();
        let changes = if is_new { everything(&wanted) } else { difference(&before, &wanted) };
        let old = kernel.shown();
        let writes = table.change(changes);
        let dies = rng.u8(..5) == 0;
        let end = if dies { rng.usize(..=writes.len()) } else { writes.len() };
        for write in &writes[..end] {
            kernel.carry_out(write, &sizes);
            check(&kernel, &old, &shown(&wanted));
        }
        let gone = table.take_gone();
        let is_there = |(id, backend): (&u32, &maps::Backend)| kernel.backends.get(id) == Some(backend);
        assert!(dies || !gone.iter().any(is_there), "a socket of a backend that is there would be ended");
        if rng.u8(..10) == 0 {
            table.pack();
        }
        is_new = dies;
        if dies {
            // Sets are numbered anew in each life.
            world.reborn();
            table = Table::adopt(kernel.tables(), sizes);
        } else {
            settled(&kernel, &table, &shown(&wanted), &sizes);
        }
    }
}

/// In the middle of the writes.
fn check(kernel: &Kernel, old: &Shown, new: &Shown) {
    for (key, now) in kernel.shown() {
        let is = |shown: &Shown| shown.get(&key) == Some(&now);
        assert!(is(old) || is(new), "{key:?} leads to {now:?}, was {:?}, is to be {:?}", old.get(&key), new.get(&key));
    }
}

/// After all of them.
fn settled(kernel: &Kernel, table: &Table, wanted: &Shown, sizes: &Sizes) {
    let now = kernel.shown();
    assert!(now.keys().all(|key| wanted.contains_key(key)), "something is left");
    let differing = wanted.iter().filter(|(key, target)| now.get(key) != Some(target)).count();
    let full = table.full();
    let waiting = full.iter().filter(|f| f.map != Map::Nodes).map(|f| f.waiting).max().unwrap_or_default();
    assert!(differing <= waiting, "{differing} differ and {waiting} wait: {full:?}");
    let used: BTreeSet<u32> = kernel
        .frontends
        .values()
        .flat_map(|value| (value.base..value.base + value.count).map(|at| kernel.slots[&at]))
        .collect();
    assert_eq!(kernel.backends.keys().copied().collect::<BTreeSet<_>>(), used, "ids that nobody uses");
    if sizes.frontends > 8 {
        assert_eq!((&now, full), (wanted, vec![]));
    }
}

fn everything(wanted: &BTreeMap<Frontend, Target>) -> Changes {
    let frontends = wanted.iter().map(|(f, t)| (*f, Some(t.clone()))).collect();
    let nodes = (1..3).map(|n| (Ipv6Addr::from(n), n == 1)).collect();
    Changes { frontends, nodes: Some(nodes), refused: Vec::new() }
}

/// As the model tells it: with a set, all its frontends.
fn difference(before: &BTreeMap<Frontend, Target>, wanted: &BTreeMap<Frontend, Target>) -> Changes {
    let mut changes = Changes::default();
    let gone = before.keys().filter(|f| !wanted.contains_key(f));
    changes.frontends.extend(gone.map(|f| (*f, None)));
    let sets: BTreeSet<Set> = wanted.iter().filter(|(f, t)| before.get(f) != Some(t)).map(|(_, t)| t.set).collect();
    let told = wanted.iter().filter(|(_, t)| sets.contains(&t.set));
    changes.frontends.extend(told.map(|(f, t)| (*f, Some(t.clone()))));
    changes
}

/// Each with its affinity, and whether it is for our own node only.
type Frontends = BTreeMap<Frontend, (u32, bool)>;

/// Services of one set each, on frontends that they take from each other.
struct World {
    services: BTreeMap<u8, (Set, Frontends, Arc<[Backend]>)>,
    next: u32,
}

impl World {
    fn wanted(&self) -> BTreeMap<Frontend, Target> {
        let mut all = BTreeMap::new();
        for (set, frontends, backends) in self.services.values() {
            for (frontend, (affinity, own)) in frontends {
                let target = Target { set: *set, backends: backends.clone(), affinity: *affinity, own_node_only: *own };
                all.entry(*frontend).or_insert(target);
            }
        }
        all
    }

    fn change(&mut self, rng: &mut Rng) {
        for _ in 0..rng.u8(1..4) {
            let name = rng.u8(..6);
            match rng.u8(..6) {
                0 => drop(self.services.remove(&name)),
                1 | 2 => {
                    if let Some((_, _, backends)) = self.services.get_mut(&name) {
                        *backends = some_backends(rng);
                    }
                }
                _ => self.put(name, rng),
            }
        }
    }

    fn put(&mut self, name: u8, rng: &mut Rng) {
        let set = match self.services.get(&name) {
            Some((set, ..)) if rng.bool() => *set,
            _ => {
                self.next += 1;
                numbered(self.next, name)
            }
        };
        let frontends = (0..rng.u8(1..5)).map(|_| {
            let addr = match rng.u8(..8) {
                0 => ANY_V4,
                1 => ANY_V6,
                n => Ipv6Addr::from(u128::from(n)),
            };
            let affinity = if rng.bool() { 7 } else { 0 };
            (Frontend { addr, port: rng.u16(80..82), protocol: set.protocol }, (affinity, rng.u8(..4) == 0))
        });
        let frontends = frontends.collect();
        self.services.insert(name, (set, frontends, some_backends(rng)));
    }

    fn reborn(&mut self) {
        for (name, (set, ..)) in &mut self.services {
            self.next += 1;
            *set = numbered(self.next, *name);
        }
    }
}

/// Services of one name keep their protocol.
fn numbered(service: u32, name: u8) -> Set {
    let protocol = if name.is_multiple_of(2) { Protocol::Tcp } else { Protocol::Udp };
    Set { service, port: 80, protocol, is_v4: true, reach: Reach::Cluster }
}

fn some_backends(rng: &mut Rng) -> Arc<[Backend]> {
    let one = |rng: &mut Rng| Backend { addr: Ipv6Addr::from(u128::from(rng.u8(1..12))), port: 8080 };
    let some: BTreeSet<Backend> = (0..rng.u8(..9)).map(|_| one(rng)).collect();
    some.into_iter().collect()
}

#[test]
fn a_full_map_is_named_and_what_is_in_it_goes_on() {
    let sizes = Sizes { frontends: 2, backends: 5, slots: 8, nodes: 1, affinity: 1, flows: 1 };
    let (mut kernel, mut table) = (Kernel::default(), Table::adopt(Tables::default(), sizes));
    let target = |service, backends: std::ops::Range<u128>| {
        let backends = backends.map(|n| Backend { addr: Ipv6Addr::from(n), port: 1 }).collect();
        Some(Target { set: numbered(service, 0), backends, affinity: 0, own_node_only: false })
    };
    let at = |n: u128| Frontend { addr: Ipv6Addr::from(n), port: 80, protocol: Protocol::Tcp };
    let nodes = Some((1..4).map(|n| (Ipv6Addr::from(n), false)).collect());
    let mut put = |frontends: Vec<(Frontend, Option<Target>)>, nodes| {
        let writes = table.change(Changes { frontends: frontends.into_iter().collect(), nodes, refused: Vec::new() });
        writes.iter().for_each(|write| kernel.carry_out(write, &sizes));
        let counts: Vec<usize> = kernel.shown().values().map(|(backends, ..)| backends.len()).collect();
        (counts, table.full())
    };
    let lack = |map, limit, waiting| Full { map, limit, waiting };
    let first = put(vec![(at(1), target(1, 0..2)), (at(2), target(2, 2..4)), (at(3), target(3, 4..5))], nodes);
    assert_eq!(first, (vec![2, 2], vec![lack(Map::Frontends, 2, 1), lack(Map::Nodes, 1, 2)]));
    // The older keep what they have, also where they want more.
    let more = put(vec![(at(1), target(1, 0..5))], None);
    assert_eq!(more, (vec![2, 2], vec![lack(Map::Frontends, 2, 2), lack(Map::Backends, 5, 2)]));
    let room = put(vec![(at(2), None)], None);
    assert_eq!(room.0, vec![2, 1]);
    let words = lack(Map::Backends, 5, 1).to_string();
    assert_eq!(words, "eBPF map backends is full (5): 1 addresses of Services wait; raise service_backends");
    let fits = put(vec![(at(1), target(1, 0..3))], None);
    assert_eq!(fits, (vec![3, 1], vec![]));
}

#[test]
fn one_endpoint_costs_a_few_writes_and_nobody_elses() {
    let sizes = Sizes::default();
    let mut table = Table::adopt(Tables::default(), sizes);
    let target = |service, range: std::ops::Range<u128>| {
        let backends = range.map(|n| Backend { addr: Ipv6Addr::from(n), port: 1 }).collect();
        Some(Target { set: numbered(service, 0), backends, affinity: 0, own_node_only: false })
    };
    let at = |n: u32| Frontend { addr: Ipv6Addr::from(u128::from(n)), port: 80, protocol: Protocol::Tcp };
    let frontends = (1..=100).map(|n| (at(n), target(n, 0..5))).collect();
    let writes = table.change(Changes { frontends, ..Changes::default() });
    assert_eq!(writes.len(), 100 * (5 + 5 + 1));
    let again = (1..=100).map(|n| (at(n), target(n, 0..5))).collect();
    assert!(table.change(Changes { frontends: again, ..Changes::default() }).is_empty());
    let one = Changes { frontends: [(at(7), target(7, 1..6))].into(), ..Changes::default() };
    let kinds: Vec<&str> = table
        .change(one)
        .iter()
        .map(|write| match write {
            Write::Backend { value: Some(_), .. } => "backend",
            Write::Backend { value: None, .. } => "clear",
            Write::Slot { .. } => "slot",
            Write::Frontend { .. } => "frontend",
            _ => "other",
        })
        .collect();
    assert_eq!(kinds, ["backend", "slot", "slot", "slot", "slot", "slot", "frontend", "clear"]);
}
