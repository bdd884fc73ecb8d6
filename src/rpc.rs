//! The words between plugin, daemon and cli: one JSON line asked, one JSON line answered, over [`crate::ours::SOCKET`].

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::ip::{IpPair, Mac, NetPair};
use crate::pod::{Attachment, PodName, Sandbox};
use crate::rate::{Both, Limit, Limits};

/// The longest line that the daemon accepts, newline included. A GC of 1,000 attachments needs about 100 kB.
pub const MAX_LINE: usize = 1 << 20;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// ADD: an address for this pod. The same attachment gets the same lease again.
    Allocate {
        pod: PodName,
        /// Which one of this name, where the runtime says it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        uid: Option<String>,
        sandbox: Sandbox,
        /// What the runtime asks for, which goes before the pod's annotations.
        #[serde(default, skip_serializing_if = "Both::is_default")]
        limits: Limits,
        #[serde(default, skip_serializing_if = "Wish::is_default")]
        wish: Wish,
    },
    /// DEL: the attachment is gone, or going; the daemon takes its route and link away and frees its address.
    Release { attachment: Attachment },
    /// CHECK: what was leased.
    Lease { attachment: Attachment },
    /// DEL or CHECK of a pod that the old Terway has wired without writing its container down: the lease under its name.
    Find { pod: PodName, ifname: String, netns: Option<PathBuf> },
    /// GC: of the attachments to this network everything but these is gone.
    Gc { network: String, valid: BTreeSet<Attachment> },
    /// STATUS: could an ADD be served now?
    Status {},
    /// For people: the pool as it is.
    Show {},
    /// For people: whether a packet passes, and why.
    Why(Why),
    /// For those who watch packets: the same of many, in their order.
    Whys(Vec<Why>),
    /// For people: the rules of a pod.
    Rules { pod: PodName },
    /// For people: where Services lead in whose name or address this occurs.
    Services { matching: String },
}

/// A packet that somebody asks about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Why {
    pub src: End,
    pub dst: End,
    pub protocol: u8,
    /// Source and destination, of protocols that have them; of ICMP the second is type × 256 + code.
    pub ports: Option<(u16, u16)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    Pod(PodName),
    Address(IpAddr),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    Lease(Box<Lease>),
    /// Nothing is leased to the attachment; all that GC named is gone.
    None {},
    /// The attachment's lease is over; what is left of it in the kernel is the daemon's business.
    /// `whole`: its interface is a link in its namespace alone (an ENI that was lent to it, a slave of one), which whoever knows
    /// that takes out.
    Released {
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        whole: bool,
    },
    /// The daemon serves.
    Ready {},
    /// What was asked cannot be had; the reason is for a person.
    Refused {
        why: Refusal,
        reason: String,
    },
    Show(serde_json::Value),
}

/// Why an ADD or STATUS is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// Every address the node can hold is in use or cooling down.
    NodeFull,
    /// An account quota is met.
    Quota,
    /// No configured vSwitch has a free address.
    VSwitchEmpty,
    /// The cloud asks us to slow down.
    Throttled,
    /// The credentials may not do what is needed.
    Forbidden,
    /// The cloud does not answer, or fails.
    CloudDown,
    /// Not done within the deadline, for no worse reason.
    TooSlow,
    /// The pod is not one we may serve: unknown to the API server, on the host network, or told to be ignored.
    NotOurs,
    /// The API server does not answer, and the pod is not known yet, or where its Services are.
    ApiDown,
    /// The request itself is wrong.
    BadRequest,
    /// The pod's network policies are not in the kernel: not all that they say is known, or the kernel refuses them.
    Policies,
    /// The daemon has not finished starting.
    Starting,
    /// The node itself fails us: its kernel, or no room for the ledger.
    Local,
}

/// An address given to an attachment, with all that wiring it takes. Also the ledger's record, so fields may be added, not renamed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    pub pod: PodName,
    pub sandbox: Sandbox,
    pub ip: IpPair,
    pub eni: EniLease,
    /// The node's own addresses.
    pub node: IpPair,
    pub marker: Marker,
    /// The next pod of this name on this node shall have the addresses again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sticky: bool,
    /// How a pod is held that the old Terway has wired; absent for those that we have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heritage: Option<Heritage>,
    #[serde(default, skip_serializing_if = "Both::is_default")]
    pub bandwidth: Both<Limit>,
    /// Of a release that does not know it: shared.
    #[serde(default)]
    pub wiring: Wiring,
    /// What the pod has routes for beside its default route, through the same gateway.
    #[serde(default)]
    pub routes: Vec<IpNet>,
    /// Its number among the node's pods, which filters on its links bear; absent: no policy programs on them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seat: Option<u16>,
    /// Of its links, where the network configuration says nothing; absent: that of a release which does not know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// What the runtime calls the network that it is attached to; absent where nobody has written that down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
}

/// What we do about a pod that ran before us.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Heritage {
    /// Taken over: it is wired as ours are, over the veth that it has, which keeps its MACs.
    Adopted { host_mac: Mac, pod_mac: Mac },
    /// It runs on as it was wired until it is re-created, for this reason. We keep its address for it and do nothing else.
    Untouched { why: String },
}

impl Lease {
    pub fn is_whole(&self) -> bool {
        matches!(self.wiring, Wiring::Whole(_))
    }

    /// The pod's interface is an IPvlan slave.
    pub fn is_slave(&self) -> bool {
        matches!(self.wiring, Wiring::Ipvlan(_))
    }

    /// The pod's interface has no other end on the node.
    pub fn is_inside(&self) -> bool {
        self.wiring != Wiring::Shared
    }

