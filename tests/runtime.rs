//! A real containerd calls the real binary.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use terway::pod::PodName;

use crate::sim::containerd::{self, Cni, Containerd};
use crate::sim::cri::{Cri, Listed, Pod, Sandbox};

const SOON: Duration = Duration::from_secs(10);

/// The life of two pods as a kubelet drives it. For now containerd calls the reference plugins, which proves the harness;
/// the aim is the same story with `type: terway` in the conflist, our binary in the directory of plugins, and `terwayd`
/// against the simulated cloud in the same node.
#[test]
fn two_pods_of_a_real_containerd_talk_to_each_other_and_leave_nothing() {
    if let Err(why) = containerd::install() {
        eprintln!("skipped: {why}");
        return;
    }
    let node = Node::new();
    let network = Network::new(&ptp(json!([[{ "subnet": "198.18.0.0/24" }]])), &reference_plugins());
    let containerd = Containerd::start(&network.cni(), |command| node.spawn(&command));
    containerd.await_network(SOON).unwrap();

    let web = timed("run web", || containerd.run_pod_sandbox(&Pod::new("default", "web", "uid-web"))).unwrap();
    let asker = timed("run asker", || containerd.run_pod_sandbox(&Pod::new("default", "asker", "uid-asker"))).unwrap();
    assert_eq!(web.ips, ["198.18.0.2".parse::<IpAddr>().unwrap()]);
    assert_eq!(asker.ips, ["198.18.0.3".parse::<IpAddr>().unwrap()]);
    let ready =
        |sandbox: &Sandbox, name| Listed { id: sandbox.id.clone(), pod: PodName::new("default", name), ready: true };
    assert_eq!(listed(&containerd), [ready(&asker, "asker"), ready(&web, "web")]);

    let page = "mkdir /www && echo hello from web >/www/index.html && exec httpd -f -p 80 -h /www";
    containerd.run(&web, "httpd", &["sh", "-c", page]).unwrap();
    let shell = containerd.run(&asker, "shell", &["sleep", "1000"]).unwrap();
    assert_eq!(fetch(&containerd, &shell, "198.18.0.2"), "hello from web\n");

    for sandbox in [&web, &asker] {
        timed("stop", || containerd.stop_pod_sandbox(&sandbox.id)).unwrap();
        timed("remove", || containerd.remove_pod_sandbox(&sandbox.id)).unwrap();
    }
    assert_eq!(listed(&containerd), []);
    assert_eq!(node.links(), ["lo"]);

    let cgroup = containerd.cgroup.clone();
    assert_ne!(cgroups(&cgroup), [PathBuf::new(); 0]);
    drop(containerd);
    assert_eq!(node.processes(), [node.holder.id()]);
    assert_eq!(cgroups(&cgroup), [PathBuf::new(); 0]);
}

#[test]
fn a_refused_add_reaches_the_kubelet_in_the_words_of_the_plugin() {
    if let Err(why) = containerd::install() {
        eprintln!("skipped: {why}");
        return;
    }
    let node = Node::new();
    let one_address = json!([[{ "subnet": "198.18.0.0/24", "rangeStart": "198.18.0.7", "rangeEnd": "198.18.0.7" }]]);
    let network = Network::new(&ptp(one_address), &reference_plugins());
    let containerd = Containerd::start(&network.cni(), |command| node.spawn(&command));
    containerd.await_network(SOON).unwrap();
    let first = containerd.run_pod_sandbox(&Pod::new("default", "first", "uid-first")).unwrap();

    let refusal = containerd.run_pod_sandbox(&Pod::new("default", "second", "uid-second")).unwrap_err();

    assert_eq!(refusal.code, 2);
    let words =
        r#"plugin type="ptp" failed (add): failed to allocate for range 0: no IP addresses available in range set"#;
    assert!(refusal.message.contains(words), "{refusal}");
    assert_eq!(listed(&containerd).into_iter().map(|sandbox| sandbox.id).collect::<Vec<_>>(), [first.id]);
    assert_eq!(node.links().len(), 2, "lo and the veth of the first pod");
}

