//! Random events against a strict world: whatever happens and whenever the daemon dies, no promise of the pool is broken.
//!
//! `POOL_SEED=17 cargo test --lib pool::fuzz` replays one seed (a failure names its seed; `POOL_VERBOSE=1` prints every event
//! and effect), `POOL_SEEDS=10000` runs more of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use fastrand::Rng;
use serde_json::Value;

use super::calls::enis_of;
use super::world::{Asked, Cloud, Flight, HERE, Ills, Ledger, attachment, places, pod, sandbox, settings};
use super::{Call, Effect, EniChoice, Event, Held, Link, Now, Outcome, Pool, Settings, VSwitchChoice, Will};
use crate::config::Reclaim;
use crate::eni::{Eni, EniKind, EniState, of_prefix};
use crate::ip::{Family, IpPair, Stack};
use crate::ours;
use crate::rpc::Refusal;

const SEEDS: u64 = 720;
const ACTIONS: u32 = 2200;

#[test]
fn a_million_random_events_break_no_promise() {
    if let Some(seed) = std::env::var("POOL_SEED").ok().and_then(|s| s.parse().ok()) {
        episode(seed);
        return;
    }
    let more = std::env::var("POOL_SEEDS").ok().and_then(|s| s.parse().ok());
    let mut events = 0;
    for seed in 0..more.unwrap_or(SEEDS) {
        events += catch_unwind(AssertUnwindSafe(|| episode(seed))).unwrap_or_else(|panic| {
            eprintln!("replay with POOL_SEED={seed}");
            resume_unwind(panic)
        });
    }
    assert!(more.is_some() || events >= 1_000_000, "only {events} events");
}

fn episode(seed: u64) -> u64 {
    let mut run = Run::new(seed);
    run.boot(None);
    for _ in 0..ACTIONS {
        run.act();
    }
    run.quiesce();
    run.check_rest();
    run.events
}

/// What is going to happen.
#[derive(Debug)]
enum Due {
    Answer(Flight),
    Prepared(String),
    Tick,
    /// A call of an earlier life arrives late.
    Straggler(Call),
}

struct Run {
    rng: Rng,
    now: Now,
    settings: Settings,
    cloud: Cloud,
    ledger: Ledger,
    links: BTreeSet<String>,
    pool: Pool,
    due: BTreeMap<(Now, u64), Due>,
    count: u64,
    asked: Vec<Asked>,
    /// Addresses and ENIs are taken away by others, and answers lie: a lease may then be of an address that is gone.
    foul: bool,
    events: u64,
    wake: Option<Now>,
    /// What the last look at everything has shown to the pool.
    seen: Vec<Eni>,
    /// A call of an earlier life was carried out since the pool read everything.
    unseen: bool,
    /// Creations that were asked for: what had a place then is said again, even if somebody else has it by now.
    said: BTreeSet<String>,
    /// The settings stay as they are.
    steady: bool,
    /// How many of a thousand events are ADDs: sometimes the node fills, sometimes it drains.
    mood: u32,
    /// And how many of a hundred ADDs want an ENI to themselves.
    wishes: u32,
    verbose: bool,
}

impl Run {
    fn new(seed: u64) -> Run {
        let mut rng = Rng::with_seed(seed);
        let mut settings = random_settings(&mut rng, settings());
        settings.stack = random_stack(&mut rng);
        settings.whole = rng.u8(..4) == 0;
        if settings.whole {
            settings.limits.v4_per_adapter = 1;
            settings.limits.v6_per_adapter = settings.limits.v6_per_adapter.min(1);
        }
        let mut cloud = Cloud::new(rng.u64(..), settings.limits);
        for (id, net) in [("vsw-1", 1), ("vsw-2", 2)] {
            cloud.add_vswitch(id, net, rng.u8(3..60));
            if rng.u8(..8) > 0 {
                cloud.add_v6(id, net, rng.u8(3..100));
            }
        }
        let foul = rng.u8(..3) == 0;
        let ill = |rng: &mut Rng, most| if rng.bool() { rng.u32(..most) } else { 0 };
        cloud.ills = Ills {
            lost_reply: ill(&mut rng, 150),
            throttled: ill(&mut rng, 200),
            refused: ill(&mut rng, 60),
            lies: if foul { 100 } else { 0 },
            kernel: ill(&mut rng, 200),
            outage_until: Now::ZERO,
        };
        let mut run = Run {
            now: Duration::from_secs(1000),
            settings,
            cloud,
            ledger: Ledger::default(),
            links: BTreeSet::new(),
            pool: Pool::new(0),
            due: BTreeMap::new(),
            count: 0,
            asked: Vec::new(),
            foul,
            events: 0,
            wake: None,
            seen: Vec::new(),
            unseen: false,
            said: BTreeSet::new(),
            steady: rng.bool(),
            mood: 150,
            wishes: [0, 0, 5, 50][rng.usize(..4)],
            verbose: std::env::var_os("POOL_VERBOSE").is_some(),
            rng,
        };
        run.add_others();
        run
    }

