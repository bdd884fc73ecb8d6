//! Datagram sockets that are connected to a backend that is gone: found and ended, so that their owners connect anew.
//!
//! Nothing tells such a socket: a resolver would go on asking a name server that has left.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;

use super::message::{Message, u16_at, u32_at};
use super::netns::Netns;
use super::socket::Socket;
use crate::error::{Context, Error};
use crate::maps;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// `TCP_ESTABLISHED`, which a datagram socket is called too once it is connected.
const CONNECTED: u8 = 1;
/// Where `struct inet_diag_msg` has its `struct inet_diag_sockid`, and how long that is.
const ID: usize = 4;
const ID_LEN: usize = 48;

/// A socket by its cookie, and the backend that it was led to.
pub type Led = (u64, SocketAddr);

/// Ends those of these sockets that are still connected there and are of the calling thread's network namespace: how many they were.
/// Whoever owns one hears ECONNABORTED when it receives, EDESTADDRREQ when it sends.
pub fn end(led: &BTreeSet<Led>) -> Result<usize, Error> {
    if led.is_empty() {
        return Ok(0);
    }
    let mut socket = Socket::diag()?;
    let mut ended = 0;
    for family in [libc::AF_INET, libc::AF_INET6] {
        let request = request(family, 1 << CONNECTED, &[0; ID_LEN]);
        let listed = socket.dump(SOCK_DIAG_BY_FAMILY, &request).context(|| "list datagram sockets")?;
        for id in listed.iter().filter_map(|body| body.get(ID..ID + ID_LEN)).filter(|id| is_led(family, id, led)) {
            let destroy = Message::new(SOCK_DESTROY, 0, &self::request(family, u32::MAX, id));
            match socket.act(destroy) {
                Ok(_) => ended += 1,
                // Its owner was faster.
                Err(e) if e.errno() == Some(libc::ENOENT) => {}
                Err(e) if e.errno() == Some(libc::EOPNOTSUPP) => {
                    return Err(e).context(|| "end a socket (the kernel has no INET_DIAG_DESTROY)");
                }
                Err(e) => return Err(e).context(|| "end a socket"),
            }
        }
    }
    Ok(ended)
}

/// The same in a pod's namespace; nothing is there to be ended where it is gone.
pub fn end_in(netns: &Path, led: &BTreeSet<Led>) -> Result<usize, Error> {
    match Netns::open(netns) {
        Ok(netns) => netns.run(|| end(led)).context(|| format!("in network namespace {}", netns.path().display())),
        Err(e) if e.is_absent() => Ok(0),
        Err(e) => Err(e),
    }
}

/// `struct inet_diag_req_v2`.
fn request(family: libc::c_int, states: u32, id: &[u8]) -> Vec<u8> {
    let mut bytes = vec![family as u8, libc::IPPROTO_UDP as u8, 0, 0];
    bytes.extend_from_slice(&states.to_ne_bytes());
    bytes.extend_from_slice(id);
    bytes
}

fn is_led(family: libc::c_int, id: &[u8], led: &BTreeSet<Led>) -> bool {
    peer(family, id).is_some_and(|peer| led.contains(&peer))
}

/// The cookie and the far end in a `struct inet_diag_sockid`.
fn peer(family: libc::c_int, id: &[u8]) -> Option<Led> {
    let port = u16_at(id, 2).map(u16::from_be)?;
    let addr = match family {
        libc::AF_INET => <[u8; 4]>::try_from(id.get(20..24)?).ok().map(Into::into),
        _ => maps::from_16(id.get(20..36)?),
    };
    let cookie = u64::from(u32_at(id, 40)?) | u64::from(u32_at(id, 44)?) << 32;
    Some((cookie, SocketAddr::new(addr?, port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_far_end_is_read_as_the_kernel_writes_it() {
        let mut id = [0; ID_LEN];
        id[..4].copy_from_slice(&[0x12, 0x34, 0, 53]);
        id[20..24].copy_from_slice(&[10, 1, 2, 3]);
        id[40..44].copy_from_slice(&7u32.to_ne_bytes());
        id[44..].copy_from_slice(&1u32.to_ne_bytes());
        assert_eq!(peer(libc::AF_INET, &id), Some((1 << 32 | 7, "10.1.2.3:53".parse().unwrap())));
        id[20..36].copy_from_slice(&maps::to_16("10.1.2.3".parse().unwrap()));
        assert_eq!(peer(libc::AF_INET6, &id).unwrap().1, "10.1.2.3:53".parse().unwrap());
        id[20..36].copy_from_slice(&maps::to_16("fd00::1".parse().unwrap()));
        assert_eq!(peer(libc::AF_INET6, &id).unwrap().1, "[fd00::1]:53".parse().unwrap());
        assert_eq!(peer(libc::AF_INET6, &id[..40]), None);
    }
}
