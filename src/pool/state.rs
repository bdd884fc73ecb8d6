//! What the pool knows after its boot, how an event changes it, and the order in which it then decides.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use fastrand::Rng;

use super::calls::{Block, Create, Survey, Verb};
use super::eni::{self, Address, Assign, Goal, Kernel, Nic};
use super::queue::Waiting;
use super::retry::{Gate, SOON};
use super::vswitch::VSwitches;
use super::{Boot, Call, CallId, Effect, Event, Held, Intent, Link, Notice, Now, Settings};
use crate::eni::{Eni, EniState};
use crate::ip::{Family, IpPair};
use crate::ours;
use crate::pod::{Attachment, PodName};
use crate::rpc::Refusal;

pub(super) struct State {
    pub now: Now,
    pub rng: Rng,
    pub settings: Settings,
    pub nics: BTreeMap<String, Nic>,
    /// ENIs attached here that are not ours, the primary one apart.
    pub foreign: u32,
    pub leases: BTreeMap<Attachment, Held>,
    /// How many leases there are on an address: more than one only if the ledger says so.
    pub taken: Tally,
    /// Leases whose address the cloud does not know.
    pub lost: BTreeSet<Attachment>,
    pub rests: BTreeMap<IpPair, Rest>,
    /// The addresses in them, and until when each rests.
    pub resting: BTreeMap<IpAddr, Now>,
    pub waiting: Vec<Waiting>,
    pub creates: Vec<Create>,
    pub vswitches: VSwitches,
    pub survey: Survey,
    pub calls: BTreeMap<CallId, Call>,
    pub last_call: CallId,
    pub gate: Gate,
    pub blocks: BTreeMap<Verb, Block>,
    /// Since when there have been too few, or too many, idle addresses.
    pub short_since: Option<Now>,
    pub surplus_since: Option<Now>,
    /// Someone was refused since the node is full.
    pub turned_away: bool,
    /// The trouble that the node was told of, and what it was told of its stack.
    pub told: Option<Refusal>,
    pub told_of_stack: String,
    pub out: Vec<Effect>,
    pub wake: Option<Now>,
}

/// Addresses that rest after their pod has gone.
pub(super) struct Rest {
    pub eni: String,
    pub until: Now,
}

/// How often each address occurs.
#[derive(Default)]
pub(super) struct Tally(BTreeMap<IpAddr, u32>);

impl Tally {
    pub fn has(&self, ip: &IpAddr) -> bool {
        self.0.contains_key(ip)
    }

    fn add(&mut self, pair: &IpPair) {
        for ip in pair.iter() {
            *self.0.entry(ip).or_default() += 1;
        }
    }

    /// Whether any of them occurs no more.
    fn remove(&mut self, pair: &IpPair) -> bool {
        let mut freed = false;
        for ip in pair.iter() {
            let count = self.0.get_mut(&ip).expect("what is removed was added");
            *count -= 1;
            if *count == 0 {
                self.0.remove(&ip);
                freed = true;
            }
        }
        freed
    }
}

impl State {
    pub fn boot(now: Now, mut rng: Rng, boot: Boot) -> State {
        let mut state = State {
            now,
            survey: Survey::new(now, boot.settings.sync_period, &mut rng),
            settings: with_our_tags(boot.settings),
            nics: BTreeMap::new(),
            foreign: 0,
            leases: BTreeMap::new(),
            taken: Tally::default(),
            lost: BTreeSet::new(),
            rests: BTreeMap::new(),
            resting: BTreeMap::new(),
            waiting: Vec::new(),
            creates: Vec::new(),
            vswitches: VSwitches::new(now, boot.vswitches, &mut rng),
            calls: BTreeMap::new(),
            last_call: 0,
            gate: Gate::new(),
            blocks: BTreeMap::new(),
            short_since: None,
            surplus_since: None,
            turned_away: false,
            told: None,
            told_of_stack: String::new(),
            out: Vec::new(),
            wake: None,
            rng,
        };
        for held in boot.leases {
            state.hold(held);
        }
        for (eni, ip, until) in boot.cooling {
            state.rest_again(eni, ip, until);
        }
        state.adopt_all(boot.enis);
        for intent in boot.intents {
            state.resume(intent);
        }
        state.check_leases();
        state
    }

