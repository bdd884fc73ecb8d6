//! What others do wrong: objects that cannot be, addresses that are somebody's, lists that break off, maps and kernels that take no more.

use std::net::{Ipv4Addr, SocketAddr};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Bench, PATIENCE, ask, led, serve};
use crate::bpf::cell::Threads;
use crate::cli::cli;
use crate::sim::builds::{Build, REFUSAL};
use crate::sim::cluster::{binary, soon};
use crate::sim::kube::{Trouble, services};
use crate::sim::traffic::Place;

/// The events about this object.
fn told(bench: &Bench, name: &str) -> Vec<String> {
    let events = bench.cluster.kube.events();
    let about = events.iter().filter(|event| event["involvedObject"]["name"] == name);
    about.map(|e| format!("{}: {}", e["reason"].as_str().unwrap(), e["message"].as_str().unwrap())).collect()
}

#[test]
fn one_broken_object_is_refused_and_the_others_serve() {
    let bench = Bench::new(json!({}));
    let (one, client) = (bench.cluster.add(0, "one"), bench.cluster.add(0, "client"));
    let servers = serve(&[&one]);
    let pod = servers[0].1;
    bench.service(
        "odd",
        "172.21.0.81",
        json!({"ports": [{"port": 0}, {"port": 70000}, {"port": "x"}, 7], "externalIPs": 5}),
    );
    bench.service(
        "thief",
        "172.21.0.82",
        json!({
            "externalIPs": [one.ip, bench.cluster.node(1).addr, "100.100.0.20", "127.0.0.1", "172.21.0.80"],
            "ports": [{"name": "http", "port": pod.port()}, {"name": "api", "port": 6443}],
        }),
    );
    bench.service("web", "172.21.0.80", json!({}));
    bench.service("late", "172.21.0.80", json!({}));
    bench.cluster.kube.amend(
        "Service",
        "default",
        "late",
        &json!({"metadata": {"creationTimestamp": "2026-02-01T00:00:00Z"}}),
    );
    bench.endpoints("web", &[(pod, json!({}))]);
    bench.endpoints("late", &[(SocketAddr::new("192.0.2.1".parse().unwrap(), 80), json!({}))]);
    bench.leads(&client.pod, "172.21.0.80:80", &[pod]);
    // The pod's own port is not the thief's.
    bench.leads(&client.pod, &pod.to_string(), &[pod]);
    soon("all four are told", || told(&bench, "thief").len() >= 5 && told(&bench, "late").len() == 1);
    let odd = told(&bench, "odd");
    assert!(odd.iter().any(|e| e.contains("spec.ports[].port is 70000")), "{odd:?}");
    let thief = told(&bench, "thief");
    for whose in ["is a pod's", "is a node's", "is the API server's", "loopback", "another Service"] {
        assert!(thief.iter().any(|e| e.starts_with("ServiceRefused: ") && e.contains(whose)), "{whose}: {thief:?}");
    }
    assert!(told(&bench, "late")[0].contains("belongs to the older Service default/web"), "{:?}", told(&bench, "late"));
}

#[test]
fn a_proxy_that_knows_nothing_is_not_the_end_of_what_is_heard() {
    let (bench, [_one, client], servers) = led();
    bench.cluster.kube.away(true);
    bench.cluster.kube.disconnect();
    for plural in ["services", "endpointslices"] {
        let said = format!("watch of {plural}: watch /api");
        soon("it is told", || bench.cluster.log(0).lines().any(|l| l.contains(&said) && l.contains("not found")));
    }
    bench.service("web", "172.21.0.90", json!({}));
    let others = serve(&[&client]);
    bench.endpoints("web", &[(others[0].1, json!({}))]);
    bench.cluster.kube.away(false);
    bench.leads(&client.pod, "172.21.0.90:80", &[others[0].1]);
    drop(servers);
}

