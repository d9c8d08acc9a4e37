"""``python -m snooze.scheduling`` on files good and bad."""

import json
from pathlib import Path

import numpy as np
import pytest

from snooze.scheduling import dump, placement
from snooze.scheduling.__main__ import main
from snooze.scheduling.deciding import DecisionKind, options_of
from snooze.scheduling.dump import Decision, DumpError
from snooze.scheduling.estimation import Forecast
from snooze.scheduling.policies import policy_named
from snooze.scheduling.power_model import PowerModel
from snooze.scheduling.relocation import Hold, MovedVm, Situation
from snooze.scheduling.snapshot import Affinity, AffinityRule, HostState, Labels, Snapshot


def decision(policy: str = "evenly_distributed") -> Decision:
    snapshot = Snapshot.of(
        ["paris", "rennes", "nantes"],
        [[8.0, 32.0, 1e5, 1e5]] * 3,
        host_state=[HostState.ACTIVE, HostState.ACTIVE, HostState.MAINTENANCE],
        vm_ids=["web", "db", "huge"],
        demand=[[1.1, 4.0, 10.0, 10.0], [2.0, 8.0, 10.0, 10.0], [64.0, 4.0, 0.0, 0.0]],
        rules=[AffinityRule(Affinity.APART, (0, 1), name="not both")],
        tags=Labels.of([{"ssd"}, {"ssd"}, set()], [set(), {"ssd"}, set()]),
        priority=[0, 5, 0],
    )
    return Decision(DecisionKind.PLACEMENT, snapshot, policy_named(policy))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "decision.json"
    made = decision()
    path.write_text(dump.dump(made, placement.plan(made.snapshot, made.policy)))
    return path


def test_replay_says_what_and_why(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(file)]) == 0
    told = capsys.readouterr().out
    assert "db: paris" in told
    assert "web: rennes" in told
    assert "huge: none of 3 hosts takes it: refused 2 by capacity, 1 by state" in told
    assert "cpu: 64 asked" in told
    assert "refused by affinity" in told
    assert "the same as recorded" in told


def test_a_relocation_is_replayed_with_all_that_it_looked_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    snapshot = Snapshot.of(
        ["paris", "rennes"],
        [[4.0, 32.0, 4.0], [4.0, 32.0, 4.0]],
        vm_ids=["web", "db", "log"],
        demand=[[2.0, 4.0, 2.0], [1.7, 8.0, 1.0], [0.1, 1.0, 1.0]],
        placement=[0, 0, 1],
        headroom=[0.8, 0.9, 1.0],
        axes=["cpu", "memory", "asked_cpu"],
    )
    expected = np.array([[2.0, 4.0, 2.0], [1.7 / 3, 8.0, 1.0], [0.1, 1.0, 1.0]])
    situation = Situation(
        snapshot,
        1234.5,
        overloaded=np.array([True, False]),
        underloaded=np.array([False, False]),
        forecast=Forecast(expected, expected / 7),
        power=PowerModel.linear([100.0, 90.0], [200.0, 210.0]),
        hold=Hold({"log": MovedVm(2000.0, "paris")}, {"rennes": 1e4}),
        load_axes=2,
    )
    options = options_of(DecisionKind.RELOCATION, {"horizon_s": 300.0, "margin": 1.5})
    made = Decision(DecisionKind.RELOCATION, snapshot, options=options, situation=situation)
    plan = made.decide()
    assert [(move.vm, move.target) for move in plan.moves] == [(0, 1)]
    file = tmp_path / "relocation.json"
    file.write_text(dump.dump(made, plan))
    again = dump.load(file.read_text()).situation
    assert again is not None
    assert again.forecast is not None
    assert (again.forecast.deviation == expected / 7).all()
    assert (again.now_s, again.load_axes, dict(again.hold.vms)) == (
        1234.5,
        2,
        {"log": MovedVm(2000.0, "paris")},
    )
    assert main(["replay", str(file)]) == 0
    told = capsys.readouterr().out
    assert "web: paris -> rennes" in told
    assert "the same as recorded" in told


@pytest.mark.parametrize(
    "situation",
    [
        {"now_s": "soon"},
        {"overloaded": "paris"},
        {"expected": [[1.0]]},
        {"expected": "x", "deviation": "y"},
        {"hold": {"vms": {"a": [1]}}},
        {"hold": []},
        {"load_axes": True},
        {"power": {"curve_w": "none"}},
        [],
    ],
)
def test_a_situation_that_makes_no_sense_is_refused(situation: object) -> None:
    document = json.loads(dump.dump(decision()))
    document |= {"kind": "relocation", "situation": situation}
    with pytest.raises(DumpError, match="situation"):
        dump.load(json.dumps(document))


