//! The herald against a node object that it, a kubelet and people write to.

use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::object::{About, EventType, Patch};

const STAMP: &str = "2026-11-26T12:00:00Z";
const LATER: &str = "2026-11-26T13:00:00Z";

const fn t(secs: u64) -> Now {
    Duration::from_secs(secs)
}

fn node(status: Value) -> Node {
    let meta = json!({"name": "n1", "annotations": {"k8s.aliyun.com/other": "stays"}});
    serde_json::from_value(json!({"metadata": meta, "status": status})).unwrap()
}

fn facts(eni: Option<u32>, max: Option<&str>) -> Facts {
    Facts {
        resources: BTreeMap::from([("aliyun/eni", eni)]),
        annotations: BTreeMap::from([("k8s.aliyun.com/max-available-ip", max.map(String::from))]),
        lack: None,
    }
}

fn lacking(why: Refusal, reason: &str) -> Facts {
    Facts { lack: Some(Lack { why, reason: reason.into() }), ..facts(Some(3), None) }
}

fn good(since: &str) -> Value {
    json!({
        "type": "SufficientIP", "status": "True", "reason": "SufficientIP", "message": "pods can have addresses",
        "lastHeartbeatTime": since, "lastTransitionTime": since,
    })
}

/// The next request as path and body; done at once.
fn written(herald: &mut Herald, now: Now, own: &Node) -> Option<(String, Value)> {
    let write = herald.next(now, LATER, Some(own))?;
    herald.done(now, Outcome::Done);
    Some(match write {
        Write::Create { path, body } | Write::Patch { path, body, .. } => (path, body),
    })
}

fn event(about: &str, reason: &str, message: &str) -> Event {
    let about = About::pod(&PodName::new("default", about), "u1");
    Event::new(about, "n1", EventType::Warning, reason, message, humantime::parse_rfc3339(STAMP).unwrap())
}

#[test]
fn a_bare_node_gets_all_of_it_in_two_requests_and_then_none() {
    let mut herald = Herald::new(1);
    herald.publish(t(1), facts(Some(3), Some("20")));
    let bare = node(json!({"capacity": {"pods": "110"}}));
    let (path, body) = written(&mut herald, t(1), &bare).unwrap();
    assert_eq!(path, "/api/v1/nodes/n1/status");
    assert_eq!(body, json!({"status": {"capacity": {"aliyun/eni": "3"}, "conditions": [good(LATER)]}}));
    let (path, body) = written(&mut herald, t(1), &bare).unwrap();
    assert_eq!(path, "/api/v1/nodes/n1");
    assert_eq!(body, json!({"metadata": {"annotations": {"k8s.aliyun.com/max-available-ip": "20"}}}));
    assert_eq!(written(&mut herald, t(2), &bare), None);

    let mut full = node(json!({"capacity": {"pods": "110", "aliyun/eni": "3"}, "conditions": [good(LATER)]}));
    full.meta.annotations.insert("k8s.aliyun.com/max-available-ip".into(), "20".into());
    for secs in [2, 100, 10_000] {
        herald.publish(t(secs), facts(Some(3), Some("20")));
        assert_eq!(written(&mut herald, t(secs), &full), None);
        assert_eq!(herald.due(t(secs), Some(&full)), None);
    }
}

#[test]
fn what_others_wipe_is_written_again_with_growing_pauses() {
    let mut herald = Herald::new(2);
    herald.publish(t(100), facts(Some(3), None));
    let zeroed = node(json!({"capacity": {"aliyun/eni": "0"}, "conditions": [good(STAMP)]}));
    let (mut now, mut count) = (t(100), 0);
    while now < t(100 + 3600) {
        count += u32::from(written(&mut herald, now, &zeroed).is_some());
        now = herald.due(now, Some(&zeroed)).expect("it is not as it should be");
    }
    assert!((10..30).contains(&count), "{count} times in an hour");
    // It lasts, and is wiped once more: at once.
    let whole = node(json!({"capacity": {"aliyun/eni": "3"}, "conditions": [good(STAMP)]}));
    assert_eq!(written(&mut herald, now + t(1000), &whole), None);
    assert!(written(&mut herald, now + t(1001), &zeroed).is_some());
}

