//! Network policies of this node's pods: seats, and ADDs that wait until the pod's rules are in the kernel.

use std::collections::{BTreeMap, BTreeSet};

use smol::channel::Sender;

use super::{Input, Node, Presence};
use crate::cluster::Name;
use crate::config::{Mode, PolicyRenderer};
use crate::daemon::old::felix;
use crate::daemon::outset::Outset;
use crate::daemon::policy::{Chosen, Ear, News, Open, name_of};
use crate::daemon::{bandwidth, clock, renderer, threads};
use crate::error::Error;
use crate::gather::Gather;
use crate::ip::IpPair;
use crate::kernel::{self, tables};
use crate::ours;
use crate::peer::{self, Own};
use crate::pod::{Attachment, PodName, nameless};
use crate::pool::{Notice, Now};
use crate::rpc::{Lease, Refusal, Reply, Request};
use crate::rules::Placed;

/// What is not known by then is not waited for any longer: the runtime comes again, and people hear why.
pub(super) const PATIENCE: Now = Now::from_secs(20);

/// What eBPF lacked is looked for again no sooner than this.
const AGAIN: Now = Now::from_secs(10);

/// Seats that there are.
const SEATS: std::ops::RangeInclusive<u16> = 1..=u16::MAX;

/// What the loop keeps of policies.
#[derive(Default)]
pub(super) struct Guarded {
    /// None: policies are nobody's wish.
    ear: Option<Ear>,
    /// By what they are enforced, if anything can.
    way: Option<PolicyRenderer>,
    /// Seats that pods are to have which run without one.
    seating: BTreeMap<Attachment, u16>,
    others: Others,
    /// Whether pods can be held whose packets pass no netfilter of the node, and when that was tried.
    inside: Option<(Now, Result<(), String>)>,
    /// Seats of pods that are gone, which the kernel may know still.
    leaving: BTreeSet<u16>,
    holding: Vec<Holding>,
    /// What is shown of policies.
    pub shown: serde_json::Value,
}

/// What is left of another way to enforce policies.
#[derive(Default)]
enum Others {
    /// Nothing is in force by our way yet.
    #[default]
    There,
    /// It is being taken away, and cuts off whoever comes: these pods, whose rules are in force, wait for that.
    Going(Vec<Name>),
    Gone,
}

/// A pod's addresses by one of its interfaces, and that one's end on the node where link-local addresses are seen there.
type End = (IpPair, Option<String>);

fn end(lease: &Lease) -> End {
    let has_near = lease.ip.v6.is_some() && !lease.is_inside();
    (lease.ip, has_near.then(|| ours::host_veth(&lease.pod, &lease.sandbox.attachment.ifname)))
}

/// An ADD that has its lease.
struct Holding {
    answer: Sender<Reply>,
    lease: Lease,
    deadline: Now,
}

impl Guarded {
    pub fn is_on(&self) -> bool {
        self.ear.is_some()
    }

    /// The ADD of this attachment waits for the pod's policies.
    pub fn holds(&self, attachment: &Attachment) -> bool {
        self.holding.iter().any(|held| held.lease.sandbox.attachment == *attachment)
    }

    pub fn deadlines(&self) -> impl Iterator<Item = Now> {
        self.holding.iter().map(|held| held.deadline)
    }

    fn tell(&self, news: News) {
        if let Some(ear) = &self.ear {
            ear.tell(news);
        }
    }
}

