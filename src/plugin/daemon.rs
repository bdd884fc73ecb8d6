//! What the daemon says, or that it says nothing, in the words of CNI.

use std::path::Path;
use std::time::Duration;

use crate::cni::{Code, Failure};
use crate::error::{Cause, Error};
use crate::pod::{Attachment, PodName};
use crate::rpc::{Lease, Refusal, Reply, Request};
use crate::{client, ours};

/// A daemon that answered a moment ago answers this at once.
const PATIENCE: Duration = Duration::from_secs(15);

/// What to do about a daemon that does not answer.
const LOOK: &str = "is terwayd running? systemctl status terwayd, journalctl -u terwayd";

/// What to do about one that speaks in riddles.
const RELEASES: &str = "are terway and terwayd of one release?";

pub fn ask(request: &Request, patience: Duration) -> Result<Reply, Failure> {
    client::ask(request, patience).map_err(unanswered)
}

/// The same in two steps, with something to do between them.
pub fn put(request: &Request, patience: Duration) -> Result<client::Question, Failure> {
    client::put(request, patience).map_err(unanswered)
}

pub fn answer(question: &mut client::Question) -> Result<Reply, Failure> {
    question.answer().map_err(unanswered)
}

fn unanswered(e: Error) -> Failure {
    match e.cause {
        Cause::Malformed(_) => stranger(e.to_string()),
        _ => Failure::new(Code::TryAgain, e).advise(LOOK),
    }
}

/// The lease of a pod that the old Terway has wired without writing its container down. A daemon of an earlier release does
/// not understand the question, and has no such lease.
pub fn unnamed(pod: &PodName, ifname: &str, netns: Option<&Path>) -> Option<Lease> {
    let request = Request::Find { pod: pod.clone(), ifname: ifname.into(), netns: netns.map(Path::to_owned) };
    match client::ask(&request, PATIENCE) {
        Ok(Reply::Lease(lease)) => Some(*lease),
        _ => None,
    }
}

pub fn refused(why: Refusal, reason: &str) -> Failure {
    Failure::new(code(why), reason)
}

/// What may pass is worth another try; for the rest a person must act.
fn code(why: Refusal) -> Code {
    match why {
        Refusal::NodeFull
        | Refusal::VSwitchEmpty
        | Refusal::Throttled
        | Refusal::CloudDown
        | Refusal::TooSlow
        | Refusal::ApiDown
        | Refusal::Policies
        | Refusal::Starting => Code::TryAgain,
        Refusal::Quota => Code::Quota,
        Refusal::Forbidden => Code::Forbidden,
        Refusal::NotOurs => Code::NotOurs,
        Refusal::BadRequest => Code::Protocol,
        Refusal::Local => Code::Node,
    }
}

/// A lease that we can wire: for the attachment we asked for, with an address, in a slot that has a mark.
pub fn sound(lease: Lease, asked: &Attachment) -> Result<Lease, Failure> {
    let attachment = &lease.sandbox.attachment;
    let wired = lease.untouched().is_some() || (1..=ours::MAX_SLOT).contains(&lease.eni.slot);
    if attachment == asked && !lease.ip.is_empty() && wired {
        return Ok(lease);
    }
    let (ip, slot) = (lease.ip, lease.eni.slot);
    Err(stranger(format!("terwayd leased {ip} in slot {slot} to {attachment}, which is not what {asked} can use")))
}

fn stranger(msg: String) -> Failure {
    Failure::new(Code::Protocol, msg).advise(RELEASES)
}

/// An answer to another question.
pub fn strange(reply: &Reply) -> Failure {
    let kind = match reply {
        Reply::Lease(_) => "lease",
        Reply::None {} => "none",
        Reply::Released { .. } => "released",
        Reply::Ready {} => "ready",
        Reply::Refused { .. } => "refused",
        Reply::Show(_) => "show",
    };
    stranger(format!("terwayd answered \"{kind}\", which is no answer to what was asked"))
}
