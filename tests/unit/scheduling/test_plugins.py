"""Plug-ins: loaded from files, called under guard, skipped when they fail or lie."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from snooze.scheduling import balancing, placement, plugins
from snooze.scheduling.check import check_plan
from snooze.scheduling.detection import Thresholds, Watch
from snooze.scheduling.estimation import Window
from snooze.scheduling.guard import MAX_FAILURES, Guard
from snooze.scheduling.plugin_choices import choices
from snooze.scheduling.plugins import DeciderKind, Plugins
from snooze.scheduling.policies import PolicyError
from snooze.scheduling.snapshot import Snapshot
from snooze.scheduling.units import UnitFailed

HEADER = """
import numpy as np
from snooze.scheduling.plugins import Decider, DeciderKind, PerHostFilter, PerHostWeight
from snooze.scheduling.units import Advice, Balancer, Filter, Property, PropertyKind, Weight
"""

Load = Callable[..., Plugins]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    tmp_path.chmod(0o755)

    def write_and_load(time_limit_s: float = 20.0, **files: str) -> Plugins:
        for name, body in files.items():
            path = tmp_path / f"{name}.py"
            path.write_text(HEADER + body)
            path.chmod(0o644)
        return plugins.load(tmp_path, time_limit_s=time_limit_s)

    return write_and_load


def cluster(vms: int = 4) -> Snapshot:
    return Snapshot.of(
        ["a", "b", "c"],
        [[16.0, 64.0]] * 3,
        vm_ids=[f"v{i}" for i in range(vms)],
        demand=[[1.0, 1.0]] * vms,
    )


def test_units_in_both_forms(load: Load) -> None:
    loaded = load(
        units="""
def few(scene, host, properties):
    return bool(scene.counts[host] < properties["Cards"])

def many(scene, properties):
    return scene.counts < properties["Most"]

def last(scene, host, properties):
    return -host

SNOOZE_PLUGINS = [
    PerHostFilter("few", few, (Property("Cards", 3, PropertyKind.WHOLE, 1, 8),)),
    Filter("many", many, (Property("Most", 9, PropertyKind.WHOLE, 1, 9),)),
    PerHostWeight("last", last),
    Weight("first", lambda scene, properties: np.arange(3)),
]
"""
    )
    assert loaded.problems == ()
    document = {
        "name": "mine",
        "filters": ["few", "many"],
        "weights": {"last": 2, "first": 1},
        "properties": {"Cards": 2},
    }
    plan = placement.plan(cluster(), loaded.catalogue.compose(document))
    assert plan.placement.tolist() == [2, 2, 1, 1]
    assert plan.problems == ()
    with pytest.raises(PolicyError, match=r"Cards must be in \[1, 8\]"):
        loaded.catalogue.compose({**document, "properties": {"Cards": 9}})


@pytest.mark.parametrize(
    ("body", "story"),
    [
        ('Filter("bad", lambda s, p: 1 / 0)', "ZeroDivisionError"),
        ('Filter("bad", lambda s, p: np.ones(7, dtype=bool))', "truth value per host"),
        ('Filter("bad", lambda s, p: np.full(3, 0.5))', "other than true and false"),
        ('Filter("bad", lambda s, p: "all of them")', "truth value per host"),
        ('PerHostFilter("bad", lambda s, h, p: "yes")', "TypeError"),
        ('Weight("bad", lambda s, p: np.full(3, np.nan))', "not finite"),
        ('Weight("bad", lambda s, p: None)', "one number per host"),
        ('PerHostWeight("bad", lambda s, h, p: float("inf"))', "not finite"),
        ('PerHostWeight("bad", lambda s, h, p: "low")', "TypeError"),
        ('Weight("bad", lambda s, p: s.free.fill(1e9))', "ValueError"),
        ('Weight("bad", lambda s, p: exit())', "SystemExit"),
    ],
)
def test_a_failing_unit_is_named_and_skipped(
    load: Load, caplog: pytest.LogCaptureFixture, body: str, story: str
) -> None:
    loaded = load(bad=f"SNOOZE_PLUGINS = [{body}]")
    kind = "filters" if "Filter" in body else "weights"
    part: object = ["bad"] if kind == "filters" else {"bad": 1}
    policy = loaded.catalogue.compose({"name": "mine", "base": "first_fit", kind: part})
    policy = loaded.catalogue.compose({"name": "mine", "base": "none", kind: part})
    with caplog.at_level(logging.WARNING):
        plan = placement.plan(cluster(), policy)
    assert (plan.placement >= 0).all()
    assert check_plan(cluster(), plan) == []
    problem = plan.problems[0]
    assert problem.where == f"{kind[:-1]} bad"
    assert story in problem.message
    assert any(getattr(record, "plugin", "") == problem.where for record in caplog.records)


def test_a_hanging_unit_is_ended_and_never_called_again(load: Load) -> None:
    loaded = load(
        time_limit_s=0.2,
        bad="""
