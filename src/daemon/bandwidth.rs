//! Holds an attachment that runs to what its lease says of bandwidth and of network policies.

use std::thread;
use std::time::Duration;

use crate::datapath::{self, Setup};
use crate::error::{Cause, Error};
use crate::kernel::{Kernel, LinkSeen};
use crate::ours;
use crate::plan::Plan;
use crate::rpc::{Lease, Wiring};

/// What cannot be set is tried again so often: an ADD that is under way is let finish.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(500);

pub fn hold(lease: &Lease) -> Result<(), Error> {
    insist(lease, datapath::shape)
}

/// Has the programs of network policies on the pod's links, or not, as the lease has a seat or none.
pub fn police(lease: &Lease) -> Result<(), Error> {
    insist(lease, datapath::policed)
}

/// What is to be made, and what is to be undone before.
type Plans = fn(&Setup) -> (Plan, Plan);

fn insist(lease: &Lease, plans: Plans) -> Result<(), Error> {
    for _ in 1..TRIES {
        match try_once(lease, plans) {
            // The pod is gone by now, and all of it.
            Err(e) if e.is_absent() && !lease.sandbox.netns.exists() => return Ok(()),
            Ok(()) => return Ok(()),
            Err(_) => thread::sleep(PAUSE),
        }
    }
    try_once(lease, plans)
}

fn try_once(lease: &Lease, plans: Plans) -> Result<(), Error> {
    let mut kernel = Kernel::host()?;
    let knows_namespace = !lease.sandbox.netns.as_os_str().is_empty();
    if knows_namespace {
        kernel.enter(&lease.sandbox.netns)?;
    }
    let (mut make, mut undo) = plans(&setup(lease, &mut kernel)?);
    if !knows_namespace {
        let attachment = &lease.sandbox.attachment;
        log::warn!("where {attachment} has its namespace is not known any more: what is inside stays as it is");
        (make.pod, undo.pod) = Default::default();
    }
    kernel.undo(&undo)?;
    kernel.apply(&make)
}

fn setup<'a>(lease: &'a Lease, kernel: &mut Kernel) -> Result<Setup<'a>, Error> {
    let attachment = &lease.sandbox.attachment;
    let absent = |link: &str| Error::new(Cause::Absent).within(format!("link {link} of {attachment}"));
    match lease.wiring {
        Wiring::Shared => {
            let veth = ours::host_veth(&lease.pod, &attachment.ifname);
            // The last thing that an ADD writes on the node's side is whose the link is: before that it is not ours to touch.
            let is_its =
                |link: &LinkSeen| link.alias.as_deref().and_then(ours::attachment).as_ref() == Some(attachment);
            let link = kernel.link(&veth)?.filter(is_its).ok_or_else(|| absent(&veth))?;
            Ok(Setup::new(lease, link.mtu))
        }
        Wiring::Ipvlan(_) => {
            let link = kernel.link_inside(&attachment.ifname)?.filter(LinkSeen::is_slave);
            Ok(Setup::new(lease, link.ok_or_else(|| absent(&attachment.ifname))?.mtu))
        }
        Wiring::Whole(_) => {
            let card = kernel.link_inside(&attachment.ifname)?.filter(|link| link.mac == Some(lease.eni.mac));
            let card = card.ok_or_else(|| absent(&attachment.ifname))?;
            Ok(Setup::new(lease, card.mtu))
        }
    }
}
