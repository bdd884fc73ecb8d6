//! The kernel side of an ENI: its link waited for, found by MAC, and set up in the slot it has.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use crate::config::Mode;
use crate::datapath;
use crate::eni::VSwitch;
use crate::error::{Cause, Context, Error};
use crate::ip::{Family, IpPair, Mac, NetPair, Stack};
use crate::kernel::{self, Kernel, LinkSeen};
use crate::ours;
use crate::rpc::EniLease;

/// A hot-plugged ENI is waited for this long: the cloud says `InUse` before the guest has its link.
const LINK_WAIT: Duration = Duration::from_secs(15);
const CARRIER_WAIT: Duration = Duration::from_secs(3);
/// A DEL that knows the pod's namespace brings an ENI home, within this time.
const HOMECOMING: Duration = Duration::from_secs(1);
const LINK_POLL: Duration = Duration::from_millis(50);

/// An ENI to set up.
#[derive(Debug, Clone)]
pub struct Job {
    pub eni: String,
    pub mac: Mac,
    pub vswitch: String,
    /// What its link was called before it was lent to a pod, where we know.
    pub home: Option<String>,
}

/// Blocks until the ENI's link is there and set up; one that will be lent as a whole is laid ready, bare.
pub fn prepare(
    job: &Job,
    slot: u32,
    vswitch: &VSwitch,
    stack: Stack,
    node: &IpPair,
    mtu: u32,
    mode: Mode,
) -> Result<EniLease, Error> {
    let mut kernel = Kernel::host()?;
    let link = wait_for_link(&mut kernel, job)?;
    let lease = lease(job, slot, vswitch, stack, link.ifindex);
    let plan = datapath::eni(&datapath::EniSetup { eni: &lease, link: &link.name, mtu, node });
    match mode {
        Mode::Whole => kernel.undo(&plan).context(|| format!("lay {} ready", link.name))?,
        Mode::Shared => {
            kernel.apply(&plan).context(|| format!("set up {}", link.name))?;
            wait_for_carrier(&mut kernel, &link.name)?;
        }
    }
    log::info!("ENI {} is {} in slot {slot}", job.eni, link.name);
    Ok(lease)
}

/// What is leased of an ENI that is in this slot.
pub fn lease(job: &Job, slot: u32, vswitch: &VSwitch, stack: Stack, ifindex: u32) -> EniLease {
    let cidr = prefixes(vswitch, stack);
    EniLease {
        id: job.eni.clone(),
        mac: job.mac,
        vswitch: vswitch.id.clone(),
        cidr,
        gateway: cidr.gateway(),
        slot,
        table: ours::eni_table(ifindex),
    }
}

/// What an ENI of the vSwitch carries: IPv4 always, as no ENI is without; IPv6 where pods have it.
pub fn prefixes(vswitch: &VSwitch, stack: Stack) -> NetPair {
    NetPair { v6: vswitch.cidr.v6.filter(|_| stack.has(Family::V6)), ..vswitch.cidr }
}

/// One that was lent may be in the pod's namespace still: nobody there uses it any more.
fn wait_for_link(kernel: &mut Kernel, job: &Job) -> Result<LinkSeen, Error> {
    let start = Instant::now();
    let mut fetched = false;
    loop {
        if let Some(link) = kernel.settle(job.mac, job.home.as_deref())? {
            return Ok(link);
        }
        if start.elapsed() > LINK_WAIT {
            return Err(Error::new(Cause::Timeout).within(format!("wait for a link with MAC {}", job.mac)));
        }
        if start.elapsed() > HOMECOMING && !fetched {
            fetched = true;
            for away in kernel::away().into_iter().filter(|away| away.mac == job.mac) {
                log::info!("ENI {} is fetched from {}, where no lease holds it", job.eni, away.netns.display());
                kernel.fetch(&away)?;
            }
        }
        thread::sleep(LINK_POLL);
    }
}

/// A link that has just been set up drops packets for a moment; one that has no carrier for longer is used all the same.
fn wait_for_carrier(kernel: &mut Kernel, link: &str) -> Result<(), Error> {
    let start = Instant::now();
    while kernel.link(link)?.is_some_and(|link| !link.running) && start.elapsed() < CARRIER_WAIT {
        thread::sleep(LINK_POLL);
    }
    Ok(())
}

/// The smallest slot that no ENI has.
pub fn free_slot(taken: &BTreeMap<String, u32>) -> Option<u32> {
    (1..=ours::MAX_SLOT).find(|slot| !taken.values().any(|t| t == slot))
}
