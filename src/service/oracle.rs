//! What is wanted, said once more and naively: from the objects as JSON, all at once, one address after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use serde_json::Value;

use super::{ANY_V4, ANY_V6, Backend, Frontend};
use crate::cluster::{Protocol, mapped};

/// All objects, by name.
#[derive(Default, Clone)]
pub struct Objects {
    pub services: BTreeMap<String, Value>,
    pub slices: BTreeMap<String, Value>,
    pub nodes: BTreeMap<String, Value>,
    pub pods: BTreeSet<Ipv6Addr>,
}

pub const US: &str = "n1";
/// An address of our node of which its object need not know.
pub const OWN: &str = "10.0.0.1";
pub const API: &str = "10.9.9.9";

/// Backends, affinity, and whether it is for the node's own addresses only.
pub type Wanted = BTreeMap<Frontend, (Vec<Backend>, u32, bool)>;

fn list(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

fn ip(value: &Value) -> Ipv6Addr {
    mapped(value.as_str().unwrap().parse().unwrap())
}

fn family(addr: Ipv6Addr) -> bool {
    addr.to_canonical().is_ipv4()
}

fn protocol(value: &Value) -> Protocol {
    match value.as_str() {
        Some("UDP") => Protocol::Udp,
        Some("SCTP") => Protocol::Sctp,
        _ => Protocol::Tcp,
    }
}

pub fn wanted(objects: &Objects) -> Wanted {
    let mut by_age: Vec<(&str, &String, &Value)> =
        objects.services.iter().map(|(n, s)| (s["metadata"]["creationTimestamp"].as_str().unwrap(), n, s)).collect();
    by_age.sort_by_key(|(created, name, _)| (*created, *name));
    let mut all = Wanted::new();
    for (_, name, service) in by_age {
        for (frontend, target) in one(objects, name, service) {
            all.entry(frontend).or_insert(target);
        }
    }
    all
}

fn one(objects: &Objects, name: &str, service: &Value) -> Wanted {
    let spec = &service["spec"];
    let mut all = Wanted::new();
    let cluster: Vec<Ipv6Addr> = list(&spec["clusterIPs"]).iter().filter(|v| *v != "None").map(ip).collect();
    if spec["type"] == "ExternalName" {
        return all;
    }
    let sticky = if spec["sessionAffinity"] == "ClientIP" { 10_800 } else { 0 };
    let mut known = BTreeSet::new();
    for port in list(&spec["ports"]) {
        let kind = protocol(&port["protocol"]);
        let Some(number) = port["port"].as_u64().filter(|n| (1..65536).contains(n)) else { continue };
        if !known.insert((number, kind)) || kind == Protocol::Sctp {
            continue;
        }
        let mut put = |addr: Ipv6Addr, number: u64, v4: bool, local: bool, own: bool| {
            let backends = endpoints(objects, name, &port, v4, local);
            let frontend = Frontend { addr, port: number as u16, protocol: kind };
            all.entry(frontend).or_insert((backends, sticky, own));
        };
        for addr in &cluster {
            put(*addr, number, family(*addr), spec["internalTrafficPolicy"] == "Local", false);
        }
        let has = |v4: bool| cluster.iter().any(|addr| family(*addr) == v4);
        for addr in list(&spec["externalIPs"]).iter().map(ip) {
            let another_has = objects.services.iter().any(|(other, s)| {
                other != name && list(&s["spec"]["clusterIPs"]).iter().any(|v| v != "None" && ip(v) == addr)
            });
            let a_node_has = objects.nodes.values().any(|node| addresses(node).contains(&addr));
            let an_endpoint_has =
                objects.slices.values().any(|s| list(&s["endpoints"]).iter().any(|e| ip(&e["addresses"][0]) == addr));
            let is_foreign = another_has
                || a_node_has
                || an_endpoint_has
                || objects.pods.contains(&addr)
                || [API, OWN].iter().any(|text| addr.to_canonical() == text.parse::<IpAddr>().unwrap())
                || addr.to_canonical().is_loopback();
            if has(family(addr)) && !is_foreign {
                put(addr, number, family(addr), false, false);
            }
        }
        if spec["type"] == "LoadBalancer" && list(&spec["loadBalancerSourceRanges"]).is_empty() {
            for ingress in list(&service["status"]["loadBalancer"]["ingress"]) {
                let addr = ip(&ingress["ip"]);
                let another_has = objects.services.iter().any(|(other, s)| {
                    other != name && list(&s["spec"]["clusterIPs"]).iter().any(|v| v != "None" && ip(v) == addr)
                });
                if ingress["ipMode"] != "Proxy" && has(family(addr)) && !another_has {
                    put(addr, number, family(addr), false, false);
                }
            }
        }
        if let Some(number) = port["nodePort"].as_u64().filter(|n| (1..65536).contains(n)) {
            for (v4, any) in [(true, ANY_V4), (false, ANY_V6)] {
                if has(v4) {
                    put(any, number, v4, false, spec["externalTrafficPolicy"] == "Local");
                }
            }
        }
    }
    all
}

/// The addresses of a node.
pub fn addresses(node: &Value) -> Vec<Ipv6Addr> {
    list(&node["status"]["addresses"]).iter().map(|a| ip(&a["address"])).collect()
}

fn endpoints(objects: &Objects, service: &str, port: &Value, v4: bool, local: bool) -> Vec<Backend> {
    let zone = objects.nodes.get(US).and_then(|n| n["metadata"]["labels"]["topology.kubernetes.io/zone"].as_str());
    let mut seen: BTreeMap<Backend, Vec<Value>> = BTreeMap::new();
    for slice in objects.slices.values() {
        let meta = &slice["metadata"];
        let owner = meta["labels"]["kubernetes.io/service-name"].as_str().unwrap_or("");
        let owner = format!("{}/{owner}", meta["namespace"].as_str().unwrap());
        for number in list(&slice["ports"]) {
            let name = |p: &Value| p["name"].as_str().unwrap_or("").to_owned();
            if owner != service
                || name(&number) != name(port)
                || protocol(&number["protocol"]) != protocol(&port["protocol"])
            {
                continue;
            }
            for endpoint in list(&slice["endpoints"]) {
                let addr = ip(&endpoint["addresses"][0]);
                if family(addr) == v4 {
                    let backend = Backend { addr, port: number["port"].as_u64().unwrap() as u16 };
                    seen.entry(backend).or_default().push(endpoint);
                }
            }
        }
    }
    seen.retain(|_, said| !local || said.iter().any(|e| e["nodeName"] == US));
    let condition = |e: &Value, name: &str, unsaid: bool| e["conditions"][name].as_bool().unwrap_or(unsaid);
    let ready: BTreeMap<_, _> =
        seen.iter().filter(|(_, said)| said.iter().any(|e| condition(e, "ready", true))).collect();
    if ready.is_empty() {
        let leaving = |e: &Value| condition(e, "serving", true) && condition(e, "terminating", false);
        return seen.iter().filter(|(_, said)| said.iter().any(leaving)).map(|(b, _)| *b).collect();
    }
    let hints = |said: &[Value], kind: &str| -> Vec<String> {
        said.iter().flat_map(|e| list(&e["hints"][kind])).map(|h| h["name"].as_str().unwrap().to_owned()).collect()
    };
    for (kind, us) in [("forNodes", Some(US)), ("forZones", zone)] {
        let ours = |said: &[Value]| us.is_some_and(|us| hints(said, kind).iter().any(|h| h == us));
        let all_have = ready.values().all(|said| !hints(said, kind).is_empty());
        if !local && all_have && ready.values().any(|said| ours(said)) {
            return ready.iter().filter(|(_, said)| ours(said)).map(|(b, _)| **b).collect();
        }
    }
    ready.keys().map(|b| **b).collect()
}
