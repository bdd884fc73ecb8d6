//! ADDs: who waits, for the pod to be known or for an address, who is turned away, and what an ADD is answered with.

use smol::channel::Sender;

use super::{Node, local, refusal};
use crate::config::Mode;
use crate::daemon::clock;
use crate::daemon::pods::Presence;
use crate::error::Error;
use crate::peer::Own;
use crate::pod::{PodName, Sandbox};
use crate::pool::{Event, Held, Notice, Now, Refused, Ticket};
use crate::rate::Limits;
use crate::rpc::{Lease, Refusal, Reply, Wish};

/// An ADD that has not been answered.
pub(super) struct Waiting {
    pub answer: Sender<Reply>,
    pub pod: PodName,
    /// Which one of this name, where the runtime says it.
    pub uid: Option<String>,
    pub sandbox: Sandbox,
    pub limits: Limits,
    pub wish: Wish,
    pub deadline: Now,
}

impl Node {
    /// The watch may still tell of an earlier pod of the name, which is over or bears another uid: then too the API server is asked.
    pub(super) fn allocate(&mut self, waiting: Waiting) {
        if self.sweeping.contains(&waiting.sandbox.attachment) {
            return self.returning.push(waiting);
        }
        self.identify(waiting);
    }

    pub(super) fn identify(&mut self, waiting: Waiting) {
        match self.pods.find(&waiting.pod) {
            Some(Presence::Ours) if self.pods.may_be(&waiting.pod, waiting.uid.as_deref()) => self.enqueue(waiting),
            _ => self.fetch(waiting.pod.clone()).push(waiting),
        }
    }

    /// Asks the API server for a pod, once at a time, whoever waits for the answer.
    pub(super) fn fetch(&mut self, pod: PodName) -> &mut Vec<Waiting> {
        self.unknown.entry(pod).or_insert_with_key(|pod| {
            self.world.fetch_pod(pod.clone());
            Vec::new()
        })
    }

    pub(super) fn fetched(&mut self, pod: PodName, result: Result<Option<Box<Own>>, Error>) {
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
                // It had an address when the API server was there, or the watch has told of one of this name: it is ours.
                Err(_) if self.pods.is_ours(&pod) || self.leases.of(&pod).next().is_some() => self.enqueue(waiting),
                Err(e) => waiting.refuse(Refusal::ApiDown, format!("pod {pod} is not known yet: {e}")),
            }
        }
    }

    pub(super) fn refuse_unknown(&mut self, now: Now) {
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
        if self.awaits_services(&waiting) {
            self.ask_kubeadm();
            let reason = "the API server has not said yet where Services are, and service_cidr is not set";
            return waiting.refuse(Refusal::ApiDown, reason.into());
        }
        if let Err(e) = self.try_out(&waiting) {
            return waiting
                .refuse(Refusal::TooSlow, format!("what this node can do for it is not known just now: {e}"));
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

    pub(super) fn wants_whole(&self, waiting: &Waiting) -> bool {
        self.world.terms.mode == Mode::Whole || self.pods.wants_whole(&waiting.pod)
    }

    /// What the kernel can do is known where a new pod keeps for life what is chosen by it.
    fn try_out(&self, waiting: &Waiting) -> Result<(), Error> {
        let trials = &self.world.trials;
        if self.leases.contains_key(&waiting.sandbox.attachment) {
            return Ok(());
        }
        if self.wants_whole(waiting) {
            trials.answers(&self.world.node)?;
            return trials.shaper().map(drop);
        }
        match waiting.wish.slave.then(|| trials.ipvlan()) {
            Some(Ok(())) => trials.shaper().map(drop),
            Some(Err(e)) if e.is_for_now() => Err(e),
            _ => Ok(()),
        }
    }

    pub(super) fn forget_those_who_hung_up(&mut self) {
        let gone: Vec<Ticket> = self.waiting.iter().filter(|(_, w)| w.answer.is_closed()).map(|(t, _)| *t).collect();
        for ticket in gone {
            self.waiting.remove(&ticket);
            self.feed(Event::Forget { ticket });
        }
    }

    pub(super) fn reply(&mut self, ticket: Ticket, result: Result<Held, Refused>) {
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

    pub(super) fn give(&mut self, answer: &Sender<Reply>, lease: Lease) {
        let (pod, ip) = (lease.pod.clone(), lease.ip);
        let _ = answer.try_send(Reply::Lease(Box::new(lease)));
        self.make_up(&pod, ip);
    }
}

impl Waiting {
    pub fn refuse(self, why: Refusal, reason: String) {
        log::warn!("add {}: {reason}", self.pod);
        let _ = self.answer.try_send(Reply::Refused { why, reason });
    }
}
