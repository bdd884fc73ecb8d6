//! One ENI's life: what we want of it, where cloud and kernel have it, and the one step that comes next.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use fastrand::Rng;
use ipnet::Ipv4Net;

use super::dress::Dress;
use super::retry::{Backoff, SOON};
use super::units::Supply;
use super::{Call, CallId, Intent, Link, Now, Refused, Settings};
use crate::eni::{Eni, EniKind, EniState, PER_PREFIX};
use crate::ip::{Family, Mac};
use crate::ours;

/// An ENI of ours.
pub(super) struct Nic {
    pub mac: Mac,
    pub vswitch: String,
    pub primary: Ipv4Addr,
    pub goal: Goal,
    /// Where the cloud had it last.
    pub state: EniState,
    /// The cloud does not know it any more, but leases say that it was here.
    pub missing: bool,
    pub kernel: Kernel,
    /// A lease has the whole of it: its link is in the pod, or is going there.
    pub lent: bool,
    /// We took it out of the kernel in this life, and have not set it up since.
    pub dismantled: bool,
    /// When to set its link up, after failures.
    pub wiring: Backoff,
    /// What the kernel said last.
    pub complaint: Option<String>,
    /// Those of both families; what pairs them up is the lease.
    pub addresses: BTreeMap<IpAddr, Address>,
    /// Some of them are leaving, or were when that was last looked at.
    pub leaves: bool,
    /// Prefixes, whose addresses are among these.
    pub prefixes: BTreeSet<Ipv4Net>,
    /// What was counted last, and at which edition of the state.
    pub supply: Cell<Option<(u64, Supply)>>,
    /// Addresses that the cloud has on it and that cannot be right.
    pub suspect: BTreeSet<IpAddr>,
    /// An AssignPrivateIpAddresses or AssignIpv6Addresses whose end we do not know yet.
    pub assign: Option<Assign>,
    /// An UnassignPrivateIpAddresses or UnassignIpv6Addresses whose end we do not know yet.
    pub parting: Option<Parting>,
    /// The call under way: one at a time.
    pub busy: Option<CallId>,
    pub retry: Backoff,
    /// No address of the family is asked for on it until then, and why. What is over is kept until an address comes.
    pub no_assign: BTreeMap<Family, (Now, Refused)>,
    /// Since when it has been wanted and not attached.
    pub awaited: Option<Now>,
    /// Times that the cloud said no to attaching it, and yes, since it was attached last.
    pub rejected: u32,
    pub accepted: u32,
    /// Its security groups and tags.
    pub dress: Dress,
    /// What we believe of it may be wrong: look.
    pub stale: bool,
    /// The newest call there was when one of its own last ended: older pictures of it are out of date.
    pub touched: CallId,
    /// Since when it has held no lease (if it holds none).
    pub empty_since: Now,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    Keep,
    /// Detach and delete it.
    GiveBack,
    /// It is kept from us (`eni_tag_filter`, `eni_tag_block_list`): nothing new on it and no call for it, only the pods that
    /// it has go on.
    Leave,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kernel {
    Absent,
    Asked,
    Ready(Link),
}

pub(super) struct Address {
    pub free_since: Now,
    /// Being unassigned.
    pub leaving: bool,
}

pub(super) struct Assign {
    pub intent: Intent,
    pub family: Family,
    pub count: u32,
    pub tries: u32,
    /// An attempt may have been carried out although we were not told.
    pub doubt: bool,
}

/// Addresses on their way back to the cloud.
pub(super) struct Parting {
    pub intent: Intent,
    /// An attempt may still be carried out.
    pub doubt: bool,
}

/// The one thing to do next with an ENI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    Nothing,
    AssignAgain,
    UnassignAgain,
    Look,
    Attach,
    Prepare,
    Detach,
    Delete,
}

impl Nic {
    pub fn new(now: Now, eni: &Eni, goal: Goal) -> Nic {
        Nic {
            mac: eni.mac,
            vswitch: eni.vswitch.clone(),
            primary: eni.primary,
            goal,
            state: eni.state,
            missing: false,
            kernel: Kernel::Absent,
            lent: false,
            dismantled: false,
            wiring: Backoff::default(),
            complaint: None,
            addresses: BTreeMap::new(),
            leaves: false,
            prefixes: BTreeSet::new(),
            supply: Cell::new(None),
            suspect: BTreeSet::new(),
            assign: None,
            parting: None,
            busy: None,
            retry: Backoff::default(),
            no_assign: BTreeMap::new(),
            awaited: None,
            rejected: 0,
            accepted: 0,
            dress: Dress::of(eni),
            stale: false,
            touched: 0,
            empty_since: now,
        }
    }

    /// The cloud has it in another state than before. What was accepted and taken back is tried again later each time.
    pub fn settle_in(&mut self, state: EniState, now: Now, rng: &mut Rng) {
        match state {
            EniState::InUse => (self.rejected, self.accepted, self.complaint) = (0, 0, None),
            EniState::Available if self.accepted > 0 => {
                self.retry.fails = self.accepted;
                self.retry.fail(now, &SOON, rng);
            }
            _ => {}
        }
    }

    pub fn next(&self) -> Next {
        if self.missing || self.busy.is_some() {
            return Next::Nothing;
        }
        if self.assign.is_some() {
            return Next::AssignAgain;
        }
        if self.stale {
            return Next::Look;
        }
        match (self.goal, self.state) {
            (Goal::Keep, EniState::Available) => Next::Attach,
            (Goal::Keep, EniState::InUse) => self.next_in_use(),
            (Goal::Leave, EniState::InUse) if self.kernel == Kernel::Absent && !self.lent => Next::Prepare,
            (Goal::Leave, _) => Next::Nothing,
            (Goal::GiveBack, EniState::InUse) => Next::Detach,
            (Goal::GiveBack, EniState::Available) => Next::Delete,
            _ => Next::Look,
        }
    }

