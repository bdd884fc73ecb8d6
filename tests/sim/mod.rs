//! The world outside: ECS, VPC and metadata over HTTP, a VPC fabric of namespaces, the Kubernetes API.

pub mod bolt;
pub mod builds;
pub mod cgroup;
pub mod cloud;
pub mod cluster;
pub mod cni;
pub mod containerd;
pub mod cri;
pub mod damage;
pub mod exposition;
pub mod fabric;
pub mod flood;
pub mod grpc;
mod guards;
pub mod http;
pub mod image;
pub mod kube;
pub mod load;
pub mod machine;
pub mod metadata;
pub mod node;
pub mod ns;
pub mod old;
pub mod skip;
pub mod sweep;
pub mod traffic;
pub mod world;
