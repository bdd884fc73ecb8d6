//! The qdisc that holds filters on what arrives at a link, our filters that mark, and the token bucket.

use std::fmt;
use std::os::fd::RawFd;

use super::message::{CREATE, EXCL, Message, REPLACE, attr, attrs, text, u32_at};
use crate::ours;
use crate::plan::Tbf;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_CLASSID: u16 = 3;
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
const TCA_MIRRED_PARMS: u16 = 2;
const TCA_EGRESS_REDIR: u32 = 1;
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RTAB: u16 = 2;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
/// The packet is somebody else's now.
const TC_ACT_STOLEN: i32 = 4;
/// Go on with the next filter, as if this one had not matched.
const TC_ACT_UNSPEC: i32 = -1;

/// Where the qdisc of what leaves by a link sits.
const ROOT: u32 = 0xffff_ffff;
/// Where both `clsact` and `ingress` sit.
const QDISC_PARENT: u32 = 0xffff_fff1;
const QDISC_HANDLE: u32 = 0xffff_0000;
/// What arrives. `ingress` takes this class too: it has but one.
pub const INGRESS: u32 = 0xffff_fff2;
/// What leaves (`clsact` only).
pub const EGRESS: u32 = 0xffff_fff3;
/// Before the class, in what a filter does.
const CLASS: &str = " class 0x";
const FILTER_HANDLE: u32 = 1;
/// ETH_P_ALL in network order.
const ALL_PROTOCOLS: u16 = 3_u16.to_be();

/// A filter as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilterSeen {
    pub priority: u16,
    /// What it does, in the words of [`bpf_name`], [`hook_name`], [`Skbedit`] and [`redirect_name`] where it is one of ours.
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
            "u32" => action(options).unwrap_or("u32".into()),
            "bpf" if attr(options, TCA_BPF_FLAGS).and_then(|f| u32_at(f, 0)) == Some(TCA_BPF_FLAG_ACT_DIRECT) => {
                let class = attr(options, TCA_BPF_CLASSID).and_then(|class| u32_at(class, 0));
                hook_name(&attr(options, TCA_BPF_NAME).map_or("bpf".into(), text), class)
            }
            other => other.into(),
        };
        Some(FilterSeen { priority, what })
    }
}

