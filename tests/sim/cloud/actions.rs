//! The actions of the API: from parameters to the model and back to the JSON that the cloud would answer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ipnet::Ipv4Net;
use serde_json::{Value, json};

use super::model::{Addresses, EniView, Instance, InstanceType, Kind, Model, NewEni, Status, VSwitch};
use super::params::{Params, Spec};
use super::world::World;
use super::{ApiError, stamp};

type Answer = Result<Value, ApiError>;

pub fn perform(world: &World, spec: &Spec, params: &Params) -> Answer {
    match spec.action {
        "CreateNetworkInterface" => create(world, params),
        "DescribeNetworkInterfaces" => describe_enis(world, params),
        "DescribeNetworkInterfaceAttribute" => describe_eni(world, params),
        "AttachNetworkInterface" => {
            world.model().attach(params.text("NetworkInterfaceId"), params.text("InstanceId"))?;
            Ok(json!({}))
        }
        "DetachNetworkInterface" => {
            world.model().detach(params.text("NetworkInterfaceId"), params.text("InstanceId"))?;
            Ok(json!({}))
        }
        "DeleteNetworkInterface" => {
            world.model().delete(params.text("NetworkInterfaceId"))?;
            Ok(json!({}))
        }
        "AssignPrivateIpAddresses" => assign_v4(world, params),
        "UnassignPrivateIpAddresses" => unassign_v4(world, params),
        "AssignIpv6Addresses" => assign_v6(world, params),
        "UnassignIpv6Addresses" => unassign_v6(world, params),
        "ModifyNetworkInterfaceAttribute" => modify(world, params),
        "TagResources" => tag(world, params),
        "UntagResources" => untag(world, params),
        "DescribeInstanceTypes" => describe_types(world, params),
        "DescribeInstances" => describe_instances(world, params),
        "DescribeInstanceAttribute" => describe_instance(world, params),
        "DescribeVSwitches" => describe_vswitches(world, params),
        other => Err(ApiError::new(404, "InvalidAction.NotFound", format!("No action {other}."))),
    }
}

fn create(world: &World, params: &Params) -> Answer {
    let mut groups = owned(params.list("SecurityGroupIds")?);
    groups.extend(params.given("SecurityGroupId").map(String::from));
    if groups.is_empty() {
        return Err(ApiError::missing("SecurityGroupId"));
    }
    let mut sorted = groups.clone();
    sorted.sort();
    sorted.dedup();
    if sorted.len() != groups.len() || groups.len() > 10 {
        return Err(ApiError::invalid("SecurityGroupIds", "1 to 10 different security groups"));
    }
    let trunk = match params.given("InstanceType") {
        None | Some("Secondary") => false,
        Some("Trunk") => true,
        Some(other) => return Err(ApiError::invalid("InstanceType", format!("{other} is not Secondary or Trunk"))),
    };
    let count = params.number("SecondaryPrivateIpAddressCount", 1..=49)?;
    let new = NewEni {
        vswitch: params.text("VSwitchId").into(),
        security_groups: groups,
        trunk,
        primary: params.parsed("PrimaryIpAddress")?,
        secondary: wanted(params.parsed_list("PrivateIpAddress")?, count, "SecondaryPrivateIpAddressCount")?,
        prefixes: params.number("Ipv4PrefixCount", 1..=10)?.unwrap_or(0),
        v6: wanted(params.parsed_list("Ipv6Address")?, params.number("Ipv6AddressCount", 1..=10)?, "Ipv6AddressCount")?,
        tags: params.tags()?.into_iter().map(|(k, v)| (k, v.unwrap_or_default())).collect(),
        name: params.text("NetworkInterfaceName").into(),
        description: params.text("Description").into(),
    };
    let mut model = world.model();
    let id = model.create(&new)?;
    let eni = model.eni(&id).expect("just created");
    Ok(eni_json(eni, &world.region))
}

/// These or so many; not both.
fn wanted<A>(these: Vec<A>, count: Option<usize>, name: &str) -> Result<Addresses<A>, ApiError> {
    match (these.is_empty(), count) {
        (false, Some(_)) => Err(ApiError::invalid(name, "give the addresses or their number, not both")),
        (false, None) => Ok(Addresses::These(these)),
        (true, count) => Ok(Addresses::Any(count.unwrap_or(0))),
    }
}

