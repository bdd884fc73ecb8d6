//! What the daemon counts of itself, under the old Terway's names where it had one, and the page that shows it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;

use super::tally::{Status, tally};
use crate::cloud::{Observer, metadata};
use crate::ip::Mac;
use crate::metrics::{Latencies, Page};
use crate::pool::Figures;
use crate::repair::Part;
use crate::rpc::{Reply, Request};

/// Counted on whatever thread a call was made, and for as long as the process lives.
static CLOUD: Mutex<Latencies<2>> = Mutex::new(Latencies::new(
    "aliyun_openapi_latency",
    "How long calls to the cloud took, in milliseconds.",
    ["api", "error"],
    &[50, 100, 200, 400, 800, 1600, 3200, 6400, 12800, 13800, 14800, 16800, 20800, 28800, 44800],
));
/// The old one's began at 50 ms; most of ours take less than one.
static ASKED: Mutex<Latencies<2>> = Mutex::new(Latencies::new(
    "terway_rpc_latency",
    "How long plugins waited for an answer, in milliseconds.",
    ["rpc_api", "error"],
    &[
        1, 2, 5, 10, 20, 50, 100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 26600, 27600, 29600, 33600, 41600,
        57600, 89600, 110_000, 120_000,
    ],
));

static METADATA: Mutex<Latencies<2>> = Mutex::new(Latencies::new(
    "aliyun_metadata_latency",
    "How long the metadata service took to answer, in milliseconds.",
    ["url", "error"],
    &[1, 2, 4, 8, 16, 32, 64, 128, 256, 512],
));
const BOUNDS: &[u32] = &[1, 2, 5, 10, 20, 50, 100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600];
static ADDS: Mutex<Latencies<0>> = Mutex::new(Latencies::new(
    "terway_add_latency",
    "From the question of a plugin to the end of its work on the pod, in milliseconds.",
    [],
    BOUNDS,
));
static POLICIES: Mutex<Latencies<0>> = Mutex::new(Latencies::new(
    "terway_policy_delay",
    "From the news of a change to network policies until it is in the kernel, in milliseconds.",
    [],
    BOUNDS,
));
static SERVICES: Mutex<Latencies<0>> = Mutex::new(Latencies::new(
    "terway_service_delay",
    "From the news of a change to Services until it is in the kernel, in milliseconds.",
    [],
    BOUNDS,
));
/// By whose it was and what it was.
static REPAIRS: Mutex<BTreeMap<[&'static str; 2], u64>> = Mutex::new(BTreeMap::new());

/// What may stand in a difference that was put right, and what it is counted as.
const THINGS: &[(&str, &[&str])] = &[
    ("sysctl", &["sysctl"]),
    ("link", &["link", "mac", "mtu", "alias", "kind", "state", "peer", "place", "mode", "arp"]),
    ("addr", &["addr"]),
    ("route", &["route"]),
    ("rule", &["rule"]),
    ("neigh", &["neigh"]),
    ("filter", &["filter"]),
    ("qdisc", &["qdisc"]),
    ("iptables", &["iptables", "ip6tables"]),
];

/// Counts each call to the cloud.
pub fn observer() -> Observer {
    Arc::new(|action, took, fault| count(&CLOUD, action, fault.is_some(), took))
}

/// Counts each question to the metadata service.
pub fn questions() -> metadata::Observer {
    Arc::new(|url, took, failed| count(&METADATA, url, failed, took))
}

/// A pod has a lease and its plugin is done, so long after it asked.
pub fn added(took: Duration) {
    open(&ADDS).took([], took);
}

/// What was heard of policies so long ago is in the kernel.
pub fn policies_written(took: Duration) {
    open(&POLICIES).took([], took);
}

/// The same of Services.
pub fn services_written(took: Duration) {
    open(&SERVICES).took([], took);
}

/// These differences of a part were put right.
pub fn repaired<'a>(part: &Part, differences: impl Iterator<Item = &'a str>) {
    let part = match part {
        Part::Node => "node",
        Part::Eni(_) => "eni",
        Part::Pod(_) => "pod",
    };
    let mut repairs = open(&REPAIRS);
    differences.for_each(|what| *repairs.entry([part, thing(what)]).or_default() += 1);
}

fn thing(what: &str) -> &'static str {
    let noun = |word: &str| THINGS.iter().find(|(_, words)| words.contains(&word)).map(|(thing, _)| *thing);
    what.split(' ').find_map(noun).unwrap_or("other")
}

fn open<T>(counts: &Mutex<T>) -> MutexGuard<'_, T> {
    counts.lock().unwrap_or_else(PoisonError::into_inner)
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

fn count(all: &Mutex<Latencies<2>>, api: &str, failed: bool, took: Duration) {
    let error = if failed { "true" } else { "false" };
    open(all).took([api, error], took);
}

/// What the loop adds to that.
pub struct Counted {
    pub pool: Option<Figures>,
    /// As they are shown to people.
    pub services: Value,
    pub policies: Value,
    pub cloud_calls: BTreeMap<&'static str, u64>,
}

