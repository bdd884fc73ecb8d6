//! How far a start has come, and when: for those who look for where its time goes.

use std::sync::OnceLock;
use std::time::Instant;

static BEGAN: OnceLock<Instant> = OnceLock::new();

/// The process has begun to run.
pub fn begin() {
    BEGAN.get_or_init(Instant::now);
}

pub fn reached(what: &str) {
    log::debug!("{:.1} ms after the exec: {what}", BEGAN.get_or_init(Instant::now).elapsed().as_secs_f64() * 1e3);
}
