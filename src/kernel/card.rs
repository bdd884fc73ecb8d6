//! An ENI's link that is lent to a pod: moved into the pod's namespace and back, and found again wherever it is.
//!
//! A network card outlives the namespace that it is in: the kernel hands it back, under its name there or, where that is taken,
//! as `dev` and its index. The alias stays with it.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::link::{self, LinkSeen};
use super::netns::Netns;
use super::place::{Difference, Place, absent_is_fine};
use super::{Kernel, Pod};
use crate::error::{Cause, Context, Error};
use crate::ip::Mac;
use crate::ours::{self, Lent};
use crate::plan::Card;

/// Where runtimes keep the namespaces of their sandboxes.
const SANDBOXES: [&str; 2] = ["/run/netns", "/run/docker/netns"];

/// Moves the card into the pod, from wherever an earlier attempt has left it.
pub fn ensure(host: &mut Place, pod: &mut Pod, card: &Card) -> Result<(), Error> {
    if let Some(inside) = find(&mut pod.place, &card.name, card.mac)? {
        return name_inside(pod, card, &inside);
    }
    let Some(outside) = find(host, &card.home, card.mac)? else {
        let doing =
            format!("find the link of the ENI with MAC {} on the node or in {}", card.mac, pod.netns.path().display());
        return Err(Error::new(Cause::Absent).within(doing));
    };
    refuse_taken(pod, card)?;
    let doing = || format!("move link {} to {}", outside.name, pod.netns.path().display());
    // Signed before it goes: from then on anyone who finds it knows whose it is and where its home is.
    let netns = pod.netns.as_fd().as_raw_fd();
    let requests = vec![link::set_alias(outside.ifindex, &card.alias), link::give(outside.ifindex, netns, &card.name)];
    host.change(requests)?.into_iter().try_for_each(|outcome| outcome.map(drop)).context(doing)?;
    host.forget();
    pod.place.forget();
    Ok(())
}

/// What of an earlier attempt, or of somebody else, is not right inside.
fn name_inside(pod: &mut Pod, card: &Card, inside: &LinkSeen) -> Result<(), Error> {
    if inside.alias.as_ref() != Some(&card.alias) {
        pod.place.act(link::set_alias(inside.ifindex, &card.alias)).context(|| format!("sign link {}", card.name))?;
    }
    if inside.name != card.name {
        refuse_taken(pod, card)?;
        rename(&mut pod.place, inside, &card.name)?;
    }
    pod.place.forget();
    Ok(())
}

fn refuse_taken(pod: &mut Pod, card: &Card) -> Result<(), Error> {
    match pod.place.link(&card.name)? {
        None => Ok(()),
        Some(_) => {
            let netns = pod.netns.path().display();
            Err(Error::refused(format!("interface {} exists already in {netns}", card.name)))
        }
    }
}

fn rename(place: &mut Place, link: &LinkSeen, name: &str) -> Result<(), Error> {
    let requests = vec![link::set_down(link.ifindex), link::rename(link.ifindex, name)];
    let outcomes = place.change(requests)?;
    place.forget();
    let doing = || format!("rename link {} to {name}", link.name);
    outcomes.into_iter().try_for_each(|outcome| outcome.map(drop)).context(doing)
}

/// The link with this MAC: the one of this name, if it is it.
fn find(place: &mut Place, name: &str, mac: Mac) -> Result<Option<LinkSeen>, Error> {
    place.forget();
    if let Some(link) = place.link(name)?.filter(|link| link.is_eni(mac)) {
        return Ok(Some(link));
    }
    Ok(place.links()?.into_iter().find(|link| link.is_eni(mac)))
}

pub fn difference(host: &mut Place, pod: Option<&mut Pod>, card: &Card) -> Result<Option<Difference>, Error> {
    let Some(pod) = pod else {
        let at_home = find(host, &card.home, card.mac)?;
        return Ok(at_home.map(|link| Difference::of(format!("place of {}", link.name), "the node", "the pod")));
    };
    difference_inside(pod, card)
}

