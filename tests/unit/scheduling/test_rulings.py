"""Rulings: every rule of the questions; what was written down is decided again the same."""

import zlib
from pathlib import Path

import msgspec
import pytest

from snooze.scheduling import __main__ as command
from snooze.scheduling import rulings
from snooze.scheduling.energy_question import (
    Amounts,
    IdleHost,
    Reserve,
    Sleeper,
    SleepQuestion,
    Waiting,
    WakeQuestion,
    choose_sleep,
    choose_wake,
)
from snooze.scheduling.recovery_question import (
    FenceQuestion,
    RestartQuestion,
    judge_fence,
    judge_restart,
)

Capture = pytest.CaptureFixture[str]
NOTHING: Amounts = (0.0, 0.0, 0.0, 0.0)
ROOM: Amounts = (4.0, 4096.0, 100.0, 100.0)


def reserve(up: int, **changes: object) -> Reserve:
    total: Amounts = (4.0 * up, 4096.0 * up, 100.0 * up, 100.0 * up)
    return msgspec.structs.replace(
        Reserve(1, up, total, total, NOTHING, NOTHING, NOTHING), **changes
    )


def idle(name: str, idle_s: float, pays_s: float = 300.0, saves_w: float = 50.0) -> IdleHost:
    return IdleHost(name, name, ROOM, idle_s, 9999.0, saves_w, pays_s)


def sleeper(name: str, slept_s: float, *, pays_s: float = 300.0, watts: float = 100.0) -> Sleeper:
    return Sleeper(name, name, ROOM, False, True, watts, slept_s, pays_s)


def names(hosts: tuple[tuple[str, str], ...]) -> list[str]:
    return [name for name, _ in hosts]


def test_a_host_sleeps_once_it_was_idle_for_as_long_as_waking_takes_to_pay() -> None:
    hosts = (idle("a", 299.0), idle("b", 300.0), idle("c", 400.0, pays_s=500.0))
    answer = choose_sleep(SleepQuestion(hosts, reserve(9), 0.0, 0.0), lambda gone: "")
    assert names(answer.hosts) == ["b"]
    assert answer.others[0].startswith("a: idle for 299 s of 300 (waking it costs")
    answer = choose_sleep(SleepQuestion(hosts, reserve(9), 100.0, 0.0), lambda gone: "")
    assert sorted(names(answer.hosts)) == ["a", "b", "c"], "a person said how long"
    fast = SleepQuestion((idle("a", 59.0, pays_s=1.0),), reserve(9), 0.0, 0.0)
    assert choose_sleep(fast, lambda gone: "").hosts == ()


def test_of_equal_sleepers_the_one_that_slept_longest_is_woken_and_naps_last() -> None:
    sleepers = (sleeper("a", 200.0), sleeper("b", 400.0), sleeper("c", 900.0))
    one = (Waiting("VM x", (1.0, 1.0, 0.0, 0.0)),)
    answer = choose_wake(WakeQuestion(sleepers, one, 120.0))
    assert names(answer.hosts) == ["c"]
    assert answer.waits == ("c",)
    assert answer.others[0] == "a: 100 W more, and it went to sleep 200 s ago"
    cheap_nap = (sleeper("a", 200.0, watts=10.0), sleeper("b", 400.0))
    assert names(choose_wake(WakeQuestion(cheap_nap, one, 120.0)).hosts) == ["b"]
    pinned = (Waiting("VM x", (1.0, 1.0, 0.0, 0.0), ("a",)),)
    assert names(choose_wake(WakeQuestion(sleepers, pinned, 120.0)).hosts) == ["a"]


