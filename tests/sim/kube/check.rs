//! The rules of the API server that a writer of nodes, pods and events is likely to break.

use serde_json::Value;

use super::store::Key;

type Verdict = Result<(), (u16, String)>;

/// What holds for an object before it is stored.
pub fn object(key: &Key, object: &Value) -> Verdict {
    annotations(object)?;
    match key.collection.as_str() {
        "/api/v1/events" => event(key, object),
        "/api/v1/nodes" => node(object),
        _ => Ok(()),
    }
}

/// Directives are part of a strategic merge patch, and of nothing that we send.
pub fn strategic(patch: &Value) -> Verdict {
    match patch {
        Value::Object(map) => map.iter().try_for_each(|(key, value)| match key.starts_with('$') {
            true => Err((400, format!("the simulator knows no {key}"))),
            false => strategic(value),
        }),
        Value::Array(list) => list.iter().try_for_each(strategic),
        _ => Ok(()),
    }
}

fn annotations(object: &Value) -> Verdict {
    let Some(map) = object["metadata"]["annotations"].as_object() else { return Ok(()) };
    for (key, value) in map {
        if !value.is_string() {
            return Err((400, format!("cannot unmarshal metadata.annotations.{key} into Go value of type string")));
        }
        if !is_qualified(key) {
            return Err(invalid(&format!("metadata.annotations: {key:?} is not a qualified name")));
        }
    }
    let size: usize = map.iter().map(|(k, v)| k.len() + v.as_str().map_or(0, str::len)).sum();
    if size > 256 << 10 { Err(invalid("metadata.annotations: must have at most 262144 bytes")) } else { Ok(()) }
}

fn event(key: &Key, event: &Value) -> Verdict {
    let about = event["involvedObject"]["namespace"].as_str().unwrap_or_default();
    let lives = if about.is_empty() { "default" } else { about };
    let short = |field: &str, max: usize| event[field].as_str().is_none_or(|t| t.len() <= max);
    match () {
        () if key.namespace != lives => Err(invalid("involvedObject.namespace: does not match event.namespace")),
        () if !short("message", 1024) => Err(invalid("message: can have at most 1024 characters")),
        () if !short("reason", 128) => Err(invalid("reason: can have at most 128 characters")),
        () if !matches!(event["type"].as_str(), Some("Normal" | "Warning")) => Err(invalid("type: unknown")),
        () if !event["count"].is_u64() => Err((400, "cannot unmarshal count into Go value of type int32".into())),
        () => ["firstTimestamp", "lastTimestamp"].iter().try_for_each(|field| time(event, field)),
    }
}

fn node(node: &Value) -> Verdict {
    for part in ["capacity", "allocatable"] {
        for (name, amount) in node["status"][part].as_object().into_iter().flatten() {
            resource(part, name, amount)?;
        }
    }
    let conditions = node["status"]["conditions"].as_array();
    for (n, condition) in conditions.into_iter().flatten().enumerate() {
        let kind = condition["type"].as_str().unwrap_or_default();
        let twice = conditions.into_iter().flatten().skip(n + 1).any(|other| other["type"] == kind);
        if kind.is_empty() || twice {
            return Err(invalid(&format!("status.conditions: type {kind:?} is missing or there twice")));
        }
        if !matches!(condition["status"].as_str(), Some("True" | "False" | "Unknown")) {
            return Err(invalid(&format!("status.conditions[{kind}].status: unknown")));
        }
        ["lastHeartbeatTime", "lastTransitionTime"].iter().try_for_each(|field| time(condition, field))?;
    }
    Ok(())
}

/// The names of Kubernetes itself have no domain; all others are counted in whole numbers.
fn resource(part: &str, name: &str, amount: &Value) -> Verdict {
    let native = matches!(name, "cpu" | "memory" | "pods" | "ephemeral-storage") || name.starts_with("hugepages-");
    let extended = name.contains('/') && is_qualified(name) && !name.starts_with("requests.");
    if !native && !extended {
        return Err(invalid(&format!("status.{part}: {name:?} must be a standard resource or a qualified name")));
    }
    let text = amount.as_str().map(str::to_owned).or_else(|| amount.as_u64().map(|n| n.to_string()));
    let whole = text.as_deref().is_some_and(|t| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit()));
    let quantity = text.as_deref().is_some_and(|t| t.starts_with(|c: char| c.is_ascii_digit()));
    match () {
        () if !quantity => Err((400, format!("status.{part}.{name}: quantities must match the regular expression"))),
        () if extended && !whole => Err(invalid(&format!("status.{part}.{name}: must be an integer"))),
        () => Ok(()),
    }
}

/// `[prefix/]name`: the prefix a DNS subdomain, the name at most 63 of letters, digits, `-`, `_`, `.`.
pub fn is_qualified(text: &str) -> bool {
    let (prefix, name) = match text.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let edges = |t: &str| {
        t.starts_with(|c: char| c.is_ascii_alphanumeric()) && t.ends_with(|c: char| c.is_ascii_alphanumeric())
    };
    let label = |t: &str| {
        !t.is_empty() && edges(t) && t.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
    };
    (1..=63).contains(&name.len())
        && edges(name)
        && name.chars().all(plain)
        && prefix.is_none_or(|p| p.len() <= 253 && p.split('.').all(label))
}

/// RFC 3339, or absent.
fn time(object: &Value, field: &str) -> Verdict {
    match &object[field] {
        Value::Null => Ok(()),
        Value::String(text) if humantime::parse_rfc3339(text).is_ok() => Ok(()),
        other => Err((400, format!("parsing time {other} as RFC 3339: {field}"))),
    }
}

fn invalid(why: &str) -> (u16, String) {
    (422, why.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(kind: &str, value: Value) -> u16 {
        let key = Key { collection: format!("/api/v1/{kind}"), namespace: String::new(), name: "n1".into() };
        object(&key, &value).err().map_or(200, |(code, _)| code)
    }

    #[test]
    fn a_node_that_the_api_server_would_refuse_is_refused() {
        let good = json!({"type": "Ready", "status": "True", "lastTransitionTime": "2024-01-01T00:00:00Z"});
        for (status, code) in [
            (json!({"capacity": {"aliyun/eni": "3", "cpu": "3900m", "pods": 110}, "conditions": [good]}), 200),
            (json!({"capacity": {"eni": "3"}}), 422),
            (json!({"capacity": {"Aliyun/eni": "3"}}), 422),
            (json!({"capacity": {"aliyun/eni": "3k"}}), 422),
            (json!({"allocatable": {"aliyun/eni": "-3"}}), 400),
            (json!({"conditions": [{"type": "Ready", "status": "yes"}]}), 422),
            (json!({"conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": ""}]}), 400),
            (json!({"conditions": [good, good]}), 422),
        ] {
            assert_eq!(of("nodes", json!({"status": status})), code, "{status}");
        }
        for (annotations, code) in
            [(json!({"k8s.aliyun.com/a": "1"}), 200), (json!({"a/b/c": "1"}), 422), (json!({"a": 1}), 400)]
        {
            assert_eq!(of("nodes", json!({"metadata": {"annotations": annotations}})), code, "{annotations}");
        }
        assert!(strategic(&json!({"a": [{"$patch": "delete"}]})).is_err());
    }
}
