//! `metadata`: what the instance's metadata service says of its ENIs, and which links they are here.

use argh::FromArgs;
use serde_json::{Value, json};

use super::face::{Answer, Failure, Hue, paint, tree};
use super::known;
use crate::cloud::{EniFacts, Metadata, reach};
use crate::error::Error;
use crate::kernel::{self, Kernel, LinkSeen};

/// Show what the metadata service says of the ENIs of this instance, the primary one first. Exits with 1 if one has no link here.
#[derive(FromArgs)]
#[argh(subcommand, name = "metadata")]
pub struct MetadataVerb {
    /// print JSON
    #[argh(switch)]
    pub json: bool,
}

impl MetadataVerb {
    pub fn answer(&self) -> Result<Answer, Failure> {
        let metadata = service()?;
        let (vswitch, primary) = (metadata.vswitch()?, metadata.mac()?);
        let mut enis = enis()?;
        enis.sort_by_key(|eni| (eni.mac != primary, eni.mac));
        let (links, away) = (Kernel::host()?.links()?, kernel::away());
        let mut leaves = vec![("vswitch".to_string(), vswitch.clone())];
        let (mut json, mut good) = (Vec::new(), true);
        for eni in &enis {
            let link = links.iter().find(|link| link.is_eni(eni.mac));
            let lent = away.iter().any(|away| away.mac == eni.mac);
            good &= link.is_some() || lent;
            leaves.extend(of(eni, eni.mac == primary, link, lent));
            json.push(object(eni, eni.mac == primary, link));
        }
        Ok(Answer::found(good, tree(&leaves), json!({"vswitch": vswitch, "enis": json})))
    }
}

/// The service as the configuration has it; where there is none, where every instance finds it.
pub fn service() -> Result<Metadata, Error> {
    known::config().map_or_else(|_| Metadata::new(crate::cloud::BASE), |config| reach::metadata(&config))
}

/// What it says of every ENI.
pub fn enis() -> Result<Vec<EniFacts>, Error> {
    let metadata = service()?;
    metadata.macs()?.into_iter().map(|mac| metadata.eni(mac)).collect()
}

fn of(eni: &EniFacts, primary: bool, link: Option<&LinkSeen>, lent: bool) -> Vec<(String, String)> {
    let interface = match link {
        Some(link) => link.name.clone(),
        None if lent => "(in its pod)".into(),
        None => paint(Hue::Bad, "!!!NOT FOUND"),
    };
    let under = |key: &str, value: String| (format!("eni {}/{key}", eni.mac), value);
    let mut leaves = vec![
        under("primary", primary.to_string()),
        under("interface", interface),
        under("primary_ipv4", eni.primary.to_string()),
    ];
    let secondary = eni.v4.iter().filter(|ip| **ip != eni.primary);
    leaves.extend(secondary.map(|ip| under(&format!("secondary_ipv4s/{ip}"), String::new())));
    leaves.extend(eni.v6.iter().map(|ip| under(&format!("ipv6s/{ip}"), String::new())));
    leaves
}

fn object(eni: &EniFacts, primary: bool, link: Option<&LinkSeen>) -> Value {
    json!({
        "id": eni.id,
        "mac": eni.mac,
        "primary": primary,
        "interface": link.map(|link| &link.name),
        "primary_ipv4": eni.primary,
        "secondary_ipv4s": eni.v4.iter().filter(|ip| **ip != eni.primary).collect::<Vec<_>>(),
        "ipv6s": eni.v6,
        "vswitch": eni.vswitch,
    })
}
