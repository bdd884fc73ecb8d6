//! What programs tell: rings of the kernel's, one for each CPU, that are read where they lie.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::map::{self, Map};
use crate::error::{Context, Error};

/// `PERF_TYPE_SOFTWARE`, `PERF_COUNT_SW_BPF_OUTPUT` (4.4), `PERF_SAMPLE_RAW`.
const SOFTWARE: u32 = 1;
const BPF_OUTPUT: u64 = 10;
const SAMPLE_RAW: u64 = 1 << 10;
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;
/// `PERF_EVENT_IOC_ENABLE`
const ENABLE: libc::c_ulong = 0x2400;
const RECORD_LOST: u32 = 2;
const RECORD_SAMPLE: u32 = 9;
/// Where `struct perf_event_mmap_page` has `data_head` and `data_tail`.
const HEAD: usize = 1024;
const TAIL: usize = 1032;
/// Bytes of a ring; a power of two, and as many as the largest page has.
const ROOM: usize = 64 << 10;
/// A record is longer than its data by its header and their length.
const HEADER: usize = 8;

/// `struct perf_event_attr` of its first version.
#[repr(C)]
#[derive(Default)]
struct Attr {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    breakpoint: u32,
    breakpoint_addr: u64,
}

/// The rings of all CPUs that run.
pub struct Rings(Vec<Ring>);

struct Ring {
    fd: OwnedFd,
    /// A page of the kernel's, and the ring behind it; mapped for as long as this lives.
    page: *mut u8,
    mapped: usize,
}

// SAFETY: the mapping is nobody else's, and goes wherever the ring goes.
unsafe impl Send for Ring {}

impl Rings {
    /// Has what is told through this map (PERF_EVENT_ARRAY) arrive here, and nowhere else any more.
    pub fn open(map: &Map) -> Result<Rings, Error> {
        let mut rings = Vec::new();
        for cpu in 0..map::cpus()? as u32 {
            let ring = match Ring::open(cpu) {
                // There may be such a CPU one day.
                Err(e) if e.errno() == Some(libc::ENODEV) => continue,
                ring => ring.context(|| format!("open a ring for what eBPF programs tell on CPU {cpu}"))?,
            };
            map.put(&cpu.to_ne_bytes(), &(ring.fd.as_raw_fd() as u32).to_ne_bytes())?;
            rings.push(ring);
        }
        Ok(Rings(rings))
    }

    /// Waits until there is something to read, but no longer than this.
    pub fn wait(&self, patience: Duration) {
        let poll = |ring: &Ring| libc::pollfd { fd: ring.fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let mut fds: Vec<libc::pollfd> = self.0.iter().map(poll).collect();
        let patience = patience.as_millis().min(i32::MAX as u128) as i32;
        // SAFETY: the kernel reads and writes as many elements as there are.
        unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, patience) };
    }

    /// Gives everything that was told to the closure, CPU by CPU; how many there was no room for.
    pub fn read(&mut self, see: &mut dyn FnMut(&[u8])) -> u64 {
        self.0.iter_mut().map(|ring| ring.read(see)).sum()
    }
}

impl Ring {
    fn open(cpu: u32) -> Result<Ring, Error> {
        let attr = Attr {
            kind: SOFTWARE,
            size: size_of::<Attr>() as u32,
            config: BPF_OUTPUT,
            sample_period: 1,
            sample_type: SAMPLE_RAW,
            wakeup_events: 1,
            ..Attr::default()
        };
        let (any, nobody) = (-1, -1);
        // SAFETY: the kernel reads `size` bytes of `attr`.
        let fd = unsafe {
            libc::syscall(libc::SYS_perf_event_open, &raw const attr, any, cpu, nobody, PERF_FLAG_FD_CLOEXEC)
        };
        if fd < 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        // SAFETY: the kernel has just given us this descriptor, and nobody else knows it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        // SAFETY: it takes nothing and gives nothing.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
        let mapped = page + ROOM;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a mapping at an address of the kernel's choice, which we take away when we drop it.
        let page = unsafe { libc::mmap(std::ptr::null_mut(), mapped, access, libc::MAP_SHARED, fd.as_raw_fd(), 0) };
        if page == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error().into());
        }
        let ring = Ring { fd, page: page.cast(), mapped };
        // SAFETY: it takes nothing.
        match unsafe { libc::ioctl(ring.fd.as_fd().as_raw_fd(), ENABLE as _, 0) } {
            0 => Ok(ring),
            _ => Err(std::io::Error::last_os_error().into()),
        }
    }

    fn place(&self, at: usize) -> &AtomicU64 {
        // SAFETY: both places are within the first page, aligned to eight, and written as a whole by the kernel.
        unsafe { &*self.page.add(at).cast::<AtomicU64>() }
    }

    /// Bytes of the ring from there on, which may go over its end.
    fn copy(&self, from: u64, to: &mut [u8]) {
        let data = self.mapped - ROOM;
        for (n, byte) in to.iter_mut().enumerate() {
            let at = (from as usize + n) & (ROOM - 1);
            // SAFETY: within the mapping; the kernel writes nothing between tail and head.
            *byte = unsafe { self.page.add(data + at).read_volatile() };
        }
    }

    fn read(&mut self, see: &mut dyn FnMut(&[u8])) -> u64 {
        let (head, tail) = (self.place(HEAD).load(Ordering::Acquire), self.place(TAIL).load(Ordering::Relaxed));
        let lost = records(|from, to| self.copy(from, to), tail, head, see);
        self.place(TAIL).store(head, Ordering::Release);
        lost
    }
}

