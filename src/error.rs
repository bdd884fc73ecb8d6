//! What we were doing, from the outside in, over one cause; and a list of errors for work that goes on past a failure.

use std::fmt;

use crate::eni::Fault;

/// Why something failed. Callers match on this, never on text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// A system call or netlink request failed: `errno`, and what the kernel added to it (extended ack), if anything.
    Os { errno: i32, note: String },
    /// The cloud refused or did not answer; the fault says what may be done next.
    Cloud(Box<Fault>),
    /// An HTTP server other than the cloud answered with this status.
    Http { status: u16, body: String },
    /// What we read is not what it should be.
    Malformed(String),
    /// The thing does not exist.
    Absent,
    /// The request is understood and will not be carried out, for this reason.
    Refused(String),
    /// No answer in time.
    Timeout,
}

/// An error: `doing` from the outermost context in, then the cause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    doing: Vec<String>,
    pub cause: Cause,
}

impl Error {
    pub fn new(cause: Cause) -> Error {
        Error { doing: Vec::new(), cause }
    }

    pub fn malformed(what: impl fmt::Display) -> Error {
        Error::new(Cause::Malformed(what.to_string()))
    }

    pub fn refused(why: impl fmt::Display) -> Error {
        Error::new(Cause::Refused(why.to_string()))
    }

    pub fn os(errno: i32) -> Error {
        Error::new(Cause::Os { errno, note: String::new() })
    }

    /// The errno, where the cause is a system call.
    pub fn errno(&self) -> Option<i32> {
        match self.cause {
            Cause::Os { errno, .. } => Some(errno),
            _ => None,
        }
    }

    /// A server that we are known to does not allow it.
    pub fn is_forbidden(&self) -> bool {
        matches!(self.cause, Cause::Http { status: 403, .. })
    }

    pub fn is_absent(&self) -> bool {
        self.cause == Cause::Absent
    }

    /// It says nothing of the thing: who asks again may be answered.
    pub fn is_for_now(&self) -> bool {
        const SHORT: [i32; 6] = [libc::ENOMEM, libc::ENOBUFS, libc::EMFILE, libc::ENFILE, libc::EAGAIN, libc::EINTR];
        self.cause == Cause::Timeout || self.errno().is_some_and(|errno| SHORT.contains(&errno))
    }

    /// Puts one more context around the error.
    pub fn within(mut self, doing: impl Into<String>) -> Error {
        self.doing.insert(0, doing.into());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for doing in &self.doing {
            write!(f, "{doing}: ")?;
        }
        self.cause.fmt(f)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::Os { errno, note } => {
                write!(f, "{}", os_text(*errno))?;
                if note.is_empty() { Ok(()) } else { write!(f, " ({note})") }
            }
            Cause::Cloud(fault) => fault.fmt(f),
            Cause::Http { status, body } if body.is_empty() => write!(f, "http status {status}"),
            Cause::Http { status, body } => write!(f, "http status {status}: {body}"),
            Cause::Malformed(what) => f.write_str(what),
            Cause::Absent => f.write_str("not found"),
            Cause::Refused(why) => f.write_str(why),
            Cause::Timeout => f.write_str("timed out"),
        }
    }
}

/// The kernel's words for an errno, lower case and without Rust's "(os error N)".
fn os_text(errno: i32) -> String {
    let text = std::io::Error::from_raw_os_error(errno).to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    text.to_lowercase()
}

impl std::error::Error for Error {}

impl From<std::io::Error> for Error {
    fn from(e: std::io::Error) -> Error {
        match e.raw_os_error() {
            Some(errno) => Error::os(errno),
            None if matches!(e.kind(), std::io::ErrorKind::TimedOut | std::io::ErrorKind::WouldBlock) => {
                Error::new(Cause::Timeout)
            }
            None => Error::malformed(e),
        }
    }
}

impl From<rustix::io::Errno> for Error {
    fn from(e: rustix::io::Errno) -> Error {
        Error::os(e.raw_os_error())
    }
}

impl From<serde_json::Error> for Error {
    fn from(e: serde_json::Error) -> Error {
        Error::malformed(format!("not the JSON we expect: {e}"))
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Error {
        Error::new(Cause::Cloud(Box::new(fault)))
    }
}

/// Adds what we were doing to a failure.
pub trait Context<T> {
    fn context<S: Into<String>>(self, doing: impl FnOnce() -> S) -> Result<T, Error>;
}

impl<T, E: Into<Error>> Context<T> for Result<T, E> {
    fn context<S: Into<String>>(self, doing: impl FnOnce() -> S) -> Result<T, Error> {
        self.map_err(|e| e.into().within(doing()))
    }
}

/// What went wrong while undoing or sweeping, which do not stop at the first failure.
#[derive(Debug, Default)]
pub struct Errors(Vec<Error>);

impl Errors {
    /// Keeps the error, if it is one.
    pub fn note<T>(&mut self, result: Result<T, Error>) -> Option<T> {
        result.map_err(|e| self.0.push(e)).ok()
    }

    /// `Ok` when nothing failed, else the first error with the number of others.
    pub fn result(mut self) -> Result<(), Error> {
        if self.0.is_empty() {
            return Ok(());
        }
        let first = self.0.remove(0);
        Err(if self.0.is_empty() {
            first
        } else {
            let rest: Vec<String> = self.0.iter().map(Error::to_string).collect();
            first.within(format!("{} failures, also [{}], first", rest.len() + 1, rest.join("; ")))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_reads_from_the_outside_in() {
        let e: Result<(), Error> = Err(Error::os(libc::EEXIST));
        let e = e.context(|| "create link cali3fa1").context(|| "add default/web-0").unwrap_err();
        assert_eq!(e.to_string(), "add default/web-0: create link cali3fa1: file exists");
        assert_eq!(e.errno(), Some(libc::EEXIST));
    }

    #[test]
    fn a_shortage_of_the_moment_says_nothing_of_what_was_asked_for() {
        for (errno, for_now) in [
            (libc::EMFILE, true),
            (libc::ENFILE, true),
            (libc::ENOBUFS, true),
            (libc::EISDIR, false),
            (libc::EIO, false),
        ] {
            assert_eq!(Error::from(std::io::Error::from_raw_os_error(errno)).is_for_now(), for_now, "{errno}");
        }
        assert!(Error::new(Cause::Timeout).within("list what keeps changing").is_for_now());
        assert!(!Error::new(Cause::Absent).is_for_now() && !Error::malformed("half a record").is_for_now());
    }

    #[test]
    fn a_list_of_errors_names_all_of_them() {
        let mut errors = Errors::default();
        errors.note::<()>(Err(Error::os(libc::EPERM).within("a")));
        errors.note::<()>(Err(Error::new(Cause::Absent).within("b")));
        let text = errors.result().unwrap_err().to_string();
        assert_eq!(text, "2 failures, also [b: not found], first: a: operation not permitted");
        assert!(Errors::default().result().is_ok());
    }
}
