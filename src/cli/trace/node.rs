//! The way of a packet through the node, and of its answer back to the pod.

use std::net::IpAddr;

use super::super::compare;
use super::step::Halt;
use super::walk::{MEND, Onward, Walk, way};
use crate::kernel::{Packet, Way};
use crate::ours;
use crate::plan::{Object, Plan};
use crate::rpc::{Lease, Marker, Wiring};

/// Where a packet is going.
enum Goal<'a> {
    /// A pod of this node, and the link that leads to it.
    Pod(&'a Lease, String),
    Node,
    Outside,
}

impl<'a> Walk<'a> {
    pub fn through_node(&mut self) -> Onward {
        let plan = self.plan(self.lease);
        self.all("node", None, plan.host.iter().filter(|object| !leads_in(object)))?;
        let node = compare::node(self.known);
        self.all("node", None, node.host.iter())?;
        let (to, mark) = (self.flow.to, mark(self.lease));
        let veth = outer(&plan);
        match self.goal()? {
            Goal::Pod(other, link) => self.at_pod(other, &veth, &link),
            Goal::Node => {
                self.goes(to, Some(self.flow.from), &veth, mark, None)?;
                self.back("")
            }
            Goal::Outside => self.out(&veth, mark),
        }
    }

    pub fn plan(&self, lease: &Lease) -> Plan {
        compare::pod_plan(self.known, lease, &self.links)
    }

    fn goal(&mut self) -> Result<Goal<'a>, Halt> {
        let to = self.flow.to;
        if let Some(other) = self.known.lease_at(to) {
            let link = route_to(&self.plan(other), to);
            return Ok(link.map_or(Goal::Outside, |link| Goal::Pod(other, link)));
        }
        let own = self.kernel.addrs()?.iter().any(|addr| addr.net.addr() == to);
        Ok(if own { Goal::Node } else { Goal::Outside })
    }

    /// To another pod of this node (or the same), and back from there.
    fn at_pod(&mut self, other: &'a Lease, veth: &str, link: &str) -> Onward {
        let plan = self.plan(other);
        self.all("node", None, plan.host.iter().filter(|object| leads_in(object)))?;
        self.goes(self.flow.to, Some(self.flow.from), veth, mark(self.lease), Some(link))?;
        if std::ptr::eq(other, self.lease) {
            return Ok(());
        }
        self.all("node", None, plan.host.iter().filter(|object| !leads_in(object)))?;
        self.leave(other, self.flow.from)?;
        match other.wiring {
            Wiring::Shared => self.back(&outer(&plan)),
            _ => self.back(""),
        }
    }

    /// From the node's slave of an ENI to a pod with a veth, and back from there.
    pub fn by_slave_to(&mut self, other: &'a Lease, slave: &str) -> Onward {
        let link = route_to(&self.plan(other), self.flow.to).unwrap_or_default();
        self.at_pod(other, slave, &link)
    }

    /// By the pod's ENI, and back from the VPC.
    fn out(&mut self, veth: &str, mark: u32) -> Onward {
        let eni = self.known.enis.get(&self.lease.eni.id).unwrap_or(&self.lease.eni);
        let Some(plan) = compare::eni_plan(self.known, eni, &self.links).filter(|_| !self.lease.is_whole()) else {
            // A pod with an ENI of its own sends by the node what is for the node's sake alone.
            self.goes(self.flow.to, Some(self.flow.from), veth, mark, None)?;
            return self.back("");
        };
        self.all("node", None, plan.host.iter())?;
        let link = self.links.iter().find(|link| link.is_eni(eni.mac)).cloned();
        let name = link.as_ref().map(|link| link.name.clone()).unwrap_or_default();
        self.goes(self.flow.to, Some(self.flow.from), veth, mark, Some(&name))?;
        let gateway = eni.gateway.iter().find(|addr| addr.is_ipv4() == self.flow.to.is_ipv4());
        if let (Some(link), Some(gateway)) = (link, gateway)
            && self.kernel.is_unanswered(link.ifindex, gateway)?
        {
            let remedy = "see whether the ENI is attached: terway-cli metadata; and whether its vSwitch is the one terway-cli enis shows";
            return self.stop("node", format!("neighbour {gateway} dev {name}"), "the gateway does not answer", remedy);
        }
        self.pass("node", format!("leaves by ENI {} ({name})", eni.id));
        self.back(&name)
    }

    /// The answer, from the node itself (no link) or in by this link, is led to the pod.
    fn back(&mut self, iif: &str) -> Onward {
        let plan = self.plan(self.lease);
        let (pod, far) = (self.flow.from, self.flow.to);
        let Some(link) = route_to(&plan, pod) else { return Ok(()) };
        self.all("back", None, plan.host.iter().filter(|object| leads_in(object)))?;
        let mark = self.known.lease_at(far).map_or(0, mark);
        let from = if iif.is_empty() { None } else { Some(far) };
        self.step_of_way("back", pod, from, iif, mark, Some(&link))
    }

    fn goes(&mut self, to: IpAddr, from: Option<IpAddr>, iif: &str, mark: u32, link: Option<&str>) -> Onward {
        self.step_of_way("node", to, from, iif, mark, link)?;
        self.filtered(iif, link)
    }

    /// The kernel's own word on what our objects are for: whatever others have put before them shows here.
    fn step_of_way(
        &mut self,
        place: &'static str,
        to: IpAddr,
        from: Option<IpAddr>,
        iif: &str,
        mark: u32,
        want: Option<&str>,
    ) -> Onward {
        let index = self.links.iter().find(|link| link.name == iif).map(|link| link.ifindex);
        let what = format!("route to {to}{}", if iif.is_empty() { String::new() } else { format!(" from {iif}") });
        let foreign = "a rule or route of somebody else goes before ours: ip rule; ip route show table all";
        match self.kernel.way(&Packet { to, from, iif: index, mark }) {
            Ok(Way::Here) if want.is_none() => self.pass(place, format!("{what}: it is the node's own")),
            Ok(Way::Here) => return self.stop(place, what, "the node takes it for its own", foreign),
            Ok(Way::Out { link, via, table }) => {
                let way = format!("{} table {table}", way(&link, via));
                match want {
                    Some(want) if want != link => {
                        return self.stop(place, what, format!("it leads {way}, not dev {want}"), foreign);
                    }
                    _ => self.pass(place, format!("{what}: {way}")),
                }
            }
            Err(e) if matches!(e.errno(), Some(libc::EXDEV | libc::EINVAL)) && filters_back(iif) => {
                let remedy = format!("sysctl -w net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.{iif}.rp_filter=0");
                return self.stop(place, what, "the reverse path filter (rp_filter) drops it", &remedy);
            }
            Err(e) => return self.stop(place, what, e.to_string(), MEND),
        }
        Ok(())
    }
}

