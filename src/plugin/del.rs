//! DEL: the one way back. It needs nothing but the attachment: no lease, no netns, no daemon.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::daemon;
use crate::cni::{Code, Failure};
use crate::error::{Context, Error};
use crate::pod::Attachment;
use crate::rpc::{Refusal, Reply, Request, TOMBSTONES, Tombstone};
use crate::{client, kernel, ours};

/// A daemon that lives answers within the time of a few link deletions.
const PATIENCE: Duration = Duration::from_secs(15);
const SECOND_TRY: Duration = Duration::from_secs(5);

/// With the daemon silent the kernel is undone here and a tombstone is left.
///
/// Then it is asked once more: it may have started meanwhile and looked for tombstones before ours was there. It looks
/// after it has bound its socket, so when still nobody answers, it has not looked yet.
pub fn del(attachment: &Attachment) -> Result<(), Failure> {
    if released(attachment, PATIENCE)? {
        return Ok(());
    }
    let doing = |e: Error| Failure::new(Code::Node, e.within(format!("delete {attachment}")));
    kernel::unwire(attachment).map_err(doing)?;
    let tombstone = bury(attachment).map_err(doing)?;
    if released(attachment, SECOND_TRY)? {
        // Should it stay, the daemon finds at its next start that there is nothing left to retire.
        let _ = fs::remove_file(tombstone);
    }
    Ok(())
}

/// Whether the daemon has taken it over. A daemon that cannot be understood, or is still starting, has not.
fn released(attachment: &Attachment, patience: Duration) -> Result<bool, Failure> {
    match client::ask(&Request::Release { attachment: attachment.clone() }, patience) {
        Ok(Reply::None {}) => Ok(true),
        Ok(Reply::Refused { why: Refusal::Starting, .. }) => Ok(false),
        Ok(Reply::Refused { why, reason }) => Err(daemon::refused(why, &format!("delete {attachment}: {reason}"))),
        Ok(other) => Err(daemon::strange(&other)),
        Err(_) => Ok(false),
    }
}

/// Writes the tombstone in one step: whoever reads the folder sees all of it or nothing.
fn bury(attachment: &Attachment) -> Result<PathBuf, Error> {
    let folder = Path::new(ours::LEDGER).join(TOMBSTONES);
    let name = attachment.file_name();
    let path = folder.join(format!("{name}.json"));
    let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let text = serde_json::to_vec(&Tombstone { attachment: attachment.clone(), at })?;
    let write = || -> Result<(), Error> {
        fs::create_dir_all(&folder)?;
        // A name of its own, as a second DEL of the attachment may be under way. The daemon passes over `.new`.
        let half = folder.join(format!("{name}.{}.new", std::process::id()));
        fs::write(&half, text)?;
        Ok(fs::rename(&half, &path)?)
    };
    write().context(|| format!("write {}", path.display()))?;
    Ok(path)
}
