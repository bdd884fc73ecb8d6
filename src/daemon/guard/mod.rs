//! The loop that owns the Services: it hears of the cluster, decides what connections on this node are to be led to, and writes that
//! into the kernel.
//!
//! A thread of its own: ten thousand Services that are worked out at once must keep no pod waiting for its address. Nothing is written
//! before all kinds have been heard of, and the first write goes on from what an earlier life left in the kernel, whose programs have
//! served all the while.

mod aside;
mod feed;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use smol::channel::Sender;

use super::node::Input;
use super::{meter, threads};
use crate::cluster::{EndpointSlice, Member, Service, mapped};
use crate::config::Services as Wanted;
use crate::error::Error;
use crate::heard::Heard;
use crate::kernel::bpf::cgroup::Cgroup;
use crate::kernel::bpf::services::{Chosen, Services};
use crate::kernel::bpf::standing;
use crate::kernel::sockets;
use crate::kube;
use crate::maps::{Backend, Sizes};
use crate::object::{self, Event, EventType};
use crate::ours;
use crate::rpc::{Lease, Refusal, Reply};
use crate::service::table::{Full, Table};
use crate::service::{self, About, Here, Led, Model, Refused};
use aside::Aside;

/// News that wait; watches that have more wait too.
const NEWS: usize = 1024;
/// After the kernel has refused something, it is tried again after this long, doubling up to the second figure.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// So many addresses of Services are told at once, and of each so many endpoints: a reply has an end.
const LISTED: usize = 2000;
const ENDPOINTS: usize = 8;
/// What is shown of us is not brought up to date more often than this.
const SHOW: Duration = Duration::from_secs(1);
const FOREVER: Duration = Duration::from_secs(3600);

/// What reaches the loop.
pub enum News {
    Services(Heard<Service>),
    Slices(Heard<EndpointSlice>),
    Nodes(Heard<Member>),
    /// Our own node.
    Here(Heard<Member>),
    /// All pods of this node: their addresses, and where their namespaces are.
    Pods(BTreeSet<Ipv6Addr>, Vec<PathBuf>),
    /// A watch was not answered.
    Trouble,
    /// Somebody wants to know where Services lead in whose name or address this occurs.
    Ask {
        matching: String,
        answer: Sender<Reply>,
    },
}

/// What the loop is started with.
pub struct Start {
    pub kube: kube::Client,
    pub node_name: String,
    /// The node's own addresses.
    pub node: Vec<IpAddr>,
    pub wanted: Wanted,
    pub inputs: Sender<Input>,
}

/// The way to tell the loop which pods the node has.
pub struct Ear(SyncSender<News>);

impl Ear {
    /// Whether there was room: else it is to be told again.
    pub fn tell<'a>(&self, leases: impl Iterator<Item = &'a Lease>) -> bool {
        let (mut addresses, mut namespaces) = (BTreeSet::new(), Vec::new());
        for lease in leases {
            addresses.extend(lease.ip.iter().map(mapped));
            namespaces.push(lease.sandbox.netns.clone());
        }
        !matches!(self.0.try_send(News::Pods(addresses, namespaces)), Err(TrySendError::Full(_)))
    }

    /// Whoever asks while much is to be heard of asks again.
    pub fn ask(&self, matching: String, answer: Sender<Reply>) {
        if let Err(TrySendError::Full(News::Ask { answer, .. })) = self.0.try_send(News::Ask { matching, answer }) {
            let reason = "Services are being taken in: ask again".into();
            let _ = answer.try_send(Reply::Refused { why: Refusal::TooSlow, reason });
        }
    }
}

/// Begins to look after the Services.
pub fn start(start: Start) -> Ear {
    let (news, arriving) = sync_channel(NEWS);
    feed::start(&start, &news);
    threads::start(move || Guard::new(start).run(&arriving));
    Ear(news)
}

