//! `monitor`: packets that network policies drop, as they come, with the names of pods and who said so.

use std::collections::HashMap;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use argh::FromArgs;
use serde_json::{Value, json};

use super::face::{Code, complain};
use super::known;
use crate::error::{Context, Error};
use crate::kernel::bpf::monitor;
use crate::ours;
use crate::rpc::{End, Request, Why};
use crate::rules::{Direction, ICMP, ICMPV6, SCTP, TCP, UDP};
use crate::verdict::{self, Event};

/// What the daemon has said of a flow is believed for so long.
const BELIEVED: Duration = Duration::from_secs(2);
const WAKE: Duration = Duration::from_millis(500);
/// So many flows are one question, which has to fit into a line.
const AT_ONCE: usize = 500;

/// Shows packets that network policies drop, as they come; one at a time can listen on a node.
#[derive(FromArgs)]
#[argh(subcommand, name = "monitor")]
pub struct Monitor {
    /// every answer of the rules, not only what is dropped
    #[argh(switch)]
    verdicts: bool,
    /// print JSON, an object a line
    #[argh(switch)]
    json: bool,
}

/// What the daemon says of the two ends of a flow.
#[derive(Debug, Clone, Default)]
struct Said {
    src: Option<String>,
    dst: Option<String>,
    by: Option<String>,
}

type Flow = (IpAddr, IpAddr, u8, u16, Direction);

impl Monitor {
    pub fn run(&self) -> ExitCode {
        match self.stream() {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => complain(e, Code::Found),
        }
    }

    /// Until nobody reads any more.
    fn stream(&self) -> Result<(), Error> {
        let doing = || "listen to what network policies by eBPF do (those by iptables tell nobody)";
        let mut monitor = monitor::Monitor::open(Path::new(ours::BPF_ROOT), self.verdicts).context(doing)?;
        let mut known: HashMap<Flow, Said> = HashMap::new();
        let mut since = Instant::now();
        loop {
            monitor.wait(WAKE);
            if since.elapsed() > BELIEVED {
                known.clear();
                since = Instant::now();
            }
            let mut events = Vec::new();
            let lost = monitor.read(|event| events.push(event));
            learn(&events, &mut known);
            let mut text = String::new();
            for event in &events {
                let said = known.entry(flow(event)).or_default();
                text += &if self.json { format!("{}\n", object(event, said)) } else { line(event, said) };
            }
            if lost > 0 {
                text += &if self.json {
                    format!("{}\n", json!({"lost": lost}))
                } else {
                    format!("{lost} more were lost\n")
                };
            }
            let mut out = std::io::stdout();
            if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
                return Ok(());
            }
        }
    }
}

/// Source and destination of the packet.
fn ends(event: &Event) -> (IpAddr, IpAddr) {
    match event.direction {
        Direction::Ingress => (event.other, event.own),
        Direction::Egress => (event.own, event.other),
    }
}

/// Of source and destination; of ICMP 0, and type and code.
fn ports(event: &Event) -> (u16, u16) {
    let (own, other) = event.ports;
    match event.direction {
        Direction::Ingress if has_ports(event.protocol) => (other, own),
        _ => (own, other),
    }
}

fn flow(event: &Event) -> Flow {
    let (src, dst) = ends(event);
    (src, dst, event.protocol, ports(event).1, event.direction)
}

/// Has the daemon say what it knows of flows that are new, all at once: it answers between two ADDs. Without a daemon there are
/// addresses.
fn learn(events: &[Event], known: &mut HashMap<Flow, Said>) {
    let new: HashMap<Flow, &Event> =
        events.iter().map(|event| (flow(event), event)).filter(|(flow, _)| !known.contains_key(flow)).collect();
    let new: Vec<(Flow, &Event)> = new.into_iter().collect();
    for some in new.chunks(AT_ONCE) {
        let Ok(answer) = known::ask(&Request::Whys(some.iter().map(|(_, event)| question(event)).collect())) else {
            return;
        };
        let answers = answer.as_array().into_iter().flatten();
        known.extend(some.iter().zip(answers).map(|((flow, event), answer)| (*flow, said(event, answer))));
    }
}

