//! The plugin as a runtime meets it: the real binary with good and hostile input, without a daemon and with one that misbehaves.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use terway::cni::{self, Call, Env, NetConf, Request, Version};
use terway::config::{Config, NodeFacts, Pace, Reclaim, Warning};
use terway::duration::go_duration;
use terway::ip::{IpPair, NetPair};
use terway::pod::{Attachment, PodName, Sandbox};
use terway::rate::{Both, Rate};
use terway::rpc::{EniLease, Lease, Marker, Refusal, Reply};

// ---- the binary by its names ----

/// A folder in which the binary stands under its three names; gone when dropped.
struct Names(PathBuf);

impl Names {
    fn new() -> Names {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("terway-plugin-{}-{n}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        for name in ["terway", "terwayd", "terway-cli"] {
            std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_terway"), folder.join(name)).unwrap();
        }
        Names(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What a command did, and how long it took.
#[derive(Debug)]
struct Done {
    code: i32,
    stdout: String,
    stderr: String,
    took: Duration,
}

impl Done {
    /// The error object on stdout: exactly its keys, and nothing else on stdout.
    fn failure(&self) -> (u64, String) {
        assert_eq!(self.code, 1, "{self:?}");
        let error: Value = serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:?}"));
        let keys: Vec<&str> = error.as_object().unwrap().keys().map(String::as_str).collect();
        assert!(keys == ["cniVersion", "code", "msg"] || keys == ["cniVersion", "code", "details", "msg"], "{keys:?}");
        let text = |key: &str| error.get(key).map_or("", |t| t.as_str().unwrap()).to_owned();
        (error["code"].as_u64().unwrap(), format!("{}; {}", text("msg"), text("details")))
    }

    fn failed_with(&self, code: u64, needle: &str) {
        let (got, text) = self.failure();
        assert_eq!(got, code, "{text}");
        assert!(text.contains(needle), "{needle:?} is not in {text:?}");
        assert!(!text.contains("panicked"), "{text}");
    }
}

fn run(command: &mut Command, stdin: &[u8]) -> Done {
    let start = Instant::now();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|e| panic!("start {command:?}: {e}"));
    // A command that does not read its input to the end closes the pipe, which is its right.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    Done {
        code: status.code().unwrap_or(-1),
        stdout: String::from_utf8(stdout).unwrap(),
        stderr: String::from_utf8(stderr).unwrap(),
        took: start.elapsed(),
    }
}

/// The environment of an ADD that nothing is wrong with.
fn env(verb: &str, netns: &str) -> BTreeMap<String, OsString> {
    [
        ("CNI_COMMAND", verb),
        ("CNI_CONTAINERID", "0123456789abcdef"),
        ("CNI_NETNS", netns),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/opt/cni/bin"),
        ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_UID=1-2"),
    ]
    .into_iter()
    .map(|(k, v)| (k.to_owned(), OsString::from(v)))
    .collect()
}

fn conf(version: &str) -> Vec<u8> {
    json!({"cniVersion": version, "name": "terway", "type": "terway"}).to_string().into_bytes()
}

// ---- a node of our own ----

/// A mount and a network namespace with an empty /run, and in it the namespace of a pod; all gone when dropped.
struct Node {
    keeper: Child,
    names: Names,
}

const POD: &str = "/run/netns/pod";

