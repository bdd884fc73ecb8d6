//! Connections through a ClusterIP, one of 10,000, beside direct ones and beside kube-proxy's layouts in netfilter.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::sockopt;
use serde_json::json;

use super::sim::cgroup::Threads;
use super::sim::cluster::{Cluster, Member};
use super::sim::kube::{Kube, services};
use super::sim::traffic::Place;
use super::table::{Goal, Row, Table, Times, micros};

/// Our node, and one for each of kube-proxy's layouts.
pub const NODES: usize = 4;
const OURS: usize = 0;

const SERVICES: usize = 10_000;
/// Behind each Service.
const ENDPOINTS: usize = 5;
/// Of the Services, so many are spoken to. They are spread over all, as the place in a list of rules counts.
const SPOKEN_TO: usize = 40;
const ROUNDS: usize = 60;
const TRIPS: usize = 40;
const PORT: u16 = 80;
const PATIENCE: Duration = Duration::from_secs(60);

pub fn measure(cluster: &mut Cluster, table: &mut Table) {
    // Each its own: a node that leads no Services takes what it finds of ours off its root.
    let threads: [Threads; NODES] = std::array::from_fn(|_| Threads::new());
    let pods: Vec<[Member; 2]> = (0..NODES)
        .map(|n| {
            cluster.configure(n, &json!({"ebpf_services": n == OURS, "cgroup_root": threads[n].path()}));
            cluster.start_with(n, &[]);
            cluster.wait_ready(n);
            ["client", "server"].map(|name| cluster.add(n, &format!("{name}{n}")))
        })
        .collect();
    let mut ways: Vec<Way> = pods.iter().map(|[client, server]| Way::open(client, server)).collect();
    ways[OURS].threads = Some(&threads[OURS]);
    let ours = &ways[OURS];

    publish(&cluster.kube, ours, 0..1);
    wait_for("the first Service", || ours.connects(vip(0)));
    let [direct, one] = by_turns(|turn| ours.trips(|i| if turn == 0 { ours.backend } else { one_of(i, 1) }));

    let all = 0..SERVICES;
    publish(&cluster.kube, ours, 1..SERVICES);
    wait_for("the last Service", || ours.connects(vip(SERVICES - 1)));
    for (n, lay) in [(1, lay_legacy as fn(&Way) -> Layout), (2, lay_nft), (3, lay_nftables)] {
        let layout = lay(&ways[n]);
        cluster.node(n).write_file("/run/layout", &layout.text);
        cluster.node(n).sh(layout.load);
    }
    let spoken_to = |i: usize| vip(i % SPOKEN_TO * (all.len() / SPOKEN_TO));
    let [again, many, legacy, nft, nftables] = by_turns(|turn| match turn {
        0 => ours.trips(|_| ours.backend),
        1 => ours.trips(spoken_to),
        n => ways[n - 1].trips(spoken_to),
    });
    let pair = |a: &Times, b: &Times| [micros(a.p50()), micros(b.p50())];
    let what = "connect, a request and its answer, close, through a ClusterIP of 10,000: beside directly";
    table.push(Row::beside("svc_connect_10k_vs_direct", what, "µs", pair(&many, &again), Goal::RatioAtMost(1.05)));
    // The two were measured minutes apart: each beside what went directly at its time.
    let relative = [&many, &one].map(|times| micros(times.p50()));
    let relative = [relative[0] / micros(again.p50()), relative[1] / micros(direct.p50())];
    let what = "the same with 10,000 Services and with one, each as a multiple of a direct connection at its time";
    table.push(Row::beside("svc_connect_10k_vs_1", what, "×", relative, Goal::RatioAtMost(1.03)));
    let peers = [
        ("svc_connect_vs_iptables", "the same beside kube-proxy's layout in iptables-legacy", &legacy),
        ("svc_connect_vs_iptables_nft", "the same beside kube-proxy's layout in iptables-nft", &nft),
        ("svc_connect_vs_nftables", "the same beside kube-proxy's layout in nftables", &nftables),
    ];
    for (name, what, theirs) in peers {
        table.push(Row::beside(name, what, "µs", pair(&many, theirs), Goal::RatioBelow(1.0)));
    }
}

