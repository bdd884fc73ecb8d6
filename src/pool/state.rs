//! What the pool knows after its boot, how an event changes it, and the order in which it then decides.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use fastrand::Rng;

use super::calls::{Block, Create, Survey, Verb};
use super::dress::with_our_tags;
use super::eni::{self, Address, Assign, Goal, Kernel, Nic};
use super::queue::Waiting;
use super::rate::Rates;
use super::reclaim::Reclaiming;
use super::retry::{Gate, SOON};
use super::vswitch::VSwitches;
use super::{Boot, Call, CallId, Effect, Event, Held, Intent, Link, Notice, Now, Refused, Reserved, Settings};
use crate::eni::{Eni, EniState, PER_PREFIX, of_prefix};
use crate::gather::Gather;
use crate::ip::{Family, IpPair};
use crate::pod::{Attachment, PodName};

pub(super) struct State {
    pub now: Now,
    pub rng: Rng,
    pub settings: Settings,
    pub nics: BTreeMap<String, Nic>,
    /// ENIs attached here that are not ours, the primary one apart.
    pub foreign: u32,
    /// Security groups that the instance has.
    pub instance_groups: Vec<String>,
    pub leases: BTreeMap<Attachment, Held>,
    /// How many leases name an ENI, whether or not the cloud knows the address.
    pub leases_on: Tally<String>,
    /// How many leases there are on an address: more than one only if the ledger says so.
    pub taken: Tally<IpAddr>,
    /// Leases whose address the cloud does not know.
    pub lost: BTreeSet<Attachment>,
    pub rests: BTreeMap<IpPair, Rest>,
    /// How many of them name an ENI.
    pub rests_on: Tally<String>,
    /// The addresses in them, and until when each rests.
    pub resting: BTreeMap<IpAddr, Now>,
    pub waiting: Vec<Waiting>,
    pub creates: Vec<Create>,
    pub vswitches: VSwitches,
    pub survey: Survey,
    pub calls: BTreeMap<CallId, Call>,
    pub last_call: CallId,
    /// vSwitches that give no prefixes, until then.
    pub prefixless: BTreeMap<String, Now>,
    pub gate: Gate,
    pub rates: Rates,
    pub reclaiming: Reclaiming,
    pub blocks: BTreeMap<Verb, Block>,
    /// Since when there have been too few, or too many, idle addresses.
    pub short_since: Option<Now>,
    pub surplus_since: Option<Now>,
    /// Someone was refused since the node is full.
    pub turned_away: bool,
    /// The trouble that the node was told of, and what it was told of its stack.
    pub told: Option<Refused>,
    pub told_of_stack: String,
    /// Counts the changes after which the ENIs' addresses are counted anew.
    pub edition: u64,
    pub out: Vec<Effect>,
    pub wake: Option<Now>,
}

/// How a lease ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ends {
    Freed,
    /// The next pod of the name shall have the addresses.
    Reserved,
}

/// Addresses that rest after their pod has gone.
pub(super) struct Rest {
    pub eni: String,
    pub until: Now,
    /// Until then nobody has them but a pod of this name.
    pub reserved: Option<PodName>,
}

/// How often each occurs.
pub(super) struct Tally<T>(BTreeMap<T, u32>);

impl<T: Ord> Default for Tally<T> {
    fn default() -> Tally<T> {
        Tally(BTreeMap::new())
    }
}

impl<T: Ord> Tally<T> {
    pub fn has<Q: Ord + ?Sized>(&self, one: &Q) -> bool
    where
        T: Borrow<Q>,
    {
        self.0.contains_key(one)
    }

    fn add(&mut self, one: T) {
        *self.0.entry(one).or_default() += 1;
    }

    /// Whether it occurs no more.
    fn remove<Q: Ord + ?Sized>(&mut self, one: &Q) -> bool
    where
        T: Borrow<Q>,
    {
        let count = self.0.get_mut(one).expect("what is removed was added");
        *count -= 1;
        let is_last = *count == 0;
        if is_last {
            self.0.remove(one);
        }
        is_last
    }
}

