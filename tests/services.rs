//! Services at the socket: the real daemon, a simulated API server, and real connections, with no kube-proxy anywhere.

mod own;
mod restart;
mod wrong;

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use serde_json::{Value, json};

use crate::bpf::cell::{Servers, Threads};
use crate::sim::cluster::{Cluster, Member, node_name, soon, within};
use crate::sim::fabric::OUTSIDE;
use crate::sim::kube::{Kube, merge, services};
use crate::sim::traffic::Place;
use crate::sim::world;

/// How long a client waits where nobody may answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// A node whose daemon leads connections of some of our threads, and no other's.
struct Bench {
    cluster: Cluster,
    threads: Threads,
}

impl Bench {
    /// Two nodes, of which the first has a daemon; `over` is laid over its configuration.
    fn new(over: Value) -> Bench {
        let mut bench = Bench::idle(over);
        bench.cluster.start_ready(0);
        bench
    }

    fn idle(over: Value) -> Bench {
        let cluster = Cluster::new(world::config(), 2, "ecs.sim.large");
        let threads = Threads::new();
        for n in 0..2 {
            let node = cluster.node(n);
            let addresses = json!([{"type": "InternalIP", "address": node.addr.to_string()}]);
            let over = json!({
                "metadata": {"labels": {"topology.kubernetes.io/zone": if n == 0 { "h" } else { "g" }}},
                "status": {"addresses": addresses},
            });
            cluster.kube.amend("Node", "", &node_name(n), &over);
        }
        let mut config = json!({"ebpf_services": true, "cgroup_root": threads.path()});
        over.as_object().unwrap().iter().for_each(|(key, value)| config[key] = value.clone());
        cluster.configure(0, &config);
        Bench { cluster, threads }
    }

    /// Puts a Service `default/NAME` there, of port 80 at this address, and with these fields of its spec.
    fn service(&self, name: &str, addr: &str, mut over: Value) {
        let mut service = services::service(name, addr, 80);
        let status = over["status"].take();
        let metadata = json!({"uid": name, "creationTimestamp": "2026-01-01T00:00:00Z"});
        merge(&mut service, &json!({"metadata": metadata, "spec": over, "status": status}));
        self.cluster.kube.put(service);
    }

    /// The endpoints of a Service, all of its port `http`; each is laid over a plain one of the first node.
    fn endpoints(&self, service: &str, endpoints: &[(SocketAddr, Value)]) {
        put_endpoints(&self.cluster.kube, service, endpoints);
    }

    /// Who is behind this address, for somebody in this place.
    fn ask(&self, from: &impl Place, to: &str) -> Result<SocketAddr, ErrorKind> {
        ask(&self.threads, from, to, PATIENCE)
    }

    /// All who answer there, in so many tries, none of which may fail.
    fn all(&self, from: &impl Place, to: &str) -> Result<BTreeSet<SocketAddr>, ErrorKind> {
        (0..24).map(|_| self.ask(from, to)).collect()
    }

    /// Waits until those who answer there are these, all of them and nobody else; then it stays so.
    fn leads(&self, from: &impl Place, to: &str, want: &[SocketAddr]) {
        let want = Ok(want.iter().copied().collect());
        let is_so = || self.all(from, to) == want;
        assert!(within(4 * PATIENCE, is_so), "{to} leads to {:?}, not to {want:?}", self.all(from, to));
        assert_eq!(self.all(from, to), want, "{to}");
    }

    /// Waits until nobody is behind it.
    fn refuses(&self, from: &impl Place, to: &str) {
        soon(&format!("{to} refuses"), || self.ask(from, to) == Err(ErrorKind::ConnectionRefused));
    }
}

