//! The loop that owns the pool, the ledger and the replies that wait: events in, effects out, one after the other.

mod conf;
mod ipvlan;
mod own;
mod policies;
mod repair;
mod services;
mod shape;
mod upkeep;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::time::{Duration, SystemTime};

use smol::channel::{Receiver, Sender};
use smol::future;

use self::ipvlan::Slaves;
pub use self::ipvlan::take_out;
pub use self::repair::Compared;
use self::repair::Wires;
use super::eni::{self, Job};
use super::layers::Layers;
use super::ledger::{Ledger, Resting};
use super::legacy::Legacy;
use super::lobby::Heard;
use super::meter::Counted;
use super::pods::{Known, Pods, Presence, Standing};
use super::reactor::Timer;
use super::sticky::Sticky;
use super::world::World;
use super::{calls, clock, guard, phases};
use crate::cluster::Name;
use crate::config::Mode;
use crate::datapath;
use crate::eni::{Eni, Fault};
use crate::error::{Context, Error};
use crate::gather::Gather;
use crate::happening::Happening;
use crate::herald::{Herald, Outcome as Written};
use crate::ip::{IpPair, Mac};
use crate::kernel::{self, Kernel, Look, OldPod};
use crate::object::{self, ConfigMap};
use crate::ours;
use crate::peer::Own;
use crate::plan::{Plan, Rule, RuleAction};
use crate::pod::{Attachment, PodName, Sandbox};
use crate::pool::{Boot, Call, CallId, Effect, Event, Held, Link, Notice, Now, Outcome, Pool, Refused, Ticket};
use crate::rate::{Both, Limit, Limits};
use crate::repair::{Part, Repair};
use crate::rpc::{EniLease, Lease, Refusal, Reply, Request, Whole, Wiring, Wish};
use conf::Conf;
use policies::Guarded;

/// An ADD is answered within this time, well before the runtime gives up (the kubelet: two minutes).
const ADD_DEADLINE: Duration = Duration::from_secs(90);
/// Links whose attachment is over are deleted together, this long after the last DEL: one RCU grace period for all of
/// them, and most are gone by then because their namespace is.
const SWEEP_AFTER: Duration = Duration::from_millis(250);

/// What was wired before is guarded so long after the start, and the first look at everything comes then: who wants an address
/// when we start goes first.
const GUARD_AFTER: Duration = Duration::from_millis(50);
const FIRST_ROUND: Duration = Duration::from_millis(200);

/// What reaches the loop.
pub enum Input {
    Ask {
        request: Request,
        answer: Sender<Reply>,
    },
    Done {
        call: CallId,
        result: Result<Outcome, Fault>,
    },
    Prepared {
        eni: String,
        result: Result<EniLease, Error>,
    },
    Pods(Known),
    /// Our own node object as it is now; none where the API server has none of our name.
    OwnNode(Option<Box<object::Node>>),
    /// What became of what the herald had written.
    Written(Written),
    Fetched {
        pod: PodName,
        result: Result<Option<Box<Own>>, Error>,
    },
    /// What the configuration file says now, or why it cannot be read.
    File(Result<Vec<u8>, Error>),
    /// The ConfigMap of this name, which the node's label named; none where there is none.
    NodeConfig {
        name: String,
        found: Option<Box<ConfigMap>>,
    },
    /// Somebody collects numbers.
    Count {
        answer: Sender<Counted>,
    },
    /// Something that people shall read with the object that it is about.
    Tell(Box<object::Event>),
    /// What is to be shown of the Services.
    Services(serde_json::Value),
    /// What is to be shown of network policies.
    Policies(serde_json::Value),
    /// The rules of these pods are in the kernel, or why they are not; nothing there knows these seats any more.
    Admitted {
        pods: Vec<Name>,
        seats: BTreeSet<u16>,
        result: Result<(), String>,
    },
    /// The links of these attachments are deleted.
    Swept {
        owners: BTreeSet<Attachment>,
    },
    /// The daemon is to end.
    End,
    /// Who was given a lease has hung up: the pod is wired, or will not be.
    Wired {
        attachment: Attachment,
    },
    Happened(Vec<Happening>),
    /// Of the pods that were compared, those that are not as their plans have them.
    Compared(Vec<Attachment>),
    /// The kernel holds the attachment to this bandwidth, or does not.
    Shaped {
        attachment: Attachment,
        bandwidth: Both<Limit>,
        result: Result<(), Error>,
    },
}

