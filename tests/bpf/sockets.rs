//! The programs on real sockets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
use rustix::thread::UnshareFlags;
use terway::kernel::bpf::cgroup::Cgroup;
use terway::kernel::bpf::load::Object;
use terway::kernel::bpf::map::Map;
use terway::kernel::bpf::pin::{self, Age};
use terway::kernel::bpf::services::{self, Services};
use terway::kernel::sockets;
use terway::maps::{Backend, Count, Frontend, NODE_OWN, OWN_NODE_ONLY, Proto, Write};

use super::cell::{Cell, SIZES, Servers, ask, datagrams, key, node_port, send, send_connected, told};
use super::foreign;
use super::maps::rewrite;
use crate::sim::ns::Ns;
use crate::sim::skip;

#[test]
fn a_connection_to_a_service_reaches_its_backend_and_shows_the_service() {
    for first in 0..3 {
        let (cell, chosen) = Cell::with("tcp", first);
        println!("{chosen:?}");
        let servers = Servers::new(&cell.node, &["192.0.2.1", "fd00::1"]);
        cell.serve(key("10.96.0.10:80", Proto::Tcp), 1, 1, &servers.addrs[..1]);
        cell.serve(key("[fd96::10]:80", Proto::Tcp), 2, 2, &servers.addrs[1..]);
        for (to, server) in [("10.96.0.10:80", 0), ("[fd96::10]:80", 1), ("[::ffff:10.96.0.10]:80", 0)] {
            cell.run(|| {
                let stream = TcpStream::connect(to).unwrap();
                assert_eq!(stream.peer_addr().unwrap(), to.parse::<SocketAddr>().unwrap());
                assert_eq!(told(stream).unwrap(), servers.addrs[server], "{to}");
            });
        }
        let direct = servers.addrs[0].to_string();
        assert_eq!(cell.run(|| ask(&direct)).unwrap(), servers.addrs[0]);
        assert_eq!(cell.services.counts().unwrap()[Count::Translated as usize], 3);
    }
}

#[test]
fn datagrams_reach_the_backend_and_answers_show_the_service() {
    for first in 0..3 {
        let (cell, _) = Cell::with("udp", first);
        let servers = Servers::new(&cell.node, &["192.0.2.1", "fd00::1"]);
        cell.serve(key("10.96.0.10:53", Proto::Udp), 1, 1, &servers.addrs[..1]);
        cell.serve(key("[fd96::10]:53", Proto::Udp), 2, 2, &servers.addrs[1..]);
        let cases = [("10.96.0.10:53", "0.0.0.0", 0), ("[fd96::10]:53", "::", 1), ("[::ffff:10.96.0.10]:53", "::", 0)];
        for (to, own, server) in cases {
            cell.run(|| {
                let asked: SocketAddr = to.parse().unwrap();
                let socket = datagrams(own);
                assert_eq!(send(&socket, to).unwrap(), (servers.addrs[server], asked), "{to}");
                let socket = datagrams(own);
                socket.connect(asked).unwrap();
                assert_eq!(socket.peer_addr().unwrap(), asked);
                assert_eq!(send_connected(&socket).unwrap(), servers.addrs[server], "{to}");
            });
        }
    }
}

