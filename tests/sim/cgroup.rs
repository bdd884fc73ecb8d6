//! A cgroup for some of our threads, below that of this process: programs that are attached to it see nobody else's sockets.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use terway::kernel::bpf::cgroup::Cgroup;

use super::sweep;

/// A cgroup for threads: below that of this process, which no program is ever attached to.
pub struct Threads(PathBuf);

impl Threads {
    pub fn new() -> Threads {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let root = Cgroup::root().unwrap();
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).expect("cgroup2");
        let name = format!("tw{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let own = root.path().join(own);
        sweep::cgroups(&own);
        let path = own.join(name);
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("cgroup.type"), "threaded").unwrap();
        Threads(path)
    }

    pub fn path(&self) -> &std::path::Path {
        &self.0
    }

    /// The calling thread is one of them from now on.
    pub fn join(&self) {
        let thread = rustix::thread::gettid().as_raw_nonzero().to_string();
        std::fs::write(self.0.join("cgroup.threads"), thread).unwrap();
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // A thread that was joined may take a moment more to leave.
        for _ in 0..100 {
            match std::fs::remove_dir(&self.0) {
                Ok(()) => return,
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
        eprintln!("cgroup {} could not be deleted", self.0.display());
    }
}
