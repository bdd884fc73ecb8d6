//! The ADDs that wait: who is served, who is refused, when, and with which true reason.

use std::cmp::Reverse;
use std::net::IpAddr;

use super::calls::{Block, Verb};
use super::eni::{Kernel, Nic};
use super::state::{Ends, State};
use super::vswitch;
use super::{Effect, EniChoice, Held, Now, Refused, Settings, Ticket};
use crate::ip::{Family, IpPair, Stack};
use crate::pod::{Attachment, PodName, Sandbox};
use crate::rpc::Refusal;

/// An ADD that waits, in the order of arrival.
pub(super) struct Waiting {
    pub ticket: Ticket,
    pub pod: PodName,
    pub sandbox: Sandbox,
    /// It wants an ENI to itself.
    pub whole: bool,
    pub deadline: Now,
    pub since: Now,
}

impl State {
    pub fn allocate(&mut self, waiting: Waiting) {
        if self.lost.contains(&waiting.sandbox.attachment) {
            self.retire(&waiting.sandbox.attachment, Ends::Freed);
        }
        self.waiting.push(waiting);
    }

    pub fn release(&mut self, attachment: &Attachment, ends: Ends) {
        self.retire(attachment, ends);
        let (gone, stay) =
            std::mem::take(&mut self.waiting).into_iter().partition(|w| w.sandbox.attachment == *attachment);
        self.waiting = stay;
        let gone: Vec<Waiting> = gone;
        for w in gone {
            let reason = format!("{attachment} was deleted while its ADD waited");
            self.out
                .push(Effect::Reply { ticket: w.ticket, result: Err(Refused { why: Refusal::BadRequest, reason }) });
        }
    }

    /// Answers everyone for whom there is an address, first come first.
    pub fn serve(&mut self) {
        let mut dry = Dry::default();
        for w in std::mem::take(&mut self.waiting) {
            match self.lease_for(&w, &mut dry) {
                Some(held) => self.out.push(Effect::Reply { ticket: w.ticket, result: Ok(held) }),
                None => self.waiting.push(w),
            }
        }
    }

    fn lease_for(&mut self, w: &Waiting, dry: &mut Dry) -> Option<Held> {
        if self.leases.contains_key(&w.sandbox.attachment) {
            return self.same_lease(w);
        }
        if let Some((ip, eni)) = self.kept_for(w) {
            let eni = eni.to_owned();
            let (nic, wish) = (&self.nics[&eni], self.is_wish(w));
            let still = nic.serves() && (!wish || nic.is_still());
            return still.then(|| self.lease_reserved(w, eni, ip));
        }
        let (whole, dry) = match self.is_wish(w) {
            true => (true, &mut dry.whole),
            false => (self.settings.whole, &mut dry.shared),
        };
        let found = if *dry {
            None
        } else if self.is_wish(w) {
            self.best_whole()
        } else {
            self.best_idle()
        };
        *dry = found.is_none();
        let (eni, ip) = found?;
        let held = Held { pod: w.pod.clone(), sandbox: w.sandbox.clone(), eni, ip, whole };
        self.out.push(Effect::Record(held.clone()));
        self.hold(held.clone());
        self.reclaiming.leased = self.now;
        if whole {
            self.lend(&held.eni);
        }
        Some(held)
    }

    /// It wants an ENI to itself where others share theirs.
    fn is_wish(&self, w: &Waiting) -> bool {
        w.whole && !self.settings.whole
    }

    /// Nobody but the pod uses the ENI any more.
    fn lend(&mut self, eni: &str) {
        let nic = self.nics.get_mut(eni).expect("just leased");
        nic.kernel = Kernel::Absent;
        nic.dismantled = true;
        self.out.push(Effect::Dismantle { eni: eni.to_owned(), mac: nic.mac });
    }

    /// An ENI of which nothing is in use: the one with the fewest addresses, since none of them serves others then.
    fn best_whole(&self) -> Option<(String, IpPair)> {
        let still = |n: &Nic| n.serves() && !n.lent && n.is_still() && self.is_untouched(n);
        let open = self.nics.iter().filter(|(id, n)| still(n) && !self.needed(id));
        let open = open.filter_map(|(id, n)| Some((n.addresses.len(), id, self.own_addresses(n)?)));
        open.min_by_key(|(count, id, _)| (*count, *id)).map(|(_, id, ip)| (id.clone(), ip))
    }

    /// What comes with the whole of an ENI: an address of each family.
    fn own_addresses(&self, nic: &Nic) -> Option<IpPair> {
        let there = |family: &Family| nic.own(*family).filter(|ip| nic.offers(*ip));
        self.settings.stack.families().iter().map(there).collect()
    }

