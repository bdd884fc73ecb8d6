//! cgroup2: where it is mounted, and which programs stand at its hooks. Attachments belong to the cgroup and outlive us.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FsWord, Mode, OFlags};
use rustix::mount::{MountFlags, mount};

use super::load::Program;
use super::sys;
use crate::error::{Context, Error};
use crate::ours;

const CGROUP2_SUPER_MAGIC: FsWord = 0x6367_7270;

/// A cgroup of the second version. What is attached to it counts for all that run in it and below it.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    fd: OwnedFd,
}

/// A program of ours at a hook.
#[derive(Debug)]
pub struct Attached {
    pub id: u32,
    pub name: String,
    fd: OwnedFd,
}

impl Cgroup {
    /// The root of all cgroups, where the machine has it mounted; where it has not (the distribution uses the first version), a mount
    /// of our own, which nobody else needs to know of.
    pub fn root() -> Result<Cgroup, Error> {
        if let Some(path) = mounted()? {
            return Cgroup::at(&path);
        }
        let own = Path::new(ours::CGROUP2);
        let doing = || format!("mount cgroup2 at {}", own.display());
        std::fs::create_dir_all(own).context(doing)?;
        mount("none", own, "cgroup2", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, None)
            .context(doing)?;
        Cgroup::at(own)
    }

    /// The cgroup at this path.
    pub fn at(path: &Path) -> Result<Cgroup, Error> {
        let doing = || format!("open cgroup {}", path.display());
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).context(doing)?;
        if rustix::fs::fstatfs(&fd).context(doing)?.f_type != CGROUP2_SUPER_MAGIC {
            return Err(Error::refused("it is not a cgroup of version 2").within(doing()));
        }
        Ok(Cgroup { path: path.into(), fd })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The programs of ours at this hook (`BPF_CGROUP_…`), in the order in which they run.
    pub fn attached(&self, hook: u32) -> Result<Vec<Attached>, Error> {
        let doing = || format!("look at hook {hook} of cgroup {}", self.path.display());
        let mut found = Vec::new();
        for id in sys::attached(self.fd.as_fd(), hook).context(doing)? {
            let Some(fd) = sys::program(id).context(doing)? else { continue };
            let name = sys::program_name(fd.as_fd()).context(doing)?;
            if name.starts_with(ours::BPF_PREFIX) {
                found.push(Attached { id, name, fd });
            }
        }
        Ok(found)
    }

    /// Has this program stand at its hook, and no other of ours: there is no moment without one.
    pub fn attach(&self, program: &Program) -> Result<(), Error> {
        let doing = || format!("attach {} to cgroup {}", program.name, self.path.display());
        let old = self.attached(program.hook)?;
        let Some((first, further)) = old.split_first() else { return self.add(program) };
        let (here, flags) = (self.fd.as_fd(), sys::ALLOW_MULTI | sys::REPLACE);
        match sys::attach(here, program.hook, program.as_fd(), flags, Some(first.fd.as_fd())) {
            Err(e) if e.errno() == Some(libc::EINVAL) => return self.exchange(program),
            result => result.context(doing)?,
        }
        further.iter().try_for_each(|further| self.detach(program.hook, further))
    }

    /// The same on kernels before 5.6, which cannot replace: for a moment old and new both see each socket, and what the first has led
    /// to a backend is no Service's address for the second.
    pub fn exchange(&self, program: &Program) -> Result<(), Error> {
        let old = self.attached(program.hook)?;
        self.add(program)?;
        old.iter().try_for_each(|old| self.detach(program.hook, old))
    }

    fn add(&self, program: &Program) -> Result<(), Error> {
        sys::attach(self.fd.as_fd(), program.hook, program.as_fd(), sys::ALLOW_MULTI, None)
            .context(|| format!("attach {} to cgroup {}", program.name, self.path.display()))
    }

    /// Takes every program of ours away from this hook.
    pub fn clear(&self, hook: u32) -> Result<(), Error> {
        self.attached(hook)?.iter().try_for_each(|program| self.detach(hook, program))
    }

    fn detach(&self, hook: u32, program: &Attached) -> Result<(), Error> {
        let doing = || format!("detach {} from cgroup {}", program.name, self.path.display());
        match sys::detach(self.fd.as_fd(), hook, program.fd.as_fd()) {
            Err(e) if e.errno() == Some(libc::ENOENT) => Ok(()),
            result => result.context(doing),
        }
    }
}

/// Where the whole tree of cgroup2 is mounted, if anywhere.
fn mounted() -> Result<Option<PathBuf>, Error> {
    const MOUNTS: &str = "/proc/thread-self/mountinfo";
    let mounts = std::fs::read_to_string(MOUNTS).context(|| format!("read {MOUNTS}"))?;
    Ok(mounts.lines().find_map(whole_tree))
}

/// The mount point of a line of mountinfo, if it shows cgroup2 from its root.
fn whole_tree(line: &str) -> Option<PathBuf> {
    let (mount, fs) = line.split_once(" - ")?;
    let mut words = mount.split(' ').skip(3);
    let (root, point) = (words.next()?, words.next()?);
    (root == "/" && fs.split(' ').next() == Some("cgroup2")).then(|| unescape(point))
}

/// The kernel writes spaces and the like as `\040`.
fn unescape(text: &str) -> PathBuf {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        plain.push_str(before);
        match after.get(..3).and_then(|code| u8::from_str_radix(code, 8).ok()) {
            Some(byte) => plain.push(byte.into()),
            None => return text.into(),
        }
        rest = &after[3..];
    }
    plain.push_str(rest);
    plain.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_that_shows_the_whole_tree_is_found() {
        let line = |root: &str, point: &str, kind: &str| {
            whole_tree(&format!("32 25 0:28 {root} {point} rw,relatime shared:9 - {kind} cgroup2 rw,nsdelegate"))
        };
        assert_eq!(line("/", "/sys/fs/cgroup", "cgroup2"), Some("/sys/fs/cgroup".into()));
        assert_eq!(line("/", "/a\\040b", "cgroup2"), Some("/a b".into()));
        assert_eq!(line("/pod", "/sys/fs/cgroup", "cgroup2"), None);
        assert_eq!(line("/", "/sys/fs/cgroup", "cgroup"), None);
        assert_eq!(whole_tree("nonsense"), None);
    }
}
