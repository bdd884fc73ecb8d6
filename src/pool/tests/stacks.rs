//! What the pool promises where pods have IPv6 addresses, alone or beside those of IPv4.

use super::*;
use crate::eni::EniState::InUse;

fn dual() -> Settings {
    let limits = Limits { v6_per_adapter: 6, ..settings().limits };
    Settings { stack: Stack::Dual, limits, ..settings() }
}

fn with_v6(cloud: &mut Cloud) {
    cloud.add_v6("vsw-1", 1, 100);
    cloud.add_v6("vsw-2", 2, 100);
}

fn v6(cloud: &mut Cloud, id: &str, ips: &[&str]) {
    let ips: Vec<_> = ips.iter().map(|ip| ip.parse().unwrap()).collect();
    let eni = cloud.enis.get_mut(id).unwrap();
    cloud.free6.get_mut(&eni.vswitch).unwrap().retain(|ip| !ips.contains(ip));
    eni.v6.extend(ips);
}

/// A rig with an attached ENI `eni-a` that has these addresses.
fn rig(settings: Settings, v4s: &[&str], v6s: &[&str]) -> Rig {
    let mut rig = Rig::with(settings, |cloud, _| {
        with_v6(cloud);
        put(cloud, eni("eni-a", InUse, "vsw-1", v4s));
        v6(cloud, "eni-a", v6s);
    });
    rig.run(secs(1));
    rig
}

fn changes(rig: &Rig) -> Vec<&'static str> {
    rig.kinds().into_iter().filter(|kind| !["look", "look all", "vswitches"].contains(kind)).collect()
}

#[test]
fn a_pod_gets_an_address_of_each_family() {
    let mut rig = rig(dual(), &["10.0.1.10", "10.0.1.11"], &["fd00:0:0:1::a", "fd00:0:0:1::b"]);
    rig.add(1, secs(10));
    rig.add(2, secs(10));
    assert_eq!((rig.ip(1), rig.ip(2)), ("10.0.1.10,fd00:0:0:1::a".into(), "10.0.1.11,fd00:0:0:1::b".into()));
    rig.del(1);
    rig.run(secs(100));
    assert_eq!(rig.ledger.cooling.len(), 1);
    rig.run(secs(40));
    assert!(rig.ledger.cooling.is_empty());
}

#[test]
fn a_batch_of_pairs_costs_one_call_for_each_family() {
    let mut rig = rig(Settings { max_idle: 0, ..dual() }, &["10.0.1.10"], &["fd00:0:0:1::a"]);
    for n in 1..=6 {
        rig.add(n, secs(30));
    }
    rig.run(secs(5));
    assert_eq!(changes(&rig), ["assign", "assign v6"]);
    assert!((1..=6).all(|n| rig.replies[&n].1.is_ok()));
}

#[test]
fn an_eni_is_made_with_both_families_in_one_call() {
    let mut rig = Rig::with(dual(), |cloud, _| with_v6(cloud));
    for n in 1..=3 {
        rig.add(n, secs(60));
    }
    rig.run(secs(30));
    let Call::Create { addresses, v6, .. } = &rig.calls[0].1 else { panic!("{:?}", rig.calls) };
    assert_eq!((*addresses, *v6), (5, 5));
    assert!((1..=3).all(|n| rig.replies[&n].1.is_ok()));
}

#[test]
fn half_a_pair_is_not_leased_but_completed_first() {
    let ipv4 = &["10.0.1.10", "10.0.1.11", "10.0.1.12"];
    let mut rig = rig(Settings { max_idle: 0, ..dual() }, ipv4, &[]);
    rig.add(1, secs(30));
    assert!(rig.replies.is_empty());
    rig.run(secs(3));
    assert_eq!(changes(&rig), ["assign v6"]);
    assert_eq!(rig.ip(1), "10.0.1.10,fd00:0:0:1::1");
}

#[test]
fn what_has_no_counterpart_is_unassigned_when_nobody_wants_it() {
    let ipv4 = &["10.0.1.10", "10.0.1.11", "10.0.1.12"];
    let mut rig = rig(Settings { min_enis: 1, ..dual() }, ipv4, &["fd00:0:0:1::a"]);
    rig.run(secs(20));
    assert_eq!(changes(&rig), ["unassign"]);
    assert_eq!((rig.cloud.enis["eni-a"].v4.len(), rig.cloud.enis["eni-a"].v6.len()), (1, 1));
    v6(&mut rig.cloud, "eni-a", &["fd00:0:0:1::b", "fd00:0:0:1::c"]);
    rig.run(secs(300));
    assert_eq!(changes(&rig), ["unassign", "unassign v6"]);
    assert_eq!(rig.cloud.enis["eni-a"].v6.len(), 1);
}

