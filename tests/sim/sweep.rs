//! Removes what an earlier run, killed before it could clean up, has left: processes, named network namespaces, cgroups.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};

/// What tells one namespace from another: device and inode.
pub type Identity = (u64, u64);

/// Removes the namespaces of runs whose process is dead, and kills what still runs inside.
pub fn sweep() {
    let left: Vec<PathBuf> = leftovers();
    if left.is_empty() {
        return;
    }
    let mut homes: Vec<Identity> = left.iter().filter_map(|path| identity(path)).collect();
    // Nodes have a mount namespace too, where processes of their pods are.
    let own = identity(Path::new("/proc/self/ns/mnt"));
    let mounts = processes().filter(|pid| is_inside(*pid, &homes)).filter_map(|pid| identity(&ns_of(pid, "mnt")));
    let mounts: Vec<Identity> = mounts.filter(|mounts| Some(*mounts) != own).collect();
    homes.extend(mounts);
    kill_inside(&homes);
    for path in &left {
        let name = path.file_name().expect("it is in a folder");
        // Another run may sweep at the same time.
        let _ = Command::new("ip").args(["netns", "del"]).arg(name).output();
    }
}

/// Removes cgroups of such runs from below this one; the programs that are attached to them go as well.
pub fn cgroups(parent: &Path) {
    for path in left_in(parent) {
        // Another run may sweep at the same time.
        let _ = fs::remove_dir(path);
    }
}

/// Kills every process in one of these network or mount namespaces, except ourselves.
pub fn kill_inside(homes: &[Identity]) {
    for pid in processes().filter(|pid| *pid != std::process::id() && is_inside(*pid, homes)) {
        // It may have ended by itself.
        let _ = kill_process(Pid::from_raw(pid as i32).expect("no process is 0"), Signal::KILL);
    }
}

pub fn identity(namespace: &Path) -> Option<Identity> {
    fs::metadata(namespace).ok().map(|file| (file.dev(), file.ino()))
}

/// Named `tw<pid>-...` by a process that is no more.
fn leftovers() -> Vec<PathBuf> {
    left_in(Path::new("/run/netns"))
}

/// The same in another folder.
pub fn left_in(folder: &Path) -> Vec<PathBuf> {
    let all = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    all.filter(|path| is_left(path)).collect()
}

fn is_left(path: &Path) -> bool {
    path.file_name().and_then(|name| maker(name.to_str()?)).is_some_and(|pid| !is_alive(pid))
}

fn maker(name: &str) -> Option<u32> {
    name.strip_prefix("tw")?.split_once('-')?.0.parse().ok()
}

fn is_alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").expect("/proc can be read");
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn is_inside(pid: u32, homes: &[Identity]) -> bool {
    ["net", "mnt"].iter().filter_map(|kind| identity(&ns_of(pid, kind))).any(|ns| homes.contains(&ns))
}

fn ns_of(pid: u32, kind: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/ns/{kind}"))
}
