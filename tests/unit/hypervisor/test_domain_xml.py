"""Fitting templates to hosts."""

import uuid

import pytest
from lxml import etree

from snooze.common.domain_template import compose, read_template
from snooze.common.errors import InvalidRequest
from snooze.common.resources import Capacity
from snooze.common.vms import VmSpec
from snooze.localcontroller.domain_xml import (
    AdaptOptions,
    VmTag,
    adapt,
    check_spec,
    padded_mac,
    read_domain,
    with_incoming,
)
from snooze.localcontroller.hypervisor.port import GuestSupport, HypervisorDescription

QEMU = HypervisorDescription(
    kind="qemu",
    version="7.2",
    uri="qemu:///system",
    hostname="h1",
    guests=(
        GuestSupport(
            "x86_64",
            "hvm",
            ("kvm", "qemu"),
            "/usr/bin/qemu-system-x86_64",
            ("pc-i440fx-7.2", "pc", "q35", "pc-q35-7.2"),
        ),
        GuestSupport("aarch64", "hvm", ("qemu",), "/usr/bin/qemu-system-aarch64", ("virt",)),
    ),
)
TEST = HypervisorDescription(
    kind="test",
    version="0",
    uri="test:///default",
    hostname="h1",
    guests=(GuestSupport("i686", "hvm", ("test",), "/usr/bin/test-hv"),),
)
VM_ID = "0123456789abcdef0123456789abcdef"
TEMPLATE = """<domain type='kvm' id='3'><name>old</name>
<uuid>0f476e56-67ea-11e1-858e-00216a972a36</uuid><title xml:lang='de'>Mein</title>
<metadata><app:note xmlns:app='urn:app' a='1'>keep</app:note>
<snooze:vm xmlns:snooze='https://snooze/xmlns/vm/1' id='spoofed' generation='99'/></metadata>
<memory unit='MiB'>256</memory><currentMemory unit='MiB'>128</currentMemory><vcpu>2</vcpu>
<os><type arch='x86_64' machine='pc-0.12'>hvm</type></os><cpu mode='host-passthrough'/>
<on_poweroff>preserve</on_poweroff><on_reboot>restart</on_reboot>
<on_crash>coredump-restart</on_crash>
<devices><emulator>/usr/bin/kvm</emulator>
<disk type='file'><source file='sub/debian.qcow2'/><target dev='vda'/></disk>
<disk type='file'><source file='/else/where.raw'/><target dev='vdb'/></disk>
<interface type='bridge'><source bridge='virbr0'/></interface>
<interface type='bridge'><mac address='52:54:00:00:00:02'/><source bridge='br-x'/></interface>
<graphics type='vnc' listen='0.0.0.0'><listen type='address' address='0.0.0.0'/></graphics>
<flux-capacitor power='1.21'/></devices></domain>"""


def make_spec(**changes: object) -> VmSpec:
    values: dict[str, object] = {
        "vm_id": VM_ID,
        "name": "new",
        "demand": Capacity(2.0, 262144.0, 10.0, 20.0),
        "mac_address": "54:56:a:0:0:6",
        "ip_address": "10.0.0.6",
    }
    make: type[VmSpec] = VmSpec
    return make(**{**values, **changes})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def adapted(
    spec: VmSpec | None = None,
    template: str = TEMPLATE,
    host: HypervisorDescription = QEMU,
    options: AdaptOptions | None = None,
    disk_path: str = "",
) -> "etree._Element":  # pyright: ignore[reportPrivateUsage]
    spec = spec or make_spec()
    xml = adapt(read_template(template), spec, host, options or AdaptOptions("/img"), disk_path)
    return etree.fromstring(xml.encode())


def test_a_vm_is_itself_whatever_its_template_says() -> None:
    root = adapted()
    assert root.findtext("name") == "new"
    assert root.findtext("uuid") == str(uuid.UUID(VM_ID))
    assert root.get("id") is None
    facts = read_domain(etree.tostring(root, encoding="unicode"))
    assert facts.vm_id == VM_ID
    assert facts.tag == VmTag(
        VM_ID, 1, Capacity(2.0, 262144.0, 10.0, 20.0), "10.0.0.6", "54:56:a:0:0:6"
    )


def test_two_submissions_of_one_template_do_not_meet() -> None:
    first, second = adapted(), adapted(make_spec(vm_id="f" * 32))
    assert first.findtext("uuid") != second.findtext("uuid")


