//! Services at the socket: the loop that looks after them is started from here, and told which pods there are.

use smol::channel::Sender;

use super::Node;
use super::add::Waiting;
use crate::config::Mode;
use crate::daemon::news::{Kubeadms, Lack};
use crate::daemon::{guard, threads};
use crate::ip::NetPair;
use crate::pod::{Attachment, PodName};
use crate::pool::Notice;
use crate::rpc::{Refusal, Reply, Wish};

/// A further interface leads nowhere but out, and so does one without a link to the node.
pub(super) fn leads_to_services(attachment: &Attachment, wish: &Wish) -> bool {
    attachment.ifname == "eth0" && !wish.alone
}

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
        self.ask_kubeadm();
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
        self.layers().config().service_nets(self.world.kubeadms_services.as_ref().map(|left| left.nets))
    }

    /// Has kubeadm's word asked for, where the configuration does not say where Services are and nobody has answered yet.
    pub(super) fn ask_kubeadm(&mut self) {
        if self.is_to_learn_services() {
            self.world.ask_kubeadm();
        }
    }

    fn is_to_learn_services(&self) -> bool {
        self.layers().config().service_cidr.is_empty() && self.world.kubeadms_services.is_none()
    }

    pub(super) fn learn_services(&mut self, left: Kubeadms) {
        self.world.kubeadms_services = Some(left);
        self.world.asking = None;
        self.direct();
    }

    /// What the VPC has of the addresses that kubeadm has left, where nothing else says where Services are.
    pub(super) fn service_overlap(&self) -> Option<&str> {
        match &self.world.kubeadms_services.as_ref()?.lack {
            Some(Lack::Overlap(what)) if self.service_nets().is_empty() => Some(what),
            _ => None,
        }
    }

    /// A pod with an ENI of its own keeps for life the way to Services that it comes with, or the lack of one: it is not to come before the
    /// API server has said where they are.
    pub(super) fn awaits_services(&self, waiting: &Waiting) -> bool {
        let attachment = &waiting.sandbox.attachment;
        let is_new = !self.leases.contains_key(attachment);
        let is_lost = self.ear.is_none() && self.is_to_learn_services();
        is_lost && self.wants_whole(waiting) && is_new && leads_to_services(attachment, &waiting.wish)
    }

    /// A pod that has an ENI of its own sends to Services by the VPC, which knows none of them, unless it is told where they are or they
    /// are led at the socket.
    pub(super) fn tell_of_lost_services(&mut self, pod: &PodName) {
        if self.ear.is_some() || !self.service_nets().is_empty() {
            return;
        }
        let lack = self.world.kubeadms_services.as_ref().and_then(|left| left.lack.clone()).unwrap_or(Lack::Unsaid);
        let remedy = match lack {
            Lack::Overlap(_) => "set ebpf_services to true, restart terwayd",
            Lack::Unsaid | Lack::Unread(_) => "set it",
        };
        let message = format!(
            "service_cidr is not set, and {lack}: the pod, which has an ENI of its own, reaches no Service and no cluster DNS; {remedy} \
             and re-create the pod"
        );
        self.tell(Notice { pod: Some(pod.clone()), warning: true, reason: "ConfigError", message });
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
