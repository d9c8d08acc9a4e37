"""Hosts die in every way, with four guests each: all run again, and none ever runs twice.

The cases are those that ``python -m benchmarks dead-hosts`` measures; time is bounded by patience
alone. What proves it is what guests write to their shared disks.
"""

import dataclasses
from collections.abc import Iterator

import pytest

from benchmarks.dead_hosts import CASES, GUESTS, PLAN, Stage
from snooze.lab.witness import Witness

QUICKER = dataclasses.replace(
    PLAN,
    manager_settings={"recovery": {"max_restarts": 1000, "lease_s": 15.0, "margin_s": 5.0}},
)
"""A lease of half the default's length: that it runs out is waited for."""


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with Stage(QUICKER) as stage:
        yield stage


@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", CASES)
def test_guests_of_a_dead_host_run_again_and_never_twice(stage: Stage, case: str) -> None:
    before = {name: set(stage.witness.boots(name)) for name in GUESTS}
    measured = stage.play(case)
    assert 0 < measured.first_s <= measured.all_s
    for name in GUESTS:
        boots = stage.witness.boots(name)
        assert len(set(boots) - before[name]) == 1, "it was started anew, once"
        assert len(boots) == len(set(boots)), "the old one never wrote again"
    assert stage.witness.violations() == []


def test_the_witness_sees_a_guest_that_runs_twice(stage: Stage) -> None:
    """What the other test relies on: two real guests on one disk, on two hosts, are seen."""
    disk = stage.lab.images / "guest8.raw"
    template = str(stage.lab.templates / "guest8.xml")
    one, two = stage.lab.hosts[:2]
    with Witness({"guest8": disk}) as witness:
        try:
            for host in (one, two):
                created = host.exec(["virsh", "-q", "create", template])
                assert created.returncode == 0, created.stderr
            stage.until(witness.violations, "the witness to see it")
        finally:
            for host in (one, two):
                host.exec(["virsh", "destroy", "guest8"])
    assert "guest8 ran twice" in witness.violations()[0]
