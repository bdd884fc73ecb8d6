//! Label selectors: those of Kubernetes and the whole language of Calico, which come to the same thing here.

use std::collections::BTreeSet;
use std::fmt;

/// A request is written whole into a buffer of 16 KiB, in which each of these bytes may take three.
const SAID_MAX: usize = 2 << 10;

/// What labels must be like. A label that is not there differs from every value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Selector {
    /// Everything; of namespaces: every namespace.
    All,
    /// What is in no namespace.
    Global,
    Has(Box<str>),
    Equal(Box<str>, Box<str>),
    In(Box<str>, BTreeSet<Box<str>>),
    Contains(Box<str>, Box<str>),
    StartsWith(Box<str>, Box<str>),
    EndsWith(Box<str>, Box<str>),
    Not(Box<Selector>),
    And(Box<[Selector]>),
    Or(Box<[Selector]>),
}

/// Why a selector means nothing, and from which character on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    pub at: usize,
    pub want: &'static str,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not a selector: {} is expected at character {}", self.want, self.at + 1)
    }
}

impl Selector {
    /// Of nothing but labels.
    pub fn matches<'a>(&self, label: &impl Fn(&str) -> Option<&'a str>) -> bool {
        self.holds(label, true)
    }

    /// `spaced`: whether there is a namespace.
    pub fn holds<'a>(&self, label: &impl Fn(&str) -> Option<&'a str>, spaced: bool) -> bool {
        match self {
            Selector::All => spaced,
            Selector::Global => !spaced,
            Selector::Has(key) => label(key).is_some(),
            Selector::Equal(key, value) => label(key) == Some(value),
            Selector::In(key, values) => label(key).is_some_and(|is| values.contains(is)),
            Selector::Contains(key, part) => label(key).is_some_and(|is| is.contains(&**part)),
            Selector::StartsWith(key, part) => label(key).is_some_and(|is| is.starts_with(&**part)),
            Selector::EndsWith(key, part) => label(key).is_some_and(|is| is.ends_with(&**part)),
            Selector::Not(inner) => !inner.holds(label, spaced),
            Selector::And(all) => all.iter().all(|one| one.holds(label, spaced)),
            Selector::Or(any) => any.iter().any(|one| one.holds(label, spaced)),
        }
    }

    pub fn negated(self) -> Selector {
        match self {
            Selector::Not(inner) => *inner,
            other => Selector::Not(Box::new(other)),
        }
    }

    /// A label and its value without which nothing is selected, if there is one.
    pub fn anchor(&self) -> Option<(&str, &str)> {
        match self {
            Selector::Equal(key, value) => Some((key, value)),
            Selector::And(all) => all.iter().find_map(Selector::anchor),
            _ => None,
        }
    }

    pub fn names_global(&self) -> bool {
        match self {
            Selector::Global => true,
            Selector::Not(inner) => inner.names_global(),
            Selector::And(some) | Selector::Or(some) => some.iter().any(Selector::names_global),
            _ => false,
        }
    }

    /// Demands no labels that Calico makes up: the API server does not know them.
    pub fn without_given(&self) -> Selector {
        match self {
            Selector::And(all) => all_of(all.iter().map(Selector::without_given).collect()),
            other if other.asks_given() => Selector::All,
            other => other.clone(),
        }
    }

    /// Whether it asks for a label that Calico makes up.
    pub fn asks_given(&self) -> bool {
        self.keys().iter().any(|key| is_given(key))
    }

    /// Whether it asks for a label whose key begins so.
    pub fn asks(&self, prefix: &str) -> bool {
        self.keys().iter().any(|key| key.starts_with(prefix))
    }

    fn keys(&self) -> Vec<&str> {
        match self {
            Selector::All | Selector::Global => Vec::new(),
            Selector::Has(key)
            | Selector::Equal(key, _)
            | Selector::In(key, _)
            | Selector::Contains(key, _)
            | Selector::StartsWith(key, _)
            | Selector::EndsWith(key, _) => vec![key],
            Selector::Not(inner) => inner.keys(),
            Selector::And(some) | Selector::Or(some) => some.iter().flat_map(Selector::keys).collect(),
        }
    }

    /// Those that a label is to have, or not to have.
    fn values(&self) -> impl Iterator<Item = &str> {
        let of = match self {
            Selector::Not(inner) => inner,
            other => other,
        };
        let (one, some) = match of {
            Selector::Equal(_, value) => (Some(value), None),
            Selector::In(_, values) => (None, Some(values)),
            _ => (None, None),
        };
        one.into_iter().chain(some.into_iter().flatten()).map(|value| &**value)
    }

    /// As the API server takes it in `labelSelector=`, where it can be said there: what no label can be is an error to it, or is read as
    /// something else. At most [`SAID_MAX`] bytes.
    pub fn for_server(&self) -> Option<String> {
        let can_be_said = |one: &Selector| one.keys().iter().all(|key| is_label(key)) && one.values().all(is_value);
        let term = |one: &Selector| match one {
            one if !can_be_said(one) => None,
            Selector::Has(key) => Some((*key).to_string()),
            Selector::Equal(key, value) => Some(format!("{key}={value}")),
            Selector::In(key, values) if !values.is_empty() => Some(format!("{key} in ({})", joined(values))),
            Selector::Not(inner) => match &**inner {
                Selector::Has(key) => Some(format!("!{key}")),
                Selector::Equal(key, value) => Some(format!("{key}!={value}")),
                Selector::In(key, values) if !values.is_empty() => Some(format!("{key} notin ({})", joined(values))),
                _ => None,
            },
            _ => None,
        };
        match self {
            Selector::All => Some(String::new()),
            // What cannot be said is left out: more is then sent than is needed, never less.
            Selector::And(all) => Some(fitting(all.iter().filter_map(term))),
            other => term(other).filter(|term| term.len() <= SAID_MAX),
        }
    }
}

