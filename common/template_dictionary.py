"""What libvirt templates have in common, so that a record need not repeat it.

zlib finds what a template shares with this text and stores only where it stands. The text must
never change: a record that was written with it cannot be read without it. A better one would be
another dictionary, of another schema of ``records.py``. What is likeliest stands last, as zlib
reaches back from the end with the shortest codes.

Source: RFC 1950, section 2.2, preset dictionary; the words are those of libvirt's domain XML.
"""

from typing import Final

_WORDS: Final = """<vcpupin vcpu="0" cpuset="0-3"/><emulatorpin cpuset="<cputune><shares>1024
</shares><numatune><memory mode="strict" nodeset="0"/></numatune><blkiotune>
<weight>500</weight></blkiotune>
<memoryBacking><hugepages/><locked/></memoryBacking><memtune><hard_limit unit="KiB">
<secret type="ceph" uuid="<auth username="libvirt"><source protocol="rbd" name="
<source protocol="iscsi" name="iqn.<source protocol="nbd" name="<host name="10.0.0.1" port="10809"/>
<filesystem type="mount" accessmode="passthrough"><source dir="/export/"/><target dir="/
<hostdev mode="subsystem" type="pci" managed="yes"><source><address domain="0x0000" bus="0x06"
<metadata xmlns:libosinfo="http://libosinfo.org/xmlns/libvirt/domain/1.0"><libosinfo:libosinfo>
<libosinfo:os id="http://debian.org/debian/12"/></libosinfo:libosinfo></metadata>
<title><description><loader readonly="yes" type="pflash">/usr/share/OVMF/OVMF_CODE.fd</loader>
<nvram template="/usr/share/OVMF/OVMF_VARS.fd">/var/lib/libvirt/qemu/nvram/</nvram><smbios mode="
<os firmware="efi"><type arch="aarch64" machine="virt">hvm</type><bootmenu enable="no"/>
<kernel>/boot/vmlinuz</kernel><initrd>/boot/initrd.img</initrd><cmdline>root=/dev/vda1 ro
console=ttyS0 quiet</cmdline><cpu mode="host-passthrough" check="none" migratable="on"/>
<cpu mode="custom" match="exact" check="partial"><model fallback="allow">qemu64</model>
<cpu mode="host-model"><topology sockets="1" dies="1" cores="2" threads="1"/><feature policy="
<timer name="rtc" tickpolicy="catchup"/><timer name="pit" tickpolicy="delay"/>
<timer name="hpet" present="no"/></clock><pm><suspend-to-mem enabled="no"/>
<suspend-to-disk enabled="no"/></pm><iotune><total_bytes_sec><total_iops_sec>
<bandwidth><inbound average="1000" peak="5000" burst="1024"/><outbound average="1000"/></bandwidth>
<interface type="network"><source network="default" portgroup="vlan-10"/><vlan><tag id="10"/></vlan>
<virtualport type="openvswitch"/><filterref filter="clean-traffic"><parameter name="IP" value="
<interface type="direct"><source dev="eth0" mode="bridge"/><interface type="ethernet">
<controller type="usb" index="0" model="qemu-xhci" ports="15"/><controller type="sata" index="0"/>
<controller type="pci" index="0" model="pcie-root"/><controller type="virtio-serial" index="0"/>
<controller type="scsi" index="0" model="virtio-scsi"/><controller index="0" type="ide">
<channel type="unix"><source mode="bind"/><target type="virtio" name="org.qemu.guest_agent.0"/>
</channel><channel type="spicevmc"><target type="virtio" name="com.redhat.spice.0"/></channel>
<rng model="virtio"><backend model="random">/dev/urandom</backend></rng><watchdog model="i6300esb"
 action="reset"/><video><model type="qxl" ram="65536" vram="65536" vgamem="16384" heads="1"
 primary="yes"/></video><video><model type="cirrus" vram="9216" heads="1"/></video><sound model="
<graphics type="spice" autoport="yes"><listen type="address"/><image compression="off"/></graphics>
<graphics type="vnc" port="-1" autoport="yes" listen="0.0.0.0"><listen type="address"
 address="0.0.0.0"/></graphics><graphics autoport="yes" listen="127.0.0.1" port="-1" type="vnc"/>
<input type="tablet" bus="usb"/><input type="mouse" bus="ps2"/><input type="keyboard" bus="ps2"/>
<input bus="usb" type="tablet"/><input bus="ps2" type="mouse"/><serial type="file"><source path="
<address bus="0x00" domain="0x0000" function="0x1" slot="0x05" type="pci"/>
<address type="pci" domain="0x0000" bus="0x00" slot="0x03" function="0x0"/>
<address type="drive" controller="0" bus="0" target="0" unit="0"/><disk type="block" device="disk">
<driver name="qemu" type="raw" cache="none" io="native" discard="unmap"/><source dev="/dev/
<disk type="network" device="disk"><disk type="file" device="cdrom"><source file="/var/lib/libvirt/
images/debian.iso"/><target dev="sda" bus="sata"/><readonly/></disk><backingStore/><serial>
<disk device="disk" type="file"> <driver name="qemu" type="qcow2"/> <source file="/var/lib/snooze/
<target bus="virtio" dev="vda"/><target dev="hda" bus="ide"/><boot order="1"/><alias name="
<domain type='kvm'><name></name><uuid></uuid><memory unit='KiB'>1048576</memory><currentMemory
 unit='KiB'>1048576</currentMemory><vcpu placement='static'>1</vcpu><os><type arch='x86_64'
 machine='pc-q35-7.2'>hvm</type><boot dev='hd'/></os><features><acpi/><apic/><pae/></features>
<clock offset='utc'/><on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot>
<on_crash>destroy</on_crash><devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/var/lib/libvirt/
images/'/><target dev='vda' bus='virtio'/></disk><interface type='bridge'><mac address='52:54:00:
<source bridge='br0'/><model type='virtio'/></interface><serial type='pty'><target port='0'/>
</serial><console type='pty'><target type='serial' port='0'/></console><graphics type='vnc'
 port='-1' autoport='yes' listen='127.0.0.1'/><memballoon model='virtio'/></devices></domain>
<?xml version="1.0" encoding="UTF-8" standalone="no"?><domain type="qemu"><domain type="test">
<domain type="kvm"><name>debian</name><uuid>00000000-0000-0000-0000-000000000000</uuid>
<memory unit="MiB">2048</memory><currentMemory unit="MiB">2048</currentMemory><memory
 unit="KiB">2097152</memory><memory>200000</memory><currentMemory>200000</currentMemory>
<vcpu>1</vcpu><os><type arch="x86_64" machine="pc">hvm</type><boot dev="hd"/></os><features><acpi/>
<apic/><pae/></features><clock offset="utc"/><on_poweroff>destroy</on_poweroff><on_reboot>restart
</on_reboot><on_crash>restart</on_crash><devices><emulator>/usr/bin/kvm</emulator>
<disk type="file" device="disk"><driver name="qemu" type="qcow2" cache="none"/><source
 file="/var/lib/snooze/images/"/><target dev="vda" bus="virtio"/></disk><interface type="bridge">
<mac address="52:54:00:"/><source bridge="virbr0"/><model type="virtio"/></interface>
<serial type="pty"><target port="0"/></serial><console type="pty"><target port="0" type="serial"/>
</console><graphics type="vnc" port="-1" autoport="yes"/><memballoon model="virtio"/></devices>
</domain>"""

TEMPLATE_DICTIONARY: Final = _WORDS.encode()
