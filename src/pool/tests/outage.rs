//! How often the cloud is called before, in and after a long outage, under the same work.

use super::*;

/// Six pods come every forty seconds and go after twenty: more than is kept warm, so each wave costs calls.
fn waves(rig: &mut Rig, count: u64, first: &mut u64) -> u32 {
    let mut served = 0;
    for _ in 0..count {
        let tickets = *first..*first + 6;
        *first += 6;
        tickets.clone().for_each(|n| rig.add(n, secs(19)));
        rig.run(secs(20));
        served += tickets.clone().filter(|n| rig.replies.get(n).is_some_and(|(_, r)| r.is_ok())).count() as u32;
        tickets.for_each(|n| rig.del(n));
        rig.run(secs(20));
    }
    served
}

/// Calls in each ten minutes of an hour of such work.
fn hour(rig: &mut Rig, first: &mut u64) -> (Vec<usize>, u32) {
    let mut served = 0;
    let windows = (0..6).map(|_| {
        let before = rig.calls.len();
        served += waves(rig, 15, first);
        rig.calls.len() - before
    });
    (windows.collect(), served)
}

#[test]
fn a_cloud_that_is_back_is_called_at_most_a_fifth_more_often_than_before() {
    let limits = Limits { adapters: 4, v4_per_adapter: 10, v6_per_adapter: 0 };
    let few = Settings { limits, min_idle: 1, max_idle: 2, cooldown: secs(30), ..settings() };
    let mut rig = Rig::new(few);
    let mut first = 1;
    hour(&mut rig, &mut first);
    let (steady, served) = hour(&mut rig, &mut first);
    assert_eq!(served, 6 * 15 * 6);
    rig.says.insert("any", FaultKind::Unknown);
    let (dead, served) = hour(&mut rig, &mut first);
    assert!(served > 0, "the pool serves what it has");
    rig.says.clear();
    let (after, _) = hour(&mut rig, &mut first);
    let most = *steady.iter().max().unwrap();
    println!("calls in ten minutes: steady {steady:?}, dead {dead:?}, after {after:?}");
    assert!(most > 30, "this work costs next to nothing: {steady:?}");
    assert!(dead.iter().all(|calls| *calls * 3 < most), "{dead:?} calls in the outage, {steady:?} before");
    assert!(after.iter().all(|calls| *calls * 10 <= most * 12), "{after:?} calls after the outage, {steady:?} before");
    let (_, served) = hour(&mut rig, &mut first);
    assert_eq!(served, 6 * 15 * 6);
}

#[test]
fn an_outage_that_ends_is_no_rush_in_its_first_minute_either() {
    let limits = Limits { adapters: 4, v4_per_adapter: 10, v6_per_adapter: 0 };
    let few = Settings { limits, min_idle: 1, max_idle: 2, cooldown: secs(30), ..settings() };
    let mut rig = Rig::new(few);
    let mut first = 1;
    hour(&mut rig, &mut first);
    let start = rig.now;
    hour(&mut rig, &mut first);
    let minute = |rig: &Rig, from: Now| rig.calls.iter().filter(|(at, _)| *at >= from && *at < from + secs(60)).count();
    let steady = (0..60).map(|m| minute(&rig, start + secs(60 * m))).max().unwrap();
    rig.says.insert("any", FaultKind::Unknown);
    hour(&mut rig, &mut first);
    rig.says.clear();
    let back = rig.now;
    hour(&mut rig, &mut first);
    let after: Vec<usize> = (0..10).map(|m| minute(&rig, back + secs(60 * m))).collect();
    println!("calls a minute: at most {steady} before, {after:?} after");
    assert!(after.iter().all(|calls| *calls * 10 <= steady * 12), "{after:?} a minute, at most {steady} before");
}

/// What people were told of the cloud since.
fn told(rig: &Rig, since: usize) -> Vec<&'static str> {
    rig.notices[since..].iter().map(|notice| notice.reason).collect()
}

#[test]
fn one_endpoint_that_is_dead_alone_is_told_of_at_its_beginning_and_its_end() {
    for dead in ["vswitches", "look all"] {
        let mut rig = Rig::with_eni(settings(), &["192.168.1.1", "192.168.1.2"]);
        rig.run(secs(3600));
        let (since, calls) = (rig.notices.len(), rig.calls.len());
        rig.says.insert(dead, FaultKind::Unknown);
        rig.run(secs(7200));
        assert_eq!(told(&rig, since), ["AllocResourceFailed"], "while {dead} fails: {:?}", &rig.notices[since..]);
        let calls = rig.calls.len() - calls;
        assert!(calls < 400, "{calls} calls in two hours in which {dead} fails");
        rig.says.clear();
        rig.run(secs(700));
        assert_eq!(told(&rig, since), ["AllocResourceFailed", "AllocIPSucceed"], "after {dead} failed");
    }
}

#[test]
fn a_node_without_work_learns_of_an_outage_and_of_its_end() {
    let mut rig = Rig::with_eni(settings(), &["192.168.1.1", "192.168.1.2"]);
    rig.run(secs(3600));
    let since = rig.notices.len();
    rig.says.insert("any", FaultKind::Unknown);
    rig.run(secs(1200));
    assert_eq!(told(&rig, since), ["AllocResourceFailed"], "{:?}", &rig.notices[since..]);
    assert!(rig.pool.lack().is_some_and(|lack| lack.reason.contains("does not answer")));
    rig.says.clear();
    rig.run(secs(100));
    assert_eq!(told(&rig, since), ["AllocResourceFailed", "AllocIPSucceed"], "{:?}", &rig.notices[since..]);
}
