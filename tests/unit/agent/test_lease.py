# pyright: reportPrivateUsage=false
"""A host's lease: what is fenced when it is over, and what is not."""

import asyncio
import errno
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import msgspec
import pytest

from snooze.common.clock import ManualClock
from snooze.common.errors import ExecutionError
from snooze.common.resources import Capacity
from snooze.common.settings_lease import LeaseSettings
from snooze.common.transport.link import Link
from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import VmReport
from snooze.common.wire import LeaseGranted
from snooze.localcontroller import lease_file
from snooze.localcontroller.hypervisor.simulated import SimulatedHypervisor
from snooze.localcontroller.hypervisor.simulated_world import SimulatedSettings, SimulatedWorld
from snooze.localcontroller.lease import FENCE_S, HostLease
from snooze.localcontroller.lease_file import LeaseFile, LeaseState
from tests.unit.agent.rig import A, spec_of


class SlowHypervisor(SimulatedHypervisor):
    """Its answers wait until they may go on."""

    def __init__(self, world: SimulatedWorld) -> None:
        super().__init__(world, "host")
        self.asked = asyncio.Event()
        self.goes_on = asyncio.Event()

    async def inventory(self) -> list[VmReport]:
        self.asked.set()
        await self.goes_on.wait()
        return await super().inventory()


class Granting:
    """A link to a manager that grants a minute."""

    async def request(self, *_: object) -> LeaseGranted:
        return LeaseGranted(60.0)


class Rig:
    """A host whose lease is long over, with a guest that is on."""

    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock()
        self.world = SimulatedWorld(1, SimulatedSettings(capacity=Capacity(8.0, 1e7)), self.clock)
        self.hypervisor = SlowHypervisor(self.world)
        self.file = LeaseFile(folder / "lease.json")
        self.file.write(LeaseState(until_s=self.clock.boottime_s() - 100.0, grace_s=1.0))
        self.told = asyncio.Event()
        self.link: Granting | None = None
        self.lease = HostLease(
            LeaseSettings(),
            enabled=True,
            file=self.file,
            hypervisor=self.hypervisor,
            clock=self.clock,
            link=lambda: cast(Link | None, self.link),
            fenced=self.told.set,
        )

    def states(self) -> set[VmState]:
        return {vm.state for vm in self.hypervisor.host.vms.values()}


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    rig = Rig(tmp_path)
    await rig.hypervisor.open()
    await rig.hypervisor.start(spec_of(A))
    rig.lease.start()
    await rig.hypervisor.asked.wait()
    yield rig
    rig.hypervisor.goes_on.set()
    await rig.lease.close()
    await rig.hypervisor.close()


async def test_a_guest_whose_lease_is_over_is_switched_off_and_noted(rig: Rig) -> None:
    rig.hypervisor.goes_on.set()
    await rig.told.wait()
    assert rig.states() == {VmState.STOPPED}
    (report,) = rig.lease.mark(await rig.hypervisor.inventory())
    assert report.fenced


async def test_a_list_of_before_a_fence_does_not_hide_it(rig: Rig) -> None:
    """The guest was on in it, and seemed to have been started again: it was off for good."""
    noted, before = rig.lease.noted(), await SimulatedHypervisor.inventory(rig.hypervisor)
    rig.hypervisor.goes_on.set()
    await rig.told.wait()
    rig.clock.advance(1000.0)
    rig.lease.mark(before, noted)
    (report,) = rig.lease.mark(await rig.hypervisor.inventory())
    assert report.fenced


async def test_what_was_started_again_is_not_fenced_when_it_ends(rig: Rig) -> None:
    rig.hypervisor.goes_on.set()
    await rig.told.wait()
    rig.link = Granting()
    await rig.lease.require()
    await rig.hypervisor.start_again(A)
    for seconds, is_fenced in ((1.0, True), (FENCE_S, False)):
        rig.lease.noted()
        rig.clock.advance(seconds)
        rig.lease.mark(await rig.hypervisor.inventory())
        assert bool(rig.file.read().fenced) is is_fenced


async def test_what_may_run_again_by_the_time_it_is_found_runs_on(rig: Rig) -> None:
    """It was started under a new lease while the hypervisor took its time."""
    rig.link = Granting()
    await rig.lease.require()
    rig.hypervisor.goes_on.set()
    for _ in range(20):
        await asyncio.sleep(0)
    assert rig.states() == {VmState.RUNNING}
    assert not rig.told.is_set()


def lease_of(rig: Rig, settings: LeaseSettings, *, enabled: bool = True) -> HostLease:
    """What the next agent of the host keeps."""
    return HostLease(
        settings,
        enabled=enabled,
        file=rig.file,
        hypervisor=rig.hypervisor,
        clock=rig.clock,
        link=lambda: cast(Link | None, rig.link),
        fenced=rig.told.set,
    )


async def test_a_guest_that_the_guard_killed_was_fenced_too(rig: Rig) -> None:
    """libvirt hung, and says afterwards that its process crashed."""
    rig.hypervisor.goes_on.set()
    await rig.told.wait()
    for vm in rig.hypervisor.host.vms.values():
        vm.state = VmState.FAILED
    (report,) = rig.lease.mark(await rig.hypervisor.inventory())
    assert report.fenced