    /// What is kept for the pod that waits. Who gets an ENI to itself has its former one, unless others use anything of it by now.
    fn kept_for(&self, w: &Waiting) -> Option<(IpPair, &str)> {
        let (ip, eni) = self.reserved_for(&w.pod)?;
        let nic = &self.nics[eni];
        let others = || nic.addresses.keys().any(|a| !ip.iter().any(|own| own == *a) && self.is_in_use(a));
        let alone = || ip.v4.is_none_or(|v4| v4 == nic.primary) && !others() && !self.leased_from(eni);
        let shares = !w.whole && !self.settings.whole;
        (shares || alone()).then_some((ip, eni))
    }

    /// Written down before the reservation ends: whoever dies in between finds the lease.
    fn lease_reserved(&mut self, w: &Waiting, eni: String, ip: IpPair) -> Held {
        let whole = self.settings.whole || w.whole;
        let held = Held { pod: w.pod.clone(), sandbox: w.sandbox.clone(), eni, ip, whole };
        self.out.push(Effect::Record(held.clone()));
        self.wake_up(ip);
        self.hold(held.clone());
        if held.whole {
            self.lend(&held.eni);
        }
        held
    }

    /// The attachment asked before: the same lease, once its ENI serves.
    fn same_lease(&mut self, w: &Waiting) -> Option<Held> {
        let held = self.leases.get_mut(&w.sandbox.attachment)?;
        let carries = |n: &Nic| if held.whole { n.carries_one() } else { n.carries() };
        if !self.nics.get(&held.eni).is_some_and(carries) {
            return None;
        }
        if held.sandbox != w.sandbox {
            held.sandbox = w.sandbox.clone();
            self.out.push(Effect::Record(held.clone()));
        }
        Some(held.clone())
    }

    /// The addresses that have been free longest, on the ENI that the settings prefer.
    fn best_idle(&self) -> Option<(String, IpPair)> {
        let candidates = self.nics.iter().filter(|(_, n)| n.serves() && self.idle_on(n) > 0);
        let best = match self.settings.eni_choice {
            EniChoice::MostIps => candidates.min_by_key(|(id, nic)| (Reverse(self.held_on(nic)), *id)),
            EniChoice::LeastIps => candidates.min_by_key(|(id, nic)| (self.held_on(nic), *id)),
        };
        best.and_then(|(id, nic)| Some((id.clone(), self.oldest_idle(nic)?)))
    }

    /// One address of each family of the stack, or nothing.
    fn oldest_idle(&self, nic: &Nic) -> Option<IpPair> {
        let oldest = |family: &Family| -> Option<IpAddr> {
            let mut first: Option<(Now, IpAddr)> = None;
            for (ip, a) in self.lendable(nic, *family) {
                // To find out whether it is idle takes longest.
                if first.is_none_or(|first| (a.free_since, ip) < first) && self.is_idle(&ip, a) {
                    first = Some((a.free_since, ip));
                }
            }
            first.map(|(_, ip)| ip)
        };
        self.settings.stack.families().iter().map(oldest).collect()
    }

    /// Those who wait for an address, and not only for their ENI to serve.
    pub fn hungry(&self) -> impl Iterator<Item = &Waiting> {
        self.waiting.iter().filter(|w| !self.is_provided(w) && !self.is_wish(w))
    }

    /// Those who wait for an ENI to themselves where others share.
    pub fn wishes(&self) -> u32 {
        self.waiting.iter().filter(|w| !self.is_provided(w) && self.is_wish(w)).count() as u32
    }

    /// It has a lease already, or addresses are kept for it.
    fn is_provided(&self, w: &Waiting) -> bool {
        self.leases.contains_key(&w.sandbox.attachment) || self.kept_for(w).is_some()
    }

    /// Refuses those whose deadline has come, and those for whom nothing can come in time.
    pub fn refuse(&mut self) {
        let (mut before, mut wishes) = (0, 0);
        for w in std::mem::take(&mut self.waiting) {
            let again = self.is_provided(&w);
            let wish = self.is_wish(&w);
            let (could_come, ahead) = match wish {
                true => (self.whole_could_come(w.deadline), &mut wishes),
                false => (self.could_come(w.deadline), &mut before),
            };
            let hope = again || could_come > *ahead;
            if w.deadline > self.now && hope {
                *ahead += u32::from(!again);
                self.at(w.deadline);
                self.waiting.push(w);
                continue;
            }
            let refused = match (wish, hope) {
                (true, false) => self.no_whole(),
                (true, true) => self.too_slow(&w),
                (false, _) => {
                    self.obstacle().unwrap_or_else(|| if hope { self.too_slow(&w) } else { self.too_many(before) })
                }
            };
            self.turned_away |= !wish;
            self.tell(Some(&w.pod), true, "AllocIPFailed", refused.reason.clone());
            self.out.push(Effect::Reply { ticket: w.ticket, result: Err(refused) });
        }
    }

