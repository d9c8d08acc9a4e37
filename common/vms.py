"""VMs as daemons speak of them: what was asked for, what a host reports, what one uses.

A VM has three names. ``vm_id`` is ours: unique for ever, made when the submission is accepted.
``name`` is the user's and libvirt's: unique among living VMs; it is what Snooze's own clients call
``virtualMachineId``. ``generation`` counts its starts on a new host: two domains of one ``vm_id``
are told apart by it, and the higher one is right.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Final

import msgspec

from snooze.common.resources import Capacity
from snooze.common.vm_lifecycle import VmState

IMAGE_SUFFIXES = ("", ".qcow2", ".img", ".raw")
"""What may be left out at the end of an image's name, in the order of trying."""


class VmErrorCode(StrEnum):
    """Why a VM of a submission does not run; stable, for programs."""

    INVALID_TEMPLATE = "invalid_template"
    NAME_TAKEN = "name_taken"
    INVALID_HOST = "invalid_host"
    NO_ADDRESS = "no_address"
    NO_MANAGER = "no_manager"
    NO_CAPACITY = "no_capacity"
    START_FAILED = "start_failed"
    UNREACHABLE = "unreachable"
    WAKEUP_FAILED = "wakeup_failed"
    TIMED_OUT = "timed_out"
    DESTROYED = "destroyed"
    OTHER_REFUSED = "other_refused"


class FailureAction(StrEnum):
    """What becomes of a VM whose host is proven down."""

    RESTART = "restart"
    """It is started on another host."""
    ASK = "ask"
    """It waits until a person says so (``snooze start``)."""
    LEAVE = "leave"
    """It waits for its host."""


class SlowMigration(StrEnum):
    """What is done about a live migration that does not converge."""

    CONVERGE = "converge"
    """The guest is slowed down (auto-converge); given up at the time limit."""
    POSTCOPY = "postcopy"
    """It goes on at the destination while its memory follows."""
    PAUSE = "pause"
    """It is paused, within ``max_downtime_ms``, so that its memory stands still."""
    GIVE_UP = "give_up"
    """It stays where it is."""


