//! What others do to node, ENIs and pods is put right as soon as the kernel tells of it; every few minutes all is compared.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Node, Standing, policies};
use crate::cni;
use crate::daemon::{clock, meter, phases};
use crate::datapath::{self, Setup};
use crate::error::Error;
use crate::gather::Gather;
use crate::happening::Happening;
use crate::kernel::{Difference, LinkSeen};
use crate::ours;
use crate::plan::Plan;
use crate::pod::{Attachment, PodName};
use crate::pool::{Event, Notice, Now};
use crate::repair::{Depth, Part};
use crate::rpc::{EniLease, Lease};

/// The insides of pods tell nobody what happens in them: they are looked at this often, with all the rest.
const COMPARE_EVERY: Duration = Duration::from_secs(300);
/// What an ADD brings about in the kernel has been heard of by then.
const SETTLED_IN: Duration = Duration::from_millis(20);
/// The link that a plugin leaves has been heard of by then; else it is looked at.
const HEARD_IN: Duration = Duration::from_millis(50);
/// No plugin takes longer from its lease to its link.
pub(super) const WIRED_IN: Duration = Duration::from_secs(10);
/// More pods than this, hurt at once, are one event about the node; the log names each.
const MANY: usize = 16;
/// So many differences of one part are told.
const TOLD: usize = 8;

/// The reason that users of the old Terway know for what is wrong with a pod's network, and the one for the node's.
const POD_REASON: &str = "ConfigCheck";
const NODE_REASON: &str = "ResourceInvalid";

/// The plans of so many pods are compared at once: those of all pods would be megabytes, which stay with the process.
const COMPARED_AT_ONCE: usize = 64;

/// A pod's plan, to be compared with the kernel away from the loop, and the namespace that it reaches into.
pub struct Compared {
    pub attachment: Attachment,
    pub plan: Plan,
    pub netns: Option<PathBuf>,
}

/// What the loop keeps for repairs beside the mind that decides on them.
#[derive(Default)]
pub(super) struct Wires {
    /// Pods that are not known to be wired, and since when they have a lease.
    unwired: BTreeMap<Attachment, Now>,
    /// Those of them whose link was heard of as their plugin leaves it: its index and MTU.
    heard: BTreeMap<Attachment, (u32, u32)>,
    /// Those whose plugin is done and whose link was not heard of, and when it is looked at.
    done: BTreeMap<Attachment, Now>,
    /// The MTU with which each pod was wired: the plugin's own configuration says it, and no lease.
    mtus: BTreeMap<Attachment, u32>,
    /// Addresses on ENIs that are not ours, which were told.
    told: BTreeSet<(String, String)>,
    comparing: Option<Comparison>,
    /// What has happened since the start, until repairs begin.
    early: Vec<Happening>,
}

/// A comparison of all pods that is under way.
struct Comparison {
    /// The last of those that are being compared.
    last: Attachment,
    /// The pods before these that are not as they should be.
    hurt: Vec<Attachment>,
}

impl Wires {
    fn wait_no_more(&mut self, attachment: &Attachment) {
        self.unwired.remove(attachment);
        self.heard.remove(attachment);
        self.done.remove(attachment);
    }
}

impl Node {
    /// What an earlier life had wired is guarded from now on, by the look at the start and all that has happened since.
    pub(super) fn begin_repairs(&mut self) {
        let Some((_, look)) = self.begin.take() else { return };
        let now = clock::now();
        let guards = |attachment: &&Attachment| self.repair.guards(&Part::Pod((*attachment).clone()));
        let leases: Vec<Attachment> = self.leases.keys().filter(|a| !guards(a)).cloned().collect();
        for attachment in leases {
            let age = self.ledger.age(&attachment).unwrap_or_default();
            self.wires.unwired.insert(attachment, now.saturating_sub(age));
        }
        self.repair.guard(Part::Node, &datapath::node(&self.world.setup), now);
        self.know_links(look.links);
        let heard = std::mem::take(&mut self.wires.early);
        self.happened(heard);
        self.hear_of_bandwidth();
        self.world.keep_marks(self.enis.values().map(|eni| eni.slot).collect());
        phases::reached("what is wired is guarded");
    }

    fn know_links(&mut self, links: Vec<LinkSeen>) {
        self.guard_the_wired(&links);
        self.repair.know_links(links.into_iter().map(|link| (link.ifindex, link.name)));
    }

    // Who is guarded

