//! A real containerd inside a simulated node: it calls our plugin as it would on a real one.
//!
//! Everything it makes lives in one tmpfs of the node, in one PID namespace and below one cgroup. A shell holds them
//! together: when its standard input closes, because the guard was dropped or because the test process is gone, it ends the
//! PID namespace and thereby containerd, its shims and all containers, and takes mounts and cgroups away.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::cri::{Cri, Sandbox};
use super::grpc::Status;
use super::image;
use super::node::Node;
use super::traffic::Place;

/// Everything containerd keeps, inside the node. The state must be here: it is where shims put their sockets, whatever is
/// configured.
const RUN: &str = "/run/containerd";
/// Where it looks for network configurations and for plugins.
const CONF_DIR: &str = "/etc/cni/net.d";
const BIN_DIR: &str = "/opt/cni/bin";
const STARTS_WITHIN: Duration = Duration::from_secs(20);

/// A running containerd; gone without a trace when dropped. Speaks CRI.
pub struct Containerd {
    cri: Cri,
    shell: Child,
    lifeline: Option<ChildStdin>,
}

impl Deref for Containerd {
    type Target = Cri;

    fn deref(&self) -> &Cri {
        &self.cri
    }
}

impl Containerd {
    /// Starts containerd on the node, ready for pods as soon as the node has a network configuration.
    pub fn start(node: &Node) -> Containerd {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("terway-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let loopback = Path::new(REFERENCE_PLUGINS).join("loopback");
        node.install(&loopback, &format!("{BIN_DIR}/loopback"));
        let mut command = Command::new("sh");
        command.args(["-c", SHELL, "containerd", &config(), &name, INSIDE]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut shell = node.run(|| command.spawn()).expect("start a shell in the node");
        let lifeline = shell.stdin.take();
        await_node(&mut shell);
        let socket = PathBuf::from(format!("/proc/{}/root{RUN}/containerd.sock", shell.id()));
        let containerd = Containerd { cri: Cri { socket, cgroup: name }, shell, lifeline };
        insist(STARTS_WITHIN, || containerd.version()).expect("containerd serves");
        containerd.import(&image::archive());
        containerd
    }

    /// Runs a command in a container of the one image there is.
    pub fn run(&self, sandbox: &Sandbox, name: &str, command: &[&str]) -> Result<String, Status> {
        self.run_container(sandbox, name, image::IMAGE, command)
    }

    /// Waits until containerd has found a network configuration it likes.
    pub fn await_network(&self, limit: Duration) -> Result<(), Status> {
        insist(limit, || self.network_ready())
    }

    /// What containerd has logged, which names the cause of every refusal.
    pub fn log(&self) -> String {
        fs::read_to_string(self.socket.with_file_name("log")).unwrap_or_default()
    }

    fn import(&self, archive: &[u8]) {
        let mut ctr = Command::new("ctr");
        ctr.arg("--address").arg(&self.socket).args(["--namespace", "k8s.io", "image", "import", "-"]);
        let mut ctr = ctr.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("start ctr");
        ctr.stdin.take().expect("ctr's input").write_all(archive).expect("hand the image to ctr");
        assert!(ctr.wait().expect("wait for ctr").success(), "ctr imports the image");
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("the end of containerd's log:\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
        }
        drop(self.lifeline.take());
        match self.shell.wait() {
            Ok(status) if status.success() => {}
            other => eprintln!("containerd has left something behind: {other:?}"),
        }
    }
}

/// Runs in the node: `$1` is the configuration, `$2` the name of the cgroup, `$3` what to run in the PID namespace.
const SHELL: &str = r#"
set -eu
trap '' INT
mkdir -p /run/containerd
mount -t tmpfs containerd /run/containerd
mount --make-private /run/containerd
printf %s "$1" >/run/containerd/config.toml
echo ready
set +e
# What plugins inherit is what a service has, not what a test has. Pod namespaces are mounted by containerd and seen by the
# whole node.
env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin unshare --pid --fork --mount-proc --propagation unchanged sh -c "$3"
umount --lazy /run/containerd
for try in 1 2 3 4 5 6 7 8 9 10; do
    find /sys/fs/cgroup -depth -type d "(" -path "*/$2" -o -path "*/$2/*" ")" -exec rmdir {} + 2>/dev/null
    [ -z "$(find /sys/fs/cgroup -type d -name "$2" 2>/dev/null)" ] && exit 0
    sleep 0.1
done
exit 1
"#;

/// The first process of the PID namespace, which ends with it.
const INSIDE: &str = r"
containerd --config /run/containerd/config.toml >/run/containerd/log 2>&1 &
cat >/dev/null
";

fn config() -> String {
    format!(
        r#"version = 2
root = "{RUN}/root"
state = "{RUN}"
[grpc]
  address = "{RUN}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{image}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    conf_dir = "{CONF_DIR}"
    bin_dir = "{BIN_DIR}"
"#,
        image = image::IMAGE,
    )
}

/// Waits for the shell to be inside the node with all mounts made.
fn await_node(shell: &mut Child) {
    let mut line = String::new();
    let mut stdout = BufReader::new(shell.stdout.take().expect("the shell's output is a pipe"));
    stdout.read_line(&mut line).expect("read from the shell");
    assert_eq!(line.trim(), "ready", "the node for containerd");
}

/// Tries again until it works or the time is up.
fn insist<T>(limit: Duration, mut attempt: impl FnMut() -> Result<T, Status>) -> Result<T, Status> {
    let end = Instant::now() + limit;
    loop {
        match attempt() {
            Err(_) if Instant::now() < end => thread::sleep(Duration::from_millis(20)),
            last => return last,
        }
    }
}

/// Installs what is missing of containerd, runc, the reference network plugins and a static busybox; `Err` says what this
/// machine cannot have.
pub fn install() -> Result<(), String> {
    static ONCE: Mutex<()> = Mutex::new(());
    let _one_at_a_time = ONCE.lock();
    let missing = missing();
    if missing.is_empty() {
        return Ok(());
    }
    let apt = |args: &[&str]| {
        let mut apt = Command::new("apt-get");
        apt.args(["-qq", "-o", "DPkg::Lock::Timeout=120"]).args(args).env("DEBIAN_FRONTEND", "noninteractive");
        apt.stdin(Stdio::null()).stdout(Stdio::null()).status().is_ok_and(|status| status.success())
    };
    apt(&["update"]);
    apt(&[&["install", "--yes", "--no-install-recommends"], missing.as_slice()].concat());
    match self::missing().as_slice() {
        [] => Ok(()),
        still => Err(format!("needs {}", still.join(" "))),
    }
}

/// Debian packages whose files are not there.
fn missing() -> Vec<&'static str> {
    let exists = |path: &str| Path::new(path).exists();
    let packages = [
        ("containerd", exists("/usr/bin/containerd") && exists("/usr/bin/ctr")),
        ("runc", exists("/usr/sbin/runc") || exists("/usr/bin/runc")),
        ("containernetworking-plugins", exists(REFERENCE_PLUGINS)),
        ("busybox-static", image::busybox_is_static()),
    ];
    packages.into_iter().filter(|(_, there)| !there).map(|(package, _)| package).collect()
}

/// Where Debian puts `loopback`, which containerd wants beside ours, and the others.
const REFERENCE_PLUGINS: &str = "/usr/lib/cni";