    /// The instance's own ENI, and perhaps one of somebody else's: neither may be touched.
    fn add_others(&mut self) {
        for (id, kind) in [("eni-primary", EniKind::Primary), ("eni-foreign", EniKind::Secondary)] {
            if kind == EniKind::Primary || self.rng.u8(..4) == 0 {
                let mut eni = super::world::eni(id, EniState::InUse, "vsw-1", &["10.0.1.250"]);
                eni.kind = kind;
                if kind == EniKind::Secondary {
                    eni.tags.clear();
                }
                self.cloud.enis.insert(id.into(), eni);
            }
        }
    }

    // -- driving --

    fn act(&mut self) {
        if self.rng.u8(..100) == 0 {
            self.mood = self.rng.u32(20..260);
        }
        match self.rng.u32(..1000) {
            n if n < self.mood => self.allocate(),
            0..280 => self.release(),
            280..290 => self.forget(),
            290..294 => self.step(Event::Release { attachment: attachment("nobody") }),
            294..295 => self.end_in_order(),
            295..297 => self.crash(),
            297..300 if !self.steady => self.change_settings(),
            300..303 => self.outage(),
            303..306 => self.break_link(),
            306..308 if self.foul => self.take_away(),
            308..310 => self.meddle(),
            310..320 => self.step(Event::Tick),
            320..325 => self.burst(),
            325..330 => self.repeat_answer(),
            330..334 => self.wait(),
            _ => self.go_on(),
        }
    }

    /// A while in which nobody wants anything.
    fn wait(&mut self) {
        let end = self.now + Duration::from_secs(self.rng.u64(1..400));
        while self.now < end {
            self.go_on();
        }
    }

    fn allocate(&mut self) {
        self.count += 1;
        let again = self.rng.u8(..8) == 0;
        let old = self.ledger.leases.values().nth(self.rng.usize(..8)).map(|h| h.sandbox.clone());
        let sandbox = old.filter(|_| again).unwrap_or_else(|| sandbox(&format!("c{}", self.count)));
        let deadline = self.now + Duration::from_millis(self.rng.u64(0..60_000));
        let (ticket, name) = (self.count, pod(&format!("p{}", self.rng.u8(..20))));
        let whole = self.rng.u32(..100) < self.wishes;
        self.asked.push(Asked { ticket, attachment: sandbox.attachment.clone(), whole, deadline });
        self.step(Event::Allocate { ticket, pod: name, sandbox, whole, deadline });
    }

    fn burst(&mut self) {
        for _ in 0..self.rng.u8(1..15) {
            self.allocate();
        }
    }

    fn release(&mut self) {
        let n = self.ledger.leases.len();
        if n > 0 {
            let attachment = self.ledger.leases.keys().nth(self.rng.usize(..n)).unwrap().clone();
            match self.rng.u8(..3) {
                0 => self.step(Event::Reserve { attachment }),
                _ => self.step(Event::Release { attachment }),
            }
        } else if let Some(asked) = self.asked.first() {
            let attachment = asked.attachment.clone();
            self.step(Event::Release { attachment });
        }
    }

    fn forget(&mut self) {
        if !self.asked.is_empty() {
            let asked = self.asked.swap_remove(self.rng.usize(..self.asked.len()));
            self.step(Event::Forget { ticket: asked.ticket });
        }
    }

    fn change_settings(&mut self) {
        let limits = self.settings.limits;
        self.settings = random_settings(&mut self.rng, self.settings.clone());
        self.settings.limits = limits;
        if self.rng.u8(..3) == 0 {
            self.settings.stack = random_stack(&mut self.rng);
        }
        self.settings.max_enis = self.settings.max_enis.min(limits.adapters - 1);
        self.step(Event::Settings(Box::new(self.settings.clone())));
    }

    fn outage(&mut self) {
        self.cloud.ills.outage_until = self.now + Duration::from_secs(self.rng.u64(1..300));
    }

    fn break_link(&mut self) {
        if let Some(eni) = self.links.pop_first() {
            self.step(Event::LinkGone { eni });
        }
    }

