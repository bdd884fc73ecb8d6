//! STATUS: could an ADD be served now?

use std::time::Duration;

use super::daemon;
use crate::cni::{Code, Failure};
use crate::rpc::{Reply, Request};

const PATIENCE: Duration = Duration::from_secs(5);

/// Pods that run keep their network when the daemon is down, so the answer is never "limited connectivity" (51).
pub fn status() -> Result<(), Failure> {
    match daemon::ask(&Request::Status {}, PATIENCE) {
        Ok(Reply::Ready {}) => Ok(()),
        Ok(Reply::Refused { reason, .. }) => Err(Failure::new(Code::NotReady, reason)),
        Ok(other) => Err(Failure { code: Code::NotReady, ..daemon::strange(&other) }),
        Err(failure) => Err(Failure { code: Code::NotReady, ..failure }),
    }
}