#[test]
fn what_is_not_to_be_there_is_removed_and_what_is_not_ours_stays() {
    let mut herald = Herald::new(3);
    herald.publish(t(1), facts(None, None));
    let left = json!({"aliyun/eni": "3", "nvidia.com/gpu": "2"});
    let mut own = node(json!({"capacity": left, "allocatable": left, "conditions": [good(STAMP)]}));
    own.meta.annotations.insert("k8s.aliyun.com/max-available-ip".into(), "20".into());
    let (_, body) = written(&mut herald, t(1), &own).unwrap();
    let none = json!({"aliyun/eni": null});
    assert_eq!(body, json!({"status": {"capacity": none, "allocatable": none}}));
    let (_, body) = written(&mut herald, t(1), &own).unwrap();
    assert_eq!(body, json!({"metadata": {"annotations": {"k8s.aliyun.com/max-available-ip": null}}}));
}

#[test]
fn the_condition_keeps_its_transition_time_until_it_changes() {
    let mut herald = Herald::new(4);
    herald.publish(t(1), lacking(Refusal::VSwitchEmpty, "vSwitch vsw-1 has no free address"));
    let own = node(json!({"capacity": {"aliyun/eni": 3}, "conditions": [good(STAMP)]}));
    let (_, body) = written(&mut herald, t(1), &own).unwrap();
    let bad = |message: &str, transition: &str| {
        json!({
            "type": "SufficientIP", "status": "False", "reason": "InsufficientIP", "message": message,
            "lastHeartbeatTime": LATER, "lastTransitionTime": transition,
        })
    };
    assert_eq!(body, json!({"status": {"conditions": [bad("vSwitch vsw-1 has no free address", LATER)]}}));
    // The same lack in an earlier life's words.
    let own = node(json!({"capacity": {"aliyun/eni": 3}, "conditions": [bad("old words", STAMP)]}));
    let (_, body) = written(&mut herald, t(10), &own).unwrap();
    assert_eq!(body, json!({"status": {"conditions": [bad("vSwitch vsw-1 has no free address", STAMP)]}}));
    // Its end is told after a while, without another word from anybody.
    let own =
        node(json!({"capacity": {"aliyun/eni": 3}, "conditions": [bad("vSwitch vsw-1 has no free address", STAMP)]}));
    herald.publish(t(20), facts(Some(3), None));
    assert_eq!(written(&mut herald, t(20), &own), None);
    assert_eq!(herald.due(t(20), Some(&own)), Some(t(30)));
    let (_, body) = written(&mut herald, t(30), &own).unwrap();
    assert_eq!(body, json!({"status": {"conditions": [good(LATER)]}}));
}

#[test]
fn without_a_node_object_nothing_is_written_to_it() {
    let mut herald = Herald::new(5);
    herald.publish(t(1), facts(Some(3), Some("20")));
    assert_eq!(herald.next(t(1), STAMP, None), None);
    assert_eq!(herald.due(t(1), None), None);
}

#[test]
fn a_server_that_does_not_answer_is_asked_less_and_less_and_then_told_the_present_state_only() {
    let mut herald = Herald::new(6);
    let bare = node(json!({}));
    let (mut now, mut count) = (t(0), 0);
    while now < t(600) {
        herald.publish(now, facts(Some(count), None));
        herald.hear(now, event("web", "AllocIPFailed", "no address"));
        if herald.next(now, STAMP, Some(&bare)).is_some() {
            count += 1;
            assert_eq!(herald.next(now, STAMP, Some(&bare)), None, "two at once");
            herald.done(now, Outcome::Unanswered);
        }
        now += t(1);
    }
    assert!((10..25).contains(&count), "{count} times in ten minutes");
    herald.publish(now, facts(Some(7), None));
    let now = now + t(61);
    let (_, body) = written(&mut herald, now, &bare).unwrap();
    assert_eq!(body["status"]["capacity"], json!({"aliyun/eni": "7"}));
    let whole = node(json!({"capacity": {"aliyun/eni": 7}, "conditions": [good(LATER)]}));
    let (path, body) = written(&mut herald, now, &whole).unwrap();
    assert_eq!((path.as_str(), body["count"].clone()), ("/api/v1/namespaces/default/events", json!(600)));
    assert_eq!(written(&mut herald, now, &whole), None);
}

