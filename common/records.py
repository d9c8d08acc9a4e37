"""What ZooKeeper keeps: small versioned values, and where they lie.

=====================  ============  =================================  ========================
path                   written by    value                              gone when
=====================  ============  =================================  ========================
``/managers/ID``       the manager   ``ManagerDescription``, ephemeral  its session ends
``/hosts/ID``          the leader    ``HostRecord``                     never
``/tasks/XX/ID``       the leader    ``TaskRecord``                     retention is over
``/vms/XX/VM_ID``      the leader    ``VmRecord``                       the VM is proven gone
``/autonomy``          the leader    ``AutonomyRecord``                 never
``/lease``             the leader    ``LeaseRecord``                    never
``/layout``            the leader    number of the layout               never
=====================  ============  =================================  ========================

``XX`` is a shard; see ``record_layout.py``, also for how older layouts become this one.
``/candidates``, ``/epoch`` and ``/leader`` belong to the election (``groupmanager/election.py``).
Every transaction of a leader checks its epoch, so that a deposed one cannot write.

A value is one byte of schema number and then MessagePack. A value of a newer schema than ours is
refused with the advice to upgrade; older ones are read by ``_UPGRADES``:

======  ==========================================================================================
schema  what changed
======  ==========================================================================================
1       the first
2       a template is compressed with the dictionary of ``template_dictionary.py``
======  ==========================================================================================
"""

import zlib
from collections.abc import Callable
from enum import StrEnum
from typing import Any, Final, TypeVar

import msgspec

from snooze.common.api import TaskState
from snooze.common.errors import ErrorReport, ExecutionError
from snooze.common.resources import ZERO, Capacity
from snooze.common.template_dictionary import TEMPLATE_DICTIONARY
from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import VmPolicy, VmSpec
from snooze.common.wire import Address, PowerDescription

SCHEMA: Final = 2
MANAGERS: Final = "/managers"
HOSTS: Final = "/hosts"
TASKS: Final = "/tasks"
VMS: Final = "/vms"
AUTONOMY: Final = "/autonomy"
LEASE: Final = "/lease"

MAX_TEMPLATE_BYTES: Final = 4 * 1024 * 1024
"""Largest template that is unpacked again; a larger one was never written."""

T = TypeVar("T", bound=msgspec.Struct)


def _same(fields: dict[str, Any]) -> dict[str, Any]:
    """Templates of schema 1 have no dictionary, and say so themselves."""
    return fields


_UPGRADES: Final[dict[int, Callable[[dict[str, Any]], dict[str, Any]]]] = {1: _same}
"""``old schema -> what turns its map into the next schema's``."""


class HostPower(StrEnum):
    """The power state of a host, as the leader wants or knows it.

    ::

        ACTIVE -> GOING_DOWN -> ASLEEP -> WAKING -> ACTIVE
        ACTIVE -> FENCED (proven off) -> WAKING or ACTIVE when it is seen again
        GOING_DOWN -> ACTIVE (it refused); WAKING -> FAILED after the last try; FAILED -> ACTIVE
    """

    ACTIVE = "active"
    GOING_DOWN = "going_down"
    ASLEEP = "asleep"
    WAKING = "waking"
    FENCED = "fenced"
    FAILED = "failed"


class HostRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """A host that has ever joined, and the manager it was given to.

    ``away``: it has been out of reach for so long that no start ordered since can have reached it.
    ``capacity``, ``power``, ``lease_s``: as it last described itself; a host that is asleep or dead
    cannot be asked. ``state`` is written before what it announces is ordered; ``tries`` counts
    wake-ups or fencings that failed; ``note`` says why, for people. ``drain_until_ms``: a person
    wants it empty until then (negative: without a deadline); ``evacuated``: VMs that left for that.
    ``relieved_ms``: when it last took part in relieving an overload.
    """

    host_id: str
    hostname: str
    control: Address
    manager_id: str
    epoch: int
    away: bool = False
    capacity: Capacity = ZERO
    power: PowerDescription = PowerDescription()
    lease_s: float = 0.0
    state: HostPower = HostPower.ACTIVE
    state_since_ms: int = 0
    tries: int = 0
    maintenance: bool = False
    drain_until_ms: int = 0
    evacuated: tuple[str, ...] = ()
    note: str = ""
    relieved_ms: int = 0


class LeaseRecord(msgspec.Struct, frozen=True):
    """The longest term of a lease that any leader granted and that may not be over yet.

    Written before anything is granted of a longer one; lowered once every longer one has ended.
    """

    lease_s: float


class VmRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """A VM: what was asked for and where it is.

    ``template``: the user's libvirt XML, compressed by zlib; ``state``: the last settled one.
    ``generation`` is raised and recorded before a restart elsewhere is ordered; ``highest``: the
    highest ever recorded, if its host came back with a lower one; ``restarts_ms``: when it was
    restarted, the latest few. ``left``, ``moved_ms``: the host that it last left alive, and when;
    ``stuck_ms``: when it could last not be moved.
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
    policy: VmPolicy = VmPolicy()
    restarts_ms: tuple[int, ...] = ()
    highest: int = 0
    left: str = ""
    moved_ms: int = 0
    stuck_ms: int = 0

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
            policy=self.policy,
        )


class TaskVmRecord(msgspec.Struct, frozen=True, array_like=True):
    """One VM of a task and what became of it; ``note``: what it waits for."""

    vm_id: str
    name: str
    state: VmState
    host_id: str = ""
    ip_address: str = ""
    error: ErrorReport | None = None
    note: str = ""


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
    if not xml:
        return b""
    packer = zlib.compressobj(9, zdict=TEMPLATE_DICTIONARY)
    return packer.compress(xml.encode()) + packer.flush()


def unpack_template(packed: bytes) -> str:
    """The template again.

    Raises:
        ExecutionError: if it is not what ``pack_template`` made.
    """
    if not packed:
        return ""
    try:
        unpacker = zlib.decompressobj(zdict=TEMPLATE_DICTIONARY)
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
    except (ValueError, KeyError, RecursionError) as error:
        # msgspec.DecodeError and UnicodeDecodeError are ValueErrors.
        raise ExecutionError(f"a {kind.__name__} cannot be read: {error}") from error
