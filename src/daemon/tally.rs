//! Counts what calls to the cloud bring and take of addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::eni::{Eni, Fault, PER_PREFIX};
use crate::pool::{Call, Outcome};

/// Counted on whatever thread a call was made, and for as long as the process lives.
static TALLY: Mutex<Tally> = Mutex::new(Tally { enis: BTreeMap::new(), asked: BTreeMap::new(), disposed: 0 });

pub struct Tally {
    /// ENIs that are known, by their ids.
    enis: BTreeMap<String, Known>,
    /// Addresses that ENIs were given, or were refused, by the ENI's MAC; one that was never made has none.
    pub asked: BTreeMap<(String, Status), u64>,
    /// Addresses that were given back.
    pub disposed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    Succeed,
    Fail,
}

impl Status {
    /// The old Terway's words.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Succeed => "succeed",
            Status::Fail => "fail",
        }
    }
}

struct Known {
    mac: String,
    addresses: u64,
}

pub fn tally() -> MutexGuard<'static, Tally> {
    TALLY.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tally {
    /// A call was made, and this came of it.
    pub fn made(&mut self, call: &Call, result: &Result<Outcome, Fault>) {
        let prefixed = |count: usize| count as u64 * u64::from(PER_PREFIX);
        match (call, result) {
            (Call::Create { .. }, Ok(Outcome::Created(eni))) => {
                self.know(eni);
                self.asked(&eni.id, Status::Succeed, eni.addresses().count() as u64);
            }
            (Call::Create { addresses, v6, .. }, Err(_)) => self.asked("", Status::Fail, u64::from(addresses + v6)),
            (Call::Assign { eni, .. }, Ok(Outcome::Assigned(given))) => self.given(eni, given.len() as u64),
            (Call::Assign { eni, count, .. }, Err(_)) => self.asked(eni, Status::Fail, u64::from(*count)),
            (Call::AssignPrefixes { eni, .. }, Ok(Outcome::Prefixes(given))) => self.given(eni, prefixed(given.len())),
            (Call::AssignPrefixes { eni, count, .. }, Err(_)) => {
                self.asked(eni, Status::Fail, prefixed(*count as usize));
            }
            (Call::Unassign { eni, addresses }, Ok(_)) => self.taken(eni, addresses.len() as u64),
            (Call::UnassignPrefixes { eni, prefixes }, Ok(_)) => self.taken(eni, prefixed(prefixes.len())),
            (Call::Delete { eni }, Ok(_)) => {
                self.disposed += self.enis.get(eni).map_or(0, |known| known.addresses);
                self.forget(|id| id == eni);
            }
            (_, Ok(Outcome::Seen(enis))) => enis.iter().for_each(|eni| self.know(eni)),
            (_, Ok(Outcome::SeenAll(enis))) => {
                self.forget(|id| enis.iter().all(|eni| eni.id != id));
                enis.iter().for_each(|eni| self.know(eni));
            }
            _ => {}
        }
    }

    fn know(&mut self, eni: &Eni) {
        let (mac, addresses) = (eni.mac.to_string(), eni.addresses().count() as u64);
        match self.enis.get_mut(&eni.id) {
            Some(known) if known.mac == mac => known.addresses = addresses,
            _ => drop(self.enis.insert(eni.id.clone(), Known { mac, addresses })),
        }
    }

    /// An ENI that is gone is told of no more: a node makes many in its life.
    fn forget(&mut self, is_gone: impl Fn(&str) -> bool) {
        self.enis.retain(|id, _| !is_gone(id));
        let macs: BTreeSet<&str> = self.enis.values().map(|known| &*known.mac).collect();
        self.asked.retain(|(mac, _), _| mac.is_empty() || macs.contains(&**mac));
    }

    fn given(&mut self, eni: &str, count: u64) {
        self.asked(eni, Status::Succeed, count);
        self.enis.get_mut(eni).into_iter().for_each(|known| known.addresses += count);
    }

    fn taken(&mut self, eni: &str, count: u64) {
        self.disposed += count;
        self.enis.get_mut(eni).into_iter().for_each(|known| known.addresses = known.addresses.saturating_sub(count));
    }

    fn asked(&mut self, eni: &str, status: Status, count: u64) {
        let mac = self.enis.get(eni).map_or_else(String::new, |known| known.mac.clone());
        *self.asked.entry((mac, status)).or_default() += count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eni::FaultKind;
    use crate::ip::Family;

    fn eni() -> Eni {
        serde_json::from_value(serde_json::json!({
            "id": "eni-1", "mac": "00:16:3e:00:00:01", "kind": "Secondary", "state": "InUse", "instance": null,
            "vswitch": "vsw-1", "zone": "z", "primary": "10.0.0.1", "v4": ["10.0.0.1", "10.0.0.2"], "v6": [],
            "security_groups": [], "tags": {}, "description": "",
        }))
        .unwrap()
    }

    #[test]
    fn an_eni_that_goes_takes_all_that_it_was_given() {
        let mut tally = Tally { enis: BTreeMap::new(), asked: BTreeMap::new(), disposed: 0 };
        let (eni, family) = (eni(), Family::V4);
        let (id, mac) = (eni.id.clone(), eni.mac.to_string());
        tally.made(&Call::LookAll, &Ok(Outcome::SeenAll(vec![eni])));
        let assign = Call::Assign { eni: id.clone(), family, count: 2, token: "t".into() };
        let given = vec!["10.0.0.8".parse().unwrap(), "10.0.0.9".parse().unwrap()];
        tally.made(&assign, &Ok(Outcome::Assigned(given.clone())));
        let none = String::new;
        let kind = FaultKind::Unknown;
        let refused = Fault { kind, action: none(), code: none(), message: none(), request_id: none() };
        tally.made(&assign, &Err(refused));
        let back = Call::Unassign { eni: id.clone(), addresses: given[..1].to_vec() };
        tally.made(&back, &Ok(Outcome::Unassigned));
        assert_eq!(tally.disposed, 1);
        let counts: Vec<_> = tally.asked.iter().map(|((mac, status), n)| (mac.clone(), status.as_str(), *n)).collect();
        assert_eq!(counts, [(mac.clone(), "succeed", 2), (mac, "fail", 2)]);
        tally.made(&Call::Delete { eni: id }, &Ok(Outcome::Deleted));
        assert_eq!(tally.disposed, 1 + 3);
        assert!(tally.asked.is_empty() && tally.enis.is_empty(), "a row for each ENI that ever was");
    }

    #[test]
    fn enis_that_others_take_away_leave_no_rows_and_refusals_stay_counted() {
        let mut tally = Tally { enis: BTreeMap::new(), asked: BTreeMap::new(), disposed: 0 };
        for n in 0..100 {
            let mut eni = eni();
            eni.id = format!("eni-{n}");
            eni.mac = format!("00:16:3e:00:01:{n:02x}").parse().unwrap();
            tally.made(&Call::LookAll, &Ok(Outcome::SeenAll(vec![eni.clone()])));
            tally.given(&eni.id, 1);
        }
        tally.asked("", Status::Fail, 3);
        tally.made(&Call::LookAll, &Ok(Outcome::SeenAll(Vec::new())));
        let counts: Vec<_> = tally.asked.iter().map(|((mac, status), n)| (&**mac, status.as_str(), *n)).collect();
        assert_eq!((counts, tally.enis.len()), (vec![("", "fail", 3)], 0));
    }
}
