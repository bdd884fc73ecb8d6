//! Services at the socket: their maps, what is written to them and read back, and the programs at the hooks of a cgroup.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use super::cgroup::Cgroup;
use super::load::{Aligned, Linked, Object, Program};
use super::map::Map;
use super::pin::{self, Age};
use super::sys::Shape;
use crate::error::{Context, Error};
use crate::kernel::sockets::Led;
use crate::maps::{
    self, Backend, Count, Direction, Flow, FlowKey, Frontend, FrontendKey, Proto, STATE_PEERS, Sizes, State, Tables,
    Write,
};
use crate::ours;

/// The variants of the object, the one that can most first, each with what it takes that the next can do without.
static VARIANTS: &[(&str, &[u8], &str)] = &[
    ("sock_retval", &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/sock_retval.o"))).0, "bpf_set_retval (6.1)"),
    (
        "sock_cookie",
        &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/sock_cookie.o"))).0,
        "bpf_get_netns_cookie (5.7)",
    ),
    ("sock", &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/sock.o"))).0, ""),
];

/// Programs that every kernel of 4.19 and later has, in the order in which they are attached.
const PROGRAMS: &[&str] = &["terway_sendmsg4", "terway_sendmsg6", "terway_connect4", "terway_connect6"];
/// Programs that the way goes without, each with the hook that is missing then and what that means.
const OPTIONAL: &[(&str, &str)] = &[
    ("terway_recvmsg4", "no hook for received datagrams (5.2, 4.19.57): they show the backend's address"),
    ("terway_recvmsg6", "no hook for received datagrams (5.2, 4.19.57): they show the backend's address"),
    ("terway_peer4", "no hook for getpeername (5.8): it shows the backend's address"),
    ("terway_peer6", "no hook for getpeername (5.8): it shows the backend's address"),
];
/// `BPF_CGROUP_…` of all of them, in the same order.
const HOOKS: &[u32] = &[14, 15, 10, 11, 19, 20, 29, 30];

/// The maps, wherever they are pinned.
#[derive(Debug)]
pub struct Services {
    folder: PathBuf,
    frontends: Map,
    slots: Map,
    backends: Map,
    affinity: Map,
    flows: Map,
    nodes: Map,
    state: Map,
    counts: Map,
}

/// What stands at the hooks now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    pub variant: &'static str,
    /// What this kernel lacks, and what that means; a line each.
    pub lacks: Vec<String>,
}

impl Services {
    /// Opens the pinned maps below this bpffs. Where one is missing or of another size, all are made anew, and programs that are
    /// attached go on with the old ones until [`Services::attach`].
    pub fn open(root: &Path, sizes: &Sizes) -> Result<(Services, Age), Error> {
        let folder = pin::folder(root, &format!("{}/v{}", ours::BPF_FOLDER, maps::SCHEMA))?;
        let shapes = shapes(sizes)?;
        if let Some(services) = Services::pinned(&folder, &shapes)? {
            return Ok((services, Age::Old));
        }
        // It is made last: without it, what there is counts for nothing.
        pin::forget(&folder, "state")?;
        let mut made = BTreeMap::new();
        for (name, shape) in shapes.iter().filter(|(name, _)| *name != "state") {
            made.insert(name.clone(), pin::fresh(&folder, name, shape)?);
        }
        made.insert("state".into(), pin::fresh(&folder, "state", &shapes["state"])?);
        Ok((Services::of(folder, made)?, Age::New))
    }

    /// The maps as they are pinned, whatever their sizes, to be read; nothing where they are not all there.
    pub fn peek(root: &Path) -> Result<Option<Services>, Error> {
        const NAMES: [&str; 8] = ["frontends", "slots", "backends", "affinity", "flows", "nodes", "state", "counts"];
        let folder = root.join(ours::BPF_FOLDER).join(format!("v{}", maps::SCHEMA));
        let mut found = BTreeMap::new();
        for name in NAMES {
            match pin::open(&folder, name)? {
                Some(map) => found.insert(name.to_string(), map),
                None => return Ok(None),
            };
        }
        Services::of(folder, found).map(Some)
    }

    fn pinned(folder: &Path, shapes: &BTreeMap<String, Shape>) -> Result<Option<Services>, Error> {
        let mut found = BTreeMap::new();
        for (name, shape) in shapes {
            match pin::open(folder, name)? {
                Some(map) if map.shape() == *shape => found.insert(name.clone(), map),
                _ => return Ok(None),
            };
        }
        Services::of(folder.into(), found).map(Some)
    }

    fn of(folder: PathBuf, mut maps: BTreeMap<String, Map>) -> Result<Services, Error> {
        let mut take = |name: &str| maps.remove(name).ok_or_else(|| Error::malformed(format!("no map {name}")));
        Ok(Services {
            folder,
            frontends: take("frontends")?,
            slots: take("slots")?,
            backends: take("backends")?,
            affinity: take("affinity")?,
            flows: take("flows")?,
            nodes: take("nodes")?,
            state: take("state")?,
            counts: take("counts")?,
        })
    }

    fn all(&self) -> [&Map; 8] {
        let Services { frontends, slots, backends, affinity, flows, nodes, state, counts, .. } = self;
        [frontends, slots, backends, affinity, flows, nodes, state, counts]
    }

    /// What the kernel holds.
    pub fn read(&self) -> Result<Tables, Error> {
        let mut tables = Tables::default();
        self.frontends.each(|key, value| {
            tables.frontends.extend(FrontendKey::from_bytes(key).zip(Frontend::from_bytes(value)));
        })?;
        self.slots.each(|at, id| {
            let (at, id) = (number(at), number(id));
            tables.slots.extend((id != 0).then_some((at, id)));
        })?;
        self.backends.each(|id, value| tables.backends.extend(Backend::from_bytes(value).map(|b| (number(id), b))))?;
        self.nodes.each(|addr, flags| tables.nodes.extend(maps::from_16(addr).map(|addr| (addr, number(flags)))))?;
        Ok(tables)
    }

    /// Those of this address, whatever their ports.
    pub fn frontends_at(&self, addr: IpAddr) -> Result<Vec<(FrontendKey, Frontend)>, Error> {
        let mut found = Vec::new();
        self.frontends.each(|key, value| {
            let frontend = FrontendKey::from_bytes(key).zip(Frontend::from_bytes(value));
            found.extend(frontend.filter(|(key, _)| key.addr == addr));
        })?;
        Ok(found)
    }

    /// Carries out the writes in their order. Beside the error, how many were done before it.
    pub fn write(&self, writes: &[Write]) -> Result<(), (usize, Error)> {
        let mut done = 0;
        for run in writes.chunk_by(|a, b| std::mem::discriminant(a) == std::mem::discriminant(b)) {
            self.write_run(run).map_err(|(some, e)| (done + some, e))?;
            done += run.len();
        }
        Ok(())
    }

    /// Writes of one kind, which go to one map.
    fn write_run(&self, run: &[Write]) -> Result<(), (usize, Error)> {
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        let map = match run.first() {
            None => return Ok(()),
            Some(Write::RemoveFrontend(_) | Write::RemoveNode(_)) => return self.remove_run(run),
            Some(Write::Slot { .. }) => &self.slots,
            Some(Write::Backend { .. }) => &self.backends,
            Some(Write::Frontend { .. }) => &self.frontends,
            Some(Write::Node { .. }) => &self.nodes,
        };
        for write in run {
            match write {
                Write::Slot { at, backend } => {
                    keys.extend_from_slice(&at.to_ne_bytes());
                    values.extend_from_slice(&backend.to_ne_bytes());
                }
                Write::Backend { id, value } => {
                    keys.extend_from_slice(&id.to_ne_bytes());
                    values.extend_from_slice(&value.map_or(Backend::NONE, |backend| backend.to_bytes()));
                }
                Write::Frontend { key, value } => {
                    keys.extend_from_slice(&key.to_bytes());
                    values.extend_from_slice(&value.to_bytes(key));
                }
                Write::Node { addr, flags } => {
                    keys.extend_from_slice(&maps::to_16(*addr));
                    values.extend_from_slice(&flags.to_ne_bytes());
                }
                Write::RemoveFrontend(_) | Write::RemoveNode(_) => {}
            }
        }
        map.put_all(&keys, &values)
    }

    fn remove_run(&self, run: &[Write]) -> Result<(), (usize, Error)> {
        for (n, write) in run.iter().enumerate() {
            match write {
                Write::RemoveFrontend(key) => self.frontends.remove(&key.to_bytes()),
                Write::RemoveNode(addr) => self.nodes.remove(&maps::to_16(*addr)),
                _ => Ok(false),
            }
            .map_err(|e| (n, e))?;
        }
        Ok(())
    }

    /// Puts the newest programs that this kernel takes at the hooks of the cgroup, in the place of whatever of ours is there: there is no
    /// moment without one. The calling thread is in the node's network namespace.
    pub fn attach(&self, cgroup: &Cgroup) -> Result<Chosen, Error> {
        self.attach_from(cgroup, 0)
    }

    /// The same with none of the first variants, as if the kernel could not have them.
    pub fn attach_from(&self, cgroup: &Cgroup, first: usize) -> Result<Chosen, Error> {
        let mut lacks = Vec::new();
        let (variant, linked, programs) = self.load(first, &mut lacks)?;
        let mut named = Vec::new();
        for (name, lack) in OPTIONAL {
            match linked.load(name) {
                Ok(program) => named.push(program),
                Err(e) => lacks.push(format!("{lack} ({e})")),
            }
        }
        let peers = named.iter().any(|program| program.name.starts_with("terway_peer"));
        let state = State { flags: if peers { STATE_PEERS } else { 0 }, host: netns_cookie().unwrap_or(0) };
        self.state.put(&0u32.to_ne_bytes(), &state.to_bytes())?;
        // The way back stands before anybody takes the way there.
        named.iter().chain(&programs).try_for_each(|program| cgroup.attach(program))?;
        Ok(Chosen { variant, lacks })
    }

    /// The first variant all of whose programs the kernel takes.
    fn load(&self, first: usize, lacks: &mut Vec<String>) -> Result<(&'static str, Linked, Vec<Program>), Error> {
        let mut refusal = Error::malformed("no eBPF object");
        for (variant, bytes, needs) in VARIANTS.iter().skip(first) {
            let linked = Object::parse(variant, bytes)?.link(self.all())?;
            let programs: Result<Vec<Program>, Error> = PROGRAMS.iter().map(|name| linked.load(name)).collect();
            match programs {
                Ok(programs) => return Ok((variant, linked, programs)),
                Err(e) => {
                    if !needs.is_empty() {
                        lacks.push(format!("no {needs} ({e})"));
                    }
                    refusal = e;
                }
            }
        }
        Err(refusal)
    }

    /// What the programs have counted since the maps were made, in the order of [`Count::ALL`].
    pub fn counts(&self) -> Result<[u64; Count::ALL.len()], Error> {
        let mut sums = [0; Count::ALL.len()];
        for (count, sum) in Count::ALL.iter().zip(&mut sums) {
            let cpus = self.counts.get(&(*count as u32).to_ne_bytes())?.unwrap_or_default();
            *sum = cpus.chunks_exact(8).map(|n| n.try_into().map_or(0, u64::from_ne_bytes)).sum();
        }
        Ok(sums)
    }

    /// What sockets have been led to, and whence.
    pub fn flows(&self) -> Result<Vec<(FlowKey, Flow)>, Error> {
        let mut flows = Vec::new();
        self.flows.each(|key, value| flows.extend(FlowKey::from_bytes(key).zip(Flow::from_bytes(value))))?;
        Ok(flows)
    }

    /// The datagram sockets that were led to these backends, by id, as far as it is noted.
    pub fn led_to(&self, gone: &BTreeMap<u32, Backend>) -> Result<BTreeSet<Led>, Error> {
        let mut led = BTreeSet::new();
        self.flows.each(|key, value| {
            let Some((key, flow)) = FlowKey::from_bytes(key).zip(Flow::from_bytes(value)) else { return };
            let is_there =
                |b: &&Backend| (b.set, b.addr, b.port, b.proto) == (flow.set, key.addr, key.port, Proto::Udp);
            if key.direction == Direction::ToService && gone.get(&flow.backend).filter(is_there).is_some() {
                led.insert((key.cookie, SocketAddr::new(key.addr, key.port)));
            }
        })?;
        Ok(led)
    }

    /// For how much each map has room.
    pub fn sizes(&self) -> Sizes {
        let entries = |map: &Map| map.shape().entries;
        Sizes {
            frontends: entries(&self.frontends),
            backends: entries(&self.backends),
            slots: entries(&self.slots),
            nodes: entries(&self.nodes),
            affinity: entries(&self.affinity),
            flows: entries(&self.flows),
        }
    }

    /// Takes away what is pinned of other layouts, once the programs stand that know this one.
    pub fn remove_others(&self, root: &Path) -> Result<(), Error> {
        let mut others = pinned(root).into_iter().filter(|folder| *folder != self.folder);
        others
            .try_for_each(|folder| std::fs::remove_dir_all(&folder).context(|| format!("delete {}", folder.display())))
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

/// Takes all pinned maps away, of every layout.
pub fn unpin(root: &Path) -> Result<(), Error> {
    for folder in pinned(root) {
        std::fs::remove_dir_all(&folder).context(|| format!("delete {}", folder.display()))?;
    }
    // It stays where ENIs with IPvlan slaves have maps of theirs in it.
    let _ = std::fs::remove_dir(root.join(ours::BPF_FOLDER));
    Ok(())
}

/// Takes all programs of ours away from the cgroup.
pub fn clear(cgroup: &Cgroup) -> Result<(), Error> {
    HOOKS.iter().try_for_each(|hook| match cgroup.clear(*hook) {
        // A hook that this kernel does not have.
        Err(e) if e.errno() == Some(libc::EINVAL) => Ok(()),
        result => result,
    })
}

/// The folders with maps of Services, one for each layout: `v` and its number.
pub fn pinned(root: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root.join(ours::BPF_FOLDER)).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with('v')).map(|entry| entry.path()).collect()
}

/// The shapes of all maps, as the object has them, in these sizes.
fn shapes(sizes: &Sizes) -> Result<BTreeMap<String, Shape>, Error> {
    let (name, bytes, _) = VARIANTS[VARIANTS.len() - 1];
    let mut shapes = Object::parse(name, bytes)?.maps();
    let Sizes { frontends, backends, slots, nodes, affinity, flows } = *sizes;
    let sized = [
        ("frontends", frontends),
        ("backends", backends),
        ("slots", slots),
        ("nodes", nodes),
        ("affinity", affinity),
        ("flows", flows),
    ];
    for (name, entries) in sized {
        let shape =
            shapes.get_mut(name).ok_or_else(|| Error::malformed(format!("the eBPF object has no map {name}")))?;
        shape.entries = entries;
    }
    Ok(shapes)
}

/// The cookie of the calling thread's network namespace; none before 5.14, where programs take the first namespace for the node's.
fn netns_cookie() -> Option<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let socket = std::net::UdpSocket::bind(("127.0.0.1", 0)).ok()?;
    let (mut cookie, mut len) = (0u64, size_of::<u64>() as libc::socklen_t);
    let (level, to) = (libc::SOL_SOCKET, (&raw mut cookie).cast());
    // SAFETY: the kernel writes at most `len` bytes to the cookie.
    let told = unsafe { libc::getsockopt(socket.as_raw_fd(), level, SO_NETNS_COOKIE, to, &raw mut len) };
    (told == 0).then_some(cookie)
}

fn number(bytes: &[u8]) -> u32 {
    bytes.try_into().map_or(0, u32::from_ne_bytes)
}
