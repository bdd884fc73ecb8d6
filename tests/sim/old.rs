//! A node as the old Terway leaves it: its ENI, the pods it has wired, and its databases, in the forms of both its generations.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use serde_json::{Value, json};
use terway::ours::{OLD_STORE, host_veth};

use super::bolt;
use super::cluster::{Cluster, Member, soon};
use super::traffic::Place;
use super::world::PODS;

/// Up to 1.2, and later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Generation {
    First,
    Second,
}

/// An ENI that the old Terway made: attached, tagged as its own, with addresses, and set up in the kernel.
pub struct OldEni {
    pub id: String,
    pub mac: String,
    pub link: String,
    pub table: u32,
    pub ips: Vec<Ipv4Addr>,
}

/// What the old Terway wrote down of one pod.
pub struct Record {
    pub key: String,
    pub relation: Value,
    pub pod: Value,
}

/// As it writes it; every link that it has no pod for ends at a DROP.
const FELIX: &str = r#"*raw
:cali-PREROUTING - [0:0]
-A PREROUTING -m comment --comment "cali:6gwbT8clXdHdC1b1" -j cali-PREROUTING
COMMIT
*mangle
:cali-POSTROUTING - [0:0]
-A POSTROUTING -m comment --comment "cali:O3lYWMrLQYEMJtB5" -j cali-POSTROUTING
COMMIT
*nat
:cali-POSTROUTING - [0:0]
:cali-nat-outgoing - [0:0]
-A POSTROUTING -m comment --comment "cali:O3lYWMrLQYEMJtB5" -j cali-POSTROUTING
-A cali-POSTROUTING -j cali-nat-outgoing
COMMIT
*filter
:cali-FORWARD - [0:0]
:cali-INPUT - [0:0]
:cali-from-wl-dispatch - [0:0]
:cali-to-wl-dispatch - [0:0]
:cali-wl-to-host - [0:0]
:pods
-A FORWARD -m comment --comment "cali:wUHhoiAYhphO9Mso" -j cali-FORWARD
-A FORWARD -m comment --comment "cali:S93hcgKJrXEqnTfs" -m comment --comment "Policy explicitly accepted packet." -m mark --mark 0x10000/0x10000 -j ACCEPT
-A INPUT -m comment --comment "cali:Cz_u1IQiXIMmKD4c" -j cali-INPUT
-A cali-FORWARD -i cali+ -j cali-from-wl-dispatch
-A cali-FORWARD -o cali+ -j cali-to-wl-dispatch
-A cali-INPUT -i cali+ -g cali-wl-to-host
-A cali-wl-to-host -j cali-from-wl-dispatch
-A cali-wl-to-host -j ACCEPT
-A pods
-A cali-from-wl-dispatch -m comment --comment "Unknown interface" -j DROP
-A cali-to-wl-dispatch -m comment --comment "Unknown interface" -j DROP
COMMIT
"#;

impl Cluster {
    pub fn old_eni(&self, n: usize, addresses: usize) -> OldEni {
        let (cloud, node) = (&self.world.cloud, self.node(n));
        let operate = |action: &str, params: &[(&str, &str)]| {
            cloud.operate(action, params).unwrap_or_else(|e| panic!("{action}: {e:?}"))
        };
        let count = (addresses - 1).to_string();
        let mut params =
            vec![("VSwitchId", PODS), ("SecurityGroupId", "sg-sim"), ("Description", "interface create by terway")];
        params.extend([("Tag.1.Key", "creator"), ("Tag.1.Value", "terway")]);
        if addresses > 1 {
            params.push(("SecondaryPrivateIpAddressCount", &count));
        }
        let made = operate("CreateNetworkInterface", &params);
        let id = made["NetworkInterfaceId"].as_str().expect("an id").to_owned();
        let is = |state: &str| cloud.eni(&id).is_some_and(|eni| format!("{:?}", eni.status) == state);
        soon("the ENI is Available", || is("Available"));
        operate("AttachNetworkInterface", &[("NetworkInterfaceId", &id), ("InstanceId", &node.id)]);
        soon("the ENI is attached", || is("InUse"));
        let eni = cloud.eni(&id).expect("it is there");
        let mac = eni.mac.to_string();
        soon("the ENI has a link", || node.ifname(&mac).is_some());
        let link = node.ifname(&mac).expect("just seen");
        let index: u32 = node.sh(&format!("cat /sys/class/net/{link}/ifindex")).trim().parse().expect("a number");
        let table = 1000 + index;
        node.link_up(&link);
        node.sh(&format!("ip addr add {}/32 dev {link}", node.addr));
        node.sh(&format!("ip route replace default via {} dev {link} onlink table {table}", eni.gateway));
        for path in ["ip_forward", "conf/default/forwarding", "conf/all/forwarding"] {
            node.sh(&format!("echo 1 > /proc/sys/net/ipv4/{path}"));
        }
        for path in ["all", "default", "eth0", &link] {
            node.sh(&format!("echo 0 > /proc/sys/net/ipv4/conf/{path}/rp_filter"));
        }
        OldEni { id, mac, link, table, ips: eni.v4 }
    }

