//! Where kube-proxy, or whoever else translates addresses on the node, leads a packet: by iptables, nftables or IPVS.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;

use serde_json::Value;

use super::Flow;
use super::step::Halt;
use super::tables::{Fate, Packet, Tables, chain, comment};
use super::walk::{Onward, Walk};
use crate::error::Error;
use crate::kernel::filters;
use crate::ours;
use crate::rpc::Wiring;
use crate::rules::{TCP, UDP};

/// What to look at where kube-proxy refuses.
const LAID: &str = "kubectl get endpointslices; and whether kube-proxy runs on this node";

/// What somebody who translates makes of an address.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Said {
    Leads { service: String, endpoints: BTreeSet<SocketAddr>, see: String },
    Refuses { service: String, why: String, see: String },
    Nothing,
}

impl Walk<'_> {
    /// `address` is what the Service is reached by; where nobody leads it, it goes on as it is. `are_others`: nobody but the node's
    /// netfilter may lead it.
    pub fn by_proxy(&mut self, address: &str, is_service: bool, are_others: bool) -> Onward {
        let local: BTreeSet<IpAddr> = self.kernel.addrs()?.iter().map(|addr| addr.net.addr()).collect();
        // What such a pod sends to others does not meet the node's netfilter.
        if self.lease.wiring != Wiring::Shared && !is_service && !local.contains(&self.flow.to) {
            return Ok(());
        }
        match self.asked(&local) {
            Ok((Said::Nothing, _)) if is_service && !are_others => Err(Halt::Unknown),
            Ok((said, is_there)) => self.tell(address, said, is_service, is_there),
            Err(_) if !is_service => Ok(()),
            Err(e) => {
                self.note("netfilter", address, format!("{e}: where kube-proxy leads it is not known"));
                Err(Halt::Unknown)
            }
        }
    }

    /// What iptables, nftables or IPVS says of it, and whether any of them shows that kube-proxy is there.
    fn asked(&mut self, local: &BTreeSet<IpAddr>) -> Result<(Said, bool), Error> {
        let Flow { to, port, protocol, .. } = self.flow;
        let tables = self.tables();
        if let Ok(tables) = &tables {
            let said = self.translated(tables, local);
            if said != Said::Nothing {
                return Ok((said, true));
            }
        }
        let nftables = filters::nftables(self.family()).map(|table| of_nftables(&table, to, port, protocol, local));
        let ipvs = filters::ipvs().map(|table| of_ipvs(&table, to, port, protocol));
        let elsewhere = nftables.into_iter().chain(ipvs);
        let is_elsewhere = elsewhere.clone().next().is_some();
        match (elsewhere.into_iter().find(|said| *said != Said::Nothing), tables) {
            (Some(said), _) => Ok((said, true)),
            (None, Ok(tables)) => Ok((Said::Nothing, is_elsewhere || tables.has("nat", "KUBE-SERVICES"))),
            (None, Err(_)) if is_elsewhere => Ok((Said::Nothing, true)),
            (None, Err(e)) => Err(e),
        }
    }

    fn tell(&mut self, address: &str, said: Said, is_service: bool, is_there: bool) -> Onward {
        match said {
            Said::Leads { service, endpoints, see } => {
                let Some(endpoint) = endpoints.first().copied() else { return Ok(()) };
                let count = endpoints.len();
                self.pass(
                    "netfilter",
                    format!("{address} of {service} leads to {count} endpoints, such as {endpoint} ({see})"),
                );
                (self.flow.to, self.flow.port) = (endpoint.ip(), Some(endpoint.port()));
                Ok(())
            }
            Said::Refuses { service, why, see } => {
                self.stop("netfilter", format!("{address} of {service}"), why, &format!("{see}; {LAID}"))
            }
            Said::Nothing if is_service && is_there => {
                let why = "kube-proxy has no rule for this address and port";
                self.stop(
                    "netfilter",
                    address,
                    why,
                    "kubectl get services -A; and whether kube-proxy runs on this node",
                )
            }
            Said::Nothing if is_service => {
                let why = "nobody leads Services here: ebpf_services is off, and no rules of kube-proxy are seen";
                self.stop(
                    "netfilter",
                    address,
                    why,
                    "start kube-proxy on this node, or set ebpf_services in /etc/eni/eni.json",
                )
            }
            Said::Nothing => Ok(()),
        }
    }

    /// By nat's PREROUTING; and where that leads nowhere, by what refuses new connections to where it goes.
    fn translated(&self, tables: &Tables, local: &BTreeSet<IpAddr>) -> Said {
        let (Flow { from, to, protocol, port }, (iif, mark)) = (self.flow, self.entrance());
        let mut packet = Packet { from, to, protocol, port, iif: &iif, oif: None, mark, local };
        let fates = tables.walk("nat", "PREROUTING", &mut packet);
        let led: Vec<(SocketAddr, &String)> = fates
            .iter()
            .filter_map(|fate| match fate {
                Fate::Led(to, rule) => Some((*to, rule)),
                _ => None,
            })
            .collect();
        if let Some((_, rule)) = led.first() {
            let see = format!("iptables -t nat -S {}", chain(rule).unwrap_or_default());
            let endpoints = led.iter().map(|(to, _)| *to).collect();
            return Said::Leads { service: service(rule), endpoints, see };
        }
        let hook = if local.contains(&to) { "INPUT" } else { "FORWARD" };
        let refused = refused(&fates).or_else(|| refused(&tables.walk("filter", hook, &mut packet)));
        match refused {
            // What has nothing to do with Services is met where the packet goes.
            Some(rule) if rule.starts_with("-A KUBE-") => Said::Refuses {
                service: service(&rule),
                why: why(&rule),
                see: format!("iptables-save | grep -e '{}'", chain(&rule).unwrap_or_default()),
            },
            _ => Said::Nothing,
        }
    }

    /// A chain of the node's filters that the packet comes through on its way from one link to another, or to the node itself.
    pub fn filtered(&mut self, iif: &str, oif: Option<&str>) -> Onward {
        let flow = self.flow;
        let local: BTreeSet<IpAddr> = self.kernel.addrs()?.iter().map(|addr| addr.net.addr()).collect();
        let (_, mark) = self.entrance();
        // A node without iptables has no such filters.
        let Ok(tables) = self.tables() else { return Ok(()) };
        let hook = if oif.is_some() { "FORWARD" } else { "INPUT" };
        let Flow { from, to, protocol, port } = flow;
        let mut packet = Packet { from, to, protocol, port, iif, oif, mark, local: &local };
        for table in ["mangle", "filter"] {
            let fates = tables.walk(table, hook, &mut packet);
            if let Some(rule) = refused(&fates) {
                let remedy = format!(
                    "iptables -t {table} -S {} shows all of it; let pods pass before it",
                    chain(&rule).unwrap_or(hook)
                );
                return self.stop("netfilter", format!("{table} {hook} of {flow}"), rule, &remedy);
            }
        }
        Ok(())
    }

    /// By which link the node gets what the pod sends, and with which mark.
    fn entrance(&self) -> (String, u32) {
        match self.lease.wiring {
            Wiring::Ipvlan(_) => {
                let eni = self.known.enis.get(&self.lease.eni.id).unwrap_or(&self.lease.eni);
                let link = self.links.iter().find(|link| link.is_eni(eni.mac));
                (link.map(|link| ours::host_slave(link.ifindex)).unwrap_or_default(), ours::NODE_MARK)
            }
            _ => (super::node::outer(&self.plan(self.lease)), super::node::mark(self.lease)),
        }
    }

    /// Read once for all that is asked.
    fn tables(&mut self) -> Result<Rc<Tables>, Error> {
        if let Some(tables) = &self.tables {
            return Ok(tables.clone());
        }
        let tables = Rc::new(Tables::parse(&filters::iptables(self.family())?));
        Ok(self.tables.insert(tables).clone())
    }
}

