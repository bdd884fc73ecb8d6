//! The face for people: what the daemon knows, printed.

mod monitor;
mod plan_cluster;
mod policy;

use std::io::{ErrorKind, Write};
use std::process::ExitCode;
use std::time::Duration;

use argh::FromArgs;
use serde_json::Value;

use crate::client;
use crate::error::{Context, Error};
use crate::rpc::{Lease, Reply, Request};

/// Shows what Terway does on this node.
#[derive(FromArgs)]
struct Cli {
    /// print the version and exit
    #[argh(switch)]
    version: bool,
    #[argh(subcommand)]
    verb: Option<Verb>,
}

#[derive(FromArgs)]
#[argh(subcommand)]
enum Verb {
    Show(Show),
    List(List),
    Policy(policy::Policy),
    Monitor(monitor::Monitor),
    PlanCluster(plan_cluster::PlanCluster),
}

/// The pool as the daemon sees it, as JSON.
#[derive(FromArgs)]
#[argh(subcommand, name = "show")]
struct Show {}

/// The leases: pod, addresses, ENI, attachment.
#[derive(FromArgs)]
#[argh(subcommand, name = "list")]
struct List {}

/// `terway-cli` with the arguments after its name.
pub fn main(args: &[String]) -> ExitCode {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let cli = match Cli::from_args(&["terway-cli"], &args) {
        Ok(cli) => cli,
        Err(exit) if exit.status.is_ok() => return say(&exit.output),
        Err(exit) => return complain(exit.output.trim_end()),
    };
    if cli.version {
        return say(&format!("terway {}\n", env!("CARGO_PKG_VERSION")));
    }
    let Some(verb) = cli.verb else { return complain("nothing to do; terway-cli --help lists the commands") };
    let answer = match verb {
        Verb::PlanCluster(verb) => return verb.run(),
        Verb::Monitor(verb) => return verb.run(),
        Verb::Show(_) => pool().map(|pool| format!("{pool:#}\n")),
        Verb::List(_) => pool().and_then(|pool| list(&pool)),
        Verb::Policy(verb) => verb.answer(),
    };
    match answer {
        Ok(text) => say(&text),
        Err(e) => complain(e),
    }
}

fn pool() -> Result<Value, Error> {
    shown(&Request::Show {})
}

fn shown(request: &Request) -> Result<Value, Error> {
    match client::ask(request, Duration::from_secs(30))? {
        Reply::Show(value) => Ok(value),
        Reply::Refused { reason, .. } => Err(Error::refused(reason)),
        other => Err(Error::malformed(format!("terwayd answered {other:?} to {request:?}"))),
    }
}

/// One line per lease; the pool shows them as a list under `leases`.
fn list(pool: &Value) -> Result<String, Error> {
    let leases: Vec<Lease> =
        serde_json::from_slice(pool["leases"].to_string().as_bytes()).context(|| "leases of terwayd")?;
    let mut text = format!("{:<48} {:<24} {:<24} {}\n", "POD", "ADDRESS", "ENI", "ATTACHMENT");
    for Lease { pod, ip, eni, sandbox, .. } in &leases {
        let (pod, ip, id) = (pod.to_string(), ip.to_string(), &eni.id);
        text += &format!("{pod:<48} {ip:<24} {id:<24} {}\n", sandbox.attachment);
    }
    Ok(text)
}

/// A reader that has seen enough (`| head`) is no failure.
fn say(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => complain(format!("write to stdout: {e}")),
        _ => ExitCode::SUCCESS,
    }
}

fn complain(what: impl std::fmt::Display) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "terway-cli: {what}");
    ExitCode::FAILURE
}
