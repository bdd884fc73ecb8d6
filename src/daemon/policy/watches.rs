//! Watches by need: each begins when the policies come to need it, and ends when they have not needed it for a while.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use super::News;
use super::feed::{Kind, Wish, wishes};
use super::scout::Scout;
use crate::kube::{Client, Stop};
use crate::policy::{Need, Told};

/// A watch that nobody needs lives on for so long: who needs it again must not list anew.
const LINGER: Duration = Duration::from_secs(5);
/// A kind that the server does not have is looked for again after this long, doubling up to the second figure.
const ABSENT: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(240));

pub struct Watches {
    scout: Option<Arc<Scout>>,
    news: Sender<News>,
    open: BTreeMap<Wish, Open>,
    /// Kinds that the server does not have.
    absent: BTreeMap<Kind, Absent>,
    /// Watches that are over, and of which what they told holds until those that came after them have answered.
    replaced: Vec<(Kind, u32)>,
    wanted: BTreeSet<Wish>,
    last: u32,
    /// How many were begun in all.
    begun: u64,
}

struct Open {
    by: u32,
    stops: Vec<Stop>,
    answered: bool,
    trouble: Option<String>,
    /// People know that it is forbidden.
    is_told: bool,
    unneeded_since: Option<Instant>,
}

struct Absent {
    again: Instant,
    pause: Duration,
    /// Watches that had told of what there is, before the server said once that there is no such kind.
    left: Vec<u32>,
}

impl Watches {
    /// Without a client nothing is asked: what there is comes by itself.
    pub fn new(kube: Option<Client>, news: Sender<News>, last: u32) -> Watches {
        let scout = kube.map(|kube| Arc::new(Scout::new(kube)));
        let (open, absent, wanted) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
        Watches { scout, news, open, absent, replaced: Vec::new(), wanted, last, begun: 0 }
    }

    /// From now on these are needed.
    pub fn want(&mut self, needs: &BTreeSet<Need>, now: Instant) {
        self.wanted = needs.iter().flat_map(wishes).collect();
        for wish in self.wanted.clone() {
            match self.open.get_mut(&wish) {
                Some(open) => open.unneeded_since = None,
                None if self.absent.contains_key(&wish.kind) => {}
                None => self.begin(wish),
            }
        }
        for (_, open) in self.open.iter_mut().filter(|(wish, _)| !self.wanted.contains(*wish)) {
            open.unneeded_since.get_or_insert(now);
        }
    }

    fn begin(&mut self, wish: Wish) {
        self.last += 1;
        self.begun += 1;
        let by = self.last;
        log::debug!("policies need {wish}");
        let stops = self.scout.as_ref().map(|scout| wish.begin(by, scout, &self.news)).unwrap_or_default();
        self.open
            .insert(wish, Open { by, stops, answered: false, trouble: None, is_told: false, unneeded_since: None });
    }

    /// Whether the watch is one of those that are open; it has told what there is.
    pub fn answered(&mut self, by: u32, kind: Kind) -> bool {
        let Some((_, open)) = self.open.iter_mut().find(|(_, open)| open.by == by) else { return false };
        (open.answered, open.trouble, open.is_told) = (true, None, false);
        self.found(kind);
        true
    }

    /// Whether what the watch tells is of use: it is open, or what it has told holds until others have answered.
    pub fn counts(&self, by: u32) -> bool {
        let holds = |absent: &Absent| absent.left.contains(&by);
        self.open.values().any(|open| open.by == by)
            || self.replaced.iter().any(|(_, left)| *left == by)
            || self.absent.values().any(holds)
    }

    fn found(&mut self, kind: Kind) {
        if let Some(absent) = self.absent.remove(&kind) {
            self.replaced.extend(absent.left.into_iter().map(|by| (kind, by)));
            log::info!("the API server has {} by now", kind.plural());
            let others = self.wanted.iter().filter(|wish| wish.kind == kind && !self.open.contains_key(*wish));
            others.cloned().collect::<Vec<_>>().into_iter().for_each(|wish| self.begin(wish));
        }
    }

    /// What people are to be told of a kind that is there and may not be read, once. What it has told before is not all there is any more.
    pub fn trouble(&mut self, by: u32, why: String, is_forbidden: bool) -> Option<String> {
        let (wish, open) = self.open.iter_mut().find(|(_, open)| open.by == by)?;
        let what = format!("{wish} may not be read: {why}");
        open.trouble = Some(why);
        let is_news = is_forbidden && !std::mem::replace(&mut open.is_told, is_forbidden);
        if is_forbidden {
            open.answered = false;
            let kind = wish.kind;
            self.found(kind);
        }
        is_news.then_some(what)
    }

