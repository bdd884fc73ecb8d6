//! What the eBPF programs on ENIs know of their node, as the elements of their maps: twins of `bpf/eni.h`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

use crate::ip::Mac;

/// The layout of these maps. Those of another layout are pinned elsewhere.
pub const LAYOUT: u32 = 1;

/// What an address of this node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Is {
    /// A pod's that is no slave.
    Pod,
    /// A slave's of the ENI whose link has this index and this MAC.
    Slave { eni: u32, mac: Mac },
    /// The node's own.
    Node,
}

/// What the programs should know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Near {
    /// The index of an ENI's link, and that of the node's slave of it.
    pub twins: BTreeMap<u32, u32>,
    pub addrs: BTreeMap<IpAddr, Is>,
    /// What only the node can deal with: Services, and what the operator names.
    pub inward: BTreeSet<IpNet>,
}

/// The elements of one map.
pub type Elements = BTreeMap<Vec<u8>, Vec<u8>>;

impl Near {
    /// All elements, by the name of their map.
    pub fn elements(&self) -> [(&'static str, Elements); 3] {
        let number = |n: u32| n.to_ne_bytes().to_vec();
        let twins = self.twins.iter().flat_map(|(eni, slave)| [(eni, slave), (slave, eni)]);
        let addrs = self.addrs.iter().map(|(addr, is)| (address(addr).to_vec(), is.value()));
        [
            ("twins", twins.map(|(a, b)| (number(*a), number(*b))).collect()),
            ("near", addrs.collect()),
            ("inward", self.inward.iter().map(|net| (prefix(net), number(1))).collect()),
        ]
    }
}

impl Is {
    /// `struct place`.
    fn value(self) -> Vec<u8> {
        let (eni, mac) = match self {
            Is::Pod => (0, Mac([0; 6])),
            Is::Slave { eni, mac } => (eni, mac),
            Is::Node => (u32::MAX, Mac([0; 6])),
        };
        [eni.to_ne_bytes().as_slice(), &mac.0, &[0; 2]].concat()
    }
}

/// `struct addr`.
fn address(addr: &IpAddr) -> [u8; 16] {
    let v6: Ipv6Addr = match addr {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => *v6,
    };
    v6.octets()
}

/// `struct prefix`.
fn prefix(net: &IpNet) -> Vec<u8> {
    let before = if net.addr().is_ipv4() { 96 } else { 0 };
    let length = u32::from(net.prefix_len()) + before;
    length.to_ne_bytes().into_iter().chain(address(&net.network())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct addr`, `struct place` and `struct prefix` are asserted to have these sizes in `bpf/eni.h`.
    #[test]
    fn elements_have_the_bytes_that_the_programs_read() {
        let near = Near {
            twins: BTreeMap::from([(3, 9)]),
            addrs: BTreeMap::from([
                ("192.168.32.5".parse().unwrap(), Is::Slave { eni: 3, mac: Mac([0, 0x16, 0x3e, 0, 0, 1]) }),
                ("2001:db8::5".parse().unwrap(), Is::Pod),
                ("192.168.0.10".parse().unwrap(), Is::Node),
            ]),
            inward: ["172.21.5.0/20", "fd21::/112"].map(|net| net.parse().unwrap()).into(),
        };
        let [(twins, pairs), (addrs, words), (inward, nets)] = near.elements();
        assert_eq!((twins, addrs, inward), ("twins", "near", "inward"));
        let number = |n: u32| n.to_ne_bytes().to_vec();
        assert_eq!(pairs, Elements::from([(number(3), number(9)), (number(9), number(3))]));
        let mapped = |last: [u8; 4]| [[0; 10].as_slice(), &[255, 255], &last].concat();
        let place = |eni: u32, mac: [u8; 8]| [number(eni), mac.to_vec()].concat();
        assert_eq!(words[&mapped([192, 168, 32, 5])], place(3, [0, 0x16, 0x3e, 0, 0, 1, 0, 0]));
        assert_eq!(words[&mapped([192, 168, 0, 10])], place(u32::MAX, [0; 8]));
        let v6 = [[0x20, 1, 0xd, 0xb8].as_slice(), &[0; 11], &[5]].concat();
        assert_eq!(words[&v6], place(0, [0; 8]));
        let keys: Vec<Vec<u8>> = nets.into_keys().collect();
        assert!(keys.contains(&[number(116), mapped([172, 21, 0, 0])].concat()), "{keys:?}");
        assert!(keys.iter().all(|key| key.len() == 20));
    }
}
