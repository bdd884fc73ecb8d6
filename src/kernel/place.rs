//! One namespace: look at an object of a plan, make it, remove it, each whatever is there already.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use super::addr::{self, AddrSeen};
use super::bpf::hooks::{self, Hooks};
use super::bpf::{Programs, marks_are_kept};
use super::link::{self, LinkSeen};
use super::message::Message;
use super::neigh::{self, NeighSeen};
use super::route::{self, RouteSeen};
use super::socket::{Outcome, Socket};
use super::tc::QdiscSeen;
use super::{iptables, ipvlan, rule, sysctl, tc};
use crate::error::{Cause, Context, Error};
use crate::ours;
use crate::plan::{
    Addr, Filter, FilterAction, Hook, Ifb, Link, Neigh, Object, Redirect, Route, Rule, Side, Sysctl, Tbf,
};

/// The first thing in which the kernel is not as a plan wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The object, or a property of it.
    pub what: String,
    /// What is there; `None` is nothing at all.
    pub seen: Option<String>,
    pub want: String,
}

impl Difference {
    pub(super) fn absent(what: impl fmt::Display) -> Difference {
        Difference { what: what.to_string(), seen: None, want: String::new() }
    }

    pub(super) fn of(what: impl fmt::Display, seen: impl fmt::Display, want: impl fmt::Display) -> Difference {
        Difference { what: what.to_string(), seen: Some(seen.to_string()), want: want.to_string() }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.seen {
            None => write!(f, "{}: absent", self.what),
            Some(seen) => write!(f, "{}: {seen}, not {}", self.what, self.want),
        }
    }
}

/// Longer than the network is ever locked; a link that has no carrier then is not waited for.
const CARRIER_WAIT: Duration = Duration::from_millis(500);
const CARRIER_POLL: Duration = Duration::from_micros(200);

/// A socket in the namespace, and what we saw there since the last change.
pub struct Place {
    socket: Socket,
    programs: Programs,
    hooks: Hooks,
    seen: Seen,
}

#[derive(Default)]
struct Seen {
    links: BTreeMap<String, LinkSeen>,
    addrs: Option<Vec<AddrSeen>>,
    routes: Option<Vec<RouteSeen>>,
    rules: Option<Vec<Rule>>,
    neighs: Option<Vec<NeighSeen>>,
    qdiscs: Option<Vec<QdiscSeen>>,
    /// Links that [`Place::carry`] has made ready.
    carriers: BTreeSet<u32>,
}

impl Place {
    /// The namespace of the calling thread.
    pub fn here() -> Result<Place, Error> {
        Ok(Place {
            socket: Socket::open()?,
            programs: Programs::default(),
            hooks: Hooks::default(),
            seen: Seen::default(),
        })
    }

    /// What was seen may be old: look again.
    pub fn forget(&mut self) {
        self.seen = Seen::default();
    }

    /// Makes the object what it should be, if it is not.
    pub fn correct(&mut self, object: &Object) -> Result<(), Error> {
        if self.difference(object)?.is_some() {
            let made = self.make(object).context(|| object.to_string());
            self.forget();
            made?;
        }
        Ok(())
    }

    /// The same for objects on links that were made just now: without looking first, and all in one send, which the
    /// request `sign` opens. `is_unspoken`: nobody speaks to the link by a link-local address; without one the kernel has less to do, and to
    /// tell, when it comes up.
    pub fn correct_fresh(
        &mut self,
        sign: Option<Message>,
        is_unspoken: bool,
        objects: &[&Object],
    ) -> Result<(), Error> {
        let quiet = |request: Message| if is_unspoken { link::and_no_own_address(request) } else { request };
        let mut owners = vec![None; sign.iter().len()];
        let mut messages: Vec<Message> = sign.iter().cloned().map(quiet).collect();
        let mut holders = BTreeSet::new();
        for object in objects {
            // One qdisc holds all filters of a link.
            let carried = match object {
                Object::Filter(_) | Object::Hook(_) => object.link(),
                _ => None,
            };
            if let Some(link) = carried.filter(|link| holders.insert(*link)) {
                let ifindex = self.index(link)?;
                if !self.seen.carriers.contains(&ifindex) {
                    messages.push(tc::add_qdisc(ifindex, "clsact"));
                    owners.push(Some(*object));
                }
            }
            for message in self.optimistic(object)? {
                // What comes up first has no carrier yet, and takes this in time.
                let is_first = sign.is_none() && matches!(object, Object::Link(_));
                messages.push(if is_first { quiet(message) } else { message });
                owners.push(Some(*object));
            }
        }
        for (outcome, owner) in self.change(messages)?.into_iter().zip(owners) {
            match (outcome, owner) {
                (Ok(_), _) => {}
                // Whatever stood in the way, the slow way sees it; and if it fails as well, it says why.
                (Err(_), Some(owner)) => self.correct(owner)?,
                // A kernel that takes the alias alone.
                (Err(_), None) => sign.iter().cloned().try_for_each(|sign| self.act(sign))?,
            }
        }
        Ok(())
    }

