"""Commands for the people who look after hosts: ``snooze host COMMAND``."""

import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated

import typer

from snooze.client import energy_commands, view_commands
from snooze.client.options import (
    CLUSTER_PANEL,
    DEFAULT_WAIT_TIMEOUT_S,
    EXIT_NO,
    Output,
    OutputOption,
    UrlOption,
    WaitOption,
    WaitTimeoutOption,
    add,
    complete_host,
    on_cluster,
)
from snooze.common.errors import ExecutionError, Problem, SnoozeError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from snooze.client.async_sdk import AsyncSnooze
    from snooze.common.api import DrainView, TaskView

HostsArgument = Annotated[
    list[str],
    typer.Argument(metavar="HOST...", help="Hosts, by name or id.", autocompletion=complete_host),
]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    host = typer.Typer(help="Look after hosts: maintenance, power.", no_args_is_help=True)
    add(host, "list", view_commands.hosts, CLUSTER_PANEL)
    add(host, "why", why, CLUSTER_PANEL)
    add(host, "drain", drain, CLUSTER_PANEL)
    add(host, "undrain", undrain, CLUSTER_PANEL)
    add(host, "confirm-dead", confirm_dead, CLUSTER_PANEL)
    energy_commands.register_host(host)
    app.add_typer(host, name="host", rich_help_panel=CLUSTER_PANEL)


def why(
    *,
    host: Annotated[
        str, typer.Argument(metavar="HOST", help="By name or id.", autocompletion=complete_host)
    ],
    output: OutputOption = Output.TABLE,
    url: UrlOption = "",
) -> None:
    """Why a host is not emptied, so that it could sleep: all that stands against it now."""
    from snooze.client import tables, terminal

    view = on_cluster(url, lambda c: c.why(host))
    if output is Output.JSON:
        import msgspec

        terminal.show_json(msgspec.json.encode(view))
        return
    rows = [
        (each.code, each.message, tables.moment(each.until_ms) if each.until_ms else "")
        for each in view.obstacles
    ]
    none = f"Nothing stands against it: {view.hostname} is emptied at the next look."
    terminal.show(tables.plain_table(("CODE", "~WHY IT IS NOT EMPTIED", "UNTIL"), rows, none))


def drain(
    *,
    hosts: HostsArgument,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only show what would move where; change nothing.")
    ] = False,
    deadline: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            min=0.0,
            help="Begin no migration after so long, and until then wait for room; 0: do what can "
            "be done now.",
        ),
    ] = 0.0,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask (asked only on a terminal).")
    ] = False,
    wait: WaitOption = True,
    wait_timeout: WaitTimeoutOption = DEFAULT_WAIT_TIMEOUT_S,
    output: OutputOption = Output.TABLE,
    url: UrlOption = "",
) -> None:
    """Empty hosts by live migration, and keep VMs off them until `undrain`.

    One plan for the whole cluster is shown first. VMs that cannot leave are named.
    """
    from snooze.client import terminal

    ask = not yes and sys.stdin.isatty() and output is Output.TABLE
    if plan or ask:
        view = on_cluster(url, lambda c: c.drain(hosts, deadline_s=deadline, plan_only=True))
        if plan:
            _show(view, output)
            return
        terminal.show(_plan(view))
        if not typer.confirm(f"Drain {', '.join(map(terminal.plain, view.hosts))}?", err=True):
            sys.stderr.write("Nothing was changed.\n")
            raise typer.Exit(EXIT_NO)
    closed = f"no VM comes to {', '.join(hosts)} until `snooze host undrain {' '.join(hosts)}`"
    _carry_out(
        lambda c: c.drain(hosts, deadline_s=deadline), url, wait, wait_timeout, output, closed
    )


def undrain(
    *,
    hosts: HostsArgument,
    bring_back: Annotated[
        bool, typer.Option("--bring-back", help="Migrate the VMs back that left for the drain.")
    ] = False,
    wait: WaitOption = True,
    wait_timeout: WaitTimeoutOption = DEFAULT_WAIT_TIMEOUT_S,
    output: OutputOption = Output.TABLE,
    url: UrlOption = "",
) -> None:
    """Give hosts back after maintenance: they take VMs again."""
    opened = f"{', '.join(hosts)} may take VMs again"
    _carry_out(
        lambda c: c.undrain(hosts, bring_back=bring_back), url, wait, wait_timeout, output, opened
    )