    /// The server has no such kind; which one, and the watches of it whose objects are gone. One that it had a moment ago is gone when
    /// it says so twice: objects of a kind that is deleted go before it, and a server that starts may not know of it yet.
    pub fn absent(&mut self, by: u32, now: Instant) -> Option<(Kind, Vec<u32>)> {
        let kind = self.open.iter().find(|(_, open)| open.by == by)?.0.kind;
        let before = self.absent.remove(&kind);
        let pause = before.as_ref().map_or(ABSENT.0, |absent| (absent.pause * 2).min(ABSENT.1));
        let over: Vec<(Wish, Open)> = self.open.extract_if(.., |wish, _| wish.kind == kind).collect();
        let over = over.into_iter().map(|(_, open)| open.end()).collect();
        let (left, gone) = match before {
            None => (over, Vec::new()),
            Some(Absent { left, .. }) => (Vec::new(), [left, over].concat()),
        };
        self.absent.insert(kind, Absent { again: now + pause, pause, left });
        Some((kind, gone))
    }

    /// Looks for absent kinds again, by one watch each; ends what has not been needed for long, and names it.
    pub fn tend(&mut self, now: Instant) -> Vec<(Kind, u32)> {
        let due = self.absent.iter().filter(|(_, absent)| absent.again <= now).map(|(kind, _)| *kind);
        for kind in due.collect::<Vec<_>>() {
            let is_sought = self.open.keys().any(|wish| wish.kind == kind);
            let scout = self.wanted.iter().find(|wish| wish.kind == kind && !is_sought).cloned();
            if let Some(absent) = self.absent.get_mut(&kind) {
                absent.again = now + absent.pause;
            }
            scout.into_iter().for_each(|wish| self.begin(wish));
        }
        // What replaces them is to be known first.
        if !self.is_complete() {
            return Vec::new();
        }
        let unknown: BTreeSet<Kind> = self.lacks().map(|(wish, _)| wish.kind).collect();
        let replaced = self.replaced.extract_if(.., |(kind, _)| !unknown.contains(kind)).collect::<Vec<_>>();
        let is_over = |open: &Open| open.unneeded_since.is_some_and(|since| since + LINGER <= now);
        let over: Vec<(Wish, Open)> = self.open.extract_if(.., |_, open| is_over(open)).collect();
        replaced.into_iter().chain(over.into_iter().map(|(wish, open)| (wish.kind, open.end()))).collect()
    }

    pub fn end(self) {
        self.open.into_values().for_each(|open| _ = open.end());
    }

    pub fn due(&self) -> Option<Instant> {
        let absent = self.absent.values().map(|absent| absent.again);
        let complete = self.is_complete();
        let over = self.open.values().filter(|_| complete).filter_map(|open| Some(open.unneeded_since? + LINGER));
        absent.chain(over).min()
    }

    /// All that is needed has been told of, but for what concerns pods of some namespaces only ([`Watches::barred`]).
    pub fn is_complete(&self) -> bool {
        self.lacks().all(|(wish, open)| open.is_told && wish.own_space().is_some())
    }

    /// Namespaces of our own pods whose policies may not be read.
    pub fn barred(&self) -> impl Iterator<Item = &str> {
        self.lacks().filter(|(_, open)| open.is_told).filter_map(|(wish, _)| wish.own_space())
    }

    fn lacks(&self) -> impl Iterator<Item = (&Wish, &Open)> {
        let unanswered = |(wish, open): &(&Wish, &Open)| {
            // Nothing that is enforced depends on host endpoints.
            let is_idle = wish.kind == Kind::Told(Told::HostEndpoint);
            // While a kind that was absent is looked for again, it counts as absent.
            !is_idle && !open.answered && !self.absent.contains_key(&wish.kind) && self.wanted.contains(*wish)
        };
        self.open.iter().filter(unanswered)
    }

    /// What has not been told of, in words.
    pub fn lack(&self) -> Option<String> {
        let (wish, open) = self.lacks().next()?;
        let why = open.trouble.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        Some(format!("{wish} have not been heard of from the API server{why}"))
    }

    /// Each with whether it has told what there is.
    pub fn show(&self) -> impl Iterator<Item = (String, bool)> {
        self.open.iter().map(|(wish, open)| (wish.to_string(), open.answered))
    }

    pub fn begun(&self) -> u64 {
        self.begun
    }
}

#[cfg(test)]
impl Watches {
    pub fn find(&self, what: &str) -> (Wish, u32) {
        let found = self.open.iter().find(|(wish, _)| wish.to_string() == what);
        found.map(|(wish, open)| (wish.clone(), open.by)).unwrap_or_else(|| panic!("nobody asks for {what}"))
    }
}

impl Open {
    fn end(self) -> u32 {
        self.stops.iter().for_each(Stop::stop);
        self.by
    }
}

impl std::fmt::Display for Wish {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.kind.plural())?;
        if let Kind::Told(Told::CalicoGlobalNetworkPolicy | Told::GlobalNetworkSet | Told::HostEndpoint) = self.kind {
            f.write_str(" of Calico")?;
        }
        for (before, what) in [(" of namespace ", &self.space), (" named ", &self.name), (" with ", &self.labels)] {
            if !what.is_empty() {
                write!(f, "{before}{what}")?;
            }
        }
        Ok(())
    }
}