    /// Makes a new link ready for the filter that will mark its pod, where such a filter is to be expected. The first filter waits until
    /// nobody can know the qdisc as it was at its birth (`mini_qdisc_pair_swap` in net/sched/sch_generic.c): one that is older by the time
    /// of an answer often need not.
    pub fn carry(&mut self, link: &str) {
        let Some(ifindex) = self.find(link).ok().flatten().filter(|_| marks_are_kept()) else { return };
        if self.act(tc::add_qdisc(ifindex, "clsact")).is_ok() {
            self.seen.carriers.insert(ifindex);
        }
    }

    /// Requests that make the object where nothing of the kind exists; none for what has to be looked at first.
    fn optimistic(&mut self, object: &Object) -> Result<Vec<Message>, Error> {
        Ok(match object {
            Object::Link(l) => vec![link::set_up(self.index(&l.name)?, l.mtu, None)],
            Object::Addr(a) => vec![addr::add(a.net, self.index(&a.link)?)],
            Object::Route(r) => vec![route::replace(r, self.index(&r.link)?)],
            Object::Neigh(n) => vec![neigh::replace(n.addr, n.mac, self.index(&n.link)?)],
            Object::Filter(f) => {
                let ifindex = self.index(&f.link)?;
                vec![self.filter(f, ifindex)?]
            }
            Object::Hook(h) => {
                let ifindex = self.index(&h.link)?;
                vec![self.hook(h, ifindex)?]
            }
            Object::Tbf(t) => vec![tc::set_tbf(self.index(&t.link)?, t)],
            // They are for links that are made on the way, and the ENI may have been anybody's.
            Object::Ifb(_) | Object::Redirect(_) => Vec::new(),
            Object::HostSlave(_) => Vec::new(),
            Object::Veth(_) | Object::Card(_) | Object::Slave(_) => Vec::new(),
            Object::Rule(_) | Object::Sysctl(_) | Object::Iptables(_) => Vec::new(),
        })
    }

    /// In what this object differs from what is there. Veths, cards and slaves take two places to look at and are not for here.
    pub fn difference(&mut self, object: &Object) -> Result<Option<Difference>, Error> {
        match object {
            Object::Veth(_) | Object::Card(_) | Object::Slave(_) => Ok(None),
            Object::HostSlave(want) => ipvlan::host_difference(self, want),
            Object::Hook(want) => self.hook_difference(want),
            Object::Link(want) => self.link_difference(want),
            Object::Addr(want) => self.addr_difference(want),
            Object::Route(want) => self.route_difference(want),
            Object::Rule(want) => {
                let there = self.rules()?.contains(want);
                Ok((!there).then(|| Difference::absent(label(object))))
            }
            Object::Neigh(want) => self.neigh_difference(want),
            Object::Filter(want) => self.filter_difference(want),
            Object::Tbf(want) => self.tbf_difference(want),
            Object::Ifb(want) => self.ifb_difference(want),
            Object::Redirect(want) => self.redirect_difference(want),
            Object::Sysctl(want) => sysctl_difference(want),
            Object::Iptables(want) => Ok((!iptables::is_there(want)?).then(|| Difference::absent(object))),
        }
    }

    fn link_difference(&mut self, want: &Link) -> Result<Option<Difference>, Error> {
        let Some(seen) = self.link(&want.name)? else {
            return Ok(Some(Difference::absent(format!("link {}", want.name))));
        };
        Ok(shape_difference(&seen, want.mtu))
    }

