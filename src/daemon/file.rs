//! The configuration file, read again whenever it may have changed: by whom and how does not matter, be it an editor that
//! renames a new file into place or Kubernetes, which swaps the folder behind a symbolic link.

use std::io;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, os::fd::OwnedFd};

use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use smol::channel::Sender;
use smol::future;

use super::node::Input;
use super::reactor::{Async, Timer};
use crate::error::{Context, Error};

/// What is written in several steps is read once they are over.
const SETTLE: Duration = Duration::from_millis(100);
/// The file is also read after this long: a folder that was not there could not be watched.
const ANYWAY: Duration = Duration::from_secs(60);
/// Links on the way to a file, as the kernel bounds them.
const MOST_LINKS: usize = 40;

pub fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).context(|| format!("read {}", path.display()))
}

/// Tells of every text of the file that differs from the last one, from this one on, for as long as somebody listens.
pub async fn watch(path: PathBuf, known: Vec<u8>, inputs: Sender<Input>) {
    let mut last = Ok(known);
    loop {
        let watches = watch_way(&path).inspect_err(|e| log::warn!("watch {}: {e}", path.display())).ok();
        // Read after the watches stand: no change falls between the two.
        let text = read(&path);
        if text != last {
            last = text.clone();
            if inputs.send(Input::File(text)).await.is_err() {
                return;
            }
        }
        future::or(stir(watches), sleep(ANYWAY)).await;
        sleep(SETTLE).await;
    }
}

async fn sleep(time: Duration) {
    Timer::after(time).await;
}

/// Ends when something has happened on the way to the file.
async fn stir(watches: Option<Async<OwnedFd>>) {
    let Some(watches) = watches else { return future::pending().await };
    let mut buffer = [MaybeUninit::uninit(); 1024];
    let read = |fd: &OwnedFd| Reader::new(fd, &mut buffer).next().map(drop).map_err(io::Error::from);
    if let Err(e) = watches.read_with(read).await {
        log::warn!("inotify: {e}");
        sleep(ANYWAY).await;
    }
}

/// Watches every folder on the way to the file, symbolic links followed one by one.
fn watch_way(path: &Path) -> io::Result<Async<OwnedFd>> {
    let watches = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let what = WatchFlags::CLOSE_WRITE
        | WatchFlags::MOVED_TO
        | WatchFlags::MOVED_FROM
        | WatchFlags::CREATE
        | WatchFlags::DELETE
        | WatchFlags::DELETE_SELF
        | WatchFlags::MOVE_SELF;
    let mut step = path.to_owned();
    for _ in 0..MOST_LINKS {
        let Some(folder) = step.parent() else { break };
        inotify::add_watch(&watches, folder, what)?;
        let Ok(target) = fs::read_link(&step) else { break };
        step = folder.join(target);
    }
    Async::new(watches)
}
