//! A pod's veth: one link of a plan that has its ends in two namespaces.

use std::os::fd::{AsFd, AsRawFd};

use super::Pod;
use super::link::{self, LinkSeen};
use super::message::Message;
use super::place::{Difference, Place, absent_is_fine, shape_difference};
use crate::error::{Cause, Context, Error};
use crate::ip::Mac;
use crate::ours;
use crate::plan::Veth;

/// Whether a veth was made just now, so that nothing can be on it yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Age {
    New,
    Old,
}

/// Makes the veth, or makes the one that is there right. What bears its name and belongs to another sandbox, or to an
/// attempt that was cut off, or is about to be swept, is deleted and made anew; what bears the pod's interface name and is not ours stays.
pub fn ensure(host: &mut Place, pod: &mut Pod, veth: &Veth) -> Result<Age, Error> {
    let failure = match create(host, pod, veth) {
        Err(e) if e.errno() == Some(libc::EEXIST) => e,
        made => return made.map(|()| Age::New),
    };
    let outer = host.link(&veth.name)?;
    let inner = pod.place.link(&veth.peer)?;
    if let Some(inner) = &inner
        && !outer.as_ref().is_some_and(|outer| is_pair(outer, inner, veth))
    {
        return Err(exists_already(pod, veth));
    }
    let Some(outer) = outer else { return Err(failure) };
    let doomed = outer.group == ours::DOOMED_GROUP;
    if inner.is_some() && outer.alias.as_ref() == Some(&veth.alias) && !doomed {
        repair(host, pod, veth)?;
        return Ok(Age::Old);
    }
    if !outer.is_veth() {
        return Err(Error::refused(format!("link {} exists already and is not a veth", veth.name)));
    }
    absent_is_fine(host.act(link::delete(outer.ifindex))).context(|| format!("delete link {}", veth.name))?;
    host.forget();
    pod.place.forget();
    create(host, pod, veth)?;
    Ok(Age::New)
}

fn exists_already(pod: &Pod, veth: &Veth) -> Error {
    Error::refused(format!("interface {} exists already in {}", veth.peer, pod.netns.path().display()))
}

/// The two links are each other's ends.
pub fn is_pair(outer: &LinkSeen, inner: &LinkSeen, veth: &Veth) -> bool {
    let both = outer.is_veth() && inner.is_veth();
    match (outer.peer, inner.peer) {
        (Some(to_inner), Some(to_outer)) => both && to_inner == inner.ifindex && to_outer == outer.ifindex,
        // Not told by this kernel: then the MAC, which nobody else derives from this name.
        _ => both && inner.mac == Some(veth.peer_mac),
    }
}

/// Both ends in one request. What they are like is what was asked for.
pub fn create(host: &mut Place, pod: &mut Pod, veth: &Veth) -> Result<(), Error> {
    let doing = || format!("create link {}", veth.name);
    host.act(link::create_veth(veth, pod.netns.as_fd().as_raw_fd())).context(doing)?;
    let (outer, inner) = (host.index_of(&veth.name)?, pod.place.index_of(&veth.peer)?);
    host.note(fresh(&veth.name, outer, veth.mac, veth.mtu, inner));
    pod.place.note(fresh(&veth.peer, inner, veth.peer_mac, veth.mtu, outer));
    Ok(())
}

/// Calls the inner end of a veth that was made ahead of its plan as the plan has it.
pub fn finish(pod: &mut Pod, begun: &Veth, veth: &Veth) -> Result<(), Error> {
    if begun.peer == veth.peer {
        return Ok(());
    }
    let doing = || format!("rename link {} to {}", begun.peer, veth.peer);
    let Some(inner) = pod.place.link(&begun.peer)? else {
        return Err(Error::new(Cause::Absent)).context(doing);
    };
    pod.place.act(link::rename(inner.ifindex, &veth.peer)).context(doing)?;
    pod.place.forget();
    pod.place.note(LinkSeen { name: veth.peer.clone(), ..inner });
    Ok(())
}

/// What an end is like that was made just now.
fn fresh(name: &str, ifindex: u32, mac: Mac, mtu: u32, peer: u32) -> LinkSeen {
    LinkSeen {
        name: name.to_owned(),
        ifindex,
        mac: Some(mac),
        mtu,
        up: false,
        running: false,
        asks: true,
        kind: Some("veth".into()),
        alias: None,
        group: 0,
        peer: Some(peer),
        peer_netnsid: None,
        mode: None,
    }
}

