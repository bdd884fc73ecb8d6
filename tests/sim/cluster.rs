//! The whole: a VPC with nodes, the cloud, a Kubernetes API, and on each node the real terwayd and the real plugin.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use terway::ours::{LEDGER, SOCKET};
use terway::pod::PodName;

use super::cloud::{Config, InstanceSpec};
use super::cni::{Answer, Sandbox};
use super::http::Server;
use super::kube::{self, Kube};
use super::node::{Daemon, Pod};
use super::traffic::Place;
use super::world::{Ecs, KUBERNETES, OPENAPI, PODS, SERVICE_CIDR, World};

const PLUGIN: &str = "/opt/cni/bin/terway";
const CLI: &str = "/opt/terway/terway-cli";
pub const DAEMON: &str = "/opt/terway/terwayd";
pub const CONFLIST: &str = "/etc/cni/net.d/10-terway.conflist";
/// How long a daemon may take until it serves, and anything else until it is so.
pub const SOON: Duration = Duration::from_secs(20);

/// Fields are dropped in this order: daemons before the services they talk to.
pub struct Cluster {
    daemons: BTreeMap<usize, Daemon>,
    pub world: World,
    pub kube: Kube,
    api: Option<Server>,
}

/// A pod that a runtime has made a namespace for, and perhaps an ADD.
pub struct Member {
    pub node: usize,
    pub pod: Pod,
    pub sandbox: Sandbox,
    /// The first address of a successful ADD, and all of them.
    pub ip: String,
    pub ips: Vec<String>,
    pub took: Duration,
}

/// The binary under test: the released one where make built it, else what cargo built for the tests.
pub fn binary() -> PathBuf {
    std::env::var_os("TERWAY_BINARY").map_or_else(|| env!("CARGO_BIN_EXE_terway").into(), PathBuf::from)
}

impl Cluster {
    /// Nodes that are booted and configured; no daemon runs yet.
    pub fn new(config: Config, nodes: usize, instance_type: &str) -> Cluster {
        Cluster::over(World::with_nodes(config, nodes, instance_type))
    }

    /// The same over a world that stands already.
    pub fn over(world: World) -> Cluster {
        let kube = Kube::new();
        let api = kube.serve(world.fabric.listen(KUBERNETES.parse().expect("a literal")));
        let cluster = Cluster { daemons: BTreeMap::new(), world, kube, api: Some(api) };
        for n in 0..cluster.world.nodes.len() {
            cluster.kube.put(kube::node(&node_name(n), &format!("cn-hangzhou.{}", cluster.node(n).id)));
            cluster.equip(n);
        }
        cluster
    }

    /// Boots another node into the cluster; which it is.
    pub fn join(&mut self, spec: InstanceSpec) -> usize {
        self.world.add_node(spec);
        let n = self.world.nodes.len() - 1;
        self.kube.put(kube::node(&node_name(n), &format!("cn-hangzhou.{}", self.node(n).id)));
        self.equip(n);
        n
    }

    /// Puts the binary under its names, a kubeconfig and the usual configuration onto the node.
    fn equip(&self, n: usize) {
        let node = self.node(n);
        let binary = binary();
        for path in [PLUGIN, DAEMON, CLI] {
            node.install(&binary, path);
        }
        node.write_file("/etc/eni/kubeconfig", &self.kube.kubeconfig(KUBERNETES.parse().expect("a literal")));
        self.configure(n, &json!({}));
    }

    /// Writes the node's configuration; `over` is laid over the usual one.
    pub fn configure(&self, n: usize, over: &Value) {
        let mut config = json!({
            "version": "1",
            "node_name": node_name(n),
            "kubeconfig": "/etc/eni/kubeconfig",
            "ecs_endpoint": format!("http://{OPENAPI}"),
            "vpc_endpoint": format!("http://{OPENAPI}"),
            "vswitches": {"cn-hangzhou-h": [PODS]},
            "service_cidr": SERVICE_CIDR,
            "security_groups": ["sg-sim"],
            // Whoever wants them names a cgroup of the test's own: the default is the machine's root.
            "ebpf_services": false,
            "min_pool_size": 2,
            "max_pool_size": 10,
        });
        for (key, value) in over.as_object().expect("an object") {
            config[key] = value.clone();
        }
        self.node(n).write_file("/etc/eni/eni.json", &config.to_string());
    }

    pub fn node(&self, n: usize) -> &Ecs {
        &self.world.nodes[n]
    }

