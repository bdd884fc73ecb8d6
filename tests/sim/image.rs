//! A container image made on the spot: a static busybox and its names, as an archive that `docker save` could have written.

use std::fmt::Write;
use std::fs;

use ring::digest;
use serde_json::json;

pub const IMAGE: &str = "terway.test/busybox:1";

const BUSYBOX: &str = "/bin/busybox";
const APPLETS: [&str; 15] = [
    "cat",
    "chmod",
    "echo",
    "hostname",
    "httpd",
    "ip",
    "ls",
    "mkdir",
    "nc",
    "nslookup",
    "ping",
    "sh",
    "sleep",
    "traceroute",
    "wget",
];

/// Whether this machine's busybox needs no libraries, so that it runs alone in an image.
pub fn busybox_is_static() -> bool {
    fs::read(BUSYBOX).is_ok_and(|file| !names_an_interpreter(&file))
}

/// Whether a 64-bit ELF file has a program header of type PT_INTERP.
fn names_an_interpreter(file: &[u8]) -> bool {
    const PT_INTERP: usize = 3;
    let number =
        |at: usize, size: usize| file[at..at + size].iter().rev().fold(0, |n, byte| n << 8 | usize::from(*byte));
    let (table, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    (0..count).any(|n| number(table + n * size, 4) == PT_INTERP)
}

/// The archive. The image does nothing for a long time unless it is told a command, so it is the pause image, too.
pub fn archive() -> Vec<u8> {
    let layer = layer();
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": { "Cmd": ["/bin/sleep", "1000000"], "Env": ["PATH=/bin"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", sha256(&layer))] },
    });
    let manifest = json!([{ "Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"] }]);
    let mut tar = Tar::default();
    tar.file("manifest.json", 0o644, manifest.to_string().as_bytes());
    tar.file("config.json", 0o644, config.to_string().as_bytes());
    tar.file("layer.tar", 0o644, &layer);
    tar.end()
}

fn layer() -> Vec<u8> {
    let mut tar = Tar::default();
    for directory in ["bin/", "etc/", "proc/", "sys/", "dev/", "tmp/"] {
        tar.entry(directory, 0o755, b'5', "", &[]);
    }
    tar.file("bin/busybox", 0o755, &fs::read(BUSYBOX).expect("read busybox"));
    for applet in APPLETS {
        tar.entry(&format!("bin/{applet}"), 0o777, b'2', "busybox", &[]);
    }
    tar.end()
}

/// A tar archive (ustar) in the making. Everything belongs to root and dates from 1970, so the same input gives the same image.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn file(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entry(name, mode, b'0', "", content);
    }

    fn entry(&mut self, name: &str, mode: u32, kind: u8, target: &str, content: &[u8]) {
        let mut header = [0; 512];
        let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
        put(0, name);
        put(100, &format!("{mode:07o}"));
        put(108, "0000000");
        put(116, "0000000");
        put(124, &format!("{:011o}", content.len()));
        put(136, "00000000000");
        put(148, "        "); // the sum is taken with blanks in its own place
        put(157, target);
        put(257, "ustar\x0000");
        header[156] = kind;
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        self.0.extend(header);
        self.0.extend(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

fn sha256(bytes: &[u8]) -> String {
    digest::digest(&digest::SHA256, bytes).as_ref().iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").expect("a string takes all");
        hex
    })
}
