//! A real containerd calls the real binary.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io::{self, BufRead, BufReader};
use std::net::IpAddr;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use terway::pod::PodName;

use crate::sim::containerd::{self, Cni, Containerd};
use crate::sim::cri::{Cri, Listed, Pod, Sandbox};

const SOON: Duration = Duration::from_secs(10);

/// The life of two pods as a kubelet drives it. For now containerd calls the reference plugins, which proves the harness;
/// the aim is the same story with `type: terway` in the conflist, our binary in the directory of plugins, and `terwayd`
/// against the simulated cloud in the same node.
#[test]
fn two_pods_of_a_real_containerd_talk_to_each_other_and_leave_nothing() {
    let Some(World { containerd, network: _network, node }) =
        World::new(&ptp(json!({ "subnet": "198.18.0.0/24" })), &REFERENCE)
    else {
        return;
    };

    let web = containerd.run_pod_sandbox(&Pod::new("default", "web", "uid-web")).unwrap();
    let asker = containerd.run_pod_sandbox(&Pod::new("default", "asker", "uid-asker")).unwrap();
    assert_eq!(web.ips, ["198.18.0.2".parse::<IpAddr>().unwrap()]);
    assert_eq!(asker.ips, ["198.18.0.3".parse::<IpAddr>().unwrap()]);
    assert_eq!(listed(&containerd), [ready(&asker, "asker"), ready(&web, "web")]);

    let page = "mkdir /www && echo hello from web >/www/index.html && exec httpd -f -p 80 -h /www";
    containerd.run(&web, "httpd", &["sh", "-c", page]).unwrap();
    let shell = containerd.run(&asker, "shell", &["sleep", "1000"]).unwrap();
    assert_eq!(fetch(&containerd, &shell, "198.18.0.2"), "hello from web\n");

    for sandbox in [&web, &asker] {
        containerd.stop_pod_sandbox(&sandbox.id).unwrap();
        containerd.remove_pod_sandbox(&sandbox.id).unwrap();
    }
    assert_eq!(listed(&containerd), []);
    assert_eq!(node.links(), ["lo"]);

    let cgroup = containerd.cgroup.clone();
    assert!(!cgroups(&cgroup).is_empty());
    drop(containerd);
    assert_eq!(node.processes(), [node.holder.id()]);
    assert!(cgroups(&cgroup).is_empty(), "{:?}", cgroups(&cgroup));
}

#[test]
fn a_refused_add_reaches_the_kubelet_in_the_words_of_the_plugin() {
    let one_address = json!({ "subnet": "198.18.0.0/24", "rangeStart": "198.18.0.7", "rangeEnd": "198.18.0.7" });
    let Some(World { containerd, network: _network, node }) = World::new(&ptp(one_address), &REFERENCE) else {
        return;
    };
    let first = containerd.run_pod_sandbox(&Pod::new("default", "first", "uid-first")).unwrap();

    let refusal = containerd.run_pod_sandbox(&Pod::new("default", "second", "uid-second")).unwrap_err();

    assert_eq!(refusal.code, 2);
    let words =
        r#"plugin type="ptp" failed (add): failed to allocate for range 0: no IP addresses available in range set"#;
    assert!(refusal.message.contains(words), "{refusal}");
    assert_eq!(listed(&containerd), [ready(&first, "first")]);
    assert_eq!(node.links().len(), 2, "lo and the veth of the first pod");
}

/// What a plugin has to understand, as a real runtime says it: capitals in the names within `runtimeConfig`, a burst that
/// means none, and a DEL that comes again without the namespace.
#[test]
fn a_plugin_is_told_who_the_pod_is_and_what_it_may_use() {
    let plugin = json!({ "type": "recorder", "capabilities": { "bandwidth": true, "portMappings": true } });
    let list = json!({ "cniVersion": "1.0.0", "cniVersions": ["1.0.0", "1.1.0"], "name": "pods", "plugins": [plugin] });
    let Some(World { containerd, network, .. }) = World::new(&list.to_string(), &["loopback"]) else { return };
    let mut pod = Pod::new("shop", "web-0", "uid-web");
    pod.annotations = vec![
        ("kubernetes.io/ingress-bandwidth".into(), "10M".into()),
        ("kubernetes.io/egress-bandwidth".into(), "1M".into()),
    ];
    pod.ports = vec![(8080, 80)];
    let told = json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "type": "recorder",
        "capabilities": { "bandwidth": true, "portMappings": true },
        "runtimeConfig": {
            "bandwidth": {
                "IngressRate": 10_000_000, "IngressBurst": 4_294_967_295u32,
                "EgressRate": 1_000_000, "EgressBurst": 4_294_967_295u32,
            },
            "portMappings": [{ "HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": "" }],
        },
    });

    let sandbox = containerd.run_pod_sandbox(&pod).unwrap();
    assert_eq!(sandbox.ips, ["198.18.0.9".parse::<IpAddr>().unwrap(), "fd00::9".parse().unwrap()]);
    let add = network.recorded("ADD");
    assert_eq!(add.stdin, told);
    assert_eq!(
        add.args,
        [
            "IgnoreUnknown=1",
            &format!("K8S_POD_INFRA_CONTAINER_ID={}", sandbox.id),
            "K8S_POD_NAME=web-0",
            "K8S_POD_NAMESPACE=shop",
            "K8S_POD_UID=uid-web",
        ]
    );
    assert_eq!((add.container.as_str(), add.ifname.as_str()), (sandbox.id.as_str(), "eth0"));
    assert!(add.netns.starts_with("/var/run/netns/cni-"), "{}", add.netns);

    containerd.stop_pod_sandbox(&sandbox.id).unwrap();
    let mut del = network.recorded("DEL");
    let previous = del.stdin.as_object_mut().unwrap().remove("prevResult").unwrap();
    assert_eq!(previous["ips"][0]["address"], "198.18.0.9/32");
    assert_eq!(del, add);

    containerd.remove_pod_sandbox(&sandbox.id).unwrap();
    assert_eq!(network.recorded("DEL"), Recorded { netns: String::new(), ..add });
}