    fn addr_difference(&mut self, want: &Addr) -> Result<Option<Difference>, Error> {
        let what = || format!("addr {} dev {}", want.net, want.link);
        let Some(ifindex) = self.find(&want.link)? else {
            return Ok(Some(Difference::absent(what())));
        };
        let seen = self.addrs()?.iter().find(|a| a.ifindex == ifindex && a.net == want.net);
        Ok(match seen {
            None => Some(Difference::absent(what())),
            Some(seen) if !seen.is_settled() => Some(Difference::of(what(), "unsettled", "permanent")),
            Some(_) => None,
        })
    }

    fn route_difference(&mut self, want: &Route) -> Result<Option<Difference>, Error> {
        let what = || label(&Object::Route(want.clone()));
        let Some(ifindex) = self.find(&want.link)? else {
            return Ok(Some(Difference::absent(what())));
        };
        let seen: Vec<_> = self.routes_to(want)?.iter().filter(|r| r.is_in_place_of(want)).collect();
        Ok(match seen.iter().find(|r| !r.is(want, ifindex)) {
            None if seen.is_empty() => Some(Difference::absent(what())),
            None => None,
            Some(other) => Some(Difference::of(what(), other, format!("dev {ifindex}"))),
        })
    }

    fn neigh_difference(&mut self, want: &Neigh) -> Result<Option<Difference>, Error> {
        let what = || format!("neigh {} dev {}", want.addr, want.link);
        let Some(ifindex) = self.find(&want.link)? else {
            return Ok(Some(Difference::absent(what())));
        };
        let neighs = self.neighs()?;
        let at = neighs.binary_search_by_key(&(ifindex, want.addr), NeighSeen::key);
        let seen = at.ok().map(|at| &neighs[at]);
        Ok(match seen {
            None => Some(Difference::absent(what())),
            Some(NeighSeen { mac: Some(mac), permanent: true, .. }) if *mac == want.mac => None,
            Some(NeighSeen { mac: Some(mac), permanent: true, .. }) => Some(Difference::of(what(), mac, want.mac)),
            Some(_) => Some(Difference::of(what(), "learnt", "permanent")),
        })
    }

    fn ifb_difference(&mut self, want: &Ifb) -> Result<Option<Difference>, Error> {
        let what = || format!("link {}", want.name);
        Ok(match self.link(&want.name)? {
            None => Some(Difference::absent(what())),
            Some(seen) if seen.is_ifb() => None,
            Some(seen) => {
                let kind = seen.kind.unwrap_or_default();
                Some(Difference::of(format!("kind of {}", want.name), kind, "ifb"))
            }
        })
    }

    fn redirect_difference(&mut self, want: &Redirect) -> Result<Option<Difference>, Error> {
        let what = || format!("filter priority {} dev {}", want.priority, want.link);
        let (Some(ifindex), Some(through)) = (self.find(&want.link)?, self.find(&want.through)?) else {
            return Ok(Some(Difference::absent(what())));
        };
        self.only_filter(ifindex, side(want.side), want.priority, what(), &[tc::redirect_name(through)])
    }

    fn filter_difference(&mut self, want: &Filter) -> Result<Option<Difference>, Error> {
        let what = || format!("filter priority {} dev {}", want.priority, want.link);
        let Some(ifindex) = self.find(&want.link)? else {
            return Ok(Some(Difference::absent(what())));
        };
        self.only_filter(ifindex, tc::INGRESS, want.priority, what(), &acceptable(want.action))
    }

    /// There is one filter of this priority, and it does one of these things.
    fn only_filter(
        &mut self,
        ifindex: u32,
        side: u32,
        priority: u16,
        what: String,
        acceptable: &[String],
    ) -> Result<Option<Difference>, Error> {
        let mut seen = self.filters(ifindex, side)?;
        seen.retain(|f| f.priority == priority);
        Ok(match seen.iter().find(|f| !acceptable.contains(&f.what)) {
            None if seen.is_empty() => Some(Difference::absent(what)),
            None if seen.len() > 1 => Some(Difference::of(what, "several", &acceptable[0])),
            None => None,
            Some(other) => Some(Difference::of(what, &other.what, &acceptable[0])),
        })
    }