/// Gives the data of each record between tail and head to the closure; how many the kernel says it had no room for. `copy` reads the
/// ring from a place on.
fn records(copy: impl Fn(u64, &mut [u8]), mut tail: u64, head: u64, see: &mut dyn FnMut(&[u8])) -> u64 {
    let (mut record, mut lost) = (Vec::new(), 0_u64);
    while tail < head {
        // struct perf_event_header: kind, two bytes of no interest, length.
        let mut header = [0; HEADER];
        copy(tail, &mut header);
        let word = |bytes: &[u8]| bytes.try_into().map_or(0, u32::from_ne_bytes);
        let kind = word(&header[..4]);
        let len = u16::from_ne_bytes([header[6], header[7]]);
        // One that is shorter than its own header, or goes on where nothing was written yet, is none.
        if usize::from(len) < HEADER || u64::from(len) > head - tail {
            break;
        }
        record.resize(usize::from(len) - HEADER, 0);
        copy(tail + HEADER as u64, &mut record);
        match kind {
            RECORD_SAMPLE if record.len() >= 4 => {
                let end = (4 + word(&record[..4]) as usize).min(record.len());
                see(&record[4..end]);
            }
            RECORD_LOST if record.len() >= 16 => {
                lost = lost.saturating_add(record[8..16].try_into().map_or(0, u64::from_ne_bytes));
            }
            _ => {}
        }
        tail += u64::from(len);
    }
    lost
}

/// The same of a ring that holds these bytes from this place on, over and over: no more is given than lies there.
#[cfg(any(test, fuzzing))]
pub fn heard(bytes: &[u8], tail: u64, see: &mut dyn FnMut(&[u8])) -> u64 {
    let head = tail + bytes.len() as u64;
    let mut given = 0;
    let copy = |from: u64, to: &mut [u8]| {
        let from = (from - tail) as usize;
        to.iter_mut().enumerate().for_each(|(n, byte)| *byte = bytes[(from + n) % bytes.len()]);
    };
    let mut counted = |data: &[u8]| {
        given += data.len();
        see(data);
    };
    let lost = records(copy, tail, head, &mut counted);
    assert!(given <= bytes.len(), "{given} bytes out of {}", bytes.len());
    lost
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: nobody has a reference into the mapping any more.
        unsafe { libc::munmap(self.page.cast(), self.mapped) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: u32, len: u16, body: &[u8]) -> Vec<u8> {
        [&kind.to_ne_bytes()[..], &[0; 2], &len.to_ne_bytes(), body].concat()
    }

    fn sample(data: &[u8], claimed: u32) -> Vec<u8> {
        let body = [&claimed.to_ne_bytes(), data].concat();
        record(RECORD_SAMPLE, (HEADER + body.len()) as u16, &body)
    }

    fn told(bytes: &[u8], tail: u64) -> (Vec<Vec<u8>>, u64) {
        let mut seen = Vec::new();
        let lost = heard(bytes, tail, &mut |data| seen.push(data.to_vec()));
        (seen, lost)
    }

    #[test]
    fn records_follow_one_another_and_what_was_lost_is_counted() {
        let lost = |n: u64| record(RECORD_LOST, 24, &[0_u64.to_ne_bytes(), n.to_ne_bytes()].concat());
        let all = [sample(b"one", 3), lost(7), record(99, 12, &[0; 4]), sample(b"two", 3), lost(u64::MAX)].concat();
        assert_eq!(told(&all, 1 << 40), (vec![b"one".to_vec(), b"two".to_vec()], u64::MAX));
        assert_eq!(told(&all[..11 + 4 + 24], 0), (vec![b"one".to_vec()], 7));
    }

    #[test]
    fn a_record_that_cannot_be_ends_the_reading_and_nothing_beyond_it_is_given() {
        // Its data claims more than the record has; the record's own end counts.
        assert_eq!(told(&sample(b"one", u32::MAX), 3).0, [b"one".to_vec()]);
        let good = sample(b"one", 3);
        for bad in [record(RECORD_SAMPLE, 7, &[0; 16]), record(RECORD_SAMPLE, u16::MAX, &[1; 16]), vec![0; 8]] {
            assert_eq!(told(&[good.clone(), bad, good.clone()].concat(), 0).0, [b"one".to_vec()]);
        }
    }
}
