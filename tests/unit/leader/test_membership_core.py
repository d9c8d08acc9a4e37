"""Membership, rule by rule."""

from collections.abc import Sequence

import pytest

from snooze.common.errors import ErrorReport
from snooze.common.records import HostRecord
from snooze.common.wire import (
    Address,
    Assignment,
    AssignmentRequest,
    HostGone,
    HostState,
    assignment_epoch,
)
from snooze.groupmanager.leader.membership_core import (
    HANDOVER_TIMEOUT_S,
    JOINING_S,
    SETTLE_S,
    Announce,
    AnswerHost,
    HandOver,
    HostAsked,
    HostLeft,
    HostRecorded,
    HostReported,
    ManagerJoined,
    ManagerLeft,
    MembershipCore,
    MembershipEffect,
    MembershipEvent,
    RecordHost,
    RecordsLoaded,
    SummaryArrived,
    TellForget,
    Ticked,
)
from snooze.groupmanager.leader.registry import Registry
from snooze.scheduling.assignment import AssignmentPolicy
from tests.unit.leader.builders import ROOM, host_of, host_state, manager_of, none, only, summary_of


class Members:
    """A membership core; ``gl`` leads."""

    def __init__(self, *managers: str, manages_alone: bool = True) -> None:
        self.now_s = 100.0
        self.registry = Registry()
        self.core = MembershipCore(self.registry, "gl", 3, manages_alone=manages_alone)
        for manager_id in managers:
            self.join(manager_id)

    def feed(self, event: MembershipEvent) -> list[MembershipEffect]:
        effects = self.core.handle(event, self.now_s)
        for host_id, host in self.registry.hosts.items():
            has = [m for m, entry in self.registry.managers.items() if host_id in entry.hosts]
            assert has == ([host.manager_id] if host.joined else [])
        return effects

    def join(self, manager_id: str, *hosts: HostState) -> list[MembershipEffect]:
        return self.feed(ManagerJoined(manager_of(manager_id), hosts))

    def ask(
        self, host_id: str, previous: str = "", failed: Sequence[str] = (), *, record: bool = True
    ) -> Assignment:
        request = AssignmentRequest(host_of(host_id), previous, tuple(failed))
        answer = only(AnswerHost, self.feed(HostAsked(5, request)))
        assert answer.request_id == 5
        assert isinstance(answer.answer, Assignment)
        if answer.record is not None and record:
            self.feed(HostRecorded(host_id))
        return answer.answer

    def host_joins(self, host_id: str, manager_id: str, epoch: int) -> list[MembershipEffect]:
        return self.feed(HostReported(manager_id, host_state(host_id, epoch)))

    def settle(self, host_id: str) -> str:
        """A host asks and joins; its manager."""
        answer = self.ask(host_id)
        self.host_joins(host_id, answer.manager.manager_id, answer.epoch)
        return answer.manager.manager_id

    def tick(self, seconds: float = 0.0) -> list[HandOver]:
        self.now_s += seconds
        return [effect for effect in self.feed(Ticked()) if isinstance(effect, HandOver)]

    def counts(self) -> dict[str, int]:
        return {m: len(entry.hosts) for m, entry in self.registry.managers.items()}


# ---------------------------------------------------------------- rule 1: who is a member


def test_a_manager_is_a_member_while_its_link_stands() -> None:
    members = Members("gl", "gm1")
    assert members.registry.managers.keys() == {"gl", "gm1"}
    members.settle("h1")
    effects = members.feed(ManagerLeft("gm1", "it died"))
    assert members.registry.managers.keys() == {"gl"}
    assert "it died; 1 hosts look for another" in only(Announce, effects).message
    assert not members.registry.hosts["h1"].joined
    assert members.registry.hosts["h1"].seen_s == members.now_s


def test_the_leaving_of_a_stranger_is_no_news() -> None:
    assert Members().feed(ManagerLeft("nobody", "")) == []


def test_a_manager_that_joins_again_brings_what_it_has_now() -> None:
    members = Members("gm1")
    members.host_joins("h1", "gm1", 11)
    members.host_joins("h2", "gm1", 12)
    members.join("gm1", host_state("h2", 12))
    assert members.registry.managers["gm1"].hosts == {"h2"}
    assert not members.registry.hosts["h1"].joined


