//! What those who watch the daemon are answered: metrics, health, readiness.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use saphyr_parser::Parser;
use serde_json::{Value, json};

use super::idle_node;
use crate::sim::cloud::{Kind, When};
use crate::sim::cluster::{Cluster, soon};
use crate::sim::exposition;
use crate::sim::traffic::Place;

const SOCKET: &str = "/var/run/eni/eni_debug.socket";
const TCP: &str = "127.0.0.1:15432";

/// Status and body of what the unix socket answers to this line.
pub fn told(cluster: &Cluster, line: &str) -> (String, String) {
    cluster.node(0).run(|| hear(UnixStream::connect(SOCKET).expect("it listens"), line))
}

fn hear(mut stream: impl Read + Write, line: &str) -> (String, String) {
    write!(stream, "{line}\r\nHost: terway\r\n\r\n").expect("it reads");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("it answers and hangs up");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
    let length = format!("Content-Length: {}", body.len());
    assert!(head.contains(&length), "{head}");
    (head.split(' ').nth(1).expect("a status").into(), body.into())
}

#[test]
fn metrics_are_told_under_the_old_names_and_readiness_is_the_truth() {
    let mut cluster = idle_node("ecs.sim.large", &json!({"min_pool_size": 2, "max_pool_size": 4}));
    cluster.world.cloud.trouble_anywhere(When::Always, Kind::unavailable());
    cluster.start_with(0, &["--readonly-listen", TCP]);
    soon("it says why it does not serve", || {
        cluster.node(0).run(|| UnixStream::connect(SOCKET).is_ok())
            && told(&cluster, "GET /readyz HTTP/1.1").1.contains("ServiceUnavailable")
    });
    assert_eq!(told(&cluster, "GET /readyz HTTP/1.1").0, "503");
    assert_eq!(told(&cluster, "GET /healthz HTTP/1.1"), ("200".into(), "ok\n".into()), "it lives all the same");
    assert!(told(&cluster, "GET /metrics HTTP/1.1").1.contains("\nterway_ready 0\n"));

    cluster.world.cloud.calm();
    soon("it serves", || told(&cluster, "GET /readyz HTTP/1.1").0 == "200");
    let _pods = [cluster.add(0, "web"), cluster.add(0, "other")];
    let (status, metrics) =
        cluster.node(0).run(|| hear(TcpStream::connect(TCP).expect("it listens"), "GET /metrics HTTP/1.0"));
    assert_eq!(status, "200");
    let pool = "name=\"eniip\",type=\"eniip\",capacity=\"20\",max_idle=\"4\",min_idle=\"2\"";
    for line in [
        "terway_ready 1",
        "terway_rpc_latency_count{rpc_api=\"AllocIP\",error=\"false\"} 2",
        "terway_rpc_latency_bucket{rpc_api=\"AllocIP\",error=\"false\",le=\"+Inf\"} 2",
        "aliyun_openapi_latency_count{api=\"CreateNetworkInterface\",error=\"false\"} 1",
        "terway_pool_addresses{state=\"leased\"} 2",
        "terway_pool_waiting 0",
        "terway_eniip_factory_eni_count{name=\"eniip\",max_eni=\"2\"} 1",
        "terway_resource_pool_allocated_count{type=\"eniip\"} 2",
    ] {
        assert!(metrics.lines().any(|told| told == line), "no {line} in {metrics}");
    }
    let counts = ["total_count", "idle_count", "disposed_count"].map(|what| format!("terway_resource_pool_{what}"));
    for start in counts {
        assert!(metrics.contains(&format!("{start}{{{pool}}} ")), "no {start} with {pool} in {metrics}");
    }
    for (start, end) in [
        ("terway_eniip_factory_ip_alloc_count{eni=\"", "\",status=\"succeed\"} "),
        ("aliyun_metadata_latency_count{url=\"http://", "/latest/meta-data/instance-id\",error=\"false\"} "),
        (
            "aliyun_metadata_latency_count{url=\"http://",
            "/network/interfaces/macs/{mac}/vswitch-cidr-block\",error=\"false\"} ",
        ),
    ] {
        assert!(
            metrics.lines().any(|told| told.starts_with(start) && told.contains(end)),
            "no {start}…{end} in {metrics}"
        );
    }
    exposition::read(&metrics).unwrap_or_else(|why| panic!("{why}\n{metrics}"));
    // 3: it reads all of it, and would have given some of the old names otherwise.
    let (code, said) = promtool(&["check", "metrics"], &metrics);
    assert!(matches!(code, Some(0 | 3)), "{said}");
    what_is_watched_is_told(&metrics);
    let pods = "\nterway_policy_table{kind=\"pods\"} 2\n";
    soon("it tells of policies", || told(&cluster, "GET /metrics HTTP/1.1").1.contains(pods));
    damage_that_was_put_right_is_counted(&cluster);
    let failed =
        metrics.lines().any(|line| line.starts_with("aliyun_openapi_latency_count") && line.contains("error=\"true\""));
    assert!(failed, "calls that failed are counted as such: {metrics}");

    assert_eq!(told(&cluster, "GET /debug HTTP/1.1").0, "404");
    assert_eq!(told(&cluster, "POST /metrics HTTP/1.1").0, "400");
}

