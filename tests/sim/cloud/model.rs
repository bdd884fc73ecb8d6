//! What exists in the simulated cloud and what may be done to it: vSwitches, security groups, instances and ENIs.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant, SystemTime};

use ipnet::{Ipv4Net, Ipv6Net};
use terway::ip::Mac;

use super::{ApiError, Delays};

/// An ENI outside of any instance holds at most so many addresses.
const LOOSE_ENI_ADDRESSES: usize = 50;

const MOST_TAGS: usize = 20;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VSwitch {
    pub id: String,
    pub vpc: String,
    pub zone: String,
    pub cidr: Ipv4Net,
    pub cidr6: Option<Ipv6Net>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecurityGroup {
    pub id: String,
    pub vpc: String,
    /// The private addresses it has room for.
    pub capacity: usize,
}

/// What an instance type can hold, in the words of DescribeInstanceTypes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceType {
    pub id: String,
    pub eni_quantity: usize,
    pub eni_private_ip_address_quantity: usize,
    pub eni_ipv6_address_quantity: usize,
    pub eni_total_quantity: usize,
}

/// An instance to be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceSpec {
    pub id: String,
    pub instance_type: String,
    pub vswitch: String,
    pub security_groups: Vec<String>,
    /// The primary ENI's address; else the cloud takes the lowest that is free.
    pub address: Option<Ipv4Addr>,
    /// The RAM role whose credentials its metadata service hands out.
    pub role: Option<String>,
}

#[derive(Debug, Clone)]
pub struct Instance {
    pub spec: InstanceSpec,
    pub vpc: String,
    pub zone: String,
    pub primary_eni: String,
    /// What the metadata service shows, and since when.
    shown: VecDeque<(Instant, Vec<EniView>)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Primary,
    Secondary,
    Trunk,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Creating,
    Available,
    Attaching,
    InUse,
    Detaching,
    Deleting,
}

/// An ENI as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EniView {
    pub id: String,
    pub mac: Mac,
    pub kind: Kind,
    pub status: Status,
    /// The instance it is attached to, being attached to or being detached from.
    pub instance: Option<String>,
    pub vswitch: String,
    pub vpc: String,
    pub zone: String,
    pub cidr: Ipv4Net,
    pub gateway: Ipv4Addr,
    pub cidr6: Option<Ipv6Net>,
    pub gateway6: Option<Ipv6Addr>,
    /// The primary address first.
    pub v4: Vec<Ipv4Addr>,
    pub v6: Vec<Ipv6Addr>,
    /// Each takes one place and is sixteen addresses.
    pub prefixes: Vec<Ipv4Net>,
    pub security_groups: Vec<String>,
    pub tags: BTreeMap<String, String>,
    pub name: String,
    pub description: String,
    pub created: SystemTime,
}

struct Eni {
    view: EniView,
    /// Creation order, which lists follow.
    serial: u64,
    /// When the present transition ends.
    due: Option<Instant>,
    /// A change of its addresses or attributes is being carried out.
    busy: bool,
}

/// What the fabric is to do, in order.
#[derive(Debug, Clone)]
pub enum Wire {
    Plug(String, Box<EniView>),
    Unplug(String, Box<EniView>),
    Addresses(String, Box<EniView>),
}

/// An ENI to be created.
#[derive(Debug, Clone, Default)]
pub struct NewEni {
    pub vswitch: String,
    pub security_groups: Vec<String>,
    pub trunk: bool,
    pub primary: Option<Ipv4Addr>,
    pub secondary: Addresses<Ipv4Addr>,
    pub v6: Addresses<Ipv6Addr>,
    pub prefixes: usize,
    pub tags: BTreeMap<String, String>,
    pub name: String,
    pub description: String,
}

/// Addresses wanted: these, or any so many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Addresses<A> {
    These(Vec<A>),
    Any(usize),
}

impl<A> Default for Addresses<A> {
    fn default() -> Self {
        Addresses::Any(0)
    }
}

impl<A> Addresses<A> {
    fn count(&self) -> usize {
        match self {
            Addresses::These(list) => list.len(),
            Addresses::Any(n) => *n,
        }
    }
}

