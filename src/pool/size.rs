//! How many idle addresses and ENIs we want, and the calls that bring the pool there, in batches.

use std::cmp::Reverse;
use std::net::IpAddr;
use std::time::Duration;

use super::calls::{Create, Verb};
use super::eni::{Assign, Goal, Kernel, Nic};
use super::state::State;
use super::{Call, Capacity, Effect, EniChoice, Intent};
use crate::eni::PER_PREFIX;
use crate::ip::Family;

/// Addresses given back in one call, which lists them.
pub(super) const MAX_PER_CALL: u32 = 10;
/// How long the first who is short waits for others to be short with it.
const GATHER: Duration = Duration::from_millis(100);
/// How long there must be too many idle addresses before some go.
const SURPLUS: Duration = Duration::from_secs(5);

/// Addresses asked for in one call. The cloud counts secondary IPv4 addresses up to 49, and IPv6 addresses up to ten.
pub(super) fn max_per_call(family: Family) -> u32 {
    match family {
        Family::V4 => 49,
        Family::V6 => 10,
    }
}

impl State {
    /// The bound on ENIs; those of others on the node take their places.
    pub fn max_enis(&self) -> u32 {
        let places = self.settings.limits.adapters.saturating_sub(1).saturating_sub(self.foreign);
        self.settings.max_enis.min(places)
    }

    pub fn capacity(&self) -> Capacity {
        let (enis, lent) = (self.max_enis(), self.nics.values().filter(|n| n.lent).count() as u32);
        let shared = self.nics.iter().filter(|(id, n)| !n.missing && !n.lent && self.needed(id)).count() as u32;
        let taken = if self.settings.whole { 0 } else { shared };
        Capacity { enis, per_eni: self.per_eni(), lent, whole: enis.saturating_sub(taken) }
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
        self.nics.values().filter(|n| n.promising()).map(|n| self.idle_on(n)).sum()
    }

    fn coming(&self) -> u32 {
        let promising = self.nics.values().filter(|n| n.promising());
        let assigned: u32 = promising.map(|n| self.promised(n) - self.idle_on(n)).sum();
        assigned + self.creates.iter().map(|c| self.to_be_made(c)).sum::<u32>()
    }

    /// What will be a supply when the other family has come.
    fn half_there(&self) -> u32 {
        self.nics.values().filter(|n| n.promising()).map(|n| self.halves(n)).sum()
    }

    /// Addresses that lack for everyone who waits and for the smallest warm pool. What rests is no supply.
    pub fn shortage(&self) -> u32 {
        self.lack(self.least_idle())
    }

    fn lack(&self, warm: u32) -> u32 {
        (self.hungry().count() as u32 + warm).saturating_sub(self.idle() + self.coming())
    }

    /// What to ask for once we ask: the middle between the bounds, so that the next ADD does not cause the next call.
    fn ask(&self) -> u32 {
        let min = self.least_idle();
        let max = self.settings.max_idle.max(min);
        self.lack(min + (max - min) / 2)
    }

    // -- more --

