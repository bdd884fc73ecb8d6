//! `terway-cli`, verb by verb, on nodes that are well and nodes that are not.

mod bundle;
mod doctor;
mod pages;
mod trace;
mod verbs;

use std::process::Command;

use serde_json::{Value, json};

use crate::sim::cluster::Cluster;
use crate::sim::traffic::Place;
use crate::sim::world;

const CLI: &str = "/opt/terway/terway-cli";

/// What the verb printed, what it complained of, and its exit code.
#[derive(Debug)]
pub struct Said {
    pub out: String,
    pub err: String,
    pub code: i32,
}

impl Said {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// The words of the first line that contains this.
    pub fn line(&self, with: &str) -> Vec<&str> {
        let line = self.out.lines().find(|line| line.contains(with));
        line.unwrap_or_else(|| panic!("no line with {with}: {self:?}")).split_whitespace().collect()
    }
}

/// Asked on the first node.
pub fn cli(cluster: &Cluster, line: &str) -> Said {
    let done = cluster.node(0).output(Command::new(CLI).args(line.split_whitespace()));
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    let said = Said { out: text(&done.stdout), err: text(&done.stderr), code: done.status.code().unwrap_or(-1) };
    assert!(!said.out.contains('\x1b'), "colours are for terminals: {line}");
    said
}

/// A node of 20 pods on two ENIs; `over` is laid over its configuration.
fn idle_node(over: &Value) -> Cluster {
    let cluster = Cluster::new(world::config(), 1, "ecs.sim.large");
    cluster.configure(0, over);
    cluster
}

fn node(over: &Value) -> Cluster {
    let mut cluster = idle_node(over);
    cluster.start_ready(0);
    cluster
}

fn nothing() -> Value {
    json!({})
}
