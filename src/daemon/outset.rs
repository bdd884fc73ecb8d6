//! What is begun of network policies before the node is ready for rules: a new pod waits for all of it.

use std::thread::{self, JoinHandle};

use smol::channel::Sender;

use super::node::Input;
use super::policy::{self, Ear, News, Unborn};
use crate::config::Config;
use crate::kernel::tables::{self, Scouted};
use crate::kube;
use crate::ours;

pub struct Outset {
    pub ear: Ear,
    unborn: Option<Unborn>,
    scout: Option<JoinHandle<Scouted>>,
}

impl Outset {
    pub fn new() -> Outset {
        let (ear, unborn) = policy::unborn();
        Outset { ear, unborn: Some(unborn), scout: None }
    }

    /// Asks the API server and looks at what iptables holds, once, where the configuration asks for policies.
    pub fn begin(&mut self, config: &Config, kube: &kube::Client, node_name: &str, inputs: &Sender<Input>) {
        if !config.policies.on {
            return;
        }
        let Some(unborn) = self.unborn.take() else { return };
        // Where there is no thread for it, whoever wants to know looks.
        self.scout = thread::Builder::new().spawn(tables::scout).ok();
        let (node_name, inputs) = (node_name.to_owned(), inputs.clone());
        unborn.start(policy::Start { kube: Some(kube.clone()), node_name, inputs, note: ours::RENDERER_NOTE.into() });
    }

    /// What was seen of iptables, to be used once; looks now where nobody has.
    pub fn scouted(&mut self) -> Scouted {
        let scout = self.scout.take();
        scout.map_or_else(tables::scout, |scout| scout.join().expect("a panic ends the process"))
    }

    pub fn end(&self) {
        self.ear.tell(News::End);
    }
}