/// The rule by which nothing passes.
fn refused(fates: &[Fate]) -> Option<String> {
    let rule = |fate: &Fate| match fate {
        Fate::Refused(rule) => Some(rule.clone()),
        _ => None,
    };
    let rules: Vec<String> = fates.iter().filter_map(rule).collect();
    rules.first().filter(|_| rules.len() == fates.len()).cloned()
}

/// `default/web:http` out of what kube-proxy writes beside its rules.
fn service(rule: &str) -> String {
    let said = comment(rule).unwrap_or_default();
    let name = said.split(' ').next().unwrap_or_default();
    if name.is_empty() { "a rule of netfilter".into() } else { name.into() }
}

/// `it has no endpoints`, `it has no local endpoints`
fn why(rule: &str) -> String {
    let said = comment(rule).unwrap_or_default();
    match said.split_once(' ') {
        Some((_, said)) if said.starts_with("has no") => format!("it {said}: kube-proxy refuses it"),
        _ => format!("kube-proxy refuses it: {rule}"),
    }
}

/// kube-proxy's maps of verdicts in nftables, and the chains that they lead to.
fn of_nftables(json: &str, to: IpAddr, port: Option<u16>, protocol: u8, local: &BTreeSet<IpAddr>) -> Said {
    let Ok(all) = serde_json::from_slice::<Value>(json.as_bytes()) else { return Said::Nothing };
    let objects: Vec<&Value> = all["nftables"].as_array().into_iter().flatten().collect();
    let key = [to.to_string(), name(protocol).to_owned(), port.unwrap_or_default().to_string()];
    let verdict = |map: &str, key: &[String]| {
        let map = objects.iter().map(|object| &object["map"]).find(|found| found["name"] == map)?;
        let pair = map["elem"].as_array()?.iter().find(|pair| concatenated(&pair[0]) == key)?;
        Some((pair[0]["elem"]["comment"].as_str().unwrap_or("a Service").to_owned(), pair[1].clone()))
    };
    let on_node = local.contains(&to).then_some(&key[1..]);
    let of = |by_address: &str, by_port: &str| verdict(by_address, &key).or_else(|| verdict(by_port, on_node?));
    let named = |chain: &str| {
        chain.split_once('-').and_then(|(_, rest)| rest.split_once('-')).map_or(chain, |(_, rest)| rest).to_owned()
    };
    if let Some((service, verdict)) = of("no-endpoint-services", "no-endpoint-nodeports") {
        let why = if verdict.get("drop").is_some() { "it has no local endpoints" } else { "it has no endpoints" };
        let see = "nft list map ip kube-proxy no-endpoint-services".into();
        return Said::Refuses { service, why: format!("{why}: kube-proxy refuses it"), see };
    }
    let Some(first) = of("service-ips", "service-nodeports").and_then(|(_, verdict)| targets(&verdict).pop()) else {
        return Said::Nothing;
    };
    let (mut seen, mut open) = (BTreeSet::from([first.clone()]), vec![first.clone()]);
    let mut endpoints = BTreeSet::new();
    while let Some(at) = open.pop() {
        for rule in objects.iter().map(|object| &object["rule"]).filter(|rule| rule["chain"] == *at) {
            endpoints.extend(destination(&rule["expr"]));
            open.extend(targets(&rule["expr"]).into_iter().filter(|chain| seen.insert(chain.clone())));
        }
    }
    Said::Leads { service: named(&first), endpoints, see: format!("nft list chain ip kube-proxy {first}") }
}

