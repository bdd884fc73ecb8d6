//! Puts network policies into the kernel as ipsets and chains, with one replacement of a table per family and change.
//!
//! Between two states every packet gets the answer of the one or of the other: new sets and chains are there before anything leads
//! to them, all chains change at once, and what nothing leads to any more goes last. Only where a single set is all that
//! changes, it changes in place: what is new from the longest prefix to the shortest, then what is old the other way round.
//! Who comes after us knows chains by their names, and sets by their members.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::{Value, json};

use super::ipset::{self, Sets};
use super::iptables;
use crate::both::both;
use crate::chains::{Chains, DROPS, FAMILIES, Family, HOOKS, Members, Memory, Use, chains, sets};
use crate::cluster::Name;
use crate::error::{Context, Error};
use crate::ours;
use crate::rules::{Counted, DIRECTIONS, Direction, Pods, Renderer, Rules, Tally, Write};
use crate::verdict::{ADDRESSES_KEY, overfull};

/// How many members a set may have, unless told otherwise.
pub const MOST: u32 = 1 << 18;
const TABLE: &str = "mangle";
/// The nf_tables kind of iptables lets go of a set a moment after its rule is gone.
const TRIES: u32 = 20;
const WAIT: Duration = Duration::from_millis(5);

pub struct Tables {
    most: u32,
    sets: Option<Sets>,
    /// What a moment ago was there, for the first look.
    scouted: Option<Scouted>,
    /// What is in the kernel; none: it must be looked at.
    known: Option<[Known; FAMILIES.len()]>,
    /// Sets that were still in use when nothing needed them any more.
    left: BTreeSet<String>,
    /// Pods that had rules when the chains were written.
    ruled: BTreeSet<Name>,
}

/// Our sets in the network namespace of the calling thread.
pub fn names() -> Result<Vec<String>, Error> {
    Ok(Sets::open(MOST)?.list(ours::POLICY_PREFIX)?.into_iter().map(|set| set.name).collect())
}

/// What iptables-save(8) shows of ours, of each family.
pub struct Scouted([Result<Shown, Error>; FAMILIES.len()]);

/// Looks at what is there: a program is run for each family, which takes its time.
pub fn scout() -> Scouted {
    let [aside, here] = FAMILIES;
    Scouted(both(|| Shown::read(aside), || Shown::read(here)).into())
}

#[derive(Default)]
struct Known {
    chains: Chains,
    /// By name.
    sets: BTreeMap<String, Members>,
    memory: Memory,
}

/// What iptables-save(8) shows of ours.
#[derive(Default)]
struct Shown {
    /// How many rules each has.
    chains: BTreeMap<String, usize>,
    /// What chains of [`DROPS`] have dropped.
    dropped: [u64; DROPS.len()],
    /// Our rules in built-in chains, and whether they are all that they should be.
    jumps: Vec<String>,
    are_first: bool,
}

impl Tables {
    pub fn new(most: u32) -> Tables {
        Tables { most, sets: None, scouted: None, known: None, left: BTreeSet::new(), ruled: BTreeSet::new() }
    }

    /// Beginning with what was seen a moment ago; or what this node lacks for it.
    pub fn after(most: u32, scouted: Scouted) -> Result<Tables, Error> {
        let mut tables = Tables::new(most);
        tables.sets()?;
        scouted.0[0].as_ref().map_err(Clone::clone)?;
        Ok(Tables { scouted: Some(scouted), ..tables })
    }

    /// Everything of ours goes.
    pub fn remove(&mut self) -> Result<(), Error> {
        self.restore(&Rules::default(), &Pods::new())
    }

    /// Reads what is there of this family.
    fn look(&mut self, family: Family) -> Result<Known, Error> {
        let mut known = Known::default();
        for set in self.sets()?.list(ours::POLICY_PREFIX)? {
            match set.family {
                Some(of) if of == family => {
                    known.sets.insert(set.name, set.members);
                }
                Some(_) => {}
                None => {
                    self.left.insert(set.name);
                }
            }
        }
        Ok(known)
    }

    fn sets(&mut self) -> Result<&mut Sets, Error> {
        if self.sets.is_none() {
            self.sets = Some(Sets::open(self.most)?);
        }
        Ok(self.sets.as_mut().expect("it is open"))
    }

