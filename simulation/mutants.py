# pyright: reportPrivateUsage=false
# What is broken here is the inside of the product, on purpose.
"""The product, broken on purpose: each mutant takes one rule away, and a few seeds must find it.

A mutant replaces one function of a core or a shell while it is applied, and puts it back
afterwards. ``found_within`` is how many seeds (from ``first`` on) are enough to find it; a test
holds that.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from snooze.common.coordination.port import Check, Session, SessionState
from snooze.common.lease_core import LeaseCore
from snooze.common.wire import LeaseGranted, PlaceVms, RelayedOrder, VmChanged, VmOrder
from snooze.groupmanager.election import Election
from snooze.groupmanager.leader import submission_core, submission_restarts_core
from snooze.groupmanager.leader.authority import Authority
from snooze.groupmanager.leader.energy_steps_core import PowerSteps
from snooze.groupmanager.leader.journal import Journal
from snooze.groupmanager.leader.membership_core import MembershipCore
from snooze.groupmanager.leader.recovery_core import RecoveryCore, Watch
from snooze.groupmanager.leader.recovery_events import PowerAnswered, PowerOutcome
from snooze.groupmanager.leader.registry import HostEntry
from snooze.groupmanager.leader.submission_core import SubmissionCore
from snooze.groupmanager.leader.submission_events import (
    AnswerSubmission,
    PlacementFailed,
    RecordTask,
    Submitted,
    UpdateRecords,
)
from snooze.groupmanager.leader.submission_halted_core import Halted
from snooze.groupmanager.manager.host_table import HostTable
from snooze.groupmanager.manager.leases import Leases
from snooze.groupmanager.manager.manager_events import OrderAsked, PlaceAsked, RelayAsked
from snooze.groupmanager.manager.service import ManagerService
from snooze.groupmanager.manager.sleep_core import Sleeping
from snooze.localcontroller.agent_core import AgentCore
from snooze.localcontroller.fence_guard import Guard
from snooze.localcontroller.lease import HostLease
from snooze.localcontroller.orders import Orders
from snooze.scheduling.recovery_question import FenceQuestion

FIRST_SEED: Final = 1
FIRST_SLEEPY_SEED: Final = 48
"""The first of those in whose worlds hosts go to sleep (``run.recipe_of``)."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """A broken product: what is broken, and how soon that has to be seen."""

    name: str
    what: str
    found_within: int
    apply: Callable[[], AbstractContextManager[None]]
    seen_by: int = FIRST_SEED
    """A seed within those that is known to find it: tried first."""
    first: int = FIRST_SEED

    def seeds(self) -> list[int]:
        """The seeds that are enough, the best first."""
        wanted = range(self.first, self.first + self.found_within)
        return sorted(wanted, key=lambda seed: (seed != self.seen_by, seed))


@contextlib.contextmanager
def unbroken() -> Generator[None]:
    """The product as it is."""
    yield


def _replacing(
    owner: Any, name: str, replacement: Any, *more: tuple[Any, str, Any]
) -> Callable[[], AbstractContextManager[None]]:
    changes = ((owner, name, replacement), *more)

    @contextlib.contextmanager
    def apply() -> Generator[None]:
        formers = [getattr(where, what) for where, what, _ in changes]
        for where, what, new in changes:
            setattr(where, what, new)
        try:
            yield
        finally:
            for (where, what, _), former in zip(changes, formers, strict=True):
                setattr(where, what, former)

    return apply


def _acknowledged_first(core: SubmissionCore, event: Submitted, now_s: float) -> list[Any]:
    """The client has its answer before the task is in the store."""
    effects: list[Any] = []
    for effect in _submitted(core, event, now_s):
        effects.append(effect)
        if isinstance(effect, RecordTask):
            core.waiting.pop(effect.task.task_id, None)
            effects.insert(0, AnswerSubmission(event.request_id, effect.task.task_id))
    return effects


def _address_at_once(core: SubmissionCore, host_id: str, host: Any, now_s: float) -> list[Any]:
    """The addresses of VMs on a host that is away are given to others."""
    effects = _watch_host(core, host_id, host, now_s)
    if host.given_up and not host.joined:
        for vm in core.registry.vms_of_host(host_id):
            core.leases.withdraw(vm.vm_id)
    return effects


def _forgotten_with_link(core: SubmissionCore, host_id: str, host: Any, now_s: float) -> list[Any]:
    """A host that is away takes its VMs out of the record."""
    effects = _watch_host(core, host_id, host, now_s)
    if host.given_up and not host.joined:
        removed: list[str] = []
        for vm in list(core.registry.vms_of_host(host_id)):
            effects += core.gone(vm, removed, now_s, 0, "")
        if removed:
            effects.append(UpdateRecords(removed_vms=removed))
    return effects


def _room_not_kept(table: HostTable, host_id: str, demand: Any, sign: float) -> None:
    """Of what migrates, no room is kept at the destination."""


async def _event_believed(orders: Orders, vm_id: str, *, has_ended: bool = False) -> None:
    """What an event says is gone is told to be gone, however late that comes."""
    gone = orders._known.pop(vm_id, None) if has_ended else None
    if gone is not None:
        orders._tell(VmChanged(gone, gone=True))
    elif not has_ended:
        await _reconcile_vm(orders, vm_id)


def _no_balance(core: MembershipCore, now_s: float) -> list[Any]:
    """Hosts are never handed over."""
    return []


def _silent_is_off(core: RecoveryCore, event: PowerAnswered, now_s: float) -> list[Any]:
    """Whatever a power controller says, or does not, is proof."""
    return _power_answered(core, dataclasses.replace(event, outcome=PowerOutcome.OFF), now_s)


def _no_copy_is_stale(_core: RecoveryCore, _host_id: str) -> tuple[Any, ...]:
    """No domain has to go."""
    return ()


def _any_copy_is_the_one(_core: SubmissionCore, _vm: Any, _status: Any) -> bool:
    """Generations are not looked at."""
    return True


def _any_epoch(_core: AgentCore, _epoch: int) -> None:
    """Whatever comes is taken."""


def _unfenced(journal: Journal, coordinator: Any, fence: Check, deposed: Any) -> None:
    """Writes are applied whoever leads."""
    _journal(journal, coordinator, Check(fence.path), deposed)


def _nothing_to_fence(_core: LeaseCore, _now_s: float) -> list[Any]:
    """The lease is over, and guests run on."""
    return []


def _no_guard(_guard: Guard) -> None:
    """Nobody looks beside the agent."""


def _lease_not_waited_for(
    core: RecoveryCore, host: HostEntry, watch: Watch, now_s: float
) -> FenceQuestion:
    """A host that fences itself is taken to have done so as soon as it is lost."""
    question = _question(core, host, watch, now_s)
    return msgspec.structs.replace(question, lease_s=0.0, margin_s=0.0)


def _nowhere_else(_vm: Any, _hosts: Any) -> bool:
    """A host that is away has nothing."""
    return False


def _silence_is_no(core: SubmissionCore, event: PlacementFailed, now_s: float) -> list[Any]:
    """A manager that did not answer is taken to have refused."""
    return _failed(core, dataclasses.replace(event, unknown=False), now_s)


def _deaf(election: Election, session: Session) -> None:
    """That the store is out of reach, or has ended the session, is nothing to it."""
    if session.state is SessionState.CONNECTED:
        _session_changed(election, session)


def _leads_on(election: Election, epoch: int) -> bool:
    """Who was once elected leads."""
    return election._confirmed_epoch == epoch


def _not_let_go(_core: Halted, _now_s: float) -> list[Any]:
    """Nobody lets it go on."""
    return []


async def _not_read(_authority: Authority) -> None:
    """What former leaders granted is not asked for."""


async def _granted_whole(leases: Leases, host_id: str, epoch: int) -> LeaseGranted:
    """A manager grants its hosts the whole term, whatever is left of its own lease."""
    granted = await _grant(leases, host_id, epoch)
    host = leases._table.hosts.get(host_id)
    if host is None or host.epoch != epoch or not host.directed:
        return granted
    return LeaseGranted(leases._lease_s)


async def _no_lease_needed(_lease: HostLease) -> None:
    """Whatever is ordered is started."""


async def _any_leader(service: ManagerService, message: Any) -> msgspec.Struct:
    """A manager carries out what any leader orders, also one that was deposed."""
    match message:
        case PlaceVms():
            return await service._ask(lambda i: PlaceAsked(i, message))
        case VmOrder():
            return await service._ask(lambda i: OrderAsked(i, message))
        case RelayedOrder():
            return await service._ask(lambda i: RelayAsked(i, message))
        case _:
            return await _answer_leader(service, message)


def _nothing_hinders(_sleeping: Sleeping, _host: Any) -> str:
    """A manager sends a host to sleep whatever is on it."""
    return ""


async def _goes_down_anyway(orders: Orders) -> None:
    """A host goes down whatever is on it."""
    orders.goes_down = True


def _not_gone_on_with(_steps: PowerSteps, _host: Any, _now_s: float, _now_ms: int) -> list[Any]:
    """What a former leader had begun with a host is left there."""
    return []


_grant = Leases.grant
_answer_leader = ManagerService._answer_leader
_failed = SubmissionCore._failed
_session_changed = Election._session_changed
_journal = Journal.__init__
_question = RecoveryCore._question
_power_answered = RecoveryCore._power_answered
_reconcile_vm = Orders.reconcile_vm
_submitted = SubmissionCore._submitted
_watch_host = SubmissionCore._watch_host

_ALL: tuple[Mutant, ...] = (
    Mutant(
        "no-epoch-check",
        "a host takes orders of any epoch",
        6,
        _replacing(AgentCore, "admit", _any_epoch),
        seen_by=2,
    ),
    Mutant(
        "any-leader",
        "a group manager takes orders of leaders that were deposed",
        30,
        _replacing(ManagerService, "_answer_leader", _any_leader),
        seen_by=20,
    ),
    Mutant(
        "leads-on",
        "a leader leads on whatever becomes of its session with the store",
        40,
        _replacing(Election, "is_leader", _leads_on, (Election, "_session_changed", _deaf)),
        seen_by=35,
    ),
    Mutant(
        "placed-without-proof",
        "a VM is placed anew although a host that is away may have it",
        20,
        _replacing(
            submission_core,
            "may_be_on",
            _nowhere_else,
            (submission_restarts_core, "may_be_on", _nowhere_else),
        ),
        seen_by=10,
    ),
    Mutant(
        "silence-is-refusal",
        "a group manager that did not answer a placement is taken to have refused it",
        20,
        _replacing(SubmissionCore, "_failed", _silence_is_no),
        seen_by=10,
    ),
    Mutant(
        "halted-stays",
        "a guest that a migration left paused, and whose manager died, stays paused",
        20,
        _replacing(Halted, "let_go_on", _not_let_go),
        seen_by=7,
    ),
    Mutant(
        "unfenced-writes",
        "the leader's transactions do not check its epoch",
        1,
        _replacing(Journal, "__init__", _unfenced),
    ),
    Mutant(
        "acknowledged-before-write",
        "a submission is answered before it is in the store",
        5,
        _replacing(SubmissionCore, "_submitted", _acknowledged_first),
    ),
    Mutant(
        "restart-without-fencing",
        "a host that is away is taken to be down, whatever its power controller says",
        5,
        _replacing(RecoveryCore, "_power_answered", _silent_is_off),
        seen_by=2,
    ),
    Mutant(
        "stale-copies-stay",
        "a host that comes back is not told which of its domains live elsewhere now",
        12,
        _replacing(RecoveryCore, "_stale", _no_copy_is_stale),
        seen_by=5,
    ),
    Mutant(
        "older-copy-wins",
        "any copy that a host brings back is taken for the VM",
        12,
        _replacing(SubmissionCore, "_is_the_one", _any_copy_is_the_one),
        seen_by=5,
    ),
    Mutant(
        "address-reused-on-disconnect",
        "the addresses of a host that is away are leased to other VMs",
        6,
        _replacing(SubmissionCore, "_watch_host", _address_at_once),
        seen_by=2,
    ),
    Mutant(
        "forgotten-with-link",
        "the VMs of a host that is away are forgotten",
        30,
        _replacing(SubmissionCore, "_watch_host", _forgotten_with_link),
        seen_by=21,
    ),
    Mutant(
        "room-not-kept",
        "no room is kept at the destination of a migration",
        5,
        _replacing(HostTable, "promise", _room_not_kept),
        seen_by=2,
    ),
    Mutant(
        "no-host-fences-itself",
        "guests run on when the lease of their host is over",
        100,
        _replacing(LeaseCore, "_fence", _nothing_to_fence, (Guard, "look", _no_guard)),
        seen_by=66,
    ),
    Mutant(
        "no-guard",
        "a host whose agent stands still does not fence itself",
        120,
        _replacing(Guard, "look", _no_guard),
        seen_by=94,
    ),
    Mutant(
        "lease-not-waited-for",
        "a host that fences itself is taken to have done so as soon as it is lost",
        30,
        _replacing(RecoveryCore, "_question", _lease_not_waited_for),
        seen_by=21,
    ),
    Mutant(
        "own-term-only",
        "a leader waits for leases of its own term only, whatever was granted before it",
        30,
        _replacing(Authority, "load", _not_read),
        seen_by=20,
    ),
    Mutant(
        "granted-beyond-own",
        "a manager grants its hosts more than is left of its own lease",
        200,
        _replacing(Leases, "grant", _granted_whole),
        seen_by=187,
    ),
    Mutant(
        "no-lease-needed",
        "a host starts highly available VMs without a lease",
        40,
        _replacing(HostLease, "require", _no_lease_needed),
        seen_by=28,
    ),
    Mutant(
        "sleeps-with-guests",
        "a host is sent to sleep, and goes, whatever is on it",
        96,
        _replacing(
            Sleeping,
            "_hindrance",
            _nothing_hinders,
            (Orders, "prepare_to_go_down", _goes_down_anyway),
        ),
        seen_by=129,
        first=FIRST_SLEEPY_SEED,
    ),
    Mutant(
        "half-asleep",
        "a leader does not go on with hosts that the one before it sent to sleep, or woke",
        20,
        _replacing(PowerSteps, "_go_on", _not_gone_on_with),
        seen_by=56,
        first=FIRST_SLEEPY_SEED,
    ),
    Mutant(
        "event-believed",
        "a host does not look whether a VM is gone that an event says is gone",
        142,
        _replacing(Orders, "reconcile_vm", _event_believed),
        seen_by=142,
    ),
    Mutant(
        "never-balanced",
        "hosts are not handed over between managers",
        2,
        _replacing(MembershipCore, "_rebalance", _no_balance),
    ),
)

MUTANTS: Final[dict[str, Mutant]] = {mutant.name: mutant for mutant in _ALL}