fn name(protocol: u8) -> &'static str {
    match protocol {
        TCP => "tcp",
        UDP => "udp",
        _ => "sctp",
    }
}

/// The parts of a key, with or without a comment beside it.
fn concatenated(key: &Value) -> Vec<String> {
    let key = if key["elem"].is_null() { key } else { &key["elem"]["val"] };
    let text = |part: &Value| part.as_str().map_or_else(|| part.to_string(), String::from);
    key["concat"].as_array().into_iter().flatten().map(text).collect()
}

/// The chains that are gone or jumped to, wherever that stands.
fn targets(value: &Value) -> Vec<String> {
    match value {
        Value::Object(object) => {
            let verdict = |(name, value): (&String, &Value)| match value["target"].as_str() {
                Some(target) if matches!(name.as_str(), "goto" | "jump") => vec![target.to_owned()],
                _ => targets(value),
            };
            object.iter().flat_map(verdict).collect()
        }
        Value::Array(all) => all.iter().flat_map(targets).collect(),
        _ => Vec::new(),
    }
}

fn destination(expr: &Value) -> Option<SocketAddr> {
    let dnat = expr.as_array()?.iter().map(|one| &one["dnat"]).find(|dnat| !dnat.is_null())?;
    let port = u16::try_from(dnat["port"].as_u64()?).ok()?;
    Some(SocketAddr::new(dnat["addr"].as_str()?.parse().ok()?, port))
}

