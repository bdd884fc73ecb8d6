//! Random clusters, policies and packets: what is compiled says what the specifications say, and depends on the present objects only.
//!
//! `POLICY_SEED=17 cargo test --lib policy::fuzz` replays one seed, `POLICY_SEEDS=5000` runs more of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use fastrand::Rng;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::oracle::{Flow, NODE, SELECTORS, SPACE_SELECTORS, Said, US, World};
use super::{Changes, Heard, Here, Model, Need, Scope, Told};
use crate::cluster::Name;
use crate::peer::namespace_of;
use crate::rules::{Cell, DIRECTIONS, Direction, Origin, Packet, PeerId, Rules, Write};

const SEEDS: u64 = 8;
const STEPS: u32 = 14;
const PACKETS: u32 = 400;

#[test]
fn what_is_compiled_is_what_is_specified_whatever_came_when() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    if let Some(seed) = number("POLICY_SEED") {
        episode(seed);
        return;
    }
    let mut packets = 0;
    for seed in 0..number("POLICY_SEEDS").unwrap_or(SEEDS) {
        packets += catch_unwind(AssertUnwindSafe(|| episode(seed))).unwrap_or_else(|panic| {
            eprintln!("replay with POLICY_SEED={seed}");
            resume_unwind(panic)
        });
    }
    println!("{packets} packets judged twice");
}

/// How many packets were judged.
fn episode(seed: u64) -> u64 {
    let mut run = Run {
        rng: Rng::with_seed(seed),
        world: World::default(),
        model: Model::new(here()),
        shown: Rules::default(),
        judged: 0,
    };
    run.furnish();
    run.compare();
    for _ in 0..STEPS {
        match run.rng.u8(..4) {
            // One change alone: nobody sees anything in between.
            0 => run.compare_alone(),
            1 => {
                (0..run.rng.u8(2..5)).for_each(|_| run.act());
                run.compare();
            }
            2 => run.there_and_back(),
            _ => {
                run.act();
                run.compare();
            }
        }
    }
    let mut fresh = Model::new(here());
    run.relist_into(&mut fresh);
    let mut shown = Rules::default();
    fresh.changes().writes.iter().for_each(|write| shown.apply(write));
    same(&told(&shown), &told(&run.shown));
    run.compare_frugal();
    run.empty();
    run.judged
}

/// A packet, and whether the specifications let it pass.
pub(crate) struct Asked {
    pub pod: Name,
    pub direction: Direction,
    pub other: IpAddr,
    pub packet: Packet,
    pub allow: bool,
}

/// Who looks at a world.
type See<'a> = dyn FnMut(&[Write], &Rules, &[Asked]) + 'a;

/// A world for who enforces it: after each change its writes, what holds then, and packets.
pub(crate) fn walk(seed: u64, packets: u32, see: &mut See) {
    let (rng, world, model) = (Rng::with_seed(seed), World::default(), Model::new(here()));
    let mut run = Run { rng, world, model, shown: Rules::default(), judged: 0 };
    run.furnish();
    for _ in 0..STEPS {
        let writes = run.model.changes().writes;
        writes.iter().for_each(|write| run.shown.apply(write));
        let asked: Vec<Asked> = (0..packets).filter_map(|_| run.asked()).collect();
        see(&writes, &run.shown, &asked);
        (0..run.rng.u8(1..4)).for_each(|_| run.act());
    }
}

fn here() -> Here {
    Here { name: US.into(), addresses: NODE.iter().map(|addr| addr.parse().unwrap()).collect() }
}

struct Run {
    rng: Rng,
    world: World,
    model: Model,
    /// All that was written so far.
    shown: Rules,
    judged: u64,
}

fn read<T: DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap()
}

fn all<T: DeserializeOwned>(values: &BTreeMap<String, Value>, rng: &mut Rng) -> Heard<T> {
    let mut values: Vec<&Value> = values.values().collect();
    rng.shuffle(&mut values);
    Heard::All(values.into_iter().map(read).collect())
}

/// Rules without their numbers, which come from history.
#[derive(Debug, PartialEq)]
struct Plain {
    prefixes: BTreeMap<String, BTreeSet<String>>,
    pods: BTreeMap<String, [String; 2]>,
    counts: [usize; 5],
}

