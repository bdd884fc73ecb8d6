//! Kubernetes during a start: what it tells of our pods and node is heard from the beginning, and why a start fails is said there.
//! Nobody looks into our log before a pod is missed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::SystemTime;

use smol::channel::Sender;

use super::boot::{Start, is_final};
use super::node::Input;
use super::outset::Outset;
use super::{clock, news};
use crate::config::Config;
use crate::error::Error;
use crate::herald::{Facts, Herald, Lack};
use crate::kube;
use crate::object::{self, Node};
use crate::pool::Notice;
use crate::rpc::Refusal;

pub struct Early {
    /// The loop goes on with it.
    pub herald: Herald,
    /// So does it with these.
    pub outset: Outset,
    /// The instance we run on, once the metadata service has said so.
    pub machine: Option<String>,
    node_name: String,
    /// Where the API server is, and how we speak to it.
    kube: Option<(Option<PathBuf>, kube::Client)>,
    inputs: Sender<Input>,
    /// Ends the watches.
    stops: Vec<kube::Stop>,
}

impl Early {
    pub fn new(start: &Start, inputs: Sender<Input>) -> Early {
        let (herald, node_name) = (Herald::new(fastrand::u64(..)), start.node_name());
        Early { herald, outset: Outset::new(), machine: None, node_name, kube: None, inputs, stops: Vec::new() }
    }

    /// Begins to hear of our pods and of our node, while all else is looked at. Called again when what says where the API
    /// server is may have changed.
    pub fn listen(&mut self, start: &Start) {
        let (name, place) = (start.node_name(), start.kubeconfig());
        if self.node_name == name && self.kube.as_ref().is_some_and(|(known, _)| *known == place) {
            return;
        }
        self.stops.drain(..).for_each(|stop| stop.stop());
        self.outset.end();
        self.outset = Outset::new();
        // Why it cannot be opened is said by the attempt, which needs it.
        self.kube = start.kube(kube::Limits::default()).ok().map(|kube| (place, kube));
        self.node_name = name;
        let Some((_, kube)) = &self.kube else { return };
        self.stops = vec![
            news::watch_pods(kube, &self.node_name, self.inputs.clone(), self.outset.ear.clone()),
            news::watch_node(kube, &self.node_name, self.inputs.clone()),
        ];
    }

    /// Begins with what new pods will wait for.
    pub fn look_after(&mut self, config: &Config) {
        if let Some((_, kube)) = &self.kube {
            self.outset.begin(config, kube, &self.node_name, &self.inputs);
        }
    }

    /// How we speak to the API server, or why we cannot.
    pub fn kube(&self, start: &Start) -> Result<kube::Client, Error> {
        self.kube.as_ref().map_or_else(|| start.kube(kube::Limits::default()), |(_, kube)| Ok(kube.clone()))
    }

    /// Tells what keeps us from starting, for as long as the API server takes it; blocks meanwhile.
    pub fn tell(&mut self, e: &Error) {
        let Some((_, kube)) = self.kube.clone() else { return };
        let reason = if is_final(e) { "ConfigError" } else { "AllocResourceFailed" };
        let message = format!("terwayd cannot start: {e}");
        let notice = Notice { pod: None, warning: true, reason, message: message.clone() };
        let now = clock::now();
        self.herald.hear(now, news::event(&notice, "", &self.node_name));
        let lack = Some(Lack { why: Refusal::Starting, reason: message });
        self.herald.publish(now, Facts { resources: BTreeMap::new(), annotations: BTreeMap::new(), lack });
        if self.herald.due(now, None).is_none_or(|due| due > now) {
            return;
        }
        let own = self.own_node(&kube);
        let stamp = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        while let Some(write) = self.herald.next(clock::now(), &stamp, own.as_ref()) {
            self.herald.done(clock::now(), news::carry_out(&kube, &write));
        }
    }

    /// Our node object, if it is known to stand for this machine.
    fn own_node(&self, kube: &kube::Client) -> Option<Node> {
        let machine = self.machine.as_deref()?;
        let node: Node = kube.get(&object::path::<Node>("", &self.node_name)).ok()?;
        (node.instance() == Some(machine)).then_some(node)
    }
}
