//! The Kubernetes API over HTTP: get, list and watch, create, patch.