#[test]
fn an_event_that_repeats_is_counted_with_growing_pauses() {
    let (mut herald, own) = (Herald::new(7), node(json!({})));
    let mut told = Vec::new();
    for secs in 0..3600 {
        herald.hear(t(secs), event("web", "AllocIPFailed", "no address"));
        if let Some((path, body)) = written(&mut herald, t(secs), &own) {
            assert!(told.is_empty() || path.starts_with("/api/v1/namespaces/default/events/web."), "{path}");
            told.push(body["count"].as_u64().unwrap());
        }
    }
    assert_eq!(told, [1, 11, 31, 71, 151, 311, 631, 1231, 1831, 2431, 3031]);
    // The last count is told although nothing more happens.
    let due = herald.due(t(3600), Some(&own)).unwrap();
    assert_eq!(written(&mut herald, due, &own).unwrap().1["count"], 3600);
    assert_eq!(herald.due(due, Some(&own)), None);
}

#[test]
fn an_event_that_the_server_has_dropped_is_made_anew() {
    let (mut herald, own) = (Herald::new(8), node(json!({})));
    herald.hear(t(0), event("web", "AllocIPFailed", "no address"));
    assert!(matches!(herald.next(t(0), STAMP, Some(&own)), Some(Write::Create { .. })));
    herald.done(t(0), Outcome::Done);
    herald.hear(t(20), event("web", "AllocIPFailed", "no address"));
    let write = herald.next(t(20), STAMP, Some(&own));
    assert!(matches!(write, Some(Write::Patch { patch: Patch::Strategic, .. })));
    herald.done(t(20), Outcome::Gone);
    let write = herald.next(t(20), STAMP, Some(&own));
    assert!(matches!(write, Some(Write::Create { body, .. }) if body["count"] == 2));
    herald.done(t(20), Outcome::Refused);
    assert_eq!(herald.due(t(20), Some(&own)), None, "what is refused is not said again");
}

#[test]
fn events_that_differ_in_words_only_become_one() {
    let (mut herald, own) = (Herald::new(9), node(json!({})));
    for i in 0..40 {
        herald.hear(t(0), event("web", "AllocIPFailed", &format!("request {i}")));
    }
    let mut told = Vec::new();
    while let Some((_, body)) = written(&mut herald, t(0), &own) {
        told.push((body["message"].as_str().unwrap().to_owned(), body["count"].as_u64().unwrap()));
    }
    assert_eq!(told.len(), 11);
    told.sort();
    assert_eq!(told[0], ("(combined from similar events): request 39".into(), 30));
}

#[test]
fn a_flood_of_events_is_let_through_in_drops() {
    let (mut herald, own) = (Herald::new(10), node(json!({})));
    let (mut count, mut seen) = (0, 0);
    for secs in 0..600 {
        for i in 0..10 {
            herald.hear(t(secs), event(&format!("web-{secs}-{i}"), "AllocIPFailed", "no address"));
        }
        while written(&mut herald, t(secs), &own).is_some() {
            count += 1;
        }
        if secs == 0 {
            seen = count;
        }
    }
    assert_eq!(seen, 10);
    assert!((300..=340).contains(&count), "{count} requests in ten minutes");
}

#[test]
fn a_pods_annotation_is_written_once_and_again_only_after_a_while() {
    let mut herald = Herald::new(11);
    let (web, other) = (PodName::new("default", "web"), PodName::new("default", "other"));
    let write = herald.note(t(0), &web, "k8s.aliyun.com/pod-ips", "10.0.0.1").unwrap();
    assert_eq!(write, Write::annotate_pod(&web, "k8s.aliyun.com/pod-ips", "10.0.0.1"));
    assert_eq!(herald.note(t(0), &other, "k", "v"), None, "one at a time");
    herald.done(t(0), Outcome::Done);
    assert_eq!(herald.note(t(1), &web, "k", "v"), None, "the watch has not told of it yet");
    assert!(herald.note(t(1), &other, "k", "v").is_some());
    herald.done(t(1), Outcome::Refused);
    let due = herald.note_due([web.clone(), other].into_iter()).unwrap();
    assert!(due >= t(1) && due <= t(4), "{due:?}");
    herald.forget_notes(|pod| *pod != web);
    assert_eq!(herald.note_due([web].into_iter()), Some(t(0)));
}
