//! A small world: a VPC, its cloud, and ECS nodes whose ENIs are real links that come and go as the cloud says.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Deref;
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::{Duration, Instant};

use ipnet::{IpNet, Ipv4Net};

use super::cloud::{self, Cloud, Config, EniView, InstanceSpec, VSwitch};
use super::fabric::{Card, Fabric};
use super::node::Node;
use super::traffic::Place;

/// The metadata service, as every ECS instance knows it.
pub const METADATA: &str = "100.100.100.200:80";
/// The ECS and VPC API, over plain HTTP.
pub const OPENAPI: &str = "100.100.0.10:80";
/// Where a Kubernetes API may listen.
pub const KUBERNETES: &str = "100.100.0.20:6443";
pub const SERVICE_CIDR: &str = "172.21.0.0/20";
/// The vSwitches of [`config`].
pub const NODES: &str = "vsw-node";
pub const PODS: &str = "vsw-pod";
pub const MORE_PODS: &str = "vsw-more-pods";

/// Fields are dropped in this order: no hand is left on the wires when the nodes go, and none when the fabric does.
pub struct World {
    pub cloud: Cloud,
    pub nodes: Vec<Ecs>,
    calm: Calm,
    pub fabric: Arc<Fabric>,
    homes: Arc<Mutex<BTreeMap<String, String>>>,
}

/// An instance: a node that has booted with its primary ENI.
pub struct Ecs {
    pub id: String,
    pub addr: Ipv4Addr,
    /// See [`World::speak_v6`].
    pub addr6: Option<Ipv6Addr>,
    pub node: Node,
}

impl Deref for Ecs {
    type Target = Node;

    fn deref(&self) -> &Node {
        &self.node
    }
}

/// VPC 192.168.0.0/16 with a vSwitch for nodes and two for pods, all in one zone.
pub fn config() -> Config {
    let vswitch = |id: &str, cidr: &str, cidr6: &str| VSwitch {
        id: id.into(),
        vpc: "vpc-sim".into(),
        zone: "cn-hangzhou-h".into(),
        cidr: cidr.parse().expect("a literal"),
        cidr6: Some(cidr6.parse().expect("a literal")),
    };
    Config {
        vpc_cidr: "192.168.0.0/16".parse().expect("a literal"),
        vswitches: vec![
            vswitch(NODES, "192.168.0.0/19", "fd00:0:0:1::/64"),
            vswitch(PODS, "192.168.32.0/19", "fd00:0:0:2::/64"),
            vswitch(MORE_PODS, "192.168.64.0/19", "fd00:0:0:3::/64"),
        ],
        ..Config::default()
    }
}

impl World {
    /// A VPC and its cloud, listening at [`METADATA`] and [`OPENAPI`] for those inside. No node yet.
    pub fn new(config: Config) -> World {
        let v6 = config.vswitches.iter().filter_map(|vswitch| vswitch.cidr6).map(IpNet::V6);
        let vpc: Vec<IpNet> = [IpNet::V4(config.vpc_cidr)].into_iter().chain(v6).collect();
        let (fabric, homes) = (Arc::new(Fabric::new(&vpc)), Arc::default());
        let wires = Wires { fabric: Arc::clone(&fabric), homes: Arc::clone(&homes) };
        give_back(&fabric);
        let cloud = Cloud::start_with(config, Box::new(wires));
        cloud.serve_metadata(fabric.listen(at(METADATA)));
        cloud.serve(fabric.listen(at(OPENAPI)));
        let calm = Calm(Arc::downgrade(&fabric));
        World { cloud, nodes: Vec::new(), calm, fabric, homes }
    }

    /// The world with so many nodes of this instance type, `i-1` and so on.
    pub fn with_nodes(config: Config, count: usize, instance_type: &str) -> World {
        let start = Instant::now();
        let mut world = World::new(config);
        for n in 1..=count {
            world.add_node(instance(&format!("i-{n}"), instance_type));
        }
        eprintln!("a world of {count} nodes stands after {:?}", start.elapsed());
        world
    }

    /// Starts an instance and waits until it has booted.
    pub fn add_node(&mut self, spec: InstanceSpec) -> &Ecs {
        let (id, node) = (spec.id.clone(), Node::new(&spec.id));
        self.homes.lock().expect("nobody panicked with it").insert(id.clone(), node.ns().name().into());
        let eni = self.cloud.add_instance(spec);
        let addr = Ipv4Net::new(eni.v4[0], eni.cidr.prefix_len()).expect("the vSwitch's own length");
        node.dhcp(addr.into(), eni.gateway.into());
        self.fabric.settle();
        self.nodes.push(Ecs { id, addr: eni.v4[0], addr6: None, node });
        self.nodes.last().expect("it was just put there")
    }