def test_what_we_do_not_know_stays() -> None:
    root = adapted()
    assert root.find("devices/flux-capacitor[@power='1.21']") is not None
    assert root.findtext("metadata/{urn:app}note") == "keep"
    assert root.findtext("title") == "Mein"


def test_the_platform_is_the_hosts() -> None:
    root = adapted()
    assert root.get("type") == "kvm"
    kind = root.find("os/type")
    assert kind is not None
    assert (kind.get("arch"), kind.get("machine")) == ("x86_64", "pc")
    assert root.findtext("devices/emulator") == "/usr/bin/qemu-system-x86_64"
    assert root.find("cpu") is not None


def test_software_emulation_has_no_host_processor() -> None:
    root = adapted(options=AdaptOptions("/img", domain_type="qemu"))
    assert root.get("type") == "qemu"
    assert root.find("cpu") is None


@pytest.mark.parametrize(
    ("wanted", "given"),
    [
        ("pc-0.12", "pc"),
        ("pc-q35-2.1", "q35"),
        ("q35", "q35"),
        ("pc-i440fx-7.2", "pc-i440fx-7.2"),
        ("isapc", "pc-i440fx-7.2"),
        ("", "pc-i440fx-7.2"),
    ],
)
def test_a_machine_is_replaced_by_its_family(wanted: str, given: str) -> None:
    root = adapted(template=TEMPLATE.replace("machine='pc-0.12'", f"machine='{wanted}'"))
    assert root.find(f"os/type[@machine='{given}']") is not None


def test_another_architecture_is_emulated_or_refused() -> None:
    root = adapted(template=TEMPLATE.replace("x86_64", "aarch64").replace("pc-0.12", "virt"))
    assert root.get("type") == "qemu"
    assert root.findtext("devices/emulator") == "/usr/bin/qemu-system-aarch64"
    with pytest.raises(InvalidRequest, match=r"no s390x guest runs on h1 \(only: aarch64, x86_64"):
        adapted(template=TEMPLATE.replace("x86_64", "s390x"))


def test_the_test_driver_runs_anything() -> None:
    root = adapted(template=TEMPLATE.replace("x86_64", "s390x"), host=TEST)
    assert root.get("type") == "test"
    assert root.find("os/type[@arch='s390x'][@machine='pc-0.12']") is not None


def test_disks_lie_in_the_image_directory_unless_they_say_where() -> None:
    facts = read_domain(etree.tostring(adapted(), encoding="unicode"))
    assert facts.disks == ("/img/sub/debian.qcow2", "/else/where.raw")


def test_a_vms_own_disk_takes_the_place_of_the_image() -> None:
    root = adapted(make_spec(image="debian.qcow2"), disk_path="/img/own.qcow2")
    facts = read_domain(etree.tostring(root, encoding="unicode"))
    assert facts.disks == ("/img/own.qcow2", "/else/where.raw")
    assert root.find("devices/disk/driver[@type='qcow2']") is not None


def test_a_vms_own_disk_comes_first_if_the_template_does_not_name_the_image() -> None:
    root = adapted(make_spec(image="other.qcow2"), disk_path="/img/own.qcow2")
    facts = read_domain(etree.tostring(root, encoding="unicode"))
    assert facts.disks == ("/img/own.qcow2", "/img/sub/debian.qcow2", "/else/where.raw")
    targets = [target.get("dev") for target in root.iterfind("devices/disk/target")]
    assert targets == ["vdc", "vda", "vdb"]


def test_interfaces_get_their_address_and_the_hosts_bridges() -> None:
    options = AdaptOptions("/img", bridges={"virbr0": "br0", "*": "br-any"})
    root = adapted(options=options)
    macs = [mac.get("address") for mac in root.iterfind("devices/interface/mac")]
    assert macs == ["54:56:0a:00:00:06", "52:54:00:00:00:02"]
    bridges = [source.get("bridge") for source in root.iterfind("devices/interface/source")]
    assert bridges == ["br0", "br-any"]
    kept = [source.get("bridge") for source in adapted().iterfind("devices/interface/source")]
    assert kept == ["virbr0", "br-x"]


def test_the_size_is_the_one_asked_for_now() -> None:
    root = adapted(make_spec(demand=Capacity(1.0, 131072.0)))
    assert (root.findtext("memory"), root.findtext("currentMemory")) == ("262144", "131072")
    assert root.find("vcpu[@current='1']") is not None
    grown = adapted(make_spec(demand=Capacity(4.0, 524288.0)))
    assert (grown.findtext("memory"), grown.findtext("vcpu")) == ("524288", "4")


