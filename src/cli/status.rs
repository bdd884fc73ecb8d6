//! `status`: on one screen whether this node is healthy, and if not, what to do.

use argh::FromArgs;
use serde_json::{Value, json};

use super::compare::{self, Found, Part};
use super::face::{Answer, Failure, Hue, paint};
use super::finding::{Finding, remedy};
use super::known::{Known, LOOK};

/// Show whether this node is healthy, and if not, what to do. Exits with 0 if it is, 1 if not, 3 if terwayd does not answer.
#[derive(FromArgs)]
#[argh(subcommand, name = "status")]
pub struct Status {
    /// print JSON
    #[argh(switch)]
    pub json: bool,
}

impl Status {
    pub fn answer(&self) -> Result<Answer, Failure> {
        let known = Known::look()?;
        let mut findings = findings(&known);
        let differing = compare::all(&known, false)?;
        findings.extend(differences(&differing));
        let lines = lines(&known, &differing);
        let good = !findings.iter().any(Finding::is_problem);
        let mut page: String = lines.iter().map(|(name, value)| format!("{name:<10} {value}\n")).collect();
        page.push('\n');
        page.extend(findings.iter().map(Finding::text));
        page += &if good { paint(Hue::Good, "healthy\n") } else { String::new() };
        let json = json!({
            "healthy": good,
            "lines": lines.iter().map(|(name, value)| (name.to_string(), Value::from(value.as_str()))).collect::<serde_json::Map<_, _>>(),
            "findings": findings.iter().map(Finding::json).collect::<Vec<_>>(),
        });
        Ok(Answer { page, json, code: known.judged(good) })
    }
}

/// What the daemon itself says is wrong.
pub fn findings(known: &Known) -> Vec<Finding> {
    if let Some(why) = &known.silence {
        return vec![Finding::problem(format!("terwayd does not answer: {}", first(why)), LOOK)];
    }
    let (shown, pool) = (&known.shown, &known.shown["pool"]);
    let mut found = Vec::new();
    if let Some(reason) = pool["trouble"]["reason"].as_str() {
        let why = pool["trouble"]["why"].as_str().unwrap_or_default();
        // A node that is full does what it can.
        let make = if why == "node_full" { Finding::note } else { Finding::problem };
        found.push(make(format!("no address for a new pod: {reason}"), remedy(why).to_string()));
    }
    if let Some(fault) = pool["cloud"]["outage"]["fault"].as_str() {
        found.push(Finding::problem(format!("the cloud fails: {fault}"), remedy("cloud_down")));
    }
    for refused in list(&pool["cloud"]["refused"]) {
        let (verb, why) = (text(refused, "verb"), text(refused, "why"));
        found.push(Finding::problem(format!("the cloud refuses {verb}: {}", text(refused, "reason")), remedy(&why)));
    }
    for eni in list(&pool["enis"]) {
        let complaint = eni["complaint"].as_str().map(String::from);
        let missing = (text(eni, "state") == "missing").then(|| "the cloud knows it no more".to_string());
        if let Some(what) = complaint.or(missing) {
            let remedy = "terway-cli enis; journalctl -u terwayd names each attempt";
            found.push(Finding::problem(format!("ENI {}: {what}", text(eni, "id")), remedy));
        }
    }
    for lost in list(&pool["lost"]) {
        let what = format!("pod {} has an address that the cloud gives to nobody here", text(lost, "pod"));
        found.push(Finding::problem(what, format!("re-create it: kubectl delete pod {}", named(&text(lost, "pod")))));
    }
    for waiting in list(&pool["waiting"]) {
        let secs = waiting["waited_secs"].as_u64().unwrap_or_default();
        let what = format!("pod {} has waited {secs} s for an address", text(waiting, "pod"));
        found.push(Finding::note(what, "terway-cli enis shows what is on its way"));
    }
    found.extend(cluster(shown));
    found
}

/// Services and policies.
fn cluster(shown: &Value) -> Vec<Finding> {
    let mut found = Vec::new();
    let services = &shown["services"];
    match services["state"].as_str() {
        None | Some("serving") => {}
        Some("waiting for the API server") => {
            found.push(Finding::note("Services are not known yet", remedy("api_down")));
        }
        Some(why) => found.push(Finding::problem(
            format!("Services are not led at the socket: {why}"),
            "kube-proxy serves them where it runs; else set ebpf_services to false and run it",
        )),
    }
    for full in list(&services["full"]) {
        let what = full.as_str().unwrap_or_default();
        found.push(Finding::problem(what, "raise service_frontends or service_backends in /etc/eni/eni.json"));
    }
    let policies = shown["policies"]["state"].as_str().filter(|state| *state != "enforced");
    if let Some(lack) = policies {
        found.push(Finding::problem(format!("network policies: {lack}"), remedy("policies")));
    }
    found
}