    /// A pod on policy routing, by the commands that come to what the old Terway does over netlink.
    pub fn old_pod(&self, n: usize, name: &str, eni: &OldEni, ip: Ipv4Addr, generation: Generation) -> Member {
        let mut member = self.schedule(n, name);
        member.ip = ip.to_string();
        let (node, veth) = (self.node(n), host_veth(&member.sandbox.pod, "eth0"));
        let netns = member.sandbox.netns.file_name().and_then(|name| name.to_str()).expect("a name");
        node.sh(&format!("ip link add {veth} mtu 1500 type veth peer name eth0 mtu 1500 netns {netns}"));
        node.sh(&format!("ip link set {veth} up"));
        let mac = node.sh(&format!("cat /sys/class/net/{veth}/address"));
        member.pod.sh(&format!("ip link set eth0 up; ip addr add {ip}/32 dev eth0"));
        member.pod.sh(&format!("ip neigh replace 169.254.1.1 lladdr {} dev eth0 nud permanent", mac.trim()));
        member.pod.sh("ip route add default via 169.254.1.1 dev eth0 onlink");
        let iif = if generation == Generation::First { format!("iif {veth}") } else { String::new() };
        node.sh(&format!("ip route add {ip}/32 dev {veth} scope link"));
        node.sh(&format!("ip rule add priority 512 to {ip} lookup main"));
        node.sh(&format!("ip rule add priority 2048 from {ip} {iif} lookup {}", eni.table));
        member
    }

    /// Gives the ENI addresses of IPv6 as well, and the node its way out by them.
    pub fn old_eni_v6(&self, n: usize, eni: &OldEni, addresses: usize) -> Vec<Ipv6Addr> {
        let (cloud, node, count) = (&self.world.cloud, self.node(n), addresses.to_string());
        let params = [("NetworkInterfaceId", eni.id.as_str()), ("Ipv6AddressCount", &count)];
        cloud.operate("AssignIpv6Addresses", &params).unwrap_or_else(|e| panic!("AssignIpv6Addresses: {e:?}"));
        let (view, link) = (cloud.eni(&eni.id).expect("it is there"), &eni.link);
        let gateway = view.gateway6.expect("its vSwitch has IPv6");
        node.sh(&format!("sysctl -qw net.ipv6.conf.{link}.disable_ipv6=0 net.ipv6.conf.{link}.accept_ra=0"));
        node.sh("sysctl -qw net.ipv6.conf.all.forwarding=1");
        node.sh(&format!("ip -6 route replace default via {gateway} dev {link} onlink table {}", eni.table));
        view.v6
    }

    /// Gives a pod of the old Terway an address of IPv6 as well.
    pub fn old_pod_v6(&self, n: usize, member: &mut Member, eni: &OldEni, ip: Ipv6Addr) {
        let (node, veth) = (self.node(n), host_veth(&member.sandbox.pod, "eth0"));
        let mac = node.sh(&format!("cat /sys/class/net/{veth}/address"));
        node.sh(&format!("sysctl -qw net.ipv6.conf.{veth}.disable_ipv6=0 net.ipv6.conf.{veth}.forwarding=1"));
        member.pod.sh("sysctl -qw net.ipv6.conf.eth0.disable_ipv6=0 net.ipv6.conf.eth0.accept_ra=0");
        member.pod.sh(&format!("ip addr add {ip}/128 dev eth0 nodad"));
        member.pod.sh(&format!("ip neigh replace fe80::1 lladdr {} dev eth0 nud permanent", mac.trim()));
        member.pod.sh("ip -6 route add default via fe80::1 dev eth0 onlink");
        node.sh(&format!("ip -6 route add {ip}/128 dev {veth}"));
        node.sh(&format!("ip -6 rule add priority 512 to {ip} lookup main"));
        node.sh(&format!("ip -6 rule add priority 2048 from {ip} lookup {}", eni.table));
        member.ips = vec![member.ip.clone(), ip.to_string()];
    }

    /// Writes both databases anew, after so many transactions.
    pub fn old_store(&self, n: usize, records: &[Record], txid: u64) {
        let file = |bucket: &str, value: fn(&Record) -> &Value| {
            let records: BTreeMap<String, String> =
                records.iter().map(|r| (r.key.clone(), value(r).to_string())).collect();
            bolt::database(bucket, &records, txid)
        };
        self.old_file(n, "ResRelation.db", &file("relation", |r| &r.relation));
        self.old_file(n, "pod.db", &file("pods", |r| &r.pod));
    }

