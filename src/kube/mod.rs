//! The Kubernetes API over HTTP: get, list and watch, create, patch.

mod access;
mod allowance;
#[cfg(fuzzing)]
pub mod doors;
mod glimpse;
mod kubeadm;
mod page;
mod watch;
mod yaml;

use std::io::{self, BufReader, Read};
use std::marker::PhantomData;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::de::{DeserializeOwned, DeserializeSeed};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use ureq::http::{Request, Response};
use ureq::{Agent, Body};

pub use crate::object::Patch;
pub use access::Source;
pub use glimpse::Glimpse;
pub use watch::{Change, Stop, Watch};

use crate::config::Pace;
use crate::error::{Cause, Context, Error};
use crate::object::{self, Object, Write};
use crate::uri::percent_encode;
use access::Access;
use allowance::Allowance;
use page::Page;

/// How often files are read again: a service account's token and a kubelet's certificate are replaced while we run.
const REREAD: Duration = Duration::from_secs(60);
/// Of each connection, four times: for what comes and goes, within TLS and outside. ureq's own are 128 KiB each, which stay as long
/// as the connection; a request and the head of an answer fit into these.
const BUFFER: usize = 16 << 10;
/// How much of an error's body we read, and how much of its message we keep.
const REFUSAL_MAX: u64 = 64 << 10;
const MESSAGE_MAX: usize = 1024;

/// What the kernel says where nobody answers.
const NOBODY: [i32; 5] = [libc::ECONNREFUSED, libc::ECONNRESET, libc::EHOSTUNREACH, libc::ENETUNREACH, libc::ETIMEDOUT];

/// Bounds of time and size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// To connect, TLS included.
    pub connect: Duration,
    /// For a whole request but a watch; of a list for its head, and for each object.
    pub call: Duration,
    /// How long a watch may be silent. Servers that know bookmarks send one a minute.
    pub silence: Duration,
    /// How long we ask the server to keep a watch open.
    pub watch: Duration,
    /// Objects on a page of a list. A server that answers from its cache sends all of them at once whatever is asked for, so that there is no
    /// bound for a whole page.
    pub page: u32,
    /// Bytes of one object.
    pub object_bytes: u64,
}

impl Limits {
    pub const USUAL: Limits = Limits {
        connect: Duration::from_secs(5),
        call: Duration::from_secs(30),
        silence: Duration::from_secs(150),
        watch: Duration::from_secs(290),
        page: 500,
        object_bytes: 8 << 20,
    };
}

impl Default for Limits {
    fn default() -> Limits {
        Limits::USUAL
    }
}

/// Which objects of a collection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Select {
    /// Empty for all namespaces, or for kinds without.
    pub namespace: String,
    /// Such as `spec.nodeName=n1`; empty for no restriction.
    pub fields: String,
    pub labels: String,
    /// As rows of the table that kubectl(1) prints, of which each is a few hundred bytes. A server that makes none sends objects all the
    /// same.
    pub rows: bool,
}

/// A connection to the API server; clones share it. One attempt per call: whether to try again is the caller's choice.
#[derive(Clone)]
pub struct Client {
    session: Arc<Mutex<Session>>,
    /// Told when it is closed.
    end: Arc<Condvar>,
}

/// Who we are at present, and the connections made as such.
struct Session {
    source: Source,
    limits: Limits,
    access: Arc<Access>,
    read_at: Instant,
    agent: Agent,
    closed: bool,
    /// Shared with all clients that came from this one.
    turnstile: Arc<Mutex<Turnstile>>,
    unreached: Arc<Mutex<Option<Instant>>>,
}

/// Lets so many requests a second through.
struct Turnstile {
    pace: Option<Pace>,
    /// Requests that may go at once, as of then.
    level: f64,
    since: Instant,
}

impl Turnstile {
    fn new() -> Turnstile {
        Turnstile { pace: None, level: 0.0, since: Instant::now() }
    }

    fn set(&mut self, pace: Option<Pace>) {
        self.pace = pace;
        self.level = pace.map_or(0.0, |pace| f64::from(pace.burst));
        self.since = Instant::now();
    }

