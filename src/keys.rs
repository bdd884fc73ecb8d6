//! What a person should know of each key of the configuration; `docs/configuration.md` is made of it (`make docs`).

/// Keys that belong together.
pub struct Group {
    pub title: &'static str,
    pub keys: &'static [Key],
}

pub struct Key {
    pub name: &'static str,
    pub usual: Usual,
    pub concerns: Concerns,
    pub meaning: &'static str,
}

/// What holds where the key is not set.
pub enum Usual {
    /// The same as if this JSON stood there, which a test makes sure of.
    Json(&'static str),
    /// What follows from something else.
    Words(&'static str),
}

/// The modes in which a key changes anything.
#[derive(Clone, Copy)]
pub enum Concerns {
    All,
    SharedEnis,
    WholeEnis,
}

impl Concerns {
    pub fn words(self) -> &'static str {
        match self {
            Concerns::All => "every mode",
            Concerns::SharedEnis => "shared ENIs",
            Concerns::WholeEnis => "an ENI per pod",
        }
    }
}

use Concerns::{All, SharedEnis, WholeEnis};
use Usual::{Json, Words};

const fn key(name: &'static str, usual: Usual, concerns: Concerns, meaning: &'static str) -> Key {
    Key { name, usual, concerns, meaning }
}

/// In the order in which they are read about.
pub const GROUPS: &[Group] = &[
    Group { title: "Pods' addresses", keys: ADDRESSES },
    Group { title: "How many are kept ready", keys: POOL },
    Group { title: "ENIs", keys: ENIS },
    Group { title: "Services at the socket", keys: SERVICES },
    Group { title: "Network policies", keys: POLICIES },
    Group { title: "Kubernetes", keys: KUBERNETES },
    Group { title: "The cloud", keys: CLOUD },
];

const ADDRESSES: &[Key] = &[
    key("ip_stack", Json(r#""ipv4""#), All, "the addresses that every pod has: of one family, or a pair"),
    key(
        "service_cidr",
        Words("what kubeadm has left in ConfigMap `kube-system/kubeadm-config`, if there is one"),
        All,
        "where Services have their addresses: `v4`, or `v4,v6`; must not overlap the VPC. Needed by pods with an ENI of their own and on IPvlan, \
         whose packets to Services are led to the node by it; pods that have an ENI of their own keep the way that they came with",
    ),
    key(
        "mtu",
        Words("that of the network configuration, else `1500`"),
        All,
        "of ENIs, and of the links of pods that come from then on where the network configuration says no `mtu`; 1280 or more where pods have IPv6",
    ),
    key(
        "extra_routes",
        Json("[]"),
        All,
        "`[{\"dst\": \"10.1.0.0/16\"}]`: routes of each new pod, by the way of its default route",
    ),
    key("ip_cooldown", Json(r#""130s""#), All, "how long an address rests after its pod"),
    key(
        "ip_reservation_time",
        Json(r#""5m""#),
        All,
        "how long the address of a StatefulSet's pod is kept for the next pod of its name on this node; so it is for pods with the annotation \
         `k8s.aliyun.com/pod-ip-reservation: \"true\"` when they come; `0`: not at all. A pod that has an ENI to itself where others share has that ENI again \
         too, unless others have begun to use it",
    ),
    key(
        "custom_stateful_workload_kinds",
        Json("[]"),
        All,
        "further kinds whose pods are treated like those of a StatefulSet, if they come from then on",
    ),
    key(
        "orphan_release_after",
        Json(r#""1m""#),
        All,
        "an address whose pod has been gone for so long is freed though no DEL came",
    ),
];

const POOL: &[Key] = &[
    key("min_pool_size", Json("0"), All, "idle addresses to keep ready; with an ENI per pod: idle ENIs"),
    key("max_pool_size", Json("5"), All, "the most that are kept idle; where it is less than `min_pool_size`, that is"),
    key(
        "ip_warm_up_size",
        Json("0"),
        All,
        "addresses to have once after a start, those in use included; kept until the first reclaim",
    ),
    key(
        "idle_ip_reclaim_after",
        Words("off"),
        All,
        "when nobody has wanted an address for so long, idle ones go down to `min_pool_size`",
    ),
    key("idle_ip_reclaim_interval", Json(r#""10m""#), All, "pause between two rounds of that"),
    key("idle_ip_reclaim_batch_size", Json("5"), All, "the most that go in one round"),
    key(
        "idle_ip_reclaim_jitter_factor",
        Json(r#""0.1""#),
        All,
        "the pause is lengthened by up to this part of it, so that nodes do not go in step",
    ),
    key("ip_pool_sync_period", Json(r#""2m""#), All, "how often the pool is compared with the cloud"),
    key(
        "enable_ip_prefix",
        Json("false"),
        SharedEnis,
        "IPv4 addresses by blocks of 16, each in one place of an ENI: sixteen times the pods. For `ip_stack` `ipv4` alone \
         (refused otherwise: an ENI holds no more IPv6 addresses for it, so that pods with both would not be more); a vSwitch without a free \
         block gives single addresses",
    ),
    key("ipv4_prefix_count", Json("0"), SharedEnis, "the most blocks of an ENI; 0: what it can hold"),
];

const ENIS: &[Key] = &[
    key(
        "daemon_mode",
        Words("the node's label, else `ENIMultiIP`"),
        All,
        "whether pods share ENIs (`ENIMultiIP`) or have one each (`ENIOnly`); the option `--daemon-mode` goes before it",
    ),
    key(
        "vswitches",
        Words("the instance's own"),
        All,
        "vSwitches for pods, by zone: `{\"cn-hangzhou-h\": [\"vsw-1\", \"vsw-2\"]}`. ENIs of one that is taken away serve what they have, and \
         are replaced when empty",
    ),
    key(
        "vswitch_selection_policy",
        Json(r#""random""#),
        All,
        "which of them the next ENI is made in; `ordered` and `most`: the one with most free addresses; `listed`: the first that has any",
    ),
    key("security_group", Words("none"), All, "one more of `security_groups`"),
    key(
        "security_groups",
        Words("those of the instance's own ENI"),
        All,
        "of all our ENIs, those that run included; at most 10",
    ),
    key("resource_group_id", Words("none"), All, "the resource group in which ENIs are made"),
    key("min_eni", Json("0"), All, "the fewest secondary ENIs"),
    key("max_eni", Json("0"), All, "the most; 0: what the instance type holds"),
    key(
        "eni_selection_policy",
        Json(r#""most_ips""#),
        SharedEnis,
        "`most_ips` fills the fullest ENI first, `least_ips` spreads",
    ),
    key("eni_idle_release_after", Json(r#""10m""#), All, "an ENI without pods is given back after so long"),
    key("eni_cap_ratio", Json("1.0"), WholeEnis, "ENIs for pods of a node: int(ENIs × ratio) + shift − 1"),
    key("eni_cap_shift", Json("0"), WholeEnis, "the shift of that"),
    key(
        "eni_tags",
        Json("{}"),
        All,
        "tags of all our ENIs, with `eni_tag_filter` at most 17; a tag that somebody else has set is never changed",
    ),
    key("eni_tag_filter", Json("{}"), All, "only ENIs that bear all of these are used; those that we make bear them"),
    key(
        "eni_tag_block_list",
        Json("[]"),
        All,
        "`[{\"key\": \"team\", \"value\": \"db\"}]`: ENIs that bear one of these are not used. One that we are kept from later serves the pods it \
         has and is not touched",
    ),
];

const SERVICES: &[Key] = &[
    key(
        "ebpf_services",
        Words(
            "true where the network configuration says `IPVlan`, and for pods with an ENI of their own that have policies; else false",
        ),
        All,
        "connections to Services are led to their endpoints at the socket, by eBPF, for pods and the node itself; kernel 4.19, cgroup2",
    ),
    key(
        "service_frontends",
        Json("65536"),
        All,
        "the most addresses of Services, port by port, for which there is room",
    ),
    key("service_backends", Json("131072"), All, "the most endpoints"),
    key("cgroup_root", Words("the root: all processes"), All, "the cgroup2 whose processes that is for"),
];

const POLICIES: &[Key] = &[
    key(
        "disable_network_policy",
        Json("false"),
        All,
        "nothing is watched for policies, nothing enforced, and what was is taken away; also a file of this name beside `eni.json`",
    ),
    key(
        "policy_renderer",
        Json(r#""auto""#),
        All,
        "who enforces them; `auto`: eBPF with IPvlan, an ENI per pod, or Services at the socket, and where there are no ipsets; else iptables",
    ),
    key(
        "policy_addresses",
        Json("131072"),
        All,
        "the most addresses and prefixes that policies of this node may name, pods that their selectors select included; with iptables, of one peer. Beyond it new pods are refused, and what runs goes on as it was",
    ),
    key(
        "policy_pairs",
        Json("524288"),
        All,
        "with eBPF, the most combinations of pods' rules and classes of addresses",
    ),
    key("policy_ports", Json("262144"), All, "with eBPF, the most ranges of ports in all of these"),
    key(
        "policy_flows",
        Json("65536"),
        All,
        "with eBPF, the flows that are remembered for their answers; the one that was idle the longest makes room",
    ),
];

const KUBERNETES: &[Key] = &[
    key(
        "kubeconfig",
        Words("the service account of the pod that `terwayd` runs in"),
        All,
        "how the API server is reached; the option `--kubeconfig` goes before it",
    ),
    key("node_name", Words("the host name in lower case"), All, "this node's name in Kubernetes"),
    key(
        "conflist",
        Json(r#""/etc/cni/net.d/10-terway.conflist""#),
        All,
        "the network configuration that is written once pods can be served",
    ),
    key(
        "kube_client_qps",
        Words("unbounded"),
        All,
        "requests a second to the API server; 5 where only the burst is said",
    ),
    key(
        "kube_client_burst",
        Words("unbounded"),
        All,
        "how many of them may go at once; 10 where only the rate is said",
    ),
    key(
        "disable_device_plugin",
        Json("false"),
        All,
        "no extended resources `aliyun/eni` and `aliyun/eniip` on the node",
    ),
    key(
        "enable_patch_pod_ips",
        Json("false"),
        All,
        "the annotation `k8s.aliyun.com/pod-ips` on each pod: one request to the API server for every pod that starts",
    ),
];

const CLOUD: &[Key] = &[
    key("access_key", Words("the instance's RAM role"), All, "credentials; with `access_secret`"),
    key("access_secret", Words("the instance's RAM role"), All, "credentials; never in a log"),
    key("credential_path", Words("none"), All, "the encrypted token file of a managed cluster"),
    key("region_id", Words("what the metadata service says"), All, "where the cloud is"),
    key("ecs_endpoint", Words("by region"), All, "of the ECS API"),
    key("vpc_endpoint", Words("by region"), All, "of the VPC API"),
    key("metadata_endpoint", Words("`100.100.100.200`"), All, "of the metadata service"),
    key("client_scheme", Json(r#""https""#), All, "how the APIs are spoken to where an endpoint does not say it"),
    key("signature_version", Json(r#""3.0""#), All, "`3.0`: ACS3-HMAC-SHA256; `1.0`: HMAC-SHA1 over the query"),
    key("ca_file", Words("the system's"), All, "certificates to trust"),
    key(
        "rate_limit",
        Json("{}"),
        All,
        "calls a minute, by API action: `{\"AttachNetworkInterface\": 60}`; calls wait for their turn",
    ),
    key("version", Words("`\"1\"`"), All, "of the format; there is one"),
];
