//! bpf(2): its commands that we use, each with the part of `union bpf_attr` that it takes, and no more: an older kernel refuses what it
//! does not know.

use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::process::{Resource, Rlimit, setrlimit};

use crate::error::Error;

const MAP_CREATE: libc::c_int = 0;
const MAP_LOOKUP: libc::c_int = 1;
const MAP_UPDATE: libc::c_int = 2;
const MAP_DELETE: libc::c_int = 3;
const MAP_NEXT_KEY: libc::c_int = 4;
const PROG_LOAD: libc::c_int = 5;
const OBJ_PIN: libc::c_int = 6;
const OBJ_GET: libc::c_int = 7;
const PROG_ATTACH: libc::c_int = 8;
const PROG_DETACH: libc::c_int = 9;
const PROG_RUN: libc::c_int = 10;
const PROG_BY_ID: libc::c_int = 13;
const INFO: libc::c_int = 15;
const PROG_QUERY: libc::c_int = 16;
const MAP_LOOKUP_BATCH: libc::c_int = 24;
const MAP_UPDATE_BATCH: libc::c_int = 26;

/// The longest name of a program or map, with its NUL.
const NAME: usize = 16;

/// What a map is; by `bpf_map_def` of an object, or as the kernel tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// `BPF_MAP_TYPE_…`
    pub kind: u32,
    pub key: u32,
    pub value: u32,
    pub entries: u32,
    pub flags: u32,
}

/// A program that is to be loaded.
pub struct Load<'a> {
    pub name: &'a str,
    /// `BPF_PROG_TYPE_…`
    pub kind: u32,
    /// `BPF_CGROUP_…`, where the kind is attached to one of several places.
    pub hook: u32,
    pub license: &'a std::ffi::CStr,
    /// `struct bpf_insn`, eight bytes each.
    pub instructions: &'a [u64],
}

#[repr(C)]
struct MapCreate {
    kind: u32,
    key: u32,
    value: u32,
    entries: u32,
    flags: u32,
    inner: u32,
    node: u32,
    name: [u8; NAME],
}

#[repr(C)]
struct ProgLoad {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel: u32,
    flags: u32,
    name: [u8; NAME],
    device: u32,
    hook: u32,
}

