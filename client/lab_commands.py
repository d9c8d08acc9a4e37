"""``snooze lab``: a whole cluster of real hosts on this machine, to try before buying machines.

``up`` leaves a process behind that owns the lab (``snooze.lab.owner``); the other commands speak to
it through a socket that only root reaches.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from snooze.client.options import DAEMON_PANEL, Output, OutputOption, add
from snooze.common.clock import SYSTEM_CLOCK
from snooze.common.errors import ExecutionError, InvalidRequest, PreconditionError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from snooze.lab.cluster import LabPlan, LabView

DOWN_S = 60.0
"""More than it takes to take down the largest lab."""
ORDER_S = 120.0
FAILED = "failed: "
BMC_SAYS = {"off": " (no power)", "cut": " (cut)"}


class Power(StrEnum):
    """What a power switch does."""

    ON = "on"
    OFF = "off"
    CYCLE = "cycle"
    SOFT = "soft"
    SUSPEND = "suspend"
    HIBERNATE = "hibernate"


NameOption = Annotated[
    str, typer.Option("--name", metavar="LAB", help="Which lab, if there are several.")
]
MachinesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="MACHINE...",
        help="As `snooze lab status` names them: h2, gm1, zk3.",
    ),
]
BmcOption = Annotated[bool, typer.Option("--bmc", help="Its BMC's cable instead.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    lab = typer.Typer(
        help="A whole cluster of real hosts on this machine (takes root): libvirt, live migration, "
        "BMCs, power cuts.",
        no_args_is_help=True,
    )
    for name, function in (
        ("up", up),
        ("status", status),
        ("power", power),
        ("cut", cut),
        ("plug", plug),
        ("burn", burn),
        ("console", console),
        ("down", down),
    ):
        add(lab, name, function, DAEMON_PANEL)
    app.add_typer(lab, name="lab", rich_help_panel=DAEMON_PANEL)


def up(
    hosts: Annotated[int, typer.Option(min=1, max=16, help="Hosts, each with a BMC.")] = 4,
    managers: Annotated[
        int, typer.Option(min=1, max=8, help="Machines with a group manager and a front door.")
    ] = 2,
    zookeepers: Annotated[int, typer.Option(min=1, max=7, help="ZooKeeper servers.")] = 3,
    linux: Annotated[
        bool,
        typer.Option(
            "--linux", help="Linux guests to submit, too, made of Debian's packages (27 MB)."
        ),
    ] = False,
    self_fencing: Annotated[
        bool,
        typer.Option(
            "--self-fencing", help="Hosts fence themselves, though they have BMCs (lease.enabled)."
        ),
    ] = False,
    suspend: Annotated[
        bool,
        typer.Option(
            "--suspend", help="Hosts go to sleep by suspending to RAM, and not by switching off."
        ),
    ] = False,
    hibernate: Annotated[
        bool, typer.Option("--hibernate", help="Likewise, by suspending to disk.")
    ] = False,
    wake_on_lan: Annotated[
        bool,
        typer.Option(
            "--wake-on-lan", help="The cluster wakes hosts so, and knows nothing of their BMCs."
        ),
    ] = False,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="Small hosts that save energy, and managers that decide in seconds what takes "
            "minutes in a machine room.",
        ),
    ] = False,
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Stay, and take it down with Ctrl-C.")
    ] = False,
    name: NameOption = "lab",
    output: OutputOption = Output.TABLE,
) -> None:
    """Build a lab and wait until its cluster has formed.

    It goes on in the background until `snooze lab down`.
    """
    from snooze.lab.cluster import LabPlan, require_tools
    from snooze.lab.owner import check_name, owner_pid, require_root
    from snooze.lab.quick import quickened

    check_name(name)
    if suspend and hibernate:
        raise InvalidRequest("hosts go to sleep in one way: --suspend or --hibernate")
    require_root()
    require_tools()
    if owner_pid(name):
        raise PreconditionError(
            f"lab {name!r} is up already: see `snooze lab status`, or take it down with "
            "`snooze lab down`"
        )
    plan = LabPlan(
        hosts=hosts,
        managers=managers,
        zookeepers=zookeepers,
        host_settings={"lease": {"enabled": "always"}} if self_fencing else {},
        linux=linux,
        suspend=suspend,
        hibernate=hibernate,
        wake_on_lan=wake_on_lan,
    )
    if quick:
        plan = quickened(plan)
    if foreground:
        _keep(name, plan, output)
    else:
        _show_up(_start(name, plan), output)


def status(output: OutputOption = Output.TABLE, name: NameOption = "lab") -> None:
    """Show every machine as it is: power, cables, services, guests."""
    import msgspec

    from snooze.client import terminal
    from snooze.lab.cluster import LabView

    view = msgspec.convert(_order(name, {"order": "status"}), LabView)
    if output is Output.JSON:
        terminal.show_json(msgspec.json.encode(view))
    else:
        terminal.show(_table(view))
        terminal.write(f"\nexport SNOOZE_URL={view.url}")


def power(
    action: Annotated[
        Power,
        typer.Argument(
            help="off and cycle cut the power; soft presses the power button; suspend is to RAM, "
            "hibernate to disk, and on wakes."
        ),
    ],
    machines: MachinesArgument,
    with_bmc: Annotated[
        bool, typer.Option("--with-bmc", help="The BMC loses power, too, until `power on`.")
    ] = False,
    name: NameOption = "lab",
) -> None:
    """Switch machines on and off, as a power cut would: nothing is asked first."""
    order = {"order": "power", "action": action.value, "machines": machines, "with_bmc": with_bmc}
    _order(name, order)


def cut(machines: MachinesArgument, bmc: BmcOption = False, name: NameOption = "lab") -> None:
    """Pull the network cables of machines; what runs there runs on."""
    _order(name, {"order": "cable", "machines": machines, "plugged": False, "bmc": bmc})


def plug(machines: MachinesArgument, bmc: BmcOption = False, name: NameOption = "lab") -> None:
    """Put the network cables of machines back."""
    _order(name, {"order": "cable", "machines": machines, "plugged": True, "bmc": bmc})


def burn(
    guests: Annotated[
        list[str],
        typer.Argument(metavar="GUEST...", help="Guests of one sector: guest1 to guest8."),
    ],
    share: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="The part of each second that they burn; 0: none."),
    ] = 1.0,
    name: NameOption = "lab",
) -> None:
    """Have guests burn their processors, or leave off, from their next heart beat on."""
    _order(name, {"order": "burn", "guests": guests, "share": share})


def console(
    guest: Annotated[str, typer.Argument(metavar="GUEST", help="A VM, by name.")],
    name: NameOption = "lab",
) -> None:
    """Open a guest's serial console, on whichever host it runs; Ctrl-] leaves it."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise PreconditionError("a console is for people: it takes a terminal")
    where = _order(name, {"order": "where", "guest": guest})
    sys.stderr.write(f"{guest} runs on {where['host']}; Ctrl-] leaves its console.\n")
    sys.stderr.flush()
    os.execvp("virsh", ["virsh", "-q", "-c", str(where["uri"]), "console", guest])


