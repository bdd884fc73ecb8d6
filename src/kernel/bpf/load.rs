//! Objects that clang has made of `bpf/`: their maps' shapes, and their programs into the kernel.
//!
//! aya's reader of objects does this, without its loader: that one reads the kernel's whole BTF first (50 ms, 20 MB) and tries out what
//! the kernel can, and nothing of ours needs either.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use aya_obj::ProgramSection;
use aya_obj::generated::{bpf_attach_type, bpf_prog_type};

use super::map::Map;
use super::sys::{self, Load, Shape};
use crate::error::{Context, Error};

/// How much of the verifier's log an error holds: its end, where the reason stands. The message of an event has 1,024 bytes in all.
const LOG_SHOWN: usize = 640;
const LOG_SIZE: usize = 1 << 20;
/// How often a program is loaded whose verification was left off.
const TRIES: u32 = 5;

/// The bytes of an object where aya may read them: aligned like the structures of ELF.
#[repr(C, align(8))]
pub struct Aligned<T: ?Sized>(pub T);

/// An object that has been read, and has not seen the kernel yet.
pub struct Object {
    name: &'static str,
    object: aya_obj::Object,
    maps: HashMap<String, aya_obj::Map>,
}

impl Object {
    pub fn parse(name: &'static str, bytes: &[u8]) -> Result<Object, Error> {
        let mut object = aya_obj::Object::parse(bytes)
            .map_err(|e| Error::malformed(e).within(format!("read eBPF object {name}")))?;
        let maps = object.maps.drain().collect();
        Ok(Object { name, object, maps })
    }

    /// The maps that the programs name.
    pub fn maps(&self) -> BTreeMap<String, Shape> {
        let shape = |map: &aya_obj::Map| Shape {
            kind: map.map_type(),
            key: map.key_size(),
            value: map.value_size(),
            entries: map.max_entries(),
            flags: map.map_flags(),
        };
        self.maps.iter().map(|(name, map)| (name.clone(), shape(map))).collect()
    }

    /// Has the programs work on these maps, one for each name of [`Object::maps`].
    pub fn link<'a>(mut self, maps: impl IntoIterator<Item = &'a Map>) -> Result<Linked, Error> {
        let doing = || format!("link eBPF object {}", self.name);
        let given: HashMap<&str, &Map> = maps.into_iter().map(|map| (map.name(), map)).collect();
        let mut fds = Vec::new();
        for (name, map) in &self.maps {
            let given = given.get(name.as_str());
            let given = given.ok_or_else(|| Error::malformed(format!("there is no map {name}")).within(doing()))?;
            fds.push((name.as_str(), given.as_fd().as_raw_fd(), map));
        }
        let text: HashSet<usize> = self.object.functions.keys().map(|(section, _)| *section).collect();
        let malformed = |e: aya_obj::relocation::EbpfRelocationError| Error::malformed(e);
        self.object.relocate_maps(fds.into_iter(), &text).map_err(malformed).context(doing)?;
        self.object.relocate_calls(&text).map_err(malformed).context(doing)?;
        Ok(Linked { name: self.name, object: self.object })
    }
}

/// An object whose programs can be loaded.
pub struct Linked {
    name: &'static str,
    object: aya_obj::Object,
}

/// A program in the kernel, which stays there as long as this lives or it is attached.
#[derive(Debug)]
pub struct Program {
    pub name: String,
    /// `BPF_CGROUP_…`; 0 where the kind has but one place.
    pub hook: u32,
    fd: OwnedFd,
}

impl Program {
    /// What a classifier answers to this packet, which bears this mark, and how many nanoseconds it takes when asked so many times.
    pub fn run(&self, packet: &[u8], mark: u32, repeat: u32) -> Result<(i32, u32), Error> {
        let (answer, took) = sys::run_program(self.as_fd(), packet, mark, repeat)
            .context(|| format!("run eBPF program {} over a packet", self.name))?;
        Ok((answer as i32, took))
    }
}

impl AsFd for Program {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Linked {
    /// The names of its programs.
    pub fn programs(&self) -> impl Iterator<Item = &str> {
        self.object.programs.keys().map(String::as_str)
    }

    /// Loads one program. Where the kernel refuses it, the error holds the end of what the verifier has to say.
    pub fn load(&self, name: &str) -> Result<Program, Error> {
        let doing = || format!("load eBPF program {name} of {}", self.name);
        let program = self.object.programs.get(name);
        let program = program.ok_or_else(|| Error::malformed("there is no such program").within(doing()))?;
        let function = self.object.functions.get(&program.function_key());
        let function = function.ok_or_else(|| Error::malformed("it has no instructions").within(doing()))?;
        let (kind, hook) = kind(&program.section).context(doing)?;
        // SAFETY: an instruction is eight bytes of plain numbers, aligned to four; they are copied from there one by one.
        let words = function.instructions.iter().map(|i| unsafe { (&raw const *i).cast::<u64>().read_unaligned() });
        let instructions: Vec<u64> = words.collect();
        let load = Load { name, kind, hook, license: &program.license, instructions: &instructions };
        let fd = insist(&load).map_err(|e| explain(&load, e)).context(doing)?;
        Ok(Program { name: name.into(), hook, fd })
    }
}

/// The verifier leaves off where a signal waits for the thread.
fn insist(load: &Load) -> Result<OwnedFd, Error> {
    for _ in 1..TRIES {
        match sys::load_program(load, &mut []) {
            Err(e) if e.errno() == Some(libc::EAGAIN) => {}
            loaded => return loaded,
        }
    }
    sys::load_program(load, &mut [])
}

/// Loads it once more, to hear why not.
fn explain(load: &Load, e: Error) -> Error {
    let mut log = vec![0; LOG_SIZE];
    // It fails like the first time; ENOSPC, where the log does not fit, leaves its beginning.
    let _ = sys::load_program(load, &mut log);
    let end = log.iter().position(|b| *b == 0).unwrap_or(log.len());
    log::debug!("the verifier says of {}: {}", load.name, String::from_utf8_lossy(&log[..end]));
    let shown = String::from_utf8_lossy(&log[end.saturating_sub(LOG_SHOWN)..end]).trim().to_string();
    if shown.is_empty() { e } else { e.within(format!("the verifier says [{shown}]")) }
}

fn kind(section: &ProgramSection) -> Result<(u32, u32), Error> {
    match section {
        ProgramSection::CgroupSockAddr { attach_type } => {
            Ok((bpf_prog_type::BPF_PROG_TYPE_CGROUP_SOCK_ADDR as u32, bpf_attach_type::from(*attach_type) as u32))
        }
        ProgramSection::SchedClassifier => Ok((bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS as u32, 0)),
        other => Err(Error::malformed(format!("{other:?} is not a kind of program that we have"))),
    }
}
