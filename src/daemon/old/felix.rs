//! The old Terway's felix: what it has left in netfilter goes, once policies are held without it.
//!
//! Only where the old Terway's files are, and nobody runs as felix: then it is nobody's any more, and cuts off the pods that come.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use super::files;
use crate::daemon::threads;
use crate::error::{Context, Error};
use crate::kernel::felix;
use crate::ours;

/// One that still runs is on its way out, as a rule: it is looked for again this often, and so many times.
const PAUSE: Duration = Duration::from_secs(1);
const TIMES: u32 = 600;

/// Whether something of it may be there, as far as is known without a look at netfilter.
pub fn may_be_left() -> bool {
    unseen().is_some()
}

/// Takes away what is left, at once or as soon as nobody runs as felix. An error: it is there still, and new pods are cut off.
pub fn leave() -> Result<(), Error> {
    let Some(state) = unseen() else { return Ok(()) };
    if !felix::runs() {
        return clear(&state);
    }
    log::info!("felix runs on this node: what it has in netfilter stays for as long as it does");
    threads::start(move || await_end(&state));
    Ok(())
}

/// The state of the old Terway's files, unless nothing of felix was left in it.
fn unseen() -> Option<String> {
    let state = files::state(Path::new(ours::OLD_STORE))?;
    let seen = fs::read_to_string(ours::FELIX_NOTE).is_ok_and(|seen| seen == state);
    (!seen).then_some(state)
}

fn await_end(state: &str) {
    for _ in 0..TIMES {
        thread::sleep(PAUSE);
        if !felix::runs() {
            return clear(state).unwrap_or_else(|e| log::error!("{e}; new pods are cut off"));
        }
    }
    log::warn!("felix goes on beside terwayd: pods are held to policies by both");
}

fn clear(state: &str) -> Result<(), Error> {
    let removed = felix::remove().context(|| "remove what felix has left in netfilter")?;
    if let Some(objects) = removed.filter(|objects| *objects > 0) {
        log::info!(
            "{objects} chains and rules that felix had left in netfilter are removed: it drops what it was not told of"
        );
    }
    if removed.is_some()
        && let Err(e) = fs::write(ours::FELIX_NOTE, state)
    {
        log::warn!("write {}: {e}; netfilter is looked through again at the next start", ours::FELIX_NOTE);
    }
    Ok(())
}
