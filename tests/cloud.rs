//! The cloud client against servers that lie, truncate and hang.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::{digest, hmac};
use serde_json::{Value, json};
use terway::cloud::{Client, CreateEni, Credentials, Endpoint, Filter, Key, Metadata, Signature, Sources};
use terway::eni::{Eni, EniKind, EniState, Fault, FaultKind, Limits};
use terway::error::Cause;
use terway::ip::Mac;

const BOTH: [Signature; 2] = [Signature::Acs3, Signature::HmacSha1];

/// A request as it came over the wire.
#[derive(Debug, Clone)]
struct Request {
    method: String,
    target: String,
    headers: BTreeMap<String, String>,
}

impl Request {
    fn query(&self) -> BTreeMap<String, String> {
        let query = self.target.split_once('?').map_or("", |(_, query)| query);
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.map(|(name, value)| (decoded(name), decoded(value))).collect()
    }

    fn action(&self) -> String {
        let header = self.headers.get("x-acs-action").cloned();
        header.unwrap_or_else(|| self.query().remove("Action").unwrap_or_default())
    }
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next().unwrap(), rest.next().unwrap()];
            bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap());
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).unwrap()
}

fn encoded(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~".contains(&b);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// What the server does with a request.
enum Answer {
    Bytes(Vec<u8>),
    /// Says nothing until the client gives up.
    Silence,
    /// Ends the connection the hard way.
    Reset,
}

type Script = Arc<dyn Fn(usize, &Request) -> Answer + Send + Sync>;

/// A scripted HTTP server on loopback: one request a connection. It ends with the test.
struct Server {
    address: SocketAddr,
    listener: Arc<TcpListener>,
    seen: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// The script is told how many requests came before this one.
    fn start(script: impl Fn(usize, &Request) -> Answer + Send + Sync + 'static) -> Server {
        let listener = Arc::new(TcpListener::bind("127.0.0.1:0").unwrap());
        let address = listener.local_addr().unwrap();
        let (seen, stop) = (Arc::<Mutex<Vec<Request>>>::default(), Arc::new(AtomicBool::new(false)));
        let script: Script = Arc::new(script);
        let (door, all, stopped) = (listener.clone(), seen.clone(), stop.clone());
        let thread = thread::spawn(move || {
            for stream in door.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let (script, all) = (script.clone(), all.clone());
                thread::spawn(move || serve(stream.unwrap(), &script, &all));
            }
        });
        Server { address, listener, seen, stop, thread: Some(thread) }
    }

    fn always(answer: impl Fn() -> Answer + Send + Sync + 'static) -> Server {
        Server::start(move |_, _| answer())
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Dropped, it would still take connections for as long as a child that a test beside us has forked has its copy.
        let _ = rustix::net::shutdown(&*self.listener, rustix::net::Shutdown::Both);
        let _ = self.thread.take().unwrap().join();
    }
}

fn serve(stream: TcpStream, script: &Script, seen: &Mutex<Vec<Request>>) {
    let mut reader = BufReader::new(&stream);
    let Some(request) = read_request(&mut reader) else { return };
    let before = {
        let mut seen = seen.lock().unwrap();
        seen.push(request.clone());
        seen.len() - 1
    };
    match script(before, &request) {
        // A client that has had enough closes early; that is its right.
        Answer::Bytes(bytes) => {
            let _ = (&stream).write_all(&bytes);
        }
        Answer::Silence => {
            let _ = reader.read(&mut [0; 1]);
        }
        Answer::Reset => rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap(),
    }
}

fn read_request(reader: &mut impl BufRead) -> Option<Request> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_string()),
        }
    }
    let mut first = lines.first()?.split(' ').map(str::to_string);
    let (method, target) = (first.next()?, first.next()?);
    let headers = lines[1..].iter().filter_map(|line| line.split_once(':'));
    let headers = headers.map(|(name, value)| (name.to_lowercase(), value.trim().to_string())).collect();
    Some(Request { method, target, headers })
}

fn http(status: u16, body: &[u8]) -> Answer {
    let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    Answer::Bytes([head.as_bytes(), body].concat())
}

fn ok(body: Value) -> Answer {
    http(200, body.to_string().as_bytes())
}

fn refusal(status: u16, code: &str, message: &str) -> Answer {
    let body = json!({"RequestId": "R-1", "HostId": "ecs", "Code": code, "Message": message, "Recommend": "none"});
    http(status, body.to_string().as_bytes())
}

/// No key but this pair.
fn pair(key: Key) -> Credentials {
    Credentials::new(Sources { addon_secret: PathBuf::from("/nowhere"), pair: Some(key), token_file: None, role: None })
}

fn endpoint(server: &Server, signature: Signature) -> Endpoint {
    Endpoint {
        ecs: Some(server.url()),
        vpc: Some(server.url()),
        signature,
        timeout: Duration::from_secs(3),
        ..Endpoint::new("cn-hangzhou")
    }
}

fn client(server: &Server, signature: Signature) -> Client {
    let key = Key::new("testid", "testsecret", None).unwrap();
    Client::new(endpoint(server, signature), pair(key)).unwrap()
}

fn impatient(server: &Server) -> Client {
    let endpoint = Endpoint { timeout: Duration::from_millis(300), ..endpoint(server, Signature::Acs3) };
    Client::new(endpoint, pair(Key::new("testid", "testsecret", None).unwrap())).unwrap()
}

/// Checks the request's signature from the request alone; returns the parameters of the call without the common ones.
fn verified(request: &Request, secret: &str) -> BTreeMap<String, String> {
    let mut query = request.query();
    assert_eq!(request.method, "POST");
    assert_eq!(request.headers["content-length"], "0");
    match request.headers.get("authorization") {
        Some(authorization) => verify_acs3(request, &query, authorization, secret),
        None => {
            let signature = query.remove("Signature").expect("neither header nor parameter is a signature");
            verify_hmac_sha1(&query, &signature, secret);
            assert_eq!(query.remove("SignatureMethod").unwrap(), "HMAC-SHA1");
            assert_eq!(query.remove("SignatureVersion").unwrap(), "1.0");
            assert_eq!(query.remove("Format").unwrap(), "JSON");
            for common in ["Action", "Version", "AccessKeyId", "SignatureNonce", "Timestamp"] {
                assert!(query.remove(common).is_some_and(|v| !v.is_empty()), "{common}");
            }
        }
    }
    query
}

fn canonical(query: &BTreeMap<String, String>) -> String {
    query.iter().map(|(k, v)| format!("{}={}", encoded(k), encoded(v))).collect::<Vec<_>>().join("&")
}

