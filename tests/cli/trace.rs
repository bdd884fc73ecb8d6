//! What stops a packet is named by `trace`, exactly and alone.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use terway::datapath::{self, EniSetup, NodeSetup, Setup};
use terway::kernel::Kernel;
use terway::ours;
use terway::plan::Plan;
use terway::rpc::Lease;

use super::{Said, cli, idle_node, node, nothing};
use crate::bpf::cell::{Servers, told};
use crate::sim::cluster::{Cluster, Member, soon};
use crate::sim::fabric::{OUTSIDE, OUTSIDE_V6};
use crate::sim::traffic::Place;
use crate::sim::world::{self, World};

/// Two pods on one ENI, and nobody who would repair what is broken.
struct Site {
    cluster: Cluster,
    a: Member,
    b: Member,
    leases: Vec<Lease>,
}

impl Site {
    fn new() -> Site {
        let mut cluster = node(&nothing());
        let (a, b) = (cluster.add(0, "a"), cluster.add(0, "b"));
        let shown = cluster.show(0)["leases"].to_string();
        let leases: Vec<Lease> = serde_json::from_str(&shown).expect("leases");
        cluster.kill(0);
        Site { cluster, a, b, leases }
    }

    fn lease(&self, name: &str) -> &Lease {
        self.leases.iter().find(|lease| lease.pod.name == name).expect("it is leased")
    }

    /// The line with the names of this site in it.
    fn fill(&self, line: &str) -> String {
        let veth = |name: &str| ours::host_veth(&self.lease(name).pod, "eth0");
        let eni = &self.lease("a").eni;
        let words = [
            ("VETHA", veth("a")),
            ("VETHB", veth("b")),
            ("TABLE", eni.table.to_string()),
            ("GATEWAY", eni.gateway.v4.expect("IPv4").to_string()),
            ("A/32", format!("{}/32", self.a.ip)),
            ("ADDRA", self.a.ip.clone()),
            ("B/32", format!("{}/32", self.b.ip)),
        ];
        words.iter().fold(line.to_string(), |line, (word, value)| line.replace(word, value))
    }

    /// All that Terway has put into the kernel is there again.
    fn mend(&self) {
        let restore = |plan: &Plan, netns: Option<&Path>| {
            let mut kernel = Kernel::host().expect("a socket");
            kernel.restore(plan, netns, netns.is_some()).unwrap_or_else(|e| panic!("{e}"));
        };
        self.cluster.node(0).run(|| {
            restore(&datapath::node(&NodeSetup::default()), None);
            let lease = self.lease("a");
            restore(&datapath::eni(&EniSetup { eni: &lease.eni, link: "eth1", mtu: 1500, node: &lease.node }), None);
            for lease in &self.leases {
                restore(&datapath::pod(&Setup::new(lease, 1500)), Some(&lease.sandbox.netns));
            }
        });
    }

    /// After this damage (in the pod of this name, or on the node) a packet to there stops at this step, and at no other.
    fn stops(&self, within: Option<&Member>, damage: &str, to: &str, place: &str, what: &str) {
        let (damage, what) = (self.fill(damage), self.fill(what));
        match within {
            Some(member) => member.pod.sh(&damage),
            None => self.cluster.node(0).sh(&damage),
        };
        let said = cli(&self.cluster, &format!("trace default/a {to} --json"));
        let at = said.json()["stops_at"].clone();
        let seen = format!("{} {}", at["what"].as_str().unwrap_or_default(), at["why"].as_str().unwrap_or_default());
        assert!(said.code == 1 && at["place"] == place && seen.contains(&what), "{damage}: {at}, not {place}: {what}");
        self.mend();
    }
}

fn passes(said: &Said) -> bool {
    said.out.ends_with("nothing on this node stops it\n")
}

