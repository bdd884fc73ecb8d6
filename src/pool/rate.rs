//! How often an API action may be called: the operator's `rate_limit`, so many calls in any minute.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::Now;
use super::calls::Verb;
use crate::ip::Family;

const MINUTE: Duration = Duration::from_secs(60);

/// When the calls of the last minute were sent.
#[derive(Default)]
pub(super) struct Rates(BTreeMap<&'static str, VecDeque<Now>>);

impl Rates {
    /// When the next call of this kind may be sent, if not now.
    pub fn next(&mut self, now: Now, verb: Verb, limits: &BTreeMap<String, u32>) -> Option<Now> {
        let (action, _) = action(verb);
        let most = *limits.get(action)? as usize;
        let sent = self.0.get_mut(action)?;
        while sent.front().is_some_and(|at| *at + MINUTE <= now) {
            sent.pop_front();
        }
        let first_that_must_end = sent.len().checked_sub(most)?;
        sent.get(first_that_must_end).map(|at| *at + MINUTE)
    }

    /// Only what is limited is remembered.
    pub fn sent(&mut self, now: Now, verb: Verb, limits: &BTreeMap<String, u32>) {
        let (action, times) = action(verb);
        if limits.contains_key(action) {
            self.0.entry(action).or_default().extend(std::iter::repeat_n(now, times));
        }
    }
}

/// What the API calls it, and how many calls it takes.
pub(super) fn action(verb: Verb) -> (&'static str, usize) {
    match verb {
        Verb::Create => ("CreateNetworkInterface", 1),
        Verb::Attach => ("AttachNetworkInterface", 1),
        Verb::Detach => ("DetachNetworkInterface", 1),
        Verb::Delete => ("DeleteNetworkInterface", 1),
        Verb::Assign(Family::V4) => ("AssignPrivateIpAddresses", 1),
        Verb::Assign(Family::V6) => ("AssignIpv6Addresses", 1),
        Verb::Unassign(Family::V4) => ("UnassignPrivateIpAddresses", 1),
        Verb::Unassign(Family::V6) => ("UnassignIpv6Addresses", 1),
        Verb::Look => ("DescribeNetworkInterfaces", 1),
        // Those attached here, and those made for this node.
        Verb::LookAll => ("DescribeNetworkInterfaces", 2),
        Verb::VSwitches => ("DescribeVSwitches", 1),
        Verb::Regroup => ("ModifyNetworkInterfaceAttribute", 1),
        Verb::Tag => ("TagResources", 1),
        Verb::Untag => ("UntagResources", 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_minute_has_more_calls_than_its_limit() {
        let limits =
            BTreeMap::from([("AttachNetworkInterface".to_owned(), 2), ("DescribeNetworkInterfaces".into(), 3)]);
        let (mut rates, at) = (Rates::default(), Duration::from_secs);
        for second in [0, 10] {
            assert_eq!(rates.next(at(second), Verb::Attach, &limits), None);
            rates.sent(at(second), Verb::Attach, &limits);
        }
        assert_eq!(rates.next(at(20), Verb::Attach, &limits), Some(at(60)));
        assert_eq!(rates.next(at(60), Verb::Attach, &limits), None);
        assert_eq!(rates.next(at(20), Verb::Detach, &limits), None, "what has no limit goes on");
        rates.sent(at(0), Verb::LookAll, &limits);
        rates.sent(at(5), Verb::Look, &limits);
        assert_eq!(rates.next(at(20), Verb::LookAll, &limits), Some(at(60)));
    }
}
