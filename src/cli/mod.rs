//! The face for people: what the daemon knows and what the kernel has, printed, and what to do about it.

mod bundle;
mod compare;
mod doctor;
mod enis;
mod execute;
mod face;
mod finding;
mod known;
mod led;
mod list;
mod mapping;
mod metadata;
mod monitor;
mod plan;
mod plan_cluster;
mod pods;
mod policy;
mod services;
mod show;
mod status;
mod trace;

use std::process::ExitCode;

use argh::FromArgs;

use face::{Code, complain, say, tell};

/// Shows what Terway does on this node. All commands take --json; colours are for terminals, and NO_COLOR switches them off. Exits with
/// 0 if all is well, 1 if something was found or the answer is no, 2 if the command makes no sense, 3 if terwayd does not answer.
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
    Status(status::Status),
    Doctor(doctor::Doctor),
    Trace(trace::Trace),
    Pods(pods::Pods),
    Enis(enis::Enis),
    Services(services::Services),
    Policy(policy::Policy),
    Monitor(monitor::Monitor),
    Show(show::Show),
    List(list::List),
    Mapping(mapping::Mapping),
    Execute(execute::Execute),
    Metadata(metadata::MetadataVerb),
    Plan(plan::PlanVerb),
    PlanCluster(plan_cluster::PlanCluster),
    Bundle(bundle::Bundle),
}

/// `terway-cli` with the arguments after its name.
pub fn main(args: &[String]) -> ExitCode {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let cli = match Cli::from_args(&["terway-cli"], &args) {
        Ok(cli) => cli,
        Err(exit) if exit.status.is_ok() => return say(&exit.output, Code::Fine),
        Err(exit) => return complain(exit.output.trim_end(), Code::Usage),
    };
    if cli.version {
        return say(&format!("terway {}\n", env!("CARGO_PKG_VERSION")), Code::Fine);
    }
    match cli.verb {
        Some(verb) => run(verb),
        None => complain("nothing to do; terway-cli --help lists the commands", Code::Usage),
    }
}

fn run(verb: Verb) -> ExitCode {
    match verb {
        Verb::Status(verb) => tell(verb.answer(), verb.json),
        Verb::Doctor(verb) => tell(verb.answer(), verb.json),
        Verb::Trace(verb) => tell(verb.answer(), verb.json),
        Verb::Bundle(verb) => tell(verb.answer(), verb.json),
        Verb::Pods(verb) => tell(verb.answer(), verb.json),
        Verb::Enis(verb) => tell(verb.answer(), verb.json),
        Verb::Services(verb) => tell(verb.answer(), verb.json),
        Verb::Policy(verb) => tell(verb.answer(), verb.json()),
        Verb::Monitor(verb) => verb.run(),
        Verb::Show(verb) => tell(verb.answer(), verb.json),
        Verb::List(verb) => tell(verb.answer(), verb.json),
        Verb::Mapping(verb) => tell(verb.answer(), verb.json),
        Verb::Execute(verb) => tell(verb.answer(), verb.json),
        Verb::Metadata(verb) => tell(verb.answer(), verb.json),
        Verb::Plan(verb) => tell(verb.answer(), verb.json),
        Verb::PlanCluster(verb) => tell(verb.answer(), verb.json),
    }
}
