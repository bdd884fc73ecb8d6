//! Shared ENI with policy routing: a veth per pod, one table for all local pods, one rule per ENI chosen by a mark.
//!
//! The kernel walks the rules one by one for every packet it forwards, so their number must not grow with the pods.

use std::net::IpAddr;

use super::{EniSetup, Setup, default_route, family};
use crate::ip::host_net;
use crate::ours;
use crate::plan::{Addr, Filter, FilterAction, Link, Neigh, Object, Plan, Route, Rule, RuleAction, Sysctl, Veth};
use crate::rpc::Marker;

pub fn pod(setup: &Setup) -> Plan {
    let lease = setup.lease;
    let ifname = &lease.sandbox.attachment.ifname;
    let veth = ours::host_veth(&lease.pod, ifname);
    let mut plan = Plan::default();
    plan.host.push(Object::Veth(Veth {
        name: veth.clone(),
        mac: ours::host_mac(&veth),
        mtu: setup.mtu,
        alias: ours::alias(&lease.sandbox.attachment, &lease.pod),
        peer: ifname.clone(),
        peer_mac: ours::pod_mac(&veth),
    }));
    plan.pod.push(Object::Link(Link { name: ifname.clone(), mtu: Some(setup.mtu) }));
    for addr in lease.ip.iter() {
        inside(&mut plan.pod, addr, ifname, &veth);
        outside(&mut plan.host, addr, &veth);
    }
    mark(&mut plan.host, setup, &veth);
    plan
}

/// The pod's own view: one address, and one neighbour that answers for everything else.
fn inside(pod: &mut Vec<Object>, addr: IpAddr, ifname: &str, veth: &str) {
    let gateway = match addr {
        IpAddr::V4(_) => IpAddr::V4(ours::POD_GATEWAY),
        IpAddr::V6(_) => IpAddr::V6(ours::POD_GATEWAY_V6),
    };
    pod.push(Object::Addr(Addr { net: host_net(addr), link: ifname.into() }));
    pod.push(Object::Neigh(Neigh { addr: gateway, mac: ours::host_mac(veth), link: ifname.into() }));
    pod.push(default_route(gateway, ifname, None));
}

/// How the node reaches the pod; the neighbour spares the first packet an ARP round.
fn outside(host: &mut Vec<Object>, addr: IpAddr, veth: &str) {
    host.push(Object::Neigh(Neigh { addr, mac: ours::pod_mac(veth), link: veth.into() }));
    host.push(Object::Route(Route {
        to: host_net(addr),
        via: None,
        link: veth.into(),
        table: Some(ours::PODS_TABLE),
        onlink: false,
    }));
}

/// What makes the pod's packets leave by its ENI.
fn mark(host: &mut Vec<Object>, setup: &Setup, veth: &str) {
    let (value, mask) = (ours::mark(setup.lease.eni.slot), ours::MARK_MASK);
    let action = match setup.lease.marker {
        Marker::Bpf => FilterAction::BpfMark(value, mask),
        Marker::Skbedit => FilterAction::SkbeditMark(value, mask),
        Marker::Rule => return host.extend(setup.lease.ip.iter().map(|addr| from_rule(setup, addr))),
    };
    host.push(Object::Filter(Filter { link: veth.into(), priority: ours::MARK_FILTER_PRIORITY, action }));
}

/// The old Terway's way, for kernels where nothing can set a mark.
fn from_rule(setup: &Setup, addr: IpAddr) -> Object {
    Object::Rule(Rule {
        priority: ours::FROM_POD_PRIORITY,
        family: family(&addr),
        from: Some(host_net(addr)),
        mark: None,
        iif: None,
        action: RuleAction::Lookup(setup.lease.eni.table),
    })
}

pub fn eni(setup: &EniSetup) -> Plan {
    let table = setup.eni.table;
    let mut host = vec![
        Object::Sysctl(Sysctl { path: format!("net/ipv4/conf/{}/rp_filter", setup.link), value: "0".into() }),
        Object::Link(Link { name: setup.link.into(), mtu: Some(setup.mtu) }),
    ];
    for addr in setup.node.iter() {
        host.push(Object::Addr(Addr { net: host_net(addr), link: setup.link.into() }));
    }
    for gateway in setup.eni.gateway.iter() {
        let rule = Rule {
            priority: ours::FROM_POD_PRIORITY,
            family: family(&gateway),
            from: None,
            mark: Some((ours::mark(setup.eni.slot), ours::MARK_MASK)),
            iif: None,
            action: RuleAction::Lookup(table),
        };
        let stray = Rule {
            priority: ours::STRAY_PRIORITY,
            mark: None,
            iif: Some(setup.link.into()),
            action: RuleAction::Blackhole,
            ..rule.clone()
        };
        host.push(default_route(gateway, setup.link, Some(table)));
        host.push(Object::Rule(rule));
        host.push(Object::Rule(stray));
    }
    Plan { host, pod: Vec::new() }
}