/// An ADD that has not been answered.
struct Waiting {
    answer: Sender<Reply>,
    pod: PodName,
    sandbox: Sandbox,
    limits: Limits,
    wish: Wish,
    deadline: Now,
}

pub struct Node {
    world: World,
    conf: Conf,
    pool: Pool,
    ledger: Ledger,
    /// When this life began; what the last look at all ENIs has shown, and those that were made since.
    turn: SystemTime,
    seen: Vec<Eni>,
    sticky: Sticky,
    kernel: Kernel,
    pods: Pods,
    /// Our node object as the watch told of it last, and what is said of us there.
    own: Option<Box<object::Node>>,
    herald: Herald,
    /// Who looks after the Services, if anybody does, and whether that one does not know all pods yet.
    ear: Option<guard::Ear>,
    untold: bool,
    /// What is shown of them.
    services: serde_json::Value,
    /// Something has moved since the herald was last asked what to write.
    stirred: bool,
    /// When it was asked, and when it is to be asked again though nothing moves.
    spoke: Now,
    speak: Option<Now>,
    /// The kubelet's max-pods and the addresses there can be, as they were compared last.
    compared: Option<(u64, u32)>,
    /// Pods that were told why they had no address.
    complained: BTreeSet<PodName>,
    /// Why the last lease could not be written down.
    unwritten: Option<String>,
    /// How far the cloud's clock was ahead of ours when a person was told.
    skew: i64,
    /// What effects bring about at once; heard after them.
    events: VecDeque<Event>,
    leases: BTreeMap<Attachment, Lease>,
    /// ENIs whose link is set up, and the slot of every ENI that has or had one.
    enis: BTreeMap<String, EniLease>,
    slots: BTreeMap<String, u32>,
    /// What the links of ENIs were called that come home.
    homes: BTreeMap<String, String>,
    /// ADDs that the pool knows, and those that still wait for their pod to be fetched.
    waiting: BTreeMap<Ticket, Waiting>,
    unknown: BTreeMap<PodName, Vec<Waiting>>,
    last_ticket: Ticket,
    wake: Option<Now>,
    /// When leftovers are looked for next, and when the kernel is next compared with the plans.
    sweep: Now,
    mend: Now,
    /// When all pods are next compared with their plans.
    compare: Now,
    repair: Repair,
    wires: Wires,
    /// When repairs begin, and the kernel as it was when we started, which they begin from; none once they have begun.
    begin: Option<(Now, Look)>,
    /// Attachments whose links are being deleted, and ADDs of the same attachments: they come after that.
    sweeping: BTreeSet<Attachment>,
    returning: Vec<Waiting>,
    /// Sandboxes whose host link was seen to be another's, and since when.
    superseded: BTreeMap<Attachment, Now>,
    /// Veths of ours without an alias, by index: their ADD was cut off, or is under way.
    unsigned: BTreeSet<u32>,
    /// Attachments whose bandwidth is being changed.
    shaping: BTreeSet<Attachment>,
    slaves: Slaves,
    guarded: Guarded,
}

/// What boot found that the loop goes on from.
pub struct Found {
    pub boot: Boot,
    pub sticky: Sticky,
    pub layers: Layers,
    pub leases: Vec<Lease>,
    pub slots: BTreeMap<String, u32>,
    pub herald: Herald,
    pub heard: Heard,
    pub look: Look,
    /// When this life began.
    pub turn: SystemTime,
}

impl Node {
    pub fn new(world: World, ledger: Ledger, kernel: Kernel, found: Found) -> Node {
        let slaves = Slaves::of(found.leases.iter());
        let mut node = Node {
            world,
            conf: Conf::new(found.layers),
            pool: Pool::new(fastrand::u64(..)),
            ledger,
            turn: found.turn,
            seen: found.boot.enis.clone(),
            sticky: found.sticky,
            kernel,
            pods: found.heard.pods,
            own: None,
            herald: found.herald,
            ear: None,
            untold: false,
            services: serde_json::Value::Null,
            stirred: true,
            spoke: Now::ZERO,
            speak: None,
            compared: None,
            complained: BTreeSet::new(),
            unwritten: None,
            skew: 0,
            events: VecDeque::new(),
            leases: found.leases.into_iter().map(|l| (l.sandbox.attachment.clone(), l)).gather(),
            enis: BTreeMap::new(),
            slots: found.slots,
            homes: BTreeMap::new(),
            waiting: BTreeMap::new(),
            unknown: BTreeMap::new(),
            last_ticket: 0,
            wake: None,
            sweep: clock::now() + FIRST_ROUND,
            sweeping: BTreeSet::new(),
            returning: Vec::new(),
            superseded: BTreeMap::new(),
            unsigned: BTreeSet::new(),
            shaping: BTreeSet::new(),
            slaves,
            guarded: Guarded::default(),
            mend: clock::now() + FIRST_ROUND,
            compare: clock::now() + FIRST_ROUND,
            begin: Some((clock::now() + GUARD_AFTER, found.look)),
            repair: Repair::default(),
            wires: Wires::default(),
        };
        node.feed(Event::Boot(Box::new(found.boot)));
        // From now on it is old; and by its links alone repairs begin.
        node.kernel.look_again();
        phases::reached("the pool knows what there is");
        if let Some(own) = found.heard.own {
            node.see_own_node(own);
        }
        node
    }

