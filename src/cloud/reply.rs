//! Reads a reply field by field; what is missing or wrong is named by its way from the root.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::Ipv4Net;
use serde_json::Value;

use crate::eni::{Eni, EniKind, EniState, Limits, PREFIX, VSwitch};
use crate::gather::Gather;
use crate::ip::{Mac, NetPair};

/// Names the field that is not as it should be.
pub type Malformed = String;

static NOTHING: Value = Value::Null;

/// Where an ENI and an instance have theirs.
const SECURITY_GROUPS: &str = "SecurityGroupIds.SecurityGroupId";

/// A value in a reply and the way to it. What is absent is a null, as what is there and null.
#[derive(Debug, Clone)]
pub struct Field<'a> {
    path: String,
    value: &'a Value,
}

impl<'a> Field<'a> {
    pub fn root(value: &'a Value) -> Field<'a> {
        Field { path: String::new(), value }
    }

    /// The field inside this one; the way may have several steps: `Attachment.InstanceId`.
    pub fn get(&self, way: &str) -> Field<'a> {
        let value = way.split('.').try_fold(self.value, |value, name| value.get(name)).unwrap_or(&NOTHING);
        let path = if self.path.is_empty() { way.to_string() } else { format!("{}.{way}", self.path) };
        Field { path, value }
    }

    fn wrong(&self, what: impl Display) -> Malformed {
        if self.value.is_null() { format!("{} is missing", self.path) } else { format!("{} {what}", self.path) }
    }

    /// A text that says something.
    pub fn text(&self) -> Result<&'a str, Malformed> {
        self.value.as_str().filter(|s| !s.is_empty()).ok_or_else(|| self.wrong("is not a text"))
    }

    /// A text that names something: nothing that could end a line, a path or a log entry.
    pub fn id(&self) -> Result<String, Malformed> {
        let text = self.text()?;
        let fits = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        match text.len() <= 128 && text.bytes().all(fits) {
            true => Ok(text.to_string()),
            false => Err(self.wrong(format_args!("is not an id: {text:.60?}"))),
        }
    }

    /// A text; empty where it is absent.
    pub fn text_or_empty(&self) -> Result<&'a str, Malformed> {
        if self.value.is_null() { Ok("") } else { self.value.as_str().ok_or_else(|| self.wrong("is not a text")) }
    }

    /// A text that stands for a `T`.
    pub fn parse<T: FromStr>(&self, a: &str) -> Result<T, Malformed> {
        let text = self.text()?;
        text.trim().parse().map_err(|_| self.wrong(format_args!("is not {a}: {:.60?}", text)))
    }

    pub fn number(&self) -> Result<u32, Malformed> {
        let number = self.value.as_u64().and_then(|n| u32::try_from(n).ok());
        number.ok_or_else(|| self.wrong("is not a number from 0 to 4294967295"))
    }

    /// The elements of a list that must be there.
    pub fn list(&self) -> Result<Vec<Field<'a>>, Malformed> {
        let list = self.value.as_array().ok_or_else(|| self.wrong("is not a list"))?;
        let at = |(i, value)| Field { path: format!("{}[{i}]", self.path), value };
        Ok(list.iter().enumerate().map(at).collect())
    }

    /// The elements of a list; none where it is absent.
    pub fn list_or_empty(&self) -> Result<Vec<Field<'a>>, Malformed> {
        if self.value.is_null() { Ok(Vec::new()) } else { self.list() }
    }
}

/// One page of DescribeNetworkInterfaces, and how to ask for the next.
pub fn enis(root: &Field) -> Result<(Vec<Eni>, String), Malformed> {
    let list = root.get("NetworkInterfaceSets.NetworkInterfaceSet").list()?;
    let enis = list.iter().map(eni).collect::<Result<_, _>>()?;
    Ok((enis, root.get("NextToken").text_or_empty()?.to_string()))
}

/// An ENI as DescribeNetworkInterfaces and CreateNetworkInterface tell it.
pub fn eni(eni: &Field) -> Result<Eni, Malformed> {
    let (primary, v4) = private_v4(eni)?;
    Ok(Eni {
        id: eni.get("NetworkInterfaceId").id()?,
        mac: eni.get("MacAddress").parse::<Mac>("a MAC address")?,
        kind: kind(eni.get("Type").text()?),
        state: state(eni.get("Status").text()?),
        instance: instance(eni)?,
        vswitch: eni.get("VSwitchId").id()?,
        zone: eni.get("ZoneId").id()?,
        primary,
        v4,
        v6: unique(&eni.get("Ipv6Sets.Ipv6Set").list_or_empty()?, |set| {
            set.get("Ipv6Address").parse("an IPv6 address")
        })?,
        prefixes: unique(&eni.get("Ipv4PrefixSets.Ipv4PrefixSet").list_or_empty()?, |set| {
            prefix(&set.get("Ipv4Prefix"))
        })?,
        security_groups: eni.get(SECURITY_GROUPS).list_or_empty()?.iter().map(Field::id).collect::<Result<_, _>>()?,
        tags: tags(eni)?,
        description: eni.get("Description").text_or_empty()?.to_string(),
    })
}

