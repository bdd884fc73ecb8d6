//! What each answer of the cloud changes.

use std::net::IpAddr;
use std::time::Duration;

use super::{Block, NO_ASSIGN, Verb, enis_of, verb};
use crate::eni::{Eni, EniState, Fault, FaultKind, VSwitch};
use crate::ip::Family;
use crate::pool::eni::{Address, Goal, Nic};
use crate::pool::retry::{Backoff, LATE, POLL, SOON, jitter};
use crate::pool::state::State;
use crate::pool::vswitch::UNCOUNTED;
use crate::pool::{Call, CallId, Effect, Outcome, Refused, Settings};
use crate::rpc::Refusal;

/// Attempts with one token before we look what has become of them and begin anew.
const MAX_TRIES: u32 = 8;
/// Refusals to attach an ENI before it is deleted.
const MAX_REJECTED: u32 = 3;
/// From an accepted attach or detach to the first look.
const SETTLE: Duration = Duration::from_secs(2);

impl State {
    pub fn done(&mut self, id: CallId, result: Result<Outcome, Fault>) {
        let Some(call) = self.calls.remove(&id) else { return };
        let fault = result.as_ref().err();
        match call {
            Call::VSwitches => self.gate.heard_elsewhere(self.now, id, fault, &mut self.rng),
            _ => self.gate.heard(self.now, id, fault, &mut self.rng),
        }
        for eni in enis_of(&call) {
            if let Some(nic) = self.nics.get_mut(eni) {
                nic.busy = None;
                nic.touched = self.last_call;
                if let Some(parting) = nic.parting.as_mut().filter(|parting| parting.intent.call == call) {
                    parting.doubt = fault.is_some_and(|fault| fault.kind == FaultKind::Unknown);
                }
            }
        }
        match result {
            Ok(outcome) => {
                self.blocks.remove(&verb(&call));
                self.succeeded(id, call, outcome);
            }
            Err(fault) => self.failed(call, fault),
        }
        self.recheck_suspects();
        self.check_leases();
    }

    fn succeeded(&mut self, id: CallId, call: Call, outcome: Outcome) {
        match (call, outcome) {
            (Call::Create { token, .. }, Outcome::Created(eni)) => self.created(&token, &eni),
            (Call::Attach { eni }, Outcome::Attached) => self.moving(&eni, EniState::Attaching),
            (Call::Detach { eni }, Outcome::Detached) => self.moving(&eni, EniState::Detaching),
            (Call::Delete { eni }, Outcome::Deleted) => self.lose(&eni),
            (Call::Assign { eni, family, count, .. }, Outcome::Assigned(ips)) => {
                self.assigned(&eni, family, count, &ips);
            }
            (Call::Unassign { eni, addresses }, Outcome::Unassigned) => self.unassigned(&eni, &addresses),
            (Call::AssignPrefixes { eni, count, .. }, Outcome::Prefixes(nets)) => {
                self.assigned_prefixes(&eni, count, &nets);
            }
            (Call::UnassignPrefixes { eni, prefixes }, Outcome::Unassigned) => {
                self.unassigned_prefixes(&eni, &prefixes)
            }
            (Call::Look { enis }, Outcome::Seen(seen)) => {
                enis.iter().for_each(|id| self.seen(id, seen.iter().find(|eni| eni.id == *id)));
            }
            (Call::LookAll, Outcome::SeenAll(enis)) => self.seen_all(id, &enis),
            (Call::VSwitches, Outcome::VSwitches(list)) => self.counted(id, list),
            (call @ (Call::Regroup { .. } | Call::Tag { .. } | Call::Untag { .. }), Outcome::Dressed) => {
                self.dressed(&call);
            }
            (call, outcome) => {
                let message = format!("the answer is about something else: {outcome:?}");
                let action = format!("{:?}", verb(&call));
                let (code, request_id) = (String::new(), String::new());
                self.failed(call, Fault { kind: FaultKind::Unknown, action, code, message, request_id });
            }
        }
    }

    fn counted(&mut self, id: CallId, list: Vec<VSwitch>) {
        self.vswitches.counted(self.now, id, list, &mut self.rng);
        self.set_up_anew();
        if std::mem::take(&mut self.vswitches.told) {
            self.tell(None, false, "AllocIPSucceed", "free addresses of vSwitches are counted again".into());
        }
    }

