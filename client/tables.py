"""The tables that people see: units readable, and the most important columns first."""

import datetime
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from snooze.client.terminal import plain
from snooze.client.units import (
    cores_text,
    energy_text,
    memory_text,
    pair_text,
    rate_text,
    share_text,
    span_text,
    watts_text,
)
from snooze.common.api import (
    EnergyView,
    ErrorBody,
    EventView,
    HostView,
    ImageView,
    ManagerView,
    TaskState,
    TaskView,
    VmView,
)
from snooze.common.errors import ErrorReport, SnoozeError
from snooze.common.resources import Capacity, bytes_text
from snooze.common.vm_lifecycle import VmState

Cell = str | Text

VM_STYLES: Final[dict[VmState, str]] = {
    VmState.RUNNING: "green",
    VmState.PAUSED: "yellow",
    VmState.STOPPED: "dim",
    VmState.DESTROYED: "dim",
    VmState.FAILED: "red",
    VmState.UNREACHABLE: "red",
}
"""Any other state is under way."""

TASK_STYLES: Final[dict[TaskState, str]] = {
    TaskState.DONE: "green",
    TaskState.PARTIAL: "yellow",
    TaskState.FAILED: "red",
}
UNDER_WAY: Final = "cyan"
GAP: Final = 2
MIN_FIRST_WIDTH: Final = 20
MIN_WORDS_WIDTH: Final = 16


def vms(views: Sequence[VmView]) -> RenderableType:
    """All VMs."""
    rows = [
        (
            _text(vm.name),
            vm_state(vm),
            _text(vm.hostname or vm.host_id or "-"),
            _text(vm.ip_address or "-"),
            cores_text(vm.demand.cpu_cores),
            memory_text(vm.demand.memory_kib),
        )
        for vm in sorted(views, key=lambda vm: vm.name)
    ]
    columns = ("NAME", "STATE", "HOST", "ADDRESS", ">VCPUS", ">MEMORY")
    return _table(columns, rows, "No VMs. Start one with `snooze submit`.")


def vm_details(vm: VmView) -> RenderableType:
    """Everything about one VM but its XML."""
    where = vm.hostname or vm.host_id
    facts: list[tuple[str, Cell]] = [
        ("name", _text(vm.name)),
        ("id", _text(vm.vm_id)),
        ("state", vm_state(vm)),
        ("reason", _text(vm.reason)),
        ("host", _text(f"{where} ({vm.host_id})" if where != vm.host_id else where)),
        ("manager", _text(vm.manager_id)),
        ("address", _text(vm.ip_address)),
        ("MAC address", _text(vm.mac_address)),
        ("image", _text(vm.image)),
        ("virtual cluster", _text(vm.virtual_cluster)),
        ("asked for", capacity_text(vm.demand)),
        ("uses", "" if vm.used is None else capacity_text(vm.used)),
        ("if its host fails", policy_text(vm) if vm.managed else ""),
        ("if a move is slow", slow_migration_text(vm) if vm.managed else ""),
        ("restarted of late", f"{vm.restarts} times" if vm.restarts else ""),
        ("generation", str(vm.generation) if vm.managed else ""),
        ("task", _text(vm.task_id)),
    ]
    return _facts(facts)


def policy_text(vm: VmView) -> str:
    """How a VM is treated when nobody is looking."""
    policy = vm.policy
    told = [policy.on_host_failure.value]
    if policy.is_highly_available:
        told.append(f"at most {policy.max_restarts} times")
    if policy.priority:
        told.append(f"priority {policy.priority}")
    if policy.start_order:
        told.append(f"start order {policy.start_order}")
    if not policy.movable:
        told.append("not moved by itself")
    return ", ".join(told)


def slow_migration_text(vm: VmView) -> str:
    """What is done about a live migration of a VM that does not get there."""
    told = vm.policy.slow_migration.value
    pause_ms = vm.policy.max_downtime_ms
    return f"{told}, paused for at most {pause_ms} ms" if pause_ms else told