pub fn difference_inside(pod: &mut Pod, card: &Card) -> Result<Option<Difference>, Error> {
    let Some(inside) = pod.place.link(&card.name)? else {
        return Ok(Some(Difference::absent(format!("link {} in {}", card.name, pod.netns.path().display()))));
    };
    if !inside.is_eni(card.mac) {
        let mac = inside.mac.map_or("none".to_string(), |mac| mac.to_string());
        return Ok(Some(Difference::of(format!("mac of {}", card.name), mac, card.mac)));
    }
    Ok((inside.alias.as_ref() != Some(&card.alias)).then(|| {
        let (seen, want) = (inside.alias.unwrap_or_default(), &card.alias);
        Difference::of(format!("alias of {}", card.name), format!("'{seen}'"), format!("'{want}'"))
    }))
}

/// Gives a card in the pod, which somebody has changed, its MAC and alias back. One that is not there is not to be had here.
pub fn mend(pod: &mut Pod, card: &Card) -> Result<Option<Difference>, Error> {
    let Some(difference) = difference_inside(pod, card)? else { return Ok(None) };
    let lent = |link: &LinkSeen| link.is_eni(card.mac) || link.alias.as_ref() == Some(&card.alias);
    let Some(link) = pod.place.link(&card.name)?.filter(lent) else { return Ok(None) };
    let requests = vec![link::set_up(link.ifindex, None, Some(card.mac)), link::set_alias(link.ifindex, &card.alias)];
    let outcomes = pod.place.change(requests)?;
    pod.place.forget();
    outcomes.into_iter().try_for_each(|outcome| outcome.map(drop)).context(|| format!("mend link {}", card.name))?;
    Ok(Some(difference))
}

/// Brings the card back, if it is in the pod. Wherever it is by then, it is down, bare, and under its own name.
pub fn remove(host: &mut Place, pod: Option<&mut Pod>, card: &Card) -> Result<(), Error> {
    if let Some(pod) = pod
        && let Some(inside) = find(&mut pod.place, &card.name, card.mac)?
    {
        return send_home(host, pod, &inside, &card.home);
    }
    match find(host, &card.home, card.mac)? {
        Some(link) if link.alias.as_ref() == Some(&card.alias) => settle(host, &link, Some(&card.home)).map(drop),
        _ => Ok(()),
    }
}

/// Moves a link out of the pod. Its name may have been given to another one meanwhile.
pub fn send_home(host: &mut Place, pod: &mut Pod, link: &LinkSeen, home: &str) -> Result<(), Error> {
    let name = free_name(host, home)?;
    let netns = pod.netns.home().as_raw_fd();
    let given = pod.place.act(link::give(link.ifindex, netns, &name));
    pod.place.forget();
    host.forget();
    absent_is_fine(given).context(|| format!("move link {} out of {}", link.name, pod.netns.path().display()))?;
    let Some(mac) = link.mac else { return Ok(()) };
    match find(host, &name, mac)? {
        Some(link) => unsign(host, &link),
        None => Ok(()),
    }
}

/// What a link that came home should be called, as long as nobody else is: else the next free name of that kind.
fn free_name(host: &mut Place, home: &str) -> Result<String, Error> {
    let taken: Vec<String> = host.links()?.into_iter().map(|link| link.name).collect();
    if !taken.iter().any(|name| name == home) {
        return Ok(home.into());
    }
    let kind = kind(home);
    let mut names = (1..).map(|n| format!("{kind}{n}"));
    Ok(names.find(|name| !taken.contains(name)).expect("there are more names than links"))
}

fn kind(name: &str) -> &str {
    name.trim_end_matches(|c: char| c.is_ascii_digit())
}

