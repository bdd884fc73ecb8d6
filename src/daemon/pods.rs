//! The pods of this node as the watch tells of them: which are ours to serve, and since when one is gone.

use std::collections::{BTreeMap, BTreeSet};

use crate::gather::Gather;
use crate::object::{self, Pod};
use crate::peer::{self, Own};
use crate::pod::{PodName, nameless};
use crate::pool::Now;
use crate::rate::{Both, Told};

/// The annotation of a pod that shall have its address again though nobody of a stateful kind has made it.
const KEEPS_IP: &str = "k8s.aliyun.com/pod-ip-reservation";
/// The uid that the kubelet gives a pod of a file of its own (a static pod), of which the API server holds a mirror with another uid.
const MIRRORED: &str = "kubernetes.io/config.hash";

/// News of the node's pods, cut down to what we keep.
#[derive(Debug)]
pub enum Known {
    /// The whole list: what is not in it is gone.
    All(Vec<(PodName, Seen)>),
    One(PodName, Seen),
    Gone(PodName),
}

/// What a pod is to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// It needs an address from us.
    Ours,
    /// On the host network, or labelled to be ignored.
    NotOurs,
    /// Succeeded or failed: it will not run again.
    Over,
}

/// What is kept of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub presence: Presence,
    /// The kinds of its owners, lower case, and whether it says itself that it shall have its address again.
    pub owners: Vec<String>,
    pub keeps_ip: bool,
    /// Events name it, or `kubectl describe` does not show them.
    pub uid: String,
    pub mirrored: Option<String>,
    /// It wants an ENI to itself.
    pub whole: bool,
    /// What its annotation says of its addresses.
    pub ips: Option<String>,
    /// The bandwidth that its annotations ask for.
    pub bandwidth: Both<Told>,
}

#[derive(Default)]
pub struct Pods {
    known: BTreeMap<PodName, Seen>,
    /// When each was first missed, and whether the API server confirmed that it does not exist.
    gone: BTreeMap<PodName, (Now, bool)>,
    /// When the first whole list came.
    synced: Option<Now>,
    /// A list of this node's pods had one: the node's name is right.
    named: bool,
    /// Pods that are new, or whose annotations ask for another bandwidth than before.
    reshaped: BTreeSet<PodName>,
}

/// How a pod that holds a lease stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Present,
    /// Not seen since; the API server has not been asked about it.
    Missed(Now),
    /// The API server says that it does not exist, or that it is over.
    Gone(Now),
}

/// What is kept of an object of the watch: to us, and as policies see it.
pub type Kept = ((PodName, Seen), peer::Pod);

pub fn kept(own: Own) -> Kept {
    ((own.served.name(), seen(&own.served)), own.seen)
}

fn seen(pod: &Pod) -> Seen {
    let owners = pod.meta.owner_references.iter().map(|owner| owner.kind.to_lowercase()).collect();
    let keeps_ip = pod.meta.annotations.get(KEEPS_IP).is_some_and(|value| value == "true");
    let bandwidth = Both::read(&pod.meta.annotations);
    let ips = pod.meta.annotations.get(object::POD_IPS).cloned();
    let (uid, mirrored) = (pod.meta.uid.clone(), pod.meta.annotations.get(MIRRORED).cloned());
    let whole = pod.wants_whole_eni();
    Seen { presence: presence(pod), owners, keeps_ip, uid, mirrored, whole, ips, bandwidth }
}

fn presence(pod: &Pod) -> Presence {
    if pod.is_over() {
        Presence::Over
    } else if pod.is_ours() {
        Presence::Ours
    } else {
        Presence::NotOurs
    }
}

impl Pods {
    pub fn take(&mut self, news: Known, now: Now) {
        match news {
            Known::All(list) => {
                self.synced.get_or_insert(now);
                self.named |= !list.is_empty();
                let here: BTreeSet<&PodName> = list.iter().map(|(name, _)| name).gather();
                for (name, _) in self.known.extract_if(.., |name, _| !here.contains(name)) {
                    self.gone.insert(name, (now, false));
                }
                for (name, seen) in list {
                    self.set(name, seen, now);
                }
            }
            Known::One(name, seen) => self.set(name, seen, now),
            Known::Gone(name) => {
                self.known.remove(&name);
                self.gone.insert(name, (now, false));
            }
        }
    }

    /// One that is over may still have containers that end: it counts from now on as gone.
    fn set(&mut self, name: PodName, seen: Seen, now: Now) {
        if seen.presence == Presence::Over {
            self.gone.entry(name.clone()).or_insert((now, true)).1 = true;
        } else {
            self.gone.remove(&name);
        }
        let as_before = |old: &Seen| old.uid == seen.uid && old.bandwidth == seen.bandwidth;
        if !self.known.get(&name).is_some_and(as_before) {
            self.reshaped.insert(name.clone());
        }
        self.known.insert(name, seen);
    }

    /// A pod that was fetched before the watch told of it.
    pub fn learn(&mut self, pod: Own, now: Now) -> Presence {
        let ((name, seen), _) = kept(pod);
        let presence = seen.presence;
        self.set(name, seen, now);
        presence
    }

