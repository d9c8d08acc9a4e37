"""Every state of a VM and every legal change, as one table.

The table is the rule: managers, local controllers, the simulation and the figure in
docs/vm-lifecycle.md all read ``TRANSITIONS``. An event that is not in the table for the present
state raises ``InvalidTransition`` and changes nothing.

Two kinds of event: *orders* say what somebody asked for (``SUSPEND_ASKED`` is absent because a
suspend is over in milliseconds and has no state of its own); *facts* say what the hypervisor did.

Invariant: a VM holds capacity on a host in the states of ``HOLDS_CAPACITY`` and in no other.
"""

from enum import StrEnum
from typing import Final

from snooze.common.errors import Conflict


class VmState(StrEnum):
    """Where a VM is in its life."""

    PENDING = "pending"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    STOPPED = "stopped"
    MIGRATING = "migrating"
    DESTROYING = "destroying"
    DESTROYED = "destroyed"
    FAILED = "failed"
    UNREACHABLE = "unreachable"


STATE_MEANINGS: Final[dict[VmState, str]] = {
    VmState.PENDING: "accepted and recorded, no host chosen yet",
    VmState.STARTING: "a host is chosen and its start is ordered",
    VmState.RUNNING: "the domain runs",
    VmState.PAUSED: "the domain is suspended; its memory stays",
    VmState.STOPPING: "the guest was asked to shut down and has not finished",
    VmState.STOPPED: "the domain is defined and off; it can be started again",
    VmState.MIGRATING: "the domain is moving to another host while it runs",
    VmState.DESTROYING: "its removal is ordered",
    VmState.DESTROYED: "gone: no domain, no lease, no capacity",
    VmState.FAILED: "it could not be started, or crashed; the reason is kept",
    VmState.UNREACHABLE: "its host does not answer; the VM may well be running",
}


class VmEvent(StrEnum):
    """What can happen to a VM."""

    PLACED = "placed"
    STARTED = "started"
    START_FAILED = "start failed"
    SUSPENDED = "suspended"
    RESUMED = "resumed"
    SHUTDOWN_ASKED = "shutdown asked"
    STOPPED = "stopped"
    CRASHED = "crashed"
    MIGRATION_STARTED = "migration started"
    MIGRATED = "migrated"
    MIGRATION_FAILED = "migration failed"
    DESTROY_ASKED = "destroy asked"
    DESTROYED = "destroyed"
    DESTROY_FAILED = "destroy failed"
    HOST_LOST = "host lost"
    SEEN_RUNNING = "seen running"
    SEEN_PAUSED = "seen paused"
    SEEN_STOPPED = "seen stopped"
    SEEN_GONE = "seen gone"


S = VmState
E = VmEvent

TRANSITIONS: Final[dict[tuple[VmState, VmEvent], VmState]] = {
    # a new VM
    (S.PENDING, E.PLACED): S.STARTING,
    (S.PENDING, E.START_FAILED): S.FAILED,
    (S.PENDING, E.DESTROY_ASKED): S.DESTROYED,
    (S.STARTING, E.STARTED): S.RUNNING,
    (S.STARTING, E.START_FAILED): S.FAILED,
    (S.STARTING, E.DESTROY_ASKED): S.DESTROYING,
    (S.STARTING, E.CRASHED): S.FAILED,
    # commands
    (S.RUNNING, E.SUSPENDED): S.PAUSED,
    (S.PAUSED, E.RESUMED): S.RUNNING,
    (S.RUNNING, E.SHUTDOWN_ASKED): S.STOPPING,
    (S.STOPPING, E.STOPPED): S.STOPPED,
    (S.RUNNING, E.STOPPED): S.STOPPED,
    (S.PAUSED, E.STOPPED): S.STOPPED,
    (S.STOPPED, E.PLACED): S.STARTING,
    (S.FAILED, E.PLACED): S.STARTING,
    # live migration
    (S.RUNNING, E.MIGRATION_STARTED): S.MIGRATING,
    (S.MIGRATING, E.MIGRATED): S.RUNNING,
    (S.MIGRATING, E.MIGRATION_FAILED): S.RUNNING,
    (S.MIGRATING, E.STOPPED): S.STOPPED,
    # removal
    (S.RUNNING, E.DESTROY_ASKED): S.DESTROYING,
    (S.PAUSED, E.DESTROY_ASKED): S.DESTROYING,
    (S.STOPPING, E.DESTROY_ASKED): S.DESTROYING,
    (S.STOPPED, E.DESTROY_ASKED): S.DESTROYING,
    (S.FAILED, E.DESTROY_ASKED): S.DESTROYING,
    (S.DESTROYING, E.DESTROYED): S.DESTROYED,
    (S.DESTROYING, E.STOPPED): S.DESTROYING,
    (S.DESTROYING, E.DESTROY_FAILED): S.FAILED,
    # crashes
    (S.RUNNING, E.CRASHED): S.FAILED,
    (S.PAUSED, E.CRASHED): S.FAILED,
    (S.STOPPING, E.CRASHED): S.FAILED,
    (S.MIGRATING, E.CRASHED): S.FAILED,
}
"""``(state, event) -> state``."""

