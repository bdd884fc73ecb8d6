//! A thousand network policies over 250 pods here and 5,000 elsewhere: how fast they are known, how soon a change is in force, what memory
//! they take and what the API server sends for them; and what a connection costs among ten thousand.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};

use super::idle::memory;
use super::sim::cluster::{Cluster, Member, node_name};
use super::sim::kube::{self, Kube};
use super::sim::node::Node;
use super::sim::traffic::Place;
use super::table::{Goal, Row, Table, Times, micros};

/// Pods on the node, in the cluster besides, and policies.
pub const HERE: usize = 250;
const ELSEWHERE: usize = 5000;
const POLICIES: usize = 1000;
const APPS: usize = 50;
const MANY: usize = 10_000;
const CHANGES: usize = 400;
const CHANGES_OF_TABLES: usize = 60;
const CONNECTS: usize = 1500;
const PORT: u16 = 8080;
const PATIENCE: Duration = Duration::from_secs(120);
/// A datagram that has no answer by then seems to be dropped, and by the second figure it was.
const DROPPED: Duration = Duration::from_micros(700);
const LATE: Duration = Duration::from_millis(20);

/// The node has [`HERE`] pods, and addresses for four more.
pub fn measure(cluster: &mut Cluster, n: usize, table: &mut Table) {
    let kube = cluster.kube.clone();
    kube.put(json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "default", "labels": {"kubernetes.io/metadata.name": "default"}},
    }));
    (0..HERE).for_each(|i| label(&kube, &format!("n{n}-{i}"), &format!("app-{}", i % APPS)));
    (0..ELSEWHERE).for_each(|i| elsewhere(&kube, i));
    let own: IpAddr = cluster.node(n).addr.into();
    restart(cluster, n);
    let quiet = watched(cluster, n, own);
    (0..POLICIES).for_each(|i| policy(&kube, &format!("np-{i}"), one_of_many(i)));
    restart(cluster, n);
    let words = own_words(cluster, n);
    eprintln!("{words}");
    let what = "1,000 policies, 250 pods of the node and 5,000 others: from the objects to all rules";
    table.push(Row::alone("policy_compile_ms", what, "ms", number(&words, "compiled in "), 500.0));
    let what = "resident memory of terwayd then";
    table.push(Row::alone("rss_1k_policies", what, "B", memory(cluster.daemon(n).pid()) as f64, 24e6));
    let loud = watched(cluster, n, own);
    eprintln!("a start is sent {quiet} B without policies, {loud} B with all of these");
    let what =
        "bytes that the API server sends a node that starts, while no policy names any of the 5,000 pods elsewhere";
    table.push(Row::alone("policy_watch_bytes", what, "B", quiet, 1e6));
    let pods = ["pol-web", "pol-client", "pol-free"].map(|name| cluster.add(n, name));
    label(&kube, "pol-web", "web");
    let what =
        "a label or a policy changes among them: from the API server to the first packet judged by it, 99th percentile";
    change(&kube, &pods, CHANGES, table, ("policy_change_p99_ms", what, 10.0));
    let what = "the same where ipsets and iptables enforce them";
    render_by(cluster, n, "iptables");
    change(&kube, &pods, CHANGES_OF_TABLES, table, ("policy_change_tables_p99_ms", what, 250.0));
    render_by(cluster, n, "ebpf");
    connects(cluster.node(n), &kube, &pods, table);
    drop(pods);
    cluster.stop(n);
}

fn render_by(cluster: &mut Cluster, n: usize, renderer: &str) {
    cluster.configure(n, &json!({"policy_renderer": renderer, "min_pool_size": 0, "max_pool_size": HERE + 20}));
    restart(cluster, n);
}

fn change(
    kube: &Kube,
    pods: &[Member; 3],
    count: usize,
    table: &mut Table,
    (name, what, most): (&'static str, &'static str, f64),
) {
    let times = changes(kube, pods, count);
    let [median, p99] = [50, 99].map(|percent| times[times.len() * percent / 100].as_secs_f64() * 1e3);
    table.push(Row::alone(name, what, "ms", p99, most).with("median", median));
    eprintln!("  of which the median {median:.2} ms, the worst {:?}", times.last());
}

fn label(kube: &Kube, name: &str, app: &str) {
    kube.amend("Pod", "default", name, &json!({"metadata": {"labels": {"app": app}}}));
}

fn elsewhere(kube: &Kube, i: usize) {
    let mut pod = kube::pod("default", &format!("far-{i}"), &node_name(100 + i / 30));
    pod["metadata"]["labels"] = json!({"app": format!("app-{}", i % APPS), "pod-template-hash": "5d4f8c7b9"});
    let ip = format!("10.9.{}.{}", i / 250, 1 + i % 250);
    pod["status"] = json!({"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]});
    kube.put(pod);
}

fn policy(kube: &Kube, name: &str, spec: Value) {
    kube.put(json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "default", "name": name}, "spec": spec,
    }));
}

