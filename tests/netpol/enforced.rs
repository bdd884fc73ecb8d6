//! Policies as packets meet them, by each renderer: what changes, what lives on, and the first packet of a pod.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, SocketAddrV6, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use terway::kernel::bpf::policy;
use terway::ours::{BPF_ROOT, host_veth};
use terway::pod::PodName;

use super::{Bench, DROPPED, PORT, comes_to, only_from, reaches};
use crate::bpf::cell::Servers;
use crate::sim::builds::{Build, REFUSAL};
use crate::sim::cluster::{Member, SOON, binary, soon, within};
use crate::sim::traffic::Place;

/// Starts of pods of the test of first packets; `TERWAY_STARTS` says another number.
const STARTS: u32 = 100;
/// Where it is told what was lost.
const WITNESS: u16 = 8081;
/// Where forbidden datagrams are sent to.
const SINK: u16 = 9;

macro_rules! by_each_renderer {
    ($($name:ident),+ $(,)?) => {
        mod by_ebpf {
            $(#[test] fn $name() { super::$name("ebpf"); })+
        }
        mod by_iptables {
            $(#[test] fn $name() { super::$name("iptables"); })+
        }
    };
}

by_each_renderer! {
    a_change_opens_and_cuts,
    both_directions_and_families_are_held,
    a_restart_opens_and_closes_nothing,
    without_policies_all_of_ours_goes,
    who_can_enforce_only_later_finds_every_pod_in_its_place,
    the_first_packet_is_judged,
    nobody_speaks_in_anothers_name,
    what_there_is_no_room_for_changes_nothing_and_lets_no_new_pod_in,
}

fn bench(renderer: &str, over: Value) -> Bench {
    let mut config = json!({"policy_renderer": renderer, "ip_cooldown": "0s"});
    over.as_object().into_iter().flatten().for_each(|(key, value)| config[key] = value.clone());
    Bench::new(config)
}

fn a_change_opens_and_cuts(renderer: &str) {
    let bench = bench(renderer, json!({}));
    let (web, _servers) = bench.serve(0, "web", json!({"app": "web"}));
    let near = bench.add(0, "near", json!({"app": "db"}));
    let other = bench.add(0, "other", json!({"app": "other"}));
    let far = bench.add(1, "far", json!({"app": "other"}));
    assert_eq!(bench.shown(0)["renderer"], renderer);
    let all = [&near, &other, &far];
    all.iter().for_each(|one| assert!(reaches(&one.pod, &web.ip)));
    bench.policy("web", only_from("db"));
    comes_to(&other.pod, &web.ip, false);
    // Whoever holds pods to their own addresses is looked at with it, by either renderer.
    let begins = || bench.cluster.node(0).sh("iptables -t mangle -S PREROUTING").contains("TERWAY-S");
    // Not so in a guest whose kernel has no iptables.
    let is_guarded = begins();
    assert!(is_guarded || renderer == "ebpf");
    if is_guarded {
        bench.cluster.node(0).sh("iptables -t mangle -F PREROUTING");
    }
    assert!(reaches(&near.pod, &web.ip) && !reaches(&far.pod, &web.ip));
    let drops = || bench.shown(0)["figures"]["drops"]["policy"]["to_pod"].as_u64();
    assert!(within(Duration::from_secs(60), || drops() > Some(1)), "drops are counted");
    soon("what others have taken is back", || begins() == is_guarded);
    if renderer == "ebpf" {
        assert!(bench.shown(0)["figures"]["flows"]["known"].as_u64() > Some(0));
    }
    // Probes of the kubelet, and what the pod itself begins.
    assert!(reaches(&**bench.cluster.node(0), &web.ip));
    let (db, _server) = bench.serve(1, "db", json!({"app": "db"}));
    assert!(reaches(&web.pod, &db.ip));
    // A label of a pod elsewhere lets it in, and shuts it out in the middle of a connection.
    bench.label("far", json!({"app": "db"}));
    comes_to(&far.pod, &web.ip, true);
    let echo = web.pod.tcp_echo(&format!("{}:7", web.ip));
    let talk = Talk::to(&far, &web.ip);
    assert!(talk.goes_on());
    bench.label("far", json!({"app": "other"}));
    comes_to(&far.pod, &web.ip, false);
    soon("the connection is cut", || !talk.goes_on());
    drop(echo);
    // Its end opens what it has closed.
    bench.cluster.kube.delete("NetworkPolicy", "default", "web");
    all.iter().for_each(|one| comes_to(&one.pod, &web.ip, true));
}

#[test]
fn programs_that_the_verifier_refuses_let_no_new_pod_in_and_the_node_is_told_in_its_words() {
    let mut bench = Bench::idle(json!({"policy_renderer": "ebpf"}));
    let broken = Build::refused(&["policy.o"]);
    bench.cluster.release(0, &broken.path);
    bench.cluster.start_ready(0);
    let mut web = bench.cluster.schedule(0, "web");
    let is_told = |event: &Value| {
        let words = event["message"].as_str().unwrap_or_default();
        event["reason"] == "NetworkPolicyFailed" && words.contains("the verifier says [") && words.contains(REFUSAL)
    };
    soon("the node is told", || bench.cluster.kube.events().iter().any(is_told));
    let said = bench.cluster.refused(&web, 11);
    assert!(said.contains(REFUSAL), "{said}");
    bench.cluster.call_for(&web, "DEL").ok();
    bench.cluster.stop(0);
    bench.cluster.release(0, &binary());
    bench.cluster.start_ready(0);
    bench.cluster.wire(&mut web);
    comes_to(&**bench.cluster.node(0), &web.ip, false);
    let _servers = Servers::on(&web.pod, &[&web.ip], PORT);
    comes_to(&**bench.cluster.node(0), &web.ip, true);
}

fn both_directions_and_families_are_held(renderer: &str) {
    let mut bench = Bench::idle(json!({"policy_renderer": renderer, "ip_stack": "dual"}));
    (0..2).for_each(|n| {
        bench.cluster.world.speak_v6(n);
        bench.cluster.start_ready(n);
    });
    let (web, _servers) = bench.serve(0, "web", json!({"app": "web"}));
    let _sixth = crate::bpf::cell::Servers::on(&web.pod, &[&web.ips[1]], PORT);
    let client = bench.add(1, "client", json!({"app": "client"}));
    let sixth = format!("[{}]", web.ips[1]);
    assert!(reaches(&client.pod, &web.ip) && reaches(&client.pod, &sixth));
    let nowhere = json!({"podSelector": {"matchLabels": {"app": "client"}}, "policyTypes": ["Egress"]});
    bench.policy("client", nowhere);
    comes_to(&client.pod, &web.ip, false);
    comes_to(&client.pod, &sixth, false);
    let spec = |nets: Value| {
        let to: Vec<Value> = nets.as_array().unwrap().iter().map(|net| json!({"ipBlock": {"cidr": net}})).collect();
        json!({"podSelector": {"matchLabels": {"app": "client"}}, "policyTypes": ["Egress"], "egress": [{"to": to}]})
    };
    bench.policy("client", spec(json!([format!("{}/128", web.ips[1])])));
    comes_to(&client.pod, &sixth, true);
    assert!(!reaches(&client.pod, &web.ip));
    bench.policy("client", spec(json!([format!("{}/32", web.ip), format!("{}/128", web.ips[1])])));
    comes_to(&client.pod, &web.ip, true);
    bench.policy("web", only_from("db"));
    [&web.ip, &sixth].iter().for_each(|ip| comes_to(&client.pod, ip, false));
    // A further interface is held to the same, and the first one still is.
    bench.policy("client", spec(json!(["0.0.0.0/0", "::/0"])));
    let mut further = bench.cluster.sandbox(0, PodName::new("default", "web"));
    further.sandbox.container = web.sandbox.container.clone();
    further.sandbox.netns = web.sandbox.netns.clone();
    further.sandbox.ifname = "net1".into();
    bench.cluster.wire(&mut further);
    let _further = Servers::on(&web.pod, &[&further.ip], PORT);
    assert!(!reaches(&client.pod, &web.ip) && !reaches(&client.pod, &sixth) && !reaches(&client.pod, &further.ip));
    bench.label("client", json!({"app": "db"}));
    bench.policy("client", json!({"podSelector": {"matchLabels": {"app": "nobody"}}}));
    [&web.ip, &further.ip].iter().for_each(|ip| comes_to(&client.pod, ip, true));
    bench.cluster.call_for(&further, "DEL").ok();
    bench.label("client", json!({"app": "client"}));
    comes_to(&client.pod, &web.ip, false);
}

fn a_restart_opens_and_closes_nothing(renderer: &str) {
    let mut bench = bench(renderer, json!({}));
    let (web, _servers) = bench.serve(0, "web", json!({"app": "web"}));
    let near = bench.add(0, "near", json!({"app": "db"}));
    let other = bench.add(0, "other", json!({"app": "other"}));
    bench.policy("web", only_from("db"));
    comes_to(&other.pod, &web.ip, false);
    let echo = web.pod.tcp_echo(&format!("{}:7", web.ip));
    let talk = Talk::to(&near, &web.ip);
    let witness = web.pod.run(|| TcpListener::bind((web.ip.as_str(), WITNESS)).expect("a free port"));
    let (done, over) = (AtomicBool::new(false), AtomicBool::new(false));
    let (opened, closed) = (AtomicU32::new(0), AtomicU32::new(0));
    thread::scope(|scope| {
        let _done = Over(&done);
        scope.spawn(|| testify(&witness, &done));
        thread::scope(|scope| {
            let _over = Over(&over);
            for (from, wrong, count) in [(&other, true, &opened), (&near, false, &closed)] {
                let (over, to) = (&over, &web.ip);
                scope.spawn(move || {
                    while !over.load(Ordering::Relaxed) {
                        let is_wrong = if wrong { reaches(&from.pod, to) } else { !reaches_at_once(from, to) };
                        count.fetch_add(is_wrong.into(), Ordering::Relaxed);
                    }
                });
            }
            for n in 0..6 {
                match n % 2 {
                    0 => bench.cluster.kill(0),
                    _ => bench.cluster.stop(0),
                }
                thread::sleep(Duration::from_millis(200));
                // With the API server away nothing is known, and what there is holds.
                if n == 4 {
                    bench.cluster.api_down();
                }
                bench.cluster.start_ready(0);
                thread::sleep(Duration::from_millis(1500));
                if n == 4 {
                    bench.cluster.api_up();
                }
                soon("it is in force", || bench.shown(0)["state"] == "enforced");
            }
        });
    });
    assert_eq!((opened.into_inner(), closed.into_inner()), (0, 0), "connections that came about, and that did not");
    assert!(talk.goes_on());
    drop(echo);
    // And it hears of changes.
    bench.label("other", json!({"app": "db"}));
    comes_to(&other.pod, &web.ip, true);
}

/// With another size all maps are other ones, which the programs on the links of pods that run do not know.
#[test]
fn maps_that_are_made_anew_hold_pods_that_run_once_the_api_server_is_there_and_open_and_close_nothing_before() {
    let mut bench = bench("ebpf", json!({"policy_flows": 4096}));
    let (web, _servers) = bench.serve(0, "web", json!({"app": "web"}));
    let near = bench.add(0, "near", json!({"app": "db"}));
    let other = bench.add(0, "other", json!({"app": "other"}));
    bench.policy("web", only_from("db"));
    comes_to(&other.pod, &web.ip, false);
    let is_held = |bench: &Bench| {
        thread::sleep(Duration::from_millis(1500));
        assert!(!reaches(&other.pod, &web.ip) && reaches(&near.pod, &web.ip), "{}", bench.cluster.log(0));
    };
    bench.cluster.stop(0);
    bench.cluster.api_down();
    bench.cluster.configure(0, &json!({"policy_renderer": "ebpf", "min_pool_size": 4, "policy_flows": 8192}));
    // The second finds maps that the first has made and not written.
    for _ in 0..2 {
        bench.cluster.start_ready(0);
        is_held(&bench);
        bench.cluster.kill(0);
    }
    bench.cluster.start_ready(0);
    is_held(&bench);
    bench.cluster.api_up();
    soon("it is in force", || bench.shown(0)["state"] == "enforced");
    bench.label("other", json!({"app": "db"}));
    comes_to(&other.pod, &web.ip, true);
    bench.label("near", json!({"app": "other"}));
    comes_to(&near.pod, &web.ip, false);
}

fn without_policies_all_of_ours_goes(renderer: &str) {
    let mut bench = bench(renderer, json!({}));
    let (web, _servers) = bench.serve(0, "web", json!({"app": "web"}));
    let other = bench.add(0, "other", json!({"app": "other"}));
    bench.policy("web", only_from("db"));
    comes_to(&other.pod, &web.ip, false);
    bench.cluster.stop(0);
    assert!(!reaches(&other.pod, &web.ip), "it holds without a daemon");
    bench.cluster.configure(0, &json!({"disable_network_policy": true, "min_pool_size": 4}));
    bench.cluster.start_ready(0);
    comes_to(&other.pod, &web.ip, true);
    let node = bench.cluster.node(0);
    soon("nothing is left", || left(&**node).is_empty());
    bench.cluster.stop(0);
    bench.cluster.configure(0, &json!({"policy_renderer": renderer, "min_pool_size": 4}));
    bench.cluster.start_ready(0);
    comes_to(&other.pod, &web.ip, false);
}

/// Pods that come then, and those that run already.
fn who_can_enforce_only_later_finds_every_pod_in_its_place(renderer: &str) {
    let mut bench = Bench::idle(json!({"policy_renderer": renderer}));
    bench.policy("web", only_from("db"));
    let lack = |bench: &Bench, is_back: bool| {
        let seats = format!("{}/seats", policy::place(BPF_ROOT.as_ref()).display());
        let what = if renderer == "ebpf" { &seats } else { "/etc/alternatives/iptables-save" };
        // A link to a folder is no map and no program, and what was there takes its place in one step.
        bench.cluster.node(0).sh(&match is_back {
            false => format!("mkdir -p $(dirname {what}); ! test -e {what} || mv {what} {what}-aside; ln -s . {what}"),
            true => format!("if test -e {what}-aside; then mv -T {what}-aside {what}; else rm {what}; fi"),
        });
    };
    let complaints = |bench: &Bench| {
        let log = bench.cluster.node(0).read_file("/var/log/terwayd.log").expect("daemons have a log");
        log.matches("network policies cannot be enforced").count()
    };
    let figures = |bench: &Bench| bench.shown(0)["figures"]["drops"]["policy"]["to_pod"].as_u64();

    lack(&bench, false);
    bench.cluster.start_ready(0);
    let early = bench.cluster.schedule(0, "early");
    let said = bench.cluster.refused(&early, 11);
    assert!(said.contains("network policies cannot be enforced"), "{said}");
    bench.cluster.call_for(&early, "DEL").ok();
    lack(&bench, true);
    soon("they are in force", || bench.shown(0)["state"] == "enforced");
    let (web, _servers) = bench.serve(0, "web", json!({"app": "web"}));
    let near = bench.add(0, "near", json!({"app": "db"}));
    let other = bench.add(0, "other", json!({"app": "other"}));
    comes_to(&near.pod, &web.ip, true);
    assert!(!reaches(&other.pod, &web.ip));
    let leases = bench.cluster.show(0)["leases"].clone();
    let lease =
        leases.as_array().into_iter().flatten().find(|lease| lease["pod"]["name"] == "web").expect("it has one");
    let link = host_veth(&web.sandbox.pod, "eth0");
    let hooks =
        bench.cluster.node(0).sh(&format!("tc filter show dev {link} ingress; tc filter show dev {link} egress"));
    let is_held = ["terway_to_pod", "terway_from_pod"].map(|program| hooks.contains(program));
    assert_eq!((lease["seat"].is_u64(), is_held), (renderer == "ebpf", [renderer == "ebpf"; 2]), "{lease} {hooks}");

    bench.cluster.stop(0);
    lack(&bench, false);
    let before = complaints(&bench);
    bench.cluster.start_ready(0);
    soon("it is told", || complaints(&bench) > before);
    assert!(reaches(&near.pod, &web.ip) && !reaches(&other.pod, &web.ip), "what runs goes on as it was");
    lack(&bench, true);
    soon("they are in force", || bench.shown(0)["state"] == "enforced");
    assert!(reaches(&near.pod, &web.ip) && !reaches(&other.pod, &web.ip), "and after");
    // Nothing of it has been taken away meanwhile.
    soon("drops are counted", || figures(&bench).is_some());
    let before = figures(&bench);
    assert!(!reaches(&other.pod, &web.ip));
    assert!(within(Duration::from_secs(60), || figures(&bench) > before), "drops are counted");
    let is_repair = |event: &Value| event["reason"] == "NetworkPolicyRepaired";
    assert!(!bench.cluster.kube.events().iter().any(is_repair), "{:?}", bench.cluster.kube.events());
}

/// What the forger may not send and whoever he borrows from may; and what the other's policies let in.
fn nobody_speaks_in_anothers_name(renderer: &str) {
    let mut bench = Bench::idle(json!({"policy_renderer": renderer, "ip_stack": "dual"}));
    (0..2).for_each(|n| {
        bench.cluster.world.speak_v6(n);
        bench.cluster.start_ready(n);
    });
    let web = bench.add(0, "web", json!({"app": "web"}));
    let db = bench.add(0, "db", json!({"app": "db"}));
    let forger = bench.add(0, "forger", json!({"app": "forger"}));
    let far = bench.add(1, "far", json!({"app": "web"}));
    let node = bench.cluster.node(0);
    bench.policy("web", only_from("db"));
    bench.policy("forger", json!({"podSelector": {"matchLabels": {"app": "forger"}}, "policyTypes": ["Egress"]}));
    for member in [&web, &far] {
        let _server = Servers::on(&member.pod, &[&member.ip], PORT);
        comes_to(&forger.pod, &member.ip, false);
        comes_to(&db.pod, &member.ip, true);
    }
    let served = Servers::on(&db.pod, &[&db.ip], PORT);
    comes_to(&forger.pod, &db.ip, false);
    drop(served);
    let node_hears = node.run(|| listen("::"));
    let near = |from: &Member, word: &str| {
        let ready = || !from.pod.sh("ip -6 -o addr show dev eth0 scope link -tentative").is_empty();
        soon("its link-local address can be used", ready);
        let index = from.pod.sh("ip -o link show eth0 | cut -d: -f1").trim().parse().expect("a number");
        let at = SocketAddrV6::new(terway::ours::POD_GATEWAY_V6, SINK, 0, index);
        let socket = from.pod.run(|| UdpSocket::bind("[::]:0").expect("a free port"));
        socket.send_to(word.as_bytes(), at).expect("it is sent");
    };
    // No link-local address leads past the rules.
    near(&forger, "denied");
    near(&db, "honest");
    only_honest(&node_hears, "the node");
    drop(node_hears);
    forger.pod.sh(&format!("ip addr add {}/32 dev eth0; ip addr add {}/128 dev eth0 nodad", db.ip, db.ips[1]));
    let own = node.addr.to_string();
    let hearers: [Hearer; 5] = [
        (&|ip| web.pod.run(|| listen(ip)), &web.ip, 0),
        (&|ip| web.pod.run(|| listen(ip)), &web.ips[1], 1),
        (&|ip| far.pod.run(|| listen(ip)), &far.ip, 0),
        (&|ip| far.pod.run(|| listen(ip)), &far.ips[1], 1),
        (&|ip| node.run(|| listen(ip)), &own, 0),
    ];
    for (hearer, to, family) in hearers {
        let heard = hearer(to);
        let at = SocketAddr::new(to.parse().expect("an address"), SINK);
        let say = |from: &Member, word: &str| {
            let socket = from.pod.run(|| UdpSocket::bind((db.ips[family].as_str(), 0)).expect("the address is there"));
            socket.send_to(word.as_bytes(), at).expect("it is sent");
        };
        say(&forger, "forged");
        say(&db, "honest");
        only_honest(&heard, to);
    }
}

fn only_honest(hearer: &UdpSocket, to: &str) {
    let mut word = [0; 6];
    hearer.recv(&mut word).expect("honest words arrive");
    assert_eq!(&word, b"honest", "at {to}");
    hearer.set_nonblocking(true).expect("a socket can be");
    assert!(hearer.recv(&mut word).is_err(), "at {to}");
}

/// What listens at an address, the address, and its family.
type Hearer<'a> = (&'a dyn Fn(&str) -> UdpSocket, &'a str, usize);

fn listen(ip: &str) -> UdpSocket {
    let socket = UdpSocket::bind((ip, SINK)).expect("a free port");
    socket.set_read_timeout(Some(DROPPED * 10)).expect("a timeout above zero");
    socket
}

/// What is in the kernel of a node because of policies.
fn left(node: &impl Place) -> String {
    node.sh(
        "{ ls -d /sys/fs/bpf/terway/policy*; ipset list -n | grep -i terway; \
           for t in iptables ip6tables; do $t-save | grep -i 'terway-[ps]'; done; \
           for l in $(ls /sys/class/net | grep ^cali); do for d in ingress egress; do tc filter show dev $l $d | grep -i terway_policy; done; done; \
         } 2>/dev/null; true",
    )
}

/// The first act of a pod is a burst of forbidden and of allowed datagrams, and forbidden ones wait for its address.
fn the_first_packet_is_judged(renderer: &str) {
    let starts = std::env::var("TERWAY_STARTS").ok().and_then(|n| n.parse().ok()).unwrap_or(STARTS);
    let bench = bench(renderer, json!({"min_pool_size": 18, "max_pool_size": 20}));
    let open = bench.add(0, "open", json!({"app": "open"}));
    let shut = bench.add(0, "shut", json!({"app": "shut"}));
    let flood = bench.add(0, "flood", json!({"app": "flood"}));
    bench.policy(
        "fresh",
        json!({
            "podSelector": {"matchLabels": {"app": "fresh"}}, "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "open"}}}]}],
            "egress": [{"to": [{"podSelector": {"matchLabels": {"app": "open"}}}]}],
        }),
    );
    let listen = |place: &Member, port: u16| {
        place.pod.run(|| {
            let socket = UdpSocket::bind(("0.0.0.0", port)).expect("a free port");
            socket.set_read_timeout(Some(DROPPED)).expect("a timeout above zero");
            socket
        })
    };
    let (taken, refused) = (listen(&open, PORT), listen(&shut, PORT));
    refused.set_nonblocking(true).expect("a socket can be");
    let over = AtomicBool::new(false);
    let (mut delivered, mut lost) = (0, 0);
    let addresses: Vec<String> = addresses(&bench);
    assert!(addresses.len() > 10, "{addresses:?}");
    thread::scope(|scope| {
        let _over = Over(&over);
        scope.spawn(|| {
            flood.pod.run(|| {
                let socket = UdpSocket::bind("0.0.0.0:0").expect("a free port");
                while !over.load(Ordering::Relaxed) {
                    for addr in &addresses {
                        let _ = socket.send_to(b"forbidden", (addr.as_str(), SINK));
                    }
                    thread::sleep(Duration::from_micros(200));
                }
            });
        });
        for n in 0..starts {
            let (gone, missed) = first_act(&bench, n, [&open, &shut], [&taken, &refused]);
            delivered += gone;
            lost += missed;
        }
    });
    assert_eq!((delivered, lost), (0, 0), "forbidden datagrams delivered, allowed ones lost, of {starts} pods");
}

/// Until it says less.
fn what_there_is_no_room_for_changes_nothing_and_lets_no_new_pod_in(renderer: &str) {
    const ROOM: usize = 64;
    let mut bench = Bench::idle(json!({"policy_renderer": renderer, "policy_addresses": ROOM}));
    bench.cluster.start_ready(0);
    let (web, _servers) = bench.serve(0, "web", json!({"app": "web"}));
    let near = bench.add(0, "near", json!({"app": "db"}));
    let other = bench.add(0, "other", json!({"app": "other"}));
    bench.policy("web", only_from("db"));
    comes_to(&other.pod, &web.ip, false);
    let large = |holes: usize| {
        let except: Vec<String> = (0..holes).map(|n| format!("10.99.{n}.0/24")).collect();
        let from = json!([{"ipBlock": {"cidr": "10.99.0.0/16", "except": except}}, {"ipBlock": {"cidr": other.ip.clone() + "/32"}}]);
        bench.policy("large", json!({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{"from": from}]}));
    };
    let metrics = || crate::node::watched::told(&bench.cluster, "GET /metrics HTTP/1.1").1;
    let enforced = |yes: u8| soon("it is told", || metrics().contains(&format!("\nterway_policies_enforced {yes}\n")));
    enforced(1);
    assert!(metrics().contains(&format!("\nterway_policy_table_max{{kind=\"prefixes\"}} {ROOM}\n")), "{}", metrics());
    large(2 * ROOM);
    enforced(0);
    let names = |text: &str| text.contains(&format!("policy_addresses is {ROOM}: raise it in eni.json"));
    let event = |event: &Value| event["reason"] == "NetworkPolicyFailed" && names(event["message"].as_str().unwrap());
    soon("an event names the key", || bench.cluster.kube.events().iter().any(event));
    let mut late = bench.cluster.sandbox(0, terway::pod::PodName::new("default", "late"));
    bench.cluster.kube.put(crate::sim::kube::pod("default", "late", &super::node_name(0)));
    let why = bench.cluster.refused(&late, 11);
    assert!(names(&why), "{why}");
    assert!(reaches(&near.pod, &web.ip) && !reaches(&other.pod, &web.ip), "what runs goes on as it was");
    large(4);
    comes_to(&other.pod, &web.ip, true);
    enforced(1);
    bench.cluster.wire(&mut late);
    assert!(!reaches(&late.pod, &web.ip) && reaches(&near.pod, &web.ip));
}

/// All addresses that pods of the node can have.
fn addresses(bench: &Bench) -> Vec<String> {
    let addresses = bench.cluster.world.cloud.pod_addresses(&bench.cluster.node(0).id);
    addresses.iter().map(ToString::to_string).collect()
}

/// Forbidden datagrams that arrived, and allowed ones that did not.
fn first_act(bench: &Bench, n: u32, to: [&Member; 2], at: [&UdpSocket; 2]) -> (u32, u32) {
    const BURST: u32 = 8;
    let name = format!("fresh-{n}");
    let mut pod = crate::sim::kube::pod("default", &name, &super::node_name(0));
    pod["metadata"]["labels"] = json!({"app": "fresh"});
    bench.cluster.kube.put(pod);
    let mut member = bench.cluster.sandbox(0, terway::pod::PodName::new("default", &name));
    let sink = member.pod.run(|| UdpSocket::bind(("0.0.0.0", SINK)).expect("a free port"));
    sink.set_nonblocking(true).expect("a socket can be");
    bench.cluster.wire(&mut member);
    member.pod.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a free port");
        for k in 0..BURST {
            let _ = socket.send_to(b"forbidden", (to[1].ip.as_str(), PORT));
            let _ = socket.send_to(&(n * BURST + k).to_be_bytes(), (to[0].ip.as_str(), PORT));
        }
    });
    let mut buffer = [0; 64];
    let mut arrived = 0;
    while arrived < BURST {
        match at[0].recv(&mut buffer) {
            Ok(4) if u32::from_be_bytes(buffer[..4].try_into().expect("four bytes")) >= n * BURST => arrived += 1,
            Ok(_) => {}
            Err(_) => break,
        }
    }
    let mut forbidden = 0;
    while at[1].recv(&mut buffer).is_ok() {
        forbidden += 1;
    }
    while sink.recv(&mut buffer).is_ok() {
        forbidden += 1;
    }
    bench.cluster.del(member);
    (forbidden, BURST - arrived)
}

