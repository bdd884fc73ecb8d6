//! What the kernel alone tells of ENIs and pods: the slot that each ENI has, and, should the ledger be lost, the leases.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::eni::{Eni, VSwitch};
use crate::error::Error;
use crate::ip::IpPair;
use crate::kernel::{Kernel, LinkSeen};
use crate::plan::RuleAction;
use crate::pod::Sandbox;
use crate::rpc::{EniLease, Lease, Marker};
use crate::{ours, pod};

/// What is known of the node beside the kernel.
pub struct Known<'a> {
    pub enis: &'a [Eni],
    pub vswitches: &'a [VSwitch],
    pub node: IpPair,
    pub marker: Marker,
}

/// The slot of every ENI whose rule is in the kernel.
pub fn slots(kernel: &mut Kernel, enis: &[Eni]) -> Result<BTreeMap<String, u32>, Error> {
    let by_table: BTreeMap<u32, u32> = kernel
        .rules()?
        .into_iter()
        .filter(|rule| rule.priority == ours::FROM_POD_PRIORITY)
        .filter_map(|rule| match (rule.action, rule.mark) {
            (RuleAction::Lookup(table), Some((value, mask))) => Some((table, ours::slot(value, mask)?)),
            _ => None,
        })
        .collect();
    let links = kernel.links()?;
    let slot = |eni: &Eni| by_table.get(&ours::eni_table(eni_link(&links, eni)?.ifindex)).copied();
    Ok(enis.iter().filter_map(|eni| Some((eni.id.clone(), slot(eni)?))).collect())
}

fn eni_link<'a>(links: &'a [LinkSeen], eni: &Eni) -> Option<&'a LinkSeen> {
    links.iter().find(|link| link.is_eni(eni.mac))
}

/// The leases of pods that are wired, for a ledger that is gone: a host veth names the attachment, its route the address,
/// the cloud the ENI. A pod whose name the veth has no room for gets none; nobody will think that it is gone.
pub fn leases(kernel: &mut Kernel, known: &Known, slots: &BTreeMap<String, u32>) -> Result<Vec<Lease>, Error> {
    let links = kernel.links()?;
    let routes = kernel.routes(ours::PODS_TABLE)?;
    let mut found = Vec::new();
    for (attachment, veth) in kernel.pod_links()? {
        let ip = routes.iter().find(|route| route.oif == Some(veth.ifindex)).map(|route| route.to.addr());
        let Some(std::net::IpAddr::V4(ip)) = ip else { continue };
        let Some(eni) = known.enis.iter().find(|eni| eni.v4.contains(&ip)) else {
            log::warn!("{} is wired with {ip}, which no ENI of this node has", veth.name);
            continue;
        };
        let (Some(link), Some(slot)) = (eni_link(&links, eni), slots.get(&eni.id)) else { continue };
        let pod = veth.alias.as_deref().and_then(ours::pod).unwrap_or_else(pod::nameless);
        log::info!("{attachment} of pod {pod} holds {ip}: found in the kernel");
        found.push(Lease {
            pod,
            sandbox: Sandbox { attachment, netns: PathBuf::new() },
            ip: IpPair::v4(ip),
            eni: eni_lease(eni, known, *slot, link.ifindex),
            node: known.node,
            marker: known.marker,
        });
    }
    Ok(found)
}

fn eni_lease(eni: &Eni, known: &Known, slot: u32, ifindex: u32) -> EniLease {
    let cidr = known.vswitches.iter().find(|v| v.id == eni.vswitch).map(|v| v.cidr).unwrap_or_default();
    EniLease {
        id: eni.id.clone(),
        mac: eni.mac,
        vswitch: eni.vswitch.clone(),
        cidr,
        gateway: cidr.gateway(),
        slot,
        table: ours::eni_table(ifindex),
    }
}