pub struct Model {
    pub vswitches: BTreeMap<String, VSwitch>,
    pub groups: BTreeMap<String, SecurityGroup>,
    pub types: BTreeMap<String, InstanceType>,
    pub instances: BTreeMap<String, Instance>,
    pub wires: VecDeque<Wire>,
    pub dice: fastrand::Rng,
    delays: Delays,
    lag: Duration,
    max_enis: usize,
    enis: BTreeMap<String, Eni>,
    /// Addresses taken by somebody outside of the simulation, by vSwitch.
    foreign: BTreeMap<String, BTreeSet<Ipv4Addr>>,
    serial: u64,
}

impl EniView {
    /// Its IPv4 addresses, those of prefixes too.
    pub fn all_v4(&self) -> impl Iterator<Item = Ipv4Addr> {
        let of = |p: &Ipv4Net| (u32::from(p.network())..=u32::from(p.broadcast())).map(Ipv4Addr::from);
        self.v4.iter().copied().chain(self.prefixes.iter().flat_map(of))
    }

    /// Places for IPv4 that are taken.
    fn places(&self) -> usize {
        self.v4.len() + self.prefixes.len()
    }
}

impl Model {
    pub fn new(config: &super::Config) -> Model {
        Model {
            vswitches: config.vswitches.iter().map(|v| (v.id.clone(), v.clone())).collect(),
            groups: config.security_groups.iter().map(|g| (g.id.clone(), g.clone())).collect(),
            types: config.instance_types.iter().map(|t| (t.id.clone(), t.clone())).collect(),
            instances: BTreeMap::new(),
            wires: VecDeque::new(),
            dice: fastrand::Rng::with_seed(config.seed),
            delays: config.delays,
            lag: config.metadata_lag,
            max_enis: config.max_enis,
            enis: BTreeMap::new(),
            foreign: BTreeMap::new(),
            serial: 0,
        }
    }

    // What is there.

    pub fn eni(&self, id: &str) -> Option<&EniView> {
        self.enis.get(id).map(|e| &e.view)
    }

    /// All ENIs in the order of their creation.
    pub fn enis(&self) -> Vec<(u64, &EniView)> {
        let mut all: Vec<_> = self.enis.values().map(|e| (e.serial, &e.view)).collect();
        all.sort_by_key(|(serial, _)| *serial);
        all
    }

    pub fn enis_of(&self, instance: &str) -> Vec<EniView> {
        let all = self.enis().into_iter().map(|(_, e)| e);
        all.filter(|e| e.instance.as_deref() == Some(instance)).cloned().collect()
    }

    pub fn free(&self, vswitch: &VSwitch) -> usize {
        let taken = self.taken(&vswitch.id);
        usable(vswitch.cidr).filter(|a| !taken.contains(a)).count()
    }

    /// An address that an ENI other than this one holds.
    pub fn address_of_another(&self, id: &str) -> Option<Ipv4Addr> {
        self.enis().into_iter().find(|(_, e)| e.id != id).map(|(_, e)| e.v4[0])
    }

    fn taken(&self, vswitch: &str) -> BTreeSet<Ipv4Addr> {
        let ours = self.enis.values().filter(|e| e.view.vswitch == vswitch).flat_map(|e| e.view.all_v4());
        ours.chain(self.foreign.get(vswitch).into_iter().flatten().copied()).collect()
    }

    // What the operator of the world does.

    pub fn add_instance(&mut self, spec: InstanceSpec) -> Result<EniView, ApiError> {
        let new = NewEni {
            vswitch: spec.vswitch.clone(),
            security_groups: spec.security_groups.clone(),
            primary: spec.address,
            ..NewEni::default()
        };
        if !self.types.contains_key(&spec.instance_type) {
            return Err(ApiError::not_found("InvalidInstanceType.NotFound", &spec.instance_type));
        }
        let id = self.create(&new)?;
        let instance_id = spec.id.clone();
        let eni = self.enis.get_mut(&id).expect("just created");
        eni.due = None;
        eni.view.kind = Kind::Primary;
        eni.view.status = Status::InUse;
        eni.view.instance = Some(spec.id.clone());
        let view = eni.view.clone();
        let (vpc, zone) = (view.vpc.clone(), view.zone.clone());
        let instance = Instance { spec, vpc, zone, primary_eni: id, shown: VecDeque::new() };
        self.instances.insert(instance_id.clone(), instance);
        self.wires.push_back(Wire::Plug(instance_id.clone(), Box::new(view.clone())));
        self.show_at_once(&instance_id);
        Ok(view)
    }

