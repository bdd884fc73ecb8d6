//! `trace`: follows a packet of a pod by asking the kernel and the daemon, and names the step where it would stop.

mod node;
mod proxy;
mod step;
mod tables;
mod walk;

use std::net::{IpAddr, SocketAddr};

use argh::FromArgs;
use serde_json::json;

use super::face::{Answer, Code, Failure, Hue, paint};
use super::known::Known;
use super::policy::{end_and_port, pod, protocol};
use crate::rpc::{End, Lease};
use crate::rules::{ICMP, SCTP, TCP, UDP};
use step::{Halt, Step};
use walk::Walk;

/// Follow a packet of a pod of this node through Services (ours or kube-proxy's), policies, routes, neighbours, rules and filters, there
/// and back, and name the step where it would stop. Nothing is sent. Exits with 0 if it passes, 1 if it stops or nobody knows, 3 if terwayd does not answer
/// and nothing else stops it.
#[derive(FromArgs)]
#[argh(subcommand, name = "trace")]
pub struct Trace {
    /// NAMESPACE/POD
    #[argh(positional)]
    pod: String,
    /// NAMESPACE/POD or an address, with :PORT behind it ([ADDRESS]:PORT for IPv6), and then tcp, udp or sctp; the gateway of the pod's
    /// vSwitch where nothing is said
    #[argh(positional)]
    to: Vec<String>,
    /// print JSON
    #[argh(switch)]
    pub json: bool,
}

/// What is followed.
#[derive(Debug, Clone, Copy)]
pub struct Flow {
    pub from: IpAddr,
    pub to: IpAddr,
    pub protocol: u8,
    pub port: Option<u16>,
}

impl std::fmt::Display for Flow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let protocol = match self.protocol {
            TCP => "TCP".into(),
            UDP => "UDP".into(),
            SCTP => "SCTP".into(),
            ICMP => "ICMP".into(),
            other => format!("protocol {other}"),
        };
        match self.port {
            Some(port) => write!(f, "{} -> {} {protocol}", self.from, SocketAddr::new(self.to, port)),
            None => write!(f, "{} -> {} {protocol}", self.from, self.to),
        }
    }
}

impl Trace {
    pub fn answer(&self) -> Result<Answer, Failure> {
        let name = pod(&self.pod).map_err(Failure::usage)?;
        let said = self.said()?;
        let known = Known::look()?;
        let none = || Failure::new(Code::Found, format!("pod {name} has no lease on this node: terway-cli pods"));
        let lease = known.lease_of(&name).ok_or_else(none)?;
        let flow = flow(&known, lease, said)?;
        let mut walk = Walk::begin(&known, lease, flow)?;
        let passes = match walk.go() {
            Ok(()) => Some(true),
            Err(Halt::Stopped) => Some(false),
            Err(Halt::Unknown) => None,
            Err(Halt::Failed(failure)) => return Err(failure),
        };
        Ok(told(&known, lease, flow, &walk.steps, passes))
    }

    /// What the words after the pod say.
    fn said(&self) -> Result<Option<(End, Option<u16>, u8)>, Failure> {
        let (to, named) = match self.to.as_slice() {
            [] => return Ok(None),
            [to] => (to, None),
            [to, named] => (to, Some(protocol(named).map_err(Failure::usage)?)),
            _ => return Err(Failure::usage("trace takes a pod, where to, and a protocol at most")),
        };
        let (end, port) = end_and_port(to).map_err(Failure::usage)?;
        let default = if port.is_some() { TCP } else { ICMP };
        let protocol = named.unwrap_or(default);
        match (matches!(protocol, TCP | UDP | SCTP), port) {
            (true, None) => Err(Failure::usage(format!("{to} has no port; write {to}:PORT"))),
            (false, Some(_)) => Err(Failure::usage(format!("protocol {protocol} has no ports"))),
            _ => Ok(Some((end, port, protocol))),
        }
    }
}

/// Both ends in one family.
fn flow(known: &Known, lease: &Lease, said: Option<(End, Option<u16>, u8)>) -> Result<Flow, Failure> {
    let none = |what: String| Failure::new(Code::Found, what);
    let (targets, port, protocol): (Vec<IpAddr>, _, _) = match said {
        None => (lease.eni.gateway.iter().collect(), None, ICMP),
        Some((End::Address(addr), port, protocol)) => (vec![addr], port, protocol),
        Some((End::Pod(pod), port, protocol)) => {
            let other =
                known.lease_of(&pod).ok_or_else(|| none(format!("pod {pod} is not on this node: give its address")))?;
            (other.ip.iter().collect(), port, protocol)
        }
    };
    let pair = targets.iter().find_map(|to| Some((*to, lease.ip.iter().find(|ip| ip.is_ipv4() == to.is_ipv4())?)));
    let (to, from) = pair.ok_or_else(|| none(format!("pod {} has no address of that family", lease.pod)))?;
    Ok(Flow { from, to, protocol, port })
}

fn told(known: &Known, lease: &Lease, flow: Flow, steps: &[Step], passes: Option<bool>) -> Answer {
    let mut page = known.caveat() + &format!("{} {flow}\n", lease.pod);
    page.extend(steps.iter().map(Step::text));
    let last = steps.last().filter(|_| passes == Some(false));
    page += &match (passes, last) {
        (Some(false), Some(step)) => paint(Hue::Bad, &format!("it stops: {}: {}\n", step.place, step.what)),
        (None, _) => paint(Hue::Odd, "what becomes of it from there on is not known\n"),
        _ => paint(Hue::Good, "nothing on this node stops it\n"),
    };
    let json = json!({
        "pod": lease.pod.to_string(),
        "from": flow.from,
        "to": flow.to,
        "protocol": flow.protocol,
        "port": flow.port,
        "passes": passes,
        "stops_at": last.map(Step::json),
        "steps": steps.iter().map(Step::json).collect::<Vec<_>>(),
    });
    let code = match passes {
        Some(true) => known.code(),
        Some(false) => Code::Found,
        None => known.judged(false),
    };
    Answer { page, json, code }
}
