//! `plan`: what ADD does for a pod, as ip(8) and tc(8) would say it: the very plan that the data path applies.

use std::net::IpAddr;

use argh::FromArgs;
use serde_json::{Value, json};

use super::compare;
use super::face::{Answer, Failure, Hue, paint};
use super::known::Known;
use super::policy;
use super::status::{list, text};
use crate::ip::IpPair;
use crate::kernel::{Kernel, LinkSeen};
use crate::plan::Plan;
use crate::pod::{Attachment, PodName, Sandbox};
use crate::rate::Both;
use crate::rpc::{EniLease, Lease, Wiring};

/// Show what ADD does for pods, as ip(8) and tc(8) would say it. For a pod that has no address yet, as if it got one that is idle.
#[derive(FromArgs)]
#[argh(subcommand, name = "plan")]
pub struct PlanVerb {
    /// NAMESPACE/POD or an address
    #[argh(positional)]
    pub pods: Vec<String>,
    /// what node and ENIs have for all pods, too
    #[argh(switch)]
    pub node: bool,
    /// print JSON
    #[argh(switch)]
    pub json: bool,
}

/// A plan under a heading.
struct Part {
    name: String,
    plan: Plan,
}

impl PlanVerb {
    pub fn answer(&self) -> Result<Answer, Failure> {
        if self.pods.is_empty() && !self.node {
            return Err(Failure::usage("plan takes pods, addresses, or --node"));
        }
        let known = Known::look()?;
        let links = Kernel::host()?.links()?;
        let mut parts = if self.node { common(&known, &links) } else { Vec::new() };
        for word in &self.pods {
            parts.push(of(&known, word, &links)?);
        }
        let page =
            parts.iter().map(|Part { name, plan }| paint(Hue::Faint, &format!("# {name}\n")) + &plan.to_string());
        let lines = |objects: &[crate::plan::Object]| objects.iter().map(|o| o.to_string()).collect::<Vec<_>>();
        let object =
            |Part { name, plan }: &Part| json!({"of": name, "host": lines(&plan.host), "pod": lines(&plan.pod)});
        let json: Vec<Value> = parts.iter().map(object).collect();
        Ok(Answer { page: page.collect(), json: json.into(), code: known.code() })
    }
}

/// What is there once, whatever pods there are.
fn common(known: &Known, links: &[LinkSeen]) -> Vec<Part> {
    let mut parts = vec![Part { name: "the node".into(), plan: compare::node(known) }];
    for (id, eni) in &known.enis {
        let plan = compare::eni_plan(known, eni, links);
        parts.extend(plan.map(|plan| Part { name: format!("ENI {id}"), plan }));
    }
    parts
}

fn of(known: &Known, word: &str, links: &[LinkSeen]) -> Result<Part, Failure> {
    let leased = match word.parse::<IpAddr>() {
        Ok(addr) => known.lease_at(addr),
        Err(_) => known.lease_of(&policy::pod(word).map_err(Failure::usage)?),
    };
    let (lease, note) = match leased {
        Some(lease) => (lease.clone(), String::new()),
        None => (would_be(known, word)?, " if it got this idle address".into()),
    };
    let name = format!("pod {}, {}{note}", lease.pod, lease.ip);
    Ok(Part { plan: compare::pod_plan(known, &lease, links), name })
}

/// The lease of a pod that has none, with the first address that is idle, or with this one.
fn would_be(known: &Known, word: &str) -> Result<Lease, Failure> {
    let none = |why: &str| Failure::new(super::face::Code::Found, format!("{word} has no lease{why}"));
    if let Some(why) = &known.silence {
        return Err(Failure::new(super::face::Code::NoDaemon, format!("{word} has no lease in the ledger, and {why}")));
    }
    if known.shown["pool"]["eni_per_pod"] == true {
        return Err(none(", and which ENI it would get is not known before"));
    }
    let asked: Option<IpAddr> = word.parse().ok();
    let (ip, eni) = idle(known, asked).ok_or_else(|| none(", and no address is idle here"))?;
    let pod = policy::pod(word).unwrap_or_else(|_| PodName::new("NAMESPACE", "POD"));
    let attachment = Attachment { container: "CONTAINER".into(), ifname: "eth0".into() };
    Ok(Lease {
        sandbox: Sandbox { attachment, netns: format!("/run/netns/{}", pod.name).into() },
        pod,
        ip,
        eni: eni.clone(),
        node: IpPair::default(),
        marker: super::known::read(&known.shown["marker"])?,
        sticky: false,
        heritage: None,
        bandwidth: Both::default(),
        wiring: Wiring::Shared,
        routes: Vec::new(),
        seat: None,
        mtu: None,
        network: None,
    })
}

fn idle(known: &Known, asked: Option<IpAddr>) -> Option<(IpPair, &EniLease)> {
    let enis =
        list(&known.shown["pool"]["enis"]).filter_map(|shown| Some((shown, known.enis.get(&text(shown, "id"))?)));
    for (shown, eni) in enis {
        let idle = list(&shown["addresses"]).filter(|address| address["state"] == "idle");
        let addrs: Vec<IpAddr> = idle.filter_map(|address| text(address, "ip").parse().ok()).collect();
        let fits = |ip: &&IpAddr| asked.is_none_or(|asked| asked == **ip);
        let v4 = addrs.iter().filter(fits).find_map(|ip| if let IpAddr::V4(ip) = ip { Some(*ip) } else { None });
        let v6 = addrs.iter().filter(fits).find_map(|ip| if let IpAddr::V6(ip) = ip { Some(*ip) } else { None });
        if v4.is_some() || v6.is_some() {
            return Some((IpPair { v4, v6 }, eni));
        }
    }
    None
}
