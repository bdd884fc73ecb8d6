//! The machine: kernel, room, the runtime's configuration, and others who manage networks.

use std::fs;
use std::path::{Path, PathBuf};

use super::super::finding::Finding;
use super::{Complaint, Patient};
use crate::error::Error;
use crate::kernel;
use crate::ours;
use crate::rpc::Marker;

type Found = Result<Vec<Complaint>, Error>;

const PLUGIN: &str = "/opt/cni/bin/terway";

/// Below this share of a file system something will soon fail.
const TIGHT: f64 = 0.05;

/// Who manages networks, what shows that it runs, and where the word may stand that keeps it away from ENIs.
const MANAGERS: [(&str, &str, &[&str]); 2] = [
    (
        "NetworkManager",
        "/run/NetworkManager",
        &["/usr/lib/NetworkManager/conf.d", "/etc/NetworkManager/conf.d", "/run/NetworkManager/conf.d"],
    ),
    (
        "systemd-networkd",
        "/run/systemd/netif",
        &["/usr/lib/systemd/network", "/etc/systemd/network", "/run/systemd/network"],
    ),
];

/// The runtime calls the plugin that the first configuration of the folder names.
pub fn runtime(patient: &mut Patient) -> Found {
    let mut complaints = Vec::new();
    let conflist =
        patient.config.as_ref().map_or_else(|_| PathBuf::from(ours::CONFLIST), |config| config.conflist.clone());
    let folder = conflist.parent().unwrap_or(Path::new("/"));
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    files.retain(|file| file.extension().is_some_and(|e| ["conf", "conflist", "json"].iter().any(|known| e == *known)));
    files.sort();
    match files.first() {
        Some(first) if *first != conflist && files.contains(&conflist) => {
            let what = format!("{} comes before {}: the runtime goes by it", first.display(), conflist.display());
            complaints.push(Finding::problem(what, format!("mv {} {}.off", first.display(), first.display())).into());
        }
        _ if !files.contains(&conflist) && patient.known.silence.is_none() => {
            let what =
                format!("{} is not there: the kubelet takes the node for one without a network", conflist.display());
            complaints.push(Finding::problem(what, "systemctl restart terwayd, which writes it once it serves").into());
        }
        _ => {}
    }
    if !Path::new(PLUGIN).exists() {
        let what = format!("{PLUGIN} is not there: the runtime has no plugin to call");
        complaints.push(
            Finding::problem(what, format!("ln -s /usr/bin/terway {PLUGIN}, or install the package again")).into(),
        );
    }
    Ok(complaints)
}

/// What it lacks, and what is done without it.
pub fn kernel(patient: &mut Patient) -> Found {
    let mut complaints: Vec<Complaint> = Vec::new();
    let mut note = |what: String, remedy: &str| complaints.push(Finding::note(what, remedy).into());
    let (marker, why) = patient.kernel.marker();
    if marker != Marker::Bpf {
        note(
            format!("packets are marked without eBPF: {why}"),
            "a kernel from 4.19 on; till then it works, with a rule more for each pod or ENI",
        );
    }
    if let Err(e) = kernel::ifb() {
        let lack = format!("bandwidth: {e}; what a pod with an ENI of its own receives by it has no limit");
        note(lack, "modprobe ifb, and /usr/lib/modules-load.d/terway.conf for the next boot");
    }
    for lack in super::super::status::list(&patient.known.shown["services"]["lacks"]) {
        note(format!("Services: {}", lack.as_str().unwrap_or_default()), "");
    }
    if !["iptables", "ip6tables"].iter().all(|program| is_in_path(program)) {
        note(
            "there is no iptables: answers of node ports and host ports leave by the pod's ENI".into(),
            "install iptables",
        );
    }
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let wants_ipvlan = patient.known.leases.iter().any(crate::rpc::Lease::is_slave);
    if let Some(e) = kernel::ipvlan().err().filter(|_| wants_ipvlan) {
        complaints.push(
            Finding::problem(
                format!("kernel {release}: IPvlan: {e}"),
                "a kernel from 4.19 on, or veth in the network configuration",
            )
            .into(),
        );
    }
    Ok(complaints)
}

fn is_in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders.into_iter().any(|folder: PathBuf| folder.join(program).exists())
}

pub fn conntrack(_: &mut Patient) -> Found {
    let read = |name: &str| -> Option<f64> {
        fs::read_to_string(format!("/proc/sys/net/netfilter/nf_conntrack_{name}")).ok()?.trim().parse().ok()
    };
    let found = read("count").zip(read("max")).and_then(|(count, max)| crowded(count, max));
    Ok(found.map(Complaint::from).into_iter().collect())
}

fn crowded(count: f64, max: f64) -> Option<Finding> {
    if max <= 0.0 || count < 0.9 * max {
        return None;
    }
    let what = format!("connection tracking is nearly full ({count} of {max}): new connections are dropped");
    Some(Finding::problem(what, format!("sysctl -w net.netfilter.nf_conntrack_max={}", 2.0 * max)))
}

