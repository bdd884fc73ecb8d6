//! Services, EndpointSlices and nodes as an API server sends them, and how they become what `cluster.rs` keeps.
//!
//! Nothing here fails to be read: what is wrong within an object is told as a fault of it, and what is right counts.

use std::net::Ipv6Addr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer};

use crate::cluster::{
    Endpoint, EndpointSlice, EndpointSliceBeta, Hints, Member, Name, Protocol, Service, ServicePort, ServiceType,
    SlicePort, Tag, is_unicast, mapped,
};
use crate::loose::Loose;
use crate::object::Object;
use crate::object_shape;

/// The label that names a slice's Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// How long a client stays with its endpoint unless the Service says otherwise, and the longest that it may.
const AFFINITY: i64 = 10_800;
const LONGEST_AFFINITY: i64 = 86_400;

macro_rules! object {
    ($name:ty, $raw:ty, $api:literal, $plural:literal) => {
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                Ok(<$raw>::deserialize(from)?.into())
            }
        }

        impl Object for $name {
            const API: &'static str = $api;
            const PLURAL: &'static str = $plural;

            fn version(&self) -> &str {
                &self.version
            }
        }
    };
}

object!(Service, RawService, "api/v1", "services");
object!(EndpointSlice, RawSlice, "apis/discovery.k8s.io/v1", "endpointslices");
object!(Member, RawNode, "api/v1", "nodes");

impl Object for EndpointSliceBeta {
    const API: &'static str = "apis/discovery.k8s.io/v1beta1";
    const PLURAL: &'static str = "endpointslices";

    fn version(&self) -> &str {
        &self.0.version
    }
}

