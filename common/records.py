"""What ZooKeeper keeps: small versioned values, and where they lie.

=====================  ============  =================================  ========================
path                   written by    value                              gone when
=====================  ============  =================================  ========================
``/managers/ID``       the manager   ``ManagerDescription``, ephemeral  its session ends
``/hosts/ID``          the leader    ``HostRecord``                     never
``/tasks/ID``          the leader    ``TaskRecord``                     retention is over
``/vms/VM_ID``         the leader    ``VmRecord``                       the VM is proven gone
=====================  ============  =================================  ========================

``/candidates``, ``/epoch`` and ``/leader`` belong to the election (``groupmanager/election.py``).
Every transaction of a leader checks its epoch, so that a deposed one cannot write.

A value is one byte of schema number and then MessagePack. A value of a newer schema than ours is
refused with the advice to upgrade; older ones are read by ``_UPGRADES``.
"""

import zlib
from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec

from snooze.common.api import TaskState
from snooze.common.errors import ErrorReport, ExecutionError
from snooze.common.resources import Capacity
from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import VmSpec
from snooze.common.wire import Address

SCHEMA: Final = 1
MANAGERS: Final = "/managers"
HOSTS: Final = "/hosts"
TASKS: Final = "/tasks"
VMS: Final = "/vms"

MAX_TEMPLATE_BYTES: Final = 4 * 1024 * 1024
"""Largest template that is unpacked again; a larger one was never written."""

T = TypeVar("T", bound=msgspec.Struct)

_UPGRADES: Final[dict[int, Callable[[dict[str, Any]], dict[str, Any]]]] = {}
"""``old schema -> what turns its map into the next schema's``."""


class HostRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """A host that has ever joined, and the manager it was given to.

    ``away``: it has been out of reach for so long that no start ordered since can have reached it.
    """

    host_id: str
    hostname: str
    control: Address
    manager_id: str
    epoch: int
    away: bool = False


class VmRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """A VM: what was asked for and where it is.

    ``template``: the user's libvirt XML, compressed by zlib; ``state``: the last settled one.
    """

    vm_id: str
    name: str
    demand: Capacity
    state: VmState
    task_id: str
    generation: int = 1
    template: bytes = b""
    image: str = ""
    ip_address: str = ""
    mac_address: str = ""
    virtual_cluster: str = ""
    pin_host: str = ""
    pin_manager: str = ""
    manager_id: str = ""
    host_id: str = ""

    def spec(self) -> VmSpec:
        """What a host needs to start it."""
        return VmSpec(
            vm_id=self.vm_id,
            name=self.name,
            demand=self.demand,
            generation=self.generation,
            libvirt_xml=unpack_template(self.template),
            image=self.image,
            ip_address=self.ip_address,
            mac_address=self.mac_address,
        )


class TaskVmRecord(msgspec.Struct, frozen=True, array_like=True):
    """One VM of a task and what became of it."""

    vm_id: str
    name: str
    state: VmState
    host_id: str = ""
    ip_address: str = ""
    error: ErrorReport | None = None


class TaskRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """A submission."""

    task_id: str
    state: TaskState
    created_ms: int
    vms: tuple[TaskVmRecord, ...]
    ended_ms: int = 0
    key: str = ""
    virtual_cluster: str = ""


def pack_template(xml: str) -> bytes:
    """Compress a template; an empty one stays empty."""
    return zlib.compress(xml.encode(), 6) if xml else b""


def unpack_template(packed: bytes) -> str:
    """The template again.

    Raises:
        ExecutionError: if it is not what ``pack_template`` made.
    """
    if not packed:
        return ""
    try:
        unpacker = zlib.decompressobj()
        text = unpacker.decompress(packed, MAX_TEMPLATE_BYTES)
        if unpacker.unconsumed_tail:
            raise ExecutionError("a recorded template is larger than any we write")
        return text.decode()
    except (zlib.error, UnicodeDecodeError) as error:
        raise ExecutionError(f"a recorded template cannot be read: {error}") from error


def encode(record: msgspec.Struct) -> bytes:
    """A value for the store."""
    return bytes([SCHEMA]) + msgspec.msgpack.encode(record)


def decode(data: bytes, kind: type[T]) -> T:
    """The record in ``data``.

    Raises:
        ExecutionError: if it is of a newer schema or cannot be read; says which.
    """
    if not data:
        raise ExecutionError(f"an empty value is no {kind.__name__}")
    schema, body = data[0], data[1:]
    if schema > SCHEMA:
        raise ExecutionError(
            f"a {kind.__name__} was written with schema {schema}; this version reads up to "
            f"{SCHEMA}: upgrade this daemon"
        )
    try:
        if schema == SCHEMA:
            return msgspec.msgpack.decode(body, type=kind)
        fields = msgspec.msgpack.decode(body, type=dict[str, Any])
        for old in range(schema, SCHEMA):
            fields = _UPGRADES[old](fields)
        return msgspec.convert(fields, kind)
    except (msgspec.MsgspecError, KeyError) as error:
        raise ExecutionError(f"a {kind.__name__} cannot be read: {error}") from error