/// Whatever is not as it should be on links that are ours, without taking them down: other software changes MACs.
fn repair(host: &mut Place, pod: &mut Pod, veth: &Veth) -> Result<(), Error> {
    for (place, name, mac) in [(host, &veth.name, veth.mac), (&mut pod.place, &veth.peer, veth.peer_mac)] {
        let Some(seen) = place.link(name)? else { continue };
        if seen.mac != Some(mac) || shape_difference(&seen, Some(veth.mtu)).is_some() {
            place.act(link::set_up(seen.ifindex, Some(veth.mtu), Some(mac))).context(|| format!("set link {name}"))?;
            place.forget();
        }
    }
    Ok(())
}

/// Makes the outer end right where others have changed it. One that bears the name of another attachment is left alone.
pub fn mend(host: &mut Place, veth: &Veth) -> Result<(), Error> {
    let doing = || format!("mend link {}", veth.name);
    let Some(seen) = host.link(&veth.name)? else { return Ok(()) };
    if !seen.is_veth() {
        return Err(Error::refused("it is not a veth")).context(doing);
    }
    if seen.alias.as_ref() != Some(&veth.alias) {
        if let Some(other) = seen.alias.as_deref().and_then(ours::attachment) {
            return Err(Error::refused(format!("it belongs to {other}"))).context(doing);
        }
        host.act(link::set_alias(seen.ifindex, &veth.alias)).context(doing)?;
    }
    // Whoever is told a MAC, also the one it has, drops all neighbours on the link, those of others too.
    let mac = Some(veth.mac).filter(|mac| seen.mac != Some(*mac));
    host.act(link::set_up(seen.ifindex, Some(veth.mtu), mac)).context(doing)
}

/// The request that says whose the veth is. The first after its creation: one without it was cut off in between.
pub fn sign(host: &mut Place, veth: &Veth) -> Result<Option<Message>, Error> {
    Ok(host.link(&veth.name)?.map(|seen| link::set_alias(seen.ifindex, &veth.alias)))
}

pub fn difference(host: &mut Place, pod: Option<&mut Pod>, veth: &Veth) -> Result<Option<Difference>, Error> {
    let Some(outer) = host.link(&veth.name)? else {
        return Ok(Some(Difference::absent(format!("link {}", veth.name))));
    };
    if !outer.is_veth() {
        let kind = outer.kind.unwrap_or_default();
        return Ok(Some(Difference::of(format!("kind of {}", veth.name), kind, "veth")));
    }
    if outer.alias.as_ref() != Some(&veth.alias) {
        let alias = outer.alias.unwrap_or_default();
        return Ok(Some(Difference::of(format!("alias of {}", veth.name), quoted(&alias), quoted(&veth.alias))));
    }
    if outer.mac != Some(veth.mac) {
        return Ok(Some(mac_difference(&outer, veth.mac)));
    }
    if let Some(difference) = shape_difference(&outer, Some(veth.mtu)) {
        return Ok(Some(difference));
    }
    match pod {
        Some(pod) => inner_difference(&outer, pod, veth),
        None => Ok(None),
    }
}

fn inner_difference(outer: &LinkSeen, pod: &mut Pod, veth: &Veth) -> Result<Option<Difference>, Error> {
    let Some(inner) = pod.place.link(&veth.peer)? else {
        return Ok(Some(Difference::absent(format!("link {} in {}", veth.peer, pod.netns.path().display()))));
    };
    if !is_pair(outer, &inner, veth) {
        return Ok(Some(Difference::of(format!("peer of {}", veth.peer), "another link", &veth.name)));
    }
    Ok((inner.mac != Some(veth.peer_mac)).then(|| mac_difference(&inner, veth.peer_mac)))
}

pub fn mac_difference(seen: &LinkSeen, want: Mac) -> Difference {
    let mac = seen.mac.map_or("none".to_string(), |mac| mac.to_string());
    Difference::of(format!("mac of {}", seen.name), mac, want)
}

pub fn quoted(text: &str) -> String {
    format!("'{text}'")
}

/// Deletes the veth if it is the one that the plan speaks of: by its alias, or, where it was cut off before it got one,
/// by its other end.
pub fn remove(host: &mut Place, pod: Option<&mut Pod>, veth: &Veth) -> Result<(), Error> {
    let Some(outer) = host.link(&veth.name)? else { return Ok(()) };
    let ours = match &outer.alias {
        Some(alias) => *alias == veth.alias,
        None => match pod {
            Some(pod) => pod.place.link(&veth.peer)?.is_some_and(|inner| is_pair(&outer, &inner, veth)),
            None => false,
        },
    };
    if ours {
        absent_is_fine(host.act(link::delete(outer.ifindex))).context(|| format!("delete link {}", veth.name))?;
        host.forget();
    }
    Ok(())
}
