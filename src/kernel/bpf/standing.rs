//! The cgroup that the programs stand at, written down so that a life with another `cgroup_root` takes them away from the one before.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::cgroup::Cgroup;
use super::services;
use crate::error::{Context, Error};
use crate::ours;

/// The programs are about to stand here. Where they stood until now, if that is elsewhere.
pub fn write_down(here: &Path) -> Result<Option<PathBuf>, Error> {
    let before = written_down()?.filter(|before| before != here);
    if before.is_none() {
        write(here)?;
    }
    Ok(before)
}

/// They stand here, and no more there. What is written changes only after that: a life that is cut off before does the same again.
pub fn move_from(before: &Path, here: &Path) -> Result<(), Error> {
    clear(before)?;
    log::info!("Services are not led at cgroup {} any more: cgroup_root is another one", before.display());
    write(here)
}

/// Whether there is anything of ours that leads Services, as far as files tell.
pub fn somewhere(root: &Path) -> bool {
    Path::new(ours::CGROUP_NOTE).exists() || !services::pinned(root).is_empty()
}

/// Services are others' affair from now on: our programs stand neither where it is written nor here, and no map is pinned. Who knows of
/// no cgroup and finds none written looks at the root.
pub fn leave(root: &Path, here: Option<&Cgroup>) -> Result<(), Error> {
    match (written_down()?, here) {
        (None, None) => services::clear(&Cgroup::root()?)?,
        (before, here) => {
            before.as_deref().map_or(Ok(()), clear)?;
            here.map_or(Ok(()), services::clear)?;
        }
    }
    services::unpin(root)?;
    match fs::remove_file(ours::CGROUP_NOTE) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e).context(|| format!("delete {}", ours::CGROUP_NOTE)),
        _ => Ok(()),
    }
}

/// A cgroup that is gone has taken its programs along. A mount of our own may be seen by the process alone that made it.
fn clear(path: &Path) -> Result<(), Error> {
    if path == Path::new(ours::CGROUP2) {
        return services::clear(&Cgroup::root()?);
    }
    if !path.exists() {
        return Ok(());
    }
    services::clear(&Cgroup::at(path)?)
}

fn written_down() -> Result<Option<PathBuf>, Error> {
    match fs::read(ours::CGROUP_NOTE) {
        Ok(path) => Ok(Some(PathBuf::from(std::ffi::OsStr::from_bytes(&path)))),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).context(|| format!("read {}", ours::CGROUP_NOTE)),
    }
}

fn write(path: &Path) -> Result<(), Error> {
    let beside = format!("{}.new", ours::CGROUP_NOTE);
    let written = fs::write(&beside, path.as_os_str().as_bytes()).and_then(|()| fs::rename(&beside, ours::CGROUP_NOTE));
    written.context(|| format!("write {}", ours::CGROUP_NOTE))
}
