//! One map: its elements as bytes, one by one or many at once.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::sys;
pub use super::sys::Shape;
use crate::error::{Context, Error};

/// Types of maps whose values the kernel keeps once for each CPU.
const PER_CPU: &[u32] = &[5, 6, 10];
/// How many elements are read or written at once.
const BATCH: usize = 4096;

/// An open map.
#[derive(Debug)]
pub struct Map {
    name: String,
    shape: Shape,
    fd: OwnedFd,
}

impl Map {
    /// A new map, which goes when nobody has it open, pinned or in use.
    pub fn create(name: &str, shape: &Shape) -> Result<Map, Error> {
        let fd = sys::create_map(name, shape).context(|| format!("create eBPF map {name}"))?;
        Ok(Map { name: name.into(), shape: *shape, fd })
    }

    /// One that is already there.
    pub(super) fn of(name: &str, fd: OwnedFd) -> Result<Map, Error> {
        let shape = sys::map_shape(fd.as_fd()).context(|| format!("look at eBPF map {name}"))?;
        Ok(Map { name: name.into(), shape, fd })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The value of this key.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        self.check(key.len(), self.shape.value as usize)?;
        let mut value = vec![0; self.value_len()?];
        let found = sys::lookup(self.as_fd(), key, &mut value).context(|| format!("read eBPF map {}", self.name))?;
        Ok(found.then_some(value))
    }

    /// Makes this the value of the key.
    pub fn put(&self, key: &[u8], value: &[u8]) -> Result<(), Error> {
        self.check(key.len(), value.len())?;
        sys::update(self.as_fd(), key, value).map_err(|e| self.unwritten(e))
    }

    /// Whether there was such a key.
    pub fn remove(&self, key: &[u8]) -> Result<bool, Error> {
        self.check(key.len(), self.shape.value as usize)?;
        sys::delete(self.as_fd(), key).context(|| format!("delete from eBPF map {}", self.name))
    }

    /// Writes many elements that stand one behind the other; one by one where the kernel (before 5.6) cannot. Beside the error, how many
    /// were written before it.
    pub fn put_all(&self, keys: &[u8], values: &[u8]) -> Result<(), (usize, Error)> {
        let (key, value) = (self.shape.key as usize, self.shape.value as usize);
        let count = keys.len() / key;
        let fits = keys.len() == count * key && values.len() == count * value;
        fits.then_some(()).ok_or_else(|| (0, self.misshapen(keys.len(), values.len())))?;
        let mut done = 0;
        while done < count && count > 1 {
            let some = (count - done).min(BATCH);
            let (keys, values) = (&keys[done * key..][..some * key], &values[done * value..][..some * value]);
            match sys::update_batch(self.as_fd(), keys, values, some as u32) {
                Ok(()) => done += some,
                Err((0, e)) if lacks_batches(&e) => break,
                Err((written, e)) => return Err((done + written as usize, self.unwritten(e))),
            }
        }
        for at in done..count {
            self.put(&keys[at * key..][..key], &values[at * value..][..value]).map_err(|e| (at, e))?;
        }
        Ok(())
    }

    /// Gives every element to the closure: many are read at once where the kernel (5.6) can. Not for maps with a value for each CPU.
    pub fn each(&self, mut f: impl FnMut(&[u8], &[u8])) -> Result<(), Error> {
        self.check(self.shape.key as usize, self.value_len()?)?;
        match self.each_batch(&mut f) {
            Err(e) if lacks_batches(&e) => self.each_single(&mut f),
            result => result,
        }
        .context(|| format!("read eBPF map {}", self.name))
    }

    fn each_batch(&self, f: &mut impl FnMut(&[u8], &[u8])) -> Result<(), Error> {
        let (key, value) = (self.shape.key as usize, self.shape.value as usize);
        // A batch of a hash table must hold a whole bucket of it.
        let (mut keys, mut values) = (vec![0; BATCH * key], vec![0; BATCH * value]);
        let mut place = None;
        loop {
            let (count, more) = sys::lookup_batch(self.as_fd(), &mut place, &mut keys, &mut values, BATCH as u32)?;
            keys.chunks(key).zip(values.chunks(value)).take(count as usize).for_each(|(key, value)| f(key, value));
            if !more {
                return Ok(());
            }
        }
    }

    fn each_single(&self, f: &mut impl FnMut(&[u8], &[u8])) -> Result<(), Error> {
        let (mut key, mut next) = (None::<Vec<u8>>, vec![0; self.shape.key as usize]);
        let mut value = vec![0; self.shape.value as usize];
        while sys::next_key(self.as_fd(), key.as_deref(), &mut next)? {
            if sys::lookup(self.as_fd(), &next, &mut value)? {
                f(&next, &value);
            }
            key.get_or_insert_default().clone_from(&next);
        }
        Ok(())
    }

    /// How long a value is that the kernel hands out.
    fn value_len(&self) -> Result<usize, Error> {
        let value = self.shape.value as usize;
        if PER_CPU.contains(&self.shape.kind) { Ok(value.next_multiple_of(8) * cpus()?) } else { Ok(value) }
    }

    fn check(&self, key: usize, value: usize) -> Result<(), Error> {
        let fits = (key, value) == (self.shape.key as usize, self.shape.value as usize);
        fits.then_some(()).ok_or_else(|| self.misshapen(key, value))
    }

    fn misshapen(&self, key: usize, value: usize) -> Error {
        let Shape { key: k, value: v, .. } = self.shape;
        Error::malformed(format!(
            "eBPF map {} has keys of {k} and values of {v} bytes, not {key} and {value}",
            self.name
        ))
    }

    fn unwritten(&self, e: Error) -> Error {
        let Shape { entries, .. } = self.shape;
        match e.errno() {
            // ENOSPC: of prefixes.
            Some(libc::E2BIG | libc::ENOSPC) => {
                Error::refused(format!("eBPF map {} is full: it holds {entries} entries", self.name))
            }
            _ => e.within(format!("write to eBPF map {}", self.name)),
        }
    }
}

impl AsFd for Map {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// No such command (before 5.6), or not for this kind of map (ENOTSUPP, which no libc has a word for).
fn lacks_batches(e: &Error) -> bool {
    const ENOTSUPP: i32 = 524;
    matches!(e.errno(), Some(libc::EINVAL | ENOTSUPP))
}

/// The CPUs that there may ever be: `0-3` or `0,2-3`.
pub(super) fn cpus() -> Result<usize, Error> {
    const FILE: &str = "/sys/devices/system/cpu/possible";
    let text = std::fs::read_to_string(FILE).context(|| format!("read {FILE}"))?;
    let last = text.trim().rsplit([',', '-']).next().and_then(|last| last.parse::<usize>().ok());
    last.map(|last| last + 1).ok_or_else(|| Error::malformed(format!("{FILE}: {text}")))
}
