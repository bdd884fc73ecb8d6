//! Reads the files of bbolt, the store of the old Terway: the bytes of a file in, the keys and values of a bucket out.
//!
//! The format is version 2 of <https://github.com/etcd-io/bbolt> (`internal/common`: meta.go, page.go, inode.go, bucket.go), in
//! the byte order of the machine. Whatever the bytes say, reading them ends, in memory that the file's size bounds: a page
//! is read once, and what the elements hold together is no more than the file. A damaged page costs what is on it, not the rest.

use std::collections::BTreeSet;

use crate::error::Error;

const MAGIC: u32 = 0xed0c_daed;
const VERSION: u32 = 2;
/// Page sizes that bbolt tries when the first meta page is damaged.
const PAGE_SIZES: [usize; 7] = [1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15, 1 << 16];
const PAGE_HEADER: usize = 16;
/// The meta up to its checksum.
const META: usize = 56;
const ELEMENT: usize = 16;
const BRANCH: u16 = 0x01;
const LEAF: u16 = 0x02;
/// Flag of a leaf's element whose value is a bucket.
const BUCKET: u32 = 0x01;
const BUCKET_HEADER: usize = 16;
/// Trees of more levels do not fit into any file.
const DEEPEST: u32 = 32;

/// A database as its newest valid meta page has it.
pub struct Db<'a> {
    file: &'a [u8],
    page_size: usize,
    root: u64,
    /// Pages from this one on are not in use.
    end: u64,
    txid: u64,
}

/// What a bucket holds, and what of it cannot be read.
#[derive(Debug, Default)]
pub struct Contents<'a> {
    pub entries: Vec<(&'a [u8], &'a [u8])>,
    pub damage: Vec<String>,
}

impl<'a> Db<'a> {
    pub fn open(file: &'a [u8]) -> Result<Db<'a>, Error> {
        // Of the two metas the newer one counts, unless it was being written when the machine stopped.
        let metas = meta(file, 0).into_iter().chain(PAGE_SIZES.iter().filter_map(|size| {
            let second = meta(file, *size)?;
            (second.page_size == *size).then_some(second)
        }));
        metas.max_by_key(|db| db.txid).ok_or_else(|| Error::malformed("no bbolt database: neither meta page is valid"))
    }

    /// Counts the transactions: it differs once anything was written.
    pub fn txid(&self) -> u64 {
        self.txid
    }

    /// Keys and values of a bucket at the top, buckets inside it left out. Without the bucket there are none.
    pub fn bucket(&self, name: &str) -> Contents<'a> {
        let mut top = Walk::new(self);
        top.tree(self.root, 0);
        let found = top.buckets.iter().find(|(key, _)| *key == name.as_bytes()).map(|(_, value)| *value);
        let mut walk = Walk { damage: top.damage, ..Walk::new(self) };
        if let Some(value) = found {
            walk.bucket(value);
        }
        Contents { entries: walk.entries, damage: walk.damage }
    }

    fn page(&self, id: u64) -> Result<&'a [u8], String> {
        let bad = |what: &str| format!("page {id}: {what}");
        if id < 2 || id >= self.end {
            return Err(bad("outside the database"));
        }
        let start = usize::try_from(id).ok().and_then(|id| id.checked_mul(self.page_size));
        let rest = start.and_then(|start| self.file.get(start..)).ok_or_else(|| bad("outside the file"))?;
        if u64_at(rest, 0) != Some(id) {
            return Err(bad("bears another number"));
        }
        let overflow = u32_at(rest, 12).and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
        let size = overflow.checked_add(1).and_then(|pages| pages.checked_mul(self.page_size));
        size.and_then(|size| rest.get(..size)).ok_or_else(|| bad("longer than the file"))
    }
}

/// The meta page at this place, if it is one.
fn meta(file: &[u8], at: usize) -> Option<Db<'_>> {
    let meta = file.get(at.checked_add(PAGE_HEADER)?..)?;
    let (body, sum) = (meta.get(..META)?, u64_at(meta, META)?);
    let page_size = usize::try_from(u32_at(body, 8)?).ok()?;
    let sound = u32_at(body, 0)? == MAGIC && u32_at(body, 4)? == VERSION && fnv1a(body) == sum;
    (sound && PAGE_SIZES.contains(&page_size)).then_some(Db {
        file,
        page_size,
        root: u64_at(body, 16)?,
        end: u64_at(body, 40)?,
        txid: u64_at(body, 48)?,
    })
}

