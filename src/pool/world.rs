//! The world around the pool in its tests: a strict cloud, a kernel, and the ledger that outlives the pool.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use fastrand::Rng;
use ipnet::Ipv4Net;

use super::calls::enis_of;
use super::dress::with_our_tags;
use super::{
    Boot, Call, CallId, Effect, EniChoice, Held, Intent, Now, Outcome, Reserved, Settings, Ticket, VSwitchChoice,
};
use crate::eni::{Eni, EniKind, EniState, Fault, FaultKind, Limits, VSwitch, of_prefix};
use crate::ip::{Family, IpPair, Mac, Pair, Stack};
use crate::ours;
use crate::pod::{Attachment, PodName, Sandbox};

pub const HERE: &str = "i-here";

pub fn settings() -> Settings {
    Settings {
        stack: Stack::V4,
        whole: false,
        limits: Limits { adapters: 4, v4_per_adapter: 6, v6_per_adapter: 0 },
        min_idle: 0,
        max_idle: 4,
        min_enis: 0,
        max_enis: 3,
        zone: "z-a".into(),
        vswitches: vec!["vsw-1".into(), "vsw-2".into()],
        vswitch_choice: VSwitchChoice::Ordered,
        eni_choice: EniChoice::MostIps,
        security_groups: vec!["sg-1".into()],
        instance_groups: vec!["sg-instance".into()],
        resource_group: None,
        instance: HERE.into(),
        instance_type: "ecs.test".into(),
        tags: BTreeMap::from([("team".into(), "net".into())]),
        tag_filter: BTreeMap::new(),
        tag_block: vec![("excluded".into(), "true".into())],
        prefixes: None,
        warm_up: 0,
        reclaim: None,
        rate_limit: BTreeMap::new(),
        cooldown: Duration::from_secs(130),
        reservation: Duration::from_secs(300),
        eni_idle: Duration::from_secs(300),
        sync_period: Duration::from_secs(120),
    }
}

pub fn sandbox(container: &str) -> Sandbox {
    Sandbox { attachment: attachment(container), netns: format!("/run/netns/{container}").into() }
}

pub fn attachment(container: &str) -> Attachment {
    Attachment { container: container.into(), ifname: "eth0".into() }
}

pub fn pod(name: &str) -> PodName {
    PodName::new("default", name)
}

pub fn fault(kind: FaultKind) -> Fault {
    let (action, code, message) = ("Act".into(), format!("{kind:?}"), "the cloud's words".into());
    Fault { kind, action, code, message, request_id: "R-1".into() }
}

pub fn vswitch(id: &str, net: &str, free: u32) -> VSwitch {
    VSwitch { id: id.into(), zone: "z-a".into(), cidr: Pair::v4(net.parse().unwrap()), free }
}

/// An ENI with addresses `net.first` and up.
pub fn eni(id: &str, state: EniState, vswitch: &str, v4: &[&str]) -> Eni {
    let v4: Vec<Ipv4Addr> = v4.iter().map(|ip| ip.parse().unwrap()).collect();
    let tags = with_our_tags(settings()).tags;
    Eni {
        id: id.into(),
        mac: Mac([2, 0, 0, 0, 0, 1]),
        kind: EniKind::Secondary,
        state,
        instance: (state != EniState::Available).then(|| HERE.into()),
        vswitch: vswitch.into(),
        zone: "z-a".into(),
        primary: v4[0],
        v4,
        v6: vec![],
        prefixes: vec![],
        security_groups: vec!["sg-1".into()],
        tags,
        description: ours::ENI_DESCRIPTION.into(),
    }
}

/// How ill the world behaves, in per mille of calls.
#[derive(Debug, Clone, Default)]
pub struct Ills {
    pub lost_reply: u32,
    pub throttled: u32,
    pub refused: u32,
    pub lies: u32,
    pub kernel: u32,
    /// Nothing answers until then.
    pub outage_until: Now,
}

/// The cloud: strict about states, limits and tokens.
pub struct Cloud {
    pub rng: Rng,
    pub limits: Limits,
    pub enis: BTreeMap<String, Eni>,
    pub ever: BTreeSet<String>,
    pub moves: BTreeMap<String, (Now, EniState)>,
    pub free: BTreeMap<String, Vec<Ipv4Addr>>,
    pub free6: BTreeMap<String, Vec<Ipv6Addr>>,
    pub cidrs: BTreeMap<String, VSwitch>,
    tokens: BTreeMap<String, (Call, Outcome)>,
    pub assigns: u32,
    pub ills: Ills,
}

