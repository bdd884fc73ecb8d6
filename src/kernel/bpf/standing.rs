//! The cgroups that the programs stand at, written down before they do, so that a life with another `cgroup_root` takes them away from
//! every one before.

use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::cgroup::Cgroup;
use super::services;
use crate::error::{Context, Error};
use crate::ours;

/// The programs are about to stand here too. Where they stood until now, and may stand since a life was cut off, elsewhere.
pub fn write_down(here: &Path) -> Result<Vec<PathBuf>, Error> {
    write_down_in(Path::new(ours::CGROUP_NOTE), here)
}

fn write_down_in(note: &Path, here: &Path) -> Result<Vec<PathBuf>, Error> {
    let written = read(note)?;
    let others: Vec<PathBuf> = written.iter().filter(|other| *other != here).cloned().collect();
    if others.len() == written.len() {
        write(note, others.iter().map(PathBuf::as_path).chain([here]))?;
    }
    Ok(others)
}

/// They stand here, and nowhere else. What is written changes only after that: a life that is cut off before does the same again.
pub fn move_from(others: &[PathBuf], here: &Path) -> Result<(), Error> {
    if others.is_empty() {
        return Ok(());
    }
    for other in others {
        clear(other)?;
        log::info!("Services are not led at cgroup {} any more: cgroup_root is another one", other.display());
    }
    write(Path::new(ours::CGROUP_NOTE), [here])
}

/// Whether there is anything of ours that leads Services, as far as files tell.
pub fn somewhere(root: &Path) -> bool {
    Path::new(ours::CGROUP_NOTE).exists() || !services::pinned(root).is_empty()
}

/// Services are others' affair from now on: our programs stand neither where it is written nor here, and no map is pinned. Who knows of
/// no cgroup and finds none written looks at the root.
pub fn leave(root: &Path, here: Option<&Cgroup>) -> Result<(), Error> {
    match (read(Path::new(ours::CGROUP_NOTE))?, here) {
        (written, None) if written.is_empty() => services::clear(&Cgroup::root()?)?,
        (written, here) => {
            written.iter().try_for_each(|one| clear(one))?;
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

/// A path a line.
fn read(note: &Path) -> Result<Vec<PathBuf>, Error> {
    match fs::read(note) {
        Ok(text) => {
            let lines = text.split(|b| *b == b'\n').filter(|line| !line.is_empty());
            Ok(lines.map(|line| PathBuf::from(OsStr::from_bytes(line))).collect())
        }
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e).context(|| format!("read {}", note.display())),
    }
}

fn write<'a>(note: &Path, paths: impl IntoIterator<Item = &'a Path>) -> Result<(), Error> {
    let lines: Vec<&[u8]> = paths.into_iter().map(|path| path.as_os_str().as_bytes()).collect();
    let beside = note.with_extension("new");
    let written = fs::write(&beside, lines.join(&b'\n')).and_then(|()| fs::rename(&beside, note));
    written.context(|| format!("write {}", note.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cgroup_is_written_down_before_the_programs_stand_there() {
        let folder = std::env::temp_dir().join(format!("terway-standing-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let note = folder.join("cgroup");
        let [a, b, c] = ["/sys/fs/cgroup/a", "/sys/fs/cgroup/b", "/sys/fs/cgroup/c"].map(PathBuf::from);
        let began = |here: &Path| write_down_in(&note, here).unwrap();
        // Each of these lives but the first two is cut off once the programs stand at the new one.
        let others = [&a, &a, &b, &b, &c].map(|here| began(here));
        assert_eq!(others.map(|others| others.len()), [0, 0, 1, 1, 2]);
        assert_eq!(read(&note).unwrap(), [a.clone(), b, c.clone()]);
        write(&note, [c.as_path()]).unwrap();
        // What an earlier release has written.
        assert_eq!((fs::read(&note).unwrap(), began(&a)), (c.as_os_str().as_bytes().to_vec(), vec![c]));
        fs::remove_dir_all(folder).unwrap();
    }
}