    /// Another pod of this name, on another node. With a wrong name for our own node all pods would look so.
    pub fn is_elsewhere(&self, pod: &Pod, node: &str) -> bool {
        self.named && pod.spec.node_name != node
    }

    /// The API server was asked about a pod that we did not know, and it does not exist. One that was made while the
    /// question was under way is known by now, and stays so until the watch says otherwise.
    pub fn confirm_gone(&mut self, name: &PodName, now: Now) {
        if self.known.contains_key(name) {
            return;
        }
        self.gone.entry(name.clone()).or_insert((now, true)).1 = true;
    }

    pub fn find(&self, name: &PodName) -> Option<Presence> {
        self.known.get(name).map(|seen| seen.presence)
    }

    pub fn wants_whole(&self, name: &PodName) -> bool {
        self.known.get(name).is_some_and(|seen| seen.whole)
    }

    pub fn is_ours(&self, name: &PodName) -> bool {
        self.find(name) == Some(Presence::Ours)
    }

    /// Whether the next pod of this name shall have the addresses of this one.
    pub fn is_sticky(&self, name: &PodName, kinds: &BTreeSet<String>) -> bool {
        self.known.get(name).is_some_and(|seen| seen.keeps_ip || seen.owners.iter().any(|kind| kinds.contains(kind)))
    }

    /// Whether what is known under the name can be of the pod with this uid: of one that was made anew, the kubelet may know before we do.
    pub fn may_be(&self, name: &PodName, uid: Option<&str>) -> bool {
        let (Some(seen), Some(uid)) = (self.known.get(name), uid) else { return true };
        seen.uid.is_empty() || seen.uid == uid || seen.mirrored.as_deref() == Some(uid)
    }

    /// The pod's uid, where it is known.
    pub fn uid(&self, name: &PodName) -> Option<&str> {
        self.known.get(name).map(|seen| seen.uid.as_str())
    }

    /// A pod that runs here and whose annotation does not say this of its addresses.
    pub fn lacks_ips(&self, name: &PodName, ips: &str) -> bool {
        let seen = self.known.get(name).filter(|seen| seen.presence == Presence::Ours);
        seen.is_some_and(|seen| seen.ips.as_deref() != Some(ips))
    }

    /// Pods that need no address of ours, once all are known.
    pub fn without_address(&self) -> Option<u64> {
        self.synced?;
        Some(self.known.values().filter(|seen| seen.presence == Presence::NotOurs).count() as u64)
    }

    /// What the pod's annotations ask for, where it is known.
    pub fn bandwidth(&self, name: &PodName) -> Option<&Both<Told>> {
        self.known.get(name).map(|seen| &seen.bandwidth)
    }

    /// Pods that are new, or ask for another bandwidth, since this was called the last time.
    pub fn reshaped(&mut self) -> BTreeSet<PodName> {
        std::mem::take(&mut self.reshaped)
    }

    /// Nobody is gone before the first whole list came, and nobody whose name is lost.
    pub fn standing(&self, name: &PodName) -> Standing {
        let Some(synced) = self.synced.filter(|_| *name != nameless()) else { return Standing::Present };
        match (self.known.get(name), self.gone.get(name)) {
            (Some(seen), _) if seen.presence != Presence::Over => Standing::Present,
            (_, Some((since, true))) => Standing::Gone(*since),
            (_, Some((since, false))) => Standing::Missed(*since),
            (_, None) => Standing::Missed(synced),
        }
    }

