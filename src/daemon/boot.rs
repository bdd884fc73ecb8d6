//! From nothing to serving: the configuration, the machine, what an earlier life left in ledger, cloud and kernel.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::Value;
use smol::channel::{Sender, bounded};

use super::alone::Place;
use super::early::Early;
use super::layers::Layers;
use super::ledger::{self, Contents, Ledger, Resting};
use super::legacy::Legacy;
use super::lobby::{Heard, Lobby};
use super::machine::Machine;
use super::news::Kubeadms;
use super::node::{Found, Input, Node};
use super::outset::Outset;
use super::outside::{Manner, Outside};
use super::reactor::Timer;
use super::sticky::Sticky;
use super::terms::Terms;
use super::trials::Trials;
use super::world::World;
use super::{adopt, clock, file, news, notify, old, phases, threads};
use crate::both::both;
use crate::cloud;
use crate::config::{Config, Mode, NodeFacts};
use crate::datapath::NodeSetup;
use crate::eni::{Eni, EniKind, VSwitch};
use crate::error::{Cause, Context, Error};
use crate::gather::Gather;
use crate::herald::Herald;
use crate::ip::{Family, IpPair, Stack};
use crate::kernel::{Kernel, LinkSeen, Look};
use crate::pool::{Boot, Held, Notice, Reserved};
use crate::rpc::{Lease, Marker};
use crate::{cni, datapath, kube, object, ours};

/// A start that fails (the cloud is down, the network is not up yet) is tried again after this long, doubling to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(20));
/// The start waits no longer than this for what Kubernetes has to say of the node.
const IMPATIENT: kube::Limits =
    kube::Limits { connect: Duration::from_secs(2), call: Duration::from_secs(3), ..kube::Limits::USUAL };
/// What is written for the kubelet unless the operator has a conflist of their own.
const CONFLIST: &str = include_str!("../../cni-conf/10-terway.conflist");
const OWN_CONFLIST: &str = "/etc/eni/10-terway.conflist";
/// What the old Terway's first generation has written beside it.
const OLD_CONF: &str = "10-terway.conf";

/// What is known before anybody is asked: a fault in it ends the daemon with a clear word.
#[derive(Clone)]
pub struct Start {
    kubeconfig: Option<PathBuf>,
    layers: Layers,
    /// What the command line says.
    mode: Option<Mode>,
}

/// All that had to be asked before the loop can run.
struct Gathered {
    kernel: Kernel,
    look: Look,
    node: IpPair,
    setup: NodeSetup,
    marker: Marker,
    trials: Trials,
    cloud: cloud::Client,
    kube: kube::Client,
    layers: Layers,
    terms: Terms,
    vswitches: Vec<VSwitch>,
    enis: Vec<Eni>,
    /// What is known of the cloud is out of the last life's will.
    willed: bool,
    slots: BTreeMap<String, u32>,
    ledger: Ledger,
    contents: Contents,
    sticky: Sticky,
    /// Addresses kept for pods that are not there, beside those that the ledger knows to be.
    reserved: Vec<Reserved>,
    /// What people shall hear of what was found, each with the uid of the pod.
    notices: Vec<(Notice, String)>,
    /// What the network configuration says of pods' links.
    network_mtu: Option<u32>,
    /// Where Services are as kubeadm has left it.
    kubeadms_services: Option<Kubeadms>,
}

impl Start {
    pub fn read(path: &Path, kubeconfig: Option<&Path>, mode: Option<Mode>) -> Result<Start, Error> {
        let mut env: BTreeMap<String, String> = std::env::vars().gather();
        if let Ok(switch) = fs::read_to_string(path.with_file_name(ours::POLICY_SWITCH)) {
            env.entry("DISABLE_POLICY".into()).or_insert(switch);
        }
        let layers = Layers::read(path, file::read(path)?, env)?;
        layers.warnings().iter().for_each(|warning| log::warn!("{warning}"));
        Ok(Start { kubeconfig: kubeconfig.map(Path::to_owned), layers, mode })
    }

