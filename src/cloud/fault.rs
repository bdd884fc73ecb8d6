//! The cloud's error codes, sorted by what they let us do next.

use serde_json::Value;

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