/// The endpoints of a Service, all of its port `http`; each is laid over a plain one of the first node.
fn put_endpoints(kube: &Kube, service: &str, endpoints: &[(SocketAddr, Value)]) {
    let port = endpoints.first().map_or(80, |(addr, _)| addr.port());
    assert!(endpoints.iter().all(|(addr, _)| addr.port() == port), "one slice, one port");
    let one = |(addr, over): &(SocketAddr, Value)| {
        let mut endpoint = services::endpoint(addr.ip(), &node_name(0));
        merge(&mut endpoint, over);
        endpoint
    };
    let mut slice = services::slice(service, port, endpoints.iter().map(one));
    let ports = slice["ports"].as_array_mut().unwrap();
    ports.push(json!({"name": "dns", "port": port, "protocol": "UDP"}));
    kube.put(slice);
}

fn ask(threads: &Threads, from: &impl Place, to: &str, patience: Duration) -> Result<SocketAddr, ErrorKind> {
    let to: SocketAddr = to.parse().unwrap();
    from.run(|| {
        threads.join();
        told(TcpStream::connect_timeout(&to, patience), patience).map_err(|e| e.kind())
    })
}

fn told(stream: std::io::Result<TcpStream>, patience: Duration) -> std::io::Result<SocketAddr> {
    let mut stream = stream?;
    stream.set_read_timeout(Some(patience))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    text.parse().map_err(|_| std::io::Error::other(format!("{text:?} is no address")))
}

/// A Service `web` at 172.21.0.80 and the one pod behind it, which serves; a client is led there.
fn led() -> (Bench, [Member; 2], Vec<(Servers, SocketAddr)>) {
    let bench = Bench::new(json!({}));
    let pods = ["one", "client"].map(|name| bench.cluster.add(0, name));
    let servers = serve(&[&pods[0]]);
    bench.service("web", "172.21.0.80", json!({}));
    bench.endpoints("web", &[(servers[0].1, json!({}))]);
    bench.leads(&pods[1].pod, "172.21.0.80:80", &[servers[0].1]);
    (bench, pods, servers)
}

/// A server in each of these pods, all on one port.
fn serve(pods: &[&Member]) -> Vec<(Servers, SocketAddr)> {
    pods.iter()
        .map(|member| {
            let servers = Servers::on(&member.pod, &[&member.ip], 8080);
            let addr = servers.addrs[0];
            (servers, addr)
        })
        .collect()
}

#[test]
fn every_kind_of_address_leads_to_the_endpoints() {
    let bench = Bench::new(json!({}));
    let (one, other, client) =
        (bench.cluster.add(0, "one"), bench.cluster.add(0, "other"), bench.cluster.add(0, "client"));
    let servers = serve(&[&one, &other]);
    let (a, b) = (servers[0].1, servers[1].1);
    let ports =
        json!([{"name": "http", "port": 80, "targetPort": "web", "nodePort": 30080}, {"name": "none", "port": 81}]);
    bench.service(
        "web",
        "172.21.0.80",
        json!({
            "type": "LoadBalancer", "ports": ports, "externalIPs": ["203.0.113.7"],
            "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}]}},
        }),
    );
    bench.endpoints("web", &[(a, json!({})), (b, json!({}))]);
    let (own, another) = (bench.cluster.node(0).addr, bench.cluster.node(1).addr);
    let node = bench.cluster.node(0);
    for to in
        ["172.21.0.80:80", "203.0.113.7:80", "198.51.100.1:80", &format!("{own}:30080"), &format!("{another}:30080")]
    {
        bench.leads(&client.pod, to, &[a, b]);
        bench.leads(&**node, to, &[a, b]);
    }
    bench.leads(&**node, "127.0.0.1:30080", &[a, b]);
    // A pod reaches itself through its Service.
    bench.leads(&one.pod, "172.21.0.80:80", &[a, b]);
    bench.endpoints("web", &[(a, json!({}))]);
    bench.leads(&one.pod, "172.21.0.80:80", &[a]);
    // No endpoints: refused at once, of a port that has none and of a Service that has none.
    bench.refuses(&client.pod, "172.21.0.80:81");
    bench.endpoints("web", &[]);
    bench.refuses(&client.pod, "172.21.0.80:80");
    bench.refuses(&**node, &format!("{another}:30080"));
    // Deleted, and the address means nothing any more.
    bench.cluster.kube.delete("Service", "default", "web");
    soon("the Service is gone", || bench.ask(&client.pod, "172.21.0.80:80") != Err(ErrorKind::ConnectionRefused));
    let shown = bench.cluster.show(0)["services"].clone();
    assert_eq!(shown["state"], "serving", "{shown}");
}

