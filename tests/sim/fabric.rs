//! A VPC of namespaces: one router, a veth per ENI, and no frame passes whose MAC and address are not that ENI's.
//!
//! The router forwards in the kernel: a host route per address, one permanent neighbour per ENI (it learns from nobody),
//! proxy ARP for whatever a node asks, and guards (see [`super::guards`]) that know which port owns which MAC and address. It has no
//! way out: everything that is no address of the VPC goes to a namespace that plays a host outside.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, Once};

use ipnet::IpNet;
use terway::ip::Mac;

use super::cluster::soon;
use super::guards::{Guards, Passport};
use super::ns::{Ns, Process};
use super::sweep;

/// The one MAC that every guest sees of a VPC.
pub const ROUTER_MAC: &str = "ee:ff:ff:ff:ff:ff";
/// A host beyond the VPC.
pub const OUTSIDE: &str = "203.0.113.10";
pub const OUTSIDE_V6: &str = "2001:db8:ffff::10";

/// The neighbours that stand for an ENI's guest on its port; the routes of all its addresses lead to them.
const GUEST: &str = "169.254.0.2";
const GUEST_V6: &str = "fe80::2";

pub struct Fabric {
    router: Ns,
    outside: Ns,
    ports: Mutex<Ports>,
    guards: Mutex<Guards>,
    /// What tells of links that go away; killed with the fabric.
    monitors: Mutex<Vec<Process>>,
}

#[derive(Default)]
struct Ports {
    born: u32,
    by_eni: BTreeMap<String, Port>,
}

/// The router's end of an ENI.
struct Port {
    link: String,
    card: Card,
    /// The namespace of the node it is attached to.
    home: String,
}

/// An ENI as the fabric needs to know it.
#[derive(Debug, Clone)]
pub struct Card {
    pub id: String,
    pub mac: Mac,
    pub addrs: BTreeSet<IpAddr>,
    /// The vSwitch's IPv6 gateway, which the router answers for on this port. It answers for every IPv4 address.
    pub gateway_v6: Option<Ipv6Addr>,
    pub mtu: u32,
}

impl Card {
    pub fn new(id: &str, mac: &str, addrs: &[&str]) -> Card {
        let addrs = addrs.iter().map(|a| a.parse().expect("an address")).collect();
        Card { id: id.into(), mac: mac.parse().expect("a MAC"), addrs, gateway_v6: None, mtu: 1500 }
    }
}

/// Packets that the router refused so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drops {
    /// IP packets whose source MAC is not the ENI's.
    pub wrong_mac: u64,
    /// IP packets from an address that the ENI does not have.
    pub wrong_ip: u64,
    /// ARP whose sender MAC (frame or payload) is not the ENI's.
    pub wrong_arp: u64,
    /// Packets for an address of the VPC that no ENI has.
    pub nowhere: u64,
}

impl Fabric {
    /// A VPC of these prefixes, without any ENI.
    pub fn new(vpc: &[IpNet]) -> Fabric {
        static ONCE: Once = Once::new();
        ONCE.call_once(sweep::sweep);
        let (router, outside) = (Ns::new("vpc"), Ns::new("outside"));
        router.run(become_router);
        outside.run(hurry);
        ip(&router, &uplink(outside.name()));
        ip(&outside, &beyond());
        let guards = Mutex::new(Guards::new(&router, vpc));
        Fabric { router, outside, ports: Mutex::default(), guards, monitors: Mutex::default() }
    }

    /// The host beyond the VPC, at [`OUTSIDE`].
    pub fn outside(&self) -> &Ns {
        &self.outside
    }

    /// The router's namespace. What listens in it is a service of the cloud; see [`Fabric::listen`].
    pub fn router(&self) -> &Ns {
        &self.router
    }

    /// Hot-plugs the ENI into a node's namespace, by its name; the kernel names the link as the next free `ethN`.
    pub fn plug(&self, card: &Card, home: &str) {
        let mut ports = self.ports();
        assert!(!ports.by_eni.contains_key(&card.id), "ENI {} is plugged in already", card.id);
        ports.born += 1;
        let bare = Card { addrs: BTreeSet::new(), ..card.clone() };
        let port = Port { link: format!("p{}", ports.born), card: bare, home: home.into() };
        ip(&self.router, &port.wiring("eth%d"));
        self.guards().admit(&self.router, &port.passport());
        ports.by_eni.insert(card.id.clone(), port);
        self.give(&mut ports, &card.id, &card.addrs);
    }

    /// Pulls the ENI out, wherever its link is by now. An ENI that is not plugged in stays so.
    pub fn unplug(&self, id: &str) {
        let mut ports = self.ports();
        let Some(port) = ports.by_eni.remove(id) else { return };
        self.guards().dismiss(&self.router, &port.passport(), &port.card.addrs);
        try_ip(&self.router, &format!("link del {}", port.link));
        assert!(!self.router.run(|| port.is_alive()), "link {} of ENI {id} does not go", port.link);
    }

