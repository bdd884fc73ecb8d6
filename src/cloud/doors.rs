//! What the cloud and the metadata service answer, for the fuzz targets of `tests/fuzz`.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::http::Answer;
use super::{address, clock, credentials, fault, judge, metadata, reply};
use crate::eni::Fault;
use crate::ip::Mac;

/// The body of an answer, as each action that has one reads it.
pub fn answer(status: u16, body: &[u8]) {
    let answer = Answer { status, body: body.to_vec() };
    let faults = [
        judge("A", &answer, reply::enis).err(),
        judge("A", &answer, reply::eni).err(),
        judge("A", &answer, reply::security_groups).err(),
        judge("A", &answer, |root| reply::assigned_v4(root, "eni-1")).err(),
        judge("A", &answer, |root| reply::assigned_v6(root, "eni-1")).err(),
        judge("A", &answer, |root| reply::assigned_prefixes(root, "eni-1")).err(),
        judge("A", &answer, |root| reply::limits(root, "ecs.g6.large")).err(),
        judge("A", &answer, |root| reply::vswitch(root, "vsw-1")).err(),
    ];
    faults.into_iter().flatten().for_each(told);
}

/// A fault as people are told of it.
fn told(mut fault: Fault) {
    fault::blame_clock(&mut fault, 0, 900);
    fault::tidy(&mut fault);
    drop(fault.to_string());
}

/// A text of the metadata service, of whatever kind.
pub fn told_of_machine(text: &str) {
    drop(metadata::word("path", text));
    drop(metadata::parse::<Mac>("path", text, "a MAC"));
    drop(metadata::parse::<IpNet>("path", text, "a prefix"));
    drop(metadata::addresses::<Ipv4Addr>("path", text));
    drop(metadata::addresses::<Ipv6Addr>("path", text));
    drop(credentials::role_key(text));
    let (keyring, sealed) = text.split_once('\n').unwrap_or((text, text));
    drop(credentials::decrypt(keyring, sealed));
    clock::Clock::default().learn(text);
    drop(address(text, false));
}
