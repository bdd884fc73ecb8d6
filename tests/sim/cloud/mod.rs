//! A simulated Alibaba Cloud: the ECS and VPC API over HTTP, as strict as the real one, and faults on purpose.

mod actions;
mod model;
mod params;
mod sign;
#[cfg(test)]
mod tests;
mod trouble;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use ipnet::Ipv4Net;
use rustls::ServerConfig;
use serde_json::{Value, json};

use super::http::{self, Fault, Request, Response, Server};
use super::metadata;
use params::{Params, Spec};
use sign::Call as Signed;

pub use metadata::TokenMode;
pub use model::{EniView, InstanceSpec, InstanceType, Kind as EniKind, SecurityGroup, Status as EniStatus, VSwitch};
pub use trouble::{Kind, Lie, Trouble, When};

use model::{Model, Wire};

/// The world that a cloud starts with.
#[derive(Debug, Clone)]
pub struct Config {
    pub region: String,
    pub vpc_cidr: Ipv4Net,
    pub vswitches: Vec<VSwitch>,
    pub security_groups: Vec<SecurityGroup>,
    pub instance_types: Vec<InstanceType>,
    /// Long-lived access keys and their secrets; they may do everything until [`Cloud::forbid`].
    pub keys: Vec<(String, String)>,
    pub delays: Delays,
    /// How much later than the API the metadata service shows ENIs and addresses.
    pub metadata_lag: Duration,
    pub metadata_tokens: TokenMode,
    /// How long the credentials of a RAM role live.
    pub sts_life: Duration,
    pub max_enis: usize,
    /// Decides identities and odds.
    pub seed: u64,
}

/// How long the cloud takes for what it does asynchronously.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Delays {
    /// Until a new ENI is Available.
    pub create: Duration,
    pub attach: Duration,
    pub detach: Duration,
    pub delete: Duration,
    /// How long a call that changes an ENI's addresses or attributes lasts; another one meanwhile meets a conflict.
    pub change: Duration,
}

/// How often something may be called: a bucket that fills with so many tokens a second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    pub per_second: f64,
    pub burst: u32,
}

impl Default for Config {
    /// One VPC, two zones, room for a node and its pods in the first, fast and without faults.
    fn default() -> Config {
        let vswitch = |id: &str, zone: &str, cidr: &str, cidr6: Option<&str>| VSwitch {
            id: id.into(),
            vpc: "vpc-sim".into(),
            zone: zone.into(),
            cidr: cidr.parse().expect("a literal"),
            cidr6: cidr6.map(|n| n.parse().expect("a literal")),
        };
        let kind = |id: &str, enis, v4, v6| InstanceType {
            id: id.into(),
            eni_quantity: enis,
            eni_private_ip_address_quantity: v4,
            eni_ipv6_address_quantity: v6,
            eni_total_quantity: enis,
        };
        Config {
            region: "cn-hangzhou".into(),
            vpc_cidr: "10.0.0.0/16".parse().expect("a literal"),
            vswitches: vec![
                vswitch("vsw-node", "cn-hangzhou-h", "10.0.0.0/24", Some("fd00:0:0:1::/64")),
                vswitch("vsw-pod", "cn-hangzhou-h", "10.0.8.0/24", Some("fd00:0:0:8::/64")),
                vswitch("vsw-tiny", "cn-hangzhou-h", "10.0.9.0/28", None),
                vswitch("vsw-other-zone", "cn-hangzhou-i", "10.0.16.0/24", None),
            ],
            security_groups: vec![
                SecurityGroup { id: "sg-sim".into(), vpc: "vpc-sim".into(), capacity: 2000 },
                SecurityGroup { id: "sg-small".into(), vpc: "vpc-sim".into(), capacity: 3 },
                SecurityGroup { id: "sg-elsewhere".into(), vpc: "vpc-elsewhere".into(), capacity: 2000 },
            ],
            instance_types: vec![
                kind("ecs.sim.small", 2, 3, 3),
                kind("ecs.sim.large", 3, 10, 10),
                kind("ecs.sim.2xlarge", 4, 15, 15),
                kind("ecs.sim.8xlarge", 8, 30, 30),
            ],
            keys: vec![("testid".into(), "testsecret".into())],
            delays: Delays::default(),
            metadata_lag: Duration::ZERO,
            metadata_tokens: TokenMode::Optional,
            sts_life: Duration::from_secs(3600),
            max_enis: 10_000,
            seed: 1,
        }
    }
}

