//! ADD: an address from the daemon, and the pod wired to it.

use std::time::Duration;

use ipnet::IpNet;

use super::{daemon, del};
use crate::client::Question;
use crate::cni::{BandwidthMode, Code, Failure, NetConf, Reply, ReplyIp, VirtualType};
use crate::datapath::{self, Setup};
use crate::kernel::Kernel;
use crate::plan::{Object, Plan};
use crate::pod::{PodName, Sandbox};
use crate::rpc::{self, Lease, Request, Wiring, Wish};

/// Runtimes give a command two minutes; the rest is for the wiring.
const PATIENCE: Duration = Duration::from_secs(115);

/// There is no way back here: a failed ADD is undone by DEL.
pub fn add(pod: PodName, uid: Option<String>, sandbox: Sandbox, conf: &NetConf) -> Result<Reply, Failure> {
    let name = pod.to_string();
    // First of all: nothing is leased for a namespace that is not there.
    let mut kernel = open(&sandbox)?;
    del::revive(&sandbox.attachment);
    let veth = datapath::veth(&pod, &sandbox.attachment, conf.link_mtu(None));
    let wants_slave = conf.virtual_type == VirtualType::IpVlan;
    let wish = Wish {
        network: Some(conf.name.clone()),
        slave: wants_slave,
        alone: conf.disable_host_peer,
        host_stack: conf.host_stack.clone(),
    };
    let request = Request::Allocate { pod, uid, sandbox: sandbox.clone(), limits: conf.runtime.limits, wish };
    // Open until we end: by that the daemon knows that the pod is wired, and from then on keeps it so.
    let mut question =
        daemon::put(&request, PATIENCE).map_err(|f| Failure { msg: format!("add {name}: {}", f.msg), ..f })?;
    if !wants_slave {
        // The veth takes the kernel longest and does not depend on the lease: it is made while the daemon works.
        kernel.begin(&veth);
    }
    let lease = lease(&mut question, &sandbox, &mut kernel)
        .map_err(|f| Failure { msg: format!("add {name}: {}", f.msg), ..f })?;
    let plan = datapath::pod(&Setup::new(&lease, conf.link_mtu(lease.mtu)));
    if conf.virtual_type == VirtualType::DatapathV2 || wants_slave && lease.wiring == Wiring::Shared {
        log::warn!("add {name}: {:?} is not available, a veth is used", conf.virtual_type);
    }
    if conf.bandwidth_mode != BandwidthMode::Tc {
        log::warn!("add {name}: bandwidth_mode edt is not available, a token bucket holds the pod to its limit");
    }
    if conf.auto_mtu && conf.mtu.is_none() {
        log::warn!(
            "add {name}: auto_mtu is not available; mtu, here or in the daemon's configuration, is what is gone by"
        );
    }
    if conf.network_priority {
        log::warn!("add {name}: enable_network_priority is not available, no pod's packets go first");
    }
    log::debug!("add {name}: {lease:?}\n{plan}");
    kernel
        .clear_former(&plan)
        .and_then(|()| kernel.apply(&plan))
        .map_err(|e| Failure::new(Code::Node, e.within(format!("add {name}"))))?;
    Ok(reply(sandbox, conf, &lease, &plan))
}

/// The kernel as seen from the node and from inside the pod.
pub fn open(sandbox: &Sandbox) -> Result<Kernel, Failure> {
    let mut kernel = Kernel::host().map_err(|e| Failure::new(Code::Node, e))?;
    kernel.enter(&sandbox.netns).map_err(|e| Failure::new(Code::Environment, e.within("CNI_NETNS")))?;
    Ok(kernel)
}

fn lease(question: &mut Question, sandbox: &Sandbox, kernel: &mut Kernel) -> Result<Lease, Failure> {
    let lease = daemon::answer(question).and_then(|reply| match reply {
        rpc::Reply::Lease(lease) => daemon::sound(*lease, &sandbox.attachment),
        rpc::Reply::Refused { why, reason } => Err(daemon::refused(why, &reason)),
        other => Err(daemon::strange(&other)),
    });
    if lease.is_err() {
        kernel.abandon();
    }
    lease
}

/// Addresses bear the length of the vSwitch's prefix, as runtimes and chained plugins of Terway's users expect, although
/// inside the pod they stand alone.
fn reply(sandbox: Sandbox, conf: &NetConf, lease: &Lease, plan: &Plan) -> Reply {
    let mut mac = lease.eni.mac;
    let mut host_link = None;
    for object in &plan.host {
        if let Object::Veth(veth) = object {
            host_link = Some((veth.name.clone(), veth.mac));
            mac = if veth.peer == sandbox.attachment.ifname { veth.peer_mac } else { mac };
        }
    }
    let v4 = lease.ip.v4.map(|ip| {
        let length = lease.eni.cidr.v4.map_or(32, |net| net.prefix_len());
        ReplyIp { address: IpNet::new_assert(ip.into(), length), gateway: lease.eni.gateway.v4.map(Into::into) }
    });
    let v6 = lease.ip.v6.map(|ip| {
        let length = lease.eni.cidr.v6.map_or(128, |net| net.prefix_len());
        ReplyIp { address: IpNet::new_assert(ip.into(), length), gateway: lease.eni.gateway.v6.map(Into::into) }
    });
    Reply { mac, mtu: conf.link_mtu(lease.mtu), host_link, sandbox, ips: v4.into_iter().chain(v6).collect() }
}
