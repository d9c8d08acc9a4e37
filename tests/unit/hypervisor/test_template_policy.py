"""Judging templates: every way to the host is closed, and opened by name only."""

import pytest

from snooze.common.domain_template import compose, read_template
from snooze.common.template_policy import (
    MEANINGS,
    Danger,
    TemplatePolicy,
    emulator_is_allowed,
    judge,
    path_is_inside,
)


def template_with(inside: str, where: str = "devices") -> str:
    return (
        "<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>"
        "<name>a</name><memory>1024</memory>"
        + (f"<devices>{inside}</devices>" if where == "devices" else inside)
        + "</domain>"
    )


DISK = "<disk type='file'><source file='{}'/></disk>"
DANGEROUS = [
    ("<hostdev mode='subsystem' type='pci'/>", Danger.HOST_DEVICES),
    (
        "<hostdev mode='subsystem' type='usb'><source><vendor id='1'/></source></hostdev>",
        Danger.HOST_DEVICES,
    ),
    ("<filesystem type='mount'><source dir='/'/><target dir='x'/></filesystem>", Danger.HOST_FILES),
    (DISK.format("/etc/shadow"), Danger.HOST_FILES),
    (DISK.format("/var/lib/libvirt/images/../../../../etc/shadow"), Danger.HOST_FILES),
    (DISK.format("/var/lib/libvirt/images-of-others/x"), Danger.HOST_FILES),
    (DISK.format("../secret.raw"), Danger.HOST_FILES),
    (DISK.format("//etc/shadow"), Danger.HOST_FILES),
    (
        "<disk type='file'><backingStore type='file'><source file='/etc/shadow'/></backingStore>"
        "</disk>",
        Danger.HOST_FILES,
    ),
    (
        "<disk type='file'><mirror type='file'><source file='/etc/x'/></mirror></disk>",
        Danger.HOST_FILES,
    ),
    ("<disk type='block'><source dev='/dev/sda'/></disk>", Danger.BLOCK_DEVICES),
    ("<disk type='block' device='lun'><source dev='sda'/></disk>", Danger.BLOCK_DEVICES),
    ("<disk type='dir'><source dir='/home'/></disk>", Danger.BLOCK_DEVICES),
    ("<disk type='nvme'><source type='pci'/></disk>", Danger.BLOCK_DEVICES),
    ("<disk type='vhostuser'><source type='unix' path='/x'/></disk>", Danger.BLOCK_DEVICES),
    ("<disk type='network'><source protocol='http' name='x'/></disk>", Danger.NETWORK_DISKS),
    ("<disk type='file'><backingStore type='network'/></disk>", Danger.NETWORK_DISKS),
    ("<disk type='network'><auth username='x'><secret type='ceph'/></auth></disk>", Danger.SECRETS),
    (
        "<disk type='file'><encryption><secret type='passphrase'/></encryption></disk>",
        Danger.SECRETS,
    ),
    (
        "<disk type='block'><source dev='/dev/x'><reservations managed='yes'/></source></disk>",
        Danger.HOST_CHANNELS,
    ),
    ("<interface type='hostdev'/>", Danger.HOST_INTERFACES),
    (
        "<interface type='direct'><source dev='eth0' mode='passthrough'/></interface>",
        Danger.HOST_INTERFACES,
    ),
    ("<interface type='ethernet'/>", Danger.HOST_INTERFACES),
    ("<interface type='user'/>", Danger.HOST_INTERFACES),
    (
        "<interface type='vhostuser'><source type='unix' path='/tmp/s'/></interface>",
        Danger.HOST_INTERFACES,
    ),
    ("<interface type='bridge'><script path='/etc/evil'/></interface>", Danger.HOST_FILES),
    ("<interface type='bridge'><script path='evil'/></interface>", Danger.HOST_FILES),
    ("<interface type='bridge'><backend tap='/dev/net/tun'/></interface>", Danger.HOST_FILES),
    ("<serial type='file'><source path='/etc/cron.d/x'/></serial>", Danger.HOST_CHANNELS),
    ("<serial type='pipe'><source path='/tmp/p'/></serial>", Danger.HOST_CHANNELS),
    ("<serial type='dev'><source path='/dev/ttyS0'/></serial>", Danger.HOST_CHANNELS),
    (
        "<serial type='tcp'><source mode='connect' host='10.0.0.1' service='22'/></serial>",
        Danger.HOST_CHANNELS,
    ),
    ("<serial type='udp'/>", Danger.HOST_CHANNELS),
    ("<serial type='stdio'/>", Danger.HOST_CHANNELS),
    ("<console type='unix'><source mode='bind' path='/run/x'/></console>", Danger.HOST_CHANNELS),
    (
        "<channel type='unix'><source path='/run/libvirt/libvirt-sock'/></channel>",
        Danger.HOST_CHANNELS,
    ),
    ("<parallel type='dev'><source path='/dev/parport0'/></parallel>", Danger.HOST_CHANNELS),
    ("<redirdev bus='usb' type='tcp'/>", Danger.HOST_CHANNELS),
    ("<serial type='pty'><log file='/etc/x'/></serial>", Danger.HOST_FILES),
    ("<serial type='pty'><log file='x'/></serial>", Danger.HOST_FILES),
    ("<smartcard mode='host'/>", Danger.HOST_DEVICES),
    (
        "<tpm><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>",
        Danger.HOST_DEVICES,
    ),
    ("<tpm><backend type='external'/></tpm>", Danger.HOST_DEVICES),
    (
        "<rng model='virtio'><backend model='random'>/etc/shadow</backend></rng>",
        Danger.HOST_CHANNELS,
    ),
    ("<rng model='virtio'><backend model='egd' type='tcp'/></rng>", Danger.HOST_CHANNELS),
    (
        "<input type='passthrough' bus='virtio'><source evdev='/dev/input/event1'/></input>",
        Danger.HOST_DEVICES,
    ),
    ("<input type='evdev'><source dev='/dev/input/event1'/></input>", Danger.HOST_DEVICES),
    ("<shmem name='other'/>", Danger.SHARED_MEMORY),
    ("<lease><lockspace>x</lockspace></lease>", Danger.HOST_FILES),
    ("<graphics type='vnc' socket='/tmp/x'/>", Danger.HOST_FILES),
    (
        "<graphics type='vnc'><listen type='socket' socket='/tmp/x'/></graphics>",
        Danger.HOST_CHANNELS,
    ),
    (
        "<graphics type='egl-headless'><gl rendernode='/dev/dri/renderD128'/></graphics>",
        Danger.HOST_CHANNELS,
    ),
    ("<audio id='1' type='file' path='/tmp/x'/>", Danger.HOST_DEVICES),
    ("<memory model='nvdimm'><source><path>/dev/pmem0</path></source></memory>", Danger.HOST_FILES),
    ("<video><driver vgaconf='io'/><model type='x' file='/a'/></video>", Danger.HOST_FILES),
    ("<emulator>/bin/sh</emulator>", Danger.EMULATOR),
    ("<emulator>/usr/bin/qemu-system-x86_64/../../../tmp/x</emulator>", Danger.EMULATOR),
    ("<emulator>qemu-system-x86_64</emulator>", Danger.EMULATOR),
    ("<newdevice><secretfile>/etc/shadow</secretfile></newdevice>", Danger.HOST_FILES),
    ("<newdevice><somewhere path='relative'/></newdevice>", Danger.HOST_FILES),
    ("<newdevice><source dev='sda'/></newdevice>", Danger.BLOCK_DEVICES),
]
DANGEROUS_OUTSIDE_DEVICES = [
    ("<qemu:commandline><qemu:arg value='-S'/></qemu:commandline>", Danger.COMMAND_LINE),
    ("<devices qemu:x='1'/>", Danger.COMMAND_LINE),
    ("<commandline/>", Danger.COMMAND_LINE),
    (
        "<xi:include xmlns:xi='http://www.w3.org/2001/XInclude' href='/etc/passwd' parse='text'/>",
        Danger.COMMAND_LINE,
    ),
    ("<os><kernel>/boot/vmlinuz</kernel></os>", Danger.DIRECT_BOOT),
    ("<os><kernel>boot/vmlinuz</kernel></os>", Danger.DIRECT_BOOT),
    ("<os><initrd>/boot/initrd</initrd></os>", Danger.DIRECT_BOOT),
    ("<os><dtb>/x</dtb></os>", Danger.DIRECT_BOOT),
    ("<os><loader>/etc/shadow</loader></os>", Danger.DIRECT_BOOT),
    ("<os><loader>etc/shadow</loader></os>", Danger.DIRECT_BOOT),
    ("<os><nvram>/etc/shadow</nvram></os>", Danger.DIRECT_BOOT),
    ("<os><nvram template='/etc/shadow'/></os>", Danger.DIRECT_BOOT),
    ("<os><acpi><table type='slic'>/etc/shadow</table></acpi></os>", Danger.HOST_FILES),
    ("<bootloader>/usr/bin/pygrub</bootloader>", Danger.DIRECT_BOOT),
    ("<seclabel type='none'/>", Danger.SECURITY_LABELS),
    ("<seclabel type='static' model='selinux'><label>x</label></seclabel>", Danger.SECURITY_LABELS),
    ("<seclabel type='dynamic' relabel='no'/>", Danger.SECURITY_LABELS),
    (
        "<devices><disk type='file'><source file='x'><seclabel relabel='no'/></source></disk>"
        "</devices>",
        Danger.SECURITY_LABELS,
    ),
    ("<sysinfo type='fwcfg'><entry name='x' file='/etc/shadow'/></sysinfo>", Danger.HOST_FILES),
    ("<memoryBacking><access mode='shared'/></memoryBacking>", Danger.SHARED_MEMORY),
    ("<resource><partition>/machine</partition></resource>", Danger.HOST_FILES),
    ("<metadata><x/></metadata><metadata2><path>/etc</path></metadata2>", Danger.HOST_FILES),
]
ALL = [(template_with(inside), danger) for inside, danger in DANGEROUS] + [
    (template_with(inside, "domain"), danger) for inside, danger in DANGEROUS_OUTSIDE_DEVICES
]


