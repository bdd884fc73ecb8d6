//! The Services' eBPF maps: their keys and values, twins of `bpf/maps.h`, and what can be written to them, in order.

use std::net::{IpAddr, Ipv6Addr};

/// The layout of all maps together. Maps of another layout are pinned elsewhere.
pub const SCHEMA: u32 = 1;

/// What Services are spoken to by, by its number in an IP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Proto {
    Tcp = 6,
    Udp = 17,
}

impl Proto {
    fn of(number: u8) -> Option<Proto> {
        [Proto::Tcp, Proto::Udp].into_iter().find(|proto| *proto as u8 == number)
    }
}

/// What somebody connects to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrontendKey {
    /// `0.0.0.0` or `::`: every node's addresses of the family; a node port.
    pub addr: IpAddr,
    pub port: u16,
    pub proto: Proto,
}

/// Where it leads: to the backends that `slots[base..base + count]` name, which are all of one set. One element is replaced at once,
/// so that it is the unit of change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frontend {
    pub set: u32,
    pub base: u32,
    /// 0: whoever connects is refused at once.
    pub count: u32,
    /// For how many seconds after its last use a client keeps its backend; 0: not at all.
    pub affinity: u32,
    pub flags: u32,
}

/// Flag of a frontend: only for the node's own addresses; what goes to another node's is left alone.
pub const OWN_NODE_ONLY: u32 = 1;

/// An address behind a Service. An id belongs to one set and means one address and port for as long as it lives. Ids and sets count
/// from 1: 0 is nobody's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backend {
    pub set: u32,
    pub addr: IpAddr,
    pub port: u16,
    pub proto: Proto,
}

/// Whose backend of last time it was; the client is a network namespace, or 0 where the kernel does not tell which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct AffinityKey {
    pub client: u64,
    pub set: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Affinity {
    pub backend: u32,
    /// Nanoseconds since boot.
    pub last: u64,
}

/// Which way a flow is translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Direction {
    /// From the Service's address (of the key) to the backend's: datagrams of a socket without connection.
    ToBackend = 0,
    /// From the backend's address to the Service's.
    ToService = 1,
}

/// A socket, by its cookie, and one that it speaks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FlowKey {
    pub cookie: u64,
    pub addr: IpAddr,
    pub port: u16,
    pub proto: Proto,
    pub direction: Direction,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    pub set: u32,
    pub backend: u32,
    pub addr: IpAddr,
    pub port: u16,
}

/// Flag of a node's address: it is this node's own.
pub const NODE_OWN: u32 = 1;

/// What all programs know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    pub flags: u32,
    /// Cookie of the node's network namespace; 0 where the kernel does not tell.
    pub host: u64,
}

/// Flag of the state: sockets are asked for their peers' addresses too, so it is noted what TCP was led to.
pub const STATE_PEERS: u32 = 1;

/// What the programs count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Count {
    /// Led to a backend.
    Translated,
    /// Nobody is behind the Service.
    Refused,
    /// Changed while the program read: it looked once more.
    Again,
    /// Changed both times: refused.
    Torn,
    /// Of those translated, to the backend of last time.
    Affinity,
    /// Of those translated, a datagram to the backend of the one before.
    Sticky,
    /// Shown under the Service's address.
    Named,
    /// A note for which there was no room in `flows` or `affinity`.
    Full,
}

impl Count {
    pub const ALL: [Count; 8] = [
        Count::Translated,
        Count::Refused,
        Count::Again,
        Count::Torn,
        Count::Affinity,
        Count::Sticky,
        Count::Named,
        Count::Full,
    ];
}

/// One write. They take effect in the order in which they are given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// The place in `slots` names this backend; 0: none.
    Slot {
        at: u32,
        backend: u32,
    },
    /// The backend of this id; `None`: nobody any more.
    Backend {
        id: u32,
        value: Option<Backend>,
    },
    Frontend {
        key: FrontendKey,
        value: Frontend,
    },
    RemoveFrontend(FrontendKey),
    Node {
        addr: IpAddr,
        flags: u32,
    },
    RemoveNode(IpAddr),
}