    /// Takes up what the file says by now; what cannot be used is said, and the old text stays.
    fn refresh(&mut self) {
        let path = self.layers.path();
        match file::read(path) {
            Ok(text) if text == self.layers.text() => {}
            text => match text.and_then(|text| self.layers.with_file(text)) {
                Ok(layers) => self.layers = layers,
                Err(e) => log::error!("configuration not reloaded: {e}"),
            },
        }
    }

    pub fn node_name(&self) -> String {
        match &self.layers.config().node_name {
            Some(name) => name.clone(),
            None => object::node_of_host(&rustix::system::uname().nodename().to_string_lossy()),
        }
    }

    /// None: we are a pod, and are told by our surroundings.
    pub fn kubeconfig(&self) -> Option<PathBuf> {
        self.kubeconfig.as_ref().or(self.layers.config().kubeconfig.as_ref()).cloned()
    }

    pub fn kube(&self, limits: kube::Limits) -> Result<kube::Client, Error> {
        let source = match self.kubeconfig() {
            Some(path) => kube::Source::Kubeconfig(path),
            None => kube::Source::in_cluster()?,
        };
        kube::Client::with_limits(source, limits).context(|| "Kubernetes API")
    }

    /// The configuration file alone.
    pub fn file(&self) -> &Layers {
        &self.layers
    }

    /// What the operator says of the mode: the command line before the configuration.
    pub fn given_mode(&self, config: &Config) -> Option<Mode> {
        self.mode.or(config.mode)
    }

    /// What the node's label says of it; with no answer, what it said before.
    pub fn labelled_mode(&self) -> Mode {
        let asked = self.kube(IMPATIENT).and_then(|kube| news::has_whole_enis(&kube, &self.node_name()));
        match asked {
            Ok(true) => Mode::Whole,
            Ok(false) => Mode::Shared,
            Err(e) => {
                let mode = ledger::mode(ours::LEDGER.as_ref()).unwrap_or(Mode::Shared);
                log::warn!("label {} of the node is not known: {e}; the mode is {mode}", object::WHOLE_ENI_LABEL.0);
                mode
            }
        }
    }

    /// Where Services are as kubeadm has left it, for a configuration that does not say it; nothing while the API server does not answer.
    fn kubeadms_services(&self, layers: &Layers, facts: &NodeFacts) -> Option<Kubeadms> {
        if !layers.config().service_cidr.is_empty() {
            return None;
        }
        let asked = self.kube(IMPATIENT).and_then(|kube| news::kubeadms_services(&kube, facts));
        asked.inspect_err(|e| log::warn!("service_cidr is not set, and kubeadm's is not known yet: {e}")).ok()
    }

    /// The layers with what Kubernetes has for this node, or had when it was asked last: the watch will tell what it is now.
    pub fn layers_of_node(&self) -> Layers {
        let over = ledger::node_config(ours::LEDGER.as_ref()).unwrap_or_else(|| {
            let asked = self.kube(IMPATIENT).and_then(|kube| news::node_config(&kube, &self.node_name()));
            asked.unwrap_or_else(|e| {
                log::warn!("{e}; the configuration file alone holds until that is known");
                None
            })
        });
        self.layers.with_node_config(over).unwrap_or_else(|e| {
            log::error!("{e}; the configuration file alone holds");
            self.layers.clone()
        })
    }
}

