//! The cloud as the configuration has it: where it is, and who we are to it.

use super::metadata::{BASE, Observer};
use super::{ADDON_SECRET, Credentials, Endpoint, Key, Metadata, Signature, Sources};
use crate::config::{AccessKey, Config};
use crate::endpoint::{self, Scheme};
use crate::error::{Context, Error};

pub fn metadata(config: &Config) -> Result<Metadata, Error> {
    Metadata::new(&service(config))
}

/// The same, and the observer hears of every question.
pub fn observed(config: &Config, observer: Observer) -> Result<Metadata, Error> {
    Metadata::observed(&service(config), observer)
}

fn service(config: &Config) -> String {
    config.cloud.metadata.as_ref().map_or(BASE.to_owned(), ToString::to_string)
}

/// `region` where the configuration names none.
pub fn endpoint(config: &Config, region: &str) -> Endpoint {
    Endpoint {
        ecs: config.cloud.ecs.as_ref().map(ToString::to_string),
        vpc: config.cloud.vpc.as_ref().map(ToString::to_string),
        http: config.cloud.scheme == Scheme::Http,
        signature: match config.cloud.signature {
            endpoint::Signature::V1 => Signature::HmacSha1,
            endpoint::Signature::V3 => Signature::Acs3,
        },
        ca: config.cloud.ca_file.clone(),
        ..Endpoint::new(config.region.as_deref().unwrap_or(region))
    }
}

pub fn credentials(config: &Config, metadata: Metadata) -> Result<Credentials, Error> {
    Ok(Credentials::new(Sources {
        addon_secret: ADDON_SECRET.into(),
        pair: config.access.as_ref().map(key).transpose()?,
        token_file: config.credential_path.clone(),
        role: Some(metadata),
    }))
}

fn key(pair: &AccessKey) -> Result<Key, Error> {
    Key::new(&pair.id, pair.secret.expose(), None).context(|| "access_key and access_secret")
}
