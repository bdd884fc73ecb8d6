//! What of the plans of node, ENIs and pods is not in the kernel: the same plans that the data path applies.

use std::path::Path;
use std::thread;
use std::time::Duration;

use super::known::Known;
use crate::datapath::{self, EniSetup, NodeSetup, Setup};
use crate::error::Error;
use crate::ip::Stack;
use crate::kernel::{Difference, Kernel, LinkSeen};
use crate::ours;
use crate::plan::Plan;
use crate::rpc::{EniLease, Lease};

/// So long a pod is on its way, and the daemon's repair.
const SETTLE: Duration = Duration::from_millis(400);

/// Which of the plans.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    Node,
    Eni(String),
    Pod(String),
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Part::Node => f.write_str("the node"),
            Part::Eni(id) => write!(f, "ENI {id}"),
            Part::Pod(pod) => write!(f, "pod {pod}"),
        }
    }
}

/// A plan that is not in the kernel as it should be, and in what; or why that cannot be said.
pub struct Found {
    pub part: Part,
    pub what: String,
}

/// Compares all there is on the node's side; with `inside` the pods' namespaces too. What is gone after a moment was a pod that came or
/// went, or is repaired.
pub fn all(known: &Known, inside: bool) -> Result<Vec<Found>, Error> {
    let found = once(known, inside)?;
    if found.is_empty() {
        return Ok(found);
    }
    thread::sleep(SETTLE);
    let Ok(known) = Known::look() else { return Ok(found) };
    let mut still = once(&known, inside)?;
    still.retain(|now| found.iter().any(|then| then.part == now.part));
    Ok(still)
}

fn once(known: &Known, inside: bool) -> Result<Vec<Found>, Error> {
    let mut kernel = Kernel::host()?;
    let links = kernel.links()?;
    kernel.look_at_links()?;
    let mut found = Vec::new();
    note(&mut found, Part::Node, kernel.survey(&node(known), None));
    for (id, eni) in &known.enis {
        let differences = match eni_plan(known, eni, &links) {
            Some(plan) => kernel.survey(&plan, None),
            None => Err(Error::refused(format!("no link has its MAC {}", eni.mac))),
        };
        note(&mut found, Part::Eni(id.clone()), differences);
    }
    for lease in &known.leases {
        let netns = inside.then_some(lease.sandbox.netns.as_path());
        note(&mut found, Part::Pod(lease.pod.to_string()), pod(&mut kernel, known, lease, &links, netns));
    }
    Ok(found)
}

fn note(found: &mut Vec<Found>, part: Part, differences: Result<Vec<Difference>, Error>) {
    match differences {
        Ok(differences) => {
            found.extend(differences.iter().map(|d| Found { part: part.clone(), what: d.to_string() }));
        }
        Err(e) => found.push(Found { part, what: e.to_string() }),
    }
}

fn pod(
    kernel: &mut Kernel,
    known: &Known,
    lease: &Lease,
    links: &[LinkSeen],
    netns: Option<&Path>,
) -> Result<Vec<Difference>, Error> {
    kernel.survey(&pod_plan(known, lease, links), netns)
}

/// The node's own plan.
pub fn node(known: &Known) -> Plan {
    let v6 = known.leases.iter().any(|lease| lease.ip.v6.is_some());
    datapath::node(&NodeSetup { stack: if v6 { Stack::Dual } else { Stack::V4 }, ..NodeSetup::default() })
}

/// The plan of an ENI, which is empty where pods have whole ones; nothing where it has no link on the node.
pub fn eni_plan(known: &Known, eni: &EniLease, links: &[LinkSeen]) -> Option<Plan> {
    let link = links.iter().find(|link| link.is_eni(eni.mac))?;
    if known.shown["pool"]["eni_per_pod"] == true {
        return Some(Plan::default());
    }
    let on_it = |lease: &&Lease| lease.eni.id == eni.id;
    let node = known.leases.iter().find(on_it).or(known.leases.first()).map(|lease| lease.node).unwrap_or_default();
    let mtu = known.shown["mtu"].as_u64().and_then(|mtu| u32::try_from(mtu).ok()).unwrap_or(link.mtu);
    let setup = EniSetup { eni, link: &link.name, mtu, node: &node };
    let has_slaves = known.leases.iter().filter(on_it).any(Lease::is_slave);
    Some(if has_slaves { datapath::parent(&setup) } else { datapath::eni(&setup) })
}

/// The plan of a pod, with the MTU that its link was given.
pub fn pod_plan(known: &Known, lease: &Lease, links: &[LinkSeen]) -> Plan {
    let veth = ours::host_veth(&lease.pod, &lease.sandbox.attachment.ifname);
    let mtu = links.iter().find(|link| link.name == veth).map_or_else(|| known.mtu(), |link| link.mtu);
    // An ENI that has come back may have another table.
    let eni = known.enis.get(&lease.eni.id).filter(|_| !lease.is_whole()).unwrap_or(&lease.eni);
    datapath::pod(&Setup::new(&Lease { eni: eni.clone(), ..lease.clone() }, mtu))
}
