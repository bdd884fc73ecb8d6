//! Every path between pods, nodes and the outside, tried with real packets: ICMP echo, and TCP to a server that sends back.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::screen::{Cell, Table};
use crate::sim::node::{Node, Pod};
use crate::sim::ns::Ns;
use crate::sim::traffic::{Pinger, Place, STRAGGLERS, TcpEcho};

/// Where the servers listen.
pub const PORT: u16 = 8080;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    SameEni,
    OtherEni,
    OtherNode,
    OwnNode,
    FromOwnNode,
    ForeignNode,
    FromForeignNode,
    Outside,
    Service,
    Hairpin,
}

const PATHS: [(Path, &str); 10] = [
    (Path::SameEni, "pod → pod, same ENI"),
    (Path::OtherEni, "pod → pod, other ENI"),
    (Path::OtherNode, "pod → pod, other node"),
    (Path::OwnNode, "pod → its node"),
    (Path::FromOwnNode, "node → its pod"),
    (Path::ForeignNode, "pod → other node"),
    (Path::FromForeignNode, "node → pod, other node"),
    (Path::Outside, "pod → outside the VPC"),
    (Path::Service, "pod → Service, other node"),
    (Path::Hairpin, "pod → Service → itself"),
];

/// Something with an address, where a server listens.
pub struct Spot<'a> {
    name: String,
    addr: IpAddr,
    kind: Kind,
    at: At<'a>,
    echo: TcpEcho,
}

#[derive(PartialEq, Eq)]
enum Kind {
    Pod { node: usize, eni: String, service: IpAddr },
    Node(usize),
    Outside,
}

enum At<'a> {
    Pod(&'a Pod),
    Node(&'a Node),
    Ns(&'a Ns),
}

impl Place for At<'_> {
    fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        match self {
            At::Pod(pod) => pod.run(f),
            At::Node(node) => node.run(f),
            At::Ns(ns) => ns.run(f),
        }
    }
}

