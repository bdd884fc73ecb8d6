//! Carries the pool's calls to the cloud, one attempt each.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::both::both;
use crate::cloud::{Client, CreateEni, Filter};
use crate::eni::{Eni, Fault, FaultKind, VSwitch};
use crate::gather::Gather;
use crate::ip::{Family, IpPair};
use crate::ours;
use crate::pool::{Call, Outcome};

/// What a call needs beyond itself.
#[derive(Debug, Clone)]
pub struct Place {
    pub instance: String,
    /// Every vSwitch that the settings name.
    pub vswitches: Vec<String>,
}

/// Blocks until the cloud has answered or has not.
pub fn perform(cloud: &Client, place: &Place, call: Call) -> Result<Outcome, Fault> {
    match call {
        Call::Create { vswitch, security_groups, resource_group, tags, addresses, v6, token } => {
            let description = ours::ENI_DESCRIPTION.into();
            let create =
                CreateEni { vswitch, security_groups, resource_group, tags, addresses, v6, description, token };
            cloud.create_eni(&create).map(|eni| Outcome::Created(Box::new(eni)))
        }
        Call::Attach { eni } => cloud.attach_eni(&eni, &place.instance).map(|()| Outcome::Attached),
        Call::Detach { eni } => cloud.detach_eni(&eni, &place.instance).map(|()| Outcome::Detached),
        Call::Delete { eni } => cloud.delete_eni(&eni).map(|()| Outcome::Deleted),
        Call::Assign { eni, family, count, token } => assign(cloud, &eni, family, count, &token).map(Outcome::Assigned),
        Call::Unassign { eni, addresses } => unassign(cloud, &eni, &addresses).map(|()| Outcome::Unassigned),
        Call::AssignPrefixes { eni, count, token } => cloud.assign_prefixes(&eni, count, &token).map(Outcome::Prefixes),
        Call::UnassignPrefixes { eni, prefixes } => {
            cloud.unassign_prefixes(&eni, &prefixes).map(|()| Outcome::Unassigned)
        }
        Call::Look { enis } => cloud.describe_enis(&Filter { ids: enis, ..Filter::default() }).map(Outcome::Seen),
        Call::LookAll => look_all(cloud, place).map(Outcome::SeenAll),
        Call::VSwitches => vswitches(cloud, place).map(Outcome::VSwitches),
        Call::Regroup { eni, security_groups } => {
            let groups: Vec<String> = security_groups.into_iter().collect();
            cloud.set_security_groups(&eni, &groups).map(|()| Outcome::Dressed)
        }
        Call::Tag { eni, tags } => cloud.tag_eni(&eni, &tags).map(|()| Outcome::Dressed),
        Call::Untag { eni, keys } => {
            let keys: Vec<String> = keys.into_iter().collect();
            cloud.untag_eni(&eni, &keys).map(|()| Outcome::Dressed)
        }
    }
}

fn assign(cloud: &Client, eni: &str, family: Family, count: u32, token: &str) -> Result<Vec<IpAddr>, Fault> {
    Ok(match family {
        Family::V4 => cloud.assign_v4(eni, count, token)?.into_iter().map(IpAddr::V4).collect(),
        Family::V6 => cloud.assign_v6(eni, count, token)?.into_iter().map(IpAddr::V6).collect(),
    })
}

/// The addresses are of one family.
fn unassign(cloud: &Client, eni: &str, addresses: &[IpAddr]) -> Result<(), Fault> {
    let of = |pair: &IpPair| (pair.v4, pair.v6);
    let (v4, v6): (Vec<_>, Vec<_>) = addresses.iter().map(|ip| of(&IpPair::from_iter([*ip]))).unzip();
    let (v4, v6): (Vec<_>, Vec<_>) = (v4.into_iter().flatten().collect(), v6.into_iter().flatten().collect());
    match v6.is_empty() {
        true => cloud.unassign_v4(eni, &v4),
        false => cloud.unassign_v6(eni, &v6),
    }
}

/// Every ENI attached to this instance, and every other one that was made for it. A cloud that is away gets one call of the two.
fn look_all(cloud: &Client, place: &Place) -> Result<Vec<Eni>, Fault> {
    let attached = cloud.describe_enis(&attached(place))?;
    Ok(all(attached, cloud.describe_enis(&made(place))?))
}

/// The same in the time of one call.
pub fn look_all_at_once(cloud: &Client, place: &Place) -> Result<Vec<Eni>, Fault> {
    let (made, attached) = both(|| cloud.describe_enis(&made(place)), || cloud.describe_enis(&attached(place)));
    Ok(all(attached?, made?))
}

fn attached(place: &Place) -> Filter {
    Filter { instance: Some(place.instance.clone()), ..Filter::default() }
}

fn made(place: &Place) -> Filter {
    let tags =
        [(ours::ENI_TAG.0.to_owned(), ours::ENI_TAG.1.to_owned()), (ours::NODE_TAG.to_owned(), place.instance.clone())];
    Filter { tags: tags.into_iter().gather(), ..Filter::default() }
}

fn all(attached: Vec<Eni>, made: Vec<Eni>) -> Vec<Eni> {
    let known: BTreeSet<String> = attached.iter().map(|e| e.id.clone()).gather();
    attached.into_iter().chain(made.into_iter().filter(|e| !known.contains(&e.id))).collect()
}

/// The vSwitches of the settings; one that does not exist is an error of the configuration and left out with a warning.
pub fn vswitches(cloud: &Client, place: &Place) -> Result<Vec<VSwitch>, Fault> {
    let mut found = Vec::new();
    for id in &place.vswitches {
        match cloud.vswitch(id) {
            Ok(vswitch) => found.push(vswitch),
            Err(fault) if fault.kind == FaultKind::Gone => log::error!("vSwitch {id} of the configuration: {fault}"),
            Err(fault) => return Err(fault),
        }
    }
    Ok(found)
}

/// An outcome in few words, for the log.
pub fn summary(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Created(eni) => format!("created {} with {} addresses", eni.id, eni.addresses().count()),
        Outcome::Dressed => "done".into(),
        Outcome::Attached => "attaching".into(),
        Outcome::Detached => "detaching".into(),
        Outcome::Deleted => "deleted".into(),
        Outcome::Assigned(addresses) => format!("assigned {addresses:?}"),
        Outcome::Prefixes(prefixes) => format!("assigned {prefixes:?}"),
        Outcome::Unassigned => "unassigned".into(),
        Outcome::Seen(enis) => {
            let each = |eni: &Eni| format!("{} is {:?} with {} addresses", eni.id, eni.state, eni.addresses().count());
            let seen: Vec<String> = enis.iter().map(each).collect();
            if seen.is_empty() { "no such ENI".into() } else { seen.join(", ") }
        }
        Outcome::SeenAll(enis) => format!("{} ENIs", enis.len()),
        Outcome::VSwitches(seen) => format!("{} vSwitches", seen.len()),
    }
}
