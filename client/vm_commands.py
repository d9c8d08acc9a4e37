"""Commands that change VMs: ``submit`` and what can be asked of a VM that is there.

They wait by default, on a terminal or not: only then does the exit code say whether the VM runs,
and a script's next line can rely on it. ``--no-wait`` writes the task's id as soon as the order is
recorded (``snooze task ID --wait`` waits for it later).
"""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from snooze.client.options import (
    DEFAULT_WAIT_TIMEOUT_S,
    EXIT_NO,
    VM_PANEL,
    NamesArgument,
    OnFailure,
    OnSlowMigration,
    Output,
    OutputOption,
    UrlOption,
    WaitOption,
    WaitTimeoutOption,
    add,
    complete_host,
    complete_image,
    on_cluster,
)
from snooze.common.errors import InvalidRequest, SnoozeError
from snooze.common.vm_lifecycle import VmCommand

if TYPE_CHECKING:
    from snooze.client.async_sdk import AsyncSnooze
    from snooze.common.api import ClusterRequest, CommandRequest, TaskView

MAX_NAMES = 10_000

RxOption = Annotated[
    str,
    typer.Option("--rx", metavar="RATE", help="Bandwidth received: KiB/s, or as 10M a second."),
]
TxOption = Annotated[str, typer.Option("--tx", metavar="RATE", help="Bandwidth sent, likewise.")]
VcpusOption = Annotated[int | None, typer.Option(help="Virtual CPUs.", show_default=False)]
MemoryOption = Annotated[
    str, typer.Option(metavar="SIZE", help="Memory, as 512M or 2G.", show_default=False)
]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    add(app, "submit", submit, VM_PANEL)
    for command, words in (
        (VmCommand.START, "Start VMs that are stopped or failed."),
        (VmCommand.SUSPEND, "Pause VMs; their memory stays on their hosts."),
        (VmCommand.RESUME, "Let paused VMs run again."),
        (VmCommand.SHUTDOWN, "Ask the guests to shut down, and wait until they have."),
        (VmCommand.REBOOT, "Ask the guests to reboot."),
    ):
        add(app, command.value, _simple(command), VM_PANEL, words)
    for name, function in (("destroy", destroy), ("resize", resize), ("migrate", migrate)):
        add(app, name, function, VM_PANEL)


