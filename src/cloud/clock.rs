//! The cloud's time, as its answers tell it: a signature, and the end of a credential, are judged by its clock and not by ours.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

/// What an answer's way, and whole seconds in its header, may make of two clocks that agree.
const TOLERANCE: i64 = 60;

/// How far the cloud's clock is ahead of ours; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Clock(Arc<AtomicI64>);

impl Clock {
    /// What time it is in the cloud.
    pub fn now(&self) -> SystemTime {
        let (skew, now) = (self.skew(), SystemTime::now());
        let apart = Duration::from_secs(skew.unsigned_abs());
        let then = if skew >= 0 { now.checked_add(apart) } else { now.checked_sub(apart) };
        // A step of our own clock since then can lead before the times that have a calendar.
        then.filter(|then| *then >= SystemTime::UNIX_EPOCH).unwrap_or(now)
    }

    /// Seconds that the cloud's clock is ahead of ours, behind where negative; 0 where they agree.
    pub fn skew(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Compares with the `Date` of an answer that has just come.
    pub fn learn(&self, date: &str) {
        let Some(theirs) = parse(date) else { return };
        let ours = SystemTime::now();
        let skew = match theirs.duration_since(ours) {
            Ok(ahead) => ahead.as_secs() as i64,
            Err(e) => -(e.duration().as_secs() as i64),
        };
        self.0.store(if skew.abs() < TOLERANCE { 0 } else { skew }, Ordering::Relaxed);
    }
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`, the one form that RFC 9110 lets a server write.
fn parse(date: &str) -> Option<SystemTime> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let [_, day, month, year, time, "GMT"] = date.split_whitespace().collect::<Vec<_>>()[..] else { return None };
    let month = MONTHS.iter().position(|m| *m == month)? + 1;
    humantime::parse_rfc3339(&format!("{year}-{month:02}-{day}T{time}Z")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_read_in_the_form_that_servers_write() {
        let at = parse("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        assert_eq!(humantime::format_rfc3339_seconds(at).to_string(), "1994-11-06T08:49:37Z");
        for bad in [
            "",
            "now",
            "Sun, 06 Now 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 08:49:37 CET",
            "Sun, 06 Nov 1994 25:49:37 GMT",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn no_step_of_our_clock_leads_out_of_the_calendar() {
        for skew in [i64::MIN, -4_000_000_000, i64::MAX] {
            let now = Clock(Arc::new(AtomicI64::new(skew))).now();
            assert!(humantime::format_rfc3339_seconds(now).to_string().starts_with("20"), "{skew}");
        }
    }

    #[test]
    fn small_differences_are_none_and_large_ones_are_made_good() {
        let clock = Clock::default();
        for (date, least, most) in
            [("Tue, 01 Jan 2030 00:00:00 GMT", 1, i64::MAX), ("Thu, 01 Jan 1970 00:00:00 GMT", i64::MIN, -1)]
        {
            clock.learn(date);
            assert!((least..=most).contains(&clock.skew()), "{date}: {}", clock.skew());
            let off = clock.now().duration_since(parse(date).unwrap()).unwrap_or_default();
            assert!(off < Duration::from_secs(5), "{date}: {off:?}");
        }
        clock.learn("rubbish");
        assert!(clock.skew() < 0);
        let rfc = humantime::format_rfc3339_seconds(SystemTime::now() + Duration::from_secs(20)).to_string();
        let (day, time) = (&rfc[8..10], &rfc[11..19]);
        let month = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
            [rfc[5..7].parse::<usize>().unwrap() - 1];
        clock.learn(&format!("Day, {day} {month} {} {time} GMT", &rfc[..4]));
        assert_eq!(clock.skew(), 0);
    }
}
