//! The pool's effects, carried out in their order: the ledger first, so that whoever dies in between forgets nothing.

use super::Node;
use super::services::leads_to_services;
use crate::daemon::clock;
use crate::daemon::eni::Job;
use crate::daemon::ledger::Resting;
use crate::error::Error;
use crate::ip::IpPair;
use crate::pod::{Attachment, PodName};
use crate::pool::{Effect, Event, Held, Now};
use crate::rpc::{EniLease, Lease, Whole, Wiring, Wish};

impl Node {
    /// Every effect of an event is carried out before the next event is heard.
    pub(super) fn feed(&mut self, event: Event) {
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

    pub(super) fn noted(&self, what: &str, result: Result<(), Error>) {
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
                self.leases.insert(lease);
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
    pub(super) fn keep_in_mind(&mut self, written: Result<(), Error>) {
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
            let network = self.wish(&held).network.or_else(|| lease.network.clone());
            return Ok(Lease { sandbox: held.sandbox, network, ..lease.clone() });
        }
        let Some(eni) = self.enis.get(&held.eni).cloned() else {
            return Err(Error::refused(format!("ENI {} is not set up", held.eni)));
        };
        let bandwidth = self.bandwidth(&held);
        let wiring = match held.whole {
            true => Wiring::Whole(self.whole(&held, &eni)?),
            false => self.slave(&held, &eni)?.map_or(Wiring::Shared, Wiring::Ipvlan),
        };
        let network = self.wish(&held).network;
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
            mtu: Some(self.world.mtu),
            network,
        })
    }

    fn whole(&mut self, held: &Held, eni: &EniLease) -> Result<Whole, Error> {
        let Some(link) = self.kernel.link_by_mac(eni.mac)? else {
            return Err(Error::refused(format!("ENI {} has no link here", eni.id)));
        };
        let services = self.service_nets();
        let (answers, shaper) = (self.world.trials.answers(&self.world.node)?, self.world.trials.shaper()?);
        let wish = self.wish(held);
        if leads_to_services(&held.sandbox.attachment, &wish) {
            self.tell_of_lost_services(&held.pod);
        }
        let Wish { host_stack, alone, .. } = wish;
        Ok(Whole { home: link.name, services, answers, shaper, host_stack, alone })
    }
}
