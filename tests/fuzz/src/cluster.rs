//! A cluster's objects as the models of policies and Services hear them: one a line, led by a letter for its kind.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::from_slice;
use terway::cluster::{EndpointSlice, Member, Service};
use terway::heard::Heard;
use terway::netpol::Document;
use terway::peer::{Namespace, Node, Pod, ServiceAccount};
use terway::policy::{self, Told};
use terway::service;

/// More objects say no more than these, and take longer.
const MOST: usize = 16;

fn lines(bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    bytes.split(|byte| *byte == b'\n').filter_map(|line| line.split_first()).map(|(kind, rest)| (*kind, rest)).take(MOST)
}

/// What a line says of an object: that it is, or, as a bare name, that it is gone.
fn heard<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Option<Heard<T>> {
    match bytes.first()? {
        b'{' => from_slice(bytes).ok().map(Heard::One),
        b'[' => from_slice(bytes).ok().map(Heard::All),
        _ => Some(Heard::Gone(String::from_utf8_lossy(bytes).into())),
    }
}

pub fn policies(bytes: &[u8]) {
    let own: IpAddr = "10.0.0.1".parse().expect("a literal");
    let mut model = policy::Model::new(policy::Here { name: "n1".into(), addresses: BTreeSet::from([own]) });
    for (kind, rest) in lines(bytes) {
        let told = |told: Told, model: &mut policy::Model| {
            heard::<Document>(rest).into_iter().for_each(|news| model.hear(told, news));
        };
        match kind {
            b'P' => heard::<Pod>(rest).into_iter().for_each(|news| model.hear_pods(news)),
            b'S' => heard::<Namespace>(rest).into_iter().for_each(|news| model.hear_namespaces(news)),
            b'A' => heard::<ServiceAccount>(rest).into_iter().for_each(|news| model.hear_accounts(news)),
            b'N' => heard::<Node>(rest).into_iter().for_each(|news| model.hear_nodes(news)),
            b'n' => told(Told::NetworkPolicy, &mut model),
            b'a' => told(Told::ClusterNetworkPolicy, &mut model),
            b'c' => told(Told::CalicoNetworkPolicy, &mut model),
            b'g' => told(Told::CalicoGlobalNetworkPolicy, &mut model),
            b's' => told(Told::NetworkSet, &mut model),
            b't' => told(Told::GlobalNetworkSet, &mut model),
            b'h' => told(Told::HostEndpoint, &mut model),
            _ => {}
        }
        let changes = model.changes();
        changes.refused.iter().for_each(|refused| drop(refused.reason.to_string()));
    }
    model.needs();
    for port in [0, 80] {
        drop(model.why("10.0.0.2".parse().expect("a literal"), own, 6, Some((1, port))).to_string());
    }
    assert!(model.changes().writes.is_empty(), "what was told is told once");
}

pub fn services(bytes: &[u8]) {
    let mut model = service::Model::new(service::Here { name: "n1".into(), addresses: BTreeSet::new(), api: None });
    for (kind, rest) in lines(bytes) {
        match kind {
            b'S' => heard::<Service>(rest).into_iter().for_each(|news| model.hear_services(news)),
            b'E' => heard::<EndpointSlice>(rest).into_iter().for_each(|news| model.hear_slices(news)),
            b'N' => heard::<Member>(rest).into_iter().for_each(|news| model.hear_nodes(news)),
            b'H' => heard::<Member>(rest).into_iter().for_each(|news| model.hear_here(news)),
            _ => {}
        }
        drop(model.changes());
    }
    model.pack();
    drop(model.everything());
}