    fn tbf_difference(&mut self, want: &Tbf) -> Result<Option<Difference>, Error> {
        let what = || format!("qdisc of {}", want.link);
        let Some(ifindex) = self.find(&want.link)? else {
            return Ok(Some(Difference::absent(what())));
        };
        Ok(match self.root_qdisc(ifindex)? {
            None => Some(Difference::absent(what())),
            Some(seen) if seen.is(want) => None,
            Some(seen) => Some(Difference::of(what(), seen, tc::tbf_name(want))),
        })
    }

    /// Makes an object that is absent or different. What was seen stays.
    pub fn make(&mut self, object: &Object) -> Result<(), Error> {
        match object {
            Object::Veth(_) | Object::Card(_) | Object::Slave(_) => Ok(()),
            Object::HostSlave(want) => ipvlan::make_host(self, want),
            Object::Hook(want) => self.make_hook(want),
            Object::Link(want) => {
                let message = link::set_up(self.index(&want.name)?, want.mtu, None);
                self.act(message)
            }
            Object::Addr(want) => self.make_addr(want),
            Object::Route(want) => self.make_route(want),
            Object::Rule(want) => self.act(rule::add(want)),
            Object::Neigh(want) => {
                let message = neigh::replace(want.addr, want.mac, self.index(&want.link)?);
                self.act(message)
            }
            Object::Filter(want) => self.make_filter(want),
            Object::Tbf(want) => {
                let message = tc::set_tbf(self.index(&want.link)?, want);
                self.act(message)
            }
            Object::Ifb(want) => self.act(link::create_ifb(&want.name)),
            Object::Redirect(want) => self.make_redirect(want),
            Object::Sysctl(want) => sysctl::ensure(want),
            Object::Iptables(want) => iptables::add(want),
        }
    }

    fn make_addr(&mut self, want: &Addr) -> Result<(), Error> {
        let ifindex = self.index(&want.link)?;
        // IPv6 holds an address once per link whatever its prefix, and keeps the prefix that it has.
        let same = |a: &&AddrSeen| a.ifindex == ifindex && a.net.addr() == want.net.addr() && a.net.addr().is_ipv6();
        if let Some(old) = self.addrs()?.iter().find(same).map(|a| a.net) {
            self.act(addr::remove(old, ifindex))?;
        }
        self.act(addr::add(want.net, ifindex))
    }

    fn make_route(&mut self, want: &Route) -> Result<(), Error> {
        let ifindex = self.index(&want.link)?;
        let others = |r: &&RouteSeen| r.is_in_place_of(want) && !r.is(want, ifindex);
        let others: Vec<RouteSeen> = self.routes_to(want)?.iter().filter(others).cloned().collect();
        self.act(route::replace(want, ifindex))?;
        for other in others {
            // Most often the new route has taken the place of this one.
            absent_is_fine(self.act(route::remove(other.to, other.table, other.via, other.oif)))?;
        }
        Ok(())
    }

    fn make_filter(&mut self, want: &Filter) -> Result<(), Error> {
        let ifindex = self.make_place(&want.link, Side::Ingress, want.priority)?;
        let message = self.filter(want, ifindex)?;
        self.act(message)
    }

    fn make_hook(&mut self, want: &Hook) -> Result<(), Error> {
        let (ifindex, side) = (self.make_qdisc(&want.link, want.side)?, side(want.side));
        let message = self.hook(want, ifindex)?;
        match self.act(message) {
            // Something of another kind has the priority.
            Err(e) if e.errno() == Some(libc::EINVAL) => {
                absent_is_fine(self.act(tc::remove_filter(ifindex, side, want.priority)))?;
                let message = self.hook(want, ifindex)?;
                self.act(message)
            }
            hooked => hooked,
        }
    }

    fn hook(&mut self, want: &Hook, ifindex: u32) -> Result<Message, Error> {
        let (program, name) = self.hooks.open(want.program)?;
        Ok(tc::hook(ifindex, side(want.side), want.priority, program, &name, want.class.map(u32::from)))
    }

    fn hook_difference(&mut self, want: &Hook) -> Result<Option<Difference>, Error> {
        let what = || format!("filter priority {} dev {} {}", want.priority, want.link, want.side);
        let Some(ifindex) = self.find(&want.link)? else {
            return Ok(Some(Difference::absent(what())));
        };
        let name = tc::hook_name(&hooks::called(want.program)?, want.class.map(u32::from));
        self.only_filter(ifindex, side(want.side), want.priority, what(), &[name])
    }

