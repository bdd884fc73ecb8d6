//! More datagrams than a limit lets through, counted second by second where they arrive.

use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::traffic::Place;

/// The frame with the usual MTU, and what of it are headers: those of Ethernet and UDP, and of IPv4 or IPv6.
const FRAME: usize = 1514;
const HEADERS: usize = 14 + 8;
const HEADERS_OF_IP: [usize; 2] = [20, 40];
/// Above this, a sender hands so many datagrams to the kernel at once, as applications in a hurry do (UDP_SEGMENT).
const FAST: u64 = 200_000_000;
const TRAIN: usize = 44;
/// A flood that brings nothing for so long has ended, or never begins.
const SILENCE: Duration = Duration::from_secs(2);
/// What the receiver may be late by, at 5 Gbit/s: bytes.
const BUFFER: usize = 32 << 20;

/// Sends so many bits a second from one place to an address at the other; how many bits arrived in each second from the first
/// datagram on, counted as the frames that they were on the link.
pub fn flood(from: &(impl Place + Sync), to: &(impl Place + Sync), ip: &str, offered: u64, seconds: usize) -> Vec<u64> {
    let receiver = to.run(|| UdpSocket::bind((ip, 0)).unwrap_or_else(|e| panic!("bind {ip}: {e}")));
    let is_v6 = ip.contains(':');
    let datagram = FRAME - HEADERS - HEADERS_OF_IP[usize::from(is_v6)];
    let sender = from.run(|| UdpSocket::bind(if is_v6 { "[::]:0" } else { "0.0.0.0:0" }).expect("bind"));
    sender.connect(receiver.local_addr().expect("it is bound")).expect("it has a route");
    rustix::net::sockopt::set_socket_recv_buffer_size_force(&receiver, BUFFER).expect("root may");
    receiver.set_read_timeout(Some(SILENCE)).expect("a timeout above zero");
    set(&receiver, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1);
    let train = if offered > FAST { TRAIN } else { 1 };
    if train > 1 {
        set(&sender, libc::SOL_UDP, libc::UDP_SEGMENT, datagram);
        set(&receiver, libc::SOL_UDP, libc::UDP_GRO, 1);
    }
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| send(&sender, &vec![7; train * datagram], train, offered, &done));
        let seen = receive(&receiver, datagram, seconds);
        done.store(true, Ordering::Relaxed);
        seen
    })
}

fn set(socket: &UdpSocket, level: libc::c_int, option: libc::c_int, value: usize) {
    let value = value as libc::c_int;
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel reads one `int`, which is ours and outlives the call.
    let failed = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), len) };
    assert_eq!(failed, 0, "socket option {option}: {}", std::io::Error::last_os_error());
}

fn send(socket: &UdpSocket, bytes: &[u8], train: usize, offered: u64, done: &AtomicBool) {
    let each = Duration::from_secs_f64((train * FRAME * 8) as f64 / offered as f64);
    let start = Instant::now();
    for n in 0_u32.. {
        if done.load(Ordering::Relaxed) {
            return;
        }
        // A queue that is full takes none.
        let _ = socket.send(bytes);
        let ahead = (each * n).saturating_sub(start.elapsed());
        if ahead > Duration::from_micros(500) {
            thread::sleep(ahead);
        }
    }
}

fn receive(socket: &UdpSocket, datagram: usize, seconds: usize) -> Vec<u64> {
    let mut bits = vec![0; seconds];
    let mut datagrams = vec![0; 1 << 16];
    let mut start = None;
    while let Some((len, at)) = hear(socket, &mut datagrams) {
        let second = at.saturating_sub(*start.get_or_insert(at)).as_secs() as usize;
        let Some(bits) = bits.get_mut(second) else { break };
        *bits += (len / datagram * FRAME * 8) as u64;
    }
    bits
}

/// The next datagram, or train of them, and when it came: the kernel's time, since this thread may sleep through it.
fn hear(socket: &UdpSocket, datagrams: &mut [u8]) -> Option<(usize, Duration)> {
    // Room for two control messages, aligned as they must be.
    let mut control = [0_u64; 16];
    let mut part = libc::iovec { iov_base: datagrams.as_mut_ptr().cast(), iov_len: datagrams.len() };
    // SAFETY: `msghdr` is plain numbers and pointers, for which zero is a value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
    (message.msg_control, message.msg_controllen) = (control.as_mut_ptr().cast(), size_of_val(&control));
    // SAFETY: the kernel writes into the two buffers, whose lengths it is told; both are ours and outlive the call.
    let len = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) };
    let len = usize::try_from(len).ok()?;
    // SAFETY: the kernel has filled `control` with whole control messages, and each is read within its own length.
    unsafe {
        let mut next = libc::CMSG_FIRSTHDR(&raw const message);
        while let Some(header) = next.as_ref() {
            if (header.cmsg_level, header.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) {
                let time = libc::CMSG_DATA(header).cast::<libc::timespec>().read_unaligned();
                return Some((len, Duration::new(time.tv_sec as u64, time.tv_nsec as u32)));
            }
            next = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    panic!("a datagram without the time at which it came")
}

/// Floods an address with half as much again as the limit. No second brings more than the limit, and a good one nearly all of it: where the
/// sender comes later than bucket and queue can bridge, that much is lost, and one good second of three floods must do.
pub fn keeps_to(from: &(impl Place + Sync), to: &(impl Place + Sync), ip: &str, limit: u64) {
    let mut seen = Vec::new();
    let is_kept = (0..3).any(|_| {
        let seconds = flood(from, to, ip, limit * 3 / 2, 2);
        assert!(seconds.iter().all(|bits| bits * 100 <= limit * 105), "limit {limit}: {seconds:?}");
        seen.extend(seconds);
        seen.iter().any(|bits| bits * 10 >= limit * 9)
    });
    assert!(is_kept, "limit {limit}: {seen:?}");
}

/// Two floods at once bring in sum what one limit lets through in their two seconds, and both some of it. Not so where the machine is late
/// with either, or has one begin after the other: then they are begun anew.
pub fn between(limit: u64, one: impl Fn() -> Vec<u64> + Sync, other: impl Fn() -> Vec<u64> + Sync) {
    let mut seen = Vec::new();
    let is_kept = (0..3).any(|_| {
        let both = thread::scope(|scope| {
            let (one, other) = (scope.spawn(&one), scope.spawn(&other));
            [one, other].map(|flood| flood.join().expect("a flood ends").iter().sum::<u64>())
        });
        seen.push(both);
        let bits = both[0] + both[1];
        bits * 100 <= 2 * limit * 105 && bits * 10 >= 2 * limit * 8 && both.iter().all(|one| one * 20 > limit)
    });
    assert!(is_kept, "limit {limit} for two seconds: {seen:?}");
}

/// How far the worst second is from the limit, in percent of it.
pub fn error(seconds: &[u64], limit: u64) -> f64 {
    let errors = seconds.iter().map(|bits| (*bits as f64 / limit as f64 - 1.0) * 100.0);
    errors.max_by(|a, b| a.abs().total_cmp(&b.abs())).expect("there are seconds")
}