/// Makes a link that came home by itself what it was before it went: under its own name, unsigned and down. `home` is for one
/// whose alias does not tell.
fn settle(host: &mut Place, link: &LinkSeen, home: Option<&str>) -> Result<LinkSeen, Error> {
    let lent = link.alias.as_deref().and_then(ours::lent);
    let told = lent.as_ref().map(|lent| lent.home.as_str()).or(home);
    let stray = is_fallback(&link.name).then_some("eth1");
    if let Some(want) = told.or(stray).filter(|want| *want != link.name) {
        let name = free_name(host, want)?;
        // With its own name taken, the one that it has is as good as the next of that kind.
        if name == want || kind(&link.name) != kind(want) {
            rename(host, link, &name)?;
            log::info!("link {} of the ENI with MAC {} is {name} again", link.name, shown(link.mac));
        }
    }
    if lent.is_some() {
        unsign(host, link)?;
    }
    host.forget();
    let settled = host.links()?.into_iter().find(|seen| seen.ifindex == link.ifindex);
    settled.ok_or_else(|| Error::new(Cause::Absent).within(format!("link {}", link.name)))
}

fn unsign(host: &mut Place, link: &LinkSeen) -> Result<(), Error> {
    let outcomes = host.change(vec![link::set_down(link.ifindex), link::set_alias(link.ifindex, "")])?;
    host.forget();
    outcomes.into_iter().try_for_each(|outcome| outcome.map(drop)).context(|| format!("settle link {}", link.name))
}

/// The kernel calls a card so whose namespace died and whose name is taken.
fn is_fallback(name: &str) -> bool {
    name.strip_prefix("dev").is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

fn shown(mac: Option<Mac>) -> String {
    mac.map_or("none".into(), |mac| mac.to_string())
}

/// A card that is in the namespace of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Away {
    pub mac: Mac,
    pub lent: Lent,
    pub netns: PathBuf,
}

/// Every card of ours in the namespaces that runtimes keep. One that only a process keeps is not looked into: the kernel hands the
/// card back when it ends.
pub fn away() -> Vec<Away> {
    let mut found = BTreeMap::new();
    for netns in sandboxes() {
        // One that is going, or is none, has nothing for us.
        let Ok(mut pod) = Netns::open(&netns).and_then(Pod::enter) else { continue };
        for link in pod.place.links().unwrap_or_default() {
            let lent = link.alias.as_deref().and_then(ours::lent);
            if let (Some(mac), Some(lent)) = (link.mac, lent) {
                found.entry(mac).or_insert(Away { mac, lent, netns: netns.clone() });
            }
        }
    }
    found.into_values().collect()
}

/// Each namespace once, under one of its names.
pub(super) fn sandboxes() -> Vec<PathBuf> {
    let mut by_identity = BTreeMap::new();
    for folder in SANDBOXES {
        let Ok(entries) = fs::read_dir(folder) else { continue };
        for path in entries.flatten().map(|entry| entry.path()) {
            if let Ok(file) = fs::metadata(&path) {
                by_identity.entry((file.dev(), file.ino())).or_insert(path);
            }
        }
    }
    by_identity.into_values().collect()
}

impl Kernel {
    /// The link of the ENI with this MAC, if it is here: under its own name, whoever had it. `home` is what it was called before,
    /// where someone knows.
    pub fn settle(&mut self, mac: Mac, home: Option<&str>) -> Result<Option<LinkSeen>, Error> {
        self.host.forget();
        match self.link_by_mac(mac)? {
            Some(link) if !is_settled(&link, home) => settle(&mut self.host, &link, home).map(Some),
            link => Ok(link),
        }
    }

    /// Brings a card back from a namespace that its pod has left behind.
    pub fn fetch(&mut self, away: &Away) -> Result<(), Error> {
        let mut pod = Pod::enter(Netns::open(Path::new(&away.netns))?)?;
        match pod.place.links()?.into_iter().find(|link| link.is_eni(away.mac)) {
            Some(link) => send_home(&mut self.host, &mut pod, &link, &away.lent.home),
            None => Ok(()),
        }
    }
}

/// Whether the link is lent to nobody and is called as it was before.
pub fn is_settled(link: &LinkSeen, home: Option<&str>) -> bool {
    let lent = link.alias.as_deref().is_some_and(|alias| ours::lent(alias).is_some());
    !lent && !is_fallback(&link.name) && home.is_none_or(|home| home == link.name)
}