/// All that the writes have led to, as it is read back; without what is nobody's.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Tables {
    pub frontends: Vec<(FrontendKey, Frontend)>,
    /// Place, backend.
    pub slots: Vec<(u32, u32)>,
    pub backends: Vec<(u32, Backend)>,
    pub nodes: Vec<(IpAddr, u32)>,
}

/// How many entries each map has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    pub frontends: u32,
    pub backends: u32,
    pub slots: u32,
    pub nodes: u32,
    pub affinity: u32,
    pub flows: u32,
}

impl Default for Sizes {
    fn default() -> Sizes {
        Sizes { frontends: 65536, backends: 131_072, slots: 262_144, nodes: 16384, affinity: 65536, flows: 65536 }
    }
}

impl FrontendKey {
    pub const SIZE: usize = 20;

    pub fn to_bytes(&self) -> [u8; FrontendKey::SIZE] {
        let mut bytes = [0; FrontendKey::SIZE];
        bytes[..16].copy_from_slice(&to_16(self.addr));
        bytes[16..18].copy_from_slice(&self.port.to_be_bytes());
        bytes[18] = self.proto as u8;
        bytes
    }

    pub fn from_bytes(bytes: &[u8]) -> Option<FrontendKey> {
        let bytes: &[u8; FrontendKey::SIZE] = bytes.try_into().ok()?;
        let addr = from_16(&bytes[..16])?;
        Some(FrontendKey { addr, port: be16(&bytes[16..18]), proto: Proto::of(bytes[18])? })
    }

    /// Says whose a value is: an element's memory may hold another key's value while a program still reads it.
    fn tag(&self) -> u32 {
        let bytes = self.to_bytes();
        let words = bytes[..16].chunks(4).map(ne32);
        let port = u32::from(u16::from_ne_bytes([bytes[16], bytes[17]]));
        words.fold(port << 16 | u32::from(bytes[18]), |tag, word| tag ^ word)
    }
}

impl Frontend {
    pub const SIZE: usize = 24;

    /// The value bears the mark of its key.
    pub fn to_bytes(&self, key: &FrontendKey) -> [u8; Frontend::SIZE] {
        words([key.tag(), self.set, self.base, self.count, self.affinity, self.flags])
    }

    pub fn from_bytes(bytes: &[u8]) -> Option<Frontend> {
        let bytes: &[u8; Frontend::SIZE] = bytes.try_into().ok()?;
        let word = |n: usize| ne32(&bytes[4 * n..][..4]);
        Some(Frontend { set: word(1), base: word(2), count: word(3), affinity: word(4), flags: word(5) })
    }
}

impl Backend {
    pub const SIZE: usize = 24;
    /// Nobody's.
    pub const NONE: [u8; Backend::SIZE] = [0; Backend::SIZE];

    pub fn to_bytes(&self) -> [u8; Backend::SIZE] {
        let mut bytes = Backend::NONE;
        bytes[..4].copy_from_slice(&self.set.to_ne_bytes());
        bytes[4..20].copy_from_slice(&to_16(self.addr));
        bytes[20..22].copy_from_slice(&self.port.to_be_bytes());
        bytes[22] = self.proto as u8;
        bytes
    }

    /// `None` where it is nobody's.
    pub fn from_bytes(bytes: &[u8]) -> Option<Backend> {
        let bytes: &[u8; Backend::SIZE] = bytes.try_into().ok()?;
        let set = Some(ne32(&bytes[..4])).filter(|set| *set != 0)?;
        let addr = from_16(&bytes[4..20])?;
        Some(Backend { set, addr, port: be16(&bytes[20..22]), proto: Proto::of(bytes[22])? })
    }
}

impl AffinityKey {
    pub const SIZE: usize = 16;