    /// The instance is released; its primary ENI goes with it, the others are left behind.
    pub fn remove_instance(&mut self, id: &str) {
        for eni in self.enis_of(id) {
            self.wires.push_back(Wire::Unplug(id.into(), Box::new(eni.clone())));
            if eni.kind == Kind::Primary {
                self.enis.remove(&eni.id);
                continue;
            }
            let left = self.enis.get_mut(&eni.id).expect("listed");
            left.view.instance = None;
            left.view.status = Status::Available;
            left.due = None;
        }
        self.instances.remove(id);
    }

    /// Somebody deletes an ENI behind everyone's back, whatever its state.
    pub fn vanish_eni(&mut self, id: &str) {
        let Some(eni) = self.enis.remove(id) else { return };
        if let Some(instance) = eni.view.instance.clone() {
            self.wires.push_back(Wire::Unplug(instance.clone(), Box::new(eni.view)));
            self.show(&instance);
        }
    }

    /// Somebody takes an address from an ENI behind everyone's back.
    pub fn vanish_address(&mut self, id: &str, address: Ipv4Addr) {
        if let Some(eni) = self.enis.get_mut(id) {
            eni.view.v4.retain(|a| *a != address);
            self.changed(id);
        }
    }

    /// Others take addresses of the vSwitch until only so many are free.
    pub fn crowd(&mut self, vswitch: &str, leave: usize) {
        let Some(v) = self.vswitches.get(vswitch) else { return };
        let taken = self.taken(vswitch);
        let free: Vec<Ipv4Addr> = usable(v.cidr).filter(|a| !taken.contains(a)).collect();
        let grab = free.len().saturating_sub(leave);
        self.foreign.entry(vswitch.into()).or_default().extend(&free[free.len() - grab..]);
    }

    /// Those others give all of them back.
    pub fn relieve(&mut self, vswitch: &str) {
        self.foreign.remove(vswitch);
    }

    // What the API does.

    pub fn create(&mut self, new: &NewEni) -> Result<String, ApiError> {
        let vswitch = self.vswitches.get(&new.vswitch).cloned();
        let vswitch = vswitch.ok_or_else(|| ApiError::not_found("InvalidVSwitchId.NotFound", &new.vswitch))?;
        self.check_groups(&new.security_groups, &vswitch.vpc, 1 + new.secondary.count())?;
        if self.enis.len() >= self.max_enis {
            return Err(ApiError::new(403, "MaxEniCountExceeded", "The account has as many ENIs as it may have."));
        }
        let first = new.primary.map_or(Addresses::Any(1), |a| Addresses::These(vec![a]));
        let mut v4 = self.pick_v4(&vswitch, &first, &[])?;
        v4.extend(self.pick_v4(&vswitch, &new.secondary, &v4)?);
        let v6 = self.pick_v6(&vswitch, &new.v6)?;
        let prefixes = self.pick_prefixes(&vswitch, new.prefixes, &v4)?;
        let (id, mac) = self.fresh_identity();
        let delay = self.delays.create;
        let view = EniView {
            id: id.clone(),
            mac,
            kind: if new.trunk { Kind::Trunk } else { Kind::Secondary },
            status: if delay.is_zero() { Status::Available } else { Status::Creating },
            instance: None,
            gateway: gateway(vswitch.cidr),
            gateway6: vswitch.cidr6.map(gateway6),
            cidr: vswitch.cidr,
            cidr6: vswitch.cidr6,
            vswitch: vswitch.id,
            vpc: vswitch.vpc,
            zone: vswitch.zone,
            v4,
            v6,
            prefixes,
            security_groups: new.security_groups.clone(),
            tags: new.tags.clone(),
            name: new.name.clone(),
            description: new.description.clone(),
            created: SystemTime::now(),
        };
        self.serial += 1;
        let due = (!delay.is_zero()).then(|| Instant::now() + delay);
        self.enis.insert(id.clone(), Eni { view, serial: self.serial, due, busy: false });
        Ok(id)
    }

