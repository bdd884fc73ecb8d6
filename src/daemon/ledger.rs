//! What must outlive the daemon, as small files under `/run/terway`: leases, resting addresses, intents, tombstones.
//!
//! Each file is written beside its place and renamed into it, so that a reader sees the old text or the new one. Nothing is
//! synced to a disk: the folder is a tmpfs, and a machine that loses it has lost its sandboxes too.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::layers::NodeConfig;
use crate::config::Mode;
use crate::error::{Context, Error};
use crate::ip::IpPair;
use crate::pod::{Attachment, PodName};
use crate::pool::{Intent, Now};
use crate::rpc::{Lease, Marker, Tombstone};

const LEASES: &str = "leases";
const RESTING: &str = "resting";
const INTENTS: &str = "intents";
const TOMBSTONES: &str = crate::rpc::TOMBSTONES;
/// What a ConfigMap said for this node last.
const NODE_CONFIG: &str = "node-config.json";
/// In which mode the node was started last.
const MODE: &str = "daemon-mode";
/// How this kernel can mark packets.
const MARKER: &str = "marker.json";
/// What a life that ended in order leaves to the next.
const LEGACY: &str = "legacy.json";
/// Files that could not be read are kept here for a person to look at.
const ASIDE: &str = "unreadable";

const RELEASE: &str = env!("CARGO_PKG_VERSION");

pub struct Ledger {
    root: PathBuf,
}

/// An address that rests before it is leased again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Resting {
    pub eni: String,
    pub ip: IpPair,
    /// Seconds since the machine started.
    pub until: f64,
    /// Until then a pod of this name shall have it again, and nobody else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reserved: Option<PodName>,
}

/// Everything the ledger held when it was opened.
#[derive(Debug, Default)]
pub struct Contents {
    pub leases: Vec<Lease>,
    pub resting: Vec<Resting>,
    pub intents: Vec<Intent>,
}

/// What a ConfigMap said for this node when it was asked last; nothing where nobody has noted that.
pub fn node_config(root: &Path) -> Option<Option<NodeConfig>> {
    serde_json::from_slice(&fs::read(root.join(NODE_CONFIG)).ok()?).ok()
}

/// The mode in which the node was started last.
pub fn mode(root: &Path) -> Option<Mode> {
    let text = fs::read_to_string(root.join(MODE)).ok()?;
    Mode::WORDS.iter().find(|(word, _)| *word == text).map(|(_, mode)| *mode)
}

/// What was tried out, and by whom: the kernel is the same until the next boot, what we try with another release is not.
#[derive(Serialize, Deserialize)]
struct Tried {
    boot_id: String,
    release: String,
    marker: Marker,
}

/// How this kernel can mark packets, as an earlier life has found out.
pub fn marker(root: &Path, boot_id: &str) -> Option<Marker> {
    let tried: Tried = serde_json::from_slice(&fs::read(root.join(MARKER)).ok()?).ok()?;
    (tried.boot_id == boot_id && tried.release == RELEASE).then_some(tried.marker)
}

/// What an earlier life has left, which is taken away. What cannot be taken away is nothing.
pub fn inherit<T: DeserializeOwned>(root: &Path) -> Option<T> {
    let path = root.join(LEGACY);
    let text = fs::read(&path).ok()?;
    fs::remove_file(&path).ok()?;
    serde_json::from_slice(&text).ok()
}

impl Contents {
    /// The attachment is known, or the address is: it is leased, or its pod has gone and it rests.
    pub fn knows(&self, attachment: &Attachment, ip: &IpPair) -> bool {
        let one_of = |pair: &IpPair| pair.iter().any(|known| ip.iter().any(|ip| ip == known));
        self.leases.iter().any(|lease| lease.sandbox.attachment == *attachment || one_of(&lease.ip))
            || self.resting.iter().any(|resting| one_of(&resting.ip))
    }
}

impl Resting {
    pub fn new(eni: String, ip: IpPair, until: Now, reserved: Option<PodName>) -> Resting {
        Resting { eni, ip, until: until.as_secs_f64(), reserved }
    }

