//! Request signatures of Alibaba Cloud: ACS3-HMAC-SHA256, and the older HMAC-SHA1 of RPC calls.

use std::collections::BTreeMap;
use std::iter;
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SecureRandom;
use ring::{digest, hmac};

use crate::cloud::credentials::Key;
use crate::error::Error;
use crate::gather::Gather;
use crate::uri::percent_encode;

/// The parameters of a call by name.
pub type Params = BTreeMap<String, String>;

/// How requests are signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Signature {
    /// ACS3-HMAC-SHA256: everything secret travels in headers.
    #[default]
    Acs3,
    /// HMAC-SHA1: everything, an STS token too, travels in the query. For private clouds that know nothing newer.
    HmacSha1,
}

/// What makes a request unlike any other: when it was made, and a number used once.
#[derive(Debug, Clone)]
pub struct Stamp {
    at: String,
    nonce: String,
}

/// A signed request: what comes after `/?`, and the headers to send with it.
#[derive(Clone)]
pub struct Signed {
    pub query: String,
    pub headers: BTreeMap<&'static str, String>,
}

/// The call that is being signed.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// Host and port as they stand in the Host header.
    pub host: &'a str,
    pub action: &'a str,
    pub version: &'a str,
}

impl Stamp {
    pub fn new(now: SystemTime) -> Result<Stamp, Error> {
        let mut nonce = [0; 16];
        let random = ring::rand::SystemRandom::new();
        random.fill(&mut nonce).map_err(|_| Error::refused("the system has no random numbers"))?;
        let at = humantime::format_rfc3339_seconds(now).to_string();
        Ok(Stamp { at, nonce: hex(&nonce) })
    }
}

/// Signs a POST with an empty body by ACS3-HMAC-SHA256.
pub fn acs3(call: &Call, params: &Params, key: &Key, stamp: Stamp) -> Signed {
    let query = canonical_query(params);
    let mut headers: BTreeMap<_, _> = [
        ("host", call.host.to_string()),
        ("x-acs-action", call.action.to_string()),
        ("x-acs-content-sha256", hex(digest::digest(&digest::SHA256, b"").as_ref())),
        ("x-acs-date", stamp.at),
        ("x-acs-signature-nonce", stamp.nonce),
        ("x-acs-version", call.version.to_string()),
    ]
    .into_iter()
    .gather();
    if let Some(token) = &key.token {
        headers.insert("x-acs-accesskey-id", key.id.clone());
        headers.insert("x-acs-security-token", token.clone());
    }
    let authorization = acs3_authorization(&query, &headers, key);
    headers.insert("authorization", authorization);
    Signed { query, headers }
}

fn acs3_authorization(query: &str, headers: &BTreeMap<&str, String>, key: &Key) -> String {
    let to_sign = acs3_string_to_sign(&acs3_canonical_request(query, headers));
    let signature = hex(&mac(hmac::HMAC_SHA256, &key.secret, &to_sign));
    format!("ACS3-HMAC-SHA256 Credential={},SignedHeaders={},Signature={signature}", key.id, signed_headers(headers))
}

/// Every header of the map is signed; `x-acs-content-sha256` stands for the body.
fn acs3_canonical_request(query: &str, headers: &BTreeMap<&str, String>) -> String {
    let lines: String = headers.iter().map(|(name, value)| format!("{name}:{}\n", value.trim())).collect();
    let body = headers.get("x-acs-content-sha256").map(String::as_str).unwrap_or_default();
    format!("POST\n/\n{query}\n{lines}\n{}\n{body}", signed_headers(headers))
}

fn acs3_string_to_sign(canonical_request: &str) -> String {
    format!("ACS3-HMAC-SHA256\n{}", hex(digest::digest(&digest::SHA256, canonical_request.as_bytes()).as_ref()))
}

fn signed_headers(headers: &BTreeMap<&str, String>) -> String {
    headers.keys().copied().collect::<Vec<_>>().join(";")
}