def down(name: NameOption = "lab") -> None:
    """Take a lab down; its disks go with it."""
    import shutil

    from snooze.lab.owner import check_name, owner_pid, require_root, state_folder
    from snooze.lab.processes import sweep

    check_name(name)
    require_root()
    folder = state_folder(name)
    if not folder.exists():
        raise PreconditionError(f"there is no lab {name!r}")
    pid = owner_pid(name)
    if pid:
        os.kill(pid, signal.SIGTERM)
        deadline_s = SYSTEM_CLOCK.monotonic_s() + DOWN_S
        while folder.exists() and owner_pid(name):
            if SYSTEM_CLOCK.monotonic_s() > deadline_s:
                raise ExecutionError(f"process {pid}, which owns the lab, does not end")
            time.sleep(0.05)
    sweep()  # of an owner that was killed
    shutil.rmtree(folder, ignore_errors=True)


# ---------------------------------------------------------------- how


def _order(name: str, order: Mapping[str, object]) -> dict[str, Any]:
    """The answer of the lab's owner.

    Raises:
        NotFound: there is no such lab.
        PreconditionError: it is not up yet, or its owner died.
    """
    from snooze.lab.control import ask
    from snooze.lab.owner import check_name, owner_pid, require_root, state_folder

    check_name(name)
    require_root()
    folder = state_folder(name)
    if not folder.exists():
        raise PreconditionError(f"there is no lab {name!r}: build one with `snooze lab up`")
    try:
        return ask(folder / "socket", order, ORDER_S)
    except (FileNotFoundError, ConnectionError) as error:
        if owner_pid(name):
            raise PreconditionError("the lab is being built, or taken down; try again") from error
        raise PreconditionError(
            f"the process that owned lab {name!r} has died; clean up with `snooze lab down`"
        ) from error


