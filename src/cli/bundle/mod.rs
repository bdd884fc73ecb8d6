//! `bundle`: one archive of all that somebody far away needs to see, without the secrets.

mod clean;

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use argh::FromArgs;
use serde_json::json;

use super::face::{Answer, Failure};
use super::known::Known;
use super::{doctor, enis, known, plan, pods, services, status};
use crate::error::{Context, Error};
use crate::ours;
use crate::rpc::Request;
use clean::Secrets;

/// Write one archive for support: what terwayd and the kernel show, configuration, ledger and logs, without secrets (keys, tokens,
/// certificates). Nothing is sent anywhere.
#[derive(FromArgs)]
#[argh(subcommand, name = "bundle")]
pub struct Bundle {
    /// where to write it (/tmp/terway-HOST-SECONDS.tar.gz)
    #[argh(option)]
    output: Option<PathBuf>,
    /// print JSON
    #[argh(switch)]
    pub json: bool,
}

/// What a program says of the node. One that is not there, or does not end, is no reason to give up.
const PROGRAMS: &[(&str, &str)] = &[
    ("uname", "uname -a"),
    ("links", "ip -d -s link"),
    ("addresses", "ip addr"),
    ("rules", "ip rule; ip -6 rule"),
    ("routes", "ip route show table all; ip -6 route show table all"),
    ("neighbours", "ip neigh; ip -6 neigh"),
    ("qdiscs", "tc -s qdisc"),
    (
        "filters",
        "for link in $(ls /sys/class/net | head -n 200); do for side in ingress egress; do echo \"# $link $side\"; \
                tc filter show dev $link $side; done; done",
    ),
    ("iptables", "iptables-save; ip6tables-save"),
    ("ipsets", "ipset list -t"),
    ("sockets", "ss -s; ss -lntup"),
    // tcp_fastopen_key has one or two, with which cookies are made in this node's name.
    ("sysctl", "sysctl -a 2>/dev/null | grep ^net | grep -v _key"),
    ("modules", "lsmod"),
    ("kernel-log", "dmesg | tail -n 2000"),
    ("terwayd-log", "journalctl -u terwayd -n 20000 --no-pager; tail -n 20000 /var/log/terwayd.log"),
    ("kubelet-log", "journalctl -u kubelet -n 2000 --no-pager"),
    ("unit", "systemctl status terwayd --no-pager; systemctl cat terwayd"),
    ("package", "rpm -qV terway; dpkg -s terway"),
    ("room", "df -h; df -i"),
    ("memory", "cat /proc/meminfo; cat /proc/$(pidof terwayd | cut -d ' ' -f 1)/status"),
    ("system", "cat /etc/os-release /proc/cmdline /proc/uptime"),
];
/// Seconds that each may take.
const PATIENCE: &str = "10";
/// Of what one says, or a file holds, the last so many bytes.
const MOST: usize = 4 << 20;

/// Files and folders that are taken along.
const FILES: [&str; 4] = [ours::CONFIG, "/etc/cni/net.d", ours::LEDGER, ours::LASTING];
/// Folders below which nothing more is looked for, and files in a folder.
const DEPTH: u32 = 3;
const COUNT: usize = 2000;

impl Bundle {
    pub fn answer(&self) -> Result<Answer, Failure> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let name = format!("terway-{host}-{since}");
        let archive = self.output.clone().unwrap_or_else(|| format!("/tmp/{name}.tar.gz").into());
        if self.output.is_none() { fresh(&archive) } else { private(&archive) }?;
        let folder = Folder::new(&std::env::temp_dir(), &name)?;
        let files = fill(&folder.0, &Secrets::look())?;
        pack(&folder.0, &archive)?;
        let page = format!("{}: {} files, secrets removed\n", archive.display(), files.len());
        Ok(Answer::fine(page, json!({"archive": archive, "files": files})))
    }
}

/// For root's eyes alone, and gone when it is packed.
struct Folder(PathBuf);