impl Node {
    /// Begins to look after network policies; or, where that is nobody's wish, sees to it that nothing is left that does.
    pub fn begin_policies(&mut self, ipvlan: bool, mut outset: Outset) {
        let config = self.layers().config().clone();
        let policies = config.policies;
        if !policies.on {
            log::info!("network policies are not enforced: disable_network_policy");
            self.guarded.shown = "disabled".into();
            outset.end();
            let seated = self.give_up_seats(|_| true);
            threads::start(move || {
                renderer::leave_others(None, &seated, false);
                felix::outlast();
            });
            return;
        }
        // It has been, unless the attempts to start did not know of policies yet.
        outset.begin(&config, &self.world.kube, &self.world.node_name, &self.world.inputs);
        let inside = ipvlan || self.world.terms.mode == Mode::Whole;
        let ask = renderer::Ask {
            wanted: policies.renderer,
            services: self.has_services(ipvlan),
            inside,
            sizes: policies.sizes,
        };
        let chosen = renderer::choose(&ask, outset.scouted());
        self.guarded.ear = Some(outset.ear);
        match chosen {
            Ok(chosen) => self.enforce_by(chosen),
            Err(e) => self.enforce_later(ask, e),
        }
    }

    /// Links bear seats for one way and not for the other: it is known before any rule is written, and at best before anybody is served.
    pub(super) fn enforce_by(&mut self, chosen: Chosen) {
        self.guarded.way = Some(chosen.way);
        self.guarded.leaving.extend(&chosen.taken);
        self.take_seats();
        let mut chosen = Some(chosen);
        self.begin(Box::new(move || Ok(chosen.take())));
    }

    /// Nobody can enforce them yet. Whoever can is heard of by this loop first, as the attempts go on in the other one.
    fn enforce_later(&mut self, ask: renderer::Ask, e: Error) {
        self.take_seats();
        let (mut first, inputs) = (Some(e), self.world.inputs.clone());
        self.begin(Box::new(move || {
            let chosen = first.take().map_or_else(|| renderer::choose(&ask, tables::scout()), Err)?;
            let _ = inputs.send_blocking(Input::Chosen(Box::new(chosen)));
            Ok(None)
        }));
    }

    fn begin(&self, open: Open) {
        let node = self.world.node.iter().chain([ours::POD_GATEWAY_V6.into()]);
        self.guarded.tell(News::Begin { node: node.gather(), open });
    }

    /// Those that have no seat yet are to have one once the rules for it are in the kernel; all are told of.
    fn take_seats(&mut self) {
        let attachments: Vec<Attachment> = self.leases.keys().cloned().collect();
        let mut ends = BTreeMap::<PodName, Vec<End>>::new();
        for lease in self.leases.values() {
            ends.entry(lease.pod.clone()).or_default().push(end(lease));
        }
        for attachment in attachments {
            if self.leases[&attachment].seat.is_none() {
                self.find_seat(&attachment);
            }
            let lease = &self.leases[&attachment];
            self.place(lease, ends[&lease.pod].iter().cloned());
        }
    }

    /// A pod may be in its seat although its lease does not say so: then nothing changes for it.
    fn find_seat(&mut self, attachment: &Attachment) {
        let lease = self.leases[attachment].clone();
        if !self.is_guarded(&lease) || !self.has_seats(lease.is_inside()) {
            return;
        }
        let found = match lease.is_slave() {
            true => kernel::seat(Some(&lease.sandbox.netns), &attachment.ifname),
            false => kernel::seat(None, &ours::host_veth(&lease.pod, &attachment.ifname)),
        };
        if let Ok(Some(seat)) = found {
            drop(self.reseat(attachment, Some(seat)));
            return;
        }
        match self.free_seat(&lease.pod, lease.is_inside()) {
            Ok(Some(seat)) => drop(self.guarded.seating.insert(attachment.clone(), seat)),
            Ok(None) => {}
            Err(e) => log::error!("pod {}: {e}", lease.pod),
        }
    }

    /// No lease bears a seat any more; those that did.
    fn give_up_seats(&mut self, needless: fn(&Lease) -> bool) -> Vec<Lease> {
        let seated = self.leases.values().filter(|lease| lease.seat.is_some() && needless(lease));
        let attachments: Vec<Attachment> = seated.map(|lease| lease.sandbox.attachment.clone()).collect();
        attachments.iter().filter_map(|attachment| self.reseat(attachment, None)).collect()
    }

