//! What the old Terway wrote down of a pod, in the forms of both its generations.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use serde::Deserialize;

use crate::ip::{IpPair, Mac};
use crate::pod::PodName;

/// A pod as the old Terway's database has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OldPod {
    pub name: PodName,
    pub uid: String,
    /// Later versions wrote it down.
    pub container: Option<String>,
    pub netns: Option<PathBuf>,
    pub kind: Kind,
    pub ip: IpPair,
    /// The ENI, by its MAC.
    pub eni: Option<Mac>,
    /// Its address was kept for it when it was deleted.
    pub sticky: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An address of an ENI that pods share, by policy routing or IPvlan.
    Shared,
    /// An ENI of its own.
    Exclusive,
    /// An address of an ENI that is a member of a trunk.
    Member,
    /// An address out of the node's own range (VPC mode).
    Range,
}

/// A value of the bucket `relation`. Go writes what is empty as `null`, as "" or not at all.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Relation {
    resources: Option<Vec<Resource>>,
    pod_info: Option<PodInfo>,
    net_ns: Option<String>,
    #[serde(rename = "ContainerID")]
    container: Option<String>,
    net_conf: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Resource {
    #[serde(rename = "type")]
    kind: Option<String>,
    id: Option<String>,
    eni_mac: Option<String>,
    ipv4: Option<String>,
    ipv6: Option<String>,
}

