//! Terway: pods get real VPC addresses. The rooms in reading order: words, minds, hands, faces (see `src/README.md`).

// Words: types that everyone speaks. No I/O.
pub mod bolt;
pub mod both;
pub mod chains;
pub mod cluster;
pub mod cni;
pub mod config;
pub mod duration;
pub mod endpoint;
pub mod eni;
pub mod error;
pub mod gather;
pub mod happening;
pub mod heard;
pub mod ip;
pub mod json;
pub mod keys;
pub mod loose;
pub mod maps;
pub mod metrics;
pub mod near;
pub mod netpol;
pub mod object;
pub mod ours;
pub mod peer;
pub mod plan;
pub mod pod;
pub mod rate;
pub mod rpc;
pub mod rules;
mod sent;
pub mod tags;
pub mod uri;
pub mod verdict;

// Minds: values in, values out.
pub mod datapath;
pub mod herald;
pub mod policy;
pub mod pool;
pub mod repair;
pub mod service;
pub mod sizing;

// Hands: each touches one part of the world.
pub mod client;
pub mod cloud;
pub mod kernel;
pub mod kube;

// Faces: the three names of the one binary.
pub mod cli;
pub mod daemon;
pub mod plugin;
