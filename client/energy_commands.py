"""Commands about power: `snooze energy`, `snooze host list|show|sleep|wake`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from snooze.client.options import (
    CLUSTER_PANEL,
    DEFAULT_WAIT_TIMEOUT_S,
    Output,
    OutputOption,
    UrlOption,
    WaitOption,
    WaitTimeoutOption,
    add,
    complete_host,
    on_cluster,
)
from snooze.common.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from snooze.client.async_sdk import AsyncSnooze
    from snooze.common.api import HostView, PowerAnswer

HostArgument = Annotated[
    str, typer.Argument(metavar="HOST", help="A host, by name or id.", autocompletion=complete_host)
]


def register(app: typer.Typer) -> None:
    """Add `snooze energy`."""
    add(app, "energy", energy, CLUSTER_PANEL)


def register_host(host: typer.Typer) -> None:
    """Add the commands of `snooze host`."""
    add(host, "show", show, CLUSTER_PANEL)
    add(host, "sleep", sleep, CLUSTER_PANEL)
    add(host, "wake", wake, CLUSTER_PANEL)


def energy(
    *,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE.svg", help="Draw the last week into this file."),
    ] = None,
    output: OutputOption = Output.TABLE,
    url: UrlOption = "",
) -> None:
    """Show the energy that hosts used, and what was saved by those that slept."""
    import msgspec

    from snooze.client import tables, terminal

    view = on_cluster(url, lambda cluster: cluster.energy())
    if plot is not None:
        from snooze.client.energy_plot import svg

        try:
            plot.write_text(svg(view))
        except OSError as error:
            raise InvalidRequest(f"{plot} cannot be written: {error.strerror}") from error
    if output is Output.JSON:
        terminal.show_json(msgspec.json.encode(view))
    else:
        terminal.show(*tables.energy(view))


def show(host: HostArgument, output: OutputOption = Output.TABLE, url: UrlOption = "") -> None:
    """Show all about a host."""
    import msgspec

    from snooze.client import tables, terminal

    view = on_cluster(url, lambda cluster: cluster.host(host))
    if output is Output.JSON:
        terminal.show_json(msgspec.json.encode(view))
    else:
        terminal.show(tables.host_details(view))


def sleep(
    *,
    host: HostArgument,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Also if the reserve would lack, or it is in maintenance. Never with a VM on it.",
        ),
    ] = False,
    wait: WaitOption = True,
    wait_timeout: WaitTimeoutOption = DEFAULT_WAIT_TIMEOUT_S,
    output: OutputOption = Output.TABLE,
    url: UrlOption = "",
) -> None:
    """Put an empty host to sleep; VMs that need it wake it again."""

    async def order(cluster: "AsyncSnooze") -> "PowerAnswer":
        return await cluster.sleep_host(host, force=force)

    _carry_out(order, host, wait_timeout if wait else None, output, url, up=False)


def wake(
    *,
    host: HostArgument,
    wait: WaitOption = True,
    wait_timeout: WaitTimeoutOption = DEFAULT_WAIT_TIMEOUT_S,
    output: OutputOption = Output.TABLE,
    url: UrlOption = "",
) -> None:
    """Wake a host; also one that failed to wake before."""

    async def order(cluster: "AsyncSnooze") -> "PowerAnswer":
        return await cluster.wake_host(host)

    _carry_out(order, host, wait_timeout if wait else None, output, url, up=True)


def _carry_out(
    order: "Callable[[AsyncSnooze], Awaitable[PowerAnswer]]",
    host: str,
    wait_s: float | None,
    output: Output,
    url: str,
    *,
    up: bool,
) -> None:
    """Order it, and wait until it is so (None: do not), or it is known that it will not be.

    JSON is the host as it is then; without waiting, the answer.
    """
    import msgspec

    from snooze.client import terminal
    from snooze.client.waiting import wait_for_power
    from snooze.common.api import PowerAnswer

    async def work(cluster: "AsyncSnooze") -> "PowerAnswer | HostView":
        answer = await order(cluster)
        return answer if wait_s is None else await wait_for_power(cluster, host, wait_s, up=up)

    told = on_cluster(url, work)
    if output is Output.JSON:
        terminal.show_json(msgspec.json.encode(told))
        return
    done = f"it is {'up' if up else 'asleep'}"
    terminal.write(
        f"{terminal.plain(host)}: {told.message if isinstance(told, PowerAnswer) else done}"
    )