/// What happens to instances' wires when ENIs come, change and go. Called in the order of events, one call at a time.
///
/// It must not call the cloud back.
pub trait Fabric: Send {
    /// The ENI is attached: before the API says InUse and the metadata service shows it.
    fn plug(&mut self, instance: &str, eni: &EniView);
    /// The ENI is detached: before the API says Available.
    fn unplug(&mut self, instance: &str, eni: &EniView);
    /// The addresses of an attached ENI have changed: before the API answers.
    fn addresses(&mut self, instance: &str, eni: &EniView);
}

/// A cloud without wires.
pub struct NoFabric;

impl Fabric for NoFabric {
    fn plug(&mut self, _: &str, _: &EniView) {}
    fn unplug(&mut self, _: &str, _: &EniView) {}
    fn addresses(&mut self, _: &str, _: &EniView) {}
}

/// One call as the journal remembers it.
#[derive(Debug, Clone)]
pub struct Call {
    /// Since the cloud started.
    pub at: Duration,
    /// The API action, or `metadata`.
    pub action: String,
    pub params: BTreeMap<String, String>,
    pub key: String,
    pub from: IpAddr,
    /// `OK`, or the error code that was decided; the client may not have heard it, see `trouble`.
    pub result: String,
    pub trouble: Option<Kind>,
    pub request_id: String,
}

/// A running cloud. Dropping it stops its servers and its clockwork.
pub struct Cloud {
    // Before the world, so that no request is being answered when the clockwork stops.
    servers: Mutex<Vec<Server>>,
    world: Arc<World>,
    clockwork: Option<JoinHandle<()>>,
}

impl Cloud {
    pub fn start(config: Config) -> Cloud {
        Cloud::start_with(config, Box::new(NoFabric))
    }

    pub fn start_with(config: Config, fabric: Box<dyn Fabric>) -> Cloud {
        let world = Arc::new(World::new(config, fabric));
        let clockwork = thread::spawn({
            let world = world.clone();
            move || world.tick()
        });
        Cloud { servers: Mutex::default(), world, clockwork: Some(clockwork) }
    }

    // The outside.

    /// Serves the ECS and VPC API over plain HTTP.
    pub fn serve(&self, listener: TcpListener) {
        let world = self.world.clone();
        lock(&self.servers).push(Server::start(listener, move |r| world.answer(&r)));
    }

    /// Serves the ECS and VPC API over HTTPS.
    pub fn serve_tls(&self, listener: TcpListener, tls: Arc<ServerConfig>) {
        let world = self.world.clone();
        lock(&self.servers).push(Server::start_tls(listener, tls, move |r| world.answer(&r)));
    }

    /// Serves the metadata service; whom it answers about is decided by the source address.
    pub fn serve_metadata(&self, listener: TcpListener) {
        let world = self.world.clone();
        lock(&self.servers).push(Server::start(listener, move |r| world.tell(&r)));
    }

    // The world.

    /// Starts an instance; returns its primary ENI. Panics where the cloud would refuse.
    pub fn add_instance(&self, spec: InstanceSpec) -> EniView {
        let id = spec.id.clone();
        let eni = self.world.model().add_instance(spec).unwrap_or_else(|e| panic!("start instance {id}: {e:?}"));
        lock(&self.world.faces).insert(IpAddr::V4(eni.v4[0]), id);
        self.world.settle();
        eni
    }

    pub fn remove_instance(&self, id: &str) {
        self.world.model().remove_instance(id);
        self.world.settle();
    }

    /// Requests to the metadata service from this address are the instance's, as are those from its primary address.
    pub fn instance_calls_from(&self, address: IpAddr, instance: &str) {
        lock(&self.world.faces).insert(address, instance.into());
    }