    fn reseat(&mut self, attachment: &Attachment, seat: Option<u16>) -> Option<Lease> {
        let lease = self.leases.get_mut(attachment)?;
        lease.seat = seat;
        if let Err(e) = self.ledger.record(lease) {
            log::error!("seat of {attachment}: {e}");
        }
        let lease = lease.clone();
        self.guard_anew(attachment);
        Some(lease)
    }

    /// The seat for a new lease of the pod: sandboxes of one pod share it. None: nobody asks for seats.
    pub(super) fn free_seat(&self, pod: &PodName, inside: bool) -> Result<Option<u16>, Error> {
        if !self.guarded.is_on() || !self.has_seats(inside) || *pod == nameless() {
            return Ok(None);
        }
        if let Some(seat) = self.leases.of(pod).find_map(|lease| self.seat_of(lease)) {
            return Ok(Some(seat));
        }
        let mut taken: BTreeSet<u16> = self.leases.values().filter_map(|lease| self.seat_of(lease)).gather();
        taken.extend(&self.guarded.leaving);
        let free = SEATS.into_iter().find(|seat| !taken.contains(seat));
        free.map(Some).ok_or_else(|| Error::refused("every seat for a pod with network policies is taken"))
    }

    /// Whether it is eBPF that holds pods to policies which are wired so.
    fn has_seats(&self, inside: bool) -> bool {
        inside || self.guarded.way == Some(PolicyRenderer::Ebpf)
    }

    fn seat_of(&self, lease: &Lease) -> Option<u16> {
        lease.seat.or_else(|| self.guarded.seating.get(&lease.sandbox.attachment).copied())
    }

    /// Whether the pod is held to policies: not one that runs on as the old Terway has wired it, or whose name is lost.
    fn is_guarded(&self, lease: &Lease) -> bool {
        self.guarded.is_on() && lease.untouched().is_none() && lease.pod != nameless()
    }

    /// A pod that the old Terway has wired, and that has had no policy for a seat yet.
    fn is_guest(&self, lease: &Lease) -> bool {
        lease.heritage.is_some() && self.guarded.seating.contains_key(&lease.sandbox.attachment)
    }

    /// Tells where the pod is, with all its interfaces.
    pub(super) fn seat(&self, lease: &Lease) {
        self.place(lease, self.leases.of(&lease.pod).chain([lease]).map(end));
    }

    fn place(&self, lease: &Lease, ends: impl Iterator<Item = End>) {
        if self.is_guarded(lease) {
            // Who has a seat of an earlier life gives it up.
            let seat = self.seat_of(lease).filter(|_| self.has_seats(lease.is_inside())).unwrap_or_default();
            let (ips, veths): (Vec<IpPair>, Vec<Option<String>>) = ends.unzip();
            let placed = Placed::new(seat, ips.iter().flat_map(IpPair::iter)).by(veths.into_iter().flatten());
            // A link that gets its first queueing discipline loses packets: pods of the old Terway are left alone until a policy is about them.
            let is_bare = lease.seat.is_none() && self.is_guest(lease);
            self.guarded.tell(News::Placed { name: name_of(&lease.pod), placed, is_bare });
        }
    }

    /// The lease is over. Another sandbox of the pod may live on.
    pub(super) fn vacate(&mut self, lease: &Lease) {
        if !self.is_guarded(lease) {
            return;
        }
        let seat = self.seat_of(lease);
        self.guarded.seating.remove(&lease.sandbox.attachment);
        let other = self.leases.of(&lease.pod).next();
        match other {
            Some(other) => self.seat(other),
            None => {
                self.guarded.leaving.extend(seat);
                self.guarded.tell(News::Left(name_of(&lease.pod)));
            }
        }
    }

    // ADD

