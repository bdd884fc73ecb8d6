//! What Kubernetes is told of this node (resources, condition, annotations, events) and when: one request at a time.
//!
//! Pure: no clock, no I/O, no log. The API server must not feel us: what is there already is not written, what others wipe is
//! written again with growing pauses, what repeats is counted. An outage queues nothing but the difference that it leaves.

mod board;
mod events;
mod fit;
mod sufficiency;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use fastrand::Rng;

use crate::object::{Event, Node, Write};
use crate::pod::PodName;
use crate::rpc::Refusal;
use board::Board;
use events::{Events, Key};

pub use fit::{Fit, Guests};

/// Time since the machine started.
pub type Now = Duration;

/// What is to be said of the node now.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    /// Extended resources; those without a number are not to be there.
    pub resources: BTreeMap<&'static str, Option<u32>>,
    pub annotations: BTreeMap<&'static str, Option<String>>,
    /// Why pods cannot have addresses, if so.
    pub lack: Option<Lack>,
}

/// Why no address can be given: what stays the same while it lasts, and the words when it began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lack {
    pub why: Refusal,
    pub reason: String,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// There is no such object.
    Gone,
    /// The server heard it and will not do it.
    Refused,
    /// No answer, or the server cannot at present.
    Unanswered,
}

pub struct Herald {
    rng: Rng,
    board: Board,
    events: Events,
    /// Pods whose annotation was written: not again before this time, whatever the watch says.
    noted: BTreeMap<PodName, Pace>,
    /// For the server as a whole.
    line: Pace,
    under_way: Option<Topic>,
}

/// What a request is about.
#[derive(Debug, Clone, PartialEq)]
enum Topic {
    Status,
    Meta,
    Event(Key),
    Pod(PodName),
}

/// Attempts in a row that did not last, and when the next may be made.
#[derive(Debug, Default)]
struct Pace {
    fails: u32,
    next: Now,
}

/// From one attempt to the next, doubling up to the second figure.
const UNANSWERED: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
const AGAIN: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(300));

impl Pace {
    fn later(&mut self, now: Now, (base, cap): (Duration, Duration), rng: &mut Rng) {
        let wait = base.saturating_mul(1 << self.fails.min(16)).min(cap);
        self.next = now + wait.mul_f64(0.75 + rng.f64() / 2.0);
        self.fails += 1;
    }
}

impl Herald {
    pub fn new(seed: u64) -> Herald {
        Herald {
            rng: Rng::with_seed(seed),
            board: Board::default(),
            events: Events::default(),
            noted: BTreeMap::new(),
            line: Pace::default(),
            under_way: None,
        }
    }

    /// What the node is to show from now on.
    pub fn publish(&mut self, now: Now, facts: Facts) {
        self.board.publish(now, facts);
    }

    /// Something that people shall read with the object that it is about.
    pub fn hear(&mut self, now: Now, event: Event) {
        self.events.hear(now, event);
    }

    /// The next request, if one is due. `own` is our node object as it was seen last; `stamp` the time for people.
    pub fn next(&mut self, now: Now, stamp: &str, own: Option<&Node>) -> Option<Write> {
        if self.under_way.is_some() || self.line.next > now {
            return None;
        }
        let (topic, write) = self.board.next(now, stamp, own, &mut self.rng).or_else(|| self.events.next(now))?;
        self.under_way = Some(topic);
        Some(write)
    }

    /// A pod is to bear this annotation; the request, unless one is under way or this pod's was just written.
    pub fn note(&mut self, now: Now, pod: &PodName, key: &str, value: &str) -> Option<Write> {
        let pace = self.noted.get(pod).map_or(Now::ZERO, |p| p.next);
        if self.under_way.is_some() || self.line.next.max(pace) > now {
            return None;
        }
        self.noted.entry(pod.clone()).or_default().later(now, AGAIN, &mut self.rng);
        self.under_way = Some(Topic::Pod(pod.clone()));
        Some(Write::annotate_pod(pod, key, value))
    }

    /// Forgets pods that are none of ours any more, or bear what they should.
    pub fn forget_notes(&mut self, wanting: impl Fn(&PodName) -> bool) {
        self.noted.retain(|pod, _| wanting(pod));
    }

    /// How the request under way ended.
    pub fn done(&mut self, now: Now, outcome: Outcome) {
        let Some(topic) = self.under_way.take() else { return };
        if let Topic::Event(key) = &topic {
            self.events.done(now, key, outcome);
        }
        match outcome {
            Outcome::Unanswered => self.line.later(now, UNANSWERED, &mut self.rng),
            _ => self.line = Pace::default(),
        }
    }

    /// When there may be something to do next; none while a request is under way.
    pub fn due(&self, now: Now, own: Option<&Node>) -> Option<Now> {
        if self.under_way.is_some() {
            return None;
        }
        let soonest = [self.board.due(own), self.events.due()].into_iter().flatten().min()?;
        Some(soonest.max(self.line.next).max(now))
    }

    /// When the next of these pods may be written to.
    pub fn note_due(&self, pods: impl Iterator<Item = PodName>) -> Option<Now> {
        if self.under_way.is_some() {
            return None;
        }
        let next = |pod| self.noted.get(&pod).map_or(Now::ZERO, |p| p.next);
        pods.map(next).min().map(|next| next.max(self.line.next))
    }
}
