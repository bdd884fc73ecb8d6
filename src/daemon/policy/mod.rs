//! The loop that owns the network policies: it hears of the cluster and of the node's pods, works out what each pod may exchange with
//! whom, and has a renderer hold that in the kernel.
//!
//! A thread of its own, as Services have. Nothing is written before all that is needed is known, so that what an earlier life left
//! counts until then; a pod is admitted once its rules are in the kernel, whatever came meanwhile.

mod feed;
mod scout;
mod shelf;
mod told;
mod watches;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use serde_json::Value;
use smol::channel::Sender as Answer;

use super::node::Input;
use super::{meter, phases, threads};
use crate::cluster::Name;
use crate::config::PolicyRenderer;
use crate::error::Error;
use crate::heard::Heard;
use crate::kube;
use crate::peer::{Pod, namespace_of};
use crate::policy::{Here, Model};
use crate::rpc::{Reply, Request};
use crate::rules::{Counted, DIRECTIONS, Placed, Pods, Renderer, Write};
use crate::verdict::Sizes;
use feed::{Kind, Thing};
use shelf::Shelf;
use watches::Watches;

/// After the kernel has refused something, it is tried again after this long, doubling up to the second figure.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// A change that needs to know more waits no longer than this for it.
const HOLD: Duration = Duration::from_secs(2);
/// What is shown of us is not brought up to date more often than the first. The kernel is looked at no more often than the second: some
/// milliseconds of a CPU, whether there is news or not.
const SHOW: Duration = Duration::from_secs(1);
const COUNT: Duration = Duration::from_secs(15);

/// Who tells of pods beside the watches: the watch of this node's pods, and who was asked for one before that told of it.
const OWN: u32 = 1;
const ASKED: u32 = 2;

/// What reaches the loop.
pub enum News {
    Heard {
        by: u32,
        kind: Kind,
        heard: Heard<Thing>,
    },
    /// The server has no such kind.
    Absent {
        by: u32,
    },
    Trouble {
        by: u32,
        why: String,
        is_forbidden: bool,
    },
    /// The node knows where it is, and has told of its pods, seated for whoever enforces: from now on there may be rules.
    Begin {
        /// By which the node reaches its own pods.
        node: BTreeSet<IpAddr>,
        open: Open,
    },
    /// Policies are nobody's wish.
    End,
    /// Pods of this node, by the watch that the node has anyway.
    Own(Heard<Pod>),
    /// A pod that was asked for.
    Asked(Box<Pod>),
    /// A pod has this seat and these addresses, and waits to be admitted. Its links may be bare of programs: then it is to be told of once
    /// there is a policy for it.
    Placed {
        name: Name,
        placed: Placed,
        is_bare: bool,
    },
    /// A pod has none any more.
    Left(Name),
    /// What the renderer has counted; how often the kernel had been written to when that was asked.
    Counted(Counted, u64),
    Ask {
        request: Request,
        answer: Answer<Reply>,
    },
}

/// A renderer, and why it is this one.
pub struct Chosen {
    pub way: PolicyRenderer,
    pub why: String,
    /// Seats that an earlier life has given, which links may bear still.
    pub taken: BTreeSet<u16>,
    pub room: Sizes,
    pub renderer: Box<dyn Renderer>,
}

/// Finds a renderer, or says why there is none; asked until there is one. None: the node has it, seats its pods for it, and begins anew.
pub type Open = Box<dyn FnMut() -> Result<Option<Chosen>, Error> + Send>;

/// What the loop is started with.
pub struct Start {
    pub kube: Option<kube::Client>,
    pub node_name: String,
    pub inputs: Answer<Input>,
    /// Where it is written down who enforces, and why: people are told where that changes.
    pub note: PathBuf,
}

/// The way to tell the loop something.
#[derive(Clone)]
pub struct Ear(Sender<News>);

impl Ear {
    pub fn tell(&self, news: News) {
        // Where policies are nobody's wish, nobody hears.
        let _ = self.0.send(news);
    }
}

/// A loop that has not been started, and can be told things already.
pub struct Unborn {
    news: Sender<News>,
    arriving: Receiver<News>,
}

pub fn unborn() -> (Ear, Unborn) {
    let (news, arriving) = channel();
    (Ear(news.clone()), Unborn { news, arriving })
}

impl Unborn {
    /// Begins to ask what the policies say, which no rule comes of before [`News::Begin`].
    pub fn start(self, start: Start) {
        threads::start(move || Loop::new(start, self.news).run(&self.arriving));
    }
}