    /// The answer waits until the pod's rules are in the kernel.
    pub(super) fn hold(&mut self, answer: Sender<Reply>, lease: Lease, deadline: Now) {
        if !self.is_guarded(&lease) {
            return self.give(&answer, lease);
        }
        if self.guarded.way == Some(PolicyRenderer::Iptables)
            && lease.is_inside()
            && let Err(e) = self.holds_inside()
        {
            let why = "netfilter of the node sees nothing of what such a pod sends, and eBPF is not to be had";
            return turn_away(&answer, &lease, format!("its network policies cannot be enforced: {why}: {e}"));
        }
        // Told of no earlier: one that is turned away is not to keep others from being admitted.
        self.seat(&lease);
        // What is known of the pod's former life lets nobody in: it is admitted once more.
        if let Others::Going(waiting) = &mut self.guarded.others {
            waiting.retain(|name| *name != name_of(&lease.pod));
        }
        let deadline = deadline.min(clock::now() + PATIENCE);
        self.guarded.holding.push(Holding { answer, lease, deadline });
    }

    /// What was in the way may be gone: a bpffs that is mounted, memory that is free again.
    fn holds_inside(&mut self) -> Result<(), String> {
        let now = clock::now();
        match &self.guarded.inside {
            Some((tried, holds)) if holds.is_ok() || now < *tried + AGAIN => holds.clone(),
            _ => {
                let sizes = self.layers().config().policies.sizes;
                let holds = renderer::holds_inside(&sizes).map_err(|e| e.to_string());
                self.guarded.inside = Some((now, holds.clone()));
                holds
            }
        }
    }

    pub(super) fn admitted(&mut self, pods: &[Name], seats: &BTreeSet<u16>, result: &Result<(), String>) {
        self.guarded.leaving.retain(|seat| !seats.contains(seat));
        if result.is_ok() {
            self.police(pods);
            if let Others::Going(waiting) = &mut self.guarded.others {
                return waiting.extend_from_slice(pods);
            }
        }
        self.let_in(pods, result);
    }

    /// What another way had is gone; or it is not, and who comes next has it tried again.
    pub(super) fn others_gone(&mut self, result: &Result<(), String>) {
        let now = if result.is_ok() { Others::Gone } else { Others::There };
        if let Others::Going(waiting) = std::mem::replace(&mut self.guarded.others, now) {
            self.let_in(&waiting, result);
        }
    }

    fn let_in(&mut self, pods: &[Name], result: &Result<(), String>) {
        let names: BTreeSet<&Name> = pods.iter().gather();
        let due = self.guarded.holding.extract_if(.., |held| names.contains(&name_of(&held.lease.pod)));
        for Holding { answer, lease, .. } in due.collect::<Vec<_>>() {
            let there = self.leases.get(&lease.sandbox.attachment);
            match (result, there.map(|lease| lease.seat)) {
                // It may have been seated only while it waited.
                (Ok(()), Some(seat)) => {
                    self.will_be_wired(&lease.sandbox.attachment);
                    self.give(&answer, Lease { seat, ..lease });
                }
                (Ok(()), None) => turn_away(&answer, &lease, "it was deleted while its ADD waited".into()),
                (Err(why), _) => turn_away(&answer, &lease, why.clone()),
            }
        }
    }

    /// Pods that ran without a seat get the programs on their links, now that there are rules for them; then what another way of enforcing
    /// has left is not needed any more.
    fn police(&mut self, pods: &[Name]) {
        let Some(way) = self.guarded.way else { return };
        let is_due = |attachment: &Attachment| {
            self.leases.get(attachment).is_some_and(|lease| pods.contains(&name_of(&lease.pod)))
        };
        let due: Vec<(Attachment, u16)> = self.guarded.seating.extract_if(.., |at, _| is_due(at)).collect();
        let seated: Vec<Lease> = due.iter().filter_map(|(at, seat)| self.reseat(at, Some(*seat))).collect();
        let is_first = matches!(self.guarded.others, Others::There);
        if !is_first && seated.is_empty() {
            return;
        }
        // Felix alone drops what it does not know.
        let is_waited_for = is_first && felix::may_be_left();
        if is_first {
            self.guarded.others = if is_waited_for { Others::Going(Vec::new()) } else { Others::Gone };
        }
        if is_waited_for {
            self.tell_of_unguarded();
        }
        let inputs = self.world.inputs.clone();
        let given_up = match way {
            PolicyRenderer::Ebpf => Vec::new(),
            PolicyRenderer::Iptables => self.give_up_seats(|lease| !lease.is_inside()),
        };
        let mixed = self.leases.values().any(|lease| lease.seat.is_some());
        threads::start(move || {
            seated.iter().for_each(hook);
            if is_first {
                renderer::leave_others(Some(way), &given_up, mixed);
            }
            if is_waited_for {
                let _ = inputs.send_blocking(Input::OthersGone(felix::leave().map_err(|e| e.to_string())));
            }
        });
    }

