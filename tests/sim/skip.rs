//! A test that cannot run on this kernel or machine says why, and is counted.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::thread;

/// How the line begins that a skipped test writes.
pub const SAYS: &str = "skipped: ";

/// The calling test is skipped. Its reason goes into `target/skipped` too, where `tests/skips.sh` counts.
pub fn because(why: &str) {
    println!("{SAYS}{why}");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/skipped");
    let file = OpenOptions::new().create(true).append(true).open(path);
    let test = thread::current().name().unwrap_or("?").to_owned();
    file.and_then(|mut file| file.write_all(format!("{why}\t{test}\n").as_bytes()))
        .expect("note that the test is skipped");
}