/// Tries until it succeeds; a cloud that is down only delays the start.
pub async fn boot(
    mut start: Start,
    place: &Place,
    inputs: Sender<Input>,
    lobby: &Lobby,
) -> Result<(Node, Outset, Vec<Input>), Error> {
    let (mut pause, mut manner) = (RETRY.0, Manner::Hopeful);
    let mut legacy = Legacy::take(ours::LEDGER.as_ref(), place.last_turn);
    let mut early = Early::new(&start, inputs.clone());
    loop {
        let (begun, left) = (start.clone(), legacy.take());
        let (done, attempt_ends) = bounded(1);
        threads::start(move || {
            early.listen(&begun);
            let found = attempt(&begun, manner, left, &mut early);
            let _ = found.as_ref().inspect_err(|e| early.tell(e));
            drop(done.send_blocking((found, early)));
        });
        let (found, then) = attempt_ends.recv().await.expect("an attempt has an end");
        early = then;
        match found {
            Ok(found) => {
                let (waiting, heard) = lobby.leave();
                let node = assemble(&start, found, early.herald, heard, place.turn, inputs);
                return Ok((node, early.outset, waiting));
            }
            Err(e) if is_final(&e) => return Err(e),
            Err(e) => {
                log::warn!("start: {e}; again in {} ms", pause.as_millis());
                notify::status(&format!("does not serve yet: {e}"));
                lobby.fail(e.to_string());
                Timer::after(pause).await;
                (pause, manner) = ((pause * 2).min(RETRY.1), Manner::Wary);
                start.refresh();
            }
        }
    }
}

fn attempt(start: &Start, manner: Manner, legacy: Option<Legacy>, early: &mut Early) -> Result<Gathered, Error> {
    let (machine, outside) = both(Machine::look, || {
        let layers = start.layers_of_node();
        early.look_after(layers.config());
        let inherited = legacy.and_then(|legacy| Outside::inherit(start, &layers, legacy));
        inherited.map_or_else(|| Outside::ask(start, &layers, manner, &mut early.machine), Ok)
    });
    let (machine, mut outside) = (machine?, outside?);
    if outside.willed && !machine.contents.intents.is_empty() {
        outside = Outside::ask(start, &outside.layers, manner, &mut early.machine)?;
    }
    early.machine = Some(outside.terms.facts.instance.clone());
    let Machine { mut kernel, look, marker, ledger, mut contents, mut sticky, kept } = machine;
    let Outside { layers, cloud, terms, vswitches, enis, willed } = outside;
    phases::reached("all is known");
    let (stack, mode) = (layers.config().stack, terms.mode);
    let network_mtu = network_mtu(layers.config());
    let node = node_address(&look, stack)?;
    let setup = set_up(&mut kernel, &look, (stack, marker), &enis)?;
    let kube = early.kube(start)?;
    kube.pace(layers.config().kube_pace);
    let mut slots = adopt::slots(&look, &enis);
    let kubeadms_services = start.kubeadms_services(&layers, &terms.facts);
    let services = layers.config().service_nets(kubeadms_services.as_ref().map(|left| left.nets));
    let mtu = layers.config().link_mtu(network_mtu);
    let trials = Trials::default();
    let known = adopt::Known {
        enis: &enis,
        vswitches: &vswitches,
        slots: &slots,
        stack,
        node,
        marker,
        services,
        mtu,
        trials: &trials,
    };
    let adopted = adopt::leases(&mut kernel, &look, &known, &contents)?;
    adopted.iter().try_for_each(|lease| ledger.record(lease))?;
    contents.leases.extend(adopted);
    let wired = contents.leases.iter().filter(|l| l.untouched().is_none() && !l.is_whole());
    slots.extend(wired.map(|l| (l.eni.id.clone(), l.eni.slot)));
    let inherited = old::take_over(old::Ground {
        cloud: &cloud,
        look: &look,
        ledger: &ledger,
        enis: &enis,
        vswitches: &vswitches,
        stack,
        node,
        mtu,
        slots: &mut slots,
        contents: &mut contents,
    })?;
    fit(mode, &contents.leases)?;
    ledger.note_mode(mode).unwrap_or_else(|e| log::warn!("the node's mode is not noted: {e}"));
    let longest = layers.config().reservation;
    let reserved =
        sticky.reservations(kept.into_iter().chain(inherited.kept).collect(), &mut contents, longest, clock::now());
    phases::reached("what an earlier life has left is taken up");
    Ok(Gathered {
        kernel,
        look,
        node,
        setup,
        marker,
        trials,
        cloud,
        kube,
        layers,
        terms,
        vswitches,
        enis,
        willed,
        slots,
        ledger,
        contents,
        sticky,
        reserved,
        notices: inherited.notices,
        network_mtu,
        kubeadms_services,
    })
}

