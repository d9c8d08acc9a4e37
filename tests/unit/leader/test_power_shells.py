"""The shells around power controllers: ones that break, and sleepers that may not be woken."""

import asyncio
from dataclasses import dataclass, field
from typing import NoReturn

import msgspec
import numpy as np
import pytest

from snooze.common.clock import ManualClock
from snooze.common.coordination.memory import MemoryCoordinator, MemoryStore
from snooze.common.coordination.port import Check
from snooze.common.decisions import DecisionMode
from snooze.common.errors import TooBusy
from snooze.common.records import HostPower
from snooze.common.resources import Capacity, R
from snooze.common.settings_groupmanager import GroupManagerSettings
from snooze.common.settings_recovery import RecoverySettings
from snooze.common.vm_lifecycle import VmState
from snooze.common.wire import ManagerWelcome, PowerDescription
from snooze.groupmanager.leader.decision_log import DecisionLog
from snooze.groupmanager.leader.energy import Energy
from snooze.groupmanager.leader.events import EventLog
from snooze.groupmanager.leader.journal import Done, Journal
from snooze.groupmanager.leader.manager_links import ManagerLinks
from snooze.groupmanager.leader.recovery import Recovery
from snooze.groupmanager.leader.registry import HostEntry, Registry, VmEntry
from snooze.groupmanager.power.factory import PowerDrivers, PoweredHost
from snooze.groupmanager.power.port import PowerController
from tests.unit.leader.builders import host_of


class Broken(PowerDrivers):
    """Its controllers have a defect."""

    asked = 0

    def controller(self, host: PoweredHost) -> PowerController:
        self.asked += 1
        raise RuntimeError("nobody foresaw this")


@dataclass
class Desk:
    """A leader's registry with one host, which a simulated machine is behind."""

    registry: Registry = field(default_factory=Registry)
    clock: ManualClock = field(default_factory=ManualClock)
    power: Broken = field(default_factory=Broken)

    def __post_init__(self) -> None:
        power = PowerDescription("test", "", ("shutdown",))
        described = msgspec.structs.replace(host_of("h1"), power=power)
        self.registry.hosts["h1"] = HostEntry(described, "gm", 1, joined=True, seen_s=0.0)
        self.links = ManagerLinks(
            self.registry,
            ManagerWelcome("gm", 1),
            _nobody,
            lambda hello: None,
            lambda manager_id, notice: None,
            lambda manager_id, reason: None,
        )


async def _nobody(message: object) -> msgspec.Struct:
    raise AssertionError(message)


def _written(host_id: str, done: Done | None) -> None:
    if done is not None:
        done(None)


def energy_of(desk: Desk) -> Energy:
    return Energy(
        desk.registry,
        GroupManagerSettings(),
        np.ones(R),
        1,
        "gm",
        desk.clock,
        desk.links,
        desk.power,
        Journal(MemoryCoordinator(MemoryStore()), Check("/fence", 0), lambda: None),
        record_host=_written,
        announce=lambda announcement: None,
        decided=lambda decision: None,
        ha_lacks=lambda gone: "",
    )


async def test_a_host_whose_driver_breaks_is_asked_about_again() -> None:
    desk = Desk()
    vm = VmEntry("vm", "vm", Capacity(1.0, 1024.0), VmState.RUNNING, host_id="h1")
    vm.was = VmState.RUNNING
    desk.registry.add_vm(vm)
    recovery = Recovery(
        desk.registry,
        RecoverySettings(),
        1,
        desk.clock,
        desk.links,
        desk.power,
        DecisionLog(desk.clock, EventLog(desk.clock), "gm"),
        np.ones(R),
        term_s=lambda: 30.0,
        is_leader=lambda: True,
        record_host=_written,
        proven=lambda host_id, proof: None,
        announce=lambda announcement: None,
    )
    desk.registry.hosts["h1"].leave(desk.clock.monotonic_s(), silent=True)
    for _ in range(3):
        desk.clock.advance(100.0)
        recovery.tick()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert desk.power.asked == 3
    await recovery.close()


async def test_a_host_whose_driver_breaks_fails_to_wake_and_does_not_wake_for_ever() -> None:
    desk = Desk()
    host = desk.registry.hosts["h1"]
    host.leave(0.0)
    host.state, host.state_since_ms = HostPower.WAKING, 1
    energy = energy_of(desk)
    for _ in range(8):
        desk.clock.advance(6.0)
        energy.tick(settled=True)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert host.state is HostPower.FAILED
    assert host.note == "its power driver broke off (RuntimeError)"


async def test_a_machine_that_starts_no_process_has_asked_no_bmc(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def refuse(*words: str, **how: object) -> NoReturn:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refuse)
    drivers = PowerDrivers()
    described = msgspec.structs.replace(
        host_of("h1"), power=PowerDescription("IPMI", "-H bmc -U u -P geheim")
    )
    controller = drivers.controller(described)
    for order in (controller.state, controller.on, controller.off):
        with pytest.raises(TooBusy, match="bmc was not asked") as caught:
            await order()
        assert "geheim" not in caught.value.message
    await drivers.close()


async def test_room_is_found_past_a_sleeper_that_people_let_nobody_wake() -> None:
    desk = Desk()
    first = desk.registry.hosts["h1"]
    described = msgspec.structs.replace(first.description, host_id="h2", hostname="other")
    second = HostEntry(described, "gm", 1, joined=False, seen_s=0.0)
    desk.registry.hosts["h2"] = second
    first.leave(0.0)
    for host in (first, second):
        host.state, host.state_since_ms = HostPower.ASLEEP, 1
    vm = VmEntry("vm", "vm", Capacity(1.0, 1024.0), VmState.RUNNING)
    energy = energy_of(desk)
    paused = {"h1"}
    energy.mode_of = lambda kind, host: (
        DecisionMode.OFF if host.description.host_id in paused else DecisionMode.AUTO
    )
    assert energy.can_wake_for(vm)
    paused = {"h1", "h2"}
    assert not energy.can_wake_for(vm)
