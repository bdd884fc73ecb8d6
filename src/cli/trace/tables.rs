//! What iptables-save(8) prints, walked as a packet would: each rule is for it, is not, or may be.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::rules::{ICMP, SCTP, TCP, UDP};

/// Chains that jump in a circle are not what a kernel takes.
const DEEPEST: usize = 64;

/// The first packet of a connection.
#[derive(Debug, Clone)]
pub struct Packet<'a> {
    pub from: IpAddr,
    pub to: IpAddr,
    pub protocol: u8,
    pub port: Option<u16>,
    pub iif: &'a str,
    /// None: not known yet.
    pub oif: Option<&'a str>,
    pub mark: u32,
    /// The node's own addresses.
    pub local: &'a BTreeSet<IpAddr>,
}

/// What may become of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    Accepted,
    /// By this rule.
    Refused(String),
    Led(SocketAddr, String),
    /// To what is not followed from here.
    Elsewhere(String),
}

#[derive(Debug, Default)]
pub struct Tables(BTreeMap<String, Table>);

#[derive(Debug, Default)]
struct Table {
    /// Built-in chains that drop what comes to their end.
    closed: BTreeSet<String>,
    chains: BTreeMap<String, Vec<Rule>>,
}

#[derive(Debug, Default)]
struct Rule {
    text: String,
    checks: Vec<Check>,
    target: String,
    goes_for_good: bool,
    args: Vec<Check>,
}

/// An option of a rule, such as `! -s 10.0.0.0/8`.
#[derive(Debug, Default)]
struct Check {
    module: String,
    not: bool,
    name: String,
    values: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fit {
    Yes,
    No,
    /// By chance, or by what is not known here.
    Maybe,
}

impl From<bool> for Fit {
    fn from(fits: bool) -> Fit {
        if fits { Fit::Yes } else { Fit::No }
    }
}

impl Tables {
    pub fn parse(text: &str) -> Tables {
        let (mut tables, mut at) = (Tables::default(), String::new());
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                at = name.trim().into();
                continue;
            }
            let table = tables.0.entry(at.clone()).or_default();
            if let Some(chain) = line.strip_prefix(':') {
                let mut words = chain.split(' ');
                let name = words.next().unwrap_or_default().to_owned();
                if words.next() == Some("DROP") {
                    table.closed.insert(name.clone());
                }
                table.chains.entry(name).or_default();
            } else if let Some(rule) = line.strip_prefix("-A ") {
                let (chain, rest) = rule.split_once(' ').unwrap_or((rule, ""));
                table.chains.entry(chain.to_owned()).or_default().push(Rule::parse(line, rest));
            }
        }
        tables
    }

    pub fn has(&self, table: &str, chain: &str) -> bool {
        self.0.get(table).is_some_and(|table| table.chains.contains_key(chain))
    }

    /// All that may become of the packet in this built-in chain. Rules that mark it do so.
    pub fn walk(&self, table: &str, chain: &str, packet: &mut Packet) -> Vec<Fate> {
        let Some(table) = self.0.get(table) else { return vec![Fate::Accepted] };
        let mut fates = Vec::new();
        if table.walk(chain, packet, 0, &mut fates) {
            fates.push(match table.closed.contains(chain) {
                true => Fate::Refused(format!("the policy of chain {chain} is DROP")),
                false => Fate::Accepted,
            });
        }
        fates
    }
}

impl Table {
    /// Whether the packet may come to the end of the chain.
    fn walk(&self, chain: &str, packet: &mut Packet, depth: usize, fates: &mut Vec<Fate>) -> bool {
        let Some(rules) = self.chains.get(chain).filter(|_| depth < DEEPEST) else { return true };
        let mut comes_back = false;
        for rule in rules {
            let fit = rule.fits(packet);
            if fit == Fit::No {
                continue;
            }
            let ends = match rule.target.as_str() {
                "RETURN" => {
                    comes_back = true;
                    true
                }
                chain if self.chains.contains_key(chain) && chain != "KUBE-MARK-DROP" => {
                    let returns = self.walk(chain, packet, depth + 1, fates);
                    comes_back |= returns && rule.goes_for_good;
                    !returns || rule.goes_for_good
                }
                "MARK" if fit == Fit::Yes => {
                    rule.mark(packet);
                    false
                }
                _ => rule.fate(packet).map(|fate| fates.push(fate)).is_some(),
            };
            if ends && fit == Fit::Yes {
                return comes_back;
            }
        }
        true
    }
}