    /// Gives the primary ENI of a node an IPv6 address, and does what its distribution then does.
    pub fn speak_v6(&mut self, n: usize) {
        let ecs = &mut self.nodes[n];
        let primary = |eni: &EniView| eni.v4[0] == ecs.addr;
        let eni = self.cloud.enis_of(&ecs.id).into_iter().find(primary).expect("every instance has one");
        let params = [("NetworkInterfaceId", eni.id.as_str()), ("Ipv6AddressCount", "1")];
        self.cloud.operate("AssignIpv6Addresses", &params).expect("the vSwitch speaks IPv6");
        let addr = self.cloud.eni(&eni.id).expect("it is there").v6[0];
        ecs.addr6 = Some(addr);
        let gateway = eni.gateway6.expect("the vSwitch speaks IPv6");
        let route = format!("ip -6 route add default via {gateway} dev eth0 onlink");
        ecs.node.sh(&format!("ip addr add {addr}/128 dev eth0 nodad; {route}"));
    }

    /// Puts an ENI that [`Fabric::unplug`] has pulled out behind the cloud's back into its node again.
    pub fn replug(&self, n: usize, eni: &str) {
        let eni = self.cloud.eni(eni).expect("the cloud has it");
        self.fabric.plug(&card(&eni), self.nodes[n].ns().name());
    }

    /// Takes an instance away, with all that runs on it.
    pub fn remove_node(&mut self, id: &str) {
        self.cloud.remove_instance(id);
        self.nodes.retain(|node| node.id != id);
    }
}

/// An ordinary instance.
pub fn instance(id: &str, instance_type: &str) -> InstanceSpec {
    InstanceSpec {
        id: id.into(),
        instance_type: instance_type.into(),
        vswitch: NODES.into(),
        security_groups: vec!["sg-sim".into()],
        address: None,
        role: Some("KubernetesWorkerRole".into()),
    }
}

/// ENIs whose pod's namespace dies come back by themselves for as long as the fabric stands.
fn give_back(fabric: &Arc<Fabric>) {
    let (watched, deaths) = (Arc::downgrade(fabric), fabric.deaths());
    thread::spawn(move || {
        for _ in deaths {
            match watched.upgrade() {
                Some(fabric) => fabric.recover(),
                None => return,
            };
        }
    });
}

/// Dropped before the fabric, waits for whoever brings an ENI back at this moment: as its last owner he would take the fabric down
/// on his own thread, which nobody waits for.
struct Calm(Weak<Fabric>);

impl Drop for Calm {
    fn drop(&mut self) {
        let start = Instant::now();
        while self.0.strong_count() > 1 && start.elapsed() < Duration::from_secs(1) {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Does to the fabric what the cloud decides.
struct Wires {
    fabric: Arc<Fabric>,
    /// Network namespaces by instance.
    homes: Arc<Mutex<BTreeMap<String, String>>>,
}

impl cloud::Fabric for Wires {
    fn plug(&mut self, instance: &str, eni: &EniView) {
        // An instance that is no node of ours has no wires.
        if let Some(home) = self.homes.lock().expect("nobody panicked with it").get(instance) {
            self.fabric.plug(&card(eni), home);
        }
    }

    fn unplug(&mut self, _: &str, eni: &EniView) {
        self.fabric.unplug(&eni.id);
    }

    fn addresses(&mut self, _: &str, eni: &EniView) {
        if self.fabric.is_plugged(&eni.id) {
            self.fabric.set_addrs(&eni.id, &addrs(eni));
        }
    }
}

fn card(eni: &EniView) -> Card {
    Card { id: eni.id.clone(), mac: eni.mac, addrs: addrs(eni), gateway_v6: eni.gateway6, mtu: 1500 }
}

fn addrs(eni: &EniView) -> BTreeSet<IpAddr> {
    let v6 = eni.v6.iter().map(|addr| IpAddr::V6(*addr));
    eni.all_v4().map(IpAddr::V4).chain(v6).collect()
}

fn at(place: &str) -> SocketAddr {
    place.parse().expect("a literal")
}