    /// Brings every ENI that died with the namespace it was moved into back to its node, and tells how many there were.
    /// A network card of flesh does that by itself, under a name that the kernel makes up; a veth has to be made anew.
    pub fn recover(&self) -> usize {
        let ports = self.ports();
        let dead: Vec<&Port> = self.router.run(|| ports.by_eni.values().filter(|port| !port.is_alive()).collect());
        for port in &dead {
            // The node may be on its way out too.
            try_ip(&self.router, &format!("{}{}", port.wiring("dev%d"), port.routes("replace", &port.card.addrs)));
            if self.router.run(|| port.is_alive()) {
                self.guards().renew(&self.router, &port.passport(), &port.card.addrs);
            }
        }
        dead.len()
    }

    /// Tells of every link that goes away, until the fabric does.
    pub fn deaths(&self) -> impl Iterator<Item = ()> + Send + use<> {
        let mut command = Command::new("ip");
        command.args(["-o", "monitor", "link"]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut monitor = self.router.spawn(&mut command);
        let lines = BufReader::new(monitor.stdout.take().expect("it is piped")).lines().map_while(Result::ok);
        self.monitors.lock().expect("nobody panicked with it").push(monitor);
        lines.filter(|line| line.starts_with("Deleted")).map(|_| ())
    }

    pub fn is_plugged(&self, id: &str) -> bool {
        self.ports().by_eni.contains_key(id)
    }

    /// Makes these the addresses of the ENI, and no others. One that another ENI has moves here.
    pub fn set_addrs(&self, id: &str, addrs: &BTreeSet<IpAddr>) {
        let mut ports = self.ports();
        let Some(port) = ports.by_eni.get(id) else { panic!("ENI {id} is not plugged in") };
        let (lost, won) = (&port.card.addrs - addrs, addrs - &port.card.addrs);
        self.take(&mut ports, id, &lost);
        self.give(&mut ports, id, &won);
    }

    pub fn assign(&self, id: &str, addr: &str) {
        self.give(&mut self.ports(), id, &one(addr));
    }

    pub fn unassign(&self, id: &str, addr: &str) {
        self.take(&mut self.ports(), id, &one(addr));
    }

    /// Opens a listener of the cloud, such as 100.100.100.200:80; every node reaches it through its gateway, and it sees
    /// their addresses as they are.
    pub fn listen(&self, addr: SocketAddr) -> TcpListener {
        ip(&self.router, &format!("addr replace {}/{} dev lo", addr.ip(), bits(addr.ip())));
        self.router.run(|| TcpListener::bind(addr).unwrap_or_else(|e| panic!("listen on {addr} in the VPC: {e}")))
    }

    /// Waits until no port has a carrier that its queue has not heard of: until then it loses what is sent to the guest.
    pub fn settle(&self) {
        let is_torn =
            |line: &str| line.contains("LOWER_UP") && !line.contains("LOOPBACK") && !line.contains(" state UP ");
        soon("the router's ports are up", || !self.router.sh("ip -o link").lines().any(is_torn));
    }

    pub fn drops(&self) -> Drops {
        self.guards().drops(&self.router)
    }

    fn guards(&self) -> MutexGuard<'_, Guards> {
        self.guards.lock().expect("nobody panicked while changing the fabric")
    }

    fn ports(&self) -> MutexGuard<'_, Ports> {
        self.ports.lock().expect("nobody panicked while changing the fabric")
    }

    fn give(&self, ports: &mut Ports, id: &str, addrs: &BTreeSet<IpAddr>) {
        let elsewhere: Vec<String> = ports.by_eni.keys().filter(|other| *other != id).cloned().collect();
        for other in elsewhere {
            let moved = &ports.by_eni[&other].card.addrs & addrs;
            self.take(ports, &other, &moved);
        }
        let Some(port) = ports.by_eni.get_mut(id) else { panic!("ENI {id} is not plugged in") };
        let new: BTreeSet<IpAddr> = addrs - &port.card.addrs;
        if !new.is_empty() {
            self.guards().grant(&self.router, &port.passport(), &new);
            // Where its link has died with a pod, the routes come with the next one; see `recover`.
            if self.router.run(|| port.is_alive()) {
                ip(&self.router, &port.routes("replace", &new));
            }
            port.card.addrs.extend(new);
        }
    }

    fn take(&self, ports: &mut Ports, id: &str, addrs: &BTreeSet<IpAddr>) {
        let Some(port) = ports.by_eni.get_mut(id) else { panic!("ENI {id} is not plugged in") };
        let old: BTreeSet<IpAddr> = &port.card.addrs & addrs;
        if !old.is_empty() {
            self.guards().revoke(&self.router, &port.passport(), &old);
            // With its link gone, the routes are too.
            try_ip(&self.router, &port.routes("del", &old));
            port.card.addrs.retain(|addr| !old.contains(addr));
        }
    }
}

