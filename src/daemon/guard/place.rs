//! The cgroup that the programs stand at, written down so that a life with another `cgroup_root` takes them away from the one before.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::error::{Context, Error};
use crate::kernel::bpf::cgroup::Cgroup;
use crate::kernel::bpf::services;
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

/// They stand nowhere any more.
pub fn forget() -> Result<(), Error> {
    if let Some(before) = written_down()? {
        clear(&before)?;
    }
    match fs::remove_file(ours::CGROUP_NOTE) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e).context(|| format!("delete {}", ours::CGROUP_NOTE)),
        _ => Ok(()),
    }
}

/// A cgroup that is gone has taken its programs along.
fn clear(path: &Path) -> Result<(), Error> {
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
