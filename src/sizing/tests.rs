//! What a plan of a cluster says of good ones and of every kind of bad ones.

use super::*;

fn wish() -> Wish {
    let vswitch = |text: &str| text.parse().unwrap();
    Wish {
        vpc: net("192.168.0.0/16"),
        nodes: vec![vswitch("192.168.0.0/19")],
        pods: vec![vswitch("192.168.32.0/19")],
        services: net("172.21.0.0/20"),
        count: 50,
        mode: Mode::Shared,
        limits: limits("ecs.g6.2xlarge").unwrap(),
    }
}

/// What is said against the plan, changed like this.
fn said(change: impl FnOnce(&mut Wish)) -> Vec<String> {
    let mut wish = wish();
    change(&mut wish);
    let Report { errors, warnings, .. } = plan(&wish);
    errors.into_iter().chain(warnings.into_iter().map(|w| format!("warning: {w}"))).collect()
}

#[test]
fn the_example_of_the_guide_holds_1500_pods_or_150() {
    let report = plan(&wish());
    assert_eq!((report.pods_per_node, report.pods, report.first_limit), (30, 1500, Limit::InstanceType));
    assert_eq!((report.node_addresses, report.pod_addresses, report.service_addresses), (8188, 8188, 4094));
    assert_eq!((report.errors, report.warnings), (Vec::<String>::new(), Vec::<String>::new()));
    let report = plan(&Wish { mode: Mode::Exclusive, ..wish() });
    assert_eq!((report.pods_per_node, report.pods, report.first_limit), (3, 150, Limit::InstanceType));
}

#[test]
fn the_first_limit_is_the_one_that_is_met_first() {
    let of = |nodes: &str, pods: &str| {
        let [nodes, pods] = [nodes, pods].map(|text| vec![text.parse().unwrap()]);
        let report = plan(&Wish { nodes, pods, ..wish() });
        (report.pods, report.first_limit)
    };
    assert_eq!(of("192.168.0.0/19", "192.168.32.0/24"), (252, Limit::PodAddresses));
    assert_eq!(of("192.168.0.0/28", "192.168.32.0/19"), (12 * 30, Limit::NodeAddresses));
    // One vSwitch for both: 50 of its addresses are the nodes'.
    assert_eq!(of("192.168.32.0/24", "192.168.32.0/24"), (252 - 50, Limit::PodAddresses));
}

#[test]
fn whatever_cannot_be_is_said_with_what_to_do() {
    let vswitch = |text: &str| -> VSwitch { text.parse().unwrap() };
    let one = |said: Vec<String>, text: &str| {
        assert!(said.iter().any(|line| line.contains(text)), "{said:?} does not say {text:?}");
    };
    one(said(|w| w.services = net("192.168.128.0/20")), "overlaps the VPC 192.168.0.0/16");
    one(said(|w| w.services = net("100.100.0.0/20")), "belongs to the cloud's own services");
    one(said(|w| w.services = net("169.254.16.0/20")), "is link-local");
    one(said(|w| w.services = net("172.16.0.0/12")), "warning: the Service CIDR 172.16.0.0/12 overlaps 172.17.0.0/16");
    one(said(|w| w.services = net("172.21.0.0/28")), "warning: the Service CIDR 172.21.0.0/28 is unusual");
    one(said(|w| w.vpc = net("192.0.0.0/7")), "from /8 to /28");
    one(said(|w| w.vpc = net("203.0.113.0/24")), "warning: the VPC 203.0.113.0/24 is no private network");
    one(said(|w| w.pods = vec![vswitch("10.0.0.0/19")]), "the pods' vSwitch 10.0.0.0/19 is not in the VPC");
    one(said(|w| w.pods = vec![vswitch("192.168.0.0/20")]), "192.168.0.0/19 and 192.168.0.0/20 overlap");
    one(said(|w| w.pods = vec![vswitch("192.168.32.0/30")]), "from /16 to /29");
    one(said(|w| w.pods = w.nodes.clone()), "warning: vSwitch 192.168.0.0/19 is for nodes and pods");
    one(said(|w| w.count = 9000), "9000 nodes have 8188 addresses");
    one(said(|w| w.limits.adapters = 1), "holds no pods");
    one(said(|w| w.count = 100), "warning: 3000 pods in one basic security group");
    one(
        said(|w| w.pods = vec![vswitch("192.168.32.0/24")]),
        "warning: the pods' vSwitches have addresses for 252 of the 1500",
    );
    let zoned = |nodes: &str, pods: &str| {
        let (nodes, pods) = (vswitch(nodes), vswitch(pods));
        said(move |w| (w.nodes, w.pods) = (vec![nodes], vec![pods]))
    };
    one(zoned("192.168.0.0/19@h", "192.168.32.0/19@i"), "nodes in zone h have no vSwitch for pods");
    one(zoned("192.168.0.0/19@h", "192.168.32.0/19@i"), "warning: no node is in zone i");
    one(zoned("192.168.0.0/19@h", "192.168.32.0/19"), "name all, as CIDR@ZONE");
    one(zoned("192.168.0.0/19@h", "192.168.0.0/19@i"), "cannot be in two zones");
    assert_eq!(zoned("192.168.0.0/19@h", "192.168.32.0/19@h"), Vec::<String>::new());
}

#[test]
fn words_that_mean_nothing_are_refused_with_an_example() {
    assert_eq!(
        "192.168.0.0".parse::<VSwitch>().unwrap_err(),
        r#""192.168.0.0" is not a prefix such as 192.168.0.0/16"#
    );
    assert!("192.168.1.0/16".parse::<VSwitch>().unwrap_err().contains("192.168.0.0/16 is meant"));
    assert!("192.168.0.0/19@".parse::<VSwitch>().unwrap_err().contains("names no zone"));
    assert!("both".parse::<Mode>().unwrap_err().contains("neither shared nor exclusive"));
}

#[test]
fn the_table_knows_common_types_and_no_others() {
    let of = |name: &str| limits(name).map(|l| (l.adapters, l.v4_per_adapter));
    assert_eq!(
        (of("ecs.g6.2xlarge"), of("ecs.r7.32xlarge"), of("ecs.c5.large")),
        (Some((4, 10)), Some((15, 30)), Some((2, 6)))
    );
    for unknown in ["ecs.g6.7xlarge", "ecs.x9.large", "g6.large", "ecs.g6", ""] {
        assert_eq!(of(unknown), None, "{unknown}");
    }
}

#[test]
fn extremes_of_the_arithmetic_are_no_trouble() {
    let all = plan(&Wish { vpc: net("0.0.0.0/0"), count: u32::MAX, ..wish() });
    assert!(all.pods > 0 && !all.errors.is_empty());
    let limits = Limits { adapters: 0, v4_per_adapter: 0, v6_per_adapter: 0 };
    assert_eq!(plan(&Wish { limits, services: net("10.0.0.1/32"), count: 0, ..wish() }).pods, 0);
}