// As it is sent

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawMeta {
    namespace: Loose<String>,
    name: Loose<String>,
    uid: Loose<String>,
    resource_version: Loose<String>,
    creation_timestamp: Loose<String>,
    labels: Loose<RawLabels>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawLabels {
    #[serde(rename = "kubernetes.io/service-name")]
    service: Loose<String>,
    #[serde(rename = "topology.kubernetes.io/zone")]
    zone: Loose<String>,
    #[serde(rename = "failure-domain.beta.kubernetes.io/zone")]
    old_zone: Loose<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawService {
    metadata: Loose<RawMeta>,
    spec: Loose<RawSpec>,
    status: Loose<RawStatus>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawSpec {
    r#type: Loose<String>,
    #[serde(rename = "clusterIP")]
    cluster_ip: Loose<String>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Loose<Vec<Loose<String>>>,
    #[serde(rename = "externalIPs")]
    external_ips: Loose<Vec<Loose<String>>>,
    ports: Loose<Vec<Loose<RawPort>>>,
    load_balancer_source_ranges: Loose<Vec<Loose<String>>>,
    session_affinity: Loose<String>,
    session_affinity_config: Loose<RawAffinity>,
    internal_traffic_policy: Loose<String>,
    external_traffic_policy: Loose<String>,
}

/// A port of a Service or of a slice.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawPort {
    name: Loose<String>,
    port: Loose<i64>,
    node_port: Loose<i64>,
    protocol: Loose<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawAffinity {
    #[serde(rename = "clientIP")]
    client_ip: Loose<RawClientIp>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawClientIp {
    timeout_seconds: Loose<i64>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawStatus {
    load_balancer: Loose<RawBalancer>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawBalancer {
    ingress: Loose<Vec<Loose<RawIngress>>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawIngress {
    ip: Loose<String>,
    ip_mode: Loose<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawSlice {
    metadata: Loose<RawMeta>,
    address_type: Loose<String>,
    ports: Loose<Vec<Loose<RawPort>>>,
    endpoints: Loose<Vec<Loose<RawEndpoint>>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawEndpoint {
    addresses: Loose<Vec<Loose<String>>>,
    conditions: Loose<RawConditions>,
    node_name: Loose<String>,
    hints: Loose<RawHints>,
    topology: Loose<RawTopology>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawConditions {
    ready: Loose<bool>,
    serving: Loose<bool>,
    terminating: Loose<bool>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawHints {
    for_zones: Loose<Vec<Loose<RawHint>>>,
    for_nodes: Loose<Vec<Loose<RawHint>>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawHint {
    name: Loose<String>,
}

/// Of v1beta1, whose early writers named the node here alone.
#[derive(Default, Deserialize)]
#[serde(default)]
struct RawTopology {
    #[serde(rename = "kubernetes.io/hostname")]
    node: Loose<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawNode {
    metadata: Loose<RawMeta>,
    status: Loose<RawNodeStatus>,
    /// A row of a table.
    cells: Loose<Vec<Loose<String>>>,
    /// A table of one row, as a watch tells it.
    rows: Loose<Vec<Loose<RawRow>>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawRow {
    cells: Loose<Vec<Loose<String>>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawNodeStatus {
    addresses: Loose<Vec<Loose<RawAddress>>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawAddress {
    r#type: Loose<String>,
    address: Loose<String>,
}

object_shape!(
    RawMeta,
    RawLabels,
    RawSpec,
    RawPort,
    RawAffinity,
    RawClientIp,
    RawStatus,
    RawBalancer,
    RawIngress,
    RawEndpoint,
    RawConditions,
    RawHints,
    RawHint,
    RawTopology,
    RawNodeStatus,
    RawRow,
    RawAddress
);

// As it is kept

/// Collects what is wrong with an object.
#[derive(Default)]
struct Faults(Vec<Box<str>>);

impl Faults {
    fn add(&mut self, what: &str, said: &str, want: &str) {
        self.0.push(format!("{what} is {said}; it must be {want}").into());
    }

    /// The value, if it has the right shape.
    fn take<T>(&mut self, what: &str, want: &str, field: Loose<T>) -> Option<T> {
        match field {
            Loose::Is(value) => Some(value),
            Loose::Absent => None,
            Loose::Wrong(said) => {
                self.add(what, &said, want);
                None
            }
        }
    }

    fn text(&mut self, what: &str, field: Loose<String>) -> String {
        self.take(what, "a text", field).unwrap_or_default()
    }

    fn object<T: Default>(&mut self, what: &str, field: Loose<T>) -> T {
        self.take(what, "an object", field).unwrap_or_default()
    }

    /// The items of the right shape; `null` is none.
    fn list<T>(&mut self, what: &str, want: &str, field: Loose<Vec<Loose<T>>>) -> Vec<T> {
        let items = self.take(what, "a list", field).unwrap_or_default();
        items.into_iter().filter_map(|item| self.take(what, want, item)).collect()
    }

    fn parsed<T>(&mut self, what: &str, want: &str, text: &str, read: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        let value = read(text);
        if value.is_none() {
            self.add(what, &format!("{:?}", crate::json::shortened(text)), want);
        }
        value
    }

    fn addresses(&mut self, what: &str, field: Loose<Vec<Loose<String>>>) -> Box<[Ipv6Addr]> {
        let texts = self.list(what, "an address", field);
        texts.iter().filter(|text| !text.is_empty()).filter_map(|text| self.address(what, text)).collect()
    }

    fn address(&mut self, what: &str, text: &str) -> Option<Ipv6Addr> {
        self.parsed(what, "an address", text, |text| text.parse().ok()).map(mapped)
    }

    fn port(&mut self, what: &str, field: Loose<i64>) -> Option<u16> {
        const WANT: &str = "a port from 1 to 65535";
        let number = self.take(what, WANT, field)?;
        let port = u16::try_from(number).ok().filter(|port| *port != 0);
        if port.is_none() {
            self.add(what, &number.to_string(), WANT);
        }
        port
    }

    fn protocol(&mut self, what: &str, field: Loose<String>) -> Option<Protocol> {
        let text = match field {
            Loose::Absent => return Some(Protocol::Tcp),
            field => self.take(what, "a text", field)?,
        };
        self.parsed(what, "TCP, UDP or SCTP", &text, |text| match text {
            "TCP" | "" => Some(Protocol::Tcp),
            "UDP" => Some(Protocol::Udp),
            "SCTP" => Some(Protocol::Sctp),
            _ => None,
        })
    }

    fn kept(self) -> Box<[Box<str>]> {
        self.0.into()
    }
}

/// Metadata, as far as we keep it.
struct Meta {
    namespace: String,
    name: Name,
    version: Box<str>,
    uid: Box<str>,
    created: u64,
    labels: RawLabels,
}

impl Meta {
    fn of(field: Loose<RawMeta>, faults: &mut Faults) -> Meta {
        let raw = faults.object("metadata", field);
        let namespace = faults.text("metadata.namespace", raw.namespace);
        let name = faults.text("metadata.name", raw.name);
        let full = if namespace.is_empty() { name } else { format!("{namespace}/{name}") };
        Meta {
            namespace,
            name: full.into(),
            version: faults.text("metadata.resourceVersion", raw.resource_version).into(),
            uid: faults.text("metadata.uid", raw.uid).into(),
            created: seconds(&faults.text("metadata.creationTimestamp", raw.creation_timestamp)),
            labels: faults.object("metadata.labels", raw.labels),
        }
    }
}

fn seconds(stamp: &str) -> u64 {
    let time = humantime::parse_rfc3339(stamp).ok();
    let since = time.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    since.map_or(u64::MAX, |since| since.as_secs())
}

impl From<RawService> for Service {
    fn from(raw: RawService) -> Service {
        let mut faults = Faults::default();
        let meta = Meta::of(raw.metadata, &mut faults);
        let spec = faults.object("spec", raw.spec);
        let r#type = match faults.text("spec.type", spec.r#type).as_str() {
            "NodePort" => ServiceType::NodePort,
            "LoadBalancer" => ServiceType::LoadBalancer,
            "ExternalName" => ServiceType::ExternalName,
            _ => ServiceType::ClusterIp,
        };
        let cluster_ips = cluster_ips(spec.cluster_ip, spec.cluster_ips, &mut faults);
        let ports = faults.list("spec.ports[]", "an object", spec.ports);
        let sticky = faults.text("spec.sessionAffinity", spec.session_affinity) == "ClientIP";
        let timeout = timeout(spec.session_affinity_config, &mut faults);
        let internal = faults.text("spec.internalTrafficPolicy", spec.internal_traffic_policy);
        let external = faults.text("spec.externalTrafficPolicy", spec.external_traffic_policy);
        Service {
            name: meta.name,
            version: meta.version,
            uid: meta.uid,
            created: meta.created,
            r#type,
            cluster_ips,
            ports: service_ports(ports, &mut faults),
            external_ips: faults.addresses("spec.externalIPs[]", spec.external_ips),
            ingress: ingress(raw.status, &mut faults),
            source_ranges: ranges(spec.load_balancer_source_ranges, &mut faults),
            affinity: if sticky { timeout } else { 0 },
            internal_local: internal == "Local",
            external_local: external == "Local",
            faults: faults.kept(),
        }
    }
}

/// Servers before 1.20 know one address only.
fn cluster_ips(one: Loose<String>, all: Loose<Vec<Loose<String>>>, faults: &mut Faults) -> Box<[Ipv6Addr]> {
    let all = match all {
        Loose::Absent => Loose::Is(vec![one]),
        all => all,
    };
    let texts = faults.list("spec.clusterIPs[]", "an address or None", all);
    let real = texts.iter().filter(|text| !text.is_empty() && *text != "None");
    real.filter_map(|text| faults.address("spec.clusterIPs[]", text)).collect()
}

/// Each port of a protocol once: the first that names it.
fn service_ports(raw: Vec<RawPort>, faults: &mut Faults) -> Box<[ServicePort]> {
    let mut ports: Vec<ServicePort> = Vec::new();
    for port in raw {
        let Some(port) = service_port(port, faults) else { continue };
        if ports.iter().any(|known| (known.port, known.protocol) == (port.port, port.protocol)) {
            faults.add(
                "spec.ports[].port",
                &format!("{}/{} again", port.port, port.protocol),
                "another in each of them",
            );
        } else {
            ports.push(port);
        }
    }
    ports.into()
}

fn service_port(raw: RawPort, faults: &mut Faults) -> Option<ServicePort> {
    let name = faults.text("spec.ports[].name", raw.name);
    let node_port = match raw.node_port {
        Loose::Is(0) | Loose::Absent => Some(0),
        field => faults.port("spec.ports[].nodePort", field),
    };
    Some(ServicePort {
        port: faults.port("spec.ports[].port", raw.port)?,
        node_port: node_port.unwrap_or(0),
        protocol: faults.protocol("spec.ports[].protocol", raw.protocol)?,
        name: name.into(),
    })
}

fn timeout(config: Loose<RawAffinity>, faults: &mut Faults) -> u32 {
    const WHAT: &str = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
    const WANT: &str = "from 1 to 86400";
    let config = faults.object("spec.sessionAffinityConfig", config);
    let client = faults.object("spec.sessionAffinityConfig.clientIP", config.client_ip);
    let seconds = faults.take(WHAT, WANT, client.timeout_seconds).unwrap_or(AFFINITY);
    if !(1..=LONGEST_AFFINITY).contains(&seconds) {
        faults.add(WHAT, &seconds.to_string(), WANT);
    }
    seconds.clamp(1, LONGEST_AFFINITY) as u32
}

fn ingress(status: Loose<RawStatus>, faults: &mut Faults) -> Box<[Ipv6Addr]> {
    let status = faults.object("status", status);
    let balancer = faults.object("status.loadBalancer", status.load_balancer);
    let all = faults.list("status.loadBalancer.ingress[]", "an object", balancer.ingress);
    let mut addresses = Vec::new();
    for one in all {
        let ip = faults.text("status.loadBalancer.ingress[].ip", one.ip);
        let mode = faults.text("status.loadBalancer.ingress[].ipMode", one.ip_mode);
        if !ip.is_empty() && mode != "Proxy" {
            addresses.extend(faults.address("status.loadBalancer.ingress[].ip", &ip));
        }
    }
    addresses.into()
}

fn ranges(field: Loose<Vec<Loose<String>>>, faults: &mut Faults) -> Box<[IpNet]> {
    const WHAT: &str = "spec.loadBalancerSourceRanges[]";
    let texts = faults.list(WHAT, "a CIDR", field);
    texts.iter().filter_map(|text| faults.parsed(WHAT, "a CIDR", text, |text| text.trim().parse().ok())).collect()
}

impl From<RawSlice> for EndpointSlice {
    fn from(raw: RawSlice) -> EndpointSlice {
        let mut faults = Faults::default();
        let meta = Meta::of(raw.metadata, &mut faults);
        let service = faults.text(SERVICE_NAME, meta.labels.service);
        let ports = faults.list("ports[]", "an object", raw.ports);
        let endpoints = match faults.text("addressType", raw.address_type).as_str() {
            "FQDN" => Vec::new(),
            _ => faults.list("endpoints[]", "an object", raw.endpoints),
        };
        EndpointSlice {
            service: (!service.is_empty()).then(|| format!("{}/{service}", meta.namespace).into()),
            name: meta.name,
            version: meta.version,
            ports: ports.into_iter().filter_map(|port| slice_port(port, &mut faults)).collect(),
            endpoints: endpoints.into_iter().filter_map(|endpoint| self::endpoint(endpoint, &mut faults)).collect(),
            faults: faults.kept(),
        }
    }
}

/// One without a number stands for all ports, which nobody can be led to.
fn slice_port(raw: RawPort, faults: &mut Faults) -> Option<SlicePort> {
    Some(SlicePort {
        name: faults.text("ports[].name", raw.name).into(),
        port: faults.port("ports[].port", raw.port)?,
        protocol: faults.protocol("ports[].protocol", raw.protocol)?,
    })
}

/// Of several addresses the first stands for all. Without a word about its state, an endpoint is ready.
fn endpoint(raw: RawEndpoint, faults: &mut Faults) -> Option<Endpoint> {
    const WHAT: &str = "endpoints[].addresses[]";
    let texts = faults.list(WHAT, "an address", raw.addresses);
    let addr = faults.address(WHAT, texts.first()?)?;
    if !is_unicast(addr) {
        faults.add(WHAT, &addr.to_canonical().to_string(), "an address that a pod can have");
        return None;
    }
    let conditions = faults.object("endpoints[].conditions", raw.conditions);
    let flag = |faults: &mut Faults, name: &str, field| faults.take(name, "true or false", field);
    let node = faults.text("endpoints[].nodeName", raw.node_name);
    let topology = faults.object("endpoints[].topology", raw.topology);
    let node = if node.is_empty() { faults.text("endpoints[].topology", topology.node) } else { node };
    Some(Endpoint {
        addr,
        node: Tag::of(&node),
        hints: hints(raw.hints, faults),
        ready: flag(faults, "endpoints[].conditions.ready", conditions.ready).unwrap_or(true),
        serving: flag(faults, "endpoints[].conditions.serving", conditions.serving).unwrap_or(true),
        terminating: flag(faults, "endpoints[].conditions.terminating", conditions.terminating).unwrap_or(false),
    })
}

fn hints(field: Loose<RawHints>, faults: &mut Faults) -> Option<Box<Hints>> {
    let raw = faults.object("endpoints[].hints", field);
    let mut tags = |what, list| -> Vec<Tag> {
        let all = faults.list(what, "an object", list);
        all.into_iter().map(|hint: RawHint| Tag::of(&faults.text(what, hint.name))).collect()
    };
    let zones = tags("endpoints[].hints.forZones[]", raw.for_zones);
    let nodes = tags("endpoints[].hints.forNodes[]", raw.for_nodes);
    (!zones.is_empty() || !nodes.is_empty()).then(|| Box::new(Hints { zones, nodes }))
}

impl From<RawNode> for Member {
    fn from(raw: RawNode) -> Member {
        let mut faults = Faults::default();
        let meta = Meta::of(raw.metadata, &mut faults);
        let row = raw.rows.or_default().into_iter().next().map(|row| row.or_default().cells);
        let cells = row.unwrap_or(raw.cells).or_default();
        if !cells.is_empty() {
            return Member::of_row(cells.into_iter().map(Loose::or_default).collect(), meta.version);
        }
        let status = faults.object("status", raw.status);
        let all = faults.list("status.addresses[]", "an object", status.addresses);
        let mut addresses = Vec::new();
        for one in all {
            let r#type = faults.text("status.addresses[].type", one.r#type);
            let text = faults.text("status.addresses[].address", one.address);
            if matches!(r#type.as_str(), "InternalIP" | "ExternalIP") {
                addresses.extend(faults.address("status.addresses[].address", &text).filter(|addr| is_unicast(*addr)));
            }
        }
        let zone = faults.text("topology.kubernetes.io/zone", meta.labels.zone);
        let old = faults.text("failure-domain.beta.kubernetes.io/zone", meta.labels.old_zone);
        Member {
            name: meta.name,
            version: meta.version,
            addresses: addresses.into(),
            zone: Some(Tag::of(if zone.is_empty() { &old } else { &zone })),
        }
    }
}

impl Member {
    /// Of the columns that kubectl(1) shows by `-o wide`, the name is the first, and the sixth and seventh are the first address of
    /// either kind, or `<none>`.
    fn of_row(cells: Vec<String>, version: Box<str>) -> Member {
        let addresses = cells.iter().skip(5).take(2).filter_map(|cell| cell.parse().ok()).map(mapped);
        Member {
            name: cells.first().map(String::as_str).unwrap_or_default().into(),
            version,
            addresses: addresses.filter(|addr| is_unicast(*addr)).collect(),
            zone: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn service(value: Value) -> Service {
        serde_json::from_value(value).unwrap()
    }

    fn slice(value: Value) -> EndpointSlice {
        serde_json::from_str(&value.to_string()).unwrap()
    }

    fn ip(text: &str) -> Ipv6Addr {
        mapped(text.parse().unwrap())
    }

    #[test]
    fn a_service_is_read_as_the_api_server_sends_it() {
        let s = service(json!({
            "kind": "Service", "apiVersion": "v1",
            "metadata": {
                "name": "web", "namespace": "shop", "uid": "ab-12", "resourceVersion": "77",
                "creationTimestamp": "2026-11-26T08:00:00Z", "labels": {"app": "web"}, "managedFields": [{"a": {}}],
            },
            "spec": {
                "type": "LoadBalancer", "clusterIP": "172.21.0.9", "clusterIPs": ["172.21.0.9", "fd00::9"],
                "ports": [
                    {"name": "http", "port": 80, "targetPort": "web", "nodePort": 30080, "protocol": "TCP"},
                    {"name": "dns", "port": 53, "targetPort": 5353, "protocol": "UDP"},
                ],
                "externalIPs": ["203.0.113.7"], "sessionAffinity": "ClientIP",
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
                "internalTrafficPolicy": "Cluster", "externalTrafficPolicy": "Local",
                "loadBalancerSourceRanges": ["10.0.0.0/8"], "selector": {"app": "web"},
            },
            "status": {"loadBalancer": {"ingress": [
                {"ip": "198.51.100.1", "ipMode": "VIP"}, {"ip": "198.51.100.2", "ipMode": "Proxy"}, {"hostname": "lb.example"},
                {"ip": "198.51.100.3"},
            ]}},
        }));
        assert_eq!((&*s.name, &*s.version, &*s.uid, s.created), ("shop/web", "77", "ab-12", 1_795_680_000));
        assert_eq!(*s.cluster_ips, [ip("172.21.0.9"), ip("fd00::9")]);
        let ports: Vec<_> = s.ports.iter().map(|p| (&*p.name, p.port, p.node_port, p.protocol)).collect();
        assert_eq!(ports, [("http", 80, 30080, Protocol::Tcp), ("dns", 53, 0, Protocol::Udp)]);
        assert_eq!(*s.external_ips, [ip("203.0.113.7")]);
        assert_eq!(*s.ingress, [ip("198.51.100.1"), ip("198.51.100.3")]);
        assert_eq!(*s.source_ranges, ["10.0.0.0/8".parse().unwrap()]);
        assert_eq!((s.affinity, s.internal_local, s.external_local), (60, false, true));
        assert!(s.faults.is_empty());
    }

    #[test]
    fn of_an_old_server_there_is_one_address_and_of_a_headless_service_none() {
        assert_eq!(*service(json!({"spec": {"clusterIP": "10.0.0.1"}})).cluster_ips, [ip("10.0.0.1")]);
        for spec in [json!({"clusterIP": "None", "clusterIPs": ["None"]}), json!({"clusterIP": ""}), json!({})] {
            let s = service(json!({"spec": spec}));
            assert!(s.cluster_ips.is_empty() && s.faults.is_empty(), "{s:?}");
        }
        let sticky = service(json!({"spec": {"sessionAffinity": "ClientIP"}}));
        assert_eq!((sticky.affinity, sticky.created), (10_800, u64::MAX));
    }

    #[test]
    fn what_is_absurd_is_named_and_the_rest_counts() {
        let s = service(json!({
            "metadata": {"name": "bad", "namespace": "x", "labels": 7},
            "spec": {
                "clusterIPs": ["10.0.0.1", "10.0.0.256", 5], "externalIPs": "203.0.113.7",
                "ports": [
                    {"port": 0}, {"port": 70000}, {"port": "80"}, {"port": -1}, {"port": 80, "protocol": "ICMP"},
                    {"port": 81, "nodePort": 70000}, 9, {"port": 82}, {"port": 82, "name": "again"},
                ],
                "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}},
                "loadBalancerSourceRanges": ["all"],
            },
            "status": [],
        }));
        assert_eq!(*s.cluster_ips, [ip("10.0.0.1")]);
        assert_eq!(s.ports.iter().map(|p| (p.port, p.node_port)).collect::<Vec<_>>(), [(81, 0), (82, 0)]);
        let faults: Vec<&str> = s.faults.iter().map(|f| &**f).collect();
        assert_eq!(
            faults,
            [
                "metadata.labels is 7; it must be an object",
                "spec.clusterIPs[] is 5; it must be an address or None",
                "spec.clusterIPs[] is \"10.0.0.256\"; it must be an address",
                "spec.ports[] is 9; it must be an object",
                "spec.sessionAffinityConfig.clientIP.timeoutSeconds is 0; it must be from 1 to 86400",
                "spec.ports[].port is 0; it must be a port from 1 to 65535",
                "spec.ports[].port is 70000; it must be a port from 1 to 65535",
                "spec.ports[].port is \"80\"; it must be a port from 1 to 65535",
                "spec.ports[].port is -1; it must be a port from 1 to 65535",
                "spec.ports[].protocol is \"ICMP\"; it must be TCP, UDP or SCTP",
                "spec.ports[].nodePort is 70000; it must be a port from 1 to 65535",
                "spec.ports[].port is 82/TCP again; it must be another in each of them",
                "spec.externalIPs[] is \"203.0.113.7\"; it must be a list",
                "status is a list; it must be an object",
                "spec.loadBalancerSourceRanges[] is \"all\"; it must be a CIDR",
            ]
        );
    }

    #[test]
    fn a_slice_of_either_version_is_read() {
        let v1 = json!({
            "metadata": {"name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}, {"name": "all"}, {"port": 0}],
            "endpoints": [
                {"addresses": ["10.1.0.1"], "nodeName": "n1", "conditions": {"ready": true, "serving": true, "terminating": false},
                 "zone": "h", "hints": {"forZones": [{"name": "h"}], "forNodes": [{"name": "n1"}]}},
                {"addresses": ["10.1.0.2", "10.1.0.3"], "conditions": {"ready": null}},
                {"addresses": ["10.1.0.4"], "conditions": {"ready": false, "terminating": true}},
                {"addresses": []}, {"addresses": ["127.0.0.1"]}, {"addresses": ["fe80::1"]},
            ],
        });
        let s = slice(v1);
        assert_eq!((&*s.name, s.service.as_deref()), ("shop/web-1", Some("shop/web")));
        assert_eq!(s.ports.iter().map(|p| (&*p.name, p.port)).collect::<Vec<_>>(), [("http", 8080)]);
        let hints = Hints { zones: [Tag::of("h")].into(), nodes: [Tag::of("n1")].into() };
        let first = Endpoint {
            addr: ip("10.1.0.1"),
            node: Tag::of("n1"),
            hints: Some(Box::new(hints)),
            ready: true,
            serving: true,
            terminating: false,
        };
        assert_eq!(s.endpoints[0], first);
        let rest: Vec<_> = s.endpoints[1..].iter().map(|e| (e.addr, e.ready, e.serving, e.terminating)).collect();
        assert_eq!(rest, [(ip("10.1.0.2"), true, true, false), (ip("10.1.0.4"), false, true, true)]);
        assert_eq!(s.faults.len(), 3, "{:?}", s.faults);
        let beta: EndpointSliceBeta = serde_json::from_value(json!({
            "metadata": {"name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
            "endpoints": [{"addresses": ["fd00::1"], "topology": {"kubernetes.io/hostname": "n2"}}],
        }))
        .unwrap();
        assert_eq!(beta.0.endpoints[0].node, Tag::of("n2"));
        let names = json!({"addressType": "FQDN", "endpoints": [{"addresses": ["example.com"]}]});
        assert!(slice(names.clone()).endpoints.is_empty() && slice(names).faults.is_empty());
    }

    #[test]
    fn a_node_is_its_addresses_and_its_zone() {
        let node = |labels: Value| {
            serde_json::from_value::<Member>(json!({
                "metadata": {"name": "n1", "resourceVersion": "5", "labels": labels},
                "status": {"addresses": [
                    {"type": "InternalIP", "address": "10.0.0.1"}, {"type": "Hostname", "address": "n1"},
                    {"type": "ExternalIP", "address": "203.0.113.1"}, {"type": "InternalIP", "address": "127.0.0.1"},
                ]},
            }))
            .unwrap()
        };
        let member = node(json!({"topology.kubernetes.io/zone": "h", "failure-domain.beta.kubernetes.io/zone": "g"}));
        assert_eq!((&*member.name, &*member.addresses), ("n1", &[ip("10.0.0.1"), ip("203.0.113.1")][..]));
        assert_eq!(member.zone, Some(Tag::of("h")));
        assert_eq!(node(json!({"failure-domain.beta.kubernetes.io/zone": "g"})).zone, Some(Tag::of("g")));
        assert!(node(json!({})).zone.is_some_and(|zone| !zone.is_some()));
    }

    #[test]
    fn a_node_is_read_from_a_row_of_a_table_in_a_list_and_in_a_watch() {
        let cells = json!([
            "n1",
            "Ready",
            "<none>",
            "5d",
            "v1.30.1",
            "10.0.0.1",
            "<none>",
            "Linux",
            "5.10",
            "containerd://1.6"
        ]);
        let listed: Member = serde_json::from_str(&json!({"cells": cells, "object": null}).to_string()).unwrap();
        assert_eq!((&*listed.name, &*listed.addresses, listed.zone), ("n1", &[ip("10.0.0.1")][..], None));
        let watched =
            json!({"kind": "Table", "metadata": {"resourceVersion": "7"}, "rows": [{"cells": cells, "object": null}]});
        let watched: Member = serde_json::from_str(&watched.to_string()).unwrap();
        assert_eq!((&*watched.name, &*watched.version, &*watched.addresses), ("n1", "7", &*listed.addresses));
        // What marks how far all is known has no name.
        let mark: Member = serde_json::from_str(
            r#"{"kind": "Table", "metadata": {"resourceVersion": "9"}, "rows": [{"cells": [""]}]}"#,
        )
        .unwrap();
        assert!(mark.name.is_empty());
    }
}
