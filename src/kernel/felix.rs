//! What felix, Calico's agent, has in netfilter, and its removal once it has ended: it leaves all of it behind, and what it leaves
//! drops whatever comes from or goes to a pod's link that it was not told of.
//!
//! Chains are known by their names, rules in other chains by where they jump to or by the digest that each bears as a comment, sets
//! by their names. Which of iptables' two kinds it has chosen is not what the node itself uses, perhaps: both are looked at.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use super::ipset::Sets;
use super::saved::{program, restore_by, run};
use super::tables::MOST;
use crate::chains::FAMILIES;
use crate::error::{Error, Errors};
use crate::ours;

const PROGRAMS: [(&str, Owner); 2] = [("calico-felix", Owner::OldTerway), ("calico-node", Owner::Calico)];
/// iptables as the node has it, and its two kinds by name.
const KINDS: [&str; 3] = ["", "-legacy", "-nft"];
const CHAINS: &str = "cali-";
const SETS: [&str; 4] = ["cali40", "cali4t", "cali60", "cali6t"];
/// A digest of the rule behind this, in the alphabet of base64url.
const DIGEST: (&str, usize) = ("cali:", 16);
/// The nf_tables kind of iptables lets go of a set a moment after its rule is gone.
const TRIES: u32 = 400;
const WAIT: Duration = Duration::from_millis(5);
/// EAGAIN, ENOMEM in two libraries' words, ENOBUFS.
const SHORTAGES: [&str; 4] =
    ["Resource temporarily unavailable", "Cannot allocate memory", "Out of memory", "No buffer space"];

/// Whose a felix is that runs: alone it is the old Terway's, Calico has it in its node's program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    OldTerway,
    Calico,
}

/// Whose runs in the network namespace of the calling thread, Calico's before the other. One that cannot be looked at is taken for one
/// that does.
pub fn runs() -> Option<Owner> {
    let here = namespace(&Path::new("/proc/self/task").join(rustix::thread::gettid().to_string())).ok();
    let is_here = |process: &Path| match namespace(process) {
        Ok(there) => here.is_none_or(|here| here == there),
        // It may have ended just now.
        Err(e) => e.kind() != ErrorKind::NotFound,
    };
    let owner = |process: &Path| {
        let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
        let (_, owner) = PROGRAMS.into_iter().find(|(program, _)| *program == name.trim_end())?;
        is_here(process).then_some(owner)
    };
    fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|process| owner(&process.path())).max()
}

/// That of the network, by device and number.
fn namespace(process: &Path) -> io::Result<(u64, u64)> {
    fs::metadata(process.join("ns/net")).map(|file| (file.dev(), file.ino()))
}

/// Whether chains or rules of it are there.
pub fn is_there() -> bool {
    tools().any(|tool| run(&tool, "save", &[], None).is_ok_and(|saved| removal(&saved).is_some()))
}

/// What was taken away.
pub struct Removed {
    /// Chains, and rules of other chains.
    pub objects: usize,
    /// Nothing was there that could not be looked at.
    pub is_all: bool,
}

/// Takes all of it away, a table at a time. What may be seen another time is an error.
pub fn remove() -> Result<Removed, Error> {
    let (mut errors, mut sum, mut absent, mut hidden) = (Errors::default(), None, None, None);
    for tool in tools() {
        match run(&tool, "save", &[], None) {
            Ok(saved) => {
                let removal = removal(&saved);
                *sum.get_or_insert(0) += removal.as_ref().map_or(0, |removal| removal.objects);
                errors.note(removal.map_or(Ok(()), |removal| restore_by(&tool, &removal.text)));
            }
            Err(e) if is_short(&e) => _ = errors.note::<()>(Err(e)),
            // Not every node has all of them.
            Err(e) if e.errno() == Some(libc::ENOENT) => absent = Some(e),
            Err(e) => hidden = Some(e),
        }
    }
    errors.result()?;
    let unseen = hidden.or(absent.filter(|_| sum.is_none()));
    if let Some(e) = &unseen {
        log::warn!("what felix may have left in netfilter is not all known: {e}");
    }
    remove_sets();
    Ok(Removed { objects: sum.unwrap_or_default(), is_all: unseen.is_none() })
}

