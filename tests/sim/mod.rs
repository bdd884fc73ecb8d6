//! The world outside: ECS, VPC and metadata over HTTP, a VPC fabric of namespaces, the Kubernetes API.

pub mod cloud;
pub mod http;
pub mod metadata;
