//! Ten thousand Services with fifty thousand endpoints: how fast they are led at first, what a change costs, and what memory they take.

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::idle::memory;
use super::sim::cgroup::Threads;
use super::sim::cluster::{Cluster, Member, node_name};
use super::sim::kube::{Kube, merge, services};
use super::sim::traffic::Place;
use super::table::{Row, Table};

const SERVICES: u32 = 10_000;
const EACH: u32 = 5;
const CHANGES: usize = 300;
const PATIENCE: Duration = Duration::from_secs(120);
const PORT: u16 = 8080;

pub fn measure(cluster: &mut Cluster, n: usize, table: &mut Table) {
    let threads = Threads::new();
    let kube = cluster.kube.clone();
    (0..SERVICES).for_each(|service| populate(&kube, service));
    let config = json!({"ebpf_services": true, "cgroup_root": threads.path()});
    cluster.configure(n, &config);
    cluster.api_down();
    cluster.start_with(n, &["--log-level", "info"]);
    cluster.wait_ready(n);
    let empty = memory(cluster.daemon(n).pid());
    let start = Instant::now();
    cluster.api_up();
    wait(cluster, n, |shown| shown["frontends"] == SERVICES);
    eprintln!("all Services are led {:?} after the API server came up, {}", start.elapsed(), own_words(cluster, n));
    let what = "first load of 10,000 Services with 50,000 endpoints: decided, written and attached";
    table.push(Row::alone("svc_load_10k_s", what, "s", load(cluster, n), 1.0));
    let what = "resident memory of terwayd then";
    let full = memory(cluster.daemon(n).pid());
    eprintln!("{empty} B without, {full} B with Services");
    table.push(Row::alone("rss_10k_services", what, "B", full as f64, 24e6));
    let pods = [cluster.add(n, "svc-0"), cluster.add(n, "svc-1"), cluster.add(n, "svc-client")];
    let mut times = changes(&kube, &threads, &pods);
    times.sort();
    let p99 = times[times.len() * 99 / 100].as_secs_f64() * 1e3;
    eprintln!(
        "a change: median {:?}, 99th {:?}, worst {:?}",
        times[times.len() / 2],
        times[times.len() * 99 / 100],
        times.last()
    );
    let what = "one endpoint change among them, from the API server to a connection that is led there, 99th percentile";
    table.push(Row::alone("svc_change_p99_ms", what, "ms", p99, 5.0));
    eprintln!("{} B after {CHANGES} changes", memory(cluster.daemon(n).pid()));
    drop(pods);
    cluster.stop(n);
}

/// With all that objects of a cluster have besides: it goes over the wire, and the figures of memory say what it leaves.
fn populate(kube: &Kube, n: u32) {
    let name = format!("service-{n}");
    let mut service = services::service(&name, &Ipv4Addr::from(0xac15_0000 + 256 + n).to_string(), 80);
    let more = json!({
        "metadata": {
            "uid": format!("0f3a4c5e-0000-4000-8000-{n:012}"), "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"app": name},
            "annotations": {"meta.helm.sh/release-name": name, "meta.helm.sh/release-namespace": "default"},
        },
        "spec": {"ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "selector": {"app": name}},
        "status": {"loadBalancer": {}},
    });
    merge(&mut service, &more);
    kube.put(service);
    let endpoints: Vec<Ipv4Addr> = (0..EACH).map(|e| Ipv4Addr::from(0x0a00_0000 + n * EACH + e)).collect();
    endpoints_of(kube, &name, &endpoints);
}

fn endpoints_of(kube: &Kube, service: &str, addresses: &[Ipv4Addr]) {
    let endpoint = |addr: &Ipv4Addr| {
        let mut endpoint = services::endpoint((*addr).into(), &node_name((u32::from(*addr) % 100) as usize));
        endpoint["zone"] = json!("cn-hangzhou-h");
        endpoint["targetRef"] =
            json!({"kind": "Pod", "namespace": "default", "name": format!("pod-{addr}"), "uid": "0f3a4c5e"});
        endpoint
    };
    let mut slice = services::slice(service, PORT, addresses.iter().map(endpoint));
    let metadata = json!({
        "name": format!("{service}-abcde"), "generateName": format!("{service}-"),
        "labels": {"endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"},
    });
    merge(&mut slice["metadata"], &metadata);
    kube.put(slice);
}

fn wait(cluster: &Cluster, n: usize, holds: impl Fn(&Value) -> bool) {
    let start = Instant::now();
    while !holds(&cluster.show(n)["services"]) {
        assert!(start.elapsed() < PATIENCE, "Services are not led: {}", cluster.show(n)["services"]);
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What the daemon itself says of its first load.
fn own_words(cluster: &Cluster, n: usize) -> String {
    let log = cluster.log(n);
    log.lines().find(|line| line.contains("endpoints are led at the socket")).unwrap_or_default().to_owned()
}

fn load(cluster: &Cluster, n: usize) -> f64 {
    let words = own_words(cluster, n);
    let ms = words.split(" in ").nth(1).and_then(|rest| rest.split(' ').next()).and_then(|ms| ms.parse::<f64>().ok());
    ms.unwrap_or_else(|| panic!("{words}")) / 1e3
}

/// Moves the first Service between two pods, and connects until it is led to the other one.
fn changes(kube: &Kube, threads: &Threads, [one, other, client]: &[Member; 3]) -> Vec<Duration> {
    let listen = |pod: &Member| {
        let addr: SocketAddr = format!("{}:{PORT}", pod.ip).parse().expect("an address");
        let listener = pod.pod.run(|| std::net::TcpListener::bind(addr)).expect("the port is free");
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let _ = client.and_then(|mut c| std::io::Write::write_all(&mut c, addr.to_string().as_bytes()));
            }
        });
        addr
    };
    let servers = [listen(one), listen(other)];
    let to: SocketAddr = SocketAddr::new(Ipv4Addr::from(0xac15_0000 + 256).into(), 80);
    let v4 =
        |addr: &SocketAddr| if let SocketAddr::V4(addr) = addr { *addr.ip() } else { unreachable!("they are IPv4") };
    client.pod.run(|| {
        threads.join();
        let ask = || {
            let mut stream = TcpStream::connect_timeout(&to, Duration::from_millis(200)).ok()?;
            let mut text = String::new();
            stream.read_to_string(&mut text).ok()?;
            text.parse::<SocketAddr>().ok()
        };
        let change = |n: usize| {
            let want = &servers[n % 2];
            let start = Instant::now();
            endpoints_of(kube, "service-0", &[v4(want)]);
            while ask().as_ref() != Some(want) {
                assert!(start.elapsed() < PATIENCE, "it is not led to {want}");
            }
            start.elapsed()
        };
        change(0);
        (1..=CHANGES)
            .map(|n| {
                std::thread::sleep(Duration::from_millis(5));
                change(n)
            })
            .collect()
    })
}
