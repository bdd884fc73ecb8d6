//! Bandwidth: bytes a second in each direction, and the two notations in which a pod's annotations ask for it.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Bytes a second, as frames on the pod's link count; from 1 kbit/s to 1 Pbit/s, as Kubernetes has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct Rate(u64);

/// What exists once per direction. Directions are the pod's: ingress is what it receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Both<T> {
    #[serde(default)]
    pub ingress: T,
    #[serde(default)]
    pub egress: T,
}

/// Limits that somebody asks for.
pub type Limits = Both<Option<Rate>>;

/// The limit of one direction of an attachment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Limit {
    /// What the kernel is to hold to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// What the annotations said when they were last heard. A runtime's own word, a copy of theirs from the time of the ADD,
    /// counts until they change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotated: Option<Rate>,
}

/// What annotations say of one direction.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Told {
    #[default]
    Nothing,
    Limit(Rate),
    /// What is wrong, for a person.
    Wrong(String),
}

/// The prefixes of the annotations: Kubernetes' own, which a runtime reads too, comes first.
const KUBERNETES: &str = "kubernetes.io";
const ALIYUN: &str = "k8s.aliyun.com";
/// Digits that a number of annotations may have; more are not meant.
const MAX_DIGITS: usize = 30;

impl Rate {
    pub const MIN: Rate = Rate(125);
    const MAX: Rate = Rate(125_000_000_000_000);

    pub fn bytes(self) -> u64 {
        self.0
    }

    /// What a runtime asks for in bits; nothing is no limit, and what is out of bounds is put into them.
    pub fn from_bits(bits: u64) -> Option<Rate> {
        (bits > 0).then(|| Rate((bits / 8).clamp(Rate::MIN.0, Rate::MAX.0)))
    }

    /// Reads the notation of `k8s.aliyun.com`: bytes, in units to the base 1024, or without any.
    pub fn from_bytes_text(text: &str) -> Result<Rate, &'static str> {
        const FORM: &str = "it must be a number of bytes a second, with or without a unit, such as 10M or 1.5MiB";
        let text = text.trim();
        let end = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let power = match unit.to_ascii_uppercase().as_str() {
            "" | "B" => 0,
            "K" | "KB" | "KIB" => 1,
            "M" | "MB" | "MIB" => 2,
            "G" | "GB" | "GIB" => 3,
            "T" | "TB" | "TIB" => 4,
            _ => return Err(FORM),
        };
        let bytes = Decimal::read(number).and_then(|n| n.times(1 << (10 * power), 0)).ok_or(FORM)?;
        Rate::bounded(bytes)
    }

    /// Reads a quantity of Kubernetes, which is in bits.
    pub fn from_quantity(text: &str) -> Result<Rate, &'static str> {
        const FORM: &str = "it must be a quantity of bits a second, such as 10M, 1.5Gi or 1e6";
        let end = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
        let (number, suffix) = text.split_at(end);
        let (factor, power) = suffix_of(suffix).ok_or(FORM)?;
        let bits = Decimal::read(number).and_then(|n| n.times(factor, power)).ok_or(FORM)?;
        Rate::bounded(bits / 8)
    }

    fn bounded(bytes: u128) -> Result<Rate, &'static str> {
        if bytes < u128::from(Rate::MIN.0) {
            return Err("it must be at least 1 kbit/s, which is 125 bytes a second");
        }
        match u64::try_from(bytes) {
            Ok(bytes) if bytes <= Rate::MAX.0 => Ok(Rate(bytes)),
            _ => Err("it must be at most 1 Pbit/s"),
        }
    }
}

/// What the suffix of a quantity multiplies it by: a factor, and a power of ten.
fn suffix_of(suffix: &str) -> Option<(u128, i32)> {
    Some(match suffix {
        "" => (1, 0),
        "n" => (1, -9),
        "u" => (1, -6),
        "m" => (1, -3),
        "k" => (1, 3),
        "M" => (1, 6),
        "G" => (1, 9),
        "T" => (1, 12),
        "P" => (1, 15),
        "E" => (1, 18),
        "Ki" => (1 << 10, 0),
        "Mi" => (1 << 20, 0),
        "Gi" => (1 << 30, 0),
        "Ti" => (1 << 40, 0),
        "Pi" => (1 << 50, 0),
        "Ei" => (1 << 60, 0),
        // Kubernetes takes exponents of 32 bits; none of more than two digits leads into the bounds.
        _ => (1, suffix.strip_prefix(['e', 'E'])?.parse::<i32>().ok()?.clamp(-99, 99)),
    })
}

