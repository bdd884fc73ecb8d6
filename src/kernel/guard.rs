//! Has the node drop what a pod sends from an address that is not its own, whoever enforces the policies.
//!
//! Nothing of it is about a single pod: there is nothing to do for an ADD, and a restart finds it as it is.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

use super::saved::{Shown, is_passing, lengths, restore, script};
use super::tables::{Looks, scout};
use crate::both::both;
use crate::chains::{Chains, FAMILIES, Family, SOURCES, sources};
use crate::error::Error;
use crate::rules::{Counted, Tally};

#[derive(Default)]
pub struct Guard {
    /// What a moment ago was there, for the first look.
    scouted: Option<Looks>,
    state: State,
    /// Why it is not in all families.
    lack: String,
}

/// Who looks at the kernel finds out more.
#[derive(Clone, Default)]
struct State(Arc<Mutex<Where>>);

#[derive(Clone, Default)]
struct Where {
    /// Families in which it is in force.
    held: BTreeSet<Family>,
    /// Those in which something was in the way that passes, such as somebody's lock.
    late: BTreeSet<Family>,
}

impl Guard {
    /// Beginning with what was seen a moment ago.
    pub fn after(scouted: Looks) -> Guard {
        Guard { scouted: Some(scouted), ..Guard::default() }
    }

    /// Has it in force as far as this node can. Where it cannot, pods are served all the same, and the log says why.
    pub fn restore(&mut self) {
        let done = turn(self.scouted.take().unwrap_or_else(|| scout().sources), sources);
        let of = |is: fn(&Result<(), Error>) -> bool| {
            FAMILIES.into_iter().zip(&done).filter(|(_, done)| is(done)).map(|(family, _)| family).collect()
        };
        *self.state.open() = Where { held: of(Result::is_ok), late: of(|done| done.as_ref().is_err_and(is_passing)) };
        let lack: Vec<String> = done.into_iter().filter_map(|done| Some(done.err()?.to_string())).collect();
        let lack = lack.join("; ");
        if !lack.is_empty() && lack != self.lack {
            log::warn!("pods are not kept from sending in the name of other addresses: {lack}");
        }
        self.lack = lack;
    }

    /// Beside that, tries again where something was in the way. None: it is in force nowhere, and will not be.
    pub fn tally(&self) -> Option<Tally> {
        let (state, Where { held, late }) = (self.state.clone(), self.state.open().clone());
        (!held.is_empty() || !late.is_empty()).then(|| -> Tally {
            Box::new(move || {
                late.into_iter().for_each(|family| state.try_again(family));
                tally(&held)
            })
        })
    }
}

impl State {
    fn open(&self) -> MutexGuard<'_, Where> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn try_again(&self, family: Family) {
        if ensure(family, &Shown::read(&SOURCES, family), &sources(family)).is_ok() {
            log::info!("pods are kept from sending in the name of other addresses in {family:?} too");
            let mut places = self.open();
            places.late.remove(&family);
            places.held.insert(family);
        }
    }
}

/// Takes it away.
pub fn remove() -> Result<(), Error> {
    // Where there is no iptables, there is nothing of ours in it.
    let looks = scout().sources.map(|shown| shown.or_else(|_| Ok(Shown::of(&SOURCES, ""))));
    turn(looks, |_| Chains::new()).into_iter().collect()
}

fn turn(looks: Looks, wanted: impl Fn(Family) -> Chains + Sync) -> [Result<(), Error>; FAMILIES.len()] {
    let [first, second] = FAMILIES;
    let [aside, here] = looks;
    both(|| ensure(first, &aside, &wanted(first)), || ensure(second, &here, &wanted(second))).into()
}

fn ensure(family: Family, shown: &Result<Shown, Error>, wanted: &Chains) -> Result<(), Error> {
    let shown = shown.as_ref().map_err(Clone::clone)?;
    // Chains with rules of their own are named by them.
    if shown.is_whole(&lengths(wanted)) {
        return Ok(());
    }
    let text = script(&SOURCES, &Chains::new(), wanted, Some(shown));
    text.map_or(Ok(()), |text| restore(family, &text))
}

/// What is dropped, and whether it is in force still.
fn tally(held: &BTreeSet<Family>) -> Result<Counted, Error> {
    let (mut dropped, mut damage) = (0, None);
    for family in held {
        let shown = Shown::read(&SOURCES, *family)?;
        if !shown.is_whole(&lengths(&sources(*family))) {
            damage = Some(format!("chains {}", SOURCES.prefix));
        }
        dropped += shown.dropped.iter().sum::<u64>();
    }
    Ok(Counted { figures: figures(dropped), damage, is_stale: false })
}

fn figures(dropped: u64) -> Value {
    let [(direction, _)] = SOURCES.drops else { unreachable!("packets to pods are not looked at") };
    json!({"drops": {"foreign_source": {*direction: dropped}}})
}
