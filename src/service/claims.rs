//! What one Service stands for: its frontends, and what it may not have.

use std::net::Ipv6Addr;

use super::{ANY_V4, ANY_V6, Frontend, Refusal, is_v4};
use crate::cluster::{Protocol, Service, ServicePort, ServiceType};

/// Which endpoints a frontend leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reach {
    /// Those of the cluster, as hints say.
    Cluster,
    /// Those on this node.
    Local,
}

/// A frontend that a Service wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub frontend: Frontend,
    /// Which of the Service's ports.
    pub port: u16,
    pub reach: Reach,
    pub own_node_only: bool,
}

/// Where an address of a Service comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Cluster,
    /// Whoever may write a Service can name any address here.
    External,
    Ingress,
}

/// `objection`: why it may not stand for an address, if so.
pub fn of(service: &Service, objection: impl Fn(Place, Ipv6Addr) -> Option<Refusal>) -> (Vec<Claim>, Vec<Refusal>) {
    let mut refused: Vec<Refusal> = service.faults.iter().cloned().map(Refusal::Fault).collect();
    if service.r#type == ServiceType::ExternalName || service.cluster_ips.is_empty() {
        return (Vec::new(), refused);
    }
    let mut addresses = Vec::new();
    for (place, addr) in places(service) {
        match may_stand(service, place, addr).or_else(|| objection(place, addr)) {
            // Another with the same cluster address: who is older has it, port by port.
            Some(Refusal::OfService(_)) if place == Place::Cluster => addresses.push((place, addr)),
            Some(reason) => refused.push(reason),
            None => addresses.push((place, addr)),
        }
    }
    let mut claims: Vec<Claim> = Vec::new();
    for (index, port) in service.ports.iter().enumerate() {
        if port.protocol == Protocol::Sctp {
            refused.push(Refusal::Sctp(port.port));
            continue;
        }
        for claim in of_port(service, port, index as u16, &addresses) {
            if !claims.iter().any(|known| known.frontend == claim.frontend) {
                claims.push(claim);
            }
        }
    }
    (claims, refused)
}

/// All addresses that it is to be reached by. An address of its load balancer that not everyone may come by is left to the
/// load balancer, which knows who comes.
fn places(service: &Service) -> impl Iterator<Item = (Place, Ipv6Addr)> {
    let is_balanced = service.r#type == ServiceType::LoadBalancer;
    let ingress = service.ingress.iter().filter(move |addr| is_balanced && is_open(service, **addr));
    let cluster = service.cluster_ips.iter().map(|addr| (Place::Cluster, *addr));
    let external = service.external_ips.iter().map(|addr| (Place::External, *addr));
    cluster.chain(external).chain(ingress.map(|addr| (Place::Ingress, *addr)))
}

/// Everybody may come by this address.
fn is_open(service: &Service, addr: Ipv6Addr) -> bool {
    let all: Vec<ipnet::IpNet> = service.source_ranges.to_vec();
    let merged = ipnet::IpNet::aggregate(&all);
    all.is_empty() || merged.iter().any(|net| net.prefix_len() == 0 && net.addr().is_ipv4() == is_v4(addr))
}

/// Endpoints are of the families in which it has a cluster address.
fn may_stand(service: &Service, place: Place, addr: Ipv6Addr) -> Option<Refusal> {
    let has_family = service.cluster_ips.iter().any(|ip| is_v4(*ip) == is_v4(addr));
    (place != Place::Cluster && !has_family).then_some(Refusal::Family(addr))
}

fn of_port(service: &Service, port: &ServicePort, index: u16, addresses: &[(Place, Ipv6Addr)]) -> Vec<Claim> {
    let one = |addr, number, reach, own_node_only| Claim {
        frontend: Frontend { addr, port: number, protocol: port.protocol },
        port: index,
        reach,
        own_node_only,
    };
    let internal = if service.internal_local { Reach::Local } else { Reach::Cluster };
    // What comes from inside is led to all endpoints, whatever the external policy: it would not leave the cluster otherwise either.
    let mut claims: Vec<Claim> = addresses
        .iter()
        .map(|(place, addr)| match place {
            Place::Cluster => one(*addr, port.port, internal, false),
            Place::External | Place::Ingress => one(*addr, port.port, Reach::Cluster, false),
        })
        .collect();
    if port.node_port != 0 {
        let families = [(true, ANY_V4), (false, ANY_V6)];
        let has = |v4: bool| addresses.iter().any(|(place, addr)| *place == Place::Cluster && is_v4(*addr) == v4);
        let own_node_only = service.external_local;
        let ports = families.into_iter().filter(|(v4, _)| has(*v4));
        claims.extend(ports.map(|(_, any)| one(any, port.node_port, Reach::Cluster, own_node_only)));
    }
    claims
}
