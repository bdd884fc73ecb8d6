//! Which kinds the server lacks: asked once for all who want to know, by the connection that there is. A watch opens one of its own,
//! and those of a start would open half of theirs for nothing.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::kube::Client;
use crate::netpol::Collection;

/// An answer is as good as a new one for so long.
const FRESH: Duration = Duration::from_secs(1);

pub struct Scout {
    kube: Client,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    kinds: BTreeMap<&'static str, (Instant, Vec<String>)>,
    /// The server does not answer: nobody waits for it here.
    silent: Option<Instant>,
}

impl Scout {
    pub fn new(kube: Client) -> Scout {
        Scout { kube, known: Mutex::default() }
    }

    /// The server says that it has no such collection, and is not only starting. What it does not say, a watch finds out.
    pub fn is_lacking(&self, place: &Collection) -> bool {
        // Held over the question: who asks the same has the answer then.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let is_fresh = |at: Instant| at.elapsed() < FRESH;
        if known.silent.is_some_and(is_fresh) {
            return false;
        }
        if !known.kinds.get(place.api).is_some_and(|(at, _)| is_fresh(*at)) {
            match self.kube.kinds(place.api) {
                Ok(kinds) if kinds.iter().any(|kind| kind == place.plural) || self.kube.has_started() => {
                    known.kinds.insert(place.api, (Instant::now(), kinds));
                }
                _ => {
                    known.silent = Some(Instant::now());
                    return false;
                }
            }
        }
        known.kinds.get(place.api).is_some_and(|(_, kinds)| !kinds.iter().any(|kind| kind == place.plural))
    }
}
