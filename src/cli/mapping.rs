//! `mapping`: each address, whose it is, and whether daemon and cloud agree on it.

use argh::FromArgs;
use serde_json::{Value, json};

use super::face::{Answer, Cell, Failure, Hue, Table};
use super::list::{each_address, served};
use super::status::{list, text};

/// Show each address with its pod, in the old Terway's columns. Exits with 1 if a pod has one that the cloud gives to nobody here.
#[derive(FromArgs)]
#[argh(subcommand, name = "mapping")]
pub struct Mapping {
    /// print JSON
    #[argh(switch)]
    pub json: bool,
}

/// One line; `factory` is what the cloud has.
struct Row {
    status: &'static str,
    pod: String,
    resource: String,
    factory: String,
}

impl Mapping {
    pub fn answer(&self) -> Result<Answer, Failure> {
        Ok(of(&served()?.shown["pool"]))
    }
}

pub fn of(pool: &Value) -> Answer {
    let rows = rows(pool);
    let mut table = Table::new(["Status", "Pod Name", "Res ID", "Factory Res ID"]);
    for Row { status, pod, resource, factory } in &rows {
        let hue = match *status {
            "Normal" => Hue::Good,
            "ERROR" => Hue::Bad,
            _ => Hue::Faint,
        };
        table.row([Cell(hue, status.to_string()), pod.into(), resource.into(), factory.into()]);
    }
    let good = rows.iter().all(|row| row.status != "ERROR");
    let mut page = table.text();
    if !good {
        page += "error exists in mapping\n";
    }
    let json: Vec<Value> = rows
        .iter()
        .map(|r| json!({"status": r.status, "pod": r.pod, "resource": r.resource, "factory_resource": r.factory}))
        .collect();
    Answer::found(good, page, json.into())
}

fn rows(pool: &Value) -> Vec<Row> {
    let mut rows = Vec::new();
    let whole = pool["eni_per_pod"] == true;
    each_address(pool, |mac, address| {
        let id = if whole { mac.to_string() } else { format!("{mac}.{}", text(address, "ip")) };
        let status = match address["state"].as_str() {
            Some("leased") => "Normal",
            Some("idle") => "Idle",
            Some("reserved") => "Reserved",
            _ => "Resting",
        };
        rows.push(Row { status, pod: text(address, "pod"), resource: id.clone(), factory: id });
    });
    for lost in list(&pool["lost"]) {
        let ips: Vec<String> = ["v4", "v6"].iter().map(|family| text(&lost["ip"], family)).collect();
        let resource = format!("{}.{}", text(lost, "eni"), ips.join(",").trim_matches(','));
        rows.push(Row { status: "ERROR", pod: text(lost, "pod"), resource, factory: String::new() });
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_that_the_cloud_does_not_have_is_an_error() {
        let enis = json!([{"mac": "00:16:3e:00:00:01", "addresses": [
            {"ip": "10.0.0.1", "state": "leased", "pod": "a/b"}, {"ip": "10.0.0.2", "state": "idle"},
        ]}]);
        let good = of(&json!({"enis": enis}));
        assert_eq!(good.code, super::super::face::Code::Fine);
        let lines: Vec<&str> = good.page.lines().collect();
        assert_eq!(lines[0], "Status  Pod Name  Res ID                      Factory Res ID");
        assert_eq!(lines[1], "Normal  a/b       00:16:3e:00:00:01.10.0.0.1  00:16:3e:00:00:01.10.0.0.1");
        assert_eq!(lines[2], "Idle              00:16:3e:00:00:01.10.0.0.2  00:16:3e:00:00:01.10.0.0.2");
        let lost = json!([{"pod": "a/c", "eni": "eni-9", "ip": {"v4": "10.0.0.9"}}]);
        let bad = of(&json!({"enis": enis, "lost": lost}));
        assert_eq!(bad.code, super::super::face::Code::Found);
        assert!(bad.page.contains("ERROR   a/c       eni-9.10.0.0.9\nerror exists in mapping\n"), "{}", bad.page);
    }
}
