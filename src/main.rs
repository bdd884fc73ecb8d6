//! Looks at `argv[0]` and becomes terway, terwayd or terway-cli.

use std::path::Path;
use std::process::ExitCode;

use terway::kernel::memory::Memory;
use terway::{cli, daemon, plugin};

#[global_allocator]
static MEMORY: Memory = Memory::new();

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect();
    let (name, args) = args.split_first().map_or(("", [].as_slice()), |(name, args)| (name.as_str(), args));
    match Path::new(name).file_name().and_then(|n| n.to_str()) {
        Some("terwayd") => daemon::main(args),
        Some("terway-cli") => cli::main(args),
        _ => by_first_argument(args),
    }
}

/// The file has the plugin's name, or one that somebody else chose. A runtime calls the plugin without arguments.
fn by_first_argument(args: &[String]) -> ExitCode {
    match args.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        Some(("daemon", rest)) => daemon::main(rest),
        Some(("cli", rest)) => cli::main(rest),
        _ => plugin::main(),
    }
}
