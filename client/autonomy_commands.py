"""Commands about what the cluster does by itself: ``snooze decisions`` and ``snooze autonomy``."""

import getpass
from enum import StrEnum
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
    complete_vm,
    guarded,
    on_cluster,
)
from snooze.common.decisions import DecisionKind, DecisionMode, DecisionState
from snooze.common.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from snooze.client.async_sdk import AsyncSnooze
    from snooze.common.api import AutonomyView, DecisionView, ManagerView

PREFIX_DIGITS = 6
"""So many digits of a decision's id are enough, if no other begins with them."""


class SettableMode(StrEnum):
    """A mode, or what the settings say."""

    AUTO = DecisionMode.AUTO.value
    ADVISE = DecisionMode.ADVISE.value
    DRY_RUN = DecisionMode.DRY_RUN.value
    OFF = DecisionMode.OFF.value
    SETTINGS = "settings"


IdArgument = Annotated[
    str, typer.Argument(metavar="ID", help="The decision's id, or how it begins.")
]
KindOption = Annotated[
    list[DecisionKind] | None,
    typer.Option("--kind", help="Only this kind of decision; may be repeated.", show_default=False),
]
ManagerOption = Annotated[
    str, typer.Option("--manager", metavar="NAME", help="Only at this group manager.")
]
HostOption = Annotated[
    str,
    typer.Option("--host", metavar="NAME", help="Only this host.", autocompletion=complete_host),
]
VmOption = Annotated[
    str, typer.Option("--vm", metavar="NAME", help="Only this VM.", autocompletion=complete_vm)
]
WhyOption = Annotated[str, typer.Option("--why", metavar="TEXT", help="Why; shown to others.")]
ForOption = Annotated[
    float, typer.Option("--for", metavar="SECONDS", min=0.0, help="For so long; 0: for ever.")
]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    decisions = typer.Typer(
        help="What the cluster decided by itself, and why.", invoke_without_command=True
    )
    decisions.callback()(guarded(list_decisions))
    for name, function in (
        ("show", show),
        ("approve", approve),
        ("reject", reject),
        ("export", export),
        ("replay", replay),
    ):
        add(decisions, name, function, CLUSTER_PANEL)
    app.add_typer(decisions, name="decisions", rich_help_panel=CLUSTER_PANEL)
    autonomy = typer.Typer(help="What the cluster may do by itself.", no_args_is_help=True)
    for name, command in (
        ("show", show_autonomy),
        ("pause", pause),
        ("resume", resume),
        ("mode", mode),
        ("window", window),
        ("consolidate", consolidate),
    ):
        add(autonomy, name, command, CLUSTER_PANEL)
    app.add_typer(autonomy, name="autonomy", rich_help_panel=CLUSTER_PANEL)


# ------------------------------------------------------------ decisions


def list_decisions(
    context: typer.Context,
    kind: Annotated[DecisionKind | None, typer.Option("--kind", help="Only of this kind.")] = None,
    state: Annotated[
        DecisionState | None, typer.Option("--state", help="Only in this state.")
    ] = None,
    host: HostOption = "",
    vm: VmOption = "",
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000)] = 50,
    output: OutputOption = Output.TABLE,
    url: UrlOption = "",
) -> None:
    """List the latest decisions, newest first; `show ID` says all of one."""
    if context.invoked_subcommand is not None:
        return
    from snooze.client import terminal
    from snooze.client.async_sdk import decode
    from snooze.common.api import DecisionView

    params = {
        name: value
        for name, value in (
            ("kind", kind.value if kind else ""),
            ("state", state.value if state else ""),
            ("host", host),
            ("vm", vm),
            ("limit", str(limit)),
        )
        if value
    }
    content = on_cluster(url, lambda cluster: cluster.fetch("/decisions", params))
    if output is Output.JSON:
        terminal.show_json(content)
    else:
        none = "No such decision is known." if len(params) > 1 else "No decision is known."
        terminal.show(_decisions_table(decode(content, list[DecisionView]), none))


def show(decision_id: IdArgument, output: OutputOption = Output.TABLE, url: UrlOption = "") -> None:
    """Show one decision: why, what, what else was weighed, and what became of it."""
    import msgspec

    from snooze.client import terminal

    async def work(cluster: "AsyncSnooze") -> "tuple[DecisionView, list[ManagerView]]":
        view = await _whole(cluster, decision_id)
        return view, [] if output is Output.JSON else await cluster.managers()

    view, managers = on_cluster(url, work)
    if output is Output.JSON:
        terminal.show_json(msgspec.json.encode(view))
    else:
        terminal.show(_decision_text(view, managers))


