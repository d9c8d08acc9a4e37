"""The election over real ZooKeeper servers when a leader, or the server it talks to, is frozen."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from snooze.common.clock import SYSTEM_CLOCK
from snooze.common.coordination.leadership import LeaderRecord, LeaderWatch
from snooze.common.coordination.port import SessionState, wait_connected
from snooze.common.coordination.zookeeper import ZooKeeperCoordinator
from snooze.groupmanager.election import Election, Following, Leadership, Leading, Suspended
from snooze.lab.recorder import PATIENCE_S, Recorder
from snooze.lab.zookeeper import ZooKeeperEnsemble

SESSION_TIMEOUT_S = 1.0
ROOT = Path(__file__).parents[3]

CANDIDATE = """
import asyncio, json, sys, time
from snooze.common.clock import SYSTEM_CLOCK
from snooze.common.coordination.zookeeper import ZooKeeperCoordinator
from snooze.groupmanager.election import Election, Leading

async def main(hosts, root, name, session_timeout_s):
    client = ZooKeeperCoordinator(hosts, root=root, session_timeout_s=float(session_timeout_s))
    await client.start()
    election = Election(client, name, b"", SYSTEM_CLOCK)
    epochs = [0]
    election.on_leadership(lambda it: epochs.append(it.epoch) if isinstance(it, Leading) else None)
    await election.start()
    while True:
        now_s = time.monotonic()  # Read first: being frozen in between must not look like leading.
        for epoch in epochs[-2:]:
            if election.is_leader(epoch):
                print(json.dumps([now_s, epoch]), flush=True)
        await asyncio.sleep(0.01)

asyncio.run(main(*sys.argv[1:]))
"""


@asynccontextmanager
async def candidate_process(
    hosts: str, root: str, name: str, claims: Path
) -> AsyncGenerator[asyncio.subprocess.Process, None]:
    """A candidate in a process of its own; it writes ``[time, epoch]`` while it claims to lead."""
    with claims.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", CANDIDATE, hosts, root, name, str(SESSION_TIMEOUT_S)),
            stdout=out,
            env={**os.environ, "PYTHONPATH": str(ROOT / "typings")},
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def claims_in(path: Path) -> list[tuple[float, int]]:
    lines = path.read_text().splitlines(keepends=True)
    return [tuple(json.loads(line)) for line in lines if line.endswith("\n")]


async def test_a_frozen_leader_does_not_claim_to_lead_after_its_thaw(
    ensemble: ZooKeeperEnsemble, tmp_path: Path
) -> None:
    root = "/frozen-process"
    paths = {name: tmp_path / name for name in ("one", "two")}
    observer = ZooKeeperCoordinator(ensemble.hosts, root=root, session_timeout_s=10.0)
    watch = LeaderWatch(observer)
    leaders: Recorder[LeaderRecord | None] = Recorder()
    watch.on_change(leaders)
    await observer.start()
    watch.start()
    async with (
        candidate_process(ensemble.hosts, root, "one", paths["one"]) as one,
        candidate_process(ensemble.hosts, root, "two", paths["two"]) as two,
    ):
        processes = {"one": one, "two": two}
        for _ in range(3):
            leader = await leaders.until(lambda record: record is not None)
            assert leader is not None
            await claimed(paths[leader.id], leader.epoch)
            processes[leader.id].send_signal(signal.SIGSTOP)
            later = await leaders.until(newer_than(leader.epoch))
            assert later is not None
            assert later.id != leader.id
            await claimed(paths[later.id], later.epoch)
            processes[leader.id].send_signal(signal.SIGCONT)
            thawed_s = time.monotonic()
            await claimed(paths[later.id], later.epoch, after_s=thawed_s + 0.3)
    await observer.close()

    claims = sorted(claim for path in paths.values() for claim in claims_in(path))
    epochs = [epoch for _, epoch in claims]
    assert epochs == sorted(epochs), "an older epoch was claimed after a newer one"
    assert len(set(epochs)) == 4
    for epoch in set(epochs):
        assert sum(any(e == epoch for _, e in claims_in(path)) for path in paths.values()) == 1


def newer_than(epoch: int) -> Callable[[LeaderRecord | None], bool]:
    return lambda record: record is not None and record.epoch > epoch


async def claimed(path: Path, epoch: int, after_s: float = 0.0) -> None:
    """Wait until the candidate claims to lead in ``epoch``."""
    async with asyncio.timeout(PATIENCE_S):
        while not any(t >= after_s and e == epoch for t, e in claims_in(path)):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_a_leader_on_a_frozen_server_steps_down_and_the_next_leads(
    ensemble: ZooKeeperEnsemble,
) -> None:
    """The rest of the ensemble ends its session; it hears of that when its server is thawed."""
    root = "/frozen-server"
    followers = await ensemble.followers()
    frozen, healthy = followers[0], await ensemble.leader()
    first_client = ZooKeeperCoordinator(
        frozen.hosts, root=root, session_timeout_s=SESSION_TIMEOUT_S
    )
    second_client = ZooKeeperCoordinator(
        healthy.hosts, root=root, session_timeout_s=SESSION_TIMEOUT_S
    )
    elections: list[Election] = []
    recorders: list[Recorder[Leadership]] = []
    for client, name in ((first_client, "first"), (second_client, "second")):
        await client.start()
        await wait_connected(client, PATIENCE_S)
        election = Election(client, name, b"", SYSTEM_CLOCK)
        recorder: Recorder[Leadership] = Recorder()
        election.on_leadership(recorder)
        await election.start()
        await recorder.until(lambda it: it == Leading(1) or isinstance(it, Following))
        elections.append(election)
        recorders.append(recorder)
    first, second = elections
    assert first.is_leader(1)

    frozen.pause()
    try:
        await recorders[0].until(lambda it: it == Suspended(1))
        assert not first.is_leader(1)
        await recorders[1].until(lambda it: it == Leading(2))
        assert not first.is_leader(1)
    finally:
        frozen.resume()
    await recorders[0].until(
        lambda it: isinstance(it, Following) and it.leader is not None and it.leader.epoch == 2
    )
    assert first_client.session.state is SessionState.CONNECTED
    assert first_client.session.number == 2
    assert recorders[0].values[:2] == [Leading(1), Suspended(1)]
    assert second.is_leader(2)
    for election, client in ((first, first_client), (second, second_client)):
        await election.close()
        await client.close()
