//! Who asks for a network: the pod's name, and the attachment (container id and interface) the runtime speaks of.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Namespace and name of a pod, written `namespace/name`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PodName {
    pub namespace: String,
    pub name: String,
}

impl PodName {
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> PodName {
        PodName { namespace: namespace.into(), name: name.into() }
    }
}

/// Stands for a pod that runs and whose name is lost.
pub fn nameless() -> PodName {
    PodName::new("", "")
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What CNI calls an attachment: one interface of one container. The key of everything we keep about a pod's network.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Attachment {
    pub container: String,
    pub ifname: String,
}

impl Attachment {
    /// A file name that belongs to this attachment alone: `@` cannot be in a container id.
    pub fn file_name(&self) -> String {
        format!("{}@{}", self.container, self.ifname)
    }
}

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.container, self.ifname)
    }
}

/// The sandbox of a pod as the runtime names it: the attachment and where its network namespace is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    pub attachment: Attachment,
    pub netns: PathBuf,
}
