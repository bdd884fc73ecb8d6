//! Where addresses come from: the vSwitches, which of them are set aside as empty, and which one is next.

use std::collections::{BTreeMap, BTreeSet};
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
    /// The zone of the node.
    zone: String,
    /// Those that a count was about and did not find.
    absent: BTreeSet<String>,
    pub refresh: Backoff,
    pub asking: Option<CallId>,
    /// What the count under way is about.
    asked: Vec<String>,
    /// People know that they cannot be counted.
    pub told: bool,
}

/// So many counts in a row that fail are told.
pub(super) const UNCOUNTED: u32 = 3;

struct Aside {
    until: Now,
    /// The last call sent when it was found empty: only a count asked for later can say otherwise. None can where it is refused for
    /// another reason.
    since: CallId,
    why: String,
}

impl VSwitches {
    pub fn new(now: Now, settings: &Settings, list: Vec<VSwitch>, rng: &mut Rng) -> VSwitches {
        let asked = settings.vswitches.clone();
        let mut vswitches = VSwitches { zone: settings.zone.clone(), asked, ..VSwitches::default() };
        vswitches.counted(now, 1, list, rng);
        vswitches
    }

    /// They are counted by this call.
    pub fn ask(&mut self, call: CallId, ids: &[String]) {
        self.asking = Some(call);
        self.asked = ids.to_vec();
    }

    /// Takes up a count that was asked for by this call.
    pub fn counted(&mut self, now: Now, call: CallId, list: Vec<VSwitch>, rng: &mut Rng) {
        self.asking = None;
        let asked = std::mem::take(&mut self.asked);
        self.absent = asked.iter().filter(|id| list.iter().all(|v| v.id != **id)).cloned().collect();
        for vswitch in list {
            let why = "DescribeVSwitches counts no free address".to_owned();
            let key = (vswitch.id.clone(), Family::V4);
            if vswitch.free == 0 {
                self.aside.entry(key).or_insert(Aside { until: now, since: call, why }).until = now + ASIDE;
            } else if self.aside.get(&key).is_some_and(|a| a.since < call) {
                self.aside.remove(&key);
            }
            self.known.insert(vswitch.id.clone(), vswitch);
        }
        // By time alone ends what no count says anything of: that there are IPv6 addresses again, or any where nobody counts any more.
        self.aside.retain(|_, aside| aside.until > now);
        let is_missed =
            asked.iter().any(|id| self.absent.contains(id) || self.aside.keys().any(|(aside, _)| aside == id));
        let wait = if is_missed { REFRESH_ASIDE } else { REFRESH };
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

    /// The cloud makes no ENI in it, for a reason that no count shows. Whether that is news.
    pub fn refuse(&mut self, now: Now, id: &str, why: String) -> bool {
        let aside = Aside { until: now + ASIDE, since: CallId::MAX, why };
        self.aside.insert((id.to_owned(), Family::V4), aside).is_none()
    }

    /// Why no ENI of this node can be made in it, however many addresses it has.
    pub fn unfit(&self, id: &str) -> Option<String> {
        if self.absent.contains(id) {
            return Some("the cloud does not know it".into());
        }
        let zone = &self.known.get(id)?.zone;
        let is_elsewhere = !self.zone.is_empty() && *zone != self.zone;
        is_elsewhere.then(|| format!("it is in zone {zone}, and this node in {}", self.zone))
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
        self.unfit(id).is_none()
            && [Family::V4, Family::V6].iter().filter(|f| needed(f)).all(|family| self.usable(id, *family, at))
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
    use crate::pool::world::{settings, vswitch};

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
            let ours = Settings { vswitches: vec!["vsw-1".into()], ..settings() };
            let mut all = VSwitches::new(secs(0), &ours, list(), &mut rng);
            all.set_aside(secs(100), 5, ("vsw-1", family), "it has none".into());
            assert!(!all.usable("vsw-1", family, secs(101)));
            all.ask(6, &ours.vswitches);
            all.counted(secs(160), 6, list(), &mut rng);
            let often = all.refresh.next < secs(160) + REFRESH_ASIDE * 2;
            // An IPv4 address was counted; of IPv6 nobody knows.
            assert_eq!((all.usable("vsw-1", family, secs(161)), often), (family == Family::V4, family == Family::V6));
            all.counted(secs(800), 7, list(), &mut rng);
            assert!(all.usable("vsw-1", family, secs(801)) && all.refresh.next > secs(800) + REFRESH_ASIDE * 2);
        }
    }

    #[test]
    fn an_empty_vswitch_is_set_aside_for_as_long_as_counts_say_so() {
        let mut rng = Rng::with_seed(1);
        let ours = Settings { vswitches: vec!["vsw-1".into()], ..settings() };
        let empty = || vec![vswitch("vsw-1", "10.0.1.0/24", 0)];
        let mut all = VSwitches::new(secs(0), &ours, empty(), &mut rng);
        for minute in 1..60 {
            all.ask(minute, &ours.vswitches);
            all.counted(secs(60 * minute), minute, empty(), &mut rng);
            assert!(!all.usable("vsw-1", Family::V4, secs(60 * minute + 300)), "after {minute} minutes");
        }
        // The configuration names another one by now: what was found of this one ends by time, and is no reason to count often.
        let others = ["vsw-2".to_owned()];
        all.ask(60, &others);
        all.counted(secs(3600), 60, vec![vswitch("vsw-2", "10.0.2.0/24", 9)], &mut rng);
        assert!(!all.usable("vsw-1", Family::V4, secs(3601)) && all.refresh.next > secs(3600) + REFRESH_ASIDE * 2);
        assert!(all.usable("vsw-1", Family::V4, secs(4200)));
    }
}
