//! Asks the daemon: one line there, one line back, the whole exchange within a deadline.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::error::{Cause, Context, Error};
use crate::ours;
use crate::rpc::{Reply, Request};

/// The longest answer that is read: all that a full node shows is a few megabytes.
const LONGEST: usize = 16 << 20;

/// A daemon that lives takes a connection at once.
const CONNECT: Duration = Duration::from_millis(900);

/// The daemon's answer. `Cause::Malformed` is an answer that makes no sense; every other cause is no answer at all.
pub fn ask(request: &Request, patience: Duration) -> Result<Reply, Error> {
    put(request, patience)?.answer()
}

/// A question that the daemon works on while we do something else. The daemon hears when it is dropped, also after the
/// answer: then whoever asked is done with what it was for.
pub struct Question {
    stream: UnixStream,
    deadline: Instant,
    said: Result<(), Error>,
}

pub fn put(request: &Request, patience: Duration) -> Result<Question, Error> {
    let deadline = Instant::now() + patience;
    let mut stream = connect().context(|| format!("connect to {}", ours::SOCKET))?;
    let said = say(&mut stream, request, deadline);
    Ok(Question { stream, deadline, said })
}

impl Question {
    pub fn answer(&mut self) -> Result<Reply, Error> {
        // Whom the daemon refuses unheard it hangs up on: then nobody takes our words, and the answer is there already.
        let said = std::mem::replace(&mut self.said, Ok(()));
        let line = read_line(&mut self.stream, self.deadline).map_err(|e| said.err().unwrap_or(e));
        let line = line.context(|| format!("ask {}", ours::SOCKET))?;
        serde_json::from_slice(&line).context(|| format!("answer of {}", ours::SOCKET))
    }
}

fn connect() -> Result<UnixStream, Error> {
    let deadline = Instant::now() + CONNECT;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let address = SocketAddrUnix::new(ours::SOCKET)?;
    loop {
        match rustix::net::connect(&socket, &address) {
            // The daemon's queue of connections is full.
            Err(Errno::AGAIN) if Instant::now() < deadline => thread::sleep(Duration::from_millis(10)),
            Err(Errno::AGAIN) => return Err(Error::new(Cause::Timeout)),
            result => break result?,
        }
    }
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

fn say(stream: &mut UnixStream, request: &Request, deadline: Instant) -> Result<(), Error> {
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.set_write_timeout(Some(left(deadline)?))?;
    stream.write_all(&line).map_err(late)
}

/// A socket whose time limit has passed says EAGAIN.
fn late(e: std::io::Error) -> Error {
    if e.kind() == std::io::ErrorKind::WouldBlock { Error::new(Cause::Timeout) } else { e.into() }
}

fn read_line(stream: &mut UnixStream, deadline: Instant) -> Result<Vec<u8>, Error> {
    let mut line = Vec::new();
    let mut piece = [0; 4096];
    loop {
        stream.set_read_timeout(Some(left(deadline)?))?;
        let n = match stream.read(&mut piece) {
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            read => read.map_err(late)?,
        };
        if n == 0 {
            let note = format!("it hung up after {} bytes of an answer", line.len());
            return Err(Error::new(Cause::Os { errno: Errno::CONNRESET.raw_os_error(), note }));
        }
        let end = piece[..n].iter().position(|b| *b == b'\n');
        line.extend_from_slice(&piece[..end.unwrap_or(n)]);
        if line.len() >= LONGEST {
            return Err(Error::malformed(format!("the answer is longer than {LONGEST} bytes")));
        }
        if end.is_some() {
            return Ok(line);
        }
    }
}

/// Never zero, which a socket would take for "no limit".
fn left(deadline: Instant) -> Result<Duration, Error> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(Error::new(Cause::Timeout)) } else { Ok(left) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_full_node_shows_is_read_to_its_end_and_what_has_none_is_not() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        let daemon = thread::spawn(move || {
            let shown = vec![b'x'; 3 << 20];
            theirs.write_all(&shown).and_then(|()| theirs.write_all(b"\n")).unwrap();
            // Until nobody reads any more.
            while theirs.write_all(&shown).is_ok() {}
        });
        assert_eq!(read_line(&mut ours, deadline).unwrap().len(), 3 << 20);
        let endless = read_line(&mut ours, deadline).unwrap_err().to_string();
        assert_eq!(endless, "the answer is longer than 16777216 bytes");
        drop(ours);
        daemon.join().unwrap();
    }
}
