//! Who we are to the cloud: a key pair, an encrypted token file, or the instance's RAM role, renewed before it ends.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use aes::{Aes128, Aes192, Aes256};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cbc::Decryptor;
use cbc::cipher::block_padding::Pkcs7;
use cbc::cipher::{BlockModeDecrypt, KeyIvInit};
use serde_json::Value;

use crate::cloud::clock::Clock;
use crate::cloud::metadata::Metadata;
use crate::error::{Cause, Context, Error};
use crate::uri::percent_encode;

/// Where the cluster's addon secret is mounted.
pub const ADDON_SECRET: &str = "/var/alibaba-addon-secret";

/// Credentials with less than this left are renewed.
const RENEW_BEFORE: Duration = Duration::from_secs(300);
/// How often a source is read again although nothing ends: a person may have changed it.
const REREAD: Duration = Duration::from_secs(300);
/// The pause after a renewal that failed while the old credentials still hold.
const RETRY: Duration = Duration::from_secs(30);

/// An AccessKey, or an STS one with its token. Debug shows none of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    pub(super) id: String,
    pub(super) secret: String,
    pub(super) token: Option<String>,
}

/// Where credentials may come from, in this order: the addon secret's files, the pair, the token file, the role.
#[derive(Debug, Clone)]
pub struct Sources {
    /// The folder with `access-key-id` and `access-key-secret`, which count when both are there.
    pub addon_secret: PathBuf,
    pub pair: Option<Key>,
    /// The encrypted token file; it counts when it is there.
    pub token_file: Option<PathBuf>,
    /// Where to ask for the instance's role.
    pub role: Option<Metadata>,
}

/// The credentials in use. Several threads share them and the renewal: one renews, the others wait for it.
pub struct Credentials {
    sources: Sources,
    clock: Clock,
    held: Mutex<Option<Held>>,
}

struct Held {
    key: Arc<Key>,
    ends: Option<SystemTime>,
    look_again: Instant,
    /// Why there are no newer ones.
    complaint: Option<String>,
}

/// What a source gave.
pub(super) struct Found {
    key: Key,
    ends: Option<SystemTime>,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.token.is_some() { "Key(sts, hidden)" } else { "Key(hidden)" })
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("sources", &self.sources).finish_non_exhaustive()
    }
}

impl Key {
    /// Blanks around the parts are dropped; what could not stand in a header is refused.
    pub fn new(id: &str, secret: &str, token: Option<&str>) -> Result<Key, Error> {
        let token = token.map(str::trim).filter(|token| !token.is_empty());
        let key = Key { id: id.trim().into(), secret: secret.trim().into(), token: token.map(str::to_string) };
        for (part, text) in [("id", &key.id), ("secret", &key.secret)] {
            if text.is_empty() {
                return Err(Error::refused(format!("the access key {part} is empty")));
            }
        }
        let plain = |text: &str| text.bytes().all(|b| b == b' ' || b.is_ascii_graphic());
        if ![&key.id, &key.secret].into_iter().chain(&key.token).all(|text| plain(text)) {
            return Err(Error::refused("the access key holds characters that no access key has"));
        }
        Ok(key)
    }

    /// The text without any part of the key: a cloud that rejects a signature quotes what it would have signed.
    pub(super) fn scrub(&self, text: &str) -> String {
        let mut text = text.to_string();
        let mut parts: Vec<&String> = [&self.id, &self.secret].into_iter().chain(&self.token).collect();
        parts.sort_by_key(|part| std::cmp::Reverse(part.len()));
        for part in parts {
            let once = percent_encode(part);
            let twice = percent_encode(&once);
            for form in [&twice, &once, part] {
                text = text.replace(form.as_str(), "***");
            }
        }
        text
    }
}

impl Credentials {
    pub fn new(sources: Sources) -> Credentials {
        let clock = sources.role.as_ref().map(Metadata::clock).unwrap_or_default();
        Credentials { sources, clock, held: Mutex::new(None) }
    }

    /// The clock that the credentials end by.
    pub(super) fn clock(&self) -> Clock {
        self.clock.clone()
    }

