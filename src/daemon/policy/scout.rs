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
    pub kube: Client,
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
        known.kinds.retain(|_, (at, _)| is_fresh(*at));
        if !known.kinds.contains_key(place.api) {
            let Some(kinds) = self.kinds(place.api) else {
                known.silent = Some(Instant::now());
                return false;
            };
            known.kinds.insert(place.api, (Instant::now(), kinds));
        }
        !known.kinds[place.api].1.iter().any(|kind| kind == place.plural)
    }

    /// What the server has of the API, if it is one that knows: a server that had come up before it was asked.
    fn kinds(&self, api: &str) -> Option<Vec<String>> {
        self.kube.health().and_then(|()| self.kube.kinds(api)).ok()
    }
}
