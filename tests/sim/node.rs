//! One ECS instance on this machine: a network and a mount namespace with its own /run, /etc, /opt, /var and /sys.
//!
//! Everything it mounts lives in its mount namespace and goes with it, even when the test is killed; only the named network
//! namespace can stay behind (see [`super::sweep`]).

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use terway::ip::Mac;

use super::ns::{Ns, Process, sh};
use super::sweep::{self, Identity};
use super::traffic::Place;

pub struct Node {
    rooms: Arc<Rooms>,
}

/// The two namespaces of a node. Pods hold them too: their own can only be removed from in there.
struct Rooms {
    mounts: File,
    network: File,
    net: Ns,
}

impl Node {
    /// A node without any network interface but lo; plug its primary ENI in and call [`Node::dhcp`].
    pub fn new(tag: &str) -> Node {
        let net = Ns::new(tag);
        let own = |kind: &str| File::open(format!("/proc/thread-self/ns/{kind}")).expect("open our namespace");
        let (mounts, network) = net.run(|| {
            boot_sysctls();
            furnish();
            (own("mnt"), own("net"))
        });
        Node { rooms: Arc::new(Rooms { mounts, network, net }) }
    }

    pub fn ns(&self) -> &Ns {
        &self.rooms.net
    }

    /// The shell line that steps into the node while the test waits.
    pub fn nsenter(&self) -> String {
        let mounts = format!("/proc/{}/fd/{}", std::process::id(), self.rooms.mounts.as_raw_fd());
        format!("nsenter --mount={mounts} --net={}", self.ns().path().display())
    }

    /// What the distribution does at boot: eth0 gets its address, prefix and default route.
    pub fn dhcp(&self, addr: IpNet, gateway: IpAddr) {
        self.sh(&format!("ip addr add {addr} dev eth0"));
        self.link_up("eth0");
        self.sh(&format!("ip route add default via {gateway} dev eth0"));
    }

    /// The interface of this MAC, where the node (not a pod) has it.
    pub fn ifname(&self, mac: &str) -> Option<String> {
        let mac: Mac = mac.parse().expect("a MAC");
        let links: serde_json::Value = serde_json::from_str(&self.sh("ip -j link")).expect("ip prints JSON");
        let mut links = links.as_array().expect("a list").iter();
        let link = links.find(|link| link["address"] == mac.to_string().as_str())?;
        link["ifname"].as_str().map(String::from)
    }

    /// Writes a file of the node, and the folders above it. It is there whole or not at all.
    pub fn write_file(&self, path: &str, text: &str) {
        self.run(|| {
            let path = Path::new(path);
            make_folder(path.parent().expect("a file is in a folder"));
            let draft = path.with_extension("draft");
            fs::write(&draft, text)
                .and_then(|()| fs::rename(&draft, path))
                .unwrap_or_else(|e| panic!("write {path:?}: {e}"));
        });
    }

