//! A place for the programs' tests: a network namespace, a cgroup for some of our threads, and maps in a bpffs of their own.

use std::io::{Read, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use terway::kernel::bpf::cgroup::Cgroup;
use terway::kernel::bpf::services::{Chosen, Services};
use terway::maps::{Backend, Frontend, FrontendKey, Proto, Sizes, Write};

use super::maps::BpfFs;
pub use crate::sim::cgroup::Threads;
use crate::sim::ns::Ns;
use crate::sim::traffic::Place;

/// How long a socket of a test waits.
const PATIENCE: Duration = Duration::from_secs(5);

pub const SIZES: Sizes =
    Sizes { frontends: 1000, backends: 1000, slots: 2000, nodes: 100, affinity: 1000, flows: 10000 };

pub struct Cell {
    pub node: Ns,
    threads: Threads,
    pub cgroup: Cgroup,
    pub services: Services,
    pub fs: BpfFs,
}

impl Cell {
    /// With the best programs that this kernel takes.
    pub fn new(tag: &str) -> Cell {
        Cell::with(tag, 0).0
    }

    /// Without the first variants of the programs.
    pub fn with(tag: &str, first: usize) -> (Cell, Chosen) {
        let cell = Cell::bare(tag, &SIZES);
        let chosen = cell.node.run(|| cell.services.attach_from(&cell.cgroup, first)).unwrap();
        (cell, chosen)
    }

    /// Without programs.
    pub fn bare(tag: &str, sizes: &Sizes) -> Cell {
        let node = Ns::new(tag);
        node.sh("for n in 1 2 3 4; do ip addr add 192.0.2.$n/32 dev lo; ip addr add fd00::$n/128 dev lo nodad; done");
        let threads = Threads::new();
        let cgroup = Cgroup::at(threads.path()).unwrap();
        let fs = BpfFs::new(node.name());
        let (services, _) = Services::open(fs.path(), sizes).unwrap();
        Cell { node, threads, cgroup, services, fs }
    }

    /// Runs the closure where the programs see its sockets, in the node's namespace.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        self.run_in(&self.node, f)
    }

    /// The same in another namespace.
    pub fn run_in<T: Send>(&self, ns: &Ns, f: impl FnOnce() -> T + Send) -> T {
        ns.run(|| {
            self.threads.join();
            f()
        })
    }

    pub fn write(&self, writes: &[Write]) {
        self.services.write(writes).unwrap_or_else(|(n, e)| panic!("write {n}: {e}"));
    }

    /// Has the address lead to these backends, which take the ids and slots from `base` on.
    pub fn serve(&self, key: FrontendKey, set: u32, base: u32, backends: &[SocketAddr]) {
        self.serve_as(key, Frontend { set, base, count: backends.len() as u32, affinity: 0, flags: 0 }, backends);
    }

    pub fn serve_as(&self, key: FrontendKey, value: Frontend, backends: &[SocketAddr]) {
        for (n, backend) in (value.base..).zip(backends) {
            let (set, addr, port) = (value.set, backend.ip(), backend.port());
            let backend = Backend { set, addr, port, proto: key.proto };
            self.write(&[Write::Backend { id: n, value: Some(backend) }, Write::Slot { at: n, backend: n }]);
        }
        self.write(&[Write::Frontend { key, value }]);
    }
}

pub fn key(addr: &str, proto: Proto) -> FrontendKey {
    let addr: SocketAddr = addr.parse().unwrap();
    FrontendKey { addr: addr.ip(), port: addr.port(), proto }
}

pub fn node_port(port: u16, proto: Proto) -> FrontendKey {
    FrontendKey { addr: std::net::Ipv4Addr::UNSPECIFIED.into(), port, proto }
}

/// Servers in a namespace that tell their own address to whoever asks; they end when dropped.
pub struct Servers {
    pub addrs: Vec<SocketAddr>,
    end: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Servers {
    /// One for each address, on ports of the kernel's choice, TCP and UDP on the same.
    pub fn new(ns: &Ns, addrs: &[&str]) -> Servers {
        Servers::on(ns, addrs, 0)
    }

    /// The same on this port, for which 0 stands for any.
    pub fn on(place: &impl Place, addrs: &[&str], port: u16) -> Servers {
        let end = Arc::new(AtomicBool::new(false));
        let mut servers = Servers { addrs: Vec::new(), end: end.clone(), threads: Vec::new() };
        for addr in addrs {
            let (tcp, udp) = place.run(|| both(addr.parse().unwrap(), port));
            let own = tcp.local_addr().unwrap();
            servers.addrs.push(own);
            let (over, also) = (end.clone(), end.clone());
            servers.threads.push(std::thread::spawn(move || accept(&tcp, &over)));
            servers.threads.push(std::thread::spawn(move || answer(&udp, own, &also)));
        }
        servers
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| _ = thread.join());
    }
}

fn both(addr: IpAddr, port: u16) -> (TcpListener, UdpSocket) {
    loop {
        let tcp = TcpListener::bind((addr, port)).unwrap();
        if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()) {
            return (tcp, udp);
        }
    }
}

fn accept(listener: &TcpListener, end: &AtomicBool) {
    let own = listener.local_addr().unwrap().to_string();
    listener.set_nonblocking(true).unwrap();
    while !end.load(Ordering::Relaxed) {
        match listener.accept() {
            // Who has gone by now needs no answer.
            Ok((mut client, _)) => _ = client.write_all(own.as_bytes()),
            Err(_) => wait(listener),
        }
    }
}

fn answer(socket: &UdpSocket, own: SocketAddr, end: &AtomicBool) {
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let mut buffer = [0; 64];
    while !end.load(Ordering::Relaxed) {
        if let Ok((_, client)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(own.to_string().as_bytes(), client);
        }
    }
}

/// Until somebody connects, or 50 ms.
fn wait(listener: &TcpListener) {
    let mut fds = [rustix::event::PollFd::new(listener, rustix::event::PollFlags::IN)];
    let timeout = rustix::event::Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
    let _ = rustix::event::poll(&mut fds, Some(&timeout));
}

/// Connects, and hears who is there.
pub fn ask(to: &str) -> std::io::Result<SocketAddr> {
    ask_at(to.parse().unwrap())
}

pub fn ask_at(to: SocketAddr) -> std::io::Result<SocketAddr> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    told(stream)
}

pub fn told(mut stream: TcpStream) -> std::io::Result<SocketAddr> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text.parse().unwrap_or_else(|e| panic!("{text:?}: {e}")))
}

/// A datagram socket that waits for answers, but not for ever.
pub fn datagrams(own: &str) -> UdpSocket {
    let socket = UdpSocket::bind((own.parse::<IpAddr>().unwrap(), 0)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Sends a datagram without a connection: who answers, and where the answer comes from.
pub fn send(socket: &UdpSocket, to: &str) -> std::io::Result<(SocketAddr, SocketAddr)> {
    socket.send_to(b"?", to.parse::<SocketAddr>().unwrap())?;
    let mut buffer = [0; 64];
    let (len, from) = socket.recv_from(&mut buffer)?;
    Ok((String::from_utf8_lossy(&buffer[..len]).parse().unwrap(), from))
}

/// The same over a connected socket.
pub fn send_connected(socket: &UdpSocket) -> std::io::Result<SocketAddr> {
    socket.send(b"?")?;
    let mut buffer = [0; 64];
    let len = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..len]).parse().unwrap())
}
