//! What every mode does alike: pods on their paths, a Service, a network policy, a limit, and a daemon that ends under traffic.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use terway::pod::PodName;

use crate::bandwidth;
use crate::exclusive::{self, Trial, direct};
use crate::orders::Orders;
use crate::report;
use crate::screen::{Cell, Screen, Table, Tone, micros, millis};
use crate::services::{self, Seen};
use crate::sim::cgroup::Threads;
use crate::sim::cloud::{EniKind, EniView, InstanceType};
use crate::sim::cluster::{Cluster, Member, SOON, conf, node_name, within};
use crate::sim::fabric::OUTSIDE;
use crate::sim::kube;
use crate::sim::load::{self, Tally};
use crate::sim::traffic::Place;
use crate::sim::world::{self, World};
use crate::story::{End, config};

/// Three secondary ENIs: enough for three pods that have one each.
const INSTANCE_TYPE: &str = "ecs.g7.xlarge";
const SERVICE: &str = "172.21.3.1";
/// What a packet that has not arrived by then is: dropped.
const DROPPED: Duration = Duration::from_millis(400);
/// On which node, and what it is.
const PODS: [(usize, &str, &str); 4] =
    [(0, "client", "client"), (0, "web-1", "web"), (0, "other", "other"), (1, "web-2", "web")];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    PolicyRoute,
    Ipvlan,
    Exclusive,
}

impl Mode {
    pub const WORDS: [(&str, Mode); 3] =
        [("policy-route", Mode::PolicyRoute), ("ipvlan", Mode::Ipvlan), ("exclusive", Mode::Exclusive)];

    pub fn word(self) -> &'static str {
        Mode::WORDS.iter().find(|(_, mode)| *mode == self).expect("all of them are there").0
    }

    pub fn name(self) -> &'static str {
        match self {
            Mode::PolicyRoute => "policy routing",
            Mode::Ipvlan => "IPvlan",
            Mode::Exclusive => "an ENI per pod",
        }
    }

    fn settings(self) -> Value {
        match self {
            Mode::Exclusive => json!({"daemon_mode": "ENIOnly", "min_pool_size": 3, "max_pool_size": 3}),
            _ => json!({"min_pool_size": 4, "max_pool_size": 8}),
        }
    }

    /// What of the kernel leads a packet, in the node and in a pod of it.
    fn looks(self) -> [Vec<&'static str>; 2] {
        const RULES: &str = "ip rule";
        const PODS: &str = "ip route show table 1000";
        const FILTERS: &str = "for l in $(ls /sys/class/net | grep -E '^(cali|ipvl_|eth[1-9])'); do for d in ingress egress; do \
             tc filter show dev $l $d | grep -v 'chain 0 *$' | sed \"s/^/$l $d: /\"; done; done";
        const TABLES: &str = "for t in $(ip rule | sed -n 's/.*fwmark.*lookup //p'); do ip route show table $t | sed \"s/^/table $t: /\"; done";
        const NAT: &str = "iptables -t nat -S POSTROUTING";
        const INSIDE: [&str; 4] = [
            "ip -br addr",
            "ip route",
            "ip neigh",
            "for d in ingress egress; do tc filter show dev eth0 $d | grep -v 'chain 0 *$' | sed \"s/^/eth0 $d: /\"; done",
        ];
        match self {
            Mode::PolicyRoute => [vec![RULES, PODS, TABLES, FILTERS], INSIDE.into()],
            Mode::Ipvlan => {
                let pod = ["ip -d link show eth0"].into_iter().chain(INSIDE).collect();
                [vec![RULES, PODS, "ip -d -br link show type ipvlan", FILTERS, NAT], pod]
            }
            Mode::Exclusive => {
                let answers = ["ip rule; ip route show table 1000", "iptables -t mangle -S"];
                [vec![RULES, PODS, FILTERS, NAT, "ip -br link"], INSIDE.into_iter().chain(answers).collect()]
            }
        }
    }
}