#[test]
fn a_list_that_breaks_off_takes_nothing_away() {
    let (mut bench, [_one, client], servers) = led();
    let said = cli(&bench.cluster, "trace default/client 172.21.0.80:80");
    assert!(said.code == 0 && said.out.contains("of default/web leads to 1 endpoints"), "{said:?}");
    // What was seen is forgotten by the server, and the lists that follow fail, some of them half way.
    let half = br#"{"metadata":{"resourceVersion":"9"},"items":[{"metadata":{"name":"#.to_vec();
    let lists = || bench.cluster.kube.count("list", "services");
    let before = lists();
    bench.cluster.kube.fail(4, "list", Trouble::Body(half));
    bench.cluster.kube.fail(4, "list", Trouble::Status(500, "etcd is away"));
    bench.cluster.kube.forget();
    bench.cluster.kube.disconnect();
    soon("a list that has failed is asked for again", || {
        assert_eq!(bench.ask(&client.pod, "172.21.0.80:80"), Ok(servers[0].1));
        lists() >= before + 2
    });
    // A daemon that starts without API server leaves everything as it is.
    bench.cluster.api_down();
    bench.cluster.kill(0);
    let said = cli(&bench.cluster, "services");
    assert!(said.code == 3 && said.line("172.21.0.80:80/TCP").contains(&&*servers[0].1.to_string()), "{said:?}");
    let said = cli(&bench.cluster, "trace default/client 172.21.0.80:80");
    assert!(said.code == 3 && said.out.contains("leads to 1 endpoints"), "by the kernel's maps: {said:?}");
    bench.cluster.start_ready(0);
    for _ in 0..20 {
        assert_eq!(bench.ask(&client.pod, "172.21.0.80:80"), Ok(servers[0].1));
        thread::sleep(Duration::from_millis(50));
    }
    let said = cli(&bench.cluster, "trace default/client 172.21.0.80:80 --json");
    assert_eq!((said.code, &said.json()["passes"]), (1, &Value::Null), "nobody knows: {said:?}");
    bench.cluster.api_up();
    bench.endpoints("web", &[]);
    bench.refuses(&client.pod, "172.21.0.80:80");
    let said = cli(&bench.cluster, "trace default/client 172.21.0.80:80 --json");
    let at = said.json()["stops_at"].clone();
    assert_eq!(
        (said.code, &at["place"], &at["what"]),
        (1, &json!("Services"), &json!("172.21.0.80:80/TCP of default/web"))
    );
    let said = cli(&bench.cluster, "trace default/client 172.21.0.80:81");
    assert!(said.code == 1 && said.out.contains("no Service has this address and port"), "{said:?}");
    let said = cli(&bench.cluster, "services shop");
    assert_eq!((said.code, said.out.lines().count()), (0, 1), "nothing is called so: {said:?}");
    let said = cli(&bench.cluster, "services 172.21.0.80");
    assert_eq!((said.code, said.line("default/web")[1]), (1, "172.21.0.80:80/TCP"), "{said:?}");
}

#[test]
fn a_full_map_is_told_and_what_is_in_it_serves() {
    let bench = Bench::new(json!({"service_frontends": 16, "service_backends": 64}));
    let (one, client) = (bench.cluster.add(0, "one"), bench.cluster.add(0, "client"));
    let servers = serve(&[&one]);
    bench.service("web", "172.21.0.80", json!({}));
    bench.endpoints("web", &[(servers[0].1, json!({}))]);
    bench.leads(&client.pod, "172.21.0.80:80", &[servers[0].1]);
    (0..40).for_each(|n| bench.service(&format!("more-{n}"), &format!("172.21.1.{n}"), json!({})));
    soon("it is told", || {
        told(&bench, "node-1").iter().any(|e| e.starts_with("ServicesFull: eBPF map frontends is full (16)"))
    });
    assert_eq!(bench.ask(&client.pod, "172.21.0.80:80"), Ok(servers[0].1));
    bench.endpoints("web", &[]);
    bench.refuses(&client.pod, "172.21.0.80:80");
    soon("it is shown", || {
        let full = bench.cluster.show(0)["services"]["full"].clone();
        full.as_array().is_some_and(|full| full.len() == 1)
    });
    (0..40).for_each(|n| _ = bench.cluster.kube.delete("Service", "default", &format!("more-{n}")));
    bench.service("last", "172.21.2.1", json!({}));
    bench.refuses(&client.pod, "172.21.2.1:80");
}

#[test]
fn a_service_of_five_thousand_endpoints_is_led_to_all_of_them() {
    let bench = Bench::new(json!({}));
    let (one, client) = (bench.cluster.add(0, "one"), bench.cluster.add(0, "client"));
    let servers = serve(&[&one]);
    bench.service("web", "172.21.0.80", json!({}));
    bench.endpoints("web", &[(servers[0].1, json!({}))]);
    for n in 0..50u32 {
        let addrs = (0..100).map(|last| Ipv4Addr::from(0x0a00_0000 + n * 256 + last));
        let mut slice = services::slice("web", 8080, addrs.map(|addr| services::endpoint(addr.into(), "n9")));
        slice["metadata"]["name"] = json!(format!("web-more-{n}"));
        bench.cluster.kube.put(slice);
    }
    soon("all are there", || bench.cluster.show(0)["services"]["backends"] == 5001);
    (0..50).for_each(|n| _ = bench.cluster.kube.delete("EndpointSlice", "default", &format!("web-more-{n}")));
    bench.leads(&client.pod, "172.21.0.80:80", &[servers[0].1]);
}

