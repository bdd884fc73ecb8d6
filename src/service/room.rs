//! Room in the kernel's arrays: runs of places, and ids that are used again as late as can be.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;

/// The places of an array that are free, as runs: begin, length.
#[derive(Debug)]
pub struct Runs(BTreeMap<u32, u32>);

impl Runs {
    /// All places but those of these runs, which may overlap or reach beyond the end.
    pub fn without(len: u32, mut used: Vec<(u32, u32)>) -> Runs {
        used.sort_unstable();
        let (mut free, mut at) = (BTreeMap::new(), 0);
        for (begin, count) in used.into_iter().chain([(len, 0)]) {
            let begin = begin.min(len);
            if begin > at {
                free.insert(at, begin - at);
            }
            at = at.max(begin.saturating_add(count));
        }
        Runs(free)
    }

    /// The first run that holds so many; its begin.
    pub fn take(&mut self, count: u32) -> Option<u32> {
        let (begin, len) = self.0.iter().find(|(_, len)| **len >= count).map(|(begin, len)| (*begin, *len))?;
        self.0.remove(&begin);
        if len > count {
            self.0.insert(begin + count, len - count);
        }
        Some(begin)
    }

    pub fn give(&mut self, mut begin: u32, mut count: u32) {
        if count == 0 {
            return;
        }
        if let Some((before, len)) = self.0.range(..begin).next_back().map(|(b, l)| (*b, *l))
            && before + len == begin
        {
            self.0.remove(&before);
            (begin, count) = (before, count + len);
        }
        if let Some(len) = self.0.remove(&(begin + count)) {
            count += len;
        }
        self.0.insert(begin, count);
    }
}

/// Ids from 1 on: those that were given back last are the last to be taken again.
#[derive(Debug)]
pub struct Ids {
    fresh: Range<u32>,
    given: VecDeque<u32>,
}

impl Ids {
    /// All below `end` but these.
    pub fn without(end: u32, used: &BTreeSet<u32>) -> Ids {
        let last = used.last().map_or(0, |last| *last);
        let given = (1..last.min(end)).filter(|id| !used.contains(id)).collect();
        Ids { fresh: last + 1..end.max(last + 1), given }
    }

    pub fn len(&self) -> usize {
        self.fresh.len() + self.given.len()
    }

    pub fn take(&mut self) -> Option<u32> {
        self.fresh.next().or_else(|| self.given.pop_front())
    }

    pub fn give(&mut self, id: u32) {
        self.given.push_back(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(runs: &Runs) -> Vec<(u32, u32)> {
        runs.0.iter().map(|(begin, len)| (*begin, *len)).collect()
    }

    #[test]
    fn what_is_not_used_is_free() {
        assert_eq!(runs(&Runs::without(10, vec![])), [(0, 10)]);
        assert_eq!(runs(&Runs::without(10, vec![(2, 3), (0, 1), (4, 2), (8, 100)])), [(1, 1), (6, 2)]);
        assert_eq!(runs(&Runs::without(10, vec![(50, 1), (0, 10)])), []);
        assert_eq!(runs(&Runs::without(10, vec![(3, u32::MAX)])), [(0, 3)]);
    }

    #[test]
    fn neighbours_that_are_free_become_one_run() {
        let mut free = Runs::without(10, vec![]);
        assert_eq!((free.take(3), free.take(3), free.take(3), free.take(3)), (Some(0), Some(3), Some(6), None));
        free.give(0, 3);
        free.give(6, 3);
        assert_eq!(runs(&free), [(0, 3), (6, 4)]);
        assert_eq!(free.take(4), Some(6));
        free.give(6, 4);
        free.give(3, 3);
        assert_eq!(runs(&free), [(0, 10)]);
    }

    #[test]
    fn an_id_rests_as_long_as_can_be() {
        let mut ids = Ids::without(6, &BTreeSet::from([1, 3]));
        assert_eq!(ids.len(), 3);
        assert_eq!(ids.take(), Some(4));
        ids.give(4);
        ids.give(3);
        assert_eq!([0; 5].map(|_| ids.take()), [Some(5), Some(2), Some(4), Some(3), None]);
        assert_eq!(Ids::without(3, &BTreeSet::from([7])).len(), 2);
    }
}