    /// The configuration in force.
    pub fn layers(&self) -> &Layers {
        self.conf.layers()
    }

    /// Runs until it is told to end, or dropped. What is under way then is left as it is: the next life finds it again. Those who have been
    /// waiting are heard first.
    pub async fn run(mut self, waiting: Vec<Input>, inputs: Receiver<Input>) {
        for input in waiting {
            self.take(input);
            // What it brought about is on its way before anything else is done.
            future::yield_now().await;
        }
        phases::reached("those who have been waiting are answered");
        loop {
            let input = future::or(async { inputs.recv().await.ok() }, async {
                self.next_due().await;
                None
            })
            .await;
            if matches!(input, Some(Input::End)) {
                return self.leave();
            }
            if let Some(input) = input {
                self.take(input);
                // An answer is on its way before anything else is done.
                future::yield_now().await;
            }
            self.do_what_is_due();
        }
    }

    /// Leaves to the next life what it can go by until it has looked itself, where that is certain.
    fn leave(&self) {
        let Some(will) = self.pool.will(&self.seen) else { return };
        let (asked, vswitches) = (self.world.place.vswitches.clone(), self.world.vswitches.values().cloned().collect());
        let legacy = Legacy::new(self.turn, self.world.terms.clone(), asked, vswitches, will);
        self.noted("what the next life can go by", legacy.and_then(|legacy| legacy.leave(&self.ledger)));
    }

    fn next_due(&self) -> impl Future<Output = ()> + use<> {
        let deadlines = self.unknown.values().flatten().map(|w| w.deadline).chain(self.guarded.deadlines());
        let sweep = self.sweeping.is_empty().then_some(self.sweep);
        let fixed = self.mend.min(self.compare);
        let begin = self.begin.as_ref().map(|(at, _)| *at);
        let speak = if self.stirred { Some(self.spoke + own::BREATH) } else { self.speak };
        let others = [begin, self.repair.due(), self.next_look(), speak].into_iter().flatten();
        let due = deadlines.chain(self.wake).chain(sweep).chain(others).fold(fixed, Now::min);
        let wait = due.saturating_sub(clock::now());
        async move {
            Timer::after(wait).await;
        }
    }

    fn take(&mut self, input: Input) {
        // What our own ADDs do in the kernel is most of what is heard, and moves nothing that others see.
        self.stirred |=
            !matches!(input, Input::Happened(_) | Input::Wired { .. } | Input::Compared(_) | Input::Count { .. });
        match input {
            Input::Ask { request, answer } => self.ask(request, answer),
            Input::Done { call, result } => self.done(call, result),
            Input::Prepared { eni, result } => self.prepared(eni, result),
            Input::Pods(known) => {
                self.pods.take(known, clock::now());
                self.hear_of_bandwidth();
            }
            Input::OwnNode(node) => self.see_own_node(node),
            Input::Written(outcome) => self.herald.done(clock::now(), outcome),
            Input::Fetched { pod, result } => self.fetched(pod, result),
            Input::File(text) => self.file_changed(text),
            Input::NodeConfig { name, found } => self.node_config_changed(&name, found.as_deref()),
            Input::Count { answer } => drop(answer.try_send(self.count())),
            Input::Tell(event) => self.herald.hear(clock::now(), *event),
            Input::Services(shown) => self.services = shown,
            Input::Policies(shown) => self.guarded.shown = shown,
            Input::Admitted { pods, seats, result } => self.admitted(&pods, &seats, &result),
            Input::Swept { owners } => self.swept(&owners),
            // Whoever runs the loop ends it.
            Input::End => {}
            Input::Wired { attachment } => self.wired(&attachment),
            Input::Happened(heard) => self.happened(heard),
            Input::Compared(hurt) => self.compared(hurt),
            Input::Shaped { attachment, bandwidth, result } => self.shaped(&attachment, bandwidth, result),
        }
    }

