"""Fitting a user's template to the hypervisor it lands on, and reading domains back.

The same template has to run on whatever host is chosen: what depends on the host (domain type,
emulator, machine, bridge, where disks lie) is replaced by what works there; what makes a VM
this VM (name, UUID, size, MAC, our metadata) is set; everything else stays as the user wrote it.
"""

import copy
import posixpath
import re
import uuid
from dataclasses import dataclass, field
from typing import Final

import msgspec
from lxml import etree

from snooze.common.domain_template import (
    DomainTemplate,
    Element,
    attribute,
    child_text,
    memory_to_kib,
    name_problem,
)
from snooze.common.errors import InvalidRequest, Problem
from snooze.common.resources import Capacity
from snooze.common.vms import DEFAULT_POLICY, VmPolicy, VmSpec
from snooze.localcontroller.hypervisor.port import (
    METADATA_NAMESPACE,
    GuestSupport,
    HypervisorDescription,
)

METADATA_PREFIX: Final = "snooze"
_TAG: Final = f"{{{METADATA_NAMESPACE}}}vm"
_MAX_GENERATION: Final = 2**53

ANY_BRIDGE: Final = "*"


@dataclass(frozen=True, slots=True)
class AdaptOptions:
    """What the settings say about guests on this host.

    Attributes:
        image_directory: where a relative disk path lies.
        domain_type: to be used for every guest, or empty: the template's if it works here.
        bridges: the host's bridge for a template's; ``*`` stands for any other.
        graphics_listen: address on which consoles listen, or empty to keep the template's (a
            template without one leaves it to the hypervisor).
    """

    image_directory: str = "/var/lib/libvirt/images"
    domain_type: str = ""
    bridges: dict[str, str] = field(default_factory=dict[str, str])
    graphics_listen: str = ""


@dataclass(frozen=True, slots=True)
class VmTag:
    """Our element in a domain's metadata: what a host has to remember of a VM.

    Attributes:
        incoming: state in which it will run once its migration is finished, or empty.
        held: it ran when it began to move; while it is paused, it waits for the word that its
            source has let it go.
    """

    vm_id: str
    generation: int
    demand: Capacity
    ip_address: str = ""
    mac_address: str = ""
    image: str = ""
    incoming: str = ""
    held: bool = False
    policy: VmPolicy = DEFAULT_POLICY

    @classmethod
    def of(cls, spec: VmSpec, mac_address: str = "") -> "VmTag":
        """The tag of a VM about to start."""
        mac = spec.mac_address or mac_address
        return cls(
            spec.vm_id,
            spec.generation,
            spec.demand,
            spec.ip_address,
            mac,
            spec.image,
            policy=spec.policy,
        )

    def as_element(self) -> Element:
        """For ``<metadata>``."""
        values = {
            "id": self.vm_id,
            "generation": str(self.generation),
            "cpu": repr(self.demand.cpu_cores),
            "memory": repr(self.demand.memory_kib),
            "rx": repr(self.demand.rx_kib_s),
            "tx": repr(self.demand.tx_kib_s),
            "ip": self.ip_address,
            "mac": self.mac_address,
            "image": self.image,
            "incoming": self.incoming,
            "held": "yes" if self.held else "",
        }
        if self.policy != DEFAULT_POLICY:
            values["policy"] = msgspec.json.encode(self.policy).decode()
        return etree.Element(
            _TAG,
            {key: value for key, value in values.items() if value},
            nsmap={METADATA_PREFIX: METADATA_NAMESPACE},
        )

    def as_text(self) -> str:
        """For ``virDomainSetMetadata``, which adds the namespace itself."""
        plain = etree.Element("vm")
        for key, value in self.as_element().items():
            plain.set(str(key), str(value))
        return etree.tostring(plain, encoding="unicode")


@dataclass(frozen=True, slots=True)
class DomainFacts:
    """What a domain's definition says.

    Attributes:
        tag: ours; None for a domain that is not managed.
        disks: paths of files it can write.
        locked: those of them on which qemu takes a lock that another qemu cannot have.
        files: paths of all files it has as disks, those it only reads included.
    """

    name: str
    uuid_hex: str
    vcpus: int
    memory_kib: int
    max_vcpus: int
    max_memory_kib: int
    mac_address: str
    has_acpi: bool
    tag: VmTag | None
    disks: tuple[str, ...] = ()
    locked: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    @property
    def vm_id(self) -> str:
        """Its identity in the cluster."""
        return self.uuid_hex

    @property
    def demand(self) -> Capacity:
        """What it holds: as asked for, or for a domain that is not ours its size."""
        return self.tag.demand if self.tag else Capacity(self.vcpus, self.memory_kib)


