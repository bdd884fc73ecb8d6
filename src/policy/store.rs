//! What has been compiled so far, each thing once, and the writes that lead from there to what is wanted now.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::compile::{self, Known};
use super::form::Peer;
use super::table::Table;
use crate::cluster::Name;
use crate::rules::{ClassId, PeerId, PodSets, Program, ProgramId, RuleSet, Rules, Set, SetId, Write};

#[derive(Default)]
pub struct Store {
    rules: Rules,
    writes: Vec<Write>,
    table: Table,
    sets: BTreeMap<SetId, Held>,
    ids: HashMap<Arc<RuleSet>, SetId>,
    /// Whom it concerns when an address comes to match a peer.
    sets_of: BTreeMap<PeerId, BTreeSet<SetId>>,
    classes_of: BTreeMap<PeerId, BTreeSet<ClassId>>,
    programs: HashMap<Arc<Program>, (ProgramId, u32)>,
    /// Sets that have no programs for classes yet.
    new_sets: Vec<SetId>,
    /// Peers that were numbered since the last time.
    new_peers: BTreeSet<PeerId>,
    dying: Vec<SetId>,
    gone_peers: Vec<PeerId>,
    next_set: SetId,
    next_program: ProgramId,
}

struct Held {
    peers: BTreeSet<PeerId>,
    /// How many pods have it.
    uses: u32,
    /// What nothing matches has.
    program: ProgramId,
    /// By those of the peers that an address matches, and how many classes that are.
    programs: HashMap<Box<[PeerId]>, (ProgramId, u32)>,
}

impl Held {
    fn matched(&self, class: &[PeerId]) -> Box<[PeerId]> {
        class.iter().copied().filter(|peer| self.peers.contains(peer)).collect()
    }
}

impl Store {
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    pub fn table(&mut self) -> &mut Table {
        &mut self.table
    }

    pub fn peers(&self) -> impl Iterator<Item = &Peer> {
        self.table.peers()
    }

    fn emit(&mut self, write: Write) {
        self.rules.apply(&write);
        self.writes.push(write);
    }

    fn peer(&mut self, peer: &Peer) -> PeerId {
        let id = self.table.peer(peer);
        if !self.rules.peers.contains_key(&id) {
            self.new_peers.insert(id);
            let text = self.table.text(id);
            self.emit(Write::Peer(id, Some(text)));
        }
        id
    }

    /// The number of these rules.
    pub fn set(&mut self, rules: RuleSet) -> SetId {
        if let Some(id) = self.ids.get(&rules) {
            return *id;
        }
        self.next_set += 1;
        let (id, rules) = (self.next_set, Arc::new(rules));
        let peers = rules.peers();
        for peer in &peers {
            self.sets_of.entry(*peer).or_default().insert(id);
        }
        let program = self.program(&rules, &[]);
        self.ids.insert(rules.clone(), id);
        self.sets.insert(id, Held { peers, uses: 0, program, programs: HashMap::new() });
        self.new_sets.push(id);
        self.emit(Write::Set(id, Some(Set { rules, program })));
        id
    }

    /// The program for addresses that match these peers of a set; one more use of it.
    fn program(&mut self, rules: &RuleSet, peers: &[PeerId]) -> ProgramId {
        let program = compile::program(rules, &|peer| peers.binary_search(&peer).is_ok());
        if let Some((id, uses)) = self.programs.get_mut(&program) {
            *uses += 1;
            return *id;
        }
        self.next_program += 1;
        let (id, program) = (self.next_program, Arc::new(program));
        self.programs.insert(program.clone(), (id, 1));
        self.emit(Write::Program(id, Some(program)));
        id
    }

    /// Puts every address into its class, and has a program for each class that means something to a set.
    pub fn settle(&mut self) {
        let (classes, prefixes) = self.table.settle(&self.rules);
        let mut pairs = BTreeSet::new();
        for write in classes {
            let Write::Class(class, Some(peers)) = &write else { continue };
            for peer in peers.iter() {
                self.classes_of.entry(*peer).or_default().insert(*class);
                pairs.extend(self.sets_of.get(peer).into_iter().flatten().map(|set| (*set, *class)));
            }
            self.emit(write);
        }
        for set in std::mem::take(&mut self.new_sets) {
            let peers = &self.sets[&set].peers;
            let classes = peers.iter().filter_map(|peer| self.classes_of.get(peer)).flatten();
            pairs.extend(classes.map(|class| (set, *class)));
        }
        pairs.into_iter().for_each(|(set, class)| self.pair(set, class));
        prefixes.into_iter().for_each(|write| self.emit(write));
    }

    /// Once for each set and class.
    fn pair(&mut self, set: SetId, class: ClassId) {
        let matched = self.sets[&set].matched(&self.rules.classes[&class]);
        let known = self.sets.get_mut(&set).and_then(|held| held.programs.get_mut(&matched));
        let program = match known {
            Some((program, classes)) => {
                *classes += 1;
                *program
            }
            None => {
                let rules = self.rules.sets[&set].rules.clone();
                let program = self.program(&rules, &matched);
                self.sets.get_mut(&set).expect("it is there").programs.insert(matched, (program, 1));
                program
            }
        };
        if program != self.sets[&set].program {
            self.emit(Write::Pair(set, class, Some(program)));
        }
    }

