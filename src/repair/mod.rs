//! Which plans something that happened in the kernel may have hurt, and when each is looked at.
//!
//! Our own ADDs and DELs make most of what happens, so the answer is a look into an index, and most often "none": a link
//! that looks as it should, a route whose lease is over, a pod that is being wired. Whoever keeps undoing what we do is met
//! with growing patience.

mod pace;

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::gather::Gather;
use crate::happening::{Happening, LinkNow, Scope};
use crate::ip::Mac;
use crate::ours;
use crate::plan::{Object, Plan, Rule};
use crate::pod::Attachment;
use pace::Pace;

/// Time since the machine started.
pub type Now = Duration;

/// A flush is over when nothing more has happened for this long. Who flushes looks whether anything is left, and goes on as
/// long as we put it back.
const QUIET: Duration = Duration::from_millis(4);
/// Damage that does not end is looked at after this long all the same.
const AT_LAST: Duration = Duration::from_millis(24);
/// All that an ADD has made was heard of so long before its plan is guarded; and all of who had its address before so long after
/// its lease was given.
const LATE: Duration = Duration::from_millis(10);
/// What was taken from nobody is remembered for so long: no ADD takes longer. And so much of it.
const REMEMBERED: Duration = Duration::from_secs(5);
const MOST_REMEMBERED: usize = 256;

/// What could not be looked at is looked at again after this long, and after twice as long each time that it cannot, up to the other.
const AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// What a plan is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Node,
    Eni(String),
    Pod(Attachment),
}

/// How much of a part to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    /// What is on the node.
    Outside,
    /// In the pod's namespace as well.
    Inside,
}

/// By what a happening leads to a plan.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Trace {
    Link(String),
    Route(u32, IpNet),
    Rule(Rule),
    Neigh(String, IpAddr),
    /// Kernel parameters: a link's name, `all` or `default`.
    Parameter(String),
}

/// What a link should look like.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Wanted {
    mac: Option<Mac>,
    mtu: Option<u32>,
    alias: Option<String>,
    running: bool,
}

struct Guarded {
    /// In order.
    traces: Vec<Arc<Trace>>,
    /// What happened before may be our own doing.
    from: Now,
    /// It takes the place of another plan: what that one had may go.
    anew: bool,
}

/// Who may have done what was heard while a plan is being made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doer {
    /// Whoever makes the plan does this as well.
    Anybody,
    /// Whoever makes a plan where there was none takes nothing away.
    Others,
}

struct Hurt {
    due: Now,
    depth: Depth,
}

/// All plans that are kept as they are, and which of them are to be looked at.
#[derive(Default)]
pub struct Repair {
    parts: BTreeMap<Arc<Part>, Guarded>,
    /// Most traces lead to one part: a set for each would be a kilobyte of a pod's memory.
    index: BTreeMap<Arc<Trace>, Vec<Arc<Part>>>,
    wanted: BTreeMap<String, Wanted>,
    /// The names of all links, as the kernel last told them.
    names: BTreeMap<u32, String>,
    hurt: BTreeMap<Part, Hurt>,
    /// What was taken that no plan is known to have: one that is being made may.
    taken: VecDeque<(Now, Trace)>,
    /// The first damage that was not looked at, and the last.
    stir: Option<(Now, Now)>,
    /// So many looks in a row have left something out.
    failures: u32,
    paces: BTreeMap<Part, Pace>,
}

impl Repair {
    /// Keeps the plan from now on, or another one for the same part.
    pub fn guard(&mut self, part: Part, plan: &Plan, from: Now) {
        let mut traces: Vec<Trace> = plan.host.iter().flat_map(traces).collect();
        traces.sort();
        traces.dedup();
        if !self.guard_on(&part, &traces, from) {
            let anew = self.guards(&part);
            self.unindex(&part);
            let part = Arc::new(part);
            let traces = traces.into_iter().map(|trace| self.lead(trace, &part)).collect();
            self.parts.insert(part, Guarded { traces, from, anew });
        }
        for object in &plan.host {
            self.want(object);
        }
    }