    /// A lease was given, or its ADD is held no longer: its pod will be wired.
    pub(super) fn will_be_wired(&mut self, attachment: &Attachment) {
        if !self.repair.guards(&Part::Pod(attachment.clone())) {
            self.wires.unwired.insert(attachment.clone(), clock::now());
        }
    }

    /// The plugin is done. Whether with success, the link tells, of which the kernel has told before: to ask would mean to wait until
    /// nobody else changes the network.
    pub(super) fn wired(&mut self, attachment: &Attachment) {
        let Some(lease) = self.leases.get(attachment) else { return };
        if !self.wires.unwired.contains_key(attachment) {
            return;
        }
        if lease.is_slave() {
            let link = self.slave_inside(lease);
            return link.map_or((), |link| self.guard_pod(attachment, &link, clock::now() + SETTLED_IN));
        }
        match self.wires.heard.remove(attachment) {
            Some((_, mtu)) => self.guard_linked(attachment, mtu, clock::now() + SETTLED_IN),
            None => drop(self.wires.done.insert(attachment.clone(), clock::now() + HEARD_IN)),
        }
    }

    /// Its ADD may still wait for the pod's policies, or its plugin be at work.
    pub(super) fn is_under_way(&self, attachment: &Attachment, now: Now) -> bool {
        self.wires.unwired.get(attachment).is_some_and(|since| now < *since + policies::PATIENCE + WIRED_IN)
    }

    fn hear_of_wiring(&mut self, happening: &Happening) {
        match happening {
            Happening::Link(link) if link.up => {
                let attachment = link.alias.as_deref().and_then(ours::attachment);
                let Some(attachment) = attachment.filter(|one| self.wires.unwired.contains_key(one)) else { return };
                match self.wires.done.remove(&attachment) {
                    Some(_) => self.guard_linked(&attachment, link.mtu, clock::now() + SETTLED_IN),
                    None => drop(self.wires.heard.insert(attachment, (link.ifindex, link.mtu))),
                }
            }
            Happening::LinkGone { ifindex } => self.wires.heard.retain(|_, (heard, _)| heard != ifindex),
            _ => {}
        }
    }

    pub(super) fn next_look(&self) -> Option<Now> {
        self.wires.done.values().min().copied()
    }

    /// An ADD that found its pod wired changes no link, and what was lost is heard of by nobody.
    pub(super) fn look_at_the_unheard(&mut self, now: Now) {
        let due: Vec<_> = self.wires.done.extract_if(.., |_, due| *due <= now).map(|(at, _)| at).collect();
        for attachment in due {
            let Some(lease) = self.leases.get(&attachment) else { continue };
            match self.kernel.link(&ours::host_veth(&lease.pod, &attachment.ifname)) {
                Ok(Some(link)) => self.guard_pod(&attachment, &link, now + SETTLED_IN),
                Ok(None) => {}
                Err(e) => log::warn!("look at the link of {attachment}: {e}"),
            }
        }
    }

    /// Pods whose plugin must be done by now, although nobody said so.
    fn guard_the_wired(&mut self, links: &[LinkSeen]) {
        if self.wires.unwired.is_empty() {
            return;
        }
        let now = clock::now();
        let by_name: BTreeMap<&str, &LinkSeen> = links.iter().map(|link| (link.name.as_str(), link)).gather();
        let old = self.wires.unwired.iter().filter(|(_, since)| **since + WIRED_IN <= now);
        let old: Vec<Attachment> = old.map(|(attachment, _)| attachment.clone()).collect();
        for attachment in old {
            let Some(lease) = self.leases.get(&attachment) else { continue };
            let veth = ours::host_veth(&lease.pod, &attachment.ifname);
            let link = match lease.is_slave() {
                true => self.slave_inside(lease),
                false => by_name.get(veth.as_str()).map(|link| LinkSeen::clone(link)),
            };
            match link {
                Some(link) => self.guard_pod(&attachment, &link, now),
                None if self.guarded.holds(&attachment) => {}
                None => self.guard_unlinked(&attachment, now),
            }
        }
    }

    /// Guards the pod whose link this is, if it is this attachment's.
    fn guard_pod(&mut self, attachment: &Attachment, link: &LinkSeen, from: Now) {
        if link.alias.as_deref().and_then(ours::attachment).as_ref() == Some(attachment) {
            self.guard_linked(attachment, link.mtu, from);
        }
    }

