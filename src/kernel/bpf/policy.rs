//! Network policies as eBPF: what is pinned of them, what is written there, and what the programs have counted.
//!
//! A bank holds the rules of one life of ours: it numbers sets, classes and programs as it likes. The next life writes its own beside
//! them, leads seat after seat there, and takes the old away.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::load::{Aligned, Linked, Object};
use super::map::Map;
use super::pin::{self, Age};
use super::sys::{self, Shape};
use crate::cluster::Name;
use crate::error::{Context, Error};
use crate::ours;
use crate::plan;
use crate::rules::{
    ClassId, Counted, DIRECTIONS, Placed, PodSets, Pods, Program, ProgramId, Renderer, Rules, SetId, Tally, Write,
};
use crate::verdict::{self, ADDRESSES_KEY, PAIRS_KEY, PORTS_KEY, REST, Seat, Sizes, State, Why};

static OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/policy.o")));

const MAPS: [&str; 8] = ["seats", "classes", "pairs", "programs", "tracks", "counts", "events", "state"];
pub const PROGRAMS: [plan::Program; 2] = [plan::Program::ToPod, plan::Program::FromPod];
/// How the pin begins by which the next life sees of which release the pinned programs are.
const RELEASE: &str = "release-";
/// How long a packet may be on its way through a program, and much more.
const GRACE: Duration = Duration::from_secs(1);
/// How often an element is written for which the kernel has no memory at once: it fetches more in its own time.
const TRIES: u32 = 100;
/// Two who make maps at once would pin some of the one and some of the other.
static OPENING: Mutex<()> = Mutex::new(());

/// The renderer for kernels from 4.19 on.
pub struct Policy {
    folder: PathBuf,
    maps: Maps,
    /// Programs that are to be pinned once there are rules for them.
    waiting: bool,
    /// They were since that was asked last.
    renewed: bool,
    object: &'static [u8],
    sizes: Sizes,
    state: State,
    /// None: what the maps hold is of an earlier life.
    bank: Option<u32>,
    seats: BTreeMap<u16, Seat>,
    /// Who was led to a seat, and what it goes by as its owner there.
    places: BTreeMap<Name, (Placed, u32)>,
    programs: BTreeMap<ProgramId, Arc<Program>>,
    /// How many elements those have that are in use.
    ports: usize,
    /// What leads nowhere any more, and since when: a packet may still be on its way there.
    garbage: Vec<(Instant, Garbage)>,
}

/// Those of [`MAPS`].
#[derive(Clone)]
struct Maps(Arc<[Map; MAPS.len()]>);

impl Maps {
    fn map(&self, name: &str) -> &Map {
        self.0.iter().find(|map| map.name() == name).expect("all of MAPS are there")
    }

    fn counts(&self) -> Result<Counts, Error> {
        let mut counts = Counts::default();
        for (why, sums) in Why::ALL.iter().zip(&mut counts.0) {
            for (direction, sum) in sums.iter_mut().enumerate() {
                let at = 2 * *why as u32 + direction as u32;
                let cpus = self.map("counts").get(&at.to_ne_bytes())?.unwrap_or_default();
                *sum = cpus.chunks_exact(8).map(|n| n.try_into().map_or(0, u64::from_ne_bytes)).sum();
            }
        }
        Ok(counts)
    }

    fn pressure(&self) -> Result<Pressure, Error> {
        let made: u64 = self.counts()?.of(Why::TrackNew).iter().sum();
        let mut flows = 0;
        self.map("tracks").each(|_, _| flows += 1)?;
        let room = self.map("tracks").shape().entries.into();
        Ok(Pressure { flows, room, evicted: made.saturating_sub(flows) })
    }

    fn tally(&self) -> Result<Counted, Error> {
        let (counts, Pressure { flows, room, evicted }) = (self.counts()?, self.pressure()?);
        let drops = Why::ALL.into_iter().filter(|why| why.is_drop()).map(|why| {
            let [to_pod, from_pod] = counts.of(why);
            (why.label().to_owned(), json!({"to_pod": to_pod, "from_pod": from_pod}))
        });
        let drops: serde_json::Map<String, Value> = drops.collect();
        let figures = json!({"drops": drops, "flows": {"known": flows, "room": room, "evicted": evicted}});
        Ok(Counted { figures, damage: None, is_stale: false })
    }
}

