//! Where addresses come from: the vSwitches, which of them are set aside as empty, and which one is next.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use fastrand::Rng;
use ipnet::Ipv6Net;

use super::retry::{Backoff, SOON, jitter};
use super::{CallId, Now, Settings, VSwitchChoice};
use crate::eni::VSwitch;
use crate::ip::{Family, Stack};

/// How long an empty vSwitch is left alone unless a later count shows free addresses.
const ASIDE: Duration = Duration::from_secs(600);
const REFRESH: Duration = Duration::from_secs(600);
/// How often we count while a vSwitch is set aside.
const REFRESH_ASIDE: Duration = Duration::from_secs(60);

/// Why a vSwitch is of no use to a stack with IPv6.
pub(super) const NO_IPV6: &str =
    "it has no IPv6 CIDR block; switch IPv6 on for it, name another vSwitch, or choose ip_stack ipv4";

#[derive(Default)]
pub(super) struct VSwitches {
    known: BTreeMap<String, VSwitch>,
    aside: BTreeMap<(String, Family), Aside>,
    pub refresh: Backoff,
    pub asking: Option<CallId>,
    /// People know that they cannot be counted.
    pub told: bool,
}

/// So many counts in a row that fail are told.
pub(super) const UNCOUNTED: u32 = 3;

struct Aside {
    until: Now,
    /// The last call sent when it was found empty: only a count asked for later can say otherwise.
    since: CallId,
    why: String,
}

impl VSwitches {
    pub fn new(now: Now, list: Vec<VSwitch>, rng: &mut Rng) -> VSwitches {
        let mut vswitches = VSwitches::default();
        vswitches.counted(now, 1, list, rng);
        vswitches
    }

    /// Takes up a count that was asked for by this call.
    pub fn counted(&mut self, now: Now, call: CallId, list: Vec<VSwitch>, rng: &mut Rng) {
        self.asking = None;
        for vswitch in list {
            let why = "DescribeVSwitches counts no free address".to_owned();
            let key = (vswitch.id.clone(), Family::V4);
            if vswitch.free == 0 {
                self.aside.entry(key).or_insert(Aside { until: now + ASIDE, since: call, why });
            } else if self.aside.get(&key).is_some_and(|a| a.since < call) {
                self.aside.remove(&key);
            }
            self.known.insert(vswitch.id.clone(), vswitch);
        }
        // No count says that there are IPv6 addresses again: those are left alone for their time, and counted as often for no longer.
        self.aside.retain(|(_, family), aside| *family == Family::V4 || aside.until > now);
        let wait = if self.aside.is_empty() { REFRESH } else { REFRESH_ASIDE };
        self.refresh.restart(now + jitter(wait, rng));
    }

    pub fn not_counted(&mut self, now: Now, rng: &mut Rng) {
        self.asking = None;
        self.refresh.fail(now, &SOON, rng);
        self.refresh.next = self.refresh.next.max(now + Duration::from_secs(10));
    }

    /// Some of these were never counted: the next count comes at once.
    pub fn expect(&mut self, now: Now, ids: &[String]) {
        if ids.iter().any(|id| !self.known.contains_key(id)) {
            self.refresh.restart(now);
        }
    }

    pub fn set_aside(&mut self, now: Now, last_call: CallId, (id, family): (&str, Family), why: String) {
        if let Some(vswitch) = self.known.get_mut(id).filter(|_| family == Family::V4) {
            vswitch.free = 0;
        }
        self.aside.insert((id.to_owned(), family), Aside { until: now + ASIDE, since: last_call, why });
        self.refresh.next = self.refresh.next.min(now + REFRESH_ASIDE);
    }

    /// IPv4 addresses were taken from it.
    pub fn took(&mut self, id: &str, count: usize) {
        if let Some(vswitch) = self.known.get_mut(id) {
            vswitch.free = vswitch.free.saturating_sub(count as u32);
        }
    }

    /// So many addresses can be asked for in one call without being refused for those that are not there, as far as we know.
    pub fn left(&self, id: &str, family: Family) -> u32 {
        match self.known.get(id) {
            Some(vswitch) if family == Family::V4 && vswitch.free > 0 => vswitch.free,
            _ => u32::MAX,
        }
    }

    /// Whether this vSwitch may be asked for such addresses at that time.
    pub fn usable(&self, id: &str, family: Family, at: Now) -> bool {
        self.has(id, family) && self.set_aside_at(id, family, at).is_none()
    }

