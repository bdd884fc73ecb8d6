//! Threads for what blocks. What finds no thread (the machine, the unit or the cgroup may allow no more) waits for one; all else goes on.

use std::io;
use std::sync::OnceLock;
use std::sync::mpsc::sync_channel;
use std::thread::Builder;
use std::time::Duration;

use smol::channel::{Receiver, Sender, unbounded};

use super::reactor::Timer;

type Job = Box<dyn FnOnce() + Send>;

/// A thread is tried again this often.
const AGAIN: Duration = Duration::from_millis(500);

/// Where jobs go that wait.
static LATE: OnceLock<Sender<Job>> = OnceLock::new();

/// Runs the job on a thread of its own, which ends with it.
pub fn start(job: impl FnOnce() + Send + 'static) {
    let Err((job, e)) = begin(Builder::new(), Box::new(job)) else { return };
    log::warn!(
        "no thread is to be had: {e}; what wants one waits, for less else on this machine or for a greater TasksMax, pids.max or \
         kernel.threads-max"
    );
    match LATE.get().map(|late| late.try_send(job)) {
        Some(Ok(())) => {}
        Some(Err(e)) => e.into_inner()(),
        None => log::error!("nobody waits for a thread"),
    }
}

/// The jobs that wait, for [`attend`].
pub fn late() -> Receiver<Job> {
    let (late, waiting) = unbounded();
    let _ = LATE.set(late);
    waiting
}

/// Gives a thread to each job that waits, in their order.
pub async fn attend(waiting: Receiver<Job>) {
    while let Ok(mut job) = waiting.recv().await {
        while let Err((refused, _)) = begin(Builder::new(), job) {
            job = refused;
            Timer::after(AGAIN).await;
        }
        log::info!("a thread is to be had again; {} more wait for one", waiting.len());
    }
}

/// A thread that is refused takes what it was given along: it gets the job once it is there.
fn begin(builder: Builder, job: Job) -> Result<(), (Job, io::Error)> {
    let (give, take) = sync_channel::<Job>(1);
    let run = move || take.recv().into_iter().for_each(|job| job());
    match builder.spawn(run) {
        Ok(_) => give.send(job).map_err(|e| (e.0, io::ErrorKind::Other.into())),
        Err(e) => Err((job, e)),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use smol::future;

    use super::*;
    use crate::daemon::reactor::block_on;

    #[test]
    fn a_job_without_a_thread_is_not_lost() {
        let (done, ended) = channel();
        let job = |n: u32| {
            let done = done.clone();
            Box::new(move || done.send(n).unwrap()) as Job
        };
        // No machine has room for such a stack.
        let Err((first, e)) = begin(Builder::new().stack_size(1 << 46), job(1)) else { panic!("a thread was begun") };
        assert_eq!(e.raw_os_error(), Some(libc::EAGAIN));
        let (late, waiting) = unbounded();
        for job in [first, job(2)] {
            late.try_send(job).unwrap();
        }
        block_on(future::or(attend(waiting), Timer::after(Duration::from_millis(50)))).unwrap();
        let mut all: Vec<u32> = (0..2).map(|_| ended.recv().unwrap()).collect();
        all.sort_unstable();
        assert_eq!(all, [1, 2]);
    }
}
