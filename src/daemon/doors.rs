//! What the daemon reads that others have written, for the fuzz targets of `tests/fuzz`.

use std::collections::BTreeMap;
use std::fmt::Debug;
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
    is_read_again::<Reply>(bytes);
    web::asked(bytes);
}

/// A file below `/run/terway` or `/var/lib/terway`.
pub fn record(bytes: &[u8]) {
    goes_round::<Lease>(bytes);
    is_read_again::<Tombstone>(bytes);
    goes_round::<Intent>(bytes);
    goes_round::<Marker>(bytes);
    is_read_again::<Kept>(bytes);
    is_read_again::<Option<NodeConfig>>(bytes);
    drop(serde_json::from_slice::<Legacy>(bytes));
    if let Ok(resting) = serde_json::from_slice::<Resting>(bytes) {
        assert!(resting.until() <= Duration::MAX);
    }
}

/// What is read is written so that the same is read again.
fn goes_round<T: Serialize + DeserializeOwned + Debug + PartialEq>(bytes: &[u8]) {
    is_read_again::<T>(bytes).into_iter().for_each(|(read, again)| assert_eq!(read, again));
}

/// The same as far as it can be of what holds fractions: serde_json may read one as its neighbour.
fn is_read_again<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Option<(T, T)> {
    let read = serde_json::from_slice::<T>(bytes).ok()?;
    let text = serde_json::to_string(&read).expect("plain data");
    let again = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    Some((read, again))
}

/// A file of the old Terway, and a record of one.
pub fn database(bytes: &[u8]) {
    old::database(bytes);
}
