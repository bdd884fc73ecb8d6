//! A real containerd calls the real binary.
