//! Two things that block, at once; one after the other where the system has no thread left.

use std::thread::{self, Builder};

/// `aside` on a thread of its own, `here` on this one.
pub fn both<A: Send, B>(aside: impl Fn() -> A + Sync, here: impl FnOnce() -> B) -> (A, B) {
    beside(Builder::new(), aside, here)
}

fn beside<A: Send, B>(builder: Builder, aside: impl Fn() -> A + Sync, here: impl FnOnce() -> B) -> (A, B) {
    thread::scope(|scope| match builder.spawn_scoped(scope, &aside) {
        Ok(thread) => {
            let here = here();
            (thread.join().expect("a panic ends the process"), here)
        }
        Err(_) => {
            let here = here();
            (aside(), here)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_are_done_with_a_thread_and_without() {
        // No machine has room for such a stack.
        for stack in [1 << 16, 1 << 46] {
            let here = thread::current().id();
            let (aside, answer) = beside(Builder::new().stack_size(stack), || thread::current().id(), || 42);
            assert_eq!((aside == here, answer), (stack > 1 << 16, 42));
        }
    }
}