#[repr(C)]
struct Element {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct Batch {
    start: u64,
    end: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

#[repr(C)]
struct Pin {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    hook: u32,
    flags: u32,
    replaced: u32,
}

#[repr(C)]
struct Query {
    target: u32,
    hook: u32,
    flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    pad: u32,
}

#[repr(C)]
#[derive(Default)]
struct Run {
    program: u32,
    answer: u32,
    packet_len: u32,
    out_len: u32,
    packet: u64,
    out: u64,
    repeat: u32,
    duration: u32,
    context_len: u32,
    context_out_len: u32,
    context: u64,
    context_out: u64,
}

#[repr(C)]
struct ById {
    id: u32,
    next: u32,
    flags: u32,
}

#[repr(C)]
struct Info {
    fd: u32,
    len: u32,
    info: u64,
}

/// The beginning of `struct bpf_map_info`, as 4.15 has it.
#[repr(C)]
#[derive(Default)]
struct MapInfo {
    kind: u32,
    id: u32,
    key: u32,
    value: u32,
    entries: u32,
    flags: u32,
    name: [u8; NAME],
}

/// The beginning of `struct bpf_prog_info`, as 4.15 has it.
#[repr(C)]
#[derive(Default)]
struct ProgInfo {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    lengths: [u32; 2],
    instructions: [u64; 2],
    loaded: u64,
    user: u32,
    map_count: u32,
    maps: u64,
    name: [u8; NAME],
}

pub fn create_map(name: &str, shape: &Shape) -> Result<OwnedFd, Error> {
    let Shape { kind, key, value, entries, flags } = *shape;
    let mut attr = MapCreate { kind, key, value, entries, flags, inner: 0, node: 0, name: short(name) };
    locked(|| {
        // SAFETY: the kernel reads `attr` alone.
        unsafe { descriptor(MAP_CREATE, &mut attr) }
    })
}

/// `log` is written to where it is not empty.
pub fn load_program(load: &Load, log: &mut [u8]) -> Result<OwnedFd, Error> {
    let mut attr = ProgLoad {
        kind: load.kind,
        count: load.instructions.len() as u32,
        instructions: load.instructions.as_ptr() as u64,
        license: load.license.as_ptr() as u64,
        log_level: u32::from(!log.is_empty()),
        log_size: log.len() as u32,
        log: if log.is_empty() { 0 } else { log.as_mut_ptr() as u64 },
        kernel: 0,
        flags: 0,
        name: short(load.name),
        device: 0,
        hook: load.hook,
    };
    locked(|| {
        // SAFETY: instructions and license are read and outlive the call; at most `log_size` bytes of the log are written.
        unsafe { descriptor(PROG_LOAD, &mut attr) }
    })
}

/// The value of this key, into `value`, which has room for what the map's shape says (of all CPUs, where each has its own).
pub fn lookup(map: BorrowedFd, key: &[u8], value: &mut [u8]) -> Result<bool, Error> {
    let mut attr = element(map, key, value.as_mut_ptr() as u64);
    // SAFETY: `Map`, the only caller, gives key and value the lengths of the map's shape.
    found(unsafe { bpf(MAP_LOOKUP, &mut attr) })
}

/// Makes the value that of the key.
pub fn update(map: BorrowedFd, key: &[u8], value: &[u8]) -> Result<(), Error> {
    let mut attr = element(map, key, value.as_ptr() as u64);
    // SAFETY: as above; both are only read.
    unsafe { bpf(MAP_UPDATE, &mut attr) }.map(|_| ())
}

/// Whether there was such a key.
pub fn delete(map: BorrowedFd, key: &[u8]) -> Result<bool, Error> {
    let mut attr = element(map, key, 0);
    // SAFETY: the key has the length of the map's shape and is only read.
    found(unsafe { bpf(MAP_DELETE, &mut attr) })
}

/// The key after this one (the first, if there is none), into `next`.
pub fn next_key(map: BorrowedFd, key: Option<&[u8]>, next: &mut [u8]) -> Result<bool, Error> {
    let mut attr = element(map, key.unwrap_or_default(), next.as_mut_ptr() as u64);
    if key.is_none() {
        attr.key = 0;
    }
    // SAFETY: both keys have the length of the map's shape; a null pointer is the kernel's way to ask for the first.
    found(unsafe { bpf(MAP_NEXT_KEY, &mut attr) })
}

/// Writes `count` elements that stand one behind the other; beside the error, how many were written before it.
pub fn update_batch(map: BorrowedFd, keys: &[u8], values: &[u8], count: u32) -> Result<(), (u32, Error)> {
    let (keys, values) = (keys.as_ptr() as u64, values.as_ptr() as u64);
    let map = map.as_raw_fd() as u32;
    let mut attr = Batch { start: 0, end: 0, keys, values, count, map, element_flags: 0, flags: 0 };
    // SAFETY: `Map`, the only caller, gives `count` keys and values of the map's shape; they are only read.
    let result = unsafe { bpf(MAP_UPDATE_BATCH, &mut attr) };
    // A kernel that does not know the command leaves the count as it was.
    result.map(|_| ()).map_err(|e| (if attr.count < count { attr.count } else { 0 }, e))
}

/// Reads on from `place` (from the start, if it is fresh) as many elements as fit: how many they were, and whether there are more.
pub fn lookup_batch(
    map: BorrowedFd,
    place: &mut Option<[u8; 64]>,
    keys: &mut [u8],
    values: &mut [u8],
    count: u32,
) -> Result<(u32, bool), Error> {
    let mut end = [0; 64];
    let mut attr = Batch {
        start: place.as_mut().map_or(0, |place| place.as_mut_ptr() as u64),
        end: end.as_mut_ptr() as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count,
        map: map.as_raw_fd() as u32,
        element_flags: 0,
        flags: 0,
    };
    // SAFETY: there is room for `count` keys and values of the map's shape; a place is a key or a number of four bytes, and no key of
    // ours has more than 64.
    let more = found(unsafe { bpf(MAP_LOOKUP_BATCH, &mut attr) })?;
    *place = Some(end);
    Ok((attr.count, more))
}

pub fn pin(fd: BorrowedFd, path: &Path) -> Result<(), Error> {
    let path = c_path(path)?;
    let mut attr = Pin { path: path.as_ptr() as u64, fd: fd.as_raw_fd() as u32, flags: 0 };
    // SAFETY: the path ends with a NUL and outlives the call.
    unsafe { bpf(OBJ_PIN, &mut attr) }.map(|_| ())
}

pub fn pinned(path: &Path) -> Result<OwnedFd, Error> {
    let path = c_path(path)?;
    let mut attr = Pin { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    // SAFETY: as above.
    unsafe { descriptor(OBJ_GET, &mut attr) }
}

/// The kernel's flags for an attachment beside others, and for one in the place of another (5.6).
pub const ALLOW_MULTI: u32 = 2;
pub const REPLACE: u32 = 4;

pub fn attach(
    target: BorrowedFd,
    hook: u32,
    program: BorrowedFd,
    flags: u32,
    replaced: Option<BorrowedFd>,
) -> Result<(), Error> {
    let mut attr = Attach {
        target: target.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        hook,
        flags,
        replaced: replaced.map_or(0, |fd| fd.as_raw_fd() as u32),
    };
    // SAFETY: the kernel reads `attr` alone.
    unsafe { bpf(PROG_ATTACH, &mut attr) }.map(|_| ())
}

pub fn detach(target: BorrowedFd, hook: u32, program: BorrowedFd) -> Result<(), Error> {
    let (target, program) = (target.as_raw_fd() as u32, program.as_raw_fd() as u32);
    let mut attr = Attach { target, program, hook, flags: 0, replaced: 0 };
    // SAFETY: the kernel reads `attr` alone.
    unsafe { bpf(PROG_DETACH, &mut attr) }.map(|_| ())
}

/// The ids of the programs that are attached here, in the order in which they run.
pub fn attached(target: BorrowedFd, hook: u32) -> Result<Vec<u32>, Error> {
    // The kernel attaches at most 64 to one place (BPF_CGROUP_MAX_PROGS).
    let mut ids = [0u32; 64];
    let mut attr = Query {
        target: target.as_raw_fd() as u32,
        hook,
        flags: 0,
        attach_flags: 0,
        ids: ids.as_mut_ptr() as u64,
        count: ids.len() as u32,
        pad: 0,
    };
    // SAFETY: at most `count` ids are written.
    unsafe { bpf(PROG_QUERY, &mut attr) }?;
    Ok(ids[..ids.len().min(attr.count as usize)].to_vec())
}

/// The program of this id; none where it is gone by now.
pub fn program(id: u32) -> Result<Option<OwnedFd>, Error> {
    let mut attr = ById { id, next: 0, flags: 0 };
    // SAFETY: the kernel reads `attr` alone.
    match unsafe { descriptor(PROG_BY_ID, &mut attr) } {
        Ok(fd) => Ok(Some(fd)),
        Err(e) if e.errno() == Some(libc::ENOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

/// What the program was called when it was loaded.
pub fn program_name(program: BorrowedFd) -> Result<String, Error> {
    let mut info = ProgInfo::default();
    // SAFETY: the kernel writes at most the length of `info`, of which all bit patterns are values; no pointer in it is set.
    unsafe { tell(program, &mut info) }?;
    let end = info.name.iter().position(|b| *b == 0).unwrap_or(NAME);
    Ok(String::from_utf8_lossy(&info.name[..end]).into_owned())
}

/// Has a classifier look at a packet that bears this mark (5.2), so many times: its last answer, and how many nanoseconds one took.
pub fn run_program(program: BorrowedFd, packet: &[u8], mark: u32, repeat: u32) -> Result<(u32, u32), Error> {
    // struct __sk_buff, as far as to the mark and a little more.
    let mut context = [0u32; 16];
    context[2] = mark;
    let mut attr = Run {
        program: program.as_raw_fd() as u32,
        packet_len: packet.len() as u32,
        packet: packet.as_ptr() as u64,
        repeat,
        context_len: size_of_val(&context) as u32,
        context: context.as_ptr() as u64,
        ..Run::default()
    };
    // SAFETY: packet and context are read and outlive the call; nothing is written but `attr`.
    unsafe { bpf(PROG_RUN, &mut attr) }?;
    Ok((attr.answer, attr.duration))
}

/// No other program has it before the machine starts again.
pub fn program_id(program: BorrowedFd) -> Result<u32, Error> {
    let mut info = ProgInfo::default();
    // SAFETY: as above.
    unsafe { tell(program, &mut info) }?;
    Ok(info.id)
}

/// Whether the kernel knows the command.
pub fn membarrier(command: libc::c_int) -> bool {
    // SAFETY: it takes numbers alone.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
}

pub fn map_shape(map: BorrowedFd) -> Result<Shape, Error> {
    let mut info = MapInfo::default();
    // SAFETY: as above.
    unsafe { tell(map, &mut info) }?;
    let MapInfo { kind, key, value, entries, flags, .. } = info;
    Ok(Shape { kind, key, value, entries, flags })
}

/// # Safety
/// `T` must be a structure of plain numbers.
unsafe fn tell<T>(fd: BorrowedFd, info: &mut T) -> Result<(), Error> {
    let mut attr = Info { fd: fd.as_raw_fd() as u32, len: size_of::<T>() as u32, info: &raw mut *info as u64 };
    // SAFETY: the caller's promise.
    unsafe { bpf(INFO, &mut attr) }.map(|_| ())
}

fn element(map: BorrowedFd, key: &[u8], value: u64) -> Element {
    Element { map: map.as_raw_fd() as u32, pad: 0, key: key.as_ptr() as u64, value, flags: 0 }
}

fn found(result: Result<libc::c_long, Error>) -> Result<bool, Error> {
    match result {
        Ok(_) => Ok(true),
        Err(e) if e.errno() == Some(libc::ENOENT) => Ok(false),
        Err(e) => Err(e),
    }
}

/// A name that does not fit is cut; an empty one is none.
fn short(name: &str) -> [u8; NAME] {
    let mut short = [0; NAME];
    let len = name.len().min(NAME - 1);
    short[..len].copy_from_slice(&name.as_bytes()[..len]);
    short
}

fn c_path(path: &Path) -> Result<CString, Error> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Error::malformed("a path with a NUL"))
}

/// Before 5.11 the memory of all maps and programs of a user counts against the limit of locked memory, 64 KiB by default.
pub fn locked(mut f: impl FnMut() -> Result<OwnedFd, Error>) -> Result<OwnedFd, Error> {
    match f() {
        Err(e) if e.errno() == Some(libc::EPERM) => {
            setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None })?;
            f()
        }
        result => result,
    }
}

/// # Safety
/// `attr` must be what the command takes, and what it points to must outlive the call and be of the length that the kernel assumes.
unsafe fn bpf<T>(command: libc::c_int, attr: &mut T) -> Result<libc::c_long, Error> {
    // SAFETY: the caller's promise.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size_of::<T>()) };
    if answer < 0 { Err(std::io::Error::last_os_error().into()) } else { Ok(answer) }
}

/// # Safety
/// As for [`bpf`], with a command that answers with a descriptor.
unsafe fn descriptor<T>(command: libc::c_int, attr: &mut T) -> Result<OwnedFd, Error> {
    // SAFETY: the caller's promise.
    let fd = unsafe { bpf(command, attr) }?;
    // SAFETY: the kernel has just given us this descriptor, with close-on-exec set, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}