    /// Reads a file of the node, if it is there.
    pub fn read_file(&self, path: &str) -> Option<String> {
        self.run(|| match fs::read(path) {
            Ok(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(e) => panic!("read {path}: {e}"),
        })
    }

    /// Puts a program of this machine at a path of the node, such as `/opt/cni/bin/terway`.
    pub fn install(&self, program: &Path, path: &str) {
        self.run(|| {
            make_folder(Path::new(path).parent().expect("a file is in a folder"));
            symlink(program, path).unwrap_or_else(|e| panic!("install {path}: {e}"));
        });
    }

    /// Starts a daemon; what it says goes to `/var/log/NAME.log` of the node, after what an earlier one said.
    pub fn daemon(&self, name: &str, command: &mut Command) -> Daemon {
        let log = format!("/var/log/{name}.log");
        let process = self.run(|| {
            let file =
                File::options().append(true).create(true).open(&log).unwrap_or_else(|e| panic!("open {log}: {e}"));
            let again = file.try_clone().expect("a file descriptor");
            command.stdin(Stdio::null()).stdout(file).stderr(again);
            Process(command.spawn().unwrap_or_else(|e| panic!("start {command:?}: {e}")))
        });
        Daemon { process, log, rooms: Arc::clone(&self.rooms) }
    }

    /// Makes a network namespace for a pod as a runtime does, loopback up.
    pub fn pod(&self, name: &str) -> Pod {
        let path = Path::new("/run/netns").join(name);
        let net = self.run(|| {
            File::create_new(&path).unwrap_or_else(|e| panic!("create {}: {e}", path.display()));
            unshare(UnshareFlags::NEWNET);
            let born = "/proc/thread-self/ns/net";
            rustix::mount::mount_bind(born, &path).unwrap_or_else(|e| panic!("mount {}: {e}", path.display()));
            sh("ip link set lo up");
            File::open(born).expect("open our network namespace")
        });
        Pod { path, net: Some(net), rooms: Arc::clone(&self.rooms) }
    }
}

impl Place for Node {
    fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        self.rooms.run(f)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // What daemons have started and left behind, in the node itself or in a namespace of one of its pods.
        let mut homes: Vec<Identity> = self.run(|| {
            let pods = fs::read_dir("/run/netns").into_iter().flatten().flatten();
            pods.filter_map(|pod| sweep::identity(&pod.path())).collect()
        });
        for home in [&self.rooms.mounts, &self.rooms.network] {
            let home = home.metadata().expect("it is open");
            homes.push((home.dev(), home.ino()));
        }
        sweep::kill_inside(&homes);
    }
}

impl Rooms {
    fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        scoped(|| {
            // A thread that shares its working directory may not change its mounts.
            unshare(UnshareFlags::FS);
            enter(&self.mounts, LinkNameSpaceType::Mount);
            enter(&self.network, LinkNameSpaceType::Network);
            f()
        })
    }
}

/// A network namespace that a runtime made for a pod. Removed when dropped, and with it what the pod has left in it.
pub struct Pod {
    path: PathBuf,
    net: Option<File>,
    rooms: Arc<Rooms>,
}

impl Pod {
    /// What the runtime puts into CNI_NETNS.
    pub fn netns(&self) -> &Path {
        &self.path
    }

    /// The shell line that steps into the pod, with the files of its node.
    pub fn nsenter(&self) -> String {
        let fd = |file: &File| format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
        let net = self.net.as_ref().expect("it is there until the pod is dropped");
        format!("nsenter --mount={} --net={}", fd(&self.rooms.mounts), fd(net))
    }

    /// Removes the namespace, as a runtime does after DEL, or a crash does before it.
    pub fn remove(self) {}
}

impl Place for Pod {
    fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let net = self.net.as_ref().expect("it is there until the pod is dropped");
        self.rooms.run(|| {
            enter(net, LinkNameSpaceType::Network);
            f()
        })
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.net = None;
        let path = &self.path;
        let removed = self.rooms.run(|| {
            rustix::mount::unmount(path, UnmountFlags::DETACH)?;
            fs::remove_file(path)
        });
        // Somebody inside the node may have been faster.
        if let Err(e) = removed {
            eprintln!("pod namespace {}: {e}", path.display());
        }
    }
}

/// A daemon of a node; killed when dropped, without a word.
pub struct Daemon {
    process: Process,
    log: String,
    rooms: Arc<Rooms>,
}

impl Daemon {
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    pub fn is_running(&mut self) -> bool {
        self.process.try_wait().expect("it is our child").is_none()
    }

    /// What this daemon, and those of the same name before it, have said so far.
    pub fn log(&self) -> String {
        self.rooms
            .run(|| fs::read(&self.log).map_or_else(|e| e.to_string(), |b| String::from_utf8_lossy(&b).into_owned()))
    }

    /// Asks it to end (SIGTERM), and kills it where it has not in this time.
    pub fn terminate(self, patience: Duration) -> Option<ExitStatus> {
        self.signal(Signal::TERM);
        self.wait(patience)
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).expect("it is our child");
    }

    /// How it ended, where it does within this time; else it is killed.
    pub fn wait(mut self, patience: Duration) -> Option<ExitStatus> {
        let start = Instant::now();
        while start.elapsed() < patience {
            if let Some(status) = self.process.try_wait().expect("it is our child") {
                return Some(status);
            }
            thread::sleep(Duration::from_millis(5));
        }
        None
    }

    /// Ends it between any two of its instructions (SIGKILL).
    pub fn kill(self) {}
}

