//! Puts network policies into the kernel as ipsets and chains, with one replacement of a table per family and change.
//!
//! Between two states every packet gets the answer of the one or of the other: new sets and chains are there before anything leads
//! to them, all chains change at once, and what nothing leads to any more goes last. Only where a single set is all that
//! changes, it changes in place: what is new from the longest prefix to the shortest, then what is old the other way round.
//! Who comes after us knows chains by their names, and sets by their members.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::{Value, json};

use super::ipset::{self, Sets};
use super::saved::{self, Shown, lengths, restore, script};
use crate::both::both;
use crate::chains::{Chains, FAMILIES, Family, Led, Members, Memory, POLICIES, SOURCES, Use, chains, sets};
use crate::cluster::Name;
use crate::error::{Context, Error};
use crate::ours;
use crate::rules::{Counted, DIRECTIONS, Direction, Pods, Renderer, Rules, Tally, Write};
use crate::verdict::{ADDRESSES_KEY, overfull};

/// How many members a set may have, unless told otherwise.
pub const MOST: u32 = 1 << 18;
/// The nf_tables kind of iptables lets go of a set a moment after its rule is gone.
const TRIES: u32 = 20;
const WAIT: Duration = Duration::from_millis(5);

pub struct Tables {
    most: u32,
    sets: Option<Sets>,
    /// What a moment ago was there, for the first look.
    scouted: Option<Looks>,
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

/// What is there of one purpose, of each family.
pub type Looks = [Result<Shown, Error>; FAMILIES.len()];

/// What iptables-save(8) shows of ours.
pub struct Scouted {
    pub policies: Looks,
    pub sources: Looks,
}

/// Looks at what is there: a program is run for each family, which takes its time.
pub fn scout() -> Scouted {
    let [aside, here] = FAMILIES;
    let seen: [Result<String, Error>; FAMILIES.len()] = both(|| saved::read(aside), || saved::read(here)).into();
    let of = |purpose| seen.each_ref().map(|seen| Ok(Shown::of(purpose, seen.as_ref().map_err(Clone::clone)?)));
    Scouted { policies: of(&POLICIES), sources: of(&SOURCES) }
}

#[derive(Default)]
struct Known {
    chains: Chains,
    /// By name.
    sets: BTreeMap<String, Members>,
    /// Somebody else's, as they were when the chains were written.
    led: Led,
    memory: Memory,
}

impl Tables {
    pub fn new(most: u32) -> Tables {
        Tables { most, sets: None, scouted: None, known: None, left: BTreeSet::new(), ruled: BTreeSet::new() }
    }

    /// Beginning with what was seen a moment ago; or what this node lacks for it.
    pub fn after(most: u32, scouted: Looks) -> Result<Tables, Error> {
        let mut tables = Tables::new(most);
        tables.sets()?;
        scouted[0].as_ref().map_err(Clone::clone)?;
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
        let led = if wanted.sets.is_empty() { Led::default() } else { self.sets()?.led(family)? };
        if shown.is_none()
            && led == known.led
            && let Some((name, members)) = wanted.in_place(known)
        {
            self.change(&name, &known.sets[&name].clone(), &members)?;
            known.sets.insert(name, members);
            return Ok(());
        }
        let names = wanted.names(family, &known.sets);
        let chains = chains(wanted.rules, wanted.pods, &wanted.sets, &names, family, &led, &mut known.memory);
        for (used, name) in &names {
            if !known.sets.contains_key(name) {
                let members = &wanted.sets[used];
                known.sets.insert(name.clone(), Members::new());
                self.fill(name, family, members)?;
                known.sets.insert(name.clone(), members.clone());
            }
        }
        if let Some(text) = script(&POLICIES, &known.chains, &chains, shown) {
            restore(family, &text)?;
        }
        (known.chains, known.led) = (chains, led);
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
        let shown = self.scouted.take().unwrap_or_else(|| scout().policies);
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
        let chains = chains(self.rules, self.pods, &self.sets, &names, self.family, &known.led, &mut known.memory);
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
    led: Led,
}

impl Outline {
    fn of(family: Family, known: &Known) -> Outline {
        let digest = |members: &Members| ipset::digest(members.iter().map(|(net, is_in)| (*net, *is_in)));
        Outline {
            family,
            chains: lengths(&known.chains),
            sets: known.sets.iter().map(|(name, members)| (name.clone(), digest(members))).collect(),
            led: known.led.clone(),
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

/// What is dropped, and whether all is there that is known of these families. What is broken is told also where the rest cannot be read.
fn tally(known: &[Outline]) -> Result<Counted, Error> {
    let (mut damage, mut is_stale) = (None, false);
    let figures = match count(known, &mut damage, &mut is_stale) {
        Err(e) if damage.is_none() && !is_stale => return Err(e),
        counted => counted.unwrap_or_default(),
    };
    Ok(Counted { figures, damage: damage.map(str::to_owned), is_stale })
}

fn count(known: &[Outline], damage: &mut Option<&'static str>, is_stale: &mut bool) -> Result<Value, Error> {
    let mut dropped = vec![0; POLICIES.drops.len()];
    let mut sets = Sets::open(MOST)?;
    for outline in known {
        if !outline.are_sets_whole(&mut sets)? {
            damage.get_or_insert("ipsets");
        }
        *is_stale |= sets.led(outline.family)? != outline.led;
        let shown = Shown::read(&POLICIES, outline.family)?;
        if !shown.is_whole(&outline.chains) {
            damage.get_or_insert("chains");
        }
        dropped.iter_mut().zip(shown.dropped).for_each(|(sum, packets)| *sum += packets);
    }
    let by_direction =
        POLICIES.drops.iter().zip(dropped).map(|((direction, _), sum)| ((*direction).to_owned(), sum.into()));
    let policy: serde_json::Map<String, Value> = by_direction.collect();
    Ok(json!({"drops": {"policy": policy}}))
}

/// The replacement that takes away what this output of iptables-save(8) shows of ours.
#[cfg(fuzzing)]
pub(super) fn removal(saved: &str) -> Option<String> {
    let of = |purpose| script(purpose, &Chains::default(), &Chains::default(), Some(&Shown::of(purpose, saved)));
    of(&POLICIES).or(of(&SOURCES))
}
