//! Chains of ours in the mangle table: what iptables-save(8) shows of them, and the one replacement that makes others of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::Stdio;

use super::iptables;
use crate::chains::{Chains, Family, Purpose};
use crate::error::{Context, Error};

const TABLE: &str = "mangle";

/// What is there of one purpose.
pub struct Shown {
    of: &'static Purpose,
    /// How many rules each has.
    pub chains: BTreeMap<String, usize>,
    /// What the chains have dropped that are there for it.
    pub dropped: Vec<u64>,
    /// Our rules in built-in chains, and whether they are all that they should be.
    jumps: Vec<String>,
    are_first: bool,
}

/// All that is in the table, as `-c` shows it.
pub fn read(family: Family) -> Result<String, Error> {
    run(program(family), "save", &["-c", "-t", TABLE], None)
}

/// The tool of a family, as the node has it.
pub fn program(family: Family) -> &'static str {
    if family == Family::V4 { "iptables" } else { "ip6tables" }
}

impl Shown {
    pub fn read(of: &'static Purpose, family: Family) -> Result<Shown, Error> {
        Ok(Shown::of(of, &read(family)?))
    }

    pub fn of(of: &'static Purpose, text: &str) -> Shown {
        let ours = |word: &str| word.starts_with(of.prefix);
        let dropped = vec![0; of.drops.len()];
        let mut shown = Shown { of, chains: BTreeMap::new(), dropped, jumps: Vec::new(), are_first: true };
        let mut begun = BTreeSet::new();
        for line in text.lines() {
            let (packets, line) = counted(line);
            let mut words = line.split(' ');
            match words.next() {
                Some(chain) if chain.strip_prefix(':').is_some_and(ours) => {
                    shown.chains.insert(chain[1..].to_owned(), 0);
                }
                Some("-A") => {
                    let chain = words.next().unwrap_or_default();
                    let is_first = begun.insert(chain);
                    if ours(chain) {
                        shown.chains.entry(chain.to_owned()).and_modify(|rules| *rules += 1);
                        let dropped = of.drops.iter().zip(&mut shown.dropped).filter(|((_, name), _)| *name == chain);
                        dropped.for_each(|(_, sum)| *sum += packets);
                    } else if words.any(ours) {
                        shown.are_first &= is_first;
                        shown.jumps.push(line.to_owned());
                    }
                }
                _ => {}
            }
        }
        shown
    }

    /// Whether these chains are there, with as many rules, and whatever leads to them.
    pub fn is_whole(&self, chains: &BTreeMap<String, usize>) -> bool {
        let jumps = self.of.hooks.iter().filter(|(_, to)| chains.contains_key(*to)).count();
        self.are_first && self.jumps.len() == jumps && self.chains == *chains
    }
}

/// How many rules each chain has.
pub fn lengths(chains: &Chains) -> BTreeMap<String, usize> {
    chains.iter().map(|(name, lines)| (name.clone(), lines.len())).collect()
}

/// How many packets a rule has matched, as `-c` tells before it, and the rest of the line.
fn counted(line: &str) -> (u64, &str) {
    let told = line.strip_prefix('[').and_then(|rest| rest.split_once("] "));
    let packets = |(counts, _): (&str, &str)| counts.split(':').next().and_then(|count| count.parse().ok());
    (told.and_then(packets).unwrap_or_default(), told.map_or(line, |(_, line)| line))
}

/// One replacement of the table. None: nothing is to change.
pub fn script(of: &Purpose, before: &Chains, after: &Chains, shown: Option<&Shown>) -> Option<String> {
    let mut text = format!("*{TABLE}\n");
    let changed: Vec<&String> =
        after.keys().filter(|name| shown.is_some() || before.get(*name) != after.get(*name)).collect();
    let there: BTreeSet<&String> = shown.map_or_else(|| before.keys().collect(), |shown| shown.chains.keys().collect());
    let gone: Vec<&&String> = there.iter().filter(|name| !after.contains_key(**name)).collect();
    // A String takes all that is written to it.
    changed.iter().for_each(|name| writeln!(text, ":{name} - [0:0]").expect("memory"));
    for name in &changed {
        after[*name].iter().for_each(|line| writeln!(text, "-A {name} {line}").expect("memory"));
    }
    let jumps = jumps(of, before, after, shown);
    jumps.iter().for_each(|line| writeln!(text, "{line}").expect("memory"));
    for verb in ["-F", "-X"] {
        gone.iter().for_each(|name| writeln!(text, "{verb} {name}").expect("memory"));
    }
    text += "COMMIT\n";
    (!changed.is_empty() || !gone.is_empty() || !jumps.is_empty()).then_some(text)
}

