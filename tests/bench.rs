//! `make bench`: our numbers beside those of a peer, in one run.

fn main() {}