    /// Somebody else unassigns an address, or detaches and deletes an ENI.
    fn take_away(&mut self) {
        let ids: Vec<String> = self.cloud.enis.values().filter(|e| is_ours(e)).map(|e| e.id.clone()).collect();
        if ids.is_empty() {
            return;
        }
        let id = &ids[self.rng.usize(..ids.len())];
        let eni = self.cloud.enis.get_mut(id).unwrap();
        if eni.v4.len() > 1 && self.rng.bool() {
            let ip = eni.v4.pop().unwrap();
            self.cloud.free.get_mut(&eni.vswitch.clone()).unwrap().push(ip);
        } else if !eni.v6.is_empty() && self.rng.bool() {
            let ip = eni.v6.pop().unwrap();
            self.cloud.free6.get_mut(&eni.vswitch.clone()).unwrap().push(ip);
        } else {
            self.cloud.remove(id);
            self.links.remove(id);
        }
    }

    /// Somebody else changes security groups and tags of an ENI, or keeps us from it and lets us again.
    fn meddle(&mut self) {
        let foul = self.foul;
        let Some(eni) = self.cloud.enis.values_mut().filter(|e| made_here(e)).max_by_key(|_| self.rng.u8(..)) else {
            return;
        };
        match self.rng.u8(..5) {
            0 => eni.security_groups = vec!["sg-9".into()],
            1 => drop(eni.tags.insert("others-cost".into(), self.rng.u8(..3).to_string())),
            2 => drop(eni.tags.remove("team")),
            3 if foul => drop(eni.tags.insert("excluded".into(), "true".into())),
            _ => drop(eni.tags.remove("excluded")),
        }
    }

    fn repeat_answer(&mut self) {
        let result = Ok(Outcome::Attached);
        self.step(Event::Done { call: 1_000_000 + self.count, result });
    }

    /// Lets time run to the next thing that is due.
    fn go_on(&mut self) {
        let Some(((at, _), due)) = self.due.pop_first() else {
            self.now += Duration::from_secs(1);
            return self.step(Event::Tick);
        };
        self.now = self.now.max(at);
        self.cloud.pass(self.now);
        match due {
            Due::Answer(flight) => self.answer(flight),
            Due::Prepared(eni) => self.prepare(eni),
            Due::Straggler(call) => {
                self.unseen = true;
                self.arrive(&call);
            }
            Due::Tick if self.wake.is_some_and(|w| w <= self.now) => self.step(Event::Tick),
            Due::Tick => {}
        }
    }

    fn answer(&mut self, flight: Flight) {
        self.arrive_first(&flight.call);
        let real = self.cloud.carry_out(self.now, &flight.call);
        self.drop_links();
        let result = match flight.picture {
            Some(picture) if real.is_ok() => Ok(picture),
            _ => real,
        };
        match &result {
            Ok(Outcome::SeenAll(enis)) => self.seen.clone_from(enis),
            Ok(Outcome::Created(eni)) => self.seen.push((**eni).clone()),
            _ => {}
        }
        self.step(Event::Done { call: flight.id, result });
    }

    /// Of two calls that take addresses off one ENI the later one does not overtake the first.
    fn arrive_first(&mut self, call: &Call) {
        let before =
            |due: &Due| matches!(due, Due::Straggler(first) if gives_back(first) && enis_of(first) == enis_of(call));
        let first: Vec<_> = self.due.extract_if(.., |_, due| gives_back(call) && before(due)).collect();
        for (_, due) in first {
            if let Due::Straggler(call) = due {
                self.arrive(&call);
            }
        }
    }

    /// A call of an earlier life: no pod of this one loses its address by it.
    fn arrive(&mut self, call: &Call) {
        let taken: BTreeSet<IpAddr> = match call {
            Call::Unassign { addresses, .. } => addresses.iter().copied().collect(),
            Call::UnassignPrefixes { prefixes, .. } => prefixes.iter().flat_map(of_prefix).collect(),
            _ => BTreeSet::new(),
        };
        let is_done = self.cloud.act(self.now, call).is_ok();
        let mut leased = self.ledger.leases.values().flat_map(|held| held.ip.iter());
        assert!(!is_done || !leased.any(|ip| taken.contains(&ip)), "{call:?} takes the address of a pod");
    }

    fn drop_links(&mut self) {
        let cloud = &self.cloud;
        self.links.retain(|id| cloud.enis.get(id).is_some_and(|e| e.state == EniState::InUse));
    }

    fn prepare(&mut self, eni: String) {
        let there = self.cloud.enis.get(&eni).is_some_and(|e| e.state == EniState::InUse);
        let fine = there && self.rng.u32(..1000) >= self.cloud.ills.kernel;
        let v6 = self.cloud.enis.get(&eni).and_then(|e| self.cloud.cidrs[&e.vswitch].cidr.v6);
        let link = Link { ifindex: 3, slot: 1, v6 };
        if fine {
            self.links.insert(eni.clone());
        }
        let result = if fine { Ok(link) } else { Err("no link with its MAC".into()) };
        self.step(Event::Prepared { eni, result });
    }

    // -- dying and coming back --