def hosts(views: Sequence[HostView], managers: Sequence[ManagerView] = ()) -> RenderableType:
    """All hosts; reserved of what they have. ``managers`` lend their names."""
    names = {manager.id: manager.hostname for manager in managers}
    rows = [
        (
            _text(host.hostname),
            _status(host.status),
            str(host.vms),
            f"{cores_text(host.reserved.cpu_cores)}/{cores_text(host.capacity.cpu_cores)}",
            pair_text(host.reserved.memory_kib, host.capacity.memory_kib),
            _text(names.get(host.manager_id) or host.manager_id or "-"),
            _text(host.id),
        )
        for host in sorted(views, key=lambda host: (host.hostname, host.id))
    ]
    columns = ("HOST", "STATUS", ">VMS", ">CORES", ">MEMORY", "MANAGER", "ID")
    return _table(columns, rows, "No hosts have joined.")


def host_details(host: HostView) -> RenderableType:
    """One host, a line for each thing."""
    since = moment(host.power_since_ms) if host.power_since_ms else "-"
    rows = [
        ("host", host.hostname),
        ("id", host.id),
        ("status", host.status),
        ("power", host.power.replace("_", " ")),
        ("since", since),
        ("note", host.note or "-"),
        ("address", host.address),
        ("manager", host.manager_id or "-"),
        ("hypervisor", host.hypervisor or "-"),
        ("VMs", str(host.vms)),
        (
            "cores",
            f"{cores_text(host.reserved.cpu_cores)} of {cores_text(host.capacity.cpu_cores)}",
        ),
        ("memory", pair_text(host.reserved.memory_kib, host.capacity.memory_kib)),
    ]
    rows += [
        (
            "orphaned disk" if disk.orphan else "disk without VM",
            f"{disk.vm_id}, {disk.size_bytes // 2**20} MiB, last written "
            f"{moment(disk.changed_ms)}: {disk.verdict}",
        )
        for disk in host.loose_disks
    ]
    return _facts([(name, _text(value)) for name, value in rows])


def energy(view: EnergyView) -> list[RenderableType]:
    """What hosts used and saved; DEAD, if any was: fenced, or failed to wake."""
    any_dead = any(host.dead_s for host in view.hosts)
    rows: list[tuple[Cell, ...]] = [
        (
            _text(host.hostname or host.id),
            _status(host.power or "gone"),
            watts_text(host.watts),
            host.source,
            energy_text(host.used_kwh),
            energy_text(host.saved_kwh),
            span_text(host.up_s * 1000),
            span_text(host.asleep_s * 1000),
            *([span_text(host.dead_s * 1000)] if any_dead else []),
        )
        for host in view.hosts
    ]
    columns = ["HOST", "POWER", ">DRAWS", "BY", ">USED", ">SAVED", ">UP", ">ASLEEP"]
    columns += [">DEAD"] if any_dead else []
    if view.hosts:
        rows.append(
            (
                Text("all", style="bold"),
                Text(),
                watts_text(view.watts),
                "",
                energy_text(view.used_kwh),
                energy_text(view.saved_kwh),
                *[""] * (len(columns) - 6),
            )
        )
    whole = view.used_kwh + view.saved_kwh
    saved = f"{share_text(view.saved_kwh / whole)} saved" if whole > 0 else "Nothing is metered yet"
    since = f" since {moment(view.began_ms)}" if view.began_ms else ""
    saver = "is on." if view.enabled else "is off: hosts sleep only when a person says so."
    guess = any(host.source == "model" for host in view.hosts)
    return [
        _table(columns, rows, "No hosts have joined."),
        line(f"{saved}{since}. Energy saving {saver}"),
        *([line("Watts by model are estimates; see docs/energy.md.")] if guess else []),
    ]


