//! What the loop does by itself from time to time: it frees what nobody deleted, sweeps what is left in the kernel, and
//! sets right what others have changed there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use super::repair::WIRED_IN;
use super::{Node, Standing};
use crate::daemon::clock;
use crate::error::Error;
use crate::gather::Gather;
use crate::kernel::netns::Netns;
use crate::kernel::{Kernel, LinkSeen, MAIN, OldPod, RouteSeen};
use crate::ours;
use crate::plan::{Rule, RuleAction};
use crate::pod::{Attachment, PodName, nameless};
use crate::pool::Now;
use crate::rpc::{Lease, Reply};

/// Leftovers of every kind are looked for this often, or as often as the configuration gives up leases of pods that are gone.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

impl Node {
    pub(super) fn keep_up(&mut self, now: Now) {
        if self.sweep <= now && self.sweeping.is_empty() {
            self.sweep = now + SWEEP_EVERY.min(self.world.orphan);
            self.absorb_tombstones();
            self.give_up_the_gone(now);
            let swept = self.sweep_kernel(now);
            self.noted("sweep", swept);
        }
        if self.mend <= now {
            self.mend = now + SWEEP_EVERY.min(self.world.orphan);
            let mended = self.mend();
            self.noted("mend", mended);
            self.world.guard_netfilter();
        }
        if self.compare <= now {
            self.compare = now + self.compare_every();
            self.compare();
        }
    }

    pub(super) fn absorb_tombstones(&mut self) {
        let stones = self.ledger.tombstones().unwrap_or_else(|e| {
            log::warn!("tombstones: {e}");
            Vec::new()
        });
        for stone in stones {
            let attachment = &stone.attachment;
            log::info!("{attachment} was deleted while no daemon was there");
            let unnamed =
                stone.pod.as_ref().and_then(|pod| self.unnamed(pod, &attachment.ifname, stone.netns.as_deref()));
            let released = match self.release(attachment) {
                Reply::None {} => unnamed.map(|lease| self.release(&lease.sandbox.attachment)),
                reply => Some(reply),
            };
            if !matches!(released, Some(Reply::Refused { .. }))
                && let Err(e) = self.ledger.bury(attachment)
            {
                log::warn!("tombstone of {attachment}: {e}");
            }
        }
    }

    /// Frees the addresses of pods that are gone although DEL never came; the API server is asked before.
    fn give_up_the_gone(&mut self, now: Now) {
        let leases: Vec<(Attachment, PodName)> =
            self.leases.values().map(|l| (l.sandbox.attachment.clone(), l.pod.clone())).collect();
        for (attachment, pod) in leases {
            match self.pods.standing(&pod) {
                Standing::Gone(since) if since + self.world.orphan <= now => {
                    log::info!("pod {pod} is gone and no DEL came for {attachment}: its address is freed");
                    self.release_unasked(&attachment);
                }
                Standing::Missed(since) if since + self.world.orphan <= now => drop(self.fetch(pod)),
                _ => {}
            }
        }
        self.give_up_the_unnamed();
        self.forget_the_gone();
        self.complained.retain(|name| self.pods.find(name).is_some());
    }

    /// Most pods have lost their lease by a DEL before they are gone from the API server: nobody will ask for them.
    pub(super) fn forget_the_gone(&mut self) {
        let leases = &self.leases;
        self.pods.forget(|name| leases.of(name).next().is_some());
    }

    /// A DEL may not find its way to a lease without a container: the address is freed once nothing is left of the pod.
    fn give_up_the_unnamed(&mut self) {
        let unnamed = self.leases.values().filter(|l| ours::is_unnamed(&l.sandbox.attachment));
        for lease in unnamed.cloned().collect::<Vec<_>>() {
            if self.has_gone(&lease) {
                log::info!(
                    "nothing is left of pod {}, which the old Terway had wired: its address is freed",
                    lease.pod
                );
                self.release(&lease.sandbox.attachment);
            }
        }
    }

    /// The lease of a pod that the old Terway has wired without writing its container down. A DEL that comes late for an
    /// earlier sandbox of the pod means another namespace.
    pub(super) fn unnamed(&mut self, pod: &PodName, ifname: &str, netns: Option<&Path>) -> Option<Lease> {
        let attachment = ours::unnamed_attachment(&ours::host_veth(pod, ifname), ifname);
        let Some(lease) = self.leases.get(&attachment).cloned() else { return self.nameless_in(netns?, ifname) };
        let named = netns == Some(&lease.sandbox.netns);
        let meant = named || netns.is_some_and(|netns| is_behind(&attachment, netns)) || self.has_gone(&lease);
        meant.then_some(lease)
    }

