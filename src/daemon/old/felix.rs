//! The old Terway's felix: what it has left in netfilter goes, once policies are held without it.
//!
//! Only where the old Terway's files are, and nobody runs as felix: then it is nobody's any more, and cuts off the pods that come.
//! Where Calico's node has run there, all of it is Calico's and stays.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::files;
use crate::daemon::threads;
use crate::error::{Context, Error};
use crate::kernel::felix::{self, Owner};
use crate::ours;

/// One that still runs is on its way out, as a rule: it is looked for again this often, and the less the longer it runs.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);
/// One that is not seen so many times in a row has ended; before that it may be about to start anew.
const ABSENT: u32 = 10;

/// Whether something of it may be there, as far as is known without a look at netfilter.
pub fn may_be_left() -> bool {
    unseen().is_some()
}

/// Takes away what is left, at once or as soon as nobody runs as felix. An error: it is there still, and new pods are cut off.
pub fn leave() -> Result<(), Error> {
    let Some(state) = unseen() else { return Ok(()) };
    match felix::runs() {
        None => return clear(&state),
        Some(Owner::Calico) => spare(),
        Some(Owner::OldTerway) => {
            log::info!("felix runs on this node: what it has in netfilter stays for as long as it does");
            threads::start(move || await_end(&state));
        }
    }
    Ok(())
}

/// The same where nobody else holds pods to policies: whose it is shows with time. Does not return before nothing is left.
pub fn outlast() {
    if let Some(state) = unseen() {
        await_end(&state);
    }
}

/// The state of the old Terway's files, unless nothing of felix was left in it.
fn unseen() -> Option<String> {
    let state = files::state(Path::new(ours::OLD_STORE))?;
    let seen = fs::read_to_string(ours::FELIX_NOTE).is_ok_and(|seen| seen == state);
    (!seen && !Path::new(ours::CALICO_NOTE).exists()).then_some(state)
}

fn await_end(state: &str) {
    let mut pause = PAUSE;
    while has_ended(felix::runs, thread::sleep) {
        match clear(state) {
            Ok(()) => return,
            Err(e) => log::error!("{e}; new pods are cut off; again in {} s", (pause + PAUSE * ABSENT).as_secs()),
        }
        thread::sleep(pause);
        pause = (pause * 2).min(LONGEST);
    }
    spare();
}

/// Once nobody has run as felix for a while. False: Calico's was seen.
fn has_ended(mut runs: impl FnMut() -> Option<Owner>, sleep: impl Fn(Duration)) -> bool {
    let (begun, mut absent) = (Instant::now(), 0);
    while absent < ABSENT {
        match runs() {
            Some(Owner::Calico) => return false,
            Some(Owner::OldTerway) => {
                absent = 0;
                sleep((begun.elapsed() / 20).clamp(PAUSE, LONGEST));
            }
            None => {
                absent += 1;
                sleep(PAUSE);
            }
        }
    }
    true
}

/// Calico may be about to start anew whenever it is not there: its chains hold for as long.
fn spare() {
    log::info!("Calico's node runs here: what is in netfilter of a felix is Calico's, and stays");
    if let Err(e) = fs::write(ours::CALICO_NOTE, "") {
        log::warn!("write {}: {e}; the next start looks for Calico's node again", ours::CALICO_NOTE);
    }
}

fn clear(state: &str) -> Result<(), Error> {
    let removed = felix::remove().context(|| "remove what felix has left in netfilter")?;
    if removed.objects > 0 {
        log::info!(
            "{} chains and rules that felix had left in netfilter are removed: it drops what it was not told of",
            removed.objects
        );
    }
    if removed.is_all
        && let Err(e) = fs::write(ours::FELIX_NOTE, state)
    {
        log::warn!("write {}: {e}; netfilter is looked through again at the next start", ours::FELIX_NOTE);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn felix_has_ended_when_it_was_not_there_ten_times_in_a_row() {
        let ended = |seen: &[(Option<Owner>, usize)]| {
            let mut looks = seen.iter().flat_map(|(owner, times)| vec![*owner; *times]);
            let has_ended = has_ended(|| looks.next().expect("it is not looked for any more"), |_| ());
            (has_ended, looks.count())
        };
        let (felix, calico) = (Some(Owner::OldTerway), Some(Owner::Calico));
        assert_eq!(ended(&[(None, 11)]), (true, 1));
        assert_eq!(ended(&[(felix, 3), (None, 9), (felix, 1), (None, 11)]), (true, 1));
        assert_eq!(ended(&[(None, 9), (calico, 1), (None, 11)]), (false, 11));
    }
}
