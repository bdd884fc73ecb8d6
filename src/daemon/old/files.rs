//! The old Terway's databases: locked while we live, and read once.

use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::records::{self, OldPod};
use crate::bolt::Db;
use crate::error::{Context, Error};

/// Pods with their addresses, and pods alone; each with the bucket that it keeps them in.
const RELATION: (&str, &str) = ("ResRelation.db", "relation");
const PODS: (&str, &str) = ("pod.db", "pods");
/// Of a thousand pods there are about 2 MB.
const LARGEST: u64 = 64 << 20;
/// Says below [`crate::ours::LASTING`] what was read, and below [`crate::ours::LEDGER`] what leases were made of.
const MARKER: &str = "old-terway.json";

/// Holds the databases shared: the old Terway, which wants them for itself, cannot start while we serve. Refused while it runs.
pub fn claim(folder: &Path) -> Result<Vec<File>, Error> {
    let mut held = Vec::new();
    for (name, _) in [RELATION, PODS] {
        let path = folder.join(name);
        let doing = || format!("lock {}", path.display());
        match File::open(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            Err(e) => return Err(e).context(doing),
            Ok(file) => match file.try_lock_shared() {
                Ok(()) => held.push(file),
                Err(TryLockError::WouldBlock) => return Err(Error::refused(RUNS)).context(doing),
                Err(TryLockError::Error(e)) => return Err(e).context(doing),
            },
        }
    }
    Ok(held)
}

pub fn are_there(folder: &Path) -> bool {
    [RELATION, PODS].iter().any(|(name, _)| folder.join(name).exists())
}

/// When they were written last, by which it is told that the old Terway has run again. None: it has left nothing here.
pub fn state(folder: &Path) -> Option<String> {
    let written = |(name, _)| fs::metadata(folder.join(name)).and_then(|file| file.modified()).ok();
    let written = [RELATION, PODS].map(written);
    written.iter().any(Option::is_some).then(|| format!("{written:?}"))
}

const RUNS: &str = "the old Terway still runs on this node and holds its database; stop it first \
                    (kubectl -n kube-system delete daemonset terway-eniip, or whatever it is called), its pods run on";

/// What was read when its pods were taken over, so that it is not read again.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// The transaction counters of the two files: both grow when the old Terway ran again in between.
    relation: Option<u64>,
    pods: Option<u64>,
}

/// What the old Terway knew of its pods, with the marker to set once they are taken over.
pub struct Found {
    pub pods: Vec<OldPod>,
    pub marker: Marker,
    /// Something in the files cannot be read: there may be pods that we do not know of.
    pub damaged: bool,
    /// They were read before, and the leases that were made of them are lost, or of another boot.
    pub again: bool,
}

impl Found {
    fn nothing() -> Found {
        Found { pods: Vec::new(), marker: Marker::default(), damaged: false, again: false }
    }
}

/// Reads the databases, unless the ledger has what they say or they are not there.
pub fn read(folder: &Path, lasting: &Path, ledger: &Path) -> Result<Option<Found>, Error> {
    let (relation, pods) = (load(&folder.join(RELATION.0))?, load(&folder.join(PODS.0))?);
    if relation.is_none() && pods.is_none() {
        return Ok(None);
    }
    let mut found = Found::nothing();
    let relation = relation.and_then(|bytes| found.entries(RELATION, &bytes));
    let pods = pods.and_then(|bytes| found.entries(PODS, &bytes));
    found.marker = Marker { relation: relation.as_ref().map(|r| r.0), pods: pods.as_ref().map(|p| p.0) };
    found.again = found.is_marked(lasting);
    if found.again && found.is_marked(ledger) {
        return Ok(None);
    }
    for (key, value) in relation.into_iter().flat_map(|r| r.1) {
        found.take(&key, records::relation(&key, &value));
    }
    for (key, value) in pods.into_iter().flat_map(|p| p.1) {
        let known = found.pods.iter().any(|pod| pod.name.to_string() == key);
        if !known {
            found.take(&key, records::pod(&key, &value));
        }
    }
    Ok(Some(found))
}

/// From now on the files are not read again for this folder.
pub fn mark(folder: &Path, marker: &Marker) -> Result<(), Error> {
    let path = folder.join(MARKER);
    let write = || -> Result<(), Error> {
        fs::create_dir_all(folder)?;
        let beside = path.with_extension("new");
        fs::write(&beside, serde_json::to_vec(marker)?)?;
        Ok(fs::rename(&beside, &path)?)
    };
    write().context(|| format!("write {}", path.display()))
}

#[cfg(fuzzing)]
pub fn contents(bytes: &[u8]) {
    let mut found = Found::nothing();
    let entries = [RELATION, PODS].into_iter().filter_map(|which| found.entries(which, bytes)).flat_map(|(_, all)| all);
    for (key, value) in entries.collect::<Vec<_>>().into_iter().chain([("a/b".into(), bytes.to_vec())]) {
        found.take(&key, records::relation(&key, &value));
        found.take(&key, records::pod(&key, &value));
    }
}

type Entries = (u64, Vec<(String, Vec<u8>)>);

impl Found {
    fn is_marked(&self, folder: &Path) -> bool {
        let marked = |text: Vec<u8>| serde_json::from_slice(&text).is_ok_and(|marker: Marker| marker == self.marker);
        fs::read(folder.join(MARKER)).is_ok_and(marked)
    }

    fn entries(&mut self, (name, bucket): (&str, &str), bytes: &[u8]) -> Option<Entries> {
        let db = match Db::open(bytes) {
            Ok(db) => db,
            Err(e) => {
                self.complain(&format!("{name}: {e}"));
                return None;
            }
        };
        let contents = db.bucket(bucket);
        for damage in &contents.damage {
            self.complain(&format!("{name}: {damage}"));
        }
        let text = |key: &[u8]| String::from_utf8_lossy(key).into_owned();
        Some((db.txid(), contents.entries.into_iter().map(|(k, v)| (text(k), v.to_vec())).collect()))
    }

    fn take(&mut self, key: &str, pod: Result<Option<OldPod>, String>) {
        match pod {
            Ok(pod) => self.pods.extend(pod),
            Err(why) => self.complain(&format!("{key}: {why}")),
        }
    }

    fn complain(&mut self, what: &str) {
        log::error!("the old Terway's database: {what}");
        self.damaged = true;
    }
}

/// A whole file, if it is there and of a size that we expect. One that cannot be read is an error to try again after.
fn load(path: &PathBuf) -> Result<Option<Vec<u8>>, Error> {
    let mut file = match File::open(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        file => file.context(|| format!("read {}", path.display()))?,
    };
    let mut bytes = Vec::new();
    file.by_ref().take(LARGEST).read_to_end(&mut bytes).context(|| format!("read {}", path.display()))?;
    Ok(Some(bytes))
}
