//! Writes a bbolt database with one bucket, as small as the format allows: two metas, a free list, a root, a leaf.
//!
//! Files that bbolt itself has written are in `tests/old/` (`make.go` made them); the reader is held to those.

use std::collections::BTreeMap;

const PAGE: usize = 4096;
const LEAF: u16 = 0x02;
const META: u16 = 0x04;
const FREELIST: u16 = 0x10;
const BUCKET: u32 = 0x01;

/// The bytes of a database with these records, after so many transactions.
pub fn database(bucket: &str, records: &BTreeMap<String, String>, txid: u64) -> Vec<u8> {
    let records: Vec<(&str, &[u8], u32)> = records.iter().map(|(k, v)| (k.as_str(), v.as_bytes(), 0)).collect();
    let leaf = page(4, LEAF, records.len(), &elements(&records));
    let root_of_bucket = [4_u64.to_ne_bytes(), 0_u64.to_ne_bytes()].concat();
    let end = 4 + (leaf.len() / PAGE) as u64;
    let mut file = Vec::new();
    for number in [0, 1] {
        file.extend(page(number, META, 0, &meta(end, txid - (txid + number) % 2)));
    }
    file.extend(page(2, FREELIST, 0, &[]));
    file.extend(page(3, LEAF, 1, &elements(&[(bucket, &root_of_bucket, BUCKET)])));
    file.extend(leaf);
    file
}

/// A page of as many pages as it takes.
fn page(id: u64, flags: u16, count: usize, body: &[u8]) -> Vec<u8> {
    let pages = (16 + body.len()).div_ceil(PAGE);
    let mut page = id.to_ne_bytes().to_vec();
    page.extend(flags.to_ne_bytes());
    page.extend(u16::try_from(count).expect("it is a small database").to_ne_bytes());
    page.extend(u32::try_from(pages - 1).expect("it is a small database").to_ne_bytes());
    page.extend(body);
    page.resize(pages * PAGE, 0);
    page
}

fn elements(items: &[(&str, &[u8], u32)]) -> Vec<u8> {
    let (mut heads, mut data) = (Vec::new(), Vec::<u8>::new());
    for (n, (key, value, flags)) in items.iter().enumerate() {
        let offset = (items.len() - n) * 16 + data.len();
        for word in [*flags as usize, offset, key.len(), value.len()] {
            heads.extend(u32::try_from(word).expect("it is a small database").to_ne_bytes());
        }
        data.extend(key.as_bytes());
        data.extend(*value);
    }
    heads.extend(data);
    heads
}

fn meta(end: u64, txid: u64) -> Vec<u8> {
    let mut meta = Vec::new();
    for word in [0xed0c_daed_u32, 2, PAGE as u32, 0] {
        meta.extend(word.to_ne_bytes());
    }
    // The root bucket and its sequence, the free list, the number of pages, the transaction.
    for word in [3, 0, 2, end, txid] {
        meta.extend(word.to_ne_bytes());
    }
    let sum = meta.iter().fold(0xcbf2_9ce4_8422_2325_u64, |s, b| (s ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3));
    meta.extend(sum.to_ne_bytes());
    meta
}