impl Port {
    /// Whether the link exists; to be asked in the router. It is gone where the namespace of its other end has died.
    fn is_alive(&self) -> bool {
        fs::exists(format!("/proc/sys/net/ipv4/conf/{}", self.link)).expect("/proc can be read")
    }

    /// `ip` lines that make the veth and what the router must know to reach its guest.
    fn wiring(&self, name: &str) -> String {
        let Port { link, card: Card { mac, mtu, gateway_v6, .. }, home } = self;
        let mut lines = format!(
            "link add {link} address {ROUTER_MAC} mtu {mtu} type veth peer name {name} address {mac} mtu {mtu} netns {home}
             link set {link} up
             ntable change name arp_cache dev {link} proxy_delay 0
             neigh replace {GUEST} lladdr {mac} dev {link} nud permanent
             neigh replace {GUEST_V6} lladdr {mac} dev {link} nud permanent\n"
        );
        if let Some(gateway) = gateway_v6 {
            writeln!(lines, "addr add {gateway}/128 dev {link} nodad").expect("a String takes all");
        }
        lines
    }

    fn routes(&self, verb: &str, addrs: &BTreeSet<IpAddr>) -> String {
        let route = |addr: &IpAddr| {
            let via = if addr.is_ipv4() { GUEST } else { GUEST_V6 };
            format!("route {verb} {addr}/{} via {via} dev {} onlink\n", bits(*addr), self.link)
        };
        addrs.iter().map(route).collect()
    }

    fn passport(&self) -> Passport<'_> {
        Passport { link: &self.link, mac: &self.card.mac }
    }
}

/// A router that answers ARP for everyone, and leaves the source check to its own rules.
fn become_router() {
    for name in ["ipv4/ip_forward", "ipv6/conf/all/forwarding", "ipv6/conf/default/forwarding"] {
        set(name, "1");
    }
    for name in ["rp_filter", "send_redirects"] {
        set(&format!("ipv4/conf/all/{name}"), "0");
        set(&format!("ipv4/conf/default/{name}"), "0");
    }
    for name in ["proxy_arp", "proxy_arp_pvlan"] {
        set(&format!("ipv4/conf/default/{name}"), "1");
    }
    hurry();
}

/// IPv6 that works from the first packet on: duplicate address detection waits for more than a second.
fn hurry() {
    set("ipv6/conf/all/accept_dad", "0");
    set("ipv6/conf/default/accept_dad", "0");
}

fn set(sysctl: &str, value: &str) {
    fs::write(format!("/proc/sys/net/{sysctl}"), value).unwrap_or_else(|e| panic!("sysctl {sysctl}: {e}"));
}

fn uplink(outside: &str) -> String {
    format!(
        "link add out type veth peer name eth0 netns {outside}
         link set out up
         addr add 203.0.113.1/24 dev out
         addr add 2001:db8:ffff::1/64 dev out nodad
         route add default via {OUTSIDE} dev out
         route add default via {OUTSIDE_V6} dev out\n"
    )
}

fn beyond() -> String {
    format!(
        "link set eth0 up
         addr add {OUTSIDE}/24 dev eth0
         addr add {OUTSIDE_V6}/64 dev eth0 nodad
         route add default via 203.0.113.1
         route add default via 2001:db8:ffff::1\n"
    )
}

fn one(addr: &str) -> BTreeSet<IpAddr> {
    BTreeSet::from([addr.parse().expect("an address")])
}

fn bits(addr: IpAddr) -> u8 {
    if addr.is_ipv4() { 32 } else { 128 }
}

/// Runs `ip` lines in the namespace, all in one process; each must succeed.
fn ip(ns: &Ns, lines: &str) {
    feed(ns, &["ip", "-batch", "-"], Stdio::piped(), lines).unwrap_or_else(|e| panic!("{}: {e}:\n{lines}", ns.name()));
}

/// The same, where some of them may fail.
fn try_ip(ns: &Ns, lines: &str) {
    let _ = feed(ns, &["ip", "-force", "-batch", "-"], Stdio::null(), lines);
}

/// Has a program read these lines in the namespace.
pub fn feed(ns: &Ns, program: &[&str], stderr: Stdio, lines: &str) -> Result<(), String> {
    let mut command = Command::new(program[0]);
    command.args(&program[1..]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(stderr);
    ns.run(|| {
        let mut child = command.spawn().map_err(|e| format!("{}: {e}", program[0]))?;
        child.stdin.take().expect("it is piped").write_all(lines.as_bytes()).map_err(|e| e.to_string())?;
        let done = child.wait_with_output().map_err(|e| e.to_string())?;
        if done.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&done.stderr).into_owned()) }
    })
}
