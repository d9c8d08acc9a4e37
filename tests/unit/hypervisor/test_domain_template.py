"""Reading templates: what is understood, and what is refused before it can hurt."""

import itertools
import tracemalloc

import pytest

from snooze.common.domain_template import (
    TemplateLimits,
    compose,
    memory_to_kib,
    name_problem,
    read_template,
)
from snooze.common.errors import InvalidRequest

PLAIN = "<domain type='kvm'><name>a</name><memory>1024</memory></domain>"


def with_inside(inside: str) -> str:
    return PLAIN.replace("</domain>", f"{inside}</domain>")


def test_a_template_is_read() -> None:
    template = read_template(
        "<?xml version='1.0' encoding='UTF-16'?>\n<!-- mine --><domain type='kvm' id='7'>"
        "<name> web </name><uuid>0f476e56-67ea-11e1-858e-00216a972a36</uuid>"
        "<memory unit='MiB'>2</memory><vcpu current='2'>4</vcpu>"
        "<os><type arch='x86_64' machine='pc-0.12'>hvm</type></os>"
        "<devices><emulator>/usr/bin/kvm</emulator>"
        "<disk type='file'><driver name='qemu' type='raw'/><source file='d.raw'/>"
        "<target dev='vda'/></disk><disk type='block' device='cdrom'/>"
        "<interface type='network'><source network='default'/></interface>"
        "<interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='br9'/>"
        "</interface></devices></domain>"
    )
    assert template.name == "web"
    assert template.uuid == "0f476e5667ea11e1858e00216a972a36"
    assert (template.vcpus, template.max_vcpus, template.memory_kib) == (2, 4, 2048)
    assert (template.domain_type, template.arch, template.machine) == ("kvm", "x86_64", "pc-0.12")
    assert template.emulator == "/usr/bin/kvm"
    first, second = template.disks
    assert (first.kind, first.source, first.format, first.target) == ("file", "d.raw", "raw", "vda")
    assert (second.kind, second.device, second.source) == ("block", "cdrom", "")
    network, bridge = template.interfaces
    assert (network.kind, network.source, network.mac_address) == ("network", "default", "")
    assert (bridge.source, bridge.mac_address) == ("br9", "52:54:00:00:00:01")


def test_what_is_not_said_has_libvirts_defaults() -> None:
    template = read_template(PLAIN)
    assert (template.vcpus, template.memory_kib, template.uuid) == (1, 1024, "")
    assert template.disks == ()


@pytest.mark.parametrize(
    ("value", "unit", "kib"),
    [
        ("200000", "", 200000),
        ("1024", "b", 1),
        ("1025", "bytes", 2),
        ("1", "KB", 1),
        ("1024", "KB", 1000),
        ("3", "k", 3),
        ("3", "KiB", 3),
        ("1", "MB", 977),
        ("1", "M", 1024),
        ("1", "GiB", 1024**2),
        ("1", "t", 1024**3),
    ],
)
def test_memory_has_libvirts_units(value: str, unit: str, kib: int) -> None:
    assert memory_to_kib(value, unit) == kib


@pytest.mark.parametrize(("value", "unit"), [("-1", ""), ("1.5", ""), ("1", "KiBs"), ("1e3", "b")])
def test_memory_that_is_no_memory_is_refused(value: str, unit: str) -> None:
    with pytest.raises(ValueError, match="no"):
        memory_to_kib(value, unit)


def test_all_that_is_missing_is_said_at_once() -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_template("<domain><vcpu>0</vcpu><uuid>x</uuid><memory unit='lots'>1</memory></domain>")
    assert {p.where for p in caught.value.problems} == {"name", "vcpu", "uuid", "memory"}


@pytest.mark.parametrize(
    "name",
    ["", " ", "a/b", "..", ".", "a\nb", "a\x00b", " a", "x" * 201, "ä" * 101, "a\u2028b", "\ud800"],
)
def test_names_that_libvirt_or_a_person_would_stumble_over_are_refused(name: str) -> None:
    assert name_problem(name) is not None


@pytest.mark.parametrize("name", ["debian1", "web server", "vm-1_x.y:z", "日本", "x" * 200])
def test_other_names_are_fine(name: str) -> None:
    assert name_problem(name) is None