impl Cloud {
    pub fn new(seed: u64, limits: Limits) -> Cloud {
        let mut cloud = Cloud {
            rng: Rng::with_seed(seed),
            limits,
            enis: BTreeMap::new(),
            ever: BTreeSet::new(),
            moves: BTreeMap::new(),
            free: BTreeMap::new(),
            free6: BTreeMap::new(),
            cidrs: BTreeMap::new(),
            tokens: BTreeMap::new(),
            assigns: 0,
            ills: Ills::default(),
        };
        cloud.add_vswitch("vsw-1", 1, 200);
        cloud.add_vswitch("vsw-2", 2, 200);
        cloud
    }

    pub fn add_vswitch(&mut self, id: &str, net: u8, size: u8) {
        self.cidrs.insert(id.into(), vswitch(id, &format!("10.0.{net}.0/24"), 0));
        self.free.insert(id.into(), (1..=size).rev().map(|n| Ipv4Addr::new(10, 0, net, n)).collect());
        self.free6.insert(id.into(), Vec::new());
    }

    /// Switches IPv6 on for a vSwitch.
    pub fn add_v6(&mut self, id: &str, net: u8, size: u8) {
        let prefix = format!("fd00:0:0:{net}::");
        self.cidrs.get_mut(id).unwrap().cidr.v6 = Some(format!("{prefix}/64").parse().unwrap());
        let nth = |n: u8| format!("{prefix}{n:x}").parse().unwrap();
        self.free6.insert(id.into(), (1..=size).rev().map(nth).collect());
    }

    /// Everything that time alone brings about.
    pub fn pass(&mut self, now: Now) {
        let due: Vec<String> = self.moves.iter().filter(|(_, (at, _))| *at <= now).map(|(id, _)| id.clone()).collect();
        for id in due {
            let (_, state) = self.moves.remove(&id).unwrap();
            if let Some(eni) = self.enis.get_mut(&id) {
                eni.state = state;
                if state == EniState::Available {
                    eni.instance = None;
                }
            }
        }
    }

    /// Carries a call out, and says what the caller hears of it.
    pub fn carry_out(&mut self, now: Now, call: &Call) -> Result<Outcome, Fault> {
        let dice = self.rng.u32(..1000);
        let ills = self.ills.clone();
        if now < ills.outage_until {
            return Err(fault(FaultKind::Unknown));
        }
        if dice < ills.lost_reply {
            if self.rng.bool() {
                let _ = self.act(now, call);
            }
            return Err(fault(FaultKind::Unknown));
        }
        if dice < ills.lost_reply + ills.throttled {
            return Err(fault(FaultKind::Throttled));
        }
        if dice < ills.lost_reply + ills.throttled + ills.refused {
            let kinds = [FaultKind::Forbidden, FaultKind::Quota, FaultKind::Invalid, FaultKind::Busy];
            return Err(fault(kinds[self.rng.usize(..4)]));
        }
        self.act(now, call)
    }

    pub fn act(&mut self, now: Now, call: &Call) -> Result<Outcome, Fault> {
        match call {
            Call::Create { token, .. } | Call::Assign { token, .. } | Call::AssignPrefixes { token, .. } => {
                self.once(token, call)
            }
            Call::UnassignPrefixes { eni, prefixes } => self.unassign_prefixes(eni, prefixes),
            Call::Attach { eni } => self.attach(now, eni),
            Call::Detach { eni } => self.begin(now, eni, EniState::InUse, EniState::Detaching, Outcome::Detached),
            Call::Delete { eni } => self.delete(eni),
            Call::Unassign { eni, addresses } => self.unassign(eni, addresses),
            Call::Look { enis } => {
                Ok(Outcome::Seen(enis.iter().filter_map(|eni| self.enis.get(eni).cloned()).collect()))
            }
            Call::LookAll => Ok(Outcome::SeenAll(self.enis.values().cloned().collect())),
            Call::VSwitches => Ok(Outcome::VSwitches(self.vswitches())),
            Call::Regroup { .. } | Call::Tag { .. } | Call::Untag { .. } => self.dress(call),
        }
    }