@pytest.mark.parametrize(("xml", "danger"), ALL)
def test_what_reaches_for_the_host_is_refused(xml: str, danger: Danger) -> None:
    problems = judge(read_template(xml))
    assert danger in {problem.code for problem in problems}
    for problem in problems:
        assert problem.where.startswith("domain")
        assert repr(problem.code) in problem.message, "it says what to allow"


@pytest.mark.parametrize(("xml", "danger"), ALL)
def test_what_is_allowed_by_name_may_pass(xml: str, danger: Danger) -> None:
    found = frozenset(Danger(problem.code) for problem in judge(read_template(xml)))
    assert danger in found
    rest = judge(read_template(xml), TemplatePolicy(allowed=found - {danger}))
    assert {problem.code for problem in rest} == {danger}
    assert judge(read_template(xml), TemplatePolicy(allowed=found)) == []


HARMLESS = [
    DISK.format("debian.qcow2"),
    DISK.format("projects/debian.qcow2"),
    DISK.format("/var/lib/libvirt/images/a/b.raw"),
    "<disk type='file' device='cdrom'/>",
    "<disk type='volume'><source pool='default' volume='x'/></disk>",
    "<interface type='bridge'><source bridge='br-anything'/><model type='virtio'/></interface>",
    "<interface type='network'><source network='default' portgroup='x'/><target dev='vnet3'/>"
    "</interface>",
    "<serial type='pty'><source path='/dev/pts/3'/><target port='0'/></serial>",
    "<console type='pty' tty='/dev/pts/3'><source path='/dev/pts/3'/></console>",
    "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>",
    "<channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>",
    "<redirdev bus='usb' type='spicevmc'/>",
    "<graphics type='vnc' port='-1' autoport='yes' listen='0.0.0.0'/>",
    "<graphics type='spice'><listen type='address' address='127.0.0.1'/></graphics>",
    "<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>",
    "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>",
    "<input type='tablet' bus='usb'/>",
    "<sound model='ich6'/>",
    "<memballoon model='virtio'/>",
    "<emulator>/usr/bin/qemu-system-aarch64</emulator>",
    "<something-new speed='11'/>",
]


