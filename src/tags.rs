//! Tags of ENIs, as the configuration says them.

use std::collections::BTreeMap;

use crate::error::Error;
use crate::gather::Gather;
use crate::json::{Reader, Wrong, shortened};
use crate::ours;

/// An ENI has room for 20 tags; three of ours say whose it is, which node's, and which of the others are ours.
const MOST_TAGS: usize = 17;

pub type Tags = BTreeMap<String, String>;
pub type TagList = Vec<(String, String)>;

/// Tags to set, tags to ask for, tags to stay away from. An ENI that we make bears the first two, so they must not exclude it.
pub fn all_tags(keys: &mut Reader) -> Result<(Tags, Tags, TagList), Error> {
    let (set, filter, block) = (tags(keys, "eni_tags")?, tags(keys, "eni_tag_filter")?, tag_block(keys)?);
    for (key, value) in &filter {
        if let Some(other) = set.get(key).filter(|other| *other != value) {
            let text =
                format!("eni_tag_filter asks for {key}={value} and eni_tags sets {key}={other}; one of them must go");
            return Err(Error::malformed(text));
        }
    }
    let all: Tags = set.iter().chain(&filter).map(|(key, value)| (key.clone(), value.clone())).gather();
    let own = |key: &str, value: &str| (key, value) == ours::ENI_TAG;
    if let Some((key, value)) = filter.iter().find(|(key, value)| is_reserved(key) && !own(key, value)) {
        let text =
            format!("eni_tag_filter asks for {key}={value}, but terwayd itself sets {key}; ask for a tag of eni_tags");
        return Err(Error::malformed(text));
    }
    if let Some((key, value)) = block.iter().find(|(key, value)| own(key, value) || all.get(key) == Some(value)) {
        let text = format!("eni_tag_block_list names {key}={value}, which is on every ENI that terwayd makes");
        return Err(Error::malformed(text));
    }
    match all.len() {
        n if n > MOST_TAGS => {
            Err(Error::malformed(format!("eni_tags and eni_tag_filter name {n} tags; an ENI has room for {MOST_TAGS}")))
        }
        _ => Ok((set, filter, block)),
    }
}

/// Terwayd sets it itself, whatever anybody else says.
pub fn is_reserved(key: &str) -> bool {
    [ours::ENI_TAG.0, ours::NODE_TAG, ours::TAGS_TAG].contains(&key)
}

const TAGS: &str = "tags whose keys have 1 to 128 characters and do not begin with aliyun or acs:, whose values have at most 128, \
                    and which hold no http:// or https://";

/// What the cloud takes for a tag.
fn is_tag(key: &str, value: &str) -> bool {
    let plain = |text: &str| text.chars().count() <= 128 && !text.contains("http://") && !text.contains("https://");
    !key.is_empty() && plain(key) && plain(value) && !key.starts_with("aliyun") && !key.starts_with("acs:")
}

fn tags(keys: &mut Reader, key: &'static str) -> Result<Tags, Wrong> {
    let tags = keys.map(key, "a text", |v| v.as_str().map(str::to_owned))?;
    match tags.iter().find(|(name, value)| !is_tag(name, value)) {
        Some((name, value)) => Err(keys.wrong(&format!("{key}.{}", shortened(name)), &value.as_str().into(), TAGS)),
        None => Ok(tags),
    }
}

/// ENIs of other controllers, whatever the configuration says.
const ALWAYS_BLOCKED: &[(&str, &str)] =
    &[("creator", "alibabacloud-erdma-controller"), ("terway.alibabacloud.com/excluded", "true")];

fn tag_block(keys: &mut Reader) -> Result<Vec<(String, String)>, Wrong> {
    let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    let more = keys.list("eni_tag_block_list", "an object with key and value", |tag| {
        Some((tag.get("key")?.as_str()?.to_owned(), tag.get("value")?.as_str()?.to_owned()))
    })?;
    Ok(ALWAYS_BLOCKED.iter().map(own).chain(more).collect())
}
