//! The DEB on a machine whose first process is systemd: from the installation to the purge, with pods that talk all the while.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use terway::pod::PodName;

use super::releases;
use crate::bpf::cell::Servers;
use crate::netpol::{PORT, comes_to, only_from, policy, reaches, space};
use crate::sim::cloud::{Kind, When};
use crate::sim::cluster::{CONFLIST, Cluster, SOON, conf, node_name, soon, within};
use crate::sim::cni::{self, Answer, Sandbox};
use crate::sim::kube;
use crate::sim::load::{self, Tally};
use crate::sim::machine::{Inside, Machine};
use crate::sim::traffic::Place;
use crate::sim::world;

/// A pod of the machine, and what its runtime knows of it.
struct Pod {
    sandbox: Sandbox,
    place: Inside,
    ip: String,
}

/// A node whose own files and programs are the machine's.
struct Installed {
    machine: Machine,
    cluster: Cluster,
}

impl Installed {
    fn new() -> Installed {
        let made = Command::new("tests/package/debian.sh").output().expect("start tests/package/debian.sh");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let root = PathBuf::from(String::from_utf8_lossy(&made.stdout).trim());
        let packages = fs::canonicalize(releases()[0].deb.parent().expect("it is in a folder")).expect("it is there");
        let cluster = Cluster::new(world::config(), 1, "ecs.sim.large");
        let machine = Machine::boot(&root, cluster.node(0).ns(), &packages);
        Installed { machine, cluster }
    }

    fn install(&self, release: usize) {
        let deb = releases()[release - 1].deb.file_name().expect("a file").to_string_lossy();
        self.machine.sh(&format!("dpkg -i /packages/{deb}"));
    }

    /// What an operator writes: the files that the simulator gives its own nodes, and this over the configuration.
    fn configure(&self, over: &Value) {
        self.cluster.configure(0, over);
        for path in ["/etc/eni/kubeconfig", "/etc/eni/eni.json"] {
            let text = self.cluster.node(0).read_file(path).expect("every node has it");
            self.machine.write(path, &text);
        }
    }

    fn call(&self, sandbox: &Sandbox, verb: &str) -> Answer {
        let inside = sandbox.command(verb);
        let mut command = self.machine.command("/opt/cni/bin/terway");
        command.env_clear().envs(inside.get_envs().filter_map(|(name, value)| Some((name, value?))));
        cni::exec(&mut command, &sandbox.conf)
    }

    /// A pod, `app` of its own name, as the kubelet shows it once it runs.
    fn add(&self, name: &str) -> Pod {
        let mut pod = kube::pod("default", name, &node_name(0));
        pod["metadata"]["labels"] = json!({"app": name});
        self.cluster.kube.put(pod);
        let place = self.machine.netns(name);
        let sandbox = Sandbox {
            plugin: "/opt/cni/bin/terway".into(),
            container: format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..)),
            netns: Path::new("/run/netns").join(name),
            ifname: "eth0".into(),
            pod: PodName::new("default", name),
            uid: None,
            conf: conf(&serde_json::Value::Null).to_string(),
        };
        let result = self.call(&sandbox, "ADD").ok().json();
        let ip =
            result["ips"][0]["address"].as_str().and_then(|ip| ip.split('/').next()).expect("an address").to_owned();
        let status = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}});
        self.cluster.kube.amend("Pod", "default", name, &status);
        Pod { sandbox, place, ip }
    }

    fn pid(&self) -> String {
        self.machine.property("terwayd", "MainPID")
    }

    /// Waits for a daemon other than this one, which serves.
    fn wait_for_other_than(&self, pid: &str) {
        soon("another daemon serves", || self.has_other_than(pid));
    }

    fn has_other_than(&self, pid: &str) -> bool {
        let state = self.machine.property("terwayd", "ActiveState");
        state == "active" && self.pid() != pid && self.machine.property("terwayd", "StatusText") == "serving"
    }

    fn is_there(&self, path: &str) -> bool {
        self.machine.succeeds(&format!("test -e {path}"))
    }
}

/// The links of pods in the node's network.
const LINKS: &str = "ip -o link | grep -c cali || true";

