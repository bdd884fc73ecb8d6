//! All tests are one binary.

mod adopt;
mod architecture;
mod bpf;
mod cli;
mod cloud;
mod datapath;
mod documents;
mod exclusive;
mod fabric;
mod fire;
mod ipvlan;
mod ipvs;
mod kernel;
mod kube;
mod netpol;
mod node;
mod package;
mod page;
mod plugin;
mod policy;
mod runtime;
mod sdk;
mod services;
#[allow(dead_code)]
mod sim;
mod vm;

/// As the policies' oracle knows it, which stands in the sources for their unit tests.
use terway::rules;