    /// Whether there are such addresses in it at all, as far as we know it.
    pub fn has(&self, id: &str, family: Family) -> bool {
        family == Family::V4 || self.known.get(id).is_none_or(|v| v.cidr.v6.is_some())
    }

    /// Its IPv6 addresses, as far as we know it.
    pub fn v6(&self, id: &str) -> Option<Ipv6Net> {
        self.known.get(id)?.cidr.v6
    }

    /// Whether an ENI may be made in it at that time. Every ENI has an IPv4 address, its primary one.
    pub fn can_create(&self, id: &str, stack: Stack, at: Now) -> bool {
        let needed = |family: &Family| *family == Family::V4 || stack.has(*family);
        [Family::V4, Family::V6].iter().filter(|f| needed(f)).all(|family| self.usable(id, *family, at))
    }

    /// Why it may not be asked, if so.
    pub fn why(&self, id: &str, family: Family, now: Now) -> Option<String> {
        let aside = self.set_aside_at(id, family, now).map(|a| a.why.clone());
        if self.has(id, family) { aside } else { Some(NO_IPV6.to_owned()) }
    }

    fn set_aside_at(&self, id: &str, family: Family, at: Now) -> Option<&Aside> {
        self.aside.get(&(id.to_owned(), family)).filter(|a| a.until > at)
    }

    /// When the next one may be asked again.
    pub fn next_end(&self, now: Now) -> Option<Now> {
        self.aside.values().map(|a| a.until).filter(|until| *until > now).min()
    }

    /// The address can be one of this vSwitch's, as far as we know it.
    pub fn may_hold(&self, id: &str, ip: IpAddr) -> bool {
        self.known.get(id).is_none_or(|v| match ip {
            IpAddr::V4(ip) => v.cidr.v4.is_none_or(|net| net.contains(&ip)),
            IpAddr::V6(ip) => v.cidr.v6.is_none_or(|net| net.contains(&ip)),
        })
    }

    /// The vSwitch for the next ENI.
    pub fn choose(&self, now: Now, settings: &Settings, rng: &mut Rng) -> Option<String> {
        let usable: Vec<&String> =
            settings.vswitches.iter().filter(|id| self.can_create(id, settings.stack, now)).collect();
        let free = |id: &str| self.known.get(id).map_or(0, |v| v.free);
        let chosen = match settings.vswitch_choice {
            VSwitchChoice::Ordered => usable.first(),
            VSwitchChoice::Random if usable.is_empty() => None,
            VSwitchChoice::Random => usable.get(rng.usize(..usable.len())),
            VSwitchChoice::Most => usable.iter().rev().max_by_key(|id| free(id)),
        };
        chosen.map(|id| (*id).clone())
    }

    pub fn show(&self, now: Now) -> serde_json::Value {
        let one = |v: &VSwitch| {
            let aside = [Family::V4, Family::V6].into_iter().find_map(|f| self.set_aside_at(&v.id, f, now));
            serde_json::json!({
                "id": v.id,
                "free": v.free,
                "ipv6": v.cidr.v6.is_some(),
                "set_aside_secs": aside.map(|a| (a.until - now).as_secs()),
                "why": aside.map(|a| &a.why),
            })
        };
        self.known.values().map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::world::vswitch;

    const fn secs(n: u64) -> Now {
        Duration::from_secs(n)
    }

    #[test]
    fn what_was_set_aside_is_counted_often_until_it_is_not_any_more() {
        let mut rng = Rng::with_seed(1);
        let both = || VSwitch {
            cidr: crate::ip::NetPair {
                v6: Some("fd00::/64".parse().unwrap()),
                ..vswitch("vsw-1", "10.0.1.0/24", 9).cidr
            },
            ..vswitch("vsw-1", "10.0.1.0/24", 9)
        };
        let list = || vec![both()];
        for family in [Family::V4, Family::V6] {
            let mut all = VSwitches::new(secs(0), list(), &mut rng);
            all.set_aside(secs(100), 5, ("vsw-1", family), "it has none".into());
            assert!(!all.usable("vsw-1", family, secs(101)));
            all.counted(secs(160), 6, list(), &mut rng);
            let often = all.refresh.next < secs(160) + REFRESH_ASIDE * 2;
            // An IPv4 address was counted; of IPv6 nobody knows.
            assert_eq!((all.usable("vsw-1", family, secs(161)), often), (family == Family::V4, family == Family::V6));
            all.counted(secs(800), 7, list(), &mut rng);
            assert!(all.usable("vsw-1", family, secs(801)) && all.refresh.next > secs(800) + REFRESH_ASIDE * 2);
        }
    }
}
