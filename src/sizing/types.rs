//! What common instance types hold, for those who have no credentials to ask. What counts is the cloud's own word (DescribeInstanceTypes)
//! and the ECS documentation, "Overview of instance families", with which these rows have not been compared one by one yet.

use crate::eni::Limits;

/// Sizes of a generation, the same for the families for general purpose (g), computing (c) and memory (r): ENIs, the primary one
/// included, and IPv4 addresses of each.
type Sizes = &'static [(&'static str, u32, u32)];

const FIFTH: Sizes = &[
    ("large", 2, 6),
    ("xlarge", 3, 10),
    ("2xlarge", 4, 10),
    ("3xlarge", 6, 10),
    ("4xlarge", 8, 20),
    ("6xlarge", 8, 20),
    ("8xlarge", 8, 20),
    ("16xlarge", 8, 20),
];
const SIXTH: Sizes = &[
    ("large", 2, 6),
    ("xlarge", 3, 10),
    ("2xlarge", 4, 10),
    ("3xlarge", 6, 10),
    ("4xlarge", 8, 20),
    ("6xlarge", 8, 20),
    ("8xlarge", 8, 20),
    ("13xlarge", 7, 20),
    ("26xlarge", 15, 20),
];
const SEVENTH: Sizes = &[
    ("large", 3, 6),
    ("xlarge", 4, 15),
    ("2xlarge", 4, 15),
    ("3xlarge", 8, 15),
    ("4xlarge", 8, 30),
    ("6xlarge", 8, 30),
    ("8xlarge", 8, 30),
    ("16xlarge", 8, 30),
    ("32xlarge", 15, 30),
];

const FAMILIES: &[(&str, Sizes)] = &[
    ("g5", FIFTH),
    ("c5", FIFTH),
    ("r5", FIFTH),
    ("g6", SIXTH),
    ("c6", SIXTH),
    ("r6", SIXTH),
    ("g7", SEVENTH),
    ("c7", SEVENTH),
    ("r7", SEVENTH),
];

/// What an instance of this type holds of IPv4, if the type is a common one.
pub fn limits(instance_type: &str) -> Option<Limits> {
    let (family, size) = instance_type.strip_prefix("ecs.")?.split_once('.')?;
    let (_, sizes) = FAMILIES.iter().find(|(name, _)| *name == family)?;
    let (_, adapters, v4) = sizes.iter().find(|(name, ..)| *name == size)?;
    Some(Limits { adapters: *adapters, v4_per_adapter: *v4, v6_per_adapter: 0 })
}

/// The families, for people.
pub fn known() -> String {
    FAMILIES.iter().map(|(name, _)| format!("ecs.{name}")).collect::<Vec<_>>().join(" ")
}
