"""Reading a user's libvirt template, and making one for who has none.

A template is hostile until read: it is bounded in size, depth and number of elements before
anything looks at it, and a document type (the only place where entities are declared) is refused,
never expanded. What is read keeps every element, known to us or not. Whether it may run is judged
by ``snooze.common.template_policy``; how it is fitted to the host it lands on is
``snooze.localcontroller.domain_xml``.
"""

import re
import unicodedata
import uuid as uuids
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from lxml import etree

from snooze.common.errors import InvalidRequest, Problem
from snooze.common.resources import MAX_CPU_CORES, MAX_MEMORY_KIB

Element: TypeAlias = etree._Element  # pyright: ignore[reportPrivateUsage]  # lxml's only name
"""An XML element."""

MAX_NAME_BYTES: Final = 200
"""libvirt names log and definition files after a domain; a file name has 255 bytes."""

MAX_DEVICES: Final = 64
"""Disks, and interfaces, of one VM: beyond what a PCI bus of a default machine carries."""


@dataclass(frozen=True, slots=True)
class TemplateLimits:
    """How large a template may be.

    Attributes:
        max_bytes: of its UTF-8 text.
        max_depth: of nested elements; libvirt's own deepest is about 10.
        max_elements: elements, comments and processing instructions.
    """

    max_bytes: int = 256 * 1024
    max_depth: int = 32
    max_elements: int = 5000


DEFAULT_LIMITS: Final = TemplateLimits()


@dataclass(frozen=True, slots=True)
class TemplateDisk:
    """One ``<disk>``.

    Attributes:
        kind: its ``type``: ``file``, ``block``, ``network``, ``volume``, ...
        device: ``disk``, ``cdrom``, ``floppy`` or ``lun``.
        source: file, device or name; empty when it has none.
        format: of the image, or empty.
        target: name in the guest (``vda``).
    """

    kind: str
    device: str
    source: str
    format: str
    target: str


@dataclass(frozen=True, slots=True)
class TemplateInterface:
    """One ``<interface>``.

    Attributes:
        kind: its ``type``: ``bridge``, ``network``, ...
        source: the bridge's or network's name.
        mac_address: as written, or empty.
    """

    kind: str
    source: str
    mac_address: str


@dataclass(frozen=True, slots=True)
class DomainTemplate:
    """A template that was read.

    Attributes:
        uuid: 32 hexadecimal digits, or empty.
        vcpus: with which it starts (``current`` of ``<vcpu>`` if given).
        max_vcpus: that can be reached live.
        memory_kib: the most it can use (``<memory>``).
        machine, arch, emulator: as asked for, or empty.
        root: the parsed ``<domain>``; not to be changed (``copy.deepcopy`` it).
    """

    name: str
    uuid: str
    vcpus: int
    max_vcpus: int
    memory_kib: int
    domain_type: str
    arch: str = ""
    machine: str = ""
    emulator: str = ""
    disks: tuple[TemplateDisk, ...] = ()
    interfaces: tuple[TemplateInterface, ...] = ()
    root: Element = field(default_factory=lambda: etree.Element("domain"), compare=False)


def read_template(text: str, limits: TemplateLimits = DEFAULT_LIMITS) -> DomainTemplate:
    """Read a libvirt domain definition.

    Raises:
        InvalidRequest: if it is too large, not XML, has a document type, or lacks what every domain
            has; all problems of the last kind are listed at once.
    """
    root = parse_xml(text, limits)
    if root.tag != "domain":
        raise InvalidRequest(f"the template is no <domain> but a <{_shown(str(root.tag))}>")
    problems: list[Problem] = []
    name = child_text(root, "name")
    if (wrong := name_problem(name)) is not None:
        problems.append(Problem("name", wrong, "bad_name"))
    max_vcpus, vcpus = _read_vcpus(root, problems)
    kind = root.find("os/type")
    template = DomainTemplate(
        name=name,
        uuid=_read_uuid(root, problems),
        vcpus=vcpus,
        max_vcpus=max_vcpus,
        memory_kib=_read_memory(root, problems),
        domain_type=attribute(root, "type"),
        arch=attribute(kind, "arch"),
        machine=attribute(kind, "machine"),
        emulator=child_text(root, "devices/emulator"),
        disks=tuple(_read_disk(disk) for disk in root.iterfind("devices/disk")),
        interfaces=tuple(_read_interface(nic) for nic in root.iterfind("devices/interface")),
        root=root,
    )
    for what, count in (("disks", len(template.disks)), ("interfaces", len(template.interfaces))):
        if count > MAX_DEVICES:
            problems.append(Problem(what, f"{count} {what}; the most is {MAX_DEVICES}", "too_many"))
    if problems:
        raise InvalidRequest(
            "the template is wrong: " + "; ".join(p.message for p in problems), problems=problems
        )
    return template


