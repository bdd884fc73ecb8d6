//! The story that the demo tells: a world, two daemons, pods that come, talk and go, and what is left of them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use serde_json::{Value, json};

use crate::bandwidth;
use crate::exclusive;
use crate::heirs;
use terway::ip::Family;

use crate::left::{self, Finding, Kernel};
use crate::modes::{self, Mode};
use crate::orders::Orders;
use crate::outage;
use crate::paths::{self, PORT, Spot};
use crate::repairs;
use crate::screen::{Cell, Screen, Table, Tone, millis, seconds};
use crate::services;
use crate::settings;
use crate::sim::cloud::{Config, Delays, EniView, InstanceSpec, InstanceType};
use crate::sim::cluster::{Cluster, Member, SOON, node_name};
use crate::sim::fabric::{Drops, OUTSIDE, OUTSIDE_V6};
use crate::sim::traffic::Place;
use crate::sim::world::{self, MORE_PODS, NODES, SERVICE_CIDR, World};

/// Two secondary ENIs with six addresses each, which makes twelve: enough for eight pods and a warm pool, too few on one ENI.
const INSTANCE_TYPE: &str = "ecs.g7.large";
const PODS_PER_NODE: usize = 8;
/// What the links of deleted pods, and anything else that lags, may take to go.
const SETTLE: Duration = Duration::from_secs(5);
/// Pods of the first node are a1, a2 and so on.
const LETTERS: [&str; 2] = ["a", "b"];
/// The Services' prefix in each family.
const SERVICES: [&str; 2] = [SERVICE_CIDR, "fd21::/112"];
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
const LOG_TAIL: usize = 25;
/// Faults of one kind that are worth reading.
const ENOUGH: usize = 8;

/// Why the story ended early.
pub enum End {
    Interrupted,
    Failed(String),
}

/// Fields are dropped in this order: pods before the world they are in.
pub struct Story {
    guests: Vec<Guest>,
    before: Vec<Kernel>,
    cluster: Option<Cluster>,
    screen: Screen,
    orders: Orders,
    faults: usize,
    start: Instant,
}

/// A pod, and what the cloud says of the address that it got.
struct Guest {
    name: String,
    member: Member,
    eni: Option<(EniView, String)>,
    complaint: Option<String>,
}

impl Guest {
    fn row(&self) -> Vec<Cell> {
        let (eni, link, vswitch) = match &self.eni {
            Some((eni, link)) => (eni.id.as_str(), link.as_str(), eni.vswitch.as_str()),
            None => Default::default(),
        };
        let mut row: Vec<Cell> = [&self.name, &self.member.ips.join(" "), eni, link, vswitch].map(Cell::left).into();
        row.push(Cell::figure(self.complaint.is_none(), &millis(self.member.took)));
        row
    }
}

impl Story {
    pub fn new(screen: Screen, orders: Orders) -> Story {
        Story {
            guests: Vec::new(),
            before: Vec::new(),
            cluster: None,
            screen,
            orders,
            faults: 0,
            start: Instant::now(),
        }
    }

    pub fn tell(&mut self, mode: Mode, keep: bool) -> Result<(), End> {
        match mode {
            Mode::PolicyRoute => self.tell_all(keep),
            mode => self.tell_of(mode, keep),
        }
    }

    /// What every mode does alike.
    fn tell_of(&mut self, mode: Mode, keep: bool) -> Result<(), End> {
        let faults = modes::show(self.screen, mode, &self.orders, keep)?;
        self.faults += faults.len();
        self.explain(faults);
        Ok(())
    }

