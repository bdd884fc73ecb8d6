//! What DEL does alone, without daemon or lease: everything of one attachment that can be found goes.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use super::{Kernel, LinkSeen};
use crate::error::{Error, Errors};
use crate::ip::host_net;
use crate::ours;
use crate::plan::{Object, Route, Rule, RuleAction};
use crate::pod::Attachment;

/// Removes the attachment's veth or slave, the routes to its addresses and the rules from them, and brings an ENI home that was lent to it.
/// What is gone already is success, and so is a veth that belongs to a later sandbox of the same pod: it stays. Rules without a
/// link that they could speak of go with the pod's namespace.
///
/// `host_link` is the name that the veth's outer end would have; without it the alias leads to it.
pub fn unwire(netns: Option<&Path>, host_link: Option<&str>, attachment: &Attachment) -> Result<(), Error> {
    let mut errors = Errors::default();
    let mut kernel = Kernel::host()?;
    if let Some(netns) = netns {
        match kernel.enter(netns) {
            Err(e) if e.is_absent() => {}
            result => drop(errors.note(result)),
        }
    }
    let card = errors.note(kernel.card_inside(attachment)).flatten();
    let inner = errors.note(kernel.inner_end(attachment, host_link)).flatten();
    let outer = errors.note(kernel.outer_end(host_link, attachment, inner.as_ref())).flatten();
    let inner = inner.filter(|inner| is_ours(inner, outer.as_ref(), host_link));
    let ips = errors.note(kernel.addresses(outer.as_ref(), inner.as_ref())).unwrap_or_default();
    if let Some(outer) = &outer {
        errors.note(kernel.delete_routes_through(outer.ifindex));
        errors.note(kernel.delete_link(outer.ifindex));
    } else if let (Some(inner), Some(pod)) = (&inner, &mut kernel.pod) {
        let deleted = pod.place.act(super::link::delete(inner.ifindex));
        errors.note(super::place::absent_is_fine(deleted).map_err(|e| e.within(format!("delete link {}", inner.name))));
    }
    errors.note(kernel.take_slave_out(attachment));
    errors.note(kernel.delete_further_rules(attachment));
    errors.note(kernel.delete_rules_from(&ips));
    errors.note(kernel.bring_home(attachment, card.as_ref()));
    errors.result()
}

/// Removes what of a further interface does not go with its link: the rules in the pod's namespace that lead to its routes.
pub fn unrule(netns: &Path, attachment: &Attachment) -> Result<(), Error> {
    let mut kernel = Kernel::host()?;
    match kernel.enter(netns) {
        Err(e) if e.is_absent() => Ok(()),
        entered => entered.and_then(|()| kernel.delete_further_rules(attachment)),
    }
}

fn is_lent_to(link: &LinkSeen, attachment: &Attachment) -> bool {
    link.alias.as_deref().and_then(ours::lent).is_some_and(|lent| lent.attachment == *attachment)
}

/// The link inside is the veth that the name or the outer end speaks of, and not somebody else's.
fn is_ours(inner: &LinkSeen, outer: Option<&LinkSeen>, host_link: Option<&str>) -> bool {
    let name = outer.map(|outer| outer.name.as_str()).or(host_link);
    inner.is_veth() && name.is_some_and(|name| inner.mac == Some(ours::pod_mac(name)))
}

impl Kernel {
    /// The ENI in the pod's namespace that was lent to the attachment.
    fn card_inside(&mut self, attachment: &Attachment) -> Result<Option<LinkSeen>, Error> {
        let Some(pod) = &mut self.pod else { return Ok(None) };
        Ok(pod.place.links()?.into_iter().find(|link| is_lent_to(link, attachment)))
    }

    /// The ENI is under its own name on the node again, also where it came back by itself.
    fn bring_home(&mut self, attachment: &Attachment, card: Option<&LinkSeen>) -> Result<(), Error> {
        if let (Some(card), Some(pod)) = (card, &mut self.pod) {
            let home = card.alias.as_deref().and_then(ours::lent).map(|lent| lent.home).unwrap_or_default();
            return super::card::send_home(&mut self.host, pod, card, &home);
        }
        match self.links()?.into_iter().find(|link| is_lent_to(link, attachment)).and_then(|link| link.mac) {
            Some(mac) => self.settle(mac, None).map(drop),
            None => Ok(()),
        }
    }