fn told(rules: &Rules) -> Plain {
    let peer = |id: &PeerId| rules.peers[id].to_string();
    let class = |id: &u32| rules.classes.get(id).map(|peers| peers.iter().map(peer).collect()).unwrap_or_default();
    let set = |id: u32| {
        let mut text = String::new();
        for tier in &rules.sets[&id].rules.tiers {
            for rule in &tier.rules {
                let named: BTreeSet<String> = rule.traffic.named().map(|(id, _)| peer(&id)).collect();
                let ports =
                    |ports: &crate::rules::Ports| format!("{:?}", ports.lists().map(|l| &l.ranges).collect::<Vec<_>>());
                let traffic = (rule.traffic.protocol, ports(&rule.traffic.from), ports(&rule.traffic.to));
                let peer = rule.peer.as_ref().map(peer);
                text += &format!("{peer:?} {traffic:?} {named:?} {:?} {:?}\n", rule.action, rule.origin);
            }
            text += &format!("{:?}\n", tier.end);
        }
        text
    };
    Plain {
        prefixes: rules.prefixes.iter().map(|(net, id)| (net.to_string(), class(id))).collect(),
        pods: rules.pods.iter().map(|(name, sets)| (name.to_string(), [set(sets.ingress), set(sets.egress)])).collect(),
        counts: [rules.peers.len(), rules.classes.len(), rules.programs.len(), rules.sets.len(), rules.pairs.len()],
    }
}

/// Piece by piece, so that a difference can be read.
fn same(one: &Plain, other: &Plain) {
    assert_eq!(one.prefixes, other.prefixes);
    assert_eq!(one.pods, other.pods);
    assert_eq!(one.counts, other.counts, "peers, classes, programs, sets, pairs");
}

const SPACES: [&str; 3] = ["s1", "s2", "s3"];
const PORTS: [u16; 13] = [0, 1, 53, 54, 79, 80, 81, 82, 1024, 8079, 8080, 8081, 65535];
const NETS: [&str; 12] = [
    "0.0.0.0/0",
    "::/0",
    "10.0.0.0/8",
    "10.0.0.0/30",
    "10.0.0.4/30",
    "10.0.0.3/32",
    "10.0.0.0/29",
    "192.168.0.0/24",
    "192.168.0.1/32",
    "fd00::/16",
    "fd00::/125",
    "fd00::2/128",
];

impl Run {
    fn pick<T: Clone>(&mut self, some: &[T]) -> T {
        some[self.rng.usize(..some.len())].clone()
    }

    /// A few of these, perhaps none.
    fn some<T>(&mut self, most: usize, make: impl Fn(&mut Run) -> T) -> Vec<T> {
        (0..self.rng.usize(..=most)).map(|_| make(self)).collect()
    }

    fn often(&mut self, of: u8) -> bool {
        self.rng.u8(..of) > 0
    }

    fn furnish(&mut self) {
        for space in SPACES {
            self.put("spaces", space.to_owned());
            self.put("accounts", format!("{space}/sa1"));
            self.put("accounts", format!("{space}/sa2"));
        }
        for i in 1..=8 {
            let space = SPACES[i % 3];
            self.put("pods", format!("{space}/p{i}"));
        }
        self.put("nodes", "n1".to_owned());
        self.put("nodes", "n2".to_owned());
        (0..self.rng.u8(2..9)).for_each(|_| self.put_policy());
    }

    fn put_policy(&mut self) {
        let kind = self.pick(&[
            "policies",
            "policies",
            "policies",
            "admin",
            "calico",
            "calico",
            "global",
            "sets",
            "global_sets",
        ]);
        let name = match kind {
            "admin" | "global" | "global_sets" => format!("g{}", self.rng.u8(..3)),
            _ => format!("{}/o{}", self.pick(&SPACES), self.rng.u8(..2)),
        };
        self.put(kind, name);
    }

    fn act(&mut self) {
        match self.rng.u8(..16) {
            0..7 => self.put_policy(),
            7..10 => {
                let i = self.rng.usize(1..10);
                self.put("pods", format!("{}/p{i}", SPACES[i % 3]));
            }
            10 => {
                let space = self.pick(&SPACES);
                self.put("spaces", space.to_owned());
            }
            11 => {
                let name = format!("{}/sa{}", self.pick(&SPACES), self.rng.u8(1..3));
                self.put("accounts", name);
            }
            12 => {
                let node = self.pick(&["n1", "n2"]);
                self.put("nodes", node.to_owned());
            }
            13 => {
                let mut model = std::mem::replace(&mut self.model, Model::new(here()));
                self.relist_into(&mut model);
                self.model = model;
            }
            _ => {
                let kind = self.pick(&[
                    "policies",
                    "policies",
                    "admin",
                    "calico",
                    "global",
                    "sets",
                    "global_sets",
                    "pods",
                    "pods",
                    "spaces",
                    "accounts",
                    "nodes",
                ]);
                let names: Vec<String> = self.kind(kind).keys().cloned().collect();
                if !names.is_empty() {
                    let name = self.pick(&names);
                    self.set(kind, name, None);
                }
            }
        }
    }

    fn kind(&mut self, kind: &str) -> &mut BTreeMap<String, Value> {
        match kind {
            "pods" => &mut self.world.pods,
            "spaces" => &mut self.world.spaces,
            "accounts" => &mut self.world.accounts,
            "nodes" => &mut self.world.nodes,
            "policies" => &mut self.world.policies,
            "admin" => &mut self.world.admin,
            "calico" => &mut self.world.calico,
            "global" => &mut self.world.global,
            "sets" => &mut self.world.sets,
            _ => &mut self.world.global_sets,
        }
    }