def confirm_dead(
    *,
    host: Annotated[
        str,
        typer.Argument(metavar="HOST", help="A host that is away.", autocompletion=complete_host),
    ],
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask (asked only on a terminal).")
    ] = False,
    output: OutputOption = Output.TABLE,
    url: UrlOption = "",
) -> None:
    """Say that a host is off, so that its VMs may be started elsewhere.

    Only for a host that you have switched off yourself: its power controller does not answer, or it
    has none. If it is on and only cut off, its VMs will run twice and destroy their disks.
    """
    from snooze.client import tables, terminal

    if not yes and sys.stdin.isatty() and output is Output.TABLE:
        question = f"Is {terminal.plain(host)} really off, and will it stay off?"
        if not typer.confirm(question, err=True):
            sys.stderr.write("Nothing was changed.\n")
            raise typer.Exit(EXIT_NO)
    view = on_cluster(url, lambda c: c.confirm_dead(host))
    if output is Output.JSON:
        import msgspec

        terminal.show_json(msgspec.json.encode(view))
    else:
        terminal.show(tables.host_details(view))


def _carry_out(
    order: "Callable[[AsyncSnooze], Awaitable[DrainView]]",
    url: str,
    wait: bool,
    wait_timeout_s: float,
    output: Output,
    after: str,
) -> None:
    """Order it, wait for its task, and say what became of it.

    Args:
        after: what is so from then on, whatever becomes of the VMs.

    Raises:
        ExecutionError: VMs stay where they are; names each, and what is so all the same.
    """
    from snooze.client import tables, terminal
    from snooze.client.async_sdk import failure
    from snooze.client.waiting import wait_for

    async def work(cluster: "AsyncSnooze") -> "tuple[DrainView, TaskView | SnoozeError | None]":
        view = await order(cluster)
        if not wait:
            return view, None
        (ended,) = await wait_for(cluster, [await cluster.task(view.task_id)], wait_timeout_s)
        return view, ended

    view, ended = on_cluster(url, work)
    if ended is None:
        if output is Output.JSON:
            _show(view, output)
        else:
            terminal.write(view.task_id)
        return
    if isinstance(ended, SnoozeError):
        raise ended
    if output is Output.JSON:
        import msgspec

        terminal.show_json(msgspec.json.encode(ended))
    else:
        terminal.show(tables.task_details(ended))
    if (error := failure(ended)) is not None:
        stay = [Problem(vm.name, vm.error.message) for vm in ended.vms if vm.error is not None]
        what = f"{len(stay)} of {len(ended.vms)} VMs have not moved" if stay else error.message
        raise ExecutionError(f"{what}; {after}", problems=stay)
    if output is Output.TABLE:
        terminal.write(f"From now on {after}.")


def _show(view: "DrainView", output: Output) -> None:
    import msgspec

    from snooze.client import terminal

    if output is Output.JSON:
        terminal.show_json(msgspec.json.encode(view))
    else:
        terminal.show(_plan(view))


def _plan(view: "DrainView") -> "RenderableType":
    """The plan as a person reads it: what moves, what stays and why, what comes of it."""
    from rich.console import Group

    from snooze.client import tables

    moves = [(move.vm, move.source, move.target, str(move.batch + 1)) for move in view.moves]
    parts: list[RenderableType] = [
        tables.plain_table(("VM", "FROM", "TO", "STEP"), moves, "No VM has to move.")
    ]
    if view.stays:
        stays = [(stay.vm, stay.reason) for stay in view.stays]
        parts.append(tables.plain_table(("STAYS", "~BECAUSE"), stays, ""))
    empty = ", ".join(view.emptied) or "none"
    parts.append(
        tables.line(f"Empty afterwards: {empty}. About {view.seconds:.1f} s of migration in all.")
    )
    return Group(*parts)