    fn next_in_use(&self) -> Next {
        if self.leaves && self.addresses.values().any(|a| a.leaving) {
            Next::UnassignAgain
        } else if self.kernel == Kernel::Absent && !self.lent {
            Next::Prepare
        } else {
            Next::Nothing
        }
    }

    /// Its addresses may be handed out.
    pub fn serves(&self) -> bool {
        self.kept() && self.state == EniState::InUse && matches!(self.kernel, Kernel::Ready(_))
    }

    /// Addresses of the family have a way out by its link, as far as we know.
    pub fn leads_out(&self, family: Family) -> bool {
        family == Family::V4 || !matches!(self.kernel, Kernel::Ready(Link { v6: None, .. }))
    }

    /// A pod may have this address: it stays, and there is a way out for it.
    pub fn offers(&self, ip: IpAddr) -> bool {
        self.addresses.get(&ip).is_some_and(|a| !a.leaving) && self.leads_out(Family::of(&ip))
    }

    /// The pods that it has are served.
    pub fn carries(&self) -> bool {
        let wired = self.state == EniState::InUse && matches!(self.kernel, Kernel::Ready(_));
        self.serves() || self.goal == Goal::Leave && !self.missing && wired
    }

    /// The one pod that it is lent to is served.
    pub fn carries_one(&self) -> bool {
        let left = self.goal == Goal::Leave && !self.missing && self.state == EniState::InUse && self.lent;
        self.serves_one() || left
    }

    /// It is lent, and as far as we know the pod has it.
    pub fn serves_one(&self) -> bool {
        self.kept() && self.state == EniState::InUse && self.lent
    }

    /// Nothing is asked of the cloud that would change its addresses.
    pub fn is_still(&self) -> bool {
        self.busy.is_none() && self.assign.is_none()
    }

    /// It serves, or is on its way to.
    pub fn kept(&self) -> bool {
        self.goal == Goal::Keep && !self.missing
    }

    /// It is kept, and as far as we know nothing stands in its way.
    pub fn promising(&self) -> bool {
        self.kept() && (self.kernel != Kernel::Absent || self.complaint.is_none())
    }

    /// A call could be made on it now.
    pub fn free_for(&self, now: Now) -> bool {
        self.next() == Next::Nothing && self.busy.is_none() && self.retry.next <= now
    }

    /// The address is one of a prefix.
    pub fn in_prefix(&self, ip: &IpAddr) -> bool {
        matches!(ip, IpAddr::V4(ip) if self.prefixes.iter().any(|prefix| prefix.contains(ip)))
    }

    /// Places that have been asked for: a prefix takes one.
    pub fn places_coming(&self, family: Family) -> u32 {
        let whole = |assign: &&Assign| matches!(assign.intent.call, Call::AssignPrefixes { .. });
        let per_place = if self.assign.as_ref().filter(whole).is_some() { PER_PREFIX } else { 1 };
        self.coming(family) / per_place
    }

    /// The address that a pod has which takes the whole of it.
    pub fn own(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => Some(IpAddr::V4(self.primary)),
            Family::V6 => self.addresses.keys().copied().find(|ip| Family::of(ip) == Family::V6),
        }
    }

    /// Addresses that have been asked for.
    pub fn coming(&self, family: Family) -> u32 {
        self.assign.as_ref().filter(|a| a.family == family).map_or(0, |a| a.count)
    }
}

/// It is an ENI that we made, for pods, and nobody keeps us from it.
pub(super) fn ours(eni: &Eni, settings: &Settings) -> bool {
    let (key, value) = ours::ENI_TAG;
    eni.kind == EniKind::Secondary && eni.tags.get(key).is_some_and(|v| v == value) && admits(settings, &eni.tags)
}

/// It is one that we made for this node, and we are to keep our hands off.
pub(super) fn kept_from_us(eni: &Eni, settings: &Settings) -> bool {
    let (key, value) = ours::ENI_TAG;
    let made = eni.kind == EniKind::Secondary && eni.tags.get(key).is_some_and(|v| v == value);
    made && eni.instance.as_ref() == Some(&settings.instance) && !admits(settings, &eni.tags)
}

/// Whether an ENI with these tags is for us to use.
pub(super) fn admits(settings: &Settings, tags: &BTreeMap<String, String>) -> bool {
    let has = |key: &String, value: &String| tags.get(key) == Some(value);
    settings.tag_filter.iter().all(|(k, v)| has(k, v)) && !settings.tag_block.iter().any(|(k, v)| has(k, v))
}

/// It is one of ours and this node's: attached here, or unattached and made for this node.
pub(super) fn this_nodes(eni: &Eni, settings: &Settings) -> bool {
    ours(eni, settings)
        && match eni.instance.as_deref().filter(|i| !i.is_empty()) {
            Some(instance) => instance == settings.instance,
            None => eni.tags.get(ours::NODE_TAG) == Some(&settings.instance),
        }
}

/// It takes one of the node's places for ENIs, and is not ours.
pub(super) fn foreign(eni: &Eni, settings: &Settings) -> bool {
    eni.instance.as_deref() == Some(&settings.instance) && eni.kind != EniKind::Primary && !ours(eni, settings)
}
