//! Has the node drop what a pod sends from an address that is not its own, whoever enforces the policies.
//!
//! Nothing of it is about a single pod: there is nothing to do for an ADD, and a restart finds it as it is.

use serde_json::{Value, json};

use super::saved::{Shown, lengths, restore, script};
use super::tables::{Looks, scout};
use crate::both::both;
use crate::chains::{Chains, FAMILIES, Family, SOURCES, sources};
use crate::error::Error;
use crate::rules::{Counted, Tally};

#[derive(Default)]
pub struct Guard {
    /// What a moment ago was there, for the first look.
    scouted: Option<Looks>,
    /// Families in which it is in force.
    held: Vec<Family>,
    /// Why it is not in the others.
    lack: String,
}

impl Guard {
    /// Beginning with what was seen a moment ago.
    pub fn after(scouted: Looks) -> Guard {
        Guard { scouted: Some(scouted), ..Guard::default() }
    }

    /// Has it in force as far as this node can. Where it cannot, pods are served all the same, and the log says why.
    pub fn restore(&mut self) {
        let done = turn(self.scouted.take().unwrap_or_else(|| scout().sources), sources);
        self.held =
            FAMILIES.into_iter().zip(&done).filter(|(_, done)| done.is_ok()).map(|(family, _)| family).collect();
        let lack: Vec<String> = done.into_iter().filter_map(|done| Some(done.err()?.to_string())).collect();
        let lack = lack.join("; ");
        if !lack.is_empty() && lack != self.lack {
            log::warn!("pods are not kept from sending in the name of other addresses: {lack}");
        }
        self.lack = lack;
    }

    /// None: it is in force nowhere.
    pub fn tally(&self) -> Option<Tally> {
        let held = self.held.clone();
        (!held.is_empty()).then(|| -> Tally { Box::new(move || tally(&held)) })
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
    let has = |family: Family, shown: &Result<Shown, Error>| -> Result<(), Error> {
        let (wanted, shown) = (wanted(family), shown.as_ref().map_err(Clone::clone)?);
        // Chains with rules of their own are named by them.
        if shown.is_whole(&lengths(&wanted)) {
            return Ok(());
        }
        let text = script(&SOURCES, &Chains::new(), &wanted, Some(shown));
        text.map_or(Ok(()), |text| restore(family, &text))
    };
    both(|| has(first, &aside), || has(second, &here)).into()
}

/// What is dropped, and whether it is in force still.
fn tally(held: &[Family]) -> Result<Counted, Error> {
    let (mut dropped, mut damage) = (0, None);
    for family in held {
        let shown = Shown::read(&SOURCES, *family)?;
        if !shown.is_whole(&lengths(&sources(*family))) {
            damage = Some(format!("chains {}", SOURCES.prefix));
        }
        dropped += shown.dropped.iter().sum::<u64>();
    }
    Ok(Counted { figures: figures(dropped), damage })
}

fn figures(dropped: u64) -> Value {
    let [(direction, _)] = SOURCES.drops else { unreachable!("packets to pods are not looked at") };
    json!({"drops": {"foreign_source": {*direction: dropped}}})
}