impl Rule {
    fn parse(line: &str, rest: &str) -> Rule {
        let mut rule = Rule { text: line.into(), ..Rule::default() };
        let (mut module, mut not, mut in_target) = (String::new(), false, false);
        for word in words(rest) {
            let list = if in_target { &rule.args } else { &rule.checks };
            // Whatever a person says of the rule is no part of it.
            let is_said = list.last().is_some_and(|check| check.name == "--comment" && check.values.is_empty());
            let is_option = word.starts_with('-') && word.len() > 1 && !is_said;
            if word == "!" && !is_said {
                not = true;
            } else if is_option {
                in_target |= matches!(word.as_str(), "-j" | "-g");
                rule.goes_for_good |= word == "-g";
                let check = Check { module: module.clone(), not, name: word, values: Vec::new() };
                if in_target {
                    rule.args.push(check)
                } else {
                    rule.checks.push(check)
                }
                not = false;
            } else {
                let list = if in_target { &mut rule.args } else { &mut rule.checks };
                let Some(check) = list.last_mut() else { continue };
                match check.name.as_str() {
                    "-m" => module.clone_from(&word),
                    "-j" | "-g" => rule.target.clone_from(&word),
                    _ => {}
                }
                check.values.push(word);
            }
        }
        rule
    }

    fn fits(&self, packet: &Packet) -> Fit {
        let mut fit = Fit::Yes;
        for check in &self.checks {
            match check.fits(packet) {
                Fit::No => return Fit::No,
                Fit::Maybe => fit = Fit::Maybe,
                Fit::Yes => {}
            }
        }
        fit
    }

    /// What its target says; nothing where the packet goes on.
    fn fate(&self, packet: &Packet) -> Option<Fate> {
        match self.target.as_str() {
            "ACCEPT" => Some(Fate::Accepted),
            "DROP" | "REJECT" | "KUBE-MARK-DROP" => Some(Fate::Refused(self.text.clone())),
            "DNAT" => Some(match self.destination(packet) {
                Some(to) => Fate::Led(to, self.text.clone()),
                None => Fate::Elsewhere(self.text.clone()),
            }),
            "REDIRECT" | "TPROXY" | "NETMAP" | "NFQUEUE" | "QUEUE" => Some(Fate::Elsewhere(self.text.clone())),
            _ => None,
        }
    }

    fn argument(&self, name: &str) -> Option<&str> {
        self.args.iter().find(|arg| arg.name == name)?.values.first().map(String::as_str)
    }

    fn destination(&self, packet: &Packet) -> Option<SocketAddr> {
        let to = self.argument("--to-destination")?;
        let bare = || Some(SocketAddr::new(to.parse().ok()?, packet.port?));
        to.parse().ok().or_else(bare)
    }

    fn mark(&self, packet: &mut Packet) {
        if let Some((value, mask)) = self.argument("--set-xmark").and_then(masked) {
            packet.mark = (packet.mark & !mask) ^ value;
        }
    }
}

impl Check {
    fn fits(&self, packet: &Packet) -> Fit {
        match (self.plainly(packet), self.not) {
            (Fit::Yes, true) => Fit::No,
            (Fit::No, true) => Fit::Yes,
            (fit, _) => fit,
        }
    }

