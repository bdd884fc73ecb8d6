//! What an ENI has and can get, counted in what one pod takes: an address of each family of the stack.
//!
//! Free addresses are not tied to each other. A lease takes one of each family, and so much of one family as has no
//! counterpart on its ENI is no supply: it is completed when addresses are short, and unassigned when they are not.

use std::net::IpAddr;

use super::calls::{Create, Verb};
use super::eni::Nic;
use super::state::State;
use super::{Now, Refused};
use crate::ip::{Family, IpPair};

/// The addresses of an ENI, counted per family.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Supply {
    /// Places that they take, those that cannot be right too; a prefix takes one.
    there: [u32; 2],
    idle: [u32; 2],
    leaving: [u32; 2],
    /// Of both families, leased; and leased or resting.
    held: u32,
    used: u32,
}

impl Supply {
    /// An address is leased that was not. `rests`, `leaves`: what it did until now.
    pub fn take(&mut self, family: Family, rests: bool, leaves: bool) {
        self.held += 1;
        self.used += u32::from(!rests);
        self.idle[family as usize] -= u32::from(!rests && !leaves);
    }
}

impl State {
    /// Something was changed by which addresses are there, idle or leaving: they are counted anew.
    pub fn recount(&mut self) {
        self.edition += 1;
    }

    /// The same, of the ENIs that have any of these.
    pub fn recount_where(&mut self, pair: &IpPair) {
        for nic in self.nics.values().filter(|nic| pair.iter().any(|ip| nic.addresses.contains_key(&ip))) {
            nic.supply.set(None);
        }
    }

    fn supply(&self, nic: &Nic) -> Supply {
        if let Some((_, supply)) = nic.supply.get().filter(|(edition, _)| *edition == self.edition) {
            return supply;
        }
        let supply = self.count(nic);
        nic.supply.set(Some((self.edition, supply)));
        supply
    }

    /// What is taken for counted has not changed meanwhile.
    #[cfg(test)]
    pub fn is_counted(&self) -> bool {
        let counted = |nic: &&Nic| matches!(nic.supply.get(), Some((edition, _)) if edition == self.edition);
        self.nics.values().filter(counted).all(|nic| self.supply(nic) == self.count(nic))
    }

    fn count(&self, nic: &Nic) -> Supply {
        let mut supply = Supply::default();
        for ip in &nic.suspect {
            supply.there[Family::of(ip) as usize] += 1;
        }
        for (ip, address) in &nic.addresses {
            let family = Family::of(ip) as usize;
            supply.there[family] += u32::from(!nic.in_prefix(ip));
            supply.leaving[family] += u32::from(address.leaving);
            supply.idle[family] += u32::from(self.is_idle(ip, address));
            supply.held += u32::from(self.taken.has(ip));
            supply.used += u32::from(self.is_in_use(ip));
        }
        supply.there[Family::V4 as usize] += nic.prefixes.len() as u32;
        if self.settings.whole {
            supply.idle =
                [Family::V4, Family::V6].map(|family| u32::from(supply.used == 0 && self.has_own(nic, family)));
        }
        supply
    }

    /// The address that comes with the whole of the ENI is there and idle. Where pods shared before, others are beside it.
    fn has_own(&self, nic: &Nic, family: Family) -> bool {
        nic.own(family).is_some_and(|ip| nic.addresses.get(&ip).is_some_and(|address| self.is_idle(&ip, address)))
    }

    /// Its addresses that are leased.
    pub fn held_on(&self, nic: &Nic) -> u32 {
        self.supply(nic).held
    }

    /// No address of the ENI is leased or rests.
    pub fn is_untouched(&self, nic: &Nic) -> bool {
        self.supply(nic).used == 0
    }

    /// Some of its addresses rest, and nobody holds them.
    fn has_resting(&self, nic: &Nic) -> bool {
        let Supply { held, used, .. } = self.supply(nic);
        used > held
    }

    /// Places of the ENI that are free, were none of its addresses leaving.
    pub fn free_room(&self, nic: &Nic, family: Family) -> u32 {
        let there = self.supply(nic).there[family as usize] + nic.places_coming(family);
        self.settings.limits.per_adapter(family).saturating_sub(there)
    }

    fn leaving(&self, nic: &Nic, family: Family) -> u32 {
        self.supply(nic).leaving[family as usize]
    }

    /// The least of a number per family: a pod needs one address of each.
    pub fn least(&self, number: impl Fn(Family) -> u32) -> u32 {
        self.settings.stack.families().iter().map(|family| number(*family)).min().unwrap_or(0)
    }

    /// The most pods that an ENI can serve.
    pub fn per_eni(&self) -> u32 {
        self.least(|family| {
            let on = |vswitch: &String| self.most_on(vswitch, family);
            self.settings.vswitches.iter().map(on).max().unwrap_or(self.settings.limits.per_adapter(family))
        })
    }

    /// Pods that the free addresses of the ENI are enough for.
    pub fn idle_on(&self, nic: &Nic) -> u32 {
        self.least(|family| self.idle_of(nic, family))
    }

    /// Its addresses that a pod could have: of a lent one none, whatever else is on it, and none without a way out.
    pub fn idle_of(&self, nic: &Nic, family: Family) -> u32 {
        if nic.lent || !nic.leads_out(family) { 0 } else { self.supply(nic).idle[family as usize] }
    }

    /// The same with the addresses that have been asked for.
    pub fn promised(&self, nic: &Nic) -> u32 {
        self.least(|family| self.idle_of(nic, family) + nic.coming(family))
    }

    /// The same with all that can be asked for now.
    fn reach(&self, nic: &Nic) -> u32 {
        self.least(|family| {
            let open = !nic.lent && self.no_assign(nic, family, self.now).is_none();
            let room = if open { self.gain(nic, family) } else { 0 };
            self.idle_of(nic, family) + nic.coming(family) + room
        })
    }