    /// The lease of the pod in this namespace, where not even its name is known: it has the address.
    fn nameless_in(&mut self, netns: &Path, ifname: &str) -> Option<Lease> {
        let is_one = |lease: &&Lease| lease.pod == nameless() && ours::is_unnamed(&lease.sandbox.attachment);
        self.leases.values().find(is_one)?;
        let (_, addrs) = Kernel::host().and_then(|mut kernel| kernel.look_inside(netns, ifname)).ok()??;
        let has = |lease: &&Lease| lease.ip.iter().any(|ip| addrs.contains(&ip));
        self.leases.values().filter(is_one).find(has).cloned()
    }

    /// Neither the link nor the namespace of the pod is there any more; nor, where that is not known, the route to it.
    fn has_gone(&mut self, lease: &Lease) -> bool {
        let attachment = &lease.sandbox.attachment;
        if !ours::is_unnamed(attachment) {
            return false;
        }
        let others = |alias: &str| ours::attachment(alias).is_some_and(|other| other != *attachment);
        let linked = match ours::unnamed_link(attachment).map(|name| self.kernel.link(name)) {
            Some(Ok(link)) => link.is_some_and(|link| !link.alias.as_deref().is_some_and(others)),
            Some(Err(_)) => true,
            None => false,
        };
        let is_unplaced = lease.sandbox.netns.as_os_str().is_empty();
        !linked && if is_unplaced { !self.is_led_to(lease) } else { Netns::open(&lease.sandbox.netns).is_err() }
    }

    /// The old Terway's route to a pod on IPvlan is there, which goes with a DEL.
    fn is_led_to(&mut self, lease: &Lease) -> bool {
        let look = |kernel: &mut Kernel| -> Result<bool, Error> {
            let slaves = kernel.links()?.into_iter().filter(|link| link.name.starts_with(ours::HOST_SLAVE));
            let slaves: BTreeSet<Option<u32>> = slaves.map(|link| Some(link.ifindex)).gather();
            let pods: Vec<OldPod> = lease.ip.iter().map(|ip| OldPod { ip, veth: "", table: None }).collect();
            let leads = |route: &RouteSeen| slaves.contains(&route.oif) && pods.iter().any(|pod| pod.has_route(route));
            Ok(kernel.routes(MAIN)?.iter().any(leads))
        };
        look(&mut self.kernel).unwrap_or(true)
    }

    fn sweep_kernel(&mut self, now: Now) -> Result<(), Error> {
        let links = self.sweep_links()?;
        self.give_up_the_superseded(&links, now);
        self.sweep_routes()?;
        self.sweep_rules(&links)
    }

    /// Deletes routes of ours to addresses that no lease holds. A lease is recorded before its route is made.
    fn sweep_routes(&mut self) -> Result<(), Error> {
        let mut stale = self.kernel.routes(ours::PODS_TABLE)?;
        let leased: BTreeSet<IpAddr> = self.leases.values().flat_map(|lease| lease.ip.iter()).gather();
        stale.retain(|route| route.protocol == ours::PROTOCOL && !leased.contains(&route.to.addr()));
        stale.iter().try_for_each(|route| self.kernel.delete_route(route))
    }

    /// Deletes every link of ours whose attachment holds no lease. Links are listed before leases are looked at, and a lease is
    /// recorded before its link is made: a link that is being made is never taken for a leftover.
    fn sweep_links(&mut self) -> Result<Vec<LinkSeen>, Error> {
        let links = self.kernel.links()?;
        let owner = |link: &LinkSeen| link.alias.as_deref().and_then(ours::attachment);
        let is_stale = |attachment: &Attachment| !self.leases.contains_key(attachment) && !self.awaited(attachment);
        let owned = links.iter().filter_map(|link| Some((link.ifindex, owner(link)?)));
        let (stale, owners): (Vec<u32>, _) = owned.filter(|(_, attachment)| is_stale(attachment)).unzip();
        if !stale.is_empty() {
            self.sweeping = owners;
            self.world.delete_links(stale, self.sweeping.clone());
        }
        Ok(links)
    }

    /// Frees the addresses of sandboxes whose host link has long been another's: their pod has a newer sandbox, so they are
    /// not missed, and no DEL came for them.
    fn give_up_the_superseded(&mut self, links: &[LinkSeen], now: Now) {
        let since = std::mem::take(&mut self.superseded);
        let owner = |link: &LinkSeen| link.alias.as_deref().and_then(ours::attachment);
        let owners: BTreeMap<&str, Attachment> =
            links.iter().filter_map(|l| Some((l.name.as_str(), owner(l)?))).gather();
        for (attachment, lease) in self.leases.iter() {
            let veth = ours::host_veth(&lease.pod, &attachment.ifname);
            if owners.get(veth.as_str()).is_some_and(|o| o != attachment && self.leases.contains_key(o)) {
                // A newer sandbox looks so too, for the moment until it is wired.
                let first = since.get(attachment).copied().unwrap_or(now);
                self.superseded.insert(attachment.clone(), first);
            }
        }
        let old =
            |(a, first): (&Attachment, &Now)| (*first + self.world.orphan.max(WIRED_IN) <= now).then(|| a.clone());
        let old: Vec<Attachment> = self.superseded.iter().filter_map(old).collect();
        for attachment in old {
            log::info!(
                "{attachment} was succeeded by another sandbox of its pod and no DEL came: its address is freed"
            );
            self.release(&attachment);
        }
    }

