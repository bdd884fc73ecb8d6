//! The cloud client against servers that lie, truncate and hang.
