//! GC: of the attachments to a network everything but those that the runtime names is gone.

use std::collections::BTreeSet;
use std::time::Duration;

use super::daemon;
use crate::cni::Failure;
use crate::pod::Attachment;
use crate::rpc::{Reply, Request};

const PATIENCE: Duration = Duration::from_secs(60);

pub fn gc(network: String, valid: BTreeSet<Attachment>) -> Result<(), Failure> {
    match daemon::ask(&Request::Gc { network, valid }, PATIENCE)? {
        Reply::None {} => Ok(()),
        Reply::Refused { why, reason } => Err(daemon::refused(why, &format!("gc: {reason}"))),
        other => Err(daemon::strange(&other)),
    }
}
