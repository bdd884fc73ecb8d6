//! How soon a part is repaired again: at once, unless somebody undoes every repair.

use std::time::Duration;

use super::Now;

/// So many repairs in a row are free: whoever flushes as often is a program.
const FREE: u32 = 64;
const FIRST_WAIT: Duration = Duration::from_millis(10);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// For each time this long between a repair and the next damage, one repair is forgotten.
const FORGET_ONE: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Default)]
pub struct Pace {
    repairs: u32,
    last: Now,
    told: bool,
}

impl Pace {
    /// Damage is seen. Only the time since the last repair counts as quiet, not the time that we let pass before it: whoever
    /// answers each repair at once has never been quiet.
    pub fn wait(&mut self, now: Now) -> Duration {
        let quiet = now.saturating_sub(self.last);
        let forgotten = (quiet.as_millis() / FORGET_ONE.as_millis()).min(u32::MAX.into()) as u32;
        self.repairs = self.repairs.saturating_sub(forgotten);
        self.last = now.max(self.last);
        self.told &= self.repairs > 0;
        match self.repairs.checked_sub(FREE) {
            None => Duration::ZERO,
            Some(over) => FIRST_WAIT.saturating_mul(1 << over.min(20)).min(LONGEST_WAIT),
        }
    }

    /// Whether it is time to say that somebody undoes it, which is said once.
    pub fn repaired(&mut self, now: Now) -> bool {
        self.repairs = self.repairs.saturating_add(1).min(FREE + 20);
        self.last = now;
        let tell = self.repairs > FREE && !self.told;
        self.told |= tell;
        tell
    }
}