#[test]
fn nobody_behind_a_service_is_told_at_once() {
    for first in 0..3 {
        let (cell, chosen) = Cell::with("refuse", first);
        for proto in [Proto::Tcp, Proto::Udp] {
            cell.serve(key("10.96.0.10:80", proto), 1, 1, &[]);
            cell.serve(key("[fd96::10]:80", proto), 2, 1, &[]);
        }
        for (to, own) in [("10.96.0.10:80", "0.0.0.0"), ("[fd96::10]:80", "::"), ("[::ffff:10.96.0.10]:80", "::")] {
            cell.run(|| {
                let begin = Instant::now();
                assert_eq!(ask(to).unwrap_err().raw_os_error(), Some(libc::ECONNREFUSED), "{to}");
                let socket = datagrams(own);
                // Without bpf_set_retval the refusal comes with the answer to the first datagram.
                let connected =
                    socket.connect(to.parse::<SocketAddr>().unwrap()).and_then(|()| send_connected(&socket));
                // The kernel itself refuses to send IPv4 to port 0 from a socket of IPv6.
                let mapped = to.starts_with("[::ffff") && chosen.variant != "sock_retval";
                let told = if mapped { libc::EINVAL } else { libc::ECONNREFUSED };
                assert_eq!(connected.unwrap_err().raw_os_error(), Some(told), "{to}");
                let unconnected = send(&datagrams(own), to).unwrap_err().raw_os_error();
                let told = if chosen.variant == "sock_retval" { libc::ECONNREFUSED } else { libc::EPERM };
                assert_eq!(unconnected, Some(told), "{to}");
                // Who waits for an answer waits for five seconds.
                assert!(begin.elapsed() < Duration::from_secs(4), "{to}: {:?}", begin.elapsed());
            });
        }
        assert_eq!(cell.services.counts().unwrap()[Count::Refused as usize], 9);
    }
}

#[test]
fn backends_are_chosen_evenly() {
    let cell = Cell::new("even");
    let servers = Servers::new(&cell.node, &["192.0.2.1"; 7]);
    cell.serve(key("10.96.0.10:80", Proto::Tcp), 1, 1, &servers.addrs);
    cell.serve(key("10.96.0.10:80", Proto::Udp), 2, 20, &servers.addrs);
    let mut met = BTreeMap::new();
    cell.run(|| {
        for _ in 0..3500 {
            // A datagram socket is led by its connect(2); nothing need be sent.
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.connect("10.96.0.10:80").unwrap();
        }
    });
    for (key, flow) in cell.services.flows().unwrap() {
        assert_eq!((flow.addr.to_string().as_str(), flow.port), ("10.96.0.10", 80));
        *met.entry(key.port).or_insert(0u32) += 1;
    }
    let square = |n: u32| (f64::from(n) - 500.0).powi(2) / 500.0;
    let chi: f64 = met.values().map(|n| square(*n)).sum();
    assert_eq!((met.len(), met.values().sum::<u32>()), (7, 3500));
    // Six degrees of freedom: once in a million runs of an even choice.
    assert!(chi < 38.3, "{met:?}");
}

#[test]
fn a_client_keeps_its_backend_until_it_has_been_away_for_the_timeout() {
    let cell = Cell::new("affinity");
    let pod = Ns::new("affinity-pod");
    pod.sh("ip addr add 192.0.2.1/32 dev lo");
    let (servers, others) = (Servers::new(&cell.node, &["192.0.2.1"; 8]), Servers::new(&pod, &["192.0.2.1"; 8]));
    let affine = |set, base, seconds| Frontend { set, base, count: 8, affinity: seconds, flags: 0 };
    cell.serve_as(key("10.96.0.10:80", Proto::Tcp), affine(1, 1, 1000), &servers.addrs);
    cell.serve_as(key("10.96.0.11:80", Proto::Tcp), affine(2, 20, 1000), &others.addrs);
    let ask_all = |ns: &Ns, to: &str, times: usize| -> BTreeSet<SocketAddr> {
        cell.run_in(ns, || (0..times).map(|_| ask(to).unwrap()).collect())
    };
    let noted = pin::open(cell.services.folder(), "affinity").unwrap().unwrap();
    // As if everybody had been here so many seconds later.
    let later = |seconds: i64| {
        rewrite(&noted, |value| {
            let last = u64::from_ne_bytes(value[8..].try_into().unwrap());
            value[8..].copy_from_slice(&last.wrapping_add_signed(seconds * 1_000_000_000).to_ne_bytes());
        });
    };
    // Each look counts as a use: the time never ends.
    let first = ask_all(&cell.node, "10.96.0.10:80", 1);
    for _ in 0..6 {
        later(-900);
        assert_eq!(ask_all(&cell.node, "10.96.0.10:80", 3), first);
    }
    let expired = (0..20).any(|_| {
        later(-1000);
        ask_all(&cell.node, "10.96.0.10:80", 1) != first
    });
    assert!(expired, "after the timeout it is any of eight");
    // Another namespace is another client.
    let other = ask_all(&pod, "10.96.0.11:80", 30);
    assert_eq!(other.len(), 1);
    // Of two that connect at once, the second may find that the first was here later than itself.
    for _ in 0..10 {
        later(60);
        assert_eq!(ask_all(&pod, "10.96.0.11:80", 1), other);
    }
    assert!(cell.services.counts().unwrap()[Count::Affinity as usize] > 18);
    // A backend that has left is nobody's last one.
    let kept = ask_all(&pod, "10.96.0.11:80", 1).first().copied();
    let rest: Vec<SocketAddr> = others.addrs.iter().copied().filter(|addr| Some(*addr) != kept).collect();
    for id in 20..28 {
        cell.write(&[Write::Backend { id, value: None }]);
    }
    cell.serve_as(key("10.96.0.11:80", Proto::Tcp), Frontend { count: 7, ..affine(2, 40, 1000) }, &rest);
    let now = ask_all(&pod, "10.96.0.11:80", 30);
    assert!(now.len() == 1 && now.first().copied() != kept, "{now:?}");
}