    fn created(&mut self, token: &str, eni: &Eni) {
        let Some(i) = self.creates.iter().position(|c| c.intent.token == token) else { return };
        let create = self.creates.remove(i);
        self.out.push(Effect::Settled { token: token.to_owned() });
        if let Some(nic) = self.nics.get_mut(&eni.id) {
            nic.stale = true;
            return;
        }
        let room = self.places_taken() < self.max_enis();
        let mut nic = Nic::new(self.now, eni, if room { Goal::Keep } else { Goal::GiveBack });
        nic.touched = self.last_call;
        self.nics.insert(eni.id.clone(), nic);
        self.vswitches.took(&eni.vswitch, eni.v4.len());
        self.see(eni);
        let nic = self.nics.get_mut(&eni.id).expect("just inserted");
        let (v4, v6) = (create.addresses(Family::V4), create.addresses(Family::V6));
        nic.stale = create.doubt || (eni.v4.len(), eni.v6.len()) != (v4 as usize, v6 as usize);
    }

    fn moving(&mut self, eni: &str, state: EniState) {
        let Some(nic) = self.nics.get_mut(eni) else { return };
        nic.state = state;
        nic.accepted += u32::from(state == EniState::Attaching);
        nic.retry.restart(self.now + jitter(SETTLE, &mut self.rng));
    }

    /// New addresses, each taken only if it can be right; if anything is odd we look what the ENI really has.
    fn assigned(&mut self, id: &str, family: Family, count: u32, ips: &[IpAddr]) {
        self.settle_assign(id, ips.len() != count as usize);
        let Some(nic) = self.nics.get_mut(id) else { return };
        if ips.len() < count as usize {
            nic.retry.fail(self.now, &SOON, &mut self.rng);
        } else {
            nic.retry.restart(self.now);
        }
        nic.no_assign.remove(&family);
        let vswitch = nic.vswitch.clone();
        if family == Family::V4 {
            self.vswitches.took(&vswitch, ips.len());
        }
        for ip in ips.iter().take(count as usize) {
            let sound = Family::of(ip) == family && self.is_sound(id, &vswitch, *ip);
            let nic = self.nics.get_mut(id).expect("just seen");
            if nic.addresses.contains_key(ip) {
                nic.stale = true;
            } else if sound {
                nic.addresses.insert(*ip, Address { free_since: self.now, leaving: false });
            } else {
                nic.stale = true;
                if nic.suspect.insert(*ip) {
                    self.tell_suspect(id, *ip);
                }
            }
        }
    }

    fn unassigned(&mut self, id: &str, ips: &[IpAddr]) {
        let Some(nic) = self.nics.get_mut(id) else { return };
        nic.retry.restart(self.now);
        nic.addresses.retain(|ip, a| !(a.leaving && ips.contains(ip)));
        nic.leaves = nic.addresses.values().any(|a| a.leaving);
    }

    /// The intent's call has ended; if in doubt, what it did is looked up.
    pub fn settle_assign(&mut self, id: &str, doubt: bool) {
        let Some(nic) = self.nics.get_mut(id) else { return };
        let Some(assign) = nic.assign.take() else { return };
        nic.stale |= doubt || assign.doubt;
        self.out.push(Effect::Settled { token: assign.intent.token });
    }

    fn seen(&mut self, id: &str, seen: Option<&Eni>) {
        let Some(eni) = seen.filter(|e| self.is_here(e)) else { return self.lose(id) };
        if !self.nics.contains_key(id) {
            return;
        }
        self.see(eni);
        let nic = self.nics.get_mut(id).expect("just seen");
        if !nic.parting.as_ref().is_some_and(|parting| parting.doubt) {
            nic.addresses.values_mut().for_each(|a| a.leaving = false);
            nic.leaves = false;
        }
        let moving = !matches!(eni.state, EniState::Available | EniState::InUse);
        if moving {
            nic.retry.fail(self.now, &POLL, &mut self.rng);
        }
    }

    /// It is not attached to another instance.
    fn is_here(&self, eni: &Eni) -> bool {
        eni.instance.as_deref().is_none_or(|i| i.is_empty() || i == self.settings.instance)
    }

    /// Compares what we know with all that the cloud has. What changed while the look was under way is left for the next one.
    fn seen_all(&mut self, id: CallId, enis: &[Eni]) {
        self.survey.running = None;
        self.survey.retry.restart(self.now + jitter(self.settings.sync_period, &mut self.rng));
        self.see_instance(enis);
        for eni in enis {
            self.compare(id, eni);
        }
        let absent =
            |(eni, nic): &(&String, &mut Nic)| !nic.missing && nic.touched < id && enis.iter().all(|e| e.id != **eni);
        for (_, nic) in self.nics.iter_mut().filter(absent) {
            nic.stale = true;
        }
        if self.survey.blind.is_some_and(|since| since < id) {
            self.survey.blind = None;
        }
        self.survey.gone.clear();
    }

    fn compare(&mut self, id: CallId, eni: &Eni) {
        match self.nics.get(&eni.id) {
            Some(nic) if nic.busy.is_some() || nic.touched >= id || nic.assign.is_some() => {}
            Some(_) if !self.is_here(eni) => self.lose(&eni.id),
            Some(_) => self.see(eni),
            None if self.survey.gone.contains(&eni.id) || !self.creates.is_empty() => {}
            None if self.is_to_adopt(eni) => self.adopt(eni),
            None => {}
        }
    }

