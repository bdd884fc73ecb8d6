//! What the pool promises, one sentence each, against the model cloud that answers every call after a second.

mod outage;
mod stacks;
mod sticky;
mod will;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::calls::enis_of;
use super::world::{Cloud, HERE, Ledger, attachment, eni, fault, pod, sandbox, settings, vswitch};
use super::*;
use crate::eni::{EniKind, EniState, FaultKind};
use crate::ip::IpPair;
use crate::ours;

const START: Now = secs(1000);

const fn secs(n: u64) -> Now {
    Duration::from_secs(n)
}

fn v4(ip: &str) -> Ipv4Addr {
    ip.parse().unwrap()
}

/// A pool in its world; what happened is kept for the test to read.
struct Rig {
    pool: Pool,
    cloud: Cloud,
    ledger: Ledger,
    now: Now,
    /// Answers on their way.
    due: Vec<(Now, Event, Option<Call>)>,
    wake: Option<Now>,
    /// What the cloud answers to calls of a kind instead of doing them.
    says: BTreeMap<&'static str, FaultKind>,
    calls: Vec<(Now, Call)>,
    replies: BTreeMap<Ticket, (Now, Result<Held, Refused>)>,
    notices: Vec<Notice>,
    effects: Vec<Effect>,
    ticks: u32,
}

impl Rig {
    fn new(settings: Settings) -> Rig {
        Rig::with(settings, |_, _| {})
    }

    /// A rig whose cloud and ledger hold something at boot.
    fn with(settings: Settings, prepare: impl FnOnce(&mut Cloud, &mut Ledger)) -> Rig {
        let mut rig = Rig {
            pool: Pool::new(7),
            cloud: Cloud::new(7, settings.limits),
            ledger: Ledger::default(),
            now: START,
            due: Vec::new(),
            wake: None,
            says: BTreeMap::new(),
            calls: Vec::new(),
            replies: BTreeMap::new(),
            notices: Vec::new(),
            effects: Vec::new(),
            ticks: 0,
        };
        prepare(&mut rig.cloud, &mut rig.ledger);
        let boot = rig.ledger.boot(settings, &rig.cloud);
        rig.hear(Event::Boot(Box::new(boot)));
        rig
    }

    /// One ENI `eni-a` with these addresses, attached and set up.
    fn with_eni(settings: Settings, ips: &[&str]) -> Rig {
        let mut rig = Rig::with(settings, |cloud, _| put(cloud, eni("eni-a", EniState::InUse, "vsw-1", ips)));
        rig.run(secs(1));
        rig
    }

    fn hear(&mut self, event: Event) -> Vec<Effect> {
        self.wake = None;
        let effects = self.pool.step(self.now, event);
        for effect in &effects {
            self.ledger.write(self.now, effect);
            self.carry_out(effect);
        }
        self.effects.extend(effects.clone());
        effects
    }

    fn carry_out(&mut self, effect: &Effect) {
        match effect {
            Effect::Call { id, call } => {
                self.calls.push((self.now, call.clone()));
                let event = Event::Done { call: *id, result: Err(fault(FaultKind::Unknown)) };
                self.due.push((self.now + secs(1), event, Some(call.clone())));
            }
            Effect::Prepare { eni, vswitch, .. } => {
                let v6 = self.cloud.cidrs[vswitch].cidr.v6;
                let event = Event::Prepared { eni: eni.clone(), result: Ok(Link { ifindex: 5, slot: 1, v6 }) };
                self.due.push((self.now + Duration::from_millis(100), event, None));
            }
            Effect::Reply { ticket, result } => {
                let before = self.replies.insert(*ticket, (self.now, result.clone()));
                assert!(before.is_none(), "ticket {ticket} is answered twice");
            }
            Effect::Tell(notice) => self.notices.push(notice.clone()),
            Effect::Wake { at } => self.wake = Some(*at),
            _ => {}
        }
    }

    /// Lets so much time pass.
    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.next().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.cloud.pass(self.now);
            self.happen();
        }
        self.now = end;
        self.cloud.pass(end);
    }

    fn next(&self) -> Option<Now> {
        self.due.iter().map(|(at, ..)| *at).chain(self.wake).min()
    }

    fn happen(&mut self) {
        let Some(i) = self.due.iter().position(|(at, ..)| *at <= self.now) else {
            self.ticks += 1;
            self.hear(Event::Tick);
            return;
        };
        let (_, event, call) = self.due.remove(i);
        let event = match (event, call) {
            (Event::Done { call: id, .. }, Some(call)) => Event::Done { call: id, result: self.answer(&call) },
            (event, _) => event,
        };
        self.hear(event);
    }

    fn answer(&mut self, call: &Call) -> Result<Outcome, Fault> {
        match self.says.get(kind(call)).or(self.says.get("any")) {
            Some(kind) => Err(fault(*kind)),
            None => self.cloud.act(self.now, call),
        }
    }

    /// An ADD for a container of this number, which may wait so long.
    fn add(&mut self, n: u64, wait: Duration) {
        let (container, deadline) = (format!("c{n}"), self.now + wait);
        self.hear(Event::Allocate { ticket: n, pod: pod("web"), sandbox: sandbox(&container), whole: false, deadline });
    }

    fn del(&mut self, n: u64) {
        self.hear(Event::Release { attachment: attachment(&format!("c{n}")) });
    }

    fn ip(&self, ticket: Ticket) -> String {
        self.replies[&ticket].1.as_ref().unwrap().ip.to_string()
    }

    fn refused(&self, ticket: Ticket) -> &Refused {
        self.replies[&ticket].1.as_ref().unwrap_err()
    }

    fn count(&self, of: &str) -> usize {
        self.calls.iter().filter(|(_, call)| kind(call) == of).count()
    }

    fn kinds(&self) -> Vec<&'static str> {
        self.calls.iter().map(|(_, call)| kind(call)).collect()
    }

    fn told(&self, reason: &str) -> usize {
        self.notices.iter().filter(|n| n.reason == reason).count()
    }
}

fn kind(call: &Call) -> &'static str {
    match call {
        Call::Create { .. } => "create",
        Call::Attach { .. } => "attach",
        Call::Detach { .. } => "detach",
        Call::Delete { .. } => "delete",
        Call::Assign { family: Family::V4, .. } => "assign",
        Call::Assign { family: Family::V6, .. } => "assign v6",
        Call::Unassign { addresses, .. } if addresses[0].is_ipv6() => "unassign v6",
        Call::Unassign { .. } => "unassign",
        Call::Look { .. } => "look",
        Call::LookAll => "look all",
        Call::VSwitches => "vswitches",
        Call::Regroup { .. } => "regroup",
        Call::Tag { .. } => "tag",
        Call::Untag { .. } => "untag",
        Call::AssignPrefixes { .. } => "assign prefixes",
        Call::UnassignPrefixes { .. } => "unassign prefixes",
    }
}

/// Puts an ENI into the cloud; its addresses are no longer free.
fn put(cloud: &mut Cloud, eni: Eni) {
    cloud.free.get_mut(&eni.vswitch).unwrap().retain(|ip| !eni.v4.contains(ip));
    cloud.ever.insert(eni.id.clone());
    cloud.enis.insert(eni.id.clone(), eni);
}

fn held(container: &str, eni: &str, ip: &str) -> Held {
    Held { pod: pod("web"), sandbox: sandbox(container), eni: eni.into(), ip: IpPair::v4(v4(ip)), whole: false }
}

fn lease(ledger: &mut Ledger, container: &str, eni: &str, ip: &str) {
    ledger.leases.insert(attachment(container), held(container, eni, ip));
}

// -- leases --

#[test]
fn a_lease_is_recorded_before_anyone_hears_of_it() {
    let mut rig = Rig::with_eni(settings(), &["10.0.1.10"]);
    let deadline = rig.now + secs(10);
    let effects =
        rig.hear(Event::Allocate { ticket: 1, pod: pod("web"), sandbox: sandbox("c1"), whole: false, deadline });
    let lease = held("c1", "eni-a", "10.0.1.10");
    assert_eq!(effects[0], Effect::Record(lease.clone()));
    assert_eq!(effects[1], Effect::Reply { ticket: 1, result: Ok(lease) });
}

#[test]
fn before_the_boot_nothing_is_served() {
    let mut pool = Pool::new(1);
    let allocate =
        Event::Allocate { ticket: 1, pod: pod("web"), sandbox: sandbox("c1"), whole: false, deadline: secs(99) };
    let effects = pool.step(secs(1), allocate);
    assert!(matches!(&effects[..], [Effect::Reply { ticket: 1, result: Err(r) }] if r.why == Refusal::Starting));
    assert_eq!(pool.ready().unwrap_err().why, Refusal::Starting);
}

#[test]
fn the_same_attachment_gets_the_same_lease() {
    let mut rig = Rig::with_eni(settings(), &["10.0.1.10", "10.0.1.11"]);
    rig.add(1, secs(10));
    let deadline = rig.now + secs(10);
    rig.hear(Event::Allocate { ticket: 2, pod: pod("web"), sandbox: sandbox("c1"), whole: false, deadline });
    assert_eq!((rig.ip(1), rig.ip(2)), ("10.0.1.10".into(), "10.0.1.10".into()));
}

