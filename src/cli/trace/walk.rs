//! The way from the pod: Services, policies, the pod's own namespace; then [`super::node`].

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::rc::Rc;

use super::super::compare;
use super::super::face::{Code, Failure};
use super::super::known::{self, Known, ask};
use super::super::led;
use super::super::policy::{PING, SOME_PORT};
use super::super::status::{list, text};
use super::Flow;
use super::step::{Halt, Need, Outcome, Step, concerns, need};
use super::tables::Tables;
use crate::error::Error;
use crate::kernel::{Kernel, LinkSeen, Packet, Way};
use crate::maps::Proto;
use crate::ours;
use crate::plan::{Family, Object, Plan};
use crate::rpc::{End, Lease, Request, Why, Wiring};
use crate::rules::{ICMP, SCTP, TCP, UDP};

pub struct Walk<'a> {
    pub known: &'a Known,
    pub lease: &'a Lease,
    pub flow: Flow,
    pub kernel: Kernel,
    pub links: Vec<LinkSeen>,
    pub steps: Vec<Step>,
    /// What netfilter holds, once it was asked.
    pub tables: Option<Rc<Tables>>,
}

/// What to do about something of ours that is gone.
pub const MEND: &str = "terwayd puts it back within a minute (inside of pods within five); if it goes again, see who takes it: \
                        journalctl -u terwayd";

pub type Onward = Result<(), Halt>;

