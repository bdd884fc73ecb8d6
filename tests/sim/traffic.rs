//! Traffic for tests: ping, TCP and UDP from inside a namespace, every wait bounded.

use std::fmt::Display;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketType, ipproto};

use super::cluster::soon;
use super::ns::{Ns, Process, sh};

/// How long one packet may take before it counts as lost, where it is sent again, or is to be lost.
pub const LOST: Duration = Duration::from_millis(500);
/// The same where it must arrive: a busy machine has until then, and ARP, which asks again after a second.
pub const STRAGGLERS: Duration = Duration::from_secs(3);
/// How long an echo may take that must come: its server is a thread, for which a busy machine may have no time.
const ECHO: Duration = Duration::from_secs(10);

/// Somewhere a thread can be: a namespace, a node, a pod.
pub trait Place {
    /// Runs the closure on a thread inside; its panic becomes ours.
    fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T;

    /// Starts a process inside; it is killed when the guard is dropped.
    fn spawn(&self, command: &mut Command) -> Process {
        self.run(|| Process(command.spawn().unwrap_or_else(|e| panic!("start {command:?}: {e}"))))
    }

    /// Runs a process inside to its end, whatever that is.
    fn output(&self, command: &mut Command) -> Output {
        self.run(|| command.output().unwrap_or_else(|e| panic!("start {command:?}: {e}")))
    }

    /// Runs a shell line inside, which must succeed, for its standard output.
    fn sh(&self, line: &str) -> String {
        self.run(|| sh(line))
    }

    /// Sets a link up and waits until it carries frames: a veth drops the first ones, and ARP asks again after a second.
    fn link_up(&self, link: &str) {
        self.sh(&format!("ip link set {link} up"));
        soon(&format!("{link} has its carrier"), || self.sh(&format!("ip link show {link}")).contains(" state UP "));
    }

    /// The round trip of one ping, unless it is lost.
    fn ping(&self, to: &str) -> Option<Duration> {
        self.run(|| Pinger::new(to, None).ping(LOST))
    }

    /// Whether the one ping that is sent comes back, however late.
    fn reaches(&self, to: &str) -> bool {
        self.run(|| Pinger::new(to, None).ping(STRAGGLERS)).is_some()
    }

    /// The round trip of one ping from this source address, which must be one of the place's.
    fn ping_from(&self, from: &str, to: &str) -> Option<Duration> {
        self.run(|| Pinger::new(to, Some(from)).ping(LOST))
    }

    /// The same where it must come back.
    fn reaches_from(&self, from: &str, to: &str) -> bool {
        self.run(|| Pinger::new(to, Some(from)).ping(STRAGGLERS)).is_some()
    }

    /// Round trips of `count` pings in a row, sorted; lost ones are missing.
    fn pings(&self, to: &str, count: usize) -> Vec<Duration> {
        self.run(|| {
            let mut pinger = Pinger::new(to, None);
            sorted((0..count).filter_map(|_| pinger.ping(LOST)).collect())
        })
    }

    /// A TCP server inside that sends everything back.
    fn tcp_echo(&self, at: &str) -> TcpEcho {
        let at: SocketAddr = at.parse().expect("an address and a port");
        TcpEcho::on(self.run(|| TcpListener::bind(at).unwrap_or_else(|e| panic!("listen on {at}: {e}"))))
    }

    /// Connects to an echo server, sends it a word and hears it again, for the time that all of it took.
    fn tcp(&self, to: &str) -> std::io::Result<Duration> {
        self.tcp_within(to, ECHO)
    }

    /// The same where it is to fail, or is tried again: connection and echo may each take so long.
    fn tcp_within(&self, to: &str, patience: Duration) -> std::io::Result<Duration> {
        let to: SocketAddr = to.parse().expect("an address and a port");
        self.run(|| {
            let start = Instant::now();
            let mut stream = TcpStream::connect_timeout(&to, patience)?;
            stream.set_read_timeout(Some(patience))?;
            stream.write_all(b"hello")?;
            let mut heard = [0; 5];
            stream.read_exact(&mut heard)?;
            assert_eq!(&heard, b"hello");
            Ok(start.elapsed())
        })
    }

    /// A UDP server inside that sends every datagram back.
    fn udp_echo(&self, at: &str) -> UdpEcho {
        UdpEcho::on(self.run(|| udp_socket(at)))
    }

