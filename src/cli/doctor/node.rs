//! What is Terway's own on the node: the daemon, its configuration, what it has put into the kernel, what was left there.

use std::collections::BTreeMap;

use super::super::compare;
use super::super::finding::{Finding, Weight};
use super::super::status;
use super::{Complaint, Fix, Patient};
use crate::error::Error;
use crate::kernel::{Difference, RouteSeen};
use crate::ours;
use crate::plan::{Object, Plan, Rule, RuleAction};

type Found = Result<Vec<Complaint>, Error>;

/// What it says of itself.
pub fn daemon(patient: &mut Patient) -> Found {
    Ok(status::findings(&patient.known).into_iter().map(Complaint::from).collect())
}

pub fn configuration(patient: &mut Patient) -> Found {
    let Err(e) = &patient.config else { return Ok(Vec::new()) };
    let remedy = "mend it: docs/configuration.md has all keys; terwayd goes on by what it read last";
    Ok(vec![Finding::problem(e.to_string(), remedy).into()])
}

/// What node and ENIs are to have in the kernel.
pub fn plans(patient: &mut Patient) -> Found {
    let mut plans: Vec<(String, Plan)> = vec![("the node".into(), compare::node(&patient.known))];
    let mut complaints = Vec::new();
    for (id, eni) in &patient.known.enis {
        match compare::eni_plan(&patient.known, eni, &patient.links) {
            Some(plan) => plans.push((format!("ENI {id}"), plan)),
            None => {
                let what = format!("ENI {id}: no link has its MAC {}", eni.mac);
                let remedy =
                    "see whether it is attached (terway-cli metadata) and its driver is there: dmesg | grep virtio";
                complaints.push(Finding::problem(what, remedy).into());
            }
        }
    }
    for (whose, plan) in plans {
        for object in &plan.host {
            let one = Plan { host: vec![object.clone()], pod: Vec::new() };
            let found = patient.kernel.survey(&one, None)?;
            complaints.extend(found.iter().map(|difference| missing(&whose, object, difference, &one)));
        }
    }
    Ok(complaints)
}

fn missing(whose: &str, object: &Object, difference: &Difference, plan: &Plan) -> Complaint {
    let finding = Finding::problem(format!("{whose}: {difference}"), object.to_string());
    Complaint { finding, fix: Some(Fix::Make(plan.clone())) }
}

/// Rules for ENIs that are not here, and routes to pods that nobody leases an address to.
pub fn leftovers(patient: &mut Patient) -> Found {
    let rules = patient.kernel.rules()?;
    let old = |rule: &&Rule| is_stale(rule, patient);
    let mut complaints: Vec<Complaint> = rules.iter().filter(old).map(stale).collect();
    if patient.known.silence.is_none() {
        let routes = patient.kernel.routes(ours::PODS_TABLE)?;
        complaints.extend(routes.into_iter().filter(|route| is_nobodys(route, patient)).map(unrouted));
    }
    Ok(complaints)
}

/// It is of an ENI whose link is gone: by the table, which is of a link, or by the link's name.
fn is_stale(rule: &Rule, patient: &Patient) -> bool {
    let link = |ifindex: u32| patient.links.iter().any(|link| link.ifindex == ifindex);
    let named = |name: &str| patient.links.iter().any(|link| link.name == name);
    match (rule.priority, rule.action) {
        (ours::FROM_POD_PRIORITY, RuleAction::Lookup(table)) => {
            table > ours::PODS_TABLE && !link(ours::eni_ifindex(table))
        }
        (ours::STRAY_PRIORITY, RuleAction::Blackhole) => rule.iif.as_deref().is_some_and(|iif| !named(iif)),
        _ => false,
    }
}

fn stale(rule: &Rule) -> Complaint {
    let line = Object::Rule(rule.clone()).to_string();
    let what = format!(
        "a rule of an ENI that is not here: {}",
        line.replace("ip rule add ", "").replace("ip -6 rule add ", "")
    );
    Complaint {
        finding: Finding::note(what, line.replace("rule add", "rule del")),
        fix: Some(Fix::Forget(rule.clone())),
    }
}

fn is_nobodys(route: &RouteSeen, patient: &Patient) -> bool {
    route.protocol == ours::PROTOCOL && patient.known.lease_at(route.to.addr()).is_none()
}

fn unrouted(route: RouteSeen) -> Complaint {
    let what = format!("a route to {}, which nobody has leased", route.to);
    let finding = Finding::note(what, format!("ip route del {} table {}", route.to, route.table));
    Complaint { finding, fix: Some(Fix::Unroute(route)) }
}

/// A pod's frames must fit its ENI; those of the node are the cloud's affair.
pub fn mtu(patient: &mut Patient) -> Found {
    let mut by_eni: BTreeMap<&str, u32> = BTreeMap::new();
    for (id, eni) in &patient.known.enis {
        let link = patient.links.iter().find(|link| link.is_eni(eni.mac));
        by_eni.extend(link.map(|link| (id.as_str(), link.mtu)));
    }
    let mut complaints = Vec::new();
    for lease in &patient.known.leases {
        let veth = ours::host_veth(&lease.pod, &lease.sandbox.attachment.ifname);
        let Some(link) = patient.links.iter().find(|link| link.name == veth) else { continue };
        let most = by_eni.get(lease.eni.id.as_str()).copied().unwrap_or(link.mtu);
        if link.mtu > most {
            let what = format!(
                "pod {} has MTU {}, its ENI {} only {most}: large packets are lost",
                lease.pod, link.mtu, lease.eni.id
            );
            let remedy = "give `mtu` the same value in /etc/eni/eni.json and in the network configuration, and re-create the pod";
            complaints.push(Complaint::from(Finding { weight: Weight::Problem, what, remedy: remedy.into() }));
        }
    }
    Ok(complaints)
}
