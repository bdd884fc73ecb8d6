//! What comes from the API server and what goes there: watches of this node and of its pods, and what the herald writes.

use std::fmt;
use std::thread;
use std::time::{Duration, SystemTime};

use smol::channel::Sender;

use super::layers::NodeConfig;
use super::node::Input;
use super::pods::{self, Known};
use super::policy::{Ear, News};
use super::threads;
use crate::cluster::Name;
use crate::config::NodeFacts;
use crate::error::{Cause, Error};
use crate::heard::Heard;
use crate::herald::Outcome;
use crate::ip::NetPair;
use crate::kube::{Change, Client, Select, Stop, Watch};
use crate::object::{self, About, ConfigMap, Event, EventType, Node, Object, Write};
use crate::peer::Own;
use crate::pod::PodName;
use crate::pool::Notice;

/// After an error the watch is tried again after this long, doubling up to the second figure.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Follows the pods of this node until it is told to stop, or nobody listens any more. Policies hear of them too.
pub fn watch_pods(client: &Client, node: &str, inputs: Sender<Input>, ear: Ear) -> Stop {
    let select = Select { fields: format!("spec.nodeName={node}"), ..Select::default() };
    watch(client.watch::<Own>(select).keeping(pods::kept), "pods".into(), inputs, move |change| {
        let (known, own) = match change {
            Change::Reset(all) => {
                let (known, own) = all.into_iter().unzip();
                (Known::All(known), Heard::All(own))
            }
            Change::Set(((name, seen), own)) => (Known::One(name, seen), Heard::One(own)),
            Change::Gone(((name, _), own)) => (Known::Gone(name), Heard::Gone(own.name)),
            Change::Bookmark => return None,
        };
        ear.tell(News::Own(own));
        Some(Input::Pods(known))
    })
}

/// Follows our own node object, which others write too: kubelet, people, cloud controllers.
pub fn watch_node(client: &Client, node: &str, inputs: Sender<Input>) -> Stop {
    let select = Select { fields: format!("metadata.name={node}"), ..Select::default() };
    watch(client.watch::<Node>(select), "the node".into(), inputs, |change| {
        Some(Input::OwnNode(match change {
            Change::Reset(nodes) => nodes.into_iter().next().map(Box::new),
            Change::Set(node) => Some(Box::new(node)),
            Change::Gone(_) => None,
            Change::Bookmark => return None,
        }))
    })
}

/// Follows one ConfigMap until it is told to stop.
pub fn watch_config(client: &Client, namespace: &str, name: String, inputs: Sender<Input>) -> Stop {
    let select = Select { namespace: namespace.into(), fields: format!("metadata.name={name}"), ..Select::default() };
    watch(client.watch::<ConfigMap>(select), format!("configmap {name}"), inputs, move |change| {
        let found = match change {
            Change::Reset(maps) => maps.into_iter().next().map(Box::new),
            Change::Set(map) => Some(Box::new(map)),
            Change::Gone(_) => None,
            Change::Bookmark => return None,
        };
        Some(Input::NodeConfig { name: name.clone(), found })
    })
}

/// Follows on a thread of its own.
fn watch<T: Object + 'static, K: 'static>(
    watch: Watch<T, K>,
    what: String,
    inputs: Sender<Input>,
    input: impl Fn(Change<K>) -> Option<Input> + Send + 'static,
) -> Stop {
    let stop = watch.stopper();
    let tell = move |change| input(change).is_none_or(|news| inputs.send_blocking(news).is_ok());
    threads::start(move || _ = follow(watch, &what, |_| false, tell));
    stop
}

/// What a ConfigMap says for the node, where its label names one that exists.
pub fn node_config(client: &Client, node: &str) -> Result<Option<NodeConfig>, Error> {
    let Some(node) = there(client.get::<Node>(&object::path::<Node>("", node)))? else { return Ok(None) };
    let Some(name) = node.config_name() else { return Ok(None) };
    let map = there(client.get::<ConfigMap>(&object::path::<ConfigMap>(&own_namespace(), name)))?;
    map.map(|map| NodeConfig::of(&map)).transpose()
}

/// Whether the node's label wants an ENI for each pod.
pub fn has_whole_enis(client: &Client, node: &str) -> Result<bool, Error> {
    let node = there(client.get::<Node>(&object::path::<Node>("", node)))?;
    Ok(node.is_some_and(|node| node.has_whole_enis()))
}

/// Where Services have their addresses as kubeadm has left it, where it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kubeadms {
    /// The prefixes that can be gone by.
    pub nets: NetPair,
    /// Why there are none, or not all that it has left.
    pub lack: Option<Lack>,
}

/// Why nobody can go by what kubeadm has left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lack {
    Unsaid,
    /// It cannot be read, or may not be.
    Unread(String),
    /// The VPC has the same addresses: the key would be refused for them.
    Overlap(String),
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Lack::Unsaid => f.write_str("kubeadm has not left it"),
            Lack::Unread(why) => write!(f, "what kubeadm has left is of no use: {why}"),
            Lack::Overlap(what) => write!(f, "kubeadm's {what}"),
        }
    }
}

impl Kubeadms {
    fn lacking(lack: Lack) -> Kubeadms {
        Kubeadms { nets: NetPair::default(), lack: Some(lack) }
    }

    fn beside_vpc(nets: &NetPair, facts: &NodeFacts) -> Kubeadms {
        let (nets, overlaps) = facts.room_among(nets);
        Kubeadms { nets, lack: (!overlaps.is_empty()).then(|| Lack::Overlap(overlaps.join(", and "))) }
    }
}