/// A line for each virtual server, in hexadecimal; below it those for where it leads, with their weights.
fn of_ipvs(text: &str, to: IpAddr, port: Option<u16>, protocol: u8) -> Said {
    let wanted = SocketAddr::new(to, port.unwrap_or_default());
    let (mut is_it, mut is_there, mut endpoints) = (false, false, BTreeSet::new());
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["->", addr, _, weight, ..] if is_it && *weight != "0" => endpoints.extend(hexadecimal(addr)),
            ["->", ..] => {}
            [of, addr, ..] => {
                is_it = of.to_ascii_lowercase() == name(protocol) && hexadecimal(addr) == Some(wanted);
                is_there |= is_it;
            }
            _ => is_it = false,
        }
    }
    let see = format!("ipvsadm -Ln -{} {wanted}", if protocol == UDP { "u" } else { "t" });
    let service = || "a Service".to_owned();
    match (is_there, endpoints.is_empty()) {
        (false, _) => Said::Nothing,
        (true, true) => Said::Refuses { service: service(), why: "IPVS has no endpoint for it".into(), see },
        (true, false) => Said::Leads { service: service(), endpoints, see },
    }
}

/// `AC150050:0050`, `[FD000000000000000000000000000001]:0050`; newer kernels write IPv6 with colons.
fn hexadecimal(text: &str) -> Option<SocketAddr> {
    let (addr, port) = text.rsplit_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let addr: IpAddr = match addr.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(v6) if v6.contains(':') => v6.parse().ok()?,
        Some(v6) => Ipv6Addr::from_bits(u128::from_str_radix(v6, 16).ok()?).into(),
        None => Ipv4Addr::from_bits(u32::from_str_radix(addr, 16).ok()?).into(),
    };
    Some(SocketAddr::new(addr, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtual_servers_lead_to_those_that_have_a_weight() {
        let table = "IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n\
                     \x20 -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n\
                     TCP  AC150050:0050 rr\n\
                     \x20 -> 0A010008:1F90      Masq    1      0          0\n\
                     \x20 -> 0A010009:1F90      Masq    0      0          0\n\
                     TCP  AC150051:0050 rr\n\
                     UDP  [fd00:0000:0000:0000:0000:0000:0000:000a]:0035 rr\n\
                     \x20 -> [fd00:0000:0000:0000:0000:0000:0000:0001]:0035      Masq    1      0          0\n";
        let of = |to: &str, port, protocol| of_ipvs(table, to.parse().unwrap(), Some(port), protocol);
        let leads = |said| match said {
            Said::Leads { endpoints, .. } => endpoints.iter().map(SocketAddr::to_string).collect(),
            other => vec![format!("{other:?}")],
        };
        assert_eq!(leads(of("172.21.0.80", 80, TCP)), ["10.1.0.8:8080"]);
        assert_eq!(leads(of("fd00::a", 53, UDP)), ["[fd00::1]:53"]);
        assert!(matches!(of("172.21.0.81", 80, TCP), Said::Refuses { .. }));
        assert_eq!(of("172.21.0.80", 81, TCP), Said::Nothing);
        assert_eq!(of("172.21.0.80", 80, UDP), Said::Nothing);
    }
}