def test_summaries_are_kept_and_those_of_strangers_dropped() -> None:
    members = Members("gm1")
    members.feed(SummaryArrived("gm1", summary_of(ROOM)))
    view = members.registry.managers["gm1"].view
    assert view is not None
    assert view.room.tolist() == [list(ROOM.as_tuple())]
    assert members.feed(SummaryArrived("nobody", summary_of(ROOM))) == []


def test_a_summary_of_before_does_not_say_what_is_free_on_a_host_that_joined_since() -> None:
    members = Members("gm1")
    manager = members.registry.managers["gm1"]
    members.feed(SummaryArrived("gm1", summary_of(ROOM)))
    assert not manager.untold
    members.host_joins("h1", "gm1", 11)
    assert manager.untold
    members.feed(SummaryArrived("gm1", summary_of(ROOM)))
    assert not manager.untold


def test_a_summary_that_does_not_fit_together_is_refused() -> None:
    members = Members("gm1")
    torn = summary_of(ROOM)
    with pytest.raises(ValueError, match="reshape"):
        members.feed(
            SummaryArrived("gm1", type(torn)(0, ROOM, ROOM, ROOM, torn.room[:-8], [1], 1, 0))
        )
    assert members.registry.managers["gm1"].view is None


# ---------------------------------------------------------------- rule 2: which manager


def test_the_least_loaded_manager_counts_those_on_their_way() -> None:
    members = Members("gl", "gm1", "gm2", "gm3")
    given = [members.ask(f"h{i}").manager.manager_id for i in range(6)]
    assert given == ["gm1", "gm2", "gm3"] * 2


def test_a_host_that_is_here_and_on_its_way_counts_once() -> None:
    members = Members("gm1", "gm2")
    members.host_joins("h1", "gm1", 1)
    members.ask("h1", "gm1")
    members.host_joins("h2", "gm2", 2)
    assert members.ask("h3").manager.manager_id == "gm1"


def test_round_robin_goes_round() -> None:
    members = Members("gm1", "gm2")
    members.core.policy = AssignmentPolicy.ROUND_ROBIN
    given = [members.ask(f"h{i}").manager.manager_id for i in range(4)]
    assert given == ["gm1", "gm2", "gm1", "gm2"]


def test_a_host_gets_the_manager_back_that_it_had() -> None:
    members = Members("gm1", "gm2", "gm3")
    assert members.ask("h1", "gm2").manager.manager_id == "gm2"
    # Its own memory is lost, the leader's is not.
    assert members.ask("h1").manager.manager_id == "gm2"


def test_not_the_manager_that_has_just_failed_it_unless_there_is_no_other() -> None:
    members = Members("gm1", "gm2")
    assert members.ask("h1", "gm1", ["gm1"]).manager.manager_id == "gm2"
    assert members.ask("h1", "gm1", ["gm1", "gm2"]).manager.manager_id == "gm1"


def test_without_managers_a_host_is_told_to_come_back() -> None:
    effects = Members().feed(HostAsked(5, AssignmentRequest(host_of("h1"))))
    answer = only(AnswerHost, effects).answer
    assert isinstance(answer, ErrorReport)
    assert answer.code == "too_busy"
    assert answer.retry_after_s


# ---------------------------------------------------------------- rule 3: epochs


def test_every_answer_has_a_new_epoch_above_all_earlier_leaders() -> None:
    members = Members("gm1")
    epochs = [members.ask("h1").epoch for _ in range(3)]
    assert epochs == [assignment_epoch(3, count) for count in (1, 2, 3)]
    assert epochs[0] > assignment_epoch(2, 0xFFFFFFFF)


def test_of_two_managers_that_claim_a_host_the_higher_epoch_is_right() -> None:
    members = Members("gm1", "gm2")
    members.host_joins("h1", "gm1", 11)
    effects = members.host_joins("h1", "gm2", 12)
    assert only(TellForget, effects) == TellForget("gm1", "h1")
    assert members.counts() == {"gm1": 0, "gm2": 1}
    late = members.host_joins("h1", "gm1", 11)
    assert late == [TellForget("gm1", "h1")]
    assert members.counts() == {"gm1": 0, "gm2": 1}


def test_a_claim_older_than_the_last_answer_is_wrong_even_before_the_host_joined() -> None:
    members = Members("gm1", "gm2")
    members.host_joins("h1", "gm1", 11)
    members.feed(HostLeft("gm1", HostGone("h1", 11, "")))
    assert members.ask("h1", "gm1", ["gm1"]).manager.manager_id == "gm2"
    assert members.host_joins("h1", "gm1", 11) == [TellForget("gm1", "h1")]
    assert not members.registry.hosts["h1"].joined