def approve(
    decision_id: IdArgument, output: OutputOption = Output.TABLE, url: UrlOption = ""
) -> None:
    """Let the cluster do what it proposed; it is checked against the state of this moment first."""
    _judge(decision_id, "approve", output, url)


def reject(
    decision_id: IdArgument, output: OutputOption = Output.TABLE, url: UrlOption = ""
) -> None:
    """Say no to what the cluster proposed."""
    _judge(decision_id, "reject", output, url)


def export(
    decision_id: IdArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write; - is the output.")],
    url: UrlOption = "",
) -> None:
    """Write what `python -m snooze.scheduling replay FILE` needs to decide the same again."""
    import sys

    inputs = on_cluster(url, lambda cluster: _inputs(cluster, decision_id))
    if str(file) == "-":
        sys.stdout.buffer.write(inputs)
        sys.stdout.flush()
        return
    try:
        file.write_bytes(inputs)
    except OSError as error:
        raise InvalidRequest(f"{file} cannot be written: {error.strerror}") from error


def replay(
    decision_id: IdArgument,
    output: OutputOption = Output.TABLE,
    url: UrlOption = "",
) -> None:
    """Decide again from the inputs of a decision, and compare; exit code 1 if it differs."""
    import contextlib
    import io
    import tempfile

    from snooze.client import terminal
    from snooze.scheduling.__main__ import main

    inputs, names = on_cluster(url, lambda cluster: _inputs_and_names(cluster, decision_id))
    shown = io.StringIO()
    with tempfile.NamedTemporaryFile(suffix=".json") as file, contextlib.redirect_stdout(shown):
        file.write(inputs)
        file.flush()
        code = main(["replay", *(["--json"] if output is Output.JSON else []), file.name])
    text = shown.getvalue().rstrip()
    if output is not Output.JSON:
        for identity, name in names.items():
            text = text.replace(identity, terminal.plain(name))
    terminal.write(text)
    raise typer.Exit(code)


async def _inputs_and_names(
    cluster: "AsyncSnooze", decision_id: str
) -> "tuple[bytes, dict[str, str]]":
    """What replays a decision, and what its hosts and VMs are called."""
    inputs = await _inputs(cluster, decision_id)
    names = {vm.vm_id: vm.name for vm in await cluster.vms()}
    return inputs, names | {host.id: host.hostname for host in await cluster.hosts()}


async def _inputs(cluster: "AsyncSnooze", decision_id: str) -> bytes:
    """What replays a decision. Raises: NotFound."""
    from snooze.common.errors import NotFound

    view = await _whole(cluster, decision_id)
    if bytes(view.inputs) == b"null":
        raise NotFound(
            f"decision {view.id} has no inputs: a person decided it, or they were too many or are "
            "forgotten"
        )
    return bytes(view.inputs)


async def _whole(cluster: "AsyncSnooze", decision_id: str) -> "DecisionView":
    from snooze.client.async_sdk import decode, segment
    from snooze.common.api import DecisionView

    full = await _full_id(cluster, decision_id)
    return decode(await cluster.fetch(f"/decisions/{segment(full)}"), DecisionView)


async def _full_id(cluster: "AsyncSnooze", beginning: str) -> str:
    """The id that begins so, if there is just one."""
    from snooze.client.async_sdk import decode
    from snooze.common.api import DecisionView
    from snooze.common.errors import Conflict

    if not PREFIX_DIGITS <= len(beginning) < 32:
        return beginning
    latest = decode(await cluster.fetch("/decisions", {"limit": "1000"}), list[DecisionView])
    found = [view.id for view in latest if view.id.startswith(beginning)]
    if len(found) > 1:
        raise Conflict(f"{len(found)} decisions begin with {beginning}; give more of the id")
    return found[0] if found else beginning


