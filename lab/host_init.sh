#!/bin/bash
# The first process of a lab host: host_init.sh NAME FOLDER. When it dies, all of the host dies.
name=$1 folder=$2
hostname "$name"
umount -l /sys/fs/cgroup 2>/dev/null
mount --bind "$folder/run" /run
mount --bind "$folder/etc/hosts" /etc/hosts
[ -e /etc/machine-id ] && mount --bind "$folder/etc/machine-id" /etc/machine-id
mount --bind "$folder/etc/libvirt" /etc/libvirt
for kind in lib cache log; do mount --bind "$folder/var/$kind/libvirt" "/var/$kind/libvirt"; done
[ -e /sys/power/state ] && mount --bind "$folder/sleep-states" /sys/power/state
[ -e "$folder/no-libvirtd" ] || libvirtd --listen &
trap 'exit 0' RTMIN+4    # "power off", as systemd understands it
for service in "$folder"/boot/*; do [ -x "$service" ] && "$service" & done
echo ready >"$folder/state"
while :; do wait -n || sleep 1; done    # adopt and bury orphans, as a first process must
