//! ENIs that come and go: the slot of each, its link set up and taken down.

use super::Node;
use crate::config::Mode;
use crate::daemon::clock;
use crate::daemon::eni::{self, Job};
use crate::datapath::{self, Setup};
use crate::error::{Context, Error};
use crate::ip::Mac;
use crate::kernel;
use crate::ours;
use crate::plan::{Rule, RuleAction};
use crate::pool::{Event, Link};
use crate::repair::{Depth, Part};
use crate::rpc::{EniLease, Lease};

impl Node {
    pub(super) fn prepare(&mut self, job: Job) {
        let slot = self.slots.get(&job.eni).copied().or_else(|| eni::free_slot(&self.slots));
        let Some(slot) = slot else {
            let result = Err(format!("all {} slots for ENIs are taken", ours::MAX_SLOT));
            return self.events.push_back(Event::Prepared { eni: job.eni, result });
        };
        self.slots.insert(job.eni.clone(), slot);
        match self.stands(&job, slot) {
            Some((link, lease)) => {
                log::info!("ENI {} is {link} in slot {slot}, as before", job.eni);
                let ready = ready(&lease);
                self.enis.insert(job.eni.clone(), lease);
                self.guard_eni(&job.eni, &link, clock::now());
                self.move_pods(&job.eni);
                self.direct();
                self.events.push_back(Event::Prepared { eni: job.eni, result: Ok(ready) });
            }
            None => self.world.prepare(job, slot),
        }
    }

    /// The link of an ENI which an earlier life has set up as it is to be, by the look at the start: there is nothing to do.
    fn stands(&mut self, job: &Job, slot: u32) -> Option<(String, EniLease)> {
        if self.world.terms.mode == Mode::Whole {
            return None;
        }
        let link = self.begin.as_ref()?.1.links.iter().find(|link| link.is_eni(job.mac))?;
        let settled = link.running && kernel::is_settled(link, job.home.as_deref());
        let vswitch = self.world.vswitches.get(&job.vswitch).filter(|_| settled)?;
        let lease = eni::lease(job, slot, vswitch, self.world.setup.stack, link.ifindex);
        let has_slaves = self.slaves.has(&job.eni);
        let (plan, name) = (self.world.eni_plan(&lease, &link.name, has_slaves), link.name.clone());
        let found = self.kernel.survey(&plan, None).ok()?;
        found.is_empty().then_some((name, lease))
    }

    pub(super) fn prepared(&mut self, eni: String, result: Result<EniLease, Error>) {
        let result = match result {
            Ok(lease) if self.slots.get(&eni) != Some(&lease.slot) => return self.set_up_for_nobody(&eni, lease),
            Ok(lease) => {
                let link = ready(&lease);
                self.homes.remove(&eni);
                self.enis.insert(eni.clone(), lease);
                self.eni_is_up(&eni);
                self.set_up_slaves(&eni);
                self.move_pods(&eni);
                self.direct();
                Ok(link)
            }
            Err(e) => {
                log::warn!("ENI {eni}: {e}");
                Err(e.to_string())
            }
        };
        self.feed(Event::Prepared { eni, result });
    }

    /// The ENI was set up, and its link may be another one than before: its pods are led to that, and those that are slaves shall be of that.
    fn move_pods(&mut self, id: &str) {
        let Some(eni) = self.enis.get(id).cloned() else { return };
        let is_moved = |lease: &&Lease| lease.eni.id == id && lease.eni != eni && !lease.is_whole();
        let moved: Vec<Lease> = self.leases.values().filter(is_moved).cloned().collect();
        for before in moved {
            self.move_pod(&before, Lease { eni: eni.clone(), ..before.clone() });
        }
    }

    /// A pod that nobody guards yet is led anew as well. What leads elsewhere goes before the lease that tells of it.
    fn move_pod(&mut self, before: &Lease, lease: Lease) {
        let (attachment, is_slave) = (lease.sandbox.attachment.clone(), lease.is_slave());
        let (make, undo) = datapath::moved(before, &lease);
        for led in [self.kernel.apply(&make), self.kernel.undo(&undo)] {
            self.noted("a pod whose ENI has another link", led.context(|| lease.pod.to_string()));
        }
        self.noted("lease", self.ledger.record(&lease));
        let is_other = datapath::pod(&Setup::new(before, 0)) != datapath::pod(&Setup::new(&lease, 0));
        self.leases.insert(lease);
        if is_other {
            self.guard_anew(&attachment);
            let depth = if is_slave { Depth::Inside } else { Depth::Outside };
            self.repair.look_at(clock::now(), Part::Pod(attachment), depth);
        }
    }

    pub(super) fn dismantle(&mut self, eni: &str, mac: Mac) {
        self.slots.remove(eni);
        self.repair.leave(&Part::Eni(eni.to_owned()));
        let lease = self.enis.remove(eni);
        self.take_down(eni, mac, lease);
        self.forget_slaves(eni);
    }

    /// The ENI was dismantled while a thread set it up, and its slot may be another's by now.
    fn set_up_for_nobody(&mut self, eni: &str, lease: EniLease) {
        log::info!("ENI {eni} is not wanted any more and was set up in slot {}", lease.slot);
        self.take_down(eni, lease.mac, Some(lease));
        // If it is wanted again, what both have in common has gone too.
        self.repair.look_at(clock::now(), Part::Eni(eni.to_owned()), Depth::Outside);
    }

    fn take_down(&mut self, eni: &str, mac: Mac, lease: Option<EniLease>) {
        let undone = match (self.kernel.link_by_mac(mac), lease) {
            (Ok(Some(link)), Some(lease)) => {
                // An earlier life may have made it a parent.
                let has_slaves = self.kernel.is_parent(link.ifindex).unwrap_or(true);
                let plan = self.world.eni_plan(&lease, &link.name, has_slaves);
                self.kernel.undo(&plan)
            }
            (Ok(Some(link)), None) => self.unmark(ours::eni_table(link.ifindex)),
            (Ok(None), _) => Ok(()),
            (Err(e), _) => Err(e),
        };
        self.noted("dismantle", undone.context(|| format!("ENI {eni}")));
    }

    /// What an earlier life set up: the rule that leads a slot's packets into the table. The slot is free for another ENI now.
    fn unmark(&mut self, table: u32) -> Result<(), Error> {
        let marked = |rule: &Rule| rule.mark.is_some_and(|(value, mask)| ours::slot(value, mask).is_some());
        let whole = |rule: &Rule| rule.priority == ours::FROM_POD_PRIORITY && rule.from.is_none() && rule.iif.is_none();
        let leads_there = |rule: &Rule| rule.action == RuleAction::Lookup(table) && marked(rule) && whole(rule);
        let rules: Vec<Rule> = self.kernel.rules()?.into_iter().filter(leads_there).collect();
        rules.iter().try_for_each(|rule| self.kernel.delete_rule(rule))
    }
}

/// What the pool hears of an ENI that is set up.
fn ready(eni: &EniLease) -> Link {
    Link { ifindex: eni.table - ours::PODS_TABLE, slot: eni.slot, v6: eni.cidr.v6 }
}