    fn guard_linked(&mut self, attachment: &Attachment, mtu: u32, from: Now) {
        let since = self.wires.unwired.get(attachment).copied().unwrap_or(from);
        self.wires.wait_no_more(attachment);
        self.wires.mtus.insert(attachment.clone(), mtu);
        if let Some(plan) = self.pod_plan(attachment) {
            self.repair.guard_new(Part::Pod(attachment.clone()), &plan, since, from);
        }
    }

    /// A pod without a link whose namespace is there lost it while nobody looked, and gets it back; but for one that has the whole of
    /// its ENI and no other link.
    fn guard_unlinked(&mut self, attachment: &Attachment, now: Now) {
        let Some(lease) = self.leases.get(attachment) else { return };
        let present = self.pods.standing(&lease.pod) == Standing::Present;
        if !present || self.awaited(attachment) || !netns_of(&lease.sandbox.netns).is_some_and(Path::exists) {
            return;
        }
        // What its plugin goes by, in this order.
        let wired_with = self.world.network_mtu.or(lease.mtu).unwrap_or(cni::DEFAULT_MTU);
        let mtu = self.link_inside(lease).map_or(wired_with, |link| link.mtu);
        self.wires.wait_no_more(attachment);
        self.wires.mtus.insert(attachment.clone(), mtu);
        if let Some(plan) = self.pod_plan(attachment) {
            let part = Part::Pod(attachment.clone());
            self.repair.guard(part.clone(), &plan, now);
            let depth = if self.leases[attachment].is_inside() { Depth::Inside } else { Depth::Outside };
            self.repair.look_at(now, part, depth);
        }
    }

    /// The plan of a pod that is guarded is another one now.
    pub(super) fn guard_anew(&mut self, attachment: &Attachment) {
        let part = Part::Pod(attachment.clone());
        if let Some(plan) = self.pod_plan(attachment).filter(|_| self.repair.guards(&part)) {
            self.repair.guard(part, &plan, clock::now() + SETTLED_IN);
        }
    }

    /// The lease is over: what goes with it is no damage.
    pub(super) fn unguard_pod(&mut self, attachment: &Attachment) {
        self.wires.wait_no_more(attachment);
        self.wires.mtus.remove(attachment);
        self.repair.leave(&Part::Pod(attachment.clone()));
    }

    pub(super) fn guard_eni(&mut self, id: &str, link: &str, from: Now) {
        let Some(eni) = self.enis.get(id) else { return };
        let plan = self.world.eni_plan(eni, link, self.slaves.has(id));
        let mac = eni.mac;
        // It may have the name of a link of the node that is gone.
        self.world.setup.advertised.retain(|own| own != link);
        self.repair.guard(Part::Eni(id.to_owned()), &plan, from);
        self.repair.expect_mac(link, mac);
    }

    /// The ENI was set up a moment ago, by another thread.
    pub(super) fn eni_is_up(&mut self, id: &str) {
        let Some(table) = self.enis.get(id).map(|eni| eni.table) else { return };
        let links = self.kernel.links().unwrap_or_default();
        if let Some(link) = links.iter().find(|link| ours::eni_table(link.ifindex) == table) {
            self.guard_eni(id, &link.name, clock::now() + SETTLED_IN);
        }
    }

    /// The plan of a pod as it was wired, over the ENI as it is now.
    fn pod_plan(&self, attachment: &Attachment) -> Option<Plan> {
        let lease = self.leases.get(attachment)?;
        let mtu = *self.wires.mtus.get(attachment)?;
        let eni = self.enis.get(&lease.eni.id).unwrap_or(&lease.eni).clone();
        Some(datapath::pod(&Setup::new(&Lease { eni, ..lease.clone() }, mtu)))
    }

    // What happens

    pub(super) fn happened(&mut self, heard: Vec<Happening>) {
        if self.begin.is_some() {
            return self.wires.early.extend(heard);
        }
        let now = clock::now();
        for happening in heard {
            log::debug!("{happening:?}");
            if happening == Happening::Lost {
                log::warn!("the kernel had more to tell than we could hear: everything is looked at");
                let known = self.kernel.links().map(|links| self.know_links(links));
                self.noted("links", known);
            }
            self.repair.hear(now, &happening);
            self.hear_of_wiring(&happening);
            if let Happening::LinkGone { ifindex } = happening {
                self.link_gone(ifindex);
            }
        }
    }

