"""Commands that run something here: a cluster in one process, the three daemons, their settings."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from snooze.client.options import DAEMON_PANEL, add
from snooze.common.errors import SettingsError

if TYPE_CHECKING:
    from snooze.common.config_check import ConfigReport


class Hypervisor(StrEnum):
    """What the hosts of ``snooze up`` run their VMs on."""

    TEST = "test"
    SIMULATED = "simulated"
    QEMU = "qemu"


class Role(StrEnum):
    """The daemons."""

    BOOTSTRAP = "bootstrap"
    GROUPMANAGER = "groupmanager"
    LOCALCONTROLLER = "localcontroller"


ConfigOption = Annotated[
    Path,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="Its settings: TOML, or an original snooze_node.cfg.",
        exists=True,
        dir_okay=False,
        readable=True,
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for name, function in (
        ("up", up),
        ("bootstrap", bootstrap),
        ("groupmanager", groupmanager),
        ("localcontroller", localcontroller),
        ("check-config", check_config),
    ):
        add(app, name, function, DAEMON_PANEL)


def up(
    managers: Annotated[int, typer.Option(min=1, help="Group managers.")] = 2,
    hosts: Annotated[int, typer.Option(min=0, help="Hosts.")] = 4,
    hypervisor: Annotated[
        Hypervisor,
        typer.Option(
            help="libvirt's test driver, hosts that only pretend, or qemu on namespaced hosts "
            "(takes root)."
        ),
    ] = Hypervisor.TEST,
    port: Annotated[
        int,
        typer.Option(
            min=0, max=65535, help="The front door's; the others take the next ones. 0: free ones."
        ),
    ] = 5000,
    images: Annotated[
        list[Path] | None,
        typer.Option(help="A directory of disk images; may be given several times."),
    ] = None,
    sleep: Annotated[
        bool,
        typer.Option(
            "--sleep",
            help="Idle hosts go to sleep after 20 s and are woken in 3 s, by simulated power.",
        ),
    ] = False,
) -> None:
    """Run a whole cluster here, until Ctrl-C."""
    from snooze.client.allinone import run

    directories = tuple(str(path.absolute()) for path in images or ())
    raise typer.Exit(
        run(
            managers=managers,
            hosts=hosts,
            hypervisor=hypervisor.value,
            port=port,
            images=directories,
            sleep=sleep,
        )
    )


def bootstrap(config: ConfigOption) -> None:
    """Run a bootstrap node: a front door of the cluster."""
    from snooze.bootstrap.service import run

    raise typer.Exit(run(str(config)))


def groupmanager(config: ConfigOption) -> None:
    """Run a group manager; one of them is elected leader."""
    from snooze.groupmanager.service import run

    raise typer.Exit(run(str(config)))


def localcontroller(config: ConfigOption) -> None:
    """Run a local controller: the agent on a host."""
    from snooze.localcontroller.service import run

    raise typer.Exit(run(str(config)))


def check_config(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="TOML, or an original snooze_node.cfg.")
    ],
    role: Annotated[
        Role | None,
        typer.Option(help="The daemon it is meant for; found in the file unless given."),
    ] = None,
) -> None:
    """Say everything that is wrong with a settings file, and what its keys mean here."""
    from snooze.client.terminal import plain, write
    from snooze.common.config_check import check_config as check

    report = _with_names_checked(check(file, None if role is None else role.value))
    write("\n".join(plain(line) for line in report.text().splitlines()))
    raise typer.Exit(0 if report.ok else SettingsError.exit_code)


def _with_names_checked(report: "ConfigReport") -> "ConfigReport":
    """Also whether the policies that a group manager's file names are there, on this machine."""
    import msgspec

    from snooze.common.errors import Problem
    from snooze.common.resources import R
    from snooze.common.settings_groupmanager import GroupManagerSettings

    if not isinstance(report.settings, GroupManagerSettings):
        return report
    import numpy as np

    from snooze.groupmanager.manager.autonomy_setup import autonomy_policy

    try:
        autonomy_policy(report.settings, np.ones(R), np.ones(R))
    except SettingsError as error:
        problems = error.problems or (Problem("autonomy", error.message),)
        return msgspec.structs.replace(report, settings=None, problems=tuple(problems))
    return report
