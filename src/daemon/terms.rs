//! What machine and account allow, and the pool's settings that follow from them and from the configuration.

use std::collections::BTreeMap;

use super::calls::Place;
use crate::cloud::Client;
use crate::config::{Config, Mode, NodeFacts};
use crate::eni::{Fault, Limits};
use crate::ours;
use crate::pool::Settings;

#[derive(Debug, Clone)]
pub struct Terms {
    pub facts: NodeFacts,
    /// Whether pods share their ENI, for as long as the daemon lives.
    pub mode: Mode,
    limits: Limits,
    /// Security groups of the instance, for ENIs when the configuration names none.
    groups: Vec<String>,
}

impl Terms {
    pub fn ask(cloud: &Client, facts: NodeFacts, mode: Mode) -> Result<Terms, Fault> {
        let limits = cloud.instance_limits(&facts.instance_type)?;
        let groups = cloud.security_groups(&facts.instance)?;
        Ok(Terms { facts, mode, limits, groups })
    }

    pub fn place(&self, config: &Config) -> Place {
        Place {
            instance: self.facts.instance.clone(),
            vswitches: self.vswitches(config),
            tag_filter: config.eni_tag_filter.clone(),
            tag_block: config.eni_tag_block.clone(),
        }
    }

    /// Those of our zone; the instance's own where the configuration names none for it.
    fn vswitches(&self, config: &Config) -> Vec<String> {
        match config.vswitches.get(&self.facts.zone) {
            Some(ids) if !ids.is_empty() => ids.clone(),
            _ => vec![self.facts.vswitch.clone()],
        }
    }

    pub fn settings(&self, config: &Config) -> Settings {
        let whole = self.mode == Mode::Whole;
        let most = if whole { config.share.of(self.limits.adapters) } else { self.limits.adapters.saturating_sub(1) };
        let most = most.min(ours::MAX_SLOT);
        let max_enis = config.max_enis.map_or(most, |max| max.min(most));
        let groups = if config.security_groups.is_empty() { &self.groups } else { &config.security_groups };
        let mut tags = config.eni_tags.clone();
        tags.extend([
            (ours::ENI_TAG.0.to_owned(), ours::ENI_TAG.1.to_owned()),
            (ours::NODE_TAG.to_owned(), self.facts.instance.clone()),
        ]);
        Settings {
            stack: config.stack,
            whole,
            limits: if whole { alone(self.limits) } else { self.limits },
            min_idle: config.min_idle,
            max_idle: config.max_idle,
            min_enis: config.min_enis.min(max_enis),
            max_enis,
            vswitches: self.vswitches(config),
            vswitch_choice: config.vswitch_choice,
            eni_choice: config.eni_choice,
            security_groups: groups.clone(),
            resource_group: config.resource_group.clone(),
            instance: self.facts.instance.clone(),
            instance_type: self.facts.instance_type.clone(),
            tags,
            cooldown: config.cooldown,
            eni_idle: config.eni_idle,
            sync_period: config.sync_period,
        }
    }
}

/// An ENI that carries one pod needs one address of each family.
fn alone(limits: Limits) -> Limits {
    Limits { v4_per_adapter: limits.v4_per_adapter.min(1), v6_per_adapter: limits.v6_per_adapter.min(1), ..limits }
}

/// Whether an ENI with these tags is for us to use.
pub fn admits(place: &Place, tags: &BTreeMap<String, String>) -> bool {
    let has = |key: &String, value: &String| tags.get(key) == Some(value);
    place.tag_filter.iter().all(|(k, v)| has(k, v)) && !place.tag_block.iter().any(|(k, v)| has(k, v))
}
