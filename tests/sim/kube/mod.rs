//! An API server in memory: HTTPS, tokens and client certificates, lists, watches, patches, and failures on purpose.

mod check;
mod select;
pub mod services;
mod store;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde_json::{Value, json};

use super::http::{Chunks, Fault, Request, Response, Server};
use select::Selector;
pub use store::merge;
use store::{Key, Store, plural, strategic};

/// Kinds that an API server has once somebody has defined them: here the first object does.
const DEFINED_LATER: [&str; 3] =
    ["/apis/crd.projectcalico.org/v1", "/apis/projectcalico.org/v3", "/apis/policy.networking.k8s.io/v1alpha2"];

/// The token that [`Kube::kubeconfig`] holds.
pub const TOKEN: &str = "token-of-terway";

/// The cluster's state, which outlives the servers that show it.
#[derive(Clone)]
pub struct Kube {
    world: Arc<World>,
    authority: Arc<Authority>,
}

/// Who vouches for the server's certificates and the clients'.
struct Authority {
    pem: String,
    root: rustls::pki_types::CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

#[derive(Default)]
struct World {
    state: Mutex<State>,
    /// Rings whenever a watch may have something to send.
    bell: Condvar,
}

struct State {
    store: Store,
    tokens: BTreeSet<String>,
    denied: BTreeSet<(String, String)>,
    /// Paths below which this server knows nothing, such as `/apis/discovery.k8s.io/v1`.
    lacking: BTreeSet<String>,
    /// What `/healthz` answers.
    health: u16,
    is_away: bool,
    troubles: VecDeque<(String, Trouble)>,
    seen: Vec<Seen>,
    bytes: u64,
    /// The same by who they were sent to.
    bytes_to: BTreeMap<IpAddr, u64>,
    /// Open watches, by collection.
    open: BTreeMap<String, usize>,
    /// Rest of a paged list, by continue token.
    pages: HashMap<String, (u64, Vec<Arc<Value>>)>,
    /// Objects as they go over the wire, by their versions.
    texts: HashMap<String, Arc<str>>,
    bookmark_every: Duration,
    /// Raised to make all open watches do something.
    bookmarks: u64,
    cuts: u64,
    injected: Vec<Vec<u8>>,
    /// Watches send at most so many bytes at a time, with a pause after each piece.
    pieces: Option<(usize, Duration)>,
    /// The next change is sent only in part; then the connection breaks.
    torn: bool,
}

impl Default for State {
    fn default() -> State {
        State {
            store: Store::default(),
            tokens: BTreeSet::from([TOKEN.to_owned()]),
            denied: BTreeSet::new(),
            health: 200,
            is_away: false,
            lacking: DEFINED_LATER.iter().map(|api| api.to_string()).collect(),
            troubles: VecDeque::new(),
            seen: Vec::new(),
            bytes: 0,
            bytes_to: BTreeMap::new(),
            open: BTreeMap::new(),
            pages: HashMap::new(),
            texts: HashMap::new(),
            bookmark_every: Duration::from_secs(60),
            bookmarks: 0,
            cuts: 0,
            injected: Vec::new(),
            pieces: None,
            torn: false,
        }
    }
}

/// A request as the journal keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// `get list watch create update patch delete`.
    pub verb: String,
    /// `pods`, `pods/status` or `/healthz`.
    pub resource: String,
    pub target: String,
    /// The client's end of the connection.
    pub peer: SocketAddr,
}

/// What goes wrong with a request.
#[derive(Debug, Clone)]
pub enum Trouble {
    /// Nothing: stands before what is to go wrong only the next time.
    None,
    /// A Status with this code and message.
    Status(u16, &'static str),
    /// Something below HTTP.
    Wire(Fault),
    /// A 200 with this body.
    Body(Vec<u8>),
}

impl Kube {
    pub fn new() -> Kube {
        Kube { world: Arc::default(), authority: Arc::new(Authority::new()) }
    }

    /// Serves on a listener, which may live in any network namespace, under its own address.
    pub fn serve(&self, listener: TcpListener) -> Server {
        self.serve_as(listener, &[])
    }