    fn put(&mut self, kind: &str, name: String) {
        let mut object = match kind {
            "pods" => self.pod(&name),
            "spaces" => json!({"metadata": {"labels": {"team": self.pick(&["x", "y"])}}}),
            "accounts" => json!({"metadata": {"labels": {"role": self.pick(&["x", "y"])}}}),
            "nodes" => self.node(&name),
            "policies" => self.policy(),
            "admin" => self.admin(),
            "calico" => self.calico(false),
            "global" => self.calico(true),
            _ => {
                let nets = self.some(3, |run| run.pick(&NETS));
                json!({"metadata": {"labels": self.labels()}, "spec": {"nets": nets}})
            }
        };
        let (space, own) = name.split_once('/').unwrap_or(("", &name));
        object["metadata"]["name"] = own.into();
        if !space.is_empty() {
            object["metadata"]["namespace"] = space.into();
        }
        self.set(kind, name, Some(object));
    }

    /// Into the world, and to the model.
    fn set(&mut self, kind: &str, name: String, object: Option<Value>) {
        fn news<T: DeserializeOwned>(name: &str, object: &Option<Value>) -> Heard<T> {
            object.as_ref().map_or_else(|| Heard::Gone(Name::from(name)), |object| Heard::One(read(object)))
        }
        match kind {
            "pods" => self.model.hear_pods(news(&name, &object)),
            "spaces" => self.model.hear_namespaces(news(&name, &object)),
            "accounts" => self.model.hear_accounts(news(&name, &object)),
            "nodes" => self.model.hear_nodes(news(&name, &object)),
            "policies" => self.model.hear(Told::NetworkPolicy, news(&name, &object)),
            "admin" => self.model.hear(Told::ClusterNetworkPolicy, news(&name, &object)),
            "calico" => self.model.hear(Told::CalicoNetworkPolicy, news(&name, &object)),
            "global" => self.model.hear(Told::CalicoGlobalNetworkPolicy, news(&name, &object)),
            "sets" => self.model.hear(Told::NetworkSet, news(&name, &object)),
            _ => self.model.hear(Told::GlobalNetworkSet, news(&name, &object)),
        }
        match object {
            Some(object) => drop(self.kind(kind).insert(name, object)),
            None => drop(self.kind(kind).remove(&name)),
        }
    }

    fn relist_into(&mut self, model: &mut Model) {
        let mut order: Vec<u8> = (0..10).collect();
        self.rng.shuffle(&mut order);
        let (world, rng) = (&self.world, &mut self.rng);
        for kind in order {
            match kind {
                0 => model.hear_pods(all(&world.pods, rng)),
                1 => model.hear_namespaces(all(&world.spaces, rng)),
                2 => model.hear_accounts(all(&world.accounts, rng)),
                3 => model.hear_nodes(all(&world.nodes, rng)),
                4 => model.hear(Told::NetworkPolicy, all(&world.policies, rng)),
                5 => model.hear(Told::ClusterNetworkPolicy, all(&world.admin, rng)),
                6 => model.hear(Told::CalicoNetworkPolicy, all(&world.calico, rng)),
                7 => model.hear(Told::CalicoGlobalNetworkPolicy, all(&world.global, rng)),
                8 => model.hear(Told::NetworkSet, all(&world.sets, rng)),
                _ => model.hear(Told::GlobalNetworkSet, all(&world.global_sets, rng)),
            }
        }
    }

    /// To a model that knows its own pods, and what it has asked for.
    fn frugal(&mut self) -> Model {
        let mut model = Model::new(here());
        let own = self.world.pods.values().filter(|pod| pod["spec"]["nodeName"] == US);
        own.for_each(|pod| model.hear_pods(Heard::One(read(pod))));
        let mut asked = BTreeSet::new();
        loop {
            model.changes();
            let needs = model.needs();
            if needs == asked {
                return model;
            }
            needs.iter().for_each(|need| self.answer(need, &mut model));
            asked = needs;
        }
    }

