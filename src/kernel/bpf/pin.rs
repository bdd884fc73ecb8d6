//! Maps that outlive us: pinned by name in a folder of bpffs, which is mounted where there is none.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FsWord, Mode};
use rustix::mount::{MountFlags, mount};

use super::map::Map;
use super::sys::{self, Shape};
use crate::error::{Context, Error};

const BPF_FS_MAGIC: FsWord = 0xcafe_4a11;

/// The folder `below` of the bpffs at `root` (`/sys/fs/bpf`), made where it is missing.
pub fn folder(root: &Path, below: &str) -> Result<PathBuf, Error> {
    mounted(root)?;
    let folder = root.join(below);
    std::fs::create_dir_all(&folder).context(|| format!("make {}", folder.display()))?;
    Ok(folder)
}

fn mounted(root: &Path) -> Result<(), Error> {
    let doing = || format!("mount bpffs at {}", root.display());
    let is_bpffs = || rustix::fs::statfs(root).is_ok_and(|fs| fs.f_type == BPF_FS_MAGIC);
    if is_bpffs() {
        return Ok(());
    }
    // Where sysfs has no such place, the kernel has no bpffs either.
    rustix::fs::mkdir(root, Mode::RWXU)
        .or_else(|e| if e == rustix::io::Errno::EXIST { Ok(()) } else { Err(e) })
        .context(doing)?;
    mount("bpf", root, "bpf", MountFlags::empty(), Some(c"mode=700")).context(doing)
}

/// The map that is pinned under its name in the folder, if there is one.
pub fn open(folder: &Path, name: &str) -> Result<Option<Map>, Error> {
    let path = folder.join(name);
    match sys::pinned(&path) {
        Ok(fd) => Map::of(name, fd).map(Some),
        Err(e) if e.errno() == Some(libc::ENOENT) => Ok(None),
        Err(e) => Err(e.within(format!("open {}", path.display()))),
    }
}

/// The pinned map of this name and shape; one that is missing, or of another shape, is made anew.
pub fn ensure(folder: &Path, name: &str, shape: &Shape) -> Result<(Map, Age), Error> {
    match open(folder, name)? {
        Some(map) if map.shape() == *shape => Ok((map, Age::Old)),
        _ => fresh(folder, name, shape).map(|map| (map, Age::New)),
    }
}

/// Whether a map was there before, with what is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Age {
    New,
    Old,
}

/// A new map in the place of whatever is pinned there; who uses the old one goes on using it.
pub fn fresh(folder: &Path, name: &str, shape: &Shape) -> Result<Map, Error> {
    let map = Map::create(name, shape)?;
    forget(folder, name)?;
    let path = folder.join(name);
    sys::pin(map.as_fd(), &path).context(|| format!("pin {}", path.display()))?;
    Ok(map)
}

/// Pins a map or program in the place of whatever is pinned there; who looks finds the one or the other.
pub fn replace(folder: &Path, name: &str, what: &impl AsFd) -> Result<(), Error> {
    let (path, new) = (folder.join(name), folder.join(format!("{name}-new")));
    forget(folder, &format!("{name}-new"))?;
    sys::pin(what.as_fd(), &new).context(|| format!("pin {}", new.display()))?;
    std::fs::rename(&new, &path).context(|| format!("rename {} to {name}", new.display()))
}

/// Takes the pin away, if there is one.
pub fn forget(folder: &Path, name: &str) -> Result<(), Error> {
    let path = folder.join(name);
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).context(|| format!("delete {}", path.display())),
        _ => Ok(()),
    }
}