/// Pods that share their ENI would lose it to others where every pod has one to itself. The other way round nobody is harmed: a pod
/// that has a whole ENI keeps it. One that runs on as the old Terway has wired it is in nobody's way: where an address of an ENI is taken, the
/// whole of it is lent to nobody.
fn fit(mode: Mode, leases: &[Lease]) -> Result<(), Error> {
    let shared = leases.iter().filter(|l| !l.is_whole() && l.untouched().is_none());
    let shared: Vec<String> = shared.map(|l| l.pod.to_string()).collect();
    if mode == Mode::Whole && !shared.is_empty() {
        return Err(Error::refused(format!(
            "exclusive eni mode changed: this node is to give each pod an ENI to itself ({mode}), and {} of its pods share theirs ({}); \
             drain the node before the change, or go back to {}",
            shared.len(),
            shared.iter().take(3).cloned().collect::<Vec<_>>().join(", "),
            Mode::Shared
        )));
    }
    Ok(())
}

/// What the network configuration says of pods' links. Both can say it: frames that are longer than an ENI takes are lost.
fn network_mtu(config: &Config) -> Option<u32> {
    // That it cannot be read is said by who writes it.
    let network = cni::mtu_of(&network_configuration().ok()?)?;
    if let Some(own) = config.mtu.filter(|own| *own != network) {
        log::warn!("mtu is {own} in the configuration, for ENIs, and {network} in the network configuration, for pods");
    }
    Some(network)
}

/// The addresses that the node is known by. ENIs bear that of IPv4 to speak ARP; of IPv6 the node need not have one.
fn node_address(look: &Look, stack: Stack) -> Result<IpPair, Error> {
    let source = IpPair { v6: look.source.v6.filter(|_| stack.has(Family::V6)), ..look.source };
    if source.v4.is_none() && stack.has(Family::V4) {
        return Err(Error::new(Cause::Absent).within("the source address of the node's IPv4 default route"));
    }
    Ok(source)
}

/// Makes the node forward to pods. Its own links go on learning routes as they did; those of our ENIs learn none.
fn set_up(
    kernel: &mut Kernel,
    look: &Look,
    (stack, marker): (Stack, Marker),
    enis: &[Eni],
) -> Result<NodeSetup, Error> {
    if stack.has(Family::V6) && !kernel.has_v6() {
        let why = "this kernel has no IPv6 (is ipv6.disable=1 on its command line?)";
        return Err(Error::refused(format!("ip_stack is {stack}, and {why}; choose ip_stack ipv4 or switch it on")));
    }
    let mut links = look.advertised_links();
    links.retain(|link| !enis.iter().any(|eni| eni.kind != EniKind::Primary && link.is_eni(eni.mac)));
    let names = |links: Vec<&LinkSeen>| links.into_iter().map(|link| link.name.clone()).collect();
    let asked = if marker == Marker::Rule { look.default_links() } else { Vec::new() };
    let setup = NodeSetup { stack, advertised: names(links), asked: names(asked) };
    let plan = datapath::node(&setup);
    if !kernel.survey(&plan, None)?.is_empty() {
        kernel.apply(&plan).context(|| "set up the node")?;
    }
    Ok(setup)
}

