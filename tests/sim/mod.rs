//! The world outside: ECS, VPC and metadata over HTTP, a VPC fabric of namespaces, the Kubernetes API.

pub mod cni;
pub mod fabric;
pub mod node;
pub mod ns;
pub mod sweep;
pub mod traffic;
