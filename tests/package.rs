//! The packages: what is in them, that they are the same whenever they are built, and what installing and removing does to a node.

mod root;
mod systemd;
mod units;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use saphyr_parser::Parser;
use terway::ours;

use crate::sim::cluster::binary;
use crate::sim::ns::{Ns, sh};

/// A folder that goes when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("terway-{name}-{}", std::process::id()));
        // A killed run of the same number may have left it.
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("create a folder");
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(e) = fs::remove_dir_all(&self.0) {
            eprintln!("{}: {e}", self.0.display());
        }
    }
}

/// What the purge takes from the kernel's rules and routes, and what it leaves to others who have rules at our priorities.
#[test]
fn the_purge_takes_our_rules_and_nobody_elses() {
    let (links_and_rules, _) = include_str!("../packaging/purge").split_once("\n# What led packets").expect("a part");
    let node = Ns::new("purge");
    let [ours, theirs] = [
        "priority 512 lookup 1000
         priority 2047 fwmark 0x7e0/0x7e0 lookup main
         priority 2048 fwmark 0x20/0x7e0 lookup 1003
         priority 2048 fwmark 0x7c0/0x7e0 lookup 11003
         priority 2048 from 10.0.0.5 lookup 1003
         priority 2049 iif eth1 blackhole
         priority 2049 iif gone blackhole",
        "priority 512 to 203.0.113.77 lookup main
         priority 2047 fwmark 0x10/0x10 lookup main
         priority 2048 fwmark 0x4000/0x4000 lookup 1003
         priority 2048 from 10.0.0.0/24 lookup 1003
         priority 2048 from 10.0.0.6 lookup 1999
         priority 2048 lookup 1004
         priority 2049 from 198.51.100.7 iif lo blackhole
         priority 2049 fwmark 0x1 blackhole",
    ];
    node.sh("ip link add eth1 type veth peer name far; ip link set far up; ip link set eth1 up");
    node.sh("ip route add default dev eth1 table 1003 proto 116; ip route add 198.51.100.1 dev eth1 table 1003");
    for rule in theirs.lines() {
        node.sh(&format!("ip rule add {rule}"));
    }
    let rules = || node.sh("ip rule; ip route show table 1003").replace(" \n", "\n");
    let others = rules();
    for rule in ours.lines() {
        node.sh(&format!("ip rule add {rule}"));
    }
    node.sh(&format!("set -e\n{links_and_rules}"));
    let others: Vec<&str> = others.lines().filter(|line| !line.starts_with("default")).collect();
    assert_eq!(rules().lines().collect::<Vec<_>>(), others);
}

/// One release of both packages.
struct Packages {
    deb: PathBuf,
    rpm: PathBuf,
}

/// Builds them from the binary under test, as `make package` does.
fn build(release: u32, folder: &Path) -> Packages {
    build_for("x86_64", "amd64", stripped(), release, folder)
}

/// The same for an architecture, as rpm and as dpkg name it.
fn build_for(arch: &str, deb_arch: &str, binary: &Path, release: u32, folder: &Path) -> Packages {
    let mut command = Command::new("packaging/build.sh");
    command.arg(arch).arg(binary).arg(folder).env("RELEASE", release.to_string()).env("TERWAY_SPEAKS", stripped());
    let done = command.output().expect("start packaging/build.sh");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let version = format!("{}-{release}", env!("CARGO_PKG_VERSION"));
    Packages {
        deb: folder.join(format!("terway_{version}_{deb_arch}.deb")),
        rpm: folder.join(format!("terway-{version}.{arch}.rpm")),
    }
}

/// The binary under test; one for debugging is ten times as large, and as long in the packing.
fn stripped() -> &'static Path {
    static STRIPPED: OnceLock<PathBuf> = OnceLock::new();
    STRIPPED.get_or_init(|| {
        let path = std::env::current_dir().expect("we are somewhere").join("target/test-packages/terway");
        fs::create_dir_all(path.parent().expect("it is in a folder")).expect("create a folder");
        sh(&format!("strip -o {} {}", path.display(), binary().display()));
        path
    })
}