    /// Gives pods their rules.
    pub fn switch(&mut self, pods: Vec<(Name, Option<PodSets>)>) {
        for (name, sets) in pods {
            let before = self.rules.pods.get(&name).copied();
            for set in sets.iter().flat_map(|sets| [sets.ingress, sets.egress]) {
                self.sets.get_mut(&set).expect("it was numbered").uses += 1;
            }
            for set in before.iter().flat_map(|sets| [sets.ingress, sets.egress]) {
                let held = self.sets.get_mut(&set).expect("it is in use");
                held.uses -= 1;
                if held.uses == 0 {
                    self.dying.push(set);
                }
            }
            self.emit(Write::Pod(name, sets));
        }
    }

    /// Takes leave of sets that no pod has, and of peers that no set asks for.
    pub fn retire(&mut self) {
        let sets = &self.sets;
        self.dying.retain(|set| sets[set].uses == 0);
        self.dying.sort_unstable();
        self.dying.dedup();
        let mut idle = std::mem::take(&mut self.new_peers);
        for set in &self.dying {
            for peer in &self.sets[set].peers {
                if let Some(sets) = self.sets_of.get_mut(peer) {
                    sets.remove(set);
                }
                idle.insert(*peer);
            }
        }
        for peer in idle {
            if self.sets_of.get(&peer).is_none_or(BTreeSet::is_empty) {
                self.sets_of.remove(&peer);
                self.table.drop_peer(peer);
                self.gone_peers.push(peer);
            }
        }
    }

    /// All writes; the last of them remove what is not in use any more.
    pub fn sweep(&mut self) -> Vec<Write> {
        let mut released = Vec::new();
        for set in std::mem::take(&mut self.dying) {
            let pairs: Vec<ClassId> =
                self.rules.pairs.range((set, 0)..=(set, ClassId::MAX)).map(|((_, class), _)| *class).collect();
            pairs.into_iter().for_each(|class| self.emit(Write::Pair(set, class, None)));
            let held = self.sets.remove(&set).expect("it is dying");
            released.extend(held.programs.into_values().map(|(program, _)| program));
            released.push(held.program);
            self.ids.remove(&self.rules.sets[&set].rules);
            self.emit(Write::Set(set, None));
        }
        for class in self.table.sweep() {
            self.forget(class, &mut released);
        }
        for peer in std::mem::take(&mut self.gone_peers) {
            self.emit(Write::Peer(peer, None));
        }
        released.sort_unstable();
        released.into_iter().for_each(|program| self.release(program));
        std::mem::take(&mut self.writes)
    }

    fn forget(&mut self, class: ClassId, released: &mut Vec<ProgramId>) {
        let peers = self.rules.classes[&class].clone();
        for peer in peers.iter() {
            if let Some(classes) = self.classes_of.get_mut(peer) {
                classes.remove(&class);
                if classes.is_empty() {
                    self.classes_of.remove(peer);
                }
            }
        }
        let sets: BTreeSet<SetId> = peers.iter().filter_map(|peer| self.sets_of.get(peer)).flatten().copied().collect();
        for set in sets {
            if self.rules.pairs.contains_key(&(set, class)) {
                self.emit(Write::Pair(set, class, None));
            }
            let held = self.sets.get_mut(&set).expect("it asks for the peer");
            let matched = held.matched(&peers);
            let (program, classes) = held.programs.get_mut(&matched).expect("the class was paired with it");
            *classes -= 1;
            if *classes == 0 {
                released.push(*program);
                held.programs.remove(&matched);
            }
        }
        self.emit(Write::Class(class, None));
    }

    /// One use of a program less.
    fn release(&mut self, id: ProgramId) {
        let program = self.rules.programs[&id].clone();
        let (_, uses) = self.programs.get_mut(&program).expect("it was in use");
        *uses -= 1;
        if *uses == 0 {
            self.programs.remove(&program);
            self.emit(Write::Program(id, None));
        }
    }
}

/// Numbers peers for a pod's rules, and remembers which names of ports these go by.
pub struct Numbering<'a> {
    store: &'a mut Store,
    numbers: &'a BTreeMap<(Box<str>, u8), BTreeMap<u16, u32>>,
    names: BTreeSet<(Box<str>, u8)>,
}

impl<'a> Numbering<'a> {
    pub fn new(store: &'a mut Store, numbers: &'a BTreeMap<(Box<str>, u8), BTreeMap<u16, u32>>) -> Numbering<'a> {
        Numbering { store, numbers, names: BTreeSet::new() }
    }

    pub fn names(self) -> BTreeSet<(Box<str>, u8)> {
        self.names
    }
}

impl Known for Numbering<'_> {
    fn peer(&mut self, peer: &Peer) -> PeerId {
        self.store.peer(peer)
    }

    fn numbers(&mut self, name: &str, protocol: u8) -> Vec<u16> {
        let key = (Box::from(name), protocol);
        let numbers = self.numbers.get(&key).map(|numbers| numbers.keys().copied().collect());
        self.names.insert(key);
        numbers.unwrap_or_default()
    }
}