    // -- failing --

    fn failed(&mut self, call: Call, fault: Fault) {
        match call {
            Call::Create { token, .. } => self.create_failed(&token, &fault),
            Call::Assign { eni, family, .. } => self.assign_failed(&eni, family, &fault),
            Call::AssignPrefixes { eni, .. } => self.assign_failed(&eni, Family::V4, &fault),
            Call::Unassign { .. } | Call::UnassignPrefixes { .. } => self.unassign_failed(&call, &fault),
            Call::Attach { eni } => self.attach_failed(&eni, &fault),
            Call::Detach { eni } => self.removal_failed(&eni, Verb::Detach, &fault),
            Call::Delete { eni } if fault.kind == FaultKind::Gone => self.lose(&eni),
            Call::Delete { eni } => self.removal_failed(&eni, Verb::Delete, &fault),
            Call::Look { enis } if fault.kind == FaultKind::Gone && enis.len() == 1 => self.lose(&enis[0]),
            Call::Look { enis } => {
                // Each is looked at alone then: whichever is the cause, it does not hide the others.
                enis.iter().for_each(|eni| self.later(eni, true));
                self.block_if_forbidden(Verb::Look, &fault);
            }
            Call::LookAll => {
                self.block_if_forbidden(Verb::LookAll, &fault);
                self.survey.running = None;
                self.survey.retry.fail(self.now, &LATE, &mut self.rng);
                if self.survey.blind.is_some() {
                    self.survey.retry.next = self.survey.retry.next.min(self.now + Duration::from_secs(10));
                }
            }
            Call::Regroup { ref eni, .. } | Call::Tag { ref eni, .. } | Call::Untag { ref eni, .. } => {
                self.dress_failed(eni, &call, &fault);
            }
            Call::VSwitches => self.not_counted(&fault),
        }
    }

    fn not_counted(&mut self, fault: &Fault) {
        self.vswitches.not_counted(self.now, &mut self.rng);
        self.block_if_forbidden(Verb::VSwitches, fault);
        if fault.kind != FaultKind::Unknown {
            return;
        }
        let fails = self.vswitches.refresh.fails;
        if fails + 1 == UNCOUNTED {
            // Whether the whole cloud is away a node without work would learn late.
            self.survey.hurry(self.now);
        }
        if fails >= UNCOUNTED && self.gate.outage().is_none() && !self.vswitches.told {
            self.vswitches.told = true;
            let message =
                format!("free addresses of vSwitches cannot be counted; pods are served without that: {fault}");
            self.tell(None, true, "AllocResourceFailed", message);
        }
    }

    fn create_failed(&mut self, token: &str, fault: &Fault) {
        let Some(i) = self.creates.iter().position(|c| c.intent.token == token) else { return };
        let create = &mut self.creates[i];
        create.call = None;
        create.tries += 1;
        create.doubt |= fault.kind == FaultKind::Unknown;
        if may_say_again(fault.kind) && create.tries < MAX_TRIES {
            return create.retry.fail(self.now, &SOON, &mut self.rng);
        }
        let create = self.creates.remove(i);
        self.out.push(Effect::Settled { token: token.to_owned() });
        if create.doubt || fault.kind == FaultKind::Token {
            self.survey.blind = Some(self.last_call);
            self.survey.hurry(self.now);
        }
        match fault.kind {
            FaultKind::VSwitchEmpty => self.set_aside(create.vswitch(), Family::V4, fault),
            FaultKind::Unknown | FaultKind::Throttled | FaultKind::Busy | FaultKind::Token => {}
            FaultKind::Invalid | FaultKind::Gone if self.has_another(create.vswitch()) => {
                self.refuse_vswitch(create.vswitch(), fault);
            }
            _ => self.block(Verb::Create, fault),
        }
    }

    /// An ENI may be made in another vSwitch than this.
    fn has_another(&self, vswitch: &str) -> bool {
        let Settings { vswitches, stack, .. } = &self.settings;
        vswitches.iter().any(|id| id != vswitch && self.vswitches.can_create(id, *stack, self.now))
    }

    /// Where another vSwitch may do, what the cloud does not take is held to be the vSwitch's fault.
    fn refuse_vswitch(&mut self, id: &str, fault: &Fault) {
        if self.vswitches.refuse(self.now, id, fault.to_string()) {
            let message = format!("vSwitch {id} is not used for a while, others are: {fault}");
            self.tell(None, true, "AllocResourceFailed", message);
        }
    }

