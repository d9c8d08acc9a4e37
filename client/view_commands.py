"""Commands that only look: lists, details, the hierarchy, events."""

from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from snooze.client.options import (
    CLUSTER_PANEL,
    DEFAULT_WAIT_TIMEOUT_S,
    VM_PANEL,
    NameArgument,
    Output,
    OutputOption,
    UrlOption,
    WaitTimeoutOption,
    add,
    on_cluster,
)
from snooze.common.errors import SnoozeError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from snooze.client.async_sdk import AsyncSnooze

T = TypeVar("T")


class HierarchyOutput(StrEnum):
    """The forms of the hierarchy."""

    TREE = "tree"
    JSON = "json"
    GRAPHML = "graphml"
    DOT = "dot"


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    add(app, "list", list_vms, VM_PANEL)
    add(app, "info", info, VM_PANEL)
    for name, function in (
        ("hierarchy", hierarchy),
        ("hosts", hosts),
        ("managers", managers),
        ("images", images),
        ("tasks", tasks),
        ("task", task),
        ("events", events),
        ("version", version),
    ):
        add(app, name, function, CLUSTER_PANEL)


def list_vms(output: OutputOption = Output.TABLE, url: UrlOption = "") -> None:
    """List all VMs."""
    from snooze.client import tables
    from snooze.common.api import VmView

    _show("/vms", list[VmView], tables.vms, output, url)


def hosts(output: OutputOption = Output.TABLE, url: UrlOption = "") -> None:
    """List the hosts, and how much of them is reserved."""
    from snooze.client import tables, terminal
    from snooze.common.api import HostView

    if output is Output.JSON:
        _show("/hosts", list[HostView], tables.hosts, output, url)
        return

    async def work(cluster: "AsyncSnooze") -> "RenderableType":
        return tables.hosts(await cluster.hosts(), await cluster.managers())

    terminal.show(on_cluster(url, work))


def managers(output: OutputOption = Output.TABLE, url: UrlOption = "") -> None:
    """List the group managers and which of them leads."""
    from snooze.client import tables
    from snooze.common.api import ManagerView

    _show("/managers", list[ManagerView], tables.managers, output, url)


def images(output: OutputOption = Output.TABLE, url: UrlOption = "") -> None:
    """List the images that VMs can start from."""
    from snooze.client import tables
    from snooze.common.api import ImageView

    _show("/images", list[ImageView], tables.images, output, url)


def tasks(output: OutputOption = Output.TABLE, url: UrlOption = "") -> None:
    """List the tasks that the cluster remembers."""
    from snooze.client import tables
    from snooze.common.api import TaskView

    _show("/tasks", list[TaskView], tables.tasks, output, url)


def info(
    name: NameArgument,
    xml: Annotated[
        bool, typer.Option("--xml", help="Only the libvirt domain that really runs.")
    ] = False,
    output: OutputOption = Output.TABLE,
    url: UrlOption = "",
) -> None:
    """Show everything about one VM."""
    from snooze.client import tables, terminal
    from snooze.client.async_sdk import segment
    from snooze.common.api import VmView

    if xml:
        vm = on_cluster(url, lambda cluster: cluster.vm(name))
        terminal.write(vm.xml)
    else:
        _show(f"/vms/{segment(name)}", VmView, tables.vm_details, output, url)


def task(
    task_id: Annotated[str, typer.Argument(metavar="ID", help="A task, as `submit` named it.")],
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for its end, and exit as it ended.")
    ] = False,
    wait_timeout: WaitTimeoutOption = DEFAULT_WAIT_TIMEOUT_S,
    output: OutputOption = Output.TABLE,
    url: UrlOption = "",
) -> None:
    """Show one task: how far it is with each VM."""
    from snooze.client import tables
    from snooze.client.async_sdk import failure, segment
    from snooze.client.waiting import wait_for
    from snooze.common.api import TaskView

    async def waiting(cluster: "AsyncSnooze") -> "TaskView | SnoozeError":
        (ended,) = await wait_for(cluster, [await cluster.task(task_id)], wait_timeout)
        return ended

    outcome = on_cluster(url, waiting) if wait else None
    if isinstance(outcome, SnoozeError):
        raise outcome
    _show(f"/tasks/{segment(task_id)}", TaskView, tables.task_details, output, url)
    error = failure(outcome) if outcome is not None else None
    if error is not None:
        raise error


def hierarchy(
    output: Annotated[
        HierarchyOutput,
        typer.Option("--output", "-o", help="A tree; JSON; GraphML for yEd or Gephi; DOT."),
    ] = HierarchyOutput.TREE,
    url: UrlOption = "",
) -> None:
    """Show the leader, its managers, their hosts and their VMs."""
    from snooze.client import hierarchy_formats, terminal

    if output is HierarchyOutput.JSON:
        content = on_cluster(url, lambda cluster: cluster.fetch("/hierarchy"))
        terminal.show_json(content)
        return
    view = on_cluster(url, lambda cluster: cluster.hierarchy())
    if output is HierarchyOutput.GRAPHML:
        terminal.write(hierarchy_formats.as_graphml(view))
    elif output is HierarchyOutput.DOT:
        terminal.write(hierarchy_formats.as_dot(view))
    else:
        terminal.show(hierarchy_formats.as_tree(view))


def events(
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what happens from now on.")
    ] = False,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, help="So many of the past ones.")
    ] = 20,
    output: OutputOption = Output.TABLE,
    url: UrlOption = "",
) -> None:
    """Show what happened in the cluster; JSON has one event a line."""
    import msgspec

    from snooze.client import tables, terminal
    from snooze.common.api import EventView

    def write(event: EventView) -> None:
        if output is Output.JSON:
            terminal.write(msgspec.json.encode(event).decode())
        else:
            terminal.show(tables.event_line(event))

    async def work(cluster: "AsyncSnooze") -> None:
        past = await cluster.all_events()
        for event in past[-lines:] if lines else []:
            write(event)
        if follow:
            async for event in cluster.follow(after=past[-1].seq if past else 0):
                write(event)

    on_cluster(url, work)


def version(output: OutputOption = Output.TABLE, url: UrlOption = "") -> None:
    """Show the versions of this command and of the cluster, if one answers."""
    import msgspec

    from snooze.client import terminal
    from snooze.client.async_sdk import AsyncSnooze
    from snooze.client.options import connect
    from snooze.common.api import ClusterView

    async def ask(cluster: AsyncSnooze) -> ClusterView | None:
        try:
            return await cluster.cluster()
        except SnoozeError:
            return None

    own = _own_version()
    view = on_cluster(url, ask)
    if output is Output.JSON:
        terminal.show_json(msgspec.json.encode({"client": own, "cluster": view}))
        return
    terminal.write(f"snooze {own}")
    if view is None:
        terminal.write(f"no cluster answers at {', '.join(connect(url).addresses)}")
    else:
        size = f"{view.managers} managers, {view.hosts} hosts, {view.vms} VMs"
        terminal.write(
            terminal.plain(
                f"cluster {view.version}, led by {view.leader_id} at {view.leader_address}: {size}"
            )
        )


def _own_version() -> str:
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("snooze")
    except PackageNotFoundError:
        return "from a checkout"


def _show(
    path: str,
    kind: type[T],
    render: "Callable[[T], RenderableType]",
    output: Output,
    url: str,
) -> None:
    """One answer as a table, or as the JSON that it is."""
    from snooze.client import terminal
    from snooze.client.async_sdk import decode

    content = on_cluster(url, lambda cluster: cluster.fetch(path))
    if output is Output.JSON:
        terminal.show_json(content)
    else:
        terminal.show(render(decode(content, kind)))
