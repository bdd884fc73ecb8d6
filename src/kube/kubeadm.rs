//! The Service CIDR of a cluster, from the ConfigMap that kubeadm leaves behind.

use serde_json::Value;

use super::{Client, yaml};
use crate::error::{Context, Error};
use crate::ip::NetPair;
use crate::object::{self, ConfigMap};

impl Client {
    /// The prefixes that Services get their addresses from, for clusters whose configuration does not name them. What stands there and
    /// cannot be used is refused.
    pub fn service_cidr(&self) -> Result<NetPair, Error> {
        let config: ConfigMap = self.get(&object::path::<ConfigMap>("kube-system", "kubeadm-config"))?;
        service_cidr(&config).map_err(Error::refused).context(|| "configmap kube-system/kubeadm-config")
    }
}

/// `MasterConfiguration` is what the key was called before Kubernetes 1.12.
fn service_cidr(config: &ConfigMap) -> Result<NetPair, Error> {
    for key in ["ClusterConfiguration", "MasterConfiguration"] {
        if let Some(text) = config.data.get(key) {
            return yaml::parse(text).and_then(|value| service_subnet(&value)).context(|| key);
        }
    }
    Err(Error::malformed("no ClusterConfiguration in it: set service_cidr"))
}

fn service_subnet(config: &Value) -> Result<NetPair, Error> {
    let text = config["networking"]["serviceSubnet"].as_str();
    let text = text.ok_or_else(|| Error::malformed("no networking.serviceSubnet in it: set service_cidr"))?;
    let mut nets = NetPair::default();
    for part in text.split(',').map(str::trim) {
        let twice = match part.parse() {
            Ok(ipnet::IpNet::V4(net)) => nets.v4.replace(net.trunc()).is_some(),
            Ok(ipnet::IpNet::V6(net)) => nets.v6.replace(net.trunc()).is_some(),
            Err(_) => return Err(Error::malformed(format!("serviceSubnet: {part:?} is not a prefix"))),
        };
        if twice {
            return Err(Error::malformed(format!("serviceSubnet {text:?} names one family twice")));
        }
    }
    Ok(nets)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(key: &str, text: &str) -> String {
        let mut config = ConfigMap::default();
        config.data.insert(key.into(), text.into());
        service_cidr(&config).map_or_else(|e| e.to_string(), |nets| nets.to_string())
    }

    #[test]
    fn the_service_cidr_is_read_from_what_kubeadm_wrote() {
        let text = "apiVersion: kubeadm.k8s.io/v1beta3\nnetworking:\n  dnsDomain: cluster.local\n  serviceSubnet: 172.21.0.0/20\n";
        assert_eq!(of("ClusterConfiguration", text), "172.21.0.0/20");
        let text = "networking: {serviceSubnet: \"172.21.0.0/20,fc00::/112\"}";
        assert_eq!(of("MasterConfiguration", text), "172.21.0.0/20,fc00::/112");
    }

    #[test]
    fn a_missing_or_broken_service_cidr_is_told() {
        assert_eq!(of("Other", ""), "no ClusterConfiguration in it: set service_cidr");
        assert_eq!(
            of("ClusterConfiguration", "networking: {}"),
            "ClusterConfiguration: no networking.serviceSubnet in it: set service_cidr"
        );
        assert_eq!(
            of("ClusterConfiguration", "networking: {serviceSubnet: '10.0.0.0/33'}"),
            "ClusterConfiguration: serviceSubnet: \"10.0.0.0/33\" is not a prefix"
        );
        assert_eq!(
            of("ClusterConfiguration", "networking: {serviceSubnet: '10.0.0.0/24,10.1.0.0/24'}"),
            "ClusterConfiguration: serviceSubnet \"10.0.0.0/24,10.1.0.0/24\" names one family twice"
        );
    }
}
