#!/bin/sh
# Runs a command on another kernel than this machine's, in a guest that needs no virtualisation.
#
#   tests/vm/boot.sh uml|cloud COMMAND [WORD...]
#
# uml    Debian's User Mode Linux: a kernel that is a process; plain code at nearly native speed, one CPU, no nf_tables, no BTF
# cloud  Debian's kernel for virtual machines, in QEMU's software emulation: SMP, BTF, BPF JIT, nf_tables; computing is some 14 times slower
#
# The guest sees this machine's files; what it writes stays in its memory. The words may hold no spaces. The command's output
# comes back, and then a line with `exit` and its exit code. VM_SLOT=N chooses the CPU that User Mode Linux takes. Everything ends
# after VM_SECONDS (300) at the latest, and when whoever started this is killed: its processes are in a pid namespace of their own,
# its scratch files in a mount namespace.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
which=$1
shift
cache=$root/target/vm
kernel=$cache/$which

case $which in
uml) packages="kmod busybox-static ipvsadm" parts="/usr/bin/busybox /usr/sbin/ipvsadm" ;;
cloud) packages="kmod busybox-static cpio xz-utils qemu-system-x86" parts="/usr/bin/qemu-system-x86_64 /usr/lib/qemu/virtiofsd /usr/bin/busybox" ;;
*) echo "there is no kernel $which: say uml or cloud" >&2 && exit 2 ;;
esac

is_ready() {
    [ -d "$kernel" ] && command -v modprobe >/dev/null && ls $parts >/dev/null 2>&1
}

# Installs what is missing; the kernel is only unpacked.
fetch() {
    echo "getting $which, $packages" >&2
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    # shellcheck disable=SC2086
    apt-get install -y -qq --no-install-recommends $packages >/dev/null
    # A draft may be left of somebody who was killed.
    rm -rf "$kernel" "$cache/draft"
    mkdir "$cache/draft"
    cd "$cache/draft"
    "unpack_$which"
    mv "$which" "$kernel"
    rm -rf "$cache/draft"
}

download() {
    apt-get download -qq -o APT::Sandbox::User=root "$1"
    dpkg -x "$1"_*.deb "$which"
}

unpack_uml() {
    download user-mode-linux
    mkdir uml/lib
    ln -s ../usr/lib/uml/modules uml/lib/modules
}

unpack_cloud() {
    download "$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-.*\)/\1/p' | head -n 1)"
    depmod -b cloud "$(ls cloud/lib/modules)"
    mkdir -p first/bin first/proc first/dev first/root first/modules
    cp /usr/bin/busybox first/bin/busybox
    cp "$root/tests/vm/first.sh" first/init
    chmod +x first/init
    # In the order in which they must be loaded, each once.
    for module in virtio_pci virtiofs virtio_rng; do
        modprobe -d cloud -S "$(ls cloud/lib/modules)" --show-depends "$module"
    done | sed -n 's/^insmod \(.*\) *$/\1/p' | awk '!seen[$1]++ { print $1 }' | while read -r file; do
        name=$(basename "$file" .xz)
        case $file in *.xz) xz -dc "$file" ;; *) cat "$file" ;; esac >"first/modules/$name"
        echo "/modules/$name" >>first/modules/list
    done
    (cd first && find . | cpio -o -H newc --quiet) | gzip -1 >cloud/first.img
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
uml='
    exec timeout -s KILL "$VM_SECONDS" taskset -c "$VM_CPU" "$VM_KERNEL/usr/bin/linux.uml" mem=1G umid=vm uml_dir="$VM_SCRATCH" \
        root=98:0 rootfstype=hostfs rootflags=/ ro con=null con0=null,fd:1 console=tty0 quiet loglevel=3 panic=-1 \
        VM_KERNEL="$VM_KERNEL" init="$VM_INIT" -- "$@" </dev/null'
# shellcheck disable=SC2016
cloud='
    files=$VM_SCRATCH/files
    /usr/lib/qemu/virtiofsd --socket-path="$files" -o source=/ -o cache=always -o sandbox=chroot >"$VM_SCRATCH/log" 2>&1 &
    for _ in $(seq 100); do [ -S "$files" ] && break; sleep 0.1; done
    [ -S "$files" ] || cat "$VM_SCRATCH/log" >&2
    exec timeout -s KILL "$VM_SECONDS" qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot -M q35 -accel tcg,thread=multi \
        -cpu qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+cx16 -smp 2 -m 1G -serial stdio -device virtio-rng-pci \
        -object memory-backend-memfd,id=memory,size=1G,share=on -numa node,memdev=memory \
        -chardev socket,id=files,path="$files" -device vhost-user-fs-pci,chardev=files,tag=files \
        -kernel "$VM_KERNEL"/boot/vmlinuz-* -initrd "$VM_KERNEL/first.img" \
        -append "console=ttyS0 mitigations=off tsc=reliable no_timer_check quiet loglevel=3 panic=-1 VM_KERNEL=$VM_KERNEL VM_INIT=$VM_INIT -- $*" </dev/null'
eval "boot=\$$which"
# shellcheck disable=SC2154
exec setpriv --pdeathsig KILL unshare --mount --pid --mount-proc --fork --kill-child sh -c '
    ulimit -c 0
    mount -t tmpfs -o mode=700 tmpfs "$VM_SCRATCH"
    export TMPDIR="$VM_SCRATCH" HOME="$VM_SCRATCH"
'"$boot" sh "$@"
