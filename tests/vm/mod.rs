//! Other kernels than this machine's: one that lacks eBPF, and Debian's two, which have what this one lacks.

pub mod without_bpf;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

use crate::sim::cluster::{Cluster, soon};
use crate::sim::fabric::OUTSIDE;
use crate::sim::skip;
use crate::sim::traffic::Place;
use crate::sim::world;

/// How long a guest may take; one takes a minute or two where others are busy as well.
const SECONDS: &str = "420";

/// Another kernel than this machine's (`boot.sh` says what each has and has not).
enum Guest {
    Uml,
    Cloud,
}

/// How many guests of User Mode Linux each CPU carries at the moment.
static CARRIED: Mutex<[u32; 2]> = Mutex::new([0; 2]);

/// The CPU that such a guest takes, out of two: the one that carries fewer.
struct Slot(usize);

impl Slot {
    fn take() -> Slot {
        let mut carried = CARRIED.lock().expect("no one panics with it");
        let slot = usize::from(carried[1] < carried[0]);
        carried[slot] += 1;
        Slot(slot)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        CARRIED.lock().expect("no one panics with it")[self.0] -= 1;
    }
}

/// Runs this very binary in a guest: the tests with one of these in their paths, which must succeed, among them the ones that are named,
/// and exactly so many must have been skipped, for these reasons.
fn guest(guest: Guest, tests: &[&str], named: &[&str], skipped: &[(&str, usize)]) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vm/boot.sh");
    let binary = std::env::current_exe().expect("we run from a file");
    let mut command = Command::new(script);
    let (kernel, slot) = match guest {
        Guest::Uml => ("uml", Some(Slot::take())),
        Guest::Cloud => ("cloud", None),
    };
    if let Some(Slot(slot)) = &slot {
        command.env("VM_SLOT", slot.to_string());
    }
    command.arg(kernel).env("VM_SECONDS", SECONDS).arg(binary).args(tests);
    let output = command.args(["--show-output", "--color=never"]).output().expect("start boot.sh");
    let said = String::from_utf8_lossy(&output.stdout).replace("\r\n", "\n");
    println!("{said}{}", String::from_utf8_lossy(&output.stderr));
    let exit = said.lines().find_map(|line| line.strip_prefix("exit "));
    assert!(exit.is_some(), "there was no guest, or it did not end in time");
    assert_eq!(exit, Some("0"), "a test failed in the guest");
    let mut reasons = BTreeMap::<&str, usize>::new();
    said.lines().filter_map(|line| line.strip_prefix(skip::SAYS)).for_each(|why| *reasons.entry(why).or_default() += 1);
    assert_eq!(reasons, skipped.iter().copied().collect(), "tests were skipped that were not before, or no longer");
    for test in named {
        assert!(said.contains(&format!("test {test} ... ok\n")), "{test} did not run");
    }
    said
}

#[test]
fn user_mode_linux_takes_every_noun_and_marks_by_skbedit_where_ebpf_is_denied() {
    let marker = "vm::without_bpf::skbedit_is_chosen_where_the_kernel_has_it_and_rules_where_not";
    let said = guest(Guest::Uml, &["kernel::", marker], &["kernel::rules_come_and_go", marker], &[]);
    assert!(said.contains("here it must be Skbedit"));
}

const MARKERS: [&str; 3] = [
    "datapath::a_pod_talks_to_the_vpc_to_pods_and_to_its_node_and_they_to_it",
    "datapath::skbedit_serves_where_there_is_no_ebpf",
    "datapath::rules_serve_where_nothing_can_mark",
];

#[test]
fn user_mode_linux_carries_traffic_by_all_three_markers() {
    guest(Guest::Uml, &["datapath::"], &MARKERS, &[]);
}

/// The data path of IPvlan in the simulated VPC, which is as strict there as here.
#[test]
fn user_mode_linux_carries_pods_that_are_ipvlan_slaves() {
    let named = "ipvlan::a_slave_reaches_everybody_and_is_reached_with_its_own_address";
    let strict = "fabric::a_packet_from_an_address_of_somebody_else_is_dropped";
    let cases = "policy::cases::packets_go_by_ebpf_on_slaves_as_is_specified";
    guest(
        Guest::Uml,
        &["ipvlan::", "--skip=node::", "fabric::a_packet", "fabric::a_frame", "fabric::ipv6", cases],
        &[named, strict, cases],
        &[],
    );
}

/// The real daemon and the real plugin, with the whole simulated world, in the guest.
#[test]
fn user_mode_linux_runs_a_node_whose_pods_are_slaves() {
    let named = "node::ipvlan::pods_are_slaves_where_the_network_configuration_says_so";
    guest(Guest::Uml, &["node::ipvlan::"], &[named], &[]);
}

/// What kube-proxy leads by IPVS, which this machine's kernel may lack.
#[test]
fn user_mode_linux_carries_what_ipvs_leads() {
    let named = ["ipvs::ports_of_the_node_are_answered_by_it", "policy::ipvs::packets_go_behind_ipvs_as_is_specified"];
    guest(Guest::Uml, &["ipvs::"], &named, &[]);
}

#[test]
fn user_mode_linux_leads_sockets_to_services() {
    let changes = "bpf::sockets::a_change_under_load_never_leads_anywhere_else";
    // Not what has it in its name only.
    guest(
        Guest::Uml,
        &["bpf::", "--skip=by_ebpf::"],
        &[changes],
        &[("needs INET_DIAG_DESTROY", 1), ("needs perf events", 1)],
    );
}

/// Not all that the other guest runs: each command that a test starts takes a tenth of a second there.
#[test]
fn the_cloud_kernel_takes_every_noun_and_carries_traffic() {
    guest(Guest::Cloud, &["kernel::", MARKERS[0]], &["kernel::rules_come_and_go", MARKERS[0]], &[]);
}

#[test]
fn a_node_without_ebpf_wires_pods_that_reach_each_other() {
    without_bpf::run(libc::ENOSYS, || {
        let mut cluster = Cluster::new(world::config(), 1, "ecs.sim.large");
        cluster.start_ready(0);
        assert_ne!(cluster.show(0)["marker"], "bpf", "{}", cluster.show(0));
        let (a, b) = (cluster.add(0, "a"), cluster.add(0, "b"));
        // A veth loses what is sent before it has its carrier.
        soon("a reaches b", || a.pod.ping(&b.ip).is_some());
        soon("a reaches the outside", || a.pod.ping(OUTSIDE).is_some());
        soon("the node reaches a", || cluster.node(0).node.ping(&a.ip).is_some());
        for member in [a, b] {
            cluster.del(member);
        }
    });
}

/// `make bench` reads what the guest writes.
#[test]
#[ignore = "figures, no test"]
fn round_trips_of_a_slave() {
    guest(Guest::Uml, &["ipvlan::round_trips", "--ignored"], &["ipvlan::round_trips"], &[]);
}
