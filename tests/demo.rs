//! `make demo`: a small world of network namespaces, and the real binaries at work in it.

fn main() {}