#[test]
fn another_attachment_of_the_same_pod_gets_another_address() {
    let mut rig = Rig::with_eni(settings(), &["10.0.1.10", "10.0.1.11"]);
    rig.add(1, secs(10));
    rig.add(2, secs(10));
    assert_eq!((rig.ip(1), rig.ip(2)), ("10.0.1.10".into(), "10.0.1.11".into()));
}

#[test]
fn a_release_of_an_unknown_attachment_does_nothing() {
    let mut rig = Rig::with_eni(settings(), &["10.0.1.10"]);
    let effects = rig.hear(Event::Release { attachment: attachment("nobody") });
    assert!(matches!(&effects[..], [Effect::Wake { .. }]), "{effects:?}");
}

#[test]
fn an_address_in_cooling_is_not_leased_again() {
    let small = Settings { max_enis: 1, limits: Limits { v4_per_adapter: 1, ..settings().limits }, ..settings() };
    let mut rig = Rig::with_eni(small, &["10.0.1.10"]);
    rig.add(1, secs(10));
    rig.del(1);
    rig.run(secs(100));
    rig.add(2, secs(20));
    assert_eq!(rig.refused(2).why, Refusal::NodeFull);
    rig.add(3, secs(60));
    rig.run(secs(29));
    assert!(!rig.replies.contains_key(&3));
    rig.run(secs(2));
    assert_eq!(rig.ip(3), "10.0.1.10");
}

#[test]
fn the_address_that_has_been_free_longest_goes_first() {
    let mut rig = Rig::with_eni(Settings { max_idle: 9, ..settings() }, &["10.0.1.10", "10.0.1.11", "10.0.1.12"]);
    for n in 1..=3 {
        rig.add(n, secs(10));
    }
    for n in [2, 3, 1] {
        rig.del(n);
        rig.run(secs(10));
    }
    rig.run(secs(200));
    for n in 4..=6 {
        rig.add(n, secs(10));
    }
    assert_eq!([rig.ip(4), rig.ip(5), rig.ip(6)], ["10.0.1.11", "10.0.1.12", "10.0.1.10"]);
}

#[test]
fn an_add_whose_attachment_is_deleted_is_answered() {
    let mut rig = Rig::new(settings());
    rig.add(1, secs(60));
    rig.del(1);
    assert_eq!(rig.refused(1).why, Refusal::BadRequest);
    rig.run(secs(60));
    assert!(rig.ledger.leases.is_empty());
}

#[test]
fn a_forgotten_ticket_is_not_answered() {
    let mut rig = Rig::new(settings());
    rig.add(1, secs(60));
    rig.hear(Event::Forget { ticket: 1 });
    rig.run(secs(100));
    assert!(rig.replies.is_empty());
}

#[test]
fn the_fullest_eni_is_filled_first_or_the_emptiest() {
    for (choice, eni_of_second) in [(EniChoice::MostIps, "eni-a"), (EniChoice::LeastIps, "eni-b")] {
        let mut rig = Rig::with(Settings { eni_choice: choice, ..settings() }, |cloud, ledger| {
            put(cloud, eni("eni-a", EniState::InUse, "vsw-1", &["10.0.1.10", "10.0.1.11"]));
            put(cloud, eni("eni-b", EniState::InUse, "vsw-2", &["10.0.2.10", "10.0.2.11"]));
            lease(ledger, "c1", "eni-a", "10.0.1.10");
        });
        rig.run(secs(1));
        rig.add(2, secs(10));
        assert_eq!(rig.replies[&2].1.as_ref().unwrap().eni, eni_of_second);
    }
}

// -- growing --

#[test]
fn a_hundred_waiting_pods_cost_a_call_for_each_eni() {
    let limits = Limits { adapters: 8, v4_per_adapter: 30, v6_per_adapter: 0 };
    let big = Settings { limits, max_enis: 7, min_idle: 0, max_idle: 10, ..settings() };
    let ids = ["eni-a", "eni-b", "eni-c", "eni-d"];
    let mut rig = Rig::with(big, |cloud, _| {
        for (i, id) in ids.iter().enumerate() {
            put(cloud, eni(id, EniState::InUse, "vsw-1", &[&format!("10.0.1.{}", 240 + i)]));
        }
    });
    rig.run(secs(1));
    for n in 1..=100 {
        rig.add(n, secs(60));
    }
    rig.run(secs(30));
    assert!(rig.replies.values().all(|(_, result)| result.is_ok()));
    assert_eq!(rig.replies.len(), 100);
    assert!(rig.cloud.assigns <= 5, "{} calls", rig.cloud.assigns);
    assert_eq!(rig.count("create"), 0);
}

#[test]
fn a_hundred_pods_on_an_empty_pool_cost_at_most_twelve_calls() {
    let limits = Limits { adapters: 8, v4_per_adapter: 30, v6_per_adapter: 0 };
    let mut rig = Rig::new(Settings { limits, max_enis: 7, min_idle: 0, max_idle: 10, ..settings() });
    rig.run(secs(1));
    let before = rig.calls.len();
    for n in 1..=100 {
        rig.add(n, secs(60));
        rig.run(Duration::from_millis(2));
    }
    rig.run(secs(30));
    assert!(rig.replies.values().all(|(_, result)| result.is_ok()));
    assert_eq!(rig.replies.len(), 100);
    let last = rig.replies.values().map(|(at, _)| *at).max().unwrap();
    let calls: Vec<_> = rig.calls[before..].iter().filter(|(at, _)| *at <= last).map(|(_, call)| kind(call)).collect();
    assert!(calls.len() <= 12, "{calls:?}");
}

#[test]
fn enis_on_their_way_share_a_look() {
    let limits = Limits { adapters: 8, v4_per_adapter: 30, v6_per_adapter: 0 };
    let mut rig = Rig::new(Settings { limits, max_enis: 7, min_idle: 0, max_idle: 10, ..settings() });
    for n in 1..=60 {
        rig.add(n, secs(60));
    }
    rig.run(secs(30));
    assert!(rig.calls.iter().any(|(_, call)| matches!(call, Call::Look { enis } if enis.len() > 1)));
    assert!(rig.replies.values().all(|(_, result)| result.is_ok()));
}

#[test]
fn a_new_eni_goes_through_cloud_and_kernel_before_it_serves() {
    let mut rig = Rig::new(settings());
    rig.add(1, secs(60));
    rig.run(secs(40));
    let steps: Vec<&str> =
        rig.kinds().into_iter().filter(|k| !matches!(*k, "look" | "vswitches" | "look all")).collect();
    assert_eq!(steps, ["create", "attach"]);
    assert!(rig.count("look") >= 1);
    let prepared = rig.effects.iter().position(|e| matches!(e, Effect::Prepare { .. })).unwrap();
    let replied = rig.effects.iter().position(|e| matches!(e, Effect::Reply { result: Ok(_), .. })).unwrap();
    assert!(prepared < replied);
}

#[test]
fn those_who_wait_are_served_by_whatever_comes_first() {
    let mut rig = Rig::with_eni(Settings { cooldown: secs(2), ..settings() }, &["10.0.1.10"]);
    let full = ["10.0.1.10"];
    rig.says.insert("assign", FaultKind::EniFull);
    rig.add(1, secs(60));
    rig.add(2, secs(60));
    rig.run(secs(1));
    rig.del(1);
    rig.run(Duration::from_millis(3100));
    assert_eq!(rig.ip(2), full[0]);
    assert!(rig.replies[&2].0 <= START + secs(5));
}

#[test]
fn the_warm_pool_is_filled_to_the_middle_of_its_bounds() {
    let mut rig = Rig::with_eni(Settings { min_idle: 2, max_idle: 6, ..settings() }, &["10.0.1.10"]);
    rig.run(secs(10));
    assert_eq!(rig.pool.show()["idle"], 4);
    assert_eq!(rig.count("assign"), 1);
    rig.add(1, secs(1));
    rig.add(2, secs(1));
    rig.run(secs(10));
    assert_eq!((rig.count("assign"), rig.pool.show()["idle"].as_u64()), (1, Some(2)));
    rig.add(3, secs(1));
    rig.run(secs(100));
    assert_eq!(rig.pool.show()["idle"], 3, "the first ENI is full at six, and the pool is above its lower bound");
}

#[test]
fn what_cools_down_does_not_count_as_supply() {
    let mut rig = Rig::with_eni(Settings { min_idle: 2, max_idle: 2, ..settings() }, &["10.0.1.10", "10.0.1.11"]);
    rig.add(1, secs(1));
    rig.del(1);
    rig.run(secs(10));
    let show = rig.pool.show();
    assert_eq!((show["idle"].as_u64(), show["cooling"].as_u64()), (Some(2), Some(1)));
}

