//! The cloud's error codes, sorted by what they let us do next.

use serde_json::Value;

use super::sign::Params;
use crate::eni::{Fault, FaultKind};
use crate::error::{Cause, Error};

/// Longer messages are cut: they go into logs and events.
const MAX_MESSAGE: usize = 600;

/// An answer with a status that is not success.
pub fn refused(action: &str, status: u16, body: &[u8]) -> Fault {
    let answer: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |name: &str| answer[name].as_str().unwrap_or_default();
    let code = text("Code");
    let message = match (text("Message"), code) {
        ("", "") => format!("http status {status} without an error code"),
        ("", _) => format!("http status {status}"),
        (message, _) => message.to_string(),
    };
    Fault {
        kind: kind(code, status),
        action: action.to_string(),
        code: code.to_string(),
        message,
        request_id: text("RequestId").to_string(),
    }
}

/// There was no answer, or not all of it.
pub fn unanswered(action: &str, error: &Error) -> Fault {
    unknown(action, error.to_string(), String::new())
}

/// The answer says success and then something we cannot believe: the work may have been done.
pub fn malformed(action: &str, answer: &Value, what: String) -> Fault {
    unknown(action, what, answer["RequestId"].as_str().unwrap_or_default().to_string())
}

/// We did not ask, for want of credentials: worth another try when the metadata service did not answer, else a person's work.
pub fn keyless(action: &str, error: &Error) -> Fault {
    let kind = match error.cause {
        Cause::Refused(_) | Cause::Absent => FaultKind::Forbidden,
        _ => FaultKind::Unknown,
    };
    Fault { kind, ..unknown(action, error.to_string(), String::new()) }
}

/// The answers are good ones, and together they are not what we asked for.
pub fn found(action: &str, kind: FaultKind, message: String) -> Fault {
    Fault { kind, ..unknown(action, message, String::new()) }
}

fn unknown(action: &str, message: String, request_id: String) -> Fault {
    Fault { kind: FaultKind::Unknown, action: action.to_string(), code: String::new(), message, request_id }
}

/// Makes the cloud's words fit for a log: one line, not too long.
pub fn tidy(fault: &mut Fault) {
    for text in [&mut fault.code, &mut fault.message, &mut fault.request_id] {
        *text = text.chars().take(MAX_MESSAGE).map(|c| if c.is_control() { ' ' } else { c }).collect();
    }
}

/// Whether the cloud says that the key or token we use is not, or no longer, one of its own.
pub fn distrusts_key(code: &str) -> bool {
    code.starts_with("InvalidSecurityToken") || code.starts_with("InvalidAccessKeyId")
}

/// Whether the cloud says that the call was signed at another time than it came.
pub fn distrusts_clock(code: &str) -> bool {
    code.starts_with("InvalidTimeStamp")
}

/// Names the clocks' difference and the remedy. Where this very answer told of it, the same call signed anew can succeed.
pub fn blame_clock(fault: &mut Fault, before: i64, now: i64) {
    if now != before {
        fault.kind = FaultKind::Unknown;
    }
    fault.message += &format!("; {}", clock_words(now));
}

/// What is wrong with this machine's clock, for a person.
pub fn clock_words(skew: i64) -> String {
    let set = "set it: chronyc makestep, or timedatectl set-ntp true";
    let apart = humantime::format_duration(std::time::Duration::from_secs(skew.unsigned_abs()));
    match skew {
        0 => format!("the clock of this machine may be wrong; {set}"),
        1.. => format!("the clock of this machine is {apart} behind the cloud's; {set}"),
        _ => format!("the clock of this machine is {apart} ahead of the cloud's; {set}"),
    }
}

/// Names the right that lacks, and on what, in the words of a RAM policy.
pub fn name_right(fault: &mut Fault, product: &str, region: &str, params: &Params) {
    if !lacks_right(&fault.code) {
        return;
    }
    let resource = |(product, name): (&str, String)| format!("acs:{product}:{region}:*:{name}");
    let on: Vec<String> = resources(product, &fault.action, params).into_iter().map(resource).collect();
    let action = &fault.action;
    fault.message += &format!("; the RAM policy must allow {product}:{action} on {}", on.join(" and "));
}

fn lacks_right(code: &str) -> bool {
    code == "NoPermission" || code == "Forbidden" || code.starts_with("Forbidden.")
}

/// What a call touches.
fn resources<'a>(product: &'a str, action: &str, params: &Params) -> Vec<(&'a str, String)> {
    let of = |kind: &str, name: &str| params.get(name).map(|id| format!("{kind}/{id}"));
    let eni = of("eni", "NetworkInterfaceId").or_else(|| of("eni", "NetworkInterfaceId.1"));
    let mut all: Vec<(&str, String)> = match action {
        "CreateNetworkInterface" => vec![(product, "eni/*".into())],
        "DescribeNetworkInterfaces" => vec![(product, eni.unwrap_or_else(|| "eni/*".into()))],
        _ => eni.into_iter().map(|eni| (product, eni)).collect(),
    };
    if action != "DescribeNetworkInterfaces" {
        all.extend(of("instance", "InstanceId").map(|instance| (product, instance)));
    }
    all.extend(of("vswitch", "VSwitchId").map(|vswitch| ("vpc", vswitch)));
    if all.is_empty() {
        all.push((product, "*".into()));
    }
    all
}

