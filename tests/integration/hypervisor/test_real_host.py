"""One real host: what runs there, what dies there, and a libvirt that falls silent."""

import asyncio
import os
import re
import signal
import subprocess
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from snooze.common.errors import ExecutionError, InvalidRequest, RemoteError, RemoteTimeout
from snooze.common.resources import Capacity
from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import VmSpec
from snooze.lab.guests import kvm_works, wait_for_beat
from snooze.lab.libvirtd import LabLibvirtd
from snooze.localcontroller.hypervisor.libvirt_driver import LibvirtHypervisor
from snooze.localcontroller.hypervisor.libvirt_options import LibvirtOptions

if TYPE_CHECKING:
    from tests.integration.hypervisor.conftest import Ears, Lab

SEED_TEMPLATE = """<?xml version="1.0" encoding="UTF-8" standalone="no"?><domain type="kvm">\
 <name>debian1</name> <uuid>0f476e56-67ea-11e1-858e-00216a972a36</uuid> <memory>200000</memory>\
 <currentMemory>200000</currentMemory> <vcpu>1</vcpu> <os> <type arch="x86_64" machine="pc-0.12">\
hvm</type> <boot dev="hd"/> </os> <features> <acpi/> <apic/> <pae/> </features> <clock \
offset="utc"/> <on_poweroff>destroy</on_poweroff> <on_reboot>restart</on_reboot> <on_crash>restart\
</on_crash> <devices> <emulator>/usr/bin/kvm</emulator> <disk device="disk" type="file"> <driver \
name="qemu" type="qcow2"/> <source file="path_to_disk_image"/> <target bus="virtio" dev="vda"/> \
<address bus="0x00" domain="0x0000" function="0x0" slot="0x05" type="pci"/> </disk> <controller \
index="0" type="ide"> <address bus="0x00" domain="0x0000" function="0x1" slot="0x01" type="pci"/> \
</controller> <interface type="bridge"> <mac address="52:54:01:84:26:2c"/> <source \
bridge="virbr0"/> </interface> <serial type="pty"> <target port="0"/> </serial> <console \
type="pty"> <target port="0" type="serial"/> </console> <graphics autoport="yes" listen="0.0.0.0" \
port="-1" type="vnc"/> <input bus="usb" type="tablet"/> <input bus="ps2" type="mouse"/> \
<memballoon model="virtio"> <address bus="0x00" domain="0x0000" function="0x0" slot="0x06" \
type="pci"/> </memballoon> </devices> </domain>"""


def create_image(*arguments: str) -> None:
    subprocess.run(["qemu-img", "create", "-q", *arguments], check=True)


def seed_spec() -> VmSpec:
    return VmSpec(uuid.uuid4().hex, "debian1", Capacity(1.0, 200000.0), libvirt_xml=SEED_TEMPLATE)


async def test_the_template_of_2011_runs_on_todays_qemu(lab: "Lab") -> None:
    one = await lab.driver(lab.one)
    spec = seed_spec()
    with pytest.raises(InvalidRequest, match="path_to_disk_image does not exist"):
        await one.start(spec)
    assert await one.inventory() == []
    disk = lab.local(lab.one) / "path_to_disk_image"
    create_image("-f", "qcow2", str(disk), "8M")
    report = await one.start(spec)
    assert report.state is VmState.RUNNING
    assert "pc-0.12" not in report.xml
    assert "type='qemu'" in report.xml
    assert "bridge='br0'" in report.xml
    assert str(uuid.UUID(spec.vm_id)) in report.xml
    await one.destroy(spec.vm_id)
    assert disk.exists(), "a disk the user named is the user's"


