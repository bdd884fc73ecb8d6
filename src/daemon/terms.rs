//! What machine and account allow, and the pool's settings that follow from them and from the configuration.

use serde::{Deserialize, Serialize};

use super::calls::Place;
use crate::both::both;
use crate::cloud::Client;
use crate::config::{Config, Mode, NodeFacts};
use crate::eni::Limits;
use crate::error::{Context, Error};
use crate::ip::{Family, Stack};
use crate::ours;
use crate::pool::Settings;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Terms {
    pub facts: NodeFacts,
    /// Whether pods share their ENI, for as long as the daemon lives.
    pub mode: Mode,
    limits: Limits,
    /// Security groups of the instance, for ENIs when the configuration names none.
    groups: Vec<String>,
}

impl Terms {
    /// In the usual mode, as long as nobody has said another.
    pub fn ask(cloud: &Client, facts: NodeFacts) -> Result<Terms, Error> {
        let (groups, limits) =
            both(|| cloud.security_groups(&facts.instance), || cloud.instance_limits(&facts.instance_type));
        let (limits, groups) = (limits.context(|| format!("what an {} can hold", facts.instance_type))?, groups?);
        Ok(Terms { facts, mode: Mode::Shared, limits, groups })
    }

    /// A stack that an ENI of this machine can never serve is a mistake of the operator.
    pub fn check(&self, stack: Stack) -> Result<(), Error> {
        if !stack.has(Family::V6) || self.limits.v6_per_adapter > 0 {
            return Ok(());
        }
        let kind = &self.facts.instance_type;
        let text = format!(
            "ip_stack is {stack}, and an ENI of instance type {kind} can hold no IPv6 address: choose another instance type, \
             or ip_stack ipv4"
        );
        Err(Error::refused(text).within("configuration"))
    }

    pub fn place(&self, config: &Config) -> Place {
        place(&self.facts, config)
    }

    pub fn settings(&self, config: &Config) -> Settings {
        let whole = self.mode == Mode::Whole;
        let most = if whole { config.share.of(self.limits.adapters) } else { self.limits.adapters.saturating_sub(1) };
        let most = most.min(ours::MAX_SLOT);
        let max_enis = config.max_enis.map_or(most, |max| max.min(most));
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
            zone: self.facts.zone.clone(),
            vswitches: vswitches(&self.facts, config),
            vswitch_choice: config.vswitch_choice,
            eni_choice: config.eni_choice,
            security_groups: config.security_groups.clone(),
            instance_groups: self.groups.clone(),
            resource_group: config.resource_group.clone(),
            instance: self.facts.instance.clone(),
            instance_type: self.facts.instance_type.clone(),
            tags,
            tag_filter: config.eni_tag_filter.clone(),
            tag_block: config.eni_tag_block.clone(),
            warm_up: config.warm_up,
            prefixes: config.prefixes,
            reclaim: config.reclaim,
            rate_limit: config.rate_limit.clone(),
            cooldown: config.cooldown,
            reservation: config.reservation,
            eni_idle: config.eni_idle,
            sync_period: config.sync_period,
        }
    }
}

/// An ENI that carries one pod needs one address of each family.
fn alone(limits: Limits) -> Limits {
    Limits { v4_per_adapter: limits.v4_per_adapter.min(1), v6_per_adapter: limits.v6_per_adapter.min(1), ..limits }
}

pub fn place(facts: &NodeFacts, config: &Config) -> Place {
    Place { instance: facts.instance.clone(), vswitches: vswitches(facts, config) }
}

/// Those of our zone; the instance's own where the configuration names none for it.
fn vswitches(facts: &NodeFacts, config: &Config) -> Vec<String> {
    match config.vswitches.get(&facts.zone) {
        Some(ids) if !ids.is_empty() => ids.clone(),
        _ => vec![facts.vswitch.clone()],
    }
}
