"""Plug-ins in a manager, of a directory and of installed packages; what fails is replaced."""

import logging
import sys
import textwrap
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from snooze.common.decisions import DecisionKind, DecisionState
from snooze.common.errors import SettingsError
from snooze.common.settings_autonomy import (
    AutonomySettings,
    ConsolidationSettings,
    RelocationSettings,
)
from snooze.common.wire import DecisionMade
from snooze.groupmanager.manager.autonomy import FailureLog
from snooze.groupmanager.manager.autonomy_setup import autonomy_policy
from snooze.scheduling import plugins
from snooze.scheduling.__main__ import main as scheduling
from snooze.scheduling.plans import Plan
from snooze.scheduling.plugged import CODE
from snooze.scheduling.snapshot import Problem
from tests.unit.manager.load_desk import PERIOD_S, LoadDesk, settings_of

GOOD = """
    import numpy as np
    from snooze.scheduling.plugins import Decider, DeciderKind

    def to_the_last(situation, properties):
        '''One VM of each host in question goes to the last host.'''
        snapshot = situation.snapshot
        placement = snapshot.placement.copy()
        for host in np.flatnonzero(situation.overloaded):
            placement[np.flatnonzero(placement == host)[0]] = snapshot.hosts - 1
        for host in np.flatnonzero(situation.underloaded):
            placement[placement == host] = snapshot.hosts - 1
        return placement

    def all_on_first(snapshot, properties):
        return np.zeros(snapshot.vms, dtype=int)

    SNOOZE_PLUGINS = [
        Decider(DeciderKind.RELOCATION, "to_the_last", to_the_last),
        Decider(DeciderKind.CONSOLIDATION, "all_on_first", all_on_first),
    ]
"""
BAD = """
    from snooze.scheduling.plugins import Decider, DeciderKind

    def raises(situation, properties):
        raise RuntimeError("out of ideas")

    def half(situation, properties):
        placement = situation.snapshot.placement.copy()
        placement[0] = situation.snapshot.hosts - 1
        return placement

    def nonsense(situation, properties):
        return ["h1"]

    def nowhere(snapshot, properties):
        return snapshot.placement * 0 - 1

    SNOOZE_PLUGINS = [
        Decider(DeciderKind.RELOCATION, "raises", raises),
        Decider(DeciderKind.RELOCATION, "half", half),
        Decider(DeciderKind.RELOCATION, "nonsense", nonsense),
        Decider(DeciderKind.CONSOLIDATION, "raises", raises),
        Decider(DeciderKind.CONSOLIDATION, "nowhere", nowhere),
    ]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "good.py").write_text(textwrap.dedent(GOOD))
    (tmp_path / "bad.py").write_text(textwrap.dedent(BAD))
    return tmp_path


def desk_of(
    folder: Path, hosts: int = 3, policy: str = "predictive", method: str = "optimiser"
) -> LoadDesk:
    settings = settings_of(
        AutonomySettings(interval_s=PERIOD_S, plugins_directory=str(folder)),
        RelocationSettings(only_sleepable=False, policy=policy),
        ConsolidationSettings(method=method),
    )
    return LoadDesk(hosts, settings)


def replay(decision_inputs: bytes, folder: Path, *options: str) -> int:
    file = folder / "decision.json"
    file.write_text(zlib.decompress(decision_inputs).decode())
    return scheduling([*options, "replay", str(file)])


def test_a_plugged_relocation_decides_and_is_replayed_with_its_plug_in(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    desk = desk_of(folder, policy="to_the_last")
    for name in ("a", "b", "c", "d"):
        desk.guest(name, "h1", 0.95)
    desk.guest("calm", "h2", 1.5)
    desk.pass_time(60)
    assert [(move[1], move[3]) for move in desk.moves[:1]] == [("a", "h3")], "h2 is fuller"
    decision = desk.decisions(DecisionKind.OVERLOAD)[0]
    assert decision.state is DecisionState.DONE
    assert replay(decision.inputs, folder, "--plugins", str(folder)) == 0
    assert "relocation by to_the_last" in capsys.readouterr().out
    assert replay(decision.inputs, folder) == 2
    assert "--plugins DIRECTORY" in capsys.readouterr().err


def test_it_empties_hosts_too(folder: Path) -> None:
    desk = desk_of(folder, policy="to_the_last")
    desk.guest("a", "h1", 0.1)
    desk.guest("b", "h1", 0.1)
    desk.guest("c", "h3", 1.0)
    desk.pass_time(400)
    assert {desk.where(name) for name in "abc"} == {"h3"}


@pytest.mark.parametrize(
    ("policy", "why"),
    [
        ("raises", "RuntimeError: out of ideas"),
        ("half", "it does not empty h1 altogether"),
        ("nonsense", "the answer is not 3 indices"),
    ],
)
def test_one_that_fails_is_replaced_by_the_built_in_policy(
    folder: Path, policy: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    desk = desk_of(folder, hosts=3, policy=policy)
    desk.guest("a", "h1", 0.1)
    desk.guest("b", "h1", 0.1)
    desk.guest("c", "h2", 1.0)
    desk.pass_time(400)
    assert {desk.where(name) for name in "abc"} == {"h2"}
    [decision] = desk.decisions(DecisionKind.UNDERLOAD)
    assert decision.alternatives[0] == f"relocation {policy} was asked first, and failed: {why}"
    assert replay(decision.inputs, folder) == 0, "what is recorded is who decided"
    assert "relocation by predictive" in capsys.readouterr().out


def test_a_plugged_consolidation_and_ones_that_fail(folder: Path) -> None:
    for method, failed in (("all_on_first", ""), ("raises", "out of"), ("nowhere", "stays where")):
        desk = desk_of(folder, method=method)
        for number in (1, 2, 3):
            desk.guest(f"v{number}", f"h{number}", 1.0)
        desk.pass_time(30)
        answer = desk.consolidate_now()
        assert isinstance(answer, DecisionMade)
        decision = answer.decision
        desk.pass_time(60)
        where = {desk.where(f"v{number}") for number in (1, 2, 3)}
        assert len(where) == 1, method
        if failed:
            assert failed in decision.alternatives[0]
            assert replay(desk.told[decision.decision_id].inputs, folder) == 0
        else:
            assert where == {"h1"}
            inputs = desk.told[decision.decision_id].inputs
            assert replay(inputs, folder, "--plugins", str(folder)) == 0


def test_a_name_that_is_not_there_stops_the_start_and_says_what_there_is(folder: Path) -> None:
    for key, settings in (
        ("relocation.policy", settings_of(relocation=RelocationSettings(policy="to_the_lost"))),
        ("consolidation.method", settings_of(consolidation=ConsolidationSettings(method="all"))),
    ):
        desk = LoadDesk(1)
        with pytest.raises(SettingsError) as wrong:
            autonomy_policy(settings, desk.core.overcommit, desk.core.headroom)
        assert key in str(wrong.value)
        assert "of installed packages, and in autonomy.plugins_directory" in str(wrong.value)
    (folder / "broken.py").write_text("import nothing_of_this_name")
    with pytest.raises(SettingsError) as wrong:
        desk_of(folder, policy="to_the_lost")
    assert "there are: predictive" in str(wrong.value)
    assert "to_the_last" in str(wrong.value)
    assert "broken.py" in str(wrong.value)


def test_each_failure_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    failures = FailureLog()
    problems = (Problem("relocation x", "it raised", CODE), Problem("snapshot", "odd", "range"))
    plan = Plan(placement=np.zeros(0, dtype=np.int64), problems=problems)
    with caplog.at_level(logging.WARNING):
        failures.note(plan)
        failures.note(plan)
    [record] = caplog.records
    assert "a plug-in failed" in record.message


PACKAGED = """
    from snooze.scheduling.plugins import Decider, DeciderKind

    def first_to_the_last(situation, properties):
        placement = situation.snapshot.placement.copy()
        placement[0] = situation.snapshot.hosts - 1
        return placement

    def newest(samples, requested, properties):
        return samples[-1]

    def hot(samples, capacity, properties):
        return "overload" if samples[-1, 0] > 0.9 else "normal"

    PLUGINS = [
        Decider(DeciderKind.RELOCATION, "packaged", first_to_the_last),
        Decider(DeciderKind.ESTIMATOR, "packaged", newest),
        Decider(DeciderKind.DETECTOR, "packaged", hot),
    ]
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package is installed that announces plug-ins, and one that is broken."""
    (tmp_path / "packaged_plugins.py").write_text(textwrap.dedent(PACKAGED))
    about = tmp_path / "packaged-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: packaged\nVersion: 1.0\n")
    points = "good = packaged_plugins:PLUGINS\nlost = packaged_nowhere:PLUGINS\n"
    (about / "entry_points.txt").write_text(f"[{plugins.GROUP}]\n{points}")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    plugins.for_plans.cache_clear()
    yield
    plugins.for_plans.cache_clear()
    sys.modules.pop("packaged_plugins", None)


@pytest.mark.usefixtures("package")
def test_plug_ins_of_installed_packages_are_chosen_by_name(tmp_path: Path) -> None:
    chosen = RelocationSettings(
        only_sleepable=False, policy="packaged", estimator="packaged", detector="packaged"
    )
    desk = LoadDesk(3, settings_of(relocation=chosen))
    desk.guest("a", "h1", 1.9)
    desk.guest("b", "h1", 1.9)
    desk.pass_time(60)
    decision = desk.decisions(DecisionKind.OVERLOAD)[0]
    assert "overloaded by packaged" in decision.reason
    assert [desk.where(name) for name in "ab"] == ["h3", "h1"]
    assert replay(decision.inputs, tmp_path) == 0, "it is installed here, too"
    for key, wrong in (
        ("relocation.detector", RelocationSettings(detector="packed")),
        ("relocation.estimator", RelocationSettings(estimator="packed")),
        ("relocation.policy", RelocationSettings(policy="packed")),
    ):
        with pytest.raises(SettingsError) as error:
            LoadDesk(1, settings_of(relocation=wrong))
        assert key in str(error.value)
        assert "'packed'; there are: " in str(error.value)
        assert "packaged" in str(error.value)
        assert "not loaded: entry point lost: " in str(error.value)
