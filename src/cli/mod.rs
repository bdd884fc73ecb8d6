//! `terway-cli`: for whoever is logged in on a node with a problem.
