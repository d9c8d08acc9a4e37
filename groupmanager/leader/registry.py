"""What the leader knows: managers, hosts and VMs, as plain state.

The leader's cores change it; its HTTP handlers only read it. Everything in it can be rebuilt: from
the record, and from what managers say when they join.
"""

import math
from collections.abc import Callable, Collection, Container, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from snooze.common.records import HostPower, HostRecord
from snooze.common.resources import Capacity
from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import DEFAULT_POLICY, IMAGE_SUFFIXES, VmErrorCode, VmPolicy
from snooze.common.wire import HostDescription, VmStatus
from snooze.groupmanager.leader.manager_entry import ManagerEntry
from snooze.groupmanager.leader.registry_index import Groups, Images, Table, keep, watched


class Down(StrEnum):
    """What a proof says of a lost host."""

    EVERYTHING = "everything"
    """It is off, or was: nothing that ran on it runs."""
    FENCED = "fenced"
    """It has held no lease for so long that it has switched its highly available VMs off."""


class Plan(StrEnum):
    """How far the restart of a VM elsewhere is."""

    NONE = "none"
    WANTED = "wanted"
    """As soon as nobody can have it."""
    RECORDING = "recording"
    """Its next generation is being recorded."""
    PLACING = "placing"
    """A manager is asked to place it, or none has room yet."""


@watched(
    "joined",
    "manager_id",
    "state",
    "state_since_ms",
    "maintenance",
    "description",
    "given_up",
    "acquitted",
    "in_record",
    "reachable_s",
    "seen_s",
)
@dataclass(slots=True)
class HostEntry:
    """A host; ``manager_id`` is the manager it was given to, joined or not.

    ``seen_s``: when it last asked, joined or left. ``reachable_s``: until when, while it is not
    joined, a start may have been ordered on it of which we did not hear. ``given_up``: it has been
    away for long; ``acquitted``: and it cannot have a VM that is not known to be there.
    ``in_record``: the record has it as a host that may have VMs; ``away``: what the record says, or
    is about to.
    ``state``, ``state_since_ms``, ``tries``, ``maintenance``, ``drain_until_ms``, ``evacuated``,
    ``note``, ``relieved_ms``: as in ``HostRecord``. Each
    field has one core that changes it; all then order the record of the whole entry.
    ``silent``: its link was silent before it was closed. ``fencing``: it is being switched off, and
    gets no manager. ``down``: what is proven to be off on it since it was seen last.
    """

    description: HostDescription
    manager_id: str
    epoch: int
    joined: bool
    seen_s: float
    reachable_s: float = -math.inf
    given_up: bool = False
    acquitted: bool = False
    in_record: bool = False
    away: bool = False
    state: HostPower = HostPower.ACTIVE
    state_since_ms: int = 0
    tries: int = 0
    maintenance: bool = False
    drain_until_ms: int = 0
    evacuated: tuple[str, ...] = ()
    note: str = ""
    relieved_ms: int = 0
    silent: bool = False
    fencing: bool = False
    down: "Down | None" = None
    table: Table | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of_record(cls, record: HostRecord, now_s: float, reachable_s: float) -> "HostEntry":
        """The host as a new leader finds it.

        One that went to sleep by its own word is recorded as away; one that left without a word
        may have stayed up, with what was being started on it.
        """
        return cls(
            HostDescription(
                record.host_id,
                record.hostname,
                record.control,
                record.capacity,
                power=record.power,
                lease_s=record.lease_s,
            ),
            record.manager_id,
            record.epoch,
            joined=False,
            seen_s=now_s,
            reachable_s=-math.inf if record.away else reachable_s,
            in_record=not record.away,
            away=record.away,
            state=record.state,
            state_since_ms=record.state_since_ms,
            tries=record.tries,
            maintenance=record.maintenance,
            drain_until_ms=record.drain_until_ms,
            evacuated=record.evacuated,
            note=record.note,
            relieved_ms=record.relieved_ms,
        )

    @property
    def absence(self) -> str:
        """How it is, in a word or two, while it has not joined."""
        is_up = self.state is HostPower.ACTIVE
        return "out of reach" if is_up else self.state.value.replace("_", " ")

    def record(self) -> HostRecord:
        """What the store is to keep of it."""
        description = self.description
        return HostRecord(
            description.host_id,
            description.hostname,
            description.control,
            self.manager_id,
            self.epoch,
            self.away,
            description.capacity,
            description.power,
            description.lease_s,
            self.state,
            self.state_since_ms,
            self.tries,
            self.maintenance,
            self.drain_until_ms,
            self.evacuated,
            self.note,
            self.relieved_ms,
        )

    def join(self, description: HostDescription, manager_id: str, epoch: int, now_s: float) -> None:
        """A manager says that it has the host."""
        self.description, self.manager_id, self.epoch = description, manager_id, epoch
        self.joined, self.seen_s, self.reachable_s = True, now_s, -math.inf
        self.given_up = self.acquitted = self.away = False
        self.silent = self.fencing = False
        self.down = None

    def leave(self, now_s: float, *, silent: bool = False) -> None:
        """Its manager lost it, or was lost."""
        self.joined, self.seen_s, self.reachable_s = False, now_s, now_s
        self.silent = silent

    def is_off_for(self, vm: "VmEntry") -> bool:
        """Whether this VM is proven not to run here (its definition may be here)."""
        return self.down is Down.EVERYTHING or (
            self.down is Down.FENCED and vm.policy.is_highly_available
        )