    /// From what is known to what is wanted; with what is shown, every chain is written anew.
    fn turn(&mut self, family: Family, known: &mut Known, shown: Option<&Shown>, wanted: &Wanted) -> Result<(), Error> {
        if let Some(over) = wanted.sets.values().find(|members| members.len() > self.most as usize) {
            return Err(overfull("addresses and prefixes of one peer", over.len(), self.most, ADDRESSES_KEY));
        }
        if shown.is_none()
            && let Some((name, members)) = wanted.in_place(known)
        {
            self.change(&name, &known.sets[&name].clone(), &members)?;
            known.sets.insert(name, members);
            return Ok(());
        }
        let names = wanted.names(family, &known.sets);
        let chains = chains(wanted.rules, wanted.pods, &wanted.sets, &names, family, &mut known.memory);
        for (used, name) in &names {
            if !known.sets.contains_key(name) {
                let members = &wanted.sets[used];
                known.sets.insert(name.clone(), Members::new());
                self.fill(name, family, members)?;
                known.sets.insert(name.clone(), members.clone());
            }
        }
        if let Some(text) = script(&known.chains, &chains, shown) {
            restore(family, &text)?;
        }
        known.chains = chains;
        let needed: BTreeSet<&String> = names.values().collect();
        self.left.extend(known.sets.keys().filter(|name| !needed.contains(name)).cloned());
        known.sets.retain(|name, _| needed.contains(name));
        self.sweep();
        Ok(())
    }

    fn fill(&mut self, name: &str, family: Family, members: &Members) -> Result<(), Error> {
        let sets = self.sets()?;
        // One of a kind that we do not make may have the name.
        sets.destroy(name)?;
        sets.create(name, family)?;
        sets.add(name, members.iter())
    }

    fn change(&mut self, name: &str, before: &Members, after: &Members) -> Result<(), Error> {
        let sets = self.sets()?;
        let mut new: Vec<(&IpNet, &bool)> =
            after.iter().filter(|(net, is_in)| before.get(net) != Some(is_in)).collect();
        new.sort_by_key(|(net, _)| u8::MAX - net.prefix_len());
        sets.add(name, new.into_iter())?;
        let mut old: Vec<(&IpNet, &bool)> = before.iter().filter(|(net, _)| !after.contains_key(net)).collect();
        old.sort_by_key(|(net, _)| net.prefix_len());
        sets.delete(name, old.into_iter())
    }

    /// Destroys what is left, as far as it is not in use: then the next change tries again.
    fn sweep(&mut self) {
        for _ in 0..TRIES {
            let Some(sets) = &mut self.sets else { return };
            self.left.retain(|name| sets.destroy(name).is_err());
            if self.left.is_empty() {
                return;
            }
            thread::sleep(WAIT);
        }
        log::warn!(
            "{} ipsets that nothing needs are still in use, {:?} among them",
            self.left.len(),
            self.left.first()
        );
    }

    fn restore_family(
        &mut self,
        family: Family,
        shown: Result<Shown, Error>,
        rules: &Rules,
        pods: &Pods,
    ) -> Result<Known, Error> {
        let wanted = Wanted::of(rules, pods, family);
        let (mut known, shown) = match self.look(family).and_then(|known| Ok((known, shown?))) {
            // A node without iptables of a family, or without sets, has nothing of ours either.
            Err(_) if wanted.sets.is_empty() => return Ok(Known::default()),
            seen => seen?,
        };
        self.turn(family, &mut known, Some(&shown), &wanted)?;
        Ok(known)
    }

    /// Whether any of these changes a chain or a set: pods without rules come and go, and nothing is written for them.
    fn concerns(&self, writes: &[Write], after: &Rules, pods: &Pods) -> bool {
        let is_unruled = self.ruled.is_empty() && after.sets.values().all(|set| set.rules.tiers.is_empty());
        let is_idle = |write: &Write| match write {
            Write::Pod(name, _) => !(self.ruled.contains(name) || pods.contains_key(name) && is_ruled(after, name)),
            _ => is_unruled,
        };
        !writes.iter().all(is_idle)
    }

    fn apply_to(&mut self, known: &mut [Known; FAMILIES.len()], rules: &Rules, pods: &Pods) -> Result<(), Error> {
        for (family, known) in FAMILIES.into_iter().zip(known) {
            self.turn(family, known, None, &Wanted::of(rules, pods, family))?;
        }
        Ok(())
    }
}