/// A number as it is written: digits, and how many of them are behind the point.
struct Decimal {
    digits: u128,
    behind: i32,
}

impl Decimal {
    /// Without a sign, or with `+`: what is below zero is no rate.
    fn read(text: &str) -> Option<Decimal> {
        let text = text.strip_prefix('+').unwrap_or(text);
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
        let all = [whole, fraction].concat();
        let is_number = text.bytes().any(|b| b.is_ascii_digit()) && all.bytes().all(|b| b.is_ascii_digit());
        if !is_number || all.len() > MAX_DIGITS {
            return None;
        }
        let digits = if all.is_empty() { 0 } else { all.parse().ok()? };
        Some(Decimal { digits, behind: fraction.len() as i32 })
    }

    /// The whole part of its product with a factor and a power of ten; what is beyond all bounds stays there.
    fn times(&self, factor: u128, power: i32) -> Option<u128> {
        let product = self.digits.checked_mul(factor)?;
        let power = power - self.behind;
        let shift = 10_u128.checked_pow(power.unsigned_abs());
        Some(match shift {
            Some(shift) if power < 0 => product / shift,
            Some(shift) => product.saturating_mul(shift),
            None if power < 0 || product == 0 => 0,
            None => u128::MAX,
        })
    }
}

/// As tc(8) takes it.
impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}bit", u128::from(self.0) * 8)
    }
}

impl TryFrom<u64> for Rate {
    type Error = &'static str;

    fn try_from(bytes: u64) -> Result<Rate, &'static str> {
        Rate::bounded(bytes.into())
    }
}

impl From<Rate> for u64 {
    fn from(rate: Rate) -> u64 {
        rate.0
    }
}

impl<T: Default + PartialEq> Both<T> {
    /// Nothing in either direction.
    pub fn is_default(&self) -> bool {
        *self == Both::default()
    }
}

impl Both<Told> {
    /// What these annotations say.
    pub fn read(annotations: &BTreeMap<String, String>) -> Both<Told> {
        Both { ingress: told(annotations, "ingress-bandwidth"), egress: told(annotations, "egress-bandwidth") }
    }

    /// What is wrong with them.
    pub fn faults(&self) -> impl Iterator<Item = &str> {
        [&self.ingress, &self.egress].into_iter().filter_map(|told| match told {
            Told::Wrong(why) => Some(why.as_str()),
            Told::Nothing | Told::Limit(_) => None,
        })
    }
}

/// The first family that says anything decides.
fn told(annotations: &BTreeMap<String, String>, name: &str) -> Told {
    let (kubernetes, aliyun) = (format!("{KUBERNETES}/{name}"), format!("{ALIYUN}/{name}"));
    let (key, text, rate) = match (annotations.get(&kubernetes), annotations.get(&aliyun)) {
        (Some(text), _) => (kubernetes, text, Rate::from_quantity(text)),
        (None, Some(text)) => (aliyun, text, Rate::from_bytes_text(text)),
        (None, None) => return Told::Nothing,
    };
    match rate {
        Ok(rate) => Told::Limit(rate),
        Err(why) => Told::Wrong(format!("annotation {key} is {text:?}: {why}")),
    }
}

impl Limit {
    /// The annotations say this now. What is wrong changes nothing: a slip of the pen must not lift the limit of a pod that runs.
    fn hear(self, told: &Told) -> Limit {
        let annotated = match told {
            Told::Nothing => None,
            Told::Limit(rate) => Some(*rate),
            Told::Wrong(_) => return self,
        };
        if annotated == self.annotated { self } else { Limit { rate: annotated, annotated } }
    }
}

impl Both<Limit> {
    /// The annotations say this now.
    pub fn hear(self, told: &Both<Told>) -> Both<Limit> {
        Both { ingress: self.ingress.hear(&told.ingress), egress: self.egress.hear(&told.egress) }
    }