    /// How long the next request waits for its turn.
    fn next(&mut self, now: Instant) -> Duration {
        let Some(pace) = self.pace else { return Duration::ZERO };
        let gained = now.duration_since(self.since).as_secs_f64() * pace.per_second;
        self.level = (self.level + gained).min(f64::from(pace.burst)) - 1.0;
        self.since = now;
        Duration::from_secs_f64((-self.level / pace.per_second).max(0.0))
    }
}

impl Client {
    pub fn open(source: Source) -> Result<Client, Error> {
        Client::with_limits(source, Limits::default())
    }

    pub fn with_limits(source: Source, limits: Limits) -> Result<Client, Error> {
        let access = Arc::new(Access::load(&source)?);
        let agent = agent(&access, &limits);
        let turnstile = Arc::new(Mutex::new(Turnstile::new()));
        let unreached = Arc::default();
        let session =
            Session { source, limits, access, read_at: Instant::now(), agent, closed: false, turnstile, unreached };
        Ok(Client::of(session))
    }

    fn of(session: Session) -> Client {
        Client { session: Arc::new(Mutex::new(session)), end: Arc::default() }
    }

    /// Where the API server is, if it is named by an address.
    pub fn address(&self) -> Option<IpAddr> {
        let access = self.lock().access.clone();
        let authority = access.server.strip_prefix("https://")?.split('/').next()?;
        let host = authority.parse::<SocketAddr>().map(|at| at.ip());
        host.ok().or_else(|| authority.trim_matches(['[', ']']).parse().ok())
    }

    /// From now on no more requests than this, of this client and of all that came from it; `None`: as many as there are.
    pub fn pace(&self, pace: Option<Pace>) {
        let turnstile = Arc::clone(&self.lock().turnstile);
        turnstile.lock().unwrap_or_else(PoisonError::into_inner).set(pace);
    }

    /// Since when no request has reached a server, of this client and of all that came from it; `None`: the last one did.
    pub fn unreached(&self) -> Option<Instant> {
        *self.lock().unreached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, answer: &Result<Response<Body>, Error>) {
        let unreached = Arc::clone(&self.lock().unreached);
        let mut since = unreached.lock().unwrap_or_else(PoisonError::into_inner);
        match answer.as_ref().map_err(|e| &e.cause) {
            Ok(_) | Err(Cause::Http { .. } | Cause::Absent) => *since = None,
            Err(Cause::Timeout) => _ = since.get_or_insert_with(Instant::now),
            Err(Cause::Os { errno, .. }) if NOBODY.contains(errno) => _ = since.get_or_insert_with(Instant::now),
            // Somebody is there, be it another, or it is our own affair.
            Err(_) => {}
        }
    }

    fn wait_for_turn(&self) {
        let turnstile = Arc::clone(&self.lock().turnstile);
        let wait = turnstile.lock().unwrap_or_else(PoisonError::into_inner).next(Instant::now());
        if !wait.is_zero() {
            thread::sleep(wait);
        }
    }