    pub fn until(&self) -> Now {
        Duration::try_from_secs_f64(self.until).unwrap_or_default()
    }
}

impl Ledger {
    /// The files of a folder that somebody else looks after.
    pub fn at(root: &Path) -> Ledger {
        Ledger { root: root.to_owned() }
    }

    pub fn folder(&self, name: &str) -> Result<(), Error> {
        let path = self.root.join(name);
        fs::create_dir_all(&path).context(|| format!("create {}", path.display()))
    }

    /// Opens the ledger of this boot. What another boot left is dropped, but for intents: the cloud outlives a reboot.
    pub fn open(root: &Path, boot_id: &str) -> Result<(Ledger, Contents), Error> {
        let ledger = Ledger { root: root.to_owned() };
        ledger.prepare(boot_id).context(|| format!("open ledger {}", root.display()))?;
        let (leases, resting) = (ledger.read(LEASES)?, ledger.read(RESTING)?);
        let contents = Contents { leases, resting, intents: ledger.read(INTENTS)? };
        Ok((ledger, contents))
    }

    fn prepare(&self, boot_id: &str) -> Result<(), Error> {
        for folder in [LEASES, RESTING, INTENTS, TOMBSTONES] {
            fs::create_dir_all(self.root.join(folder))?;
        }
        let stamp = self.root.join("boot_id");
        let old = match fs::read_to_string(&stamp) {
            Ok(old) => Some(old),
            Err(e) if e.kind() == ErrorKind::NotFound => None,
            Err(e) => return Err(e.into()),
        };
        if old.as_deref().map(str::trim) != Some(boot_id.trim()) {
            for folder in [LEASES, RESTING, TOMBSTONES] {
                fs::remove_dir_all(self.root.join(folder))?;
                fs::create_dir(self.root.join(folder))?;
            }
            self.write(&stamp, boot_id.trim().as_bytes())?;
        }
        Ok(())
    }

    pub fn record(&self, lease: &Lease) -> Result<(), Error> {
        self.save(LEASES, &key(&lease.sandbox.attachment), lease)
    }

    /// How long ago the lease was written down.
    pub fn age(&self, attachment: &Attachment) -> Option<Duration> {
        let written = fs::metadata(self.path(LEASES, &key(attachment))).and_then(|file| file.modified()).ok()?;
        written.elapsed().ok()
    }

    /// The lease is over and its address rests: the resting file first, so that a crash in between leaves the lease. A folder
    /// that is full has room once the lease is gone.
    pub fn retire(&self, attachment: &Attachment, resting: &Resting) -> Result<(), Error> {
        let save = || self.save(RESTING, &resting_key(&resting.ip), resting);
        let saved = save();
        self.erase(LEASES, &key(attachment))?;
        saved.or_else(|_| save())
    }

    /// Whether a lease could be written down. What a crash leaves of it is passed over, as all that is half written.
    pub fn probe(&self) -> Result<(), Error> {
        let path = self.root.join(LEASES).join("probe.new");
        let written = fs::write(&path, b"can this be written?").and_then(|()| fs::remove_file(&path));
        written.context(|| format!("write {}", path.display()))
    }

    pub fn rested(&self, ip: &IpPair) -> Result<(), Error> {
        self.erase(RESTING, &resting_key(ip))
    }

    pub fn intend(&self, intent: &Intent) -> Result<(), Error> {
        self.save(INTENTS, &intent.token, intent)
    }

    pub fn settled(&self, token: &str) -> Result<(), Error> {
        self.erase(INTENTS, token)
    }

    /// The attachments that plugins undid while no daemon was there, oldest first.
    pub fn tombstones(&self) -> Result<Vec<Tombstone>, Error> {
        let mut stones: Vec<Tombstone> = self.read(TOMBSTONES)?;
        stones.sort_by(|a, b| a.at.total_cmp(&b.at));
        Ok(stones)
    }

    pub fn bury(&self, attachment: &Attachment) -> Result<(), Error> {
        self.erase(TOMBSTONES, &key(attachment))
    }