    fn too_slow(&self, w: &Waiting) -> Refused {
        // An ENI that we may not look at never comes.
        if let Some(block) =
            self.blocks.get(&Verb::Look).filter(|_| self.nics.values().any(|n| n.kept() && !n.serves()))
        {
            return block.refused.clone();
        }
        let mut reason = format!("no address came within {} s", (self.now - w.since).as_secs());
        for (id, nic) in self.nics.iter().filter(|(_, n)| n.kept() && !n.lent && !n.serves()) {
            let state = if let Some(why) = &nic.complaint { why.clone() } else { format!("{:?}", nic.state) };
            reason += &format!("; {id} is not ready: {state}");
        }
        if !self.calls.is_empty() {
            reason += &format!("; {} cloud calls are under way", self.calls.len());
        }
        Refused { why: Refusal::TooSlow, reason }
    }

    /// What could still come is for those who came before.
    fn too_many(&self, before: u32) -> Refused {
        // What those before leave over may lack a family that the next one would get.
        let kept = self.nics.values().filter(|n| n.kept() && !n.lent);
        let families = self.settings.stack.families();
        let lacking = kept.flat_map(|n| families.iter().filter_map(|family| self.no_assign(n, *family, self.now)));
        let closed = self.ways().into_iter().flatten().chain(lacking).min_by_key(|r| severity(r.why));
        closed.unwrap_or_else(|| {
            let mut refused = self.node_full();
            refused.reason += &format!(", and {before} ADDs wait for the last ones");
            refused
        })
    }

    /// At most so many addresses can become free by that time, as far as is known now.
    pub fn could_come(&self, by: Now) -> u32 {
        let cloud = self.gate.outage().is_none_or(|(_, next)| next <= by);
        let on_enis: u32 = self.nics.values().filter(|n| n.kept()).map(|n| self.could_come_from(n, cloud, by)).sum();
        let in_flight = self.creates.iter().filter(|c| cloud || c.call.is_some()).count() as u32;
        let new = if cloud && self.could_create(by) { self.places_to_come() } else { 0 };
        on_enis + (in_flight + new) * self.per_eni()
    }

    /// At most so many ENIs can become free by that time.
    fn whole_could_come(&self, by: Now) -> u32 {
        let cloud = self.gate.outage().is_none_or(|(_, next)| next <= by);
        let there = self.nics.values().filter(|n| self.untouched_by(n, by)).count() as u32;
        let in_flight = self.creates.iter().filter(|c| cloud || c.call.is_some()).count() as u32;
        let new = if cloud && self.could_create(by) { self.places_to_come() } else { 0 };
        if self.per_eni() == 0 { 0 } else { there + in_flight + new }
    }

    /// Why a pod cannot have an ENI to itself.
    fn no_whole(&self) -> Refused {
        if self.places_to_come() > 0 || !self.creates.is_empty() {
            let closed = self.outage().or_else(|| self.no_create()).or_else(|| self.throttled());
            let others = || Refused { why: Refusal::TooSlow, reason: "others wait for the next ENI already".into() };
            return closed.unwrap_or_else(others);
        }
        let (most, lent) = (self.max_enis(), self.nics.values().filter(|n| n.lent).count());
        let reason = format!(
            "no ENI is free: this node can hold {most}, of which {lent} belong to one pod each and the others carry pods or \
             addresses that cool down"
        );
        Refused { why: Refusal::NodeFull, reason }
    }

    pub fn could_create(&self, by: Now) -> bool {
        let blocked = |verb| self.barrier(verb, by).is_some();
        !blocked(Verb::Create)
            && !blocked(Verb::Attach)
            && self.settings.vswitches.iter().any(|id| self.vswitches.can_create(id, self.settings.stack, by))
    }

    /// Why no address of this family can be asked for on this ENI at that time.
    pub fn no_assign(&self, nic: &Nic, family: Family, at: Now) -> Option<Refused> {
        if !nic.leads_out(family) {
            let reason =
                format!("the link of an ENI in vSwitch {} is not set up for {}", nic.vswitch, family_name(family));
            return Some(Refused { why: Refusal::Local, reason });
        }
        let own = nic.no_assign.get(&family).filter(|(until, _)| *until > at).map(|(_, r)| r.clone());
        let verb = self.barrier(Verb::Assign(family), at).map(|b| b.refused.clone());
        let empty =
            (!self.vswitches.usable(&nic.vswitch, family, at)).then(|| self.empty_vswitch(&nic.vswitch, family));
        verb.or(empty).or(own)
    }