    fn dress(&mut self, call: &Call) -> Result<Outcome, Fault> {
        let id = &enis_of(call)[0];
        let eni = self.enis.get_mut(id).ok_or(fault(FaultKind::Gone))?;
        if !matches!(eni.state, EniState::InUse | EniState::Available) {
            return Err(fault(FaultKind::Busy));
        }
        match call {
            Call::Regroup { security_groups, .. } => {
                assert!(!security_groups.is_empty(), "{id} would be without a security group");
                if security_groups.contains("sg-full") {
                    return Err(fault(FaultKind::Quota));
                }
                eni.security_groups = security_groups.iter().cloned().collect();
            }
            Call::Tag { tags, .. } => {
                assert!(!tags.keys().any(|key| key.starts_with("others-")), "a tag of somebody else is changed");
                eni.tags.extend(tags.clone());
            }
            Call::Untag { keys, .. } => {
                assert!(!keys.iter().any(|key| key.starts_with("others-")), "a tag of somebody else is taken away");
                assert!(!keys.contains(ours::NODE_TAG) && !keys.contains(ours::ENI_TAG.0), "{id} would be nobody's");
                eni.tags.retain(|key, _| !keys.contains(key));
            }
            _ => unreachable!("only these change what an ENI bears"),
        }
        Ok(Outcome::Dressed)
    }

    /// The token has been used with success.
    pub fn knows(&self, token: &str) -> bool {
        self.tokens.contains_key(token)
    }

    pub fn vswitches(&self) -> Vec<VSwitch> {
        self.cidrs.values().map(|v| VSwitch { free: self.free[&v.id].len() as u32, ..v.clone() }).collect()
    }

    /// The same token gives the same answer, and with other parameters none.
    fn once(&mut self, token: &str, call: &Call) -> Result<Outcome, Fault> {
        if let Some((first, outcome)) = self.tokens.get(token) {
            return if first == call { Ok(outcome.clone()) } else { Err(fault(FaultKind::Token)) };
        }
        let outcome = match call {
            Call::Create { vswitch, tags, security_groups, addresses, v6, .. } => {
                let outcome = self.create(vswitch, tags, *addresses, *v6)?;
                self.wear(outcome, security_groups)
            }
            Call::Assign { eni, family, count, .. } => self.assign(eni, *family, *count)?,
            Call::AssignPrefixes { eni, count, .. } => self.assign_prefixes(eni, *count)?,
            _ => unreachable!("only these have tokens"),
        };
        self.tokens.insert(token.into(), (call.clone(), outcome.clone()));
        Ok(outcome)
    }

    fn take(&mut self, vswitch: &str, count: u32) -> Result<Vec<Ipv4Addr>, Fault> {
        let free = self.free.get_mut(vswitch).ok_or(fault(FaultKind::Invalid))?;
        if free.len() < count as usize {
            return Err(fault(FaultKind::VSwitchEmpty));
        }
        // The address given back last comes first: hardest on whoever forgets to let it rest.
        Ok(free.split_off(free.len() - count as usize))
    }

    fn take_v6(&mut self, vswitch: &str, count: u32) -> Result<Vec<Ipv6Addr>, Fault> {
        let free = self.free6.get_mut(vswitch).ok_or(fault(FaultKind::Invalid))?;
        if count > 0 && self.cidrs[vswitch].cidr.v6.is_none() {
            return Err(fault(FaultKind::Invalid));
        }
        if free.len() < count as usize {
            return Err(fault(FaultKind::VSwitchEmpty));
        }
        Ok(free.split_off(free.len() - count as usize))
    }

    fn create(
        &mut self,
        vswitch: &str,
        tags: &BTreeMap<String, String>,
        count: u32,
        v6: u32,
    ) -> Result<Outcome, Fault> {
        assert!((1..=self.limits.v4_per_adapter).contains(&count), "an ENI with {count} addresses is asked for");
        assert!(v6 <= self.limits.v6_per_adapter, "an ENI with {v6} IPv6 addresses is asked for");
        let v6 = self.take_v6(vswitch, v6)?;
        let v4 = self.take(vswitch, count).inspect_err(|_| self.free6.get_mut(vswitch).unwrap().extend(&v6))?;
        let id = format!("eni-{:03}", self.ever.len());
        self.ever.insert(id.clone());
        let v4_text: Vec<String> = v4.iter().map(Ipv4Addr::to_string).collect();
        let v4_text: Vec<&str> = v4_text.iter().map(String::as_str).collect();
        let mut made = eni(&id, EniState::Available, vswitch, &v4_text);
        made.tags = tags.clone();
        made.v6 = v6;
        self.enis.insert(id, made.clone());
        Ok(Outcome::Created(Box::new(made)))
    }