fn assign_v4(world: &World, params: &Params) -> Answer {
    let id = params.text("NetworkInterfaceId");
    let count = params.number("SecondaryPrivateIpAddressCount", 1..=49)?;
    let wanted = wanted(params.parsed_list("PrivateIpAddress")?, count, "SecondaryPrivateIpAddressCount")?;
    if let Some(count) = params.number("Ipv4PrefixCount", 1..=10)? {
        if wanted != Addresses::Any(0) {
            return Err(ApiError::invalid("Ipv4PrefixCount", "prefixes or addresses, not both in one call"));
        }
        let fresh = world.change(id, |model| model.assign_prefixes(id, count))?;
        let set = json!({ "NetworkInterfaceId": id, "Ipv4PrefixSet": { "Ipv4Prefixes": fresh } });
        return Ok(json!({ "AssignedPrivateIpAddressesSet": set }));
    }
    if wanted == Addresses::Any(0) {
        return Err(ApiError::missing("SecondaryPrivateIpAddressCount"));
    }
    let fresh = world.change(id, |model| model.assign_v4(id, &wanted))?;
    Ok(json!({
        "AssignedPrivateIpAddressesSet": {
            "NetworkInterfaceId": id,
            "PrivateIpSet": { "PrivateIpAddress": fresh },
        }
    }))
}

fn unassign_v4(world: &World, params: &Params) -> Answer {
    let id = params.text("NetworkInterfaceId");
    let prefixes: Vec<Ipv4Net> = params.parsed_list("Ipv4Prefix")?;
    if !prefixes.is_empty() {
        if prefixes.len() > 10 || !params.list("PrivateIpAddress")?.is_empty() {
            return Err(ApiError::invalid("Ipv4Prefix", "at most 10 prefixes, and no addresses beside them"));
        }
        world.change(id, |model| model.unassign_prefixes(id, &prefixes))?;
        return Ok(json!({}));
    }
    let gone: Vec<Ipv4Addr> = named(params, "PrivateIpAddress", 32)?;
    world.change(id, |model| model.unassign_v4(id, &gone))?;
    Ok(json!({}))
}

fn assign_v6(world: &World, params: &Params) -> Answer {
    let id = params.text("NetworkInterfaceId");
    let count = params.number("Ipv6AddressCount", 1..=10)?;
    let wanted = wanted(params.parsed_list("Ipv6Address")?, count, "Ipv6AddressCount")?;
    if wanted == Addresses::Any(0) {
        return Err(ApiError::missing("Ipv6AddressCount"));
    }
    let fresh = world.change(id, |model| model.assign_v6(id, &wanted))?;
    Ok(json!({ "NetworkInterfaceId": id, "Ipv6Sets": { "Ipv6Address": fresh } }))
}

fn unassign_v6(world: &World, params: &Params) -> Answer {
    let id = params.text("NetworkInterfaceId");
    let gone: Vec<Ipv6Addr> = named(params, "Ipv6Address", 10)?;
    world.change(id, |model| model.unassign_v6(id, &gone))?;
    Ok(json!({}))
}

/// At least one address, at most so many.
fn named<A: std::str::FromStr>(params: &Params, name: &str, most: usize) -> Result<Vec<A>, ApiError> {
    let list: Vec<A> = params.parsed_list(name)?;
    match list.len() {
        0 => Err(ApiError::missing(name)),
        n if n > most => Err(ApiError::invalid(name, format!("{n} addresses in one call, {most} are allowed"))),
        _ => Ok(list),
    }
}

fn modify(world: &World, params: &Params) -> Answer {
    let id = params.text("NetworkInterfaceId");
    let groups = owned(params.list("SecurityGroupId")?);
    let different: BTreeSet<&String> = groups.iter().collect();
    if different.len() != groups.len() || groups.len() > 10 {
        return Err(ApiError::invalid("SecurityGroupId", "1 to 10 different security groups"));
    }
    let groups = (!groups.is_empty()).then_some(groups);
    let text = |name| params.given(name).map(String::from);
    world.change(id, |model| model.modify(id, groups.clone(), text("NetworkInterfaceName"), text("Description")))?;
    Ok(json!({}))
}

fn tag(world: &World, params: &Params) -> Answer {
    let enis = tagged(params)?;
    let tags: BTreeMap<String, String> = params.tags()?.into_iter().map(|(k, v)| (k, v.unwrap_or_default())).collect();
    world.model().tag(&enis, &tags)?;
    Ok(json!({}))
}