impl State {
    pub fn boot(now: Now, mut rng: Rng, boot: Boot) -> State {
        let mut state = State {
            now,
            survey: Survey::new(now, boot.settings.sync_period, &mut rng),
            vswitches: VSwitches::new(now, &boot.settings, boot.vswitches, &mut rng),
            instance_groups: boot.settings.instance_groups.clone(),
            settings: with_our_tags(boot.settings),
            nics: BTreeMap::new(),
            foreign: 0,
            leases: BTreeMap::new(),
            leases_on: Tally::default(),
            taken: Tally::default(),
            lost: BTreeSet::new(),
            rests: BTreeMap::new(),
            rests_on: Tally::default(),
            resting: BTreeMap::new(),
            waiting: Vec::new(),
            creates: Vec::new(),
            calls: BTreeMap::new(),
            last_call: 0,
            prefixless: BTreeMap::new(),
            gate: Gate::new(),
            rates: Rates::default(),
            reclaiming: Reclaiming::new(now),
            blocks: BTreeMap::new(),
            short_since: None,
            surplus_since: None,
            turned_away: false,
            told: None,
            told_of_stack: String::new(),
            edition: 0,
            out: Vec::new(),
            wake: None,
            rng,
        };
        if boot.willed {
            state.survey.begin_blind(now);
        }
        for held in boot.leases {
            state.hold(held);
        }
        for (eni, ip, until) in boot.cooling {
            state.rest_again(ip, Rest { eni, until, reserved: None });
        }
        for reserved in boot.reserved {
            let eni = boot.enis.iter().find(|eni| eni.id == reserved.eni);
            state.reserve_again(reserved, eni);
        }
        state.adopt_all(boot.enis);
        for intent in boot.intents {
            state.resume(intent);
        }
        state.check_leases();
        state
    }

    pub fn hear(&mut self, event: Event) {
        // Of what pods do, every change says itself which ENIs it is about.
        let is_pods = matches!(
            event,
            Event::Allocate { .. } | Event::Release { .. } | Event::Reserve { .. } | Event::Forget { .. } | Event::Tick
        );
        if !is_pods {
            self.recount();
        }
        match event {
            Event::Boot(_) | Event::Tick => {}
            Event::Settings(settings) => {
                let settings = with_our_tags(*settings);
                if self.settings != settings {
                    self.settings = settings;
                    self.settings_changed();
                }
                self.vswitches.expect(self.now, &self.settings.vswitches);
            }
            Event::NewCloud => self.cloud_changed(),
            Event::Allocate { ticket, pod, sandbox, whole, deadline } => {
                self.allocate(Waiting { ticket, pod, sandbox, whole, deadline, since: self.now });
            }
            Event::Forget { ticket } => self.waiting.retain(|w| w.ticket != ticket),
            Event::Release { attachment } => self.release(&attachment, Ends::Freed),
            Event::Reserve { attachment } => self.release(&attachment, Ends::Reserved),
            Event::Done { call, result } => self.done(call, result),
            Event::Prepared { eni, result } => self.prepared(&eni, result),
            Event::LinkGone { eni } => self.link_gone(&eni),
        }
        if !is_pods {
            self.recount();
        }
    }

    /// Everything that follows from what is known now.
    pub fn decide(&mut self) -> Vec<Effect> {
        self.settle_partings();
        self.end_rests();
        self.serve();
        self.refuse();
        self.look_around();
        self.await_enis();
        self.end_warm_up();
        self.grow();
        self.shrink();
        self.let_go();
        self.advance();
        self.dress();
        self.tell_trouble();
        self.tell_of_stack();
        #[cfg(test)]
        assert!(self.is_counted(), "something has changed and nobody said so");
        if let Some(at) = self.wake.take() {
            self.out.push(Effect::Wake { at });
        }
        std::mem::take(&mut self.out)
    }

