//! Every rtnetlink noun in a fresh namespace: add, list, repeat, remove.

use std::path::Path;

use terway::error::{Cause, Error};
use terway::kernel::netns::Netns;

use crate::sim::ns::Ns;

fn has_link(name: &str) -> bool {
    // The only file of /proc/net that lists every link, and it is the reader's namespace that counts.
    std::fs::read_to_string("/proc/thread-self/net/dev").unwrap().contains(&format!("{name}:"))
}

#[test]
fn a_closure_runs_inside_the_namespace_and_nowhere_else() {
    let ns = Ns::new("in");
    ns.sh("ip link add probe0 type veth peer name probe1");
    let netns = Netns::open(ns.path()).unwrap();
    assert!(netns.run(|| Ok::<_, Error>(has_link("probe0"))).unwrap());
    assert!(!has_link("probe0"));
}

#[test]
fn what_is_not_a_network_namespace_of_a_pod_is_refused() {
    let refused = |path: &str| match Netns::open(Path::new(path)).unwrap_err().cause {
        Cause::Refused(why) => why,
        other => panic!("{path}: {other:?}"),
    };
    assert_eq!(refused("/dev/null"), "it is not a namespace");
    assert_eq!(refused("/proc/self/ns/mnt"), "it is a namespace, but not one of the network");
    assert_eq!(refused("/proc/self/ns/net"), "it is the network namespace of the node, not one of a pod");
    assert!(Netns::open(Path::new("/run/netns/never-made")).unwrap_err().is_absent());
}
