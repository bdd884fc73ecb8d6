//! The node daemon: joins every mind and hand; the only room that awaits.

mod adopt;
mod alone;
mod bandwidth;
mod boot;
mod calls;
mod clock;
#[cfg(fuzzing)]
pub mod doors;
mod early;
mod eni;
mod file;
mod guard;
mod layers;
mod ledger;
mod legacy;
mod lobby;
mod machine;
mod meter;
mod news;
mod node;
mod notify;
mod old;
mod outset;
mod outside;
mod phases;
mod pods;
mod policy;
mod reactor;
mod renderer;
mod serve;
mod sticky;
mod tally;
mod terms;
mod threads;
mod trials;
mod web;
mod world;

use std::future::pending;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use argh::FromArgs;
use rustix::process::Signal;
use smol::channel::{Sender, bounded};
use smol::{LocalExecutor, future};

use crate::cni;
use crate::config::Mode;
use crate::error::Error;
use crate::happening::Happening;
use crate::kernel::{Signals, Watch};
use crate::ours;
pub use layers::{AT_START, FILE_ONLY};
use lobby::Lobby;
use node::Input;
use reactor::{Async, Timer, block_on};

/// The signals that we heed.
const HEEDED: [Signal; 3] = [Signal::TERM, Signal::INT, Signal::HUP];

/// Inputs that wait for the node loop; whoever sends more waits. There is room for all of them from the start.
const INPUTS: usize = 256;

/// What happens within this time is heard at once: all that an ADD makes, once it has begun.
const GATHER: Duration = Duration::from_millis(5);
/// Everything is looked at when something was lost: not more often than this.
const PAUSE_WHEN_LOST: Duration = Duration::from_secs(1);

/// A loop that has not ended by then is left behind.
const ENDING: Duration = Duration::from_millis(500);

/// The Terway node daemon: gives pods VPC addresses.
#[derive(FromArgs)]
struct Args {
    /// configuration file (default /etc/eni/eni.json)
    #[argh(option, default = "PathBuf::from(ours::CONFIG)")]
    config: PathBuf,
    /// kubeconfig file (default: the one of the configuration, else the service account of the pod we run in)
    #[argh(option)]
    kubeconfig: Option<PathBuf>,
    /// eNIMultiIP: many pods to an ENI; ENIOnly: each pod has one to itself (default: daemon_mode of the configuration, else
    /// the node's label k8s.aliyun.com/exclusive-mode-eni-type)
    #[argh(option, from_str_fn(mode))]
    daemon_mode: Option<Mode>,
    /// error, warn, info (default) or debug
    #[argh(option, default = "String::from(\"info\")")]
    log_level: String,
    /// where to answer /metrics, /healthz and /readyz beside unix:///var/run/eni/eni_debug.socket: unix:///PATH or ADDRESS:PORT
    #[argh(option)]
    readonly_listen: Option<String>,
    /// print the version and exit
    #[argh(switch)]
    version: bool,
}

