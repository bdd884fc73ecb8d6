//! What a daemon that is told to end leaves to its next life, which then serves before the cloud has answered: an upgrade is no
//! pause. A daemon that is killed leaves nothing, and the next asks.
//!
//! It is believed once, within this boot, by the life that follows at once, and for no longer than the life that wrote it would
//! have gone by it; what is in it was certain then (see [`crate::pool::Pool::will`]). Whatever is not so, all is asked.

use std::path::Path;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::ledger::{self, Ledger};
use super::terms::Terms;
use super::{clock, machine, old};
use crate::eni::VSwitch;
use crate::error::Error;
use crate::pool::Will;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Legacy {
    boot_id: String,
    turn: SystemTime,
    pub terms: Terms,
    /// The vSwitches that were asked for, and what was found of them.
    pub asked: Vec<String>,
    pub vswitches: Vec<VSwitch>,
    pub will: Will,
}

impl Legacy {
    /// `turn`: when the life that leaves it began.
    pub fn new(
        turn: SystemTime,
        terms: Terms,
        asked: Vec<String>,
        vswitches: Vec<VSwitch>,
        will: Will,
    ) -> Result<Legacy, Error> {
        Ok(Legacy { boot_id: machine::boot_id()?, turn, terms, asked, vswitches, will })
    }

    pub fn leave(&self, ledger: &Ledger) -> Result<(), Error> {
        ledger.bequeath(self)
    }

    /// What the life that began then has left, if it may be believed. It is gone after that.
    pub fn take(root: &Path, turn: SystemTime) -> Option<Legacy> {
        let legacy: Legacy = ledger::inherit(root)?;
        let ours = machine::boot_id().is_ok_and(|id| id == legacy.boot_id) && legacy.turn == turn;
        // The old Terway may have been here in between, and have used what we held.
        (ours && clock::now() < legacy.will.until && !old::is_there()).then_some(legacy)
    }
}
