//! The kernel over netlink and procfs, in blocking verbs: look, apply, check, undo.

pub mod netns;
