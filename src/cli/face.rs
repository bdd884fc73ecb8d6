//! What all verbs have in common: a page or JSON, colours on a terminal alone, and an exit code that says what was found.

use std::fmt::Display;
use std::io::{ErrorKind, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::OnceLock;

use serde_json::Value;

use crate::error::Error;

/// What a verb has to say.
pub struct Answer {
    pub page: String,
    pub json: Value,
    pub code: Code,
}

/// The exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    Fine = 0,
    /// Something is wrong, or the answer is no.
    Found = 1,
    Usage = 2,
    NoDaemon = 3,
}

/// Why there is no answer.
#[derive(Debug)]
pub struct Failure {
    pub code: Code,
    pub why: String,
}

impl Failure {
    pub fn new(code: Code, why: impl Display) -> Failure {
        Failure { code, why: why.to_string() }
    }

    /// What was asked makes no sense.
    pub fn usage(why: impl Display) -> Failure {
        Failure::new(Code::Usage, why)
    }
}

impl From<Error> for Failure {
    fn from(e: Error) -> Failure {
        Failure::new(Code::Found, e)
    }
}

impl Answer {
    pub fn fine(page: String, json: Value) -> Answer {
        Answer { page, json, code: Code::Fine }
    }

    /// The same where `good` holds, else something was found.
    pub fn found(good: bool, page: String, json: Value) -> Answer {
        Answer { page, json, code: if good { Code::Fine } else { Code::Found } }
    }
}

/// Prints an answer, or why there is none.
pub fn tell(answer: Result<Answer, Failure>, json: bool) -> ExitCode {
    match answer {
        Ok(Answer { json: value, code, .. }) if json => say(&format!("{value:#}\n"), code),
        Ok(Answer { page, code, .. }) => say(&page, code),
        Err(Failure { code, why }) => complain(why, code),
    }
}

/// A reader that has seen enough (`| head`) is no failure.
pub fn say(text: &str, code: Code) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => complain(format!("write to stdout: {e}"), Code::Found),
        _ => ExitCode::from(code as u8),
    }
}

pub fn complain(what: impl Display, code: Code) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "terway-cli: {what}");
    ExitCode::from(code as u8)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hue {
    Plain,
    Good,
    Odd,
    Bad,
    Faint,
}

/// Coloured for a person who looks at it; nobody else gets to see escape sequences.
pub fn paint(hue: Hue, text: &str) -> String {
    if is_painted() { painted(hue, text) } else { text.into() }
}

fn painted(hue: Hue, text: &str) -> String {
    let number = match hue {
        Hue::Plain => return text.into(),
        Hue::Good => 32,
        Hue::Odd => 33,
        Hue::Bad => 31,
        Hue::Faint => 90,
    };
    format!("\x1b[{number}m{text}\x1b[0m")
}

/// See <https://no-color.org>.
fn is_painted() -> bool {
    static PAINTED: OnceLock<bool> = OnceLock::new();
    *PAINTED.get_or_init(|| {
        let said = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        said("NO_COLOR").is_none() && said("TERM").is_none_or(|term| term != "dumb") && std::io::stdout().is_terminal()
    })
}

/// Text and its colour.
#[derive(Debug, Clone)]
pub struct Cell(pub Hue, pub String);

impl<T: Display> From<T> for Cell {
    fn from(text: T) -> Cell {
        Cell(Hue::Plain, text.to_string())
    }
}

/// Columns as wide as what stands in them.
pub struct Table(Vec<Vec<Cell>>);

impl Table {
    pub fn new<const N: usize>(head: [&str; N]) -> Table {
        Table(vec![head.map(|word| Cell(Hue::Faint, word.into())).to_vec()])
    }

    pub fn row<const N: usize>(&mut self, cells: [Cell; N]) {
        self.0.push(cells.to_vec());
    }

    pub fn text(&self) -> String {
        let width = |n: usize| self.0.iter().filter_map(|row| row.get(n)).map(|cell| cell.1.chars().count()).max();
        let mut text = String::new();
        for row in &self.0 {
            for (n, Cell(hue, word)) in row.iter().enumerate() {
                text += &paint(*hue, word);
                if n + 1 < row.len() {
                    let gap = width(n).unwrap_or_default() + 2 - word.chars().count();
                    text.extend(std::iter::repeat_n(' ', gap));
                }
            }
            text.truncate(text.trim_end_matches(' ').len());
            text.push('\n');
        }
        text
    }
}

/// Keys with slashes, drawn as a tree; what follows one another below one branch is drawn below it once.
pub fn tree(leaves: &[(String, String)]) -> String {
    let mut text = String::new();
    let mut above: Vec<&str> = Vec::new();
    for (key, value) in leaves {
        let steps: Vec<&str> = key.split('/').collect();
        let same = steps.iter().zip(&above).take_while(|(a, b)| a == b).count().min(steps.len() - 1);
        for (depth, step) in steps.iter().enumerate().skip(same) {
            text += &"  ".repeat(depth);
            text += step;
            text += &match depth + 1 == steps.len() {
                true if value.is_empty() => "\n".into(),
                true => format!(": {value}\n"),
                false => String::from(":\n"),
            };
        }
        above = steps;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_what_stands_in_them_and_lines_end_without_blanks() {
        let mut table = Table::new(["POD", "ADDRESS", "NOTE"]);
        table.row(["default/web".into(), "10.0.0.1".into(), "".into()]);
        table.row(["ä/b".into(), "10.0.0.22".into(), Cell(Hue::Bad, "gone".into())]);
        let want =
            ["POD          ADDRESS    NOTE", "default/web  10.0.0.1", "ä/b          10.0.0.22  gone", ""].join("\n");
        assert_eq!(table.text(), want);
    }

    #[test]
    fn what_has_one_branch_in_common_stands_below_it() {
        let leaf = |key: &str, value: &str| (key.to_string(), value.to_string());
        let leaves = [leaf("name", "eniip"), leaf("eni/a/ips", "3"), leaf("eni/a/state", "up"), leaf("eni/b/ips", "1")];
        let want = "name: eniip\neni:\n  a:\n    ips: 3\n    state: up\n  b:\n    ips: 1\n";
        assert_eq!(tree(&leaves), want);
    }

    #[test]
    fn a_colour_ends_where_its_text_does() {
        assert_eq!(painted(Hue::Bad, "gone"), "\x1b[31mgone\x1b[0m");
        assert_eq!(painted(Hue::Plain, "there"), "there");
    }
}