/// FNV-1a with 64 bits, the checksum of a meta.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// One way through a tree of pages, and what it came by.
struct Walk<'a, 'd> {
    db: &'d Db<'a>,
    seen: BTreeSet<u64>,
    /// Bytes that elements may still hold.
    budget: usize,
    entries: Vec<(&'a [u8], &'a [u8])>,
    buckets: Vec<(&'a [u8], &'a [u8])>,
    damage: Vec<String>,
}

impl<'a, 'd> Walk<'a, 'd> {
    fn new(db: &'d Db<'a>) -> Walk<'a, 'd> {
        let budget = db.file.len();
        Walk { db, seen: BTreeSet::new(), budget, entries: Vec::new(), buckets: Vec::new(), damage: Vec::new() }
    }

    /// A small bucket has its only page in its value, behind the header; another one says where its root is.
    fn bucket(&mut self, value: &'a [u8]) {
        match (u64_at(value, 0), value.get(BUCKET_HEADER..)) {
            (Some(0), Some(inline)) => self.visit(inline, "the page inside a bucket", 0),
            (Some(root), Some(_)) => self.tree(root, 0),
            _ => self.damage.push("a bucket without a header".into()),
        }
    }

    fn tree(&mut self, id: u64, depth: u32) {
        if !self.seen.insert(id) {
            return self.damage.push(format!("page {id}: met twice"));
        }
        if depth > DEEPEST {
            return self.damage.push(format!("page {id}: too deep"));
        }
        match self.db.page(id) {
            Ok(page) => self.visit(page, &format!("page {id}"), depth),
            Err(damage) => self.damage.push(damage),
        }
    }

    fn visit(&mut self, page: &'a [u8], name: &str, depth: u32) {
        let (kind, count) = (u16_at(page, 8), usize::from(u16_at(page, 10).unwrap_or_default()));
        let Some(elements) = page.get(PAGE_HEADER..).and_then(|rest| rest.get(..count * ELEMENT)) else {
            return self.damage.push(format!("{name}: {count} elements do not fit"));
        };
        match kind {
            Some(BRANCH) => {
                elements.chunks_exact(ELEMENT).filter_map(|e| u64_at(e, 8)).for_each(|id| self.tree(id, depth + 1))
            }
            Some(LEAF) => (0..count).for_each(|n| self.leaf(page, n, name)),
            _ => self.damage.push(format!("{name}: neither branch nor leaf")),
        }
    }

    fn leaf(&mut self, page: &'a [u8], n: usize, name: &str) {
        let at = PAGE_HEADER + n * ELEMENT;
        let word = |offset| u32_at(page, at + offset).unwrap_or(u32::MAX);
        let element = pair(page, at, [word(4), word(8), word(12)]);
        let Some((key, value)) = element.filter(|(key, value)| key.len() + value.len() <= self.budget) else {
            return self.damage.push(format!("{name}: element {n} lies outside"));
        };
        self.budget -= key.len() + value.len();
        if word(0) & BUCKET == 0 { self.entries.push((key, value)) } else { self.buckets.push((key, value)) }
    }
}

