//! The kernel over netlink and procfs, in blocking verbs: look, apply, check, undo.
//!
//! A plan is applied by comparing and correcting, object by object. Only what belongs to a veth that was created a moment
//! ago is written without looking, since nothing can be there yet; that makes the wiring of a pod three sends.

mod addr;
pub mod bpf;
mod card;
#[cfg(fuzzing)]
pub mod doors;
mod events;
pub mod felix;
pub mod filters;
pub mod guard;
mod ipset;
mod iptables;
mod ipvlan;
mod link;
mod look;
pub mod memory;
mod message;
mod neigh;
pub mod netns;
mod old;
mod place;
mod restore;
mod route;
mod rule;
mod saved;
mod signals;
mod socket;
pub mod sockets;
mod sysctl;
pub mod tables;
mod tc;
mod unwire;
mod veth;
mod way;

use std::net::IpAddr;
use std::path::Path;

pub use addr::AddrSeen;
pub use card::{Away, away, is_settled};
pub use events::Watch;
pub use iptables::forwards_by_rule_only;
pub use ipvlan::{SlaveSeen, slaves, take_out};
pub use link::LinkSeen;
pub use look::{Look, attempt, ifb, ipvlan, seat};
pub use old::{OldPod, Stranger, strangers};
pub use place::Difference;
pub use route::{MAIN, RouteSeen};
pub use signals::Signals;
pub use unwire::{unrule, unwire};
pub use way::{Packet, Way};

use self::netns::Netns;
use self::place::Place;
use self::veth::Age;
use crate::error::{Context, Error, Errors};
use crate::plan::{Addr, Card, Object, Plan, Slave, Veth};

/// The namespace of the node, and that of a pod where there is one to wire.
pub struct Kernel {
    host: Place,
    pod: Option<Pod>,
    /// The veth that [`Kernel::begin`] has made.
    begun: Option<Veth>,
}

/// A pod's namespace: its descriptor, and a socket that was opened inside.
struct Pod {
    netns: Netns,
    place: Place,
}

impl Pod {
    fn enter(netns: Netns) -> Result<Pod, Error> {
        let place = netns.run(Place::here)?;
        Ok(Pod { netns, place })
    }

    fn correct(&mut self, object: &Object) -> Result<(), Error> {
        let Pod { netns, place } = self;
        match object {
            Object::Sysctl(_) | Object::Iptables(_) => netns.run(|| place.correct(object)),
            _ => place.correct(object),
        }
    }

    fn remove(&mut self, object: &Object) -> Result<(), Error> {
        let Pod { netns, place } = self;
        match object {
            Object::Iptables(_) => netns.run(|| place.remove(object)),
            _ => place.remove(object),
        }
    }

    fn difference(&mut self, object: &Object) -> Result<Option<Difference>, Error> {
        let Pod { netns, place } = self;
        match object {
            Object::Sysctl(_) | Object::Iptables(_) => netns.run(|| place.difference(object)),
            _ => place.difference(object),
        }
    }
}

impl Kernel {
    /// The namespace of the calling thread.
    pub fn host() -> Result<Kernel, Error> {
        Ok(Kernel { host: Place::here()?, pod: None, begun: None })
    }

    /// Turns to the pod's namespace at this path, as well. `Cause::Absent` if it is gone.
    pub fn enter(&mut self, netns: &Path) -> Result<(), Error> {
        let netns = Netns::open(netns)?;
        let doing = format!("open a socket in {}", netns.path().display());
        self.pod = Some(Pod::enter(netns).context(|| doing)?);
        Ok(())
    }

    /// Makes a veth ahead of the plan that it is the first object of. Where it cannot be made just like that, `apply` finds
    /// out why. Until then it bears no alias, and no sweep takes it while its ADD waits for the daemon.
    pub fn begin(&mut self, veth: &Veth) {
        let Some(pod) = self.pod.as_mut() else { return };
        if veth::create(&mut self.host, pod, veth).is_ok() {
            self.host.carry(&veth.name);
            self.begun = Some(veth.clone());
        }
    }

    /// Takes away what `begin` has made, since there will be no plan.
    pub fn abandon(&mut self) {
        let Some(begun) = self.begun.take() else { return };
        if let Ok(Some(link)) = self.host.link(&begun.name) {
            // What cannot be deleted goes with the pod's namespace.
            let _ = self.host.act(link::delete(link.ifindex));
        }
        self.forget();
    }

