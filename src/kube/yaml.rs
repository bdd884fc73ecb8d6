//! YAML as kubeconfigs and ConfigMaps use it, read into JSON values: no aliases, no tags, and numbers stay text.

use saphyr_parser::{Event, Parser, ScalarStyle, StrInput};
use serde_json::{Map, Value};

use crate::error::Error;

/// Deeper than any document we read; stops a text of brackets from using up the stack.
const DEPTH_MAX: u32 = 64;

/// The one document of `text`.
pub fn parse(text: &str) -> Result<Value, Error> {
    let mut doc = Document { parser: Parser::new_from_str(text) };
    loop {
        match doc.next()? {
            Event::StreamStart | Event::DocumentStart(_) => {}
            Event::StreamEnd => return Ok(Value::Null),
            first => return doc.whole(first),
        }
    }
}

struct Document<'a> {
    parser: Parser<'a, StrInput<'a>>,
}

impl<'a> Document<'a> {
    fn next(&mut self) -> Result<Event<'a>, Error> {
        match self.parser.next() {
            Some(Ok((event, _))) => Ok(event),
            Some(Err(e)) => Err(Error::malformed(format!("line {}: {}", e.marker().line(), e.info()))),
            None => Err(Error::malformed("the YAML ends too early")),
        }
    }

    fn whole(&mut self, first: Event<'a>) -> Result<Value, Error> {
        let value = self.value(first, 0)?;
        match (self.next()?, self.next()?) {
            (Event::DocumentEnd, Event::StreamEnd) => Ok(value),
            _ => Err(Error::malformed("more than one YAML document")),
        }
    }

    fn value(&mut self, event: Event<'a>, depth: u32) -> Result<Value, Error> {
        if depth > DEPTH_MAX {
            return Err(Error::malformed(format!("YAML nested more than {DEPTH_MAX} levels deep")));
        }
        match event {
            Event::Scalar(text, style, _, tag) => {
                Ok(if style == ScalarStyle::Plain && tag.is_none() { plain(&text) } else { text.into() })
            }
            Event::SequenceStart(..) => self.sequence(depth),
            Event::MappingStart(..) => self.mapping(depth),
            Event::Alias(_) => Err(Error::malformed("YAML aliases are not supported: write the value out")),
            other => Err(Error::malformed(format!("YAML {other:?} where a value belongs"))),
        }
    }

    fn sequence(&mut self, depth: u32) -> Result<Value, Error> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                Event::SequenceEnd => return Ok(items.into()),
                event => items.push(self.value(event, depth + 1)?),
            }
        }
    }

    fn mapping(&mut self, depth: u32) -> Result<Value, Error> {
        let mut map = Map::new();
        loop {
            let key = match self.next()? {
                Event::MappingEnd => return Ok(map.into()),
                Event::Scalar(key, ..) => key.into_owned(),
                _ => return Err(Error::malformed("a YAML key that is not text")),
            };
            let event = self.next()?;
            let value = self.value(event, depth + 1)?;
            if map.contains_key(&key) {
                return Err(Error::malformed(format!("key {key:?} appears twice")));
            }
            map.insert(key, value);
        }
    }
}

/// An unquoted scalar. Numbers stay text: a token or a name may look like one.
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" => Value::Null,
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        _ => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn yaml_becomes_json_and_numbers_stay_text() {
        let text =
            "---\na: 007\nb: [x, 'true', true]\nc:\n- name: n\n  v: |\n    one\n    two\nd:\ne: ~\nf: {g: \"1\"}\n";
        let want = json!({
            "a": "007", "b": ["x", "true", true], "c": [{"name": "n", "v": "one\ntwo\n"}],
            "d": null, "e": null, "f": {"g": "1"}
        });
        assert_eq!(parse(text).unwrap(), want);
        assert_eq!(parse("").unwrap(), Value::Null);
    }

    #[test]
    fn what_is_not_supported_is_refused_in_words() {
        for (text, why) in [
            ("a: &x 1\nb: *x\n", "YAML aliases are not supported: write the value out"),
            ("a: 1\n---\nb: 2\n", "more than one YAML document"),
            ("a: 1\na: 2\n", "key \"a\" appears twice"),
            ("? [a]\n: b\n", "a YAML key that is not text"),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), why);
        }
        let deep = format!("{}x", "- ".repeat(100));
        assert_eq!(parse(&deep).unwrap_err().to_string(), "YAML nested more than 64 levels deep");
        assert!(parse("a: [").unwrap_err().to_string().starts_with("line "));
    }

    #[test]
    fn no_text_makes_the_reader_panic() {
        let mut rng = fastrand::Rng::with_seed(11);
        let alphabet: Vec<char> = "ab01:-?&*!|>'\"%@`#,[]{}\n\n  \t\r\u{85}\u{2028}é\u{feff}~.<=\\/".chars().collect();
        for _ in 0..20_000 {
            let text: String = (0..rng.usize(..60)).map(|_| alphabet[rng.usize(..alphabet.len())]).collect();
            let _ = parse(&text);
        }
        for _ in 0..2_000 {
            let bytes: Vec<u8> = (0..rng.usize(..200)).map(|_| rng.u8(..)).collect();
            let _ = parse(&String::from_utf8_lossy(&bytes));
        }
    }
}
