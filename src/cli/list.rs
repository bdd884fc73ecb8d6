//! `list`: the old Terway's resources, by type and name.

use argh::FromArgs;
use serde_json::Value;

use super::face::{Answer, Failure};
use super::known::Known;
use super::status::text;

/// The types that the old Terway knew.
pub const TYPES: [&str; 3] = ["network_service", "resource_pool", "factory"];

/// List the types of resources, or the resources of a type, as the old Terway called them; pods are listed by `terway-cli pods`.
#[derive(FromArgs)]
#[argh(subcommand, name = "list")]
pub struct List {
    /// network_service, resource_pool or factory
    #[argh(positional)]
    kind: Option<String>,
    /// print JSON
    #[argh(switch)]
    pub json: bool,
}

impl List {
    pub fn answer(&self) -> Result<Answer, Failure> {
        let names = match &self.kind {
            None => TYPES.map(String::from).to_vec(),
            Some(kind) => {
                check(kind)?;
                vec![name(kind, &served()?.shown)]
            }
        };
        let page = names.iter().map(|name| format!("* {name}\n")).collect();
        Ok(Answer::fine(page, names.into()))
    }
}

pub fn check(kind: &str) -> Result<(), Failure> {
    if TYPES.contains(&kind) {
        return Ok(());
    }
    Err(Failure::usage(format!("{kind:?} is no type of resource; there are {}", TYPES.join(", "))))
}

/// The one resource of a type.
pub fn name(kind: &str, shown: &Value) -> String {
    match kind {
        "network_service" => "default".into(),
        _ if shown["pool"]["eni_per_pod"] == true => "eni".into(),
        _ => "eniip".into(),
    }
}

/// There is one resource of each type; another name is a mistake.
pub fn check_name(kind: &str, said: Option<&str>, shown: &Value) -> Result<String, Failure> {
    let name = name(kind, shown);
    match said {
        Some(said) if said != name => Err(Failure::usage(format!("there is no {kind} {said:?}, only {name:?}"))),
        _ => Ok(name),
    }
}

/// What only a daemon can tell.
pub fn served() -> Result<Known, Failure> {
    let known = Known::look()?;
    match &known.silence {
        None => Ok(known),
        Some(why) => Err(Failure::new(super::face::Code::NoDaemon, why)),
    }
}

/// What the old Terway's `show` had for a resource, keys with slashes.
pub fn leaves(kind: &str, name: &str, shown: &Value) -> Vec<(String, String)> {
    let mut leaves = vec![("name".to_string(), name.to_string())];
    let mut put = |key: String, value: String| leaves.push((key, value));
    let pool = &shown["pool"];
    match kind {
        "network_service" => {
            put("daemon_mode".into(), text(shown, "daemon_mode"));
            put("config_file_path".into(), crate::ours::CONFIG.into());
            put("pending_pods_count".into(), super::status::list(&pool["waiting"]).count().to_string());
            for lease in super::status::list(&shown["leases"]) {
                let pod = format!("{}.{}", text(&lease["pod"], "namespace"), text(&lease["pod"], "name"));
                let ips: Vec<String> = ["v4", "v6"].iter().map(|family| text(&lease["ip"], family)).collect();
                let ips = ips.join(" ").trim().to_string();
                put(format!("pods/{pod}/resources"), format!("{} {ips}", text(&lease["eni"], "id")));
            }
        }
        "resource_pool" => {
            for key in ["max_idle", "min_idle", "capacity", "idle"] {
                put(key.into(), text(pool, key));
            }
            put("inuse".into(), text(pool, "leased"));
            each_address(pool, |mac, address| {
                let state = text(address, "state");
                put(format!("addresses/{mac}.{}", text(address, "ip")), state);
            });
        }
        _ => {
            put("eni_max".into(), text(pool, "max_enis"));
            put("eni_count".into(), super::status::list(&pool["enis"]).count().to_string());
            put("creating".into(), text(pool, "creating"));
            for eni in super::status::list(&pool["enis"]) {
                let mac = text(eni, "mac");
                put(format!("eni/{mac}/id"), text(eni, "id"));
                put(format!("eni/{mac}/state"), text(eni, "state"));
                let count = super::status::list(&eni["addresses"]).count();
                put(format!("eni/{mac}/secondary_ips"), count.saturating_sub(1).to_string());
            }
            for vswitch in super::status::list(&pool["vswitches"]) {
                put(format!("vswitch/{}/ip_count", text(vswitch, "id")), text(vswitch, "free"));
            }
        }
    }
    leaves
}

/// Each address of each ENI, with the ENI's MAC.
pub fn each_address(pool: &Value, mut see: impl FnMut(&str, &Value)) {
    for eni in super::status::list(&pool["enis"]) {
        let mac = text(eni, "mac");
        super::status::list(&eni["addresses"]).for_each(|address| see(&mac, address));
    }
}
