//! What is not done for a Service, and why, in words for its owner.

use std::fmt;
use std::net::Ipv6Addr;

use super::Frontend;
use crate::cluster::Name;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    pub about: About,
    pub reason: Refusal,
}

/// The object in question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum About {
    Service { name: Name, uid: Box<str> },
    Slice(Name),
}

impl fmt::Display for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            About::Service { name, .. } => write!(f, "service {name}"),
            About::Slice(name) => write!(f, "endpointslice {name}"),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// A field that cannot be what it is; it is left out, the rest of the object counts.
    Fault(Box<str>),
    /// Another Service has this frontend.
    Taken(Frontend, Name),
    /// An address that means another machine to everyone, or many, or none.
    NoUnicast(Ipv6Addr),
    OfNode(Ipv6Addr),
    OfPod(Ipv6Addr),
    OfApi(Ipv6Addr),
    OfService(Ipv6Addr),
    /// The Service has no cluster address of this family.
    Family(Ipv6Addr),
    Sctp(u16),
}

impl Refusal {
    /// Somebody has to change something.
    pub fn is_wrong(&self) -> bool {
        !matches!(self, Refusal::Sctp(_))
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stolen = |f: &mut fmt::Formatter<'_>, addr: &Ipv6Addr, whose: &str| {
            let addr = addr.to_canonical();
            write!(
                f,
                "external address {addr} is {whose}: its traffic is not led elsewhere; take it out of the Service"
            )
        };
        match self {
            Refusal::Fault(fault) => write!(f, "{fault}; the field is left out"),
            Refusal::Taken(frontend, by) => {
                write!(f, "{frontend} belongs to the older Service {by}; give this one another address or port")
            }
            Refusal::NoUnicast(addr) => {
                let addr = addr.to_canonical();
                write!(
                    f,
                    "{addr} is a loopback, link-local, multicast or unspecified address, which no Service can have"
                )
            }
            Refusal::OfNode(addr) => stolen(f, addr, "a node's"),
            Refusal::OfPod(addr) => stolen(f, addr, "a pod's"),
            Refusal::OfApi(addr) => stolen(f, addr, "the API server's"),
            Refusal::OfService(addr) => stolen(f, addr, "the cluster address of another Service"),
            Refusal::Family(addr) => {
                let addr = addr.to_canonical();
                write!(f, "{addr} is of a family in which the Service has no cluster address; see spec.ipFamilies")
            }
            Refusal::Sctp(port) => write!(f, "port {port}: SCTP is not done at the socket; kube-proxy serves it"),
        }
    }
}