    /// The same if nothing but the ENI's limits stood in the way.
    pub fn limit(&self, nic: &Nic) -> u32 {
        if nic.lent || self.settings.whole && !self.is_untouched(nic) {
            return 0;
        }
        self.least(|family| {
            let more = self.gain(nic, family) + self.leaving(nic, family);
            self.idle_of(nic, family) + nic.coming(family) + more
        })
    }

    /// Pods for whom an address of one family is there or coming, and the other can be asked for now.
    pub fn halves(&self, nic: &Nic) -> u32 {
        let families = self.settings.stack.families().iter();
        let most = families.map(|family| self.idle_of(nic, *family) + nic.coming(*family)).max().unwrap_or(0);
        self.reach(nic).min(most) - self.promised(nic)
    }

    /// Pods beyond all these for whom addresses could be asked for now.
    pub fn room(&self, nic: &Nic) -> u32 {
        self.reach(nic) - self.promised(nic) - self.halves(nic)
    }

    /// What to ask for first so that the ENI comes to serve so many pods more. A family that was refused before goes first:
    /// if it is refused again, no address of the other lies idle.
    pub fn lacking(&self, nic: &Nic, more: u32) -> Option<(Family, u32)> {
        let target = self.promised(nic) + more;
        let missing = |family: Family| target.saturating_sub(self.idle_of(nic, family) + nic.coming(family));
        let families = self.settings.stack.families().iter().map(|family| (*family, missing(*family)));
        families.filter(|(_, count)| *count > 0).min_by_key(|(family, _)| !self.was_refused(nic, *family))
    }

    fn was_refused(&self, nic: &Nic, family: Family) -> bool {
        nic.no_assign.contains_key(&family) || self.blocks.contains_key(&Verb::Assign(family))
    }

    /// The first of the reasons why the ENI gets no address of a family that it lacks most.
    pub fn no_more(&self, nic: &Nic) -> Option<Refused> {
        let promised = self.promised(nic);
        let scarce = |family: &&Family| self.idle_of(nic, **family) + nic.coming(**family) == promised;
        self.settings.stack.families().iter().filter(scarce).find_map(|family| self.no_assign(nic, *family, self.now))
    }

    /// Pods that an ENI will serve which is being made.
    pub fn to_be_made(&self, create: &Create) -> u32 {
        let whole = self.uses_prefixes(create.vswitch());
        self.least(|family| if whole { self.most_on(create.vswitch(), family) } else { create.addresses(family) })
    }

    /// Pods that could be served from this ENI by that time; `cloud`: it may be asked by then.
    pub fn could_come_from(&self, nic: &Nic, cloud: bool, by: Now) -> u32 {
        if self.settings.whole {
            return u32::from(self.untouched_by(nic, by)).min(self.per_eni());
        }
        if nic.lent {
            return 0;
        }
        self.least(|family| {
            let coming = if cloud || nic.busy.is_some() { nic.coming(family) } else { 0 };
            let open = cloud && self.no_assign(nic, family, by).is_none();
            let room = if open { self.gain(nic, family) + self.leaving(nic, family) } else { 0 };
            self.free_by(nic, family, by) + coming + room
        })
    }

    fn free_by(&self, nic: &Nic, family: Family, by: Now) -> u32 {
        if !self.has_resting(nic) {
            return self.idle_of(nic, family);
        }
        let free = |ip: &IpAddr| !self.taken.has(ip) && self.resting.get(ip).is_none_or(|until| *until <= by);
        let of_family = nic.addresses.iter().filter(|(ip, _)| Family::of(ip) == family);
        of_family.filter(|(ip, a)| !a.leaving && free(ip)).count() as u32
    }

    /// The whole of the ENI can be had by that time, as far as we know.
    pub fn untouched_by(&self, nic: &Nic, by: Now) -> bool {
        let free = |ip: &IpAddr| !self.taken.has(ip) && self.resting.get(ip).is_none_or(|until| *until <= by);
        nic.kept() && !nic.lent && nic.addresses.keys().all(free)
    }

    /// The ENI can never serve a pod: it lies where there are no addresses of one family.
    pub fn is_barren(&self, nic: &Nic) -> bool {
        let there = |family| nic.addresses.keys().any(|ip| Family::of(ip) == family);
        let none = |family: &Family| !self.vswitches.has(&nic.vswitch, *family) && !there(*family);
        self.settings.stack.families().iter().any(none)
    }

    /// Free addresses that can be unassigned, those that were free last first.
    pub fn removable(&self, nic: &Nic, family: Family) -> Vec<IpAddr> {
        let idle = self.idle_addresses(nic, family);
        let idle = idle.filter(|(ip, _)| *ip != IpAddr::V4(nic.primary) && !nic.in_prefix(ip));
        let mut idle: Vec<_> = idle.map(|(ip, a)| (a.free_since, ip)).collect();
        idle.sort_by(|(a, ip), (b, other)| b.cmp(a).then(ip.cmp(other)));
        idle.into_iter().map(|(_, ip)| ip).collect()
    }

    /// Free addresses of one family that no pod can have for want of the other, or because the stack has not the family.
    pub fn unpaired(&self, nic: &Nic) -> Vec<IpAddr> {
        let idle = self.idle_on(nic);
        let extra = |family| {
            let of_use = if self.settings.stack.has(family) { idle } else { 0 };
            match self.idle_of(nic, family) - of_use {
                0 => Vec::new(),
                many => self.removable(nic, family).into_iter().take(many as usize).collect(),
            }
        };
        [extra(Family::V4), extra(Family::V6)].concat()
    }
}
