//! Objects of every kind under their paths, with versions and a history that can be forgotten.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use serde_json::{Value, json};

/// Where an object lives. `collection` is the path over all namespaces, such as `/api/v1/pods`.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub collection: String,
    pub namespace: String,
    pub name: String,
}

impl Key {
    pub fn plural(&self) -> &str {
        self.collection.rsplit('/').next().unwrap_or_default()
    }

    /// The key of an object that says of itself what it is.
    pub fn of(object: &Value) -> Key {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let api = match text("/apiVersion") {
            v if v.is_empty() => "api/v1".to_owned(),
            v if v.contains('/') => format!("apis/{v}"),
            v => format!("api/{v}"),
        };
        let kind = text("/kind");
        assert!(!kind.is_empty(), "an object without kind: {object}");
        let collection = format!("/{api}/{}", plural(&kind));
        Key { collection, namespace: text("/metadata/namespace"), name: text("/metadata/name") }
    }
}

/// `NetworkPolicy` is `networkpolicies`, `Endpoints` stays `endpoints`.
pub fn plural(kind: &str) -> String {
    let kind = kind.to_ascii_lowercase();
    match kind.strip_suffix('y') {
        Some(stem) if !stem.ends_with(['a', 'e', 'i', 'o', 'u']) => format!("{stem}ies"),
        _ if kind == "endpoints" => kind,
        _ if kind.ends_with('s') => format!("{kind}es"),
        _ => format!("{kind}s"),
    }
}

/// One change: what was there before and what is there now.
#[derive(Debug, Clone)]
pub struct Record {
    pub version: u64,
    pub key: Key,
    pub old: Option<Arc<Value>>,
    pub new: Option<Arc<Value>>,
}

#[derive(Debug)]
pub struct Store {
    version: u64,
    objects: BTreeMap<Key, Arc<Value>>,
    history: VecDeque<Record>,
    /// The version of the last change that is forgotten.
    floor: u64,
    keep: usize,
}

impl Default for Store {
    fn default() -> Store {
        Store { version: 1, objects: BTreeMap::new(), history: VecDeque::new(), floor: 0, keep: 1000 }
    }
}

impl Store {
    pub fn version(&self) -> u64 {
        self.version
    }

    /// How many changes to remember.
    pub fn keep(&mut self, changes: usize) {
        self.keep = changes;
        self.trim();
    }

    pub fn forget(&mut self) {
        self.history.clear();
        self.floor = self.version;
    }

    pub fn get(&self, key: &Key) -> Option<&Arc<Value>> {
        self.objects.get(key)
    }

    /// The objects of a collection, of one namespace where it is not empty.
    pub fn list<'a>(&'a self, collection: &'a str, namespace: &'a str) -> impl Iterator<Item = &'a Arc<Value>> {
        self.objects
            .iter()
            .filter(move |(k, _)| k.collection == collection && (namespace.is_empty() || k.namespace == namespace))
            .map(|(_, object)| object)
    }

    /// Everything called so, whatever its group.
    pub fn find(&self, plural: &str, namespace: &str, name: &str) -> Option<&Key> {
        let mut from = Bound::Unbounded;
        while let Some((first, _)) = self.objects.range((from, Bound::Unbounded)).next() {
            let key = Key { namespace: namespace.into(), name: name.into(), ..first.clone() };
            if key.plural() == plural
                && let Some((key, _)) = self.objects.get_key_value(&key)
            {
                return Some(key);
            }
            // Behind the last of this collection.
            from = Bound::Included(Key { collection: format!("{}\0", first.collection), ..Key::default() });
        }
        None
    }

    /// What there is of this group and version.
    pub fn plurals(&self, api: &str) -> BTreeSet<&str> {
        let of_api = self.objects.keys().filter(|key| key.collection.starts_with(&format!("{api}/")));
        of_api.map(Key::plural).collect()
    }

    /// The changes after a version; `None` where some of them are forgotten.
    pub fn since(&self, version: u64) -> Option<impl Iterator<Item = &Record>> {
        let start = self.history.partition_point(|r| r.version <= version);
        (version >= self.floor).then(|| self.history.range(start..))
    }

    /// Creates or replaces; fills in what the server fills in.
    pub fn put(&mut self, key: Key, mut object: Value) -> Arc<Value> {
        self.version += 1;
        let old = self.objects.get(&key).cloned();
        let version = self.version;
        let uid = match &old {
            Some(old) => old["metadata"]["uid"].clone(),
            None => json!(format!("00000000-0000-4000-8000-{version:012x}")),
        };
        let meta = &mut object["metadata"];
        meta["name"] = json!(key.name);
        if !key.namespace.is_empty() {
            meta["namespace"] = json!(key.namespace);
        }
        if old.is_some() || meta["uid"].as_str().is_none_or(str::is_empty) {
            meta["uid"] = uid;
        }
        if meta["creationTimestamp"].is_null() {
            meta["creationTimestamp"] = json!("2024-01-01T00:00:00Z");
        }
        meta["resourceVersion"] = json!(version.to_string());
        let object = Arc::new(object);
        self.objects.insert(key.clone(), object.clone());
        self.record(key, old, Some(object.clone()));
        object
    }

    /// The object as it was, with the version of its deletion.
    pub fn delete(&mut self, key: &Key) -> Option<Arc<Value>> {
        let old = self.objects.remove(key)?;
        self.version += 1;
        let mut last = (*old).clone();
        last["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let last = Arc::new(last);
        self.record(key.clone(), Some(last.clone()), None);
        Some(last)
    }

    fn record(&mut self, key: Key, old: Option<Arc<Value>>, new: Option<Arc<Value>>) {
        self.history.push_back(Record { version: self.version, key, old, new });
        self.trim();
    }

    fn trim(&mut self) {
        while self.history.len() > self.keep {
            self.floor = self.history.pop_front().map_or(self.floor, |r| r.version);
        }
    }
}

