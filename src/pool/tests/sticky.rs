//! Addresses that are kept for the next pod of a name.

use super::*;

/// All that this node can hold.
const IPS: [&str; 3] = ["10.0.1.10", "10.0.1.11", "10.0.1.12"];

fn narrow() -> Settings {
    let limits = Limits { adapters: 2, v4_per_adapter: 3, v6_per_adapter: 0 };
    Settings { limits, max_enis: 1, cooldown: secs(30), reservation: secs(300), ..settings() }
}

/// A node with one ENI, and a pod `web` that has gone and whose address 10.0.1.10 is kept.
fn rig() -> Rig {
    let mut rig = Rig::with_eni(narrow(), &IPS);
    rig.ask(1, "web");
    rig.hear(Event::Reserve { attachment: attachment("c1") });
    rig
}

impl Rig {
    fn ask(&mut self, n: u64, name: &str) {
        self.ask_for(n, name, false);
    }

    /// The pod wants an ENI to itself.
    fn wish(&mut self, n: u64, name: &str) {
        self.ask_for(n, name, true);
    }

    fn ask_for(&mut self, n: u64, name: &str, whole: bool) {
        self.ask_waiting(n, name, whole, secs(5));
    }

    fn ask_within(&mut self, n: u64, name: &str, wait: Duration) {
        self.ask_waiting(n, name, false, wait);
    }

    fn ask_waiting(&mut self, n: u64, name: &str, whole: bool, wait: Duration) {
        let deadline = self.now + wait;
        let (pod, sandbox) = (pod(name), sandbox(&format!("c{n}")));
        self.hear(Event::Allocate { ticket: n, pod, sandbox, whole, deadline });
    }
}

/// A node with two ENIs of one address each, where `web` has had one of them to itself and has gone.
fn lent() -> Rig {
    let limits = Limits { adapters: 3, v4_per_adapter: 3, v6_per_adapter: 0 };
    let mut rig = Rig::with(Settings { limits, max_enis: 2, ..narrow() }, |cloud, _| {
        put(cloud, eni("eni-a", EniState::InUse, "vsw-1", &["10.0.1.10"]));
        put(cloud, eni("eni-b", EniState::InUse, "vsw-1", &["10.0.1.20"]));
    });
    rig.run(secs(1));
    rig.wish(1, "web");
    assert_eq!(rig.ip(1), "10.0.1.10");
    rig.hear(Event::Reserve { attachment: attachment("c1") });
    rig
}

#[test]
fn a_pod_with_an_eni_of_its_own_has_it_again_as_soon_as_it_is_home() {
    let mut rig = lent();
    // Its link is on its way back.
    rig.wish(2, "web");
    rig.run(secs(1));
    let held = rig.ledger.leases[&attachment("c2")].clone();
    assert_eq!((held.eni.as_str(), held.whole, rig.ip(2).as_str()), ("eni-a", true, "10.0.1.10"));
    assert!(rig.ledger.cooling.is_empty() && rig.cloud.enis.len() == 2, "no other was asked for");
}

#[test]
fn nobody_else_has_that_eni_to_himself_and_who_shares_it_ends_that() {
    let mut rig = lent();
    rig.wish(2, "other");
    assert_eq!(rig.ip(2), "10.0.1.20");
    rig.wish(3, "one-more");
    rig.run(secs(6));
    assert_eq!(rig.refused(3).why, Refusal::NodeFull);
    // With the other one lent, there is no other ENI for those who share.
    rig.ask(4, "shares");
    rig.run(secs(2));
    assert_eq!(rig.ledger.leases[&attachment("c4")].eni, "eni-a");
    rig.wish(5, "web");
    rig.run(secs(6));
    assert_eq!(rig.refused(5).why, Refusal::NodeFull);
    // Without the wish its address is there still.
    rig.ask(6, "web");
    assert_eq!(rig.ip(6), "10.0.1.10");
}

