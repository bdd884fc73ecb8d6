//! Rules as ipset(8) and iptables(8) know them: sets of addresses, and chains of the mangle table that walk a pod's rules in order.
//!
//! The mangle table's FORWARD is after kube-proxy's translation and before everybody's filter table: the real backend is seen, no
//! ACCEPT of others comes first, and what we let pass we RETURN, for others to judge. No packet is waved through because its
//! connection once was: packets of the side that opened it are judged as they are, answers by the same rules turned round. So a
//! changed policy holds at once for connections that stand, and there is no state to lose.
//!
//! A chain is named by its content and never changed; three that the built-in chains jump to are rewritten when all others are there.
//! All that is dropped is dropped in one of two chains, which stay as they are, so that what they have counted stays too.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use ipnet::IpNet;

use crate::error::Error;
use crate::ours;
use crate::rules::{
    Action, Cell, ClassId, DIRECTIONS, Direction, ICMP, ICMPV6, Icmp, Origin, PeerId, Pods, PortList, Rule, RuleSet,
    Rules, SetId, TCP, Tier, Traffic, UDP,
};

/// Ports in a rule; a range counts for two.
const MULTIPORT: usize = 15;
/// So many times that in one line: iptables-restore(8) takes some 250 words, and five go into each.
const EXCEPTIONS: usize = 16;
/// Up to so many pods are looked through one by one.
const FEW: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    V4,
    V6,
}

pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

impl Family {
    pub fn of(addr: &IpAddr) -> Family {
        if addr.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    fn root(self) -> IpNet {
        let any: IpAddr = match self {
            Family::V4 => std::net::Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
        };
        IpNet::new(any, 0).expect("it is one")
    }

    /// What no `hash:net` can have as one member.
    fn halves(self) -> [IpNet; 2] {
        let mut halves = self.root().subnets(1).expect("it has two");
        std::array::from_fn(|_| halves.next().expect("it has two"))
    }
}

/// Of a set; the longest prefix counts. False: `nomatch`.
pub type Members = BTreeMap<IpNet, bool>;

/// What a set is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Use {
    Peer(PeerId),
    /// The pods that have rules of this direction.
    Ruled(Direction),
}

/// Lines by chain, each without its `-A CHAIN`.
pub type Chains = BTreeMap<String, Arc<[String]>>;

/// What chains of ours are for, and how they are known.
#[derive(Debug)]
pub struct Purpose {
    /// How their names begin.
    pub prefix: &'static str,
    /// What our jumps from built-in chains bear as a comment.
    pub comment: &'static str,
    /// A built-in chain and ours that it jumps to.
    pub hooks: &'static [(&'static str, &'static str)],
    /// Where packets to pods and from pods are dropped.
    pub drops: &'static [(&'static str, &'static str)],
}

pub static POLICIES: Purpose = Purpose {
    prefix: ours::POLICY_PREFIX,
    comment: ours::POLICY_COMMENT,
    hooks: &[("FORWARD", "TERWAY-P-FORWARD"), ("INPUT", "TERWAY-P-INPUT"), ("OUTPUT", "TERWAY-P-OUTPUT")],
    drops: &[("to_pod", "TERWAY-P-DROP-TO"), ("from_pod", "TERWAY-P-DROP-FROM")],
};

/// That pods send in their own name.
pub static SOURCES: Purpose = Purpose {
    prefix: ours::SOURCE_PREFIX,
    comment: ours::SOURCE_COMMENT,
    hooks: &[("PREROUTING", "TERWAY-S-PREROUTING")],
    drops: &[("from_pod", "TERWAY-S-DROP")],
};

