//! A netlink socket, of routes mostly: several requests in one send, their answers, and dumps. The only file that knows neli.

use std::os::fd::{AsRawFd, BorrowedFd};

use neli::consts::socket::{Msg, NlFamily};
use neli::socket::NlSocket;
use neli::utils::Groups;
use rustix::io::Errno;
use rustix::net::netdevice;

use super::message::{ACK, Answer, DUMP, HEADER, Message, answers, attr, text, u32_at};
use crate::error::{Cause, Context, Error};

/// The kernel puts at most 32 KiB into one datagram of a dump.
const BUFFER: usize = 64 << 10;
/// A dump during which something changed is taken again, so many times.
const DUMP_TRIES: u32 = 8;
const NLMSGERR_ATTR_MSG: u16 = 1;

/// What became of one request: the body of its answer, empty if the kernel just did it.
pub type Outcome = Result<Vec<u8>, Error>;

/// It stays in the network namespace in which it was opened, wherever it is used.
pub struct Socket {
    nl: NlSocket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    pub fn open() -> Result<Socket, Error> {
        Socket::of(NlFamily::Route)
    }

    /// One that tells of sockets, not of routes.
    pub fn diag() -> Result<Socket, Error> {
        Socket::of(NlFamily::SockOrInetDiag)
    }

    /// One to netfilter's subsystems.
    pub fn netfilter() -> Result<Socket, Error> {
        Socket::of(NlFamily::Netfilter)
    }

    fn of(family: NlFamily) -> Result<Socket, Error> {
        let nl = NlSocket::connect(family, None, Groups::empty()).context(|| "open a netlink socket")?;
        // Before 4.12 the kernel has no words to add to an errno.
        let _ = nl.enable_ext_ack(true);
        Ok(Socket { nl, sequence: 0, buffer: vec![0; BUFFER] })
    }

    /// Sends the requests at once. The kernel carries them out in order and does not stop at one that fails.
    pub fn batch(&mut self, messages: Vec<Message>) -> Result<Vec<Outcome>, Error> {
        let count = messages.len();
        if count == 0 {
            return Ok(Vec::new());
        }
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::with_capacity(256 * count);
        for (n, message) in messages.into_iter().enumerate() {
            // Failures are answered unasked, and in order: once the last request is acknowledged all is known.
            let ack = if n + 1 == count { ACK } else { 0 };
            bytes.extend(message.finish(first.wrapping_add(n as u32), ack));
        }
        self.sequence = self.sequence.wrapping_add(count as u32);
        self.send(&bytes)?;

        let mut outcomes: Vec<Outcome> = (0..count).map(|_| Ok(Vec::new())).collect();
        let mut done = false;
        while !done {
            let len = self.receive()?;
            for answer in answers(&self.buffer[..len]) {
                let n = answer.sequence.wrapping_sub(first) as usize;
                let Some(outcome) = outcomes.get_mut(n) else { continue };
                if i32::from(answer.kind) != libc::NLMSG_ERROR {
                    *outcome = Ok(answer.body.to_vec());
                    continue;
                }
                if let Err(e) = acknowledged(&answer) {
                    *outcome = Err(e);
                }
                done |= n + 1 == count;
            }
        }
        Ok(outcomes)
    }

    /// One request and its outcome.
    pub fn act(&mut self, message: Message) -> Outcome {
        self.batch(vec![message])?.pop().expect("as many outcomes as requests")
    }

    /// The bodies of everything that a dump lists: for few, since each is kept whole.
    pub fn dump(&mut self, kind: u16, fixed: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        self.list(kind, fixed, |body| Some(body.to_vec()))
    }

    /// What is read in the bodies of a dump, one after the other.
    pub fn list<T>(&mut self, kind: u16, fixed: &[u8], read: impl Fn(&[u8]) -> Option<T>) -> Result<Vec<T>, Error> {
        self.list_with(|| Message::new(kind, DUMP, fixed), read)
    }

    /// The same for a request with attributes, which is built anew for each try.
    pub fn list_with<T>(
        &mut self,
        request: impl Fn() -> Message,
        read: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        self.dump_into(request, |seen: &mut Vec<T>, body| seen.extend(read(body)))
    }