    /// An ENI's link that goes although nobody has asked for it takes the network of its pods along.
    fn link_gone(&mut self, ifindex: u32) {
        let gone = self
            .enis
            .iter()
            .filter(|(id, _)| !self.is_lent(id))
            .find(|(_, eni)| eni.table == ours::eni_table(ifindex))
            .map(|(id, _)| id.clone());
        if let Some(id) = gone {
            self.eni_gone(&id);
        }
    }

    /// A pod has the link, whose ENI is its own.
    fn is_lent(&self, id: &str) -> bool {
        self.leases.values().any(|lease| lease.eni.id == id && lease.is_whole())
    }

    /// The pool learns of it and looks at the cloud at once.
    pub(super) fn eni_gone(&mut self, id: &str) {
        self.enis.remove(id);
        self.repair.leave(&Part::Eni(id.to_owned()));
        let message = format!("the link of {id} is gone although nobody here has detached it");
        self.tell(Notice { pod: None, warning: true, reason: NODE_REASON, message });
        let pods: Vec<PodName> = self.leases.values().filter(|l| l.eni.id == id).map(|l| l.pod.clone()).collect();
        for pod in pods {
            let message =
                format!("the link of the pod's ENI {id} is gone: until it is back, the pod reaches this node alone");
            self.tell(Notice { pod: Some(pod), warning: true, reason: POD_REASON, message });
        }
        self.feed(Event::LinkGone { eni: id.to_owned() });
    }

    // What is done about it

    pub(super) fn repair_what_is_due(&mut self, now: Now) {
        let due = self.repair.take_due(now);
        if due.is_empty() {
            return;
        }
        let (start, count) = (clock::now(), due.len());
        self.kernel.look_again();
        let links = match self.links_for(&due) {
            Ok(links) => links,
            Err(e) => {
                log::error!("repair: {e}");
                return self.repair.put_back(start, due);
            }
        };
        let (mut repaired, mut missed) = (Vec::new(), Vec::new());
        for (part, depth) in due {
            match self.repair_part(&part, depth, &links) {
                Ok(found) if found.is_empty() => {}
                Ok(found) => {
                    meter::repaired(&part, found.iter().map(|difference| difference.what.as_str()));
                    repaired.push((part, said(&found)));
                }
                // The link or the namespace went away meanwhile, with a pod most often.
                Err(e) if e.is_absent() => log::debug!("repair of {part:?}: {e}"),
                Err(e) => {
                    self.cannot_repair(&part, &e);
                    missed.extend(e.is_for_now().then_some((part, depth)));
                }
            }
        }
        self.repair.put_back(clock::now(), missed);
        log::debug!("{count} plans looked at in {:?}, {} were hurt", clock::now() - start, repaired.len());
        self.tell_of_repairs(repaired);
    }

    /// All links, where a part has to find its own among them; many parts are looked at by one list of them.
    fn links_for(&mut self, due: &[(Part, Depth)]) -> Result<Vec<LinkSeen>, Error> {
        let is_eni = |(part, _): &(Part, Depth)| matches!(part, Part::Eni(_));
        let links = if due.iter().any(is_eni) { self.kernel.links()? } else { Vec::new() };
        if due.len() > MANY {
            self.kernel.look_at_links()?;
        }
        Ok(links)
    }

    fn repair_part(&mut self, part: &Part, depth: Depth, links: &[LinkSeen]) -> Result<Vec<Difference>, Error> {
        match part {
            Part::Node => self.kernel.restore(&datapath::node(&self.world.setup), None, false),
            Part::Eni(id) => self.repair_eni(id, links),
            Part::Pod(attachment) => self.repair_pod(attachment, depth),
        }
    }

    fn repair_pod(&mut self, attachment: &Attachment, depth: Depth) -> Result<Vec<Difference>, Error> {
        // A pod whose bandwidth is being changed is not as any plan has it.
        let Some(plan) = self.pod_plan(attachment).filter(|_| !self.shaping.contains(attachment)) else {
            return Ok(Vec::new());
        };
        let lease = &self.leases[attachment];
        let same = |other: &&Lease| other.pod == lease.pod && other.sandbox.attachment.ifname == attachment.ifname;
        if self.leases.values().filter(same).count() > 1 {
            // A newer sandbox of the pod takes the link over, or has.
            let link = self.kernel.link(&ours::host_veth(&lease.pod, &attachment.ifname))?;
            let owner = link.and_then(|link| ours::attachment(link.alias.as_deref()?));
            if owner.as_ref() != Some(attachment) {
                return Ok(Vec::new());
            }
        }
        let netns = lease.sandbox.netns.clone();
        self.kernel.restore(&plan, netns_of(&netns), depth == Depth::Inside)
    }