    fn wear(&mut self, made: Outcome, groups: &[String]) -> Outcome {
        let Outcome::Created(mut eni) = made else { return made };
        eni.security_groups = groups.to_vec();
        self.enis.insert(eni.id.clone(), (*eni).clone());
        Outcome::Created(eni)
    }

    fn assign(&mut self, id: &str, family: Family, count: u32) -> Result<Outcome, Fault> {
        let most = if family == Family::V4 { 49 } else { 10 };
        assert!((1..=most).contains(&count), "{count} addresses of {family:?} are asked for in one call");
        self.assigns += 1;
        let eni = self.enis.get(id).ok_or(fault(FaultKind::Gone))?.clone();
        if !matches!(eni.state, EniState::InUse | EniState::Available) {
            return Err(fault(FaultKind::Busy));
        }
        let there = places(&eni, family);
        if there + count > self.limits.per_adapter(family) {
            return Err(fault(FaultKind::EniFull));
        }
        let lie = self.rng.u32(..1000) < self.ills.lies;
        let fewer = u32::from(lie && count > 1 && self.rng.bool());
        let mut given = self.give(id, &eni.vswitch, family, count - fewer)?;
        if lie {
            self.lie(id, &mut given);
        }
        Ok(Outcome::Assigned(given))
    }

    fn give(&mut self, id: &str, vswitch: &str, family: Family, count: u32) -> Result<Vec<IpAddr>, Fault> {
        Ok(match family {
            Family::V4 => {
                let given = self.take(vswitch, count)?;
                self.enis.get_mut(id).unwrap().v4.extend(&given);
                given.into_iter().map(IpAddr::V4).collect()
            }
            Family::V6 => {
                let given = self.take_v6(vswitch, count)?;
                self.enis.get_mut(id).unwrap().v6.extend(&given);
                given.into_iter().map(IpAddr::V6).collect()
            }
        })
    }

    fn assign_prefixes(&mut self, id: &str, count: u32) -> Result<Outcome, Fault> {
        assert!((1..=10).contains(&count), "{count} prefixes are asked for in one call");
        self.assigns += 1;
        let eni = self.enis.get(id).ok_or(fault(FaultKind::Gone))?.clone();
        if !matches!(eni.state, EniState::InUse | EniState::Available) {
            return Err(fault(FaultKind::Busy));
        }
        if places(&eni, Family::V4) + count > self.limits.v4_per_adapter {
            return Err(fault(FaultKind::EniFull));
        }
        let net = self.cidrs[&eni.vswitch].cidr.v4.unwrap();
        let free: BTreeSet<Ipv4Addr> = self.free[&eni.vswitch].iter().copied().collect();
        let whole = |p: &Ipv4Net| of_prefix(p).all(|ip| matches!(ip, IpAddr::V4(ip) if free.contains(&ip)));
        let given: Vec<Ipv4Net> = net.subnets(28).unwrap().filter(whole).take(count as usize).collect();
        if given.len() < count as usize {
            return Err(fault(FaultKind::VSwitchEmpty));
        }
        self.free.get_mut(&eni.vswitch).unwrap().retain(|ip| !given.iter().any(|p| p.contains(ip)));
        self.enis.get_mut(id).unwrap().prefixes.extend(&given);
        Ok(Outcome::Prefixes(given))
    }

    fn unassign_prefixes(&mut self, id: &str, prefixes: &[Ipv4Net]) -> Result<Outcome, Fault> {
        let eni = self.enis.get_mut(id).ok_or(fault(FaultKind::Gone))?;
        if eni.state != EniState::InUse {
            return Err(fault(FaultKind::Busy));
        }
        if !prefixes.iter().all(|p| eni.prefixes.contains(p)) {
            return Err(fault(FaultKind::Gone));
        }
        eni.prefixes.retain(|p| !prefixes.contains(p));
        self.free.get_mut(&eni.vswitch.clone()).unwrap().extend(prefixes.iter().flat_map(hosts));
        Ok(Outcome::Unassigned)
    }

    /// Names an address that lies outside the vSwitch, or is somewhere else.
    fn lie(&mut self, id: &str, given: &mut [IpAddr]) {
        let family = Family::of(&given[0]);
        let outside = if family == Family::V4 { "198.51.100.7" } else { "2001:db8::7" };
        let mut others = self.enis.values().filter(|e| e.id != id).flat_map(Eni::addresses);
        let other = others.find(|ip| Family::of(ip) == family);
        given[0] = if self.rng.bool() { outside.parse().unwrap() } else { other.unwrap_or(given[0]) };
    }