async def test_another_grace_counts_once_the_leader_and_the_guard_go_by_it(rig: Rig) -> None:
    """Both wait for the longer one, and guests are off by the shorter one."""
    for grace_s in (0.5, 600.0):
        lease = lease_of(rig, LeaseSettings(grace_s=grace_s))
        assert lease.lease_s == max(1.0, grace_s)
        assert lease._core.grace_s == min(1.0, grace_s)
    await rig.lease.close()  # it would note its own
    rig.link = Granting()
    lease = lease_of(rig, LeaseSettings(grace_s=600.0))
    lease.start()
    await lease.require()
    assert (lease.lease_s, lease._core.grace_s) == (600.0, 600.0)
    assert rig.file.read().grace_s == 600.0
    await lease.close()


def test_a_setting_does_not_take_a_promise_back(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    assert lease_of(rig, LeaseSettings(enabled="never"), enabled=False).lease_s > 0
    rig.file.path.unlink()
    assert lease_of(rig, LeaseSettings(enabled="never"), enabled=False).lease_s == 0


def test_a_lease_goes_on_although_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the guard would switch off guests that the leader has promised not to touch."""
    file = LeaseFile(tmp_path / "lease.json")
    file.write(LeaseState(until_s=100.0, grace_s=1.0, fenced={A: 1}))
    monkeypatch.setattr(Path, "write_bytes", disk_is_full)
    file.write(LeaseState(until_s=9.0, grace_s=1.0))
    assert (file.read().until_s, file.read().fenced) == (9.0, {})
    file.add_fenced({A: 2})
    assert (file.read().until_s, file.read().fenced) == (9.0, {A: 2})
    assert {path.name for path in tmp_path.iterdir()} == {"lease.json", "lease.lock"}
    with pytest.raises(ExecutionError, match="No space left"):
        file.write(LeaseState(fenced={f"{number:032x}": 1 for number in range(1000)}))
    assert file.read().fenced == {A: 2}, "what does not fit is not begun"
    with pytest.raises(ExecutionError):
        LeaseFile(tmp_path / "none.json").write(LeaseState())


def disk_is_full(path: Path, _data: bytes) -> None:
    path.touch()
    raise OSError(errno.ENOSPC, "No space left on device")


class FullDisk(LeaseFile):
    """On a disk that may have no room."""

    full = True

    def write(self, state: LeaseState) -> None:
        if self.full:
            raise ExecutionError("no space left on device")
        super().write(state)


async def test_a_lease_that_cannot_be_noted_is_none(rig: Rig) -> None:
    """The guard would not fence, nor would the next agent: they know of no lease."""
    rig.file = file = FullDisk(rig.file.path.with_name("full.json"))
    lease = lease_of(rig, LeaseSettings())
    rig.link = Granting()
    lease.start()
    for _ in range(20):
        await asyncio.sleep(0)
    waiting = asyncio.ensure_future(lease.require())
    await asyncio.sleep(0)
    assert not waiting.done()
    rig.clock.advance(1.0)
    file.full = False
    await waiting
    assert file.read().until_s > rig.clock.boottime_s()
    await lease.close()


async def test_a_guest_is_switched_off_though_that_cannot_be_noted(rig: Rig) -> None:
    await rig.lease.close()
    until_s = rig.file.read().until_s
    rig.file = FullDisk(rig.file.path)
    lease = lease_of(rig, LeaseSettings())
    assert rig.file.read().until_s == until_s
    rig.hypervisor.goes_on.set()
    lease.start()
    await rig.told.wait()
    assert rig.states() == {VmState.STOPPED}
    (report,) = lease.mark(await rig.hypervisor.inventory())
    assert report.fenced, "it is started again"
    await lease.close()


def test_agent_and_guard_do_not_overwrite_each_others_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, guard = (LeaseFile(tmp_path / "lease.json") for _ in range(2))
    agent.write(LeaseState(until_s=1.0))
    locks, refused = lease_file._locks, threading.Event()

    def tried(number: int) -> bool:
        has = locks(number)
        if not has:
            refused.set()
        return has

    monkeypatch.setattr(lease_file, "_locks", tried)
    monkeypatch.setattr(lease_file, "LOCK_TRIES", 60_000)
    fencing = threading.Thread(target=lambda: guard.add_fenced({A: 1}))

    def renew(state: LeaseState) -> LeaseState:
        fencing.start()
        assert refused.wait(30), "the guard waits for its turn"
        return msgspec.structs.replace(state, until_s=9.0)

    agent.change(renew)
    fencing.join()
    state = guard.read()
    assert (state.until_s, state.fenced) == (9.0, {A: 1})


def test_one_that_stands_still_in_the_middle_holds_up_nobody(tmp_path: Path) -> None:
    agent, guard = (LeaseFile(tmp_path / "lease.json") for _ in range(2))

    def meanwhile(state: LeaseState) -> LeaseState:
        assert agent.add_fenced({A: 1}).fenced == {A: 1}
        return state

    guard.change(meanwhile)