    pub fn eni(&self, id: &str) -> Option<EniView> {
        self.world.model().eni(id).cloned()
    }

    /// All ENIs, oldest first.
    pub fn enis(&self) -> Vec<EniView> {
        self.world.model().enis().into_iter().map(|(_, e)| e.clone()).collect()
    }

    /// The ENIs attached to an instance or on the way to or from it, the primary one first.
    pub fn enis_of(&self, instance: &str) -> Vec<EniView> {
        self.world.model().enis_of(instance)
    }

    /// The addresses of an instance's secondary ENIs.
    pub fn pod_addresses(&self, instance: &str) -> BTreeSet<Ipv4Addr> {
        let enis = self.enis_of(instance).into_iter().filter(|e| e.kind != EniKind::Primary);
        enis.flat_map(|e| e.v4).collect()
    }

    /// How many addresses of a vSwitch nobody has.
    pub fn free(&self, vswitch: &str) -> usize {
        let model = self.world.model();
        model.vswitches.get(vswitch).map_or(0, |v| model.free(v))
    }

    /// Others take addresses until only so many are free.
    pub fn crowd(&self, vswitch: &str, leave: usize) {
        self.world.model().crowd(vswitch, leave);
    }

    /// Those others give their addresses back.
    pub fn relieve(&self, vswitch: &str) {
        self.world.model().relieve(vswitch);
    }

    /// Somebody deletes an ENI behind everyone's back.
    pub fn vanish_eni(&self, id: &str) {
        self.world.model().vanish_eni(id);
        self.world.settle();
    }

    /// Somebody takes an address from an ENI behind everyone's back.
    pub fn vanish_address(&self, eni: &str, address: Ipv4Addr) {
        self.world.model().vanish_address(eni, address);
        self.world.settle();
    }

    pub fn set_delays(&self, delays: Delays) {
        self.world.model().set_delays(delays);
    }

    pub fn set_metadata_lag(&self, lag: Duration) {
        self.world.model().set_lag(lag);
    }

    /// Does an action as the account's owner would at the console: unsigned, untroubled, not in the journal.
    pub fn operate(&self, action: &str, params: &[(&str, &str)]) -> Result<Value, ApiError> {
        let spec = params::spec(action, "2014-05-26").or_else(|_| params::spec(action, "2016-04-28"))?;
        let mut all: BTreeMap<String, String> = params.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect();
        all.entry("RegionId".into()).or_insert(self.world.region.clone());
        self.world.carry_out(spec, &all)
    }

    // Rights and limits.

    /// Takes a right, such as `ecs:CreateNetworkInterface`, from every key.
    pub fn forbid(&self, right: &str) {
        lock(&self.world.law).forbidden.insert(right.into());
    }

    pub fn permit(&self, right: &str) {
        lock(&self.world.law).forbidden.remove(right);
    }

    /// An access key that may do everything from now on.
    pub fn add_key(&self, id: &str, secret: &str) {
        let key = Key { secret: secret.into(), token: None, expires: None };
        lock(&self.world.law).keys.insert(id.into(), key);
    }

    pub fn remove_key(&self, id: &str) {
        lock(&self.world.law).keys.remove(id);
    }

    /// All credentials of roles are worthless from now on; the metadata service hands out new ones.
    pub fn expire_credentials(&self) {
        let mut law = lock(&self.world.law);
        for key in law.keys.values_mut().filter(|k| k.token.is_some()) {
            key.expires = Some(SystemTime::now());
        }
    }

    /// Limits how often an action, or with `"*"` the whole API, may be called.
    pub fn limit(&self, action: &str, rate: Option<Rate>) {
        let mut law = lock(&self.world.law);
        match rate {
            Some(rate) => law.buckets.insert(action.into(), Bucket::full(rate)),
            None => law.buckets.remove(action),
        };
    }

    // Trouble.

    pub fn trouble(&self, action: &str, when: When, kind: Kind) {
        lock(&self.world.plan).add(Trouble { action: Some(action.into()), when, kind });
    }

