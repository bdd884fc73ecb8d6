//! What the one thread that awaits sleeps in: poll(2), until a descriptor is ready, it is time, or another thread has news.
//!
//! async-io has a thread of its own for that: two changes of thread and ten system calls for each thing that happens.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

thread_local! {
    static REACTOR: RefCell<Reactor> = RefCell::default();
}

/// Who waits for what on this thread.
#[derive(Default)]
struct Reactor {
    last: u64,
    timers: BTreeMap<(Instant, u64), Waker>,
    waits: BTreeMap<u64, Wait>,
}

struct Wait {
    io: Rc<dyn AsFd>,
    flags: PollFlags,
    waker: Waker,
    ready: bool,
}

impl Reactor {
    fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    fn until_next(&self) -> Option<Duration> {
        self.timers.first_key_value().map(|((due, _), _)| due.saturating_duration_since(Instant::now()))
    }

    fn due(&mut self) -> Vec<Waker> {
        let later = self.timers.split_off(&(Instant::now(), u64::MAX));
        std::mem::replace(&mut self.timers, later).into_values().collect()
    }
}

/// While there is something to do, descriptors are looked at in one of so many rounds.
const ROUNDS: u32 = 4;

/// Runs the future, and whatever it awaits, on this thread.
pub fn block_on<T>(future: impl Future<Output = T>) -> io::Result<T> {
    let sleep = Arc::new(Sleep::new()?);
    let waker = Waker::from(Arc::clone(&sleep));
    let mut future = pin!(future);
    let mut rounds = 0_u32;
    loop {
        sleep.state.store(AWAKE, Ordering::SeqCst);
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Ok(value);
        }
        rounds += 1;
        if sleep.state.load(Ordering::SeqCst) == AWAKE || rounds.is_multiple_of(ROUNDS) {
            wait(&sleep)?;
        }
    }
}

/// Sleeps, and wakes whoever has waited for what ended the sleep. Nobody's code runs while the reactor is borrowed.
fn wait(sleep: &Sleep) -> io::Result<()> {
    let asleep = sleep.state.compare_exchange(AWAKE, ASLEEP, Ordering::SeqCst, Ordering::SeqCst).is_ok();
    let (keys, ios, until) = REACTOR.with_borrow(|r| {
        let waits = r.waits.iter().filter(|(_, wait)| !wait.ready);
        let (keys, ios): (Vec<u64>, Vec<_>) =
            waits.map(|(key, wait)| (*key, (Rc::clone(&wait.io), wait.flags))).unzip();
        (keys, ios, if asleep { r.until_next() } else { Some(Duration::ZERO) })
    });
    let mut fds = vec![PollFd::new(&sleep.news, PollFlags::IN)];
    fds.extend(ios.iter().map(|(io, flags)| PollFd::new(io, *flags)));
    let until = until.map(|time| Timespec::try_from(time).expect("a pause, not an age"));
    match poll(&mut fds, until.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(e) => return Err(e.into()),
    }
    let woken = sleep.state.swap(AWAKE, Ordering::SeqCst);
    if asleep && woken == NEWS || !fds[0].revents().is_empty() {
        // What whoever woke us has not written yet ends the next sleep early, and is read then: it must not end all of them.
        let _ = rustix::io::read(&sleep.news, &mut [0; 8]);
    }
    let ready: Vec<u64> =
        keys.iter().zip(&fds[1..]).filter(|(_, fd)| !fd.revents().is_empty()).map(|(key, _)| *key).collect();
    let wakers = REACTOR.with_borrow_mut(|r| {
        let mut wakers = r.due();
        for key in ready {
            if let Some(wait) = r.waits.get_mut(&key) {
                wait.ready = true;
                wakers.push(wait.waker.clone());
            }
        }
        wakers
    });
    wakers.into_iter().for_each(Waker::wake);
    Ok(())
}

const AWAKE: u8 = 0;
const ASLEEP: u8 = 1;
/// There is something to do, and if we slept, the descriptor says so.
const NEWS: u8 = 2;

/// How other threads end our sleep, and we keep ourselves from falling asleep.
struct Sleep {
    state: AtomicU8,
    news: OwnedFd,
}

impl Sleep {
    fn new() -> io::Result<Sleep> {
        let news = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Sleep { state: AtomicU8::new(AWAKE), news })
    }
}

impl Wake for Sleep {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.swap(NEWS, Ordering::SeqCst) == ASLEEP {
            let _ = rustix::io::write(&self.news, &1_u64.to_ne_bytes());
        }
    }
}

/// Ends at a point in time.
pub struct Timer {
    key: (Instant, u64),
}

impl Timer {
    pub fn after(time: Duration) -> Timer {
        Timer { key: (Instant::now() + time, REACTOR.with_borrow_mut(Reactor::number)) }
    }
}

impl Future for Timer {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context) -> Poll<()> {
        if Instant::now() >= self.key.0 {
            return Poll::Ready(());
        }
        REACTOR.with_borrow_mut(|r| r.timers.insert(self.key, context.waker().clone()));
        Poll::Pending
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        let _waker = REACTOR.with_borrow_mut(|r| r.timers.remove(&self.key));
    }
}

/// A descriptor that is never waited for but here.
pub struct Async<T> {
    io: Rc<T>,
}

