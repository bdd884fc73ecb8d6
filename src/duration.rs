//! Durations as Go writes them, which the configuration has from the old Terway.

use std::time::Duration;

use crate::json::{Reader, Wrong};

/// The duration of a key of the configuration, not shorter than this many seconds.
pub fn duration(keys: &mut Reader, key: &'static str, default: u64, least: u64) -> Result<Duration, Wrong> {
    const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);
    let least = Duration::from_secs(least);
    let want =
        format!("a duration such as \"90s\" or \"1h30m\", from {}s to {}h", least.as_secs(), LONGEST.as_secs() / 3600);
    let parse = |text: &str| go_duration(text).filter(|d| (least..=LONGEST).contains(d));
    Ok(keys.parsed(key, &want, parse)?.unwrap_or(Duration::from_secs(default)))
}

/// A duration as Go writes it: numbers with units, `1h30m`, `1.5s`, `250ms`; `0` needs no unit.
pub fn go_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut total: u64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, behind) = rest.split_at(digits);
        let (unit, behind) =
            behind.split_at(behind.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(behind.len()));
        total = total.checked_add(nanoseconds(number, unit)?)?;
        rest = behind;
    }
    (!text.is_empty()).then(|| Duration::from_nanos(total))
}

fn nanoseconds(number: &str, unit: &str) -> Option<u64> {
    let unit: u64 = match unit {
        "ns" => 1,
        "us" | "µs" | "μs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    let whole = if whole.is_empty() { 0 } else { whole.parse::<u64>().ok()? };
    let mut part: u64 = 0;
    let mut scale = unit;
    for digit in fraction.bytes() {
        // Exact as long as there is something left to divide; what is below a nanosecond is cut off.
        part += u64::from(digit - b'0') * scale / 10;
        scale /= 10;
    }
    whole.checked_mul(unit)?.checked_add(part)
}
