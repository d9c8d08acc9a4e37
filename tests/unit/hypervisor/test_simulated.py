"""The shipped fake: latencies, failures and load to order."""

import asyncio
import uuid

import pytest

from snooze.common.clock import ManualClock
from snooze.common.errors import ExecutionError, NotFound, RemoteError, RemoteTimeout
from snooze.common.resources import Capacity
from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import MigrationProgress, VmSpec
from snooze.localcontroller.hypervisor.port import (
    ChangeKind,
    ConnectionChange,
    MigrationOptions,
    VmChange,
)
from snooze.localcontroller.hypervisor.simulated import SimulatedHypervisor
from snooze.localcontroller.hypervisor.simulated_world import (
    Latency,
    SimulatedSettings,
    SimulatedWorld,
    constant_load,
    wave_load,
)


def make_spec(name: str = "vm", memory_kib: float = 2**20) -> VmSpec:
    return VmSpec(uuid.uuid4().hex, name, Capacity(2.0, memory_kib, 100.0, 50.0))


class Nap:
    """A sleep that only moves the clock."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.naps: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.clock.advance(seconds)
        await asyncio.sleep(0)


async def open_host(world: SimulatedWorld, name: str = "h") -> SimulatedHypervisor:
    host = SimulatedHypervisor(world, name)
    await host.open()
    return host


async def test_latency_is_drawn_and_reproducible() -> None:
    runs: list[list[float]] = []
    for _ in range(2):
        nap = Nap()
        settings = SimulatedSettings(latencies={"start": Latency(0.5, 0.1)})
        host = await open_host(SimulatedWorld(7, settings, nap.clock, nap))
        for number in range(5):
            await host.start(make_spec(f"vm{number}"))
        runs.append(nap.naps)
    assert runs[0] == runs[1]
    assert len(set(runs[0])) == 5
    assert min(runs[0]) >= 0.5


async def test_a_start_ends_if_its_domain_is_switched_off_meanwhile() -> None:
    nap = Nap()
    world = SimulatedWorld(7, SimulatedSettings(latencies={"start": Latency(1.0)}), nap.clock, nap)
    host, spec = await open_host(world), make_spec()
    starting = asyncio.create_task(host.start(spec))
    await asyncio.sleep(0)
    host.host.vms[spec.vm_id].state = VmState.STOPPED
    with pytest.raises(ExecutionError, match="switched off while it started"):
        await starting
    assert await host.inventory() == [], "a start that failed leaves nothing, as with libvirt"


async def test_what_is_removed_while_it_is_started_again_does_not_run() -> None:
    nap = Nap()
    latencies = {"start_again": Latency(1.0)}
    world = SimulatedWorld(7, SimulatedSettings(latencies=latencies), nap.clock, nap)
    host, spec = await open_host(world), make_spec()
    await host.start(spec)
    await host.power_off(spec.vm_id)
    starting = asyncio.create_task(host.start_again(spec.vm_id))
    await asyncio.sleep(0)
    await host.discard(spec.vm_id, spec.generation)
    with pytest.raises(NotFound, match="removed while it started"):
        await starting
    assert await host.inventory() == []


async def test_a_failure_to_order_happens_once_and_changes_nothing() -> None:
    host = await open_host(SimulatedWorld())
    spec = make_spec()
    host.host.fail("start", ExecutionError("no luck"))
    with pytest.raises(ExecutionError, match="no luck"):
        await host.start(spec)
    assert await host.inventory() == []
    assert (await host.start(spec)).state is VmState.RUNNING


async def test_an_answer_can_be_lost_after_the_work() -> None:
    host = await open_host(SimulatedWorld())
    spec = make_spec()
    host.host.fail("start", RemoteTimeout("no answer"), after=True)
    with pytest.raises(RemoteTimeout):
        await host.start(spec)
    assert [r.state for r in await host.inventory()] == [VmState.RUNNING]
    assert (await host.start(spec)).state is VmState.RUNNING


async def test_failures_at_a_rate_are_drawn_from_the_seed() -> None:
    outcomes: list[list[bool]] = []
    for seed in (1, 1, 2):
        world = SimulatedWorld(seed, SimulatedSettings(failure_rates={"start": 0.5}))
        host = await open_host(world)
        answers = await asyncio.gather(
            *(host.start(make_spec(f"vm{n}")) for n in range(40)), return_exceptions=True
        )
        outcomes.append([isinstance(answer, ExecutionError) for answer in answers])
    assert outcomes[0] == outcomes[1] != outcomes[2]
    assert 5 < sum(outcomes[0]) < 35


async def test_a_lost_connection_is_told_and_refuses_all() -> None:
    host = await open_host(SimulatedWorld())
    told: list[ConnectionChange] = []
    host.on_connection(told.append)
    spec = make_spec()
    await host.start(spec)
    host.host.lose_connection("cable")
    for call in (host.inventory(), host.start(make_spec("b")), host.usage(), host.describe()):
        with pytest.raises(RemoteError, match="does not answer"):
            await call
    host.host.restore_connection()
    assert [r.state for r in await host.inventory()] == [VmState.RUNNING]
    assert told == [ConnectionChange(False, "cable"), ConnectionChange(True)]


async def test_a_power_cut_stops_everything() -> None:
    host = await open_host(SimulatedWorld())
    await host.start(make_spec())
    host.host.power_off()
    host.host.restore_connection()
    assert [r.state for r in await host.inventory()] == [VmState.STOPPED]


async def test_guests_crash_and_leave_by_themselves() -> None:
    host = await open_host(SimulatedWorld())
    heard: list[VmChange] = []
    host.on_change(heard.append)
    first, second = make_spec("a"), make_spec("b")
    await host.start(first)
    await host.start(second)
    host.host.crash(first.vm_id)
    host.host.guest_powers_off(second.vm_id)
    await asyncio.sleep(0)
    assert [(c.name, c.kind) for c in heard[2:]] == [
        ("a", ChangeKind.CRASHED),
        ("b", ChangeKind.STOPPED),
    ]
    assert {r.name: r.reason for r in await host.inventory()} == {
        "a": "guest panicked",
        "b": "shutdown",
    }


async def test_load_follows_its_profile() -> None:
    clock = ManualClock()
    world = SimulatedWorld(settings=SimulatedSettings(load=wave_load(0.2, 0.8, 60)), clock=clock)
    host = await open_host(world)
    specs = [make_spec(f"vm{number}") for number in range(20)]
    for spec in specs:
        await host.start(spec)
    first = [sample.used.cpu_cores for sample in (await host.usage()).vms]
    assert all(0.4 - 1e-9 <= cores <= 1.6 + 1e-9 for cores in first)
    assert max(first) - min(first) > 0.3, "each VM has a phase of its own"
    clock.advance(60)
    assert [s.used.cpu_cores for s in (await host.usage()).vms] == pytest.approx(first)
    assert constant_load(0.5)(specs[0], 3.0) == Capacity(1.0, 2**20, 50.0, 25.0)


async def test_a_migration_takes_its_time_and_reports() -> None:
    nap = Nap()
    settings = SimulatedSettings(migration_kib_s=2**20)
    world = SimulatedWorld(0, settings, nap.clock, nap)
    one, two = await open_host(world, "one"), await open_host(world, "two")
    spec = make_spec(memory_kib=4 * 2**20)
    await one.start(spec)
    ticket = await two.prepare_incoming(await one.offer(spec.vm_id, MigrationOptions()))
    seen: list[MigrationProgress] = []
    with pytest.raises(ExecutionError, match="longer than 3"):
        await one.migrate_out(spec.vm_id, ticket, MigrationOptions(timeout_s=3.5), seen.append)
    assert [r.state for r in await one.inventory()] == [VmState.RUNNING]
    seen.clear()
    await one.migrate_out(spec.vm_id, ticket, MigrationOptions(), seen.append)
    assert [p.elapsed_ms for p in seen] == [1000, 2000, 3000, 4000]
    assert seen[-1].remaining_bytes == 0
    assert sum(nap.naps) == pytest.approx(7.0)


@pytest.mark.parametrize("what", ["source", "destination", "guest"])
async def test_a_migration_interrupted_leaves_one_guest_at_most(what: str) -> None:
    gate, moving = asyncio.Event(), asyncio.Event()

    async def wait(seconds: float) -> None:
        moving.set()
        await gate.wait()

    world = SimulatedWorld(sleep=wait)
    one, two = await open_host(world, "one"), await open_host(world, "two")
    spec = make_spec()
    await one.start(spec)
    ticket = await two.prepare_incoming(await one.offer(spec.vm_id, MigrationOptions()))
    migration = asyncio.create_task(
        one.migrate_out(spec.vm_id, ticket, MigrationOptions(), lambda progress: None)
    )
    await moving.wait()
    assert [r.state for r in await one.inventory()] == [VmState.MIGRATING]
    match what:
        case "source":
            one.host.power_off()
        case "destination":
            two.host.power_off()
        case _:
            one.host.crash(spec.vm_id)
    gate.set()
    with pytest.raises((ExecutionError, RemoteError)):
        await migration
    two.host.restore_connection()
    one.host.restore_connection()
    assert await two.inventory() == []
    expected = {"source": VmState.STOPPED, "destination": VmState.RUNNING, "guest": VmState.FAILED}
    assert [r.state for r in await one.inventory()] == [expected[what]]
    with pytest.raises(ExecutionError):
        await two.finish_incoming(spec.vm_id, ticket)


async def test_a_cancelled_migration_leaves_the_guest() -> None:
    moving = asyncio.Event()

    async def wait_for_ever(seconds: float) -> None:
        moving.set()
        await asyncio.Event().wait()

    world = SimulatedWorld(sleep=wait_for_ever)
    one, two = await open_host(world, "one"), await open_host(world, "two")
    spec = make_spec()
    await one.start(spec)
    ticket = await two.prepare_incoming(await one.offer(spec.vm_id, MigrationOptions()))
    migration = asyncio.create_task(
        one.migrate_out(spec.vm_id, ticket, MigrationOptions(), lambda progress: None)
    )
    await moving.wait()
    migration.cancel()
    with pytest.raises(asyncio.CancelledError):
        await migration
    assert [r.state for r in await one.inventory()] == [VmState.RUNNING]


async def test_a_thousand_hosts_live_in_one_process() -> None:
    world = SimulatedWorld()
    hosts = [await open_host(world, f"h{number}") for number in range(1000)]
    for number, host in enumerate(hosts):
        await host.start(make_spec(f"vm{number}"))
    assert sum([len(await host.inventory()) for host in hosts]) == 1000
    with pytest.raises(NotFound):
        await hosts[0].suspend(uuid.uuid4().hex)
