//! Parameters of API calls: which each action knows and needs, and their values parsed as strictly as the cloud does.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::str::FromStr;

use super::ApiError;

/// What an action is called, and what it takes. `.N` stands for a list's positions.
pub struct Spec {
    pub action: &'static str,
    pub version: &'static str,
    /// What RAM calls the right to it.
    pub right: &'static str,
    needs: &'static [&'static str],
    takes: &'static [&'static str],
}

const ECS: &str = "2014-05-26";
const VPC: &str = "2016-04-28";

/// Every action takes these and the simulation has no use for them.
const IGNORED: [&str; 4] = ["OwnerId", "OwnerAccount", "ResourceOwnerId", "ResourceOwnerAccount"];

const SPECS: [Spec; 17] = [
    Spec {
        action: "CreateNetworkInterface",
        version: ECS,
        right: "ecs:CreateNetworkInterface",
        needs: &["RegionId", "VSwitchId"],
        takes: &[
            "SecurityGroupId",
            "SecurityGroupIds.N",
            "InstanceType",
            "PrimaryIpAddress",
            "SecondaryPrivateIpAddressCount",
            "PrivateIpAddress.N",
            "Ipv4PrefixCount",
            "Ipv6AddressCount",
            "Ipv6Address.N",
            "NetworkInterfaceName",
            "Description",
            "ResourceGroupId",
            "NetworkInterfaceTrafficMode",
            "Tag.N.Key",
            "Tag.N.Value",
            "DeleteOnRelease",
            "SourceDestCheck",
            "ClientToken",
        ],
    },
    Spec {
        action: "DescribeNetworkInterfaces",
        version: ECS,
        right: "ecs:DescribeNetworkInterfaces",
        needs: &["RegionId"],
        takes: &[
            "NetworkInterfaceId.N",
            "InstanceId",
            "Type",
            "Status",
            "Tag.N.Key",
            "Tag.N.Value",
            "VpcId",
            "VSwitchId",
            "SecurityGroupId",
            "PrimaryIpAddress",
            "PrivateIpAddress.N",
            "NetworkInterfaceName",
            "MaxResults",
            "NextToken",
            "PageNumber",
            "PageSize",
        ],
    },
    Spec {
        action: "AttachNetworkInterface",
        version: ECS,
        right: "ecs:AttachNetworkInterface",
        needs: &["RegionId", "NetworkInterfaceId", "InstanceId"],
        takes: &["NetworkCardIndex"],
    },
    Spec {
        action: "DetachNetworkInterface",
        version: ECS,
        right: "ecs:DetachNetworkInterface",
        needs: &["RegionId", "NetworkInterfaceId", "InstanceId"],
        takes: &[],
    },
    Spec {
        action: "DeleteNetworkInterface",
        version: ECS,
        right: "ecs:DeleteNetworkInterface",
        needs: &["RegionId", "NetworkInterfaceId"],
        takes: &[],
    },
    Spec {
        action: "AssignPrivateIpAddresses",
        version: ECS,
        right: "ecs:AssignPrivateIpAddresses",
        needs: &["RegionId", "NetworkInterfaceId"],
        takes: &["SecondaryPrivateIpAddressCount", "PrivateIpAddress.N", "Ipv4PrefixCount", "ClientToken"],
    },
    Spec {
        action: "UnassignPrivateIpAddresses",
        version: ECS,
        right: "ecs:UnassignPrivateIpAddresses",
        needs: &["RegionId", "NetworkInterfaceId"],
        takes: &["PrivateIpAddress.N", "Ipv4Prefix.N"],
    },
    Spec {
        action: "AssignIpv6Addresses",
        version: ECS,
        right: "ecs:AssignIpv6Addresses",
        needs: &["RegionId", "NetworkInterfaceId"],
        takes: &["Ipv6AddressCount", "Ipv6Address.N", "ClientToken"],
    },
    Spec {
        action: "UnassignIpv6Addresses",
        version: ECS,
        right: "ecs:UnassignIpv6Addresses",
        needs: &["RegionId", "NetworkInterfaceId"],
        takes: &["Ipv6Address.N"],
    },
    Spec {
        action: "ModifyNetworkInterfaceAttribute",
        version: ECS,
        right: "ecs:ModifyNetworkInterfaceAttribute",
        needs: &["RegionId", "NetworkInterfaceId"],
        takes: &["SecurityGroupId.N", "NetworkInterfaceName", "Description", "DeleteOnRelease", "SourceDestCheck"],
    },
    Spec {
        action: "TagResources",
        version: ECS,
        right: "ecs:TagResources",
        needs: &["RegionId", "ResourceType", "ResourceId.1", "Tag.1.Key"],
        takes: &["ResourceId.N", "Tag.N.Key", "Tag.N.Value"],
    },
    Spec {
        action: "UntagResources",
        version: ECS,
        right: "ecs:UntagResources",
        needs: &["RegionId", "ResourceType", "ResourceId.1"],
        takes: &["ResourceId.N", "TagKey.N", "All"],
    },
    Spec {
        action: "DescribeNetworkInterfaceAttribute",
        version: ECS,
        right: "ecs:DescribeNetworkInterfaceAttribute",
        needs: &["RegionId", "NetworkInterfaceId"],
        takes: &["Attribute"],
    },
    Spec {
        action: "DescribeInstanceTypes",
        version: ECS,
        right: "ecs:DescribeInstanceTypes",
        needs: &[],
        takes: &["RegionId", "InstanceTypes.N", "MaxResults", "NextToken"],
    },
    Spec {
        action: "DescribeInstances",
        version: ECS,
        right: "ecs:DescribeInstances",
        needs: &["RegionId"],
        takes: &["InstanceIds", "VpcId", "VSwitchId", "ZoneId", "PageNumber", "PageSize", "MaxResults", "NextToken"],
    },
    Spec {
        action: "DescribeInstanceAttribute",
        version: ECS,
        right: "ecs:DescribeInstanceAttribute",
        needs: &["InstanceId"],
        takes: &["RegionId"],
    },
    Spec {
        action: "DescribeVSwitches",
        version: VPC,
        right: "vpc:DescribeVSwitches",
        needs: &[],
        takes: &["RegionId", "VSwitchId", "VpcId", "ZoneId", "PageNumber", "PageSize"],
    },
];