#[test]
fn a_kernel_that_refuses_is_told_of_and_pods_are_served() {
    let mut bench = Bench::idle(json!({"cgroup_root": "/run"}));
    bench.cluster.start_ready(0);
    bench.cluster.add(0, "web");
    let is_told = |e: &String| e.starts_with("ServicesUnavailable: ") && e.contains("it is not a cgroup of version 2");
    soon("the node is told", || told(&bench, "node-1").iter().any(is_told));
    soon("it is shown", || {
        bench.cluster.show(0)["services"]["state"].as_str().is_some_and(|state| state.contains("not a cgroup"))
    });
}

#[test]
fn programs_that_the_verifier_refuses_are_told_of_in_its_words_and_the_last_ones_serve_on() {
    let (mut bench, [_one, client], servers) = led();
    let broken = Build::refused(&["sock.o", "sock_cookie.o", "sock_retval.o"]);
    bench.cluster.stop(0);
    bench.cluster.release(0, &broken.path);
    bench.cluster.start_ready(0);
    let is_told = |e: &String| {
        e.starts_with("ServicesUnavailable: ") && e.contains("load eBPF program terway_") && e.contains(REFUSAL)
    };
    soon("the node is told", || told(&bench, "node-1").iter().any(is_told));
    soon("it is shown", || {
        let state = bench.cluster.show(0)["services"]["state"].clone();
        state.as_str().is_some_and(|state| state.contains("the verifier says [") && state.contains(REFUSAL))
    });
    // Pods come and go, and are led by what an earlier life has left.
    let new = bench.cluster.add(0, "new");
    for from in [&client, &new] {
        assert_eq!(bench.ask(&from.pod, "172.21.0.80:80"), Ok(servers[0].1));
    }
    bench.cluster.stop(0);
    bench.cluster.release(0, &binary());
    bench.cluster.start_ready(0);
    bench.endpoints("web", &[]);
    bench.refuses(&new.pod, "172.21.0.80:80");
}

#[test]
fn who_does_not_want_it_any_more_is_rid_of_it() {
    let (mut bench, [_one, client], servers) = led();
    let leave = |bench: &Bench| cli(&bench.cluster, "services --leave");
    let refused = leave(&bench);
    assert!(refused.code == 1 && refused.err.contains("terwayd runs"), "{refused:?}");
    bench.cluster.stop(0);
    assert_eq!(bench.ask(&client.pod, "172.21.0.80:80"), Ok(servers[0].1), "it serves without the daemon");
    // As the package does that goes.
    assert!(leave(&bench).out.contains("any more"));
    assert!(bench.ask(&client.pod, "172.21.0.80:80").is_err());
    assert_eq!(leave(&bench).out, "no Service is led at the socket by Terway\n");
    bench.cluster.start_ready(0);
    bench.leads(&client.pod, "172.21.0.80:80", &[servers[0].1]);
    bench.cluster.stop(0);
    bench.cluster.configure(0, &json!({"ebpf_services": false, "cgroup_root": bench.threads.path()}));
    bench.cluster.start_ready(0);
    soon("nobody leads it", || bench.ask(&client.pod, "172.21.0.80:80").is_err());
    assert_eq!(bench.cluster.node(0).sh("ls -d /sys/fs/bpf/terway/v* 2>/dev/null || true"), "");
}

#[test]
fn another_cgroup_has_the_programs_and_the_one_before_has_none() {
    let (mut bench, [_one, client], servers) = led();
    bench.cluster.stop(0);
    let other = Threads::new();
    bench.cluster.configure(0, &json!({"ebpf_services": true, "cgroup_root": other.path()}));
    bench.cluster.start_ready(0);
    soon("it is led there", || ask(&other, &client.pod, "172.21.0.80:80", PATIENCE) == Ok(servers[0].1));
    soon("and here no more", || bench.ask(&client.pod, "172.21.0.80:80").is_err());
    bench.cluster.stop(0);
    // Who does not want it any more is rid of it, wherever it was.
    bench.cluster.configure(0, &json!({"ebpf_services": false, "cgroup_root": bench.threads.path()}));
    bench.cluster.start_ready(0);
    soon("nobody leads it", || ask(&other, &client.pod, "172.21.0.80:80", PATIENCE).is_err());
}
