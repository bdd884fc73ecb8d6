//! The world outside: ECS, VPC and metadata over HTTP, a VPC fabric of namespaces, the Kubernetes API.

pub mod containerd;
pub mod cri;
pub mod grpc;
pub mod http;
pub mod image;
pub mod ns;