/// Asks where Services have their addresses, for a configuration that does not say it. An error is one that may pass.
pub fn kubeadms_services(client: &Client, facts: &NodeFacts) -> Result<Kubeadms, Error> {
    let found = match there(client.service_cidr()) {
        Ok(Some(nets)) => Kubeadms::beside_vpc(&nets, facts),
        Ok(None) => Kubeadms::lacking(Lack::Unsaid),
        Err(e) if e.is_forbidden() || matches!(e.cause, Cause::Refused(_)) => {
            Kubeadms::lacking(Lack::Unread(e.to_string()))
        }
        Err(e) => return Err(e),
    };
    match &found.lack {
        Some(Lack::Unsaid) => log::info!("service_cidr is not set, and {}", Lack::Unsaid),
        Some(lack) => log::warn!("service_cidr is not set, and {lack}"),
        None => {}
    }
    if !found.nets.is_empty() {
        log::info!("service_cidr is not set, and kubeadm has left {}", found.nets);
    }
    Ok(found)
}

fn there<T>(found: Result<T, Error>) -> Result<Option<T>, Error> {
    match found {
        Ok(object) => Ok(Some(object)),
        Err(e) if e.is_absent() => Ok(None),
        Err(e) => Err(e),
    }
}

/// The namespace that ConfigMaps for nodes are in.
pub fn own_namespace() -> String {
    std::env::var("POD_NAMESPACE").ok().filter(|name| !name.is_empty()).unwrap_or_else(|| "kube-system".into())
}

/// Why a watch was followed no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Unheard,
    /// An error that trying again does not help.
    Over,
}

/// Lists and watches for as long as `hear` wants to hear more, over all errors but those that are final.
pub fn follow<K>(
    watch: impl Iterator<Item = Result<Change<K>, Error>>,
    what: &str,
    is_final: impl Fn(&Error) -> bool,
    mut hear: impl FnMut(Change<K>) -> bool,
) -> End {
    let mut pause = RETRY.0;
    for change in watch {
        match change {
            Ok(change) => {
                pause = RETRY.0;
                if !hear(change) {
                    return End::Unheard;
                }
            }
            Err(e) if is_final(&e) => return End::Over,
            Err(e) => {
                log::warn!("watch of {what}: {e}; again in {} s", pause.as_secs());
                thread::sleep(pause + Duration::from_millis(fastrand::u64(..500)));
                pause = (pause * 2).min(RETRY.1);
            }
        }
    }
    End::Unheard
}

/// What a watch tells, where those who hear it know objects by name; none of how far it has come.
pub fn heard<K>(change: Change<K>, name: impl FnOnce(&K) -> Name) -> Option<Heard<K>> {
    match change {
        Change::Reset(all) => Some(Heard::All(all)),
        Change::Set(one) => Some(Heard::One(one)),
        Change::Gone(one) => Some(Heard::Gone(name(&one))),
        Change::Bookmark => None,
    }
}

/// Writes to the API server and sorts the answer.
pub fn carry_out(client: &Client, write: &Write) -> Outcome {
    client.carry_out(write).map_or_else(|e| outcome(write, &e), |()| Outcome::Done)
}

/// What became of what was not simply done.
fn outcome(write: &Write, e: &Error) -> Outcome {
    match &e.cause {
        Cause::Absent => Outcome::Gone,
        // It was made by an attempt whose answer never came: names are given once.
        Cause::Http { status: 409, .. } if matches!(write, Write::Create { .. }) => Outcome::Done,
        Cause::Http { status: 403, body } if body.contains("is being terminated") => {
            log::debug!("{e}");
            Outcome::Refused
        }
        Cause::Http { status: 403, .. } => {
            log::warn!("{e}; grant what cni-conf/rbac.yaml lists");
            Outcome::Refused
        }
        // Too many requests, a conflict, a credential that is being replaced: the same may succeed later.
        Cause::Http { status: 401 | 408 | 409 | 429, .. } => {
            log::warn!("{e}");
            Outcome::Unanswered
        }
        Cause::Http { status: 400..=499, .. } => {
            log::warn!("{e}");
            Outcome::Refused
        }
        _ => {
            log::warn!("{e}");
            Outcome::Unanswered
        }
    }
}

/// A notice as a line of the log.
pub fn log(notice: &Notice) {
    let about = notice.pod.as_ref().map_or("node".to_owned(), PodName::to_string);
    let level = if notice.warning { log::Level::Warn } else { log::Level::Info };
    log::log!(level, "{about}: {}: {}", notice.reason, notice.message);
}

/// A notice as an event; `uid` is the pod's.
pub fn event(notice: &Notice, uid: &str, node: &str) -> Event {
    let about = notice.pod.as_ref().map_or_else(|| About::node(node), |pod| About::pod(pod, uid));
    let r#type = if notice.warning { EventType::Warning } else { EventType::Normal };
    Event::new(about, node, r#type, notice.reason, &notice.message, SystemTime::now())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::object::Patch;

    #[test]
    fn what_was_made_by_an_attempt_without_an_answer_is_made() {
        let (path, body) = (String::from("/api/v1/namespaces/default/events"), json!({}));
        let create = Write::Create { path: path.clone(), body: body.clone() };
        let patch = Write::Patch { path, patch: Patch::Merge, body };
        let said =
            |write: &Write, status, body: &str| outcome(write, &Error::new(Cause::Http { status, body: body.into() }));
        assert_eq!(said(&create, 409, "events \"web.1\" already exists"), Outcome::Done);
        assert_eq!(said(&patch, 409, "the object has been modified"), Outcome::Unanswered);
        assert_eq!(said(&create, 403, "namespace a is being terminated"), Outcome::Refused);
        assert_eq!(said(&create, 422, "invalid"), Outcome::Refused);
        for status in [401, 408, 429, 500, 503] {
            assert_eq!(said(&create, status, ""), Outcome::Unanswered, "{status}");
        }
    }
}
