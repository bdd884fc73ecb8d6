//! The node daemon: joins every mind and hand; the only room that awaits.

mod ledger;

use std::process::ExitCode;

/// `terwayd` with the arguments after its name.
pub fn main(_args: &[String]) -> ExitCode {
    eprintln!("terwayd: this build has no daemon");
    ExitCode::FAILURE
}
