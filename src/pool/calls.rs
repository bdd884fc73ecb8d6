//! Calls to the cloud: which may start now; `answers` is what each answer changes.

mod answers;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use fastrand::Rng;
use ipnet::Ipv4Net;

pub(super) use self::answers::may_say_again;
use super::eni::{Goal, Kernel, Next, Nic, Parting};
use super::retry::{Backoff, Shut, jitter};
use super::size::MAX_PER_CALL;
use super::state::State;
use super::{Call, CallId, Effect, Intent, Now, Refused};
use crate::eni::of_prefix;
use crate::ip::Family;

/// ENIs in one look, as many as the cloud takes in one page.
const MAX_LOOKED_AT: usize = 50;
/// From a start that goes by the last life's will to its first look: who wants an address then goes first.
const FIRST_LOOK: Duration = Duration::from_millis(200);
/// How long a full or unfit ENI is not asked for addresses.
pub(super) const NO_ASSIGN: Duration = Duration::from_secs(600);

/// What is asked; a refusal of one does not stop the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verb {
    Create,
    Attach,
    Detach,
    Delete,
    Assign(Family),
    Unassign(Family),
    Look,
    LookAll,
    VSwitches,
    Regroup,
    Tag,
    Untag,
}

pub(super) fn verb(call: &Call) -> Verb {
    match call {
        Call::Create { .. } => Verb::Create,
        Call::Attach { .. } => Verb::Attach,
        Call::Detach { .. } => Verb::Detach,
        Call::Delete { .. } => Verb::Delete,
        Call::Assign { family, .. } => Verb::Assign(*family),
        Call::AssignPrefixes { .. } => Verb::Assign(Family::V4),
        Call::UnassignPrefixes { .. } => Verb::Unassign(Family::V4),
        Call::Unassign { addresses, .. } => Verb::Unassign(addresses.first().map(Family::of).unwrap_or_default()),
        Call::Look { .. } => Verb::Look,
        Call::LookAll => Verb::LookAll,
        Call::VSwitches => Verb::VSwitches,
        Call::Regroup { .. } => Verb::Regroup,
        Call::Tag { .. } => Verb::Tag,
        Call::Untag { .. } => Verb::Untag,
    }
}

/// The ENIs that a call is about.
pub(super) fn enis_of(call: &Call) -> &[String] {
    match call {
        Call::Attach { eni }
        | Call::Detach { eni }
        | Call::Delete { eni }
        | Call::Assign { eni, .. }
        | Call::Unassign { eni, .. } => std::slice::from_ref(eni),
        Call::Regroup { eni, .. } | Call::Tag { eni, .. } | Call::Untag { eni, .. } => std::slice::from_ref(eni),
        Call::AssignPrefixes { eni, .. } | Call::UnassignPrefixes { eni, .. } => std::slice::from_ref(eni),
        Call::Look { enis } => enis,
        Call::Create { .. } | Call::LookAll | Call::VSwitches => &[],
    }
}

/// A verb that the cloud refuses until a person acts or much time has gone.
pub(super) struct Block {
    pub until: Now,
    pub refused: Refused,
    fails: u32,
}

/// An ENI being made.
pub(super) struct Create {
    pub intent: Intent,
    pub call: Option<CallId>,
    tries: u32,
    doubt: bool,
    retry: Backoff,
}

impl Create {
    pub fn first(intent: Intent, call: CallId) -> Create {
        Create { intent, call: Some(call), tries: 0, doubt: false, retry: Backoff::default() }
    }

    /// One that an earlier life was about to make.
    pub fn again(intent: Intent) -> Create {
        Create { intent, call: None, tries: 0, doubt: true, retry: Backoff::default() }
    }

    /// The addresses of this family that the ENI will have.
    pub fn addresses(&self, family: Family) -> u32 {
        match (&self.intent.call, family) {
            (Call::Create { addresses, .. }, Family::V4) => *addresses,
            (Call::Create { v6, .. }, Family::V6) => *v6,
            _ => 0,
        }
    }

    pub fn vswitch(&self) -> &str {
        match &self.intent.call {
            Call::Create { vswitch, .. } => vswitch,
            _ => "",
        }
    }
}

/// The look at all ENIs of the node that repeats.
pub(super) struct Survey {
    retry: Backoff,
    running: Option<CallId>,
    /// ENIs that went away since the look under way began.
    pub gone: BTreeSet<String>,
    /// An ENI may exist that we do not know of: none is made until a look sent after this call has come back.
    pub blind: Option<CallId>,
}

impl Survey {
    pub fn new(now: Now, period: Duration, rng: &mut Rng) -> Survey {
        let retry = Backoff { fails: 0, next: now + jitter(period, rng) };
        Survey { retry, running: None, gone: BTreeSet::new(), blind: None }
    }