    fn crash(&mut self) {
        self.asked.clear();
        self.wake = None;
        for (_, due) in std::mem::take(&mut self.due) {
            match due {
                Due::Answer(flight) => self.strand(flight.call),
                Due::Straggler(call) => self.strand(call),
                _ => {}
            }
        }
        self.boot(None);
    }

    /// The daemon is told to end, and its next life goes by its will, if there is one.
    fn end_in_order(&mut self) {
        let Some(will) = self.pool.will(&self.seen) else { return self.crash() };
        self.asked.clear();
        self.wake = None;
        for (_, due) in std::mem::take(&mut self.due) {
            match due {
                Due::Answer(flight) => {
                    assert!(matches!(flight.call, Call::LookAll | Call::VSwitches), "{:?}", flight.call)
                }
                Due::Straggler(call) => self.strand(call),
                _ => {}
            }
        }
        self.boot(Some(will));
    }

    /// What becomes of a call whose caller died: done, not done, or done later.
    fn strand(&mut self, call: Call) {
        let late = matches!(call, Call::Create { .. } | Call::Assign { .. } | Call::AssignPrefixes { .. })
            || gives_back(&call);
        match self.rng.u8(..3) {
            0 => drop(self.cloud.act(self.now, &call)),
            1 if late => self.later(Due::Straggler(call), 3000),
            _ => {}
        }
    }

    fn boot(&mut self, will: Option<Will>) {
        self.now += Duration::from_millis(self.rng.u64(..5000));
        self.cloud.pass(self.now);
        self.pool = Pool::new(self.rng.u64(..));
        assert!(self.pool.ready().is_err(), "a pool that has not booted is ready");
        let mut boot = self.ledger.boot(self.settings.clone(), &self.cloud);
        // What the cloud has done unseen stays so for who goes by a will.
        self.unseen &= will.is_some();
        if let Some(will) = will.filter(|will| self.now < will.until && boot.intents.is_empty()) {
            (boot.enis, boot.willed) = (will.enis, true);
        }
        self.seen.clone_from(&boot.enis);
        self.step(Event::Boot(Box::new(boot)));
    }

    fn later(&mut self, due: Due, millis: u64) {
        self.count += 1;
        self.due.insert((self.now + Duration::from_millis(self.rng.u64(..millis)), self.count), due);
    }

    // -- one step, and all that must hold after it --

    fn step(&mut self, event: Event) {
        self.events += 1;
        if self.verbose {
            eprintln!("{:?} {event:?}", self.now);
        }
        let effects = self.pool.step(self.now, event);
        let dies_at = (self.rng.u32(..2000) == 0).then(|| self.rng.usize(..=effects.len()));
        self.wake = None;
        for (i, effect) in effects.iter().enumerate() {
            if dies_at == Some(i) {
                return self.crash();
            }
            if self.verbose {
                eprintln!("    {effect:?}");
            }
            self.carry_out(effect);
        }
        self.check(&effects);
        if self.events.is_multiple_of(64) {
            self.pool.show();
            let _ = self.pool.ready();
        }
    }

    fn carry_out(&mut self, effect: &Effect) {
        let again = |h: &Held| self.ledger.leases.get(&h.sandbox.attachment).is_some_and(|old| old.ip == h.ip);
        if let Effect::Record(held) = effect
            && !again(held)
        {
            self.check_whole(held);
            self.check_alone(held);
            self.check_lease(held);
            self.check_reserved(held);
        }
        self.ledger.write(self.now, effect);
        match effect {
            Effect::Call { id, call } => self.call(*id, call),
            Effect::Reply { ticket, result } => {
                let wish = self.reply(*ticket, result.as_ref().ok());
                match result.as_ref().is_err_and(|r| r.why == Refusal::NodeFull) {
                    true if wish => self.check_none_free(),
                    true => self.check_full(),
                    false => {}
                }
            }
            Effect::Prepare { eni, .. } => {
                assert!(self.cloud.ever.contains(eni), "{eni} was never there");
                self.later(Due::Prepared(eni.clone()), 300);
            }
            Effect::Dismantle { eni, .. } => {
                assert!(
                    !self.ledger.leases.values().any(|h| h.eni == *eni && !h.whole),
                    "{eni} is dismantled under its pods"
                );
                self.links.remove(eni);
            }
            Effect::Wake { at } => {
                assert!(*at > self.now, "a wake-up in the past");
                self.wake = Some(*at);
                let wait = *at - self.now;
                self.count += 1;
                let late = Duration::from_millis(self.rng.u64(..20));
                self.due.insert((self.now + wait + late, self.count), Due::Tick);
            }
            _ => {}
        }
    }