    /// Starts the daemon of a node.
    pub fn start(&mut self, n: usize) {
        self.start_with(n, &["--log-level", "debug"]);
    }

    pub fn start_with(&mut self, n: usize, args: &[&str]) {
        let daemon = self.launch(n, args);
        self.daemons.insert(n, daemon);
    }

    /// The same for those who look after it themselves.
    pub fn launch(&self, n: usize, args: &[&str]) -> Daemon {
        let mut command = Command::new(DAEMON);
        command.args(args);
        self.node(n).daemon("terwayd", &mut command)
    }

    /// Starts it and waits until it serves.
    pub fn start_ready(&mut self, n: usize) {
        self.start(n);
        self.wait_ready(n);
    }

    pub fn wait_ready(&mut self, n: usize) {
        let start = Instant::now();
        while self.call(n, "STATUS", &Value::Null).code != Some(0) {
            assert!(self.daemon(n).is_running(), "terwayd of node {n} has ended:\n{}", self.log(n));
            assert!(start.elapsed() < SOON, "terwayd of node {n} does not serve:\n{}", self.log(n));
            thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn daemon(&mut self, n: usize) -> &mut Daemon {
        self.daemons.get_mut(&n).expect("it was started")
    }

    /// Ends it between any two instructions.
    pub fn kill(&mut self, n: usize) {
        self.daemons.remove(&n).expect("it was started").kill();
    }

    /// Ends it as systemd would.
    pub fn stop(&mut self, n: usize) {
        let status = self.daemons.remove(&n).expect("it was started").terminate(SOON);
        assert_eq!(status.and_then(|s| s.code()), Some(0), "terwayd did not end cleanly");
    }

    /// Has the node start this program as its daemon from now on.
    pub fn release(&self, n: usize, program: &Path) {
        self.node(n).sh(&format!("rm -f {DAEMON}"));
        self.node(n).install(program, DAEMON);
    }

    /// How a daemon ends by itself, which it must: its exit code.
    pub fn ended(&mut self, n: usize) -> Option<i32> {
        let status = self.daemons.remove(&n).expect("it was started").wait(SOON);
        status.expect("terwayd ends by itself").code()
    }

    /// How many connections there were to the API server since it is there.
    pub fn visits(&self) -> u64 {
        self.api.as_ref().map_or(0, Server::visits)
    }

    /// The API server goes away, connections and all.
    pub fn api_down(&mut self) {
        self.api = None;
    }

    pub fn api_up(&mut self) {
        self.api = Some(self.kube.serve(self.world.fabric.listen(KUBERNETES.parse().expect("a literal"))));
    }

    pub fn log(&self, n: usize) -> String {
        self.daemons.get(&n).map_or_else(String::new, Daemon::log)
    }

    /// Schedules a pod onto the node and makes its namespace, as the kubelet and the runtime do before ADD.
    pub fn schedule(&self, n: usize, name: &str) -> Member {
        let name = PodName::new("default", name);
        self.kube.put(kube::pod(&name.namespace, &name.name, &node_name(n)));
        self.sandbox(n, name)
    }

    /// A (further) sandbox for a pod that the API server knows.
    pub fn sandbox(&self, n: usize, pod: PodName) -> Member {
        let container = format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..));
        let made = self.node(n).pod(&format!("{}-{}", pod.name, &container[..8]));
        let sandbox = Sandbox {
            plugin: PLUGIN.into(),
            container,
            netns: made.netns().to_owned(),
            ifname: "eth0".into(),
            uid: self.uid(&pod),
            pod,
            conf: conf(&Value::Null).to_string(),
        };
        Member { node: n, pod: made, sandbox, ip: String::new(), ips: Vec::new(), took: Duration::ZERO }
    }

    /// Which pod of this name there is, as the kubelet tells the runtime.
    pub fn uid(&self, pod: &PodName) -> Option<String> {
        let pod = self.kube.get("Pod", &pod.namespace, &pod.name)?;
        pod["metadata"]["uid"].as_str().map(String::from)
    }

    /// Schedules a pod and adds it, which must succeed.
    pub fn add(&self, n: usize, name: &str) -> Member {
        let mut member = self.schedule(n, name);
        self.wire(&mut member);
        member
    }

