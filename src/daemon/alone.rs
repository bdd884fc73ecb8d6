//! One daemon a node: a lock that the kernel lets go of when its process ends, however it ends.

use std::fs::{DirBuilder, File, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crate::error::{Context, Error};

const PATIENCE: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(10);

/// The place of the node's daemon, held for as long as the file is open.
pub struct Place {
    _lock: File,
    /// When this life took it, and when the one before it did, whichever release that was.
    pub turn: SystemTime,
    pub last_turn: SystemTime,
}

/// Takes the place of the node's daemon; refused while another process holds it.
pub fn claim(path: &Path) -> Result<Place, Error> {
    take(path).context(|| format!("lock {}", path.display()))
}

fn take(path: &Path) -> Result<Place, Error> {
    if let Some(folder) = path.parent() {
        // The socket lives here too: the folder is for root alone.
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    let mut file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
    let start = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => break,
            // A child that a daemon was about to start when it ended holds the lock until it execs.
            Err(TryLockError::WouldBlock) if start.elapsed() < PATIENCE => thread::sleep(POLL),
            Err(TryLockError::WouldBlock) => return Err(taken(&mut file)),
            Err(TryLockError::Error(e)) => return Err(e.into()),
        }
    }
    let last_turn = file.metadata()?.modified()?;
    file.set_len(0)?;
    // For people. There may be no room for it.
    let _ = writeln!(file, "{}", std::process::id());
    Ok(Place { turn: file.metadata()?.modified()?, last_turn, _lock: file })
}

/// The holder wrote its process id, for people; one that took the lock a moment ago may not have yet.
fn taken(file: &mut File) -> Error {
    let mut holder = String::new();
    let who = match file.read_to_string(&mut holder) {
        Ok(_) if !holder.trim().is_empty() => format!(" (process {})", holder.trim()),
        _ => String::new(),
    };
    Error::refused(format!("another terwayd{who} serves this node; stop it first"))
}
