"""Judging a user's template: what in it reaches for the host, and whether that is allowed.

A domain's definition can give a guest the host's devices, files, sockets and kernel, or run any
program as root. Each way is a ``Danger``; all are refused unless the settings allow them by name.

Two nets are laid. The first knows libvirt's elements one by one. The second knows none: whatever
attribute or text names a path of the host that nobody above has passed is refused, so that an
element that libvirt learns tomorrow does not slip through.

Judging is pure text work, fit for the leader. That a path inside an allowed directory is no
symbolic link to outside is for the host to see (``snooze.localcontroller.images``).

Source: libvirt's domain XML format, https://libvirt.org/formatdomain.html
"""

import posixpath
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from snooze.common.domain_template import DomainTemplate, Element, attribute
from snooze.common.errors import Problem


class Danger(StrEnum):
    """A way from the guest to the host; the value is its name in the settings."""

    HOST_DEVICES = "host-devices"
    HOST_FILES = "host-files"
    HOST_CHANNELS = "host-channels"
    HOST_INTERFACES = "host-interfaces"
    BLOCK_DEVICES = "block-devices"
    NETWORK_DISKS = "network-disks"
    DIRECT_BOOT = "direct-boot"
    SHARED_MEMORY = "shared-memory"
    SECRETS = "secrets"
    SECURITY_LABELS = "security-labels"
    COMMAND_LINE = "command-line"
    EMULATOR = "any-emulator"


MEANINGS: Final[dict[Danger, str]] = {
    Danger.HOST_DEVICES: "gives the guest a device of the host",
    Danger.HOST_FILES: "names a file of the host outside the image directories",
    Danger.HOST_CHANNELS: "joins a guest's port to a file, socket or device of the host",
    Danger.HOST_INTERFACES: "joins the guest to the host's network other than by bridge or network",
    Danger.BLOCK_DEVICES: "gives the guest a block device or folder of the host",
    Danger.NETWORK_DISKS: "lets the host open a disk on another machine",
    Danger.DIRECT_BOOT: "boots a file of the host",
    Danger.SHARED_MEMORY: "shares memory with other processes of the host",
    Danger.SECRETS: "uses secrets kept by the host's libvirt",
    Danger.SECURITY_LABELS: "changes the confinement of the guest's process",
    Danger.COMMAND_LINE: "hands arguments to the emulator or includes other documents",
    Danger.EMULATOR: "names an emulator that is not on the list",
}


@dataclass(frozen=True, slots=True)
class TemplatePolicy:
    """What templates may ask for.

    Attributes:
        image_directories: absolute; disks may lie in them and below.
        firmware_directories: firmware (``<loader>``, templates of ``<nvram>``) may lie in them.
        emulators: patterns of allowed emulators; ``*`` does not match a ``/``.
        domain_types: allowed ``<domain type=...>``.
        allowed: dangers that are accepted here.
    """

    image_directories: tuple[str, ...] = ("/var/lib/libvirt/images",)
    firmware_directories: tuple[str, ...] = (
        "/usr/share/OVMF",
        "/usr/share/AAVMF",
        "/usr/share/edk2",
        "/usr/share/qemu",
    )
    emulators: tuple[str, ...] = (
        "/usr/bin/kvm",
        "/usr/bin/qemu-kvm",
        "/usr/libexec/qemu-kvm",
        "/usr/bin/qemu-system-*",
    )
    domain_types: tuple[str, ...] = ("kvm", "qemu", "test")
    allowed: frozenset[Danger] = frozenset()


DEFAULT_POLICY: Final = TemplatePolicy()


def judge(template: DomainTemplate, policy: TemplatePolicy = DEFAULT_POLICY) -> list[Problem]:
    """All that is not allowed, in the order of the document; empty if the template may run.

    Each problem's ``code`` is the ``Danger`` (or ``domain-type``), ``where`` the element's path.
    """
    return list(_problems(template, policy))


def path_is_inside(path: str, directories: tuple[str, ...]) -> bool:
    """Whether an absolute, clean path lies below one of ``directories``; no link is followed.

    A path with ``..`` in it is never inside: what it means depends on links.
    """
    if not path.startswith("/") or ".." in path.split("/") or "\0" in path:
        return False
    clean = posixpath.normpath(path)
    return any(
        clean.startswith(posixpath.normpath(directory).rstrip("/") + "/")
        for directory in directories
    )


def emulator_is_allowed(path: str, policy: TemplatePolicy) -> bool:
    """Whether a template may name this emulator."""
    return any(_matches(path, pattern) for pattern in policy.emulators)


def _matches(path: str, pattern: str) -> bool:
    expression = "[^/]*".join(re.escape(part) for part in pattern.split("*"))
    return re.fullmatch(expression, path) is not None


def _problems(template: DomainTemplate, policy: TemplatePolicy) -> Iterator[Problem]:
    if template.domain_type not in policy.domain_types:
        known = ", ".join(policy.domain_types)
        message = f"domain type {template.domain_type[:40]!r} is not allowed (allowed: {known})"
        yield Problem("domain", message, "domain-type")
    for element, where in _walk(template.root, "domain"):
        found = _dangers_of(element, where, policy)
        for danger, what in dict.fromkeys(found):
            if danger not in policy.allowed:
                message = (
                    f"{where} {MEANINGS[danger]}: {what[:80]}; "
                    f"to allow it, add {danger.value!r} to the allowed dangers"
                )
                yield Problem(where, message, danger.value)