    /// Something is due at that time.
    pub fn at(&mut self, at: Now) {
        self.wake = Some(self.wake.map_or(at, |w| w.min(at)));
    }

    pub fn tell(&mut self, pod: Option<&PodName>, warning: bool, reason: &'static str, message: String) {
        self.out.push(Effect::Tell(Notice { pod: pod.cloned(), warning, reason, message }));
    }

    // -- leases and rests --

    pub fn hold(&mut self, held: Held) {
        held.ip.iter().for_each(|ip| self.take(ip));
        if let Some(nic) = self.nics.get_mut(&held.eni) {
            nic.lent |= held.whole;
        }
        self.leases_on.add(held.eni.clone());
        if let Some(before) = self.leases.insert(held.sandbox.attachment.clone(), held) {
            self.leases_on.remove(&before.eni);
        }
    }

    /// The address is leased once more. Its ENI is not counted anew for that: what changes is known.
    fn take(&mut self, ip: IpAddr) {
        if !self.taken.has(&ip) {
            let rests = self.resting.contains_key(&ip);
            for nic in self.nics.values() {
                let leaves = nic.addresses.get(&ip).map(|address| address.leaving);
                if self.settings.whole && leaves.is_some() {
                    nic.supply.set(None);
                }
                let counted = nic.supply.get().filter(|(edition, _)| *edition == self.edition);
                if let (Some(leaves), Some((edition, mut supply))) = (leaves, counted) {
                    supply.take(Family::of(&ip), rests, leaves);
                    nic.supply.set(Some((edition, supply)));
                }
            }
        }
        self.taken.add(ip);
    }

    /// Ends a lease: its addresses rest, for anybody or for a pod of its name.
    pub fn retire(&mut self, attachment: &Attachment, ends: Ends) -> bool {
        let Some(held) = self.leases.remove(attachment) else { return false };
        self.leases_on.remove(&held.eni);
        self.lost.remove(attachment);
        let (time, reserved) = match ends {
            Ends::Reserved if !self.settings.reservation.is_zero() => {
                (self.settings.reservation.max(self.settings.cooldown), Some(held.pod))
            }
            _ => (self.settings.cooldown, None),
        };
        let until = self.now + time;
        let (eni, ip) = (held.eni, held.ip);
        let (attachment, rest) = (attachment.clone(), Rest { eni: eni.clone(), until, reserved: reserved.clone() });
        self.out.push(Effect::Retire { attachment, eni: eni.clone(), ip, until, reserved });
        // Of both families, whatever the first says.
        let freed = ip.iter().filter(|ip| self.taken.remove(ip)).count();
        match freed {
            0 => self.out.push(Effect::Rested { eni: eni.clone(), ip }),
            _ => self.let_rest(ip, rest),
        }
        self.recount_where(&ip);
        let lent = self.nics.get(&eni).is_some_and(|nic| nic.lent) && self.is_lent(&eni);
        if let Some(nic) = self.nics.get_mut(&eni) {
            nic.empty_since = self.now;
            nic.lent = lent;
        }
        self.forget_if_missing(&eni);
        true
    }

    fn let_rest(&mut self, pair: IpPair, rest: Rest) {
        for ip in pair.iter() {
            let until = self.resting.entry(ip).or_default();
            *until = rest.until.max(*until);
        }
        self.rests_on.add(rest.eni.clone());
        if let Some(before) = self.rests.insert(pair, rest) {
            self.rests_on.remove(&before.eni);
        }
    }

    /// A rest of an earlier life; leases on its addresses end it.
    fn rest_again(&mut self, ip: IpPair, rest: Rest) {
        let free = ip.iter().any(|ip| !self.taken.has(&ip));
        match free && rest.until > self.now {
            true => self.let_rest(ip, rest),
            false => self.out.push(Effect::Rested { eni: rest.eni, ip }),
        }
    }