fn verify_acs3(request: &Request, query: &BTreeMap<String, String>, authorization: &str, secret: &str) {
    let fields = authorization.strip_prefix("ACS3-HMAC-SHA256 ").unwrap();
    let fields: BTreeMap<&str, &str> = fields.split(',').map(|field| field.split_once('=').unwrap()).collect();
    let signed = fields["SignedHeaders"];
    for needed in
        ["host", "x-acs-action", "x-acs-content-sha256", "x-acs-date", "x-acs-signature-nonce", "x-acs-version"]
    {
        assert!(signed.split(';').any(|name| name == needed), "{needed} is not signed: {signed}");
    }
    let headers: String = signed.split(';').map(|name| format!("{name}:{}\n", request.headers[name])).collect();
    let body = hex(digest::digest(&digest::SHA256, b"").as_ref());
    assert_eq!(request.headers["x-acs-content-sha256"], body);
    let text = format!("POST\n/\n{}\n{headers}\n{signed}\n{body}", canonical(query));
    let text = format!("ACS3-HMAC-SHA256\n{}", hex(digest::digest(&digest::SHA256, text.as_bytes()).as_ref()));
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    assert_eq!(fields["Signature"], hex(hmac::sign(&key, text.as_bytes()).as_ref()));
}

fn verify_hmac_sha1(query: &BTreeMap<String, String>, signature: &str, secret: &str) {
    let text = format!("POST&%2F&{}", encoded(&canonical(query)));
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, format!("{secret}&").as_bytes());
    assert_eq!(signature, STANDARD.encode(hmac::sign(&key, text.as_bytes())));
}

fn eni_json(id: &str, last: u8) -> Value {
    json!({
        "NetworkInterfaceId": id,
        "MacAddress": format!("00:16:3e:00:00:{last:02x}"),
        "Type": "Secondary",
        "Status": "Available",
        "VSwitchId": "vsw-1",
        "ZoneId": "cn-hangzhou-h",
        "PrivateIpAddress": format!("10.0.0.{last}"),
        "PrivateIpSets": {"PrivateIpSet": [{"PrivateIpAddress": format!("10.0.0.{last}"), "Primary": true}]},
        "Tags": {"Tag": [{"TagKey": "creator", "TagValue": "terway"}]},
    })
}

fn enis_json(enis: &[Value], next: &str) -> Value {
    json!({"RequestId": "R-1", "NetworkInterfaceSets": {"NetworkInterfaceSet": enis}, "NextToken": next})
}

fn creation() -> CreateEni {
    CreateEni {
        vswitch: "vsw-1".into(),
        security_groups: vec!["sg-1".into(), "sg-2".into()],
        resource_group: Some("rg-1".into()),
        tags: BTreeMap::from([("creator".into(), "terway".into()), ("name".into(), "节点 a+b".into())]),
        addresses: 3,
        v6: 4,
        description: "made for a test".into(),
        token: "tok ~*+/=&%".into(),
    }
}

fn text(outcome: Result<impl fmt::Debug, Fault>) -> Result<String, Fault> {
    outcome.map(|value| format!("{value:?}"))
}

type Call = fn(&Client) -> Result<String, Fault>;

/// Every call there is, and its action.
const CALLS: [(&str, Call); 16] = [
    ("CreateNetworkInterface", |c| text(c.create_eni(&creation()))),
    ("DescribeNetworkInterfaces", |c| text(c.describe_enis(&Filter::default()))),
    ("AttachNetworkInterface", |c| text(c.attach_eni("eni-1", "i-1"))),
    ("DetachNetworkInterface", |c| text(c.detach_eni("eni-1", "i-1"))),
    ("DeleteNetworkInterface", |c| text(c.delete_eni("eni-1"))),
    ("AssignPrivateIpAddresses", |c| text(c.assign_v4("eni-1", 2, "tok-1"))),
    ("UnassignPrivateIpAddresses", |c| text(c.unassign_v4("eni-1", &["10.0.0.8".parse().unwrap()]))),
    ("DescribeInstanceTypes", |c| text(c.instance_limits("ecs.g7.large"))),
    ("DescribeInstanceAttribute", |c| text(c.security_groups("i-1"))),
    ("DescribeVSwitches", |c| text(c.vswitch("vsw-1"))),
    ("ModifyNetworkInterfaceAttribute", |c| text(c.set_security_groups("eni-1", &["sg-1".into(), "sg-2".into()]))),
    ("TagResources", |c| text(c.tag_eni("eni-1", &creation().tags))),
    ("UntagResources", |c| text(c.untag_eni("eni-1", &["name".into(), "team".into()]))),
    ("AssignIpv6Addresses", |c| text(c.assign_v6("eni-1", 2, "tok-1"))),
    ("UnassignPrivateIpAddresses", |c| text(c.unassign_prefixes("eni-1", &["10.0.0.16/28".parse().unwrap()]))),
    ("UnassignIpv6Addresses", |c| text(c.unassign_v6("eni-1", &["fd00::8".parse().unwrap()]))),
];

/// A reply to the action that is as it should be.
fn good_reply(action: &str) -> Value {
    match action {
        "CreateNetworkInterface" => eni_json("eni-1", 2),
        "DescribeNetworkInterfaces" => enis_json(&[eni_json("eni-1", 2), eni_json("eni-2", 3)], ""),
        "AssignPrivateIpAddresses" => json!({"RequestId": "R-1", "AssignedPrivateIpAddressesSet": {
            "NetworkInterfaceId": "eni-1", "PrivateIpSet": {"PrivateIpAddress": ["10.0.0.8", "10.0.0.9"]}}}),
        "AssignIpv6Addresses" => json!({"RequestId": "R-1", "NetworkInterfaceId": "eni-1",
            "Ipv6Sets": {"Ipv6Address": ["fd00::8", "fd00::9"]}}),
        "DescribeInstanceTypes" => json!({"InstanceTypes": {"InstanceType": [{"InstanceTypeId": "ecs.g7.large",
            "EniQuantity": 3, "EniPrivateIpAddressQuantity": 6, "EniIpv6AddressQuantity": 6}]}}),
        "DescribeInstanceAttribute" => json!({"SecurityGroupIds": {"SecurityGroupId": ["sg-1"]}}),
        "DescribeVSwitches" => json!({"VSwitches": {"VSwitch": [{"VSwitchId": "vsw-1", "ZoneId": "z",
            "CidrBlock": "10.0.0.0/24", "Ipv6CidrBlock": "", "AvailableIpAddressCount": 250}]}}),
        _ => json!({"RequestId": "R-1"}),
    }
}

fn honest() -> Server {
    Server::start(|_, request| ok(good_reply(&request.action())))
}

/// What the one request of this call says, its signature checked, without the region that all have.
fn said(signature: Signature, call: impl Fn(&Client)) -> (String, String) {
    let server = honest();
    call(&client(&server, signature));
    let seen = server.seen();
    assert_eq!(seen.len(), 1);
    let mut params = verified(&seen[0], "testsecret");
    assert_eq!(params.remove("RegionId").unwrap(), "cn-hangzhou");
    let params: Vec<String> = params.iter().map(|(k, v)| format!("{k}={v}")).collect();
    (seen[0].action(), params.join(" | "))
}

