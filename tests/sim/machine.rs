//! A machine whose first process is systemd: Debian packages in a container, in the network namespace of a node.
//!
//! What it writes stays in memory. It dies with the thread that booted it; only cgroups can be left, for the next one to remove.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::cluster::within;
use super::ns::{Ns, Process};
use super::sweep;
use super::traffic::Place;

/// Where hierarchies may be mounted in which systemd keeps its units; a machine has one of them, or the first two.
const HIERARCHIES: [&str; 3] = ["/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
/// What nspawn would refuse that a real machine allows.
const ALLOWED: &str = "bpf perf_event_open @keyring @module";

/// A machine that tests share may be slow.
const BOOT: Duration = Duration::from_secs(90);

/// Where nspawn makes a folder for each container.
const PROPAGATE: &str = "/run/systemd/nspawn/propagate";

/// Fields are dropped in this order: a cgroup goes once nobody is in it.
pub struct Machine {
    nspawn: Process,
    cgroups: Vec<Group>,
    leader: u32,
}

/// A network namespace that `ip netns` of the machine has made.
pub struct Inside(File);

impl Machine {
    /// Boots, in the network of `ns`; the folder is `/packages` there.
    pub fn boot(root: &Path, ns: &Ns, packages: &Path) -> Machine {
        // Empty, and of killed runs.
        sweep::left_in(Path::new(PROPAGATE)).iter().for_each(|path| drop(fs::remove_dir(path)));
        let cgroups: Vec<Group> = Group::all();
        let join: String =
            cgroups.iter().map(|group| format!("echo $$ >{}/cgroup.procs; ", group.0.display())).collect();
        let has_systemd = Path::new(HIERARCHIES[0]).join("cgroup.procs").exists();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "sh", "-ec", &format!("{join} exec systemd-nspawn \"$@\""), "sh"]);
        command.args(["--quiet", "--boot", "--register=no", "--keep-unit", "--volatile=overlay", "--link-journal=no"]);
        command.args(["--console=pipe", "--capability=all", "--timezone=off", "--resolv-conf=off"]);
        command.arg(format!("--system-call-filter={ALLOWED}")).arg(format!("--directory={}", root.display()));
        command
            .arg(format!("--machine={}", ns.name()))
            .arg(format!("--network-namespace-path={}", ns.path().display()));
        command.arg(format!("--bind-ro={}:/packages", packages.display()));
        command.env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", if has_systemd { "0" } else { "1" });
        command.env("SYSTEMD_NSPAWN_API_VFS_WRITABLE", "1");
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let nspawn = Process(command.spawn().expect("start systemd-nspawn"));
        let mut leader = None;
        let has_begun = within(BOOT, || {
            leader = init_of(nspawn.id());
            leader.is_some()
        });
        assert!(has_begun, "the container has no first process");
        let machine = Machine { nspawn, cgroups, leader: leader.expect("it was just seen") };
        let has_booted = || {
            let state = machine.output("systemctl is-system-running");
            ["running\n", "degraded\n"].iter().any(|known| state.stdout == known.as_bytes())
        };
        assert!(within(BOOT, has_booted), "systemd does not boot");
        machine
    }

    /// A program of the machine, in all its namespaces.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        let target = self.leader.to_string();
        command.args(["--target", &target, "--mount", "--net", "--pid", "--uts", "--ipc", "--", program]);
        command
    }

    pub fn output(&self, line: &str) -> Output {
        self.command("sh").args(["-c", line]).stdin(Stdio::null()).output().expect("start nsenter")
    }

    /// A shell line, which must succeed.
    pub fn sh(&self, line: &str) -> String {
        let done = self.output(line);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(done.status.success(), "{line}: {}: {}{}", done.status, text(&done.stdout), text(&done.stderr));
        text(&done.stdout)
    }

    pub fn succeeds(&self, line: &str) -> bool {
        self.output(line).status.success()
    }

    /// A property of a unit, as `systemctl show` has it.
    pub fn property(&self, unit: &str, name: &str) -> String {
        let text = self.sh(&format!("systemctl show {unit} --property {name}"));
        text.trim().split_once('=').map_or_else(|| panic!("{unit} has no {name}: {text}"), |(_, value)| value.into())
    }

    pub fn write(&self, path: &str, text: &str) {
        let file = format!("/proc/{}/root{path}", self.leader);
        fs::write(&file, text).unwrap_or_else(|e| panic!("write {path}: {e}"));
    }

    /// Makes a network namespace as a runtime does for a pod.
    pub fn netns(&self, name: &str) -> Inside {
        self.sh(&format!("ip netns add {name} && ip -n {name} link set lo up"));
        let path = format!("/proc/{}/root/run/netns/{name}", self.leader);
        Inside(File::open(&path).unwrap_or_else(|e| panic!("open {path}: {e}")))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if thread::panicking() {
            let look = self.output("journalctl -b -n 80 --no-pager; systemctl status terwayd --no-pager");
            eprintln!("the machine as the test left it:\n{}", String::from_utf8_lossy(&look.stdout));
        }
        // With it go all others in the container, and nspawn sees them off.
        let init = Pid::from_raw(self.leader as i32).expect("no process is 0");
        let _ = kill_process(init, Signal::KILL);
        if !within(Duration::from_secs(5), || !matches!(self.nspawn.try_wait(), Ok(None))) {
            eprintln!("systemd-nspawn does not end by itself");
        }
    }
}

impl Place for Inside {
    fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network)).expect("enter the namespace");
            f()
        };
        match thread::scope(|scope| scope.spawn(inside).join()) {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

/// The child that nspawn has made the first process of the container.
fn init_of(nspawn: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{nspawn}/task/{nspawn}/children")).ok()?;
    let is_init = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "systemd\n");
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).find(is_init)
}

/// A cgroup of the machine's own, and those that its systemd makes below.
struct Group(PathBuf);

impl Group {
    /// One in each hierarchy; what killed runs have left goes.
    fn all() -> Vec<Group> {
        let there = HIERARCHIES.iter().map(Path::new).filter(|path| path.join("cgroup.procs").exists());
        let new = |parent: &Path| {
            sweep::left_in(parent).iter().for_each(|path| drop(remove(path)));
            let path = parent.join(format!("tw{}-machine", std::process::id()));
            fs::create_dir_all(&path).unwrap_or_else(|e| panic!("create {}: {e}", path.display()));
            Group(path)
        };
        there.map(new).collect()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Those who were killed may take a moment to leave.
        if !within(Duration::from_secs(5), || remove(&self.0).is_ok()) {
            eprintln!("cgroup {} could not be deleted", self.0.display());
        }
    }
}

/// The cgroup and all below it.
fn remove(path: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(path)?.flatten().filter(|entry| entry.path().is_dir()) {
        remove(&entry.path())?;
    }
    fs::remove_dir(path)
}
