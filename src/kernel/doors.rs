//! What the kernel and programs around it say, for the fuzz targets of `tests/fuzz`: they bring bytes that nobody has said yet.

use super::addr::AddrSeen;
use super::message::answers;
use super::neigh::NeighSeen;
use super::tc::{FilterSeen, QdiscSeen};
use super::{LinkSeen, RouteSeen, bpf, events, felix, ipset, rule, tables};
use crate::ours;
use crate::verdict::Event;

/// A datagram of notifications or of a dump.
pub fn datagram(bytes: &[u8]) {
    events::happenings(bytes).for_each(drop);
    let mut sets = Vec::new();
    for answer in answers(bytes) {
        body(answer.body);
        ipset::see(&mut sets, answer.body, "");
    }
    drop(sets);
}

/// One thing of a dump, of whatever kind.
pub fn body(bytes: &[u8]) {
    drop(LinkSeen::parse(bytes));
    drop(AddrSeen::parse(bytes));
    drop(RouteSeen::parse(bytes));
    drop(NeighSeen::parse(bytes));
    drop(QdiscSeen::parse(bytes));
    FilterSeen::parse(bytes).map(|filter| filter.class());
    drop(rule::parse_with_to(bytes));
}

/// What iptables-save(8) prints, and the alias of a link.
pub fn text(text: &str) {
    drop(tables::removal(text));
    drop(felix::removal(text));
    drop(ours::attachment(text));
}

/// What a program has written into a ring, and the ring itself.
pub fn event(bytes: &[u8]) {
    Event::from_bytes(bytes);
    bpf::heard(bytes, 0, &mut |data| _ = Event::from_bytes(data));
}