ENTITIES = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 10))
NASTY = {
    "nothing": "",
    "no XML": "{}",
    "no domain": "<network/>",
    "domain of another tongue": "<domain xmlns='urn:x'><name>a</name></domain>",
    "cut short": PLAIN[:-3],
    "two roots": PLAIN + PLAIN,
    "not Unicode": PLAIN.replace("1024", "\ud800"),
    "a zero byte": PLAIN.replace("1024", "\0"),
    "document type": "<!DOCTYPE domain>" + PLAIN,
    "hidden document type": "\ufeff \n<?xml version='1.0'?><!-- > --><?x ?>\n<!DOCTYPE d>" + PLAIN,
    "unknown entity": with_inside("<title>&boom;</title>"),
    "billion laughs": f'<!DOCTYPE d [<!ENTITY l0 "ha">{ENTITIES}]>' + with_inside("&l9;"),
    "laughs in an attribute": f'<!DOCTYPE d [<!ENTITY l0 "ha">{ENTITIES}]><domain a="&l9;"/>',
    "quadratic": f'<!DOCTYPE d [<!ENTITY a "{"a" * 9999}">]><domain>{"&a;" * 9999}</domain>',
    "external entity": '<!DOCTYPE d [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
    + with_inside("&x;"),
    "external document type": '<!DOCTYPE d SYSTEM "http://127.0.0.1:1/x.dtd">' + PLAIN,
    "parameter entity": '<!DOCTYPE d [<!ENTITY % x SYSTEM "file:///dev/zero">%x;]>' + PLAIN,
    "as deep as it is long": "<domain>" + "<a>" * 20000 + "</a>" * 20000 + "</domain>",
    "as deep as the parser goes": "<domain>" + "<a>" * 200 + "</a>" * 200 + "</domain>",
    "very many elements": with_inside("<a/>" * 6000),
    "very many comments": with_inside("<!---->" * 6000),
    "very many disks": with_inside("<devices>" + "<disk/>" * 65 + "</devices>"),
    "a huge attribute": with_inside(f"<a b='{'x' * 300000}'/>"),
    "a huge comment": with_inside(f"<!--{'x' * 300000}-->"),
    "an open comment": "<!--" * 60000,
    "an open instruction": "<?" * 100000,
    "very much memory": PLAIN.replace("1024", "9" * 20),
    "very much more memory": PLAIN.replace("1024", "9" * 5000),
    "negative memory": PLAIN.replace("1024", "-1"),
    "very many processors": with_inside("<vcpu>99999</vcpu>"),
    "a processor in words": with_inside("<vcpu>one</vcpu>"),
    "more now than ever": with_inside("<vcpu current='3'>2</vcpu>"),
}


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY.keys())
def test_what_is_nasty_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        read_template(text)


def test_a_hundred_megabytes_of_depth_are_refused_unread() -> None:
    bomb = "<domain>" + "".join(itertools.repeat("<a>", 100 * 1024 * 1024 // 3))
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest, match="larger"):
            read_template(bomb)
        assert tracemalloc.get_traced_memory()[1] < 1024 * 1024
    finally:
        tracemalloc.stop()


def test_limits_are_limits() -> None:
    limits = TemplateLimits(max_bytes=len(PLAIN), max_depth=2, max_elements=3)
    assert read_template(PLAIN, limits).name == "a"
    with pytest.raises(InvalidRequest, match="larger"):
        read_template(PLAIN + " ", limits)
    wide = TemplateLimits(max_elements=3)
    with pytest.raises(InvalidRequest, match="more than 3"):
        read_template(with_inside("<x/>"), wide)
    flat = TemplateLimits(max_depth=2)
    with pytest.raises(InvalidRequest, match="deeper than 2"):
        read_template(with_inside("<x><y/></x>"), flat)


def test_a_template_made_from_parts_reads_as_asked() -> None:
    mac = "54:56:0a:00:00:01"
    template = read_template(compose("we<b>", 3, 4096, "/x/y.qcow2", mac_address=mac, bridge="b&"))
    assert (template.name, template.vcpus, template.memory_kib) == ("we<b>", 3, 4096)
    assert template.disks[0].source == "/x/y.qcow2"
    assert (template.interfaces[0].source, template.interfaces[0].mac_address) == ("b&", mac)
    bare = read_template(compose("a", 1, 1, bridge=""))
    assert (bare.disks, bare.interfaces) == ((), ())
    with pytest.raises(InvalidRequest):
        compose("a/b", 1, 1)