    pub fn from_bytes(bytes: &[u8]) -> Option<AffinityKey> {
        let bytes: &[u8; AffinityKey::SIZE] = bytes.try_into().ok()?;
        Some(AffinityKey { client: ne64(&bytes[..8]), set: ne32(&bytes[8..12]) })
    }
}

impl Affinity {
    pub const SIZE: usize = 16;

    pub fn from_bytes(bytes: &[u8]) -> Option<Affinity> {
        let bytes: &[u8; Affinity::SIZE] = bytes.try_into().ok()?;
        Some(Affinity { backend: ne32(&bytes[..4]), last: ne64(&bytes[8..]) })
    }
}

impl FlowKey {
    pub const SIZE: usize = 32;

    pub fn to_bytes(&self) -> [u8; FlowKey::SIZE] {
        let mut bytes = [0; FlowKey::SIZE];
        bytes[..8].copy_from_slice(&self.cookie.to_ne_bytes());
        bytes[8..24].copy_from_slice(&to_16(self.addr));
        bytes[24..26].copy_from_slice(&self.port.to_be_bytes());
        bytes[26] = self.proto as u8;
        bytes[27] = self.direction as u8;
        bytes
    }

    pub fn from_bytes(bytes: &[u8]) -> Option<FlowKey> {
        let bytes: &[u8; FlowKey::SIZE] = bytes.try_into().ok()?;
        let direction = if bytes[27] == 0 { Direction::ToBackend } else { Direction::ToService };
        let (addr, proto) = (from_16(&bytes[8..24])?, Proto::of(bytes[26])?);
        Some(FlowKey { cookie: ne64(&bytes[..8]), addr, port: be16(&bytes[24..26]), proto, direction })
    }
}

impl Flow {
    pub const SIZE: usize = 28;

    pub fn from_bytes(bytes: &[u8]) -> Option<Flow> {
        let bytes: &[u8; Flow::SIZE] = bytes.try_into().ok()?;
        let (set, backend) = (ne32(&bytes[..4]), ne32(&bytes[4..8]));
        Some(Flow { set, backend, addr: from_16(&bytes[8..24])?, port: be16(&bytes[24..26]) })
    }
}

impl State {
    pub const SIZE: usize = 16;

    pub fn to_bytes(&self) -> [u8; State::SIZE] {
        let mut bytes = [0; State::SIZE];
        bytes[..4].copy_from_slice(&SCHEMA.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.flags.to_ne_bytes());
        bytes[8..].copy_from_slice(&self.host.to_ne_bytes());
        bytes
    }

    pub fn from_bytes(bytes: &[u8]) -> Option<State> {
        let bytes: &[u8; State::SIZE] = bytes.try_into().ok()?;
        (ne32(&bytes[..4]) == SCHEMA).then(|| State { flags: ne32(&bytes[4..8]), host: ne64(&bytes[8..]) })
    }
}