    fn do_what_is_due(&mut self) {
        let now = clock::now();
        if self.wake.is_some_and(|at| at <= now) {
            self.wake = None;
            self.forget_those_who_hung_up();
            self.feed(Event::Tick);
        }
        self.refuse_unknown(now);
        self.refuse_unguarded(now);
        if self.begin.as_ref().is_some_and(|(at, _)| *at <= now) {
            self.begin_repairs();
        }
        self.look_at_the_unheard(now);
        self.keep_up(now);
        self.repair_what_is_due(clock::now());
        self.speak(clock::now());
        self.tell_pods();
    }

    fn ask(&mut self, request: Request, answer: Sender<Reply>) {
        let reply = match request {
            Request::Allocate { pod, sandbox, limits, wish } => {
                let deadline = clock::now() + ADD_DEADLINE;
                return self.allocate(Waiting { answer, pod, sandbox, limits, wish, deadline });
            }
            Request::Release { attachment } => self.release(&attachment),
            Request::Lease { attachment } => match self.leases.get(&attachment) {
                Some(lease) => Reply::Lease(Box::new(lease.clone())),
                None => Reply::None {},
            },
            Request::Find { pod, ifname, netns } => match self.unnamed(&pod, &ifname, netns.as_deref()) {
                Some(lease) => Reply::Lease(Box::new(lease)),
                None => Reply::None {},
            },
            Request::Gc { valid } => self.collect(&valid),
            Request::Status {} => self.status(),
            Request::Show {} => Reply::Show(self.show()),
            Request::Why(_) | Request::Whys(_) | Request::Rules { .. } => return self.ask_policies(request, answer),
            Request::Services { matching } => return self.ask_services(matching, answer),
        };
        let _ = answer.try_send(reply);
    }

    /// A full node is ready: the runtime would take "no" for a broken network, and Kubernetes would move its pods away.
    fn status(&mut self) -> Reply {
        if self.unwritten.is_some() {
            self.keep_in_mind(self.ledger.probe());
        }
        if let Some(why) = &self.unwritten {
            return refusal(local(why));
        }
        match self.pool.ready() {
            Err(refused) if refused.why != Refusal::NodeFull => refusal(refused),
            _ => Reply::Ready {},
        }
    }

    // ADD

    /// The watch may still tell of an earlier pod of the name, which is over: then too the API server is asked.
    fn allocate(&mut self, waiting: Waiting) {
        if self.sweeping.contains(&waiting.sandbox.attachment) {
            return self.returning.push(waiting);
        }
        self.identify(waiting);
    }

    fn identify(&mut self, waiting: Waiting) {
        match self.pods.find(&waiting.pod) {
            Some(Presence::Ours) => self.enqueue(waiting),
            _ => self.fetch(waiting.pod.clone()).push(waiting),
        }
    }

    /// Asks the API server for a pod, once at a time, whoever waits for the answer.
    fn fetch(&mut self, pod: PodName) -> &mut Vec<Waiting> {
        self.unknown.entry(pod).or_insert_with_key(|pod| {
            self.world.fetch_pod(pod.clone());
            Vec::new()
        })
    }

    fn fetched(&mut self, pod: PodName, result: Result<Option<Box<Own>>, Error>) {
        let here = result.map(|found| found.filter(|own| !self.pods.is_elsewhere(&own.served, &self.world.node_name)));
        let result = here.map(|found| found.map(|own| self.learn(*own)));
        self.hear_of_bandwidth();
        if let Ok(None) = result {
            self.pods.confirm_gone(&pod, clock::now());
        }
        for waiting in self.unknown.remove(&pod).unwrap_or_default() {
            match &result {
                Ok(Some(presence)) => self.admit(waiting, *presence),
                Ok(None) => {
                    let reason = format!("the API server knows no pod {pod} on node {}", self.world.node_name);
                    waiting.refuse(Refusal::NotOurs, reason);
                }
                // It had an address when the API server was there: it is ours.
                Err(_) if self.leases.values().any(|lease| lease.pod == pod) => self.enqueue(waiting),
                Err(e) => waiting.refuse(Refusal::ApiDown, format!("pod {pod} is not known yet: {e}")),
            }
        }
    }