/// Two releases in a row, built once for all tests of this process, and left to the next.
fn releases() -> &'static [Packages; 2] {
    static BUILT: OnceLock<[Packages; 2]> = OnceLock::new();
    BUILT.get_or_init(|| {
        let folder = Path::new("target/test-packages");
        [1, 2].map(|release| build(release, folder))
    })
}

#[test]
fn the_same_binary_gives_the_same_packages_bit_by_bit() {
    let (folder, first) = (Folder::new("packages"), &releases()[0]);
    let second = build(1, &folder.0);
    assert!(fs::read(&first.deb).unwrap() == fs::read(second.deb).unwrap(), "the DEBs differ");
    assert!(fs::read(&first.rpm).unwrap() == fs::read(second.rpm).unwrap(), "the RPMs differ");
}

#[test]
fn both_packages_bring_the_same_files() {
    let [Packages { deb, rpm }, _] = releases();
    let deb = sh(&format!("dpkg-deb --fsys-tarfile {} | tar t | grep -v '/$' | sed 's/^\\.//' | sort", deb.display()));
    // rpm lists folders beside files: those have a `d` in front of their permissions.
    let rpm = sh(&format!(
        "rpm -qp --qf '[%{{FILEMODES:perms}} %{{FILENAMES}}\\n]' {} | sed -n 's/^[^d][^ ]* //p' | sort",
        rpm.display()
    ));
    assert_eq!(deb.replace("dhclient-enter-hooks.d/terway", "dhclient-enter-hooks"), rpm);
    for file in [
        "/usr/bin/terway",
        "/usr/bin/terwayd",
        "/usr/bin/terway-cli",
        "/opt/cni/bin/terway",
        "/etc/eni/eni.json",
        "/usr/lib/systemd/system/terwayd.service",
        "/usr/share/man/man8/terwayd.8.gz",
    ] {
        assert!(deb.lines().any(|line| line == file), "{file} is not in {deb}");
    }
}

/// That the binary itself can be made is `make check-aarch64`'s to say; here another one stands in its place, which cannot be run either.
#[test]
fn packages_for_aarch64_are_made_of_the_same_files() {
    let folder = Folder::new("aarch64");
    let binary = folder.0.join("terway");
    fs::write(&binary, "what runs elsewhere").unwrap();
    let Packages { deb, rpm } = build_for("aarch64", "arm64", &binary, 1, &folder.0);
    let files = |deb: &Path| sh(&format!("dpkg-deb -c {} | awk '{{print $1, $6, $8}}'", deb.display()));
    assert_eq!(files(&deb), files(&releases()[0].deb));
    assert_eq!(sh(&format!("dpkg-deb -f {} Architecture", deb.display())), "arm64\n");
    assert_eq!(sh(&format!("rpm -qp --qf '%{{ARCH}}' {}", rpm.display())), "aarch64");
}

#[test]
fn what_an_operator_edits_is_configuration_to_either_package() {
    let [Packages { deb, rpm }, _] = releases();
    let edited = "/etc/eni/10-terway.conflist\n/etc/eni/eni.json\n/etc/eni/terwayd.env\n";
    assert_eq!(sh(&format!("dpkg-deb --ctrl-tarfile {} | tar xO ./conffiles", deb.display())), edited);
    let config = sh(&format!("rpm -qp --qf '[%{{FILEFLAGS}} %{{FILENAMES}}\\n]' {}", rpm.display()));
    // %config is 1, %config(noreplace) 16 more.
    let config: Vec<&str> = config.lines().filter_map(|line| line.strip_prefix("17 ")).collect();
    assert_eq!(config.join("\n"), format!("/etc/dhcp/dhclient-enter-hooks\n{}", edited.trim_end()));
}

