//! `execute`: the old Terway's commands of a resource.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::IpAddr;

use argh::FromArgs;
use ipnet::Ipv4Net;
use serde_json::{Value, json};

use super::face::{Answer, Failure};
use super::list::{check, check_name, served};
use super::status::{list, text};
use super::{mapping, metadata};
use crate::cloud::EniFacts;
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
        check(&self.kind)?;
        let known = served()?;
        check_name(&self.kind, Some(&self.name), &known.shown)?;
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

/// Addresses and prefixes that one of the two knows and the other does not.
fn audit(pool: &Value) -> Result<Answer, Failure> {
    Ok(compare(pool, &metadata::enis()?))
}

fn compare(pool: &Value, metadata: &[EniFacts]) -> Answer {
    let (mut ours, mut theirs, mut untold) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for eni in list(&pool["enis"]) {
        let mac = text(eni, "mac");
        let named = |what: &dyn Display| format!("{mac}.{what}");
        let known = metadata.iter().find(|known| known.mac.to_string() == mac);
        let prefixes: Vec<Ipv4Net> = list(&eni["prefixes"]).filter_map(|net| net.as_str()?.parse().ok()).collect();
        // Of those of a prefix, the service tells by the prefix.
        let single = |ip: &IpAddr| !prefixes.iter().any(|net| matches!(ip, IpAddr::V4(ip) if net.contains(ip)));
        let addresses = list(&eni["addresses"]).filter_map(|address| text(address, "ip").parse().ok());
        ours.extend(addresses.filter(single).map(|ip| named(&ip)));
        let told = known.and_then(|known| known.prefixes.as_ref());
        let of_prefixes = if known.is_some() && told.is_none() { &mut untold } else { &mut ours };
        of_prefixes.extend(prefixes.iter().map(|net| named(net)));
        theirs.extend(told.into_iter().flatten().map(|net| named(net)));
        let v4 = known.iter().flat_map(|known| known.v4.iter().copied().map(IpAddr::from));
        let v6 = known.iter().flat_map(|known| known.v6.iter().copied().map(IpAddr::from));
        theirs.extend(v4.chain(v6).filter(single).map(|ip| named(&ip)));
    }
    let lacking: Vec<&String> = ours.difference(&theirs).collect();
    let unknown: Vec<&String> = theirs.difference(&ours).collect();
    let (most, agreed) = (ours.len().max(theirs.len()), ours.intersection(&theirs).count());
    let mut page = format!("{most} addresses and prefixes, {agreed} of them agreed\n");
    page.extend(lacking.iter().map(|id| format!("not in the metadata: {id}\n")));
    page.extend(unknown.iter().map(|id| format!("not known to terwayd: {id}\n")));
    page.extend(untold.iter().map(|id| format!("not compared, the metadata service tells of no prefixes: {id}\n")));
    let good = lacking.is_empty() && unknown.is_empty();
    let json = json!({"not_in_metadata": lacking, "not_known": unknown, "not_compared": untold});
    Answer::found(good, page, json)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::face::Code;

    #[test]
    fn what_the_metadata_service_says_is_compared_address_by_address_and_prefix_by_prefix() {
        let pool = json!({"enis": [{
            "mac": "00:16:3e:00:00:01",
            "prefixes": ["10.0.0.16/28"],
            "addresses": [{"ip": "10.0.0.5"}, {"ip": "10.0.0.6"}, {"ip": "10.0.0.17"}, {"ip": "10.0.0.18"}],
        }]});
        let facts = |v4: &[&str], prefixes: Option<&[&str]>| EniFacts {
            id: "eni-1".into(),
            mac: "00:16:3e:00:00:01".parse().unwrap(),
            primary: "10.0.0.5".parse().unwrap(),
            v4: v4.iter().map(|ip| ip.parse().unwrap()).collect(),
            v6: Vec::new(),
            prefixes: prefixes.map(|all| all.iter().map(|net| net.parse().unwrap()).collect()),
            gateway: "10.0.0.253".parse().unwrap(),
            vswitch: "vsw-1".into(),
            cidr: "10.0.0.0/24".parse().unwrap(),
        };
        let said = |facts: EniFacts| {
            let answer = compare(&pool, &[facts]);
            (answer.code, answer.page.lines().map(String::from).collect::<Vec<_>>())
        };
        let (code, page) = said(facts(&["10.0.0.5", "10.0.0.6"], Some(&["10.0.0.16/28"])));
        assert_eq!((code, page), (Code::Fine, vec!["3 addresses and prefixes, 3 of them agreed".to_string()]));
        let (code, page) = said(facts(&["10.0.0.5", "10.0.0.7"], Some(&["10.0.0.32/28"])));
        assert_eq!(code, Code::Found);
        assert_eq!(
            page[1..],
            [
                "not in the metadata: 00:16:3e:00:00:01.10.0.0.16/28",
                "not in the metadata: 00:16:3e:00:00:01.10.0.0.6",
                "not known to terwayd: 00:16:3e:00:00:01.10.0.0.32/28",
                "not known to terwayd: 00:16:3e:00:00:01.10.0.0.7",
            ]
        );
        // A service that knows of no prefixes may list their addresses, or not.
        for v4 in [&["10.0.0.5", "10.0.0.6"][..], &["10.0.0.5", "10.0.0.6", "10.0.0.17"]] {
            let (code, page) = said(facts(v4, None));
            assert_eq!((code, page.len()), (Code::Fine, 2), "{page:?}");
            assert!(page[1].starts_with("not compared") && page[1].ends_with("10.0.0.16/28"), "{page:?}");
        }
    }
}