    /// One object, by the path that [`object::path`] makes. [`Cause::Absent`] where there is none.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        let object: Result<Box<RawValue>, Error> =
            self.read(Verb::Get(Form::Objects), path, &self.allowance(), PhantomData);
        object.and_then(|object| Ok(page::whole(&object)?)).context(|| format!("get {path}"))
    }

    /// Whether the server has this collection: who may not read it is told the same, whether it is there or not. Whoever may speak to the
    /// server may ask that.
    pub fn has(&self, api: &str, plural: &str) -> Result<bool, Error> {
        Ok(self.kinds(api)?.iter().any(|kind| kind == plural))
    }

    /// The collections of an API (`apis/GROUP/VERSION`), by their plurals; none, if the server has no such API.
    pub fn kinds(&self, api: &str) -> Result<Vec<String>, Error> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Group {
            resources: Vec<Resource>,
        }
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Resource {
            name: String,
        }
        match self.get::<Group>(&format!("/{api}")) {
            Ok(group) => Ok(group.resources.into_iter().map(|resource| resource.name).collect()),
            Err(e) if e.is_absent() => Ok(Vec::new()),
            Err(e) => Err(e),
        }
    }

    /// Whether what is not found there is lacking: a server that has not come up yet does not know all of its kinds, and what stands in its
    /// place knows none. An error says why it is not; cni-conf/rbac.yaml has the right to ask.
    pub fn health(&self) -> Result<(), Error> {
        self.act(Verb::Get(Form::Objects), "/healthz").context(|| "get /healthz")
    }

    /// All objects that are selected.
    pub fn list<T: Object>(&self, select: &Select) -> Result<Vec<T>, Error> {
        let path = object::collection::<T>(&select.namespace);
        self.pages(&path, select, None, |object: T| object).map(|list| list.0)
    }

    /// What is kept of the objects, and their resource version, page by page; `version` "0" allows the server to answer from
    /// its cache.
    fn pages<T: Object, K>(
        &self,
        path: &str,
        select: &Select,
        version: Option<&str>,
        keep: fn(T) -> K,
    ) -> Result<(Vec<K>, String), Error> {
        let mut kept = Vec::new();
        let mut next = String::new();
        loop {
            let mut query = select.query();
            query.add("limit", &self.lock().limits.page.to_string());
            match version {
                _ if !next.is_empty() => query.add("continue", &next),
                Some(version) => query.add("resourceVersion", version),
                None => {}
            }
            let (target, allowance) = (format!("{path}{}", query.0), self.allowance());
            let page = Page { kept: &mut kept, keep, allowance: &allowance };
            let verb = Verb::List(select.form());
            let meta = self.read(verb, &target, &allowance, page).context(|| format!("list {path}"))?;
            next = meta.r#continue;
            if next.is_empty() {
                return Ok((kept, meta.resource_version));
            }
        }
    }

    /// Creates an object in the collection at `path`.
    pub fn create(&self, path: &str, object: &impl Serialize) -> Result<(), Error> {
        let body = serde_json::to_vec(object)?;
        self.act(Verb::Create(&body), path).context(|| format!("create in {path}"))
    }

    /// Patches the object at `path`; add `/status` for its status.
    pub fn patch(&self, path: &str, patch: Patch, body: &impl Serialize) -> Result<(), Error> {
        let body = serde_json::to_vec(body)?;
        self.act(Verb::Patch(patch, &body), path).context(|| format!("patch {path}"))
    }

    pub fn carry_out(&self, write: &Write) -> Result<(), Error> {
        match write {
            Write::Create { path, body } => self.create(path, body),
            Write::Patch { path, patch, body } => self.patch(path, *patch, body),
        }
    }

    /// All changes from now on, the present state first.
    pub fn watch<T: Object>(&self, select: Select) -> Watch<T> {
        self.watch_at(T::API, T::PLURAL, select)
    }

    /// The same of a kind that is named.
    pub fn watch_at<T: Object>(&self, api: &str, plural: &str, select: Select) -> Watch<T> {
        let path = object::collection_at(api, plural, &select.namespace);
        Watch::new(self.fork(), path, select)
    }

    /// The same access over connections of its own, which can be closed alone.
    fn fork(&self) -> Client {
        let s = self.lock();
        let session = Session {
            source: s.source.clone(),
            limits: s.limits,
            access: s.access.clone(),
            read_at: s.read_at,
            agent: agent(&s.access, &s.limits),
            closed: s.closed,
            turnstile: Arc::clone(&s.turnstile),
            unreached: Arc::clone(&s.unreached),
        };
        Client::of(session)
    }

    /// Ends calls in flight, and fails those to come.
    fn close(&self) {
        let mut session = self.lock();
        session.closed = true;
        session.agent.clone().shutdown();
        self.end.notify_all();
    }

    /// Waits so long, or until it is closed; whether it is.
    fn rest(&self, time: Duration) -> bool {
        let waited = self.end.wait_timeout_while(self.lock(), time, |session| !session.closed);
        waited.unwrap_or_else(PoisonError::into_inner).0.closed
    }

    fn is_closed(&self) -> bool {
        self.lock().closed
    }

    fn limits(&self) -> Limits {
        self.lock().limits
    }

    /// Held for as long as it takes to read a few files, never over a request.
    fn lock(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn allowance(&self) -> Allowance {
        let limits = self.limits();
        Allowance::new(limits.object_bytes, limits.call)
    }

    /// One object of JSON at `target`, read as it arrives; that it is allowed more is the seed's to say.
    fn read<S: for<'de> DeserializeSeed<'de, Value = T>, T>(
        &self,
        verb: Verb,
        target: &str,
        allowance: &Allowance,
        seed: S,
    ) -> Result<T, Error> {
        let body = self.send(verb, target)?.into_body().into_with_config().limit(u64::MAX).reader();
        allowance.renew();
        let body = BufReader::with_capacity(16 << 10, allowance.of(body));
        let mut json = serde_json::Deserializer::from_reader(body);
        let value = seed.deserialize(&mut json).map_err(unreadable)?;
        json.end().map_err(unreadable)?;
        Ok(value)
    }

    /// What a success says is of no use; it is read to its end so that the connection can be used again.
    fn act(&self, verb: Verb, target: &str) -> Result<(), Error> {
        let max = self.limits().object_bytes;
        let mut body = self.send(verb, target)?.into_body().into_with_config().limit(max).reader();
        io::copy(&mut body, &mut io::sink()).map(drop).map_err(|e| wire(e.into()))
    }

    /// Sends; once more only if the server does not know us (any longer) and the files now say that we are another.
    fn send(&self, verb: Verb, target: &str) -> Result<Response<Body>, Error> {
        self.wait_for_turn();
        let (agent, access, limits) = self.lock().ready()?;
        let answer = verb.send(&agent, &access, &limits, target);
        self.note(&answer);
        match answer {
            Err(Error { cause: Cause::Http { status: 401, .. }, .. }) if self.lock().renew(&access)? => {
                let (agent, access, limits) = self.lock().ready()?;
                verb.send(&agent, &access, &limits, target)
            }
            answer => answer,
        }
    }
}