impl FilterSeen {
    /// What the program it runs finds as the packet's class.
    pub fn class(&self) -> Option<u32> {
        let (_, class) = self.what.split_once(CLASS)?;
        u32::from_str_radix(class, 16).ok()
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

/// What a filter of this kind does first.
fn action(options: &[u8]) -> Option<String> {
    let (_, action) = attrs(attr(options, TCA_U32_ACT)?).next()?;
    let options = attr(action, TCA_ACT_OPTIONS)?;
    match text(attr(action, TCA_ACT_KIND)?).as_str() {
        "skbedit" => skbedit(options).map(|edit| edit.to_string()),
        "mirred" => redirect(options),
        _ => None,
    }
}

fn redirect(options: &[u8]) -> Option<String> {
    let parameters = attr(options, TCA_MIRRED_PARMS)?;
    (u32_at(parameters, 20)? == TCA_EGRESS_REDIR).then_some(redirect_name(u32_at(parameters, 24)?))
}

/// What a filter does that leads to the link of this index.
pub fn redirect_name(ifindex: u32) -> String {
    format!("redirect to link {ifindex}")
}

fn skbedit(edit: &[u8]) -> Option<Skbedit> {
    let mask = attr(edit, TCA_SKBEDIT_MASK).and_then(|mask| u32_at(mask, 0));
    Some(Skbedit { mark: u32_at(attr(edit, TCA_SKBEDIT_MARK)?, 0)?, mask })
}

/// The name that the filter of our program bears in the kernel: what the program does.
pub fn bpf_name(value: u32, mask: u32) -> String {
    format!("bpf mark {value:#x}/{mask:#x}")
}

/// What a filter does that runs this program for packets of this class.
pub fn hook_name(program: &str, class: Option<u32>) -> String {
    class.map_or(program.into(), |class| format!("{program}{CLASS}{class:x}"))
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

fn filter(kind: u16, flags: u16, at: (u32, u32), handle: u32, priority: u16) -> Message {
    let info = (u32::from(priority) << 16) | u32::from(ALL_PROTOCOLS);
    Message::new(kind, flags, &tcmsg(at.0, handle, at.1, info))
}

/// Runs the program of this descriptor, and takes what it returns as the verdict.
pub fn add_bpf(ifindex: u32, priority: u16, program: RawFd, name: &str) -> Message {
    run(CREATE | EXCL, (ifindex, INGRESS), priority, program, name, None)
}

/// The same on either side of a link, in the place of an earlier one at once: no packet passes between them.
pub fn hook(ifindex: u32, side: u32, priority: u16, program: RawFd, name: &str, class: Option<u32>) -> Message {
    run(CREATE, (ifindex, side), priority, program, name, class)
}

fn run(flags: u16, at: (u32, u32), priority: u16, program: RawFd, name: &str, class: Option<u32>) -> Message {
    filter(libc::RTM_NEWTFILTER, flags, at, FILTER_HANDLE, priority).text(TCA_KIND, "bpf").nest(TCA_OPTIONS, |m| {
        m.u32(TCA_BPF_FD, program as u32)
            .text(TCA_BPF_NAME, name)
            .u32(TCA_BPF_FLAGS, TCA_BPF_FLAG_ACT_DIRECT)
            .maybe(class, |m, class| m.u32(TCA_BPF_CLASSID, class))
    })
}

/// Matches everything and edits it.
pub fn add_skbedit(ifindex: u32, priority: u16, value: u32, mask: u32) -> Message {
    // struct tc_skbedit: index, capabilities, action, two counters.
    let mut parameters = [0; 20];
    parameters[8..12].copy_from_slice(&TC_ACT_UNSPEC.to_ne_bytes());
    add_u32((ifindex, INGRESS), priority, "skbedit", |m| {
        m.attr(TCA_SKBEDIT_PARMS, &parameters).u32(TCA_SKBEDIT_MARK, value).u32(TCA_SKBEDIT_MASK, mask)
    })
}

/// Matches everything on one side of a link and leads it through another link.
pub fn add_redirect(ifindex: u32, side: u32, priority: u16, through: u32) -> Message {
    // struct tc_mirred: index, capabilities, action, two counters, what it does, where.
    let mut parameters = [0; 28];
    parameters[8..12].copy_from_slice(&TC_ACT_STOLEN.to_ne_bytes());
    parameters[20..24].copy_from_slice(&TCA_EGRESS_REDIR.to_ne_bytes());
    parameters[24..28].copy_from_slice(&through.to_ne_bytes());
    add_u32((ifindex, side), priority, "mirred", |m| m.attr(TCA_MIRRED_PARMS, &parameters))
}

/// A filter that matches everything and has one action.
fn add_u32(at: (u32, u32), priority: u16, kind: &str, action: impl FnOnce(Message) -> Message) -> Message {
    // struct tc_u32_sel with flags TC_U32_TERMINAL and one struct tc_u32_key of zeros: any word masked by 0 is 0.
    let mut selector = [0; 32];
    (selector[0], selector[2]) = (1, 1);
    filter(libc::RTM_NEWTFILTER, CREATE | EXCL, at, 0, priority).text(TCA_KIND, "u32").nest(TCA_OPTIONS, |m| {
        m.attr(TCA_U32_SEL, &selector)
            .nest(TCA_U32_ACT, |m| m.nest(1, |m| m.text(TCA_ACT_KIND, kind).nest(TCA_ACT_OPTIONS, action)))
    })
}

/// Removes whatever filters have this priority.
pub fn remove_filter(ifindex: u32, side: u32, priority: u16) -> Message {
    filter(libc::RTM_DELTFILTER, 0, (ifindex, side), 0, priority)
}

/// A qdisc as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QdiscSeen {
    pub ifindex: u32,
    pub handle: u32,
    pub kind: String,
    pub is_root: bool,
    pub tbf: Option<TbfSeen>,
}

/// The same words for what is wanted.
pub fn tbf_name(want: &Tbf) -> String {
    let Tbf { rate, burst, limit, .. } = want;
    format!("tbf {:x}: rate {rate} burst {burst} limit {limit}", ours::TBF_HANDLE >> 16)
}

/// What the kernel says of a token bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TbfSeen {
    rate: u64,
    /// How long the bucket takes to fill, in ticks.
    buffer: u32,
    limit: u32,
}

impl QdiscSeen {
    pub(super) fn parse(body: &[u8]) -> Option<QdiscSeen> {
        let attributes = body.get(20..)?;
        let kind = text(attr(attributes, TCA_KIND)?);
        let tbf = attr(attributes, TCA_OPTIONS).filter(|_| kind == "tbf").and_then(TbfSeen::parse);
        Some(QdiscSeen {
            ifindex: u32_at(body, 4)?,
            handle: u32_at(body, 8)?,
            is_root: u32_at(body, 12)? == ROOT,
            kind,
            tbf,
        })
    }

    pub(super) fn is(&self, want: &Tbf) -> bool {
        self.handle == ours::TBF_HANDLE && self.tbf.is_some_and(|seen| seen.is(want))
    }
}

impl fmt::Display for QdiscSeen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:x}:", self.kind, self.handle >> 16)?;
        let Some(tbf) = self.tbf else { return Ok(()) };
        let burst = u128::from(tbf.rate) * u128::from(tbf.buffer) * u128::from(TICK);
        let burst = (burst + u128::from(SECOND / 2)) / u128::from(SECOND);
        write!(f, " rate {}bit burst {burst} limit {}", u128::from(tbf.rate) * 8, tbf.limit)
    }
}

