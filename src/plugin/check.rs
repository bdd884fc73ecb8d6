//! CHECK: what the kernel holds against what was leased. It looks and never mends; the daemon mends.

use std::time::Duration;

use super::{add, daemon};
use crate::cni::{Code, Failure, NetConf, PrevResult};
use crate::datapath::{self, Setup};
use crate::pod::{PodName, Sandbox};
use crate::rpc::{Lease, Reply, Request};

const PATIENCE: Duration = Duration::from_secs(30);

pub fn check(
    sandbox: &Sandbox,
    pod: Option<&PodName>,
    conf: &NetConf,
    prev: Option<&PrevResult>,
) -> Result<(), Failure> {
    let mut kernel = add::open(sandbox)?;
    let lease = lease(sandbox, pod)?;
    if let Some(prev) = prev {
        same_addresses(&lease, prev)?;
    }
    let plan = datapath::pod(&Setup::new(&lease, conf.link_mtu(lease.mtu)));
    log::debug!("check {}: {lease:?}\n{plan}", lease.pod);
    let found = |code, what: String| Failure::new(code, format!("check {}: {what}", lease.pod));
    match kernel.check(&plan) {
        Ok(None) => Ok(()),
        Ok(Some(difference)) => Err(found(Code::Differs, difference.to_string())),
        Err(e) => Err(found(Code::Node, e.to_string())),
    }
}

fn lease(sandbox: &Sandbox, pod: Option<&PodName>) -> Result<Lease, Failure> {
    let attachment = &sandbox.attachment;
    match daemon::ask(&Request::Lease { attachment: attachment.clone() }, PATIENCE)? {
        Reply::Lease(lease) => daemon::sound(*lease, attachment),
        Reply::None {} => pod
            .and_then(|pod| daemon::unnamed(pod, &attachment.ifname, Some(&sandbox.netns)))
            .ok_or_else(|| Failure::new(Code::NoLease, format!("check {attachment}: nothing is leased to it"))),
        Reply::Refused { why, reason } => Err(daemon::refused(why, &format!("check {attachment}: {reason}"))),
        other => Err(daemon::strange(&other)),
    }
}

/// Plugins further down the chain may have added addresses; ours must be among them.
fn same_addresses(lease: &Lease, prev: &PrevResult) -> Result<(), Failure> {
    match lease.ip.iter().find(|ip| !prev.addresses.contains(ip)) {
        None => Ok(()),
        Some(ip) => {
            let msg = format!("check {}: {ip} is leased to it, and prevResult does not have it", lease.pod);
            Err(Failure::new(Code::Differs, msg))
        }
    }
}