#[test]
fn calls_on_one_eni_follow_each_other() {
    let mut rig = Rig::with_eni(settings(), &["10.0.1.10"]);
    rig.add(1, secs(60));
    rig.add(2, secs(60));
    rig.run(Duration::from_millis(200));
    rig.add(3, secs(60));
    rig.run(Duration::from_millis(700));
    assert_eq!(rig.count("assign"), 1);
    rig.run(secs(30));
    let times: Vec<Now> = rig.calls.iter().filter(|(_, c)| kind(c) == "assign").map(|(at, _)| *at).collect();
    assert!(times.windows(2).all(|w| w[1] >= w[0] + secs(1)));
    assert!(rig.replies.values().all(|(_, r)| r.is_ok()));
}

#[test]
fn the_least_number_of_enis_is_kept_without_need() {
    let mut rig = Rig::new(Settings { min_enis: 2, eni_idle: secs(5), ..settings() });
    rig.run(secs(400));
    assert_eq!(rig.pool.show()["enis"].as_array().unwrap().len(), 2);
    assert_eq!(rig.count("detach"), 0);
}

#[test]
fn enis_of_others_are_never_touched_and_take_places() {
    let limits = Limits { adapters: 3, ..settings().limits };
    let mut rig = Rig::with(Settings { limits, max_enis: 2, min_idle: 3, ..settings() }, |cloud, _| {
        let mut primary = eni("eni-p", EniState::InUse, "vsw-1", &["10.0.1.100", "10.0.1.101"]);
        primary.kind = EniKind::Primary;
        let mut stranger = eni("eni-s", EniState::InUse, "vsw-1", &["10.0.1.110", "10.0.1.111"]);
        stranger.tags.remove(ours::ENI_TAG.0);
        put(cloud, primary);
        put(cloud, stranger);
    });
    for n in 1..=9 {
        rig.add(n, secs(60));
    }
    rig.run(secs(300));
    assert_eq!(rig.count("create"), 1);
    let foreign = |call: &Call| format!("{call:?}").contains("eni-p") || format!("{call:?}").contains("eni-s");
    assert!(!rig.calls.iter().any(|(_, call)| foreign(call)));
    let full = rig.replies.values().filter(|(_, r)| r.as_ref().is_err_and(|r| r.why == Refusal::NodeFull)).count();
    assert_eq!(full, 3);
}

// -- tokens and intents --

#[test]
fn the_intent_is_written_before_the_call_and_settled_after_it() {
    let mut rig = Rig::with_eni(settings(), &["10.0.1.10"]);
    rig.add(1, secs(60));
    rig.add(2, secs(60));
    rig.run(secs(5));
    let order: Vec<&str> = rig
        .effects
        .iter()
        .filter_map(|e| match e {
            Effect::Intend(_) => Some("intend"),
            Effect::Call { call: Call::Assign { .. }, .. } => Some("call"),
            Effect::Settled { .. } => Some("settled"),
            _ => None,
        })
        .collect();
    assert_eq!(order, ["intend", "call", "settled"]);
}

#[test]
fn a_call_whose_end_is_unknown_is_said_again_with_the_same_token() {
    let mut rig = Rig::new(settings());
    rig.says.insert("create", FaultKind::Unknown);
    rig.add(1, secs(60));
    rig.run(Duration::from_millis(1500));
    rig.says.clear();
    rig.run(secs(30));
    let creates: Vec<&Call> = rig.calls.iter().map(|(_, c)| c).filter(|c| kind(c) == "create").collect();
    assert_eq!(creates.len(), 2);
    assert_eq!(creates[0], creates[1]);
    assert_eq!(rig.cloud.enis.len(), 1);
}

#[test]
fn a_spent_token_is_replaced() {
    let mut rig = Rig::with_eni(settings(), &["10.0.1.10"]);
    rig.says.insert("assign", FaultKind::Token);
    rig.add(1, secs(60));
    rig.add(2, secs(60));
    rig.run(Duration::from_millis(1500));
    rig.says.clear();
    rig.run(secs(30));
    let assigns: Vec<&Call> = rig.calls.iter().map(|(_, c)| c).filter(|c| kind(c) == "assign").collect();
    assert_eq!(assigns.len(), 2);
    assert_ne!(assigns[0], assigns[1]);
    assert!(rig.replies[&2].1.is_ok());
}

#[test]
fn what_an_earlier_life_was_about_to_do_is_done_once() {
    let token = "0123".to_owned();
    let call = Call::Assign { eni: "eni-a".into(), family: Family::V4, count: 2, token: token.clone() };
    for done in [false, true] {
        let mut rig = Rig::with(settings(), |cloud, ledger| {
            put(cloud, eni("eni-a", EniState::InUse, "vsw-1", &["10.0.1.10"]));
            ledger.intents.insert(token.clone(), Intent { token: token.clone(), call: call.clone() });
            if done {
                cloud.act(START, &call).unwrap();
            }
        });
        assert_eq!(rig.calls[0].1, call);
        rig.run(secs(5));
        assert!(rig.ledger.intents.is_empty());
        assert_eq!(rig.cloud.enis["eni-a"].v4.len(), 3);
        assert_eq!(rig.pool.show()["idle"], 3);
    }
}

#[test]
fn what_an_earlier_life_was_about_to_give_back_is_leased_to_nobody() {
    let token = "0123".to_owned();
    let call = Call::Unassign { eni: "eni-a".into(), addresses: vec![IpAddr::V4(v4("10.0.1.11"))] };
    let mut rig = Rig::with(Settings { max_enis: 1, ..settings() }, |cloud, ledger| {
        put(cloud, eni("eni-a", EniState::InUse, "vsw-1", &["10.0.1.10", "10.0.1.11"]));
        ledger.intents.insert(token.clone(), Intent { token: token.clone(), call: call.clone() });
    });
    rig.add(1, secs(30));
    rig.add(2, secs(30));
    // The call of the earlier life comes late.
    rig.cloud.act(rig.now, &call).unwrap();
    rig.run(secs(20));
    assert!(rig.ledger.intents.is_empty());
    assert!(rig.calls.iter().any(|(_, c)| *c == call), "{:?}", rig.calls);
    assert!(rig.ledger.leases.values().all(|h| rig.cloud.enis["eni-a"].v4.contains(&h.ip.v4.unwrap())));
    assert_eq!(rig.ledger.leases.len(), 2);
}

#[test]
fn an_eni_that_an_earlier_life_was_about_to_make_is_made_once() {
    let token = "0123".to_owned();
    let call = Call::Create {
        vswitch: "vsw-1".into(),
        security_groups: vec!["sg-1".into()],
        resource_group: None,
        tags: eni("eni-a", EniState::Available, "vsw-1", &["10.0.1.1"]).tags,
        addresses: 2,
        v6: 0,
        token: token.clone(),
    };
    for done in [false, true] {
        let mut rig = Rig::with(Settings { min_idle: 1, ..settings() }, |cloud, ledger| {
            ledger.intents.insert(token.clone(), Intent { token: token.clone(), call: call.clone() });
            if done {
                cloud.act(START, &call).unwrap();
            }
        });
        assert!(rig.calls.iter().any(|(_, c)| *c == call));
        rig.run(secs(40));
        assert!(rig.ledger.intents.is_empty());
        assert_eq!((rig.cloud.enis.len(), rig.pool.show()["idle"].as_u64()), (1, Some(2)));
    }
}

#[test]
fn after_too_many_doubtful_attempts_we_look_before_we_make_another_eni() {
    let mut rig = Rig::new(Settings { min_enis: 1, ..settings() });
    rig.says.insert("create", FaultKind::Unknown);
    rig.run(secs(1200));
    let first = rig.calls.iter().map(|(_, c)| c).find(|c| kind(c) == "create").unwrap().clone();
    let last = rig.calls.iter().rposition(|(_, c)| *c == first).unwrap();
    let next = rig.calls.iter().position(|(_, c)| kind(c) == "create" && *c != first).unwrap();
    assert_eq!(rig.calls.iter().filter(|(_, c)| *c == first).count(), 8);
    assert!(rig.kinds()[last..next].contains(&"look all"));
}

#[test]
fn an_old_picture_does_not_bring_back_what_we_deleted() {
    let [a, b] = [("eni-a", EniState::Available, "10.0.1.10"), ("eni-b", EniState::InUse, "10.0.1.20")]
        .map(|(id, state, ip)| eni(id, state, "vsw-1", &[ip]));
    let mut rig = Rig::with(settings(), |cloud, _| {
        put(cloud, a.clone());
        put(cloud, b.clone());
    });
    rig.run(Duration::from_millis(500));
    rig.hear(Event::LinkGone { eni: "eni-b".into() });
    assert_eq!(rig.kinds(), ["delete", "look all"]);
    rig.run(Duration::from_millis(600));
    rig.due.clear();
    rig.hear(Event::Done { call: 2, result: Ok(Outcome::SeenAll(vec![a, b])) });
    assert_eq!(rig.pool.show()["enis"].as_array().unwrap().len(), 1);
}

#[test]
fn an_intent_for_an_eni_that_is_gone_is_settled_without_a_call() {
    let call = Call::Assign { eni: "eni-z".into(), family: Family::V4, count: 2, token: "9".into() };
    let rig = Rig::with(settings(), |_, ledger| {
        ledger.intents.insert("9".into(), Intent { token: "9".into(), call });
    });
    assert!(rig.ledger.intents.is_empty() && rig.calls.is_empty());
}

