//! Every name, table, priority, mark and path we own, and how each is recognised after a restart by someone who remembers nothing.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::ip::Mac;
use crate::pod::{Attachment, PodName};
use crate::rate::Both;

/// The daemon's socket (the old Terway's path, kept).
pub const SOCKET: &str = "/var/run/eni/eni.socket";
/// Where those ask who watch the daemon (the old Terway's path, kept).
pub const WATCHERS_SOCKET: &str = "/var/run/eni/eni_debug.socket";
/// Locked by the daemon of the node for as long as it lives.
pub const LOCK: &str = "/var/run/eni/terwayd.lock";
/// Leases, cooling addresses, tombstones and intents; on tmpfs because sandboxes do not survive a reboot.
pub const LEDGER: &str = "/run/terway";
/// What must outlive a reboot.
pub const LASTING: &str = "/var/lib/terway";
/// Where the old Terway keeps its databases. We read them once, and never write there.
pub const OLD_STORE: &str = "/var/lib/cni/terway";
/// How the names of the node's own IPvlan slaves begin, the old Terway's and ours.
pub const HOST_SLAVE: &str = "ipvl_";
/// The daemon's configuration.
pub const CONFIG: &str = "/etc/eni/eni.json";
/// The old Terway's switch for network policies, a file of its own beside the configuration (a key of the same ConfigMap).
pub const POLICY_SWITCH: &str = "disable_network_policy";
/// What makes the kubelet call us; written only once the daemon serves.
pub const CONFLIST: &str = "/etc/cni/net.d/10-terway.conflist";

/// Where bpffs is, and our pinned maps in it: below, a folder for each layout of them (`maps::SCHEMA`).
pub const BPF_ROOT: &str = "/sys/fs/bpf";
pub const BPF_FOLDER: &str = "terway";
/// How the name of every program begins that we attach to a cgroup.
pub const BPF_PREFIX: &str = "terway_";
/// Where we mount cgroup2 on a machine that has none.
pub const CGROUP2: &str = "/run/terway/cgroup2";
/// Which cgroups our programs are attached to, or about to be: a path a line. It goes with a reboot, as they do.
pub const CGROUP_NOTE: &str = "/run/terway/cgroup";
/// Who enforces network policies, as people were told last.
pub const RENDERER_NOTE: &str = "/run/terway/policies";

/// Rule that sends packets for local pods to [`PODS_TABLE`] (the old Terway's "to container" priority).
pub const TO_POD_PRIORITY: u32 = 512;
/// Rule that sends what bears [`NODE_MARK`] by the node's own way, before any rule that goes by a pod's address.
pub const NODE_WAY_PRIORITY: u32 = 2047;
/// Rules that send a pod's packets to its ENI's table (the old Terway's "from container" priority).
pub const FROM_POD_PRIORITY: u32 = 2048;
/// Rules that stop packets which an ENI brought for nobody from leaving again by the node's default route.
pub const STRAY_PRIORITY: u32 = 2049;
/// One host route per local pod. An ENI's own table is 1000 + its interface index, so 1000 itself is free.
pub const PODS_TABLE: u32 = 1000;
/// RT_TABLE_MAIN.
pub const MAIN_TABLE: u32 = 254;
/// Routing protocol number that stamps our routes (`/etc/iproute2/rt_protos` has no other owner for it).
pub const PROTOCOL: u8 = 116;

/// Mark bits that say which ENI a pod's packet leaves by. kube-proxy uses 0xc000, Calico 0xffff0000, the portmap plugin
/// 0x2000, the old Terway's symmetric routing 0x10.
pub const MARK_MASK: u32 = 0x07e0;
const MARK_SHIFT: u32 = 5;
/// The most ENIs the mark can tell apart: one value is kept for [`NODE_MARK`].
pub const MAX_SLOT: u32 = (MARK_MASK >> MARK_SHIFT) - 1;
/// The mark of what takes the node's own way: no ENI has it. In the namespace of a pod that has an ENI to itself it is the mark of
/// connections that came in through the node.
pub const NODE_MARK: u32 = MARK_MASK;

