//! The clock that goes on over a restart of the daemon, but not over a reboot.

use rustix::time::{ClockId, clock_gettime};

use crate::pool::Now;

/// Time since the machine started, sleep included (CLOCK_BOOTTIME).
pub fn now() -> Now {
    let time = clock_gettime(ClockId::Boottime);
    Now::new(time.tv_sec as u64, time.tv_nsec as u32)
}