/// Those that fit one after the other, joined.
fn fitting(terms: impl Iterator<Item = String>) -> String {
    terms.fold(String::new(), |said, term| {
        let more = if said.is_empty() { term } else { format!("{said},{term}") };
        if more.len() <= SAID_MAX { more } else { said }
    })
}

/// Whether a label can have this key.
fn is_label(key: &str) -> bool {
    let is_part = |part: &str| !part.is_empty() && is_value(part);
    match key.split_once('/') {
        None => is_part(key),
        Some((domain, name)) => {
            let is_small = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
            domain.len() <= 253 && domain.chars().all(is_small) && domain.split('.').all(is_part) && is_part(name)
        }
    }
}

/// Whether a label can have this value.
fn is_value(text: &str) -> bool {
    let ends = [text.chars().next(), text.chars().next_back()];
    text.len() <= 63
        && ends.into_iter().flatten().all(|c| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

/// Labels that are not among the labels of the object itself: Calico sees them there.
pub fn is_given(key: &str) -> bool {
    ["projectcalico.org/", "pcns.", "pcsa."].iter().any(|prefix| key.starts_with(prefix))
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let joined = |some: &[Selector], by: &str| some.iter().map(Selector::to_string).collect::<Vec<_>>().join(by);
        match self {
            Selector::All => f.write_str("all()"),
            Selector::Global => f.write_str("global()"),
            Selector::Has(key) => write!(f, "has({key})"),
            Selector::Equal(key, value) => write!(f, "{key} == '{value}'"),
            Selector::In(key, values) => {
                let values: Vec<String> = values.iter().map(|value| format!("'{value}'")).collect();
                write!(f, "{key} in {{{}}}", values.join(", "))
            }
            Selector::Contains(key, part) => write!(f, "{key} contains '{part}'"),
            Selector::StartsWith(key, part) => write!(f, "{key} starts with '{part}'"),
            Selector::EndsWith(key, part) => write!(f, "{key} ends with '{part}'"),
            Selector::Not(inner) => write!(f, "!({inner})"),
            Selector::And(all) => f.write_str(&joined(all, " && ")),
            Selector::Or(any) => write!(f, "({})", joined(any, " || ")),
        }
    }
}

fn joined(values: &BTreeSet<Box<str>>) -> String {
    values.iter().map(|v| &**v).collect::<Vec<_>>().join(",")
}

/// All of these at once, in one form however it was written.
pub fn all_of(some: Vec<Selector>) -> Selector {
    let mut flat = BTreeSet::new();
    for one in some {
        match one {
            Selector::And(inner) => flat.extend(inner),
            other => drop(flat.insert(other)),
        }
    }
    single(flat).unwrap_or_else(|flat| Selector::And(flat.into_iter().collect()))
}

/// The only one, or all of them back; none of them demand nothing.
fn single(mut some: BTreeSet<Selector>) -> Result<Selector, BTreeSet<Selector>> {
    match some.len() {
        0 => Ok(Selector::All),
        1 => Ok(some.pop_first().expect("there is one")),
        _ => Err(some),
    }
}

/// Reads a selector of Calico. An empty one is `all()`.
pub fn parse(text: &str) -> Result<Selector, Unreadable> {
    let mut parser = Parser { text, at: 0, depth: 0 };
    parser.space();
    if parser.rest().is_empty() {
        return Ok(Selector::All);
    }
    let selector = parser.either()?;
    match parser.rest().is_empty() {
        true => Ok(selector),
        false => Err(parser.want("&&, || or the end")),
    }
}

/// How deep parentheses may go: as deep as nobody writes, and the stack bears it.
const DEEPEST: u32 = 100;

struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: u32,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn want(&self, want: &'static str) -> Unreadable {
        Unreadable { at: self.text[..self.at].chars().count(), want }
    }

    fn space(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start().len();
    }

    /// Whether this comes next; it is then behind us.
    fn takes(&mut self, token: &str) -> bool {
        let is_next = self.rest().starts_with(token);
        if is_next {
            self.at += token.len();
            self.space();
        }
        is_next
    }

    fn expect(&mut self, token: &'static str) -> Result<(), Unreadable> {
        if self.takes(token) { Ok(()) } else { Err(self.want(token)) }
    }

    /// Whether this word comes next and ends there.
    fn takes_word(&mut self, word: &str) -> bool {
        let ends = |rest: &str| !rest[word.len()..].starts_with(is_key);
        if self.rest().starts_with(word) && ends(self.rest()) { self.takes(word) } else { false }
    }

    /// Whether this function is called next, such as `all()`; its opening parenthesis is then behind us.
    fn takes_call(&mut self, name: &str) -> bool {
        let before = self.at;
        if self.takes_word(name) && self.takes("(") {
            return true;
        }
        self.at = before;
        false
    }

    fn either(&mut self) -> Result<Selector, Unreadable> {
        let mut any = BTreeSet::from([self.both()?]);
        while self.takes("||") {
            any.insert(self.both()?);
        }
        Ok(single(any).unwrap_or_else(|any| Selector::Or(any.into_iter().collect())))
    }

    fn both(&mut self) -> Result<Selector, Unreadable> {
        let mut all = vec![self.negation()?];
        while self.takes("&&") {
            all.push(self.negation()?);
        }
        Ok(all_of(all))
    }

    fn negation(&mut self) -> Result<Selector, Unreadable> {
        let mut is_negated = false;
        // `!=` has a key before it, so that what stands here is no part of one.
        while self.takes("!") {
            is_negated = !is_negated;
        }
        let one = self.operand()?;
        Ok(if is_negated { one.negated() } else { one })
    }

    fn operand(&mut self) -> Result<Selector, Unreadable> {
        if self.takes("(") {
            self.depth += 1;
            if self.depth > DEEPEST {
                return Err(self.want("fewer parentheses"));
            }
            let inner = self.either()?;
            self.depth -= 1;
            self.expect(")")?;
            return Ok(inner);
        }
        for (name, selector) in [("all", Selector::All), ("global", Selector::Global)] {
            if self.takes_call(name) {
                return self.expect(")").map(|()| selector);
            }
        }
        if self.takes_call("has") {
            let key = self.key()?;
            return self.expect(")").map(|()| Selector::Has(key));
        }
        let key = self.key()?;
        self.comparison(key)
    }

    fn comparison(&mut self, key: Box<str>) -> Result<Selector, Unreadable> {
        if self.takes("==") {
            return Ok(Selector::Equal(key, self.literal()?));
        }
        if self.takes("!=") {
            return Ok(Selector::Equal(key, self.literal()?).negated());
        }
        if self.takes_word("in") {
            return Ok(Selector::In(key, self.values()?));
        }
        if self.takes_word("contains") {
            return Ok(Selector::Contains(key, self.literal()?));
        }
        for (first, second) in [("not", "in"), ("starts", "with"), ("ends", "with")] {
            if !self.takes_word(first) {
                continue;
            }
            if !self.takes_word(second) {
                return Err(self.want(second));
            }
            return Ok(match first {
                "not" => Selector::In(key, self.values()?).negated(),
                "starts" => Selector::StartsWith(key, self.literal()?),
                _ => Selector::EndsWith(key, self.literal()?),
            });
        }
        Err(self.want("==, !=, in, not in, contains, starts with or ends with"))
    }

    fn key(&mut self) -> Result<Box<str>, Unreadable> {
        let rest = self.rest();
        let end = rest.find(|c| !is_key(c)).unwrap_or(rest.len());
        if end == 0 {
            return Err(self.want("a label's key, has(), all(), global(), ! or ("));
        }
        self.at += end;
        self.space();
        Ok(rest[..end].into())
    }

    fn literal(&mut self) -> Result<Box<str>, Unreadable> {
        let rest = self.rest();
        let Some(quote) = rest.chars().next().filter(|c| matches!(c, '\'' | '"')) else {
            return Err(self.want("a value in quotes"));
        };
        let Some(end) = rest[1..].find(quote) else {
            self.at = self.text.len();
            return Err(self.want("the closing quote"));
        };
        self.at += end + 2;
        self.space();
        Ok(rest[1..=end].into())
    }

    fn values(&mut self) -> Result<BTreeSet<Box<str>>, Unreadable> {
        self.expect("{")?;
        let mut values = BTreeSet::new();
        while !self.takes("}") {
            values.insert(self.literal()?);
            if !self.takes(",") {
                self.expect("}")?;
                break;
            }
        }
        Ok(values)
    }
}