    fn attach(&mut self, now: Now, id: &str) -> Result<Outcome, Fault> {
        let secondary = |e: &&Eni| e.kind != EniKind::Primary && e.instance.is_some();
        let attached = self.enis.values().filter(secondary).count() as u32;
        if self.enis.get(id).is_some_and(|e| e.state == EniState::Available) && attached + 1 >= self.limits.adapters {
            return Err(fault(FaultKind::Quota));
        }
        let outcome = self.begin(now, id, EniState::Available, EniState::Attaching, Outcome::Attached)?;
        self.enis.get_mut(id).unwrap().instance = Some(HERE.into());
        Ok(outcome)
    }

    fn begin(&mut self, now: Now, id: &str, from: EniState, via: EniState, outcome: Outcome) -> Result<Outcome, Fault> {
        let eni = self.enis.get_mut(id).ok_or(fault(FaultKind::Gone))?;
        if eni.state != from {
            return Err(fault(FaultKind::Busy));
        }
        eni.state = via;
        let to = if via == EniState::Attaching { EniState::InUse } else { EniState::Available };
        self.moves.insert(id.into(), (now + Duration::from_millis(self.rng.u64(500..8000)), to));
        Ok(outcome)
    }

    fn delete(&mut self, id: &str) -> Result<Outcome, Fault> {
        let eni = self.enis.get(id).ok_or(fault(FaultKind::Gone))?;
        if eni.state != EniState::Available {
            return Err(fault(FaultKind::Busy));
        }
        self.remove(id);
        Ok(Outcome::Deleted)
    }

    pub fn remove(&mut self, id: &str) {
        let eni = self.enis.remove(id).unwrap();
        self.moves.remove(id);
        self.free.get_mut(&eni.vswitch).unwrap().extend(eni.prefixes.iter().flat_map(hosts).chain(eni.v4));
        self.free6.get_mut(&eni.vswitch).unwrap().extend(eni.v6);
    }

    fn unassign(&mut self, id: &str, addresses: &[IpAddr]) -> Result<Outcome, Fault> {
        assert!((1..=10).contains(&addresses.len()), "{} addresses are unassigned in one call", addresses.len());
        let of_one = addresses.iter().all(|ip| ip.is_ipv4() == addresses[0].is_ipv4());
        assert!(of_one, "{addresses:?} are unassigned in one call");
        let eni = self.enis.get_mut(id).ok_or(fault(FaultKind::Gone))?;
        assert!(!addresses.contains(&IpAddr::V4(eni.primary)), "the primary address of {id} cannot be unassigned");
        if eni.state != EniState::InUse {
            return Err(fault(FaultKind::Busy));
        }
        if !addresses.iter().all(|ip| eni.addresses().any(|there| there == *ip)) {
            return Err(fault(FaultKind::Gone));
        }
        for ip in addresses {
            match ip {
                IpAddr::V4(ip) => self.free.get_mut(&eni.vswitch).unwrap().push(*ip),
                IpAddr::V6(ip) => self.free6.get_mut(&eni.vswitch).unwrap().push(*ip),
            }
        }
        eni.v4.retain(|ip| !addresses.contains(&IpAddr::V4(*ip)));
        eni.v6.retain(|ip| !addresses.contains(&IpAddr::V6(*ip)));
        Ok(Outcome::Unassigned)
    }

    /// What DescribeNetworkInterfaces by instance and by our tag gives at boot.
    pub fn this_nodes(&self) -> Vec<Eni> {
        self.enis.values().cloned().collect()
    }
}

/// Places of the ENI that are taken.
pub fn places(eni: &Eni, family: Family) -> u32 {
    match family {
        Family::V4 => (eni.v4.len() + eni.prefixes.len()) as u32,
        Family::V6 => eni.v6.len() as u32,
    }
}

fn hosts(prefix: &Ipv4Net) -> Vec<Ipv4Addr> {
    of_prefix(prefix).filter_map(|ip| if let IpAddr::V4(ip) = ip { Some(ip) } else { None }).collect()
}

/// What is on disk.
#[derive(Debug, Default, Clone)]
pub struct Ledger {
    pub leases: BTreeMap<Attachment, Held>,
    pub cooling: BTreeMap<(String, IpPair), Now>,
    /// Those of them that are kept for a pod.
    pub reserved: BTreeMap<IpPair, PodName>,
    /// Pods shared ENIs in an earlier life and do no more: what was kept for them may end early.
    pub shares_no_more: bool,
    pub intents: BTreeMap<String, Intent>,
}