struct Loop {
    model: Model,
    watches: Watches,
    shelf: Shelf,
    node_name: String,
    inputs: Answer<Input>,
    /// None: the node is not known to be ready for rules, or not any more.
    open: Option<Open>,
    note: PathBuf,
    chosen: Option<Chosen>,
    /// The kernel holds what we believe.
    restored: bool,
    /// It did once: what is lost since goes back, whatever more there is to know.
    has_held: bool,
    /// The node's loop has been told that rules are in force.
    has_told: bool,
    pods: Pods,
    /// Pods that wait to be admitted, and seats that wait to be free.
    waiting: BTreeSet<Name>,
    leaving: BTreeSet<u16>,
    /// Pods whose links have no programs.
    bare: BTreeSet<Name>,
    /// All pods of this node have been told of once.
    knows_own: bool,
    /// What the renderer has not been told yet.
    held: Vec<Write>,
    /// Something may have changed, so that other things are needed.
    doubtful: bool,
    /// When what is held is written though more should be known.
    hold: Option<Instant>,
    complaint: Option<String>,
    retry: Option<Instant>,
    pause: Duration,
    show: Option<Instant>,
    count: Instant,
    writes: u64,
    /// How often the kernel was written to.
    acts: u64,
    /// Pods whose rules alone are not in the kernel, why that is, and when it is tried again.
    unheld: BTreeSet<Name>,
    lameness: Option<String>,
    again: Option<Instant>,
    /// What the renderer had counted the last time.
    figures: Value,
    /// Where that is told.
    news: Sender<News>,
    /// What working out has taken that is not written yet.
    compiling: Duration,
}

impl Loop {
    fn new(start: Start, news: Sender<News>) -> Loop {
        let here = Here { name: start.node_name.clone(), ..Here::default() };
        Loop {
            model: Model::new(here),
            watches: Watches::new(start.kube, news.clone(), ASKED),
            shelf: Shelf::default(),
            node_name: start.node_name,
            inputs: start.inputs,
            open: None,
            note: start.note,
            chosen: None,
            restored: false,
            has_held: false,
            has_told: false,
            pods: Pods::new(),
            waiting: BTreeSet::new(),
            leaving: BTreeSet::new(),
            bare: BTreeSet::new(),
            knows_own: false,
            held: Vec::new(),
            doubtful: true,
            hold: None,
            complaint: None,
            retry: None,
            pause: RETRY.0,
            show: Some(Instant::now()),
            count: Instant::now(),
            writes: 0,
            acts: 0,
            unheld: BTreeSet::new(),
            lameness: None,
            again: None,
            figures: Value::Null,
            news,
            compiling: Duration::ZERO,
        }
    }

    fn run(mut self, arriving: &Receiver<News>) {
        let mut heard: Option<Instant> = None;
        loop {
            let first = match arriving.recv_timeout(self.due().saturating_duration_since(Instant::now())) {
                Ok(news) => {
                    heard.get_or_insert_with(Instant::now);
                    Some(news)
                }
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return self.watches.end(),
            };
            // What came meanwhile is one change.
            for news in first.into_iter().chain(arriving.try_iter()) {
                if matches!(news, News::End) {
                    return self.watches.end();
                }
                self.hear(news, Instant::now());
            }
            let before = self.writes;
            self.turn(Instant::now());
            if self.held.is_empty() {
                let written = heard.take().filter(|_| self.writes != before);
                written.into_iter().for_each(|heard| meter::policies_written(heard.elapsed()));
            }
            if self.show.is_some_and(|at| at <= Instant::now()) {
                self.show_all();
            }
            if self.count <= Instant::now() {
                self.count();
            }
        }
    }

    fn due(&self) -> Instant {
        let due = [self.retry, self.again, self.show, self.hold, self.watches.due()];
        due.into_iter().flatten().fold(self.count, Instant::min)
    }

    // What is heard