fn app(name: &str) -> Value {
    json!({"matchLabels": {"app": name}})
}

fn one_of_many(i: usize) -> Value {
    let net = format!("172.16.{}", i % 100);
    json!({
        "podSelector": app(&format!("app-{}", i % APPS)),
        "ingress": [{
            "from": [
                {"podSelector": app(&format!("app-{}", (i + 1 + i / APPS) % APPS))},
                {"ipBlock": {"cidr": format!("{net}.0/24"), "except": [format!("{net}.128/25")]}},
            ],
            "ports": [{"port": 80}, {"port": 443}, {"port": 8000 + i % 50, "endPort": 8100}, {"protocol": "UDP", "port": 53}],
        }],
        "egress": [{"to": [{"podSelector": {}}]}, {"ports": [{"protocol": "UDP", "port": 53}]}],
    })
}

fn restart(cluster: &mut Cluster, n: usize) {
    cluster.stop(n);
    cluster.start_with(n, &["--log-level", "info"]);
    cluster.wait_ready(n);
    let start = Instant::now();
    while cluster.show(n)["policies"]["state"] != "enforced" {
        assert!(start.elapsed() < PATIENCE, "policies are not enforced: {}", cluster.show(n)["policies"]);
        thread::sleep(Duration::from_millis(10));
    }
}

/// What the daemon itself says of its first rules.
fn own_words(cluster: &Cluster, n: usize) -> String {
    let log = cluster.log(n);
    log.lines().rev().find(|line| line.contains("are in force")).unwrap_or_else(|| panic!("{log}")).to_owned()
}

fn number(words: &str, after: &str) -> f64 {
    let rest = words.split(after).nth(1).unwrap_or_else(|| panic!("{words}"));
    rest.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{words}"))
}

/// What a start of the daemon is sent.
fn watched(cluster: &mut Cluster, n: usize, own: IpAddr) -> f64 {
    let before = cluster.kube.bytes_to(own);
    restart(cluster, n);
    (cluster.kube.bytes_to(own) - before) as f64
}

/// Lets the client in and shuts it out, by its label and by the policy in turn.
fn changes(kube: &Kube, [web, client, _]: &[Member; 3], count: usize) -> Vec<Duration> {
    let only = |from: &str| json!({"podSelector": app("web"), "ingress": [{"from": [{"podSelector": app(from)}]}]});
    policy(kube, "pol", only("in"));
    let to: SocketAddr = format!("{}:{PORT}", web.ip).parse().expect("an address");
    let _echo = web.pod.udp_echo(&to.to_string());
    client.pod.run(|| {
        let socket = UdpSocket::bind((client.ip.as_str(), 0)).expect("the pod has its address");
        socket.connect(to).expect("it has a route");
        socket.set_nonblocking(true).expect("a socket can be");
        let mut probe = Probe { socket, number: 0 };
        let mut change = |n: usize| {
            let start = Instant::now();
            match n % 4 {
                0 => label(kube, "pol-client", "in"),
                1 => label(kube, "pol-client", "out"),
                2 => policy(kube, "pol", only("out")),
                _ => policy(kube, "pol", only("in")),
            }
            probe.until(n.is_multiple_of(2), start)
        };
        (0..4).for_each(|n| _ = change(n));
        let mut times: Vec<Duration> = (0..count)
            .map(|n| {
                thread::sleep(Duration::from_millis(20));
                change(n)
            })
            .collect();
        times.sort();
        times
    })
}

struct Probe {
    socket: UdpSocket,
    number: u32,
}

impl Probe {
    /// How long after the start the first datagram was sent that came through, or did not.
    fn until(&mut self, open: bool, start: Instant) -> Duration {
        let mut first: Option<(Duration, u32)> = None;
        loop {
            let sent = start.elapsed();
            assert!(sent < PATIENCE, "it is not {}", if open { "open" } else { "shut" });
            match (self.comes_through() == open, first) {
                (true, _) if open => return start.elapsed(),
                (true, None) => first = Some((sent, self.number)),
                // One that is lost may be an accident, and an answer may only be late.
                (true, Some((at, number))) if !self.is_answered_late(number) => return at,
                _ => first = None,
            }
        }
    }

    /// Whether this datagram or a later one is answered after all.
    fn is_answered_late(&self, number: u32) -> bool {
        let late = Instant::now() + LATE;
        std::iter::from_fn(|| self.hear(late)).any(|answer| u32::from_be_bytes(answer) >= number)
    }

    fn comes_through(&mut self) -> bool {
        self.number += 1;
        let bytes = self.number.to_be_bytes();
        let late = Instant::now() + DROPPED;
        self.socket.send(&bytes).is_ok() && std::iter::from_fn(|| self.hear(late)).any(|answer| answer == bytes)
    }