    fn refuse_unknown(&mut self, now: Now) {
        for queue in self.unknown.values_mut() {
            for late in queue.extract_if(.., |w| w.deadline <= now) {
                let reason = format!("the API server did not tell of pod {} in time", late.pod);
                late.refuse(Refusal::ApiDown, reason);
            }
        }
    }

    fn admit(&mut self, waiting: Waiting, presence: Presence) {
        let why = match presence {
            Presence::Ours => return self.enqueue(waiting),
            Presence::NotOurs => "is on the host network or labelled to be ignored",
            Presence::Over => "is over",
        };
        let reason = format!("pod {} {why}", waiting.pod);
        waiting.refuse(Refusal::NotOurs, reason);
    }

    /// Who has hung up by now is not served: the DEL that follows may have been heard already.
    fn enqueue(&mut self, waiting: Waiting) {
        if waiting.answer.is_closed() {
            return;
        }
        self.last_ticket += 1;
        let ticket = self.last_ticket;
        let event = Event::Allocate {
            ticket,
            pod: waiting.pod.clone(),
            sandbox: waiting.sandbox.clone(),
            whole: self.pods.wants_whole(&waiting.pod),
            deadline: waiting.deadline,
        };
        self.waiting.insert(ticket, waiting);
        self.feed(event);
    }

    fn forget_those_who_hung_up(&mut self) {
        let gone: Vec<Ticket> = self.waiting.iter().filter(|(_, w)| w.answer.is_closed()).map(|(t, _)| *t).collect();
        for ticket in gone {
            self.waiting.remove(&ticket);
            self.feed(Event::Forget { ticket });
        }
    }

    fn reply(&mut self, ticket: Ticket, result: Result<Held, Refused>) {
        let Some(Waiting { answer, pod, limits, deadline, .. }) = self.waiting.remove(&ticket) else { return };
        let lease = result.and_then(|held| {
            let lease = self.lease_for(&held, limits);
            lease.ok_or_else(|| local("the lease could not be written down; see the daemon's log"))
        });
        match lease {
            Ok(lease) => self.hold(answer, lease, deadline),
            Err(refused) => {
                log::warn!("add {pod}: {}", refused.reason);
                if refused.why == Refusal::Local {
                    let message = refused.reason.clone();
                    self.tell(Notice { pod: Some(pod), warning: true, reason: "AllocIPFailed", message });
                }
                let _ = answer.try_send(refusal(refused));
            }
        }
    }

    fn give(&mut self, answer: &Sender<Reply>, lease: Lease) {
        let (pod, ip) = (lease.pod.clone(), lease.ip);
        let _ = answer.try_send(Reply::Lease(Box::new(lease)));
        self.make_up(&pod, ip);
    }

    // DEL and GC

    /// Takes the attachment out of the routing table, then frees its address; its link goes with the next sweep.
    fn release(&mut self, attachment: &Attachment) -> Reply {
        let Some(lease) = self.leases.get(attachment) else {
            self.call_off(attachment);
            return Reply::None {};
        };
        let lease = lease.clone();
        if let Err(e) = self.unroute(&lease) {
            log::error!("del {}: {e}", lease.pod);
            return refusal(local(&e.to_string()));
        }
        let whole = lease.is_inside();
        self.unmask(&lease);
        self.unguard_pod(attachment);
        self.forget_lease(attachment);
        let attachment = attachment.clone();
        self.feed(if lease.sticky { Event::Reserve { attachment } } else { Event::Release { attachment } });
        self.sweep = self.sweep.min(clock::now() + SWEEP_AFTER);
        Reply::Released { whole }
    }

    fn forget_lease(&mut self, attachment: &Attachment) -> Option<Lease> {
        let lease = self.leases.remove(attachment)?;
        self.vacate(&lease);
        self.direct();
        self.untold = true;
        if let Wiring::Whole(whole) = &lease.wiring {
            self.homes.insert(lease.eni.id.clone(), whole.home.clone());
        }
        Some(lease)
    }

    /// Nothing is sent to the pod any more.
    fn unroute(&mut self, lease: &Lease) -> Result<(), Error> {
        if lease.untouched().is_none() {
            return self.kernel.undo(&datapath::routes(lease));
        }
        let attachment = &lease.sandbox.attachment;
        let veth = ours::unnamed_link(attachment)
            .map_or_else(|| ours::host_veth(&lease.pod, &attachment.ifname), str::to_owned);
        let mut ips = lease.ip.iter();
        ips.try_for_each(|ip| self.kernel.clear_old(&OldPod { ip, veth: &veth, table: None }, &Plan::default()))
    }

