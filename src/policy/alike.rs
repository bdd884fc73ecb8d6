//! Pods that are alike, of one namespace and with the same labels: what a selector asks of these it asks once for all of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::cluster::Name;
use crate::peer::{Labels, Pod, namespace_of};

/// Most pods of a Deployment are one group; where each has a label of its own, groups are as many as pods.
#[derive(Default)]
pub struct Alike(BTreeMap<Box<str>, BTreeMap<Arc<Labels>, Vec<Name>>>);

impl Alike {
    pub fn add(&mut self, pod: &Pod) {
        let space = self.0.entry(namespace_of(&pod.name).into()).or_default();
        let names = space.entry(pod.labels.clone()).or_default();
        if let Err(at) = names.binary_search(&pod.name) {
            names.insert(at, pod.name.clone());
        }
    }

    pub fn remove(&mut self, pod: &Pod) {
        let Some(space) = self.0.get_mut(namespace_of(&pod.name)) else { return };
        let Some(names) = space.get_mut(&pod.labels) else { return };
        if let Ok(at) = names.binary_search(&pod.name) {
            names.remove(at);
        }
        if names.is_empty() {
            space.remove(&pod.labels);
        }
        if space.is_empty() {
            self.0.remove(namespace_of(&pod.name));
        }
    }

    /// Each with its namespace and its labels.
    pub fn groups(&self) -> impl Iterator<Item = (&str, &Labels, &[Name])> {
        self.0
            .iter()
            .flat_map(|(space, groups)| groups.iter().map(move |(labels, names)| (&**space, &**labels, &**names)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, app: &str) -> Pod {
        let meta = json!({"namespace": "a", "name": name, "labels": {"app": app}});
        serde_json::from_value(json!({"metadata": meta})).unwrap()
    }

    #[test]
    fn pods_are_grouped_by_their_labels_and_no_group_outlives_them() {
        let mut alike = Alike::default();
        let pods = [pod("x", "web"), pod("y", "db"), pod("z", "web")];
        pods.iter().chain(&pods[..1]).for_each(|pod| alike.add(pod));
        let groups: Vec<Vec<&str>> =
            alike.groups().map(|(_, _, group)| group.iter().map(|name| &**name).collect()).collect();
        assert_eq!(groups, [vec!["a/y"], vec!["a/x", "a/z"]]);
        pods.iter().for_each(|pod| alike.remove(pod));
        assert!(alike.0.is_empty());
    }
}