    fn make_redirect(&mut self, want: &Redirect) -> Result<(), Error> {
        let through = self.index(&want.through)?;
        let ifindex = self.make_place(&want.link, want.side, want.priority)?;
        self.act(tc::add_redirect(ifindex, side(want.side), want.priority, through))
    }

    /// A filter on this link, whose index is answered, has its qdisc, and nobody is in its place.
    fn make_place(&mut self, link: &str, at: Side, priority: u16) -> Result<u32, Error> {
        let (ifindex, side) = (self.make_qdisc(link, at)?, side(at));
        if self.filters(ifindex, side)?.iter().any(|f| f.priority == priority) {
            absent_is_fine(self.act(tc::remove_filter(ifindex, side, priority)))?;
        }
        Ok(ifindex)
    }

    /// The link, whose index is answered, has what filters of this side hang on.
    fn make_qdisc(&mut self, link: &str, at: Side) -> Result<u32, Error> {
        let ifindex = self.index(link)?;
        self.add_qdisc(ifindex)?;
        // `ingress` takes what is for the other side too, and has it look at what arrives.
        if at == Side::Egress && self.qdiscs()?.iter().any(|q| q.ifindex == ifindex && q.kind == "ingress") {
            let lack = "holds no filters on what leaves, as clsact does from kernel 4.5 on";
            return Err(Error::refused(format!("the qdisc ingress of {link} {lack}: tc qdisc del dev {link} ingress")));
        }
        Ok(ifindex)
    }

    fn add_qdisc(&mut self, ifindex: u32) -> Result<(), Error> {
        // Kernels before 4.5 have no `clsact`.
        for kind in ["clsact", "ingress"] {
            match self.act(tc::add_qdisc(ifindex, kind)) {
                Err(e) if e.errno() == Some(libc::ENOENT) => {}
                Err(e) if e.errno() == Some(libc::EEXIST) => return Ok(()),
                result => {
                    self.seen.qdiscs = self.seen.qdiscs.take().filter(|_| kind == "clsact");
                    return result.context(|| format!("add qdisc {kind}"));
                }
            }
        }
        Err(Error::refused("the kernel has neither the qdisc clsact nor ingress"))
    }

    fn filter(&mut self, want: &Filter, ifindex: u32) -> Result<Message, Error> {
        Ok(match want.action {
            FilterAction::BpfMark(value, mask) => {
                let program = self.programs.mark(value, mask)?;
                tc::add_bpf(ifindex, want.priority, program, &tc::bpf_name(value, mask))
            }
            FilterAction::SkbeditMark(value, mask) => tc::add_skbedit(ifindex, want.priority, value, mask),
        })
    }

    /// Removes the object; its absence is success. What was there before us stays: links, and kernel parameters.
    pub fn remove(&mut self, object: &Object) -> Result<(), Error> {
        let removed = self.remove_there(object).context(|| format!("undo {object}"));
        self.forget();
        removed
    }

    fn remove_there(&mut self, object: &Object) -> Result<(), Error> {
        match object {
            Object::Rule(want) => return self.remove_rule(want),
            Object::Iptables(want) => return iptables::remove(want),
            _ => {}
        }
        let Some(link) = object.link() else { return Ok(()) };
        let Some(ifindex) = self.find(link)? else { return Ok(()) };
        match object {
            Object::Addr(a) => absent_is_fine(self.act(addr::remove(a.net, ifindex))),
            Object::Route(r) => {
                let table = r.table.unwrap_or(route::MAIN);
                absent_is_fine(self.act(route::remove(r.to, table, r.via, Some(ifindex))))
            }
            Object::Neigh(n) => absent_is_fine(self.act(neigh::remove(n.addr, ifindex))),
            Object::Filter(f) => self.remove_filter(ifindex, tc::INGRESS, f.priority),
            Object::Hook(h) => self.remove_filter(ifindex, side(h.side), h.priority),
            Object::HostSlave(s) if self.link(&s.name)?.is_some_and(|seen| seen.is_slave()) => {
                absent_is_fine(self.act(link::delete(ifindex)))
            }
            Object::Redirect(r) => self.remove_filter(ifindex, side(r.side), r.priority),
            Object::Ifb(i) if self.link(&i.name)?.is_some_and(|seen| seen.is_ifb()) => {
                absent_is_fine(self.act(link::delete(ifindex)))
            }
            Object::Tbf(_) => self.remove_tbf(ifindex),
            _ => Ok(()),
        }
    }