/// In the pod of a whole ENI: the link to the node (the old Terway's name).
pub const PEER_LINK: &str = "veth1";
/// There: the rule that sends answers back through the node, and the table that it looks up.
pub const ANSWER_PRIORITY: u32 = 512;
pub const ANSWER_TABLE: u32 = 1000;

/// In a pod: the rule that leads what bears the address of a further interface into that one's [`further_table`].
pub const FURTHER_PRIORITY: u32 = 2048;

/// The gateway that pods see: a link-local address that exists nowhere, answered by a permanent neighbour.
pub const POD_GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
pub const POD_GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// tc priority of the filters that let pass what a pod's policies allow: before all others of ours, which may lead packets elsewhere.
pub const POLICY_PRIORITY: u16 = 2048;
/// tc priority of the filter that marks.
pub const MARK_FILTER_PRIORITY: u16 = 2049;

/// How the name of a container begins that stands for one whose name is not known.
const UNNAMED: char = '~';

/// Handle of the token bucket that holds a pod to its bandwidth, on either end of its veth. Other plugins and tc(8) number
/// their qdiscs from 1 or 8000 on.
pub const TBF_HANDLE: u32 = 0x07e4 << 16;

/// Where a pod has two links, what it receives and what it sends wait here for their turn. In the pod's namespace.
pub const SHAPE_LINKS: Both<&str> = Both { ingress: "shape-in", egress: "shape-out" };
/// tc priorities of the filters that lead there: after the one that marks. Of `u32` filters of one priority the kernel lists those of
/// either side of a link as if they were on both.
pub const SHAPE_FILTER_PRIORITIES: Both<u16> = Both { ingress: 2050, egress: 2051 };

/// How the names of our chains and ipsets begin that enforce network policies.
pub const POLICY_PREFIX: &str = "TERWAY-P";
/// What our jumps from built-in chains bear as a comment.
pub const POLICY_COMMENT: &str = "terway network policy";

/// The same of chains that drop what pods send in another's name.
pub const SOURCE_PREFIX: &str = "TERWAY-S";
pub const SOURCE_COMMENT: &str = "terway source addresses";

/// What rules bear as a comment that let pods' packets through where felix, which did, has gone and the node lets nothing through by itself.
pub const PASS_COMMENT: &str = "terway lets pods through";
/// Which state of the old Terway's files nothing of felix is left of in netfilter. It goes with a reboot, as that does.
pub const FELIX_NOTE: &str = "/run/terway/felix-gone";
/// That Calico's node has run here in this boot: what looks like felix's is Calico's.
pub const CALICO_NOTE: &str = "/run/terway/calico-node";

/// How the names of the host's ends of pods' veths begin.
pub const VETH: &str = "cali";

/// The longest `ifalias` (IFALIASZ of linux/if.h, less its NUL).
const ALIAS_MAX: usize = 255;

/// tc priority of the programs on an ENI and on the node's slave of it. The old Terway's filters there have 40000.
pub const HOOK_PRIORITY: u16 = 2052;

/// Host links that wait for the daemon to delete them together (`IFLA_GROUP`).
pub const DOOMED_GROUP: u32 = 0x7e4_dead;

/// The tag that every ENI of ours bears, as the old Terway's do.
pub const ENI_TAG: (&str, &str) = ("creator", "terway");
/// The tag that names the node an ENI was made for.
pub const NODE_TAG: &str = "terway.alibabacloud.com/node";
/// The tag that says which of an ENI's other tags are ours, by [`tag_mark`]: what it does not name is somebody else's.
pub const TAGS_TAG: &str = "terway.alibabacloud.com/tags";
/// The length of a [`tag_mark`]: the marks of all 20 tags that an ENI can bear fit into one tag's value.
const TAG_MARK: usize = 6;
/// What we write into an ENI's description.
pub const ENI_DESCRIPTION: &str = "interface create by terway";

