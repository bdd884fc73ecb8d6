//! What the daemon counts of itself, under the old Terway's names where it had one, and the page that shows it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;

use crate::cloud::Observer;
use crate::metrics::{Latencies, Page};
use crate::rpc::{Reply, Request};

/// Counted on whatever thread a call was made, and for as long as the process lives.
static CLOUD: Mutex<Latencies> = Mutex::new(Latencies::new(
    "aliyun_openapi_latency",
    "How long calls to the cloud took, in milliseconds.",
    ["api", "error"],
    &[50, 100, 200, 400, 800, 1600, 3200, 6400, 12800, 13800, 14800, 16800, 20800, 28800, 44800],
));
/// The old one's began at 50 ms; most of ours take less than one.
static ASKED: Mutex<Latencies> = Mutex::new(Latencies::new(
    "terway_rpc_latency",
    "How long plugins waited for an answer, in milliseconds.",
    ["rpc_api", "error"],
    &[
        1, 2, 5, 10, 20, 50, 100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 26600, 27600, 29600, 33600, 41600,
        57600, 89600, 110_000, 120_000,
    ],
));

/// Counts each call to the cloud.
pub fn observer() -> Observer {
    Arc::new(|action, took, fault| count(&CLOUD, action, fault.is_some(), took))
}

/// Counts a request of a plugin; what people ask is not counted.
pub fn answered(api: Option<&'static str>, reply: &Reply, took: Duration) {
    if let Some(api) = api {
        count(&ASKED, api, matches!(reply, Reply::Refused { .. }), took);
    }
}

/// The old Terway's name for what a plugin asks.
pub fn api(request: &Request) -> Option<&'static str> {
    match request {
        Request::Allocate { .. } => Some("AllocIP"),
        Request::Release { .. } => Some("ReleaseIP"),
        Request::Lease { .. } | Request::Find { .. } => Some("GetIPInfo"),
        _ => None,
    }
}

fn count(all: &Mutex<Latencies>, api: &str, failed: bool, took: Duration) {
    let error = if failed { "true" } else { "false" };
    all.lock().unwrap_or_else(PoisonError::into_inner).took([api, error], took);
}

/// All that is counted, and what the daemon shows of its pool where it serves.
pub fn page(show: Option<&Value>) -> String {
    let mut page = Page::default();
    let version = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
    page.gauge("terway_build_info", "The version that runs.", &[(version, 1)]);
    page.gauge("terway_ready", "Whether the daemon serves.", &[(vec![], u8::from(show.is_some()))]);
    page.latencies(&ASKED.lock().unwrap_or_else(PoisonError::into_inner));
    page.latencies(&CLOUD.lock().unwrap_or_else(PoisonError::into_inner));
    if let Some(show) = show {
        pool(&mut page, &show["pool"]);
        calls(&mut page, &show["cloud_calls"]);
        let table = ["frontends", "backends"];
        let rows =
            table.iter().filter_map(|kind| Some((vec![("kind", kind.to_string())], show["services"][kind].as_u64()?)));
        page.gauge("terway_service_table", "Rows of the table of Services.", &rows.collect::<Vec<_>>());
        policies(&mut page, &show["policies"]);
    }
    page.text()
}

fn pool(page: &mut Page, pool: &Value) {
    let number = |key: &str| pool[key].as_u64().unwrap_or_default();
    let kind = if pool["eni_per_pod"] == true { "eni" } else { "eniip" };
    let of_pool = || {
        let text = |key: &str| number(key).to_string();
        let limits = [("capacity", text("capacity")), ("max_idle", text("max_idle")), ("min_idle", text("min_idle"))];
        [("name", kind.to_owned()), ("type", kind.to_owned())].into_iter().chain(limits).collect::<Vec<_>>()
    };
    let total = ["idle", "leased", "cooling", "reserved"].iter().map(|key| number(key)).sum::<u64>();
    page.gauge("terway_resource_pool_total_count", "Addresses that the pool has.", &[(of_pool(), total)]);
    page.gauge("terway_resource_pool_idle_count", "Addresses that wait for pods.", &[(of_pool(), number("idle"))]);
    let states = ["idle", "leased", "cooling", "reserved"].map(|key| (vec![("state", key.to_owned())], number(key)));
    page.gauge("terway_pool_addresses", "Addresses by what they do.", &states);
    let length = |key: &str| pool[key].as_array().map_or(0, Vec::len);
    page.gauge("terway_pool_waiting", "Pods that wait for an address.", &[(vec![], length("waiting"))]);
    page.gauge("terway_pool_lost", "Pods whose address the cloud has no more.", &[(vec![], length("lost"))]);
    let why = pool["trouble"]["why"].as_str().map(|why| (vec![("why", why.to_owned())], 1));
    page.gauge("terway_pool_trouble", "Why no address can be had.", why.as_slice());
    enis(page, pool, number("max_enis"));
}