/// So many nodes, each as large as they are in a cluster, with up to fifty images; `TERWAY_NODES=5000` is what a large one has.
#[test]
fn other_nodes_are_known_by_rows_of_a_few_hundred_bytes() {
    let many: u64 = std::env::var("TERWAY_NODES").ok().and_then(|n| n.parse().ok()).unwrap_or(300);
    let mut bench = Bench::idle(json!({}));
    let image = |n: u64| json!({"names": [format!("registry.example/team/image-{n}@sha256:{n:064}"), format!("registry.example/team/image-{n}:v1.2.3")], "sizeBytes": 123456789 + n});
    let images: Vec<Value> = (0..50).map(image).collect();
    let address = |n: u64| Ipv4Addr::from_bits(0x0a64_0000 + n as u32).to_string();
    let node = |n: u64, beat: u64| {
        json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("other-{n}")},
            "status": {
                "addresses": [{"type": "InternalIP", "address": address(n)}, {"type": "Hostname", "address": format!("other-{n}")}],
                "conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": beat.to_string()}], "images": images,
            },
        })
    };
    let whole = node(0, 0).to_string().len() as u64;
    (0..many).for_each(|n| _ = bench.cluster.kube.put(node(n, 0)));
    let heard = |bench: &Bench| bench.cluster.kube.bytes_to(bench.cluster.node(0).addr.into());
    bench.cluster.start_ready(0);
    let (one, client) = (bench.cluster.add(0, "one"), bench.cluster.add(0, "client"));
    let servers = serve(&[&one]);
    let ports = json!([{"name": "http", "port": 80, "nodePort": 30080}]);
    bench.service("web", "172.21.0.80", json!({"type": "NodePort", "ports": ports}));
    bench.endpoints("web", &[(servers[0].1, json!({}))]);
    bench.leads(&client.pod, &format!("{}:30080", address(many - 1)), &[servers[0].1]);
    let listed = heard(&bench);
    // Each says that it is well; then there is one more, and what was told of it comes last.
    (0..many).for_each(|n| _ = bench.cluster.kube.put(node(n, 1)));
    bench.cluster.kube.put(node(many, 0));
    bench.leads(&client.pod, &format!("{}:30080", address(many)), &[servers[0].1]);
    let (listed, told) = (listed / many, (heard(&bench) - listed) / many);
    println!("a node of {whole} bytes: {listed} when listed, {told} for each time that it says it is well");
    // The list has all else that a start reads in it, too.
    assert!(listed < 1000 && told < 500 && whole > 8000, "{whole} bytes: {listed}, {told}");
    // It goes: its address is nobody's any more.
    bench.cluster.kube.delete("Node", "", &format!("other-{many}"));
    soon("it is forgotten", || bench.ask(&client.pod, &format!("{}:30080", address(many))).is_err());
}