def _start(name: str, plan: "LabPlan") -> "LabView":
    """Start the owner in the background, and show what it does until the lab is up.

    Raises:
        ExecutionError: it failed; in its words.
    """
    import msgspec

    from snooze.client import terminal
    from snooze.lab.cluster import LabView
    from snooze.lab.daemons import child_environment
    from snooze.lab.owner import READY

    with tempfile.TemporaryFile() as complaints:
        owner = subprocess.Popen(
            (
                *(sys.executable, "-m", "snooze.lab.owner", name),
                msgspec.json.encode(plan).decode(),
            ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=complaints,
            env=child_environment(),
            cwd="/",
            text=True,
            start_new_session=True,
        )
        assert owner.stdout is not None
        failure = ""
        try:
            with owner.stdout as lines:
                for line in lines:
                    if line.startswith(READY):
                        return msgspec.json.decode(line.removeprefix(READY), type=LabView)
                    if line.startswith(FAILED):
                        failure = line.removeprefix(FAILED).strip()
                    else:
                        terminal.error_console().print(f"  {terminal.plain(line.strip())}")
        except KeyboardInterrupt:
            with contextlib.suppress(ProcessLookupError):
                owner.terminate()
            owner.wait()
            raise
        owner.wait()
        complaints.seek(0)
        said = complaints.read().decode(errors="replace").strip()
        raise ExecutionError(f"the lab could not be built: {failure or said}")


def _keep(name: str, plan: "LabPlan", output: Output) -> None:
    from snooze.client import terminal
    from snooze.lab.owner import Owner

    owner = Owner(name, plan, lambda line: terminal.error_console().print(f"  {line}"))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, owner.end)
    try:
        owner.run(lambda view: _show_up(view, output, foreground=True))
    except (OSError, RuntimeError) as error:
        raise ExecutionError(f"the lab could not be built: {error}") from error


def _show_up(view: "LabView", output: Output, *, foreground: bool = False) -> None:
    import msgspec

    from snooze.client import terminal

    if output is Output.JSON:
        terminal.show_json(msgspec.json.encode(view))
        return
    name = "" if view.name == "lab" else f" --name {view.name}"
    end = "Ctrl-C takes it down." if foreground else f"`snooze lab down{name}` takes it down."
    guests = " ".join(f"{view.templates}/guest{number}.xml" for number in (1, 2))
    lines = [
        f"export SNOOZE_URL={view.url}",
        f"snooze submit {guests} --host h1",
        f"snooze list; snooze migrate guest1 --to h2; snooze lab console guest1{name}",
        f"snooze lab power off h2{name}; snooze lab status{name}",
    ]
    if view.quick:
        lines.append(f"snooze lab burn guest1 guest2{name} --share 0.2; snooze events --follow")
    if view.linux:
        lines.append(f"snooze submit {view.templates}/linux1.xml; snooze lab console linux1{name}")
    terminal.write(
        f"The lab is up; guests run by {view.guests_run_by}. {end}\n\n"
        + "".join(f"    {line}\n" for line in lines)
    )


def _table(view: "LabView") -> "RenderableType":
    from snooze.client.tables import plain_table

    rows = [
        (
            machine.name,
            machine.role,
            machine.power,
            machine.cable,
            machine.service,
            ", ".join(machine.guests),
            machine.address,
            machine.bmc + BMC_SAYS.get(machine.bmc_state, ""),
        )
        for machine in view.machines
    ]
    columns = ("MACHINE", "ROLE", "POWER", "CABLE", "~SERVICE", "~GUESTS", "ADDRESS", "BMC")
    return plain_table(columns, rows, "no machines")
