//! The token bucket that holds one direction of a pod to its limit in every second, the first included.

use crate::plan::{Object, Tbf};
use crate::rate::Rate;

/// What passes at once after a pause comes on top of the first second's share: a hundredth of it at most. A timer that is late
/// by less loses nothing.
const PAUSE_MS: u64 = 10;
/// At low rates the one frame that must fit is more than that already; this on top makes up for late timers.
const LATE_MS: u64 = 4;
/// How long a packet may wait for its turn, as with the old Terway.
const WAIT_MS: u64 = 25;
/// Ethernet's header and a VLAN tag.
const HEADER: u64 = 18;
/// A sender's first window (RFC 6928 has ten segments) less what passes at once: where fewer may wait, TCP starts with losses,
/// and where many more may, with seconds of delay.
const FRAMES: u64 = 8;

pub fn bucket(link: &str, rate: Rate, mtu: u32) -> Object {
    let in_ms = |ms: u64| rate.bytes().saturating_mul(ms) / 1000;
    let frame = u64::from(mtu) + HEADER;
    let burst = (frame + in_ms(LATE_MS)).max(in_ms(PAUSE_MS));
    let limit = burst + in_ms(WAIT_MS).max(FRAMES * frame);
    let bytes = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    Object::Tbf(Tbf { link: link.into(), rate, burst: bytes(burst), limit: bytes(limit) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(bits: u64) -> (u32, u32) {
        match bucket("eth0", Rate::from_bits(bits).unwrap(), 1500) {
            Object::Tbf(tbf) => (tbf.burst, tbf.limit),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn a_bucket_takes_a_frame_and_of_a_second_two_hundredths_at_most() {
        assert_eq!(sizes(1_000_000), (2018, 14162));
        assert_eq!(sizes(2_000_000), (2518, 14662));
        assert_eq!(sizes(10_000_000), (12_500, 43_750));
        assert_eq!(sizes(1_000_000_000), (1_250_000, 4_375_000));
        assert_eq!(sizes(5_000_000_000), (6_250_000, 21_875_000));
        for bits in (1_000_000..6_000_000_000).step_by(7_654_321) {
            let (burst, limit) = sizes(bits);
            assert!(burst >= 1518 && u64::from(burst) * 8 * 1000 <= bits * 17, "{bits}: {burst}");
            assert!(limit - burst >= 8 * 1518, "{bits}: {limit}");
        }
    }

    #[test]
    fn what_is_slower_or_faster_than_any_link_has_a_bucket_too() {
        assert_eq!(sizes(1000), (1518, 13662));
        assert_eq!(sizes(u64::MAX), (u32::MAX, u32::MAX));
    }
}