    /// Whether the part is guarded and the same leads to its new plan: an ENI is guarded anew at each comparison.
    fn guard_on(&mut self, part: &Part, traces: &[Trace], from: Now) -> bool {
        let Some(guarded) = self.parts.get_mut(part) else { return false };
        if !guarded.traces.iter().map(|trace| &**trace).eq(traces) {
            return false;
        }
        (guarded.from, guarded.anew) = (from, true);
        for trace in traces.iter().filter(|trace| self.index.get(*trace).is_some_and(|parts| parts.len() == 1)) {
            if let Trace::Link(name) = trace
                && let Some(wanted) = self.wanted.get_mut(name)
            {
                *wanted = Wanted::default();
            }
        }
        true
    }

    /// From now on the trace leads to the part too.
    fn lead(&mut self, trace: Trace, part: &Arc<Part>) -> Arc<Trace> {
        let known = self.index.get_key_value(&trace).map(|(known, _)| known.clone());
        let trace = known.unwrap_or_else(|| Arc::new(trace));
        self.index.entry(trace.clone()).or_default().push(part.clone());
        trace
    }

    /// The same of a plan that was made since then: whatever of it was taken meanwhile, nobody was there to be told.
    pub fn guard_new(&mut self, part: Part, plan: &Plan, since: Now, from: Now) {
        self.guard(part.clone(), plan, from);
        let traces = &self.parts[&part].traces;
        let is_its = |taken: &Trace| traces.binary_search_by(|trace| (**trace).cmp(taken)).is_ok();
        if self.taken.iter().any(|(at, trace)| *at >= since + LATE && is_its(trace)) {
            self.look_from(from, from, part, Depth::Outside);
        }
    }

    /// The link must have this MAC too, which no object of its plan says.
    pub fn expect_mac(&mut self, link: &str, mac: Mac) {
        self.wanted.entry(link.to_owned()).or_default().mac = Some(mac);
    }

    /// What becomes of the plan is nobody's business any more.
    pub fn leave(&mut self, part: &Part) {
        self.unindex(part);
        self.hurt.remove(part);
        self.paces.remove(part);
    }

    pub fn guards(&self, part: &Part) -> bool {
        self.parts.contains_key(part)
    }

    fn unindex(&mut self, part: &Part) {
        for trace in self.parts.remove(part).into_iter().flat_map(|guarded| guarded.traces) {
            let Some(parts) = self.index.get_mut(&trace) else { continue };
            parts.retain(|led| **led != *part);
            if parts.is_empty() {
                self.index.remove(&trace);
                if let Trace::Link(name) = &*trace {
                    self.wanted.remove(name);
                }
            }
        }
    }

    fn want(&mut self, object: &Object) {
        match object {
            Object::Veth(veth) => {
                let wanted = self.wanted.entry(veth.name.clone()).or_default();
                wanted.mac = Some(veth.mac);
                wanted.alias = Some(veth.alias.clone());
                wanted.mtu = Some(veth.mtu);
                wanted.running = true;
            }
            Object::HostSlave(slave) => {
                self.wanted.entry(slave.name.clone()).or_default().mtu = Some(slave.mtu);
            }
            Object::Link(link) => {
                let wanted = self.wanted.entry(link.name.clone()).or_default();
                wanted.mtu = link.mtu.or(wanted.mtu);
            }
            _ => {}
        }
    }

    /// The links there are: at the start, and whenever the kernel told less than happened.
    pub fn know_links(&mut self, links: impl IntoIterator<Item = (u32, String)>) {
        self.names = links.into_iter().gather();
    }

    pub fn hear(&mut self, now: Now, happening: &Happening) {
        match happening {
            Happening::Link(link) => self.hear_of_link(now, link),
            Happening::LinkGone { ifindex } => {
                if let Some(name) = self.names.remove(ifindex) {
                    self.miss_link(now, name);
                }
            }
            Happening::AddrGone { ifindex } | Happening::Traffic { ifindex } => {
                if let Some(name) = self.names.get(ifindex).cloned() {
                    self.suspect(now, &Trace::Link(name), Depth::Outside, Doer::Others);
                }
            }
            Happening::Route { table, to } => {
                self.suspect(now, &Trace::Route(*table, *to), Depth::Outside, Doer::Others);
            }
            Happening::RuleGone(rule) => {
                self.suspect(now, &Trace::Rule(rule.clone()), Depth::Outside, Doer::Others);
            }
            Happening::Neigh { ifindex, addr, gone } => {
                if let Some(name) = self.names.get(ifindex).cloned() {
                    let doer = if *gone { Doer::Others } else { Doer::Anybody };
                    self.suspect(now, &Trace::Neigh(name, *addr), Depth::Outside, doer);
                }
            }
            Happening::Parameter(scope) => {
                if let Some(name) = self.name_of(*scope) {
                    self.suspect(now, &Trace::Parameter(name), Depth::Outside, Doer::Anybody);
                }
            }
            Happening::Lost => self.suspect_all(now, Depth::Outside),
        }
    }

