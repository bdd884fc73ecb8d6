//! The archive for support: it has what is asked for, and no secret that lies about on the node.

use super::{cli, node, nothing};
use crate::sim::traffic::Place;

const JWT: &str = "eyJhbGciOiJSUzI1NiIsImtpZCI6IlBMQU5URUQwMDA3In0.eyJpc3MiOiJQTEFOVEVEIn0.PLANTED0007";

#[test]
fn a_bundle_has_all_that_helps_and_no_secret() {
    let mut cluster = node(&nothing());
    let web = cluster.add(0, "web");
    cluster.kill(0);
    let node = cluster.node(0);
    let read = |path: &str| node.read_file(path).expect("it is there");

    let keys = r#""access_key": "LTAI5tPLANTED0001aaaa", "access_secret": "PLANTED0002/+x=", "#;
    node.write_file("/etc/eni/eni.json", &read("/etc/eni/eni.json").replacen('{', &format!("{{{keys}"), 1));
    node.write_file("/etc/eni/kubeconfig", &format!("{}\n# token: PLANTED0003\n", read("/etc/eni/kubeconfig")));
    node.write_file("/run/terway/leases/x.json", r#"{"password":"PLANTED0004 with blanks"}"#);
    node.write_file("/etc/cni/net.d/20-x.conf", "client-key-data: UExBTlRFRDAwMDU=");
    let pem = "-----BEGIN PRIVATE KEY-----\nPLANTED0006\n-----END PRIVATE KEY-----";
    node.write_file("/var/lib/terway/x", pem);
    node.sh("sysctl -qw net.ipv4.tcp_fastopen_key=0badcafe-0badcafe-0badcafe-0badcafe");
    // Where nobody expects them.
    let log = format!("signed with PLANTED0002/+x= for PLANTED0003\nAuthorization: Bearer PLANTED0008\njwt {JWT}\n");
    node.sh(&format!("cat >>/var/log/terwayd.log <<'END'\n{log}END\nchmod 600 /var/log/terwayd.log"));

    let said = cli(&cluster, "bundle --output /run/b.tar.gz --json");
    assert_eq!((said.code, said.json()["archive"].as_str()), (0, Some("/run/b.tar.gz")), "{said:?}");
    assert_eq!(node.sh("stat -c %a /run/b.tar.gz"), "600\n");
    let all = node.sh("tar -xzOf /run/b.tar.gz");
    for secret in ["PLANTED", "UExBTlRFRDAwMDU", "eyJhbGci", "0badcafe"] {
        let line = all.lines().find(|line| line.contains(secret));
        assert_eq!(line, None, "a secret is in it");
    }
    assert!(all.contains("signed with [removed] for [removed]"), "what stands around a secret stays");
    let list = node.sh("tar -tzf /run/b.tar.gz");
    for file in [
        "terway-cli/status",
        "terway-cli/doctor",
        "terway-cli/plan",
        "node/rules",
        "node/terwayd-log",
        "files/etc/eni/eni.json",
    ] {
        assert!(list.lines().any(|line| line.ends_with(file)), "{file}: {list}");
    }
    let plan = format!("pod: ip addr replace {}/32 dev eth0", web.ip);
    for words in ["512:\tfrom all lookup 1000", "\"service_cidr\"", "does not answer", "net.ipv4.ip_forward = 1", &plan]
    {
        assert!(all.contains(words), "{words}");
    }
    let folder = list.split('/').next().expect("a folder");
    assert!(!node.sh("ls /tmp").lines().any(|name| name == folder), "nothing is left beside it");
    let nowhere = cli(&cluster, "bundle --output /nowhere/b.tar.gz");
    assert!(nowhere.code == 1 && nowhere.err.contains("create /nowhere/b.tar.gz"), "{nowhere:?}");
}