fn untag(world: &World, params: &Params) -> Answer {
    let enis = tagged(params)?;
    let keys = owned(params.list("TagKey")?);
    let all = params.given("All").is_some_and(|all| all.eq_ignore_ascii_case("true"));
    match (keys.len(), all) {
        (0, false) => return Err(ApiError::missing("TagKey.1")),
        (n, _) if n > 20 => return Err(ApiError::new(403, "NumberExceed.Tags", "At most 20 tags.")),
        _ => {}
    }
    world.model().untag(&enis, (!keys.is_empty()).then_some(&keys))?;
    Ok(json!({}))
}

/// The ENIs whose tags are to be changed; the simulated cloud has no other resources that bear tags.
fn tagged(params: &Params) -> Result<Vec<String>, ApiError> {
    match params.text("ResourceType") {
        "eni" => {}
        other => {
            let words = format!("There is no resource type {other}.");
            return Err(ApiError::new(404, "InvalidResourceType.NotFound", words));
        }
    }
    match owned(params.list("ResourceId")?) {
        enis if enis.len() > 50 => Err(ApiError::new(403, "NumberExceed.ResourceIds", "At most 50 resources.")),
        enis => Ok(enis),
    }
}

fn describe_enis(world: &World, params: &Params) -> Answer {
    let ids = params.list("NetworkInterfaceId")?;
    if ids.len() > 100 {
        return Err(ApiError::invalid("NetworkInterfaceId", "at most 100 in one call"));
    }
    let addresses: Vec<Ipv4Addr> = params.parsed_list("PrivateIpAddress")?;
    let primary: Option<Ipv4Addr> = params.parsed("PrimaryIpAddress")?;
    let tags = params.tags()?;
    one_of(params, "Type", &["Primary", "Secondary", "Trunk", "Member"])?;
    one_of(params, "Status", &["Available", "Attaching", "InUse", "Detaching", "Deleting"])?;
    let is = |name: &str, value: &str| params.given(name).is_none_or(|want| want == value);
    let matches = |e: &EniView| {
        (ids.is_empty() || ids.contains(&e.id.as_str()))
            && is("InstanceId", e.instance.as_deref().unwrap_or_default())
            && is("Type", kind(e.kind))
            && is("Status", &format!("{:?}", e.status))
            && is("VpcId", &e.vpc)
            && is("VSwitchId", &e.vswitch)
            && is("NetworkInterfaceName", &e.name)
            && params.given("SecurityGroupId").is_none_or(|g| e.security_groups.iter().any(|s| s == g))
            && primary.is_none_or(|p| e.v4[0] == p)
            && (addresses.is_empty() || addresses.iter().any(|a| e.v4.contains(a)))
            && tags.iter().all(|(k, v)| e.tags.get(k).is_some_and(|have| v.as_ref().is_none_or(|v| v == have)))
    };
    let model = world.model();
    let found: Vec<(u64, Value)> = model
        .enis()
        .into_iter()
        .filter(|(_, e)| matches(e))
        .map(|(serial, e)| (serial, eni_json(e, &world.region)))
        .collect();
    page(params, found, 500, |list| json!({ "NetworkInterfaceSets": { "NetworkInterfaceSet": list } }))
}

fn describe_eni(world: &World, params: &Params) -> Answer {
    let id = params.text("NetworkInterfaceId");
    one_of(params, "Attribute", &["attachment", "basic"])?;
    let model = world.model();
    let eni = model.eni(id).ok_or_else(|| ApiError::not_found("InvalidEniId.NotFound", id))?;
    Ok(eni_json(eni, &world.region))
}

fn describe_types(world: &World, params: &Params) -> Answer {
    let wanted = params.list("InstanceTypes")?;
    if wanted.len() > 10 {
        return Err(ApiError::invalid("InstanceTypes", "at most 10 in one call"));
    }
    let model = world.model();
    let all = model.types.values().filter(|t| wanted.is_empty() || wanted.contains(&t.id.as_str()));
    let found = all.enumerate().map(|(i, t)| (i as u64 + 1, type_json(t))).collect();
    let mut answer = page(params, found, 100, |list| json!({ "InstanceTypes": { "InstanceType": list } }))?;
    let fields = answer.as_object_mut().expect("an object");
    fields.retain(|name, _| name == "InstanceTypes" || name == "NextToken");
    Ok(answer)
}

