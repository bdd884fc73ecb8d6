//! Reads Prometheus text (exposition format 0.0.4) as strictly as it is specified, and histograms as strictly as they are meant.

use std::collections::{BTreeMap, BTreeSet};

/// Samples of one name.
#[derive(Debug, Default)]
pub struct Family {
    pub kind: String,
    samples: Vec<Sample>,
}

#[derive(Debug)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

/// Families by name, or the first line that is wrong, and why.
pub fn read(text: &str) -> Result<BTreeMap<String, Family>, String> {
    if !text.ends_with('\n') {
        return Err("the last line has no end".into());
    }
    let mut all: BTreeMap<String, Family> = BTreeMap::new();
    let (mut described, mut current) = (None, String::new());
    let mut seen = BTreeSet::new();
    for line in text.lines() {
        let wrong = |why: &str| format!("{why}: {line}");
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').ok_or_else(|| wrong("no help"))?;
            if all.contains_key(name) || described.is_some() || !is_name(name) || help.trim().is_empty() {
                return Err(wrong("a family that was there, or none"));
            }
            described = Some(name.to_owned());
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').ok_or_else(|| wrong("no type"))?;
            if described.take().as_deref() != Some(name) || !["counter", "gauge", "histogram"].contains(&kind) {
                return Err(wrong("a type that follows no help, or is none"));
            }
            current = name.to_owned();
            all.insert(current.clone(), Family { kind: kind.into(), samples: Vec::new() });
        } else {
            let sample = sample(line).map_err(wrong)?;
            let family = all.get_mut(&current).filter(|_| described.is_none()).ok_or_else(|| wrong("no family"))?;
            let suffixes: &[&str] = if family.kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            if !suffixes.iter().any(|suffix| sample.name == format!("{current}{suffix}")) {
                return Err(wrong("of another family"));
            }
            if !seen.insert((sample.name.clone(), sample.labels.clone())) {
                return Err(wrong("twice"));
            }
            if family.kind != "gauge" && sample.value < 0.0 {
                return Err(wrong("below zero"));
            }
            family.samples.push(sample);
        }
    }
    all.iter()
        .filter(|(_, family)| family.kind == "histogram")
        .try_for_each(|(name, family)| histogram(name, family))?;
    Ok(all)
}

fn is_name(name: &str) -> bool {
    !name.starts_with(|c: char| c.is_ascii_digit())
        && !name.is_empty()
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':')
}

fn sample(line: &str) -> Result<Sample, &'static str> {
    let end = line.find(['{', ' ']).ok_or("no value")?;
    let (name, rest) = line.split_at(end);
    let (labels, value) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (BTreeMap::new(), rest),
    };
    let value = value.strip_prefix(' ').filter(|value| !value.contains(' ')).ok_or("not one value")?;
    let value: f64 = value.parse().map_err(|_| "no number")?;
    (is_name(name) && value.is_finite())
        .then(|| Sample { name: name.into(), labels, value })
        .ok_or("no name or no number")
}

/// Labels up to the bracket, and what follows it.
fn labels(mut rest: &str) -> Result<(BTreeMap<String, String>, &str), &'static str> {
    let mut found = BTreeMap::new();
    loop {
        let (name, after) = rest.split_once("=\"").ok_or("no label")?;
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next().ok_or("a label without an end")? {
                (at, '"') => break at,
                (_, '\\') => match chars.next().ok_or("a label without an end")?.1 {
                    'n' => value.push('\n'),
                    c @ ('\\' | '"') => value.push(c),
                    _ => return Err("an escape that is none"),
                },
                (_, c) => value.push(c),
            }
        };
        if !is_name(name) || name.contains(':') || found.insert(name.to_owned(), value).is_some() {
            return Err("a label that is none, or twice");
        }
        let after = &after[end + 1..];
        match after.strip_prefix(',') {
            Some(more) => rest = more,
            None => return Ok((found, after.strip_prefix('}').ok_or("labels without an end")?)),
        }
    }
}

/// Buckets only grow, the last has all, and it is as many as are counted.
fn histogram(name: &str, family: &Family) -> Result<(), String> {
    let mut buckets: BTreeMap<BTreeMap<String, String>, Vec<(f64, f64)>> = BTreeMap::new();
    let mut counts = BTreeMap::new();
    for Sample { name: own, labels, value } in &family.samples {
        let mut labels = labels.clone();
        if own.ends_with("_bucket") {
            let bound = labels.remove("le").ok_or_else(|| format!("{name}: a bucket without a bound"))?;
            let bound = bound.parse().map_err(|_| format!("{name}: {bound} is no bound"))?;
            buckets.entry(labels).or_default().push((bound, *value));
        } else if own.ends_with("_count") {
            counts.insert(labels, *value);
        }
    }
    for (labels, buckets) in &buckets {
        let grows = buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1);
        let last = buckets.last().filter(|(bound, _)| *bound == f64::INFINITY).map(|(_, count)| count);
        if !grows || last.is_none() || last != counts.get(labels) {
            return Err(format!("{name}{labels:?}: {buckets:?} of {:?}", counts.get(labels)));
        }
    }
    match buckets.keys().eq(counts.keys()) {
        true => Ok(()),
        false => Err(format!("{name}: buckets and counts are of different labels")),
    }
}

#[cfg(test)]
mod tests {
    use super::read;

    const HEAD: &str = "# HELP a A.\n# TYPE a gauge\n";
    const HISTOGRAM: &str = "# HELP h H.\n# TYPE h histogram\n";

    #[test]
    fn what_is_not_the_format_is_found() {
        assert!(read(&format!("{HEAD}a{{b=\"c\\\\ \\\" \\n\"}} 1\na 2.5\n")).is_ok());
        for wrong in [
            "a 1",
            "b 1\n",
            "a 1\na 1\n",
            "a{b=\"c} 1\n",
            "a{b=\"\\x\"} 1\n",
            "a one\n",
            "a 1 2 3\n",
            "a{b=\"c\"}1\n",
            "a NaN\n",
        ] {
            assert!(read(&format!("{HEAD}{wrong}")).is_err(), "{wrong}");
        }
        assert!(read("a 1\n").is_err() && read(&format!("{HEAD}{HEAD}")).is_err() && read("# TYPE a gauge\n").is_err());
    }

    #[test]
    fn histograms_that_cannot_be_are_found() {
        let of = |text: &str| read(&format!("{HISTOGRAM}{text}"));
        assert!(of("h_bucket{le=\"1\"} 1\nh_bucket{le=\"+Inf\"} 2\nh_sum 3\nh_count 2\n").is_ok());
        for wrong in [
            "h_bucket{le=\"1\"} 3\nh_bucket{le=\"+Inf\"} 2\nh_sum 3\nh_count 2\n",
            "h_bucket{le=\"1\"} 1\nh_sum 3\nh_count 1\n",
            "h_bucket{le=\"+Inf\"} 2\nh_sum 3\nh_count 1\n",
            "h_bucket{le=\"2\"} 1\nh_bucket{le=\"1\"} 1\nh_bucket{le=\"+Inf\"} 1\nh_sum 3\nh_count 1\n",
            "h_sum 3\nh_count 1\n",
        ] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }
}