    /// All copies of it: kernels before 4.13 take a rule twice.
    pub fn remove_rule(&mut self, want: &Rule) -> Result<(), Error> {
        let copies = self.rules()?.iter().filter(|r| *r == want).count();
        for _ in 0..copies {
            absent_is_fine(self.act(rule::remove(want)))?;
        }
        self.seen.rules = None;
        Ok(())
    }

    /// Takes the qdisc along if nothing else is left on it.
    fn remove_filter(&mut self, ifindex: u32, side: u32, priority: u16) -> Result<(), Error> {
        if self.filters(ifindex, side)?.iter().any(|f| f.priority == priority) {
            absent_is_fine(self.act(tc::remove_filter(ifindex, side, priority)))?;
            let mut left = self.filters(ifindex, tc::INGRESS)?;
            left.extend(self.filters(ifindex, tc::EGRESS)?);
            if left.is_empty() {
                absent_is_fine(self.act(tc::remove_qdisc(ifindex)))?;
            }
        }
        Ok(())
    }

    /// A root qdisc that somebody else has put in its place stays.
    fn remove_tbf(&mut self, ifindex: u32) -> Result<(), Error> {
        if self.root_qdisc(ifindex)?.is_some_and(|seen| seen.handle == ours::TBF_HANDLE) {
            absent_is_fine(self.act(tc::remove_tbf(ifindex)))?;
        }
        Ok(())
    }

    pub fn link(&mut self, name: &str) -> Result<Option<LinkSeen>, Error> {
        if let Some(link) = self.seen.links.get(name) {
            return Ok(Some(link.clone()));
        }
        let body = match self.socket.act(link::get(name)) {
            Err(e) if e.errno() == Some(libc::ENODEV) => return Ok(None),
            answer => answer.context(|| format!("look at link {name}"))?,
        };
        let link = LinkSeen::parse(&body).ok_or_else(|| Error::malformed(format!("link {name} cannot be read")))?;
        self.seen.links.insert(name.to_string(), link.clone());
        Ok(Some(link))
    }

    /// Remembers a link that was seen by other means.
    pub fn note(&mut self, link: LinkSeen) {
        self.seen.links.insert(link.name.clone(), link);
    }

    fn find(&mut self, name: &str) -> Result<Option<u32>, Error> {
        Ok(self.link(name)?.map(|link| link.ifindex))
    }

    fn index(&mut self, name: &str) -> Result<u32, Error> {
        self.find(name)?.ok_or_else(|| Error::new(Cause::Absent).within(format!("link {name}")))
    }

    /// The index of a link that was made just now.
    pub fn index_of(&mut self, name: &str) -> Result<u32, Error> {
        match self.socket.index_of(name).context(|| format!("look for link {name}"))? {
            Some(ifindex) => Ok(ifindex),
            None => self.index(name),
        }
    }

    pub fn links(&mut self) -> Result<Vec<LinkSeen>, Error> {
        self.socket.list_with(link::list, LinkSeen::parse).context(|| "list links")
    }

    pub fn addrs(&mut self) -> Result<&[AddrSeen], Error> {
        if self.seen.addrs.is_none() {
            let addrs = self.socket.list(libc::RTM_GETADDR, &[0; 8], AddrSeen::parse);
            self.seen.addrs = Some(addrs.context(|| "list addresses")?);
        }
        Ok(self.seen.addrs.as_deref().unwrap_or_default())
    }

    /// The link has an address of the world that is none of these.
    pub fn bears_others(&mut self, ifindex: u32, addrs: &[IpAddr]) -> Result<bool, Error> {
        let is_other = |a: &AddrSeen| a.ifindex == ifindex && a.scope == 0 && !addrs.contains(&a.net.addr());
        Ok(self.addrs()?.iter().any(is_other))
    }

