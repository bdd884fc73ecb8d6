//! ENIs that come and go: the slot of each, its link set up and taken down.

use super::Node;
use crate::config::Mode;
use crate::daemon::clock;
use crate::daemon::eni::{self, Job};
use crate::error::{Context, Error};
use crate::ip::Mac;
use crate::kernel;
use crate::ours;
use crate::plan::{Rule, RuleAction};
use crate::pool::{Event, Link};
use crate::repair::Part;
use crate::rpc::EniLease;

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
                let ready = Link { ifindex: lease.table - ours::PODS_TABLE, slot };
                self.enis.insert(job.eni.clone(), lease);
                self.guard_eni(&job.eni, &link, clock::now());
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
            Ok(lease) => {
                let link = Link { ifindex: lease.table - ours::PODS_TABLE, slot: lease.slot };
                self.homes.remove(&eni);
                self.enis.insert(eni.clone(), lease);
                self.eni_is_up(&eni);
                self.set_up_slaves(&eni);
                Ok(link)
            }
            Err(e) => {
                log::warn!("ENI {eni}: {e}");
                Err(e.to_string())
            }
        };
        self.feed(Event::Prepared { eni, result });
    }

    pub(super) fn dismantle(&mut self, eni: &str, mac: Mac) {
        self.slots.remove(eni);
        self.repair.leave(&Part::Eni(eni.to_owned()));
        let lease = self.enis.remove(eni);
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
        self.forget_slaves(eni);
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
