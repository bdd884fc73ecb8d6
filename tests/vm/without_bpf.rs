//! A kernel without eBPF: a seccomp filter gives bpf(2) the answer that such a kernel gives.

use std::collections::BTreeMap;
use std::thread;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    apply_filter,
};
use terway::kernel::Kernel;
use terway::rpc::Marker;

use crate::sim::ns::Ns;

/// Runs the closure on a thread to which, and to all threads and processes that come of it, bpf(2) is refused like this.
pub fn run<T: Send>(errno: i32, f: impl FnOnce() -> T + Send) -> T {
    run_without(&[], errno, f)
}

/// The same for some of its commands (`BPF_…`) only.
pub fn run_without<T: Send>(commands: &[u64], errno: i32, f: impl FnOnce() -> T + Send) -> T {
    run_refused((libc::SYS_bpf, 0), commands, errno, f)
}

/// The same for another system call, where its argument of this number is one of these; whatever it is, if there are none.
pub fn run_refused<T: Send>(call: (i64, u8), values: &[u64], errno: i32, f: impl FnOnce() -> T + Send) -> T {
    let filter = refusal(call, values, errno);
    let inside = || {
        apply_filter(&filter).expect("install a seccomp filter");
        f()
    };
    match thread::scope(|scope| scope.spawn(inside).join()) {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

fn refusal((call, argument): (i64, u8), values: &[u64], errno: i32) -> BpfProgram {
    let is = |value: &u64| SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, *value);
    let rules = values.iter().map(|value| is(value).and_then(|is| SeccompRule::new(vec![is])).expect("a rule"));
    let calls = BTreeMap::from([(call, rules.collect())]);
    let arch = std::env::consts::ARCH.try_into().expect("seccompiler knows this machine");
    let filter = SeccompFilter::new(calls, SeccompAction::Allow, SeccompAction::Errno(errno as u32), arch);
    filter.and_then(TryInto::try_into).expect("a filter of one call")
}

/// What tc(8) finds out, which shares no code with us.
fn has_skbedit() -> bool {
    let trial =
        "tc qdisc add dev lo ingress && tc filter add dev lo parent ffff: u32 match u32 0 0 action skbedit mark 1";
    Ns::new("trial").try_sh(trial)
}

#[test]
fn skbedit_is_chosen_where_the_kernel_has_it_and_rules_where_not() {
    const FILTER: &str = "tc filter replace dev lo ingress priority 2049";
    let marker = if has_skbedit() { Marker::Skbedit } else { Marker::Rule };
    println!("here it must be {marker:?}");
    for (errno, words) in [(libc::ENOSYS, "function not implemented"), (libc::EPERM, "operation not permitted")] {
        let mut reason = format!("no eBPF: {FILTER} bpf direct-action mark 0x20/0x7e0: load an eBPF program: {words}");
        if marker == Marker::Rule {
            reason.push_str("; no skbedit: ");
            reason.push_str(FILTER);
            reason.push_str(" u32 match u32 0 0 action skbedit mark 0x20/0x7e0: no such file or directory");
        }
        let (found, why) = run(errno, || Kernel::host().unwrap().marker());
        assert_eq!(found, marker);
        // The kernel may add words of its own.
        assert_eq!(why.split(" (").next(), Some(reason.as_str()));
    }
}