fn describe_instances(world: &World, params: &Params) -> Answer {
    let ids: Option<Vec<String>> = match params.given("InstanceIds") {
        None => None,
        Some(text) => {
            Some(serde_json::from_str(text).map_err(|_| ApiError::invalid("InstanceIds", "not a JSON array"))?)
        }
    };
    let is = |name: &str, value: &str| params.given(name).is_none_or(|want| want == value);
    let model = world.model();
    let all = model.instances.values().filter(|i| {
        ids.as_ref().is_none_or(|ids| ids.contains(&i.spec.id))
            && is("VpcId", &i.vpc)
            && is("VSwitchId", &i.spec.vswitch)
            && is("ZoneId", &i.zone)
    });
    let found = all.enumerate().map(|(n, i)| (n as u64 + 1, instance_json(&model, i, &world.region))).collect();
    page(params, found, 100, |list| json!({ "Instances": { "Instance": list } }))
}

fn describe_instance(world: &World, params: &Params) -> Answer {
    let id = params.text("InstanceId");
    let model = world.model();
    // This action alone has a code of its own for an unknown instance.
    let instance = model.instances.get(id).ok_or_else(|| ApiError::not_found("InvalidInstanceId.NotFound", id))?;
    Ok(instance_json(&model, instance, &world.region))
}

fn describe_vswitches(world: &World, params: &Params) -> Answer {
    if params.given("RegionId").is_none() && params.given("VpcId").is_none() {
        return Err(ApiError::missing("RegionId"));
    }
    let is = |name: &str, value: &str| params.given(name).is_none_or(|want| want == value);
    let model = world.model();
    let all =
        model.vswitches.values().filter(|v| is("VSwitchId", &v.id) && is("VpcId", &v.vpc) && is("ZoneId", &v.zone));
    let found = all.enumerate().map(|(i, v)| (i as u64 + 1, vswitch_json(&model, v))).collect();
    page(params, found, 50, |list| json!({ "VSwitches": { "VSwitch": list } }))
}

fn one_of(params: &Params, name: &str, good: &[&str]) -> Result<(), ApiError> {
    match params.given(name) {
        Some(other) if !good.contains(&other) => Err(ApiError::invalid(name, format!("{other} is none of {good:?}"))),
        _ => Ok(()),
    }
}

/// One page of what was found (in the order of its serials), by token or by number.
fn page(params: &Params, found: Vec<(u64, Value)>, most: usize, wrap: impl Fn(Vec<Value>) -> Value) -> Answer {
    let max_results = params.number("MaxResults", 1..=most)?;
    let number = params.number("PageNumber", 1..=1_000_000)?;
    let size = params.number("PageSize", 1..=most)?;
    let after = params.given("NextToken").map(read_token).transpose()?;
    let total = found.len();
    if max_results.is_some() || after.is_some() {
        if number.is_some() || size.is_some() {
            return Err(ApiError::invalid("PageNumber", "pages are asked for by number or by token, not by both"));
        }
        let mut rest: Vec<_> = found.into_iter().filter(|(serial, _)| *serial > after.unwrap_or(0)).collect();
        let room = max_results.unwrap_or(10);
        let more = rest.len() > room;
        rest.truncate(room);
        let next = rest.last().filter(|_| more).map(|(serial, _)| STANDARD.encode(format!("after {serial}")));
        let mut answer = wrap(rest.into_iter().map(|(_, v)| v).collect());
        answer["NextToken"] = json!(next.unwrap_or_default());
        answer["TotalCount"] = json!(total);
        return Ok(answer);
    }
    let (number, size) = (number.unwrap_or(1), size.unwrap_or(10));
    let list = found.into_iter().skip((number - 1) * size).take(size).map(|(_, v)| v).collect();
    let mut answer = wrap(list);
    answer["PageNumber"] = json!(number);
    answer["PageSize"] = json!(size);
    answer["TotalCount"] = json!(total);
    Ok(answer)
}

fn read_token(token: &str) -> Result<u64, ApiError> {
    let bytes = STANDARD.decode(token).ok();
    let text = bytes.and_then(|b| String::from_utf8(b).ok());
    let serial = text.as_deref().and_then(|t| t.strip_prefix("after ")).and_then(|n| n.parse().ok());
    serial.ok_or_else(|| ApiError::invalid("NextToken", "it is not one that an earlier answer gave"))
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Primary => "Primary",
        Kind::Secondary => "Secondary",
        Kind::Trunk => "Trunk",
    }
}