    /// An ADD that waits although its attachment is deleted (the runtime gave up) is never served.
    fn call_off(&mut self, attachment: &Attachment) {
        let deleted = |w: &mut Waiting| w.sandbox.attachment == *attachment;
        let queues = self.unknown.values_mut().chain([&mut self.returning]);
        for late in queues.flat_map(|queue| queue.extract_if(.., deleted)) {
            late.refuse(Refusal::BadRequest, format!("{attachment} was deleted while its ADD waited"));
        }
        self.feed(Event::Release { attachment: attachment.clone() });
    }

    /// One that cannot be released does not keep the others.
    fn collect(&mut self, valid: &BTreeSet<Attachment>) -> Reply {
        // The runtime's name for one that we have no name for may be among them.
        let is_stale = |a: &&Attachment| !valid.contains(a) && ours::unnamed_link(a).is_none();
        let stale: Vec<Attachment> = self.leases.keys().filter(is_stale).cloned().collect();
        let mut reply = Reply::None {};
        for attachment in &stale {
            log::info!("gc: {attachment} is not among the valid attachments");
            if let refused @ Reply::Refused { .. } = self.release_unasked(attachment) {
                reply = refused;
            }
        }
        self.sweep = clock::now();
        reply
    }

    // The pool's effects

    /// Every effect of an event is carried out before the next event is heard.
    fn feed(&mut self, event: Event) {
        self.events.push_back(event);
        self.stirred = true;
        while let Some(event) = self.events.pop_front() {
            for effect in self.pool.step(clock::now(), event) {
                log::debug!("{effect:?}");
                self.carry_out(effect);
            }
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Intend(intent) => self.noted("intent", self.ledger.intend(&intent)),
            Effect::Settled { token } => self.noted("intent", self.ledger.settled(&token)),
            Effect::Call { id, call } => self.call(id, call),
            Effect::Record(held) => self.record(held),
            Effect::Retire { attachment, eni, ip, until, reserved } => {
                self.end(&attachment);
                self.keep(&eni, ip, until, reserved.as_ref());
                let resting = Resting::new(eni, ip, until, reserved);
                self.noted("lease", self.ledger.retire(&attachment, &resting));
            }
            Effect::Rested { ip, .. } => {
                self.noted("resting address", self.ledger.rested(&ip));
                // The pod that it was kept for may have it by now.
                if !self.leases.values().any(|lease| lease.ip == ip && lease.sticky) {
                    self.keep("", ip, Now::ZERO, None);
                }
            }
            Effect::Reply { ticket, result } => self.reply(ticket, result),
            Effect::Prepare { eni, mac, vswitch } => {
                let home = self.homes.get(&eni).cloned();
                self.prepare(Job { eni, mac, vswitch, home });
            }
            Effect::Dismantle { eni, mac } => self.dismantle(&eni, mac),
            Effect::Tell(notice) => self.tell(notice),
            Effect::Wake { at } => self.wake = Some(at),
        }
    }

    /// On disk, since a reboot takes the ledger: these addresses are for the next pod of the name, or for nobody in particular.
    fn keep(&mut self, eni: &str, ip: IpPair, until: Now, pod: Option<&PodName>) {
        let noted = match pod {
            Some(pod) => self.sticky.reserve(pod, eni, ip, until.saturating_sub(clock::now())),
            None => self.sticky.free(ip),
        };
        self.noted("address kept for a pod", noted);
    }

    fn noted(&self, what: &str, result: Result<(), Error>) {
        if let Err(e) = result {
            log::error!("{what}: {e}");
        }
    }

    /// A lease that cannot be written down is not given: the reply that follows finds none and refuses.
    fn record(&mut self, held: Held) {
        let attachment = held.sandbox.attachment.clone();
        let lease = self.lease(held).and_then(|lease| self.ledger.record(&lease).map(|()| lease));
        match lease {
            Ok(lease) => {
                self.keep_in_mind(Ok(()));
                if lease.sticky {
                    let held = self.sticky.hold(&lease.pod, &lease.eni.id, lease.ip);
                    self.noted("address kept for a pod", held);
                }
                self.will_be_wired(&attachment);
                self.leases.insert(attachment, lease);
                self.direct();
                self.untold = true;
            }
            Err(e) => {
                self.keep_in_mind(Err(e.clone()));
                log::error!("lease of {attachment}: {e}");
                self.end(&attachment);
                self.events.push_back(Event::Release { attachment });
            }
        }
    }

