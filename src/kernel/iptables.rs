//! Single netfilter rules, by iptables(8): whichever of its two kinds the node has is the kind that kube-proxy uses too.

use std::ffi::{OsStr, OsString};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::{Context, Error};
use crate::ip::Family;
use crate::plan::Iptables;

/// How the tables' lock is waited for, which others hold too: some seconds at most; before 1.6.0 for as long as it takes; before 1.4.20
/// there is none.
const WAITS: [&[&str]; 3] = [&["-w", "5"], &["-w"], &[]];
/// Which of them the node's iptables was found to know.
static WAIT: AtomicUsize = AtomicUsize::new(0);

/// Whether the rule is there.
pub fn is_there(rule: &Iptables) -> Result<bool, Error> {
    let (code, said) = run("-C", rule)?;
    match code {
        Some(0) => Ok(true),
        Some(1) => Ok(false),
        _ => Err(failure(rule.program(), &said)),
    }
}

pub fn add(rule: &Iptables) -> Result<(), Error> {
    succeed(rule, run("-A", rule)?)
}

/// Whether packets that the node forwards are dropped where no rule lets them through. Docker has it so.
pub fn forwards_by_rule_only(family: Family) -> Result<bool, Error> {
    let program = Iptables::program_of(family);
    let output = ask(program, &["-S", "FORWARD"])?;
    if !output.status.success() {
        return Err(failure(program, &said(&output)));
    }
    Ok(output.stdout.starts_with(b"-P FORWARD DROP"))
}

/// Removes the rule where it is.
pub fn remove(rule: &Iptables) -> Result<(), Error> {
    if is_there(rule)? { succeed(rule, run("-D", rule)?) } else { Ok(()) }
}

fn succeed(rule: &Iptables, (code, said): (Option<i32>, String)) -> Result<(), Error> {
    if code == Some(0) { Ok(()) } else { Err(failure(rule.program(), &said)) }
}

fn failure(program: &str, said: &str) -> Error {
    let said = said.trim();
    // Where others have held it all the time, and where the kernel was asked at the same moment.
    match ["xtables lock", "Resource temporarily unavailable"].iter().any(|busy| said.contains(busy)) {
        true => Error::os(libc::EAGAIN).within(format!("{program}: {said}")),
        false => Error::refused(format!("{program}: {said}")),
    }
}

fn run(verb: &str, rule: &Iptables) -> Result<(Option<i32>, String), Error> {
    let what = ["-t", rule.table, verb, rule.chain].into_iter();
    let args: Vec<&str> = what.chain(rule.rule.iter().map(String::as_str)).collect();
    let output = ask(rule.program(), &args)?;
    Ok((output.status.code(), said(&output)))
}

fn ask(program: &str, args: &[&str]) -> Result<Output, Error> {
    let mut wait = WAIT.load(Ordering::Relaxed);
    loop {
        let output = tool(program).args(WAITS[wait]).args(args).stdin(Stdio::null()).output();
        let output = output.context(|| format!("run {program}"))?;
        if wait + 1 == WAITS.len() || knows_the_wait(&said(&output)) {
            WAIT.store(wait, Ordering::Relaxed);
            return Ok(output);
        }
        wait += 1;
    }
}

/// Whether an iptables that says this has understood how it shall wait.
fn knows_the_wait(said: &str) -> bool {
    !["Bad argument `5'", "option \"-w\"", "option -- 'w'"].iter().any(|lack| said.contains(lack))
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A program that is run.
pub(super) fn tool(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", path(std::env::var_os("PATH")));
    command
}

/// Where programs are looked for: runtimes call plugins with whatever they have. An empty folder in it would mean the one that the
/// caller happens to be in.
fn path(given: Option<OsString>) -> OsString {
    let own = OsStr::new("/usr/sbin:/sbin:/usr/bin:/bin");
    match given.filter(|path| !path.is_empty()) {
        Some(path) => [path.as_os_str(), OsStr::new(":"), own].iter().copied().collect(),
        None => own.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1.4.20 and 1.4.21 take no seconds, the ones before no `-w`.
    #[test]
    fn an_iptables_that_cannot_wait_so_is_told_from_one_that_refuses() {
        let hint = "Try `iptables -h' or 'iptables --help' for more information.";
        for (said, knows) in [
            ("iptables v1.4.21: Bad argument `5'", false),
            ("iptables v1.4.18: unknown option \"-w\"", false),
            ("iptables: invalid option -- 'w'", false),
            ("iptables v1.8.9 (nf_tables): unknown option \"--ctdir\"", true),
            ("iptables: Bad rule (does a matching rule exist in that chain?).", true),
            (
                "Another app is currently holding the xtables lock; still 4s 0us time ahead to have a chance to grab the lock...",
                true,
            ),
            ("", true),
        ] {
            assert_eq!(knows_the_wait(&format!("{said}\n{hint}")), knows, "{said}");
        }
    }

    #[test]
    fn without_a_path_nothing_is_looked_for_where_we_happen_to_be() {
        let own = "/usr/sbin:/sbin:/usr/bin:/bin";
        assert_eq!(path(None), own);
        assert_eq!(path(Some("".into())), own);
        assert_eq!(path(Some("/opt/bin".into())), format!("/opt/bin:{own}").as_str());
    }
}
