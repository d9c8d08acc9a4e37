"""Virtual clusters as people write them: templates in files, options, and cluster files.

A cluster file is TOML or JSON::

    name = "shop"

    [[vms]]
    name = "web"           # web-1, web-2, web-3
    count = 3
    vcpus = 2
    memory = "2G"
    image = "debian-12.qcow2"

    [[vms]]
    template = "db.xml"    # a libvirt domain; the path is relative to this file
    rx = "10M"             # bandwidth to reserve: KiB/s, or with a unit
    tx = "10M"
    host = "host-3"        # starts there: a host or a group manager

The API's own ``ClusterRequest`` in JSON is a cluster file too.
"""

import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from snooze.client.units import parse_memory_kib, parse_rate_kib_s
from snooze.common.api import ClusterRequest, PolicyRequest, VmRequest
from snooze.common.errors import InvalidRequest, Problem

MAX_FILE_BYTES: Final = 16 * 1024 * 1024
MAX_VMS: Final = 100_000
DEFAULT_MEMORY: Final = "512M"
STANDARD_INPUT: Final = "-"


class FileVm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One VM, or ``count`` of them, in a cluster file."""

    name: str = ""
    count: int = 1
    vcpus: int | None = None
    memory: str = ""
    memory_kib: int | None = None
    image: str = ""
    template: str = ""
    libvirt_xml: str = ""
    rx: str | float = 0.0
    tx: str | float = 0.0
    rx_kib_s: float = 0.0
    tx_kib_s: float = 0.0
    host: str = ""
    policy: PolicyRequest = PolicyRequest()


class ClusterFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A cluster file."""

    vms: list[FileVm]
    name: str = ""
    partial: bool = False


@dataclass(frozen=True, slots=True)
class VmOptions:
    """One VM as the options of ``snooze submit`` describe it."""

    name: str = ""
    count: int = 1
    vcpus: int | None = None
    memory: str = ""
    image: str = ""
    rx: str = ""
    tx: str = ""
    host: str = ""
    policy: PolicyRequest = PolicyRequest()  # noqa: RUF009  # it is frozen


def from_templates(paths: Sequence[str], options: VmOptions) -> list[VmRequest]:
    """One VM for each file of libvirt XML; network demand and host come from the options.

    Raises:
        InvalidRequest: if a file cannot be read, or an option contradicts the templates.
    """
    given = {
        "--name": options.name,
        "--vcpus": options.vcpus,
        "--memory": options.memory,
        "--image": options.image,
        "--count": options.count != 1,
    }
    problems = [
        Problem(option, "cannot be given with template files: the template says it")
        for option, value in given.items()
        if value
    ]
    if problems:
        raise InvalidRequest("these options do not go together", problems=problems)
    return [
        VmRequest(
            libvirt_xml=_template(path),
            rx_kib_s=_rate(options.rx, "--rx"),
            tx_kib_s=_rate(options.tx, "--tx"),
            host=options.host,
            policy=options.policy,
        )
        for path in paths
    ]


def from_options(options: VmOptions) -> list[VmRequest]:
    """``count`` VMs from an image.

    Raises:
        InvalidRequest: names every option that is missing or wrong.
    """
    problems = [
        Problem(option, "is needed, or template files, or --file")
        for option, value in (("--name", options.name), ("--image", options.image))
        if not value
    ]
    if problems:
        raise InvalidRequest("it is not said what to start", problems=problems)
    return _numbered(
        VmRequest(
            name=options.name,
            vcpus=1 if options.vcpus is None else options.vcpus,
            memory_kib=parse_memory_kib(options.memory or DEFAULT_MEMORY, where="--memory"),
            image=options.image,
            rx_kib_s=_rate(options.rx, "--rx"),
            tx_kib_s=_rate(options.tx, "--tx"),
            host=options.host,
            policy=options.policy,
        ),
        options.count,
        "--count",
    )


def from_file(path: str) -> ClusterRequest:
    """The virtual cluster that a cluster file describes.

    Raises:
        InvalidRequest: if it cannot be read; names every VM that is wrong.
    """
    text = read_text(path)
    try:
        if path.endswith(".toml"):
            content = msgspec.convert(tomllib.loads(text), ClusterFile)
        else:
            content = msgspec.json.decode(text, type=ClusterFile)
    except (tomllib.TOMLDecodeError, msgspec.MsgspecError, RecursionError) as error:
        kind = "TOML" if path.endswith(".toml") else "JSON"
        raise InvalidRequest(f"{path} is not a virtual cluster in {kind}: {error}") from error
    folder = Path(path).parent
    vms: list[VmRequest] = []
    problems: list[Problem] = []
    for index, vm in enumerate(content.vms):
        try:
            vms += _of_file(vm, folder)
        except InvalidRequest as error:
            problems.append(Problem(f"vms[{index}]", error.message))
    if problems:
        raise InvalidRequest(f"{path} is wrong", problems=problems)
    if not vms:
        raise InvalidRequest(f"{path} names no VM")
    return ClusterRequest(vms, content.name, content.partial)


def read_text(path: str) -> str:
    """The text of a file, or of standard input for ``-``.

    Raises:
        InvalidRequest: if it is not there, too large, or not UTF-8.
    """
    try:
        if path == STANDARD_INPUT:
            content = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
        else:
            with Path(path).open("rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InvalidRequest(f"{path} cannot be read: {reason}") from error
    if len(content) > MAX_FILE_BYTES:
        raise InvalidRequest(f"{path} is larger than {MAX_FILE_BYTES // 1024**2} MiB")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{path} is not text in UTF-8") from error


def _template(path: str) -> str:
    """A libvirt template. Raises: InvalidRequest."""
    text = read_text(path)
    if not text.strip():
        raise InvalidRequest(f"{path} is empty: it has to be a libvirt domain in XML")
    return text


def _of_file(vm: FileVm, folder: Path) -> list[VmRequest]:
    for one, other in (("memory", "memory_kib"), ("template", "libvirt_xml")):
        if getattr(vm, one) and getattr(vm, other):
            raise InvalidRequest(f"{one} and {other} say the same; give one")
    if (vm.rx and vm.rx_kib_s) or (vm.tx and vm.tx_kib_s):
        raise InvalidRequest("rx and rx_kib_s, or tx and tx_kib_s, say the same; give one")
    memory_kib = parse_memory_kib(vm.memory) if vm.memory else vm.memory_kib
    request = VmRequest(
        name=vm.name,
        vcpus=vm.vcpus,
        memory_kib=memory_kib,
        image=vm.image,
        libvirt_xml=_template(str(folder / vm.template)) if vm.template else vm.libvirt_xml,
        rx_kib_s=_rate(vm.rx, "rx") or vm.rx_kib_s,
        tx_kib_s=_rate(vm.tx, "tx") or vm.tx_kib_s,
        host=vm.host,
        policy=vm.policy,
    )
    if request.libvirt_xml and vm.count != 1:
        raise InvalidRequest("a template has one name, so its count can only be 1")
    return _numbered(request, vm.count, "count")


def _numbered(request: VmRequest, count: int, where: str) -> list[VmRequest]:
    if not 1 <= count <= MAX_VMS:
        raise InvalidRequest(f"{where}: {count} is not between 1 and {MAX_VMS}")
    if count == 1:
        return [request]
    return [
        msgspec.structs.replace(request, name=f"{request.name}-{number}")
        for number in range(1, count + 1)
    ]


def _rate(value: str | float, where: str) -> float:
    if isinstance(value, str):
        return parse_rate_kib_s(value, where=where) if value else 0.0
    return float(value)