#[test]
fn every_call_says_what_the_cloud_expects_and_signs_it() {
    for signature in BOTH {
        let expect = |index: usize, params: &str| {
            let (action, call) = CALLS[index];
            let got = said(signature, |client| {
                call(client).unwrap();
            });
            assert_eq!(got, (action.to_string(), params.to_string()), "{signature:?}");
        };
        expect(
            0,
            "ClientToken=tok ~*+/=&% | Description=made for a test | InstanceType=Secondary | Ipv6AddressCount=4 | \
             ResourceGroupId=rg-1 | SecondaryPrivateIpAddressCount=2 | SecurityGroupIds.1=sg-1 | SecurityGroupIds.2=sg-2 | \
             Tag.1.Key=creator | Tag.1.Value=terway | Tag.2.Key=name | Tag.2.Value=节点 a+b | VSwitchId=vsw-1",
        );
        expect(1, "MaxResults=500");
        expect(2, "InstanceId=i-1 | NetworkInterfaceId=eni-1");
        expect(3, "InstanceId=i-1 | NetworkInterfaceId=eni-1");
        expect(4, "NetworkInterfaceId=eni-1");
        expect(5, "ClientToken=tok-1 | NetworkInterfaceId=eni-1 | SecondaryPrivateIpAddressCount=2");
        expect(6, "NetworkInterfaceId=eni-1 | PrivateIpAddress.1=10.0.0.8");
        expect(7, "InstanceTypes.1=ecs.g7.large");
        expect(8, "InstanceId=i-1");
        expect(9, "VSwitchId=vsw-1");
        expect(10, "NetworkInterfaceId=eni-1 | SecurityGroupId.1=sg-1 | SecurityGroupId.2=sg-2");
        expect(
            11,
            "ResourceId.1=eni-1 | ResourceType=eni | Tag.1.Key=creator | Tag.1.Value=terway | Tag.2.Key=name | \
             Tag.2.Value=节点 a+b",
        );
        expect(12, "ResourceId.1=eni-1 | ResourceType=eni | TagKey.1=name | TagKey.2=team");
        expect(13, "ClientToken=tok-1 | Ipv6AddressCount=2 | NetworkInterfaceId=eni-1");
        expect(14, "Ipv4Prefix.1=10.0.0.16/28 | NetworkInterfaceId=eni-1");
        expect(15, "Ipv6Address.1=fd00::8 | NetworkInterfaceId=eni-1");
    }
}

#[test]
fn one_address_is_the_primary_one_and_is_not_asked_for() {
    let create = CreateEni { vswitch: "vsw-1".into(), addresses: 1, token: "t".into(), ..CreateEni::default() };
    let (_, params) = said(Signature::Acs3, |client| {
        client.create_eni(&create).unwrap();
    });
    assert_eq!(params, "ClientToken=t | Description= | InstanceType=Secondary | VSwitchId=vsw-1");
}

#[test]
fn a_filter_becomes_parameters() {
    let filter = Filter {
        ids: vec!["eni-1".into(), "eni-2".into()],
        instance: Some("i-1".into()),
        tags: BTreeMap::from([("creator".into(), "terway".into())]),
        kind: Some(EniKind::Secondary),
        state: Some(EniState::InUse),
    };
    let (_, params) = said(Signature::Acs3, |client| {
        client.describe_enis(&filter).unwrap();
    });
    assert_eq!(
        params,
        "InstanceId=i-1 | MaxResults=500 | NetworkInterfaceId.1=eni-1 | NetworkInterfaceId.2=eni-2 | Status=InUse | \
         Tag.1.Key=creator | Tag.1.Value=terway | Type=Secondary"
    );
}

#[test]
fn ecs_and_vpc_are_asked_in_their_own_versions_on_their_own_hosts() {
    for signature in BOTH {
        let (ecs, vpc) = (honest(), honest());
        let endpoint = Endpoint { vpc: Some(vpc.address.to_string()), http: true, ..endpoint(&ecs, signature) };
        let client = Client::new(endpoint, pair(Key::new("testid", "testsecret", None).unwrap())).unwrap();
        client.delete_eni("eni-1").unwrap();
        client.vswitch("vsw-1").unwrap();
        for (server, want) in [(&ecs, "2014-05-26"), (&vpc, "2016-04-28")] {
            let request = &server.seen()[0];
            let version = request.headers.get("x-acs-version").cloned();
            assert_eq!(version.or_else(|| request.query().remove("Version")).unwrap(), want);
            assert_eq!(request.headers["host"], server.address.to_string());
        }
    }
}

#[test]
fn an_sts_token_goes_along_and_is_signed() {
    for signature in BOTH {
        let server = honest();
        let key = Key::new("STS.id", "sts-secret", Some("sts token+/==")).unwrap();
        Client::new(endpoint(&server, signature), pair(key)).unwrap().delete_eni("eni-1").unwrap();
        let request = &server.seen()[0];
        let mut params = verified(request, "sts-secret");
        let token = request.headers.get("x-acs-security-token").cloned();
        assert_eq!(token.or_else(|| params.remove("SecurityToken")).unwrap(), "sts token+/==");
        if signature == Signature::Acs3 {
            assert!(request.headers["authorization"].contains("x-acs-security-token"));
            assert_eq!(request.target, "/?NetworkInterfaceId=eni-1&RegionId=cn-hangzhou");
        }
    }
}

#[test]
fn good_replies_are_understood() {
    let server = honest();
    let client = client(&server, Signature::Acs3);
    let eni = client.create_eni(&creation()).unwrap();
    assert_eq!((eni.id.as_str(), eni.mac, eni.state), ("eni-1", Mac([0, 0x16, 0x3e, 0, 0, 2]), EniState::Available));
    assert_eq!(eni.tags["creator"], "terway");
    let ids: Vec<Eni> = client.describe_enis(&Filter::default()).unwrap();
    assert_eq!(ids.iter().map(|eni| eni.id.as_str()).collect::<Vec<_>>(), ["eni-1", "eni-2"]);
    let given = client.assign_v4("eni-1", 2, "t").unwrap();
    assert_eq!(given, [Ipv4Addr::new(10, 0, 0, 8), Ipv4Addr::new(10, 0, 0, 9)]);
    let given = client.assign_v6("eni-1", 2, "t").unwrap();
    assert_eq!(given, ["fd00::8", "fd00::9"].map(|ip| ip.parse::<Ipv6Addr>().unwrap()));
    let limits = client.instance_limits("ecs.g7.large").unwrap();
    assert_eq!(limits, Limits { adapters: 3, v4_per_adapter: 6, v6_per_adapter: 6 });
    assert_eq!(client.security_groups("i-1").unwrap(), ["sg-1"]);
    assert_eq!(client.vswitch("vsw-1").unwrap().free, 250);
    let counted: Vec<(&str, u64)> = client.calls().into_iter().collect();
    assert_eq!(
        counted,
        [
            ("AssignIpv6Addresses", 1),
            ("AssignPrivateIpAddresses", 1),
            ("CreateNetworkInterface", 1),
            ("DescribeInstanceAttribute", 1),
            ("DescribeInstanceTypes", 1),
            ("DescribeNetworkInterfaces", 1),
            ("DescribeVSwitches", 1),
        ]
    );
}