#[test]
fn datagrams_of_a_socket_stay_with_their_backend_while_it_is_there() {
    let cell = Cell::new("sticky");
    let servers = Servers::new(&cell.node, &["192.0.2.1"; 8]);
    cell.serve(key("10.96.0.10:53", Proto::Udp), 1, 1, &servers.addrs);
    cell.run(|| {
        let socket = datagrams("0.0.0.0");
        let (first, _) = send(&socket, "10.96.0.10:53").unwrap();
        for _ in 0..30 {
            assert_eq!(send(&socket, "10.96.0.10:53").unwrap().0, first);
        }
        let met: BTreeSet<_> = (0..40).map(|_| send(&datagrams("0.0.0.0"), "10.96.0.10:53").unwrap().0).collect();
        assert!(met.len() > 4, "other sockets choose for themselves: {met:?}");
        // It leaves, in the order of a real change: new block, frontend, then the backend.
        let rest: Vec<SocketAddr> = servers.addrs.iter().copied().filter(|addr| *addr != first).collect();
        cell.serve(key("10.96.0.10:53", Proto::Udp), 1, 20, &rest);
        for id in 1..9 {
            cell.write(&[Write::Backend { id, value: None }]);
        }
        let (second, from) = send(&socket, "10.96.0.10:53").unwrap();
        assert!(second != first && from == "10.96.0.10:53".parse().unwrap());
        for _ in 0..10 {
            assert_eq!(send(&socket, "10.96.0.10:53").unwrap().0, second);
        }
    });
    assert_eq!(cell.services.counts().unwrap()[Count::Sticky as usize], 40);
}