    /// Deletes the attachment's own link where it bears an address that the plan does not have, with all that is on it. A DEL leaves links to
    /// the daemon's next sweep, and an ADD of the same sandbox may come before.
    pub fn clear_former(&mut self, plan: &Plan) -> Result<(), Error> {
        let Some(pod) = self.pod.as_mut().filter(|_| self.begun.is_none()) else { return Ok(()) };
        let wanted: Vec<IpAddr> = plan.pod.iter().filter_map(as_addr).map(|addr| addr.net.addr()).collect();
        for object in &plan.host {
            let own = match object {
                Object::Veth(v) => pod.place.link(&v.peer)?.filter(|l| l.is_veth() && l.mac == Some(v.peer_mac)),
                Object::Slave(s) => {
                    pod.place.link(&s.name)?.filter(|l| l.is_slave() && l.alias.as_ref() == Some(&s.alias))
                }
                _ => None,
            };
            let Some(link) = own else { continue };
            if pod.place.bears_others(link.ifindex, &wanted)? {
                let deleted = place::absent_is_fine(pod.place.act(link::delete(link.ifindex)));
                deleted.context(|| format!("delete link {} of an earlier lease", link.name))?;
            }
        }
        Ok(())
    }

    /// Makes the kernel match the plan, whatever it found.
    pub fn apply(&mut self, plan: &Plan) -> Result<(), Error> {
        match &self.begun {
            None => self.forget(),
            Some(begun) if plan.host.iter().filter_map(as_veth).all(|veth| veth.name != begun.name) => self.abandon(),
            Some(_) => {}
        }
        let mut rest = Vec::new();
        let mut fresh: Vec<(&Veth, Vec<&Object>)> = Vec::new();
        // The names of links inside on which nothing can be yet.
        let mut bare: Vec<&str> = Vec::new();
        for object in &plan.host {
            match object {
                Object::Veth(veth) if self.ensure(veth)? == Age::New => {
                    fresh.push((veth, Vec::new()));
                    bare.push(&veth.peer);
                }
                Object::Slave(slave) if self.ensure_slave(slave)? == Age::New => bare.push(&slave.name),
                Object::Veth(_) | Object::Slave(_) => {}
                Object::Card(card) => {
                    let pod = self.pod.as_mut().ok_or_else(|| no_pod(&card.home))?;
                    card::ensure(&mut self.host, pod, card)?;
                }
                _ => match fresh.iter_mut().find(|(veth, _)| object.link() == Some(&veth.name)) {
                    Some((_, objects)) => objects.push(object),
                    None => rest.push(object),
                },
            }
        }
        // The outer end comes up last of all: from then on the kernel is busy with both ends, on another thread and with the
        // network locked. Before, the pod could send nothing that is not marked.
        self.apply_inside(&plan.pod, &bare)?;
        for (veth, objects) in &fresh {
            place::set(objects).context(|| format!("wire link {}", veth.name))?;
            let signed = veth::sign(&mut self.host, veth)?;
            // Nobody speaks to the outer end by a link-local address of its own.
            self.host.correct_fresh(signed, true, objects).context(|| format!("wire link {}", veth.name))?;
        }
        rest.into_iter().try_for_each(|object| self.host.correct(object))?;
        fresh.iter().filter(|(veth, _)| comes_up(veth, plan)).try_for_each(|(veth, _)| self.await_carrier(veth))?;
        plan.host.iter().filter_map(as_card).try_for_each(|card| self.await_inside(&card.name))?;
        self.await_addresses(plan)
    }

    fn await_addresses(&mut self, plan: &Plan) -> Result<(), Error> {
        plan.host.iter().filter_map(as_v6).try_for_each(|addr| place::await_local(&mut self.host, addr))?;
        let Some(pod) = self.pod.as_mut() else { return Ok(()) };
        plan.pod.iter().filter_map(as_v6).try_for_each(|addr| place::await_local(&mut pod.place, addr))
    }

    fn await_inside(&mut self, link: &str) -> Result<(), Error> {
        self.pod.as_mut().map_or(Ok(()), |pod| place::await_carrier(&mut pod.place, link))
    }

    /// The end that came up last takes packets at once, since the other was up: the kernel has only that one still to be told.
    fn await_carrier(&mut self, veth: &Veth) -> Result<(), Error> {
        self.await_inside(&veth.peer)
    }

    fn ensure(&mut self, veth: &Veth) -> Result<Age, Error> {
        let pod = self.pod.as_mut().ok_or_else(|| no_pod(&veth.name))?;
        if let Some(begun) = self.begun.take_if(|begun| begun.name == veth.name) {
            return veth::finish(pod, &begun, veth).map(|()| Age::New);
        }
        veth::ensure(&mut self.host, pod, veth)
    }

    fn ensure_slave(&mut self, slave: &Slave) -> Result<Age, Error> {
        let pod = self.pod.as_mut().ok_or_else(|| no_pod(&slave.name))?;
        ipvlan::ensure(&mut self.host, pod, slave)
    }