fn kind(code: &str, status: u16) -> FaultKind {
    by_name(code).or_else(|| by_family(code)).unwrap_or_else(|| by_status(code, status))
}

fn by_name(code: &str) -> Option<FaultKind> {
    Some(match code {
        "InvalidVSwitchId.IpNotEnough" => FaultKind::VSwitchEmpty,
        "InvalidOperation.Ipv4CountExceeded" | "InvalidOperation.Ipv6CountExceeded" => FaultKind::EniFull,
        "EniPerInstanceLimitExceeded" | "SecurityGroupInstanceLimitExceed" => FaultKind::Quota,
        "InvalidOperation.InvalidEniState"
        | "InvalidOperation.InvalidEcsState"
        | "IncorrectInstanceStatus"
        | "Operation.Conflict"
        | "TaskConflict"
        | "LastTokenProcessing"
        | "IdempotentProcessing" => FaultKind::Busy,
        "IdempotentFailed" | "IdempotentParameterMismatch" => FaultKind::Token,
        "InvalidEniId.NotFound"
        | "InvalidEcsId.NotFound"
        | "InvalidInstanceId.NotFound"
        | "InvalidResourceId.NotFound"
        | "InvalidIp.IpUnassigned" => FaultKind::Gone,
        // A fresh token, a fresh nonce, the same ClientToken.
        "InvalidSecurityToken.Expired" | "SignatureNonceUsed" => FaultKind::Unknown,
        "SignatureDoesNotMatch" | "IncompleteSignature" | "NoPermission" | "Account.Arrearage" => FaultKind::Forbidden,
        _ => return None,
    })
}

fn by_family(code: &str) -> Option<FaultKind> {
    let family = code.split('.').next().unwrap_or_default();
    Some(match family {
        "Throttling" => FaultKind::Throttled,
        "InternalError" | "ServiceUnavailable" | "UnknownError" => FaultKind::Unknown,
        "Forbidden" | "InvalidAccessKeyId" | "InvalidSecurityToken" | "InvalidTimeStamp" | "InvalidAccountStatus" => {
            FaultKind::Forbidden
        }
        "QuotaExceeded" | "QuotaExceed" => FaultKind::Quota,
        _ => return None,
    })
}