impl Renderer for Tables {
    fn restore(&mut self, rules: &Rules, pods: &Pods) -> Result<(), Error> {
        self.known = None;
        let doing = || "write network policies as ipsets and chains";
        let Scouted(shown) = self.scouted.take().unwrap_or_else(scout);
        let mut known = Vec::new();
        for (family, shown) in FAMILIES.into_iter().zip(shown) {
            known.push(self.restore_family(family, shown, rules, pods).context(doing)?);
        }
        self.known = known.try_into().ok();
        self.ruled = ruled(rules, pods);
        Ok(())
    }

    fn apply(&mut self, writes: &[Write], after: &Rules, pods: &Pods) -> Result<(), Error> {
        if self.known.is_some() && !self.concerns(writes, after, pods) {
            return Ok(());
        }
        let Some(mut known) = self.known.take() else { return self.restore(after, pods) };
        self.apply_to(&mut known, after, pods).context(|| "write changes of network policies as ipsets and chains")?;
        self.known = Some(known);
        self.ruled = ruled(after, pods);
        Ok(())
    }

    /// Where no pod has rules, there is nothing to count.
    fn tally(&self) -> Option<Tally> {
        let of = |(family, known): (Family, &Known)| (!known.chains.is_empty()).then(|| Outline::of(family, known));
        let known: Vec<Outline> = FAMILIES.into_iter().zip(self.known.as_ref()?).filter_map(of).collect();
        (!known.is_empty()).then(|| -> Tally { Box::new(move || tally(&known)) })
    }
}

/// Pods that policies say something of, or that nobody knows any more.
fn ruled(rules: &Rules, pods: &Pods) -> BTreeSet<Name> {
    pods.keys().filter(|name| is_ruled(rules, name)).cloned().collect()
}

fn is_ruled(rules: &Rules, pod: &str) -> bool {
    let Some(sets) = rules.pods.get(pod) else { return true };
    let of = |direction: Direction| rules.sets.get(&sets.of(direction));
    DIRECTIONS.into_iter().filter_map(of).any(|set| !set.rules.tiers.is_empty())
}

/// What there is to be.
struct Wanted<'a> {
    rules: &'a Rules,
    pods: &'a Pods,
    family: Family,
    sets: BTreeMap<Use, Members>,
}

impl<'a> Wanted<'a> {
    fn of(rules: &'a Rules, pods: &'a Pods, family: Family) -> Wanted<'a> {
        let mut sets = sets(rules, pods, family);
        if !sets.keys().any(|used| matches!(used, Use::Ruled(_))) {
            sets.clear();
        }
        Wanted { rules, pods, family, sets }
    }

    /// A set with the same members is taken as it is, whatever it was for.
    fn names(&self, family: Family, there: &BTreeMap<String, Members>) -> BTreeMap<Use, String> {
        let mut by_members: BTreeMap<&Members, String> =
            there.iter().map(|(name, members)| (members, name.clone())).collect();
        let mut taken: BTreeSet<String> = there.keys().cloned().collect();
        let mut names = BTreeMap::new();
        for (used, members) in &self.sets {
            let name = by_members.entry(members).or_insert_with(|| {
                let number = if family == Family::V4 { 4 } else { 6 };
                let mut content = format!("{members:?}");
                loop {
                    let name = ours::policy_set(number, &content);
                    if taken.insert(name.clone()) {
                        return name;
                    }
                    content.push('\'');
                }
            });
            names.insert(*used, name.clone());
        }
        names
    }

    /// The one set that is all that changes, and what it is to have.
    fn in_place(&self, known: &mut Known) -> Option<(String, Members)> {
        let before: BTreeMap<&Members, &String> = known.sets.iter().map(|(name, members)| (members, name)).collect();
        let after: BTreeSet<&Members> = self.sets.values().collect();
        let mut gone = before.iter().filter(|(members, _)| !after.contains(*members));
        let mut new = after.iter().filter(|members| !before.contains_key(*members));
        let ((_, name), members) = (gone.next()?, new.next()?);
        if gone.next().is_some() || new.next().is_some() {
            return None;
        }
        let (name, members) = ((*name).clone(), (*members).clone());
        let mut sets = known.sets.clone();
        sets.insert(name.clone(), members.clone());
        let names = self.names(self.family, &sets);
        let chains = chains(self.rules, self.pods, &self.sets, &names, self.family, &mut known.memory);
        (chains == known.chains).then_some((name, members))
    }
}

