//! Services without kube-proxy: who connects to a ClusterIP or a node port is led to a pod, also while the daemon is dead.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::screen::{Cell, Screen, Table, micros};
use crate::sim::cgroup::Threads;
use crate::sim::cluster::{Cluster, Member, SOON, node_name, within};
use crate::sim::kube::{Kube, services};
use crate::sim::traffic::Place;
use crate::sim::world::{self, World};

const SERVED: &str = "172.21.2.1";
const EMPTY: &str = "172.21.2.2";
const NODE_PORT: u16 = 30080;
const TARGET: u16 = 8080;
/// Connections of one row: enough to meet both pods.
const TRIES: usize = 24;
const PATIENCE: Duration = Duration::from_secs(2);

/// A world of its own with one node; what is not as it should be.
pub fn show(screen: Screen) -> Vec<String> {
    let step = screen.step("a node boots: ebpf_services, no kube-proxy");
    let threads = Threads::new();
    let mut world = World::new(world::config());
    world.add_node(world::instance("i-1", "ecs.sim.large"));
    let mut cluster = Cluster::over(world);
    let address = json!([{"type": "InternalIP", "address": cluster.node(0).addr.to_string()}]);
    cluster.kube.amend("Node", "", &node_name(0), &json!({"status": {"addresses": address}}));
    cluster.configure(0, &json!({"ebpf_services": true, "cgroup_root": threads.path()}));
    cluster.start_ready(0);
    let [client, one, other] = ["client", "web-1", "web-2"].map(|name| cluster.add(0, name));
    let servers: BTreeSet<SocketAddr> = [&one, &other].map(serve).into();
    publish(&cluster.kube, "web", SERVED, Some(NODE_PORT), &servers);
    publish(&cluster.kube, "nobody", EMPTY, None, &BTreeSet::new());
    let (service, empty) = (format!("{SERVED}:80"), format!("{EMPTY}:80"));
    let of_pod = |to: &str| client.pod.run(|| led(&threads, to));
    let on_node = format!("{}:{NODE_PORT}", cluster.node(0).addr);
    let led_at_all = within(SOON, || {
        of_pod(&service).is_ok() && of_pod(&on_node).is_ok() && of_pod(&empty) == Err(ErrorKind::ConnectionRefused)
    });
    if led_at_all {
        step.done("two Services")
    } else {
        step.failed("")
    }
    let mut table =
        Table::new([Cell::left("who"), Cell::left("connects to"), Cell::left("reaches"), Cell::right("takes")]);
    let mut faults = Vec::new();
    let mut row = |who: &str, what: &str, seen: Seen, want: Option<&BTreeSet<SocketAddr>>| {
        let good = match want {
            Some(servers) => seen.servers == *servers && seen.errors.is_empty(),
            None => seen.servers.is_empty() && seen.errors == BTreeSet::from(["connection refused".to_owned()]),
        };
        let words = if want.is_some() && good { "both pods".to_owned() } else { seen.words() };
        if !good {
            faults.push(format!("{who} to {what}: {words}"));
        }
        table.row(vec![Cell::left(who), Cell::left(what), Cell::verdict(good, &words), Cell::right(micros(seen.took))]);
    };
    let pod = |to: &str| client.pod.run(|| Seen::of(&threads, to));
    let node = |to: &str| cluster.node(0).run(|| Seen::of(&threads, to));
    row("a pod", "a ClusterIP", pod(&service), Some(&servers));
    row("a pod behind it", "the same", one.pod.run(|| Seen::of(&threads, &service)), Some(&servers));
    row("the node", "the same", node(&service), Some(&servers));
    row("a pod", "a node port", pod(&on_node), Some(&servers));
    row("the node", "the same", node(&on_node), Some(&servers));
    row("a pod", "a Service without endpoints", pod(&empty), None);
    cluster.kill(0);
    row("a pod, terwayd is dead", "a ClusterIP", client.pod.run(|| Seen::of(&threads, &service)), Some(&servers));
    screen.line("");
    screen.table(&table);
    screen.line("");
    faults
}

/// Where connections have led.
pub struct Seen {
    pub servers: BTreeSet<SocketAddr>,
    pub errors: BTreeSet<String>,
    /// One connection, with the answer.
    pub took: Duration,
}

impl Seen {
    pub fn of(threads: &Threads, to: &str) -> Seen {
        let mut seen = Seen { servers: BTreeSet::new(), errors: BTreeSet::new(), took: Duration::MAX };
        for _ in 0..TRIES {
            let start = Instant::now();
            match led(threads, to) {
                Ok(server) => seen.servers.insert(server),
                Err(e) => seen.errors.insert(e.to_string()),
            };
            seen.took = seen.took.min(start.elapsed());
        }
        seen
    }

    pub fn words(&self) -> String {
        let servers = self.servers.iter().map(ToString::to_string);
        servers.chain(self.errors.iter().cloned()).collect::<Vec<_>>().join(", ")
    }
}

/// Who answers there, for the calling thread.
fn led(threads: &Threads, to: &str) -> Result<SocketAddr, ErrorKind> {
    threads.join();
    let to = to.parse().expect("an address and a port");
    let mut text = String::new();
    let stream = TcpStream::connect_timeout(&to, PATIENCE);
    stream.and_then(|mut stream| stream.read_to_string(&mut text)).map_err(|e| e.kind())?;
    text.parse().map_err(|_| ErrorKind::InvalidData)
}

/// A server in a pod that says its own address.
pub fn serve(pod: &Member) -> SocketAddr {
    let listener = pod.pod.run(|| TcpListener::bind((pod.ip.as_str(), TARGET))).expect("the pod has its address");
    let address = listener.local_addr().expect("it is bound");
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            // A client that went away wants no answer.
            let _ = (&stream).write_all(address.to_string().as_bytes());
        }
    });
    address
}

pub fn publish(kube: &Kube, name: &str, address: &str, node_port: Option<u16>, servers: &BTreeSet<SocketAddr>) {
    let endpoints = servers.iter().map(|server| services::endpoint(server.ip(), &node_name(0)));
    kube.put(services::slice(name, TARGET, endpoints));
    let mut service = services::service(name, address, 80);
    if let Some(port) = node_port {
        service["spec"]["type"] = json!("NodePort");
        service["spec"]["ports"][0]["nodePort"] = json!(port);
    }
    kube.put(service);
}