enum Garbage {
    Pair(SetId, ClassId),
    Program(ProgramId),
}

/// What the programs have counted since the maps were made, to pods and from pods.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts([[u64; 2]; Why::ALL.len()]);

impl Counts {
    pub fn of(&self, why: Why) -> [u64; 2] {
        self.0[why as usize]
    }

    pub fn dropped(&self) -> u64 {
        Why::ALL.iter().filter(|why| why.is_drop()).flat_map(|why| self.of(*why)).sum()
    }
}

/// How full the table of flows is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pressure {
    pub flows: u64,
    pub room: u64,
    /// Flows that had to make room for others since the maps were made.
    pub evicted: u64,
}

impl Policy {
    /// Opens the pinned maps below this bpffs; where one is missing or of another size, all are made anew. What is on links goes on as it
    /// was until there are rules for what is new, and a repair has put it there.
    pub fn open(root: &Path, sizes: &Sizes) -> Result<(Policy, Age), Error> {
        Policy::open_as(root, sizes, &OBJECT.0)
    }

    /// The same with a variant of the object.
    pub fn open_as(root: &Path, sizes: &Sizes, object: &'static [u8]) -> Result<(Policy, Age), Error> {
        let _alone = OPENING.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = pin::folder(root, &below())?;
        let shapes = shapes(object, sizes)?;
        let (maps, age) = match pinned(&folder, &shapes)? {
            Some(maps) => (maps, Age::Old),
            None => (fresh(&folder, &shapes)?, Age::New),
        };
        let maps = Maps(Arc::new(maps));
        let is_pinned = PROGRAMS.iter().all(|program| folder.join(program.name()).exists());
        let waiting = !is_pinned || !folder.join(release(object)).exists();
        let mut policy = Policy {
            folder,
            maps,
            waiting,
            renewed: false,
            object,
            sizes: *sizes,
            state: State::default(),
            bank: None,
            seats: BTreeMap::new(),
            places: BTreeMap::new(),
            programs: BTreeMap::new(),
            ports: 0,
            garbage: Vec::new(),
        };
        let state = policy.map("state").get(&State::RENDERER)?;
        policy.state = state.and_then(|state| State::from_bytes(&state)).unwrap_or_default();
        // Who listened went with the life that it was in.
        policy.map("state").put(&State::LISTENER, &State::default().to_bytes())?;
        policy.seats = policy.read_seats()?;
        // Maps that no life has come to write would cut off whoever got the programs.
        if age == Age::Old && policy.state.epoch != 0 {
            policy.pin_programs()?;
        }
        Ok((policy, age))
    }

    fn map(&self, name: &str) -> &Map {
        self.maps.map(name)
    }