    /// Serves under further names or addresses too, where the listener's own is not what clients dial.
    pub fn serve_as(&self, listener: TcpListener, names: &[&str]) -> Server {
        let addr = listener.local_addr().expect("a listener has an address");
        let mut all = vec![addr.ip().to_string(), "localhost".into(), "kubernetes.default.svc".into()];
        all.extend(names.iter().map(|n| n.to_string()));
        let world = self.world.clone();
        Server::start_tls(listener, self.authority.server_config(all), move |request| world.answer(request))
    }

    /// A kubeconfig with a token, for a server at this address.
    pub fn kubeconfig(&self, server: SocketAddr) -> String {
        self.kubeconfig_of(server, &format!("token: {TOKEN}"))
    }

    /// A kubeconfig with a client certificate.
    pub fn kubeconfig_with_certificate(&self, server: SocketAddr) -> String {
        let (cert, key) = self.authority.client();
        let (cert, key) = (STANDARD.encode(cert), STANDARD.encode(key));
        self.kubeconfig_of(server, &format!("client-certificate-data: {cert}\n    client-key-data: {key}"))
    }

    fn kubeconfig_of(&self, server: SocketAddr, user: &str) -> String {
        let ca = STANDARD.encode(&self.authority.pem);
        format!(
            "apiVersion: v1\nkind: Config\npreferences: {{}}\ncurrent-context: sim\n\
             clusters:\n- name: sim\n  cluster:\n    server: https://{server}\n    certificate-authority-data: {ca}\n\
             contexts:\n- name: sim\n  context:\n    cluster: sim\n    user: terway\n\
             users:\n- name: terway\n  user:\n    {user}\n"
        )
    }

    /// The certificate authority in PEM.
    pub fn ca(&self) -> &str {
        &self.authority.pem
    }

    /// Creates or replaces an object, which says by `apiVersion` and `kind` where it belongs. Returns its version.
    pub fn put(&self, object: Value) -> u64 {
        self.change(|s| {
            let key = Key::of(&object);
            let api = key.collection.rsplit_once('/').map_or("", |(api, _)| api).to_owned();
            s.lacking.remove(&api);
            s.store.put(key, object);
            s.store.version()
        })
    }

    /// Changes part of an object by a merge patch; panics if there is none.
    pub fn amend(&self, kind: &str, namespace: &str, name: &str, patch: &Value) {
        self.change(|s| {
            let key = s.store.find(&plural(kind), namespace, name).expect("an object to amend").clone();
            let mut object = s.store.get(&key).map(|o| (**o).clone()).expect("the key was just found");
            merge(&mut object, patch);
            s.store.put(key, object);
        });
    }

    /// False if there was none.
    pub fn delete(&self, kind: &str, namespace: &str, name: &str) -> bool {
        self.change(|s| {
            let key = s.store.find(&plural(kind), namespace, name).cloned();
            key.and_then(|key| s.store.delete(&key)).is_some()
        })
    }

    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        let s = self.world.lock();
        let key = s.store.find(&plural(kind), namespace, name)?;
        s.store.get(key).map(|o| (**o).clone())
    }

    /// The events that were created, in the order of their names.
    pub fn events(&self) -> Vec<Value> {
        self.world.lock().store.list("/api/v1/events", "").map(|o| (**o).clone()).collect()
    }

    pub fn admit(&self, token: &str) {
        self.change(|s| s.tokens.insert(token.to_owned()));
    }

    pub fn revoke(&self, token: &str) {
        self.change(|s| s.tokens.remove(token));
    }

    /// From now on this is forbidden.
    pub fn deny(&self, verb: &str, resource: &str) {
        self.change(|s| s.denied.insert((verb.to_owned(), resource.to_owned())));
    }

    /// The server is one that has no such group and version.
    pub fn lack(&self, api: &str) {
        self.change(|s| s.lacking.insert(api.to_owned()));
    }

    /// Answers with this status where it is asked for its health: 500 before it has come up, 404 where it is a proxy that does.
    pub fn health(&self, status: u16) {
        self.change(|s| s.health = status);
    }

