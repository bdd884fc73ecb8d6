//! What a person sees: steps that tick while they go on, and tables; colours and rewritten lines only on a terminal. All of it is
//! recorded for the report.

use std::cell::RefCell;
use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::report::{Field, Item, Line, Node, Report};

/// Columns of a step's line: what is done, and what came of it.
const WHAT: usize = 42;
const DETAIL: usize = 24;
/// What a terminal of 80 columns has room for beside a step.
const ROOM: usize = 79 - WHAT - 5;

/// What was shown so far: one demo is told by one process.
static SHOWN: Mutex<Report> =
    Mutex::new(Report { title: String::new(), facts: Vec::new(), chapters: Vec::new(), faults: 0 });

/// Takes out what was shown.
pub fn shown() -> Report {
    std::mem::take(&mut *SHOWN.lock().expect("nobody panicked with it"))
}

fn record(item: Item) {
    SHOWN.lock().expect("nobody panicked with it").item(item);
}

#[derive(Clone, Copy)]
pub struct Screen {
    /// Lines may be rewritten.
    live: bool,
    colour: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    Plain,
    Good,
    Bad,
    Faint,
    Bold,
}

impl Screen {
    pub fn new() -> Screen {
        let said = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let live = std::io::stdout().is_terminal() && said("TERM").is_some_and(|term| term != "dumb");
        Screen { live, colour: live && said("NO_COLOR").is_none() }
    }

    /// For who reads by way of another program, which says whether colours are seen.
    pub fn passed_on(colour: bool) -> Screen {
        Screen { live: false, colour }
    }

    pub fn line(&self, text: &str) {
        self.write(&format!("{text}\n"));
        let bare = bare(text);
        if !bare.is_empty() {
            record(Item::Note(bare));
        }
    }

    /// For the terminal alone.
    pub fn aside(&self, text: &str) {
        self.write(&format!("  {}\n", self.paint(Tone::Faint, text)));
    }

    /// For the report alone: what a command has printed.
    pub fn text(&self, title: &str, body: &str) {
        record(Item::Text { title: title.into(), body: body.into() });
    }

    /// For the report alone: nodes, ENIs and pods.
    pub fn map(&self, nodes: Vec<Node>) {
        record(Item::Map(nodes));
    }

    pub fn title(&self, text: &str) {
        SHOWN.lock().expect("nobody panicked with it").chapter(text);
        self.write(&format!("\n{}\n", self.paint(Tone::Bold, text)));
    }

    /// Begins a step; it has failed unless [`Step::done`] is said.
    pub fn step(&self, what: impl Into<String>) -> Step<'_> {
        let step =
            Step { screen: self, what: what.into(), ticks: RefCell::default(), start: Instant::now(), open: true };
        step.redraw(&[]);
        step
    }

    pub fn table(&self, table: &Table) {
        self.write(&table.render(self));
        record(table.item());
    }

    pub fn paint(&self, tone: Tone, text: &str) -> String {
        let code = match tone {
            _ if !self.colour => return text.into(),
            Tone::Plain => return text.into(),
            Tone::Good => "32",
            Tone::Bad => "1;31",
            Tone::Faint => "2",
            Tone::Bold => "1",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    /// Nobody may be reading any more, which is no reason to leave the world standing.
    fn write(&self, text: &str) {
        let mut out = std::io::stdout();
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }
}

/// Something that takes time, on a line of its own.
pub struct Step<'a> {
    screen: &'a Screen,
    what: String,
    ticks: RefCell<Vec<bool>>,
    start: Instant,
    open: bool,
}

