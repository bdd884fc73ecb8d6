//! Policies and network sets as the API server has them: documents, which the mind reads field by field and refuses with their names.

use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::cluster::Name;
use crate::loose::Loose;
use crate::object::Object;
use crate::object_shape;

/// An object whose fields nobody has looked at yet: as text, which takes a tenth of the memory that its values would, and a list of
/// them is read whole before anybody looks.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    pub name: Name,
    pub version: Box<str>,
    text: Box<str>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Head {
    metadata: Loose<RawMeta>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawMeta {
    namespace: Loose<String>,
    name: Loose<String>,
    resource_version: Loose<String>,
}

object_shape!(Head, RawMeta);

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Document, D::Error> {
        let text: Box<str> = Box::<RawValue>::deserialize(from)?.into();
        let head: Loose<Head> = serde_json::from_slice(text.as_bytes()).map_err(D::Error::custom)?;
        let RawMeta { namespace, name, resource_version } = head.or_default().metadata.or_default();
        let (namespace, name) = (namespace.or_default(), name.or_default());
        let name = if namespace.is_empty() { name } else { format!("{namespace}/{name}") };
        Ok(Document { name: name.into(), version: resource_version.or_default().into(), text })
    }
}

impl Document {
    pub fn body(&self) -> Value {
        serde_json::from_slice(self.text.as_bytes()).unwrap_or_default()
    }
}

/// Where a kind's collection lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Collection {
    pub api: &'static str,
    pub plural: &'static str,
}

impl Collection {
    pub const fn of<T: Object>() -> Collection {
        Collection { api: T::API, plural: T::PLURAL }
    }
}

/// What Calico keeps its objects in, and what its own API server, which shows the same ones, has before them.
const fn calico(plural: &'static str) -> [Collection; 2] {
    let kept = Collection { api: "apis/crd.projectcalico.org/v1", plural };
    [kept, Collection { api: "apis/projectcalico.org/v3", plural }]
}

pub const NETWORK_POLICIES: Collection = Collection { api: "apis/networking.k8s.io/v1", plural: "networkpolicies" };
pub const CLUSTER_POLICIES: Collection =
    Collection { api: "apis/policy.networking.k8s.io/v1alpha2", plural: "clusternetworkpolicies" };
pub const CALICO_POLICIES: [Collection; 2] = calico("networkpolicies");
pub const CALICO_GLOBAL_POLICIES: [Collection; 2] = calico("globalnetworkpolicies");
pub const CALICO_SETS: [Collection; 2] = calico("networksets");
pub const CALICO_GLOBAL_SETS: [Collection; 2] = calico("globalnetworksets");
pub const CALICO_HOST_ENDPOINTS: [Collection; 2] = calico("hostendpoints");

/// Its collection is named by whoever asks for it.
impl Object for Document {
    const API: &'static str = "";
    const PLURAL: &'static str = "";

    fn version(&self) -> &str {
        &self.version
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_has_a_name_whatever_else_is_in_it() {
        let read = |text: &str| serde_json::from_str::<Document>(text).unwrap();
        let policy = read(r#"{"metadata": {"name": "a", "namespace": "b", "resourceVersion": "7"}, "spec": 5}"#);
        assert_eq!((&*policy.name, policy.version(), &policy.body()["spec"]), ("b/a", "7", &Value::from(5)));
        assert_eq!(&*read(r#"{"metadata": {"name": "a"}}"#).name, "a");
        for nameless in ["{}", "[]", "null", r#"{"metadata": [1]}"#, r#"{"metadata": {"name": 5}}"#] {
            assert_eq!(&*read(nameless).name, "", "{nameless}");
        }
    }
}