impl Folder {
    fn new(below: &Path, name: &str) -> Result<Folder, Error> {
        let path = below.join(format!("{name}.{}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&path).context(|| format!("create {}", path.display()))?;
        Ok(Folder(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Puts all there is into the folder; the names of the files.
fn fill(folder: &Path, secrets: &Secrets) -> Result<Vec<String>, Error> {
    let mut names = Vec::new();
    let mut put = |name: String, text: &str| -> Result<(), Error> {
        let path = folder.join(&name);
        let parent = path.parent().unwrap_or(folder);
        fs::create_dir_all(parent).context(|| format!("create {}", parent.display()))?;
        let mut file = private(&path)?;
        file.write_all(secrets.remove(text).as_bytes()).context(|| format!("write {}", path.display()))?;
        names.push(name);
        Ok(())
    };
    for (name, text) in verbs() {
        put(format!("terway-cli/{name}"), &text)?;
    }
    for (name, line) in PROGRAMS {
        put(format!("node/{name}"), &said(line))?;
    }
    for path in FILES.iter().flat_map(|path| below(Path::new(path), DEPTH)) {
        let text = fs::read(&path).map_or_else(|e| format!("({e})"), |bytes| tail(&bytes));
        put(format!("files{}", path.display()), &text)?;
    }
    Ok(names)
}

fn private(path: &Path) -> Result<File, Error> {
    let open = || {
        let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        // One that was there before may be open to others.
        if file.metadata()?.is_file() {
            file.set_permissions(Permissions::from_mode(0o600))?;
        }
        Ok::<File, std::io::Error>(file)
    };
    open().context(|| format!("create {}", path.display()))
}

/// The same where anybody may write: what is there already is somebody's who wants to read along, or a link to what shall be overwritten.
fn fresh(path: &Path) -> Result<File, Error> {
    let file = File::options().write(true).create_new(true).mode(0o600).open(path);
    file.context(|| format!("create {}", path.display()))
}

/// What our own verbs say.
fn verbs() -> Vec<(&'static str, String)> {
    let page = |answer: Result<Answer, Failure>| answer.map_or_else(|failure| failure.why + "\n", |answer| answer.page);
    let shown = known::ask(&Request::Show {}).map_or_else(|failure| failure.why, |shown| format!("{shown:#}"));
    let pods: Vec<String> = Known::look().map_or_else(
        |_| Vec::new(),
        |known| known.leases.iter().flat_map(|lease| lease.ip.iter().next()).map(|ip| ip.to_string()).collect(),
    );
    vec![
        ("status", page(status::Status { json: false }.answer())),
        ("doctor", page(doctor::Doctor::looking().answer())),
        ("pods", page(pods::Pods { inside: true, json: false }.answer())),
        ("enis", page(enis::Enis { addresses: true, json: false }.answer())),
        ("services", page(services::Services { matching: None, leave: false, json: false }.answer())),
        ("plan", page(plan::PlanVerb { pods, node: true, json: false }.answer())),
        ("show.json", shown),
    ]
}

/// What a shell line says, complaints included.
fn said(line: &str) -> String {
    let done = Command::new("timeout").args([PATIENCE, "sh", "-c", &format!("exec 2>&1; {line}")]).output();
    match done {
        Ok(done) => format!("$ {line}\n{}", tail(&done.stdout)),
        Err(e) => format!("$ {line}\n({e})\n"),
    }
}

fn tail(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(MOST)..]).into_owned()
}

/// The files there; links are not followed: they lead to what nobody has asked for.
fn below(path: &Path, depth: u32) -> Vec<PathBuf> {
    let Ok(kind) = fs::symlink_metadata(path) else { return Vec::new() };
    if kind.is_file() {
        return vec![path.into()];
    }
    if !kind.is_dir() || depth == 0 {
        return Vec::new();
    }
    let mut inside: Vec<PathBuf> =
        fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    inside.sort();
    inside.iter().take(COUNT).flat_map(|path| below(path, depth - 1)).collect()
}

/// By tar(1), which every node has: runtimes unpack images with it, and the binary stays small.
fn pack(folder: &Path, archive: &Path) -> Result<(), Error> {
    let (above, name) = (folder.parent().unwrap_or(folder), folder.file_name().unwrap_or_default());
    let done =
        Command::new("tar").arg("-czf").arg(archive).arg("-C").arg(above).arg(name).output().context(|| "run tar")?;
    if !done.status.success() {
        let why = String::from_utf8_lossy(&done.stderr).trim().to_string();
        return Err(Error::refused(format!("tar -czf {}: {why}", archive.display())));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_goes_through_no_link_of_others_and_is_open_to_none() {
        let folder = Folder::new(&std::env::temp_dir(), "terway-bundle-test").unwrap();
        let (precious, link) = (folder.0.join("precious"), folder.0.join("link"));
        fs::write(&precious, "precious").unwrap();
        std::os::unix::fs::symlink(&precious, &link).unwrap();
        let refused = fresh(&link).unwrap_err().to_string();
        assert_eq!(refused, format!("create {}: file exists", link.display()));
        assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
        fs::set_permissions(&precious, Permissions::from_mode(0o666)).unwrap();
        drop(private(&precious).unwrap());
        assert_eq!(fs::metadata(&precious).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