    /// An ENI that its pod has given another MAC would not be known at home.
    pub(super) fn unmask(&mut self, lease: &Lease) {
        let Some(netns) = netns_of(&lease.sandbox.netns).filter(|_| lease.is_whole()) else { return };
        let mended = self.kernel.mend_card(&datapath::pod(&Setup::new(lease, 0)), netns);
        self.noted("the MAC of a pod's ENI", mended);
    }

    fn repair_eni(&mut self, id: &str, links: &[LinkSeen]) -> Result<Vec<Difference>, Error> {
        let Some(eni) = self.enis.get(id).cloned() else { return Ok(Vec::new()) };
        let Some((link, mut found)) = self.eni_link(&eni, links)? else {
            if !self.is_lent(id) {
                self.eni_gone(id);
            }
            return Ok(Vec::new());
        };
        let plan = self.world.eni_plan(&eni, &link, self.slaves.has(id));
        let damage = self.kernel.restore(&plan, None, false)?;
        if !damage.is_empty() {
            // The node's slave may be another one.
            self.direct();
        }
        found.extend(damage);
        // It may have another name now.
        self.guard_eni(id, &link, Now::ZERO);
        Ok(found)
    }

    /// The name of the ENI's link, which gets its MAC back should it have another.
    fn eni_link(&mut self, eni: &EniLease, links: &[LinkSeen]) -> Result<Option<(String, Vec<Difference>)>, Error> {
        let Some(link) = links.iter().find(|link| ours::eni_table(link.ifindex) == eni.table) else {
            return Ok(None);
        };
        if link.is_eni(eni.mac) {
            return Ok(Some((link.name.clone(), Vec::new())));
        }
        self.kernel.set_mac(link.ifindex, eni.mac)?;
        self.kernel.look_again();
        let seen = link.mac.map(|mac| mac.to_string());
        let difference = Difference { what: format!("mac of {}", link.name), seen, want: eni.mac.to_string() };
        Ok(Some((link.name.clone(), vec![difference])))
    }

    fn cannot_repair(&mut self, part: &Part, e: &Error) {
        let message = format!("cannot be put right: {e}");
        self.tell_about(part, message);
    }

    fn tell_of_repairs(&mut self, repaired: Vec<(Part, String)>) {
        let now = clock::now();
        let many = repaired.iter().filter(|(part, _)| matches!(part, Part::Pod(_))).count() > MANY;
        if many {
            let count = repaired.len();
            let example = repaired.iter().find(|(part, _)| matches!(part, Part::Pod(_))).map(|(_, said)| said.as_str());
            let message = format!(
                "put right what somebody else changed, for {count} pods at once; of one: {}",
                example.unwrap_or_default()
            );
            self.tell(Notice { pod: None, warning: true, reason: NODE_REASON, message });
        }
        for (part, said) in repaired {
            let message = format!("put right what somebody else changed: {said}");
            if many && matches!(part, Part::Pod(_)) {
                log::warn!("{}: {message}", self.called(&part));
            } else {
                self.tell_about(&part, message);
            }
            if self.repair.repaired(now, &part) {
                let message = format!(
                    "somebody keeps undoing what Terway sets up; it is put right less and less often, down to once a minute: {said}"
                );
                self.tell_about(&part, message);
            }
        }
    }

    fn tell_about(&mut self, part: &Part, message: String) {
        let notice = match part {
            Part::Node => Notice { pod: None, warning: true, reason: NODE_REASON, message },
            Part::Eni(id) => {
                Notice { pod: None, warning: true, reason: NODE_REASON, message: format!("{id}: {message}") }
            }
            Part::Pod(attachment) => match self.leases.get(attachment) {
                Some(lease) => Notice { pod: Some(lease.pod.clone()), warning: true, reason: POD_REASON, message },
                None => return log::warn!("{attachment}: {message}"),
            },
        };
        self.tell(notice);
    }

    fn called(&self, part: &Part) -> String {
        match part {
            Part::Node => "node".into(),
            Part::Eni(id) => id.clone(),
            Part::Pod(attachment) => {
                self.leases.get(attachment).map_or_else(|| attachment.to_string(), |lease| lease.pod.to_string())
            }
        }
    }