#[test]
fn node_ports_answer_at_every_node_address_and_at_the_nodes_own_loopback() {
    for first in 0..3 {
        let (cell, chosen) = Cell::with("nodeport", first);
        let pod = Ns::new("nodeport-pod");
        pod.sh("for n in 1 2; do ip addr add 192.0.2.$n/32 dev lo; ip addr add fd00::$n/128 dev lo nodad; done");
        // Not by chance on the same port.
        let (servers, inside) =
            (Servers::on(&cell.node, &["192.0.2.1"], 8080), Servers::on(&pod, &["192.0.2.1"], 8081));
        cell.serve(node_port(30080, Proto::Tcp), 1, 1, &servers.addrs);
        let own_only = Frontend { set: 2, base: 2, count: 1, affinity: 0, flags: OWN_NODE_ONLY };
        cell.serve_as(node_port(30090, Proto::Tcp), own_only, &servers.addrs);
        for (addr, flags) in [("192.0.2.2", NODE_OWN), ("203.0.113.9", 0), ("fd00::2", NODE_OWN)] {
            cell.write(&[Write::Node { addr: addr.parse().unwrap(), flags }]);
        }
        let node = |to: &str| cell.run(|| ask(to)).ok();
        let server = Some(servers.addrs[0]);
        assert_eq!((node("192.0.2.2:30080"), node("203.0.113.9:30080")), (server, server));
        assert_eq!((node("192.0.2.2:30090"), node("203.0.113.9:30090")), (server, None));
        assert_eq!((node("192.0.2.3:30080"), node("192.0.2.2:30081")), (None, None), "no node, no port");
        for to in ["127.0.0.1:30080", "127.8.9.10:30090", "0.0.0.0:30080", "[::ffff:127.0.0.1]:30080"] {
            // Without cookies nobody knows whose loopback it is.
            let expected = if chosen.variant == "sock" { None } else { server };
            assert_eq!(node(to), expected, "{to} {}", chosen.variant);
        }
        let in_pod = |to: &str| cell.run_in(&pod, || ask(to)).ok();
        assert_eq!(in_pod("192.0.2.2:30080"), None, "led to 192.0.2.1 of the node, where this pod has nobody");
        let port = inside.addrs[0].port();
        cell.serve(node_port(30099, Proto::Tcp), 3, 3, &inside.addrs);
        assert_eq!(in_pod("203.0.113.9:30099"), Some(inside.addrs[0]));
        for to in ["127.0.0.1:30099", "[::1]:30099", "[::]:30099", "0.0.0.0:30099"] {
            assert_eq!(in_pod(to), None, "{to}: a pod's loopback is its own");
        }
        assert_eq!(in_pod(&format!("192.0.2.1:{port}")), Some(inside.addrs[0]));
    }
}

#[test]
fn a_change_under_load_never_leads_anywhere_else() {
    let cell = Cell::new("change");
    let servers = Servers::new(&cell.node, &["192.0.2.1"; 6]);
    let (ours, theirs) = servers.addrs.split_at(3);
    // Another Service changes beside it and takes over blocks and ids that have become free.
    let (service, other) = (key("10.96.0.10:80", Proto::Tcp), key("10.96.0.11:80", Proto::Tcp));
    cell.serve(service, 1, 1, ours);
    cell.serve(other, 2, 11, theirs);
    let (end, asked) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                cell.run(|| {
                    while !end.load(Ordering::Relaxed) {
                        let server = ask("10.96.0.10:80").unwrap();
                        assert!(ours.contains(&server), "{server} is another Service's");
                        asked.fetch_add(1, Ordering::Relaxed);
                    }
                });
            });
        }
        let begin = Instant::now();
        let free = |base: u32| (base..base + 3).for_each(|id| cell.write(&[Write::Backend { id, value: None }]));
        // For so long, and with so many connections; a busy machine takes its time for them.
        let is_enough = |time: Duration| time.as_secs() >= 2 && asked.load(Ordering::Relaxed) > 500;
        while !is_enough(begin.elapsed()) && begin.elapsed() < Duration::from_secs(60) {
            // Ids and blocks rest for a moment, as the table has it: an old reader must not outlive two changes.
            for (mine, its) in [(101, 111), (201, 211), (1, 11)] {
                cell.serve(service, 1, mine, ours);
                cell.serve(other, 2, its, theirs);
                let old = if mine == 1 { 201 } else { mine - 100 };
                free(old);
                free(old + 10);
                if mine == 1 {
                    cell.write(&[Write::RemoveFrontend(other)]);
                }
            }
        }
        end.store(true, Ordering::Relaxed);
    });
    println!("{} connections, counts {:?}", asked.load(Ordering::Relaxed), cell.services.counts().unwrap());
    assert!(asked.load(Ordering::Relaxed) > 500);
    assert_eq!(cell.services.counts().unwrap()[Count::Torn as usize], 0);
}

