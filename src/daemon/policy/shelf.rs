//! Which watches have which objects: where watches overlap, an object is gone when none of them has it any more.

use std::collections::{BTreeMap, BTreeSet};

use super::feed::{Kind, Thing};
use crate::cluster::Name;
use crate::heard::Heard;

#[derive(Default)]
pub struct Shelf(BTreeMap<Kind, BTreeMap<Name, Held>>);

struct Held {
    version: u64,
    by: Vec<u32>,
}

impl Shelf {
    /// What is news of it, once all watches are taken together.
    pub fn take(&mut self, by: u32, kind: Kind, heard: Heard<Thing>) -> Vec<Heard<Thing>> {
        match heard {
            Heard::One(one) => self.set(by, kind, one).into_iter().collect(),
            Heard::Gone(name) => self.unset(by, kind, &name).into_iter().collect(),
            Heard::All(all) => {
                let of_kind = self.0.entry(kind).or_default();
                let had = of_kind.iter().filter(|(_, held)| held.by.contains(&by)).map(|(name, _)| name.clone());
                let mut gone: BTreeSet<Name> = had.collect();
                // All of a kind from the one watch that there is: one piece of news.
                let is_alone = of_kind.values().all(|held| held.by == [by]);
                for one in &all {
                    gone.remove(one.name());
                }
                if is_alone {
                    of_kind.clear();
                    of_kind.extend(all.iter().map(|one| (one.name().clone(), held(by, one))));
                    return vec![Heard::All(all)];
                }
                let fresh: Vec<_> = all.into_iter().filter_map(|one| self.set(by, kind, one)).collect();
                fresh.into_iter().chain(gone.iter().filter_map(|name| self.unset(by, kind, name))).collect()
            }
        }
    }

    /// The watch is over.
    pub fn forget(&mut self, by: u32, kind: Kind) -> Vec<Heard<Thing>> {
        let of_kind = self.0.entry(kind).or_default();
        let had = of_kind.iter().filter(|(_, held)| held.by.contains(&by)).map(|(name, _)| name.clone());
        let had: Vec<Name> = had.collect();
        had.iter().filter_map(|name| self.unset(by, kind, name)).collect()
    }

    pub fn count(&self, kind: Kind) -> usize {
        self.0.get(&kind).map_or(0, BTreeMap::len)
    }

    /// An object that another watch told of in a newer version is no news.
    fn set(&mut self, by: u32, kind: Kind, one: Thing) -> Option<Heard<Thing>> {
        let of_kind = self.0.entry(kind).or_default();
        let Some(known) = of_kind.get_mut(one.name()) else {
            of_kind.insert(one.name().clone(), held(by, &one));
            return Some(Heard::One(one));
        };
        if !known.by.contains(&by) {
            known.by.push(by);
        }
        let version = version(&one);
        let is_news = version >= known.version;
        known.version = known.version.max(version);
        is_news.then_some(Heard::One(one))
    }

    fn unset(&mut self, by: u32, kind: Kind, name: &Name) -> Option<Heard<Thing>> {
        let of_kind = self.0.entry(kind).or_default();
        let held = of_kind.get_mut(name)?;
        held.by.retain(|one| *one != by);
        held.by.is_empty().then(|| {
            of_kind.remove(name);
            Heard::Gone(name.clone())
        })
    }
}

fn held(by: u32, one: &Thing) -> Held {
    Held { version: version(one), by: vec![by] }
}

/// Versions are no numbers by contract, and are by all servers that there are; what is none is always news.
fn version(one: &Thing) -> u64 {
    one.version().parse().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, version: u32) -> Thing {
        let meta = json!({"namespace": "a", "name": name, "resourceVersion": version.to_string()});
        Thing::Pod(serde_json::from_value(json!({"metadata": meta})).unwrap())
    }

    fn names(news: &[Heard<Thing>]) -> Vec<String> {
        let text = |one: &Heard<Thing>| match one {
            Heard::All(all) => format!("all {}", all.len()),
            Heard::One(one) => format!("{} {}", one.name(), one.version()),
            Heard::Gone(name) => format!("{name} is gone"),
        };
        news.iter().map(text).collect()
    }

    #[test]
    fn an_object_is_gone_when_no_watch_has_it() {
        let mut shelf = Shelf::default();
        let mut take = |by, heard| names(&shelf.take(by, Kind::Pods, heard));
        assert_eq!(take(1, Heard::All(vec![pod("x", 1), pod("y", 2)])), ["all 2"]);
        assert_eq!(take(2, Heard::All(vec![pod("y", 2), pod("z", 3)])), ["a/y 2", "a/z 3"]);
        assert_eq!(take(1, Heard::Gone("a/y".into())), [""; 0]);
        // What the other watch is late with is no news, and its end is one.
        assert_eq!(take(1, Heard::One(pod("z", 9))), ["a/z 9"]);
        assert_eq!(take(2, Heard::One(pod("z", 4))), [""; 0]);
        assert_eq!(take(2, Heard::All(vec![pod("z", 9)])), ["a/z 9", "a/y is gone"]);
        assert_eq!(names(&shelf.forget(2, Kind::Pods)), [""; 0]);
        assert_eq!(names(&shelf.forget(1, Kind::Pods)), ["a/x is gone", "a/z is gone"]);
        assert_eq!(shelf.count(Kind::Pods), 0);
    }

    #[test]
    fn kinds_are_apart_and_a_version_that_is_no_number_is_always_news() {
        let mut shelf = Shelf::default();
        shelf.take(1, Kind::Pods, Heard::One(pod("x", 5)));
        assert_eq!(names(&shelf.take(1, Kind::Nodes, Heard::All(vec![]))), ["all 0"]);
        let odd = Thing::Pod(serde_json::from_value(json!({"metadata": {"namespace": "a", "name": "x"}})).unwrap());
        assert_eq!(shelf.take(2, Kind::Pods, Heard::One(odd)).len(), 1);
        assert_eq!(shelf.count(Kind::Pods), 1);
    }
}