    fn tell_all(&mut self, keep: bool) -> Result<(), End> {
        self.screen.title("A VPC with two nodes, eight pods each");
        self.build()?;
        self.start_daemons()?;
        self.screen.title("Pods come");
        for n in 0..LETTERS.len() {
            self.add(n)?;
        }
        self.show_pods();
        self.show_nodes();
        self.screen.title("A pod is limited");
        self.limit()?;
        self.screen.title("Pods talk");
        self.faults += self.talk(keep)?;
        self.screen.title("The configuration changes while they run");
        self.reconfigure();
        self.screen.title("Somebody flushes what makes their network");
        self.repair();
        self.screen.title("A node where each pod has an ENI to itself");
        self.alone();
        self.screen.title("Pods go");
        let had: Vec<BTreeSet<String>> = (0..LETTERS.len()).map(|n| self.addresses(n)).collect();
        for n in 0..LETTERS.len() {
            self.delete(n)?;
        }
        self.look_what_is_left(&had)?;
        self.screen.title("A node that the old Terway ran");
        let faults = heirs::show(self.screen);
        self.faults += faults.len();
        self.explain(faults);
        self.screen.title("Services without kube-proxy");
        let faults = services::show(self.screen);
        self.faults += faults.len();
        self.explain(faults);
        self.tell_of(Mode::PolicyRoute, false)?;
        self.screen.title("The cloud dies");
        let faults = outage::pod_in_outage(self.screen, self.cluster(), 0);
        self.faults += faults.len();
        self.explain(faults);
        Ok(())
    }

    fn reconfigure(&mut self) {
        let other = self.of(1).next().map_or_else(String::new, |guest| guest.member.ip.clone());
        let Some(pod) = self.of(0).next().map(|guest| &guest.member.pod) else { return };
        let faults = settings::show(self.screen, self.cluster(), pod, &other);
        self.faults += faults.len();
        self.explain(faults);
    }

    pub fn faults(&self) -> usize {
        self.faults
    }

    fn cluster(&self) -> &Cluster {
        self.cluster.as_ref().expect("it was built")
    }

    fn go_on(&self) -> Result<(), End> {
        if self.orders.interrupted() { Err(End::Interrupted) } else { Ok(()) }
    }

    // The world

    fn build(&mut self) -> Result<(), End> {
        let config = config();
        let networks = format!("{}: router, ECS API, metadata", config.vpc_cidr);
        let step = self.screen.step(format!("VPC {networks}"));
        let mut world = World::new(config);
        step.done("");
        for n in 0..LETTERS.len() {
            self.go_on()?;
            let step = self.screen.step(format!("{} boots: {INSTANCE_TYPE}", node_name(n)));
            let addr = world.add_node(instance(n)).addr;
            world.speak_v6(n);
            step.done(&addr.to_string());
        }
        let step = self.screen.step("Kubernetes API, binaries, configuration");
        let cluster = self.cluster.insert(Cluster::over(world));
        for n in 0..LETTERS.len() {
            cluster.configure(
                n,
                &json!({"ip_stack": "dual", "service_cidr": SERVICES.join(","), "min_pool_size": 2, "max_pool_size": 6,
                    "min_eni": 2, "eni_selection_policy": "least_ips"}),
            );
        }
        step.done("");
        Ok(())
    }

    /// Both at once; each makes its ENIs and fills its pool.
    fn start_daemons(&mut self) -> Result<(), End> {
        let step = self.screen.step("terwayd starts, makes ENIs, warms its pool");
        let cluster = self.cluster.as_mut().expect("it was built");
        (0..LETTERS.len()).for_each(|n| cluster.start(n));
        let (mut enis, mut idle) = (0, 0);
        for n in 0..LETTERS.len() {
            let start = Instant::now();
            let pool = loop {
                if self.orders.interrupted() {
                    return Err(End::Interrupted);
                }
                if !cluster.daemon(n).is_running() || start.elapsed() > SOON {
                    return Err(End::Failed(format!("terwayd of {} does not serve", node_name(n))));
                }
                match warm(cluster, n) {
                    Some(pool) => break pool,
                    None => thread::sleep(Duration::from_millis(10)),
                }
            };
            step.tick(true);
            enis += pool["enis"].as_array().map_or(0, Vec::len);
            idle += pool["idle"].as_u64().unwrap_or_default();
        }
        step.done(&format!("{enis} ENIs, {idle} pairs"));
        self.before = (0..LETTERS.len()).map(|n| Kernel::of(self.cluster().node(n))).collect();
        Ok(())
    }

