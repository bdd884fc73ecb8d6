//! The configuration while the daemon runs: taken up whenever the file, the node's label or the ConfigMap that it names changes.

use super::Node;
use crate::cloud::reach;
use crate::config::Config;
use crate::daemon::layers::{Layers, NodeConfig};
use crate::daemon::{news, outside};
use crate::error::{Context, Error};
use crate::kube::Stop;
use crate::object::{CONFIG_LABEL, ConfigMap};
use crate::pool::{Event, Notice, Settings};

/// The configuration in force, and where the part for this node comes from.
pub struct Conf {
    layers: Layers,
    /// The namespace of ConfigMaps for nodes.
    namespace: String,
    /// The ConfigMap that the node's label names, if it names one; nothing before the label is known.
    label: Option<Option<String>>,
    /// Ends the watch of it.
    stop: Option<Stop>,
    /// What is wrong with the configuration as it is written now.
    complaint: Option<String>,
}

impl Conf {
    pub fn new(layers: Layers) -> Conf {
        Conf { layers: layers.begin(), namespace: news::own_namespace(), label: None, stop: None, complaint: None }
    }

    pub fn layers(&self) -> &Layers {
        &self.layers
    }
}

impl Node {
    pub(super) fn file_changed(&mut self, text: Result<Vec<u8>, Error>) {
        let fresh = text.and_then(|text| self.conf.layers.with_file(text));
        self.change(fresh);
    }

    /// Follows the ConfigMap that the node's label names, and no other.
    pub(super) fn follow_label(&mut self) {
        let Some(own) = &self.own else { return };
        let name = own.config_name().map(str::to_owned);
        if self.conf.label.as_ref() == Some(&name) {
            return;
        }
        if let Some(stop) = self.conf.stop.take() {
            stop.stop();
        }
        self.conf.label = Some(name.clone());
        match name {
            Some(name) => {
                log::info!("configmap {}/{name} is this node's: label {CONFIG_LABEL}", self.conf.namespace);
                self.conf.stop = Some(self.world.watch_config(&self.conf.namespace, name));
            }
            None => self.drop_node_config(),
        }
    }

    /// The file alone holds; said only where it did not before.
    fn drop_node_config(&mut self) {
        self.note(None);
        if self.conf.layers.node_config().is_some() {
            log::info!("no ConfigMap holds for this node any more");
            self.change(self.conf.layers.with_node_config(None));
        }
    }

    pub(super) fn node_config_changed(&mut self, name: &str, found: Option<&ConfigMap>) {
        if self.conf.label.as_ref().and_then(Option::as_deref) != Some(name) {
            return;
        }
        let Some(map) = found else {
            self.drop_node_config();
            let place = format!("configmap {}/{name}", self.conf.namespace);
            return self.complain(format!(
                "{place} does not exist, and label {CONFIG_LABEL} of the node names it; the configuration file alone holds"
            ));
        };
        let over = NodeConfig::of(map);
        if over.as_ref().ok() == self.conf.layers.node_config() {
            self.conf.complaint = None;
            return self.note(over.ok().as_ref());
        }
        let fresh = over.and_then(|over| self.conf.layers.with_node_config(Some(over)));
        self.change(fresh);
    }

    /// For the next start, which would else have to ask.
    fn note(&mut self, over: Option<&NodeConfig>) {
        self.noted("configuration of the node", self.ledger.note_node_config(over));
    }

    /// Takes up new layers, or says what is wrong with them: then the ones that were good last stay in force.
    fn change(&mut self, fresh: Result<Layers, Error>) {
        match fresh.and_then(|fresh| self.take_up(fresh)) {
            Ok(()) => self.conf.complaint = None,
            Err(e) => self.complain(format!("configuration not reloaded: {e}; the last good one stays in force")),
        }
    }

    fn complain(&mut self, message: String) {
        log::error!("{message}");
        if self.conf.complaint.as_ref() != Some(&message) {
            self.tell(Notice { pod: None, warning: true, reason: "ConfigError", message: message.clone() });
            self.conf.complaint = Some(message);
        }
    }

    fn take_up(&mut self, fresh: Layers) -> Result<(), Error> {
        let config = fresh.config();
        config.validate(&self.world.terms.facts)?;
        let is_anew = self.reach_cloud(config)?;
        self.world.place = self.world.terms.place(config);
        if config.kube_pace != self.conf.layers.config().kube_pace {
            self.world.kube.pace(config.kube_pace);
        }
        self.world.mtu = config.link_mtu(self.world.network_mtu);
        self.world.orphan = config.orphan;
        self.world.publish = config.publish;
        self.world.stateful_kinds = config.stateful_kinds.clone();
        let settings = Settings { stack: self.world.setup.stack, ..self.world.terms.settings(config) };
        report(&fresh, &self.conf.layers);
        if fresh.node_config() != self.conf.layers.node_config() {
            self.note(fresh.node_config());
        }
        self.conf.layers = fresh;
        self.ask_kubeadm();
        self.direct();
        self.feed(Event::Settings(Box::new(settings)));
        if is_anew {
            self.feed(Event::NewCloud);
        }
        Ok(())
    }

    /// Calls from now on go where the configuration says, signed with its credentials. Whether that is another way than before.
    fn reach_cloud(&mut self, config: &Config) -> Result<bool, Error> {
        let way = |c: &Config| (c.cloud.clone(), c.region.clone(), c.access.clone(), c.credential_path.clone());
        if way(config) == way(self.conf.layers.config()) {
            return Ok(false);
        }
        let endpoint = reach::endpoint(config, &self.world.terms.facts.region);
        let credentials = outside::known_by(config)?;
        self.world.cloud = self.world.cloud.anew(endpoint, credentials).context(|| "configuration")?;
        Ok(true)
    }
}

fn report(fresh: &Layers, before: &Layers) {
    for warning in fresh.warnings().iter().filter(|w| !before.warnings().contains(w)) {
        log::warn!("{warning}");
    }
    let (live, restart) = fresh.changes(before);
    match live.is_empty() {
        true => log::info!("configuration reloaded; it says what it said before"),
        false => log::info!("configuration reloaded; in force from now on: {}", live.join(", ")),
    }
    if !restart.is_empty() {
        log::warn!("a restart of terwayd is needed for a change of {} to take effect", restart.join(", "));
    }
}