_LOST_FROM = (S.STARTING, S.RUNNING, S.PAUSED, S.STOPPING, S.STOPPED, S.MIGRATING, S.DESTROYING)
TRANSITIONS.update({(state, E.HOST_LOST): S.UNREACHABLE for state in _LOST_FROM})

# What a host reports about itself settles every doubt (reconciliation).
_SEEN = {
    E.SEEN_RUNNING: S.RUNNING,
    E.SEEN_PAUSED: S.PAUSED,
    E.SEEN_STOPPED: S.STOPPED,
    E.SEEN_GONE: S.DESTROYED,
}
for _state in (
    S.PENDING,
    S.STARTING,
    S.RUNNING,
    S.PAUSED,
    S.STOPPING,
    S.STOPPED,
    S.MIGRATING,
    S.FAILED,
    S.UNREACHABLE,
):
    for _event, _target in _SEEN.items():
        if _state is not S.PENDING or _event is not E.SEEN_GONE:
            TRANSITIONS[_state, _event] = _target
TRANSITIONS[S.STOPPING, E.SEEN_RUNNING] = S.STOPPING
TRANSITIONS[S.DESTROYING, E.SEEN_GONE] = S.DESTROYED
TRANSITIONS[S.UNREACHABLE, E.DESTROY_ASKED] = S.DESTROYING

HOLDS_CAPACITY: Final = frozenset(
    {S.STARTING, S.RUNNING, S.PAUSED, S.STOPPING, S.MIGRATING, S.DESTROYING, S.UNREACHABLE}
)
"""The states in which a VM's demand is reserved on its host."""

FINAL: Final = frozenset({S.DESTROYED})
"""The states without a way out."""

SETTLED: Final = frozenset({S.RUNNING, S.PAUSED, S.STOPPED, S.DESTROYED, S.FAILED})
"""The states in which nothing is under way."""


class VmCommand(StrEnum):
    """What a client can ask of a VM."""

    START = "start"
    SUSPEND = "suspend"
    RESUME = "resume"
    SHUTDOWN = "shutdown"
    REBOOT = "reboot"
    DESTROY = "destroy"
    RESIZE = "resize"
    MIGRATE = "migrate"


ALLOWED_FROM: Final[dict[VmCommand, frozenset[VmState]]] = {
    VmCommand.START: frozenset({S.STOPPED, S.FAILED}),
    VmCommand.SUSPEND: frozenset({S.RUNNING}),
    VmCommand.RESUME: frozenset({S.PAUSED}),
    VmCommand.SHUTDOWN: frozenset({S.RUNNING, S.STOPPING}),
    VmCommand.REBOOT: frozenset({S.RUNNING}),
    VmCommand.DESTROY: frozenset(
        {S.PENDING, S.STARTING, S.RUNNING, S.PAUSED, S.STOPPING, S.STOPPED, S.FAILED}
    ),
    VmCommand.RESIZE: frozenset({S.RUNNING}),
    VmCommand.MIGRATE: frozenset({S.RUNNING}),
}
"""The states in which each command does something."""

