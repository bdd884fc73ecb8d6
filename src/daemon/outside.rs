//! What a start asks of others: the metadata service, the cloud, and the API server for what the node's label says of the mode.

use super::boot::Start;
use super::calls;
use super::layers::Layers;
use super::legacy::Legacy;
use super::terms::{self, Terms};
use super::{meter, phases};
use crate::both::both;
use crate::cloud::{Client, Credentials, reach};
use crate::config::{Config, NodeFacts};
use crate::eni::{Eni, VSwitch};
use crate::error::Error;

/// How a start asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// All that can be asked at once.
    Hopeful,
    /// An attempt has failed: as little as shows that the cloud is back comes before all else.
    Wary,
}

pub struct Outside {
    pub layers: Layers,
    pub cloud: Client,
    pub terms: Terms,
    pub vswitches: Vec<VSwitch>,
    pub enis: Vec<Eni>,
    /// Nobody was asked: this is what the last life has left.
    pub willed: bool,
}

impl Outside {
    /// The same out of what the last life has left, as far as the configuration and the node's label ask for nothing else by now.
    pub fn inherit(start: &Start, layers: &Layers, legacy: Legacy) -> Option<Outside> {
        let (config, Legacy { terms, asked, vswitches, will, .. }) = (layers.config(), legacy);
        config.validate(&terms.facts).ok()?;
        terms.check(config.stack).ok()?;
        let credentials = known_by(config).ok()?;
        let cloud =
            Client::observed(reach::endpoint(config, &terms.facts.region), credentials, meter::observer()).ok()?;
        let mode = start.given_mode(config).unwrap_or_else(|| start.labelled_mode());
        let fits = mode == terms.mode && terms.place(config).vswitches == asked;
        phases::reached("what the last life has left is read");
        fits.then(|| Outside { layers: layers.clone(), cloud, terms, vswitches, enis: will.enis, willed: true })
    }

    /// `machine` is told who the metadata service says that we are, as soon as it says so.
    pub fn ask(start: &Start, layers: &Layers, manner: Manner, machine: &mut Option<String>) -> Result<Outside, Error> {
        let given = start.given_mode(layers.config());
        let ask = || -> Result<Outside, Error> {
            let (facts, layers, cloud) = reach(layers, start.file())?;
            *machine = Some(facts.instance.clone());
            let (terms, vswitches, enis) = ask_cloud(&cloud, facts, layers.config(), manner)?;
            phases::reached("the cloud has answered");
            Ok(Outside { layers, cloud, terms, vswitches, enis, willed: false })
        };
        let (label, outside) = both(|| given.is_none().then(|| start.labelled_mode()), ask);
        let mut outside = outside?;
        let given = start.given_mode(outside.layers.config());
        outside.terms.mode = given.or(label).unwrap_or_else(|| start.labelled_mode());
        Ok(outside)
    }
}

fn ask_cloud(
    cloud: &Client,
    facts: NodeFacts,
    config: &Config,
    manner: Manner,
) -> Result<(Terms, Vec<VSwitch>, Vec<Eni>), Error> {
    let place = terms::place(&facts, config);
    let ask_terms = || Terms::ask(cloud, facts.clone());
    let first = (manner == Manner::Wary).then(ask_terms).transpose()?;
    let (vswitches, (enis, terms)) = both(
        || calls::vswitches(cloud, &place),
        || both(|| calls::look_all_at_once(cloud, &place), || first.map_or_else(ask_terms, Ok)),
    );
    let terms = terms?;
    terms.check(config.stack)?;
    Ok((terms, vswitches?, enis?))
}

/// Who we are to the cloud, with each question to the metadata service counted.
pub fn known_by(config: &Config) -> Result<Credentials, Error> {
    reach::credentials(config, reach::observed(config, meter::questions())?)
}

/// What the metadata service says of the machine, the layers that fit it (those of the node, else the file alone), and the way
/// to the cloud, with the key to it at hand.
fn reach(layers: &Layers, file: &Layers) -> Result<(NodeFacts, Layers, Client), Error> {
    let metadata = reach::observed(layers.config(), meter::questions())?;
    let credentials = reach::credentials(layers.config(), metadata.clone())?;
    // Why there is no key is said by the first call that needs it.
    let (_, facts) = both(|| drop(credentials.key()), || metadata.node());
    let facts = facts?;
    phases::reached("the metadata service has answered");
    let way = |config: &Config| reach::endpoint(config, &facts.region);
    let Err(e) = layers.config().validate(&facts) else {
        let cloud = Client::observed(way(layers.config()), credentials, meter::observer())?;
        return Ok((facts, layers.clone(), cloud));
    };
    if layers.node_config().is_none() {
        return Err(e);
    }
    log::error!("{e}; the configuration file alone holds");
    file.config().validate(&facts)?;
    let credentials = known_by(file.config())?;
    let cloud = Client::observed(way(file.config()), credentials, meter::observer())?;
    Ok((facts, file.clone(), cloud))
}
