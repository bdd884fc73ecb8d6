//! The qdisc that holds filters on what arrives at a link, and our filters that mark.

use std::fmt;
use std::os::fd::RawFd;

use super::message::{CREATE, EXCL, Message, attr, attrs, text, u32_at};

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;
const TCA_U32_SEL: u16 = 5;
const TCA_U32_ACT: u16 = 7;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_SKBEDIT_PARMS: u16 = 2;
const TCA_SKBEDIT_MARK: u16 = 5;
const TCA_SKBEDIT_MASK: u16 = 8;
/// Go on with the next filter, as if this one had not matched.
const TC_ACT_UNSPEC: i32 = -1;

/// Where both `clsact` and `ingress` sit.
const QDISC_PARENT: u32 = 0xffff_fff1;
const QDISC_HANDLE: u32 = 0xffff_0000;
/// What arrives. `ingress` takes this class too: it has but one.
pub const INGRESS: u32 = 0xffff_fff2;
/// What leaves (`clsact` only).
pub const EGRESS: u32 = 0xffff_fff3;
const FILTER_HANDLE: u32 = 1;
/// ETH_P_ALL in network order.
const ALL_PROTOCOLS: u16 = 3_u16.to_be();

/// A filter as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilterSeen {
    pub priority: u16,
    /// What it does, in the words of [`bpf_name`] and [`Skbedit`] where it is one of ours.
    pub what: String,
}

impl FilterSeen {
    /// `None` for what is not a filter itself: the head of a priority, the hash table of `u32`.
    pub(super) fn parse(body: &[u8]) -> Option<FilterSeen> {
        let priority = (u32_at(body, 16)? >> 16) as u16;
        let attributes = body.get(20..)?;
        let options = attr(attributes, TCA_OPTIONS)?;
        let what = match text(attr(attributes, TCA_KIND)?).as_str() {
            "u32" if attr(options, TCA_U32_SEL).is_none() => return None,
            "u32" => skbedit(options).map_or("u32".into(), |edit| edit.to_string()),
            "bpf" if attr(options, TCA_BPF_FLAGS).and_then(|f| u32_at(f, 0)) == Some(TCA_BPF_FLAG_ACT_DIRECT) => {
                attr(options, TCA_BPF_NAME).map_or("bpf".into(), text)
            }
            other => other.into(),
        };
        Some(FilterSeen { priority, what })
    }
}

/// What the action `skbedit` sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Skbedit {
    pub mark: u32,
    /// Kernels before 4.16 know none: they read over the attribute, and say nothing of a mask. The mark of a packet that
    /// leaves a namespace is 0, so that setting the whole mark or our bits of it comes to the same.
    pub mask: Option<u32>,
}

impl fmt::Display for Skbedit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "skbedit mark {:#x}", self.mark)?;
        self.mask.map_or(Ok(()), |mask| write!(f, "/{mask:#x}"))
    }
}

fn skbedit(options: &[u8]) -> Option<Skbedit> {
    let (_, action) = attrs(attr(options, TCA_U32_ACT)?).next()?;
    if text(attr(action, TCA_ACT_KIND)?) != "skbedit" {
        return None;
    }
    let edit = attr(action, TCA_ACT_OPTIONS)?;
    let mask = attr(edit, TCA_SKBEDIT_MASK).and_then(|mask| u32_at(mask, 0));
    Some(Skbedit { mark: u32_at(attr(edit, TCA_SKBEDIT_MARK)?, 0)?, mask })
}

/// The name that the filter of our program bears in the kernel: what the program does.
pub fn bpf_name(value: u32, mask: u32) -> String {
    format!("bpf mark {value:#x}/{mask:#x}")
}

/// `struct tcmsg`.
fn tcmsg(ifindex: u32, handle: u32, parent: u32, info: u32) -> [u8; 20] {
    let mut fixed = [0; 20];
    for (n, field) in [ifindex, handle, parent, info].into_iter().enumerate() {
        fixed[4 + 4 * n..8 + 4 * n].copy_from_slice(&field.to_ne_bytes());
    }
    fixed
}

/// Adds `clsact`, or its older and smaller sister `ingress`.
pub fn add_qdisc(ifindex: u32, kind: &str) -> Message {
    Message::new(libc::RTM_NEWQDISC, CREATE | EXCL, &tcmsg(ifindex, QDISC_HANDLE, QDISC_PARENT, 0)).text(TCA_KIND, kind)
}

pub fn remove_qdisc(ifindex: u32) -> Message {
    Message::new(libc::RTM_DELQDISC, 0, &tcmsg(ifindex, QDISC_HANDLE, QDISC_PARENT, 0))
}

/// The fixed part that lists the filters of one side of a link.
pub fn filters_of(ifindex: u32, side: u32) -> [u8; 20] {
    tcmsg(ifindex, 0, side, 0)
}

fn filter(kind: u16, flags: u16, ifindex: u32, handle: u32, priority: u16) -> Message {
    let info = (u32::from(priority) << 16) | u32::from(ALL_PROTOCOLS);
    Message::new(kind, flags, &tcmsg(ifindex, handle, INGRESS, info))
}

/// Runs the program of this descriptor, and takes what it returns as the verdict.
pub fn add_bpf(ifindex: u32, priority: u16, program: RawFd, name: &str) -> Message {
    filter(libc::RTM_NEWTFILTER, CREATE | EXCL, ifindex, FILTER_HANDLE, priority)
        .text(TCA_KIND, "bpf")
        .nest(TCA_OPTIONS, |m| {
            m.u32(TCA_BPF_FD, program as u32).text(TCA_BPF_NAME, name).u32(TCA_BPF_FLAGS, TCA_BPF_FLAG_ACT_DIRECT)
        })
}

/// Matches everything and edits it.
pub fn add_skbedit(ifindex: u32, priority: u16, value: u32, mask: u32) -> Message {
    // struct tc_u32_sel with flags TC_U32_TERMINAL and one struct tc_u32_key of zeros: any word masked by 0 is 0.
    let mut selector = [0; 32];
    (selector[0], selector[2]) = (1, 1);
    // struct tc_skbedit: index, capabilities, action, two counters.
    let mut parameters = [0; 20];
    parameters[8..12].copy_from_slice(&TC_ACT_UNSPEC.to_ne_bytes());
    filter(libc::RTM_NEWTFILTER, CREATE | EXCL, ifindex, 0, priority).text(TCA_KIND, "u32").nest(TCA_OPTIONS, |m| {
        m.attr(TCA_U32_SEL, &selector).nest(TCA_U32_ACT, |m| {
            m.nest(1, |m| {
                m.text(TCA_ACT_KIND, "skbedit").nest(TCA_ACT_OPTIONS, |m| {
                    m.attr(TCA_SKBEDIT_PARMS, &parameters).u32(TCA_SKBEDIT_MARK, value).u32(TCA_SKBEDIT_MASK, mask)
                })
            })
        })
    })
}

/// Removes whatever filters have this priority.
pub fn remove_filter(ifindex: u32, priority: u16) -> Message {
    filter(libc::RTM_DELTFILTER, 0, ifindex, 0, priority)
}