    /// Round trips of `count` datagrams in a row to an echo server, sorted; lost ones are missing.
    fn udp(&self, to: &str, count: usize) -> Vec<Duration> {
        self.udp_within(to, count, ECHO)
    }

    /// The same where they are to be lost: each may take so long.
    fn udp_within(&self, to: &str, count: usize, patience: Duration) -> Vec<Duration> {
        let any = if to.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
        let socket = self.run(|| udp_socket(any));
        socket.set_read_timeout(Some(patience)).expect("a timeout above zero");
        socket.connect(to).unwrap_or_else(|e| panic!("connect to {to}: {e}"));
        sorted((0..count as u64).filter_map(|n| udp_round_trip(&socket, n)).collect())
    }
}

impl Place for Ns {
    fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        Ns::run(self, f)
    }
}

/// Ping, TCP and UDP.
pub fn reaches(from: &impl Place, what: &str, to: &impl Place, ip: impl Display) {
    let ip = ip.to_string();
    assert!(from.reaches(&ip), "no ping {what} ({ip})");
    // A port is free only once every child that a test beside us has just forked has let go of its copies.
    static PORT: AtomicU16 = AtomicU16::new(7000);
    let ip: IpAddr = ip.parse().expect("an address");
    let [tcp, udp] = [(); 2].map(|()| SocketAddr::new(ip, PORT.fetch_add(1, Ordering::Relaxed)).to_string());
    let _echo = to.tcp_echo(&tcp);
    from.tcp(&tcp).unwrap_or_else(|e| panic!("no TCP {what} ({ip}): {e}"));
    let _echo = to.udp_echo(&udp);
    assert_eq!(from.udp(&udp, 3).len(), 3, "UDP {what} ({ip})");
}

/// Connects, and tells as whom the server saw it.
pub fn seen_as(from: &impl Place, at: &str, server: &TcpEcho) -> String {
    let before = server.peers().len();
    from.tcp(at).unwrap_or_else(|e| panic!("no TCP to {at}: {e}"));
    let peers: Vec<IpAddr> = server.peers()[before..].iter().map(|peer| peer.ip().to_canonical()).collect();
    assert_eq!(peers.len(), 1, "{at}: {peers:?}");
    peers[0].to_string()
}

fn sorted(mut times: Vec<Duration>) -> Vec<Duration> {
    times.sort();
    times
}

/// The value that this share of a sorted list does not exceed.
pub fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}

/// An ICMP socket that knows its own echo replies.
pub struct Pinger {
    socket: UdpSocket,
    to: IpAddr,
    ident: u16,
    sequence: u16,
}

impl Pinger {
    /// Opens the socket in the namespace of this thread.
    pub fn new(to: &str, from: Option<&str>) -> Pinger {
        let to: IpAddr = to.parse().expect("an address");
        let (family, protocol) = match to {
            IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP),
            IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6),
        };
        let raw: OwnedFd = rustix::net::socket(family, SocketType::RAW, Some(protocol)).expect("a raw socket");
        if let Some(from) = from {
            let from: IpAddr = from.parse().expect("an address");
            rustix::net::bind(&raw, &SocketAddr::new(from, 0)).unwrap_or_else(|e| panic!("ping from {from}: {e}"));
        }
        Pinger { socket: UdpSocket::from(raw), to, ident: fastrand::u16(..), sequence: 0 }
    }

    /// One echo request, and the time until its reply. One that is there counts, though this thread may be late to look.
    pub fn ping(&mut self, patience: Duration) -> Option<Duration> {
        self.sequence += 1;
        let start = Instant::now();
        // No route, or a rule that says no: as lost as any other.
        self.socket.send_to(&self.request(), SocketAddr::new(self.to, 0)).ok()?;
        let mut buffer = [0; 2048];
        loop {
            let left = patience.saturating_sub(start.elapsed()).max(Duration::from_micros(1));
            self.socket.set_read_timeout(Some(left)).expect("a timeout above zero");
            let (len, from) = self.socket.recv_from(&mut buffer).ok()?;
            if from.ip() == self.to && self.is_reply(&buffer[..len]) {
                return Some(start.elapsed());
            }
        }
    }

    fn request(&self) -> [u8; 64] {
        let mut packet = [0; 64];
        packet[0] = if self.to.is_ipv4() { 8 } else { 128 };
        packet[4..6].copy_from_slice(&self.ident.to_be_bytes());
        packet[6..8].copy_from_slice(&self.sequence.to_be_bytes());
        // The kernel fills in ICMPv6's own, which covers addresses we do not see here.
        let sum = checksum(&packet);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
        packet
    }

    fn is_reply(&self, packet: &[u8]) -> bool {
        // Raw IPv4 sockets hand over the IP header too.
        let (skip, kind) = if self.to.is_ipv4() { (usize::from(packet[0] & 0xf) * 4, 0) } else { (0, 129) };
        let echo = [self.ident.to_be_bytes(), self.sequence.to_be_bytes()].concat();
        packet.get(skip).is_some_and(|k| *k == kind) && packet.get(skip + 4..skip + 8).is_some_and(|e| e == echo)
    }
}

