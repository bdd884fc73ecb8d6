//! Packets byte by byte, as a link carries them.

use std::net::IpAddr;

use terway::rules::{ICMP, ICMPV6, TCP};

pub const SYN: u8 = 2;
pub const ACK: u8 = 16;

/// A packet between two addresses of one family.
#[derive(Clone)]
pub struct Packet {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub protocol: u8,
    /// Behind the headers of IP.
    pub body: Vec<u8>,
    /// Of IPv4: flags and offset.
    pub part: u16,
    /// Of IPv6: extension headers, each the number of its kind and what it holds behind the next one's.
    pub extensions: Vec<(u8, Vec<u8>)>,
}

impl Packet {
    pub fn new(src: &str, dst: &str, protocol: u8, body: Vec<u8>) -> Packet {
        let (src, dst) = (src.parse().unwrap(), dst.parse().unwrap());
        Packet { src, dst, protocol, body, part: 0, extensions: Vec::new() }
    }

    pub fn tcp(src: &str, dst: &str, ports: (u16, u16), flags: u8) -> Packet {
        let mut body = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
        body.extend([0; 8]);
        body.extend([0x50, flags]);
        body.extend([0; 6]);
        Packet::new(src, dst, TCP, body)
    }

    pub fn ports(src: &str, dst: &str, protocol: u8, ports: (u16, u16)) -> Packet {
        Packet::new(src, dst, protocol, [&ports.0.to_be_bytes()[..], &ports.1.to_be_bytes(), &[0; 8]].concat())
    }

    pub fn echo(src: &str, dst: &str, r#type: u8, id: u16) -> Packet {
        let protocol = if src.contains(':') { ICMPV6 } else { ICMP };
        Packet::new(src, dst, protocol, [&[r#type, 0, 0, 0][..], &id.to_be_bytes(), &[0, 1]].concat())
    }

    /// An ICMP error about that packet, from somebody on its way.
    pub fn about(&self, from: &str, r#type: u8) -> Packet {
        let protocol = if from.contains(':') { ICMPV6 } else { ICMP };
        let body = [&[r#type, 0, 0, 0, 0, 0, 0, 0][..], &self.ip()].concat();
        Packet { dst: self.src, ..Packet::new(from, from, protocol, body) }
    }

    pub fn with_part(mut self, part: u16) -> Packet {
        self.part = part;
        self
    }

    pub fn with(mut self, kind: u8, body: &[u8]) -> Packet {
        self.extensions.push((kind, body.to_vec()));
        self
    }

    fn ip(&self) -> Vec<u8> {
        let mut extensions = Vec::new();
        for (n, (_, body)) in self.extensions.iter().enumerate() {
            extensions.push(self.extensions.get(n + 1).map_or(self.protocol, |next| next.0));
            extensions.extend(body);
        }
        let len = (extensions.len() + self.body.len()) as u16;
        let mut ip = match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let mut head = vec![0x45, 0];
                head.extend((len + 20).to_be_bytes());
                head.extend([0, 0]);
                head.extend(self.part.to_be_bytes());
                head.extend([64, self.protocol, 0, 0]);
                head.extend(src.octets().iter().chain(&dst.octets()));
                head
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let mut head = vec![0x60, 0, 0, 0];
                head.extend(len.to_be_bytes());
                head.extend([self.extensions.first().map_or(self.protocol, |first| first.0), 64]);
                head.extend(src.octets().iter().chain(&dst.octets()));
                head
            }
            _ => panic!("{} and {} are of two families", self.src, self.dst),
        };
        ip.extend(extensions);
        ip.extend(&self.body);
        ip
    }

    pub fn frame(&self) -> Vec<u8> {
        let kind: u16 = if self.src.is_ipv4() { 0x0800 } else { 0x86dd };
        [&[0; 12][..], &kind.to_be_bytes(), &self.ip()].concat()
    }
}
