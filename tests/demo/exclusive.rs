//! A node where each pod has an ENI to itself: every kind of path from and to such pods, and the ENI's way home.

use std::time::Duration;

use serde_json::json;

use crate::screen::{Cell, Screen, Table, Tone, millis};
use crate::sim::cloud::InstanceSpec;
use crate::sim::cluster::{Cluster, Member, SOON, within};
use crate::sim::fabric::OUTSIDE;
use crate::sim::traffic::{Pinger, Place, STRAGGLERS, TcpEcho, UdpEcho};

pub const PORT: u16 = 8090;
const NODE_PORT: u16 = 30090;
/// Services of the two pods and of one on another node.
const SERVICES: [&str; 3] = ["172.21.1.1", "172.21.1.2", "172.21.1.3"];
const DATAGRAMS: usize = 3;

/// Boots the node, shows it, and takes it down; what is not as it should be. `other` is a pod of another node, on a shared ENI.
pub fn show(screen: Screen, cluster: &mut Cluster, spec: InstanceSpec, other: &Member) -> Vec<String> {
    let id = spec.id.clone();
    let step = screen.step("a third node boots: daemon_mode ENIOnly");
    let n = cluster.join(spec);
    let config = json!({"daemon_mode": "ENIOnly", "min_pool_size": 2, "max_pool_size": 2, "ip_cooldown": "0s"});
    cluster.configure(n, &config);
    cluster.start(n);
    cluster.wait_ready(n);
    let ready = within(SOON, || serving(cluster, n) == 2);
    step.done(&format!("{} ENIs ready", serving(cluster, n)));
    let mut faults = if ready { Vec::new() } else { vec!["its ENIs do not become ready".to_owned()] };
    if ready {
        faults.extend(scene(screen, cluster, n, other));
    }
    cluster.kill(n);
    // As whoever takes a node away would: its ENIs go with it.
    let enis = cluster.world.cloud.enis_of(&id);
    cluster.world.remove_node(&id);
    enis.iter().for_each(|eni| cluster.world.cloud.vanish_eni(&eni.id));
    faults
}

fn serving(cluster: &Cluster, n: usize) -> usize {
    let show = cluster.show(n);
    show["pool"]["enis"].as_array().map_or(0, |enis| enis.iter().filter(|eni| eni["state"] == "serving").count())
}

fn scene(screen: Screen, cluster: &Cluster, n: usize, other: &Member) -> Vec<String> {
    let step = screen.step("ADD: the ENI's link moves into the pod");
    let pods = [cluster.add(n, "x1"), cluster.add(n, "x2")];
    step.done(&millis(pods[1].took));
    let step = screen.step("ICMP, TCP and UDP on every path");
    let trials = trials(cluster, n, &pods, other);
    let mut faults: Vec<String> = trials.iter().filter_map(Trial::fault).collect();
    if faults.is_empty() {
        step.done(&format!("{} paths", trials.len()))
    } else {
        step.failed("")
    }
    screen.line("");
    screen.table(&table("pods with an ENI each", &trials));
    screen.line(&screen.paint(
        Tone::Faint,
        "  The server sees the client's own address, but where a Service's backend is on another node.",
    ));
    screen.line("");
    let step = screen.step("DEL: the ENIs come home");
    let [first, second] = pods;
    cluster.del(first);
    // Its namespace dies first; the kernel hands the card back.
    let Member { pod, sandbox, .. } = second;
    pod.remove();
    let answer = cluster.node(n).run(|| sandbox.call("DEL"));
    let home = || cluster.node(n).sh("ip -o link").matches(": eth").count() == 3;
    match answer.code == Some(0) && within(SOON, home) {
        true => step.done("eth1, eth2"),
        false => {
            step.failed("");
            faults.push(format!("not all ENIs are home: {}", cluster.node(n).sh("ip -br link")));
        }
    }
    faults
}

/// One way, and what became of it.
pub struct Trial {
    path: &'static str,
    icmp: Option<Result<Duration, String>>,
    tcp: Result<Duration, String>,
    udp: Result<(), String>,
}

impl Trial {
    pub fn fault(&self) -> Option<String> {
        let icmp = self.icmp.iter().filter_map(|r| r.as_ref().err().map(|e| format!("ICMP {e}")));
        let tcp = self.tcp.as_ref().err().map(|e| format!("TCP {e}"));
        let udp = self.udp.as_ref().err().map(|e| format!("UDP {e}"));
        let faults: Vec<String> = icmp.chain(tcp).chain(udp).collect();
        (!faults.is_empty()).then(|| format!("{}: {}", self.path, faults.join(", ")))
    }
}

