//! Signals that the daemon heeds instead of being ended by them: a handler writes their numbers into a pipe.

use std::io::{self, PipeReader, PipeWriter, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::OnceLock;

/// Where the handler writes. It stays open: a signal may come at any time.
static WRITER: OnceLock<PipeWriter> = OnceLock::new();

/// The signals that have come, in their order.
pub struct Signals {
    reader: PipeReader,
}

impl Signals {
    /// From now on these are heard here; once in the life of a process.
    pub fn open(numbers: &[i32]) -> io::Result<Signals> {
        let (reader, writer) = io::pipe()?;
        // A full pipe holds thousands of signals that nobody has heeded: no more are needed, and the handler must not wait.
        rustix::io::ioctl_fionbio(&writer, true)?;
        WRITER.set(writer).map_err(|_| io::Error::other("signals are heard already"))?;
        numbers.iter().try_for_each(|number| install(*number))?;
        Ok(Signals { reader })
    }

    /// The number of the next one.
    pub fn next(&self) -> io::Result<i32> {
        let mut number = [0];
        (&self.reader).read_exact(&mut number)?;
        Ok(number[0].into())
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}

fn install(number: i32) -> io::Result<()> {
    // SAFETY: of a `sigaction`, zero is a value: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = note as *const () as usize;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: the handler is a function of the right type that does only what a handler may do.
    match unsafe { libc::sigaction(number, &action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Does nothing but write(2), and leaves errno as it was: it may come between any two instructions.
extern "C" fn note(number: libc::c_int) {
    let Some(writer) = WRITER.get() else { return };
    // SAFETY: the descriptor stays open, one byte is read from our stack, and errno is this thread's own.
    unsafe {
        let errno = *libc::__errno_location();
        libc::write(writer.as_raw_fd(), (&raw const number).cast(), 1);
        *libc::__errno_location() = errno;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_heard_in_their_order() {
        let signals = Signals::open(&[libc::SIGUSR1, libc::SIGUSR2]).unwrap();
        for number in [libc::SIGUSR2, libc::SIGUSR1, libc::SIGUSR2] {
            // SAFETY: the signal has a handler.
            unsafe { libc::raise(number) };
        }
        let heard = [(); 3].map(|()| signals.next().unwrap());
        assert_eq!(heard, [libc::SIGUSR2, libc::SIGUSR1, libc::SIGUSR2]);
        assert!(Signals::open(&[]).is_err(), "there is one pipe");
    }
}