def fence(**changes: object) -> FenceQuestion:
    asked = FenceQuestion("h1", 5.0, True, 1, 9, 1.0, 30.0, 0.5, 30.0, 10.0)
    return msgspec.structs.replace(asked, **changes)


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "off"),
        ({"away_s": 0.5}, "wait"),
        ({"silent": False}, "ask"),
        ({"silent": False, "answers": 1}, "wait"),
        ({"silent": False, "away_s": 31.0, "answers": 1}, "off"),
        ({"may_fence": False}, "ask"),
        ({"controlled": False}, "wait"),
        ({"away": 5}, "ask"),
        ({"away": 2, "hosts": 2}, "off"),
        ({"reads_off": True}, "down"),
        ({"confirmed": True}, "down"),
        ({"own_lease_s": 2.0, "away_s": 41.9, "controlled": False}, "wait"),
        ({"own_lease_s": 2.0, "away_s": 42.0, "controlled": False}, "down"),
        ({"own_lease_s": 2.0, "away_s": 42.0, "fenced": True}, "off"),
    ],
)
def test_what_is_done_about_a_lost_host(changes: dict[str, object], verdict: str) -> None:
    ruling = judge_fence(fence(**changes))
    assert ruling.verdict == verdict
    assert ruling.why
    assert (ruling.proof != "") == (verdict == "down")


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "restart"),
        ({"policy": "leave"}, "keep"),
        ({"policy": "ask"}, "ask"),
        ({"was_off": True}, "keep"),
        ({"was_off": True, "awaited": True}, "restart"),
        ({"may_restart": False}, "ask"),
        ({"restarts": 3}, "ask"),
        ({"back": True}, "restart"),
        ({"back": True, "policy": "ask"}, "ask"),
    ],
)
def test_what_becomes_of_its_vms(changes: dict[str, object], verdict: str) -> None:
    asked = RestartQuestion("web", "h1", "bmc", "restart", 0, 3)
    assert judge_restart(msgspec.structs.replace(asked, **changes)).verdict == verdict


def documents() -> dict[str, bytes]:
    asleep = SleepQuestion((idle("a", 900.0), idle("b", 900.0)), reserve(3), 0.0, 0.0)
    asleep = msgspec.structs.replace(asleep, ha=("no room if c failed", ""))
    answers = iter(asleep.ha)
    waking = WakeQuestion((sleeper("a", 900.0),), (Waiting("VM x", (1.0, 1.0, 0.0, 0.0)),), 60.0)
    restart = RestartQuestion("web", "h1", "bmc", "restart", 0, 3)
    return {
        "sleep": rulings.pack("sleep", asleep, choose_sleep(asleep, lambda gone: next(answers))),
        "wake": rulings.pack("wake", waking, choose_wake(waking)),
        "fence": rulings.pack("fence", fence(), judge_fence(fence())),
        "restart": rulings.pack("restart", restart, judge_restart(restart)),
    }


@pytest.mark.parametrize("kind", ["sleep", "wake", "fence", "restart"])
def test_what_was_packed_is_decided_again(kind: str, tmp_path: Path, capsys: Capture) -> None:
    text = zlib.decompress(documents()[kind]).decode()
    file = tmp_path / "decision.json"
    file.write_text(text)
    assert command.main(["replay", str(file)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"{kind}: ")
    assert shown.endswith("the same as recorded\n")
    document = msgspec.json.decode(text)
    document["answer"] = (
        {"hosts": [["z", "?"]]}
        if kind in {"sleep", "wake"}
        else {
            "verdict": "wait",
            "why": "?",
        }
    )
    file.write_text(msgspec.json.encode(document).decode())
    assert command.main(["replay", "--json", str(file)]) == 1
    assert msgspec.json.decode(capsys.readouterr().out)["same_as_recorded"] is False
    assert command.main(["explain", str(file)]) == 2


@pytest.mark.parametrize(
    "spoil",
    [
        {"kind": "x"},
        {"question": {}},
        {"question": {"idle": [], "reserve": {"room": [1]}}},
        {"answer": 3},
        {"format": "snooze-decision/1"},
    ],
)
def test_a_spoilt_ruling_is_refused_with_the_reason(
    spoil: dict[str, object],
    tmp_path: Path,
    capsys: Capture,
) -> None:
    document = msgspec.json.decode(zlib.decompress(documents()["sleep"]))
    file = tmp_path / "decision.json"
    file.write_bytes(msgspec.json.encode(document | spoil))
    assert command.main(["replay", str(file)]) == 2
    assert str(file) in capsys.readouterr().err
