//! What the node loop reaches for outside itself: each job runs on a thread of its own and comes back as an input.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

use smol::channel::Sender;

use super::bandwidth;
use super::calls::{self, Place};
use super::eni::{self, Job};
use super::news::{self, Kubeadms};
use super::node::{self, Compared, Input};
use super::old::felix;
use super::tally::tally;
use super::terms::Terms;
use super::threads;
use super::trials::Trials;
use crate::config::{Mode, Publish};
use crate::datapath::{self, EniSetup, NodeSetup};
use crate::eni::VSwitch;
use crate::error::{Context, Error};
use crate::ip::{Family, IpPair};
use crate::kernel::bpf::marks;
use crate::kernel::{self, Kernel};
use crate::object::{self, Write};
use crate::ours;
use crate::peer::Own;
use crate::plan::Plan;
use crate::pod::{Attachment, PodName};
use crate::pool::{Call, CallId};
use crate::rpc::{EniLease, Lease, Marker};
use crate::{cloud, kube};

/// What the API server has not answered is asked again after this long, doubling up to the second figure.
const ASK_AGAIN: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

pub struct World {
    pub inputs: Sender<Input>,
    pub cloud: cloud::Client,
    pub kube: kube::Client,
    pub terms: Terms,
    /// The operator says in which mode we run, so that the node's label does not.
    pub mode_is_given: bool,
    /// What the API server calls this node.
    pub node_name: String,
    /// The node's own addresses.
    pub node: IpPair,
    pub setup: NodeSetup,
    pub marker: Marker,
    pub trials: Trials,
    pub mtu: u32,
    /// What the network configuration says of pods' links.
    pub network_mtu: Option<u32>,
    /// Where Services are as kubeadm has left it; nobody has asked where the configuration said it, or nobody has answered yet.
    pub kubeadms_services: Option<Kubeadms>,
    /// Whoever asks for that, again and again, is told by this to ask at once.
    pub asking: Option<SyncSender<()>>,
    /// A lease whose pod has been gone this long is given up though no DEL came.
    pub orphan: Duration,
    /// Kinds whose pods shall have their addresses again.
    pub stateful_kinds: BTreeSet<String>,
    pub place: Place,
    /// Every vSwitch that was ever described to us.
    pub vswitches: BTreeMap<String, VSwitch>,
    pub publish: Publish,
}

impl World {
    /// Runs a blocking job and sends what comes of it to the loop. A pool of threads would keep them, awake twice a second.
    fn start(&self, job: impl FnOnce() -> Input + Send + 'static) {
        let inputs = self.inputs.clone();
        threads::start(move || drop(inputs.send_blocking(job())));
    }

    pub fn call(&self, id: CallId, call: Call) {
        let (cloud, place) = (self.cloud.clone(), self.place.clone());
        self.start(move || {
            let result = calls::perform(&cloud, &place, call.clone());
            tally().made(&call, &result);
            Input::Done { call: id, result }
        });
    }

    pub fn prepare(&self, job: Job, slot: u32) {
        let known = self.vswitches.get(&job.vswitch).cloned();
        let (cloud, stack, node, mtu) = (self.cloud.clone(), self.setup.stack, self.node, self.mtu);
        let (mode, marker) = (self.terms.mode, self.marker);
        self.start(move || {
            let vswitch = known.map_or_else(|| cloud.vswitch(&job.vswitch).map_err(Error::from), Ok);
            let result = vswitch.and_then(|vswitch| eni::prepare(&job, slot, &vswitch, stack, &node, mtu, mode));
            result.iter().for_each(|lease| keep_mark(marker, lease.slot));
            Input::Prepared { eni: job.eni, result }
        });
    }

    /// The programs that mark the packets of pods in these slots are at hand for plugins.
    pub fn keep_marks(&self, slots: Vec<u32>) {
        let marker = self.marker;
        threads::start(move || slots.into_iter().for_each(|slot| keep_mark(marker, slot)));
    }

    pub fn fetch_pod(&self, pod: PodName) {
        let kube = self.kube.clone();
        self.start(move || {
            let path = object::path::<Own>(&pod.namespace, &pod.name);
            let result = match kube.get::<Own>(&path) {
                Ok(found) => Ok(Some(Box::new(found))),
                Err(e) if e.is_absent() => Ok(None),
                Err(e) => Err(e),
            };
            Input::Fetched { pod, result }
        });
    }

    /// Asks what kubeadm has left until the API server says it, or that there is nothing. Who asks already asks again at once.
    pub fn ask_kubeadm(&mut self) {
        if let Some(asking) = &self.asking {
            // Where it is full, that has been said.
            let _ = asking.try_send(());
            return;
        }
        let (asking, hurry) = sync_channel(1);
        self.asking = Some(asking.clone());
        let (kube, facts) = (self.kube.clone(), self.terms.facts.clone());
        self.start(move || {
            // With this end it is open for as long as anybody waits at the other.
            let _asking = asking;
            let mut pause = ASK_AGAIN.0;
            loop {
                match news::kubeadms_services(&kube, &facts) {
                    Ok(left) => return Input::KubeadmsServices(left),
                    Err(e) => log::debug!("service_cidr is not set: {e}"),
                }
                let hurried = hurry.recv_timeout(pause).is_ok();
                pause = if hurried { ASK_AGAIN.0 } else { (pause * 2).min(ASK_AGAIN.1) };
            }
        });
    }