    /// Without the `!` in front of it.
    fn plainly(&self, packet: &Packet) -> Fit {
        let value = self.values.first().map(String::as_str).unwrap_or_default();
        let state = |new: &str| value.split(',').any(|word| word == new).into();
        match self.name.as_str() {
            "-m" | "--comment" => Fit::Yes,
            "-s" => within(value, packet.from),
            "-d" => within(value, packet.to),
            "-p" => is_protocol(value, packet.protocol),
            "-i" => is_link(value, packet.iif).into(),
            "-o" => packet.oif.map_or(Fit::Maybe, |oif| is_link(value, oif).into()),
            "--dport" | "--dports" => packet.port.is_some_and(|port| is_port(value, port)).into(),
            "--dst-type" if value == "LOCAL" => packet.local.contains(&packet.to).into(),
            "--src-type" if value == "LOCAL" => packet.local.contains(&packet.from).into(),
            "--ctstate" | "--state" => match state("NEW") {
                // What has become of it by then is not known here.
                Fit::No if ["DNAT", "SNAT", "UNTRACKED"].iter().any(|word| state(word) == Fit::Yes) => Fit::Maybe,
                is_new => is_new,
            },
            "--ctdir" => state("ORIGINAL"),
            "--mark" => {
                let mark = if self.module == "connmark" { 0 } else { packet.mark };
                masked(value).map_or(Fit::Maybe, |(value, mask)| (mark & mask == value).into())
            }
            _ => Fit::Maybe,
        }
    }
}

fn within(net: &str, addr: IpAddr) -> Fit {
    let net = net.parse::<IpNet>().ok().or_else(|| net.parse::<IpAddr>().ok().map(IpNet::from));
    net.map_or(Fit::Maybe, |net| net.contains(&addr).into())
}

fn is_protocol(name: &str, protocol: u8) -> Fit {
    match name {
        "all" => Fit::Yes,
        "tcp" => (protocol == TCP).into(),
        "udp" => (protocol == UDP).into(),
        "sctp" => (protocol == SCTP).into(),
        "icmp" | "ipv6-icmp" => (protocol == ICMP).into(),
        other => other.parse().map_or(Fit::No, |number: u8| (number == protocol).into()),
    }
}

fn is_link(pattern: &str, link: &str) -> bool {
    pattern.strip_suffix('+').map_or(pattern == link, |start| link.starts_with(start))
}

/// Whether one of the ports `80,443,30000:32767` is this.
fn is_port(list: &str, port: u16) -> bool {
    list.split(',').any(|one| {
        let (first, last) = one.split_once(':').unwrap_or((one, one));
        let number = |text: &str, none: u16| if text.is_empty() { Some(none) } else { text.parse().ok() };
        let range = number(first, 0).zip(number(last, u16::MAX));
        range.is_some_and(|(first, last)| (first..=last).contains(&port))
    })
}

/// `0x4000/0x4000`
fn masked(text: &str) -> Option<(u32, u32)> {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    match text.split_once('/') {
        Some((value, mask)) => number(value).zip(number(mask)),
        None => number(text).zip(Some(u32::MAX)),
    }
}

/// As iptables-save(8) quotes them.
fn words(text: &str) -> Vec<String> {
    let (mut all, mut word, mut quoted, mut begun) = (Vec::new(), String::new(), false, false);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' if quoted => word.extend(chars.next()),
            '"' => {
                quoted = !quoted;
                begun = true;
            }
            ' ' if !quoted => {
                if begun {
                    all.push(std::mem::take(&mut word));
                }
                begun = false;
            }
            c => {
                word.push(c);
                begun = true;
            }
        }
    }
    if begun {
        all.push(word);
    }
    all
}

/// What a rule says for people, without the quotes.
pub fn comment(rule: &str) -> Option<String> {
    let words = words(rule);
    let at = words.iter().position(|word| word == "--comment")?;
    words.get(at + 1).cloned()
}