    /// Puts this release's programs in the place of another's, from where plans take them.
    fn pin_programs(&mut self) -> Result<(), Error> {
        if !self.waiting {
            return Ok(());
        }
        let linked = self.linked()?;
        let release = release(self.object);
        for entry in std::fs::read_dir(&self.folder).context(|| format!("list {}", self.folder.display()))?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(RELEASE) {
                pin::forget(&self.folder, &name)?;
            }
        }
        for program in PROGRAMS {
            let loaded = linked.load(program.name())?;
            pin::replace(&self.folder, program.name(), &loaded)?;
        }
        pin::replace(&self.folder, &release, self.map("state"))?;
        (self.waiting, self.renewed) = (false, true);
        // What is on links holds what it needs of another layout.
        self.folder.parent().map_or(Ok(()), |all| remove_but(all, Some(&self.folder)))
    }

    /// The object, its programs working on these maps.
    pub fn linked(&self) -> Result<Linked, Error> {
        Object::parse("policy", self.object)?.link(&*self.maps.0)
    }

    fn read_seats(&self) -> Result<BTreeMap<u16, Seat>, Error> {
        let mut seats = BTreeMap::new();
        self.map("seats").each(|key, value| {
            let seat = key.try_into().map_or(0, u32::from_ne_bytes) as u16;
            seats.extend(Seat::from_bytes(value).map(|value| (seat, value)));
        })?;
        Ok(seats)
    }

    /// Seats that an earlier life has given, which links may bear still.
    pub fn taken(&self) -> BTreeSet<u16> {
        self.seats.keys().copied().collect()
    }

    fn write_state(&self) -> Result<(), Error> {
        self.map("state").put(&State::RENDERER, &self.state.to_bytes())
    }

    /// What was answered before is asked again.
    fn turn(&mut self) -> Result<(), Error> {
        self.state.epoch = self.state.epoch.wrapping_add(1);
        self.write_state()
    }

    /// Takes away all elements of banks that are not to be kept.
    fn sweep(&self, keep: impl Fn(u32) -> bool) -> Result<(), Error> {
        for name in ["classes", "pairs", "programs"] {
            let map = self.map(name);
            let mut over = Vec::new();
            map.each(|key, _| {
                if !keep(verdict::bank(key)) {
                    over.push(key.to_vec());
                }
            })?;
            over.iter().try_for_each(|key| map.remove(key).map(|_| ()))?;
        }
        Ok(())
    }

    /// Takes away what no seat leads to: a life has left it that did not come to an end with its writes.
    fn collect(&self) -> Result<(), Error> {
        let banks: BTreeSet<u32> = self.seats.values().map(|seat| seat.bank).collect();
        self.sweep(|bank| banks.contains(&bank))?;
        let sets: BTreeSet<_> =
            self.seats.values().flat_map(|seat| seat.sets.map(|set| verdict::pair_key(seat.bank, set, REST))).collect();
        let (mut pairs, mut programs) = (Vec::new(), BTreeSet::new());
        self.map("pairs").each(|key, value| match verdict::reach(key, value) {
            Some((set, program)) if sets.contains(&set) => _ = programs.insert(program),
            _ => pairs.push(key.to_vec()),
        })?;
        let mut rules = Vec::new();
        self.map("programs").each(|key, _| {
            if !programs.contains(&key[4..12]) {
                rules.push(key.to_vec());
            }
        })?;
        pairs.iter().try_for_each(|key| self.map("pairs").remove(key).map(|_| ()))?;
        rules.iter().try_for_each(|key| self.map("programs").remove(key).map(|_| ()))
    }

    /// Whether there is room for it: of what does not fit nothing is written, so that what holds goes on to.
    fn fits(&self, rules: &Rules, ports: usize) -> Result<(), Error> {
        let Sizes { classes, pairs, programs, .. } = self.sizes;
        let tables = [
            ("addresses and prefixes", rules.prefixes.len(), classes, ADDRESSES_KEY),
            ("pairs of a pod's rules and a class of addresses", rules.pairs.len() + rules.sets.len(), pairs, PAIRS_KEY),
            ("ranges of ports", ports, programs, PORTS_KEY),
        ];
        let over = tables.into_iter().find(|(_, needed, room, _)| *needed > *room as usize);
        over.map_or(Ok(()), |(what, needed, room, key)| Err(verdict::overfull(what, needed, room, key)))
    }

    /// How many elements programs have after these changes.
    fn ports_after(&self, writes: &[Write]) -> usize {
        let (mut ports, mut new) = (self.ports, BTreeMap::new());
        for write in writes {
            match write {
                Write::Program(id, Some(program)) => {
                    new.insert(*id, program);
                    ports += verdict::size(program);
                }
                Write::Program(id, None) => {
                    let gone = new.remove(id).or(self.programs.get(id));
                    ports = ports.saturating_sub(gone.map_or(0, |program| verdict::size(program)));
                }
                _ => {}
            }
        }
        ports
    }

    /// Writes rules into a bank that nobody uses.
    fn fill(&mut self, bank: u32, rules: &Rules) -> Result<(), Error> {
        let mut elements = Elements::default();
        for (id, program) in &rules.programs {
            verdict::elements(bank, *id, program).for_each(|(key, answer)| elements.add(&key, &answer));
        }
        self.put_all("programs", elements)?;
        let mut elements = Elements::default();
        let rests = rules.sets.iter().map(|(set, held)| ((*set, REST), held.program));
        for ((set, class), program) in rests.chain(rules.pairs.iter().map(|(pair, program)| (*pair, *program))) {
            elements.add(&verdict::pair_key(bank, set, class), &verdict::pair(bank, set, class, program));
        }
        self.put_all("pairs", elements)?;
        let mut elements = Elements::default();
        for (net, class) in &rules.prefixes {
            elements.add(&verdict::net_key(bank, net), &class.to_ne_bytes());
        }
        self.put_all("classes", elements)
    }

    fn put_all(&self, name: &str, elements: Elements) -> Result<(), Error> {
        let map = self.map(name);
        let Shape { key, value, .. } = map.shape();
        let (mut done, mut tries) = (0, 0);
        loop {
            let (keys, values) = (&elements.keys[done * key as usize..], &elements.values[done * value as usize..]);
            match map.put_all(keys, values) {
                Err((some, e)) if is_short_of_memory(&e) && tries < TRIES => {
                    (done, tries) = (done + some, if some > 0 { 0 } else { tries + 1 });
                    std::thread::sleep(Duration::from_millis(1));
                }
                result => return result.map_err(|(_, e)| e),
            }
        }
    }

    fn put(&self, name: &str, key: &[u8], value: &[u8]) -> Result<(), Error> {
        let mut tries = 0;
        loop {
            match self.map(name).put(key, value) {
                Err(e) if is_short_of_memory(&e) && tries < TRIES => tries += 1,
                result => return result,
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Has the seat go by these sets; the pod that had it goes on in it, another one begins.
    fn seat(&mut self, name: &Name, sets: &PodSets, rules: &Rules, pods: &Pods) -> Result<(), Error> {
        let (Some(placed), Some(bank)) = (pods.get(name), self.bank) else { return Ok(()) };
        let known = self.places.get(name).filter(|(there, _)| there == placed);
        let owner = known.map_or_else(|| verdict::owner(name, placed), |(_, owner)| *owner);
        let is_known = known.is_some();
        let before = self.seats.get(&placed.seat).filter(|before| before.owner == owner).copied();
        let sets = DIRECTIONS.map(|direction| sets.of(direction));
        let free = sets.map(|set| rules.sets.get(&set).is_some_and(|set| verdict::is_free(&set.rules)));
        let life = before.map_or(self.state.life.wrapping_add(1), |before| before.life);
        let seat = Seat { life, bank, sets, free, owner };
        if before != Some(seat) {
            if before.is_none() {
                self.state.life = life;
                self.write_state()?;
            }
            self.put("seats", &u32::from(placed.seat).to_ne_bytes(), &seat.to_bytes(placed.seat))?;
            self.seats.insert(placed.seat, seat);
        }
        if !is_known {
            self.places.insert(name.clone(), (placed.clone(), owner));
        }
        Ok(())
    }

    /// Every pod that has a place and rules is in its seat, and nobody else.
    fn seat_all(&mut self, rules: &Rules, pods: &Pods) -> Result<(), Error> {
        for (name, sets) in &rules.pods {
            self.seat(name, sets, rules, pods)?;
        }
        self.places.retain(|name, _| pods.contains_key(name) && rules.pods.contains_key(name));
        let taken: BTreeSet<u16> = self.places.values().map(|(placed, _)| placed.seat).collect();
        let empty: Vec<u16> = self.seats.keys().filter(|seat| !taken.contains(seat)).copied().collect();
        empty.into_iter().try_for_each(|seat| self.unseat(seat))
    }

    fn unseat(&mut self, seat: u16) -> Result<(), Error> {
        self.map("seats").remove(&u32::from(seat).to_ne_bytes())?;
        self.seats.remove(&seat);
        Ok(())
    }

    fn restore_anew(&mut self, rules: &Rules, pods: &Pods) -> Result<(), Error> {
        let ports = rules.programs.values().map(|program| verdict::size(program)).sum();
        self.fits(rules, ports)?;
        self.seats = self.read_seats()?;
        let live: BTreeSet<u32> = self.seats.values().map(|seat| seat.bank).collect();
        self.collect()?;
        self.garbage.clear();
        self.places.clear();
        let bank = (1..).find(|bank| !live.contains(bank)).unwrap_or(1);
        if let Err(e) = self.fill(bank, rules) {
            self.sweep(|other| other != bank)?;
            return Err(e);
        }
        self.bank = Some(bank);
        self.programs = rules.programs.clone();
        self.ports = ports;
        self.seat_all(rules, pods)?;
        self.turn()?;
        self.pin_programs()?;
        if !live.is_empty() {
            wait_for_packets();
            self.sweep(|other| other == bank)?;
        }
        Ok(())
    }

    fn write(&mut self, bank: u32, write: &Write, after: &Rules, pods: &Pods) -> Result<(), Error> {
        match write {
            Write::Peer(..) | Write::Class(..) => Ok(()),
            Write::Program(id, Some(program)) => self.write_program(bank, *id, program),
            Write::Program(id, None) => self.leave(Garbage::Program(*id)),
            Write::Set(set, Some(held)) => self.write_pair(bank, *set, REST, held.program),
            Write::Set(set, None) => self.leave(Garbage::Pair(*set, REST)),
            Write::Pair(set, class, Some(program)) => self.write_pair(bank, *set, *class, *program),
            Write::Pair(set, class, None) if after.sets.contains_key(set) && after.classes.contains_key(class) => {
                self.map("pairs").remove(&verdict::pair_key(bank, *set, *class)).map(|_| ())
            }
            Write::Pair(set, class, None) => self.leave(Garbage::Pair(*set, *class)),
            Write::Prefix(net, Some(class)) => self.put("classes", &verdict::net_key(bank, net), &class.to_ne_bytes()),
            Write::Prefix(net, None) => self.map("classes").remove(&verdict::net_key(bank, net)).map(|_| ()),
            Write::Pod(name, sets) => self.reseat(name, sets.as_ref(), after, pods),
        }
    }

    /// The seat that the pod had goes, unless another pod has it by now.
    fn reseat(&mut self, name: &Name, sets: Option<&PodSets>, rules: &Rules, pods: &Pods) -> Result<(), Error> {
        let before = self.places.get(name).cloned();
        let after = sets.and(pods.get(name)).map(|placed| placed.seat);
        match sets.filter(|_| after.is_some()) {
            Some(sets) => self.seat(name, sets, rules, pods)?,
            None => drop(self.places.remove(name)),
        }
        let Some((placed, owner)) = before.filter(|(placed, _)| Some(placed.seat) != after) else { return Ok(()) };
        let is_own = self.seats.get(&placed.seat).is_some_and(|seat| seat.owner == owner);
        if is_own { self.unseat(placed.seat) } else { Ok(()) }
    }

    fn write_program(&mut self, bank: u32, id: ProgramId, program: &Arc<Program>) -> Result<(), Error> {
        for (key, answer) in verdict::elements(bank, id, program) {
            self.put("programs", &key, &answer)?;
        }
        self.programs.insert(id, program.clone());
        Ok(())
    }

    fn write_pair(&mut self, bank: u32, set: SetId, class: ClassId, program: ProgramId) -> Result<(), Error> {
        self.put("pairs", &verdict::pair_key(bank, set, class), &verdict::pair(bank, set, class, program))
    }

    fn leave(&mut self, garbage: Garbage) -> Result<(), Error> {
        self.garbage.push((Instant::now(), garbage));
        Ok(())
    }

    /// Takes away what nobody can be on the way to any more. Numbers are not given twice in a life.
    fn tidy(&mut self, bank: u32) -> Result<(), Error> {
        let old = self.garbage.iter().take_while(|(since, _)| since.elapsed() > GRACE).count();
        for (_, garbage) in self.garbage.drain(..old).collect::<Vec<_>>() {
            match garbage {
                Garbage::Pair(set, class) => {
                    self.map("pairs").remove(&verdict::pair_key(bank, set, class))?;
                }
                Garbage::Program(id) => {
                    let Some(program) = self.programs.remove(&id) else { continue };
                    for (key, _) in verdict::elements(bank, id, &program) {
                        self.map("programs").remove(&key)?;
                    }
                }
            }
        }
        Ok(())
    }

    pub fn counts(&self) -> Result<Counts, Error> {
        self.maps.counts()
    }

    /// Looks at every flow: some milliseconds.
    pub fn pressure(&self) -> Result<Pressure, Error> {
        self.maps.pressure()
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Renderer for Policy {
    fn restore(&mut self, rules: &Rules, pods: &Pods) -> Result<(), Error> {
        self.restore_anew(rules, pods).context(|| "write the network policies into the kernel")
    }

    fn apply(&mut self, writes: &[Write], after: &Rules, pods: &Pods) -> Result<(), Error> {
        let Some(bank) = self.bank else { return self.restore(after, pods) };
        let doing = || "write changes of network policies into the kernel";
        let ports = self.ports_after(writes);
        self.fits(after, ports).context(doing)?;
        self.ports = ports;
        self.tidy(bank).context(doing)?;
        writes.iter().try_for_each(|write| self.write(bank, write, after, pods)).context(doing)?;
        self.turn().context(doing)
    }

    fn has_renewed(&mut self) -> bool {
        std::mem::take(&mut self.renewed)
    }

    fn tally(&self) -> Option<Tally> {
        let maps = self.maps.clone();
        Some(Box::new(move || maps.tally()))
    }
}

/// Takes all pins away, of every layout: what is on links is without effect on others, and goes with its link or a repair.
pub fn remove(root: &Path) -> Result<(), Error> {
    remove_but(&root.join(ours::BPF_FOLDER), None)?;
    // It stays where others of our maps are in it.
    let _ = std::fs::remove_dir(root.join(ours::BPF_FOLDER));
    Ok(())
}

fn remove_but(all: &Path, kept: Option<&Path>) -> Result<(), Error> {
    let entries = std::fs::read_dir(all).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(FOLDER)) {
        let path = entry.path();
        if kept != Some(&path) {
            std::fs::remove_dir_all(&path).context(|| format!("delete {}", path.display()))?;
        }
    }
    Ok(())
}

const FOLDER: &str = "policy";

/// Where the maps of this layout and their programs are pinned.
pub fn place(root: &Path) -> PathBuf {
    root.join(below())
}

fn below() -> String {
    format!("{}/{FOLDER}{}", ours::BPF_FOLDER, verdict::LAYOUT)
}

fn release(object: &[u8]) -> String {
    format!("{RELEASE}{}", &sha1_smol::Sha1::from(object).digest().to_string()[..12])
}

fn pinned(folder: &Path, shapes: &BTreeMap<String, Shape>) -> Result<Option<[Map; MAPS.len()]>, Error> {
    let mut found = Vec::new();
    for name in MAPS {
        match pin::open(folder, name)? {
            Some(map) if map.shape() == shapes[name] => found.push(map),
            _ => return Ok(None),
        }
    }
    Ok(found.try_into().ok())
}

/// `state` is made last: without it, what there is counts for nothing.
fn fresh(folder: &Path, shapes: &BTreeMap<String, Shape>) -> Result<[Map; MAPS.len()], Error> {
    pin::forget(folder, "state")?;
    for entry in std::fs::read_dir(folder).context(|| format!("list {}", folder.display()))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(RELEASE) {
            pin::forget(folder, &name)?;
        }
    }
    let made: Result<Vec<Map>, Error> = MAPS.iter().map(|name| pin::fresh(folder, name, &shapes[*name])).collect();
    made?.try_into().map_err(|_| Error::malformed("not all maps were made"))
}

/// The shapes of all maps, as the object has them, in these sizes.
fn shapes(object: &[u8], sizes: &Sizes) -> Result<BTreeMap<String, Shape>, Error> {
    let mut shapes = Object::parse("policy", object)?.maps();
    let Sizes { seats, classes, pairs, programs, tracks } = *sizes;
    let cpus = super::map::cpus()? as u32;
    let sized = [
        ("seats", seats),
        ("classes", classes.saturating_mul(2)),
        ("pairs", pairs.saturating_mul(2)),
        ("programs", programs.saturating_mul(2)),
        ("tracks", tracks),
        ("events", cpus),
    ];
    for (name, entries) in sized {
        let shape = shapes.get_mut(name);
        shape.ok_or_else(|| Error::malformed(format!("eBPF object policy has no map {name}")))?.entries = entries;
    }
    Ok(shapes)
}

/// Elements one behind the other.
#[derive(Default)]
struct Elements {
    keys: Vec<u8>,
    values: Vec<u8>,
}

impl Elements {
    fn add(&mut self, key: &[u8], value: &[u8]) {
        self.keys.extend_from_slice(key);
        self.values.extend_from_slice(value);
    }
}

fn is_short_of_memory(e: &Error) -> bool {
    e.errno() == Some(libc::ENOMEM)
}

/// Until every packet that is on its way through a program now has come to its end (`synchronize_rcu` of the kernel).
fn wait_for_packets() {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    if !sys::membarrier(MEMBARRIER_CMD_GLOBAL) {
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv6Addr};

    use super::*;
    use crate::policy::fuzz::{self, Asked};
    use crate::rules::{Direction, Packet, Placed};

    static MARKED: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/policy_marked.o")));
    const SIZES: Sizes = Sizes { seats: 64, classes: 4096, pairs: 4096, programs: 16_384, tracks: 4096 };
    const SEEDS: u64 = 6;
    const PACKETS: u32 = 150;

    /// A bpffs of its own.
    struct Root(PathBuf);

    impl Drop for Root {
        fn drop(&mut self) {
            let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
            let _ = std::fs::remove_dir(&self.0);
        }
    }

    /// An address as IPv6 has it, and the packet without ports that are anybody's.
    fn frame(asked: &Asked, id: u16) -> Vec<u8> {
        let own: IpAddr = if asked.other.is_ipv4() {
            [10, 0, 0, 200].into()
        } else {
            Ipv6Addr::from([0xfd00, 0, 0, 0, 0, 0, 0, 200]).into()
        };
        let (src, dst) = match asked.direction {
            Direction::Ingress => (asked.other, own),
            Direction::Egress => (own, asked.other),
        };
        let Packet { protocol, ports } = asked.packet;
        let (from, to) = ports.unwrap_or_default();
        let mut body = vec![0; 40];
        if matches!(protocol, 1 | 58) {
            body[..2].copy_from_slice(&to.to_be_bytes());
            body[4..6].copy_from_slice(&id.to_be_bytes());
        } else {
            body[..2].copy_from_slice(&from.to_be_bytes());
            body[2..4].copy_from_slice(&to.to_be_bytes());
            // SYN, where it is TCP.
            body[13] = 2;
        }
        let mut frame = vec![0; 12];
        match (src, dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                frame.extend([0x08, 0, 0x45, 0, 0, 60, 0, 0, 0, 0, 64, protocol, 0, 0]);
                frame.extend(src.octets().iter().chain(&dst.octets()));
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 40, protocol, 64]);
                frame.extend(src.octets().iter().chain(&dst.octets()));
            }
            _ => unreachable!("both are of one family"),
        }
        frame.extend(body);
        frame
    }

    /// As if no packet had passed yet.
    fn forget_flows(policy: &Policy) {
        let (tracks, mut keys) = (policy.map("tracks"), Vec::new());
        tracks.each(|key, _| keys.push(key.to_vec())).unwrap();
        for key in keys {
            tracks.remove(&key).unwrap();
        }
    }

    /// `POLICY_SEEDS=200 POLICY_PACKETS=1000 cargo test --lib kernel::bpf::policy` for more of them.
    #[test]
    fn the_programs_say_what_the_specifications_say() {
        let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        let root = Root(std::env::temp_dir().join(format!("tw{}-worlds", std::process::id())));
        std::fs::create_dir_all(&root.0).unwrap();
        let (mut policy, _) = Policy::open_as(&root.0, &SIZES, &MARKED.0).unwrap();
        let linked = policy.linked().unwrap();
        let [to_pod, from_pod] = PROGRAMS.map(|program| linked.load(program.name()).unwrap());
        let packets = number("POLICY_PACKETS").map_or(PACKETS, |n| n as u32);
        let (mut judged, mut id) = (0u64, 0u16);
        for seed in 0..number("POLICY_SEEDS").unwrap_or(SEEDS) {
            let (mut is_new, mut seats) = (true, BTreeMap::new());
            fuzz::walk(seed, packets, &mut |writes, rules, asked| {
                let pods: Pods = rules
                    .pods
                    .keys()
                    .map(|name| {
                        let next = seats.len() as u16 + 1;
                        let seat = *seats.entry(name.clone()).or_insert(next);
                        (name.clone(), Placed::new(seat, []))
                    })
                    .collect();
                // Another world is another life, and now and then there is one between.
                if std::mem::take(&mut is_new) || judged % 5 == 0 {
                    policy.restore(rules, &pods).unwrap();
                } else {
                    policy.apply(writes, rules, &pods).unwrap();
                }
                for asked in asked {
                    if asked.other.is_ipv6() && asked.packet.protocol == 0 {
                        continue;
                    }
                    id = id.wrapping_add(1);
                    forget_flows(&policy);
                    let program = if asked.direction == Direction::Ingress { &to_pod } else { &from_pod };
                    let seat = pods[&asked.pod].seat;
                    let (answer, _) = program.run(&frame(asked, id), seat.into(), 1).unwrap();
                    let Asked { pod, direction, other, packet, .. } = asked;
                    assert_eq!(answer == -1, asked.allow, "seed {seed}: {pod} {direction:?} {other} {packet:?}");
                    judged += 1;
                }
            });
        }
        println!("{judged} packets");
    }
}