    /// Pods that run get the programs that are pinned now: those on their links may ask maps that nobody writes any more.
    pub(super) fn renew(&self) {
        let runs = |lease: &&Lease| {
            lease.seat.is_some() && self.has_seats(lease.is_inside()) && !self.guarded.holds(&lease.sandbox.attachment)
        };
        let seated: Vec<Lease> = self.leases.values().filter(runs).cloned().collect();
        threads::start(move || seated.iter().for_each(hook));
    }

    /// Felix knew them, or did not need to.
    fn tell_of_unguarded(&mut self) {
        let name = |lease: &Lease| match lease.pod == nameless() {
            true => format!("one with {}", lease.ip),
            false => lease.pod.to_string(),
        };
        let names: Vec<String> = self.leases.values().filter(|lease| !self.is_guarded(lease)).map(name).collect();
        if names.is_empty() {
            return;
        }
        let message = format!(
            "what felix has left in netfilter goes, and these pods, which run on as the old Terway has wired them, are held to no network \
             policy until they are re-created: {}",
            names.join(", ")
        );
        self.tell(Notice { pod: None, warning: true, reason: "NetworkPolicyFailed", message });
    }

    pub(super) fn refuse_unguarded(&mut self, now: Now) {
        let late = self.guarded.holding.extract_if(.., |held| held.deadline <= now || held.answer.is_closed());
        let late: Vec<Holding> = late.collect();
        for held in late {
            let state = self.guarded.shown["state"].as_str().filter(|state| *state != "enforced");
            let why = state.unwrap_or("the pod has not been heard of from the API server");
            turn_away(&held.answer, &held.lease, format!("its network policies are not known in time: {why}"));
        }
    }

    // What the loop of the policies is told

    /// A pod that was asked for because the watch had not told of it.
    pub(super) fn learn(&mut self, own: Own) -> Presence {
        // Ours to serve, whatever node it names while our own name is not proven.
        let seen = peer::Pod { node: self.world.node_name.as_str().into(), ..own.seen.clone() };
        let presence = self.pods.learn(own, clock::now());
        if presence == Presence::Ours {
            self.guarded.tell(News::Asked(Box::new(seen)));
        }
        presence
    }

    pub(super) fn ask_policies(&self, request: Request, answer: Sender<Reply>) {
        match &self.guarded.ear {
            Some(ear) => ear.tell(News::Ask { request, answer }),
            None => {
                let reason = "network policies are not enforced here: disable_network_policy".into();
                let _ = answer.try_send(Reply::Refused { why: Refusal::BadRequest, reason });
            }
        }
    }
}

/// Puts the programs onto the links of a pod that runs.
fn hook(lease: &Lease) {
    if let Err(e) = bandwidth::police(lease) {
        log::warn!("pod {} is not held to network policies until it is repaired: {e}", lease.pod);
    }
}

fn turn_away(answer: &Sender<Reply>, lease: &Lease, reason: String) {
    log::warn!("add {}: {reason}", lease.pod);
    let _ = answer.try_send(Reply::Refused { why: Refusal::Policies, reason });
}