/// All that is counted, and what the loop has counted where the daemon serves.
pub fn page(counted: Option<&Counted>) -> String {
    let mut page = Page::default();
    let version = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
    page.gauge("terway_build_info", "The version that runs.", &[(version, 1)]);
    page.gauge("terway_ready", "Whether the daemon serves.", &[(vec![], u8::from(counted.is_some()))]);
    page.latencies(&open(&ASKED));
    page.latencies(&open(&ADDS));
    page.latencies(&open(&CLOUD));
    page.latencies(&open(&METADATA));
    page.latencies(&open(&POLICIES));
    page.latencies(&open(&SERVICES));
    repairs(&mut page);
    if let Some(counted) = counted {
        counted.pool.iter().for_each(|figures| pool(&mut page, figures));
        calls(&mut page, &counted.cloud_calls);
        let table = ["frontends", "backends"];
        let rows =
            table.iter().filter_map(|kind| Some((vec![("kind", kind.to_string())], counted.services[kind].as_u64()?)));
        page.gauge("terway_service_table", "Rows of the table of Services.", &rows.collect::<Vec<_>>());
        policies(&mut page, &counted.policies);
    }
    page.text()
}

fn repairs(page: &mut Page) {
    let of =
        |(what, count): (&[&str; 2], &u64)| (vec![("part", what[0].to_owned()), ("what", what[1].to_owned())], *count);
    let repairs: Vec<_> = open(&REPAIRS).iter().map(of).collect();
    page.counter("terway_repairs_total", "What others had changed and was put right, thing by thing.", &repairs);
}

fn pool(page: &mut Page, pool: &Figures) {
    let kind = if pool.whole { "eni" } else { "eniip" };
    let of_pool = || {
        let limits = [("capacity", pool.capacity), ("max_idle", pool.max_idle), ("min_idle", pool.min_idle)];
        let limits = limits.map(|(key, number)| (key, number.to_string()));
        [("name", kind.to_owned()), ("type", kind.to_owned())].into_iter().chain(limits).collect::<Vec<_>>()
    };
    let states = [("idle", pool.idle), ("leased", pool.leased), ("cooling", pool.cooling), ("reserved", pool.reserved)];
    let total = states.iter().map(|(_, number)| number).sum::<u32>();
    page.gauge("terway_resource_pool_total_count", "Addresses that the pool has.", &[(of_pool(), total)]);
    page.gauge("terway_resource_pool_idle_count", "Addresses that wait for pods.", &[(of_pool(), pool.idle)]);
    let (disposed, allocated) = (tally().disposed, open(&ASKED).count(["AllocIP", "false"]));
    page.counter("terway_resource_pool_disposed_count", "Addresses given back to the cloud.", &[(of_pool(), disposed)]);
    let by_type = vec![("type", kind.to_owned())];
    page.counter("terway_resource_pool_allocated_count", "Addresses given to pods.", &[(by_type, allocated)]);
    let states = states.map(|(state, number)| (vec![("state", state.to_owned())], number));
    page.gauge("terway_pool_addresses", "Addresses by what they do.", &states);
    page.gauge("terway_pool_waiting", "Pods that wait for an address.", &[(vec![], pool.waiting)]);
    page.gauge("terway_pool_lost", "Pods whose address the cloud has no more.", &[(vec![], pool.lost)]);
    let why = pool.trouble.map(|why| serde_json::json!(why).as_str().unwrap_or_default().to_owned());
    let why = why.map(|why| (vec![("why", why)], 1));
    page.gauge("terway_pool_trouble", "Why no address can be had.", why.as_slice());
    enis(page, pool);
}

fn enis(page: &mut Page, pool: &Figures) {
    let per_eni = pool.capacity.checked_div(pool.max_enis).unwrap_or_default();
    let count = vec![("name", "eniip".to_owned()), ("max_eni", pool.max_enis.to_string())];
    page.gauge("terway_eniip_factory_eni_count", "ENIs of the pool.", &[(count, pool.enis.len())]);
    let of_eni = |(mac, addresses): &(Mac, u32)| {
        (vec![("name", "eniip".to_owned()), ("eni", mac.to_string()), ("max_ip", per_eni.to_string())], *addresses)
    };
    let by_eni: Vec<_> = pool.enis.iter().map(of_eni).collect();
    page.gauge("terway_eniip_factory_ip_count", "Addresses of each ENI.", &by_eni);
    let of = |((mac, status), count): (&(String, Status), &u64)| {
        (vec![("eni", mac.clone()), ("status", status.as_str().to_owned())], *count)
    };
    let asked: Vec<_> = tally().asked.iter().map(of).collect();
    page.counter("terway_eniip_factory_ip_alloc_count", "Addresses that the cloud gave to an ENI or refused.", &asked);
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

fn calls(page: &mut Page, calls: &BTreeMap<&'static str, u64>) {
    let all: Vec<_> = calls.iter().map(|(action, count)| (vec![("api", (*action).to_owned())], *count)).collect();
    page.counter("terway_cloud_calls_total", "Calls to the cloud.", &all);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_right_is_counted_as_what_it_is() {
        for (what, counted) in [
            ("sysctl net/ipv4/conf/eth1/rp_filter", "sysctl"),
            ("alias of cali1", "link"),
            ("addr 10.0.0.5/32 dev eth0", "addr"),
            ("route default via 10.0.0.1 dev eth1 table 1003", "route"),
            ("rule priority 512 from all fwmark 0x10/0xf0 lookup 1003", "rule"),
            ("tc filter dev cali1 ingress priority 2049", "filter"),
            ("tc qdisc dev cali1 root", "qdisc"),
            ("ip6tables -t nat -A POSTROUTING -j MASQUERADE", "iptables"),
            ("something", "other"),
        ] {
            assert_eq!(thing(what), counted, "{what}");
        }
    }
}
