//! When to try again: back-off with jitter for one thing, and a gate for all calls that narrows under throttling and closes in an outage.

use std::time::Duration;

use fastrand::Rng;

use super::{CallId, Now};
use crate::eni::{Fault, FaultKind};

/// How waiting grows from one failure to the next.
pub(super) struct Pace {
    base: Duration,
    factor: f64,
    cap: Duration,
}

/// Looking again at an ENI that the cloud is moving.
pub(super) const POLL: Pace = Pace { base: Duration::from_millis(500), factor: 1.5, cap: Duration::from_secs(10) };
/// A call that may well succeed next time.
pub(super) const SOON: Pace = Pace { base: Duration::from_secs(1), factor: 2.0, cap: Duration::from_secs(60) };
/// A call that a person, or much time, must make possible.
pub(super) const LATE: Pace = Pace { base: Duration::from_secs(60), factor: 2.0, cap: Duration::from_secs(600) };

impl Pace {
    fn wait(&self, fails: u32, rng: &mut Rng) -> Duration {
        let grown = self.base.as_secs_f64() * self.factor.powi(fails.min(30) as i32);
        jitter(Duration::from_secs_f64(grown.min(self.cap.as_secs_f64())), rng)
    }
}

/// Half to one and a half times as long, so that a thousand nodes do not come back together.
pub(super) fn jitter(wait: Duration, rng: &mut Rng) -> Duration {
    wait.mul_f64(0.5 + rng.f64())
}

/// The failures of one thing in a row, and when it may be tried again.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    pub fails: u32,
    pub next: Now,
}

impl Backoff {
    pub fn fail(&mut self, now: Now, pace: &Pace, rng: &mut Rng) {
        self.next = now + pace.wait(self.fails, rng);
        self.fails += 1;
    }

    /// Starts afresh, not before this time.
    pub fn restart(&mut self, next: Now) {
        *self = Backoff { fails: 0, next };
    }
}

/// ENI operations at once, as the old Terway has.
const WIDTH: u32 = 3;
/// Calls in a row without an answer that make an outage.
const OUTAGE: u32 = 3;
const MIN_GAP: Duration = Duration::from_millis(250);
const MAX_GAP: Duration = Duration::from_secs(30);

/// What all calls pass: it widens slowly and narrows fast under throttling (AIMD), and in an outage lets through one probe at a time.
pub(super) struct Gate {
    /// ENI operations that may be under way at once.
    pub width: u32,
    good: u32,
    gap: Duration,
    next: Now,
    /// Calls up to this one were sent before the last change of mind and do not cause another.
    heeded: CallId,
    last: CallId,
    silent: u32,
    outage: Option<Outage>,
    /// The last fault that narrowed or closed the gate.
    fault: Option<Fault>,
}

struct Outage {
    backoff: Backoff,
    probe: Option<CallId>,
}

/// Why the gate does not let a call through.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Shut {
    Until(Now),
    /// Until the probe is answered.
    Probing,
}

impl Gate {
    pub fn new() -> Gate {
        let zero = Duration::ZERO;
        Gate { width: WIDTH, good: 0, gap: zero, next: zero, heeded: 0, last: 0, silent: 0, outage: None, fault: None }
    }

    pub fn may(&self, now: Now) -> Result<(), Shut> {
        let next = match &self.outage {
            Some(Outage { probe: Some(_), .. }) => return Err(Shut::Probing),
            Some(outage) => self.next.max(outage.backoff.next),
            None => self.next,
        };
        if next > now { Err(Shut::Until(next)) } else { Ok(()) }
    }

    pub fn sent(&mut self, now: Now, id: CallId, rng: &mut Rng) {
        self.last = id;
        self.next = now + jitter(self.gap, rng);
        if let Some(outage) = &mut self.outage {
            outage.probe = Some(id);
        }
    }

    pub fn heard(&mut self, now: Now, id: CallId, fault: Option<&Fault>, rng: &mut Rng) {
        match fault {
            Some(fault) if fault.kind == FaultKind::Unknown => return self.no_answer(now, id, fault, rng),
            Some(fault) if fault.kind == FaultKind::Throttled => self.narrow(now, id, fault, rng),
            Some(_) => {}
            None => self.widen(),
        }
        self.silent = 0;
        self.outage = None;
    }

    /// The same of a call to another endpoint than all others' (the VPC API's, which counts vSwitches): alone it says neither that
    /// the cloud is away nor that it is back.
    pub fn heard_elsewhere(&mut self, now: Now, id: CallId, fault: Option<&Fault>, rng: &mut Rng) {
        match fault {
            Some(fault) if fault.kind == FaultKind::Unknown => self.silent = (self.silent + 1).min(OUTAGE - 1),
            Some(fault) if fault.kind == FaultKind::Throttled => self.narrow(now, id, fault, rng),
            Some(_) => {}
            None => self.widen(),
        }
    }

    fn no_answer(&mut self, now: Now, id: CallId, fault: &Fault, rng: &mut Rng) {
        self.silent += 1;
        if let Some(outage) = &mut self.outage {
            if outage.probe == Some(id) {
                outage.probe = None;
                outage.backoff.fail(now, &SOON, rng);
            }
        } else if self.silent >= OUTAGE {
            let mut backoff = Backoff::default();
            backoff.fail(now, &SOON, rng);
            self.outage = Some(Outage { backoff, probe: None });
        }
        self.fault = Some(fault.clone());
    }

