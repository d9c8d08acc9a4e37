"""A host's record holds all that a new leader has to know of a host that cannot be asked."""

import msgspec

from snooze.common.records import HostPower, HostRecord, decode, encode
from snooze.common.resources import Capacity
from snooze.common.wire import Address, HostDescription, PowerDescription
from snooze.groupmanager.leader.registry import HostEntry

RECORD = HostRecord(
    "h1",
    "one",
    Address("10.0.0.1", 5000),
    "gm1",
    7,
    away=False,
    capacity=Capacity(8, 1024, 10, 20),
    power=PowerDescription("ipmi", "-H 10.0.0.9 -P secret", ("shutdown",), 90, 200, 5),
    lease_s=12.0,
    state=HostPower.WAKING,
    state_since_ms=1234,
    tries=2,
    maintenance=True,
    note="why",
)


def test_every_field_survives_a_new_leader() -> None:
    read = decode(encode(RECORD), HostRecord)
    host = HostEntry.of_record(read, now_s=5.0, reachable_s=65.0)
    assert host.record() == RECORD
    assert host.in_record
    assert host.reachable_s == 65.0
    assert not host.joined


def test_a_host_recorded_as_away_cannot_have_been_reached() -> None:
    host = HostEntry.of_record(msgspec.structs.replace(RECORD, away=True), 5.0, 65.0)
    assert host.record().away
    assert not host.in_record
    assert host.reachable_s == -float("inf")


def test_joining_changes_who_has_it_and_not_its_power_state() -> None:
    host = HostEntry.of_record(msgspec.structs.replace(RECORD, away=True), 5.0, 65.0)
    host.given_up = host.acquitted = True
    host.join(replace_description(host), "gm2", 9, 70.0)
    assert (host.manager_id, host.epoch, host.joined, host.away) == ("gm2", 9, True, False)
    assert not host.given_up
    assert not host.acquitted
    assert host.record().state is HostPower.WAKING
    assert host.record().tries == 2
    assert host.record().capacity == Capacity(4, 512, 10, 20)


def replace_description(host: HostEntry) -> HostDescription:
    return msgspec.structs.replace(host.description, capacity=Capacity(4, 512, 10, 20))
