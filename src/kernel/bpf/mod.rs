//! eBPF: programs of a few instructions that are written here, and objects that clang has made of `bpf/`, with their maps.

pub mod cgroup;
pub mod hooks;
pub mod load;
pub mod map;
pub mod marks;
pub mod monitor;
pub mod pin;
pub mod policy;
mod ring;
pub mod services;
pub mod standing;
mod sys;

pub use marks::{Programs, marks_are_kept};
#[cfg(fuzzing)]
pub(super) use ring::heard;