def check_spec(spec: VmSpec) -> None:
    """Refuse a specification no domain can be made from.

    Raises:
        InvalidRequest: naming each problem.
    """
    problems: list[Problem] = []
    if not re.fullmatch(r"[0-9a-f]{32}", spec.vm_id):
        problems.append(Problem("vm_id", f"{spec.vm_id[:40]!r} is no VM id", "bad_id"))
    if (wrong := name_problem(spec.name)) is not None:
        problems.append(Problem("name", wrong, "bad_name"))
    problems += [Problem("demand", wrong, "bad_demand") for wrong in spec.demand.problems()]
    if not problems and spec.memory_kib < 1:
        problems.append(Problem("demand", "memory is 0", "bad_demand"))
    if problems:
        raise InvalidRequest("; ".join(p.message for p in problems), problems=problems)


def adapt(
    template: DomainTemplate,
    spec: VmSpec,
    description: HypervisorDescription,
    options: AdaptOptions,
    disk_path: str = "",
) -> str:
    """The definition with which ``spec`` runs on the hypervisor described.

    Args:
        disk_path: of the copy-on-write disk (qcow2) made for ``spec.image``, or empty.

    Raises:
        InvalidRequest: if no guest of that architecture runs here.
    """
    root = copy.deepcopy(template.root)
    _set_identity(root, spec)
    _set_size(root, template, spec)
    _set_platform(root, template, description, options)
    _set_disks(root, spec, options, disk_path)
    _set_interfaces(root, spec, options)
    _set_graphics(root, options)
    for event, kept in _KEPT_ACTIONS.items():
        element = root.find(event)
        if element is not None and (element.text or "").strip() not in kept:
            element.text = "restart" if "restart" in (element.text or "") else "destroy"
    return etree.tostring(root, encoding="unicode")


_KEPT_ACTIONS: Final = {
    "on_poweroff": ("destroy",),
    "on_reboot": ("restart", "destroy"),
    "on_crash": ("restart", "destroy"),
}
"""Others leave a dead domain lying around (preserve), fill the disk (coredump-*) or rename it."""


def read_domain(xml: str) -> DomainFacts:
    """Read a definition that libvirt wrote."""
    root = etree.fromstring(xml.encode(), _TRUSTED)
    uuid_hex = child_text(root, "uuid").replace("-", "")
    tag = _read_tag(root)
    max_vcpus = int(child_text(root, "vcpu") or "1")
    memory = root.find("memory")
    max_memory = _kib(memory)
    current = root.find("currentMemory")
    return DomainFacts(
        name=root.findtext("name") or "",
        uuid_hex=uuid_hex,
        vcpus=int(attribute(root.find("vcpu"), "current") or max_vcpus),
        memory_kib=max_memory if current is None else _kib(current),
        max_vcpus=max_vcpus,
        max_memory_kib=max_memory,
        mac_address=attribute(root.find("devices/interface/mac"), "address"),
        has_acpi=root.find("features/acpi") is not None,
        # Somebody's clone of a VM has its tag, and is not it.
        tag=tag if tag is not None and tag.vm_id == uuid_hex else None,
        disks=_writable(root),
        locked=_writable(root, but_shareable=True),
        files=tuple(
            path
            for source in root.iterfind("devices/disk/source")
            if (path := attribute(source, "file"))
        ),
    )


def _writable(root: Element, *, but_shareable: bool = False) -> tuple[str, ...]:
    return tuple(
        path
        for disk in root.iterfind("devices/disk")
        if disk.find("readonly") is None
        and attribute(disk, "device") in ("", "disk", "lun")
        and not (but_shareable and disk.find("shareable") is not None)
        and (path := attribute(disk.find("source"), "file"))
    )


