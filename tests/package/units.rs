//! The units as systemd 219 reads them, which CentOS 7 and Alibaba Cloud Linux 2 have: it warns of what it does not know, and goes on.

/// What systemd 219 knows of what our units say.
const KNOWN: &str = "Description Documentation After Wants DefaultDependencies ConditionPathExists ConditionPathIsMountPoint
    Type RemainAfterExit TimeoutStartSec TimeoutStopSec WatchdogSec EnvironmentFile ExecStart ExecReload Restart RestartSec
    StartLimitInterval KillMode OOMScoreAdjust LimitNOFILE LimitMEMLOCK UMask CapabilityBoundingSet NoNewPrivileges ProtectSystem
    ReadWriteDirectories ProtectHome PrivateTmp PrivateDevices RestrictAddressFamilies SystemCallArchitectures SystemCallFilter
    SystemCallErrorNumber WantedBy";
/// What came later, and when. Each only takes something away from the daemon: without it there is more that it may do.
const LATER: &str =
    "PrivateMounts:239 ProtectControlGroups:232 ProtectKernelModules:232 ProtectKernelLogs:244 ProtectClock:245
    ProtectHostname:242 RestrictNamespaces:233 RestrictRealtime:231 RestrictSUIDSGID:242 LockPersonality:235
    MemoryDenyWriteExecute:231 KeyringMode:235 RemoveIPC:232";

/// What came later and adds something: without it a folder that is not there stays so, and the daemon says what it cannot write.
const ADDED: &str = "StateDirectory:235 StateDirectoryMode:235 ConfigurationDirectory:235";

const DAEMON: &str = include_str!("../../systemd/terwayd.service");
const BPFFS: &str = include_str!("../../systemd/terway-bpffs.service");

/// Keys and values of a unit, in order.
fn says(unit: &str) -> Vec<(&str, &str)> {
    unit.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('=')).collect()
}

fn values<'a>(unit: &'a str, key: &str) -> Vec<&'a str> {
    says(unit).into_iter().filter(|(of, _)| *of == key).map(|(_, value)| value).collect()
}

#[test]
fn what_systemd_219_does_not_know_only_takes_away() {
    let later = LATER.split_whitespace().chain(ADDED.split_whitespace());
    let later: Vec<&str> = later.filter_map(|word| Some(word.split_once(':')?.0)).collect();
    for (key, _) in [DAEMON, BPFFS].into_iter().flat_map(says) {
        let known = KNOWN.split_whitespace().any(|word| word == key);
        assert!(known || later.contains(&key), "{key}: since when does systemd know it, and what if it does not?");
    }
    for key in &later {
        assert!(!values(DAEMON, key).is_empty(), "{key} is not said any more");
    }
}

#[test]
fn what_systemd_219_reads_otherwise_does_not_hurt() {
    // "strict" came with 232; an older one keeps the line before, which leaves it no way into /etc but by what follows.
    assert_eq!(values(DAEMON, "ProtectSystem"), ["full", "strict"]);
    let open: Vec<&str> = values(DAEMON, "ReadWriteDirectories").iter().flat_map(|v| v.split(' ')).collect();
    for needed in ["/run", terway::ours::LASTING, terway::ours::CONFLIST] {
        // One without a hyphen keeps the daemon from starting where it is not there.
        let may_lack = needed != "/run";
        let says = |path: &&str| path.starts_with('-') == may_lack && needed.starts_with(path.trim_start_matches('-'));
        assert!(open.iter().any(says), "{needed}");
    }
    // Groups of calls came with 231. An empty list of what is refused refuses nothing; one of what is allowed would allow nothing.
    let filters = values(DAEMON, "SystemCallFilter");
    assert!(
        filters[0].starts_with('~') && filters[0].split(' ').all(|name| name.trim_start_matches('~').starts_with('@'))
    );
    assert!(!filters[1].contains('@'));
    // Marks in front of a program came with 231, and this way of saying that a file may be missing is as old as units are.
    for key in ["ExecStart", "ExecReload"] {
        assert!([DAEMON, BPFFS].into_iter().flat_map(|unit| values(unit, key)).all(|line| line.starts_with('/')));
    }
    assert!(values(DAEMON, "EnvironmentFile")[0].starts_with("-/"));
}