@watched("host_id", "state", "demand", "policy", "doubt", "moving", "lacks_room", "elsewhere_s")
@dataclass(slots=True)
class VmEntry:
    """A VM as the leader knows it.

    ``doubt`` names the manager that was asked to place it and may or may not have done so.
    ``tried`` are the managers that refused it. ``waits_s``: since when it is not settled.
    ``lacks_room``: no host in reach can hold it, one that could be woken can; ``waits_for``: the
    host that is to come for it (empty: none, unset: it is yet to be chosen); ``wake_failed``: one
    that it waited for did not; ``ask_again_s``: when managers that refused it are asked again;
    ``for_now_s``: until when a refusal that is not for long (no session, just left) does not end
    it.
    ``elsewhere_s``: since when it may be on a host other than ``host_id`` (infinite: it cannot);
    a host that has been away since before then does not have it, and a joined one would say so.
    ``was``: its last state that is more than "out of sight". ``moving``: its manager moves it, and
    will say where it is. ``plan``, ``retry_s``: its restart, and when that goes on at the earliest.
    ``asks``: only a person has it restarted. ``revives``: it is to be started where it is.
    ``highest``: the highest generation that was recorded, if that is not ``generation``.
    ``left``, ``moved_ms``: the host that it last left alive, and when; ``stuck_ms``: when it could
    last not be moved.
    """

    vm_id: str
    name: str
    demand: Capacity
    state: VmState
    task_id: str = ""
    generation: int = 1
    managed: bool = True
    virtual_cluster: str = ""
    image: str = ""
    template: bytes = b""
    ip_address: str = ""
    mac_address: str = ""
    pin_host: str = ""
    pin_manager: str = ""
    manager_id: str = ""
    host_id: str = ""
    reason: str = ""
    error_code: VmErrorCode | None = None
    tried: set[str] = field(default_factory=set[str])
    doubt: str = ""
    waits_s: float = 0.0
    lacks_room: bool = False
    waits_for: str | None = None
    wake_failed: bool = False
    ask_again_s: float = 0.0
    for_now_s: float = -math.inf
    elsewhere_s: float = math.inf
    recorded: tuple[VmState, str, int] | None = None
    policy: VmPolicy = DEFAULT_POLICY
    restarts_ms: tuple[int, ...] = ()
    highest: int = 0
    was: VmState = VmState.PENDING
    moving: bool = False
    heard: bool = False
    """Whether its host has said so to this leader; otherwise the record says where it is."""
    plan: Plan = Plan.NONE
    retry_s: float = 0.0
    asks: bool = False
    revives: bool = False
    left: str = ""
    moved_ms: int = 0
    stuck_ms: int = 0
    table: Table | None = field(default=None, repr=False, compare=False)

    @property
    def key(self) -> str:
        """Its key in the registry: unmanaged domains of two hosts may share a UUID."""
        return vm_key(self.vm_id, self.host_id, self.managed)