fn is_key(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '/' | '-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(text: &str, labels: &[(&str, &str)]) -> bool {
        let labels = labels.to_vec();
        parse(text).unwrap().matches(&|key| labels.iter().find(|(k, _)| *k == key).map(|(_, v)| *v))
    }

    #[test]
    fn every_operator_of_the_language_means_what_it_says() {
        let web = [("app", "web"), ("tier", "front-end"), ("in", "x")];
        for (text, want) in [
            ("", true),
            ("  all() ", true),
            ("all ( )", true),
            ("global()", false),
            ("app == 'web'", true),
            ("app==\"web\"", true),
            ("app != 'web'", false),
            ("none != 'web'", true),
            ("has(app)", true),
            ("! has( none )", true),
            ("!!has(none)", false),
            ("app in {'db', 'web'}", true),
            ("app in {'db', 'web',}", true),
            ("app in {}", false),
            ("app not in {'db'}", true),
            ("none not in {'db'}", true),
            ("none in {'db'}", false),
            ("tier contains 't-e'", true),
            ("tier starts with \"front\"", true),
            ("tier starts with 'end'", false),
            ("tier ends with 'end'", true),
            ("none contains ''", false),
            ("in == 'x' && in in {'x'}", true),
            ("has(none) || has(app) && app == 'web'", true),
            ("(has(none) || has(app)) && app == 'db'", false),
            ("has(none) && has(app) || has(tier)", true),
            ("!(has(none) || app == 'db')", true),
            ("!app == 'web'", false),
            ("has(app)||has(x)&&!has(app)", true),
            ("has == 'a' || all != 'b'", true),
        ] {
            assert_eq!(holds(text, &web), want, "{text}");
        }
    }

    #[test]
    fn what_does_not_parse_says_where_and_what_was_expected() {
        for (text, at, want) in [
            ("app", 4, "==, !=, in, not in, contains, starts with or ends with"),
            ("app = 'a'", 5, "==, !=, in, not in, contains, starts with or ends with"),
            ("app == web", 8, "a value in quotes"),
            ("app == 'web", 12, "the closing quote"),
            ("(has(a)", 8, ")"),
            ("has(a) has(b)", 8, "&&, || or the end"),
            ("has(a) &&", 10, "a label's key, has(), all(), global(), ! or ("),
            ("app in ('a')", 8, "{"),
            ("app in {'a' 'b'}", 13, "}"),
            ("app not 'a'", 9, "in"),
            ("app starts 'a'", 12, "with"),
            ("é == 'a'", 1, "a label's key, has(), all(), global(), ! or ("),
            ("a == 'é' || é", 13, "a label's key, has(), all(), global(), ! or ("),
            ("has()", 5, "a label's key, has(), all(), global(), ! or ("),
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!((error.at + 1, error.want), (at, want), "{text}");
        }
        assert_eq!(parse("a b").unwrap_err().to_string().split(':').next(), Some("not a selector"));
        let deep = format!("{}has(a){}", "(".repeat(101), ")".repeat(101));
        assert_eq!(parse(&deep).unwrap_err().want, "fewer parentheses");
        assert!(parse(&format!("{}has(a)", "!".repeat(100_000))).is_ok());
        assert!(parse(&["has(a)"; 10_000].join(" && ")).is_ok());
    }

    #[test]
    fn one_meaning_has_one_form() {
        for (one, other) in [
            ("has(a) && has(b)", "has(b)&&has( a ) && has(b)"),
            ("a in {'x', 'y'}", "a in {'y','x','y'}"),
            ("a != 'x'", "!(a == 'x')"),
            ("has(a) || has(b)", "has(b) || has(a)"),
        ] {
            assert_eq!(parse(one).unwrap(), parse(other).unwrap());
        }
    }

    #[test]
    fn the_api_server_is_asked_for_no_less_than_is_selected() {
        for (text, want) in [
            ("", Some("")),
            ("a == 'x' && b != 'y'", Some("a=x,b!=y")),
            ("a in {'x', 'y'} && b not in {'z'} && has(c) && !has(d)", Some("c,a in (x,y),!d,b notin (z)")),
            ("a starts with 'x' && has(b)", Some("b")),
            ("has(a) || has(b)", None),
            ("a contains 'x'", None),
            ("a == ''", Some("a=")),
            // To the server `a!=x,b` would be two demands, and an error what cannot be read.
            ("a != 'x,b'", None),
            ("a in {'x', '-'} && has(b)", Some("b")),
            ("x/y/z == 'front end' && -a == 'x' && c.d/e == 'x'", Some("c.d/e=x")),
        ] {
            assert_eq!(parse(text).unwrap().for_server().as_deref(), want, "{text}");
        }
    }

    #[test]
    fn the_api_server_is_asked_for_what_fits_a_request() {
        let values: Vec<String> = (0..300).map(|i| format!("'release-{i:03}'")).collect();
        let (many, few) = (values.join(", "), values[..2].join(", "));
        let said = |text: &str| parse(text).unwrap().for_server();
        assert_eq!(said(&format!("a in {{{many}}}")), None);
        assert_eq!(said(&format!("a not in {{{many}}} && b == 'x'")).as_deref(), Some("b=x"));
        assert_eq!(said(&format!("b in {{{many}}} && a == 'x'")).as_deref(), Some("a=x"));
        let all = format!("a in {{{many}}} && b == 'x' && c in {{{few}}}");
        assert_eq!(said(&all).as_deref(), Some("b=x,c in (release-000,release-001)"));
        let all: Vec<String> = (0..300).map(|i| format!("has(key-{i:03})")).collect();
        let said = said(&all.join(" && ")).unwrap();
        assert_eq!((said.len(), said.ends_with(",key-255")), (2047, true), "{said}");
    }

    /// Prints a random selector with random spaces, parentheses and quotes, and says what it means by itself.
    fn random(rng: &mut fastrand::Rng, depth: u32, labels: &[(&str, &str)]) -> (String, bool) {
        let key = *rng.choice(&["a", "b/c", "in", "has", "not"]).unwrap();
        let value = *rng.choice(&["x", "xy", "y", ""]).unwrap();
        let is = labels.iter().find(|(k, _)| *k == key).map(|(_, v)| *v);
        let quote = if rng.bool() { '\'' } else { '"' };
        let gap = " ".repeat(rng.usize(..3));
        if depth > 0 && rng.u8(..3) > 0 {
            let (left, l) = random(rng, depth - 1, labels);
            let (right, r) = random(rng, depth - 1, labels);
            return match rng.u8(..3) {
                0 => (format!("({left}){gap}&&{gap}({right})"), l && r),
                1 => (format!("({left}{gap})||({gap}{right})"), l || r),
                _ => (format!("!{gap}({left})"), !l),
            };
        }
        let text = format!("{quote}{value}{quote}");
        match rng.u8(..8) {
            0 => (format!("{key}{gap}=={gap}{text}"), is == Some(value)),
            1 => (format!("{key} != {text}"), is != Some(value)),
            2 => (format!("{key} in{gap}{{{gap}{text}, 'q'}}"), is.is_some_and(|is| is == value || is == "q")),
            3 => (format!("{key} not  in {{{text}}}"), is != Some(value)),
            4 => (format!("{key} contains{gap}{text}"), is.is_some_and(|is| is.contains(value))),
            5 => (format!("{key} starts{gap} with {text}"), is.is_some_and(|is| is.starts_with(value))),
            6 => (format!("{key} ends with {text}"), is.is_some_and(|is| is.ends_with(value))),
            _ => (format!("has({gap}{key}{gap})"), is.is_some()),
        }
    }

    #[test]
    fn random_selectors_mean_what_was_written_and_no_text_breaks_the_parser() {
        let mut rng = fastrand::Rng::with_seed(5);
        for _ in 0..5_000 {
            let some = [("a", "xy"), ("b/c", "x"), ("in", ""), ("has", "y"), ("not", "xy")];
            let labels: Vec<_> = some.into_iter().filter(|_| rng.bool()).collect();
            let (text, want) = random(&mut rng, 3, &labels);
            assert_eq!(holds(&text, &labels), want, "{text} on {labels:?}");
            let selector = parse(&text).unwrap();
            assert_eq!(parse(&selector.to_string()), Ok(selector), "{text}");
            let chars: Vec<char> = text.chars().chain("'\"(){}!é,".chars()).collect();
            let noise: String = (0..rng.usize(..30)).map(|_| chars[rng.usize(..chars.len())]).collect();
            let _ = parse(&noise);
            let cut: String = text.chars().take(rng.usize(..=text.len())).collect();
            if let Err(error) = parse(&cut) {
                assert!(error.at <= cut.chars().count());
            }
        }
    }
}
