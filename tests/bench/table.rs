//! The table of numbers: each with its baseline and its goal, for people and, as `target/bench.json`, for programs.

use std::fmt::Write as _;
use std::fs;
use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value, json};

/// What a figure must keep to.
#[derive(Debug, Clone, Copy)]
pub enum Goal {
    /// The figure itself.
    AtMost(f64),
    /// The figure as a multiple of its baseline.
    RatioAtMost(f64),
    RatioAtLeast(f64),
    RatioBelow(f64),
}

/// One figure.
pub struct Row {
    name: &'static str,
    what: &'static str,
    unit: &'static str,
    ours: f64,
    baseline: Option<f64>,
    goal: Goal,
    more: Map<String, Value>,
}

impl Row {
    /// A figure that stands alone.
    pub fn alone(name: &'static str, what: &'static str, unit: &'static str, ours: f64, most: f64) -> Row {
        Row { name, what, unit, ours, baseline: None, goal: Goal::AtMost(most), more: Map::new() }
    }

    /// A figure beside that of a peer.
    pub fn beside(name: &'static str, what: &'static str, unit: &'static str, pair: [f64; 2], goal: Goal) -> Row {
        Row { name, what, unit, ours: pair[0], baseline: Some(pair[1]), goal, more: Map::new() }
    }

    /// Times beside those of a peer, compared by their medians.
    pub fn times(name: &'static str, what: &'static str, pair: [&Times; 2], goal: Goal) -> Row {
        let row = Row::beside(name, what, "µs", pair.map(|times| micros(times.p50())), goal);
        row.with("ours_times", pair[0].json()).with("baseline_times", pair[1].json())
    }

    /// A further field of the JSON.
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Row {
        self.more.insert(name.into(), value.into());
        self
    }

    fn ratio(&self) -> Option<f64> {
        self.baseline.filter(|baseline| *baseline != 0.0).map(|baseline| self.ours / baseline)
    }

    fn met(&self) -> bool {
        let ratio = |holds: fn(f64, f64) -> bool, goal| self.ratio().is_some_and(|ratio| holds(ratio, goal));
        match self.goal {
            Goal::AtMost(goal) => self.ours <= goal,
            Goal::RatioAtMost(goal) => ratio(|a, b| a <= b, goal),
            Goal::RatioAtLeast(goal) => ratio(|a, b| a >= b, goal),
            Goal::RatioBelow(goal) => ratio(|a, b| a < b, goal),
        }
    }

    fn json(&self) -> Value {
        let (goal, goal_is) = match self.goal {
            Goal::AtMost(goal) => (goal, "ours at most"),
            Goal::RatioAtMost(goal) => (goal, "ratio at most"),
            Goal::RatioAtLeast(goal) => (goal, "ratio at least"),
            Goal::RatioBelow(goal) => (goal, "ratio below"),
        };
        let mut object = json!({
            "name": self.name,
            "what": self.what,
            "ours": self.ours,
            "baseline": self.baseline,
            "ratio": self.ratio(),
            "goal": goal,
            "goal_is": goal_is,
            "unit": self.unit,
            "met": self.met(),
        });
        object.as_object_mut().expect("it is one").extend(self.more.clone());
        object
    }

    fn line(&self, colour: bool) -> String {
        let met = match (self.met(), colour) {
            (true, _) => "met".to_owned(),
            (false, true) => "\x1b[31mmissed\x1b[0m".to_owned(),
            (false, false) => "missed".to_owned(),
        };
        let baseline = self.baseline.map_or_else(String::new, number);
        let ratio = self.ratio().map_or_else(String::new, number);
        let goal = match self.goal {
            Goal::AtMost(goal) => format!("≤ {}", number(goal)),
            Goal::RatioAtMost(goal) => format!("≤ {} ×", number(goal)),
            Goal::RatioAtLeast(goal) => format!("≥ {} ×", number(goal)),
            Goal::RatioBelow(goal) => format!("< {} ×", number(goal)),
        };
        let (name, ours, unit) = (self.name, number(self.ours), self.unit);
        format!("{name:<20} {ours:>11} {baseline:>11} {unit:<6} {ratio:>7}   {goal:<13} {met}")
    }
}

#[derive(Default)]
pub struct Table(Vec<Row>);

impl Table {
    pub fn push(&mut self, row: Row) {
        eprintln!("  {}", row.line(false));
        self.0.push(row);
    }

    pub fn all_met(&self) -> bool {
        self.0.iter().all(Row::met)
    }

    pub fn print(&self) {
        let colour = std::io::stdout().is_terminal();
        let mut text =
            format!("\n{:<20} {:>11} {:>11} {:<6} {:>7}   {:<13}\n", "", "ours", "baseline", "unit", "ratio", "goal");
        for row in &self.0 {
            writeln!(text, "{}\n    {}", row.line(colour), row.what).expect("a String takes all");
        }
        print!("{text}");
    }

    pub fn write(&self, path: &Path) {
        let rows: Vec<Value> = self.0.iter().map(Row::json).collect();
        let text = serde_json::to_string_pretty(&rows).expect("plain data");
        fs::write(path, text).unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
        println!("\nalso in {}", path.display());
    }
}

/// Durations of one kind.
#[derive(Default, Clone)]
pub struct Times(Vec<Duration>);

impl Times {
    pub fn push(&mut self, time: Duration) {
        let at = self.0.partition_point(|other| *other < time);
        self.0.insert(at, time);
    }

    pub fn p50(&self) -> Duration {
        self.percentile(50)
    }

    pub fn percentile(&self, percent: usize) -> Duration {
        assert!(!self.0.is_empty(), "nothing was measured");
        self.0[(self.0.len() * percent / 100).min(self.0.len() - 1)]
    }

    pub fn json(&self) -> Value {
        json!({
            "count": self.0.len(),
            "min": micros(self.0[0]),
            "p50": micros(self.p50()),
            "p90": micros(self.percentile(90)),
            "unit": "µs",
        })
    }
}

pub fn micros(time: Duration) -> f64 {
    (time.as_nanos() as f64 / 10.0).round() / 100.0
}

/// Four digits that say something.
fn number(value: f64) -> String {
    if value == value.trunc() {
        return format!("{value}");
    }
    let digits = (3 - value.abs().log10().floor() as i32).clamp(0, 4) as usize;
    format!("{value:.digits$}")
}