def vm_key(vm_id: str, host_id: str, managed: bool) -> str:
    """The registry's key of a VM."""
    return vm_id if managed else f"{vm_id}@{host_id}"


_FILED_ONLY = frozenset({"given_up", "acquitted", "in_record", "reachable_s"})
"""What says where a host is looked for, and not what it is or can do."""
_SAYS_WHEN = frozenset({"manager_id", "seen_s", "state_since_ms"})
"""What says who has it, or since when, and not what it is or can do."""


class Hosts(dict[str, HostEntry]):
    """Hosts by id, with indexes of those that need to be looked at.

    ``odd``: those that are away, not simply active, or in maintenance; ``reached``: those of them
    that are joined. ``unsettled``: away, and not yet given up, acquitted and recorded so: of a host
    that sleeps nothing is left to find out. ``suspects``: away, and a start may have been ordered
    on them. ``lately``: those seen or in another state since somebody took them out, the latest
    last. ``version`` grows with each change of what a host is or can do; the ids of those that
    changed go into each of ``heard``.
    """

    def __init__(self, hosts: Mapping[str, HostEntry] | None = None) -> None:
        super().__init__()
        self.odd: dict[str, HostEntry] = {}
        self.reached: dict[str, HostEntry] = {}
        self.unsettled: dict[str, HostEntry] = {}
        self.suspects: dict[str, HostEntry] = {}
        self.lately: dict[str, HostEntry] = {}
        self._in: dict[HostPower, dict[str, HostEntry]] = {state: {} for state in HostPower}
        self._state: dict[str, HostPower] = {}
        self.version = 0
        self.heard: list[dict[str, None]] = []
        self.images = Images()
        self._named = Groups()
        self._name: dict[str, str] = {}
        for host_id, host in (hosts or {}).items():
            self[host_id] = host

    def __setitem__(self, host_id: str, host: HostEntry) -> None:
        super().__setitem__(host_id, host)
        host.table = self
        self.changed(host, "", None)

    def changed(self, entry: HostEntry, name: str, former: object) -> None:
        """See ``Table``."""
        host_id = entry.description.host_id
        if name in _FILED_ONLY:
            if self.get(host_id) is entry:
                self._file(host_id, entry)
            return
        self.version += name not in _SAYS_WHEN
        for each in self.heard:
            each[host_id] = None
        if self.get(host_id) is not entry:
            return
        if name in {"", "seen_s", "joined", "state", "state_since_ms"}:
            self.lately.pop(host_id, None)
            self.lately[host_id] = entry
        if name in {"", "joined", "description"}:
            self._describe(host_id, entry)
        self._file(host_id, entry)

    def _describe(self, host_id: str, entry: HostEntry) -> None:
        description = entry.description
        listed = description.images if entry.joined else None
        self.images.note(host_id, listed, lists=description.lists_images)
        if self._name.get(host_id) != description.hostname:
            self._named.remove(self._name.get(host_id, ""), host_id)
            self._named.add(description.hostname, host_id)
            self._name[host_id] = description.hostname

    def _file(self, host_id: str, host: HostEntry) -> None:
        """Put the host where it is looked for."""
        joined = host.joined
        odd = not joined or host.state is not HostPower.ACTIVE or host.maintenance
        known = host.given_up and host.acquitted and not host.in_record
        was = self._state.pop(host_id, None)
        if was is not None and (was is not host.state or not odd):
            del self._in[was][host_id]
        if odd:
            self._state[host_id] = host.state
            self._in[host.state][host_id] = host
        keep(self.odd, host_id, host, odd)
        keep(self.reached, host_id, host, odd and joined)
        keep(self.unsettled, host_id, host, not joined and not known)
        keep(self.suspects, host_id, host, not joined and host.reachable_s > -math.inf)

    def named(self, hostname: str) -> list[HostEntry]:
        """Those of this hostname."""
        return [self[host_id] for host_id in self._named.of(hostname)]

    def away(self, but: Container[HostPower] = ()) -> list[HostEntry]:
        """Those that have no manager now; not those in some states."""
        there = [index for state, index in self._in.items() if state not in but]
        return [host for index in there for host in index.values() if not host.joined]

    def in_state(self, states: Collection[HostPower]) -> list[HostEntry]:
        """Those in one of these states; ``ACTIVE`` is not to be asked for."""
        return [host for state in HostPower if state in states for host in self._in[state].values()]

    def count_in(self, states: Collection[HostPower]) -> int:
        """How many are; likewise."""
        return sum(len(self._in[state]) for state in states)