    fn hear(&mut self, news: News, now: Instant) {
        match news {
            News::Heard { by, kind, heard } => {
                // What one that is over still had to tell would be kept for ever: it has been forgotten.
                let counts = match heard {
                    Heard::All(_) => self.watches.answered(by, kind),
                    Heard::One(_) | Heard::Gone(_) => self.watches.counts(by),
                };
                if !counts {
                    return;
                }
                self.take(by, kind, heard);
            }
            News::Absent { by } => {
                if let Some((kind, over)) = self.watches.absent(by, now) {
                    over.into_iter().for_each(|by| self.forget(by, kind));
                }
            }
            News::Trouble { by, why, is_forbidden } => {
                if let Some(what) = self.watches.trouble(by, why, is_forbidden) {
                    self.tell_forbidden(&what);
                }
            }
            News::Begin { node, open } => {
                self.model.stand_at(&node);
                self.open = Some(open);
            }
            // The loop's, which ends by it.
            News::End => {}
            News::Own(heard) => {
                self.knows_own |= matches!(heard, Heard::All(_));
                let heard = match heard {
                    Heard::All(all) => Heard::All(all.into_iter().map(Thing::Pod).collect()),
                    Heard::One(one) => Heard::One(Thing::Pod(one)),
                    Heard::Gone(name) => Heard::Gone(name),
                };
                self.doubtful = true;
                // Who was asked for one that never got its place is not told that it left.
                if let Heard::Gone(name) = &heard
                    && !self.pods.contains_key(name)
                {
                    self.take(ASKED, Kind::Pods, Heard::Gone(name.clone()));
                }
                self.take(OWN, Kind::Pods, heard);
            }
            News::Asked(pod) => {
                self.doubtful = true;
                self.take(ASKED, Kind::Pods, Heard::One(Thing::Pod(*pod)));
            }
            News::Placed { name, placed, is_bare } => self.place(name, placed, is_bare),
            News::Left(name) => self.leave(&name),
            News::Counted(counted, acts) => return self.note(counted, acts),
            // Of what is known by now, the rest of the queue may follow.
            News::Ask { request, answer } => drop(answer.try_send(self.answer(request))),
        }
        self.show.get_or_insert(now + SHOW);
    }

    /// What somebody else has changed is written anew, unless we have written since it was looked at.
    fn note(&mut self, Counted { figures, damage, is_stale }: Counted, acts: u64) {
        self.figures = figures;
        if (damage.is_some() || is_stale) && acts == self.acts && self.restored {
            self.restored = false;
            match damage {
                Some(what) => self.tell_damaged(&what),
                None => log::info!(
                    "kube-proxy has other sets for IPVS than before: chains of network policies are written anew"
                ),
            }
        }
        self.show_all();
    }

    fn take(&mut self, by: u32, kind: Kind, heard: Heard<Thing>) {
        self.shelf.take(by, kind, heard).into_iter().for_each(|heard| self.know(kind, heard));
    }

    fn forget(&mut self, by: u32, kind: Kind) {
        self.shelf.forget(by, kind).into_iter().for_each(|heard| self.know(kind, heard));
    }

    fn know(&mut self, kind: Kind, heard: Heard<Thing>) {
        // Pods elsewhere come and go all the time, and ask for nothing.
        self.doubtful |= !matches!(kind, Kind::Pods | Kind::Nodes);
        match kind {
            Kind::Told(told) => {
                self.model.hear(told, of(heard, |t| if let Thing::Document(d) = t { Some(d) } else { None }))
            }
            Kind::Pods => self.model.hear_pods(of(heard, |t| if let Thing::Pod(p) = t { Some(p) } else { None })),
            Kind::Namespaces => {
                self.model.hear_namespaces(of(heard, |t| if let Thing::Namespace(n) = t { Some(n) } else { None }));
            }
            Kind::Accounts => {
                self.model.hear_accounts(of(heard, |t| if let Thing::Account(a) = t { Some(a) } else { None }));
            }
            Kind::Nodes => self.model.hear_nodes(of(heard, |t| if let Thing::Node(n) = t { Some(n) } else { None })),
        }
    }

    fn place(&mut self, name: Name, placed: Placed, is_bare: bool) {
        let whose = if is_bare { &mut self.bare } else { &mut self.waiting };
        whose.insert(name.clone());
        if self.pods.get(&name) == Some(&placed) {
            return;
        }
        self.model.give(&name, Some(placed.ips.clone()));
        self.leaving.remove(&placed.seat);
        self.pods.insert(name.clone(), placed);
        // What renderers know of a pod they look up anew.
        self.held.push(Write::Pod(name.clone(), self.model.rules().pods.get(&name).copied()));
    }