    /// The pod's IPvlan slave goes, after the routes to its addresses.
    fn take_slave_out(&mut self, attachment: &Attachment) -> Result<(), Error> {
        let Some(pod) = &mut self.pod else { return Ok(()) };
        let Some((slave, ip)) = super::ipvlan::slave_of(pod, attachment)? else { return Ok(()) };
        let ours = ours::host_slave(slave.parent());
        let mut errors = Errors::default();
        for addr in ip.iter() {
            let (to, table) = (host_net(addr), Some(ours::PODS_TABLE));
            let route = Route { to, via: None, link: ours.clone(), table, onlink: false };
            errors.note(self.host.remove(&Object::Route(route)));
        }
        if let Some(pod) = &mut self.pod {
            errors.note(super::ipvlan::delete(&mut pod.place, &slave));
        }
        errors.result()
    }

    /// The veth's end in the pod's namespace: it bears the attachment's interface name, or that of a second link beside an ENI.
    fn inner_end(&mut self, attachment: &Attachment, host_link: Option<&str>) -> Result<Option<LinkSeen>, Error> {
        let Some(pod) = &mut self.pod else { return Ok(None) };
        let mac = host_link.map(ours::pod_mac);
        for name in [attachment.ifname.as_str(), ours::PEER_LINK] {
            let link = pod.place.link(name)?;
            if link.as_ref().is_some_and(|link| !is_lent_to(link, attachment) && (mac.is_none() || link.mac == mac)) {
                return Ok(link);
            }
        }
        Ok(None)
    }

    /// The veth's end out here, if it is the attachment's: its alias says so, or, where an ADD was cut off before it
    /// wrote one, its other end does.
    fn outer_end(
        &mut self,
        name: Option<&str>,
        attachment: &Attachment,
        inner: Option<&LinkSeen>,
    ) -> Result<Option<LinkSeen>, Error> {
        let owned = |link: &LinkSeen| link.alias.as_deref().and_then(ours::attachment).as_ref() == Some(attachment);
        let Some(name) = name else { return Ok(self.links()?.into_iter().find(owned)) };
        let is_peer = |link: &LinkSeen| inner.is_some_and(|inner| is_ours(inner, Some(link), None));
        Ok(self.link(name)?.filter(|link| match &link.alias {
            Some(_) => owned(link),
            None => link.is_veth() && is_peer(link),
        }))
    }

    /// The addresses of the attachment, from the routes to it and from its own end.
    fn addresses(&mut self, outer: Option<&LinkSeen>, inner: Option<&LinkSeen>) -> Result<BTreeSet<IpAddr>, Error> {
        let mut ips = BTreeSet::new();
        if let Some(outer) = outer {
            let routes = self.routes(ours::PODS_TABLE)?;
            ips.extend(routes.iter().filter(|r| r.oif == Some(outer.ifindex)).map(|r| r.to.addr()));
        }
        if let (Some(inner), Some(pod)) = (inner, &mut self.pod) {
            let addrs = pod.place.addrs()?.iter();
            ips.extend(addrs.filter(|a| a.ifindex == inner.ifindex && a.scope == 0).map(|a| a.net.addr()));
        }
        Ok(ips)
    }

    /// Before the link itself goes, which takes long enough for packets to be lost into it.
    fn delete_routes_through(&mut self, ifindex: u32) -> Result<(), Error> {
        let mut errors = Errors::default();
        for route in self.routes(ours::PODS_TABLE)?.iter().filter(|r| r.oif == Some(ifindex)) {
            let removed = self.host.act(super::route::remove(route.to, route.table, None, route.oif));
            errors.note(super::place::absent_is_fine(removed));
        }
        errors.result()
    }

    fn delete_further_rules(&mut self, attachment: &Attachment) -> Result<(), Error> {
        let (Some(table), Some(pod)) = (ours::further_table(&attachment.ifname), &mut self.pod) else { return Ok(()) };
        let leads_there = |rule: &&Rule| rule.action == RuleAction::Lookup(table);
        let rules: Vec<Rule> = pod.place.rules()?.iter().filter(leads_there).cloned().collect();
        let mut errors = Errors::default();
        for rule in rules {
            errors.note(pod.place.remove(&Object::Rule(rule)));
        }
        errors.result()
    }

    fn delete_rules_from(&mut self, ips: &BTreeSet<IpAddr>) -> Result<(), Error> {
        if ips.is_empty() {
            return Ok(());
        }
        let of_pod = |rule: &Rule| {
            rule.priority == ours::FROM_POD_PRIORITY && ips.iter().any(|ip| rule.from == Some(host_net(*ip)))
        };
        let mut errors = Errors::default();
        for rule in self.rules()?.into_iter().filter(of_pod) {
            errors.note(self.delete_rule(&rule));
        }
        errors.result()
    }
}
