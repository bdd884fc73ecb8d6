//! Of which class each address is: the peers that it matches, by prefix.
//!
//! A prefix is listed where the answer may differ from that of the prefix around it: for the addresses of those whom a selector in
//! use selects, and for each CIDR that a peer or a selected network set names, `except` included. So a pod's address bears the
//! CIDRs around it too, and an exception is exact.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use ipnet::IpNet;

use super::form::{Peer, Who};
use super::index::{Entity, Index, Key, WhoId};
use crate::rules::{ClassId, NO_CLASS, PeerId, Rules, Write};

#[derive(Default)]
pub struct Table {
    index: Index,
    peers: BTreeMap<PeerId, Known>,
    ids: HashMap<Arc<Peer>, PeerId>,
    /// By what can make an address match them.
    by_who: BTreeMap<WhoId, BTreeSet<PeerId>>,
    by_net: BTreeMap<IpNet, BTreeSet<PeerId>>,
    /// Those that match unless something is against it.
    negative: BTreeSet<PeerId>,
    /// What is selected by anyone.
    marked: BTreeMap<Key, Marked>,
    at: BTreeSet<(IpNet, Key)>,
    /// How many name a prefix.
    mentions: BTreeMap<IpNet, u32>,
    /// How many prefixes there are of a length, IPv4 and IPv6.
    lengths: [BTreeMap<u8, u32>; 2],
    classes: HashMap<Arc<[PeerId]>, (ClassId, u32)>,
    dirty: BTreeSet<IpNet>,
    /// Selectors that nothing was compared with yet.
    fresh: BTreeSet<WhoId>,
    next_peer: PeerId,
    next_class: ClassId,
}

struct Known {
    peer: Arc<Peer>,
    who: Option<WhoId>,
    not_who: Option<WhoId>,
}

struct Marked {
    nets: Box<[IpNet]>,
    marks: Box<[WhoId]>,
}

impl Table {
    /// The peer's number; it is kept until [`Table::drop_peer`].
    pub fn peer(&mut self, peer: &Peer) -> PeerId {
        if let Some(id) = self.ids.get(peer) {
            return *id;
        }
        self.next_peer += 1;
        let (id, peer) = (self.next_peer, Arc::new(peer.clone()));
        let who = peer.who.as_ref().map(|who| self.hold(who));
        let not_who = peer.not_who.as_ref().map(|who| self.hold(who));
        self.ids.insert(peer.clone(), id);
        self.enlist(id, &peer, who, true);
        self.peers.insert(id, Known { peer: peer.clone(), who, not_who });
        for net in peer.nets.iter().flatten().chain(&peer.not_nets) {
            self.mention(*net);
        }
        id
    }

    pub fn peers(&self) -> impl Iterator<Item = &Peer> {
        self.peers.values().map(|known| &*known.peer)
    }

    pub fn text(&self, id: PeerId) -> Arc<str> {
        self.peers[&id].peer.to_string().into()
    }

    pub fn drop_peer(&mut self, id: PeerId) {
        let Some(Known { peer, who, not_who }) = self.peers.remove(&id) else { return };
        self.ids.remove(&peer);
        self.enlist(id, &peer, who, false);
        for net in peer.nets.iter().flatten().chain(&peer.not_nets) {
            self.forget(net);
        }
        for who in who.into_iter().chain(not_who) {
            if self.index.release(who) && !self.fresh.remove(&who) {
                self.unmark(who);
            }
        }
    }

    fn hold(&mut self, who: &Who) -> WhoId {
        let (id, is_new) = self.index.hold(who);
        if is_new {
            self.fresh.insert(id);
        }
        id
    }