def parse_xml(text: str, limits: TemplateLimits = DEFAULT_LIMITS) -> Element:
    """Parse XML that may be hostile, within ``limits``; nothing is fetched or expanded.

    An encoding declaration is ignored: the text is already decoded.

    Raises:
        InvalidRequest: if it is not well-formed, too large, or has a document type.
    """
    if len(text) > limits.max_bytes:
        raise InvalidRequest(f"the template is larger than {limits.max_bytes} bytes")
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest("the template has characters that are not Unicode text") from error
    if len(data) > limits.max_bytes:
        raise InvalidRequest(f"the template is larger than {limits.max_bytes} bytes")
    if _has_document_type(text):
        raise InvalidRequest("the template has a document type (<!DOCTYPE>); it may have none")
    parser = etree.XMLParser(
        encoding="utf-8",
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        dtd_validation=False,
        huge_tree=False,
    )
    try:
        root = etree.fromstring(data.lstrip(), parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise InvalidRequest(f"the template is not well-formed XML: {error}") from error
    _check_shape(root, limits)
    return root


def compose(
    name: str,
    vcpus: int,
    memory_kib: int,
    disk_path: str = "",
    *,
    disk_format: str = "qcow2",
    bridge: str = "virbr0",
    mac_address: str = "",
) -> str:
    """A template for a VM that was asked for by size and image.

    Domain type, architecture, machine and emulator are left to the host's adaptation.

    Args:
        disk_path: of its first disk; empty for a VM without one.
        bridge: of its NIC; empty for a VM without one.

    Raises:
        InvalidRequest: if the name is none for libvirt.
    """
    if (wrong := name_problem(name)) is not None:
        raise InvalidRequest(wrong, problems=[Problem("name", wrong, "bad_name")])
    root = etree.Element("domain", {"type": "kvm"})
    _child(root, "name", name)
    _child(root, "memory", str(memory_kib), unit="KiB")
    _child(root, "currentMemory", str(memory_kib), unit="KiB")
    _child(root, "vcpu", str(vcpus))
    os_element = _child(root, "os")
    _child(os_element, "type", "hvm")
    _child(os_element, "boot", dev="hd")
    features = _child(root, "features")
    _child(features, "acpi")
    _child(features, "apic")
    _child(root, "clock", offset="utc")
    devices = _child(root, "devices")
    if disk_path:
        disk = _child(devices, "disk", type="file", device="disk")
        _child(disk, "driver", name="qemu", type=disk_format)
        _child(disk, "source", file=disk_path)
        _child(disk, "target", dev="vda", bus="virtio")
    if bridge:
        interface = _child(devices, "interface", type="bridge")
        if mac_address:
            _child(interface, "mac", address=mac_address)
        _child(interface, "source", bridge=bridge)
        _child(interface, "model", type="virtio")
    serial = _child(devices, "serial", type="pty")
    _child(serial, "target", port="0")
    _child(devices, "memballoon", model="virtio")
    return etree.tostring(root, encoding="unicode")


def name_problem(name: str) -> str | None:
    """Why libvirt would not take this name for a domain, or None.

    Source: libvirt, ``virXMLCheckIllegalChars`` and ``virDomainDefPostParseCheck`` (no ``/``, no
    newline, not blank); control characters, outer blanks, ``.`` and ``..`` are our own caution.
    """
    if not name.strip():
        return "the name is missing"
    shown = repr(name[:40])
    if len(name.encode(errors="replace")) > MAX_NAME_BYTES:
        return f"the name {shown}... is longer than {MAX_NAME_BYTES} bytes"
    if name in (".", "..") or "/" in name:
        return f"the name {shown} has a '/' or is a folder's"
    if name != name.strip():
        return f"the name {shown} begins or ends with a blank"
    if any(unicodedata.category(char) in ("Cc", "Cs", "Cn", "Zl", "Zp") for char in name):
        return f"the name {shown} has control characters"
    return None


_MEMORY_UNIT = re.compile(r"(?:([kmgtpe])(ib|b)?|b|bytes?)", re.IGNORECASE)


def memory_to_kib(value: str, unit: str) -> int:
    """libvirt's scaled memory as KiB, rounded up; without a unit the number is KiB.

    Source: libvirt, ``virScaleInteger``: ``KB`` is 1000 bytes, ``K`` and ``KiB`` are 1024.

    Raises:
        ValueError: if it is no whole number or the unit is unknown.
    """
    if not re.fullmatch(r"[0-9]{1,20}", value):
        raise ValueError(f"{value[:40]!r} is no whole number")
    match = _MEMORY_UNIT.fullmatch(unit or "KiB")
    if match is None:
        raise ValueError(f"{unit[:40]!r} is no unit of memory")
    prefix, suffix = match.groups()
    scale = 1
    if prefix:
        base = 1000 if (suffix or "").lower() == "b" else 1024
        scale = base ** ("kmgtpe".index(prefix.lower()) + 1)
    return -(-int(value) * scale // 1024)


def attribute(element: Element | None, name: str) -> str:
    """An attribute as text, or empty if it or its element is absent."""
    value = None if element is None else element.get(name)
    return value if isinstance(value, str) else ""


def child_text(element: Element, path: str) -> str:
    """The stripped text of the first element at ``path``, or empty."""
    return (element.findtext(path) or "").strip()


def _child(parent: Element, tag: str, text: str | None = None, **attributes: str) -> Element:
    child = etree.SubElement(parent, tag, attributes)
    child.text = text
    return child


def _shown(text: str) -> str:
    return text if len(text) <= 40 else text[:40] + "..."


_PROLOG_PART = re.compile(r"\ufeff|\s+|<\?.*?\?>|<!--.*?-->", re.DOTALL)


def _has_document_type(text: str) -> bool:
    """Whether a declaration stands before the first element; the only place XML allows one."""
    position = 0
    while (part := _PROLOG_PART.match(text, position)) is not None:
        position = part.end()
    return text.startswith("<!", position)


def _check_shape(root: Element, limits: TemplateLimits) -> None:
    """Bound depth and count, and hence what every later walk over the tree can cost."""
    count, level, depth = 0, [root], 0
    while level:
        depth += 1
        count += len(level)
        if depth > limits.max_depth:
            raise InvalidRequest(f"the template is nested deeper than {limits.max_depth} elements")
        if count > limits.max_elements:
            raise InvalidRequest(f"the template has more than {limits.max_elements} elements")
        level = [child for element in level for child in element]


def _read_uuid(root: Element, problems: list[Problem]) -> str:
    text = child_text(root, "uuid")
    if not text:
        return ""
    try:
        return uuids.UUID(text).hex
    except ValueError:
        problems.append(Problem("uuid", f"{_shown(text)!r} is no UUID", "bad_uuid"))
        return ""


def _read_vcpus(root: Element, problems: list[Problem]) -> tuple[int, int]:
    """Maximum and present number of vCPUs."""
    element = root.find("vcpu")
    most = _read_count(child_text(root, "vcpu") or "1", problems)
    current = attribute(element, "current")
    now = _read_count(current, problems) if current else most
    if now > most:
        problems.append(
            Problem("vcpu", f"{now} vCPUs at the start, but at most {most}", "bad_vcpu")
        )
    return most, now


def _read_count(text: str, problems: list[Problem]) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or not 1 <= int(text) <= MAX_CPU_CORES:
        message = f"{_shown(text)!r} is no number of vCPUs (1 to {MAX_CPU_CORES:.0f})"
        problems.append(Problem("vcpu", message, "bad_vcpu"))
        return 1
    return int(text)


def _read_memory(root: Element, problems: list[Problem]) -> int:
    element = root.find("memory")
    text = child_text(root, "memory")
    if element is None or not text:
        problems.append(Problem("memory", "<memory> is missing", "bad_memory"))
        return 0
    try:
        kib = memory_to_kib(text, attribute(element, "unit"))
    except ValueError as error:
        problems.append(Problem("memory", f"<memory>: {error}", "bad_memory"))
        return 0
    if not 0 < kib <= MAX_MEMORY_KIB:
        message = f"<memory> is {kib} KiB; it has to be 1 to {MAX_MEMORY_KIB:.0f}"
        problems.append(Problem("memory", message, "bad_memory"))
        return 0
    return kib


def _read_disk(disk: Element) -> TemplateDisk:
    source = disk.find("source")
    names = ("file", "dev", "dir", "volume", "name")
    return TemplateDisk(
        kind=attribute(disk, "type") or "file",
        device=attribute(disk, "device") or "disk",
        source=next((value for key in names if (value := attribute(source, key))), ""),
        format=attribute(disk.find("driver"), "type"),
        target=attribute(disk.find("target"), "dev"),
    )


def _read_interface(interface: Element) -> TemplateInterface:
    source = interface.find("source")
    names = ("bridge", "network", "dev")
    return TemplateInterface(
        kind=attribute(interface, "type"),
        source=next((value for key in names if (value := attribute(source, key))), ""),
        mac_address=attribute(interface.find("mac"), "address"),
    )
