//! The pool: which addresses the node has, who holds each, and what to ask of the cloud next. Events in, effects out.
//!
//! Pure: no clock, no I/O, no log, and no error, only a refusal. Every effect is carried out in the order given; an effect
//! that takes time comes back as an event. The daemon may die between any two effects, so the order is part of the meaning:
//! what must not be forgotten is recorded before it is done.

mod awaited;
mod calls;
mod dress;
mod eni;
mod prefix;
mod queue;
mod rate;
mod reclaim;
mod retry;
mod show;
mod size;
mod state;
mod units;
mod vswitch;
mod will;

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::{Ipv4Net, Ipv6Net};

use crate::config::Reclaim;
use crate::eni::{Eni, Fault, Limits, VSwitch};
use crate::ip::{Family, IpPair, Mac, Stack};
use crate::pod::{Attachment, PodName, Sandbox};
use crate::rpc::Refusal;
pub use show::Figures;
use state::State;
pub use will::Will;

/// How soon an ADD must have a chance for the pool to be ready.
const SOON: Duration = Duration::from_secs(30);

/// The pool of one node. Nothing but [`Pool::step`] changes it.
pub struct Pool {
    rng: fastrand::Rng,
    /// None until the boot.
    state: Option<Box<State>>,
}

impl Pool {
    /// The seed decides every random choice. Tokens are drawn from it, so each life of each node needs another one.
    pub fn new(seed: u64) -> Pool {
        Pool { rng: fastrand::Rng::with_seed(seed), state: None }
    }

    /// Hears one event, and says what is to be done now, in this order. At most one effect is a [`Effect::Wake`]; it replaces the last.
    pub fn step(&mut self, now: Now, event: Event) -> Vec<Effect> {
        let state = match (&mut self.state, event) {
            (None, Event::Boot(boot)) => self.state.insert(Box::new(State::boot(now, self.rng.fork(), *boot))),
            (None, Event::Allocate { ticket, .. }) => return vec![Effect::Reply { ticket, result: Err(starting()) }],
            (None, _) => return Vec::new(),
            (Some(state), event) => {
                state.now = state.now.max(now);
                state.hear(event);
                state
            }
        };
        state.decide()
    }

    /// What there is, in numbers.
    pub fn figures(&self) -> Option<Figures> {
        self.state.as_ref().map(|s| s.figures())
    }

    /// ENIs, addresses, those who wait, faults and back-offs, for people.
    pub fn show(&self) -> serde_json::Value {
        self.state.as_ref().map_or(serde_json::Value::Null, |s| s.show())
    }

    /// Whether an ADD could be served now or soon, and if not, why.
    pub fn ready(&self) -> Result<(), Refused> {
        self.state.as_ref().ok_or_else(starting)?.ready(SOON)
    }

    /// What the next life may go by until it has looked at the cloud, if this one ends now. `seen`: what the last look
    /// showed, and ENIs that were made since.
    pub fn will(&self, seen: &[Eni]) -> Option<Will> {
        self.state.as_ref()?.will(seen)
    }

    /// What the node can hold for pods.
    pub fn capacity(&self) -> Capacity {
        self.state.as_ref().map_or(Capacity::default(), |s| s.capacity())
    }

    /// Why pods cannot have addresses. A node that is full lacks none before someone was turned away.
    pub fn lack(&self) -> Option<Refused> {
        let state = self.state.as_ref()?;
        state.ready(SOON).err().filter(|refused| refused.why != Refusal::NodeFull || state.turned_away)
    }
}

fn starting() -> Refused {
    Refused { why: Refusal::Starting, reason: "the pool has not read what cloud, kernel and ledger hold yet".into() }
}

pub use crate::eni::{EniChoice, VSwitchChoice};

/// Time since the machine started (CLOCK_BOOTTIME): it goes on over a restart of the daemon, as cooling addresses need.
pub type Now = Duration;

