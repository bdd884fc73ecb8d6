//! What the cluster's network policies mean for the pods of this node.

pub mod selector;