/// The way back to the sender is held against the link: kernels say EXDEV or EINVAL of what that drops.
fn filters_back(link: &str) -> bool {
    let value = |of: &str| std::fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{of}/rp_filter"));
    ["all", link].iter().any(|of| value(of).is_ok_and(|value| value.trim() != "0"))
}

/// Of what the node has for a pod, that which leads to it.
fn leads_in(object: &Object) -> bool {
    matches!(object, Object::Route(_) | Object::Neigh(_) | Object::Addr(_))
}

/// The node's end of a veth.
pub fn outer(plan: &Plan) -> String {
    let veth = plan.host.iter().find_map(|object| match object {
        Object::Veth(veth) => Some(veth.name.clone()),
        _ => None,
    });
    veth.unwrap_or_default()
}

/// The link by which the node reaches this address of a pod.
fn route_to(plan: &Plan, addr: IpAddr) -> Option<String> {
    plan.host.iter().find_map(|object| match object {
        Object::Route(route) if route.to.addr() == addr => Some(route.link.clone()),
        _ => None,
    })
}

/// What the pod's packets bear once they are on the node.
pub fn mark(lease: &Lease) -> u32 {
    match (&lease.wiring, lease.marker) {
        (Wiring::Whole(_), _) => ours::NODE_MARK,
        (_, Marker::Rule) | (Wiring::Ipvlan(_), _) => 0,
        _ => ours::mark(lease.eni.slot),
    }
}