/// Drops what comes by a pod's veth from an address that does not lead back there: one rule for all pods, since each has a route of its own
/// before all others. A source in IPv6 that nobody can answer to is neighbour discovery's (and that of who reports the groups that
/// it listens to), and a link-local one ends at the node.
pub fn sources(family: Family) -> Chains {
    let [(_, hook)] = SOURCES.hooks else { unreachable!("it is above") };
    let [(_, drops)] = SOURCES.drops else { unreachable!("it is above") };
    let mut lines = Vec::new();
    if family == Family::V6 {
        let icmp = family.icmp().protocol;
        lines.push(format!("-s ::/128 ! -p {icmp} -g {drops}"));
        lines.push(format!("-s fe80::/10 -p {icmp} -j RETURN"));
        lines.extend(["fe80::/10", "ff00::/8"].map(|near| format!("-s fe80::/10 -d {near} -j RETURN")));
        lines.push(format!("-s fe80::/10 -g {drops}"));
    }
    lines.push(format!("-m rpfilter --invert -g {drops}"));
    let rules = ours::source_chain(&lines.join("\n"));
    let hooked = format!("-i {}+ -j {rules}", ours::VETH);
    [(rules, lines), ((*hook).to_owned(), vec![hooked]), ((*drops).to_owned(), vec!["-j DROP".to_owned()])]
        .into_iter()
        .map(|(name, lines)| (name, lines.into()))
        .collect()
}

/// All sets that are not empty.
pub fn sets(rules: &Rules, pods: &Pods, family: Family) -> BTreeMap<Use, Members> {
    let mut sets = peers(rules, family);
    for direction in DIRECTIONS {
        let ruled = ruled(rules, pods, family, direction);
        if !ruled.is_empty() {
            let members = ruled.iter().map(|ruled| (IpNet::from(ruled.addr), true));
            sets.insert(Use::Ruled(direction), members.collect());
        }
    }
    sets
}

/// The addresses of each peer: listed prefixes in which the answer is another than around them.
fn peers(rules: &Rules, family: Family) -> BTreeMap<Use, Members> {
    let mut sets = BTreeMap::<Use, Members>::new();
    let mut around: Vec<(&IpNet, &[PeerId])> = Vec::new();
    let matched = |class: &ClassId| rules.classes.get(class).map_or(&[][..], |peers| peers);
    for (net, class) in rules.prefixes.iter().filter(|(net, _)| Family::of(&net.addr()) == family) {
        while around.last().is_some_and(|(outer, _)| !outer.contains(net)) {
            around.pop();
        }
        let (outer, own) = (around.last().map_or(&[][..], |(_, peers)| peers), matched(class));
        let mut differ = |some: &[PeerId], others: &[PeerId], is_in| {
            for peer in some.iter().filter(|peer| !others.contains(peer)) {
                sets.entry(Use::Peer(*peer)).or_default().insert(*net, is_in);
            }
        };
        differ(own, outer, true);
        differ(outer, own, false);
        around.push((net, own));
    }
    for members in sets.values_mut() {
        if let Some(is_in) = members.remove(&family.root()) {
            family.halves().into_iter().for_each(|half| {
                members.entry(half).or_insert(is_in);
            });
        }
    }
    sets
}

/// A pod's address, its links, and its rules.
struct Ruled<'a> {
    addr: IpAddr,
    veths: &'a [String],
    id: SetId,
    rules: &'a Arc<RuleSet>,
}

/// What becomes of a pod that runs and that the API server does not have any more: nothing passes but what the node sends to it. No other
/// set of rules has the number.
const NOBODYS: SetId = 0;
static CLOSED: LazyLock<Arc<RuleSet>> = LazyLock::new(|| {
    let end = Cell { allow: false, log: false, origin: Origin::Unknown("the pod".into()) };
    Arc::new(RuleSet { tiers: [Tier { rules: Box::default(), end: Some(end) }].into() })
});

/// Pods whose packets in this direction are judged, by address.
fn ruled<'a>(rules: &'a Rules, pods: &'a Pods, family: Family, direction: Direction) -> Vec<Ruled<'a>> {
    let with_rules = pods.iter().filter_map(|(name, placed)| match rules.pods.get(name) {
        Some(sets) => Some((placed, sets.of(direction), &rules.sets.get(&sets.of(direction))?.rules)),
        None => Some((placed, NOBODYS, &*CLOSED)),
    });
    let judged = with_rules.filter(|(.., rules)| !rules.tiers.is_empty());
    let mut all: Vec<Ruled> = judged
        .flat_map(|(placed, id, rules)| {
            placed.ips.iter().map(move |addr| Ruled { addr: *addr, veths: &placed.veths, id, rules })
        })
        .collect();
    all.retain(|ruled| Family::of(&ruled.addr) == family);
    all.sort_by_key(|ruled| ruled.addr);
    all
}

