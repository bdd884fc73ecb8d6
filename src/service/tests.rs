//! Services as their owners write them, and where connections go.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{Changes, Heard, Here, Model};
use crate::cluster::mapped;

fn model() -> Model {
    let here = Here { name: "n1".into(), addresses: BTreeSet::new(), api: Some(mapped("10.9.9.9".parse().unwrap())) };
    let mut model = Model::new(here);
    for (name, addr, zone) in [("n1", "10.0.0.1", "h"), ("n2", "10.0.0.2", "g")] {
        node(&mut model, name, addr, zone);
    }
    model
}

fn node(model: &mut Model, name: &str, addr: &str, zone: &str) {
    let node = json!({
        "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone}},
        "status": {"addresses": [{"type": "InternalIP", "address": addr}]},
    });
    model.hear_nodes(Heard::One(serde_json::from_value(node).unwrap()));
}

/// A Service `shop/NAME` of port 80, on cluster address 172.21.0.1, with these fields of its spec.
fn service(model: &mut Model, name: &str, over: Value) {
    aged(model, name, "2026-01-01T00:00:00Z", over);
}

fn aged(model: &mut Model, name: &str, created: &str, over: Value) {
    let mut spec = json!({"clusterIPs": ["172.21.0.1"], "ports": [{"name": "http", "port": 80}]});
    over.as_object().unwrap().iter().for_each(|(key, value)| spec[key] = value.clone());
    let status = spec["status"].take();
    let service = json!({
        "metadata": {"namespace": "shop", "name": name, "uid": "u1", "creationTimestamp": created},
        "spec": spec, "status": status,
    });
    model.hear_services(Heard::One(serde_json::from_value(service).unwrap()));
}

/// Endpoints of `shop/web`, port 8080, in a slice of this name.
fn slice(model: &mut Model, name: &str, endpoints: &[Value]) {
    let slice = json!({
        "metadata": {"namespace": "shop", "name": name, "labels": {"kubernetes.io/service-name": "web"}},
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": endpoints,
    });
    model.hear_slices(Heard::One(serde_json::from_value(slice).unwrap()));
}

fn endpoint(addr: &str, over: Value) -> Value {
    let mut endpoint = json!({"addresses": [addr], "nodeName": "n1"});
    over.as_object().unwrap().iter().for_each(|(key, value)| endpoint[key] = value.clone());
    endpoint
}

/// Changes as lines.
fn lines(changes: &Changes) -> Vec<String> {
    let mut lines = Vec::new();
    for (frontend, target) in &changes.frontends {
        let Some(target) = target else {
            lines.push(format!("{frontend} is no more"));
            continue;
        };
        let backends: Vec<String> =
            target.backends.iter().map(|b| format!("{}:{}", b.addr.to_canonical(), b.port)).collect();
        let affinity = if target.affinity > 0 { format!(" for {} s", target.affinity) } else { String::new() };
        let own = if target.own_node_only { " on this node" } else { "" };
        lines.push(format!("{frontend}{own} -> [{}]{affinity}", backends.join(" ")));
    }
    lines
}

fn said(model: &mut Model) -> Vec<String> {
    lines(&model.changes())
}

fn refused(model: &mut Model) -> Vec<String> {
    model.changes().refused.iter().map(|r| format!("{}: {}", r.about, r.reason)).collect()
}

fn plain(model: &mut Model, addresses: &[&str]) {
    let all: Vec<Value> = addresses.iter().map(|addr| endpoint(addr, json!({}))).collect();
    slice(model, "web-1", &all);
}

#[test]
fn every_address_of_a_service_leads_to_its_endpoints() {
    let mut model = model();
    service(
        &mut model,
        "web",
        json!({
            "type": "LoadBalancer", "externalIPs": ["203.0.113.7"],
            "ports": [{"name": "http", "port": 80, "nodePort": 30080}, {"name": "more", "port": 81}],
            "sessionAffinity": "ClientIP",
            "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}, {"ip": "198.51.100.2", "ipMode": "Proxy"}]}},
        }),
    );
    plain(&mut model, &["10.1.0.2", "10.1.0.1"]);
    assert_eq!(
        said(&mut model),
        [
            "node port 30080/TCP -> [10.1.0.1:8080 10.1.0.2:8080] for 10800 s",
            "172.21.0.1:80/TCP -> [10.1.0.1:8080 10.1.0.2:8080] for 10800 s",
            "172.21.0.1:81/TCP -> [] for 10800 s",
            "198.51.100.1:80/TCP -> [10.1.0.1:8080 10.1.0.2:8080] for 10800 s",
            "198.51.100.1:81/TCP -> [] for 10800 s",
            "203.0.113.7:80/TCP -> [10.1.0.1:8080 10.1.0.2:8080] for 10800 s",
            "203.0.113.7:81/TCP -> [] for 10800 s",
        ]
    );
    model.hear_services(Heard::All(Vec::new()));
    let gone = said(&mut model);
    assert!(gone.len() == 7 && gone.iter().all(|line| line.ends_with("is no more")), "{gone:?}");
}

