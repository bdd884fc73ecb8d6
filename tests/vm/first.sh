#!/bin/busybox sh
# The first process of the guest that boot.sh starts in QEMU: mounts the machine's files, and hands over to init.sh.
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
while read -r module; do insmod "$module"; done </modules/list
mount -t virtiofs -o ro files /root || { echo "first: the machine's files cannot be mounted" && poweroff -f; }
mount --move /dev /root/dev
umount /proc
exec switch_root -c /dev/console /root "$VM_INIT" "$@"
