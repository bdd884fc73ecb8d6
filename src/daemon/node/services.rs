//! Services at the socket: the loop that looks after them is started from here, and told which pods there are.

use smol::channel::Sender;

use super::Node;
use crate::config::Mode;
use crate::daemon::{guard, threads};
use crate::rpc::{Refusal, Reply};

impl Node {
    /// Where the configuration does not say, slaves of an ENI have them, and pods with an ENI of their own that are held to policies: those
    /// are to see backends.
    pub(super) fn has_services(&self, ipvlan: bool) -> bool {
        let config = self.layers().config();
        config.services.on.unwrap_or(ipvlan || self.world.terms.mode == Mode::Whole && config.policies.on)
    }

    /// Begins to look after Services; or, where that is nobody's wish, sees to it that nothing is left that does. Where the configuration
    /// says neither, slaves of an ENI have them (`ipvlan`): what they send does not pass kube-proxy's rules.
    pub fn begin_services(&mut self, ipvlan: bool) {
        let wanted = self.layers().config().services.clone();
        if !self.has_services(ipvlan) {
            threads::start(move || guard::leave(&wanted));
            return;
        }
        self.ear = Some(guard::start(guard::Start {
            kube: self.world.kube.clone(),
            node_name: self.world.node_name.clone(),
            node: self.world.node.iter().collect(),
            wanted,
            inputs: self.world.inputs.clone(),
        }));
        self.untold = true;
    }

    /// Tells the loop of a change of the node's pods, once it has room for news.
    pub(super) fn tell_pods(&mut self) {
        if let Some(ear) = self.ear.as_ref().filter(|_| self.untold) {
            self.untold = !ear.tell(self.leases.values());
        }
    }

    pub(super) fn ask_services(&self, matching: String, answer: Sender<Reply>) {
        match &self.ear {
            Some(ear) => ear.ask(matching, answer),
            None => {
                let reason = "Services are left to kube-proxy here: ebpf_services is off".into();
                let _ = answer.try_send(Reply::Refused { why: Refusal::BadRequest, reason });
            }
        }
    }
}
