//! The Kubernetes client against the simulated API.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use serde_json::json;
use terway::error::{Cause, Error};
use terway::kube::{Change, Client, Limits, Patch, Select, Source, Watch};
use terway::object::{About, ConfigMap, Event, EventType, Node, Pod, path};
use terway::pod::PodName;

use crate::sim::http::{Fault, Server};
use crate::sim::kube::{Kube, Trouble, node, pod};

/// A cluster, its server, and a directory with a kubeconfig for it; all gone at the end.
struct Cluster {
    kube: Kube,
    server: Option<Server>,
    port: u16,
    dir: PathBuf,
}

impl Cluster {
    fn new() -> Cluster {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("terway-kube-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let kube = Kube::new();
        let server = kube.serve(TcpListener::bind("127.0.0.1:0").unwrap());
        let port = server.addr().port();
        let cluster = Cluster { kube, server: Some(server), port, dir };
        cluster.write("config", &cluster.kube.kubeconfig(cluster.addr()));
        cluster
    }

    fn addr(&self) -> std::net::SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.dir.join(name), text).unwrap();
    }

    fn source(&self) -> Source {
        Source::Kubeconfig(self.dir.join("config"))
    }

    fn client(&self) -> Client {
        self.client_within(limits())
    }

    fn client_within(&self, limits: Limits) -> Client {
        Client::with_limits(self.source(), limits).unwrap()
    }

    /// A client by a service account, whose token is this.
    fn client_by_token(&self, token: &str) -> Client {
        self.kube.admit(token);
        self.write("token", &format!("{token}\n"));
        self.write("ca.crt", self.kube.ca());
        let source = Source::ServiceAccount { dir: self.dir.clone(), server: format!("https://{}", self.addr()) };
        Client::with_limits(source, limits()).unwrap()
    }

    fn watch(&self) -> Watch<Pod> {
        self.client().watch(Select::default())
    }

    fn stop(&mut self) {
        self.server = None;
    }

    fn start(&mut self) {
        let end = Instant::now() + Duration::from_secs(5);
        let listener = loop {
            match TcpListener::bind(self.addr()) {
                Ok(listener) => break listener,
                Err(e) => assert!(Instant::now() < end, "bind again: {e}"),
            }
            thread::sleep(Duration::from_millis(20));
        };
        self.server = Some(self.kube.serve(listener));
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Short enough that a test which waits for what never comes ends.
fn limits() -> Limits {
    Limits { call: Duration::from_secs(10), silence: Duration::from_secs(10), ..Limits::default() }
}

/// `set a`, `gone a`, `reset a b`, `bookmark` or the error.
fn next(watch: &mut Watch<Pod>) -> String {
    match watch.next().expect("a watch that goes on") {
        Ok(Change::Reset(pods)) => {
            let names: Vec<String> = pods.into_iter().map(|p| p.meta.name).collect();
            format!("reset {}", names.join(" ")).trim_end().to_owned()
        }
        Ok(Change::Set(pod)) => format!("set {}", pod.meta.name),
        Ok(Change::Gone(pod)) => format!("gone {}", pod.meta.name),
        Ok(Change::Bookmark) => "bookmark".to_owned(),
        Err(e) => format!("error: {e}"),
    }
}

fn http(status: u16, body: &str) -> Cause {
    Cause::Http { status, body: body.into() }
}

fn pods(client: &Client) -> Result<Vec<Pod>, Error> {
    client.list(&Select::default())
}

#[test]
fn a_watch_sees_every_change_once_and_in_order() {
    let c = Cluster::new();
    c.kube.put(pod("default", "a", "n1"));
    let mut watch = c.watch();
    assert_eq!(next(&mut watch), "reset a");
    c.kube.put(pod("default", "b", "n1"));
    assert_eq!(next(&mut watch), "set b");
    c.kube.amend("Pod", "default", "a", &json!({"status": {"phase": "Succeeded"}}));
    let Change::Set(a) = watch.next().unwrap().unwrap() else { panic!("not a change of a") };
    assert!(a.is_over());
    for i in 0..50 {
        c.kube.put(pod("default", &format!("x{i}"), "n1"));
    }
    assert!(c.kube.delete("Pod", "default", "a"));
    for i in 0..50 {
        assert_eq!(next(&mut watch), format!("set x{i}"));
    }
    assert_eq!(next(&mut watch), "gone a");
    assert_eq!((c.kube.count("list", "pods"), c.kube.count("watch", "pods")), (1, 1));
}

#[test]
fn a_broken_watch_goes_on_where_it_was_without_listing() {
    let c = Cluster::new();
    let mut watch = c.watch();
    assert_eq!(next(&mut watch), "reset");
    c.kube.put(pod("default", "a", "n1"));
    assert_eq!(next(&mut watch), "set a");
    c.kube.disconnect();
    c.kube.put(pod("default", "b", "n1"));
    c.kube.delete("Pod", "default", "a");
    assert_eq!(next(&mut watch), "error: watch /api/v1/pods: Peer disconnected");
    assert_eq!(next(&mut watch), "set b");
    assert_eq!(next(&mut watch), "gone a");
    assert_eq!((c.kube.count("list", "pods"), c.kube.count("watch", "pods")), (1, 2));
}

#[test]
fn a_forgotten_history_is_told_and_then_listed_anew() {
    let c = Cluster::new();
    c.kube.put(pod("default", "a", "n1"));
    let mut watch = c.watch();
    assert_eq!(next(&mut watch), "reset a");
    c.kube.put(pod("default", "b", "n1"));
    assert_eq!(next(&mut watch), "set b");
    c.kube.disconnect();
    c.kube.delete("Pod", "default", "a");
    c.kube.put(pod("default", "c", "n1"));
    c.kube.forget();
    assert_eq!(next(&mut watch), "error: watch /api/v1/pods: Peer disconnected");
    assert_eq!(next(&mut watch), "error: watch /api/v1/pods: http status 410: too old resource version: 3");
    assert_eq!(next(&mut watch), "reset b c");
    c.kube.put(pod("default", "d", "n1"));
    assert_eq!(next(&mut watch), "set d");
    let lists: Vec<_> = c.kube.journal().into_iter().filter(|r| r.verb == "list").map(|r| r.target).collect();
    // Only the first list may come from a cache: a later one must not take us back in time.
    assert_eq!(lists, ["/api/v1/pods?limit=500&resourceVersion=0", "/api/v1/pods?limit=500"]);
}

#[test]
fn a_410_instead_of_a_stream_is_a_forgotten_history_too() {
    let c = Cluster::new();
    let mut watch = c.watch();
    assert_eq!(next(&mut watch), "reset");
    // And who may not read for a while has missed what happened then.
    for (status, why) in [(410, "gone"), (403, "no")] {
        c.kube.fail(1, "watch", Trouble::Status(status, why));
        assert_eq!(next(&mut watch), format!("error: watch /api/v1/pods: http status {status}: {why}"));
        assert_eq!(next(&mut watch), "reset");
    }
}

#[test]
fn an_error_in_the_stream_that_is_no_410_does_not_cost_a_list() {
    let c = Cluster::new();
    let mut watch = c.watch();
    assert_eq!(next(&mut watch), "reset");
    c.kube.put(pod("default", "a", "n1"));
    assert_eq!(next(&mut watch), "set a");
    c.kube.inject_error(500, "etcd is unwell");
    assert_eq!(next(&mut watch), "error: watch /api/v1/pods: http status 500: etcd is unwell");
    c.kube.put(pod("default", "b", "n1"));
    assert_eq!(next(&mut watch), "set b");
    assert_eq!(c.kube.count("list", "pods"), 1);
}

#[test]
fn bookmarks_advance_where_a_watch_resumes() {
    let c = Cluster::new();
    c.kube.put(pod("default", "a", "n1"));
    let select = Select { fields: "spec.nodeName=n1".into(), ..Select::default() };
    let mut watch: Watch<Pod> = c.client().watch(select);
    assert_eq!(next(&mut watch), "reset a");
    c.kube.put(pod("default", "b", "n1"));
    assert_eq!(next(&mut watch), "set b");
    for i in 0..20 {
        c.kube.put(pod("default", &format!("elsewhere{i}"), "n2"));
    }
    c.kube.bookmark();
    assert_eq!(next(&mut watch), "bookmark");
    // Of the twenty changes elsewhere none can be watched from any more, but the bookmark is past them.
    c.kube.forget();
    c.kube.disconnect();
    c.kube.put(pod("default", "c", "n1"));
    assert!(next(&mut watch).starts_with("error"));
    assert_eq!(next(&mut watch), "set c");
    assert_eq!(c.kube.count("list", "pods"), 1);
}

#[test]
fn changes_may_come_in_slow_small_pieces() {
    let c = Cluster::new();
    let mut watch = c.watch();
    assert_eq!(next(&mut watch), "reset");
    c.kube.slow_down(7, Duration::from_millis(1));
    for name in ["a", "b", "c"] {
        c.kube.put(pod("default", name, "n1"));
    }
    assert_eq!([next(&mut watch), next(&mut watch), next(&mut watch)], ["set a", "set b", "set c"]);
}

#[test]
fn a_change_torn_in_two_is_sent_again_whole() {
    let c = Cluster::new();
    let mut watch = c.watch();
    assert_eq!(next(&mut watch), "reset");
    c.kube.put(pod("default", "a", "n1"));
    assert_eq!(next(&mut watch), "set a");
    c.kube.tear();
    c.kube.put(pod("default", "b", "n1"));
    assert_eq!(next(&mut watch), "error: watch /api/v1/pods: Peer disconnected");
    assert_eq!(next(&mut watch), "set b");
    assert_eq!(c.kube.count("list", "pods"), 1);
}

#[test]
fn bytes_that_are_no_change_are_an_error_and_nothing_is_lost() {
    let c = Cluster::new();
    let mut watch = c.watch();
    assert_eq!(next(&mut watch), "reset");
    c.kube.put(pod("default", "a", "n1"));
    assert_eq!(next(&mut watch), "set a");
    c.kube.inject("{\"type\":\"ADDED\",\"object\":{\"metadata\":\n");
    assert!(next(&mut watch).starts_with("error: watch /api/v1/pods: not the JSON we expect: EOF"));
    c.kube.put(pod("default", "b", "n1"));
    assert_eq!(next(&mut watch), "set b");
    c.kube.inject("{\"type\":\"ADDED\",\"object\":{\"metadata\":{\"name\":\"ghost\"}}}\n");
    assert_eq!(next(&mut watch), "error: watch /api/v1/pods: a change without resourceVersion");
    c.kube.put(pod("default", "c", "n1"));
    assert_eq!(next(&mut watch), "set c");
    assert_eq!(c.kube.count("list", "pods"), 1);
}

#[test]
fn a_watch_outlives_the_server() {
    let mut c = Cluster::new();
    let mut watch = c.watch();
    assert_eq!(next(&mut watch), "reset");
    c.kube.put(pod("default", "a", "n1"));
    assert_eq!(next(&mut watch), "set a");
    c.stop();
    assert!(next(&mut watch).starts_with("error"));
    assert_eq!(next(&mut watch), "error: watch /api/v1/pods: connection refused");
    c.kube.put(pod("default", "b", "n1"));
    c.start();
    assert_eq!(next(&mut watch), "set b");
    assert_eq!(c.kube.count("list", "pods"), 1);
}

#[test]
fn a_watch_whose_time_is_up_is_opened_again_in_silence() {
    let c = Cluster::new();
    let mut watch: Watch<Pod> =
        c.client_within(Limits { watch: Duration::from_secs(1), ..limits() }).watch(Select::default());
    assert_eq!(next(&mut watch), "reset");
    // The server ends with a bookmark.
    assert_eq!(next(&mut watch), "bookmark");
    assert_eq!(next(&mut watch), "bookmark");
    c.kube.put(pod("default", "a", "n1"));
    assert_eq!(next(&mut watch), "set a");
    assert_eq!((c.kube.count("list", "pods"), c.kube.count("watch", "pods")), (1, 3));
}

#[test]
fn a_server_that_hangs_up_at_once_is_an_error_each_time() {
    let c = Cluster::new();
    let mut watch = c.watch();
    assert_eq!(next(&mut watch), "reset");
    c.kube.fail(2, "watch", Trouble::Body(Vec::new()));
    for _ in 0..2 {
        assert_eq!(next(&mut watch), "error: watch /api/v1/pods: the server ended the watch at once");
    }
    assert_eq!(c.kube.count("watch", "pods"), 2);
}

#[test]
fn a_watch_that_is_silent_for_too_long_times_out_and_goes_on() {
    let c = Cluster::new();
    let mut watch: Watch<Pod> =
        c.client_within(Limits { silence: Duration::from_secs(3), ..limits() }).watch(Select::default());
    assert_eq!(next(&mut watch), "reset");
    let start = Instant::now();
    assert_eq!(next(&mut watch), "error: watch /api/v1/pods: timed out");
    assert!(start.elapsed() < limits().silence);
    c.kube.put(pod("default", "a", "n1"));
    assert_eq!(next(&mut watch), "set a");
    assert_eq!(c.kube.count("list", "pods"), 1);
}

#[test]
fn a_blocked_watch_ends_when_it_is_stopped() {
    let c = Cluster::new();
    let mut watch = c.watch();
    assert_eq!(next(&mut watch), "reset");
    let stop = watch.stopper();
    let blocked = thread::spawn(move || {
        let end = watch.next().is_none() && watch.next().is_none();
        (end, Instant::now())
    });
    wait_for(|| c.kube.watches_open() == 1);
    let start = Instant::now();
    stop.stop();
    let (ended, at) = blocked.join().unwrap();
    assert!(ended && at - start < Duration::from_secs(5));
    wait_for(|| c.kube.watches_open() == 0);
}

#[test]
fn who_only_glances_now_and_then_ends_when_it_is_stopped() {
    let c = Cluster::new();
    let mut glimpse = c.client().glimpse_at("api/v1", "pods", |pod: Pod| pod);
    assert!(matches!(glimpse.next(), Some(Ok(Change::Reset(_)))));
    let stop = glimpse.stopper();
    let resting = thread::spawn(move || glimpse.next().is_none());
    thread::sleep(Duration::from_millis(50));
    let start = Instant::now();
    stop.stop();
    assert!(resting.join().unwrap() && start.elapsed() < Duration::from_secs(5));
}

#[test]
fn stopping_one_watch_leaves_the_client_and_other_watches_alone() {
    let c = Cluster::new();
    let client = c.client();
    let mut one: Watch<Pod> = client.watch(Select::default());
    let mut other: Watch<Pod> = client.watch(Select::default());
    assert_eq!([next(&mut one), next(&mut other)], ["reset", "reset"]);
    one.stopper().stop();
    assert!(one.next().is_none());
    c.kube.put(pod("default", "a", "n1"));
    assert_eq!(next(&mut other), "set a");
    assert_eq!(pods(&client).unwrap().len(), 1);
}

fn wait_for(what: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(5);
    while !what() {
        assert!(Instant::now() < end, "waited in vain");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_field_selector_is_honoured_by_list_and_watch() {
    let c = Cluster::new();
    c.kube.put(pod("default", "mine", "n1"));
    c.kube.put(pod("default", "other", "n2"));
    let mut late = pod("default", "late", "");
    c.kube.put(late.clone());
    let select = Select { fields: "spec.nodeName=n1".into(), ..Select::default() };
    let mut watch: Watch<Pod> = c.client().watch(select);
    assert_eq!(next(&mut watch), "reset mine");
    c.kube.put(pod("default", "other2", "n2"));
    // Bound to our node, it comes into our view.
    late["spec"]["nodeName"] = json!("n1");
    c.kube.put(late);
    assert_eq!(next(&mut watch), "set late");
    c.kube.delete("Pod", "default", "other");
    c.kube.delete("Pod", "default", "mine");
    assert_eq!(next(&mut watch), "gone mine");
}

#[test]
fn labels_and_namespaces_select_too() {
    let c = Cluster::new();
    for (namespace, name, app) in [("a", "x", "web"), ("a", "y", "db"), ("b", "z", "web")] {
        c.kube.put(json!({"kind": "Pod", "metadata": {"namespace": namespace, "name": name, "labels": {"app": app}}}));
    }
    let select = Select { namespace: "a".into(), labels: "app in (web)".into(), ..Select::default() };
    let found: Vec<Pod> = c.client().list(&select).unwrap();
    assert_eq!(found.iter().map(|p| p.name().to_string()).collect::<Vec<_>>(), ["a/x"]);
    let bad = Select { fields: "spec.nonsense=1".into(), ..Select::default() };
    let e = c.client().list::<Pod>(&bad).unwrap_err();
    assert_eq!(e.to_string(), "list /api/v1/pods: http status 400: field label not supported: spec.nonsense");
}

#[test]
fn a_long_list_comes_in_pages() {
    let c = Cluster::new();
    for i in 0..25 {
        c.kube.put(pod("default", &format!("p{i:02}"), "n1"));
    }
    let client = c.client_within(Limits { page: 10, ..limits() });
    let mut watch: Watch<Pod> = client.watch(Select::default());
    // The first comes from the server's cache, in one piece.
    for pages in [1, 3] {
        let Change::Reset(all) = watch.next().unwrap().unwrap() else { panic!("not a list") };
        assert_eq!(all.iter().map(|p| p.meta.name.clone()).collect::<BTreeSet<_>>().len(), 25);
        assert_eq!((all.len(), c.kube.count("list", "pods")), (25, pages));
        c.kube.clear_journal();
        c.kube.fail(1, "watch", Trouble::Status(410, "gone"));
        assert!(next(&mut watch).starts_with("error"));
    }
    assert_eq!(pods(&client).unwrap().len(), 25);
    assert!(next(&mut watch).starts_with("reset p00 "));
    c.kube.put(pod("default", "q", "n1"));
    assert_eq!(next(&mut watch), "set q");
}

#[test]
fn a_list_has_no_bound_that_its_objects_have_not() {
    let c = Cluster::new();
    for i in 0..300 {
        c.kube.put(pod("default", &format!("p{i:03}"), "n1"));
    }
    let mut watch: Watch<Pod> = c.client_within(Limits { object_bytes: 1000, ..limits() }).watch(Select::default());
    let Change::Reset(all) = watch.next().unwrap().unwrap() else { panic!("not a list") };
    assert_eq!((all.len(), c.kube.count("list", "pods")), (300, 1));
    assert!(c.kube.bytes() > 50_000);
}

#[test]
fn a_list_that_fails_half_way_starts_over() {
    let c = Cluster::new();
    for i in 0..25 {
        c.kube.put(pod("default", &format!("p{i:02}"), "n1"));
    }
    let client = c.client_within(Limits { page: 10, ..limits() });
    let mut watch: Watch<Pod> = client.watch(Select::default());
    assert!(next(&mut watch).starts_with("reset p00 "));
    c.kube.fail(1, "watch", Trouble::Status(410, "gone"));
    assert!(next(&mut watch).starts_with("error"));
    c.kube.fail(1, "list", Trouble::None);
    c.kube.fail(1, "list", Trouble::Status(410, "the continue token is too old"));
    assert_eq!(
        next(&mut watch),
        "error: watch /api/v1/pods: list /api/v1/pods: http status 410: the continue token is too old"
    );
    let Change::Reset(all) = watch.next().unwrap().unwrap() else { panic!("not a list") };
    assert_eq!((all.len(), c.kube.count("list", "pods")), (25, 1 + 2 + 3));
}

#[test]
fn a_token_that_is_not_known_is_told() {
    let c = Cluster::new();
    let client = c.client();
    c.kube.revoke("token-of-terway");
    let e = pods(&client).unwrap_err();
    assert_eq!(e.to_string(), "list /api/v1/pods: http status 401: Unauthorized");
    // The files have not changed, so there was nothing to try again with.
    assert_eq!(c.kube.count("list", "pods"), 1);
}

#[test]
fn what_is_forbidden_is_told_in_the_servers_words() {
    let c = Cluster::new();
    c.kube.deny("list", "pods");
    let e = pods(&c.client()).unwrap_err();
    assert_eq!(e.cause, http(403, "pods is forbidden: cannot list"));
}

#[test]
fn a_replaced_token_is_taken_up_at_the_first_refusal() {
    let c = Cluster::new();
    let client = c.client_by_token("one");
    let mut watch: Watch<Pod> = client.watch(Select::default());
    assert_eq!(next(&mut watch), "reset");
    c.kube.put(pod("default", "a", "n1"));
    assert_eq!(next(&mut watch), "set a");

    c.kube.revoke("one");
    c.kube.admit("two");
    c.write("token", "two\n");
    assert_eq!(pods(&client).unwrap().len(), 1);
    c.kube.disconnect();
    c.kube.put(pod("default", "b", "n1"));
    assert!(next(&mut watch).starts_with("error"));
    assert_eq!(next(&mut watch), "set b");
    assert_eq!(c.kube.count("list", "pods"), 3);
}

#[test]
fn a_file_that_is_away_says_nothing_of_what_the_server_has() {
    let c = Cluster::new();
    let client = c.client_by_token("one");
    client.health().unwrap();
    c.kube.revoke("one");
    std::fs::remove_file(c.dir.join("token")).unwrap();
    let e = pods(&client).unwrap_err();
    assert!(!e.is_absent() && e.to_string().ends_with("/token: no such file or directory"), "{e}");
}

#[test]
fn a_server_is_healthy_when_it_says_so() {
    let c = Cluster::new();
    let client = c.client();
    for (status, why) in [(200, ""), (404, "not found"), (403, "http status 403"), (500, "http status 500")] {
        c.kube.health(status);
        let said = client.health().map_or_else(|e| e.to_string(), |()| String::new());
        let want = if why.is_empty() { String::new() } else { format!("get /healthz: {why}") };
        assert!(said.starts_with(&want) && said.is_empty() == want.is_empty(), "{said}");
    }
}

#[test]
fn a_client_certificate_is_shown() {
    let c = Cluster::new();
    c.kube.revoke("token-of-terway");
    c.write("config", &c.kube.kubeconfig_with_certificate(c.addr()));
    assert_eq!(pods(&c.client()).unwrap(), []);
}

#[test]
fn a_server_that_another_authority_vouches_for_is_refused() {
    let c = Cluster::new();
    c.write("config", &Kube::new().kubeconfig(c.addr()));
    let e = pods(&c.client()).unwrap_err().to_string();
    assert!(e.starts_with("list /api/v1/pods: ") && e.contains("certificate"), "{e}");
    assert_eq!(c.kube.journal(), []);
}

#[test]
fn a_server_under_another_name_is_refused() {
    let c = Cluster::new();
    c.write("config", &c.kube.kubeconfig(c.addr()).replace("127.0.0.1", "localhost"));
    assert!(pods(&c.client()).is_ok());
    let nobody = c.kube.serve(TcpListener::bind("0.0.0.0:0").unwrap());
    c.write("config", &c.kube.kubeconfig(([127, 0, 0, 3], nobody.addr().port()).into()));
    let e = pods(&c.client()).unwrap_err().to_string();
    assert!(e.contains("certificate not valid for name"), "{e}");
}

#[test]
fn answers_that_are_cut_silent_or_no_json_are_errors() {
    let c = Cluster::new();
    c.kube.put(pod("default", "a", "n1"));
    let client = c.client_within(Limits { call: Duration::from_secs(5), ..limits() });
    for (trouble, why) in [
        (Trouble::Body(b"{\"metadata\":{\"resourceVersion\":\"5\"},\"items\":[{".to_vec()), "EOF while parsing"),
        (Trouble::Body(b"<html>welcome to the hotel</html>".to_vec()), "not the JSON we expect"),
        (Trouble::Wire(Fault::Truncate(20)), "list /api/v1/pods: "),
        (Trouble::Wire(Fault::Close), "list /api/v1/pods: "),
        (Trouble::Wire(Fault::Reset), "list /api/v1/pods: "),
        (Trouble::Wire(Fault::Silence), "list /api/v1/pods: timed out"),
        (Trouble::Wire(Fault::Dribble(Duration::from_millis(50))), "list /api/v1/pods: timed out"),
        (Trouble::Status(503, "apiserver is starting"), "list /api/v1/pods: http status 503: apiserver is starting"),
    ] {
        c.kube.fail(1, "list", trouble.clone());
        let e = pods(&client).unwrap_err().to_string();
        assert!(e.contains(why), "{trouble:?}: {e}");
        assert_eq!(pods(&client).unwrap().len(), 1, "after {trouble:?}");
    }
}

#[test]
fn a_list_without_version_is_not_taken() {
    let c = Cluster::new();
    let mut watch = c.watch();
    c.kube.fail(1, "list", Trouble::Body(b"{\"items\":null}".to_vec()));
    assert_eq!(next(&mut watch), "error: watch /api/v1/pods: a list without resourceVersion");
    assert_eq!(next(&mut watch), "reset");
}

#[test]
fn huge_objects_are_refused() {
    let c = Cluster::new();
    let client = c.client_within(Limits { object_bytes: 10_000, ..limits() });
    let mut watch: Watch<Pod> = client.watch(Select::default());
    assert_eq!(next(&mut watch), "reset");
    let mut huge = pod("default", "huge", "n1");
    huge["metadata"]["annotations"] = json!({"a": "x".repeat(60_000)});
    c.kube.put(huge);
    assert_eq!(next(&mut watch), "error: watch /api/v1/pods: the answer is larger than 10000 bytes");
    let e = client.get::<Pod>(&path::<Pod>("default", "huge")).unwrap_err();
    assert_eq!(e.to_string(), "get /api/v1/namespaces/default/pods/huge: the answer is larger than 10000 bytes");
    assert_eq!(pods(&client).unwrap_err().to_string(), "list /api/v1/pods: the answer is larger than 10000 bytes");
}

#[test]
fn one_object_is_read_or_absent() {
    let c = Cluster::new();
    c.kube.put(node("n1", "cn-beijing.i-123"));
    let client = c.client();
    let n1: Node = client.get(&path::<Node>("", "n1")).unwrap();
    assert_eq!(n1.spec.provider_id, "cn-beijing.i-123");
    assert!(client.get::<Node>(&path::<Node>("", "n2")).unwrap_err().is_absent());
    assert!(client.get::<Pod>(&path::<Pod>("a/../b", "x")).unwrap_err().is_absent());
    c.kube.put(json!({"kind": "ConfigMap", "metadata": {"namespace": "a", "name": "b"}, "data": {"k": "v"}}));
    let b: ConfigMap = client.get(&path::<ConfigMap>("a", "b")).unwrap();
    assert_eq!(b.data["k"], "v");
}

#[test]
fn the_service_cidr_is_found_where_kubeadm_left_it() {
    let c = Cluster::new();
    let client = c.client();
    assert!(client.service_cidr().unwrap_err().is_absent());
    c.kube.put(json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": "kube-system", "name": "kubeadm-config"},
        "data": {"ClusterConfiguration": "networking:\n  podSubnet: \"\"\n  serviceSubnet: 172.21.0.0/20,fc00::/112\n"},
    }));
    assert_eq!(client.service_cidr().unwrap().to_string(), "172.21.0.0/20,fc00::/112");
}

#[test]
fn an_event_is_created_where_its_object_lives() {
    let c = Cluster::new();
    let client = c.client();
    let about = About::pod(&PodName::new("default", "web-0"), "uid-1");
    let event = Event::new(about, "n1", EventType::Warning, "AllocIPFailed", "no vSwitch has room", SystemTime::now());
    client.create(&event.path(), &event).unwrap();
    let event = Event::new(About::node("n1"), "n1", EventType::Normal, "ConfigError", "m", SystemTime::now());
    client.create(&event.path(), &event).unwrap();
    let events = c.kube.events();
    assert_eq!(events.len(), 2);
    let of_pod = events.iter().find(|e| e["involvedObject"]["kind"] == "Pod").unwrap();
    assert_eq!(of_pod["message"], "no vSwitch has room");
    assert_eq!(of_pod["source"]["component"], "terway-daemon");
    let again = client.create(&event.path(), &event).unwrap_err();
    assert!(matches!(again.cause, Cause::Http { status: 409, .. }), "{again}");
}

#[test]
fn patches_change_what_they_name() {
    let c = Cluster::new();
    c.kube.put(pod("default", "web-0", "n1"));
    let client = c.client();
    let web = path::<Pod>("default", "web-0");
    let ips =
        json!({"metadata": {"annotations": {"k8s.aliyun.com/pod-ips": "10.0.0.1"}}, "status": {"phase": "Failed"}});
    client.patch(&web, Patch::Merge, &ips).unwrap();
    client.patch(&format!("{web}/status"), Patch::Strategic, &json!({"status": {"podIP": "10.0.0.1"}})).unwrap();
    let now = c.kube.get("Pod", "default", "web-0").unwrap();
    assert_eq!(now["metadata"]["annotations"]["k8s.aliyun.com/pod-ips"], "10.0.0.1");
    assert_eq!(now["status"], json!({"phase": "Pending", "podIP": "10.0.0.1"}));
    assert_eq!((c.kube.count("patch", "pods"), c.kube.count("patch", "pods/status")), (1, 1));

    let stale = json!({"metadata": {"resourceVersion": "1", "labels": {"a": "b"}}});
    let e = client.patch(&web, Patch::Merge, &stale).unwrap_err();
    assert!(matches!(e.cause, Cause::Http { status: 409, .. }), "{e}");
    let gone = path::<Pod>("default", "nobody");
    let e = client.patch(&gone, Patch::Merge, &ips).unwrap_err();
    assert_eq!(e.to_string(), "patch /api/v1/namespaces/default/pods/nobody: not found");
}

#[test]
fn calls_share_one_connection() {
    let c = Cluster::new();
    c.kube.put(pod("default", "a", "n1"));
    let client = c.client();
    let a = path::<Pod>("default", "a");
    for i in 0..20 {
        client.patch(&a, Patch::Merge, &json!({"metadata": {"labels": {"i": i.to_string()}}})).unwrap();
        client.get::<Pod>(&a).unwrap();
        client.get::<Pod>(&path::<Pod>("default", "nobody")).unwrap_err();
        pods(&client).unwrap();
    }
    let ends: BTreeSet<_> = c.kube.journal().into_iter().map(|r| r.peer).collect();
    assert_eq!(ends.len(), 1);
    assert_eq!(client.get::<Pod>(&a).unwrap().meta.labels["i"], "19");
}

/// Whatever happens on the way, who follows the changes ends up with what the server has.
#[test]
fn under_random_trouble_the_changes_add_up_to_the_truth() {
    for seed in 0..6 {
        let c = Cluster::new();
        let mut rng = fastrand::Rng::with_seed(seed);
        let client = c.client_within(Limits { page: 3, silence: Duration::from_secs(2), ..limits() });
        let mut watch: Watch<Pod> = client.watch(Select::default());
        let mut known: BTreeMap<String, String> = BTreeMap::new();
        for round in 0..60 {
            for _ in 0..rng.usize(..4) {
                shake(&c.kube, &mut rng);
            }
            let mark = format!("mark{round}");
            c.kube.put(pod("default", &mark, "n1"));
            follow(&mut watch, &mut known, &mark);
        }
        let truth: BTreeMap<String, String> = pods(&client).unwrap().into_iter().map(named).collect();
        assert_eq!(known, truth, "seed {seed}");
    }
}

fn shake(kube: &Kube, rng: &mut fastrand::Rng) {
    let name = format!("p{}", rng.u8(..8));
    match rng.u8(..16) {
        0..8 => drop(kube.put(pod("default", &name, "n1"))),
        8..12 => drop(kube.delete("Pod", "default", &name)),
        12 => kube.disconnect(),
        13 => kube.tear(),
        14 => kube.bookmark(),
        _ => kube.forget(),
    }
}

/// Takes changes in until this pod is seen.
fn follow(watch: &mut Watch<Pod>, known: &mut BTreeMap<String, String>, until: &str) {
    for _ in 0..200 {
        match watch.next().unwrap() {
            Ok(Change::Reset(pods)) => *known = pods.into_iter().map(named).collect(),
            Ok(Change::Set(pod)) => known.extend([named(pod)]),
            Ok(Change::Gone(pod)) => {
                assert!(known.remove(&pod.meta.name).is_some(), "{} was not known", pod.meta.name);
            }
            Ok(Change::Bookmark) | Err(_) => {}
        }
        if known.contains_key(until) {
            return;
        }
    }
    panic!("{until} never came");
}

fn named(pod: Pod) -> (String, String) {
    (pod.meta.name, pod.meta.resource_version)
}