impl Step<'_> {
    /// One more part of it is over, well or not.
    pub fn tick(&self, good: bool) {
        self.ticks.borrow_mut().push(good);
        self.redraw(&self.ticks.borrow());
    }

    /// How far it has come, where parts are too many for ticks.
    pub fn so_far(&self, text: &str) {
        if self.screen.live {
            // A line that wraps cannot be rewritten.
            self.sketch(&text.chars().take(ROOM).collect::<String>());
        }
    }

    fn sketch(&self, text: &str) {
        if self.screen.live {
            let line = format!("\r  {} {:<WHAT$} {text}\x1b[K", self.screen.paint(Tone::Faint, "·"), self.what);
            self.screen.write(&line);
        }
    }

    /// Ends it: well, unless a tick was not.
    pub fn done(mut self, detail: &str) {
        let good = self.ticks.borrow().iter().all(|good| *good);
        self.end(good, detail);
    }

    pub fn failed(mut self, detail: &str) {
        self.end(false, detail);
    }

    fn end(&mut self, good: bool, detail: &str) {
        self.open = false;
        let (mark, screen) = (mark(good), self.screen);
        let (ticks, len) = self.row(&self.ticks.borrow());
        let gap = if len > 0 && !detail.is_empty() { " " } else { "" };
        let pad = " ".repeat(DETAIL.saturating_sub(len + gap.len() + detail.chars().count()));
        let time = screen.paint(Tone::Faint, &format!("{:>7}", seconds(self.start.elapsed())));
        let back = if screen.live { "\r\x1b[K" } else { "" };
        let (mark, what) = (screen.paint(tone(good), mark), &self.what);
        let ticks_only: String = self.ticks.borrow().iter().map(|good| self::mark(*good)).collect();
        record(Item::Step {
            what: what.clone(),
            detail: [ticks_only.as_str(), detail].join(" ").trim().to_owned(),
            good,
            took: seconds(self.start.elapsed()),
        });
        screen.write(&format!("{back}  {mark} {what:<WHAT$} {ticks}{gap}{detail}{pad} {time}\n"));
    }

    fn redraw(&self, ticks: &[bool]) {
        self.sketch(&self.row(ticks).0);
    }

    /// The ticks painted, and the columns they take.
    fn row(&self, ticks: &[bool]) -> (String, usize) {
        let row = ticks.iter().map(|good| self.screen.paint(tone(*good), mark(*good))).collect();
        (row, ticks.len())
    }
}

impl Drop for Step<'_> {
    fn drop(&mut self) {
        if self.open {
            self.end(false, "");
        }
    }
}

/// Without what paints it, and without the space around it.
fn bare(text: &str) -> String {
    let mut parts = text.split('\x1b');
    let first = parts.next().unwrap_or_default().to_owned();
    let rest = parts.filter_map(|part| part.split_once('m')).map(|(_, text)| text);
    (first + &rest.collect::<String>()).trim().to_owned()
}

pub fn mark(good: bool) -> &'static str {
    if good { "✓" } else { "✗" }
}

fn tone(good: bool) -> Tone {
    if good { Tone::Good } else { Tone::Bad }
}

pub fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

pub fn micros(time: Duration) -> String {
    format!("{:.0} µs", time.as_secs_f64() * 1e6)
}

pub fn millis(time: Duration) -> String {
    let millis = time.as_secs_f64() * 1e3;
    if millis < 100.0 { format!("{millis:.1} ms") } else { format!("{millis:.0} ms") }
}

/// One field of a table.
#[derive(Clone)]
pub struct Cell {
    text: String,
    tone: Tone,
    right: bool,
}

impl Cell {
    pub fn left(text: impl Into<String>) -> Cell {
        Cell { text: text.into(), tone: Tone::Plain, right: false }
    }

    pub fn right(text: impl Into<String>) -> Cell {
        Cell { right: true, ..Cell::left(text) }
    }

    /// What was expected came, or it did not.
    pub fn verdict(good: bool, text: &str) -> Cell {
        Cell { text: format!("{} {text}", mark(good)), tone: tone(good), right: false }
    }

    fn field(&self) -> Field {
        let good = match self.tone {
            Tone::Good => Some(true),
            Tone::Bad => Some(false),
            _ => None,
        };
        Field { text: self.text.clone(), good, right: self.right }
    }

    /// The same for a number.
    pub fn figure(good: bool, text: &str) -> Cell {
        Cell { right: true, ..Cell::verdict(good, text) }
    }
}

