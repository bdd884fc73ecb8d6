//! The node daemon: joins every mind and hand; the only room that awaits.

mod ledger;