/// What else is on it is nobody's supply, or an ADD would wait for that until its deadline.
#[test]
fn addresses_beside_that_of_a_lent_eni_are_not_counted_on() {
    let limits = Limits { adapters: 3, v4_per_adapter: 3, v6_per_adapter: 0 };
    let mut rig = Rig::with_eni(Settings { limits, max_enis: 2, min_idle: 0, max_idle: 5, ..settings() }, &IPS);
    rig.wish(1, "web");
    rig.add(2, secs(60));
    rig.run(secs(61));
    let eni = |rig: &Rig, container: &str| rig.ledger.leases[&attachment(container)].eni.clone();
    assert_eq!(eni(&rig, "c1"), "eni-a");
    assert_ne!(eni(&rig, "c2"), "eni-a");
    // The same where every pod has one, and the ENI is left from a time when pods shared it.
    let limits = Limits { v4_per_adapter: 1, ..limits };
    let whole = Settings { whole: true, limits, max_enis: 2, min_idle: 0, max_idle: 5, ..settings() };
    let mut rig = Rig::with_eni(whole, &IPS);
    rig.add(1, secs(60));
    rig.add(2, secs(60));
    rig.run(secs(61));
    assert_eq!(eni(&rig, "c1"), "eni-a");
    assert_ne!(eni(&rig, "c2"), "eni-a");
}

#[test]
fn the_next_pod_of_the_name_has_the_address_at_once_and_after_the_rest_too() {
    let mut rig = rig();
    rig.ask(2, "web");
    assert_eq!(rig.ip(2), "10.0.1.10");
    assert!(rig.ledger.cooling.is_empty() && rig.ledger.reserved.is_empty());
    rig.hear(Event::Reserve { attachment: attachment("c2") });
    rig.run(secs(290));
    rig.ask(3, "web");
    assert_eq!(rig.ip(3), "10.0.1.10");
}

#[test]
fn nobody_else_has_it_and_it_is_not_given_back_until_the_time_is_over() {
    let mut rig = rig();
    rig.ask(2, "other-1");
    rig.ask(3, "other-2");
    rig.ask(4, "other-3");
    assert_eq!((rig.ip(2), rig.ip(3)), ("10.0.1.11".into(), "10.0.1.12".into()));
    let refused = rig.refused(4);
    assert_eq!(refused.why, Refusal::NodeFull);
    assert!(
        refused.reason.contains("2 in use, 0 cooling down, 1 kept for pods that shall have them again"),
        "{refused:?}"
    );
    rig.del(2);
    rig.del(3);
    rig.run(secs(290));
    assert!(rig.cloud.enis["eni-a"].v4.contains(&v4("10.0.1.10")));
    assert!(rig.ledger.cooling.len() == 1);
    rig.run(secs(20));
    assert!(rig.ledger.cooling.is_empty() && rig.ledger.reserved.is_empty());
    rig.run(secs(300));
    assert!(rig.cloud.enis.is_empty(), "its ENI is needed no longer");
}

#[test]
fn a_short_reservation_does_not_shorten_the_rest() {
    let mut rig = Rig::with_eni(Settings { reservation: secs(10), ..narrow() }, &IPS[..1]);
    rig.ask(1, "web");
    rig.hear(Event::Reserve { attachment: attachment("c1") });
    rig.run(secs(25));
    assert_eq!(rig.ledger.cooling.len(), 1);
    rig.run(secs(10));
    assert!(rig.ledger.cooling.is_empty());
}

#[test]
fn without_a_reservation_time_it_is_an_address_as_any_other() {
    let mut rig = Rig::with_eni(Settings { reservation: Duration::ZERO, ..narrow() }, &IPS);
    rig.ask(1, "web");
    rig.hear(Event::Reserve { attachment: attachment("c1") });
    rig.ask(2, "web");
    assert_ne!(rig.ip(2), "10.0.1.10");
    assert_eq!(rig.pool.show()["reserved"], 0);
}

#[test]
fn the_pod_waits_for_its_eni_after_a_reboot_though_others_could_be_had() {
    let mut rig = Rig::with(narrow(), |cloud, ledger| {
        put(cloud, eni("eni-a", EniState::InUse, "vsw-1", &IPS));
        ledger.cooling.insert(("eni-a".into(), IpPair::v4(v4("10.0.1.12"))), START + secs(60));
        ledger.reserved.insert(IpPair::v4(v4("10.0.1.12")), pod("web"));
    });
    rig.ask(1, "web");
    assert!(rig.replies.is_empty(), "its link is not there yet");
    rig.run(secs(1));
    assert_eq!(rig.ip(1), "10.0.1.12");
}

