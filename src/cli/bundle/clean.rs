//! Takes secrets out of text: those that are known by their values, those that stand under a telling key, and what looks like one.

use std::fs;
use std::path::Path;

use super::super::known;
use crate::cloud::ADDON_SECRET;

const REMOVED: &str = "[removed]";

/// Whoever keeps a secret in a file calls it something like this.
const KEYS: [&str; 11] = [
    "secret",
    "token",
    "password",
    "passwd",
    "access_key",
    "accesskey",
    "access-key",
    "private_key",
    "key-data",
    "credential",
    "authorization",
];
/// What is in a name with such a word and is none.
const HARMLESS: [&str; 3] = ["path", "file", "name"];
/// How access keys, tokens of roles, JSON web tokens and keys in PEM (plain, or as base64) begin, and how long they are at least.
const LOOKS: [(&str, usize); 5] = [("LTAI", 16), ("STS.", 16), ("eyJ", 40), ("LS0tLS1CRUdJTi", 40), ("Bearer ", 15)];
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
/// Shorter ones would be found in words.
const SHORTEST: usize = 6;

pub struct Secrets(Vec<String>);

impl Secrets {
    /// All that this node has, by its own files.
    pub fn look() -> Secrets {
        let mut known: Vec<String> = Vec::new();
        let mut files = vec![SERVICE_ACCOUNT.to_string(), ADDON_SECRET.to_string()];
        if let Ok(config) = known::config() {
            if let Some(access) = &config.access {
                known.extend([access.id.clone(), access.secret.expose().to_string()]);
            }
            let paths = config.credential_path.iter().chain(&config.kubeconfig);
            files.extend(paths.map(|path| path.display().to_string()));
        }
        for file in &files {
            read(Path::new(file), &mut known);
        }
        known.retain(|secret| secret.len() >= SHORTEST);
        // One may begin as another does.
        known.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        Secrets(known)
    }

    pub fn remove(&self, text: &str) -> String {
        let mut text = text.to_string();
        for secret in &self.0 {
            text = text.replace(secret.as_str(), REMOVED);
        }
        let text = under_keys(&pem(&text));
        LOOKS.iter().fold(text, |text, (start, least)| look_alikes(&text, start, *least))
    }
}

/// The values in a file of secrets, and in a folder of files.
fn read(path: &Path, known: &mut Vec<String>) {
    if path.is_dir() {
        fs::read_dir(path).into_iter().flatten().flatten().for_each(|entry| read(&entry.path(), known));
        return;
    }
    let Ok(text) = fs::read_to_string(path) else { return };
    let is_value = |c: char| c.is_ascii_alphanumeric() || "+/=_-.".contains(c);
    let mut found = values(&text);
    // A file that is one word is one secret.
    found.extend(Some(text.trim().to_string()).filter(|word| word.chars().all(is_value)));
    known.extend(found);
}

/// What stands under telling keys.
fn values(text: &str) -> Vec<String> {
    spans(text).into_iter().map(|(start, stop)| text[start..stop].to_string()).collect()
}

fn under_keys(text: &str) -> String {
    let (mut cleaned, mut done) = (String::with_capacity(text.len()), 0);
    for (start, stop) in spans(text) {
        cleaned += &text[done..start];
        cleaned += REMOVED;
        done = stop;
    }
    cleaned + &text[done..]
}

/// Where values under telling keys stand, in order.
fn spans(text: &str) -> Vec<(usize, usize)> {
    let lower = text.to_ascii_lowercase();
    let mut ends: Vec<usize> =
        KEYS.iter().flat_map(|key| lower.match_indices(key).map(|(at, key)| at + key.len())).collect();
    ends.sort_unstable();
    let mut spans: Vec<(usize, usize)> = Vec::new();
    for end in ends {
        if spans.last().is_some_and(|(_, stop)| end <= *stop) {
            continue;
        }
        let tail = lower[end..].find(|c: char| !(c.is_ascii_alphanumeric() || "_-".contains(c)));
        let key_end = end + tail.unwrap_or(lower.len() - end);
        let harmless = HARMLESS.iter().any(|known| lower[end..key_end].ends_with(known));
        spans.extend(value(text, key_end).filter(|_| !harmless));
    }
    spans
}