def submit(
    *,
    templates: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEMPLATE.xml",
            help="libvirt domains, one VM each; - is standard input.",
            show_default=False,
        ),
    ] = None,
    file: Annotated[
        str,
        typer.Option("--file", "-f", metavar="CLUSTER", help="A virtual cluster in TOML or JSON."),
    ] = "",
    name: Annotated[
        str, typer.Option(metavar="NAME", help="Name of the VM; with --count: NAME-1, NAME-2, ...")
    ] = "",
    image: Annotated[
        str,
        typer.Option(
            metavar="IMAGE",
            help="The image it starts from (see `snooze images`).",
            autocompletion=complete_image,
        ),
    ] = "",
    vcpus: Annotated[
        int | None, typer.Option(min=1, help="Virtual CPUs; left out: 1.", show_default=False)
    ] = None,
    memory: Annotated[
        str,
        typer.Option(
            metavar="SIZE", help="Memory, as 512M or 2G; left out: 512M.", show_default=False
        ),
    ] = "",
    count: Annotated[int, typer.Option(min=1, help="So many of them.")] = 1,
    rx: RxOption = "",
    tx: TxOption = "",
    host: Annotated[
        str,
        typer.Option(
            metavar="HOST",
            help="Only there: a host, or a group manager's hosts.",
            autocompletion=complete_host,
        ),
    ] = "",
    on_failure: Annotated[
        OnFailure | None,
        typer.Option(
            help="When its host fails: restart it elsewhere, ask a person, or leave it until its "
            "host is back. Left out: what the cluster's settings say.",
            show_default=False,
        ),
    ] = None,
    priority: Annotated[
        int | None,
        typer.Option(min=-1000, max=1000, help="Higher is restarted first.", show_default=False),
    ] = None,
    max_restarts: Annotated[
        int | None,
        typer.Option(
            min=0, max=1000, help="Restarts until a person has to ask.", show_default=False
        ),
    ] = None,
    start_order: Annotated[
        int | None,
        typer.Option(
            min=-1000,
            max=1000,
            help="Within its virtual cluster, lower is restarted first.",
            show_default=False,
        ),
    ] = None,
    movable: Annotated[
        bool | None,
        typer.Option(
            "--movable/--pinned",
            help="Whether the cluster may migrate it by itself.",
            show_default=False,
        ),
    ] = None,
    slow_migration: Annotated[
        OnSlowMigration | None,
        typer.Option(
            help="When a live migration does not get there: slow the guest down (converge), go on "
            "over there while memory follows (postcopy), pause the guest at the end (pause), or "
            "leave it where it is (give_up).",
            show_default=False,
        ),
    ] = None,
    max_downtime_ms: Annotated[
        int | None,
        typer.Option(
            "--max-downtime",
            metavar="MS",
            min=0,
            max=600_000,
            help="The longest pause at the end of a migration, in milliseconds.",
            show_default=False,
        ),
    ] = None,
    cluster: Annotated[
        str, typer.Option(metavar="NAME", help="Name of the virtual cluster they form.")
    ] = "",
    partial: Annotated[
        bool, typer.Option("--partial", help="Start those that are right even if others are wrong.")
    ] = False,
    wait: WaitOption = True,
    wait_timeout: WaitTimeoutOption = DEFAULT_WAIT_TIMEOUT_S,
    output: OutputOption = Output.TABLE,
    url: UrlOption = "",
) -> None:
    """Start VMs: from libvirt templates, from an image, or a whole virtual cluster from a file.

    All of them are checked before any is started.
    """
    from snooze.client import cluster_file
    from snooze.common.api import ClusterRequest, PolicyRequest
    from snooze.common.vms import FailureAction, SlowMigration

    policy = PolicyRequest(
        FailureAction(on_failure.value) if on_failure is not None else None,
        priority,
        max_restarts,
        start_order,
        movable,
        SlowMigration(slow_migration.value) if slow_migration is not None else None,
        max_downtime_ms,
    )
    options = cluster_file.VmOptions(name, count, vcpus, memory, image, rx, tx, host, policy)
    if file:
        if templates or options != cluster_file.VmOptions():
            raise InvalidRequest("--file says everything; it cannot be given with other VMs")
        request = cluster_file.from_file(file)
        request = ClusterRequest(request.vms, cluster or request.name, partial or request.partial)
    elif templates:
        request = ClusterRequest(cluster_file.from_templates(templates, options), cluster, partial)
    else:
        request = ClusterRequest(cluster_file.from_options(options), cluster, partial)
    task = on_cluster(url, lambda c: _submit(c, request, wait, wait_timeout))
    _report_submission(task, wait, output)


async def _submit(
    cluster: "AsyncSnooze", request: "ClusterRequest", wait: bool, wait_timeout_s: float
) -> "TaskView":
    from snooze.client.waiting import wait_for

    task = await cluster.submit(request)
    if not wait:
        return task
    (ended,) = await wait_for(cluster, [task], wait_timeout_s)
    if isinstance(ended, SnoozeError):
        raise ended
    return ended


def _report_submission(task: "TaskView", wait: bool, output: Output) -> None:
    import msgspec

    from snooze.client import tables, terminal
    from snooze.client.async_sdk import failure

    if output is Output.JSON:
        terminal.show_json(msgspec.json.encode(task))
    elif wait:
        terminal.show(tables.submission(task))
    else:
        terminal.write(task.id)
    error = failure(task)
    if error is not None:
        raise error


def _simple(command: VmCommand) -> Callable[..., None]:
    """A command that takes nothing but names."""

    def run(
        names: NamesArgument,
        wait: WaitOption = True,
        wait_timeout: WaitTimeoutOption = DEFAULT_WAIT_TIMEOUT_S,
        output: OutputOption = Output.TABLE,
        url: UrlOption = "",
    ) -> None:
        _order(names, command, None, url=url, wait=wait, wait_timeout_s=wait_timeout, output=output)

    return run


