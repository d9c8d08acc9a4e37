"""What may be done: rule by rule."""

import msgspec
import pytest

from snooze.common.autonomy import (
    AutonomyRecord,
    AutonomyRule,
    AutonomyWindow,
    Control,
    Scope,
)
from snooze.common.decisions import DecisionKind, DecisionMode
from snooze.common.records import decode, encode
from snooze.common.time_plans import Window, zone_of

OVERLOAD, SLEEP = DecisionKind.OVERLOAD, DecisionKind.SLEEP
AUTO, ADVISE, DRY, OFF = (
    DecisionMode.AUTO,
    DecisionMode.ADVISE,
    DecisionMode.DRY_RUN,
    DecisionMode.OFF,
)
MONDAY_NOON = 1767614400000  # 2026-01-05T12:00Z


def control(*rules: AutonomyRule, **modes: DecisionMode) -> Control:
    record = AutonomyRecord()
    for rule in rules:
        record = record.with_rule(rule)
    return Control({DecisionKind(kind): mode for kind, mode in modes.items()}, (), record)


def test_settings_say_the_mode_and_auto_is_the_default() -> None:
    assert control(overload=ADVISE).mode(OVERLOAD, 0) is ADVISE
    assert control().mode(SLEEP, 0) is AUTO


def test_a_rule_of_the_cluster_sets_another_and_one_of_the_manager_wins() -> None:
    said = control(
        AutonomyRule(Scope.CLUSTER, mode=DRY),
        AutonomyRule(Scope.MANAGER, "gm1", mode=AUTO),
        overload=OFF,
    )
    assert said.mode(OVERLOAD, 0, "gm2") is DRY
    assert said.mode(OVERLOAD, 0, "gm1") is AUTO


def test_the_rule_of_one_kind_wins_over_that_of_all() -> None:
    said = control(
        AutonomyRule(Scope.CLUSTER, kind=OVERLOAD, mode=AUTO), AutonomyRule(Scope.CLUSTER, mode=DRY)
    )
    assert (said.mode(OVERLOAD, 0), said.mode(SLEEP, 0)) == (AUTO, DRY)


def test_a_pause_wins_until_its_time_is_over() -> None:
    said = control(
        AutonomyRule(Scope.CLUSTER, paused=True, who="ann", why="audit", until_ms=1000),
        AutonomyRule(Scope.MANAGER, "gm1", mode=AUTO),
    )
    assert said.mode(OVERLOAD, 999, "gm1") is OFF
    assert said.why_off(OVERLOAD, 999, "gm1") == "paused by ann: audit"
    assert said.mode(OVERLOAD, 1000, "gm1") is AUTO
    assert said.why_off(OVERLOAD, 1000, "gm1") == ""


def test_hosts_and_vms_only_restrict() -> None:
    said = control(
        AutonomyRule(Scope.HOST, "h1", mode=AUTO),
        AutonomyRule(Scope.HOST, "h2", paused=True),
        AutonomyRule(Scope.VM, "v1", mode=ADVISE),
        overload=DRY,
        sleep=AUTO,
    )
    assert said.mode(OVERLOAD, 0, host_ids=["h1"]) is DRY
    assert said.mode(SLEEP, 0, host_ids=["h1", "h2"]) is OFF
    assert said.mode(SLEEP, 0, host_ids=["h1"], vm_ids=["v1"]) is ADVISE


def test_windows_of_the_record_and_of_the_settings() -> None:
    record = AutonomyRecord().with_windows(
        OVERLOAD, [AutonomyWindow("mon 11:00-13:00", OVERLOAD), AutonomyWindow("nonsense")]
    )
    said = Control({}, (), record)
    assert said.mode(OVERLOAD, MONDAY_NOON) is AUTO
    assert said.mode(OVERLOAD, MONDAY_NOON + 3_600_000) is OFF
    assert said.why_off(OVERLOAD, MONDAY_NOON + 3_600_000) == "outside its time windows"
    assert said.mode(SLEEP, MONDAY_NOON + 3_600_000) is AUTO
    own = Control({}, [Window.of("tue 00:00-24:00", zone_of("UTC"))])
    assert own.mode(SLEEP, MONDAY_NOON) is OFF


@pytest.mark.parametrize("kind", [DecisionKind.FENCE, DecisionKind.RESTART, DecisionKind.WAKE])
def test_windows_for_all_do_not_keep_vms_of_dead_hosts_waiting(kind: DecisionKind) -> None:
    night = AutonomyRecord().with_windows(None, [AutonomyWindow("* 22:00-06:00")])
    own = [Window.of("* 22:00-06:00", zone_of("UTC"))]
    for said in (Control({}, (), night), Control({}, own)):
        assert said.mode(SLEEP, MONDAY_NOON) is OFF
        assert said.mode(kind, MONDAY_NOON) is AUTO
    named = night.with_windows(kind, [AutonomyWindow("* 20:00-22:00", kind)])
    said = Control({}, (), named)
    assert said.mode(kind, MONDAY_NOON) is OFF
    assert said.mode(kind, MONDAY_NOON + 11 * 3_600_000) is OFF, "only in those that name it"
    assert said.mode(SLEEP, MONDAY_NOON + 11 * 3_600_000) is AUTO


def test_one_pause_for_each_target_and_no_rule_that_says_nothing() -> None:
    record = AutonomyRecord()
    record = record.with_rule(AutonomyRule(Scope.HOST, "h1", paused=True))
    record = record.with_rule(AutonomyRule(Scope.HOST, "h1", paused=True, why="again"))
    assert [rule.why for rule in record.rules] == ["again"]
    record = record.with_rule(AutonomyRule(Scope.HOST, "h1"))
    assert [rule.why for rule in record.rules] == ["again"]
    record = record.without_rule(AutonomyRule(Scope.HOST, "h1"), paused=True)
    assert record.rules == ()
    assert record.revision == 4


def test_a_pause_and_a_mode_of_the_same_hold_each_for_its_own_time() -> None:
    pause = AutonomyRule(Scope.CLUSTER, paused=True, until_ms=1000)
    advise = AutonomyRule(Scope.CLUSTER, mode=ADVISE)
    for rules in ((pause, advise), (advise, pause)):
        said = control(*rules)
        assert said.mode(SLEEP, 999) is OFF
        assert said.mode(SLEEP, 1000) is ADVISE
        assert [rule.mode for rule in said.record.without_old(1000).rules] == [ADVISE]


def test_a_rule_of_an_old_record_that_says_both_is_taken_apart() -> None:
    both = AutonomyRule(Scope.HOST, "h1", mode=DRY, paused=True, until_ms=1000)
    record = AutonomyRecord(1, (both,))
    assert Control({}, (), record).mode(SLEEP, 999, host_ids=["h1"]) is OFF
    resumed = record.without_rule(AutonomyRule(Scope.HOST, "h1"), paused=True)
    assert Control({}, (), resumed).mode(SLEEP, 999, host_ids=["h1"]) is DRY


def test_old_rules_are_dropped_and_the_record_survives_the_store() -> None:
    record = AutonomyRecord(
        7,
        (
            AutonomyRule(Scope.CLUSTER, paused=True, until_ms=5),
            AutonomyRule(Scope.VM, "v", SLEEP, OFF),
        ),
        (AutonomyWindow("* 00:00-24:00", SLEEP),),
    )
    assert decode(encode(record), AutonomyRecord) == record
    assert [rule.scope for rule in record.without_old(5).rules] == [Scope.VM]
    assert record.without_old(4) is record
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(record), type=AutonomyRecord) == record
