//! The Kubernetes client against the simulated API.
