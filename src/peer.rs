//! Whom policies speak of: the fields they select pods, namespaces, service accounts and nodes by, in few bytes.
//!
//! Nothing here fails to be read: what is wrong within an object is left out.

use std::net::IpAddr;
use std::sync::Arc;

use serde::de::{Deserializer, Error, MapAccess};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::cluster::Name;
use crate::loose::{Loose, Shape};
use crate::object::Object;
use crate::object_shape;
use crate::rules::{SCTP, TCP, UDP};

/// Labels in the order of their keys.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Labels(Box<[(Box<str>, Box<str>)]>);

impl Labels {
    pub fn get(&self, key: &str) -> Option<&str> {
        let at = self.0.binary_search_by(|(k, _)| (**k).cmp(key)).ok()?;
        Some(&self.0[at].1)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (&**key, &**value))
    }
}

impl FromIterator<(Box<str>, Box<str>)> for Labels {
    fn from_iter<T: IntoIterator<Item = (Box<str>, Box<str>)>>(some: T) -> Labels {
        let sorted: std::collections::BTreeMap<Box<str>, Box<str>> = some.into_iter().collect();
        Labels(sorted.into_iter().collect())
    }
}

impl Shape for Labels {
    fn object<'de, A: MapAccess<'de>>(mut object: A) -> Result<Option<Labels>, A::Error> {
        let mut all: Vec<(Box<str>, Box<str>)> = Vec::new();
        while let Some((key, value)) = object.next_entry::<String, Loose<String>>()? {
            if let Loose::Is(value) = value {
                all.push((key.into(), value.into()));
            }
        }
        Ok(Some(all.into_iter().collect()))
    }
}

/// A pod as policies see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    pub name: Name,
    pub version: Box<str>,
    pub labels: Arc<Labels>,
    pub addresses: Box<[IpAddr]>,
    pub node: Name,
    /// With its namespace.
    pub account: Name,
    /// Those with a name.
    pub ports: Arc<[ContainerPort]>,
    /// Its addresses are its node's.
    pub is_on_host: bool,
    /// It has ended for good: its addresses may be another's by now.
    pub is_over: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerPort {
    pub name: Box<str>,
    pub protocol: u8,
    pub number: u16,
}

/// A namespace, or a service account by its `namespace/name`: labels are all that is asked of either.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labelled {
    pub name: Name,
    pub version: Box<str>,
    pub labels: Labels,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub name: Name,
    pub version: Box<str>,
    pub labels: Labels,
    pub addresses: Box<[IpAddr]>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Namespace(pub Labelled);

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct ServiceAccount(pub Labelled);

/// A pod of our own node, as we serve it and as policies see it: one watch tells of both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Own {
    pub served: crate::object::Pod,
    pub seen: Pod,
}

impl<'de> Deserialize<'de> for Own {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Own, D::Error> {
        let text = Box::<RawValue>::deserialize(from)?;
        let served = serde_json::from_slice(text.get().as_bytes()).map_err(D::Error::custom)?;
        Ok(Own { served, seen: serde_json::from_slice(text.get().as_bytes()).map_err(D::Error::custom)? })
    }
}

/// The namespace of a `namespace/name`.
pub fn namespace_of(name: &str) -> &str {
    name.split_once('/').map_or("", |(namespace, _)| namespace)
}

macro_rules! object {
    ($name:ty, $plural:literal, $version:expr) => {
        impl Object for $name {
            const API: &'static str = "api/v1";
            const PLURAL: &'static str = $plural;

            fn version(&self) -> &str {
                let version: fn(&Self) -> &str = $version;
                version(self)
            }
        }
    };
}

object!(Pod, "pods", |pod| &pod.version);
object!(Own, "pods", |own| &own.seen.version);
object!(Namespace, "namespaces", |namespace| &namespace.0.version);
object!(ServiceAccount, "serviceaccounts", |account| &account.0.version);
object!(Node, "nodes", |node| &node.version);

// As it is sent

