//! The fields we read of Kubernetes objects, and what we write there: patches, and the one kind we create, events.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::SystemTime;

use serde::de::{DeserializeOwned, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::pod::PodName;
use crate::uri::percent_encode;

/// What every kind has in common: where its collection lives, and that each change has a version.
pub trait Object: DeserializeOwned {
    /// `api/v1` for the core group, `apis/GROUP/VERSION` for the others.
    const API: &'static str;
    /// The collection's name in a path, such as `pods`.
    const PLURAL: &'static str;

    /// Its resource version.
    fn version(&self) -> &str;
}

/// The path of one object; `namespace` is empty for kinds without. Names are encoded: none can become another path.
pub fn path<T: Object>(namespace: &str, name: &str) -> String {
    format!("{}/{}", collection::<T>(namespace), percent_encode(name))
}

/// The path of a collection: of one namespace, or of all where `namespace` is empty.
pub fn collection<T: Object>(namespace: &str) -> String {
    collection_at(T::API, T::PLURAL, namespace)
}

/// The same of a kind that is named.
pub fn collection_at(api: &str, plural: &str, namespace: &str) -> String {
    match namespace {
        "" => format!("/{api}/{plural}"),
        _ => format!("/{api}/namespaces/{}/{plural}", percent_encode(namespace)),
    }
}

/// `metadata`. Of the annotations only those are kept that somebody of us reads: others can be large.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Meta {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub resource_version: String,
    #[serde(deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "read_annotations")]
    pub annotations: BTreeMap<String, String>,
    #[serde(deserialize_with = "or_default")]
    pub owner_references: Vec<Owner>,
    /// Set once the deletion is asked for; the object may live on for a grace period.
    pub deletion_timestamp: Option<String>,
}

/// Who made an object, such as a ReplicaSet or a StatefulSet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Owner {
    pub kind: String,
    pub name: String,
}

/// Whether one of us reads this annotation.
fn is_read(annotation: &str) -> bool {
    match annotation.split_once('/') {
        Some(("kubernetes.io", name)) => matches!(name, "ingress-bandwidth" | "egress-bandwidth" | "config.hash"),
        Some((domain, _)) => {
            ["aliyun.com", "alibabacloud.com", "projectcalico.org"].iter().any(|d| domain.ends_with(d))
        }
        None => false,
    }
}

fn read_annotations<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, String>, D::Error> {
    struct Annotations;
    impl<'de> Visitor<'de> for Annotations {
        type Value = BTreeMap<String, String>;

        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("annotations")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(BTreeMap::new())
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut kept = BTreeMap::new();
            while let Some(key) = map.next_key::<String>()? {
                if is_read(&key) {
                    kept.insert(key, map.next_value()?);
                } else {
                    map.next_value::<IgnoredAny>()?;
                }
            }
            Ok(kept)
        }
    }
    from.deserialize_any(Annotations)
}