#[test]
fn prefixes_are_asked_for_by_their_number_and_believed_if_they_are_such() {
    let reply = |prefix: &str| {
        json!({"AssignedPrivateIpAddressesSet": {
        "NetworkInterfaceId": "eni-1", "Ipv4PrefixSet": {"Ipv4Prefixes": [prefix]}}})
    };
    let server = Server::start(move |n, _| ok(reply(["10.0.0.16/28", "10.0.0.16/27", "10.0.0.17/28"][n])));
    let client = client(&server, Signature::Acs3);
    assert_eq!(client.assign_prefixes("eni-1", 1, "t").unwrap(), ["10.0.0.16/28".parse().unwrap()]);
    let asked = verified(&server.seen()[0], "testsecret");
    assert_eq!((asked["Ipv4PrefixCount"].as_str(), asked.contains_key("SecondaryPrivateIpAddressCount")), ("1", false));
    for _ in 0..2 {
        let fault = client.assign_prefixes("eni-1", 1, "t").unwrap_err();
        assert!(fault.message.contains("Ipv4Prefixes[0] is not a prefix of 28 bits"), "{fault}");
    }
}

#[test]
fn a_client_made_anew_asks_elsewhere_and_goes_on_counting() {
    let (first, second) = (honest(), honest());
    let old = client(&first, Signature::Acs3);
    old.security_groups("i-1").unwrap();
    let key = Key::new("other", "othersecret", None).unwrap();
    let new = old.anew(endpoint(&second, Signature::HmacSha1), pair(key)).unwrap();
    new.security_groups("i-1").unwrap();
    assert_eq!((first.seen().len(), second.seen().len()), (1, 1));
    verified(&second.seen()[0], "othersecret");
    assert_eq!((old.calls()["DescribeInstanceAttribute"], new.calls()["DescribeInstanceAttribute"]), (2, 2));
}

#[test]
fn what_the_cloud_does_not_know_is_said_by_name() {
    let server = Server::start(|_, request| match request.action().as_str() {
        "DescribeVSwitches" => ok(json!({"VSwitches": {"VSwitch": []}})),
        _ => ok(json!({"InstanceTypes": {"InstanceType": []}})),
    });
    let client = client(&server, Signature::Acs3);
    let fault = client.vswitch("vsw-9").unwrap_err();
    assert_eq!((fault.kind, fault.message.as_str()), (FaultKind::Gone, "there is no vSwitch vsw-9"));
    let fault = client.instance_limits("ecs.x").unwrap_err();
    assert_eq!((fault.kind, fault.message.as_str()), (FaultKind::Invalid, "the cloud knows no instance type ecs.x"));
}

#[test]
fn a_list_is_read_to_its_last_page() {
    let server = Server::start(|_, request| match request.query().get("NextToken").map(String::as_str) {
        None => ok(enis_json(&[eni_json("eni-1", 2)], "page+2=")),
        Some("page+2=") => ok(enis_json(&[eni_json("eni-2", 3)], "page+3=")),
        Some("page+3=") => ok(enis_json(&[eni_json("eni-3", 4)], "")),
        Some(_) => http(400, b""),
    });
    let filter = Filter { instance: Some("i-1".into()), ..Filter::default() };
    let enis = client(&server, Signature::Acs3).describe_enis(&filter).unwrap();
    assert_eq!(enis.iter().map(|eni| eni.id.as_str()).collect::<Vec<_>>(), ["eni-1", "eni-2", "eni-3"]);
    for request in server.seen() {
        assert_eq!(verified(&request, "testsecret")["InstanceId"], "i-1");
    }
}

#[test]
fn a_list_without_an_end_is_given_up() {
    let server = Server::start(|n, _| ok(enis_json(&[eni_json(&format!("eni-{n}"), 2)], "again")));
    let fault = client(&server, Signature::Acs3).describe_enis(&Filter::default()).unwrap_err();
    assert_eq!((fault.kind, fault.message.as_str()), (FaultKind::Unknown, "the list does not end within 40 pages"));
    assert_eq!(server.seen().len(), 40);
}

#[test]
fn a_list_that_names_an_eni_twice_is_not_believed() {
    let server = Server::always(|| ok(enis_json(&[eni_json("eni-1", 2), eni_json("eni-1", 3)], "")));
    let fault = client(&server, Signature::Acs3).describe_enis(&Filter::default()).unwrap_err();
    assert_eq!((fault.kind, fault.message.as_str()), (FaultKind::Unknown, "eni-1 is listed twice"));
}

#[test]
fn a_page_that_fails_fails_the_list() {
    let server = Server::start(|n, _| match n {
        0 => ok(enis_json(&[eni_json("eni-1", 2)], "2")),
        _ => refusal(503, "Throttling", "slow down"),
    });
    let fault = client(&server, Signature::Acs3).describe_enis(&Filter::default()).unwrap_err();
    assert_eq!(fault.kind, FaultKind::Throttled);
}

#[test]
fn an_answer_that_is_none_may_have_been_a_success() {
    let good = good_reply("CreateNetworkInterface").to_string();
    let whole = |head: &str, body: &str| [head.as_bytes(), b"\r\n\r\n", body.as_bytes()].concat();
    let half = &good[..good.len() / 2];
    let length = format!("HTTP/1.1 200 OK\r\nContent-Length: {}", good.len());
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked";
    let answers: Vec<(&str, Vec<u8>, &str)> = vec![
        ("nothing", vec![], "Peer disconnected"),
        ("half a header", b"HTTP/1.1 200 O".to_vec(), ""),
        ("half a body", whole(&length, half), "Peer disconnected"),
        ("half a body of no length", whole("HTTP/1.1 200 OK\r\nConnection: close", half), "not JSON"),
        ("half a chunk", whole(chunked, &format!("{:x}\r\n{half}", good.len())), ""),
        ("a broken chunk", whole(chunked, "zz\r\n{}\r\n0\r\n\r\n"), ""),
        ("not HTTP", b"SSH-2.0-OpenSSH_8.0\r\n".to_vec(), "not HTTP"),
        ("not JSON", whole("HTTP/1.1 200 OK\r\nContent-Length: 5", "hello"), "not JSON"),
        ("a list", whole("HTTP/1.1 200 OK\r\nContent-Length: 2", "[]"), "not a JSON object"),
        ("an empty object", whole("HTTP/1.1 200 OK\r\nContent-Length: 2", "{}"), "PrivateIpAddress is missing"),
        ("an empty body", whole("HTTP/1.1 200 OK\r\nContent-Length: 0", ""), "not JSON"),
        ("no content", whole("HTTP/1.1 204 No Content", ""), "http status 204"),
        ("HTML", whole("HTTP/1.1 500 X\r\nContent-Length: 13", "<html></html>"), "http status 500"),
        ("a proxy's page", whole("HTTP/1.1 403 X\r\nContent-Length: 13", "<html></html>"), "http status 403"),
        ("too deep", whole("HTTP/1.1 200 OK\r\nConnection: close", &"[".repeat(100_000)), "not JSON"),
        ("a long header", whole(&format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(1 << 20)), ""), "header"),
    ];
    for (name, bytes, want) in answers {
        let server = Server::always(move || Answer::Bytes(bytes.clone()));
        let fault = client(&server, Signature::Acs3).create_eni(&creation()).unwrap_err();
        assert_eq!((fault.kind, fault.action.as_str()), (FaultKind::Unknown, "CreateNetworkInterface"), "{name}");
        assert!(fault.message.contains(want), "{name}: {fault}");
        assert_eq!(server.seen().len(), 1, "{name}: one attempt");
    }
}