    /// All but what the kernel itself keeps in the table `local`, which is a few of each link.
    pub fn routes(&mut self) -> Result<&[RouteSeen], Error> {
        if self.seen.routes.is_none() {
            let read = |body: &[u8]| RouteSeen::parse(body).filter(|route| route.table != route::LOCAL);
            let mut routes = self.socket.list(libc::RTM_GETROUTE, &[0; 12], read).context(|| "list routes")?;
            // Those to one place stay in the order in which the kernel tries them.
            routes.sort_by_key(RouteSeen::key);
            self.seen.routes = Some(routes);
        }
        Ok(self.seen.routes.as_deref().unwrap_or_default())
    }

    /// The routes of a table, asked for now. All tables would be more than they are: of a place to which many routes lead
    /// (each link has one to ff00::/8) IPv6 begins anew whenever a route has changed meanwhile (`fib6_dump_table` in
    /// net/ipv6/ip6_fib.c), and while pods come and go it told of a hundred thousand.
    pub fn routes_in(&mut self, table: u32) -> Result<Vec<RouteSeen>, Error> {
        let read = |body: &[u8]| RouteSeen::parse(body).filter(|route| route.table == table);
        let mut routes = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            match self.socket.list_strictly(|| route::list(family, table), read) {
                // No such table, or no such family.
                Err(e) if matches!(e.errno(), Some(libc::ENOENT | libc::EOPNOTSUPP)) => {}
                listed => routes.extend(listed.context(|| format!("list routes of table {table}"))?),
            }
        }
        Ok(routes)
    }

    /// The routes of the wanted one's table to where it leads. A node has a thousand, and as many plans look for theirs.
    fn routes_to(&mut self, want: &Route) -> Result<&[RouteSeen], Error> {
        let key = (want.table.unwrap_or(route::MAIN), want.to);
        let routes = self.routes()?;
        let (from, to) = (routes.partition_point(|r| r.key() < key), routes.partition_point(|r| r.key() <= key));
        Ok(&routes[from..to])
    }

    pub fn rules(&mut self) -> Result<&[Rule], Error> {
        if self.seen.rules.is_none() {
            let bodies = self.list_rules()?;
            self.seen.rules = Some(bodies.iter().filter_map(|body| rule::parse(body)).collect());
        }
        Ok(self.seen.rules.as_deref().unwrap_or_default())
    }

    /// Rules as the kernel tells them, those too that say more than ours.
    pub fn list_rules(&mut self) -> Result<Vec<Vec<u8>>, Error> {
        self.socket.dump(libc::RTM_GETRULE, &[0; 12]).context(|| "list rules")
    }

    pub fn neighs(&mut self) -> Result<&[NeighSeen], Error> {
        if self.seen.neighs.is_none() {
            let neighs = self.socket.list(libc::RTM_GETNEIGH, &[0; 12], NeighSeen::parse);
            let mut neighs = neighs.context(|| "list neighbours")?;
            neighs.sort_by_key(NeighSeen::key);
            self.seen.neighs = Some(neighs);
        }
        Ok(self.seen.neighs.as_deref().unwrap_or_default())
    }

    /// The filters on one side of a link; none where there is no qdisc that could hold them.
    fn filters(&mut self, ifindex: u32, side: u32) -> Result<Vec<tc::FilterSeen>, Error> {
        match self.socket.list(libc::RTM_GETTFILTER, &tc::filters_of(ifindex, side), tc::FilterSeen::parse) {
            Err(e) if matches!(e.errno(), Some(libc::EINVAL | libc::ENOENT)) => Ok(Vec::new()),
            filters => filters.context(|| "list filters"),
        }
    }

    /// The seat that the filters of network policies on this link bear.
    pub fn seat(&mut self, link: &str) -> Result<Option<u16>, Error> {
        let Some(ifindex) = self.link(link)?.map(|link| link.ifindex) else { return Ok(None) };
        let filters = self.filters(ifindex, tc::EGRESS)?;
        let policy = filters.iter().find(|filter| filter.priority == ours::POLICY_PRIORITY);
        Ok(policy.and_then(tc::FilterSeen::class).and_then(|class| class.try_into().ok()))
    }

    fn qdiscs(&mut self) -> Result<&[QdiscSeen], Error> {
        if self.seen.qdiscs.is_none() {
            // A request for one of them is answered to everybody who listens, and to us only if we do.
            let qdiscs = self.socket.list(libc::RTM_GETQDISC, &[0; 20], QdiscSeen::parse);
            self.seen.qdiscs = Some(qdiscs.context(|| "list qdiscs")?);
        }
        Ok(self.seen.qdiscs.as_deref().unwrap_or_default())
    }

    fn root_qdisc(&mut self, ifindex: u32) -> Result<Option<&QdiscSeen>, Error> {
        Ok(self.qdiscs()?.iter().find(|q| q.is_root && q.ifindex == ifindex))
    }

    /// One request that changes something. What was seen stays: a chain of requests for one object rests on it.
    pub fn act(&mut self, message: Message) -> Result<(), Error> {
        self.socket.act(message).map(|_| ())
    }

    /// Requests that change something, in one send.
    pub fn change(&mut self, messages: Vec<Message>) -> Result<Vec<Outcome>, Error> {
        self.socket.batch(messages)
    }
}