    /// What stands in the way of this verb at that time. Where a person must act first, the next attempt is no hope.
    pub fn barrier(&self, verb: Verb, at: Now) -> Option<&Block> {
        let lasts = |b: &Block| b.until > self.now && matches!(b.refused.why, Refusal::Forbidden | Refusal::Quota);
        self.blocks.get(&verb).filter(|b| b.until > at || lasts(b))
    }

    fn empty_vswitch(&self, id: &str, family: Family) -> Refused {
        let why = self.vswitches.why(id, family, self.now).unwrap_or_default();
        let name = family_name(family);
        Refused { why: Refusal::VSwitchEmpty, reason: format!("vSwitch {id} has no free {name} address: {why}") }
    }

    /// What stands between the node and one more address, if anything does.
    pub fn obstacle(&self) -> Option<Refused> {
        if self.is_full() {
            return Some(self.node_full());
        }
        self.outage().or_else(|| self.blocked()).or_else(|| self.throttled())
    }

    fn outage(&self) -> Option<Refused> {
        let (fault, _) = self.gate.outage()?;
        Some(Refused { why: Refusal::CloudDown, reason: format!("the cloud does not answer: {fault}") })
    }

    fn throttled(&self) -> Option<Refused> {
        let fault = self.gate.throttled()?;
        Some(Refused { why: Refusal::Throttled, reason: format!("the cloud asks us to slow down: {fault}") })
    }

    fn node_full(&self) -> Refused {
        let reserved = self.rests.values().filter(|r| r.reserved.is_some()).count();
        let (held, resting) = (self.leases.len(), self.rests.len() - reserved);
        let mut reason =
            format!("all addresses that this node can hold are taken: {held} in use, {resting} cooling down");
        if reserved > 0 {
            reason += &format!(", {reserved} kept for pods that shall have them again (ip_reservation_time)");
        }
        if let Some(first) = self.rests.values().map(|r| r.until).min() {
            reason += &format!(", the first for another {} s", (first.saturating_sub(self.now)).as_secs());
        }
        Refused { why: Refusal::NodeFull, reason }
    }

    /// Every address that the node can hold is there, and is leased or rests.
    fn is_full(&self) -> bool {
        self.places_to_come() == 0
            && self.creates.is_empty()
            && !self.nics.values().any(|n| n.kept() && self.limit(n) > 0)
    }

    /// The worst of the reasons why every way to one more address is closed; none if one is open.
    fn blocked(&self) -> Option<Refused> {
        let reasons: Option<Vec<Refused>> = self.ways().into_iter().collect();
        reasons?.into_iter().min_by_key(|r| severity(r.why))
    }

    /// The ways to one more address, each with the reason why it is closed.
    fn ways(&self) -> Vec<Option<Refused>> {
        let roomy = self.nics.values().filter(|n| n.kept() && self.limit(n) > self.promised(n));
        let mut ways: Vec<Option<Refused>> = roomy.map(|n| self.no_more(n)).collect();
        if self.places_to_come() > 0 {
            ways.push(self.no_create());
        }
        ways
    }

    fn no_create(&self) -> Option<Refused> {
        if let Some(block) = [Verb::Create, Verb::Attach].into_iter().find_map(|v| self.barrier(v, self.now)) {
            return Some(block.refused.clone());
        }
        if self.per_eni() == 0 {
            return Some(Refused { why: Refusal::Quota, reason: self.barren_type() });
        }
        let (ids, stack) = (&self.settings.vswitches, self.settings.stack);
        if ids.iter().any(|id| self.vswitches.can_create(id, stack, self.now)) {
            return None;
        }
        let aside =
            |id: &String| [Family::V4, Family::V6].into_iter().find_map(|f| self.vswitches.why(id, f, self.now));
        let why = |id: &String| self.vswitches.unfit(id).or_else(|| aside(id));
        let why = ids.iter().find_map(why).unwrap_or_else(|| "none is configured".into());
        let reason = format!("no vSwitch of [{}] has a free address: {why}", ids.join(" "));
        Some(Refused { why: Refusal::VSwitchEmpty, reason })
    }

    fn barren_type(&self) -> String {
        let Settings { stack, instance_type, .. } = &self.settings;
        format!(
            "an ENI of instance type {instance_type} can hold no IPv6 address, and ip_stack is {stack}: \
             choose another instance type, or ip_stack ipv4"
        )
    }

