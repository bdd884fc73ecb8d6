//! What network policies do to a pod, by the running daemon's word: its rules, and whether a packet passes.

use std::net::{IpAddr, SocketAddr};

use argh::FromArgs;
use serde_json::Value;

use super::face::{Answer, Failure};
use super::known::ask;
use crate::pod::PodName;
use crate::rpc::{End, Request, Why};
use crate::rules::{ICMP, SCTP, TCP, UDP};

/// A packet of a protocol with ports comes from somewhere; rules about source ports are rare.
pub const SOME_PORT: u16 = 40_000;
/// An echo request: type 8, code 0.
pub const PING: u16 = 8 << 8;

/// What network policies do to pods of this node.
#[derive(FromArgs)]
#[argh(subcommand, name = "policy")]
pub struct Policy {
    #[argh(subcommand)]
    verb: Verb,
}

#[derive(FromArgs)]
#[argh(subcommand)]
enum Verb {
    Why(AskWhy),
    Show(AskRules),
}

/// Whether a packet passes, and which policy says so, by the rules of both sides as far as they are pods of this node. Exits with 0 if
/// it passes, 1 if it is dropped, 3 if terwayd does not answer.
#[derive(FromArgs)]
#[argh(subcommand, name = "why")]
struct AskWhy {
    /// NAMESPACE/POD or an address
    #[argh(positional)]
    src: String,
    /// NAMESPACE/POD or an address, with :PORT behind it ([ADDRESS]:PORT for IPv6)
    #[argh(positional)]
    dst: String,
    /// tcp (where there is a port), udp, sctp, icmp (where there is none), or a protocol's number
    #[argh(positional)]
    protocol: Option<String>,
    /// print JSON
    #[argh(switch)]
    json: bool,
}

/// The rules of a pod, in the order in which they are asked.
#[derive(FromArgs)]
#[argh(subcommand, name = "show")]
struct AskRules {
    /// NAMESPACE/POD
    #[argh(positional)]
    pod: String,
    /// print JSON
    #[argh(switch)]
    json: bool,
}

impl Policy {
    pub fn answer(&self) -> Result<Answer, Failure> {
        let request = match &self.verb {
            Verb::Why(ask) => Request::Why(ask.read().map_err(Failure::usage)?),
            Verb::Show(ask) => Request::Rules { pod: pod(&ask.pod).map_err(Failure::usage)? },
        };
        let mut answer = ask(&request)?;
        let text = answer.as_object_mut().and_then(|answer| answer.remove("text"));
        let page = text.as_ref().and_then(Value::as_str).unwrap_or_default().to_string();
        Ok(Answer::found(answer["allow"] != false, page, answer))
    }

    pub fn json(&self) -> bool {
        match &self.verb {
            Verb::Why(ask) => ask.json,
            Verb::Show(ask) => ask.json,
        }
    }
}

impl AskWhy {
    fn read(&self) -> Result<Why, String> {
        let (dst, port) = end_and_port(&self.dst)?;
        let protocol = match (self.protocol.as_deref(), port) {
            (None, Some(_)) => TCP,
            (None, None) => ICMP,
            (Some(name), _) => protocol(name)?,
        };
        let ports = match (protocol, port) {
            (TCP | UDP | SCTP, Some(port)) => Some((SOME_PORT, port)),
            (TCP | UDP | SCTP, None) => return Err(format!("{} has no port; write {}:PORT", self.dst, self.dst)),
            (_, Some(port)) => return Err(format!("protocol {protocol} has no ports; leave :{port} out")),
            (ICMP, None) => Some((0, PING)),
            (_, None) => None,
        };
        Ok(Why { src: end(&self.src)?, dst, protocol, ports })
    }
}

pub fn protocol(name: &str) -> Result<u8, String> {
    match name.to_ascii_lowercase().as_str() {
        "tcp" => Ok(TCP),
        "udp" => Ok(UDP),
        "sctp" => Ok(SCTP),
        "icmp" => Ok(ICMP),
        number => number.parse().map_err(|_| format!("{name:?} is none of tcp, udp, sctp, icmp, and no number to 255")),
    }
}

/// An address, or a pod by its name.
fn end(text: &str) -> Result<End, String> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    bare.parse::<IpAddr>().map_or_else(|_| pod(text).map(End::Pod), |addr| Ok(End::Address(addr)))
}

pub fn end_and_port(text: &str) -> Result<(End, Option<u16>), String> {
    if let Ok(at) = text.parse::<SocketAddr>() {
        return Ok((End::Address(at.ip()), Some(at.port())));
    }
    match text.rsplit_once(':').filter(|(before, _)| !before.contains(':')) {
        Some((before, port)) => {
            let port = port.parse().map_err(|_| format!("{port:?} in {text} is no port"))?;
            Ok((end(before)?, Some(port)))
        }
        None => Ok((end(text)?, None)),
    }
}

pub fn pod(text: &str) -> Result<PodName, String> {
    let parts =
        text.split_once('/').filter(|(space, name)| !space.is_empty() && !name.is_empty() && !name.contains('/'));
    let (space, name) = parts.ok_or_else(|| format!("{text:?} is neither NAMESPACE/POD nor an address"))?;
    Ok(PodName::new(space, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(src: &str, dst: &str, protocol: Option<&str>) -> Result<Why, String> {
        AskWhy { src: src.into(), dst: dst.into(), protocol: protocol.map(String::from), json: false }.read()
    }

    #[test]
    fn a_packet_is_read_from_few_words() {
        let web = || End::Pod(PodName::new("shop", "web"));
        let at = |text: &str| End::Address(text.parse().unwrap());
        for (src, dst, protocol, want) in [
            ("shop/web", "10.0.0.1:80", None, (web(), at("10.0.0.1"), TCP, Some((SOME_PORT, 80)))),
            ("10.0.0.1", "shop/web:53", Some("UDP"), (at("10.0.0.1"), web(), UDP, Some((SOME_PORT, 53)))),
            ("fd00::1", "[fd00::2]:80", Some("sctp"), (at("fd00::1"), at("fd00::2"), SCTP, Some((SOME_PORT, 80)))),
            ("fd00::1", "fd00::2", None, (at("fd00::1"), at("fd00::2"), ICMP, Some((0, 0x800)))),
            ("shop/web", "shop/web", Some("47"), (web(), web(), 47, None)),
        ] {
            let why = read(src, dst, protocol).unwrap();
            assert_eq!((why.src, why.dst, why.protocol, why.ports), want, "{src} {dst} {protocol:?}");
        }
    }

    #[test]
    fn what_is_no_packet_is_said() {
        for (src, dst, protocol, why) in [
            ("web", "10.0.0.1:80", None, "\"web\" is neither NAMESPACE/POD nor an address"),
            ("a/b/c", "10.0.0.1:80", None, "\"a/b/c\" is neither NAMESPACE/POD nor an address"),
            ("a/b", "10.0.0.1:x", None, "\"x\" in 10.0.0.1:x is no port"),
            ("a/b", "a/c", Some("tcp"), "a/c has no port; write a/c:PORT"),
            ("a/b", "a/c:8", Some("icmp"), "protocol 1 has no ports; leave :8 out"),
            ("a/b", "a/c", Some("300"), "\"300\" is none of tcp, udp, sctp, icmp, and no number to 255"),
        ] {
            assert_eq!(read(src, dst, protocol).unwrap_err(), why);
        }
    }
}