impl TbfSeen {
    fn parse(options: &[u8]) -> Option<TbfSeen> {
        let parameters = attr(options, TCA_TBF_PARMS)?;
        let rate = match attr(options, TCA_TBF_RATE64) {
            Some(rate) => u64::from_ne_bytes(rate.try_into().ok()?),
            None => u32_at(parameters, 8)?.into(),
        };
        Some(TbfSeen { rate, limit: u32_at(parameters, 24)?, buffer: u32_at(parameters, 28)? })
    }

    /// The kernel computes the ticks of a burst in its own way, and each kernel in another.
    fn is(self, want: &Tbf) -> bool {
        let is_buffer_of = |burst| {
            let ticks = ticks(burst, want);
            self.buffer.abs_diff(ticks) <= ticks / 1000 + 2
        };
        let is_rate = self.rate == want.rate.bytes() || self.rate == u64::from(narrow_rate(want));
        is_rate && self.limit == want.limit && (is_buffer_of(want.burst) || is_buffer_of(unsplit_burst(want)))
    }
}

/// Nanoseconds of a tick in which packet schedulers count, and of a second.
const TICK: u64 = 64;
const SECOND: u64 = 1_000_000_000;
/// More than any packet has that one of the sender's sockets may give to a link as one (64 KiB and its headers), and a multiple
/// of [`CELL`].
const LARGEST_PACKET: u32 = 132 << CELL_LOG;
/// Bytes that one entry of a table of rates stands for, as a power of two.
const CELL_LOG: u8 = 9;
const CELL: u32 = 1 << CELL_LOG;
const TABLE: u32 = 256;

/// How long so many bytes take.
fn ticks(bytes: u32, tbf: &Tbf) -> u32 {
    let ticks = u128::from(bytes) * u128::from(SECOND) / u128::from(tbf.rate.bytes()) / u128::from(TICK);
    u32::try_from(ticks).unwrap_or(u32::MAX)
}

/// Kernels before 3.13 know rates up to 34 Gbit/s.
fn narrow_rate(tbf: &Tbf) -> u32 {
    u32::try_from(tbf.rate.bytes()).unwrap_or(u32::MAX)
}

/// Kernels before 3.11 drop the packet of many segments that does not fit into the bucket, instead of splitting it.
fn unsplit_burst(tbf: &Tbf) -> u32 {
    tbf.burst.max(LARGEST_PACKET)
}

/// Puts the bucket in the place of whatever the root qdisc is, or changes ours.
///
/// Which of two bursts is taken tells the kernels apart by itself: since 3.14 `TCA_TBF_BURST` goes before the one in the
/// parameters, which is as large as those need that cannot split packets.
pub fn set_tbf(ifindex: u32, tbf: &Tbf) -> Message {
    // struct tc_tbf_qopt: two times struct tc_ratespec (cell_log, linklayer, overhead, cell_align, mpu, rate), then limit,
    // buffer and mtu.
    let mut parameters = [0; 36];
    // TC_LINKLAYER_ETHERNET: without it, the kernel would look at the table for signs of ATM.
    (parameters[0], parameters[1]) = (CELL_LOG, 1);
    parameters[8..12].copy_from_slice(&narrow_rate(tbf).to_ne_bytes());
    parameters[24..28].copy_from_slice(&tbf.limit.to_ne_bytes());
    parameters[28..32].copy_from_slice(&ticks(unsplit_burst(tbf), tbf).to_ne_bytes());
    let wide = Some(tbf.rate.bytes()).filter(|rate| *rate > u32::MAX.into());
    // Kernels before 3.14 take from this table the largest packet that fits into the bucket, and refuse to do without.
    let table: Vec<u8> = (1..=TABLE).flat_map(|n| ticks(n * CELL, tbf).to_ne_bytes()).collect();
    Message::new(libc::RTM_NEWQDISC, CREATE | REPLACE, &tcmsg(ifindex, ours::TBF_HANDLE, ROOT, 0))
        .text(TCA_KIND, "tbf")
        .nest(TCA_OPTIONS, |m| {
            m.attr(TCA_TBF_PARMS, &parameters)
                .maybe(wide, |m, rate| m.attr(TCA_TBF_RATE64, &rate.to_ne_bytes()))
                .u32(TCA_TBF_BURST, tbf.burst)
                .attr(TCA_TBF_RTAB, &table)
        })
}

/// Removes our bucket; where the root qdisc bears another handle, nothing.
pub fn remove_tbf(ifindex: u32) -> Message {
    Message::new(libc::RTM_DELQDISC, 0, &tcmsg(ifindex, ours::TBF_HANDLE, ROOT, 0))
}
