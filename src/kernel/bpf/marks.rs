//! eBPF programs of a few instructions, written here and loaded by bpf(2): a plugin has no time to read objects, and takes them as the
//! daemon has pinned them where it can.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use rustix::process::{Resource, Rlimit, setrlimit};

use super::{pin, sys};
use crate::error::{Context, Error};
use crate::ours;

/// A folder of its own for other instructions. What the ones of a pin do, its name says.
const FOLDER: &str = "marks1";

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
/// Offset of `mark` in `struct __sk_buff`.
const MARK: i16 = 8;
/// Go on with the next filter.
const TC_ACT_UNSPEC: i32 = -1;

/// `struct bpf_insn`; `registers` is the source in the upper and the destination in the lower four bits.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    value: i32,
}

/// The part of `union bpf_attr` that BPF_PROG_LOAD has had since its first day.
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
}

/// The programs that set a mark, one for each value and mask that was asked for.
#[derive(Default)]
pub struct Programs(BTreeMap<(u32, u32), OwnedFd>);

impl Programs {
    /// The descriptor of the program, which stays open as long as this lives.
    pub fn mark(&mut self, value: u32, mask: u32) -> Result<RawFd, Error> {
        if let Some(program) = self.0.get(&(value, mask)) {
            return Ok(program.as_raw_fd());
        }
        // To load it takes the kernel a tenth of a plugin's time, most of which goes into memory for its verifier.
        let pinned = sys::pinned(&Path::new(ours::BPF_ROOT).join(below()).join(name(value, mask)));
        let program = pinned.or_else(|_| load(&marks(value, mask))).context(|| "load an eBPF program")?;
        let fd = program.as_raw_fd();
        self.0.insert((value, mask), program);
        Ok(fd)
    }
}

/// Pins the program, unless it is: plugins of any release take it from there.
pub fn keep(value: u32, mask: u32) -> Result<(), Error> {
    let folder = pin::folder(Path::new(ours::BPF_ROOT), &below())?;
    let name = name(value, mask);
    if sys::pinned(&folder.join(&name)).is_ok() {
        return Ok(());
    }
    let program = load(&marks(value, mask)).context(|| "load an eBPF program")?;
    pin::replace(&folder, &name, &program)
}

fn below() -> String {
    format!("{}/{FOLDER}", ours::BPF_FOLDER)
}

fn name(value: u32, mask: u32) -> String {
    format!("{value:#x}-{mask:#x}")
}

/// `skb->mark = (skb->mark & ~mask) | value; return TC_ACT_UNSPEC;`
fn marks(value: u32, mask: u32) -> [Instruction; 6] {
    let instruction = |code, registers, offset, value| Instruction { code, registers, offset, value };
    [
        instruction(0x61, 0x12, MARK, 0),         // r2 = *(u32 *)(r1 + MARK)
        instruction(0x54, 0x02, 0, !mask as i32), // w2 &= ~mask
        instruction(0x44, 0x02, 0, value as i32), // w2 |= value
        instruction(0x63, 0x21, MARK, 0),         // *(u32 *)(r1 + MARK) = r2
        instruction(0xb7, 0x00, 0, TC_ACT_UNSPEC),
        instruction(0x95, 0x00, 0, 0), // exit with r0
    ]
}

fn load(instructions: &[Instruction]) -> Result<OwnedFd, Error> {
    match load_once(instructions) {
        // Before 5.11 the memory of all programs of a user counts against the limit of locked memory, 64 KiB by default.
        Err(e) if e.errno() == Some(libc::EPERM) => {
            setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None })?;
            load_once(instructions)
        }
        result => result,
    }
}

fn load_once(instructions: &[Instruction]) -> Result<OwnedFd, Error> {
    let license = c"Apache-2.0";
    let attr = ProgLoad {
        kind: BPF_PROG_TYPE_SCHED_CLS,
        count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel: 0,
        flags: 0,
    };
    // SAFETY: the kernel reads `size_of::<ProgLoad>()` bytes of `attr`, and the instructions and license that it points
    // to, all of which outlive the call; it writes nothing.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attr, size_of::<ProgLoad>()) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    // SAFETY: the kernel has just given us this descriptor, with close-on-exec set, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}
