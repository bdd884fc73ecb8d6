//! How many idle addresses and ENIs we want, and the calls that bring the pool there, in batches.

use std::cmp::Reverse;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::calls::{Create, Verb};
use super::eni::{Assign, Goal, Kernel, Nic};
use super::state::State;
use super::{Call, Effect, EniChoice, Intent, Now};

/// Addresses asked for in one call. AssignPrivateIpAddresses lists at most ten addresses, and the old Terway asks CreateNetworkInterface
/// for no more either.
pub(super) const MAX_PER_CALL: u32 = 10;
/// How long the first who is short waits for others to be short with it.
const GATHER: Duration = Duration::from_millis(100);
/// How long there must be too many idle addresses before some go.
const SURPLUS: Duration = Duration::from_secs(5);

impl State {
    pub fn per_eni(&self) -> u32 {
        self.settings.limits.v4_per_adapter
    }

    /// The bound on ENIs; those of others on the node take their places.
    pub fn max_enis(&self) -> u32 {
        let places = self.settings.limits.adapters.saturating_sub(1).saturating_sub(self.foreign);
        self.settings.max_enis.min(places)
    }

    /// ENIs there are or will be, those on their way out included.
    pub fn places_taken(&self) -> u32 {
        (self.nics.values().filter(|n| !n.missing).count() + self.creates.len()) as u32
    }

    pub fn free_places(&self) -> u32 {
        self.max_enis().saturating_sub(self.places_taken())
    }

    /// Places that are free, or will be once the ENIs on their way out have gone.
    pub fn places_to_come(&self) -> u32 {
        let leaving = self.nics.values().filter(|n| !n.missing && n.goal == Goal::GiveBack).count() as u32;
        self.max_enis().saturating_sub(self.places_taken() - leaving)
    }

    /// Idle addresses that there are, or will be when their ENI serves.
    pub fn idle(&self) -> u32 {
        self.nics.values().filter(|n| n.promising()).map(|n| self.idle_on(n).count() as u32).sum()
    }

    fn coming(&self) -> u32 {
        let assigned: u32 = self.nics.values().filter(|n| n.promising()).map(Nic::coming).sum();
        assigned + self.creates.iter().map(Create::addresses).sum::<u32>()
    }

    /// Addresses that lack for everyone who waits and for the smallest warm pool. What rests is no supply.
    pub fn shortage(&self) -> u32 {
        self.lack(self.settings.min_idle)
    }

    fn lack(&self, warm: u32) -> u32 {
        (self.hungry().count() as u32 + warm).saturating_sub(self.idle() + self.coming())
    }

    /// What to ask for once we ask: the middle between the bounds, so that the next ADD does not cause the next call.
    fn ask(&self) -> u32 {
        let (min, max) = (self.settings.min_idle, self.settings.max_idle.max(self.settings.min_idle));
        self.lack(min + (max - min) / 2).max(1)
    }

    // -- more --

    pub fn grow(&mut self) {
        self.create_again();
        loop {
            let short = self.shortage();
            let too_few = self.free_places() > 0 && self.places_taken() < self.settings.min_enis;
            if short == 0 && !too_few {
                self.short_since = None;
                return;
            }
            if !too_few && !self.gathered(short) {
                return;
            }
            if !(short > 0 && self.assign_some() || self.create_some(short, too_few)) {
                return self.wake_when_possible();
            }
            self.short_since = None;
        }
    }

    fn gathered(&mut self, short: u32) -> bool {
        let due = *self.short_since.get_or_insert(self.now) + GATHER;
        if short < MAX_PER_CALL && due > self.now {
            self.at(due);
            return false;
        }
        true
    }

    /// Asks for addresses on the ENI that the settings prefer.
    fn assign_some(&mut self) -> bool {
        let Some((eni, room)) = self.best_to_fill() else { return false };
        if !self.may(Verb::Assign) {
            return false;
        }
        let (count, token) = (self.ask().min(MAX_PER_CALL).min(room), self.token());
        let call = Call::Assign { eni: eni.clone(), count, token: token.clone() };
        let intent = Intent { token, call };
        self.out.push(Effect::Intend(intent.clone()));
        let nic = self.nics.get_mut(&eni).expect("just chosen");
        nic.assign = Some(Assign { intent: intent.clone(), count, tries: 0, doubt: false });
        self.start(intent.call);
        true
    }

    fn best_to_fill(&self) -> Option<(String, u32)> {
        let open = self.nics.iter().filter(|(_, n)| n.serves() && n.free_for(self.now) && self.can_fill(n));
        let best = match self.settings.eni_choice {
            EniChoice::MostIps => open.min_by_key(|(id, n)| (Reverse(n.addresses.len()), *id)),
            EniChoice::LeastIps => open.min_by_key(|(id, n)| (n.addresses.len(), *id)),
        };
        best.map(|(id, n)| (id.clone(), n.room(self.per_eni())))
    }

    fn can_fill(&self, nic: &Nic) -> bool {
        nic.room(self.per_eni()) > 0 && self.no_assign(nic, self.now).is_none()
    }

