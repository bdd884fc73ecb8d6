//! What the daemon reads that others have written, for the fuzz targets of `tests/fuzz`.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::layers::{Layers, NodeConfig};
use super::ledger::Resting;
use super::legacy::Legacy;
use super::sticky::Kept;
use super::{old, web};
use crate::json;
use crate::object::ConfigMap;
use crate::pool::Intent;
use crate::rpc::{Lease, Marker, Reply, Request, Tombstone};

/// The configuration of a node, and what a ConfigMap lays over it.
pub fn configuration(file: &[u8], map: &[u8], env: &BTreeMap<String, String>) {
    let Ok(layers) = Layers::read(Path::new("eni.json"), file.to_vec(), env.clone()) else { return };
    let layers = layers.begin();
    let over = serde_json::from_slice::<ConfigMap>(map).ok().and_then(|map| NodeConfig::of(&map).ok());
    let patch = || json::object(map).ok().map(|patch| NodeConfig { name: "a/b".into(), patch });
    if let Ok(both) = layers.with_node_config(over.or_else(patch)) {
        drop(both.with_file(file.to_vec()));
        let back = both.with_node_config(None).expect("it was read before");
        assert_eq!(back.config(), layers.config(), "a layer that is taken away leaves nothing");
    }
}

/// A line of the daemon's socket, from either side, and what asks for numbers.
pub fn line(bytes: &[u8]) {
    goes_round::<Request>(bytes);
    goes_round::<Reply>(bytes);
    web::asked(bytes);
}

/// A file below `/run/terway` or `/var/lib/terway`.
pub fn record(bytes: &[u8]) {
    goes_round::<Lease>(bytes);
    goes_round::<Tombstone>(bytes);
    goes_round::<Intent>(bytes);
    goes_round::<Marker>(bytes);
    goes_round::<Kept>(bytes);
    goes_round::<Option<NodeConfig>>(bytes);
    drop(serde_json::from_slice::<Legacy>(bytes));
    if let Ok(resting) = serde_json::from_slice::<Resting>(bytes) {
        assert!(resting.until() <= Duration::MAX);
    }
}

/// What is read is written so that the same is read again.
fn goes_round<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
    let Ok(read) = serde_json::from_slice::<T>(bytes) else { return };
    let text = serde_json::to_string(&read).expect("plain data");
    let again: T = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    assert_eq!(serde_json::to_string(&again).expect("plain data"), text);
}

/// A file of the old Terway, and a record of one.
pub fn database(bytes: &[u8]) {
    old::database(bytes);
}
