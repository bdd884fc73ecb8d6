//! Bandwidth: what a runtime and a pod's annotations ask for, and a change of it while the pod runs.
//!
//! The kernel is changed first and the ledger then: a daemon that ended in between hears the annotations again, finds that its
//! record differs, and does it again.

use super::Node;
use crate::error::Error;
use crate::pod::{Attachment, PodName};
use crate::pool::{Held, Notice};
use crate::rate::{Both, Limit, Limits};
use crate::rpc::Lease;

/// The event that users of the old Terway know.
const PARSE_FAILED: &str = "ParseFailed";

impl Node {
    /// What a new lease is held to: what the ADD that waits for it asks for, else what the annotations say.
    pub(super) fn bandwidth(&self, held: &Held) -> Both<Limit> {
        let told = self.pods.bandwidth(&held.pod).cloned().unwrap_or_default();
        let waiting = self.waiting.values().find(|w| w.sandbox == held.sandbox);
        Both::<Limit>::default().hear(&told).ask(waiting.map(|w| w.limits).unwrap_or_default())
    }

    /// The lease that an ADD is answered with. An ADD that comes again may ask for another bandwidth than the first; it is not
    /// answered where that cannot be written down.
    pub(super) fn lease_for(&mut self, held: &Held, limits: Limits) -> Option<Lease> {
        let lease = self.leases.get_mut(&held.sandbox.attachment)?;
        let bandwidth = lease.bandwidth.ask(limits);
        if bandwidth != lease.bandwidth {
            let changed = Lease { bandwidth, ..lease.clone() };
            if let Err(e) = self.ledger.record(&changed) {
                log::error!("bandwidth of {}: {e}", lease.pod);
                return None;
            }
            *lease = changed;
        }
        Some(lease.clone())
    }

    /// Pods are new, or their annotations have changed: says what is wrong with those, and changes pods that run.
    pub(super) fn hear_of_bandwidth(&mut self) {
        let pods = self.pods.reshaped();
        let faults = |pod| self.pods.bandwidth(pod).into_iter().flat_map(|told| told.faults());
        let about = |pod: &PodName, fault: &str| Notice {
            pod: Some(pod.clone()),
            warning: true,
            reason: PARSE_FAILED,
            message: fault.to_owned(),
        };
        let ours = pods.iter().filter(|pod| self.pods.is_ours(pod));
        let notices: Vec<Notice> = ours.flat_map(|pod| faults(pod).map(move |fault| about(pod, fault))).collect();
        notices.into_iter().for_each(|notice| self.tell(notice));
        let concerned = self.leases.values().filter(|lease| pods.contains(&lease.pod));
        let concerned: Vec<Attachment> = concerned.map(|lease| lease.sandbox.attachment.clone()).collect();
        for attachment in concerned {
            self.reshape(&attachment);
        }
    }

    fn reshape(&mut self, attachment: &Attachment) {
        let Some(lease) = self.leases.get_mut(attachment) else { return };
        let Some(told) = self.pods.bandwidth(&lease.pod) else { return };
        let bandwidth = lease.bandwidth.hear(told);
        if bandwidth != lease.bandwidth {
            log::info!("{attachment} of pod {}: bandwidth is changed to {:?}", lease.pod, bandwidth.rates());
            lease.bandwidth = bandwidth;
            self.shape(attachment);
        }
    }

    /// One change of an attachment at a time, so that the last wins.
    fn shape(&mut self, attachment: &Attachment) {
        let Some(lease) = self.leases.get(attachment) else { return };
        if self.shaping.insert(attachment.clone()) {
            self.world.shape(lease.clone());
        }
    }

    pub(super) fn shaped(&mut self, attachment: &Attachment, bandwidth: Both<Limit>, result: Result<(), Error>) {
        self.shaping.remove(attachment);
        let Some(lease) = self.leases.get(attachment) else { return };
        if lease.bandwidth != bandwidth {
            return self.shape(attachment);
        }
        match result {
            Ok(()) => self.noted("bandwidth", self.ledger.record(lease)),
            Err(e) => {
                log::warn!("bandwidth of {}: {e}; its next ADD, or the next start of terwayd, tries again", lease.pod)
            }
        }
    }
}
