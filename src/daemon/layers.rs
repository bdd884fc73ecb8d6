//! The configuration in its layers: the file, and over it what a ConfigMap says for this node. A change is taken whole or not at all.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::{Config, Warning};
use crate::error::{Context, Error};
use crate::json::{self, Object};
use crate::object::ConfigMap;

/// The key of a ConfigMap that holds a configuration.
const KEY: &str = "eni_conf";
/// What is needed to find the ConfigMap at all, so that no ConfigMap can say it.
pub const FILE_ONLY: &[&str] = &["kubeconfig", "node_name"];
/// What is looked at only when the daemon starts.
pub const AT_START: &[&str] = &[
    "cgroup_root",
    "conflist",
    "daemon_mode",
    "disable_network_policy",
    "ebpf_services",
    "ip_stack",
    "kubeconfig",
    "node_name",
    "policy_addresses",
    "policy_flows",
    "policy_pairs",
    "policy_ports",
    "policy_renderer",
    "service_backends",
    "service_frontends",
];

/// The layers that are in force, and what they come to.
#[derive(Debug, Clone)]
pub struct Layers {
    path: PathBuf,
    env: BTreeMap<String, String>,
    text: Vec<u8>,
    over: Option<NodeConfig>,
    merged: Object,
    /// What the daemon started with: keys that are looked at only then keep these values.
    started: Option<Object>,
    config: Config,
    warnings: Vec<Warning>,
}

/// What a ConfigMap says for a node: a JSON merge patch (RFC 7396).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeConfig {
    /// With its namespace.
    pub name: String,
    pub patch: Object,
}

impl NodeConfig {
    pub fn of(map: &ConfigMap) -> Result<NodeConfig, Error> {
        let name = format!("{}/{}", map.meta.namespace, map.meta.name);
        let read = || match map.data.get(KEY) {
            Some(text) => json::object(text.as_bytes()).map_err(Error::malformed).context(|| KEY),
            None => Err(Error::malformed(format!("there is no key {KEY} in it"))),
        };
        let patch = read().context(|| place(&name))?;
        Ok(NodeConfig { name, patch })
    }
}

fn place(name: &str) -> String {
    format!("configmap {name}")
}

impl Layers {
    /// The file alone.
    pub fn read(path: &Path, text: Vec<u8>, env: BTreeMap<String, String>) -> Result<Layers, Error> {
        let in_file = || path.display().to_string();
        let base = json::object(&text).map_err(Error::malformed).context(|| "configuration").context(in_file)?;
        let (config, warnings) = Config::of(&base, &env).context(in_file)?;
        Ok(Layers { path: path.to_owned(), env, text, over: None, merged: base, started: None, config, warnings })
    }

    /// These layers with another text of the file.
    pub fn with_file(&self, text: Vec<u8>) -> Result<Layers, Error> {
        let file = Layers::read(&self.path, text, self.env.clone())?;
        Layers { started: self.started.clone(), ..file }.lay(self.over.clone())
    }

    /// These layers with another one for the node, or with none.
    pub fn with_node_config(&self, over: Option<NodeConfig>) -> Result<Layers, Error> {
        let file = Layers::read(&self.path, self.text.clone(), self.env.clone())?;
        Layers { started: self.started.clone(), ..file }.lay(over)
    }

    fn lay(mut self, over: Option<NodeConfig>) -> Result<Layers, Error> {
        let name = over.as_ref().map(|over| over.name.clone());
        if let Some(over) = &over {
            is_for_node(over).context(|| place(&over.name))?;
            json::merge(&mut self.merged, &over.patch);
        }
        let mut running = self.merged.clone();
        if let Some(started) = &self.started {
            running.retain(|key, _| !AT_START.contains(&key.as_str()));
            running.extend(started.clone().into_iter().filter(|(key, _)| AT_START.contains(&key.as_str())));
        }
        let mut read = Config::of(&running, &self.env);
        if let Some(name) = name {
            read = read.context(|| place(&name));
        }
        (self.config, self.warnings) = read?;
        self.over = over;
        Ok(self)
    }

