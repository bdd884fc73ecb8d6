//! Field and label selectors, as the API server reads them.

use serde_json::Value;

use super::check::is_qualified;

/// What an object must satisfy to be listed.
#[derive(Debug, Clone, Default)]
pub struct Selector {
    fields: Vec<Term>,
    labels: Vec<Term>,
}

#[derive(Debug, Clone)]
struct Term {
    key: String,
    must: Must,
}

#[derive(Debug, Clone)]
enum Must {
    Be(Vec<String>),
    NotBe(Vec<String>),
    Exist,
    NotExist,
}

impl Selector {
    /// Refuses, as the API server does, fields that cannot be selected by.
    pub fn parse(plural: &str, fields: &str, labels: &str) -> Result<Selector, String> {
        let fields = terms(fields).map(field).collect::<Result<Vec<_>, _>>()?;
        if let Some(term) = fields.iter().find(|t| !selectable(plural, &t.key)) {
            return Err(format!("field label not supported: {}", term.key));
        }
        Ok(Selector { fields, labels: terms(labels).map(label).collect::<Result<_, _>>()? })
    }

    pub fn matches(&self, object: &Value) -> bool {
        let field = |key: &str| object.pointer(&format!("/{}", key.replace('.', "/")));
        self.fields.iter().all(|t| t.must.hold(Some(field(&t.key).map(as_text).unwrap_or_default())))
            && self.labels.iter().all(|t| t.must.hold(object["metadata"]["labels"].get(&t.key).map(as_text)))
    }
}

impl Must {
    fn hold(&self, value: Option<String>) -> bool {
        match (self, value) {
            (Must::Be(wanted), Some(value)) => wanted.contains(&value),
            (Must::Be(_), None) | (Must::Exist, None) => false,
            (Must::NotBe(unwanted), Some(value)) => !unwanted.contains(&value),
            (Must::NotExist, Some(_)) => false,
            (Must::NotBe(_) | Must::NotExist, None) | (Must::Exist, Some(_)) => true,
        }
    }
}

fn as_text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn selectable(plural: &str, field: &str) -> bool {
    match field {
        "metadata.name" | "metadata.namespace" => true,
        "spec.nodeName"
        | "spec.restartPolicy"
        | "spec.schedulerName"
        | "spec.serviceAccountName"
        | "spec.hostNetwork"
        | "status.phase"
        | "status.podIP" => plural == "pods",
        "spec.unschedulable" => plural == "nodes",
        "reason" | "type" | "source" => plural == "events",
        _ => plural == "events" && field.starts_with("involvedObject."),
    }
}

/// The parts between commas that are not inside parentheses.
fn terms(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0;
    text.split(move |c| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        c == ',' && depth == 0
    })
    .map(str::trim)
    .filter(|t| !t.is_empty())
}

fn field(term: &str) -> Result<Term, String> {
    equality(term).ok_or_else(|| format!("invalid field selector: {term}"))
}

fn equality(term: &str) -> Option<Term> {
    let (key, value, equal) = match term.split_once("!=") {
        Some((key, value)) => (key, value, false),
        None => term.split_once("==").or_else(|| term.split_once('=')).map(|(k, v)| (k, v, true))?,
    };
    let values = vec![value.trim().to_owned()];
    Some(Term { key: key.trim().to_owned(), must: if equal { Must::Be(values) } else { Must::NotBe(values) } })
}

/// Keys and values are checked as the API server checks them.
fn label(term: &str) -> Result<Term, String> {
    let read = label_term(term)?;
    let values: &[String] = match &read.must {
        Must::Be(values) | Must::NotBe(values) => values,
        Must::Exist | Must::NotExist => &[],
    };
    // A value is empty, or a name without a domain.
    let is_value = |value: &String| value.is_empty() || !value.contains('/') && is_qualified(value);
    match is_qualified(&read.key) && values.iter().all(is_value) {
        true => Ok(read),
        false => Err(format!("unable to parse requirement: invalid label key or value: {term}")),
    }
}

fn label_term(term: &str) -> Result<Term, String> {
    if let Some((left, list)) = term.strip_suffix(')').and_then(|t| t.split_once('(')) {
        let values = list.split(',').map(|v| v.trim().to_owned()).collect();
        let words: Vec<&str> = left.split_whitespace().collect();
        let must = match words[..] {
            [_, "in"] => Must::Be(values),
            [_, "notin"] => Must::NotBe(values),
            _ => return Err(format!("invalid label selector: {term}")),
        };
        return Ok(Term { key: words[0].to_owned(), must });
    }
    Ok(equality(term).unwrap_or_else(|| match term.strip_prefix('!') {
        Some(key) => Term { key: key.trim().to_owned(), must: Must::NotExist },
        None => Term { key: term.to_owned(), must: Must::Exist },
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selectors_select() {
        let pod = json!({
            "metadata": {"name": "a", "labels": {"app": "web", "tier": "front"}},
            "spec": {"nodeName": "n1", "hostNetwork": true}
        });
        for (fields, labels, want) in [
            ("", "", true),
            ("spec.nodeName=n1,metadata.name=a", "", true),
            ("spec.nodeName==n2", "", false),
            ("spec.nodeName!=n2,status.phase!=Failed", "", true),
            ("status.phase=", "", true),
            ("spec.hostNetwork=true", "", true),
            ("", "app=web,tier in (front, back)", true),
            ("", "app in (api,db)", false),
            ("", "app notin (api,db),none notin (x)", true),
            ("", "app,!none", true),
            ("", "!app", false),
            ("", "none", false),
            ("", "none!=x", true),
            ("", "none=x", false),
        ] {
            assert_eq!(Selector::parse("pods", fields, labels).unwrap().matches(&pod), want, "{fields} {labels}");
        }
        assert_eq!(Selector::parse("pods", "spec.x=1", "").unwrap_err(), "field label not supported: spec.x");
        assert!(Selector::parse("nodes", "spec.nodeName=1", "").is_err());
        for wrong in ["a near (b)", "a=b/c", "a b=c", "app=-x", "x/y/z", "app in (a b)", "a=''"] {
            assert!(Selector::parse("pods", "", wrong).is_err(), "{wrong}");
        }
    }
}