impl<T: AsFd + 'static> Async<T> {
    pub fn new(io: T) -> io::Result<Async<T>> {
        rustix::io::ioctl_fionbio(&io, true)?;
        Ok(Async { io: Rc::new(io) })
    }

    pub fn get_ref(&self) -> &T {
        &self.io
    }

    pub async fn readable(&self) {
        self.ready(PollFlags::IN).await;
    }

    /// What `read` reads once there is something to read.
    pub async fn read_with<R>(&self, mut read: impl FnMut(&T) -> io::Result<R>) -> io::Result<R> {
        loop {
            self.readable().await;
            match read(&self.io) {
                Err(e) if is_early(&e) => {}
                result => return result,
            }
        }
    }

    /// What comes of `write`, which is tried at once.
    pub async fn write_with<R>(&self, mut write: impl FnMut(&T) -> io::Result<R>) -> io::Result<R> {
        loop {
            match write(&self.io) {
                Err(e) if is_early(&e) => self.ready(PollFlags::OUT).await,
                result => return result,
            }
        }
    }

    async fn ready(&self, flags: PollFlags) {
        let mut ticket = None;
        poll_fn(|context| {
            let ticket = ticket.get_or_insert_with(|| Ticket::new(self.io.clone(), flags, context.waker()));
            ticket.poll(context)
        })
        .await;
    }
}

fn is_early(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// A place among those who wait for a descriptor.
struct Ticket(u64);

impl Ticket {
    fn new(io: Rc<dyn AsFd>, flags: PollFlags, waker: &Waker) -> Ticket {
        REACTOR.with_borrow_mut(|r| {
            let key = r.number();
            r.waits.insert(key, Wait { io, flags, waker: waker.clone(), ready: false });
            Ticket(key)
        })
    }

    fn poll(&self, context: &Context) -> Poll<()> {
        REACTOR.with_borrow_mut(|r| match r.waits.get_mut(&self.0) {
            Some(wait) if !wait.ready => {
                wait.waker.clone_from(context.waker());
                Poll::Pending
            }
            _ => Poll::Ready(()),
        })
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let _wait = REACTOR.with_borrow_mut(|r| r.waits.remove(&self.0));
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::thread;

    use smol::channel::bounded;
    use smol::{LocalExecutor, future};

    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn timers_end_in_their_order_and_those_given_up_leave_nothing() {
        let order = RefCell::new(Vec::new());
        let after = async |ms| {
            Timer::after(MS(ms)).await;
            order.borrow_mut().push(ms);
        };
        block_on(async {
            let all = async {
                future::zip(after(0), future::zip(after(10), after(20))).await;
            };
            future::or(after(10_000), all).await;
        })
        .unwrap();
        assert_eq!(*order.borrow(), [0, 10, 20]);
        REACTOR.with_borrow(|r| assert!(r.timers.is_empty() && r.waits.is_empty()));
    }

    #[test]
    fn news_that_are_written_after_we_woke_end_one_sleep_and_no_more() {
        let sleep = Sleep::new().unwrap();
        // As by a thread that was stopped between its word and its deed, while something else woke us.
        rustix::io::write(&sleep.news, &1_u64.to_ne_bytes()).unwrap();
        let (mut timer, mut sleeps) = (pin!(Timer::after(MS(50))), 0);
        let mut context = Context::from_waker(Waker::noop());
        while timer.as_mut().poll(&mut context).is_pending() {
            wait(&sleep).unwrap();
            sleeps += 1;
        }
        assert!(sleeps <= 3, "{sleeps} sleeps");
    }

    #[test]
    fn a_descriptor_wakes_who_waits_for_it() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let ours = Async::new(ours).unwrap();
        let peer = thread::spawn(move || {
            theirs.write_all(b"a").unwrap();
            let mut all = Vec::new();
            thread::sleep(MS(20));
            theirs.read_to_end(&mut all).unwrap();
            all.len()
        });
        let written = block_on(async {
            let mut byte = [0];
            assert_eq!(ours.read_with(|mut s| s.read(&mut byte)).await.unwrap(), 1);
            // More than the kernel keeps: we wait until the peer reads.
            let mut left = 1 << 20;
            while left > 0 {
                left -= ours.write_with(|mut s| s.write(&vec![0; left])).await.unwrap();
            }
            drop(ours);
            1 << 20
        });
        assert_eq!(peer.join().unwrap(), written.unwrap());
        REACTOR.with_borrow(|r| assert!(r.waits.is_empty()));
    }

    #[test]
    fn another_thread_ends_the_sleep_and_tasks_take_turns() {
        let executor = LocalExecutor::new();
        let (sender, receiver) = bounded(1);
        let peer = thread::spawn(move || {
            for n in 0..200 {
                if n % 50 == 0 {
                    thread::sleep(MS(5));
                }
                sender.send_blocking(n).unwrap();
            }
        });
        let sum = executor.spawn(async move {
            let mut sum = 0;
            while let Ok(n) = receiver.recv().await {
                sum += n;
            }
            sum
        });
        // One who never waits does not keep the others from it.
        executor
            .spawn(async {
                loop {
                    future::yield_now().await
                }
            })
            .detach();
        let late = async {
            Timer::after(MS(10_000)).await;
            0
        };
        assert_eq!(block_on(executor.run(future::or(sum, late))).unwrap(), 199 * 100);
        peer.join().unwrap();
    }
}