/// Whoever is behind the outside's address, port by port, is the outside itself or, where that is a Service's, our pod.
#[test]
fn headless_and_renamed_services_others_and_restricted_addresses_are_left_alone() {
    let bench = Bench::new(json!({}));
    let (one, client) = (bench.cluster.add(0, "one"), bench.cluster.add(0, "client"));
    let servers = serve(&[&one]);
    let pod = servers[0].1;
    let outside = bench.cluster.world.fabric.outside();
    let beyond = [81, 82, 83, 84].map(|port| Servers::on(outside, &[OUTSIDE], port));
    let [headless, renamed, foreign, restricted] = beyond.each_ref().map(|servers| servers.addrs[0]);
    let port = |addr: SocketAddr| json!([{"name": "http", "port": addr.port()}]);
    let nobody =
        |addr| json!({"clusterIP": "None", "clusterIPs": ["None"], "externalIPs": [OUTSIDE], "ports": port(addr)});
    let mut name = nobody(renamed);
    (name["type"], name["externalName"]) = ("ExternalName".into(), "example.com".into());
    let balancer = json!({
        "type": "LoadBalancer", "status": {"loadBalancer": {"ingress": [{"ip": OUTSIDE}]}},
        "loadBalancerSourceRanges": ["203.0.113.0/24"], "ports": port(restricted),
    });
    bench.service("headless", "None", nobody(headless));
    bench.service("renamed", "None", name);
    bench.service("foreign", "172.21.0.83", json!({"externalIPs": [OUTSIDE], "ports": port(foreign)}));
    let proxy = |name: Value| json!({"metadata": {"labels": {"service.kubernetes.io/service-proxy-name": name}}});
    bench.cluster.kube.amend("Service", "default", "foreign", &proxy("another".into()));
    bench.service("restricted", "172.21.0.84", balancer);
    let names = ["headless", "renamed", "foreign", "restricted"];
    names.iter().for_each(|name| bench.endpoints(name, &[(pod, json!({}))]));
    // The last that is told of.
    bench.service("web", "172.21.0.80", json!({}));
    bench.endpoints("web", &[(pod, json!({}))]);
    bench.leads(&client.pod, "172.21.0.80:80", &[pod]);
    for addr in [headless, renamed, foreign, restricted] {
        bench.leads(&client.pod, &addr.to_string(), &[addr]);
    }
    // A headless Service's endpoint is reached as ever, and a restricted one by its own address.
    bench.leads(&client.pod, &pod.to_string(), &[pod]);
    bench.leads(&client.pod, "172.21.0.84:84", &[pod]);
    // Each of them becomes a Service like any other.
    let cluster = |addr: &str| json!({"spec": {"type": "ClusterIP", "clusterIP": addr, "clusterIPs": [addr]}});
    let turns = [
        cluster("172.21.0.81"),
        cluster("172.21.0.82"),
        proxy(Value::Null),
        json!({"spec": {"loadBalancerSourceRanges": ["0.0.0.0/0"]}}),
    ];
    for ((name, patch), addr) in names.iter().zip(&turns).zip([headless, renamed, foreign, restricted]) {
        bench.cluster.kube.amend("Service", "default", name, patch);
        bench.leads(&client.pod, &addr.to_string(), &[pod]);
    }
}

