//! Who enforces network policies on this node, and why that one; and that of the others nothing is left.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::Path;

use super::bandwidth;
use super::policy::Chosen;
use serde_json::Value;

use crate::cluster::Name;
use crate::config::PolicyRenderer;
use crate::error::Error;
use crate::kernel::bpf::policy::{self, Policy};
use crate::kernel::guard::{self, Guard};
use crate::kernel::tables::{self, Looks, Scouted, Tables};
use crate::ours;
use crate::rpc::Lease;
use crate::rules::{Counted, Pods, Renderer, Rules, Tally, Write};
use crate::verdict::Sizes;

/// What the choice goes by.
#[derive(Debug, Clone, Copy)]
pub struct Ask {
    pub wanted: Option<PolicyRenderer>,
    /// Connections to Services are led to their backends at the socket, where a pod's first link does not see them any more.
    pub services: bool,
    /// Pods are slaves of their ENI, or have one to themselves: what they send passes no netfilter of the node.
    pub inside: bool,
    pub sizes: Sizes,
}

/// `scouted`: what iptables holds.
pub fn choose(ask: &Ask, scouted: Scouted) -> Result<Chosen, Error> {
    let chosen = enforcing(ask, scouted.policies)?;
    let renderer = Box::new(Guarded { renderer: chosen.renderer, guard: Guard::after(scouted.sources) });
    Ok(Chosen { renderer, ..chosen })
}

fn enforcing(ask: &Ask, scouted: Looks) -> Result<Chosen, Error> {
    let (way, why) = match ask {
        Ask { wanted: Some(way), .. } => (*way, "policy_renderer says so"),
        Ask { inside: true, .. } => (PolicyRenderer::Ebpf, "what pods send passes no netfilter of the node"),
        Ask { services: true, .. } => {
            (PolicyRenderer::Ebpf, "Services are led at the socket, so that policies see backends")
        }
        _ => return by_itself(ask.sizes, scouted),
    };
    match way {
        PolicyRenderer::Ebpf => ebpf(why.into(), ask.sizes),
        PolicyRenderer::Iptables => iptables(why.into(), ask.sizes, scouted),
    }
}

/// Behind kube-proxy's translation, backends are seen by netfilter alone.
fn by_itself(sizes: Sizes, scouted: Looks) -> Result<Chosen, Error> {
    let why = "Services are translated by the node's netfilter or IPVS, behind which policies see backends";
    iptables(why.into(), sizes, scouted).or_else(|e| {
        ebpf(format!("{e}; what pods send to Services is judged by the Service's address"), sizes)
            .map_err(|also| also.within(e.to_string()))
    })
}

fn iptables(why: String, sizes: Sizes, scouted: Looks) -> Result<Chosen, Error> {
    let tables = Tables::after(sizes.classes, scouted)?;
    let renderer = Box::new(Mixed { tables, ebpf: None, sizes, seated: Vec::new(), failure: None });
    Ok(Chosen { way: PolicyRenderer::Iptables, why, taken: BTreeSet::new(), room: sizes, renderer })
}

/// Whether pods can be held to policies whose packets pass no netfilter of the node, on a node where iptables holds the others.
pub fn holds_inside(sizes: &Sizes) -> Result<(), Error> {
    open(sizes).map(drop)
}

fn open(sizes: &Sizes) -> Result<Policy, Error> {
    Ok(Policy::open(Path::new(ours::BPF_ROOT), sizes)?.0)
}

/// Rules are about addresses, so that pods are held to their own.
struct Guarded {
    renderer: Box<dyn Renderer>,
    guard: Guard,
}

impl Renderer for Guarded {
    fn restore(&mut self, rules: &Rules, pods: &Pods) -> Result<(), Error> {
        self.guard.restore();
        self.renderer.restore(rules, pods)
    }

    fn apply(&mut self, writes: &[Write], after: &Rules, pods: &Pods) -> Result<(), Error> {
        self.renderer.apply(writes, after, pods)
    }

    fn unheld(&self) -> Option<(Vec<Name>, Error)> {
        self.renderer.unheld()
    }

    fn has_renewed(&mut self) -> bool {
        self.renderer.has_renewed()
    }

    fn tally(&self) -> Option<Tally> {
        together(self.renderer.tally(), self.guard.tally())
    }
}

/// iptables for pods without a seat, and eBPF for those with one, once there is one.
struct Mixed {
    tables: Tables,
    ebpf: Option<Policy>,
    sizes: Sizes,
    seated: Vec<Name>,
    /// What keeps those with a seat from having their rules.
    failure: Option<Error>,
}

impl Mixed {
    /// The others do without eBPF.
    fn hold_seated(&mut self, rules: &Rules, seated: &Pods, write: impl FnOnce(&mut Policy) -> Result<(), Error>) {
        self.seated = seated.keys().cloned().collect();
        self.failure = self.write_seated(rules, seated, write).err();
    }

