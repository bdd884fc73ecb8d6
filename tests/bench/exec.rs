//! A program as a runtime executes it, with the time and the CPU that it took; and the CPU that a daemon has used.

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What one call cost.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// From exec to exit.
    pub took: Duration,
    /// User and system time of the program and those it waited for.
    pub cpu: Duration,
}

/// Runs the program on this thread, in whose namespaces it lives; it must succeed.
pub fn run(command: &mut Command, stdin: &str) -> Cost {
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut heard = Vec::with_capacity(4096);
    let start = Instant::now();
    #[expect(clippy::zombie_processes, reason = "wait4 does, for the CPU time that wait does not tell")]
    let mut child = command.spawn().unwrap_or_else(|e| panic!("start {command:?}: {e}"));
    // VERSION needs no input, and may be over before it could have read any.
    let _ = child.stdin.take().expect("it is piped").write_all(stdin.as_bytes());
    child.stdout.take().expect("it is piped").read_to_end(&mut heard).expect("a pipe can be read");
    let (status, cpu) = wait(child.id());
    let took = start.elapsed();
    assert_eq!(status, 0, "{command:?}: wait status {status:#x}: {}", String::from_utf8_lossy(&heard));
    Cost { took, cpu }
}

/// The same on a thread that is there for this alone and holds no descriptor: from here on it has but the three of a program. What
/// the world of a bench holds open (a namespace for each of two thousand pods) each start of a program would copy and each exec would
/// close, in the program's time.
pub fn alone(command: &mut Command, stdin: &str) -> Cost {
    // SAFETY: the thread gets a table of its own, in which there is nothing that it owns; the other threads keep theirs.
    let failed = unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_UNSHARE as libc::c_int) };
    assert_eq!(failed, 0, "close_range: {}", std::io::Error::last_os_error());
    run(command, stdin)
}

fn wait(pid: u32) -> (libc::c_int, Duration) {
    let mut status = 0;
    // SAFETY: `rusage` is plain numbers, for which zero is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one `int` and one `rusage`, both of which are ours and outlive the call.
    let waited = unsafe { libc::wait4(pid as libc::pid_t, &raw mut status, 0, &raw mut usage) };
    assert_eq!(waited, pid as libc::pid_t, "wait for {pid}: {}", std::io::Error::last_os_error());
    let time = |t: libc::timeval| Duration::new(t.tv_sec as u64, t.tv_usec as u32 * 1000);
    (status, time(usage.ru_utime) + time(usage.ru_stime))
}

/// The CPU time that all threads of a process have used so far, to the nanosecond.
pub fn cpu_of(pid: u32) -> Duration {
    let (mut clock, mut time) = (0, libc::timespec { tv_sec: 0, tv_nsec: 0 });
    // SAFETY: each call writes one value of the type of its last argument, which is ours and outlives the call.
    let failed = unsafe {
        libc::clock_getcpuclockid(pid as libc::pid_t, &raw mut clock) != 0
            || libc::clock_gettime(clock, &raw mut time) != 0
    };
    assert!(!failed, "no CPU clock of process {pid}");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
