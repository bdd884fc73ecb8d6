//! What may come of an answer before its next object is whole: a list is as long as it likes, if only it goes on.

use std::cell::Cell;
use std::io::{self, ErrorKind, Read};
use std::time::{Duration, Instant};

/// Bytes and time for one object, the next one's where it is renewed.
pub struct Allowance {
    bytes: u64,
    time: Duration,
    left: Cell<u64>,
    until: Cell<Instant>,
}

impl Allowance {
    pub fn new(bytes: u64, time: Duration) -> Allowance {
        Allowance { bytes, time, left: Cell::new(bytes), until: Cell::new(Instant::now() + time) }
    }

    /// An object is whole. Some of what follows it may have been read already: that is not counted.
    pub fn renew(&self) {
        self.left.set(self.bytes);
        self.until.set(Instant::now() + self.time);
    }

    /// Reads no more than is allowed: more bytes are [`ureq::Error::BodyExceedsLimit`], and what is late is timed out.
    pub fn of<R: Read>(&self, from: R) -> Allowed<'_, R> {
        Allowed { from, allowance: self }
    }
}

pub struct Allowed<'a, R> {
    from: R,
    allowance: &'a Allowance,
}

impl<R: Read> Read for Allowed<'_, R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let Allowance { bytes, left, until, .. } = self.allowance;
        // Of what is used up only the end may be left.
        let room = usize::try_from(left.get().max(1)).unwrap_or(usize::MAX).min(to.len());
        let read = self.from.read(&mut to[..room])?;
        if read > 0 && Instant::now() > until.get() {
            return Err(ErrorKind::TimedOut.into());
        }
        let rest = left.get().checked_sub(read as u64);
        left.set(rest.ok_or_else(|| ureq::Error::BodyExceedsLimit(*bytes).into_io())?);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_object_may_have_so_many_bytes() {
        let allowance = Allowance::new(4, Duration::from_secs(60));
        let mut from = allowance.of(&b"abcdefghij"[..]);
        let mut to = [0; 16];
        for renewed in [b"abcd", b"efgh"] {
            assert_eq!((from.read(&mut to).unwrap(), &to[..4]), (4, &renewed[..]));
            allowance.renew();
        }
        assert_eq!(from.read(&mut to).unwrap(), 2);
        // The end costs nothing.
        assert_eq!(from.read(&mut to).unwrap(), 0);
        let mut from = allowance.of(&b"abc"[..]);
        assert_eq!(from.read(&mut to).unwrap(), 2);
        assert_eq!(from.read(&mut to).unwrap_err().to_string(), "the response body is larger than request limit: 4");
    }

    #[test]
    fn each_object_may_take_so_long() {
        let allowance = Allowance::new(4, Duration::from_millis(100));
        let mut from = allowance.of(&b"abcdefghijkl"[..]);
        let mut to = [0; 1];
        for _ in 0..8 {
            std::thread::sleep(Duration::from_millis(30));
            from.read_exact(&mut to).unwrap();
            allowance.renew();
        }
        std::thread::sleep(Duration::from_millis(110));
        assert_eq!(from.read(&mut to).unwrap_err().kind(), ErrorKind::TimedOut);
    }
}
