//! Reads known keys out of a JSON object, so that a wrong one is named with its value and with what would be right.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use serde_json::Value;

use crate::gather::Gather;

pub type Object = serde_json::Map<String, Value>;

/// A known key whose value cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    pub key: String,
    /// The value as it was written, cut short if it is long.
    pub value: String,
    /// What it should be, to be read after "it must be".
    pub want: String,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}; it must be {}", self.key, self.value, self.want)
    }
}

/// One JSON object out of text, or why there is none.
pub fn object(text: &[u8]) -> Result<Object, String> {
    match serde_json::from_slice(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(other) => Err(format!("{} is not a JSON object", shown(&other))),
        Err(e) => Err(e.to_string()),
    }
}

/// Lays a JSON merge patch (RFC 7396) over an object: `null` takes a key away, an object goes into the one that is there,
/// anything else replaces.
pub fn merge(target: &mut Object, patch: &Object) {
    for (key, change) in patch {
        match change {
            Value::Null => drop(target.remove(key)),
            Value::Object(patch) => {
                let inner = target.entry(key.clone()).or_insert(Value::Null);
                if !inner.is_object() {
                    *inner = Value::Object(Object::new());
                }
                merge(inner.as_object_mut().expect("it is one"), patch);
            }
            other => drop(target.insert(key.clone(), other.clone())),
        }
    }
}

/// The keys whose values differ, in their order.
pub fn differing<'a>(one: &'a Object, other: &'a Object) -> BTreeSet<&'a str> {
    let keys = one.keys().chain(other.keys());
    keys.filter(|key| one.get(*key) != other.get(*key)).map(String::as_str).gather()
}

/// A value for people: one line, not longer than a line should be.
pub fn shown(value: &Value) -> String {
    shortened(&value.to_string())
}

/// Text for people: control characters escaped, and not longer than a line should be.
pub fn shortened(text: &str) -> String {
    const LONGEST: usize = 100;
    let text: String =
        text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect();
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// Reads one object key by key. `null` counts as absent, and so does an empty text where a text is parsed.
pub struct Reader<'a> {
    object: &'a Object,
    /// Where the object stands in the whole, such as `runtimeConfig.bandwidth.`.
    place: String,
    /// The keys that somebody has asked for.
    pub asked: BTreeSet<&'static str>,
    any_case: bool,
}