/// What sets of rules have come to before: that is most of the work, and a change is about few of them.
#[derive(Default)]
pub struct Memory(BTreeMap<(SetId, Way), Remembered>);

struct Remembered {
    rules: Arc<RuleSet>,
    /// What their peers are called; they come to the same while these go by the same names.
    peers: Vec<(PeerId, Option<String>)>,
    then: Then,
    chains: Chains,
}

/// In which sets kube-proxy has what IPVS leads (of IPv6 they are `KUBE-6-…`), and of what they are asked.
const LED: [(&str, &str); 7] = [
    ("CLUSTER-IP", "dst,dst"),
    ("EXTERNAL-IP", "dst,dst"),
    ("EXTERNAL-IP-LOCAL", "dst,dst"),
    ("LOAD-BALANCER", "dst,dst"),
    ("NODE-PORT-SCTP-HASH", "dst,dst"),
    ("NODE-PORT-TCP", "dst"),
    ("NODE-PORT-UDP", "dst"),
];

/// What IPVS leads to a backend once it was delivered to the node, as matches of it. Empty: nothing is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Led(Vec<String>);

impl Led {
    /// By which sets are there.
    pub fn by(family: Family, mut is_there: impl FnMut(&str) -> Result<bool, Error>) -> Result<Led, Error> {
        let mut matches = Vec::new();
        for (of, sides) in LED {
            let set = format!("{}{of}", if family == Family::V4 { "KUBE-" } else { "KUBE-6-" });
            let protocol = match of {
                "NODE-PORT-TCP" => format!("-p {TCP} "),
                "NODE-PORT-UDP" => format!("-p {UDP} "),
                _ => String::new(),
            };
            if is_there(&set)? {
                matches.push(format!("{protocol}-m set --match-set {set} {sides}"));
            }
        }
        Ok(Led(matches))
    }
}

/// All chains, where sets have these names; none where no pod has rules.
///
/// Where IPVS leads, what is for a Service is delivered to the node (INPUT), and goes on to its backend from there (OUTPUT), with the
/// address that it came from: it is judged there, by both sides, and not here.
pub fn chains(
    rules: &Rules,
    pods: &Pods,
    sets: &BTreeMap<Use, Members>,
    names: &BTreeMap<Use, String>,
    family: Family,
    led: &Led,
    memory: &mut Memory,
) -> Chains {
    let mut author = Author { family, sets, names, chains: Chains::new(), memory, done: BTreeMap::new() };
    let mut forward = Vec::new();
    let (mut input, mut answers) = (Vec::new(), Vec::new());
    let (mut nodes_answers, mut led_on) = (Vec::new(), Vec::new());
    for direction in [Direction::Egress, Direction::Ingress] {
        let Some(gate) = names.get(&Use::Ruled(direction)) else { continue };
        let ruled = ruled(rules, pods, family, direction);
        let end = |way: Way| if way.pod_is_source() { "src" } else { "dst" };
        let [asked, answered] = [false, true].map(|turned| Way { direction, turned });
        let judges = author.dispatch(&ruled, asked);
        let is_ruled = format!("-m set --match-set {gate} {}", end(asked));
        let judge = format!("{is_ruled} -j {judges}");
        if *led != Led::default() {
            led_on.push(format!("{is_ruled} -m addrtype ! --src-type LOCAL -j {judges}"));
        }
        let to = author.dispatch(&ruled, answered);
        let judge_answer = format!("-m set --match-set {gate} {} -j {to}", end(answered));
        if direction == Direction::Egress {
            input.push(format!("{is_ruled} -j {}", author.but_led(led, &judges)));
            nodes_answers.push(judge_answer.clone());
            // Those no address tells apart.
            let near = (family == Family::V6).then(|| author.dispatch_near(&ruled)).flatten();
            input.extend(near.map(|near| format!("-s fe80::/10 -i {}+ -j {near}", ours::VETH)));
        }
        forward.push(judge);
        answers.push(judge_answer);
    }
    author.memory.0.retain(|key, _| author.done.contains_key(key));
    if forward.is_empty() {
        return Chains::new();
    }
    for (_, name) in POLICIES.drops {
        author.chains.insert((*name).to_owned(), Arc::new(["-j DROP".to_owned()]));
    }
    let protocol = family.icmp().protocol;
    // What ICMP says about a connection goes where the connection goes.
    let errors = format!("-p {protocol} -m conntrack --ctstate RELATED -j RETURN");
    let answers = author.chain("A", answers);
    forward.splice(0..0, [errors.clone(), format!("-m conntrack --ctdir REPLY -g {answers}")]);
    if !input.is_empty() {
        // The node has opened these, and reaches its pods whatever they say.
        input.splice(0..0, [errors.clone(), "-m conntrack --ctdir REPLY -j RETURN".to_owned()]);
    }
    let mut output = Vec::new();
    if !nodes_answers.is_empty() || !led_on.is_empty() {
        let answers = author.chain("A", nodes_answers);
        output = vec![errors, format!("-m conntrack --ctdir REPLY -g {answers}")];
        output.extend(led_on);
    }
    for ((_, name), lines) in POLICIES.hooks.iter().zip([forward, input, output]) {
        if !lines.is_empty() {
            author.chains.insert((*name).to_owned(), lines.into());
        }
    }
    author.chains
}

