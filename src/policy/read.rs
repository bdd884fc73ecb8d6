//! Reads documents field by field: what is wrong is named with its place, and a field that nobody knows is a fault too.

use std::collections::BTreeSet;

use ipnet::IpNet;
use serde_json::Value;

use super::form::{Port, Rule, What};
use super::selector::{Selector, all_of};
use crate::json::shown;
use crate::rules::{ICMP, ICMPV6, SCTP, TCP, UDP};

/// What has been found wrong so far.
#[derive(Default)]
pub struct Faults(Vec<Box<str>>);

impl Faults {
    pub fn add(&mut self, at: &At, want: &str) {
        self.0.push(format!("{} is {}; it must be {want}", at.path, shown(at.value)).into());
    }

    pub fn say(&mut self, what: String) {
        self.0.push(what.into());
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }

    pub fn kept(self) -> Box<[Box<str>]> {
        self.0.into()
    }
}

/// A place in a document.
pub struct At<'a> {
    pub value: &'a Value,
    path: String,
}

impl<'a> At<'a> {
    pub fn root(value: &'a Value) -> At<'a> {
        At { value, path: String::new() }
    }

    /// `null` is not there.
    pub fn field(&self, name: &str) -> Option<At<'a>> {
        let value = self.value.get(name).filter(|value| !value.is_null())?;
        let dot = if self.path.is_empty() { "" } else { "." };
        Some(At { value, path: format!("{}{dot}{name}", self.path) })
    }

    pub fn path(&self) -> &str {
        &self.path
    }

    /// It is an object with no other fields than these.
    pub fn has_only(&self, fields: &[&str], faults: &mut Faults) {
        let Some(object) = self.value.as_object() else { return faults.add(self, "an object") };
        for (name, value) in object.iter().filter(|(name, value)| !value.is_null() && !fields.contains(&&***name)) {
            let _ = value;
            faults.say(format!("{}.{name} is not known; take it out, or a newer version may know it", self.path));
        }
    }

    pub fn list(&self, faults: &mut Faults) -> Vec<At<'a>> {
        let Some(list) = self.value.as_array() else {
            faults.add(self, "a list");
            return Vec::new();
        };
        list.iter().enumerate().map(|(i, value)| At { value, path: format!("{}[{i}]", self.path) }).collect()
    }

    /// The items of a field; none where it is not there.
    pub fn items(&self, name: &str, faults: &mut Faults) -> Vec<At<'a>> {
        self.field(name).map(|field| field.list(faults)).unwrap_or_default()
    }

    pub fn text(&self, faults: &mut Faults) -> &'a str {
        self.value.as_str().unwrap_or_else(|| {
            faults.add(self, "a text");
            ""
        })
    }

    /// Where it is there and not empty.
    pub fn words(&self, name: &str, faults: &mut Faults) -> Option<(At<'a>, &'a str)> {
        let field = self.field(name)?;
        let text = field.text(faults);
        (!text.is_empty()).then_some((field, text))
    }

    pub fn number(&self, from: i64, to: i64, faults: &mut Faults) -> Option<i64> {
        let number = self.value.as_i64().filter(|number| (from..=to).contains(number));
        if number.is_none() {
            faults.add(self, &format!("a number from {from} to {to}"));
        }
        number
    }

    pub fn flag(&self, name: &str, faults: &mut Faults) -> bool {
        let Some(field) = self.field(name) else { return false };
        field.value.as_bool().unwrap_or_else(|| {
            faults.add(&field, "true or false");
            false
        })
    }

    pub fn net(&self, faults: &mut Faults) -> Option<IpNet> {
        let net = self.text(faults).parse::<IpNet>().ok().map(|net| net.trunc());
        if net.is_none() && self.value.is_string() {
            faults.add(self, "a CIDR");
        }
        net
    }

    /// A selector of Kubernetes; an empty one selects everything.
    pub fn selector(&self, faults: &mut Faults) -> Selector {
        self.has_only(&["matchLabels", "matchExpressions"], faults);
        let mut all = Vec::new();
        if let Some(labels) = self.field("matchLabels") {
            let Some(object) = labels.value.as_object() else {
                faults.add(&labels, "an object");
                return Selector::All;
            };
            for key in object.keys() {
                let value = At { value: &object[key], path: format!("{}.{key}", labels.path) };
                all.push(Selector::Equal(key.as_str().into(), value.text(faults).into()));
            }
        }
        all.extend(self.items("matchExpressions", faults).iter().map(|one| one.requirement(faults)));
        all_of(all)
    }

    fn requirement(&self, faults: &mut Faults) -> Selector {
        self.has_only(&["key", "operator", "values"], faults);
        let key = self.words("key", faults).map_or("", |(_, key)| key);
        if key.is_empty() {
            faults.say(format!("{}.key is empty; it must be a label's key", self.path));
        }
        let values: BTreeSet<Box<str>> =
            self.items("values", faults).iter().map(|value| value.text(faults).into()).collect();
        let operator = self.words("operator", faults).map_or("", |(_, operator)| operator);
        if values.is_empty() == matches!(operator, "In" | "NotIn") {
            faults.say(format!("{}.values does not go with operator {operator:?}", self.path));
        }
        let key = key.into();
        match operator {
            "In" => Selector::In(key, values),
            "NotIn" => Selector::In(key, values).negated(),
            "Exists" => Selector::Has(key),
            "DoesNotExist" => Selector::Has(key).negated(),
            _ => {
                faults.say(format!(
                    "{}.operator is {operator:?}; it must be In, NotIn, Exists or DoesNotExist",
                    self.path
                ));
                Selector::All
            }
        }
    }
}

/// Ports of one protocol each, as they stand in a rule; none: all ports of it.
#[derive(Default)]
pub struct ByProtocol(Vec<(u8, Option<Vec<Port>>)>);

impl ByProtocol {
    pub fn add(&mut self, protocol: u8, port: Option<Port>) {
        let known = self.0.iter_mut().find(|(of, _)| *of == protocol);
        match (known, port) {
            (Some((_, ports @ Some(_))), None) => *ports = None,
            (Some((_, Some(ports))), Some(port)) => ports.push(port),
            (Some((_, None)), _) => {}
            (None, port) => self.0.push((protocol, port.map(|port| vec![port]))),
        }
    }

    /// The rule for each protocol: `to_own` where these are the ports of the pod itself.
    pub fn rules(&self, of_all: &Rule, to_own: bool) -> Vec<Rule> {
        let rule = |(protocol, ports): &(u8, Option<Vec<Port>>)| {
            let ports = super::form::Ports { any_of: ports.clone().map(Into::into), none_of: Box::default() };
            let mut what = What { protocol: Some(*protocol), ..What::default() };
            *(if to_own { &mut what.own } else { &mut what.peer }) = ports;
            Rule { what, ..of_all.clone() }
        };
        self.0.iter().map(rule).collect()
    }
}

pub fn protocol(name: &str) -> Option<u8> {
    const NAMES: [(&str, u8); 6] =
        [("TCP", TCP), ("UDP", UDP), ("SCTP", SCTP), ("ICMP", ICMP), ("ICMPv6", ICMPV6), ("UDPLite", 136)];
    NAMES.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, number)| *number)
}

pub fn has_ports(protocol: u8) -> bool {
    matches!(protocol, TCP | UDP | SCTP)
}
