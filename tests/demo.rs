//! `make demo`: a small world of network namespaces, and the real binaries at work in it.

#[path = "demo/bandwidth.rs"]
mod bandwidth;
#[path = "demo/browser.rs"]
mod browser;
#[path = "demo/exclusive.rs"]
mod exclusive;
#[path = "demo/guest.rs"]
mod guest;
#[path = "demo/heirs.rs"]
mod heirs;
#[path = "demo/left.rs"]
mod left;
#[path = "demo/modes.rs"]
mod modes;
#[path = "demo/orders.rs"]
mod orders;
#[path = "demo/outage.rs"]
mod outage;
#[path = "demo/paths.rs"]
mod paths;
#[path = "demo/repairs.rs"]
mod repairs;
#[path = "demo/report.rs"]
mod report;
#[path = "demo/screen.rs"]
mod screen;
#[path = "demo/services.rs"]
mod services;
#[path = "demo/settings.rs"]
mod settings;
#[allow(dead_code, unused_imports)]
mod sim;
#[path = "demo/story.rs"]
mod story;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;

use modes::Mode;
use orders::Orders;
use report::Report;
use screen::{Screen, Tone};
use story::{End, Story};

const USAGE: &str = "usage: demo [--mode policy-route|ipvlan|exclusive] [--keep]

Builds a small world of network namespaces (a VPC, nodes, the cloud's APIs, a Kubernetes API), runs terwayd and the CNI
plugin in it, and shows every path between pods, a Service, a network policy, a limit, and a restart of the daemon under
traffic. What was shown is in target/demo.html afterwards. Exit status 1 when anything is not as it should be.

  --mode MODE  how pods are wired (policy-route where nothing is said, which shows most); ipvlan is shown on another
               kernel, in a guest, where this one has none
  --keep       leave the world up once all pods run, until Enter or Ctrl-C";

/// The simulators panic when the world does not do as it is told; it is said once all is over.
static PANIC: Mutex<String> = Mutex::new(String::new());

/// Which of the processes that show it this is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    /// The one that was started, and keeps the terminal.
    Outer,
    /// The one that works.
    Inner,
    /// The one that works on another kernel.
    Guest,
}

struct Args {
    who: Who,
    mode: Mode,
    keep: bool,
    colour: bool,
}

impl Args {
    fn parse() -> Option<Args> {
        let mut args = Args { who: Who::Outer, mode: Mode::PolicyRoute, keep: false, colour: false };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            match word.as_str() {
                orders::INSIDE => args.who = Who::Inner,
                guest::INSIDE => (args.who, args.mode) = (Who::Guest, Mode::Ipvlan),
                guest::COLOUR => args.colour = true,
                "--keep" => args.keep = true,
                "--mode" => {
                    let word = words.next()?;
                    args.mode = Mode::WORDS.iter().find(|(name, _)| *name == word)?.1;
                }
                _ => return None,
            }
        }
        Some(args)
    }
}

fn main() -> ExitCode {
    if std::env::args().skip(1).any(|word| word == "-h" || word == "--help") {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let Some(args) = Args::parse() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match args.who {
        Who::Outer if !rustix::process::geteuid().is_root() => {
            eprintln!("the demo makes network namespaces: run it as root");
            ExitCode::from(2)
        }
        Who::Outer => begin(&args),
        Who::Inner => tell(&args, Screen::new(), Orders::new()),
        Who::Guest => tell(&args, Screen::passed_on(args.colour), Orders::none()),
    }
}

/// Has it told by a process of its own, on another kernel where it must be.
fn begin(args: &Args) -> ExitCode {
    if args.mode == Mode::Ipvlan
        && let Some(why) = guest::lack()
    {
        let code = guest::run(&why, args.keep, &page());
        println!("\n  The report: {}", page().display());
        return if looks_well() { code } else { ExitCode::FAILURE };
    }
    let keep = args.keep.then_some("--keep");
    orders::pass_on(&["--mode", args.mode.word()].into_iter().chain(keep).collect::<Vec<_>>())
}

/// Where the report is.
fn page() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/demo.html")
}

/// Whether a browser has nothing to complain of.
fn looks_well() -> bool {
    let complaint = browser::complaint(&page());
    complaint.iter().for_each(|why| println!("  ✗ The report, in a browser: {why}"));
    complaint.is_none()
}

/// Tells the story, whatever its end cleans up, and says how it went.
fn tell(args: &Args, screen: Screen, orders: Orders) -> ExitCode {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map_or_else(String::new, |place| format!(" ({place})"));
        *PANIC.lock().expect("a String") = format!("{}{place}", panic.payload_as_str().unwrap_or_default().trim());
    }));
    let mut story = Story::new(screen, orders);
    let end = catch_unwind(AssertUnwindSafe(|| story.tell(args.mode, args.keep)))
        .unwrap_or_else(|_| Err(End::Failed(PANIC.lock().expect("a String").clone())));
    // Whatever goes wrong from here on goes wrong aloud.
    drop(std::panic::take_hook());
    let mut faults = story.faults();
    if let Err(End::Failed(why)) = &end {
        faults += 1;
        screen.line(&format!("\n  {} {why}", screen.paint(Tone::Bad, "✗")));
    }
    if faults > 0 {
        story.show_logs();
    }
    let took = story.end();
    if let Err(End::Interrupted) = end {
        screen.line("\n  Interrupted; everything is taken down.");
        return ExitCode::from(130);
    }
    keep_report(args, &took, faults);
    if args.who != Who::Guest && !looks_well() {
        faults += 1;
    }
    if faults == 0 {
        let good = screen.paint(Tone::Good, "Everything is as it should be");
        screen.line(&format!("\n  {good}, after {took}."));
        return ExitCode::SUCCESS;
    }
    let bad = screen.paint(Tone::Bad, "Not everything is as it should be");
    screen.line(&format!("\n  {bad}; faults: {faults}."));
    ExitCode::FAILURE
}

/// Writes the page, or says it where nobody else sees our files.
fn keep_report(args: &Args, took: &str, faults: usize) {
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    let place = if args.who == Who::Guest { " (User Mode Linux)" } else { "" };
    let facts = [
        ("mode", args.mode.name().to_owned()),
        ("terway", env!("CARGO_PKG_VERSION").to_owned()),
        ("kernel", kernel + place),
        ("took", took.to_owned()),
        ("again", format!("make demo MODE={}", args.mode.word())),
    ];
    let facts = facts.map(|(name, value)| (name.to_owned(), value)).into();
    let report = Report { title: format!("Terway at work: {}", args.mode.name()), facts, faults, ..screen::shown() };
    match args.who {
        Who::Guest => println!("{}\n{}{}", guest::BEGIN, report.html(), guest::END),
        _ => {
            let page = page();
            std::fs::write(&page, report.html()).unwrap_or_else(|e| panic!("write {}: {e}", page.display()));
            println!("\n  The report: {}", page.display());
        }
    }
}
