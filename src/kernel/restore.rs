//! Puts right what others have changed, object by object, with one look at the kernel for as many plans as there are.
//!
//! Only what a plan names is touched. A look is good until [`Kernel::look_again`]: two hundred pods whose routes are gone cost
//! one list of routes and two hundred requests.

use std::path::Path;

use super::place::Difference;
use super::veth;
use super::{Kernel, Pod, card, ipvlan, link};
use crate::error::{Context, Error};
use crate::ip::Mac;
use crate::plan::{Object, Plan, Veth};

impl Kernel {
    /// What was seen may be old.
    pub fn look_again(&mut self) {
        self.pod = None;
        self.forget();
    }

    /// Looks at all links at once, for many plans.
    pub fn look_at_links(&mut self) -> Result<(), Error> {
        self.host.links()?.into_iter().for_each(|link| self.host.note(link));
        Ok(())
    }

    /// Every difference between the plan and the kernel; with a namespace, in there too.
    pub fn survey(&mut self, plan: &Plan, netns: Option<&Path>) -> Result<Vec<Difference>, Error> {
        self.pod = None;
        if let Some(netns) = netns {
            self.enter(netns)?;
        }
        let mut found = Vec::new();
        for object in &plan.host {
            found.extend(match object {
                Object::Veth(veth) => veth::difference(&mut self.host, self.pod.as_mut(), veth)?,
                Object::Slave(slave) => ipvlan::difference(self.pod.as_mut(), slave)?,
                Object::Card(card) => self.pod.as_mut().map_or(Ok(None), |pod| card::difference_inside(pod, card))?,
                _ => self.host.difference(object)?,
            });
        }
        if let Some(pod) = &mut self.pod {
            for object in &plan.pod {
                found.extend(pod.spoilt(object)?);
            }
        }
        self.pod = None;
        Ok(found)
    }

    /// Makes right what is not as the plan has it, and says what that was. A veth that is gone is made anew in the namespace at
    /// this path, with all that belongs to it; `Cause::Absent` where the namespace is gone too. What is inside is looked at only
    /// on request.
    pub fn restore(&mut self, plan: &Plan, netns: Option<&Path>, inside: bool) -> Result<Vec<Difference>, Error> {
        let found = self.restore_there(plan, netns, inside);
        self.pod = None;
        found
    }

    fn restore_there(&mut self, plan: &Plan, netns: Option<&Path>, inside: bool) -> Result<Vec<Difference>, Error> {
        let mut found = Vec::new();
        for object in &plan.host {
            if let Object::Veth(veth) = object {
                if self.host.link(&veth.name)?.is_none() {
                    return self.remake(plan, veth, netns);
                }
                if let Some(difference) = veth::difference(&mut self.host, None, veth)? {
                    veth::mend(&mut self.host, veth)?;
                    found.push(difference);
                    // With the MAC of a link or its state, the kernel drops what hangs on it.
                    self.forget();
                }
            } else if let Some(difference) = self.host.difference(object)? {
                self.host.make(object).context(|| object.to_string())?;
                found.push(difference);
            }
        }
        if let Some(netns) = netns.filter(|_| inside) {
            self.enter(netns)?;
            if let Some(difference) = self.restore_slave(plan)? {
                return Ok(vec![difference]);
            }
            let pod = self.pod.as_mut().expect("it was entered");
            found.extend(pod.restore(plan).context(|| format!("in {}", netns.display()))?);
        }
        Ok(found)
    }

    /// A slave that is gone, or another's, is made anew with all that belongs to it.
    fn restore_slave(&mut self, plan: &Plan) -> Result<Option<Difference>, Error> {
        let slave = plan.host.iter().find_map(super::as_slave);
        let Some(slave) = slave else { return Ok(None) };
        let difference = ipvlan::difference(self.pod.as_mut(), slave)?;
        if difference.is_some() {
            self.apply(plan)?;
        }
        Ok(difference)
    }

    fn remake(&mut self, plan: &Plan, veth: &Veth, netns: Option<&Path>) -> Result<Vec<Difference>, Error> {
        let gone = || format!("link {} is gone", veth.name);
        let netns = netns
            .ok_or_else(|| Error::refused("its pod's network namespace is not known: re-create the pod"))
            .context(gone)?;
        self.enter(netns)?;
        let pod = self.pod.as_mut().expect("it was entered");
        if let Some(inner) = pod.place.link(&veth.peer)? {
            let reason = format!("its pod has another {}, or it was renamed: re-create the pod", inner.name);
            return Err(Error::refused(reason)).context(gone);
        }
        veth::create(&mut self.host, pod, veth)?;
        self.begun = Some(veth.clone());
        self.apply(plan)?;
        Ok(vec![Difference::absent(format!("link {}", veth.name))])
    }

    /// The card of this plan has its own MAC again, by which it is found when it is home. A namespace that is gone is no fault.
    pub fn mend_card(&mut self, plan: &Plan, netns: &Path) -> Result<(), Error> {
        let Some(card) = plan.host.iter().find_map(super::as_card) else { return Ok(()) };
        let mended = self.enter(netns).and_then(|()| card::mend(self.pod.as_mut().expect("it was entered"), card));
        self.pod = None;
        match mended {
            Err(e) if !e.is_absent() => Err(e),
            _ => Ok(()),
        }
    }

    /// Gives a link its MAC back.
    pub fn set_mac(&mut self, ifindex: u32, mac: Mac) -> Result<(), Error> {
        self.host.act(link::set_up(ifindex, None, Some(mac))).context(|| format!("set the MAC of link {ifindex}"))
    }
}

impl Pod {
    /// What is missing or wrong inside. A route that the pod has put in the place of ours is its own will.
    fn spoilt(&mut self, object: &Object) -> Result<Option<Difference>, Error> {
        let difference = self.difference(object)?;
        let own_will = |d: &Difference| matches!(object, Object::Route(_)) && d.seen.is_some();
        Ok(difference.filter(|difference| !own_will(difference)))
    }

    fn restore(&mut self, plan: &Plan) -> Result<Vec<Difference>, Error> {
        let mut found = Vec::new();
        for object in &plan.host {
            match object {
                Object::Veth(veth) => found.extend(self.restore_inner_end(veth)?),
                Object::Card(card) => found.extend(card::mend(self, card)?),
                _ => {}
            }
        }
        for object in &plan.pod {
            if let Some(difference) = self.spoilt(object)? {
                self.correct(object)?;
                found.push(difference);
            }
        }
        Ok(found)
    }

    fn restore_inner_end(&mut self, veth: &Veth) -> Result<Option<Difference>, Error> {
        let Some(seen) = self.place.link(&veth.peer)? else { return Ok(None) };
        if !seen.is_veth() || seen.mac == Some(veth.peer_mac) {
            return Ok(None);
        }
        let difference = veth::mac_difference(&seen, veth.peer_mac);
        self.place.act(link::set_up(seen.ifindex, None, Some(veth.peer_mac)))?;
        self.place.forget();
        Ok(Some(difference))
    }
}
