//! The simulated cloud is as strict as the real one.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc;
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use serde_json::json;

use super::sign::Call as Signed;
use super::*;
use crate::sim::http::Request;

const NODE: &str = "i-node";
/// Within this an answer comes, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(15);
/// What has not come by then does not come.
const SILENCE: Duration = Duration::from_millis(1500);

/// A cloud with one small node, and a client of its API.
struct Bench {
    cloud: Cloud,
    api: SocketAddr,
    metadata: SocketAddr,
}

impl Bench {
    fn new(config: Config) -> Bench {
        Bench::with(config, Box::new(NoFabric))
    }

    fn with(config: Config, fabric: Box<dyn Fabric>) -> Bench {
        let cloud = Cloud::start_with(config, fabric);
        let listen = || TcpListener::bind("127.0.0.1:0").unwrap();
        let (api, metadata) = (listen(), listen());
        let addresses = (api.local_addr().unwrap(), metadata.local_addr().unwrap());
        cloud.serve(api);
        cloud.serve_metadata(metadata);
        cloud.add_instance(node(NODE, "ecs.sim.small"));
        cloud.instance_calls_from("127.0.0.1".parse().unwrap(), NODE);
        Bench { cloud, api: addresses.0, metadata: addresses.1 }
    }

    fn call(&self, action: &str, params: &[(&str, &str)]) -> (u16, Value) {
        Caller::default().call(self.api, action, params).expect("an answer")
    }

    fn ok(&self, action: &str, params: &[(&str, &str)]) -> Value {
        let (status, body) = self.call(action, params);
        assert_eq!(status, 200, "{action}: {body}");
        body
    }

    /// Status and code of a refusal.
    fn refused(&self, action: &str, params: &[(&str, &str)]) -> (u16, String) {
        let (status, body) = self.call(action, params);
        assert!(body["RequestId"].is_string() && body["HostId"].is_string() && body["Message"].is_string(), "{body}");
        (status, body["Code"].as_str().unwrap_or("none").into())
    }

    fn create(&self) -> String {
        let body = self.ok("CreateNetworkInterface", &[("VSwitchId", "vsw-pod"), ("SecurityGroupIds.1", "sg-sim")]);
        body["NetworkInterfaceId"].as_str().unwrap().into()
    }

    fn attached(&self) -> String {
        let eni = self.create();
        self.ok("AttachNetworkInterface", &[("NetworkInterfaceId", &eni), ("InstanceId", NODE)]);
        eni
    }

    fn look(&self, path: &str) -> (u16, String) {
        self.metadata("GET", path, "")
    }

    fn metadata(&self, method: &str, path: &str, header: &str) -> (u16, String) {
        let request = format!("{method} {path} HTTP/1.1\r\nHost: m\r\n{header}Connection: close\r\n\r\n");
        talk(self.metadata, &request, PATIENCE).expect("an answer")
    }
}

fn node(id: &str, kind: &str) -> InstanceSpec {
    InstanceSpec {
        id: id.into(),
        instance_type: kind.into(),
        vswitch: "vsw-node".into(),
        security_groups: vec!["sg-sim".into()],
        address: None,
        role: Some("NodeRole".into()),
    }
}

/// Signs calls in the RPC form, well or badly.
struct Caller {
    key: String,
    secret: String,
    token: Option<String>,
    nonce: Option<String>,
    timestamp: String,
    version: String,
    patience: Duration,
}

impl Default for Caller {
    fn default() -> Caller {
        Caller {
            key: "testid".into(),
            secret: "testsecret".into(),
            token: None,
            nonce: None,
            timestamp: stamp(SystemTime::now()),
            version: "2014-05-26".into(),
            patience: PATIENCE,
        }
    }
}

impl Caller {
    /// `None` where there was no whole answer.
    fn call(&self, api: SocketAddr, action: &str, params: &[(&str, &str)]) -> Option<(u16, Value)> {
        let nonce = self.nonce.clone().unwrap_or_else(|| format!("{:032x}", fastrand::u128(..)));
        let version = if action == "DescribeVSwitches" { "2016-04-28" } else { &self.version };
        let mut all = vec![
            ("Action", action),
            ("Version", version),
            ("Format", "JSON"),
            ("AccessKeyId", &self.key),
            ("SignatureMethod", "HMAC-SHA1"),
            ("SignatureVersion", "1.0"),
            ("SignatureNonce", &nonce),
            ("Timestamp", &self.timestamp),
        ];
        if params.iter().all(|(n, _)| *n != "RegionId") {
            all.push(("RegionId", "cn-hangzhou"));
        }
        all.extend(self.token.as_deref().map(|t| ("SecurityToken", t)));
        all.extend(params);
        let mut pairs: Vec<String> = all.iter().map(|(n, v)| format!("{}={}", quote(n), quote(v))).collect();
        pairs.sort();
        let query = pairs.join("&");
        let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, format!("{}&", self.secret).as_bytes());
        let signature = STANDARD.encode(hmac::sign(&key, format!("POST&%2F&{}", quote(&query)).as_bytes()));
        let target = format!("/?{query}&Signature={}", quote(&signature));
        let request = format!("POST {target} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        let (status, body) = talk(api, &request, self.patience)?;
        Some((status, serde_json::from_str(&body).ok()?))
    }
}