#[test]
fn an_eni_that_was_made_and_not_attached_is_attached_if_wanted_and_else_deleted() {
    for (min_idle, want) in [(1, "attach"), (0, "delete")] {
        let mut rig = Rig::with(Settings { min_idle, ..settings() }, |cloud, _| {
            put(cloud, eni("eni-a", EniState::Available, "vsw-1", &["10.0.1.10"]));
        });
        rig.run(secs(20));
        assert_eq!(rig.kinds()[0], want);
    }
}

#[test]
fn an_unattached_eni_of_another_node_is_left_alone() {
    let mut rig = Rig::with(settings(), |cloud, _| {
        let mut other = eni("eni-a", EniState::Available, "vsw-1", &["10.0.1.10"]);
        other.tags.insert(ours::NODE_TAG.into(), "i-there".into());
        put(cloud, other);
    });
    rig.run(secs(400));
    assert!(rig.kinds().iter().all(|k| matches!(*k, "look all" | "vswitches")));
}

// -- refusals --

#[test]
fn a_forbidden_call_refuses_at_once_with_the_words_of_the_cloud() {
    let mut rig = Rig::new(settings());
    rig.says.insert("create", FaultKind::Forbidden);
    rig.add(1, secs(900));
    rig.run(secs(3));
    assert_eq!(rig.refused(1).why, Refusal::Forbidden);
    assert!(rig.refused(1).reason.contains("the cloud's words"), "{}", rig.refused(1).reason);
    rig.add(2, secs(900));
    assert_eq!(rig.refused(2).why, Refusal::Forbidden);
    assert_eq!((rig.told("AllocIPFailed"), rig.told("AllocResourceFailed")), (2, 1));
    assert_eq!(rig.pool.ready().unwrap_err().why, Refusal::Forbidden);
}

#[test]
fn a_quota_refuses_at_once_and_is_tried_again_later() {
    let mut rig = Rig::new(settings());
    rig.says.insert("create", FaultKind::Quota);
    rig.add(1, secs(20));
    rig.run(secs(3));
    assert_eq!(rig.refused(1).why, Refusal::Quota);
    rig.says.clear();
    rig.add(2, secs(200));
    assert_eq!(rig.refused(2).why, Refusal::Quota);
    rig.run(secs(150));
    rig.add(3, secs(200));
    rig.run(secs(20));
    assert!(rig.replies[&3].1.is_ok());
    assert_eq!(rig.told("AllocIPSucceed"), 1);
}

#[test]
fn an_empty_vswitch_is_set_aside_and_the_next_one_is_asked() {
    let mut rig = Rig::new(settings());
    rig.cloud.free.get_mut("vsw-1").unwrap().clear();
    rig.add(1, secs(60));
    rig.run(secs(30));
    assert_eq!(rig.ip(1).rsplit_once('.').unwrap().0, "10.0.2");
    assert_eq!(rig.count("create"), 2);
}

#[test]
fn one_wrong_vswitch_does_not_stop_the_others() {
    // As the cloud refuses ENIs in it; as it does not know it; as it is in another zone.
    for wrong in ["refused", "absent", "elsewhere"] {
        let mut rig = Rig::with(settings(), |cloud, _| match wrong {
            "refused" => drop(cloud.free6.remove("vsw-1")),
            "absent" => drop(cloud.cidrs.remove("vsw-1")),
            _ => cloud.cidrs.get_mut("vsw-1").unwrap().zone = "z-b".into(),
        });
        for n in 1..=2 {
            rig.add(n, secs(60));
            rig.run(secs(200));
        }
        rig.run(secs(200));
        rig.add(3, secs(60));
        rig.run(secs(60));
        assert_eq!(vswitches_of(&rig, 1..=3), ["vsw-2"; 3], "{wrong}");
        let said: Vec<&str> = rig.notices.iter().map(|n| n.message.as_str()).collect();
        assert!(matches!(&said[..], [said] if said.starts_with("vSwitch vsw-1 ")), "{wrong}: {said:?}");
        assert_eq!(rig.pool.ready(), Ok(()));
    }
}

#[test]
fn what_the_cloud_takes_in_no_vswitch_is_not_their_fault() {
    let mut rig = Rig::new(settings());
    rig.says.insert("create", FaultKind::Invalid);
    rig.add(1, secs(60));
    rig.run(secs(10));
    assert!(rig.refused(1).reason.contains("the cloud's words"));
    assert_eq!(rig.count("create"), 2);
}

#[test]
fn when_every_vswitch_is_empty_an_add_is_refused_at_once() {
    let mut rig = Rig::new(settings());
    rig.cloud.free.values_mut().for_each(Vec::clear);
    rig.add(1, secs(60));
    rig.run(secs(10));
    assert_eq!(rig.refused(1).why, Refusal::VSwitchEmpty);
    assert!(rig.refused(1).reason.contains("vsw-1 vsw-2"), "{}", rig.refused(1).reason);
    rig.run(secs(30));
    rig.cloud.add_vswitch("vsw-1", 1, 50);
    rig.run(secs(100));
    rig.add(2, secs(60));
    rig.run(secs(60));
    assert!(rig.replies[&2].1.is_ok(), "a fresh count ends the set-aside");
}

#[test]
fn releases_go_on_while_no_vswitch_has_an_address() {
    let mut rig = Rig::with_eni(Settings { cooldown: secs(1), max_idle: 0, ..settings() }, &["10.0.1.10", "10.0.1.11"]);
    rig.cloud.free.values_mut().for_each(Vec::clear);
    for n in 1..=3 {
        rig.add(n, secs(30));
    }
    rig.run(secs(40));
    assert_eq!(rig.refused(3).why, Refusal::VSwitchEmpty);
    rig.del(2);
    rig.run(secs(20));
    assert_eq!(rig.count("unassign"), 1);
}

#[test]
fn under_throttling_an_add_waits_and_is_told_so_at_its_deadline() {
    let mut rig = Rig::new(settings());
    rig.says.insert("any", FaultKind::Throttled);
    rig.add(1, secs(30));
    rig.run(secs(29));
    assert!(rig.replies.is_empty());
    rig.run(secs(2));
    assert_eq!(rig.refused(1).why, Refusal::Throttled);
    assert_eq!(rig.replies[&1].0, START + secs(30));
    assert!(rig.count("create") < 10, "{} calls", rig.count("create"));
}

#[test]
fn in_an_outage_calls_become_rare_and_the_first_answer_ends_it() {
    let mut rig = Rig::new(Settings { min_idle: 3, ..settings() });
    rig.says.insert("any", FaultKind::Unknown);
    rig.add(1, secs(30));
    rig.run(secs(600));
    assert_eq!(rig.refused(1).why, Refusal::CloudDown);
    assert!(rig.calls.len() < 40, "{} calls in ten minutes", rig.calls.len());
    rig.says.clear();
    rig.run(secs(200));
    assert_eq!(rig.pool.show()["idle"], 4, "three to keep, and one for the ADD that gave up");
    assert!(rig.pool.show()["cloud"]["outage"].is_null());
}

#[test]
fn the_end_of_an_outage_is_noticed_although_nobody_waits() {
    let mut rig = Rig::new(Settings { min_enis: 1, ..settings() });
    rig.says.insert("any", FaultKind::Unknown);
    rig.run(secs(700));
    assert_eq!(rig.pool.ready().unwrap_err().why, Refusal::CloudDown);
    rig.says.clear();
    rig.run(secs(100));
    assert_eq!(rig.pool.ready(), Ok(()));
}

#[test]
fn a_full_node_is_no_trouble_before_someone_is_turned_away() {
    let tiny = Settings { max_enis: 1, limits: Limits { v4_per_adapter: 1, ..settings().limits }, ..settings() };
    let mut rig = Rig::with_eni(tiny, &["10.0.1.10"]);
    rig.add(1, secs(5));
    assert_eq!(rig.told("AllocResourceFailed"), 0);
    rig.add(2, secs(5));
    rig.add(3, secs(5));
    assert_eq!((rig.told("AllocResourceFailed"), rig.told("AllocIPFailed")), (1, 2));
    rig.del(1);
    rig.run(secs(140));
    assert_eq!(rig.told("AllocIPSucceed"), 1);
}

#[test]
fn a_cloud_that_assigns_nothing_is_not_asked_in_a_loop() {
    let mut rig = Rig::with_eni(Settings { max_enis: 1, ..settings() }, &["10.0.1.10"]);
    rig.add(1, secs(1));
    rig.add(2, secs(100));
    let mut asked = 0;
    for _ in 0..1000 {
        rig.now += Duration::from_millis(100);
        for (_, _, call) in std::mem::take(&mut rig.due) {
            let id =
                rig.effects.iter().rev().find_map(|e| if let Effect::Call { id, .. } = e { Some(*id) } else { None });
            let result = match call.unwrap() {
                Call::Assign { .. } => Ok(Outcome::Assigned(vec![])),
                call => rig.cloud.act(rig.now, &call),
            };
            asked += 1;
            rig.hear(Event::Done { call: id.unwrap(), result });
        }
        rig.hear(Event::Tick);
    }
    assert!((5..40).contains(&asked), "{asked} calls");
}