def _judge(decision_id: str, word: str, output: Output, url: str) -> None:
    import msgspec

    from snooze.client import terminal
    from snooze.client.async_sdk import segment
    from snooze.common.api import DecisionView, DecisionWord

    async def work(cluster: "AsyncSnooze") -> DecisionView:
        full = await _full_id(cluster, decision_id)
        path = f"/decisions/{segment(full)}/{word}"
        return await cluster.send(path, DecisionWord(_who()), DecisionView)

    view = on_cluster(url, work)
    if output is Output.JSON:
        terminal.show_json(msgspec.json.encode(view))
    else:
        terminal.write(terminal.plain(f"{view.id} {view.state} {view.outcome}".rstrip()))


# ------------------------------------------------------------ autonomy


def show_autonomy(output: OutputOption = Output.TABLE, url: UrlOption = "") -> None:
    """Show what the cluster may do by itself at this moment, and what people said."""
    from snooze.client import terminal
    from snooze.client.async_sdk import decode
    from snooze.common.api import AutonomyView

    content = on_cluster(url, lambda cluster: cluster.fetch("/autonomy"))
    if output is Output.JSON:
        terminal.show_json(content)
    else:
        terminal.show(_autonomy_text(decode(content, AutonomyView)))


def pause(
    *,
    kind: KindOption = None,
    manager: ManagerOption = "",
    host: HostOption = "",
    vm: VmOption = "",
    why: WhyOption = "",
    span_s: ForOption = 0.0,
    output: OutputOption = Output.TABLE,
    url: UrlOption = "",
) -> None:
    """Stop decisions of a kind, or all, in the cluster, at a manager, or for a host or VM."""
    _change(kind, manager, host, vm, why, span_s, output, url, paused=True)


def resume(
    *,
    kind: KindOption = None,
    manager: ManagerOption = "",
    host: HostOption = "",
    vm: VmOption = "",
    why: WhyOption = "",
    output: OutputOption = Output.TABLE,
    url: UrlOption = "",
) -> None:
    """Let decisions go on that were paused there."""
    _change(kind, manager, host, vm, why, 0.0, output, url, paused=False)


def mode(
    chosen: Annotated[SettableMode, typer.Argument(metavar="MODE", help="auto, advise, ...")],
    *,
    kind: KindOption = None,
    manager: ManagerOption = "",
    host: HostOption = "",
    vm: VmOption = "",
    why: WhyOption = "",
    span_s: ForOption = 0.0,
    output: OutputOption = Output.TABLE,
    url: UrlOption = "",
) -> None:
    """Do (auto), propose (advise), only write down (dry-run) or do not make (off) decisions."""
    name = "" if chosen is SettableMode.SETTINGS else chosen.value
    _change(kind, manager, host, vm, why, span_s, output, url, mode=name)


def window(
    windows: Annotated[
        list[str] | None,
        typer.Argument(metavar="WINDOW...", help='Such as "mon-fri 22:00-06:00"; none: any time.'),
    ] = None,
    *,
    kind: KindOption = None,
    zone: Annotated[str, typer.Option("--zone", help="The windows' time zone.")] = "UTC",
    why: WhyOption = "",
    output: OutputOption = Output.TABLE,
    url: UrlOption = "",
) -> None:
    """Keep decisions to these windows of the week, in place of all that were named before."""
    _change(kind, "", "", "", why, 0.0, output, url, windows=tuple(windows or ()), zone=zone)


def consolidate(
    manager: Annotated[str, typer.Argument(metavar="MANAGER", help="Left out: all of them.")] = "",
    output: OutputOption = Output.TABLE,
    url: UrlOption = "",
) -> None:
    """Pack VMs on fewer hosts now, whatever the calendar says."""
    import msgspec

    from snooze.client import terminal
    from snooze.client.async_sdk import PLAN_HOLD_S, segment
    from snooze.common.api import DecisionView, DecisionWord
    from snooze.common.errors import SnoozeError

    async def work(cluster: "AsyncSnooze") -> list[DecisionView | SnoozeError]:
        names = [manager] if manager else [each.id for each in await cluster.managers()]
        answers: list[DecisionView | SnoozeError] = []
        for name in names:
            try:
                path = f"/managers/{segment(name)}/consolidate"
                word = DecisionWord(_who())
                answers.append(await cluster.send(path, word, DecisionView, hold_s=PLAN_HOLD_S))
            except SnoozeError as error:
                if manager:
                    raise
                answers.append(error)
        return answers

    answers = on_cluster(url, work)
    views = [answer for answer in answers if not isinstance(answer, SnoozeError)]
    if output is Output.JSON:
        terminal.show_json(msgspec.json.encode(views))
        return
    for answer in answers:
        if isinstance(answer, SnoozeError):
            terminal.write(terminal.plain(answer.message))
        else:
            terminal.write(
                terminal.plain(f"{answer.id} {answer.state}: {answer.outcome or answer.reason}")
            )