#[test]
fn the_deb_is_installed_runs_is_upgraded_and_goes() {
    let node = Installed::new();
    node.install(1);
    assert!(
        !node.machine.succeeds("systemctl is-enabled terwayd || systemctl is-active terwayd"),
        "nothing is configured"
    );
    let warnings = node.machine.output("systemd-analyze verify --man=no terwayd.service terway-bpffs.service");
    assert_eq!(String::from_utf8_lossy(&warnings.stderr), "", "systemd understands all of it");

    // The README has this number: 3.6.
    node.machine.sh("systemd-analyze security --no-pager --threshold=36 terwayd.service");

    space(&node.cluster.kube, "default", json!({}));
    node.configure(&json!({}));
    // Returns when the daemon serves: that is what it tells systemd.
    node.machine.sh("systemctl enable --now terwayd");
    assert!(node.is_there(CONFLIST) && node.machine.property("terwayd", "StatusText") == "serving");
    assert!(node.machine.succeeds("findmnt -t bpf /sys/fs/bpf"), "bpffs is the machine's, not the daemon's own");
    let (web, asker) = (node.add("web"), node.add("asker"));
    let rules = node.machine.sh("iptables -w 5 -t mangle -S PREROUTING");
    assert!(rules.contains("-i cali+"), "iptables runs under the unit's restrictions: {rules}");

    what_the_unit_allows_is_enough_for_repair(&node, &web);
    ["iptables", "ebpf"].iter().for_each(|renderer| a_policy_holds_under_the_unit(&node, &web, &asker, renderer));
    nothing_was_refused(&node);
    restarts_lose_nothing(&node, &web, &asker);
    a_stuck_daemon_is_replaced(&node);
    an_upgrade_reaches_a_daemon_that_does_not_serve_yet(&node);

    // Namespaces that runtimes remove are not held by the daemon's view of the files.
    node.call(&asker.sandbox, "DEL").ok();
    drop(asker.place);
    node.machine.sh("ip netns del asker");
    let held = node.machine.sh(&format!("grep -c /run/netns/asker /proc/{}/mountinfo || true", node.pid()));
    assert_eq!(held.trim(), "0");

    let second = node.add("second");
    node.machine.sh("dpkg -r terway");
    assert!(!node.is_there("/usr/bin/terwayd") && !node.is_there(CONFLIST) && node.is_there("/etc/eni/eni.json"));
    assert!(second.place.ping(&web.ip).is_some(), "pods run on without the package");
    assert_eq!(
        node.machine.sh("systemctl list-units --all --plain --no-legend 'terway*' | grep -c running || true").trim(),
        "0"
    );
    node.machine.sh("dpkg -P terway");
    assert_eq!(node.machine.sh(LINKS).trim(), "0");
    assert_eq!(node.machine.sh("ip rule | grep -cE '^(512|2047|2048|2049):' || true").trim(), "0");
    assert_eq!(node.machine.sh("ip route show table all proto 116 | wc -l").trim(), "0");
    assert_eq!(node.machine.sh("iptables-save | grep -cE 'cali|TERWAY' || true").trim(), "0");
    for gone in ["/run/terway", "/var/lib/terway", "/etc/eni", "/sys/fs/bpf/terway"] {
        // What the operator has put beside our files is theirs.
        assert!(!node.is_there(gone) || node.machine.sh(&format!("ls {gone}")) == "kubeconfig\n", "{gone}");
    }
}

/// A restart, an upgrade to the next release and the death of the daemon, with a pod that talks to another.
fn restarts_lose_nothing(node: &Installed, web: &Pod, asker: &Pod) {
    let Tally { sent, lost, tcp } = load::during(&asker.place, &web.place, &web.ip, || {
        let first = node.pid();
        // As `kubeadm reset` has people do.
        node.machine.sh("rm -r /etc/cni/net.d && systemctl restart terwayd");
        assert!(node.is_there(CONFLIST));
        let second = node.pid();
        assert_ne!(first, second);
        node.install(2);
        node.wait_for_other_than(&second);
        let third = node.pid();
        node.machine.sh("systemctl kill --signal KILL terwayd");
        node.wait_for_other_than(&third);
    });
    assert_eq!(lost, 0, "of {sent} datagrams");
    assert!(tcp > 0);
    assert_eq!(node.machine.sh("dpkg-query -W -f '${Version}' terway"), format!("{}-2", env!("CARGO_PKG_VERSION")));
    eprintln!("a restart, an upgrade and a kill: {sent} datagrams, none lost; {tcp} bytes of one connection");
}

