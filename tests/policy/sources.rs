//! What a pod sends in another's name, as real packets.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use rustix::net::{AddressFamily, SendFlags, SocketType, ipproto};
use terway::kernel::guard::{self, Guard};
use terway::kernel::tables::{MOST, Tables};

use super::field::{Field, Ruler};
use super::oracle::NODE;
use crate::sim::cluster::soon;
use crate::sim::node::Node;
use crate::sim::traffic::Place;

const PORT: u16 = 7003;
/// Whose address is borrowed: another pod's of the node, and nobody's.
const BORROWED: [[&str; 2]; 2] = [["10.0.0.4", "fd00::4"], ["10.9.9.9", "fd99::9"]];
/// Who is spoken to: a pod of the node, the node itself, somebody outside.
const HEARERS: [&str; 3] = ["x/b", "node", "outside"];

fn field() -> Field {
    let field = Field::new();
    // Nobody else looks.
    field.node.sh("for at in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $at; done");
    field
}

/// What of it arrives, of datagrams that say where they are from: the last one is honest.
fn arrives(field: &Field, to: &str, family: usize, from: &[&str]) -> Vec<String> {
    let at = SocketAddr::new(field.addr(field.named(to), family), PORT);
    let hearer = field.place(to).run(|| UdpSocket::bind(at)).unwrap();
    hearer.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    let own = field.addr(field.named("x/a"), family).to_string();
    let pod = field.place("x/a");
    let borrow = |verb: &str, rest: &str| {
        from.iter().for_each(|from| drop(pod.sh(&format!("ip addr {verb} dev eth0 {from}{rest}"))))
    };
    borrow("add", ["/32", "/128 nodad"][family]);
    pod.run(|| {
        for from in from.iter().copied().chain([own.as_str()]) {
            let socket = UdpSocket::bind((from.parse::<IpAddr>().unwrap(), PORT)).unwrap();
            socket.send_to(from.as_bytes(), at).unwrap();
        }
    });
    borrow("del", ["/32", "/128"][family]);
    let (mut heard, mut bytes) = (Vec::new(), [0; 64]);
    while heard.last() != Some(&own) {
        let (length, from) = hearer.recv_from(&mut bytes).expect("honest words arrive");
        heard.push(String::from_utf8_lossy(&bytes[..length]).into_owned());
        assert_eq!(heard.last(), Some(&from.ip().to_string()));
    }
    heard.pop();
    heard
}

fn counted(guard: &Guard, node: &Node) -> (u64, Option<String>) {
    let counted = node.run(guard.tally().expect("it is in force")).unwrap();
    (counted.figures["drops"]["foreign_source"]["from_pod"].as_u64().unwrap(), counted.damage)
}

#[test]
fn what_is_sent_in_anothers_name_goes_nowhere() {
    own_name(&mut field());
}

#[test]
fn nor_does_it_with_the_older_iptables() {
    let mut field = field();
    super::tables::legacy(&field.node);
    own_name(&mut field);
}

fn own_name(field: &mut Field) {
    let each = |field: &Field, hear: &mut dyn FnMut(&str, usize, Vec<&str>) -> bool| {
        for (to, family) in HEARERS.iter().flat_map(|to| [(*to, 0), (*to, 1)]) {
            let from = BORROWED.iter().map(|pair| pair[family]).collect();
            assert!(
                hear(to, family, from),
                "to {to}, family {family}, {}",
                field.node.sh("ip6tables-save -c -t mangle")
            );
        }
    };
    each(field, &mut |to, family, from| arrives(field, to, family, &from) == from);
    let mut guard = Guard::default();
    field.node.run(|| guard.restore());
    assert_eq!(counted(&guard, &field.node), (0, None));
    each(field, &mut |to, family, from| arrives(field, to, family, &from).is_empty());
    let dropped = (HEARERS.len() * 2 * BORROWED.len()) as u64;
    assert_eq!(counted(&guard, &field.node), (dropped, None));
    // Nor in the node's own name.
    for (family, own) in NODE.into_iter().enumerate() {
        assert_eq!(arrives(field, "x/b", family, &[own]), [""; 0]);
    }
    assert_eq!(counted(&guard, &field.node), (dropped + 2, None));
    let probes = field.matrix(false);
    assert_eq!(field.round(&probes, &vec![true; probes.len()]), [""; 0], "all that is honest arrives");
    assert_eq!(counted(&guard, &field.node), (dropped + 2, None));
    // Who remembers nothing leaves it as it is, and whoever empties it is noticed.
    let mut guard = Guard::default();
    field.node.run(|| guard.restore());
    assert_eq!(counted(&guard, &field.node), (dropped + 2, None));
    for damage in
        ["iptables -t mangle -F", "ip6tables -t mangle -F TERWAY-S-DROP", "iptables -t mangle -I PREROUTING -j ACCEPT"]
    {
        field.node.sh(damage);
        assert!(counted(&guard, &field.node).1.is_some(), "{damage}");
        field.node.run(|| guard.restore());
        assert_eq!(counted(&guard, &field.node).1, None, "{damage}");
    }
    assert_eq!(arrives(field, "x/b", 0, &["10.0.0.4"]), [""; 0]);
    let none_left = || {
        let left = field.node.sh("iptables-save; ip6tables-save; iptables-legacy-save");
        assert!(!left.contains("TERWAY-S"), "{left}");
    };
    field.node.run(guard::remove).unwrap();
    none_left();
    field.node.run(|| guard.restore());
    let (_, purge) =
        include_str!("../../packaging/purge").split_once("\n# Rules that name our chains").expect("a part");
    let (chains, _) = purge.split_once("\nif command").expect("an end");
    field.node.sh(&format!("set -e\n#{chains}"));
    none_left();
}

