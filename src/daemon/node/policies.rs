//! Network policies of this node's pods: seats, and ADDs that wait until the pod's rules are in the kernel.

use std::collections::BTreeSet;

use smol::channel::Sender;

use super::{Node, Presence};
use crate::cluster::Name;
use crate::daemon::pods::Known;
use crate::daemon::policy::{self, Ear, News, name_of};
use crate::daemon::{clock, renderer};
use crate::error::Error;
use crate::gather::Gather;
use crate::heard::Heard;
use crate::ours;
use crate::peer::{self, Own};
use crate::pod::{Attachment, PodName, nameless};
use crate::pool::Now;
use crate::rpc::{Lease, Refusal, Reply, Request};
use crate::rules::Placed;

/// What is not known by then is not waited for any longer: the runtime comes again, and people hear why.
const PATIENCE: Now = Now::from_secs(20);

/// Seats that there are.
const SEATS: std::ops::RangeInclusive<u16> = 1..=u16::MAX;

/// What the loop keeps of policies.
#[derive(Default)]
pub(super) struct Guarded {
    ear: Option<Ear>,
    /// Seats of pods that are gone, which the kernel may know still.
    leaving: BTreeSet<u16>,
    holding: Vec<Holding>,
    /// What is shown of policies.
    pub shown: serde_json::Value,
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
    pub fn begin_policies(&mut self, ipvlan: bool) {
        let config = self.layers().config();
        let (policies, services) = (config.policies, config.services.on.unwrap_or(ipvlan));
        if !renderer::is_there() {
            return;
        }
        if !policies.on {
            log::info!("network policies are not enforced: disable_network_policy");
            self.guarded.shown = "disabled".into();
            self.give_up_seats();
            return renderer::leave();
        }
        let ask = renderer::Ask { wanted: policies.renderer, services, ipvlan, mode: self.world.terms.mode };
        let node = self.world.node.iter().chain([ours::POD_GATEWAY_V6.into()]);
        self.guarded.ear = Some(policy::start(policy::Start {
            kube: Some(self.world.kube.clone()),
            node_name: self.world.node_name.clone(),
            node: node.gather(),
            inputs: self.world.inputs.clone(),
            open: Box::new(move || renderer::open(&ask)),
        }));
        if let Some(known) = self.pods.peers() {
            let all = known.map(|pod| peer::Pod::clone(pod)).collect();
            self.guarded.tell(News::Own(Heard::All(all)));
        }
        self.take_seats();
    }

    /// Who has no seat yet gets one, and all are told of.
    fn take_seats(&mut self) {
        let attachments: Vec<Attachment> = self.leases.keys().cloned().collect();
        for attachment in attachments {
            let lease = &self.leases[&attachment];
            let seat = match lease.seat {
                None if lease.untouched().is_none() => self.free_seat(&lease.pod.clone()),
                seat => Ok(seat),
            };
            self.reseat(&attachment, seat);
            self.seat(&self.leases[&attachment]);
        }
    }

    fn give_up_seats(&mut self) {
        let seated = self.leases.values().filter(|lease| lease.seat.is_some());
        let attachments: Vec<Attachment> = seated.map(|lease| lease.sandbox.attachment.clone()).collect();
        attachments.iter().for_each(|attachment| self.reseat(attachment, Ok(None)));
    }

    fn reseat(&mut self, attachment: &Attachment, seat: Result<Option<u16>, Error>) {
        let Some(lease) = self.leases.get_mut(attachment) else { return };
        let recorded = seat.and_then(|seat| {
            if seat == lease.seat {
                return Ok(());
            }
            lease.seat = seat;
            self.ledger.record(lease)
        });
        if let Err(e) = recorded {
            log::error!("seat of {attachment}: {e}");
        }
    }

    /// The seat for a new lease of the pod: sandboxes of one pod share it. None: nobody asks for seats.
    pub(super) fn free_seat(&self, pod: &PodName) -> Result<Option<u16>, Error> {
        if !self.guarded.is_on() || *pod == nameless() {
            return Ok(None);
        }
        if let Some(seat) = self.leases.values().find(|lease| lease.pod == *pod).and_then(|lease| lease.seat) {
            return Ok(Some(seat));
        }
        let taken: BTreeSet<u16> = self.leases.values().filter_map(|lease| lease.seat).gather();
        let free = SEATS.into_iter().find(|seat| !taken.contains(seat) && !self.guarded.leaving.contains(seat));
        free.map(Some).ok_or_else(|| Error::refused("every seat for a pod with network policies is taken"))
    }

    /// Tells which pod has a seat.
    pub(super) fn seat(&self, lease: &Lease) {
        if let Some(seat) = lease.seat {
            self.guarded.tell(News::Placed(name_of(&lease.pod), Placed { seat, ip: lease.ip }));
        }
    }

    /// The lease is over. Another sandbox of the pod may live on.
    pub(super) fn vacate(&mut self, lease: &Lease) {
        let Some(seat) = lease.seat.filter(|_| self.guarded.is_on()) else { return };
        match self.leases.values().find(|other| other.pod == lease.pod) {
            Some(other) => self.seat(other),
            None => {
                self.guarded.leaving.insert(seat);
                self.guarded.tell(News::Left(name_of(&lease.pod)));
            }
        }
    }

    // ADD

    /// The answer waits until the pod's rules are in the kernel.
    pub(super) fn hold(&mut self, answer: Sender<Reply>, lease: Lease, deadline: Now) {
        // It may be an ADD that comes again.
        self.seat(&lease);
        let deadline = deadline.min(clock::now() + PATIENCE);
        self.guarded.holding.push(Holding { answer, lease, deadline });
    }

    pub(super) fn admitted(&mut self, pods: &[Name], seats: &BTreeSet<u16>, result: &Result<(), String>) {
        self.guarded.leaving.retain(|seat| !seats.contains(seat));
        let names: BTreeSet<&Name> = pods.iter().gather();
        let due = self.guarded.holding.extract_if(.., |held| names.contains(&name_of(&held.lease.pod)));
        for Holding { answer, lease, .. } in due.collect::<Vec<_>>() {
            match result {
                Ok(()) if self.leases.contains_key(&lease.sandbox.attachment) => self.give(&answer, lease),
                Ok(()) => turn_away(&answer, &lease, "it was deleted while its ADD waited".into()),
                Err(why) => turn_away(&answer, &lease, why.clone()),
            }
        }
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

    pub(super) fn tell_policies(&self, known: &Known) {
        if !self.guarded.is_on() {
            return;
        }
        let own = match known {
            Known::All(list) => Heard::All(list.iter().filter_map(|(_, seen)| seen.peer.as_deref().cloned()).collect()),
            Known::One(_, seen) => match &seen.peer {
                Some(pod) => Heard::One(peer::Pod::clone(pod)),
                None => return,
            },
            Known::Gone(name) => Heard::Gone(name_of(name)),
        };
        self.guarded.tell(News::Own(own));
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

fn turn_away(answer: &Sender<Reply>, lease: &Lease, reason: String) {
    log::warn!("add {}: {reason}", lease.pod);
    let _ = answer.try_send(Reply::Refused { why: Refusal::Policies, reason });
}
