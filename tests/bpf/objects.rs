//! The objects themselves, without a kernel: whatever is not optional must be within the limits of 4.19.

use std::collections::BTreeMap;
use std::path::Path;

/// BPF_MAXINSNS of include/linux/filter.h, the limit of a program up to 5.1.
const MAX_INSTRUCTIONS: usize = 4096;
/// `enum bpf_map_type` of include/uapi/linux/bpf.h, v4.19: those that we use.
const MAP_KINDS: &[(u32, &str)] =
    &[(1, "HASH"), (2, "ARRAY"), (4, "PERF_EVENT_ARRAY"), (6, "PERCPU_ARRAY"), (9, "LRU_HASH"), (11, "LPM_TRIE")];
const NO_PREALLOC: u32 = 1;

/// net/core/filter.c, v4.19, bpf_base_func_proto(): for programs of every kind.
const BASE: &[u32] = &[1, 2, 3, 5, 6, 7, 8, 12, 42];
/// There, sock_addr_func_proto(): bpf_get_socket_cookie (d692f1138a4b, in v4.19) and bpf_get_local_storage.
const SOCK_ADDR: &[u32] = &[46, 81];
/// There, tc_cls_act_func_proto(): what reads and writes packets, marks, hashes, tunnels and redirects, and bpf_fib_lookup.
const SCHED_CLS: &[u32] = &[
    9, 10, 11, 13, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 28, 29, 30, 31, 32, 33, 34, 38, 39, 40, 43, 44, 46, 47, 48,
    50, 66, 69, 79, 81,
];

/// include/uapi/linux/bpf.h, v4.19, `enum bpf_attach_type`: BPF_CGROUP_INET4_CONNECT to BPF_CGROUP_UDP6_SENDMSG (4.17, 4.18).
const HOOKS: &[&str] = &["cgroup/connect4", "cgroup/connect6", "cgroup/sendmsg4", "cgroup/sendmsg6"];
/// 983695fa6765 (v5.2, v4.19.57) and 1b66d253610c (v5.8).
const OPTIONAL_HOOKS: &[&str] = &["cgroup/recvmsg4", "cgroup/recvmsg6", "cgroup/getpeername4", "cgroup/getpeername6"];

/// Objects that are tried and have a fallback, with the further helpers that they may name: bpf_get_netns_cookie (f318903c0bf4, v5.7)
/// and bpf_set_retval (b44123b4a3dc, v5.18).
const OPTIONAL_OBJECTS: &[(&str, &[u32])] = &[("sock_cookie.o", &[122]), ("sock_retval.o", &[122, 187])];

/// The sections of a 64-bit ELF file, by name.
fn sections(elf: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let number = |at: usize, len: usize| elf[at..][..len].iter().rev().fold(0, |n, b| n << 8 | *b as usize);
    assert_eq!((&elf[..6], number(18, 2)), (&b"\x7fELF\x02\x01"[..], 247), "an eBPF object, low byte first");
    let (table, size, count, names) = (number(40, 8), number(58, 2), number(60, 2), number(62, 2));
    let header = |n: usize| table + n * size;
    let body = |n: usize| {
        const NOBITS: usize = 8;
        let (start, len) = (number(header(n) + 24, 8), number(header(n) + 32, 8));
        if number(header(n) + 4, 4) == NOBITS { vec![0; len] } else { elf[start..][..len].to_vec() }
    };
    let names = body(names);
    let name = |n: usize| {
        let name = &names[number(header(n), 4)..];
        String::from_utf8(name[..name.iter().position(|b| *b == 0).unwrap()].to_vec()).unwrap()
    };
    (0..count).map(|n| (name(n), body(n))).collect()
}

fn objects() -> Vec<(String, BTreeMap<String, Vec<u8>>)> {
    let folder = std::fs::read_dir(Path::new(env!("OUT_DIR"))).unwrap();
    let mut found = Vec::new();
    for path in folder.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some_and(|e| e == "o")) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        found.push((name, sections(&std::fs::read(&path).unwrap())));
    }
    found
}

/// The helpers that this program may call.
fn helpers(object: &str, section: &str) -> Vec<u32> {
    let of_kind = if section.starts_with("cgroup/") { SOCK_ADDR } else { SCHED_CLS };
    let further = OPTIONAL_OBJECTS.iter().find(|(name, _)| *name == object).map_or(&[][..], |(_, helpers)| helpers);
    [BASE, of_kind, further].concat()
}

