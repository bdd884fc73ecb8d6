//! What is written for people is true of the code: the configuration reference, the errors that the README explains, links.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use terway::config::{Config, ENVIRONMENT, WITHOUT_EFFECT};
use terway::daemon::{AT_START, FILE_ONLY};
use terway::keys::{GROUPS, Group, Key, Usual};
use terway::ours;
use terway::plan::Program;

const REFERENCE: &str = "docs/configuration.md";
/// What a person finds: everything else speaks to those who change the code.
const DOCUMENTS: &[&str] = &[
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "src/README.md",
    "src/DECISIONS.md",
    "tests/README.md",
    "bpf/README.md",
];

fn root() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("read {}: {e}", path.display()))
}

// ---- the configuration reference ----

fn all() -> impl Iterator<Item = &'static Key> {
    GROUPS.iter().flat_map(|group| group.keys)
}

fn config(of: &Value) -> Result<Config, String> {
    let object = of.as_object().expect("an object").clone();
    Config::of(&object, &BTreeMap::new()).map(|(config, _)| config).map_err(|e| e.to_string())
}

/// What the code says that a value must be, which it is asked by way of one that no key takes.
fn kind(key: &str) -> String {
    let Err(said) = config(&json!({key: {"x": {}}})) else { return "true or false".into() };
    let (place, want) = said.split_once("; it must be ").unwrap_or_else(|| panic!("{key}: {said}"));
    let want = want.replace('|', "\\|");
    match place.contains(&format!("{key}.x is ")) {
        true => format!("an object, each value {want}"),
        false => want,
    }
}

fn takes_effect(key: &str) -> &'static str {
    match (FILE_ONLY.contains(&key), AT_START.contains(&key)) {
        (true, _) => "restart; in the file only",
        (_, true) => "restart",
        _ => "at once",
    }
}

fn row(key: &Key) -> String {
    let usual = match key.usual {
        Usual::Json(text) => format!("`{text}`"),
        Usual::Words(text) => text.to_owned(),
    };
    let (name, meaning) = (key.name, key.meaning);
    let concerns = key.concerns.words();
    format!("| `{name}` | {} | {usual} | {} | {concerns} | {meaning} |\n", kind(name), takes_effect(name))
}

fn section(group: &Group) -> String {
    let rows: String = group.keys.iter().map(row).collect();
    let head = "| key | value | default | a change takes effect | concerns | meaning |\n|---|---|---|---|---|---|\n";
    format!("## {}\n\n{head}{rows}\n", group.title)
}

fn reference() -> String {
    let mut text = String::from(
        "# Configuration reference\n\n<!-- Made from src/keys.rs and src/config.rs by `make docs`; a test compares. -->\n\n\
         The keys of `/etc/eni/eni.json` (and of `eni_conf` in a node's ConfigMap). How the file is laid out, who may override what, and what\n\
         happens to a wrong one: [Configure](../README.md#configure). A duration is a text as Go writes it: `\"90s\"`, `\"1h30m\"`.\n\n",
    );
    text.extend(GROUPS.iter().map(section));
    text += "## From the environment\n\nWhere the variable is set and not empty, it goes before the key.\n\n| variable | key |\n|---|---|\n";
    text.extend(ENVIRONMENT.iter().map(|(variable, key)| format!("| `{variable}` | `{key}` |\n")));
    text += "\n## Keys of the old Terway that do nothing\n\nThe log names them with the reason.\n\n| key | why |\n|---|---|\n";
    text.extend(WITHOUT_EFFECT.iter().map(|(key, why)| format!("| `{key}` | {why} |\n")));
    text
}

#[test]
fn every_key_that_the_code_asks_for_is_described() {
    let asked = Config::keys();
    let said: BTreeSet<&str> = all().map(|key| key.name).collect();
    let missing: Vec<_> = asked.difference(&said).collect();
    assert!(missing.is_empty(), "describe {missing:?} in src/keys.rs, in one of its groups, and say `make docs`");
    let stale: Vec<_> = said.difference(&asked).collect();
    assert!(
        stale.is_empty(),
        "src/config.rs does not ask for {stale:?}: take them out of src/keys.rs, and say `make docs`"
    );
    assert_eq!(all().count(), said.len(), "src/keys.rs describes a key twice");
    let unknown: Vec<_> = AT_START.iter().chain(FILE_ONLY).filter(|key| !asked.contains(*key)).collect();
    assert!(unknown.is_empty(), "src/daemon/layers.rs names {unknown:?}, which nobody asks for");
}

