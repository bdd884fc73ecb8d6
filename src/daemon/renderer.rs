//! Who enforces network policies on this node, and why that one.

use super::policy::Chosen;
use crate::config::{Mode, PolicyRenderer};
use crate::error::Error;

/// What the choice goes by.
#[derive(Debug, Clone, Copy)]
pub struct Ask {
    pub wanted: Option<PolicyRenderer>,
    /// Connections to Services are led to their backends at the socket.
    pub services: bool,
    /// Pods are slaves of their ENI.
    pub ipvlan: bool,
    pub mode: Mode,
}

pub fn open(ask: &Ask) -> Result<Chosen, Error> {
    let Ask { wanted, services, ipvlan, mode } = ask;
    Err(Error::refused(format!(
        "nothing can enforce network policies here (policy_renderer {wanted:?}, ebpf_services {services}, ipvlan {ipvlan}, {mode})"
    )))
}

/// Takes away whatever enforced policies in an earlier life.
pub fn leave() {}

/// There is something to choose from.
pub const fn is_there() -> bool {
    false
}