fn quote(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~".contains(&b);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// Status and body of the answer; `None` where it does not come or is not whole.
fn talk(to: SocketAddr, request: &str, patience: Duration) -> Option<(u16, String)> {
    let mut s = TcpStream::connect(to).unwrap();
    s.set_read_timeout(Some(patience)).unwrap();
    s.write_all(request.as_bytes()).unwrap();
    let mut heard = Vec::new();
    let _ = s.read_to_end(&mut heard);
    let text = String::from_utf8(heard).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let length = head.lines().find_map(|l| l.strip_prefix("Content-Length: "))?;
    (length.parse() == Ok(body.len())).then(|| (head[9..12].parse().unwrap(), body.into()))
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(5);
    while !done() {
        assert!(Instant::now() < end, "in vain: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

fn status_of(b: &Bench, eni: &str) -> String {
    let body = b.ok("DescribeNetworkInterfaces", &[("NetworkInterfaceId.1", eni)]);
    let set = &body["NetworkInterfaceSets"]["NetworkInterfaceSet"];
    set[0]["Status"].as_str().unwrap_or("none").into()
}

// Who calls.

fn request(method: &str, target: &str, headers: &[(&str, &str)]) -> Request {
    Request {
        method: method.into(),
        target: target.into(),
        headers: headers.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect(),
        body: Vec::new(),
        peer: "127.0.0.1:1".parse().unwrap(),
        certificates: Vec::new(),
        minor: 1,
    }
}

#[test]
fn rpc_signatures_of_the_official_sdk_are_right() {
    for (target, secret) in [
        (
            "/?NetworkInterfaceId=eni-1&SecondaryPrivateIpAddressCount=3&ClientToken=tok%20~%2A%2B%2F%3D%26%25&Version=2014-05-26&Action=AssignPrivateIpAddresses&Format=JSON&RegionId=cn-hangzhou&Timestamp=2026-01-02T03%3A04%3A05Z&SignatureMethod=HMAC-SHA1&SignatureType=&SignatureVersion=1.0&SignatureNonce=00000000-0000-4000-8000-000000000001&AccessKeyId=testid&Signature=Z50kI1wIOZFHgPekUfUjIU2A1G4%3D",
            "testsecret",
        ),
        (
            "/?VSwitchId=vsw-1&SecurityGroupId=sg-1&NetworkInterfaceName=%E8%8A%82%E7%82%B9%20a&Description=&Version=2014-05-26&Action=CreateNetworkInterface&Format=JSON&RegionId=cn-hangzhou&Timestamp=2026-01-02T03%3A04%3A05Z&SignatureMethod=HMAC-SHA1&SignatureType=&SignatureVersion=1.0&SignatureNonce=00000000-0000-4000-8000-000000000001&AccessKeyId=testid&Signature=NDy3ZYZvpc1VLzxAmSTxcIJPHdk%3D",
            "testsecret",
        ),
        (
            "/?InstanceId=i-abc&SecurityToken=sts%20token%2B%2F%3D%3D&Version=2014-05-26&Action=DescribeNetworkInterfaces&Format=JSON&RegionId=cn-hangzhou&Timestamp=2026-01-02T03%3A04%3A05Z&SignatureMethod=HMAC-SHA1&SignatureType=&SignatureVersion=1.0&SignatureNonce=00000000-0000-4000-8000-000000000001&AccessKeyId=testid&Signature=%2Bky3krAhjsdhuwZOO6HMcqKZ108%3D",
            "testsecret",
        ),
    ] {
        let call = Signed::read(&request("POST", target, &[])).unwrap();
        assert_eq!(call.check_signature(secret), Ok(()));
        assert_eq!(call.check_signature("other").unwrap_err().code, "SignatureDoesNotMatch");
        // The method is signed too.
        let call = Signed::read(&request("GET", target, &[])).unwrap();
        assert_eq!(call.check_signature(secret).unwrap_err().code, "SignatureDoesNotMatch");
    }
}

const EMPTY_HASH: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

#[test]
fn acs3_signatures_of_the_official_sdk_are_right() {
    let sts = "accept;host;user-agent;x-acs-accesskey-id;x-acs-action;x-acs-content-sha256;x-acs-credentials-provider;x-acs-date;x-acs-security-token;x-acs-signature-nonce;x-acs-version";
    let headers = [
        ("accept", "application/json"),
        ("host", "127.0.0.1:18080"),
        ("user-agent", "AlibabaCloud (Linux; x86_64) Python/3.11.7 Core/0.4.3 TeaDSL/2"),
        ("x-acs-accesskey-id", "testid"),
        ("x-acs-action", "DescribeNetworkInterfaces"),
        ("x-acs-content-sha256", EMPTY_HASH),
        ("x-acs-credentials-provider", "static_sts"),
        ("x-acs-date", "2026-01-02T03:04:05Z"),
        ("x-acs-security-token", "sts token+/=="),
        ("x-acs-signature-nonce", "00000000000040008000000000000001"),
        ("x-acs-version", "2014-05-26"),
    ];
    let sign = |names: &str, signature: &str| {
        format!("ACS3-HMAC-SHA256 Credential=testid,SignedHeaders={names},Signature={signature}")
    };
    let right = sign(sts, "26862cefc98e1aa432d185c00a92faf51782e97a0c4d24e269fdaf664296caa8");
    let with = |authorization: &str| {
        let mut all = headers.to_vec();
        all.push(("authorization", authorization));
        request("POST", "/?InstanceId=i-abc&RegionId=cn-hangzhou", &all)
    };
    let call = Signed::read(&with(&right)).unwrap();
    assert_eq!(call.check_signature("testsecret"), Ok(()));
    assert_eq!(call.check_signature("testsecre").unwrap_err().code, "SignatureDoesNotMatch");
    assert_eq!((call.action.as_str(), call.token.as_deref()), ("DescribeNetworkInterfaces", Some("sts token+/==")));

    let unsigned_token = sign(&sts.replace("x-acs-security-token;", ""), "00");
    assert_eq!(Signed::read(&with(&unsigned_token)).unwrap_err().code, "IncompleteSignature");
    let mut body = with(&right);
    body.body = b"x=1".to_vec();
    assert_eq!(Signed::read(&body).unwrap_err().code, "SignatureDoesNotMatch");
}

#[test]
fn acs3_signs_a_space_as_percent_20_however_it_is_sent() {
    let names = "accept;host;user-agent;x-acs-action;x-acs-content-sha256;x-acs-credentials-provider;x-acs-date;x-acs-signature-nonce;x-acs-version";
    let headers = [
        ("accept", "application/json"),
        ("host", "127.0.0.1:18080"),
        ("user-agent", "AlibabaCloud (Linux; x86_64) Python/3.11.7 Core/0.4.3 TeaDSL/2"),
        ("x-acs-action", "AssignPrivateIpAddresses"),
        ("x-acs-content-sha256", EMPTY_HASH),
        ("x-acs-credentials-provider", "static_ak"),
        ("x-acs-date", "2026-01-02T03:04:05Z"),
        ("x-acs-signature-nonce", "00000000000040008000000000000001"),
        ("x-acs-version", "2014-05-26"),
    ];
    let signature = "ae9691a78936b6b77d4479e7aaab3955afcbe73ba7c887ea139b736bad762923";
    let authorization = format!("ACS3-HMAC-SHA256 Credential=testid,SignedHeaders={names},Signature={signature}");
    for space in ["+", "%20"] {
        let target = format!(
            "/?ClientToken=tok{space}~%2A%2B%2F%3D%26%25&NetworkInterfaceId=eni-1&RegionId=cn-hangzhou&SecondaryPrivateIpAddressCount=3"
        );
        let mut all = headers.to_vec();
        all.push(("authorization", &authorization));
        let call = Signed::read(&request("POST", &target, &all)).unwrap();
        assert_eq!(call.check_signature("testsecret"), Ok(()));
        assert_eq!(call.params["ClientToken"], "tok ~*+/=&%");
    }
}

#[test]
fn a_call_must_be_fresh_known_and_rightly_signed() {
    let b = Bench::new(Config::default());
    let code = |caller: Caller| {
        let (status, body) = caller.call(b.api, "DescribeNetworkInterfaces", &[]).unwrap();
        (status, body["Code"].as_str().unwrap_or("OK").to_string())
    };
    let ago = |minutes: u64| stamp(SystemTime::now() - Duration::from_secs(minutes * 60));
    let once = || Caller { nonce: Some("once".into()), ..Caller::default() };
    for (caller, want) in [
        (Caller::default(), (200, "OK")),
        (Caller { secret: "wrong".into(), ..Caller::default() }, (400, "SignatureDoesNotMatch")),
        (Caller { key: "nobody".into(), ..Caller::default() }, (404, "InvalidAccessKeyId.NotFound")),
        (Caller { timestamp: ago(14), ..Caller::default() }, (200, "OK")),
        (Caller { timestamp: ago(16), ..Caller::default() }, (400, "InvalidTimeStamp.Expired")),
        (Caller { timestamp: "yesterday".into(), ..Caller::default() }, (400, "InvalidTimeStamp.Format")),
        (once(), (200, "OK")),
        (once(), (400, "SignatureNonceUsed")),
        (Caller { version: "2016-04-28".into(), ..Caller::default() }, (404, "InvalidAction.NotFound")),
        (Caller { token: Some("t".into()), ..Caller::default() }, (400, "InvalidSecurityToken.Malformed")),
    ] {
        assert_eq!(code(caller), (want.0, want.1.to_string()));
    }
}

#[test]
fn temporary_credentials_work_with_their_token_until_they_expire() {
    let b = Bench::new(Config::default());
    assert_eq!(b.look("/latest/meta-data/ram/security-credentials/").1, "NodeRole");
    let read =
        || -> Value { serde_json::from_str(&b.look("/latest/meta-data/ram/security-credentials/NodeRole").1).unwrap() };
    let c = read();
    assert_eq!(c["Code"], "Success");
    assert_eq!(read()["AccessKeyId"], c["AccessKeyId"]);
    let caller = |token: Option<&str>| Caller {
        key: c["AccessKeyId"].as_str().unwrap().into(),
        secret: c["AccessKeySecret"].as_str().unwrap().into(),
        token: token.map(String::from),
        ..Caller::default()
    };
    let call = |token| caller(token).call(b.api, "DescribeNetworkInterfaces", &[]).unwrap();
    let token = c["SecurityToken"].as_str();
    assert_eq!(call(token).0, 200);
    assert_eq!(call(None).1["Code"], "InvalidAccessKeyId.NotFound");
    assert_eq!(call(Some("other")).1["Code"], "InvalidSecurityToken.Malformed");
    b.cloud.forbid("NodeRole", "ecs:DescribeNetworkInterfaces");
    assert_eq!(call(token).1["Code"], "Forbidden.RAM");
    b.ok("DescribeNetworkInterfaces", &[]);
    b.cloud.expire_credentials();
    assert_eq!(call(token).1["Code"], "InvalidSecurityToken.Expired");
    assert_ne!(read()["AccessKeyId"], c["AccessKeyId"]);
}

#[test]
fn a_right_taken_away_is_missed_and_too_many_calls_are_throttled() {
    let b = Bench::new(Config::default());
    b.cloud.forbid("*", "ecs:DescribeInstances");
    assert_eq!(b.refused("DescribeInstances", &[]), (403, "Forbidden.RAM".into()));
    b.cloud.permit("*", "ecs:DescribeInstances");
    b.cloud.limit("DescribeInstances", Some(Rate { per_second: 0.0, burst: 2 }));
    b.ok("DescribeInstances", &[]);
    b.ok("DescribeInstances", &[]);
    assert_eq!(b.refused("DescribeInstances", &[]), (400, "Throttling.User".into()));
    b.ok("DescribeVSwitches", &[]);
    b.cloud.limit("DescribeInstances", None);
    b.ok("DescribeInstances", &[]);
    assert_eq!(b.cloud.calls("DescribeInstances"), 5);
    assert_eq!(b.cloud.calls_ending("DescribeInstances", "Throttling.User"), 1);
}

// What is asked.

#[test]
fn parameters_are_needed_known_and_well_formed() {
    let b = Bench::new(Config::default());
    let eni = b.create();
    for (action, params, want) in [
        ("CreateNetworkInterface", vec![("SecurityGroupIds.1", "sg-sim")], (400, "MissingParameter")),
        ("CreateNetworkInterface", vec![("VSwitchId", "vsw-pod")], (400, "MissingParameter")),
        (
            "CreateNetworkInterface",
            vec![("VSwitchId", ""), ("SecurityGroupIds.1", "sg-sim")],
            (400, "MissingParameter"),
        ),
        (
            "CreateNetworkInterface",
            vec![("VSwitchId", "vsw-none"), ("SecurityGroupIds.1", "sg-sim")],
            (404, "InvalidVSwitchId.NotFound"),
        ),
        (
            "CreateNetworkInterface",
            vec![("VSwitchId", "vsw-pod"), ("SecurityGroupIds.1", "sg-none")],
            (404, "InvalidSecurityGroupId.NotFound"),
        ),
        (
            "CreateNetworkInterface",
            vec![("VSwitchId", "vsw-pod"), ("SecurityGroupIds.1", "sg-elsewhere")],
            (403, "InvalidOperation.VpcMismatch"),
        ),
        (
            "CreateNetworkInterface",
            vec![("VSwitchId", "vsw-pod"), ("SecurityGroupIds.1", "sg-sim"), ("Tag.1.Value", "v")],
            (400, "MissingParameter"),
        ),
        (
            "CreateNetworkInterface",
            vec![("VSwitchId", "vsw-pod"), ("SecurityGroupIds.2", "sg-sim")],
            (400, "MissingParameter"),
        ),
        ("DescribeNetworkInterfaces", vec![("Colour", "red")], (400, "InvalidParameter")),
        ("DescribeNetworkInterfaces", vec![("RegionId", "cn-beijing")], (404, "InvalidRegionId.NotFound")),
        ("DescribeNetworkInterfaces", vec![("Status", "Idle")], (400, "InvalidParameter")),
        ("DescribeNetworkInterfaces", vec![("MaxResults", "501")], (400, "InvalidParameter")),
        ("DescribeNetworkInterfaces", vec![("MaxResults", "5"), ("PageSize", "5")], (400, "InvalidParameter")),
        ("DescribeNetworkInterfaces", vec![("NextToken", "made up")], (400, "InvalidParameter")),
        ("AssignPrivateIpAddresses", vec![("NetworkInterfaceId", &eni)], (400, "MissingParameter")),
        (
            "AssignPrivateIpAddresses",
            vec![("NetworkInterfaceId", &eni), ("SecondaryPrivateIpAddressCount", "0")],
            (400, "InvalidParameter"),
        ),
        (
            "AssignPrivateIpAddresses",
            vec![("NetworkInterfaceId", "eni-none"), ("SecondaryPrivateIpAddressCount", "1")],
            (404, "InvalidEniId.NotFound"),
        ),
        (
            "AssignPrivateIpAddresses",
            vec![("NetworkInterfaceId", &eni), ("PrivateIpAddress.1", "10.0.8.253")],
            (403, "InvalidVSwitchId.IpInvalid"),
        ),
        (
            "AssignPrivateIpAddresses",
            vec![("NetworkInterfaceId", &eni), ("PrivateIpAddress.1", "10.0.8.1")],
            (403, "InvalidIp.IpAssigned"),
        ),
        ("UnassignPrivateIpAddresses", vec![("NetworkInterfaceId", &eni)], (400, "MissingParameter")),
        (
            "UnassignPrivateIpAddresses",
            vec![("NetworkInterfaceId", &eni), ("PrivateIpAddress.1", "10.0.8.9")],
            (403, "InvalidIp.IpUnassigned"),
        ),
        (
            "UnassignPrivateIpAddresses",
            vec![("NetworkInterfaceId", &eni), ("PrivateIpAddress.1", "10.0.8.1")],
            (400, "InvalidParameter"),
        ),
        (
            "AttachNetworkInterface",
            vec![("NetworkInterfaceId", &eni), ("InstanceId", "i-none")],
            (404, "InvalidEcsId.NotFound"),
        ),
        ("DescribeInstances", vec![("InstanceIds", "i-node")], (400, "InvalidParameter")),
        ("StartInstance", vec![], (404, "InvalidAction.NotFound")),
    ] {
        assert_eq!(b.refused(action, &params), (want.0, want.1.to_string()), "{action} {params:?}");
    }
    // Nothing of all that has changed anything.
    assert_eq!(b.cloud.eni(&eni).unwrap().v4, ["10.0.8.1".parse::<Ipv4Addr>().unwrap()]);
    assert_eq!(b.cloud.enis().len(), 2);
}

#[test]
fn a_parameter_given_twice_is_refused() {
    let b = Bench::new(Config::default());
    assert_eq!(b.refused("DescribeInstances", &[("ZoneId", "a"), ("ZoneId", "b")]), (400, "InvalidParameter".into()));
}

// The life of an ENI.

#[test]
fn an_eni_goes_through_its_states_in_their_time() {
    let hour = Duration::from_secs(3600);
    let delays = Delays { create: hour, attach: hour, detach: hour, delete: hour, change: Duration::ZERO };
    let b = Bench::new(Config { delays, ..Config::default() });
    let eni = b.create();
    let place = [("NetworkInterfaceId", eni.as_str()), ("InstanceId", NODE)];
    let wrong_state = (400, "InvalidOperation.InvalidEniState".to_string());

    assert_eq!(status_of(&b, &eni), "Creating");
    assert_eq!(b.refused("AttachNetworkInterface", &place), wrong_state);
    b.cloud.hasten();
    assert_eq!(status_of(&b, &eni), "Available");

    b.ok("AttachNetworkInterface", &place);
    assert_eq!(status_of(&b, &eni), "Attaching");
    assert_eq!(b.refused("AttachNetworkInterface", &place), wrong_state);
    assert_eq!(b.refused("DetachNetworkInterface", &place), wrong_state);
    let more = [("NetworkInterfaceId", eni.as_str()), ("SecondaryPrivateIpAddressCount", "1")];
    assert_eq!(b.refused("AssignPrivateIpAddresses", &more), wrong_state);
    b.cloud.hasten();
    assert_eq!(status_of(&b, &eni), "InUse");

    assert_eq!(b.refused("DeleteNetworkInterface", &place[..1]), wrong_state);
    b.ok("DetachNetworkInterface", &place);
    assert_eq!(status_of(&b, &eni), "Detaching");
    assert_eq!(b.refused("DeleteNetworkInterface", &place[..1]), wrong_state);
    b.cloud.hasten();
    assert_eq!(status_of(&b, &eni), "Available");
    assert_eq!(b.cloud.eni(&eni).unwrap().instance, None);

    b.ok("DeleteNetworkInterface", &place[..1]);
    assert_eq!(status_of(&b, &eni), "Deleting");
    b.cloud.hasten();
    assert_eq!(status_of(&b, &eni), "none");
    assert_eq!(b.refused("DeleteNetworkInterface", &place[..1]), (404, "InvalidEniId.NotFound".into()));
    assert_eq!(b.cloud.free("vsw-pod"), 252);
}

#[test]
fn transitions_end_by_themselves() {
    let slow = Duration::from_millis(20);
    let delays = Delays { create: slow, attach: slow, ..Delays::default() };
    let b = Bench::new(Config { delays, ..Config::default() });
    let eni = b.create();
    until("available", || status_of(&b, &eni) == "Available");
    b.ok("AttachNetworkInterface", &[("NetworkInterfaceId", &eni), ("InstanceId", NODE)]);
    until("in use", || status_of(&b, &eni) == "InUse");
}

#[test]
fn an_eni_is_described_as_the_official_api_describes_it() {
    let b = Bench::new(Config::default());
    let made = b.ok(
        "CreateNetworkInterface",
        &[
            ("VSwitchId", "vsw-pod"),
            ("SecurityGroupIds.1", "sg-sim"),
            ("SecondaryPrivateIpAddressCount", "2"),
            ("Ipv6AddressCount", "1"),
            ("Tag.1.Key", "creator"),
            ("Tag.1.Value", "terway"),
            ("Description", "for pods"),
        ],
    );
    let eni = made["NetworkInterfaceId"].as_str().unwrap();
    b.ok("AttachNetworkInterface", &[("NetworkInterfaceId", eni), ("InstanceId", NODE)]);
    let filter = [("Tag.1.Key", "creator"), ("Tag.1.Value", "terway"), ("InstanceId", NODE), ("Type", "Secondary")];
    let all = b.ok("DescribeNetworkInterfaces", &filter);
    let e = &all["NetworkInterfaceSets"]["NetworkInterfaceSet"][0];
    assert_eq!(all["TotalCount"], 1);
    assert_eq!(e["NetworkInterfaceId"], eni);
    assert_eq!((&e["Status"], &e["Type"]), (&json!("InUse"), &json!("Secondary")));
    assert_eq!((&e["VSwitchId"], &e["ZoneId"]), (&json!("vsw-pod"), &json!("cn-hangzhou-h")));
    assert_eq!(e["PrivateIpAddress"], "10.0.8.1");
    assert_eq!(
        e["PrivateIpSets"]["PrivateIpSet"],
        json!([
            { "PrivateIpAddress": "10.0.8.1", "Primary": true },
            { "PrivateIpAddress": "10.0.8.2", "Primary": false },
            { "PrivateIpAddress": "10.0.8.3", "Primary": false },
        ])
    );
    assert_eq!(e["Ipv6Sets"]["Ipv6Set"], json!([{ "Ipv6Address": "fd00:0:0:8::10" }]));
    assert_eq!(e["Tags"]["Tag"], json!([{ "TagKey": "creator", "TagValue": "terway" }]));
    assert_eq!(e["SecurityGroupIds"]["SecurityGroupId"], json!(["sg-sim"]));
    assert_eq!((&e["InstanceId"], &e["Attachment"]["InstanceId"]), (&json!(NODE), &json!(NODE)));
    assert!(e["MacAddress"].as_str().unwrap().starts_with("00:16:3e:"));

    let vsw = b.ok("DescribeVSwitches", &[("VSwitchId", "vsw-pod")]);
    assert_eq!(vsw["VSwitches"]["VSwitch"][0]["AvailableIpAddressCount"], 249);
    assert_eq!(vsw["VSwitches"]["VSwitch"][0]["Ipv6CidrBlock"], "fd00:0:0:8::/64");
    let types = b.ok("DescribeInstanceTypes", &[("InstanceTypes.1", "ecs.sim.small")]);
    assert_eq!(types["InstanceTypes"]["InstanceType"][0]["EniQuantity"], 2);
    assert_eq!(types["InstanceTypes"]["InstanceType"][0]["EniPrivateIpAddressQuantity"], 3);
    let instances = b.ok("DescribeInstances", &[("InstanceIds", r#"["i-node"]"#)]);
    let i = &instances["Instances"]["Instance"][0];
    assert_eq!(i["VpcAttributes"]["PrivateIpAddress"]["IpAddress"], json!(["10.0.0.1"]));
    let attribute = b.ok("DescribeInstanceAttribute", &[("InstanceId", NODE)]);
    assert_eq!((&attribute["InstanceType"], &attribute["ZoneId"]), (&json!("ecs.sim.small"), &json!("cn-hangzhou-h")));
}

#[test]
fn limits_of_type_account_vswitch_zone_and_group_hold() {
    let b = Bench::new(Config::default());
    let eni = b.attached();
    let assign = |id: &str, n: &str| {
        let (_, body) =
            b.call("AssignPrivateIpAddresses", &[("NetworkInterfaceId", id), ("SecondaryPrivateIpAddressCount", n)]);
        body["Code"].as_str().unwrap_or("OK").to_string()
    };
    assert_eq!(assign(&eni, "3"), "InvalidOperation.Ipv4CountExceeded");
    assert_eq!(assign(&eni, "2"), "OK");
    assert_eq!(assign(&eni, "1"), "InvalidOperation.Ipv4CountExceeded");

    let second = b.create();
    let attach = |id: &str| b.refused("AttachNetworkInterface", &[("NetworkInterfaceId", id), ("InstanceId", NODE)]);
    assert_eq!(attach(&second), (403, "EniPerInstanceLimitExceeded".into()));
    assert_eq!(assign(&second, "49"), "OK");
    assert_eq!(assign(&second, "1"), "QuotaExceeded.PrivateIpAddress");

    let make = |vswitch: &str, group: &str, n: &str| {
        let params = [("VSwitchId", vswitch), ("SecurityGroupIds.1", group), ("SecondaryPrivateIpAddressCount", n)];
        b.call("CreateNetworkInterface", &params).1
    };
    // A /28 has 12 addresses to give.
    assert_eq!(make("vsw-tiny", "sg-sim", "12")["Code"], "InvalidVSwitchId.IpNotEnough");
    assert_eq!(make("vsw-tiny", "sg-sim", "11")["Status"], "Available");
    assert_eq!(make("vsw-tiny", "sg-sim", "1")["Code"], "InvalidVSwitchId.IpNotEnough");
    assert_eq!(make("vsw-pod", "sg-small", "3")["Code"], "SecurityGroupInstanceLimitExceed");
    assert_eq!(make("vsw-pod", "sg-small", "2")["Status"], "Available");
    let far = make("vsw-other-zone", "sg-sim", "1");
    let far = far["NetworkInterfaceId"].as_str().unwrap();
    assert_eq!(attach(far), (403, "InvalidOperation.AvailabilityZoneMismatch".into()));

    b.cloud.crowd("vsw-pod", 1);
    assert_eq!(b.cloud.free("vsw-pod"), 1);
    assert_eq!(make("vsw-pod", "sg-sim", "1")["Code"], "InvalidVSwitchId.IpNotEnough");
    b.cloud.relieve("vsw-pod");
    assert_eq!(make("vsw-pod", "sg-sim", "1")["Status"], "Available");
}

#[test]
fn tags_come_and_go_and_do_not_exceed_twenty() {
    let b = Bench::new(Config::default());
    let eni = b.create();
    let about = [("ResourceType", "eni"), ("ResourceId.1", eni.as_str())];
    let with = |more: &[(&'static str, &'static str)]| [&about[..], more].concat();
    let bears = || b.cloud.eni(&eni).unwrap().tags;
    let before = bears();
    b.ok("TagResources", &with(&[("Tag.1.Key", "a"), ("Tag.1.Value", "1"), ("Tag.2.Key", "b")]));
    b.ok("TagResources", &with(&[("Tag.1.Key", "a"), ("Tag.1.Value", "2")]));
    assert_eq!((bears()["a"].as_str(), bears()["b"].as_str()), ("2", ""));
    b.ok("UntagResources", &with(&[("TagKey.1", "a"), ("TagKey.2", "b"), ("TagKey.3", "never there")]));
    assert_eq!(bears(), before);

    assert_eq!(b.refused("TagResources", &about), (400, "MissingParameter".into()));
    assert_eq!(b.refused("UntagResources", &about), (400, "MissingParameter".into()));
    let other = [("ResourceType", "eni"), ("ResourceId.1", "eni-x"), ("Tag.1.Key", "a")];
    assert_eq!(b.refused("TagResources", &other), (404, "InvalidResourceId.NotFound".into()));
    let kind = [("ResourceType", "enis"), ("ResourceId.1", &eni), ("Tag.1.Key", "a")];
    assert_eq!(b.refused("TagResources", &kind), (404, "InvalidResourceType.NotFound".into()));
    let bad = with(&[("Tag.1.Key", "a"), ("Tag.1.Value", "http://x")]);
    assert_eq!(b.refused("TagResources", &bad), (400, "InvalidTagValue.Malformed".into()));
    let names: Vec<String> = (1..=20).map(|n| format!("Tag.{n}.Key")).collect();
    let twenty = names.iter().map(|name| (name.as_str(), name.as_str()));
    let twenty: Vec<(&str, &str)> = about.into_iter().chain(twenty).collect();
    b.ok("TagResources", &twenty);
    assert_eq!(b.refused("TagResources", &with(&[("Tag.1.Key", "one more")])), (403, "NumberExceed.Tags".into()));
    b.ok("UntagResources", &with(&[("All", "true")]));
    assert!(bears().is_empty());
}

#[test]
fn an_eni_is_in_one_to_ten_different_groups_of_its_vpc() {
    let b = Bench::new(Config::default());
    let eni = b.create();
    let modify = |groups: &[&str]| {
        let names: Vec<String> = (1..=groups.len()).map(|n| format!("SecurityGroupId.{n}")).collect();
        let groups = names.iter().zip(groups).map(|(name, group)| (name.as_str(), *group));
        let all: Vec<(&str, &str)> = [("NetworkInterfaceId", eni.as_str())].into_iter().chain(groups).collect();
        b.call("ModifyNetworkInterfaceAttribute", &all).1["Code"].as_str().unwrap_or("OK").to_string()
    };
    assert_eq!(modify(&["sg-sim", "sg-small"]), "OK");
    assert_eq!(b.cloud.eni(&eni).unwrap().security_groups, ["sg-sim", "sg-small"]);
    assert_eq!(modify(&["sg-sim", "sg-sim"]), "InvalidParameter");
    assert_eq!(modify(&["sg-elsewhere"]), "InvalidOperation.VpcMismatch");
    assert_eq!(modify(&["sg-nowhere"]), "InvalidSecurityGroupId.NotFound");
    assert_eq!(modify(&["sg-sim"]), "OK");
    assert_eq!(b.cloud.eni(&eni).unwrap().security_groups, ["sg-sim"]);
    // Full: three addresses there already.
    let place = [("VSwitchId", "vsw-pod"), ("SecurityGroupIds.1", "sg-small"), ("SecondaryPrivateIpAddressCount", "2")];
    b.ok("CreateNetworkInterface", &place);
    assert_eq!(modify(&["sg-sim", "sg-small"]), "SecurityGroupInstanceLimitExceed");
}

#[test]
fn a_prefix_is_a_free_aligned_block_and_takes_one_place() {
    let b = Bench::new(Config::default());
    let eni = b.attached();
    let assign =
        |n: &str| b.call("AssignPrivateIpAddresses", &[("NetworkInterfaceId", &eni), ("Ipv4PrefixCount", n)]).1;
    let got = assign("2");
    let list = &got["AssignedPrivateIpAddressesSet"]["Ipv4PrefixSet"]["Ipv4Prefixes"];
    // The first block holds the network's own address, and the ENI's primary one.
    assert_eq!(*list, json!(["10.0.8.16/28", "10.0.8.32/28"]));
    assert_eq!(b.cloud.eni(&eni).unwrap().all_v4().count(), 33);
    assert_eq!(assign("1")["Code"], "InvalidOperation.Ipv4CountExceeded", "three places, all taken");
    let about = |prefix: &'static str| {
        [("NetworkInterfaceId", eni.as_str()), ("Ipv4Prefix.1", prefix)].map(|(k, v)| (k, v.to_owned()))
    };
    let unassign = |prefix: &'static str| {
        let params = about(prefix);
        let params: Vec<(&str, &str)> = params.iter().map(|(k, v)| (*k, v.as_str())).collect();
        b.call("UnassignPrivateIpAddresses", &params).1["Code"].as_str().unwrap_or("OK").to_string()
    };
    assert_eq!(unassign("10.0.8.48/28"), "InvalidIp.IpUnassigned");
    assert_eq!(unassign("10.0.8.16/28"), "OK");
    b.cloud.crowd("vsw-pod", 30);
    assert_eq!(assign("1")["AssignedPrivateIpAddressesSet"]["Ipv4PrefixSet"]["Ipv4Prefixes"], json!(["10.0.8.16/28"]));
    assert_eq!(unassign("10.0.8.32/28"), "OK");
    b.cloud.crowd("vsw-pod", 15);
    assert_eq!(assign("1")["Code"], "InvalidVSwitchId.IpNotEnough", "fifteen are no block");
    let both =
        [("NetworkInterfaceId", eni.as_str()), ("Ipv4PrefixCount", "1"), ("SecondaryPrivateIpAddressCount", "1")];
    assert_eq!(b.refused("AssignPrivateIpAddresses", &both), (400, "InvalidParameter".into()));
}

#[test]
fn the_primary_eni_stays() {
    let b = Bench::new(Config::default());
    let primary = b.cloud.enis_of(NODE)[0].id.clone();
    let refusal = b.refused("DetachNetworkInterface", &[("NetworkInterfaceId", &primary), ("InstanceId", NODE)]);
    assert_eq!(refusal, (400, "InvalidOperation.DetachPrimaryEniNotAllowed".into()));
}

#[test]
fn two_changes_of_one_eni_at_a_time_are_a_conflict() {
    let delays = Delays { change: Duration::from_secs(3), ..Delays::default() };
    let b = Bench::new(Config { delays, ..Config::default() });
    let (one, other) = (b.attached(), b.create());
    let assign = |id: &str| {
        b.call("AssignPrivateIpAddresses", &[("NetworkInterfaceId", id), ("SecondaryPrivateIpAddressCount", "1")])
    };
    thread::scope(|s| {
        let first = s.spawn(|| assign(&one).0);
        until("the first change is going on", || b.cloud.is_busy(&one));
        assert_eq!(assign(&one).1["Code"], "Operation.Conflict");
        let place = [("NetworkInterfaceId", one.as_str()), ("InstanceId", NODE)];
        assert_eq!(b.refused("DetachNetworkInterface", &place), (403, "Operation.Conflict".into()));
        assert_eq!(assign(&other).0, 200);
        assert_eq!(first.join().unwrap(), 200);
        assert_eq!(b.cloud.eni(&one).unwrap().v4.len(), 2);
    });
}

#[test]
fn a_client_token_stands_for_one_request() {
    let b = Bench::new(Config::default());
    let make = |token: &str, vswitch: &str| {
        let params = [("VSwitchId", vswitch), ("SecurityGroupIds.1", "sg-sim"), ("ClientToken", token)];
        b.call("CreateNetworkInterface", &params).1
    };
    let first = make("t1", "vsw-pod");
    assert_eq!(make("t1", "vsw-pod")["NetworkInterfaceId"], first["NetworkInterfaceId"]);
    assert_eq!(b.cloud.enis().len(), 2);
    assert_eq!(make("t1", "vsw-tiny")["Code"], "IdempotentParameterMismatch");
    assert_ne!(make("t2", "vsw-pod")["NetworkInterfaceId"], first["NetworkInterfaceId"]);

    b.cloud.crowd("vsw-pod", 0);
    assert_eq!(make("t3", "vsw-pod")["Code"], "InvalidVSwitchId.IpNotEnough");
    b.cloud.relieve("vsw-pod");
    assert_eq!(make("t3", "vsw-pod")["Code"], "IdempotentFailed");
    // A mistake is not remembered.
    assert_eq!(make("t4", "vsw-none")["Code"], "InvalidVSwitchId.NotFound");
    assert_eq!(make("t4", "vsw-pod")["Status"], "Available");
    assert_eq!(make(&"t".repeat(65), "vsw-pod")["Code"], "InvalidParameter");
}

#[test]
fn a_client_token_in_work_is_not_worked_on_twice() {
    let delays = Delays { change: Duration::from_secs(3), ..Delays::default() };
    let b = Bench::new(Config { delays, ..Config::default() });
    let eni = b.attached();
    let assign = || {
        let params =
            [("NetworkInterfaceId", eni.as_str()), ("SecondaryPrivateIpAddressCount", "1"), ("ClientToken", "t")];
        b.call("AssignPrivateIpAddresses", &params).1
    };
    thread::scope(|s| {
        let first = s.spawn(assign);
        until("the first request is being worked on", || b.cloud.is_busy(&eni));
        assert_eq!(assign()["Code"], "IdempotentProcessing");
        let first = first.join().unwrap();
        let addresses =
            |body: &Value| body["AssignedPrivateIpAddressesSet"]["PrivateIpSet"]["PrivateIpAddress"].clone();
        assert_eq!(addresses(&first), json!(["10.0.8.2"]));
        assert_eq!(addresses(&assign()), json!(["10.0.8.2"]));
    });
    assert_eq!(b.cloud.eni(&eni).unwrap().v4.len(), 2);
}

#[test]
fn pages_follow_each_other_by_token_and_by_number() {
    let b = Bench::new(Config::default());
    let mut all: Vec<String> = b.cloud.enis().into_iter().map(|e| e.id).collect();
    all.extend((0..6).map(|_| b.create()));
    let ids = |body: &Value| -> Vec<String> {
        let set = body["NetworkInterfaceSets"]["NetworkInterfaceSet"].as_array().unwrap();
        set.iter().map(|e| e["NetworkInterfaceId"].as_str().unwrap().into()).collect()
    };
    let mut seen = Vec::new();
    let mut token = String::new();
    loop {
        let page = b.ok("DescribeNetworkInterfaces", &[("MaxResults", "3"), ("NextToken", &token)]);
        seen.extend(ids(&page));
        token = page["NextToken"].as_str().unwrap().into();
        if token.is_empty() {
            break;
        }
        // What goes away between two pages does not shift the next one.
        if seen.len() == 3 {
            b.ok("DeleteNetworkInterface", &[("NetworkInterfaceId", &all[1])]);
        }
    }
    assert_eq!(seen, all);
    let page = b.ok("DescribeNetworkInterfaces", &[("PageNumber", "2"), ("PageSize", "4")]);
    assert_eq!(ids(&page), all[5..]);
    assert_eq!(page["TotalCount"], 6);
}

// Trouble.

#[test]
fn a_lost_reply_is_work_done() {
    let b = Bench::new(Config::default());
    let eni = b.attached();
    let assign = |token: &str| {
        let params =
            [("NetworkInterfaceId", eni.as_str()), ("SecondaryPrivateIpAddressCount", "1"), ("ClientToken", token)];
        Caller::default().call(b.api, "AssignPrivateIpAddresses", &params)
    };
    b.cloud.trouble("AssignPrivateIpAddresses", When::Next(1), Kind::LoseReply);
    assert_eq!(assign("t"), None);
    assert_eq!(b.cloud.eni(&eni).unwrap().v4.len(), 2);
    assert_eq!(assign("t").unwrap().0, 200);
    assert_eq!(b.cloud.eni(&eni).unwrap().v4.len(), 2);
    let journal = b.cloud.journal();
    let last = &journal[journal.len() - 2..];
    assert_eq!((last[0].result.as_str(), &last[0].trouble), ("OK", &Some(Kind::LoseReply)));
    assert_eq!(last[1].trouble, None);
}

#[test]
fn every_trouble_does_what_it_says() {
    let b = Bench::new(Config::default());
    let eni = b.attached();
    let assign = |kind: Kind| {
        let params = [("NetworkInterfaceId", eni.as_str()), ("SecondaryPrivateIpAddressCount", "1")];
        let patience = if kind == Kind::Silence { SILENCE } else { PATIENCE };
        b.cloud.trouble("AssignPrivateIpAddresses", When::Next(1), kind);
        let answer = Caller { patience, ..Caller::default() }.call(b.api, "AssignPrivateIpAddresses", &params);
        let mut v4 = b.cloud.eni(&eni).unwrap().v4;
        let held = v4.len();
        for address in v4.drain(1..) {
            b.cloud.vanish_address(&eni, address);
        }
        (held, answer)
    };
    let addresses = |body: &Value| body["AssignedPrivateIpAddressesSet"]["PrivateIpSet"]["PrivateIpAddress"].clone();

    let (held, answer) = assign(Kind::internal_error());
    assert_eq!((held, answer.map(|(s, b)| (s, b["Code"].clone()))), (1, Some((500, json!("InternalError")))));
    let (held, answer) = assign(Kind::unavailable());
    assert_eq!((held, answer.map(|(s, b)| (s, b["Code"].clone()))), (1, Some((503, json!("ServiceUnavailable")))));
    let (held, answer) = assign(Kind::throttling());
    assert_eq!((held, answer.map(|(s, b)| (s, b["Code"].clone()))), (1, Some((400, json!("Throttling")))));
    // Without a ClientToken a request that arrives twice is done twice.
    let (held, answer) = assign(Kind::Repeat);
    assert_eq!((held, addresses(&answer.unwrap().1)), (3, json!(["10.0.8.3"])));
    assert_eq!(assign(Kind::Truncate(20)), (2, None));
    assert_eq!(assign(Kind::Garbage), (2, None));
    assert_eq!(assign(Kind::Silence), (1, None));
    let start = Instant::now();
    assert_eq!(assign(Kind::Late(Duration::from_millis(100))).0, 2);
    assert!(start.elapsed() >= Duration::from_millis(100));
    let (_, answer) = assign(Kind::Lie(Lie::Outside));
    assert_eq!(addresses(&answer.unwrap().1), json!(["203.0.113.77"]));
    let (_, answer) = assign(Kind::Lie(Lie::Duplicate));
    assert_eq!(addresses(&answer.unwrap().1), json!(["10.0.0.1"]));
    let (held, answer) = assign(Kind::Lie(Lie::Short));
    assert_eq!((held, addresses(&answer.unwrap().1)), (2, json!([])));
}

#[test]
fn odds_are_the_same_for_the_same_seed() {
    let run = |seed| -> Vec<bool> {
        let mut plan = trouble::Plan::new(seed);
        let odds = Trouble { action: None, when: When::Odds(0.3), kind: Kind::LoseReply };
        plan.add(odds);
        (0..200).map(|_| plan.next("AnAction").is_some()).collect()
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
    let hits = run(7).into_iter().filter(|hit| *hit).count();
    assert!((35..=85).contains(&hits), "{hits}");
}

#[test]
fn trouble_comes_after_so_many_calls_and_only_where_it_was_ordered() {
    let mut plan = trouble::Plan::new(1);
    plan.add(Trouble { action: Some("A".into()), when: When::After(2), kind: Kind::Garbage });
    let hits: Vec<bool> = (0..4).map(|_| plan.next("B").is_some() || plan.next("A").is_some()).collect();
    assert_eq!(hits, [false, false, true, false]);
    plan.add(Trouble { action: None, when: When::Always, kind: Kind::Garbage });
    assert!(plan.next("metadata").is_none() && plan.next("B").is_some());
    plan.clear();
    assert!(plan.next("B").is_none());
}

#[test]
fn in_an_outage_nothing_is_answered() {
    let b = Bench::new(Config::default());
    b.cloud.outage(true);
    let caller = Caller { patience: SILENCE, ..Caller::default() };
    assert_eq!(caller.call(b.api, "DescribeInstances", &[]), None);
    b.cloud.outage(false);
    b.ok("DescribeInstances", &[]);
    assert_eq!((b.cloud.calls("DescribeInstances"), b.cloud.calls_ending("DescribeInstances", "outage")), (2, 1));
}

// Metadata.

#[test]
fn an_instance_learns_about_itself() {
    let b = Bench::new(Config::default());
    let eni = b.cloud.eni(&b.attached()).unwrap();
    b.ok("AssignIpv6Addresses", &[("NetworkInterfaceId", &eni.id), ("Ipv6AddressCount", "2")]);
    b.ok("AssignPrivateIpAddresses", &[("NetworkInterfaceId", &eni.id), ("SecondaryPrivateIpAddressCount", "1")]);
    let primary = b.cloud.enis_of(NODE)[0].mac;
    let at = |path: &str| b.look(&format!("/latest/meta-data/{path}")).1;
    for (path, want) in [
        ("instance-id", "i-node"),
        ("instance/instance-type", "ecs.sim.small"),
        ("region-id", "cn-hangzhou"),
        ("zone-id", "cn-hangzhou-h"),
        ("vswitch-id", "vsw-node"),
        ("vpc-id", "vpc-sim"),
        ("vpc-cidr-block", "10.0.0.0/16"),
        ("mac", &primary.to_string()),
        ("network/interfaces/macs/", &format!("{primary}/\n{}/", eni.mac)),
    ] {
        assert_eq!(at(path), want, "{path}");
    }
    for (path, want) in [
        ("network-interface-id", eni.id.as_str()),
        ("primary-ip-address", "10.0.8.1"),
        ("private-ipv4s", r#"["10.0.8.1","10.0.8.2"]"#),
        ("ipv6s", "[fd00:0:0:8::10,fd00:0:0:8::11]"),
        ("gateway", "10.0.8.253"),
        ("ipv6-gateway", "fd00::8:ffff:ffff:ffff:fffd"),
        ("vswitch-id", "vsw-pod"),
        ("vswitch-cidr-block", "10.0.8.0/24"),
        ("vswitch-ipv6-cidr-block", "fd00:0:0:8::/64"),
    ] {
        assert_eq!(at(&format!("network/interfaces/macs/{}/{path}", eni.mac)), want, "{path}");
    }
    assert_eq!(b.look(&format!("/latest/meta-data/network/interfaces/macs/{primary}/ipv6s")).0, 404);
    assert_eq!(b.look("/latest/meta-data/network/interfaces/macs/00:16:3e:00:00:00/gateway").0, 404);
    assert_eq!(b.look("/latest/meta-data/shoe-size").0, 404);
    b.cloud.instance_calls_from("127.0.0.1".parse().unwrap(), "i-unknown");
    assert_eq!(b.look("/latest/meta-data/mac").0, 404);
}

#[test]
fn metadata_shows_things_later_than_the_api() {
    let b = Bench::new(Config { metadata_lag: Duration::from_secs(3600), ..Config::default() });
    let macs = || b.look("/latest/meta-data/network/interfaces/macs/").1.lines().count();
    assert_eq!(macs(), 1);
    let eni = b.attached();
    assert_eq!((status_of(&b, &eni).as_str(), macs()), ("InUse", 1));
    b.cloud.set_metadata_lag(Duration::ZERO);
    assert_eq!(macs(), 2);
    b.cloud.set_metadata_lag(Duration::from_millis(100));
    b.ok("DetachNetworkInterface", &[("NetworkInterfaceId", &eni), ("InstanceId", NODE)]);
    assert_eq!(status_of(&b, &eni), "Available");
    until("the ENI is gone there too", || macs() == 1);
}

#[test]
fn where_tokens_are_enforced_nothing_is_said_without_one() {
    let b = Bench::new(Config { metadata_tokens: TokenMode::Enforced, ..Config::default() });
    let mac = "/latest/meta-data/mac";
    let with = |token: &str| b.metadata("GET", mac, &format!("X-aliyun-ecs-metadata-token: {token}\r\n")).0;
    let ttl = |ttl: &str| {
        let header = format!("X-aliyun-ecs-metadata-token-ttl-seconds: {ttl}\r\nContent-Length: 0\r\n");
        b.metadata("PUT", "/latest/api/token", &header)
    };
    assert_eq!(b.look(mac).0, 403);
    assert_eq!(with("made up"), 401);
    assert_eq!(ttl("0").0, 400);
    assert_eq!(ttl("21601").0, 400);
    let (status, token) = ttl("2");
    assert_eq!((status, with(&token)), (200, 200));
    until("the token expires", || with(&token) == 401);
}

#[test]
fn the_metadata_service_has_troubles_of_its_own() {
    let b = Bench::new(Config::default());
    b.cloud.trouble("metadata", When::Next(1), Kind::Refuse { status: 500, code: "oops".into() });
    assert_eq!(b.look("/latest/meta-data/mac").0, 500);
    assert_eq!(b.look("/latest/meta-data/mac").0, 200);
    assert_eq!((b.cloud.calls("metadata"), b.cloud.calls_ending("metadata", "OK")), (2, 1));
}

// The world behind.

struct Tape(mpsc::Sender<String>);

impl Fabric for Tape {
    fn plug(&mut self, instance: &str, eni: &EniView) {
        self.0.send(format!("plug {instance} {:?} {:?}", eni.kind, eni.v4)).unwrap();
    }

    fn unplug(&mut self, instance: &str, eni: &EniView) {
        self.0.send(format!("unplug {instance} {:?}", eni.kind)).unwrap();
    }

    fn addresses(&mut self, instance: &str, eni: &EniView) {
        self.0.send(format!("addresses {instance} {:?}", eni.v4)).unwrap();
    }
}

#[test]
fn the_fabric_hears_of_everything_before_the_caller_does() {
    let (tape, heard) = mpsc::channel();
    let b = Bench::with(Config::default(), Box::new(Tape(tape)));
    let heard = || heard.try_iter().collect::<Vec<String>>();
    assert_eq!(heard(), ["plug i-node Primary [10.0.0.1]"]);
    let eni = b.create();
    let place = [("NetworkInterfaceId", eni.as_str()), ("InstanceId", NODE)];
    b.ok("AssignPrivateIpAddresses", &[place[0], ("SecondaryPrivateIpAddressCount", "1")]);
    assert_eq!(heard(), Vec::<String>::new());
    b.ok("AttachNetworkInterface", &place);
    assert_eq!(heard(), ["plug i-node Secondary [10.0.8.1, 10.0.8.2]"]);
    b.ok("UnassignPrivateIpAddresses", &[place[0], ("PrivateIpAddress.1", "10.0.8.2")]);
    assert_eq!(heard(), ["addresses i-node [10.0.8.1]"]);
    b.ok("DetachNetworkInterface", &place);
    assert_eq!(heard(), ["unplug i-node Secondary"]);
    b.ok("AttachNetworkInterface", &place);
    b.cloud.vanish_eni(&eni);
    b.cloud.remove_instance(NODE);
    assert_eq!(heard(), ["plug i-node Secondary [10.0.8.1]", "unplug i-node Secondary", "unplug i-node Primary"]);
}

#[test]
fn the_operator_needs_no_signature_and_leaves_no_trace() {
    let b = Bench::new(Config::default());
    let params = [("VSwitchId", "vsw-pod"), ("SecurityGroupIds.1", "sg-sim")];
    assert_eq!(b.cloud.operate("CreateNetworkInterface", &params).unwrap()["Status"], "Available");
    assert_eq!(b.cloud.operate("DescribeVSwitches", &[]).unwrap()["TotalCount"], 4);
    assert_eq!(b.cloud.operate("CreateNetworkInterface", &[]).unwrap_err().code, "MissingParameter");
    assert!(b.cloud.journal().is_empty());
}

#[test]
fn the_cloud_stops_at_once_even_in_the_middle_of_something() {
    let hour = Duration::from_secs(3600);
    let delays = Delays { create: hour, attach: hour, detach: hour, delete: hour, change: hour };
    let b = Bench::new(Config::default());
    let eni = b.attached();
    b.cloud.set_delays(delays);
    let api = b.api;
    let busy = eni.clone();
    let stuck = thread::spawn(move || {
        let params = [("NetworkInterfaceId", eni.as_str()), ("SecondaryPrivateIpAddressCount", "1")];
        Caller::default().call(api, "AssignPrivateIpAddresses", &params)
    });
    until("the call is being worked on", || b.cloud.is_busy(&busy));
    let start = Instant::now();
    drop(b);
    assert!(start.elapsed() < Duration::from_secs(5));
    stuck.join().unwrap();
}
