//! IPvlan where this machine's kernel has none: the demo runs on one that has, in a guest, and what it shows comes back.

use std::io::{BufRead, BufReader, IsTerminal};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use terway::error::Error;
use terway::kernel;

use crate::sim::cluster::binary;
use crate::sim::ns::Ns;

/// Says to the program that it is in the guest, and that colours are seen.
pub const INSIDE: &str = "--guest";
pub const COLOUR: &str = "--colour";
/// Lines between which the report comes out of the guest, whose files nobody else sees.
pub const BEGIN: &str = "<!-- report -->";
pub const END: &str = "<!-- end of the report -->";
/// All of it takes a quarter of that on two idle CPUs.
const SECONDS: &str = "600";

/// Why this machine cannot.
pub fn lack() -> Option<Error> {
    Ns::new("trial").run(kernel::ipvlan).err()
}

/// Runs the demo in a guest, and keeps its report.
pub fn run(why: &Error, keep: bool, report: &Path) -> ExitCode {
    println!("\nThe kernel of this machine has no IPvlan for pods ({why}).");
    println!("So this runs in User Mode Linux, a kernel that is a process: Debian's 6.1, one CPU, slower than here.");
    if keep {
        println!("There is no stepping into it: KEEP=1 is for the other modes.");
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vm/boot.sh");
    let mut command = Command::new(script);
    command.args(["uml", "/usr/bin/env"]).arg(format!("TERWAY_BINARY={}", binary().display()));
    command.arg(std::env::current_exe().expect("we know where we are")).arg(INSIDE);
    if std::io::stdout().is_terminal() {
        command.arg(COLOUR);
    }
    let child = command.env("VM_SECONDS", SECONDS).stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut child = child.expect("start boot.sh");
    let said = listen(BufReader::new(child.stdout.take().expect("it is piped")));
    let _ = child.wait();
    if !said.page.is_empty() {
        std::fs::write(report, said.page).unwrap_or_else(|e| panic!("write {}: {e}", report.display()));
    }
    match said.exit {
        Some(code) => ExitCode::from(code),
        None => {
            println!(
                "There was no guest, or it did not end in {SECONDS} s: without one, IPvlan needs a kernel of 4.19 or later with ipvlan."
            );
            ExitCode::FAILURE
        }
    }
}

#[derive(Default)]
struct Said {
    page: String,
    exit: Option<u8>,
}

/// Passes on what the guest says, but for the report and how it ended.
fn listen(mut guest: impl BufRead) -> Said {
    let (mut said, mut in_page, mut line) = (Said::default(), false, Vec::new());
    while guest.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
        let text = String::from_utf8_lossy(&line).replace(['\r', '\n'], "");
        match text.as_str() {
            BEGIN => in_page = true,
            END => in_page = false,
            text if in_page => said.page += &format!("{text}\n"),
            text => match text.strip_prefix("exit ").and_then(|code| code.parse().ok()) {
                Some(code) => said.exit = Some(code),
                None => println!("{text}"),
            },
        }
        line.clear();
    }
    said
}
