//! The programs that plans hook to links: those of `bpf/eni.bpf.c`, with what they know in maps that are pinned, so that they outlive us
//! and any release of the programs; and those of `bpf/policy.bpf.c`, which are pinned themselves.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use super::load::{self, Aligned, Linked, Object};
use super::map::Map;
use super::{pin, policy, sys};
use crate::error::{Context, Error};
use crate::near::{self, Elements, Near};
use crate::ours;
use crate::plan::Program;

static OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/eni.o")));

/// The programs that were asked for, open for as long as this lives.
#[derive(Default)]
pub struct Hooks {
    /// The maps are open until no more programs are loaded that work on them.
    object: Option<(Linked, Vec<Map>)>,
    open: BTreeMap<Program, load::Program>,
    pinned: BTreeMap<Program, OwnedFd>,
}

impl Hooks {
    /// The descriptor of the program, and what a filter is called that runs it.
    pub fn open(&mut self, program: Program) -> Result<(RawFd, String), Error> {
        if policy::PROGRAMS.contains(&program) {
            return self.open_pinned(program);
        }
        if !self.open.contains_key(&program) {
            let (object, _) = match &mut self.object {
                Some(object) => object,
                none => none.insert(link()?),
            };
            self.open.insert(program, object.load(program.name())?);
        }
        Ok((self.open[&program].as_fd().as_raw_fd(), of_release(program)))
    }

    /// The daemon may have pinned another one since the last time.
    fn open_pinned(&mut self, program: Program) -> Result<(RawFd, String), Error> {
        let (fd, name) = pinned(program)?;
        let raw = fd.as_raw_fd();
        self.pinned.insert(program, fd);
        Ok((raw, name))
    }
}

/// What a filter is called that runs this program: another release's is another one.
pub fn called(program: Program) -> Result<String, Error> {
    if policy::PROGRAMS.contains(&program) { Ok(pinned(program)?.1) } else { Ok(of_release(program)) }
}

fn of_release(program: Program) -> String {
    let digest = sha1_smol::Sha1::from(&OBJECT.0).digest().to_string();
    format!("{} {}", program.name(), &digest[..12])
}

/// A plugin of any release takes what the daemon has pinned, without loading anything.
fn pinned(program: Program) -> Result<(OwnedFd, String), Error> {
    let path = policy::place(Path::new(ours::BPF_ROOT)).join(program.name());
    let doing = || format!("open {}, which the daemon pins when network policies are in the kernel", path.display());
    let fd = sys::pinned(&path).context(doing)?;
    let id = sys::program_id(fd.as_fd()).context(doing)?;
    Ok((fd, format!("{} {id}", program.name())))
}

fn object() -> Result<Object, Error> {
    Object::parse("eni", &OBJECT.0)
}

fn link() -> Result<(Linked, Vec<Map>), Error> {
    let object = object()?;
    let maps = maps(&object)?;
    Ok((object.link(&maps)?, maps))
}

/// All maps that the programs name, as they are pinned.
fn maps(object: &Object) -> Result<Vec<Map>, Error> {
    let folder = folder()?;
    let shapes = object.maps();
    shapes.iter().map(|(name, shape)| Ok(pin::ensure(&folder, name, shape)?.0)).collect()
}

fn folder() -> Result<PathBuf, Error> {
    let below = format!("{}/eni{}", ours::BPF_FOLDER, near::LAYOUT);
    pin::folder(Path::new(ours::BPF_ROOT), &below)
}

/// The maps in which the programs look things up, and what was written there last.
pub struct Directory {
    maps: Vec<Map>,
    written: BTreeMap<&'static str, Elements>,
}

impl Directory {
    pub fn open() -> Result<Directory, Error> {
        Ok(Directory { maps: maps(&object()?)?, written: BTreeMap::new() })
    }

    fn read(&self, name: &str) -> Result<Elements, Error> {
        let mut there = Elements::new();
        self.map(name)?.each(|key, value| drop(there.insert(key.to_vec(), value.to_vec())))?;
        Ok(there)
    }

    fn map(&self, name: &str) -> Result<&Map, Error> {
        let map = self.maps.iter().find(|map| map.name() == name);
        map.ok_or_else(|| Error::malformed(format!("eBPF object eni has no map {name}")))
    }

    /// Writes what differs, the new before the old goes.
    pub fn write(&mut self, near: &Near) -> Result<(), Error> {
        for (name, want) in near.elements() {
            // What an earlier life has written, or an attempt that failed, the map itself knows.
            let there = self.written.remove(name).map_or_else(|| self.read(name), Ok)?;
            self.write_one(name, &there, &want).context(|| "tell the programs on ENIs of the node")?;
            self.written.insert(name, want);
        }
        Ok(())
    }

    fn write_one(&self, name: &str, there: &Elements, want: &Elements) -> Result<(), Error> {
        let map = self.map(name)?;
        for (key, value) in want.iter().filter(|(key, value)| there.get(*key) != Some(value)) {
            map.put(key, value)?;
        }
        for key in there.keys().filter(|key| !want.contains_key(*key)) {
            map.remove(key)?;
        }
        Ok(())
    }
}
