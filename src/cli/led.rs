//! Where Services lead: by the daemon's word, and where there is none by the kernel's own maps, which know no names.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use serde_json::{Value, json};

use super::face::{Code, Failure};
use super::known::ask;
use crate::error::Error;
use crate::kernel::bpf::services::Services;
use crate::maps::{FrontendKey, NODE_OWN, OWN_NODE_ONLY, Proto, Tables};
use crate::ours;
use crate::rpc::Request;

/// What is led in whose name or address this occurs; and why the kernel was asked, where the daemon does not answer.
pub fn look(matching: &str) -> Result<(Value, Option<String>), Failure> {
    let silence = match ask(&Request::Services { matching: matching.into() }) {
        Ok(shown) => return Ok((shown, None)),
        Err(failure) if failure.code == Code::NoDaemon => failure,
        Err(failure) => return Err(failure),
    };
    match by_kernel(matching)? {
        Some(shown) => Ok((shown, Some(silence.why))),
        None => Err(silence),
    }
}

/// Nothing where no maps are pinned.
fn by_kernel(matching: &str) -> Result<Option<Value>, Error> {
    let Some(services) = Services::peek(Path::new(ours::BPF_ROOT))? else { return Ok(None) };
    let Tables { mut frontends, slots, backends, .. } = services.read()?;
    let slots: HashMap<u32, u32> = slots.into_iter().collect();
    let backends: HashMap<u32, SocketAddr> =
        backends.into_iter().map(|(id, backend)| (id, SocketAddr::new(backend.addr, backend.port))).collect();
    frontends.sort_by_key(|(key, _)| *key);
    let of = |(key, frontend): (FrontendKey, crate::maps::Frontend)| {
        let places = frontend.base..frontend.base.saturating_add(frontend.count);
        let endpoints = places.filter_map(|place| backends.get(slots.get(&place)?));
        let endpoints: Vec<String> = endpoints.map(SocketAddr::to_string).collect();
        json!({"service": "", "address": address(&key), "count": frontend.count, "endpoints": endpoints})
    };
    let all = frontends.into_iter().filter(|(key, _)| address(key).contains(matching)).map(of);
    Ok(Some(json!({"services": all.collect::<Vec<_>>()})))
}

/// Whose node port this is, as `services` names it, where the address is a node's; and whether that node alone answers there: it is another,
/// and the Service keeps to the policy Local.
pub fn node_port(addr: IpAddr, port: u16, protocol: Proto) -> Option<(String, bool)> {
    let Tables { frontends, nodes, .. } = Services::peek(Path::new(ours::BPF_ROOT)).ok()??.read().ok()?;
    let flags = nodes.iter().find(|(node, _)| *node == addr)?.1;
    let fits = |key: &FrontendKey| {
        (key.addr.is_unspecified(), key.addr.is_ipv4(), key.port, key.proto) == (true, addr.is_ipv4(), port, protocol)
    };
    let (key, frontend) = frontends.iter().find(|(key, _)| fits(key))?;
    let is_theirs = flags & NODE_OWN == 0 && frontend.flags & OWN_NODE_ONLY != 0;
    Some((address(key), is_theirs))
}

fn address(key: &FrontendKey) -> String {
    let protocol = if key.proto == Proto::Tcp { "TCP" } else { "UDP" };
    match key.addr.is_unspecified() {
        true if key.addr.is_ipv4() => format!("node port {}/{protocol}", key.port),
        true => format!("node port {}/{protocol} (IPv6)", key.port),
        false => format!("{}/{protocol}", SocketAddr::new(key.addr, key.port)),
    }
}