    /// A proxy answers in its place, which knows nothing.
    pub fn away(&self, is_away: bool) {
        self.change(|s| s.is_away = is_away);
    }

    /// The next `times` requests of this verb ("" for any) fail so.
    pub fn fail(&self, times: usize, verb: &str, trouble: Trouble) {
        self.change(|s| s.troubles.extend(vec![(verb.to_owned(), trouble); times]));
    }

    /// How many changes can be watched from.
    pub fn remember(&self, changes: usize) {
        self.change(|s| s.store.keep(changes));
    }

    /// Whoever resumes from before now gets a 410, and so does whoever asks for a next page.
    pub fn forget(&self) {
        self.change(|s| {
            s.store.forget();
            s.pages.clear();
        });
    }

    /// Breaks all open watches.
    pub fn disconnect(&self) {
        self.change(|s| s.cuts += 1);
    }

    /// Breaks the watch that has the next change to send in the middle of it.
    pub fn tear(&self) {
        self.change(|s| s.torn = true);
    }

    /// Sends a bookmark to all open watches.
    pub fn bookmark(&self) {
        self.change(|s| s.bookmarks += 1);
    }

    pub fn bookmark_every(&self, time: Duration) {
        self.change(|s| s.bookmark_every = time);
    }

    /// Sends these bytes to all open watches.
    pub fn inject(&self, bytes: impl Into<Vec<u8>>) {
        let bytes = bytes.into();
        self.change(|s| s.injected.push(bytes));
    }

    /// Sends an ERROR to all open watches.
    pub fn inject_error(&self, code: u16, message: &str) {
        self.inject(line("ERROR", &status(code, message)));
    }

    /// Watches from now on send pieces of so many bytes and pause after each.
    pub fn slow_down(&self, bytes: usize, pause: Duration) {
        self.change(|s| s.pieces = Some((bytes, pause)));
    }

    /// All requests so far.
    pub fn journal(&self) -> Vec<Seen> {
        self.world.lock().seen.clone()
    }

    pub fn clear_journal(&self) {
        self.change(|s| s.seen.clear());
    }

    /// How many requests of this verb on this resource there were.
    pub fn count(&self, verb: &str, resource: &str) -> usize {
        self.world.lock().seen.iter().filter(|r| r.verb == verb && r.resource == resource).count()
    }

    /// All requests by verb and resource.
    pub fn counts(&self) -> BTreeMap<(String, String), usize> {
        let mut counts = BTreeMap::new();
        for r in &self.world.lock().seen {
            *counts.entry((r.verb.clone(), r.resource.clone())).or_default() += 1;
        }
        counts
    }

    pub fn watches_open(&self) -> usize {
        self.world.lock().open.values().sum()
    }

    /// Whether somebody watches objects of this kind, such as `pods`.
    pub fn is_watched(&self, plural: &str) -> bool {
        self.world.lock().open.get(plural).is_some_and(|count| *count > 0)
    }

    /// Bytes of bodies sent.
    pub fn bytes(&self) -> u64 {
        self.world.lock().bytes
    }

    /// Bytes of bodies sent to this address.
    pub fn bytes_to(&self, client: IpAddr) -> u64 {
        self.world.lock().bytes_to.get(&client).copied().unwrap_or_default()
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        self.world.change(change)
    }
}

/// A pod as the scheduler leaves it.
pub fn pod(namespace: &str, name: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"nodeName": node, "containers": [{"name": "main", "image": "busybox"}]},
        "status": {"phase": "Pending"},
    })
}

pub fn node(name: &str, provider_id: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": {"providerID": provider_id},
        "status": {},
    })
}

const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
type Merge = fn(&mut Value, &Value);

/// What a request is about.
struct Call {
    verb: &'static str,
    key: Key,
    /// `status`, or empty.
    sub: String,
}

