//! Random changes in random order, repeated and relisted: what is wanted depends on the present objects only.
//!
//! `SERVICE_SEED=17 cargo test --lib service::fuzz` replays one seed, `SERVICE_SEEDS=5000` runs more of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use fastrand::Rng;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::oracle::{API, OWN, Objects, US, Wanted, addresses, wanted};
use super::{Changes, Frontend, Heard, Here, Model, Set, Target};
use crate::cluster::{Name, mapped};

const SEEDS: u64 = 200;
const STEPS: u32 = 120;

#[test]
fn what_is_wanted_is_a_function_of_the_objects_alone() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    if let Some(seed) = number("SERVICE_SEED") {
        return episode(seed);
    }
    for seed in 0..number("SERVICE_SEEDS").unwrap_or(SEEDS) {
        catch_unwind(AssertUnwindSafe(|| episode(seed))).unwrap_or_else(|panic| {
            eprintln!("replay with SERVICE_SEED={seed}");
            resume_unwind(panic)
        });
    }
}

fn episode(seed: u64) {
    let mut run = Run {
        rng: Rng::with_seed(seed),
        objects: Objects::default(),
        model: Model::new(here()),
        shown: BTreeMap::new(),
        nodes: BTreeMap::new(),
    };
    for _ in 0..STEPS {
        run.act();
        if run.rng.u8(..3) == 0 {
            run.compare();
        }
        if run.rng.u8(..20) == 0 {
            run.model.pack();
        }
    }
    run.compare();
    let mut fresh = Model::new(here());
    run.relist_into(&mut fresh);
    let changes = fresh.changes();
    assert!(changes.frontends.values().all(Option::is_some));
    assert_eq!(resolved(&changes.frontends.into_iter().map(|(f, t)| (f, t.unwrap())).collect()), resolved(&run.shown));
    assert_eq!(changes.nodes, Some(run.nodes));
}

fn here() -> Here {
    let api = Some(mapped(API.parse().unwrap()));
    Here { name: US.into(), addresses: BTreeSet::from([mapped(OWN.parse().unwrap())]), api }
}

struct Run {
    rng: Rng,
    objects: Objects,
    model: Model,
    /// All that was said so far.
    shown: BTreeMap<Frontend, Target>,
    nodes: BTreeMap<Ipv6Addr, bool>,
}

fn read<T: DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap()
}

fn all<T: DeserializeOwned>(values: &BTreeMap<String, Value>, rng: &mut Rng) -> Heard<T> {
    let mut values: Vec<&Value> = values.values().collect();
    rng.shuffle(&mut values);
    Heard::All(values.into_iter().map(read).collect())
}

fn resolved(shown: &BTreeMap<Frontend, Target>) -> Wanted {
    shown.iter().map(|(f, t)| (*f, (t.backends.to_vec(), t.affinity, t.own_node_only))).collect()
}

impl Run {
    fn act(&mut self) {
        match self.rng.u8(..20) {
            0..6 => self.put_service(),
            6..12 => self.put_slice(),
            12 => self.put_node(),
            13..16 => self.delete(),
            16 => self.again(),
            17 => self.pods(),
            _ => {
                let mut model = std::mem::replace(&mut self.model, Model::new(here()));
                self.relist_into(&mut model);
                self.model = model;
            }
        }
    }

    /// Lists may tell of changes that no watch told of.
    fn relist_into(&mut self, model: &mut Model) {
        match self.rng.bool() {
            true => {
                model.hear_services(all(&self.objects.services, &mut self.rng));
                model.hear_slices(all(&self.objects.slices, &mut self.rng));
                model.hear_nodes(all(&self.objects.nodes, &mut self.rng));
            }
            false => {
                model.hear_nodes(all(&self.objects.nodes, &mut self.rng));
                model.hear_slices(all(&self.objects.slices, &mut self.rng));
                model.hear_services(all(&self.objects.services, &mut self.rng));
            }
        }
        model.hear_here(Heard::All(Vec::new()));
        model.hear_pods(self.objects.pods.clone());
        assert!(model.is_complete());
    }

