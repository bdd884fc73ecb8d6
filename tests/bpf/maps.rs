//! Maps and their pins.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use terway::kernel::bpf::map::{Map, Shape};
use terway::kernel::bpf::pin::{self, Age};

const HASH: u32 = 1;
const ARRAY: u32 = 2;

/// A bpffs of a test's own, unmounted with all pins when dropped.
pub struct BpfFs(PathBuf);

impl BpfFs {
    pub fn new(tag: &str) -> BpfFs {
        let path = std::env::temp_dir().join(format!("tw{}-{tag}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        BpfFs(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for BpfFs {
    fn drop(&mut self) {
        let unmounted = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
        if let Err(e) = unmounted.map_err(std::io::Error::from).and_then(|()| std::fs::remove_dir(&self.0)) {
            eprintln!("{}: {e}", self.0.display());
        }
    }
}

/// Writes every value of a map anew.
pub fn rewrite(map: &Map, change: impl Fn(&mut [u8])) {
    let mut all = Vec::new();
    map.each(|key, value| all.push((key.to_vec(), value.to_vec()))).unwrap();
    for (key, mut value) in all {
        change(&mut value);
        map.put(&key, &value).unwrap();
    }
}

fn shape(kind: u32, entries: u32) -> Shape {
    Shape { kind, key: 4, value: 8, entries, flags: 0 }
}

fn elements(map: &Map) -> BTreeMap<u32, u64> {
    let mut found = BTreeMap::new();
    let number = |key: &[u8]| u32::from_ne_bytes(key.try_into().unwrap());
    map.each(|key, value| _ = found.insert(number(key), u64::from_ne_bytes(value.try_into().unwrap()))).unwrap();
    found
}

#[test]
fn many_elements_are_written_and_read_at_once() {
    let map = Map::create("many", &shape(HASH, 20_000)).unwrap();
    let keys: Vec<u8> = (0..10_000u32).flat_map(u32::to_ne_bytes).collect();
    let values: Vec<u8> = (0..10_000u64).flat_map(|n| (n * n).to_ne_bytes()).collect();
    map.put_all(&keys, &values).unwrap();
    let found = elements(&map);
    assert_eq!((found.len(), found[&0], found[&9_999]), (10_000, 0, 99_980_001));
    assert_eq!(map.get(&77u32.to_ne_bytes()).unwrap(), Some((77u64 * 77).to_ne_bytes().to_vec()));
    assert!(map.remove(&77u32.to_ne_bytes()).unwrap() && !map.remove(&77u32.to_ne_bytes()).unwrap());
    assert_eq!(map.get(&77u32.to_ne_bytes()).unwrap(), None);
}

#[test]
fn a_full_map_says_so_and_how_far_it_came() {
    let map = Map::create("small", &shape(HASH, 100)).unwrap();
    let keys: Vec<u8> = (0..150u32).flat_map(u32::to_ne_bytes).collect();
    let (written, e) = map.put_all(&keys, &vec![1; 150 * 8]).unwrap_err();
    assert_eq!((written, e.to_string().as_str()), (100, "eBPF map small is full: it holds 100 entries"));
    assert_eq!(elements(&map).len(), 100);
    let e = map.put(&999u32.to_ne_bytes(), &[0; 8]).unwrap_err();
    assert_eq!(e.to_string(), "eBPF map small is full: it holds 100 entries");
    let e = map.put(&[0; 3], &[0; 8]).unwrap_err();
    assert_eq!(e.to_string(), "eBPF map small has keys of 4 and values of 8 bytes, not 3 and 8");
}

#[test]
fn a_pinned_map_is_found_again_and_one_of_another_shape_replaced() {
    let fs = BpfFs::new("pins");
    let folder = pin::folder(fs.path(), "terway/v1").unwrap();
    assert_eq!(pin::folder(fs.path(), "terway/v1").unwrap(), folder);
    assert!(pin::open(&folder, "numbers").unwrap().is_none());
    let (map, age) = pin::ensure(&folder, "numbers", &shape(ARRAY, 10)).unwrap();
    assert_eq!((age, map.shape()), (Age::New, shape(ARRAY, 10)));
    map.put(&3u32.to_ne_bytes(), &9u64.to_ne_bytes()).unwrap();
    drop(map);
    let (map, age) = pin::ensure(&folder, "numbers", &shape(ARRAY, 10)).unwrap();
    assert_eq!((age, elements(&map)[&3]), (Age::Old, 9));
    let (larger, age) = pin::ensure(&folder, "numbers", &shape(ARRAY, 20)).unwrap();
    assert_eq!((age, elements(&larger)[&3], elements(&map)[&3]), (Age::New, 0, 9));
    pin::forget(&folder, "numbers").unwrap();
    pin::forget(&folder, "numbers").unwrap();
    assert!(pin::open(&folder, "numbers").unwrap().is_none());
}