def _change(
    kind: list[DecisionKind] | None,
    manager: str,
    host: str,
    vm: str,
    why: str,
    span_s: float,
    output: Output,
    url: str,
    *,
    paused: bool | None = None,
    mode: str | None = None,
    windows: tuple[str, ...] | None = None,
    zone: str = "UTC",
) -> None:
    import msgspec

    from snooze.client import terminal
    from snooze.common.api import AutonomyChange, AutonomyView

    named = [(scope, name) for scope, name in _scopes(manager, host, vm) if name]
    if len(named) > 1:
        raise InvalidRequest("name one of --manager, --host and --vm")
    scope, target = named[0] if named else ("cluster", "")
    change = AutonomyChange(
        scope=scope,
        target=target,
        kinds=tuple(each.value for each in kind or ()),
        paused=paused,
        mode=mode,
        windows=windows,
        zone=zone,
        who=_who(),
        why=why,
        for_s=span_s,
    )
    view = on_cluster(
        url, lambda cluster: cluster.send("/autonomy", change, AutonomyView, verb="PUT")
    )
    if output is Output.JSON:
        terminal.show_json(msgspec.json.encode(view))
    else:
        terminal.show(_autonomy_text(view))


def _scopes(manager: str, host: str, vm: str) -> tuple[tuple[str, str], ...]:
    return (("manager", manager), ("host", host), ("vm", vm))


def _who() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""


# ------------------------------------------------------------ for people


def _decisions_table(views: "list[DecisionView]", none: str) -> "RenderableType":
    from snooze.client import tables

    rows = [
        (
            view.id[: PREFIX_DIGITS + 2],
            _when(view.at_ms),
            view.kind,
            view.state,
            view.outcome or view.reason,
        )
        for view in views
    ]
    return tables.plain_table(("ID", "WHEN", "KIND", "STATE", "~WHAT"), rows, none)


def _decision_text(view: "DecisionView", managers: "Sequence[ManagerView]") -> "RenderableType":
    from rich.text import Text

    from snooze.client.terminal import plain

    names = {each.id: f"{each.hostname} ({each.address}, {each.id})" for each in managers}
    decider = names.get(view.decider, view.decider)
    lines = [
        f"{view.kind} {view.state} ({view.mode}), made {_when(view.at_ms)} by {decider}",
        f"id: {view.id}",
        f"why: {view.reason}",
    ]
    for title, each in (("does", view.actions), ("instead", view.alternatives)):
        lines += [f"{title}: {line}" for line in each]
    if view.outcome:
        ended = f" ({_when(view.ended_ms)})" if view.ended_ms else ""
        lines.append(f"outcome: {view.outcome}{ended}")
    if view.replayable:
        lines.append(f"replay: snooze decisions replay {view.id[:8]}")
    return Text("\n".join(plain(line) for line in lines))


def _autonomy_text(view: "AutonomyView") -> "RenderableType":
    from rich.console import Group

    from snooze.client import tables

    modes = [(kind, mode, view.why_off.get(kind, "")) for kind, mode in view.modes.items()]
    parts: list[RenderableType] = [tables.plain_table(("KIND", "MODE NOW", "~WHY"), modes, "")]
    rules = [
        (
            f"{rule.scope} {rule.name or rule.target}".strip(),
            rule.kind or "all",
            "paused" if rule.paused else rule.mode,
            rule.who,
            rule.why,
            _when(rule.until_ms) if rule.until_ms else "",
        )
        for rule in view.rules
    ]
    if rules:
        titles = ("WHERE", "KIND", "SAID", "WHO", "~WHY", "UNTIL")
        parts.append(tables.plain_table(titles, rules, ""))
    windows = [(each.kind or "all", each.window, each.zone, each.who) for each in view.windows]
    if windows:
        parts.append(tables.plain_table(("KIND", "~ONLY IN", "ZONE", "WHO"), windows, ""))
    return Group(*parts)


def _when(at_ms: int) -> str:
    import datetime

    moment = datetime.datetime.fromtimestamp(at_ms / 1000, datetime.UTC).astimezone()
    return moment.strftime("%Y-%m-%d %H:%M:%S")
