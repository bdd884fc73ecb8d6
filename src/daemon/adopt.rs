//! What the kernel alone tells of ENIs and pods: the slot that each ENI has, and, should the ledger have lost some, leases.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::eni::prefixes;
use super::ledger::Contents;
use super::old;
use super::trials::Trials;
use crate::eni::{Eni, EniKind, EniState, VSwitch};
use crate::error::Error;
use crate::gather::Gather;
use crate::ip::{Family, IpPair, NetPair, Stack};
use crate::kernel::{self, Away, Kernel, LinkSeen, Look, RouteSeen};
use crate::plan::RuleAction;
use crate::pod::{Attachment, Sandbox};
use crate::rate::Both;
use crate::rpc::{EniLease, Heritage, Lease, Marker, Slave, Whole, Wiring};
use crate::{ours, pod};

/// What is known of the node beside the kernel.
pub struct Known<'a> {
    pub enis: &'a [Eni],
    pub vswitches: &'a [VSwitch],
    pub slots: &'a BTreeMap<String, u32>,
    pub stack: Stack,
    pub node: IpPair,
    pub marker: Marker,
    pub services: NetPair,
    pub mtu: u32,
    pub trials: &'a Trials,
}

/// The slot of every ENI whose rule is in the kernel.
pub fn slots(look: &Look, enis: &[Eni]) -> BTreeMap<String, u32> {
    let by_table: BTreeMap<u32, u32> = look
        .rules
        .iter()
        .filter(|rule| rule.priority == ours::FROM_POD_PRIORITY)
        .filter_map(|rule| match (rule.action, rule.mark) {
            (RuleAction::Lookup(table), Some((value, mask))) => Some((table, ours::slot(value, mask)?)),
            _ => None,
        })
        .gather();
    let slot = |eni: &Eni| by_table.get(&ours::eni_table(eni_link(&look.links, eni)?.ifindex)).copied();
    enis.iter().filter_map(|eni| Some((eni.id.clone(), slot(eni)?))).gather()
}

fn eni_link<'a>(links: &'a [LinkSeen], eni: &Eni) -> Option<&'a LinkSeen> {
    links.iter().find(|link| link.is_eni(eni.mac))
}

/// The leases of pods that are wired though the ledger knows nothing of them, because it or a record in it was lost: a host
/// veth names the attachment, its route the address (a DEL takes that away first of all), the cloud the ENI. A pod whose name
/// the veth has no room for is nameless; nobody will think that it is gone.
pub fn leases(kernel: &mut Kernel, look: &Look, known: &Known, contents: &Contents) -> Result<Vec<Lease>, Error> {
    let mut found = whole_leases(known, contents, &look.links)?;
    found.extend(slave_leases(look, known, contents)?);
    let leased = contents.leases.iter().chain(&found).map(|lease| lease.sandbox.attachment.clone());
    let leased: BTreeSet<Attachment> = leased.gather();
    for (attachment, veth) in look.pod_links().filter(|(attachment, _)| !leased.contains(attachment)) {
        let is_its = |r: &&RouteSeen| r.table == ours::PODS_TABLE && r.oif == Some(veth.ifindex);
        let through = look.routes.iter().filter(is_its);
        let ip: IpPair = through.map(|route| route.to.addr()).collect();
        if ip.is_empty() || contents.knows(&attachment, &ip) {
            continue;
        }
        let Some(eni) = eni_lease(&ip, known, &look.links) else {
            log::warn!("{} is wired with {ip}, which no ENI serves here: re-create its pod", veth.name);
            continue;
        };
        let pod = veth.alias.as_deref().and_then(ours::pod).unwrap_or_else(pod::nameless);
        log::info!("{attachment} of pod {pod} holds {ip}: found in the kernel");
        let sandbox = Sandbox { attachment, netns: PathBuf::new() };
        let heritage = heritage(kernel, veth, &ip)?;
        let marker = if heritage.is_some() { old::MARKER } else { known.marker };
        // What its annotations ask for is heard from the watch.
        let bandwidth = Both::default();
        let (node, wiring, routes) = (known.node, Wiring::Shared, Vec::new());
        found.push(Lease {
            pod,
            sandbox,
            ip,
            eni,
            node,
            marker,
            bandwidth,
            sticky: false,
            heritage,
            wiring,
            routes,
            seat: None,
            mtu: Some(veth.mtu),
            network: None,
        });
    }
    Ok(found)
}

/// The same of pods that have the whole of an ENI: its link, which is in the pod's namespace, says whose it is. What the network
/// configuration leaves to the node is told by the next ADD; routes that are there stay.
fn whole_leases(known: &Known, contents: &Contents, links: &[LinkSeen]) -> Result<Vec<Lease>, Error> {
    let is_away =
        |eni: &&Eni| eni.state == EniState::InUse && eni.kind == EniKind::Secondary && eni_link(links, eni).is_none();
    let away: Vec<&Eni> = known.enis.iter().filter(is_away).collect();
    if away.iter().all(|eni| contents.leases.iter().any(|lease| lease.is_whole() && lease.eni.id == eni.id)) {
        return Ok(Vec::new());
    }
    let seen = crate::kernel::away();
    let seen = seen.iter().filter_map(|card| Some((card, *away.iter().find(|eni| eni.mac == card.mac)?)));
    let unknown = seen.filter(|(card, eni)| !contents.knows(&card.lent.attachment, &own_addresses(known, eni)));
    let has_peer = |card: &Away| {
        let owners = links.iter().filter_map(|link| ours::attachment(link.alias.as_deref()?));
        owners.into_iter().any(|owner| owner == card.lent.attachment)
    };
    unknown.map(|(card, eni)| whole_lease(known, card, eni, !has_peer(card))).collect()
}