    /// Puts a peer where it is found, or takes it from there; where it matters is to be looked at again.
    fn enlist(&mut self, id: PeerId, peer: &Peer, who: Option<WhoId>, is_there: bool) {
        fn change<K: Ord>(map: &mut BTreeMap<K, BTreeSet<PeerId>>, key: K, id: PeerId, is_there: bool) {
            if is_there {
                map.entry(key).or_default().insert(id);
            } else if let Some(some) = map.get_mut(&key) {
                some.remove(&id);
                if some.is_empty() {
                    map.remove(&key);
                }
            }
        }
        if let Some(who) = who {
            change(&mut self.by_who, who, id, is_there);
            // A new one has selected nothing yet.
            if self.fresh.contains(&who) {
                return;
            }
            let nets: Vec<IpNet> =
                self.marked.values().filter(|m| m.marks.contains(&who)).flat_map(|m| &*m.nets).copied().collect();
            nets.iter().for_each(|net| self.dirty_within(net));
        } else if let Some(nets) = &peer.nets {
            for net in nets {
                change(&mut self.by_net, *net, id, is_there);
                self.dirty_within(net);
            }
        } else {
            if is_there {
                self.negative.insert(id)
            } else {
                self.negative.remove(&id)
            };
            let roots = ["0.0.0.0/0", "::/0"].map(|net| net.parse().expect("it is one"));
            for root in roots {
                if is_there {
                    self.mention(root)
                } else {
                    self.forget(&root)
                };
                self.dirty_within(&root);
            }
        }
    }

    fn dirty_within(&mut self, net: &IpNet) {
        let last = IpNet::from(net.broadcast());
        let within: Vec<IpNet> = self.mentions.range(net..=&last).map(|(net, _)| *net).collect();
        self.dirty.extend(within);
    }

    fn mention(&mut self, net: IpNet) {
        let count = self.mentions.entry(net).or_default();
        *count += 1;
        if *count == 1 {
            *self.lengths[family(&net)].entry(net.prefix_len()).or_default() += 1;
            self.dirty.insert(net);
        }
    }

    fn forget(&mut self, net: &IpNet) {
        let Some(count) = self.mentions.get_mut(net) else { return };
        *count -= 1;
        if *count > 0 {
            return;
        }
        self.mentions.remove(net);
        self.dirty.insert(*net);
        let lengths = &mut self.lengths[family(net)];
        let of = lengths.get_mut(&net.prefix_len()).expect("it was counted");
        *of -= 1;
        if *of == 0 {
            lengths.remove(&net.prefix_len());
        }
    }

    /// Forgets a selector wherever it had selected something.
    fn unmark(&mut self, who: WhoId) {
        let keys: Vec<Key> =
            self.marked.iter().filter(|(_, m)| m.marks.contains(&who)).map(|(key, _)| key.clone()).collect();
        for key in keys {
            let Marked { nets, marks } = self.marked.remove(&key).expect("it is among them");
            let rest = marks.iter().copied().filter(|mark| *mark != who).collect();
            self.unlist(&key, &nets);
            self.list(key, nets, rest);
        }
    }

    fn unlist(&mut self, key: &Key, nets: &[IpNet]) {
        for net in nets {
            self.dirty_within(net);
            self.forget(net);
            self.at.remove(&(*net, key.clone()));
        }
    }

    fn holders(&self, net: IpNet) -> impl Iterator<Item = &Key> {
        let from = (net, Key::Pod(Arc::default()));
        self.at.range(from..).take_while(move |(at, _)| *at == net).map(|(_, key)| key)
    }

    fn list(&mut self, key: Key, nets: Box<[IpNet]>, marks: Box<[WhoId]>) {
        if marks.is_empty() || nets.is_empty() {
            return;
        }
        for net in &nets {
            self.mention(*net);
            self.dirty_within(net);
            self.at.insert((*net, key.clone()));
        }
        self.marked.insert(key, Marked { nets, marks });
    }

    /// Something is there, or is otherwise than before.
    pub fn put(&mut self, entity: &Entity, nets: Box<[IpNet]>) {
        let marks: Box<[WhoId]> = self.index.selecting(entity).into();
        if let Some(before) = self.marked.get(entity.key)
            && (&before.nets, &before.marks) == (&nets, &marks)
        {
            return;
        }
        self.remove(entity.key);
        self.list(entity.key.clone(), nets, marks);
    }

    pub fn remove(&mut self, key: &Key) {
        if let Some(before) = self.marked.remove(key) {
            self.unlist(key, &before.nets);
        }
    }

    /// Whether there are selectors that all that has not been put since must be compared with, by [`Table::compare`].
    pub fn has_fresh(&self) -> bool {
        !self.fresh.is_empty()
    }

    /// Those of the new selectors that may concern somebody.
    pub fn fresh(&self, may: impl Fn(&Who) -> bool) -> Vec<WhoId> {
        self.fresh.iter().copied().filter(|id| may(self.index.who(*id))).collect()
    }

