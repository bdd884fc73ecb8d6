//! Services and EndpointSlices in the namespace `default`, with all that proxies read of them and nothing else.

use std::net::IpAddr;

use serde_json::{Value, json};

/// A Service of one port, which is called `http`.
pub fn service(name: &str, vip: &str, port: u16) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": name},
        "spec": {
            "type": "ClusterIP", "clusterIP": vip, "clusterIPs": [vip], "sessionAffinity": "None",
            "internalTrafficPolicy": "Cluster",
            "ports": [{"name": "http", "port": port, "targetPort": "http", "protocol": "TCP"}],
        },
    })
}

/// What is behind that port of the Service.
pub fn slice(service: &str, port: u16, endpoints: impl Iterator<Item = Value>) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "namespace": "default", "name": format!("{service}-1"), "labels": {"kubernetes.io/service-name": service},
        },
        "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
        "endpoints": endpoints.collect::<Vec<_>>(),
    })
}

/// One of a slice's, which is ready.
pub fn endpoint(ip: IpAddr, node: &str) -> Value {
    json!({
        "addresses": [ip], "nodeName": node, "conditions": {"ready": true, "serving": true, "terminating": false},
    })
}
