//! DEL and GC: what an attachment held is taken back, in the order in which nothing is sent where nobody is.

use std::collections::BTreeSet;
use std::time::Duration;

use super::add::Waiting;
use super::{Node, local, refusal};
use crate::daemon::clock;
use crate::datapath;
use crate::error::Error;
use crate::kernel::OldPod;
use crate::ours;
use crate::plan::Plan;
use crate::pod::Attachment;
use crate::pool::Event;
use crate::rpc::{Lease, Refusal, Reply, Wiring};

/// Links whose attachment is over are deleted together, this long after the last DEL: one RCU grace period for all of
/// them, and most are gone by then because their namespace is.
const SWEEP_AFTER: Duration = Duration::from_millis(250);

impl Node {
    /// Takes the attachment out of the routing table, then frees its address; its link goes with the next sweep.
    pub(super) fn release(&mut self, attachment: &Attachment) -> Reply {
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

    pub(super) fn forget_lease(&mut self, attachment: &Attachment) -> Option<Lease> {
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
    pub(super) fn unroute(&mut self, lease: &Lease) -> Result<(), Error> {
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

    /// Of other networks the runtime says nothing. Of which network a lease is that names none nobody knows: it is kept for as long as its
    /// container is listed by any interface. One that cannot be released does not keep the others.
    pub(super) fn collect(&mut self, network: &str, valid: &BTreeSet<Attachment>) -> Reply {
        let containers: BTreeSet<&str> = valid.iter().map(|attachment| attachment.container.as_str()).collect();
        let is_stale = |(attachment, lease): &(&Attachment, &Lease)| match &lease.network {
            Some(name) => name == network && !valid.contains(attachment),
            // The runtime's name for one that we have no name for may be among them.
            None => !containers.contains(attachment.container.as_str()) && !ours::is_unnamed(attachment),
        };
        let stale: Vec<Attachment> =
            self.leases.iter().filter(is_stale).map(|(attachment, _)| attachment.clone()).collect();
        let mut reply = Reply::None {};
        for attachment in &stale {
            log::info!("gc: {attachment} is not among the valid attachments to {network}");
            if let refused @ Reply::Refused { .. } = self.release_unasked(attachment) {
                reply = refused;
            }
        }
        self.sweep = clock::now();
        reply
    }
}