    /// Compares something that is as it was with some of the new selectors only.
    pub fn compare(&mut self, entity: &Entity, fresh: &[WhoId], nets: impl FnOnce() -> Box<[IpNet]>) {
        let fresh: Vec<WhoId> = fresh.iter().copied().filter(|id| entity.is_selected(self.index.who(*id))).collect();
        if fresh.is_empty() {
            return;
        }
        let before = self.marked.get(entity.key).map(|m| m.marks.to_vec()).unwrap_or_default();
        let marks: BTreeSet<WhoId> = before.into_iter().chain(fresh).collect();
        self.remove(entity.key);
        self.list(entity.key.clone(), nets(), marks.into_iter().collect());
    }

    pub fn compared(&mut self) {
        self.fresh.clear();
    }

    /// What has changed: classes that are new, and prefixes.
    pub fn settle(&mut self, rules: &Rules) -> (Vec<Write>, Vec<Write>) {
        let (mut classes, mut prefixes) = (Vec::new(), Vec::new());
        for net in std::mem::take(&mut self.dirty) {
            let before = rules.prefixes.get(&net).copied();
            let after = self.mentions.contains_key(&net).then(|| self.matched(&net)).map(|peers| {
                let (id, is_new) = self.class(&peers);
                if is_new {
                    classes.push(Write::Class(id, Some(peers)));
                }
                id
            });
            if let Some(before) = before {
                let peers = rules.classes.get(&before);
                if let Some((_, uses)) = peers.and_then(|peers| self.classes.get_mut(peers)) {
                    *uses -= 1;
                }
            }
            if before != after {
                prefixes.push(Write::Prefix(net, after));
            }
        }
        (classes, prefixes)
    }

    /// Classes that no prefix is of any more.
    pub fn sweep(&mut self) -> Vec<ClassId> {
        let mut gone: Vec<ClassId> = self.classes.values().filter(|(_, uses)| *uses == 0).map(|(id, _)| *id).collect();
        self.classes.retain(|_, (_, uses)| *uses > 0);
        gone.sort_unstable();
        gone
    }

    fn class(&mut self, peers: &Arc<[PeerId]>) -> (ClassId, bool) {
        if peers.is_empty() {
            return (NO_CLASS, false);
        }
        if let Some((id, uses)) = self.classes.get_mut(peers) {
            *uses += 1;
            return (*id, false);
        }
        self.next_class += 1;
        self.classes.insert(peers.clone(), (self.next_class, 1));
        (self.next_class, true)
    }

    /// Every peer that an address matches which is in this prefix and in none that is listed within it.
    fn matched(&self, net: &IpNet) -> Arc<[PeerId]> {
        let lengths = self.lengths[family(net)].range(..=net.prefix_len()).map(|(len, _)| *len);
        let around = lengths.map(|len| IpNet::new(net.addr(), len).expect("it is shorter").trunc());
        let around: Vec<IpNet> = around.filter(|net| self.mentions.contains_key(net)).collect();
        let holders = around.iter().flat_map(|net| self.holders(*net));
        let marks: BTreeSet<WhoId> = holders.flat_map(|key| self.marked[key].marks.iter().copied()).collect();
        let selected = marks.iter().filter_map(|who| self.by_who.get(who)).flatten();
        let covered = around.iter().filter_map(|net| self.by_net.get(net)).flatten();
        let candidates: BTreeSet<PeerId> = selected.chain(covered).chain(&self.negative).copied().collect();
        candidates.into_iter().filter(|id| self.is_matched(&self.peers[id], net, &marks)).collect()
    }

    fn is_matched(&self, known: &Known, net: &IpNet, marks: &BTreeSet<WhoId>) -> bool {
        let Known { peer, who, not_who } = known;
        who.is_none_or(|who| marks.contains(&who))
            && !not_who.is_some_and(|who| marks.contains(&who))
            && peer.nets.as_ref().is_none_or(|nets| nets.iter().any(|n| n.contains(net)))
            && !peer.not_nets.iter().any(|n| n.contains(net))
    }
}

fn family(net: &IpNet) -> usize {
    match net {
        IpNet::V4(_) => 0,
        IpNet::V6(_) => 1,
    }
}