/// Sets, chains and programs come, are known again by the next life, and go, all within what the unit allows.
fn a_policy_holds_under_the_unit(node: &Installed, web: &Pod, asker: &Pod, renderer: &str) {
    node.configure(&json!({"policy_renderer": renderer}));
    node.machine.sh("systemctl restart terwayd");
    let friend = node.add("friend");
    let _servers = Servers::on(&web.place, &[&web.ip], PORT);
    [asker, &friend].iter().for_each(|one| comes_to(&one.place, &web.ip, true));
    policy(&node.cluster.kube, "default", "web", only_from("friend"));
    comes_to(&asker.place, &web.ip, false);
    assert!(reaches(&friend.place, &web.ip), "{renderer}");
    if renderer == "ebpf" {
        who_listens_hears(node, web, asker);
    }
    node.machine.sh("systemctl restart terwayd");
    soon("they are enforced again", || {
        let shown: Value = serde_json::from_str(&node.machine.sh("terway-cli show")).expect("JSON");
        shown["policies"]["state"] == "enforced" && shown["policies"]["renderer"] == renderer
    });
    assert!(!reaches(&asker.place, &web.ip) && reaches(&friend.place, &web.ip), "{renderer}, after a restart");
    node.cluster.kube.delete("NetworkPolicy", "default", "web");
    comes_to(&asker.place, &web.ip, true);
    node.call(&friend.sandbox, "DEL").ok();
    drop(friend.place);
    node.machine.sh("ip netns del friend");
    node.cluster.kube.delete("Pod", "default", "friend");
}

/// The ring of a CPU is opened, and has what the programs tell of a probe that they drop.
fn who_listens_hears(node: &Installed, web: &Pod, asker: &Pod) {
    let heard = std::thread::scope(|scope| {
        let line = "timeout 20 terway-cli monitor --json | grep -m 1 'default/asker.*\"verdict\":\"drop\"' || true";
        let listener = scope.spawn(|| node.machine.sh(line));
        while !listener.is_finished() {
            assert!(!reaches(&asker.place, &web.ip));
        }
        listener.join().expect("it does not panic")
    });
    assert!(!heard.is_empty(), "the monitor tells of no drop");
}

/// What a filter of system calls, a missing capability or a folder that is only to be read refuses has these words.
fn nothing_was_refused(node: &Installed) {
    let said = node.machine.sh("journalctl -u terwayd -o cat --no-pager").to_lowercase();
    for word in
        ["not permitted", "denied", "read-only file system", "bad system call", "seccomp", "not supported by protocol"]
    {
        assert!(!said.contains(word), "{word} in {said}");
    }
}

/// The daemon steps into a pod's namespace, which was mounted after its own view of the files was made.
fn what_the_unit_allows_is_enough_for_repair(node: &Installed, web: &Pod) {
    let gateway = "169.254.1.1";
    web.place.sh("ip route flush table main; ip link del eth0");
    soon("the pod's link is made anew", || {
        web.place.run(|| {
            let routes = Command::new("ip").args(["route", "show", "default"]).output().expect("start ip");
            String::from_utf8_lossy(&routes.stdout).contains(gateway)
        })
    });
    let host = node.cluster.node(0).addr.to_string();
    soon("it speaks", || web.place.ping(&host).is_some());
}

/// One that does not answer the watchdog is ended and started again.
fn a_stuck_daemon_is_replaced(node: &Installed) {
    node.machine.sh("mkdir -p /run/systemd/system/terwayd.service.d");
    node.machine.write("/run/systemd/system/terwayd.service.d/soon.conf", "[Service]\nWatchdogSec=10\n");
    node.machine.sh("systemctl daemon-reload && systemctl restart terwayd");
    let first = node.pid();
    // It is not replaced while it is well.
    std::thread::sleep(std::time::Duration::from_secs(11));
    assert_eq!(node.pid(), first);
    node.machine.sh("systemctl kill --signal STOP terwayd");
    assert!(within(2 * SOON, || node.has_other_than(&first)), "nobody replaces a stuck daemon");
    let why = node.machine.sh("journalctl -u terwayd -o cat --no-pager");
    assert!(why.contains("Watchdog timeout"), "{why}");
    // A machine that tests share may be slow.
    node.machine
        .sh("rm -r /run/systemd/system/terwayd.service.d && systemctl daemon-reload && systemctl restart terwayd");
}

/// What keeps it from serving may be what the new release mends. One that was stopped stays so.
fn an_upgrade_reaches_a_daemon_that_does_not_serve_yet(node: &Installed) {
    // Without its will it asks before it serves.
    node.machine.sh("systemctl stop terwayd && rm -f /run/terway/legacy.json");
    node.install(1);
    assert_eq!(node.machine.property("terwayd", "ActiveState"), "inactive");
    let cloud = &node.cluster.world.cloud;
    cloud.trouble("metadata", When::Always, Kind::Refuse { status: 503, code: "unavailable".into() });
    node.machine.sh("systemctl --no-block start terwayd");
    let says = || node.machine.property("terwayd", "StatusText");
    soon("it says what it waits for", || says().starts_with("does not serve yet"));
    let first = node.pid();
    node.install(2);
    soon("the other release runs", || ![first.as_str(), "0"].contains(&node.pid().as_str()));
    cloud.calm();
    node.wait_for_other_than(&first);
}