#[test]
fn a_family_that_runs_short_is_named_and_the_other_is_given_back() {
    let tight = Settings { max_enis: 1, max_idle: 0, ..dual() };
    let mut rig = rig(tight, &["10.0.1.10"], &["fd00:0:0:1::a"]);
    rig.cloud.free6.get_mut("vsw-1").unwrap().clear();
    rig.add(1, secs(30));
    rig.add(2, secs(30));
    rig.run(secs(4));
    let refused = rig.refused(2);
    assert_eq!(refused.why, Refusal::VSwitchEmpty);
    assert!(refused.reason.starts_with("vSwitch vsw-1 has no free IPv6 address"), "{}", refused.reason);
    assert_eq!(rig.cloud.enis["eni-a"].v4.len(), 2, "asked for with the other family in mind");
    rig.run(secs(20));
    assert_eq!((rig.cloud.enis["eni-a"].v4.len(), rig.ledger.leases.len()), (1, 1));
    assert_eq!(changes(&rig), ["assign", "assign v6", "unassign"]);
}

#[test]
fn the_family_that_was_refused_is_asked_first_the_next_time() {
    let mut rig = rig(Settings { max_enis: 1, max_idle: 0, ..dual() }, &["10.0.1.10"], &["fd00:0:0:1::a"]);
    rig.says.insert("assign v6", FaultKind::EniFull);
    rig.add(1, secs(30));
    rig.add(2, secs(30));
    rig.run(secs(700));
    assert_eq!(changes(&rig), ["assign", "assign v6", "unassign"]);
    rig.add(3, secs(20));
    rig.run(secs(30));
    assert_eq!(changes(&rig)[3..], ["assign v6"]);
    rig.says.clear();
    rig.run(secs(700));
    rig.add(4, secs(20));
    rig.run(secs(30));
    assert_eq!(changes(&rig)[4..], ["assign v6", "assign"]);
    assert!(rig.replies[&4].1.is_ok());
}

#[test]
fn a_missing_right_for_one_family_is_told_as_it_is() {
    let mut rig = rig(Settings { max_enis: 1, ..dual() }, &["10.0.1.10"], &[]);
    rig.says.insert("assign v6", FaultKind::Forbidden);
    rig.add(1, secs(30));
    rig.run(secs(5));
    assert_eq!(rig.refused(1).why, Refusal::Forbidden);
    rig.run(secs(20));
    assert_eq!(rig.count("assign v6"), 1);
}

#[test]
fn an_ipv6_pod_leaves_the_enis_ipv4_address_alone() {
    let mut rig = Rig::with(Settings { stack: Stack::V6, ..dual() }, |cloud, _| with_v6(cloud));
    rig.add(1, secs(60));
    rig.run(secs(30));
    let Call::Create { addresses, v6, .. } = &rig.calls[0].1 else { panic!("{:?}", rig.calls) };
    assert_eq!((*addresses, *v6), (1, 3));
    assert_eq!(rig.replies[&1].1.as_ref().unwrap().ip.v4, None);
    assert_eq!(rig.pool.show()["capacity"], 18);
    rig.run(secs(1000));
    assert_eq!(rig.cloud.enis.values().next().unwrap().v4.len(), 1);
}

#[test]
fn a_node_that_goes_over_to_ipv6_gives_its_ipv4_addresses_back_as_pods_go() {
    let mut rig = Rig::with(Settings { stack: Stack::V6, ..dual() }, |cloud, ledger| {
        with_v6(cloud);
        put(cloud, eni("eni-a", InUse, "vsw-1", &["10.0.1.10", "10.0.1.11", "10.0.1.12"]));
        lease(ledger, "c1", "eni-a", "10.0.1.11");
    });
    rig.run(secs(60));
    assert_eq!(rig.cloud.enis["eni-a"].v4, ["10.0.1.10", "10.0.1.11"].map(v4));
    assert_eq!(rig.told("ResourceInvalid"), 0);
    rig.del(1);
    rig.run(secs(200));
    assert_eq!(rig.cloud.enis["eni-a"].v4, [v4("10.0.1.10")]);
}