    /// Notes what a ConfigMap says for this node, or that none does: the next start need not ask.
    pub fn note_node_config(&self, over: Option<&NodeConfig>) -> Result<(), Error> {
        let path = self.root.join(NODE_CONFIG);
        let text = serde_json::to_vec(&over).context(|| format!("write {}", path.display()))?;
        self.write(&path, &text).context(|| format!("write {}", path.display()))
    }

    pub fn note_mode(&self, mode: Mode) -> Result<(), Error> {
        let path = self.root.join(MODE);
        self.write(&path, mode.to_string().as_bytes()).context(|| format!("write {}", path.display()))
    }

    pub fn bequeath(&self, legacy: &impl Serialize) -> Result<(), Error> {
        let path = self.root.join(LEGACY);
        let text = serde_json::to_vec(legacy).context(|| format!("write {}", path.display()))?;
        self.write(&path, &text).context(|| format!("write {}", path.display()))
    }

    pub fn note_marker(&self, boot_id: &str, marker: Marker) -> Result<(), Error> {
        let path = self.root.join(MARKER);
        let tried = Tried { boot_id: boot_id.into(), release: RELEASE.into(), marker };
        let text = serde_json::to_vec(&tried).context(|| format!("write {}", path.display()))?;
        self.write(&path, &text).context(|| format!("write {}", path.display()))
    }

    pub fn save<T: Serialize>(&self, folder: &str, name: &str, value: &T) -> Result<(), Error> {
        let path = self.path(folder, name);
        let text = serde_json::to_vec(value).context(|| format!("write {}", path.display()))?;
        self.write(&path, &text).context(|| format!("write {}", path.display()))
    }

    fn write(&self, path: &Path, text: &[u8]) -> Result<(), Error> {
        let beside = path.with_extension("new");
        let mut file = fs::File::create(&beside)?;
        file.write_all(text)?;
        drop(file);
        Ok(fs::rename(&beside, path)?)
    }

    pub fn erase(&self, folder: &str, name: &str) -> Result<(), Error> {
        let path = self.path(folder, name);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(e).context(|| format!("remove {}", path.display())),
            _ => Ok(()),
        }
    }

    /// Every record of a folder. One that makes no sense is put aside with a warning: the others must not suffer; one that cannot be
    /// read just now (no file descriptor, no memory) is an error, for it may be a good lease. Tombstones are written by plugins, which
    /// may be in the middle of one.
    pub fn read<T: DeserializeOwned>(&self, folder: &str) -> Result<Vec<T>, Error> {
        let root = self.root.join(folder);
        let mut found = Vec::new();
        for entry in fs::read_dir(&root).context(|| format!("read {}", root.display()))? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "new") {
                if folder != TOMBSTONES || !is_being_written(&path) {
                    let _ = fs::remove_file(&path);
                }
                continue;
            }
            let text = fs::read(&path).map_err(Error::from);
            match text.and_then(|text| Ok(serde_json::from_slice(&text)?)) {
                Ok(value) => found.push(value),
                Err(e) if e.is_for_now() => return Err(e).context(|| format!("read {}", path.display())),
                Err(e) => self.put_aside(&path, &e),
            }
        }
        Ok(found)
    }

    fn put_aside(&self, path: &Path, why: &Error) {
        log::warn!("ledger: {} is unreadable, kept in {ASIDE}/: {why}", path.display());
        let aside = self.root.join(ASIDE);
        let _ = fs::create_dir_all(&aside);
        if let Some(name) = path.file_name() {
            let _ = fs::rename(path, aside.join(name));
        }
    }

    fn path(&self, folder: &str, name: &str) -> PathBuf {
        self.root.join(folder).join(format!("{name}.json"))
    }
}