    fn hear_of_link(&mut self, now: Now, link: &LinkNow) {
        let before = self.names.insert(link.ifindex, link.name.clone());
        if let Some(before) = before.filter(|before| *before != link.name) {
            self.suspect(now, &Trace::Link(before), Depth::Outside, Doer::Others);
            self.suspect(now, &Trace::Link(link.name.clone()), Depth::Outside, Doer::Others);
        }
        let Some(wanted) = self.wanted.get(&link.name) else { return };
        let spoilt = |wanted: &Wanted| {
            wanted.mac.is_some_and(|mac| link.mac != Some(mac))
                || wanted.mtu.is_some_and(|mtu| link.mtu != mtu)
                || wanted.alias.is_some() && wanted.alias != link.alias
                || !link.up
        };
        if spoilt(wanted) {
            self.suspect(now, &Trace::Link(link.name.clone()), Depth::Outside, Doer::Others);
        } else if wanted.running && !link.running {
            // The other end is down, or not up yet.
            self.suspect(now, &Trace::Link(link.name.clone()), Depth::Inside, Doer::Anybody);
        }
    }

    fn name_of(&self, scope: Scope) -> Option<String> {
        match scope {
            Scope::All => Some("all".into()),
            Scope::Default => Some("default".into()),
            Scope::Link(ifindex) => self.names.get(&ifindex).cloned(),
        }
    }

    fn suspect(&mut self, now: Now, trace: &Trace, depth: Depth, doer: Doer) {
        if doer == Doer::Others && !self.index.contains_key(trace) {
            return self.remember(now, trace);
        }
        for part in self.index.get(trace).cloned().into_iter().flatten() {
            let Some(Guarded { from, anew, .. }) = self.parts.get(&part) else { continue };
            if *from <= now + LATE || doer == Doer::Others && !anew {
                self.look_from(now, *from, Part::clone(&part), depth);
            }
        }
    }

    fn remember(&mut self, now: Now, trace: &Trace) {
        while self.taken.front().is_some_and(|(at, _)| *at + REMEMBERED < now) || self.taken.len() >= MOST_REMEMBERED {
            self.taken.pop_front();
        }
        self.taken.push_back((now, trace.clone()));
    }

    /// No ADD takes the link of its pod away: this is damage from the first moment on.
    fn miss_link(&mut self, now: Now, name: String) {
        for part in self.index.get(&Trace::Link(name)).cloned().into_iter().flatten() {
            self.look_at(now, Part::clone(&part), Depth::Outside);
        }
    }

    /// Everything that is guarded is to be looked at.
    pub fn suspect_all(&mut self, now: Now, depth: Depth) {
        let parts: Vec<(Part, Now)> =
            self.parts.iter().map(|(part, guarded)| (Part::clone(part), guarded.from)).collect();
        for (part, from) in parts {
            self.look_from(now, from, part, depth);
        }
    }

    /// The part is to be looked at, soon or as soon as its pace allows.
    pub fn look_at(&mut self, now: Now, part: Part, depth: Depth) {
        self.look_from(now, now, part, depth);
    }

    /// The same for one that is being made until `from`: it is not looked at in the middle of that.
    fn look_from(&mut self, now: Now, from: Now, part: Part, depth: Depth) {
        let wait = self.paces.get_mut(&part).map_or(Duration::ZERO, |pace| pace.wait(now));
        self.stir = Some((self.stir.map_or(now, |(first, _)| first), now));
        let hurt = self.hurt.entry(part).or_insert(Hurt { due: from.max(now + wait), depth });
        hurt.depth = hurt.depth.max(depth);
    }

    /// When something is to be looked at next.
    pub fn due(&self) -> Option<Now> {
        let calm = self.stir.map_or(Now::ZERO, |(first, last)| (first + AT_LAST).min(last + QUIET));
        self.hurt.values().map(|hurt| hurt.due.max(calm)).min()
    }

