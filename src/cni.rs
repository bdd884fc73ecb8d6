//! The CNI specification's words: request from environment and stdin, network configuration, result and error per version.