/// A plugin that writes a tombstone puts its process id before `.new`. Nobody but we write the other files, whose names may end in
/// a number as well: an interface may be called `eth0.100`.
fn is_being_written(tombstone: &Path) -> bool {
    let writer = tombstone.file_stem().map(Path::new).and_then(Path::extension).and_then(|pid| pid.to_str());
    writer.is_some_and(|pid| pid.bytes().all(|b| b.is_ascii_digit()) && Path::new("/proc").join(pid).exists())
}

fn key(attachment: &Attachment) -> String {
    attachment.file_name()
}

/// A file name for addresses.
pub fn resting_key(ip: &IpPair) -> String {
    ip.to_string().replace(':', "-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ip::Family;
    use crate::pool::Call;

    fn folder(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("terway-ledger-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        path
    }

    fn resting(ip: &str) -> Resting {
        Resting::new("eni-1".into(), IpPair::v4(ip.parse().unwrap()), Duration::from_millis(130_500), None)
    }

    fn intent() -> Intent {
        let call = Call::Assign { eni: "eni-1".into(), family: Family::V6, count: 3, token: "t-1".into() };
        Intent { token: "t-1".into(), call }
    }

    #[test]
    fn what_is_written_is_read_by_the_next_life() {
        let root = folder("life");
        let (ledger, empty) = Ledger::open(&root, "boot-1").unwrap();
        assert!(empty.leases.is_empty() && empty.resting.is_empty() && empty.intents.is_empty());
        let lease = crate::rpc::example_lease();
        ledger.record(&lease).unwrap();
        ledger.intend(&intent()).unwrap();
        let (_, read) = Ledger::open(&root, "boot-1\n").unwrap();
        assert_eq!(read.leases, std::slice::from_ref(&lease));
        assert_eq!(read.intents, [intent()]);
        ledger.retire(&lease.sandbox.attachment, &resting("10.0.0.5")).unwrap();
        ledger.settled("t-1").unwrap();
        let (_, read) = Ledger::open(&root, "boot-1").unwrap();
        assert!(read.leases.is_empty() && read.intents.is_empty());
        assert_eq!(read.resting[0].until(), Duration::from_millis(130_500));
        ledger.rested(&resting("10.0.0.5").ip).unwrap();
        ledger.rested(&resting("10.0.0.5").ip).unwrap();
        assert!(Ledger::open(&root, "boot-1").unwrap().1.resting.is_empty());
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn an_intent_of_a_version_that_knew_one_family_is_of_ipv4() {
        let old = r#"{"token":"t-1","call":{"Assign":{"eni":"eni-1","count":3,"token":"t-1"}}}"#;
        let intent: Intent = serde_json::from_str(old).unwrap();
        let call = Call::Assign { eni: "eni-1".into(), family: Family::V4, count: 3, token: "t-1".into() };
        assert_eq!(intent.call, call);
    }

    #[test]
    fn what_was_tried_out_holds_for_this_boot() {
        let root = folder("marker");
        let (ledger, _) = Ledger::open(&root, "boot-1").unwrap();
        assert_eq!(marker(&root, "boot-1"), None);
        ledger.note_marker("boot-1", Marker::Bpf).unwrap();
        assert_eq!(marker(&root, "boot-1"), Some(Marker::Bpf));
        assert_eq!(marker(&root, "boot-2"), None);
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_pair_rests_in_one_file() {
        let root = folder("pair");
        let (ledger, _) = Ledger::open(&root, "boot-1").unwrap();
        let lease = crate::rpc::example_lease();
        ledger.record(&lease).unwrap();
        let pair = IpPair { v6: Some("fd00::5".parse().unwrap()), ..resting("10.0.0.5").ip };
        let rest = Resting::new("eni-1".into(), pair, Duration::from_secs(130), None);
        ledger.retire(&lease.sandbox.attachment, &rest).unwrap();
        assert!(root.join("resting/10.0.0.5,fd00--5.json").exists());
        assert_eq!(Ledger::open(&root, "boot-1").unwrap().1.resting, [rest]);
        ledger.rested(&pair).unwrap();
        assert!(Ledger::open(&root, "boot-1").unwrap().1.resting.is_empty());
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn after_a_reboot_only_intents_are_left() {
        let root = folder("reboot");
        let (ledger, _) = Ledger::open(&root, "boot-1").unwrap();
        ledger.record(&crate::rpc::example_lease()).unwrap();
        ledger.intend(&intent()).unwrap();
        let (_, read) = Ledger::open(&root, "boot-2").unwrap();
        assert!(read.leases.is_empty());
        assert_eq!(read.intents.len(), 1);
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_broken_file_is_put_aside_and_the_others_are_read() {
        let root = folder("broken");
        let (ledger, _) = Ledger::open(&root, "boot-1").unwrap();
        ledger.record(&crate::rpc::example_lease()).unwrap();
        fs::write(root.join("leases/half.json"), "{\"pod\":").unwrap();
        fs::write(root.join("leases/other.new"), "{").unwrap();
        let (_, read) = Ledger::open(&root, "boot-1").unwrap();
        assert_eq!(read.leases.len(), 1);
        assert!(root.join("unreadable/half.json").exists() && !root.join("leases/other.new").exists());
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_lease_that_is_over_is_erased_though_its_rest_cannot_be_written_down() {
        let root = folder("full");
        let (ledger, _) = Ledger::open(&root, "boot-1").unwrap();
        let lease = crate::rpc::example_lease();
        ledger.record(&lease).unwrap();
        fs::remove_dir(root.join("resting")).unwrap();
        ledger.retire(&lease.sandbox.attachment, &resting("10.0.0.5")).unwrap_err();
        assert!(Ledger::open(&root, "boot-1").unwrap().1.leases.is_empty());
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_tombstone_that_is_being_written_is_left_to_its_plugin() {
        let root = folder("tombstone");
        let (ledger, _) = Ledger::open(&root, "boot-1").unwrap();
        let Attachment { container, ifname } = crate::rpc::example_lease().sandbox.attachment;
        let half = root.join(format!("tombstones/0123456789abcdef@eth0.{}.new", std::process::id()));
        fs::write(&half, format!(r#"{{"attachment":{{"container":"{container}","ifname":"{ifname}"}},"at":1.5}}"#))
            .unwrap();
        assert_eq!(ledger.tombstones().unwrap(), []);
        fs::rename(&half, root.join("tombstones/0123456789abcdef@eth0.json")).unwrap();
        let attachment = Attachment { container, ifname };
        assert_eq!(ledger.tombstones().unwrap(), [Tombstone { attachment, pod: None, netns: None, at: 1.5 }]);
        // A lease that we were cut off from writing is nobody's, whatever number its interface ends in.
        let cut_off = root.join(format!("leases/0123456789abcdef@eth0.{}.new", std::process::id()));
        fs::write(&cut_off, "{").unwrap();
        let (_, contents) = Ledger::open(&root, "boot-1").unwrap();
        assert!(contents.leases.is_empty() && !cut_off.exists());
        fs::remove_dir_all(root).unwrap();
    }
}

#[cfg(test)]
#[path = "../../tests/old/0.1.0/records.rs"]
mod release_0_1_0;

/// The records are a contract between releases, in both directions: a node may go back by one.
#[cfg(test)]
mod contract {
    use super::release_0_1_0 as old;
    use super::*;
    use crate::ip::Family;
    use crate::pod::Sandbox;
    use crate::pool::Call;
    use crate::rpc::{Heritage, example_lease, example_whole};

    fn as_read_by<T: DeserializeOwned>(record: &impl Serialize) -> T {
        let text = serde_json::to_string(record).unwrap();
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
    }

    #[test]
    fn the_release_before_reads_what_this_one_writes() {
        let mac = crate::ip::Mac([2, 0, 0, 0, 0, 1]);
        let heritage = Some(Heritage::Adopted { host_mac: mac, pod_mac: mac });
        let v6 = Some("fd00::5".parse().unwrap());
        let full = Lease { sticky: true, heritage, ip: IpPair { v6, ..example_lease().ip }, ..example_whole() };
        let read: old::Lease = as_read_by(&full);
        assert_eq!((read.pod.namespace, read.pod.name), ("default".into(), "web-0".into()));
        let Sandbox { attachment, netns } = full.sandbox;
        assert_eq!(
            (read.sandbox.attachment.container, read.sandbox.attachment.ifname),
            (attachment.container.clone(), attachment.ifname.clone())
        );
        assert_eq!((read.sandbox.netns, read.ip.v4, read.ip.v6), (netns, full.ip.v4, full.ip.v6));
        let (eni, was) = (read.eni, full.eni);
        assert_eq!((eni.id, eni.mac, eni.vswitch), (was.id, was.mac.to_string(), was.vswitch));
        assert_eq!((eni.cidr.v4, eni.cidr.v6), (was.cidr.v4.map(|net| net.to_string()), None));
        assert_eq!((eni.gateway.v4, eni.gateway.v6, eni.slot, eni.table), (was.gateway.v4, None, was.slot, was.table));
        assert_eq!((read.node.v4, read.node.v6, read.marker), (full.node.v4, None, old::Marker::Bpf));

        let ip = IpPair::v4("10.0.0.5".parse().unwrap());
        let until = Duration::from_millis(130_500);
        let read: old::Resting = as_read_by(&Resting::new("eni-1".into(), ip, until, Some(full.pod.clone())));
        assert_eq!((read.eni, read.ip.v4, read.ip.v6, read.until), ("eni-1".into(), ip.v4, None, 130.5));
        let stone = Tombstone { attachment, pod: Some(full.pod), netns: Some("/run/netns/web-0".into()), at: 1.5 };
        let read: old::Tombstone = as_read_by(&stone);
        assert_eq!((read.attachment.ifname, read.at), ("eth0".into(), 1.5));
    }

    #[test]
    fn the_release_before_reads_the_intents_of_this_one() {
        let (eni, token) = ("eni-1".to_owned(), "t-1".to_owned());
        let call = Call::Assign { eni, family: Family::V4, count: 3, token: token.clone() };
        let read: old::Intent = as_read_by(&Intent { token: token.clone(), call });
        assert!(
            matches!(read.call, old::Call::Assign { eni, count: 3, token } if eni == "eni-1" && token == read.token)
        );
        let call = Call::Create {
            vswitch: "vsw-1".into(),
            security_groups: vec!["sg-1".into()],
            resource_group: Some("rg-1".into()),
            tags: [("creator".to_owned(), "terway".to_owned())].into(),
            addresses: 5,
            v6: 5,
            token: token.clone(),
        };
        let read: old::Intent = as_read_by(&Intent { token: token.clone(), call });
        let old::Call::Create { vswitch, security_groups, resource_group, tags, addresses, token } = read.call else {
            panic!("{read:?}");
        };
        assert_eq!(
            (vswitch, security_groups, resource_group),
            ("vsw-1".into(), vec!["sg-1".into()], Some("rg-1".into()))
        );
        assert_eq!((tags.len(), addresses, token), (1, 5, read.token));
    }

    #[test]
    fn this_release_reads_what_the_one_before_wrote() {
        macro_rules! record {
            ($name:literal) => {
                serde_json::from_str(include_str!(concat!("../../tests/old/0.1.0/", $name, ".json"))).unwrap()
            };
        }
        let lease: Lease = record!("lease");
        assert_eq!(lease, example_lease());
        let resting: Resting = record!("resting");
        let ip = IpPair::v4("10.0.0.5".parse().unwrap());
        assert_eq!(resting, Resting::new("eni-1".into(), ip, Duration::from_millis(130_500), None));
        let assign: Intent = record!("assign");
        assert!(matches!(assign.call, Call::Assign { family: Family::V4, count: 3, .. }), "{assign:?}");
        let create: Intent = record!("create");
        assert!(matches!(create.call, Call::Create { addresses: 5, v6: 0, .. }), "{create:?}");
        let stone: Tombstone = record!("tombstone");
        assert_eq!((stone.attachment, stone.pod, stone.at), (example_lease().sandbox.attachment, None, 1.5));
    }
}
