//! The kubelet's side: pods come, are looked at and go, in the orderly and in the disorderly ways that runtimes know.

use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use terway::ours;
use terway::pod::PodName;

use super::story::Story;
use super::{KUBELETS, NODES};
use crate::sim::cluster::{Cluster, Member, node_name};
use crate::sim::cni::{Answer, Sandbox};
use crate::sim::fabric::OUTSIDE;
use crate::sim::kube;
use crate::sim::ns::LOOK;
use crate::sim::traffic::Place;

/// Pods that each kubelet brings to life before it is done, and at most at once.
const LIVES: usize = 8;
const AT_ONCE: usize = 3;
/// Names that its pods bear in turn, as those of a StatefulSet do.
const NAMES: usize = 5;
/// A kubelet that is not done by then stops all the same.
const SHIFT: Duration = Duration::from_secs(25);
/// In percent, the calls whose plugin is killed.
const KILLED: u8 = 20;
const ATTEMPTS: usize = 40;
/// A plugin that nobody kills answers within this time, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(100);
/// DEL does not wait for the cloud.
const DEL_PATIENCE: Duration = Duration::from_secs(20);
/// A living pod must answer one of so many pings.
const PINGS: usize = 4;

const TRY_AGAIN: u64 = 11;

pub struct Kubelet<'a> {
    cluster: &'a Cluster,
    story: &'a Story<'a>,
    number: usize,
    node: usize,
    dice: Rng,
    guests: Vec<Member>,
    /// Sandboxes that get a DEL late.
    late: Vec<Sandbox>,
    /// The name of the one pod that went without any DEL.
    vanished: Option<String>,
}

