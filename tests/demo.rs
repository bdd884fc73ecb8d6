//! `make demo`: a small world of network namespaces, and the real binaries at work in it.

#[path = "demo/bandwidth.rs"]
mod bandwidth;
#[path = "demo/exclusive.rs"]
mod exclusive;
#[path = "demo/heirs.rs"]
mod heirs;
#[path = "demo/left.rs"]
mod left;
#[path = "demo/orders.rs"]
mod orders;
#[path = "demo/outage.rs"]
mod outage;
#[path = "demo/paths.rs"]
mod paths;
#[path = "demo/repairs.rs"]
mod repairs;
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
use std::process::ExitCode;
use std::sync::Mutex;

use screen::{Screen, Tone};
use story::{End, Story};

const USAGE: &str = "usage: demo [--keep]

Builds a small world of network namespaces (a VPC, two nodes, the cloud's APIs, a Kubernetes API), runs terwayd and the
CNI plugin in it, and shows every path between pods. Exit status 1 when anything is not as it should be.

  --keep  leave the world up once all pods run, until Enter or Ctrl-C";

/// The simulators panic when the world does not do as it is told; it is said once all is over.
static PANIC: Mutex<String> = Mutex::new(String::new());

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] | ["--keep"] if !rustix::process::geteuid().is_root() => {
            eprintln!("the demo makes network namespaces: run it as root");
            ExitCode::from(2)
        }
        [] => orders::pass_on(&[]),
        ["--keep"] => orders::pass_on(&["--keep"]),
        [orders::INSIDE] => tell(false),
        [orders::INSIDE, "--keep"] => tell(true),
        ["-h" | "--help"] => {
            println!("{USAGE}");
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

/// Tells the story, whatever its end cleans up, and says how it went.
fn tell(keep: bool) -> ExitCode {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map_or_else(String::new, |place| format!(" ({place})"));
        *PANIC.lock().expect("a String") = format!("{}{place}", panic.payload_as_str().unwrap_or_default().trim());
    }));
    let screen = Screen::new();
    let mut story = Story::new(screen);
    let end = catch_unwind(AssertUnwindSafe(|| story.tell(keep)))
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
    match end {
        Err(End::Interrupted) => {
            screen.line("\n  Interrupted; everything is taken down.");
            ExitCode::from(130)
        }
        _ if faults == 0 => {
            let good = screen.paint(Tone::Good, "Everything is as it should be");
            screen.line(&format!("\n  {good}, after {took}."));
            ExitCode::SUCCESS
        }
        _ => {
            let bad = screen.paint(Tone::Bad, "Not everything is as it should be");
            screen.line(&format!("\n  {bad}; faults: {faults}."));
            ExitCode::FAILURE
        }
    }
}