#[test]
fn rpm_4_11_can_read_what_is_in_the_header_of_the_rpm() {
    let rpm = releases()[0].rpm.display();
    let tag = |format: &str| sh(&format!("rpm -qp --qf '{format}' {rpm}"));
    // Digests of files: 8 is SHA-256, known since 4.6. Of the header and all: SHA-1 and MD5, which 4.11 verifies.
    assert_eq!(tag("%{PAYLOADFORMAT} %{PAYLOADCOMPRESSOR} %{FILEDIGESTALGO}"), "cpio gzip 8");
    assert_eq!((tag("%{SHA1HEADER}").len(), tag("%{SIGMD5}").len()), (40, 32));
    // Neither weak dependencies nor file triggers: all of them came after 4.11.
    for newer in ["RECOMMENDNAME", "SUGGESTNAME", "SUPPLEMENTNAME", "FILETRIGGERNAME", "TRANSFILETRIGGERNAME"] {
        assert_eq!(tag(&format!("[%{{{newer}}}]")), "", "{newer}");
    }
    // A reader passes over tags whose numbers it does not know; these came later, and say once more what is in the header.
    let tags = sh(&format!("rpm -qp --xml {rpm} | sed -n 's/.*rpmTag name=\"\\([^\"]*\\)\".*/\\1/p'"));
    let later: Vec<&str> = tags.lines().filter(|tag| tag.starts_with("Payloaddigest") || tag.contains("256")).collect();
    assert_eq!(later, ["Sha256header", "Payloaddigest", "Payloaddigestalgo", "Payloaddigestalt"]);
    assert!(!tags.lines().any(|tag| tag.starts_with("Long")), "sizes of more than 32 bits: {tags}");
    // Not a file whose payload or name asks for more than those of its time: the versions that brought what is needed.
    let rpmlib = tag("[%{REQUIRENAME} %{REQUIREVERSION}\\n]");
    let rpmlib: Vec<&str> = rpmlib.lines().filter(|line| line.starts_with("rpmlib")).collect();
    let known = ["CompressedFileNames) 3.0.4-1", "FileDigests) 4.6.0-1", "PayloadFilesHavePrefix) 4.0-1"];
    assert_eq!(rpmlib, known.map(|what| format!("rpmlib({what}")));
    let needs: Vec<String> = tag("[%{REQUIRENAME}\\n]").lines().map(String::from).collect();
    for need in &needs {
        let known = ["/bin/sh", "iptables", "systemd"].contains(&need.as_str())
            || ["CompressedFileNames", "FileDigests", "PayloadFilesHavePrefix"]
                .iter()
                .any(|f| *need == format!("rpmlib({f})"));
        assert!(known, "{need}");
    }
}

#[test]
fn the_manifests_and_templates_that_come_along_are_read_by_what_they_are_for() {
    for file in ["packaging/root/etc/eni/eni.json", "cni-conf/10-terway.conflist", "cni-conf/ram-policy.json"] {
        let text = fs::read_to_string(file).unwrap();
        serde_json::from_str::<serde_json::Value>(&text).unwrap_or_else(|e| panic!("{file}: {e}"));
    }
    let folder = Folder::new("man");
    sh(&format!("dpkg-deb -x {} {}", releases()[0].deb.display(), folder.0.display()));
    let root = folder.0.display();
    let pages = sh(&format!("zcat {root}/usr/share/man/man8/*.gz"));
    let known =
        ["CNI plugin that gives pods addresses", "log\\-level", "TERWAYD_OPTIONS", "show", "docs/configuration.md"];
    for word in known {
        assert!(pages.contains(word), "no {word} in the man pages");
    }
    let complete = |words: &str, at: usize| {
        let binary = binary();
        let line = format!(
            "ln -sf {} {root}/terway-cli; ln -sf {} {root}/terwayd; PATH={root}:$PATH; cd {root}
             . usr/share/bash-completion/completions/terwayd; COMP_WORDS=({words}); COMP_CWORD={at}; _terway; echo ${{COMPREPLY[*]}}",
            binary.display(), binary.display(),
        );
        let done = Command::new("bash").args(["-c", &line]).output().expect("start bash");
        String::from_utf8(done.stdout).expect("UTF-8").trim().to_owned()
    };
    assert_eq!(complete("terway-cli sh", 1), "show");
    assert_eq!(complete("terwayd --log-level de", 2), "debug");
    assert_eq!(complete("terwayd --daemon", 1), "--daemon-mode");
}