    /// The key to sign with; the last good one until its end, when there is no newer.
    pub fn key(&self) -> Result<Arc<Key>, Error> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if let Some(held) = held.as_ref().filter(|held| now < held.look_again) {
            return Ok(held.key.clone());
        }
        match self.sources.find(&self.clock) {
            Ok(found) => {
                let key = Arc::new(found.key);
                *held = Some(Held {
                    key: key.clone(),
                    ends: found.ends,
                    look_again: now + rest(found.ends, &self.clock),
                    complaint: None,
                });
                Ok(key)
            }
            Err(e) => match held.as_mut().filter(|held| !over(held.ends, &self.clock)) {
                Some(held) => {
                    held.look_again = now + RETRY;
                    held.complaint = Some(e.to_string());
                    Ok(held.key.clone())
                }
                None => Err(e.within("find credentials")),
            },
        }
    }

    /// Why the key in use could not be renewed when that was due.
    pub fn complaint(&self) -> Option<String> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.as_ref().and_then(|held| held.complaint.clone())
    }

    /// The cloud does not know this key: look for a newer one before the next call.
    pub fn doubt(&self, key: &Key) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = held.as_mut().filter(|held| *held.key == *key) {
            held.look_again = Instant::now();
        }
    }
}

fn over(ends: Option<SystemTime>, clock: &Clock) -> bool {
    ends.is_some_and(|ends| ends <= clock.now())
}

/// How long to leave the source in peace.
fn rest(ends: Option<SystemTime>, clock: &Clock) -> Duration {
    let left = ends.map(|ends| ends.duration_since(clock.now()).unwrap_or_default());
    left.map_or(REREAD, |left| left.saturating_sub(RENEW_BEFORE).clamp(RETRY.min(left), REREAD))
}

impl Sources {
    fn find(&self, clock: &Clock) -> Result<Found, Error> {
        let found = self.first()?;
        match found.ends {
            Some(ends) if over(Some(ends), clock) => {
                Err(Error::refused(format!("the credentials ended at {}", humantime::format_rfc3339_seconds(ends))))
            }
            _ => Ok(found),
        }
    }

    fn first(&self) -> Result<Found, Error> {
        if let Some(key) = addon_secret(&self.addon_secret)? {
            return Ok(Found { key, ends: None });
        }
        if let Some(key) = &self.pair {
            return Ok(Found { key: key.clone(), ends: None });
        }
        if let Some(path) = self.token_file.as_ref().filter(|path| path.exists()) {
            return token_file(path).context(|| format!("read {}", path.display()));
        }
        match &self.role {
            Some(metadata) => role(metadata),
            None => Err(Error::refused("there are none: give an access key, a token file or a RAM role")),
        }
    }
}

fn addon_secret(folder: &Path) -> Result<Option<Key>, Error> {
    let (id, secret) = (folder.join("access-key-id"), folder.join("access-key-secret"));
    if !id.exists() || !secret.exists() {
        return Ok(None);
    }
    let read = |path: &Path| std::fs::read_to_string(path).context(|| format!("read {}", path.display()));
    Key::new(&read(&id)?, &read(&secret)?, None).map(Some).context(|| format!("use {}", folder.display()))
}

fn token_file(path: &Path) -> Result<Found, Error> {
    let file = secret_json(&std::fs::read(path)?)?;
    let keyring = secret_text(&file, "keyring")?;
    let part = |name: &str| decrypt(keyring, secret_text(&file, name)?).context(|| name.to_string());
    Ok(Found {
        key: Key::new(&part("access.key.id")?, &part("access.key.secret")?, Some(&part("security.token")?))?,
        ends: Some(end(&file, "expiration")?),
    })
}

/// Base64 of a 16-byte IV and AES-CBC of the text with PKCS#7 padding; the keyring's bytes are the key.
pub(super) fn decrypt(keyring: &str, sealed: &str) -> Result<String, Error> {
    let sealed = STANDARD.decode(sealed.trim()).map_err(|_| Error::refused("is not base64"))?;
    let (iv, body) = sealed.split_at_checked(16).ok_or_else(|| Error::refused("is too short"))?;
    let mut body = body.to_vec();
    let key = keyring.as_bytes();
    let open = match key.len() {
        16 => unseal::<Decryptor<Aes128>>(key, iv, &mut body),
        24 => unseal::<Decryptor<Aes192>>(key, iv, &mut body),
        32 => unseal::<Decryptor<Aes256>>(key, iv, &mut body),
        n => return Err(Error::refused(format!("the keyring has {n} bytes and not 16, 24 or 32"))),
    };
    open.ok_or_else(|| Error::refused("does not open with its keyring"))
}