    pub fn shape(&self, lease: Lease) {
        self.start(move || {
            let result = bandwidth::hold(&lease);
            Input::Shaped { attachment: lease.sandbox.attachment, bandwidth: lease.bandwidth, result }
        });
    }

    /// Follows a ConfigMap until it is told to stop.
    pub fn watch_config(&self, namespace: &str, name: String) -> kube::Stop {
        news::watch_config(&self.kube, namespace, name, self.inputs.clone())
    }

    /// Deletes links by their index, all at once: they share one RCU grace period. `owners`: whose they were.
    pub fn delete_links(&self, links: Vec<u32>, owners: BTreeSet<Attachment>) {
        self.start(move || {
            if let Err(e) = delete(&links) {
                log::warn!("{e}");
            }
            Input::Swept { owners }
        });
    }

    /// Compares plans with the kernel, and names the pods whose plans it does not match.
    pub fn compare(&self, plans: Vec<Compared>) {
        self.start(move || Input::Compared(differing(plans)));
    }

    /// Sees to it that answers of pods to node ports go back as they came, and that packets of pods are forwarded; kube-proxy, Docker and
    /// people change netfilter too.
    pub fn guard_netfilter(&self) {
        let (node, stack) = (self.node, self.setup.stack);
        threads::start(move || {
            let apply = |plan: Plan, what: &str| {
                if let Err(e) = Kernel::host().and_then(|mut kernel| kernel.apply(&plan)) {
                    log::warn!("{what}: {e}");
                }
            };
            apply(datapath::answers(stack), "node ports will not answer other nodes for pods of this node");
            apply(datapath::answers_of_ipvs(stack), "node ports that IPVS leads will not answer for pods of this node");
            let cut = "pods with an ENI of their own will not reach Services with backends on other nodes";
            apply(datapath::masquerade(&node), cut);
            // Felix lets through by itself what its policies do, and what is left of it goes with such rules in its place.
            let families = if felix::may_be_left() { &[] } else { stack.families() };
            for family in families.iter().filter(|family| forwards_by_rule_only(**family)) {
                apply(datapath::passage(*family), "pods are cut off by the policy DROP of the chain FORWARD");
            }
        });
    }

    pub fn take_out(&self, lease: Lease) {
        threads::start(move || node::take_out(&lease));
    }

    pub fn write(&self, write: Write) {
        let kube = self.kube.clone();
        self.start(move || Input::Written(news::carry_out(&kube, &write)));
    }

    /// What an ENI of the node needs in the kernel, with slaves or without: nothing where pods have whole ones.
    pub fn eni_plan(&self, eni: &EniLease, link: &str, has_slaves: bool) -> Plan {
        let setup = EniSetup { eni, link, mtu: self.mtu, node: &self.node };
        match self.terms.mode {
            Mode::Whole => Plan::default(),
            Mode::Shared if has_slaves => datapath::parent(&setup),
            Mode::Shared => datapath::eni(&setup),
        }
    }
}

/// A node without iptables has no such policy.
fn forwards_by_rule_only(family: Family) -> bool {
    kernel::forwards_by_rule_only(family).unwrap_or_else(|e| {
        if e.errno() != Some(libc::ENOENT) {
            log::warn!("whether pods are cut off by a policy DROP of the chain FORWARD is not known: {e}");
        }
        false
    })
}

fn keep_mark(marker: Marker, slot: u32) {
    if marker != Marker::Bpf {
        return;
    }
    if let Err(e) = marks::keep(ours::mark(slot), ours::MARK_MASK) {
        log::info!("each plugin loads the program that marks packets of slot {slot} by itself: {e}");
    }
}

fn differing(plans: Vec<Compared>) -> Vec<Attachment> {
    let (start, count) = (Instant::now(), plans.len());
    let mut kernel = match Kernel::host() {
        Ok(kernel) => kernel,
        Err(e) => {
            log::warn!("comparison of pods: {e}");
            return Vec::new();
        }
    };
    let mut differs = |compared: &Compared| match kernel.survey(&compared.plan, compared.netns.as_deref()) {
        Ok(found) => !found.is_empty(),
        // Its namespace is gone: DEL is on its way.
        Err(e) if e.is_absent() => false,
        Err(e) => {
            log::warn!("comparison of {}: {e}", compared.attachment);
            false
        }
    };
    let hurt = plans.into_iter().filter_map(|compared| differs(&compared).then_some(compared.attachment)).collect();
    log::debug!("{count} pods compared with the kernel in {:?}", start.elapsed());
    hurt
}

fn delete(links: &[u32]) -> Result<(), Error> {
    let mut kernel = Kernel::host()?;
    for ifindex in links {
        kernel.doom(*ifindex)?;
    }
    kernel.delete_doomed().context(|| format!("delete {} links of pods that are gone", links.len()))
}
