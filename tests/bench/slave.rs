//! A round trip of an IPvlan pod beside the host's own and a veth's, measured in a guest whose kernel has ipvlan.

use std::process::Command;

use super::table::{Goal, Row, Table};

pub fn measure(table: &mut Table) {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["test", "-q", "--test", "main", "vm::round_trips_of_a_slave", "--", "--ignored", "--nocapture"]);
    let output = cargo.output().expect("cargo starts");
    let said = String::from_utf8_lossy(&output.stdout);
    let micros = |name: &str| {
        let line = said.lines().find_map(|line| line.trim().strip_prefix(&format!("round trip {name} ")));
        let nanos = line.and_then(|rest| rest.strip_suffix(" ns")).and_then(|nanos| nanos.parse::<f64>().ok());
        nanos.unwrap_or_else(|| panic!("no round trip of {name}: {said}{}", String::from_utf8_lossy(&output.stderr)))
            / 1e3
    };
    let [slave, veth, host] = ["slave", "veth", "host"].map(micros);
    let what = "UDP round trip of an IPvlan pod to another node, in User Mode Linux, median: beside the host's own";
    table.push(Row::beside("ipvlan_rtt_vs_host", what, "µs", [slave, host], Goal::RatioAtMost(1.10)));
    let what = "the same beside a pod on policy routing";
    table.push(Row::beside("ipvlan_rtt_vs_policy_route", what, "µs", [slave, veth], Goal::RatioAtMost(0.70)));
}
