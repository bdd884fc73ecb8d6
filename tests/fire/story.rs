//! What happened when, who holds which address, and what is told of it when a round fails.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use super::{COOLDOWN, NODES};
use crate::sim::cluster::Cluster;

const LOG: &str = "/var/log/terwayd.log";
/// How much of the daemon's log is told.
const TAIL: usize = 60;
const MOST_ABOUT: usize = 120;

pub struct Story<'a> {
    seed: u64,
    cluster: &'a Cluster,
    start: Instant,
    lines: Mutex<Vec<String>>,
    /// Words by which lines are chosen when the round fails.
    about: Mutex<BTreeSet<String>>,
    over: AtomicBool,
    calls: AtomicUsize,
    register: Mutex<Register>,
}

#[derive(Default)]
struct Register {
    /// Which living pod has an address: its ADD has succeeded, its end has not begun.
    holders: BTreeMap<String, String>,
    /// Since when nobody living has it, and who had it last.
    freed: BTreeMap<String, (Instant, String)>,
}

impl<'a> Story<'a> {
    pub fn new(seed: u64, cluster: &'a Cluster) -> Story<'a> {
        Story {
            seed,
            cluster,
            start: Instant::now(),
            lines: Mutex::default(),
            about: Mutex::default(),
            over: AtomicBool::new(false),
            calls: AtomicUsize::new(0),
            register: Mutex::default(),
        }
    }

    pub fn note(&self, line: impl AsRef<str>) {
        let line = format!("{:9.3} {}", self.start.elapsed().as_secs_f64(), line.as_ref());
        lock(&self.lines).push(line);
    }

    /// Notes an ADD or DEL.
    pub fn called(&self, line: impl AsRef<str>) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.note(line);
    }

    pub fn fail(&self, about: &[&str], what: impl AsRef<str>) -> ! {
        let what = what.as_ref();
        self.note(format!("* FAILED: {what}"));
        lock(&self.about).extend(about.iter().map(|word| word.to_string()));
        panic!("seed {}: {what}", self.seed);
    }

    /// A pod lives from now on with this address, which no other living pod may have, nor have had a moment ago.
    pub fn holds(&self, ip: &str, who: &str) {
        let mut register = lock(&self.register);
        let before = register.holders.insert(ip.into(), who.into());
        let freed = register.freed.get(ip).cloned();
        drop(register);
        if let Some(other) = before {
            self.fail(&[ip, who, &other], format!("{ip} is given to {who} while {other} lives with it"));
        }
        if let Some((at, other)) = freed.filter(|(at, other)| other != who && at.elapsed() < COOLDOWN) {
            let rest = at.elapsed();
            self.fail(&[ip, who, &other], format!("{ip} of {other} is given to {who} after a rest of {rest:?}"));
        }
    }

    /// The end of a pod begins.
    pub fn ends(&self, ip: &str, who: &str) {
        let mut register = lock(&self.register);
        register.holders.remove(ip);
        register.freed.insert(ip.into(), (Instant::now(), who.into()));
    }

    pub fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Runs one of the threads of the round; where it panics, the others end too.
    pub fn guard<T>(&self, f: impl FnOnce() -> T) -> T {
        struct Alarm<'s, 'c>(&'s Story<'c>);
        impl Drop for Alarm<'_, '_> {
            fn drop(&mut self) {
                if thread::panicking() {
                    self.0.end();
                }
            }
        }
        let alarm = Alarm(self);
        let value = f();
        drop(alarm);
        value
    }

    /// How many ADD and DEL there were.
    pub fn sum_up(&self) -> usize {
        let calls = self.calls.load(Ordering::Relaxed);
        let lines = lock(&self.lines);
        let count = |word: &str| lines.iter().filter(|line| line.contains(word)).count();
        let struck = self.cluster.world.cloud.journal().iter().filter(|call| call.trouble.is_some()).count();
        lines.iter().filter(|line| line.contains(" * the books agree")).for_each(|line| eprintln!("{line}"));
        eprintln!(
            "seed {}: {calls} ADD and DEL, {} of them and {} daemons killed, {struck} calls to the cloud troubled, {:?}",
            self.seed,
            count(": kill -9 after"),
            count(" * kill -9 of the daemon"),
            self.start.elapsed()
        );
        calls
    }

    fn tell(&self) {
        let about = lock(&self.about);
        let concerns = |line: &&String| about.iter().any(|word| line.contains(word.as_str()));
        eprintln!("--- seed {}, what happened (FIRE_SEED={} runs it again):", self.seed, self.seed);
        let lines = lock(&self.lines);
        lines.iter().filter(|l| l.contains(" * ") || about.is_empty() || concerns(l)).for_each(|l| eprintln!("{l}"));
        for n in 0..NODES {
            let log = self.cluster.node(n).read_file(LOG).unwrap_or_default();
            let lines: Vec<String> = log.lines().map(String::from).collect();
            let concerned: Vec<&String> = lines.iter().filter(concerns).collect();
            eprintln!("--- terwayd of node {n} about it:");
            concerned.iter().rev().take(MOST_ABOUT).rev().for_each(|line| eprintln!("{line}"));
            eprintln!("--- terwayd of node {n} at last:");
            lines.iter().rev().take(TAIL).rev().for_each(|line| eprintln!("{line}"));
        }
    }
}

impl Drop for Story<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.tell();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