impl Call {
    fn read(request: &Request) -> Option<Call> {
        let parts: Vec<&str> = request.path().trim_matches('/').split('/').collect();
        let (api, rest) = match &parts[..] {
            ["api", version, rest @ ..] => (format!("/api/{version}"), rest),
            ["apis", group, version, rest @ ..] => (format!("/apis/{group}/{version}"), rest),
            _ => return None,
        };
        let (namespace, rest) = match rest {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
            rest => ("", rest),
        };
        let (plural, name, sub) = match rest {
            [plural] => (plural, "", ""),
            [plural, name] => (plural, *name, ""),
            [plural, name, "status"] => (plural, *name, "status"),
            _ => return None,
        };
        let watching = matches!(request.param("watch").as_deref(), Some("true" | "1"));
        let verb = match (request.method.as_str(), name.is_empty()) {
            ("GET", true) if watching => "watch",
            ("GET", true) => "list",
            ("GET", false) => "get",
            ("POST", true) => "create",
            ("PUT", false) => "update",
            ("PATCH", false) => "patch",
            ("DELETE", false) => "delete",
            _ => return None,
        };
        let key = Key { collection: format!("{api}/{plural}"), namespace: decoded(namespace), name: decoded(name) };
        Some(Call { verb, key, sub: sub.to_owned() })
    }

    fn resource(&self) -> String {
        if self.sub.is_empty() { self.key.plural().to_owned() } else { format!("{}/{}", self.key.plural(), self.sub) }
    }
}

/// A path segment without its percent signs.
fn decoded(segment: &str) -> String {
    let pairs = super::http::form(segment);
    pairs.into_iter().next().map_or_else(String::new, |(name, _)| name)
}

type Answer = Result<Response, (u16, String)>;

impl World {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.lock());
        self.bell.notify_all();
        result
    }

    fn answer(self: &Arc<World>, request: Request) -> Response {
        let peer = request.peer.ip();
        let answer = self.admit(&request).unwrap_or_else(|| self.act(&request));
        let response = answer.unwrap_or_else(|(code, message)| Response::json(code, &status(code, &message)));
        if let super::http::Body::Bytes(bytes) = &response.body {
            self.lock().sent(peer, bytes.len());
        }
        response
    }

    /// Writes the request down; answers at once where it has no right to more, or trouble was ordered.
    fn admit(&self, request: &Request) -> Option<Answer> {
        let mut s = self.lock();
        let unknown = || Some(Err((404, "the server could not find the requested resource".into())));
        if s.is_away {
            return unknown();
        }
        if request.path() == "/healthz" {
            s.see("get", "/healthz", request);
            return Some(match s.health {
                200 => Ok(Response::new(200).body(b"ok".to_vec())),
                status => Err((status, "[-]poststarthook/crd-informer-synced failed".into())),
            });
        }
        if let Some(api) = discovered(request) {
            return if s.lacking.contains(&api) {
                unknown()
            } else {
                Some(Ok(Response::json(200, &s.resources(&api))))
            };
        }
        let Some(call) = Call::read(request) else { return unknown() };
        let forbidden = || Some(Err((403, format!("{} is forbidden: cannot {}", call.resource(), call.verb))));
        let is_denied = s.denied.contains(&(call.verb.into(), call.resource()));
        if s.lacking.iter().any(|api| call.key.collection.starts_with(&format!("{api}/"))) {
            // Who may not ask is not told.
            return if is_denied { forbidden() } else { unknown() };
        }
        s.see(call.verb, &call.resource(), request);
        let token = request.header("authorization").and_then(|h| h.strip_prefix("Bearer ")).unwrap_or_default();
        if !s.tokens.contains(token) && request.certificates.is_empty() {
            return Some(Err((401, "Unauthorized".into())));
        }
        if is_denied {
            return forbidden();
        }
        let at = s.troubles.iter().position(|(verb, _)| verb.is_empty() || verb == call.verb)?;
        Some(match s.troubles.remove(at)?.1 {
            Trouble::None => return None,
            Trouble::Status(code, message) => Err((code, message.into())),
            Trouble::Wire(fault) => Ok(Response::json(200, &status(500, "never heard")).fault(fault)),
            Trouble::Body(body) => Ok(Response::new(200).header("Content-Type", "application/json").body(body)),
        })
    }

    fn act(self: &Arc<World>, request: &Request) -> Answer {
        let call = Call::read(request).expect("the request was admitted");
        match call.verb {
            "watch" => self.watch(request, call),
            "list" => self.lock().list(request, &call.key),
            "get" => self.lock().existing(&call.key).map(|o| Response::json(200, &o)),
            verb => {
                let body = body_of(request)?;
                self.change(|s| match verb {
                    "create" => s.create(call.key, body),
                    "update" => s.update(call.key, body),
                    "patch" => s.patch(request, call, &body),
                    _ => s.delete(&call.key),
                })
            }
        }
    }

    fn watch(self: &Arc<World>, request: &Request, call: Call) -> Answer {
        let asked = Watcher::read(request, call.key)?;
        let (world, kind) = (self.clone(), asked.key.plural().to_owned());
        Ok(Response::stream(200, move |chunks| {
            world.change(|s| *s.open.entry(kind.clone()).or_default() += 1);
            let end = world.stream(chunks, asked);
            world.change(|s| *s.open.entry(kind).or_default() -= 1);
            end
        }))
    }

    /// Sends what happens until the time is up, the client goes, or the connection is to be broken.
    fn stream(&self, chunks: &mut Chunks, mut watcher: Watcher) -> io::Result<()> {
        let (cuts, mut last) = {
            let s = self.lock();
            watcher.bookmarks = s.bookmarks;
            watcher.injected = s.injected.len();
            (s.cuts, Instant::now())
        };
        loop {
            let (lines, torn, pieces) = {
                let mut s = self.lock();
                if s.cuts != cuts {
                    return Err(io::ErrorKind::ConnectionReset.into());
                }
                let lines = watcher.news(&mut s, &mut last);
                let torn = s.torn && !lines.0.is_empty();
                s.torn &= !torn;
                s.sent(watcher.peer, lines.0.len());
                (lines, torn, s.pieces)
            };
            if torn {
                chunks.send(&lines.0[..lines.0.len() / 2])?;
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            send(chunks, &lines.0, pieces)?;
            if lines.1 || !chunks.alive() {
                return Ok(());
            }
            let s = self.lock();
            if lines.0.is_empty() && s.cuts == cuts {
                drop(self.bell.wait_timeout(s, Duration::from_millis(50)));
            }
        }
    }
}