const REFERENCE: [&str; 3] = ["loopback", "ptp", "host-local"];

fn ptp(range: Value) -> String {
    let ipam = json!({ "type": "host-local", "ranges": [[range]], "routes": [{ "dst": "0.0.0.0/0" }] });
    json!({ "cniVersion": "1.0.0", "name": "pods", "plugins": [{ "type": "ptp", "ipam": ipam }] }).to_string()
}

/// A node with a containerd that is ready for pods. What is dropped first stands first.
struct World {
    containerd: Containerd,
    network: Network,
    node: Node,
}

impl World {
    /// `None` where this machine cannot have one, which is said. The plugins are those of the reference.
    fn new(conflist: &str, plugins: &[&str]) -> Option<World> {
        if let Err(why) = containerd::install() {
            eprintln!("skipped: {why}");
            return None;
        }
        let node = Node::new();
        let network = Network::new(conflist, plugins);
        let containerd = Containerd::start(&network.cni(), |command| node.spawn(&command));
        containerd.await_network(SOON).unwrap();
        Some(World { containerd, network, node })
    }
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

fn ready(sandbox: &Sandbox, name: &str) -> Listed {
    Listed { id: sandbox.id.clone(), pod: PodName::new("default", name), ready: true }
}

/// A network configuration and the binaries it names, in a directory of their own.
struct Network {
    dir: PathBuf,
}

impl Network {
    fn new(conflist: &str, plugins: &[&str]) -> Network {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("cni-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let network = Network { dir: Path::new(env!("CARGO_TARGET_TMPDIR")).join(name) };
        let Cni { conf_dir, bin_dir } = &network.cni();
        fs::create_dir_all(conf_dir).unwrap();
        fs::create_dir_all(bin_dir).unwrap();
        fs::write(conf_dir.join("10-pods.conflist"), conflist).unwrap();
        for plugin in plugins {
            symlink(Path::new(containerd::REFERENCE_PLUGINS).join(plugin), bin_dir.join(plugin)).unwrap();
        }
        fs::write(bin_dir.join("recorder"), RECORDER).unwrap();
        fs::set_permissions(bin_dir.join("recorder"), Permissions::from_mode(0o755)).unwrap();
        network
    }

    fn cni(&self) -> Cni {
        Cni { conf_dir: self.dir.join("net.d"), bin_dir: self.dir.join("bin") }
    }

    /// What the recorder was told when it was last called with this verb.
    fn recorded(&self, verb: &str) -> Recorded {
        let text = fs::read_to_string(self.dir.join(format!("bin/{verb}"))).unwrap();
        let [container, ifname, netns, args, stdin] = text.splitn(5, '\n').collect::<Vec<_>>().try_into().unwrap();
        let mut args: Vec<String> = args.split(';').map(str::to_owned).collect();
        args.sort();
        let stdin = serde_json::from_str(stdin).unwrap();
        Recorded { container: container.into(), ifname: ifname.into(), netns: netns.into(), args, stdin }
    }
}

#[derive(Debug, PartialEq)]
struct Recorded {
    container: String,
    ifname: String,
    netns: String,
    /// Sorted: containerd says them in any order.
    args: Vec<String>,
    stdin: Value,
}

/// A plugin that writes down what it is told and says that all went well.
const RECORDER: &str = r#"#!/bin/sh
{ printf '%s\n' "$CNI_CONTAINERID" "$CNI_IFNAME" "$CNI_NETNS" "$CNI_ARGS"; cat; } >"$CNI_PATH/$CNI_COMMAND"
[ "$CNI_COMMAND" = DEL ] || echo '{
    "cniVersion": "1.0.0",
    "interfaces": [{ "name": "eth0", "sandbox": "'"$CNI_NETNS"'" }],
    "ips": [{ "address": "198.18.0.9/32", "interface": 0 }, { "address": "fd00::9/128", "interface": 0 }]
}'
"#;

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
        // As a slave it lets go of what others unmount meanwhile, such as the namespaces of other tests.
        unshare
            .args(["--net", "--mount", "--propagation", "slave", "sh", "-c", hold])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
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
        let links: Vec<Value> = serde_json::from_slice(&shown.stdout).unwrap();
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
