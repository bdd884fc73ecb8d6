//! What is tried out on the kernel when the first pod needs it. That it works is believed for good, that it fails for a while.

use std::cell::RefCell;
use std::time::Duration;

use super::clock;
use crate::datapath;
use crate::error::Error;
use crate::ip::IpPair;
use crate::kernel;
use crate::pool::Now;
use crate::rpc::{Answers, Shaper};

/// What failed for a reason of the moment (somebody holds the lock of iptables) is tried again by whoever asks after this long.
const SOON: Duration = Duration::from_secs(10);
/// The same of what the kernel refused: a module may be loaded by now, or a program be installed.
const LATER: Duration = Duration::from_secs(60);

#[derive(Default)]
pub struct Trials {
    answers: Trial,
    shaper: Trial,
    ipvlan: Trial,
}

/// What came of it, and when.
#[derive(Default)]
struct Trial(RefCell<Option<(Now, Result<(), Error>)>>);

impl Trials {
    /// How a pod with an ENI of its own finds back what came in through the node. An error is of the moment.
    pub fn answers(&self, node: &IpPair) -> Result<Answers, Error> {
        let without =
            "pods with an ENI of their own answer what comes in by a port of the node over TCP, and not over UDP";
        let attempt = || kernel::attempt(&datapath::trial_of_answers(node));
        chosen(self.answers.result(clock::now(), without, attempt), Answers::Conntrack, Answers::Sockets)
    }

    /// How a pod whose links end in it is held to a bandwidth. An error is of the moment.
    pub fn shaper(&self) -> Result<Shaper, Error> {
        let without = "what pods with an ENI of their own receive by it has no limit";
        chosen(self.shaper.result(clock::now(), without, kernel::ifb), Shaper::Ifb, Shaper::Links)
    }

    /// Whether pods can be slaves of their ENI, or why not.
    pub fn ipvlan(&self) -> Result<(), Error> {
        self.ipvlan.result(clock::now(), "no pod can be an IPvlan slave", kernel::ipvlan)
    }
}

impl Trial {
    /// `without`: what it means that this fails.
    fn result(&self, now: Now, without: &str, attempt: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
        let mut known = self.0.borrow_mut();
        let before = known.as_ref().map(|(_, result)| result);
        if let Some((at, result)) = &*known
            && holds(result).is_none_or(|time| now < *at + time)
        {
            return result.clone();
        }
        let result = attempt();
        if let Err(e) = &result
            && before != Some(&result)
        {
            log::warn!("{without}: {e}");
        }
        *known = Some((now, result.clone()));
        result
    }
}

/// How long the result is believed, if not for good.
fn holds(result: &Result<(), Error>) -> Option<Duration> {
    result.as_ref().err().map(|e| if e.is_for_now() { SOON } else { LATER })
}

fn chosen<T>(result: Result<(), Error>, better: T, lesser: T) -> Result<T, Error> {
    match result {
        Ok(()) => Ok(better),
        Err(e) if e.is_for_now() => Err(e),
        Err(_) => Ok(lesser),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_is_tried_again_after_a_while_and_what_works_is_not() {
        let trial = Trial::default();
        let at = |secs, comes: Result<(), Error>| {
            let mut is_tried = false;
            let result = trial.result(Now::from_secs(secs), "nobody can", || {
                is_tried = true;
                comes
            });
            (is_tried, result)
        };
        let busy = Error::os(libc::EAGAIN);
        let lack = Error::os(libc::EOPNOTSUPP);
        assert_eq!(at(100, Err(busy.clone())), (true, Err(busy.clone())));
        assert_eq!(at(109, Ok(())), (false, Err(busy)));
        assert_eq!(at(110, Err(lack.clone())), (true, Err(lack.clone())));
        assert_eq!(at(169, Ok(())), (false, Err(lack.clone())));
        assert_eq!(at(170, Ok(())), (true, Ok(())));
        assert_eq!(at(9999, Err(lack)), (false, Ok(())));
    }

    #[test]
    fn nobody_has_the_lesser_for_life_because_of_a_moment() {
        let busy = Error::os(libc::EAGAIN);
        assert_eq!(chosen(Err(busy.clone()), Shaper::Ifb, Shaper::Links), Err(busy));
        assert_eq!(chosen(Err(Error::os(libc::EOPNOTSUPP)), Shaper::Ifb, Shaper::Links), Ok(Shaper::Links));
        assert_eq!(chosen(Ok(()), Shaper::Ifb, Shaper::Links), Ok(Shaper::Ifb));
    }
}