/// The primary address, and all with the primary one first.
fn private_v4(eni: &Field) -> Result<(Ipv4Addr, Vec<Ipv4Addr>), Malformed> {
    let primary = eni.get("PrivateIpAddress").parse::<Ipv4Addr>("an IPv4 address")?;
    let sets = eni.get("PrivateIpSets.PrivateIpSet").list()?;
    let mut v4: Vec<Ipv4Addr> = unique(&sets, |set| set.get("PrivateIpAddress").parse("an IPv4 address"))?;
    v4.retain(|ip| *ip != primary);
    v4.insert(0, primary);
    Ok((primary, v4))
}

fn instance(eni: &Field) -> Result<Option<String>, Malformed> {
    for field in [eni.get("InstanceId"), eni.get("Attachment.InstanceId")] {
        if !field.text_or_empty()?.is_empty() {
            return field.id().map(Some);
        }
    }
    Ok(None)
}

fn tags(eni: &Field) -> Result<BTreeMap<String, String>, Malformed> {
    let pair =
        |tag: &Field| Ok((tag.get("TagKey").text()?.to_string(), tag.get("TagValue").text_or_empty()?.to_string()));
    let pairs = eni.get("Tags.Tag").list_or_empty()?.iter().map(pair).collect::<Result<Vec<_>, Malformed>>()?;
    Ok(pairs.into_iter().gather())
}

/// Of an instance; there is no instance without a list of them.
pub fn security_groups(instance: &Field) -> Result<Vec<String>, Malformed> {
    instance.get(SECURITY_GROUPS).list()?.iter().map(Field::id).collect()
}

/// The addresses that AssignPrivateIpAddresses gave to this ENI.
pub fn assigned_v4(root: &Field, eni: &str) -> Result<Vec<Ipv4Addr>, Malformed> {
    let set = root.get("AssignedPrivateIpAddressesSet");
    let named = set.get("NetworkInterfaceId");
    if ![eni, ""].contains(&named.text_or_empty()?) {
        return Err(named.wrong(format_args!("is not {eni}")));
    }
    unique(&set.get("PrivateIpSet.PrivateIpAddress").list()?, |address| address.parse("an IPv4 address"))
}

/// The addresses that AssignIpv6Addresses gave to this ENI.
pub fn assigned_v6(root: &Field, eni: &str) -> Result<Vec<Ipv6Addr>, Malformed> {
    let named = root.get("NetworkInterfaceId");
    if ![eni, ""].contains(&named.text_or_empty()?) {
        return Err(named.wrong(format_args!("is not {eni}")));
    }
    unique(&root.get("Ipv6Sets.Ipv6Address").list()?, |address| address.parse("an IPv6 address"))
}

/// The prefixes that AssignPrivateIpAddresses gave to this ENI.
pub fn assigned_prefixes(root: &Field, eni: &str) -> Result<Vec<Ipv4Net>, Malformed> {
    let set = root.get("AssignedPrivateIpAddressesSet");
    let named = set.get("NetworkInterfaceId");
    if ![eni, ""].contains(&named.text_or_empty()?) {
        return Err(named.wrong(format_args!("is not {eni}")));
    }
    unique(&set.get("Ipv4PrefixSet.Ipv4Prefixes").list()?, prefix)
}

fn prefix(field: &Field) -> Result<Ipv4Net, Malformed> {
    let net = field.parse::<Ipv4Net>("an IPv4 prefix")?;
    match net.prefix_len() == PREFIX && net.trunc() == net {
        true => Ok(net),
        false => Err(field.wrong(format_args!("is not a prefix of {PREFIX} bits: {net}"))),
    }
}

/// What each field says, where no two may say the same.
fn unique<T: Ord + Clone>(
    fields: &[Field],
    read: impl Fn(&Field) -> Result<T, Malformed>,
) -> Result<Vec<T>, Malformed> {
    let mut seen = BTreeSet::new();
    let mut all = Vec::with_capacity(fields.len());
    for field in fields {
        let value = read(field)?;
        if !seen.insert(value.clone()) {
            return Err(field.wrong("says again what an earlier one said"));
        }
        all.push(value);
    }
    Ok(all)
}

