//! `services`: which Services this node leads at the socket, and to whom.

use std::fs::{File, TryLockError};
use std::io::ErrorKind;
use std::path::Path;

use argh::FromArgs;
use serde_json::{Value, json};

use super::face::{Answer, Cell, Code, Failure, Hue, Table};
use super::led;
use super::status::{list, text};
use crate::error::{Context, Error};
use crate::kernel::bpf::standing;
use crate::ours;

/// So many endpoints stand in a line; JSON has all that terwayd tells.
const SHOWN: usize = 4;

/// Show the Services that this node leads at the socket, and to which endpoints. Exits with 0, 1 if one has no endpoints or is refused,
/// 3 if terwayd does not answer (the kernel's maps are read then, where there are some).
#[derive(FromArgs)]
#[argh(subcommand, name = "services")]
pub struct Services {
    /// only those in whose name or address this occurs, such as shop/web or 172.21.0.10
    #[argh(positional)]
    pub matching: Option<String>,
    /// take the programs and maps away that lead Services, so that they are kube-proxy's again; while terwayd does not run
    #[argh(switch)]
    pub leave: bool,
    /// print JSON
    #[argh(switch)]
    pub json: bool,
}

impl Services {
    pub fn answer(&self) -> Result<Answer, Failure> {
        if self.leave {
            return leave();
        }
        let (shown, silence) = led::look(self.matching.as_deref().unwrap_or_default())?;
        let mut table = Table::new(["SERVICE", "ADDRESS", "ENDPOINTS", "NOTE"]);
        let mut good = true;
        for service in list(&shown["services"]) {
            let (endpoints, note) = (endpoints(service), note(service));
            good &= note.1.is_empty();
            table.row([text(service, "service").into(), text(service, "address").into(), endpoints.into(), note]);
        }
        let mut page = table.text();
        for refused in list(&shown["refused"]) {
            good = false;
            page += &format!("refused: {}: {}\n", text(refused, "service"), text(refused, "reason"));
        }
        if let Some(left) = shown["left_out"].as_u64().filter(|left| *left > 0) {
            page += &format!("{left} more: name what you look for\n");
        }
        let Some(why) = silence else { return Ok(Answer::found(good, page, shown)) };
        page.insert_str(
            0,
            &format!("terwayd does not answer ({why}): what follows is from the kernel, which knows no names\n"),
        );
        Ok(Answer { page, json: shown, code: Code::NoDaemon })
    }
}

/// Programs at a cgroup hold their maps, and lead connections by them for as long as the machine is up: past the daemon and its package.
fn leave() -> Result<Answer, Failure> {
    let root = Path::new(ours::BPF_ROOT);
    let fine = |page: &str, led: bool| Ok(Answer::fine(format!("{page}\n"), json!({"led": led})));
    if !standing::somewhere(root) {
        return fine("no Service is led at the socket by Terway", false);
    }
    let _place = place()?;
    standing::leave(root, None)?;
    fine("no Service is led at the socket by Terway any more", true)
}

/// The place of the node's daemon: none begins before we are done.
fn place() -> Result<Option<File>, Failure> {
    let doing = || format!("lock {}", ours::LOCK);
    let file = match File::open(ours::LOCK) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        file => file.context(doing)?,
    };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Err(Failure::new(
            Code::Found,
            "terwayd runs, and would lead them again: set ebpf_services to false in its configuration, or stop it first",
        )),
        Err(TryLockError::Error(e)) => Err(Failure::from(Error::from(e).within(doing()))),
    }
}

fn endpoints(service: &Value) -> String {
    let all: Vec<&str> = list(&service["endpoints"]).filter_map(Value::as_str).collect();
    let count = service["count"].as_u64().unwrap_or_default() as usize;
    let first = all.iter().take(SHOWN).copied().collect::<Vec<_>>().join(" ");
    if count > SHOWN { format!("{first} and {} more", count - SHOWN) } else { first }
}

fn note(service: &Value) -> Cell {
    match service["count"].as_u64() {
        Some(0) => Cell(Hue::Bad, "no endpoints: connections are refused".into()),
        _ => Cell(Hue::Plain, String::new()),
    }
}
