#!/bin/sh
# Runs a command in User Mode Linux: Debian's other kernel, which is a process and needs no virtualisation.
#
#   tests/vm/uml.sh COMMAND [WORD...]
#
# The guest sees this machine's files; what it writes stays in its memory. The words may hold no spaces. The command's output
# comes back, and then a line with `exit` and its exit code. VM_SLOT=N chooses the CPU that it takes. Everything ends after
# VM_SECONDS (300) at the latest, and when whoever started this is killed: its processes are in a pid namespace of their own,
# its scratch files in a mount namespace.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
cache=$root/target/vm
kernel=$cache/uml

is_ready() {
    [ -d "$kernel" ] && command -v modprobe >/dev/null && command -v busybox >/dev/null
}

# Installs what is missing; the kernel is only unpacked.
fetch() {
    echo "getting user-mode-linux, kmod, busybox-static" >&2
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends kmod busybox-static >/dev/null
    # A draft may be left of somebody who was killed.
    rm -rf "$kernel" "$cache/draft"
    mkdir "$cache/draft"
    cd "$cache/draft"
    apt-get download -qq -o APT::Sandbox::User=root user-mode-linux
    dpkg -x user-mode-linux_*.deb uml
    mkdir uml/lib
    ln -s ../usr/lib/uml/modules uml/lib/modules
    mv uml "$kernel"
    rm -rf "$cache/draft"
}

mkdir -p "$cache/scratch"
if ! is_ready; then
    # Whoever comes second waits, and then finds it done.
    exec 9>"$cache/lock"
    flock 9
    is_ready || (fetch)
    exec 9>&-
fi

# The kernel and the process that stands for the guest's processes take turns: on one CPU that goes two to four times faster.
cpus=$(sed -n 's/^Cpus_allowed_list:[^0-9]*//p' /proc/self/status | tr ',' '\n' | while IFS=- read -r a b; do seq "$a" "${b:-$a}"; done)
cpu=$(echo "$cpus" | sed -n "$((${VM_SLOT:-$$} % $(echo "$cpus" | wc -l) + 1))p")
export VM_SECONDS="${VM_SECONDS:-300}" VM_KERNEL="$kernel" VM_SCRATCH="$cache/scratch" VM_INIT="$root/tests/vm/init.sh" VM_CPU="$cpu"
# shellcheck disable=SC2016
exec setpriv --pdeathsig KILL unshare --mount --pid --mount-proc --fork --kill-child sh -c '
    ulimit -c 0
    mount -t tmpfs -o mode=700 tmpfs "$VM_SCRATCH"
    export TMPDIR="$VM_SCRATCH" HOME="$VM_SCRATCH"
    exec timeout -s KILL "$VM_SECONDS" taskset -c "$VM_CPU" "$VM_KERNEL/usr/bin/linux.uml" mem=1G umid=vm uml_dir="$VM_SCRATCH" \
        root=98:0 rootfstype=hostfs rootflags=/ ro con=null con0=null,fd:1 console=tty0 quiet loglevel=3 panic=-1 \
        VM_KERNEL="$VM_KERNEL" init="$VM_INIT" -- "$@" </dev/null' sh "$@"
