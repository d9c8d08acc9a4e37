#!/bin/busybox sh
# The first and nearly only program of the lab's Linux guest: its address, its power button, its agent.
/bin/busybox mkdir -p /proc /sys /dev /tmp /run /var/run /etc/acpi/PWRF
/bin/busybox --install -s /bin
export PATH=/bin:/sbin HOME=/
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do insmod "/modules/$module"; done

# Snooze writes the address that it leased into the card's: 54:56:0a:40:00:c1 is 10.64.0.193
read -r card </sys/class/net/eth0/address
IFS=: read -r _ _ a b c d <<X
$card
X
address=$(printf '%d.%d.%d.%d' "0x$a" "0x$b" "0x$c" "0x$d")
ip link set lo up
ip link set eth0 up
ip addr add "$address/24" brd + dev eth0
hostname linux

# what the power button does; PWRF is its name in ACPI
cat >/etc/acpi/PWRF/00000080 <<'X'
#!/bin/sh
echo "power button: off" >/dev/console
poweroff -f
X
chmod +x /etc/acpi/PWRF/00000080
acpid -c /etc/acpi -l /tmp/acpid.log

# shutdown is left to the power button
for port in /sys/class/virtio-ports/*; do
    [ "$(cat "$port/name" 2>/dev/null)" = org.qemu.guest_agent.0 ] || continue
    qemu-ga -d -m virtio-serial -p "/dev/${port##*/}" -b guest-shutdown -f /run/qemu-ga.pid -t /run
done
echo "linux ready: $address, boot $(cut -c-8 /proc/sys/kernel/random/boot_id), up $(cut -d' ' -f1 /proc/uptime) s" >/dev/console
while :; do setsid cttyhack sh; done
