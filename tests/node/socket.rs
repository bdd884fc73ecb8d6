//! The daemon's socket against those who do not know its words, or should not be there.

use std::fs;
use std::io::{Read, Write};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{node, nothing, shown};
use crate::sim::cluster::{Cluster, soon};
use crate::sim::traffic::Place;

const SOCKET: &str = "/var/run/eni/eni.socket";

/// The most that the daemon has held in memory since this was asked the last time, in kilobytes.
fn peak(cluster: &mut Cluster) -> u64 {
    let process = format!("/proc/{}", cluster.daemon(0).pid());
    let status = fs::read_to_string(format!("{process}/status")).unwrap();
    fs::write(format!("{process}/clear_refs"), "5").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn refusal(reply: &str) -> Value {
    let reply: Value = serde_json::from_str(reply).unwrap_or_else(|e| panic!("{e}: {reply:?}"));
    assert_eq!(reply["refused"]["why"], "bad_request", "{reply}");
    reply["refused"]["reason"].clone()
}

#[test]
fn rubbish_is_refused_with_a_reason_and_the_daemon_goes_on() {
    let mut cluster = node(&nothing());
    for words in [
        "hello\n",
        "\n",
        "{}\n",
        "null\n",
        "[[[[\n",
        "\u{0}\u{1}\u{2}\n",
        "{\"make_coffee\": {}}\n",
        "{\"allocate\": {}}\n",
        "{\"allocate\": {\"pod\": \"web\", \"sandbox\": 7}}\n",
        "{\"release\": {\"attachment\": [1, 2, 3]}}\n",
        "{\"release\": {\"attachment\": {\"container\": \"x\"}}}\n",
        "{\"gc\": {\"network\": \"terway\", \"valid\": {\"container\": \"x\", \"ifname\": \"eth0\"}}}\n",
        "{\"status\": {}, \"show\": {}}\n",
        "{\"status\": {}} {\"status\": {}}\n",
    ] {
        let reason = refusal(&cluster.say(0, words.as_bytes()));
        assert!(reason.as_str().unwrap().starts_with("not a request we know: "), "{words:?}: {reason}");
    }
    let deep = format!("{}\n", "[".repeat(500_000));
    refusal(&cluster.say(0, deep.as_bytes()));
    refusal(&cluster.say(0, b"\xff\xfe\xfd\n"));
    assert!(cluster.daemon(0).is_running());
    assert!(!cluster.log(0).contains("panicked"));
    cluster.add(0, "web");
}

#[test]
fn an_endless_line_is_cut_off_and_costs_no_memory() {
    let mut cluster = node(&nothing());
    peak(&mut cluster);
    let before = peak(&mut cluster);
    let line = vec![b'x'; 10 << 20];
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| cluster.say(0, &line));
        }
    });
    let grown = peak(&mut cluster).saturating_sub(before);
    assert!(grown < 20_000, "{grown} kB more");
    assert_eq!(cluster.say(0, b"{\"status\":{}}\n"), "{\"ready\":{}}\n");
}

#[test]
fn the_silent_and_the_slow_are_hung_up_on_and_keep_nobody_waiting() {
    let cluster = node(&nothing());
    soon("an ADD needs nothing of the cloud", || shown(&cluster, "/pool/idle").as_u64() >= Some(1));
    let mut silent: Vec<_> = (0..200).map(|_| cluster.dial(0)).collect();
    let mut half = cluster.dial(0);
    half.write_all(b"{\"status\":").unwrap();
    let start = Instant::now();
    cluster.add(0, "web");
    assert!(start.elapsed() < Duration::from_secs(4), "an ADD took {:?}", start.elapsed());

    let mut heard = String::new();
    half.read_to_string(&mut heard).unwrap();
    assert_eq!(refusal(&heard), "no complete line within 5 s");
    heard.clear();
    silent.pop().unwrap().read_to_string(&mut heard).unwrap();
    assert_eq!(refusal(&heard), "no complete line within 5 s");
    assert!(start.elapsed() < Duration::from_secs(20));
    assert_eq!(cluster.say(0, b"{\"status\":{}}\n"), "{\"ready\":{}}\n");
}

#[test]
fn a_client_that_goes_away_in_the_middle_leaves_nothing() {
    let cluster = node(&nothing());
    for words in ["", "{\"sta", "{\"show\":{}}", "{\"show\":{}}\n"] {
        for _ in 0..50 {
            cluster.dial(0).write_all(words.as_bytes()).unwrap();
        }
    }
    assert_eq!(cluster.say(0, b"{\"status\":{}}\n"), "{\"ready\":{}}\n");
    assert_eq!(shown(&cluster, "/pool/waiting"), json!([]));
}

#[test]
fn nobody_but_root_is_heard() {
    let cluster = node(&nothing());
    let as_nobody = |line: &str| {
        let words = ["--reuid=65534", "--regid=65534", "--clear-groups", "--", "/opt/terway/terway-cli", line];
        let done = cluster.node(0).output(Command::new("setpriv").args(words));
        assert!(!done.status.success());
        String::from_utf8(done.stderr).unwrap()
    };
    let said = as_nobody("show");
    assert!(said.contains("permission denied"), "{said}");
    assert_eq!(cluster.node(0).sh(&format!("stat -c %a {SOCKET}")), "600\n");

    // Somebody opened the file to all: then the daemon itself looks who asks.
    cluster.node(0).sh(&format!("chmod 755 $(dirname {SOCKET}); chmod 666 {SOCKET}"));
    let said = as_nobody("show");
    assert!(said.contains("user 65534 may not ask, only root"), "{said}");
    assert_eq!(shown(&cluster, "/pool/leased"), 0);
}