#[test]
fn what_other_credentials_were_refused_is_tried_at_once_with_new_ones() {
    for says in [FaultKind::Forbidden, FaultKind::Unknown] {
        let mut rig = Rig::new(settings());
        rig.says.insert("any", says);
        rig.add(1, secs(60));
        rig.run(secs(900));
        assert!(rig.replies[&1].1.is_err());
        rig.says.clear();
        rig.hear(Event::NewCloud);
        rig.run(secs(2));
        assert_eq!(rig.pool.ready(), Ok(()), "{says:?}");
        rig.add(2, secs(60));
        rig.run(secs(20));
        assert!(rig.replies[&2].1.is_ok(), "{says:?}");
    }
}

#[test]
fn an_add_that_only_took_too_long_is_told_what_it_waited_for() {
    let mut rig = Rig::new(settings());
    rig.add(1, Duration::from_millis(2500));
    rig.run(secs(5));
    assert_eq!(rig.refused(1).why, Refusal::TooSlow);
    assert!(rig.refused(1).reason.contains("eni-000 is not ready"), "{}", rig.refused(1).reason);
}

#[test]
fn a_node_is_ready_again_once_what_was_refused_may_be_tried_again() {
    let mut rig = Rig::new(settings());
    rig.says.insert("create", FaultKind::Forbidden);
    rig.add(1, secs(15));
    rig.run(secs(20));
    assert_eq!(rig.pool.ready().unwrap_err().why, Refusal::Forbidden);
    rig.run(secs(900));
    assert_eq!(rig.pool.ready(), Ok(()));
    assert_eq!(rig.told("AllocIPSucceed"), 0, "nothing has been had: {:?}", rig.notices);
    rig.says.clear();
    rig.add(2, secs(60));
    rig.run(secs(60));
    assert!(rig.replies[&2].1.is_ok());
    assert_eq!(rig.told("AllocIPSucceed"), 1, "{:?}", rig.notices);
}

#[test]
fn who_is_slowed_down_is_ready_as_long_as_a_call_may_be_made_soon() {
    let mut rig = Rig::new(settings());
    rig.says.insert("any", FaultKind::Throttled);
    rig.run(secs(400));
    rig.says.clear();
    rig.run(secs(60));
    assert!(!rig.pool.show()["trouble"].is_null(), "few calls have been made since");
    assert_eq!(rig.pool.ready(), Ok(()));
}

#[test]
fn readiness_follows_what_an_add_would_hear() {
    let tiny = Settings { max_enis: 1, limits: Limits { v4_per_adapter: 1, ..settings().limits }, ..settings() };
    let mut rig = Rig::with_eni(tiny, &["10.0.1.10"]);
    assert_eq!(rig.pool.ready(), Ok(()));
    rig.add(1, secs(5));
    assert_eq!(rig.pool.ready().unwrap_err().why, Refusal::NodeFull);
    rig.del(1);
    rig.run(secs(140));
    assert_eq!(rig.pool.ready(), Ok(()));
}

// -- shrinking --

#[test]
fn surplus_goes_back_in_one_call_and_never_the_primary_address() {
    let ips = ["10.0.1.10", "10.0.1.11", "10.0.1.12", "10.0.1.13", "10.0.1.14"];
    let mut rig = Rig::with_eni(Settings { max_idle: 0, eni_idle: secs(9999), ..settings() }, &ips);
    rig.run(secs(60));
    assert_eq!(rig.count("unassign"), 1);
    assert_eq!(rig.cloud.enis["eni-a"].v4, [v4("10.0.1.10")]);
}

#[test]
fn a_cooling_address_is_not_given_back() {
    let mut rig = Rig::with_eni(Settings { max_idle: 0, ..settings() }, &["10.0.1.10", "10.0.1.11"]);
    rig.add(1, secs(1));
    rig.add(2, secs(1));
    rig.del(2);
    rig.run(secs(125));
    assert_eq!(rig.count("unassign"), 0);
    rig.run(secs(20));
    assert_eq!(rig.count("unassign"), 1);
}

#[test]
fn an_eni_that_was_long_empty_leaves_the_kernel_then_the_instance_then_the_cloud() {
    let mut rig = Rig::with_eni(Settings { eni_idle: secs(60), ..settings() }, &["10.0.1.10"]);
    rig.run(secs(55));
    assert_eq!(rig.count("detach"), 0);
    rig.run(secs(30));
    let order: Vec<&str> = rig
        .effects
        .iter()
        .filter_map(|e| match e {
            Effect::Dismantle { .. } => Some("dismantle"),
            Effect::Call { call: call @ (Call::Detach { .. } | Call::Delete { .. }), .. } => Some(kind(call)),
            _ => None,
        })
        .collect();
    assert_eq!(order, ["dismantle", "detach", "delete"]);
    assert!(rig.cloud.enis.is_empty());
}

#[test]
fn an_empty_eni_stays_while_the_warm_pool_needs_it() {
    let keep = Settings { eni_idle: secs(60), min_idle: 2, max_idle: 4, ..settings() };
    let mut rig = Rig::with_eni(keep, &["10.0.1.10", "10.0.1.11"]);
    rig.run(secs(600));
    assert_eq!(rig.count("detach"), 0);
}

#[test]
fn an_idle_pool_hardly_wakes() {
    let mut rig = Rig::with_eni(settings(), &["10.0.1.10", "10.0.1.11"]);
    rig.add(1, secs(1));
    rig.run(secs(10));
    rig.ticks = 0;
    rig.run(secs(3600));
    assert!(rig.ticks < 100, "{} wake-ups in an hour", rig.ticks);
}

// -- what others do, and lies --

#[test]
fn a_lease_whose_address_vanished_is_reported_once_and_kept() {
    let mut rig = Rig::with(settings(), |cloud, ledger| {
        put(cloud, eni("eni-a", EniState::InUse, "vsw-1", &["10.0.1.10", "10.0.1.11"]));
        lease(ledger, "c1", "eni-a", "10.0.1.11");
    });
    rig.cloud.enis.get_mut("eni-a").unwrap().v4.pop();
    rig.run(secs(900));
    assert_eq!(rig.told("ResourceInvalid"), 1);
    assert!(rig.ledger.leases.contains_key(&attachment("c1")));
    rig.add(2, secs(1));
    assert_eq!(rig.ip(2), "10.0.1.10");
    rig.del(1);
    assert!(rig.ledger.leases.len() == 1 && rig.ledger.cooling.len() == 1);
}

#[test]
fn an_eni_that_vanished_leaves_its_kernel_side_while_pods_use_it() {
    let mut rig = Rig::with(settings(), |cloud, ledger| {
        put(cloud, eni("eni-a", EniState::InUse, "vsw-1", &["10.0.1.10", "10.0.1.11"]));
        lease(ledger, "c1", "eni-a", "10.0.1.11");
    });
    rig.run(secs(1));
    rig.cloud.remove("eni-a");
    rig.run(secs(400));
    assert_eq!(rig.told("ResourceInvalid"), 1);
    let dismantled = |rig: &Rig| rig.effects.iter().filter(|e| matches!(e, Effect::Dismantle { .. })).count();
    assert_eq!(dismantled(&rig), 0);
    rig.del(1);
    assert_eq!(dismantled(&rig), 1);
}

#[test]
fn a_lease_wins_over_a_rest_of_the_same_address() {
    let mut rig = Rig::with(settings(), |cloud, ledger| {
        put(cloud, eni("eni-a", EniState::InUse, "vsw-1", &["10.0.1.10"]));
        lease(ledger, "c1", "eni-a", "10.0.1.10");
        let key = ("eni-a".to_owned(), IpPair::v4(v4("10.0.1.10")));
        ledger.cooling.insert(key, START);
    });
    assert!(rig.ledger.cooling.is_empty());
    rig.run(secs(1));
    assert_eq!(rig.pool.show()["leased"], 1);
}

#[test]
fn an_address_outside_the_vswitch_is_never_leased() {
    let mut rig = Rig::with_eni(settings(), &["10.0.1.10"]);
    rig.add(1, secs(1));
    rig.add(2, secs(20));
    rig.run(Duration::from_millis(150));
    let Some(Effect::Call { id, .. }) = rig.effects.iter().rev().find(|e| matches!(e, Effect::Call { .. })) else {
        panic!("nothing was asked for")
    };
    let outcome = Outcome::Assigned(["203.0.113.9", "10.0.1.10", "10.0.1.77"].map(|ip| ip.parse().unwrap()).to_vec());
    let event = Event::Done { call: *id, result: Ok(outcome) };
    let effects = rig.hear(event);
    assert_eq!(rig.ip(2), "10.0.1.77");
    assert_eq!(rig.told("ResourceInvalid"), 1);
    assert!(effects.iter().any(|e| matches!(e, Effect::Call { call: Call::Look { .. }, .. })));
}