/// Signs a POST with an empty body by HMAC-SHA1: the parameters that all calls have are added, empty values are signed too.
pub fn hmac_sha1(call: &Call, params: &Params, key: &Key, stamp: Stamp) -> Signed {
    let mut params = params.clone();
    let mut common = |name: &str, value: &str| params.insert(name.to_string(), value.to_string());
    common("Action", call.action);
    common("Version", call.version);
    common("Format", "JSON");
    common("AccessKeyId", &key.id);
    common("SignatureMethod", "HMAC-SHA1");
    common("SignatureVersion", "1.0");
    common("SignatureNonce", &stamp.nonce);
    common("Timestamp", &stamp.at);
    if let Some(token) = &key.token {
        common("SecurityToken", token);
    }
    let query = canonical_query(&params);
    let signature = hmac_sha1_signature(&hmac_sha1_string_to_sign("POST", &query), &key.secret);
    let query = format!("{query}&Signature={}", percent_encode(&signature));
    Signed { query, headers: iter::once(("host", call.host.to_string())).gather() }
}

fn hmac_sha1_string_to_sign(method: &str, canonical_query: &str) -> String {
    format!("{method}&%2F&{}", percent_encode(canonical_query))
}

fn hmac_sha1_signature(to_sign: &str, secret: &str) -> String {
    STANDARD.encode(mac(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &format!("{secret}&"), to_sign))
}

fn mac(algorithm: hmac::Algorithm, key: &str, text: &str) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(algorithm, key.as_bytes()), text.as_bytes()).as_ref().to_vec()
}

