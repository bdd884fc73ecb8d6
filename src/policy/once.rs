//! Equal values are kept once, however many have them.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

/// So many are kept before any is looked at again.
const FEW: usize = 64;

pub struct Once<T: ?Sized> {
    known: HashSet<Arc<T>>,
    /// From how many on those that nobody has any more are let go.
    enough: usize,
}

impl<T: ?Sized> Default for Once<T> {
    fn default() -> Once<T> {
        Once { known: HashSet::new(), enough: FEW }
    }
}

impl<T: ?Sized + Eq + Hash> Once<T> {
    /// Puts the one that is known in the place of an equal one.
    pub fn share(&mut self, value: &mut Arc<T>) {
        match self.known.get(&**value) {
            Some(known) => value.clone_from(known),
            None => drop(self.known.insert(value.clone())),
        }
        if self.known.len() > self.enough {
            self.known.retain(|one| Arc::strong_count(one) > 1);
            self.enough = FEW.max(2 * self.known.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_become_one_and_go_with_the_last_who_has_them() {
        let mut once = Once::<str>::default();
        let [mut a, mut b]: [Arc<str>; 2] = ["x".into(), "x".into()];
        once.share(&mut a);
        once.share(&mut b);
        assert!(Arc::ptr_eq(&a, &b));
        for n in 0..10 * FEW {
            once.share(&mut n.to_string().into());
        }
        assert!(once.known.len() <= FEW + 1, "{}", once.known.len());
        assert!(once.known.contains("x"));
    }
}