/// What stands for a tag of ours in the value of [`TAGS_TAG`].
fn tag_mark(key: &str) -> String {
    let mut mark = URL_SAFE_NO_PAD.encode(sha1(key));
    mark.truncate(TAG_MARK);
    mark
}

/// The value of [`TAGS_TAG`] for tags with these keys.
pub fn tag_marks<'a>(keys: impl Iterator<Item = &'a str>) -> String {
    keys.map(tag_mark).collect()
}

/// Whether the value of [`TAGS_TAG`] names the tag with this key.
pub fn marks_tag(marks: &str, key: &str) -> bool {
    marks.as_bytes().chunks(TAG_MARK).any(|mark| mark == tag_mark(key).as_bytes())
}

/// The mark of the ENI in this slot (1 to [`MAX_SLOT`]).
pub fn mark(slot: u32) -> u32 {
    debug_assert!((1..=MAX_SLOT).contains(&slot));
    slot << MARK_SHIFT
}

/// The slot that a mark of ours names, if it is one.
pub fn slot(mark: u32, mask: u32) -> Option<u32> {
    let slot = mark >> MARK_SHIFT;
    (mask == MARK_MASK && mark & !MARK_MASK == 0 && (1..=MAX_SLOT).contains(&slot)).then_some(slot)
}

/// The routing table of the ENI with this interface index.
pub fn eni_table(ifindex: u32) -> u32 {
    PODS_TABLE + ifindex
}

/// The link that has the routing table of an ENI.
pub fn eni_ifindex(table: u32) -> u32 {
    table - PODS_TABLE
}

/// In a pod: the routing table of an interface beside the pod's first, which alone is in the main one. Runtimes call that `eth0`.
pub fn further_table(ifname: &str) -> Option<u32> {
    let [a, b, c, ..] = sha1(ifname);
    (ifname != "eth0").then(|| ANSWER_TABLE + 1 + u32::from_be_bytes([0, a, b, c]))
}

/// The node's own slave of the ENI with this interface index (the old Terway's name).
pub fn host_slave(ifindex: u32) -> String {
    format!("{HOST_SLAVE}{ifindex}")
}

/// The host end of a pod's veth: `cali` and 11 hex digits of SHA-1; for eth0 bit for bit Calico's workload interface name.
pub fn host_veth(pod: &PodName, ifname: &str) -> String {
    // A pod's name holds no slash: `web` with `net1` is not `webnet1` with `eth0`.
    let further = if ifname == "eth0" { String::new() } else { format!("/{ifname}") };
    let sum = sha1(&format!("{}.{}{further}", pod.namespace, pod.name));
    let mut name = String::from(VETH);
    // A String takes all that is written to it.
    sum.iter().take(6).for_each(|b| write!(name, "{b:02x}").expect("memory"));
    name.truncate(15);
    name
}

/// What a pod's slave is called for the moment of its birth. The kernel takes no name that a link of the node has.
pub fn newborn(pod: &PodName, ifname: &str) -> String {
    host_veth(pod, ifname).replacen(VETH, NEWBORN, 1)
}

/// How such a name begins.
pub const NEWBORN: &str = "terw";

/// MAC of a veth's host end: locally administered, derived from its name.
pub fn host_mac(host_veth: &str) -> Mac {
    derived_mac("host", host_veth)
}

/// MAC of the end inside the pod.
pub fn pod_mac(host_veth: &str) -> Mac {
    derived_mac("pod", host_veth)
}

fn derived_mac(end: &str, name: &str) -> Mac {
    let sum = sha1(&format!("{end} {name}"));
    Mac([(sum[0] & 0xfc) | 0x02, sum[1], sum[2], sum[3], sum[4], sum[5]])
}

/// Not ring's: that first asks the CPU what it can, which a virtual machine answers slowly, and this is nobody's secret.
fn sha1(text: &str) -> [u8; 20] {
    sha1_smol::Sha1::from(text).digest().bytes()
}