    /// Whether leases can be written down: without that there are none to give.
    fn keep_in_mind(&mut self, written: Result<(), Error>) {
        let unwritten = written.err().map(|e| format!("no lease can be written down: {e}"));
        self.stirred |= unwritten.is_some() != self.unwritten.is_some();
        self.unwritten = unwritten;
    }

    /// A lease that ends without DEL, as one does whose address the cloud has taken: nothing may be sent there any more.
    fn end(&mut self, attachment: &Attachment) {
        self.unguard_pod(attachment);
        if let Some(lease) = self.forget_lease(attachment) {
            let undone = self.unroute(&lease);
            self.noted("routes of a lease that is over", undone);
        }
    }

    fn lease(&mut self, held: Held) -> Result<Lease, Error> {
        // Of an ENI that is lent already, the lease is the one record.
        let lent = self.leases.get(&held.sandbox.attachment).filter(|l| held.whole && l.eni.id == held.eni);
        if let Some(lease) = lent {
            return Ok(Lease { sandbox: held.sandbox, ..lease.clone() });
        }
        let Some(eni) = self.enis.get(&held.eni).cloned() else {
            return Err(Error::refused(format!("ENI {} is not set up", held.eni)));
        };
        let bandwidth = self.bandwidth(&held);
        let wiring = match held.whole {
            true => Wiring::Whole(self.whole(&held, &eni)?),
            false => self.slave(&held, &eni).map_or(Wiring::Shared, Wiring::Ipvlan),
        };
        let seat = self.free_seat(&held.pod, wiring != Wiring::Shared)?;
        Ok(Lease {
            sticky: self.pods.is_sticky(&held.pod, &self.world.stateful_kinds),
            pod: held.pod,
            sandbox: held.sandbox,
            ip: held.ip,
            eni,
            node: self.world.node,
            marker: self.world.marker,
            bandwidth,
            heritage: None,
            wiring,
            routes: self.conf.layers().config().extra_routes.clone(),
            seat,
        })
    }

    fn whole(&mut self, held: &Held, eni: &EniLease) -> Result<Whole, Error> {
        let Some(link) = self.kernel.link_by_mac(eni.mac)? else {
            return Err(Error::refused(format!("ENI {} has no link here", eni.id)));
        };
        let services = self.conf.layers().config().service_cidr;
        let (answers, shaper) = (self.world.answers(), self.world.shaper());
        let Wish { host_stack, alone, .. } = self.wish(held);
        Ok(Whole { home: link.name, services, answers, shaper, host_stack, alone })
    }

    fn call(&mut self, id: CallId, call: Call) {
        log::info!("call {id}: {call:?}");
        self.world.call(id, call);
    }

    fn done(&mut self, call: CallId, result: Result<Outcome, Fault>) {
        match &result {
            Ok(outcome) => log::info!("call {call}: {}", calls::summary(outcome)),
            Err(fault) => log::warn!("call {call}: {fault}"),
        }
        match &result {
            Ok(Outcome::VSwitches(seen)) => {
                self.world.vswitches.extend(seen.iter().map(|v| (v.id.clone(), v.clone())));
            }
            Ok(Outcome::SeenAll(enis)) => self.see_all(enis),
            Ok(Outcome::Created(eni)) => self.seen.push((**eni).clone()),
            _ => {}
        }
        self.watch_clock();
        self.feed(Event::Done { call, result });
    }

    /// What an ENI was called at home is of no use once it is gone. One that was made while the look was under way is in the one before.
    fn see_all(&mut self, enis: &[Eni]) {
        let before = std::mem::replace(&mut self.seen, enis.to_vec());
        self.homes.retain(|id, _| before.iter().chain(enis).any(|eni| eni.id == *id));
    }

    fn prepare(&mut self, job: Job) {
        let slot = self.slots.get(&job.eni).copied().or_else(|| eni::free_slot(&self.slots));
        let Some(slot) = slot else {
            let result = Err(format!("all {} slots for ENIs are taken", ours::MAX_SLOT));
            return self.events.push_back(Event::Prepared { eni: job.eni, result });
        };
        self.slots.insert(job.eni.clone(), slot);
        match self.stands(&job, slot) {
            Some((link, lease)) => {
                log::info!("ENI {} is {link} in slot {slot}, as before", job.eni);
                let ready = Link { ifindex: lease.table - ours::PODS_TABLE, slot };
                self.enis.insert(job.eni.clone(), lease);
                self.guard_eni(&job.eni, &link, clock::now());
                self.direct();
                self.events.push_back(Event::Prepared { eni: job.eni, result: Ok(ready) });
            }
            None => self.world.prepare(job, slot),
        }
    }