    /// What is to be looked at by now.
    pub fn take_due(&mut self, now: Now) -> Vec<(Part, Depth)> {
        if self.due().is_none_or(|due| due > now) {
            return Vec::new();
        }
        self.stir = None;
        self.hurt.extract_if(.., |_, hurt| hurt.due <= now).map(|(part, hurt)| (part, hurt.depth)).collect()
    }

    /// Of what was taken, this could not be looked at: it is as hurt as it was.
    pub fn put_back(&mut self, now: Now, missed: Vec<(Part, Depth)>) {
        if missed.is_empty() {
            self.failures = 0;
            return;
        }
        let due = now + AGAIN.0.saturating_mul(1 << self.failures.min(20)).min(AGAIN.1);
        self.failures = self.failures.saturating_add(1);
        for (part, depth) in missed {
            let hurt = self.hurt.entry(part).or_insert(Hurt { due, depth });
            hurt.depth = hurt.depth.max(depth);
        }
    }

    /// The part was damaged and is repaired. Whether somebody keeps undoing it, the first time that this is so.
    pub fn repaired(&mut self, now: Now, part: &Part) -> bool {
        self.paces.entry(part.clone()).or_default().repaired(now)
    }
}

/// All that leads to the plan that this object is of.
fn traces(object: &Object) -> Vec<Trace> {
    let link = object.link().map(|name| Trace::Link(name.to_owned()));
    let own = match object {
        Object::Route(route) => Some(Trace::Route(route.table.unwrap_or(ours::MAIN_TABLE), route.to)),
        Object::Rule(rule) => Some(Trace::Rule(rule.clone())),
        Object::Neigh(neigh) => Some(Trace::Neigh(neigh.link.clone(), neigh.addr)),
        Object::Sysctl(sysctl) => Some(Trace::Parameter(parameter_of(&sysctl.path))),
        _ => None,
    };
    link.into_iter().chain(own).collect()
}