/// Sorted by name, both sides encoded.
fn canonical_query(params: &Params) -> String {
    let pairs = params.iter().map(|(name, value)| format!("{}={}", percent_encode(name), percent_encode(value)));
    pairs.collect::<Vec<_>>().join("&")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// Requests that the cloud's own SDKs signed.
    const VECTORS: &str = include_str!("vectors.json");

    fn vectors(form: &str) -> Vec<Value> {
        let all: Value = serde_json::from_str(VECTORS).unwrap();
        all[form].as_array().unwrap().clone()
    }

    fn params(value: &Value) -> Params {
        value.as_object().unwrap().iter().map(|(k, v)| (k.clone(), v.as_str().unwrap().to_string())).collect()
    }

    fn key(secret: &str, token: Option<&str>) -> Key {
        Key::new("testid", secret, token).unwrap()
    }

    #[test]
    fn hmac_sha1_signs_as_the_sdk_does() {
        let vectors = vectors("v1");
        assert_eq!(vectors.len(), 4);
        for v in vectors {
            let to_sign = hmac_sha1_string_to_sign("POST", &canonical_query(&params(&v["params"])));
            assert_eq!(to_sign, v["string_to_sign"], "{}", v["title"]);
            assert_eq!(hmac_sha1_signature(&to_sign, "testsecret"), v["signature"], "{}", v["title"]);
        }
    }

    #[test]
    fn hmac_sha1_adds_the_common_parameters_itself() {
        for v in vectors("v1") {
            let mut all = params(&v["params"]);
            let stamp = Stamp { at: all.remove("Timestamp").unwrap(), nonce: all.remove("SignatureNonce").unwrap() };
            let (action, version) = (all.remove("Action").unwrap(), all.remove("Version").unwrap());
            let token = all.remove("SecurityToken");
            for ours in ["Format", "SignatureMethod", "SignatureVersion", "AccessKeyId"] {
                all.remove(ours).unwrap();
            }
            let call = Call { host: "127.0.0.1:18080", action: &action, version: &version };
            let signed = hmac_sha1(&call, &all, &key("testsecret", token.as_deref()), stamp);
            let signature = percent_encode(v["signature"].as_str().unwrap());
            assert!(signed.query.ends_with(&format!("&Signature={signature}")), "{}: {}", v["title"], signed.query);
            let want = v["wire_target"].as_str().unwrap().strip_prefix("/?").unwrap();
            let sorted = |query: &str| {
                let mut pairs: Vec<String> = query.split('&').map(str::to_string).collect();
                pairs.sort();
                pairs
            };
            assert_eq!(sorted(&signed.query), sorted(want), "{}", v["title"]);
        }
    }

    #[test]
    fn hmac_sha1_signs_the_documented_example() {
        let example = Params::from(
            [
                ("Timestamp", "2016-02-23T12:46:24Z"),
                ("Format", "XML"),
                ("AccessKeyId", "testid"),
                ("Action", "DescribeRegions"),
                ("SignatureMethod", "HMAC-SHA1"),
                ("SignatureNonce", "3ee8c1b8-83d3-44af-a94f-4e0ad82fd6cf"),
                ("Version", "2014-05-26"),
                ("SignatureVersion", "1.0"),
            ]
            .map(|(k, v)| (k.to_string(), v.to_string())),
        );
        let query = canonical_query(&example);
        for (method, want) in [("GET", "OLeaidS1JvxuMvnyHOwuJ+uX5qY="), ("POST", "MxbnVAM4w6sft9xjVpe/GCKueuk=")] {
            assert_eq!(hmac_sha1_signature(&hmac_sha1_string_to_sign(method, &query), "testsecret"), want);
        }
    }

    #[test]
    fn acs3_signs_as_the_sdk_does() {
        let vectors = vectors("acs3");
        assert_eq!(vectors.len(), 4);
        for v in vectors {
            let headers = v["signed_headers"].as_object().unwrap();
            let headers: BTreeMap<&str, String> =
                headers.iter().map(|(k, v)| (k.as_str(), v.as_str().unwrap().to_string())).collect();
            let query = canonical_query(&params(&v["params"]));
            let canonical = acs3_canonical_request(&query, &headers);
            assert_eq!(canonical, v["canonical_request"], "{}", v["title"]);
            assert_eq!(acs3_string_to_sign(&canonical), v["string_to_sign"], "{}", v["title"]);
            let authorization = acs3_authorization(&query, &headers, &key("testsecret", None));
            assert_eq!(authorization, v["authorization"], "{}", v["title"]);
        }
    }

    #[test]
    fn acs3_signs_the_documented_example() {
        let image = "win2019_1809_x64_dtc_zh-cn_40G_alibase_20230811.vhd";
        let params = Params::from([("ImageId".into(), image.into()), ("RegionId".into(), "cn-shanghai".into())]);
        let stamp = Stamp { at: "2023-10-26T10:22:32Z".into(), nonce: "3156853299f313e23d1673dc12e1703d".into() };
        let call = Call { host: "ecs.cn-shanghai.aliyuncs.com", action: "RunInstances", version: "2014-05-26" };
        let key = Key::new("YourAccessKeyId", "YourAccessKeySecret", None).unwrap();
        let signed = acs3(&call, &params, &key, stamp);
        assert_eq!(
            signed.headers["authorization"],
            "ACS3-HMAC-SHA256 Credential=YourAccessKeyId,\
             SignedHeaders=host;x-acs-action;x-acs-content-sha256;x-acs-date;x-acs-signature-nonce;x-acs-version,\
             Signature=06563a9e1b43f5dfe96b81484da74bceab24a1d853912eee15083a6f0f3283c0"
        );
    }

    #[test]
    fn an_sts_token_is_sent_and_signed() {
        let call = Call { host: "h", action: "A", version: "v" };
        let stamp = Stamp { at: "t".into(), nonce: "n".into() };
        let signed = acs3(&call, &Params::new(), &key("s", Some("the token")), stamp);
        assert_eq!(signed.headers["x-acs-security-token"], "the token");
        assert!(
            signed.headers["authorization"].contains(";x-acs-security-token;"),
            "{}",
            signed.headers["authorization"]
        );
    }

    #[test]
    fn every_stamp_is_another() {
        let (a, b) = (Stamp::new(SystemTime::now()).unwrap(), Stamp::new(SystemTime::now()).unwrap());
        assert_ne!(a.nonce, b.nonce);
        assert_eq!(a.nonce.len(), 32);
        assert_eq!(a.at.len(), "2026-01-02T03:04:05Z".len());
        assert!(a.at.ends_with('Z'), "{}", a.at);
    }
}
