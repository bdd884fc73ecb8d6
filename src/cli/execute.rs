//! `execute`: the old Terway's commands of a resource.

use argh::FromArgs;
use serde_json::{Value, json};

use super::face::{Answer, Failure};
use super::list::{self, served};
use super::{mapping, metadata};
use crate::rpc::Lease;

/// Carry out a command of a resource, as the old Terway called them: mapping and resdb (of network_service and resource_pool), audit
/// (of a factory: what the metadata service says of its ENIs against what terwayd knows).
#[derive(FromArgs)]
#[argh(subcommand, name = "execute")]
pub struct Execute {
    /// network_service, resource_pool or factory
    #[argh(positional)]
    kind: String,
    /// as terway-cli list TYPE tells it
    #[argh(positional)]
    name: String,
    /// mapping, resdb or audit
    #[argh(positional)]
    command: String,
    /// print JSON
    #[argh(switch)]
    pub json: bool,
}

impl Execute {
    pub fn answer(&self) -> Result<Answer, Failure> {
        list::check(&self.kind)?;
        let known = served()?;
        list::check_name(&self.kind, Some(&self.name), &known.shown)?;
        match (self.kind.as_str(), self.command.as_str()) {
            ("network_service" | "resource_pool", "mapping") => Ok(mapping::of(&known.shown["pool"])),
            ("network_service" | "resource_pool", "resdb") => Ok(database(&known.leases)),
            ("factory", "audit") => audit(&known.shown["pool"]),
            (kind, command) => {
                let has = if kind == "factory" { "audit" } else { "mapping, resdb" };
                Err(Failure::usage(format!("{kind} has no command {command:?}; it has {has}")))
            }
        }
    }
}

fn database(leases: &[Lease]) -> Answer {
    let line = |lease: &Lease| {
        let ips: Vec<String> = lease.ip.iter().map(|ip| ip.to_string()).collect();
        format!("{} -> {} {}", lease.pod, lease.eni.id, ips.join(","))
    };
    let mut lines: Vec<String> = leases.iter().map(line).collect();
    lines.sort();
    let page = format!("Resource DB ({} entries)\n", lines.len()) + &lines.join("\n") + "\n";
    Answer::fine(page, lines.into())
}

/// Addresses that one of the two knows and the other does not.
fn audit(pool: &Value) -> Result<Answer, Failure> {
    let mut ours = std::collections::BTreeSet::new();
    list::each_address(pool, |mac, address| {
        ours.insert(format!("{mac}.{}", super::status::text(address, "ip")));
    });
    let macs: Vec<String> = super::status::list(&pool["enis"]).map(|eni| super::status::text(eni, "mac")).collect();
    let theirs: std::collections::BTreeSet<String> = metadata::enis()?
        .iter()
        .filter(|eni| macs.contains(&eni.mac.to_string()))
        .flat_map(|eni| {
            let v6 = eni.v6.iter().map(|ip| format!("{}.{ip}", eni.mac));
            eni.v4.iter().map(|ip| format!("{}.{ip}", eni.mac)).chain(v6).collect::<Vec<_>>()
        })
        .collect();
    let lacking: Vec<&String> = ours.difference(&theirs).collect();
    let unknown: Vec<&String> = theirs.difference(&ours).collect();
    let mut page =
        format!("{} addresses, {} of them agreed\n", ours.len().max(theirs.len()), ours.intersection(&theirs).count());
    page.extend(lacking.iter().map(|id| format!("not in the metadata: {id}\n")));
    page.extend(unknown.iter().map(|id| format!("not known to terwayd: {id}\n")));
    let good = lacking.is_empty() && unknown.is_empty();
    Ok(Answer::found(good, page, json!({"not_in_metadata": lacking, "not_known": unknown})))
}