/// Says of something that it is over, also when the story panics: threads wait for it.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Tells all who connect how many packets had to be sent to them again until they were there.
fn testify(listener: &TcpListener, done: &AtomicBool) {
    listener.set_nonblocking(true).expect("a socket can be");
    while !done.load(Ordering::Relaxed) {
        match listener.accept() {
            // Who has gone by now needs no answer.
            Ok((mut client, _)) => _ = client.write_all(&sent_again(&client).to_be_bytes()),
            Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// Whether a connection comes about of which no packet was lost. How long that takes is the machine's affair: what is lost the kernel
/// sends again, a second later, and counts.
fn reaches_at_once(from: &Member, to: &str) -> bool {
    let to: SocketAddr = format!("{to}:{WITNESS}").parse().expect("an address");
    // The answer is read to its end, or connections come faster than the server takes them, its queue drops one, and ports run out here.
    let lost = from.pod.run(|| {
        let mut stream = TcpStream::connect_timeout(&to, SOON)?;
        stream.set_read_timeout(Some(SOON))?;
        let mut theirs = Vec::new();
        stream.read_to_end(&mut theirs)?;
        let theirs = theirs.try_into().map_err(|_| ErrorKind::UnexpectedEof)?;
        Ok::<_, std::io::Error>(sent_again(&stream) + u32::from_be_bytes(theirs))
    });
    lost.is_ok_and(|lost| lost == 0)
}

/// How many of its packets the kernel has had to send again, the first one included.
fn sent_again(stream: &TcpStream) -> u32 {
    // SAFETY: `tcp_info` is plain numbers, for which zero is a value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut len = size_of_val(&info) as libc::socklen_t;
    let (fd, to) = (stream.as_raw_fd(), (&raw mut info).cast());
    // SAFETY: the kernel writes at most `len` bytes into `info`, and how many into `len`; both are ours and outlive the call.
    let failed = unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, to, &raw mut len) };
    assert_eq!(failed, 0, "TCP_INFO: {}", std::io::Error::last_os_error());
    info.tcpi_total_retrans
}

/// A connection to an echo server that is kept open.
struct Talk(TcpStream);

impl Talk {
    fn to(from: &Member, ip: &str) -> Talk {
        let to: SocketAddr = format!("{ip}:7").parse().expect("an address");
        let stream = from.pod.run(|| TcpStream::connect_timeout(&to, DROPPED * 4)).expect("it is allowed");
        stream.set_read_timeout(Some(DROPPED * 5)).expect("a timeout above zero");
        Talk(stream)
    }

    /// A word is sent and comes back.
    fn goes_on(&self) -> bool {
        let mut stream = &self.0;
        let mut word = [0; 5];
        stream.write_all(b"hello").is_ok() && stream.read_exact(&mut word).is_ok()
    }
}

#[test]
fn who_listens_hears_what_is_dropped_and_by_which_policy() {
    let bench = bench("ebpf", json!({}));
    let (web, _servers) = bench.serve(0, "web", json!({"app": "web"}));
    let other = bench.add(0, "other", json!({"app": "other"}));
    bench.policy("web", only_from("db"));
    comes_to(&other.pod, &web.ip, false);
    let heard = "timeout 30 /opt/terway/terway-cli monitor --json";
    let text = thread::scope(|scope| {
        let listener =
            scope.spawn(|| bench.cluster.node(0).sh(&format!("{heard} | grep -m1 '\"dst_port\":{PORT}' || true")));
        while !listener.is_finished() {
            assert!(!reaches(&other.pod, &web.ip));
        }
        listener.join().expect("it does not panic")
    });
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let event = events.iter().find(|event| event["dst_port"] == PORT).unwrap_or_else(|| panic!("{text}"));
    assert_eq!((&event["verdict"], &event["direction"]), (&json!("drop"), &json!("ingress")));
    assert_eq!((&event["src_pod"], &event["dst_pod"]), (&json!("default/other"), &json!("default/web")));
    assert_eq!(event["by"], "networkpolicy default/web (no rule allows it)");
}
