//! Stands between the terminal and the demo: a Ctrl-C must not end the programs at work in it, or nobody could clean up.
//!
//! The outer process keeps the terminal; the inner one is in a process group of its own and is told by a pipe what the
//! person wants. When the outer one dies, the pipe ends, which means the same as Ctrl-C.

use std::io::{BufRead, IsTerminal, Write};
use std::os::unix::process::CommandExt;
use std::process::{ChildStdin, Command, ExitCode, Stdio};
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::process::Signal;
use terway::kernel::Signals;

/// Says to the program that it is the inner one.
pub const INSIDE: &str = "--inside";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    /// Enter was pressed.
    GoOn,
    /// Ctrl-C, or a signal of the like.
    Stop,
}

/// Runs this program once more as the inner one, and passes on what the person says.
pub fn pass_on(args: &[&str]) -> ExitCode {
    let signals =
        Signals::open(&[Signal::INT, Signal::TERM, Signal::HUP].map(Signal::as_raw)).expect("signals can be caught");
    let own = std::env::current_exe().expect("we know where we are");
    let mut inner = Command::new(own);
    inner.arg(INSIDE).args(args).stdin(Stdio::piped()).process_group(0);
    let mut inner = inner.spawn().expect("start ourselves");
    let pipe = Arc::new(Mutex::new(inner.stdin.take().expect("it is piped")));
    thread::spawn({
        let pipe = Arc::clone(&pipe);
        move || pass_signals(signals, &pipe)
    });
    if std::io::stdin().is_terminal() {
        thread::spawn(move || pass_enter(&pipe));
    } else {
        // The signals' thread holds the other end until we end.
        drop(pipe);
    }
    let status = inner.wait().expect("it is our child");
    // A signal that ended it is a failure like any other.
    ExitCode::from(status.code().map_or(1, |code| code as u8))
}

fn pass_signals(signals: Signals, pipe: &Mutex<ChildStdin>) {
    while signals.next().is_ok() {
        say(pipe, Order::Stop);
    }
}

fn pass_enter(pipe: &Mutex<ChildStdin>) {
    for line in std::io::stdin().lock().lines() {
        if line.is_err() {
            return;
        }
        say(pipe, Order::GoOn);
    }
}

fn say(pipe: &Mutex<ChildStdin>, order: Order) {
    let word = if order == Order::Stop { "stop" } else { "go on" };
    // It may have come to its end by itself.
    let _ = writeln!(pipe.lock().expect("nobody panicked with it"), "{word}");
}

/// The inner process's end.
pub struct Orders(Receiver<Order>);

impl Orders {
    pub fn new() -> Orders {
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            for line in std::io::stdin().lock().lines().map_while(Result::ok) {
                let order = if line == "stop" { Order::Stop } else { Order::GoOn };
                if tell.send(order).is_err() {
                    return;
                }
            }
        });
        Orders(told)
    }

    /// Where nobody can say anything.
    pub fn none() -> Orders {
        let (tell, told) = mpsc::channel();
        std::mem::forget(tell);
        Orders(told)
    }

    /// Whether all is to end now.
    pub fn interrupted(&self) -> bool {
        loop {
            match self.0.try_recv() {
                Ok(Order::GoOn) => {}
                Ok(Order::Stop) | Err(TryRecvError::Disconnected) => return true,
                Err(TryRecvError::Empty) => return false,
            }
        }
    }

    /// Waits for the person to say anything.
    pub fn wait(&self) {
        let _ = self.0.recv();
    }
}