    /// An ADD could be served now or within `soon`.
    pub fn ready(&self, soon: Now) -> Result<(), Refused> {
        let waiting = self.hungry().count() as u32;
        if self.could_come(self.now + soon) <= waiting {
            let unknown = || Refused { why: Refusal::TooSlow, reason: "no address is to be had soon".into() };
            return Err(self.obstacle().unwrap_or_else(unknown));
        }
        let idle = self.nics.values().any(|n| n.serves() && self.idle_on(n) > 0);
        // To be slowed down is no obstacle to who comes in time.
        let passes = |r: &Refused| r.why == Refusal::Throttled && self.gate.may(self.now + soon).is_ok();
        match self.obstacle().filter(|r| !passes(r)).or_else(|| self.broken()) {
            Some(refused) if !idle => Err(refused),
            _ => Ok(()),
        }
    }

    /// The node's kernel does not take the ENIs that the addresses are on, and there is no other way.
    fn broken(&self) -> Option<Refused> {
        let other = self.nics.values().any(|n| n.serves() && self.promised(n) + self.halves(n) + self.room(n) > 0)
            || !self.creates.is_empty()
            || self.places_to_come() > 0 && self.no_create().is_none();
        let mut complaints =
            self.nics.iter().filter(|(_, n)| n.kept()).filter_map(|(id, n)| Some((id, n.complaint.as_ref()?)));
        let (id, why) = complaints.next().filter(|_| !other)?;
        Some(Refused { why: Refusal::Local, reason: format!("{id} cannot be set up: {why}") })
    }

    /// Tells the node's owner once, and again when it changes, what keeps this node from giving every pod both families, or from
    /// using all vSwitches and addresses that it could have.
    pub fn tell_of_stack(&mut self) {
        let Settings { stack, limits, instance_type, vswitches, .. } = &self.settings;
        let mut told: Vec<String> = Vec::new();
        if *stack == Stack::Dual && (1..limits.v4_per_adapter).contains(&limits.v6_per_adapter) {
            told.push(format!(
                "an ENI of instance type {instance_type} holds {} IPv4 addresses and {} IPv6 addresses: with ip_stack dual it \
                 serves {} pods; an instance type with as many of both serves more",
                limits.v4_per_adapter, limits.v6_per_adapter, limits.v6_per_adapter
            ));
        }
        if self.per_eni() == 0 {
            told.push(self.barren_type());
        }
        let unfit = vswitches.iter().filter_map(|id| Some((id, self.vswitches.unfit(id)?)));
        told.extend(unfit.map(|(id, why)| format!("vSwitch {id} of the configuration is not used: {why}")));
        let lacking = vswitches.iter().filter(|id| stack.has(Family::V6) && !self.vswitches.has(id, Family::V6));
        told.extend(lacking.map(|id| format!("vSwitch {id} is not used: {}", vswitch::NO_IPV6)));
        let told = told.join("; ");
        if told != self.told_of_stack {
            self.told_of_stack = told.clone();
            if !told.is_empty() {
                self.tell(None, true, "ResourceInvalid", told);
            }
        }
    }

    /// Tells the node's owner once when a trouble begins, changes and ends. A full node is none before someone was turned away.
    pub fn tell_trouble(&mut self) {
        self.turned_away &= self.is_full();
        let trouble = self.obstacle().filter(|r| r.why != Refusal::NodeFull || self.turned_away);
        // What was refused and may be tried again has not succeeded yet.
        let untried = |told: &Refused| self.blocks.values().any(|block| block.refused == *told);
        if trouble.is_none() && self.told.as_ref().is_some_and(untried) {
            return;
        }
        let before = std::mem::replace(&mut self.told, trouble.clone());
        if before.map(|r| r.why) == trouble.as_ref().map(|r| r.why) {
            return;
        }
        match trouble {
            // What a call is refused for was told when it began.
            Some(refused) if self.blocks.values().any(|block| block.refused == refused) => {}
            Some(refused) => self.tell(None, true, "AllocResourceFailed", refused.reason),
            None => self.tell(None, false, "AllocIPSucceed", "addresses can be had again".into()),
        }
    }
}

/// Of what nothing was found, so that it is not looked for again.
#[derive(Default)]
struct Dry {
    shared: bool,
    whole: bool,
}

/// What a person calls the family.
fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

/// Which reason a person should hear of first.
fn severity(why: Refusal) -> u8 {
    match why {
        Refusal::Forbidden => 0,
        Refusal::Quota => 1,
        Refusal::VSwitchEmpty => 2,
        _ => 3,
    }
}