def managers(views: Sequence[ManagerView]) -> RenderableType:
    """All group managers."""
    rows = [
        (
            _text(manager.hostname or manager.id),
            Text("leader", style="bold") if manager.leader else "manager",
            _text(manager.address),
            str(manager.hosts),
            str(manager.vms),
            f"{cores_text(manager.reserved.cpu_cores)}/{cores_text(manager.capacity.cpu_cores)}",
            pair_text(manager.reserved.memory_kib, manager.capacity.memory_kib),
            _text(manager.id),
        )
        for manager in sorted(views, key=lambda m: (not m.leader, m.hostname, m.id))
    ]
    columns = ("MANAGER", "ROLE", "ADDRESS", ">HOSTS", ">VMS", ">CORES", ">MEMORY", "ID")
    return _table(columns, rows, "No group managers.")


def images(views: Sequence[ImageView]) -> RenderableType:
    """All images."""
    rows = [
        (
            _text(image.name),
            _text(image.format),
            bytes_text(image.capacity_bytes),
            bytes_text(image.allocation_bytes),
            str(image.hosts),
        )
        for image in sorted(views, key=lambda image: image.name)
    ]
    columns = ("IMAGE", "FORMAT", ">SIZE", ">ON DISK", ">HOSTS")
    return _table(columns, rows, "No images.")


def tasks(views: Sequence[TaskView]) -> RenderableType:
    """All tasks, the newest last."""
    rows = [
        (
            _text(task.id),
            task_state(task),
            _text(task.kind),
            _text(task.vms[0].name) if len(task.vms) == 1 else f"{len(task.vms)} VMs",
            span_text(task.ended_ms - task.created_ms) if task.ended_ms else "-",
        )
        for task in sorted(views, key=lambda task: task.created_ms)
    ]
    return _table(("ID", "STATE", "KIND", "VM", ">TOOK"), rows, "No tasks.")


def task_details(task: TaskView) -> RenderableType:
    """One task and its VMs."""
    moved = task.progress
    facts: list[tuple[str, Cell]] = [
        ("task", _text(task.id)),
        ("kind", _text(task.kind)),
        ("state", task_state(task)),
        ("created", moment(task.created_ms)),
        ("took", span_text(task.ended_ms - task.created_ms) if task.ended_ms else ""),
    ]
    if moved is not None:
        total = bytes_text(moved.total_bytes) if moved.total_bytes else "?"
        facts += [
            ("moved", f"{bytes_text(moved.processed_bytes)} of {total}"),
            ("dirty rate", rate_text(moved.dirty_kib_s) if moved.dirty_kib_s else ""),
            ("downtime", span_text(moved.downtime_ms) if moved.downtime_ms else ""),
            ("note", _text(moved.note)),
        ]
    if task.error is not None:
        facts.append(("error", Text(plain(task.error.message), style="red")))
    return Group(_facts(facts), *((Text(), submission(task)) if task.vms else ()))


def submission(task: TaskView) -> RenderableType:
    """How far a task is with each of its VMs."""
    rows: list[Sequence[Cell]] = [
        (
            _text(vm.name),
            Text(vm.state.value, style=VM_STYLES.get(vm.state, UNDER_WAY)),
            _text(vm.hostname or vm.host_id or "-"),
            _text(vm.ip_address or "-"),
        )
        for vm in task.vms
    ]
    return _table(("NAME", "STATE", "HOST", "ADDRESS"), rows, "No VMs.")


def commands(tasks: Iterable[TaskView]) -> RenderableType:
    """What became of one command on several VMs."""
    rows = [
        (
            _text(vm.name),
            _text(task.kind),
            task_state(task),
            Text(vm.state.value, style=VM_STYLES.get(vm.state, UNDER_WAY)),
            _text(vm.hostname or vm.host_id or "-"),
        )
        for task in tasks
        for vm in task.vms
    ]
    return _table(("NAME", "COMMAND", "RESULT", "STATE", "HOST"), rows, "Nothing was asked.")


def outcomes_json(outcomes: Iterable[TaskView | SnoozeError]) -> bytes:
    """The API's answers for several VMs as one list: ``TaskView``, or ``{"error": ...}``."""
    return msgspec.json.encode(
        [ErrorBody(ErrorReport.of(o)) if isinstance(o, SnoozeError) else o for o in outcomes]
    )


