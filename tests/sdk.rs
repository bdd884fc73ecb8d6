//! Alibaba Cloud's official Python SDKs against the simulator, as an independent client.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::sim::cloud::{Cloud, Config, EniStatus, InstanceSpec};

/// The SDKs, and the library below the newer one that decides how it signs.
const PACKAGES: [&str; 4] = [
    "aliyun-python-sdk-core==2.16.1",
    "aliyun-python-sdk-ecs==4.24.83",
    "alibabacloud-ecs20140526==7.11.8",
    "alibabacloud-tea-openapi==0.4.6",
];

#[test]
fn the_official_sdk_of_the_rpc_form_leads_an_eni_through_its_life() {
    // This SDK compares the string that the server signed with its own, finds them equal, and so blames the secret.
    lead_an_eni_through_its_life(include_str!("sdk/rpc.py"), "rpc.py", "InvalidAccessKeySecret");
}

#[test]
fn the_official_sdk_of_the_acs3_form_leads_an_eni_through_its_life() {
    lead_an_eni_through_its_life(include_str!("sdk/acs3.py"), "acs3.py", "SignatureDoesNotMatch");
}

fn lead_an_eni_through_its_life(script: &str, name: &str, wrong_secret: &str) {
    let world = World::new();
    let said = world.run(script, name);
    let expected = [
        ("again", json!(true)),
        ("created", eni("Available", "", &["10.0.8.1", "10.0.8.2"])),
        ("attached", eni("InUse", "i-node", &["10.0.8.1", "10.0.8.2"])),
        ("assigned", json!(["10.0.8.3", "10.0.8.4"])),
        ("unassigned", eni("InUse", "i-node", &["10.0.8.1", "10.0.8.2", "10.0.8.4"])),
        ("instance", json!(["ecs.sim.large"])),
        ("type", json!([3])),
        ("detached", json!(["Available", ""])),
        ("deleted", json!([])),
        ("wrong secret", json!([400, wrong_secret])),
        ("wrong key", json!([404, "InvalidAccessKeyId.NotFound"])),
    ];
    assert_eq!(said, expected.map(|(name, value)| json!([name, value])));
    let cloud = &world.cloud;
    assert_eq!(cloud.calls_ending("CreateNetworkInterface", "OK"), 2);
    assert_eq!(cloud.calls_ending("DescribeNetworkInterfaces", "SignatureDoesNotMatch"), 1);
    // One of the calls was made with the credentials of the node's role.
    assert_eq!(cloud.journal().iter().filter(|c| c.key.starts_with("STS.")).count(), 1);
    let left = cloud.enis();
    assert_eq!((left.len(), left[0].status), (1, EniStatus::InUse));
}

/// An ENI as both scripts print it.
fn eni(status: &str, instance: &str, addresses: &[&str]) -> Value {
    let addresses: Vec<Value> = addresses.iter().enumerate().map(|(i, a)| json!([a, i == 0])).collect();
    json!([[status, instance, addresses, "节点 a ~*+/=&%", [["creator", "terway"]]]])
}

/// A cloud on loopback with one instance.
struct World {
    cloud: Cloud,
    api: String,
    metadata: String,
}

impl World {
    fn new() -> World {
        let cloud = Cloud::start(Config::default());
        let listen = || TcpListener::bind("127.0.0.1:0").expect("a port on loopback");
        let (api, metadata) = (listen(), listen());
        let name = |l: &TcpListener| l.local_addr().expect("a bound listener").to_string();
        let names = (name(&api), format!("http://{}", name(&metadata)));
        cloud.serve(api);
        cloud.serve_metadata(metadata);
        cloud.add_instance(InstanceSpec {
            id: "i-node".into(),
            instance_type: "ecs.sim.large".into(),
            vswitch: "vsw-node".into(),
            security_groups: vec!["sg-sim".into()],
            address: None,
            role: Some("NodeRole".into()),
        });
        cloud.instance_calls_from("127.0.0.1".parse().expect("a literal"), "i-node");
        World { cloud, api: names.0, metadata: names.1 }
    }

    /// What the script printed, a JSON value a line.
    fn run(&self, script: &str, name: &str) -> Vec<Value> {
        let python = python();
        let file = python.with_file_name(name);
        fs::write(&file, script).expect("the script beside the interpreter");
        let out = Command::new(&python)
            .args([file.as_os_str(), self.api.as_ref(), self.metadata.as_ref()])
            .env("PYTHONIOENCODING", "utf-8")
            // A proxy is not for loopback.
            .envs([("no_proxy", "*"), ("NO_PROXY", "*")])
            .output()
            .expect("the interpreter that was just installed");
        let text = String::from_utf8_lossy(&out.stdout);
        let said = text.lines().map(|l| serde_json::from_str(l).expect("a JSON line")).collect();
        assert!(out.status.success(), "{name} said {said:?} and failed: {}", String::from_utf8_lossy(&out.stderr));
        said
    }
}

/// The interpreter of an environment that has the SDKs; made once for each set of versions.
fn python() -> PathBuf {
    let versions: Vec<&str> = PACKAGES.iter().filter_map(|p| p.split("==").nth(1)).collect();
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("sdk-{}", versions.join("-")));
    let lock = File::create(home.with_extension("lock")).expect("a lock file in the target directory");
    lock.lock().expect("nobody else installs at the same time");
    let ready = home.join("ready");
    if !ready.exists() {
        let _ = fs::remove_dir_all(&home);
        make_environment(&home);
        must(Command::new(home.join("bin/python")).args(["-m", "pip", "install", "--quiet"]).args(PACKAGES));
        fs::write(&ready, "").expect("the mark that the environment is whole");
    }
    home.join("bin/python")
}

fn make_environment(home: &Path) {
    let venv = || Command::new("python3").args(["-m", "venv"]).arg(home).output();
    if venv().is_ok_and(|out| out.status.success()) {
        return;
    }
    // A bare Debian has Python without venv, or none.
    must(Command::new("apt-get").arg("update"));
    must(Command::new("apt-get").args(["install", "-y", "python3-venv"]).env("DEBIAN_FRONTEND", "noninteractive"));
    must(Command::new("python3").args(["-m", "venv", "--clear"]).arg(home));
}

fn must(command: &mut Command) -> Output {
    let out = command.output().unwrap_or_else(|e| panic!("run {command:?}: {e}"));
    let words = || format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{command:?} failed: {}", words());
    out
}
