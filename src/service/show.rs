//! The Services as people see them.

use super::{Backend, Frontend, Model, Refusal, endpoints, is_v4};
use crate::cluster::Name;

/// An address of a Service, and to whom it leads.
pub struct Led<'a> {
    pub service: &'a Name,
    pub frontend: Frontend,
    pub backends: Vec<Backend>,
}

impl Model {
    /// All that is led somewhere, in the order of names.
    pub fn led(&self) -> impl Iterator<Item = Led<'_>> {
        self.buckets.iter().flat_map(move |(name, bucket)| {
            let claims =
                bucket.service.iter().flat_map(|service| bucket.claims.iter().map(move |claim| (service, claim)));
            claims.filter_map(move |(service, claim)| {
                self.claimants(claim.frontend).next().filter(|first| first.service == *name)?;
                let port = &service.ports[usize::from(claim.port)];
                let slices = bucket.slices.iter().filter_map(|slice| self.slices.get(slice));
                let us = (self.node, self.zone);
                let backends = endpoints::of(slices, port, is_v4(claim.frontend.addr), claim.reach, us);
                Some(Led { service: name, frontend: claim.frontend, backends })
            })
        })
    }

    /// What of a Service is not led, and why.
    pub fn refused(&self) -> impl Iterator<Item = (&Name, &Refusal)> {
        self.buckets.iter().flat_map(|(name, bucket)| bucket.refused.iter().map(move |reason| (name, reason)))
    }
}
