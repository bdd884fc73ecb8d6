//! Whether the node has addresses for pods, told so that nobody is startled by every hiccup: a lack shows at once, its end
//! when it has lasted for a while, and the longer the more often it came.

use std::time::Duration;

use super::{Lack, Now};

/// How long addresses must be there before the lack is over; doubled for each lack within [`MEMORY`], up to [`MOST`].
const HOLD: Duration = Duration::from_secs(10);
const MOST: Duration = Duration::from_secs(300);
const MEMORY: Duration = Duration::from_secs(600);
/// A lack that goes on for another reason is told anew at most this often.
const REASONS: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(super) struct Sufficiency {
    latest: Option<Lack>,
    /// Since when the latest has been good.
    good_since: Option<Now>,
    shown: Option<Shown>,
    began: Option<Now>,
    hold: Duration,
}

#[derive(Debug)]
struct Shown {
    lack: Option<Lack>,
    since: Now,
}

impl Sufficiency {
    pub fn hear(&mut self, now: Now, lack: Option<Lack>) {
        if lack.is_some() {
            self.good_since = None;
        } else {
            self.good_since.get_or_insert(now);
        }
        self.latest = lack;
        self.advance(now);
    }

    /// What is to be shown, once anything is known.
    pub fn shown(&self) -> Option<Option<&Lack>> {
        self.shown.as_ref().map(|shown| shown.lack.as_ref())
    }

    pub fn advance(&mut self, now: Now) {
        if self.due().is_none_or(|due| due > now) {
            return;
        }
        let begins = self.latest.is_some() && self.shown.as_ref().is_none_or(|shown| shown.lack.is_none());
        if begins {
            let soon = self.began.is_some_and(|began| now < began + MEMORY);
            self.hold = if soon { (self.hold * 2).min(MOST) } else { HOLD };
            self.began = Some(now);
        }
        self.shown = Some(Shown { lack: self.latest.clone(), since: now });
    }

    /// When what is shown will change if nothing else is heard.
    pub fn due(&self) -> Option<Now> {
        let Some(shown) = &self.shown else { return self.latest.as_ref().map(|_| Now::ZERO).or(self.good_since) };
        match (&shown.lack, &self.latest) {
            (None, None) => None,
            (None, Some(_)) => Some(Now::ZERO),
            (Some(_), None) => self.good_since.map(|since| since + self.hold),
            (Some(old), Some(new)) => (old.why != new.why).then_some(shown.since + REASONS),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::Refusal;

    const fn t(secs: u64) -> Now {
        Duration::from_secs(secs)
    }

    fn lack(why: Refusal) -> Option<Lack> {
        Some(Lack { why, reason: format!("{why:?}") })
    }

    fn shown(s: &Sufficiency) -> &str {
        s.shown().map_or("nothing", |lack| lack.map_or("enough", |l| l.reason.as_str()))
    }

    #[test]
    fn a_lack_shows_at_once_and_its_end_when_it_lasts() {
        let mut s = Sufficiency::default();
        assert_eq!((shown(&s), s.due()), ("nothing", None));
        s.hear(t(100), None);
        assert_eq!((shown(&s), s.due()), ("enough", None));
        s.hear(t(200), lack(Refusal::VSwitchEmpty));
        assert_eq!(shown(&s), "VSwitchEmpty");
        s.hear(t(205), None);
        s.hear(t(209), lack(Refusal::VSwitchEmpty));
        s.hear(t(210), None);
        assert_eq!((shown(&s), s.due()), ("VSwitchEmpty", Some(t(220))));
        s.advance(t(219));
        assert_eq!(shown(&s), "VSwitchEmpty");
        s.advance(t(220));
        assert_eq!(shown(&s), "enough");
    }

    #[test]
    fn a_lack_that_keeps_coming_back_takes_longer_to_end() {
        let mut s = Sufficiency::default();
        let (mut now, mut holds) = (t(1000), Vec::new());
        for _ in 0..8 {
            s.hear(now, lack(Refusal::CloudDown));
            s.hear(now, None);
            holds.push((s.due().unwrap() - now).as_secs());
            now = s.due().unwrap();
            s.advance(now);
            assert_eq!(shown(&s), "enough");
        }
        assert_eq!(holds, [10, 20, 40, 80, 160, 300, 300, 300]);
        now += t(700);
        s.hear(now, lack(Refusal::CloudDown));
        s.hear(now, None);
        assert_eq!(s.due().unwrap() - now, t(10));
    }

    #[test]
    fn another_reason_for_the_same_lack_is_told_now_and_then() {
        let mut s = Sufficiency::default();
        s.hear(t(100), lack(Refusal::CloudDown));
        s.hear(t(110), lack(Refusal::Throttled));
        assert_eq!((shown(&s), s.due()), ("CloudDown", Some(t(160))));
        s.hear(t(120), lack(Refusal::CloudDown));
        assert_eq!((shown(&s), s.due()), ("CloudDown", None));
        s.hear(t(170), lack(Refusal::Forbidden));
        assert_eq!(shown(&s), "Forbidden");
    }
}