impl Session {
    fn ready(&mut self) -> Result<(Agent, Arc<Access>, Limits), Error> {
        if self.closed {
            return Err(Error::refused("the client is closed"));
        }
        if self.read_at.elapsed() >= REREAD {
            // Files can be met half written; what we know may well be good still, and if not the server says so.
            let _ = self.reread();
        }
        Ok((self.agent.clone(), self.access.clone(), self.limits))
    }

    /// Reads the files again; whether we are now another than the one that was refused.
    fn renew(&mut self, refused: &Access) -> Result<bool, Error> {
        self.reread()?;
        Ok(*self.access != *refused)
    }

    fn reread(&mut self) -> Result<(), Error> {
        self.read_at = Instant::now();
        let access = Access::load(&self.source)?;
        if !self.access.same_tls(&access) {
            self.agent = agent(&access, &self.limits);
        }
        self.access = Arc::new(access);
        Ok(())
    }
}

fn agent(access: &Access, limits: &Limits) -> Agent {
    Agent::config_builder()
        .https_only(true)
        .http_status_as_error(false)
        .proxy(None)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .user_agent(concat!("terway/", env!("CARGO_PKG_VERSION")))
        .timeout_connect(Some(limits.connect))
        .timeout_global(Some(limits.call))
        .tls_config(access.tls())
        .input_buffer_size(BUFFER)
        .output_buffer_size(BUFFER)
        // What does not fit the buffer would look like a connection that broke.
        .max_response_header_size(BUFFER / 2)
        .build()
        .new_agent()
}

