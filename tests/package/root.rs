//! The RPM in a root that holds a shell, what the scripts call, and no systemd: its calls are written down.

use std::fs;
use std::path::Path;

use super::{Folder, releases};
use crate::sim::ns::sh;

/// What the scripts call, by busybox's names, beside those that write down how they were called.
const TOOLS: &str = "sh mkdir ln readlink rm cat";
/// What those say who are asked for a property of a unit.
const ANSWER: &str = "if [ \"$1\" = show ]; then cat /state; fi\n";
const TRY_RESTART: &str = "systemctl --no-block try-restart terwayd.service";

struct Root(Folder);

impl Root {
    /// A machine on which one of Alibaba's udev rules configures ENIs, and networkd runs.
    fn new(name: &str) -> Root {
        let root = Root(Folder::new(name));
        let folders = "bin sbin run/systemd/system run/systemd/netif run/udev usr/lib/udev/rules.d etc/udev/rules.d var/lib/rpm dev";
        for folder in folders.split(' ') {
            fs::create_dir_all(root.path(folder)).unwrap();
        }
        fs::copy("/usr/bin/busybox", root.path("bin/busybox")).unwrap();
        for tool in TOOLS.split(' ') {
            std::os::unix::fs::symlink("busybox", root.path("bin").join(tool)).unwrap();
        }
        for witness in ["bin/systemctl", "bin/udevadm", "bin/networkctl", "sbin/modprobe"] {
            root.write(witness, &format!("#!/bin/sh\necho ${{0##*/}} \"$@\" >>/calls\n{ANSWER}"));
            sh(&format!("chmod 755 {}", root.path(witness).display()));
        }
        root.daemon_is("inactive");
        for file in ["usr/lib/udev/rules.d/61-eni.rules", "run/udev/control"] {
            root.write(file, "");
        }
        root
    }

    fn path(&self, path: &str) -> std::path::PathBuf {
        self.0.0.join(path)
    }

    fn write(&self, path: &str, text: &str) {
        fs::write(self.path(path), text).unwrap();
    }

    /// Its database is a new one; what must be there beside us is not asked for.
    fn rpm(&self, words: &str) {
        sh(&format!("rpm --root {} --nodeps {words} 2>&1", self.0.0.display()));
    }

    /// What systemd says of the daemon from now on.
    fn daemon_is(&self, state: &str) {
        self.write("state", &format!("ActiveState={state}\n"));
    }

    /// How they were called since the last time, questions aside.
    fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("calls")).unwrap_or_default();
        self.write("calls", "");
        text.lines().filter(|line| !line.contains(" show ")).map(String::from).collect()
    }

    fn has(&self, path: &str) -> bool {
        fs::symlink_metadata(self.path(path)).is_ok()
    }
}

#[test]
fn the_rpm_comes_is_upgraded_and_goes() {
    let root = Root::new("rpm");
    let [first, second] = releases();
    let absolute = |path: &Path| fs::canonicalize(path).unwrap().display().to_string();
    root.rpm(&format!("-i {}", absolute(&first.rpm)));
    assert_eq!(fs::read_link(root.path("usr/bin/terwayd")).unwrap(), Path::new("terway"));
    assert!(root.path("opt/cni/bin/terway").metadata().is_ok(), "the plugin's link leads to the binary");
    let mode =
        |path: &str| std::os::unix::fs::PermissionsExt::mode(&fs::metadata(root.path(path)).unwrap().permissions());
    assert_eq!((mode("etc/eni/eni.json") & 0o777, mode("var/lib/terway") & 0o777), (0o600, 0o700));
    assert_eq!(fs::read_link(root.path("etc/udev/rules.d/61-eni.rules")).unwrap(), Path::new("/dev/null"));
    assert!(!root.has("etc/udev/rules.d/60-net.rules"), "nothing is masked that is not there");
    // Neither enabled nor started: try-restart does nothing where nothing runs.
    assert_eq!(
        root.calls(),
        [
            "modprobe ip_tables",
            "modprobe ip6_tables",
            "modprobe nf_conntrack",
            "networkctl reload",
            "udevadm control --reload",
            "systemctl daemon-reload",
            TRY_RESTART
        ]
    );
    root.rpm("-V --nofiledigest terway");

    let own = "{\"version\": \"1\", \"kubeconfig\": \"/root/kubeconfig\"}";
    root.write("etc/eni/eni.json", own);
    root.write("etc/cni/net.d/10-terway.conflist", "{}");
    root.daemon_is("active");
    root.rpm(&format!("-U {}", absolute(&second.rpm)));
    assert_eq!(fs::read_to_string(root.path("etc/eni/eni.json")).unwrap(), own, "what was edited stays");
    assert!(root.has("etc/cni/net.d/10-terway.conflist"), "pods start while it is upgraded");
    assert!(root.has("etc/udev/rules.d/61-eni.rules"));
    let calls = root.calls();
    assert!(!calls.iter().any(|call| call.contains("stop") || call.contains("disable")), "{calls:?}");
    assert_eq!(calls.last().unwrap(), TRY_RESTART);

    root.write("var/lib/terway/old-terway.json", "{}");
    root.rpm("-e terway");
    assert_eq!(root.calls()[..2], ["systemctl disable terwayd.service", "systemctl stop terwayd.service"]);
    for gone in
        ["usr/bin/terway", "opt/cni/bin/terway", "etc/cni/net.d/10-terway.conflist", "etc/udev/rules.d/61-eni.rules"]
    {
        assert!(!root.has(gone), "{gone}");
    }
    assert_eq!(fs::read_to_string(root.path("etc/eni/eni.json.rpmsave")).unwrap(), own);
    assert!(root.has("usr/lib/udev/rules.d/61-eni.rules") && root.has("var/lib/terway/old-terway.json"));
}

#[test]
fn masks_of_an_administrator_are_theirs() {
    let root = Root::new("masks");
    std::os::unix::fs::symlink("/dev/null", root.path("etc/udev/rules.d/61-eni.rules")).unwrap();
    let rpm = fs::canonicalize(&releases()[0].rpm).unwrap();
    root.rpm(&format!("-i {}", rpm.display()));
    root.rpm("-e terway");
    assert!(root.has("etc/udev/rules.d/61-eni.rules"));
}

/// Of systemd 219 and 239 neither restart nor try-restart does anything to a unit that is starting.
#[test]
fn an_upgrade_ends_a_daemon_that_has_not_come_up_and_starts_it_anew() {
    let root = Root::new("starting");
    let [first, second] = releases().each_ref().map(|release| fs::canonicalize(&release.rpm).unwrap());
    root.rpm(&format!("-i {}", first.display()));
    root.calls();
    root.daemon_is("activating");
    root.rpm(&format!("-U {}", second.display()));
    let calls = root.calls();
    let anew = ["systemctl stop terwayd.service", "systemctl --no-block start terwayd.service"];
    assert!(calls.windows(2).any(|two| two == anew) && !calls.iter().any(|call| call == TRY_RESTART), "{calls:?}");
    root.rpm("-e terway");
}
