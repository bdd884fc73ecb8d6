//! Packets that the programs of network policies drop, or pass with a log, as they come. One at a time listens on a node.

use std::path::Path;
use std::time::Duration;

use super::map::Map;
use super::pin;
use super::policy;
use super::ring::Rings;
use crate::error::{Context, Error};
use crate::verdict::{Event, LISTEN_DROPS, LISTEN_VERDICTS, State};

/// As long as it lives, the programs tell what they do.
pub struct Monitor {
    state: Map,
    /// What was told is ours as long as it is open.
    _events: Map,
    rings: Rings,
}

impl Monitor {
    /// Listens to what the programs below this bpffs drop, and to every answer of the rules if wanted.
    pub fn open(root: &Path, verdicts: bool) -> Result<Monitor, Error> {
        let folder = policy::place(root);
        let open = |name: &str| {
            let none = || Error::refused("no network policies are in the kernel").within(format!("look for {name}"));
            pin::open(&folder, name)?.ok_or_else(none)
        };
        let (state, events) = (open("state")?, open("events")?);
        let rings = Rings::open(&events)?;
        let monitor = Monitor { state, _events: events, rings };
        monitor.listen(LISTEN_DROPS | if verdicts { LISTEN_VERDICTS } else { 0 })?;
        Ok(monitor)
    }

    fn listen(&self, listen: u32) -> Result<(), Error> {
        let listener = State { listen, ..State::default() };
        self.state.put(&State::LISTENER, &listener.to_bytes()).context(|| "listen to network policies")
    }

    /// Waits for events, but no longer than this.
    pub fn wait(&self, patience: Duration) {
        self.rings.wait(patience);
    }

    /// Gives all events that there are to the closure; how many were lost because nobody read them in time.
    pub fn read(&mut self, mut see: impl FnMut(Event)) -> u64 {
        self.rings.read(&mut |bytes| Event::from_bytes(bytes).into_iter().for_each(&mut see))
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // Where it cannot be said, the programs tell nobody, and the next life says it.
        let _ = self.listen(0);
    }
}
