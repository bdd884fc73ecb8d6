//! The node as Kubernetes sees it: our own node object is watched, compared with what it is to be, and written where they differ.

use std::collections::BTreeMap;
use std::iter;
use std::time::{Duration, SystemTime};

use super::Node;
use crate::cloud;
use crate::config::Mode;
use crate::daemon::news;
use crate::gather::Gather;
use crate::herald::{Facts, Fit, Guests, Lack, Now};
use crate::ip::IpPair;
use crate::object::{self, ENI_RESOURCE, ENIIP_RESOURCE, MAX_IPS, POD_IPS};
use crate::pod::PodName;
use crate::pool::Notice;
use crate::rpc::Refusal;

/// While nothing of interest moves, what to write is not asked for more often: a burst of notifications moves nothing.
const PAUSE: Duration = Duration::from_millis(100);
/// What moves sooner after we have spoken waits until then: ADDs in a row are one change.
pub(super) const BREATH: Duration = Duration::from_millis(10);

impl Node {
    /// Takes up what the watch tells of our node object. One that stands for another machine is nothing to go by.
    pub(super) fn see_own_node(&mut self, node: Option<Box<object::Node>>) {
        let name = &self.world.node_name;
        if node.is_none() {
            log::warn!(
                "the API server knows no node {name}: the kubelet has not registered it yet, or node_name is wrong"
            );
        }
        let mistaken = node.as_deref().and_then(|node| self.is_anothers(node));
        let mistaken = mistaken.or_else(|| node.as_deref().and_then(|node| self.is_in_another_mode(node)));
        let before =
            self.own.as_deref().and_then(|node| self.is_anothers(node).or_else(|| self.is_in_another_mode(node)));
        self.own = node;
        self.stirred = true;
        self.follow_label();
        if let Some(message) = mistaken.filter(|message| before.as_ref() != Some(message)) {
            self.tell(Notice { pod: None, warning: true, reason: "ConfigError", message });
        }
    }

    /// The label says another mode than the one in which we were started, in words, if the configuration leaves it to the label.
    fn is_in_another_mode(&self, node: &object::Node) -> Option<String> {
        let mode = self.world.terms.mode;
        let said = if node.has_whole_enis() { Mode::Whole } else { Mode::Shared };
        if self.world.mode_is_given || said == mode {
            return None;
        }
        let (label, _) = object::WHOLE_ENI_LABEL;
        Some(format!(
            "exclusive eni mode changed: label {label} asks for {said}, and terwayd runs in {mode}: drain the node and restart \
             terwayd, or set the label back"
        ))
    }

    /// The node of our name is another instance's, in words, if it is.
    fn is_anothers(&self, node: &object::Node) -> Option<String> {
        let (name, ours) = (&self.world.node_name, &self.world.terms.facts.instance);
        let theirs = node.instance().filter(|theirs| theirs != ours)?;
        Some(format!(
            "node {name} is instance {theirs} in Kubernetes (spec.providerID {}), and this machine is {ours} according to its \
             metadata service: set node_name in /etc/eni/eni.json to the name of this machine's node",
            node.spec.provider_id
        ))
    }

    /// Our node object, if it stands for this machine.
    fn own_node(&self) -> Option<&object::Node> {
        self.own.as_deref().filter(|node| self.is_anothers(node).is_none())
    }

    /// Writes what is next to be written to the API server, one thing at a time.
    pub(super) fn speak(&mut self, now: Now) {
        if self.stirred && now < self.spoke + BREATH {
            return;
        }
        let stirred = std::mem::take(&mut self.stirred);
        if !stirred && now < self.spoke + PAUSE && self.speak.is_none_or(|at| now < at) {
            return;
        }
        if stirred {
            self.herald.publish(now, self.facts());
            self.compare_max_pods();
        }
        let own = self.own.take();
        let node = own.as_deref().filter(|node| self.is_anothers(node).is_none());
        let stamp = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let write = self.herald.next(now, &stamp, node).or_else(|| self.annotate(now));
        self.own = own;
        if let Some(write) = write {
            self.world.write(write);
        }
        (self.spoke, self.speak) = (now, self.due_to_speak(now));
    }

    fn due_to_speak(&self, now: Now) -> Option<Now> {
        let notes = self.herald.note_due(self.unnoted().into_keys());
        [self.herald.due(now, self.own_node()), notes].into_iter().flatten().min()
    }