#[test]
fn an_address_that_is_gone_is_not_waited_for() {
    let mut rig = rig();
    rig.cloud.enis.get_mut("eni-a").unwrap().v4.retain(|ip| *ip != v4("10.0.1.10"));
    rig.run(secs(200));
    rig.ask(2, "web");
    assert_eq!(rig.ip(2), "10.0.1.11");
}

#[test]
fn of_two_addresses_the_one_that_the_pod_had_last_is_its_own() {
    let mut rig = rig();
    // The newer sandbox came before the older one had gone.
    rig.ask(2, "web");
    rig.ask(3, "web");
    rig.hear(Event::Reserve { attachment: attachment("c2") });
    rig.run(secs(10));
    rig.hear(Event::Reserve { attachment: attachment("c3") });
    rig.ask(4, "web");
    assert_eq!(rig.ip(4), rig.ip(3));
}

#[test]
fn whoever_dies_between_lease_and_reservation_finds_the_lease() {
    let mut rig = rig();
    let deadline = rig.now + secs(5);
    let effects = rig
        .pool
        .step(rig.now, Event::Allocate { ticket: 2, pod: pod("web"), sandbox: sandbox("c2"), whole: false, deadline });
    assert!(matches!(&effects[..2], [Effect::Record(_), Effect::Rested { .. }]), "{effects:?}");
    rig.ledger.write(rig.now, &effects[0]);
    let boot = rig.ledger.boot(narrow(), &rig.cloud);
    rig.pool = Pool::new(8);
    rig.hear(Event::Boot(Box::new(boot)));
    assert!(rig.ledger.cooling.is_empty() && rig.ledger.leases.len() == 1);
}

/// A node that is to give each pod an ENI to itself, with what is left of an earlier life in which pods shared: on its one ENI, `web`
/// and `db` have each had a secondary address, which is kept.
fn shared_before(own: &[&str]) -> Rig {
    let limits = Limits { adapters: 3, v4_per_adapter: 3, v6_per_adapter: 0 };
    Rig::with(Settings { whole: true, limits, max_enis: 2, cooldown: secs(60), ..narrow() }, |cloud, ledger| {
        put(cloud, eni("eni-a", EniState::InUse, "vsw-1", &IPS));
        ledger.shares_no_more = true;
        for (name, ip) in ["web", "db"].into_iter().zip(own) {
            ledger.cooling.insert(("eni-a".into(), IpPair::v4(v4(ip))), START + secs(300));
            ledger.reserved.insert(IpPair::v4(v4(ip)), pod(name));
        }
    })
}

fn home(rig: &Rig, ticket: Ticket) -> String {
    rig.replies[&ticket].1.as_ref().unwrap().eni.clone()
}

#[test]
fn where_pods_share_no_more_addresses_of_a_shared_eni_are_kept_for_nobody() {
    let mut rig = shared_before(&IPS[1..]);
    rig.ask_within(1, "web", secs(120));
    rig.ask_within(2, "db", secs(120));
    rig.run(secs(120));
    assert_ne!(home(&rig, 1), home(&rig, 2));
    assert!(!IPS[1..].contains(&rig.ip(1).as_str()) && !IPS[1..].contains(&rig.ip(2).as_str()));
    assert!(rig.ledger.reserved.is_empty(), "{:?}", rig.ledger.reserved);
}

#[test]
fn where_pods_share_no_more_the_address_of_a_whole_eni_is_kept_once_nobody_elses_rests_there() {
    let mut rig = shared_before(&IPS[..2]);
    rig.run(secs(1));
    // Of its ENI another pod's address rests still: it gets another one.
    rig.ask_within(1, "web", secs(50));
    rig.run(secs(50));
    assert_ne!(home(&rig, 1), "eni-a");
    rig.del(1);
    rig.run(secs(20));
    rig.ask_within(2, "web", secs(20));
    assert_eq!((rig.ip(2).as_str(), home(&rig, 2).as_str()), (IPS[0], "eni-a"));
}

#[test]
fn an_eni_that_pods_shared_is_one_pods_where_each_has_one() {
    let mut rig = shared_before(&[]);
    rig.run(secs(1));
    rig.ask_within(1, "web", secs(50));
    rig.ask_within(2, "db", secs(50));
    rig.run(secs(50));
    assert_eq!(rig.ip(1), IPS[0]);
    assert_ne!(home(&rig, 2), "eni-a");
}
