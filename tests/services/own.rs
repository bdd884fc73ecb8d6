//! A daemon that asks the API server by the address of its Service, on a node where kube-proxy leads there too.

use std::path::Path;
use std::time::Duration;

use serde_json::json;

use super::Bench;
use crate::cli::cli;
use crate::sim::cluster::{soon, within};
use crate::sim::traffic::Place;
use crate::sim::world::KUBERNETES;

const SERVICE: &str = "172.21.0.1";

/// All threads of the daemon are led from now on, and those that they begin.
fn lead(bench: &mut Bench) {
    let tasks = format!("/proc/{}/task", bench.cluster.daemon(0).pid());
    for task in std::fs::read_dir(Path::new(&tasks)).expect("it runs").flatten() {
        // One that has ended by now is no more to be led.
        let _ = std::fs::write(bench.threads.path().join("cgroup.threads"), task.file_name().as_encoded_bytes());
    }
}

#[test]
fn endpoints_that_are_gone_do_not_keep_the_daemon_from_hearing_of_the_new_ones() {
    let mut bench = Bench::idle(json!({}));
    let node = bench.cluster.node(0);
    node.write_file("/etc/eni/kubeconfig", &bench.cluster.kube.kubeconfig(format!("{SERVICE}:443").parse().unwrap()));
    node.sh(&format!(
        "iptables -t nat -A OUTPUT -d {SERVICE}/32 -p tcp --dport 443 -j DNAT --to-destination {KUBERNETES}"
    ));
    bench.cluster.api_down();
    let up = |bench: &Bench| {
        let listener = bench.cluster.world.fabric.listen(KUBERNETES.parse().unwrap());
        bench.cluster.kube.serve_as(listener, &[SERVICE])
    };
    let api = up(&bench);
    bench.service("kubernetes", SERVICE, json!({"ports": [{"name": "http", "port": 443}]}));
    bench.endpoints("kubernetes", &[("100.100.0.20:6444".parse().unwrap(), json!({}))]);
    bench.cluster.start_ready(0);
    soon("it leads", || bench.cluster.show(0)["services"]["frontends"] == 1);
    bench.refuses(&**bench.cluster.node(0), &format!("{SERVICE}:443"));
    bench.cluster.stop(0);
    drop(api);
    bench.cluster.start_ready(0);
    lead(&mut bench);
    bench.endpoints("kubernetes", &[(KUBERNETES.parse().unwrap(), json!({}))]);
    let _api = up(&bench);
    let leads = |bench: &Bench| cli(&bench.cluster, "services kubernetes").out.contains(KUBERNETES);
    std::thread::sleep(Duration::from_secs(10));
    assert!(!leads(&bench) && bench.cluster.show(0)["services"]["state"] == "waiting for the API server");
    assert!(within(Duration::from_secs(90), || leads(&bench)), "{}", bench.cluster.log(0));
    soon("it is shown", || bench.cluster.show(0)["services"]["state"] == "serving");
    bench.cluster.kube.disconnect();
    bench.service("late", "172.21.0.90", json!({}));
    soon("it hears on", || bench.cluster.show(0)["services"]["services"] == 2);
}
