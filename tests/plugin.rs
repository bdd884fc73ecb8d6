//! The real plugin binary against a scripted daemon: bad input of every kind.