_VM_FILED_ONLY = frozenset({"doubt", "moving", "lacks_room", "elsewhere_s"})


class Vms(dict[str, VmEntry]):
    """VMs by key, with an index by host; hosts whose VMs changed go into each of ``heard``.

    ``open``: those of which a manager has an order that is under way (``doubt``, ``moving``).
    ``lacking``: those for which no host in reach has room. ``unsure``: those that may be elsewhere.
    """

    def __init__(self, vms: Mapping[str, VmEntry] | None = None) -> None:
        super().__init__()
        self._on = Groups()
        self._unmanaged = Groups()
        self.open: dict[str, VmEntry] = {}
        self.lacking: dict[str, VmEntry] = {}
        self.unsure: dict[str, VmEntry] = {}
        self.heard: list[dict[str, None]] = []
        for key, vm in (vms or {}).items():
            self[key] = vm

    def __setitem__(self, key: str, vm: VmEntry) -> None:
        former = self.get(key)
        if former is not None:
            self.pop(key)
        super().__setitem__(key, vm)
        vm.table = self
        self._on.add(vm.host_id, key)
        if not vm.managed:
            self._unmanaged.add(vm.name, key)
            self._unmanaged.add(vm.vm_id, key)
        self._file(key, vm)
        self._tell(vm.host_id)

    def pop(self, key: str, default: object = None) -> VmEntry | None:  # type: ignore[override]
        """Take a VM out, if it is here."""
        vm = super().pop(key, None)
        if vm is not None:
            vm.table = None
            for index in (self.open, self.lacking, self.unsure):
                index.pop(key, None)
            self._on.remove(vm.host_id, key)
            if not vm.managed:
                self._unmanaged.remove(vm.name, key)
                self._unmanaged.remove(vm.vm_id, key)
            self._tell(vm.host_id)
        return vm

    def _file(self, key: str, vm: VmEntry) -> None:
        keep(self.open, key, vm, bool(vm.doubt) or vm.moving)
        keep(self.lacking, key, vm, vm.lacks_room)
        keep(self.unsure, key, vm, vm.elsewhere_s < math.inf)

    def _tell(self, host_id: str) -> None:
        for each in self.heard:
            each[host_id] = None

    def changed(self, entry: VmEntry, name: str, former: object) -> None:
        """See ``Table``; the key of an unmanaged VM names its host, which it never leaves."""
        if name in _VM_FILED_ONLY:
            self._file(entry.key, entry)
            return
        self._tell(entry.host_id)
        if name != "host_id":
            return
        assert isinstance(former, str)
        self._tell(former)
        key = entry.key if entry.managed else vm_key(entry.vm_id, former, managed=False)
        self._on.remove(former, key)
        self._on.add(entry.host_id, key)

    def on(self, host_id: str) -> Iterator[VmEntry]:
        """The VMs of a host, as they are now."""
        return (self[key] for key in self._on.of(host_id) if key in self)

    def is_any_on(self, host_id: str) -> bool:
        """Whether a host has a VM of any kind."""
        return self._on.has(host_id)

    def unmanaged(self, name_or_id: str) -> VmEntry | None:
        """The first unmanaged domain of this name or id."""
        key = next(self._unmanaged.of(name_or_id), None)
        return self.get(key) if key is not None else None


