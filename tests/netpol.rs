//! Network policies: the real daemon, a simulated API server, and real packets between pods.

mod enforced;
mod heard;

use std::time::Duration;

use serde_json::{Value, json};

use crate::bpf::cell::Servers;
use crate::sim::cluster::{Cluster, Member, node_name, soon};
use crate::sim::kube::{self, Kube};
use crate::sim::traffic::Place;
use crate::sim::world;

pub const PORT: u16 = 8080;
/// A packet that has not arrived by then was dropped.
const DROPPED: Duration = Duration::from_millis(300);

/// Two nodes, each with a daemon.
struct Bench {
    cluster: Cluster,
}

impl Bench {
    fn new(over: Value) -> Bench {
        let mut bench = Bench::idle(over);
        (0..2).for_each(|n| bench.cluster.start_ready(n));
        bench
    }

    fn idle(over: Value) -> Bench {
        let cluster = Cluster::new(world::config(), 2, "ecs.sim.large");
        let config = json!({"min_pool_size": 4});
        let all = config.as_object().into_iter().chain(over.as_object()).flatten();
        let config: serde_json::Map<String, Value> = all.map(|(k, v)| (k.clone(), v.clone())).collect();
        (0..2).for_each(|n| cluster.configure(n, &config.clone().into()));
        space(&cluster.kube, "default", json!({}));
        Bench { cluster }
    }

    /// A pod with these labels and a server on it.
    fn serve(&self, n: usize, name: &str, labels: Value) -> (Member, Servers) {
        let member = self.add(n, name, labels);
        let servers = Servers::on(&member.pod, &[&member.ip], PORT);
        (member, servers)
    }

    /// A pod with these labels, as the kubelet shows it once it runs.
    fn add(&self, n: usize, name: &str, labels: Value) -> Member {
        let mut pod = kube::pod("default", name, &node_name(n));
        pod["metadata"]["labels"] = labels;
        self.cluster.kube.put(pod);
        let mut member = self.cluster.sandbox(n, terway::pod::PodName::new("default", name));
        self.cluster.wire(&mut member);
        self.shows(name, &member);
        member
    }

    fn shows(&self, name: &str, member: &Member) {
        let ips: Vec<Value> = member.ips.iter().map(|ip| json!({"ip": ip})).collect();
        let status = json!({"status": {"phase": "Running", "podIP": member.ip, "podIPs": ips}});
        self.cluster.kube.amend("Pod", "default", name, &status);
    }

    fn label(&self, name: &str, labels: Value) {
        self.cluster.kube.amend("Pod", "default", name, &json!({"metadata": {"labels": labels}}));
    }

    /// Puts a NetworkPolicy `default/NAME` there.
    fn policy(&self, name: &str, spec: Value) {
        policy(&self.cluster.kube, "default", name, spec);
    }

    /// What the daemon shows of its policies.
    fn shown(&self, n: usize) -> Value {
        self.cluster.show(n)["policies"].clone()
    }

    /// Whatever the answer is: 1 says no.
    fn cli(&self, n: usize, line: &str) -> String {
        self.cluster.node(n).sh(&format!("/opt/terway/terway-cli {line} || test $? = 1"))
    }
}

pub fn space(kube: &Kube, name: &str, labels: Value) {
    let mut all = json!({"kubernetes.io/metadata.name": name});
    labels.as_object().into_iter().flatten().for_each(|(key, value)| all[key] = value.clone());
    kube.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": all}}));
}

pub fn policy(kube: &Kube, space: &str, name: &str, spec: Value) {
    kube.put(json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": space, "name": name}, "spec": spec,
    }));
}

/// Lets in only what comes from pods with this label.
pub fn only_from(app: &str) -> Value {
    json!({
        "podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": app}}}]}],
    })
}

/// Whether a connection is taken.
pub fn reaches(from: &impl Place, to: &str) -> bool {
    let to = format!("{to}:{PORT}").parse().expect("an address");
    from.run(|| std::net::TcpStream::connect_timeout(&to, DROPPED).is_ok())
}

/// Waits until a connection is taken, or is not any more.
pub fn comes_to(from: &impl Place, to: &str, want: bool) {
    soon(&format!("{to} is {}", if want { "reached" } else { "not reached" }), || reaches(from, to) == want);
}