fn eni_json(e: &EniView, region: &str) -> Value {
    let v4: Vec<Value> = e.v4.iter().map(|a| json!({ "PrivateIpAddress": a, "Primary": *a == e.v4[0] })).collect();
    let v6: Vec<Value> = e.v6.iter().map(|a| json!({ "Ipv6Address": a })).collect();
    let tags: Vec<Value> = e.tags.iter().map(|(k, v)| json!({ "TagKey": k, "TagValue": v })).collect();
    let prefixes: Vec<Value> = e.prefixes.iter().map(|p| json!({ "Ipv4Prefix": p })).collect();
    let mut answer = json!({
        "NetworkInterfaceId": e.id,
        "NetworkInterfaceName": e.name,
        "Description": e.description,
        "MacAddress": e.mac.to_string(),
        "Type": kind(e.kind),
        "Status": format!("{:?}", e.status),
        "InstanceId": e.instance.as_deref().unwrap_or_default(),
        "RegionId": region,
        "ZoneId": e.zone,
        "VpcId": e.vpc,
        "VSwitchId": e.vswitch,
        "PrivateIpAddress": e.v4[0],
        "PrivateIpSets": { "PrivateIpSet": v4 },
        "Ipv6Sets": { "Ipv6Set": v6 },
        "Ipv4PrefixSets": { "Ipv4PrefixSet": prefixes },
        "Ipv6PrefixSets": { "Ipv6PrefixSet": [] },
        "SecurityGroupIds": { "SecurityGroupId": e.security_groups },
        "Tags": { "Tag": tags },
        "NetworkInterfaceTrafficMode": "Standard",
        "QueueNumber": 1,
        "ResourceGroupId": "",
        "ServiceManaged": false,
        "CreationTime": stamp(e.created),
    });
    if matches!(e.status, Status::InUse | Status::Detaching) {
        answer["Attachment"] = json!({ "InstanceId": e.instance, "DeviceIndex": 0, "NetworkCardIndex": 0 });
    }
    answer
}

fn type_json(t: &InstanceType) -> Value {
    json!({
        "InstanceTypeId": t.id,
        "EniQuantity": t.eni_quantity,
        "EniPrivateIpAddressQuantity": t.eni_private_ip_address_quantity,
        "EniIpv6AddressQuantity": t.eni_ipv6_address_quantity,
        "EniTotalQuantity": t.eni_total_quantity,
        "EniTrunkSupported": t.eni_total_quantity > t.eni_quantity,
        "EriQuantity": 0,
        "InstanceBandwidthRx": 1_024_000,
        "InstanceBandwidthTx": 1_024_000,
        "NetworkCardQuantity": 1,
        "CpuCoreCount": 2,
        "MemorySize": 8.0,
    })
}

fn instance_json(model: &Model, i: &Instance, region: &str) -> Value {
    let enis = model.enis_of(&i.spec.id);
    let primary = enis.iter().find(|e| e.id == i.primary_eni).map(|e| e.v4[0]);
    let list: Vec<Value> = enis
        .iter()
        .map(|e| {
            json!({
                "NetworkInterfaceId": e.id,
                "MacAddress": e.mac.to_string(),
                "PrimaryIpAddress": e.v4[0],
                "Type": kind(e.kind),
            })
        })
        .collect();
    json!({
        "InstanceId": i.spec.id,
        "InstanceName": i.spec.id,
        "InstanceType": i.spec.instance_type,
        "InstanceNetworkType": "vpc",
        "Status": "Running",
        "RegionId": region,
        "ZoneId": i.zone,
        "VpcAttributes": {
            "VpcId": i.vpc,
            "VSwitchId": i.spec.vswitch,
            "PrivateIpAddress": { "IpAddress": primary.into_iter().collect::<Vec<_>>() },
            "NatIpAddress": "",
        },
        "SecurityGroupIds": { "SecurityGroupId": i.spec.security_groups },
        "NetworkInterfaces": { "NetworkInterface": list },
        "CreationTime": stamp(SystemTime::UNIX_EPOCH),
    })
}

fn vswitch_json(model: &Model, v: &VSwitch) -> Value {
    json!({
        "VSwitchId": v.id,
        "VSwitchName": v.id,
        "VpcId": v.vpc,
        "ZoneId": v.zone,
        "CidrBlock": v.cidr.to_string(),
        "Ipv6CidrBlock": v.cidr6.map(|n| n.to_string()).unwrap_or_default(),
        "AvailableIpAddressCount": model.free(v),
        "Status": "Available",
    })
}

fn owned(list: Vec<&str>) -> Vec<String> {
    list.into_iter().map(String::from).collect()
}
