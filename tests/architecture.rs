//! The law of the house: who may name whom, read from the sources.

use std::fs;
use std::path::Path;

/// Room, what it may name of our own rooms besides words.
const ROOMS: &[(&str, &[&str])] = &[
    ("datapath", &[]),
    ("pool", &[]),
    ("herald", &[]),
    ("repair", &[]),
    ("service", &[]),
    ("policy", &[]),
    ("sizing", &[]),
    ("kernel", &[]),
    ("cloud", &[]),
    ("kube", &[]),
    ("client", &[]),
    ("plugin", &["datapath", "kernel", "client"]),
    ("cli", &["datapath", "sizing", "kernel", "client", "cloud", "kube"]),
    ("daemon", &["datapath", "pool", "repair", "herald", "service", "policy", "kernel", "cloud", "kube"]),
];

const MINDS: &[&str] = &["datapath", "pool", "repair", "herald", "service", "policy", "sizing"];

/// Text that only files under one of these places may hold (places are prefixes of a path below `src/`).
const RESERVED: &[(&str, &[&str])] = &[
    ("smol", &["daemon/"]),
    ("rustix::event", &["daemon/"]),
    ("neli", &["kernel/"]),
    ("aya", &["kernel/"]),
    ("aya_obj", &["kernel/"]),
    ("ureq", &["cloud/", "kube/"]),
    ("argh", &["plugin/", "daemon/", "cli/", "main.rs"]),
];

/// What a mind never says.
const OUTSIDE: &[&str] =
    &["std::fs", "std::thread", "std::net::Tcp", "std::process", "Instant::now", "SystemTime", "log::"];

/// Cuts a file at its unit tests, and its lines at comments: both may speak of anything.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    text.lines().map(|l| l.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// Lines with `unsafe` that nobody gives a reason for: a `// SAFETY:` of their own, right above or on the same line.
fn reasonless(text: &str) -> Vec<usize> {
    let lines: Vec<&str> = text.lines().collect();
    let is_unsafe = |line: &str| {
        let code = line.split("//").next().unwrap_or_default();
        ["unsafe {", "unsafe impl", "unsafe extern"].iter().any(|word| code.contains(word))
    };
    let ends = |line: &str| matches!(line.trim(), "" | "}") || is_unsafe(line);
    let has_reason = |at: usize| {
        let above = lines[..at].iter().rev().take(8).take_while(|line| !ends(line) || line.contains("SAFETY:"));
        lines[at].contains("SAFETY:") || above.into_iter().any(|line| line.trim().starts_with("// SAFETY: "))
    };
    (0..lines.len()).filter(|at| is_unsafe(lines[*at]) && !has_reason(*at)).map(|at| at + 1).collect()
}

fn sources() -> Vec<(String, String)> {
    rust_below(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"))
}

fn rust_below(root: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.extension().is_some_and(|e| e == "rs") {
                found.push((below(root, &entry), fs::read_to_string(&entry).unwrap()));
            }
        }
    }
    assert!(found.len() > 10, "the sources are somewhere else");
    found.sort();
    found
}

fn below(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).unwrap().to_str().unwrap().to_owned()
}

fn room(file: &str) -> Option<&str> {
    file.split_once('/').map(|(room, _)| room)
}

/// Whether the code uses `name` as a path segment: `name::`, `use name;`, or inside a `crate::{...}` list.
fn names(code: &str, name: &str) -> bool {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(name).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = &code[at + name.len()..];
        !before.is_some_and(|c| word(c) || c == '.')
            && (after.starts_with("::") || after.starts_with(';') && code[..at].ends_with("use "))
    })
}

/// Whether the code reaches into another of our rooms.
fn names_room(code: &str, other: &str) -> bool {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let path = format!("crate::{other}");
    if code.match_indices(&path).any(|(at, _)| !code[at + path.len()..].starts_with(word)) {
        return true;
    }
    code.split("use crate::{").skip(1).any(|list| {
        let list = list.split(';').next().unwrap_or_default();
        list.split([',', '{', '}']).map(str::trim).any(|item| item == other || item.starts_with(&format!("{other}::")))
    })
}

