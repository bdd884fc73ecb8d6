//! What netfilter and IPVS hold, as their own tools and files print it; nothing is changed, and no module is loaded.

use std::process::Stdio;

use super::iptables::tool;
use crate::error::{Context, Error};
use crate::plan::Family;

/// By what is here it is told which of iptables' two kinds kube-proxy has chosen.
const PROXY: &str = ":KUBE-SERVICES ";

/// All tables of iptables. Where kube-proxy's chains are not among them, those of the kinds that are not the node's own too.
pub fn iptables(family: Family) -> Result<String, Error> {
    let of = if family == Family::V4 { "iptables" } else { "ip6tables" };
    let mut said = print(&format!("{of}-save"), &[])?;
    for kind in ["legacy", "nft"] {
        if said.contains(PROXY) {
            break;
        }
        // Not every node has both.
        if let Ok(other) = print(&format!("{of}-{kind}-save"), &[])
            && other.contains(PROXY)
        {
            said += &other;
        }
    }
    Ok(said)
}

/// kube-proxy's table of nftables, in JSON. None: there is no such table, or no nft(8) to ask.
pub fn nftables(family: Family) -> Option<String> {
    let family = if family == Family::V4 { "ip" } else { "ip6" };
    print("nft", &["-j", "list", "table", family, "kube-proxy"]).ok()
}

/// The virtual servers of IPVS. None where the kernel has none.
pub fn ipvs() -> Option<String> {
    std::fs::read_to_string("/proc/net/ip_vs").ok()
}

fn print(program: &str, args: &[&str]) -> Result<String, Error> {
    let output = tool(program).args(args).stdin(Stdio::null()).output().context(|| format!("run {program}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(Error::refused(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim())))
}
