//! IPvlan: who gets a slave of an ENI, ENIs that have slaves, and what the programs on them know.

use std::collections::BTreeSet;
use std::path::Path;

use super::Node;
use crate::daemon::clock;
use crate::datapath::{self, EniSetup};
use crate::error::{Cause, Context, Error};
use crate::kernel::bpf::hooks::Directory;
use crate::kernel::{self, Kernel, LinkSeen};
use crate::ours;
use crate::plan::Plan;
use crate::pod::Attachment;
use crate::pool::{Held, Notice};
use crate::rpc::{EniLease, Lease, Reply, Slave, Wish};

/// The event that users of the old Terway know.
const REASON: &str = "VirtualModeChanged";

/// What the loop keeps for ENIs with slaves.
#[derive(Default)]
pub(super) struct Slaves {
    /// ENIs that have slaves, or had.
    parents: BTreeSet<String>,
    /// What an ADD asked for last, if it was IPvlan: ENIs that come are made ready for it.
    wanted: bool,
    /// Opened with the first parent.
    directory: Option<Directory>,
    /// What was told of why there is no IPvlan.
    told: Option<String>,
}

impl Slaves {
    /// As the leases of an earlier life have it.
    pub fn of<'a>(leases: impl Iterator<Item = &'a Lease>) -> Slaves {
        let parents = leases.filter(|lease| lease.is_slave()).map(|lease| lease.eni.id.clone());
        let parents: BTreeSet<String> = parents.collect();
        Slaves { wanted: !parents.is_empty(), parents, ..Slaves::default() }
    }

    pub fn has(&self, eni: &str) -> bool {
        self.parents.contains(eni)
    }
}

impl Node {
    /// What a lease takes that shall be a slave of its ENI. `None` where nobody asks for that, or it cannot be: then the pod has a veth.
    pub(super) fn slave(&mut self, held: &Held, eni: &EniLease) -> Result<Option<Slave>, Error> {
        let Wish { host_stack, slave, .. } = self.wish(held);
        if !slave {
            return Ok(None);
        }
        match self.become_parent(eni) {
            Ok(()) => Ok(Some(Slave { host_stack, shaper: self.world.trials.shaper()? })),
            Err(why) => {
                self.tell_of_veths(why);
                Ok(None)
            }
        }
    }

    /// What the ADD asks for that the lease is for.
    pub(super) fn wish(&self, held: &Held) -> Wish {
        let waiting = self.waiting.values().find(|w| w.sandbox == held.sandbox);
        waiting.map(|w| w.wish.clone()).unwrap_or_default()
    }

    fn tell_of_veths(&mut self, why: String) {
        let message =
            format!("the network configuration asks for IPvlan, and {why}: pods are wired by policy routing instead");
        if self.slaves.told.as_ref() != Some(&message) {
            self.tell(Notice { pod: None, warning: true, reason: REASON, message: message.clone() });
            self.slaves.told = Some(message);
        }
    }

    /// Makes the ENI ready for slaves, if it is not.
    fn become_parent(&mut self, eni: &EniLease) -> Result<(), String> {
        if self.slaves.has(&eni.id) {
            return Ok(());
        }
        self.world.trials.ipvlan().map_err(|e| e.to_string())?;
        if self.service_nets().is_empty() {
            log::warn!("service_cidr is not set: what IPvlan pods send to Services as packets leaves by their ENI");
        }
        self.slaves.wanted = true;
        self.set_up_parent(eni).map_err(|e| format!("ENI {} cannot have IPvlan slaves ({e})", eni.id))
    }

    fn set_up_parent(&mut self, eni: &EniLease) -> Result<(), Error> {
        let doing = || format!("ENI {}", eni.id);
        let link = self.kernel.link_by_mac(eni.mac)?.ok_or_else(|| Error::new(Cause::Absent)).context(doing)?;
        let setup = EniSetup { eni, link: &link.name, mtu: self.world.mtu, node: &self.world.node };
        let plan = datapath::parent(&setup);
        if let Err(e) = self.kernel.apply(&plan) {
            // Slaves of its own would be in the way of whoever comes next.
            let added = Plan { host: plan.host[datapath::eni(&setup).host.len()..].to_vec(), ..Plan::default() };
            let undone = self.kernel.undo(&added);
            self.noted("what an ENI without slaves does not need", undone);
            return Err(e);
        }
        self.slaves.parents.insert(eni.id.clone());
        self.guard_eni(&eni.id, &link.name, clock::now());
        self.direct();
        Ok(())
    }

    /// The ENI was set up a moment ago, and is to have slaves or has them.
    pub(super) fn set_up_slaves(&mut self, id: &str) {
        let Some(eni) = self.enis.get(id).cloned() else { return };
        if self.slaves.has(id) || self.slaves.wanted && self.world.trials.ipvlan().is_ok() {
            let ready = self.set_up_parent(&eni);
            self.noted("IPvlan", ready);
        }
    }

    /// Tells the programs who is where.
    pub(super) fn direct(&mut self) {
        if !self.slaves.parents.is_empty() {
            let told = self.try_to_direct();
            self.noted("IPvlan", told);
        }
    }

    fn try_to_direct(&mut self) -> Result<(), Error> {
        let services = self.service_nets();
        let mut near = datapath::near(self.leases.values(), &self.world.node, &services);
        for eni in self.slaves.parents.iter().filter_map(|id| self.enis.get(id)) {
            let parent = ours::eni_ifindex(eni.table);
            let slave = self.kernel.link(&ours::host_slave(parent))?;
            near.twins.extend(slave.map(|slave| (parent, slave.ifindex)));
        }
        let directory = match &mut self.slaves.directory {
            Some(directory) => directory,
            none => none.insert(Directory::open()?),
        };
        directory.write(&near)
    }

    /// The ENI is given away whole, or goes: it has no slaves any more.
    pub(super) fn forget_slaves(&mut self, id: &str) {
        if self.slaves.parents.remove(id) {
            self.direct();
        }
    }

    /// Releases a lease for which no DEL has come: a plugin that knows its namespace would have taken the slave out.
    pub(super) fn release_unasked(&mut self, attachment: &Attachment) -> Reply {
        let lease = self.leases.get(attachment).filter(|lease| lease.is_slave()).cloned();
        let reply = self.release(attachment);
        if let (Some(lease), Reply::Released { .. }) = (lease, &reply) {
            self.world.take_out(lease);
        }
        reply
    }

    /// The pod's own link, where its interface is a slave.
    pub(super) fn slave_inside(&self, lease: &Lease) -> Option<LinkSeen> {
        let seen = self.link_inside(lease)?;
        let owner = seen.alias.as_deref().and_then(ours::attachment);
        (seen.is_slave() && owner.as_ref() == Some(&lease.sandbox.attachment)).then_some(seen)
    }

    /// What there is of the pod's interface in its namespace.
    pub(super) fn link_inside(&self, lease: &Lease) -> Option<LinkSeen> {
        // A kernel of its own: ours shall not hold the pod's namespace open.
        let look = || Kernel::host()?.look_inside(&lease.sandbox.netns, &lease.sandbox.attachment.ifname);
        look().ok().flatten().map(|(link, _)| link)
    }
}

/// Takes a slave out of a namespace that nobody deletes.
pub fn take_out(lease: &Lease) {
    let (netns, attachment): (&Path, _) = (&lease.sandbox.netns, &lease.sandbox.attachment);
    if netns.as_os_str().is_empty() {
        return;
    }
    if let Err(e) = kernel::take_out(netns, attachment) {
        log::warn!("{attachment} is over, and its link stays: {e}");
    }
}