/// Everything of one mode in a world of its own; what is not as it should be. With `keep` it waits once all is there.
pub fn show(screen: Screen, mode: Mode, orders: &Orders, keep: bool) -> Result<Vec<String>, End> {
    screen.title(&format!("Two nodes: {}", mode.name()));
    let mut scene = Scene::build(screen, mode)?;
    scene.go_on(orders)?;
    scene.add()?;
    scene.show_pods();
    scene.go_on(orders)?;
    screen.title("They talk");
    scene.talk();
    scene.go_on(orders)?;
    screen.title("A Service leads to them");
    scene.lead();
    scene.go_on(orders)?;
    screen.title("A network policy stands between them");
    scene.forbid();
    scene.go_on(orders)?;
    screen.title("A pod has a limit");
    scene.limit()?;
    scene.go_on(orders)?;
    screen.title("The daemon ends and starts again, and nobody notices");
    scene.restart();
    screen.title("What leads the packets");
    scene.show_kernel();
    if keep {
        scene.stay(orders);
    }
    scene.go_on(orders)?;
    screen.title("They go");
    Ok(scene.delete())
}

/// Fields are dropped in this order: pods before the world they are in, and cgroups after whoever was in them.
struct Scene {
    pods: Vec<Member>,
    cluster: Cluster,
    /// Whose connections a node's daemon leads: each has a cgroup of its own.
    threads: [Threads; 2],
    servers: BTreeSet<SocketAddr>,
    screen: Screen,
    mode: Mode,
    faults: Vec<String>,
}