    fn call(&mut self, id: u64, call: &Call) {
        let flights = self.due.values().filter_map(|d| if let Due::Answer(f) = d { Some(f) } else { None });
        let flights: Vec<&Call> = flights.map(|f| &f.call).collect();
        for eni in enis_of(call) {
            assert!(flights.iter().all(|f| !enis_of(f).contains(eni)), "two calls on {eni} at once");
            assert!(self.cloud.ever.contains(eni), "{eni} was never there, or is not ours");
        }
        let ops = flights.iter().filter(|c| !matches!(c, Call::LookAll | Call::VSwitches)).count();
        assert!(ops < 3 || matches!(call, Call::LookAll | Call::VSwitches), "four ENI operations at once");
        self.check_call(call);
        let picture = (*call == Call::LookAll && self.rng.bool()).then(|| self.cloud.act(self.now, call).unwrap());
        self.later(Due::Answer(Flight { id, call: call.clone(), picture }), 3000);
    }

    fn check_call(&mut self, call: &Call) {
        match call {
            Call::Create { token, .. } => {
                assert!(self.ledger.intents.contains_key(token), "a creation that is not written down");
                self.check_places(token);
            }
            Call::Assign { eni, family, count, token } => {
                assert!(self.ledger.intents.contains_key(token), "an assignment that is not written down");
                let there = self.cloud.enis.get(eni).map_or(0, |e| count_of(e, *family)) as u32;
                let first = self.ledger.intents[token].call == *call && !self.cloud.knows(token);
                let most = self.cloud.limits.per_adapter(*family);
                assert!(self.foul || !first || there + count <= most, "{eni} overflows");
            }
            Call::AssignPrefixes { eni, count, token } => {
                assert!(self.ledger.intents.contains_key(token), "an assignment that is not written down");
                let there = self.cloud.enis.get(eni).map_or(0, |e| places(e, Family::V4));
                let first = self.ledger.intents[token].call == *call && !self.cloud.knows(token);
                assert!(self.foul || !first || there + count <= self.cloud.limits.v4_per_adapter, "{eni} overflows");
            }
            Call::UnassignPrefixes { prefixes, .. } => {
                for ip in prefixes.iter().flat_map(of_prefix) {
                    assert!(!self.ledger.holds(ip), "{ip} is unassigned with its prefix while it is leased or rests");
                }
            }
            Call::Unassign { addresses, .. } => {
                for ip in addresses {
                    assert!(!self.ledger.holds(*ip), "{ip} is unassigned while it is leased or rests");
                }
            }
            Call::Detach { eni } | Call::Delete { eni } => {
                assert!(!self.ledger.touches(eni), "{eni} is given back while it is needed");
                assert!(!self.links.contains(eni), "{eni} leaves before it is out of the kernel");
            }
            _ => {}
        }
    }

    /// A new ENI has a place; ENIs made under other settings, or by a call that came late, do not count.
    fn check_places(&mut self, token: &str) {
        let known = self.cloud.knows(token) || !self.said.insert(token.to_owned());
        let there = self.cloud.enis.values().filter(|e| is_ours(e)).count();
        assert!(known || self.unseen || !self.steady || there < self.places(), "an ENI too many");
    }

    /// A new lease has an address of each family of the stack and no other.
    fn check_whole(&self, held: &Held) {
        let families: Vec<Family> = held.ip.iter().map(|ip| Family::of(&ip)).collect();
        assert_eq!(families, self.settings.stack.families(), "{} is leased, no pair", held.ip);
    }

    /// A whole ENI is nobody else's: nothing of it is leased or rests, and nothing will be.
    fn check_alone(&self, held: &Held) {
        assert!(held.whole || !self.settings.whole, "{} is shared where nothing is", held.eni);
        let lent = self.ledger.leases.values().any(|h| h.eni == held.eni && h.whole);
        assert!(!lent, "{} is lent and {} is leased", held.eni, held.ip);
        // What somebody took off the ENI in the cloud while it rested is not the ENI's any more.
        let eni = self.cloud.enis.get(&held.eni);
        let has = |pair: &IpPair| pair.iter().all(|ip| eni.is_some_and(|eni| eni.addresses().any(|a| a == ip)));
        let rests = |(eni, pair): &(String, IpPair)| *eni == held.eni && *pair != held.ip && has(pair);
        let used = self.ledger.leases.values().any(|h| h.eni == held.eni) || self.ledger.cooling.keys().any(rests);
        assert!(!held.whole || !used, "{} is lent and in use", held.eni);
    }