def _walk(element: Element, where: str) -> Iterator[tuple[Element, str]]:
    """Every element but comments, instructions and our or others' notes in ``<metadata>``."""
    yield element, where
    for child in element.iterchildren("*"):
        tag = str(child.tag)
        if not (where == "domain" and tag == "metadata"):
            name = tag.rpartition("}")[2][:40]
            yield from _walk(child, f"{where}/{name}")


_Finding = tuple[Danger, str]

_ALWAYS: Final[dict[str, Danger]] = {
    "hostdev": Danger.HOST_DEVICES,
    "filesystem": Danger.HOST_FILES,
    "shmem": Danger.SHARED_MEMORY,
    "lease": Danger.HOST_FILES,
    "reservations": Danger.HOST_CHANNELS,
    "log": Danger.HOST_FILES,
    "script": Danger.HOST_FILES,
    "downscript": Danger.HOST_FILES,
    "secret": Danger.SECRETS,
    "auth": Danger.SECRETS,
    "kernel": Danger.DIRECT_BOOT,
    "initrd": Danger.DIRECT_BOOT,
    "dtb": Danger.DIRECT_BOOT,
    "shim": Danger.DIRECT_BOOT,
    "bootloader": Danger.DIRECT_BOOT,
    "init": Danger.DIRECT_BOOT,
    "commandline": Danger.COMMAND_LINE,
}
"""Elements that are a danger wherever they stand, unless a path of theirs is passed below."""

_CHARACTER_DEVICES: Final = ("serial", "parallel", "console", "channel", "redirdev", "smartcard")
_HARMLESS_CHANNELS: Final = frozenset(
    {"", "pty", "null", "vc", "spicevmc", "spiceport", "qemu-vdagent"}
)
_RANDOM_SOURCES: Final = frozenset({"/dev/random", "/dev/urandom", "/dev/hwrng"})
_PATH_ATTRIBUTES: Final = frozenset({"file", "path", "dir", "socket", "template", "rendernode"})


def _dangers_of(element: Element, where: str, policy: TemplatePolicy) -> Iterator[_Finding]:
    """What one element reaches for; may name the same twice."""
    tag = str(element.tag)
    if tag.startswith("{"):
        yield Danger.COMMAND_LINE, f"element of {tag[1:].partition('}')[0]}"
        return
    special = _BY_TAG.get(tag)
    if special is not None:
        yield from special(element)
    boots = where.startswith("domain/os/")
    if tag in _ALWAYS and not (boots and _is_passed((element.text or "").strip(), where, policy)):
        yield _ALWAYS[tag], f"<{tag}>"
    for name, value in ((str(key), str(item)) for key, item in element.items()):
        if name.startswith("{"):
            yield Danger.COMMAND_LINE, f"attribute {name}"
        elif (value.startswith("/") or name in _PATH_ATTRIBUTES) and not _attribute_is_passed(
            element, name, value, where, policy
        ):
            danger = Danger.DIRECT_BOOT if boots else Danger.HOST_FILES
            yield danger, f"{name}={value!r}"
    yield from _dangers_of_text(element, where, policy)


def _dangers_of_text(element: Element, where: str, policy: TemplatePolicy) -> Iterator[_Finding]:
    text = (element.text or "").strip()
    if where == "domain/devices/emulator":
        if text and not emulator_is_allowed(text, policy):
            yield Danger.EMULATOR, repr(text)
    elif where in ("domain/os/loader", "domain/os/nvram"):
        if text and not _is_passed(text, where, policy):
            yield Danger.DIRECT_BOOT, repr(text)
    elif where == "domain/devices/rng/backend":
        if text and text not in _RANDOM_SOURCES:
            yield Danger.HOST_CHANNELS, repr(text)
    elif text.startswith("/") and not _is_passed(text, where, policy):
        free_text = where in ("domain/title", "domain/description") or "/sysinfo/" in where
        if not free_text:
            yield Danger.HOST_FILES, repr(text)


def _is_passed(path: str, where: str, policy: TemplatePolicy) -> bool:
    """Whether a path that stands at ``where`` is in an allowed directory."""
    directories = policy.image_directories
    if where == "domain/os/loader":
        directories += policy.firmware_directories
    return path_is_inside(path, directories)


def _attribute_is_passed(
    element: Element, name: str, value: str, where: str, policy: TemplatePolicy
) -> bool:
    if not value:
        return True
    parent = element.getparent()
    if where.startswith("domain/devices/disk/") and element.tag == "source" and name == "file":
        # a relative path will lie in the image directory
        relative = not value.startswith("/") and ".." not in value.split("/")
        return (relative and "\0" not in value) or _is_passed(value, where, policy)
    if name == "template" and where == "domain/os/nvram":
        return path_is_inside(value, policy.firmware_directories)
    if parent is not None and parent.tag in _CHARACTER_DEVICES:
        # libvirt chooses the pseudo terminal itself, whatever a copied definition says
        return element.tag == "source" and attribute(parent, "type") == "pty"
    if name == "tty":
        return attribute(element, "type") == "pty"
    return _is_passed(value, where, policy)