impl<'a> Spot<'a> {
    /// A pod on this ENI of a node, and the ClusterIP of a Service of which it is the only endpoint.
    pub fn pod(name: &str, addr: &str, node: usize, eni: &str, service: IpAddr, pod: &'a Pod) -> Spot<'a> {
        Spot::new(name, addr, Kind::Pod { node, eni: eni.into(), service }, At::Pod(pod))
    }

    pub fn node(name: &str, addr: &str, number: usize, node: &'a Node) -> Spot<'a> {
        Spot::new(name, addr, Kind::Node(number), At::Node(node))
    }

    pub fn outside(addr: &str, ns: &'a Ns) -> Spot<'a> {
        Spot::new("outside", addr, Kind::Outside, At::Ns(ns))
    }

    fn new(name: &str, addr: &str, kind: Kind, at: At<'a>) -> Spot<'a> {
        let addr: IpAddr = addr.parse().expect("an address");
        let echo = at.tcp_echo(&SocketAddr::new(addr, PORT).to_string());
        Spot { name: name.into(), addr, kind, at, echo }
    }

    fn home(&self) -> Option<usize> {
        match self.kind {
            Kind::Pod { node, .. } | Kind::Node(node) => Some(node),
            Kind::Outside => None,
        }
    }
}

/// One way to go.
pub struct Pair<'a> {
    path: Path,
    from: &'a Spot<'a>,
    to: &'a Spot<'a>,
    /// What the sender knows its peer by.
    addr: IpAddr,
}

/// All pairs that the paths name.
pub fn pairs<'a>(spots: &'a [Spot<'a>]) -> Vec<Pair<'a>> {
    let mut pairs = Vec::new();
    for from in spots {
        for to in spots {
            if let Some(path) = direct(from, to) {
                pairs.push(Pair { path, from, to, addr: to.addr });
            }
            if let Some((path, addr)) = by_service(from, to) {
                pairs.push(Pair { path, from, to, addr });
            }
        }
    }
    pairs.sort_by_key(|pair| PATHS.iter().position(|(path, _)| *path == pair.path));
    pairs
}

fn direct(from: &Spot, to: &Spot) -> Option<Path> {
    let near = from.home() == to.home();
    Some(match (&from.kind, &to.kind) {
        (Kind::Pod { .. }, Kind::Pod { .. }) if from.addr == to.addr => return None,
        (Kind::Pod { .. }, Kind::Pod { .. }) if !near => Path::OtherNode,
        (Kind::Pod { eni: a, .. }, Kind::Pod { eni: b, .. }) if a == b => Path::SameEni,
        (Kind::Pod { .. }, Kind::Pod { .. }) => Path::OtherEni,
        (Kind::Pod { .. }, Kind::Node(_)) if near => Path::OwnNode,
        (Kind::Pod { .. }, Kind::Node(_)) => Path::ForeignNode,
        (Kind::Pod { .. }, Kind::Outside) => Path::Outside,
        (Kind::Node(_), Kind::Pod { .. }) if near => Path::FromOwnNode,
        (Kind::Node(_), Kind::Pod { .. }) => Path::FromForeignNode,
        (Kind::Node(_) | Kind::Outside, _) => return None,
    })
}

fn by_service(from: &Spot, to: &Spot) -> Option<(Path, IpAddr)> {
    let (Kind::Pod { node: here, .. }, Kind::Pod { node: there, service, .. }) = (&from.kind, &to.kind) else {
        return None;
    };
    match () {
        () if from.addr == to.addr => Some((Path::Hairpin, *service)),
        () if here != there => Some((Path::Service, *service)),
        () => None,
    }
}

/// What became of a pair.
pub struct Trial {
    path: Path,
    node: usize,
    icmp: Result<Duration, String>,
    tcp: Result<Duration, String>,
    name: String,
}

impl Pair<'_> {
    pub fn label(&self) -> &'static str {
        PATHS.iter().find(|(path, _)| *path == self.path).map_or("", |(_, label)| label)
    }

    pub fn run(&self) -> Trial {
        Trial {
            path: self.path,
            node: self.from.home().expect("nobody sends from outside"),
            icmp: self.icmp(),
            tcp: self.tcp(),
            name: format!("{} → {} ({})", self.from.name, self.to.name, self.addr),
        }
    }

    /// The median of three round trips after a first one, which finds the neighbours; none may be lost.
    fn icmp(&self) -> Result<Duration, String> {
        let times = self.from.at.run(|| {
            let mut pinger = Pinger::new(&self.addr.to_string(), None);
            (0..4).map(|_| pinger.ping(STRAGGLERS)).collect::<Option<Vec<Duration>>>()
        });
        let mut times = times.ok_or("lost")?;
        times.remove(0);
        times.sort();
        Ok(times[1])
    }

    /// Connect, say a word, hear it again; and the server must have seen who it really was.
    fn tcp(&self) -> Result<Duration, String> {
        let took = self.from.at.tcp(&SocketAddr::new(self.addr, PORT).to_string()).map_err(|e| e.to_string())?;
        let seen = self.to.echo.peers().last().map(|peer| peer.ip());
        // A pod that met itself would not know the answer for one: there the node speaks in its place.
        if self.path != Path::Hairpin && seen != Some(self.from.addr) {
            return Err(format!("arrived from {seen:?}, not from {}", self.from.addr));
        }
        Ok(took)
    }
}

impl Trial {
    /// What went wrong, if anything.
    fn fault(&self) -> Option<String> {
        let fault = |what: &str, result: &Result<Duration, String>| Some(format!("{what} {}", result.as_ref().err()?));
        let faults: Vec<String> = [fault("ICMP", &self.icmp), fault("TCP", &self.tcp)].into_iter().flatten().collect();
        (!faults.is_empty()).then(|| format!("{}: {}", self.name, faults.join(", ")))
    }
}

/// Everything that is not as it should be; a path that no pair has shown is not.
pub fn faults(trials: &[Trial], nodes: &[String]) -> Vec<String> {
    let mut faults: Vec<String> = trials.iter().filter_map(Trial::fault).collect();
    for (path, label) in PATHS {
        let shown = |n: usize| trials.iter().any(|trial| trial.path == path && trial.node == n);
        let missing = nodes.iter().enumerate().filter(|(n, _)| !shown(*n));
        faults.extend(missing.map(|(_, node)| format!("{label}: no pair from {node}")));
    }
    faults
}

/// A row per path, and per node that pairs start from the median round trip of all of them.
pub fn table(trials: &[Trial]) -> Table {
    let figures = ["ICMP µs", "TCP µs", "ICMP µs", "TCP µs"].map(Cell::right);
    let [icmp1, tcp1, icmp2, tcp2] = figures;
    let mut table = Table::new([
        Cell::left("path"),
        Cell::right("pairs"),
        Cell::right("node-1"),
        Cell::left(""),
        Cell::right("node-2"),
        Cell::left(""),
    ])
    .under([Cell::left(""), Cell::left(""), icmp1, tcp1, icmp2, tcp2]);
    for (path, label) in PATHS {
        let all: Vec<&Trial> = trials.iter().filter(|trial| trial.path == path).collect();
        let mut row = vec![Cell::left(label), Cell::right(all.len().to_string())];
        for node in 0..2 {
            let of = |result: fn(&Trial) -> &Result<Duration, String>| {
                figure(all.iter().filter(|trial| trial.node == node).map(|trial| result(trial)).collect())
            };
            row.extend([of(|trial| &trial.icmp), of(|trial| &trial.tcp)]);
        }
        table.row(row);
    }
    table
}

/// How many were lost, where any were; no pair at all is a failure too.
fn figure(results: Vec<&Result<Duration, String>>) -> Cell {
    let mut times: Vec<Duration> = results.iter().filter_map(|result| result.as_ref().ok().copied()).collect();
    times.sort();
    match times.get(times.len() / 2) {
        Some(median) if times.len() == results.len() => Cell::figure(true, &median.as_micros().to_string()),
        _ if results.is_empty() => Cell::figure(false, "none"),
        _ => Cell::figure(false, &format!("{}/{}", results.len() - times.len(), results.len())),
    }
}

/// What kube-proxy would write on every node, in one table of nftables per family: ClusterIP to endpoint, and a pod that comes back to
/// itself goes as the node.
pub fn services(spots: &[Spot]) -> String {
    let pods = || {
        spots.iter().filter_map(|spot| match &spot.kind {
            Kind::Pod { service, .. } => Some((service, spot.addr)),
            _ => None,
        })
    };
    let endpoints: Vec<String> = pods().map(|(service, pod)| format!("{service} : {pod}")).collect();
    let hairpins: Vec<String> = pods().map(|(service, pod)| format!("{pod} . {service}")).collect();
    let (ip, addr) = match spots.first().map(|spot| spot.addr) {
        Some(IpAddr::V6(_)) => ("ip6", "ipv6_addr"),
        _ => ("ip", "ipv4_addr"),
    };
    format!(
        "table {ip} services {{
    map endpoints {{ type {addr} : {addr}; elements = {{ {} }}; }}
    set hairpins {{ type {addr} . {addr}; elements = {{ {} }}; }}
    chain prerouting {{
        type nat hook prerouting priority dstnat;
        {ip} saddr . {ip} daddr @hairpins meta mark set meta mark or 0x4000
        dnat to {ip} daddr map @endpoints
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat;
        meta mark and 0x4000 == 0x4000 masquerade
    }}
}}\n",
        endpoints.join(", "),
        hairpins.join(", "),
    )
}
