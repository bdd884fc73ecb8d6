//! Every rtnetlink noun in a fresh namespace: add, list, repeat, remove.