    /// What a server says to it.
    fn answer(&self, need: &Need, model: &mut Model) {
        fn of<'a>(all: &'a BTreeMap<String, Value>, space: &str, labels: &str) -> Vec<&'a Value> {
            let is_in = |name: &str| space.is_empty() || namespace_of(name) == space;
            all.iter().filter(|(name, one)| is_in(name) && is_labelled(one, labels)).map(|(_, one)| one).collect()
        }
        let World { pods, spaces, accounts, nodes, policies, admin, calico, global, sets, global_sets } = &self.world;
        let scoped = |all, Scope { space, labels }: &Scope| of(all, space.as_deref().unwrap_or_default(), labels);
        let mut told = |kind, all: &BTreeMap<String, Value>, space: &str| {
            let of = all.iter().filter(|(name, _)| space.is_empty() || namespace_of(name) == space);
            of.for_each(|(_, one)| model.hear(kind, Heard::One(read(one))));
        };
        match need {
            Need::Policies(space) => {
                told(Told::NetworkPolicy, policies, space);
                told(Told::CalicoNetworkPolicy, calico, space);
            }
            Need::GlobalPolicies => {
                told(Told::ClusterNetworkPolicy, admin, "");
                told(Told::CalicoGlobalNetworkPolicy, global, "");
            }
            Need::Sets(Some(space)) => told(Told::NetworkSet, sets, space),
            Need::Sets(None) => {
                told(Told::NetworkSet, sets, "");
                told(Told::GlobalNetworkSet, global_sets, "");
            }
            Need::Pods(scope) => scoped(pods, scope).into_iter().for_each(|one| model.hear_pods(Heard::One(read(one)))),
            Need::Accounts(scope) => {
                scoped(accounts, scope).into_iter().for_each(|one| model.hear_accounts(Heard::One(read(one))));
            }
            Need::Nodes(scope) => {
                scoped(nodes, scope).into_iter().for_each(|one| model.hear_nodes(Heard::One(read(one))));
            }
            Need::Namespaces(Scope { space, labels }) => {
                let is_named = |one: &&Value| space.as_ref().is_none_or(|name| one["metadata"]["name"] == **name);
                let all = of(spaces, "", labels).into_iter().filter(is_named);
                all.for_each(|one| model.hear_namespaces(Heard::One(read(one))));
            }
        }
    }

    /// Who knows what it has asked for says the same as who knows everything.
    fn compare_frugal(&mut self) {
        let model = self.frugal();
        for _ in 0..PACKETS {
            let Some(Asked { pod, direction, other, packet, allow }) = self.asked() else { continue };
            let is = model.rules().answer(&pod, direction, other, &packet).expect("it is a pod of ours");
            assert_eq!(
                is.allow,
                allow,
                "{pod} and {other}, {direction:?} {packet:?} said {is:?} by {:?}",
                model.needs()
            );
        }
    }

    // Judgement

    fn compare(&mut self) {
        for write in self.model.changes().writes {
            self.shown.apply(&write);
        }
        assert_eq!(&self.shown, self.model.rules());
        assert_eq!(self.model.changes(), Changes::default());
        (0..PACKETS).for_each(|_| self.judge());
    }

    fn locals(&self) -> Vec<String> {
        let local = |pod: &Value| {
            pod["spec"]["nodeName"] == US && pod["spec"]["hostNetwork"] != true && pod["status"]["phase"] == "Running"
        };
        self.world.pods.iter().filter(|(_, pod)| local(pod)).map(|(name, _)| name.clone()).collect()
    }

    fn packet(&mut self) -> Option<(String, Direction, IpAddr, u8, u16, u16)> {
        let locals = self.locals();
        if locals.is_empty() {
            return None;
        }
        let pod = self.pick(&locals);
        let own: Vec<IpAddr> =
            self.world.pods[&pod]["status"]["podIPs"].as_array().unwrap().iter().map(|ip| read(&ip["ip"])).collect();
        let n = self.rng.u8(1..14);
        let other: IpAddr = match self.rng.u8(..8) {
            0 => format!("192.168.0.{}", self.rng.u8(1..4)),
            1 => "8.8.8.8".to_owned(),
            2 => format!("fd00:192::{}", self.rng.u8(1..3)),
            3 | 4 => format!("fd00::{n:x}"),
            _ => format!("10.0.0.{n}"),
        }
        .parse()
        .unwrap();
        let is_possible = own.iter().any(|ip| ip.is_ipv4() == other.is_ipv4()) && !own.contains(&other);
        let protocol = self.pick(&[6, 6, 6, 17, 132, 1, 58, 47, 0, 255]);
        let (from, to) = match protocol {
            1 | 58 => (0, self.pick(&[0, 8 << 8, 3 << 8, 3 << 8 | 4, 128 << 8, 255 << 8 | 255])),
            6 | 17 | 132 => (self.pick(&PORTS), self.pick(&PORTS)),
            _ => (0, 0),
        };
        let direction = self.pick(&DIRECTIONS);
        is_possible.then_some((pod, direction, other, protocol, from, to))
    }

    fn asked(&mut self) -> Option<Asked> {
        let (pod, direction, other, protocol, from, to) = self.packet()?;
        let allow = self.world.says(&Flow { pod: &pod, direction, other, protocol, from, to }).allow;
        let packet = Packet { protocol, ports: Some((from, to)) };
        Some(Asked { pod: pod.into(), direction, other, packet, allow })
    }

    fn judge(&mut self) {
        let Some((pod, direction, other, protocol, from, to)) = self.packet() else { return };
        let flow = Flow { pod: &pod, direction, other, protocol, from, to };
        self.judged += 1;
        let packet = Packet { protocol, ports: Some((from, to)) };
        let is = self.shown.answer(&pod, direction, other, &packet).expect("it is a pod of ours");
        let want = self.world.says(&flow);
        assert_eq!(said(&is), want, "{flow:?} said {is:?}\n{}", self.shown_for(&flow));
        if self.rng.u8(..40) == 0 {
            self.judge_fragment(flow.pod, direction, other, protocol);
        }
    }

    /// A fragment passes where anything of its protocol may.
    fn judge_fragment(&self, pod: &str, direction: Direction, other: IpAddr, protocol: u8) {
        let icmp = [0, 1, 8 << 8, 9 << 8, 3 << 8, 3 << 8 | 1, 3 << 8 | 4, 3 << 8 | 5, 128 << 8, 255 << 8];
        let (from, to): (&[u16], &[u16]) = match protocol {
            1 | 58 => (&[0], &icmp),
            6 | 17 | 132 => (&PORTS, &PORTS),
            _ => (&[0], &[0]),
        };
        let passes = |from: u16, to: u16| self.world.says(&Flow { pod, direction, other, protocol, from, to }).allow;
        let want = from.iter().any(|from| to.iter().any(|to| passes(*from, *to)));
        let is = self.shown.answer(pod, direction, other, &Packet { protocol, ports: None }).unwrap();
        assert_eq!(is.allow, want, "fragment of {protocol} between {pod} and {other}, {direction:?}");
    }

    fn shown_for(&self, flow: &Flow) -> String {
        let class = self.shown.class(flow.other);
        let peers: Vec<_> =
            self.shown.classes.get(&class).into_iter().flat_map(|c| c.iter()).map(|p| &self.shown.peers[p]).collect();
        let set = self.shown.pods[flow.pod].of(flow.direction);
        let world = [&self.world.policies, &self.world.admin, &self.world.calico, &self.world.global];
        format!("class {class}: {peers:?}\n{:#?}\n{}", self.shown.sets[&set], json!(world))
    }

    /// Nobody ever sees another answer than the one from before or the one from after.
    fn compare_alone(&mut self) {
        let packets: Vec<_> = (0..60).filter_map(|_| self.packet()).collect();
        let answer = |rules: &Rules, p: &(String, Direction, IpAddr, u8, u16, u16)| {
            rules.answer(&p.0, p.1, p.2, &Packet { protocol: p.3, ports: Some((p.4, p.5)) }).map(|cell| cell.allow)
        };
        let before: Vec<_> = packets.iter().map(|p| answer(&self.shown, p)).collect();
        self.act();
        let writes = self.model.changes().writes;
        let after: Vec<_> = packets.iter().map(|p| answer(self.model.rules(), p)).collect();
        let mut rules = self.shown.clone();
        for write in &writes {
            rules.apply(write);
            for (i, packet) in packets.iter().enumerate() {
                let now = answer(&rules, packet);
                assert!(now == before[i] || now == after[i], "{packet:?} is {now:?} after {write:?}\n{writes:#?}");
            }
        }
        self.shown = rules;
        self.compare();
    }

    /// What is undone was never there, at once or one by one.
    fn there_and_back(&mut self) {
        let (before, world) = (told(&self.shown), self.world.clone());
        for _ in 0..self.rng.u8(1..4) {
            self.act();
            if self.rng.bool() {
                self.compare();
            }
        }
        self.world = world;
        let mut model = std::mem::replace(&mut self.model, Model::new(here()));
        self.relist_into(&mut model);
        self.model = model;
        self.compare();
        same(&told(&self.shown), &before);
    }

    /// Without objects nothing is left.
    fn empty(&mut self) {
        let kinds =
            ["pods", "spaces", "accounts", "nodes", "policies", "admin", "calico", "global", "sets", "global_sets"];
        let mut everything: Vec<(&str, String)> = Vec::new();
        for kind in kinds {
            everything.extend(self.kind(kind).keys().cloned().map(|name| (kind, name)).collect::<Vec<_>>());
        }
        self.rng.shuffle(&mut everything);
        for (kind, name) in everything {
            self.set(kind, name, None);
            if self.rng.u8(..8) == 0 {
                self.compare();
            }
        }
        self.compare();
        assert_eq!(self.shown, Rules::default());
    }

    // Objects of a small world, so that they meet

    fn labels(&mut self) -> Value {
        let mut labels = json!({});
        for key in ["a", "b"] {
            if self.often(4) {
                labels[key] = self.pick(&["x", "y", "xy"]).into();
            }
        }
        labels
    }

    fn pod(&mut self, name: &str) -> Value {
        let n: u8 = name.rsplit('p').next().unwrap().parse().unwrap();
        let is_on_host = !self.often(8);
        let node = if n <= 3 && self.often(8) { US } else { self.pick(&["n2", "n2", "n1"]) };
        let (v4, v6) = match is_on_host {
            true => ("192.168.0.2".to_owned(), "fd00:192::2".to_owned()),
            // Two may say that they have an address while one is on its way out.
            false if !self.often(9) => ("10.0.0.1".to_owned(), format!("fd00::{n}")),
            false => (format!("10.0.0.{n}"), format!("fd00::{n}")),
        };
        let ips = match self.rng.u8(..4) {
            0 => json!([{"ip": v4}]),
            _ => json!([{"ip": v4}, {"ip": v6}]),
        };
        let ports = json!([
            {"name": "web", "containerPort": self.pick(&[80, 8080])},
            {"name": "dns", "protocol": self.pick(&["UDP", "TCP"]), "containerPort": 53},
        ]);
        json!({
            "metadata": {"labels": self.labels()},
            "spec": {
                "nodeName": node, "hostNetwork": is_on_host, "serviceAccountName": self.pick(&["sa1", "sa2"]),
                "containers": [if self.often(4) { json!({"ports": ports}) } else { json!({}) }],
            },
            "status": {"phase": if self.often(9) { "Running" } else { "Succeeded" }, "podIPs": ips},
        })
    }

    fn node(&mut self, name: &str) -> Value {
        let n = &name[1..];
        json!({
            "metadata": {"labels": self.labels()},
            "status": {"addresses": [{"type": "InternalIP", "address": format!("192.168.0.{n}")}, {"address": format!("fd00:192::{n}")}]},
        })
    }

    fn selector(&mut self) -> Value {
        let key = self.pick(&["a", "b", "team"]);
        match self.rng.u8(..6) {
            0 | 1 => json!({}),
            2 => json!({"matchLabels": {key: self.pick(&["x", "y"])}}),
            3 => {
                json!({"matchExpressions": [{"key": key, "operator": self.pick(&["In", "NotIn"]), "values": ["x", "xy"]}]})
            }
            4 => json!({"matchExpressions": [{"key": key, "operator": self.pick(&["Exists", "DoesNotExist"])}]}),
            _ => json!({
                "matchLabels": {"a": "x"},
                "matchExpressions": [{"key": "b", "operator": "NotIn", "values": ["y"]}, {"key": "a", "operator": "Exists"}],
            }),
        }
    }

    fn policy(&mut self) -> Value {
        let mut spec = json!({"podSelector": self.selector()});
        for (name, others) in [("ingress", "from"), ("egress", "to")] {
            if self.often(3) {
                spec[name] = self.some(3, |run| run.kubernetes_rule(others)).into();
            }
        }
        if self.often(3) {
            spec["policyTypes"] =
                self.pick(&[json!(["Ingress"]), json!(["Egress"]), json!(["Ingress", "Egress"]), json!([])]);
        }
        let mut policy = json!({"metadata": {}, "spec": spec});
        if !self.often(12) {
            policy["metadata"]["annotations"] = json!({"broken": "yes"});
            policy["spec"]["policyTypes"] = json!(["Ingress", "Egress"]);
            policy["spec"]["ingress"] = self.pick(&[
                json!([{"from": [{}]}]),
                json!([{"from": [{"ipBlock": {"cidr": "10.0.0.0/33"}}]}]),
                json!([{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}]}]),
                json!([{"ports": [{"port": 0}]}]),
                json!([{"ports": [{"port": 80, "endPort": 79}]}]),
                json!([{"ports": [{"port": "web", "endPort": 90}]}]),
                json!([{"ports": [{"protocol": "ICMP"}]}]),
                json!([{"fromNowhere": []}]),
                json!([{"from": [{"podSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}]}]),
                json!("x"),
            ]);
        }
        policy
    }

    fn kubernetes_rule(&mut self, others: &str) -> Value {
        let mut rule = json!({});
        if self.often(4) {
            rule[others] = self.some(2, Run::kubernetes_peer).into();
        }
        if self.often(3) {
            rule["ports"] = self.some(3, Run::kubernetes_port).into();
        }
        rule
    }

    fn kubernetes_peer(&mut self) -> Value {
        match self.rng.u8(..5) {
            0 => json!({"podSelector": self.selector()}),
            1 => json!({"namespaceSelector": self.selector()}),
            2 => json!({"namespaceSelector": self.selector(), "podSelector": self.selector()}),
            3 => json!({"ipBlock": {"cidr": self.pick(&NETS)}}),
            _ => json!({"ipBlock": {"cidr": self.pick(&NETS), "except": self.some(2, |run| run.pick(&NETS))}}),
        }
    }

    fn kubernetes_port(&mut self) -> Value {
        let protocol = self.pick(&["TCP", "TCP", "UDP", "SCTP"]);
        match self.rng.u8(..6) {
            0 => json!({"protocol": protocol}),
            1 => json!({"protocol": protocol, "port": self.pick(&["web", "dns", "none"])}),
            2 => json!({"protocol": protocol, "port": 80, "endPort": self.pick(&[80, 81, 8080, 65535])}),
            3 => json!({"port": 80}),
            _ => json!({"protocol": protocol, "port": self.pick(&[1, 53, 80, 8080, 65535])}),
        }
    }

    fn admin(&mut self) -> Value {
        let mut spec = json!({
            "tier": self.pick(&["Admin", "Admin", "Baseline"]),
            "priority": self.pick(&[0, 5, 1000]),
            "subject": self.admin_pods(),
        });
        for (name, others) in [("ingress", "from"), ("egress", "to")] {
            if self.often(3) {
                spec[name] = self.some(3, |run| run.admin_rule(others)).into();
            }
        }
        json!({"metadata": {}, "spec": spec})
    }

    fn admin_pods(&mut self) -> Value {
        match self.rng.bool() {
            true => json!({"namespaces": self.selector()}),
            false => json!({"pods": {"namespaceSelector": self.selector(), "podSelector": self.selector()}}),
        }
    }

    fn admin_rule(&mut self, others: &str) -> Value {
        let mut peers = vec![self.admin_peer(others)];
        peers.extend(self.some(1, |run| run.admin_peer(others)));
        let mut rule = json!({"action": self.pick(&["Accept", "Deny", "Pass"]), others: peers});
        if self.often(3) {
            let protocols: Vec<Value> = (0..self.rng.u8(1..3)).map(|_| self.admin_protocol()).collect();
            rule["protocols"] = protocols.into();
        }
        if !self.often(12) {
            rule["name"] = "broken".into();
            rule[others] = self.pick(&[
                json!([{}]),
                json!([{"domainNames": ["a.b"]}]),
                json!([]),
                json!([{"pods": {}, "namespaces": {}}]),
            ]);
        }
        rule
    }

    fn admin_peer(&mut self, others: &str) -> Value {
        match self.rng.u8(..6) {
            0 if others == "to" => json!({"nodes": self.selector()}),
            1 | 2 if others == "to" => json!({"networks": [self.pick(&NETS), self.pick(&NETS)]}),
            _ => self.admin_pods(),
        }
    }

    fn admin_protocol(&mut self) -> Value {
        let protocol = self.pick(&["tcp", "udp", "sctp"]);
        match self.rng.u8(..4) {
            0 => json!({"destinationNamedPort": self.pick(&["web", "dns", "none"])}),
            1 => json!({protocol: {}}),
            2 => json!({protocol: {"destinationPort": {"range": {"start": 53, "end": self.pick(&[53, 80, 65535])}}}}),
            _ => json!({protocol: {"destinationPort": {"number": self.pick(&[53, 80, 8080])}}}),
        }
    }

    fn calico(&mut self, is_global: bool) -> Value {
        let mut spec = json!({});
        if self.often(4) {
            spec["selector"] = self.pick(&SELECTORS).0.into();
        }
        if is_global && !self.often(3) {
            spec["namespaceSelector"] = self.space_selector(false).into();
        }
        if !self.often(5) {
            spec["serviceAccountSelector"] = self.pick(&["all()", "a == 'x'", "!has(b) || a == \"y\""]).into();
        }
        if self.often(3) {
            spec["order"] = self.pick(&[json!(-1.5), json!(10), json!(1000), json!(2000)]);
        }
        for name in ["ingress", "egress"] {
            if self.often(3) {
                spec[name] = self.some(3, Run::calico_rule).into();
            }
        }
        if self.often(3) {
            spec["types"] = self.pick(&[json!(["Ingress"]), json!(["Egress"]), json!(["Ingress", "Egress"])]);
        }
        let mut notes = json!({});
        match self.rng.u8(..24) {
            0 => {
                notes["broken"] = "yes".into();
                spec["types"] = json!(["Ingress", "Egress"]);
                spec["ingress"] = self.pick(&[
                    json!([{"action": "Allow", "source": {"selector": "a = 'x'"}}]),
                    json!([{"action": "Allow", "source": {"services": {"name": "x"}}}]),
                    json!([{"action": "Allow", "destination": {"ports": [80]}}]),
                    json!([{"action": "Allow", "http": {}}]),
                    json!([{"action": "allow it"}]),
                    json!([{"action": "Allow", "protocol": "TCP", "icmp": {"type": 8}}]),
                    json!([{"action": "Allow", "source": {"selector": "global()"}}]),
                ]);
            }
            1 => {
                notes = json!({"broken": "yes", "subject": "broken"});
                spec["selector"] = "has(a".into();
                spec["types"] = json!(["Ingress", "Egress"]);
            }
            2 => {
                notes["void"] = "yes".into();
                spec[self.pick(&["doNotTrack", "preDNAT"])] = true.into();
            }
            3 => spec["applyOnForward"] = true.into(),
            _ => {}
        }
        json!({"metadata": {"annotations": notes}, "spec": spec})
    }

    fn space_selector(&mut self, with_global: bool) -> &'static str {
        match self.rng.u8(..4) {
            0 => "all()",
            1 if with_global => "global()",
            _ => self.pick(&SPACE_SELECTORS).0,
        }
    }

    fn calico_rule(&mut self) -> Value {
        let mut rule = json!({"action": self.pick(&["Allow", "Allow", "Allow", "Deny", "Deny", "Pass", "Log"])});
        let has_ports = match self.rng.u8(..8) {
            0..4 => {
                rule["protocol"] = self.pick(&[json!("TCP"), json!("TCP"), json!("UDP"), json!(6), json!("SCTP")]);
                true
            }
            4 => {
                rule["protocol"] = self.pick(&[json!("ICMP"), json!("ICMPv6")]);
                let icmp =
                    self.pick(&[json!({"type": 8}), json!({"type": 3, "code": 4}), json!({"type": 128, "code": 0})]);
                rule[self.pick(&["icmp", "notICMP"])] = icmp;
                false
            }
            5 => {
                rule[self.pick(&["protocol", "notProtocol"])] =
                    self.pick(&[json!(47), json!("UDP"), json!("ICMPv6"), json!(255)]);
                false
            }
            _ => false,
        };
        if !self.often(5) {
            rule["ipVersion"] = self.pick(&[4, 6]).into();
        }
        for end in ["source", "destination"] {
            if self.often(3) {
                rule[end] = self.entity(has_ports);
            }
        }
        rule
    }

    fn entity(&mut self, has_ports: bool) -> Value {
        let mut entity = json!({});
        if !self.often(3) {
            entity["selector"] = self.pick(&SELECTORS).0.into();
        }
        if !self.often(4) {
            entity["namespaceSelector"] = self.space_selector(true).into();
        }
        if !self.often(6) {
            entity["notSelector"] = self.pick(&SELECTORS[1..]).0.into();
        }
        if !self.often(6) {
            entity["serviceAccounts"] = self.pick(&[
                json!({"names": ["sa1"]}),
                json!({"selector": "all()"}),
                json!({"names": ["sa1", "sa2"], "selector": "a != 'x'"}),
            ]);
        }
        for name in ["nets", "notNets"] {
            if !self.often(4) {
                entity[name] = self.some(2, |run| run.pick(&NETS)).into();
            }
        }
        for name in ["ports", "notPorts"] {
            if has_ports && !self.often(3) {
                let ports = self.some(2, |run| {
                    run.pick(&[json!(80), json!("80:8080"), json!("web"), json!("dns"), json!(53), json!("0:65535")])
                });
                // Now and then more than one line of iptables-restore(8) has room for.
                let many = (0..260).map(|n| json!(2 * n + 1)).collect();
                entity[name] = if self.rng.u8(..16) == 0 { many } else { ports.into() };
            }
        }
        entity
    }
}

/// As a server reads `labelSelector=`.
fn is_labelled(object: &Value, selector: &str) -> bool {
    let mut depth = 0;
    let terms = selector.split(|c| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        c == ',' && depth == 0
    });
    let label = |key: &str| object["metadata"]["labels"].get(key).and_then(Value::as_str);
    terms.filter(|term| !term.is_empty()).all(|term| {
        let among = |values: &str, is: Option<&str>| {
            is.is_some_and(|is| values.trim_end_matches(')').split(',').any(|v| v == is))
        };
        if let Some((key, values)) = term.split_once(" in (") {
            among(values, label(key))
        } else if let Some((key, values)) = term.split_once(" notin (") {
            !among(values, label(key))
        } else if let Some((key, value)) = term.split_once("!=") {
            label(key) != Some(value)
        } else if let Some((key, value)) = term.split_once('=') {
            label(key) == Some(value)
        } else {
            term.strip_prefix('!').map_or(label(term).is_some(), |key| label(key).is_none())
        }
    })
}

fn said(cell: &Cell) -> Said {
    let by = match &cell.origin {
        Origin::Policy { policy, rule: Some(rule) } => Some((policy.to_string(), *rule)),
        _ => None,
    };
    Said { allow: cell.allow, log: cell.log, by }
}

#[test]
fn names_of_the_world_are_names_of_its_objects() {
    let mut run = Run {
        rng: Rng::with_seed(1),
        world: World::default(),
        model: Model::new(here()),
        shown: Rules::default(),
        judged: 0,
    };
    run.furnish();
    for (name, pod) in &run.world.pods {
        let pod: crate::peer::Pod = read(pod);
        assert_eq!((&*pod.name, namespace_of(name)), (name.as_str(), namespace_of(&pod.name)));
    }
}