def test_replay_notices_a_difference(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(file.read_text())
    document["plan"]["placement"] = [0, 1, -1]
    file.write_text(json.dumps(document))
    assert main(["replay", str(file)]) == 1
    assert "NOT the same" in capsys.readouterr().out
    assert main(["replay", str(file), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["same_as_recorded"] is False
    assert told["hosts"] == {"web": "rennes", "db": "paris", "huge": None}
    assert main(["replay", str(file), "--policy", "first_fit"]) == 0


def test_explain_one_vm(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(file), "--vm", "db"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("db -> paris")
    assert "nantes: the host is maintenance" in told
    assert main(["explain", str(file), "--vm", "db", "--json"]) == 0
    (data,) = json.loads(capsys.readouterr().out)
    assert data["hosts"][0]["parts"][0]["weight"] == "even_distribution"
    assert main(["explain", str(file), "--vm", "absent"]) == 2


def test_explain_a_vm_that_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = decision()
    running = made.snapshot.changed(placement=[1, 0, -1], used=[[0] * 4, [6, 0, 0, 0], [0] * 4])
    path = tmp_path / "running.json"
    path.write_text(dump.dump(Decision(DecisionKind.BALANCE, running, made.policy)))
    assert main(["explain", str(path), "--vm", "web"]) == 0
    capsys.readouterr()
    running = running.changed(placement=[1, 0, 0])
    path.write_text(dump.dump(Decision(DecisionKind.BALANCE, running, made.policy)))
    assert main(["explain", str(path)]) == 0
    assert "no VM waits for a host" in capsys.readouterr().out
    assert main(["explain", str(path), "--vm", "web"]) == 0
    assert "web -> rennes" in capsys.readouterr().out
    assert main(["replay", str(path)]) == 0
    assert "balance by evenly_distributed" in capsys.readouterr().out


@pytest.mark.parametrize("kind", [DecisionKind.CONSOLIDATION, DecisionKind.DRAIN])
def test_consolidations_and_drains_are_replayed(
    kind: DecisionKind, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    states = [HostState.ACTIVE, HostState.ACTIVE, HostState.DRAINING]
    running = decision().snapshot.changed(
        placement=[1, 0, -1], rules=[], tags=None, host_state=states, load=None
    )
    if kind is DecisionKind.DRAIN:
        running = running.changed(placement=[2, 0, -1], load=None)
    made = Decision(kind, running, options={"seed": 3})
    path = tmp_path / "recorded.json"
    path.write_text(dump.dump(made, made.decide()))
    assert main(["replay", str(path)]) == 0
    told = capsys.readouterr().out
    assert f"{kind.value} by" in told
    assert "1 get another host" in told
    assert "the same as recorded" in told
    document = json.loads(path.read_text())
    document["options"] = {"speed": 1}
    path.write_text(json.dumps(document))
    assert main(["replay", str(path)]) == 2


def test_dry_run_compares_every_policy(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dry-run", str(file)]) == 0
    told = capsys.readouterr().out
    assert "power_saving" in told
    assert "optimised" in told
    assert "consolidation: sercon" in told
    assert main(["policies"]) == 0
    assert "cpu_overload" in capsys.readouterr().out


def test_policies_of_plug_ins(file: Path, tmp_path: Path) -> None:
    document = json.loads(file.read_text())
    document["policy"] = {"name": "mine", "weights": {"mine": 1}}
    file.write_text(json.dumps(document))
    assert main(["replay", str(file)]) == 2
    directory = tmp_path / "plugins"
    directory.mkdir(mode=0o755)
    source = directory / "mine.py"
    source.write_text(
        "from snooze.scheduling.units import Weight\n"
        "SNOOZE_PLUGINS = [Weight('mine', lambda scene, properties: [1, 0, 0])]\n"
    )
    source.chmod(0o644)
    assert main(["--plugins", str(directory), "replay", str(file)]) == 1  # decides otherwise


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "nonsense",
        "[" * 100_000,
        '{"format": "snooze-decision/2"}',
        '{"format": "snooze-decision/1"}',
        '{"format": "snooze-decision/1", "snapshot": []}',
        '{"format": "snooze-decision/1", "snapshot": {"colour": 1}}',
        '{"format": "snooze-decision/1", "snapshot": {"host_ids": [1]}}',
        '{"format": "snooze-decision/1", "snapshot": {"capacity": "x"}}',
        '{"format": "snooze-decision/1", "snapshot": {"rules": [1]}}',
        '{"format": "snooze-decision/1", "snapshot": {"rules": [{"kind": "near"}]}}',
        '{"format": "snooze-decision/1", "snapshot": {"rules": [{"kind": "apart", "vms": 1}]}}',
        '{"format": "snooze-decision/1", "snapshot": {"tags": {"hosts": [1], "vms": []}}}',
        '{"format": "snooze-decision/1", "snapshot": {}, "policy": {"name": "nope"}, "cursor": ""}',
        '{"format": "snooze-decision/1", "snapshot": {}, "kind": "guess"}',
        '{"format": "snooze-decision/1", "snapshot": {}, "plan": {"placement": [1]}}',
    ],
)
def test_bad_files_are_refused_with_a_reason(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    assert main(["replay", str(path)]) == 2
    assert str(path) in capsys.readouterr().err
    with pytest.raises(DumpError):
        dump.load(text)


def test_a_file_that_is_not_there_is_named_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "absent"
    assert main(["replay", str(path)]) == 2
    assert capsys.readouterr().err == f"{path}: No such file or directory\n"


def test_a_file_with_wrong_numbers_is_a_snapshot_with_problems() -> None:
    document = json.loads(dump.dump(decision()))
    document["snapshot"]["capacity"][0][0] = float("nan")
    document["snapshot"]["demand"][1] = [-1, 0, 0, 0]
    read = dump.load(json.dumps(document))
    assert {problem.where for problem in read.snapshot.problems} == {"capacity[0]", "demand[1]"}
    document["snapshot"]["capacity"] = [[1]]
    assert dump.load(json.dumps(document)).snapshot.hosts == 0