impl<'a> Kubelet<'a> {
    pub fn new(cluster: &'a Cluster, story: &'a Story<'a>, number: usize, dice: Rng) -> Kubelet<'a> {
        // Container ids are drawn from it.
        fastrand::seed(dice.clone().u64(..));
        let node = number / KUBELETS;
        assert!(node < NODES);
        Kubelet { cluster, story, number, node, dice, guests: Vec::new(), late: Vec::new(), vanished: None }
    }

    /// Gives the pods that live on.
    pub fn run(mut self) -> Vec<Member> {
        let start = Instant::now();
        let mut lives = 0;
        while lives < LIVES && start.elapsed() < SHIFT && !self.story.is_over() {
            match self.dice.u8(..10) {
                0..=4 if self.guests.len() < AT_ONCE => lives += usize::from(self.arrive()),
                5..=7 => self.depart(),
                8 => self.bury_one(),
                _ => self.look(),
            }
            self.pause(120);
        }
        for sandbox in std::mem::take(&mut self.late) {
            self.delete(&sandbox);
        }
        self.guests
    }

    // Coming.

    fn arrive(&mut self) -> bool {
        let taken = |name: &String| self.guests.iter().any(|g| g.sandbox.pod.name == *name);
        let names = (0..NAMES).map(|i| format!("k{}-{i}", self.number));
        let free: Vec<String> = names.filter(|name| !taken(name) && self.vanished.as_ref() != Some(name)).collect();
        let name = &free[self.dice.usize(..free.len())];
        self.story.note(format!("pod {name} is scheduled"));
        let member = self.cluster.schedule(self.node, name);
        self.bring_up(member)
    }

    /// ADD until it succeeds, as the kubelet does: usually DEL and a new sandbox in between.
    fn bring_up(&mut self, mut member: Member) -> bool {
        for _ in 0..ATTEMPTS {
            let answer = self.call(&member.sandbox, "ADD");
            if answer.code == Some(0) {
                self.welcome(member, &answer);
                return true;
            }
            if self.story.is_over() {
                break;
            }
            match self.dice.u8(..10) {
                0 => {}
                1..=2 => self.delete(&member.sandbox),
                _ => {
                    self.delete(&member.sandbox);
                    member = self.cluster.sandbox(self.node, member.sandbox.pod.clone());
                }
            }
            self.pause(500);
        }
        self.story.note(format!("{} never came up", who(&member.sandbox)));
        self.delete(&member.sandbox);
        self.unschedule(&member.sandbox);
        false
    }

    fn welcome(&mut self, mut member: Member, answer: &Answer) {
        let result = answer.json();
        let address = result["ips"][0]["address"].as_str().unwrap_or_default();
        member.ip = address.split('/').next().unwrap_or_default().into();
        self.story.holds(&member.ip, &who(&member.sandbox));
        reach(self.cluster, self.story, &member);
        self.guests.push(member);
    }

    // Staying.

    fn look(&mut self) {
        if self.guests.is_empty() {
            return;
        }
        let guest = &self.guests[self.dice.usize(..self.guests.len())];
        let answer = self.cluster.call_for(guest, "CHECK");
        let who = who(&guest.sandbox);
        self.story.note(format!("CHECK {who} {:?} {}", answer.code, answer.stdout));
        let daemon_is_down = answer.code != Some(0) && answer.json()["code"] == TRY_AGAIN;
        if answer.code != Some(0) && !daemon_is_down {
            self.story.fail(&[&who, &guest.ip], format!("CHECK {who} {}: {answer:?}", guest.ip));
        }
        reach(self.cluster, self.story, guest);
    }

    // Going.

    fn depart(&mut self) {
        if self.guests.is_empty() {
            return;
        }
        let guest = self.guests.swap_remove(self.dice.usize(..self.guests.len()));
        match self.dice.u8(..12) {
            0 => self.depart_twice(guest),
            1..=2 => self.depart_without_netns(guest),
            3..=4 => self.succeed(guest),
            5 => self.depart_late(guest),
            6..=8 if self.vanished.is_none() => self.vanish(guest),
            n => self.depart_in_order(guest, n % 2 == 0),
        }
    }

    fn depart_in_order(&mut self, guest: Member, object_first: bool) {
        self.end_of(&guest);
        if object_first {
            self.unschedule(&guest.sandbox);
        }
        self.delete(&guest.sandbox);
        self.unschedule(&guest.sandbox);
    }

    fn depart_twice(&mut self, guest: Member) {
        self.end_of(&guest);
        self.delete(&guest.sandbox);
        self.unschedule(&guest.sandbox);
        if self.dice.bool() {
            self.delete(&guest.sandbox);
        } else {
            self.late.push(guest.sandbox.clone());
        }
    }

    fn depart_without_netns(&mut self, guest: Member) {
        self.end_of(&guest);
        let Member { pod, mut sandbox, .. } = guest;
        pod.remove();
        if self.dice.bool() {
            sandbox.netns = "".into();
        }
        self.delete(&sandbox);
        self.unschedule(&sandbox);
    }

    /// A pod of the same name comes up before the old sandbox is deleted.
    fn succeed(&mut self, guest: Member) {
        self.end_of(&guest);
        self.unschedule(&guest.sandbox);
        self.story.note(format!("{} is succeeded by another of its name", who(&guest.sandbox)));
        let successor = self.cluster.schedule(self.node, &guest.sandbox.pod.name);
        self.bring_up(successor);
        self.delete(&guest.sandbox);
    }

    fn depart_late(&mut self, guest: Member) {
        self.end_of(&guest);
        self.unschedule(&guest.sandbox);
        self.late.push(guest.sandbox.clone());
    }

    fn bury_one(&mut self) {
        if !self.late.is_empty() {
            let sandbox = self.late.swap_remove(self.dice.usize(..self.late.len()));
            self.delete(&sandbox);
        }
    }

    /// No DEL comes; perhaps a pod of its name comes up on another node, or here.
    fn vanish(&mut self, guest: Member) {
        self.end_of(&guest);
        self.story.note(format!("{} vanishes", who(&guest.sandbox)));
        self.unschedule(&guest.sandbox);
        let Member { pod, sandbox, .. } = guest;
        pod.remove();
        let PodName { namespace, name } = sandbox.pod;
        match self.dice.u8(..3) {
            0 => {
                self.cluster.kube.put(kube::pod(&namespace, &name, &node_name((self.node + 1) % NODES)));
            }
            1 => {
                let successor = self.cluster.schedule(self.node, &name);
                self.bring_up(successor);
            }
            _ => {}
        }
        self.vanished = Some(name);
    }

    fn end_of(&mut self, guest: &Member) {
        reach(self.cluster, self.story, guest);
        self.story.ends(&guest.ip, &who(&guest.sandbox));
    }

    fn unschedule(&mut self, sandbox: &Sandbox) {
        self.cluster.kube.delete("Pod", &sandbox.pod.namespace, &sandbox.pod.name);
    }

    /// DEL until it succeeds, which it must soon.
    fn delete(&mut self, sandbox: &Sandbox) {
        for _ in 0..ATTEMPTS {
            if self.call(sandbox, "DEL").code == Some(0) {
                return;
            }
            self.pause(100);
        }
        let who = who(sandbox);
        self.story.fail(&[&who], format!("{ATTEMPTS} times DEL {who} did not succeed"));
    }

    fn call(&mut self, sandbox: &Sandbox, verb: &str) -> Answer {
        let kill = self.dice.u8(..100) < KILLED;
        // Most often early: an ADD takes some 20 ms.
        let after = Duration::from_secs_f64(0.1 * self.dice.f64().powi(3));
        let patience = if kill { after } else { PATIENCE };
        call(self.cluster, self.story, self.node, sandbox, verb, patience)
    }

    fn pause(&mut self, most: u64) {
        thread::sleep(Duration::from_millis(self.dice.u64(..=most)));
    }
}

/// An orderly end in fair weather.
pub fn end(cluster: &Cluster, story: &Story, guest: Member) {
    story.ends(&guest.ip, &who(&guest.sandbox));
    let answer = call(cluster, story, guest.node, &guest.sandbox, "DEL", PATIENCE);
    if answer.code != Some(0) {
        story.fail(&[&who(&guest.sandbox)], format!("DEL in fair weather: {answer:?}"));
    }
    cluster.kube.delete("Pod", &guest.sandbox.pod.namespace, &guest.sandbox.pod.name);
}

/// All is as it should be with a pod that lives, in fair weather.
pub fn inspect(cluster: &Cluster, story: &Story, guest: &Member) {
    let (who, ip) = (who(&guest.sandbox), &guest.ip);
    let answer = cluster.call_for(guest, "CHECK");
    if answer.code != Some(0) {
        story.fail(&[&who, ip], format!("CHECK {who} {ip}: {answer:?}"));
    }
    let inside = guest.pod.sh("ip -4 -o addr show dev eth0");
    if !inside.contains(&format!("inet {ip}/32 ")) {
        story.fail(&[&who, ip], format!("{who} should have {ip} and has {inside}"));
    }
    reach(cluster, story, guest);
}

/// The node reaches the pod, and the pod reaches the world by its ENI.
fn reach(cluster: &Cluster, story: &Story, guest: &Member) {
    let there = || cluster.node(guest.node).ping(&guest.ip).is_some();
    let out = || guest.pod.ping(OUTSIDE).is_some();
    let any = |ping: &dyn Fn() -> bool| (0..PINGS).any(|_| ping());
    let who = who(&guest.sandbox);
    if !any(&there) {
        story.fail(&[&who, &guest.ip], format!("its node does not reach {who} at {}", guest.ip));
    }
    if !any(&out) {
        tell(cluster, story, guest);
        story.fail(&[&who, &guest.ip], format!("{who} with {} does not reach the world", guest.ip));
    }
}

/// What the kernel has on the way out of a pod.
fn tell(cluster: &Cluster, story: &Story, guest: &Member) {
    let link = ours::host_veth(&guest.sandbox.pod, &guest.sandbox.ifname);
    let commands = [
        LOOK.to_string(),
        format!("ip -s link show dev {link}; tc -s qdisc show dev {link}; tc -s filter show dev {link} ingress"),
        "iptables-save -c".to_string(),
    ];
    for command in commands {
        let told = cluster.node(guest.node).sh(&format!("{command} 2>&1 || true"));
        story.note(format!("* $ {command}\n{told}"));
    }
    let inside = guest.pod.sh(&format!("{LOOK}; ip -s link; tc qdisc"));
    story.note(format!("* inside {}\n{inside}", who(&guest.sandbox)));
    let ways = cluster.world.fabric.drops();
    story.note(format!("* dropped by the VPC: {ways:?}"));
}

fn call(cluster: &Cluster, story: &Story, n: usize, sandbox: &Sandbox, verb: &str, patience: Duration) -> Answer {
    let who = who(sandbox);
    story.note(format!("{verb} {who} ..."));
    let answer = cluster.node(n).run(|| sandbox.call_within(verb, patience));
    let took = answer.took;
    match answer.code {
        None if patience < PATIENCE => story.called(format!("{verb} {who}: kill -9 after {took:?}")),
        code => story.called(format!("{verb} {who}: {code:?} after {took:?} {}", answer.stdout)),
    }
    let limit = if verb == "DEL" { DEL_PATIENCE } else { PATIENCE };
    if took > limit {
        story.fail(&[&who], format!("{verb} {who} took {took:?}"));
    }
    if !is_in_form(&answer, verb, patience) {
        story.fail(&[&who], format!("{verb} {who}: {answer:?}"));
    }
    answer
}

/// Success is a result or silence, failure is an error object; only a plugin that was killed says nothing.
fn is_in_form(answer: &Answer, verb: &str, patience: Duration) -> bool {
    let json: Option<serde_json::Value> = serde_json::from_str(&answer.stdout).ok();
    match (answer.code, json) {
        (None, _) => patience < PATIENCE,
        (Some(0), None) => verb != "ADD" && answer.stdout.is_empty(),
        (Some(0), Some(result)) => verb == "ADD" && result["ips"][0]["address"].is_string(),
        (Some(_), Some(error)) => error["code"].is_u64() && error["msg"].is_string(),
        (Some(_), None) => false,
    }
}

fn who(sandbox: &Sandbox) -> String {
    format!("{}/{}", sandbox.pod.name, &sandbox.container[..12])
}
