"""``snooze record``: backup, restore and check of what ZooKeeper keeps."""

import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from snooze.client.options import DAEMON_PANEL, EXIT_NO, Output, add
from snooze.common.errors import InvalidRequest, RemoteError

if TYPE_CHECKING:
    from snooze.common.record_check import Report

_T = TypeVar("_T")
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="Settings of a group manager or bootstrap node: where the store is.",
        exists=True,
        dir_okay=False,
    ),
]
ZooKeeperOption = Annotated[
    str, typer.Option("--zookeeper", metavar="HOST:PORT,...", help="The store's servers.")
]
PrefixOption = Annotated[
    str, typer.Option(metavar="PATH", help="Where the record lies in the store.")
]
FileArgument = Annotated[Path, typer.Argument(metavar="FILE", dir_okay=False)]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    group = typer.Typer(no_args_is_help=True, help="Back up, restore and check what ZooKeeper has.")
    add(group, "export", export, DAEMON_PANEL)
    add(group, "import", import_, DAEMON_PANEL)
    add(group, "check", check, DAEMON_PANEL)
    app.add_typer(group, name="record", rich_help_panel=DAEMON_PANEL)


def export(
    file: FileArgument,
    config: ConfigOption = None,
    zookeeper: ZooKeeperOption = "",
    prefix: PrefixOption = "",
) -> None:
    """Write the record into FILE; the cluster may be running.

    The file has what hosts are woken with: only its owner may read it.
    """
    from snooze.client.record_store import export_record, opened

    hosts, root = _store(config, zookeeper, prefix)

    async def run() -> None:
        async with opened(hosts, root) as coordinator:
            verified = await export_record(coordinator, file, root)
        _say(f"{verified.entries} records in {file}, epoch {verified.header.epoch}")

    _run(run(), file, hosts)


def import_(
    file: FileArgument,
    config: ConfigOption = None,
    zookeeper: ZooKeeperOption = "",
    prefix: PrefixOption = "",
    replace: Annotated[
        bool, typer.Option("--replace", help="Clear away the records that are there.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Even while a group manager leads: it is deposed.")
    ] = False,
    leave_out: Annotated[
        bool,
        typer.Option(
            "--leave-out-unreadable",
            help="Import a file with records that cannot be read, without these.",
        ),
    ] = False,
) -> None:
    """Make the record what FILE says, with all group managers stopped.

    What is interrupted is finished by the same command; until then nobody can lead.
    """
    from snooze.client.record_store import import_record, opened

    hosts, root = _store(config, zookeeper, prefix)

    def progress(done: int, of: int) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{done} of {of} records")
            sys.stderr.write("\n" if done == of else "")

    async def run() -> None:
        async with opened(hosts, root) as coordinator:
            imported = await import_record(
                coordinator,
                file,
                replace=replace,
                force=force,
                leave_out=leave_out,
                on_progress=progress,
            )
        for place in sorted(imported.left_out):
            _say(f"{place} was left out")
        count = imported.verified.entries - len(imported.left_out)
        _say(f"{count} records of {file} are in the store, and were read back")

    _run(run(), file, hosts)


def check(
    config: ConfigOption = None,
    zookeeper: ZooKeeperOption = "",
    prefix: PrefixOption = "",
    output: Annotated[Output, typer.Option("--output", "-o")] = Output.TABLE,
) -> None:
    """Say what in the record does not fit together; the cluster may be running.

    Exit code 1 if there is something, one line each.
    """
    from snooze.client.record_store import check_record, opened

    hosts, root = _store(config, zookeeper, prefix)

    async def run() -> "Report":
        async with opened(hosts, root) as coordinator:
            return await check_record(coordinator)

    report = _ended(run(), hosts)
    _show(report, output)
    if report.findings:
        raise typer.Exit(EXIT_NO)


def _show(report: "Report", output: Output) -> None:
    if output is Output.JSON:
        import msgspec

        from snooze.client.terminal import show_json

        show_json(msgspec.json.encode(report))
        return
    for finding in report.findings:
        _say(f"{finding.path}: {finding.what}: {finding.advice}")
    sizes = "; ".join(
        f"{total.count} {total.kind} ({total.bytes} bytes, largest {total.largest_bytes})"
        for total in report.totals
    )
    _say(f"{len(report.findings)} findings; {sizes}")


def _store(config: Path | None, zookeeper: str, prefix: str) -> tuple[str, str]:
    """The servers and the root: from a daemon's settings, or as given."""
    from snooze.common.config import load
    from snooze.common.settings import BootstrapSettings, CoordinationSettings
    from snooze.common.settings_groupmanager import GroupManagerSettings

    store = CoordinationSettings()
    if config is not None:
        text = config.read_text(errors="replace")
        if 'role = "bootstrap"' in text:
            store = load(str(config), BootstrapSettings).coordination
        else:
            store = load(str(config), GroupManagerSettings).coordination
        if store.driver != "zookeeper":
            raise InvalidRequest(f"{config}: its store is {store.driver}, not ZooKeeper")
    elif not zookeeper:
        raise InvalidRequest("say where the store is: -c groupmanager.toml, or --zookeeper HOST")
    return zookeeper or ",".join(store.hosts), prefix or store.root


def _run(work: Coroutine[object, object, None], file: Path, hosts: str) -> None:
    """Run it; what the file system says becomes an error of ours."""
    try:
        _ended(work, hosts)
    except OSError as error:
        raise InvalidRequest(f"{file}: {error.strerror or error}") from error


def _ended(work: Coroutine[object, object, _T], hosts: str) -> _T:
    """Run it. Raises: StoreSilent, whichever way the store at ``hosts`` did not answer."""
    import asyncio

    from snooze.client.errors import StoreSilent

    try:
        return asyncio.run(work)
    except RemoteError as error:
        raise StoreSilent(f"{hosts}: {error.message}") from error


def _say(line: str) -> None:
    from snooze.client.terminal import plain, write

    write(plain(line))