/// RFC 1071.
fn checksum(packet: &[u8]) -> u16 {
    let sum: u32 = packet.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

/// A TCP server that sends everything back, until it is dropped.
pub struct TcpEcho {
    listener: Arc<TcpListener>,
    seen: Arc<Mutex<Vec<TcpStream>>>,
    thread: Option<JoinHandle<()>>,
}

impl TcpEcho {
    pub fn on(listener: TcpListener) -> TcpEcho {
        let (listener, seen) = (Arc::new(listener), Arc::new(Mutex::default()));
        let (ear, peers) = (Arc::clone(&listener), Arc::clone(&seen));
        TcpEcho { listener, seen, thread: Some(thread::spawn(move || greet(&ear, &peers))) }
    }

    /// Whom it has met so far, as their packets say.
    pub fn peers(&self) -> Vec<SocketAddr> {
        self.seen.lock().expect("no one panicked with it").iter().filter_map(|s| s.peer_addr().ok()).collect()
    }
}

fn greet(listener: &TcpListener, seen: &Mutex<Vec<TcpStream>>) {
    while let Ok((stream, _)) = listener.accept() {
        seen.lock().expect("no one panicked with it").push(stream.try_clone().expect("a file descriptor"));
        thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
    }
}

impl Drop for TcpEcho {
    fn drop(&mut self) {
        // Wakes accept(2), which then fails, and every copy.
        let _ = rustix::net::shutdown(&*self.listener, rustix::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        for stream in self.seen.lock().iter().flat_map(|seen| seen.iter()) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// A UDP server that sends every datagram back, until it is dropped.
pub struct UdpEcho {
    socket: Arc<UdpSocket>,
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl UdpEcho {
    pub fn on(socket: UdpSocket) -> UdpEcho {
        let (socket, done) = (Arc::new(socket), Arc::new(AtomicBool::new(false)));
        let (ear, end) = (Arc::clone(&socket), Arc::clone(&done));
        UdpEcho { socket, done, thread: Some(thread::spawn(move || bounce(&ear, &end))) }
    }
}

fn bounce(socket: &UdpSocket, done: &AtomicBool) {
    let mut datagram = [0; 2048];
    while !done.load(Ordering::Relaxed) {
        // An error is the read timeout, or an ICMP error that an earlier reply met.
        if let Ok((len, from)) = socket.recv_from(&mut datagram) {
            // A reply that cannot be sent is a lost one.
            let _ = socket.send_to(&datagram[..len], from);
        }
    }
}

impl Drop for UdpEcho {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        // Says ENOTCONN, and wakes the reader all the same.
        let _ = rustix::net::shutdown(&*self.socket, rustix::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A port that was in use is free once every child that a test beside us has just forked has let go of its copies.
fn udp_socket(at: &str) -> UdpSocket {
    let start = Instant::now();
    let socket = loop {
        match UdpSocket::bind(at) {
            Err(e) if e.kind() == ErrorKind::AddrInUse && start.elapsed() < STRAGGLERS => {
                thread::sleep(Duration::from_millis(10));
            }
            bound => break bound.unwrap_or_else(|e| panic!("bind {at}: {e}")),
        }
    };
    socket.set_read_timeout(Some(LOST)).expect("a timeout above zero");
    socket
}

fn udp_round_trip(socket: &UdpSocket, number: u64) -> Option<Duration> {
    let start = Instant::now();
    socket.send(&number.to_be_bytes()).ok()?;
    let mut heard = [0; 8];
    // An answer that comes after its time is not the one we wait for.
    while socket.recv(&mut heard).ok()? != 8 || u64::from_be_bytes(heard) != number {}
    Some(start.elapsed())
}