impl Node {
    fn new() -> Node {
        let script = "mount -t tmpfs tmpfs /run && mkdir -p /run/eni /run/terway && ip link set lo up && \
                      ip netns add pod && echo ready && read wait";
        let mut keeper = Command::new("unshare")
            .args(["-m", "-n", "sh", "-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start unshare");
        let mut line = String::new();
        BufReader::new(keeper.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let node = Node { keeper, names: Names::new() };
        assert_eq!(line, "ready\n", "the namespaces could not be made");
        node
    }

    /// A path inside the node as we reach it from outside.
    fn reach(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.keeper.id()))
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.keeper.id().to_string(), "-m", "-n", "--"]).arg(self.names.path(name)).env_clear();
        command
    }

    /// One call of the plugin with a changed environment and this stdin.
    fn call_with(&self, env: &Env, stdin: &[u8]) -> Done {
        run(self.command("terway").envs(env), stdin)
    }

    fn call(&self, verb: &str, version: &str) -> Done {
        self.call_with(&env(verb, POD), &conf(version))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

/// What a scripted daemon does with a connection.
#[derive(Clone)]
enum Act {
    /// Reads the request and answers with a line.
    Say(String),
    /// Reads the request, writes this, hangs up.
    Write(Vec<u8>),
    /// Hangs up without reading.
    HangUp,
    /// Reads the request and says nothing until it is stopped.
    Sleep,
}

/// A daemon that does as it is told, connection by connection (the last act again and again), and remembers what it was asked.
struct Daemon {
    asked: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Daemon {
    fn new(node: &Node, acts: &[Act]) -> Daemon {
        let path = node.reach("/run/eni/eni.socket");
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (asked, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (acts, heard, stopped) = (acts.to_vec(), asked.clone(), stop.clone());
        let thread = thread::spawn(move || {
            let mut sleeping = Vec::new();
            let mut next = 0;
            while !stopped.load(Ordering::Relaxed) {
                let Ok((stream, _)) = listener.accept() else {
                    thread::sleep(Duration::from_millis(2));
                    continue;
                };
                sleeping.extend(serve(stream, &acts[next.min(acts.len() - 1)], &heard));
                next += 1;
            }
        });
        Daemon { asked, stop, thread: Some(thread) }
    }

    fn asked(&self) -> Vec<Value> {
        self.asked.lock().unwrap().iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().unwrap().join();
    }
}

fn serve(stream: UnixStream, act: &Act, heard: &Mutex<Vec<String>>) -> Option<UnixStream> {
    stream.set_nonblocking(false).unwrap();
    if let Act::HangUp = act {
        return None;
    }
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line).unwrap();
    heard.lock().unwrap().push(line);
    // The plugin may leave in the middle of an answer that is too long for it.
    match act {
        Act::Say(line) => drop((&stream).write_all(format!("{line}\n").as_bytes())),
        Act::Write(bytes) => drop((&stream).write_all(bytes)),
        Act::Sleep => return Some(stream),
        Act::HangUp => {}
    }
    None
}

fn say(reply: &Reply) -> Act {
    Act::Say(serde_json::to_string(reply).unwrap())
}

fn refuse(why: Refusal, reason: &str) -> Act {
    say(&Reply::Refused { why, reason: reason.into() })
}

fn lease() -> Lease {
    Lease {
        pod: PodName::new("default", "web-0"),
        sandbox: Sandbox {
            attachment: Attachment { container: "0123456789abcdef".into(), ifname: "eth0".into() },
            netns: POD.into(),
        },
        ip: IpPair::v4("192.168.7.9".parse().unwrap()),
        eni: EniLease {
            id: "eni-1".into(),
            mac: "00:16:3e:00:00:01".parse().unwrap(),
            vswitch: "vsw-1".into(),
            cidr: NetPair::v4("192.168.4.0/22".parse().unwrap()),
            gateway: IpPair::v4("192.168.7.253".parse().unwrap()),
            slot: 1,
            table: 1003,
        },
        node: IpPair::v4("192.168.0.10".parse().unwrap()),
        marker: Marker::Rule,
        sticky: false,
        heritage: None,
        bandwidth: Both::default(),
        wiring: Default::default(),
        routes: Vec::new(),
        seat: None,
        mtu: None,
        network: None,
    }
}

fn leased() -> Act {
    say(&Reply::Lease(Box::new(lease())))
}

// ---- names ----

#[test]
fn the_file_name_decides_who_the_binary_is() {
    let names = Names::new();
    let version = format!("terway {}\n", env!("CARGO_PKG_VERSION"));
    let done = run(Command::new(names.path("terway-cli")).arg("--version").env_clear(), b"");
    assert_eq!((done.code, done.stdout.as_str()), (0, version.as_str()));
    let done = run(Command::new(names.path("terway")).args(["cli", "--version"]).env_clear(), b"");
    assert_eq!((done.code, done.stdout.as_str()), (0, version.as_str()));
    let done = run(Command::new(names.path("terway-cli")).arg("--nonsense").env_clear(), b"");
    assert_eq!(done.code, 2);
    assert!(done.stdout.is_empty() && done.stderr.contains("--nonsense"), "{done:?}");
}

#[test]
fn without_a_command_the_plugin_says_what_it_is() {
    let names = Names::new();
    let done = run(Command::new(names.path("terway")).env_clear(), b"");
    assert_eq!((done.code, done.stdout.as_str()), (0, ""));
    assert!(done.stderr.starts_with("CNI plugin terway "), "{done:?}");
    assert!(done.stderr.ends_with("supported: 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0\n"), "{done:?}");
}

#[test]
fn version_is_answered_whatever_else_is_missing() {
    let names = Names::new();
    let supported = r#""supportedVersions":["0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}"#;
    for (stdin, version) in [
        (r#"{"cniVersion":"0.4.0"}"#, "0.4.0"),
        (r#"{"cniVersion":"1.1.0"}"#, "1.1.0"),
        (r#"{"cniVersion":"9.9.9"}"#, "1.1.0"),
        ("not JSON", "1.1.0"),
        ("", "1.1.0"),
    ] {
        let done = run(Command::new(names.path("terway")).env_clear().env("CNI_COMMAND", "VERSION"), stdin.as_bytes());
        assert_eq!(done.code, 0);
        assert_eq!(done.stdout, format!(r#"{{"cniVersion":"{version}",{supported}"#));
    }
}

// ---- input of every bad kind ----

#[test]
fn bad_variables_are_answered_with_code_4_and_their_name() {
    let names = Names::new();
    let long = "a".repeat(201);
    let deep = format!("/run/{}", "n/".repeat(2100));
    let label = format!("K8S_POD_NAME=web-0;K8S_POD_NAMESPACE={}", "n".repeat(64));
    let name = format!("K8S_POD_NAMESPACE=default;K8S_POD_NAME={}", "n".repeat(254));
    for (verb, variable, value, needle) in [
        ("add", "CNI_COMMAND", "add", r#"CNI_COMMAND is "add"; it must be one of ADD, DEL"#),
        ("ADD", "CNI_COMMAND", "\u{1b}[2J", r"\u{1b}[2J"),
        ("ADD", "CNI_CONTAINERID", "", "CNI_CONTAINERID is not set"),
        ("DEL", "CNI_CONTAINERID", "", "CNI_CONTAINERID is not set"),
        ("ADD", "CNI_CONTAINERID", "../../etc", "CNI_CONTAINERID"),
        ("ADD", "CNI_CONTAINERID", "-abc", "CNI_CONTAINERID"),
        ("ADD", "CNI_CONTAINERID", "a/b", "CNI_CONTAINERID"),
        ("DEL", "CNI_CONTAINERID", "a@b", "CNI_CONTAINERID"),
        ("ADD", "CNI_CONTAINERID", &long, "CNI_CONTAINERID"),
        ("ADD", "CNI_IFNAME", "", "CNI_IFNAME is not set"),
        ("ADD", "CNI_IFNAME", "sixteen-bytes-xx", "CNI_IFNAME"),
        ("ADD", "CNI_IFNAME", "..", "CNI_IFNAME"),
        ("ADD", "CNI_IFNAME", ".", "CNI_IFNAME"),
        ("DEL", "CNI_IFNAME", "e/0", "CNI_IFNAME"),
        ("ADD", "CNI_IFNAME", "e:0", "CNI_IFNAME"),
        ("ADD", "CNI_IFNAME", "e 0", "CNI_IFNAME"),
        ("ADD", "CNI_IFNAME", "e\u{7}0", r"e\u{7}0"),
        ("ADD", "CNI_NETNS", "", "CNI_NETNS is not set"),
        ("CHECK", "CNI_NETNS", "", "CNI_NETNS is not set"),
        ("ADD", "CNI_NETNS", "run/netns/x", "run/netns/x"),
        ("ADD", "CNI_NETNS", "/run/netns/../../etc/passwd", "/run/netns/../../etc/passwd"),
        ("ADD", "CNI_NETNS", "/run/netns/a\nb", r"a\nb"),
        ("ADD", "CNI_NETNS", &deep, "CNI_NETNS"),
        ("ADD", "CNI_ARGS", "", "CNI_ARGS is not set"),
        ("ADD", "CNI_ARGS", "K8S_POD_NAME", r#""K8S_POD_NAME" is not KEY=VALUE"#),
        ("ADD", "CNI_ARGS", "K8S_POD_NAMESPACE=default;=web-0", r#""=web-0" is not KEY=VALUE"#),
        ("ADD", "CNI_ARGS", "K8S_POD_NAMESPACE=default", "K8S_POD_NAME is missing"),
        ("ADD", "CNI_ARGS", "K8S_POD_NAME=web-0", "K8S_POD_NAMESPACE is missing"),
        ("ADD", "CNI_ARGS", "K8S_POD_NAMESPACE=a.b;K8S_POD_NAME=web-0", r#"K8S_POD_NAMESPACE is "a.b""#),
        ("ADD", "CNI_ARGS", "K8S_POD_NAMESPACE=default;K8S_POD_NAME=Web", r#"K8S_POD_NAME is "Web""#),
        ("ADD", "CNI_ARGS", "K8S_POD_NAMESPACE=default;K8S_POD_NAME=a..b", r#"K8S_POD_NAME is "a..b""#),
        ("ADD", "CNI_ARGS", "K8S_POD_NAMESPACE=default;K8S_POD_NAME=../x", r#"K8S_POD_NAME is "../x""#),
        ("ADD", "CNI_ARGS", &label, "K8S_POD_NAMESPACE"),
        ("ADD", "CNI_ARGS", &name, "K8S_POD_NAME"),
    ] {
        let mut env = env(verb, "/run/netns/nowhere");
        env.insert(variable.into(), value.into());
        let done = run(Command::new(names.path("terway")).env_clear().envs(&env), &conf("1.0.0"));
        done.failed_with(4, needle);
        assert!(done.stdout.len() < 600, "{done:?}");
        assert!(done.took < Duration::from_secs(20), "{done:?}");
    }
}

#[test]
fn a_variable_that_is_not_utf8_is_answered_with_code_4() {
    let names = Names::new();
    for variable in ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_ARGS"] {
        let mut env = env("ADD", "/run/netns/nowhere");
        env.insert(variable.into(), OsString::from_vec(vec![b'/', 0xff, 0xfe]));
        let done = run(Command::new(names.path("terway")).env_clear().envs(&env), &conf("1.0.0"));
        done.failed_with(4, &format!("{variable} is "));
    }
}

#[test]
fn a_bad_stdin_is_answered_with_its_code_and_what_is_wrong() {
    let names = Names::new();
    let huge = format!(r#"{{"cniVersion":"1.0.0","x":"{}"}}"#, "x".repeat(1 << 20));
    let nested = format!(r#"{{"cniVersion":"1.0.0","x":{}"#, "[".repeat(100_000));
    let key = |pair: &str| format!(r#"{{"cniVersion":"1.0.0","name":"terway",{pair}}}"#);
    for (verb, stdin, code, needle) in [
        ("ADD", "", 6, "stdin: EOF"),
        ("ADD", "not JSON", 6, "stdin: "),
        ("DEL", "{", 6, "stdin: "),
        ("ADD", "[]", 6, "[] is not a JSON object"),
        ("GC", "null", 6, "null is not a JSON object"),
        ("ADD", "{}{}", 6, "stdin: trailing"),
        ("STATUS", &huge, 6, "longer than 1048576 bytes"),
        ("ADD", &nested, 6, "recursion"),
        ("ADD", "{}", 1, "no cniVersion"),
        ("DEL", "{}", 1, "no cniVersion"),
        ("ADD", r#"{"cniVersion":"0.2.0"}"#, 1, r#""0.2.0""#),
        ("DEL", r#"{"cniVersion":"2.0.0"}"#, 1, r#""2.0.0""#),
        ("ADD", r#"{"cniVersion":"1.0"}"#, 1, r#""1.0""#),
        ("ADD", r#"{"cniVersion":1}"#, 7, "cniVersion is 1; it must be a text"),
        ("CHECK", r#"{"cniVersion":"0.3.1"}"#, 1, "0.3.1 has no Check"),
        ("GC", r#"{"cniVersion":"1.0.0"}"#, 1, "1.0.0 has no Gc"),
        ("STATUS", r#"{"cniVersion":"0.4.0"}"#, 1, "0.4.0 has no Status"),
        ("ADD", r#"{"cniVersion":"1.0.0"}"#, 7, "name is missing"),
        ("ADD", r#"{"cniVersion":"1.0.0","name":"../x"}"#, 7, r#"name is "../x""#),
        ("ADD", &key(r#""mtu":"1500""#), 7, r#"mtu is "1500"; it must be a whole number from 576 to 9216"#),
        ("ADD", &key(r#""mtu":575"#), 7, "mtu is 575"),
        ("ADD", &key(r#""mtu":9217"#), 7, "mtu is 9217"),
        ("ADD", &key(r#""mtu":-1"#), 7, "mtu is -1"),
        ("ADD", &key(r#""mtu":1500.5"#), 7, "mtu is 1500.5"),
        (
            "ADD",
            &key(r#""eniip_virtual_type":"macvlan""#),
            7,
            r#"eniip_virtual_type is "macvlan"; it must be one of Veth"#,
        ),
        ("ADD", &key(r#""host_stack_cidrs":"169.254.20.10/32""#), 7, "host_stack_cidrs is "),
        ("ADD", &key(r#""host_stack_cidrs":["169.254.20.10/33"]"#), 7, r#"host_stack_cidrs[] is "169.254.20.10/33""#),
        ("ADD", &key(r#""bandwidth_mode":"hfsc""#), 7, r#"bandwidth_mode is "hfsc""#),
        ("ADD", &key(r#""vlan_strip_type":7"#), 7, "vlan_strip_type is 7"),
        ("ADD", &key(r#""debug":"yes""#), 7, r#"debug is "yes"; it must be true or false"#),
        ("ADD", &key(r#""capabilities":[]"#), 7, "capabilities is []"),
        (
            "ADD",
            &key(r#""symmetric_routing_config":{"mark":4294967296}"#),
            7,
            "symmetric_routing_config.mark is 4294967296",
        ),
        (
            "ADD",
            &key(r#""runtimeConfig":{"bandwidth":{"ingressRate":-5}}"#),
            7,
            "runtimeConfig.bandwidth.ingressRate is -5",
        ),
        (
            "ADD",
            &key(r#""runtimeConfig":{"portMappings":[{"hostPort":65536}]}"#),
            7,
            "portMappings[].hostPort is 65536",
        ),
        ("CHECK", &key(r#""prevResult":[]"#), 7, "prevResult is []"),
        ("CHECK", &key(r#""prevResult":{"ips":[{"address":"x"}]}"#), 7, "prevResult.ips[] is "),
        ("GC", r#"{"cniVersion":"1.1.0"}"#, 7, "cni.dev/valid-attachments is missing"),
        ("GC", r#"{"cniVersion":"1.1.0","cni.dev/valid-attachments":[]}"#, 7, "name is missing"),
        ("GC", r#"{"cniVersion":"1.1.0","cni.dev/valid-attachments":{}}"#, 7, "cni.dev/valid-attachments is {}"),
        (
            "GC",
            r#"{"cniVersion":"1.1.0","cni.dev/valid-attachments":[{"containerID":"a/b","ifname":"eth0"}]}"#,
            7,
            r#"{"containerID":"a/b","ifname":"eth0"}"#,
        ),
    ] {
        let env = env(verb, "/run/netns/nowhere");
        let done = run(Command::new(names.path("terway")).env_clear().envs(&env), stdin.as_bytes());
        done.failed_with(code, needle);
        assert!(done.stdout.len() < 600, "{done:?}");
        assert!(done.took < Duration::from_secs(20), "{done:?}");
    }
}

#[test]
fn an_error_speaks_the_version_it_was_asked_in() {
    let names = Names::new();
    for (stdin, version) in
        [(r#"{"cniVersion":"0.3.1"}"#, "0.3.1"), (r#"{"cniVersion":"7"}"#, "1.1.0"), ("not JSON", "1.1.0")]
    {
        let done = run(Command::new(names.path("terway")).env_clear().envs(env("ADD", "/x")), stdin.as_bytes());
        let error: Value = serde_json::from_str(&done.stdout).unwrap();
        assert_eq!(error["cniVersion"], version);
    }
}

#[test]
fn a_netns_that_is_not_one_is_refused_before_anything_is_leased() {
    let node = Node::new();
    let daemon = Daemon::new(&node, &[leased()]);
    fs::write(node.reach("/run/file"), "").unwrap();
    for netns in ["/run/netns/gone", "/run/file", "/run", "/proc/self/ns/uts", "/dev/null"] {
        for verb in ["ADD", "CHECK"] {
            let done = node.call_with(&env(verb, netns), &conf("1.0.0"));
            done.failed_with(4, netns);
        }
    }
    assert_eq!(daemon.asked(), Vec::<Value>::new());
}

// ---- no daemon ----

#[test]
fn without_a_daemon_each_verb_says_so_within_a_second() {
    let node = Node::new();
    let gc = br#"{"cniVersion":"1.1.0","name":"terway","cni.dev/valid-attachments":[]}"#;
    for (verb, stdin, code) in [
        ("ADD", conf("1.1.0"), 11),
        ("CHECK", conf("1.1.0"), 11),
        ("GC", gc.to_vec(), 11),
        ("STATUS", conf("1.1.0"), 50),
    ] {
        let done = node.call_with(&env(verb, POD), &stdin);
        done.failed_with(code, "connect to /var/run/eni/eni.socket: no such file or directory");
        done.failed_with(code, "systemctl status terwayd");
        // STATUS waits for an answer for five seconds, the others for longer.
        assert!(done.took < Duration::from_secs(if verb == "STATUS" { 4 } else { 20 }), "{done:?}");
    }
    // A socket that nobody listens on any more.
    drop(UnixListener::bind(node.reach("/run/eni/eni.socket")).unwrap());
    let done = node.call("ADD", "1.0.0");
    done.failed_with(11, "connect to /var/run/eni/eni.socket: connection refused");
    assert!(done.took < Duration::from_secs(20), "{done:?}");
}

#[test]
fn a_daemon_that_accepts_nobody_is_given_up_within_a_second() {
    let node = Node::new();
    let path = node.reach("/run/eni/eni.socket");
    let listener = UnixListener::bind(&path).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let _queued = UnixStream::connect(&path).unwrap();
    // The machine may be late with one of them.
    let is_in_time = || {
        let done = node.call("ADD", "1.0.0");
        done.failed_with(11, "connect to /var/run/eni/eni.socket: timed out");
        done.took < Duration::from_millis(1500)
    };
    assert!((0..5).any(|_| is_in_time()));
}

#[test]
fn without_a_daemon_del_succeeds_and_leaves_a_tombstone() {
    let node = Node::new();
    let bare = |verb: &str| {
        let mut env = env(verb, "");
        env.remove("CNI_NETNS");
        env.remove("CNI_ARGS");
        env
    };
    for _ in 0..2 {
        let done = node.call_with(&bare("DEL"), br#"{"cniVersion":"0.4.0"}"#);
        assert_eq!((done.code, done.stdout.as_str()), (0, ""), "{done:?}");
    }
    let folder = node.reach("/run/terway/tombstones");
    let names: Vec<_> = fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["0123456789abcdef@eth0.json"]);
    let stone: Value = serde_json::from_slice(&fs::read(folder.join(&names[0])).unwrap()).unwrap();
    assert_eq!(stone["attachment"], json!({"container": "0123456789abcdef", "ifname": "eth0"}));
    assert!(stone["at"].as_f64().unwrap() > 1.6e9);
}

#[test]
fn a_daemon_that_does_not_take_a_del_over_gets_a_tombstone_and_an_add_takes_it_back() {
    let node = Node::new();
    let release = json!({"release": {"attachment": {"container": "0123456789abcdef", "ifname": "eth0"}}});
    let stones = || fs::read_dir(node.reach("/run/terway/tombstones")).unwrap().count();
    for act in [refuse(Refusal::Starting, "starting"), Act::Say("rubbish".into()), Act::HangUp] {
        let daemon = Daemon::new(&node, &[Act::clone(&act), leased()]);
        let done = node.call("DEL", "1.0.0");
        assert_eq!((done.code, done.stdout.as_str(), stones()), (0, "", 1), "{done:?}");
        if let Act::Say(_) = act {
            assert_eq!(daemon.asked(), std::slice::from_ref(&release));
        }
        assert_eq!(node.call("ADD", "1.0.0").code, 0);
        assert_eq!(stones(), 0);
    }
}

#[test]
fn a_tombstone_that_cannot_be_written_fails_the_del() {
    let node = Node::new();
    fs::remove_dir(node.reach("/run/terway")).unwrap();
    fs::write(node.reach("/run/terway"), "in the way").unwrap();
    let done = node.call("DEL", "1.0.0");
    done.failed_with(100, "write /run/terway/tombstones/0123456789abcdef@eth0.json");
}

// ---- a daemon that misbehaves ----

#[test]
fn an_answer_that_makes_no_sense_fails_the_add_at_once() {
    let node = Node::new();
    let mut other = lease();
    other.sandbox.attachment.container = "fedcba".into();
    let mut slot = lease();
    slot.eni.slot = 64;
    for (act, code, needle) in [
        (Act::Say("rubbish".into()), 106, "answer of /var/run/eni/eni.socket"),
        (Act::Say("{}".into()), 106, "answer of /var/run/eni/eni.socket"),
        (Act::Say(String::new()), 106, "answer of /var/run/eni/eni.socket"),
        (Act::Say(r#"{"lease":{}}"#.into()), 106, "missing field"),
        (say(&Reply::Ready {}), 106, r#"terwayd answered "ready""#),
        (say(&Reply::None {}), 106, r#"terwayd answered "none""#),
        (say(&Reply::Lease(Box::new(other))), 106, "fedcba/eth0"),
        (say(&Reply::Lease(Box::new(slot))), 106, "in slot 64"),
        (Act::Write(vec![0xff; 300].into_iter().chain(*b"\n").collect()), 106, "answer of /var/run/eni/eni.socket"),
        (Act::Write(br#"{"lease":{"pod"#.to_vec()), 11, "it hung up after 14 bytes"),
        (Act::Write(Vec::new()), 11, "it hung up after 0 bytes"),
        (Act::HangUp, 11, "/var/run/eni/eni.socket"),
        (Act::Write(vec![b'x'; 20 << 20]), 106, "longer than 16777216 bytes"),
        (Act::Say(format!(r#"{{"show":{}"#, "[".repeat(900_000))), 106, "recursion"),
    ] {
        let _daemon = Daemon::new(&node, &[act]);
        let done = node.call("ADD", "1.0.0");
        done.failed_with(code, needle);
        assert!(done.stdout.len() < 800, "{} bytes", done.stdout.len());
        assert!(done.took < Duration::from_secs(20), "{done:?}");
    }
}

#[test]
fn a_daemon_that_never_answers_is_given_up_in_time() {
    let node = Node::new();
    let _daemon = Daemon::new(&node, &[Act::Sleep]);
    let done = node.call("STATUS", "1.1.0");
    done.failed_with(50, "ask /var/run/eni/eni.socket: timed out");
    assert!((Duration::from_secs(4)..Duration::from_secs(14)).contains(&done.took), "{done:?}");
}

#[test]
fn each_refusal_has_its_code_and_its_reason_is_the_message() {
    let node = Node::new();
    for (why, code) in [
        (Refusal::NodeFull, 11),
        (Refusal::VSwitchEmpty, 11),
        (Refusal::Throttled, 11),
        (Refusal::CloudDown, 11),
        (Refusal::TooSlow, 11),
        (Refusal::ApiDown, 11),
        (Refusal::Policies, 11),
        (Refusal::Starting, 11),
        (Refusal::Local, 100),
        (Refusal::Forbidden, 103),
        (Refusal::Quota, 104),
        (Refusal::NotOurs, 105),
        (Refusal::BadRequest, 106),
    ] {
        let _daemon = Daemon::new(&node, &[refuse(why, "vsw-1 has no \"free\" address\nleft")]);
        let done = node.call("ADD", "1.0.0");
        done.failed_with(code, "add default/web-0: vsw-1 has no \"free\" address\nleft");
    }
}

#[test]
fn the_other_verbs_ask_for_what_they_need() {
    let node = Node::new();
    let attachment = json!({"container": "0123456789abcdef", "ifname": "eth0"});

    let daemon = Daemon::new(&node, &[say(&Reply::None {})]);
    let stdin = br#"{"cniVersion":"1.1.0","name":"terway","cni.dev/valid-attachments":
        [{"containerID":"b","ifname":"eth0"},{"containerID":"a","ifname":"net1"}]}"#;
    let mut env = env("GC", POD);
    env.retain(|name, _| name == "CNI_COMMAND");
    let done = node.call_with(&env, stdin);
    assert_eq!((done.code, done.stdout.as_str()), (0, ""), "{done:?}");
    let valid = json!([{"container": "a", "ifname": "net1"}, {"container": "b", "ifname": "eth0"}]);
    assert_eq!(daemon.asked(), [json!({"gc": {"network": "terway", "valid": valid}})]);

    let done = node.call("CHECK", "0.4.0");
    done.failed_with(102, "check 0123456789abcdef/eth0: nothing is leased to it");
    // What is not known by its container may be so by its pod: the old Terway wrote down no container.
    let pod = json!({"namespace": "default", "name": "web-0"});
    let find = json!({"find": {"pod": pod, "ifname": "eth0", "netns": POD}});
    assert_eq!(daemon.asked()[1..], [json!({"lease": {"attachment": attachment}}), find.clone()]);
    let done = node.call("DEL", "0.4.0");
    assert_eq!((done.code, done.stdout.as_str()), (0, ""), "{done:?}");
    assert_eq!(daemon.asked()[3..], [json!({"release": {"attachment": attachment}}), find]);
    drop(daemon);

    let daemon = Daemon::new(&node, &[say(&Reply::Ready {}), refuse(Refusal::Starting, "not yet")]);
    env.insert("CNI_COMMAND".into(), "STATUS".into());
    let done = node.call_with(&env, &conf("1.1.0"));
    assert_eq!((done.code, done.stdout.as_str()), (0, ""), "{done:?}");
    node.call_with(&env, &conf("1.1.0")).failed_with(50, "not yet");
    assert_eq!(daemon.asked(), [json!({"status": {}}), json!({"status": {}})]);
}

#[test]
fn the_cli_prints_the_pool_and_its_leases() {
    let node = Node::new();
    let pool = json!({"leases": [lease()], "idle": 3});
    let _daemon = Daemon::new(&node, &[say(&Reply::Show(pool.clone()))]);
    let done = run(node.command("terway-cli").arg("show"), b"");
    assert_eq!((done.code, done.stdout), (0, format!("{pool:#}\n")));
    let done = run(node.command("terway-cli").args(["execute", "network_service", "default", "resdb"]), b"");
    assert_eq!(done.stdout, "Resource DB (1 entries)\ndefault/web-0 -> eni-1 192.168.7.9\n", "{done:?}");
}

#[test]
fn the_cli_says_when_there_is_no_daemon() {
    let node = Node::new();
    let done = run(node.command("terway-cli").arg("show"), b"");
    assert_eq!((done.code, done.stdout.as_str()), (3, ""));
    let why = "terway-cli: connect to /var/run/eni/eni.socket: no such file or directory; is terwayd running? ";
    assert!(done.stderr.starts_with(why), "{done:?}");
}

// ---- results ----

/// What each version prints for [`lease`].
fn golden(version: &str) -> String {
    let (mtu, family) = match version {
        "1.1.0" => (r#""mtu":1400,"#, ""),
        "1.0.0" => ("", ""),
        _ => ("", r#""version":"4","#),
    };
    let inside = format!(r#"{{"name":"eth0","mac":"4a:ef:c7:bc:3a:c8",{mtu}"sandbox":"/run/netns/pod"}}"#);
    let outside =
        format!(r#"{{"name":"cali0d7763386da","mac":"4a:f6:c8:c6:ad:15",{mtu}"#).trim_end_matches(',').to_owned() + "}";
    let ip = format!(r#"{{{family}"interface":0,"address":"192.168.7.9/22","gateway":"192.168.7.253"}}"#);
    format!(r#"{{"cniVersion":"{version}","interfaces":[{inside},{outside}],"ips":[{ip}]}}"#)
}

#[test]
fn an_add_answers_as_its_version_wants_and_again_the_same() {
    let node = Node::new();
    let daemon = Daemon::new(&node, &[leased()]);
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let stdin = json!({"cniVersion": version, "name": "terway", "mtu": 1400, "somebody": "else's"}).to_string();
        let done = node.call_with(&env("ADD", POD), stdin.as_bytes());
        assert_eq!((done.code, done.stdout), (0, golden(version)), "{}", done.stderr);
    }
    let sandbox = json!({"attachment": {"container": "0123456789abcdef", "ifname": "eth0"}, "netns": POD});
    let pod = json!({"namespace": "default", "name": "web-0"});
    let allocate = json!({"allocate": {"pod": pod, "uid": "1-2", "sandbox": sandbox, "wish": {"network": "terway"}}});
    assert_eq!(daemon.asked(), vec![allocate; 5]);
}

// ---- with the kernel ----

impl Node {
    /// A line of shell inside the node, which must succeed, for its standard output.
    fn sh(&self, line: &str) -> String {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.keeper.id().to_string(), "-m", "-n", "--", "sh", "-c", line]);
        let done = run(&mut command, b"");
        assert_eq!(done.code, 0, "{line}: {done:?}");
        done.stdout
    }

    fn check_with(&self, address: &str) -> Done {
        let prev = json!({"cniVersion": "1.0.0", "ips": [{"address": address, "interface": 0}]});
        let conf = json!({"cniVersion": "1.0.0", "name": "terway", "type": "terway", "prevResult": prev});
        self.call_with(&env("CHECK", POD), conf.to_string().as_bytes())
    }
}

#[test]
fn a_check_names_the_first_difference_and_an_add_mends_it() {
    let node = Node::new();
    let _daemon = Daemon::new(&node, &[leased()]);
    for (damage, needle) in [
        ("ip -n pod addr del 192.168.7.9/32 dev eth0", "192.168.7.9/32"),
        ("ip -n pod link set eth0 mtu 1300", "1300"),
        ("ip -n pod route del default", "route"),
        ("ip route flush table 1000", "table 1000"),
        ("ip rule del priority 2048", "rule"),
        ("ip link del cali0d7763386da", "cali0d7763386da"),
    ] {
        assert_eq!(node.call("ADD", "1.0.0").code, 0);
        let done = node.check_with("192.168.7.9/22");
        assert_eq!((done.code, done.stdout.as_str()), (0, ""), "before {damage}");
        node.sh(damage);
        let done = node.check_with("192.168.7.9/22");
        done.failed_with(101, "check default/web-0: ");
        done.failed_with(101, needle);
    }
}

#[test]
fn a_check_wants_the_leased_address_in_the_earlier_result() {
    let node = Node::new();
    let _daemon = Daemon::new(&node, &[leased()]);
    assert_eq!(node.call("ADD", "1.0.0").code, 0);
    node.check_with("192.168.7.8/22").failed_with(101, "192.168.7.9 is leased to it, and prevResult does not have it");
}

#[test]
fn without_a_daemon_del_takes_the_link_away() {
    let node = Node::new();
    drop_after(Daemon::new(&node, &[leased()]), || assert_eq!(node.call("ADD", "1.0.0").code, 0));
    assert!(node.sh("ip -o link").contains("cali0d7763386da"));
    let mut env = env("DEL", "");
    env.retain(|name, _| !["CNI_NETNS", "CNI_ARGS"].contains(&name.as_str()));
    assert_eq!(node.call_with(&env, &conf("1.0.0")).code, 0);
    let left = node.sh("ip -o link; ip rule; ip route show table all; ip -n pod -o link");
    assert!(!left.contains("cali") && !left.contains("192.168.7.9") && !left.contains("eth0"), "{left}");
}

fn drop_after<T>(guard: T, f: impl FnOnce()) {
    f();
    drop(guard);
}

#[test]
fn a_del_of_a_netns_that_is_gone_succeeds() {
    let node = Node::new();
    for netns in ["/run/netns/gone", "/dev/null", "not/absolute"] {
        let done = node.call_with(&env("DEL", netns), &conf("1.0.0"));
        assert_eq!((done.code, done.stdout.as_str()), (0, ""), "{netns}: {done:?}");
    }
}

#[test]
fn the_namespace_of_the_node_is_not_a_pods() {
    let node = Node::new();
    let daemon = Daemon::new(&node, &[leased()]);
    node.call_with(&env("ADD", "/proc/self/ns/net"), &conf("1.0.0")).failed_with(4, "/proc/self/ns/net");
    assert!(daemon.asked().is_empty());
}

#[test]
fn a_wiring_that_the_kernel_refuses_is_code_100_and_names_the_link() {
    let node = Node::new();
    let _daemon = Daemon::new(&node, &[leased()]);
    node.sh("ip -n pod link add eth0 type veth peer name other");
    let done = node.call("ADD", "1.0.0");
    done.failed_with(100, "add default/web-0: ");
    done.failed_with(100, "eth0");
}

#[test]
fn a_log_goes_to_stderr_and_only_when_asked_for() {
    let node = Node::new();
    let _daemon = Daemon::new(&node, &[leased()]);
    let done = node.call("ADD", "1.0.0");
    assert_eq!((done.code, done.stderr.as_str()), (0, ""));
    let debug = br#"{"cniVersion": "1.0.0", "name": "terway", "debug": true, "mtu": 1400}"#;
    let done = node.call_with(&env("ADD", POD), debug);
    assert_eq!((done.code, done.stdout), (0, golden("1.0.0")));
    assert!(done.stderr.contains("ip link add cali0d7763386da"), "{}", done.stderr);
}

#[test]
fn what_the_network_configuration_asks_for_in_vain_is_said() {
    let node = Node::new();
    let _daemon = Daemon::new(&node, &[leased()]);
    let asking = json!({
        "cniVersion": "1.0.0", "name": "terway", "type": "terway", "auto_mtu": true, "enable_network_priority": true,
        "bandwidth_mode": "edt", "debug": true,
    });
    let done = node.call_with(&env("ADD", POD), asking.to_string().as_bytes());
    assert_eq!(done.code, 0, "{done:?}");
    for key in ["auto_mtu", "enable_network_priority", "bandwidth_mode edt"] {
        assert!(done.stderr.contains(&format!("{key} is not available")), "{key}: {}", done.stderr);
    }
}

#[test]
fn an_mtu_of_the_daemon_is_for_pods_whose_network_configuration_says_none() {
    let node = Node::new();
    let lease = Lease { mtu: Some(1400), ..lease() };
    let _daemon = Daemon::new(&node, &[say(&Reply::Lease(Box::new(lease)))]);
    let done = node.call("ADD", "1.1.0");
    assert_eq!((done.code, done.stdout), (0, golden("1.1.0")));
    assert!(node.sh("ip -o link show cali0d7763386da").contains(" mtu 1400 "));
    assert!(node.sh("ip -n pod -o link show eth0").contains(" mtu 1400 "));
    assert_eq!(node.call("CHECK", "1.1.0").code, 0);
    let said = br#"{"cniVersion": "1.1.0", "name": "terway", "type": "terway", "mtu": 1300}"#;
    node.call_with(&env("CHECK", POD), said).failed_with(101, "mtu");
}

#[test]
fn the_configuration_we_ship_is_one_we_understand() {
    let list: Value = serde_json::from_str(include_str!("../cni-conf/10-terway.conflist")).unwrap();
    assert_eq!(list["plugins"][0]["type"], "terway");
    for version in list["cniVersions"].as_array().unwrap() {
        let mut conf = list["plugins"][0].clone();
        conf["cniVersion"] = version.clone();
        conf["name"] = list["name"].clone();
        Request::parse(&env("ADD", "/x"), conf.to_string().as_bytes()).unwrap();
    }
}

// ---- the configuration of the daemon ----

fn config(text: &str) -> Result<(Config, Vec<Warning>), String> {
    Config::parse(text.as_bytes(), &BTreeMap::new()).map_err(|e| e.to_string())
}

#[test]
fn an_empty_configuration_has_the_defaults() {
    let (config, warnings) = config("{}").unwrap();
    assert_eq!(warnings, []);
    assert_eq!((config.min_idle, config.max_idle, config.min_enis, config.max_enis), (0, 5, 0, None));
    assert_eq!((config.link_mtu(None), config.cooldown, config.sync_period), (1500, secs(130), secs(120)));
    assert_eq!(config.conflist, Path::new("/etc/cni/net.d/10-terway.conflist"));
    assert!(config.access.is_none() && config.service_cidr.is_empty() && config.security_groups.is_empty());
    assert_eq!(config.eni_tag_block.len(), 2);
}

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[test]
fn a_configuration_of_the_old_terway_is_understood() {
    let (config, warnings) = config(
        r#"{"version": "1", "access_key": "ak", "access_secret": "hush", "service_cidr": "172.21.0.0/20,fd00:21::/112",
            "security_group": "sg-1", "security_groups": ["sg-2", "sg-1"], "max_pool_size": 25, "min_pool_size": 10,
            "vswitches": {"cn-hangzhou-i": ["vsw-1", "vsw-2"], "cn-hangzhou-h": []}, "eni_tags": {"team": "a"},
            "vswitch_selection_policy": "ordered", "eni_selection_policy": "least_ips", "ip_stack": "ipv4",
            "rate_limit": {"AttachNetworkInterface": 120}, "ip_pool_sync_period": "1h30m", "kube_client_qps": 2.5,
            "enable_eni_trunking": true, "resource_group_id": "rg-1", "max_eni": 0, "slip": 1}"#,
    )
    .unwrap();
    let access = config.access.unwrap();
    assert_eq!((access.id.as_str(), access.secret.expose()), ("ak", "hush"));
    assert_eq!(config.service_cidr.to_string(), "172.21.0.0/20,fd00:21::/112");
    assert_eq!(config.security_groups, ["sg-1", "sg-2"]);
    assert_eq!((config.min_idle, config.max_idle, config.max_enis), (10, 25, None));
    assert_eq!(config.vswitches["cn-hangzhou-i"], ["vsw-1", "vsw-2"]);
    assert_eq!(config.vswitch_choice, terway::eni::VSwitchChoice::Most);
    assert_eq!(config.eni_choice, terway::eni::EniChoice::LeastIps);
    assert_eq!(config.sync_period, secs(5400));
    assert_eq!(config.rate_limit, BTreeMap::from([("AttachNetworkInterface".into(), 120)]));
    assert_eq!(config.kube_pace, Some(Pace { per_second: 2.5, burst: 10 }));
    let told: Vec<String> = warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "configuration: slip is not a key that Terway knows; it is ignored",
            "configuration: enable_eni_trunking has no effect here: there are no trunk ENIs",
        ]
    );
}

#[test]
fn tags_that_terwayd_sets_itself_are_nobody_elses_to_choose() {
    let warned = |tags: &str| {
        let (_, warnings) = config(&format!(r#"{{"mtu": 1279, "eni_tags": {tags}}}"#)).unwrap();
        warnings.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(warned(r#"{"creator": "terway", "team": "a"}"#), [""; 0]);
    for key in ["creator", "terway.alibabacloud.com/node", "terway.alibabacloud.com/tags"] {
        let told = format!(
            "configuration: eni_tags.{key} has no effect here: terwayd sets this tag itself, to know its ENIs by; choose another key"
        );
        assert_eq!(warned(&format!(r#"{{"{key}": "me"}}"#)), [told]);
    }
}

#[test]
fn the_keys_of_the_pool_and_its_clients_are_read() {
    let (config, warnings) = config(
        r#"{"idle_ip_reclaim_after": "1h", "idle_ip_reclaim_batch_size": 3, "idle_ip_reclaim_interval": "5m",
            "idle_ip_reclaim_jitter_factor": "0.2", "ip_warm_up_size": 12, "kube_client_burst": 7,
            "extra_routes": [{"dst": "10.1.0.0/16"}, {"dst": "fd01::/64"}],
            "enable_ip_prefix": true, "enable_erdma": false, "ipam_type": ""}"#,
    )
    .unwrap();
    assert_eq!(config.reclaim, Some(Reclaim { after: secs(3600), interval: secs(300), batch: 3, jitter: 0.2 }));
    assert_eq!(config.prefixes, Some(u32::MAX));
    assert_eq!((config.warm_up, config.kube_pace), (12, Some(Pace { per_second: 5.0, burst: 7 })));
    assert_eq!(config.extra_routes.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.1.0.0/16", "fd01::/64"]);
    assert_eq!(warnings, []);
}

#[test]
fn more_idle_addresses_to_keep_ready_than_may_be_kept_are_kept_and_told_of() {
    let of = |text: &str| {
        let (config, warnings) = config(text).unwrap();
        (config.min_idle, config.max_idle, warnings.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    let told = "configuration: min_pool_size is 6 and max_pool_size is 5; 6 are kept";
    assert_eq!(of(r#"{"min_pool_size": 6, "max_pool_size": 5}"#), (6, 6, vec![told.into()]));
    assert_eq!(of(r#"{"min_pool_size": 6, "max_pool_size": 6}"#), (6, 6, Vec::new()));
    assert_eq!(of(r#"{"min_pool_size": 6}"#), (6, 6, Vec::new()));
}

#[test]
fn a_wrong_configuration_is_named_with_key_value_and_what_is_allowed() {
    let groups: Vec<String> = (0..11).map(|n| format!("sg-{n}")).collect();
    let groups = json!({"security_groups": groups}).to_string();
    let many: serde_json::Map<String, Value> = (0..18).map(|n| (format!("key-{n}"), json!("x"))).collect();
    let many = json!({"eni_tags": many}).to_string();
    for (text, want) in [
        ("", "EOF"),
        ("[1]", "[1] is not a JSON object"),
        (r#"{"version": "2"}"#, r#"version is "2"; it must be "1""#),
        (r#"{"max_pool_size": "5"}"#, r#"max_pool_size is "5"; it must be a whole number from 0 to 10000"#),
        (r#"{"max_pool_size": -1}"#, "max_pool_size is -1"),
        (r#"{"min_eni": 3, "max_eni": 2}"#, "min_eni is 3 and max_eni is 2"),
        (r#"{"ip_stack": "ipx"}"#, r#"ip_stack is "ipx"; it must be one of ipv4, dual, ipv6"#),
        (r#"{"vswitch_selection_policy": "least"}"#, r#"is "least"; it must be one of random, ordered, most, listed"#),
        (r#"{"vswitches": ["vsw-1"]}"#, r#"vswitches is ["vsw-1"]; it must be an object"#),
        (r#"{"vswitches": {"z": "vsw-1"}}"#, r#"vswitches.z is "vsw-1"; it must be a list of vSwitch ids"#),
        (r#"{"vswitches": {"z": ["vsw 1"]}}"#, r#"vswitches.z is ["vsw 1"]"#),
        (r#"{"security_group": "sg/1"}"#, r#"security_group is "sg/1""#),
        (&groups, "name 11 groups; an ENI has at most 10"),
        (&many, "name 18 tags; an ENI has room for 17"),
        (r#"{"eni_tags": {"aliyun-x": "1"}}"#, r#"eni_tags.aliyun-x is "1"; it must be tags whose keys"#),
        (r#"{"eni_tags": {"a": "https://x"}}"#, r#"eni_tags.a is "https://x""#),
        (r#"{"idle_ip_reclaim_after": "soon"}"#, r#"idle_ip_reclaim_after is "soon"; it must be a duration"#),
        (r#"{"idle_ip_reclaim_batch_size": 0}"#, "idle_ip_reclaim_batch_size is 0"),
        (r#"{"idle_ip_reclaim_jitter_factor": "2"}"#, r#"jitter_factor is "2"; it must be a text with a number"#),
        (r#"{"ip_warm_up_size": -1}"#, "ip_warm_up_size is -1"),
        (r#"{"rate_limit": {"X": 0}}"#, "rate_limit.X is 0; it must be calls a minute"),
        (r#"{"kube_client_qps": -1}"#, "kube_client_qps is -1; it must be a number of requests"),
        (r#"{"extra_routes": ["10.1.0.0/16"]}"#, r#"extra_routes[] is "10.1.0.0/16"; it must be an object whose dst"#),
        (r#"{"extra_routes": [{"dst": "10.1.0.1/16"}]}"#, "extra_routes[] is"),
        (r#"{"enable_ip_prefix": "yes"}"#, r#"enable_ip_prefix is "yes"; it must be true or false"#),
        (r#"{"enable_ip_prefix": true, "ip_stack": "dual"}"#, "ip_stack is"),
        (r#"{"mtu": 1279, "ip_stack": "ipv6"}"#, "mtu is 1279 and ip_stack is ipv6; IPv6 needs links of 1280 at least"),
        (r#"{"eni_tags": {"a": 1}}"#, "eni_tags.a is 1; it must be a text"),
        (r#"{"eni_tags": {"a": "1"}, "eni_tag_filter": {"a": "2"}}"#, "asks for a=2 and eni_tags sets a=1"),
        (
            r#"{"eni_tags": {"a": "1"}, "eni_tag_block_list": [{"key": "a", "value": "1"}]}"#,
            "eni_tag_block_list names a=1",
        ),
        // None of our own would ever be ours.
        (
            r#"{"eni_tag_block_list": [{"key": "creator", "value": "terway"}]}"#,
            "eni_tag_block_list names creator=terway, which is on every ENI that terwayd makes",
        ),
        (
            r#"{"eni_tags": {"creator": "me"}, "eni_tag_filter": {"creator": "me"}}"#,
            "eni_tag_filter asks for creator=me, but terwayd itself sets creator",
        ),
        (r#"{"access_key": "a"}"#, "access_key is set and access_secret is not"),
        (r#"{"access_secret": "hush"}"#, "access_secret is set and access_key is not"),
        (r#"{"access_secret": 12345}"#, "access_secret is (hidden); it must be a text"),
        (r#"{"ip_cooldown": "2 minutes"}"#, r#"ip_cooldown is "2 minutes"; it must be a duration such as "90s""#),
        (r#"{"ip_cooldown": "-1s"}"#, r#"ip_cooldown is "-1s""#),
        (r#"{"ip_cooldown": 130}"#, "ip_cooldown is 130"),
        (r#"{"ip_pool_sync_period": "1ms"}"#, r#"ip_pool_sync_period is "1ms""#),
        (r#"{"ecs_endpoint": "ftp://x"}"#, r#"ecs_endpoint is "ftp://x""#),
        (r#"{"ecs_endpoint": "a b"}"#, r#"ecs_endpoint is "a b""#),
        (r#"{"ecs_endpoint": "host:0"}"#, r#"ecs_endpoint is "host:0""#),
        (r#"{"signature_version": "2.0"}"#, r#"signature_version is "2.0"; it must be one of 1.0, 3.0"#),
        (r#"{"ca_file": "ca.pem"}"#, r#"ca_file is "ca.pem"; it must be an absolute path"#),
        (r#"{"mtu": 100}"#, "mtu is 100"),
        (r#"{"node_name": "-a"}"#, r#"node_name is "-a""#),
        (r#"{"service_cidr": "172.21.0.0"}"#, "service_cidr: 172.21.0.0: not a CIDR"),
        (r#"{"service_cidr": "0.0.0.0/0"}"#, "service_cidr: 0.0.0.0/0: a CIDR of length 0"),
        (r#"{"service_cidr": "172.21.0.1/20"}"#, "172.21.0.0/20 would be right"),
        (r#"{"service_cidr": "127.0.0.0/16"}"#, "loopback"),
        (r#"{"service_cidr": "169.254.20.0/24"}"#, "link-local"),
        (r#"{"service_cidr": "224.0.0.0/8"}"#, "multicast"),
        (r#"{"service_cidr": "100.64.0.0/10"}"#, "the metadata service"),
        (r#"{"service_cidr": "fe80::/64"}"#, "link-local"),
        (r#"{"service_cidr": "::/64"}"#, "loopback"),
        (r#"{"service_cidr": "10.1.0.0/16,10.2.0.0/16"}"#, "two CIDRs of one family"),
        (r#"{"service_cidr": "10.1.0.0/16,"}"#, "not a CIDR"),
    ] {
        let error = config(text).unwrap_err();
        assert!(error.starts_with("configuration: ") && error.contains(want), "{text}: {error}");
        assert!(!error.contains("hush") && !error.contains("12345"), "{error}");
    }
}

#[test]
fn a_secret_is_not_printed() {
    let (config, _) = config(r#"{"access_key": "ak", "access_secret": "hush"}"#).unwrap();
    assert!(!format!("{config:?}").contains("hush"));
}

#[test]
fn the_environment_is_laid_over_the_configuration() {
    let pairs = [
        ("NODE_NAME", "node-1"),
        ("ECS_ENDPOINT", "127.0.0.1:8080"),
        ("VPC_ENDPOINT", "https://[::1]:8443/"),
        ("ALICLOUD_CLIENT_SCHEME", "HTTP"),
        ("UNRELATED", "x"),
    ];
    let env = pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).into_iter().collect();
    let (config, warnings) =
        Config::parse(br#"{"node_name": "other", "metadata_endpoint": "127.0.0.1:80"}"#, &env).unwrap();
    assert_eq!(warnings, []);
    assert_eq!(config.node_name.as_deref(), Some("node-1"));
    assert_eq!(config.cloud.ecs.unwrap().to_string(), "http://127.0.0.1:8080");
    assert_eq!(config.cloud.vpc.unwrap().to_string(), "https://[::1]:8443");
    assert_eq!(config.cloud.metadata.unwrap().to_string(), "http://127.0.0.1:80");
}

#[test]
fn a_service_cidr_that_the_vpc_has_too_is_refused() {
    let mut node = NodeFacts {
        instance: "i-1".into(),
        instance_type: "ecs.g6.large".into(),
        region: "cn-hangzhou".into(),
        zone: "cn-hangzhou-i".into(),
        vpc: "vpc-1".into(),
        vpc_cidrs: vec!["192.168.0.0/16".parse().unwrap()],
        vswitch: "vsw-1".into(),
        vswitch_cidr: NetPair::v4("192.168.0.0/24".parse().unwrap()),
        ips: IpPair::v4("192.168.0.10".parse().unwrap()),
    };
    let (config, _) = config(r#"{"service_cidr": "172.21.0.0/20"}"#).unwrap();
    assert_eq!(config.validate(&node), Ok(()));
    node.vpc_cidrs.push("172.16.0.0/12".parse().unwrap());
    let error = config.validate(&node).unwrap_err().to_string();
    assert!(error.contains("service_cidr 172.21.0.0/20 overlaps 172.16.0.0/12 of VPC vpc-1"), "{error}");
    node.vpc_cidrs.clear();
    node.vswitch_cidr = NetPair::v4("172.21.15.0/24".parse().unwrap());
    let error = config.validate(&node).unwrap_err().to_string();
    assert!(error.contains("overlaps 172.21.15.0/24 of vSwitch vsw-1"), "{error}");

    // Of what nobody has said of this node, the other family is left.
    let both = NetPair { v4: config.service_cidr.v4, v6: Some("fd00:21::/112".parse().unwrap()) };
    let (free, overlaps) = node.room_among(&both);
    assert_eq!(free, NetPair { v4: None, ..both });
    assert_eq!(overlaps, ["172.21.0.0/20 overlaps 172.21.15.0/24 of vSwitch vsw-1"]);
    node.vpc_cidrs.push("fd00::/16".parse().unwrap());
    let (free, overlaps) = node.room_among(&both);
    assert!(free.is_empty() && overlaps.len() == 2, "{free} {overlaps:?}");
    assert_eq!(node.room_among(&NetPair { v6: None, v4: Some("10.0.0.0/20".parse().unwrap()) }).1, [""; 0]);
}

#[test]
fn durations_are_read_as_go_writes_them() {
    for (text, nanos) in [
        ("0", Some(0)),
        ("120s", Some(120_000_000_000)),
        ("1h30m", Some(5_400_000_000_000)),
        ("1.5s", Some(1_500_000_000)),
        (".5m", Some(30_000_000_000)),
        ("2.s", Some(2_000_000_000)),
        ("250ms1us1ns", Some(250_001_001)),
        ("1µs", Some(1_000)),
        ("", None),
        ("5", None),
        ("s", None),
        (".s", None),
        ("1..5s", None),
        ("-1s", None),
        ("1 s", None),
        ("1d", None),
        ("99999999999999999999s", None),
        ("9999999999h", None),
    ] {
        assert_eq!(go_duration(text), nanos.map(Duration::from_nanos), "{text}");
    }
}

// ---- any input at all ----

const CASES: usize = 100_000;

/// Picks for the properties below; the seed makes a failure happen again.
struct Dice(fastrand::Rng);

impl Dice {
    fn new() -> Dice {
        Dice(fastrand::Rng::with_seed(20_261_122))
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.0.usize(..from.len())]
    }

    /// Text of characters that parsers care about.
    fn text(&mut self) -> String {
        let odd =
            ['/', '.', ':', '=', ';', '-', '@', ' ', '\n', '\0', '\u{1b}', 'é', '\u{202e}', 'a', 'Z', '0', '9', '_'];
        (0..self.0.usize(..40)).map(|_| *self.pick(&odd)).collect()
    }

    fn of(&mut self, alphabet: &str, length: std::ops::RangeInclusive<usize>) -> String {
        let all = alphabet.chars().count();
        (0..self.0.usize(length)).filter_map(|_| alphabet.chars().nth(self.0.usize(..all))).collect()
    }

    /// Any JSON value, not too deep.
    fn value(&mut self, depth: u32) -> Value {
        match self.0.u32(..if depth == 0 { 7 } else { 9 }) {
            0 => Value::Null,
            1 => json!(self.0.bool()),
            2 => json!(self.0.i64(..)),
            3 => json!(self.0.u64(..)),
            4 => json!(self.0.f64() * 1e9),
            5 => json!(self.text()),
            6 => json!(self.pick(&["10.0.0.0/8", "1h", "IPVlan", "0.4.0", "eth0", "http://x:1", "::/0", ""])),
            7 => (0..self.0.usize(..4)).map(|_| self.value(depth - 1)).collect(),
            _ => self.object(KEYS, depth - 1),
        }
    }

    fn object(&mut self, keys: &[&str], depth: u32) -> Value {
        let entry = |dice: &mut Dice| ((*dice.pick(keys)).to_owned(), dice.value(depth));
        (0..self.0.usize(..5)).map(|_| entry(self)).collect::<serde_json::Map<_, _>>().into()
    }

    /// Any bytes out of good ones: cut, doubled, changed.
    fn damage(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..self.0.usize(..4) {
            let at = self.0.usize(..=bytes.len());
            match self.0.u32(..4) {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, self.0.u8(..)),
                2 if at < bytes.len() => bytes[at] = self.0.u8(..),
                _ => bytes.extend_from_within(at..),
            }
        }
    }
}

const KEYS: &[&str] = &[
    "cniVersion",
    "name",
    "mtu",
    "eniip_virtual_type",
    "host_stack_cidrs",
    "bandwidth_mode",
    "runtimeConfig",
    "bandwidth",
    "ingressRate",
    "portMappings",
    "hostPort",
    "dns",
    "servers",
    "prevResult",
    "ips",
    "address",
    "debug",
    "symmetric_routing",
    "symmetric_routing_config",
    "mark",
    "interface",
    "cni.dev/valid-attachments",
    "containerID",
    "ifname",
    "access_key",
    "access_secret",
    "service_cidr",
    "vswitches",
    "eni_tags",
    "max_pool_size",
    "min_pool_size",
    "max_eni",
    "min_eni",
    "security_groups",
    "eni_tag_block_list",
    "ip_stack",
    "ip_cooldown",
    "ecs_endpoint",
    "credential_path",
    "node_name",
    "key",
    "value",
    "é",
];

const VERBS: &[&str] = &["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION", "", "add"];

#[test]
fn no_input_makes_the_parser_of_requests_panic_or_babble() {
    let mut dice = Dice::new();
    let mut parsed = 0;
    for _ in 0..CASES {
        let mut env = env(VERBS[dice.0.usize(..VERBS.len())], "/run/netns/x");
        if dice.0.bool() {
            let name = (*dice.pick(&["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS"])).to_owned();
            env.insert(name, OsString::from_vec(dice.text().into_bytes()));
        }
        let mut conf = dice.object(KEYS, 3);
        conf["cniVersion"] = json!(dice.pick(&["0.3.0", "0.4.0", "1.0.0", "1.1.0", "1.1.0", "8"]));
        let mut stdin = conf.to_string().into_bytes();
        if dice.0.bool() {
            dice.damage(&mut stdin);
        }
        match Request::parse(&env, &stdin) {
            Ok(request) => {
                parsed += 1;
                assert_sound(&request);
            }
            Err(failure) => {
                assert!(!failure.msg.is_empty() && failure.msg.len() < 1000, "{failure}");
                let json: Value = serde_json::from_str(&failure.json(cni::version_in(&stdin))).unwrap();
                assert!([1, 4, 6, 7].contains(&json["code"].as_u64().unwrap()), "{json}");
            }
        }
    }
    assert!(parsed > CASES / 20, "only {parsed} were understood, which tests little");
}

/// What every understood request may rely on.
fn assert_sound(request: &Request) {
    let attachments: Vec<&Attachment> = match &request.call {
        Call::Add { sandbox, pod, .. } => {
            assert!(sandbox.netns.is_absolute());
            assert!(!pod.name.is_empty() && !pod.namespace.contains(['/', '.']));
            vec![&sandbox.attachment]
        }
        Call::Check { sandbox, .. } => vec![&sandbox.attachment],
        Call::Del { attachment, .. } => vec![attachment],
        Call::Gc { valid, .. } => valid.iter().collect(),
        Call::Status | Call::Version => vec![],
    };
    for Attachment { container, ifname } in attachments {
        assert!(!container.contains(['/', '@', '\0', '\n', ' ']) && (1..=200).contains(&container.len()));
        assert!(!ifname.contains(['/', ':', '\0', '\n', ' ']) && (1..=15).contains(&ifname.len()));
    }
}

#[test]
fn no_input_makes_the_parser_of_the_configuration_panic_or_tell_a_secret() {
    let mut dice = Dice::new();
    let mut parsed = 0;
    for _ in 0..CASES {
        let mut object = dice.object(KEYS, 3);
        object["access_key"] = json!("key");
        object["access_secret"] = json!("hush-hush");
        let mut text = object.to_string().into_bytes();
        if dice.0.bool() {
            dice.damage(&mut text);
        }
        let env = [("ECS_ENDPOINT".to_owned(), dice.text())].into_iter().filter(|_| dice.0.bool()).collect();
        match Config::parse(&text, &env) {
            Ok((config, _)) => {
                parsed += 1;
                assert!(config.min_idle <= config.max_idle && config.security_groups.len() <= 10);
                assert!(!format!("{config:?}").contains("hush-hush"));
            }
            Err(e) => assert!(!e.to_string().contains("hush-hush"), "{e}"),
        }
    }
    assert!(parsed > CASES / 100, "only {parsed} were understood, which tests little");
}

#[test]
fn what_is_written_into_the_environment_is_read_from_it() {
    let mut dice = Dice::new();
    const EDGE: &str = "abcdefghijklmnopqrstuvwxyz0123456789";
    const MIDDLE: &str = "abcxyz0189-";
    let conf = conf("1.0.0");
    for _ in 0..CASES {
        let mut label = |most| format!("{}{}{}", dice.of(EDGE, 1..=1), dice.of(MIDDLE, 0..=most), dice.of(EDGE, 1..=1));
        let pod = PodName::new(label(61), format!("{}.{}", label(80), label(80)));
        let container = format!("{}{}", dice.of(EDGE, 1..=1), dice.of("aZ09_.-", 0..=199));
        let ifname = dice.of("aZ09_.-+@é", 1..=7);
        let netns = format!("/{}", dice.of("aZ09_-+@é /", 0..=60));
        if ifname == "." || ifname == ".." {
            continue;
        }
        let args = format!("A=b=c;K8S_POD_NAME={};;K8S_POD_NAMESPACE={};K8S_POD_UID=u=1;", pod.name, pod.namespace);
        let mut env = env("ADD", &netns);
        env.insert("CNI_CONTAINERID".into(), container.clone().into());
        env.insert("CNI_IFNAME".into(), ifname.clone().into());
        env.insert("CNI_ARGS".into(), args.into());
        let request = Request::parse(&env, &conf).unwrap_or_else(|e| panic!("{env:?}: {e}"));
        let want = Sandbox { attachment: Attachment { container, ifname }, netns: netns.into() };
        let Call::Add { pod: named, uid, sandbox, .. } = request.call else { panic!("{request:?}") };
        assert_eq!((named, uid.as_deref(), sandbox), (pod, Some("u=1"), want));
    }
}

#[test]
fn a_network_configuration_that_is_printed_is_read_as_it_was() {
    let mut dice = Dice::new();
    for _ in 0..CASES {
        let mtu = dice.0.u32(576..=9216);
        let (ingress, egress, port) = (dice.0.u64(..), dice.0.u64(..1 << 40), dice.0.u16(..));
        let net: ipnet::IpNet = ipnet::Ipv4Net::new(dice.0.u32(..).into(), dice.0.u8(..=32)).unwrap().into();
        let (debug, word) = (dice.0.bool(), *dice.pick(&["veth", "VETH", "", "ipvlan", "IPVlan", "DataPathV2"]));
        let text = json!({
            "cniVersion": "1.0.0", "name": "terway", "mtu": mtu, "debug": debug, "eniip_virtual_type": word,
            "host_stack_cidrs": [net],
            "runtimeConfig": {
                "bandwidth": {"ingressRate": ingress, "egressRate": egress},
                "portMappings": [{"hostPort": port, "containerPort": 80, "protocol": "UDP", "hostIP": net.addr()}],
            },
        });
        let request = Request::parse(&env("ADD", "/x"), text.to_string().as_bytes()).unwrap();
        let Call::Add { conf, .. } = request.call else { panic!("{request:?}") };
        let NetConf { host_stack, runtime, virtual_type, .. } = *conf;
        assert_eq!((conf.mtu, conf.debug, host_stack), (Some(mtu), debug, vec![net.trunc()]));
        // Bytes, within the bounds of Kubernetes.
        let bytes = |bits: u64| (bits > 0).then(|| (bits / 8).clamp(125, 125_000_000_000_000));
        assert_eq!(runtime.limits.ingress.map(Rate::bytes), bytes(ingress));
        assert_eq!(runtime.limits.egress.map(Rate::bytes), bytes(egress));
        let port_mapping = &runtime.ports[0];
        assert_eq!((port_mapping.host, port_mapping.container), (port, 80));
        assert_eq!((port_mapping.protocol, port_mapping.host_ip), (cni::Protocol::Udp, Some(net.addr())));
        let want = match word.to_lowercase().as_str() {
            "ipvlan" => cni::VirtualType::IpVlan,
            "datapathv2" => cni::VirtualType::DatapathV2,
            _ => cni::VirtualType::Veth,
        };
        assert_eq!(virtual_type, want);
    }
}

#[test]
fn a_gc_list_that_is_printed_is_read_as_it_was() {
    let mut dice = Dice::new();
    for _ in 0..CASES / 10 {
        let valid: BTreeSet<Attachment> = (0..dice.0.usize(..20))
            .map(|_| Attachment { container: dice.of("abc0", 1..=64), ifname: dice.of("eth01", 1..=15) })
            .collect();
        let list: Vec<Value> =
            valid.iter().map(|a| json!({"containerID": a.container, "ifname": a.ifname, "more": 1})).collect();
        let text = json!({"cniVersion": "1.1.0", "name": "terway", "cni.dev/valid-attachments": list}).to_string();
        let request = Request::parse(&env("GC", ""), text.as_bytes()).unwrap();
        assert_eq!(request, Request { version: Version::V1_1_0, call: Call::Gc { network: "terway".into(), valid } });
    }
}

#[test]
fn a_duration_that_is_printed_is_read_as_it_was() {
    let mut dice = Dice::new();
    for _ in 0..CASES {
        let (h, m, s, ms) = (dice.0.u64(..1000), dice.0.u64(..100), dice.0.u64(..100), dice.0.u64(..1000));
        let want = Duration::from_millis(((h * 60 + m) * 60 + s) * 1000 + ms);
        assert_eq!(go_duration(&format!("{h}h{m}m{s}.{ms:03}s")), Some(want));
        assert_eq!(go_duration(&format!("{h}h{m}m{s}s{ms}ms")), Some(want));
        // Whatever the text, there is an answer.
        let _ = go_duration(&dice.of("0123456789.hmsunµ-+ ", 0..=24));
    }
}