    /// Nobody has looked yet in this life: it is done soon, and no ENI is made before.
    pub fn begin_blind(&mut self, now: Now) {
        self.retry.next = now + FIRST_LOOK;
        self.blind = Some(0);
    }

    /// When the next look is due.
    pub fn due(&self) -> Now {
        self.retry.next
    }

    /// The next look comes now.
    pub fn hurry(&mut self, now: Now) {
        self.retry.next = self.retry.next.min(now);
    }
}

impl State {
    /// Whether such a call may start; if not, we wake when it may.
    pub fn may(&mut self, verb: Verb) -> bool {
        if let Some(until) = self.blocks.get(&verb).map(|b| b.until).filter(|until| *until > self.now) {
            self.at(until);
            return false;
        }
        let on_eni = |call: &&Call| !matches!(call, Call::LookAll | Call::VSwitches);
        let under_way = self.calls.values().filter(on_eni).count() as u32;
        if !matches!(verb, Verb::LookAll | Verb::VSwitches) && under_way >= self.gate.width {
            return false;
        }
        if let Some(at) = self.rates.next(self.now, verb, &self.settings.rate_limit) {
            self.at(at);
            return false;
        }
        match self.gate.may(self.now) {
            Ok(()) => return true,
            Err(Shut::Until(at)) => self.at(at),
            Err(Shut::Probing) => {}
        }
        false
    }

    pub fn can_attach(&self) -> bool {
        self.blocks.get(&Verb::Attach).is_none_or(|b| b.until <= self.now)
    }

    pub fn start(&mut self, call: Call) -> CallId {
        self.last_call += 1;
        let id = self.last_call;
        self.gate.sent(self.now, id, &mut self.rng);
        self.rates.sent(self.now, verb(&call), &self.settings.rate_limit);
        for eni in enis_of(&call) {
            if let Some(nic) = self.nics.get_mut(eni) {
                nic.busy = Some(id);
            }
        }
        self.calls.insert(id, call.clone());
        self.out.push(Effect::Call { id, call });
        id
    }

    /// Looks at all ENIs and counts the vSwitches when it is time. In an outage the look is the probe, so that its end is noticed
    /// also when nobody waits for anything.
    pub fn look_around(&mut self) {
        let probe = self.gate.outage().map(|(_, next)| next);
        let next = probe.map_or(self.survey.retry.next, |at| at.min(self.survey.retry.next));
        if self.survey.running.is_none() && self.due(next) && self.may(Verb::LookAll) {
            self.survey.gone.clear();
            self.survey.running = Some(self.start(Call::LookAll));
        }
        // Their answer would not end an outage: another endpoint gives it.
        let asking = self.vswitches.asking.is_some() || self.settings.vswitches.is_empty();
        if !asking && probe.is_none() && self.due(self.vswitches.refresh.next) && self.may(Verb::VSwitches) {
            let call = self.start(Call::VSwitches);
            self.vswitches.ask(call, &self.settings.vswitches);
        }
    }

    /// It is time; if not, we wake when it is.
    fn due(&mut self, at: Now) -> bool {
        if at > self.now {
            self.at(at);
        }
        at <= self.now
    }

    /// Says again the creations whose end we do not know.
    pub fn create_again(&mut self) {
        for i in 0..self.creates.len() {
            let next = self.creates[i].retry.next;
            if self.creates[i].call.is_none() && self.due(next) && self.may(Verb::Create) {
                let call = self.creates[i].intent.call.clone();
                self.creates[i].call = Some(self.start(call));
            }
        }
    }

    /// Takes every ENI one step on; those on their way up go first.
    pub fn advance(&mut self) {
        let (up, down): (Vec<_>, Vec<_>) = self
            .nics
            .iter()
            .filter(|(_, n)| n.next() != Next::Nothing)
            .map(|(id, n)| (id.clone(), n.goal))
            .partition(|(_, goal)| *goal == Goal::Keep);
        for (id, _) in up.into_iter().chain(down) {
            self.take_step(&id);
        }
    }

    fn take_step(&mut self, id: &str) {
        let nic = &self.nics[id];
        let next = nic.next();
        let at = if next == Next::Prepare { nic.wiring.next } else { nic.retry.next };
        if !self.due(at) {
            return;
        }
        let eni = id.to_owned();
        match next {
            Next::Nothing => {}
            Next::Prepare => self.prepare(id),
            Next::AssignAgain => {
                let assign = self.nics[id].assign.as_ref().expect("what is said again was said");
                let (family, call) = (assign.family, assign.intent.call.clone());
                self.step_call(Verb::Assign(family), Some(call));
            }
            Next::UnassignAgain => self.unassign(id),
            Next::Look => self.look(id),
            Next::Attach => self.step_call(Verb::Attach, Some(Call::Attach { eni })),
            Next::Detach => self.detach(id),
            Next::Delete => self.step_call(Verb::Delete, Some(Call::Delete { eni })),
        }
    }