    /// The same of one that was for a pod. Where every pod has an ENI to itself, nobody can have the address of one that was shared.
    fn reserve_again(&mut self, Reserved { pod, eni, ip, until }: Reserved, home: Option<&Eni>) {
        let is_own = |eni: &Eni| ip.v4.is_none_or(|v4| v4 == eni.primary);
        let rest = match home.is_none_or(is_own) || !self.settings.whole {
            true => Rest { eni, until, reserved: Some(pod) },
            false => Rest { eni, until: until.min(self.now + self.settings.cooldown), reserved: None },
        };
        self.rest_again(ip, rest);
    }

    /// The addresses that are kept for a pod of this name, the last that one had: on an ENI that has them, free, and one of
    /// each family that a pod takes now.
    pub fn reserved_for(&self, pod: &PodName) -> Option<(IpPair, &str)> {
        let kept = self.rests.iter().filter(|(_, r)| r.reserved.as_ref() == Some(pod));
        let sound = kept.filter(|(pair, rest)| {
            let nic = self.nics.get(&rest.eni).filter(|n| n.kept() && n.state == EniState::InUse);
            let there = |nic: &Nic| pair.iter().all(|ip| nic.offers(ip));
            let families: Vec<Family> = pair.iter().map(|ip| Family::of(&ip)).collect();
            nic.is_some_and(there)
                && families == self.settings.stack.families()
                && pair.iter().all(|ip| !self.taken.has(&ip))
        });
        sound.max_by_key(|(_, rest)| rest.until).map(|(pair, rest)| (*pair, rest.eni.as_str()))
    }

    /// Ends a rest because the pod that it was for has come.
    pub fn wake_up(&mut self, pair: IpPair) {
        let Some(rest) = self.rests.remove(&pair) else { return };
        self.rests_on.remove(&rest.eni);
        for ip in pair.iter() {
            let others = self.rests.iter().filter(|(other, _)| other.iter().any(|o| o == ip));
            match others.map(|(_, rest)| rest.until).max() {
                Some(until) => drop(self.resting.insert(ip, until)),
                None => drop(self.resting.remove(&ip)),
            }
        }
        self.recount_where(&pair);
        self.out.push(Effect::Rested { eni: rest.eni, ip: pair });
    }

    fn end_rests(&mut self) {
        let now = self.now;
        let over: Vec<(IpPair, Rest)> = self.rests.extract_if(.., |_, r| r.until <= now).collect();
        for (ip, Rest { eni, .. }) in over {
            self.rests_on.remove(&eni);
            self.recount_where(&ip);
            for ip in ip.iter() {
                if self.resting.get(&ip).is_some_and(|until| *until <= now) {
                    self.resting.remove(&ip);
                }
                if let Some(address) = self.nics.get_mut(&eni).and_then(|n| n.addresses.get_mut(&ip)) {
                    address.free_since = now;
                }
            }
            self.out.push(Effect::Rested { eni, ip });
        }
        if let Some(until) = self.rests.values().map(|r| r.until).min() {
            self.at(whole_second(until));
        }
    }

    /// Nobody holds the address, it does not rest, and it is not on its way back to the cloud.
    pub fn is_idle(&self, ip: &IpAddr, address: &Address) -> bool {
        !address.leaving && !self.taken.has(ip) && !self.resting.contains_key(ip)
    }