fn enis(page: &mut Page, pool: &Value, most: u64) {
    let all = pool["enis"].as_array().map_or(&[][..], Vec::as_slice);
    let per_eni = pool["capacity"].as_u64().unwrap_or_default().checked_div(most).unwrap_or_default();
    let count = vec![("name", "eniip".to_owned()), ("max_eni", most.to_string())];
    page.gauge("terway_eniip_factory_eni_count", "ENIs of the pool.", &[(count, all.len())]);
    let of_eni = |eni: &Value| {
        let mac = eni["mac"].as_str().unwrap_or_default().to_owned();
        let labels = vec![("name", "eniip".to_owned()), ("eni", mac), ("max_ip", per_eni.to_string())];
        (labels, eni["addresses"].as_array().map_or(0, Vec::len))
    };
    let by_eni: Vec<_> = all.iter().map(of_eni).collect();
    page.gauge("terway_eniip_factory_ip_count", "Addresses of each ENI.", &by_eni);
}

/// Nothing is told of what nobody counts.
fn policies(page: &mut Page, policies: &Value) {
    let number = |value: &Value| value.as_u64();
    let kinds = ["pods", "peers", "classes", "prefixes", "rule_sets", "programs", "pairs", "ports"];
    let table = kinds.iter().filter_map(|kind| Some((vec![("kind", kind.to_string())], number(&policies[kind])?)));
    page.gauge("terway_policy_table", "Rows of the tables of network policies.", &table.collect::<Vec<_>>());
    let room = policies["room"].as_object().into_iter().flatten();
    let room = room.filter_map(|(kind, most)| Some((vec![("kind", kind.clone())], number(most)?)));
    page.gauge("terway_policy_table_max", "Rows for which there is room.", &room.collect::<Vec<_>>());
    let state = policies["state"].as_str().map(|state| (vec![], u64::from(state == "enforced")));
    let help = "1 while the rules of all policies are in force, 0 while something keeps them from it.";
    page.gauge("terway_policies_enforced", help, state.as_slice());
    let (drops, flows) = (&policies["figures"]["drops"], &policies["figures"]["flows"]);
    let by_reason = drops.as_object().into_iter().flatten().flat_map(|(reason, sums)| {
        let of = |direction: &str| {
            let labels = vec![("reason", reason.clone()), ("direction", direction.to_owned())];
            Some((labels, number(&sums[direction])?))
        };
        ["to_pod", "from_pod"].map(of)
    });
    let help = "Packets that were dropped because of network policies.";
    page.counter("terway_policy_drops_total", help, &by_reason.flatten().collect::<Vec<_>>());
    let one = |key: &str| number(&flows[key]).map(|count| (vec![], count));
    let (known, room, evicted) = (one("known"), one("room"), one("evicted"));
    page.gauge("terway_policy_flows", "Flows that are known.", known.as_slice());
    page.gauge("terway_policy_flows_max", "Flows that there is room for.", room.as_slice());
    page.counter("terway_policy_flows_evicted_total", "Flows forgotten for want of room.", evicted.as_slice());
}

fn calls(page: &mut Page, calls: &Value) {
    let all = calls.as_object().into_iter().flatten();
    let all: Vec<_> =
        all.map(|(action, count)| (vec![("api", action.clone())], count.as_u64().unwrap_or_default())).collect();
    page.counter("terway_cloud_calls_total", "Calls to the cloud.", &all);
}