/// Key and value, which follow each other so far behind the element.
fn pair(page: &[u8], at: usize, words: [u32; 3]) -> Option<(&[u8], &[u8])> {
    let [offset, key, value] = words.map(|word| usize::try_from(word).unwrap_or(usize::MAX));
    let rest = page.get(at.checked_add(offset)?..)?;
    Some((rest.get(..key)?, rest.get(key..key.checked_add(value)?)?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by bbolt itself: `tests/old/make.go`.
    const FEW: &[u8] = include_bytes!("../tests/old/few.db");
    const MANY: &[u8] = include_bytes!("../tests/old/many.db");

    /// What `make.go` has left in many.db.
    fn many() -> Vec<(String, String)> {
        let value =
            |n: usize| char::from(b'a' + (n % 26) as u8).to_string().repeat(if n % 50 == 1 { 3000 } else { 40 });
        (0..150).filter(|n| n % 3 != 0).map(|n| (format!("default/pod-{n:04}"), value(n))).collect()
    }

    fn read(file: &[u8]) -> (Vec<(String, String)>, Vec<String>) {
        let contents = Db::open(file).unwrap().bucket("relation");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (contents.entries.iter().map(|(k, v)| (text(k), text(v))).collect(), contents.damage)
    }

    #[test]
    fn a_bucket_inside_its_parents_page_is_read() {
        let (entries, damage) = read(FEW);
        let want = [("default/a", r#"{"one":1}"#), ("default/b", r#"{"two":2}"#)];
        assert_eq!(entries, want.map(|(k, v)| (k.to_owned(), v.to_owned())));
        assert!(damage.is_empty(), "{damage:?}");
        assert!(Db::open(FEW).unwrap().bucket("pods").entries.is_empty());
    }

    #[test]
    fn a_tree_of_pages_is_read_long_values_and_all_and_no_other_bucket() {
        let (entries, damage) = read(MANY);
        assert_eq!(entries, many());
        assert!(damage.is_empty(), "{damage:?}");
    }

    #[test]
    fn the_newer_meta_counts_and_the_older_one_steps_in() {
        let newest = Db::open(MANY).unwrap().txid();
        for (broken, at) in [("the first", 20), ("the second", 1024 + 20)] {
            let mut file = MANY.to_vec();
            file[at] ^= 0x40;
            let db = Db::open(&file).unwrap();
            assert!(newest - db.txid() <= 1, "{broken} is broken");
            file[1044 - at + 20] ^= 0x40;
            assert!(Db::open(&file).is_err());
        }
    }

    #[test]
    fn a_damaged_page_costs_what_is_on_it_and_is_named() {
        let mut file = MANY.to_vec();
        // Page 25 holds the nine records from pod-0065 to pod-0077.
        let at = 25 * 1024;
        file[at + 8] = 0x40;
        let (entries, damage) = read(&file);
        assert_eq!(entries.len(), many().len() - 9);
        assert!(entries.iter().all(|entry| many().contains(entry)));
        assert_eq!(damage.len(), 1, "{damage:?}");
        assert!(damage[0].contains("neither branch nor leaf"), "{damage:?}");
    }

    #[test]
    fn whatever_the_bytes_say_reading_ends() {
        let mut rng = fastrand::Rng::with_seed(9);
        for file in [FEW, MANY] {
            for round in 0..4000 {
                let mut bytes = file.to_vec();
                if round % 4 == 0 {
                    bytes.truncate(rng.usize(..bytes.len()));
                }
                for _ in 0..rng.usize(1..40) {
                    // The metas stay as they are most of the time: behind a broken one nothing is read.
                    let from = if rng.u8(..8) == 0 { 0 } else { 2048 };
                    if from < bytes.len() {
                        let at = rng.usize(from..bytes.len());
                        bytes[at] = if rng.bool() { rng.u8(..) } else { bytes[at] ^ (1 << rng.u8(..8)) };
                    }
                }
                let Ok(db) = Db::open(&bytes) else { continue };
                let contents = db.bucket("relation");
                let held: usize = contents.entries.iter().map(|(k, v)| k.len() + v.len()).sum();
                assert!(held <= bytes.len() && contents.damage.len() <= bytes.len());
            }
        }
    }

    #[test]
    fn pages_that_lead_back_to_each_other_are_met_once() {
        let mut file = MANY.to_vec();
        for page in (2..file.len() / 1024).map(|n| n * 1024) {
            if file[page + 8] == 0x01 {
                let id = (page as u64 / 1024).to_ne_bytes();
                file[page + 24..page + 32].copy_from_slice(&id);
            }
        }
        let (_, damage) = read(&file);
        assert!(damage.iter().any(|d| d.contains("met twice")), "{damage:?}");
    }

    #[test]
    fn what_is_no_database_is_said_to_be_none() {
        for file in [&b""[..], b"not a database", &[0; 65536], &MANY[2048..]] {
            let why = Db::open(file).err().unwrap().to_string();
            assert_eq!(why, "no bbolt database: neither meta page is valid");
        }
    }
}