def with_incoming(xml: str, state: str) -> str:
    """A definition whose tag says that it will run as ``state`` when its migration is finished.

    Raises:
        ValueError: if it has no tag.
    """
    root = etree.fromstring(xml.encode(), _TRUSTED)
    element = root.find(f"metadata/{_TAG}")
    if element is None:
        raise ValueError("the definition has no tag of ours")
    element.set("incoming", state)
    return etree.tostring(root, encoding="unicode")


_TRUSTED: Final = etree.XMLParser(resolve_entities=False, no_network=True, huge_tree=True)


def _kib(element: Element | None) -> int:
    if element is None:
        return 0
    return memory_to_kib((element.text or "0").strip(), attribute(element, "unit"))


def _read_tag(root: Element) -> VmTag | None:
    element = root.find(f"metadata/{_TAG}")
    if element is None:
        return None
    try:
        demand = Capacity.of(
            float(attribute(element, axis) or 0) for axis in ("cpu", "memory", "rx", "tx")
        )
        generation = int(attribute(element, "generation"))
    except ValueError:
        return None  # somebody else's hand wrote it
    if demand.problems() or not 0 <= generation <= _MAX_GENERATION:
        return None
    return VmTag(
        vm_id=attribute(element, "id"),
        generation=generation,
        demand=demand,
        ip_address=attribute(element, "ip"),
        mac_address=attribute(element, "mac"),
        image=attribute(element, "image"),
        incoming=attribute(element, "incoming"),
        held=attribute(element, "held") == "yes",
        policy=_read_policy(attribute(element, "policy")),
    )


def _read_policy(text: str) -> VmPolicy:
    """The VM's policy; the default if there is none, or none that this version understands."""
    try:
        return msgspec.json.decode(text.encode(), type=VmPolicy) if text else DEFAULT_POLICY
    except msgspec.MsgspecError:
        return DEFAULT_POLICY


def _set_identity(root: Element, spec: VmSpec) -> None:
    """Name, UUID and tag; whatever claims to be our tag in a user's template goes."""
    _ensure(root, "name").text = spec.name
    # Two submissions of one template must not meet: the template's UUID is replaced by the VM's.
    _ensure(root, "uuid").text = str(uuid.UUID(spec.vm_id))
    _drop_attribute(root, "id")
    metadata = _ensure(root, "metadata")
    for element in metadata.findall(f"{{{METADATA_NAMESPACE}}}*"):
        metadata.remove(element)
    mac = attribute(root.find("devices/interface/mac"), "address")
    metadata.append(VmTag.of(spec, mac).as_element())


def _set_size(root: Element, template: DomainTemplate, spec: VmSpec) -> None:
    """The size asked for now, which after a resize is not the template's."""
    most = max(template.memory_kib, spec.memory_kib)
    for tag, value in (("memory", most), ("currentMemory", spec.memory_kib)):
        element = _ensure(root, tag)
        element.text = str(value)
        element.set("unit", "KiB")
    vcpu = _ensure(root, "vcpu")
    max_vcpus = max(template.max_vcpus, spec.vcpus)
    vcpu.text = str(max_vcpus)
    _drop_attribute(vcpu, "current")
    if spec.vcpus < max_vcpus:
        vcpu.set("current", str(spec.vcpus))


def _set_platform(
    root: Element,
    template: DomainTemplate,
    description: HypervisorDescription,
    options: AdaptOptions,
) -> None:
    """Domain type, architecture, machine, emulator and processor."""
    is_test = description.kind == "test"
    guest = _choose_guest(template, description)
    wanted = options.domain_type or template.domain_type
    domain_type = wanted if wanted in guest.domain_types else next(iter(guest.domain_types), "")
    root.set("type", domain_type or wanted)
    os_type = _ensure(_ensure(root, "os"), "type")
    os_type.text = guest.os_type
    # The test driver runs every architecture and machine: there they stay as asked for.
    os_type.set("arch", template.arch if template.arch and is_test else guest.arch)
    if guest.machines:
        os_type.set("machine", _choose_machine(template.machine, guest.machines))
    devices = _ensure(root, "devices")
    emulators = {support.emulator for support in description.guests}
    if not guest.emulator:
        for element in devices.findall("emulator"):
            devices.remove(element)
    elif template.emulator not in emulators:
        _ensure(devices, "emulator", first=True).text = guest.emulator
    cpu = root.find("cpu")
    software = root.get("type") == "qemu"
    if cpu is not None and software and attribute(cpu, "mode").startswith("host-"):
        root.remove(cpu)  # software emulation has no host processor to pass through