async def test_a_disk_that_leads_out_of_the_images_is_refused(lab: "Lab") -> None:
    one = await lab.driver(lab.one)
    folder = lab.local(lab.one)
    (folder / "link.raw").symlink_to("/etc/hostname")
    spec = lab.make_spec(folder / "good.raw", "link.raw")
    with pytest.raises(InvalidRequest, match="leads to /etc/hostname"):
        await one.start(spec)
    cdrom = spec.libvirt_xml.replace("device='disk'", "device='cdrom'")
    with pytest.raises(InvalidRequest, match="leads to /etc/hostname"):
        await one.start(VmSpec(spec.vm_id, spec.name, spec.demand, libvirt_xml=cdrom))
    evil = folder / "evil.qcow2"
    create_image("-u", "-f", "qcow2", "-b", "/etc/hostname", "-F", "raw", str(evil), "1M")
    spec = lab.make_spec(folder / "good.raw", "evil.qcow2")
    with pytest.raises(InvalidRequest, match="based on /etc/hostname"):
        await one.start(spec)
    assert await one.inventory() == []


async def test_a_folder_nobody_can_write_to_is_an_error_of_ours(lab: "Lab") -> None:
    one = await lab.driver(lab.one)
    spec = lab.make_spec(lab.shared / "master.raw", "master.raw")
    (lab.local(lab.one) / "disks").write_text("in the way")
    spec = VmSpec(
        spec.vm_id, spec.name, spec.demand, libvirt_xml=spec.libvirt_xml, image="master.raw"
    )
    with pytest.raises(ExecutionError, match="disks"):
        await one.start(spec)
    assert await one.inventory() == []


async def test_a_failed_start_leaves_neither_definition_nor_disk(lab: "Lab") -> None:
    one = await lab.driver(lab.one)
    spec = lab.make_spec(lab.shared / "master.raw", "master.raw")
    xml = re.sub(
        "<serial.*?/>",
        "<interface type='bridge'><source bridge='br0'/><model \
type='no-such-card'/></interface>",
        spec.libvirt_xml,
    )
    spec = VmSpec(spec.vm_id, spec.name, spec.demand, libvirt_xml=xml, image="master.raw")
    with pytest.raises(ExecutionError, match="no-such-card"):
        await one.start(spec)
    assert await one.inventory() == []
    assert not list(lab.local(lab.one).rglob("snooze-*"))


async def test_a_guest_whose_process_dies_is_heard_of(lab: "Lab") -> None:
    one = await lab.driver(lab.one)
    disk = lab.local(lab.one) / "disk.raw"
    spec = lab.make_spec(disk, "disk.raw")
    await one.start(spec)
    first = await asyncio.to_thread(wait_for_beat, disk)
    found = lab.one.exec(["pkill", "-KILL", "-f", f"guest={spec.name},"])  # in its own namespace
    assert found.returncode == 0
    heard = await lab.ears["one"].wait_for_change("crashed")
    assert heard.vm_id == spec.vm_id
    assert heard.state is VmState.FAILED
    [report] = await one.inventory()
    assert (report.state, report.reason) == (VmState.FAILED, "crashed")
    assert (await one.start_again(spec.vm_id)).state is VmState.RUNNING
    again = await asyncio.to_thread(wait_for_another_boot, disk, first.boot)
    assert again != first.boot


def wait_for_another_boot(disk: Path, boot: str) -> str:
    count = 0
    while (beat := wait_for_beat(disk, count)).boot == boot:
        count = beat.count
    return beat.boot


async def test_definitions_outlive_a_power_cut(lab: "Lab") -> None:
    one = await lab.driver(lab.one)
    spec = lab.make_spec(lab.local(lab.one) / "disk.raw", "disk.raw")
    await one.start(spec)
    await one.close()
    lab.one.power_off()
    lab.one.power_on()
    lab.one.wait_for_libvirtd()
    one = await lab.driver(lab.one)
    [report] = await one.inventory()
    assert (report.vm_id, report.generation, report.managed) == (spec.vm_id, 1, True)
    assert report.state in (VmState.STOPPED, VmState.FAILED)
    assert (await one.start(spec)).state is VmState.RUNNING


