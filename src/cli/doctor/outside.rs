//! What the node depends on outside: the metadata service, the cloud, the API server, and the way there.

use std::net::UdpSocket;
use std::thread;
use std::time::Duration;

use rustix::net::sockopt::{Ipv4PathMtuDiscovery, ip_mtu, set_ip_mtu_discover};
use serde::de::IgnoredAny;

use super::super::finding::{Finding, remedy};
use super::super::metadata;
use super::{Complaint, Patient};
use crate::cloud::{self, Client, Filter, reach};
use crate::eni::{Fault, FaultKind};
use crate::error::{Cause, Error};
use crate::kube::{self, Source};
use crate::object::{self, Node};

type Found = Result<Vec<Complaint>, Error>;

/// Where a packet of full size is sent to, which nobody answers.
const FAR: &str = "100.100.100.200:9";
/// What is left of a frame for UDP's payload.
const HEADERS: usize = 28;
/// Until routers on the way have complained.
const ROUND_TRIP: Duration = Duration::from_millis(200);

/// Whether frames as long as the pods' get through towards the cloud.
pub fn path_mtu(patient: &mut Patient) -> Found {
    let want = patient.known.mtu();
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::DO)?;
    socket.connect(FAR)?;
    let packet = vec![0; want as usize - HEADERS];
    // Too long for the link itself: that shows below.
    let _ = socket.send(&packet);
    thread::sleep(ROUND_TRIP);
    let seen = ip_mtu(&socket)?;
    if seen >= want {
        return Ok(Vec::new());
    }
    let what = format!("packets of {want} bytes do not get through to {FAR}: at most {seen} do");
    let remedy =
        format!("`mtu` {seen} in /etc/eni/eni.json and in the network configuration, or raise the MTU on the way");
    Ok(vec![Finding::problem(what, remedy).into()])
}

pub fn metadata(_: &mut Patient) -> Found {
    let Err(e) = metadata::service().and_then(|service| service.instance_id()) else { return Ok(Vec::new()) };
    let remedy = "this must be an ECS instance, and 100.100.100.200 be reached: curl http://100.100.100.200/latest/meta-data/instance-id; \
                  ip route get 100.100.100.200";
    Ok(vec![Finding::problem(format!("the metadata service does not answer: {e}"), remedy).into()])
}

/// Calls that read; those that write are refused where status says so.
pub fn cloud(patient: &mut Patient) -> Found {
    let Ok(config) = &patient.config else { return Ok(Vec::new()) };
    let metadata = reach::metadata(config)?;
    let region = config.region.clone().map_or_else(|| metadata.region(), Ok)?;
    let (kind, instance) = (metadata.instance_type()?, metadata.instance_id()?);
    let vswitches: Vec<String> = config.vswitches.values().flatten().cloned().collect();
    let client = Client::new(reach::endpoint(config, &region), reach::credentials(config, metadata)?)?;
    let filter = Filter { instance: Some(instance), ..Filter::default() };
    let mut faults: Vec<Fault> = client.instance_limits(&kind).err().into_iter().collect();
    faults.extend(client.describe_enis(&filter).err());
    faults.extend(vswitches.iter().filter_map(|id| client.vswitch(id).err()));
    let mut complaints: Vec<Complaint> = faults.iter().map(|fault| refused(fault).into()).collect();
    complaints.extend(clock(client.skew()).map(Complaint::from));
    Ok(complaints)
}

fn refused(fault: &Fault) -> Finding {
    let why = match fault.kind {
        FaultKind::Forbidden => "forbidden",
        FaultKind::Quota => "quota",
        FaultKind::Throttled => "throttled",
        FaultKind::VSwitchEmpty => "v_switch_empty",
        FaultKind::Unknown => "cloud_down",
        FaultKind::Gone | FaultKind::Invalid => {
            let what = "see whether the ids in /etc/eni/eni.json (vswitches, region_id) are those of this VPC";
            return Finding::problem(fault.to_string(), what);
        }
        _ => "cloud_down",
    };
    Finding::problem(fault.to_string(), remedy(why))
}

fn clock(skew: i64) -> Option<Finding> {
    let remedy = "have it set: systemctl enable --now chronyd (or systemd-timesyncd); till then calls are signed with the cloud's time";
    (skew != 0).then(|| Finding::problem(cloud::clock_words(skew), remedy))
}

/// With the rights that the daemon needs: the node object, and the node's pods.
pub fn api_server(patient: &mut Patient) -> Found {
    let Some((client, name)) = api(patient)? else {
        let remedy = "`kubeconfig` in /etc/eni/eni.json, or --kubeconfig";
        return Ok(vec![Finding::note("no kubeconfig is named: the API server was not asked", remedy).into()]);
    };
    let pods = format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{name}&limit=1");
    let asked = [client.get::<IgnoredAny>(&format!("/api/v1/nodes/{name}")), client.get::<IgnoredAny>(&pods)];
    let mut complaints = Vec::new();
    for e in asked.into_iter().filter_map(Result::err) {
        let remedy = match &e.cause {
            Cause::Http { status: 401, .. } => "the token or certificate of the kubeconfig is not valid (any more): renew it".into(),
            Cause::Http { status: 403, .. } => "grant what /usr/share/doc/terway/rbac.yaml lists".into(),
            Cause::Absent => format!("the API server knows no node {name}: `node_name` in /etc/eni/eni.json must be the kubelet's"),
            _ => "see whether the server of the kubeconfig is reached from here: its address, a firewall, the node's routes".into(),
        };
        complaints.push(Finding::problem(e.to_string(), remedy).into());
        // The second would say the same.
        if !matches!(complaints.len(), 0) && !is_answer(&e) {
            break;
        }
    }
    Ok(complaints)
}

fn is_answer(e: &Error) -> bool {
    matches!(e.cause, Cause::Http { .. } | Cause::Absent)
}

fn api(patient: &Patient) -> Result<Option<(kube::Client, String)>, Error> {
    let Some(path) = &patient.kubeconfig else { return Ok(None) };
    let named = patient.config.as_ref().ok().and_then(|config| config.node_name.clone());
    let name = named.unwrap_or_else(|| object::node_of_host(&rustix::system::uname().nodename().to_string_lossy()));
    let limits = kube::Limits { call: Duration::from_secs(10), ..kube::Limits::USUAL };
    Ok(Some((kube::Client::with_limits(Source::Kubeconfig(path.clone()), limits)?, name)))
}

/// The kubelet takes no more pods than it was told, and no more have an address than there are.
pub fn max_pods(patient: &mut Patient) -> Found {
    let Some(capacity) = patient.known.shown["pool"]["capacity"].as_u64() else { return Ok(Vec::new()) };
    let Some((client, name)) = api(patient)? else { return Ok(Vec::new()) };
    // That it cannot be had is said above.
    let Ok(node) = client.get::<Node>(&format!("/api/v1/nodes/{name}")) else { return Ok(Vec::new()) };
    let Some(max) = node.status.capacity.count("pods").filter(|max| *max > capacity) else { return Ok(Vec::new()) };
    let what = format!(
        "the kubelet takes {max} pods, and {capacity} can have an address (those on the host's network need none)"
    );
    let remedy = format!(
        "kubelet --max-pods={capacity} and as many more as run on the host's network, or a larger instance type"
    );
    Ok(vec![Finding::note(what, remedy).into()])
}