#[test]
fn policies_hints_and_what_goes_away_choose_among_the_endpoints() {
    let bench = Bench::new(json!({}));
    let (near, far, client) =
        (bench.cluster.add(0, "near"), bench.cluster.add(0, "far"), bench.cluster.add(0, "client"));
    let servers = serve(&[&near, &far]);
    let (a, b) = (servers[0].1, servers[1].1);
    let away = json!({"nodeName": node_name(1)});
    let to = "172.21.0.80:80";
    // Local: those on this node, and nobody where there are none.
    bench.service("web", "172.21.0.80", json!({"internalTrafficPolicy": "Local"}));
    bench.endpoints("web", &[(a, json!({})), (b, away.clone())]);
    bench.leads(&client.pod, to, &[a]);
    bench.endpoints("web", &[(b, away.clone())]);
    bench.refuses(&client.pod, to);
    // Hints, for zones and for nodes; not where one has none.
    bench.service("web", "172.21.0.80", json!({}));
    let zone = |zone: &str| json!({"hints": {"forZones": [{"name": zone}]}});
    bench.endpoints("web", &[(a, zone("g")), (b, zone("h"))]);
    bench.leads(&client.pod, to, &[b]);
    bench.endpoints("web", &[(a, zone("g")), (b, json!({}))]);
    bench.leads(&client.pod, to, &[a, b]);
    let nodes = |n: usize| json!({"hints": {"forZones": [{"name": "h"}], "forNodes": [{"name": node_name(n)}]}});
    bench.endpoints("web", &[(a, nodes(0)), (b, nodes(1))]);
    bench.leads(&client.pod, to, &[a]);
    // What goes away is used while nothing else is left.
    let leaving = json!({"conditions": {"ready": false, "serving": true, "terminating": true}});
    bench.endpoints("web", &[(a, leaving.clone()), (b, json!({}))]);
    bench.leads(&client.pod, to, &[b]);
    bench.endpoints("web", &[(a, leaving), (b, json!({"conditions": {"ready": false}}))]);
    bench.leads(&client.pod, to, &[a]);
    // externalTrafficPolicy Local: to all from inside, by our own address; another node's answers for itself.
    let ports = json!([{"name": "http", "port": 80, "nodePort": 30080}]);
    bench.service("web", "172.21.0.80", json!({"type": "NodePort", "ports": ports, "externalTrafficPolicy": "Local"}));
    bench.endpoints("web", &[(a, json!({})), (b, away)]);
    let (own, another) = (bench.cluster.node(0).addr, bench.cluster.node(1).addr.to_string());
    bench.leads(&client.pod, &format!("{own}:30080"), &[a, b]);
    let theirs = format!("{another}:30080");
    assert!(bench.ask(&client.pod, &theirs).is_err(), "nobody answers there yet");
    // Its kube-proxy does, by an endpoint of its own.
    let there = Servers::on(&**bench.cluster.node(1), &[&another], 8081);
    let rule = format!("-p tcp --dport 30080 -m addrtype --dst-type LOCAL -j DNAT --to-destination {another}:8081");
    bench.cluster.node(1).sh(&format!("iptables -t nat -A PREROUTING {rule}"));
    bench.leads(&client.pod, &theirs, &[there.addrs[0]]);
    bench.leads(&**bench.cluster.node(0), &theirs, &[there.addrs[0]]);
}

#[test]
fn a_client_keeps_its_endpoint_for_as_long_as_the_service_says() {
    let bench = Bench::new(json!({}));
    let (one, other, client) =
        (bench.cluster.add(0, "one"), bench.cluster.add(0, "other"), bench.cluster.add(0, "client"));
    let servers = serve(&[&one, &other]);
    let (a, b) = (servers[0].1, servers[1].1);
    let config = json!({"clientIP": {"timeoutSeconds": 1}});
    bench.service("web", "172.21.0.80", json!({"sessionAffinity": "ClientIP"}));
    bench.endpoints("web", &[(a, json!({})), (b, json!({}))]);
    soon("it is served", || bench.ask(&client.pod, "172.21.0.80:80").is_ok());
    let kept = bench.all(&client.pod, "172.21.0.80:80").expect("it answers");
    assert_eq!(kept.len(), 1, "a client that is sent here and there");
    // Its endpoint goes: it is led to the other, and stays there.
    let kept = kept.into_iter().next().unwrap();
    let rest = if kept == a { b } else { a };
    bench.endpoints("web", &[(rest, json!({}))]);
    bench.leads(&client.pod, "172.21.0.80:80", &[rest]);
    bench.endpoints("web", &[(a, json!({})), (b, json!({}))]);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(bench.all(&client.pod, "172.21.0.80:80"), Ok(BTreeSet::from([rest])));
    // A second later it may go anywhere.
    bench.service("web", "172.21.0.80", json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": config}));
    soon("the timeout has passed", || {
        std::thread::sleep(Duration::from_millis(1100));
        bench.ask(&client.pod, "172.21.0.80:80") == Ok(kept)
    });
}

#[test]
fn datagrams_are_led_and_answered_under_the_services_address() {
    let bench = Bench::new(json!({}));
    let (one, client) = (bench.cluster.add(0, "one"), bench.cluster.add(0, "client"));
    let servers = serve(&[&one]);
    bench.service("dns", "172.21.0.10", json!({"ports": [{"name": "dns", "port": 53, "protocol": "UDP"}]}));
    bench.endpoints("dns", &[(servers[0].1, json!({}))]);
    let to: SocketAddr = "172.21.0.10:53".parse().unwrap();
    let ask = || {
        client.pod.run(|| {
            bench.threads.join();
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.send_to(b"?", to)?;
            let mut buffer = [0; 64];
            let (len, from) = socket.recv_from(&mut buffer)?;
            Ok::<_, std::io::Error>((String::from_utf8_lossy(&buffer[..len]).into_owned(), from))
        })
    };
    soon("it answers", || ask().is_ok());
    assert_eq!(ask().unwrap(), (servers[0].1.to_string(), to));
}

#[test]
fn a_socket_that_is_connected_to_an_endpoint_that_goes_can_connect_anew() {
    let bench = Bench::new(json!({}));
    let (one, other, client) =
        (bench.cluster.add(0, "one"), bench.cluster.add(0, "other"), bench.cluster.add(0, "client"));
    let servers = serve(&[&one, &other]);
    bench.service("dns", "172.21.0.10", json!({"ports": [{"name": "dns", "port": 53, "protocol": "UDP"}]}));
    bench.endpoints("dns", &[(servers[0].1, json!({}))]);
    let socket = client.pod.run(|| {
        bench.threads.join();
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        socket
    });
    let ask = || {
        let mut buffer = [0; 64];
        socket.send(b"?")?;
        let len = socket.recv(&mut buffer)?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&buffer[..len]).into_owned())
    };
    let connect = || {
        client.pod.run(|| {
            bench.threads.join();
            socket.connect("172.21.0.10:53")
        })
    };
    soon("it answers", || connect().is_ok() && ask().is_ok_and(|who| who == servers[0].1.to_string()));
    bench.endpoints("dns", &[(servers[1].1, json!({}))]);
    if bench
        .cluster
        .node(0)
        .sh("zcat /proc/config.gz 2>/dev/null | grep INET_DIAG_DESTROY || true")
        .contains("is not set")
    {
        return crate::sim::skip::because("needs INET_DIAG_DESTROY");
    }
    soon("the socket hears of it", || ask().is_err_and(|e| e.raw_os_error() == Some(libc::EDESTADDRREQ)));
    // What it has not heard of the old connection comes first.
    soon("it is led to the other", || connect().is_ok() && ask().is_ok_and(|who| who == servers[1].1.to_string()));
}