/// The moment lacks something, as the kernel says or a program that it told.
fn is_short(e: &Error) -> bool {
    let said = e.to_string();
    e.is_for_now() || SHORTAGES.iter().any(|shortage| said.contains(shortage))
}

fn tools() -> impl Iterator<Item = String> {
    FAMILIES.into_iter().flat_map(|family| KINDS.map(|kind| format!("{}{kind}", program(family))))
}

pub(super) struct Removal {
    text: String,
    objects: usize,
}

/// What takes away all that this output of iptables-save(8) shows of it. None: it shows nothing.
pub(super) fn removal(saved: &str) -> Option<Removal> {
    let passes_by_itself = !saved.lines().any(|line| line.starts_with(":FORWARD DROP "));
    let passes = passes_by_itself || saved.contains(ours::PASS_COMMENT);
    let mut removal = Removal { text: String::new(), objects: 0 };
    for table in saved.split("\nCOMMIT\n") {
        let Some(name) = table.lines().find_map(|line| line.strip_prefix('*')) else { continue };
        let chains: Vec<&str> = table
            .lines()
            .filter_map(|line| line.strip_prefix(':')?.split(' ').next())
            .filter(|chain| chain.starts_with(CHAINS))
            .collect();
        let rules: Vec<&str> =
            table.lines().filter_map(|line| line.strip_prefix("-A ")).filter(|rule| is_its(rule)).collect();
        removal.add(name, &chains, &rules, !passes);
    }
    (removal.objects > 0).then_some(removal)
}

impl Removal {
    fn add(&mut self, table: &str, chains: &[&str], rules: &[&str], must_pass: bool) {
        if chains.is_empty() && rules.is_empty() {
            return;
        }
        self.objects += chains.len() + rules.len();
        let mut line = |line: String| writeln!(self.text, "{line}").expect("memory");
        line(format!("*{table}"));
        rules.iter().for_each(|rule| line(format!("-D {rule}")));
        // It let through what its policies did; whoever holds pods to theirs now drops what those do not, and leaves the rest to others.
        if must_pass && table == "filter" && rules.iter().any(|rule| rule.starts_with("FORWARD ")) {
            for side in ["-i", "-o"] {
                line(format!(
                    "-A FORWARD {side} {}+ -m comment --comment \"{}\" -j ACCEPT",
                    ours::VETH,
                    ours::PASS_COMMENT
                ));
            }
        }
        for verb in ["-F", "-X"] {
            chains.iter().for_each(|chain| line(format!("{verb} {chain}")));
        }
        line("COMMIT".into());
    }
}

/// It is in a chain of others, and leads to one of felix's or bears its digest.
fn is_its(rule: &str) -> bool {
    let words = words(rule);
    let is_digest = |comment: &str| {
        let digest = comment.strip_prefix(DIGEST.0).unwrap_or_default();
        digest.len() == DIGEST.1 && digest.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
    };
    let tells = |pair: &[String]| match pair[0].as_str() {
        "-j" | "-g" => pair[1].starts_with(CHAINS),
        "--comment" => is_digest(&pair[1]),
        _ => false,
    };
    !rule.starts_with(CHAINS) && words.windows(2).any(tells)
}

/// The words of a rule: what is quoted is one, and in it a backslash takes the next letter as it is.
fn words(rule: &str) -> Vec<String> {
    let (mut words, mut is_quoted, mut letters) = (vec![String::new()], false, rule.chars());
    while let Some(letter) = letters.next() {
        let word = words.last_mut().expect("there is one");
        match letter {
            '"' => is_quoted = !is_quoted,
            '\\' if is_quoted => word.extend(letters.next()),
            ' ' if !is_quoted => words.push(String::new()),
            _ => word.push(letter),
        }
    }
    words
}

