//! What is not done for a policy, and why, in words for its owner.

use std::fmt;

use crate::cluster::Name;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    pub about: About,
    pub reason: Refusal,
}

/// The object in question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum About {
    /// With its kind, such as `networkpolicy shop/web`.
    Policy(Name),
    Set(Name),
    HostEndpoint(Name),
}

impl fmt::Display for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            About::Policy(name) => f.write_str(name),
            About::Set(name) if name.contains('/') => write!(f, "networkset {name}"),
            About::Set(name) => write!(f, "globalnetworkset {name}"),
            About::HostEndpoint(name) => write!(f, "hostendpoint {name}"),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// A field that cannot be what it is, or that has no effect here.
    Policy(Box<str>),
    Set(Box<str>),
    HostEndpoint,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Policy(fault) => f.write_str(fault),
            Refusal::Set(fault) => write!(f, "{fault}; it is left out of the set"),
            Refusal::HostEndpoint => f.write_str(
                "policies govern pods only, not the node's own traffic; it has no effect, nor have others of its kind",
            ),
        }
    }
}