fn send(chunks: &mut Chunks, bytes: &[u8], pieces: Option<(usize, Duration)>) -> io::Result<()> {
    let Some((size, pause)) = pieces else { return chunks.send(bytes) };
    for piece in bytes.chunks(size) {
        chunks.send(piece)?;
        chunks.sleep(pause);
    }
    Ok(())
}

/// One open watch.
struct Watcher {
    key: Key,
    peer: IpAddr,
    selector: Selector,
    /// `None` wants the present state first.
    at: Option<u64>,
    wants_bookmarks: bool,
    wants_rows: bool,
    end: Instant,
    bookmarks: u64,
    injected: usize,
}

impl Watcher {
    fn read(request: &Request, key: Key) -> Result<Watcher, (u16, String)> {
        let at = match request.param("resourceVersion").as_deref() {
            None | Some("" | "0") => None,
            Some(version) => {
                Some(version.parse().map_err(|_| (400, format!("Invalid value: {version:?}: resource version")))?)
            }
        };
        let seconds = request.param("timeoutSeconds").and_then(|t| t.parse().ok()).unwrap_or(3600);
        Ok(Watcher {
            selector: selector(request, &key)?,
            key,
            peer: request.peer.ip(),
            at,
            wants_rows: wants_rows(request),
            wants_bookmarks: request.param("allowWatchBookmarks").as_deref() == Some("true"),
            end: Instant::now() + Duration::from_secs(seconds),
            bookmarks: 0,
            injected: 0,
        })
    }