fn question(event: &Event) -> Why {
    let (src, dst) = ends(event);
    Why { src: End::Address(src), dst: End::Address(dst), protocol: event.protocol, ports: Some(ports(event)) }
}

fn said(event: &Event, answer: &Value) -> Said {
    let text = |value: &Value| value.as_str().map(String::from);
    let side = match event.direction {
        Direction::Ingress => &answer["ingress"],
        Direction::Egress => &answer["egress"],
    };
    Said { src: text(&answer["src_pod"]), dst: text(&answer["dst_pod"]), by: text(&side["by"]) }
}

fn verdict(event: &Event) -> &'static str {
    match (event.why.is_drop(), event.log) {
        (true, _) => "drop",
        (false, true) => "log",
        (false, false) => "pass",
    }
}

/// What it was by, for which the rules are asked only where they decided.
fn reason(event: &Event, said: &Said) -> String {
    let by_rules = matches!(event.why, verdict::Why::Rules | verdict::Why::Passed | verdict::Why::Flow);
    match said.by.as_ref().filter(|_| by_rules) {
        Some(by) => format!("{}: {by}", event.why.label()),
        None => event.why.label().into(),
    }
}

fn line(event: &Event, said: &Said) -> String {
    let (src, dst) = ends(event);
    let way = if event.direction == Direction::Ingress { "to pod" } else { "from pod" };
    let end = |addr: IpAddr, port: u16, name: &Option<String>| {
        let at = if has_ports(event.protocol) { SocketAddr::new(addr, port).to_string() } else { addr.to_string() };
        name.as_ref().map_or(at.clone(), |name| format!("{name} ({at})"))
    };
    let (from, to) = (end(src, ports(event).0, &said.src), end(dst, ports(event).1, &said.dst));
    format!("{} {way}: {from} -> {to} {}, {}\n", verdict(event), protocol(event), reason(event, said))
}

fn has_ports(protocol: u8) -> bool {
    matches!(protocol, TCP | UDP | SCTP)
}

fn protocol(event: &Event) -> String {
    match event.protocol {
        TCP => "TCP".into(),
        UDP => "UDP".into(),
        SCTP => "SCTP".into(),
        ICMP | ICMPV6 => format!("ICMP type {} code {}", event.ports.1 >> 8, event.ports.1 & 0xff),
        other => format!("protocol {other}"),
    }
}

fn object(event: &Event, said: &Said) -> Value {
    let (src, dst) = ends(event);
    json!({
        "verdict": verdict(event),
        "direction": if event.direction == Direction::Ingress { "ingress" } else { "egress" },
        "reason": event.why.label(),
        "by": said.by,
        "src": src,
        "dst": dst,
        "src_pod": said.src,
        "dst_pod": said.dst,
        "protocol": event.protocol,
        "src_port": ports(event).0,
        "dst_port": ports(event).1,
        "seat": event.seat,
        "class": event.class,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_a_line_with_names_as_far_as_they_are_known() {
        let mut event = Event {
            seat: 3,
            direction: Direction::Ingress,
            why: verdict::Why::Rules,
            protocol: TCP,
            log: false,
            own: "10.0.0.5".parse().unwrap(),
            other: "10.0.0.9".parse().unwrap(),
            ports: (80, 40_000),
            class: 1,
            program: 2,
        };
        let said = Said { src: None, dst: Some("shop/web".into()), by: Some("networkpolicy shop/web rule 1".into()) };
        assert_eq!(
            line(&event, &said),
            "drop to pod: 10.0.0.9:40000 -> shop/web (10.0.0.5:80) TCP, policy: networkpolicy shop/web rule 1\n"
        );
        event =
            Event { direction: Direction::Egress, why: verdict::Why::Seat, protocol: ICMP, ports: (0, 0x800), ..event };
        assert_eq!(
            line(&event, &Said::default()),
            "drop from pod: 10.0.0.5 -> 10.0.0.9 ICMP type 8 code 0, unknown_pod\n"
        );
        assert_eq!(object(&event, &said)["dst"], "10.0.0.9");
    }
}
