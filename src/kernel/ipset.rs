//! Sets of addresses, `hash:net` of ipset(8), over netlink.
//!
//! Unlike routes, sets want `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER` on their attributes, and have errors of their own.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;

use ipnet::IpNet;

use super::message::{CREATE, DUMP, EXCL, Message, attr, attrs, ip, ip_bytes, text, u32_at};
use super::socket::Socket;
use crate::chains::{Family, Led, Members};
use crate::error::{Cause, Context, Error};

const SUBSYSTEM: u16 = 6;
/// What every kernel speaks.
const PROTOCOL: u8 = 6;
const KIND: &str = "hash:net";

const CMD_CREATE: u16 = 2;
const CMD_DESTROY: u16 = 3;
const CMD_LIST: u16 = 7;
const CMD_ADD: u16 = 9;
const CMD_DEL: u16 = 10;
const CMD_HEADER: u16 = 12;
const CMD_TYPE: u16 = 13;

const ATTR_PROTOCOL: u16 = 1;
const ATTR_NAME: u16 = 2;
const ATTR_KIND: u16 = 3;
const ATTR_REVISION: u16 = 4;
const ATTR_FAMILY: u16 = 5;
const ATTR_DATA: u16 = 7;
const ATTR_MANY: u16 = 8;
const ATTR_LINE: u16 = 9;

const DATA_IP: u16 = 1;
const DATA_CIDR: u16 = 3;
const DATA_FLAGS: u16 = 8;
const DATA_MOST: u16 = 19;
const FLAG_NOMATCH: u32 = 1 << 2;

const NESTED: u16 = 1 << 15;
const BIG_ENDIAN: u16 = 1 << 14;

/// Members in one message: its length has 16 bits.
const AT_ONCE: usize = 1000;

/// A set that is there.
pub struct SetSeen {
    pub name: String,
    /// None: it is not of the kind that we make.
    pub family: Option<Family>,
    pub members: Members,
}

pub struct Sets {
    socket: Socket,
    revision: u8,
    /// The most members that a set may have.
    most: u32,
}

impl Sets {
    /// In the network namespace of the calling thread.
    pub fn open(most: u32) -> Result<Sets, Error> {
        let mut socket = Socket::netfilter()?;
        let ask = message(CMD_TYPE, 0).text(ATTR_KIND, KIND).attr(ATTR_FAMILY, &[libc::AF_INET as u8]);
        let body = socket.act(ask).map_err(|e| no_sets(&e))?;
        let revision = attr(body.get(4..).unwrap_or_default(), ATTR_REVISION).and_then(|v| v.first().copied());
        Ok(Sets { socket, revision: revision.unwrap_or(0), most })
    }

    /// All whose names begin so. Others may have a hundred thousand members, of which nothing is kept.
    pub fn list(&mut self, prefix: &str) -> Result<Vec<SetSeen>, Error> {
        let list = || message(CMD_LIST, DUMP);
        self.socket.dump_into(list, |seen, body| see(seen, body, prefix)).context(|| "list ipsets")
    }

    /// The [`digest`] of what this one has; none: it is not there. Kernels before 4.10 do not tell how many members a set has, and as many
    /// may be others, so it is what they are that counts.
    pub fn digest(&mut self, name: &str) -> Result<Option<u64>, Error> {
        let list = || message(CMD_LIST, DUMP).text(ATTR_NAME, name);
        let add = |sum: &mut u64, body: &[u8]| {
            *sum = sum.wrapping_add(digest(members_of(body.get(4..).unwrap_or_default())));
        };
        match self.socket.dump_into(list, add) {
            Err(e) if e.errno() == Some(libc::ENOENT) => Ok(None),
            digest => digest.map(Some).context(|| format!("list ipset {name}")),
        }
    }

    /// Whosever it is, and of whatever kind.
    pub fn is_there(&mut self, name: &str) -> Result<bool, Error> {
        match self.act(message(CMD_HEADER, 0).text(ATTR_NAME, name)) {
            Err(e) if e.errno() == Some(libc::ENOENT) => Ok(false),
            seen => seen.map(|()| true).context(|| format!("look for ipset {name}")),
        }
    }

    /// What kube-proxy has IPVS lead here.
    pub fn led(&mut self, family: Family) -> Result<Led, Error> {
        Led::by(family, |name| self.is_there(name))
    }

    pub fn create(&mut self, name: &str, family: Family) -> Result<(), Error> {
        let family = match family {
            Family::V4 => libc::AF_INET,
            Family::V6 => libc::AF_INET6,
        };
        let request = message(CMD_CREATE, CREATE | EXCL)
            .text(ATTR_NAME, name)
            .text(ATTR_KIND, KIND)
            .attr(ATTR_REVISION, &[self.revision])
            .attr(ATTR_FAMILY, &[family as u8])
            .nest(ATTR_DATA | NESTED, |m| m.attr(DATA_MOST | BIG_ENDIAN, &self.most.to_be_bytes()));
        self.act(request).context(|| format!("create ipset {name}"))
    }