/// Which of a packet's ends are whose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Way {
    direction: Direction,
    /// It answers one that the rules are about.
    turned: bool,
}

impl Way {
    fn pod_is_source(self) -> bool {
        (self.direction == Direction::Egress) != self.turned
    }

    fn drop(self) -> Then {
        Then::Go(POLICIES.drops[usize::from(self.pod_is_source())].1.to_owned())
    }

    /// Where the other side's address is.
    fn other(self) -> &'static str {
        if self.pod_is_source() { "dst" } else { "src" }
    }
}

/// How a family's ICMP is said.
struct Icmps {
    protocol: u8,
    module: &'static str,
    option: &'static str,
    /// Questions, and their answers: what conntrack takes for a connection.
    pairs: &'static [(u8, u8)],
}

impl Family {
    fn icmp(self) -> Icmps {
        match self {
            Family::V4 => Icmps {
                protocol: ICMP,
                module: "icmp",
                option: "--icmp-type",
                pairs: &[(8, 0), (13, 14), (15, 16), (17, 18)],
            },
            Family::V6 => {
                Icmps { protocol: ICMPV6, module: "icmp6", option: "--icmpv6-type", pairs: &[(128, 129), (139, 140)] }
            }
        }
    }
}

/// What becomes of a packet that has come here.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Then {
    Pass,
    Go(String),
}

impl fmt::Display for Then {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Then::Pass => f.write_str("-j RETURN"),
            Then::Go(chain) => write!(f, "-g {chain}"),
        }
    }
}

struct Author<'a> {
    family: Family,
    sets: &'a BTreeMap<Use, Members>,
    names: &'a BTreeMap<Use, String>,
    chains: Chains,
    memory: &'a mut Memory,
    /// What is certain by now.
    done: BTreeMap<(SetId, Way), Then>,
}