    /// Drops what is remembered of pods that hold no lease any more.
    pub fn forget(&mut self, holds_lease: impl Fn(&PodName) -> bool) {
        self.gone.retain(|name, _| holds_lease(name));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const T: fn(u64) -> Now = Duration::from_secs;

    fn ours(presence: Presence) -> Seen {
        Seen {
            presence,
            owners: Vec::new(),
            keeps_ip: false,
            uid: String::new(),
            mirrored: None,
            whole: false,
            ips: None,
            bandwidth: Both::default(),
        }
    }

    fn web(n: u32) -> PodName {
        PodName::new("default", format!("web-{n}"))
    }

    #[test]
    fn nobody_is_gone_before_the_first_list() {
        let mut pods = Pods::default();
        assert_eq!(pods.standing(&web(0)), Standing::Present);
        pods.take(Known::All(vec![(web(1), ours(Presence::Ours))]), T(5));
        assert_eq!(pods.standing(&web(0)), Standing::Missed(T(5)));
        assert_eq!(pods.standing(&web(1)), Standing::Present);
        assert_eq!(pods.standing(&nameless()), Standing::Present);
    }

    #[test]
    fn a_pod_is_gone_once_the_api_server_says_so() {
        let mut pods = Pods::default();
        pods.take(Known::All(vec![(web(1), ours(Presence::Ours))]), T(5));
        pods.take(Known::Gone(web(1)), T(9));
        assert_eq!(pods.standing(&web(1)), Standing::Missed(T(9)));
        pods.confirm_gone(&web(1), T(70));
        assert_eq!(pods.standing(&web(1)), Standing::Gone(T(9)));
        pods.take(Known::One(web(1), ours(Presence::Ours)), T(80));
        assert_eq!(pods.standing(&web(1)), Standing::Present);
    }

    #[test]
    fn a_pod_shall_have_its_address_again_by_its_owner_or_by_its_own_word() {
        let kinds = BTreeSet::from(["statefulset".to_owned(), "cloneset".to_owned()]);
        let is_sticky = |meta: &str| {
            let pod: Own = serde_json::from_str(&format!(r#"{{"metadata": {{"name": "web-1", {meta}}}}}"#)).unwrap();
            let mut pods = Pods::default();
            let name = pod.served.name();
            pods.learn(pod, T(5));
            pods.is_sticky(&name, &kinds)
        };
        let owner = |kind: &str| format!(r#""ownerReferences": [{{"kind": "{kind}", "name": "web"}}]"#);
        assert!(is_sticky(&owner("StatefulSet")) && is_sticky(&owner("CloneSet")) && !is_sticky(&owner("ReplicaSet")));
        let annotated = |value: &str| format!(r#""annotations": {{"k8s.aliyun.com/pod-ip-reservation": "{value}"}}"#);
        assert!(is_sticky(&annotated("true")) && !is_sticky(&annotated("false")));
        assert!(!Pods::default().is_sticky(&web(7), &kinds));
    }

    #[test]
    fn a_pod_is_elsewhere_only_where_our_own_name_is_proven() {
        let pod = serde_json::from_str(r#"{"metadata": {"name": "web-1"}, "spec": {"nodeName": "n2"}}"#).unwrap();
        let mut pods = Pods::default();
        pods.take(Known::All(vec![]), T(5));
        assert!(!pods.is_elsewhere(&pod, "n1"));
        pods.take(Known::All(vec![(web(2), ours(Presence::NotOurs))]), T(6));
        assert!(pods.is_elsewhere(&pod, "n1"));
        assert!(!pods.is_elsewhere(&pod, "n2"));
    }

    #[test]
    fn a_pod_made_while_its_absence_was_being_told_is_present() {
        let mut pods = Pods::default();
        pods.take(Known::All(vec![]), T(5));
        pods.take(Known::One(web(1), ours(Presence::Ours)), T(9));
        pods.confirm_gone(&web(1), T(10));
        assert_eq!(pods.standing(&web(1)), Standing::Present);
    }

    #[test]
    fn a_pod_that_a_new_list_lacks_is_missed_from_then_on() {
        let mut pods = Pods::default();
        pods.take(Known::All(vec![(web(1), ours(Presence::Ours)), (web(2), ours(Presence::NotOurs))]), T(5));
        pods.take(Known::All(vec![(web(2), ours(Presence::Over))]), T(50));
        assert_eq!(pods.standing(&web(1)), Standing::Missed(T(50)));
        assert_eq!(pods.standing(&web(2)), Standing::Gone(T(50)));
    }

    #[test]
    fn pods_that_ask_for_another_bandwidth_are_told_once() {
        let asks = |uid: &str, text: &str| {
            let annotations = [("k8s.aliyun.com/ingress-bandwidth".to_string(), text.to_string())].into();
            Seen { uid: uid.into(), bandwidth: Both::read(&annotations), ..ours(Presence::Ours) }
        };
        let mut pods = Pods::default();
        let mut told = |news| {
            pods.take(news, T(5));
            pods.reshaped().into_iter().map(|name| name.name).collect::<Vec<_>>()
        };
        assert_eq!(
            told(Known::All(vec![(web(1), ours(Presence::Ours)), (web(2), asks("", "1M"))])),
            ["web-1", "web-2"]
        );
        assert_eq!(told(Known::One(web(2), asks("", "1M"))), [""; 0]);
        assert_eq!(told(Known::One(web(2), asks("", "2M"))), ["web-2"]);
        assert_eq!(told(Known::All(vec![(web(1), ours(Presence::Ours)), (web(2), asks("", "2M"))])), [""; 0]);
        assert_eq!(told(Known::One(web(2), asks("another", "2M"))), ["web-2"]);
        assert_eq!(told(Known::One(web(2), Seen { uid: "another".into(), ..ours(Presence::Ours) })), ["web-2"]);
    }

    #[test]
    fn a_pod_that_is_over_is_gone_from_the_moment_we_hear_of_it() {
        let mut pods = Pods::default();
        pods.take(Known::All(vec![(web(1), ours(Presence::Ours))]), T(5));
        pods.take(Known::One(web(1), ours(Presence::Over)), T(500));
        pods.take(Known::One(web(1), ours(Presence::Over)), T(510));
        assert_eq!(pods.standing(&web(1)), Standing::Gone(T(500)));
        pods.take(Known::One(web(1), ours(Presence::Ours)), T(520));
        assert_eq!(pods.standing(&web(1)), Standing::Present);
    }
}