/// A client, and a server that every Service of interest leads to.
struct Way<'a> {
    client: &'a Member,
    /// The cgroup that our programs are attached to, for whom they shall lead.
    threads: Option<&'a Threads>,
    backend: SocketAddr,
    listener: TcpListener,
}

impl Way<'_> {
    fn open<'a>(client: &'a Member, server: &'a Member) -> Way<'a> {
        let listener =
            server.pod.run(|| TcpListener::bind((server.ip.as_str(), 8080))).expect("the pod has its address");
        Way { client, threads: None, backend: listener.local_addr().expect("it is bound"), listener }
    }

    /// Runs on a thread in the client.
    fn inside<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        self.client.pod.run(|| {
            self.threads.into_iter().for_each(Threads::join);
            f()
        })
    }

    fn connects(&self, to: SocketAddr) -> bool {
        let timeout = Duration::from_millis(200);
        let stream = self.inside(|| TcpStream::connect_timeout(&to, timeout));
        stream.is_ok_and(|stream| {
            abort(&stream);
            self.listener.accept().is_ok()
        })
    }

    /// How long each of some connections in a row took, to where the closure says. One thread is both ends: a connection is the path
    /// through the kernel, without the scheduler's share.
    fn trips(&self, to: impl Fn(usize) -> SocketAddr + Sync) -> Vec<Duration> {
        let trip = |i: usize| {
            let (to, mut word) = (to(i), [7; 64]);
            let start = Instant::now();
            let mut near = TcpStream::connect(to).expect("it is listened to");
            near.write_all(&word).expect("it goes out");
            let (mut far, _) = self.listener.accept().expect("somebody has connected");
            far.read_exact(&mut word).expect("it arrives");
            far.write_all(&word).expect("it goes out");
            near.read_exact(&mut word).expect("it comes back");
            abort(&near);
            drop(near);
            start.elapsed()
        };
        self.inside(|| (0..TRIPS).map(trip).collect())
    }
}

/// Closing leaves nothing behind: else the client has used all its ports up after a while.
fn abort(stream: &TcpStream) {
    sockopt::set_socket_linger(stream, Some(Duration::ZERO)).expect("a socket takes it");
}

/// Times by turns, so that whatever else the machine does concerns all alike.
fn by_turns<const N: usize>(trips: impl Fn(usize) -> Vec<Duration>) -> [Times; N] {
    let mut times: [Times; N] = std::array::from_fn(|_| Times::default());
    for round in 0..ROUNDS {
        for turn in 0..N {
            let turn = (round + turn) % N;
            trips(turn).into_iter().for_each(|time| times[turn].push(time));
        }
    }
    times
}

fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "{what} is not served");
        thread::sleep(Duration::from_millis(2));
    }
}

fn one_of(i: usize, services: usize) -> SocketAddr {
    vip(i % services)
}

fn vip(i: usize) -> SocketAddr {
    (Ipv4Addr::from_bits(Ipv4Addr::new(172, 30, 0, 1).to_bits() + i as u32), PORT).into()
}

/// Where the endpoints of a Service are. Those of a Service that is spoken to are all one listener.
fn endpoints(i: usize, backend: SocketAddr) -> Vec<SocketAddr> {
    if is_spoken_to(i) {
        return vec![backend];
    }
    let first = Ipv4Addr::new(10, 128, 0, 1).to_bits() + (i * ENDPOINTS) as u32;
    (0..ENDPOINTS as u32).map(|k| (Ipv4Addr::from_bits(first + k), 8080).into()).collect()
}

fn is_spoken_to(i: usize) -> bool {
    i.is_multiple_of(SERVICES / SPOKEN_TO) || i == SERVICES - 1
}