/// The chain that a rule stands in.
pub fn chain(rule: &str) -> Option<&str> {
    rule.strip_prefix("-A ")?.split(' ').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fates(text: &str, table: &str, chain: &str, change: impl Fn(&mut Packet)) -> Vec<Fate> {
        let local = BTreeSet::from(["192.168.0.7".parse().unwrap()]);
        let mut packet = Packet {
            from: "10.1.0.5".parse().unwrap(),
            to: "172.21.0.80".parse().unwrap(),
            protocol: TCP,
            port: Some(80),
            iif: "cali1",
            oif: Some("eth1"),
            mark: 0x20,
            local: &local,
        };
        change(&mut packet);
        Tables::parse(text).walk(table, chain, &mut packet)
    }

    const NAT: &str = r#"*nat
:PREROUTING ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-SVC-A - [0:0]
:KUBE-SEP-1 - [0:0]
:KUBE-SEP-2 - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-SERVICES -d 172.21.0.80/32 -p tcp -m comment --comment "default/web:http cluster IP" -m tcp --dport 80 -j KUBE-SVC-A
-A KUBE-SERVICES -m comment --comment "nodeports; last \"rule\"" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-NODEPORTS -p tcp -m comment --comment "default/web:http" -m tcp --dport 30080 -j KUBE-SVC-A
-A KUBE-SVC-A ! -s 10.1.0.0/16 -d 172.21.0.80/32 -p tcp -m tcp --dport 80 -j KUBE-MARK-MASQ
-A KUBE-SVC-A -m comment --comment "default/web:http -> 10.1.0.8:8080" -m statistic --mode random --probability 0.50000000000 -j KUBE-SEP-1
-A KUBE-SVC-A -m comment --comment "default/web:http -> 10.1.0.9:8080" -j KUBE-SEP-2
-A KUBE-SEP-1 -p tcp -m comment --comment "default/web:http" -m tcp -j DNAT --to-destination 10.1.0.8:8080
-A KUBE-SEP-2 -p tcp -m comment --comment "default/web:http" -m tcp -j DNAT --to-destination 10.1.0.9:8080
COMMIT
"#;

    fn led(fates: &[Fate]) -> Vec<String> {
        let to = |fate: &Fate| match fate {
            Fate::Led(to, _) => to.to_string(),
            other => format!("{other:?}"),
        };
        fates.iter().map(to).collect()
    }

    #[test]
    fn all_endpoints_that_chance_may_choose_are_found_by_address_and_by_node_port() {
        let both = ["10.1.0.8:8080", "10.1.0.9:8080"];
        assert_eq!(led(&fates(NAT, "nat", "PREROUTING", |_| {})), both);
        let on_node = |p: &mut Packet, port| (p.to, p.port) = ("192.168.0.7".parse().unwrap(), Some(port));
        assert_eq!(led(&fates(NAT, "nat", "PREROUTING", |p| on_node(p, 30080))), both);
        assert_eq!(fates(NAT, "nat", "PREROUTING", |p| on_node(p, 30081)), [Fate::Accepted]);
        assert_eq!(fates(NAT, "nat", "PREROUTING", |p| p.port = Some(81)), [Fate::Accepted]);
        assert_eq!(fates(NAT, "nat", "PREROUTING", |p| p.protocol = UDP), [Fate::Accepted]);
    }

    #[test]
    fn marks_set_on_the_way_are_what_later_rules_see() {
        let local = BTreeSet::new();
        let to = "172.21.0.80".parse().unwrap();
        let mut packet = Packet {
            from: "10.2.0.5".parse().unwrap(),
            to,
            protocol: TCP,
            port: Some(80),
            iif: "eth0",
            oif: Some("cali1"),
            mark: 0x20,
            local: &local,
        };
        Tables::parse(NAT).walk("nat", "PREROUTING", &mut packet);
        assert_eq!(packet.mark, 0x4020);
        let filter = "*filter\n:FORWARD DROP [0:0]\n:KUBE-FORWARD - [0:0]\n-A FORWARD -j KUBE-FORWARD\n\
                      -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\n\
                      -A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT\n\
                      -A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\nCOMMIT\n";
        let tables = Tables::parse(filter);
        assert_eq!(tables.walk("filter", "FORWARD", &mut packet), [Fate::Accepted]);
        packet.mark = 0x20;
        let closed = Fate::Refused("the policy of chain FORWARD is DROP".into());
        assert_eq!(tables.walk("filter", "FORWARD", &mut packet), [closed]);
    }

    #[test]
    fn what_is_refused_is_told_by_the_rule_that_does_it() {
        let rule = "-A KUBE-SERVICES -d 172.21.0.80/32 -p tcp -m comment --comment \"default/web:http has no endpoints\" \
                    -m tcp --dport 80 -j REJECT --reject-with icmp-port-unreachable";
        let text = format!(
            "*filter\n:FORWARD ACCEPT [0:0]\n:KUBE-SERVICES - [0:0]\n-A FORWARD -m conntrack --ctstate NEW -j KUBE-SERVICES\n{rule}\nCOMMIT\n"
        );
        assert_eq!(fates(&text, "filter", "FORWARD", |_| {}), [Fate::Refused(rule.into())]);
        assert_eq!(comment(rule).as_deref(), Some("default/web:http has no endpoints"));
        assert_eq!(chain(rule), Some("KUBE-SERVICES"));
        // What is said of a rule is no option of it.
        let said = text.replace("-m conntrack", "-m comment --comment -sorted -m comment --comment \"!\" -m conntrack");
        assert_eq!(fates(&said, "filter", "FORWARD", |_| {}), [Fate::Refused(rule.into())]);
        // Whether an address was translated is not known: both ways are told.
        let led = "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -m conntrack --ctstate DNAT -j ACCEPT\nCOMMIT\n";
        assert_eq!(fates(led, "filter", "FORWARD", |_| {})[0], Fate::Accepted);
        // What a set or a rate decides is not known: both ways are told.
        let maybe = "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -m set --match-set bad src -j DROP\nCOMMIT\n";
        let dropped = Fate::Refused("-A FORWARD -m set --match-set bad src -j DROP".into());
        assert_eq!(fates(maybe, "filter", "FORWARD", |_| {}), [dropped, Fate::Accepted]);
    }

    #[test]
    fn a_chain_that_is_gone_to_returns_behind_the_one_that_sent_there() {
        let text = "*filter\n:FORWARD DROP [0:0]\n:A - [0:0]\n:B - [0:0]\n-A FORWARD -j A\n-A FORWARD -j ACCEPT\n-A A -g B\n-A A -j DROP\n\
                    -A B -i cali+ -j RETURN\n-A B -j DROP\nCOMMIT\n";
        assert_eq!(fates(text, "filter", "FORWARD", |_| {}), [Fate::Accepted]);
        assert_eq!(fates(text, "filter", "FORWARD", |p| p.iif = "eth5"), [Fate::Refused("-A B -j DROP".into())]);
        let circle = "*filter\n:FORWARD ACCEPT [0:0]\n:A - [0:0]\n-A FORWARD -j A\n-A A -j A\nCOMMIT\n";
        assert_eq!(fates(circle, "filter", "FORWARD", |_| {}), [Fate::Accepted]);
    }

    #[test]
    fn ports_and_networks_are_read_in_all_their_forms() {
        assert!(is_port("80", 80) && is_port("22,30000:32767", 31000) && is_port(":100", 7) && is_port("100:", 200));
        assert!(!is_port("80", 81) && !is_port("22,30000:32767", 80) && !is_port("x", 80));
        assert_eq!(masked("0x4000/0xc000"), Some((0x4000, 0xc000)));
        let v6 = "[fd00::1]:8080";
        let rule = Rule::parse("", &format!("-p tcp -j DNAT --to-destination {v6}"));
        let local = BTreeSet::new();
        let to = "fd00::9".parse().unwrap();
        let packet = Packet { from: to, to, protocol: TCP, port: Some(80), iif: "", oif: None, mark: 0, local: &local };
        assert_eq!(rule.destination(&packet), v6.parse().ok());
        let bare = Rule::parse("", "-p tcp -j DNAT --to-destination fd00::1");
        assert_eq!(bare.destination(&packet), "[fd00::1]:80".parse().ok());
    }
}
