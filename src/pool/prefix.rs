//! IPv4 addresses by the sixteen: a prefix takes one place of an ENI. Its addresses are leased and rest one by one; it is given
//! back whole. A vSwitch without a free block of sixteen gives single addresses meanwhile.

use std::net::IpAddr;

use ipnet::Ipv4Net;

use super::calls::NO_ASSIGN;
use super::eni::{Address, Nic};
use super::retry::SOON;
use super::size::MAX_PER_CALL;
use super::state::State;
use super::{Call, Now};
use crate::eni::{Fault, FaultKind, PER_PREFIX, of_prefix};
use crate::ip::{Family, Stack};

impl State {
    /// Prefixes that an ENI of this vSwitch may have.
    fn most_prefixes(&self, vswitch: &str) -> u32 {
        let open = self.prefixless.get(vswitch).is_none_or(|until| *until <= self.now);
        let shared = !self.settings.whole && self.settings.stack == Stack::V4;
        self.settings.prefixes.filter(|_| open && shared).unwrap_or(0)
    }

    /// Prefixes that could be asked for on this ENI.
    pub fn prefixes_for(&self, nic: &Nic) -> u32 {
        let more = self.most_prefixes(&nic.vswitch).saturating_sub(nic.prefixes.len() as u32);
        more.min(self.free_room(nic, Family::V4))
    }

    /// Addresses of a family that the ENI's free places come to.
    pub fn gain(&self, nic: &Nic, family: Family) -> u32 {
        let prefixes = if family == Family::V4 { self.prefixes_for(nic) } else { 0 };
        self.free_room(nic, family) + prefixes * (PER_PREFIX - 1)
    }

    /// Addresses that an ENI of this vSwitch comes to: its primary one is always alone.
    pub fn most_on(&self, vswitch: &str, family: Family) -> u32 {
        let places = self.settings.limits.per_adapter(family);
        let prefixes = if family == Family::V4 { self.most_prefixes(vswitch) } else { 0 };
        places + prefixes.min(places.saturating_sub(1)) * (PER_PREFIX - 1)
    }

    /// So many prefixes hold that many addresses more.
    pub fn prefixes_to_ask(&self, nic: &Nic, family: Family, addresses: u32) -> u32 {
        let most = if family == Family::V4 { self.prefixes_for(nic).min(MAX_PER_CALL) } else { 0 };
        addresses.div_ceil(PER_PREFIX).min(most)
    }

    pub fn uses_prefixes(&self, vswitch: &str) -> bool {
        self.most_prefixes(vswitch) > 0
    }

    /// New prefixes, each taken only if it can be right.
    pub fn assigned_prefixes(&mut self, id: &str, count: u32, prefixes: &[Ipv4Net]) {
        self.recount();
        self.settle_assign(id, prefixes.len() != count as usize);
        let Some(nic) = self.nics.get_mut(id) else { return };
        match prefixes.len() < count as usize {
            true => nic.retry.fail(self.now, &SOON, &mut self.rng),
            false => nic.retry.restart(self.now),
        }
        nic.no_assign.remove(&Family::V4);
        let vswitch = nic.vswitch.clone();
        if !prefixes.is_empty() {
            self.prefixless.remove(&vswitch);
        }
        self.vswitches.took(&vswitch, prefixes.len() * PER_PREFIX as usize);
        for prefix in prefixes.iter().take(count as usize) {
            let unknown = |ip: &IpAddr| !self.nics[id].addresses.contains_key(ip);
            let sound = of_prefix(prefix).all(|ip| unknown(&ip) && self.is_sound(id, &vswitch, ip));
            let nic = self.nics.get_mut(id).expect("just seen");
            if !sound {
                nic.stale = true;
                continue;
            }
            nic.prefixes.insert(*prefix);
            let free = |ip| (ip, Address { free_since: self.now, leaving: false });
            nic.addresses.extend(of_prefix(prefix).map(free));
        }
    }

    /// For a while this vSwitch gives single addresses; said once until prefixes are to be had again.
    pub fn no_prefixes(&mut self, vswitch: &str, fault: &Fault) {
        let first = !self.prefixless.contains_key(vswitch);
        self.prefixless.insert(vswitch.to_owned(), self.now + NO_ASSIGN);
        if first {
            let why = match fault.kind {
                FaultKind::VSwitchEmpty => "has no free block of 16 addresses",
                _ => "gives no prefixes",
            };
            let message = format!("vSwitch {vswitch} {why}; single addresses are taken from it meanwhile: {fault}");
            self.tell(None, true, "ResourceInvalid", message);
        }
    }

    /// A prefix of which nothing is leased or rests, on the emptiest ENI, where so many addresses are too many.
    pub fn surplus_prefix(&self, surplus: u32) -> Option<(String, Vec<IpAddr>)> {
        let open = self.nics.iter().filter(|(_, n)| surplus >= PER_PREFIX && n.serves() && n.free_for(self.now));
        let idle = |nic: &Nic, ip: &IpAddr| nic.addresses.get(ip).is_some_and(|a| self.is_idle(ip, a));
        let whole = |nic: &Nic| nic.prefixes.iter().find(|prefix| of_prefix(prefix).all(|ip| idle(nic, &ip))).copied();
        let found =
            open.filter_map(|(id, n)| Some((self.held_on(n), id, whole(n)?))).min_by_key(|(held, id, _)| (*held, *id));
        found.map(|(_, id, prefix)| (id.clone(), of_prefix(&prefix).collect()))
    }

    /// The call that gives back the prefixes whose addresses are all leaving, if there are any.
    pub fn leaving_prefixes(&self, id: &str) -> Option<Call> {
        let nic = &self.nics[id];
        let leaves = |ip: &IpAddr| nic.addresses.get(ip).is_some_and(|a| a.leaving);
        let prefixes = nic.prefixes.iter().filter(|prefix| of_prefix(prefix).all(|ip| leaves(&ip)));
        let prefixes: Vec<Ipv4Net> = prefixes.take(MAX_PER_CALL as usize).copied().collect();
        (!prefixes.is_empty()).then(|| Call::UnassignPrefixes { eni: id.to_owned(), prefixes })
    }

    pub fn unassigned_prefixes(&mut self, id: &str, prefixes: &[Ipv4Net]) {
        self.recount();
        let Some(nic) = self.nics.get_mut(id) else { return };
        nic.retry.restart(self.now);
        for prefix in prefixes {
            // What was seen anew meanwhile is not leaving.
            if of_prefix(prefix).all(|ip| nic.addresses.get(&ip).is_some_and(|a| a.leaving))
                && nic.prefixes.remove(prefix)
            {
                nic.addresses.retain(|ip, _| !matches!(ip, IpAddr::V4(ip) if prefix.contains(ip)));
            }
        }
    }

    /// When a vSwitch may be asked for prefixes again.
    pub fn next_prefixes(&self) -> Option<Now> {
        self.prefixless.values().filter(|until| **until > self.now).min().copied()
    }
}
