//! Reads a signed API call off the wire and checks its signature: ACS3-HMAC-SHA256 and the RPC form HMAC-SHA1.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::{digest, hmac};

use super::ApiError;
use crate::sim::http::{Request, form};

/// An API call as its client meant it, with what is needed to check the signature.
#[derive(Debug, Clone)]
pub struct Call {
    pub action: String,
    pub version: String,
    /// The action's own parameters, without those of the protocol.
    pub params: BTreeMap<String, String>,
    pub key: String,
    pub token: Option<String>,
    pub nonce: String,
    pub timestamp: String,
    signed: Signed,
}

#[derive(Debug, Clone)]
enum Signed {
    /// What the signature covers, and the signature in base64.
    Rpc { text: String, signature: String },
    /// The same, the signature in hex.
    Acs3 { text: String, signature: String },
}

/// Parameters of the RPC protocol itself.
const PROTOCOL: [&str; 10] = [
    "Action",
    "Version",
    "Format",
    "AccessKeyId",
    "SecurityToken",
    "SignatureMethod",
    "SignatureVersion",
    "SignatureNonce",
    "SignatureType",
    "Timestamp",
];

impl Call {
    pub fn read(request: &Request) -> Result<Call, ApiError> {
        if !matches!(request.method.as_str(), "GET" | "POST") {
            return Err(ApiError::new(405, "UnsupportedHTTPMethod", "The API takes GET and POST."));
        }
        if request.path() != "/" {
            return Err(ApiError::new(404, "InvalidAction.NotFound", "RPC style calls go to the path /."));
        }
        match request.header("authorization") {
            Some(authorization) => read_acs3(request, authorization),
            None => read_rpc(request),
        }
    }

    pub fn check_signature(&self, secret: &str) -> Result<(), ApiError> {
        let (text, right) = match &self.signed {
            Signed::Rpc { text, signature } => {
                let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, format!("{secret}&").as_bytes());
                let want = STANDARD.decode(signature).unwrap_or_default();
                (text, hmac::verify(&key, text.as_bytes(), &want).is_ok())
            }
            Signed::Acs3 { text, signature } => {
                let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
                let want = hex(hmac::sign(&key, text.as_bytes()).as_ref());
                (text, want == *signature)
            }
        };
        if right {
            return Ok(());
        }
        let words = format!("Specified signature is not matched with our calculation. server string to sign is:{text}");
        Err(ApiError::new(400, "SignatureDoesNotMatch", words))
    }
}

fn read_rpc(request: &Request) -> Result<Call, ApiError> {
    let mut all = unique(request.params().into_iter().chain(body_params(request)?))?;
    let signature = take(&mut all, "Signature")?;
    let text = format!("{}&%2F&{}", request.method, escape(&canonical_query(&all)));
    for (name, want) in [("SignatureMethod", "HMAC-SHA1"), ("SignatureVersion", "1.0")] {
        let given = all.get(name).ok_or_else(|| ApiError::missing(name))?;
        if given != want {
            return Err(ApiError::invalid(name, format!("{given} is not supported, only {want}")));
        }
    }
    if all.get("Format").is_none_or(|f| !f.eq_ignore_ascii_case("json")) {
        return Err(ApiError::invalid("Format", "the simulated cloud speaks JSON"));
    }
    let call = Call {
        action: take(&mut all, "Action")?,
        version: take(&mut all, "Version")?,
        key: take(&mut all, "AccessKeyId")?,
        token: all.remove("SecurityToken"),
        nonce: take(&mut all, "SignatureNonce")?,
        timestamp: take(&mut all, "Timestamp")?,
        params: BTreeMap::new(),
        signed: Signed::Rpc { text, signature },
    };
    all.retain(|name, _| !PROTOCOL.contains(&name.as_str()));
    Ok(Call { params: all, ..call })
}