def loop(scene, properties):
    while True:
        pass

SNOOZE_PLUGINS = [Filter("loop", loop)]
""",
    )
    policy = loaded.catalogue.compose({"name": "mine", "base": "none", "filters": ["loop"]})
    plan = placement.plan(cluster(3), policy)
    assert (plan.placement >= 0).all()
    assert "no answer within 0.2 s" in plan.problems[0].message
    assert loaded.guard.given_up("filter loop")
    for thread in threading.enumerate():
        if thread.name == "plug-in filter loop":
            thread.join(30)
            assert not thread.is_alive()


def test_failures_in_a_row_end_the_calls() -> None:
    guard = Guard(20.0)
    calls: list[int] = []

    def fails() -> None:
        calls.append(1)
        raise RuntimeError

    for _ in range(MAX_FAILURES - 1):
        with pytest.raises(UnitFailed):
            guard.call("x", fails)
    assert guard.call("x", lambda: 7) == 7  # a success forgives what was before
    for _ in range(MAX_FAILURES + 3):
        with pytest.raises(UnitFailed):
            guard.call("x", fails)
    assert len(calls) == 2 * MAX_FAILURES - 1
    assert guard.given_up("x")


def test_a_placement_that_lies_never_gets_out(load: Load) -> None:
    loaded = load(
        mine="""
SNOOZE_PLUGINS = [
    Decider(DeciderKind.PLACEMENT, "spread", lambda s, p: np.arange(s.vms) % s.hosts),
    Decider(DeciderKind.PLACEMENT, "cram", lambda s, p: np.zeros(s.vms)),
    Decider(DeciderKind.PLACEMENT, "beyond", lambda s, p: np.full(s.vms, s.hosts)),
    Decider(DeciderKind.PLACEMENT, "half", lambda s, p: np.full(s.vms, 0.5)),
    Decider(DeciderKind.PLACEMENT, "short", lambda s, p: [0]),
]
"""
    )
    snapshot = cluster(18)
    plan = loaded.place(snapshot, "spread")
    assert check_plan(snapshot, plan) == []
    for name, story in (
        ("cram", "capacity"),
        ("beyond", "not there"),
        ("half", "not there"),
        ("short", "18 indices"),
        ("absent", "no placement plug-in"),
    ):
        with pytest.raises(UnitFailed, match=story):
            loaded.place(snapshot, name)
    running = cluster(3).changed(placement=[2, 2, 2])
    with pytest.raises(UnitFailed, match="already has a host"):
        loaded.place(running, "spread")


def test_estimators_detectors_dispatchers(load: Load) -> None:
    loaded = load(
        mine="""
SNOOZE_PLUGINS = [
    Decider(DeciderKind.ESTIMATOR, "peak", lambda samples, asked, p: samples.max(axis=0)),
    Decider(DeciderKind.ESTIMATOR, "less", lambda samples, asked, p: -asked),
    Decider(DeciderKind.DETECTOR, "hot", lambda samples, room, p: "overload"),
    Decider(DeciderKind.DETECTOR, "odd", lambda samples, room, p: "lukewarm"),
    Decider(DeciderKind.DISPATCHING, "last", lambda views, d, p: [len(views) - 1] * len(d)),
    Decider(DeciderKind.DISPATCHING, "next", lambda views, d, p: [len(views)] * len(d)),
]
"""
    )
    samples, asked = np.array([[1.0, 2.0], [3.0, 1.0]]), np.array([4.0, 4.0])
    assert loaded.estimate(samples, asked, "peak").tolist() == [3.0, 2.0]
    with pytest.raises(UnitFailed):
        loaded.estimate(samples, asked, "less")
    assert loaded.detect(samples, asked, "hot") == "overload"
    with pytest.raises(UnitFailed, match="lukewarm"):
        loaded.detect(samples, asked, "odd")
    assert loaded.dispatch([], np.zeros((0, 2)), "last").tolist() == []
    with pytest.raises(UnitFailed):
        loaded.dispatch([], asked[None, :], "next")


def test_a_balancer_of_ones_own(load: Load) -> None:
    loaded = load(
        mine="""