/// A key that says its default changes nothing.
#[test]
fn the_defaults_are_those_of_the_code() {
    let nothing = config(&json!({})).unwrap();
    for key in all() {
        let Usual::Json(text) = key.usual else { continue };
        let value: Value =
            serde_json::from_str(text).unwrap_or_else(|e| panic!("{} in src/keys.rs: {text}: {e}", key.name));
        let said = config(&json!({key.name: value})).unwrap_or_else(|e| panic!("src/keys.rs: {e}"));
        assert!(
            said == nothing,
            "{} is not {text} where it is not set: mend src/keys.rs, and say `make docs`",
            key.name
        );
    }
}

/// `TERWAY_DOCS=write` (`make docs`) makes it so.
#[test]
fn the_configuration_reference_says_what_the_code_does() {
    let want = reference();
    if std::env::var_os("TERWAY_DOCS").is_some_and(|value| value == "write") {
        fs::write(root().join(REFERENCE), &want).expect("the reference can be written");
    }
    let is = read(REFERENCE);
    let differing = want.lines().zip(is.lines()).find(|(want, is)| want != is);
    assert!(want == is, "{REFERENCE} is behind the code: say `make docs`, and look what it did. First: {differing:#?}");
}

// ---- the errors that the README explains ----

/// Texts of the program: what stands between double quotes in its sources, tests aside, in one line.
fn sources() -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root().join("src")];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
            let name = path.file_stem().unwrap().to_str().unwrap();
            match path.is_dir() {
                true if name != "tests" => folders.push(path),
                false if path.extension().is_some_and(|e| e == "rs") && !["tests", "fuzz"].contains(&name) => {
                    let text = fs::read_to_string(&path).unwrap();
                    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
                    found.insert(path, unfolded(text));
                }
                _ => {}
            }
        }
    }
    found
}

/// Literals that go on in the next line, in one.
fn unfolded(text: &str) -> String {
    let mut parts = text.split("\\\n");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |all, part| all + part.trim_start())
}

/// The table below this heading: its first column.
fn first_column(text: &str, heading: &str) -> Vec<String> {
    let section = text.split(&format!("\n{heading}\n")).nth(1).unwrap_or_else(|| panic!("there is no {heading}"));
    let rows =
        section.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|')).skip(2);
    rows.filter_map(|row| row.split('|').nth(1).map(|cell| cell.trim().to_owned())).collect()
}

/// The pieces of an error that are the same each time: `…` stands for what differs.
fn pieces(quoted: &str) -> Vec<&str> {
    quoted
        .split('…')
        .map(|piece| piece.trim_matches([' ', ':', ',', '(', ')']))
        .filter(|piece| piece.len() > 2)
        .collect()
}

/// Whether each piece is said somewhere: what a hand says is wrapped by who called it.
fn is_said(sources: &BTreeMap<PathBuf, String>, quoted: &str) -> bool {
    let pieces = pieces(quoted);
    !pieces.is_empty() && pieces.iter().all(|piece| sources.values().any(|text| text.contains(piece)))
}

#[test]
fn the_errors_that_the_readme_explains_are_those_of_the_program() {
    let sources = sources();
    let rows = first_column(&read("README.md"), "## When something is wrong");
    assert!(rows.len() > 20, "{rows:?}");
    let mut wrong = Vec::new();
    for row in &rows {
        let quoted: Vec<&str> = row.split('`').skip(1).step_by(2).collect();
        assert!(!quoted.is_empty(), "nothing is quoted in {row}");
        wrong.extend(quoted.into_iter().filter(|quoted| !is_said(&sources, quoted)));
    }
    assert!(wrong.is_empty(), "the program does not say (… stands for what differs): {wrong:#?}");
}

#[test]
fn an_error_that_nobody_says_is_found() {
    let sources = BTreeMap::from([(PathBuf::new(), unfolded("\"vSwitch {id} has no \\\n   free address\""))]);
    assert!(is_said(&sources, "vSwitch … has no free address"));
    assert!(!is_said(&sources, "vSwitch … has no free addresses"));
    assert!(!is_said(&sources, "…"));
}

// ---- a packet's way ----

