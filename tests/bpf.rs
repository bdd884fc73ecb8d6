//! eBPF: maps, pins, cgroups, and the programs of `bpf/` on real sockets.

mod maps;