/// `ifalias` of a host veth, or of a pod's IPvlan slave: whose it is. A late DEL of an older sandbox of the same pod reads it and keeps its hands off,
/// and a daemon that lost its ledger learns from it which pods run.
pub fn alias(attachment: &Attachment, pod: &PodName) -> String {
    let short = format!("terway {attachment}");
    let full = format!("{short} {pod}");
    if full.len() <= ALIAS_MAX { full } else { short }
}

/// An attachment whose container nobody told us: the old Terway's early versions did not write it down. No runtime has a
/// container of this name.
pub fn unnamed_attachment(host_veth: &str, ifname: &str) -> Attachment {
    Attachment { container: format!("{UNNAMED}{host_veth}"), ifname: ifname.into() }
}

/// The same for a pod that shares its host link with others: its address tells it from them.
pub fn addressed_attachment(ip: IpAddr, ifname: &str) -> Attachment {
    Attachment { container: format!("{UNNAMED}{}", ip.to_string().replace(':', "-")), ifname: ifname.into() }
}

/// Whether the attachment is of either kind.
pub fn is_unnamed(attachment: &Attachment) -> bool {
    attachment.container.starts_with(UNNAMED)
}

/// The host link of such an attachment, where it has one to itself.
pub fn unnamed_link(attachment: &Attachment) -> Option<&str> {
    attachment.container.strip_prefix(UNNAMED).filter(|name| name.starts_with(VETH))
}

/// The attachment that an `ifalias` of ours names.
pub fn attachment(alias: &str) -> Option<Attachment> {
    let (container, ifname) = alias.strip_prefix("terway ")?.split(' ').next()?.rsplit_once('/')?;
    Some(Attachment { container: container.into(), ifname: ifname.into() })
}

/// The pod that an `ifalias` of ours names, where there was room for it.
pub fn pod(alias: &str) -> Option<PodName> {
    let (namespace, name) = alias.strip_prefix("terway ")?.split(' ').nth(1)?.split_once('/')?;
    Some(PodName::new(namespace, name))
}

/// `ifalias` of an ENI's link that is lent to a pod: to whom, and what it was called at home. It goes with the link from
/// namespace to namespace, and begins otherwise than that of a veth, which a sweep deletes.
pub fn card_alias(attachment: &Attachment, pod: &PodName, home: &str) -> String {
    let short = format!("terway-eni {home} {attachment}");
    let full = format!("{short} {pod}");
    if full.len() <= ALIAS_MAX { full } else { short }
}

/// What the `ifalias` of a lent ENI says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lent {
    pub attachment: Attachment,
    /// Where there was room for it.
    pub pod: Option<PodName>,
    pub home: String,
}

/// The chain of this kind with this content.
pub fn policy_chain(kind: &str, content: &str) -> String {
    format!("{POLICY_PREFIX}-{kind}-{}", digits(content))
}

pub fn source_chain(content: &str) -> String {
    format!("{SOURCE_PREFIX}-{}", digits(content))
}

/// A set that is made with this content, for IPv4 or IPv6.
pub fn policy_set(family: u8, content: &str) -> String {
    format!("{POLICY_PREFIX}{family}-{}", digits(content))
}

fn digits(content: &str) -> String {
    sha1_smol::Sha1::from(content).digest().to_string()[..14].to_owned()
}

