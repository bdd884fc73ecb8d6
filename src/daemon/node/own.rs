//! Our own node object: whether it is ours at all.

use super::Node;
use crate::config::Mode;
use crate::object;
use crate::pool::Notice;

impl Node {
    /// Takes up what the watch tells of our node object. One that stands for another machine is nothing to go by.
    pub(super) fn see_own_node(&mut self, node: Option<Box<object::Node>>) {
        let name = &self.world.node_name;
        if node.is_none() {
            log::warn!(
                "the API server knows no node {name}: the kubelet has not registered it yet, or node_name is wrong"
            );
        }
        let mistaken = node.as_deref().and_then(|node| self.is_anothers(node));
        let mistaken = mistaken.or_else(|| node.as_deref().and_then(|node| self.is_in_another_mode(node)));
        let before =
            self.own.as_deref().and_then(|node| self.is_anothers(node).or_else(|| self.is_in_another_mode(node)));
        self.own = node;
        self.follow_label();
        if let Some(message) = mistaken.filter(|message| before.as_ref() != Some(message)) {
            self.tell(Notice { pod: None, warning: true, reason: "ConfigError", message });
        }
    }

    /// The label says another mode than the one in which we were started, in words, if the configuration leaves it to the label.
    fn is_in_another_mode(&self, node: &object::Node) -> Option<String> {
        let mode = self.world.terms.mode;
        let said = if node.has_whole_enis() { Mode::Whole } else { Mode::Shared };
        if self.world.mode_is_given || said == mode {
            return None;
        }
        let (label, _) = object::WHOLE_ENI_LABEL;
        Some(format!(
            "exclusive eni mode changed: label {label} asks for {said}, and terwayd runs in {mode}: drain the node and restart \
             terwayd, or set the label back"
        ))
    }

    /// The node of our name is another instance's, in words, if it is.
    fn is_anothers(&self, node: &object::Node) -> Option<String> {
        let (name, ours) = (&self.world.node_name, &self.world.terms.facts.instance);
        let theirs = node.instance().filter(|theirs| theirs != ours)?;
        Some(format!(
            "node {name} is instance {theirs} in Kubernetes (spec.providerID {}), and this machine is {ours} according to its \
             metadata service: set node_name in /etc/eni/eni.json to the name of this machine's node",
            node.spec.provider_id
        ))
    }
}