impl<'a> Walk<'a> {
    pub fn begin(known: &'a Known, lease: &'a Lease, flow: Flow) -> Result<Walk<'a>, Error> {
        let mut kernel = Kernel::host()?;
        let links = kernel.links()?;
        Ok(Walk { known, lease, flow, kernel, links, steps: Vec::new(), tables: None })
    }

    pub fn go(&mut self) -> Onward {
        self.resolve()?;
        self.judge()?;
        let link = self.leave(self.lease, self.flow.to)?;
        match &self.lease.wiring {
            Wiring::Shared => self.through_node(),
            Wiring::Whole(_) if link == self.lease.sandbox.attachment.ifname => {
                self.pass("pod", format!("leaves by its own ENI {}", self.lease.eni.id));
                Ok(())
            }
            Wiring::Whole(_) => self.through_node(),
            Wiring::Ipvlan(_) => self.by_slave(),
        }
    }

    pub fn family(&self) -> Family {
        Family::of(&self.flow.to)
    }

    pub fn pass(&mut self, place: &'static str, what: impl Into<String>) {
        self.steps.push(Step { place, what: what.into(), outcome: Outcome::Passes });
    }

    pub fn note(&mut self, place: &'static str, what: impl Into<String>, note: impl Into<String>) {
        self.steps.push(Step { place, what: what.into(), outcome: Outcome::Noted(note.into()) });
    }

    pub fn stop(
        &mut self,
        place: &'static str,
        what: impl Into<String>,
        why: impl Into<String>,
        remedy: &str,
    ) -> Onward {
        let outcome = Outcome::Stops { why: why.into(), remedy: remedy.into() };
        self.steps.push(Step { place, what: what.into(), outcome });
        Err(Halt::Stopped)
    }

    /// Goes on where all objects that carry packets are there; of those that judge them, a person should know.
    pub fn all<'o>(
        &mut self,
        place: &'static str,
        netns: Option<&Path>,
        objects: impl Iterator<Item = &'o Object>,
    ) -> Onward {
        let family = self.family();
        for object in objects.filter(|object| concerns(object, family)) {
            self.object(place, netns, object)?;
        }
        Ok(())
    }

    fn object(&mut self, place: &'static str, netns: Option<&Path>, object: &Object) -> Onward {
        let need = need(object);
        if need == Need::Aside {
            return Ok(());
        }
        let one = vec![object.clone()];
        let plan = match netns {
            Some(_) => Plan { host: Vec::new(), pod: one },
            None => Plan { host: one, pod: Vec::new() },
        };
        let found = match self.kernel.survey(&plan, netns) {
            Ok(found) => found,
            Err(e) => return self.stop(place, object.to_string(), e.to_string(), MEND),
        };
        match (found.first(), need) {
            (None, _) => self.pass(place, object.to_string()),
            (Some(difference), Need::Judges) => {
                self.note(place, object.to_string(), format!("{difference}: policies do not see this packet here"));
            }
            (Some(difference), _) => return self.stop(place, object.to_string(), difference.to_string(), MEND),
        }
        Ok(())
    }

    /// Where the Service leads to, if it goes to one.
    fn resolve(&mut self) -> Onward {
        let is_service = self.is_service();
        let Some(port) = self.flow.port else {
            return match is_service {
                true => self.stop(
                    "Services",
                    self.flow.to.to_string(),
                    "a Service answers no ping",
                    "name its port: ADDRESS:PORT",
                ),
                false => Ok(()),
            };
        };
        let protocol = match self.flow.protocol {
            TCP => "TCP",
            UDP => "UDP",
            _ => "SCTP",
        };
        let address = format!("{}/{protocol}", SocketAddr::new(self.flow.to, port));
        let named = match self.node_port(port)? {
            Some(named) => named,
            None => address.clone(),
        };
        let shown = match led::look(&named) {
            Ok((shown, _)) => shown,
            Err(failure) => return self.unresolved(&address, is_service, &failure),
        };
        let Some(service) = list(&shown["services"]).find(|service| text(service, "address") == named) else {
            return self.unnamed(&address, is_service);
        };
        let name = Some(text(service, "service")).filter(|name| !name.is_empty()).unwrap_or_else(|| "a Service".into());
        let (name, count) = (name, service["count"].as_u64().unwrap_or_default());
        let endpoint = list(&service["endpoints"]).next().and_then(|e| e.as_str()?.parse::<SocketAddr>().ok());
        let Some(endpoint) = endpoint else {
            let remedy = "see whether its selector finds pods that are ready: kubectl get endpointslices";
            return self.stop(
                "Services",
                format!("{address} of {name}"),
                "it has no endpoints: refused at once",
                remedy,
            );
        };
        self.pass("Services", format!("{address} of {name} leads to {count} endpoints, such as {endpoint}"));
        (self.flow.to, self.flow.port) = (endpoint.ip(), Some(endpoint.port()));
        Ok(())
    }

    /// By which name Services that are ours have this port, where it is a node's.
    fn node_port(&mut self, port: u16) -> Result<Option<String>, Halt> {
        let protocol = match self.flow.protocol {
            TCP => Proto::Tcp,
            UDP => Proto::Udp,
            _ => return Ok(None),
        };
        let Some((name, is_theirs)) = led::node_port(self.flow.to, port, protocol) else { return Ok(None) };
        if is_theirs {
            let note = "externalTrafficPolicy is Local: the other node answers for itself, by its kube-proxy";
            self.note("Services", format!("{name} at {}", self.flow.to), note);
            return Ok(None);
        }
        Ok(Some(name))
    }

    fn is_service(&self) -> bool {
        self.known.service_nets().iter().any(|net| net.contains(&self.flow.to))
    }

    /// We lead Services, and none has this address: what kube-proxy does about packets for it counts, if it is there.
    fn unnamed(&mut self, address: &str, is_service: bool) -> Onward {
        if is_service {
            return self.stop("Services", address, "no Service has this address and port", "terway-cli services");
        }
        self.by_proxy(address, false, true)
    }

    /// Where we lead none, kube-proxy does. A daemon that is silent and has left no maps leads none either; one that does not know all
    /// Services yet may lead this one tomorrow.
    fn unresolved(&mut self, address: &str, is_service: bool, failure: &Failure) -> Onward {
        let is_silent = failure.code == Code::NoDaemon;
        if is_silent {
            self.note("Services", address, format!("not asked of terwayd, which does not answer; {}", known::LOOK));
        }
        let are_others = is_silent || self.known.shown["services"].is_null();
        if !are_others {
            self.note("Services", address, failure.why.clone());
        }
        self.by_proxy(address, is_service, are_others)
    }

    fn judge(&mut self) -> Onward {
        let Flow { from, to, protocol, port } = self.flow;
        let ports = match protocol {
            TCP | UDP | SCTP => port.map(|port| (SOME_PORT, port)),
            ICMP => Some((0, PING)),
            _ => None,
        };
        let why = Why { src: End::Address(from), dst: End::Address(to), protocol, ports };
        let answer = match ask(&Request::Why(why)) {
            Ok(answer) => answer,
            Err(Failure { code: Code::NoDaemon, .. }) => {
                self.note("policy", "not asked", "terwayd does not answer");
                return Ok(());
            }
            Err(Failure { why, .. }) => {
                self.note("policy", "not asked", why);
                return Ok(());
            }
        };
        for side in ["egress", "ingress"] {
            let said = &answer[side];
            if said["allow"] == false {
                let remedy = "terway-cli policy show NAMESPACE/POD shows all rules; change the one that is named";
                return self.stop("policy", format!("{side} of pod {}", text(said, "pod")), text(said, "by"), remedy);
            }
            if said["allow"] == true {
                self.pass("policy", format!("{side} of pod {}: {}", text(said, "pod"), text(said, "by")));
            }
        }
        if let Some(lack) = answer["lack"].as_str().filter(|_| answer["allow"] != false) {
            self.note("policy", "by what is known", lack);
        }
        if answer["allow"] == false {
            return self.stop("policy", "not all is known", text(&answer, "lack"), "terway-cli show, under policies");
        }
        Ok(())
    }

    /// Out of the pod's namespace; the link that it leaves by.
    pub fn leave(&mut self, lease: &Lease, to: IpAddr) -> Result<String, Halt> {
        let netns = lease.sandbox.netns.clone();
        if let Err(e) = self.kernel.enter(&netns) {
            self.stop("pod", format!("pod {}", lease.pod), e.to_string(), "its sandbox is gone: delete the pod")?;
        }
        let plan = compare::pod_plan(self.known, lease, &self.links);
        self.all("pod", Some(&netns), plan.pod.iter())?;
        let from = lease.ip.iter().find(|ip| ip.is_ipv4() == to.is_ipv4());
        match self.kernel.way_inside(&netns, &Packet { to, from, iif: None, mark: 0 }) {
            Ok(Way::Out { link, via, .. }) => {
                self.pass("pod", format!("route to {to}: {}", way(&link, via)));
                Ok(link)
            }
            Ok(Way::Here) => {
                self.stop("pod", format!("route to {to}"), "it is the pod's own address", "nothing")?;
                Ok(String::new())
            }
            Err(e) => {
                let remedy = "see what has changed the routes of the pod: nsenter --net=NETNS ip route";
                self.stop("pod", format!("route to {to}"), e.to_string(), remedy)?;
                Ok(String::new())
            }
        }
    }

    /// A slave sends by its ENI, whose programs lead to the node or to another slave what is for them.
    fn by_slave(&mut self) -> Onward {
        let (known, lease, to) = (self.known, self.lease, self.flow.to);
        let eni = known.enis.get(&lease.eni.id).unwrap_or(&lease.eni);
        let link = self.links.iter().find(|link| link.is_eni(eni.mac)).cloned();
        let Some((plan, link)) = compare::eni_plan(known, eni, &self.links).zip(link) else {
            return self.stop("node", format!("ENI {}", eni.id), "it has no link here", "terway-cli enis");
        };
        self.all("node", None, plan.host.iter())?;
        let slave = ours::host_slave(link.ifindex);
        match known.lease_at(to) {
            Some(other) if other.is_slave() && other.eni.id == lease.eni.id => {
                self.pass("node", format!("the driver hands it to the slave of pod {}", other.pod));
                self.leave(other, self.flow.from).map(|_| ())
            }
            Some(other) if other.is_slave() => {
                self.pass(
                    "node",
                    format!("terway_leaving leads it to the slave of pod {} on {}", other.pod, other.eni.id),
                );
                self.leave(other, self.flow.from).map(|_| ())
            }
            Some(other) => {
                self.pass("node", format!("terway_leaving leads it to {slave}"));
                self.by_slave_to(other, &slave)
            }
            None if self.kernel.addrs()?.iter().any(|addr| addr.net.addr() == to) => {
                self.pass("node", format!("it comes to the node by {slave}"));
                self.filtered(&slave, None)
            }
            None => {
                self.pass("node", format!("leaves by ENI {} ({})", eni.id, link.name));
                Ok(())
            }
        }
    }
}

/// As ip(8) says it.
pub fn way(link: &str, via: Option<IpAddr>) -> String {
    via.map_or_else(|| format!("dev {link}"), |via| format!("via {via} dev {link}"))
}
