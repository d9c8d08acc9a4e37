"""Commands about power: `snooze energy`, `snooze host list|show|sleep|wake`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from snooze.client.options import (
    CLUSTER_PANEL,
    Output,
    OutputOption,
    UrlOption,
    add,
    complete_host,
    on_cluster,
)
from snooze.common.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from snooze.client.async_sdk import AsyncSnooze
    from snooze.common.api import PowerAnswer

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
    output: OutputOption = Output.TABLE,
    url: UrlOption = "",
) -> None:
    """Put an empty host to sleep; VMs that need it wake it again."""
    _order(url, lambda cluster: cluster.sleep_host(host, force=force), host, output)


def wake(host: HostArgument, output: OutputOption = Output.TABLE, url: UrlOption = "") -> None:
    """Wake a host; also one that failed to wake before."""
    _order(url, lambda cluster: cluster.wake_host(host), host, output)


def _order(
    url: str, order: "Callable[[AsyncSnooze], Awaitable[PowerAnswer]]", host: str, output: Output
) -> None:
    import msgspec

    from snooze.client import terminal

    async def work(cluster: "AsyncSnooze") -> "PowerAnswer":
        return await order(cluster)

    answer = on_cluster(url, work)
    if output is Output.JSON:
        terminal.show_json(msgspec.json.encode(answer))
    else:
        terminal.write(f"{terminal.plain(host)}: {answer.message}")