    // ADD

    fn add(&mut self, n: usize) -> Result<(), End> {
        let screen = self.screen;
        let step = screen.step(format!("ADD on {}", node_name(n)));
        for i in 1..=PODS_PER_NODE {
            self.go_on()?;
            let guest = self.welcome(n, format!("{}{i}", LETTERS[n]));
            step.tick(guest.complaint.is_none());
            self.faults += usize::from(guest.complaint.is_some());
            self.guests.push(guest);
        }
        let mut times: Vec<Duration> = self.of(n).map(|guest| guest.member.took).collect();
        times.sort();
        step.done(&format!("median {}", millis(times[times.len() / 2])));
        Ok(())
    }

    fn welcome(&self, n: usize, name: String) -> Guest {
        let mut member = self.cluster().schedule(n, &name);
        let answer = self.cluster().call_for(&member, "ADD");
        member.took = answer.took;
        if answer.code != Some(0) {
            let complaint = serde_json::from_str(&answer.stdout).map_or(answer.stderr, |e: Value| e["msg"].to_string());
            return Guest { name, member, eni: None, complaint: Some(complaint) };
        }
        let result = answer.json();
        let addresses = result["ips"].as_array().into_iter().flatten().filter_map(|ip| ip["address"].as_str());
        member.ips = addresses.filter_map(|a| a.split('/').next().map(String::from)).collect();
        member.ip = member.ips.first().cloned().unwrap_or_default();
        let eni = self.owner(n, &member.ips);
        let pair = member.ips.join(",");
        let complaint = eni.is_none().then(|| format!("no ENI of {} has the pair {pair}", node_name(n)));
        Guest { name, member, eni, complaint }
    }

    /// The ENI of this node that has the pair according to the cloud, and its link.
    fn owner(&self, n: usize, ips: &[String]) -> Option<(EniView, String)> {
        let [v4, v6] = ips else { return None };
        let (v4, v6) = (v4.parse().ok()?, v6.parse().ok()?);
        let enis = self.cluster().world.cloud.enis_of(&self.cluster().node(n).id);
        let eni = enis.into_iter().find(|eni| eni.v4.contains(&v4) && eni.v6.contains(&v6))?;
        let link = self.cluster().node(n).ifname(&eni.mac.to_string())?;
        Some((eni, link))
    }

    fn of(&self, n: usize) -> impl Iterator<Item = &Guest> {
        self.guests.iter().filter(move |guest| guest.member.node == n)
    }

    fn addresses(&self, n: usize) -> BTreeSet<String> {
        self.of(n).filter(|guest| !guest.member.ip.is_empty()).map(|guest| guest.member.ips.join(",")).collect()
    }

    fn show_pods(&self) {
        let mut table = Table::new([
            Cell::left("pod"),
            Cell::left("addresses"),
            Cell::left("ENI"),
            Cell::left("link"),
            Cell::left("vSwitch"),
            Cell::right("ADD"),
        ]);
        for (n, ecs) in self.cluster().world.nodes.iter().enumerate() {
            table.section(format!("{}: {}, {INSTANCE_TYPE}, {}", node_name(n), ecs.id, ecs.addr));
            self.of(n).for_each(|guest| table.row(guest.row()));
        }
        self.screen.line("");
        self.screen.table(&table);
        self.screen.map(modes::map(self.cluster(), self.guests.iter().map(|guest| &guest.member)));
        let complaints = self.guests.iter().filter_map(|g| Some(format!("{}: {}", g.name, g.complaint.as_ref()?)));
        self.screen.line(&self.screen.paint(Tone::Faint, "  An ADD that finds no idle address waits for the cloud."));
        self.explain(complaints.collect());
    }

    /// Says what is wrong, at a length that can be read.
    fn explain(&self, faults: Vec<String>) {
        for fault in faults.iter().take(ENOUGH) {
            self.screen.line(&format!("  {} {}", self.screen.paint(Tone::Bad, "✗"), fault.trim_end()));
        }
        if faults.len() > ENOUGH {
            self.screen.line(&format!("    and {} more", faults.len() - ENOUGH));
        }
    }