    fn assign_failed(&mut self, id: &str, family: Family, fault: &Fault) {
        let Some(nic) = self.nics.get_mut(id) else { return };
        let Some(assign) = &mut nic.assign else { return };
        assign.tries += 1;
        assign.doubt |= fault.kind == FaultKind::Unknown;
        if may_say_again(fault.kind) && assign.tries < MAX_TRIES {
            return nic.retry.fail(self.now, &SOON, &mut self.rng);
        }
        let vswitch = nic.vswitch.clone();
        let whole = matches!(assign.intent.call, Call::AssignPrefixes { .. });
        self.settle_assign(id, true);
        match fault.kind {
            FaultKind::VSwitchEmpty | FaultKind::Invalid if whole => self.no_prefixes(&vswitch, fault),
            FaultKind::VSwitchEmpty => self.set_aside(&vswitch, family, fault),
            FaultKind::Forbidden | FaultKind::Quota => self.block(Verb::Assign(family), fault),
            FaultKind::EniFull | FaultKind::Invalid => self.ask_no_more(id, family, fault),
            _ => self.later(id, true),
        }
    }

    /// The addresses go on leaving if that may still happen; else a look tells which of them have stayed.
    fn unassign_failed(&mut self, call: &Call, fault: &Fault) {
        enis_of(call).iter().for_each(|eni| self.later(eni, !may_say_again(fault.kind)));
        if matches!(fault.kind, FaultKind::Forbidden | FaultKind::Quota | FaultKind::Invalid) {
            self.block(verb(call), fault);
        }
    }

    fn attach_failed(&mut self, id: &str, fault: &Fault) {
        self.later(id, true);
        if matches!(fault.kind, FaultKind::Forbidden | FaultKind::Quota | FaultKind::Invalid) {
            self.block(Verb::Attach, fault);
            let needed = self.needed(id);
            let Some(nic) = self.nics.get_mut(id) else { return };
            nic.rejected += 1;
            if nic.rejected >= MAX_REJECTED && !needed {
                nic.goal = Goal::GiveBack;
            }
        }
    }

    fn removal_failed(&mut self, id: &str, verb: Verb, fault: &Fault) {
        self.later(id, true);
        if matches!(fault.kind, FaultKind::Forbidden | FaultKind::Quota | FaultKind::Invalid) {
            self.block(verb, fault);
        }
    }

    /// The next call on the ENI waits; `look`: it is a look, since what we believe may be wrong.
    pub fn later(&mut self, id: &str, look: bool) {
        let Some(nic) = self.nics.get_mut(id) else { return };
        nic.stale |= look;
        nic.retry.fail(self.now, &SOON, &mut self.rng);
    }

    fn ask_no_more(&mut self, id: &str, family: Family, fault: &Fault) {
        let Some(nic) = self.nics.get_mut(id) else { return };
        let refused = Refused { why: refusal(fault.kind), reason: format!("{id}: {fault}") };
        nic.no_assign.insert(family, (self.now + NO_ASSIGN, refused));
    }

    fn set_aside(&mut self, vswitch: &str, family: Family, fault: &Fault) {
        self.vswitches.set_aside(self.now, self.last_call, (vswitch, family), fault.to_string());
    }

    /// Looking is never given up but for want of a right, which a person must hear of.
    fn block_if_forbidden(&mut self, verb: Verb, fault: &Fault) {
        if fault.kind == FaultKind::Forbidden {
            self.block(verb, fault);
        }
    }

    /// The verb is refused for a while, longer each time.
    pub fn block(&mut self, verb: Verb, fault: &Fault) {
        let old = self.blocks.remove(&verb);
        let mut backoff = Backoff { fails: old.as_ref().map_or(0, |b| b.fails), next: self.now };
        backoff.fail(self.now, &LATE, &mut self.rng);
        let refused = Refused { why: refusal(fault.kind), reason: fault.to_string() };
        let removal = matches!(verb, Verb::Detach | Verb::Delete | Verb::Unassign(_));
        let reason = if removal { "DisposeResourceFailed" } else { "AllocResourceFailed" };
        // What an ENI should bear is told with its name.
        let told_there = matches!(verb, Verb::Regroup | Verb::Tag | Verb::Untag);
        if old.is_none() && !told_there {
            self.tell(None, true, reason, refused.reason.clone());
        }
        self.blocks.insert(verb, Block { until: backoff.next, refused, fails: backoff.fails });
    }
}

/// The same call with the same token can still succeed.
pub(in crate::pool) fn may_say_again(kind: FaultKind) -> bool {
    matches!(kind, FaultKind::Unknown | FaultKind::Throttled | FaultKind::Busy)
}

fn refusal(kind: FaultKind) -> Refusal {
    match kind {
        FaultKind::Forbidden => Refusal::Forbidden,
        FaultKind::Quota | FaultKind::EniFull => Refusal::Quota,
        FaultKind::VSwitchEmpty => Refusal::VSwitchEmpty,
        FaultKind::Throttled => Refusal::Throttled,
        _ => Refusal::CloudDown,
    }
}
