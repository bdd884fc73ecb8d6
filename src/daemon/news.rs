//! What comes from the API server and what goes there: the watch of this node's pods, and events for people.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use smol::channel::{Receiver, Sender};

use super::node::Input;
use super::pods::Known;
use crate::kube::{Change, Client, Select};
use crate::object::{About, Event, EventType, Pod};
use crate::pool::Notice;

/// After an error the watch is tried again after this long, doubling up to the second figure.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// The same event about the same thing is created again only after this long.
const REPEAT_EVENT: Duration = Duration::from_secs(300);
/// At most this many events are created in a minute; a big outage must not become one for the API server.
const EVENTS_PER_MINUTE: u32 = 60;

/// Follows the pods of this node for as long as somebody listens.
pub fn watch(client: &Client, node: &str, inputs: &Sender<Input>) {
    let select = Select { fields: format!("spec.nodeName={node}"), ..Select::default() };
    let mut pause = RETRY.0;
    for change in client.watch::<Pod>(select) {
        let news = match change {
            Ok(change) => {
                pause = RETRY.0;
                known(change)
            }
            Err(e) => {
                log::warn!("watch of pods: {e}; again in {} s", pause.as_secs());
                thread::sleep(pause + Duration::from_millis(fastrand::u64(..500)));
                pause = (pause * 2).min(RETRY.1);
                continue;
            }
        };
        if let Some(news) = news
            && inputs.send_blocking(Input::Pods(news)).is_err()
        {
            return;
        }
    }
}

fn known(change: Change<Pod>) -> Option<Known> {
    match change {
        Change::Reset(pods) => Some(Known::all(&pods)),
        Change::Set(pod) => Some(Known::one(&pod)),
        Change::Gone(pod) => Some(Known::Gone(pod.name())),
        Change::Bookmark => None,
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
