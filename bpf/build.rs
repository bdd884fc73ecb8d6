//! Compiles the eBPF programs beside this file, each into an object of its own in `OUT_DIR`.

use std::path::Path;
use std::process::Command;

/// Tried in this order, unless `BPF_CLANG` names one.
const CLANGS: &[&str] = &["clang-19", "clang", "clang-18", "clang-17", "clang-16", "clang-15", "clang-14"];

/// No debug information: aya and kernels before 5.0 stumble over the BTF that would come with it. `v2` is what 4.19 can run.
const FLAGS: &[&str] = &[
    "-target",
    "bpf",
    "-mcpu=v2",
    "-O2",
    "-std=gnu11",
    "-ffreestanding",
    "-nostdinc",
    "-fno-ident",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unused-variable",
    "-Wno-unused-parameter",
    "-Wno-unused-const-variable",
    "-Wno-unknown-warning-option",
];

/// Source, object, and what is defined for it.
const OBJECTS: &[(&str, &str, &[&str])] = &[
    ("eni.bpf.c", "eni.o", &[]),
    ("policy.bpf.c", "policy.o", &[]),
    ("policy.bpf.c", "policy_marked.o", &["SEAT_IN_MARK"]),
    ("sock.bpf.c", "sock.o", &[]),
    ("sock.bpf.c", "sock_cookie.o", &["WITH_COOKIE"]),
    ("sock.bpf.c", "sock_retval.o", &["WITH_COOKIE", "WITH_RETVAL"]),
];

fn main() {
    println!("cargo::rerun-if-changed=bpf");
    println!("cargo::rerun-if-env-changed=BPF_CLANG");
    let clang = clang();
    let out = std::env::var("OUT_DIR").expect("cargo gives a build script OUT_DIR");
    for (source, object, defines) in OBJECTS {
        let mut command = Command::new(&clang);
        command.args(FLAGS).args(defines.iter().map(|d| format!("-D{d}")));
        command.arg("-c").arg(Path::new("bpf").join(source)).arg("-o").arg(Path::new(&out).join(object));
        let status = command.status().unwrap_or_else(|e| panic!("start {clang}: {e}"));
        assert!(status.success(), "{clang} could not compile bpf/{source}: its words are above");
    }
}

fn clang() -> String {
    if let Ok(named) = std::env::var("BPF_CLANG") {
        return named;
    }
    let can = |clang: &&&str| {
        let targets = Command::new(clang).arg("--print-targets").output();
        targets.is_ok_and(|o| String::from_utf8_lossy(&o.stdout).contains("bpf "))
    };
    let found = CLANGS.iter().find(can);
    let found = found.unwrap_or_else(|| {
        panic!(
            "no clang that compiles for eBPF: install one (Debian: apt-get install clang-19) or name it in BPF_CLANG"
        )
    });
    found.to_string()
}