/// The limits of the instance type, if the reply speaks of it.
pub fn limits(root: &Field, instance_type: &str) -> Result<Option<Limits>, Malformed> {
    for kind in root.get("InstanceTypes.InstanceType").list()? {
        if kind.get("InstanceTypeId").text()? == instance_type {
            let v6 = kind.get("EniIpv6AddressQuantity");
            return Ok(Some(Limits {
                adapters: kind.get("EniQuantity").number()?,
                v4_per_adapter: kind.get("EniPrivateIpAddressQuantity").number()?,
                v6_per_adapter: if v6.value.is_null() { 0 } else { v6.number()? },
            }));
        }
    }
    Ok(None)
}

/// The vSwitch, if the reply speaks of it.
pub fn vswitch(root: &Field, id: &str) -> Result<Option<VSwitch>, Malformed> {
    for vswitch in root.get("VSwitches.VSwitch").list()? {
        if vswitch.get("VSwitchId").text()? == id {
            let v6 = vswitch.get("Ipv6CidrBlock");
            return Ok(Some(VSwitch {
                id: id.to_string(),
                zone: vswitch.get("ZoneId").id()?,
                cidr: NetPair {
                    v4: Some(vswitch.get("CidrBlock").parse("an IPv4 prefix")?),
                    v6: if v6.text_or_empty()?.is_empty() { None } else { Some(v6.parse("an IPv6 prefix")?) },
                },
                free: vswitch.get("AvailableIpAddressCount").number()?,
            }));
        }
    }
    Ok(None)
}

const KINDS: [(&str, EniKind); 4] = [
    ("Primary", EniKind::Primary),
    ("Secondary", EniKind::Secondary),
    ("Trunk", EniKind::Trunk),
    ("Member", EniKind::Member),
];

const STATES: [(&str, EniState); 5] = [
    ("Available", EniState::Available),
    ("Attaching", EniState::Attaching),
    ("InUse", EniState::InUse),
    ("Detaching", EniState::Detaching),
    ("Deleting", EniState::Deleting),
];

fn kind(name: &str) -> EniKind {
    KINDS.iter().find(|(known, _)| *known == name).map_or(EniKind::Other, |(_, kind)| *kind)
}

fn state(name: &str) -> EniState {
    STATES.iter().find(|(known, _)| *known == name).map_or(EniState::Other, |(_, state)| *state)
}

/// The cloud's word; it has none for `Other`.
pub fn kind_name(kind: EniKind) -> Option<&'static str> {
    KINDS.iter().find(|(_, known)| *known == kind).map(|(name, _)| *name)
}