/// What is wrong with a program, by its bytes.
fn faults(code: &[u8], helpers: &[u32]) -> Vec<String> {
    let mut faults = Vec::new();
    let count = code.len() / 8;
    if count > MAX_INSTRUCTIONS {
        faults.push(format!("{count} instructions"));
    }
    let mut skip = false;
    for (n, i) in code.chunks(8).enumerate() {
        if std::mem::take(&mut skip) {
            continue;
        }
        let (op, source) = (i[0], i[1] >> 4);
        let value = u32::from_le_bytes(i[4..].try_into().unwrap());
        match op {
            // A constant of 64 bits takes two.
            0x18 => skip = true,
            0x85 if source != 0 => faults.push(format!("{n}: calls another function")),
            0x85 if !helpers.contains(&value) => faults.push(format!("{n}: calls helper {value}")),
            0x85 | 0x95 => {}
            _ if op & 7 == 6 => faults.push(format!("{n}: jumps by 32 bits (5.1)")),
            0xc3 | 0xdb if value != 0 => faults.push(format!("{n}: atomic other than add (5.12)")),
            _ => {}
        }
    }
    faults.extend(cycle(code).map(|n| format!("{n}: leads back to where it came from")));
    faults
}

/// An instruction after which one comes that was on the way to it, as check_cfg() of kernel/bpf/verifier.c (before 5.3) looks for it.
fn cycle(code: &[u8]) -> Option<usize> {
    #[derive(Clone, Copy, PartialEq)]
    enum Seen {
        No,
        OnTheWay,
        Done,
    }
    let next = |n: usize| {
        let i = &code[8 * n..][..8];
        let jump = (n as i64 + 1 + i64::from(i16::from_le_bytes([i[2], i[3]]))) as usize;
        match i[0] {
            0x95 => vec![],
            0x05 => vec![jump],
            0x18 => vec![n + 2],
            op if op & 7 == 5 && op != 0x85 => vec![n + 1, jump],
            _ => vec![n + 1],
        }
    };
    let mut seen = vec![Seen::No; code.len() / 8];
    let mut way = vec![(0, next(0))];
    seen[0] = Seen::OnTheWay;
    while let Some((at, rest)) = way.last_mut() {
        match rest.pop() {
            None => {
                seen[*at] = Seen::Done;
                way.pop();
            }
            Some(to) if seen[to] == Seen::OnTheWay => return Some(*at),
            Some(to) if seen[to] == Seen::Done => {}
            Some(to) => {
                seen[to] = Seen::OnTheWay;
                way.push((to, next(to)));
            }
        }
    }
    None
}

#[test]
fn every_object_is_within_the_limits_of_4_19() {
    let objects = objects();
    let names: Vec<&str> = objects.iter().map(|(name, _)| name.as_str()).collect();
    assert!(
        ["eni.o", "policy.o", "sock.o", "sock_cookie.o", "sock_retval.o"].iter().all(|name| names.contains(name)),
        "{names:?}"
    );
    for (object, sections) in objects {
        let mut programs = 0;
        for (section, body) in &sections {
            let alien = [".BTF", ".rodata", ".data", ".bss"].iter().any(|name| section.starts_with(name));
            assert!(!alien && (section != ".text" || body.is_empty()), "{object} has a section {section}");
            if section.starts_with("cgroup/") || section.starts_with("classifier") || section.starts_with("tc") {
                let known = [HOOKS, OPTIONAL_HOOKS].concat().contains(&section.as_str());
                assert!(known || !section.starts_with("cgroup/"), "{object}: what hook is {section}?");
                assert_eq!(faults(body, &helpers(&object, section)), [""; 0], "{object}: {section}");
                println!("{object}: {section}: {} instructions", body.len() / 8);
                programs += 1;
            }
        }
        assert!(programs > 0, "{object} has no programs");
        for map in sections["maps"].chunks(20) {
            let word = |n: usize| u32::from_le_bytes(map[4 * n..][..4].try_into().unwrap());
            assert!(MAP_KINDS.iter().any(|(kind, _)| *kind == word(0)), "{object}: a map of kind {}", word(0));
            assert!(word(4) & !NO_PREALLOC == 0, "{object}: a map with flags {}", word(4));
        }
    }
}

#[test]
fn the_limits_are_seen_to_be_broken() {
    let exit = [0x95, 0, 0, 0, 0, 0, 0, 0];
    let program = |instruction: [u8; 8]| [instruction, exit].concat();
    assert_eq!(faults(&program([0x05, 0, 0xff, 0xff, 0, 0, 0, 0]), BASE), ["0: leads back to where it came from"]);
    assert_eq!(faults(&program([0x16, 0, 0, 0, 0, 0, 0, 0]), BASE), ["0: jumps by 32 bits (5.1)"]);
    assert_eq!(faults(&program([0x85, 0, 0, 0, 84, 0, 0, 0]), BASE), ["0: calls helper 84"]);
    assert_eq!(faults(&program([0x85, 0x10, 0, 0, 1, 0, 0, 0]), BASE), ["0: calls another function"]);
    assert_eq!(faults(&exit.repeat(4097), BASE), ["4097 instructions"]);
    assert_eq!(faults(&program([0x85, 0, 0, 0, 1, 0, 0, 0]), BASE), [""; 0]);
}