#[test]
fn an_address_that_is_on_two_enis_is_used_on_one() {
    let mut rig = Rig::with(settings(), |cloud, _| {
        put(cloud, eni("eni-a", EniState::InUse, "vsw-1", &["10.0.1.10", "10.0.1.11"]));
        put(cloud, eni("eni-b", EniState::InUse, "vsw-1", &["10.0.1.12", "10.0.1.11"]));
    });
    rig.run(secs(1));
    assert_eq!((rig.pool.show()["idle"].as_u64(), rig.told("ResourceInvalid")), (Some(3), 1));
}

#[test]
fn what_was_added_behind_our_back_is_idle_after_the_next_look() {
    let mut rig = Rig::with_eni(Settings { max_idle: 9, ..settings() }, &["10.0.1.10"]);
    let given = rig.cloud.free.get_mut("vsw-1").unwrap().pop().unwrap();
    rig.cloud.enis.get_mut("eni-a").unwrap().v4.push(given);
    rig.run(secs(200));
    assert_eq!(rig.pool.show()["idle"], 2);
}

#[test]
fn nothing_is_leased_from_an_eni_whose_link_went_away() {
    let mut rig = Rig::with_eni(settings(), &["10.0.1.10"]);
    let effects = rig.hear(Event::LinkGone { eni: "eni-a".into() });
    assert!(effects.iter().any(|e| matches!(e, Effect::Call { call: Call::LookAll, .. })));
    rig.add(1, secs(30));
    assert!(rig.replies.is_empty());
    rig.run(secs(10));
    assert_eq!(rig.ip(1), "10.0.1.10");
}

#[test]
fn an_eni_that_cannot_be_set_up_is_tried_again_and_reported_once() {
    let mut rig = Rig::with(settings(), |cloud, _| put(cloud, eni("eni-a", EniState::InUse, "vsw-1", &["10.0.1.10"])));
    rig.due.clear();
    for _ in 0..3 {
        rig.hear(Event::Prepared { eni: "eni-a".into(), result: Err("no link with its MAC".into()) });
        rig.now += secs(10);
        rig.hear(Event::Tick);
        rig.due.clear();
    }
    assert_eq!(rig.told("ResourceInvalid"), 1);
    assert_eq!(rig.effects.iter().filter(|e| matches!(e, Effect::Prepare { .. })).count(), 4);
}

// -- settings --

#[test]
fn an_eni_that_never_comes_is_not_counted_on_and_given_back_in_the_end() {
    let mut rig = Rig::new(settings());
    rig.add(1, secs(90));
    while rig.cloud.moves.is_empty() {
        rig.run(Duration::from_millis(100));
    }
    rig.cloud.moves.clear();
    rig.run(secs(130));
    assert_eq!((rig.refused(1).why, rig.told("ResourceInvalid")), (Refusal::TooSlow, 1));
    rig.add(2, secs(90));
    rig.run(secs(60));
    assert_eq!(rig.replies[&2].1.as_ref().unwrap().eni, "eni-001", "another one is made");
    rig.run(secs(600));
    assert_eq!((rig.told("ResourceInvalid"), rig.cloud.enis.len()), (1, 2));
    rig.cloud.enis.get_mut("eni-000").unwrap().state = EniState::InUse;
    rig.run(secs(60));
    assert!(!rig.cloud.enis.contains_key("eni-000"), "it comes at last");
}

#[test]
fn an_attach_that_is_accepted_and_taken_back_is_tried_less_and_less_often() {
    let mut rig = Rig::new(Settings { max_enis: 1, eni_idle: secs(3600), ..settings() });
    rig.add(1, secs(90));
    let end = rig.now + secs(580);
    while rig.now < end {
        rig.run(Duration::from_millis(100));
        rig.cloud.moves.values_mut().for_each(|(_, state)| *state = EniState::Available);
    }
    assert!((5..20).contains(&rig.count("attach")), "{} times", rig.count("attach"));
    assert!(rig.pool.ready().unwrap_err().reason.contains("has not been attached"), "{:?}", rig.pool.ready());
    rig.run(secs(150));
    assert!(!rig.cloud.enis.contains_key("eni-000"));
    rig.add(2, secs(60));
    rig.run(secs(60));
    assert!(rig.replies[&2].1.is_ok());
}

#[test]
fn new_settings_hold_for_new_enis_and_bounds_at_once() {
    let mut rig = Rig::with_eni(settings(), &["10.0.1.10"]);
    let new = Settings { min_idle: 8, max_idle: 8, vswitches: vec!["vsw-2".into()], ..settings() };
    rig.hear(Event::Settings(Box::new(new)));
    rig.run(secs(60));
    assert_eq!(rig.pool.show()["idle"], 8);
    let made = rig.cloud.enis.values().find(|e| e.id != "eni-a").unwrap();
    assert_eq!(made.vswitch, "vsw-2");
    assert_eq!(made.tags[ours::NODE_TAG], HERE);
}

/// Where the addresses are that pods have.
fn vswitches_of(rig: &Rig, tickets: std::ops::RangeInclusive<u64>) -> Vec<String> {
    let has = |eni: &&Eni, n: u64| eni.v4.contains(&v4(&rig.ip(n)));
    tickets.map(|n| rig.cloud.enis.values().find(|eni| has(eni, n)).unwrap().vswitch.clone()).collect()
}

#[test]
fn an_eni_of_a_vswitch_that_was_taken_away_serves_what_it_has_and_gets_more_only_when_nothing_else_can() {
    let limits = Limits { adapters: 3, v4_per_adapter: 3, ..settings().limits };
    let old = Settings { limits, max_enis: 2, max_idle: 0, eni_idle: secs(100), ..settings() };
    let mut rig = Rig::with_eni(old.clone(), &["10.0.1.10", "10.0.1.11"]);
    rig.add(1, secs(60));
    let new = Settings { vswitches: vec!["vsw-2".into()], ..old };
    rig.hear(Event::Settings(Box::new(new.clone())));
    for n in 2..=6 {
        rig.add(n, secs(60));
    }
    rig.run(secs(60));
    assert_eq!(vswitches_of(&rig, 1..=2), ["vsw-1", "vsw-1"], "what it has is used");
    let mut rest = vswitches_of(&rig, 3..=6);
    rest.sort();
    assert_eq!(rest, ["vsw-1", "vsw-2", "vsw-2", "vsw-2"], "the last one could be had nowhere else");
    // Once its pods have gone it goes too, though nothing else makes up for its idle addresses, and its place is for the new vSwitch.
    rig.hear(Event::Settings(Box::new(Settings { min_idle: 2, max_idle: 2, min_enis: 2, ..new })));
    (1..=6).for_each(|n| rig.del(n));
    rig.run(secs(400));
    assert!(rig.cloud.enis.values().all(|eni| eni.vswitch == "vsw-2"), "{:?}", rig.cloud.enis);
    assert_eq!(rig.cloud.enis.len(), 2);
}

// -- sizes --

#[test]
fn a_node_warms_up_once_and_keeps_that_until_a_batch_goes() {
    let reclaim = Reclaim { after: secs(600), interval: secs(100), batch: 3, jitter: 0.0 };
    let mut rig = Rig::new(Settings { warm_up: 9, min_idle: 1, max_idle: 2, reclaim: Some(reclaim), ..settings() });
    rig.run(secs(60));
    assert_eq!(rig.pool.show()["idle"], 9);
    rig.add(1, secs(60));
    rig.run(secs(400));
    assert_eq!(rig.pool.show()["idle"], 8, "more than max_idle, and not filled up again");
    // Nobody wants one: batch by batch down to the least, and no longer above the usual bound in between.
    rig.run(secs(300));
    assert!(rig.pool.show()["idle"].as_u64().unwrap() <= 2, "{}", rig.pool.show()["idle"]);
    rig.run(secs(600));
    assert_eq!(rig.pool.show()["idle"], 1);
    let unassigned =
        rig.calls.iter().map(|(_, call)| if let Call::Unassign { addresses, .. } = call { addresses.len() } else { 0 });
    assert!(unassigned.max() <= Some(10));
}

#[test]
fn a_warm_up_that_the_vswitch_cannot_give_ends_with_the_first_batch() {
    let reclaim = Reclaim { after: secs(60), interval: secs(30), batch: 2, jitter: 0.0 };
    let vswitches = vec!["vsw-1".into()];
    let mut rig = Rig::new(Settings { warm_up: 13, min_idle: 1, vswitches, reclaim: Some(reclaim), ..settings() });
    rig.cloud.free.get_mut("vsw-1").expect("it is there").truncate(5);
    rig.run(secs(900));
    let asked = rig.count("assign") + rig.count("create");
    assert!(asked > 0);
    rig.run(secs(3600));
    assert_eq!(rig.count("assign") + rig.count("create"), asked);
}