    pub fn hear(&mut self, event: Event) {
        match event {
            Event::Boot(_) | Event::Tick => {}
            Event::Settings(settings) => {
                self.settings = with_our_tags(*settings);
                self.vswitches.expect(self.now, &self.settings.vswitches);
            }
            Event::Allocate { ticket, pod, sandbox, whole, deadline } => {
                self.allocate(Waiting { ticket, pod, sandbox, whole, deadline, since: self.now });
            }
            Event::Forget { ticket } => self.waiting.retain(|w| w.ticket != ticket),
            Event::Release { attachment } => self.release(&attachment),
            Event::Done { call, result } => self.done(call, result),
            Event::Prepared { eni, result } => self.prepared(&eni, result),
            Event::LinkGone { eni } => self.link_gone(&eni),
        }
    }

    /// Everything that follows from what is known now.
    pub fn decide(&mut self) -> Vec<Effect> {
        self.end_rests();
        self.serve();
        self.refuse();
        self.look_around();
        self.grow();
        self.shrink();
        self.advance();
        self.tell_trouble();
        self.tell_of_stack();
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
        self.taken.add(&held.ip);
        if let Some(nic) = self.nics.get_mut(&held.eni) {
            nic.lent |= held.whole;
        }
        self.leases.insert(held.sandbox.attachment.clone(), held);
    }

    /// Ends a lease: its address rests.
    pub fn retire(&mut self, attachment: &Attachment) -> bool {
        let Some(held) = self.leases.remove(attachment) else { return false };
        self.lost.remove(attachment);
        let until = self.now + self.settings.cooldown;
        let (eni, ip) = (held.eni, held.ip);
        self.out.push(Effect::Retire { attachment: attachment.clone(), eni: eni.clone(), ip, until });
        match self.taken.remove(&ip) {
            true => self.let_rest(ip, Rest { eni: eni.clone(), until }),
            false => self.out.push(Effect::Rested { eni: eni.clone(), ip }),
        }
        let lent = self.is_lent(&eni);
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
        self.rests.insert(pair, rest);
    }

    /// A rest of an earlier life; leases on its addresses end it.
    fn rest_again(&mut self, eni: String, ip: IpPair, until: Now) {
        let free = ip.iter().any(|ip| !self.taken.has(&ip));
        match free && until > self.now {
            true => self.let_rest(ip, Rest { eni, until }),
            false => self.out.push(Effect::Rested { eni, ip }),
        }
    }

    fn end_rests(&mut self) {
        let now = self.now;
        for (ip, Rest { eni, .. }) in self.rests.extract_if(.., |_, r| r.until <= now) {
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
    fn is_idle(&self, ip: &IpAddr, address: &Address) -> bool {
        !address.leaving && !self.taken.has(ip) && !self.resting.contains_key(ip)
    }

    /// Of an ENI that is lent there are none; where every pod has a whole one, there are those that come with it.
    pub fn idle_addresses<'a>(&'a self, nic: &'a Nic, family: Family) -> impl Iterator<Item = (IpAddr, &'a Address)> {
        let own = self.settings.whole.then(|| nic.own(family));
        let there = !nic.lent && (own.is_none() || self.is_untouched(nic));
        let of_family = nic.addresses.iter().filter(move |(ip, _)| there && Family::of(ip) == family);
        let of_family = of_family.filter(move |(ip, _)| own.is_none_or(|own| own == Some(**ip)));
        of_family.filter(|(ip, a)| self.is_idle(ip, a)).map(|(ip, a)| (*ip, a))
    }

    /// No address of the ENI is leased or rests.
    pub fn is_untouched(&self, nic: &Nic) -> bool {
        !nic.addresses.keys().any(|ip| self.taken.has(ip) || self.resting.contains_key(ip))
    }

    pub fn held_on(&self, nic: &Nic) -> u32 {
        nic.addresses.keys().filter(|ip| self.taken.has(ip)).count() as u32
    }

    /// A lease names this ENI, whether or not the cloud knows the address.
    pub fn leased_from(&self, eni: &str) -> bool {
        self.leases.values().any(|h| h.eni == eni)
    }

    /// A lease has the whole of this ENI.
    fn is_lent(&self, eni: &str) -> bool {
        self.leases.values().any(|h| h.whole && h.eni == eni)
    }

    /// A lease or a rest names this ENI.
    pub fn needed(&self, eni: &str) -> bool {
        self.leased_from(eni) || self.rests.values().any(|r| r.eni == eni)
    }

    // -- ENIs --

    /// Takes up the node's ENIs that we do not know yet; those attached go first.
    fn adopt_all(&mut self, mut enis: Vec<Eni>) {
        self.foreign = enis.iter().filter(|e| eni::foreign(e, &self.settings)).count() as u32;
        enis.sort_by_key(|e| e.state != EniState::InUse);
        for eni in enis {
            if eni::this_nodes(&eni, &self.settings) {
                self.adopt(&eni);
            }
        }
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
            Call::Assign { eni, family, count, .. } => {
                let (family, count) = (*family, *count);
                if let Some(nic) = self.nics.get_mut(eni).filter(|n| n.kept() && !n.lent && n.assign.is_none()) {
                    nic.assign = Some(Assign { intent, family, count, tries: 0, doubt: true });
                    return;
                }
            }
            _ => {}
        }
        self.out.push(Effect::Settled { token });
    }