/// What the operator says of the pool, in limits that hold for this node.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// One address of each of these families is what a lease holds.
    pub stack: Stack,
    /// Every lease takes a whole ENI. The limits are then for one address of each family.
    pub whole: bool,
    pub limits: Limits,
    /// Idle addresses to keep ready, and the most to keep.
    pub min_idle: u32,
    pub max_idle: u32,
    /// Bounds on secondary ENIs; `max_enis` is already within the instance's limits and ours.
    pub min_enis: u32,
    pub max_enis: u32,
    /// The node's zone; empty where nobody knows it.
    pub zone: String,
    /// vSwitches of the node's zone, in the order of the configuration.
    pub vswitches: Vec<String>,
    pub vswitch_choice: VSwitchChoice,
    pub eni_choice: EniChoice,
    /// None: those of the instance.
    pub security_groups: Vec<String>,
    /// Those of the instance, until a look at its own ENI shows others.
    pub instance_groups: Vec<String>,
    pub resource_group: Option<String>,
    /// The instance we run on, and its type.
    pub instance: String,
    pub instance_type: String,
    /// Tags for ENIs we make; an ENI is ours when it bears [`crate::ours::ENI_TAG`], and this node's when it is attached here
    /// or bears [`crate::ours::NODE_TAG`] with our instance.
    pub tags: BTreeMap<String, String>,
    /// Only ENIs that bear all of these tags are used, and none that bears one of those.
    pub tag_filter: BTreeMap<String, String>,
    pub tag_block: Vec<(String, String)>,
    /// IPv4 addresses are asked for in prefixes, at most so many an ENI; only where leases need no IPv6 address.
    pub prefixes: Option<u32>,
    /// Addresses to have once after the start, those in use included.
    pub warm_up: u32,
    pub reclaim: Option<Reclaim>,
    /// Calls a minute, by API action.
    pub rate_limit: BTreeMap<String, u32>,
    /// How long an address rests after its pod has gone.
    pub cooldown: Duration,
    /// How long the addresses of a pod that shall have them again are kept for it, where that is longer.
    pub reservation: Duration,
    /// How long an ENI must have held no lease before it is given back.
    pub eni_idle: Duration,
    /// How often everything is compared with the cloud.
    pub sync_period: Duration,
}

/// What the node can hold beside its primary ENI.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capacity {
    pub enis: u32,
    pub per_eni: u32,
    /// ENIs that pods have to themselves.
    pub lent: u32,
    /// ENIs that pods may have to themselves: those, and all that carry no pod that shares.
    pub whole: u32,
}

impl Capacity {
    /// Addresses for pods that share ENIs.
    pub fn shared(&self) -> u32 {
        self.enis.saturating_sub(self.lent) * self.per_eni
    }

    /// Pods that can have an address.
    pub fn pods(&self) -> u32 {
        self.shared() + self.lent
    }
}

/// Names a waiting ADD; the caller chooses it, never twice.
pub type Ticket = u64;
/// Names a call to the cloud under way.
pub type CallId = u64;

#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// First of all: what cloud, kernel and ledger hold.
    Boot(Box<Boot>),
    /// New settings: at SIGHUP, or when the node's configuration changed.
    Settings(Box<Settings>),
    /// Calls go another way from now on, or are signed with other credentials.
    NewCloud,
    /// An ADD waits. The same attachment asked again is answered with the same address. `whole`: the pod wants an ENI to itself.
    Allocate { ticket: Ticket, pod: PodName, sandbox: Sandbox, whole: bool, deadline: Now },
    /// The one who waited hung up. If it had been answered already, a Release will come or the pod's absence will be seen.
    Forget { ticket: Ticket },
    /// The attachment is gone; nothing of it is left in the kernel.
    Release { attachment: Attachment },
    /// The same, and its addresses are kept for the next pod of its name.
    Reserve { attachment: Attachment },
    /// A call came back.
    Done { call: CallId, result: Result<Outcome, Fault> },
    /// The kernel side of an ENI is ready (its link is there and set up), or it could not be made so.
    Prepared { eni: String, result: Result<Link, String> },
    /// The ENI's link went away although nobody asked for it.
    LinkGone { eni: String },
    /// A wake-up that [`Effect::Wake`] asked for; never sooner, perhaps later, perhaps more often.
    Tick,
}

/// An ENI's link in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub ifindex: u32,
    pub slot: u32,
    /// The IPv6 addresses for which there is a way out by it.
    pub v6: Option<Ipv6Net>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Boot {
    pub settings: Settings,
    /// Every ENI attached to this instance, and every unattached one that bears our node's tag.
    pub enis: Vec<Eni>,
    /// These are not from a look at the cloud but out of the last life's will: a look has to come soon.
    pub willed: bool,
    pub vswitches: Vec<VSwitch>,
    pub leases: Vec<Held>,
    /// Addresses that rest, and until when.
    pub cooling: Vec<(String, IpPair, Now)>,
    /// Addresses that rest for a pod of this name.
    pub reserved: Vec<Reserved>,
    /// What an earlier life was about to do when it died.
    pub intents: Vec<Intent>,
}