#[test]
fn idle_addresses_go_in_batches_when_nobody_has_wanted_one_for_long() {
    let reclaim = Reclaim { after: secs(300), interval: secs(100), batch: 2, jitter: 0.0 };
    let settings = Settings { min_idle: 1, max_idle: 9, reclaim: Some(reclaim), eni_idle: secs(9000), ..settings() };
    let ips: Vec<String> = (10..16).map(|n| format!("10.0.1.{n}")).collect();
    let ips: Vec<&str> = ips.iter().map(String::as_str).collect();
    let mut rig = Rig::with_eni(settings, &ips);
    rig.add(1, secs(60));
    rig.run(secs(200));
    assert_eq!((rig.count("unassign"), rig.pool.show()["idle"].as_u64()), (0, Some(5)));
    rig.run(secs(130));
    assert_eq!((rig.count("unassign"), rig.pool.show()["idle"].as_u64()), (1, Some(3)));
    rig.run(secs(110));
    assert_eq!((rig.count("unassign"), rig.pool.show()["idle"].as_u64()), (2, Some(1)));
    rig.run(secs(1000));
    assert_eq!((rig.count("unassign"), rig.pool.show()["idle"].as_u64()), (2, Some(1)));
}

#[test]
fn an_action_is_called_no_more_often_than_the_operator_allows() {
    let rate_limit = BTreeMap::from([("AssignPrivateIpAddresses".to_owned(), 2)]);
    let mut rig = Rig::with_eni(Settings { rate_limit, max_enis: 1, ..settings() }, &["10.0.1.10"]);
    for n in 1..=6 {
        rig.add(n, secs(300));
        rig.run(secs(4));
    }
    rig.run(secs(300));
    let times: Vec<Now> = rig.calls.iter().filter(|(_, c)| kind(c) == "assign").map(|(at, _)| *at).collect();
    assert!(times.windows(3).all(|w| w[2] >= w[0] + secs(60)), "{times:?}");
    assert!(rig.replies.values().all(|(_, reply)| reply.is_ok()), "late, and served");
}

// -- prefixes --

#[test]
fn a_prefix_takes_one_place_and_its_addresses_are_leased_and_rest_one_by_one() {
    let limits = Limits { adapters: 2, v4_per_adapter: 3, ..settings().limits };
    let settings =
        Settings { limits, max_enis: 1, prefixes: Some(u32::MAX), max_idle: 0, cooldown: secs(30), ..settings() };
    let mut rig = Rig::new(settings.clone());
    assert_eq!(rig.pool.show()["capacity"], 33, "the primary address and two prefixes");
    for n in 1..=34 {
        rig.add(n, secs(60));
    }
    rig.run(secs(30));
    assert_eq!((rig.count("create"), rig.count("assign prefixes"), rig.count("assign")), (1, 1, 0));
    let full = rig.replies.values().filter(|(_, r)| r.as_ref().is_err_and(|r| r.why == Refusal::NodeFull)).count();
    assert_eq!((rig.replies.len(), full), (34, 1));
    let ips: std::collections::BTreeSet<String> = (1..=33).map(|n| rig.ip(n)).collect();
    assert_eq!(ips.len(), 33);
    // One address of a prefix that is still in use keeps all of it.
    let in_prefix = (1..=33).find(|n| rig.cloud.enis["eni-000"].prefixes[0].contains(&v4(&rig.ip(*n)))).unwrap();
    (1..=33).filter(|n| *n != in_prefix).for_each(|n| rig.del(n));
    rig.run(secs(20));
    assert_eq!(rig.count("unassign prefixes"), 0, "they rest");
    rig.run(secs(60));
    let eni = &rig.cloud.enis["eni-000"];
    assert_eq!((eni.prefixes.len(), rig.count("unassign prefixes")), (1, 1));
    // Another life knows them.
    let boot = rig.ledger.boot(settings, &rig.cloud);
    rig.pool = Pool::new(8);
    rig.hear(Event::Boot(Box::new(boot)));
    rig.run(secs(5));
    assert_eq!((rig.told("ResourceInvalid"), rig.pool.show()["leased"].as_u64()), (0, Some(1)));
    rig.add(40, secs(10));
    rig.run(secs(1));
    assert_ne!(rig.ip(40), rig.ip(in_prefix));
}

#[test]
fn a_vswitch_without_a_free_block_gives_single_addresses_and_that_is_said_once() {
    let mut rig = Rig::with(Settings { prefixes: Some(2), ..settings() }, |cloud, _| {
        // Every sixteenth address is somebody else's.
        cloud.free.get_mut("vsw-1").unwrap().retain(|ip| ip.octets()[3] % 16 != 5);
    });
    for n in 1..=5 {
        rig.add(n, secs(60));
    }
    rig.run(secs(60));
    assert!(rig.replies.values().all(|(_, reply)| reply.is_ok()), "{:?}", rig.replies);
    assert_eq!((rig.count("assign prefixes"), rig.told("ResourceInvalid")), (1, 1));
    let told = rig.notices.iter().find(|n| n.reason == "ResourceInvalid").unwrap();
    assert!(told.message.contains("vSwitch vsw-1 has no free block of 16 addresses"), "{}", told.message);

    // They are to be had again, and then no more: that is news.
    let fragment = |rig: &mut Rig, taken: bool| {
        let free = rig.cloud.free.get_mut("vsw-1").unwrap();
        free.retain(|ip| ip.octets()[3] % 16 != 5);
        free.extend((0..16).filter(|_| !taken).map(|n| Ipv4Addr::new(10, 0, 1, n * 16 + 5)));
    };
    fragment(&mut rig, false);
    rig.run(secs(700));
    for n in 6..=30 {
        rig.add(n, secs(60));
    }
    rig.run(secs(60));
    assert_eq!(rig.count("assign prefixes"), 2);
    fragment(&mut rig, true);
    for n in 31..=60 {
        rig.add(n, secs(60));
    }
    rig.run(secs(60));
    assert_eq!((rig.count("assign prefixes"), rig.told("ResourceInvalid")), (3, 2));
}

#[test]
fn no_eni_has_more_prefixes_than_the_operator_allows() {
    let settings = Settings { prefixes: Some(1), max_enis: 1, min_idle: 18, max_idle: 18, ..settings() };
    let mut rig = Rig::new(settings);
    rig.run(secs(60));
    let eni = rig.cloud.enis.values().next().unwrap();
    assert_eq!((eni.prefixes.len(), eni.v4.len()), (1, 2), "the rest is single");
    assert_eq!(rig.pool.show()["idle"], 18);
}

// -- security groups and tags --

/// What an ENI bears beside the tags that every ENI of ours bears.
fn dress(rig: &Rig, id: &str) -> (String, String) {
    let eni = &rig.cloud.enis[id];
    let own = |key: &&String| ![ours::ENI_TAG.0, ours::NODE_TAG, ours::TAGS_TAG].contains(&key.as_str());
    let tags = eni.tags.keys().filter(own).map(|key| format!("{key}={}", eni.tags[key]));
    (eni.security_groups.join(" "), tags.collect::<Vec<_>>().join(" "))
}

