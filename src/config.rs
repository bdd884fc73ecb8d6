//! The daemon's configuration and node facts, parsed once into values that cannot be wrong.