    pub fn attach(&mut self, id: &str, instance_id: &str) -> Result<(), ApiError> {
        let eni = self.quiet(id)?;
        let instance = self.instances.get(instance_id);
        let instance = instance.ok_or_else(|| ApiError::not_found("InvalidEcsId.NotFound", instance_id))?;
        expect_status(&eni.view, &[Status::Available])?;
        if eni.view.vpc != instance.vpc {
            return Err(ApiError::new(403, "InvalidOperation.VpcMismatch", "ENI and instance are of different VPCs."));
        }
        if eni.view.zone != instance.zone {
            let words = format!("The ENI is in {}, the instance in {}.", eni.view.zone, instance.zone);
            return Err(ApiError::new(403, "InvalidOperation.AvailabilityZoneMismatch", words));
        }
        let limits = &self.types[&instance.spec.instance_type];
        if self.enis_of(instance_id).len() >= limits.eni_quantity {
            let words = format!("The instance type holds {} ENIs.", limits.eni_quantity);
            return Err(ApiError::new(403, "EniPerInstanceLimitExceeded", words));
        }
        check_count(eni.view.places(), limits.eni_private_ip_address_quantity, "InvalidOperation.Ipv4CountExceeded")?;
        check_count(eni.view.v6.len(), limits.eni_ipv6_address_quantity, "InvalidOperation.Ipv6CountExceeded")?;
        let due = Instant::now() + self.delays.attach;
        let eni = self.enis.get_mut(id).expect("looked up above");
        eni.view.instance = Some(instance_id.into());
        eni.view.status = Status::Attaching;
        eni.due = Some(due);
        Ok(())
    }

    pub fn detach(&mut self, id: &str, instance_id: &str) -> Result<(), ApiError> {
        let eni = self.quiet(id)?;
        if !self.instances.contains_key(instance_id) {
            return Err(ApiError::not_found("InvalidEcsId.NotFound", instance_id));
        }
        if eni.view.kind == Kind::Primary {
            let words = "The primary ENI cannot be detached.";
            return Err(ApiError::new(400, "InvalidOperation.DetachPrimaryEniNotAllowed", words));
        }
        expect_status(&eni.view, &[Status::InUse])?;
        if eni.view.instance.as_deref() != Some(instance_id) {
            return Err(ApiError::invalid("InstanceId", "the ENI is attached to another instance"));
        }
        let due = Instant::now() + self.delays.detach;
        let eni = self.enis.get_mut(id).expect("looked up above");
        eni.view.status = Status::Detaching;
        eni.due = Some(due);
        Ok(())
    }

    pub fn delete(&mut self, id: &str) -> Result<(), ApiError> {
        let eni = self.quiet(id)?;
        expect_status(&eni.view, &[Status::Available])?;
        let due = Instant::now() + self.delays.delete;
        let eni = self.enis.get_mut(id).expect("looked up above");
        eni.view.status = Status::Deleting;
        eni.due = Some(due);
        Ok(())
    }

    pub fn assign_v4(&mut self, id: &str, wanted: &Addresses<Ipv4Addr>) -> Result<Vec<Ipv4Addr>, ApiError> {
        let view = self.changeable(id)?.clone();
        self.check_places(&view, wanted.count())?;
        self.check_groups(&view.security_groups, &view.vpc, wanted.count())?;
        let vswitch = self.vswitches[&view.vswitch].clone();
        let fresh = self.pick_v4(&vswitch, wanted, &[])?;
        self.enis.get_mut(id).expect("looked up above").view.v4.extend(&fresh);
        self.changed(id);
        Ok(fresh)
    }

    fn check_places(&self, view: &EniView, more: usize) -> Result<(), ApiError> {
        let total = view.places() + more;
        match self.limits_of(view) {
            Some(t) => check_count(total, t.eni_private_ip_address_quantity, "InvalidOperation.Ipv4CountExceeded"),
            None => check_count(total, LOOSE_ENI_ADDRESSES, "QuotaExceeded.PrivateIpAddress"),
        }
    }