    /// An ADD waits for it, and will take over the link that is there.
    pub(super) fn awaited(&self, attachment: &Attachment) -> bool {
        let mut waiting = self.waiting.values().chain(self.unknown.values().flatten());
        waiting.any(|w| w.sandbox.attachment == *attachment)
    }

    /// Links without an owner are deleted beside those that have one, and nobody waits for them.
    pub(super) fn swept(&mut self, owners: &BTreeSet<Attachment>) {
        self.sweeping.retain(|attachment| !owners.contains(attachment));
        if !self.sweeping.is_empty() {
            return;
        }
        for waiting in std::mem::take(&mut self.returning) {
            self.identify(waiting);
        }
    }

    /// Deletes rules of ENIs that are gone without us.
    fn sweep_rules(&mut self, links: &[LinkSeen]) -> Result<(), Error> {
        let mut stale = self.kernel.rules()?;
        stale.retain(|rule| self.is_stale(rule, links));
        if stale.is_empty() {
            return Ok(());
        }
        // A link that came with its rules after the links were listed.
        let links = self.kernel.links()?;
        stale.retain(|rule| self.is_stale(rule, &links));
        stale.iter().try_for_each(|rule| self.kernel.delete_rule(rule))
    }

    fn is_stale(&self, rule: &Rule, links: &[LinkSeen]) -> bool {
        // Ours are from nowhere in particular.
        if rule.from.is_some() {
            return false;
        }
        match (rule.priority, rule.mark, &rule.iif, rule.action) {
            (ours::FROM_POD_PRIORITY, Some((value, mask)), None, RuleAction::Lookup(table)) => {
                let is_used = |slot| self.slots.values().any(|s| *s == slot);
                let has_link = links.iter().any(|l| ours::eni_table(l.ifindex) == table);
                ours::slot(value, mask).is_some_and(|slot| !is_used(slot) || !has_link)
            }
            (ours::STRAY_PRIORITY, None, Some(iif), RuleAction::Blackhole) => !links.iter().any(|l| l.name == *iif),
            _ => false,
        }
    }

    /// Deletes veths of ours that still bear no alias since the last time, and that no ADD which waits here has made: theirs
    /// was cut off before it could write one.
    pub(super) fn sweep_unsigned(&mut self, links: &[LinkSeen]) {
        let waiting = self.waiting.values().chain(self.unknown.values().flatten()).chain(&self.returning);
        let waiting = waiting.map(|w| (&w.pod, &w.sandbox.attachment));
        let (now, leased) = (clock::now(), self.leases.iter().map(|(attachment, lease)| (&lease.pod, attachment)));
        let under_way = leased.filter(|(_, attachment)| self.is_under_way(attachment, now));
        let awaited: BTreeSet<String> =
            waiting.chain(under_way).map(|(pod, attachment)| ours::host_veth(pod, &attachment.ifname)).gather();
        let is_ours = |link: &LinkSeen| {
            link.is_veth() && link.mac == Some(ours::host_mac(&link.name)) && !awaited.contains(&link.name)
        };
        let unsigned = links.iter().filter(|link| link.alias.is_none() && is_ours(link)).map(|link| link.ifindex);
        let before = std::mem::replace(&mut self.unsigned, unsigned.gather());
        let stale: Vec<u32> = self.unsigned.intersection(&before).copied().collect();
        if !stale.is_empty() {
            self.world.delete_links(stale, BTreeSet::new());
        }
    }
}

/// The interface in this namespace is the other end of the attachment's host link. Where a ledger was lost nothing else says
/// which namespace a pod is in.
fn is_behind(attachment: &Attachment, netns: &Path) -> bool {
    let Some(name) = ours::unnamed_link(attachment) else { return false };
    let look = || -> Result<bool, Error> {
        // A kernel of its own: ours shall not hold the pod's namespace open.
        let mut kernel = Kernel::host()?;
        let (outer, inner) = (kernel.link(name)?, kernel.look_inside(netns, &attachment.ifname)?);
        Ok(outer.zip(inner).is_some_and(|(outer, (inner, _))| inner.is_veth() && inner.peer == Some(outer.ifindex)))
    };
    look().unwrap_or(false)
}
