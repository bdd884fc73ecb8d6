//! Services at the socket: the loop that looks after them is started from here, and told which pods there are.

use smol::channel::Sender;

use super::Node;
use crate::config::Mode;
use crate::daemon::{guard, threads};
use crate::ip::NetPair;
use crate::pod::PodName;
use crate::pool::Notice;
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
        let config = self.layers().config();
        let wanted = config.services.clone();
        if config.service_cidr.is_empty() && self.world.kubeadms_services.is_none() {
            self.world.ask_kubeadm();
        }
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

    /// Where Services have their addresses: as the configuration says, else as kubeadm does.
    pub(super) fn service_nets(&self) -> NetPair {
        self.layers().config().service_nets(self.world.kubeadms_services)
    }

    pub(super) fn learn_services(&mut self, nets: NetPair) {
        self.world.kubeadms_services = Some(nets);
        self.direct();
    }

    /// A pod that has an ENI of its own sends to Services by the VPC, which knows none of them, unless it is told where they are or they
    /// are led at the socket.
    pub(super) fn tell_of_lost_services(&mut self, pod: &PodName) {
        if self.ear.is_none() && self.service_nets().is_empty() {
            let message = "service_cidr is not set, and kubeadm has not left it: the pod, which has an ENI of its own, reaches no Service \
                           and no cluster DNS; set it and re-create the pod";
            self.tell(Notice { pod: Some(pod.clone()), warning: true, reason: "ConfigError", message: message.into() });
        }
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