#[test]
fn families_do_not_mix_and_named_ports_are_the_slices() {
    let mut model = model();
    let ports = json!([{"name": "http", "port": 80, "targetPort": "web", "nodePort": 30080}]);
    service(&mut model, "web", json!({"type": "NodePort", "clusterIPs": ["172.21.0.1", "fd00:21::1"], "ports": ports}));
    plain(&mut model, &["10.1.0.1", "fd00:1::1"]);
    assert_eq!(
        said(&mut model),
        [
            "node port 30080/TCP (IPv6) -> [fd00:1::1:8080]",
            "node port 30080/TCP -> [10.1.0.1:8080]",
            "172.21.0.1:80/TCP -> [10.1.0.1:8080]",
            "[fd00:21::1]:80/TCP -> [fd00:1::1:8080]",
        ]
    );
}

#[test]
fn policies_keep_traffic_on_the_node_as_kube_proxy_does() {
    let mut model = model();
    let ports = json!([{"name": "http", "port": 80, "nodePort": 30080}]);
    let spec = json!({
        "type": "NodePort", "ports": ports, "internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local",
        "externalIPs": ["203.0.113.7"],
    });
    service(&mut model, "web", spec);
    let away = endpoint("10.1.0.2", json!({"nodeName": "n2"}));
    slice(&mut model, "web-1", &[endpoint("10.1.0.1", json!({})), away.clone()]);
    assert_eq!(
        said(&mut model),
        [
            "node port 30080/TCP on this node -> [10.1.0.1:8080 10.1.0.2:8080]",
            "172.21.0.1:80/TCP -> [10.1.0.1:8080]",
            "203.0.113.7:80/TCP -> [10.1.0.1:8080 10.1.0.2:8080]",
        ]
    );
    slice(&mut model, "web-1", &[away]);
    assert_eq!(said(&mut model)[1], "172.21.0.1:80/TCP -> []");
}

#[test]
fn hints_count_when_all_have_them_and_one_is_for_us() {
    let mut model = model();
    service(&mut model, "web", json!({}));
    let zones = |zones: &[&str]| {
        let all: Vec<Value> = zones.iter().map(|zone| json!({"name": zone})).collect();
        json!({"hints": {"forZones": all}})
    };
    let (ours, theirs) = (endpoint("10.1.0.1", zones(&["h"])), endpoint("10.1.0.2", zones(&["g"])));
    let mut leads = |endpoints: &[Value]| {
        slice(&mut model, "web-1", endpoints);
        said(&mut model).pop().unwrap()
    };
    assert_eq!(leads(&[ours.clone(), theirs.clone()]), "172.21.0.1:80/TCP -> [10.1.0.1:8080]");
    let bare = endpoint("10.1.0.3", json!({}));
    let all = "172.21.0.1:80/TCP -> [10.1.0.1:8080 10.1.0.2:8080 10.1.0.3:8080]";
    assert_eq!(leads(&[ours.clone(), theirs.clone(), bare]), all);
    assert_eq!(leads(std::slice::from_ref(&theirs)), "172.21.0.1:80/TCP -> [10.1.0.2:8080]");
    let near = json!({"hints": {"forZones": [{"name": "g"}], "forNodes": [{"name": "n1"}]}});
    let far = json!({"hints": {"forZones": [{"name": "h"}], "forNodes": [{"name": "n2"}]}});
    let nodes = [endpoint("10.1.0.4", near), endpoint("10.1.0.5", far)];
    assert_eq!(leads(&nodes), "172.21.0.1:80/TCP -> [10.1.0.4:8080]");
    let unready = endpoint("10.1.0.1", json!({"conditions": {"ready": false}, "hints": {"forZones": [{"name": "h"}]}}));
    assert_eq!(leads(&[unready, theirs.clone()]), "172.21.0.1:80/TCP -> [10.1.0.2:8080]");
    slice(&mut model, "web-1", &[ours, theirs]);
    said(&mut model);
    node(&mut model, "n1", "10.0.0.1", "g");
    assert_eq!(said(&mut model), ["172.21.0.1:80/TCP -> [10.1.0.2:8080]"]);
}

