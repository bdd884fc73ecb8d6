//! A page of a list, read object by object: of each only what the caller keeps is in memory when the next one comes.

use std::fmt;

use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::PageMeta;
use super::allowance::Allowance;

/// Where the objects of a page go, what is kept of each, and what each may take.
pub(super) struct Page<'a, T, K> {
    pub kept: &'a mut Vec<K>,
    pub keep: fn(T) -> K,
    pub allowance: &'a Allowance,
}

impl<'de, T: DeserializeOwned, K> DeserializeSeed<'de> for Page<'_, T, K> {
    type Value = PageMeta;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<PageMeta, D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de, T: DeserializeOwned, K> Visitor<'de> for Page<'_, T, K> {
    type Value = PageMeta;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<PageMeta, A::Error> {
        let mut meta = PageMeta::default();
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "metadata" => meta = whole(map.next_value::<Box<RawValue>>()?.as_ref()).map_err(A::Error::custom)?,
                // Those of a table are its rows.
                "items" | "rows" => map.next_value_seed(Items(&mut self))?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(meta)
    }
}

/// What the text of an object says. All that comes from the API server is read here, from text and nothing else: for each
/// further kind of source, all code for all kinds of objects would be there once more.
pub fn whole<T: DeserializeOwned>(object: &RawValue) -> Result<T, serde_json::Error> {
    serde_json::from_slice(object.get().as_bytes())
}

/// The list itself, or `null`, as Go writes an empty one.
struct Items<'a, 'b, T, K>(&'a mut Page<'b, T, K>);

impl<'de, T: DeserializeOwned, K> DeserializeSeed<'de> for Items<'_, '_, T, K> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de, T: DeserializeOwned, K> Visitor<'de> for Items<'_, '_, T, K> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("objects")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Items(page) = self;
        while let Some(object) = seq.next_element::<Box<RawValue>>()? {
            page.kept.push((page.keep)(whole(&object).map_err(A::Error::custom)?));
            page.allowance.renew();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::object::Pod;

    /// The names on a page, and what it says of itself.
    fn read(text: &str) -> Result<(Vec<String>, PageMeta), serde_json::Error> {
        let mut kept = Vec::new();
        let allowance = Allowance::new(1000, Duration::from_secs(60));
        let page = Page { kept: &mut kept, keep: |pod: Pod| pod.meta.name, allowance: &allowance };
        let meta = page.deserialize(&mut serde_json::Deserializer::from_str(text))?;
        Ok((kept, meta))
    }

    #[test]
    fn objects_are_cut_down_one_by_one_whatever_stands_around_them() {
        let (names, meta) = read(
            r#"{"kind": "PodList", "items": [{"metadata": {"name": "a"}}, {"metadata": {"name": "b"}}],
                "metadata": {"resourceVersion": "7", "continue": "more"}}"#,
        )
        .unwrap();
        assert_eq!(names, ["a", "b"]);
        assert_eq!((meta.resource_version.as_str(), meta.r#continue.as_str()), ("7", "more"));
    }

    #[test]
    fn a_list_may_be_null_or_missing_but_nothing_else() {
        assert_eq!(read(r#"{"items": null}"#).unwrap().0, [""; 0]);
        assert_eq!(read("{}").unwrap().0, [""; 0]);
        for (text, why) in [
            (r#"{"items": {}}"#, "invalid type: map, expected objects"),
            ("[]", "invalid type: sequence, expected a list"),
            (r#"{"items": [{"metadata": 5}]}"#, "invalid type: integer `5`"),
        ] {
            let e = read(text).unwrap_err().to_string();
            assert!(e.contains(why), "{text}: {e}");
        }
    }
}
