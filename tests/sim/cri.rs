//! The part of the Kubernetes Container Runtime Interface that a kubelet uses to run a pod, field number by field number.
//!
//! The numbers are those of `k8s.io/cri-api/pkg/apis/runtime/v1/api.proto`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use terway::pod::PodName;

use super::grpc::{self, Fields, Message, Status};

/// Longer than containerd takes for anything, also while a plugin makes it wait.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a kubelet tells the runtime about a pod.
#[derive(Debug, Clone)]
pub struct Pod {
    pub name: PodName,
    pub uid: String,
    pub annotations: Vec<(String, String)>,
    /// TCP ports: on the node, in the pod.
    pub ports: Vec<(u16, u16)>,
}

impl Pod {
    pub fn new(namespace: &str, name: &str, uid: &str) -> Pod {
        let name = PodName::new(namespace, name);
        Pod { name, uid: uid.into(), annotations: Vec::new(), ports: Vec::new() }
    }
}

/// A running sandbox, with the configuration that its containers must be created with.
#[derive(Debug, Clone)]
pub struct Sandbox {
    pub id: String,
    pub ips: Vec<IpAddr>,
    config: Message,
}

/// A sandbox as the runtime lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub id: String,
    pub pod: PodName,
    pub ready: bool,
}

/// What a command did inside a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// A runtime that listens at a socket.
#[derive(Debug, Clone)]
pub struct Cri {
    pub socket: PathBuf,
    /// The top-level cgroup that is to hold all pods.
    pub cgroup: String,
}

impl Cri {
    /// `RunPodSandbox`, then `PodSandboxStatus` for the addresses, as a kubelet does.
    pub fn run_pod_sandbox(&self, pod: &Pod) -> Result<Sandbox, Status> {
        let config = sandbox_config(pod, &self.cgroup);
        let reply = self.call("RunPodSandbox", &Message::default().message(1, &config))?;
        let id = Fields::new(&reply).text(1);
        Ok(Sandbox { ips: self.ips(&id)?, id, config })
    }

    pub fn ips(&self, sandbox: &str) -> Result<Vec<IpAddr>, Status> {
        let reply = self.call("PodSandboxStatus", &Message::default().text(1, sandbox))?;
        let network = Fields::new(&reply).message(1).message(5);
        let more = network.messages(2).map(|ip| ip.text(1));
        let all = [network.text(1)].into_iter().chain(more).filter(|ip| !ip.is_empty());
        Ok(all.map(|ip| ip.parse().expect("a pod address")).collect())
    }

    /// `CreateContainer` and `StartContainer`; the id of the container.
    pub fn run_container(
        &self,
        sandbox: &Sandbox,
        name: &str,
        image: &str,
        command: &[&str],
    ) -> Result<String, Status> {
        let config = Message::default()
            .message(1, &Message::default().text(1, name))
            .message(2, &Message::default().text(1, image))
            .texts(3, command)
            .message(15, &Message::default());
        let create = Message::default().text(1, &sandbox.id).message(2, &config).message(3, &sandbox.config);
        let id = Fields::new(&self.call("CreateContainer", &create)?).text(1);
        self.call("StartContainer", &Message::default().text(1, &id))?;
        Ok(id)
    }

    pub fn exec_sync(&self, container: &str, command: &[&str], limit: Duration) -> Result<Output, Status> {
        let request = Message::default().text(1, container).texts(2, command).number(3, limit.as_secs());
        let reply = self.call("ExecSync", &request)?;
        let fields = Fields::new(&reply);
        Ok(Output { code: fields.number(3) as i32, stdout: fields.text(1), stderr: fields.text(2) })
    }

    pub fn stop_pod_sandbox(&self, sandbox: &str) -> Result<(), Status> {
        self.call("StopPodSandbox", &Message::default().text(1, sandbox)).map(drop)
    }

    pub fn remove_pod_sandbox(&self, sandbox: &str) -> Result<(), Status> {
        self.call("RemovePodSandbox", &Message::default().text(1, sandbox)).map(drop)
    }

    pub fn list_pod_sandboxes(&self) -> Result<Vec<Listed>, Status> {
        let reply = self.call("ListPodSandbox", &Message::default())?;
        Ok(Fields::new(&reply).messages(1).map(listed).collect())
    }

    /// Whether the runtime would take pods: `Err` with its reason if the network plugin is not ready yet.
    pub fn network_ready(&self) -> Result<(), Status> {
        let reply = self.call("Status", &Message::default())?;
        let conditions = Fields::new(&reply).message(1);
        let network = conditions.messages(1).find(|condition| condition.text(1) == "NetworkReady");
        match network {
            Some(condition) if condition.number(2) == 1 => Ok(()),
            Some(condition) => Err(Status { code: 9, message: condition.text(4) }),
            None => Err(Status { code: 9, message: "the runtime has no condition NetworkReady".into() }),
        }
    }

    /// Succeeds as soon as the runtime serves at all, with or without a network.
    pub fn version(&self) -> Result<String, Status> {
        let reply = self.call("Version", &Message::default())?;
        let fields = Fields::new(&reply);
        Ok(format!("{} {}", fields.text(2), fields.text(3)))
    }

    fn call(&self, method: &str, request: &Message) -> Result<Vec<u8>, Status> {
        grpc::call(&self.socket, &format!("/runtime.v1.RuntimeService/{method}"), request, PATIENCE)
    }
}

fn sandbox_config(pod: &Pod, cgroup: &str) -> Message {
    let metadata = Message::default().text(1, &pod.name.name).text(2, &pod.uid).text(3, &pod.name.namespace);
    let mut config = Message::default().message(1, &metadata).text(2, &pod.name.name);
    for (node, inside) in &pod.ports {
        let port = Message::default().number(2, u64::from(*inside)).number(3, u64::from(*node));
        config = config.message(5, &port);
    }
    for (key, value) in &pod.annotations {
        config = config.entry(7, key, value);
    }
    config.message(8, &Message::default().text(1, &format!("/{cgroup}")))
}

fn listed(sandbox: Fields) -> Listed {
    let metadata = sandbox.message(2);
    Listed { id: sandbox.text(1), pod: PodName::new(metadata.text(3), metadata.text(1)), ready: sandbox.number(3) == 0 }
}