#[test]
fn what_goes_away_serves_only_while_nothing_else_is_left() {
    let mut model = model();
    service(&mut model, "web", json!({}));
    let state =
        |ready: bool, serving: bool| json!({"conditions": {"ready": ready, "serving": serving, "terminating": true}});
    let (leaving, broken) = (endpoint("10.1.0.1", state(false, true)), endpoint("10.1.0.2", state(false, false)));
    slice(&mut model, "web-1", &[leaving.clone(), broken.clone()]);
    assert_eq!(said(&mut model), ["172.21.0.1:80/TCP -> [10.1.0.1:8080]"]);
    slice(&mut model, "web-2", &[endpoint("10.1.0.3", json!({}))]);
    assert_eq!(said(&mut model), ["172.21.0.1:80/TCP -> [10.1.0.3:8080]"]);
    slice(&mut model, "web-2", &[broken]);
    slice(&mut model, "web-1", &[]);
    assert_eq!(said(&mut model), ["172.21.0.1:80/TCP -> []"]);
}

#[test]
fn an_endpoint_in_two_slices_counts_once() {
    let mut model = model();
    service(&mut model, "web", json!({}));
    plain(&mut model, &["10.1.0.1"]);
    slice(&mut model, "web-2", &[endpoint("10.1.0.1", json!({"conditions": {"ready": false}}))]);
    assert_eq!(said(&mut model), ["172.21.0.1:80/TCP -> [10.1.0.1:8080]"]);
    model.hear_slices(Heard::Gone("shop/web-1".into()));
    assert_eq!(said(&mut model), ["172.21.0.1:80/TCP -> []"]);
}

#[test]
fn a_load_balancer_that_asks_who_comes_is_left_to_itself() {
    let mut model = model();
    let mut with = |ranges: Value| {
        let status = json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}]}});
        service(
            &mut model,
            "web",
            json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ranges, "status": status}),
        );
        said(&mut model).iter().any(|line| line.starts_with("198.51.100.1:80/TCP ->"))
    };
    assert!(with(json!([])));
    assert!(!with(json!(["10.0.0.0/8"])));
    assert!(with(json!(["0.0.0.0/1", "128.0.0.0/1"])));
    assert!(!with(json!(["::/0"])));
    assert!(with(json!(["10.0.0.0/8", "0.0.0.0/0"])));
}

#[test]
fn nobody_takes_an_address_that_is_somebodys() {
    let mut model = model();
    service(&mut model, "other", json!({"clusterIPs": ["172.21.0.9"]}));
    plain(&mut model, &["10.1.0.1"]);
    model.hear_pods([mapped("10.1.0.77".parse().unwrap())].into());
    model.changes();
    let external = [
        "10.0.0.2",
        "10.1.0.1",
        "10.1.0.77",
        "10.9.9.9",
        "172.21.0.9",
        "127.0.0.1",
        "169.254.169.254",
        "224.0.0.1",
        "2001:db8::1",
        "203.0.113.7",
    ];
    service(&mut model, "web", json!({"externalIPs": external}));
    let changes = model.changes();
    let all = ["172.21.0.1:80/TCP -> [10.1.0.1:8080]", "203.0.113.7:80/TCP -> [10.1.0.1:8080]"];
    assert_eq!(lines(&changes), all);
    let why: Vec<String> = changes.refused.iter().map(|r| r.reason.to_string()).collect();
    let stolen = |addr: &str, whose: &str| {
        format!("external address {addr} is {whose}: its traffic is not led elsewhere; take it out of the Service")
    };
    let none = |addr: &str| {
        format!("{addr} is a loopback, link-local, multicast or unspecified address, which no Service can have")
    };
    assert_eq!(
        why,
        [
            stolen("10.0.0.2", "a node's"),
            stolen("10.1.0.1", "a pod's"),
            stolen("10.1.0.77", "a pod's"),
            stolen("10.9.9.9", "the API server's"),
            stolen("172.21.0.9", "the cluster address of another Service"),
            none("127.0.0.1"),
            none("169.254.169.254"),
            none("224.0.0.1"),
            "2001:db8::1 is of a family in which the Service has no cluster address; see spec.ipFamilies".into(),
        ]
    );
    // What was allowed is taken back as soon as a pod has the address, and given again afterwards.
    slice(&mut model, "web-2", &[endpoint("203.0.113.7", json!({}))]);
    assert!(said(&mut model).contains(&"203.0.113.7:80/TCP is no more".to_owned()));
    slice(&mut model, "web-2", &[]);
    assert!(said(&mut model).contains(&all[1].to_owned()));
}