/// Every breach of the law in these sources, as `src/pool/x.rs: pool may not name kernel`.
fn breaches(sources: &[(String, String)]) -> Vec<String> {
    let mut found = Vec::new();
    for (file, text) in sources {
        let code = code(text);
        let mut breach = |what: String| found.push(format!("src/{file}: {what}"));
        if !text.starts_with("//!") {
            breach("opens without a sentence that says what it is for".into());
        }
        let allowed = match room(file) {
            Some(r) => ROOMS.iter().find(|(name, _)| *name == r).map(|(_, allowed)| *allowed),
            None if file == "main.rs" => Some(["plugin", "daemon", "cli"].as_slice()),
            None => Some([].as_slice()),
        };
        let Some(allowed) = allowed else {
            breach("stands in a room that the table of tests/architecture.rs does not know".into());
            continue;
        };
        let here = room(file).unwrap_or("words");
        for (other, _) in ROOMS.iter().filter(|(other, _)| *other != here && !allowed.contains(other)) {
            if names_room(&code, other) {
                breach(format!("{here} may not name {other}"));
            }
        }
        for (name, places) in RESERVED {
            if names(&code, name) && !places.iter().any(|p| file.starts_with(p)) {
                breach(format!("only {} may name {name}", places.join(" and ")));
            }
        }
        if MINDS.contains(&here) {
            for outside in OUTSIDE.iter().filter(|o| code.contains(**o)) {
                breach(format!("a mind may not say {outside}"));
            }
        }
        if code.contains("unsafe ") && !file.starts_with("kernel/") && file != "maps.rs" {
            breach("unsafe is for src/kernel/ only".into());
        }
    }
    found
}

#[test]
fn every_room_keeps_to_the_law() {
    let found = breaches(&sources());
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn every_unsafe_has_its_reason() {
    let tests = rust_below(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests"));
    // This file speaks of them in texts.
    let tests = tests.into_iter().filter(|(file, _)| file != "architecture.rs");
    let found: Vec<String> = sources()
        .into_iter()
        .map(|(file, text)| (format!("src/{file}"), text))
        .chain(tests.map(|(file, text)| (format!("tests/{file}"), text)))
        .flat_map(|(file, text)| reasonless(&text).into_iter().map(move |line| format!("{file}:{line}")))
        .collect();
    assert!(found.is_empty(), "unsafe without a // SAFETY: line above it: {}", found.join(", "));
}

#[test]
fn an_unsafe_without_a_reason_is_seen() {
    assert_eq!(reasonless("// SAFETY: it is ours.\nlet x = unsafe { f() };\n\nunsafe impl A for B {}\n"), [4]);
    assert_eq!(reasonless("// SAFETY: of the first.\nunsafe { f() };\nunsafe { g() };\n"), [3]);
    assert_eq!(reasonless("// SAFETY: of another.\n}\nif a {\n    unsafe { g() }\n}\n"), [4]);
    assert_eq!(reasonless("// unsafe { is a word here\nf(|| unsafe { g() }) // SAFETY: as above.\n"), [0; 0]);
}

#[test]
fn the_law_sees_a_breach() {
    for (file, text, breach) in [
        ("pool/x.rs", "//! x\nuse crate::kernel::Kernel;", "src/pool/x.rs: pool may not name kernel"),
        ("pool/x.rs", "//! x\nuse crate::{ip, kernel::Kernel};", "src/pool/x.rs: pool may not name kernel"),
        ("pool/x.rs", "//! x\nlet t = std::time::Instant::now();", "src/pool/x.rs: a mind may not say Instant::now"),
        ("kernel/x.rs", "//! x\nuse smol::Timer;", "src/kernel/x.rs: only daemon/ may name smol"),
        ("cloud/x.rs", "//! x\nunsafe { f() }", "src/cloud/x.rs: unsafe is for src/kernel/ only"),
        ("pool/x.rs", "//! x\n#[cfg(test)]\nmod fuzz;\nuse crate::kube;", "src/pool/x.rs: pool may not name kube"),
        ("ip.rs", "//! x\nuse crate::pool::Pool;", "src/ip.rs: words may not name pool"),
        (
            "attic/x.rs",
            "//! x\n",
            "src/attic/x.rs: stands in a room that the table of tests/architecture.rs does not know",
        ),
        ("kube/x.rs", "use std::fmt;", "src/kube/x.rs: opens without a sentence that says what it is for"),
    ] {
        assert_eq!(breaches(&[(file.into(), text.into())]), [breach]);
    }
    let fine =
        "//! x\n// crate::kernel is not named here\nuse crate::ip;\n#[cfg(test)]\nmod tests {\nuse crate::kernel;}";
    assert_eq!(breaches(&[("pool/x.rs".into(), fine.into())]), [""; 0]);
    let client = "//! x\nuse crate::client::ask;";
    assert_eq!(breaches(&[("plugin/x.rs".into(), client.into())]), [""; 0]);
}