    /// By poll(2): a timeout of the socket's own is one of the kernel's ticks at least, 4 to 8 ms where it has 250 of them a second.
    fn hear(&self, late: Instant) -> Option<[u8; 4]> {
        let mut buffer = [0; 4];
        loop {
            if self.socket.recv(&mut buffer).is_ok() {
                return Some(buffer);
            }
            let rest = late.checked_duration_since(Instant::now())?;
            let rest = Timespec { tv_sec: 0, tv_nsec: rest.subsec_nanos().into() };
            let _ = poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&rest));
        }
    }
}

/// A connection to a pod with one policy, and with ten thousand, each beside one to a pod without any.
fn connects(node: &Node, kube: &Kube, [web, client, free]: &[Member; 3], table: &mut Table) {
    let from = |app_name: &str, ports: std::ops::Range<u16>| {
        let ports: Vec<Value> = ports.map(|port| json!({"port": port})).collect();
        json!({"podSelector": app("web"), "ingress": [{"from": [{"podSelector": app(app_name)}], "ports": ports}]})
    };
    label(kube, "pol-client", "client");
    policy(kube, "pol", from("client", PORT..PORT + 1));
    let bind = |pod: &Member, port: u16| -> (TcpListener, SocketAddr) {
        let listener = pod.pod.run(|| TcpListener::bind((pod.ip.as_str(), port))).expect("the port is free");
        let at = listener.local_addr().expect("it is bound");
        (listener, at)
    };
    let ends = [bind(web, PORT), bind(free, PORT), bind(web, PORT + 1)];
    let [ruled, unruled, last] = [0, 1, 2].map(|i| ends[i].1);
    let wait = |to: SocketAddr| {
        let start = Instant::now();
        while client.pod.run(|| TcpStream::connect_timeout(&to, Duration::from_millis(100))).is_err() {
            assert!(start.elapsed() < PATIENCE, "{to} is not reached");
        }
    };
    for (listener, _) in &ends {
        let listener = listener.try_clone().expect("there are descriptors");
        thread::spawn(move || listener.incoming().for_each(drop));
    }
    wait(ruled);
    let one = by_turns(client, [ruled, unruled]);
    for i in 0..MANY {
        let first = 10_000 + (i % 4000) as u16 * 10;
        policy(kube, &format!("many-{i}"), from(&format!("app-{}", i % APPS), first..first + 10));
    }
    policy(kube, "last", from("client", PORT + 1..PORT + 2));
    wait(last);
    let many = by_turns(client, [ruled, unruled]);
    let relative = [&many, &one].map(|[ruled, unruled]| micros(ruled.p50()) / micros(unruled.p50()));
    let what = "a connection to a pod with 10,000 policies (100,000 tuples), and with one, each as a multiple of one to a pod without";
    table.push(Row::beside("policy_connect_10k_vs_1", what, "×", relative, Goal::RatioAtMost(1.05)));
    node.write_file("/run/sets", &sets(&client.ip));
    node.write_file("/run/layout", &layout(&free.ip));
    node.sh("ipset restore < /run/sets && iptables-restore -w 60 --noflush /run/layout");
    let beside = by_turns(client, [ruled, unruled]).map(|times| micros(times.p50()));
    let what = "a connection to a pod with these policies by us, and with as many rules of one iptables chain behind conntrack, each with an ipset";
    table.push(Row::beside("policy_connect_vs_iptables", what, "µs", beside, Goal::RatioBelow(1.0)));
}

/// Whom each policy lets in, as a set of addresses.
fn sets(client: &str) -> String {
    let mut text = format!("create peer-last hash:net\nadd peer-last {client}\n");
    for app in 0..APPS {
        text += &format!("create peer-{app} hash:net\n");
        let pods = (0..ELSEWHERE).filter(|i| i % APPS == app);
        pods.for_each(|i| text += &format!("add peer-{app} 10.9.{}.{}\n", i / 250, 1 + i % 250));
    }
    text
}

/// A rule for each policy in a chain of the pod, which new connections walk; the last one lets ours in.
fn layout(pod: &str) -> String {
    let mut text = format!(
        "*filter\n:POD - [0:0]\n-A FORWARD -d {pod} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n-A FORWARD -d {pod} -j POD\n"
    );
    for i in 0..MANY {
        let first = 10_000 + (i % 4000) * 10;
        let ports: Vec<String> = (first..first + 10).map(|port| port.to_string()).collect();
        text += &format!(
            "-A POD -m set --match-set peer-{} src -p tcp -m multiport --dports {} -j ACCEPT\n",
            i % APPS,
            ports.join(",")
        );
    }
    text + &format!("-A POD -m set --match-set peer-last src -p tcp --dport {PORT} -j ACCEPT\n-A POD -j DROP\nCOMMIT\n")
}

fn by_turns(client: &Member, to: [SocketAddr; 2]) -> [Times; 2] {
    let mut times = [Times::default(), Times::default()];
    client.pod.run(|| {
        for i in 0..2 * CONNECTS {
            let start = Instant::now();
            let stream = TcpStream::connect_timeout(&to[i % 2], Duration::from_secs(2)).expect("it is reached");
            times[i % 2].push(start.elapsed());
            drop(stream);
        }
    });
    times
}
