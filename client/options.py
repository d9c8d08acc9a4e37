"""The options that many commands share, and how a command reaches the cluster.

Loaded by ``snooze --help`` and by every completion of a shell: imports nothing heavy.
"""

import functools
import os
import sys
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import typer

from snooze.common.errors import SnoozeError

if TYPE_CHECKING:
    from snooze.client.async_sdk import AsyncSnooze
    from snooze.client.sync_sdk import Snooze

T = TypeVar("T")

EXIT_NO: Final = 1
EXIT_INTERRUPTED: Final = 130
EXIT_BROKEN_PIPE: Final = 141

VM_PANEL: Final = "Virtual machines"
CLUSTER_PANEL: Final = "The cluster"
DAEMON_PANEL: Final = "Running a cluster"
COMPLETION_TIMEOUT_S: Final = 1.0

root_url: ContextVar[str] = ContextVar("root_url", default="")
"""The URL of ``snooze --url URL COMMAND``; a command's own ``--url`` goes before it."""


class OnFailure(StrEnum):
    """What becomes of a VM whose host is proven down: the members of ``FailureAction``."""

    RESTART = "restart"
    ASK = "ask"
    LEAVE = "leave"


class OnSlowMigration(StrEnum):
    """What is done about a live migration that does not converge; as ``SlowMigration``."""

    CONVERGE = "converge"
    POSTCOPY = "postcopy"
    PAUSE = "pause"
    GIVE_UP = "give_up"


class Output(StrEnum):
    """What a command writes."""

    TABLE = "table"
    JSON = "json"


def add(
    app: typer.Typer, name: str, command: Callable[..., None], panel: str, words: str | None = None
) -> None:
    """Make ``command`` a command of ``app``, ``guarded``."""
    app.command(name, help=words, rich_help_panel=panel)(guarded(command))


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """``command`` with errors that become words and exit codes.

    Only a defect of ours leaves a traceback.
    """

    @functools.wraps(command)
    def run(*args: object, **kwargs: object) -> None:
        try:
            command(*args, **kwargs)
        except SnoozeError as error:
            from snooze.client.complaints import complain

            complain(error)
            raise typer.Exit(error.exit_code) from error
        except (KeyboardInterrupt, typer.Abort) as error:
            sys.stderr.write("\n")
            raise typer.Exit(EXIT_INTERRUPTED) from error
        except BrokenPipeError as error:
            # Nobody reads: the interpreter must not complain of that at its end either.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(EXIT_BROKEN_PIPE) from error

    return run


def connect(url: str) -> "AsyncSnooze":
    """The cluster that ``url``, or the settings, name."""
    from snooze.client.async_sdk import AsyncSnooze

    return AsyncSnooze(url or root_url.get() or None)


def on_cluster(url: str, work: "Callable[[AsyncSnooze], Awaitable[T]]") -> T:
    """Run ``work`` with the cluster that ``url``, or the settings, name."""
    import asyncio

    async def main() -> T:
        async with connect(url) as cluster:
            return await work(cluster)

    return asyncio.run(main())


def complete_vm(context: typer.Context, incomplete: str) -> list[str]:
    """Names of VMs, for a shell's completion; none when the cluster does not answer."""
    return _complete(context, incomplete, lambda cluster: [vm.name for vm in cluster.vms()])


def complete_host(context: typer.Context, incomplete: str) -> list[str]:
    """Names of hosts, likewise."""
    return _complete(
        context, incomplete, lambda cluster: [host.hostname for host in cluster.hosts()]
    )


def complete_image(context: typer.Context, incomplete: str) -> list[str]:
    """Names of images, likewise."""
    return _complete(
        context, incomplete, lambda cluster: [image.name for image in cluster.images()]
    )


def _complete(
    context: typer.Context, incomplete: str, names: "Callable[[Snooze], list[str]]"
) -> list[str]:
    from snooze.client.sync_sdk import Snooze

    url = str(context.params.get("url") or root_url.get())
    try:
        with Snooze(url or None, timeout_s=COMPLETION_TIMEOUT_S) as cluster:
            return sorted(name for name in names(cluster) if name.startswith(incomplete))
    except SnoozeError:
        return []


UrlOption = Annotated[
    str,
    typer.Option(
        "--url",
        metavar="URL",
        help="Front door of the cluster; several with commas. Left out: SNOOZE_URL, or"
        " ~/.config/snooze/client.toml, or http://127.0.0.1:5000.",
        show_default=False,
    ),
]
OutputOption = Annotated[
    Output,
    typer.Option("--output", "-o", help="A table for people, or the API's own JSON for programs."),
]
WaitOption = Annotated[
    bool,
    typer.Option(
        "--wait/--no-wait",
        help="Wait until it is done, so that the exit code tells whether it was.",
    ),
]
WaitTimeoutOption = Annotated[
    float,
    typer.Option("--wait-timeout", metavar="SECONDS", min=0.0, help="The longest such wait."),
]
NamesArgument = Annotated[
    list[str],
    typer.Argument(metavar="NAME...", help="VMs, by name or id.", autocompletion=complete_vm),
]
NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="A VM, by name or id.", autocompletion=complete_vm)
]
DEFAULT_WAIT_TIMEOUT_S: Final = 600.0