/// Reads the `ifalias` of a lent ENI.
pub fn lent(alias: &str) -> Option<Lent> {
    let (home, rest) = alias.strip_prefix("terway-eni ")?.split_once(' ')?;
    let veths = format!("terway {rest}");
    Some(Lent { attachment: attachment(&veths)?, pod: pod(&veths), home: home.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_veth_is_named_as_calico_would() {
        let pod = PodName::new("default", "client-b6989bf87-2bgtc");
        assert_eq!(host_veth(&pod, "eth0"), "calic95a4947e07");
        assert_ne!(host_veth(&pod, "eth1"), "calic95a4947e07");
        let (web, other) = (PodName::new("default", "web"), PodName::new("default", "webnet1"));
        assert_ne!(host_veth(&web, "net1"), host_veth(&other, "eth0"));
    }

    #[test]
    fn macs_are_unicast_and_locally_administered() {
        for name in ["cali00000000000", "calic95a4947e07", "x"] {
            assert_eq!(host_mac(name).0[0] & 3, 2);
            assert_ne!(host_mac(name), pod_mac(name));
        }
    }

    #[test]
    fn the_tags_that_are_ours_are_known_by_their_marks() {
        let keys: Vec<String> = (0..20).map(|n| format!("key-{n}")).collect();
        let marks = tag_marks(keys.iter().map(String::as_str));
        assert_eq!(marks.len(), 120);
        assert!(keys.iter().all(|key| marks_tag(&marks, key)));
        assert!(!marks_tag(&marks, "key-20") && !marks_tag("", "key-1") && !marks_tag("abc", "key-1"));
    }

    #[test]
    fn a_mark_leads_back_to_its_slot() {
        for n in 1..=MAX_SLOT {
            assert_eq!(slot(mark(n), MARK_MASK), Some(n));
        }
        assert_eq!((MAX_SLOT, NODE_MARK), (62, 0x7e0));
        let foreign = [(0, MARK_MASK), (0x4000, 0x4000), (0x4020, MARK_MASK), (0x20, u32::MAX), (NODE_MARK, MARK_MASK)];
        for (foreign, mask) in foreign {
            assert_eq!(slot(foreign, mask), None);
        }
    }

    #[test]
    fn an_unnamed_attachment_leads_back_to_its_link() {
        let a = unnamed_attachment("calic95a4947e07", "eth0");
        assert_eq!(unnamed_link(&a), Some("calic95a4947e07"));
        assert_eq!(attachment(&alias(&a, &PodName::new("default", "web-0"))), Some(a.clone()));
        let named = Attachment { container: "0123abc".into(), ifname: "eth0".into() };
        let addressed = addressed_attachment("fd00::5".parse().unwrap(), "eth0");
        assert_eq!(addressed.file_name(), "~fd00--5@eth0");
        assert_eq!([&a, &addressed, &named].map(is_unnamed), [true, true, false]);
        assert_eq!([&addressed, &named].map(unnamed_link), [None, None]);
    }

    #[test]
    fn an_alias_leads_back_to_its_attachment() {
        let a = Attachment { container: "0123abc".into(), ifname: "eth0".into() };
        let web = PodName::new("default", "web-0");
        assert_eq!(alias(&a, &web), "terway 0123abc/eth0 default/web-0");
        assert_eq!((attachment(&alias(&a, &web)), pod(&alias(&a, &web))), (Some(a.clone()), Some(web)));
        let long = PodName::new("n".repeat(63), "p".repeat(253));
        assert_eq!((attachment(&alias(&a, &long)), pod(&alias(&a, &long))), (Some(a), None));
        assert_eq!((attachment("somebody's link"), pod("somebody's link")), (None, None));
    }

    #[test]
    fn the_alias_of_a_lent_eni_leads_home_and_is_no_veths() {
        let a = Attachment { container: "0123abc".into(), ifname: "eth0".into() };
        let web = PodName::new("default", "web-0");
        let alias = card_alias(&a, &web, "eth1");
        assert_eq!(alias, "terway-eni eth1 0123abc/eth0 default/web-0");
        assert_eq!(lent(&alias), Some(Lent { attachment: a.clone(), pod: Some(web), home: "eth1".into() }));
        assert_eq!(attachment(&alias), None);
        let long = card_alias(&a, &PodName::new("n".repeat(63), "p".repeat(253)), "eth1");
        assert_eq!(lent(&long), Some(Lent { attachment: a.clone(), pod: None, home: "eth1".into() }));
        assert_eq!(lent(&self::alias(&a, &PodName::new("default", "web-0"))), None);
    }
}