/// An address as all maps have it: IPv4 as `::ffff:a.b.c.d`.
pub fn to_16(addr: IpAddr) -> [u8; 16] {
    match addr {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

pub fn from_16(bytes: &[u8]) -> Option<IpAddr> {
    let bytes: [u8; 16] = bytes.try_into().ok()?;
    Some(Ipv6Addr::from(bytes).to_canonical())
}

fn words(words: [u32; 6]) -> [u8; 24] {
    let mut bytes = [0; 24];
    bytes.chunks_mut(4).zip(words).for_each(|(to, word)| to.copy_from_slice(&word.to_ne_bytes()));
    bytes
}

fn be16(bytes: &[u8]) -> u16 {
    bytes.try_into().map_or(0, u16::from_be_bytes)
}

fn ne32(bytes: &[u8]) -> u32 {
    bytes.try_into().map_or(0, u32::from_ne_bytes)
}

fn ne64(bytes: &[u8]) -> u64 {
    bytes.try_into().map_or(0, u64::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_frontend_lies_in_memory_as_maps_h_says() {
        let key = FrontendKey { addr: ip("10.1.2.3"), port: 0x1234, proto: Proto::Tcp };
        let bytes = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 1, 2, 3, 0x12, 0x34, 6, 0];
        assert_eq!(key.to_bytes(), bytes);
        assert_eq!(FrontendKey::from_bytes(&bytes), Some(key));
        let value = Frontend { set: 7, base: 0x100, count: 3, affinity: 10800, flags: OWN_NODE_ONLY };
        let bytes = value.to_bytes(&key);
        let word = |n: usize| u32::from_ne_bytes(bytes[4 * n..][..4].try_into().unwrap());
        let tag = u32::from_ne_bytes([0, 0, 0xff, 0xff])
            ^ u32::from_ne_bytes([10, 1, 2, 3])
            ^ (u32::from(u16::from_ne_bytes([0x12, 0x34])) << 16)
            ^ 6;
        assert_eq!([0, 1, 2, 3, 4, 5].map(word), [tag, 7, 0x100, 3, 10800, 1]);
        assert_eq!(Frontend::from_bytes(&bytes), Some(value));
        for (any, bytes) in [("0.0.0.0", [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0]), ("::", [0; 16])] {
            let node_port = FrontendKey { addr: ip(any), port: 30000, proto: Proto::Udp };
            assert_eq!(node_port.to_bytes()[..16], bytes);
            assert_eq!(FrontendKey::from_bytes(&node_port.to_bytes()), Some(node_port));
        }
        let v6 = FrontendKey { addr: ip("fd00::1"), port: 53, proto: Proto::Udp };
        assert_eq!(FrontendKey::from_bytes(&v6.to_bytes()), Some(v6));
    }

    #[test]
    fn a_backend_lies_in_memory_as_maps_h_says() {
        let backend = Backend { set: 7, addr: ip("fd00::2"), port: 0x1234, proto: Proto::Udp };
        let bytes = backend.to_bytes();
        assert_eq!(bytes[..4], 7u32.to_ne_bytes());
        assert_eq!(bytes[4..20], "fd00::2".parse::<Ipv6Addr>().unwrap().octets());
        assert_eq!(bytes[20..], [0x12, 0x34, 17, 0]);
        assert_eq!(Backend::from_bytes(&bytes), Some(backend));
        assert_eq!(Backend::from_bytes(&Backend::NONE), None);
    }

    #[test]
    fn a_flow_lies_in_memory_as_maps_h_says() {
        let (addr, direction) = (ip("10.1.2.3"), Direction::ToService);
        let key = FlowKey { cookie: 0x1_0000_0002, addr, port: 0x1234, proto: Proto::Udp, direction };
        let bytes = key.to_bytes();
        assert_eq!(
            (&bytes[..8], &bytes[24..]),
            (&0x1_0000_0002u64.to_ne_bytes()[..], &[0x12, 0x34, 17, 1, 0, 0, 0, 0][..])
        );
        assert_eq!(FlowKey::from_bytes(&bytes), Some(key));
        let mut value = [0; Flow::SIZE];
        value[..4].copy_from_slice(&7u32.to_ne_bytes());
        value[4..8].copy_from_slice(&9u32.to_ne_bytes());
        value[8..24].copy_from_slice(&to_16(addr));
        value[24..26].copy_from_slice(&[0x12, 0x34]);
        assert_eq!(Flow::from_bytes(&value), Some(Flow { set: 7, backend: 9, addr, port: 0x1234 }));
    }

    #[test]
    fn the_state_says_whose_layout_it_is() {
        let state = State { flags: STATE_PEERS, host: 1 << 40 };
        let mut bytes = state.to_bytes();
        assert_eq!(State::from_bytes(&bytes), Some(state));
        bytes[0] ^= 1;
        assert_eq!(State::from_bytes(&bytes), None);
        assert_eq!((Count::ALL[7] as u32, Count::Full as u32), (7, 7));
    }
}