/// Where the value of a key is that ends here: after a colon or an equals sign.
fn value(text: &str, at: usize) -> Option<(usize, usize)> {
    let skip = |at: usize, set: &str| at + text[at..].find(|c| !set.contains(c)).unwrap_or(text.len() - at);
    let after_key = skip(at, "\\\"' \t");
    if !text[after_key..].starts_with([':', '=']) {
        return None;
    }
    let start = skip(after_key + 1, "\\\"' \t");
    let quoted = text[..start].ends_with(['"', '\'']);
    let ends = |c: char| if quoted { "\"'\\\n".contains(c) } else { c.is_whitespace() || "\"',;}])".contains(c) };
    let mut stop = start + text[start..].find(ends).unwrap_or(text.len() - start);
    if ["bearer", "basic"].iter().any(|scheme| text[start..stop].eq_ignore_ascii_case(scheme)) {
        let word = skip(stop, " \t");
        stop = word + text[word..].find(ends).unwrap_or(text.len() - word);
    }
    let is_value = stop > start && !text[start..].starts_with(['{', '[']);
    is_value.then_some((start, stop))
}

/// Private keys between their lines.
fn pem(text: &str) -> String {
    let (mut cleaned, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(at) = rest.find("PRIVATE KEY-----") {
        let start = at + "PRIVATE KEY-----".len();
        let stop = rest[start..].find("-----END").map_or(rest.len(), |end| start + end);
        cleaned += &rest[..start];
        cleaned += REMOVED;
        let end = rest[stop..].find("KEY-----").map_or(rest.len(), |end| stop + end + "KEY-----".len());
        cleaned += &rest[stop..end];
        rest = &rest[end..];
    }
    cleaned + rest
}

/// Words that begin so and are long enough.
fn look_alikes(text: &str, start: &str, least: usize) -> String {
    let (mut cleaned, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(at) = rest.find(start) {
        let body = at + start.len();
        let is_of_it = |c: char| c.is_ascii_alphanumeric() || "+/=_-.".contains(c);
        let stop = body + rest[body..].find(|c| !is_of_it(c)).unwrap_or(rest.len() - body);
        cleaned += &rest[..at];
        cleaned += if stop - at >= least { REMOVED } else { &rest[at..stop] };
        rest = &rest[stop..];
    }
    cleaned + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_go_and_what_stands_around_them_stays() {
        let secrets = Secrets(vec!["hunter2hunter2".into()]);
        for (text, want) in [
            ("a hunter2hunter2 b", "a [removed] b"),
            (
                r#"{"access_key": "AK", "access_secret":"x y", "mtu": 1500}"#,
                r#"{"access_key": "[removed]", "access_secret":"[removed]", "mtu": 1500}"#,
            ),
            ("    token: abc.def\n    user: me", "    token: [removed]\n    user: me"),
            ("client-key-data: QUJD\nname: x", "client-key-data: [removed]\nname: x"),
            ("Authorization: Bearer abcdefghijkl end", "Authorization: [removed] end"),
            ("sent Bearer abcdefghijklmnop to", "sent [removed] to"),
            ("password=pa55 next", "password=[removed] next"),
            (r#"{\"token\":\"abc\"}"#, r#"{\"token\":\"[removed]\"}"#),
            ("id LTAI5tQwertyuiopAsdfgh in", "id [removed] in"),
            ("jwt eyJhbGciOiJSUzI1NiIsImtpZCI6IjEyMzQ1Njc4OTAxMjM0NTY3ODkwIn0.eyJpc3.sig end", "jwt [removed] end"),
            (
                "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\nok",
                "-----BEGIN RSA PRIVATE KEY-----[removed]-----END RSA PRIVATE KEY-----\nok",
            ),
        ] {
            assert_eq!(secrets.remove(text), want, "{text}");
        }
    }

    #[test]
    fn what_is_no_secret_stays() {
        let secrets = Secrets(Vec::new());
        for text in [
            r#"{"credential_path": "/etc/key", "secret_name": "x"}"#,
            "the token of the intent is gone",
            "STS.short LTAIx eyJx",
            "ip route replace default via 169.254.1.1 dev eth0 onlink",
        ] {
            assert_eq!(secrets.remove(text), text);
        }
    }
}