#[test]
fn a_field_of_the_wrong_kind_is_named() {
    for (pointer, value, want) in [
        ("/MacAddress", json!("zz:16:3e:00:00:02"), "MacAddress is not a MAC address: \"zz:16:3e:00:00:02\""),
        ("/PrivateIpSets", json!("x"), "PrivateIpSets.PrivateIpSet is missing"),
        ("/Status", json!({}), "Status is not a text"),
        ("/Tags/Tag", json!(1), "Tags.Tag is not a list"),
    ] {
        let mut reply = good_reply("CreateNetworkInterface");
        *reply.pointer_mut(pointer).unwrap() = value;
        reply["RequestId"] = json!("R-7");
        let server = Server::always(move || ok(reply.clone()));
        let fault = client(&server, Signature::Acs3).create_eni(&creation()).unwrap_err();
        assert_eq!(fault.to_string(), format!("CreateNetworkInterface: {want} (request R-7)"));
        assert_eq!(fault.kind, FaultKind::Unknown);
    }
}

#[test]
fn ten_megabytes_are_too_many() {
    let mut body = good_reply("CreateNetworkInterface");
    body["Description"] = json!("x".repeat(10 << 20));
    let server = Server::always(move || ok(body.clone()));
    let fault = client(&server, Signature::Acs3).create_eni(&creation()).unwrap_err();
    assert_eq!(fault.kind, FaultKind::Unknown);
    assert!(fault.message.ends_with("the answer is longer than 8388608 bytes"), "{fault}");
}

#[test]
fn silence_ends_with_the_timeout() {
    let server = Server::always(|| Answer::Silence);
    let started = Instant::now();
    let fault = impatient(&server).delete_eni("eni-1").unwrap_err();
    assert_eq!(fault.kind, FaultKind::Unknown);
    assert!(fault.message.ends_with("timed out"), "{fault}");
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
}

#[test]
fn a_reset_and_a_closed_port_are_no_answer() {
    let server = Server::always(|| Answer::Reset);
    let reset = client(&server, Signature::Acs3);
    assert_eq!(reset.delete_eni("eni-1").unwrap_err().kind, FaultKind::Unknown);
    assert_eq!(server.seen().len(), 1);
    drop(server);
    let fault = reset.delete_eni("eni-1").unwrap_err();
    assert_eq!(fault.kind, FaultKind::Unknown);
    assert!(fault.message.ends_with("connection refused"), "{fault}");
}

#[test]
fn a_redirect_is_not_followed() {
    let other = honest();
    let to = other.url();
    let server = Server::always(move || {
        Answer::Bytes(format!("HTTP/1.1 307 X\r\nLocation: {to}/\r\nContent-Length: 0\r\n\r\n").into_bytes())
    });
    let fault = client(&server, Signature::Acs3).delete_eni("eni-1").unwrap_err();
    assert_eq!((fault.kind, fault.message.contains("http status 307")), (FaultKind::Unknown, true), "{fault}");
    assert!(other.seen().is_empty());
}

#[test]
fn every_kind_of_fault_comes_through_with_the_clouds_words() {
    for (status, code, kind) in [
        (500, "InternalError", FaultKind::Unknown),
        (503, "ServiceUnavailable", FaultKind::Unknown),
        (400, "Throttling.User", FaultKind::Throttled),
        (403, "Operation.Conflict", FaultKind::Busy),
        (400, "InvalidVSwitchId.IpNotEnough", FaultKind::VSwitchEmpty),
        (400, "InvalidOperation.Ipv4CountExceeded", FaultKind::EniFull),
        (403, "EniPerInstanceLimitExceeded", FaultKind::Quota),
        (404, "InvalidEniId.NotFound", FaultKind::Gone),
        (400, "IdempotentFailed", FaultKind::Token),
        (403, "Forbidden.RAM", FaultKind::Forbidden),
        (400, "MissingParameter", FaultKind::Invalid),
    ] {
        let server = Server::always(move || refusal(status, code, "in the cloud's own words"));
        for (action, call) in CALLS {
            let mut fault = call(&client(&server, Signature::Acs3)).unwrap_err();
            if kind == FaultKind::Forbidden {
                // What a person must allow is said behind the cloud's words.
                let (words, right) =
                    fault.message.split_once("; the RAM policy must allow ").expect("the right is named");
                assert!(right.contains(&format!(":{action} on acs:")), "{right}");
                fault.message = words.to_owned();
            }
            let want = Fault {
                kind,
                action: action.into(),
                code: code.into(),
                message: "in the cloud's own words".into(),
                request_id: "R-1".into(),
            };
            assert_eq!(fault, want);
        }
    }
}

#[test]
fn what_is_gone_already_is_reported_as_gone() {
    for (code, call) in [
        ("InvalidEniId.NotFound", (|c| text(c.delete_eni("eni-1"))) as Call),
        ("InvalidEniId.NotFound", |c| text(c.detach_eni("eni-1", "i-1"))),
        ("InvalidEcsId.NotFound", |c| text(c.detach_eni("eni-1", "i-1"))),
        ("InvalidIp.IpUnassigned", |c| text(c.unassign_v4("eni-1", &["10.0.0.8".parse().unwrap()]))),
    ] {
        let server = Server::always(move || refusal(404, code, "no such thing"));
        assert_eq!(call(&client(&server, Signature::Acs3)).unwrap_err().kind, FaultKind::Gone, "{code}");
    }
}

