#!/bin/sh
# Prints where promtool(1) is: Prometheus's own checker, out of Debian's package, which nobody installs for it.
set -eu
cd "$(dirname "$0")/.."
tool=$PWD/target/promtool
mkdir -p target
# Whoever comes second waits, and then finds it done.
exec 9>target/promtool.lock
flock 9
if [ ! -x "$tool" ]; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    (cd "$work" && { apt-get download -qq prometheus || { apt-get update -qq && apt-get download -qq prometheus; }; } && dpkg-deb -x prometheus_*.deb .) >&2
    mv "$work/usr/bin/promtool" "$tool"
fi
echo "$tool"