/// Services are others' affair: nothing of an earlier life that thought otherwise stays. For those who never had any, nothing is done.
pub fn leave(wanted: &Wanted) {
    let root = Path::new(ours::BPF_ROOT);
    if !standing::somewhere(root) {
        return;
    }
    match cgroup(wanted.cgroup.as_deref()).and_then(|cgroup| standing::leave(root, Some(&cgroup))) {
        Ok(()) => log::info!("Services are not led at the socket any more: ebpf_services is off"),
        Err(e) => log::warn!("Services at the socket could not be taken away: {e}"),
    }
}

fn cgroup(path: Option<&Path>) -> Result<Cgroup, Error> {
    path.map_or_else(Cgroup::root, Cgroup::at)
}

struct Guard {
    model: Model,
    kube: kube::Client,
    aside: Aside,
    node_name: String,
    cgroup: Option<PathBuf>,
    sizes: Sizes,
    inputs: Sender<Input>,
    kernel: Option<Kernel>,
    /// Why there is none, as it was told.
    complaint: Option<String>,
    retry: Option<Instant>,
    pause: Duration,
    full: Vec<Full>,
    /// Where the node's pods are.
    namespaces: Vec<PathBuf>,
    /// When what is shown is next to be brought up to date.
    show: Option<Instant>,
}

/// The kernel's maps, with what we know to be in them.
struct Kernel {
    services: Services,
    cgroup: Cgroup,
    table: Table,
    /// What stands at the hooks, once it does.
    chosen: Option<Chosen>,
}

impl Guard {
    fn new(start: Start) -> Guard {
        let here = Here {
            name: start.node_name.clone(),
            addresses: start.node.into_iter().map(mapped).collect(),
            api: start.kube.address().map(mapped),
        };
        let Wanted { cgroup, frontends, backends, .. } = start.wanted;
        Guard {
            model: Model::new(here),
            aside: Aside::new(start.kube.address()),
            kube: start.kube,
            node_name: start.node_name,
            cgroup,
            sizes: Sizes { frontends, backends, slots: backends.saturating_mul(2), ..Sizes::default() },
            inputs: start.inputs,
            kernel: None,
            complaint: None,
            retry: None,
            pause: RETRY.0,
            full: Vec::new(),
            namespaces: Vec::new(),
            show: Some(Instant::now()),
        }
    }