fn publish(kube: &Kube, way: &Way, numbers: std::ops::Range<usize>) {
    for i in numbers {
        let (name, ends) = (format!("s{i}"), endpoints(i, way.backend));
        let behind = ends.iter().map(|end| services::endpoint(end.ip(), "node-x"));
        kube.put(services::slice(&name, ends[0].port(), behind));
        kube.put(services::service(&name, &vip(i).ip().to_string(), PORT));
    }
}

/// What kube-proxy would make of the Services, and the command that loads it from `/run/layout`.
struct Layout {
    text: String,
    load: &'static str,
}

fn lay_legacy(way: &Way) -> Layout {
    Layout { text: chains(way), load: "iptables-legacy-restore -w 60 --noflush /run/layout" }
}

fn lay_nft(way: &Way) -> Layout {
    Layout { text: chains(way), load: "iptables-nft-restore -w 60 --noflush /run/layout" }
}

/// A rule for each Service in one chain, which jumps to a chain of its own; one endpoint of those is chosen by chance.
fn chains(way: &Way) -> String {
    let (mut heads, mut rules) = (String::new(), String::new());
    let say = |text: &mut String, line: std::fmt::Arguments| writeln!(text, "{line}").expect("a String takes all");
    for i in 0..SERVICES {
        let (vip, ends) = (vip(i), endpoints(i, way.backend));
        say(&mut heads, format_args!(":KUBE-SVC-{i:016} - [0:0]"));
        say(
            &mut rules,
            format_args!(
                "-A KUBE-SERVICES -d {}/32 -p tcp -m comment --comment \"default/s{i}:http cluster IP\" -m tcp --dport {PORT} -j KUBE-SVC-{i:016}",
                vip.ip()
            ),
        );
        for (k, end) in ends.iter().enumerate() {
            say(&mut heads, format_args!(":KUBE-SEP-{i:014}{k:02} - [0:0]"));
            let chance = match ends.len() - k {
                1 => String::new(),
                left => format!("-m statistic --mode random --probability {:.10} ", 1.0 / left as f64),
            };
            say(&mut rules, format_args!("-A KUBE-SVC-{i:016} {chance}-j KUBE-SEP-{i:014}{k:02}"));
            say(&mut rules, format_args!("-A KUBE-SEP-{i:014}{k:02} -p tcp -m tcp -j DNAT --to-destination {end}"));
        }
    }
    let hooks = "-A PREROUTING -j KUBE-SERVICES\n-A OUTPUT -j KUBE-SERVICES\n";
    format!("*nat\n:KUBE-SERVICES - [0:0]\n{heads}{hooks}{rules}COMMIT\n")
}

/// A map from address, protocol and port to a chain for each Service, which chooses by a map of chances.
fn lay_nftables(way: &Way) -> Layout {
    let (mut chains, mut elements) = (String::new(), String::new());
    for i in 0..SERVICES {
        let ends = endpoints(i, way.backend);
        let choice: Vec<String> = (0..ends.len()).map(|k| format!("{k} : goto e{i}-{k}")).collect();
        for (k, end) in ends.iter().enumerate() {
            writeln!(chains, "chain e{i}-{k} {{ meta l4proto tcp dnat to {end}; }}").expect("a String takes all");
        }
        writeln!(chains, "chain s{i} {{ numgen random mod {} vmap {{ {} }}; }}", ends.len(), choice.join(", "))
            .expect("a String takes all");
        writeln!(elements, "{} . tcp . {PORT} : goto s{i},", vip(i).ip()).expect("a String takes all");
    }
    let map =
        format!("map services {{ type ipv4_addr . inet_proto . inet_service : verdict; elements = {{ {elements} }} }}");
    let lookup = "chain services { ip daddr . meta l4proto . th dport vmap @services; }";
    let hook = |name: &str, at: &str| format!("chain {name} {{ type nat hook {at} priority -100; jump services; }}");
    let hooks = [hook("pre", "prerouting"), hook("out", "output")].join("\n");
    Layout { text: format!("table ip kube {{\n{chains}\n{map}\n{lookup}\n{hooks}\n}}\n"), load: "nft -f /run/layout" }
}
