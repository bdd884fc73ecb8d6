//! The simulated metadata service: what an instance may learn about itself, possibly later than the API says it.

use std::time::Duration;

use serde_json::json;

use super::cloud::{EniView, Identity, World};
use super::http::{Request, Response};

/// How the service treats its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenMode {
    /// It has never heard of them.
    Unknown,
    /// It hands them out and answers without.
    Optional,
    /// It answers only with one.
    Enforced,
}

const LONGEST_TTL: u64 = 21_600;

/// Answers one request, about the instance that it comes from.
pub(super) fn answer(world: &World, request: &Request) -> Response {
    let Some(identity) = world.identity(request.peer.ip()) else {
        return Response::text(404, format!("no instance has the address {}", request.peer.ip()));
    };
    if request.path() == "/latest/api/token" {
        return token(world, request, &identity);
    }
    if request.method != "GET" {
        return Response::text(405, "GET only");
    }
    if let Some(refusal) = check_token(world, request, &identity) {
        return refusal;
    }
    let Some(path) = request.path().strip_prefix("/latest/meta-data") else {
        return not_found();
    };
    look_up(world, &identity, path.trim_matches('/')).map_or_else(not_found, |text| Response::text(200, text))
}

fn not_found() -> Response {
    Response::text(404, "404 - Not Found")
}

fn token(world: &World, request: &Request, identity: &Identity) -> Response {
    if world.metadata_tokens() == TokenMode::Unknown {
        return not_found();
    }
    if request.method != "PUT" {
        return Response::text(405, "PUT only");
    }
    let ttl = request.header("x-aliyun-ecs-metadata-token-ttl-seconds").and_then(|t| t.parse().ok());
    match ttl {
        Some(ttl @ 1..=LONGEST_TTL) => {
            Response::text(200, world.issue_metadata_token(&identity.instance, Duration::from_secs(ttl)))
        }
        _ => Response::text(400, "the ttl must be 1 to 21600 seconds"),
    }
}

/// The refusal, if there is one: 401 for a bad token, 403 for none where one is needed.
fn check_token(world: &World, request: &Request, identity: &Identity) -> Option<Response> {
    match (world.metadata_tokens(), request.header("x-aliyun-ecs-metadata-token")) {
        (TokenMode::Unknown, _) | (TokenMode::Optional, None) => None,
        (TokenMode::Enforced, None) => Some(Response::text(403, "403 - Forbidden")),
        (_, Some(token)) => {
            let good = world.knows_metadata_token(&identity.instance, token);
            (!good).then(|| Response::text(401, "401 - Unauthorized"))
        }
    }
}

fn look_up(world: &World, identity: &Identity, path: &str) -> Option<String> {
    let primary = identity.enis.iter().find(|e| e.id == identity.primary_eni)?;
    let words: Vec<&str> = path.split('/').collect();
    Some(match words[..] {
        [""] => "instance/\ninstance-id\nmac\nnetwork/\nprivate-ipv4\nram/\nregion-id\nvpc-cidr-block\nvpc-id\n\
                 vswitch-cidr-block\nvswitch-id\nzone-id"
            .into(),
        ["mac"] => primary.mac.to_string(),
        ["private-ipv4"] => primary.v4[0].to_string(),
        ["instance-id"] => identity.instance.clone(),
        ["instance"] => "instance-type".into(),
        ["instance", "instance-type"] => identity.instance_type.clone(),
        ["region-id"] => world.region().into(),
        ["zone-id"] => identity.zone.clone(),
        ["vswitch-id"] => primary.vswitch.clone(),
        ["vswitch-cidr-block"] => primary.cidr.to_string(),
        ["vpc-id"] => identity.vpc.clone(),
        ["vpc-cidr-block"] => identity.vpc_cidr.to_string(),
        ["network"] => "interfaces/".into(),
        ["network", "interfaces"] => "macs/".into(),
        ["network", "interfaces", "macs"] => {
            let macs: Vec<String> = identity.enis.iter().map(|e| format!("{}/", e.mac)).collect();
            macs.join("\n")
        }
        ["network", "interfaces", "macs", mac, ref rest @ ..] => {
            let eni = identity.enis.iter().find(|e| e.mac.to_string() == mac)?;
            interface(identity, eni, rest)?
        }
        ["ram"] => "security-credentials/".into(),
        ["ram", "security-credentials"] => identity.role.clone()?,
        ["ram", "security-credentials", role] if identity.role.as_deref() == Some(role) => {
            let c = world.credentials(role);
            json!({
                "Code": "Success",
                "AccessKeyId": c.id,
                "AccessKeySecret": c.secret,
                "SecurityToken": c.token,
                "Expiration": c.expires,
                "LastUpdated": c.issued,
            })
            .to_string()
        }
        _ => return None,
    })
}

fn interface(identity: &Identity, eni: &EniView, rest: &[&str]) -> Option<String> {
    Some(match rest {
        [] => "gateway\nipv6-gateway\nipv6s\nnetmask\nnetwork-interface-id\nprimary-ip-address\nprivate-ipv4s\n\
               vpc-cidr-block\nvpc-id\nvswitch-cidr-block\nvswitch-id\nvswitch-ipv6-cidr-block"
            .into(),
        ["network-interface-id"] => eni.id.clone(),
        ["primary-ip-address"] => eni.v4[0].to_string(),
        ["private-ipv4s"] => json!(eni.v4).to_string(),
        ["ipv4-prefixes"] if !eni.prefixes.is_empty() => json!(eni.prefixes).to_string(),
        ["ipv6s"] if !eni.v6.is_empty() => {
            let list: Vec<String> = eni.v6.iter().map(|a| a.to_string()).collect();
            format!("[{}]", list.join(","))
        }
        ["gateway"] => eni.gateway.to_string(),
        ["netmask"] => eni.cidr.netmask().to_string(),
        ["ipv6-gateway"] => eni.gateway6?.to_string(),
        ["vswitch-id"] => eni.vswitch.clone(),
        ["vswitch-cidr-block"] => eni.cidr.to_string(),
        ["vswitch-ipv6-cidr-block"] => eni.cidr6?.to_string(),
        ["vpc-id"] => eni.vpc.clone(),
        ["vpc-cidr-block"] => identity.vpc_cidr.to_string(),
        _ => return None,
    })
}