def test_no_manager_is_told_to_forget_that_is_not_a_member() -> None:
    members = Members("gm1", "gm2")
    members.host_joins("h1", "gm1", 11)
    members.feed(ManagerLeft("gm1", ""))
    assert none(TellForget, members.host_joins("h1", "gm2", 12))


def test_reports_of_strangers_are_not_heard() -> None:
    assert Members("gm1").host_joins("h1", "nobody", 11) == []


def test_a_host_that_left_is_away_from_then_on() -> None:
    members = Members("gm1")
    members.host_joins("h1", "gm1", 11)
    members.now_s += 5
    effects = members.feed(HostLeft("gm1", HostGone("h1", 11, "no heartbeats")))
    assert "no heartbeats" in only(Announce, effects).message
    host = members.registry.hosts["h1"]
    assert (host.joined, host.seen_s, host.reachable_s) == (False, members.now_s, members.now_s)


def test_a_host_that_was_sent_away_is_not_announced_as_lost() -> None:
    members = Members("gm1")
    members.host_joins("h1", "gm1", 11)
    assert members.feed(HostLeft("gm1", HostGone("h1", 11, "", left=True))) == []
    assert not members.registry.hosts["h1"].joined


@pytest.mark.parametrize(
    ("manager_id", "epoch"), [("gm1", 10), ("gm2", 11)], ids=["older epoch", "other manager"]
)
def test_a_late_farewell_changes_nothing(manager_id: str, epoch: int) -> None:
    members = Members("gm1", "gm2")
    members.host_joins("h1", "gm1", 11)
    assert members.feed(HostLeft(manager_id, HostGone("h1", epoch, ""))) == []
    assert members.registry.hosts["h1"].joined


# ---------------------------------------------------------------- rule 4: the leader's own hosts


def test_the_leader_manages_hosts_only_while_it_is_alone() -> None:
    members = Members("gl")
    assert members.settle("h1") == "gl"
    members.join("gm1")
    assert members.ask("h2").manager.manager_id == "gm1"
    handed = members.tick(SETTLE_S)
    assert [(h.manager_id, h.host_id) for h in handed] == [("gl", "h1")]
    assert handed[0].assignment.manager.manager_id == "gm1"


def test_a_leader_that_never_manages_has_no_hosts_to_give() -> None:
    members = Members("gl", manages_alone=False)
    answer = only(AnswerHost, members.feed(HostAsked(5, AssignmentRequest(host_of("h1"))))).answer
    assert isinstance(answer, ErrorReport)
    assert members.tick(10.0) == []


def test_a_promoted_manager_hands_over_evenly() -> None:
    members = Members("gm1", "gm2")
    hosts = [host_state(f"h{i}", i + 1) for i in range(6)]
    members.join("gl", *hosts)
    handed = members.tick(SETTLE_S)
    targets = [h.assignment.manager.manager_id for h in handed]
    assert sorted(targets) == ["gm1"] * 3 + ["gm2"] * 3
    assert len({h.assignment.epoch for h in handed}) == 6


# ---------------------------------------------------------------- rule 5: rebalancing


def test_nothing_moves_before_membership_was_quiet() -> None:
    members = Members("gm1")
    for i in range(4):
        members.host_joins(f"h{i}", "gm1", i + 1)
    members.join("gm2")
    assert members.tick(SETTLE_S * 0.9) == []
    members.host_joins("h4", "gm1", 5)
    assert members.tick(SETTLE_S * 0.9) == []
    assert len(members.tick(SETTLE_S * 0.2)) == 2


def test_as_few_hosts_as_possible_move_and_then_none() -> None:
    members = Members("gm1")
    for i in range(5):
        members.host_joins(f"h{i}", "gm1", i + 1)
    members.join("gm2")
    handed = members.tick(SETTLE_S)
    assert len(handed) == 2
    assert members.tick(5.0) == [], "those on their way are awaited"
    for move in handed:
        assert move.assignment.epoch > members.registry.hosts[move.host_id].epoch
        members.host_joins(move.host_id, "gm2", move.assignment.epoch)
    assert members.counts() == {"gm1": 3, "gm2": 2}
    assert members.tick(60.0) == []