/// What IPv6 needs before and beside a pod's own address.
#[test]
fn duplicate_addresses_are_detected_and_neighbours_found() {
    let field = field();
    let (node, pod) = (&field.node, field.place("x/a"));
    let mut guard = Guard::default();
    node.run(|| guard.restore());
    let near = node.sh("ip -6 -o addr show dev calipod0 scope link | awk '{ sub(\"/.*\", \"\", $4); print $4 }'");
    let near = near.trim();
    let ping = || pod.output(std::process::Command::new("ping").args(["-c1", "-W1", &format!("{near}%eth0")]));
    soon("the node's end is reached", || ping().status.success());
    // Its rules are about that too, by either address.
    let mut tables = Tables::new(MOST);
    let mut ruler = Ruler::new();
    ruler.follow(&super::tables::closed(), node, &mut tables);
    assert!(!ping().status.success(), "{near} is reached");
    let other = field.place("y/a");
    let near_other = node.sh("ip -6 -o addr show dev calipod2 scope link | awk '{ sub(\"/.*\", \"\", $4); print $4 }'");
    other.sh(&format!("ping -c1 -W3 {}%eth0", near_other.trim()));
    ruler.follow(&super::field::cluster(), node, &mut tables);
    soon("the node's end is reached again", || ping().status.success());
    // Detection asks from the address that is none; whoever hears it of those that are taken says so.
    pod.sh("sysctl -qw net.ipv6.conf.eth0.accept_dad=1; ip -6 addr add fd00:7::7/64 dev eth0");
    node.sh("ip -6 addr add fd00:7::8/64 dev calipod0 nodad");
    pod.sh("ip -6 addr add fd00:7::8/64 dev eth0");
    soon("what is taken is found out", || {
        pod.sh("ip -6 addr show dev eth0").contains("fd00:7::8/64 scope global dadfailed")
    });
    soon("what is free is had", || !pod.sh("ip -6 addr show dev eth0 tentative").contains("fd00:7::7"));
    assert_eq!(counted(&guard, node), (0, None));
    // Nothing else comes without an address, and what is link-local stays on the link.
    let to: SocketAddr = format!("[{}]:{PORT}", NODE[1]).parse().unwrap();
    pod.run(|| {
        let socket = rustix::net::socket(AddressFamily::INET6, SocketType::RAW, Some(ipproto::RAW));
        rustix::net::sendto(socket.unwrap(), &nameless(to), SendFlags::empty(), &SocketAddr::new(to.ip(), 0)).unwrap();
    });
    soon("it is dropped", || counted(&guard, node).0 == 1);
    let own = pod.sh("ip -6 -o addr show dev eth0 scope link | awk '{ sub(\"/.*\", \"\", $4); print $4 }'");
    let index: u32 = pod.sh("ip -o link show eth0 | cut -d: -f1").trim().parse().unwrap();
    pod.run(|| {
        let from = std::net::SocketAddrV6::new(own.trim().parse().unwrap(), PORT, 0, index);
        UdpSocket::bind(from).unwrap().send_to(b"x", to).unwrap();
    });
    soon("it is dropped", || counted(&guard, node).0 == 2);
}

/// A datagram from `::`.
fn nameless(to: SocketAddr) -> Vec<u8> {
    let IpAddr::V6(dst) = to.ip() else { panic!("IPv6 only") };
    let mut packet = vec![0x60, 0, 0, 0, 0, 8, 17, 64];
    packet.extend([0; 16]);
    packet.extend(dst.octets());
    packet.extend([PORT.to_be_bytes(), PORT.to_be_bytes(), [0, 8], [0, 0]].concat());
    packet
}

#[test]
fn what_was_in_the_way_for_a_while_is_done_later() {
    let field = field();
    super::tables::legacy(&field.node);
    let mut guard = Guard::default();
    let lock = field.node.run(|| std::fs::File::create("/run/xtables.lock")).unwrap();
    lock.lock().unwrap();
    field.node.run(|| guard.restore());
    assert_eq!(arrives(&field, "x/b", 0, &["10.0.0.4"]), ["10.0.0.4"], "somebody else has the lock");
    drop(lock);
    let look = || counted(&guard, &field.node);
    assert_eq!(look(), (0, None));
    for (family, borrowed) in ["10.0.0.4", "fd00::4"].into_iter().enumerate() {
        assert_eq!(arrives(&field, "x/b", family, &[borrowed]), [""; 0]);
    }
    assert_eq!(look(), (2, None));
    field.node.sh("ip6tables -t mangle -F TERWAY-S-DROP");
    assert!(look().1.is_some(), "and whoever takes it is noticed");
}

/// Where the kernel lacks what it takes in one family, the other is held all the same.
#[test]
fn without_rpfilter_pods_are_served_as_they_were() {
    let field = field();
    let real = field.node.sh("readlink /etc/alternatives/iptables-restore");
    let without = "#!/bin/sh\nall=$(cat)\ncase $all in *rpfilter*) echo \"iptables-restore: Couldn't load match \\`rpfilter':No such file\" >&2; exit 2;; esac\n";
    field.node.write_file(
        "/etc/alternatives/without",
        &format!("{without}printf '%s\\n' \"$all\" | {} \"$@\"\n", real.trim()),
    );
    field
        .node
        .sh("chmod +x /etc/alternatives/without; ln -sf /etc/alternatives/without /etc/alternatives/iptables-restore");
    let mut guard = Guard::default();
    field.node.run(|| guard.restore());
    assert_eq!(arrives(&field, "x/b", 0, &["10.0.0.4"]), ["10.0.0.4"]);
    assert_eq!(arrives(&field, "x/b", 1, &["fd00::4"]), [""; 0]);
    assert_eq!(counted(&guard, &field.node), (1, None));
}