    fn apply_inside(&mut self, objects: &[Object], bare: &[&str]) -> Result<(), Error> {
        let Some(first) = objects.first() else { return Ok(()) };
        let pod = self.pod.as_mut().ok_or_else(|| no_pod(&first.to_string()))?;
        // A redirect is of two links, and the other was not made just now.
        let is_fresh = |object: &&Object| {
            let is_on_it = object.link().is_some_and(|link| bare.contains(&link));
            is_on_it && !matches!(object, Object::Redirect(_))
        };
        let (fresh, rest): (Vec<_>, Vec<_>) = objects.iter().partition(is_fresh);
        let doing = || format!("in {}", pod.netns.path().display());
        if fresh.iter().any(|object| matches!(object, Object::Sysctl(_))) {
            pod.netns.run(|| place::set(&fresh)).context(doing)?;
        }
        // Nor to a pod without IPv6.
        let is_unspoken = !objects.iter().any(|object| as_v6(object).is_some());
        pod.place.correct_fresh(None, is_unspoken, &fresh).context(doing)?;
        for object in rest {
            let corrected = pod.correct(object);
            corrected.context(|| format!("in {}", pod.netns.path().display()))?;
        }
        Ok(())
    }

    /// The first thing that is not as the plan has it. Without a pod's namespace only the node's side is looked at.
    pub fn check(&mut self, plan: &Plan) -> Result<Option<Difference>, Error> {
        self.forget();
        for object in &plan.host {
            let difference = match object {
                Object::Veth(veth) => veth::difference(&mut self.host, self.pod.as_mut(), veth)?,
                Object::Card(card) => card::difference(&mut self.host, self.pod.as_mut(), card)?,
                Object::Slave(slave) => ipvlan::difference(self.pod.as_mut(), slave)?,
                _ => self.host.difference(object)?,
            };
            if difference.is_some() {
                return Ok(difference);
            }
        }
        let Some(pod) = self.pod.as_mut() else { return Ok(None) };
        for object in &plan.pod {
            if let Some(difference) = pod.difference(object)? {
                return Ok(Some(difference));
            }
        }
        Ok(None)
    }

    /// Takes away what the plan describes, the last first. What is not there is done already; a failure does not keep
    /// the rest from being undone. A veth or slave takes all that is on it along, as does a card that goes home; one of another
    /// sandbox keeps it.
    pub fn undo(&mut self, plan: &Plan) -> Result<(), Error> {
        self.forget();
        let mut errors = Errors::default();
        let veths: Vec<&Veth> = plan.host.iter().filter_map(as_veth).collect();
        if let Some(pod) = self.pod.as_mut() {
            let mut ends: Vec<&str> = veths.iter().map(|veth| veth.peer.as_str()).collect();
            ends.extend(plan.host.iter().filter_map(as_card).map(|card| card.name.as_str()));
            ends.extend(plan.host.iter().filter_map(as_slave).map(|slave| slave.name.as_str()));
            let goes_along = |object: &&Object| object.link().is_some_and(|link| ends.contains(&link));
            for object in plan.pod.iter().rev().filter(|object| !goes_along(object)) {
                errors.note(pod.remove(object));
            }
        }
        for object in plan.host.iter().rev() {
            if let Object::Veth(veth) = object {
                errors.note(veth::remove(&mut self.host, self.pod.as_mut(), veth));
            } else if let Object::Card(card) = object {
                errors.note(card::remove(&mut self.host, self.pod.as_mut(), card));
            } else if let Object::Slave(slave) = object {
                errors.note(ipvlan::remove(self.pod.as_mut(), slave));
            } else if !veths.iter().any(|veth| object.link() == Some(&veth.name)) {
                errors.note(self.host.remove(object));
            }
        }
        errors.result()
    }

    fn forget(&mut self) {
        self.host.forget();
        if let Some(pod) = &mut self.pod {
            pod.place.forget();
        }
    }
}

fn as_addr(object: &Object) -> Option<&Addr> {
    match object {
        Object::Addr(addr) => Some(addr),
        _ => None,
    }
}

fn as_v6(object: &Object) -> Option<&Addr> {
    as_addr(object).filter(|addr| addr.net.addr().is_ipv6())
}

fn as_veth(object: &Object) -> Option<&Veth> {
    match object {
        Object::Veth(veth) => Some(veth),
        _ => None,
    }
}

fn as_card(object: &Object) -> Option<&Card> {
    match object {
        Object::Card(card) => Some(card),
        _ => None,
    }
}

fn as_slave(object: &Object) -> Option<&Slave> {
    match object {
        Object::Slave(slave) => Some(slave),
        _ => None,
    }
}

fn comes_up(veth: &Veth, plan: &Plan) -> bool {
    let up = |objects: &[Object], name: &str| objects.iter().any(|o| matches!(o, Object::Link(l) if l.name == name));
    up(&plan.host, &veth.name) && up(&plan.pod, &veth.peer)
}

fn no_pod(what: &str) -> Error {
    Error::refused(format!("{what}: there is no pod's network namespace to work in"))
}

#[cfg(test)]
mod oldest;
