//! Everything behind the servers: the clockwork, who may call, and the way of one request through it all.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use ipnet::Ipv4Net;
use serde_json::{Value, json};

use super::model::{EniView, Model, Wire};
use super::params::{self, Params, Spec};
use super::sign::Call as Signed;
use super::trouble::{self, Kind, Plan};
use super::{ApiError, Call, Config, Fabric, Rate, TokenMode, actions, lock, stamp};
use crate::sim::http::{Fault, Request, Response};
use crate::sim::metadata;

/// Everything behind the servers.
pub struct World {
    pub(super) region: String,
    vpc_cidr: Ipv4Net,
    sts_life: Duration,
    metadata_tokens: TokenMode,
    started: Instant,
    model: Mutex<Model>,
    fabric: Mutex<Box<dyn Fabric>>,
    pub(super) law: Mutex<Law>,
    pub(super) plan: Mutex<Plan>,
    pub(super) outage: Mutex<bool>,
    /// Seconds that the cloud's clock is ahead of the machine's that runs the simulation.
    pub(super) ahead: Mutex<i64>,
    pub(super) journal: Mutex<Vec<Call>>,
    /// Which instance calls from which address.
    pub(super) faces: Mutex<HashMap<IpAddr, String>>,
    pub(super) clock: Mutex<Clock>,
    pub(super) bell: Condvar,
}

#[derive(Default)]
pub struct Clock {
    pub stopping: bool,
    /// Counts the moments at which something new may have become due.
    wound: u64,
}

/// Keys, rights, limits and what must not be repeated.
pub struct Law {
    pub keys: HashMap<String, Key>,
    /// Who may not do what.
    pub forbidden: BTreeSet<(String, String)>,
    pub buckets: HashMap<String, Bucket>,
    nonces: HashSet<(String, String)>,
    tokens: HashMap<(String, String), Token>,
    metadata_tokens: HashMap<String, (String, Instant)>,
    roles: HashMap<String, Credentials>,
    dice: fastrand::Rng,
}

impl Law {
    fn random_text(&mut self, length: usize) -> String {
        (0..length).map(|_| self.dice.alphanumeric()).collect()
    }
}

/// Temporary credentials of a role.
#[derive(Debug, Clone)]
pub struct Credentials {
    pub id: String,
    pub secret: String,
    pub token: String,
    pub issued: String,
    pub expires: String,
}

/// An instance as its metadata service shows it.
pub struct Identity {
    pub instance: String,
    pub instance_type: String,
    pub role: Option<String>,
    pub vpc: String,
    pub vpc_cidr: Ipv4Net,
    pub zone: String,
    pub primary_eni: String,
    pub enis: Vec<EniView>,
}

#[derive(Clone)]
pub struct Key {
    /// The key's own name, or the role's that it stands for.
    owner: String,
    secret: String,
    pub token: Option<String>,
    pub expires: Option<SystemTime>,
}

impl Key {
    pub fn lasting(id: &str, secret: &str) -> Key {
        Key { owner: id.into(), secret: secret.into(), token: None, expires: None }
    }
}

pub struct Bucket {
    rate: Rate,
    level: f64,
    filled: Instant,
}

/// What became of the first request with a ClientToken.
struct Token {
    params: BTreeMap<String, String>,
    state: TokenState,
}

enum TokenState {
    Working,
    Done(Value),
    Failed,
}

impl Bucket {
    pub fn full(rate: Rate) -> Bucket {
        Bucket { rate, level: f64::from(rate.burst), filled: Instant::now() }
    }

    fn take(&mut self) -> bool {
        let now = Instant::now();
        let gained = now.duration_since(self.filled).as_secs_f64() * self.rate.per_second;
        self.level = (self.level + gained).min(f64::from(self.rate.burst));
        self.filled = now;
        let enough = self.level >= 1.0;
        if enough {
            self.level -= 1.0;
        }
        enough
    }
}

