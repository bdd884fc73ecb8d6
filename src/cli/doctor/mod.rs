//! `doctor`: looks at all that a node needs for its pods to have a network, and says what to do about what is wrong.

mod node;
mod outside;
mod system;

use std::path::PathBuf;

use argh::FromArgs;
use serde_json::{Value, json};

use super::face::{Answer, Failure, Hue, paint};
use super::finding::Finding;
use super::known::{self, Known};
use crate::config::Config;
use crate::error::Error;
use crate::kernel::{AddrSeen, Kernel, LinkSeen, RouteSeen, felix};
use crate::plan::{Plan, Rule};

/// Look at daemon, kernel, kernel parameters, routes, other managers of networks, MTU, metadata, cloud, API server, clock and max-pods,
/// and say what to do about what is wrong. Exits with 0 if nothing is, 1 if something is, 3 if terwayd does not answer.
#[derive(FromArgs)]
#[argh(subcommand, name = "doctor")]
pub struct Doctor {
    /// put right what can be put right without harm: what node and ENIs are to have in the kernel; rules, routes and chains that were left
    #[argh(switch)]
    fix: bool,
    /// configuration whose credentials ask cloud and API server (/etc/eni/eni.json)
    #[argh(option, default = "crate::ours::CONFIG.into()")]
    config: PathBuf,
    /// kubeconfig file (the one of the configuration)
    #[argh(option)]
    kubeconfig: Option<PathBuf>,
    /// print JSON
    #[argh(switch)]
    pub json: bool,
}

/// What is looked at.
pub struct Patient {
    known: Known,
    kernel: Kernel,
    links: Vec<LinkSeen>,
    addrs: Vec<AddrSeen>,
    config: Result<Config, Error>,
    kubeconfig: Option<PathBuf>,
}

/// What is wrong, and what puts it right where that can do no harm.
pub struct Complaint {
    finding: Finding,
    fix: Option<Fix>,
}

pub enum Fix {
    Make(Plan),
    Forget(Rule),
    Unroute(RouteSeen),
    ClearFelix,
}

type Check = fn(&mut Patient) -> Result<Vec<Complaint>, Error>;

const CHECKS: [(&str, Check); 15] = [
    ("daemon", node::daemon),
    ("configuration", node::configuration),
    ("runtime", system::runtime),
    ("kernel", system::kernel),
    ("conntrack", system::conntrack),
    ("room", system::room),
    ("plans", node::plans),
    ("leftovers", node::leftovers),
    ("managers", system::managers),
    ("mtu", node::mtu),
    ("path-mtu", outside::path_mtu),
    ("metadata", outside::metadata),
    ("cloud", outside::cloud),
    ("api-server", outside::api_server),
    ("max-pods", outside::max_pods),
];

impl From<Finding> for Complaint {
    fn from(finding: Finding) -> Complaint {
        Complaint { finding, fix: None }
    }
}

impl Doctor {
    /// One that changes nothing.
    pub fn looking() -> Doctor {
        Doctor { fix: false, config: crate::ours::CONFIG.into(), kubeconfig: None, json: false }
    }

    pub fn answer(&self) -> Result<Answer, Failure> {
        let mut patient = self.patient()?;
        let (mut page, mut json, mut good) = (String::new(), Vec::new(), true);
        for (name, check) in CHECKS {
            // What cannot be looked at is a finding of its own.
            let unseen = |e: Error| vec![Finding::note(format!("{name} could not be looked at: {e}"), "").into()];
            let complaints = check(&mut patient).unwrap_or_else(unseen);
            if complaints.is_empty() {
                page += &format!("{} {name}\n", paint(Hue::Good, "ok      "));
            }
            for complaint in complaints {
                let (text, value, is_fixed) = self.tell(&mut patient, name, &complaint);
                good &= is_fixed || !complaint.finding.is_problem();
                page += &text;
                json.push(value);
            }
        }
        let json = json!({"healthy": good, "findings": json});
        Ok(Answer { page, json, code: patient.known.judged(good) })
    }

    fn patient(&self) -> Result<Patient, Failure> {
        let known = Known::look()?;
        let mut kernel = Kernel::host()?;
        let (links, addrs) = (kernel.links()?, kernel.addrs()?);
        let config = known::config_at(&self.config);
        let said = config.as_ref().ok().and_then(|config| config.kubeconfig.clone());
        Ok(Patient { known, kernel, links, addrs, config, kubeconfig: self.kubeconfig.clone().or(said) })
    }

    fn tell(&self, patient: &mut Patient, name: &str, complaint: &Complaint) -> (String, Value, bool) {
        let (mut text, mut value) = (complaint.finding.text(), complaint.finding.json());
        value["check"] = name.into();
        let Some(fix) = &complaint.fix else { return (text, value, false) };
        value["fixable"] = true.into();
        if !self.fix {
            text += "         terway-cli doctor --fix does it\n";
            return (text, value, false);
        }
        let (done, is_fixed) = match fix.carry_out(patient) {
            Ok(line) => (line, true),
            Err(e) => (e.to_string(), false),
        };
        let (hue, word) = if is_fixed { (Hue::Good, "fixed") } else { (Hue::Bad, "not fixed") };
        text += &format!("         {}: {done}\n", paint(hue, word));
        value["fixed"] = is_fixed.into();
        value["done"] = done.into();
        (text, value, is_fixed)
    }
}

impl Fix {
    /// Says what was done. Once more is safe: what is right already is not touched.
    fn carry_out(&self, patient: &mut Patient) -> Result<String, Error> {
        match self {
            Fix::Make(plan) => {
                patient.kernel.apply(plan)?;
                Ok(plan.to_string().trim_end().replace('\n', "; "))
            }
            Fix::Forget(rule) => {
                patient.kernel.delete_rule(rule)?;
                Ok(crate::plan::Object::Rule(rule.clone()).to_string().replace("rule add", "rule del"))
            }
            Fix::Unroute(route) => {
                // A pod may have come meanwhile.
                let known = look_again()?;
                if known.silence.is_some() || known.lease_at(route.to.addr()).is_some() {
                    return Err(Error::refused("its address is leased by now"));
                }
                patient.kernel.delete_route(route)?;
                Ok(format!("ip route del {} table {}", route.to, route.table))
            }
            Fix::ClearFelix => {
                // It may have come back meanwhile.
                if felix::runs().is_some() {
                    return Err(Error::refused("felix runs by now"));
                }
                if !node::is_needless(&look_again()?) {
                    return Err(Error::refused("network policies are not in force without it by now"));
                }
                Ok(format!("{} chains and rules removed", felix::remove()?.objects))
            }
        }
    }
}

fn look_again() -> Result<Known, Error> {
    Known::look().map_err(|failure| Error::refused(failure.why))
}