    /// A member that is there already gets its flag.
    pub fn add<'a>(&mut self, name: &str, members: impl Iterator<Item = (&'a IpNet, &'a bool)>) -> Result<(), Error> {
        let most = self.most;
        self.change(CMD_ADD, name, members).context(|| format!("add to ipset {name} (it may have {most} members)"))
    }

    pub fn delete<'a>(
        &mut self,
        name: &str,
        members: impl Iterator<Item = (&'a IpNet, &'a bool)>,
    ) -> Result<(), Error> {
        self.change(CMD_DEL, name, members).context(|| format!("delete from ipset {name}"))
    }

    fn change<'a>(
        &mut self,
        command: u16,
        name: &str,
        members: impl Iterator<Item = (&'a IpNet, &'a bool)>,
    ) -> Result<(), Error> {
        let members: Vec<(&IpNet, &bool)> = members.collect();
        members.chunks(AT_ONCE).try_for_each(|some| {
            let many = |m: Message| {
                some.iter().fold(m, |m, (net, is_in)| m.nest(ATTR_DATA | NESTED, |m| data(m, net, **is_in)))
            };
            let request = message(command, 0).text(ATTR_NAME, name).u32(ATTR_LINE, 1).nest(ATTR_MANY | NESTED, many);
            self.act(request)
        })
    }

    /// One that is not there is none.
    pub fn destroy(&mut self, name: &str) -> Result<(), Error> {
        match self.act(message(CMD_DESTROY, 0).text(ATTR_NAME, name)) {
            Err(e) if e.errno() == Some(libc::ENOENT) => Ok(()),
            done => done.context(|| format!("destroy ipset {name}")),
        }
    }

    fn act(&mut self, request: Message) -> Result<(), Error> {
        self.socket.act(request).map(|_| ()).map_err(in_words)
    }
}

/// What a message of a dump adds to the sets with this prefix.
pub(super) fn see(seen: &mut Vec<SetSeen>, body: &[u8], prefix: &str) {
    let body = body.get(4..).unwrap_or_default();
    let Some(name) = attr(body, ATTR_NAME).map(text).filter(|name| name.starts_with(prefix)) else { return };
    // A long one is told of in pieces, of which the first alone says what it is.
    if seen.last().is_none_or(|set| set.name != name) {
        seen.push(SetSeen { name, family: family(body), members: Members::new() });
    }
    seen.last_mut().expect("it is there").members.extend(members_of(body));
}

/// By which sets with the same members are told from others, in whatever order their members come.
pub fn digest(members: impl Iterator<Item = (IpNet, bool)>) -> u64 {
    let of = |member: (IpNet, bool)| {
        let mut hasher = DefaultHasher::new();
        member.hash(&mut hasher);
        hasher.finish()
    };
    members.map(of).fold(0, u64::wrapping_add)
}

/// Of one message of a dump, behind the fixed part.
fn members_of(body: &[u8]) -> impl Iterator<Item = (IpNet, bool)> {
    attr(body, ATTR_MANY).into_iter().flat_map(attrs).filter_map(|(_, data)| member(data))
}

fn message(command: u16, flags: u16) -> Message {
    // Family, version and resource of `nfgenmsg`.
    let fixed = [libc::AF_UNSPEC as u8, 0, 0, 0];
    Message::new(SUBSYSTEM << 8 | command, flags, &fixed).attr(ATTR_PROTOCOL, &[PROTOCOL])
}

fn data(m: Message, net: &IpNet, is_in: bool) -> Message {
    let kind = if net.addr().is_ipv4() { 1 } else { 2 };
    m.nest(DATA_IP | NESTED, |m| m.attr(kind | BIG_ENDIAN, &ip_bytes(net.addr())))
        .attr(DATA_CIDR, &[net.prefix_len()])
        .maybe((!is_in).then_some(FLAG_NOMATCH), |m, flag| m.attr(DATA_FLAGS | BIG_ENDIAN, &flag.to_be_bytes()))
}

fn member(data: &[u8]) -> Option<(IpNet, bool)> {
    let addr: IpAddr = attrs(attr(data, DATA_IP)?).next().and_then(|(_, value)| ip(value))?;
    let whole = if addr.is_ipv4() { 32 } else { 128 };
    let length = attr(data, DATA_CIDR).and_then(|v| v.first().copied()).unwrap_or(whole);
    let flags = attr(data, DATA_FLAGS).and_then(|v| u32_at(v, 0)).map_or(0, u32::from_be);
    Some((IpNet::new(addr, length).ok()?, flags & FLAG_NOMATCH == 0))
}

fn family(body: &[u8]) -> Option<Family> {
    let is_ours = attr(body, ATTR_KIND).map(text).as_deref() == Some(KIND);
    match i32::from(*attr(body, ATTR_FAMILY)?.first()?) {
        libc::AF_INET if is_ours => Some(Family::V4),
        libc::AF_INET6 if is_ours => Some(Family::V6),
        _ => None,
    }
}

fn no_sets(e: &Error) -> Error {
    Error::refused(format!(
        "this kernel has no ipsets of kind {KIND} ({e}): load the modules ip_set and ip_set_hash_net"
    ))
}

/// Errors from 4096 on are those of sets.
fn in_words(e: Error) -> Error {
    let words = match e.errno() {
        Some(4097) => "the kernel does not understand the request",
        Some(4098) => "the kernel has no such kind of set: load the module ip_set_hash_net",
        Some(4099) => "there are as many sets as there can be",
        Some(4100 | 4108) => "it is in use",
        Some(4101 | 4103) => "it is there already",
        Some(4352) => "the set is full",
        _ => return e,
    };
    Error::new(Cause::Refused(words.to_owned()))
}
