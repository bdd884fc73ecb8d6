//! Correctness under fire: kill -9, lost and repeated replies, throttling.
