"""Load moves by itself: real daemons in one process, simulated guests that burn on command."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import ClientSession

from snooze.client.allinone import AllInOne, Options, cluster
from snooze.client.async_sdk import AsyncSnooze, decode
from snooze.common.api import (
    AutonomyChange,
    AutonomyView,
    ClusterRequest,
    DecisionView,
    DecisionWord,
    HostWhyView,
    VmRequest,
)
from snooze.common.errors import Conflict, InvalidRequest, NotFound, SnoozeError

REPOSITORY = Path(__file__).parents[3]
PATIENCE_S = 180.0
QUIET_S = 5.0
CALM_S = 7.0
"""Longer than a forecast looks back."""
DOMAIN = (
    "<domain type='kvm'><name>{name}</name><memory unit='KiB'>{memory}</memory>"
    "<vcpu>{vcpus}</vcpu><os><type>hvm</type></os></domain>"
)

QUICK: dict[str, object] = {
    "monitoring": {"interval_s": 0.5},
    "autonomy": {"interval_s": 0.5, "cool_down_s": 1.0, "underload": "off"},
    "relocation": {"sustained_s": 3.0, "forecast_s": 6.0, "samples": 4},
}


class Bench:
    """A cluster of three hosts of 16 cores, and guests on the first."""

    def __init__(self, running: AllInOne, client: AsyncSnooze) -> None:
        self.running = running
        self.client = client

    @property
    def loads(self) -> dict[str, float]:
        return self.running.world.loads

    async def guests(self, host: str, **vcpus: int) -> None:
        vms = [
            VmRequest(
                host=host,
                libvirt_xml=DOMAIN.format(name=name, vcpus=count, memory=65536 * count),
            )
            for name, count in vcpus.items()
        ]
        for name in vcpus:
            self.loads.setdefault(name, 0.1)
        await self.client.wait(await self.client.submit(ClusterRequest(vms)), check=True)

    async def where(self) -> dict[str, str]:
        return {vm.name: vm.hostname for vm in await self.client.vms()}

    async def decisions(self, **params: str) -> list[DecisionView]:
        return decode(await self.client.fetch("/decisions", params), list[DecisionView])

    async def until(self, holds: Callable[[], Awaitable[bool]], what: str) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not await holds():  # noqa: ASYNC110 - it is asked over HTTP
                    await asyncio.sleep(0.2)
        except TimeoutError:
            pytest.fail(f"{what}: not within {PATIENCE_S:g} s\n{await self.story()}")

    async def story(self) -> str:
        """Where each VM and host is, what was decided, and why each host stays as it is."""
        lines = [f"{name} is on {host}" for name, host in (await self.where()).items()]
        for host in await self.client.hosts():
            lines.append(f"{host.hostname} is {host.power}, of manager {host.manager_id[:8]}")
            try:
                view = decode(await self.client.fetch(f"/hosts/{host.id}/why"), HostWhyView)
                lines += [f"  {each.code}: {each.message}" for each in view.obstacles]
            except SnoozeError as error:
                lines.append(f"  why: {error}")
        for each in await self.decisions():
            lines += [f"{each.kind} {each.state}: {each.reason}; {each.outcome}", *each.actions]
        return "\n".join(lines)

    async def say(self, **change: object) -> AutonomyView:
        return await self.client.send(
            "/autonomy",
            AutonomyChange(**change),  # type: ignore[arg-type]
            AutonomyView,
            verb="PUT",
        )

    async def overload(self) -> None:
        """Three guests on ``host1`` are calm at first, then one burns: 15 of 16 cores are used."""
        self.loads.update(web=0.9, db=0.9, burner=0.1, calm=0.3)
        await self.guests("host1", web=6, db=6, burner=4)
        await self.guests("host2", calm=4)
        await asyncio.sleep(CALM_S)
        self.loads["burner"] = 1.0


@asynccontextmanager
async def bench_of(
    managers: int, hosts: int, overrides: dict[str, object]
) -> AsyncGenerator[Bench]:
    """So many managers, one of which only leads if there are several, and hosts that measure."""
    options = Options(
        managers=managers,
        hosts=hosts,
        hypervisor="simulated",
        port=0,
        overrides=overrides,
        host_overrides={"monitoring": {"interval_s": 0.5}},
    )
    async with cluster(options) as running, AsyncSnooze(running.url) as client:
        yield Bench(running, client)


@pytest_asyncio.fixture
async def bench() -> AsyncIterator[Bench]:
    async with bench_of(2, 3, QUICK) as made:
        yield made


async def command(url: str, *arguments: str) -> tuple[int, str]:
    """The ``snooze`` command in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "snooze.client.command",
        "--url",
        url,
        *arguments,
        env={"PYTHONPATH": str(REPOSITORY / "typings"), "PATH": "/usr/bin:/bin", "COLUMNS": "200"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


async def test_a_guest_that_burns_is_moved_and_the_decision_can_be_replayed(
    bench: Bench, tmp_path: Path
) -> None:
    await bench.overload()

    async def ended() -> bool:
        return any(view.state == "done" for view in await bench.decisions(kind="overload"))

    await bench.until(ended, "the overload is relieved")
    where = await bench.where()
    assert where["burner"] != "host1"
    assert (where["web"], where["db"]) == ("host1", "host1")
    [view] = await bench.decisions(kind="overload", state="done")
    assert "host1 is overloaded: cpu " in view.reason
    assert "migrate burner" in view.actions[0]
    assert any("web" in line or "db" in line for line in view.alternatives)
    hosts = {host.hostname: host.id for host in await bench.client.hosts()}
    assert view.subjects[0] == hosts["host1"]
    assert [each.id for each in await bench.decisions(host="host1", vm="burner")] == [view.id]
    events = await bench.client.all_events()
    told = [event for event in events if event.kind == "decision.overload"]
    assert {event.cause for event in told} == {view.id}
    assert any("1 of 1 moved" in event.message for event in told)

    code, shown = await command(bench.running.url, "decisions", "show", view.id[:8])
    assert code == 0, shown
    assert "why: host1 is overloaded" in shown
    file = tmp_path / "decision.json"
    code, shown = await command(bench.running.url, "decisions", "export", view.id[:8], str(file))
    assert code == 0, shown
    replayed = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "snooze.scheduling", "replay", str(file)],
        env={"PYTHONPATH": str(REPOSITORY / "typings"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr
    assert "the same as recorded" in replayed.stdout

    # The guest goes on burning: neither it nor another one moves again.
    await asyncio.sleep(QUIET_S)
    assert await bench.where() == where
    assert len(await bench.decisions(kind="overload", state="done")) == 1


async def test_advice_is_approved_by_a_person_and_pauses_hold(bench: Bench) -> None:
    view = await bench.say(mode="advise", kinds=("overload",), why="we try it out", who="ann")
    assert view.modes["overload"] == "advise"
    assert view.modes["wake"] == "auto"
    await bench.say(paused=True, scope="host", target="host1")
    await bench.overload()
    await asyncio.sleep(QUIET_S)
    assert await bench.decisions(kind="overload") == []
    await bench.say(paused=False, scope="host", target="host1")

    async def proposed() -> bool:
        return bool(await bench.decisions(kind="overload", state="proposed"))

    await bench.until(proposed, "a move is proposed")
    [advice] = await bench.decisions(state="proposed")
    before = await bench.where()
    assert before["burner"] == "host1"
    code, shown = await command(bench.running.url, "decisions", "approve", advice.id[:8])
    assert code == 0, shown
    assert "running" in shown or "done" in shown

    async def moved() -> bool:
        return (await bench.where())["burner"] != "host1"

    await bench.until(moved, "what was approved is done")
    with pytest.raises(Conflict):
        await bench.client.send(
            f"/decisions/{advice.id}/approve", DecisionWord("bob"), DecisionView
        )
    with pytest.raises(NotFound):
        await bench.client.send(f"/decisions/{'0' * 32}/reject", DecisionWord(), DecisionView)
    code, shown = await command(bench.running.url, "autonomy", "show")
    assert code == 0, shown
    assert "we try it out" in shown


async def test_what_people_said_and_what_was_decided_survive_the_leader(bench: Bench) -> None:
    await bench.overload()

    async def ended() -> bool:
        return any(view.state == "done" for view in await bench.decisions(kind="overload"))

    await bench.until(ended, "the overload is relieved")
    [before] = await bench.decisions(kind="overload", state="done")
    await bench.say(paused=True, kinds=("consolidation",), why="audit", who="ann", for_s=3600.0)
    decider = before.decider
    leader = next(m for m in bench.running.managers if m.leading is not None)
    await bench.running.kill_leader()
    assert leader.node_id != decider

    async def told_again() -> bool:
        try:
            view = decode(await bench.client.fetch("/autonomy"), AutonomyView)
            known = await bench.decisions(kind="overload", state="done")
        except Exception:  # noqa: BLE001 - there may be no leader yet
            return False
        return view.modes["consolidation"] == "off" and [d.id for d in known] == [before.id]

    await bench.until(told_again, "the next leader knows")
    view = decode(await bench.client.fetch("/autonomy"), AutonomyView)
    assert view.why_off["consolidation"] == "paused by ann: audit"


async def test_consolidation_by_the_original_call_and_by_ours(bench: Bench) -> None:
    for number in (1, 2, 3):
        await bench.guests(f"host{number}", **{f"v{number}": 2})
    await asyncio.sleep(3)
    manager = next(m for m in bench.running.managers if m.manager.core.table.hosts)
    async with (
        ClientSession() as session,
        session.post(
            f"http://{manager.identity.control}/groupmanager?startReconfiguration"
        ) as response,
    ):
        assert response.status == 200
        assert json.loads(await response.text()) is True

    async def packed() -> bool:
        return len(set((await bench.where()).values())) == 1

    await bench.until(packed, "all guests are on one host")
    [view] = await bench.decisions(kind="consolidation")
    assert "asked for by startReconfiguration" in view.reason
    assert view.replayable
    code, shown = await command(bench.running.url, "autonomy", "consolidate", "gm2")
    assert code == 0 or "cannot" in shown, shown
    await bench.say(paused=True, kinds=("consolidation",))
    with pytest.raises(Conflict):
        await bench.client.send(
            f"/managers/{manager.node_id}/consolidate", DecisionWord(), DecisionView
        )


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({}, InvalidRequest),
        ({"paused": True, "scope": "planet"}, InvalidRequest),
        ({"paused": True, "scope": "host", "target": "nobody"}, NotFound),
        ({"paused": True, "target": "host1"}, InvalidRequest),
        ({"mode": "perhaps"}, InvalidRequest),
        ({"paused": True, "kinds": ("gossip",)}, InvalidRequest),
        ({"windows": ("whenever",)}, InvalidRequest),
        ({"windows": ("* 00:00-24:00",), "zone": "Mars"}, InvalidRequest),
        ({"paused": True, "why": "x" * 501}, InvalidRequest),
        ({"paused": True, "for_s": -1.0}, InvalidRequest),
    ],
)
async def test_what_makes_no_sense_changes_nothing(
    shared: Bench, change: dict[str, object], error: type[Exception]
) -> None:
    before = decode(await shared.client.fetch("/autonomy"), AutonomyView)
    with pytest.raises(error):
        await shared.say(**change)
    after = decode(await shared.client.fetch("/autonomy"), AutonomyView)
    assert after.revision == before.revision