    /// ADD, which must succeed.
    pub fn wire(&self, member: &mut Member) -> Value {
        let answer = self.call_for(member, "ADD");
        assert_eq!(answer.code, Some(0), "ADD {}: {answer:?}\n{}", member.sandbox.pod, self.log(member.node));
        let result = answer.json();
        let addresses = result["ips"].as_array().expect("a list").iter();
        let address = |ip: &Value| ip["address"].as_str().and_then(|a| a.split('/').next().map(String::from));
        member.ips = addresses.map(|ip| address(ip).expect("an address with its length")).collect();
        member.ip = member.ips[0].clone();
        member.took = answer.took;
        result
    }

    /// DEL, which must succeed; the pod object goes too, and then the namespace.
    pub fn del(&self, member: Member) -> Duration {
        let answer = self.call_for(&member, "DEL").ok();
        let PodName { namespace, name } = &member.sandbox.pod;
        self.kube.delete("Pod", namespace, name);
        answer.took
    }

    /// Calls the plugin for a pod, from inside its node.
    pub fn call_for(&self, member: &Member, verb: &str) -> Answer {
        self.node(member.node).run(|| member.sandbox.call(verb))
    }

    /// ADD, which must be refused with this code; what it says.
    pub fn refused(&self, member: &Member, code: u64) -> String {
        let answer = self.call_for(member, "ADD");
        assert_ne!(answer.code, Some(0), "ADD {} succeeded: {answer:?}", member.sandbox.pod);
        assert_eq!(answer.json()["code"], code, "{answer:?}");
        answer.json()["msg"].as_str().expect("a failure has words").into()
    }

    /// Writes these bytes to the daemon's socket, and reads until it hangs up.
    pub fn say(&self, n: usize, words: &[u8]) -> String {
        let mut stream = self.dial(n);
        let mut heard = Vec::new();
        // A daemon that has heard enough hangs up in the middle of our words, or before it has read all of them.
        let _ = stream.write_all(words).and_then(|()| stream.read_to_end(&mut heard));
        String::from_utf8(heard).expect("the daemon speaks UTF-8")
    }

    /// A connection to the daemon's socket.
    pub fn dial(&self, n: usize) -> UnixStream {
        let stream = self.node(n).run(|| UnixStream::connect(SOCKET)).expect("terwayd listens");
        stream.set_read_timeout(Some(SOON)).expect("a timeout above zero");
        stream
    }

    /// The ledger's files of this kind, such as `leases`.
    pub fn ledger(&self, n: usize, kind: &str) -> Vec<String> {
        let names = self.node(n).sh(&format!("ls {LEDGER}/{kind}"));
        names.lines().map(String::from).collect()
    }

    /// Calls the plugin for no pod in particular; `over` is laid over the network configuration.
    pub fn call(&self, n: usize, verb: &str, over: &Value) -> Answer {
        self.node(n).run(|| {
            let mut command = Command::new(PLUGIN);
            command.env_clear().env("CNI_COMMAND", verb).env("CNI_PATH", "/opt/cni/bin");
            super::cni::exec(&mut command, &conf(over).to_string())
        })
    }

    /// What the daemon shows of itself.
    pub fn show(&self, n: usize) -> Value {
        let text = self.node(n).sh(&format!("{CLI} show"));
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("terway-cli show: {e}: {text}"))
    }
}

/// Members are gone before the cluster is.
impl Drop for Cluster {
    fn drop(&mut self) {
        if thread::panicking() {
            for n in self.daemons.keys() {
                let log = self.log(*n);
                let tail: Vec<&str> = log.lines().rev().take(60).collect();
                eprintln!("--- terwayd of node {n}:");
                tail.iter().rev().for_each(|line| eprintln!("{line}"));
            }
        }
    }
}

pub fn node_name(n: usize) -> String {
    format!("node-{}", n + 1)
}

/// The network configuration that a runtime passes.
pub fn conf(over: &Value) -> Value {
    let mut conf = json!({"cniVersion": "1.1.0", "name": "terway-chainer", "type": "terway"});
    for (key, value) in over.as_object().into_iter().flatten() {
        conf[key] = value.clone();
    }
    conf
}

/// Waits until it holds.
pub fn soon(what: &str, holds: impl FnMut() -> bool) {
    assert!(within(SOON, holds), "not within {} s: {what}", SOON.as_secs());
}

/// Whether it comes to hold in this time.
pub fn within(time: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        match holds() {
            true => return true,
            false if start.elapsed() > time => return false,
            false => thread::sleep(Duration::from_millis(20)),
        }
    }
}
