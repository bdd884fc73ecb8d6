//! What Kubernetes is told of a start that fails: nobody looks into our log before a pod is missed.

use std::collections::BTreeMap;
use std::time::SystemTime;

use super::boot::{Start, is_final};
use super::{clock, news};
use crate::error::Error;
use crate::herald::{Facts, Herald, Lack};
use crate::kube;
use crate::object::{self, Node};
use crate::pool::Notice;
use crate::rpc::Refusal;

pub struct Early {
    /// The loop goes on with it.
    pub herald: Herald,
    /// The instance we run on, once the metadata service has said so.
    pub machine: Option<String>,
    node_name: String,
    kube: Option<kube::Client>,
}

impl Early {
    pub fn new(start: &Start) -> Early {
        // Why it cannot be opened is said by the attempt that needs it.
        let kube = start.kube(kube::Limits::default()).ok();
        Early { herald: Herald::new(fastrand::u64(..)), machine: None, node_name: start.node_name(), kube }
    }

    /// Tells what keeps us from starting, for as long as the API server takes it; blocks meanwhile.
    pub fn tell(&mut self, e: &Error) {
        let Some(kube) = self.kube.clone() else { return };
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
