//! plan, apply, traffic, check, undo, nothing left.