/// What the pages of the modes name of the kernel is what the code puts there.
#[test]
fn the_pages_of_the_modes_name_what_is_in_the_kernel() {
    let to_pods = format!("{}: from all lookup {}", ours::TO_POD_PRIORITY, ours::PODS_TABLE);
    let by_mark =
        format!("{}: from all fwmark {:#x}/{:#x} lookup", ours::FROM_POD_PRIORITY, ours::mark(1), ours::MARK_MASK);
    let (policies, marks) = (ours::POLICY_PRIORITY.to_string(), ours::MARK_FILTER_PRIORITY.to_string());
    let stray = format!("rule {} (`from all iif eth1 blackhole`)", ours::STRAY_PRIORITY);
    let own = format!("{:#x}", ours::NODE_MARK);
    let bucket = format!("`{:x}:`", ours::TBF_HANDLE >> 16);
    let gateway = format!("via {} dev", ours::POD_GATEWAY);
    let answers = format!(
        "{}: from all fwmark {own}/{:#x} lookup {}",
        ours::ANSWER_PRIORITY,
        ours::MARK_MASK,
        ours::ANSWER_TABLE
    );
    let shaped =
        format!("filters {} and {}", ours::SHAPE_FILTER_PRIORITIES.ingress, ours::SHAPE_FILTER_PRIORITIES.egress);
    let slave = ours::host_slave(3);
    let hooks = format!("priority {}", ours::HOOK_PRIORITY);
    let programs =
        [Program::Leaving, Program::Arriving, Program::Entering, Program::ToPod, Program::FromPod].map(Program::name);
    let [leaving, arriving, entering, to_pod, from_pod] = programs;
    let (shape_in, shape_out) = (ours::SHAPE_LINKS.ingress, ours::SHAPE_LINKS.egress);
    for (page, words) in [
        (
            "policy-routing",
            vec![
                &*to_pods,
                &by_mark,
                &policies,
                &marks,
                &stray,
                &bucket,
                &gateway,
                to_pod,
                from_pod,
                ours::POLICY_PREFIX,
            ],
        ),
        ("ipvlan", vec![&*slave, leaving, arriving, entering, &hooks, &policies, &own, &bucket, shape_in]),
        (
            "exclusive",
            vec![&*answers, ours::PEER_LINK, &gateway, &own, &marks, &policies, &shaped, shape_in, shape_out],
        ),
    ] {
        let text = read(format!("docs/{page}.md"));
        let missing: Vec<_> = words.into_iter().filter(|word| !text.contains(*word)).collect();
        assert!(missing.is_empty(), "docs/{page}.md does not name {missing:?}");
        assert!(
            read(format!("docs/{page}.svg")).contains("prefers-color-scheme: dark"),
            "{page}.svg is for light alone"
        );
    }
}

// ---- links ----

fn documents() -> Vec<PathBuf> {
    let pages = fs::read_dir(root().join("docs")).expect("docs is a folder").map(|e| e.unwrap().path());
    let pages = pages.filter(|path| path.extension().is_some_and(|e| e == "md"));
    DOCUMENTS.iter().map(|name| root().join(name)).chain(pages).collect()
}

/// The targets of `[text](target)`, `![text](target)` and `<img src="target">`.
fn targets(text: &str) -> impl Iterator<Item = &str> {
    let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    links.chain(text.split("src=\"").skip(1).filter_map(|rest| rest.split('"').next()))
}

/// As GitHub makes it of a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.trim_start_matches('#').trim().to_lowercase();
    kept.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// The links of a document that lead nowhere, those into the world aside.
pub fn dead_links(document: &Path) -> Vec<String> {
    let text = fs::read_to_string(document).unwrap_or_else(|e| panic!("{}: {e}", document.display()));
    let leads = |target: &&str| {
        let (path, place) = target.split_once('#').unwrap_or((target, ""));
        let path = if path.is_empty() { document.to_owned() } else { document.parent().unwrap().join(path) };
        match fs::read_to_string(&path) {
            Ok(text) => place.is_empty() || text.lines().any(|line| line.starts_with('#') && anchor(line) == place),
            Err(_) => path.is_dir(),
        }
    };
    let inside = targets(&text).filter(|target| !target.contains("://"));
    inside.filter(|target| !leads(target)).map(|target| format!("{}: {target}", document.display())).collect()
}

#[test]
fn every_link_leads_somewhere() {
    let wrong: Vec<String> = documents().iter().flat_map(|document| dead_links(document)).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}