#[test]
fn of_two_that_want_the_same_the_older_has_it() {
    let mut model = model();
    let spec = json!({"type": "NodePort", "ports": [{"name": "http", "port": 80, "nodePort": 30080}]});
    aged(&mut model, "late", "2026-01-02T00:00:00Z", spec.clone());
    assert_eq!(said(&mut model), ["node port 30080/TCP -> []", "172.21.0.1:80/TCP -> []"]);
    service(&mut model, "web", spec);
    plain(&mut model, &["10.1.0.1"]);
    let changes = model.changes();
    assert_eq!(lines(&changes), ["node port 30080/TCP -> [10.1.0.1:8080]", "172.21.0.1:80/TCP -> [10.1.0.1:8080]"]);
    let why: Vec<String> = changes.refused.iter().map(|r| format!("{}: {}", r.about, r.reason)).collect();
    let taken = |what: &str| {
        format!(
            "service shop/late: {what} belongs to the older Service shop/web; give this one another address or port"
        )
    };
    assert_eq!(why, [taken("172.21.0.1:80/TCP"), taken("node port 30080/TCP")]);
    model.hear_services(Heard::Gone("shop/web".into()));
    assert_eq!(said(&mut model), ["node port 30080/TCP -> []", "172.21.0.1:80/TCP -> []"]);
}

#[test]
fn what_is_refused_is_told_once() {
    let mut model = model();
    let spec = json!({"ports": [{"name": "http", "port": 80}, {"port": 70000}, {"port": 7, "protocol": "SCTP"}]});
    service(&mut model, "web", spec.clone());
    assert_eq!(
        refused(&mut model),
        [
            "service shop/web: spec.ports[].port is 70000; it must be a port from 1 to 65535; the field is left out",
            "service shop/web: port 7: SCTP is not done at the socket; kube-proxy serves it",
        ]
    );
    plain(&mut model, &["10.1.0.1"]);
    assert!(refused(&mut model).is_empty());
    slice(&mut model, "web-2", &[endpoint("127.0.0.1", json!({}))]);
    let why = "endpointslice shop/web-2: endpoints[].addresses[] is 127.0.0.1; it must be an address that a pod can have; \
               the field is left out";
    assert_eq!(refused(&mut model), [why]);
    slice(&mut model, "web-2", &[endpoint("127.0.0.1", json!({})), endpoint("10.1.0.2", json!({}))]);
    assert!(refused(&mut model).is_empty());
}

#[test]
fn a_service_made_anew_under_its_name_is_another_set() {
    let mut model = model();
    service(&mut model, "web", json!({}));
    let set = |changes: Changes| changes.frontends.into_values().flatten().next().unwrap().set;
    let first = set(model.changes());
    service(&mut model, "web", json!({"sessionAffinity": "ClientIP"}));
    assert_eq!(set(model.changes()), first);
    model.hear_services(Heard::Gone("shop/web".into()));
    service(&mut model, "web", json!({}));
    assert_ne!(set(model.changes()), first);
}

#[test]
fn headless_ones_and_names_lead_nowhere() {
    let mut model = model();
    service(&mut model, "web", json!({"clusterIPs": ["None"], "externalIPs": ["203.0.113.7"]}));
    service(&mut model, "name", json!({"type": "ExternalName", "externalName": "example.com", "clusterIPs": []}));
    plain(&mut model, &["10.1.0.1"]);
    let changes = model.changes();
    assert!(changes.frontends.is_empty() && changes.refused.is_empty(), "{changes:?}");
}