    /// Why we leave the pod's network as it is, where we do.
    pub fn untouched(&self) -> Option<&str> {
        match &self.heritage {
            Some(Heritage::Untouched { why }) => Some(why),
            _ => None,
        }
    }
}

/// How an attachment gets at its ENI.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wiring {
    /// Through a veth; the ENI stays with the node and carries others too.
    #[default]
    Shared,
    /// The ENI itself is moved into the pod.
    Whole(Whole),
    /// The pod has an IPvlan slave of the ENI, which stays with the node and carries others too.
    Ipvlan(Slave),
}

/// What the network configuration has to say of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Wish {
    /// Its own name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// IPvlan, where that can be.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub slave: bool,
    /// With an ENI of its own, no second link to the node.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub alone: bool,
    /// What the pod shall reach through the node rather than through the VPC, beside Services.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub host_stack: Vec<IpNet>,
}

impl Wish {
    pub fn is_default(&self) -> bool {
        *self == Wish::default()
    }
}

/// What the wiring of a slave takes besides.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slave {
    /// As the ADD had it: the node leads it for as long as one of its leases names it.
    #[serde(default)]
    pub host_stack: Vec<IpNet>,
    #[serde(default)]
    pub shaper: Shaper,
}

/// What the wiring of a whole ENI takes besides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Whole {
    /// What the ENI's link is called in the node's namespace.
    pub home: String,
    /// The Service CIDRs: what goes there goes through the node.
    pub services: NetPair,
    pub answers: Answers,
    #[serde(default)]
    pub shaper: Shaper,
    /// As the ADD had it.
    #[serde(default)]
    pub host_stack: Vec<IpNet>,
    /// It has no second link to the node.
    #[serde(default)]
    pub alone: bool,
}

/// What holds a pod to its bandwidth whose links end in it; what the kernel can do decides.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shaper {
    /// All of its links are led through one bucket a direction.
    #[default]
    Ifb,
    /// Each has a bucket of its own where it leaves a link; what the ENI brings has none.
    Links,
}

/// How a pod with an ENI of its own finds the way back for what came in through the node; what the kernel can do decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answers {
    /// Its connection tracking knows.
    Conntrack,
    /// No iptables: TCP sockets and the kernel's own answers take over the mark of what they answer; UDP does not come back.
    Sockets,
}

/// What a pod's wiring takes from its ENI.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EniLease {
    pub id: String,
    pub mac: Mac,
    pub vswitch: String,
    /// The vSwitch's prefixes and the gateway in each.
    pub cidr: NetPair,
    pub gateway: IpPair,
    /// Our number for the ENI on this node: 1 to [`crate::ours::MAX_SLOT`]. Selects its mark.
    pub slot: u32,
    /// Its routing table, [`crate::ours::eni_table`] of its link.
    pub table: u32,
}

/// How packets from a pod are told which ENI is theirs; what the kernel can do decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Marker {
    /// A few eBPF instructions on the host veth's ingress set the mark.
    Bpf,
    /// The tc action `skbedit mark` sets it (kernels without eBPF).
    Skbedit,
    /// Neither is there: one `from` rule per pod, as the old Terway has.
    Rule,
}

/// Folder below [`crate::ours::LEDGER`] where a plugin that found no daemon notes what it undid.
pub const TOMBSTONES: &str = "tombstones";

/// One such note: `<Attachment::file_name>.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tombstone {
    pub attachment: Attachment,
    /// Whose it was, as far as the plugin was told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<PathBuf>,
    /// Seconds since 1970, for the order and for people.
    pub at: f64,
}

/// A lease for unit tests.
#[cfg(test)]
pub fn example_lease() -> Lease {
    use std::net::Ipv4Addr;

    Lease {
        pod: PodName::new("default", "web-0"),
        sandbox: Sandbox {
            attachment: Attachment { container: "0123456789abcdef".into(), ifname: "eth0".into() },
            netns: "/run/netns/web-0".into(),
        },
        ip: IpPair::v4(Ipv4Addr::new(192, 168, 32, 5)),
        eni: EniLease {
            id: "eni-1".into(),
            mac: Mac([0, 0x16, 0x3e, 0, 0, 1]),
            vswitch: "vsw-pods".into(),
            cidr: NetPair::v4("192.168.32.0/19".parse().expect("a prefix")),
            gateway: IpPair::v4(Ipv4Addr::new(192, 168, 63, 253)),
            slot: 1,
            table: 1003,
        },
        node: IpPair::v4(Ipv4Addr::new(192, 168, 0, 10)),
        marker: Marker::Bpf,
        sticky: false,
        heritage: None,
        bandwidth: Both::default(),
        wiring: Wiring::Shared,
        routes: Vec::new(),
        seat: None,
        mtu: None,
        network: None,
    }
}

/// The same pod with the whole of its ENI.
#[cfg(test)]
pub fn example_whole() -> Lease {
    let services = NetPair::v4("172.21.0.0/20".parse().expect("a prefix"));
    let (answers, shaper) = (Answers::Conntrack, Shaper::Ifb);
    let whole = Whole { home: "eth1".into(), services, answers, shaper, host_stack: Vec::new(), alone: false };
    Lease { wiring: Wiring::Whole(whole), ..example_lease() }
}

/// The same pod as a slave of its ENI.
#[cfg(test)]
pub fn example_slave() -> Lease {
    let host_stack = vec!["169.254.20.10/32".parse().expect("a prefix")];
    Lease { wiring: Wiring::Ipvlan(Slave { host_stack, shaper: Shaper::Ifb }), ..example_lease() }
}