    /// A pod has the addresses that were kept for it, if nothing has happened to them.
    fn check_reserved(&self, held: &Held) {
        let there = |eni: &String, pair: &IpPair| {
            let has = |e: &Eni| e.state == EniState::InUse && pair.iter().all(|ip| e.addresses().any(|a| a == ip));
            self.cloud.enis.get(eni).is_some_and(has) && self.links.contains(eni)
        };
        let whole =
            |pair: &IpPair| pair.iter().map(|ip| Family::of(&ip)).eq(self.settings.stack.families().iter().copied());
        let free =
            |pair: &IpPair| !self.ledger.leases.values().any(|h| h.ip.iter().any(|ip| pair.iter().any(|p| p == ip)));
        let kept = self.ledger.cooling.keys().filter(|(_, pair)| self.ledger.reserved.get(pair) == Some(&held.pod));
        let kept: Vec<&IpPair> =
            kept.filter(|(eni, pair)| there(eni, pair) && whole(pair) && free(pair)).map(|(_, p)| p).collect();
        // Who has an ENI to itself has no use for an address that others surround by now.
        let kept: Vec<&IpPair> = kept.into_iter().filter(|pair| !held.whole || self.stands_alone(pair)).collect();
        let fine = kept.is_empty() || kept.contains(&&held.ip) || self.foul || self.unseen || !self.steady;
        assert!(fine, "{} gets {} though {kept:?} is kept for it", held.pod, held.ip);
    }

    /// What is kept is an ENI's own address, and nobody uses another one there.
    fn stands_alone(&self, pair: &IpPair) -> bool {
        let mut enis = self.cloud.enis.values();
        let Some(eni) = enis.find(|e| pair.iter().all(|ip| e.addresses().any(|a| a == ip))) else { return false };
        let others = |other: &IpPair| other != pair && other.iter().any(|ip| eni.addresses().any(|a| a == ip));
        let leased = self.ledger.leases.values().any(|h| h.eni == eni.id || others(&h.ip));
        let own = pair.v4.is_none_or(|v4| v4 == eni.primary);
        own && !leased && !self.ledger.cooling.keys().any(|(_, other)| others(other))
    }

    fn check_lease(&self, held: &Held) {
        assert!(self.links.contains(&held.eni) || self.foul, "{} has no link and {} is leased", held.eni, held.ip);
        for ip in held.ip.iter() {
            let there = self.cloud.enis.get(&held.eni).is_some_and(|e| e.addresses().any(|a| a == ip));
            assert!(there || self.foul, "{ip} is leased and the cloud does not have it on {}", held.eni);
        }
    }

    /// Whether it was a wish for a whole ENI that was answered.
    fn reply(&mut self, ticket: u64, held: Option<&Held>) -> bool {
        let i = self.asked.iter().position(|a| a.ticket == ticket).expect("an answer that nobody waits for");
        let asked = self.asked.swap_remove(i);
        if let Some(held) = held {
            assert_eq!(self.ledger.leases.get(&asked.attachment), Some(held), "the lease was not recorded");
        }
        asked.whole && !self.settings.whole
    }

    /// Nobody is told that no ENI is free while one is, or has a place, for which nobody else waits.
    fn check_none_free(&self) {
        let ours: Vec<&Eni> = self.cloud.enis.values().filter(|e| is_ours(e)).collect();
        let free = ours.iter().filter(|e| !self.ledger.touches(&e.id)).count();
        let new = self.places().saturating_sub(ours.len());
        let fine = ours.len() > self.places() || free + new <= self.asked.len() || self.foul || self.unseen;
        assert!(fine || self.per_eni() == 0, "{free} ENIs are free and {new} can be had for {}", self.asked.len());
    }

    /// Nobody is told that the node is full while there is an address for which nobody else waits.
    fn check_full(&self) {
        let lent = |e: &Eni| {
            self.ledger.leases.values().any(|h| h.eni == e.id && h.whole)
                || self.settings.whole && self.ledger.touches(&e.id)
        };
        let all: Vec<&Eni> = self.cloud.enis.values().filter(|e| is_ours(e)).collect();
        let ours: Vec<&&Eni> = all.iter().filter(|e| !lent(e)).collect();
        let idle = |e: &Eni, f| e.addresses().filter(|ip| Family::of(ip) == f && !self.ledger.holds(*ip)).count();
        let room = |e: &Eni, f| (self.cloud.limits.per_adapter(f) as usize).saturating_sub(count_of(e, f));
        let show = self.pool.show();
        let shown = show["enis"].as_array().unwrap();
        // One that leaves has nothing to give; in its place there can be a new one, which a node of two families gets without prefixes.
        let is_going = |s: &&Value| s["state"].as_str().is_some_and(|state| state.starts_with("giving back"));
        let going: BTreeSet<&str> = shown.iter().filter(is_going).filter_map(|s| s["id"].as_str()).collect();
        let leaves = |e: &Eni| e.state == EniState::Detaching || going.contains(e.id.as_str());
        let most = |e: &Eni| if leaves(e) { self.per_eni() } else { usize::MAX };
        let spare: usize = ours.iter().map(|e| self.least(|f| idle(e, f) + room(e, f)).min(most(e))).sum();
        let suspect: usize = shown.iter().map(|e| e["not_used"].as_array().unwrap().len()).sum();
        let spare = spare.saturating_sub(suspect);
        let new = self.places().saturating_sub(all.len()) * self.per_eni();
        assert!(
            all.len() > self.places() || spare + new <= self.asked.len() || self.foul || self.unseen,
            "the node is not full: {spare} and {new} to spare for {}",
            self.asked.len()
        );
    }

