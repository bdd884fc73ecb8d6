//! The simulated VPC: real frames, anti-spoofing.