    /// The same, and the kernel leaves out what the request does not ask for: from 4.20 on, so it has to be read strictly too.
    pub fn list_strictly<T>(
        &mut self,
        request: impl Fn() -> Message,
        read: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        let is_strict = self.nl.enable_strict_checking(true).is_ok();
        let listed = self.list_with(request, read);
        if is_strict {
            self.nl.enable_strict_checking(false).context(|| "ask the kernel for all again")?;
        }
        listed
    }

    /// What comes of the bodies of a dump, of which nothing else is kept.
    pub fn dump_into<T: Default>(
        &mut self,
        request: impl Fn() -> Message,
        hear: impl Fn(&mut T, &[u8]),
    ) -> Result<T, Error> {
        for _ in 0..DUMP_TRIES {
            let mut made = T::default();
            if self.dump_once(request(), |body| hear(&mut made, body))? {
                return Ok(made);
            }
        }
        Err(Error::new(Cause::Timeout)).context(|| "list what keeps changing")
    }

    /// False: the list has changed under the dump.
    fn dump_once(&mut self, request: Message, mut hear: impl FnMut(&[u8])) -> Result<bool, Error> {
        self.sequence = self.sequence.wrapping_add(1);
        self.send(&request.finish(self.sequence, 0))?;
        let mut whole = true;
        loop {
            let len = self.receive()?;
            for answer in answers(&self.buffer[..len]).filter(|a| a.sequence == self.sequence) {
                whole &= i32::from(answer.flags) & libc::NLM_F_DUMP_INTR == 0;
                match i32::from(answer.kind) {
                    libc::NLMSG_ERROR | libc::NLMSG_DONE => return acknowledged(&answer).map(|()| whole),
                    _ => hear(answer.body),
                }
            }
        }
    }

    /// The index of a link that is there: unlike all else it waits for nobody who changes the network. (For one that is not, the
    /// kernel looks for a module of its name, which takes long.) `None` by a kernel before 4.16, where a netlink socket takes no ioctl.
    pub fn index_of(&self, name: &str) -> Result<Option<u32>, Error> {
        // SAFETY: the descriptor is open for as long as the socket lives, which the borrow does not outlive.
        let fd = unsafe { BorrowedFd::borrow_raw(self.nl.as_raw_fd()) };
        match netdevice::name_to_index(fd, name) {
            // `sock_no_ioctl` in net/core/sock.c
            Err(Errno::OPNOTSUPP) => Ok(None),
            found => Ok(Some(found?)),
        }
    }

    fn send(&self, bytes: &[u8]) -> Result<(), Error> {
        loop {
            match self.nl.send(bytes, Msg::empty()) {
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                sent => return sent.map(|_| ()).context(|| "send to the kernel"),
            }
        }
    }

    fn receive(&mut self) -> Result<usize, Error> {
        loop {
            // TRUNC: the length that the datagram has, even where the buffer is shorter.
            match self.nl.recv(&mut self.buffer, Msg::TRUNC) {
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e).context(|| "hear from the kernel"),
                Ok((len, _)) if len > self.buffer.len() => self.buffer.resize(len.next_power_of_two(), 0),
                Ok((len, _)) => return Ok(len),
            }
        }
    }
}

/// Reads `NLMSG_ERROR` or `NLMSG_DONE`: an errno, and perhaps the kernel's own words.
fn acknowledged(answer: &Answer) -> Result<(), Error> {
    let errno = u32_at(answer.body, 0).map_or(0, |e| (e as i32).wrapping_neg());
    if errno <= 0 {
        return Ok(());
    }
    Err(Error::new(Cause::Os { errno, note: words(answer).unwrap_or_default() }))
}

/// The extended-ack text, which follows what the kernel repeats of the request.
fn words(answer: &Answer) -> Option<String> {
    let flags = i32::from(answer.flags);
    if flags & libc::NLM_F_ACK_TLVS == 0 {
        return None;
    }
    let repeated = match i32::from(answer.kind) {
        libc::NLMSG_DONE => 0,
        _ if flags & libc::NLM_F_CAPPED != 0 => HEADER,
        _ => u32_at(answer.body, 4)? as usize,
    };
    attr(answer.body.get((4 + repeated).next_multiple_of(4)..)?, NLMSGERR_ATTR_MSG).map(text)
}
