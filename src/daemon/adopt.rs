//! What the kernel alone tells of ENIs and pods: the slot that each ENI has, and, should the ledger have lost some, leases.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use super::ledger::Contents;
use crate::eni::{Eni, EniKind, EniState, VSwitch};
use crate::error::Error;
use crate::ip::{Family, IpPair, NetPair, Stack};
use crate::kernel::{self, Away, Kernel, LinkSeen};
use crate::plan::RuleAction;
use crate::pod::Sandbox;
use crate::rate::Both;
use crate::rpc::{Answers, EniLease, Lease, Marker, Whole, Wiring};
use crate::{datapath, ours, pod};

/// What is known of the node beside the kernel.
pub struct Known<'a> {
    pub enis: &'a [Eni],
    pub vswitches: &'a [VSwitch],
    pub slots: &'a BTreeMap<String, u32>,
    pub node: IpPair,
    pub marker: Marker,
    pub stack: Stack,
    pub services: NetPair,
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

/// The leases of pods that are wired though the ledger knows nothing of them, because it or a record in it was lost: a host
/// veth names the attachment, its route the address (a DEL takes that away first of all), the cloud the ENI. A pod whose name
/// the veth has no room for is nameless; nobody will think that it is gone.
pub fn leases(kernel: &mut Kernel, known: &Known, contents: &Contents) -> Result<Vec<Lease>, Error> {
    let links = kernel.links()?;
    let routes = kernel.routes(ours::PODS_TABLE)?;
    let mut found = whole_leases(known, contents, &links);
    for (attachment, veth) in kernel.pod_links()? {
        if found.iter().any(|lease| lease.sandbox.attachment == attachment) {
            continue;
        }
        let ip = routes.iter().find(|route| route.oif == Some(veth.ifindex)).map(|route| route.to.addr());
        let Some(IpAddr::V4(ip)) = ip else { continue };
        if contents.knows(&attachment, &IpPair::v4(ip)) {
            continue;
        }
        let Some(eni) = eni_lease(ip, known, &links) else {
            log::warn!("{} is wired with {ip}, which no ENI serves here: re-create its pod", veth.name);
            continue;
        };
        let pod = veth.alias.as_deref().and_then(ours::pod).unwrap_or_else(pod::nameless);
        log::info!("{attachment} of pod {pod} holds {ip}: found in the kernel");
        let sandbox = Sandbox { attachment, netns: PathBuf::new() };
        // What its annotations ask for is heard from the watch.
        let bandwidth = Both::default();
        let wiring = Wiring::Shared;
        let (ip, node, marker) = (IpPair::v4(ip), known.node, known.marker);
        found.push(Lease { pod, sandbox, ip, eni, node, marker, bandwidth, wiring });
    }
    Ok(found)
}

/// The same of pods that have the whole of an ENI: its link, which is in the pod's namespace, says whose it is.
fn whole_leases(known: &Known, contents: &Contents, links: &[LinkSeen]) -> Vec<Lease> {
    let is_away =
        |eni: &&Eni| eni.state == EniState::InUse && eni.kind == EniKind::Secondary && eni_link(links, eni).is_none();
    let away: Vec<&Eni> = known.enis.iter().filter(is_away).collect();
    if away.iter().all(|eni| contents.leases.iter().any(|lease| lease.is_whole() && lease.eni.id == eni.id)) {
        return Vec::new();
    }
    let seen = kernel::away();
    let seen = seen.iter().filter_map(|card| Some((card, *away.iter().find(|eni| eni.mac == card.mac)?)));
    let unknown = seen.filter(|(card, eni)| !contents.knows(&card.lent.attachment, &own_addresses(known, eni)));
    unknown.map(|(card, eni)| whole_lease(known, card, eni)).collect()
}

fn own_addresses(known: &Known, eni: &Eni) -> IpPair {
    let v6 = eni.v6.iter().min().copied().filter(|_| known.stack.has(Family::V6));
    IpPair { v4: known.stack.has(Family::V4).then_some(eni.primary), v6 }
}

fn whole_lease(known: &Known, card: &Away, eni: &Eni) -> Lease {
    let lent = card.lent.clone();
    let pod = lent.pod.unwrap_or_else(pod::nameless);
    let ip = own_addresses(known, eni);
    log::info!(
        "{} of pod {pod} holds {ip} and the whole of ENI {}: found in {}",
        lent.attachment,
        eni.id,
        card.netns.display()
    );
    let answers = match kernel::attempt(&datapath::trial_of_answers(&known.node)) {
        Ok(()) => Answers::Conntrack,
        Err(_) => Answers::Sockets,
    };
    Lease {
        pod,
        sandbox: Sandbox { attachment: lent.attachment, netns: card.netns.clone() },
        ip,
        // Neither slot nor table are of any use to it.
        eni: eni_words(known, eni, 1, ours::PODS_TABLE),
        node: known.node,
        marker: known.marker,
        bandwidth: Both::default(),
        wiring: Wiring::Whole(Whole { home: lent.home, services: known.services, answers }),
    }
}

/// The ENI that has the address, if its link and its rule are in the kernel.
fn eni_lease(ip: Ipv4Addr, known: &Known, links: &[LinkSeen]) -> Option<EniLease> {
    let eni = known.enis.iter().find(|eni| eni.v4.contains(&ip))?;
    Some(eni_words(known, eni, *known.slots.get(&eni.id)?, ours::eni_table(eni_link(links, eni)?.ifindex)))
}

fn eni_words(known: &Known, eni: &Eni, slot: u32, table: u32) -> EniLease {
    let cidr = known.vswitches.iter().find(|v| v.id == eni.vswitch).map(|v| v.cidr).unwrap_or_default();
    EniLease {
        id: eni.id.clone(),
        mac: eni.mac,
        vswitch: eni.vswitch.clone(),
        cidr,
        gateway: cidr.gateway(),
        slot,
        table,
    }
}
