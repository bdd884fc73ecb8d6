//! Carries the pool's calls to the cloud, one attempt each.

use std::collections::{BTreeMap, BTreeSet};

use crate::cloud::{Client, CreateEni, Filter};
use crate::eni::{Eni, Fault, FaultKind, VSwitch};
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
        Call::Create { vswitch, security_groups, resource_group, tags, addresses, token } => {
            let description = ours::ENI_DESCRIPTION.into();
            let create = CreateEni { vswitch, security_groups, resource_group, tags, addresses, description, token };
            cloud.create_eni(&create).map(|eni| Outcome::Created(Box::new(eni)))
        }
        Call::Attach { eni } => cloud.attach_eni(&eni, &place.instance).map(|()| Outcome::Attached),
        Call::Detach { eni } => cloud.detach_eni(&eni, &place.instance).map(|()| Outcome::Detached),
        Call::Delete { eni } => cloud.delete_eni(&eni).map(|()| Outcome::Deleted),
        Call::Assign { eni, count, token } => cloud.assign_v4(&eni, count, &token).map(Outcome::Assigned),
        Call::Unassign { eni, addresses } => cloud.unassign_v4(&eni, &addresses).map(|()| Outcome::Unassigned),
        Call::Look { eni } => {
            let found = cloud.describe_enis(&Filter { ids: vec![eni], ..Filter::default() })?;
            Ok(Outcome::Seen(found.into_iter().next().map(Box::new)))
        }
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

/// Every ENI attached to this instance, and every other one that was made for it.
pub fn look_all(cloud: &Client, place: &Place) -> Result<Vec<Eni>, Fault> {
    let attached = Filter { instance: Some(place.instance.clone()), ..Filter::default() };
    let tags = BTreeMap::from([
        (ours::ENI_TAG.0.to_owned(), ours::ENI_TAG.1.to_owned()),
        (ours::NODE_TAG.to_owned(), place.instance.clone()),
    ]);
    let made = Filter { tags, ..Filter::default() };
    let mut seen = cloud.describe_enis(&attached)?;
    let known: BTreeSet<String> = seen.iter().map(|e| e.id.clone()).collect();
    seen.extend(cloud.describe_enis(&made)?.into_iter().filter(|e| !known.contains(&e.id)));
    Ok(seen)
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
        Outcome::Created(eni) => format!("created {} with {} addresses", eni.id, eni.v4.len()),
        Outcome::Dressed => "done".into(),
        Outcome::Attached => "attaching".into(),
        Outcome::Detached => "detaching".into(),
        Outcome::Deleted => "deleted".into(),
        Outcome::Assigned(addresses) => format!("assigned {addresses:?}"),
        Outcome::Unassigned => "unassigned".into(),
        Outcome::Seen(Some(eni)) => format!("{} is {:?} with {} addresses", eni.id, eni.state, eni.v4.len()),
        Outcome::Seen(None) => "no such ENI".into(),
        Outcome::SeenAll(enis) => format!("{} ENIs", enis.len()),
        Outcome::VSwitches(seen) => format!("{} vSwitches", seen.len()),
    }
}