fn unseal<D: BlockModeDecrypt + KeyIvInit>(key: &[u8], iv: &[u8], body: &mut [u8]) -> Option<String> {
    let open = D::new_from_slices(key, iv).ok()?.decrypt_padded::<Pkcs7>(body).ok()?;
    String::from_utf8(open.to_vec()).ok()
}

fn role(metadata: &Metadata) -> Result<Found, Error> {
    let role = metadata.role().map_err(|e| match e.cause {
        Cause::Absent => Error::refused("the instance has no RAM role, and no access key is configured"),
        _ => e,
    })?;
    let answer = metadata.role_credentials(&role)?;
    role_key(&answer).context(|| format!("use the credentials of role {role}"))
}

pub(super) fn role_key(answer: &str) -> Result<Found, Error> {
    let answer = secret_json(answer.as_bytes())?;
    if secret_text(&answer, "Code")? != "Success" {
        return Err(Error::malformed("Code is not Success"));
    }
    let text = |name: &str| secret_text(&answer, name);
    let key = Key::new(text("AccessKeyId")?, text("AccessKeySecret")?, Some(text("SecurityToken")?))?;
    Ok(Found { key, ends: Some(end(&answer, "Expiration")?) })
}

/// Errors name fields and never quote what is in them.
fn secret_json(bytes: &[u8]) -> Result<Value, Error> {
    serde_json::from_slice(bytes).map_err(|_| Error::malformed("is not JSON"))
}

fn secret_text<'a>(object: &'a Value, name: &str) -> Result<&'a str, Error> {
    object[name].as_str().ok_or_else(|| Error::malformed(format!("{name} is not there or not a text")))
}

fn end(object: &Value, name: &str) -> Result<SystemTime, Error> {
    let text = secret_text(object, name)?;
    humantime::parse_rfc3339(text.trim()).map_err(|_| Error::malformed(format!("{name} is not a time")))
}

#[cfg(test)]
mod tests {
    use cbc::Encryptor;
    use cbc::cipher::BlockModeEncrypt;
    use serde_json::json;

    use super::*;