/// The loop's state.
fn assemble(
    start: &Start,
    g: Gathered,
    mut herald: Herald,
    heard: Heard,
    turn: SystemTime,
    inputs: Sender<Input>,
) -> Node {
    let config = g.layers.config();
    let settings = g.terms.settings(config);
    let (reserved, resting): (Vec<Resting>, _) = g.contents.resting.into_iter().partition(|r| r.reserved.is_some());
    let boot = Boot {
        settings,
        enis: g.enis,
        willed: g.willed,
        vswitches: g.vswitches.clone(),
        leases: g.contents.leases.iter().map(held).collect(),
        cooling: resting.into_iter().map(|r| (r.eni.clone(), r.ip, r.until())).collect(),
        reserved: reserved.into_iter().filter_map(reserved_by_ledger).chain(g.reserved).collect(),
        intents: g.contents.intents,
    };
    let world = World {
        inputs,
        cloud: g.cloud,
        kube: g.kube,
        place: g.terms.place(config),
        mode_is_given: start.given_mode(config).is_some(),
        terms: g.terms,
        node_name: start.node_name(),
        node: g.node,
        setup: g.setup,
        marker: g.marker,
        trials: g.trials,
        mtu: config.link_mtu(g.network_mtu),
        network_mtu: g.network_mtu,
        kubeadms_services: g.kubeadms_services,
        asking: None,
        orphan: config.orphan,
        stateful_kinds: config.stateful_kinds.clone(),
        vswitches: g.vswitches.into_iter().map(|v| (v.id.clone(), v)).gather(),
        publish: config.publish,
    };
    for (notice, uid) in g.notices {
        news::log(&notice);
        herald.hear(clock::now(), news::event(&notice, &uid, &start.node_name()));
    }
    let (leases, slots) = (g.contents.leases, g.slots);
    let (sticky, layers, look) = (g.sticky, g.layers, g.look);
    let found = Found { boot, sticky, layers, leases, slots, herald, heard, look, turn };
    Node::new(world, g.ledger, g.kernel, found)
}

fn reserved_by_ledger(resting: Resting) -> Option<Reserved> {
    let until = resting.until();
    Some(Reserved { pod: resting.reserved?, eni: resting.eni, ip: resting.ip, until })
}

fn held(lease: &Lease) -> Held {
    Held {
        pod: lease.pod.clone(),
        sandbox: lease.sandbox.clone(),
        eni: lease.eni.id.clone(),
        ip: lease.ip,
        whole: lease.is_whole(),
    }
}

/// Tells the kubelet that we can serve: the conflist appears whole, and not before. What stands in it.
pub fn announce(path: &Path) -> Result<String, Error> {
    let text = network_configuration()?;
    for key in cni::asks_in_vain(&text) {
        log::warn!("network configuration: {key} is not available, and has no effect");
    }
    write_conflist(path, &text).context(|| format!("write {}", path.display()))?;
    if let Err(e) = put_old_aside(path) {
        log::warn!("put {OLD_CONF} aside: {e}; runtimes take it before {}", path.display());
    }
    Ok(text)
}

/// Runtimes take the first of the folder by name.
fn put_old_aside(path: &Path) -> Result<(), Error> {
    let old = path.with_file_name(OLD_CONF);
    if *old >= *path {
        return Ok(());
    }
    let text = match fs::read(&old) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        text => text?,
    };
    let is_theirs = |conf: &Value| conf["type"] == "terway" && conf["plugins"].is_null();
    if !serde_json::from_slice(&text).is_ok_and(|conf: Value| is_theirs(&conf)) {
        return Ok(());
    }
    let names = (0..).map(|n| old.with_extension(if n == 0 { "conf.old".into() } else { format!("conf.old-{n}") }));
    let aside = names.into_iter().find(|name| !name.exists()).expect("there is no end of names");
    fs::rename(&old, &aside)?;
    log::info!(
        "{} is the old Terway's, and runtimes would take it before ours: it is {} now",
        old.display(),
        aside.display()
    );
    Ok(())
}

fn network_configuration() -> Result<String, Error> {
    match fs::read_to_string(OWN_CONFLIST) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(CONFLIST.to_owned()),
        read => read.context(|| format!("read {OWN_CONFLIST}")),
    }
}

fn write_conflist(path: &Path, text: &str) -> Result<(), Error> {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    // A dot in front: the runtime reads every file of this folder whose name ends like a configuration.
    let aside = path.with_file_name(".10-terway.new");
    fs::write(&aside, text)?;
    Ok(fs::rename(&aside, path)?)
}

/// A mistake of the operator does not go away by waiting.
pub fn is_final(e: &Error) -> bool {
    matches!(e.cause, Cause::Refused(_))
}