def test_a_handover_that_takes_too_long_is_tried_again() -> None:
    members = Members("gm1")
    for i in range(2):
        members.host_joins(f"h{i}", "gm1", i + 1)
    members.join("gm2")
    first = members.tick(SETTLE_S)
    assert len(first) == 1
    assert members.tick(HANDOVER_TIMEOUT_S - 1) == []
    second = members.tick(1.0)
    assert [h.host_id for h in second] == [h.host_id for h in first]
    assert second[0].assignment.epoch > first[0].assignment.epoch


def test_hosts_that_are_away_are_not_moved() -> None:
    members = Members("gm1")
    for i in range(4):
        members.host_joins(f"h{i}", "gm1", i + 1)
    members.feed(HostLeft("gm1", HostGone("h0", 1, "")))
    members.join("gm2")
    assert {h.host_id for h in members.tick(SETTLE_S)} <= {"h1", "h2", "h3"}


def test_a_manager_that_leaves_takes_its_handovers_with_it() -> None:
    members = Members("gm1")
    for i in range(2):
        members.host_joins(f"h{i}", "gm1", i + 1)
    members.join("gm2")
    assert members.tick(SETTLE_S)
    members.feed(ManagerLeft("gm1", ""))
    for i in range(2):
        members.host_joins(f"h{i}", "gm2", 100 + i)
    members.join("gm3")
    assert len(members.tick(SETTLE_S)) == 1


# ---------------------------------------------------------------- rule 6: the record


def test_a_new_host_is_recorded_before_it_is_told_of_its_manager() -> None:
    members = Members("gm1")
    request = HostAsked(5, AssignmentRequest(host_of("h1")))
    first = only(AnswerHost, members.feed(request))
    assert first.record is not None
    assert first.record.host_id == "h1"
    assert not first.record.away
    again = only(AnswerHost, members.feed(request))
    assert again.record is not None, "that it is written was not heard yet"
    members.feed(HostRecorded("h1"))
    assert only(AnswerHost, members.feed(request)).record is None


def test_joining_is_recorded_with_the_epoch() -> None:
    members = Members("gm1")
    record = only(RecordHost, members.host_joins("h1", "gm1", 42)).record
    capacity = host_of("h1").capacity
    assert record == HostRecord("h1", "name-h1", Address("h1", 1), "gm1", 42, capacity=capacity)


def test_the_recorded_hosts_are_known_and_away() -> None:
    members = Members("gm1", "gm2")
    record = HostRecord("h1", "one", Address("h1", 1), "gm2", 7)
    members.feed(RecordsLoaded([record, away_record(record, "h2")]))
    assert members.registry.hosts["h1"].reachable_s == members.now_s + JOINING_S
    assert members.registry.hosts["h2"].reachable_s == float("-inf")
    assert not members.registry.hosts["h1"].joined
    assert members.ask("h1").manager.manager_id == "gm2", "it goes back where it was"
    request = HostAsked(5, AssignmentRequest(host_of("h2")))
    record_again = only(AnswerHost, members.feed(request)).record
    assert record_again is not None
    assert not record_again.away


def away_record(record: HostRecord, host_id: str) -> HostRecord:
    return HostRecord(host_id, host_id, record.control, record.manager_id, record.epoch, away=True)


def test_what_was_heard_already_is_newer_than_the_record() -> None:
    members = Members("gm1")
    members.host_joins("h1", "gm1", 42)
    members.feed(RecordsLoaded([HostRecord("h1", "one", Address("h1", 1), "gm2", 7)]))
    assert members.registry.hosts["h1"].epoch == 42


def test_only_a_host_acquitted_of_every_vm_is_recorded_as_away_once() -> None:
    members = Members("gm1")
    members.settle("h1")
    members.feed(HostLeft("gm1", HostGone("h1", 1 << 60, "")))
    host = members.registry.hosts["h1"]
    host.given_up = True
    assert none(RecordHost, members.feed(Ticked()))
    host.acquitted = True
    assert only(RecordHost, members.feed(Ticked())).record.away
    assert none(RecordHost, members.feed(Ticked()))


def test_a_host_that_asks_again_is_no_longer_given_up() -> None:
    members = Members("gm1")
    members.settle("h1")
    members.feed(HostLeft("gm1", HostGone("h1", 1 << 60, "")))
    host = members.registry.hosts["h1"]
    host.given_up = host.acquitted = True
    members.now_s += 100
    members.ask("h1")
    assert not host.given_up
    assert not host.acquitted
    assert host.seen_s == members.now_s
    assert host.reachable_s == members.now_s + JOINING_S
