//! IPvlan slaves: a pod's, which is born in its namespace, and the node's own.
//!
//! The kernel gives a slave the MAC of its parent, and lets each address of the slaves of one parent exist once.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use super::card::sandboxes;
use super::link::{self, LinkSeen};
use super::netns::Netns;
use super::place::{Difference, Place, absent_is_fine, shape_difference};
use super::veth::{Age, mac_difference, quoted};
use super::{Kernel, Pod};
use crate::error::{Context, Error};
use crate::ip::IpPair;
use crate::ours;
use crate::plan::{HostSlave, Slave};
use crate::pod::{Attachment, PodName};

/// Makes the slave, or makes the one that is there right. What is left of another attachment, of another ENI, or of an attempt
/// that was cut off, is deleted and made anew; what bears the pod's interface name and is no slave stays.
pub fn ensure(host: &mut Place, pod: &mut Pod, slave: &Slave) -> Result<Age, Error> {
    let Some(inside) = pod.place.link(&slave.name)? else {
        create(host, pod, slave)?;
        return Ok(Age::New);
    };
    if !inside.is_slave() {
        let netns = pod.netns.path().display();
        return Err(Error::refused(format!("interface {} exists already in {netns}", slave.name)));
    }
    if inside.parent() == slave.parent && inside.alias.as_ref() == Some(&slave.alias) {
        if shape_difference(&inside, Some(slave.mtu)).is_some() {
            pod.place.act(link::set_up(inside.ifindex, Some(slave.mtu), None)).context(|| doing("set", slave))?;
            pod.place.forget();
        }
        return Ok(Age::Old);
    }
    absent_is_fine(pod.place.act(link::delete(inside.ifindex))).context(|| doing("delete", slave))?;
    create(host, pod, slave)?;
    Ok(Age::New)
}

fn doing(verb: &str, slave: &Slave) -> String {
    format!("{verb} the IPvlan slave {} of link {}", slave.name, slave.parent)
}

/// Born in the pod, and named and signed there at once: by that anyone who finds it knows whose it is.
fn create(host: &mut Place, pod: &mut Pod, slave: &Slave) -> Result<(), Error> {
    pod.place.forget();
    if let Some(cut_off) = pod.place.link(&slave.newborn)?.filter(LinkSeen::is_slave) {
        delete(&mut pod.place, &cut_off)?;
    }
    let netns = pod.netns.as_fd().as_raw_fd();
    let made = host.act(link::create_slave(&slave.newborn, slave.parent, slave.mtu, Some(netns)));
    made.context(|| doing("create", slave))?;
    let Some(born) = pod.place.link(&slave.newborn)? else {
        return Err(Error::refused("it is gone again")).context(|| doing("create", slave));
    };
    let requests = vec![link::rename(born.ifindex, &slave.name), link::set_alias(born.ifindex, &slave.alias)];
    let outcomes = pod.place.change(requests)?;
    pod.place.forget();
    outcomes.into_iter().try_for_each(|outcome| outcome.map(drop)).context(|| doing("name", slave))?;
    pod.place.note(LinkSeen { name: slave.name.clone(), alias: Some(slave.alias.clone()), ..born });
    Ok(())
}

pub fn difference(pod: Option<&mut Pod>, slave: &Slave) -> Result<Option<Difference>, Error> {
    let Some(pod) = pod else { return Ok(None) };
    let Some(inside) = pod.place.link(&slave.name)? else {
        return Ok(Some(Difference::absent(format!("link {} in {}", slave.name, pod.netns.path().display()))));
    };
    if let Some(difference) = kind_difference(&inside, slave.parent) {
        return Ok(Some(difference));
    }
    if inside.mac != Some(slave.mac) {
        return Ok(Some(mac_difference(&inside, slave.mac)));
    }
    Ok((inside.alias.as_ref() != Some(&slave.alias)).then(|| {
        let seen = inside.alias.unwrap_or_default();
        Difference::of(format!("alias of {}", slave.name), quoted(&seen), quoted(&slave.alias))
    }))
}

/// It is a slave of this link, in mode L2.
fn kind_difference(seen: &LinkSeen, parent: u32) -> Option<Difference> {
    if !seen.is_slave() {
        let kind = seen.kind.clone().unwrap_or_default();
        return Some(Difference::of(format!("kind of {}", seen.name), kind, "ipvlan"));
    }
    if seen.parent() != parent {
        let what = format!("parent of {}", seen.name);
        return Some(Difference::of(what, format!("link {}", seen.parent()), format!("link {parent}")));
    }
    let mode = seen.mode.filter(|mode| *mode != link::L2)?;
    Some(Difference::of(format!("mode of {}", seen.name), mode, link::L2))
}

pub fn remove(pod: Option<&mut Pod>, slave: &Slave) -> Result<(), Error> {
    let Some(pod) = pod else { return Ok(()) };
    match pod.place.link(&slave.name)? {
        Some(inside) if inside.is_slave() && inside.alias.as_ref() == Some(&slave.alias) => {
            delete(&mut pod.place, &inside)
        }
        _ => Ok(()),
    }
}