impl World {
    pub(super) fn new(config: Config, fabric: Box<dyn Fabric>) -> World {
        let keys = config.keys.iter().map(|(id, secret)| (id.clone(), Key::lasting(id, secret)));
        World {
            started: Instant::now(),
            model: Mutex::new(Model::new(&config)),
            fabric: Mutex::new(fabric),
            law: Mutex::new(Law {
                keys: keys.collect(),
                forbidden: BTreeSet::new(),
                buckets: HashMap::new(),
                nonces: HashSet::new(),
                tokens: HashMap::new(),
                metadata_tokens: HashMap::new(),
                roles: HashMap::new(),
                dice: fastrand::Rng::with_seed(config.seed.wrapping_add(1)),
            }),
            plan: Mutex::new(Plan::new(config.seed)),
            outage: Mutex::new(false),
            ahead: Mutex::new(0),
            journal: Mutex::default(),
            faces: Mutex::default(),
            clock: Mutex::default(),
            bell: Condvar::new(),
            sts_life: config.sts_life,
            metadata_tokens: config.metadata_tokens,
            vpc_cidr: config.vpc_cidr,
            region: config.region,
        }
    }

    pub(super) fn model(&self) -> MutexGuard<'_, Model> {
        lock(&self.model)
    }

    // Time.

    /// By the cloud's clock.
    pub(super) fn time(&self) -> SystemTime {
        let ahead = *lock(&self.ahead);
        let apart = Duration::from_secs(ahead.unsigned_abs());
        if ahead < 0 { SystemTime::now() - apart } else { SystemTime::now() + apart }
    }

    /// Ends transitions when their time has come, until the cloud stops.
    pub(super) fn tick(&self) {
        loop {
            let wound = lock(&self.clock).wound;
            self.settle();
            let due = self.model().next_due();
            let time = due.map_or(Duration::from_secs(60), |due| due.saturating_duration_since(Instant::now()));
            let idle = |c: &mut Clock| !c.stopping && c.wound == wound;
            let waited = self.bell.wait_timeout_while(lock(&self.clock), time, idle);
            if waited.unwrap_or_else(PoisonError::into_inner).0.stopping {
                return;
            }
        }
    }

    /// Something may have become due: the clockwork looks again.
    fn wind(&self) {
        lock(&self.clock).wound += 1;
        self.bell.notify_all();
    }

    /// Sleeps, unless the cloud stops meanwhile.
    pub(super) fn sleep(&self, time: Duration) {
        let until = self.bell.wait_timeout_while(lock(&self.clock), time, |c| !c.stopping);
        drop(until.unwrap_or_else(PoisonError::into_inner));
    }

    /// Ends what is due: wires first, then what API and metadata say. The fabric's lock keeps events in their order.
    pub(super) fn settle(&self) {
        let mut fabric = lock(&self.fabric);
        let ripe = self.model().ripen(Instant::now());
        loop {
            let wire = self.model().wires.pop_front();
            match wire {
                None => break,
                Some(Wire::Plug(instance, eni)) => fabric.plug(&instance, &eni),
                Some(Wire::Unplug(instance, eni)) => fabric.unplug(&instance, &eni),
                Some(Wire::Addresses(instance, eni)) => fabric.addresses(&instance, &eni),
            }
        }
        self.model().complete(&ripe);
    }

    /// A change of one ENI that takes its time, during which no other change of it is accepted.
    pub(super) fn change<T>(
        &self,
        eni: &str,
        work: impl FnOnce(&mut Model) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        let delay = {
            let mut model = self.model();
            model.begin(eni)?;
            model.change_delay()
        };
        self.sleep(delay);
        let mut model = self.model();
        model.end(eni);
        work(&mut model)
    }

    // One request.

    pub(super) fn answer(&self, request: &Request) -> Response {
        let request_id = self.fresh_request_id();
        let mut entry = Call {
            at: self.started.elapsed(),
            action: String::new(),
            params: BTreeMap::new(),
            key: String::new(),
            from: request.peer.ip(),
            result: String::new(),
            trouble: None,
            request_id,
        };
        let outage = *lock(&self.outage);
        let signed = Signed::read(request);
        if let Ok(signed) = &signed {
            entry.action = signed.action.clone();
            entry.params = signed.params.clone();
            entry.key = signed.key.clone();
        }
        if outage {
            entry.result = "outage".into();
            entry.trouble = Some(Kind::Silence);
            lock(&self.journal).push(entry);
            return Response::new(500).fault(Fault::Silence);
        }
        let admitted = signed.and_then(|s| self.admit(&s).map(|spec| (s, spec)));
        // Whoever is not let in has no part in the troubles of those who are.
        entry.trouble = admitted.as_ref().ok().and_then(|(s, _)| lock(&self.plan).next(&s.action));
        let outcome = admitted.and_then(|(signed, spec)| match &entry.trouble {
            Some(Kind::Refuse { status, code }) => Err(ApiError::new(*status, code, "Trouble on purpose.")),
            Some(Kind::Silence) => Err(ApiError::new(500, "silence", "Never said.")),
            Some(Kind::Repeat) => {
                let _ = self.carry_out(spec, &signed.params);
                self.carry_out(spec, &signed.params)
            }
            _ => self.carry_out(spec, &signed.params),
        });
        entry.result = outcome.as_ref().map_or_else(|e| e.code.clone(), |_| "OK".into());
        let (trouble, request_id) = (entry.trouble.clone(), entry.request_id.clone());
        lock(&self.journal).push(entry);
        self.reply(outcome, trouble, &request_id)
    }

    fn reply(&self, outcome: Result<Value, ApiError>, trouble: Option<Kind>, request_id: &str) -> Response {
        let (status, mut body) = match outcome {
            Ok(body) => (200, body),
            Err(e) => {
                let words = json!({ "HostId": "ecs.sim", "Code": e.code, "Message": e.message, "Recommend": "" });
                (e.status, words)
            }
        };
        body["RequestId"] = json!(request_id);
        if let Some(Kind::Lie(lie)) = &trouble {
            let id = body["NetworkInterfaceId"]
                .as_str()
                .or(body["AssignedPrivateIpAddressesSet"]["NetworkInterfaceId"].as_str());
            let other = self.model().address_of_another(id.unwrap_or_default());
            trouble::tell(*lie, &mut body, &other.unwrap_or(Ipv4Addr::UNSPECIFIED).to_string());
        }
        spoil(Response::json(status, &body).header("Date", &date(self.time())), trouble)
    }

    /// Whether the call may be carried out: who calls, with which right, how often.
    fn admit(&self, call: &Signed) -> Result<&'static Spec, ApiError> {
        let who = self.authenticate(call)?;
        let spec = params::spec(&call.action, &call.version)?;
        let mut law = lock(&self.law);
        for name in ["*", spec.action] {
            if law.buckets.get_mut(name).is_some_and(|b| !b.take()) {
                return Err(ApiError::new(400, "Throttling.User", "Request was denied due to user flow control."));
            }
        }
        let forbidden = |who: &str| law.forbidden.contains(&(who.into(), spec.right.into()));
        if forbidden("*") || forbidden(&who) {
            let words = format!("{who} is not authorized to do {}.", spec.right);
            return Err(ApiError::new(403, "Forbidden.RAM", words));
        }
        Ok(spec)
    }

    /// Who it is: a key's own name or a role's.
    fn authenticate(&self, call: &Signed) -> Result<String, ApiError> {
        let now = self.time();
        let unknown = || ApiError::not_found("InvalidAccessKeyId.NotFound", "such access key");
        let key = lock(&self.law).keys.get(&call.key).cloned().ok_or_else(unknown)?;
        match (&key.token, &call.token) {
            (None, None) => {}
            // Temporary keys exist only together with their token.
            (Some(_), None) => return Err(unknown()),
            (Some(have), Some(given)) if have == given => {}
            _ => return Err(ApiError::new(400, "InvalidSecurityToken.Malformed", "The security token is wrong.")),
        }
        if key.expires.is_some_and(|at| at <= now) {
            return Err(ApiError::new(400, "InvalidSecurityToken.Expired", "The security token has expired."));
        }
        let format = || ApiError::new(400, "InvalidTimeStamp.Format", "A timestamp is like 2026-01-02T03:04:05Z.");
        let precise = call.timestamp.len() == 20 && call.timestamp.ends_with('Z');
        let said = humantime::parse_rfc3339(&call.timestamp).ok().filter(|_| precise).ok_or_else(format)?;
        let apart = now.duration_since(said).unwrap_or_else(|e| e.duration());
        if apart > Duration::from_secs(15 * 60) {
            let words = "The timestamp is more than 15 minutes from the present.";
            return Err(ApiError::new(400, "InvalidTimeStamp.Expired", words));
        }
        call.check_signature(&key.secret)?;
        // Only a rightly signed call uses its nonce up.
        if call.nonce.is_empty() || !lock(&self.law).nonces.insert((call.key.clone(), call.nonce.clone())) {
            return Err(ApiError::new(400, "SignatureNonceUsed", "The nonce has been used already."));
        }
        Ok(key.owner)
    }

    pub(super) fn carry_out(&self, spec: &Spec, all: &BTreeMap<String, String>) -> Result<Value, ApiError> {
        let params = Params::check(spec, all, &self.region)?;
        let token = params.given("ClientToken");
        if token.is_some_and(|t| t.len() > 64 || !t.is_ascii()) {
            return Err(ApiError::invalid("ClientToken", "at most 64 ASCII characters"));
        }
        let Some(token) = token else {
            return self.work(spec, &params);
        };
        let place = (spec.action.to_string(), token.to_string());
        if let Some(answer) = self.recall(&place, all)? {
            return Ok(answer);
        }
        let outcome = self.work(spec, &params);
        let mut law = lock(&self.law);
        match &outcome {
            Ok(answer) => law.tokens.entry(place).and_modify(|t| t.state = TokenState::Done(answer.clone())),
            Err(e) if e.is_final() => law.tokens.entry(place).and_modify(|t| t.state = TokenState::Failed),
            Err(_) => {
                law.tokens.remove(&place);
                return outcome;
            }
        };
        outcome
    }

    /// What was answered to this ClientToken before; else notes that it is being worked on.
    fn recall(&self, place: &(String, String), all: &BTreeMap<String, String>) -> Result<Option<Value>, ApiError> {
        let mut law = lock(&self.law);
        let Some(token) = law.tokens.get(place) else {
            let token = Token { params: all.clone(), state: TokenState::Working };
            law.tokens.insert(place.clone(), token);
            return Ok(None);
        };
        if token.params != *all {
            let words = "The ClientToken was used with other parameters.";
            return Err(ApiError::new(400, "IdempotentParameterMismatch", words));
        }
        match &token.state {
            TokenState::Done(answer) => Ok(Some(answer.clone())),
            TokenState::Failed => {
                Err(ApiError::new(400, "IdempotentFailed", "The first request with this ClientToken failed."))
            }
            TokenState::Working => {
                Err(ApiError::new(403, "IdempotentProcessing", "The first request with this ClientToken is going on."))
            }
        }
    }

    fn work(&self, spec: &Spec, params: &Params) -> Result<Value, ApiError> {
        let answer = actions::perform(self, spec, params);
        self.settle();
        self.wind();
        answer
    }

    // What the metadata service needs.

    /// The metadata service's part of `answer`: counted and troubled like a call of the API, unsigned.
    pub(super) fn tell(&self, request: &Request) -> Response {
        let entry = Call {
            at: self.started.elapsed(),
            action: "metadata".into(),
            params: BTreeMap::from([("path".into(), request.path().into())]),
            key: String::new(),
            from: request.peer.ip(),
            result: String::new(),
            trouble: lock(&self.plan).next("metadata"),
            request_id: String::new(),
        };
        let trouble = entry.trouble.clone();
        let response = match &trouble {
            Some(Kind::Refuse { status, code }) => Response::text(*status, code.clone()),
            _ => metadata::answer(self, request),
        };
        let result = if response.status == 200 { "OK".into() } else { response.status.to_string() };
        lock(&self.journal).push(Call { result, ..entry });
        spoil(response.header("Date", &date(self.time())), trouble)
    }

    pub(in crate::sim) fn region(&self) -> &str {
        &self.region
    }

    pub(in crate::sim) fn metadata_tokens(&self) -> TokenMode {
        self.metadata_tokens
    }

    /// The instance that calls from this address, as the metadata service shows it now.
    pub(in crate::sim) fn identity(&self, from: IpAddr) -> Option<Identity> {
        let instance = lock(&self.faces).get(&from)?.clone();
        let mut model = self.model();
        let enis = model.shown(&instance, Instant::now())?;
        let known = model.instances.get(&instance)?;
        Some(Identity {
            enis,
            instance_type: known.spec.instance_type.clone(),
            role: known.spec.role.clone(),
            primary_eni: known.primary_eni.clone(),
            vpc: known.vpc.clone(),
            vpc_cidr: self.vpc_cidr,
            zone: known.zone.clone(),
            instance,
        })
    }

    pub(in crate::sim) fn issue_metadata_token(&self, instance: &str, life: Duration) -> String {
        let mut law = lock(&self.law);
        let token = law.random_text(40);
        law.metadata_tokens.insert(token.clone(), (instance.into(), Instant::now() + life));
        token
    }

    pub(in crate::sim) fn knows_metadata_token(&self, instance: &str, token: &str) -> bool {
        let law = lock(&self.law);
        law.metadata_tokens.get(token).is_some_and(|(owner, until)| owner == instance && *until > Instant::now())
    }

    /// The role's present credentials; new ones when less than half of their life is left. Old ones live on until they
    /// expire.
    pub(in crate::sim) fn credentials(&self, role: &str) -> Credentials {
        let now = self.time();
        let mut law = lock(&self.law);
        let fresh_enough = law
            .roles
            .get(role)
            .filter(|c| law.keys.get(&c.id).and_then(|k| k.expires).is_some_and(|at| at > now + self.sts_life / 2));
        if let Some(credentials) = fresh_enough {
            return credentials.clone();
        }
        // To whole seconds, as it is written.
        let expires = humantime::parse_rfc3339(&stamp(now + self.sts_life)).expect("just written");
        let credentials = Credentials {
            id: format!("STS.{}", law.random_text(24)),
            secret: law.random_text(44),
            token: format!("CAIS+/{}==", law.random_text(200)),
            issued: stamp(now),
            expires: stamp(expires),
        };
        let key = Key {
            owner: role.into(),
            secret: credentials.secret.clone(),
            token: Some(credentials.token.clone()),
            expires: Some(expires),
        };
        law.keys.insert(credentials.id.clone(), key);
        law.roles.insert(role.into(), credentials.clone());
        credentials
    }

    fn fresh_request_id(&self) -> String {
        let n = lock(&self.law).dice.u128(..);
        format!(
            "{:08X}-{:04X}-{:04X}-{:04X}-{:012X}",
            n >> 96,
            n >> 80 & 0xffff,
            n >> 64 & 0xffff,
            n >> 48 & 0xffff,
            n & 0xffff_ffff_ffff
        )
    }
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`
fn date(time: SystemTime) -> String {
    let days = time.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs() / 86400;
    let weekday = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"][days as usize % 7];
    let text = stamp(time);
    let month = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
        [text[5..7].parse::<usize>().expect("a month") - 1];
    format!("{weekday}, {} {month} {} {} GMT", &text[8..10], &text[..4], &text[11..19])
}

/// Does to an answer what the trouble says.
fn spoil(response: Response, trouble: Option<Kind>) -> Response {
    match trouble {
        None | Some(Kind::Refuse { .. } | Kind::Repeat | Kind::Lie(_)) => response,
        Some(Kind::LoseReply) => response.fault(Fault::Close),
        Some(Kind::Silence) => response.fault(Fault::Silence),
        Some(Kind::Late(time)) => response.after(time),
        Some(Kind::Truncate(n)) => response.fault(Fault::Truncate(n)),
        Some(Kind::Garbage) => Response::text(200, "<html><body>The gateway is having a bad day.</body></html>"),
    }
}
