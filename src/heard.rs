//! News of the objects of a kind, as a watch tells them.

use crate::cluster::Name;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard<T> {
    /// There are these and no others.
    All(Vec<T>),
    One(T),
    /// The one of this name is gone.
    Gone(Name),
}