pub(super) fn delete(place: &mut Place, link: &LinkSeen) -> Result<(), Error> {
    let deleted = absent_is_fine(place.act(link::delete(link.ifindex)));
    place.forget();
    deleted.context(|| format!("delete link {}", link.name))
}

pub fn host_difference(place: &mut Place, want: &HostSlave) -> Result<Option<Difference>, Error> {
    let Some(seen) = place.link(&want.name)? else {
        return Ok(Some(Difference::absent(format!("link {}", want.name))));
    };
    let asks = seen.asks.then(|| Difference::of(format!("arp of {}", want.name), "on", "off"));
    Ok(kind_difference(&seen, want.parent).or_else(|| shape_difference(&seen, Some(want.mtu))).or(asks))
}

/// Makes the node's slave where there is none that is right. One that is a slave of the right link is changed, with all that hangs on
/// it: its mode is that of all slaves.
pub fn make_host(place: &mut Place, want: &HostSlave) -> Result<(), Error> {
    match place.link(&want.name)? {
        Some(seen) if !seen.is_slave() => {
            return Err(Error::refused(format!("link {} exists already and is no IPvlan slave", want.name)));
        }
        Some(seen) if seen.parent() == want.parent => {
            place.act(link::set_l2(seen.ifindex))?;
            return bring_up(place, seen.ifindex, want);
        }
        Some(seen) => delete(place, &seen)?,
        None => {}
    }
    place.act(link::create_slave(&want.name, want.parent, want.mtu, None))?;
    place.forget();
    match place.link(&want.name)? {
        Some(seen) => bring_up(place, seen.ifindex, want),
        None => Ok(()),
    }
}

/// A slave that comes up in this mode asks for MACs again, whatever it was told before.
fn bring_up(place: &mut Place, ifindex: u32, want: &HostSlave) -> Result<(), Error> {
    place.act(link::set_up(ifindex, Some(want.mtu), None))?;
    let silenced = place.act(link::no_arp(ifindex));
    place.forget();
    silenced
}

/// A pod's slave, wherever its namespace is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlaveSeen {
    pub attachment: Attachment,
    /// Where its alias has room for it.
    pub pod: Option<PodName>,
    pub netns: PathBuf,
    /// Index of the ENI's link.
    pub parent: u32,
    pub ip: IpPair,
}

/// Every slave of ours in the namespaces that runtimes keep.
pub fn slaves() -> Vec<SlaveSeen> {
    let mut found = BTreeMap::new();
    for netns in sandboxes() {
        // One that is going, or is none, has nothing for us.
        let Ok(mut pod) = Netns::open(&netns).and_then(Pod::enter) else { continue };
        let links = pod.place.links().unwrap_or_default();
        for link in links.into_iter().filter(LinkSeen::is_slave) {
            let Some(alias) = link.alias.as_deref() else { continue };
            let Some(attachment) = ours::attachment(alias) else { continue };
            let ip = addresses(&mut pod, link.ifindex);
            let seen = SlaveSeen { pod: ours::pod(alias), netns: netns.clone(), parent: link.parent(), ip, attachment };
            found.entry(seen.attachment.clone()).or_insert(seen);
        }
    }
    found.into_values().collect()
}

/// The addresses of a link that others may speak to.
pub(super) fn addresses(pod: &mut Pod, ifindex: u32) -> IpPair {
    let addrs = pod.place.addrs().unwrap_or_default().iter();
    let global = addrs.filter(|a| a.ifindex == ifindex && a.scope == 0).map(|a| a.net.addr());
    global.collect()
}

/// Takes the attachment's slave out of a namespace that its pod leaves, or has left, behind. Its address is free for another then.
pub fn take_out(netns: &Path, attachment: &Attachment) -> Result<(), Error> {
    let mut pod = match Netns::open(netns).and_then(Pod::enter) {
        Err(e) if e.is_absent() => return Ok(()),
        pod => pod?,
    };
    match slave_of(&mut pod, attachment)? {
        Some((slave, _)) => delete(&mut pod.place, &slave).context(|| format!("in {}", netns.display())),
        None => Ok(()),
    }
}

/// The attachment's slave in its namespace, and its addresses. One without an alias was cut off between its making and its signing.
pub(super) fn slave_of(pod: &mut Pod, attachment: &Attachment) -> Result<Option<(LinkSeen, IpPair)>, Error> {
    let owned = |link: &LinkSeen| match &link.alias {
        Some(alias) => ours::attachment(alias).as_ref() == Some(attachment),
        None => link.name == attachment.ifname || link.name.starts_with(ours::NEWBORN),
    };
    let slave = pod.place.links()?.into_iter().find(|link| link.is_slave() && owned(link));
    Ok(slave.map(|slave| {
        let ip = addresses(pod, slave.ifindex);
        (slave, ip)
    }))
}

impl Kernel {
    /// Whether a link has slaves of ours: the node's own tells.
    pub fn is_parent(&mut self, ifindex: u32) -> Result<bool, Error> {
        Ok(self.link(&ours::host_slave(ifindex))?.is_some_and(|link| link.is_slave()))
    }
}
