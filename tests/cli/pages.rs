//! The man page and the completion name every verb and every option that the sources have.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::sim::cluster::binary;

/// The options of each verb, by the words that call it, as the sources declare them.
fn declared() -> BTreeMap<String, Vec<String>> {
    let mut verbs = BTreeMap::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cli")];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).expect("the sources").map(|entry| entry.expect("an entry").path()) {
            match path.is_dir() {
                true => folders.push(path),
                false => declared_in(&path, &mut verbs),
            }
        }
    }
    verbs
}

fn declared_in(path: &Path, verbs: &mut BTreeMap<String, Vec<String>>) {
    let text = fs::read_to_string(path).expect("a source");
    let group = if path.ends_with("policy.rs") { "policy" } else { "" };
    let (mut verb, mut is_option) = (None, false);
    for line in text.lines().map(str::trim) {
        if let Some((_, rest)) = line.split_once("argh(subcommand, name = \"") {
            let name = rest.split('"').next().expect("a name");
            let words = if name == group { name.to_string() } else { format!("{group} {name}").trim().to_string() };
            verbs.insert(words.clone(), Vec::new());
            verb = Some(words);
        } else if line.starts_with("#[argh(switch") || line.starts_with("#[argh(option") {
            is_option = true;
        } else if is_option {
            is_option = false;
            let name = line.trim_start_matches("pub ").split(':').next().expect("a field").replace('_', "-");
            let options = verb.as_ref().and_then(|verb| verbs.get_mut(verb));
            options.into_iter().for_each(|options| options.push(format!("--{name}")));
        }
    }
}

/// The binary under its name, in a folder of its own.
struct Named(PathBuf);

impl Named {
    fn new() -> Named {
        let folder = std::env::temp_dir().join(format!("terway-pages-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        std::os::unix::fs::symlink(binary(), folder.join("terway-cli")).expect("a link");
        Named(folder)
    }

    fn bash(&self, line: &str) -> String {
        let path = format!("{}:{}", self.0.display(), std::env::var("PATH").unwrap_or_default());
        let done = Command::new("bash").args(["-c", line]).env("PATH", path).output().expect("start bash");
        assert!(done.status.success(), "{line}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).expect("UTF-8")
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn the_man_page_and_the_completion_name_every_verb_and_option() {
    let (verbs, named) = (declared(), Named::new());
    for verb in ["status", "doctor", "trace", "policy why", "bundle", "plan-cluster", "execute"] {
        assert!(verbs.contains_key(verb), "{verb}: {verbs:?}");
    }
    assert_eq!(verbs["doctor"], ["--fix", "--config", "--kubeconfig", "--json"]);
    let without: Vec<_> =
        verbs.iter().filter(|(verb, options)| *verb != "policy" && !options.contains(&"--json".into())).collect();
    assert!(without.is_empty(), "--json is everywhere: {without:?}");

    let man = named.bash("packaging/man/commands.sh terway-cli").replace("\\-", "-");
    let completion = "packaging/root/usr/share/bash-completion/completions/terway-cli";
    let offers = |words: &str, begun: &str| {
        let at = words.split_whitespace().count() + 1;
        named.bash(&format!(
            ". {completion}; COMP_WORDS=(terway-cli {words} {begun}); COMP_CWORD={at}; _terway; echo \"${{COMPREPLY[*]}}\""
        ))
    };
    for (verb, options) in &verbs {
        let page = man.split(".SS terway-cli ").find(|page| page.starts_with(&format!("{verb}\n")));
        let page = page.unwrap_or_else(|| panic!("no {verb} in {man}"));
        let (before, last) = verb.rsplit_once(' ').unwrap_or(("", verb));
        assert!(offers(before, "").split_whitespace().any(|word| word == last), "{verb} is not offered");
        let offered = offers(verb, "--");
        for option in options {
            assert!(page.contains(&format!("  {option}")), "no {option} of {verb}: {page}");
            assert!(offered.split_whitespace().any(|word| word == option), "{verb} {option}: {offered}");
        }
    }
    assert!(offers("show", "res").contains("resource_pool"));
}
