//! Addresses of links.

use ipnet::IpNet;

use super::message::{CREATE, Message, REPLACE, attrs, family, ip, ip_bytes, u32_at};

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
const IFA_F_SECONDARY: u32 = 0x01;
const IFA_F_NODAD: u8 = 0x02;
const IFA_F_DADFAILED: u32 = 0x08;
const IFA_F_DEPRECATED: u32 = 0x20;
const IFA_F_TENTATIVE: u32 = 0x40;
const IFA_F_PERMANENT: u32 = 0x80;

/// An address as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddrSeen {
    pub net: IpNet,
    pub ifindex: u32,
    /// 0 is the world.
    pub scope: u8,
    flags: u32,
}

impl AddrSeen {
    pub(super) fn parse(body: &[u8]) -> Option<AddrSeen> {
        let [_, prefix, flags, scope] = *body.get(..4)? else { return None };
        let (mut addr, mut local, mut flags) = (None, None, u32::from(flags));
        for (kind, value) in attrs(body.get(8..)?) {
            match kind {
                IFA_ADDRESS => addr = ip(value),
                // The near end, where IFA_ADDRESS is the far end of a point-to-point link.
                IFA_LOCAL => local = ip(value),
                IFA_FLAGS => flags = u32_at(value, 0)?,
                _ => {}
            }
        }
        let net = IpNet::new(local.or(addr)?, prefix).ok()?;
        Some(AddrSeen { net, ifindex: u32_at(body, 4)?, scope, flags })
    }

    /// It stays until someone removes it, and it works.
    pub fn is_settled(&self) -> bool {
        self.flags & IFA_F_PERMANENT != 0 && self.flags & (IFA_F_TENTATIVE | IFA_F_DADFAILED | IFA_F_DEPRECATED) == 0
    }

    /// Good for others to know the node by: no privacy address, and none that is on its way out.
    pub fn is_lasting_global(&self) -> bool {
        self.scope == libc::RT_SCOPE_UNIVERSE
            && self.flags & (IFA_F_SECONDARY | IFA_F_DADFAILED | IFA_F_DEPRECATED) == 0
    }
}

/// `struct ifaddrmsg` and the address.
fn request(kind: u16, flags: u16, net: IpNet, ifindex: u32) -> Message {
    let addr = net.addr();
    // Nobody else has the address, and a pod cannot wait for a second until that is proved.
    let nodad = if addr.is_ipv6() { IFA_F_NODAD } else { 0 };
    let [a, b, c, d] = ifindex.to_ne_bytes();
    let bytes = ip_bytes(addr);
    Message::new(kind, flags, &[family(&addr), net.prefix_len(), nodad, libc::RT_SCOPE_UNIVERSE, a, b, c, d])
        .attr(IFA_LOCAL, &bytes)
        .attr(IFA_ADDRESS, &bytes)
}

pub fn add(net: IpNet, ifindex: u32) -> Message {
    request(libc::RTM_NEWADDR, CREATE | REPLACE, net, ifindex)
}

pub fn remove(net: IpNet, ifindex: u32) -> Message {
    request(libc::RTM_DELADDR, 0, net, ifindex)
}
