//! The memory that a plugin takes: its life is a millisecond, so it cuts from one piece and gives nothing back.
//!
//! The libc's allocator asks the kernel for pages some forty times in one ADD and gives half of them back, which is a tenth
//! of the plugin's time. A daemon has used the piece up at its start and goes on with the libc's allocator.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicUsize, Ordering};

const SIZE: usize = 384 << 10;
/// The buffer of a netlink socket still fits. What is larger is rare, and the kernel's business.
const LARGE: usize = 64 << 10;

#[repr(align(4096))]
pub struct Memory {
    piece: UnsafeCell<[u8; SIZE]>,
    used: AtomicUsize,
    /// Nobody has had the bytes from here on: they are zero, and no page stands behind them yet.
    fresh: AtomicUsize,
}

// SAFETY: every byte of the piece is handed out once, by the atomic `used`; nobody looks at it in here.
unsafe impl Sync for Memory {}

impl Memory {
    #[expect(clippy::new_without_default)]
    pub const fn new() -> Memory {
        Memory { piece: UnsafeCell::new([0; SIZE]), used: AtomicUsize::new(0), fresh: AtomicUsize::new(0) }
    }

    /// The next bytes of the piece, if there are so many, and how many of them somebody may have written to.
    fn cut(&self, layout: Layout) -> Option<(*mut u8, usize)> {
        if layout.size() > LARGE || layout.align() > 4096 {
            return None;
        }
        let mut start = 0;
        let cut = |used: usize| {
            start = used.next_multiple_of(layout.align());
            Some(start + layout.size()).filter(|end| *end <= SIZE)
        };
        self.used.fetch_update(Ordering::AcqRel, Ordering::Relaxed, cut).ok()?;
        let fresh = self.fresh.fetch_max(start + layout.size(), Ordering::AcqRel);
        // SAFETY: `start` is within the piece.
        let bytes = unsafe { self.piece.get().cast::<u8>().add(start) };
        Some((bytes, fresh.saturating_sub(start).min(layout.size())))
    }

    fn has(&self, bytes: *mut u8) -> bool {
        let start = self.piece.get() as usize;
        (start..start + SIZE).contains(&(bytes as usize))
    }

    /// Makes the bytes that were cut last longer, or shorter, where they are.
    fn stretch(&self, bytes: *mut u8, old: usize, new: usize) -> bool {
        let start = bytes as usize - self.piece.get() as usize;
        if start + new > SIZE {
            return false;
        }
        // Before the bytes can be anybody's: that some are called written to which are not does no harm.
        self.fresh.fetch_max(start + new, Ordering::AcqRel);
        self.used.compare_exchange(start + old, start + new, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

// SAFETY: what `cut` hands out is aligned, within the piece, and of nobody else until it is given back; all the rest is the
// system's.
unsafe impl GlobalAlloc for Memory {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are the system's conditions.
        self.cut(layout).map_or_else(|| unsafe { System.alloc(layout) }, |(bytes, _)| bytes)
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match self.cut(layout) {
            Some((bytes, written)) => {
                // SAFETY: so many bytes are ours, and those beyond are zero from the start.
                unsafe { bytes.write_bytes(0, written) };
                bytes
            }
            // SAFETY: as above.
            None => unsafe { System.alloc_zeroed(layout) },
        }
    }

    unsafe fn dealloc(&self, bytes: *mut u8, layout: Layout) {
        if self.has(bytes) {
            self.stretch(bytes, layout.size(), 0);
        } else {
            // SAFETY: it is not from the piece, so it is the system's.
            unsafe { System.dealloc(bytes, layout) }
        }
    }

    unsafe fn realloc(&self, bytes: *mut u8, layout: Layout, new: usize) -> *mut u8 {
        if !self.has(bytes) {
            // SAFETY: it is not from the piece, so it is the system's.
            return unsafe { System.realloc(bytes, layout, new) };
        }
        if self.stretch(bytes, layout.size(), new) {
            return bytes;
        }
        // SAFETY: `new` is above zero and does not overflow when rounded up, by the caller's promise.
        let moved = unsafe { self.alloc(Layout::from_size_align_unchecked(new, layout.align())) };
        if !moved.is_null() {
            // SAFETY: both are at least so long, and they do not overlap: the old bytes have not been given back.
            unsafe { moved.copy_from_nonoverlapping(bytes, layout.size().min(new)) };
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static MEMORY: Memory = Memory::new();

    #[test]
    fn what_is_asked_for_zeroed_is_zero_though_it_was_written_to_before() {
        let layout = Layout::from_size_align(100, 8).unwrap();
        let longer = Layout::from_size_align(300, 8).unwrap();
        for _ in 0..3 {
            // SAFETY: the layouts are not empty, and each piece goes back with the layout that it has by then.
            unsafe {
                let bytes = MEMORY.alloc(layout);
                let bytes = MEMORY.realloc(bytes, layout, 200);
                bytes.write_bytes(0xff, 200);
                MEMORY.dealloc(bytes, Layout::from_size_align(200, 8).unwrap());
                let zeroed = MEMORY.alloc_zeroed(longer);
                assert_eq!(zeroed, bytes, "the last piece is given out again");
                assert!(std::slice::from_raw_parts(zeroed, 300).iter().all(|b| *b == 0));
                zeroed.write_bytes(0xff, 300);
                MEMORY.dealloc(zeroed, longer);
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_the_systems() {
        let layout = Layout::from_size_align(LARGE + 1, 8).unwrap();
        // SAFETY: as above.
        unsafe {
            let bytes = MEMORY.alloc_zeroed(layout);
            assert!(!MEMORY.has(bytes) && std::slice::from_raw_parts(bytes, LARGE + 1).iter().all(|b| *b == 0));
            MEMORY.dealloc(bytes, layout);
        }
    }
}