/// RFC 7396.
pub fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let Value::Object(map) = target else { return };
    for (key, value) in patch {
        match value {
            Value::Null => drop(map.remove(key)),
            _ => merge(map.entry(key.clone()).or_insert(Value::Null), value),
        }
    }
}

/// Lists of built-in kinds that are merged item by item, and the field that tells the items apart.
const KEYED: [(&str, &str); 5] =
    [("conditions", "type"), ("addresses", "type"), ("podIPs", "ip"), ("ownerReferences", "uid"), ("taints", "key")];

/// Kubernetes' own merge patch, without its directives.
pub fn strategic(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let Value::Object(map) = target else { return };
    for (key, value) in patch {
        let keyed = KEYED.iter().find(|(name, _)| name == key).map(|(_, by)| *by);
        match (value, keyed) {
            (Value::Null, _) => drop(map.remove(key)),
            (Value::Array(items), Some(by)) => merge_items(map.entry(key.clone()).or_insert(json!([])), items, by),
            _ => strategic(map.entry(key.clone()).or_insert(Value::Null), value),
        }
    }
}

fn merge_items(target: &mut Value, items: &[Value], by: &str) {
    if !target.is_array() {
        *target = json!([]);
    }
    let Value::Array(list) = target else { return };
    for item in items {
        match list.iter_mut().find(|old| old[by] == item[by]) {
            Some(old) => strategic(old, item),
            None => list.push(item.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_plurals() {
        for (kind, want) in [
            ("Pod", "pods"),
            ("NetworkPolicy", "networkpolicies"),
            ("Endpoints", "endpoints"),
            ("EndpointSlice", "endpointslices"),
            ("IPAddress", "ipaddresses"),
            ("Gateway", "gateways"),
        ] {
            assert_eq!(plural(kind), want);
        }
        let key = Key::of(&json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": "a", "name": "b"}}));
        assert_eq!(key.collection, "/apis/networking.k8s.io/v1/networkpolicies");
        assert_eq!(key.plural(), "networkpolicies");
    }

    #[test]
    fn a_merge_patch_replaces_lists_and_removes_nulls() {
        let mut target = json!({"a": {"b": 1, "c": [1, 2]}, "d": 1});
        merge(&mut target, &json!({"a": {"c": [3], "e": {"f": null, "g": 1}}, "d": null}));
        assert_eq!(target, json!({"a": {"b": 1, "c": [3], "e": {"g": 1}}}));
    }

    #[test]
    fn a_strategic_patch_merges_conditions_by_type() {
        let mut target = json!({"conditions": [{"type": "Ready", "status": "True"}], "images": [1, 2], "a": {"b": 1}});
        let patch = json!({
            "conditions": [{"type": "Ready", "reason": "r"}, {"type": "New", "status": "False"}],
            "images": [3], "a": {"b": null, "c": 2},
        });
        strategic(&mut target, &patch);
        let conditions =
            json!([{"type": "Ready", "status": "True", "reason": "r"}, {"type": "New", "status": "False"}]);
        assert_eq!(target, json!({"conditions": conditions, "images": [3], "a": {"c": 2}}));
    }

    #[test]
    fn history_is_bounded_and_can_be_forgotten() {
        let key = |n: &str| Key { collection: "/api/v1/pods".into(), namespace: "a".into(), name: n.into() };
        let mut store = Store::default();
        store.keep(2);
        for name in ["a", "b", "c"] {
            store.put(key(name), json!({}));
        }
        assert!(store.since(1).is_none());
        assert_eq!(store.since(2).unwrap().map(|r| r.key.name.as_str()).collect::<Vec<_>>(), ["b", "c"]);
        store.forget();
        assert!(store.since(3).is_none());
        assert_eq!(store.since(4).unwrap().count(), 0);
        assert_eq!(store.delete(&key("b")).unwrap()["metadata"]["resourceVersion"], "5");
        assert!(store.delete(&key("b")).is_none());
    }
}