    pub fn assign_prefixes(&mut self, id: &str, count: usize) -> Result<Vec<Ipv4Net>, ApiError> {
        let view = self.changeable(id)?.clone();
        self.check_places(&view, count)?;
        self.check_groups(&view.security_groups, &view.vpc, count * 16)?;
        let vswitch = self.vswitches[&view.vswitch].clone();
        let fresh = self.pick_prefixes(&vswitch, count, &[])?;
        self.enis.get_mut(id).expect("looked up above").view.prefixes.extend(&fresh);
        self.changed(id);
        Ok(fresh)
    }

    pub fn unassign_prefixes(&mut self, id: &str, gone: &[Ipv4Net]) -> Result<(), ApiError> {
        let view = self.changeable(id)?;
        if let Some(stranger) = gone.iter().find(|p| !view.prefixes.contains(p)) {
            let words = format!("{stranger} is not assigned to this ENI.");
            return Err(ApiError::new(403, "InvalidIp.IpUnassigned", words));
        }
        let eni = self.enis.get_mut(id).expect("looked up above");
        eni.view.prefixes.retain(|p| !gone.contains(p));
        self.changed(id);
        Ok(())
    }

    pub fn unassign_v4(&mut self, id: &str, gone: &[Ipv4Addr]) -> Result<(), ApiError> {
        let view = self.changeable(id)?;
        if let Some(stranger) = gone.iter().find(|a| !view.v4.contains(a)) {
            let words = format!("{stranger} is not assigned to this ENI.");
            return Err(ApiError::new(403, "InvalidIp.IpUnassigned", words));
        }
        if gone.contains(&view.v4[0]) {
            let words = format!("{} is the primary address, which cannot be unassigned", view.v4[0]);
            return Err(ApiError::invalid("PrivateIpAddress", words));
        }
        let eni = self.enis.get_mut(id).expect("looked up above");
        eni.view.v4.retain(|a| !gone.contains(a));
        self.changed(id);
        Ok(())
    }

    pub fn assign_v6(&mut self, id: &str, wanted: &Addresses<Ipv6Addr>) -> Result<Vec<Ipv6Addr>, ApiError> {
        let view = self.changeable(id)?.clone();
        let most = self.limits_of(&view).map_or(LOOSE_ENI_ADDRESSES, |t| t.eni_ipv6_address_quantity);
        check_count(view.v6.len() + wanted.count(), most, "InvalidOperation.Ipv6CountExceeded")?;
        let vswitch = self.vswitches[&view.vswitch].clone();
        let fresh = self.pick_v6(&vswitch, wanted)?;
        self.enis.get_mut(id).expect("looked up above").view.v6.extend(&fresh);
        self.changed(id);
        Ok(fresh)
    }

    pub fn unassign_v6(&mut self, id: &str, gone: &[Ipv6Addr]) -> Result<(), ApiError> {
        let view = self.changeable(id)?;
        if let Some(stranger) = gone.iter().find(|a| !view.v6.contains(a)) {
            let words = format!("{stranger} is not assigned to this ENI.");
            return Err(ApiError::new(403, "InvalidIp.IpUnassigned", words));
        }
        let eni = self.enis.get_mut(id).expect("looked up above");
        eni.view.v6.retain(|a| !gone.contains(a));
        self.changed(id);
        Ok(())
    }

    pub fn modify(
        &mut self,
        id: &str,
        groups: Option<Vec<String>>,
        name: Option<String>,
        description: Option<String>,
    ) -> Result<(), ApiError> {
        let view = self.changeable(id)?.clone();
        if let Some(groups) = &groups {
            let newcomers: Vec<String> = groups.iter().filter(|g| !view.security_groups.contains(g)).cloned().collect();
            if groups.is_empty() {
                return Err(ApiError::missing("SecurityGroupId"));
            }
            self.check_groups(groups, &view.vpc, 0)?;
            self.check_groups(&newcomers, &view.vpc, view.all_v4().count())?;
        }
        let view = &mut self.enis.get_mut(id).expect("looked up above").view;
        view.security_groups = groups.unwrap_or_else(|| view.security_groups.clone());
        view.name = name.unwrap_or_else(|| view.name.clone());
        view.description = description.unwrap_or_else(|| view.description.clone());
        Ok(())
    }