/// Those that somebody else's rules ask stay.
fn remove_sets() {
    // Without sets in the kernel there are none of its.
    let Ok(mut sets) = Sets::open(MOST) else { return };
    let names = sets.list(ours::VETH).unwrap_or_default().into_iter().map(|set| set.name);
    let mut left: BTreeSet<String> = names.filter(|name| SETS.iter().any(|set| name.starts_with(set))).collect();
    for _ in 0..TRIES {
        left.retain(|name| sets.destroy(name).is_err());
        if left.is_empty() {
            return;
        }
        thread::sleep(WAIT);
    }
    log::warn!("{} ipsets of felix are still in use, {:?} among them", left.len(), left.first());
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str = r#"# Generated by iptables-save
*filter
:INPUT ACCEPT [3:180]
:FORWARD ACCEPT [0:0]
:KUBE-FORWARD - [0:0]
:cali-FORWARD - [0:0]
:cali-from-wl-dispatch - [0:0]
-A INPUT -p tcp -m comment --comment "to \"-j cali-INPUT\" and back" -j ACCEPT
-A FORWARD -m comment --comment "cali:wUHhoiAYhphO9Mso" -j cali-FORWARD
-A FORWARD -m comment --comment "calico: ours" -j KUBE-FORWARD
-A FORWARD -m comment --comment "cali:S93hcgKJrXEqnTfs" -m comment --comment "Policy explicitly accepted packet." -j ACCEPT
-A FORWARD -i cali+ -j KUBE-FORWARD
-A KUBE-FORWARD -g cali-FORWARD
-A cali-FORWARD -m comment --comment "cali:8ZoYfO5HKXWbB3pk" -i cali+ -j cali-from-wl-dispatch
-A cali-from-wl-dispatch -m comment --comment "Unknown interface" -j DROP
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
-A PREROUTING -j KUBE-SERVICES
COMMIT
"#;

    #[test]
    fn what_is_felixs_goes_and_all_else_stays() {
        let removal = removal(SAVED).expect("there is something");
        assert_eq!(
            removal.text,
            r#"*filter
-D FORWARD -m comment --comment "cali:wUHhoiAYhphO9Mso" -j cali-FORWARD
-D FORWARD -m comment --comment "cali:S93hcgKJrXEqnTfs" -m comment --comment "Policy explicitly accepted packet." -j ACCEPT
-D KUBE-FORWARD -g cali-FORWARD
-F cali-FORWARD
-F cali-from-wl-dispatch
-X cali-FORWARD
-X cali-from-wl-dispatch
COMMIT
"#
        );
        assert_eq!(removal.objects, 5);
    }

    #[test]
    fn where_felix_alone_let_packets_through_pods_are_let_through_after_it() {
        let pass = "-A FORWARD -i cali+ -m comment --comment \"terway lets pods through\" -j ACCEPT\n\
                    -A FORWARD -o cali+ -m comment --comment \"terway lets pods through\" -j ACCEPT\n";
        let closed = SAVED.replace("FORWARD ACCEPT", "FORWARD DROP");
        assert!(removal(&closed).expect("there is something").text.contains(pass));
        assert!(!removal(&(closed + pass)).expect("there is something").text.contains(pass));
    }

    #[test]
    fn what_lacks_for_a_moment_is_told_from_what_is_not_there() {
        let said = |words: &str| Error::refused(format!("iptables-nft-save: {words}"));
        for (e, short) in [
            (Error::os(libc::EAGAIN).within("run iptables-save: install iptables"), true),
            (said("Could not fetch rule set generation id: Resource temporarily unavailable"), true),
            (said("iptables: Cannot allocate memory."), true),
            (said("Failed to initialize nft: Protocol not supported"), false),
            (Error::os(libc::ENOENT).within("run iptables-nft-save: install iptables"), false),
        ] {
            assert_eq!(is_short(&e), short, "{e}");
        }
    }

    #[test]
    fn nothing_is_done_where_nothing_is_felixs() {
        let foreign = "*filter\n:FORWARD DROP [0:0]\n:calibrated - [0:0]\n-A FORWARD -o cali+ -j calibrated\nCOMMIT\n";
        assert!(removal(foreign).is_none() && removal("").is_none());
    }
}