def _tells_driver(host: HostDescription) -> bool:
    return bool(host.power.driver)


def _as_told() -> object:
    return None


@dataclass(slots=True)
class Registry:
    """Managers, hosts and VMs by id, and managed VMs by name.

    ``copies``: by host in reach and VM, domains with a lower generation than their VM's.
    ``graves``: VMs that are gone and were restarted in their life, with their highest generation:
    a host that was lost may come back with a copy, which is no VM any more. The oldest first.
    ``can_wake``: whether there is a way to switch a host on; ``wakes_by`` returns something else
    when that may be answered otherwise for an equal description. ``loads``: see ``registry_loads``.
    """

    managers: dict[str, ManagerEntry] = field(default_factory=dict[str, ManagerEntry])
    hosts: Hosts = field(default_factory=Hosts)
    vms: Vms = field(default_factory=Vms)
    names: dict[str, str] = field(default_factory=dict[str, str])
    copies: dict[str, dict[str, VmStatus]] = field(default_factory=dict[str, dict[str, VmStatus]])
    graves: dict[str, int] = field(default_factory=dict[str, int])
    can_wake: Callable[[HostDescription], bool] = _tells_driver
    wakes_by: Callable[[], object] = _as_told
    loads: object = field(default=None, repr=False, compare=False)

    def add_vm(self, vm: VmEntry) -> None:
        """Put a VM in; a managed one takes its name."""
        self.vms[vm.key] = vm
        if vm.managed:
            self.names[vm.name] = vm.key

    def remove_vm(self, vm: VmEntry) -> None:
        """Take a VM out, and its name with it."""
        self.vms.pop(vm.key, None)
        if self.names.get(vm.name) == vm.key:
            del self.names[vm.name]

    def find_vm(self, name_or_id: str) -> VmEntry | None:
        """A VM by its name, its id, or (unmanaged) ``id@host``; managed ones first."""
        key = self.names.get(name_or_id, name_or_id)
        found = self.vms.get(key)
        if found is not None:
            return found
        dashless = name_or_id.replace("-", "")
        return self.vms.get(dashless) or self.vms.unmanaged(name_or_id)

    def find_host(self, id_or_name: str) -> HostEntry | None:
        """A host by its id or hostname; a hostname that two hosts share finds none."""
        if id_or_name in self.hosts:
            return self.hosts[id_or_name]
        named = self.hosts.named(id_or_name)
        return named[0] if len(named) == 1 else None

    def cores_used(self, host: HostEntry) -> float:
        """How many cores a host uses, as the manager that has it says; below 0: not known."""
        manager = self.managers.get(host.manager_id)
        return -1.0 if manager is None else manager.cores.get(host.description.host_id, -1.0)

    def has_image(self, name: str) -> bool:
        """Whether a host in reach has an image of this name, or may have one that it did not list.

        A name may leave out the ending, as ``IMAGE_SUFFIXES`` says. Without any host the answer is
        yes: nobody knows yet. So it is while a host sleeps: it may be woken for it.
        """
        if self.hosts.count_in({HostPower.ASLEEP}):
            return True
        return self.hosts.images.may_have(name + suffix for suffix in IMAGE_SUFFIXES)

    def vms_of_host(self, host_id: str) -> Iterator[VmEntry]:
        """The VMs on a host."""
        return self.vms.on(host_id)

    def entry_of(self, status: VmStatus) -> VmEntry | None:
        """The VM that a manager speaks of."""
        return self.vms.get(vm_key(status.vm_id, status.host_id, status.managed))