impl Ledger {
    pub fn boot(&self, settings: Settings, cloud: &Cloud) -> Boot {
        Boot {
            settings,
            enis: cloud.this_nodes(),
            willed: false,
            vswitches: cloud.vswitches(),
            leases: self.leases.values().cloned().collect(),
            cooling: self.rests(None).map(|((eni, ip), until)| (eni.clone(), *ip, *until)).collect(),
            reserved: (self.reserved.values().collect::<BTreeSet<_>>().into_iter())
                .flat_map(|pod| self.rests(Some(pod)).map(|((eni, ip), until)| (pod.clone(), eni.clone(), *ip, *until)))
                .map(|(pod, eni, ip, until)| Reserved { pod, eni, ip, until })
                .collect(),
            intents: self.intents.values().cloned().collect(),
        }
    }

    /// What rests, for nobody or for this pod.
    fn rests(&self, reserved: Option<&PodName>) -> impl Iterator<Item = (&(String, IpPair), &Now)> {
        self.cooling.iter().filter(move |((_, ip), _)| self.reserved.get(ip) == reserved)
    }

    /// Writes an effect down, and checks that it may be.
    pub fn write(&mut self, now: Now, effect: &Effect) {
        match effect {
            Effect::Intend(intent) => {
                assert!(self.intents.insert(intent.token.clone(), intent.clone()).is_none(), "a token is used twice");
            }
            Effect::Settled { token } => {
                assert!(self.intents.remove(token).is_some(), "{token} is settled but was never intended");
            }
            Effect::Record(held) => self.record(now, held),
            Effect::Retire { attachment, eni, ip, until, reserved } => {
                let held = self.leases.remove(attachment).expect("only a lease can end");
                assert_eq!((&held.eni, held.ip), (eni, *ip));
                assert!(
                    reserved.as_ref().is_none_or(|pod| *pod == held.pod),
                    "{ip} of {} is kept for another",
                    held.pod
                );
                self.reserved.remove(ip);
                self.reserved.extend(reserved.clone().map(|pod| (*ip, pod)));
                self.cooling.insert((eni.clone(), *ip), *until);
            }
            Effect::Rested { eni, ip } => {
                let until = self.cooling.remove(&(eni.clone(), *ip)).expect("only what rests can have rested");
                let pod = self.reserved.remove(ip);
                let came = pod.is_some_and(|pod| self.leases.values().any(|h| h.pod == pod && h.ip == *ip));
                let ends = until <= now || came || self.shares_no_more;
                assert!(ends, "{ip} rests until {until:?} and was freed at {now:?}");
            }
            _ => {}
        }
    }

    fn record(&mut self, now: Now, held: &Held) {
        for other in self.leases.values().filter(|h| h.ip.iter().any(|ip| has(&held.ip, ip))) {
            assert_eq!(other.sandbox.attachment, held.sandbox.attachment, "{} is leased twice", held.ip);
        }
        let kept = |pair: &IpPair| *pair == held.ip && self.reserved.get(pair) == Some(&held.pod);
        let rest = self.cooling.keys().find(|(_, pair)| pair.iter().any(|ip| has(&held.ip, ip)) && !kept(pair));
        assert!(rest.is_none(), "{} is leased at {now:?} and rests: {rest:?}", held.ip);
        self.leases.insert(held.sandbox.attachment.clone(), held.clone());
    }

    pub fn touches(&self, eni: &str) -> bool {
        self.leases.values().any(|h| h.eni == eni) || self.cooling.keys().any(|(e, _)| e == eni)
    }

    pub fn holds(&self, ip: IpAddr) -> bool {
        self.leases.values().any(|h| has(&h.ip, ip)) || self.cooling.keys().any(|(_, pair)| has(pair, ip))
    }
}

fn has(pair: &IpPair, ip: IpAddr) -> bool {
    pair.iter().any(|one| one == ip)
}

/// A call under way.
#[derive(Debug, Clone)]
pub struct Flight {
    pub id: CallId,
    pub call: Call,
    /// A picture of the whole may have been taken at its start.
    pub picture: Option<Outcome>,
}

/// An ADD that has not been answered.
#[derive(Debug, Clone)]
pub struct Asked {
    pub ticket: Ticket,
    pub attachment: Attachment,
    pub whole: bool,
    pub deadline: Now,
}