@pytest.mark.parametrize("way", ["frozen daemon", "pulled cable"])
async def test_a_silent_libvirtd_is_noticed_and_found_again(lab: "Lab", way: str) -> None:
    spec = lab.make_spec(lab.shared / "disk.raw", str(lab.shared / "disk.raw"))
    driver = await lab.driver(lab.one, lab.one.uri)
    ears = lab.ears["one"]
    await driver.start(spec)
    daemon = lab.one.libvirtd_pid()
    if way == "frozen daemon":
        os.kill(daemon, signal.SIGSTOP)
    else:
        lab.one.cut()
    with pytest.raises(RemoteTimeout):
        await asyncio.wait_for(driver.inventory(), 30)
    await ears.wait_for_connection(False)
    with pytest.raises(RemoteError):
        await driver.suspend(spec.vm_id)
    if way == "frozen daemon":
        os.kill(daemon, signal.SIGCONT)
    else:
        lab.one.plug()
    await ears.wait_for_connection(True)
    [report] = await driver.inventory()
    assert report.state is VmState.RUNNING
    assert (await driver.suspend(spec.vm_id)).state is VmState.PAUSED


async def test_calls_that_never_return_cost_threads_only_until_the_next_connection(
    ears: "Ears",
) -> None:
    with LabLibvirtd() as daemon:
        options = LibvirtOptions(
            uri=daemon.test_uri, workers=2, call_timeout_s=0.5, keepalive_interval_s=-1
        )
        driver = LibvirtHypervisor(options)
        driver.on_connection(ears.hear_connection)
        await driver.open()
        daemon.signal(signal.SIGSTOP)
        for answer in await asyncio.gather(
            *(driver.inventory() for _ in range(2)), return_exceptions=True
        ):
            assert isinstance(answer, RemoteTimeout)
        assert [change.connected for change in ears.connections] == [False]
        daemon.signal(signal.SIGCONT)
        await ears.wait_for_connection(True)
        assert len(await driver.inventory()) == 1
        await driver.close()


async def test_a_libvirtd_that_was_killed_is_found_again(ears: "Ears") -> None:
    with LabLibvirtd() as daemon:
        driver = LibvirtHypervisor(LibvirtOptions(uri=daemon.test_uri))
        driver.on_connection(ears.hear_connection)
        await driver.open()
        for expected, act in ((False, daemon.kill), (True, daemon.start)):
            act()
            await ears.wait_for_connection(expected)
        assert len(await driver.inventory()) == 1
        await driver.close()


async def test_images_are_listed_with_format_and_size(lab: "Lab") -> None:
    one = await lab.driver(lab.one)
    lab.make_spec(lab.shared / "a.raw", "a.raw")
    create_image("-f", "qcow2", str(lab.shared / "b.qcow2"), "64M")
    (lab.shared / "c.qcow2").symlink_to("/etc/hostname")
    images = await asyncio.to_thread(one.images.list_images)
    assert [(i.name, i.format, i.virtual_size_bytes) for i in images] == [
        ("a.raw", "raw", 2**20),
        ("b.qcow2", "qcow2", 2**26),
    ]


async def test_the_hosts_memory_is_all_of_it(lab: "Lab") -> None:
    one = await lab.driver(lab.one)
    total_kib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1024
    assert (await one.capacity()).memory_kib == pytest.approx(total_kib, rel=0.05)


async def test_qemu_describes_its_guests(lab: "Lab") -> None:
    one = await lab.driver(lab.one)
    description = await one.describe()
    native = description.guests[0]
    assert native.arch == os.uname().machine
    assert "qemu" in native.domain_types
    assert native.emulator
    assert {"pc", "q35"} <= set(native.machines)
    assert description.host_uuid == lab.one.uuid.replace("-", "")


async def test_a_guest_runs_on_kvm_where_kvm_runs_guests(lab: "Lab") -> None:
    if not await asyncio.to_thread(kvm_works):
        pytest.skip("no KVM here that boots a guest in 3 s")
    spec = lab.make_spec(lab.local(lab.one) / "disk.raw", "disk.raw")
    one = await lab.driver(lab.one, domain_type="kvm")
    report = await one.start(spec)
    assert report.state is VmState.RUNNING
    assert "type='kvm'" in report.xml
