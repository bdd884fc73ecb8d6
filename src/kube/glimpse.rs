//! Whether there is anything of a kind, asked now and then: however many there are, one is sent.

use std::time::Duration;

use super::page::Page;
use super::watch::{Change, Stop};
use super::{Client, Form, Select, Verb};
use crate::error::{Context, Error};
use crate::object::{self, Object};

/// How long a look is good for; not all who look do so at once.
const PACE: Duration = Duration::from_secs(600);
const SPREAD: Duration = Duration::from_secs(60);

/// Endless: it looks, and waits before it looks again; after an error that is the caller's to do. `None` only after [`Stop::stop`].
pub struct Glimpse<T, K = T> {
    client: Client,
    path: String,
    has_looked: bool,
    keep: fn(T) -> K,
}

impl Client {
    /// One object of a collection of the whole cluster, if there are any, and the same again from time to time.
    pub fn glimpse_at<T: Object, K>(&self, api: &str, plural: &str, keep: fn(T) -> K) -> Glimpse<T, K> {
        let path = object::collection_at(api, plural, "");
        Glimpse { client: self.fork(), path, has_looked: false, keep }
    }
}

impl<T: Object, K> Glimpse<T, K> {
    pub fn stopper(&self) -> Stop {
        Stop::of(&self.client)
    }

    fn look(&mut self) -> Result<Change<K>, Error> {
        let mut kept = Vec::new();
        let mut query = Select::default().query();
        query.add("limit", "1");
        let allowance = self.client.allowance();
        let page = Page { kept: &mut kept, keep: self.keep, allowance: &allowance };
        let target = format!("{}{}", self.path, query.0);
        self.client.read(Verb::Get(Form::Objects), &target, &allowance, page)?;
        self.has_looked = true;
        Ok(Change::Reset(kept))
    }
}

impl<T: Object, K> Iterator for Glimpse<T, K> {
    type Item = Result<Change<K>, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let pause = if self.has_looked { PACE + SPREAD.mul_f64(fastrand::f64()) } else { Duration::ZERO };
        if self.client.rest(pause) {
            return None;
        }
        Some(self.look().context(|| format!("list {}", self.path)))
    }
}
