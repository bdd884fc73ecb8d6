//! eBPF programs of a few instructions, written here and loaded by bpf(2): a plugin has no time to read objects, and takes them as the
//! daemon has pinned them where it can.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use super::pin;
use super::sys::{self, Load};
use crate::error::{Context, Error};
use crate::ours;

/// A folder of its own for other instructions. What the ones of a pin do, its name says.
const FOLDER: &str = "marks1";

/// `BPF_PROG_TYPE_SCHED_CLS`
const CLASSIFIER: u32 = 3;
/// Offset of `mark` in `struct __sk_buff`.
const MARK: i16 = 8;
/// Go on with the next filter.
const TC_ACT_UNSPEC: i32 = -1;

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

/// A daemon has kept programs here: pods of this node are marked by them.
pub fn marks_are_kept() -> bool {
    Path::new(ours::BPF_ROOT).join(below()).exists()
}

fn below() -> String {
    format!("{}/{FOLDER}", ours::BPF_FOLDER)
}

fn name(value: u32, mask: u32) -> String {
    format!("{value:#x}-{mask:#x}")
}

/// `skb->mark = (skb->mark & ~mask) | value; return TC_ACT_UNSPEC;`
fn marks(value: u32, mask: u32) -> [u64; 6] {
    [
        instruction(0x61, 0x12, MARK, 0),         // r2 = *(u32 *)(r1 + MARK)
        instruction(0x54, 0x02, 0, !mask as i32), // w2 &= ~mask
        instruction(0x44, 0x02, 0, value as i32), // w2 |= value
        instruction(0x63, 0x21, MARK, 0),         // *(u32 *)(r1 + MARK) = r2
        instruction(0xb7, 0x00, 0, TC_ACT_UNSPEC),
        instruction(0x95, 0x00, 0, 0), // exit with r0
    ]
}

/// `struct bpf_insn`; `registers` is the source in the upper and the destination in the lower four bits.
fn instruction(code: u8, registers: u8, offset: i16, value: i32) -> u64 {
    let ([o1, o2], [v1, v2, v3, v4]) = (offset.to_ne_bytes(), value.to_ne_bytes());
    u64::from_ne_bytes([code, registers, o1, o2, v1, v2, v3, v4])
}

/// Without a name, which kernels before 4.15 do not know.
fn load(instructions: &[u64]) -> Result<OwnedFd, Error> {
    sys::load_program(&Load { name: "", kind: CLASSIFIER, hook: 0, license: c"Apache-2.0", instructions }, &mut [])
}
