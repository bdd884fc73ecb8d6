//! The memory that a plugin takes: its life is a millisecond, so it cuts from one piece and gives nothing back.
//!
//! The libc's allocator asks the kernel for pages some forty times in one ADD and gives half of them back, which is a tenth
//! of the plugin's time. A daemon has used the piece up at its start and goes on with the libc's allocator.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicUsize, Ordering};

const SIZE: usize = 192 << 10;
/// What is larger is rare, and the kernel's business.
const LARGE: usize = 16 << 10;

#[repr(align(4096))]
pub struct Memory {
    piece: UnsafeCell<[u8; SIZE]>,
    used: AtomicUsize,
}

// SAFETY: every byte of the piece is handed out once, by the atomic `used`; nobody looks at it in here.
unsafe impl Sync for Memory {}

impl Memory {
    #[expect(clippy::new_without_default)]
    pub const fn new() -> Memory {
        Memory { piece: UnsafeCell::new([0; SIZE]), used: AtomicUsize::new(0) }
    }

    /// The next bytes of the piece, if there are so many.
    fn cut(&self, layout: Layout) -> Option<*mut u8> {
        if layout.size() > LARGE || layout.align() > 4096 {
            return None;
        }
        let mut start = 0;
        let cut = |used: usize| {
            start = used.next_multiple_of(layout.align());
            Some(start + layout.size()).filter(|end| *end <= SIZE)
        };
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, cut).ok()?;
        // SAFETY: `start` is within the piece.
        Some(unsafe { self.piece.get().cast::<u8>().add(start) })
    }

    fn has(&self, bytes: *mut u8) -> bool {
        let start = self.piece.get() as usize;
        (start..start + SIZE).contains(&(bytes as usize))
    }

    /// Makes the bytes that were cut last longer, or shorter, where they are.
    fn stretch(&self, bytes: *mut u8, old: usize, new: usize) -> bool {
        let start = bytes as usize - self.piece.get() as usize;
        let fits = start + new <= SIZE;
        fits && self.used.compare_exchange(start + old, start + new, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

// SAFETY: what `cut` hands out is aligned, within the piece, and of nobody else until it is given back; all the rest is the
// system's.
unsafe impl GlobalAlloc for Memory {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are the system's conditions.
        self.cut(layout).unwrap_or_else(|| unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match self.cut(layout) {
            Some(bytes) => {
                // SAFETY: so many bytes are ours; they may have been stretched over and given back.
                unsafe { bytes.write_bytes(0, layout.size()) };
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