    pub fn idle_addresses<'a>(&'a self, nic: &'a Nic, family: Family) -> impl Iterator<Item = (IpAddr, &'a Address)> {
        self.lendable(nic, family).filter(|(ip, a)| self.is_idle(ip, a))
    }

    /// The addresses that pods can have of the ENI, idle or not. If it is lent there are none; where every pod has a whole one, there are
    /// those that come with it.
    pub fn lendable<'a>(&'a self, nic: &'a Nic, family: Family) -> impl Iterator<Item = (IpAddr, &'a Address)> {
        let own = self.settings.whole.then(|| nic.own(family));
        let there = !nic.lent && (own.is_none() || self.is_untouched(nic));
        let of_family = nic.addresses.iter().filter(move |(ip, _)| there && Family::of(ip) == family);
        of_family.filter(move |(ip, _)| own.is_none_or(|own| own == Some(**ip))).map(|(ip, a)| (*ip, a))
    }

    /// The address is leased or rests.
    pub fn is_in_use(&self, ip: &IpAddr) -> bool {
        self.taken.has(ip) || self.resting.contains_key(ip)
    }

    /// A lease names this ENI.
    pub fn leased_from(&self, eni: &str) -> bool {
        self.leases_on.has(eni)
    }

    /// A lease has the whole of this ENI.
    fn is_lent(&self, eni: &str) -> bool {
        self.leases.values().any(|h| h.whole && h.eni == eni)
    }

    /// A lease or a rest names this ENI.
    pub fn needed(&self, eni: &str) -> bool {
        self.leased_from(eni) || self.rests_on.has(eni)
    }

    // -- ENIs --

    /// Takes up the node's ENIs that we do not know yet; those attached go first.
    fn adopt_all(&mut self, mut enis: Vec<Eni>) {
        self.see_instance(&enis);
        enis.sort_by_key(|e| e.state != EniState::InUse);
        for eni in &enis {
            if self.is_to_adopt(eni) {
                self.adopt(eni);
            }
        }
        self.see_instance(&enis);
    }

    /// It is this node's, or one that we are kept from and that has pods of ours.
    pub fn is_to_adopt(&self, eni: &Eni) -> bool {
        eni::this_nodes(eni, &self.settings) || eni::kept_from_us(eni, &self.settings) && self.needed(&eni.id)
    }

    pub fn adopt(&mut self, eni: &Eni) {
        let goal = self.goal_for(eni);
        let nic = Nic { lent: self.is_lent(&eni.id), ..Nic::new(self.now, eni, goal) };
        self.nics.insert(eni.id.clone(), nic);
        self.see(eni);
        if self.is_barren(&self.nics[&eni.id]) && !self.needed(&eni.id) {
            self.nics.get_mut(&eni.id).expect("just inserted").goal = Goal::GiveBack;
        }
    }

    /// An ENI with leases, or where addresses rest, stays; others stay if they are attached or wanted, and there is a place for them.
    fn goal_for(&self, eni: &Eni) -> Goal {
        if self.needed(&eni.id) {
            return Goal::Keep;
        }
        let place = self.places_taken() < self.max_enis();
        let wanted = match eni.state {
            EniState::InUse | EniState::Attaching => true,
            EniState::Available => self.shortage() > 0 || self.places_taken() < self.settings.min_enis,
            _ => false,
        };
        if place && wanted { Goal::Keep } else { Goal::GiveBack }
    }

    /// What an earlier life was about to do is said again with the same token: then it is done once, whether it was done or not.
    fn resume(&mut self, intent: Intent) {
        let token = intent.token.clone();
        match &intent.call {
            Call::Create { .. } => return self.creates.push(Create::again(intent)),
            Call::Assign { eni, .. } | Call::AssignPrefixes { eni, .. } => {
                let (family, count) = match &intent.call {
                    Call::Assign { family, count, .. } => (*family, *count),
                    Call::AssignPrefixes { count, .. } => (Family::V4, count * PER_PREFIX),
                    _ => return,
                };
                if let Some(nic) = self.nics.get_mut(eni).filter(|n| n.kept() && !n.lent && n.assign.is_none()) {
                    nic.assign = Some(Assign { intent, family, count, tries: 0, doubt: true });
                    return;
                }
            }
            Call::Unassign { eni, .. } | Call::UnassignPrefixes { eni, .. } if self.part_again(eni, &intent) => return,
            _ => {}
        }
        self.out.push(Effect::Settled { token });
    }

    /// Takes up what the cloud says of an ENI that we know.
    pub fn see(&mut self, eni: &Eni) {
        self.recount();
        let (accepted, suspect) = self.sort(eni);
        let now = self.now;
        let nic = self.nics.get_mut(&eni.id).expect("the caller knows the ENI");
        let new: Vec<IpAddr> = suspect.iter().filter(|ip| !nic.suspect.contains(ip)).copied().collect();
        if nic.state != eni.state {
            nic.retry.restart(now);
            nic.settle_in(eni.state, now, &mut self.rng);
        }
        if nic.missing || eni.state != EniState::InUse {
            nic.kernel = Kernel::Absent;
        }
        nic.state = eni.state;
        nic.missing = false;
        nic.stale = false;
        nic.suspect = suspect;
        nic.dress.see(eni);
        nic.prefixes = eni.prefixes.iter().filter(|p| of_prefix(p).all(|ip| accepted.contains(&ip))).copied().gather();
        nic.addresses.retain(|ip, _| accepted.contains(ip));
        for ip in accepted {
            nic.addresses.entry(ip).or_insert(Address { free_since: now, leaving: false });
        }
        for ip in new {
            self.tell_suspect(&eni.id, ip);
        }
        self.admit(&eni.id);
    }

    /// The addresses of an ENI, those that can be right and those that cannot.
    fn sort(&self, eni: &Eni) -> (BTreeSet<IpAddr>, BTreeSet<IpAddr>) {
        let known = |ip: &IpAddr| self.nics.get(&eni.id).is_some_and(|n| n.addresses.contains_key(ip));
        eni.addresses().partition(|ip| known(ip) || self.is_sound(&eni.id, &eni.vswitch, *ip))
    }

    /// An address can be right if it lies in the ENI's vSwitch and is nowhere else.
    pub fn is_sound(&self, eni: &str, vswitch: &str, ip: IpAddr) -> bool {
        let elsewhere = |(id, nic): (&String, &Nic)| id != eni && nic.addresses.contains_key(&ip);
        self.vswitches.may_hold(vswitch, ip)
            && !self.nics.iter().any(elsewhere)
            && !(self.taken.has(&ip)
                && self.leases.values().any(|h| h.eni != eni && h.ip.iter().any(|held| held == ip)))
    }

    /// Looks again at ENIs with addresses that could not be right when we saw them, and can be now.
    pub fn recheck_suspects(&mut self) {
        let sound = |(id, n): &(&String, &Nic)| n.suspect.iter().any(|ip| self.is_sound(id, &n.vswitch, *ip));
        let ids: Vec<String> = self.nics.iter().filter(sound).map(|(id, _)| id.clone()).collect();
        for id in ids {
            self.nics.get_mut(&id).expect("just listed").stale = true;
        }
    }

    pub fn tell_suspect(&mut self, eni: &str, ip: IpAddr) {
        let message = format!(
            "the cloud says that {ip} is on {eni}, but it is outside the ENI's vSwitch or already ours elsewhere; it is not used"
        );
        self.tell(None, true, "ResourceInvalid", message);
    }

    /// The cloud does not know the ENI any more. While a lease names it the kernel is left as it is: the cloud may be wrong.
    pub fn lose(&mut self, eni: &str) {
        self.recount();
        let Some(nic) = self.nics.get_mut(eni) else { return };
        nic.missing = true;
        nic.stale = false;
        nic.addresses.clear();
        nic.suspect.clear();
        if let Some(assign) = nic.assign.take() {
            self.out.push(Effect::Settled { token: assign.intent.token });
        }
        self.forget_if_missing(eni);
        self.check_leases();
    }

    /// Drops an ENI that neither the cloud nor a lease knows, once nobody is setting it up any more.
    fn forget_if_missing(&mut self, eni: &str) {
        let is_over = |n: &Nic| n.missing && n.kernel != Kernel::Asked;
        if !self.nics.get(eni).is_some_and(is_over) || self.leased_from(eni) {
            return;
        }
        self.forget(eni);
    }

    pub fn forget(&mut self, eni: &str) {
        let mut nic = self.nics.remove(eni).expect("the caller has just seen it");
        let intents = [nic.assign.take().map(|a| a.intent), nic.parting.take().map(|p| p.intent)];
        self.out.extend(intents.into_iter().flatten().map(|intent| Effect::Settled { token: intent.token }));
        self.survey.gone.insert(eni.to_owned());
        if !nic.dismantled {
            self.out.push(Effect::Dismantle { eni: eni.to_owned(), mac: nic.mac });
        }
    }

    /// Reports leases whose address the cloud does not know, once, and notes when it knows them again.
    pub fn check_leases(&mut self) {
        let known =
            |h: &Held| h.ip.iter().all(|ip| self.nics.get(&h.eni).is_some_and(|n| n.addresses.contains_key(&ip)));
        let lost: BTreeSet<Attachment> = self.leases.iter().filter(|(_, h)| !known(h)).map(|(a, _)| a.clone()).gather();
        for attachment in lost.difference(&self.lost) {
            let held = &self.leases[attachment];
            let (ip, eni) = (held.ip, &held.eni);
            let message =
                format!("the cloud does not know the pod's address {ip} on {eni} any more; re-create the pod");
            let pod = Some(held.pod.clone());
            self.out.push(Effect::Tell(Notice { pod, warning: true, reason: "ResourceInvalid", message }));
        }
        self.lost = lost;
    }

    fn prepared(&mut self, eni: &str, result: Result<Link, String>) {
        let Some(nic) = self.nics.get_mut(eni).filter(|n| n.kernel == Kernel::Asked) else { return };
        if nic.missing {
            nic.kernel = Kernel::Absent;
            return self.forget_if_missing(eni);
        }
        match result {
            Ok(link) => {
                nic.kernel = Kernel::Ready(link);
                nic.complaint = None;
                nic.wiring.restart(self.now);
                self.set_up_anew();
            }
            Err(why) => {
                nic.kernel = Kernel::Absent;
                nic.wiring.fail(self.now, &SOON, &mut self.rng);
                if nic.complaint.as_ref() != Some(&why) {
                    let message = format!("{eni} cannot be set up: {why}");
                    nic.complaint = Some(why);
                    self.tell(None, true, "ResourceInvalid", message);
                }
            }
        }
    }

    /// ENIs whose vSwitch has come to have IPv6 since their link was set up are set up anew: their pods would have no way out.
    pub fn set_up_anew(&mut self) {
        for nic in self.nics.values_mut().filter(|_| self.settings.stack.has(Family::V6)) {
            let (Kernel::Ready(link), Some(v6)) = (&nic.kernel, self.vswitches.v6(&nic.vswitch)) else { continue };
            if link.v6 != Some(v6) {
                nic.kernel = Kernel::Absent;
                nic.wiring.restart(self.now);
            }
        }
    }

    fn link_gone(&mut self, eni: &str) {
        let Some(nic) = self.nics.get_mut(eni).filter(|n| n.goal != Goal::GiveBack && n.kernel != Kernel::Absent)
        else {
            return;
        };
        nic.kernel = Kernel::Absent;
        nic.wiring.fail(self.now, &SOON, &mut self.rng);
        self.survey.hurry(self.now);
        self.tell(
            None,
            true,
            "ResourceInvalid",
            format!("the link of {eni} went away; nothing is leased from it until it is back"),
        );
    }
}

/// Rests that end in the same second are one wake-up.
fn whole_second(at: Now) -> Now {
    Now::from_secs(at.as_secs() + u64::from(at.subsec_nanos() > 0))
}