/// Whose parameter it is: what follows `conf/`. What belongs to no link in particular is told of with `all`.
fn parameter_of(path: &str) -> String {
    let of = path.split_once("/conf/").and_then(|(_, rest)| rest.split('/').next());
    of.unwrap_or("all").to_owned()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::datapath::{self, EniSetup, NodeSetup, Setup};
    use crate::ip::IpPair;
    use crate::rpc::{Lease, example_lease};

    const T: fn(u64) -> Now = Duration::from_millis;
    const VETH: u32 = 12;
    const ENI: u32 = 3;

    fn lease() -> Lease {
        example_lease()
    }

    fn pod() -> Part {
        Part::Pod(lease().sandbox.attachment)
    }

    fn plan() -> Plan {
        datapath::pod(&Setup::new(&lease(), 1500))
    }

    /// A node with one ENI and one pod, guarded since the beginning.
    fn guarded() -> Repair {
        let mut repair = Repair::default();
        repair.guard(Part::Node, &datapath::node(&NodeSetup::default()), T(0));
        let lease = lease();
        let setup = EniSetup { eni: &lease.eni, link: "eth1", mtu: 1500, node: &lease.node };
        repair.guard(Part::Eni("eni-1".into()), &datapath::eni(&setup), T(0));
        repair.expect_mac("eth1", lease.eni.mac);
        repair.guard(pod(), &plan(), T(0));
        repair.know_links([(VETH, veth().name), (ENI, "eth1".into())]);
        repair
    }

    fn veth() -> LinkNow {
        let plan = plan();
        let Object::Veth(veth) = &plan.host[0] else { panic!("a veth comes first") };
        LinkNow {
            ifindex: VETH,
            name: veth.name.clone(),
            mac: Some(veth.mac),
            mtu: 1500,
            up: true,
            running: true,
            alias: Some(veth.alias.clone()),
        }
    }

    fn eth1() -> LinkNow {
        LinkNow { ifindex: ENI, name: "eth1".into(), mac: Some(lease().eni.mac), alias: None, running: false, ..veth() }
    }

    fn hurt_by(happening: Happening) -> Vec<(Part, Depth)> {
        let mut repair = guarded();
        repair.hear(T(100), &happening);
        repair.take_due(T(110))
    }

    fn route(table: u32, to: &str) -> Happening {
        Happening::Route { table, to: to.parse().unwrap() }
    }

    fn rules(plan: &Plan) -> Vec<Rule> {
        let rule = |object: &Object| if let Object::Rule(rule) = object { Some(rule.clone()) } else { None };
        plan.host.iter().filter_map(rule).collect()
    }

    #[test]
    fn every_kind_of_damage_leads_to_its_plan_and_to_no_other() {
        let eni = || vec![(Part::Eni("eni-1".into()), Depth::Outside)];
        let outside = || vec![(pod(), Depth::Outside)];
        let lease = lease();
        let setup = EniSetup { eni: &lease.eni, link: "eth1", mtu: 1500, node: &lease.node };
        let addr = "192.168.32.5".parse().unwrap();
        for (happening, hurt) in [
            (
                Happening::RuleGone(rules(&datapath::node(&NodeSetup::default()))[0].clone()),
                vec![(Part::Node, Depth::Outside)],
            ),
            (Happening::Parameter(Scope::All), vec![(Part::Node, Depth::Outside)]),
            (Happening::Parameter(Scope::Default), vec![(Part::Node, Depth::Outside)]),
            (Happening::Parameter(Scope::Link(ENI)), eni()),
            (Happening::RuleGone(rules(&datapath::eni(&setup))[0].clone()), eni()),
            (Happening::RuleGone(rules(&datapath::eni(&setup))[1].clone()), eni()),
            (route(1003, "0.0.0.0/0"), eni()),
            (Happening::AddrGone { ifindex: ENI }, eni()),
            (Happening::LinkGone { ifindex: ENI }, eni()),
            (Happening::Link(LinkNow { up: false, ..eth1() }), eni()),
            (Happening::Link(LinkNow { mac: Some(Mac([2; 6])), ..eth1() }), eni()),
            (route(1000, "192.168.32.5/32"), outside()),
            (Happening::Neigh { ifindex: VETH, addr, gone: true }, outside()),
            (Happening::Traffic { ifindex: VETH }, outside()),
            (Happening::LinkGone { ifindex: VETH }, outside()),
            (Happening::Link(LinkNow { mtu: 1400, ..veth() }), outside()),
            (Happening::Link(LinkNow { alias: None, ..veth() }), outside()),
            (Happening::Link(LinkNow { name: "other".into(), ..veth() }), outside()),
            (Happening::Link(LinkNow { running: false, ..veth() }), vec![(pod(), Depth::Inside)]),
        ] {
            assert_eq!(hurt_by(happening.clone()), hurt, "{happening:?}");
        }
        assert_eq!(hurt_by(Happening::Lost).len(), 3);
    }

    #[test]
    fn what_is_not_ours_or_as_it_should_be_hurts_nobody() {
        let (addr, mut rule) =
            ("192.168.32.6".parse().unwrap(), rules(&datapath::node(&NodeSetup::default()))[0].clone());
        rule.priority = 100;
        for happening in [
            Happening::RuleGone(rule),
            route(254, "192.168.32.5/32"),
            route(1000, "192.168.32.6/32"),
            Happening::Neigh { ifindex: VETH, addr, gone: true },
            Happening::Neigh { ifindex: ENI, addr: "192.168.32.5".parse().unwrap(), gone: true },
            Happening::Traffic { ifindex: 77 },
            Happening::LinkGone { ifindex: 77 },
            Happening::Parameter(Scope::Link(77)),
            Happening::Link(veth()),
            Happening::Link(eth1()),
            Happening::Link(LinkNow { ifindex: 77, name: "docker0".into(), up: false, ..veth() }),
        ] {
            assert_eq!(hurt_by(happening.clone()), [], "{happening:?}");
        }
    }

    #[test]
    fn a_pod_that_is_being_wired_or_is_deleted_is_left_alone() {
        let mut repair = guarded();
        repair.leave(&pod());
        repair.hear(T(180), &route(1000, "192.168.32.5/32"));
        repair.guard(pod(), &plan(), T(200));
        // All that an ADD may bring about after its plugin is done.
        let set = Happening::Neigh { ifindex: VETH, addr: "192.168.32.5".parse().unwrap(), gone: false };
        for own in [Happening::Link(LinkNow { running: false, ..veth() }), Happening::Link(veth()), set] {
            repair.hear(T(189), &own);
        }
        repair.hear(T(189), &Happening::Parameter(Scope::Link(VETH)));
        assert_eq!(repair.due(), None);
        repair.hear(T(200), &Happening::Traffic { ifindex: VETH });
        assert_eq!(repair.due(), Some(T(204)));
        repair.leave(&pod());
        assert_eq!((repair.due(), repair.guards(&pod())), (None, false));
        repair.hear(T(300), &route(1000, "192.168.32.5/32"));
        repair.hear(T(300), &Happening::LinkGone { ifindex: VETH });
        assert_eq!(repair.due(), None);
        assert!(!repair.wanted.contains_key(&veth().name) && repair.index.len() < guarded().index.len());
    }

    #[test]
    fn a_link_that_goes_right_after_its_add_is_missed() {
        let mut repair = guarded();
        repair.guard(pod(), &plan(), T(200));
        repair.hear(T(100), &Happening::Link(veth()));
        repair.hear(T(110), &Happening::LinkGone { ifindex: veth().ifindex });
        assert_eq!(repair.take_due(T(120)), [(pod(), Depth::Outside)]);
    }

    #[test]
    fn what_no_add_does_is_looked_at_once_the_add_is_over() {
        let addr = "192.168.32.5".parse().unwrap();
        for (at, happening) in [
            (181, route(1000, "192.168.32.5/32")),
            (181, Happening::Traffic { ifindex: VETH }),
            (181, Happening::Neigh { ifindex: VETH, addr, gone: true }),
            (181, Happening::AddrGone { ifindex: VETH }),
            (181, Happening::Link(LinkNow { up: false, ..veth() })),
            (181, Happening::Lost),
            (191, Happening::Neigh { ifindex: VETH, addr, gone: false }),
            (191, Happening::Parameter(Scope::Link(VETH))),
        ] {
            let mut repair = Repair::default();
            repair.know_links([(VETH, veth().name)]);
            repair.guard(pod(), &plan(), T(200));
            repair.hear(T(at), &happening);
            assert_eq!(repair.take_due(T(199)), [], "{happening:?}");
            assert_eq!(repair.take_due(T(200)), [(pod(), Depth::Outside)], "{happening:?}");
        }
    }

    #[test]
    fn what_is_taken_from_an_add_under_way_is_looked_at_once_it_is_over() {
        let addr = "192.168.32.5".parse().unwrap();
        for (taken, look) in [
            (route(1000, "192.168.32.5/32"), true),
            (Happening::Traffic { ifindex: VETH }, true),
            (Happening::Neigh { ifindex: VETH, addr, gone: true }, true),
            (route(1000, "192.168.32.6/32"), false),
            (Happening::Neigh { ifindex: VETH, addr, gone: false }, false),
        ] {
            let mut repair = Repair::default();
            repair.know_links([(VETH, veth().name)]);
            // The route of who had the address before, and what was taken then.
            repair.hear(T(105), &route(1000, "192.168.32.5/32"));
            repair.hear(T(150), &taken);
            repair.guard_new(pod(), &plan(), T(100), T(200));
            assert_eq!(repair.take_due(T(199)), [], "{taken:?}");
            assert_eq!(repair.take_due(T(210)).len(), usize::from(look), "{taken:?}");
        }
        // Whoever takes without end is not remembered without end.
        let mut repair = Repair::default();
        (0..1000).for_each(|n| repair.hear(T(n), &route(1000, "192.168.32.6/32")));
        assert_eq!(repair.taken.len(), MOST_REMEMBERED);
    }

    #[test]
    fn a_plan_that_takes_the_place_of_another_may_take_from_it() {
        let mut repair = guarded();
        repair.guard(pod(), &plan(), T(200));
        repair.hear(T(181), &Happening::Traffic { ifindex: VETH });
        assert_eq!(repair.due(), None);
        repair.hear(T(191), &Happening::Traffic { ifindex: VETH });
        assert_eq!(repair.due(), Some(T(200)));
    }

    /// How much is kept of everything.
    fn sizes(repair: &Repair) -> [usize; 6] {
        let Repair { parts, index, wanted, names, hurt, paces, .. } = repair;
        [parts.len(), index.len(), wanted.len(), names.len(), hurt.len(), paces.len()]
    }

    #[test]
    fn nothing_is_kept_of_pods_that_have_come_and_gone() {
        let mut repair = guarded();
        let before = sizes(&repair);
        let lease_of = |i: u32| {
            let mut lease = lease();
            lease.pod.name = format!("churn-{i}");
            lease.sandbox.attachment.container = format!("{i:016x}");
            lease.ip = IpPair::v4(Ipv4Addr::from_bits(lease.ip.v4.unwrap().to_bits() + 1 + i));
            lease
        };
        for i in 0..1000 {
            let (lease, ifindex) = (lease_of(i), 100 + i);
            let (part, name) = (Part::Pod(lease.sandbox.attachment.clone()), ours::host_veth(&lease.pod, "eth0"));
            repair.guard(part.clone(), &datapath::pod(&Setup::new(&lease, 1500)), T(0));
            repair.hear(T(100), &Happening::Link(LinkNow { ifindex, name, up: false, ..veth() }));
            assert_eq!(repair.take_due(T(110)), [(part.clone(), Depth::Outside)]);
            repair.repaired(T(110), &part);
            repair.hear(T(120), &Happening::Traffic { ifindex });
        }
        assert!(sizes(&repair).iter().zip(before).all(|(now, before)| *now >= before + 1000));
        for i in 0..1000 {
            repair.leave(&Part::Pod(lease_of(i).sandbox.attachment));
            repair.hear(T(130), &Happening::LinkGone { ifindex: 100 + i });
        }
        assert_eq!((sizes(&repair), repair.due()), (before, None));
    }

    #[test]
    fn a_burst_is_one_look_and_the_deeper_one_counts() {
        let mut repair = guarded();
        repair.hear(T(100), &Happening::Traffic { ifindex: VETH });
        repair.hear(T(102), &Happening::Link(LinkNow { running: false, ..veth() }));
        repair.hear(T(102), &Happening::Traffic { ifindex: VETH });
        assert_eq!(repair.take_due(T(105)), []);
        assert_eq!(repair.take_due(T(106)), [(pod(), Depth::Inside)]);
        assert_eq!(repair.due(), None);
        // One that does not end is not waited for.
        for now in 200..300 {
            repair.hear(T(now), &route(1003, "0.0.0.0/0"));
        }
        assert_eq!(repair.due(), Some(T(224)));
    }

    #[test]
    fn damage_that_could_not_be_looked_at_is_not_forgotten() {
        let mut repair = guarded();
        repair.hear(T(100), &route(1000, "192.168.32.5/32"));
        let missed = repair.take_due(T(110));
        assert_eq!(missed, [(pod(), Depth::Outside)]);
        repair.put_back(T(110), missed);
        assert_eq!((repair.take_due(T(209)), repair.due()), (vec![], Some(T(210))));
        // What is heard meanwhile is part of it.
        repair.hear(T(150), &Happening::Link(LinkNow { running: false, ..veth() }));
        let missed = repair.take_due(T(210));
        assert_eq!(missed, [(pod(), Depth::Inside)]);
        repair.put_back(T(210), missed.clone());
        assert_eq!(repair.due(), Some(T(410)));
        (0..100).for_each(|_| repair.put_back(T(300), missed.clone()));
        assert_eq!(repair.take_due(T(410)), missed);
        repair.put_back(T(410), missed.clone());
        assert_eq!((repair.due(), repair.take_due(T(10_410))), (Some(T(10_410)), missed.clone()));
        // All could be looked at.
        repair.put_back(T(10_410), Vec::new());
        repair.put_back(T(20_000), missed);
        assert_eq!(repair.due(), Some(T(20_100)));
        // It is over before that.
        repair.leave(&pod());
        assert_eq!(repair.due(), None);
    }

    #[test]
    fn who_keeps_undoing_us_is_met_with_patience_and_told_of_once() {
        let mut repair = guarded();
        let (mut now, mut told, mut looks) = (T(1000), 0, 0);
        while now < T(600_000) {
            repair.hear(now, &route(1000, "192.168.32.5/32"));
            now = repair.due().unwrap();
            assert_eq!(repair.take_due(now).len(), 1);
            looks += 1;
            told += u32::from(repair.repaired(now, &pod()));
            now += T(1);
        }
        assert_eq!(told, 1);
        assert!((70..100).contains(&looks), "{looks} looks in ten minutes");
        // After a quiet time the next damage is a first one.
        now += T(120_000);
        repair.hear(now, &route(1000, "192.168.32.5/32"));
        assert_eq!(repair.due(), Some(now + QUIET));
    }
}