    /// Looks at an ENI that may not be as we believe; one that the cloud is moving shares the call with all others that move.
    fn look(&mut self, id: &str) {
        let moving = |n: &Nic| n.next() == Next::Look && !n.stale;
        let enis = match moving(&self.nics[id]) {
            true => self.nics.iter().filter(|(_, n)| moving(n)).map(|(id, _)| id.clone()).take(MAX_LOOKED_AT).collect(),
            false => vec![id.to_owned()],
        };
        self.step_call(Verb::Look, Some(Call::Look { enis }));
    }

    fn step_call(&mut self, verb: Verb, call: Option<Call>) {
        if let Some(call) = call.filter(|_| self.may(verb)) {
            self.start(call);
        }
    }

    fn prepare(&mut self, id: &str) {
        let nic = self.nics.get_mut(id).expect("the caller knows the ENI");
        nic.kernel = Kernel::Asked;
        nic.dismantled = false;
        self.out.push(Effect::Prepare { eni: id.to_owned(), mac: nic.mac, vswitch: nic.vswitch.clone() });
    }

    /// Takes the ENI out of the kernel, then off the instance.
    fn detach(&mut self, id: &str) {
        if !self.may(Verb::Detach) {
            return;
        }
        let nic = self.nics.get_mut(id).expect("the caller knows the ENI");
        nic.kernel = Kernel::Absent;
        if !nic.dismantled {
            nic.dismantled = true;
            self.out.push(Effect::Dismantle { eni: id.to_owned(), mac: nic.mac });
        }
        self.start(Call::Detach { eni: id.to_owned() });
    }

    /// Unassigns the addresses that are marked as leaving, one family at a time.
    pub fn unassign(&mut self, id: &str) {
        if let Some(call) = self.leaving_prefixes(id) {
            if self.may(Verb::Unassign(Family::V4)) {
                self.part(id, call);
            }
            return;
        }
        for family in [Family::V4, Family::V6] {
            let leaving = self.nics[id].addresses.iter().filter(|(ip, a)| a.leaving && Family::of(ip) == family);
            let addresses: Vec<IpAddr> = leaving.map(|(ip, _)| *ip).take(MAX_PER_CALL as usize).collect();
            if !addresses.is_empty() && self.may(Verb::Unassign(family)) {
                return self.part(id, Call::Unassign { eni: id.to_owned(), addresses });
            }
        }
    }

    /// Written down first: a next life may see the addresses on the ENI still, and must not lease them.
    fn part(&mut self, id: &str, call: Call) {
        let token = self.token();
        let nic = self.nics.get_mut(id).expect("the caller knows the ENI");
        if nic.parting.as_ref().is_none_or(|parting| parting.intent.call != call) {
            let intent = Intent { token, call: call.clone() };
            self.out.push(Effect::Intend(intent.clone()));
            if let Some(before) = nic.parting.replace(Parting { intent, doubt: false }) {
                self.out.push(Effect::Settled { token: before.intent.token });
            }
        }
        self.start(call);
    }

    /// What an earlier life was about to give back is on its way still, as far as it is there. Whether anything is.
    pub fn part_again(&mut self, eni: &str, intent: &Intent) -> bool {
        let leaving = self.about_to_leave(eni, &intent.call);
        let Some(nic) = self.nics.get_mut(eni).filter(|_| !leaving.is_empty()) else { return false };
        nic.leaves = true;
        for ip in leaving {
            nic.addresses.get_mut(&ip).expect("just seen").leaving = true;
        }
        let first = nic.parting.is_none();
        nic.parting.get_or_insert_with(|| Parting { intent: intent.clone(), doubt: true });
        self.recount();
        first
    }

    /// The addresses that the call takes away: those that are there and nobody has, and no prefix in part.
    fn about_to_leave(&self, eni: &str, call: &Call) -> Vec<IpAddr> {
        let Some(nic) = self.nics.get(eni) else { return Vec::new() };
        let free = |ip: &IpAddr| nic.addresses.contains_key(ip) && !self.is_in_use(ip);
        match call {
            Call::Unassign { addresses, .. } => addresses.iter().copied().filter(free).collect(),
            Call::UnassignPrefixes { prefixes, .. } => {
                let whole = |prefix: &&Ipv4Net| nic.prefixes.contains(*prefix) && of_prefix(prefix).all(|ip| free(&ip));
                prefixes.iter().filter(whole).flat_map(of_prefix).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Of what was on its way, nothing is any more.
    pub fn settle_partings(&mut self) {
        let over = |n: &&mut Nic| n.busy.is_none() && !n.addresses.values().any(|a| a.leaving);
        for nic in self.nics.values_mut().filter(|n| n.parting.is_some()).filter(over) {
            let token = nic.parting.take().expect("just seen").intent.token;
            self.out.push(Effect::Settled { token });
        }
    }
}