    /// A runtime asks for this in an ADD, which goes before what annotations said until then.
    pub fn ask(self, limits: Limits) -> Both<Limit> {
        let ask = |limit: Limit, asked: Option<Rate>| Limit { rate: asked.or(limit.rate), ..limit };
        Both { ingress: ask(self.ingress, limits.ingress), egress: ask(self.egress, limits.egress) }
    }

    pub fn rates(self) -> Limits {
        Both { ingress: self.ingress.rate, egress: self.egress.rate }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliyuns_notation_is_bytes_to_the_base_1024() {
        for (text, bytes) in [
            ("1M", 1_048_576),
            ("1m", 1_048_576),
            ("1MB", 1_048_576),
            ("1MiB", 1_048_576),
            ("128K", 131_072),
            ("12.5M", 13_107_200),
            ("1.5M", 1_572_864),
            ("0.001M", 1048),
            (".5M", 524_288),
            ("5.K", 5120),
            ("+2kb", 2048),
            (" 2GIB\n", 2 << 30),
            ("1T", 1 << 40),
            ("1TB", 1 << 40),
            ("500000B", 500_000),
            ("500000", 500_000),
            ("0001000", 1000),
            ("1000.9", 1000),
            ("125", 125),
            ("113T", 113 << 40),
        ] {
            assert_eq!(Rate::from_bytes_text(text).map(Rate::bytes), Ok(bytes), "{text:?}");
        }
        for text in [
            "",
            " ",
            "0",
            "-1",
            "abc",
            "M",
            ".",
            ".M",
            "1e6",
            "1E6",
            "1E",
            "1P",
            "1Mbit",
            "1M/s",
            "1,5M",
            "1 M",
            "--1M",
            "1.2.3M",
            "0x10M",
            "NaN",
            "Inf",
            "١M",
            "1М",
            "124",
            "0.0001K",
            "114T",
            "99999999999999999999T",
            "9999999999999999999999999999999999999999T",
            "1\0M",
        ] {
            assert!(Rate::from_bytes_text(text).is_err(), "{text:?}: {:?}", Rate::from_bytes_text(text));
        }
    }

    #[test]
    fn kubernetes_notation_is_a_quantity_of_bits() {
        for (text, bytes) in [
            ("1M", 125_000),
            ("10M", 1_250_000),
            ("1.5M", 187_500),
            ("1Mi", 131_072),
            ("1k", 125),
            ("1000", 125),
            ("1001", 125),
            ("1e6", 125_000),
            ("1E6", 125_000),
            ("1e+6", 125_000),
            ("2000000e-3", 250),
            ("5G", 625_000_000),
            ("1Gi", 134_217_728),
            ("1T", 125_000_000_000),
            ("1P", 125_000_000_000_000),
            ("0.001E", 125_000_000_000_000),
            ("1000000000m", 125_000),
            ("1000000000000u", 125_000),
            ("1000000000000000n", 125_000),
        ] {
            assert_eq!(Rate::from_quantity(text).map(Rate::bytes), Ok(bytes), "{text:?}");
        }
        for text in [
            "",
            "0",
            "-1M",
            "abc",
            "999",
            ".5Ki",
            "1m",
            "1K",
            "1MB",
            "1mi",
            "1MiB",
            " 1M",
            "1M ",
            "1e",
            "1e6M",
            "1e1e1",
            "1.1P",
            "2P",
            "1E",
            "1e99",
            "1e999999999999",
            "1e-99",
            "1 M",
            "é",
            "1é",
        ] {
            assert!(Rate::from_quantity(text).is_err(), "{text:?}: {:?}", Rate::from_quantity(text));
        }
    }

    #[test]
    fn whatever_is_written_is_a_rate_within_bounds_or_a_reason() {
        let pieces = [
            "0",
            "1",
            "9",
            "12345678901234567890",
            ".",
            "-",
            "+",
            "e",
            "E",
            "k",
            "Ki",
            "M",
            "MiB",
            "P",
            "Ei",
            "T",
            "B",
            " ",
            "\u{e9}",
            "\u{0}",
            "٣",
            "_",
            "x",
            "1e99",
            "00000000000000000000000000000000000000",
        ];
        let mut random = fastrand::Rng::with_seed(7);
        let (mut good, mut bad) = (0, 0);
        for _ in 0..200_000 {
            let text: String = (0..random.usize(0..6)).map(|_| *random.choice(&pieces).unwrap()).collect();
            for read in [Rate::from_bytes_text, Rate::from_quantity] {
                match read(&text) {
                    Ok(rate) => {
                        assert!(rate >= Rate::MIN && rate <= Rate::MAX, "{text:?}: {rate}");
                        good += 1;
                    }
                    Err(why) => {
                        assert!(why.starts_with("it must be "), "{text:?}: {why}");
                        bad += 1;
                    }
                }
            }
        }
        assert!(good > 1000 && bad > 1000, "{good} good, {bad} bad");
    }

    #[test]
    fn a_runtimes_bits_are_put_into_bounds_and_zero_is_no_limit() {
        let bytes = |bits| Rate::from_bits(bits).map(Rate::bytes);
        assert_eq!(
            [bytes(0), bytes(1), bytes(1_000_000), bytes(u64::MAX)],
            [None, Some(125), Some(125_000), Some(125_000_000_000_000)]
        );
    }

    fn annotations(list: &[(&str, &str)]) -> Both<Told> {
        Both::read(&list.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect())
    }

    fn rate(bytes: u64) -> Rate {
        Rate::try_from(bytes).unwrap()
    }

    #[test]
    fn the_units_of_the_two_families_differ_and_kubernetes_own_decides() {
        let told = annotations(&[("k8s.aliyun.com/ingress-bandwidth", "1M"), ("kubernetes.io/egress-bandwidth", "1M")]);
        assert_eq!(told, Both { ingress: Told::Limit(rate(1_048_576)), egress: Told::Limit(rate(125_000)) });
        let told = annotations(&[("k8s.aliyun.com/egress-bandwidth", "1M"), ("kubernetes.io/egress-bandwidth", "8M")]);
        assert_eq!(told, Both { ingress: Told::Nothing, egress: Told::Limit(rate(1_000_000)) });
        let told =
            annotations(&[("k8s.aliyun.com/egress-bandwidth", "1M"), ("kubernetes.io/egress-bandwidth", "fast")]);
        let faults: Vec<&str> = told.faults().collect();
        assert_eq!(
            faults,
            [concat!(
                "annotation kubernetes.io/egress-bandwidth is \"fast\": ",
                "it must be a quantity of bits a second, such as 10M, 1.5Gi or 1e6"
            )]
        );
    }

    #[test]
    fn a_runtimes_word_counts_until_the_annotations_change() {
        let both = |told: Told| Both { ingress: told, egress: Told::Nothing };
        let asked = Limits { ingress: Some(rate(5000)), egress: Some(rate(6000)) };
        let limit = Both::<Limit>::default().hear(&both(Told::Limit(rate(1000)))).ask(asked);
        assert_eq!(limit.rates(), asked);
        // Said again, or said wrongly: nothing changes.
        assert_eq!(limit.hear(&both(Told::Limit(rate(1000)))), limit);
        assert_eq!(limit.hear(&both(Told::Wrong("x".into()))), limit);
        let changed = limit.hear(&both(Told::Limit(rate(2000))));
        assert_eq!(changed.rates(), Limits { ingress: Some(rate(2000)), egress: Some(rate(6000)) });
        let removed = changed.hear(&both(Told::Nothing));
        assert_eq!(removed.rates(), Limits { ingress: None, egress: Some(rate(6000)) });
        assert_eq!(removed.hear(&both(Told::Limit(rate(2000)))).rates().ingress, Some(rate(2000)));
    }

    #[test]
    fn limits_are_written_as_numbers_and_read_with_care() {
        let limit = Both::<Limit>::default().ask(Limits { ingress: Some(rate(5000)), egress: None });
        let text = serde_json::to_string(&limit).unwrap();
        assert_eq!(text, r#"{"ingress":{"rate":5000},"egress":{}}"#);
        assert_eq!(serde_json::from_str::<Both<Limit>>(&text).unwrap(), limit);
        assert_eq!(serde_json::from_str::<Both<Limit>>("{}").unwrap(), Both::default());
        assert!(serde_json::from_str::<Both<Limit>>(r#"{"ingress":{"rate":0}}"#).is_err());
        assert_eq!(rate(131_072).to_string(), "1048576bit");
    }
}