/// Rows of cells under a head of one or more lines; all of the same length.
pub struct Table {
    head: Vec<Vec<Cell>>,
    rows: Vec<Row>,
}

enum Row {
    Cells(Vec<Cell>),
    /// A rule that bears a name: what follows belongs to it.
    Section(String),
}

impl Table {
    pub fn new<const N: usize>(head: [Cell; N]) -> Table {
        Table { head: vec![bold(head.into())], rows: Vec::new() }
    }

    pub fn under<const N: usize>(mut self, head: [Cell; N]) -> Table {
        self.head.push(bold(head.into()));
        self
    }

    pub fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(Row::Cells(cells));
    }

    /// The rows that follow are of this.
    pub fn section(&mut self, name: impl Into<String>) {
        self.rows.push(Row::Section(name.into()));
    }

    fn item(&self) -> Item {
        let fields = |cells: &Vec<Cell>| cells.iter().map(Cell::field).collect();
        let rows = self.rows.iter().map(|row| match row {
            Row::Cells(cells) => Line::Fields(fields(cells)),
            Row::Section(name) => Line::Section(name.clone()),
        });
        Item::Table { head: self.head.iter().map(fields).collect(), rows: rows.collect() }
    }

    fn render(&self, screen: &Screen) -> String {
        let widths: Vec<usize> = (0..self.head[0].len()).map(|column| self.width(column)).collect();
        let mut lines = vec![rule(screen, &widths, ["┌", "┬", "┐"])];
        lines.extend(self.head.iter().map(|cells| line(screen, cells, &widths)));
        if !matches!(self.rows.first(), Some(Row::Section(_))) {
            lines.push(rule(screen, &widths, ["├", "┼", "┤"]));
        }
        lines.extend(self.rows.iter().map(|row| match row {
            Row::Cells(cells) => line(screen, cells, &widths),
            Row::Section(name) => named_rule(screen, &widths, name),
        }));
        lines.push(rule(screen, &widths, ["└", "┴", "┘"]));
        lines.iter().map(|line| format!("  {line}\n")).collect()
    }

    fn width(&self, column: usize) -> usize {
        let rows = self.rows.iter().filter_map(|row| if let Row::Cells(cells) = row { Some(cells) } else { None });
        self.head.iter().chain(rows).map(|cells| cells[column].text.chars().count()).max().unwrap_or_default()
    }
}

fn rule(screen: &Screen, widths: &[usize], ends: [&str; 3]) -> String {
    screen.paint(Tone::Faint, &bare_rule(widths, ends))
}

fn named_rule(screen: &Screen, widths: &[usize], name: &str) -> String {
    let bare: Vec<char> = bare_rule(widths, ["├", "┼", "┤"]).chars().collect();
    let rest: String = bare.iter().skip(4 + name.chars().count()).collect();
    format!(
        "{} {} {}",
        screen.paint(Tone::Faint, "├─"),
        screen.paint(Tone::Bold, name),
        screen.paint(Tone::Faint, &rest)
    )
}

fn bare_rule(widths: &[usize], ends: [&str; 3]) -> String {
    let bars: Vec<String> = widths.iter().map(|width| "─".repeat(width + 2)).collect();
    format!("{}{}{}", ends[0], bars.join(ends[1]), ends[2])
}

fn bold(cells: Vec<Cell>) -> Vec<Cell> {
    cells.into_iter().map(|cell| Cell { tone: Tone::Bold, ..cell }).collect()
}

fn line(screen: &Screen, row: &[Cell], widths: &[usize]) -> String {
    let bar = screen.paint(Tone::Faint, "│");
    let mut line = bar.clone();
    for (cell, width) in row.iter().zip(widths) {
        let pad = " ".repeat(width - cell.text.chars().count());
        let text = screen.paint(cell.tone, &cell.text);
        let text = if cell.right { pad + &text } else { text + &pad };
        line += &format!(" {text} {bar}");
    }
    line
}
