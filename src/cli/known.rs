//! What is known of this node: by its daemon, and where that does not answer by its ledger.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::face::{Code, Failure};
use crate::client;
use crate::config::Config;
use crate::error::{Cause, Context, Error};
use crate::ip::NetPair;
use crate::ours;
use crate::pod::PodName;
use crate::rpc::{EniLease, Lease, Reply, Request};

/// The daemon's loop answers between two events; one that is stuck does not.
const PATIENCE: Duration = Duration::from_secs(10);

/// What to do about a daemon that does not answer.
pub const LOOK: &str = "is terwayd running? systemctl status terwayd, journalctl -u terwayd";

pub struct Known {
    /// What the daemon shows; nothing where it does not answer.
    pub shown: Value,
    pub silence: Option<String>,
    pub leases: Vec<Lease>,
    /// ENIs whose links are set up, by their ids; without a daemon those that leases name.
    pub enis: BTreeMap<String, EniLease>,
}

/// Asks the daemon for what it shows.
pub fn ask(request: &Request) -> Result<Value, Failure> {
    match client::ask(request, PATIENCE) {
        Ok(Reply::Show(value)) => Ok(value),
        Ok(Reply::Refused { reason, .. }) => Err(Failure::new(Code::Found, reason)),
        Ok(other) => Err(Failure::new(Code::Found, format!("terwayd answered {other:?} to {request:?}"))),
        Err(e) if matches!(e.cause, Cause::Malformed(_)) => {
            Err(Failure::new(Code::Found, format!("{e}; are terway-cli and terwayd of one release?")))
        }
        Err(e) => Err(Failure::new(Code::NoDaemon, format!("{e}; {LOOK}"))),
    }
}

impl Known {
    pub fn look() -> Result<Known, Failure> {
        match ask(&Request::Show {}) {
            Ok(shown) => {
                let leases: Vec<Lease> = read(&shown["leases"])?;
                let enis = if shown["wired"].is_null() { of(&leases) } else { read(&shown["wired"])? };
                Ok(Known { shown, silence: None, leases, enis })
            }
            // Nobody listens, or who listens has not finished starting.
            Err(failure) => {
                let leases = ledger(Path::new(ours::LEDGER));
                Ok(Known { shown: Value::Null, silence: Some(failure.why), enis: of(&leases), leases })
            }
        }
    }

    /// What the exit code says where nothing worse was found.
    pub fn code(&self) -> Code {
        if self.silence.is_some() { Code::NoDaemon } else { Code::Fine }
    }

    /// The same where nothing was found; a silent daemon goes before.
    pub fn judged(&self, good: bool) -> Code {
        if good || self.silence.is_some() { self.code() } else { Code::Found }
    }

    /// A line that says where all this is from, if not from the daemon.
    pub fn caveat(&self) -> String {
        let line = |why: &String| format!("terwayd does not answer ({why}): what follows is from {}\n", ours::LEDGER);
        self.silence.as_ref().map(line).unwrap_or_default()
    }

    /// The lease of this pod: of its newest sandbox where an older one is still there.
    pub fn lease_of(&self, pod: &PodName) -> Option<&Lease> {
        let of_pod = self.leases.iter().filter(|lease| lease.pod == *pod);
        of_pod.max_by_key(|lease| (lease.sandbox.attachment.ifname == "eth0", lease.sandbox.netns.exists()))
    }

    pub fn lease_at(&self, addr: std::net::IpAddr) -> Option<&Lease> {
        self.leases.iter().find(|lease| lease.ip.iter().any(|ip| ip == addr))
    }

    /// Where Services have their addresses; without a daemon as far as the configuration says it.
    pub fn service_nets(&self) -> NetPair {
        read(&self.shown["service_nets"]).or_else(|_| config().map(|config| config.service_cidr)).unwrap_or_default()
    }

    /// The MTU of what is not there yet.
    pub fn mtu(&self) -> u32 {
        let shown = self.shown["mtu"].as_u64().and_then(|mtu| u32::try_from(mtu).ok());
        shown.unwrap_or_else(|| config().map_or(1500, |config| config.link_mtu(None)))
    }
}

/// The configuration as the file has it, without what a ConfigMap lays over it.
pub fn config() -> Result<Config, Error> {
    config_at(Path::new(ours::CONFIG))
}

pub fn config_at(path: &Path) -> Result<Config, Error> {
    let doing = || format!("read {}", path.display());
    let text = fs::read(path).context(doing)?;
    let (config, _) = Config::parse(&text, &BTreeMap::new()).context(doing)?;
    Ok(config)
}

/// From a slice: what reads from a `Value` would be a second copy of all readers.
pub fn read<T: DeserializeOwned>(value: &Value) -> Result<T, Error> {
    serde_json::from_slice(value.to_string().as_bytes()).context(|| "what terwayd shows")
}

fn of(leases: &[Lease]) -> BTreeMap<String, EniLease> {
    let shared = leases.iter().filter(|lease| !lease.is_whole());
    shared.map(|lease| (lease.eni.id.clone(), lease.eni.clone())).collect()
}

/// The leases that are written down; what cannot be read is the daemon's to complain about.
fn ledger(root: &Path) -> Vec<Lease> {
    let entries = fs::read_dir(root.join("leases")).into_iter().flatten().flatten();
    let lease = |entry: fs::DirEntry| serde_json::from_slice::<Lease>(&fs::read(entry.path()).ok()?).ok();
    let mut leases: Vec<Lease> = entries.filter_map(lease).collect();
    leases.sort_by(|a, b| a.sandbox.attachment.cmp(&b.sandbox.attachment));
    leases
}
