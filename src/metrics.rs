//! Numbers as Prometheus reads them: histograms that are counted here, and the text of a page (exposition format 0.0.4).

use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::time::Duration;

/// Histograms of one name, by what their labels say; in milliseconds.
pub struct Latencies<const N: usize> {
    name: &'static str,
    help: &'static str,
    labels: [&'static str; N],
    bounds: &'static [u32],
    by: BTreeMap<[String; N], Histogram>,
}

#[derive(Default)]
struct Histogram {
    /// How many fell below each bound and above the one before.
    counts: Vec<u64>,
    count: u64,
    sum: f64,
}

impl<const N: usize> Latencies<N> {
    pub const fn new(
        name: &'static str,
        help: &'static str,
        labels: [&'static str; N],
        bounds: &'static [u32],
    ) -> Latencies<N> {
        Latencies { name, help, labels, bounds, by: BTreeMap::new() }
    }

    pub fn took(&mut self, labels: [&str; N], took: Duration) {
        let histogram = self.by.entry(labels.map(str::to_owned)).or_default();
        let millis = took.as_secs_f64() * 1000.0;
        histogram.counts.resize(self.bounds.len(), 0);
        if let Some(place) = self.bounds.iter().position(|bound| millis <= f64::from(*bound)) {
            histogram.counts[place] += 1;
        }
        histogram.count += 1;
        histogram.sum += millis;
    }

    /// How many there were with these labels.
    pub fn count(&self, labels: [&str; N]) -> u64 {
        self.by.get(&labels.map(str::to_owned)).map_or(0, |histogram| histogram.count)
    }
}

/// What is answered to whoever collects.
#[derive(Default)]
pub struct Page {
    text: String,
}

impl Page {
    /// One value that goes up and down, for each of these labels.
    pub fn gauge<V: Display>(&mut self, name: &str, help: &str, values: &[(Vec<(&str, String)>, V)]) {
        self.describe(name, help, "gauge");
        for (labels, value) in values {
            self.sample(name, labels, value);
        }
    }

    /// The same of one that only goes up.
    pub fn counter<V: Display>(&mut self, name: &str, help: &str, values: &[(Vec<(&str, String)>, V)]) {
        self.describe(name, help, "counter");
        for (labels, value) in values {
            self.sample(name, labels, value);
        }
    }

    pub fn latencies<const N: usize>(&mut self, all: &Latencies<N>) {
        self.describe(all.name, all.help, "histogram");
        for (values, histogram) in &all.by {
            let labels: Vec<(&str, String)> = all.labels.into_iter().zip(values.iter().cloned()).collect();
            let mut below = 0;
            let bucket = format!("{}_bucket", all.name);
            for (bound, count) in all.bounds.iter().zip(&histogram.counts) {
                below += count;
                self.sample(&bucket, &with(&labels, bound.to_string()), below);
            }
            self.sample(&bucket, &with(&labels, "+Inf".into()), histogram.count);
            self.sample(&format!("{}_sum", all.name), &labels, histogram.sum);
            self.sample(&format!("{}_count", all.name), &labels, histogram.count);
        }
    }

    pub fn text(self) -> String {
        self.text
    }

    fn describe(&mut self, name: &str, help: &str, kind: &str) {
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, String)], value: impl Display) {
        let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}=\"{}\"", escaped(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.text, "{name}{labels} {value}");
    }
}

fn with<'a>(labels: &[(&'a str, String)], bound: String) -> Vec<(&'a str, String)> {
    labels.iter().cloned().chain([("le", bound)]).collect()
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_what_is_at_most_its_bound() {
        let mut all = Latencies::new("took", "How long.", ["api", "error"], &[1, 10]);
        for millis in [1, 10, 11] {
            all.took(["a", "false"], Duration::from_millis(millis));
        }
        assert_eq!((all.count(["a", "false"]), all.count(["a", "true"])), (3, 0));
        let mut page = Page::default();
        page.latencies(&all);
        let expected = "# HELP took How long.\n# TYPE took histogram\n\
                        took_bucket{api=\"a\",error=\"false\",le=\"1\"} 1\n\
                        took_bucket{api=\"a\",error=\"false\",le=\"10\"} 2\n\
                        took_bucket{api=\"a\",error=\"false\",le=\"+Inf\"} 3\n\
                        took_sum{api=\"a\",error=\"false\"} 22\n\
                        took_count{api=\"a\",error=\"false\"} 3\n";
        assert_eq!(page.text(), expected);
    }

    #[test]
    fn what_labels_say_cannot_end_them() {
        let mut page = Page::default();
        page.gauge("g", "A gauge.", &[(vec![("why", "a \"b\"\\\n".into())], 7)]);
        page.counter("c", "A counter.", &[(vec![], 1)]);
        let expected = "# HELP g A gauge.\n# TYPE g gauge\ng{why=\"a \\\"b\\\"\\\\\\n\"} 7\n\
                        # HELP c A counter.\n# TYPE c counter\nc 1\n";
        assert_eq!(page.text(), expected);
    }
}