/// What to do at a path.
#[derive(Clone, Copy)]
enum Verb<'a> {
    Get(Form),
    /// GETs whose answers go on for as long as they like, if only they are not silent for too long.
    List(Form),
    Watch(Form),
    Create(&'a [u8]),
    Patch(Patch, &'a [u8]),
}

impl Verb<'_> {
    fn send(self, agent: &Agent, access: &Access, limits: &Limits, target: &str) -> Result<Response<Body>, Error> {
        let form = match self {
            Verb::Get(form) | Verb::List(form) | Verb::Watch(form) => form,
            _ => Form::Objects,
        };
        let mut request = Request::builder().uri(format!("{}{target}", access.server)).header("Accept", form.mime());
        if let Some(bearer) = &access.bearer {
            request = request.header("Authorization", format!("Bearer {bearer}"));
        }
        let answer = match self {
            Verb::Get(_) => request.method("GET").body(()).map(|r| agent.run(r)),
            Verb::List(_) => request.method("GET").body(()).map(|r| agent.run(patient(agent, limits, limits.call, r))),
            Verb::Watch(_) => {
                request.method("GET").body(()).map(|r| agent.run(patient(agent, limits, limits.silence, r)))
            }
            Verb::Create(body) => request.method("POST").header("Content-Type", JSON).body(body).map(|r| agent.run(r)),
            Verb::Patch(patch, body) => {
                request.method("PATCH").header("Content-Type", patch.mime()).body(body).map(|r| agent.run(r))
            }
        };
        accept(answer.map_err(Error::malformed)?.map_err(wire)?)
    }
}

const JSON: &str = "application/json";

/// How objects come: as they are, or as rows of a table where the server can.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Objects,
    Rows,
}

impl Form {
    fn mime(self) -> &'static str {
        match self {
            Form::Objects => JSON,
            Form::Rows => "application/json;as=Table;v=v1;g=meta.k8s.io, application/json",
        }
    }
}

impl Patch {
    fn mime(self) -> &'static str {
        match self {
            Patch::Merge => "application/merge-patch+json",
            Patch::Strategic => "application/strategic-merge-patch+json",
        }
    }
}

fn patient(agent: &Agent, limits: &Limits, silence: Duration, request: Request<()>) -> Request<()> {
    agent
        .configure_request(request)
        .timeout_global(None)
        .timeout_recv_response(Some(limits.call))
        .timeout_per_read(Some(silence))
        .build()
}

/// Sorts answers: what is not a success becomes an error with the message of the Status object.
fn accept(answer: Response<Body>) -> Result<Response<Body>, Error> {
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let mut body = Vec::new();
    // Half a message is better than none. One read to its end leaves the connection fit for the next call.
    let _ = answer.into_body().into_reader().take(REFUSAL_MAX).read_to_end(&mut body);
    Err(Error::new(match status.as_u16() {
        404 => Cause::Absent,
        status => Cause::Http { status, body: message(&body) },
    }))
}

/// The message of a Status object, or the text itself where a proxy on the way has answered.
fn message(body: &[u8]) -> String {
    let text = match serde_json::from_slice::<Status>(body) {
        Ok(status) if !status.message.is_empty() => status.message,
        _ => String::from_utf8_lossy(body).trim().to_owned(),
    };
    object::head(&text, MESSAGE_MAX).to_owned()
}

/// Kubernetes' way to say what went wrong.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    code: u16,
    message: String,
}

/// The metadata of a list.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PageMeta {
    resource_version: String,
    r#continue: String,
}

/// A query under way: starts with `?`, pairs are joined by `&`.
struct Query(String);

impl Query {
    fn add(&mut self, name: &str, value: &str) {
        self.0.push(if self.0.is_empty() { '?' } else { '&' });
        self.0.push_str(name);
        self.0.push('=');
        self.0.push_str(&percent_encode(value));
    }
}

impl Select {
    fn form(&self) -> Form {
        if self.rows { Form::Rows } else { Form::Objects }
    }

    fn query(&self) -> Query {
        let mut query = Query(String::new());
        for (name, value) in [("fieldSelector", &self.fields), ("labelSelector", &self.labels)] {
            if !value.is_empty() {
                query.add(name, value);
            }
        }
        if self.rows {
            query.add("includeObject", "None");
        }
        query
    }
}

/// What ureq met on the wire.
fn wire(e: ureq::Error) -> Error {
    match e {
        ureq::Error::Timeout(_) => Error::new(Cause::Timeout),
        ureq::Error::Io(e) => e.into(),
        ureq::Error::BodyExceedsLimit(max) => too_large(max),
        other => Error::malformed(other),
    }
}

fn too_large(max: u64) -> Error {
    Error::refused(format!("the answer is larger than {max} bytes"))
}

/// A body that could not be read, or not be understood.
fn unreadable(e: serde_json::Error) -> Error {
    if e.is_io() { wire(io::Error::from(e).into()) } else { e.into() }
}
