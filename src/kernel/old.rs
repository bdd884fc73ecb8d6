//! What the old Terway has in the kernel for a pod, and its removal: nothing but what has exactly its shape.
//!
//! A pod of its policy routing has a veth without alias, its address in the main table over that veth, a rule "to" the
//! address at priority 512 and one "from" it at 2048, which before its version 1.3 names the veth as well.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;

use super::card::sandboxes;
use super::ipvlan::addresses;
use super::link;
use super::netns::Netns;
use super::place::absent_is_fine;
use super::route::{self, MAIN, RouteSeen};
use super::rule::{parse_with_to, remove_with_to};
use super::{Kernel, LinkSeen, Pod};
use crate::error::{Context, Error, Errors};
use crate::ip::{IpPair, Mac, host_net};
use crate::ours;
use crate::plan::{Plan, Rule, RuleAction};

/// An address of a pod that the old Terway has wired, or had.
#[derive(Debug, Clone)]
pub struct OldPod<'a> {
    pub ip: IpAddr,
    /// The outer end of its veth, whether or not it is there.
    pub veth: &'a str,
    /// The table of its ENI, where that is known.
    pub table: Option<u32>,
}

impl OldPod<'_> {
    /// The rule is the old Terway's, for this address.
    fn has_rule(&self, rule: &Rule, to: Option<IpNet>) -> bool {
        let this = Some(host_net(self.ip));
        let RuleAction::Lookup(table) = rule.action else { return false };
        if rule.mark.is_some() {
            return false;
        }
        match rule.priority {
            ours::TO_POD_PRIORITY => to == this && rule.from.is_none() && rule.iif.is_none() && table == MAIN,
            ours::FROM_POD_PRIORITY => {
                let led_to = self.table.map_or(table > ours::PODS_TABLE, |t| t == table);
                to.is_none() && rule.from == this && rule.iif.as_deref().is_none_or(|iif| iif == self.veth) && led_to
            }
            _ => false,
        }
    }

    /// The route is the old Terway's: to this address alone, over a link, by no gateway.
    pub fn has_route(&self, route: &RouteSeen) -> bool {
        route.to == host_net(self.ip)
            && route.table == MAIN
            && route.kind == libc::RTN_UNICAST
            && route.via.is_none()
            && route.source.is_none()
    }
}

/// A link in the namespace of a pod that bears no alias of ours, and what it has.
#[derive(Debug, Clone)]
pub struct Stranger {
    pub netns: PathBuf,
    pub mac: Mac,
    pub ip: IpPair,
}

/// Those in the namespaces that runtimes keep.
pub fn strangers() -> Vec<Stranger> {
    let mut found = Vec::new();
    for netns in sandboxes() {
        // One that is going, or is none, has nothing for us.
        let Ok(mut pod) = Netns::open(&netns).and_then(Pod::enter) else { continue };
        for link in pod.place.links().unwrap_or_default().into_iter().filter(|link| link.alias.is_none()) {
            let ip = addresses(&mut pod, link.ifindex);
            found.extend(link.mac.map(|mac| Stranger { netns: netns.clone(), mac, ip }));
        }
    }
    found
}

impl Kernel {
    /// What bears this name in the namespace of a pod, and the addresses on it.
    pub fn look_inside(&mut self, netns: &Path, ifname: &str) -> Result<Option<(LinkSeen, Vec<IpAddr>)>, Error> {
        self.enter(netns)?;
        let Some(pod) = &mut self.pod else { return Ok(None) };
        let Some(link) = pod.place.link(ifname)? else { return Ok(None) };
        let addrs = pod.place.addrs()?.iter().filter(|a| a.ifindex == link.ifindex).map(|a| a.net.addr()).collect();
        Ok(Some((link, addrs)))
    }

    /// Writes onto a link that is there already whose it is.
    pub fn sign(&mut self, ifindex: u32, alias: &str) -> Result<(), Error> {
        let signed = self.host.act(link::set_alias(ifindex, alias));
        self.host.forget();
        signed.context(|| format!("write alias '{alias}' onto link {ifindex}"))
    }

    /// Removes the old Terway's rules and its route for this address. What the plan has too is ours by now and stays.
    pub fn clear_old(&mut self, pod: &OldPod, keep: &Plan) -> Result<(), Error> {
        let mut errors = Errors::default();
        let kept = |rule: &Rule| keep.host.iter().any(|o| matches!(o, crate::plan::Object::Rule(r) if r == rule));
        let bodies = self.host.list_rules()?;
        let rules: Vec<(Rule, Option<IpNet>)> = bodies.iter().filter_map(|body| parse_with_to(body)).collect();
        let (theirs, others): (Vec<_>, Vec<_>) = rules.into_iter().partition(|(rule, to)| pod.has_rule(rule, *to));
        for (rule, to) in theirs.iter().filter(|(rule, _)| !kept(rule)) {
            // Asked to remove a rule without a link, the kernel takes one with a link for it as well.
            let is_taken_for = |(other, other_to): &&(Rule, Option<IpNet>)| {
                rule.iif.is_none() && *rule == Rule { iif: None, ..other.clone() } && to == other_to
            };
            match others.iter().find(is_taken_for) {
                Some((other, _)) => log::warn!("{rule} of the old Terway stays: somebody has {other}"),
                None => drop(errors.note(absent_is_fine(self.host.act(remove_with_to(rule, *to))))),
            }
        }
        let ours_to_clear = |link: &LinkSeen| link.name == pod.veth || link.name.starts_with(ours::HOST_SLAVE);
        let links: Vec<u32> = self.links()?.iter().filter(|link| ours_to_clear(link)).map(|l| l.ifindex).collect();
        let over_its_link = |route: &&RouteSeen| route.oif.is_some_and(|oif| links.contains(&oif));
        for seen in self.routes(MAIN)?.iter().filter(|route| pod.has_route(route)).filter(over_its_link) {
            errors.note(absent_is_fine(self.host.act(route::remove(seen.to, seen.table, None, seen.oif))));
        }
        self.host.forget();
        errors.result().context(|| format!("remove what the old Terway had for {}", pod.ip))
    }
}