    /// The lines to send now, and whether they are the last.
    fn news(&mut self, s: &mut State, last: &mut Instant) -> (Vec<u8>, bool) {
        let mut lines = Vec::new();
        match self.at.unwrap_or(0) {
            0 => {
                for object in s.store.list(&self.key.collection, &self.key.namespace) {
                    if self.selector.matches(object) {
                        lines.extend(self.told("ADDED", object));
                    }
                }
            }
            at => match s.store.since(at) {
                None => return (line("ERROR", &status(410, &format!("too old resource version: {at}"))), true),
                Some(records) => lines.extend(records.flat_map(|r| self.line(r)).flatten()),
            },
        }
        self.at = Some(s.store.version());
        for bytes in &s.injected[self.injected..] {
            lines.extend(bytes);
        }
        self.injected = s.injected.len();
        let over = Instant::now() >= self.end;
        let due = s.bookmarks != self.bookmarks || last.elapsed() >= s.bookmark_every || over;
        if due && self.wants_bookmarks {
            let mark = json!({"apiVersion": "v1", "metadata": {
                "resourceVersion": s.store.version().to_string(), "creationTimestamp": null}});
            lines.extend(line("BOOKMARK", &mark));
        }
        if due {
            (*last, self.bookmarks) = (Instant::now(), s.bookmarks);
        }
        (lines, over)
    }

    fn told(&self, kind: &str, object: &Value) -> Vec<u8> {
        if self.wants_rows { line(kind, &table(object)) } else { line(kind, object) }
    }

    /// Objects that come to match are added, those that cease to match are deleted.
    fn line(&self, record: &store::Record) -> Option<Vec<u8>> {
        let in_namespace = self.key.namespace.is_empty() || self.key.namespace == record.key.namespace;
        if record.key.collection != self.key.collection || !in_namespace {
            return None;
        }
        let selected = |o: &Option<Arc<Value>>| o.as_ref().is_some_and(|o| self.selector.matches(o));
        let kind = match (selected(&record.old), selected(&record.new)) {
            (false, false) => return None,
            (false, true) => "ADDED",
            (true, true) => "MODIFIED",
            (true, false) => "DELETED",
        };
        let object = record.new.as_ref().or(record.old.as_ref())?;
        Some(self.told(kind, object))
    }
}

fn wants_rows(request: &Request) -> bool {
    request.header("accept").is_some_and(|accept| accept.contains("as=Table"))
        && request.param("includeObject").as_deref() == Some("None")
        && request.path().ends_with("/nodes")
}

/// What the server's printers make of a node.
fn row(node: &Value) -> Value {
    let of = |kind: &str| {
        let all = node["status"]["addresses"].as_array().into_iter().flatten();
        all.filter(|addr| addr["type"] == kind).find_map(|addr| addr["address"].as_str()).unwrap_or("<none>").to_owned()
    };
    let name = node["metadata"]["name"].as_str().unwrap_or_default();
    let (os, kernel) = ("Alibaba Cloud Linux 3.2104 U10 (OpenAnolis Edition)", "5.10.134-16.3.al8.x86_64");
    json!({
        "cells": [name, "Ready", "<none>", "31d", "v1.30.1-aliyun.1", of("InternalIP"), of("ExternalIP"), os, kernel, "containerd://1.6.34"],
        "object": null,
    })
}

/// A change of a node: headers come once, with the first.
fn table(node: &Value) -> Value {
    let version = &node["metadata"]["resourceVersion"];
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {"resourceVersion": version}, "columnDefinitions": null,
        "rows": [row(node)],
    })
}

fn columns() -> Value {
    let names = [
        "Name",
        "Status",
        "Roles",
        "Age",
        "Version",
        "Internal-IP",
        "External-IP",
        "OS-Image",
        "Kernel-Version",
        "Container-Runtime",
    ];
    names
        .iter()
        .map(|name| json!({"name": name, "type": "string", "format": "", "description": "", "priority": 0}))
        .collect()
}

/// The group and version whose resources are asked for.
fn discovered(request: &Request) -> Option<String> {
    let parts: Vec<&str> = request.path().trim_matches('/').split('/').collect();
    match &parts[..] {
        ["apis", group, version] if request.method == "GET" => Some(format!("/apis/{group}/{version}")),
        _ => None,
    }
}

