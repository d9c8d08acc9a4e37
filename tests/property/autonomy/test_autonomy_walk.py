"""Autonomy under any load: nothing exceeds capacity, nothing goes back and forth, pauses hold."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snooze.common.autonomy import AutonomyRule, Scope
from snooze.common.decisions import DECISION_ENDED
from snooze.common.settings_autonomy import (
    AutonomySettings,
    ConsolidationSettings,
    RelocationSettings,
)
from snooze.common.vms import VmPolicy
from tests.unit.manager.load_desk import PERIOD_S, LoadDesk, settings_of

HOSTS = 4
GUESTS = 9
PINNED = {"v0"}

STEPS = st.one_of(
    st.tuples(st.just("load"), st.integers(0, GUESTS - 1), st.floats(0.0, 1.0)),
    st.tuples(st.just("wait"), st.sampled_from([30, 120, 600]), st.just(0.0)),
    st.tuples(st.just("silent"), st.integers(1, HOSTS), st.just(0.0)),
    st.tuples(st.just("fails"), st.integers(0, GUESTS - 1), st.just(0.0)),
    st.tuples(st.just("slow"), st.integers(0, GUESTS - 1), st.floats(0.0, 400.0)),
    st.tuples(st.just("pause"), st.integers(1, HOSTS), st.just(0.0)),
    st.tuples(st.just("stop"), st.integers(0, 1), st.just(0.0)),
    st.tuples(st.just("leaves"), st.integers(1, HOSTS), st.just(0.0)),
    st.tuples(st.just("consolidate"), st.just(0), st.just(0.0)),
)


def desk_of(spread: list[int]) -> LoadDesk:
    desk = LoadDesk(
        HOSTS,
        settings_of(
            AutonomySettings(interval_s=PERIOD_S, max_concurrent=3, cool_down_s=15.0),
            RelocationSettings(only_sleepable=False, idle_s=60.0),
            ConsolidationSettings(cron="0 0/10 * * * ?"),
        ),
    )
    for number, host in enumerate(spread):
        name = f"v{number}"
        host_id = f"h{host}" if desk.cores(f"h{host}") < 4 else "h4"
        if desk.cores(host_id) < 4:
            desk.guest(name, host_id, 0.3, policy=VmPolicy(movable=name not in PINNED))
    return desk


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    spread=st.lists(st.integers(1, HOSTS), min_size=GUESTS, max_size=GUESTS),
    steps=st.lists(STEPS, min_size=4, max_size=12),
)
def test_whatever_the_load_it_stays_within_its_bounds(
    spread: list[int], steps: list[tuple[str, int, float]]
) -> None:
    """``LoadDesk`` checks capacity and the number of migrations after every event."""
    desk = desk_of(spread)
    desk.pass_time(30)
    paused: set[str] = set()
    stopped = False
    for verb, number, value in steps:
        begun = len(desk.moves)
        match verb:
            case "load":
                desk.load[f"v{number}"] = value
            case "silent":
                desk.silent ^= {f"h{number}"}
            case "fails":
                desk.failing ^= {f"v{number}"}
            case "slow":
                desk.slow[f"v{number}"] = value
            case "leaves":
                if f"h{number}" in desk.table.hosts and len(desk.table.hosts) > 2:
                    desk.carry_out(desk.lose(f"h{number}"))
            case "consolidate":
                desk.consolidate_now()
            case "pause" | "stop":
                if verb == "pause":
                    paused ^= {f"h{number}"}
                else:
                    stopped = bool(number)
                rules = [AutonomyRule(Scope.HOST, host_id, paused=True) for host_id in paused]
                if stopped:
                    rules.append(AutonomyRule(Scope.CLUSTER, paused=True))
                desk.say(*rules)
            case _:
                desk.pass_time(number)
        desk.pass_time(15)
        for _, vm_id, source, target in desk.moves[begun:]:
            assert not stopped
            assert vm_id not in PINNED
            assert not {source, target} & paused
            assert verb == "silent" or not {source, target} & desk.silent
    assert desk.returns() == []
    # Faults are over, and nothing begins any more: whatever began comes to an end.
    desk.failing, desk.silent = set(), set()
    desk.say(AutonomyRule(Scope.CLUSTER, paused=True))
    desk.pass_time(1200)
    assert {each.state for each in desk.told.values()} <= DECISION_ENDED
    assert desk.core.migrations.count() == 0
