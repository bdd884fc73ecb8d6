//! A node that the old Terway ran: its pods keep their addresses, and are wired as ours are without losing a packet.
//!
//! Database, kernel and cloud together say what runs. A pod's lease is written down first; then its veth is signed and gets
//! our route, neighbour and rule; and only then go the rules and the route that the old Terway had for it. Each step may be
//! said again: a start that was cut off is gone on with by the next.

pub mod felix;
mod files;
mod records;

use std::collections::BTreeMap;
use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use self::records::{Kind, OldPod};
use super::eni::{self, Job};
use super::ledger::{Contents, Ledger};
use super::sticky::Kept;
use crate::cloud::Client;
use crate::config::Mode;
use crate::datapath::{self, Setup};
use crate::eni::{Eni, EniKind, EniState, VSwitch};
use crate::error::{Error, Errors};
use crate::ip::{IpPair, Mac, NetPair, Stack, host_net};
use crate::kernel::{self, Kernel, LinkSeen, Look, MAIN, RouteSeen, Stranger};
use crate::ours;
use crate::plan::Plan;
use crate::pod::{Attachment, PodName, Sandbox, nameless};
use crate::pool::Notice;
use crate::rate::Both;
use crate::rpc::{EniLease, Heritage, Lease, Marker, Wiring};

/// The interface that every pod of the old Terway has.
const IFNAME: &str = "eth0";

/// A filter would take a qdisc, and the kernel stops a link that is up for some milliseconds when it gets one: 3 to 50 packets
/// were lost at 2,000 a second. So pods that are taken over keep a rule of their own until they are re-created.
pub const MARKER: Marker = Marker::Rule;

/// Keeps the old Terway from running beside us, for as long as this is held; refused while it runs.
pub fn claim() -> Result<Vec<File>, Error> {
    files::claim(Path::new(ours::OLD_STORE))
}

/// All that these bytes say, as a file and as a record.
#[cfg(fuzzing)]
pub fn database(bytes: &[u8]) {
    files::contents(bytes);
}

/// Whether the old Terway has left anything here.
pub fn is_there() -> bool {
    files::are_there(Path::new(ours::OLD_STORE))
}

/// What the take-over stands on, and what it adds to.
pub struct Ground<'a> {
    pub cloud: &'a Client,
    pub look: &'a Look,
    pub ledger: &'a Ledger,
    pub enis: &'a [Eni],
    pub vswitches: &'a [VSwitch],
    pub stack: Stack,
    pub node: IpPair,
    pub mtu: u32,
    pub slots: &'a mut BTreeMap<String, u32>,
    pub contents: &'a mut Contents,
}

/// What there is to go on with beside the leases.
pub struct Inheritance {
    /// What people shall hear of, each with the uid of the pod.
    pub notices: Vec<(Notice, String)>,
    /// Addresses that the old Terway kept for pods which are not there.
    pub kept: Vec<Kept>,
}

/// Takes over what runs.
pub fn take_over(ground: Ground) -> Result<Inheritance, Error> {
    let (lasting, book) = (Path::new(ours::LASTING), Path::new(ours::LEDGER));
    let found = files::read(Path::new(ours::OLD_STORE), lasting, book)?;
    let (kernel, links) = (Kernel::host()?, ground.look.links.clone());
    let routes = ground.look.routes.iter().filter(|route| route.table == MAIN).cloned().collect();
    let mut heir = Heir { ground, kernel, links, routes, enis: BTreeMap::new(), notices: Vec::new(), taken: 0 };
    let Some(found) = found else {
        heir.hold_the_unexplained()?;
        return Ok(Inheritance { notices: heir.notices, kept: Vec::new() });
    };
    let mut errors = Errors::default();
    for pod in &found.pods {
        heir.take(pod, &mut errors)?;
    }
    heir.hold_the_unexplained()?;
    for pod in &found.pods {
        errors.note(heir.clear_if_gone(pod));
    }
    match errors.result() {
        // The next start has another look.
        Err(e) => log::error!("pods of the old Terway: {e}"),
        Ok(()) => [lasting, book].into_iter().try_for_each(|folder| files::mark(folder, &found.marker))?,
    }
    let (taken, left) = (heir.taken, heir.notices.len());
    // What was kept for pods is written down where it outlives a reboot.
    if found.again {
        log::debug!("the old Terway's database was read once more: {taken} of its pods wired, {left} left as they are");
        return Ok(Inheritance { notices: heir.notices, kept: Vec::new() });
    }
    let damage = if found.damaged { "; parts of its database cannot be read, see above" } else { "" };
    log::info!("the old Terway knew {} pods: {taken} taken over, {left} left as they are{damage}", found.pods.len());
    let kept = found.pods.iter().filter_map(|pod| heir.kept(pod)).collect();
    Ok(Inheritance { notices: heir.notices, kept })
}