class VmPolicy(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a VM is treated when nobody is looking.

    Attributes:
        on_host_failure: when its host is proven down. VMs that are restarted are *highly
            available*: a host that holds no lease fences them by itself.
        priority: higher is restarted first.
        max_restarts: restarts within the recovery window (a setting) until a person has to ask.
        start_order: within its virtual cluster, lower first; equal ones together.
        movable: whether the cluster may migrate it by itself.
        slow_migration: see ``SlowMigration``.
        max_downtime_ms: the longest pause at the end of a migration; 0: the host's setting.
    """

    on_host_failure: FailureAction = FailureAction.RESTART
    priority: int = 0
    max_restarts: int = 3
    start_order: int = 0
    movable: bool = True
    slow_migration: SlowMigration = SlowMigration.CONVERGE
    max_downtime_ms: int = 0

    @property
    def is_highly_available(self) -> bool:
        """Whether it is restarted elsewhere when its host is lost."""
        return self.on_host_failure is FailureAction.RESTART


DEFAULT_POLICY = VmPolicy()
"""Of a VM for which nobody said anything else."""


class VmSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was asked for, complete: a host can start the VM from this and nothing else.

    Attributes:
        vm_id: our identity (32 hexadecimal digits).
        name: libvirt domain name.
        generation: from 1; raised each time the VM is given to another host by a restart.
        demand: reserved on its host; ``cpu_cores`` is the number of vCPUs.
        libvirt_xml: the user's template, as sent; empty when made from ``image``.
        image: name of the master image, for a VM without a template.
        ip_address: leased address, or empty.
        mac_address: address to give to the first NIC, or empty to keep the template's.
        policy: kept in the domain's metadata, so that a host knows it without being told.
    """

    vm_id: str
    name: str
    demand: Capacity
    generation: int = 1
    libvirt_xml: str = ""
    image: str = ""
    ip_address: str = ""
    mac_address: str = ""
    policy: VmPolicy = VmPolicy()

    @property
    def vcpus(self) -> int:
        """Number of virtual CPUs, at least one."""
        return max(1, round(self.demand.cpu_cores))

    @property
    def memory_kib(self) -> int:
        """Memory of the guest."""
        return round(self.demand.memory_kib)


class LooseDisk(msgspec.Struct, frozen=True, array_like=True):
    """A disk that was made for a VM, seen by a host that has no domain of that VM.

    ``generation``, ``host_id``: of the VM's last start on it, as the note beside it says; 0 and
    empty without one. ``changed_ms``: when it was last written. ``used``: a guest may have been.
    """

    vm_id: str
    generation: int
    host_id: str
    changed_ms: int
    size_bytes: int
    used: bool = True


class VmReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a host says of one domain it has.

    A domain without our metadata is ``managed=False``: it is shown and counted, never touched; its
    ``vm_id`` is its libvirt UUID without dashes.

    Attributes:
        xml: what really runs, as the hypervisor describes it.
        reason: why it is ``FAILED`` or ``STOPPED``, when the hypervisor says so.
        policy: as in its metadata; the default for domains without.
        fenced: the host switched it off by itself, because it held no lease.
        interrupted: it is off and nobody switched it off: its host went down under it.
        halted: it is paused by a migration, and by nobody's wish.
    """

    vm_id: str
    name: str
    state: VmState
    demand: Capacity
    generation: int = 1
    managed: bool = True
    ip_address: str = ""
    mac_address: str = ""
    image: str = ""
    xml: str = ""
    reason: str = ""
    policy: VmPolicy = VmPolicy()
    fenced: bool = False
    interrupted: bool = False
    halted: bool = False


MAX_XML_BYTES: Final = 6 * 1024 * 1024
"""Of all VMs in one message, which has 16 MiB; a real guest's takes some kilobytes."""


def without_long_xml(
    reports: Sequence[VmReport], most_bytes: int = MAX_XML_BYTES
) -> list[VmReport]:
    """The reports, the longest without their XML where all of it would outgrow a message.

    The XML is for people to read. Some templates of the greatest size allowed must not keep a host
    from being told of at all.
    """
    sizes = [len(report.xml.encode()) for report in reports]
    left_bytes = most_bytes
    kept: set[int] = set()
    for index in sorted(range(len(reports)), key=sizes.__getitem__):
        left_bytes -= sizes[index]
        if left_bytes < 0:
            break
        kept.add(index)
    return [
        report if index in kept else msgspec.structs.replace(report, xml="")
        for index, report in enumerate(reports)
    ]


def being_started(spec: VmSpec) -> VmReport:
    """What is said of a VM that has no domain yet."""
    return VmReport(
        vm_id=spec.vm_id,
        name=spec.name,
        state=VmState.STARTING,
        demand=spec.demand,
        generation=spec.generation,
        ip_address=spec.ip_address,
        mac_address=spec.mac_address,
        image=spec.image,
        policy=spec.policy,
    )


class MigrationProgress(msgspec.Struct, frozen=True, omit_defaults=True):
    """How far a live migration is, from the hypervisor's own job statistics.

    Attributes:
        downtime_ms: known at the end, or expected; 0 when the hypervisor does not say.
        dirty_kib_s: rate at which the guest dirties memory; 0 when unknown.
        note: what is unusual about this migration (the test driver's is a copy of the definition).
    """

    vm_id: str
    elapsed_ms: int = 0
    total_bytes: int = 0
    processed_bytes: int = 0
    remaining_bytes: int = 0
    dirty_kib_s: float = 0.0
    downtime_ms: int = 0
    iteration: int = 0
    note: str = ""


class MigrationTicket(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a destination hands out when it is ready for an incoming VM.

    Attributes:
        uri: libvirt URI by which the source's hypervisor reaches the destination's.
        data_uri: address for the memory stream (``tcp://ADDRESS``), or empty for the default.
        live: whether the driver moves the running guest; False: the definition is moved and the
            guest starts again at the destination (libvirt's test driver).
        copy_storage: disks lie on storage that is not shared and travel too.
        incremental: only what lies above a master image that both hosts have.
        token: names this reservation at the destination.
        hold: the guest arrives paused, and runs once it is finished: no lock on a disk would keep
            it from running twice if both hypervisors lose each other as it changes over.
    """

    vm_id: str
    uri: str
    data_uri: str = ""
    live: bool = True
    copy_storage: bool = False
    token: str = ""
    incremental: bool = False
    hold: bool = False
