//! What a path loses while a story is told: numbered datagrams there and back without a pause, and a TCP connection beside them.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::traffic::{Place, STRAGGLERS};

/// Between two datagrams: 2,000 a second, which one CPU of two sends beside everything else.
const PACE: Duration = Duration::from_micros(500);
/// What is under way may wait in a buffer while the CPUs do other things.
const BUFFER: usize = 8 << 20;

/// What went, and what did not come back.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    pub sent: usize,
    pub lost: usize,
    /// Bytes that the one TCP connection brought back.
    pub tcp: usize,
}

/// From a place to a server in another, until the story is over.
pub fn during(from: &(impl Place + Sync), to: &impl Place, ip: &str, story: impl FnOnce()) -> Tally {
    static PORT: AtomicU16 = AtomicU16::new(9000);
    let at: [SocketAddr; 2] =
        [(); 2].map(|()| SocketAddr::new(ip.parse().expect("an address"), PORT.fetch_add(1, Ordering::Relaxed)));
    let _tcp = to.tcp_echo(&at[0].to_string());
    let server = to.run(|| UdpSocket::bind(at[1]).expect("a free port"));
    let any = if at[1].is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let client = from.run(|| UdpSocket::bind(any).expect("a free port"));
    client.connect(at[1]).expect("an address of its family");
    [&server, &client].into_iter().for_each(widen);
    let stream =
        from.run(|| TcpStream::connect_timeout(&at[0], STRAGGLERS)).expect("it speaks before the story begins");
    let (done, end) = (AtomicBool::new(false), AtomicBool::new(false));
    let heard = AtomicUsize::new(0);
    thread::scope(|scope| {
        scope.spawn(|| bounce(&server, &end));
        scope.spawn(|| hear(&client, &heard, &end));
        let talking = scope.spawn(|| talk(stream, &done));
        let sending = scope.spawn(|| send(&client, &done));
        // However the story ends, those who wait for its end must learn of it.
        let over = Over([&done, &end]);
        thread::sleep(Duration::from_millis(100));
        story();
        thread::sleep(Duration::from_millis(100));
        done.store(true, Ordering::Relaxed);
        let sent = sending.join().expect("sending does not panic");
        let wait = Instant::now();
        while heard.load(Ordering::Relaxed) < sent && wait.elapsed() < STRAGGLERS {
            thread::sleep(Duration::from_millis(5));
        }
        drop(over);
        let tcp = talking.join().expect("the connection lives as long as the story");
        Tally { sent, lost: sent - heard.load(Ordering::Relaxed), tcp }
    })
}

struct Over<'a>([&'a AtomicBool; 2]);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.iter().for_each(|flag| flag.store(true, Ordering::Relaxed));
    }
}

fn widen(socket: &UdpSocket) {
    rustix::net::sockopt::set_socket_recv_buffer_size_force(socket, BUFFER).expect("root may");
    socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout above zero");
}

fn send(socket: &UdpSocket, done: &AtomicBool) -> usize {
    let mut sent = 0_usize;
    while !done.load(Ordering::Relaxed) {
        // No route: as lost as any other.
        let _ = socket.send(&sent.to_be_bytes());
        sent += 1;
        thread::sleep(PACE);
    }
    sent
}

fn bounce(socket: &UdpSocket, end: &AtomicBool) {
    let mut datagram = [0; 64];
    while !end.load(Ordering::Relaxed) {
        if let Ok((len, from)) = socket.recv_from(&mut datagram) {
            let _ = socket.send_to(&datagram[..len], from);
        }
    }
}

/// Every datagram comes back once: none of ours has a way to be doubled.
fn hear(socket: &UdpSocket, heard: &AtomicUsize, end: &AtomicBool) {
    let mut datagram = [0; 64];
    while !end.load(Ordering::Relaxed) {
        if socket.recv(&mut datagram).is_ok() {
            heard.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn talk(mut stream: TcpStream, done: &AtomicBool) -> usize {
    let (words, mut heard, mut bytes) = ([7; 4096], [0; 4096], 0);
    while !done.load(Ordering::Relaxed) {
        stream.write_all(&words).and_then(|()| stream.read_exact(&mut heard)).expect("the connection lives");
        bytes += heard.len();
        thread::sleep(PACE);
    }
    bytes
}