def test_a_dead_domain_is_not_left_lying_around() -> None:
    root = adapted()
    actions = [root.findtext(f"on_{event}") for event in ("poweroff", "reboot", "crash")]
    assert actions == ["destroy", "restart", "restart"]


def test_consoles_listen_where_the_settings_say() -> None:
    graphics = adapted(options=AdaptOptions("/img", graphics_listen="127.0.0.1")).find(
        "devices/graphics"
    )
    assert graphics is not None
    assert graphics.get("listen") == "127.0.0.1"
    assert graphics.find("listen") is None
    assert adapted().find("devices/graphics[@listen='0.0.0.0']/listen") is not None


@pytest.mark.parametrize("kind", ["none", "socket"])
def test_a_console_without_an_address_is_given_none(kind: str) -> None:
    text = TEMPLATE.replace(
        "<listen type='address' address='0.0.0.0'/>", f"<listen type='{kind}'/>"
    )
    template = read_template(text.replace(" listen='0.0.0.0'", ""))
    options = AdaptOptions("/img", graphics_listen="127.0.0.1")
    root = etree.fromstring(adapt(template, make_spec(), QEMU, options))
    assert root.find("devices/graphics[@listen]") is None
    assert root.find(f"devices/graphics/listen[@type='{kind}']") is not None


def test_the_template_is_left_as_it_was() -> None:
    template = read_template(TEMPLATE)
    before = etree.tostring(template.root)
    adapt(template, make_spec(), QEMU, AdaptOptions())
    assert etree.tostring(template.root) == before


def test_a_template_without_anything_gets_all_it_needs() -> None:
    root = adapted(template=compose("x", 1, 1024, bridge=""))
    assert root.findtext("devices/emulator") == "/usr/bin/qemu-system-x86_64"
    assert root.find("os/type[@arch='x86_64']") is not None


def test_the_mark_of_arrival_comes_and_goes_with_the_tag() -> None:
    xml = etree.tostring(adapted(), encoding="unicode")
    tag = read_domain(with_incoming(xml, "paused")).tag
    assert tag is not None
    assert tag.incoming == "paused"
    with pytest.raises(ValueError, match="no tag"):
        with_incoming("<domain/>", "paused")


def tagged(tag: str) -> str:
    return f"""<domain><name>a</name><uuid>{uuid.UUID(VM_ID)}</uuid><memory>1</memory><metadata>
<s:vm xmlns:s='https://snooze/xmlns/vm/1' {tag}/></metadata></domain>"""


@pytest.mark.parametrize(
    "hand",
    [
        "generation='x'",
        "generation='1' cpu='many'",
        "generation='1' cpu='nan'",
        "generation='1' memory='-5'",
        f"generation='{10**30}'",
        "generation='-1'",
        "",
    ],
)
def test_a_tag_that_is_not_ours_makes_no_managed_domain(hand: str) -> None:
    """What is no number, or too large for a message, would keep its host from being told of."""
    facts = read_domain(tagged(f"id='{VM_ID}' {hand}"))
    assert facts.tag is None
    assert facts.demand == Capacity(1, 1)
    assert read_domain(tagged(f"id='{VM_ID}' generation='1'")).tag is not None


def test_a_clone_that_somebody_made_of_a_vm_is_not_ours() -> None:
    """virt-clone gives it another UUID, and leaves the metadata."""
    assert read_domain(tagged(f"id='{'f' * 32}' generation='1'")).tag is None


def test_macs_are_padded() -> None:
    assert padded_mac("54:56:c0:a8:7a:6") == "54:56:c0:a8:7a:06"


def test_a_specification_is_checked_in_one_go() -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_spec(VmSpec("x", "a/b", Capacity(-1.0, float("nan"))))
    assert {p.where for p in caught.value.problems} == {"vm_id", "name", "demand"}
    assert len(caught.value.problems) == 4
    with pytest.raises(InvalidRequest, match="memory is 0"):
        check_spec(VmSpec(VM_ID, "a", Capacity(1.0)))


def test_a_composed_template_gets_its_own_disk_once() -> None:
    xml = compose("web", 1, 65536, "/img/own.qcow2")
    spec = VmSpec("0" * 32, "web", Capacity(1.0, 65536.0), image="master.raw")
    text = adapt(read_template(xml), spec, QEMU, AdaptOptions("/img"), "/img/own.qcow2")
    assert read_domain(text).disks == ("/img/own.qcow2",)
