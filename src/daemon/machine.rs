//! What a start learns without asking anybody outside: how the kernel is, and what an earlier life left on this machine.

use std::fs;

use super::ledger::{self, Contents, Ledger};
use super::phases;
use super::sticky::{Kept, Sticky};
use crate::both::both;
use crate::error::{Context, Error};
use crate::kernel::{Kernel, Look};
use crate::ours;
use crate::rpc::Marker;

pub struct Machine {
    pub kernel: Kernel,
    pub look: Look,
    pub marker: Marker,
    pub ledger: Ledger,
    pub contents: Contents,
    pub sticky: Sticky,
    pub kept: Vec<Kept>,
}

impl Machine {
    pub fn look() -> Result<Machine, Error> {
        let boot_id = boot_id()?;
        let (left, seen) = both(|| what_is_left(&boot_id), || look(&boot_id));
        let ((kernel, look, marker), (ledger, contents, sticky, kept)) = (seen?, left?);
        // Where it cannot be written the next life tries again: what is full is made room in by pods that go, and those need us.
        ledger.note_marker(&boot_id, marker).unwrap_or_else(|e| log::warn!("how packets are marked is not noted: {e}"));
        Ok(Machine { kernel, look, marker, ledger, contents, sticky, kept })
    }
}

fn look(boot_id: &str) -> Result<(Kernel, Look, Marker), Error> {
    let mut kernel = Kernel::host()?;
    let look = kernel.look()?;
    phases::reached("the kernel is looked at");
    let (marker, why) = marker(&mut kernel, boot_id);
    log::info!("packets of pods are marked by {marker:?}: {why}");
    Ok((kernel, look, marker))
}

/// A namespace to try it out in is made and taken away again, which keeps the kernel busy: the best way is not tried twice.
fn marker(kernel: &mut Kernel, boot_id: &str) -> (Marker, String) {
    match ledger::marker(ours::LEDGER.as_ref(), boot_id) {
        Some(marker @ Marker::Bpf) => (marker, "eBPF worked when it was tried out since this boot".into()),
        _ => kernel.marker(),
    }
}

fn what_is_left(boot_id: &str) -> Result<(Ledger, Contents, Sticky, Vec<Kept>), Error> {
    let (ledger, contents) = Ledger::open(ours::LEDGER.as_ref(), boot_id)?;
    let (sticky, kept) = Sticky::open(ours::LASTING.as_ref());
    phases::reached("the ledger is read");
    Ok((ledger, contents, sticky, kept))
}

pub fn boot_id() -> Result<String, Error> {
    let path = "/proc/sys/kernel/random/boot_id";
    fs::read_to_string(path).map(|id| id.trim().to_owned()).context(|| format!("read {path}"))
}
