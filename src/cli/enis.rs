//! `enis`: the ENIs of this node and what is on them.

use std::collections::BTreeMap;

use argh::FromArgs;
use serde_json::{Value, json};

use super::face::{Answer, Cell, Code, Failure, Hue, Table};
use super::known::Known;
use super::status::{list, text};
use crate::kernel::{Kernel, LinkSeen};

/// Show the ENIs of this node: link, state, vSwitch, and how many of their addresses are used. Exits with 0, 1 if something is wrong
/// with one, 3 if terwayd does not answer (what the ledger and the kernel know is shown then).
#[derive(FromArgs)]
#[argh(subcommand, name = "enis")]
pub struct Enis {
    /// every address of every ENI
    #[argh(switch)]
    pub addresses: bool,
    /// print JSON
    #[argh(switch)]
    pub json: bool,
}

impl Enis {
    pub fn answer(&self) -> Result<Answer, Failure> {
        let known = Known::look()?;
        let links = Kernel::host()?.links()?;
        if known.silence.is_some() {
            return Ok(by_ledger(&known, &links));
        }
        let enis: Vec<&Value> = list(&known.shown["pool"]["enis"]).collect();
        let page = if self.addresses { addresses(&enis) } else { table(&enis, &links) };
        let good = enis.iter().all(|eni| eni["complaint"].is_null() && text(eni, "state") != "missing");
        let json: Vec<Value> = enis
            .iter()
            .map(|eni| {
                let mut eni = (*eni).clone();
                eni["ifname"] = link(&eni, &links).into();
                eni
            })
            .collect();
        Ok(Answer::found(good, page, json.into()))
    }
}

fn table(enis: &[&Value], links: &[LinkSeen]) -> String {
    let head = ["ENI", "MAC", "LINK", "VSWITCH", "LEASED", "IDLE", "RESTING", "STATE", "COMPLAINT"];
    let mut table = Table::new(head);
    for eni in enis {
        let count = |states: &[&str]| {
            let of = |address: &&Value| states.contains(&address["state"].as_str().unwrap_or_default());
            list(&eni["addresses"]).filter(of).count()
        };
        let state = text(eni, "state");
        let hue = if ["serving", "lent"].contains(&state.as_str()) { Hue::Good } else { Hue::Odd };
        table.row([
            text(eni, "id").into(),
            text(eni, "mac").into(),
            link(eni, links).into(),
            text(eni, "vswitch").into(),
            count(&["leased"]).into(),
            count(&["idle"]).into(),
            count(&["cooling", "reserved", "leaving"]).into(),
            Cell(hue, state),
            Cell(Hue::Bad, text(eni, "complaint")),
        ]);
    }
    table.text()
}

/// What the ENI is called on this node; one that is lent is in its pod.
fn link(eni: &Value, links: &[LinkSeen]) -> String {
    let mac = text(eni, "mac").parse().ok();
    let found = links.iter().find(|link| mac.is_some_and(|mac| link.is_eni(mac)));
    found.map_or_else(|| if text(eni, "state") == "lent" { "(in its pod)" } else { "-" }.into(), |l| l.name.clone())
}

fn addresses(enis: &[&Value]) -> String {
    let mut table = Table::new(["ENI", "ADDRESS", "STATE", "POD", "NOTE"]);
    for eni in enis {
        for address in list(&eni["addresses"]) {
            let note = match (address["primary"].as_bool(), address["left_secs"].as_u64()) {
                (Some(true), _) => "primary".into(),
                (_, Some(secs)) => format!("for {secs} s more"),
                _ => String::new(),
            };
            let ip = text(address, "ip");
            table.row([
                text(eni, "id").into(),
                ip.into(),
                text(address, "state").into(),
                text(address, "pod").into(),
                note.into(),
            ]);
        }
    }
    table.text()
}

/// Without a daemon: the ENIs that leases name, and whether the kernel has them.
fn by_ledger(known: &Known, links: &[LinkSeen]) -> Answer {
    let mut enis: BTreeMap<&str, (&crate::rpc::EniLease, usize)> = BTreeMap::new();
    known.leases.iter().for_each(|lease| enis.entry(&lease.eni.id).or_insert((&lease.eni, 0)).1 += 1);
    let mut table = Table::new(["ENI", "MAC", "LINK", "VSWITCH", "LEASED"]);
    let mut json = Vec::new();
    for (id, (eni, leased)) in enis {
        let link = links.iter().find(|link| link.is_eni(eni.mac)).map_or("-", |link| link.name.as_str());
        table.row([id.into(), eni.mac.into(), link.into(), (&eni.vswitch).into(), leased.into()]);
        json.push(json!({"id": id, "mac": eni.mac, "ifname": link, "vswitch": eni.vswitch, "leased": leased}));
    }
    Answer { page: known.caveat() + &table.text(), json: json.into(), code: Code::NoDaemon }
}