    fn put_service(&mut self) {
        let name = format!("s{}", self.rng.u8(..5));
        let service = self.service(&name);
        self.objects.services.insert(format!("a/{name}"), service.clone());
        self.model.hear_services(Heard::One(read(&service)));
    }

    fn put_slice(&mut self) {
        let name = format!("e{}", self.rng.u8(..8));
        let slice = self.slice(&name);
        self.objects.slices.insert(format!("a/{name}"), slice.clone());
        self.model.hear_slices(Heard::One(read(&slice)));
    }

    fn put_node(&mut self) {
        let name = format!("n{}", self.rng.u8(1..4));
        let zone = self.pick(&[json!("h"), json!("g"), Value::Null]);
        let addr = format!("10.0.0.{}", self.rng.u8(1..6));
        let node = json!({
            "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone}},
            "status": {"addresses": [{"type": "InternalIP", "address": addr}]},
        });
        self.objects.nodes.insert(name, node.clone());
        self.model.hear_nodes(Heard::One(read(&node)));
    }

    fn delete(&mut self) {
        let kinds = [&mut self.objects.services, &mut self.objects.slices, &mut self.objects.nodes];
        let kind = self.rng.usize(..3);
        let Some(name) = self.rng.choice(kinds[kind].keys().cloned().collect::<Vec<_>>()) else { return };
        kinds.into_iter().nth(kind).unwrap().remove(&name);
        let name: Name = name.into();
        match kind {
            0 => self.model.hear_services(Heard::Gone(name)),
            1 => self.model.hear_slices(Heard::Gone(name)),
            _ => self.model.hear_nodes(Heard::Gone(name)),
        }
    }

    /// What is told twice is no news.
    fn again(&mut self) {
        self.compare();
        let some = self.rng.choice(self.objects.services.values().cloned().collect::<Vec<_>>());
        some.iter().for_each(|service| self.model.hear_services(Heard::One(read(service))));
        let some = self.rng.choice(self.objects.slices.values().cloned().collect::<Vec<_>>());
        some.iter().for_each(|slice| self.model.hear_slices(Heard::One(read(slice))));
        assert_eq!(self.model.changes(), Changes::default());
    }

    fn pods(&mut self) {
        let some = (0..self.rng.u8(..3)).map(|_| mapped(self.endpoint_address().parse().unwrap())).collect();
        self.objects.pods = some;
        self.model.hear_pods(self.objects.pods.clone());
    }

    fn compare(&mut self) {
        let changes = self.model.changes();
        for (frontend, target) in changes.frontends {
            match target {
                Some(target) => drop(self.shown.insert(frontend, target)),
                None => assert!(self.shown.remove(&frontend).is_some(), "{frontend} was never there"),
            }
        }
        if let Some(nodes) = changes.nodes {
            self.nodes = nodes;
        }
        assert_eq!(resolved(&self.shown), wanted(&self.objects));
        let mut sets = BTreeMap::<Set, &Target>::new();
        for target in self.shown.values() {
            assert_eq!(sets.entry(target.set).or_insert(target).backends, target.backends, "one set, two meanings");
        }
        let ours = |name: &String| name == US;
        let mut nodes = BTreeMap::from([(mapped(OWN.parse().unwrap()), true)]);
        for (name, node) in &self.objects.nodes {
            addresses(node).into_iter().for_each(|addr| *nodes.entry(addr).or_default() |= ours(name));
        }
        assert_eq!(self.nodes, nodes);
    }

    // Objects of a small world, so that they meet

    fn pick(&mut self, values: &[Value]) -> Value {
        values[self.rng.usize(..values.len())].clone()
    }