def event_line(event: EventView) -> Text:
    """One event on one line; the subject is left to programs, for the message names it."""
    line = Text.assemble((f"{moment(event.at_ms)}  ", "dim"))
    bad = any(word in event.kind for word in ("fail", "lost", "crash", "refused", "dead"))
    line.append(f"{plain(event.kind):<20} ", style="red" if bad else "bold")
    line.append(plain(event.message))
    if event.cause:
        line.append(f"  ({plain(event.cause)})", style="dim")
    return line


def vm_state(vm: VmView) -> Text:
    """A VM's state in its colour; a VM that is not ours says so."""
    text = Text.assemble((vm.state.value, VM_STYLES.get(vm.state, UNDER_WAY)))
    if not vm.managed:
        text.append(" (not ours)", style="dim")
    return text


def task_state(task: TaskView) -> Text:
    """A task's state in its colour."""
    return Text(task.state.value, style=TASK_STYLES.get(task.state, UNDER_WAY))


def capacity_text(capacity: Capacity) -> str:
    """A capacity vector in words."""
    return (
        f"{cores_text(capacity.cpu_cores)} cores, {memory_text(capacity.memory_kib)},"
        f" in {rate_text(capacity.rx_kib_s)}, out {rate_text(capacity.tx_kib_s)}"
    )


def moment(at_ms: int) -> str:
    """A time of the API in the zone of this machine."""
    try:
        instant = datetime.datetime.fromtimestamp(at_ms / 1000, tz=datetime.UTC)
    except (OverflowError, ValueError, OSError):
        return str(at_ms)
    return instant.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _status(status: str) -> Text:
    styles = {"active": "green", "unreachable": "red", "failed": "red"}
    return Text(plain(status), style=styles.get(status.lower(), UNDER_WAY))


def _text(text: str) -> Text:
    return Text(plain(text))


def plain_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], empty: str
) -> RenderableType:
    """A table of words that come from elsewhere."""
    return _table(columns, [[_text(cell) for cell in row] for row in rows], empty)


def line(words: str) -> Text:
    """One line of words, some of which come from elsewhere."""
    return _text(words)


def _table(columns: Sequence[str], rows: Sequence[Sequence[Cell]], empty: str) -> RenderableType:
    """A table without lines.

    A column whose title begins with ``>`` is flush right; one with ``~`` has words, which go on in
    the next line where the terminal is narrow.
    """
    return _Rows(columns, rows) if rows else Text(empty)


class _Rows:
    """A table that leaves out its last columns where the terminal is too narrow for them.

    The first column, and words, fold rather than lose their end: what is cut short could not be
    used.
    """

    def __init__(self, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        self._columns = columns
        self._rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render as many columns as there is room for."""
        shown = self._fitting(options.max_width)
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, GAP, 0, 0))
        for number, title in enumerate(self._columns[:shown]):
            table.add_column(
                title.lstrip(">~"),
                justify="right" if title.startswith(">") else "left",
                no_wrap=number > 0 and not title.startswith("~"),
                overflow="fold",
            )
        for row in self._rows:
            table.add_row(*row[:shown])
        yield table

    def _fitting(self, width: int) -> int:
        """How many columns fit beside a first one of at least ``MIN_FIRST_WIDTH``."""
        widths = [
            max(cell_len(title.lstrip(">~")), *(cell_len(str(row[n])) for row in self._rows))
            for n, title in enumerate(self._columns)
        ]
        taken = widths[0] if self._columns[0] == "ID" else min(widths[0], MIN_FIRST_WIDTH)
        for number, column in enumerate(widths[1:], 1):
            is_words = self._columns[number].startswith("~")
            taken += GAP + (min(column, MIN_WORDS_WIDTH) if is_words else column)
            if taken > width:
                return max(number, 2)
        return len(widths)


def _facts(facts: Sequence[tuple[str, Cell]]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts:
        if value:
            table.add_row(name, value)
    return table
