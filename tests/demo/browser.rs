//! A look at the page that this run has written, in Chromium without a screen, where there is one.

use std::path::Path;
use std::process::Command;

const CHROMIUM: &str = "/usr/bin/chromium";

/// What is wrong with the page as a browser shows it: it has the verdict, its script has counted the pods, and nothing complains.
pub fn complaint(page: &Path) -> Option<String> {
    if !Path::new(CHROMIUM).exists() {
        return None;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/browser.sh");
    let output = match Command::new(script).arg(page).output() {
        Ok(output) => output,
        Err(e) => return Some(format!("start browser.sh: {e}")),
    };
    let (dom, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let pods = dom.split_once("<body data-pods=\"").and_then(|(_, rest)| rest.split('"').next()?.parse::<u32>().ok());
    if !output.status.success() {
        return Some(format!("the browser ended with {}: {said}", output.status));
    }
    if let Some(line) = said.lines().find(|line| line.contains(":CONSOLE")) {
        return Some(format!("its console says: {line}"));
    }
    if pods.is_none_or(|pods| pods == 0) || !dom.contains("<p class=\"verdict ") {
        return Some("it shows no pods, or no verdict".into());
    }
    println!("  A browser shows it, with {} pods in its maps.", pods.unwrap_or_default());
    None
}