impl Author<'_> {
    /// The chain with this content.
    fn chain(&mut self, kind: &str, lines: Vec<String>) -> String {
        let name = ours::policy_chain(kind, &lines.join("\n"));
        self.chains.insert(name.clone(), lines.into());
        name
    }

    /// Leads a pod's packets to its rules; by their address' last bits where there are many pods.
    fn dispatch(&mut self, ruled: &[Ruled], way: Way) -> String {
        let mut lines = self.discovery();
        if ruled.len() <= FEW {
            lines.extend(self.pods(ruled.iter(), way));
            return self.chain("D", lines);
        }
        let last = |addr: &IpAddr| match addr {
            IpAddr::V4(addr) => addr.octets()[3] & 15,
            IpAddr::V6(addr) => addr.octets()[15] & 15,
        };
        for bits in 0..16 {
            let pods: Vec<&Ruled> = ruled.iter().filter(|ruled| last(&ruled.addr) == bits).collect();
            if pods.is_empty() {
                continue;
            }
            let lines_of = self.pods(pods.into_iter(), way);
            let bucket = self.chain("D", lines_of);
            let mask = match self.family {
                Family::V4 => format!("0.0.0.{bits}/0.0.0.15"),
                Family::V6 => format!("::{bits:x}/::f"),
            };
            lines.push(format!("{} {mask} -g {bucket}", if way.pod_is_source() { "-s" } else { "-d" }));
        }
        self.chain("D", lines)
    }

    /// What is for the node itself goes there, and what IPVS leads on is let alone.
    fn but_led(&mut self, Led(matches): &Led, to: &str) -> String {
        if matches.is_empty() {
            return to.to_owned();
        }
        let mut lines: Vec<String> = matches.iter().map(|led| format!("{led} -j RETURN")).collect();
        lines.push(format!("-g {to}"));
        self.chain("N", lines)
    }

    fn discovery(&self) -> Vec<String> {
        let Icmps { protocol, module, option, .. } = self.family.icmp();
        let kinds = (133..=137).filter(|_| self.family == Family::V6);
        kinds.map(|kind| format!("-p {protocol} -m {module} {option} {kind} -j RETURN")).collect()
    }

    /// Leads what pods send to the node from link-local addresses to their rules: by the link that it comes by, as its first letters tell where
    /// there are many. None: no such pod has a link, or any rules.
    fn dispatch_near(&mut self, ruled: &[Ruled]) -> Option<String> {
        let way = Way { direction: Direction::Egress, turned: false };
        let mut by_veth: BTreeMap<&String, Then> = BTreeMap::new();
        for ruled in ruled {
            let then = self.remembered(ruled, way);
            by_veth.extend(ruled.veths.iter().filter(|_| then != Then::Pass).map(|veth| (veth, then.clone())));
        }
        if by_veth.is_empty() {
            return None;
        }
        let mut lines = self.discovery();
        let line = |(veth, then): (&&String, &Then)| format!("-i {veth} {then}");
        if by_veth.len() <= FEW {
            lines.extend(by_veth.iter().map(line));
            return Some(self.chain("D", lines));
        }
        let mut buckets: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for (veth, then) in &by_veth {
            let start = veth.get(..=ours::VETH.len()).unwrap_or(veth);
            buckets.entry(start).or_default().push(line((veth, then)));
        }
        for (start, own) in buckets {
            let bucket = self.chain("D", own);
            lines.push(format!("-i {start}+ -g {bucket}"));
        }
        Some(self.chain("D", lines))
    }

    fn pods<'b>(&mut self, ruled: impl Iterator<Item = &'b Ruled<'b>>, way: Way) -> Vec<String> {
        let mut lines = Vec::new();
        for ruled in ruled {
            let (addr, then) = (ruled.addr, self.remembered(ruled, way));
            let end = if way.pod_is_source() { "-s" } else { "-d" };
            if then != Then::Pass {
                // By way of a Service a pod reaches itself.
                lines.push(format!("-s {addr} -d {addr} -j RETURN"));
                lines.push(format!("{end} {addr} {then}"));
            }
        }
        lines
    }

    fn remembered(&mut self, Ruled { id, rules, .. }: &Ruled, way: Way) -> Then {
        let key = (*id, way);
        if let Some(then) = self.done.get(&key) {
            return then.clone();
        }
        let is_same = |known: &Remembered| {
            let called = |(peer, name): &(PeerId, Option<String>)| self.called(*peer) == name.as_deref();
            Arc::ptr_eq(&known.rules, rules) && known.peers.iter().all(called)
        };
        if !self.memory.0.get(&key).is_some_and(is_same) {
            let others = std::mem::take(&mut self.chains);
            let then = self.rule_set(rules, way);
            let chains = std::mem::replace(&mut self.chains, others);
            let peers = rules.peers().into_iter().map(|peer| (peer, self.called(peer).map(str::to_owned))).collect();
            self.memory.0.insert(key, Remembered { rules: (*rules).clone(), peers, then, chains });
        }
        let known = &self.memory.0[&key];
        self.chains.extend(known.chains.iter().map(|(name, lines)| (name.clone(), lines.clone())));
        self.done.insert(key, known.then.clone());
        known.then.clone()
    }

    /// How lines speak of a peer. Empty: it is everybody; none: nobody.
    fn called(&self, peer: PeerId) -> Option<&str> {
        let members = self.sets.get(&Use::Peer(peer))?;
        let is_all = members.len() == 2 && self.family.halves().iter().all(|half| members.get(half) == Some(&true));
        Some(if is_all { "" } else { &self.names[&Use::Peer(peer)] })
    }

    fn rule_set(&mut self, rules: &RuleSet, way: Way) -> Then {
        rules.tiers.iter().rev().fold(Then::Pass, |next, tier| self.tier(tier, next, way))
    }

    /// Written from its end on: a rule that needs a chain of its own leads on to one with all that follows.
    fn tier(&mut self, tier: &Tier, next: Then, way: Way) -> Then {
        let mut after = match &tier.end {
            Some(cell) if cell.allow => Then::Pass,
            Some(_) => way.drop(),
            None => next.clone(),
        };
        let mut lines: Vec<String> = Vec::new();
        for rule in tier.rules.iter().rev() {
            let Some(matches) = self.matches(rule, way) else { continue };
            let action = match rule.action {
                Action::Allow => Then::Pass.to_string(),
                Action::Deny => way.drop().to_string(),
                Action::Pass => next.to_string(),
                Action::Log => LOG.to_owned(),
            };
            let but = self.exceptions(rule, way);
            if but.is_empty() {
                lines.extend(matches.iter().rev().map(|one| format!("{one} {action}").trim_start().to_owned()));
                continue;
            }
            after = self.finish(lines, after);
            let mut own: Vec<String> = but.iter().map(|one| format!("{one} {after}")).collect();
            own.push(action);
            if rule.action == Action::Log {
                own.push(after.to_string());
            }
            let own = Then::Go(self.chain("R", own));
            lines = matches.iter().rev().map(|one| format!("{one} {own}").trim_start().to_owned()).collect();
        }
        self.finish(lines, after)
    }

    /// The chain with these lines, last first, before what comes after them.
    fn finish(&mut self, mut lines: Vec<String>, after: Then) -> Then {
        lines.reverse();
        if lines.is_empty() {
            return after;
        }
        if after != Then::Pass {
            lines.push(after.to_string());
        }
        Then::Go(self.chain("R", lines))
    }

    /// Every way to match a rule, short of its exceptions. None: there is none.
    fn matches(&self, rule: &Rule, way: Way) -> Option<Vec<String>> {
        let traffic = &rule.traffic;
        let mut all = rule.peer.map_or(Some(String::new()), |peer| self.peer(peer, way))?;
        match (traffic.protocol, traffic.not_protocol) {
            (Some(one), Some(other)) if one == other => return None,
            (Some(one), _) => all += &format!(" -p {one}"),
            (None, Some(other)) => all += &format!(" ! -p {other}"),
            (None, None) => {}
        }
        for (icmp, is_not) in [(traffic.icmp, false), (traffic.not_icmp, true)] {
            all += &icmp.map_or(Some(String::new()), |icmp| self.icmp(traffic.protocol, icmp, is_not, way))?;
        }
        let sides = [(&traffic.from, way.turned), (&traffic.to, !way.turned)];
        for (ports, is_to) in sides.into_iter().filter(|_| !is_long(traffic)) {
            for chunk in chunks(&ports.none_of) {
                all += &format!(" -m multiport ! {} {chunk}", option(is_to));
            }
        }
        let mut ways = vec![all];
        for (ports, is_to) in sides {
            let Some(any) = &ports.any_of else { continue };
            let choices = self.choices(any, is_to, way);
            ways = ways.iter().flat_map(|one| choices.iter().map(move |choice| format!("{one}{choice}"))).collect();
        }
        let ways: Vec<String> = ways.into_iter().map(|one| one.trim_start().to_owned()).collect();
        (!ways.is_empty()).then_some(ways)
    }

    fn choices(&self, list: &PortList, is_to: bool, way: Way) -> Vec<String> {
        if list.ranges.contains(&(0, u16::MAX)) {
            return vec![String::new()];
        }
        let named = list.named.iter().filter_map(|named| self.named(named, is_to, way));
        numbers(list, is_to).chain(named).collect()
    }

    fn named(&self, (peer, port): &(PeerId, u16), is_to: bool, way: Way) -> Option<String> {
        Some(format!("{} -m multiport {} {port}", self.peer(*peer, way)?, option(is_to)))
    }

    /// Ports that the rule is not about: those that have names, and all where one line has no room for them.
    fn exceptions(&self, rule: &Rule, way: Way) -> Vec<String> {
        let traffic = &rule.traffic;
        let protocol = traffic.protocol.map(|p| format!("-p {p}")).unwrap_or_default();
        let sides = [(&traffic.from, way.turned), (&traffic.to, !way.turned)];
        let none_of = sides.map(|(ports, is_to)| (&ports.none_of, is_to));
        let named = |(list, is_to): (&PortList, bool)| {
            list.named.iter().filter_map(|named| self.named(named, is_to, way)).collect::<Vec<_>>()
        };
        let numbers = none_of.into_iter().filter(|_| is_long(traffic)).flat_map(|(list, is_to)| numbers(list, is_to));
        let all = none_of.into_iter().flat_map(named).chain(numbers);
        all.map(|one| format!("{protocol}{one}")).collect()
    }

    /// None: nobody of this family is.
    fn peer(&self, peer: PeerId, way: Way) -> Option<String> {
        Some(match self.called(peer)? {
            "" => String::new(),
            name => format!(" -m set --match-set {name} {}", way.other()),
        })
    }

    /// None: it is never so.
    fn icmp(&self, protocol: Option<u8>, icmp: Icmp, is_not: bool, way: Way) -> Option<String> {
        let of = self.family.icmp();
        let answer = of.pairs.iter().find(|(asked, _)| *asked == icmp.r#type).map(|(_, answer)| *answer);
        let kind = if way.turned { answer } else { Some(icmp.r#type) };
        // Of the other family's ICMP there is none here, and of the rest nothing is answered.
        let Some(kind) = kind.filter(|_| protocol == Some(of.protocol)) else { return is_not.then(String::new) };
        let code = icmp.code.map(|code| format!("/{code}")).unwrap_or_default();
        Some(format!(" -m {} {}{} {kind}{code}", of.module, if is_not { "! " } else { "" }, of.option))
    }
}

const LOG: &str = "-m limit --limit 10/second --limit-burst 50 -j LOG --log-level 5 --log-prefix \"terway policy: \"";

fn option(is_to: bool) -> &'static str {
    if is_to { "--dports" } else { "--sports" }
}

/// Whether one line has no room for all ports that are not meant.
fn is_long(traffic: &Traffic) -> bool {
    [&traffic.from, &traffic.to].map(|ports| chunks(&ports.none_of).len()).iter().sum::<usize>() > EXCEPTIONS
}

fn numbers(list: &PortList, is_to: bool) -> impl Iterator<Item = String> + use<> {
    chunks(list).into_iter().map(move |chunk| format!(" -m multiport {} {chunk}", option(is_to)))
}

/// As many ports at a time as one rule takes.
fn chunks(list: &PortList) -> Vec<String> {
    let mut chunks: Vec<(usize, String)> = Vec::new();
    for (from, to) in &list.ranges {
        let (slots, text) = if from == to { (1, from.to_string()) } else { (2, format!("{from}:{to}")) };
        match chunks.last_mut() {
            Some((used, chunk)) if *used + slots <= MULTIPORT => {
                *used += slots;
                *chunk += &format!(",{text}");
            }
            _ => chunks.push((slots, text)),
        }
    }
    chunks.into_iter().map(|(_, chunk)| chunk).collect()
}