/// Runs the daemon until SIGTERM or SIGINT; `args` without the program's name.
pub fn main(args: &[String]) -> ExitCode {
    phases::begin();
    let args = with_two_dashes(args);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let args = match Args::from_args(&["terwayd"], &args) {
        Ok(args) => args,
        Err(early) => {
            let (text, code) = match early.status {
                Ok(()) => (early.output, ExitCode::SUCCESS),
                Err(()) => (format!("terwayd: {}", early.output), ExitCode::FAILURE),
            };
            eprintln!("{}", text.trim_end());
            return code;
        }
    };
    if args.version {
        eprintln!("terwayd {}", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    if let Err(e) = start_log(&args.log_level).and_then(|()| run(&args)) {
        eprintln!("terwayd: {e}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// The old Terway's options have one dash, or a value behind `=`: -daemon-mode=ENIOnly.
fn with_two_dashes(args: &[String]) -> Vec<String> {
    let mut all = Vec::new();
    for arg in args {
        match arg.strip_prefix('-') {
            Some(name) if name.len() > 1 => {
                let name = name.trim_start_matches('-');
                let (name, value) = name.split_once('=').map_or((name, None), |(name, value)| (name, Some(value)));
                all.push(format!("--{name}"));
                all.extend(value.map(str::to_owned));
            }
            _ => all.push(arg.clone()),
        }
    }
    all
}

fn mode(text: &str) -> Result<Mode, String> {
    let known = Mode::WORDS.iter().find(|(word, _)| word.eq_ignore_ascii_case(text));
    known.map(|(_, mode)| *mode).ok_or_else(|| format!("--daemon-mode {text:?} is none of ENIMultiIP, ENIOnly"))
}

fn start_log(level: &str) -> Result<(), Error> {
    let level: log::LevelFilter = level
        .parse()
        .map_err(|_| Error::refused(format!("--log-level {level:?} is none of error, warn, info, debug")))?;
    // The libraries we stand on speak up only when something is wrong.
    env_logger::Builder::new().filter_level(level.min(log::LevelFilter::Warn)).filter_module("terway", level).init();
    Ok(())
}

fn run(args: &Args) -> Result<(), Error> {
    let start = boot::Start::read(&args.config, args.kubeconfig.as_deref(), args.daemon_mode)?;
    let place = alone::claim(ours::LOCK.as_ref())?;
    let _without_the_old = old::claim()?;
    let executor = Rc::new(LocalExecutor::new());
    let (inputs, arriving) = bounded(INPUTS);
    executor.spawn(threads::attend(threads::late())).detach();
    let signals = Async::new(Signals::open(&HEEDED.map(Signal::as_raw))?)?;
    let life = async {
        let listener = serve::listen(ours::SOCKET.as_ref())?;
        executor.spawn(serve::serve(listener, executor.clone(), inputs.clone())).detach();
        web::open(args.readonly_listen.as_deref(), &executor, &inputs)?;
        // Open before the kernel is looked at: nothing happens in between unheard.
        let watch = Watch::open().and_then(|watch| Ok(Async::new(watch)?));
        phases::reached("whoever asks is heard");
        let lobby = Lobby::default();
        let booting = boot::boot(start.clone(), &place, inputs.clone(), &lobby);
        let booted = future::or(async { Some(booting.await) }, async {
            lobby.receive(&arriving).await;
            None
        });
        let Some(booted) = booted.await else { return Ok(()) };
        let (mut node, outset, waiting) = booted?;
        let layers = node.layers();
        let conflist = boot::announce(&layers.config().conflist)?;
        executor.spawn(file::watch(layers.path().to_owned(), layers.text().to_owned(), inputs.clone())).detach();
        log::info!("serving on {}", ours::SOCKET);
        notify::ready();
        executor.spawn(notify::live()).detach();
        match watch {
            Ok(watch) => executor.spawn(listen(watch, inputs.clone())).detach(),
            Err(e) => log::warn!("what others change is seen by comparison only: {e}"),
        }
        let ipvlan = cni::asks_for_ipvlan(&conflist);
        node.begin_policies(ipvlan, outset);
        node.begin_services(ipvlan);
        node.run(waiting, arriving).await;
        Ok(())
    };
    let until_told = heed(signals, &args.config, &inputs);
    block_on(executor.run(future::or(life, until_told)))?
}

/// Tells the loop what happens in the kernel, a burst at a time.
async fn listen(watch: Async<Watch>, inputs: Sender<Input>) {
    loop {
        watch.readable().await;
        let heard = watch.get_ref().hear().unwrap_or_else(|e| {
            log::warn!("{e}");
            vec![Happening::Lost]
        });
        let pause = if heard.contains(&Happening::Lost) { PAUSE_WHEN_LOST } else { GATHER };
        if !heard.is_empty() && inputs.send(Input::Happened(heard)).await.is_err() {
            return;
        }
        Timer::after(pause).await;
    }
}

/// Has the loop end at SIGTERM and SIGINT; what is under way is found again by the next life, and the data path stays as it is.
/// SIGHUP reads the configuration again, also where nobody has seen it change.
async fn heed(signals: Async<Signals>, config: &Path, inputs: &Sender<Input>) -> Result<(), Error> {
    loop {
        let number = signals.read_with(Signals::next).await?;
        if number != Signal::HUP.as_raw() {
            let name = if number == Signal::TERM.as_raw() { "SIGTERM" } else { "SIGINT" };
            log::info!("{name}: ending; pods keep their network");
            notify::stopping();
            let told = async {
                let _ = inputs.send(Input::End).await;
                pending().await
            };
            future::or(told, Timer::after(ENDING)).await;
            return Ok(());
        }
        let _ = inputs.send(Input::File(file::read(config))).await;
    }
}