struct Heir<'a> {
    ground: Ground<'a>,
    kernel: Kernel,
    links: Vec<LinkSeen>,
    /// The main table.
    routes: Vec<RouteSeen>,
    /// ENIs that are set up by now.
    enis: BTreeMap<String, EniLease>,
    notices: Vec<(Notice, String)>,
    taken: usize,
}

/// What becomes of a pod of the database.
enum Fate {
    /// It is ours by now, or nothing runs there.
    Nothing,
    /// Taken over in an earlier life, perhaps not to the end.
    Begun(Box<Lease>),
    TakeOver {
        host_mac: Mac,
        pod_mac: Mac,
        eni: Box<Eni>,
    },
    /// It runs on untouched, for this reason.
    Leave(String),
}

impl Heir<'_> {
    /// A pod that cannot be wired keeps what it has: the others must not suffer.
    fn take(&mut self, pod: &OldPod, errors: &mut Errors) -> Result<(), Error> {
        let lease = match self.fate(pod) {
            Fate::Nothing => return Ok(()),
            Fate::Leave(why) => return self.leave(pod, why),
            Fate::Begun(lease) if lease.untouched().is_some() => return Ok(()),
            Fate::Begun(mut lease) => {
                // One that was found in the kernel does not know its namespace.
                if let Some(netns) = pod.netns.clone().filter(|_| lease.sandbox.netns.as_os_str().is_empty()) {
                    lease.sandbox.netns = netns;
                }
                *lease
            }
            Fate::TakeOver { host_mac, pod_mac, eni } => {
                self.adopt(pod, Heritage::Adopted { host_mac, pod_mac }, &eni)?
            }
        };
        let wired = self.wire(&lease).map_err(|e| e.within(lease.pod.to_string()));
        self.taken += usize::from(wired.is_ok());
        errors.note(wired);
        Ok(())
    }

    fn fate(&mut self, pod: &OldPod) -> Fate {
        let attachment = attachment(pod);
        let contents = &self.ground.contents;
        let begun = |lease: &&Lease| lease.sandbox.attachment == attachment && lease.heritage.is_some();
        if let Some(begun) = contents.leases.iter().find(begun) {
            return Fate::Begun(Box::new(begun.clone()));
        }
        if pod.ip.is_empty() || contents.knows(&attachment, &pod.ip) {
            return Fate::Nothing;
        }
        let name = ours::host_veth(&pod.name, IFNAME);
        let outer = self.links.iter().find(|link| link.name == name && is_old_veth(link)).cloned();
        let routed = pod
            .ip
            .iter()
            .any(|ip| self.routes.iter().any(|r| r.oif == outer.as_ref().map(|o| o.ifindex) && leads_to(r, ip)));
        let inside = pod.netns.as_ref().map(|netns| self.kernel.look_inside(netns, IFNAME));
        let inner = inside.as_ref().and_then(|inside| inside.as_ref().ok()?.as_ref());
        let reason = match (pod.kind, outer, inner) {
            (Kind::Range, Some(_), _) => "its address is one of the node's own range and no ENI's",
            (Kind::Shared, Some(outer), Some((inner, addrs))) if is_pair(&outer, inner) && holds(addrs, &pod.ip) => {
                return self.take_over_or_leave(pod, &outer, inner);
            }
            (Kind::Shared, Some(_), _) if routed => match inside {
                Some(Err(e)) => return Fate::Leave(e.to_string()),
                Some(Ok(_)) => "its eth0 is not the other end of its veth",
                None => "its network namespace is not written down",
            },
            (Kind::Shared, _, Some((inner, _))) if inner.kind.as_deref() == Some("ipvlan") => ON_IPVLAN,
            (Kind::Shared, _, _) if self.is_routed_over_ipvlan(&pod.ip) => ON_IPVLAN,
            (Kind::Exclusive, _, Some((inner, _))) if inner.mac == pod.eni => OWN_ENI,
            (Kind::Exclusive, Some(_), _) if routed => OWN_ENI,
            (Kind::Member, Some(_), _) if routed => "its ENI is a member of a trunk",
            _ => return Fate::Nothing,
        };
        Fate::Leave(reason.into())
    }

    fn take_over_or_leave(&self, pod: &OldPod, outer: &LinkSeen, inner: &LinkSeen) -> Fate {
        let (Some(host_mac), Some(pod_mac)) = (outer.mac, inner.mac) else {
            return Fate::Leave("its veth has no MAC".into());
        };
        match self.eni_of(pod) {
            Some(eni) if self.links.iter().any(|link| link.is_eni(eni.mac)) => {
                Fate::TakeOver { host_mac, pod_mac, eni: Box::new(eni.clone()) }
            }
            Some(eni) => Fate::Leave(format!("its ENI {} has no link on this node", eni.id)),
            None => Fate::Leave("no ENI of this node has its address".into()),
        }
    }

    /// By its address, else by the MAC that the database has: the pool says what is wrong with an address that the cloud does not know.
    fn eni_of(&self, pod: &OldPod) -> Option<&Eni> {
        let enis = self.ground.enis;
        enis.iter()
            .find(|eni| pod.ip.iter().any(|ip| has(eni, ip)))
            .or_else(|| enis.iter().find(|e| Some(e.mac) == pod.eni))
    }

    fn is_routed_over_ipvlan(&self, ip: &IpPair) -> bool {
        let over =
            |r: &RouteSeen| self.links.iter().any(|l| Some(l.ifindex) == r.oif && l.name.starts_with(ours::HOST_SLAVE));
        ip.iter().any(|ip| self.routes.iter().any(|route| leads_to(route, ip) && over(route)))
    }

    /// Written down before anything is changed, the lease makes the veth ours for whoever comes upon it.
    fn adopt(&mut self, pod: &OldPod, heritage: Heritage, eni: &Eni) -> Result<Lease, Error> {
        let eni = self.set_up(eni)?;
        let lease = self.lease(pod, eni, heritage);
        log::info!("{} holds {} since the old Terway's days: taken over", lease.pod, lease.ip);
        self.record(lease.clone())?;
        Ok(lease)
    }

    /// The address of a pod that runs on untouched is never another's; where it is no ENI's there is nothing to hold.
    fn leave(&mut self, pod: &OldPod, why: String) -> Result<(), Error> {
        let message = format!(
            "the pod keeps its address {} and runs on as the old Terway has wired it, because {why}; re-create it to have it \
             wired anew (deleting it is enough where a controller made it)",
            pod.ip
        );
        let (name, reason) = (pod.name.clone(), "VirtualModeChanged");
        self.notices.push((Notice { pod: Some(name), warning: true, reason, message }, pod.uid.clone()));
        match self.eni_of(pod).cloned() {
            Some(eni) => self.record(self.lease(pod, unwired(&eni), Heritage::Untouched { why })),
            None => Ok(()),
        }
    }

    fn lease(&self, pod: &OldPod, eni: EniLease, heritage: Heritage) -> Lease {
        let sandbox = Sandbox { attachment: attachment(pod), netns: pod.netns.clone().unwrap_or_default() };
        let lease = self.inherited(pod.name.clone(), sandbox, pod.ip, eni, heritage);
        Lease { sticky: pod.sticky, ..lease }
    }

    /// Limits that its annotations ask for are heard from the watch.
    fn inherited(&self, pod: PodName, sandbox: Sandbox, ip: IpPair, eni: EniLease, heritage: Heritage) -> Lease {
        Lease {
            pod,
            sandbox,
            ip,
            eni,
            node: self.ground.node,
            marker: MARKER,
            bandwidth: Both::default(),
            sticky: false,
            heritage: Some(heritage),
            wiring: Wiring::Shared,
            routes: Vec::new(),
            seat: None,
            mtu: None,
            network: None,
        }
    }

    fn record(&mut self, lease: Lease) -> Result<(), Error> {
        self.ground.ledger.record(&lease)?;
        self.ground.contents.leases.push(lease);
        Ok(())
    }

    /// Our table and rules for an ENI, beside the old Terway's; once.
    fn set_up(&mut self, eni: &Eni) -> Result<EniLease, Error> {
        if let Some(lease) = self.enis.get(&eni.id) {
            return Ok(lease.clone());
        }
        let ground = &mut self.ground;
        let slot = ground.slots.get(&eni.id).copied().or_else(|| eni::free_slot(ground.slots));
        let slot = slot.ok_or_else(|| Error::refused(format!("all {} slots for ENIs are taken", ours::MAX_SLOT)))?;
        let vswitch = match ground.vswitches.iter().find(|v| v.id == eni.vswitch) {
            Some(vswitch) => vswitch.clone(),
            None => ground.cloud.vswitch(&eni.vswitch)?,
        };
        let job = Job { eni: eni.id.clone(), mac: eni.mac, vswitch: eni.vswitch.clone(), home: None };
        let lease = eni::prepare(&job, slot, &vswitch, ground.stack, &ground.node, ground.mtu, Mode::Shared)?;
        ground.slots.insert(eni.id.clone(), slot);
        self.enis.insert(eni.id.clone(), lease.clone());
        Ok(lease)
    }

    /// First all that is ours, then away with what was theirs: at no moment is the pod without a way.
    fn wire(&mut self, lease: &Lease) -> Result<(), Error> {
        let veth = ours::host_veth(&lease.pod, IFNAME);
        // A pod that has gone meanwhile is not wired; its DEL will come.
        let Some(outer) = self.kernel.link(&veth)? else { return Ok(()) };
        self.kernel.sign(outer.ifindex, &ours::alias(&lease.sandbox.attachment, &lease.pod))?;
        let plan = datapath::pod(&Setup::new(lease, outer.mtu));
        self.kernel.enter(&lease.sandbox.netns)?;
        self.kernel.apply(&plan)?;
        let table = Some(lease.eni.table);
        lease.ip.iter().try_for_each(|ip| self.kernel.clear_old(&kernel::OldPod { ip, veth: &veth, table }, &plan))
    }

    /// Rules of a pod that runs no more, whose address nobody has: its own are known by its name in the database.
    fn clear_if_gone(&mut self, pod: &OldPod) -> Result<(), Error> {
        let is_leased = |ip| self.ground.contents.leases.iter().any(|l| l.ip.iter().any(|i| i == ip));
        let is_routed = |ip| self.routes.iter().any(|route| leads_to(route, ip));
        let veth = ours::host_veth(&pod.name, IFNAME);
        let gone = pod.ip.iter().filter(|ip| !is_leased(*ip) && !is_routed(*ip)).collect::<Vec<_>>();
        gone.into_iter().try_for_each(|ip| {
            self.kernel.clear_old(&kernel::OldPod { ip, veth: &veth, table: None }, &Plan::default())
        })
    }

    /// An address kept for a pod that is not there, as the old Terway does for those of StatefulSets.
    fn kept(&self, pod: &OldPod) -> Option<Kept> {
        let is_leased = |ip| self.ground.contents.leases.iter().any(|l| l.ip.iter().any(|i| i == ip));
        let rests = |ip| self.ground.contents.resting.iter().any(|r| r.ip.iter().any(|i| i == ip));
        let free = pod.ip.iter().all(|ip| !is_leased(ip) && !rests(ip)) && !pod.ip.is_empty();
        let eni = self.eni_of(pod).filter(|_| pod.sticky && pod.kind == Kind::Shared && free)?;
        Some(Kept { pod: pod.name.clone(), eni: eni.id.clone(), ip: pod.ip, until: None })
    }

    /// The database is lost, or this part of it: whoever has an address of our ENIs keeps it.
    fn hold_the_unexplained(&mut self) -> Result<(), Error> {
        for link in self.links.clone().iter().filter(|link| is_old_veth(link)) {
            let ip = self.led_over(link).collect();
            self.hold(ours::unnamed_attachment(&link.name, IFNAME), ip, PathBuf::new(), &link.name)?;
        }
        let slaves = self.links.iter().filter(|link| link.name.starts_with(ours::HOST_SLAVE));
        let led: Vec<IpAddr> = slaves.flat_map(|link| self.led_over(link)).collect();
        if led.iter().any(|ip| self.is_unexplained(*ip)) || self.is_eni_lost() {
            for Stranger { netns, mac, ip } in kernel::strangers() {
                if let Some(first) = ip.iter().next().filter(|_| self.ground.enis.iter().any(|eni| eni.mac == mac)) {
                    let place = netns.display().to_string();
                    self.hold(ours::addressed_attachment(first, IFNAME), ip, netns, &place)?;
                }
            }
        }
        // Where the namespace is not to be found, it is told from the route that the pod lives.
        for ip in led {
            let attachment = ours::addressed_attachment(ip, IFNAME);
            self.hold(attachment, [ip].into_iter().collect(), PathBuf::new(), "an IPvlan link")?;
        }
        Ok(())
    }

    /// The addresses that the main table leads over this link.
    fn led_over(&self, link: &LinkSeen) -> impl Iterator<Item = IpAddr> {
        let over = |r: &&RouteSeen| r.oif == Some(link.ifindex) && leads_to(r, r.to.addr());
        let near = |ip: &IpAddr| matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
        self.routes.iter().filter(over).map(|r| r.to.addr()).filter(move |ip| !near(ip))
    }

    /// An address of our ENIs that nobody is known to have.
    fn is_unexplained(&self, ip: IpAddr) -> bool {
        let is_leased = self.ground.contents.leases.iter().any(|l| l.ip.iter().any(|i| i == ip));
        !is_leased && self.ground.enis.iter().any(|eni| has(eni, ip))
    }

    /// An ENI that is attached and has no link on the node is in a pod: in one that no lease tells of.
    fn is_eni_lost(&self) -> bool {
        let is_here = |eni: &Eni| self.links.iter().any(|link| link.is_eni(eni.mac));
        let is_known = |eni: &Eni| self.ground.contents.leases.iter().any(|lease| lease.eni.id == eni.id);
        let lost = |eni: &&Eni| eni.kind == EniKind::Secondary && eni.state == EniState::InUse && !is_known(eni);
        self.ground.enis.iter().filter(lost).any(|eni| !is_here(eni))
    }

    /// A lease without a name for these addresses, unless somebody is known to have them.
    fn hold(&mut self, attachment: Attachment, ip: IpPair, netns: PathBuf, place: &str) -> Result<(), Error> {
        let Some(eni) = self.ground.enis.iter().find(|eni| ip.iter().any(|ip| has(eni, ip))) else { return Ok(()) };
        if self.ground.contents.knows(&attachment, &ip) {
            return Ok(());
        }
        log::warn!("{place} has {ip} behind it, and no record says whose it is: nobody else gets the address");
        let heritage = Heritage::Untouched { why: "no record names the pod".into() };
        let sandbox = Sandbox { attachment, netns };
        self.record(self.inherited(nameless(), sandbox, ip, unwired(eni), heritage))
    }
}

