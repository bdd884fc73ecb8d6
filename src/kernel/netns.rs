//! Network namespaces: open one and be sure that it is one, and step inside for the time of a closure.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FsWord, Mode, OFlags, PROC_SUPER_MAGIC};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::error::{Cause, Context, Error};

const NSFS_MAGIC: FsWord = 0x6e73_6673;

/// An open network namespace; it lives as long as this does.
#[derive(Debug)]
pub struct Netns {
    path: PathBuf,
    file: File,
    /// The namespace that whoever opened this one was in.
    home: OwnedFd,
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
        let home = home().context(|| "open our own network namespace")?;
        verify(file.as_fd(), home.as_fd()).context(doing)?;
        Ok(Netns { path: path.into(), file, home })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The namespace that whoever opened this one was in.
    pub fn home(&self) -> BorrowedFd<'_> {
        self.home.as_fd()
    }

    /// Runs the closure inside the namespace, on the thread that has opened it. A thread born for it there would cost ten
    /// times as much, and the wait for a free CPU.
    pub fn run<T>(&self, f: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        enter(self.as_fd()).context(|| format!("enter network namespace {}", self.path.display()))?;
        let _way_home = WayHome(self.home.as_fd());
        f()
    }
}

/// Leads the thread back when it goes out of scope.
struct WayHome<'a>(BorrowedFd<'a>);

impl Drop for WayHome<'_> {
    fn drop(&mut self) {
        if let Err(e) = enter(self.0) {
            // Whatever this thread did next would happen to the pod.
            eprintln!("no way back from a pod's network namespace: {e}");
            std::process::abort();
        }
    }
}

fn enter(namespace: BorrowedFd) -> Result<(), Error> {
    Ok(move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))?)
}

/// The namespace of the calling thread.
pub(super) fn home() -> Result<OwnedFd, Error> {
    // Not /proc/thread-self, which 3.10 does not have.
    let path = format!("/proc/self/task/{}/ns/net", rustix::thread::gettid());
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn verify(fd: BorrowedFd, home: BorrowedFd) -> Result<(), Error> {
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
    let (ours, theirs) = (rustix::fs::fstat(home)?, rustix::fs::fstat(fd)?);
    if (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino) {
        return Err(Error::refused("it is the network namespace of the node, not one of a pod"));
    }
    Ok(())
}