/// What is to change in built-in chains.
fn jumps(of: &Purpose, before: &Chains, after: &Chains, shown: Option<&Shown>) -> Vec<String> {
    let jump = |(chain, to): &(&str, &str)| format!("{chain} -m comment --comment \"{}\" -j {to}", of.comment);
    let wanted: Vec<String> = of.hooks.iter().filter(|(_, to)| after.contains_key(*to)).map(jump).collect();
    let Some(shown) = shown else {
        let (old, new): (Vec<_>, Vec<_>) = of
            .hooks
            .iter()
            .filter(|(_, to)| before.contains_key(*to) != after.contains_key(*to))
            .partition(|(_, to)| before.contains_key(*to));
        let old = old.into_iter().map(|hook| format!("-D {}", jump(hook)));
        return old.chain(new.into_iter().map(|hook| format!("-I {}", jump(hook)))).collect();
    };
    let there: BTreeSet<&str> = shown.jumps.iter().filter_map(|line| line.strip_prefix("-A ")).collect();
    if shown.are_first && shown.jumps.len() == wanted.len() && wanted.iter().all(|line| there.contains(&**line)) {
        return Vec::new();
    }
    let old = shown.jumps.iter().map(|line| line.replacen("-A", "-D", 1));
    old.chain(wanted.iter().map(|line| format!("-I {line}"))).collect()
}

pub fn restore(family: Family, text: &str) -> Result<(), Error> {
    restore_by(program(family), text)
}

/// The same by the tool of this name: a family's, or one of its two kinds.
pub fn restore_by(tool: &str, text: &str) -> Result<(), Error> {
    let waiting = run(tool, "restore", &["--noflush", "-w", "5"], Some(text));
    // Older ones know no lock.
    let is_unknown =
        |e: &Error| ["invalid option", "unrecognized option"].iter().any(|said| e.to_string().contains(said));
    match waiting {
        Err(e) if is_unknown(&e) => run(tool, "restore", &["--noflush"], Some(text)),
        done => done,
    }
    .map(|_| ())
}

/// What names an extension that the kernel has not loaded.
const REMEDY: &str = "load the module";

/// Whether it may succeed another time, without anybody's doing: not where a program or an extension lacks.
pub fn is_passing(e: &Error) -> bool {
    e.errno() != Some(libc::ENOENT) && !e.to_string().contains(REMEDY)
}

pub(super) fn run(tool: &str, verb: &str, args: &[&str], input: Option<&str>) -> Result<String, Error> {
    let program = format!("{tool}-{verb}");
    let mut command = iptables::tool(&program);
    let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
    let command = command.args(args).stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context(|| format!("run {program}: install iptables"))?;
    if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
        // Where it ends before it has read all, what it says tells why.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().context(|| format!("run {program}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let of_family = if tool.starts_with("ip6") { "ip6t_rpfilter" } else { "ipt_rpfilter" };
    let modules = [
        ("set", "xt_set"),
        ("multiport", "xt_multiport"),
        ("conntrack", "xt_conntrack"),
        ("addrtype", "xt_addrtype"),
        ("rpfilter", of_family),
    ];
    let is_named = |name: &str| said.contains(&format!("`{name}'")) || said.contains(&format!("Extension {name} "));
    let module = modules.iter().find(|(name, _)| is_named(name));
    let remedy = module.map(|(_, module)| format!(" ({REMEDY} {module})")).unwrap_or_default();
    Err(Error::refused(format!("{program}: {}{remedy}", said.trim())))
}