    /// A folder of this test's own, gone when the test ends.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let path = std::env::temp_dir().join(format!("terway-credentials-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Folder(path)
        }

        fn write(&self, name: &str, text: &str) -> PathBuf {
            let path = self.0.join(name);
            std::fs::write(&path, text).unwrap();
            path
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn nothing(folder: &Folder) -> Sources {
        Sources { addon_secret: folder.0.clone(), pair: None, token_file: None, role: None }
    }

    fn in_seconds(seconds: i64) -> String {
        let now = SystemTime::now();
        let at = match u64::try_from(seconds) {
            Ok(ahead) => now + Duration::from_secs(ahead),
            Err(_) => now - Duration::from_secs(seconds.unsigned_abs()),
        };
        humantime::format_rfc3339_seconds(at).to_string()
    }

    fn seal(keyring: &str, text: &str) -> String {
        let iv = *b"0123456789abcdef";
        let (key, len) = (keyring.as_bytes(), text.len());
        let mut body = text.as_bytes().to_vec();
        body.resize(len + 16, 0);
        let sealed = match key.len() {
            16 => Encryptor::<Aes128>::new_from_slices(key, &iv).unwrap().encrypt_padded::<Pkcs7>(&mut body, len),
            24 => Encryptor::<Aes192>::new_from_slices(key, &iv).unwrap().encrypt_padded::<Pkcs7>(&mut body, len),
            _ => Encryptor::<Aes256>::new_from_slices(key, &iv).unwrap().encrypt_padded::<Pkcs7>(&mut body, len),
        };
        STANDARD.encode([iv.as_slice(), sealed.unwrap()].concat())
    }

    fn token_json(keyring: &str, seconds: i64) -> String {
        json!({
            "access.key.id": seal(keyring, "STS.id"),
            "access.key.secret": seal(keyring, "sts-secret"),
            "security.token": seal(keyring, "sts-token-of-some-length"),
            "expiration": in_seconds(seconds),
            "keyring": keyring,
        })
        .to_string()
    }

    #[test]
    fn a_token_file_opens_with_every_length_of_keyring() {
        for keyring in ["0123456789abcdef", "0123456789abcdef01234567", "0123456789abcdef0123456789abcdef"] {
            let folder = Folder::new(&format!("token{}", keyring.len()));
            let path = folder.write("token-config", &token_json(keyring, 3600));
            let key = Credentials::new(Sources { token_file: Some(path), ..nothing(&folder) }).key().unwrap();
            assert_eq!(*key, Key::new("STS.id", "sts-secret", Some("sts-token-of-some-length")).unwrap());
        }
    }

    #[test]
    fn what_openssl_seals_we_open() {
        // openssl enc -aes-128-cbc, IV fedcba9876543210.
        let sealed = "ZmVkY2JhOTg3NjU0MzIxMIY6hQ9csPerUIQU+7K7wtIqGKpUB1a/ZFFs50PU5ihh";
        assert_eq!(decrypt("0123456789abcdef", sealed).unwrap(), "exactly 16 bytes");
    }

    #[test]
    fn a_token_file_that_does_not_open_says_why_and_quotes_nothing() {
        let keyring = "0123456789abcdef";
        let good: Value = serde_json::from_str(&token_json(keyring, 3600)).unwrap();
        for (field, value, want) in [
            ("keyring", json!("hush"), "access.key.id: the keyring has 4 bytes and not 16, 24 or 32"),
            ("keyring", json!("fedcba9876543210"), "access.key.id: does not open with its keyring"),
            ("access.key.secret", json!("hush!"), "access.key.secret: is not base64"),
            ("security.token", json!("aHVzaA=="), "security.token: is too short"),
            ("security.token", json!(7), "security.token is not there or not a text"),
            ("expiration", json!("hush"), "expiration is not a time"),
        ] {
            let folder = Folder::new(&format!("bad-{field}-{}", value.to_string().len()));
            let mut bad = good.clone();
            bad[field] = value;
            let path = folder.write("token-config", &bad.to_string());
            let sources = Sources { token_file: Some(path.clone()), ..nothing(&folder) };
            let text = Credentials::new(sources).key().unwrap_err().to_string();
            assert_eq!(text, format!("find credentials: read {}: {want}", path.display()));
        }
    }

    #[test]
    fn credentials_that_ended_are_refused() {
        let folder = Folder::new("ended");
        let path = folder.write("token-config", &token_json("0123456789abcdef", -5));
        let credentials = Credentials::new(Sources { token_file: Some(path), ..nothing(&folder) });
        let text = credentials.key().unwrap_err().to_string();
        assert!(text.starts_with("find credentials: the credentials ended at 20"), "{text}");
    }

    #[test]
    fn the_addon_secret_goes_before_the_pair_and_the_pair_before_the_file() {
        let folder = Folder::new("order");
        let token_file = Some(folder.write("token-config", &token_json("0123456789abcdef", 3600)));
        let pair = Some(Key::new("pair-id", "pair-secret", None).unwrap());
        let sources = Sources { token_file, ..nothing(&folder) };
        let id = |sources: &Sources| Credentials::new(sources.clone()).key().unwrap().id.clone();
        assert_eq!(id(&sources), "STS.id");
        let sources = Sources { pair, ..sources };
        assert_eq!(id(&sources), "pair-id");
        folder.write("access-key-id", "addon-id\n");
        assert_eq!(id(&sources), "pair-id");
        folder.write("access-key-secret", "addon-secret\n");
        assert_eq!(id(&sources), "addon-id");
    }

    #[test]
    fn without_any_source_a_person_is_told_what_to_give() {
        let folder = Folder::new("none");
        let text = Credentials::new(nothing(&folder)).key().unwrap_err().to_string();
        assert_eq!(text, "find credentials: there are none: give an access key, a token file or a RAM role");
    }

    #[test]
    fn the_last_good_key_is_kept_until_its_end() {
        let folder = Folder::new("kept");
        let path = folder.write("token-config", &token_json("0123456789abcdef", 3600));
        let credentials = Credentials::new(Sources { token_file: Some(path.clone()), ..nothing(&folder) });
        let key = credentials.key().unwrap();
        std::fs::remove_file(&path).unwrap();
        credentials.doubt(&key);
        assert_eq!(credentials.key().unwrap(), key);
        {
            let mut held = credentials.held.lock().unwrap();
            let held = held.as_mut().unwrap();
            held.ends = Some(SystemTime::now() - Duration::from_secs(1));
            held.look_again = Instant::now();
        }
        assert!(credentials.key().is_err());
    }

    #[test]
    fn a_doubted_key_is_looked_for_again() {
        let folder = Folder::new("doubt");
        folder.write("access-key-secret", "s");
        folder.write("access-key-id", "first");
        let credentials = Credentials::new(nothing(&folder));
        let first = credentials.key().unwrap();
        folder.write("access-key-id", "second");
        assert_eq!(credentials.key().unwrap().id, "first");
        credentials.doubt(&first);
        assert_eq!(credentials.key().unwrap().id, "second");
    }

    #[test]
    fn a_source_rests_until_five_minutes_before_the_end_and_at_most_five_minutes() {
        let ends = |seconds: u64| Some(SystemTime::now() + Duration::from_millis(seconds * 1000 + 500));
        let rest = |seconds: u64| rest(ends(seconds), &Clock::default()).as_secs();
        assert_eq!(rest(3600), 300);
        assert_eq!(rest(480), 180);
        assert_eq!(rest(200), 30);
        assert_eq!(rest(10), 10);
    }

    #[test]
    fn a_role_that_gives_nothing_quotes_nothing() {
        let full = json!({"Code": "Success", "AccessKeyId": "STS.hush", "AccessKeySecret": "hush", "SecurityToken": "hush",
            "Expiration": in_seconds(3600), "LastUpdated": "2026-01-01T00:00:00Z"});
        assert_eq!(role_key(&full.to_string()).unwrap().key, Key::new("STS.hush", "hush", Some("hush")).unwrap());
        for (field, want) in [
            ("Code", "Code is not there or not a text"),
            ("SecurityToken", "SecurityToken is not there or not a text"),
            ("Expiration", "Expiration is not there or not a text"),
        ] {
            let mut without = full.clone();
            without[field] = json!(["hush"]);
            assert_eq!(role_key(&without.to_string()).err().unwrap().to_string(), want);
        }
        assert_eq!(role_key("hush").err().unwrap().to_string(), "is not JSON");
        assert_eq!(role_key(r#"{"Code":"Failed"}"#).err().unwrap().to_string(), "Code is not Success");
    }

    #[test]
    fn no_debug_output_shows_a_key() {
        let key = Key::new("hush-id", "hush-secret", Some("hush-token")).unwrap();
        let folder = Folder::new("debug");
        let sources = Sources { pair: Some(key.clone()), ..nothing(&folder) };
        let credentials = Credentials::new(sources.clone());
        credentials.key().unwrap();
        for text in [format!("{key:?}"), format!("{sources:?}"), format!("{credentials:?}")] {
            assert!(!text.contains("hush"), "{text}");
        }
    }

    #[test]
    fn a_scrubbed_text_shows_no_part_of_the_key_in_any_encoding() {
        let key = Key::new("the id", "the+secret", Some("the/token==")).unwrap();
        let text = "the id, the+secret, the%2Ftoken%3D%3D and the%252Ftoken%253D%253D, the token";
        assert_eq!(key.scrub(text), "***, ***, *** and ***, the token");
    }

    #[test]
    fn a_key_is_trimmed_and_must_be_plain() {
        assert_eq!(Key::new(" a\n", "b\n", Some(" ")).unwrap(), Key::new("a", "b", None).unwrap());
        for (id, secret) in [("", "b"), ("a", ""), ("a\nb", "c"), ("ä", "c")] {
            assert!(Key::new(id, secret, None).is_err(), "{id:?} {secret:?}");
        }
    }
}
