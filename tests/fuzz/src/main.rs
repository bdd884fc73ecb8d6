//! Fuzz targets for all that reads what others have written: `TERWAY_FUZZ` says which one a process is.
//!
//! A target gives its bytes to every parser of its kind. One that refuses them is done at once, and coverage leads to those that do not.

#![no_main]

mod cluster;

use std::collections::BTreeMap;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use terway::{cloud, cni, daemon, kernel, kube, policy, rate, sizing};

type Target = fn(&[u8]);

/// Each is also the name of a folder below `seeds`.
const TARGETS: &[(&str, Target)] = &[
    ("cni", runtime),
    ("configuration", configuration),
    ("socket", daemon::doors::line),
    ("ledger", daemon::doors::record),
    ("database", database),
    ("objects", objects),
    ("policies", cluster::policies),
    ("services", cluster::services),
    ("cloud", answers),
    ("kernel", said_by_kernel),
];

fuzz_target!(|bytes: &[u8]| chosen()(bytes));

fn chosen() -> Target {
    static CHOSEN: OnceLock<Target> = OnceLock::new();
    *CHOSEN.get_or_init(|| {
        let name = std::env::var("TERWAY_FUZZ").unwrap_or_default();
        let known = TARGETS.iter().find(|(target, _)| *target == name);
        known.unwrap_or_else(|| panic!("TERWAY_FUZZ={name}: there are {:?}", TARGETS.iter().map(|t| t.0).collect::<Vec<_>>())).1
    })
}

/// What stands before the first empty line, and what after it.
fn halves(bytes: &[u8]) -> (&[u8], &[u8]) {
    let end = bytes.windows(2).position(|two| two == b"\n\n").unwrap_or(bytes.len());
    (&bytes[..end], bytes.get(end + 2..).unwrap_or_default())
}

/// `KEY=value` a line.
fn environment(bytes: &[u8]) -> BTreeMap<String, String> {
    let text = String::from_utf8_lossy(bytes);
    text.lines().filter_map(|line| line.split_once('=')).map(|(key, value)| (key.into(), value.into())).collect()
}

/// The environment, an empty line, and stdin.
fn runtime(bytes: &[u8]) {
    let (env, stdin) = halves(bytes);
    let env: cni::Env = environment(env).into_iter().map(|(key, value)| (key, value.into())).collect();
    match cni::Request::parse(&env, stdin) {
        Ok(request) => drop(format!("{request:?}")),
        Err(failure) => {
            let answer = failure.json(cni::version_in(stdin));
            serde_json::from_str::<serde_json::Value>(&answer).expect("a failure is told in JSON");
        }
    }
    cni::asks_for_ipvlan(&String::from_utf8_lossy(stdin));
}

/// The environment, an empty line, `eni.json`, an empty line, and a ConfigMap or a patch.
fn configuration(bytes: &[u8]) {
    let (env, rest) = halves(bytes);
    let (file, map) = halves(rest);
    daemon::doors::configuration(file, map, &environment(env));
}

/// Bytes as they are, and with a sound head in front: checksums let nothing through that coverage could go by.
fn database(bytes: &[u8]) {
    daemon::doors::database(bytes);
    const PAGE: usize = 1024;
    let mut file = vec![0; PAGE];
    file.extend_from_slice(bytes);
    file.resize(file.len().next_multiple_of(PAGE), 0);
    let mut meta = Vec::new();
    for word in [0xed0c_daed_u32, 2, PAGE as u32, 0] {
        meta.extend(word.to_le_bytes());
    }
    let pages = (file.len() / PAGE) as u64;
    // The root bucket and its sequence, the list of free pages, the end, and how many transactions there were.
    for word in [2, 0, 3, pages, 9_u64] {
        meta.extend(word.to_le_bytes());
    }
    let sum = meta.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    meta.extend(u64::to_le_bytes(sum));
    file[16..16 + meta.len()].copy_from_slice(&meta);
    daemon::doors::database(&file);
}

fn objects(bytes: &[u8]) {
    kube::doors::served(bytes);
    let text = String::from_utf8_lossy(bytes);
    kube::doors::kubeconfig(&text);
    let annotations = environment(bytes);
    let told = rate::Both::<rate::Told>::read(&annotations);
    told.faults().for_each(drop);
}

fn answers(bytes: &[u8]) {
    for status in [200, 400, 403] {
        cloud::doors::answer(status, bytes);
    }
    let text = String::from_utf8_lossy(bytes);
    cloud::doors::told_of_machine(&text);
    drop(sizing::prefix(&text));
    drop(text.parse::<sizing::VSwitch>());
    drop(policy::selector(&text));
}

fn said_by_kernel(bytes: &[u8]) {
    kernel::doors::datagram(bytes);
    kernel::doors::body(bytes);
    kernel::doors::event(bytes);
    kernel::doors::text(&String::from_utf8_lossy(bytes));
}
