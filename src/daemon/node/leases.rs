//! The leases of the node, found by attachment and by pod.

use std::collections::BTreeMap;
use std::ops::Deref;

use crate::pod::{Attachment, PodName};
use crate::rpc::Lease;

#[derive(Default)]
pub struct Leases {
    leases: BTreeMap<Attachment, Lease>,
    /// A node has a thousand, and each ADD asks for those of its pod.
    of_pods: BTreeMap<PodName, Vec<Attachment>>,
}

impl Leases {
    pub fn insert(&mut self, lease: Lease) {
        let attachment = lease.sandbox.attachment.clone();
        self.remove(&attachment);
        // Most pods have one, and four places are what a vector takes by itself.
        let of_pod = self.of_pods.entry(lease.pod.clone()).or_insert_with(|| Vec::with_capacity(1));
        of_pod.push(attachment.clone());
        self.leases.insert(attachment, lease);
    }

    pub fn remove(&mut self, attachment: &Attachment) -> Option<Lease> {
        let lease = self.leases.remove(attachment)?;
        if let Some(others) = self.of_pods.get_mut(&lease.pod) {
            others.retain(|other| other != attachment);
            if others.is_empty() {
                self.of_pods.remove(&lease.pod);
            }
        }
        Some(lease)
    }

    /// For changes that leave it the lease of this pod.
    pub fn get_mut(&mut self, attachment: &Attachment) -> Option<&mut Lease> {
        self.leases.get_mut(attachment)
    }

    /// Those of all sandboxes and interfaces of the pod.
    pub fn of<'a>(&'a self, pod: &PodName) -> impl Iterator<Item = &'a Lease> + use<'a> {
        self.of_pods.get(pod).into_iter().flatten().filter_map(|attachment| self.leases.get(attachment))
    }
}

impl Deref for Leases {
    type Target = BTreeMap<Attachment, Lease>;

    fn deref(&self) -> &BTreeMap<Attachment, Lease> {
        &self.leases
    }
}

impl Extend<Lease> for Leases {
    fn extend<I: IntoIterator<Item = Lease>>(&mut self, leases: I) {
        leases.into_iter().for_each(|lease| self.insert(lease));
    }
}