/// A value of the bucket `pods`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Stored {
    pod: Option<PodInfo>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct PodInfo {
    name: Option<String>,
    namespace: Option<String>,
    pod_network_type: Option<String>,
    #[serde(rename = "PodIP")]
    pod_ip: Option<String>,
    #[serde(rename = "PodIPs")]
    pod_ips: Option<Ips>,
    /// Nanoseconds.
    #[serde(rename = "IPStickTime")]
    stick_time: Option<i64>,
    #[serde(rename = "PodUID")]
    uid: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Ips {
    #[serde(rename = "IPv4")]
    v4: Option<String>,
    #[serde(rename = "IPv6")]
    v6: Option<String>,
}

/// An element of the text in `NetConf`.
#[derive(Debug, Deserialize)]
struct NetConf {
    #[serde(rename = "ENIInfo")]
    eni: Option<EniInfo>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct EniInfo {
    #[serde(default)]
    trunk: bool,
}

/// The pod of a record in `relation`; none where the record speaks of nothing that we know.
pub fn relation(key: &str, value: &[u8]) -> Result<Option<OldPod>, String> {
    let record: Relation = serde_json::from_slice(value).map_err(|e| e.to_string())?;
    let info = record.pod_info.unwrap_or_default();
    let resources = record.resources.unwrap_or_default();
    let is = |resource: &&Resource, kind: &str| resource.kind.as_deref() == Some(kind);
    let find = |kind| resources.iter().find(|r| is(r, kind));
    let (kind, resource) = match (find("eniIp"), find("eni"), find("veth")) {
        (Some(shared), ..) if is_member(record.net_conf.as_deref()) => (Kind::Member, shared),
        (Some(shared), ..) => (Kind::Shared, shared),
        (None, Some(exclusive), _) => (Kind::Exclusive, exclusive),
        (None, None, Some(veth)) => (Kind::Range, veth),
        _ => return Ok(None),
    };
    let own = Ips { v4: resource.ipv4.clone(), v6: resource.ipv6.clone() };
    let id = resource.id.as_deref().unwrap_or_default();
    let ip = [addresses(&own), told(&info), in_id(id)].into_iter().find(|ip| !ip.is_empty()).unwrap_or_default();
    let mac = resource.eni_mac.as_deref().and_then(|mac| mac.parse().ok()).or_else(|| mac_in_id(id));
    let (container, netns) = (filled(record.container), filled(record.net_ns).map(PathBuf::from));
    Ok(Some(OldPod { container, netns, ..old_pod(key, info, kind, ip, mac)? }))
}

/// The pod of a record in `pods`, which says less.
pub fn pod(key: &str, value: &[u8]) -> Result<Option<OldPod>, String> {
    let stored: Stored = serde_json::from_slice(value).map_err(|e| e.to_string())?;
    let Some(info) = stored.pod else { return Ok(None) };
    let kind = match info.pod_network_type.as_deref() {
        Some("VPCENI") => Kind::Exclusive,
        Some("VPCIP") => Kind::Range,
        _ => Kind::Shared,
    };
    let ip = told(&info);
    old_pod(key, info, kind, ip, None).map(Some)
}

fn old_pod(key: &str, info: PodInfo, kind: Kind, ip: IpPair, eni: Option<Mac>) -> Result<OldPod, String> {
    let name = match (filled(info.namespace), filled(info.name), key.split_once('/')) {
        (Some(namespace), Some(name), _) => PodName::new(namespace, name),
        (_, _, Some((namespace, name))) => PodName::new(namespace, name),
        _ => return Err("names no pod".into()),
    };
    let (uid, sticky) = (info.uid.unwrap_or_default(), info.stick_time.is_some_and(|t| t > 0));
    Ok(OldPod { name, uid, container: None, netns: None, kind, ip, eni, sticky })
}

fn is_member(net_conf: Option<&str>) -> bool {
    let confs: Vec<NetConf> =
        net_conf.and_then(|text| serde_json::from_slice(text.as_bytes()).ok()).unwrap_or_default();
    confs.iter().any(|conf| conf.eni.as_ref().is_some_and(|eni| eni.trunk))
}

fn told(info: &PodInfo) -> IpPair {
    let pair = info.pod_ips.as_ref().map(addresses).unwrap_or_default();
    let single = || info.pod_ip.as_deref().and_then(|ip| ip.parse::<IpAddr>().ok());
    match (pair.is_empty(), single()) {
        (true, Some(IpAddr::V4(v4))) => IpPair { v4: Some(v4), v6: None },
        (true, Some(IpAddr::V6(v6))) => IpPair { v4: None, v6: Some(v6) },
        _ => pair,
    }
}

fn addresses(ips: &Ips) -> IpPair {
    let v4 = ips.v4.as_deref().and_then(|ip| ip.parse::<Ipv4Addr>().ok());
    IpPair { v4, v6: ips.v6.as_deref().and_then(|ip| ip.parse::<Ipv6Addr>().ok()) }
}

/// `MAC.IPv4`, perhaps with more behind it, names an address of a shared ENI.
fn in_id(id: &str) -> IpPair {
    let octets: Vec<&str> = id.split('.').skip(1).take(4).collect();
    // What follows the address in a pair of both families begins with something else than a digit.
    let end = |last: &str| last.find(|c: char| !c.is_ascii_digit()).unwrap_or(last.len());
    let [a, b, c, d] = octets[..] else { return IpPair::default() };
    IpPair { v4: format!("{a}.{b}.{c}.{}", &d[..end(d)]).parse().ok(), v6: None }
}

fn mac_in_id(id: &str) -> Option<Mac> {
    id.split('.').next()?.parse().ok()
}

fn filled(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = r#"{"Name":"a","Namespace":"default","TcIngress":0,"TcEgress":0,"PodNetworkType":"ENIMultiIP","PodIP":"",
        "PodIPs":{"IPv4":"10.0.32.5","IPv6":""},"SandboxExited":false,"EipInfo":{"PodEip":false,"PodEipID":"","PodEipIP":"",
        "PodEipBandWidth":0,"PodEipChargeType":"","PodEipISP":"","PodEipPoolID":"","PodEipBandwidthPackageID":""},
        "IPStickTime":300000000000,"PodENI":false,"PodUID":"1234"}"#;

    fn mac(text: &str) -> Option<Mac> {
        Some(text.parse().unwrap())
    }

    fn a() -> OldPod {
        OldPod {
            name: PodName::new("default", "a"),
            uid: "1234".into(),
            container: None,
            netns: Some("/proc/77/ns/net".into()),
            kind: Kind::Shared,
            ip: IpPair::v4(Ipv4Addr::new(10, 0, 32, 5)),
            eni: mac("00:16:3e:00:00:01"),
            sticky: true,
        }
    }

    #[test]
    fn a_pod_of_the_first_generation() {
        let text = format!(
            r#"{{"Resources":[{{"type":"eniIp","id":"00:16:3e:00:00:01.10.0.32.5","extra_eip_info":null,"eni_id":"","eni_mac":"",
            "ipv4":"","ipv6":""}}],"PodInfo":{INFO},"NetNs":"/proc/77/ns/net"}}"#
        );
        assert_eq!(relation("default/a", text.as_bytes()), Ok(Some(a())));
    }

    #[test]
    fn a_pod_of_the_second_generation() {
        let text = format!(
            r#"{{"Resources":[{{"type":"eniIp","id":"","extra_eip_info":null,"eni_id":"eni-1","eni_mac":"00:16:3e:00:00:01",
            "ipv4":"10.0.32.5","ipv6":"fd00::5"}}],"PodInfo":{INFO},"NetNs":"/var/run/netns/cni-1","ContainerID":"0123abc",
            "NetConf":"[{{\"BasicInfo\":{{\"PodIP\":{{\"IPv4\":\"10.0.32.5\"}}}},\"ENIInfo\":{{\"MAC\":\"00:16:3e:00:00:01\"}},\"IfName\":\"eth0\"}}]"}}"#
        );
        let ip = IpPair { v6: Some("fd00::5".parse().unwrap()), ..a().ip };
        let netns = Some("/var/run/netns/cni-1".into());
        assert_eq!(
            relation("default/a", text.as_bytes()),
            Ok(Some(OldPod { ip, netns, container: Some("0123abc".into()), ..a() }))
        );
        let trunk = text.replace(r#"\"ENIInfo\":{"#, r#"\"ENIInfo\":{\"Trunk\":true,"#);
        assert_eq!(relation("default/a", trunk.as_bytes()).unwrap().unwrap().kind, Kind::Member);
    }

    #[test]
    fn pods_with_an_eni_or_an_address_of_the_node() {
        let text = |resource: &str| format!(r#"{{"Resources":[{resource}],"PodInfo":null,"NetNs":null}}"#);
        let exclusive = text(r#"{"type":"eni","id":"00:16:3e:00:00:02","ipv4":"10.0.32.9"}"#);
        let pod = relation("kube-system/b", exclusive.as_bytes()).unwrap().unwrap();
        assert_eq!(
            (pod.kind, pod.eni, pod.name.to_string()),
            (Kind::Exclusive, mac("00:16:3e:00:00:02"), "kube-system/b".into())
        );
        assert_eq!(pod.ip, IpPair::v4(Ipv4Addr::new(10, 0, 32, 9)));
        let range = text(r#"{"type":"veth","id":"cali0"}, {"type":"eip","id":"eip-1"}"#);
        assert_eq!(relation("default/c", range.as_bytes()).unwrap().unwrap().kind, Kind::Range);
        assert_eq!(relation("default/d", text("").as_bytes()), Ok(None));
    }

    #[test]
    fn a_pod_that_stands_alone() {
        let text = format!(r#"{{"Pod":{INFO}}}"#);
        assert_eq!(pod("default/a", text.as_bytes()), Ok(Some(OldPod { netns: None, eni: None, ..a() })));
        assert_eq!(pod("default/a", br#"{"Pod":null}"#), Ok(None));
    }

    #[test]
    fn what_is_no_record_is_said() {
        for bad in ["", "{", "[]", r#"{"Resources":7}"#, "\u{0}\u{1}"] {
            assert!(relation("default/a", bad.as_bytes()).is_err(), "{bad}");
        }
        assert_eq!(relation("nobody", br#"{"Resources":[{"type":"eni"}]}"#), Err("names no pod".into()));
    }

    #[test]
    fn the_address_in_an_id() {
        for (id, want) in [
            ("00:16:3e:00:00:01.10.0.32.5", Some("10.0.32.5")),
            ("00:16:3e:00:00:01.10.0.32.5fd00::5", Some("10.0.32.5")),
            ("00:16:3e:00:00:01.10.0.32.5.fd00::5", Some("10.0.32.5")),
            ("00:16:3e:00:00:01", None),
            ("00:16:3e:00:00:01.10.0.32", None),
            ("", None),
        ] {
            assert_eq!(in_id(id).v4, want.map(|ip| ip.parse().unwrap()), "{id}");
        }
    }
}