    fn per_eni(&self) -> usize {
        self.least(|family| self.cloud.limits.per_adapter(family) as usize)
    }

    fn least(&self, number: impl Fn(Family) -> usize) -> usize {
        self.settings.stack.families().iter().map(|family| number(*family)).min().unwrap()
    }

    fn places(&self) -> usize {
        (self.settings.max_enis as usize).min((self.cloud.limits.adapters as usize - 1).saturating_sub(self.foreign()))
    }

    /// ENIs that take places and are not ours.
    fn foreign(&self) -> usize {
        let attached = self.cloud.enis.values().filter(|e| e.instance.is_some() && e.kind != EniKind::Primary);
        attached.filter(|e| !is_ours(e)).count()
    }

    fn check(&mut self, effects: &[Effect]) {
        let wakes = effects.iter().filter(|e| matches!(e, Effect::Wake { .. })).count();
        assert!(wakes <= 1);
        for asked in &self.asked {
            assert!(asked.deadline > self.now, "ticket {} is overdue", asked.ticket);
            assert!(
                self.wake.is_some_and(|w| w <= asked.deadline),
                "ticket {} would not be answered in time",
                asked.ticket
            );
        }
    }

    // -- the end: everything is given back and comes to rest --

    fn quiesce(&mut self) {
        self.cloud.ills = Ills::default();
        while !self.ledger.leases.is_empty() || !self.asked.is_empty() {
            self.release();
            self.go_on();
        }
        let end = self.now + Duration::from_secs(3600);
        let before = self.events;
        while self.now < end {
            self.go_on();
        }
        assert!(self.events - before < 800, "{} events in an idle hour", self.events - before);
        // What the last attempt of the hour has left over goes after a moment.
        let soon = |run: &Run| run.wake.is_some_and(|wake| wake <= run.now + Duration::from_secs(10));
        while self.due.values().any(|d| !matches!(d, Due::Tick)) || soon(self) {
            self.go_on();
        }
    }

    fn check_rest(&self) {
        assert!(self.ledger.leases.is_empty() && self.ledger.cooling.is_empty(), "{:?}", self.ledger);
        assert!(self.ledger.intents.is_empty(), "intents stay behind: {:?}", self.ledger.intents);
        let show = self.pool.show();
        let mut ours = BTreeSet::new();
        for eni in show["enis"].as_array().unwrap() {
            assert_eq!(eni["state"], "serving", "{show:#}");
            for address in eni["addresses"].as_array().unwrap() {
                assert_eq!(address["state"], "idle", "{show:#}");
                ours.insert((eni["id"].as_str().unwrap().to_owned(), address["ip"].as_str().unwrap().to_owned()));
            }
        }
        self.cloud.enis.values().filter(|e| is_ours(e)).for_each(|eni| self.check_dress(eni));
        let theirs = self.cloud.enis.values().filter(|e| is_ours(e));
        let theirs: BTreeSet<(String, String)> =
            theirs.flat_map(|e| e.addresses().map(|ip| (e.id.clone(), ip.to_string()))).collect();
        assert_eq!(ours, theirs, "cloud and pool differ");
        for eni in self.cloud.enis.values().filter(|e| is_ours(e)) {
            self.check_pairs(eni);
        }
        self.check_size(show["idle"].as_u64().unwrap() as u32, show["enis"].as_array().unwrap().len() as u32);
    }

    /// No address is left over without its counterpart, but for primary ones and those of a prefix, which cannot be unassigned alone.
    fn check_pairs(&self, eni: &Eni) {
        let (v4, v6) = (eni.v4.len(), eni.v6.len());
        let all = v4 + eni.prefixes.iter().flat_map(of_prefix).count();
        let fine = match self.settings.stack {
            Stack::V4 => v6 == 0,
            Stack::Dual => v6 <= all && (v4 == 1 || v6 == all),
            Stack::V6 => v4 == 1,
        };
        assert!(fine, "{v4} IPv4 and {v6} IPv6 addresses stay: {eni:?}");
    }

