//! The demo's report in a browser: it shows what it was given, needs nothing else, and its script runs.

#[path = "demo/report.rs"]
mod report;

use std::path::Path;
use std::process::Command;

use report::{Eni, Field, Item, Line, Node, Report};

/// What a browser has made of a page, and what its console says.
struct Seen {
    dom: String,
    console: Vec<String>,
}

fn open(name: &str, html: &str) -> Seen {
    let path = std::env::temp_dir().join(format!("terway-{}-{name}.html", std::process::id()));
    std::fs::write(&path, html).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/browser.sh");
    let output = Command::new(script).arg(&path).output().expect("start browser.sh");
    std::fs::remove_file(&path).unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let console = said.lines().filter(|line| line.contains(":CONSOLE")).map(String::from).collect();
    Seen { dom: String::from_utf8(output.stdout).unwrap(), console }
}

fn field(text: &str, good: Option<bool>) -> Field {
    Field { text: text.into(), good, right: false }
}

fn report(faults: usize) -> Report {
    let mut report = Report { title: "Terway at work: <b>IPvlan</b>".into(), faults, ..Report::default() };
    report.facts.push(("kernel".into(), "6.1 & more".into()));
    report.chapter("Pods come");
    report.item(Item::Step { what: "ADD".into(), detail: "✓✓".into(), good: true, took: "0.10 s".into() });
    let rows = vec![
        Line::Section("node-1".into()),
        Line::Fields(vec![field("web-0", None), field("✓ 192.168.32.5", Some(true))]),
        Line::Fields(vec![field("<script>boom()</script>", None), field("✗ lost", Some(false))]),
    ];
    report.item(Item::Table { head: vec![vec![field("pod", None), field("address", None)]], rows });
    let pods = |names: &[&str]| names.iter().map(|name| (name.to_string(), "192.168.32.5".to_owned())).collect();
    let eni = |link: &str, names: &[&str]| Eni {
        id: "eni-1".into(),
        link: link.into(),
        vswitch: "vsw-1".into(),
        pods: pods(names),
    };
    report.item(Item::Map(vec![Node {
        name: "node-1".into(),
        about: "i-1".into(),
        enis: vec![eni("eth1", &["web-0", "web-1", "web-2", "web-3", "web-4", "web-5"]), eni("eth2", &[])],
    }]));
    report.chapter("What leads the packets");
    report.item(Item::Text { title: "node-1$ ip rule".into(), body: "512: from all lookup 1000\n".into() });
    report.item(Item::Note("✗ not all is well".into()));
    report
}

#[test]
fn a_browser_shows_what_the_demo_has_seen() {
    let seen = open("good", &report(0).html());
    assert_eq!(seen.console, [""; 0]);
    for want in [
        "<h1>Terway at work: &lt;b&gt;IPvlan&lt;/b&gt;</h1>",
        r#"<p class="verdict good">Everything is as it should be</p>"#,
        "<dt>kernel</dt><dd>6.1 &amp; more</dd>",
        r##"<a href="#c1">What leads the packets</a>"##,
        r#"<td class="good">✓ 192.168.32.5</td>"#,
        "&lt;script&gt;boom()&lt;/script&gt;",
        r#"<th colspan="2">node-1</th>"#,
        "<pre>512: from all lookup 1000</pre>",
        r#"<p class="note bad">✗ not all is well</p>"#,
        // The script has counted.
        r#"<body data-pods="6">"#,
    ] {
        assert!(seen.dom.contains(want), "{want} is not in {}", seen.dom);
    }
    // A chapter with a fault is marked where the chapters are listed.
    assert_eq!(seen.dom.matches(r#"<li class="bad"><a"#).count(), 2);
    // It loads nothing, whatever it says.
    assert!(!seen.dom.contains("http://") && !seen.dom.contains("https://"), "{}", seen.dom);
}

#[test]
fn a_fault_is_seen_and_an_error_of_the_page_is_heard() {
    let html = report(3).html().replace("<script>", "<script>nobody.knows.this();</script><script>");
    let seen = open("bad", &html);
    assert!(seen.dom.contains(r#"<p class="verdict bad">Not everything is as it should be; faults: 3</p>"#));
    assert!(seen.console.iter().any(|line| line.contains("nobody is not defined")), "{:?}", seen.console);
}