    /// The daemon runs: what is looked at only when it starts stays as it is now.
    pub fn begin(self) -> Layers {
        Layers { started: Some(self.merged.clone()), ..self }
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    pub fn text(&self) -> &[u8] {
        &self.text
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn node_config(&self) -> Option<&NodeConfig> {
        self.over.as_ref()
    }

    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// The keys that say something else than before: those that take effect now, and those that need a restart.
    pub fn changes(&self, before: &Layers) -> (Vec<String>, Vec<String>) {
        let differing = json::differing(&self.merged, &before.merged);
        differing.into_iter().map(str::to_owned).partition(|key| !AT_START.contains(&key.as_str()))
    }
}

fn is_for_node(over: &NodeConfig) -> Result<(), Error> {
    match FILE_ONLY.iter().find(|key| over.patch.contains_key(**key)) {
        Some(key) => Err(Error::malformed(format!("{key} can be set in the file only, not in a ConfigMap"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers(text: &str) -> Layers {
        Layers::read("/etc/eni/eni.json".as_ref(), text.into(), BTreeMap::new()).unwrap()
    }

    fn node_config(text: &str) -> Result<NodeConfig, Error> {
        let meta = crate::object::Meta { namespace: "net".into(), name: "gpu".into(), ..Default::default() };
        NodeConfig::of(&ConfigMap { meta, data: [(KEY.to_owned(), text.to_owned())].into() })
    }

    #[test]
    fn a_configmap_patches_the_file_and_its_end_brings_the_file_back() {
        let file = layers(
            r#"{"min_pool_size": 1, "max_pool_size": 9, "kubeconfig": "/old", "eni_tags": {"a": "1", "b": "2"}}"#,
        );
        let over = node_config(r#"{"min_pool_size": 3, "max_pool_size": null, "eni_tags": {"a": null, "c": "3"}}"#);
        let file = file.begin();
        let patched = file.with_node_config(Some(over.unwrap())).unwrap();
        assert_eq!((patched.config().min_idle, patched.config().max_idle), (3, 5));
        assert_eq!(patched.config().eni_tags.keys().collect::<Vec<_>>(), ["b", "c"]);
        let (live, restart) = patched.changes(&file);
        assert_eq!((live.join(" "), restart.len()), ("eni_tags max_pool_size min_pool_size".into(), 0));
        let newer = patched.with_file(br#"{"max_eni": 2, "kubeconfig": "/x"}"#.to_vec()).unwrap();
        assert_eq!((newer.config().min_idle, newer.config().max_enis), (3, Some(2)));
        assert_eq!(newer.config().kubeconfig.as_deref(), Some(Path::new("/old")), "it keeps what it started with");
        let (live, restart) = newer.changes(&patched);
        assert_eq!((live.join(" "), restart.join(" ")), ("eni_tags max_eni".into(), "kubeconfig".into()));
        let bare = newer.with_node_config(None).unwrap();
        assert_eq!((bare.config().min_idle, bare.config().max_enis), (0, Some(2)));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_layer() {
        let file = layers(r#"{"min_pool_size": 1}"#);
        let refused = |text: &str| match node_config(text).and_then(|over| file.with_node_config(Some(over))) {
            Ok(_) => panic!("{text} was taken"),
            Err(e) => e.to_string(),
        };
        assert_eq!(
            refused(r#"{"max_pool_size": "many"}"#),
            r#"configmap net/gpu: configuration: max_pool_size is "many"; it must be a whole number from 0 to 10000"#
        );
        assert_eq!(refused("[]"), "configmap net/gpu: eni_conf: [] is not a JSON object");
        assert!(refused(r#"{"node_name": "other"}"#).contains("node_name can be set in the file only"));
        let empty = NodeConfig::of(&ConfigMap::default()).unwrap_err().to_string();
        assert!(empty.contains("there is no key eni_conf in it"), "{empty}");
        let broken = file.with_file(b"{".to_vec()).unwrap_err().to_string();
        assert!(broken.starts_with("/etc/eni/eni.json: configuration: EOF"), "{broken}");
    }
}