    /// The link of an ENI which an earlier life has set up as it is to be, by the look at the start: there is nothing to do.
    fn stands(&mut self, job: &Job, slot: u32) -> Option<(String, EniLease)> {
        if self.world.terms.mode == Mode::Whole {
            return None;
        }
        let link = self.begin.as_ref()?.1.links.iter().find(|link| link.is_eni(job.mac))?;
        let settled = link.running && kernel::is_settled(link, job.home.as_deref());
        let vswitch = self.world.vswitches.get(&job.vswitch).filter(|_| settled)?;
        let lease = eni::lease(job, slot, vswitch, self.world.setup.stack, link.ifindex);
        let has_slaves = self.slaves.has(&job.eni);
        let (plan, name) = (self.world.eni_plan(&lease, &link.name, has_slaves), link.name.clone());
        let found = self.kernel.survey(&plan, None).ok()?;
        found.is_empty().then_some((name, lease))
    }

    fn prepared(&mut self, eni: String, result: Result<EniLease, Error>) {
        let result = match result {
            Ok(lease) => {
                let link = Link { ifindex: lease.table - ours::PODS_TABLE, slot: lease.slot };
                self.homes.remove(&eni);
                self.enis.insert(eni.clone(), lease);
                self.eni_is_up(&eni);
                self.set_up_slaves(&eni);
                Ok(link)
            }
            Err(e) => {
                log::warn!("ENI {eni}: {e}");
                Err(e.to_string())
            }
        };
        self.feed(Event::Prepared { eni, result });
    }

    fn dismantle(&mut self, eni: &str, mac: Mac) {
        self.slots.remove(eni);
        self.repair.leave(&Part::Eni(eni.to_owned()));
        let lease = self.enis.remove(eni);
        let undone = match (self.kernel.link_by_mac(mac), lease) {
            (Ok(Some(link)), Some(lease)) => {
                // An earlier life may have made it a parent.
                let has_slaves = self.kernel.is_parent(link.ifindex).unwrap_or(true);
                let plan = self.world.eni_plan(&lease, &link.name, has_slaves);
                self.kernel.undo(&plan)
            }
            (Ok(Some(link)), None) => self.unmark(ours::eni_table(link.ifindex)),
            (Ok(None), _) => Ok(()),
            (Err(e), _) => Err(e),
        };
        self.noted("dismantle", undone.context(|| format!("ENI {eni}")));
        self.forget_slaves(eni);
    }

    /// What an earlier life set up: the rule that leads a slot's packets into the table. The slot is free for another ENI now.
    fn unmark(&mut self, table: u32) -> Result<(), Error> {
        let marked = |rule: &Rule| rule.mark.is_some_and(|(value, mask)| ours::slot(value, mask).is_some());
        let whole = |rule: &Rule| rule.priority == ours::FROM_POD_PRIORITY && rule.from.is_none() && rule.iif.is_none();
        let leads_there = |rule: &Rule| rule.action == RuleAction::Lookup(table) && marked(rule) && whole(rule);
        let rules: Vec<Rule> = self.kernel.rules()?.into_iter().filter(leads_there).collect();
        rules.iter().try_for_each(|rule| self.kernel.delete_rule(rule))
    }

    fn count(&self) -> Counted {
        Counted {
            pool: self.pool.figures(),
            services: self.services.clone(),
            policies: self.guarded.shown.clone(),
            cloud_calls: self.world.cloud.calls(),
        }
    }

    fn show(&self) -> serde_json::Value {
        serde_json::json!({
            "release": env!("CARGO_PKG_VERSION"),
            "node": self.world.terms.facts,
            "marker": self.world.marker,
            "daemon_mode": self.world.terms.mode.to_string(),
            "pool": self.pool.show(),
            "services": self.services,
            "policies": self.guarded.shown,
            "leases": self.leases.values().collect::<Vec<_>>(),
            "wired": self.enis,
            "mtu": self.world.mtu,
            "cloud_calls": self.world.cloud.calls(),
        })
    }
}

impl Waiting {
    fn refuse(self, why: Refusal, reason: String) {
        log::warn!("add {}: {reason}", self.pod);
        let _ = self.answer.try_send(Reply::Refused { why, reason });
    }
}

fn refusal(refused: Refused) -> Reply {
    Reply::Refused { why: refused.why, reason: refused.reason }
}

fn local(reason: &str) -> Refused {
    Refused { why: Refusal::Local, reason: reason.into() }
}
