"""A libvirt template as clients of Snooze sent it in 2012, for the kvm of that time."""

SEED_TEMPLATE = (
    '<?xml version="1.0" encoding="UTF-8" standalone="no"?><domain type="kvm">'
    " <name>debian1</name> <uuid>0f476e56-67ea-11e1-858e-00216a972a36</uuid>"
    " <memory>200000</memory> <currentMemory>200000</currentMemory> <vcpu>1</vcpu>"
    ' <os> <type arch="x86_64" machine="pc-0.12">hvm</type> <boot dev="hd"/> </os>'
    ' <features> <acpi/> <apic/> <pae/> </features> <clock offset="utc"/>'
    " <on_poweroff>destroy</on_poweroff> <on_reboot>restart</on_reboot>"
    " <on_crash>restart</on_crash> <devices> <emulator>/usr/bin/kvm</emulator>"
    ' <disk device="disk" type="file"> <driver name="qemu" type="qcow2"/>'
    ' <source file="path_to_disk_image"/> <target bus="virtio" dev="vda"/>'
    ' <address bus="0x00" domain="0x0000" function="0x0" slot="0x05" type="pci"/>'
    ' </disk> <controller index="0" type="ide">'
    ' <address bus="0x00" domain="0x0000" function="0x1" slot="0x01" type="pci"/>'
    ' </controller> <interface type="bridge"> <mac address="52:54:01:84:26:2c"/>'
    ' <source bridge="virbr0"/> </interface> <serial type="pty"> <target port="0"/>'
    ' </serial> <console type="pty"> <target port="0" type="serial"/> </console>'
    ' <graphics autoport="yes" listen="0.0.0.0" port="-1" type="vnc"/>'
    ' <input bus="usb" type="tablet"/> <input bus="ps2" type="mouse"/>'
    ' <memballoon model="virtio">'
    ' <address bus="0x00" domain="0x0000" function="0x0" slot="0x06" type="pci"/>'
    " </memballoon> </devices> </domain>"
)
