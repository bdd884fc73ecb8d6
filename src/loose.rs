//! JSON that may be wrong in places: what has another shape than it should is marked, and all the rest is read.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::json::shortened;

/// A field as it was sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Loose<T> {
    /// Not there, or `null`.
    #[default]
    Absent,
    Is(T),
    /// Of another shape; what it was, for people.
    Wrong(String),
}

impl<T: Default> Loose<T> {
    /// What is absent or wrong counts as nothing.
    pub fn or_default(self) -> T {
        match self {
            Loose::Is(value) => value,
            _ => T::default(),
        }
    }
}

/// What a field may be read from; every shape that is not named is wrong.
pub trait Shape: Sized {
    fn text(_: &str) -> Option<Self> {
        None
    }

    fn whole(_: i64) -> Option<Self> {
        None
    }

    fn flag(_: bool) -> Option<Self> {
        None
    }

    fn list<'de, A: SeqAccess<'de>>(mut list: A) -> Result<Option<Self>, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }

    fn object<'de, A: MapAccess<'de>>(mut object: A) -> Result<Option<Self>, A::Error> {
        while object.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(None)
    }
}

impl Shape for String {
    fn text(text: &str) -> Option<String> {
        Some(text.to_owned())
    }
}

impl Shape for i64 {
    fn whole(number: i64) -> Option<i64> {
        Some(number)
    }
}

impl Shape for bool {
    fn flag(flag: bool) -> Option<bool> {
        Some(flag)
    }
}

impl<T: Shape> Shape for Vec<Loose<T>> {
    fn list<'de, A: SeqAccess<'de>>(mut list: A) -> Result<Option<Self>, A::Error> {
        let mut all = Vec::new();
        while let Some(item) = list.next_element::<Loose<T>>()? {
            all.push(item);
        }
        Ok(Some(all))
    }
}

/// Makes a struct with `Deserialize` a shape: a JSON object.
#[macro_export]
macro_rules! object_shape {
    ($($name:ty),+) => {$(
        impl $crate::loose::Shape for $name {
            fn object<'de, A: serde::de::MapAccess<'de>>(object: A) -> Result<Option<Self>, A::Error> {
                serde::Deserialize::deserialize(serde::de::value::MapAccessDeserializer::new(object)).map(Some)
            }
        }
    )+};
}

impl<'de, T: Shape> Deserialize<'de> for Loose<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Loose<T>, D::Error> {
        from.deserialize_any(Anything(PhantomData))
    }
}

struct Anything<T>(PhantomData<T>);

impl<T> Anything<T> {
    fn judge<E>(read: Option<T>, said: impl fmt::Display) -> Result<Loose<T>, E> {
        Ok(read.map_or_else(|| Loose::Wrong(shortened(&said.to_string())), Loose::Is))
    }
}

impl<'de, T: Shape> Visitor<'de> for Anything<T> {
    type Value = Loose<T>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Loose<T>, E> {
        Ok(Loose::Absent)
    }

    fn visit_str<E>(self, text: &str) -> Result<Loose<T>, E> {
        Self::judge(T::text(text), format_args!("{text:?}"))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Loose<T>, E> {
        Self::judge(T::whole(number), number)
    }

    fn visit_u64<E>(self, number: u64) -> Result<Loose<T>, E> {
        Self::judge(i64::try_from(number).ok().and_then(T::whole), number)
    }

    fn visit_f64<E>(self, number: f64) -> Result<Loose<T>, E> {
        Self::judge(None, number)
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Loose<T>, E> {
        Self::judge(T::flag(flag), flag)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Loose<T>, A::Error> {
        Self::judge(T::list(list)?, "a list")
    }

    fn visit_map<A: MapAccess<'de>>(self, object: A) -> Result<Loose<T>, A::Error> {
        Self::judge(T::object(object)?, "an object")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, PartialEq, serde::Deserialize)]
    #[serde(default)]
    struct Pair {
        name: Loose<String>,
        ports: Loose<Vec<Loose<i64>>>,
        on: Loose<bool>,
    }
    object_shape!(Pair);

    fn read(text: &str) -> Loose<Pair> {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn what_is_wrong_is_marked_and_the_rest_is_read() {
        let Loose::Is(pair) =
            read(r#"{"name": 7, "ports": [1, "x", 1.5, null, [2], -3], "on": {"a": [{}]}, "more": {}}"#)
        else {
            panic!("an object")
        };
        let wrong = |said: &str| Loose::Wrong(said.to_owned());
        assert_eq!(pair.name, Loose::Wrong("7".into()));
        let ports = vec![Loose::Is(1), wrong("\"x\""), wrong("1.5"), Loose::Absent, wrong("a list"), Loose::Is(-3)];
        assert_eq!(pair.ports, Loose::Is(ports));
        assert_eq!(pair.on, Loose::Wrong("an object".into()));
        let Loose::Is(pair) = read(r#"{"name": "a", "on": true, "ports": null}"#) else { panic!("an object") };
        assert_eq!(pair, Pair { name: Loose::Is("a".into()), ports: Loose::Absent, on: Loose::Is(true) });
        assert_eq!(read("[1, {}]"), Loose::Wrong("a list".into()));
        assert_eq!(read("18446744073709551615"), Loose::Wrong("18446744073709551615".into()));
    }

    #[test]
    fn text_that_is_no_json_is_an_error() {
        for text in ["", "{", "[1,", "{\"name\": \"a\"", "nul"] {
            assert!(serde_json::from_str::<Loose<Pair>>(text).is_err(), "{text}");
        }
    }
}