fn read_acs3(request: &Request, authorization: &str) -> Result<Call, ApiError> {
    let incomplete =
        |why: &str| ApiError::new(400, "IncompleteSignature", format!("The signature is incomplete: {why}."));
    let fields = authorization
        .strip_prefix("ACS3-HMAC-SHA256 ")
        .ok_or_else(|| incomplete("the algorithm is not ACS3-HMAC-SHA256"))?;
    let fields: BTreeMap<&str, &str> = fields.split(',').filter_map(|f| f.trim().split_once('=')).collect();
    let field = |name: &str| fields.get(name).copied().ok_or_else(|| incomplete(&format!("{name} is missing")));
    let signed_headers = field("SignedHeaders")?;
    let names: Vec<&str> = signed_headers.split(';').collect();
    if !names.is_sorted() {
        return Err(incomplete("SignedHeaders are not sorted"));
    }
    let header = |name: &str| request.header(name).ok_or_else(|| ApiError::missing(name));
    let mut must_be_signed = vec!["host"];
    must_be_signed.extend(request.headers.iter().map(|(n, _)| n.as_str()).filter(|n| n.starts_with("x-acs-")));
    if let Some(loose) = must_be_signed.iter().find(|n| !names.contains(n)) {
        return Err(incomplete(&format!("the header {loose} is not signed")));
    }
    let body_hash = hex(digest::digest(&digest::SHA256, &request.body).as_ref());
    if header("x-acs-content-sha256")? != body_hash {
        return Err(ApiError::new(400, "SignatureDoesNotMatch", "x-acs-content-sha256 is not the hash of the body."));
    }
    let query = unique(request.params().into_iter())?;
    let mut lines = String::new();
    for name in &names {
        lines += &format!("{name}:{}\n", header(name)?);
    }
    let canonical = [&request.method, "/", &canonical_query(&query), &lines, signed_headers, &body_hash].join("\n");
    let text = format!("ACS3-HMAC-SHA256\n{}", hex(digest::digest(&digest::SHA256, canonical.as_bytes()).as_ref()));
    Ok(Call {
        action: header("x-acs-action")?.into(),
        version: header("x-acs-version")?.into(),
        params: unique(query.into_iter().chain(body_params(request)?))?,
        key: field("Credential")?.into(),
        token: request.header("x-acs-security-token").map(Into::into),
        nonce: header("x-acs-signature-nonce")?.into(),
        timestamp: header("x-acs-date")?.into(),
        signed: Signed::Acs3 { text, signature: field("Signature")?.into() },
    })
}

fn body_params(request: &Request) -> Result<Vec<(String, String)>, ApiError> {
    if request.body.is_empty() {
        return Ok(Vec::new());
    }
    let kind = request.header("content-type").unwrap_or_default();
    let text = std::str::from_utf8(&request.body);
    match text {
        Ok(text) if kind.starts_with("application/x-www-form-urlencoded") => Ok(form(text)),
        _ => Err(ApiError::new(415, "UnsupportedContentType", format!("A body must be a form, not {kind:?}."))),
    }
}

fn unique(pairs: impl Iterator<Item = (String, String)>) -> Result<BTreeMap<String, String>, ApiError> {
    let mut all = BTreeMap::new();
    for (name, value) in pairs {
        if all.insert(name.clone(), value).is_some() {
            return Err(ApiError::invalid(&name, "given twice"));
        }
    }
    Ok(all)
}

fn take(all: &mut BTreeMap<String, String>, name: &str) -> Result<String, ApiError> {
    all.remove(name).ok_or_else(|| ApiError::missing(name))
}

fn canonical_query(params: &BTreeMap<String, String>) -> String {
    let mut pairs: Vec<(String, String)> = params.iter().map(|(n, v)| (escape(n), escape(v))).collect();
    pairs.sort();
    let pairs: Vec<String> = pairs.into_iter().map(|(n, v)| format!("{n}={v}")).collect();
    pairs.join("&")
}

/// RFC 3986: everything but letters, digits and `-_.~`.
fn escape(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(byte.into()),
            _ => out += &format!("%{byte:02X}"),
        }
        out
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
