//! What others want to know of the kernel, and the single steps that the daemon takes outside any plan.

use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::path::Path;

use ipnet::IpNet;

use super::link;
use super::neigh::NeighSeen;
use super::place::{Place, absent_is_fine};
use super::route::{MAIN, RouteSeen};
use super::{AddrSeen, Kernel, LinkSeen, sysctl};
use crate::error::{Context, Error, Errors};
use crate::ip::{IpPair, Mac};
use crate::ours;
use crate::plan::{Filter, FilterAction, Hook, HostSlave, Ifb, Object, Plan, Program, Redirect, Rule, Side, Veth};
use crate::pod::Attachment;
use crate::rate::Both;
use crate::rpc::Marker;

/// The node's network as it was seen at one time, for many questions.
pub struct Look {
    /// The addresses by which the node is known: those that its default routes send from.
    pub source: IpPair,
    pub links: Vec<LinkSeen>,
    pub routes: Vec<RouteSeen>,
    pub rules: Vec<Rule>,
}

impl Look {
    /// The host ends of pods' veths, each with the attachment that its alias names.
    pub fn pod_links(&self) -> impl Iterator<Item = (Attachment, &LinkSeen)> {
        self.links.iter().filter_map(|link| Some((ours::attachment(link.alias.as_deref()?)?, link)))
    }

    /// Links of the node's default routes of IPv4.
    pub fn default_links(&self) -> Vec<&LinkSeen> {
        let default = |r: &&RouteSeen| r.table == MAIN && r.to.prefix_len() == 0 && r.to.addr().is_ipv4();
        let ways: Vec<u32> = self.routes.iter().filter(default).filter_map(|r| r.oif).collect();
        self.links.iter().filter(|link| ways.contains(&link.ifindex)).collect()
    }

    /// Links by which the kernel learns from router advertisements, or will once the first one comes: hardware, and what else has a
    /// default route. Behind a bridge there may be containers, which nobody is to believe.
    pub fn advertised_links(&self) -> Vec<&LinkSeen> {
        let default = |r: &RouteSeen| r.table == MAIN && r.to.prefix_len() == 0;
        let by_default = |link: &LinkSeen| self.routes.iter().any(|r| default(r) && r.oif == Some(link.ifindex));
        let leads_out = |link: &LinkSeen| link.kind.is_none() && link.name != "lo" || by_default(link);
        let listens = |link: &LinkSeen| {
            let value = sysctl::read(&format!("net/ipv6/conf/{}/accept_ra", link.name));
            matches!(value.ok().flatten().as_deref(), Some("1" | "2"))
        };
        self.links.iter().filter(|link| leads_out(link) && listens(link)).collect()
    }
}

impl Kernel {
    /// Looks at all there is. What is surveyed goes by it too, until something is changed or [`Kernel::look_again`].
    pub fn look(&mut self) -> Result<Look, Error> {
        let source = self.default_source().context(|| "the node's own address")?;
        let links = self.links()?;
        links.iter().for_each(|link| self.host.note(link.clone()));
        Ok(Look { source, links, routes: self.host.routes()?.to_vec(), rules: self.host.rules()?.to_vec() })
    }

    pub fn links(&mut self) -> Result<Vec<LinkSeen>, Error> {
        self.host.links()
    }

    /// A link in the pod's namespace.
    pub fn link_inside(&mut self, name: &str) -> Result<Option<LinkSeen>, Error> {
        let Some(pod) = &mut self.pod else { return Ok(None) };
        pod.place.forget();
        pod.place.link(name)
    }

    pub fn link(&mut self, name: &str) -> Result<Option<LinkSeen>, Error> {
        self.host.forget();
        self.host.link(name)
    }

    /// The ENI with this MAC.
    pub fn link_by_mac(&mut self, mac: Mac) -> Result<Option<LinkSeen>, Error> {
        Ok(self.links()?.into_iter().find(|link| link.is_eni(mac)))
    }

    /// The addresses by which the node is known: those that its default routes send from.
    pub fn default_source(&mut self) -> Result<IpPair, Error> {
        self.host.forget();
        let default =
            |route: &&RouteSeen| route.to.prefix_len() == 0 && route.table == MAIN && route.kind == libc::RTN_UNICAST;
        let mut routes: Vec<RouteSeen> = self.host.routes()?.iter().filter(default).cloned().collect();
        routes.sort_by_key(|route| route.metric);
        let addrs = self.host.addrs()?;
        let mut pair = IpPair::default();
        for route in &routes {
            match source(route, addrs) {
                Some(IpAddr::V4(addr)) => pair.v4 = pair.v4.or(Some(addr)),
                Some(IpAddr::V6(addr)) => pair.v6 = pair.v6.or(Some(addr)),
                None => {}
            }
        }
        Ok(pair)
    }