    /// The same for any action of the API.
    pub fn trouble_anywhere(&self, when: When, kind: Kind) {
        lock(&self.world.plan).add(Trouble { action: None, when, kind });
    }

    /// No more trouble.
    pub fn calm(&self) {
        lock(&self.world.plan).clear();
    }

    /// While it lasts the API answers nothing at all.
    pub fn outage(&self, on: bool) {
        *lock(&self.world.outage) = on;
    }

    // The journal.

    pub fn journal(&self) -> Vec<Call> {
        lock(&self.world.journal).clone()
    }

    /// How many calls of this action arrived, however they ended.
    pub fn calls(&self, action: &str) -> usize {
        lock(&self.world.journal).iter().filter(|c| c.action == action).count()
    }

    /// How many of them ended in this result: `OK` or an error code.
    pub fn calls_ending(&self, action: &str, result: &str) -> usize {
        lock(&self.world.journal).iter().filter(|c| c.action == action && c.result == result).count()
    }

    pub fn forget_calls(&self) {
        lock(&self.world.journal).clear();
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        lock(&self.world.clock).stopping = true;
        self.world.bell.notify_all();
        lock(&self.servers).clear();
        if let Some(clockwork) = self.clockwork.take() {
            let _ = clockwork.join();
        }
    }
}

/// An error of the API: HTTP status, code and words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    pub status: u16,
    pub code: String,
    pub message: String,
}

impl ApiError {
    fn new(status: u16, code: &str, message: impl Into<String>) -> ApiError {
        ApiError { status, code: code.into(), message: message.into() }
    }

    fn missing(name: &str) -> ApiError {
        ApiError::new(400, "MissingParameter", format!("The parameter {name} is needed and missing."))
    }

    fn invalid(name: &str, why: impl AsRef<str>) -> ApiError {
        ApiError::new(400, "InvalidParameter", format!("The parameter {name} is invalid: {}.", why.as_ref()))
    }

    fn not_found(code: &str, id: &str) -> ApiError {
        ApiError::new(404, code, format!("There is no {id}."))
    }

    /// Errors after which the ClientToken stands for a failure; all others may be tried again with it.
    fn is_final(&self) -> bool {
        const FINAL: [&str; 7] = [
            "InvalidVSwitchId.IpNotEnough",
            "QuotaExceeded.PrivateIpAddress",
            "EniPerInstanceLimitExceeded",
            "SecurityGroupInstanceLimitExceed",
            "MaxEniCountExceeded",
            "InvalidOperation.Ipv4CountExceeded",
            "InvalidOperation.Ipv6CountExceeded",
        ];
        FINAL.contains(&self.code.as_str())
    }
}

/// Everything behind the servers.
pub struct World {
    region: String,
    vpc_cidr: Ipv4Net,
    sts_life: Duration,
    metadata_tokens: TokenMode,
    started: Instant,
    model: Mutex<Model>,
    fabric: Mutex<Box<dyn Fabric>>,
    law: Mutex<Law>,
    plan: Mutex<trouble::Plan>,
    outage: Mutex<bool>,
    journal: Mutex<Vec<Call>>,
    /// Which instance calls from which address.
    faces: Mutex<HashMap<IpAddr, String>>,
    clock: Mutex<Clock>,
    bell: Condvar,
}

#[derive(Default)]
struct Clock {
    stopping: bool,
    /// Counts the moments at which something new may have become due.
    wound: u64,
}