    // Bandwidth

    fn limit(&mut self) -> Result<(), End> {
        let pods: Vec<&Member> =
            self.of(0).filter(|guest| guest.complaint.is_none()).map(|guest| &guest.member).collect();
        let [pod, other, ..] = pods[..] else {
            return Err(End::Failed("there are no two pods to flood each other".into()));
        };
        self.faults += bandwidth::show(&self.screen, self.cluster(), pod, other)?;
        Ok(())
    }

    // Traffic

    /// Tries every path and shows the matrix; how many pairs failed. With `keep`, servers and Services stay for the person too.
    fn talk(&self, keep: bool) -> Result<usize, End> {
        let step = self.screen.step("a TCP server everywhere, a Service per pod");
        let families = FAMILIES.map(|family| self.spots(family));
        for spots in &families {
            let services = paths::services(spots);
            for node in &self.cluster().world.nodes {
                node.sh(&format!("nft -f - <<'END'\n{services}END"));
            }
        }
        step.done(&format!("Services {}", SERVICES.join(", ")));
        let mut count = 0;
        for (spots, name) in families.iter().zip(["IPv4", "IPv6"]) {
            count += self.try_paths(spots, name)?;
        }
        for note in [
            "Medians of the pairs that start on the node.",
            "TCP: connect, send a word, hear it again; the server sees the true sender.",
            "Services: rules of nftables stand in for kube-proxy.",
        ] {
            self.screen.line(&self.screen.paint(Tone::Faint, &format!("  {note}")));
        }
        let refused = self.refused();
        count += usize::from(refused.is_some());
        self.explain(refused.into_iter().collect());
        if keep {
            self.stay();
        }
        Ok(count)
    }

    /// Every path in one family; how many pairs failed.
    fn try_paths(&self, spots: &[Spot], family: &str) -> Result<usize, End> {
        let pairs = paths::pairs(spots);
        let step = self.screen.step(format!("ICMP and TCP on every path, {family}"));
        let mut trials = Vec::new();
        for (i, pair) in pairs.iter().enumerate() {
            self.go_on()?;
            step.so_far(&format!("{i}/{} {}", pairs.len(), pair.label()));
            trials.push(pair.run());
        }
        let faults = paths::faults(&trials, &[node_name(0), node_name(1)]);
        let detail = format!("{} pairs", pairs.len());
        if faults.is_empty() {
            step.done(&detail)
        } else {
            step.failed(&detail)
        }
        self.screen.line("");
        self.screen.table(&paths::table(&trials));
        let count = faults.len();
        self.explain(faults);
        Ok(count)
    }