    /// Whether this kernel speaks IPv6 at all.
    pub fn has_v6(&self) -> bool {
        sysctl::read("net/ipv6/conf/all/forwarding").is_ok_and(|value| value.is_some())
    }

    pub fn addrs(&mut self) -> Result<Vec<AddrSeen>, Error> {
        self.host.forget();
        Ok(self.host.addrs()?.to_vec())
    }

    /// The rules that might be ours: those that say nothing which ours never say.
    pub fn rules(&mut self) -> Result<Vec<Rule>, Error> {
        self.host.forget();
        Ok(self.host.rules()?.to_vec())
    }

    /// Removes a rule, all copies of it.
    pub fn delete_rule(&mut self, rule: &Rule) -> Result<(), Error> {
        self.host.remove(&Object::Rule(rule.clone()))
    }

    /// The routes of a table.
    pub fn routes(&mut self, table: u32) -> Result<Vec<RouteSeen>, Error> {
        self.host.routes_in(table)
    }

    /// The MAC that a permanent neighbour on this link has.
    pub fn neighbour(&mut self, ifindex: u32, addr: IpAddr) -> Result<Option<Mac>, Error> {
        let is_it = |n: &&NeighSeen| n.ifindex == ifindex && n.addr == addr && n.permanent;
        Ok(self.host.neighs()?.iter().find(is_it).and_then(|n| n.mac))
    }

    pub fn delete_route(&mut self, route: &RouteSeen) -> Result<(), Error> {
        let removed = self.host.act(super::route::remove(route.to, route.table, route.via, route.oif));
        absent_is_fine(removed).context(|| format!("delete the route to {}", route.to))
    }

    /// Deletes a link. One is slow (the kernel waits for all CPUs): see [`Kernel::delete_doomed`].
    pub fn delete_link(&mut self, ifindex: u32) -> Result<(), Error> {
        absent_is_fine(self.host.act(link::delete(ifindex))).context(|| format!("delete link {ifindex}"))
    }

    /// Marks a link to be deleted together with others.
    pub fn doom(&mut self, ifindex: u32) -> Result<(), Error> {
        let doomed = self.host.act(link::set_group(ifindex, ours::DOOMED_GROUP));
        absent_is_fine(doomed).context(|| format!("doom link {ifindex}"))
    }

    /// Deletes all doomed links, in one request where the kernel can (4.1 and later).
    pub fn delete_doomed(&mut self) -> Result<(), Error> {
        match self.host.act(link::delete_group(ours::DOOMED_GROUP)) {
            Err(e) if e.errno() == Some(libc::EINVAL) => self.delete_doomed_singly(),
            result => absent_is_fine(result).context(|| "delete doomed links"),
        }
    }

    fn delete_doomed_singly(&mut self) -> Result<(), Error> {
        let mut errors = Errors::default();
        for link in self.links()?.into_iter().filter(|link| link.group == ours::DOOMED_GROUP) {
            errors.note(self.delete_link(link.ifindex));
        }
        errors.result()
    }

    /// How this kernel can mark packets, and why not better. Tried out in a namespace that lives no longer than that.
    pub fn marker(&mut self) -> (Marker, String) {
        let trial = std::thread::Builder::new().spawn(marker_of_a_new_namespace).map(|thread| thread.join());
        match trial {
            Ok(Ok(Ok(found))) => found,
            Ok(Ok(Err(e))) => (Marker::Rule, format!("no namespace to try markers in: {e}")),
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(e) => (Marker::Rule, format!("no thread to try markers in: {e}")),
        }
    }
}