    /// Gives all of these ENIs all of these tags, or none anything.
    pub fn tag(&mut self, ids: &[String], tags: &BTreeMap<String, String>) -> Result<(), ApiError> {
        for id in ids {
            let view = &self.taggable(id)?.view;
            let more = tags.keys().filter(|key| !view.tags.contains_key(*key)).count();
            if view.tags.len() + more > MOST_TAGS {
                let words = format!("{id} would bear {} tags, {MOST_TAGS} are allowed.", view.tags.len() + more);
                return Err(ApiError::new(403, "NumberExceed.Tags", words));
            }
        }
        for id in ids {
            self.enis.get_mut(id).expect("looked up above").view.tags.extend(tags.clone());
        }
        Ok(())
    }

    /// Takes tags from all of these ENIs, or all tags; one that is not there is no error.
    pub fn untag(&mut self, ids: &[String], keys: Option<&Vec<String>>) -> Result<(), ApiError> {
        for id in ids {
            self.taggable(id)?;
        }
        for id in ids {
            let tags = &mut self.enis.get_mut(id).expect("looked up above").view.tags;
            tags.retain(|key, _| keys.is_some_and(|keys| !keys.contains(key)));
        }
        Ok(())
    }

    fn taggable(&self, id: &str) -> Result<&Eni, ApiError> {
        self.enis.get(id).ok_or_else(|| ApiError::not_found("InvalidResourceId.NotFound", id))
    }

    /// Marks an ENI as being changed, so that any other change of it meets a conflict.
    pub fn begin(&mut self, id: &str) -> Result<(), ApiError> {
        self.changeable(id)?;
        self.enis.get_mut(id).expect("looked up above").busy = true;
        Ok(())
    }

    pub fn end(&mut self, id: &str) {
        if let Some(eni) = self.enis.get_mut(id) {
            eni.busy = false;
        }
    }

    // Time.

    /// Whatever is under way ends now.
    pub fn hasten(&mut self) {
        for eni in self.enis.values_mut() {
            eni.due = eni.due.map(|_| Instant::now());
        }
    }

    /// Whether a change of this ENI's addresses or attributes is going on.
    pub fn is_busy(&self, id: &str) -> bool {
        self.enis.get(id).is_some_and(|e| e.busy)
    }

    /// When the next transition ends.
    pub fn next_due(&self) -> Option<Instant> {
        self.enis.values().filter_map(|e| e.due).min()
    }

    /// Takes the transitions that have ended and says which ENIs; the wires first, then [`Model::complete`].
    pub fn ripen(&mut self, now: Instant) -> Vec<String> {
        let mut ripe = Vec::new();
        for eni in self.enis.values_mut() {
            if eni.due.is_none_or(|due| due > now) {
                continue;
            }
            eni.due = None;
            ripe.push(eni.view.id.clone());
            let Some(instance) = eni.view.instance.clone() else { continue };
            let view = Box::new(EniView { status: Status::InUse, ..eni.view.clone() });
            match eni.view.status {
                Status::Attaching => self.wires.push_back(Wire::Plug(instance, view)),
                Status::Detaching => self.wires.push_back(Wire::Unplug(instance, view)),
                _ => {}
            }
        }
        ripe
    }

    /// Ends the transitions of these ENIs.
    pub fn complete(&mut self, ripe: &[String]) {
        for id in ripe {
            let Some(eni) = self.enis.get_mut(id) else { continue };
            let instance = eni.view.instance.clone();
            match eni.view.status {
                Status::Creating => eni.view.status = Status::Available,
                Status::Attaching => eni.view.status = Status::InUse,
                Status::Detaching => {
                    eni.view.status = Status::Available;
                    eni.view.instance = None;
                }
                Status::Deleting => {
                    self.enis.remove(id);
                }
                Status::Available | Status::InUse => {}
            }
            if let Some(instance) = instance {
                self.show(&instance);
            }
        }
    }

    /// What the metadata service of an instance shows now: the state of some time ago.
    pub fn shown(&mut self, instance: &str, now: Instant) -> Option<Vec<EniView>> {
        let lag = self.lag;
        let shown = &mut self.instances.get_mut(instance)?.shown;
        while shown.len() > 1 && shown[1].0 + lag <= now {
            shown.pop_front();
        }
        shown.front().map(|(_, enis)| enis.clone())
    }