    fn leave(&mut self, name: &Name) {
        self.waiting.remove(name);
        self.bare.remove(name);
        let Some(placed) = self.pods.remove(name) else { return };
        self.leaving.insert(placed.seat);
        self.model.give(name, None);
        self.take(ASKED, Kind::Pods, Heard::Gone(name.clone()));
        self.held.push(Write::Pod(name.clone(), self.model.rules().pods.get(name).copied()));
    }

    // What is done

    fn turn(&mut self, now: Instant) {
        for (kind, by) in self.watches.tend(now) {
            self.forget(by, kind);
        }
        if self.open.is_some() {
            self.compile(now);
        }
        if std::mem::take(&mut self.doubtful) {
            self.watches.want(&self.model.needs(), now);
        }
        let is_complete = self.is_complete();
        // What is past and cannot be done is not waited for any longer: it is done once it can be.
        self.retry.take_if(|at| *at <= now);
        let is_due = match (is_complete, self.restored) {
            (true, _) => true,
            (false, true) if !self.held.is_empty() => *self.hold.get_or_insert(now + HOLD) <= now,
            (false, true) => false,
            (false, false) => self.has_held,
        };
        if is_due && self.retry.is_none() {
            self.act(now);
        }
        self.hold.take_if(|at| *at <= now || is_complete);
        self.again.take_if(|at| *at <= now).into_iter().for_each(|_| self.again = Some(now + RETRY.1));
        if is_complete && self.restored {
            let due: Vec<Name> = self.bare.iter().filter(|name| self.has_rules(name)).cloned().collect();
            for name in due {
                self.bare.remove(&name);
                self.waiting.insert(name);
            }
        }
        if is_complete && (!self.has_told || !self.waiting.is_empty() || !self.leaving.is_empty()) {
            self.admit();
        }
    }

    fn compile(&mut self, now: Instant) {
        let begun = Instant::now();
        let changes = self.model.changes();
        self.compiling += begun.elapsed();
        // What restores writes all there is.
        if self.restored {
            self.held.extend(changes.writes);
        } else {
            self.held.clear();
            // It may be what helps, where something was too large.
            if !changes.writes.is_empty() {
                self.retry = self.retry.map(|at| at.min(now + RETRY.0));
            }
        }
        changes.refused.iter().for_each(|refused| self.tell_refused(refused));
    }

    /// A policy says something of the pod.
    fn has_rules(&self, name: &Name) -> bool {
        let rules = self.model.rules();
        let sets = rules.pods.get(name).map(|sets| DIRECTIONS.map(|direction| sets.of(direction)));
        let says = |id| rules.sets.get(&id).is_some_and(|set| !set.rules.tiers.is_empty());
        sets.is_some_and(|sets| sets.into_iter().any(says))
    }

    /// A namespace whose policies may not be read keeps its own new pods out and no others; pods of it that run go on by what holds, which
    /// a new life does not know.
    fn is_complete(&self) -> bool {
        let would_open = |space: &str| !self.has_held && self.pods.keys().any(|name| namespace_of(name) == space);
        self.open.is_some() && self.knows_own && self.watches.is_complete() && !self.watches.barred().any(would_open)
    }

    /// Has the kernel hold what is wanted.
    fn act(&mut self, now: Instant) {
        let is_again = self.again.take_if(|at| *at <= now).is_some();
        if self.restored && self.held.is_empty() && !is_again {
            return;
        }
        match self.choose() {
            Ok(true) => {}
            Ok(false) => return,
            Err(e) => return self.fail(&e),
        }
        self.acts += 1;
        let (begun, is_first) = (Instant::now(), !self.restored);
        let (count, compiled) = (self.held.len(), std::mem::take(&mut self.compiling));
        match self.write() {
            Ok(()) => {
                self.has_held = true;
                self.writes += count as u64;
                if is_first {
                    // Not in the way of the ADDs that have waited for it.
                    self.count = now + SHOW;
                    phases::reached("pods are held to their policies");
                    let compiled = compiled.as_millis();
                    let written = begun.elapsed().as_millis();
                    let pods = self.pods.len();
                    log::info!(
                        "policies of {pods} pods are in force: compiled in {compiled} ms, written in {written} ms"
                    );
                }
                if self.complaint.take().is_some() {
                    log::info!("network policies are enforced again");
                }
                self.pause = RETRY.0;
                if self.chosen.as_mut().is_some_and(|chosen| chosen.renderer.has_renewed()) {
                    let _ = self.inputs.send_blocking(Input::Renewed);
                }
                self.note_unheld();
                let (compiled, written) = (compiled.as_micros(), begun.elapsed().as_micros());
                log::debug!("{count} writes of policies: worked out in {compiled} us, written in {written} us");
            }
            Err(e) => self.fail(&e),
        }
    }