#[test]
fn the_documents_that_come_along_lead_to_what_comes_along() {
    let folder = Folder::new("documents");
    sh(&format!("dpkg-deb -x {} {}", releases()[0].deb.display(), folder.0.display()));
    let found = sh(&format!("find {}/usr/share/doc/terway -name '*.md'", folder.0.display()));
    let documents: Vec<&Path> = found.lines().map(Path::new).collect();
    assert!(documents.len() > 5, "{documents:?}");
    let wrong: Vec<String> = documents.iter().flat_map(|document| crate::documents::dead_links(document)).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    let read_me = fs::read_to_string(folder.0.join("usr/share/doc/terway/README.md")).unwrap();
    assert!(read_me.contains("[the configuration](docs/configuration.md)") && !read_me.contains("](src/"));
}

#[test]
fn the_daemonset_has_of_the_node_all_that_the_daemon_keeps_there() {
    for file in ["rbac.yaml", "daemonset.yaml"] {
        let text = fs::read_to_string(Path::new("cni-conf").join(file)).unwrap();
        for event in Parser::new_from_str(&text) {
            event.unwrap_or_else(|e| panic!("{file}: {e}"));
        }
    }
    let manifest = include_str!("../cni-conf/daemonset.yaml");
    let (_, daemon) = manifest.split_once("- name: terwayd").unwrap();
    let mounts: Vec<&str> =
        daemon.split("mountPath: ").skip(1).map(|rest| rest.split([',', '}']).next().unwrap()).collect();
    let kept = [ours::SOCKET, ours::LOCK, ours::CONFIG, ours::CONFLIST, ours::LEDGER, ours::LASTING, ours::OLD_STORE];
    for path in kept.into_iter().chain([ours::BPF_ROOT]) {
        let path = path.replace("/var/run/", "/run/");
        assert!(mounts.iter().any(|mount| Path::new(&path).starts_with(mount)), "{path} is in none of {mounts:?}");
    }
    // Each volume is there that is mounted, and the names are those of the other manifest.
    for name in manifest.split("- {name: ").skip(1).map(|rest| rest.split(',').next().unwrap()) {
        let defined = [format!("{{name: {name}, hostPath"), format!("- name: {name}\n        configMap")];
        assert!(defined.iter().any(|line| manifest.contains(line)), "{name}");
    }
    assert!(
        include_str!("../cni-conf/rbac.yaml")
            .contains("kind: ServiceAccount\nmetadata:\n  name: terway\n  namespace: kube-system")
    );
    assert!(manifest.contains("serviceAccountName: terway\n") && manifest.contains("namespace: kube-system"));
}

/// Without kube-proxy, nobody leads the Service's address at which terwayd would ask for the Services that it is to lead.
#[test]
fn the_daemonset_says_where_to_name_the_api_server_itself() {
    let manifest = fs::read_to_string("cni-conf/daemonset.yaml").unwrap();
    let (before, _) = manifest.split_once("\n        resources:").unwrap();
    let (_, environment) = before.rsplit_once("\n        env:\n").unwrap();
    for variable in ["KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"] {
        assert!(environment.contains(&format!("\n        #- name: {variable}\n        #  value: \"")), "{environment}");
    }
    let taken_in = manifest.replace("        #- name", "        - name").replace("        #  value", "          value");
    for event in Parser::new_from_str(&taken_in) {
        event.unwrap_or_else(|e| panic!("with both: {e}"));
    }
}