ALREADY_DONE: Final[dict[VmCommand, frozenset[VmState]]] = {
    VmCommand.START: frozenset({S.STARTING, S.RUNNING}),
    VmCommand.SUSPEND: frozenset({S.PAUSED}),
    VmCommand.RESUME: frozenset({S.RUNNING}),
    VmCommand.SHUTDOWN: frozenset({S.STOPPED}),
    VmCommand.REBOOT: frozenset(),
    VmCommand.DESTROY: frozenset({S.DESTROYING, S.DESTROYED}),
    VmCommand.RESIZE: frozenset(),
    VmCommand.MIGRATE: frozenset(),
}
"""The states in which a command has nothing to do and succeeds: commands are idempotent."""


class InvalidTransition(Conflict):
    """An event that the table does not know for the present state; nothing changed."""


def after(state: VmState, event: VmEvent, story: str = "") -> VmState:
    """The state after ``event``.

    Raises:
        InvalidTransition: if the table has no such change; ``story`` tells of which VM and why.
    """
    target = TRANSITIONS.get((state, event))
    if target is None:
        raise InvalidTransition(
            f"{event.value!r} cannot happen to a VM that is {state.value}"
            + (f" ({story})" if story else "")
        )
    return target


def check_command(command: VmCommand, state: VmState, name: str) -> bool:
    """True if ``command`` has work to do, False if it is already done.

    Raises:
        Conflict: if the VM is in a state that does not allow it; says which states do.
    """
    if state in ALLOWED_FROM[command]:
        return True
    if state in ALREADY_DONE[command]:
        return False
    allowed = ", ".join(sorted(s.value for s in ALLOWED_FROM[command]))
    raise Conflict(
        f"cannot {command.value} VM {name!r}: it is {state.value}; it has to be {allowed}"
    )


def as_mermaid() -> str:
    """The table as a Mermaid state diagram (reconciliation left out for legibility)."""
    lines = ["stateDiagram-v2", "    [*] --> pending"]
    merged: dict[tuple[VmState, VmState], list[str]] = {}
    for (state, event), target in TRANSITIONS.items():
        if event not in _SEEN and state is not target:
            merged.setdefault((state, target), []).append(event.value)
    for (state, target), events in merged.items():
        lines.append(f"    {state.value} --> {target.value}: {' / '.join(events)}")
    lines.append("    destroyed --> [*]")
    return "\n".join(lines)


def as_markdown() -> str:
    """The page docs/vm-lifecycle.md, drawn from the table."""
    rows = [
        f"| `{state.value}` | {meaning} | {'yes' if state in HOLDS_CAPACITY else ''} |"
        for state, meaning in STATE_MEANINGS.items()
    ]
    commands = [
        f"| `{command.value}` | {_names(ALLOWED_FROM[command])} | {_names(ALREADY_DONE[command])} |"
        for command in VmCommand
    ]
    return "\n".join(
        [
            "# The life of a VM",
            "",
            "Drawn from `common/vm_lifecycle.py` by `python -m snooze.common.vm_lifecycle`;",
            "a test compares.",
            "",
            "```mermaid",
            as_mermaid(),
            "```",
            "",
            "| state | meaning | holds capacity |",
            "| --- | --- | --- |",
            *rows,
            "",
            "What a host reports about its own domains (*seen running*, *paused*, *stopped* or",
            "*gone*) settles every doubt: the VM takes the state seen, unless it is `destroyed`.",
            "A VM that was asked to shut down and is seen running is still `stopping`, for five",
            "minutes: then it is `running` again, and says why.",
            "",
            "| command | has work to do when the VM is | is already done when it is |",
            "| --- | --- | --- |",
            *commands,
            "",
        ]
    )


def _names(states: frozenset[VmState]) -> str:
    return ", ".join(f"`{state.value}`" for state in VmState if state in states)


if __name__ == "__main__":
    import sys

    sys.stdout.write(as_markdown())