/// Keys, rights, limits and what must not be repeated.
struct Law {
    keys: HashMap<String, Key>,
    forbidden: BTreeSet<String>,
    buckets: HashMap<String, Bucket>,
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
pub(super) struct Identity {
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
struct Key {
    secret: String,
    token: Option<String>,
    expires: Option<SystemTime>,
}

struct Bucket {
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
    fn full(rate: Rate) -> Bucket {
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
    fn new(config: Config, fabric: Box<dyn Fabric>) -> World {
        let keys = config
            .keys
            .iter()
            .map(|(id, secret)| (id.clone(), Key { secret: secret.clone(), token: None, expires: None }));
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
            plan: Mutex::new(trouble::Plan::new(config.seed)),
            outage: Mutex::new(false),
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

    fn model(&self) -> MutexGuard<'_, Model> {
        lock(&self.model)
    }

    // Time.

    /// Ends transitions when their time has come, until the cloud stops.
    fn tick(&self) {
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
    fn sleep(&self, time: Duration) {
        let until = self.bell.wait_timeout_while(lock(&self.clock), time, |c| !c.stopping);
        drop(until.unwrap_or_else(PoisonError::into_inner));
    }

    /// Ends what is due: wires first, then what API and metadata say. The fabric's lock keeps events in their order.
    fn settle(&self) {
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
    fn change<T>(&self, eni: &str, work: impl FnOnce(&mut Model) -> Result<T, ApiError>) -> Result<T, ApiError> {
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

    fn answer(&self, request: &Request) -> Response {
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
        spoil(Response::json(status, &body), trouble)
    }

    /// Whether the call may be carried out: who calls, with which right, how often.
    fn admit(&self, call: &Signed) -> Result<&'static Spec, ApiError> {
        self.authenticate(call)?;
        let spec = params::spec(&call.action, &call.version)?;
        let mut law = lock(&self.law);
        for name in ["*", spec.action] {
            if law.buckets.get_mut(name).is_some_and(|b| !b.take()) {
                return Err(ApiError::new(400, "Throttling.User", "Request was denied due to user flow control."));
            }
        }
        if law.forbidden.contains(spec.right) {
            let words = format!("The key is not authorized to do {}.", spec.right);
            return Err(ApiError::new(403, "Forbidden.RAM", words));
        }
        Ok(spec)
    }

    fn authenticate(&self, call: &Signed) -> Result<(), ApiError> {
        let now = SystemTime::now();
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
        Ok(())
    }

    fn carry_out(&self, spec: &Spec, all: &BTreeMap<String, String>) -> Result<Value, ApiError> {
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
    fn tell(&self, request: &Request) -> Response {
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
        spoil(response, trouble)
    }

    pub(super) fn region(&self) -> &str {
        &self.region
    }

    pub(super) fn metadata_tokens(&self) -> TokenMode {
        self.metadata_tokens
    }

    /// The instance that calls from this address, as the metadata service shows it now.
    pub(super) fn identity(&self, from: IpAddr) -> Option<Identity> {
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

    pub(super) fn issue_metadata_token(&self, instance: &str, life: Duration) -> String {
        let mut law = lock(&self.law);
        let token = law.random_text(40);
        law.metadata_tokens.insert(token.clone(), (instance.into(), Instant::now() + life));
        token
    }

    pub(super) fn knows_metadata_token(&self, instance: &str, token: &str) -> bool {
        let law = lock(&self.law);
        law.metadata_tokens.get(token).is_some_and(|(owner, until)| owner == instance && *until > Instant::now())
    }

    /// The role's present credentials; new ones when less than half of their life is left. Old ones live on until they
    /// expire.
    pub(super) fn credentials(&self, role: &str) -> Credentials {
        let mut law = lock(&self.law);
        let now = SystemTime::now();
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
        let key =
            Key { secret: credentials.secret.clone(), token: Some(credentials.token.clone()), expires: Some(expires) };
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

/// Does to an answer what the trouble says.
fn spoil(response: Response, trouble: Option<Kind>) -> Response {
    match trouble {
        None | Some(Kind::Refuse { .. } | Kind::Repeat | Kind::Lie(_)) => response,
        Some(Kind::LoseReply) => response.fault(Fault::Close),
        Some(Kind::Silence) => response.fault(Fault::Silence),
        Some(Kind::Late(time)) => response.after(time),
        Some(Kind::Truncate(n)) => response.fault(Fault::Truncate(n)),
        Some(Kind::Garbage) => http::Response::text(200, "<html><body>The gateway is having a bad day.</body></html>"),
    }
}

/// `2026-01-02T03:04:05Z`
fn stamp(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