/// Go writes an empty list or map as `null` here and there.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Pod {
    #[serde(rename = "metadata")]
    pub meta: Meta,
    pub spec: PodSpec,
    pub status: PodStatus,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    pub node_name: String,
    pub host_network: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PodStatus {
    pub phase: Phase,
    #[serde(rename = "podIP")]
    pub pod_ip: String,
    #[serde(rename = "podIPs", deserialize_with = "or_default")]
    pub pod_ips: Vec<PodIp>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PodIp {
    pub ip: String,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum Phase {
    Pending,
    Running,
    Succeeded,
    Failed,
    #[default]
    #[serde(other)]
    Unknown,
}

/// The label on a pod or node that tells us to keep our hands off.
pub const IGNORE_LABEL: &str = "k8s.aliyun.com/ignore-by-terway";

/// The annotation that tells a pod's addresses before the kubelet does, separated by commas.
pub const POD_IPS: &str = "k8s.aliyun.com/pod-ips";
/// The annotation on a node that tells how many addresses for pods there can be.
pub const MAX_IPS: &str = "k8s.aliyun.com/max-available-ip";
/// The extended resource that counts ENIs for pods that have one each.
pub const ENI_RESOURCE: &str = "aliyun/eni";
/// The extended resource that counts addresses for pods that share ENIs; named as the old Terway names their pool.
pub const ENIIP_RESOURCE: &str = "aliyun/eniip";
/// The label of a node that names a ConfigMap with its configuration.
pub const CONFIG_LABEL: &str = "terway-config";

/// The annotation of a pod that wants an ENI to itself.
pub const WHOLE_ENI: &str = "k8s.aliyun.com/ENI";
/// The name under which a kubelet that is told none registers its node: machines of the cloud are called such as `iZ2ze9Z`.
pub fn node_of_host(hostname: &str) -> String {
    hostname.trim().to_lowercase()
}

/// The label of a node whose pods have an ENI each, and the value that says so.
pub const WHOLE_ENI_LABEL: (&str, &str) = ("k8s.aliyun.com/exclusive-mode-eni-type", "eniOnly");

impl Pod {
    pub fn name(&self) -> PodName {
        PodName::new(&self.meta.namespace, &self.meta.name)
    }

    /// Its containers have ended for good; the object may stay for long, the address is no longer used.
    pub fn is_over(&self) -> bool {
        matches!(self.status.phase, Phase::Succeeded | Phase::Failed)
    }

    /// Whether its network is ours to make.
    pub fn is_ours(&self) -> bool {
        !self.spec.host_network && !self.meta.is_ignored()
    }

    /// Its owner wants an ENI for it alone.
    pub fn wants_whole_eni(&self) -> bool {
        self.meta.annotations.get(WHOLE_ENI).is_some_and(|value| !matches!(value.as_str(), "" | "false" | "0"))
    }

    /// The addresses that the kubelet reports, of servers before 1.16 too.
    pub fn ips(&self) -> impl Iterator<Item = IpAddr> {
        let single = self.status.pod_ips.is_empty().then_some(self.status.pod_ip.as_str());
        self.status.pod_ips.iter().map(|p| p.ip.as_str()).chain(single).filter_map(|ip| ip.parse().ok())
    }
}

impl Meta {
    pub fn is_ignored(&self) -> bool {
        self.labels.get(IGNORE_LABEL).is_some_and(|v| v == "true")
    }
}

impl Object for Pod {
    const API: &'static str = "api/v1";
    const PLURAL: &'static str = "pods";

    fn version(&self) -> &str {
        &self.meta.resource_version
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Node {
    #[serde(rename = "metadata")]
    pub meta: Meta,
    pub spec: NodeSpec,
    pub status: NodeStatus,
}

impl Node {
    /// Its pods have an ENI each.
    pub fn has_whole_enis(&self) -> bool {
        let (label, value) = WHOLE_ENI_LABEL;
        self.meta.labels.get(label).is_some_and(|v| v.eq_ignore_ascii_case(value))
    }

    /// The ConfigMap that its label names.
    pub fn config_name(&self) -> Option<&str> {
        self.meta.labels.get(CONFIG_LABEL).map(String::as_str).filter(|name| !name.is_empty())
    }

    /// The instance that `spec.providerID` names; none where nobody has filled it in.
    pub fn instance(&self) -> Option<&str> {
        let id = self.spec.provider_id.as_str();
        let id = id.split_once("://").map_or(id, |(_, id)| id).trim_matches('/');
        id.rsplit(['.', '/']).next().filter(|instance| !instance.is_empty())
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct NodeSpec {
    /// `REGION.INSTANCE-ID` on Alibaba Cloud.
    #[serde(rename = "providerID")]
    pub provider_id: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    #[serde(deserialize_with = "or_default")]
    pub capacity: Resources,
    #[serde(deserialize_with = "or_default")]
    pub allocatable: Resources,
    #[serde(deserialize_with = "or_default")]
    pub conditions: Vec<Condition>,
}

/// How much of each resource there is, in Kubernetes' quantities.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Resources(BTreeMap<String, Value>);

impl Resources {
    /// A resource that is counted, as pods and extended resources are; none where it is not there.
    pub fn count(&self, name: &str) -> Option<u64> {
        match self.0.get(name)? {
            Value::String(text) => text.parse().ok(),
            other => other.as_u64(),
        }
    }

    pub fn contains(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }
}

/// How one aspect of a node is, and since when.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    pub r#type: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    pub reason: String,
    pub message: String,
    #[serde(deserialize_with = "or_default")]
    pub last_heartbeat_time: String,
    #[serde(deserialize_with = "or_default")]
    pub last_transition_time: String,
}

impl Object for Node {
    const API: &'static str = "api/v1";
    const PLURAL: &'static str = "nodes";

    fn version(&self) -> &str {
        &self.meta.resource_version
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ConfigMap {
    #[serde(rename = "metadata")]
    pub meta: Meta,
    #[serde(deserialize_with = "or_default")]
    pub data: BTreeMap<String, String>,
}

impl Object for ConfigMap {
    const API: &'static str = "api/v1";
    const PLURAL: &'static str = "configmaps";

    fn version(&self) -> &str {
        &self.meta.resource_version
    }
}

/// What a patch's body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patch {
    /// RFC 7396: lists are replaced.
    Merge,
    /// Kubernetes' own: lists of built-in kinds are merged by key.
    Strategic,
}

/// Something to be written to the API server.
#[derive(Debug, Clone, PartialEq)]
pub enum Write {
    /// A new object in the collection at `path`.
    Create {
        path: String,
        body: Value,
    },
    Patch {
        path: String,
        patch: Patch,
        body: Value,
    },
}

impl Write {
    pub fn annotate_pod(pod: &PodName, key: &str, value: &str) -> Write {
        let body = json!({"metadata": {"annotations": {key: value}}});
        Write::Patch { path: path::<Pod>(&pod.namespace, &pod.name), patch: Patch::Merge, body }
    }

    pub fn node_meta(node: &Node, body: Value) -> Write {
        Write::Patch { path: path::<Node>("", &node.meta.name), patch: Patch::Merge, body }
    }

    /// Conditions are merged by type: those of others stay.
    pub fn node_status(node: &Node, body: Value) -> Write {
        let path = format!("{}/status", path::<Node>("", &node.meta.name));
        Write::Patch { path, patch: Patch::Strategic, body }
    }

    pub fn path(&self) -> &str {
        match self {
            Write::Create { path, .. } | Write::Patch { path, .. } => path,
        }
    }
}

/// A line in `kubectl describe`; write-only for us.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// It stands for many that differ in their words only; its own are the last one's.
    #[serde(skip)]
    combined: bool,
    api_version: &'static str,
    kind: &'static str,
    metadata: EventMeta,
    involved_object: About,
    reason: String,
    message: String,
    r#type: EventType,
    source: EventSource,
    count: u32,
    first_timestamp: String,
    last_timestamp: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct EventMeta {
    name: String,
    namespace: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct EventSource {
    component: &'static str,
    host: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum EventType {
    Normal,
    Warning,
}

/// The object an event is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct About {
    api_version: &'static str,
    kind: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    namespace: String,
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    uid: String,
}

impl About {
    /// `uid` may be empty where it is not known: `kubectl describe` then does not show the event.
    pub fn pod(pod: &PodName, uid: impl Into<String>) -> About {
        About {
            api_version: "v1",
            kind: "Pod",
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            uid: uid.into(),
        }
    }

    /// Of a Service, by `namespace/name`.
    pub fn service(name: &str, uid: impl Into<String>) -> About {
        About::named("v1", "Service", name, uid.into())
    }

    /// Of an EndpointSlice, likewise.
    pub fn slice(name: &str) -> About {
        About::named("discovery.k8s.io/v1", "EndpointSlice", name, String::new())
    }

    /// Of any kind, by its `namespace/name`, or its name alone.
    pub fn named(api_version: &'static str, kind: &'static str, name: &str, uid: String) -> About {
        let (namespace, name) = name.split_once('/').unwrap_or(("", name));
        About { api_version, kind, namespace: namespace.into(), name: name.into(), uid }
    }

    /// The kubelet's events about its node bear the node's name as uid, and `kubectl describe node` looks for that.
    pub fn node(name: impl Into<String>) -> About {
        let name = name.into();
        About { api_version: "v1", kind: "Node", namespace: String::new(), uid: name.clone(), name }
    }
}

/// The API server refuses longer messages and reasons.
const MESSAGE_MAX: usize = 1024;
const REASON_MAX: usize = 128;
/// The words that client-go has for it.
const COMBINED: &str = "(combined from similar events): ";

impl Event {
    /// An event of `terway-daemon` on `host`, which happened once, `now`.
    pub fn new(about: About, host: &str, r#type: EventType, reason: &str, message: &str, now: SystemTime) -> Event {
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let namespace = if about.namespace.is_empty() { "default" } else { &about.namespace };
        let at = humantime::format_rfc3339_seconds(now).to_string();
        Event {
            combined: false,
            api_version: "v1",
            kind: "Event",
            metadata: EventMeta {
                name: format!("{}.{:x}", about.name, since.as_nanos()),
                namespace: namespace.to_owned(),
            },
            involved_object: about,
            reason: head(reason, REASON_MAX).to_owned(),
            message: head(message, MESSAGE_MAX).to_owned(),
            r#type,
            source: EventSource { component: "terway-daemon", host: host.to_owned() },
            count: 1,
            first_timestamp: at.clone(),
            last_timestamp: at,
        }
    }

    /// What makes two events one that has happened twice.
    pub fn key(&self) -> (About, String, String) {
        let words = if self.combined { COMBINED } else { &self.message };
        (self.involved_object.clone(), self.reason.clone(), words.to_owned())
    }

    /// How often it has happened.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// It has happened once more, as this one says.
    pub fn again(&mut self, newer: &Event) {
        self.count += 1;
        self.message.clone_from(&newer.message);
        self.last_timestamp.clone_from(&newer.last_timestamp);
    }

    /// The event that this one and all others of its reason about its object become.
    pub fn combined(mut self) -> Event {
        self.message = head(&format!("{COMBINED}{}", self.message), MESSAGE_MAX).to_owned();
        self.combined = true;
        self
    }

    /// The collection to create it in.
    pub fn path(&self) -> String {
        format!("/api/v1/namespaces/{}/events", percent_encode(&self.metadata.namespace))
    }

    pub fn create(&self) -> Write {
        Write::Create { path: self.path(), body: serde_json::to_value(self).expect("an event is plain data") }
    }

    /// Tells of an event that is there how often it has happened by now.
    pub fn recount(&self) -> Write {
        let path = format!("{}/{}", self.path(), percent_encode(&self.metadata.name));
        let body = json!({"count": self.count, "lastTimestamp": self.last_timestamp, "message": self.message});
        Write::Patch { path, patch: Patch::Strategic, body }
    }
}

/// The first `max` bytes, at a character's edge.
pub fn head(text: &str, max: usize) -> &str {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_node_is_registered_under_its_host_name_in_lower_case() {
        assert_eq!(node_of_host("iZ2ze9abcDEFZ\n"), "iz2ze9abcdefz");
        assert_eq!(node_of_host("cn-hangzhou.192.168.0.10"), "cn-hangzhou.192.168.0.10");
    }

    #[test]
    fn a_pod_is_read_and_what_nobody_reads_is_left_out() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {
                "namespace": "default", "name": "web-0", "uid": "u1", "resourceVersion": "42",
                "labels": {"app": "web"},
                "annotations": {
                    "kubectl.kubernetes.io/last-applied-configuration": "{...}",
                    "k8s.aliyun.com/egress-bandwidth": "10M",
                    "kubernetes.io/ingress-bandwidth": "1M",
                    "kubernetes.io/psp": "x",
                },
                "ownerReferences": [{"kind": "StatefulSet", "name": "web", "apiVersion": "apps/v1"}],
                "managedFields": [{"f:metadata": {}}],
                "deletionTimestamp": "2024-01-01T00:00:00Z",
            },
            "spec": {"nodeName": "n1", "containers": [{"name": "c"}]},
            "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]},
        }))
        .unwrap();
        assert_eq!(pod.name().to_string(), "default/web-0");
        assert_eq!(pod.meta.resource_version, "42");
        let annotations: Vec<_> = pod.meta.annotations.keys().map(String::as_str).collect();
        assert_eq!(annotations, ["k8s.aliyun.com/egress-bandwidth", "kubernetes.io/ingress-bandwidth"]);
        assert_eq!(pod.meta.owner_references[0].kind, "StatefulSet");
        assert!(pod.meta.deletion_timestamp.is_some());
        assert_eq!(pod.spec.node_name, "n1");
        assert_eq!(pod.ips().map(|ip| ip.to_string()).collect::<Vec<_>>(), ["10.0.0.1", "fd00::1"]);
        assert!(pod.is_ours() && !pod.is_over());
    }

    #[test]
    fn nulls_and_missing_fields_are_empty() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"labels": null, "annotations": null, "ownerReferences": null, "deletionTimestamp": null},
            "status": {"phase": "Evaporated", "podIPs": null, "podIP": "10.0.0.9"},
        }))
        .unwrap();
        assert_eq!(pod.status.phase, Phase::Unknown);
        assert_eq!(pod.ips().collect::<Vec<_>>(), ["10.0.0.9".parse::<IpAddr>().unwrap()]);
        assert_eq!(serde_json::from_str::<Pod>("{}").unwrap(), Pod::default());
        assert_eq!(serde_json::from_str::<ConfigMap>(r#"{"data": null}"#).unwrap(), ConfigMap::default());
    }

    #[test]
    fn pods_of_the_host_and_pods_that_say_so_are_not_ours() {
        let mut pod = Pod::default();
        assert!(pod.is_ours());
        pod.spec.host_network = true;
        assert!(!pod.is_ours());
        pod.spec.host_network = false;
        pod.meta.labels.insert("k8s.aliyun.com/ignore-by-terway".into(), "false".into());
        assert!(pod.is_ours());
        pod.meta.labels.insert("k8s.aliyun.com/ignore-by-terway".into(), "true".into());
        assert!(!pod.is_ours());
    }

    #[test]
    fn a_pod_wants_an_eni_to_itself_when_its_annotation_is_not_false() {
        let wants = |value: &str| {
            let mut pod = Pod::default();
            pod.meta.annotations.insert("k8s.aliyun.com/ENI".into(), value.into());
            pod.wants_whole_eni()
        };
        assert!(wants("true") && wants("1") && wants("yes"));
        assert!(!wants("") && !wants("false") && !wants("0") && !Pod::default().wants_whole_eni());
    }

    #[test]
    fn a_pod_is_over_when_it_succeeded_or_failed() {
        let over = |phase| Pod { status: PodStatus { phase, ..Default::default() }, ..Default::default() }.is_over();
        assert!(over(Phase::Succeeded) && over(Phase::Failed));
        assert!(!over(Phase::Pending) && !over(Phase::Running) && !over(Phase::Unknown));
    }

    #[test]
    fn a_node_tells_its_instance_its_resources_and_its_conditions() {
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": "n1", "labels": {"terway-config": "big"}},
            "spec": {"providerID": "cn-beijing.i-2ze1", "podCIDR": "10.0.0.0/24"},
            "status": {
                "capacity": {"pods": "110", "cpu": "3900m", "aliyun/eni": 3},
                "allocatable": null,
                "conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": null, "reason": "KubeletReady"}],
                "images": [{"names": ["busybox"]}],
            },
        }))
        .unwrap();
        assert_eq!(node.instance(), Some("i-2ze1"));
        let count = |name| node.status.capacity.count(name);
        assert_eq!(
            (count("pods"), count("aliyun/eni"), count("cpu"), count("memory")),
            (Some(110), Some(3), None, None)
        );
        assert!(node.status.capacity.contains("cpu") && !node.status.allocatable.contains("pods"));
        assert_eq!(
            (node.status.conditions[0].r#type.as_str(), node.status.conditions[0].reason.as_str()),
            ("Ready", "KubeletReady")
        );
        for (id, want) in [("", None), ("i-1", Some("i-1")), ("alicloud://cn-beijing.i-2", Some("i-2")), ("x://", None)]
        {
            let node = Node { spec: NodeSpec { provider_id: id.into() }, ..Node::default() };
            assert_eq!(node.instance(), want, "{id}");
        }
    }

    #[test]
    fn a_name_cannot_leave_its_path() {
        assert_eq!(path::<Pod>("default", "web-0"), "/api/v1/namespaces/default/pods/web-0");
        assert_eq!(path::<Node>("", "cn-beijing.10.0.0.1"), "/api/v1/nodes/cn-beijing.10.0.0.1");
        assert_eq!(path::<Pod>("a/b", "../x?y=é"), "/api/v1/namespaces/a%2Fb/pods/..%2Fx%3Fy%3D%C3%A9");
        assert_eq!(collection::<Pod>(""), "/api/v1/pods");
    }

    #[test]
    fn an_event_has_what_kubectl_shows() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_nanos(1_700_000_000_000_000_255);
        let about = About::pod(&PodName::new("default", "web-0"), "u1");
        let long = "é".repeat(600);
        let event = Event::new(about, "n1", EventType::Warning, "AllocIPFailed", &long, now);
        assert_eq!(event.path(), "/api/v1/namespaces/default/events");
        assert_eq!(
            serde_json::to_value(&event).unwrap(),
            json!({
                "apiVersion": "v1", "kind": "Event",
                "metadata": {"name": "web-0.17979cfe362a00ff", "namespace": "default"},
                "involvedObject":
                    {"apiVersion": "v1", "kind": "Pod", "namespace": "default", "name": "web-0", "uid": "u1"},
                "reason": "AllocIPFailed", "message": "é".repeat(512), "type": "Warning",
                "source": {"component": "terway-daemon", "host": "n1"}, "count": 1,
                "firstTimestamp": "2023-11-14T22:13:20Z", "lastTimestamp": "2023-11-14T22:13:20Z",
            })
        );
    }

    #[test]
    fn events_of_nodes_live_in_the_default_namespace() {
        let now = SystemTime::UNIX_EPOCH;
        let event = Event::new(About::node("n1"), "n1", EventType::Normal, "r", "m", now);
        assert_eq!(event.path(), "/api/v1/namespaces/default/events");
        let about = serde_json::to_value(&event).unwrap()["involvedObject"].clone();
        assert_eq!(about, json!({"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "n1"}));
    }
}
