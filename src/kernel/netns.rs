//! Network namespaces: open one and be sure that it is one, and run a closure on a thread born inside it.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::thread;

use rustix::fs::{FsWord, Mode, OFlags, PROC_SUPER_MAGIC};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::error::{Cause, Context, Error};

const NSFS_MAGIC: FsWord = 0x6e73_6673;

/// An open network namespace; it lives as long as this does.
#[derive(Debug)]
pub struct Netns {
    path: PathBuf,
    file: File,
}

impl Netns {
    /// Opens the namespace at this path. `Cause::Absent` where there is none (any more), `Cause::Refused` where the
    /// path leads to something else, or to the very namespace that we are in.
    pub fn open(path: &Path) -> Result<Netns, Error> {
        let doing = || format!("open network namespace {}", path.display());
        // NONBLOCK: should the path be a FIFO, opening it must not wait.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(e) if e == rustix::io::Errno::NOENT => return Err(Error::new(Cause::Absent)).context(doing),
            Err(e) => return Err(e).context(doing),
        };
        verify(file.as_fd()).context(doing)?;
        Ok(Netns { path: path.into(), file })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs the closure on a thread born inside the namespace, which dies there.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
        let inside = || {
            move_into_link_name_space(self.as_fd(), Some(LinkNameSpaceType::Network))
                .context(|| format!("enter network namespace {}", self.path.display()))?;
            f()
        };
        match thread::scope(|scope| thread::Builder::new().spawn_scoped(scope, inside).map(|thread| thread.join())) {
            Ok(Ok(result)) => result,
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(e) => Err(e).context(|| "start a thread"),
        }
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn verify(fd: BorrowedFd) -> Result<(), Error> {
    let magic = rustix::fs::fstatfs(fd)?.f_type;
    // Namespaces were files of procfs before kernel 3.19.
    if magic != NSFS_MAGIC && magic != PROC_SUPER_MAGIC {
        return Err(Error::refused("it is not a namespace"));
    }
    // SAFETY: NS_GET_NSTYPE takes no argument and touches no memory of ours; the descriptor is open.
    let kind = unsafe { libc::ioctl(fd.as_raw_fd(), libc::NS_GET_NSTYPE as _) };
    // The question is unknown before 4.11; there setns(2) itself refuses what is not a namespace of the network.
    if kind >= 0 && kind != libc::CLONE_NEWNET {
        return Err(Error::refused("it is a namespace, but not one of the network"));
    }
    // Not /proc/thread-self, which 3.10 does not have.
    let ours = rustix::fs::stat(format!("/proc/self/task/{}/ns/net", rustix::thread::gettid()));
    let theirs = rustix::fs::fstat(fd)?;
    if ours.is_ok_and(|ours| (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino)) {
        return Err(Error::refused("it is the network namespace of the node, not one of a pod"));
    }
    Ok(())
}
