//! Looks at `argv[0]` and becomes terway, terwayd or terway-cli.

fn main() {}
