"""Hosts emptied for a person, and given back, on separate daemons."""

from typing import TYPE_CHECKING

import pytest

from snooze.client.async_sdk import decode
from snooze.client.sdk import TaskState, VmState
from snooze.common.api import DecisionView
from snooze.common.errors import Conflict, NotFound

if TYPE_CHECKING:
    from tests.integration.cluster.conftest import Rig


def on_host(rig: "Rig", hostname: str) -> set[str]:
    return {domain.name for domain in rig.domains() if domain.host == hostname}


def drains(rig: "Rig", hostname: str) -> list[DecisionView]:
    """The decisions to drain a host, newest first."""
    content = rig.client.fetch("/decisions", {"kind": "drain", "host": hostname})
    return decode(content, list[DecisionView])


def test_a_host_is_drained_takes_nothing_and_gets_its_vms_back(rig: "Rig") -> None:
    prefix = rig.fresh("drain")
    task = rig.submit(rig.vms(prefix, 6, vcpus=2))
    assert task.state is TaskState.DONE
    hostname = task.vms[0].hostname
    before = on_host(rig, hostname)
    assert before
    plan = rig.client.drain([hostname], plan_only=True)
    assert {move.vm for move in plan.moves} == before
    assert plan.emptied == [hostname]
    assert rig.client.host(hostname).status == "active", "a plan changes nothing"

    drained = rig.client.wait(rig.client.task(rig.client.drain([hostname]).task_id), check=True)
    assert {vm.name for vm in drained.vms} == before
    assert on_host(rig, hostname) == set()
    assert rig.client.host(hostname).status == "maintenance"
    rig.until(rig.agrees, "Snooze tells of what runs")

    more = rig.submit(rig.vms(rig.fresh("more"), 6))
    assert more.state is TaskState.DONE
    assert hostname not in {vm.hostname for vm in more.vms}

    back = rig.client.undrain([hostname], bring_back=True)
    rig.client.wait(rig.client.task(back.task_id), check=True)
    assert on_host(rig, hostname) == before
    assert rig.client.host(hostname).status == "active"
    with pytest.raises(Conflict, match="maintenance"):
        rig.client.undrain([hostname])
    with pytest.raises(NotFound):
        rig.client.drain(["nosuch"])


def test_a_drain_outlives_its_leader_and_the_mark_outlives_everybody(rig: "Rig") -> None:
    prefix = rig.fresh("drain")
    task = rig.submit(rig.vms(prefix, 4))
    hostname = task.vms[0].hostname
    leader = rig.wait_whole()
    rig.client.drain([hostname], deadline_s=120)
    begun = drains(rig, hostname)[0]
    leader.kill()
    rig.until(lambda: rig.client.host(hostname).status == "maintenance", "a later leader goes on")
    rig.until(rig.agrees, "Snooze tells of what runs")
    assert on_host(rig, hostname) == set()
    kept = next(each for each in drains(rig, hostname) if each.id == begun.id)
    assert kept.state in {"interrupted", "done"}, "others keep what the leader decided"
    assert (kept.reason, kept.actions) == (begun.reason, begun.actions)
    leader.start()
    leader.wait_ready()
    assert {rig.client.wait_settled(vm.name).state for vm in task.vms} == {VmState.RUNNING}
    rig.client.undrain([hostname])
    rig.until(lambda: rig.client.host(hostname).status == "active", "it is given back")