    pub fn change_delay(&self) -> Duration {
        self.delays.change
    }

    pub fn set_lag(&mut self, lag: Duration) {
        self.lag = lag;
    }

    pub fn set_delays(&mut self, delays: Delays) {
        self.delays = delays;
    }

    /// From now, less the lag, the metadata service shows the instance's ENIs as they are.
    fn show(&mut self, instance: &str) {
        let mut enis = self.enis_of(instance);
        enis.retain(|e| matches!(e.status, Status::InUse | Status::Detaching));
        if let Some(instance) = self.instances.get_mut(instance) {
            instance.shown.push_back((Instant::now(), enis));
        }
    }

    fn show_at_once(&mut self, instance: &str) {
        let enis = self.enis_of(instance);
        if let Some(instance) = self.instances.get_mut(instance) {
            instance.shown = VecDeque::from([(Instant::now(), enis)]);
        }
    }

    /// The addresses of an ENI are not what they were.
    fn changed(&mut self, id: &str) {
        let Some(view) = self.eni(id).cloned() else { return };
        if let (Some(instance), Status::InUse) = (view.instance.clone(), view.status) {
            self.wires.push_back(Wire::Addresses(instance.clone(), Box::new(view)));
            self.show(&instance);
        }
    }

    // Checks.

    /// The ENI, unless it is unknown or in the middle of a change.
    fn quiet(&self, id: &str) -> Result<&Eni, ApiError> {
        let eni = self.enis.get(id).ok_or_else(|| ApiError::not_found("InvalidEniId.NotFound", id))?;
        if eni.busy {
            let words = "Another change of this ENI is going on.";
            return Err(ApiError::new(403, "Operation.Conflict", words));
        }
        Ok(eni)
    }

    fn changeable(&self, id: &str) -> Result<&EniView, ApiError> {
        let eni = self.quiet(id)?;
        expect_status(&eni.view, &[Status::Available, Status::InUse])?;
        Ok(&eni.view)
    }

    fn limits_of(&self, eni: &EniView) -> Option<&InstanceType> {
        let instance = self.instances.get(eni.instance.as_deref()?)?;
        self.types.get(&instance.spec.instance_type)
    }

    fn check_groups(&self, groups: &[String], vpc: &str, more: usize) -> Result<(), ApiError> {
        for id in groups {
            let group =
                self.groups.get(id).ok_or_else(|| ApiError::not_found("InvalidSecurityGroupId.NotFound", id))?;
            if group.vpc != vpc {
                let words = format!("{id} is of another VPC.");
                return Err(ApiError::new(403, "InvalidOperation.VpcMismatch", words));
            }
            let members = self.enis.values().filter(|e| e.view.security_groups.contains(id));
            let members: usize = members.map(|e| e.view.all_v4().count()).sum();
            if members + more > group.capacity {
                let words = format!("{id} holds {members} addresses of {}.", group.capacity);
                return Err(ApiError::new(403, "SecurityGroupInstanceLimitExceed", words));
            }
        }
        Ok(())
    }

    // Choices.

    /// The lowest free addresses, so that one given back is soon somebody else's; `held` are taken already.
    fn pick_v4(
        &self,
        vswitch: &VSwitch,
        wanted: &Addresses<Ipv4Addr>,
        held: &[Ipv4Addr],
    ) -> Result<Vec<Ipv4Addr>, ApiError> {
        let mut taken = self.taken(&vswitch.id);
        taken.extend(held);
        match wanted {
            Addresses::Any(n) => {
                let found: Vec<Ipv4Addr> = usable(vswitch.cidr).filter(|a| !taken.contains(a)).take(*n).collect();
                if found.len() < *n {
                    let words = format!("{} has {} addresses left, {n} are wanted.", vswitch.id, found.len());
                    return Err(ApiError::new(403, "InvalidVSwitchId.IpNotEnough", words));
                }
                Ok(found)
            }
            Addresses::These(list) => {
                for (i, a) in list.iter().enumerate() {
                    let code = match () {
                        () if !usable(vswitch.cidr).any(|u| u == *a) => "InvalidVSwitchId.IpInvalid",
                        () if taken.contains(a) => "InvalidIp.IpAssigned",
                        () if list[..i].contains(a) => "InvalidIp.IpRepeated",
                        () => continue,
                    };
                    return Err(ApiError::new(403, code, format!("{a} cannot be had from {}.", vswitch.cidr)));
                }
                Ok(list.clone())
            }
        }
    }