def destroy(
    *,
    names: NamesArgument,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask (asked only on a terminal).")
    ] = False,
    wait: WaitOption = True,
    wait_timeout: WaitTimeoutOption = DEFAULT_WAIT_TIMEOUT_S,
    output: OutputOption = Output.TABLE,
    url: UrlOption = "",
) -> None:
    """Remove VMs, running or not; what they hold in memory is lost."""
    if not yes and sys.stdin.isatty():
        from snooze.client.terminal import plain

        listed = ", ".join(plain(name) for name in names[:5])
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        if not typer.confirm(f"Destroy {listed}{more}?", err=True):
            sys.stderr.write("Nothing was destroyed.\n")
            raise typer.Exit(EXIT_NO)
    _order(
        names,
        VmCommand.DESTROY,
        None,
        url=url,
        wait=wait,
        wait_timeout_s=wait_timeout,
        output=output,
    )


def resize(
    *,
    names: NamesArgument,
    vcpus: VcpusOption = None,
    memory: MemoryOption = "",
    rx: RxOption = "",
    tx: TxOption = "",
    wait: WaitOption = True,
    wait_timeout: WaitTimeoutOption = DEFAULT_WAIT_TIMEOUT_S,
    output: OutputOption = Output.TABLE,
    url: UrlOption = "",
) -> None:
    """Change what running VMs are given; what is left out stays."""
    from snooze.client.units import parse_memory_kib, parse_rate_kib_s
    from snooze.common.api import CommandRequest

    if vcpus is None and not memory and not rx and not tx:
        raise InvalidRequest("say what to change: --vcpus, --memory, --rx or --tx")
    request = CommandRequest(
        vcpus=vcpus,
        memory_kib=parse_memory_kib(memory, where="--memory") if memory else None,
        rx_kib_s=parse_rate_kib_s(rx, where="--rx") if rx else None,
        tx_kib_s=parse_rate_kib_s(tx, where="--tx") if tx else None,
    )
    _order(
        names,
        VmCommand.RESIZE,
        request,
        url=url,
        wait=wait,
        wait_timeout_s=wait_timeout,
        output=output,
    )


def migrate(
    *,
    names: NamesArgument,
    to: Annotated[
        str,
        typer.Option(
            "--to", metavar="HOST", help="The host to move to.", autocompletion=complete_host
        ),
    ],
    wait: WaitOption = True,
    wait_timeout: WaitTimeoutOption = DEFAULT_WAIT_TIMEOUT_S,
    output: OutputOption = Output.TABLE,
    url: UrlOption = "",
) -> None:
    """Move running VMs to another host while they run."""
    from snooze.common.api import CommandRequest

    request = CommandRequest(host=to)
    _order(
        names,
        VmCommand.MIGRATE,
        request,
        url=url,
        wait=wait,
        wait_timeout_s=wait_timeout,
        output=output,
    )


def _order(
    names: list[str],
    command: VmCommand,
    request: "CommandRequest | None",
    *,
    url: str,
    wait: bool,
    wait_timeout_s: float,
    output: Output,
) -> None:
    """Order it for each name, wait, report; the exit code is that of the first that failed."""
    from snooze.client import tables, terminal
    from snooze.client.async_sdk import failure
    from snooze.client.complaints import complain
    from snooze.client.waiting import each, wait_for

    names = list(dict.fromkeys(names))
    if len(names) > MAX_NAMES:
        raise InvalidRequest(f"{len(names)} names are more than {MAX_NAMES}")

    async def work(cluster: "AsyncSnooze") -> "list[TaskView | SnoozeError]":
        async def one(name: str) -> "TaskView | SnoozeError":
            try:
                return await cluster.command(name, command, request)
            except SnoozeError as error:
                return error

        ordered = await each(names, one)
        tasks = [answer for answer in ordered if not isinstance(answer, SnoozeError)]
        if not wait:
            return ordered
        ended = iter(await wait_for(cluster, tasks, wait_timeout_s))
        return [answer if isinstance(answer, SnoozeError) else next(ended) for answer in ordered]

    outcomes = on_cluster(url, work)
    if output is Output.JSON:
        terminal.show_json(tables.outcomes_json(outcomes))
    else:
        tasks = [outcome for outcome in outcomes if not isinstance(outcome, SnoozeError)]
        if tasks and wait:
            terminal.show(tables.commands(tasks))
        elif tasks:
            terminal.write("\n".join(task.id for task in tasks))
    errors = [o if isinstance(o, SnoozeError) else failure(o) for o in outcomes]
    failed = [error for error in errors if error is not None]
    # A cluster that does not answer says the same of every name.
    for error in {error.message: error for error in failed}.values():
        complain(error)
    if failed:
        raise typer.Exit(failed[0].exit_code)