#[test]
fn no_part_of_a_key_comes_back_in_a_fault() {
    let key = || Key::new("hush-id", "hush+secret", Some("hush/token==")).unwrap();
    for signature in BOTH {
        // A cloud that rejects a signature quotes all it was computed from; a hostile one quotes it anywhere.
        let server = Server::start(|_, request| {
            let all = format!("{} {:?} {}", request.target, request.headers, encoded(&request.target));
            let body = json!({"Code": all, "Message": format!("server string to sign is: {all} hush+secret"), "RequestId": all});
            http(400, body.to_string().as_bytes())
        });
        let hung = Server::always(|| Answer::Silence);
        let lying = Server::start(|_, request| ok(json!({"PrivateIpAddress": request.target})));
        for server in [&server, &hung, &lying] {
            let endpoint = Endpoint { timeout: Duration::from_secs(2), ..endpoint(server, signature) };
            let credentials = pair(key());
            let shown = format!("{credentials:?}");
            let client = Client::new(endpoint, credentials).unwrap();
            let fault = client.create_eni(&creation()).unwrap_err();
            let heard = server.seen()[0].clone();
            assert!(format!("{heard:?}").contains("hush-id"), "the server was told who we are");
            for text in [format!("{fault:?}"), fault.to_string(), format!("{client:?}"), shown] {
                assert!(!text.contains("hush"), "{text}");
            }
        }
    }
}

/// Keeps what is logged on the threads of one test.
#[derive(Default)]
struct Lines(Mutex<Vec<String>>);

thread_local!(static LISTENING: std::cell::Cell<bool> = const { std::cell::Cell::new(false) });

impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata) -> bool {
        LISTENING.get()
    }

    fn log(&self, record: &log::Record) {
        if LISTENING.get() {
            self.0.lock().unwrap().push(record.args().to_string());
        }
    }

    fn flush(&self) {}
}

#[test]
fn no_log_line_shows_a_key_however_much_is_logged() {
    let lines: &'static Lines = Box::leak(Box::default());
    log::set_logger(lines).unwrap();
    log::set_max_level(log::LevelFilter::Trace);
    LISTENING.set(true);
    let server = honest();
    for signature in BOTH {
        let key = Key::new("hush-id", "hush-secret", Some("hush-token")).unwrap();
        Client::new(endpoint(&server, signature), pair(key)).unwrap().delete_eni("eni-1").unwrap();
    }
    let service = Server::start(|_, request| match request.method.as_str() {
        "PUT" => http(200, b"hush-session"),
        _ => told(request),
    });
    metadata(&service).instance_id().unwrap();
    LISTENING.set(false);
    log::set_max_level(log::LevelFilter::Off);
    let lines = lines.0.lock().unwrap();
    assert!(lines.iter().any(|line| line.contains("POST")), "the HTTP client logs: {lines:?}");
    assert!(!lines.iter().any(|line| line.contains("hush")), "{lines:?}");
}

#[test]
fn the_observer_hears_of_every_call_and_its_code() {
    let server = Server::start(|n, request| match n {
        0 => ok(good_reply(&request.action())),
        1 => refusal(404, "InvalidEniId.NotFound", "gone"),
        _ => http(500, b""),
    });
    let heard = Arc::<Mutex<Vec<(String, Option<String>)>>>::default();
    let notes = heard.clone();
    let observer = move |action: &'static str, took: Duration, code: Option<&str>| {
        assert!(took > Duration::ZERO);
        notes.lock().unwrap().push((action.to_string(), code.map(str::to_string)));
    };
    let key = Key::new("testid", "testsecret", None).unwrap();
    let client = Client::observed(endpoint(&server, Signature::Acs3), pair(key), Arc::new(observer)).unwrap();
    for _ in 0..3 {
        let _ = client.delete_eni("eni-1");
    }
    let action = || "DeleteNetworkInterface".to_string();
    let want =
        [(action(), None), (action(), Some("InvalidEniId.NotFound".to_string())), (action(), Some(String::new()))];
    assert_eq!(*heard.lock().unwrap(), want);
    assert_eq!(client.calls()["DeleteNetworkInterface"], 3);
}

#[test]
fn one_client_serves_several_threads() {
    let server = honest();
    let client = client(&server, Signature::Acs3);
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let client = client.clone();
            thread::spawn(move || (0..10).all(|_| client.delete_eni("eni-1").is_ok()))
        })
        .collect();
    assert!(threads.into_iter().all(|thread| thread.join().unwrap()));
    assert_eq!(client.calls()["DeleteNetworkInterface"], 80);
    let nonces: std::collections::BTreeSet<String> =
        server.seen().iter().map(|request| request.headers["x-acs-signature-nonce"].clone()).collect();
    assert_eq!(nonces.len(), 80);
}

#[test]
fn a_server_is_believed_by_the_certificates_that_are_named() {
    let names = vec!["localhost".to_string()];
    let served = rcgen::generate_simple_self_signed(names.clone()).unwrap();
    let other = rcgen::generate_simple_self_signed(names).unwrap();
    let folder = std::env::temp_dir();
    let write = |name: &str, pem: String| {
        let path = folder.join(format!("terway-ca-{name}-{}", std::process::id()));
        std::fs::write(&path, pem).unwrap();
        path
    };
    let (right, wrong) = (write("right", served.cert.pem()), write("wrong", other.cert.pem()));
    let address = tls_server(served);
    let ask = |ca: &PathBuf| {
        let host = Some(format!("https://localhost:{}", address.port()));
        let endpoint = Endpoint {
            ecs: host.clone(),
            vpc: host,
            ca: Some(ca.clone()),
            timeout: Duration::from_secs(5),
            ..Endpoint::new("r")
        };
        let key = Key::new("testid", "testsecret", None).unwrap();
        Client::new(endpoint, pair(key)).unwrap().delete_eni("eni-1")
    };
    let (good, bad) = (ask(&right), ask(&wrong));
    std::fs::remove_file(right).unwrap();
    std::fs::remove_file(wrong).unwrap();
    assert_eq!(good, Ok(()));
    let fault = bad.unwrap_err();
    assert_eq!((fault.kind, fault.message.contains("certificate")), (FaultKind::Unknown, true), "{fault}");
}

/// Answers two connections with an empty JSON object over TLS.
fn tls_server(certified: rcgen::CertifiedKey<rcgen::KeyPair>) -> SocketAddr {
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key.into())
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().take(2) {
            let connection = rustls::ServerConnection::new(config.clone()).unwrap();
            let mut tls = rustls::StreamOwned::new(connection, stream.unwrap());
            let mut reader = BufReader::new(&mut tls);
            if read_request(&mut reader).is_some() {
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";
                let _ = tls.write_all(answer);
                tls.conn.send_close_notify();
                let _ = tls.flush();
            }
        }
    });
    address
}