/// Settings of a distribution that the daemon must cope with. A new namespace would take them from this machine.
fn boot_sysctls() {
    for (name, value) in [
        ("ipv4/ip_forward", "0"),
        ("ipv4/conf/all/rp_filter", "1"),
        ("ipv4/conf/default/rp_filter", "1"),
        ("ipv4/conf/all/arp_ignore", "0"),
        ("ipv4/conf/all/arp_announce", "0"),
        ("ipv6/conf/all/forwarding", "0"),
        ("ipv6/conf/default/accept_ra", "1"),
    ] {
        fs::write(format!("/proc/sys/net/{name}"), value).unwrap_or_else(|e| panic!("sysctl {name}: {e}"));
    }
}

/// Gives the thread a mount namespace whose folders are its own, over those of this machine.
fn furnish() {
    unshare(UnshareFlags::NEWNS);
    propagate("/", MountPropagationFlags::PRIVATE);
    // Copies of other nodes' namespaces, which would not die while we hold them. Not mounted: none.
    let _ = rustix::mount::unmount("/run/netns", UnmountFlags::DETACH);
    mount("tmpfs", "/run", c"mode=755");
    for folder in ["/etc", "/opt", "/var"] {
        overlay(folder);
    }
    for folder in ["/etc/eni", "/etc/cni", "/opt/cni", "/var/lib/cni", "/var/log"] {
        make_folder(Path::new(folder));
        mount("tmpfs", folder, c"mode=755");
    }
    for folder in ["/run/netns", "/etc/cni/net.d", "/opt/cni/bin"] {
        make_folder(Path::new(folder));
    }
    renew_sys();
    // As systemd leaves it; container runtimes rely on it.
    propagate("/", MountPropagationFlags::SHARED);
}

/// Writes to the folder stay in the node.
fn overlay(folder: &str) {
    let (upper, work) = (format!("/run/overlay{folder}/upper"), format!("/run/overlay{folder}/work"));
    make_folder(Path::new(&upper));
    make_folder(Path::new(&work));
    let layers = CString::new(format!("lowerdir={folder},upperdir={upper},workdir={work}")).expect("no NUL");
    mount("overlay", folder, &layers);
}

/// A /sys that shows the links of the namespace the thread is in, with the machine's cgroups and a bpffs of its own.
fn renew_sys() {
    let (cgroup, aside) = ("/sys/fs/cgroup", "/run/cgroup");
    make_folder(Path::new(aside));
    rustix::mount::mount_bind_recursive(cgroup, aside).unwrap_or_else(|e| panic!("bind {cgroup}: {e}"));
    mount("sysfs", "/sys", c"");
    rustix::mount::mount_move(aside, cgroup).unwrap_or_else(|e| panic!("move {cgroup}: {e}"));
    mount("bpf", "/sys/fs/bpf", c"mode=700");
}

fn mount(kind: &str, at: &str, options: &CStr) {
    rustix::mount::mount(kind, at, kind, MountFlags::empty(), options)
        .unwrap_or_else(|e| panic!("mount {kind} on {at}: {e}"));
}

fn propagate(at: &str, how: MountPropagationFlags) {
    rustix::mount::mount_change(at, how | MountPropagationFlags::REC)
        .unwrap_or_else(|e| panic!("mount {at} {how:?}: {e}"));
}

fn make_folder(path: &Path) {
    fs::create_dir_all(path).unwrap_or_else(|e| panic!("create {}: {e}", path.display()));
}

fn enter(namespace: &File, kind: LinkNameSpaceType) {
    move_into_link_name_space(namespace.as_fd(), Some(kind)).unwrap_or_else(|e| panic!("enter {kind:?}: {e}"));
}

/// Its successor is unsafe on account of a flag that nobody passes here (FILES).
#[expect(deprecated)]
fn unshare(flags: UnshareFlags) {
    rustix::thread::unshare(flags).unwrap_or_else(|e| panic!("unshare {flags:?}: {e}"));
}

/// Runs the closure on a thread of its own, which ends with it; its panic becomes ours.
fn scoped<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    match thread::scope(|scope| scope.spawn(f).join()) {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
