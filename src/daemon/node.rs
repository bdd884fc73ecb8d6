//! The loop that owns the pool, the ledger and the replies that wait: events in, effects out, one after the other.

mod add;
mod conf;
mod del;
mod effects;
mod enis;
mod ipvlan;
mod leases;
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
use self::leases::Leases;
pub use self::repair::Compared;
use self::repair::Wires;
use super::layers::Layers;
use super::ledger::Ledger;
use super::legacy::Legacy;
use super::lobby::Heard;
use super::meter::Counted;
use super::news::Kubeadms;
use super::pods::{Known, Pods, Presence, Standing};
use super::policy::Chosen;
use super::reactor::Timer;
use super::sticky::Sticky;
use super::world::World;
use super::{calls, clock, guard, phases};
use crate::cluster::Name;
use crate::eni::{Eni, Fault};
use crate::error::Error;
use crate::gather::Gather;
use crate::happening::Happening;
use crate::herald::{Herald, Outcome as Written};
use crate::kernel::{Kernel, Look};
use crate::object::{self, ConfigMap};
use crate::peer::Own;
use crate::pod::{Attachment, PodName};
use crate::pool::{Boot, Call, CallId, Event, Now, Outcome, Pool, Refused, Ticket};
use crate::rate::{Both, Limit};
use crate::repair::Repair;
use crate::rpc::{EniLease, Lease, Refusal, Reply, Request};
use add::Waiting;
use conf::Conf;
use policies::Guarded;

/// An ADD is answered within this time, well before the runtime gives up (the kubelet: two minutes).
const ADD_DEADLINE: Duration = Duration::from_secs(90);
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
    /// Where Services have their addresses, as kubeadm has left it.
    KubeadmsServices(Kubeadms),
    /// What is to be shown of the Services.
    Services(serde_json::Value),
    /// What is to be shown of network policies.
    Policies(serde_json::Value),
    /// What enforces them, where nothing could when this loop began.
    Chosen(Box<Chosen>),
    /// The rules of these pods are in the kernel, or why they are not; nothing there knows these seats any more.
    Admitted {
        pods: Vec<Name>,
        seats: BTreeSet<u16>,
        result: Result<(), String>,
    },
    /// The programs that links of pods are to have are others than before.
    Renewed,
    /// Nothing is left of another way to enforce policies, or why something is.
    OthersGone(Result<(), String>),
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
    leases: Leases,
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
            leases: found.leases.into_iter().gather(),
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
        found.heard.told.into_iter().for_each(|event| node.herald.hear(clock::now(), event));
        node
    }

    /// The configuration in force.
    pub fn layers(&self) -> &Layers {
        self.conf.layers()
    }

    /// Runs until it is told to end, or dropped. What is under way then is left as it is: the next life finds it again. Those who have been
    /// waiting are heard first, once it is known who was deleted meanwhile: one of them may be the same pod, and shall have its address.
    pub async fn run(mut self, waiting: Vec<Input>, inputs: Receiver<Input>) {
        self.absorb_tombstones();
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
                self.forget_the_gone();
                self.hear_of_bandwidth();
            }
            Input::OwnNode(node) => self.see_own_node(node),
            Input::Written(outcome) => self.herald.done(clock::now(), outcome),
            Input::Fetched { pod, result } => self.fetched(pod, result),
            Input::File(text) => self.file_changed(text),
            Input::NodeConfig { name, found } => self.node_config_changed(&name, found.as_deref()),
            Input::Count { answer } => drop(answer.try_send(self.count())),
            Input::Tell(event) => self.herald.hear(clock::now(), *event),
            Input::KubeadmsServices(left) => self.learn_services(left),
            Input::Services(shown) => self.services = shown,
            Input::Policies(shown) => self.guarded.shown = shown,
            Input::Chosen(chosen) => self.enforce_by(*chosen),
            Input::Admitted { pods, seats, result } => self.admitted(&pods, &seats, &result),
            Input::Renewed => self.renew(),
            Input::OthersGone(result) => self.others_gone(&result),
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
            Request::Allocate { pod, uid, sandbox, limits, wish } => {
                let deadline = clock::now() + ADD_DEADLINE;
                return self.allocate(Waiting { answer, pod, uid, sandbox, limits, wish, deadline });
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
            Request::Gc { network, valid } => self.collect(&network, &valid),
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
        self.homes.retain(|id, _| self.seen.iter().chain(enis).any(|eni| eni.id == *id));
        // Most often nothing has changed, and what stays long is not to lie between what ADDs leave free.
        if self.seen != enis {
            self.seen = enis.to_vec();
        }
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
            "service_nets": self.service_nets(),
            "service_overlap": self.service_overlap(),
            "policies": self.guarded.shown,
            "leases": self.leases.values().collect::<Vec<_>>(),
            "wired": self.enis,
            "mtu": self.world.mtu,
            "cloud_calls": self.world.cloud.calls(),
        })
    }
}

fn refusal(refused: Refused) -> Reply {
    Reply::Refused { why: refused.why, reason: refused.reason }
}

fn local(reason: &str) -> Refused {
    Refused { why: Refusal::Local, reason: reason.into() }
}