    /// Everyone who can be talked to in this family: pods that got their addresses, nodes, a host beyond the VPC.
    fn spots(&self, family: Family) -> Vec<Spot<'_>> {
        let at = family as usize;
        let services: IpNet = SERVICES[at].parse().expect("a literal");
        // The lowest belong to the API server and to DNS.
        let pods = self.guests.iter().zip(services.hosts().skip(10)).filter_map(|(guest, service)| {
            let (eni, _) = guest.eni.as_ref()?;
            let Member { node, ips, pod, .. } = &guest.member;
            Some(Spot::pod(&guest.name, ips.get(at)?, *node, &eni.id, service, pod))
        });
        let mut spots: Vec<Spot> = pods.collect();
        for (n, ecs) in self.cluster().world.nodes.iter().enumerate() {
            let v6 = ecs.addr6.map(IpAddr::V6).expect("it speaks IPv6");
            let addr = if family == Family::V4 { IpAddr::V4(ecs.addr) } else { v6 };
            spots.push(Spot::node(&node_name(n), &addr.to_string(), n, &ecs.node));
        }
        let outside = [OUTSIDE, OUTSIDE_V6][at];
        spots.push(Spot::outside(outside, self.cluster().world.fabric.outside()));
        spots
    }

    /// The VPC refuses packets with a source that is not their ENI's; nothing that talks properly sends any.
    fn refused(&self) -> Option<String> {
        let drops = self.cluster().world.fabric.drops();
        (drops != Drops::default()).then(|| format!("the VPC refused packets: {drops:?}"))
    }

    fn stay(&self) {
        self.screen.title("The world stays up; this steps into it:");
        let say = |name: &str, line: &str| self.screen.line(&format!("  {name:<8} {line}"));
        for (n, ecs) in self.cluster().world.nodes.iter().enumerate() {
            say(&node_name(n), &ecs.nsenter());
        }
        for guest in &self.guests {
            say(&guest.name, &guest.member.pod.nsenter());
        }
        let fabric = &self.cluster().world.fabric;
        for (name, ns) in [("router", fabric.router()), ("outside", fabric.outside())] {
            say(name, &format!("nsenter --net={}", ns.path().display()));
        }
        self.screen.line("");
        say("node:", "/opt/terway/terway-cli pods; ip rule; ip route show table 1000");
        say("", "less /var/log/terwayd.log");
        if let Some(guest) = self.guests.last() {
            say("pod:", &format!("ping {0}; echo hello | busybox nc {0} {PORT}", guest.member.ip));
        }
        self.screen.line("\n  Enter or Ctrl-C takes it down.");
        if let Some(keeper) = rustix::process::getppid() {
            self.screen.line(&format!("  From elsewhere: kill {}", keeper.as_raw_nonzero()));
        }
        self.orders.wait();
    }

    // DEL

    fn delete(&mut self, n: usize) -> Result<(), End> {
        let screen = self.screen;
        let step = screen.step(format!("DEL on {}", node_name(n)));
        let (leaving, staying): (Vec<Guest>, Vec<Guest>) =
            std::mem::take(&mut self.guests).into_iter().partition(|guest| guest.member.node == n);
        self.guests = staying;
        let mut times = Vec::new();
        for guest in leaving {
            self.go_on()?;
            let answer = self.cluster().call_for(&guest.member, "DEL");
            let good = answer.code == Some(0);
            step.tick(good);
            self.faults += usize::from(!good);
            times.push(answer.took);
            let pod = &guest.member.sandbox.pod;
            self.cluster().kube.delete("Pod", &pod.namespace, &pod.name);
        }
        times.sort();
        step.done(&format!("median {}", millis(times[times.len() / 2])));
        Ok(())
    }

    // The nodes in Kubernetes

    fn show_nodes(&mut self) {
        let show = |n| outage::show_node(self.screen, self.cluster(), n, "12");
        let faults: Vec<String> = (0..LETTERS.len()).flat_map(show).collect();
        self.faults += faults.len();
        self.explain(faults);
    }

    // Repair

    fn repair(&mut self) {
        let faults = repairs::show(self.screen, self.cluster(), 0, &self.guests[0].member.pod);
        self.faults += faults.len();
        self.explain(faults);
    }

    // An ENI per pod

    fn alone(&mut self) {
        let spec = instance(LETTERS.len());
        let (screen, cluster) = (self.screen, self.cluster.as_mut().expect("it was built"));
        let faults = exclusive::show(screen, cluster, spec, &self.guests[0].member);
        self.faults += faults.len();
        self.explain(faults);
    }

    // What is left

    fn look_what_is_left(&mut self, had: &[BTreeSet<String>]) -> Result<(), End> {
        let step = self.screen.step("nothing is left");
        let start = Instant::now();
        let found = loop {
            self.go_on()?;
            let found: Vec<Vec<Finding>> =
                (0..had.len()).map(|n| left::look(self.cluster(), n, &self.before[n], &had[n])).collect();
            if found.iter().flatten().all(|finding| finding.wrong.is_empty()) || start.elapsed() > SETTLE {
                break found;
            }
            thread::sleep(Duration::from_millis(50));
        };
        let strays = self.strays();
        let mut wrong: Vec<String> = Vec::new();
        for (n, findings) in found.iter().enumerate() {
            let all = findings.iter().flat_map(|finding| finding.wrong.iter().map(move |line| (finding.what, line)));
            wrong.extend(all.map(|(what, line)| format!("{}: {what}: {line}", node_name(n))));
        }
        wrong.extend(strays);
        if wrong.is_empty() {
            step.done("")
        } else {
            step.failed("")
        }
        self.show_left(&found);
        self.faults += wrong.len();
        self.explain(wrong);
        Ok(())
    }

    /// ENIs that are no node's: made and forgotten.
    fn strays(&self) -> Vec<String> {
        let all = self.cluster().world.cloud.enis().into_iter().filter(|eni| eni.instance.is_none());
        all.map(|eni| format!("ENI {} is attached to nothing", eni.id)).collect()
    }

    fn show_left(&self, found: &[Vec<Finding>]) {
        let mut table = Table::new([Cell::left("after DEL"), Cell::left("node-1"), Cell::left("node-2")]);
        for (i, first) in found[0].iter().enumerate() {
            let verdicts = found.iter().map(|findings| match &findings[i] {
                Finding { wrong, says, .. } if wrong.is_empty() => Cell::verdict(true, says),
                Finding { wrong, .. } => Cell::verdict(false, &format!("{} wrong", wrong.len())),
            });
            table.row([Cell::left(first.what)].into_iter().chain(verdicts).collect());
        }
        self.screen.line("");
        self.screen.table(&table);
    }

    // The end

    pub fn show_logs(&self) {
        let Some(cluster) = &self.cluster else { return };
        for n in 0..LETTERS.len() {
            let log = cluster.log(n);
            let lines: Vec<&str> = log.lines().filter(|line| !line.starts_with("[DEBUG")).collect();
            self.screen.title(&format!("The end of terwayd's log on {}:", node_name(n)));
            for line in &lines[lines.len().saturating_sub(LOG_TAIL)..] {
                self.screen.line(&format!("  {line}"));
            }
        }
    }

    /// Takes everything down, and says how long all of it took.
    pub fn end(mut self) -> String {
        self.screen.line("");
        let step = self.screen.step("the world is taken down");
        self.guests.clear();
        self.cluster = None;
        step.done("");
        seconds(self.start.elapsed())
    }
}

