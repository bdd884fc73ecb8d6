//! The real binary by its three names against the simulator.

use crate::sim::cluster::Cluster;
use crate::sim::traffic::Place;
use crate::sim::world;

#[test]
fn a_pod_gets_an_address_of_the_vpc_and_reaches_another_node() {
    let mut cluster = Cluster::new(world::config(), 2, "ecs.sim.2xlarge");
    cluster.start_ready(0);
    cluster.start_ready(1);
    let a = cluster.add(0, "a");
    let b = cluster.add(1, "b");
    assert!(a.pod.ping(&b.ip).is_some());
    cluster.del(a);
    cluster.del(b);
}