#[test]
fn new_programs_take_the_place_of_old_ones_without_a_gap() {
    let cell = Cell::new("replace");
    let servers = Servers::new(&cell.node, &["192.0.2.1"]);
    cell.serve(key("10.96.0.10:80", Proto::Tcp), 1, 1, &servers.addrs);
    const CONNECT4: u32 = 10;
    let (end, asked) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                cell.run(|| {
                    while !end.load(Ordering::Relaxed) {
                        assert_eq!(ask("10.96.0.10:80").unwrap(), servers.addrs[0]);
                        asked.fetch_add(1, Ordering::Relaxed);
                    }
                });
            });
        }
        let mut ids = BTreeSet::new();
        for first in [0, 1, 2, 1, 0].repeat(6) {
            // A process that remembers nothing: maps by their pins, programs by their names.
            let (services, age) = Services::open(cell.fs.path(), &SIZES).unwrap();
            assert_eq!(age, Age::Old);
            cell.node.run(|| services.attach_from(&cell.cgroup, first)).unwrap();
            let attached = cell.cgroup.attached(CONNECT4).unwrap();
            assert_eq!((attached.len(), attached[0].name.as_str()), (1, "terway_connect4"));
            assert!(ids.insert(attached[0].id));
        }
        end.store(true, Ordering::Relaxed);
    });
    assert!(asked.load(Ordering::Relaxed) > 100);
    for _again in 0..2 {
        services::clear(&cell.cgroup).unwrap();
        services::unpin(cell.fs.path()).unwrap();
        assert!(cell.cgroup.attached(CONNECT4).unwrap().is_empty());
        assert!(!cell.fs.path().join("terway").exists());
        assert!(cell.run(|| ask("10.96.0.10:80")).is_err());
    }
}

#[test]
fn where_the_kernel_cannot_replace_the_new_program_comes_before_the_old_one_goes() {
    let cell = Cell::new("exchange");
    let servers = Servers::new(&cell.node, &["192.0.2.1"]);
    cell.serve(key("10.96.0.10:80", Proto::Tcp), 1, 1, &servers.addrs);
    let folder = cell.services.folder();
    let object = || Object::parse("sock", include_bytes!(concat!(env!("OUT_DIR"), "/sock.o"))).unwrap();
    let maps: Vec<Map> = object().maps().keys().map(|name| pin::open(folder, name).unwrap().unwrap()).collect();
    let linked = object().link(&maps).unwrap();
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            cell.run(|| {
                while !end.load(Ordering::Relaxed) {
                    assert_eq!(ask("10.96.0.10:80").unwrap(), servers.addrs[0]);
                }
            });
        });
        for _ in 0..30 {
            cell.cgroup.exchange(&linked.load("terway_connect4").unwrap()).unwrap();
            assert_eq!(cell.cgroup.attached(foreign::CONNECT4).unwrap().len(), 1);
        }
        end.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_machine_without_cgroup2_gets_a_mount_of_our_own() {
    let there = std::thread::spawn(|| {
        // SAFETY: the thread shares its file system attributes with nobody who counts on them; it ends with this test.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS | UnshareFlags::NEWNS) }.unwrap();
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        let found = Cgroup::root().unwrap().path().to_owned();
        unmount(&found, UnmountFlags::DETACH).unwrap();
        mount("none", "/run", "tmpfs", MountFlags::empty(), None).unwrap();
        let own = Cgroup::root().unwrap();
        assert_eq!(Cgroup::root().unwrap().path(), own.path(), "the second time it is found");
        assert!(own.attached(foreign::CONNECT4).unwrap().is_empty());
        own.path().to_owned()
    });
    assert_eq!(there.join().unwrap(), Path::new("/run/terway/cgroup2"));
    assert_ne!(Cgroup::root().unwrap().path(), Path::new("/run/terway/cgroup2"));
}