/// Sets the kernel parameters among the objects of a new link, in the namespace of the calling thread.
pub(super) fn set(objects: &[&Object]) -> Result<(), Error> {
    let sysctls = objects.iter().filter_map(|object| if let Object::Sysctl(s) = object { Some(s) } else { None });
    sysctls.into_iter().try_for_each(sysctl::write)
}

/// What a link should be besides being there.
pub(super) fn shape_difference(seen: &LinkSeen, mtu: Option<u32>) -> Option<Difference> {
    let name = &seen.name;
    if let Some(mtu) = mtu.filter(|mtu| *mtu != seen.mtu) {
        return Some(Difference::of(format!("mtu of {name}"), seen.mtu, mtu));
    }
    (!seen.up).then(|| Difference::of(format!("state of {name}"), "down", "up"))
}

fn sysctl_difference(want: &Sysctl) -> Result<Option<Difference>, Error> {
    let seen = sysctl::read(&want.path)?.filter(|value| *value != want.value);
    Ok(seen.map(|seen| Difference::of(format!("sysctl {}", want.path), seen, &want.value)))
}

fn side(side: Side) -> u32 {
    match side {
        Side::Ingress => tc::INGRESS,
        Side::Egress => tc::EGRESS,
    }
}

/// What the kernel may say of a filter that does this.
fn acceptable(action: FilterAction) -> Vec<String> {
    match action {
        FilterAction::BpfMark(value, mask) => vec![tc::bpf_name(value, mask)],
        FilterAction::SkbeditMark(mark, mask) => {
            vec![tc::Skbedit { mark, mask: Some(mask) }.to_string(), tc::Skbedit { mark, mask: None }.to_string()]
        }
    }
}

/// What an object is called when it is not there.
fn label(object: &Object) -> String {
    let text = object.to_string();
    let words = text.split(' ').filter(|word| !matches!(*word, "ip" | "-6" | "add" | "replace"));
    words.collect::<Vec<_>>().join(" ")
}

/// Waits until the link takes packets. The kernel lets it a moment after the other end has come up, on a thread that may find
/// the network locked by others; packets are lost until then.
pub fn await_carrier(place: &mut Place, link: &str) -> Result<(), Error> {
    let start = Instant::now();
    loop {
        place.forget();
        let running = place.link(link)?.is_none_or(|link| link.running);
        if running || start.elapsed() > CARRIER_WAIT {
            return Ok(());
        }
        thread::sleep(CARRIER_POLL);
    }
}

/// Waits until the address takes packets. The kernel has a thread make an IPv6 address local that was added without a check
/// for duplicates; until then it sends from it, and takes what is sent to it for something to forward.
pub fn await_local(place: &mut Place, want: &Addr) -> Result<(), Error> {
    let (addr, start) = (want.net.addr(), Instant::now());
    let ifindex = place.index(&want.link)?;
    loop {
        // Before, there may be no route at all.
        let local = place.socket.act(route::get(addr, ifindex)).is_ok_and(|answer| route::is_local(&answer));
        if local || start.elapsed() > CARRIER_WAIT {
            return Ok(());
        }
        thread::sleep(CARRIER_POLL);
    }
}

pub(super) fn absent_is_fine(result: Result<(), Error>) -> Result<(), Error> {
    const ABSENT: [i32; 5] = [libc::ENODEV, libc::ENOENT, libc::ESRCH, libc::EADDRNOTAVAIL, libc::ENXIO];
    match result {
        Err(e) if e.errno().is_some_and(|errno| ABSENT.contains(&errno)) => Ok(()),
        result => result,
    }
}