    fn service(&mut self, name: &str) -> Value {
        let cluster = |n: u8| (json!(format!("172.21.0.{n}")), json!(format!("fd00:21::{n}")));
        let (v4, v6) = cluster(self.rng.u8(1..6));
        let cluster_ips = match self.rng.u8(..8) {
            0 => json!(["None"]),
            1 => json!([v6]),
            2 | 3 => json!([v4, v6]),
            _ => json!([v4]),
        };
        let external: Vec<Value> = (0..self.rng.u8(..3)).map(|_| self.external()).collect();
        let ports: Vec<Value> = (0..self.rng.u8(..4)).map(|_| self.port()).collect();
        json!({
            "metadata": {"namespace": "a", "name": name, "creationTimestamp": format!("2026-01-0{}T00:00:00Z", self.rng.u8(1..4))},
            "spec": {
                "type": self.pick(&[json!("ClusterIP"), json!("NodePort"), json!("LoadBalancer"), json!("ExternalName")]),
                "clusterIPs": cluster_ips,
                "externalIPs": external,
                "ports": ports,
                "sessionAffinity": self.pick(&[json!("None"), json!("ClientIP")]),
                "internalTrafficPolicy": self.pick(&[json!("Cluster"), json!("Local"), Value::Null]),
                "externalTrafficPolicy": self.pick(&[json!("Cluster"), json!("Local"), Value::Null]),
                "loadBalancerSourceRanges": self.pick(&[json!([]), json!([]), json!(["10.0.0.0/8"])]),
            },
            "status": {"loadBalancer": {"ingress": self.pick(&[
                json!([]), json!([{"ip": "198.51.100.1"}]), json!([{"ip": "198.51.100.2", "ipMode": "Proxy"}]),
                json!([{"ip": "172.21.0.3"}]),
            ])}},
        })
    }

    fn external(&mut self) -> Value {
        let endpoint = json!(self.endpoint_address());
        self.pick(&[
            json!("203.0.113.1"),
            json!("203.0.113.2"),
            json!("2001:db8::1"),
            json!("10.0.0.1"),
            json!("10.0.0.3"),
            json!("172.21.0.2"),
            json!("127.0.0.1"),
            json!(API),
            endpoint,
        ])
    }

    fn port(&mut self) -> Value {
        json!({
            "name": self.pick(&[json!("http"), json!("dns"), Value::Null]),
            "port": self.pick(&[json!(80), json!(53), json!(0), json!(70000)]),
            "nodePort": self.pick(&[json!(0), json!(30080), json!(30081), json!(70000)]),
            "protocol": self.pick(&[json!("TCP"), json!("UDP"), json!("SCTP"), Value::Null]),
        })
    }

    fn endpoint_address(&mut self) -> String {
        let n = self.rng.u8(1..7);
        if self.rng.u8(..4) == 0 { format!("fd00:1::{n}") } else { format!("10.1.0.{n}") }
    }

    fn slice(&mut self, name: &str) -> Value {
        let service = format!("s{}", self.rng.u8(..5));
        let some_hints = self.rng.bool();
        let endpoints: Vec<Value> = (0..self.rng.u8(..4)).map(|_| self.endpoint(some_hints)).collect();
        let ports: Vec<Value> = (0..self.rng.u8(1..3))
            .map(|_| {
                json!({
                    "name": self.pick(&[json!("http"), json!("dns"), Value::Null]),
                    "port": self.pick(&[json!(8080), json!(8081)]),
                    "protocol": self.pick(&[json!("TCP"), json!("UDP"), Value::Null]),
                })
            })
            .collect();
        json!({
            "metadata": {"namespace": "a", "name": name, "labels": {"kubernetes.io/service-name": service}},
            "endpoints": endpoints,
            "ports": ports,
        })
    }

    fn endpoint(&mut self, hints: bool) -> Value {
        let flag = [json!(true), json!(false), Value::Null];
        json!({
            "addresses": [self.endpoint_address()],
            "nodeName": self.pick(&[json!("n1"), json!("n2"), Value::Null]),
            "conditions": {
                "ready": self.pick(&flag), "serving": self.pick(&flag), "terminating": self.pick(&flag),
            },
            "hints": if hints {
                json!({
                    "forZones": self.pick(&[json!([{"name": "h"}]), json!([{"name": "g"}, {"name": "h"}]), json!([])]),
                    "forNodes": self.pick(&[json!([]), json!([{"name": "n1"}]), json!([{"name": "n2"}])]),
                })
            } else {
                Value::Null
            },
        })
    }
}
