//! Network namespaces for tests: made, entered by a thread or a process, and gone when dropped, also when the test panics.

use std::fs::File;
use std::ops::{Deref, DerefMut};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// What a network namespace has, as far as it tells where packets go.
pub const LOOK: &str = "ip -d addr; ip rule; ip route show table all; ip neigh";

/// A named network namespace with its loopback up. Step into it with `ip netns exec NAME` while the test waits.
pub struct Ns {
    name: String,
    path: PathBuf,
}

impl Ns {
    /// The tag tells the namespaces of one test apart for people; the name is unique without it.
    pub fn new(tag: &str) -> Ns {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("tw{}-{}-{tag}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        sh(&format!("ip netns add {name}"));
        let ns = Ns { path: Path::new("/run/netns").join(&name), name };
        ns.sh("ip link set lo up");
        ns
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The path that a container runtime would put into CNI_NETNS.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs the closure on a thread inside the namespace; its panic becomes ours.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let enter = || {
            let file = File::open(&self.path).expect("open the namespace");
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).expect("enter the namespace");
            f()
        };
        match thread::scope(|scope| scope.spawn(enter).join()) {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Starts a process inside the namespace; it is killed when the guard is dropped.
    pub fn spawn(&self, command: &mut Command) -> Process {
        self.run(|| Process(command.spawn().unwrap_or_else(|e| panic!("start {command:?}: {e}"))))
    }

    /// Runs a process inside the namespace to its end, whatever that is.
    pub fn output(&self, command: &mut Command) -> Output {
        self.run(|| command.output().unwrap_or_else(|e| panic!("start {command:?}: {e}")))
    }

    /// Runs a shell line inside the namespace, which must succeed, for its standard output.
    pub fn sh(&self, line: &str) -> String {
        self.run(|| sh(line))
    }

    /// Runs a shell line inside the namespace and tells whether it succeeded.
    pub fn try_sh(&self, line: &str) -> bool {
        self.output(Command::new("sh").args(["-c", line])).status.success()
    }
}

impl Drop for Ns {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("namespace {} as the test left it:", self.name);
            let seen = Command::new("ip").args(["netns", "exec", &self.name, "sh", "-c", LOOK]).output();
            eprintln!("{}", seen.map_or_else(|e| e.to_string(), |o| String::from_utf8_lossy(&o.stdout).into_owned()));
        }
        let deleted = Command::new("ip").args(["netns", "del", &self.name]).status();
        if !deleted.is_ok_and(|status| status.success()) {
            eprintln!("namespace {} could not be deleted", self.name);
        }
    }
}

/// A process of a test; killed and reaped when dropped.
pub struct Process(pub Child);

impl Deref for Process {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for Process {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail when the process has ended and been waited for, which is what we want.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a shell line where this thread is; it must succeed.
pub fn sh(line: &str) -> String {
    let done = Command::new("sh").args(["-c", line]).output().expect("start sh");
    let stderr = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{line}: {}: {stderr}", done.status);
    String::from_utf8(done.stdout).expect("output is UTF-8")
}