/// The cloud's word; it has none for `Other`.
pub fn state_name(state: EniState) -> Option<&'static str> {
    STATES.iter().find(|(_, known)| *known == state).map(|(name, _)| *name)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn secondary() -> Value {
        json!({
            "NetworkInterfaceId": "eni-1",
            "MacAddress": "00:16:3E:00:00:01",
            "Type": "Secondary",
            "Status": "InUse",
            "InstanceId": "i-1",
            "VSwitchId": "vsw-1",
            "ZoneId": "cn-hangzhou-h",
            "PrivateIpAddress": "10.0.0.2",
            "PrivateIpSets": {"PrivateIpSet": [
                {"PrivateIpAddress": "10.0.0.3", "Primary": false},
                {"PrivateIpAddress": "10.0.0.2", "Primary": true},
            ]},
            "Ipv6Sets": {"Ipv6Set": [{"Ipv6Address": "fd00::2"}]},
            "Ipv4PrefixSets": {"Ipv4PrefixSet": [{"Ipv4Prefix": "10.0.0.16/28"}]},
            "SecurityGroupIds": {"SecurityGroupId": ["sg-1", "sg-2"]},
            "Tags": {"Tag": [{"TagKey": "creator", "TagValue": "terway"}, {"TagKey": "bare"}]},
            "Description": "d",
        })
    }

    #[test]
    fn an_eni_is_read_with_its_primary_address_first() {
        let read = eni(&Field::root(&secondary())).unwrap();
        assert_eq!(
            read,
            Eni {
                id: "eni-1".into(),
                mac: Mac([0, 0x16, 0x3e, 0, 0, 1]),
                kind: EniKind::Secondary,
                state: EniState::InUse,
                instance: Some("i-1".into()),
                vswitch: "vsw-1".into(),
                zone: "cn-hangzhou-h".into(),
                primary: Ipv4Addr::new(10, 0, 0, 2),
                v4: vec![Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(10, 0, 0, 3)],
                v6: vec!["fd00::2".parse().unwrap()],
                prefixes: vec!["10.0.0.16/28".parse().unwrap()],
                security_groups: vec!["sg-1".into(), "sg-2".into()],
                tags: BTreeMap::from([("bare".into(), "".into()), ("creator".into(), "terway".into())]),
                description: "d".into(),
            }
        );
    }

    #[test]
    fn an_eni_that_cannot_be_believed_names_the_field() {
        for (pointer, value, want) in [
            ("/NetworkInterfaceId", json!(""), "NetworkInterfaceId is not a text"),
            ("/NetworkInterfaceId", json!(null), "NetworkInterfaceId is missing"),
            ("/NetworkInterfaceId", json!("eni 1\n"), "NetworkInterfaceId is not an id: \"eni 1\\n\""),
            ("/ZoneId", json!("../z"), "ZoneId is not an id: \"../z\""),
            ("/MacAddress", json!("00:16:3e"), "MacAddress is not a MAC address: \"00:16:3e\""),
            ("/MacAddress", json!(7), "MacAddress is not a text"),
            ("/PrivateIpAddress", json!("10.0.0.256"), "PrivateIpAddress is not an IPv4 address: \"10.0.0.256\""),
            ("/PrivateIpSets", json!({}), "PrivateIpSets.PrivateIpSet is missing"),
            ("/PrivateIpSets/PrivateIpSet", json!("x"), "PrivateIpSets.PrivateIpSet is not a list"),
            (
                "/PrivateIpSets/PrivateIpSet/0/PrivateIpAddress",
                json!("::1"),
                "PrivateIpSets.PrivateIpSet[0].PrivateIpAddress is not an IPv4 address: \"::1\"",
            ),
            (
                "/PrivateIpSets/PrivateIpSet/1/PrivateIpAddress",
                json!("10.0.0.3"),
                "PrivateIpSets.PrivateIpSet[1] says again what an earlier one said",
            ),
            (
                "/Ipv6Sets/Ipv6Set/0",
                json!({"Ipv6Address": "10.0.0.1"}),
                "Ipv6Sets.Ipv6Set[0].Ipv6Address is not an IPv6 address: \"10.0.0.1\"",
            ),
            (
                "/Ipv4PrefixSets/Ipv4PrefixSet/0/Ipv4Prefix",
                json!("10.0.0.17/28"),
                "Ipv4PrefixSets.Ipv4PrefixSet[0].Ipv4Prefix is not a prefix of 28 bits: 10.0.0.17/28",
            ),
            ("/Tags/Tag/0", json!([]), "Tags.Tag[0].TagKey is missing"),
            ("/Status", json!(null), "Status is missing"),
            ("/VSwitchId", json!(false), "VSwitchId is not a text"),
            ("/ZoneId", json!(null), "ZoneId is missing"),
            ("/InstanceId", json!(1), "InstanceId is not a text"),
            ("/SecurityGroupIds/SecurityGroupId/1", json!({}), "SecurityGroupIds.SecurityGroupId[1] is not a text"),
        ] {
            let mut wrong = secondary();
            *wrong.pointer_mut(pointer).unwrap() = value;
            assert_eq!(eni(&Field::root(&wrong)).unwrap_err(), want);
        }
    }

    #[test]
    fn a_word_we_do_not_know_is_other() {
        let mut strange = secondary();
        strange["Status"] = json!("Linking");
        strange["Type"] = json!("Quantum");
        let read = eni(&Field::root(&strange)).unwrap();
        assert_eq!((read.state, read.kind), (EniState::Other, EniKind::Other));
        assert_eq!((state_name(EniState::Other), kind_name(EniKind::Other)), (None, None));
        assert_eq!((state_name(EniState::InUse), kind_name(EniKind::Trunk)), (Some("InUse"), Some("Trunk")));
    }

    #[test]
    fn an_eni_without_an_instance_has_none_wherever_the_cloud_says_so() {
        let mut free = secondary();
        free["InstanceId"] = json!("");
        assert_eq!(eni(&Field::root(&free)).unwrap().instance, None);
        free["Attachment"] = json!({"InstanceId": "i-2"});
        assert_eq!(eni(&Field::root(&free)).unwrap().instance, Some("i-2".into()));
    }

    #[test]
    fn a_reply_without_a_list_of_enis_does_not_mean_that_there_are_none() {
        assert_eq!(
            enis(&Field::root(&json!({"RequestId": "r"}))).unwrap_err(),
            "NetworkInterfaceSets.NetworkInterfaceSet is missing"
        );
        let none = json!({"NetworkInterfaceSets": {"NetworkInterfaceSet": []}, "NextToken": ""});
        assert_eq!(enis(&Field::root(&none)).unwrap(), (vec![], String::new()));
    }

    #[test]
    fn a_reply_without_security_groups_does_not_mean_that_there_are_none() {
        let reply = json!({"SecurityGroupIds": {"SecurityGroupId": ["sg-1"]}});
        assert_eq!(security_groups(&Field::root(&reply)).unwrap(), ["sg-1"]);
        let text = security_groups(&Field::root(&json!({}))).unwrap_err();
        assert_eq!(text, "SecurityGroupIds.SecurityGroupId is missing");
    }

    #[test]
    fn addresses_for_another_eni_are_not_ours() {
        let reply = json!({"AssignedPrivateIpAddressesSet": {
            "NetworkInterfaceId": "eni-9", "PrivateIpSet": {"PrivateIpAddress": ["10.0.0.9"]}}});
        let root = Field::root(&reply);
        assert_eq!(assigned_v4(&root, "eni-9").unwrap(), [Ipv4Addr::new(10, 0, 0, 9)]);
        assert_eq!(
            assigned_v4(&root, "eni-1").unwrap_err(),
            "AssignedPrivateIpAddressesSet.NetworkInterfaceId is not eni-1"
        );
    }

    #[test]
    fn ipv6_addresses_for_another_eni_are_not_ours_either() {
        let reply = json!({"NetworkInterfaceId": "eni-9", "Ipv6Sets": {"Ipv6Address": ["fd00::9"]}});
        let root = Field::root(&reply);
        assert_eq!(assigned_v6(&root, "eni-9").unwrap(), ["fd00::9".parse::<Ipv6Addr>().unwrap()]);
        assert_eq!(assigned_v6(&root, "eni-1").unwrap_err(), "NetworkInterfaceId is not eni-1");
        let text = assigned_v6(&Field::root(&json!({"NetworkInterfaceId": "eni-9"})), "eni-9").unwrap_err();
        assert_eq!(text, "Ipv6Sets.Ipv6Address is missing");
        let reply = json!({"Ipv6Sets": {"Ipv6Address": ["10.0.0.9"]}});
        assert_eq!(
            assigned_v6(&Field::root(&reply), "eni-9").unwrap_err(),
            "Ipv6Sets.Ipv6Address[0] is not an IPv6 address: \"10.0.0.9\""
        );
    }

    #[test]
    fn a_vswitch_may_lack_ipv6_and_nothing_else() {
        let reply = json!({"VSwitches": {"VSwitch": [
            {"VSwitchId": "vsw-2"},
            {"VSwitchId": "vsw-1", "ZoneId": "z", "CidrBlock": "10.0.0.0/20", "Ipv6CidrBlock": "",
             "AvailableIpAddressCount": 4000},
            {"VSwitchId": "vsw-6", "ZoneId": "z", "CidrBlock": "10.1.0.0/20", "Ipv6CidrBlock": "fd00::/64",
             "AvailableIpAddressCount": 0},
        ]}});
        let root = Field::root(&reply);
        let one = vswitch(&root, "vsw-1").unwrap().unwrap();
        assert_eq!((one.cidr.to_string().as_str(), one.free), ("10.0.0.0/20", 4000));
        assert_eq!(vswitch(&root, "vsw-6").unwrap().unwrap().cidr.to_string(), "10.1.0.0/20,fd00::/64");
        assert_eq!(vswitch(&root, "vsw-2").unwrap_err(), "VSwitches.VSwitch[0].ZoneId is missing");
        assert_eq!(vswitch(&root, "vsw-3").unwrap(), None);
    }

    #[test]
    fn limits_are_those_of_the_type_that_was_asked_for() {
        let reply = json!({"InstanceTypes": {"InstanceType": [
            {"InstanceTypeId": "ecs.g7.large", "EniQuantity": 3, "EniPrivateIpAddressQuantity": 6},
            {"InstanceTypeId": "ecs.g7.xlarge", "EniQuantity": -1, "EniPrivateIpAddressQuantity": 15},
        ]}});
        let root = Field::root(&reply);
        let want = Limits { adapters: 3, v4_per_adapter: 6, v6_per_adapter: 0 };
        assert_eq!(limits(&root, "ecs.g7.large").unwrap(), Some(want));
        assert_eq!(
            limits(&root, "ecs.g7.xlarge").unwrap_err(),
            "InstanceTypes.InstanceType[1].EniQuantity is not a number from 0 to 4294967295"
        );
        assert_eq!(limits(&root, "ecs.g8.large").unwrap(), None);
    }
}