#[test]
fn both_families_of_a_service_are_led_to_endpoints_of_their_own() {
    let mut bench = Bench::idle(json!({"ip_stack": "dual"}));
    bench.cluster.world.speak_v6(0);
    bench.cluster.start_ready(0);
    let (one, client) = (bench.cluster.add(0, "one"), bench.cluster.add(0, "client"));
    let servers = Servers::on(&one.pod, &[&one.ips[0], &one.ips[1]], 8080);
    let (v4, v6) = (servers.addrs[0], servers.addrs[1]);
    bench.service("web", "172.21.0.80", json!({"clusterIPs": ["172.21.0.80", "fd00:21::80"]}));
    bench.endpoints("web", &[(v4, json!({})), (v6, json!({}))]);
    bench.leads(&client.pod, "172.21.0.80:80", &[v4]);
    bench.leads(&client.pod, "[fd00:21::80]:80", &[v6]);
}

#[test]
fn a_server_that_knows_slices_by_their_old_name_only_is_understood() {
    let mut bench = Bench::idle(json!({}));
    bench.cluster.kube.lack("/apis/discovery.k8s.io/v1");
    bench.cluster.start_ready(0);
    let (one, client) = (bench.cluster.add(0, "one"), bench.cluster.add(0, "client"));
    let servers = serve(&[&one]);
    bench.service("web", "172.21.0.80", json!({}));
    bench.cluster.kube.put(json!({
        "apiVersion": "discovery.k8s.io/v1beta1", "kind": "EndpointSlice",
        "metadata": {"namespace": "default", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "ports": [{"name": "http", "port": servers[0].1.port()}],
        "endpoints": [{"addresses": [servers[0].1.ip()], "topology": {"kubernetes.io/hostname": node_name(0)}}],
    }));
    bench.leads(&client.pod, "172.21.0.80:80", &[servers[0].1]);
}