    fn narrow(&mut self, now: Now, id: CallId, fault: &Fault, rng: &mut Rng) {
        self.fault = Some(fault.clone());
        self.good = 0;
        if id <= self.heeded {
            return;
        }
        self.heeded = self.last;
        self.width = (self.width / 2).max(1);
        self.gap = (self.gap * 2).clamp(2 * MIN_GAP, MAX_GAP);
        self.next = now + jitter(self.gap, rng);
    }

    fn widen(&mut self) {
        self.gap = self.gap * 3 / 4;
        if self.gap < MIN_GAP {
            self.gap = Duration::ZERO;
        }
        self.good += 1;
        if self.good >= WIDTH && self.width < WIDTH {
            self.good = 0;
            self.width += 1;
        }
    }

    /// In an outage the next probe goes now, whatever becomes of the one under way.
    pub fn hurry(&mut self, now: Now) {
        if let Some(outage) = &mut self.outage {
            *outage = Outage { backoff: Backoff { fails: 0, next: now }, probe: None };
        }
    }

    /// The cloud does not answer: what was heard last, and when we ask again.
    pub fn outage(&self) -> Option<(&Fault, Now)> {
        Some((self.fault.as_ref()?, self.outage.as_ref()?.backoff.next))
    }

    /// The cloud asks us to slow down, in these words.
    pub fn throttled(&self) -> Option<&Fault> {
        self.fault.as_ref().filter(|f| !self.gap.is_zero() && f.kind == FaultKind::Throttled)
    }

    pub fn gap(&self) -> Duration {
        self.gap
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(kind: FaultKind) -> Fault {
        Fault { kind, action: "Act".into(), code: "Code".into(), message: "words".into(), request_id: String::new() }
    }

    const fn secs(n: u64) -> Now {
        Duration::from_secs(n)
    }

    #[test]
    fn waiting_doubles_up_to_its_cap_and_never_by_the_same_amount() {
        let mut rng = Rng::with_seed(1);
        let mut backoff = Backoff::default();
        let mut waits = Vec::new();
        for _ in 0..10 {
            backoff.fail(secs(100), &SOON, &mut rng);
            waits.push((backoff.next - secs(100)).as_secs_f64());
        }
        for (wait, centre) in waits.iter().zip([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0, 60.0]) {
            assert!((centre * 0.5..=centre * 1.5).contains(wait), "{wait} is not about {centre}");
        }
        assert_ne!(waits[8], waits[9]);
    }

    #[test]
    fn in_an_outage_one_call_goes_first() {
        let (mut gate, mut rng) = (Gate::new(), Rng::with_seed(2));
        for id in 1..=3 {
            gate.sent(secs(1), id, &mut rng);
            assert_eq!(gate.may(secs(1)), Ok(()));
        }
        for id in 1..=3 {
            gate.heard(secs(2), id, Some(&fault(FaultKind::Unknown)), &mut rng);
        }
        let Err(Shut::Until(at)) = gate.may(secs(2)) else { panic!("the gate is open") };
        assert!(at > secs(2) && at < secs(4));
        assert_eq!(gate.may(at), Ok(()));
        gate.sent(at, 4, &mut rng);
        assert_eq!(gate.may(at + secs(60)), Err(Shut::Probing));
        gate.heard(at + secs(1), 4, Some(&fault(FaultKind::Unknown)), &mut rng);
        assert!(matches!(gate.may(at + secs(1)), Err(Shut::Until(_))));
        gate.sent(at + secs(9), 5, &mut rng);
        gate.heard(at + secs(9), 5, Some(&fault(FaultKind::Invalid)), &mut rng);
        assert_eq!(gate.may(at + secs(9)), Ok(()));
        assert!(gate.outage().is_none());
    }

    #[test]
    fn another_endpoint_makes_no_outage_and_ends_none() {
        let (mut gate, mut rng, dead) = (Gate::new(), Rng::with_seed(4), fault(FaultKind::Unknown));
        for id in 1..=9 {
            gate.heard_elsewhere(secs(id), id, Some(&dead), &mut rng);
            assert!(gate.outage().is_none());
        }
        // What is silent there makes the others' silence believed sooner.
        gate.heard(secs(10), 10, Some(&dead), &mut rng);
        assert!(gate.outage().is_some());
        gate.heard_elsewhere(secs(11), 11, None, &mut rng);
        assert!(gate.outage().is_some());
    }

    #[test]
    fn throttling_narrows_at_once_and_success_widens_slowly() {
        let (mut gate, mut rng) = (Gate::new(), Rng::with_seed(3));
        for id in 1..=3 {
            gate.sent(secs(1), id, &mut rng);
        }
        for id in 1..=3 {
            gate.heard(secs(2), id, Some(&fault(FaultKind::Throttled)), &mut rng);
        }
        assert_eq!((gate.width, gate.gap()), (1, Duration::from_millis(500)));
        assert!(matches!(gate.may(secs(2)), Err(Shut::Until(_))));
        assert!(gate.throttled().is_some());
        for id in 4..=9 {
            gate.sent(secs(id), id, &mut rng);
            gate.heard(secs(id), id, None, &mut rng);
        }
        assert_eq!((gate.width, gate.gap()), (3, Duration::ZERO));
        assert!(gate.throttled().is_none());
    }
}