#[test]
fn a_program_of_somebody_else_stays_beside_ours() {
    let cell = Cell::bare("beside", &SIZES);
    let servers = Servers::new(&cell.node, &["192.0.2.1"]);
    cell.serve(key("10.96.0.10:80", Proto::Tcp), 1, 1, &servers.addrs);
    let foreign = foreign::attach(cell.cgroup.path());
    let hook = foreign::CONNECT4;
    cell.node.run(|| cell.services.attach(&cell.cgroup)).unwrap();
    assert_eq!(cell.run(|| ask("10.96.0.10:80")).unwrap(), servers.addrs[0]);
    cell.node.run(|| cell.services.attach(&cell.cgroup)).unwrap();
    assert_eq!((foreign::count(cell.cgroup.path()), cell.cgroup.attached(hook).unwrap().len()), (2, 1));
    services::clear(&cell.cgroup).unwrap();
    assert_eq!((foreign::count(cell.cgroup.path()), cell.cgroup.attached(hook).unwrap().len()), (1, 0));
    drop(foreign);
}

#[test]
fn a_datagram_socket_that_is_connected_to_a_gone_backend_is_ended() {
    let cell = Cell::new("end");
    let servers = Servers::new(&cell.node, &["192.0.2.1", "fd00::1", "192.0.2.2"]);
    let [four, six, other] = servers.addrs[..] else { panic!() };
    cell.serve(key("10.96.0.10:53", Proto::Udp), 1, 1, &[four]);
    cell.serve(key("[fd96::10]:53", Proto::Udp), 2, 2, &[six]);
    cell.serve(key("10.96.0.11:53", Proto::Udp), 3, 3, &[four]);
    let connect = |own: &str, to: SocketAddr| {
        cell.run(|| {
            let socket = datagrams(own);
            socket.connect(to).unwrap();
            send_connected(&socket).unwrap();
            socket
        })
    };
    let led = [
        connect("0.0.0.0", "10.96.0.10:53".parse().unwrap()),
        connect("::", "[fd96::10]:53".parse().unwrap()),
        connect("::", "[::ffff:10.96.0.10]:53".parse().unwrap()),
    ];
    // Through another Service, to another backend, and to this very one without a Service.
    let others = [connect("0.0.0.0", "10.96.0.11:53".parse().unwrap()), connect("0.0.0.0", four)];
    let backend = |set, addr: SocketAddr| Backend { set, addr: addr.ip(), port: addr.port(), proto: Proto::Udp };
    let gone = BTreeMap::from([(1, backend(1, four)), (2, backend(2, six)), (3, backend(3, other))]);
    let found = cell.services.led_to(&gone).unwrap();
    assert_eq!(found.len(), 3, "{found:?}");
    assert_eq!(Ns::new("elsewhere").run(|| sockets::end(&found)).unwrap(), 0);
    match sockets::end_in(cell.node.path(), &found) {
        Err(e) if e.errno() == Some(libc::EOPNOTSUPP) => {
            assert!(e.to_string().contains("end a socket (the kernel has no INET_DIAG_DESTROY)"), "{e}");
            return skip::because("needs INET_DIAG_DESTROY");
        }
        ended => assert_eq!(ended.unwrap(), 3),
    }
    for socket in &led {
        assert_eq!(socket.recv(&mut [0]).unwrap_err().raw_os_error(), Some(libc::ECONNABORTED));
        assert_eq!(socket.send(b"?").unwrap_err().raw_os_error(), Some(libc::EDESTADDRREQ));
    }
    for socket in &others {
        assert_eq!(send_connected(socket).unwrap(), four);
    }
    // Their owners connect anew.
    cell.serve(key("10.96.0.10:53", Proto::Udp), 1, 11, &[other]);
    cell.run(|| led[0].connect("10.96.0.10:53")).unwrap();
    assert_eq!(send_connected(&led[0]).unwrap(), other);
    assert_eq!(sockets::end_in(cell.node.path(), &found).unwrap(), 0);
    assert_eq!(sockets::end_in("/run/netns/never-made".as_ref(), &found).unwrap(), 0);
}