/// What is known of a family, in few bytes.
struct Outline {
    family: Family,
    /// How many rules each has.
    chains: BTreeMap<String, usize>,
    /// The digest of each.
    sets: Vec<(String, u64)>,
}

impl Outline {
    fn of(family: Family, known: &Known) -> Outline {
        let digest = |members: &Members| ipset::digest(members.iter().map(|(net, is_in)| (*net, *is_in)));
        Outline {
            family,
            chains: known.chains.iter().map(|(name, lines)| (name.clone(), lines.len())).collect(),
            sets: known.sets.iter().map(|(name, members)| (name.clone(), digest(members))).collect(),
        }
    }

    /// Whether somebody has emptied one of the sets, or put others in its place.
    fn are_sets_whole(&self, sets: &mut Sets) -> Result<bool, Error> {
        for (name, digest) in &self.sets {
            if sets.digest(name)? != Some(*digest) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Shown {
    fn read(family: Family) -> Result<Shown, Error> {
        Ok(Shown::of(&run(family, "save", &["-c", "-t", TABLE], None)?))
    }

    fn of(text: &str) -> Shown {
        let ours = |word: &str| word.starts_with(ours::POLICY_PREFIX);
        let mut shown = Shown { are_first: true, ..Shown::default() };
        let mut begun = BTreeSet::new();
        for line in text.lines() {
            let (packets, line) = counted(line);
            let mut words = line.split(' ');
            match words.next() {
                Some(chain) if chain.strip_prefix(':').is_some_and(ours) => {
                    shown.chains.insert(chain[1..].to_owned(), 0);
                }
                Some("-A") => {
                    let chain = words.next().unwrap_or_default();
                    let is_first = begun.insert(chain);
                    if ours(chain) {
                        shown.chains.entry(chain.to_owned()).and_modify(|rules| *rules += 1);
                        let dropped = DROPS.iter().zip(&mut shown.dropped).filter(|((_, name), _)| *name == chain);
                        dropped.for_each(|(_, sum)| *sum += packets);
                    } else if words.any(ours) {
                        shown.are_first &= is_first;
                        shown.jumps.push(line.to_owned());
                    }
                }
                _ => {}
            }
        }
        shown
    }

    /// Whether these chains are there, with as many rules, and whatever leads to them.
    fn is_whole(&self, chains: &BTreeMap<String, usize>) -> bool {
        let jumps = HOOKS.iter().filter(|(_, to)| chains.contains_key(*to)).count();
        self.are_first && self.jumps.len() == jumps && self.chains == *chains
    }
}

/// How many packets a rule has matched, as `-c` tells before it, and the rest of the line.
fn counted(line: &str) -> (u64, &str) {
    let told = line.strip_prefix('[').and_then(|rest| rest.split_once("] "));
    let packets = |(counts, _): (&str, &str)| counts.split(':').next().and_then(|count| count.parse().ok());
    (told.and_then(packets).unwrap_or_default(), told.map_or(line, |(_, line)| line))
}

/// What is dropped, and whether all is there that is known of these families. What is broken is told also where the rest cannot be read.
fn tally(known: &[Outline]) -> Result<Counted, Error> {
    let mut damage = None;
    let figures = match count(known, &mut damage) {
        Err(e) if damage.is_none() => return Err(e),
        counted => counted.unwrap_or_default(),
    };
    Ok(Counted { figures, damage: damage.map(str::to_owned) })
}

fn count(known: &[Outline], damage: &mut Option<&'static str>) -> Result<Value, Error> {
    let mut dropped = [0; DROPS.len()];
    let mut sets = Sets::open(MOST)?;
    for outline in known {
        if !outline.are_sets_whole(&mut sets)? {
            damage.get_or_insert("ipsets");
        }
        let shown = Shown::read(outline.family)?;
        if !shown.is_whole(&outline.chains) {
            damage.get_or_insert("chains");
        }
        dropped.iter_mut().zip(shown.dropped).for_each(|(sum, packets)| *sum += packets);
    }
    let by_direction = DROPS.iter().zip(dropped).map(|((direction, _), sum)| ((*direction).to_owned(), sum.into()));
    let policy: serde_json::Map<String, Value> = by_direction.collect();
    Ok(json!({"drops": {"policy": policy}}))
}

/// The replacement that takes away what this output of iptables-save(8) shows of ours.
#[cfg(fuzzing)]
pub(super) fn removal(saved: &str) -> Option<String> {
    script(&Chains::default(), &Chains::default(), Some(&Shown::of(saved)))
}

/// One replacement of the table. None: nothing is to change.
fn script(before: &Chains, after: &Chains, shown: Option<&Shown>) -> Option<String> {
    let mut text = format!("*{TABLE}\n");
    let changed: Vec<&String> =
        after.keys().filter(|name| shown.is_some() || before.get(*name) != after.get(*name)).collect();
    let there: BTreeSet<&String> = shown.map_or_else(|| before.keys().collect(), |shown| shown.chains.keys().collect());
    let gone: Vec<&&String> = there.iter().filter(|name| !after.contains_key(**name)).collect();
    // A String takes all that is written to it.
    changed.iter().for_each(|name| writeln!(text, ":{name} - [0:0]").expect("memory"));
    for name in &changed {
        after[*name].iter().for_each(|line| writeln!(text, "-A {name} {line}").expect("memory"));
    }
    let jumps = jumps(before, after, shown);
    jumps.iter().for_each(|line| writeln!(text, "{line}").expect("memory"));
    for verb in ["-F", "-X"] {
        gone.iter().for_each(|name| writeln!(text, "{verb} {name}").expect("memory"));
    }
    text += "COMMIT\n";
    (!changed.is_empty() || !gone.is_empty() || !jumps.is_empty()).then_some(text)
}

/// What is to change in built-in chains.
fn jumps(before: &Chains, after: &Chains, shown: Option<&Shown>) -> Vec<String> {
    let jump =
        |(chain, to): &(&str, &str)| format!("{chain} -m comment --comment \"{}\" -j {to}", ours::POLICY_COMMENT);
    let wanted: Vec<String> = HOOKS.iter().filter(|(_, to)| after.contains_key(*to)).map(jump).collect();
    let Some(shown) = shown else {
        let (old, new): (Vec<_>, Vec<_>) = HOOKS
            .iter()
            .filter(|(_, to)| before.contains_key(*to) != after.contains_key(*to))
            .partition(|(_, to)| before.contains_key(*to));
        let old = old.into_iter().map(|hook| format!("-D {}", jump(hook)));
        return old.chain(new.into_iter().map(|hook| format!("-I {}", jump(hook)))).collect();
    };
    let there: BTreeSet<&str> = shown.jumps.iter().filter_map(|line| line.strip_prefix("-A ")).collect();
    if shown.are_first && shown.jumps.len() == wanted.len() && wanted.iter().all(|line| there.contains(&**line)) {
        return Vec::new();
    }
    let old = shown.jumps.iter().map(|line| line.replacen("-A", "-D", 1));
    old.chain(wanted.iter().map(|line| format!("-I {line}"))).collect()
}

fn restore(family: Family, text: &str) -> Result<(), Error> {
    let waiting = run(family, "restore", &["--noflush", "-w", "5"], Some(text));
    // Older ones know no lock.
    let is_unknown =
        |e: &Error| ["invalid option", "unrecognized option"].iter().any(|said| e.to_string().contains(said));
    match waiting {
        Err(e) if is_unknown(&e) => run(family, "restore", &["--noflush"], Some(text)),
        done => done,
    }
    .map(|_| ())
}

fn run(family: Family, verb: &str, args: &[&str], input: Option<&str>) -> Result<String, Error> {
    let program = format!("{}-{verb}", if family == Family::V4 { "iptables" } else { "ip6tables" });
    let mut command = iptables::tool(&program);
    let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
    let command = command.args(args).stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context(|| format!("run {program}: install iptables"))?;
    if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
        // Where it ends before it has read all, what it says tells why.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().context(|| format!("run {program}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let lines = ["set", "multiport", "conntrack"];
    let module =
        lines.iter().find(|name| said.contains(&format!("`{name}'")) || said.contains(&format!("Extension {name} ")));
    let remedy = module.map(|name| format!(" (load the module xt_{name})")).unwrap_or_default();
    Err(Error::refused(format!("{program}: {}{remedy}", said.trim())))
}
