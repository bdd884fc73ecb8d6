//! Netlink messages as bytes: built attribute by attribute, and read back.
//!
//! Only what a kernel 3.10 understands goes into a message on a path that such a kernel takes:
//! - nested attributes carry no `NLA_F_NESTED`, which nobody sent then and nobody needs since;
//! - older kernels ignore which table, link or priority a dump asks for and send everything, so the filtering is ours,
//!   also of what newer ones leave out (`NETLINK_GET_STRICT_CHK` is 4.20);
//! - no `NLM_F_EXCL` refuses a rule that is there already (4.13 does), so rules are listed before one is added;
//! - an interface is asked for by `IFLA_IFNAME` where a netlink socket takes no `SIOCGIFINDEX`, as before 4.16;
//! - tables above 255 are in `RTA_TABLE` and `FRA_TABLE`, with the old field unspecified.

pub const CREATE: u16 = libc::NLM_F_CREATE as u16;
pub const EXCL: u16 = libc::NLM_F_EXCL as u16;
pub const REPLACE: u16 = libc::NLM_F_REPLACE as u16;
pub const DUMP: u16 = libc::NLM_F_DUMP as u16;
pub const ACK: u16 = libc::NLM_F_ACK as u16;
const REQUEST: u16 = libc::NLM_F_REQUEST as u16;

/// Length of `nlmsghdr`.
pub const HEADER: usize = 16;

/// A request that grows by what is appended to it.
#[derive(Clone)]
pub struct Message(Vec<u8>);

impl Message {
    /// A request of this kind (`RTM_*`) with the fixed part that its noun has.
    pub fn new(kind: u16, flags: u16, fixed: &[u8]) -> Message {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&(flags | REQUEST).to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        Message(bytes).raw(fixed)
    }

    /// Bytes without an attribute header.
    pub fn raw(mut self, bytes: &[u8]) -> Message {
        self.0.extend_from_slice(bytes);
        self.pad()
    }

    pub fn attr(mut self, kind: u16, value: &[u8]) -> Message {
        self.0.extend_from_slice(&(value.len() as u16 + 4).to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.raw(value)
    }

    pub fn u32(self, kind: u16, value: u32) -> Message {
        self.attr(kind, &value.to_ne_bytes())
    }

    /// A string with the NUL that the kernel expects of names.
    pub fn text(self, kind: u16, value: &str) -> Message {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attr(kind, &bytes)
    }

    pub fn nest(mut self, kind: u16, inside: impl FnOnce(Message) -> Message) -> Message {
        let start = self.0.len();
        self = inside(self.attr(kind, &[]));
        let len = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        self
    }

    /// Appends where there is a value.
    pub fn maybe<T>(self, value: Option<T>, add: impl FnOnce(Message, T) -> Message) -> Message {
        match value {
            Some(value) => add(self, value),
            None => self,
        }
    }

    /// The bytes to send.
    pub fn finish(mut self, sequence: u32, flags: u16) -> Vec<u8> {
        let len = self.0.len() as u32;
        self.0[..4].copy_from_slice(&len.to_ne_bytes());
        let flags = u16::from_ne_bytes([self.0[6], self.0[7]]) | flags;
        self.0[6..8].copy_from_slice(&flags.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.0
    }

    fn pad(mut self) -> Message {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }
}

/// What came back: header fields and body.
pub struct Answer<'a> {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    pub body: &'a [u8],
}

/// The messages of one datagram.
pub fn answers(mut bytes: &[u8]) -> impl Iterator<Item = Answer<'_>> {
    std::iter::from_fn(move || {
        let len = u32_at(bytes, 0)? as usize;
        let body = bytes.get(HEADER..len)?;
        let answer = Answer { kind: u16_at(bytes, 4)?, flags: u16_at(bytes, 6)?, sequence: u32_at(bytes, 8)?, body };
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(answer)
    })
}

/// The attributes in these bytes, flags taken off their kinds.
pub fn attrs(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = u16_at(bytes, 0)? as usize;
        let value = bytes.get(4..len)?;
        let kind = u16_at(bytes, 2)? & libc::NLA_TYPE_MASK as u16;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The first attribute of this kind.
pub fn attr(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attrs(bytes).find(|(k, _)| *k == kind).map(|(_, value)| value)
}

pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// A string without its NUL.
pub fn text(value: &[u8]) -> String {
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// An address of 4 or 16 bytes.
pub fn ip(value: &[u8]) -> Option<std::net::IpAddr> {
    match value.len() {
        4 => <[u8; 4]>::try_from(value).ok().map(Into::into),
        16 => <[u8; 16]>::try_from(value).ok().map(Into::into),
        _ => None,
    }
}

/// The bytes of an address.
pub fn ip_bytes(addr: std::net::IpAddr) -> Vec<u8> {
    match addr {
        std::net::IpAddr::V4(addr) => addr.octets().to_vec(),
        std::net::IpAddr::V6(addr) => addr.octets().to_vec(),
    }
}

/// `AF_INET` or `AF_INET6`.
pub fn family(addr: &std::net::IpAddr) -> u8 {
    if addr.is_ipv4() { libc::AF_INET as u8 } else { libc::AF_INET6 as u8 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_reads_back_as_it_was_built() {
        let message = Message::new(16, CREATE, &[1, 2, 3, 4])
            .text(3, "eth0")
            .nest(18, |m| m.text(1, "veth").nest(2, |m| m.nest(1, |m| m.raw(&[9; 16]).u32(28, 7))))
            .maybe(Some(5), |m, v| m.u32(4, v))
            .maybe(None::<u32>, |m, v| m.u32(99, v));
        let bytes = message.finish(42, ACK);
        let answer = answers(&bytes).next().unwrap();
        assert_eq!((answer.kind, answer.sequence, answer.flags), (16, 42, 0x405));
        let body = &answer.body[4..];
        assert_eq!(text(attr(body, 3).unwrap()), "eth0");
        assert_eq!(u32_at(attr(body, 4).unwrap(), 0), Some(5));
        assert_eq!(attr(body, 99), None);
        let peer = attr(attr(attr(body, 18).unwrap(), 2).unwrap(), 1).unwrap();
        assert_eq!(u32_at(attr(&peer[16..], 28).unwrap(), 0), Some(7));
    }

    #[test]
    fn cut_bytes_end_the_reading_and_nothing_else() {
        let bytes = Message::new(16, 0, &[]).u32(1, 1).u32(2, 2).finish(1, 0);
        for cut in 0..bytes.len() {
            for answer in answers(&bytes[..cut]) {
                assert!(attrs(answer.body).count() <= 2);
            }
            assert!(attrs(&bytes[16..][..cut.saturating_sub(16)]).count() <= 2);
        }
    }
}