def _choose_guest(template: DomainTemplate, description: HypervisorDescription) -> GuestSupport:
    wanted = {"i386": "i686", "amd64": "x86_64"}.get(template.arch, template.arch)
    for guest in description.guests:
        if guest.os_type == "hvm" and wanted in ("", guest.arch):
            return guest
    if description.kind != "test" or not description.guests:
        known = ", ".join(sorted({guest.arch for guest in description.guests})) or "none"
        message = f"no {wanted[:40] or 'hvm'} guest runs on {description.hostname} (only: {known})"
        raise InvalidRequest(message, problems=[Problem("os/type", message, "no_such_arch")])
    return description.guests[0]


def _choose_machine(wanted: str, machines: tuple[str, ...]) -> str:
    """The machine asked for, else the present one of its family, else the host's default.

    A machine's version is the hypervisor's release (``pc-0.12`` is of 2010); its family is what a
    guest notices.
    """
    if wanted in machines:
        return wanted
    family = "q35" if "q35" in wanted else wanted.partition("-")[0]
    if family in machines:
        return family
    return machines[0]


def _set_disks(root: Element, spec: VmSpec, options: AdaptOptions, disk_path: str) -> None:
    if disk_path:
        _set_image_disk(root, spec, disk_path)
    for disk in root.iterfind("devices/disk"):
        for source in disk.iter("source"):
            path = attribute(source, "file")
            if path and not path.startswith("/"):
                clean = posixpath.normpath(posixpath.join(options.image_directory, path))
                source.set("file", clean)


def _set_image_disk(root: Element, spec: VmSpec, disk_path: str) -> None:
    """Put the VM's own disk where the template names it or its image, or before all others."""
    devices = _ensure(root, "devices")
    disks = devices.findall("disk")
    for disk in disks:
        path = attribute(disk.find("source"), "file")
        if path == disk_path or spec.image in path.split("/"):
            break
    else:
        taken = {attribute(disk.find("target"), "dev") for disk in disks}
        free = next(f"vd{letter}" for letter in _LETTERS if f"vd{letter}" not in taken)
        disk = etree.Element("disk", {"type": "file", "device": "disk"})
        devices.insert(devices.index(disks[0]) if disks else len(devices), disk)
        etree.SubElement(disk, "target", {"dev": free, "bus": "virtio"})
    disk.set("type", "file")
    _ensure(disk, "source").set("file", disk_path)
    driver = _ensure(disk, "driver", first=True)
    driver.set("name", "qemu")
    driver.set("type", "qcow2")
    for stale in disk.findall("backingStore"):
        disk.remove(stale)


_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"


def _set_interfaces(root: Element, spec: VmSpec, options: AdaptOptions) -> None:
    interfaces = root.findall("devices/interface")
    if interfaces and spec.mac_address:
        _ensure(interfaces[0], "mac", first=True).set("address", padded_mac(spec.mac_address))
    for interface in interfaces:
        source = interface.find("source")
        bridge = attribute(source, "bridge")
        if source is not None and bridge:
            source.set(
                "bridge", options.bridges.get(bridge, options.bridges.get(ANY_BRIDGE, bridge))
            )


def padded_mac(mac: str) -> str:
    """``54:56:c0:a8:7a:6`` as ``54:56:c0:a8:7a:06``; Snooze writes bytes without a zero before."""
    return ":".join(part.zfill(2) for part in mac.split(":"))


def _set_graphics(root: Element, options: AdaptOptions) -> None:
    if not options.graphics_listen:
        return
    for graphics in root.iterfind("devices/graphics"):
        listens = graphics.findall("listen")
        if any(attribute(listen, "type") in ("none", "socket") for listen in listens):
            continue  # on no address at all
        graphics.set("listen", options.graphics_listen)
        for listen in listens:
            graphics.remove(listen)


def _ensure(parent: Element, tag: str, *, first: bool = False) -> Element:
    """The first child of this name, made if it is missing."""
    child = parent.find(tag)
    if child is None:
        child = etree.Element(tag)
        parent.insert(0 if first else len(parent), child)
    return child


def _drop_attribute(element: Element, name: str) -> None:
    if name in element.attrib:
        del element.attrib[name]