/// Makes what the plan has for the node in a namespace that lives no longer than that: whether this kernel can.
pub fn attempt(plan: &Plan) -> Result<(), Error> {
    let objects = plan.host.clone();
    let trial = std::thread::Builder::new().spawn(move || {
        let mut place = a_new_namespace()?;
        objects.iter().try_for_each(|object| place.correct(object))
    });
    match trial.context(|| "start a thread")?.join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Whether this kernel can hold two links to one bandwidth, else why not.
pub fn ifb() -> Result<(), Error> {
    let trial = std::thread::Builder::new().spawn(ifb_of_a_new_namespace).context(|| "start a thread")?;
    trial.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// The seat that filters on the links of the attachment bear, by the one of this name: the node's, or inside of the namespace.
pub fn seat(netns: Option<&Path>, link: &str) -> Result<Option<u16>, Error> {
    // A kernel of its own: nobody's namespace is held open.
    let mut kernel = Kernel::host()?;
    if let Some(netns) = netns {
        kernel.enter(netns)?;
    }
    let place = kernel.pod.as_mut().map_or(&mut kernel.host, |pod| &mut pod.place);
    place.seat(link)
}

/// Whether this kernel can give pods slaves of an ENI, and run the programs that such an ENI needs; else why not.
pub fn ipvlan() -> Result<(), Error> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    if version(&release) < Some((4, 19)) {
        return Err(Error::refused(format!("kernel {release} is older than 4.19")));
    }
    let trial = std::thread::Builder::new().spawn(ipvlan_of_a_new_namespace).context(|| "start a thread")?;
    trial.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).context(|| format!("kernel {release} cannot"))
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|word| word.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

fn ipvlan_of_a_new_namespace() -> Result<(), Error> {
    let mut place = a_new_namespace()?;
    let mac = Mac([2, 0, 0, 0, 0, 1]);
    let name = |name: &str| name.to_string();
    // Both ends of it are in here.
    let eni = Veth { name: name("eni"), mac, mtu: 1500, alias: name(""), peer: name("vpc"), peer_mac: mac };
    place.act(link::create_veth(&eni, super::netns::home()?.as_raw_fd()))?;
    let parent = place.link("eni")?.map_or(0, |link| link.ifindex);
    place.correct(&Object::HostSlave(HostSlave { name: name("slave"), parent, mtu: 1500 }))?;
    let programs =
        [(Side::Ingress, Program::Arriving), (Side::Egress, Program::Entering), (Side::Egress, Program::Leaving)];
    for (side, program) in programs {
        let on = if program == Program::Leaving { "eni" } else { "slave" };
        let priority = ours::HOOK_PRIORITY;
        place.correct(&Object::Hook(Hook { link: name(on), side, priority, program, class: None }))?;
    }
    Ok(())
}

/// Runs on a thread of its own, which takes the namespace with it when it ends.
fn ifb_of_a_new_namespace() -> Result<(), Error> {
    let mut place = a_new_namespace()?;
    let through = String::from("probe");
    place.correct(&Object::Ifb(Ifb { name: through.clone() }))?;
    let Both { ingress, egress } = ours::SHAPE_FILTER_PRIORITIES;
    for (side, priority) in [(Side::Ingress, ingress), (Side::Egress, egress)] {
        let redirect = Redirect { link: "lo".into(), side, priority, through: through.clone() };
        place.correct(&Object::Redirect(redirect))?;
    }
    Ok(())
}

/// What a packet for elsewhere would bear: the route's own choice, else the link's address beside the gateway, else the
/// link's first.
fn source(route: &RouteSeen, addrs: &[AddrSeen]) -> Option<IpAddr> {
    let v4 = route.to.addr().is_ipv4();
    let usable = |a: &&AddrSeen| Some(a.ifindex) == route.oif && a.net.addr().is_ipv4() == v4 && a.is_lasting_global();
    let beside = |a: &&AddrSeen| route.via.is_some_and(|via| a.net.contains(&via));
    let link = || addrs.iter().filter(usable);
    route.source.or_else(|| link().find(beside).or_else(|| link().next()).map(|a| IpNet::addr(&a.net)))
}

/// For a thread of its own, which takes the namespace with it when it ends.
fn a_new_namespace() -> Result<Place, Error> {
    // SAFETY: only the network namespace of this thread changes; no descriptor or memory is shared differently.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }?;
    Place::here()
}

fn marker_of_a_new_namespace() -> Result<(Marker, String), Error> {
    let mut place = a_new_namespace()?;
    let mut works = |action| {
        let filter = Filter { link: "lo".into(), priority: ours::MARK_FILTER_PRIORITY, action };
        place.correct(&Object::Filter(filter))
    };
    let (value, mask) = (ours::mark(1), ours::MARK_MASK);
    let Err(bpf) = works(FilterAction::BpfMark(value, mask)) else {
        return Ok((Marker::Bpf, "eBPF works".into()));
    };
    let Err(skbedit) = works(FilterAction::SkbeditMark(value, mask)) else {
        return Ok((Marker::Skbedit, format!("no eBPF: {bpf}")));
    };
    Ok((Marker::Rule, format!("no eBPF: {bpf}; no skbedit: {skbedit}")))
}
