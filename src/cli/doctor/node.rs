//! What is Terway's own on the node: the daemon, its configuration, what it has put into the kernel, what was left there.

use std::collections::BTreeMap;
use std::path::Path;

use super::super::compare;
use super::super::finding::{Finding, Weight};
use super::super::known::Known;
use super::super::status;
use super::{Complaint, Fix, Patient};
use crate::error::Error;
use crate::kernel::{Difference, LinkSeen, RouteSeen, felix};
use crate::ours;
use crate::plan::{Object, Plan, Rule, RuleAction};
use crate::rpc::{Lease, Wiring};

type Found = Result<Vec<Complaint>, Error>;

/// What it says of itself.
pub fn daemon(patient: &mut Patient) -> Found {
    Ok(status::findings(&patient.known).into_iter().map(Complaint::from).collect())
}

pub fn configuration(patient: &mut Patient) -> Found {
    let remedy = "mend it: docs/configuration.md has all keys; terwayd goes on by what it read last";
    let broken = patient.config.as_ref().err().map(|e| Complaint::from(Finding::problem(e.to_string(), remedy)));
    Ok(broken.into_iter().chain(without_services(patient)).collect())
}

/// Pods with an ENI of their own that were not told where Services are when they came, and that nobody leads there at the socket.
fn without_services(patient: &Patient) -> Option<Complaint> {
    let is_lost = |lease: &&Lease| match &lease.wiring {
        Wiring::Whole(whole) => whole.services.is_empty() && !whole.alone && lease.sandbox.attachment.ifname == "eth0",
        _ => false,
    };
    let is_led = patient.known.silence.is_some() || !patient.known.shown["services"].is_null();
    let mut lost = patient.known.leases.iter().filter(is_lost).filter(|_| !is_led);
    let (first, more) = (lost.next()?, lost.count());
    let others = if more > 0 { format!(" (and {more} more)") } else { String::new() };
    let (why, remedy) = match patient.known.shown["service_overlap"].as_str() {
        Some(overlap) => (
            format!("kubeadm's {overlap}"),
            "have them led at the socket: ebpf_services true in /etc/eni/eni.json, and a restart of terwayd; or choose a Service CIDR \
             outside of the VPC; then re-create the pod",
        ),
        None => (
            "service_cidr was not known".into(),
            "set service_cidr in /etc/eni/eni.json to the cluster's (kube-apiserver --service-cluster-ip-range), and re-create the pod",
        ),
    };
    let what = format!("pod {}{others} has an ENI of its own and no way to Services: {why}", first.pod);
    Some(Finding::problem(what, remedy).into())
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

/// Rules for ENIs that are not here, routes to pods that nobody leases an address to, and what felix has left.
pub fn leftovers(patient: &mut Patient) -> Found {
    let rules = patient.kernel.rules()?;
    let old = |rule: &&Rule| is_stale(rule, &patient.links);
    let mut complaints: Vec<Complaint> = rules.iter().filter(old).map(stale).collect();
    if patient.known.silence.is_none() {
        let routes = patient.kernel.routes(ours::PODS_TABLE)?;
        complaints.extend(routes.into_iter().filter(|route| is_nobodys(route, patient)).map(unrouted));
    }
    if felix::is_there() && felix::runs().is_none() {
        complaints.push(left_by_felix(is_needless(&patient.known)));
    }
    Ok(complaints)
}

fn left_by_felix(is_needless: bool) -> Complaint {
    let what =
        "felix is gone and has left its chains (cali-…) in netfilter: what pods send that came after it is dropped";
    let remedy = "see that felix is not to come back to this node (Calico, the old Terway); `iptables-save | grep cali` shows them";
    Complaint { finding: Finding::problem(what, remedy), fix: is_needless.then_some(Fix::ClearFelix) }
}

/// Whether felix's chains hold nobody to a policy who is not held without them: where ours are in force, or nobody asks for any. A
/// daemon that serves may not know the policies yet. What is Calico's is never ours to take away.
pub fn is_needless(known: &Known) -> bool {
    let shown = &known.shown["policies"];
    let is_enforced = shown["state"] == "enforced" && !shown["renderer"].is_null();
    known.silence.is_none() && (shown == "disabled" || is_enforced) && !Path::new(ours::CALICO_NOTE).exists()
}

/// It is of an ENI whose link is gone: by the table, which is of a link, or by the link's name. Others may have rules at our priorities:
/// ours bear a mark of ours, or are from one pod alone.
fn is_stale(rule: &Rule, links: &[LinkSeen]) -> bool {
    match (rule.priority, rule.action) {
        (ours::FROM_POD_PRIORITY, RuleAction::Lookup(table)) => {
            let is_of_pod = rule.from.is_some_and(|net| net.prefix_len() == net.max_prefix_len());
            let is_ours = if rule.mark.is_some() { bears_our_mark(rule) } else { is_of_pod };
            let is_there = || links.iter().any(|link| ours::eni_table(link.ifindex) == table);
            is_ours && table > ours::PODS_TABLE && !is_there()
        }
        (ours::STRAY_PRIORITY, RuleAction::Blackhole) => {
            let plain = rule.mark.is_none() && rule.from.is_none();
            plain && rule.iif.as_deref().is_some_and(|iif| !links.iter().any(|link| link.name == iif))
        }
        _ => false,
    }
}

fn bears_our_mark(rule: &Rule) -> bool {
    rule.mark.is_some_and(|(value, mask)| ours::slot(value, mask).is_some())
}

/// One that is from an address may be another's after all: a person takes that away.
fn stale(rule: &Rule) -> Complaint {
    let line = Object::Rule(rule.clone()).to_string();
    let what = format!(
        "a rule of an ENI that is not here: {}",
        line.replace("ip rule add ", "").replace("ip -6 rule add ", "")
    );
    Complaint {
        finding: Finding::note(what, line.replace("rule add", "rule del")),
        fix: rule.from.is_none().then(|| Fix::Forget(rule.clone())),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Family;

    #[test]
    fn rules_of_others_at_our_priorities_are_no_leftovers_of_ours() {
        let from = |text: &str| Some(text.parse().unwrap());
        let lookup = RuleAction::Lookup(1999);
        let rule = |from, mark, iif: Option<&str>| Rule {
            priority: ours::FROM_POD_PRIORITY,
            family: Family::V4,
            from,
            mark,
            iif: iif.map(String::from),
            action: lookup,
        };
        let stray = |mark, iif| Rule {
            priority: ours::STRAY_PRIORITY,
            action: RuleAction::Blackhole,
            ..rule(None, mark, Some(iif))
        };
        for (rule, old, fixed) in [
            (rule(None, Some((0x20, ours::MARK_MASK)), None), true, true),
            (rule(from("10.0.0.5/32"), None, None), true, false),
            (rule(from("10.0.0.5/32"), None, Some("cali1")), true, false),
            (rule(from("10.0.0.0/24"), None, None), false, false),
            (rule(None, Some((0x20, 0xff)), None), false, false),
            (rule(None, None, Some("tun0")), false, false),
            (Rule { action: RuleAction::Lookup(52), ..rule(from("10.0.0.5/32"), None, None) }, false, false),
            (stray(None, "eth9"), true, true),
            (stray(Some((1, 1)), "eth9"), false, false),
            (Rule { from: from("198.51.100.7/32"), ..stray(None, "eth9") }, false, false),
        ] {
            assert_eq!(is_stale(&rule, &[]), old, "{rule:?}");
            assert_eq!(old && stale(&rule).fix.is_some(), fixed, "{rule:?}");
        }
    }
}