fn trials(cluster: &Cluster, n: usize, [x1, x2]: &[Member; 2], other: &Member) -> Vec<Trial> {
    let (node, outside) = (cluster.node(n), cluster.world.fabric.outside());
    let addr = node.addr.to_string();
    services(cluster, n, [x1, x2, other]);
    let at = |place: &dyn Fn(&str) -> (TcpEcho, UdpEcho)| place(&format!("0.0.0.0:{PORT}"));
    let at_x1 = at(&|on| (x1.pod.tcp_echo(on), x1.pod.udp_echo(on)));
    let at_x2 = at(&|on| (x2.pod.tcp_echo(on), x2.pod.udp_echo(on)));
    let at_other = at(&|on| (other.pod.tcp_echo(on), other.pod.udp_echo(on)));
    let at_node = at(&|on| (node.tcp_echo(on), node.udp_echo(on)));
    let at_outside = at(&|on| (outside.tcp_echo(on), outside.udp_echo(on)));
    let (ip1, ip2) = (x1.ip.as_str(), x2.ip.as_str());
    let service = |n: usize| format!("{}:80", SERVICES[n]);
    vec![
        direct("pod → pod, each with its ENI", &x1.pod, ip2, ip1, &at_x2.0),
        direct("pod → pod on a shared ENI, other node", &x1.pod, &other.ip, ip1, &at_other.0),
        direct("pod on a shared ENI, other node → pod", &other.pod, ip1, &other.ip, &at_x1.0),
        direct("pod → its node", &x1.pod, &addr, ip1, &at_node.0),
        direct("node → its pod", &node.node, ip1, &addr, &at_x1.0),
        direct("pod → outside the VPC", &x1.pod, OUTSIDE, ip1, &at_outside.0),
        direct("outside → pod", outside, ip1, OUTSIDE, &at_x1.0),
        through("pod → Service, backend on its node", &x1.pod, &service(1), ip1, &at_x2.0),
        through("pod → Service, backend on another node", &x1.pod, &service(2), &addr, &at_other.0),
        through("outside → node port, policy Local", outside, &format!("{addr}:{NODE_PORT}"), OUTSIDE, &at_x1.0),
    ]
}

/// The same with a ping before it.
pub fn direct(path: &'static str, from: &impl Place, to: &str, as_whom: &str, server: &TcpEcho) -> Trial {
    let icmp = from.run(|| Pinger::new(to, None).ping(STRAGGLERS)).ok_or("lost".to_owned());
    Trial { icmp: Some(icmp), ..through(path, from, &format!("{to}:{PORT}"), as_whom, server) }
}

/// The server must have seen the one who asks, or the one in whose name the node asks.
fn through(path: &'static str, from: &impl Place, to: &str, as_whom: &str, server: &TcpEcho) -> Trial {
    let tcp = from.tcp(to).map_err(|e| e.to_string()).and_then(|took| {
        let seen = server.peers().last().map(|peer| peer.ip().to_string()).unwrap_or_default();
        if seen == as_whom { Ok(took) } else { Err(format!("arrived from {seen}, not from {as_whom}")) }
    });
    let heard = from.udp(to, DATAGRAMS).len();
    let udp = if heard == DATAGRAMS { Ok(()) } else { Err(format!("{heard} of {DATAGRAMS} answered")) };
    Trial { path, icmp: None, tcp, udp }
}

/// What kube-proxy would write on the node.
fn services(cluster: &Cluster, n: usize, backends: [&Member; 3]) {
    let node = cluster.node(n);
    let services = SERVICES.iter().zip(backends).map(|(service, to)| (service.to_string(), 80, &to.ip));
    let port = (node.addr.to_string(), NODE_PORT, &backends[0].ip);
    for (at, port, to) in services.chain([port]) {
        for protocol in ["tcp", "udp"] {
            let rule = format!("-d {at} -p {protocol} --dport {port} -j DNAT --to-destination {to}:{PORT}");
            node.sh(&format!("iptables -w -t nat -A PREROUTING {rule}"));
        }
    }
}

pub fn table(who: &str, trials: &[Trial]) -> Table {
    let mut table = Table::new([Cell::left(who), Cell::right("ICMP µs"), Cell::right("TCP µs"), Cell::right("UDP")]);
    let figure = |result: &Result<Duration, String>| match result {
        Ok(took) => Cell::figure(true, &took.as_micros().to_string()),
        Err(_) => Cell::figure(false, "lost"),
    };
    for trial in trials {
        let icmp = trial.icmp.as_ref().map_or(Cell::right("–"), figure);
        let udp = Cell::figure(trial.udp.is_ok(), if trial.udp.is_ok() { "answered" } else { "lost" });
        table.row(vec![Cell::left(trial.path), icmp, figure(&trial.tcp), udp]);
    }
    table
}