/// Addresses kept for a pod that is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reserved {
    pub pod: PodName,
    pub eni: String,
    pub ip: IpPair,
    pub until: Now,
}

/// A lease as the pool knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub pod: PodName,
    pub sandbox: Sandbox,
    pub eni: String,
    pub ip: IpPair,
    /// Nobody else has anything of the ENI: its link is in the pod.
    pub whole: bool,
}

/// Something to be found again after a crash, written before the call that makes it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Intent {
    /// The ClientToken of the call; saying it again gives the same answer and makes nothing twice.
    pub token: String,
    pub call: Call,
}

/// A call to the cloud. One attempt; the pool decides about the next.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Call {
    /// CreateNetworkInterface with this many IPv4 addresses, the primary one included, and this many IPv6 addresses.
    Create {
        vswitch: String,
        security_groups: Vec<String>,
        resource_group: Option<String>,
        tags: BTreeMap<String, String>,
        addresses: u32,
        #[serde(default)]
        v6: u32,
        token: String,
    },
    Attach {
        eni: String,
    },
    Detach {
        eni: String,
    },
    Delete {
        eni: String,
    },
    Assign {
        eni: String,
        #[serde(default)]
        family: Family,
        count: u32,
        token: String,
    },
    /// Addresses of one family.
    Unassign {
        eni: String,
        addresses: Vec<IpAddr>,
    },
    /// AssignPrivateIpAddresses for prefixes of 16 addresses.
    AssignPrefixes {
        eni: String,
        count: u32,
        token: String,
    },
    UnassignPrefixes {
        eni: String,
        prefixes: Vec<Ipv4Net>,
    },
    /// DescribeNetworkInterfaces for some ENIs, to see how far the cloud has come with them.
    Look {
        enis: Vec<String>,
    },
    /// Every ENI of this node, as at boot.
    LookAll,
    /// DescribeVSwitches for the vSwitches of the settings.
    VSwitches,
    /// ModifyNetworkInterfaceAttribute: these security groups and no others.
    Regroup {
        eni: String,
        security_groups: BTreeSet<String>,
    },
    /// TagResources: these tags, beside those that are there.
    Tag {
        eni: String,
        tags: BTreeMap<String, String>,
    },
    /// UntagResources.
    Untag {
        eni: String,
        keys: BTreeSet<String>,
    },
}

#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// The ENI bears the security groups, or the tags, that were asked for.
    Dressed,
    Created(Box<Eni>),
    Attached,
    Detached,
    Deleted,
    Assigned(Vec<IpAddr>),
    Prefixes(Vec<Ipv4Net>),
    Unassigned,
    /// Those of the ENIs that the cloud knows.
    Seen(Vec<Eni>),
    SeenAll(Vec<Eni>),
    VSwitches(Vec<VSwitch>),
}

#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Write the intent down, durably, before the call that follows.
    Intend(Intent),
    /// The intent's call has come to its end.
    Settled {
        token: String,
    },
    Call {
        id: CallId,
        call: Call,
    },
    /// Write the lease down before anyone hears of it.
    Record(Held),
    /// The attachment's lease is over; its address rests until then. One step in the ledger.
    Retire {
        attachment: Attachment,
        eni: String,
        ip: IpPair,
        until: Now,
        /// The pod for whose successor it rests.
        reserved: Option<PodName>,
    },
    /// The address rests no longer (it is free again, no longer ours, or has been leased to the pod that it was kept for).
    Rested {
        eni: String,
        ip: IpPair,
    },
    Reply {
        ticket: Ticket,
        result: Result<Held, Refused>,
    },
    /// Set the ENI's link up in the kernel; answered by [`Event::Prepared`].
    Prepare {
        eni: String,
        mac: Mac,
        vswitch: String,
    },
    /// Take our rules and routes for the ENI out of the kernel, before it is detached or its link goes to a pod.
    Dismantle {
        eni: String,
        mac: Mac,
    },
    /// Something a person should hear of, said once until it changes.
    Tell(Notice),
    /// Send a [`Event::Tick`] at this time.
    Wake {
        at: Now,
    },
}

/// Why an ADD is refused: a word for the machine, a sentence for a person (the cloud's own words included).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    pub why: Refusal,
    pub reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// The pod it concerns, or the node.
    pub pod: Option<PodName>,
    pub warning: bool,
    /// An event reason that users of the old Terway know, such as `AllocIPFailed`.
    pub reason: &'static str,
    pub message: String,
}