impl<'a> Reader<'a> {
    pub fn new(object: &'a Object) -> Reader<'a> {
        Reader { object, place: String::new(), asked: BTreeSet::new(), any_case: false }
    }

    /// A reader for an object that stands under `place` of the whole.
    pub fn at(place: &str, object: &'a Object) -> Reader<'a> {
        Reader { place: format!("{place}."), ..Reader::new(object) }
    }

    /// Takes a key in upper or lower case where it is not there as we spell it.
    pub fn in_any_case(self) -> Reader<'a> {
        Reader { any_case: true, ..self }
    }

    /// The keys that nobody has asked for.
    pub fn unknown(&self) -> Vec<String> {
        let asked =
            |k: &str| self.asked.contains(k) || self.any_case && self.asked.iter().any(|a| a.eq_ignore_ascii_case(k));
        let keys = self.object.keys().filter(|k| !asked(k));
        keys.map(|k| format!("{}{}", self.place, shortened(k))).collect()
    }

    pub fn value(&mut self, key: &'static str) -> Option<&'a Value> {
        self.asked.insert(key);
        let otherwise =
            || self.object.iter().find(|(k, _)| self.any_case && k.eq_ignore_ascii_case(key)).map(|(_, v)| v);
        self.object.get(key).or_else(otherwise).filter(|v| !v.is_null())
    }

    /// Says that this value of the key is wrong.
    pub fn wrong(&self, key: &str, value: &Value, want: impl fmt::Display) -> Wrong {
        Wrong { key: format!("{}{key}", self.place), value: shown(value), want: want.to_string() }
    }

    pub fn text(&mut self, key: &'static str) -> Result<Option<&'a str>, Wrong> {
        self.with(key, "a text", |value| value.as_str())
    }

    pub fn flag(&mut self, key: &'static str) -> Result<Option<bool>, Wrong> {
        self.with(key, "true or false", |value| value.as_bool())
    }

    pub fn decimal(&mut self, key: &'static str, range: RangeInclusive<f64>) -> Result<Option<f64>, Wrong> {
        let want = format!("a number from {} to {}", range.start(), range.end());
        self.with(key, &want, |value| value.as_f64().filter(|n| range.contains(n)))
    }

    pub fn whole(&mut self, key: &'static str, range: RangeInclusive<i64>) -> Result<Option<i64>, Wrong> {
        let want = format!("a whole number from {} to {}", range.start(), range.end());
        self.with(key, &want, |value| value.as_i64().filter(|n| range.contains(n)))
    }

    pub fn number(&mut self, key: &'static str, range: RangeInclusive<u64>) -> Result<Option<u64>, Wrong> {
        let want = format!("a whole number from {} to {}", range.start(), range.end());
        self.with(key, &want, |value| value.as_u64().filter(|n| range.contains(n)))
    }

    /// A text that `parse` understands.
    pub fn parsed<T>(
        &mut self,
        key: &'static str,
        want: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, Wrong> {
        match self.value(key) {
            Some(Value::String(text)) if text.is_empty() => Ok(None),
            _ => self.with(key, want, |value| value.as_str().and_then(&parse)),
        }
    }

    /// One of a few words, upper or lower case.
    pub fn word<T: Copy>(&mut self, key: &'static str, words: &[(&str, T)]) -> Result<Option<T>, Wrong> {
        let all: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let find = |text: &str| words.iter().find(|(word, _)| word.eq_ignore_ascii_case(text)).map(|(_, t)| *t);
        self.parsed(key, &format!("one of {}", all.join(", ")), find)
    }

    /// A list, empty when absent; an error names the item.
    pub fn list<T>(
        &mut self,
        key: &'static str,
        want: &str,
        item: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Vec<T>, Wrong> {
        let Some(value) = self.value(key) else { return Ok(Vec::new()) };
        let list = value.as_array().ok_or_else(|| self.wrong(key, value, format!("a list, each {want}")))?;
        let one = |value| item(value).ok_or_else(|| self.wrong(&format!("{key}[]"), value, want));
        list.iter().map(one).collect()
    }

    pub fn object(&mut self, key: &'static str) -> Result<Option<&'a Object>, Wrong> {
        self.with(key, "an object", |value| value.as_object())
    }

    /// An object whose values are all of one kind, empty when absent; an error names the entry.
    pub fn map<T>(
        &mut self,
        key: &'static str,
        want: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<BTreeMap<String, T>, Wrong> {
        let Some(object) = self.object(key)? else { return Ok(BTreeMap::new()) };
        let entry = |(name, value): (&String, &Value)| match read(value) {
            Some(t) => Ok((name.clone(), t)),
            None => Err(self.wrong(&format!("{key}.{}", shortened(name)), value, want)),
        };
        let entries: Vec<(String, T)> = object.iter().map(entry).collect::<Result<_, _>>()?;
        Ok(entries.into_iter().gather())
    }

    pub fn path(&mut self, key: &'static str) -> Result<Option<PathBuf>, Wrong> {
        let absolute = |t: &str| (t.starts_with('/') && !t.contains(char::is_control)).then(|| PathBuf::from(t));
        self.parsed(key, "an absolute path", absolute)
    }

    fn with<T>(
        &mut self,
        key: &'static str,
        want: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, Wrong> {
        let Some(value) = self.value(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| self.wrong(key, value, want))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_key_is_named_with_its_value_and_what_would_be_right() {
        let object = object(br#"{"mtu": "abc", "list": ["a", 7]}"#).unwrap();
        let mut reader = Reader::at("outer", &object);
        let wrong = reader.number("mtu", 1..=9).unwrap_err();
        assert_eq!(wrong.to_string(), r#"outer.mtu is "abc"; it must be a whole number from 1 to 9"#);
        let wrong = reader.list("list", "a text", |v| v.as_str()).unwrap_err();
        assert_eq!(wrong.to_string(), "outer.list[] is 7; it must be a text");
    }

    #[test]
    fn a_merge_patch_does_what_the_rfc_says() {
        // The cases of RFC 7396, appendix A, whose target and patch are objects.
        for (target, patch, want) in [
            (r#"{"a":"b"}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"b":"c"}"#, r#"{"a":"b","b":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"a":null}"#, r#"{}"#),
            (r#"{"a":"b","b":"c"}"#, r#"{"a":null}"#, r#"{"b":"c"}"#),
            (r#"{"a":["b"]}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"c"}"#, r#"{"a":["b"]}"#, r#"{"a":["b"]}"#),
            (r#"{"a":{"b":"c"}}"#, r#"{"a":{"b":"d","c":null}}"#, r#"{"a":{"b":"d"}}"#),
            (r#"{"a":[{"b":"c"}]}"#, r#"{"a":[1]}"#, r#"{"a":[1]}"#),
            (r#"{"e":null}"#, r#"{"a":1}"#, r#"{"e":null,"a":1}"#),
            (r#"{}"#, r#"{"a":{"bb":{"ccc":null}}}"#, r#"{"a":{"bb":{}}}"#),
        ] {
            let mut merged = object(target.as_bytes()).unwrap();
            merge(&mut merged, &object(patch.as_bytes()).unwrap());
            assert_eq!(merged, object(want.as_bytes()).unwrap(), "{target} with {patch}");
        }
    }

    #[test]
    fn keys_that_differ_are_those_changed_added_and_taken_away() {
        let (one, other) = (object(br#"{"a":1,"b":[1],"c":{}}"#), object(br#"{"a":2,"b":[1],"d":null}"#));
        assert_eq!(differing(&one.unwrap(), &other.unwrap()).into_iter().collect::<Vec<_>>(), ["a", "c", "d"]);
    }

    #[test]
    fn keys_that_nobody_asked_for_are_unknown() {
        let object = object(br#"{"a": null, "b": 1, "c": 2}"#).unwrap();
        let mut reader = Reader::new(&object);
        assert_eq!(reader.text("a"), Ok(None));
        assert_eq!(reader.number("c", 0..=2), Ok(Some(2)));
        assert_eq!(reader.unknown(), ["b"]);
    }

    #[test]
    fn keys_are_spelled_as_they_are_unless_any_case_will_do() {
        let object = object(br#"{"Rate": 7, "rAtE": 8, "Burst": 9}"#).unwrap();
        assert_eq!(Reader::new(&object).number("rate", 0..=9), Ok(None));
        let mut reader = Reader::new(&object).in_any_case();
        assert_eq!(reader.number("Rate", 0..=9), Ok(Some(7)));
        assert_eq!(reader.number("rAtE", 0..=9), Ok(Some(8)));
        assert_eq!(reader.unknown(), ["Burst"]);
        assert_eq!(reader.number("burst", 0..=9), Ok(Some(9)));
        assert!(reader.unknown().is_empty());
    }

    #[test]
    fn long_and_hostile_values_are_shown_short_and_escaped() {
        let long = shortened(&"x".repeat(5000));
        assert_eq!(long.len(), 103);
        assert_eq!(shortened("a\n\u{1b}[2J"), "a\\n\\u{1b}[2J");
    }
}
