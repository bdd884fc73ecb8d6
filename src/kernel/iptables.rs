//! Single netfilter rules, by iptables(8): whichever of its two kinds the node has is the kind that kube-proxy uses too.

use std::ffi::{OsStr, OsString};
use std::process::{Command, Stdio};

use crate::error::{Context, Error};
use crate::ip::Family;
use crate::plan::Iptables;

/// Whether the rule is there.
pub fn is_there(rule: &Iptables) -> Result<bool, Error> {
    let (code, said) = run("-C", rule)?;
    match code {
        Some(0) => Ok(true),
        Some(1) => Ok(false),
        _ => Err(failure(rule, &said)),
    }
}

pub fn add(rule: &Iptables) -> Result<(), Error> {
    succeed(rule, run("-A", rule)?)
}

/// Whether packets that the node forwards are dropped where no rule lets them through. Docker has it so.
pub fn forwards_by_rule_only(family: Family) -> Result<bool, Error> {
    let program = Iptables::program_of(family);
    let output = tool(program).args(["-w", "5", "-S", "FORWARD"]).stdin(Stdio::null()).output();
    let output = output.context(|| format!("run {program}"))?;
    Ok(output.stdout.starts_with(b"-P FORWARD DROP"))
}

/// Removes the rule where it is.
pub fn remove(rule: &Iptables) -> Result<(), Error> {
    if is_there(rule)? { succeed(rule, run("-D", rule)?) } else { Ok(()) }
}

fn succeed(rule: &Iptables, (code, said): (Option<i32>, String)) -> Result<(), Error> {
    if code == Some(0) { Ok(()) } else { Err(failure(rule, &said)) }
}

fn failure(rule: &Iptables, said: &str) -> Error {
    Error::refused(format!("{}: {}", rule.program(), said.trim()))
}

/// Others change tables too: their lock is waited for, some seconds at most.
fn run(verb: &str, rule: &Iptables) -> Result<(Option<i32>, String), Error> {
    let mut command = tool(rule.program());
    command.args(["-w", "5", "-t", rule.table, verb, rule.chain]).args(&rule.rule);
    let output = command.stdin(Stdio::null()).output().context(|| format!("run {}", rule.program()))?;
    Ok((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()))
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

    #[test]
    fn without_a_path_nothing_is_looked_for_where_we_happen_to_be() {
        let own = "/usr/sbin:/sbin:/usr/bin:/bin";
        assert_eq!(path(None), own);
        assert_eq!(path(Some("".into())), own);
        assert_eq!(path(Some("/opt/bin".into())), format!("/opt/bin:{own}").as_str());
    }
}
