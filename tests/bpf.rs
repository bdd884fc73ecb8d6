//! eBPF: maps, pins, cgroups, and the programs of `bpf/` on real sockets.

pub mod cell;
mod foreign;
mod load;
pub mod maps;
mod objects;
mod packets;
pub mod policy;
mod sockets;
