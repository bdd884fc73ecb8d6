//! Events: what repeats is counted on the event that is there, what varies endlessly is combined, and nobody is flooded.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Now, Outcome, Topic};
use crate::object::{About, Event, Write};

/// An event that repeats is written again after this long, doubling up to the second figure.
const REPEAT: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(600));
/// An event not heard for this long is forgotten; the API server forgets it too.
const MEMORY: Duration = Duration::from_secs(3600);
/// More of one reason about one thing within [`SIMILAR_WITHIN`] become one event.
const SIMILAR: u32 = 10;
const SIMILAR_WITHIN: Duration = Duration::from_secs(600);
/// In the long run one request for events every so long; this many may come at once.
const GAP: Duration = Duration::from_secs(2);
const AT_ONCE: u32 = 30;
/// Events that are remembered; a big outage must not become one of memory.
const MOST: usize = 256;

pub(super) type Key = (About, String, String);

#[derive(Default)]
pub(super) struct Events {
    told: BTreeMap<Key, Told>,
    /// Distinct events of one reason about one thing, and since when they are counted.
    similar: BTreeMap<(About, String), (Now, u32)>,
    /// The budget: requests of the past reach up to this time.
    spent: Now,
}

struct Told {
    event: Event,
    /// The count that the API server has, and the one on its way there.
    known: u32,
    sending: u32,
    heard: Now,
    next: Now,
    pause: Duration,
}

impl Told {
    fn is_new(&self) -> bool {
        self.event.count() > self.known
    }
}

impl Events {
    pub fn hear(&mut self, now: Now, event: Event) {
        self.told.retain(|_, told| now < told.heard + MEMORY);
        self.similar.retain(|_, (since, _)| now < *since + SIMILAR_WITHIN);
        let event = self.combined(now, event);
        let key = event.key();
        if let Some(told) = self.told.get_mut(&key) {
            told.event.again(&event);
            told.heard = now;
            return;
        }
        if self.told.len() >= MOST {
            self.forget_one();
        }
        let told = Told { event, known: 0, sending: 0, heard: now, next: now, pause: REPEAT.0 };
        self.told.insert(key, told);
    }

    /// One that was heard before stays itself.
    fn combined(&mut self, now: Now, event: Event) -> Event {
        let key = event.key();
        if self.told.contains_key(&key) {
            return event;
        }
        let (_, count) = self.similar.entry((key.0, key.1)).or_insert((now, 0));
        *count += 1;
        if *count > SIMILAR { event.combined() } else { event }
    }

    /// The one heard longest ago, of those that the API server knows if there are any.
    fn forget_one(&mut self) {
        let oldest = self.told.iter().min_by_key(|(_, told)| (told.is_new(), told.heard)).map(|(key, _)| key.clone());
        if let Some(key) = oldest {
            self.told.remove(&key);
        }
    }

    pub fn next(&mut self, now: Now) -> Option<(Topic, Write)> {
        let (at, key) = self.first()?;
        if at > now {
            return None;
        }
        self.spent = self.spent.max(now) + GAP;
        let told = self.told.get_mut(&key)?;
        told.sending = told.event.count();
        let write = if told.known == 0 { told.event.create() } else { told.event.recount() };
        Some((Topic::Event(key), write))
    }

    pub fn due(&self) -> Option<Now> {
        self.first().map(|(at, _)| at)
    }

    /// The next to be written and when: what the server has not heard of at all goes first.
    fn first(&self) -> Option<(Now, Key)> {
        let affordable = self.spent.saturating_sub(GAP * AT_ONCE);
        let new = self.told.iter().filter(|(_, told)| told.is_new());
        let (key, told) = new.min_by_key(|(_, told)| (told.next, told.known, told.heard))?;
        Some((told.next.max(affordable), key.clone()))
    }

    pub fn done(&mut self, now: Now, key: &Key, outcome: Outcome) {
        let Some(told) = self.told.get_mut(key) else { return };
        match outcome {
            Outcome::Done => {
                told.known = told.sending;
                told.next = now + told.pause;
                told.pause = (told.pause * 2).min(REPEAT.1);
            }
            // It has outlived its time in the server: the next is a new one.
            Outcome::Gone if told.known > 0 => told.known = 0,
            Outcome::Gone | Outcome::Refused => drop(self.told.remove(key)),
            Outcome::Unanswered => {}
        }
    }
}
