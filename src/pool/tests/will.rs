//! What a life leaves to the next one.

use super::*;

/// One ENI with three addresses, of which one is leased.
fn rig() -> Rig {
    let mut rig = Rig::with_eni(Settings { max_idle: 9, ..settings() }, &["10.0.1.10", "10.0.1.11", "10.0.1.12"]);
    rig.add(1, secs(10));
    rig.run(secs(5));
    rig
}

fn will(rig: &Rig) -> Option<Will> {
    rig.pool.will(&rig.cloud.this_nodes())
}

/// The next life, which goes by this will.
fn heir(mut rig: Rig, will: Will) -> Rig {
    let boot = rig.ledger.boot(Settings { max_idle: 9, ..settings() }, &rig.cloud);
    rig.pool = Pool::new(8);
    rig.calls.clear();
    rig.hear(Event::Boot(Box::new(Boot { enis: will.enis, willed: true, ..boot })));
    rig
}

#[test]
fn a_life_that_goes_by_a_will_serves_before_the_cloud_has_answered_and_looks_soon() {
    let rig = rig();
    let will = will(&rig).unwrap();
    assert_eq!(will.enis, rig.cloud.this_nodes());
    assert!(will.until > rig.now && will.until <= rig.now + secs(180));
    let mut rig = heir(rig, will);
    rig.run(Duration::from_millis(110));
    rig.add(2, secs(10));
    assert_eq!(rig.ip(2), "10.0.1.11");
    assert!(rig.calls.is_empty());
    rig.run(secs(1));
    assert_eq!(rig.kinds(), ["look all"]);
}

#[test]
fn what_was_taken_away_in_between_is_noticed_by_the_first_look() {
    let rig = rig();
    let will = will(&rig).unwrap();
    let mut rig = heir(rig, will);
    rig.cloud.enis.get_mut("eni-a").unwrap().v4.truncate(1);
    rig.run(secs(3));
    assert_eq!(rig.pool.show()["idle"], 0);
}

#[test]
fn no_eni_is_made_before_the_first_look() {
    let mut rig = rig();
    rig.add(2, secs(10));
    rig.add(3, secs(10));
    let will = will(&rig).unwrap();
    let mut rig = heir(rig, will);
    for n in 4..9 {
        rig.add(n, secs(60));
    }
    rig.run(secs(20));
    let first = |what: &str| rig.kinds().iter().position(|kind| *kind == what).unwrap();
    assert!(first("look all") < first("create"), "{:?}", rig.kinds());
}

#[test]
fn nothing_is_left_while_anything_is_on_its_way() {
    let mut rig = rig();
    for n in 2..6 {
        rig.add(n, secs(60));
    }
    while rig.count("assign") == 0 {
        rig.run(Duration::from_millis(100));
    }
    assert_eq!(will(&rig), None);
    rig.run(secs(30));
    assert!(will(&rig).is_some());
    rig.hear(Event::LinkGone { eni: "eni-a".into() });
    assert_eq!(will(&rig), None);
}

#[test]
fn an_address_that_is_leaving_is_not_left_to_anybody() {
    let ips = ["10.0.1.10", "10.0.1.11", "10.0.1.12"];
    let mut rig = Rig::with_eni(Settings { max_idle: 1, ..settings() }, &ips);
    rig.add(1, secs(10));
    rig.run(secs(1));
    while rig.count("unassign") == 0 {
        rig.run(Duration::from_millis(100));
    }
    assert_eq!(will(&rig), None);
    rig.run(secs(5));
    let v4 = will(&rig).unwrap().enis[0].v4.len();
    assert_eq!((v4, rig.cloud.enis["eni-a"].v4.len()), (2, 2));
}

#[test]
fn an_eni_that_nobody_has_looked_at_is_not_left_to_anybody() {
    let rig = rig();
    assert_eq!(rig.pool.will(&[]), None);
}
