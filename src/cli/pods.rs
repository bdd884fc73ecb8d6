//! `pods`: the node's pods, their addresses, and whether the kernel has them as planned.

use argh::FromArgs;
use serde_json::{Value, json};

use super::compare::{self, Found, Part};
use super::face::{Answer, Cell, Failure, Hue, Table};
use super::known::Known;
use crate::rate::Both;
use crate::rpc::{Lease, Wiring};

/// Show the pods of this node: address, ENI, how they are wired, and in what the kernel is not as planned. Exits with 0, 1 if a pod
/// is not as planned, 3 if terwayd does not answer (its ledger is read then).
#[derive(FromArgs)]
#[argh(subcommand, name = "pods")]
pub struct Pods {
    /// look inside the pods' namespaces, too
    #[argh(switch)]
    pub inside: bool,
    /// print JSON
    #[argh(switch)]
    pub json: bool,
}

impl Pods {
    pub fn answer(&self) -> Result<Answer, Failure> {
        let known = Known::look()?;
        let found = compare::all(&known, self.inside)?;
        let mut table = Table::new(["POD", "ADDRESS", "ENI", "WIRED", "LIMIT", "ATTACHMENT", "STATE"]);
        let mut leases: Vec<&Lease> = known.leases.iter().collect();
        leases.sort_by(|a, b| a.pod.cmp(&b.pod));
        for lease in &leases {
            table.row(row(lease, &found));
        }
        let good = !found.iter().any(|f| matches!(f.part, Part::Pod(_)));
        let json: Vec<Value> = leases.iter().map(|lease| object(lease, &found)).collect();
        Ok(Answer { page: known.caveat() + &table.text(), json: json.into(), code: known.judged(good) })
    }
}

fn differences<'a>(lease: &Lease, found: &'a [Found]) -> Vec<&'a str> {
    let part = Part::Pod(lease.pod.to_string());
    found.iter().filter(|f| f.part == part).map(|f| f.what.as_str()).collect()
}

fn row(lease: &Lease, found: &[Found]) -> [Cell; 7] {
    let state = match (lease.untouched(), differences(lease, found).as_slice()) {
        (Some(why), _) => Cell(Hue::Odd, format!("as the old Terway left it: {why}")),
        (None, []) => Cell(Hue::Good, "ok".into()),
        (None, [first]) => Cell(Hue::Bad, first.to_string()),
        (None, [first, rest @ ..]) => Cell(Hue::Bad, format!("{first} (and {} more)", rest.len())),
    };
    let Lease { pod, ip, eni, sandbox, .. } = lease;
    let limit = Cell(Hue::Plain, limit(lease));
    [pod.into(), ip.into(), (&eni.id).into(), wired(lease).into(), limit, (&sandbox.attachment).into(), state]
}

fn object(lease: &Lease, found: &[Found]) -> Value {
    json!({
        "pod": lease.pod.to_string(),
        "ips": lease.ip.iter().collect::<Vec<_>>(),
        "eni": lease.eni.id,
        "wired": wired(lease),
        "limit": limit(lease),
        "attachment": lease.sandbox.attachment.to_string(),
        "netns": lease.sandbox.netns,
        "untouched": lease.untouched(),
        "differences": differences(lease, found),
    })
}

pub fn wired(lease: &Lease) -> &'static str {
    match lease.wiring {
        Wiring::Shared => "veth",
        Wiring::Whole(_) => "whole ENI",
        Wiring::Ipvlan(_) => "ipvlan",
    }
}

/// In and out.
fn limit(lease: &Lease) -> String {
    let Both { ingress, egress } = lease.bandwidth.rates();
    let word = |rate: Option<crate::rate::Rate>| rate.map_or("-".into(), |rate| rate.to_string());
    if ingress.is_none() && egress.is_none() { "-".into() } else { format!("{}/{}", word(ingress), word(egress)) }
}