/// The same of pods that are slaves of an ENI: their link says whose it is, and its addresses are theirs. What the network
/// configuration leaves to the node beside Services is told by the next ADD.
fn slave_leases(look: &Look, known: &Known, contents: &Contents) -> Result<Vec<Lease>, Error> {
    let by_slave = |route: &&RouteSeen| look.links.iter().any(|l| l.is_slave() && route.oif == Some(l.ifindex));
    let mut routes = look.routes.iter().filter(|route| route.table == ours::PODS_TABLE).filter(by_slave);
    // Where the ledger knows of all that the node leads to its slaves, nothing is lost, and no namespace is looked into.
    if routes.all(|route| contents.leases.iter().any(|lease| lease.ip.iter().any(|ip| ip == route.to.addr()))) {
        return Ok(Vec::new());
    }
    let shaper = known.trials.shaper()?;
    let mut found = Vec::new();
    for slave in kernel::slaves() {
        let is_its = |eni: &&Eni| eni_link(&look.links, eni).is_some_and(|link| link.ifindex == slave.parent);
        let Some(eni) = known.enis.iter().find(is_its) else { continue };
        if slave.ip.is_empty() || contents.knows(&slave.attachment, &slave.ip) {
            continue;
        }
        let Some(slot) = known.slots.get(&eni.id) else { continue };
        let pod = slave.pod.unwrap_or_else(pod::nameless);
        log::info!("{} of pod {pod} holds {}: found in {}", slave.attachment, slave.ip, slave.netns.display());
        found.push(Lease {
            pod,
            sandbox: Sandbox { attachment: slave.attachment, netns: slave.netns },
            ip: slave.ip,
            eni: eni_words(known, eni, *slot, ours::eni_table(slave.parent)),
            node: known.node,
            marker: known.marker,
            bandwidth: Both::default(),
            sticky: false,
            heritage: None,
            wiring: Wiring::Ipvlan(Slave { host_stack: Vec::new(), shaper }),
            routes: Vec::new(),
            seat: None,
            mtu: Some(known.mtu),
            network: None,
        });
    }
    Ok(found)
}

fn own_addresses(known: &Known, eni: &Eni) -> IpPair {
    let v6 = eni.v6.iter().min().copied().filter(|_| known.stack.has(Family::V6));
    IpPair { v4: known.stack.has(Family::V4).then_some(eni.primary), v6 }
}

fn whole_lease(known: &Known, card: &Away, eni: &Eni, alone: bool) -> Result<Lease, Error> {
    let lent = card.lent.clone();
    let pod = lent.pod.unwrap_or_else(pod::nameless);
    let ip = own_addresses(known, eni);
    log::info!(
        "{} of pod {pod} holds {ip} and the whole of ENI {}: found in {}",
        lent.attachment,
        eni.id,
        card.netns.display()
    );
    let (answers, shaper) = (known.trials.answers(&known.node)?, known.trials.shaper()?);
    let (home, services, host_stack) = (lent.home, known.services, Vec::new());
    let whole = Whole { home, services, answers, shaper, host_stack, alone };
    Ok(Lease {
        pod,
        sandbox: Sandbox { attachment: lent.attachment, netns: card.netns.clone() },
        ip,
        // Neither slot nor table are of any use to it.
        eni: eni_words(known, eni, 1, ours::PODS_TABLE),
        node: known.node,
        marker: known.marker,
        bandwidth: Both::default(),
        sticky: false,
        heritage: None,
        wiring: Wiring::Whole(whole),
        routes: Vec::new(),
        seat: None,
        mtu: Some(known.mtu),
        network: None,
    })
}

/// A veth that the old Terway made has other MACs than ours; that of its inner end we wrote down as a neighbour.
fn heritage(kernel: &mut Kernel, veth: &LinkSeen, ip: &IpPair) -> Result<Option<Heritage>, Error> {
    let Some(host_mac) = veth.mac.filter(|mac| *mac != ours::host_mac(&veth.name)) else { return Ok(None) };
    let Some(ip) = ip.iter().next() else { return Ok(None) };
    let pod_mac = kernel.neighbour(veth.ifindex, ip)?;
    Ok(pod_mac.map(|pod_mac| Heritage::Adopted { host_mac, pod_mac }))
}

/// The ENI that has the addresses, if its link and its rule are in the kernel.
fn eni_lease(ip: &IpPair, known: &Known, links: &[LinkSeen]) -> Option<EniLease> {
    let has_all = |eni: &&Eni| ip.iter().all(|ip| eni.addresses().any(|there| there == ip));
    let eni = known.enis.iter().find(has_all)?;
    Some(eni_words(known, eni, *known.slots.get(&eni.id)?, ours::eni_table(eni_link(links, eni)?.ifindex)))
}

fn eni_words(known: &Known, eni: &Eni, slot: u32, table: u32) -> EniLease {
    let vswitch = known.vswitches.iter().find(|v| v.id == eni.vswitch);
    let cidr = vswitch.map(|v| prefixes(v, known.stack)).unwrap_or_default();
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