@pytest.mark.parametrize("inside", HARMLESS)
def test_what_stays_in_the_guest_is_fine(inside: str) -> None:
    assert judge(read_template(template_with(inside))) == []


@pytest.mark.parametrize(
    "inside",
    [
        "<os><type arch='x86_64' machine='pc'>hvm</type><boot dev='hd'/></os>",
        "<os><loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader>"
        "<nvram template='/usr/share/OVMF/OVMF_VARS.fd'/></os>",
        "<os><kernel>/var/lib/libvirt/images/vmlinuz</kernel></os>",
        "<metadata><me:x xmlns:me='urn:me'><path>/etc/shadow</path></me:x></metadata>",
        "<title>/etc/shadow</title>",
        "<seclabel type='dynamic' model='apparmor' relabel='yes'/>",
        "<cputune><shares>1</shares></cputune>",
    ],
)
def test_other_parts_of_a_domain_are_fine(inside: str) -> None:
    assert judge(read_template(template_with(inside, "domain"))) == []


def test_our_own_templates_pass() -> None:
    assert judge(read_template(compose("a", 1, 1024, "x.qcow2"))) == []


def test_a_domain_type_has_to_be_known() -> None:
    xml = template_with("").replace("type='kvm'", "type='lxc'")
    [problem] = judge(read_template(xml))
    assert problem.code == "domain-type"
    assert "lxc" in problem.message


@pytest.mark.parametrize(
    ("path", "inside"),
    [
        ("/a/b", True),
        ("/a/b/c", True),
        ("/a//b", True),
        ("/a/./b", True),
        ("/a", False),
        ("/a/", False),
        ("/ab", False),
        ("/a/../b", False),
        ("/a/x/../b", False),
        ("a/b", False),
        ("", False),
        ("/a/\0", False),
    ],
)
def test_inside_means_below(path: str, inside: bool) -> None:
    assert path_is_inside(path, ("/a/",)) is inside


def test_a_pattern_does_not_cross_folders() -> None:
    policy = TemplatePolicy(emulators=("/opt/q*",))
    assert emulator_is_allowed("/opt/qemu", policy)
    assert not emulator_is_allowed("/opt/q/../bin/sh", policy)
    assert not emulator_is_allowed("/opt/q/sh", policy)


def test_every_danger_is_explained_and_proven() -> None:
    assert set(MEANINGS) == set(Danger)
    assert {danger for _, danger in ALL} == set(Danger)