#[derive(Default, Deserialize)]
#[serde(default)]
struct Raw<S, T> {
    metadata: Loose<RawMeta>,
    spec: S,
    status: T,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawMeta {
    namespace: Loose<String>,
    name: Loose<String>,
    resource_version: Loose<String>,
    labels: Loose<Labels>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawSpec {
    node_name: Loose<String>,
    host_network: Loose<bool>,
    service_account_name: Loose<String>,
    containers: Loose<Vec<Loose<RawContainer>>>,
    init_containers: Loose<Vec<Loose<RawContainer>>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawContainer {
    ports: Loose<Vec<Loose<RawPort>>>,
    restart_policy: Loose<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawPort {
    name: Loose<String>,
    protocol: Loose<String>,
    container_port: Loose<i64>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawStatus {
    phase: Loose<String>,
    #[serde(rename = "podIP")]
    pod_ip: Loose<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Loose<Vec<Loose<RawIp>>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawIp {
    ip: Loose<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawNodeStatus {
    addresses: Loose<Vec<Loose<RawAddress>>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawAddress {
    address: Loose<String>,
}

#[derive(Default, Deserialize)]
struct Unread {}

object_shape!(RawMeta, RawSpec, RawContainer, RawPort, RawStatus, RawIp, RawNodeStatus, RawAddress, Unread);

fn is<T: Default>(field: Loose<T>) -> T {
    field.or_default()
}

fn items<T>(field: Loose<Vec<Loose<T>>>) -> impl Iterator<Item = T> {
    is(field).into_iter().filter_map(|item| if let Loose::Is(item) = item { Some(item) } else { None })
}

fn addresses(texts: impl Iterator<Item = String>) -> Box<[IpAddr]> {
    let mut all: Vec<IpAddr> = texts.filter_map(|text| text.parse().ok()).map(|ip: IpAddr| ip.to_canonical()).collect();
    all.sort();
    all.dedup();
    all.into()
}

impl RawMeta {
    fn labelled(self) -> Labelled {
        let (namespace, name) = (is(self.namespace), is(self.name));
        let name = if namespace.is_empty() { name } else { format!("{namespace}/{name}") };
        Labelled { name: name.into(), version: is(self.resource_version).into(), labels: is(self.labels) }
    }
}

impl<'de> Deserialize<'de> for Labelled {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Labelled, D::Error> {
        let raw = Raw::<Loose<Unread>, Loose<Unread>>::deserialize(from)?;
        Ok(is(raw.metadata).labelled())
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Node, D::Error> {
        let raw = Raw::<Loose<Unread>, Loose<RawNodeStatus>>::deserialize(from)?;
        let Labelled { name, version, labels } = is(raw.metadata).labelled();
        let addresses = addresses(items(is(raw.status).addresses).map(|one| is(one.address)));
        Ok(Node { name, version, labels, addresses })
    }
}

impl<'de> Deserialize<'de> for Pod {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Pod, D::Error> {
        let raw = Raw::<Loose<RawSpec>, Loose<RawStatus>>::deserialize(from)?;
        let Labelled { name, version, labels } = is(raw.metadata).labelled();
        let (spec, status) = (is(raw.spec), is(raw.status));
        let one = is(status.pod_ip);
        let all = items(status.pod_ips).map(|ip| is(ip.ip));
        // Of init containers only those live on that are restarted always.
        let sidecars =
            items(spec.init_containers).filter(|c| matches!(&c.restart_policy, Loose::Is(p) if p == "Always"));
        let containers = items(spec.containers).chain(sidecars);
        let account = is(spec.service_account_name);
        let namespace = namespace_of(&name).to_owned();
        Ok(Pod {
            name,
            version,
            labels: labels.into(),
            addresses: addresses(all.chain([one])),
            node: is(spec.node_name).into(),
            account: format!("{}/{}", namespace, if account.is_empty() { "default" } else { &account }).into(),
            ports: containers.flat_map(|container| items(container.ports)).filter_map(named).collect(),
            is_on_host: is(spec.host_network),
            is_over: matches!(is(status.phase).as_str(), "Succeeded" | "Failed"),
        })
    }
}

fn named(port: RawPort) -> Option<ContainerPort> {
    let protocol = match is(port.protocol).as_str() {
        "TCP" | "" => TCP,
        "UDP" => UDP,
        "SCTP" => SCTP,
        _ => return None,
    };
    let name = is(port.name);
    let number = u16::try_from(is(port.container_port)).ok().filter(|number| *number != 0)?;
    (!name.is_empty()).then(|| ContainerPort { name: name.into(), protocol, number })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_is_what_policies_select_it_by() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"namespace": "a", "name": "p", "resourceVersion": "3", "labels": {"b": "2", "a": "1", "bad": 7}},
            "spec": {
                "nodeName": "n", "serviceAccountName": "sa",
                "containers": [
                    {"ports": [{"name": "web", "containerPort": 80}, {"containerPort": 81}, {"name": "x", "containerPort": 0}]},
                    {"ports": [{"name": "dns", "protocol": "UDP", "containerPort": 53}, {"name": "q", "protocol": "QUIC", "containerPort": 1}]},
                    {"ports": null}, 5,
                ],
                "initContainers": [
                    {"ports": [{"name": "init", "containerPort": 1}]},
                    {"restartPolicy": "Always", "ports": [{"name": "side", "protocol": "SCTP", "containerPort": 2}]},
                ],
            },
            "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}, {"ip": "x"}]},
        }))
        .unwrap();
        assert_eq!(
            (&*pod.name, &*pod.node, &*pod.account, pod.is_on_host, pod.is_over),
            ("a/p", "n", "a/sa", false, false)
        );
        assert_eq!(pod.labels.iter().collect::<Vec<_>>(), [("a", "1"), ("b", "2")]);
        assert_eq!((pod.labels.get("b"), pod.labels.get("c")), (Some("2"), None));
        assert_eq!(*pod.addresses, ["10.0.0.1".parse::<IpAddr>().unwrap(), "fd00::1".parse().unwrap()]);
        let ports: Vec<_> = pod.ports.iter().map(|p| (&*p.name, p.protocol, p.number)).collect();
        assert_eq!(ports, [("web", 6, 80), ("dns", 17, 53), ("side", 132, 2)]);
    }

    #[test]
    fn whatever_is_sent_is_read() {
        for odd in [json!({}), json!({"metadata": 5, "spec": [], "status": "x"}), json!({"spec": {"containers": {}}})] {
            let pod: Pod = serde_json::from_value(odd.clone()).unwrap();
            assert_eq!((&*pod.name, &*pod.account, pod.ports.len()), ("", "/default", 0));
            assert!(serde_json::from_value::<Node>(odd.clone()).unwrap().addresses.is_empty());
            assert_eq!(serde_json::from_value::<Namespace>(odd).unwrap().0.labels, Labels::default());
        }
        let over: Pod =
            serde_json::from_value(json!({"spec": {"hostNetwork": true}, "status": {"phase": "Failed"}})).unwrap();
        assert!(over.is_on_host && over.is_over);
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": "n"}, "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.9"}, {"address": "n"}]},
        }))
        .unwrap();
        assert_eq!(*node.addresses, ["10.0.0.9".parse::<IpAddr>().unwrap()]);
    }
}