/// A ledger that cannot be written lets no pod start.
pub fn room(_: &mut Patient) -> Found {
    let mut complaints = Vec::new();
    for place in ["/run", "/var/lib"] {
        let Ok(stat) = rustix::fs::statvfs(place) else { continue };
        let share = |left: u64, all: u64| if all == 0 { 1.0 } else { left as f64 / all as f64 };
        let left = share(stat.f_bavail, stat.f_blocks).min(share(stat.f_favail, stat.f_files));
        complaints.extend(tight(place, left).map(Complaint::from));
    }
    Ok(complaints)
}

fn tight(place: &str, left: f64) -> Option<Finding> {
    let what = format!("{place} is nearly full ({:.0} % left)", 100.0 * left);
    (left < TIGHT).then(|| Finding::problem(what, format!("make room: df -h {place}; df -i {place}")))
}

/// Those who would manage ENIs, and what somebody has put on them.
pub fn managers(patient: &mut Patient) -> Found {
    let mut complaints: Vec<Complaint> = MANAGERS.iter().filter_map(unleashed).map(Complaint::from).collect();
    let route_of = |table: u32, ifindex: u32, routes: &[kernel::RouteSeen]| {
        routes.iter().any(|r| r.table == table && r.oif == Some(ifindex) && r.to.prefix_len() == 0)
    };
    let main = patient.kernel.routes(kernel::MAIN)?;
    for eni in patient.known.enis.values() {
        let Some(link) = patient.links.iter().find(|link| link.is_eni(eni.mac)) else { continue };
        let node = patient.known.leases.iter().find(|lease| lease.eni.id == eni.id).map(|lease| lease.node);
        let of_node = |ip| node.is_none_or(|node| node.iter().any(|own| own == ip));
        for addr in patient.addrs.iter().filter(|addr| addr.ifindex == link.ifindex) {
            let ip = addr.net.addr();
            let ours = addr.net.prefix_len() == addr.net.max_prefix_len() && of_node(ip);
            if !ours && addr.is_lasting_global() {
                let what = format!(
                    "somebody (a DHCP client, networkd?) has put {} on ENI {} ({})",
                    addr.net, eni.id, link.name
                );
                let remedy = format!("keep it away from ENIs, then ip addr del {} dev {}", addr.net, link.name);
                complaints.push(Finding::problem(what, remedy).into());
            }
        }
        if route_of(kernel::MAIN, link.ifindex, &main) {
            let what = format!("a default route of the node leads by ENI {} ({})", eni.id, link.name);
            complaints.push(Finding::problem(what, format!("ip route del default dev {}", link.name)).into());
        }
        if let Some(file) = client_of(&link.name) {
            let what = format!("a DHCP client has ENI {} ({}): {}", eni.id, link.name, file.display());
            complaints
                .push(Finding::problem(what, format!("kill $(cat {}), and see who starts it", file.display())).into());
        }
    }
    Ok(complaints)
}

/// The manager runs, and nothing keeps it away from ENIs.
fn unleashed((name, sign, folders): &(&str, &str, &[&str])) -> Option<Finding> {
    let is_ours = |entry: fs::DirEntry| entry.file_name().to_string_lossy().contains("terway");
    let is_told = |folder: &&str| fs::read_dir(folder).into_iter().flatten().flatten().any(is_ours);
    if !Path::new(sign).exists() || folders.iter().any(is_told) {
        return None;
    }
    let what = format!("{name} runs, and nothing keeps it away from ENIs");
    let remedy =
        format!("install the package's file for it (one with terway in its name in {}), and reload it", folders[0]);
    Some(Finding::note(what, remedy))
}

/// The file by which a DHCP client says that it looks after this link.
fn client_of(link: &str) -> Option<PathBuf> {
    let folders = ["/run", "/run/dhclient", "/run/dhcpcd"];
    let files = folders.iter().flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten());
    let names = |name: &str| {
        let client = ["dhclient", "dhcpcd", "udhcpc"].iter().any(|client| name.starts_with(client));
        client && name.ends_with(".pid") && name.split(['-', '.', '_']).any(|word| word == link)
    };
    files.map(|entry| entry.path()).find(|path| names(&path.file_name().unwrap_or_default().to_string_lossy()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_nearly_full_is_told_before_it_is() {
        assert_eq!(crowded(100.0, 262_144.0), None);
        assert_eq!(crowded(0.0, 0.0), None, "there is no such table");
        let finding = crowded(250_000.0, 262_144.0).unwrap();
        assert!(finding.what.contains("250000 of 262144") && finding.remedy.ends_with("nf_conntrack_max=524288"));
        assert_eq!(tight("/run", 0.5), None);
        assert_eq!(tight("/run", 0.01).unwrap().what, "/run is nearly full (1 % left)");
    }
}