const ON_IPVLAN: &str = "it is on IPvlan, which pods that are made now are not";
const OWN_ENI: &str = "it has an ENI of its own";

/// The early versions did not write the container down.
fn attachment(pod: &OldPod) -> Attachment {
    match &pod.container {
        Some(container) => Attachment { container: container.clone(), ifname: IFNAME.into() },
        None => ours::unnamed_attachment(&ours::host_veth(&pod.name, IFNAME), IFNAME),
    }
}

/// What is held of an ENI that we do not wire a pod to.
fn unwired(eni: &Eni) -> EniLease {
    let (cidr, gateway) = (NetPair::default(), IpPair::default());
    EniLease { id: eni.id.clone(), mac: eni.mac, vswitch: eni.vswitch.clone(), cidr, gateway, slot: 0, table: 0 }
}

fn has(eni: &Eni, ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(_) => eni.addresses().any(|own| own == ip),
        IpAddr::V6(v6) => eni.v6.contains(&v6),
    }
}

/// Not ours: those that we make bear an alias, or our MAC until they do.
fn is_old_veth(link: &LinkSeen) -> bool {
    link.is_veth()
        && link.name.starts_with("cali")
        && link.alias.is_none()
        && link.mac != Some(ours::host_mac(&link.name))
}

fn is_pair(outer: &LinkSeen, inner: &LinkSeen) -> bool {
    let told =
        outer.peer.is_none_or(|peer| peer == inner.ifindex) && inner.peer.is_none_or(|peer| peer == outer.ifindex);
    inner.is_veth() && told
}

fn holds(addrs: &[IpAddr], ip: &IpPair) -> bool {
    ip.iter().all(|ip| addrs.contains(&ip))
}

/// A route to one address, over a link.
fn leads_to(route: &RouteSeen, ip: IpAddr) -> bool {
    route.oif.is_some() && route.via.is_none() && route.to == host_net(ip)
}