#[test]
fn a_vswitch_without_ipv6_is_named_once_and_not_used() {
    let mut rig = Rig::with(dual(), |cloud, _| cloud.add_v6("vsw-2", 2, 100));
    rig.add(1, secs(60));
    rig.run(secs(30));
    assert!(matches!(&rig.calls[0].1, Call::Create { vswitch, .. } if vswitch == "vsw-2"));
    assert!(rig.replies[&1].1.is_ok());
    let told: Vec<&str> = rig.notices.iter().map(|n| n.message.as_str()).collect();
    assert_eq!(
        told,
        ["vSwitch vsw-1 is not used: it has no IPv6 CIDR block; switch IPv6 on for it, name another vSwitch, \
          or choose ip_stack ipv4"]
    );
}

#[test]
fn without_any_ipv6_an_add_is_refused_at_once_with_the_remedy() {
    let mut rig = Rig::new(dual());
    rig.add(1, secs(60));
    let refused = rig.refused(1);
    assert_eq!(refused.why, Refusal::VSwitchEmpty);
    assert!(refused.reason.contains("switch IPv6 on for it"), "{}", refused.reason);
    with_v6(&mut rig.cloud);
    rig.run(secs(700));
    rig.add(2, secs(60));
    rig.run(secs(30));
    assert!(rig.replies[&2].1.is_ok());
}

#[test]
fn an_eni_where_there_is_no_ipv6_makes_room_for_one_where_there_is() {
    let mut rig = Rig::with(Settings { max_enis: 1, ..dual() }, |cloud, _| {
        cloud.add_v6("vsw-2", 2, 100);
        put(cloud, eni("eni-a", InUse, "vsw-1", &["10.0.1.10"]));
    });
    rig.run(secs(60));
    rig.add(1, secs(60));
    rig.run(secs(30));
    assert!(!rig.cloud.enis.contains_key("eni-a"));
    assert!(rig.replies[&1].1.is_ok());
}

#[test]
fn what_the_instance_type_holds_of_one_family_bounds_the_pairs() {
    let fewer = |v6_per_adapter| Settings { limits: Limits { v6_per_adapter, ..settings().limits }, ..dual() };
    let mut rig = rig(fewer(2), &["10.0.1.10"], &["fd00:0:0:1::a"]);
    assert_eq!(rig.pool.show()["capacity"], 6);
    assert!(rig.notices[0].message.starts_with("an ENI of instance type ecs.test holds 6 IPv4 addresses and 2 IPv6"));
    rig.hear(Event::Settings(Box::new(fewer(0))));
    rig.run(secs(20));
    rig.add(1, secs(10));
    assert!(rig.replies[&1].1.is_ok(), "the pair that is there");
    rig.add(2, secs(10));
    assert_eq!(rig.refused(2).why, Refusal::Quota);
    assert!(rig.refused(2).reason.contains("instance type ecs.test can hold no IPv6 address"));
}

#[test]
fn enis_are_set_up_anew_where_ipv6_comes_and_no_pod_has_it_before() {
    let mut rig = Rig::with(Settings { max_enis: 1, ..dual() }, |cloud, ledger| {
        put(cloud, eni("eni-a", InUse, "vsw-1", &["10.0.1.10", "10.0.1.11"]));
        v6(cloud, "eni-a", &["fd00:0:0:1::a"]);
        lease(ledger, "c1", "eni-a", "10.0.1.10");
    });
    rig.run(secs(1));
    with_v6(&mut rig.cloud);
    rig.cloud.free6.get_mut("vsw-1").unwrap().retain(|ip| ip.to_string() != "fd00:0:0:1::a");
    rig.add(2, secs(60));
    rig.run(secs(60));
    assert!(rig.replies[&2].1.is_err(), "an address without a way out is leased");
    rig.effects.clear();
    rig.run(secs(1000));
    rig.add(3, secs(30));
    rig.run(secs(10));
    assert_eq!(rig.effects.iter().filter(|e| matches!(e, Effect::Prepare { .. })).count(), 1);
    assert!(rig.replies[&3].1.is_ok());
}
