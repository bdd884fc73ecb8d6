//! How many idle addresses are enough: the bounds of the settings, more after the start, fewer when nobody has wanted one for long.

use super::state::State;
use super::{Now, Settings};

/// What the pool remembers of it.
#[derive(Default)]
pub(super) struct Reclaiming {
    /// The last time that an address was leased.
    pub leased: Now,
    /// No batch goes before this.
    next: Now,
    /// `ip_warm_up_size` was reached, in this life, or is not to be had: a batch has gone before.
    warmed: bool,
    /// A batch has gone: what came beyond the usual bound is not kept any more.
    begun: bool,
}

impl Reclaiming {
    /// Nobody is known to have wanted an address before.
    pub fn new(now: Now) -> Reclaiming {
        Reclaiming { leased: now, ..Reclaiming::default() }
    }
}

impl State {
    /// Idle addresses to have at least.
    pub fn least_idle(&self) -> u32 {
        let warm = if self.reclaiming.warmed { 0 } else { self.warm_up() };
        self.settings.min_idle.max(warm)
    }

    /// Idle addresses that ENIs are not given back for.
    pub fn kept_idle(&self) -> u32 {
        let warm = if self.reclaiming.begun { 0 } else { self.warm_up() };
        self.settings.min_idle.max(warm)
    }

    /// Idle addresses that are not too many.
    pub fn most_idle(&self) -> u32 {
        let usual = self.settings.max_idle.max(self.settings.min_idle);
        if self.reclaiming.begun { usual } else { usual.max(self.warm_up()) }
    }

    /// What lacks of the addresses that the node should have once, those in use included.
    fn warm_up(&self) -> u32 {
        let Settings { warm_up, .. } = self.settings;
        warm_up.min(self.max_enis() * self.per_eni()).saturating_sub(self.leases.len() as u32)
    }

    /// Notes when all that the node should have once is there.
    pub fn end_warm_up(&mut self) {
        self.reclaiming.warmed |= self.idle() >= self.warm_up();
    }

    /// Idle addresses that are due to go because nobody has wanted one for long.
    pub fn reclaimable(&mut self) -> u32 {
        let Some(reclaim) = self.settings.reclaim else { return 0 };
        let above = self.idle().saturating_sub(self.settings.min_idle);
        if above == 0 {
            return 0;
        }
        let due = (self.reclaiming.leased + reclaim.after).max(self.reclaiming.next);
        if due > self.now {
            self.at(due);
            return 0;
        }
        above.min(reclaim.batch)
    }

    /// A batch goes; the next one waits.
    pub fn reclaimed(&mut self) {
        let Some(reclaim) = self.settings.reclaim else { return };
        self.reclaiming.begun = true;
        // What an empty vSwitch could not give by now would only be asked for and given back for ever.
        self.reclaiming.warmed = true;
        self.reclaiming.next = self.now + reclaim.interval.mul_f64(1.0 + reclaim.jitter * self.rng.f64());
    }
}