fn tags(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

#[test]
fn changed_security_groups_and_tags_reach_enis_that_live() {
    let mut rig = Rig::with_eni(settings(), &["10.0.1.10", "10.0.1.11"]);
    rig.add(1, secs(60));
    let groups = vec!["sg-2".into(), "sg-1".into()];
    let wanted = tags(&[("team", "web"), ("env", "test")]);
    rig.hear(Event::Settings(Box::new(Settings { security_groups: groups, tags: wanted, ..settings() })));
    rig.run(secs(10));
    assert_eq!(dress(&rig, "eni-a"), ("sg-1 sg-2".into(), "env=test team=web".into()));
    assert_eq!((rig.count("regroup"), rig.count("tag"), rig.count("untag")), (1, 1, 0));
    // Nothing more is done while nothing differs; a key that is gone from the settings is taken away, the groups are the instance's again.
    rig.run(secs(300));
    let wanted = tags(&[("env", "test")]);
    rig.hear(Event::Settings(Box::new(Settings { security_groups: vec![], tags: wanted, ..settings() })));
    rig.run(secs(10));
    assert_eq!(dress(&rig, "eni-a"), ("sg-instance".into(), "env=test".into()));
    assert_eq!((rig.count("regroup"), rig.count("tag"), rig.count("untag")), (2, 2, 1));
    rig.hear(Event::Settings(Box::new(Settings { security_groups: vec![], tags: tags(&[]), ..settings() })));
    rig.run(secs(10));
    assert_eq!(dress(&rig, "eni-a").1, "");
    assert!(!rig.cloud.enis["eni-a"].tags.contains_key(ours::TAGS_TAG));
    assert_eq!(rig.ip(1), "10.0.1.10");
}

#[test]
fn what_others_change_of_groups_and_tags_is_set_right_and_what_they_add_is_left() {
    let mut rig = Rig::with(settings(), |cloud, _| {
        let mut primary = eni("eni-p", EniState::InUse, "vsw-1", &["10.0.1.100"]);
        (primary.kind, primary.security_groups) = (EniKind::Primary, vec!["sg-node".into()]);
        put(cloud, primary);
        put(cloud, eni("eni-a", EniState::InUse, "vsw-1", &["10.0.1.10"]));
    });
    rig.add(1, secs(60));
    rig.run(secs(1));
    let own = Settings { security_groups: vec![], ..settings() };
    rig.hear(Event::Settings(Box::new(own)));
    rig.run(secs(5));
    assert_eq!(dress(&rig, "eni-a").0, "sg-node", "the groups of the instance are those of its own ENI");
    let theirs = rig.cloud.enis.get_mut("eni-a").unwrap();
    theirs.security_groups = vec!["sg-9".into()];
    theirs.tags.remove("team");
    theirs.tags.insert("others-cost".into(), "7".into());
    rig.cloud.enis.get_mut("eni-p").unwrap().security_groups = vec!["sg-new".into()];
    rig.run(secs(400));
    assert_eq!(dress(&rig, "eni-a"), ("sg-new".into(), "others-cost=7 team=net".into()));
    assert_eq!(dress(&rig, "eni-p").0, "sg-new");
    assert!(!rig.calls.iter().any(|(_, call)| enis_of(call).iter().any(|id| id == "eni-p")));
}

#[test]
fn a_tag_that_somebody_else_has_set_is_never_changed() {
    let mut rig = Rig::with(settings(), |cloud, _| {
        let mut theirs = eni("eni-a", EniState::InUse, "vsw-1", &["10.0.1.10"]);
        theirs.tags.remove(ours::TAGS_TAG);
        theirs.tags.extend(tags(&[("team", "data"), ("others-env", "prod")]));
        put(cloud, theirs);
    });
    let wanted = tags(&[("team", "web"), ("others-env", "test")]);
    rig.hear(Event::Settings(Box::new(Settings { tags: wanted, ..settings() })));
    rig.run(secs(300));
    assert_eq!(dress(&rig, "eni-a").1, "others-env=prod team=data");
    assert_eq!((rig.count("untag"), rig.told("ResourceInvalid")), (0, 2), "once for each of the settings");
    let told = &rig.notices.iter().rfind(|n| n.reason == "ResourceInvalid").unwrap().message;
    assert!(told.contains("others-env=prod") && told.contains("team=data"), "{told}");
    // What it has set itself in an earlier life, it knows by the marks.
    let mut rig = Rig::with(settings(), |cloud, _| {
        put(cloud, eni("eni-a", EniState::InUse, "vsw-1", &["10.0.1.10"]));
    });
    rig.hear(Event::Settings(Box::new(Settings { tags: tags(&[("team", "web")]), ..settings() })));
    rig.run(secs(5));
    assert_eq!(dress(&rig, "eni-a").1, "team=web");
}

#[test]
fn groups_that_are_refused_are_told_with_eni_and_group_and_pods_go_on() {
    for (says, words) in [(None, "Quota"), (Some(FaultKind::Forbidden), "allow ecs:ModifyNetworkInterfaceAttribute")] {
        let mut rig = Rig::with_eni(settings(), &["10.0.1.10", "10.0.1.11"]);
        rig.says.extend(says.map(|kind| ("regroup", kind)));
        let new = Settings { security_groups: vec!["sg-full".into()], ..settings() };
        rig.hear(Event::Settings(Box::new(new)));
        rig.add(1, secs(60));
        rig.run(secs(600));
        let told: Vec<&Notice> = rig.notices.iter().filter(|n| n.warning).collect();
        assert_eq!(told.len(), 1, "{told:?}");
        for word in ["eni-a", "sg-full", words] {
            assert!(told[0].message.contains(word), "{}", told[0].message);
        }
        assert!((2..6).contains(&rig.count("regroup")), "{} times", rig.count("regroup"));
        assert_eq!(rig.ip(1), "10.0.1.10");
        // A person changes the settings: it is tried at once.
        let before = rig.count("regroup");
        rig.says.clear();
        rig.hear(Event::Settings(Box::new(Settings { security_groups: vec!["sg-3".into()], ..settings() })));
        rig.run(secs(3));
        assert_eq!((rig.count("regroup"), dress(&rig, "eni-a").0.as_str()), (before + 1, "sg-3"));
    }
}

#[test]
fn an_eni_that_we_are_kept_from_serves_what_it_has_and_is_left_as_it_is() {
    let mut rig = Rig::with(settings(), |cloud, ledger| {
        put(cloud, eni("eni-a", EniState::InUse, "vsw-1", &["10.0.1.10", "10.0.1.11"]));
        lease(ledger, "c1", "eni-a", "10.0.1.10");
    });
    rig.run(secs(1));
    rig.cloud.enis.get_mut("eni-a").unwrap().tags.insert("excluded".into(), "true".into());
    rig.run(secs(400));
    rig.add(2, secs(60));
    rig.run(secs(30));
    assert_ne!(rig.ip(2), "10.0.1.11", "nothing new on it");
    let calls = |rig: &Rig| rig.calls.iter().filter(|(_, call)| enis_of(call).iter().any(|id| id == "eni-a")).count();
    let before = calls(&rig);
    // Its pod is told the same again, also by another life.
    let boot = rig.ledger.boot(settings(), &rig.cloud);
    rig.pool = Pool::new(8);
    rig.hear(Event::Boot(Box::new(boot)));
    rig.run(secs(5));
    rig.hear(Event::Allocate {
        ticket: 3,
        pod: pod("web"),
        sandbox: sandbox("c1"),
        whole: false,
        deadline: rig.now + secs(9),
    });
    rig.run(secs(1));
    assert_eq!(rig.ip(3), "10.0.1.10");
    assert_eq!(rig.told("ResourceInvalid"), 0);
    rig.del(1);
    rig.run(secs(600));
    assert_eq!((calls(&rig), rig.cloud.enis["eni-a"].state), (before, EniState::InUse));
    assert!(!rig.pool.show()["enis"].to_string().contains("eni-a"), "it is forgotten once nothing of ours is on it");
    rig.cloud.enis.get_mut("eni-a").unwrap().tags.remove("excluded");
    rig.run(secs(400));
    assert!(rig.pool.show()["enis"].to_string().contains("eni-a"), "it is taken up again");
}

#[test]
fn an_eni_is_not_forgotten_while_it_is_being_set_up() {
    // As the configuration keeps us from it, and as the cloud does not know it any more.
    for gone in [false, true] {
        let mut rig =
            Rig::with(settings(), |cloud, _| put(cloud, eni("eni-a", EniState::InUse, "vsw-1", &["10.0.1.10"])));
        assert!(rig.effects.iter().any(|e| matches!(e, Effect::Prepare { .. })));
        let kept_from = Settings { tag_filter: BTreeMap::from([("for".into(), "others".into())]), ..settings() };
        match gone {
            false => drop(rig.hear(Event::Settings(Box::new(kept_from)))),
            true => {
                // Its thread is slow.
                for (at, event, _) in &mut rig.due {
                    *at += if matches!(event, Event::Prepared { .. }) { secs(400) } else { secs(0) };
                }
                rig.cloud.remove("eni-a");
                rig.run(secs(300));
            }
        }
        assert!(!rig.effects.iter().any(|e| matches!(e, Effect::Dismantle { .. })), "its slot is free");
        assert_eq!(rig.pool.show()["enis"].as_array().unwrap().len(), 1);
        rig.run(secs(400));
        assert!(rig.effects.iter().any(|e| matches!(e, Effect::Dismantle { .. })));
        assert_eq!(rig.pool.show()["enis"].as_array().unwrap().len(), 0);
    }
}

#[test]
fn enis_above_a_new_bound_go_when_they_are_empty() {
    let mut rig = Rig::with(settings(), |cloud, ledger| {
        put(cloud, eni("eni-a", EniState::InUse, "vsw-1", &["10.0.1.10"]));
        put(cloud, eni("eni-b", EniState::InUse, "vsw-1", &["10.0.1.20"]));
        lease(ledger, "c1", "eni-a", "10.0.1.10");
    });
    rig.run(secs(1));
    rig.hear(Event::Settings(Box::new(Settings { max_enis: 1, ..settings() })));
    rig.run(secs(30));
    assert_eq!(rig.cloud.enis.keys().collect::<Vec<_>>(), ["eni-a"]);
}

#[test]
fn the_next_vswitch_is_the_first_the_fullest_or_any() {
    let mut rng = fastrand::Rng::with_seed(1);
    let list = vec![vswitch("vsw-1", "10.0.1.0/24", 5), vswitch("vsw-2", "10.0.2.0/24", 9)];
    let mut known = super::vswitch::VSwitches::new(START, &settings(), list, &mut rng);
    let with = |choice| Settings { vswitch_choice: choice, ..settings() };
    let mut pick = |known: &super::vswitch::VSwitches, choice| known.choose(START, &with(choice), &mut rng);
    assert_eq!(pick(&known, VSwitchChoice::Ordered).as_deref(), Some("vsw-1"));
    assert_eq!(pick(&known, VSwitchChoice::Most).as_deref(), Some("vsw-2"));
    let any: std::collections::BTreeSet<_> = (0..50).map(|_| pick(&known, VSwitchChoice::Random)).collect();
    assert_eq!(any.len(), 2);
    known.set_aside(START, 1, ("vsw-2", Family::V4), "empty".into());
    for choice in [VSwitchChoice::Ordered, VSwitchChoice::Most, VSwitchChoice::Random] {
        assert_eq!(pick(&known, choice).as_deref(), Some("vsw-1"));
    }
    let usable = |at| known.usable("vsw-2", Family::V4, START + secs(at));
    assert!(!usable(599) && usable(600));
}
