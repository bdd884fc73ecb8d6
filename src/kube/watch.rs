//! List and watch as a blocking iterator of changes.

use std::io::{BufRead, BufReader, Read};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use ureq::BodyReader;

use super::page::whole;
use super::{Client, PageMeta, Select, Status, Verb, too_large, wire};
use crate::error::{Cause, Context, Error};
use crate::object::Object;

/// A stream that ends sooner than this is an error: without it, a server that hangs up at once would keep us busy.
const SHORTEST: Duration = Duration::from_secs(1);
/// The buffer for a line is given back after a line larger than this.
const LINE_KEPT: usize = 64 << 10;

/// One change to a collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change<T> {
    /// This is all there is; what is known but not listed here is gone.
    Reset(Vec<T>),
    /// Added or changed.
    Set(T),
    /// Deleted; the last state.
    Gone(T),
    /// Nothing changed: the server is alive and told us up to where we know all.
    Bookmark,
}

/// Endless: it lists, then watches, and goes on where it was after every error. Errors come out so that the caller
/// can wait as long as it sees fit before the next call; the iterator itself never waits or tries again.
/// `None` only after [`Stop::stop`].
pub struct Watch<T, K = T> {
    client: Client,
    select: Select,
    path: String,
    /// All changes up to this resource version have been seen; `None` when the collection must be listed.
    seen: Option<String>,
    /// The first list may come from the server's cache; a later one must not be older than what was seen.
    listed: bool,
    stream: Option<Stream>,
    keep: fn(T) -> K,
}

/// Ends a watch from another thread, also while it blocks.
#[derive(Clone)]
pub struct Stop(Client);

impl Stop {
    pub(super) fn of(client: &Client) -> Stop {
        Stop(client.clone())
    }

    pub fn stop(&self) {
        self.0.close();
    }
}

impl<T: Object> Watch<T> {
    pub(super) fn new(client: Client, path: String, select: Select) -> Watch<T> {
        Watch { client, select, path, seen: None, listed: false, stream: None, keep: |object| object }
    }
}

impl<T: Object, K> Watch<T, K> {
    /// The same of what `keep` leaves of each object; of a long list the whole is never in memory.
    pub fn keeping<L>(self, keep: fn(T) -> L) -> Watch<T, L> {
        let Watch { client, select, path, seen, listed, stream, keep: _ } = self;
        Watch { client, select, path, seen, listed, stream, keep }
    }

    pub fn stopper(&self) -> Stop {
        Stop::of(&self.client)
    }

    fn step(&mut self) -> Result<Change<K>, Error> {
        let Some(seen) = &self.seen else { return self.list() };
        loop {
            let stream = match &mut self.stream {
                Some(stream) => stream,
                None => self.stream.insert(open(&self.client, &self.select, &self.path, seen)?),
            };
            match stream.lines.next()? {
                Some(line) => return self.take(line),
                None if stream.opened.elapsed() < SHORTEST => {
                    return Err(Error::refused("the server ended the watch at once"));
                }
                None => self.stream = None,
            }
        }
    }

    fn list(&mut self) -> Result<Change<K>, Error> {
        let version = if self.listed { None } else { Some("0") };
        let (items, version) = self.client.pages(&self.path, &self.select, version, self.keep)?;
        if version.is_empty() {
            return Err(Error::malformed("a list without resourceVersion"));
        }
        self.listed = true;
        self.seen = Some(version);
        Ok(Change::Reset(items))
    }

    fn take(&mut self, line: Line<T>) -> Result<Change<K>, Error> {
        let (version, change) = match line {
            Line::Added(object) | Line::Modified(object) => {
                (object.version().to_owned(), Change::Set((self.keep)(object)))
            }
            Line::Deleted(object) => (object.version().to_owned(), Change::Gone((self.keep)(object))),
            Line::Bookmark(mark) => (mark.metadata.resource_version, Change::Bookmark),
            Line::Error(status) => return Err(Error::new(Cause::Http { status: status.code, body: status.message })),
        };
        if version.is_empty() {
            return Err(Error::malformed("a change without resourceVersion"));
        }
        self.seen = Some(version);
        Ok(change)
    }

    /// After an error the stream is of no more use; after a 410 neither is what we have seen, and whoever was kept from reading is told all
    /// anew once that is over.
    fn recover(&mut self, e: &Error) {
        self.stream = None;
        if matches!(e.cause, Cause::Http { status: 403 | 410, .. }) {
            self.seen = None;
        }
    }
}

impl<T: Object, K> Iterator for Watch<T, K> {
    type Item = Result<Change<K>, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.client.is_closed() {
            return None;
        }
        let step = self.step().inspect_err(|e| self.recover(e)).context(|| format!("watch {}", self.path));
        if self.client.is_closed() { None } else { Some(step) }
    }
}

struct Stream {
    lines: Lines<BodyReader<'static>>,
    opened: Instant,
}

fn open(client: &Client, select: &Select, path: &str, seen: &str) -> Result<Stream, Error> {
    let limits = client.limits();
    let mut query = select.query();
    query.add("watch", "true");
    query.add("allowWatchBookmarks", "true");
    query.add("resourceVersion", seen);
    query.add("timeoutSeconds", &limits.watch.as_secs().max(1).to_string());
    let opened = Instant::now();
    let answer = client.send(Verb::Watch(select.form()), &format!("{path}{}", query.0))?;
    let body = answer.into_body().into_with_config().limit(u64::MAX).reader();
    Ok(Stream { lines: Lines::new(body, limits.object_bytes), opened })
}

/// A line of a watch.
#[derive(Debug)]
enum Line<T> {
    Added(T),
    Modified(T),
    Deleted(T),
    Bookmark(Mark),
    Error(Status),
}

