//! What the loop does by itself from time to time: it frees what nobody deleted, sweeps what is left in the kernel, and
//! sets right what others have changed there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use super::repair::WIRED_IN;
use super::{Node, Standing};
use crate::error::Error;
use crate::kernel::LinkSeen;
use crate::ours;
use crate::plan::{Rule, RuleAction};
use crate::pod::{Attachment, PodName};
use crate::pool::Now;
use crate::rpc::Reply;

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
            self.world.guard_answers();
        }
        if self.compare <= now {
            self.compare = now + self.compare_every();
            self.compare();
        }
    }

    fn absorb_tombstones(&mut self) {
        let stones = self.ledger.tombstones().unwrap_or_else(|e| {
            log::warn!("tombstones: {e}");
            Vec::new()
        });
        for attachment in stones {
            log::info!("{attachment} was deleted while no daemon was there");
            if !matches!(self.release(&attachment), Reply::Refused { .. })
                && let Err(e) = self.ledger.bury(&attachment)
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
                    self.release(&attachment);
                }
                Standing::Missed(since) if since + self.world.orphan <= now => drop(self.fetch(pod)),
                _ => {}
            }
        }
        let leases = &self.leases;
        self.pods.forget(|name| leases.values().any(|l| l.pod == *name));
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
        let leased: BTreeSet<IpAddr> = self.leases.values().flat_map(|lease| lease.ip.iter()).collect();
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
            self.world.delete_links(stale);
        }
        Ok(links)
    }

    /// Frees the addresses of sandboxes whose host link has long been another's: their pod has a newer sandbox, so they are
    /// not missed, and no DEL came for them.
    fn give_up_the_superseded(&mut self, links: &[LinkSeen], now: Now) {
        let since = std::mem::take(&mut self.superseded);
        let owner = |link: &LinkSeen| link.alias.as_deref().and_then(ours::attachment);
        let owners: BTreeMap<&str, Attachment> =
            links.iter().filter_map(|l| Some((l.name.as_str(), owner(l)?))).collect();
        for (attachment, lease) in &self.leases {
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

    pub(super) fn swept(&mut self) {
        self.sweeping.clear();
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
        let awaited: BTreeSet<String> =
            waiting.map(|w| ours::host_veth(&w.pod, &w.sandbox.attachment.ifname)).collect();
        let is_ours = |link: &LinkSeen| {
            link.is_veth() && link.mac == Some(ours::host_mac(&link.name)) && !awaited.contains(&link.name)
        };
        let unsigned = links.iter().filter(|link| link.alias.is_none() && is_ours(link)).map(|link| link.ifindex);
        let before = std::mem::replace(&mut self.unsigned, unsigned.collect());
        let stale: Vec<u32> = self.unsigned.intersection(&before).copied().collect();
        if !stale.is_empty() {
            self.world.delete_links(stale);
        }
    }
}