/// Many pods that suffer by one thing are one line.
fn differences(found: &[Found]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let pods: Vec<&Found> = found.iter().filter(|f| matches!(f.part, Part::Pod(_))).collect();
    for Found { part, what } in found.iter().filter(|f| !matches!(f.part, Part::Pod(_))) {
        findings.push(Finding::problem(format!("{part}: {what}"), MEND));
    }
    if let Some(Found { part, what }) = pods.first() {
        let more =
            if pods.len() > 1 { format!(", and {} more such differences", pods.len() - 1) } else { String::new() };
        findings.push(Finding::problem(format!("{part}: {what}{more}"), format!("{MEND}; terway-cli pods shows all")));
    }
    findings
}

/// The daemon does it by itself.
const MEND: &str =
    "terwayd repairs this within a minute; if it stays or comes back, see who takes it away: journalctl -u terwayd";

fn lines(known: &Known, differing: &[Found]) -> Vec<(&'static str, String)> {
    let (shown, pool) = (&known.shown, &known.shown["pool"]);
    let number = |key: &str| pool[key].as_u64().unwrap_or_default();
    let hurt: std::collections::BTreeSet<String> =
        differing.iter().filter(|f| matches!(f.part, Part::Pod(_))).map(|f| f.part.to_string()).collect();
    let pods = match hurt.len() {
        0 => format!("{} wired as planned", known.leases.len()),
        n => format!("{n} of {} not wired as planned", known.leases.len()),
    };
    if let Some(why) = &known.silence {
        return vec![("terwayd", format!("does not answer ({})", first(why))), ("pods", pods)];
    }
    let node = &shown["node"];
    let serving = list(&pool["enis"]).filter(|eni| matches!(eni["state"].as_str(), Some("serving" | "lent"))).count();
    let policies = match (&shown["policies"], shown["policies"]["renderer"].as_str()) {
        (_, Some(renderer)) => format!("{} by {renderer}", text(&shown["policies"], "state")),
        (Value::String(word), None) => word.clone(),
        (other, None) => text(other, "state"),
    };
    let services = &shown["services"];
    let services = match services["state"].as_str() {
        None => "left to kube-proxy".into(),
        Some(state) => format!("{} at the socket: {state}", services["services"].as_u64().unwrap_or_default()),
    };
    let (instance, kind, zone) = (text(node, "instance"), text(node, "instance_type"), text(node, "zone"));
    vec![
        ("node", format!("{instance} ({kind}, {zone})")),
        ("terwayd", format!("serves, release {}, {}", text(shown, "release"), text(shown, "daemon_mode"))),
        (
            "addresses",
            format!(
                "{} leased, {} idle, {} cooling down, {} reserved, of {}",
                number("leased"),
                number("idle"),
                number("cooling"),
                number("reserved"),
                number("capacity")
            ),
        ),
        ("ENIs", format!("{serving} serving, {} known, at most {}", list(&pool["enis"]).count(), number("max_enis"))),
        ("pods", pods),
        ("policies", policies),
        ("Services", services),
    ]
}

pub fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// A field as text; nothing where there is none.
pub fn text(value: &Value, key: &str) -> String {
    match &value[key] {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// As kubectl wants it.
fn named(pod: &str) -> String {
    pod.split_once('/').map_or_else(|| pod.to_string(), |(space, name)| format!("-n {space} {name}"))
}

fn first(why: &str) -> &str {
    why.split("; ").next().unwrap_or(why)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn shown(over: Value) -> Known {
        let mut shown = json!({"pool": {}, "services": {"state": "serving"}, "policies": {"state": "enforced"}});
        over.as_object().unwrap().iter().for_each(|(key, value)| shown[key] = value.clone());
        Known { shown, silence: None, leases: Vec::new(), enis: BTreeMap::new() }
    }

    #[test]
    fn each_trouble_is_named_with_what_to_do() {
        assert_eq!(findings(&shown(json!({}))), []);
        for (over, what, remedy) in [
            (
                json!({"pool": {"trouble": {"why": "v_switch_empty", "reason": "vsw-1 is empty"}}}),
                "vsw-1 is empty",
                "vswitches",
            ),
            (json!({"pool": {"trouble": {"why": "forbidden", "reason": "no"}}}), "no address", "ram-policy"),
            (json!({"pool": {"cloud": {"outage": {"fault": "no answer"}}}}), "the cloud fails: no answer", "doctor"),
            (json!({"pool": {"enis": [{"id": "eni-1", "complaint": "no link"}]}}), "ENI eni-1: no link", "enis"),
            (json!({"pool": {"lost": [{"pod": "a/b"}]}}), "pod a/b", "kubectl delete pod -n a b"),
            (json!({"services": {"state": "no cgroup2"}}), "no cgroup2", "kube-proxy"),
            (json!({"policies": {"state": "pods of default are not known"}}), "not known", "terway-cli show"),
        ] {
            let found = findings(&shown(over.clone()));
            assert_eq!(found.len(), 1, "{over}");
            assert!(found[0].is_problem() && found[0].what.contains(what), "{over}: {found:?}");
            assert!(found[0].remedy.contains(remedy), "{over}: {found:?}");
        }
        let full = shown(json!({"pool": {"trouble": {"why": "node_full", "reason": "full"}}}));
        assert!(!findings(&full)[0].is_problem(), "a full node is healthy");
    }
}