    /// Takes up what the cloud says of an ENI that we know.
    pub fn see(&mut self, eni: &Eni) {
        let (accepted, suspect) = self.sort(eni);
        let now = self.now;
        let nic = self.nics.get_mut(&eni.id).expect("the caller knows the ENI");
        let new: Vec<IpAddr> = suspect.iter().filter(|ip| !nic.suspect.contains(ip)).copied().collect();
        if nic.state != eni.state {
            nic.retry.restart(now);
        }
        if nic.missing || eni.state != EniState::InUse {
            nic.kernel = Kernel::Absent;
        }
        nic.state = eni.state;
        nic.missing = false;
        nic.stale = false;
        nic.suspect = suspect;
        nic.addresses.retain(|ip, _| accepted.contains(ip));
        for ip in accepted {
            nic.addresses.entry(ip).or_insert(Address { free_since: now, leaving: false });
        }
        for ip in new {
            self.tell_suspect(&eni.id, ip);
        }
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

    /// Drops an ENI that neither the cloud nor a lease knows.
    fn forget_if_missing(&mut self, eni: &str) {
        if !self.nics.get(eni).is_some_and(|n| n.missing) || self.leased_from(eni) {
            return;
        }
        let nic = self.nics.remove(eni).expect("just seen");
        self.survey.gone.insert(eni.to_owned());
        if !nic.dismantled {
            self.out.push(Effect::Dismantle { eni: eni.to_owned(), mac: nic.mac });
        }
    }

    /// Reports leases whose address the cloud does not know, once, and notes when it knows them again.
    pub fn check_leases(&mut self) {
        let known =
            |h: &Held| h.ip.iter().all(|ip| self.nics.get(&h.eni).is_some_and(|n| n.addresses.contains_key(&ip)));
        let lost: BTreeSet<Attachment> =
            self.leases.iter().filter(|(_, h)| !known(h)).map(|(a, _)| a.clone()).collect();
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
        match result {
            Ok(link) => {
                nic.kernel = Kernel::Ready(link);
                nic.complaint = None;
                nic.wiring.restart(self.now);
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

    fn link_gone(&mut self, eni: &str) {
        let Some(nic) = self.nics.get_mut(eni).filter(|n| n.kept() && n.kernel != Kernel::Absent) else { return };
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

/// An ENI without these tags would not be known as ours after a crash.
fn with_our_tags(mut settings: Settings) -> Settings {
    let (key, value) = ours::ENI_TAG;
    settings.tags.insert(key.to_owned(), value.to_owned());
    settings.tags.insert(ours::NODE_TAG.to_owned(), settings.instance.clone());
    settings
}

/// Rests that end in the same second are one wake-up.
fn whole_second(at: Now) -> Now {
    Now::from_secs(at.as_secs() + u64::from(at.subsec_nanos() > 0))
}
