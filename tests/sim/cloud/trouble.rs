//! What goes wrong on purpose: which calls, how often, in which way; the same for the same seed.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

/// One thing that goes wrong.
#[derive(Debug, Clone, PartialEq)]
pub struct Trouble {
    /// The action it befalls, `"metadata"` for the metadata service, or any API action.
    pub action: Option<String>,
    pub when: When,
    pub kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum When {
    /// The next so many calls.
    Next(u32),
    /// After letting so many calls pass, the one after them.
    After(u32),
    /// Each call with this probability, 0 to 1.
    Odds(f64),
    Always,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// The work is done, then the connection closes without a reply.
    LoseReply,
    /// Nothing is done and this is answered.
    Refuse { status: u16, code: String },
    /// The request arrives twice, as through a proxy that repeats it; the second answer is the one heard.
    Repeat,
    /// The answer comes late.
    Late(Duration),
    /// The answer breaks off after so many bytes of its body.
    Truncate(usize),
    /// The work is done and the answer is a page of HTML.
    Garbage,
    /// The work is done and the answer is well-formed but untrue.
    Lie(Lie),
    /// Nothing is done and nothing is said until the client gives up.
    Silence,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// An address that is not in the vSwitch.
    Outside,
    /// An address that another ENI holds.
    Duplicate,
    /// One address fewer than were assigned.
    Short,
}

impl Kind {
    pub fn internal_error() -> Kind {
        Kind::Refuse { status: 500, code: "InternalError".into() }
    }

    pub fn unavailable() -> Kind {
        Kind::Refuse { status: 503, code: "ServiceUnavailable".into() }
    }

    pub fn throttling() -> Kind {
        Kind::Refuse { status: 400, code: "Throttling".into() }
    }
}

/// The troubles in force, asked once per call; the first that applies is taken.
#[derive(Debug)]
pub struct Plan {
    seed: u64,
    troubles: Vec<Trouble>,
    asked: BTreeMap<String, u64>,
}

impl Plan {
    pub fn new(seed: u64) -> Plan {
        Plan { seed, troubles: Vec::new(), asked: BTreeMap::new() }
    }

    pub fn add(&mut self, trouble: Trouble) {
        self.troubles.push(trouble);
    }

    pub fn clear(&mut self) {
        self.troubles.clear();
    }

    pub fn next(&mut self, action: &str) -> Option<Kind> {
        let count = self.asked.entry(action.into()).or_default();
        *count += 1;
        // From the call's own number, so that calls of other actions in between change nothing.
        let mut dice = fastrand::Rng::with_seed(self.seed ^ fnv(action) ^ count.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let hit = self.troubles.iter_mut().position(|t| t.befalls(action) && t.when.strikes(&mut dice))?;
        let kind = self.troubles[hit].kind.clone();
        if matches!(self.troubles[hit].when, When::Next(0)) {
            self.troubles.remove(hit);
        }
        Some(kind)
    }
}

impl Trouble {
    fn befalls(&self, action: &str) -> bool {
        self.action.as_deref().map_or(action != "metadata", |a| a == action)
    }
}

impl When {
    /// Whether it is this call's turn; counts down.
    fn strikes(&mut self, dice: &mut fastrand::Rng) -> bool {
        match self {
            When::Next(0) => false,
            When::Next(left) => {
                *left -= 1;
                true
            }
            When::After(0) => {
                *self = When::Next(0);
                true
            }
            When::After(left) => {
                *left -= 1;
                false
            }
            When::Odds(p) => dice.f64() < *p,
            When::Always => true,
        }
    }
}

fn fnv(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
}

/// Makes an answer untrue: changes the last secondary address that it names.
pub fn tell(lie: Lie, answer: &mut Value, others: &str) {
    let Some(list) = last_addresses(answer) else { return };
    let word = match lie {
        Lie::Short => {
            list.pop();
            return;
        }
        Lie::Outside => "203.0.113.77",
        Lie::Duplicate => others,
    };
    match list.last_mut() {
        Some(Value::String(address)) => *address = word.into(),
        Some(Value::Object(set)) => {
            set.insert("PrivateIpAddress".into(), word.into());
        }
        _ => {}
    }
}

/// The last list of private addresses in an answer, be they strings or sets with a `PrivateIpAddress`.
fn last_addresses(value: &mut Value) -> Option<&mut Vec<Value>> {
    match value {
        Value::Object(fields) => fields.iter_mut().rev().find_map(|(name, value)| match is_address_list(name, value) {
            true => value.as_array_mut(),
            false => last_addresses(value),
        }),
        Value::Array(list) => list.iter_mut().rev().find_map(last_addresses),
        _ => None,
    }
}

fn is_address_list(name: &str, value: &Value) -> bool {
    let first = value.as_array().and_then(|list| list.first());
    first.is_some_and(|first| match name {
        "PrivateIpAddress" => first.is_string(),
        "PrivateIpSet" => first.is_object(),
        _ => false,
    })
}
