//! The API server's own Service, where we ask by its address: whoever is led to endpoints that are gone never hears of the new ones. Its
//! frontends are taken out of the map by turns, so that kube-proxy beside leads there, which has not heard of the old ones only.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::kernel::bpf::services::Services;
use crate::maps::{Frontend, FrontendKey, Write};

/// How long nobody must have been reached.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long each way is tried. A watch rests for half of it at most between two attempts.
const TURN: Duration = Duration::from_secs(60);

pub struct Aside {
    /// None: the server has a name, or an address that nobody leads elsewhere.
    server: Option<IpAddr>,
    /// What was taken out of the map and has not been written since.
    out: Vec<(FrontendKey, Frontend)>,
    turned: Option<Instant>,
}

impl Aside {
    pub fn new(server: Option<IpAddr>) -> Aside {
        Aside { server, out: Vec::new(), turned: None }
    }

    /// When the other way is to be tried; `unreached`: since when nobody was reached.
    pub fn due(&self, unreached: Option<Instant>) -> Option<Instant> {
        self.server?;
        let next = self.turned.map(|at| at + TURN);
        if self.out.is_empty() { next.max(Some(unreached? + PATIENCE)) } else { next }
    }

    /// Tries the other way in these maps, if there are any.
    pub fn turn(&mut self, services: Option<&Services>, now: Instant) -> Result<(), Error> {
        self.turned = Some(now);
        let (Some(services), Some(server)) = (services, self.server) else { return Ok(()) };
        if !self.out.is_empty() {
            let back = self.out.iter().map(|(key, value)| Write::Frontend { key: *key, value: *value });
            write(services, back.collect())?;
            self.out.clear();
            return Ok(());
        }
        self.out = services.frontends_at(server)?;
        if !self.out.is_empty() {
            log::warn!("nobody is reached at {server} where this node leads: for a while kube-proxy is to");
        }
        write(services, self.out.iter().map(|(key, _)| Write::RemoveFrontend(*key)).collect())
    }

    /// What is written is not put back.
    pub fn hear(&mut self, writes: &[Write]) {
        let is_written = |at: &FrontendKey| {
            writes
                .iter()
                .any(|write| matches!(write, Write::Frontend { key, .. } | Write::RemoveFrontend(key) if key == at))
        };
        self.out.retain(|(key, _)| !is_written(key));
    }
}

fn write(services: &Services, writes: Vec<Write>) -> Result<(), Error> {
    services.write(&writes).map_err(|(_, e)| e)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::maps::Proto;

    #[test]
    fn each_way_is_tried_by_turns_while_nobody_is_reached() {
        let (begun, second) = (Instant::now(), Duration::from_secs(1));
        let server = IpAddr::from([172, 21, 0, 1]);
        let mut aside = Aside::new(Some(server));
        assert_eq!((aside.due(None), aside.due(Some(begun))), (None, Some(begun + 30 * second)));
        assert_eq!(Aside::new(None).due(Some(begun)), None);
        // There was nothing to take out.
        aside.turn(None, begun + 30 * second).unwrap();
        assert_eq!((aside.due(None), aside.due(Some(begun))), (None, Some(begun + 90 * second)));
        assert_eq!(aside.due(Some(begun + 100 * second)), Some(begun + 130 * second));
        // What is out comes back, whoever is reached, unless it has been written meanwhile.
        let key = |port| FrontendKey { addr: server, port, proto: Proto::Tcp };
        let value = Frontend { set: 1, base: 0, count: 1, affinity: 0, flags: 0 };
        aside.out = vec![(key(443), value), (key(444), value)];
        assert_eq!((aside.due(None), aside.due(Some(begun))), (Some(begun + 90 * second), Some(begun + 90 * second)));
        aside.hear(&[Write::Frontend { key: key(443), value }]);
        assert_eq!(aside.out, [(key(444), value)]);
        aside.hear(&[Write::RemoveFrontend(key(444))]);
        assert_eq!(aside.due(None), None);
    }
}