    /// The groups and tags of the settings, no tag of earlier ones, and all of others.
    fn check_dress(&self, eni: &Eni) {
        let groups: BTreeSet<&String> = eni.security_groups.iter().collect();
        let mut wanted: BTreeSet<&String> = self.settings.security_groups.iter().collect();
        let own = "sg-instance".to_owned();
        let primary = &self.cloud.enis["eni-primary"].security_groups;
        if wanted.is_empty() {
            wanted = if primary.is_empty() { [&own].into() } else { primary.iter().collect() };
        }
        assert_eq!(groups, wanted, "{} is in other groups", eni.id);
        let ours = |key: &&String| !key.starts_with("others-") && !key.contains('/') && *key != ours::ENI_TAG.0;
        let tags: Vec<(&String, &String)> = eni.tags.iter().filter(|(key, _)| ours(key)).collect();
        assert_eq!(tags, self.settings.tags.iter().collect::<Vec<_>>(), "{} bears other tags", eni.id);
    }

    fn check_size(&self, idle: u32, enis: u32) {
        let s = &self.settings;
        let most = self.places() as u32;
        assert!(enis <= most, "{enis} ENIs stay");
        // What is left of a prefix stays with it.
        let whole = if self.cloud.enis.values().any(|e| !e.prefixes.is_empty()) { 15 } else { 0 };
        let most_idle = s.max_idle.max(s.min_idle).max(enis).max(s.warm_up) + whole;
        assert!(idle <= most_idle, "{idle} idle addresses stay");
        let scarce = |family| match family {
            Family::V4 => self.cloud.free.values().any(|free| free.len() < 16),
            Family::V6 => self.cloud.free6.values().any(|free| free.len() < 16),
        };
        let empty = scarce(Family::V4) || s.stack.has(Family::V6) && scarce(Family::V6);
        let full = self.per_eni() == 0 || enis == most && idle >= most * self.per_eni() as u32;
        assert!(idle >= s.min_idle || full || empty, "only {idle} idle addresses stay: {:#}", self.pool.show());
    }
}

fn random_settings(rng: &mut Rng, old: Settings) -> Settings {
    let mut new = Settings { min_idle: rng.u32(..6), max_idle: rng.u32(..10), ..old };
    new.limits.adapters = rng.u32(2..6);
    new.limits.v4_per_adapter = rng.u32(1..16);
    new.limits.v6_per_adapter = [new.limits.v4_per_adapter, rng.u32(..16)][rng.usize(..2)];
    new.max_enis = rng.u32(1..6).min(new.limits.adapters - 1);
    new.min_enis = rng.u32(..=new.max_enis) * u32::from(rng.u8(..4) == 0);
    new.cooldown = Duration::from_secs([0, 5, 30, 130][rng.usize(..4)]);
    new.reservation = Duration::from_secs([0, 60, 300][rng.usize(..3)]);
    new.eni_idle = Duration::from_secs([1, 60, 300][rng.usize(..3)]);
    new.vswitches =
        [vec!["vsw-1"], vec!["vsw-2"], vec!["vsw-1", "vsw-2"]][rng.usize(..3)].iter().map(|v| v.to_string()).collect();
    new.vswitch_choice = [VSwitchChoice::Random, VSwitchChoice::Ordered, VSwitchChoice::Most][rng.usize(..3)];
    let groups = [vec![], vec!["sg-1"], vec!["sg-2", "sg-1"]];
    new.security_groups = groups[rng.usize(..3)].iter().map(|g| g.to_string()).collect();
    let tags = [vec![], vec![("team", "net")], vec![("team", "web"), ("env", "test")]];
    new.tags = tags[rng.usize(..3)].iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    let reclaim = Reclaim { after: Duration::from_secs(60), interval: Duration::from_secs(30), batch: 2, jitter: 0.1 };
    new.reclaim = (rng.u8(..3) == 0).then_some(reclaim);
    new.prefixes = [None, None, Some(rng.u32(1..4)), Some(u32::MAX)][rng.usize(..4)];
    new.warm_up = [0, 0, rng.u32(..20)][rng.usize(..3)];
    new.eni_choice = [EniChoice::MostIps, EniChoice::LeastIps][rng.usize(..2)];
    new
}

fn random_stack(rng: &mut Rng) -> Stack {
    [Stack::V4, Stack::Dual, Stack::V6][rng.usize(..3)]
}

fn count_of(eni: &Eni, family: Family) -> usize {
    places(eni, family) as usize
}

fn gives_back(call: &Call) -> bool {
    matches!(call, Call::Unassign { .. } | Call::UnassignPrefixes { .. })
}

fn is_ours(eni: &Eni) -> bool {
    made_here(eni) && !eni.tags.contains_key("excluded")
}

fn made_here(eni: &Eni) -> bool {
    eni.kind == EniKind::Secondary && eni.tags.get(ours::NODE_TAG).is_some_and(|node| node == HERE)
}
