#!/bin/sh
# Installs what building and testing take on a bare Debian 12, with the word `aarch64` also what cross-building for that takes. Does nothing,
# quickly, when it is all there.
set -eu

# package:something it brings
need="gcc:/usr/bin/gcc g++:/usr/bin/g++ libc6-dev:/usr/include/stdio.h iproute2:/usr/sbin/ip nftables:/usr/sbin/nft iptables:/usr/sbin/iptables ipset:/usr/sbin/ipset
 iputils-ping:/usr/bin/ping procps:/usr/bin/ps busybox-static:/usr/bin/busybox containerd:/usr/bin/containerd runc:/usr/sbin/runc
 clang-19:/usr/bin/clang-19 containernetworking-plugins:/usr/lib/cni/ptp python3-venv:/usr/share/doc/python3-venv strace:/usr/bin/strace
 rpm:/usr/bin/rpmbuild help2man:/usr/bin/help2man mmdebstrap:/usr/bin/mmdebstrap systemd-container:/usr/bin/systemd-nspawn"
targets=x86_64-unknown-linux-musl
if [ "${1:-}" = aarch64 ]; then
    need="$need gcc-aarch64-linux-gnu:/usr/bin/aarch64-linux-gnu-gcc libc6-dev-arm64-cross:/usr/aarch64-linux-gnu/include/stdio.h"
    targets="$targets aarch64-unknown-linux-musl"
fi
missing=""
for item in $need; do
    [ -e "${item#*:}" ] || [ -e "/bin/$(basename "${item#*:}")" ] || missing="$missing ${item%%:*}"
done
if [ -n "$missing" ]; then
    echo "installing$missing"
    export DEBIAN_FRONTEND=noninteractive
    # The machine's own upgrade may be at it.
    apt-get -o DPkg::Lock::Timeout=120 update -qq
    # shellcheck disable=SC2086
    apt-get -o DPkg::Lock::Timeout=120 install -y -qq --no-install-recommends $missing >/dev/null
fi

if ! command -v cargo >/dev/null; then
    echo "there is no cargo here: install the Rust toolchain manager rustup, then say make again" >&2
    exit 1
fi
for target in $targets; do
    if command -v rustup >/dev/null && ! rustup target list --installed | grep -qx "$target"; then
        echo "installing the Rust target $target"
        rustup target add "$target"
    fi
done