#[test]
fn whatever_is_broken_on_the_way_is_the_step_that_is_named() {
    let site = Site::new();
    let whole = || {
        for to in ["", OUTSIDE, "default/b:80", "default/b"] {
            let said = cli(&site.cluster, &format!("trace default/a {to}"));
            assert!(passes(&said) && said.code == 3, "{to}: {said:?}");
            assert!(said.out.contains("note  policy    not asked"), "{said:?}");
        }
    };
    whole();
    let on_node = [
        ("ip rule del priority 512", "", "node", "ip rule add priority 512 "),
        ("ip rule del priority 2048", "", "node", "ip rule add priority 2048 "),
        ("ip route flush table TABLE", OUTSIDE, "node", "ip route replace default via GATEWAY dev eth1 table TABLE"),
        ("ip route del A/32 table 1000", "", "back", "ip route replace A/32 "),
        ("ip neigh del ADDRA dev VETHA", "", "back", "ip neigh replace ADDRA "),
        ("tc filter del dev VETHA ingress", "", "node", "tc filter replace dev VETHA ingress priority 2049"),
        ("ip link set VETHA down", "", "node", "state of VETHA: down, not up"),
        ("ip link set eth1 down", "", "node", "ip link set eth1 up"),
        ("sysctl -qw net.ipv4.ip_forward=0", "", "node", "net.ipv4.ip_forward"),
        ("sysctl -qw net.ipv4.conf.all.rp_filter=1", "", "back", "reverse path filter"),
        ("ip neigh replace GATEWAY dev eth1 nud failed", "", "node", "neighbour GATEWAY dev eth1"),
        ("ip route del B/32 table 1000", "default/b", "node", "ip route replace B/32 "),
        ("tc filter del dev VETHB ingress", "default/b", "node", "tc filter replace dev VETHB ingress"),
    ];
    for (damage, to, place, what) in on_node {
        site.stops(None, damage, to, place, what);
        site.cluster.node(0).sh(&site.fill("ip neigh del GATEWAY dev eth1 2>/dev/null || true"));
    }
    site.stops(None, "ip rule add priority 100 from A/32 lookup main", "", "node", "not dev eth1");
    site.cluster.node(0).sh("ip rule del priority 100");
    let (a, b) = (Some(&site.a), Some(&site.b));
    site.stops(a, "ip route del default", "", "pod", "ip route replace default via 169.254.1.1");
    site.stops(a, "ip neigh del 169.254.1.1 dev eth0", "", "pod", "ip neigh replace 169.254.1.1");
    site.stops(a, "ip addr flush dev eth0", "", "pod", "ip addr replace A/32");
    site.stops(a, "ip link set eth0 down", "", "pod", "ip link set eth0 up");
    site.stops(b, "ip route del default", "default/b", "pod", "ip route replace default");
    whole();
    let gone = cli(&site.cluster, "trace default/c");
    assert!(gone.code == 1 && gone.err.contains("pod default/c has no lease"), "{gone:?}");
    for line in ["trace", "trace web", "trace default/a 10.0.0.1:x", "trace default/a 10.0.0.1 tcp"] {
        assert_eq!(cli(&site.cluster, line).code, 2, "{line}");
    }
}

#[test]
fn both_families_are_followed() {
    let mut world = World::with_nodes(world::config(), 1, "ecs.sim.large");
    world.speak_v6(0);
    let mut cluster = Cluster::over(world);
    cluster.configure(0, &json!({"ip_stack": "dual"}));
    cluster.start_ready(0);
    let (_a, b) = (cluster.add(0, "a"), cluster.add(0, "b"));
    let v6 = b.ips.last().expect("two addresses");
    for to in [OUTSIDE, OUTSIDE_V6, v6, &format!("[{v6}]:80"), "default/b:80"] {
        let said = cli(&cluster, &format!("trace default/a {to}"));
        assert!(said.code == 0 && passes(&said), "{to}: {said:?}");
    }
    cluster.kill(0);
    cluster.node(0).sh("ip -6 rule del priority 512");
    let said = cli(&cluster, &format!("trace default/a {OUTSIDE_V6} --json"));
    let at = said.json()["stops_at"]["what"].clone();
    assert!(at.as_str().is_some_and(|what| what.starts_with("ip -6 rule add priority 512")), "{said:?}");
    assert!(passes(&cli(&cluster, &format!("trace default/a {OUTSIDE}"))), "the other family goes on");
}

