//! DEL: the one way back. It needs nothing but the attachment: no lease, no netns, no daemon.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::daemon;
use crate::cni::{Code, Failure};
use crate::error::{Context, Error};
use crate::kernel::netns::Netns;
use crate::pod::{Attachment, PodName};
use crate::rpc::{Refusal, Reply, Request, TOMBSTONES, Tombstone};
use crate::{client, kernel, ours};

/// A daemon that lives answers within the time of a few link deletions.
const PATIENCE: Duration = Duration::from_secs(15);

/// Where the daemon does not take over, the kernel is undone here; a silent one finds a tombstone when it is back.
pub fn del(attachment: &Attachment, netns: Option<&Path>, pod: Option<&PodName>) -> Result<(), Failure> {
    let daemon = match (release(attachment)?, pod) {
        (Daemon::Unaware, Some(pod)) => release_unnamed(pod, attachment, netns)?,
        (daemon, _) => daemon,
    };
    let doing = |e: Error| Failure::new(Code::Node, e.within(format!("delete {attachment}")));
    // What was a namespace may be a plain file by now, left by a mount that is gone.
    let is_there = |path: &&Path| Netns::open(path).is_ok();
    if let Daemon::Released = daemon {
        let further = netns.filter(|_| ours::further_table(&attachment.ifname).is_some()).filter(is_there);
        return further.map_or(Ok(()), |netns| kernel::unrule(netns, attachment).map_err(doing));
    }
    let host_link = pod.map(|pod| ours::host_veth(pod, &attachment.ifname));
    kernel::unwire(netns.filter(is_there), host_link.as_deref(), attachment).map_err(doing)?;
    let stone =
        Tombstone { attachment: attachment.clone(), pod: pod.cloned(), netns: netns.map(Path::to_owned), at: now() };
    if let Daemon::Silent = daemon { bury(&stone).map_err(doing) } else { Ok(()) }
}

/// What the daemon makes of a release.
enum Daemon {
    /// It has taken the attachment over.
    Released,
    /// It has, but for an ENI in the pod's namespace: it waits until that is home.
    Awaits,
    /// It holds no lease: what is there in the kernel was left by an ADD that was cut off.
    Unaware,
    /// It does not answer, is still starting, or cannot be understood.
    Silent,
}

fn release(attachment: &Attachment) -> Result<Daemon, Failure> {
    match client::ask(&Request::Release { attachment: attachment.clone() }, PATIENCE) {
        Ok(Reply::Released { whole: false }) => Ok(Daemon::Released),
        Ok(Reply::Released { whole: true }) => Ok(Daemon::Awaits),
        Ok(Reply::None {}) => Ok(Daemon::Unaware),
        Ok(Reply::Refused { why: Refusal::Starting, .. }) | Err(_) => Ok(Daemon::Silent),
        Ok(Reply::Refused { why, reason }) => Err(daemon::refused(why, &format!("delete {attachment}: {reason}"))),
        Ok(other) => Err(daemon::strange(&other)),
    }
}

/// The attachment lives again, as some runtimes have it: its tombstone must not take the new lease away.
pub fn revive(attachment: &Attachment) {
    // Usually there is none.
    let _ = fs::remove_file(tombstone(attachment));
}

/// The old Terway may have wired the pod and not have written its container down: then its name leads to the lease.
fn release_unnamed(pod: &PodName, attachment: &Attachment, netns: Option<&Path>) -> Result<Daemon, Failure> {
    match daemon::unnamed(pod, &attachment.ifname, netns) {
        Some(lease) => release(&lease.sandbox.attachment),
        None => Ok(Daemon::Unaware),
    }
}

fn tombstone(attachment: &Attachment) -> PathBuf {
    Path::new(ours::LEDGER).join(TOMBSTONES).join(format!("{}.json", attachment.file_name()))
}

/// Writes the tombstone in one step: whoever reads the folder sees all of it or nothing.
fn bury(stone: &Tombstone) -> Result<(), Error> {
    let path = tombstone(&stone.attachment);
    let text = serde_json::to_vec(stone)?;
    write_whole(&path, &text).context(|| format!("write {}", path.display()))
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn write_whole(path: &Path, text: &[u8]) -> Result<(), Error> {
    fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
    // A name of its own, as a second DEL of the attachment may be under way. The daemon passes over `.new`.
    let half = path.with_extension(format!("{}.new", std::process::id()));
    fs::write(&half, text)?;
    Ok(fs::rename(&half, path)?)
}