def _judge_character_device(element: Element) -> Iterator[_Finding]:
    kind = attribute(element, "type")
    if element.tag == "smartcard" and attribute(element, "mode") in ("host", "host-certificates"):
        yield Danger.HOST_DEVICES, f"smartcard mode {attribute(element, 'mode')!r}"
    elif kind == "unix" and element.find("source") is None:
        return  # libvirt makes the socket in a folder of its own
    elif kind not in _HARMLESS_CHANNELS:
        yield Danger.HOST_CHANNELS, f"type {kind!r}"


def _judge_disk(element: Element) -> Iterator[_Finding]:
    kind = attribute(element, "type") or "file"
    if attribute(element, "device") == "lun":
        yield Danger.BLOCK_DEVICES, "device 'lun'"
    if kind == "network":
        yield Danger.NETWORK_DISKS, "type 'network'"
    elif kind not in ("file", "volume"):
        yield Danger.BLOCK_DEVICES, f"type {kind!r}"


def _judge_disk_layer(element: Element) -> Iterator[_Finding]:
    """``<backingStore>`` and ``<mirror>`` are disks of their own."""
    kind = attribute(element, "type")
    if kind == "network":
        yield Danger.NETWORK_DISKS, "type 'network'"
    elif kind not in ("", "file", "volume"):
        yield Danger.BLOCK_DEVICES, f"type {kind!r}"


def _judge_interface(element: Element) -> Iterator[_Finding]:
    kind = attribute(element, "type")
    if kind not in ("bridge", "network", "null"):
        yield Danger.HOST_INTERFACES, f"type {kind!r}"


def _judge_graphics(element: Element) -> Iterator[_Finding]:
    kind = attribute(element, "type")
    if kind not in ("vnc", "spice"):
        yield Danger.HOST_CHANNELS, f"graphics {kind!r}"
    for listen in element.iterfind("listen"):
        if attribute(listen, "type") == "socket":
            yield Danger.HOST_CHANNELS, "graphics on a socket"


def _judge_input(element: Element) -> Iterator[_Finding]:
    if attribute(element, "type") in ("passthrough", "evdev"):
        yield Danger.HOST_DEVICES, f"input {attribute(element, 'type')!r}"


def _judge_audio(element: Element) -> Iterator[_Finding]:
    if attribute(element, "type") not in ("", "none", "spice"):
        yield Danger.HOST_DEVICES, f"audio {attribute(element, 'type')!r}"


def _judge_backend(element: Element) -> Iterator[_Finding]:
    """The host's side of a ``<tpm>`` or ``<rng>``."""
    parent = element.getparent()
    device = None if parent is None else parent.tag
    if device == "tpm" and attribute(element, "type") != "emulator":
        yield Danger.HOST_DEVICES, f"tpm {attribute(element, 'type')!r}"
    if device == "rng" and attribute(element, "model") not in ("random", "builtin"):
        yield Danger.HOST_CHANNELS, f"rng {attribute(element, 'model')!r}"


def _judge_label(element: Element) -> Iterator[_Finding]:
    kind = attribute(element, "type") or "dynamic"
    if kind != "dynamic" or attribute(element, "relabel") == "no":
        yield Danger.SECURITY_LABELS, f"type {kind!r}, relabel {attribute(element, 'relabel')!r}"
    parent = element.getparent()
    if element.find("baselabel") is not None or (parent is not None and parent.tag != "domain"):
        yield Danger.SECURITY_LABELS, "a label of its own"


def _judge_sysinfo(element: Element) -> Iterator[_Finding]:
    if any(attribute(entry, "file") for entry in element.iter("entry")):
        yield Danger.HOST_FILES, "sysinfo from a file"


def _judge_memory_backing(element: Element) -> Iterator[_Finding]:
    if attribute(element.find("access"), "mode") == "shared":
        yield Danger.SHARED_MEMORY, "access mode 'shared'"


def _judge_source(element: Element) -> Iterator[_Finding]:
    """``<source>`` of whatever device: an interface's ``dev`` names a network, others a device."""
    parent = element.getparent()
    if attribute(element, "dev") and parent is not None and parent.tag != "interface":
        yield Danger.BLOCK_DEVICES, f"dev={attribute(element, 'dev')!r}"


_BY_TAG: Final[dict[str, Callable[[Element], Iterator[_Finding]]]] = {
    **dict.fromkeys(_CHARACTER_DEVICES, _judge_character_device),
    "disk": _judge_disk,
    "backingStore": _judge_disk_layer,
    "mirror": _judge_disk_layer,
    "interface": _judge_interface,
    "graphics": _judge_graphics,
    "input": _judge_input,
    "audio": _judge_audio,
    "backend": _judge_backend,
    "seclabel": _judge_label,
    "sysinfo": _judge_sysinfo,
    "memoryBacking": _judge_memory_backing,
    "source": _judge_source,
}
