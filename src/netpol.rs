//! Policies and network sets as the API server has them: documents, which the mind reads field by field and refuses with their names.

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::cluster::Name;
use crate::object::Object;

/// An object whose fields nobody has looked at yet.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    pub name: Name,
    pub version: Box<str>,
    pub body: Value,
}

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Document, D::Error> {
        let body = Value::deserialize(from)?;
        let text = |key: &str| body["metadata"][key].as_str().unwrap_or_default();
        let name = match text("namespace") {
            "" => text("name").into(),
            namespace => format!("{namespace}/{}", text("name")).into(),
        };
        Ok(Document { name, version: text("resourceVersion").into(), body })
    }
}

macro_rules! kinds {
    ($($name:ident: $api:literal $plural:literal),+ $(,)?) => {$(
        #[derive(Debug, Clone, PartialEq, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Document);

        impl Object for $name {
            const API: &'static str = $api;
            const PLURAL: &'static str = $plural;

            fn version(&self) -> &str {
                &self.0.version
            }
        }
    )+};
}

kinds! {
    NetworkPolicy: "apis/networking.k8s.io/v1" "networkpolicies",
    ClusterNetworkPolicy: "apis/policy.networking.k8s.io/v1alpha2" "clusternetworkpolicies",
    CalicoNetworkPolicy: "apis/crd.projectcalico.org/v1" "networkpolicies",
    CalicoGlobalNetworkPolicy: "apis/crd.projectcalico.org/v1" "globalnetworkpolicies",
    CalicoNetworkSet: "apis/crd.projectcalico.org/v1" "networksets",
    CalicoGlobalNetworkSet: "apis/crd.projectcalico.org/v1" "globalnetworksets",
    CalicoHostEndpoint: "apis/crd.projectcalico.org/v1" "hostendpoints",
    NetworkPolicyV3: "apis/projectcalico.org/v3" "networkpolicies",
    GlobalNetworkPolicyV3: "apis/projectcalico.org/v3" "globalnetworkpolicies",
    NetworkSetV3: "apis/projectcalico.org/v3" "networksets",
    GlobalNetworkSetV3: "apis/projectcalico.org/v3" "globalnetworksets",
    HostEndpointV3: "apis/projectcalico.org/v3" "hostendpoints",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_has_a_name_whatever_else_is_in_it() {
        let read = |text: &str| serde_json::from_str::<NetworkPolicy>(text).unwrap();
        let policy = read(r#"{"metadata": {"name": "a", "namespace": "b", "resourceVersion": "7"}, "spec": 5}"#);
        assert_eq!((&*policy.0.name, policy.version(), &policy.0.body["spec"]), ("b/a", "7", &Value::from(5)));
        assert_eq!(&*read(r#"{"metadata": {"name": "a"}}"#).0.name, "a");
        for nameless in ["{}", "[]", "null", r#"{"metadata": [1]}"#, r#"{"metadata": {"name": 5}}"#] {
            assert_eq!(&*read(nameless).0.name, "", "{nameless}");
        }
    }
}
