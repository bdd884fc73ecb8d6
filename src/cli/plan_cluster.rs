//! `plan-cluster`: how many pods a cluster can hold, before there is one.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use argh::FromArgs;
use ipnet::Ipv4Net;
use serde_json::{Value, json};

use super::face::{Answer, Code, Failure, complain};
use crate::cloud::{Client, reach};
use crate::config::Config;
use crate::eni::Limits;
use crate::error::{Context, Error};
use crate::ours;
use crate::sizing::{self, Mode, Report, VSwitch, Wish, prefix};

/// Check the networks of a cluster that is to be, and say how many pods it can hold and what limits that. Exits with 0 where it
/// can be, 1 where it cannot, 2 where what was asked makes no sense.
#[derive(FromArgs)]
#[argh(subcommand, name = "plan-cluster")]
pub struct PlanCluster {
    /// prefix of the VPC, such as 192.168.0.0/16
    #[argh(option, from_str_fn(prefix))]
    vpc: Ipv4Net,
    /// prefix of a vSwitch for nodes; with several zones each as 192.168.0.0/19@cn-hangzhou-i
    #[argh(option)]
    node_vswitch: Vec<VSwitch>,
    /// prefix of a vSwitch for pods, written likewise
    #[argh(option)]
    pod_vswitch: Vec<VSwitch>,
    /// prefix of the Services' addresses, such as 172.21.0.0/20
    #[argh(option, from_str_fn(prefix))]
    service_cidr: Ipv4Net,
    /// type of the nodes, such as ecs.g6.2xlarge
    #[argh(option)]
    instance_type: Option<String>,
    /// how many ENIs the type holds, the primary one included, where that is known
    #[argh(option)]
    enis: Option<u32>,
    /// how many IPv4 addresses each of them holds
    #[argh(option)]
    ips_per_eni: Option<u32>,
    /// how many nodes there shall be
    #[argh(option)]
    nodes: u32,
    /// shared: pods share ENIs (the default); exclusive: each has one
    #[argh(option, default = "Mode::Shared")]
    mode: Mode,
    /// configuration whose credentials may ask the cloud (/etc/eni/eni.json); where there is none, a table answers
    #[argh(option, default = "ours::CONFIG.into()")]
    config: PathBuf,
    /// print JSON
    #[argh(switch)]
    pub json: bool,
}

/// What an instance holds, and who says so.
struct Known {
    limits: Limits,
    by: &'static str,
}

impl PlanCluster {
    pub fn answer(&self) -> Result<Answer, Failure> {
        let known = self.known()?;
        let report = sizing::plan(&Wish {
            vpc: self.vpc,
            nodes: self.node_vswitch.clone(),
            pods: self.pod_vswitch.clone(),
            services: self.service_cidr,
            count: self.nodes,
            mode: self.mode,
            limits: known.limits,
        });
        let (text, json) = (self.as_text(&known, &report), self.as_json(&known, &report));
        Ok(Answer::found(report.errors.is_empty(), text, json))
    }

    fn known(&self) -> Result<Known, Failure> {
        if self.node_vswitch.is_empty() || self.pod_vswitch.is_empty() {
            return Err(Failure::usage("at least one --node-vswitch and one --pod-vswitch are needed"));
        }
        match (&self.instance_type, self.enis, self.ips_per_eni) {
            (_, Some(adapters), Some(v4)) => Ok(Known {
                limits: Limits { adapters, v4_per_adapter: v4, v6_per_adapter: 0 },
                by: "as the options say",
            }),
            (Some(name), None, None) => Ok(self.ask(name)?),
            _ => Err(Failure::usage("either --instance-type, or both --enis and --ips-per-eni are needed")),
        }
    }

    /// The cloud knows best; the table knows without credentials.
    fn ask(&self, name: &str) -> Result<Known, Error> {
        let asked = if self.config.exists() { Some(self.ask_cloud(name)) } else { None };
        match (asked, sizing::limits(name)) {
            (Some(Ok(limits)), _) => Ok(Known { limits, by: "as the cloud says" }),
            (Some(Err(e)), Some(limits)) => {
                complain(
                    format!("the cloud does not tell what {name} holds, the built-in table does: {e}"),
                    Code::Fine,
                );
                Ok(Known { limits, by: "by the built-in table" })
            }
            (None, Some(limits)) => Ok(Known { limits, by: "by the built-in table" }),
            (asked, None) => {
                let families = sizing::known();
                let hint = format!("say --enis and --ips-per-eni (the built-in table has sizes of {families})");
                let why = asked.and_then(Result::err).map(|e| format!(" ({e})")).unwrap_or_default();
                Err(Error::refused(format!("instance type {name} is not known{why}: {hint}")))
            }
        }
    }

    fn ask_cloud(&self, name: &str) -> Result<Limits, Error> {
        let path = self.config.display();
        let text = fs::read(&self.config).context(|| format!("read {path}"))?;
        let (config, _) = Config::parse(&text, &BTreeMap::new()).context(|| path.to_string())?;
        let metadata = reach::metadata(&config)?;
        let region = config.region.clone().map_or_else(|| metadata.region(), Ok)?;
        let credentials = reach::credentials(&config, metadata)?;
        let cloud = Client::new(reach::endpoint(&config, &region), credentials)?;
        cloud.instance_limits(name).map_err(|fault| Error::refused(fault.to_string()))
    }

    fn as_json(&self, known: &Known, report: &Report) -> Value {
        json!({"instance_type": self.instance_type, "limits": known.limits, "limits_by": known.by, "report": report})
    }

    fn as_text(&self, known: &Known, report: &Report) -> String {
        let Limits { adapters, v4_per_adapter, .. } = known.limits;
        let name = self.instance_type.as_deref().unwrap_or("instance");
        let way = match self.mode {
            Mode::Shared => format!("({adapters} ENIs - 1) x {v4_per_adapter} addresses"),
            Mode::Exclusive => format!("{adapters} ENIs - 1"),
        };
        let lines = [
            ("type", format!("{name}: {adapters} ENIs of {v4_per_adapter} IPv4 addresses, {}", known.by)),
            ("pods a node", format!("{} = {way}", report.pods_per_node)),
            ("node addresses", format!("{} for {} nodes", report.node_addresses, self.nodes)),
            ("pod addresses", report.pod_addresses.to_string()),
            ("Services", report.service_addresses.to_string()),
            ("pods in all", format!("{}: {}", report.pods, report.first_limit)),
        ];
        let mut text: String = lines.iter().map(|(name, value)| format!("{name:<15} {value}\n")).collect();
        text.extend(report.warnings.iter().map(|what| format!("warning: {what}\n")));
        text.extend(report.errors.iter().map(|what| format!("error: {what}\n")));
        text
    }
}
