//! Addresses: MAC, the IPv4/IPv6 pair of a pod, and the prefix arithmetic that `ipnet` lacks.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

/// An Ethernet address; written `00:16:3e:01:02:03`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The link-local address that a link with this MAC gives itself (RFC 4291, appendix A).
    pub fn link_local(self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        let word = |high, low| u16::from_be_bytes([high, low]);
        Ipv6Addr::new(0xfe80, 0, 0, 0, word(a ^ 2, b), word(c, 0xff), word(0xfe, d), word(e, f))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Mac {
    type Err = String;

    fn from_str(s: &str) -> Result<Mac, String> {
        let bad = || format!("{s:?} is not a MAC address");
        let mut mac = [0; 6];
        let mut parts = s.split(':');
        for byte in &mut mac {
            let part = parts.next().filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()));
            *byte = part.and_then(|p| u8::from_str_radix(p, 16).ok()).ok_or_else(bad)?;
        }
        if parts.next().is_some() { Err(bad()) } else { Ok(Mac(mac)) }
    }
}

impl TryFrom<String> for Mac {
    type Error = String;

    fn try_from(s: String) -> Result<Mac, String> {
        s.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> String {
        mac.to_string()
    }
}

/// An address family.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    #[default]
    V4,
    V6,
}

impl Family {
    pub fn of(addr: &IpAddr) -> Family {
        if addr.is_ipv4() { Family::V4 } else { Family::V6 }
    }
}

/// The families in which every pod has an address (`ip_stack`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stack {
    #[default]
    #[serde(rename = "ipv4")]
    V4,
    #[serde(rename = "dual")]
    Dual,
    #[serde(rename = "ipv6")]
    V6,
}

impl Stack {
    pub fn families(self) -> &'static [Family] {
        match self {
            Stack::V4 => &[Family::V4],
            Stack::Dual => &[Family::V4, Family::V6],
            Stack::V6 => &[Family::V6],
        }
    }

    pub fn has(self, family: Family) -> bool {
        self.families().contains(&family)
    }
}

impl fmt::Display for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stack::V4 => "ipv4",
            Stack::Dual => "dual",
            Stack::V6 => "ipv6",
        })
    }
}

/// What exists once per address family: an address, a gateway, a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Pair<A, B> {
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    pub v4: Option<A>,
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    pub v6: Option<B>,
}

fn none<T>() -> Option<T> {
    None
}

impl<A, B> Default for Pair<A, B> {
    fn default() -> Self {
        Pair { v4: None, v6: None }
    }
}

/// The addresses of one pod: at least one family is there once it is leased.
pub type IpPair = Pair<Ipv4Addr, Ipv6Addr>;
/// A prefix per family, such as a vSwitch's CIDR blocks or the Service CIDR.
pub type NetPair = Pair<Ipv4Net, Ipv6Net>;

impl<A, B> Pair<A, B> {
    pub fn v4(addr: A) -> Self {
        Pair { v4: Some(addr), v6: None }
    }

    pub fn is_empty(&self) -> bool {
        self.v4.is_none() && self.v6.is_none()
    }
}

impl IpPair {
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> {
        self.v4.map(IpAddr::V4).into_iter().chain(self.v6.map(IpAddr::V6))
    }
}

impl FromIterator<IpAddr> for IpPair {
    /// The last of each family.
    fn from_iter<T: IntoIterator<Item = IpAddr>>(addresses: T) -> IpPair {
        let mut pair = IpPair::default();
        for addr in addresses {
            match addr {
                IpAddr::V4(v4) => pair.v4 = Some(v4),
                IpAddr::V6(v6) => pair.v6 = Some(v6),
            }
        }
        pair
    }
}

impl NetPair {
    pub fn iter(&self) -> impl Iterator<Item = IpNet> {
        self.v4.map(IpNet::V4).into_iter().chain(self.v6.map(IpNet::V6))
    }

    /// The gateway that the VPC has in each prefix.
    pub fn gateway(&self) -> IpPair {
        Pair { v4: self.v4.and_then(vswitch_gateway_v4), v6: self.v6.and_then(vswitch_gateway_v6) }
    }
}

impl<A: fmt::Display, B: fmt::Display> fmt::Display for Pair<A, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.v4, &self.v6) {
            (Some(a), Some(b)) => write!(f, "{a},{b}"),
            (Some(a), None) => a.fmt(f),
            (None, Some(b)) => b.fmt(f),
            (None, None) => f.write_str("none"),
        }
    }
}

/// The prefix that holds one address and nothing else.
pub fn host_net(addr: IpAddr) -> IpNet {
    IpNet::from(addr)
}

/// The gateway that a VPC puts into a vSwitch: the third address from the end of the prefix.
///
/// `None` where the prefix is too small to have one (/31 and /32).
pub fn vswitch_gateway_v4(net: Ipv4Net) -> Option<Ipv4Addr> {
    let size = 1u64 << (32 - net.prefix_len());
    (size >= 4).then(|| Ipv4Addr::from((u64::from(u32::from(net.network())) + size - 3) as u32))
}

/// The same for IPv6: `fd00::/64` has `fd00::ffff:ffff:ffff:fffd`.
pub fn vswitch_gateway_v6(net: Ipv6Net) -> Option<Ipv6Addr> {
    (net.prefix_len() <= 126).then(|| Ipv6Addr::from(u128::from(net.broadcast()) - 2))
}

/// Whether two prefixes share an address.
pub fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateway_is_the_third_address_from_the_end() {
        for (net, gateway) in [
            ("10.0.0.16/28", Some("10.0.0.29")),
            ("10.0.0.0/29", Some("10.0.0.5")),
            ("10.0.8.0/21", Some("10.0.15.253")),
            ("192.168.1.0/30", Some("192.168.1.1")),
            ("192.168.1.0/31", None),
            ("255.255.255.0/24", Some("255.255.255.253")),
        ] {
            let want = gateway.map(|g| g.parse().unwrap());
            assert_eq!(vswitch_gateway_v4(net.parse().unwrap()), want, "{net}");
        }
        let v6 = vswitch_gateway_v6("fd00::/64".parse().unwrap());
        assert_eq!(v6, Some("fd00::ffff:ffff:ffff:fffd".parse().unwrap()));
    }

    #[test]
    fn a_mac_is_six_bytes_in_hex_and_nothing_else() {
        let mac: Mac = "00:16:3E:0a:0b:ff".parse().unwrap();
        assert_eq!(mac.to_string(), "00:16:3e:0a:0b:ff");
        for bad in
            ["", "00:16:3e:0a:0b", "00:16:3e:0a:0b:ff:00", "0:16:3e:0a:0b:ff", "+0:16:3e:0a:0b:ff", "zz:16:3e:0a:0b:ff"]
        {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_mac_makes_a_link_local_address() {
        let mac: Mac = "00:16:3e:d9:ca:93".parse().unwrap();
        assert_eq!(mac.link_local().to_string(), "fe80::216:3eff:fed9:ca93");
    }

    #[test]
    fn prefixes_overlap_when_one_holds_the_other() {
        let net = |s: &str| s.parse::<IpNet>().unwrap();
        assert!(overlap(&net("10.0.0.0/8"), &net("10.1.0.0/16")));
        assert!(!overlap(&net("10.0.0.0/16"), &net("10.1.0.0/16")));
        assert!(!overlap(&net("0.0.0.0/0"), &net("::/0")));
    }
}