/// What kube-proxy writes into iptables for `default/web` with two endpoints, and node ports of it; for `default/none`, which has none; and
/// for the node port of `default/local`, whose endpoints are elsewhere.
const IPTABLES: &str = r#"*nat
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-SVC-WEB - [0:0]
:KUBE-EXT-WEB - [0:0]
:KUBE-SEP-1 - [0:0]
:KUBE-SEP-2 - [0:0]
:KUBE-POSTROUTING - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MASQUERADE
-A KUBE-SERVICES -d 172.21.0.80/32 -p tcp -m comment --comment "default/web:http cluster IP" -m tcp --dport 80 -j KUBE-SVC-WEB
-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-NODEPORTS -p tcp -m comment --comment "default/web:http" -m tcp --dport 30080 -j KUBE-EXT-WEB
-A KUBE-EXT-WEB -m comment --comment "masquerade traffic for default/web:http external destinations" -j KUBE-MARK-MASQ
-A KUBE-EXT-WEB -j KUBE-SVC-WEB
-A KUBE-SVC-WEB -m comment --comment "default/web:http -> B:8080" -m statistic --mode random --probability 0.50000000000 -j KUBE-SEP-1
-A KUBE-SVC-WEB -m comment --comment "default/web:http -> C:8080" -j KUBE-SEP-2
-A KUBE-SEP-1 -p tcp -m comment --comment "default/web:http" -m tcp -j DNAT --to-destination ADDRB:8080
-A KUBE-SEP-2 -p tcp -m comment --comment "default/web:http" -m tcp -j DNAT --to-destination ADDRC:8080
COMMIT
*filter
:KUBE-SERVICES - [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-SERVICES -d 172.21.0.81/32 -p tcp -m comment --comment "default/none:http has no endpoints" -m tcp --dport 80 -j REJECT --reject-with icmp-port-unreachable
-A KUBE-EXTERNAL-SERVICES -p tcp -m comment --comment "default/local:http has no local endpoints" -m addrtype --dst-type LOCAL -m tcp --dport 30081 -j DROP
COMMIT
"#;

/// The same in nftables.
const NFTABLES: &str = "table ip kube-proxy {
  set nodeport-ips { type ipv4_addr; elements = { NODE } }
  chain reject-chain { reject; }
  chain endpoint-AAAAAAAA-default/web/tcp/http__B/8080 { meta l4proto tcp dnat to ADDRB:8080; }
  chain endpoint-BBBBBBBB-default/web/tcp/http__C/8080 { meta l4proto tcp dnat to ADDRC:8080; }
  chain mark-for-masquerade { meta mark set mark or 0x4000; }
  chain service-CCCCCCCC-default/web/tcp/http { numgen random mod 2 vmap {
    0 : goto endpoint-AAAAAAAA-default/web/tcp/http__B/8080, 1 : goto endpoint-BBBBBBBB-default/web/tcp/http__C/8080 }; }
  chain external-DDDDDDDD-default/web/tcp/http { jump mark-for-masquerade; goto service-CCCCCCCC-default/web/tcp/http; }
  map service-ips { type ipv4_addr . inet_proto . inet_service : verdict
    elements = { 172.21.0.80 . tcp . 80 : goto service-CCCCCCCC-default/web/tcp/http } }
  map service-nodeports { type inet_proto . inet_service : verdict
    elements = { tcp . 30080 : goto external-DDDDDDDD-default/web/tcp/http } }
  map no-endpoint-services { type ipv4_addr . inet_proto . inet_service : verdict
    elements = { 172.21.0.81 . tcp . 80 comment \"default/none:http\" : goto reject-chain } }
  map no-endpoint-nodeports { type inet_proto . inet_service : verdict
    elements = { tcp . 30081 comment \"default/local:http\" : drop } }
  chain services {
    ip daddr . meta l4proto . th dport vmap @service-ips
    ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports; }
  chain service-endpoints-check { ip daddr . meta l4proto . th dport vmap @no-endpoint-services; }
  chain nodeport-endpoints-check { ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports; }
  chain nat-prerouting { type nat hook prerouting priority -100; jump services; }
  chain nat-postrouting { type nat hook postrouting priority 100; meta mark and 0x4000 != 0 masquerade; }
  chain filter-input { type filter hook input priority -110; ct state new jump nodeport-endpoints-check; }
  chain filter-forward { type filter hook forward priority -110; ct state new jump service-endpoints-check; }
}
";

/// Whatever trace says is held against a connection of the pod.
#[test]
fn where_kube_proxy_leads_is_followed_and_what_it_refuses_is_named() {
    let cluster = node(&nothing());
    let [a, b, c] = ["a", "b", "c"].map(|name| cluster.add(0, name));
    let servers = [&b, &c].map(|member| Servers::on(&member.pod, &[&member.ip], 8080));
    let ends = servers.each_ref().map(|server| server.addrs[0]);
    let own = cluster.node(0).addr.to_string();
    let trace = |to: &str| cli(&cluster, &format!("trace default/a {to} --json"));
    let leads = |to: &str| {
        let said = trace(to);
        let steps = said.json()["steps"].to_string();
        let what = format!("{to}/TCP of default/web");
        assert!(said.code == 0 && steps.contains(&what) && steps.contains("leads to 2 endpoints, such as"), "{said:?}");
        soon(&format!("{to} leads to a pod"), || connects(&a, to).is_some_and(|end| ends.contains(&end)));
    };
    let stops = |to: &str, why: &str| netfilter_stops(&cluster, &a, to, why);
    stops("172.21.0.80:80", "nobody leads Services here");
    let fill = |text: &str| text.replace("ADDRB", &b.ip).replace("ADDRC", &c.ip).replace("NODE", &own);
    let here = cluster.node(0);
    here.write_file("/run/iptables", &fill(IPTABLES));
    here.write_file("/run/nftables", &fill(NFTABLES));
    for (load, unload) in [
        (
            "iptables-restore --noflush /run/iptables",
            "for t in nat filter; do iptables -t $t -F; iptables -t $t -X; done",
        ),
        ("nft -f /run/nftables", "nft delete table ip kube-proxy"),
    ] {
        here.sh(load);
        leads("172.21.0.80:80");
        leads(&format!("{own}:30080"));
        stops("172.21.0.81:80", "it has no endpoints");
        stops(&format!("{own}:30081"), "it has no local endpoints");
        stops("172.21.0.82:80", "kube-proxy has no rule for this address and port");
        here.sh(unload);
    }
}

/// A daemon would let pods through, sooner or later.
#[test]
fn what_others_keep_from_passing_is_named() {
    let Site { cluster, a, b, .. } = &Site::new();
    let server = Servers::on(&b.pod, &[&b.ip], 8080);
    let end = server.addrs[0];
    let here = cluster.node(0);
    here.sh("iptables -P FORWARD DROP");
    netfilter_stops(cluster, a, &end.to_string(), "the policy of chain FORWARD is DROP");
    here.sh("iptables -A FORWARD -i cali+ -p tcp --dport 8080 -j ACCEPT; iptables -A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT");
    let said = cli(cluster, &format!("trace default/a {end}"));
    assert!(passes(&said) && connects(a, &end.to_string()) == Some(end), "{said:?}");
}

/// Netfilter keeps connections of the pod from getting there, and trace says why.
fn netfilter_stops(cluster: &Cluster, a: &Member, to: &str, why: &str) {
    let said = cli(cluster, &format!("trace default/a {to} --json"));
    let at = said.json()["stops_at"].clone();
    assert!(said.code == 1 && at["place"] == "netfilter", "{to}: {said:?}");
    assert!(at["why"].as_str().is_some_and(|said| said.contains(why)), "{to}: {at}, not {why}");
    assert_eq!(connects(a, to), None, "{to}");
}

/// Whom a connection of the pod comes to, as it says.
fn connects(a: &Member, to: &str) -> Option<SocketAddr> {
    let to = to.parse().expect("an address and a port");
    a.pod.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(1)).and_then(told)).ok()
}

#[test]
fn a_pod_with_an_eni_of_its_own_leaves_by_it() {
    let config = json!({"daemon_mode": "ENIOnly", "min_pool_size": 1, "max_pool_size": 1});
    let mut cluster = idle_node(&config);
    cluster.start_ready(0);
    let a = cluster.add(0, "a");
    let said = cli(&cluster, &format!("trace default/a {OUTSIDE}"));
    assert!(said.code == 0 && passes(&said) && said.out.contains("leaves by its own ENI eni-"), "{said:?}");
    soon("its ENIs are to have nothing on the node", || cli(&cluster, "status").code == 0);
    let looked = cli(&cluster, "doctor");
    assert!(looked.out.contains("ok       plans\n"), "{looked:?}");
    a.pod.sh("ip route del default");
    let said = cli(&cluster, &format!("trace default/a {OUTSIDE} --json"));
    assert_eq!((said.code, &said.json()["stops_at"]["place"]), (1, &json!("pod")), "{said:?}");
}