/// Its object is read once its type is known, as text: serde's own way would have the code for each kind of object twice.
#[derive(Deserialize)]
struct Raw<'a> {
    r#type: Type,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum Type {
    Added,
    Modified,
    Deleted,
    Bookmark,
    Error,
}

fn line<T: DeserializeOwned>(text: &[u8]) -> Result<Line<T>, Error> {
    let Raw { r#type, object } = serde_json::from_slice(text)?;
    Ok(match r#type {
        Type::Added => Line::Added(whole(object)?),
        Type::Modified => Line::Modified(whole(object)?),
        Type::Deleted => Line::Deleted(whole(object)?),
        Type::Bookmark => Line::Bookmark(whole(object)?),
        Type::Error => Line::Error(whole(object)?),
    })
}

/// An object of which only the resource version is set.
#[derive(Debug, Deserialize)]
struct Mark {
    metadata: PageMeta,
}

/// How many changes these bytes of a stream tell of before they end, or say what none does.
#[cfg(fuzzing)]
pub(super) fn told<T: DeserializeOwned>(bytes: &[u8]) -> usize {
    let mut lines = Lines::new(bytes, 1 << 16);
    std::iter::from_fn(|| lines.next::<T>().ok().flatten()).count()
}

/// Reads line by line; never more than one line and a small buffer are in memory.
struct Lines<R> {
    from: BufReader<R>,
    line: Vec<u8>,
    max: u64,
}

impl<R: Read> Lines<R> {
    fn new(from: R, max: u64) -> Lines<R> {
        Lines { from: BufReader::with_capacity(4 << 10, from), line: Vec::new(), max }
    }

    /// `None` at the end of the stream.
    fn next<T: DeserializeOwned>(&mut self) -> Result<Option<Line<T>>, Error> {
        self.line.clear();
        self.line.shrink_to(LINE_KEPT);
        let mut limited = (&mut self.from).take(self.max + 1);
        limited.read_until(b'\n', &mut self.line).map_err(|e| wire(e.into()))?;
        if self.line.is_empty() {
            return Ok(None);
        }
        match self.line.ends_with(b"\n") {
            true => Ok(Some(line(&self.line)?)),
            false if self.line.len() as u64 > self.max => Err(too_large(self.max)),
            false => Err(Error::malformed("the watch broke off within a change")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::Pod;

    /// What the lines of `text` say, until the end or the first error.
    fn read(text: &[u8], max: u64) -> Vec<String> {
        let mut lines = Lines::new(text, max);
        let mut said = Vec::new();
        loop {
            match lines.next::<Pod>() {
                Ok(None) => return said,
                Ok(Some(Line::Added(pod))) => said.push(format!("added {}", pod.meta.name)),
                Ok(Some(Line::Modified(pod))) => said.push(format!("modified {}", pod.meta.name)),
                Ok(Some(Line::Deleted(pod))) => said.push(format!("deleted {}", pod.meta.name)),
                Ok(Some(Line::Bookmark(mark))) => said.push(format!("bookmark {}", mark.metadata.resource_version)),
                Ok(Some(Line::Error(status))) => said.push(format!("error {}", status.code)),
                Err(e) => {
                    said.push(e.to_string());
                    return said;
                }
            }
        }
    }

    const POD: &str = r#"{"type":"ADDED","object":{"kind":"Pod","metadata":{"name":"a","resourceVersion":"5"}}}"#;

    #[test]
    fn lines_are_read_one_by_one() {
        let text = [
            POD,
            r#"{"object":{"metadata":{"name":"b"}},"type":"DELETED"}"#,
            r#"{"type":"BOOKMARK","object":{"kind":"Pod","metadata":{"resourceVersion":"9"}}}"#,
            r#"{"type":"ERROR","object":{"kind":"Status","code":410,"message":"too old resource version"}}"#,
            "",
        ];
        assert_eq!(read(text.join("\n").as_bytes(), 1000), ["added a", "deleted b", "bookmark 9", "error 410"]);
    }

    #[test]
    fn a_line_that_is_too_long_broken_off_or_unknown_is_an_error() {
        assert_eq!(read(POD.as_bytes(), 1000), ["the watch broke off within a change"]);
        assert_eq!(read(format!("{POD}\n").as_bytes(), 20), ["the answer is larger than 20 bytes"]);
        assert_eq!(read(format!("{POD}\n").as_bytes(), POD.len() as u64 + 1), ["added a"]);
        for (line, why) in [
            (r#"{"type":"EXPLODED","object":{}}"#, "unknown variant `EXPLODED`"),
            ("\u{0}", "not the JSON we expect"),
            (r#"{"type":"ADDED"}"#, "missing field `object`"),
            ("{", "EOF while parsing"),
        ] {
            let said = read(format!("{line}\n").as_bytes(), 1000);
            assert!(said[0].contains(why), "{said:?}");
        }
    }

    #[test]
    fn no_bytes_make_the_reader_panic_or_go_on_forever() {
        let mut rng = fastrand::Rng::with_seed(7);
        let whole = format!("{POD}\n{}\n", r#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"9"}}}"#);
        for _ in 0..20_000 {
            let mut bytes = whole.clone().into_bytes();
            for _ in 0..rng.usize(1..6) {
                let at = rng.usize(..bytes.len());
                match rng.u8(..3) {
                    0 => bytes[at] = rng.u8(..),
                    1 => bytes.truncate(at + 1),
                    _ => bytes.insert(at, *b"{}[]\",:\n\\0".get(rng.usize(..10)).unwrap_or(&0)),
                }
            }
            let said = read(&bytes, rng.u64(1..300));
            assert!(said.len() <= bytes.len());
        }
    }
}