    fn fail(&mut self, e: &Error) {
        self.restored = false;
        self.show = Some(Instant::now());
        self.retry = Some(Instant::now() + self.pause);
        self.complain(e);
        self.pause = (self.pause * 2).min(RETRY.1);
    }

    /// Whether there is a renderer to write by.
    fn choose(&mut self) -> Result<bool, Error> {
        if self.chosen.is_none()
            && let Some(open) = &mut self.open
        {
            match open()? {
                Some(chosen) => {
                    self.tell_choice(&chosen);
                    self.chosen = Some(chosen);
                }
                None => self.open = None,
            }
        }
        Ok(self.chosen.is_some())
    }

    /// Who is not held though all others are waits for it alone.
    fn note_unheld(&mut self) {
        match self.chosen.as_ref().and_then(|chosen| chosen.renderer.unheld()) {
            Some((pods, e)) => {
                self.unheld = pods.into_iter().collect();
                self.again.get_or_insert(Instant::now() + RETRY.1);
                self.tell_unheld(&e);
            }
            None => {
                self.unheld.clear();
                (self.lameness, self.again) = (None, None);
            }
        }
    }

    fn write(&mut self) -> Result<(), Error> {
        let held = std::mem::take(&mut self.held);
        let Some(Chosen { renderer, .. }) = &mut self.chosen else { return Ok(()) };
        let (rules, pods) = (self.model.rules(), &self.pods);
        match std::mem::replace(&mut self.restored, true) {
            true => renderer.apply(&held, rules, pods),
            false => renderer.restore(rules, pods),
        }
    }

    /// Tells the node's loop whose rules are in the kernel, or why not, and whose are there no more.
    fn admit(&mut self) {
        let result = match &self.complaint {
            Some(why) => Err(format!("network policies cannot be enforced: {why}")),
            None if self.restored => Ok(()),
            None => return,
        };
        let known = &self.model.rules().pods;
        let barred: BTreeSet<&str> = self.watches.barred().collect();
        let is_held = |name: &Name| known.contains_key(name) && !self.unheld.contains(name);
        let is_due = |name: &Name| result.is_err() || is_held(name) && !barred.contains(namespace_of(name));
        let pods: Vec<Name> = self.waiting.extract_if(.., |name| is_due(name)).collect();
        let seats = if result.is_ok() { std::mem::take(&mut self.leaving) } else { BTreeSet::new() };
        // What another way has left goes then, whether or not anybody waits.
        let is_first = result.is_ok() && !std::mem::replace(&mut self.has_told, true);
        if is_first || !pods.is_empty() || !seats.is_empty() {
            let _ = self.inputs.send_blocking(Input::Admitted { pods, seats, result });
        }
    }

    fn show_all(&mut self) {
        self.show = None;
        let _ = self.inputs.send_blocking(Input::Policies(self.shown()));
    }

    /// Meanwhile changes are written.
    fn count(&mut self) {
        self.count = Instant::now() + COUNT;
        let Some(tally) = self.chosen.as_ref().and_then(|chosen| chosen.renderer.tally()) else { return };
        let (news, acts) = (self.news.clone(), self.acts);
        threads::start(move || match tally() {
            Ok(counted) => drop(news.send(News::Counted(counted, acts))),
            Err(e) => log::warn!("what network policies have counted is not known: {e}"),
        });
    }

    /// What keeps pods from being admitted.
    fn lack(&self) -> Option<String> {
        if !self.knows_own {
            return Some("the pods of this node have not been heard of from the API server".into());
        }
        self.watches.lack().or_else(|| self.complaint.clone()).or_else(|| self.lameness.clone())
    }
}

fn of<T>(heard: Heard<Thing>, pick: fn(Thing) -> Option<T>) -> Heard<T> {
    match heard {
        Heard::All(all) => Heard::All(all.into_iter().filter_map(pick).collect()),
        Heard::One(one) => pick(one).map_or(Heard::All(Vec::new()), Heard::One),
        Heard::Gone(name) => Heard::Gone(name),
    }
}

/// As the model calls a pod.
pub fn name_of(pod: &crate::pod::PodName) -> Name {
    Arc::from(format!("{}/{}", pod.namespace, pod.name))
}