    fn write_seated(
        &mut self,
        rules: &Rules,
        seated: &Pods,
        write: impl FnOnce(&mut Policy) -> Result<(), Error>,
    ) -> Result<(), Error> {
        match &mut self.ebpf {
            None if seated.is_empty() => Ok(()),
            Some(ebpf) if self.failure.is_none() => write(ebpf),
            ebpf => {
                let ebpf = match ebpf {
                    Some(ebpf) => ebpf,
                    None => ebpf.insert(open(&self.sizes)?),
                };
                ebpf.restore(rules, seated)
            }
        }
    }
}

/// Those without a seat, and those with one, who are few on such a node or none.
fn split(pods: &Pods) -> (Cow<'_, Pods>, Pods) {
    if pods.values().all(|placed| placed.seat == 0) {
        return (Cow::Borrowed(pods), Pods::new());
    }
    let (others, seated) = pods.clone().into_iter().partition(|(_, placed)| placed.seat == 0);
    (Cow::Owned(others), seated)
}

impl Renderer for Mixed {
    fn restore(&mut self, rules: &Rules, pods: &Pods) -> Result<(), Error> {
        let (unseated, seated) = split(pods);
        self.tables.restore(rules, &unseated)?;
        self.hold_seated(rules, &seated, |ebpf| ebpf.restore(rules, &seated));
        Ok(())
    }

    fn apply(&mut self, writes: &[Write], after: &Rules, pods: &Pods) -> Result<(), Error> {
        let (unseated, seated) = split(pods);
        self.tables.apply(writes, after, &unseated)?;
        self.hold_seated(after, &seated, |ebpf| ebpf.apply(writes, after, &seated));
        Ok(())
    }

    fn unheld(&self) -> Option<(Vec<Name>, Error)> {
        Some((self.seated.clone(), self.failure.clone()?))
    }

    fn has_renewed(&mut self) -> bool {
        self.ebpf.as_mut().is_some_and(Policy::has_renewed)
    }

    fn tally(&self) -> Option<Tally> {
        together(self.tables.tally(), self.ebpf.as_ref().and_then(Policy::tally))
    }
}

fn together(one: Option<Tally>, other: Option<Tally>) -> Option<Tally> {
    let all: Vec<Tally> = one.into_iter().chain(other).collect();
    (!all.is_empty()).then(|| -> Tally { Box::new(move || sum(all)) })
}

/// What all of them have counted together. What is broken is told also where others cannot count.
fn sum(tallies: Vec<Tally>) -> Result<Counted, Error> {
    let mut all = Counted { figures: Value::Null, damage: None, is_stale: false };
    let mut failure = None;
    for tally in tallies {
        match tally() {
            Ok(Counted { figures, damage, is_stale }) => {
                add(&mut all.figures, figures);
                all.is_stale |= is_stale;
                all.damage = all.damage.or(damage);
            }
            Err(e) => failure = Some(e),
        }
    }
    failure.filter(|_| all.damage.is_none() && !all.is_stale).map_or(Ok(all), Err)
}

fn add(sum: &mut Value, more: Value) {
    match (sum, more) {
        (Value::Object(sum), Value::Object(more)) => {
            more.into_iter().for_each(|(key, value)| add(sum.entry(key).or_insert(Value::Null), value));
        }
        (Value::Number(sum), Value::Number(more)) => {
            *sum = (sum.as_u64().unwrap_or_default() + more.as_u64().unwrap_or_default()).into();
        }
        (sum, more) => *sum = more,
    }
}

fn ebpf(why: String, sizes: Sizes) -> Result<Chosen, Error> {
    let policy = open(&sizes)?;
    Ok(Chosen { way: PolicyRenderer::Ebpf, why, taken: policy.taken(), room: sizes, renderer: Box::new(policy) })
}

/// Takes away all that another way than this one has left, from these pods too. `mixed`: some pods have seats beside iptables.
pub fn leave_others(way: Option<PolicyRenderer>, seated: &[Lease], mixed: bool) {
    if way != Some(PolicyRenderer::Iptables)
        && let Err(e) = Tables::new(tables::MOST).remove()
    {
        log::warn!("network policies as ipsets and chains could not be taken away: {e}");
    }
    if way.is_none()
        && let Err(e) = guard::remove()
    {
        log::warn!("rules that hold pods to their own addresses could not be taken away: {e}");
    }
    if way == Some(PolicyRenderer::Ebpf) {
        return;
    }
    for lease in seated {
        if let Err(e) = bandwidth::police(lease) {
            log::warn!("programs of network policies stay on the links of pod {}: {e}", lease.pod);
        }
    }
    if !mixed && let Err(e) = policy::remove(Path::new(ours::BPF_ROOT)) {
        log::warn!("network policies as eBPF could not be taken away: {e}");
    }
}
