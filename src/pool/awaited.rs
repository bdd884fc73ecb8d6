//! ENIs that are wanted and do not come: people hear of them, nobody counts on them any more, and in the end they are given back.

use std::time::Duration;

use super::Now;
use super::calls::Verb;
use super::eni::Goal;
use super::state::State;
use crate::eni::EniState;

/// How long an ENI is counted on that is not attached.
const COUNTED_ON: Duration = Duration::from_secs(120);
/// How long it is waited for.
const GIVEN_UP: Duration = Duration::from_secs(600);

impl State {
    pub fn await_enis(&mut self) {
        let (now, are_moved) = (self.now, self.are_moved());
        for nic in self.nics.values_mut() {
            let since = nic.awaited.filter(|_| are_moved).unwrap_or(now);
            nic.awaited = (nic.kept() && nic.state != EniState::InUse).then_some(since);
        }
        let awaited: Vec<(String, Now)> =
            self.nics.iter().filter_map(|(id, nic)| Some((id.clone(), nic.awaited?))).collect();
        awaited.iter().for_each(|(id, since)| self.lose_patience(id, *since));
    }

    /// The cloud answers, and is not known to refuse what brings an ENI up: else it is not the ENI that is waited for.
    fn are_moved(&self) -> bool {
        let refused = |verb| self.barrier(verb, self.now).is_some();
        self.gate.outage().is_none() && ![Verb::Attach, Verb::Look].into_iter().any(refused)
    }

    fn lose_patience(&mut self, id: &str, since: Now) {
        let waited = self.now - since;
        if waited < COUNTED_ON {
            return self.at(since + COUNTED_ON);
        }
        let needed = self.needed(id);
        let nic = self.nics.get_mut(id).expect("the caller knows the ENI");
        if nic.complaint.is_none() {
            let why =
                format!("it is {:?} in the cloud and has not been attached for {} s", nic.state, waited.as_secs());
            nic.complaint = Some(why.clone());
            self.tell(None, true, "ResourceInvalid", format!("{id} is not counted on: {why}"));
        }
        if !needed && waited < GIVEN_UP {
            self.at(since + GIVEN_UP);
        } else if !needed {
            self.nics.get_mut(id).expect("just seen").goal = Goal::GiveBack;
        }
    }
}