    /// The lowest free blocks of sixteen, aligned.
    fn pick_prefixes(&self, vswitch: &VSwitch, count: usize, held: &[Ipv4Addr]) -> Result<Vec<Ipv4Net>, ApiError> {
        let mut taken = self.taken(&vswitch.id);
        taken.extend(held);
        let free: BTreeSet<Ipv4Addr> = usable(vswitch.cidr).filter(|a| !taken.contains(a)).collect();
        let whole = |p: &Ipv4Net| free.range(p.network()..=p.broadcast()).count() == 16;
        let blocks = vswitch.cidr.subnets(28).into_iter().flatten();
        let found: Vec<Ipv4Net> = blocks.filter(whole).take(count).collect();
        if found.len() < count {
            let words = format!("{} has {} free blocks of 16 addresses, {count} are wanted.", vswitch.id, found.len());
            return Err(ApiError::new(403, "InvalidVSwitchId.IpNotEnough", words));
        }
        Ok(found)
    }

    fn pick_v6(&self, vswitch: &VSwitch, wanted: &Addresses<Ipv6Addr>) -> Result<Vec<Ipv6Addr>, ApiError> {
        if wanted.count() == 0 {
            return Ok(Vec::new());
        }
        let Some(net) = vswitch.cidr6 else {
            let words = format!("{} has no IPv6 prefix.", vswitch.id);
            return Err(ApiError::new(403, "InvalidVSwitch.Ipv6NotTurnOn", words));
        };
        let taken: BTreeSet<Ipv6Addr> = self.enis.values().flat_map(|e| e.view.v6.iter().copied()).collect();
        match wanted {
            // The first few are left to the network's own use.
            Addresses::Any(n) => {
                let base = u128::from(net.network());
                Ok((16u128..).map(|i| Ipv6Addr::from(base + i)).filter(|a| !taken.contains(a)).take(*n).collect())
            }
            Addresses::These(list) => match list.iter().find(|a| !net.contains(*a) || taken.contains(a)) {
                Some(a) => Err(ApiError::new(403, "InvalidIp.Address", format!("{a} cannot be had from {net}."))),
                None => Ok(list.clone()),
            },
        }
    }

    fn fresh_identity(&mut self) -> (String, Mac) {
        loop {
            let tail: String = (0..17).map(|_| self.dice.char('a'..='z')).collect();
            let id = format!("eni-sim{tail}");
            let mac = Mac([0x00, 0x16, 0x3e, self.dice.u8(..), self.dice.u8(..), self.dice.u8(..)]);
            if self.enis.values().all(|e| e.view.id != id && e.view.mac != mac) {
                return (id, mac);
            }
        }
    }
}

/// The addresses that a vSwitch can give away: all but the first and the last three.
fn usable(cidr: Ipv4Net) -> impl Iterator<Item = Ipv4Addr> {
    let first = u64::from(u32::from(cidr.network())) + 1;
    let last = u64::from(u32::from(cidr.broadcast())).saturating_sub(3);
    (first..=last).map(|n| Ipv4Addr::from(n as u32))
}

fn gateway(cidr: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(cidr.broadcast()) - 2)
}

fn gateway6(cidr: Ipv6Net) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(cidr.broadcast()) - 2)
}

fn expect_status(eni: &EniView, good: &[Status]) -> Result<(), ApiError> {
    if good.contains(&eni.status) {
        return Ok(());
    }
    let words = format!("{} is {:?}, this needs it to be {good:?}.", eni.id, eni.status);
    Err(ApiError::new(400, "InvalidOperation.InvalidEniState", words))
}

fn check_count(count: usize, most: usize, code: &str) -> Result<(), ApiError> {
    if count <= most {
        return Ok(());
    }
    Err(ApiError::new(403, code, format!("{count} addresses on one ENI, {most} are allowed.")))
}
