//! The real binary by its three names against the simulator.