@pytest_asyncio.fixture
async def shared() -> AsyncIterator[Bench]:
    options = Options(managers=1, hosts=1, hypervisor="simulated", port=0)
    async with cluster(options) as running, AsyncSnooze(running.url) as client:
        yield Bench(running, client)


async def test_an_overload_that_its_manager_cannot_help_is_moved_to_another_managers_host() -> None:
    options = Options(
        managers=3,
        hosts=2,
        hypervisor="simulated",
        port=0,
        overrides=QUICK,
        host_overrides={"monitoring": {"interval_s": 0.5}},
    )
    async with cluster(options) as running, AsyncSnooze(running.url) as client:
        bench = Bench(running, client)

        async def apart() -> bool:
            return len({view.manager_id for view in await client.hosts()}) == 2

        await bench.until(apart, "each host has a manager of its own")
        bench.loads.update(web=0.9, db=0.9, burner=0.1)
        await bench.guests("host1", web=6, db=6, burner=4)
        await asyncio.sleep(CALM_S)
        assert set((await bench.where()).values()) == {"host1"}
        bench.loads["burner"] = 1.0

        async def ended() -> bool:
            return any(view.state == "done" for view in await bench.decisions(kind="overload"))

        await bench.until(ended, "the overload is relieved")
        assert (await bench.where())["burner"] == "host2"
        [view] = await bench.decisions(kind="overload", state="done")
        assert "none of its manager's hosts can take" in view.reason
        code, shown = await command(running.url, "decisions", "replay", view.id)
        assert code == 0, shown
        assert "overload: burner to host2" in shown