#[test]
fn no_reply_makes_the_client_panic() {
    let mut random = fastrand::Rng::with_seed(7);
    let body = Arc::<Mutex<Vec<u8>>>::default();
    let served = body.clone();
    let server = Server::always(move || http(200, &served.lock().unwrap()));
    let client = client(&server, Signature::Acs3);
    for round in 0..60 {
        for (action, call) in CALLS {
            let bytes = mangled(&mut random, good_reply(action));
            *body.lock().unwrap() = bytes.clone();
            let outcome = catch_unwind(AssertUnwindSafe(|| call(&client)));
            let outcome = outcome.unwrap_or_else(|_| panic!("round {round}: {}", String::from_utf8_lossy(&bytes)));
            if let Err(fault) = outcome {
                assert!(!fault.message.is_empty() && fault.message.len() < 4096, "{fault}");
            }
        }
    }
}

/// A reply that has suffered: noise, a changed byte, a cut, or a field of another kind.
fn mangled(random: &mut fastrand::Rng, mut reply: Value) -> Vec<u8> {
    match random.u8(0..4) {
        0 => (0..random.usize(0..200)).map(|_| random.u8(..)).collect(),
        1 => {
            let mut bytes = reply.to_string().into_bytes();
            for _ in 0..random.usize(1..5) {
                let at = random.usize(0..bytes.len());
                bytes[at] = random.u8(..);
            }
            bytes
        }
        2 => {
            let bytes = reply.to_string().into_bytes();
            bytes[..random.usize(0..bytes.len())].to_vec()
        }
        _ => {
            transmute(random, &mut reply);
            reply.to_string().into_bytes()
        }
    }
}

/// Puts something else in the place of one value, somewhere below.
fn transmute(random: &mut fastrand::Rng, value: &mut Value) {
    let below: Vec<&mut Value> = match value {
        Value::Object(map) if random.u8(0..8) > 0 => map.values_mut().collect(),
        Value::Array(list) if random.u8(0..8) > 0 => list.iter_mut().collect(),
        _ => vec![],
    };
    let count = below.len();
    match below.into_iter().nth(random.usize(0..count.max(1))) {
        Some(child) => transmute(random, child),
        None => {
            let others =
                [json!(null), json!(-1), json!(1e300), json!(""), json!([]), json!({}), json!("ü\u{0}"), json!([[1]])];
            *value = others[random.usize(0..others.len())].clone();
        }
    }
}

#[test]
fn a_reply_cut_at_any_byte_is_not_believed() {
    let whole = good_reply("AssignPrivateIpAddresses").to_string();
    let body = Arc::<Mutex<Vec<u8>>>::default();
    let served = body.clone();
    let server = Server::always(move || http(200, &served.lock().unwrap()));
    let client = client(&server, Signature::Acs3);
    for end in 0..whole.len() {
        *body.lock().unwrap() = whole.as_bytes()[..end].to_vec();
        let fault = client.assign_v4("eni-1", 2, "t").unwrap_err();
        assert_eq!(fault.kind, FaultKind::Unknown, "cut at {end}");
    }
}

const MAC: &str = "00:16:3e:00:00:02";

/// What the metadata service says at a path.
fn fact(path: &str) -> Option<&'static str> {
    Some(match path {
        "instance-id" => "i-1\n",
        "instance/instance-type" => "ecs.g7.large",
        "region-id" => " cn-hangzhou ",
        "zone-id" => "cn-hangzhou-h",
        "vpc-id" => "vpc-1",
        "vswitch-id" => "vsw-1",
        "mac" => MAC,
        "network/interfaces/macs/" => "00:16:3e:00:00:02/\n00:16:3e:00:00:03/\n",
        "network/interfaces/macs/00:16:3e:00:00:02/network-interface-id" => "eni-1",
        "network/interfaces/macs/00:16:3e:00:00:02/primary-ip-address" => "10.0.0.2",
        "network/interfaces/macs/00:16:3e:00:00:02/private-ipv4s" => r#"["10.0.0.2","10.0.0.5"]"#,
        "network/interfaces/macs/00:16:3e:00:00:02/gateway" => "10.0.0.253",
        "network/interfaces/macs/00:16:3e:00:00:02/vswitch-id" => "vsw-1",
        "network/interfaces/macs/00:16:3e:00:00:02/vswitch-cidr-block" => "10.0.0.0/24",
        _ => return None,
    })
}

fn told(request: &Request) -> Answer {
    let path = request.target.strip_prefix("/latest/meta-data/").unwrap_or_default();
    fact(path).map_or_else(|| http(404, b"<html>not found</html>"), |text| http(200, text.as_bytes()))
}

fn metadata(server: &Server) -> Metadata {
    Metadata::with_timeout(&server.url(), Duration::from_secs(10)).unwrap()
}

fn is_token_request(request: &Request) -> bool {
    request.method == "PUT" && request.target == "/latest/api/token"
}

#[test]
fn the_machine_is_described_by_metadata() {
    let server = Server::start(|_, request| told(request));
    let metadata = metadata(&server);
    let node = metadata.node().unwrap();
    assert_eq!(
        (node.instance.as_str(), node.instance_type.as_str(), node.region.as_str(), node.zone.as_str()),
        ("i-1", "ecs.g7.large", "cn-hangzhou", "cn-hangzhou-h")
    );
    assert_eq!((node.vpc.as_str(), node.vswitch.as_str()), ("vpc-1", "vsw-1"));
    assert_eq!(metadata.mac().unwrap(), MAC.parse().unwrap());
    assert_eq!(metadata.macs().unwrap(), [MAC.parse().unwrap(), "00:16:3e:00:00:03".parse::<Mac>().unwrap()]);
    let eni = metadata.eni(MAC.parse().unwrap()).unwrap();
    assert_eq!((eni.id.as_str(), eni.vswitch.as_str()), ("eni-1", "vsw-1"));
    assert_eq!(eni.v4, [Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(10, 0, 0, 5)]);
    assert_eq!((eni.primary, eni.gateway), (Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(10, 0, 0, 253)));
    assert_eq!(eni.cidr.to_string(), "10.0.0.0/24");
    assert!(eni.v6.is_empty(), "no ipv6s there means none");
}

#[test]
fn metadata_that_is_not_there_is_absent_and_an_error_is_an_error() {
    let server = Server::start(|_, request| told(request));
    let error = metadata(&server).eni("00:16:3e:00:00:09".parse().unwrap()).unwrap_err();
    assert!(error.is_absent());
    let want = "read metadata network/interfaces/macs/00:16:3e:00:00:09/network-interface-id: not found";
    assert_eq!(error.to_string(), want);
    let server = Server::always(|| http(500, b"oops"));
    let error = metadata(&server).instance_id().unwrap_err();
    assert_eq!(error.cause, Cause::Http { status: 500, body: String::new() });
    let server = Server::always(|| http(200, b"<html>log in</html>"));
    let error = metadata(&server).instance_id().unwrap_err();
    assert_eq!(error.to_string(), "metadata instance-id is not a name: \"<html>log in</html>\"");
    let server = Server::always(|| Answer::Silence);
    let impatient = Metadata::with_timeout(&server.url(), Duration::from_millis(500)).unwrap();
    assert_eq!(impatient.instance_id().unwrap_err().cause, Cause::Timeout);
}

