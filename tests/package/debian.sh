#!/bin/sh
# Prints where a Debian root with systemd is, as packages make it: built once, in target, out of the archive that apt uses here.
set -eu
cd "$(dirname "$0")/../.."
root=$PWD/target/debian
packages="dpkg apt bash dash coreutils systemd systemd-sysv dbus udev iproute2 iptables kmod procps util-linux mount init-system-helpers
 diffutils findutils grep sed tar gzip libc-bin base-files base-passwd passwd mawk debianutils hostname login"
mkdir -p target
# Whoever comes second waits, and then finds it done.
exec 9>target/debian.lock
flock 9
if [ ! -d "$root" ]; then
    echo "making a Debian root" >&2
    rm -rf "$root.draft"
    sources=$(find /etc/apt/sources.list.d -name '*.sources' 2>/dev/null)
    # shellcheck disable=SC1091,SC2086
    cat ${sources:-/etc/apt/sources.list} | mmdebstrap --quiet --variant=custom --mode=root --format=directory \
        --include="$(echo $packages | tr ' ' ',')" --aptopt='APT::Sandbox::User "root"' \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        "$(. /etc/os-release && echo "$VERSION_CODENAME")" "$root.draft" - >&2
    mv "$root.draft" "$root"
fi
echo "$root"
