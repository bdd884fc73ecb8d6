//! The records of the ledger as release 0.1.0 reads them: frozen. Later releases write what this can read, and may write more.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use serde::Deserialize;

#[derive(Debug, Deserialize)]
pub struct Lease {
    pub pod: PodName,
    pub sandbox: Sandbox,
    pub ip: IpPair,
    pub eni: EniLease,
    pub node: IpPair,
    pub marker: Marker,
}

#[derive(Debug, Deserialize)]
pub struct PodName {
    pub namespace: String,
    pub name: String,
}

#[derive(Debug, Deserialize)]
pub struct Attachment {
    pub container: String,
    pub ifname: String,
}

#[derive(Debug, Deserialize)]
pub struct Sandbox {
    pub attachment: Attachment,
    pub netns: PathBuf,
}

#[derive(Debug, Deserialize)]
pub struct IpPair {
    #[serde(default)]
    pub v4: Option<Ipv4Addr>,
    #[serde(default)]
    pub v6: Option<Ipv6Addr>,
}

#[derive(Debug, Deserialize)]
pub struct NetPair {
    #[serde(default)]
    pub v4: Option<String>,
    #[serde(default)]
    pub v6: Option<String>,
}

#[derive(Debug, Deserialize)]
pub struct EniLease {
    pub id: String,
    pub mac: String,
    pub vswitch: String,
    pub cidr: NetPair,
    pub gateway: IpPair,
    pub slot: u32,
    pub table: u32,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Marker {
    Bpf,
    Skbedit,
    Rule,
}

#[derive(Debug, Deserialize)]
pub struct Resting {
    pub eni: String,
    pub ip: IpPair,
    pub until: f64,
}

#[derive(Debug, Deserialize)]
pub struct Intent {
    pub token: String,
    pub call: Call,
}

#[derive(Debug, Deserialize)]
pub enum Call {
    Create {
        vswitch: String,
        security_groups: Vec<String>,
        resource_group: Option<String>,
        tags: BTreeMap<String, String>,
        addresses: u32,
        token: String,
    },
    Assign {
        eni: String,
        count: u32,
        token: String,
    },
}

#[derive(Debug, Deserialize)]
pub struct Tombstone {
    pub attachment: Attachment,
    pub at: f64,
}