/// A code we do not know means that the request is wrong, where the status says so; without a code somebody else answered.
fn by_status(code: &str, status: u16) -> FaultKind {
    match status {
        429 => FaultKind::Throttled,
        400..=499 if !code.is_empty() => FaultKind::Invalid,
        _ => FaultKind::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_code_says_what_to_do_next() {
        for (code, want) in [
            ("InvalidVSwitchId.IpNotEnough", FaultKind::VSwitchEmpty),
            ("QuotaExceeded.PrivateIpAddress", FaultKind::Quota),
            ("EniPerInstanceLimitExceeded", FaultKind::Quota),
            ("SecurityGroupInstanceLimitExceed", FaultKind::Quota),
            ("InvalidOperation.InvalidEniState", FaultKind::Busy),
            ("Operation.Conflict", FaultKind::Busy),
            ("TaskConflict", FaultKind::Busy),
            ("IdempotentProcessing", FaultKind::Busy),
            ("InvalidOperation.Ipv4CountExceeded", FaultKind::EniFull),
            ("InvalidOperation.Ipv6CountExceeded", FaultKind::EniFull),
            ("InvalidIp.IpUnassigned", FaultKind::Gone),
            ("InvalidEniId.NotFound", FaultKind::Gone),
            ("InvalidResourceId.NotFound", FaultKind::Gone),
            ("InvalidEcsId.NotFound", FaultKind::Gone),
            ("Throttling", FaultKind::Throttled),
            ("Throttling.User", FaultKind::Throttled),
            ("InternalError", FaultKind::Unknown),
            ("ServiceUnavailable", FaultKind::Unknown),
            ("Forbidden.RAM", FaultKind::Forbidden),
            ("Forbidden", FaultKind::Forbidden),
            ("InvalidAccessKeyId.NotFound", FaultKind::Forbidden),
            ("InvalidAccessKeyId.Inactive", FaultKind::Forbidden),
            ("SignatureDoesNotMatch", FaultKind::Forbidden),
            ("InvalidTimeStamp.Expired", FaultKind::Forbidden),
            ("InvalidSecurityToken.MismatchWithAccessKey", FaultKind::Forbidden),
            ("InvalidSecurityToken.Expired", FaultKind::Unknown),
            ("IdempotentFailed", FaultKind::Token),
            ("IdempotentParameterMismatch", FaultKind::Token),
            ("InvalidVSwitchId.NotFound", FaultKind::Invalid),
            ("MissingParameter", FaultKind::Invalid),
            ("ForbiddenFruit", FaultKind::Invalid),
        ] {
            assert_eq!(kind(code, 400), want, "{code}");
        }
    }

    #[test]
    fn a_code_we_do_not_know_is_judged_by_the_status() {
        for (code, status, want) in [
            ("Something.New", 404, FaultKind::Invalid),
            ("Something.New", 500, FaultKind::Unknown),
            ("Something.New", 503, FaultKind::Unknown),
            ("", 429, FaultKind::Throttled),
            ("", 403, FaultKind::Unknown),
            ("", 302, FaultKind::Unknown),
            ("Throttling", 503, FaultKind::Throttled),
        ] {
            assert_eq!(kind(code, status), want, "{code} {status}");
        }
    }

    #[test]
    fn the_clouds_own_words_are_kept() {
        let body = br#"{"RequestId":"R-1","HostId":"ecs","Code":"Forbidden.RAM","Message":"User not authorized","Recommend":"x"}"#;
        let fault = refused("CreateNetworkInterface", 403, body);
        assert_eq!(fault.to_string(), "CreateNetworkInterface: Forbidden.RAM: User not authorized (request R-1)");
        let fault = refused("CreateNetworkInterface", 502, b"<html>bad gateway</html>");
        assert_eq!(fault.to_string(), "CreateNetworkInterface: http status 502 without an error code");
        assert_eq!(fault.kind, FaultKind::Unknown);
    }

    #[test]
    fn a_right_that_lacks_is_named_with_what_it_is_needed_on() {
        let said = |code: &str, product: &str, action: &str, params: &[(&str, &str)]| {
            let body = format!(r#"{{"Code":"{code}","Message":"no"}}"#);
            let mut fault = refused(action, 403, body.as_bytes());
            let params = params.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
            name_right(&mut fault, product, "cn-hangzhou", &params);
            fault.message
        };
        for (product, action, params, on) in [
            (
                "ecs",
                "AssignPrivateIpAddresses",
                &[("NetworkInterfaceId", "eni-1")][..],
                "acs:ecs:cn-hangzhou:*:eni/eni-1",
            ),
            (
                "ecs",
                "AttachNetworkInterface",
                &[("NetworkInterfaceId", "eni-1"), ("InstanceId", "i-1")],
                "acs:ecs:cn-hangzhou:*:eni/eni-1 and acs:ecs:cn-hangzhou:*:instance/i-1",
            ),
            (
                "ecs",
                "CreateNetworkInterface",
                &[("VSwitchId", "vsw-1")],
                "acs:ecs:cn-hangzhou:*:eni/* and acs:vpc:cn-hangzhou:*:vswitch/vsw-1",
            ),
            ("ecs", "DescribeNetworkInterfaces", &[("InstanceId", "i-1")], "acs:ecs:cn-hangzhou:*:eni/*"),
            ("ecs", "DescribeInstanceTypes", &[("InstanceTypes.1", "x")], "acs:ecs:cn-hangzhou:*:*"),
            ("vpc", "DescribeVSwitches", &[("VSwitchId", "vsw-1")], "acs:vpc:cn-hangzhou:*:vswitch/vsw-1"),
        ] {
            let want = format!("no; the RAM policy must allow {product}:{action} on {on}");
            assert_eq!(said("Forbidden.RAM", product, action, params), want);
        }
        assert_eq!(said("InvalidVSwitchId.NotFound", "ecs", "CreateNetworkInterface", &[]), "no");
    }

    #[test]
    fn a_wrong_clock_is_named_and_the_call_is_said_again_once_the_right_time_is_known() {
        let body = br#"{"Code":"InvalidTimeStamp.Expired","Message":"too old"}"#;
        let judged = |before, now| {
            let mut fault = refused("CreateNetworkInterface", 400, body);
            blame_clock(&mut fault, before, now);
            (fault.kind, fault.message)
        };
        let set = "set it: chronyc makestep, or timedatectl set-ntp true";
        let behind = format!("too old; the clock of this machine is 20m behind the cloud's; {set}");
        assert_eq!(judged(0, 1200), (FaultKind::Unknown, behind.clone()));
        assert_eq!(judged(1200, 1200), (FaultKind::Forbidden, behind));
        assert!(judged(0, -3600).1.contains("is 1h ahead of the cloud's"));
        assert_eq!(judged(0, 0).0, FaultKind::Forbidden);
    }

    #[test]
    fn a_message_is_one_line_of_bounded_length() {
        let body = format!(r#"{{"Code":"X","Message":"a\nb{}"}}"#, "c".repeat(5000));
        let mut fault = refused("A", 400, body.as_bytes());
        tidy(&mut fault);
        assert!(fault.message.starts_with("a bccc"), "{}", fault.message);
        assert_eq!(fault.message.len(), 600);
    }

    #[test]
    fn want_of_credentials_is_a_persons_work_unless_metadata_is_silent() {
        assert_eq!(keyless("A", &Error::new(Cause::Timeout)).kind, FaultKind::Unknown);
        assert_eq!(keyless("A", &Error::os(libc::ECONNREFUSED)).kind, FaultKind::Unknown);
        assert_eq!(keyless("A", &Error::refused("no credentials")).kind, FaultKind::Forbidden);
    }
}