    pub fn old_file(&self, n: usize, name: &str, bytes: &[u8]) {
        self.node(n).run(|| {
            std::fs::create_dir_all(OLD_STORE).expect("create the folder");
            std::fs::write(Path::new(OLD_STORE).join(name), bytes).expect("write the database");
        });
    }

    /// What felix has in netfilter for these pods, by this kind of iptables, short of what no packet comes by: it stays when felix ends.
    pub fn old_felix(&self, n: usize, members: &[&Member], kind: &str) {
        for (family, of, addresses) in [("iptables", 4, "inet"), ("ip6tables", 6, "inet6")] {
            let set = format!("cali{of}0s:denied");
            let mut chains = String::new();
            let mut rules = format!("-A cali-to-wl-dispatch -m set --match-set {set} src -j DROP\n");
            for member in members {
                let veth = host_veth(&member.sandbox.pod, "eth0");
                for (side, ways, way) in [("-i", "from", "fw"), ("-o", "to", "tw")] {
                    chains += &format!(":cali-{way}-{veth} - [0:0]\n");
                    rules += &format!("-A cali-{ways}-wl-dispatch {side} {veth} -g cali-{way}-{veth}\n");
                    rules += &format!("-A cali-{way}-{veth} -j MARK --set-xmark 0x10000/0x10000\n");
                }
            }
            let text = FELIX.replace(":pods\n", &chains).replace("-A pods\n", &rules);
            self.node(n).write_file("/run/felix", &text);
            self.node(n).sh(&format!(
                "ipset -exist create {set} hash:net family {addresses}; {family}{kind}-restore --noflush </run/felix"
            ));
        }
    }

    /// The lock that the old Terway holds on its database while it runs.
    pub fn old_lock(&self, n: usize) -> File {
        self.node(n).run(|| {
            let file = File::open(Path::new(OLD_STORE).join("ResRelation.db")).expect("it was written");
            file.try_lock().expect("nobody has it");
            file
        })
    }
}

impl Record {
    pub fn of(member: &Member, eni: &OldEni, generation: Generation) -> Record {
        let second = generation == Generation::Second;
        let text = |text: &str| if second { text.to_owned() } else { String::new() };
        let v6 = member.ips.get(1).map_or("", String::as_str);
        let resource = json!({
            "type": "eniIp", "id": format!("{}.{}", eni.mac, member.ip), "extra_eip_info": null,
            "eni_id": text(&eni.id), "eni_mac": text(&eni.mac), "ipv4": text(&member.ip), "ipv6": text(v6),
        });
        let mut relation = json!({
            "Resources": [resource], "PodInfo": info(member, "ENIMultiIP"), "NetNs": member.sandbox.netns,
        });
        if second {
            let conf = json!([{
                "BasicInfo": {"PodIP": {"IPv4": member.ip}}, "ENIInfo": {"MAC": eni.mac}, "IfName": "eth0",
                "DefaultRoute": true,
            }]);
            relation["ContainerID"] = member.sandbox.container.as_str().into();
            relation["NetConf"] = conf.to_string().into();
        }
        Record::new(member, relation)
    }

    /// A pod with an ENI of its own.
    pub fn exclusive(member: &Member, eni: &OldEni) -> Record {
        let resource = json!({"type": "eni", "id": eni.mac, "extra_eip_info": null, "eni_id": eni.id, "eni_mac": eni.mac, "ipv4": member.ip, "ipv6": ""});
        let relation = json!({
            "Resources": [resource], "PodInfo": info(member, "VPCENI"), "NetNs": member.sandbox.netns,
            "ContainerID": member.sandbox.container,
        });
        Record::new(member, relation)
    }

    /// Its address is kept for it, as for a pod of a StatefulSet.
    pub fn sticky(mut self) -> Record {
        for place in [&mut self.relation["PodInfo"], &mut self.pod["Pod"]] {
            place["IPStickTime"] = 300_000_000_000_u64.into();
        }
        self
    }

    fn new(member: &Member, relation: Value) -> Record {
        let pod = json!({"Pod": relation["PodInfo"]});
        Record { key: member.sandbox.pod.to_string(), relation, pod }
    }
}

fn info(member: &Member, kind: &str) -> Value {
    let pod = &member.sandbox.pod;
    json!({
        "Name": pod.name, "Namespace": pod.namespace, "TcIngress": 0, "TcEgress": 0, "PodNetworkType": kind,
        "PodIP": "", "PodIPs": {"IPv4": member.ip, "IPv6": member.ips.get(1).map_or("", String::as_str)}, "SandboxExited": false,
        "EipInfo": {"PodEip": false, "PodEipID": "", "PodEipIP": "", "PodEipBandWidth": 0, "PodEipChargeType": "",
            "PodEipISP": "", "PodEipPoolID": "", "PodEipBandwidthPackageID": ""},
        "IPStickTime": 0, "PodENI": false, "PodUID": format!("uid-of-{}", pod.name),
    })
}