impl Scene {
    fn build(screen: Screen, mode: Mode) -> Result<Scene, End> {
        let step = screen.step(format!("two nodes boot: {INSTANCE_TYPE}"));
        let threads = [Threads::new(), Threads::new()];
        let mut config = config();
        config.instance_types.push(InstanceType {
            id: INSTANCE_TYPE.into(),
            eni_quantity: 4,
            eni_private_ip_address_quantity: 6,
            eni_ipv6_address_quantity: 6,
            eni_total_quantity: 4,
        });
        let mut world = World::new(config);
        for n in 1..=2 {
            world.add_node(world::instance(&format!("i-{n}"), INSTANCE_TYPE));
        }
        let mut cluster = Cluster::over(world);
        step.done("");
        cluster.kube.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}}));
        let step = screen.step("terwayd starts on both");
        for (n, threads) in threads.iter().enumerate() {
            let mut over = mode.settings();
            for (key, value) in
                [("ebpf_services", json!(true)), ("cgroup_root", json!(threads.path())), ("ip_cooldown", json!("0s"))]
            {
                over[key] = value;
            }
            cluster.configure(n, &over);
            cluster.start(n);
        }
        for n in 0..2 {
            cluster.wait_ready(n);
            step.tick(true);
        }
        step.done("");
        Ok(Scene { pods: Vec::new(), cluster, threads, servers: BTreeSet::new(), screen, mode, faults: Vec::new() })
    }

    fn go_on(&self, orders: &Orders) -> Result<(), End> {
        if orders.interrupted() { Err(End::Interrupted) } else { Ok(()) }
    }

    fn pod(&self, name: &str) -> &Member {
        self.pods.iter().find(|pod| pod.sandbox.pod.name == name).expect("it was added")
    }

    // They come

    fn add(&mut self) -> Result<(), End> {
        let step = self.screen.step("ADD");
        for (n, name, app) in PODS {
            let mut pod = kube::pod("default", name, &node_name(n));
            pod["metadata"]["labels"] = json!({"app": app});
            self.cluster.kube.put(pod);
            let mut member = self.cluster.sandbox(n, PodName::new("default", name));
            if self.mode == Mode::Ipvlan {
                member.sandbox.conf = conf(&json!({"eniip_virtual_type": "IPVlan"})).to_string();
            }
            self.cluster.wire(&mut member);
            step.tick(true);
            let ips: Vec<Value> = member.ips.iter().map(|ip| json!({"ip": ip})).collect();
            let status = json!({"status": {"phase": "Running", "podIP": member.ip, "podIPs": ips}});
            self.cluster.kube.amend("Pod", "default", name, &status);
            self.pods.push(member);
        }
        step.done("");
        match self.pods.iter().find(|pod| !self.is_of_its_mode(pod)) {
            None => Ok(()),
            Some(pod) => Err(End::Failed(format!("{} is not wired by {}", pod.sandbox.pod, self.mode.name()))),
        }
    }

    fn is_of_its_mode(&self, pod: &Member) -> bool {
        let link = pod.pod.sh("ip -d -o link show eth0");
        match self.mode {
            Mode::PolicyRoute => link.contains(" veth "),
            Mode::Ipvlan => link.contains(" ipvlan "),
            Mode::Exclusive => link.contains("alias terway-eni "),
        }
    }

    fn show_pods(&self) {
        let map = map(&self.cluster, self.pods.iter());
        let mut table = Table::new([
            Cell::left("pod"),
            Cell::left("node"),
            Cell::left("address"),
            Cell::left("ENI"),
            Cell::left("its eth0"),
            Cell::right("ADD"),
        ]);
        let what = match self.mode {
            Mode::PolicyRoute => "a veth",
            Mode::Ipvlan => "a slave of the ENI",
            Mode::Exclusive => "the ENI itself",
        };
        for member in &self.pods {
            let name = &member.sandbox.pod.name;
            let has = |eni: &&report::Eni| eni.pods.iter().any(|(pod, _)| pod == name);
            let eni = map.iter().flat_map(|node| &node.enis).find(has).map_or("", |eni| &eni.id);
            let took = Cell::figure(!eni.is_empty(), &millis(member.took));
            table.row(
                [name.as_str(), &node_name(member.node), &member.ip, eni, what]
                    .map(Cell::left)
                    .into_iter()
                    .chain([took])
                    .collect(),
            );
        }
        self.screen.line("");
        self.screen.table(&table);
        let note = "  An ADD that finds nothing idle waits for the cloud.";
        self.screen.line(&self.screen.paint(Tone::Faint, note));
        self.screen.map(map);
    }

    // They talk

    fn talk(&mut self) {
        let step = self.screen.step("ICMP, TCP and UDP on every path");
        // A worker of the kernel carries ARP from slave to slave: it comes last where daemons keep the one CPU of a guest busy.
        if self.mode == Mode::Ipvlan {
            within(SOON, || self.pod("client").pod.ping(&self.pod("web-1").ip).is_some());
        }
        let trials = self.trials();
        let faults: Vec<String> = trials.iter().filter_map(Trial::fault).collect();
        if faults.is_empty() {
            step.done(&format!("{} paths", trials.len()))
        } else {
            step.failed("")
        }
        self.screen.line("");
        self.screen.table(&exclusive::table("from → to", &trials));
        self.faults.extend(faults);
    }

    fn trials(&self) -> Vec<Trial> {
        let [client, web, _, far] = &self.pods[..] else { unreachable!("there are four") };
        let (node, outside) = (self.cluster.node(0), self.cluster.world.fabric.outside());
        let addr = node.addr.to_string();
        let at = format!("0.0.0.0:{}", exclusive::PORT);
        let [at_client, at_web, at_far] = [client, web, far].map(|pod| (pod.pod.tcp_echo(&at), pod.pod.udp_echo(&at)));
        let at_node = (node.tcp_echo(&at), node.udp_echo(&at));
        let at_outside = (outside.tcp_echo(&at), outside.udp_echo(&at));
        vec![
            direct("pod → pod of its node", &client.pod, &web.ip, &client.ip, &at_web.0),
            direct("pod → pod of another node", &client.pod, &far.ip, &client.ip, &at_far.0),
            direct("pod of another node → pod", &far.pod, &client.ip, &far.ip, &at_client.0),
            direct("pod → its node", &client.pod, &addr, &client.ip, &at_node.0),
            direct("node → its pod", &node.node, &client.ip, &addr, &at_client.0),
            direct("pod → outside the VPC", &client.pod, OUTSIDE, &client.ip, &at_outside.0),
            direct("outside → pod", outside, &client.ip, OUTSIDE, &at_client.0),
        ]
    }

    // A Service

    fn lead(&mut self) {
        let step = self.screen.step("a Service and its two endpoints");
        self.servers = ["web-1", "web-2"].map(|name| services::serve(self.pod(name))).into();
        services::publish(&self.cluster.kube, "web", SERVICE, None, &self.servers);
        let service = format!("{SERVICE}:80");
        let all = |name: &str| self.led(name, &service).servers == self.servers;
        let good = within(SOON, || all("client") && all("web-2"));
        if good {
            step.done(SERVICE)
        } else {
            step.failed(SERVICE)
        }
        let mut table =
            Table::new([Cell::left("who"), Cell::left("connects to"), Cell::left("reaches"), Cell::right("takes")]);
        for name in ["client", "web-1", "web-2"] {
            let seen = self.led(name, &service);
            let good = seen.servers == self.servers && seen.errors.is_empty();
            let words = if good { "both pods".to_owned() } else { seen.words() };
            if !good {
                self.faults.push(format!("{name} to the Service: {words}"));
            }
            let took = Cell::right(micros(seen.took));
            table.row(vec![Cell::left(name), Cell::left(&service), Cell::verdict(good, &words), took]);
        }
        self.screen.line("");
        self.screen.table(&table);
    }

    /// Where connections of a pod lead, made by a thread of its node's cgroup.
    fn led(&self, name: &str, to: &str) -> Seen {
        let member = self.pod(name);
        member.pod.run(|| Seen::of(&self.threads[member.node], to))
    }

    // A policy

    fn forbid(&mut self) {
        let before = ["client", "other", "web-2"].map(|name| self.reaches(name, "web-1"));
        let step = self.screen.step("a NetworkPolicy: to web only from client");
        self.cluster.kube.put(json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"namespace": "default", "name": "web"},
            "spec": {
                "podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"],
                "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "client"}}}]}],
            },
        }));
        let good = within(SOON, || !self.reaches("other", "web-1") && !self.reaches("other", "web-2"));
        if good {
            step.done("in force on both nodes")
        } else {
            step.failed("");
            self.faults.push("the policy does not keep other from web-1 and web-2".into());
        }
        let node = node_name(0);
        let mut table = Table::new([Cell::left("to web-1 from"), Cell::left("before"), Cell::left("with the policy")]);
        for ((name, may), before) in [("client", true), ("other", false), ("web-2", false)].into_iter().zip(before) {
            let now = self.reaches(name, "web-1");
            let words = |reaches: bool| if reaches { "reached" } else { "dropped" };
            table.row(vec![
                Cell::left(name),
                Cell::verdict(before, words(before)),
                Cell::verdict(now == may, words(now)),
            ]);
            if !before || now != may {
                self.faults.push(format!("{name} to web-1: {} before, {} with the policy", words(before), words(now)));
            }
        }
        let probed = within(SOON, || self.connects(&self.cluster.node(0).node, "web-1"));
        table.row(vec![Cell::left(&node), Cell::left("reached"), Cell::verdict(probed, "reached: probes always may")]);
        if !probed {
            self.faults.push("the node does not reach its own pod".into());
        }
        self.screen.line("");
        self.screen.table(&table);
        let line = format!("terway-cli policy why default/other {}:8080", self.pod("web-1").ip);
        // It ends with 1 where the answer is no.
        let said = self.cluster.node(0).sh(&format!("/opt/terway/{line}; true"));
        self.screen.line(&format!("  {}", self.screen.paint(Tone::Faint, said.lines().next().unwrap_or_default())));
        self.screen.text(&line, &said);
    }

    fn reaches(&self, from: &str, to: &str) -> bool {
        self.connects(&self.pod(from).pod, to)
    }

    fn connects(&self, from: &impl Place, to: &str) -> bool {
        let at: SocketAddr = format!("{}:8080", self.pod(to).ip).parse().expect("an address");
        from.run(|| TcpStream::connect_timeout(&at, DROPPED).is_ok())
    }

    // A limit

    fn limit(&mut self) -> Result<(), End> {
        let faults = bandwidth::show(&self.screen, &self.cluster, self.pod("client"), self.pod("other"))?;
        if faults > 0 {
            self.faults.push("client's limit does not hold".into());
        }
        let step = self.screen.step("the annotations go");
        bandwidth::lift(&self.cluster, self.pod("client"));
        let free = within(SOON, || !self.pod("client").pod.sh("tc qdisc show").contains("tbf"));
        if free {
            step.done("no limit")
        } else {
            step.failed("the limit stays");
            self.faults.push("client's limit stays when its annotations are gone".into());
        }
        Ok(())
    }

    // A restart

    fn restart(&mut self) {
        let screen = self.screen;
        let mut held = Vec::new();
        let pods = std::mem::take(&mut self.pods);
        let find = |name: &str| pods.iter().find(|pod| pod.sandbox.pod.name == name).expect("it was added");
        let (client, far) = (find("client"), find("web-2"));
        let tally = load::during(&client.pod, &far.pod, &far.ip, || {
            for (what, again) in
                [("terwayd is killed", false), ("it starts", true), ("it ends in order", false), ("and starts", true)]
            {
                let step = screen.step(what);
                match (again, what.contains("killed")) {
                    (true, _) => self.cluster.start_ready(0),
                    (_, true) => self.cluster.kill(0),
                    _ => self.cluster.stop(0),
                }
                thread::sleep(Duration::from_millis(300));
                step.done("");
                held.push((what, self.holds(&pods)));
            }
        });
        self.pods = pods;
        self.tell_of_restart(tally, held);
    }

    /// What must go on whatever becomes of the daemon: the Service, what the policy allows, and what it forbids.
    fn holds(&self, pods: &[Member]) -> [bool; 3] {
        let find = |name: &str| pods.iter().find(|pod| pod.sandbox.pod.name == name).expect("it was added");
        let at: SocketAddr = format!("{}:8080", find("web-1").ip).parse().expect("an address");
        let reaches = |name: &str| find(name).pod.run(|| TcpStream::connect_timeout(&at, DROPPED).is_ok());
        let service = format!("{SERVICE}:80");
        let led = find("client").pod.run(|| Seen::of(&self.threads[0], &service));
        [led.servers == self.servers && led.errors.is_empty(), reaches("client"), !reaches("other")]
    }

    fn tell_of_restart(&mut self, tally: Tally, held: Vec<(&str, [bool; 3])>) {
        let mut table = Table::new([
            Cell::left("on node-1"),
            Cell::left("the Service"),
            Cell::left("what the policy allows"),
            Cell::left("what it forbids"),
        ]);
        for (what, [service, allowed, forbidden]) in held {
            table.row(vec![
                Cell::left(what),
                Cell::verdict(service, if service { "leads to both" } else { "does not lead" }),
                Cell::verdict(allowed, if allowed { "passes" } else { "is dropped" }),
                Cell::verdict(forbidden, if forbidden { "is dropped" } else { "passes" }),
            ]);
            if !(service && allowed && forbidden) {
                self.faults.push(format!("{what}: Service, allowed, forbidden: {service}, {allowed}, {forbidden}"));
            }
        }
        self.screen.line("");
        self.screen.table(&table);
        let mut table =
            Table::new([Cell::left("client → web-2 meanwhile"), Cell::right("there and back"), Cell::left("lost")]);
        let lost = if tally.lost == 0 { "none".to_owned() } else { tally.lost.to_string() };
        let datagrams = Cell::right(format!("{} datagrams", tally.sent));
        table.row(vec![Cell::left("UDP"), datagrams, Cell::verdict(tally.lost == 0, &lost)]);
        let bytes = Cell::right(format!("{:.1} MB", tally.tcp as f64 / 1e6));
        table.row(vec![Cell::left("one TCP connection"), bytes, Cell::verdict(tally.tcp > 0, "it lives")]);
        self.screen.table(&table);
        if tally.lost > 0 {
            self.faults
                .push(format!("{} of {} datagrams are lost while the daemon starts again", tally.lost, tally.sent));
        }
    }

    // The kernel

    fn show_kernel(&self) {
        let [of_node, of_pod] = self.mode.looks();
        let client = self.pod("client");
        for line in ["terway-cli status", "terway-cli plan default/client"] {
            let said = self.cluster.node(0).sh(&format!("/opt/terway/{line}; true"));
            self.screen.text(&format!("node-1$ {line}"), &said);
        }
        for (who, lines) in [("node-1", of_node), ("client", of_pod)] {
            for line in lines {
                let said = if who == "client" { client.pod.sh(line) } else { self.cluster.node(0).sh(line) };
                self.screen.text(&format!("{who}$ {line}"), &said);
            }
        }
        self.cluster.node(0).sh("ip rule").lines().for_each(|line| self.screen.aside(line));
        self.screen.aside("Routes, filters and the rest stand in the report; docs/ has a page that names each step.");
    }

    fn stay(&self, orders: &Orders) {
        self.screen.title("The world stays up; this steps into it:");
        for n in 0..2 {
            self.screen.line(&format!("  {:<8} {}", node_name(n), self.cluster.node(n).nsenter()));
        }
        for member in &self.pods {
            self.screen.line(&format!("  {:<8} {}", member.sandbox.pod.name, member.pod.nsenter()));
        }
        self.screen.line("\n  Enter or Ctrl-C takes it down.");
        orders.wait();
    }

    // They go

    fn delete(mut self) -> Vec<String> {
        let step = self.screen.step("DEL");
        for member in std::mem::take(&mut self.pods) {
            self.cluster.del(member);
            step.tick(true);
        }
        step.done("");
        let step = self.screen.step("nothing is left");
        let rest = |n: usize| {
            self.cluster
                .node(n)
                .sh("ip route show table 1000 2>/dev/null; ip -o link | grep -E 'alias terway( |-eni )'; true")
        };
        if within(SOON, || (0..2).all(|n| rest(n).is_empty())) {
            step.done("of pods, on either node");
        } else {
            step.failed("");
            self.faults.push(format!("left of pods: {}{}", rest(0), rest(1)));
        }
        std::mem::take(&mut self.faults)
    }
}