    /// Makes an ENI for what the ENIs there are have no room for.
    fn create_some(&mut self, short: u32, too_few: bool) -> bool {
        let promising = self.nics.values().filter(|n| n.promising() && self.can_fill(n));
        let room: u32 = promising.map(|n| n.room(self.per_eni())).sum();
        if (short <= room && !too_few) || self.free_places() == 0 || self.per_eni() == 0 || self.survey.blind.is_some()
        {
            return false;
        }
        let addresses = self.ask().saturating_sub(room).clamp(1, MAX_PER_CALL.min(self.per_eni()));
        self.can_attach() && self.may(Verb::Create) && self.create(addresses)
    }

    fn create(&mut self, addresses: u32) -> bool {
        let Some(vswitch) = self.vswitches.choose(self.now, &self.settings, &mut self.rng) else { return false };
        let token = self.token();
        let call = Call::Create {
            vswitch,
            security_groups: self.groups().into_iter().collect(),
            resource_group: self.settings.resource_group.clone(),
            tags: self.settings.tags.clone(),
            addresses,
            token: token.clone(),
        };
        let intent = Intent { token, call };
        self.out.push(Effect::Intend(intent.clone()));
        let id = self.start(intent.call.clone());
        self.creates.push(Create::first(intent, id));
        true
    }

    /// A token that no other life of any node has used.
    fn token(&mut self) -> String {
        format!("{:032x}", self.rng.u128(..))
    }

    /// Nothing can be asked for now; the end of what prevents it is a reason to wake.
    fn wake_when_possible(&mut self) {
        let retries = self.nics.values().filter(|n| n.serves() && n.busy.is_none()).map(|n| n.retry.next);
        let refusals = self.nics.values().filter_map(|n| n.no_assign.as_ref().map(|(until, _)| *until));
        let blocks = self.blocks.values().map(|b| b.until);
        let aside = self.vswitches.next_end(self.now);
        let next = retries.chain(refusals).chain(blocks).chain(aside).filter(|t| *t > self.now).min();
        if let Some(at) = next {
            self.at(at);
        }
    }

    // -- less --

    pub fn shrink(&mut self) {
        if self.waiting.is_empty() {
            self.give_back();
            self.trim();
        }
    }

    /// Gives back one ENI that has long held no lease, if enough stays; at once if there are more than there may be.
    fn give_back(&mut self) {
        let kept = self.nics.values().filter(|n| n.kept()).count() as u32;
        let over = kept > self.max_enis();
        if !over && kept <= self.settings.min_enis {
            return;
        }
        let idle = self.idle();
        let spare = |n: &Nic| over || idle.saturating_sub(self.idle_on(n).count() as u32) >= self.settings.min_idle;
        let empty = self.nics.iter().filter(|(id, n)| self.is_empty(id, n) && spare(n));
        let due = |n: &Nic| if over { n.empty_since } else { n.empty_since + self.settings.eni_idle };
        let Some((due, _, id)) = empty.map(|(id, n)| (due(n), n.addresses.len(), id.clone())).min() else { return };
        if due > self.now {
            return self.at(due);
        }
        self.nics.get_mut(&id).expect("just chosen").goal = Goal::GiveBack;
    }

    /// Nothing of it is leased, rests, or is being changed.
    fn is_empty(&self, id: &str, nic: &Nic) -> bool {
        let quiet = nic.kept() && nic.busy.is_none() && nic.assign.is_none() && nic.kernel != Kernel::Asked;
        let needed = |ip: &Ipv4Addr| self.taken.contains_key(ip) || self.resting.contains_key(ip);
        quiet && !nic.addresses.keys().any(needed) && !self.needed(id)
    }

    /// Unassigns idle addresses above the upper bound, from the emptiest ENI first.
    fn trim(&mut self) {
        let surplus = self.idle().saturating_sub(self.settings.max_idle.max(self.settings.min_idle));
        let Some(eni) = self.best_to_trim().filter(|_| surplus > 0) else {
            self.surplus_since = None;
            return;
        };
        let due = *self.surplus_since.get_or_insert(self.now) + SURPLUS;
        if due > self.now {
            return self.at(due);
        }
        if !self.may(Verb::Unassign) {
            return;
        }
        self.mark_leaving(&eni, surplus.min(MAX_PER_CALL) as usize);
        self.unassign(&eni);
    }

    fn best_to_trim(&self) -> Option<String> {
        let has_some = |n: &Nic| self.idle_on(n).any(|(ip, _)| ip != n.primary);
        let open = self.nics.iter().filter(|(_, n)| n.serves() && n.free_for(self.now) && has_some(n));
        open.min_by_key(|(id, n)| (self.held_on(n), *id)).map(|(id, _)| id.clone())
    }

    fn mark_leaving(&mut self, eni: &str, count: usize) {
        let nic = &self.nics[eni];
        let mut idle: Vec<(Reverse<Now>, _)> =
            self.idle_on(nic).filter(|(ip, _)| *ip != nic.primary).map(|(ip, a)| (Reverse(a.free_since), ip)).collect();
        idle.sort();
        let nic = self.nics.get_mut(eni).expect("just chosen");
        for (_, ip) in idle.into_iter().take(count) {
            nic.addresses.get_mut(&ip).expect("just listed").leaving = true;
        }
    }
}
