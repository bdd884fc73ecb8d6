//! What a life leaves to the next one: the ENIs as it knew them at its end, so that the next can serve before it has looked itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::eni::{self, Goal, Kernel, Nic};
use super::state::State;
use super::{Call, Now};
use crate::eni::{Eni, EniState};
use crate::ip::Family;

/// Until its end, a life that went on would have gone by this too: then its next look at the cloud was due.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Will {
    pub enis: Vec<Eni>,
    pub until: Now,
}

impl State {
    /// Nothing where anything is on its way, in doubt, or not as it should be: then the next life has to look for itself. `seen`:
    /// what the last look at all ENIs has shown, and those that were made since.
    pub fn will(&self, seen: &[Eni]) -> Option<Will> {
        let looks = |call: &Call| matches!(call, Call::LookAll | Call::VSwitches);
        let quiet = self.calls.values().all(looks) && self.creates.is_empty() && self.survey.blind.is_none();
        let sound = self.gate.outage().is_none() && self.lost.is_empty() && self.nics.values().all(Nic::is_settled);
        let all_seen = self.nics.keys().all(|id| seen.iter().any(|eni| eni.id == *id));
        if !(quiet && sound && all_seen) {
            return None;
        }
        // One that this life has given back since is nobody's any more.
        let there = seen.iter().filter(|e| self.nics.contains_key(&e.id) || !eni::this_nodes(e, &self.settings));
        let enis = there.map(|eni| {
            self.nics.get(&eni.id).map_or_else(|| eni.clone(), |nic| nic.as_seen(eni, &self.settings.instance))
        });
        Some(Will { enis: enis.collect(), until: self.survey.due() })
    }
}

impl Nic {
    /// It serves, and all is known of it.
    fn is_settled(&self) -> bool {
        let there = self.goal != Goal::GiveBack && self.state == EniState::InUse && !self.missing;
        let ready = self.lent || matches!(self.kernel, Kernel::Ready(_));
        let certain = self.busy.is_none() && self.assign.is_none() && !self.stale && self.suspect.is_empty();
        let own = self.addresses.contains_key(&IpAddr::V4(self.primary));
        there && ready && certain && own && self.addresses.values().all(|address| !address.leaving)
    }

    /// The ENI as the cloud would show it now.
    fn as_seen(&self, eni: &Eni, instance: &str) -> Eni {
        let of = |family| self.addresses.keys().filter(move |ip| Family::of(ip) == family && !self.in_prefix(ip));
        let v4 = |ip: &IpAddr| if let IpAddr::V4(ip) = ip { Some(*ip) } else { None };
        let v6 = |ip: &IpAddr| if let IpAddr::V6(ip) = ip { Some(*ip) } else { None };
        let others = of(Family::V4).filter_map(v4).filter(|ip| *ip != self.primary);
        Eni {
            state: self.state,
            instance: Some(instance.to_owned()),
            v4: std::iter::once(self.primary).chain(others).collect::<Vec<Ipv4Addr>>(),
            v6: of(Family::V6).filter_map(v6).collect::<Vec<Ipv6Addr>>(),
            prefixes: self.prefixes.iter().copied().collect(),
            security_groups: self.dress.groups().iter().cloned().collect(),
            tags: self.dress.tags.clone(),
            ..eni.clone()
        }
    }
}