    // The comparison of everything

    /// Node and ENIs are looked at here and now, whatever was heard or not.
    pub(super) fn mend(&mut self) -> Result<(), Error> {
        let links = self.kernel.links()?;
        self.sweep_unsigned(&links);
        self.guard_the_wired(&links);
        let now = clock::now();
        self.repair.look_at(now, Part::Node, Depth::Outside);
        for id in self.enis.keys().cloned().collect::<Vec<_>>() {
            self.repair.look_at(now, Part::Eni(id), Depth::Outside);
        }
        self.tell_of_strangers(&links)
    }

    /// Compares every pod's plan with the kernel, inside and outside, on another thread: it takes some milliseconds, and
    /// nothing depends on it but what is wrong.
    pub(super) fn compare(&mut self) {
        if self.wires.comparing.is_none() {
            self.compare_some(Bound::Unbounded, Vec::new());
        }
    }

    /// Compares the next pods. After the last of all, those that were hurt are looked at again before anything is done.
    fn compare_some(&mut self, from: Bound<Attachment>, hurt: Vec<Attachment>) {
        let pods = self.leases.range((from, Bound::Unbounded)).filter_map(|(attachment, lease)| {
            let guarded = self.repair.guards(&Part::Pod(attachment.clone()));
            let plan = self.pod_plan(attachment).filter(|_| guarded)?;
            let netns = netns_of(&lease.sandbox.netns).map(Path::to_owned);
            Some(Compared { attachment: attachment.clone(), plan, netns })
        });
        let pods: Vec<Compared> = pods.take(COMPARED_AT_ONCE).collect();
        let Some(last) = pods.last().map(|pod| pod.attachment.clone()) else { return self.suspect_pods(hurt) };
        self.wires.comparing = Some(Comparison { last, hurt });
        self.world.compare(pods);
    }

    /// These pods are not as they should be.
    pub(super) fn compared(&mut self, hurt: Vec<Attachment>) {
        let Some(mut comparison) = self.wires.comparing.take() else { return };
        comparison.hurt.extend(hurt);
        self.compare_some(Bound::Excluded(comparison.last), comparison.hurt);
    }

    fn suspect_pods(&mut self, hurt: Vec<Attachment>) {
        let now = clock::now();
        let parts = hurt.into_iter().map(Part::Pod);
        for part in parts.filter(|part| self.repair.guards(part)).collect::<Vec<_>>() {
            self.repair.look_at(now, part, Depth::Inside);
        }
    }

    /// An address that somebody else has put onto an ENI is theirs and stays; people learn of it, since it draws the node's
    /// own traffic to that ENI.
    fn tell_of_strangers(&mut self, links: &[LinkSeen]) -> Result<(), Error> {
        let mut found = BTreeSet::new();
        let addrs = self.kernel.addrs()?;
        for (id, eni) in &self.enis {
            let Some(link) = links.iter().find(|link| ours::eni_table(link.ifindex) == eni.table) else { continue };
            let on_link = addrs.iter().filter(|a| a.ifindex == link.ifindex && a.scope == 0);
            let foreign = on_link.filter(|a| !self.world.node.iter().any(|own| own == a.net.addr()));
            found.extend(foreign.map(|a| (id.clone(), format!("{} on {}", a.net, link.name))));
        }
        let before = std::mem::replace(&mut self.wires.told, found.clone());
        for (id, what) in found.difference(&before) {
            let message = format!(
                "{id}: the address {what} is not ours and is left alone; keep DHCP clients and network managers from the links of ENIs"
            );
            self.tell(Notice { pod: None, warning: true, reason: NODE_REASON, message });
        }
        Ok(())
    }

    pub(super) fn compare_every(&self) -> Duration {
        COMPARE_EVERY.min(self.world.orphan * 5)
    }
}

/// Where the pod's namespace is, if the path can still mean no other: one below /proc leads to whoever has the number now.
fn netns_of(path: &Path) -> Option<&Path> {
    (!path.as_os_str().is_empty() && !path.starts_with("/proc")).then_some(path)
}

fn said(found: &[Difference]) -> String {
    let mut said: Vec<String> = found.iter().take(TOLD).map(Difference::to_string).collect();
    if found.len() > TOLD {
        said.push(format!("and {} more", found.len() - TOLD));
    }
    said.join("; ")
}