    fn facts(&self) -> Facts {
        let (capacity, published) = (self.pool.capacity(), self.world.publish.resources);
        let shares = self.world.terms.mode == Mode::Shared;
        Facts {
            resources: [
                (ENI_RESOURCE, published.then_some(capacity.whole)),
                (ENIIP_RESOURCE, (published && shares).then_some(capacity.shared())),
            ]
            .into_iter()
            .gather(),
            annotations: iter::once((MAX_IPS, Some(capacity.pods().to_string()))).gather(),
            lack: self.lack(),
        }
    }

    fn lack(&self) -> Option<Lack> {
        let unwritten = self.unwritten.clone().map(|reason| Lack { why: Refusal::Local, reason });
        unwritten.or_else(|| self.pool.lack().map(|refused| Lack { why: refused.why, reason: refused.reason }))
    }

    /// Tells of a clock that is wrong; calls go on, signed with the cloud's time.
    pub(super) fn watch_clock(&mut self) {
        let skew = self.world.cloud.skew();
        let before = std::mem::replace(&mut self.skew, skew);
        match (before, skew) {
            (_, 0) if before != 0 => log::info!("the clock of this machine agrees with the cloud's again"),
            // It drifts, or was set to another wrong time.
            (_, 0) => {}
            _ if before.abs_diff(skew) < 60 => self.skew = before,
            _ => {
                let message =
                    format!("{}; until then calls are signed with the cloud's time", cloud::clock_words(skew));
                self.tell(Notice { pod: None, warning: true, reason: "ConfigError", message });
            }
        }
    }

    /// Says once how the kubelet's max-pods goes with what the instance can hold.
    fn compare_max_pods(&mut self) {
        let capacity = self.pool.capacity();
        let Some(max) = self.own_node().and_then(|own| own.status.capacity.count("pods")) else { return };
        // What pods have to themselves comes and goes; the most there can be does not.
        let most = capacity.enis * capacity.per_eni;
        if self.compared == Some((max, most)) {
            return;
        }
        let Some(without) = self.pods.without_address() else { return };
        self.compared = Some((max, most));
        let (kind, enis) = (&self.world.terms.facts.instance_type, capacity.enis);
        let because = format!("{kind} with {enis} ENIs of {} addresses", capacity.per_eni);
        match (Guests { max, without, addresses: u64::from(most), because }).fit() {
            Fit::TooMany(message) => self.tell(Notice { pod: None, warning: true, reason: "ConfigError", message }),
            Fit::Spare(message) => log::info!("{message}"),
            Fit::Exact => {}
        }
    }

    /// Tells a person, by an event and the log.
    pub(super) fn tell(&mut self, notice: Notice) {
        if let Some(pod) = notice.pod.as_ref().filter(|_| notice.reason == "AllocIPFailed") {
            self.complained.insert(pod.clone());
        }
        news::log(&notice);
        let uid = notice.pod.as_ref().and_then(|pod| self.pods.uid(pod)).unwrap_or_default();
        let event = news::event(&notice, uid, &self.world.node_name);
        self.herald.hear(crate::daemon::clock::now(), event);
        self.stirred = true;
    }

    /// A pod that was told why it had no address has one now.
    pub(super) fn make_up(&mut self, pod: &PodName, ip: IpPair) {
        if self.complained.remove(pod) {
            let message = format!("{} was allocated", words(&ip));
            self.tell(Notice { pod: Some(pod.clone()), warning: false, reason: "AllocIPSucceed", message });
        }
    }

    // Annotations of pods

    /// Writes a pod's addresses into its annotation, where that is asked for and they are not there.
    fn annotate(&mut self, now: Now) -> Option<object::Write> {
        let wanting = self.unnoted();
        self.herald.forget_notes(|pod| wanting.contains_key(pod));
        wanting.iter().find_map(|(pod, ips)| self.herald.note(now, pod, POD_IPS, ips))
    }

    fn unnoted(&self) -> BTreeMap<PodName, String> {
        if !self.world.publish.pod_ips {
            return BTreeMap::new();
        }
        let mut all = BTreeMap::<&PodName, String>::new();
        for lease in self.leases.values() {
            let ips = all.entry(&lease.pod).or_default();
            *ips += if ips.is_empty() { "" } else { "," };
            *ips += &words(&lease.ip);
        }
        let wanting = all.into_iter().filter(|(pod, ips)| self.pods.lacks_ips(pod, ips));
        wanting.map(|(pod, ips)| (pod.clone(), ips)).gather()
    }
}

/// Addresses as the annotation has them.
fn words(ip: &IpPair) -> String {
    ip.iter().map(|ip| ip.to_string()).collect::<Vec<_>>().join(",")
}
