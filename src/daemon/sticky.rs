//! Addresses of pods that shall have them again, in files that outlive a reboot: `/var/lib/terway/sticky/<ip>.json`.
//!
//! They are written without waiting for the disk: an ADD does not pay for a sync. What a power cut takes is what was written in
//! the last seconds before (ext4 commits every five): such a pod comes back with another address, and nothing worse.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::ledger::{Contents, Ledger, resting_key};
use crate::error::Error;
use crate::gather::Gather;
use crate::ip::IpPair;
use crate::pod::PodName;
use crate::pool::{Now, Reserved};

const FOLDER: &str = "sticky";

/// One such file. Fields may be added, not renamed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    pub pod: PodName,
    pub eni: String,
    pub ip: IpPair,
    /// Seconds since 1970, as the machine's own clock starts anew with each boot; none while the pod has the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<f64>,
}

pub struct Sticky {
    files: Ledger,
    /// What there are files of, so that others cost the disk nothing.
    written: BTreeSet<IpPair>,
}

impl Sticky {
    /// What cannot be read, or not be had at all, is lost: pods get other addresses, which is no reason not to start.
    pub fn open(root: &Path) -> (Sticky, Vec<Kept>) {
        let files = Ledger::at(root);
        let kept: Vec<Kept> = files.folder(FOLDER).and_then(|()| files.read(FOLDER)).unwrap_or_else(|e| {
            log::error!("addresses kept for pods are not known: {e}");
            Vec::new()
        });
        (Sticky { written: kept.iter().map(|k| k.ip).gather(), files }, kept)
    }

    /// The pod has the address.
    pub fn hold(&mut self, pod: &PodName, eni: &str, ip: IpPair) -> Result<(), Error> {
        self.write(Kept { pod: pod.clone(), eni: eni.into(), ip, until: None })
    }

    /// The pod has gone; for so long its next one has a right to the address.
    pub fn reserve(&mut self, pod: &PodName, eni: &str, ip: IpPair, left: Duration) -> Result<(), Error> {
        let until = Some((wall_clock() + left).as_secs_f64());
        self.write(Kept { pod: pod.clone(), eni: eni.into(), ip, until })
    }

    pub fn free(&mut self, ip: IpPair) -> Result<(), Error> {
        if self.written.remove(&ip) { self.files.erase(FOLDER, &resting_key(&ip)) } else { Ok(()) }
    }

    fn write(&mut self, kept: Kept) -> Result<(), Error> {
        self.written.insert(kept.ip);
        self.files.save(FOLDER, &resting_key(&kept.ip), &kept)
    }

    /// What is kept for pods that are not there, and until when: what the ledger does not know any better, because of a
    /// reboot or because it was lost. A pod that had its address when the machine went down has a right to it from now on.
    pub fn reservations(
        &mut self,
        kept: Vec<Kept>,
        contents: &mut Contents,
        longest: Duration,
        now: Now,
    ) -> Vec<Reserved> {
        let mut found = Vec::new();
        for Kept { pod, eni, ip, until } in kept {
            if let Some(lease) = contents.leases.iter_mut().find(|lease| lease.ip == ip) {
                lease.sticky |= lease.pod == pod;
                continue;
            }
            if contents.resting.iter().any(|resting| resting.ip == ip) {
                continue;
            }
            let left = until.map_or(longest, |until| left(until, wall_clock(), longest));
            let noted = if left.is_zero() { self.free(ip) } else { self.reserve(&pod, &eni, ip, left) };
            if let Err(e) = noted {
                log::error!("address {ip} kept for {pod}: {e}");
            }
            if !left.is_zero() {
                log::info!("{ip} is kept for pod {pod} for another {} s", left.as_secs());
                found.push(Reserved { pod, eni, ip, until: now + left });
            }
        }
        self.hold_all(contents);
        found
    }

    /// Leases that came to us with the right to be kept.
    fn hold_all(&mut self, contents: &Contents) {
        for lease in
            contents.leases.iter().filter(|lease| lease.sticky && !self.written.contains(&lease.ip)).collect::<Vec<_>>()
        {
            if let Err(e) = self.hold(&lease.pod, &lease.eni.id, lease.ip) {
                log::error!("address {} kept for {}: {e}", lease.ip, lease.pod);
            }
        }
    }
}

/// What is left of a reservation. A clock that was set back makes it no longer than one can be.
fn left(until: f64, now: Duration, longest: Duration) -> Duration {
    Duration::try_from_secs_f64(until - now.as_secs_f64()).unwrap_or_default().min(longest)
}

fn wall_clock() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::ledger::Resting;

    const LONGEST: Duration = Duration::from_secs(300);
    const NOW: Now = Duration::from_secs(77);

    fn folder(name: &str) -> std::path::PathBuf {
        let path = std::env::temp_dir().join(format!("terway-sticky-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        path
    }

    fn ip(text: &str) -> IpPair {
        IpPair::v4(text.parse().unwrap())
    }

    fn web() -> PodName {
        PodName::new("default", "web-0")
    }

    #[test]
    fn a_clock_that_jumps_makes_no_reservation_longer_than_one_can_be() {
        let at = Duration::from_secs(1_000_000);
        for (until, want) in [(1_000_100.0, 100), (1_000_000.0, 0), (999_000.0, 0), (2_000_000.0, 300), (f64::NAN, 0)] {
            assert_eq!(left(until, at, LONGEST), Duration::from_secs(want), "{until}");
        }
    }

    #[test]
    fn a_reboot_leaves_what_was_held_and_what_was_kept() {
        let root = folder("reboot");
        let (mut sticky, _) = Sticky::open(&root);
        sticky.hold(&web(), "eni-1", ip("10.0.0.5")).unwrap();
        sticky.reserve(&web(), "eni-1", ip("10.0.0.6"), Duration::from_secs(100)).unwrap();
        sticky.reserve(&web(), "eni-1", ip("10.0.0.7"), Duration::ZERO).unwrap();
        std::fs::write(root.join("sticky/broken.json"), "{").unwrap();
        let (mut sticky, kept) = Sticky::open(&root);
        let found = sticky.reservations(kept, &mut Contents::default(), LONGEST, NOW);
        let mut left: Vec<(IpPair, u64)> =
            found.iter().map(|r| (r.ip, (r.until - NOW).as_secs_f64().ceil() as u64)).collect();
        left.sort();
        assert_eq!(left, [(ip("10.0.0.5"), 300), (ip("10.0.0.6"), 100)]);
        // The next start finds an end to what had none.
        let (_, kept) = Sticky::open(&root);
        assert!(kept.len() == 2 && kept.iter().all(|k| k.until.is_some()), "{kept:?}");
        std::fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn what_the_ledger_knows_counts() {
        let root = folder("ledger");
        let (mut sticky, _) = Sticky::open(&root);
        let lease = crate::rpc::example_lease();
        sticky.hold(&lease.pod, "eni-1", lease.ip).unwrap();
        sticky.reserve(&web(), "eni-1", ip("10.0.0.6"), LONGEST).unwrap();
        let (mut sticky, kept) = Sticky::open(&root);
        let resting = Resting::new("eni-1".into(), ip("10.0.0.6"), NOW, Some(web()));
        let mut contents = Contents { leases: vec![lease], resting: vec![resting], ..Contents::default() };
        assert_eq!(sticky.reservations(kept, &mut contents, LONGEST, NOW), []);
        assert!(contents.leases[0].sticky);
        sticky.free(ip("10.0.0.6")).unwrap();
        assert_eq!(Sticky::open(&root).1.len(), 1);
        std::fs::remove_dir_all(root).unwrap();
    }
}
