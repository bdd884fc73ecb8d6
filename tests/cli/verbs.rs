//! What each verb shows of a node that is well, of one that is not, and of one without a daemon.

use std::time::Duration;

use serde_json::json;

use super::{cli, idle_node, node, nothing};
use crate::sim::cloud::{Kind, When};
use crate::sim::cluster::soon;
use crate::sim::traffic::Place;

#[test]
fn a_node_that_is_well_says_so_in_every_verb() {
    let cluster = node(&nothing());
    let web = cluster.add(0, "web");
    soon("it is healthy", || cli(&cluster, "status").code == 0);
    let status = cli(&cluster, "status");
    assert!(status.out.ends_with("healthy\n") && status.out.contains("1 wired as planned"), "{status:?}");
    assert_eq!(cli(&cluster, "status --json").json()["healthy"], true);
    let on_a_terminal = |env: &str| {
        cluster.node(0).sh(&format!("{env} TERM=xterm script -qec '/opt/terway/terway-cli status' /dev/null"))
    };
    assert!(on_a_terminal("").contains("\x1b[32mhealthy") && !on_a_terminal("NO_COLOR=1").contains('\x1b'));

    let pods = cli(&cluster, "pods --inside");
    let line = pods.line("default/web");
    assert_eq!((line[1], line[3], line[4], line[6]), (web.ip.as_str(), "veth", "-", "ok"), "{pods:?}");
    assert_eq!(cli(&cluster, "pods --json").json()[0]["pod"], "default/web");

    let enis = cli(&cluster, "enis");
    let line = enis.line("eni-");
    assert_eq!((line[2], line[4], line.last()), ("eth1", "1", Some(&"serving")), "{enis:?}");
    assert_eq!(cli(&cluster, "enis --json").json()[0]["ifname"], "eth1");
    assert!(cli(&cluster, "enis --addresses").line(&web.ip).contains(&"default/web"));

    let services = cli(&cluster, "services");
    assert!(services.code == 1 && services.err.contains("left to kube-proxy"), "{services:?}");

    // The old Terway's verbs.
    assert_eq!(cli(&cluster, "list").out, "* network_service\n* resource_pool\n* factory\n");
    assert_eq!(cli(&cluster, "list resource_pool").out, "* eniip\n");
    let mapping = cli(&cluster, "mapping");
    assert_eq!(
        (mapping.code, mapping.line("Pod Name").join(" ").as_str()),
        (0, "Status Pod Name Res ID Factory Res ID")
    );
    let line = mapping.line("default/web");
    assert!(line[0] == "Normal" && line[2] == line[3] && line[2].ends_with(&web.ip), "{mapping:?}");
    assert_eq!(cli(&cluster, "execute resource_pool eniip mapping").out, mapping.out);
    assert!(
        cli(&cluster, "execute network_service default resdb")
            .out
            .starts_with("Resource DB (1 entries)\ndefault/web -> eni-")
    );
    let audit = cli(&cluster, "execute factory eniip audit");
    assert!(audit.code == 0 && audit.out.contains("agreed"), "{audit:?}");
    let show = cli(&cluster, "show factory eniip");
    assert!(show.out.contains("eni_count: 1\n") && show.out.contains("secondary_ips: "), "{show:?}");
    let metadata = cli(&cluster, "metadata");
    assert!(metadata.code == 0 && metadata.out.contains("interface: eth1"), "{metadata:?}");
    assert!(metadata.out.find("primary: true") < metadata.out.find("primary: false"), "the primary one first");
    assert_eq!(cli(&cluster, "metadata --json").json()["enis"].as_array().map(Vec::len), Some(2));

    // A plan is what is in the kernel.
    let plan = cli(&cluster, &format!("plan {} --node", web.ip));
    for line in plan.out.lines().filter_map(|line| line.strip_prefix("ip rule add ")) {
        let rule = line.replacen("priority ", "", 1).replace("lookup 254", "lookup main");
        let (priority, rest) = rule.split_once(' ').expect("a priority");
        let seen = cluster.node(0).sh("ip rule");
        assert!(seen.lines().any(|l| l.starts_with(&format!("{priority}:")) && l.contains(rest)), "{rule}: {seen}");
    }
    assert!(plan.out.contains(&format!("pod: ip addr replace {}/32 dev eth0", web.ip)), "{plan:?}");
    let not_yet = cli(&cluster, "plan default/later");
    assert!(not_yet.code == 0 && not_yet.out.contains("if it got this idle address"), "{not_yet:?}");
}

#[test]
fn a_node_in_trouble_says_what_and_what_to_do() {
    let cluster = node(&json!({"min_pool_size": 1, "max_pool_size": 1}));
    let _web = cluster.add(0, "web");
    soon("the pool is warm", || cli(&cluster, "show").json()["pool"]["idle"] == 1);
    cluster.world.cloud.trouble_anywhere(When::Always, Kind::unavailable());
    let more = cluster.schedule(0, "more");
    soon("it is in trouble", || {
        cli(&cluster, "status").out.contains("the cloud fails") || {
            let _ = cluster.node(0).run(|| more.sandbox.call_within("ADD", Duration::from_secs(2)));
            false
        }
    });
    let status = cli(&cluster, "status");
    assert!(status.code == 1 && status.out.contains("do: "), "{status:?}");
    assert_eq!(cli(&cluster, "status --json").json()["healthy"], false);
}

#[test]
fn without_a_daemon_there_is_what_ledger_and_kernel_know() {
    let mut cluster = node(&nothing());
    let web = cluster.add(0, "web");
    cluster.kill(0);
    let status = cli(&cluster, "status");
    assert!(status.code == 3 && status.out.contains("systemctl status terwayd"), "{status:?}");
    let pods = cli(&cluster, "pods");
    assert_eq!((pods.code, pods.line("default/web")[1]), (3, web.ip.as_str()), "{pods:?}");
    let enis = cli(&cluster, "enis");
    assert_eq!((enis.code, enis.line("eni-")[2]), (3, "eth1"), "{enis:?}");
    assert!(cli(&cluster, "plan default/web").out.contains(&web.ip));
    for verb in ["show", "mapping", "services", "execute factory eniip audit", "policy show default/web"] {
        let said = cli(&cluster, verb);
        assert!(said.code == 3 && said.out.is_empty() && said.err.contains("is terwayd running?"), "{verb}: {said:?}");
    }
    // What was taken away meanwhile is seen.
    cluster.node(0).sh("ip rule del priority 512");
    let status = cli(&cluster, "status");
    assert!(status.out.contains("rule priority 512"), "{status:?}");
}

#[test]
fn what_makes_no_sense_is_a_mistake_of_the_caller() {
    let cluster = idle_node(&nothing());
    for line in [
        "",
        "nonsense",
        "--nonsense",
        "status --nonsense",
        "list nonsense",
        "show nonsense",
        "show factory eniip x",
        "plan",
        "plan web",
        "policy show web",
        "policy why web default/web:80",
        "execute factory eniip",
        "plan-cluster --vpc 10.0.0.0/8 --service-cidr 172.16.0.0/20 --nodes 1",
    ] {
        let said = cli(&cluster, line);
        assert!(said.code == 2 && said.out.is_empty() && !said.err.is_empty(), "{line}: {said:?}");
    }
    for line in ["--help", "--version", "status --help", "plan --help"] {
        assert_eq!(cli(&cluster, line).code, 0, "{line}");
    }
}
