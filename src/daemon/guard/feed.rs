//! Watches of all that Services consist of, each on a thread of its own.

use std::sync::mpsc::SyncSender;
use std::thread;
use std::time::Duration;

use super::{News, Start};
use crate::cluster::{EndpointSlice, EndpointSliceBeta, Member, Name, Service, services_selector, slices_selector};
use crate::daemon::news::{End, follow, heard};
use crate::daemon::threads;
use crate::error::Error;
use crate::heard::Heard;
use crate::kube::{Client, Select};
use crate::object::Object;

/// How long a server that knows no EndpointSlices is left alone.
const PAUSE: Duration = Duration::from_secs(30);

/// Nodes tell the world every five minutes that they are well, in some kilobytes each. Only where they are is wanted: a row has the
/// first address of a node, which is all where nodes have one family.
pub fn start(start: &Start, news: &SyncSender<News>) {
    let client = &start.kube;
    let (kube, to) = (client.clone(), news.clone());
    threads::start(move || {
        let select = Select { labels: services_selector(), ..Select::default() };
        core::<Service>(&kube, &to, select, |s| s.name.clone(), News::Services);
    });
    let (kube, to) = (client.clone(), news.clone());
    let select = Select { rows: start.node.len() < 2, ..Select::default() };
    threads::start(move || {
        core::<Member>(&kube, &to, select, |m| m.name.clone(), News::Nodes);
    });
    let (kube, to) = (client.clone(), news.clone());
    let select = Select { fields: format!("metadata.name={}", start.node_name), ..Select::default() };
    threads::start(move || {
        core::<Member>(&kube, &to, select, |m| m.name.clone(), News::Here);
    });
    let (kube, to) = (client.clone(), news.clone());
    threads::start(move || slices(&kube, &to));
}

/// In the version that the server has: v1 from 1.21 on, v1beta1 from 1.17 to 1.24. Where it changes under us, the other is next.
fn slices(kube: &Client, to: &SyncSender<News>) {
    let select = || Select { labels: slices_selector(), ..Select::default() };
    let is_absent = |e: &Error| e.is_absent() && kube.health().is_ok();
    loop {
        let name = |s: &EndpointSlice| s.name.clone();
        let end = watch::<EndpointSlice>(kube, to, select(), is_absent, name, News::Slices);
        if end == End::Unheard {
            return;
        }
        log::info!("the API server has no discovery.k8s.io/v1: v1beta1 is tried");
        let unwrapped = |heard| match heard {
            Heard::All(all) => Heard::All(all.into_iter().map(|EndpointSliceBeta(slice)| slice).collect()),
            Heard::One(EndpointSliceBeta(slice)) => Heard::One(slice),
            Heard::Gone(name) => Heard::Gone(name),
        };
        let name = |s: &EndpointSliceBeta| s.0.name.clone();
        let news = |heard| News::Slices(unwrapped(heard));
        let end = watch::<EndpointSliceBeta>(kube, to, select(), is_absent, name, news);
        if end == End::Unheard {
            return;
        }
        thread::sleep(PAUSE);
    }
}

/// Of a kind that every server has, whatever may stand in its place for a while.
fn core<T: Object>(
    kube: &Client,
    to: &SyncSender<News>,
    select: Select,
    name: impl Fn(&T) -> Name,
    news: impl Fn(Heard<T>) -> News,
) {
    watch(kube, to, select, |_| false, name, news);
}

fn watch<T: Object>(
    kube: &Client,
    to: &SyncSender<News>,
    select: Select,
    is_final: impl Fn(&Error) -> bool,
    name: impl Fn(&T) -> Name,
    news: impl Fn(Heard<T>) -> News,
) -> End {
    let is_final = |e: &Error| {
        let _ = to.send(News::Trouble);
        is_final(e)
    };
    let tell = |heard| to.send(news(heard)).is_ok();
    follow(kube.watch(select), T::PLURAL, is_final, |change| heard(change, &name).is_none_or(tell))
}