SNOOZE_PLUGINS = [
    Balancer("away", lambda s, p: [Advice(0, (0, 99), (1, 2, 77), "because"),
        Advice(2, (2,), (1,), "because")]),
    Balancer("rubbish", lambda s, p: [Advice("a", (0,), (1,), "because")]),
    Balancer("liar", lambda s, p: 3),
]
"""
    )
    snapshot = cluster(3).changed(placement=[0, 0, 2], load=[[9.0, 9.0], [0.0, 0.0], [5.0, 5.0]])
    policy = loaded.catalogue.compose({"name": "m", "base": "none", "balancer": "away"})
    plan = balancing.plan(snapshot, policy)
    assert [(move.vm, move.target) for move in plan.moves] == [(0, 1), (2, 1)]
    for name in ("rubbish", "liar"):
        policy = loaded.catalogue.compose({"name": "m", "base": "none", "balancer": name})
        plan = balancing.plan(snapshot, policy)
        assert plan.moves == ()
        assert plan.problems[0].where == f"balancer {name}"


def test_what_cannot_be_loaded_does_not_stop_the_rest(load: Load, tmp_path: Path) -> None:
    (tmp_path / "_hidden.py").write_text("1 / 0")
    loaded = load(
        a_raises="1 / 0",
        b_syntax="def (",
        c_empty="x = 1",
        d_wrong="SNOOZE_PLUGINS = [3]",
        e_single='SNOOZE_PLUGINS = Filter("mine", lambda s, p: None)',
        f_twice='SNOOZE_PLUGINS = [Filter("mine", lambda s, p: None)]',
        g_taken='SNOOZE_PLUGINS = [Filter("memory", lambda s, p: None)]',
        h_good='SNOOZE_PLUGINS = (Weight("fine", lambda s, p: np.zeros(3)),)',
    )
    assert {Path(problem.where).name for problem in loaded.problems} == {
        "a_raises.py",
        "b_syntax.py",
        "c_empty.py",
        "d_wrong.py",
        "filter mine",
        "filter memory",
    }
    assert "mine" in loaded.catalogue.filters
    assert "fine" in loaded.catalogue.weights


def test_files_that_others_may_write_are_refused(load: Load, tmp_path: Path) -> None:
    path = tmp_path / "open.py"
    path.write_text("raise SystemExit")
    path.chmod(0o666)
    (problem,) = load().problems
    assert problem.where == str(path)
    assert "others may write" in problem.message
    path.chmod(0o644)
    tmp_path.chmod(0o777)
    assert plugins.load(tmp_path).problems[0].where == str(tmp_path)
    assert plugins.load(tmp_path / "absent").problems != ()


def test_entry_points_are_looked_up() -> None:
    assert plugins.load(entry_points=True).problems == ()
    assert {kind.value for kind in DeciderKind} >= {"placement", "consolidation"}


def test_estimators_and_detectors_join_the_tables_by_name(load: Load) -> None:
    loaded = load(
        deciders="""
def peak(samples, requested, properties):
    return samples.max(axis=0)

def odd(samples, requested, properties):
    return "much"

def watch(samples, capacity, properties):
    return "overload" if samples[-1, 0] > 0.5 else "normal"

SNOOZE_PLUGINS = [
    Decider(DeciderKind.ESTIMATOR, "peak", peak),
    Decider(DeciderKind.ESTIMATOR, "odd", odd),
    Decider(DeciderKind.DETECTOR, "watch", watch),
]
"""
    )
    known = choices(loaded)
    window = Window.of([[[1.0], [3.0]], [[2.0], [0.0]], [[0.0], [0.0]]], [[1, 1], [1, 1], [0, 0]])
    requested = np.array([[5.0], [5.0], [7.0]])
    assert known.estimator("peak").estimate(window, requested).value.tolist() == [[3], [2], [7]]
    usual = known.estimator("average").estimate(window, requested).value
    answer = known.estimator("odd").estimate(window, requested)
    assert answer.value.tolist() == usual.tolist()
    assert answer.problems[0].code == "plugin"

    detector = known.detector("watch", Thresholds((0.1,), (0.8,), (0.9,)), sustain_s=0.0)
    seen = detector.detect(Window.of([[[0.6]], [[0.4]]]), Watch.fresh(2), 1.0)
    assert seen.overloaded.tolist() == [True, False]
    with pytest.raises(ValueError, match=r"there are: .*thresholds, watch"):
        known.detector("nobody", Thresholds())
    with pytest.raises(ValueError, match=r"there are: .*peak"):
        known.estimator("nobody")