    fn run(mut self, arriving: &Receiver<News>) {
        loop {
            let due = [self.retry, self.show, self.aside.due(self.kube.unreached())].into_iter().flatten().min();
            match arriving.recv_timeout(due.map_or(FOREVER, |at| at.saturating_duration_since(Instant::now()))) {
                Ok(news) => self.hear(news),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            // What came meanwhile is one change.
            arriving.try_iter().for_each(|news| self.hear(news));
            if self.model.is_complete() && self.retry.is_none_or(|at| at <= Instant::now()) {
                self.retry = None;
                self.act();
            }
            let now = Instant::now();
            if self.aside.due(self.kube.unreached()).is_some_and(|at| at <= now) {
                self.turn_aside(now);
            }
            if self.show.is_some_and(|at| at <= Instant::now()) {
                self.show = None;
                let _ = self.inputs.send_blocking(Input::Services(self.shown()));
            }
        }
    }

    /// What an earlier life has left is gone by before this one has written anything.
    fn turn_aside(&mut self, now: Instant) {
        let turned = match &self.kernel {
            Some(kernel) => self.aside.turn(Some(&kernel.services), now),
            None => Services::peek(ours::BPF_ROOT.as_ref()).and_then(|left| self.aside.turn(left.as_ref(), now)),
        };
        if let Err(e) = turned {
            log::warn!("the API server's Service: {e}");
        }
    }

    fn hear(&mut self, news: News) {
        self.show.get_or_insert_with(|| Instant::now() + SHOW);
        match news {
            News::Services(heard) => self.model.hear_services(heard),
            News::Slices(heard) => self.model.hear_slices(heard),
            News::Nodes(heard) => self.model.hear_nodes(heard),
            News::Here(heard) => self.model.hear_here(heard),
            News::Pods(addresses, namespaces) => {
                self.model.hear_pods(addresses);
                self.namespaces = namespaces;
            }
            News::Trouble => {}
            News::Ask { matching, answer } => _ = answer.try_send(self.list(&matching)),
        }
    }

    /// Has the kernel hold what is wanted. Where that fails, what it holds is read anew before the next attempt.
    fn act(&mut self) {
        match self.write() {
            Ok(()) => {
                if self.complaint.take().is_some() {
                    log::info!("Services are led at the socket again");
                }
                self.pause = RETRY.0;
            }
            Err(e) => {
                self.kernel = None;
                self.show = Some(Instant::now());
                self.retry = Some(Instant::now() + self.pause);
                self.pause = (self.pause * 2).min(RETRY.1);
                self.complain(&e);
            }
        }
    }

    fn write(&mut self) -> Result<(), Error> {
        let begun = Instant::now();
        let (mut kernel, is_new) = match self.kernel.take() {
            Some(kernel) => (kernel, false),
            None => (self.open()?, true),
        };
        let changes = if is_new { self.model.everything() } else { self.model.changes() };
        changes.refused.iter().for_each(|refused| self.tell_refused(refused));
        let writes = kernel.table.change(changes);
        self.aside.hear(&writes);
        kernel.services.write(&writes).map_err(|(done, e)| e.within(format!("write {done} of {}", writes.len())))?;
        if kernel.chosen.is_none() {
            let here = kernel.cgroup.path();
            let others = standing::write_down(here)?;
            let chosen = kernel.services.attach(&kernel.cgroup)?;
            standing::move_from(&others, here)?;
            if let Err(e) = kernel.services.remove_others(ours::BPF_ROOT.as_ref()) {
                log::warn!("maps of another layout: {e}");
            }
            chosen.lacks.iter().for_each(|lack| log::info!("Services at the socket: {lack}"));
            let (services, endpoints) = self.model.size();
            log::info!(
                "{services} Services with {endpoints} endpoints are led at the socket in {} ms, by {} at cgroup {}",
                begun.elapsed().as_millis(),
                chosen.variant,
                kernel.cgroup.path().display()
            );
            kernel.chosen = Some(chosen);
            self.model.pack();
            kernel.table.pack();
        } else if !writes.is_empty() {
            log::debug!("{} writes of Services in {} us", writes.len(), begun.elapsed().as_micros());
            meter::services_written(begun.elapsed());
        }
        let gone = kernel.table.take_gone();
        if let Err(e) = self.move_on(&kernel.services, &gone) {
            log::warn!("{e}");
        }
        let full = kernel.table.full();
        self.kernel = Some(kernel);
        self.tell_full(full);
        Ok(())
    }

    fn open(&self) -> Result<Kernel, Error> {
        let cgroup = cgroup(self.cgroup.as_deref())?;
        let (services, _) = Services::open(ours::BPF_ROOT.as_ref(), &self.sizes)?;
        let table = Table::adopt(services.read()?, self.sizes);
        Ok(Kernel { services, cgroup, table, chosen: None })
    }

    /// Ends datagram sockets that are connected to what is gone, so that their owners connect anew: nothing else tells them.
    fn move_on(&self, services: &Services, gone: &BTreeMap<u32, Backend>) -> Result<(), Error> {
        let led = if gone.is_empty() { BTreeSet::new() } else { services.led_to(gone)? };
        if led.is_empty() {
            return Ok(());
        }
        let namespaces = self.namespaces.clone();
        threads::start(move || {
            let here = sockets::end(&led);
            let there = namespaces.iter().map(|netns| sockets::end_in(netns, &led));
            let (ended, failed): (Vec<_>, Vec<_>) = std::iter::once(here).chain(there).partition(Result::is_ok);
            let ended: usize = ended.into_iter().flatten().sum();
            log::debug!("{ended} datagram sockets of backends that are gone were ended");
            if let Some(Err(e)) = failed.into_iter().next() {
                log::warn!("a datagram socket stays with a backend that is gone: {e}");
            }
        });
        Ok(())
    }

    // What people hear

    fn complain(&mut self, e: &Error) {
        let message = format!(
            "Services cannot be led at the socket: {e}; what this node led before goes on, all else is left to kube-proxy; again in {} s",
            self.pause.as_secs()
        );
        log::warn!("{message}");
        let why = e.to_string();
        if self.complaint.as_ref() != Some(&why) {
            let about = object::About::node(&self.node_name);
            self.tell(about, EventType::Warning, "ServicesUnavailable", &message);
            self.complaint = Some(why);
        }
    }

    fn tell_refused(&self, Refused { about, reason }: &Refused) {
        let kind = if reason.is_wrong() { EventType::Warning } else { EventType::Normal };
        log::warn!("{about}: {reason}");
        let about = match about {
            About::Service { name, uid } => object::About::service(name, &**uid),
            About::Slice(name) => object::About::slice(name),
        };
        self.tell(about, kind, "ServiceRefused", &reason.to_string());
    }

    /// Each map once, until it has room again.
    fn tell_full(&mut self, full: Vec<Full>) {
        let known = |full: &Full| self.full.iter().any(|known| known.map == full.map);
        for full in full.iter().filter(|full| !known(full)) {
            log::warn!("{full}");
            let about = object::About::node(&self.node_name);
            self.tell(about, EventType::Warning, "ServicesFull", &full.to_string());
        }
        self.full = full;
    }

    fn tell(&self, about: object::About, kind: EventType, reason: &str, message: &str) {
        let event = Event::new(about, &self.node_name, kind, reason, message, SystemTime::now());
        let _ = self.inputs.send_blocking(Input::Tell(Box::new(event)));
    }

    /// For `terway-cli services`. What is not known whole would be told as not there.
    fn list(&self, matching: &str) -> Reply {
        match self.model.is_complete() {
            true => Reply::Show(listed(&self.model, matching)),
            false => {
                let reason = "the API server has not told of all Services yet".into();
                Reply::Refused { why: Refusal::ApiDown, reason }
            }
        }
    }

    /// For `terway-cli show`.
    fn shown(&self) -> Value {
        let (services, endpoints) = self.model.size();
        let size = self.kernel.as_ref().map(|kernel| kernel.table.size());
        let chosen = self.kernel.as_ref().and_then(|kernel| kernel.chosen.as_ref());
        json!({
            "state": match (&self.kernel, &self.complaint) {
                (Some(_), _) => "serving",
                (None, Some(why)) => why,
                (None, None) => "waiting for the API server",
            },
            "services": services,
            "endpoints": endpoints,
            "frontends": size.map(|(frontends, _)| frontends),
            "backends": size.map(|(_, backends)| backends),
            "programs": chosen.map(|chosen| chosen.variant),
            "lacks": chosen.map(|chosen| &chosen.lacks),
            "full": self.full.iter().map(Full::to_string).collect::<Vec<_>>(),
        })
    }
}

/// Where Services lead in whose name or address this occurs.
fn listed(model: &Model, matching: &str) -> Value {
    let all = model.led().map(|led| (led.frontend.to_string(), led));
    let mut fitting = all.filter(|(address, led)| address.contains(matching) || led.service.contains(matching));
    let one = |(address, led): (String, Led)| {
        let endpoint = |b: &service::Backend| SocketAddr::new(b.addr.to_canonical(), b.port).to_string();
        json!({
            "service": &**led.service,
            "address": address,
            "count": led.backends.len(),
            "endpoints": led.backends.iter().take(ENDPOINTS).map(endpoint).collect::<Vec<_>>(),
        })
    };
    let services: Vec<Value> = fitting.by_ref().take(LISTED).map(one).collect();
    let refused = model.refused().filter(|(name, _)| name.contains(matching)).take(LISTED);
    json!({
        "services": services,
        "left_out": fitting.count(),
        "refused": refused.map(|(name, why)| json!({"service": &**name, "reason": why.to_string()})).collect::<Vec<_>>(),
    })
}
