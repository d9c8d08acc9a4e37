"""Scenarios: a story by hand, and the transitions that are expected of it.

A scenario is a folder (``tests/scenarios/NAME``) that reads from top to bottom:

``README.md``      what is told, and where it comes from
``scenario.toml``  ``[start]``: the cluster; ``[[deed]]``: what is done, as in ``deeds.py``
``expected.txt``   the transitions that follow: the leader's events, what clients were told, what
                   hosts are seen to run in the end

Run it, and what happened has to be what is expected, line by line; without an ``expected.txt`` it
fails. ``--rewrite`` writes what happened; a person reads the difference.

Source: Proxmox pve-ha-manager, whose tests are scenario folders beside logs of virtual time; but
there a missing expectation is written silently, and the lines are the log's words.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import msgspec

from snooze.common.errors import InvalidRequest
from snooze.simulation.deeds import Deed, problems_of
from snooze.simulation.run import HOSTS, Result, Run, managers_settings
from snooze.simulation.world import Shape, World

_WORDS: Final = re.compile(
    r"^(leader|host|manager|decision|vm|command|reserve|autonomy|energy|accepted|task)\b"
)
_CHANGING: Final = re.compile(r"\b[0-9a-f]{8,32}(-[0-9a-f]{4}){0,4}\b|10\.\d+\.\d+\.\d+(:\d+)?")
_QUIET: Final = ("decision.reserve", "reserve.")


class Start(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The cluster of a scenario."""

    hosts: int = 3
    managers: int = 3
    for_s: float = 30.0
    seed: int = 1
    without_bmc: tuple[str, ...] = ()
    leases: Literal["", "some", "all"] = ""
    terms_s: tuple[float, ...] = ()
    sleeps: bool = False
    """As in ``world.Shape``."""


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What ``scenario.toml`` says."""

    start: Start = Start()
    deed: tuple[Deed, ...] = ()


@dataclass(frozen=True, slots=True)
class Told:
    """What came of a scenario: its transitions, and how the run ended."""

    lines: list[str]
    result: Result


def load(folder: Path) -> Scenario:
    """Read a scenario.

    Raises:
        InvalidRequest: there is none, or it makes no sense; says where and why.
    """
    path = folder / "scenario.toml"
    try:
        scenario = msgspec.toml.decode(path.read_bytes(), type=Scenario)
    except FileNotFoundError:
        raise InvalidRequest(f"{folder} is no scenario: there is no scenario.toml in it") from None
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path}: {error}") from None
    shape = _shape(scenario.start)
    for number, deed in enumerate(scenario.deed, 1):
        found = problems_of(deed, shape)
        if found:
            raise InvalidRequest(f"{path}: deed {number}: {'; '.join(found)}")
    return scenario


def tell(scenario: Scenario) -> Told:
    """Play a scenario."""
    lines: list[str] = []

    def listen(now_s: float, who: str, what: str) -> None:
        if who == "--":
            lines.append(f"{now_s:7.1f}  {what}")
        elif who == "!!" or (_WORDS.match(what) and not what.startswith(_QUIET)):
            lines.append(f"{now_s:7.1f}      {who}: {_steady(what)}")

    def prepare(world: World) -> None:
        for name in scenario.start.without_bmc:
            world.bmcs.machine(name).is_silent = True

    start = scenario.start
    run = Run(
        start.seed,
        scenario.deed,
        _shape(start),
        start.for_s,
        listener=listen,
        prepare=prepare,
        at_end=lambda world: lines.extend(_in_the_end(world)),
    )
    return Told(lines, run.go())


def _shape(start: Start) -> Shape:
    return Shape(
        start.hosts,
        start.managers,
        drift=False,
        managers_settings=managers_settings(leases=bool(start.leases), sleeps=start.sleeps),
        hosts_settings=HOSTS,
        leases=start.leases,
        terms_s=start.terms_s,
        sleeps=start.sleeps,
    )


def _steady(text: str) -> str:
    """Without ids and addresses: a story is about names."""
    return _CHANGING.sub("*", text)


def _in_the_end(world: World) -> list[str]:
    lines = ["in the end"]
    for name, host in world.guests.hosts.items():
        there = sorted(f"{vm.spec.name} {vm.state.value}" for vm in host.vms.values())
        lines.append(f"         {name}: {', '.join(there) or 'nothing'}")
    return lines


def expected_of(folder: Path) -> list[str] | None:
    """The transitions that are expected; None if nobody has said."""
    path = folder / "expected.txt"
    return path.read_text().splitlines() if path.is_file() else None
