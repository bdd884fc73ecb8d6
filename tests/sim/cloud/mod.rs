//! A simulated Alibaba Cloud: the ECS and VPC API over HTTP, as strict as the real one, and faults on purpose.

mod actions;
mod model;
mod params;
mod sign;
// The demo and the numbers are built without a harness: their #[test] functions fall away, the imports stay.
#[cfg(test)]
#[allow(unused_imports)]
mod tests;
mod trouble;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use ipnet::Ipv4Net;
use rustls::ServerConfig;
use serde_json::Value;

use super::http::Server;
use super::metadata;
use world::{Bucket, Key};

// Not every program that shares the simulators uses all of them.
#[allow(unused_imports)]
pub use self::{
    metadata::TokenMode,
    model::{EniView, InstanceSpec, InstanceType, Kind as EniKind, SecurityGroup, Status as EniStatus, VSwitch},
    trouble::{Kind, Lie, Trouble, When},
    world::{Identity, World},
};

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
                SecurityGroup { id: "sg-web".into(), vpc: "vpc-sim".into(), capacity: 2000 },
                SecurityGroup { id: "sg-tiny".into(), vpc: "vpc-sim".into(), capacity: 1 },
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
        enis.flat_map(|e| e.all_v4().collect::<Vec<_>>()).collect()
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

    /// Whatever is under way ends now.
    pub fn hasten(&self) {
        self.world.model().hasten();
        self.world.settle();
    }

    /// Whether a change of this ENI's addresses or attributes is going on.
    pub fn is_busy(&self, eni: &str) -> bool {
        self.world.model().is_busy(eni)
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

    /// Takes a right, such as `ecs:CreateNetworkInterface`, from an access key, a role, or with `"*"` from everyone.
    pub fn forbid(&self, who: &str, right: &str) {
        lock(&self.world.law).forbidden.insert((who.into(), right.into()));
    }

    /// Gives it back.
    pub fn permit(&self, who: &str, right: &str) {
        lock(&self.world.law).forbidden.remove(&(who.into(), right.into()));
    }

    /// An access key that may do everything from now on.
    pub fn add_key(&self, id: &str, secret: &str) {
        lock(&self.world.law).keys.insert(id.into(), Key::lasting(id, secret));
    }

    pub fn remove_key(&self, id: &str) {
        lock(&self.world.law).keys.remove(id);
    }

    /// All credentials of roles are worthless from now on; the metadata service hands out new ones.
    pub fn expire_credentials(&self) {
        let mut law = lock(&self.world.law);
        for key in law.keys.values_mut().filter(|k| k.token.is_some()) {
            key.expires = Some(self.world.time());
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

    /// From now on the cloud's clock is so many seconds ahead of the nodes', or behind where negative.
    pub fn set_clock(&self, ahead: i64) {
        *lock(&self.world.ahead) = ahead;
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

/// `2026-01-02T03:04:05Z`
fn stamp(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
