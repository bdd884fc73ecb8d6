//! Other builds of the binary: the same but for the eBPF objects in it, which are changed in their place.

use std::env;
use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use super::cluster::binary;

/// What the verifier says of a program that copies what nobody has written.
pub const REFUSAL: &str = "R9 !read_ok";

/// An executable file, for as long as this lives.
pub struct Build {
    pub path: PathBuf,
}

impl Build {
    /// Each of these objects becomes what the closure makes of it, which may be shorter.
    pub fn with(objects: &[&str], change: impl Fn(&str, &[u8]) -> Vec<u8>) -> Build {
        let mut program = fs::read(binary()).expect("the binary is there");
        for name in objects {
            let object = fs::read(Path::new(env!("OUT_DIR")).join(name)).expect("the build has made it");
            let mut changed = change(name, &object);
            assert!(changed != object && changed.len() <= object.len(), "{name} is to change, and has no more room");
            changed.resize(object.len(), 0);
            let places = places(&program, &object);
            assert!(!places.is_empty(), "{name} is not in the binary");
            places.iter().for_each(|at| program[*at..][..object.len()].copy_from_slice(&changed));
        }
        let build = Build { path: scratch("terwayd") };
        fs::write(&build.path, program).expect("write the binary");
        fs::set_permissions(&build.path, Permissions::from_mode(0o755)).expect("its mode");
        build
    }

    /// No verifier takes the programs of these objects: each begins with what nobody has written. What it says is [`REFUSAL`].
    pub fn refused(objects: &[&str]) -> Build {
        const COPIES_R9: [u8; 8] = [0xbf, 0x96, 0, 0, 0, 0, 0, 0];
        Build::with(objects, |_, object| {
            let mut spoilt = object.to_vec();
            programs(object).iter().for_each(|at| spoilt[*at..][..8].copy_from_slice(&COPIES_R9));
            spoilt
        })
    }

    /// The programs for Services compiled for a newer machine, and a map of theirs made otherwise.
    pub fn of_tomorrow() -> Build {
        let variants =
            [("sock.o", ""), ("sock_cookie.o", "-DWITH_COOKIE"), ("sock_retval.o", "-DWITH_COOKIE -DWITH_RETVAL")];
        Build::with(&variants.map(|(name, _)| name), |name, _| {
            let defines = variants.iter().find(|(object, _)| *object == name).expect("one of them").1;
            compiled(defines, ("node_key, __u32, 16384, 0)", "node_key, __u32, 16384, BPF_F_NO_PREALLOC)"))
        })
    }
}

impl Drop for Build {
    fn drop(&mut self) {
        // A daemon that runs it still goes on running.
        let _ = fs::remove_file(&self.path);
    }
}

/// Where the object is embedded: aligned, as the loader needs it.
fn places(program: &[u8], object: &[u8]) -> Vec<usize> {
    let starts = (0..program.len().saturating_sub(object.len())).step_by(8);
    starts.filter(|at| program[*at..][..4] == *b"\x7fELF" && program[*at..][..object.len()] == *object).collect()
}

/// Where the programs of an ELF object begin: each is a section of its own.
fn programs(elf: &[u8]) -> Vec<usize> {
    const EXECUTABLE: usize = 4;
    let number = |at: usize, len: usize| elf[at..][..len].iter().rev().fold(0, |n, b| n << 8 | *b as usize);
    let (table, size, count) = (number(40, 8), number(58, 2), number(60, 2));
    let headers = (0..count).map(|n| table + n * size);
    let runs = headers.filter(|at| number(at + 8, 8) & EXECUTABLE != 0 && number(at + 32, 8) > 0);
    runs.map(|at| number(at + 24, 8)).collect()
}

/// `sock.bpf.c` with one thing exchanged.
fn compiled(defines: &str, (from, to): (&str, &str)) -> Vec<u8> {
    let folder = scratch("bpf");
    fs::create_dir(&folder).expect("make a folder");
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("bpf");
    for entry in fs::read_dir(sources).expect("the sources").flatten() {
        fs::copy(entry.path(), folder.join(entry.file_name())).expect("copy a source");
    }
    let source = folder.join("sock.bpf.c");
    let text = fs::read_to_string(&source).expect("it was copied");
    assert!(text.contains(from), "{from} is not in sock.bpf.c any more");
    fs::write(&source, text.replace(from, to)).expect("write the source");
    let clang = env::var_os("BPF_CLANG").unwrap_or_else(|| OsString::from("clang-19"));
    let object = folder.join("sock.o");
    let mut command = Command::new(&clang);
    command.args("-target bpf -mcpu=v3 -O2 -std=gnu11 -ffreestanding -nostdinc -fno-ident".split(' '));
    command.args(defines.split_whitespace()).arg("-c").arg(&source).arg("-o").arg(&object);
    let status = command.status().unwrap_or_else(|e| panic!("start {clang:?}: {e}"));
    assert!(status.success(), "{clang:?} could not compile sock.bpf.c");
    let bytes = fs::read(&object).expect("it was compiled");
    fs::remove_dir_all(&folder).expect("remove the folder");
    bytes
}

fn scratch(name: &str) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    env::temp_dir().join(format!("tw{}-{count}-{name}", std::process::id()))
}