pub fn spec(action: &str, version: &str) -> Result<&'static Spec, ApiError> {
    SPECS.iter().find(|s| s.action == action && s.version == version).ok_or_else(|| {
        let words = format!("The simulated cloud has no action {action} in version {version}.");
        ApiError::new(404, "InvalidAction.NotFound", words)
    })
}

/// The parameters of one call, known to be ones that its action takes.
pub struct Params<'a>(&'a BTreeMap<String, String>);

impl<'a> Params<'a> {
    pub fn check(spec: &Spec, all: &'a BTreeMap<String, String>, region: &str) -> Result<Params<'a>, ApiError> {
        for name in spec.needs {
            if all.get(*name).is_none_or(String::is_empty) {
                return Err(ApiError::missing(name));
            }
        }
        for name in all.keys() {
            let general = generalised(name)?;
            let known = [spec.needs, spec.takes, &IGNORED].iter().any(|list| list.contains(&general.as_str()));
            if !known {
                return Err(ApiError::invalid(name, format!("{} does not know it", spec.action)));
            }
        }
        match all.get("RegionId") {
            Some(other) if other != region => Err(ApiError::not_found("InvalidRegionId.NotFound", other)),
            _ => Ok(Params(all)),
        }
    }

    pub fn text(&self, name: &str) -> &'a str {
        self.0.get(name).map(String::as_str).unwrap_or_default()
    }

    /// The value, where it is given and not empty.
    pub fn given(&self, name: &str) -> Option<&'a str> {
        self.0.get(name).map(String::as_str).filter(|v| !v.is_empty())
    }

    pub fn number(&self, name: &str, range: RangeInclusive<usize>) -> Result<Option<usize>, ApiError> {
        let Some(text) = self.given(name) else { return Ok(None) };
        match text.parse() {
            Ok(n) if range.contains(&n) => Ok(Some(n)),
            _ => Err(ApiError::invalid(name, format!("{text} is not a number in {range:?}"))),
        }
    }

    pub fn parsed<T: FromStr>(&self, name: &str) -> Result<Option<T>, ApiError> {
        let Some(text) = self.given(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| ApiError::invalid(name, format!("{text} is malformed")))
    }

    /// `Name.1`, `Name.2` and so on, without gaps.
    pub fn list(&self, name: &str) -> Result<Vec<&'a str>, ApiError> {
        let count = self.0.keys().filter(|k| k.strip_prefix(name).is_some_and(|rest| rest.starts_with('.'))).count();
        let items = (1..=count).map(|i| {
            let name = format!("{name}.{i}");
            self.given(&name).ok_or_else(|| ApiError::missing(&name))
        });
        items.collect()
    }

    pub fn parsed_list<T: FromStr>(&self, name: &str) -> Result<Vec<T>, ApiError> {
        let items = self.list(name)?.into_iter();
        items.map(|t| t.parse().map_err(|_| ApiError::invalid(name, format!("{t} is malformed")))).collect()
    }

    /// `Tag.N.Key` and `Tag.N.Value`; in a filter a value may be missing.
    pub fn tags(&self) -> Result<BTreeMap<String, Option<String>>, ApiError> {
        if self.0.keys().any(|k| k.strip_prefix("Tag.").is_some_and(beyond_twenty)) {
            return Err(ApiError::new(403, "QuotaExceed.Tags", "At most 20 tags."));
        }
        let mut tags = BTreeMap::new();
        for i in 1..=20 {
            let value = self.0.get(&format!("Tag.{i}.Value")).cloned();
            let name = format!("Tag.{i}.Key");
            let Some(key) = self.given(&name) else {
                match value {
                    Some(_) => return Err(ApiError::missing(&name)),
                    None => continue,
                }
            };
            if key.chars().count() > 128 || key.contains("://") || key.starts_with("acs:") || key.starts_with("aliyun")
            {
                return Err(ApiError::new(400, "InvalidTagKey.Malformed", format!("{key} cannot be a tag's key.")));
            }
            let plain =
                |text: &str| text.chars().count() <= 128 && !text.contains("http://") && !text.contains("https://");
            if !value.as_deref().is_none_or(plain) {
                return Err(ApiError::new(400, "InvalidTagValue.Malformed", format!("{key} has no value of a tag.")));
            }
            if tags.insert(key.to_string(), value).is_some() {
                return Err(ApiError::new(400, "Duplicate.TagKey", format!("The tag {key} is given twice.")));
            }
        }
        Ok(tags)
    }
}

fn beyond_twenty(rest: &str) -> bool {
    rest.split('.').next().and_then(|n| n.parse::<u32>().ok()).is_none_or(|n| n == 0 || n > 20)
}

/// `Tag.12.Key` is `Tag.N.Key`.
fn generalised(name: &str) -> Result<String, ApiError> {
    let words: Result<Vec<&str>, ApiError> = name
        .split('.')
        .map(|word| match word.parse::<u32>() {
            Ok(0) => Err(ApiError::invalid(name, "positions count from 1")),
            Ok(_) => Ok("N"),
            Err(_) => Ok(word),
        })
        .collect();
    Ok(words?.join("."))
}