impl State {
    /// Those that somebody has put there.
    fn resources(&self, api: &str) -> Value {
        let all: Vec<Value> = self.store.plurals(api).iter().map(|name| json!({"name": name})).collect();
        json!({"kind": "APIResourceList", "apiVersion": "v1", "resources": all})
    }

    fn see(&mut self, verb: &str, resource: &str, request: &Request) {
        let (target, peer) = (request.target.clone(), request.peer);
        self.seen.push(Seen { verb: verb.into(), resource: resource.into(), target, peer });
    }

    fn sent(&mut self, peer: IpAddr, bytes: usize) {
        self.bytes += bytes as u64;
        *self.bytes_to.entry(peer).or_default() += bytes as u64;
    }

    fn existing(&self, key: &Key) -> Result<Arc<Value>, (u16, String)> {
        let found = self.store.get(key).cloned();
        found.ok_or_else(|| (404, format!("{} {:?} not found", key.plural(), key.name)))
    }

    fn list(&mut self, request: &Request, key: &Key) -> Answer {
        // What may come from the cache comes whole.
        let is_cached = request.param("resourceVersion").as_deref() == Some("0");
        let limit = request.param("limit").and_then(|l| l.parse().ok()).filter(|l| *l > 0 && !is_cached);
        let limit = limit.unwrap_or(usize::MAX);
        let (version, mut items) = match request.param("continue").filter(|c| !c.is_empty()) {
            Some(_) if request.param("resourceVersion").is_some_and(|v| !v.is_empty()) => {
                return Err((400, "specifying resource version is not allowed when using continue".into()));
            }
            Some(token) => self.pages.remove(&token).ok_or((410, "the continue token is too old".to_owned()))?,
            None => {
                let selector = selector(request, key)?;
                let all = self.store.list(&key.collection, &key.namespace);
                (self.store.version(), all.filter(|o| selector.matches(o)).cloned().collect())
            }
        };
        let mut meta = json!({"resourceVersion": version.to_string()});
        if items.len() > limit {
            let rest = items.split_off(limit);
            let token = format!("page+{}/{version}=", self.seen.len());
            meta["continue"] = json!(token);
            self.pages.insert(token, (version, rest));
        }
        if wants_rows(request) {
            let rows: Vec<Value> = items.iter().map(|o| row(o)).collect();
            let table = json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": meta, "columnDefinitions": columns(), "rows": rows});
            return Ok(Response::json(200, &table));
        }
        let items: Vec<Arc<str>> = items.iter().map(|o| self.text(o)).collect();
        let body =
            format!("{{\"kind\":\"List\",\"apiVersion\":\"v1\",\"metadata\":{meta},\"items\":[{}]}}", items.join(","));
        Ok(Response::new(200).header("Content-Type", "application/json").body(body.into_bytes()))
    }

    /// An object as JSON. It is kept: a server's own time for a long list is in nobody's figures.
    fn text(&mut self, object: &Value) -> Arc<str> {
        let version = object["metadata"]["resourceVersion"].as_str().expect("the store gave it one").to_owned();
        self.texts.entry(version).or_insert_with(|| object.to_string().into()).clone()
    }

    fn create(&mut self, mut key: Key, mut object: Value) -> Answer {
        let meta = &object["metadata"];
        key.name = match (meta["name"].as_str(), meta["generateName"].as_str()) {
            (Some(name), _) if !name.is_empty() => name.to_owned(),
            (_, Some(prefix)) => format!("{prefix}{:05x}", self.store.version()),
            _ => return Err((422, "name or generateName is required".into())),
        };
        if meta["namespace"].as_str().is_some_and(|n| n != key.namespace) {
            return Err((400, "the namespace of the object does not match the namespace on the request".into()));
        }
        check::object(&key, &object)?;
        if self.store.get(&key).is_some() {
            return Err((409, format!("{} {:?} already exists", key.plural(), key.name)));
        }
        if let Some(meta) = object["metadata"].as_object_mut() {
            meta.remove("uid");
        }
        Ok(Response::json(201, &self.store.put(key, object)))
    }