async def test_an_overload_that_no_host_that_is_up_can_help_wakes_a_sleeper_and_goes_there() -> (
    None
):
    energy = {
        "enabled": True,
        "idle_s": 1.0,
        "min_on_s": 1.0,
        "reserve_cpu": 0.0,
        "reserve_memory": 0.0,
    }
    options = Options(
        managers=2,
        hosts=2,
        hypervisor="simulated",
        port=0,
        sleep=True,
        overrides={**QUICK, "energy": energy, "recovery": {"reserve": "none"}},
        host_overrides={"monitoring": {"interval_s": 0.5}},
    )
    async with cluster(options) as running, AsyncSnooze(running.url) as client:
        bench = Bench(running, client)

        async def asleep() -> bool:
            return any(host.power == "asleep" for host in await client.hosts())

        await bench.until(asleep, "one of two hosts sleeps")
        [sleeper] = [host for host in await client.hosts() if host.power == "asleep"]
        assert running.power.machine(sleeper.hostname).is_on is False
        bench.loads.update(web=0.9, db=0.9, burner=0.1)
        await bench.guests("", web=6, db=6, burner=4)
        await asyncio.sleep(CALM_S)
        assert await asleep(), "calm guests wake nobody"
        assert running.power.machine(sleeper.hostname).orders == []
        bench.loads["burner"] = 1.0

        async def ended() -> bool:
            return any(view.state == "done" for view in await bench.decisions(kind="overload"))

        await bench.until(ended, "the overload is relieved")
        where = await bench.where()
        assert where["burner"] == sleeper.hostname
        assert running.power.machine(sleeper.hostname).orders == ["on"]
        [wake] = await bench.decisions(kind="wake")
        assert wake.reason.startswith("the load of host")
        assert (wake.state, wake.replayable) == ("done", True)
        await asyncio.sleep(QUIET_S / 2)
        assert await bench.where() == where, "it stays there, and its host stays up"
        assert not await asleep()