/// What was done and what was put right since; and of the time that pods took from the question to the end of their wiring.
fn damage_that_was_put_right_is_counted(cluster: &Cluster) {
    cluster.node(0).sh("ip rule del priority 512");
    let later = || told(cluster, "GET /metrics HTTP/1.1").1;
    soon("it tells of the repair", || later().contains("terway_repairs_total{part=\"node\",what=\"rule\"} 1\n"));
    assert!(later().contains("\nterway_add_latency_count 2\n"), "{}", later());
    exposition::read(&later()).unwrap_or_else(|why| panic!("{why}"));
}

/// What tells that pods suffer.
const ALARMING: [&str; 5] =
    ["terway_ready", "terway_pool_trouble", "terway_pool_waiting", "terway_pool_lost", "terway_policies_enforced"];

#[test]
fn whatever_pods_suffer_by_has_an_alert() {
    let alerts = std::fs::read_to_string("packaging/monitoring/alerts.yaml").unwrap();
    let asked: Vec<&str> = alerts.lines().filter_map(|line| line.trim_start().strip_prefix("expr: ")).collect();
    for metric in ALARMING {
        assert!(asked.iter().any(|expr| expr.split(' ').next() == Some(metric)), "{metric}: {asked:?}");
    }
}

/// How Prometheus's own checker ends when it is given this, and what it says.
fn promtool(args: &[&str], input: &str) -> (Option<i32>, String) {
    let made = Command::new("tests/promtool.sh").output().expect("start tests/promtool.sh");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let mut command = Command::new(String::from_utf8_lossy(&made.stdout).trim());
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut tool = command.spawn().expect("start promtool");
    tool.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("it reads");
    let done = tool.wait_with_output().expect("it ends");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (done.status.code(), text(&done.stdout) + &text(&done.stderr))
}

#[test]
fn prometheus_understands_what_alerts_and_dashboard_ask() {
    let (code, said) = promtool(&["check", "rules", "packaging/monitoring/alerts.yaml"], "");
    assert_eq!(code, Some(0), "{said}");
    let dashboard: Value = serde_json::from_str(include_str!("../../packaging/monitoring/dashboard.json")).unwrap();
    let targets = dashboard["panels"].as_array().unwrap().iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    let asked: Vec<&str> = targets.map(|target| target["expr"].as_str().unwrap()).collect();
    assert!(asked.len() > 10, "{asked:?}");
    // What a panel asks for is a rule as well, once its variable has a value.
    let rules: Vec<Value> =
        asked.iter().enumerate().map(|(n, expr)| json!({"record": format!("panel:{n}"), "expr": expr})).collect();
    let rules = json!({"groups": [{"name": "panels", "rules": rules}]}).to_string().replace("$node", "n1");
    let file = std::env::temp_dir().join(format!("terway-panels-{}.json", std::process::id()));
    std::fs::write(&file, &rules).unwrap();
    let (code, said) = promtool(&["check", "rules", file.to_str().unwrap()], "");
    std::fs::remove_file(&file).unwrap();
    assert_eq!(code, Some(0), "{said}");
}

/// Dashboard and alerts ask for nothing that no daemon tells.
fn what_is_watched_is_told(metrics: &str) {
    let named: BTreeSet<&str> =
        metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let dashboard = include_str!("../../packaging/monitoring/dashboard.json");
    serde_json::from_str::<serde_json::Value>(dashboard).expect("JSON");
    let alerts = include_str!("../../packaging/monitoring/alerts.yaml");
    Parser::new_from_str(alerts).for_each(|event| drop(event.expect("YAML")));
    let mut asked = 0;
    for word in [dashboard, alerts].iter().flat_map(|text| text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'))
    {
        if word.starts_with("terway_") || word.starts_with("aliyun_") {
            let name = word.trim_end_matches("_bucket");
            let is_told = named.contains(name) || named.contains(name.trim_end_matches("_count"));
            assert!(is_told, "{word} is told by nobody");
            asked += 1;
        }
    }
    assert!(asked > 10, "{asked}");
}