    fn update(&mut self, key: Key, object: Value) -> Answer {
        self.unchanged_since(&key, &object)?;
        Ok(Response::json(200, &self.store.put(key, object)))
    }

    fn patch(&mut self, request: &Request, call: Call, patch: &Value) -> Answer {
        let kind = request.header("content-type").unwrap_or_default();
        if ![MERGE, STRATEGIC].contains(&kind) {
            return Err((415, "the body of the request was in an unknown format".into()));
        }
        self.unchanged_since(&call.key, patch)?;
        let mut object = (*self.existing(&call.key)?).clone();
        let before = object["status"].clone();
        let lay_over =
            if kind == STRATEGIC { check::strategic(patch).map(|()| strategic as Merge) } else { Ok(merge as Merge) }?;
        if call.sub == "status" {
            lay_over(&mut object["status"], &patch["status"]);
        } else {
            lay_over(&mut object, patch);
            if matches!(call.key.plural(), "pods" | "nodes") {
                object["status"] = before;
            }
        }
        if object["metadata"]["name"] != json!(call.key.name) {
            return Err((422, "metadata.name: field is immutable".into()));
        }
        check::object(&call.key, &object)?;
        // What changes nothing is answered and told to nobody.
        if *self.existing(&call.key)?.as_ref() == object {
            return Ok(Response::json(200, &object));
        }
        Ok(Response::json(200, &self.store.put(call.key, object)))
    }

    fn delete(&mut self, key: &Key) -> Answer {
        self.existing(key)?;
        Ok(Response::json(200, &self.store.delete(key).expect("it exists")))
    }

    /// A version in what is written must be the present one.
    fn unchanged_since(&self, key: &Key, written: &Value) -> Result<(), (u16, String)> {
        let present = self.existing(key)?;
        match written.pointer("/metadata/resourceVersion").filter(|v| !v.is_null()) {
            Some(version) if *version != present["metadata"]["resourceVersion"] => {
                Err((409, format!("the object {:?} has been modified", key.name)))
            }
            _ => Ok(()),
        }
    }
}

fn body_of(request: &Request) -> Result<Value, (u16, String)> {
    if request.body.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&request.body).map_err(|e| (400, format!("the body is not JSON: {e}")))
}

fn selector(request: &Request, key: &Key) -> Result<Selector, (u16, String)> {
    let param = |name: &str| request.param(name).unwrap_or_default();
    Selector::parse(key.plural(), &param("fieldSelector"), &param("labelSelector")).map_err(|why| (400, why))
}

fn line(kind: &str, object: &Value) -> Vec<u8> {
    // `type` first, as the API server writes it.
    let mut line = format!("{{\"type\":\"{kind}\",\"object\":{object}}}").into_bytes();
    line.push(b'\n');
    line
}

fn status(code: u16, message: &str) -> Value {
    let reason = match code {
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        409 => "Conflict",
        410 => "Expired",
        422 => "Invalid",
        429 => "TooManyRequests",
        _ => "InternalError",
    };
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    })
}

impl Authority {
    fn new() -> Authority {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "kubernetes");
        let cert = params.self_signed(&key).expect("a certificate");
        Authority { pem: cert.pem(), root: cert.der().clone(), issuer: Issuer::new(params, key) }
    }

    fn server_config(&self, names: Vec<String>) -> Arc<ServerConfig> {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(names).expect("names or addresses");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let cert = params.signed_by(&key, &self.issuer).expect("a certificate");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).expect("our own root");
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()
            .expect("a verifier");
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("default versions")
            .with_client_cert_verifier(clients)
            .with_single_cert(vec![cert.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
            .expect("a key that fits");
        Arc::new(config)
    }

    /// A client's certificate and key in PEM.
    fn client(&self) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.distinguished_name.push(DnType::CommonName, "system:node:sim");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let cert = params.signed_by(&key, &self.issuer).expect("a certificate");
        (cert.pem(), key.serialize_pem())
    }
}
