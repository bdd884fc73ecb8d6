#!/bin/sh
# The first process of the guest that boot.sh starts: gives it a root of its own over the machine's files, and runs its arguments.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 HOME=/root

end() {
    echo "exit $1"
    busybox poweroff -f
    sleep 10
}

must() {
    "$@" || { echo "init: failed: $*"; end 125; }
}

must mount -t proc proc /proc
must modprobe -d "$VM_KERNEL" overlay
must mount -t tmpfs tmpfs /media
must mkdir /media/upper /media/work /media/root
must mount -t overlay -o lowerdir=/,upperdir=/media/upper,workdir=/media/work overlay /media/root
must cd /media/root
must mkdir -p .host usr/lib/modules
# Where the kernel itself looks for modules when somebody asks for what they bring.
must mount --bind "$VM_KERNEL/lib/modules" usr/lib/modules
must mount -t proc proc proc
must mount -t sysfs sysfs sys
must mount -t devtmpfs devtmpfs dev
must mount -t cgroup2 cgroup2 sys/fs/cgroup
must mount -t tmpfs -o mode=755 tmpfs run
must pivot_root . .host
must cd "${0%/tests/vm/init.sh}"
must umount -l /.host
# The terminal adds nothing to what the command says.
exec </dev/null >/dev/console 2>&1
must busybox stty -opost </dev/console
must modprobe ipv6
# A guest has little memory, and by that room for few connections.
must modprobe nf_conntrack hashsize=262144
must ip link set lo up
# A kernel without nf_tables: iptables as it was before.
if nft add table inet trial 2>/dev/null; then
    nft delete table inet trial
else
    for name in iptables ip6tables; do
        for verb in "" -save -restore; do
            ln -sf xtables-legacy-multi "/usr/sbin/$name$verb"
        done
    done
fi
echo "kernel $(uname -r), up after $(cut -d' ' -f1 /proc/uptime) s"
"$@"
end $?
