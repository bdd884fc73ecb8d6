//! What the API server and a kubeconfig say, for the fuzz targets of `tests/fuzz`.

use std::path::Path;
use std::time::Duration;

use serde::de::{DeserializeOwned, DeserializeSeed};

use super::access::Access;
use super::allowance::Allowance;
use super::{page, watch, yaml};
use crate::cluster::{EndpointSlice, EndpointSliceBeta, Member, Service};
use crate::netpol::Document;
use crate::object::{ConfigMap, Node, Pod};
use crate::peer;

/// A list and a watch of each kind that we read.
pub fn served(bytes: &[u8]) {
    kind::<Pod>(bytes);
    kind::<Node>(bytes);
    kind::<ConfigMap>(bytes);
    kind::<Service>(bytes);
    kind::<EndpointSlice>(bytes);
    kind::<EndpointSliceBeta>(bytes);
    kind::<Member>(bytes);
    kind::<Document>(bytes);
    kind::<peer::Pod>(bytes);
    kind::<peer::Own>(bytes);
    kind::<peer::Namespace>(bytes);
    kind::<peer::ServiceAccount>(bytes);
    kind::<peer::Node>(bytes);
}

fn kind<T: DeserializeOwned>(bytes: &[u8]) {
    watch::told::<T>(bytes);
    let mut kept = Vec::new();
    let allowance = Allowance::new(1 << 20, Duration::from_secs(60));
    let page = page::Page { kept: &mut kept, keep: |object: T| drop(object), allowance: &allowance };
    drop(page.deserialize(&mut serde_json::Deserializer::from_slice(bytes)));
    drop(serde_json::from_slice::<T>(bytes));
}

/// A kubeconfig; its files, if it names any, are looked for where there are none.
pub fn kubeconfig(text: &str) {
    drop(Access::from_kubeconfig(text, Path::new("/nowhere")));
    drop(yaml::parse(text));
}
