//! The fields we read of Kubernetes objects.