fn ptp(ranges: serde_json::Value) -> String {
    let ipam = json!({ "type": "host-local", "ranges": ranges, "routes": [{ "dst": "0.0.0.0/0" }] });
    json!({ "cniVersion": "1.0.0", "name": "pods", "plugins": [{ "type": "ptp", "ipam": ipam }] }).to_string()
}

fn reference_plugins() -> [PathBuf; 3] {
    ["loopback", "ptp", "host-local"].map(|name| Path::new(containerd::REFERENCE_PLUGINS).join(name))
}

/// The page that a web server in another pod gives out, once it is up.
fn fetch(containerd: &Containerd, container: &str, ip: &str) -> String {
    let ask = format!("for try in 1 2 3 4 5 6 7 8 9; do wget -q -O - http://{ip}/ && exit 0; sleep 0.3; done; exit 1");
    let answer = containerd.exec_sync(container, &["sh", "-c", &ask], SOON).unwrap();
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    answer.stdout
}

fn listed(cri: &Cri) -> Vec<Listed> {
    let mut listed = cri.list_pod_sandboxes().unwrap();
    listed.sort_by(|a, b| a.pod.cmp(&b.pod));
    listed
}

fn timed<T>(what: &str, act: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let done = act();
    eprintln!("{what}: {:?}", start.elapsed());
    done
}

/// A network configuration and the binaries it names, in a directory of their own.
struct Network {
    dir: PathBuf,
}

impl Network {
    fn new(conflist: &str, plugins: &[PathBuf]) -> Network {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("cni-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let network = Network { dir: Path::new(env!("CARGO_TARGET_TMPDIR")).join(name) };
        let Cni { conf_dir, bin_dir } = &network.cni();
        fs::create_dir_all(conf_dir).unwrap();
        fs::create_dir_all(bin_dir).unwrap();
        fs::write(conf_dir.join("10-pods.conflist"), conflist).unwrap();
        for plugin in plugins {
            symlink(plugin, bin_dir.join(plugin.file_name().unwrap())).unwrap();
        }
        network
    }

    fn cni(&self) -> Cni {
        Cni { conf_dir: self.dir.join("net.d"), bin_dir: self.dir.join("bin") }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.dir).unwrap_or_else(|e| eprintln!("{} could not be deleted: {e}", self.dir.display()));
    }
}

/// The least that containerd takes for a node: a network and a mount namespace, held by a process that ends with us.
struct Node {
    holder: Child,
}

impl Node {
    fn new() -> Node {
        let hold = "mount -t tmpfs run /run && ip link set lo up && echo ready && exec cat";
        let mut unshare = Command::new("unshare");
        unshare.args(["--net", "--mount", "sh", "-c", hold]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut node = Node { holder: unshare.spawn().unwrap() };
        let mut line = String::new();
        BufReader::new(node.holder.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        node
    }

    fn spawn(&self, command: &Command) -> io::Result<Child> {
        self.command(command.get_program())
            .args(command.get_args())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
    }

    fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--net", "--mount", "--target", &self.holder.id().to_string(), "--"]).arg(program);
        command
    }

    /// Its network interfaces, of which pods must not leave any.
    fn links(&self) -> Vec<String> {
        let shown = self.command("ip").args(["-json", "link"]).output().unwrap();
        let links: Vec<serde_json::Value> = serde_json::from_slice(&shown.stdout).unwrap();
        links.iter().map(|link| link["ifname"].as_str().unwrap().to_owned()).collect()
    }

    /// All processes in its network namespace.
    fn processes(&self) -> Vec<u32> {
        let net = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        let here = net(self.holder.id());
        let numbers =
            fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
        numbers.filter(|pid| net(*pid) == here).collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        self.holder.wait().unwrap();
    }
}

/// The cgroups of that name, in any hierarchy.
fn cgroups(name: &str) -> Vec<PathBuf> {
    let hierarchies = fs::read_dir("/sys/fs/cgroup").unwrap().map(|entry| entry.unwrap().path());
    hierarchies
        .chain([PathBuf::from("/sys/fs/cgroup")])
        .map(|path| path.join(name))
        .filter(|path| path.exists())
        .collect()
}