/// The example of Alibaba Cloud's page on planning an ACK cluster: one VPC, a vSwitch for nodes, one for pods.
pub fn config() -> Config {
    let mut config = world::config();
    config.vswitches.retain(|vswitch| vswitch.id != MORE_PODS);
    config.instance_types = vec![InstanceType {
        id: INSTANCE_TYPE.into(),
        eni_quantity: 3,
        eni_private_ip_address_quantity: 6,
        eni_ipv6_address_quantity: 6,
        eni_total_quantity: 3,
    }];
    let millis = Duration::from_millis;
    config.delays = Delays {
        create: millis(100),
        attach: millis(200),
        detach: millis(200),
        delete: millis(100),
        change: millis(50),
    };
    config
}

fn instance(n: usize) -> InstanceSpec {
    InstanceSpec {
        id: format!("i-{}", n + 1),
        instance_type: INSTANCE_TYPE.into(),
        vswitch: NODES.into(),
        security_groups: vec!["sg-sim".into()],
        address: None,
        role: Some("KubernetesWorkerRole".into()),
    }
}

/// The pool of a daemon that serves and has no more to do.
fn warm(cluster: &Cluster, n: usize) -> Option<Value> {
    if cluster.call(n, "STATUS", &Value::Null).code != Some(0) {
        return None;
    }
    let pool = cluster.show(n)["pool"].take();
    let enis = pool["enis"].as_array()?;
    let ready = enis.len() == 2 && enis.iter().all(|eni| eni["state"] == "serving" && !eni["link"].is_null());
    (ready && pool["creating"] == 0 && pool["cloud"]["calls"] == 0).then_some(pool)
}
