//! A node that the old Terway ran is taken over under load, and a pod of a StatefulSet comes back with its address.

use serde_json::json;
use terway::pod::PodName;

use crate::screen::Screen;
use crate::sim::cloud::InstanceSpec;
use crate::sim::cluster::{Cluster, Member, node_name};
use crate::sim::fabric::OUTSIDE;
use crate::sim::kube;
use crate::sim::load;
use crate::sim::old::{Generation, Record};
use crate::sim::traffic::Place;
use crate::sim::world::{self, NODES, World};

/// What is not as it should be in the end.
pub fn show(screen: Screen) -> Vec<String> {
    let step = screen.step("two pods, wired by the old Terway");
    let mut world = World::new(world::config());
    world.add_node(InstanceSpec {
        id: "i-1".into(),
        instance_type: "ecs.sim.large".into(),
        vswitch: NODES.into(),
        security_groups: vec!["sg-sim".into()],
        address: None,
        role: Some("KubernetesWorkerRole".into()),
    });
    let mut cluster = Cluster::over(world);
    let eni = cluster.old_eni(0, 3);
    let [a, b] = [("a", 1), ("b", 2)].map(|(name, n)| cluster.old_pod(0, name, &eni, eni.ips[n], Generation::First));
    cluster.old_store(0, &[&a, &b].map(|member| Record::of(member, &eni, Generation::First)), 7);
    step.done(&format!("{}, {}", a.ip, b.ip));
    let mut faults = take_over(screen, &mut cluster, &a, &b);
    faults.extend(come_back(screen, &cluster));
    faults
}

fn take_over(screen: Screen, cluster: &mut Cluster, a: &Member, b: &Member) -> Vec<String> {
    let step = screen.step("terwayd takes them over, under load");
    let tally = load::during(&a.pod, &b.pod, &b.ip, || cluster.start_ready(0));
    let said = format!("{} packets, {} lost", tally.sent, tally.lost);
    let well = tally.lost == 0 && b.pod.ping(OUTSIDE).is_some() && cluster.call_for(a, "CHECK").code == Some(0);
    if well {
        step.done(&said)
    } else {
        step.failed(&said)
    }
    if well { Vec::new() } else { vec![format!("the pods of the old Terway were not taken over well: {said}")] }
}

fn come_back(screen: Screen, cluster: &Cluster) -> Vec<String> {
    let step = screen.step("web-0 of a StatefulSet comes back");
    let first = add(cluster);
    let ip = first.ip.clone();
    cluster.del(first);
    let other = cluster.add(0, "other");
    let again = add(cluster);
    let well = again.ip == ip && other.ip != ip && again.pod.ping(&other.ip).is_some();
    if well {
        step.done(&format!("with {ip}"))
    } else {
        step.failed(&format!("{ip}, then {}", again.ip))
    }
    if well { Vec::new() } else { vec![format!("web-0 had {ip} and came back with {}", again.ip)] }
}

fn add(cluster: &Cluster) -> Member {
    let mut pod = kube::pod("default", "web-0", &node_name(0));
    pod["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "1"}]);
    cluster.kube.put(pod);
    let mut member = cluster.sandbox(0, PodName::new("default", "web-0"));
    cluster.wire(&mut member);
    member
}
