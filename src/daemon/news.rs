//! What comes from the API server and what goes there: watches of this node and of its pods, and events for people.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use smol::channel::{Receiver, Sender};

use super::layers::NodeConfig;
use super::node::Input;
use super::pods::Known;
use crate::error::Error;
use crate::kube::{Change, Client, Select, Stop, Watch};
use crate::object::{self, About, ConfigMap, Event, EventType, Node, Object, Pod};
use crate::pool::Notice;

/// After an error the watch is tried again after this long, doubling up to the second figure.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// The same event about the same thing is created again only after this long.
const REPEAT_EVENT: Duration = Duration::from_secs(300);
/// At most this many events are created in a minute; a big outage must not become one for the API server.
const EVENTS_PER_MINUTE: u32 = 60;

/// Follows the pods of this node for as long as somebody listens.
pub fn watch_pods(client: &Client, node: &str, inputs: &Sender<Input>) {
    let select = Select { fields: format!("spec.nodeName={node}"), ..Select::default() };
    follow::<Pod>(client.watch(select), "pods", inputs, |change| {
        Some(Input::Pods(match change {
            Change::Reset(pods) => Known::all(&pods),
            Change::Set(pod) => Known::one(&pod),
            Change::Gone(pod) => Known::Gone(pod.name()),
            Change::Bookmark => return None,
        }))
    });
}

/// Follows our own node object, which others write too: kubelet, people, cloud controllers.
pub fn watch_node(client: &Client, node: &str, inputs: &Sender<Input>) {
    let select = Select { fields: format!("metadata.name={node}"), ..Select::default() };
    follow::<Node>(client.watch(select), "the node", inputs, |change| {
        Some(Input::OwnNode(match change {
            Change::Reset(nodes) => nodes.into_iter().next().map(Box::new),
            Change::Set(node) => Some(Box::new(node)),
            Change::Gone(_) => None,
            Change::Bookmark => return None,
        }))
    });
}

/// Follows one ConfigMap until it is told to stop.
pub fn watch_config(client: &Client, namespace: &str, name: String, inputs: Sender<Input>) -> Stop {
    let select = Select { namespace: namespace.into(), fields: format!("metadata.name={name}"), ..Select::default() };
    let watch = client.watch::<ConfigMap>(select);
    let stop = watch.stopper();
    thread::spawn(move || {
        follow(watch, &format!("configmap {name}"), &inputs, |change| {
            let found = match change {
                Change::Reset(maps) => maps.into_iter().next().map(Box::new),
                Change::Set(map) => Some(Box::new(map)),
                Change::Gone(_) => None,
                Change::Bookmark => return None,
            };
            Some(Input::NodeConfig { name: name.clone(), found })
        })
    });
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

/// Lists and watches until nobody listens any more; `input` says what a change is to the loop, if anything.
pub fn follow<T: Object>(
    watch: Watch<T>,
    what: &str,
    inputs: &Sender<Input>,
    input: impl Fn(Change<T>) -> Option<Input>,
) {
    let mut pause = RETRY.0;
    for change in watch {
        match change {
            Ok(change) => {
                pause = RETRY.0;
                if let Some(news) = input(change)
                    && inputs.send_blocking(news).is_err()
                {
                    return;
                }
            }
            Err(e) => {
                log::warn!("watch of {what}: {e}; again in {} s", pause.as_secs());
                thread::sleep(pause + Duration::from_millis(fastrand::u64(..500)));
                pause = (pause * 2).min(RETRY.1);
            }
        }
    }
}

/// Creates events for as long as somebody tells: each once in a while, and not too many.
pub fn report(client: &Client, node: &str, notices: &Receiver<(Notice, String)>) {
    let mut said = BTreeMap::new();
    let mut minute = (Instant::now(), 0);
    while let Ok((notice, uid)) = notices.recv_blocking() {
        let now = Instant::now();
        said.retain(|_, at| now.duration_since(*at) < REPEAT_EVENT);
        if now.duration_since(minute.0) >= Duration::from_secs(60) {
            minute = (now, 0);
        }
        let key = (notice.pod.clone(), notice.reason, notice.message.clone());
        if minute.1 >= EVENTS_PER_MINUTE || said.contains_key(&key) {
            continue;
        }
        minute.1 += 1;
        said.insert(key, now);
        if let Err(e) = create(client, node, &notice, &uid) {
            log::warn!("event {}: {e}", notice.reason);
        }
    }
}

fn create(client: &Client, node: &str, notice: &Notice, uid: &str) -> Result<(), crate::error::Error> {
    let about = match &notice.pod {
        Some(pod) => About::pod(pod, uid),
        None => About::node(node),
    };
    let kind = if notice.warning { EventType::Warning } else { EventType::Normal };
    let event = Event::new(about, node, kind, notice.reason, &notice.message, SystemTime::now());
    client.create(&event.path(), &event)
}