/// Nodes, ENIs and pods, as the cloud and the plugin say.
pub fn map<'a>(cluster: &Cluster, pods: impl Iterator<Item = &'a Member>) -> Vec<report::Node> {
    let pods: Vec<&Member> = pods.collect();
    let node = |n: usize| {
        let ecs = cluster.node(n);
        let eni = |eni: EniView| {
            let has = |member: &&&Member| {
                let mut v4 = eni.all_v4();
                member.node == n && v4.any(|addr| addr.to_string() == member.ip)
            };
            let pods: Vec<(String, String)> = pods
                .iter()
                .filter(|member| eni.kind == EniKind::Secondary && has(member))
                .map(|member| (member.sandbox.pod.name.clone(), member.ip.clone()))
                .collect();
            let link = match (ecs.ifname(&eni.mac.to_string()), pods.first()) {
                (Some(link), _) if eni.kind == EniKind::Primary => format!("{link}: the node’s own"),
                (Some(link), _) => link,
                (None, Some((pod, _))) => format!("eth0 of {pod}"),
                (None, None) => String::from("–"),
            };
            report::Eni { id: eni.id, link, vswitch: eni.vswitch, pods }
        };
        let mut enis: Vec<_> = cluster.world.cloud.enis_of(&ecs.id).into_iter().map(eni).collect();
        enis.sort_by(|a, b| a.link.cmp(&b.link));
        report::Node { name: node_name(n), about: format!("{}, {}", ecs.id, ecs.addr), enis }
    };
    (0..cluster.world.nodes.len()).map(node).collect()
}
