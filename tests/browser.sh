#!/bin/sh
# Opens a page in Chromium without a screen, and prints what it has become; what its console says goes to stderr.
# Installs Chromium first where it is missing. With --install that is all.
set -eu

chromium=/usr/bin/chromium
if [ ! -x "$chromium" ]; then
    echo "installing chromium" >&2
    export DEBIAN_FRONTEND=noninteractive
    # Another test may be at it.
    apt-get -o DPkg::Lock::Timeout=120 update -qq >&2
    apt-get -o DPkg::Lock::Timeout=120 install -y -qq --no-install-recommends chromium >/dev/null
fi
[ "$1" != --install ] || exit 0

profile=$(mktemp -d)
trap 'rm -rf "$profile"' EXIT
timeout -s KILL 120 "$chromium" --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking \
    --disable-component-update --disable-sync --user-data-dir="$profile" --enable-logging=stderr --virtual-time-budget=1000 \
    --dump-dom "file://$(realpath "$1")"