#[test]
fn metadata_is_asked_with_a_token_where_there_is_one() {
    let server = Server::start(|_, request| match is_token_request(request) {
        true => http(200, b"the-token\n"),
        false if request.headers.get("x-aliyun-ecs-metadata-token").is_none_or(|t| t != "the-token") => http(403, b""),
        false => told(request),
    });
    metadata(&server).node().unwrap();
    let asked: Vec<Request> = server.seen().into_iter().filter(is_token_request).collect();
    assert_eq!(asked.len(), 1, "one token for many questions");
    assert_eq!(asked[0].headers["x-aliyun-ecs-metadata-token-ttl-seconds"], "21600");
}

#[test]
fn metadata_is_asked_without_a_token_where_there_is_none() {
    let server = Server::start(|_, request| match is_token_request(request) {
        true => http(404, b"<html>"),
        false => told(request),
    });
    metadata(&server).node().unwrap();
    let (puts, gets): (Vec<Request>, Vec<Request>) = server.seen().into_iter().partition(is_token_request);
    assert_eq!(puts.len(), 1, "it is not asked for again and again");
    assert!(gets.iter().all(|request| !request.headers.contains_key("x-aliyun-ecs-metadata-token")));
}

#[test]
fn a_metadata_token_that_is_refused_is_renewed_once() {
    let server = Server::start(|n, request| match is_token_request(request) {
        true => http(200, format!("token-{n}").as_bytes()),
        // The third request is the second token; what came before it is refused.
        false if request.headers["x-aliyun-ecs-metadata-token"] == "token-2" => told(request),
        false => http(401, b""),
    });
    assert_eq!(metadata(&server).instance_id().unwrap(), "i-1");
    assert_eq!(server.seen().len(), 4);
    let server = Server::start(|_, request| match is_token_request(request) {
        true => http(200, b"never-good-enough"),
        false => http(401, b""),
    });
    let error = metadata(&server).instance_id().unwrap_err();
    assert_eq!(error.cause, Cause::Http { status: 401, body: String::new() });
    assert_eq!(server.seen().len(), 4);
    assert!(!format!("{error} {error:?} {:?}", metadata(&server)).contains("never-good-enough"));
}

fn in_seconds(seconds: u64) -> String {
    humantime::format_rfc3339_seconds(SystemTime::now() + Duration::from_secs(seconds)).to_string()
}

/// A metadata service whose role gives `STS.<n>`, the n-th time it is asked; it fails when told to.
fn role_server(ends_in: u64, fails: Arc<AtomicBool>) -> Server {
    let given = Mutex::new(0);
    Server::start(move |_, request| match request.target.strip_prefix("/latest/meta-data/ram/security-credentials/") {
        Some("") => http(200, b"worker-role\n"),
        Some("worker-role") if fails.load(Ordering::SeqCst) => http(500, b""),
        Some("worker-role") => {
            let mut given = given.lock().unwrap();
            *given += 1;
            ok(
                json!({"Code": "Success", "AccessKeyId": format!("STS.{given}"), "AccessKeySecret": format!("secret-{given}"),
                "SecurityToken": "sts", "Expiration": in_seconds(ends_in), "LastUpdated": in_seconds(0)}),
            )
        }
        _ => http(404, b""),
    })
}

fn role(server: &Server) -> Credentials {
    let role = Some(metadata(server));
    Credentials::new(Sources { addon_secret: PathBuf::from("/nowhere"), pair: None, token_file: None, role })
}

#[test]
fn the_instances_role_signs_and_is_asked_once() {
    let metadata = role_server(3600, Arc::default());
    let cloud = honest();
    let client = Client::new(endpoint(&cloud, Signature::Acs3), role(&metadata)).unwrap();
    for _ in 0..3 {
        client.delete_eni("eni-1").unwrap();
    }
    for request in cloud.seen() {
        verified(&request, "secret-1");
        assert_eq!(request.headers["x-acs-accesskey-id"], "STS.1");
        assert_eq!(request.headers["x-acs-security-token"], "sts");
    }
}

#[test]
fn a_token_the_cloud_calls_expired_is_renewed_before_the_next_call() {
    let fails = Arc::<AtomicBool>::default();
    let metadata = role_server(3600, fails.clone());
    let cloud = Server::start(|_, request| match request.headers["x-acs-accesskey-id"].as_str() {
        "STS.1" => refusal(400, "InvalidSecurityToken.Expired", "the token has expired"),
        _ => ok(json!({})),
    });
    let client = Client::new(endpoint(&cloud, Signature::Acs3), role(&metadata)).unwrap();
    let fault = client.delete_eni("eni-1").unwrap_err();
    assert_eq!((fault.kind, fault.code.as_str()), (FaultKind::Unknown, "InvalidSecurityToken.Expired"));
    // While metadata is out of order, what we have is all there is.
    fails.store(true, Ordering::SeqCst);
    assert_eq!(client.delete_eni("eni-1").unwrap_err().code, "InvalidSecurityToken.Expired");
    fails.store(false, Ordering::SeqCst);
    client.delete_eni("eni-1").unwrap();
}

#[test]
fn credentials_that_are_about_to_end_are_used_until_they_do() {
    let fails = Arc::<AtomicBool>::default();
    let metadata = role_server(5, fails.clone());
    let credentials = role(&metadata);
    let first = credentials.key().unwrap();
    fails.store(true, Ordering::SeqCst);
    credentials.doubt(&first);
    assert_eq!(credentials.key().unwrap(), first, "not over yet");
    thread::sleep(Duration::from_millis(5100));
    credentials.doubt(&first);
    let error = credentials.key().unwrap_err();
    assert_eq!(error.cause, Cause::Http { status: 500, body: String::new() });
}

#[test]
fn a_call_without_credentials_is_not_sent() {
    let cloud = honest();
    let nobody = Server::always(|| http(404, b""));
    let client = Client::new(endpoint(&cloud, Signature::Acs3), role(&nobody)).unwrap();
    let fault = client.delete_eni("eni-1").unwrap_err();
    assert_eq!(fault.kind, FaultKind::Forbidden);
    assert_eq!(
        fault.to_string(),
        "DeleteNetworkInterface: find credentials: the instance has no RAM role, and no access key is configured"
    );
    let silent = Server::always(|| http(500, b""));
    let client = Client::new(endpoint(&cloud, Signature::Acs3), role(&silent)).unwrap();
    assert_eq!(client.delete_eni("eni-1").unwrap_err().kind, FaultKind::Unknown);
    assert!(cloud.seen().is_empty());
}