    pub fn grow(&mut self) {
        self.create_again();
        self.grow_whole();
        loop {
            let short = self.shortage();
            let too_few = self.free_places() > 0 && self.places_taken() < self.settings.min_enis;
            if short == 0 && !too_few {
                self.short_since = None;
                return;
            }
            if short > 0 && self.complete_some() {
                continue;
            }
            let short = short.saturating_sub(self.half_there());
            if !too_few && short == 0 {
                return self.wake_when_possible();
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

    /// Makes an ENI for each pod that wants one to itself, and for whom none is free or on its way.
    fn grow_whole(&mut self) {
        let wishes = self.wishes();
        if wishes == 0 || self.per_eni() == 0 {
            return;
        }
        let coming = self.nics.values().filter(|n| n.promising() && self.untouched_by(n, self.now)).count() as u32;
        let mut short = wishes.saturating_sub(coming + self.creates.len() as u32);
        while short > 0 && self.free_places() > 0 && self.survey.blind.is_none() && self.can_attach() {
            if !(self.may(Verb::Create) && self.create(1)) {
                break;
            }
            short -= 1;
        }
        if short > 0 {
            self.wake_when_possible();
        }
    }

    fn gathered(&mut self, short: u32) -> bool {
        let due = *self.short_since.get_or_insert(self.now) + GATHER;
        if short < self.per_eni().min(max_per_call(Family::V4)) && due > self.now {
            self.at(due);
            return false;
        }
        true
    }

    /// Asks for the other family where one is ahead.
    fn complete_some(&mut self) -> bool {
        let mut open = self.nics.iter().filter(|(_, n)| n.serves() && n.free_for(self.now));
        let half = open.find_map(|(id, n)| Some((id.clone(), self.halves(n))).filter(|(_, halves)| *halves > 0));
        let Some((eni, halves)) = half else { return false };
        self.assign(&eni, halves.min(self.ask().max(1)))
    }

    /// Asks for addresses on the ENI that the settings prefer.
    fn assign_some(&mut self) -> bool {
        let Some((eni, room)) = self.best_to_fill() else { return false };
        let more = self.ask().saturating_sub(self.half_there()).clamp(1, room);
        self.assign(&eni, more)
    }

    /// Asks for what the ENI lacks to serve so many pods more.
    fn assign(&mut self, eni: &str, more: u32) -> bool {
        let nic = &self.nics[eni];
        let Some((family, lack)) = self.lacking(nic, more) else { return false };
        let prefixes = self.prefixes_to_ask(nic, family, lack);
        let left = self.vswitches.left(&nic.vswitch, family);
        if !self.may(Verb::Assign(family)) {
            return false;
        }
        let (eni, token) = (eni.to_owned(), self.token());
        let (call, count) = match prefixes {
            0 => {
                let count = lack.min(max_per_call(family)).min(left);
                (Call::Assign { eni: eni.clone(), family, count, token: token.clone() }, count)
            }
            count => (Call::AssignPrefixes { eni: eni.clone(), count, token: token.clone() }, count * PER_PREFIX),
        };
        let intent = Intent { token, call };
        self.out.push(Effect::Intend(intent.clone()));
        let nic = self.nics.get_mut(&eni).expect("just chosen");
        nic.assign = Some(Assign { intent: intent.clone(), family, count, tries: 0, doubt: false });
        self.start(intent.call);
        true
    }

    fn best_to_fill(&self) -> Option<(String, u32)> {
        let avoided = |n: &Nic| self.is_outdated(n) && self.can_make_another();
        let open = self.nics.iter().filter(|(_, n)| n.serves() && n.free_for(self.now) && self.room(n) > 0);
        let open = open.filter(|(_, n)| !avoided(n));
        let best = match self.settings.eni_choice {
            EniChoice::MostIps => open.min_by_key(|(id, n)| (Reverse(n.addresses.len()), *id)),
            EniChoice::LeastIps => open.min_by_key(|(id, n)| (n.addresses.len(), *id)),
        };
        best.map(|(id, n)| (id.clone(), self.room(n)))
    }

    /// The configuration does not name its vSwitch any more: it serves what it has, and gets more only where nothing else can.
    fn is_outdated(&self, nic: &Nic) -> bool {
        !self.settings.vswitches.contains(&nic.vswitch)
    }

    fn can_make_another(&self) -> bool {
        self.free_places() > 0 && self.per_eni() > 0 && self.survey.blind.is_none() && self.could_create(self.now)
    }

    /// Makes an ENI for what the ENIs there are have no room for.
    fn create_some(&mut self, short: u32, too_few: bool) -> bool {
        let promising = self.nics.values().filter(|n| n.promising() && !self.is_outdated(n));
        let room: u32 = promising.map(|n| self.room(n)).sum();
        if (short <= room && !too_few) || self.free_places() == 0 || self.per_eni() == 0 || self.survey.blind.is_some()
        {
            return false;
        }
        let more = self.ask().saturating_sub(self.half_there() + room).clamp(1, self.per_eni());
        let more = more.min(self.least(max_per_call));
        self.can_attach() && self.may(Verb::Create) && self.create(more)
    }

    /// Every ENI has its primary IPv4 address, also where no pod has one.
    fn create(&mut self, more: u32) -> bool {
        let Some(vswitch) = self.vswitches.choose(self.now, &self.settings, &mut self.rng) else { return false };
        // Its prefixes are asked for once it is there.
        let more = if self.uses_prefixes(&vswitch) { 1 } else { more.min(self.settings.limits.v4_per_adapter) };
        let more = more.min(self.vswitches.left(&vswitch, Family::V4));
        let token = self.token();
        let call = Call::Create {
            vswitch,
            security_groups: self.groups().into_iter().collect(),
            resource_group: self.settings.resource_group.clone(),
            tags: self.settings.tags.clone(),
            addresses: if self.settings.stack.has(Family::V4) { more } else { 1 },
            v6: if self.settings.stack.has(Family::V6) { more } else { 0 },
            token: token.clone(),
        };
        let intent = Intent { token, call };
        self.out.push(Effect::Intend(intent.clone()));
        let id = self.start(intent.call.clone());
        self.creates.push(Create::first(intent, id));
        true
    }

    /// A token that no other life of any node has used.
    pub fn token(&mut self) -> String {
        format!("{:032x}", self.rng.u128(..))
    }

    /// Nothing can be asked for now; the end of what prevents it is a reason to wake.
    fn wake_when_possible(&mut self) {
        let retries = self.nics.values().filter(|n| n.serves() && n.busy.is_none()).map(|n| n.retry.next);
        let refusals = self.nics.values().flat_map(|n| n.no_assign.values().map(|(until, _)| *until));
        let blocks = self.blocks.values().map(|b| b.until);
        let aside = self.vswitches.next_end(self.now);
        let next = retries
            .chain(refusals)
            .chain(blocks)
            .chain(aside)
            .chain(self.next_prefixes())
            .filter(|t| *t > self.now)
            .min();
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
        let (idle, few) = (self.idle(), kept <= self.settings.min_enis);
        // Another one, in a vSwitch of the configuration, takes its place.
        let outdated = |n: &Nic| self.is_outdated(n) && self.could_create(self.now);
        let spare = |n: &Nic| {
            let enough = idle.saturating_sub(self.idle_on(n)) >= self.kept_idle();
            over || outdated(n) || !few && (self.is_barren(n) || enough)
        };
        let empty = self.nics.iter().filter(|(id, n)| self.is_empty(id, n) && spare(n));
        // Where every pod has a whole ENI, those above the bound are what elsewhere addresses are.
        let surplus = self.settings.whole && idle > self.settings.max_idle.max(self.settings.min_idle);
        let patience = if surplus { SURPLUS } else { self.settings.eni_idle };
        let due = |n: &Nic| if over || outdated(n) { n.empty_since } else { n.empty_since + patience };
        let Some((due, _, id)) = empty.map(|(id, n)| (due(n), n.addresses.len(), id.clone())).min() else { return };
        if due > self.now {
            return self.at(due);
        }
        self.nics.get_mut(&id).expect("just chosen").goal = Goal::GiveBack;
    }

    /// Nothing of it is leased, rests, or is being changed.
    fn is_empty(&self, id: &str, nic: &Nic) -> bool {
        let quiet = nic.kept() && nic.busy.is_none() && nic.assign.is_none() && nic.kernel != Kernel::Asked;
        quiet && self.is_untouched(nic) && !self.needed(id)
    }

    /// Unassigns idle addresses above the upper bound, from the emptiest ENI first, and those that no pod can have.
    fn trim(&mut self) {
        let above = self.idle().saturating_sub(self.most_idle());
        let due = if above == 0 { self.reclaimable() } else { 0 };
        let Some((eni, leaving)) = self.left_over().or_else(|| self.surplus(above.max(due), above == 0)) else {
            self.surplus_since = None;
            return;
        };
        let end = *self.surplus_since.get_or_insert(self.now) + SURPLUS;
        if end > self.now {
            return self.at(end);
        }
        if leaving.iter().any(|ip| self.may(Verb::Unassign(Family::of(ip)))) {
            let nic = self.nics.get_mut(&eni).expect("just chosen");
            nic.leaves = true;
            for ip in &leaving {
                nic.addresses.get_mut(ip).expect("just listed").leaving = true;
            }
            self.recount();
            self.unassign(&eni);
            if due > 0 {
                self.reclaimed();
            }
        }
    }

    /// An ENI with addresses of one family that will not be completed, and those addresses.
    fn left_over(&self) -> Option<(String, Vec<IpAddr>)> {
        let short = self.shortage() > 0;
        let mut open = self.nics.iter().filter(|(_, n)| n.serves() && n.free_for(self.now));
        open.find_map(|(id, n)| {
            let mut unpaired = self.unpaired(n);
            unpaired.retain(|ip| !(short && self.settings.stack.has(Family::of(ip)) && self.halves(n) > 0));
            unpaired.truncate(MAX_PER_CALL as usize);
            Some((id.clone(), unpaired)).filter(|(_, unpaired)| !unpaired.is_empty())
        })
    }

    /// So many free addresses, or fewer, on the emptiest ENI. Where every pod has a whole ENI, an ENI too many goes as a whole.
    fn surplus(&self, surplus: u32, reclaiming: bool) -> Option<(String, Vec<IpAddr>)> {
        if self.settings.whole {
            return None;
        }
        // A batch to reclaim may be smaller than a prefix.
        let spare =
            if reclaiming && surplus > 0 { self.idle().saturating_sub(self.settings.min_idle) } else { surplus };
        if let Some(whole) = self.surplus_prefix(spare) {
            return Some(whole);
        }
        let open = self.nics.iter().filter(|(_, n)| surplus > 0 && n.serves() && n.free_for(self.now));
        let open = open.map(|(id, n)| (id, n, self.least(|family| self.removable(n, family).len() as u32)));
        let (id, nic, most) = open.filter(|(_, _, most)| *most > 0).min_by_key(|(id, n, _)| (self.held_on(n), *id))?;
        let count = surplus.min(MAX_PER_CALL).min(most) as usize;
        let families = self.settings.stack.families().iter();
        Some((id.clone(), families.flat_map(|family| self.removable(nic, *family).into_iter().take(count)).collect()))
    }
}
