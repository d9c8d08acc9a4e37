"""Fail-over: how long nobody is served when the leader dies or stops, and how long hosts are alone.

An ensemble of three ZooKeeper servers, two bootstrap nodes, three group managers and one process
with all hosts, all on this machine. In each round the leader is killed (``kill -9``) while a client
submits without pause; *served* is the time from the kill until the first submission that was sent
after it is acknowledged, *running* until its VM runs. Then the leader freezes, as when its machine
loses power (*frozen*), then it is stopped cleanly (*clean*): both until a submission is
acknowledged. Then a manager with hosts is killed: *reattached* is until each of its hosts has
another manager; *silent* is the same with one that freezes. At the end every acknowledged VM must
be there, once.

Profiles: ``fast`` (ZooKeeper tick 500 ms; docs/operations.md), ``default``, and
``snooze``: the original's defaults (session 10 s, heartbeats every 3 s, time-out 10 s) on our code.

``python -m benchmarks failover [--profile fast,default,snooze] [--rounds 30] [--hosts 60]``
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from benchmarks import _report
from benchmarks.submission import TEMPLATE
from snooze.lab.daemons import Daemon, DaemonCluster
from snooze.lab.zookeeper import zookeeper_ensemble

PATIENCE_S = 120.0
POLL_S = 0.02
PAUSE_S = 0.02
"""Between two attempts of a client that was refused."""

Tables = dict[str, dict[str, object]]


@dataclass(frozen=True)
class Profile:
    """A ZooKeeper tick and the settings that go with it, over the defaults."""

    tick_ms: int
    settings: Tables


PROFILES = {
    "fast": Profile(
        500,
        {
            "coordination": {"session_timeout_s": 1.0},
            "heartbeat": {"interval_s": 0.3, "timeout_s": 1.0},
            "join": {"retry_min_s": 0.1, "retry_max_s": 1.0},
        },
    ),
    "default": Profile(2000, {}),
    "snooze": Profile(
        2000,
        {
            "coordination": {"session_timeout_s": 10.0},
            "heartbeat": {"interval_s": 3.0, "timeout_s": 10.0},
        },
    ),
}


@dataclass
class Run:
    """One profile's cluster and figures."""

    cluster: DaemonCluster
    session: aiohttp.ClientSession
    chance: random.Random
    numbers: "itertools.count[int]" = field(default_factory=itertools.count)
    acknowledged: list[str] = field(default_factory=list[str])
    tasks: dict[str, str] = field(default_factory=dict[str, str])
    served_s: list[float] = field(default_factory=list[float])
    running_s: list[float] = field(default_factory=list[float])
    frozen_s: list[float] = field(default_factory=list[float])
    clean_s: list[float] = field(default_factory=list[float])
    reattached_s: list[float] = field(default_factory=list[float])
    silent_s: list[float] = field(default_factory=list[float])

    # ------------------------------------------------------------ looking

    async def get(self, daemon: Daemon, path: str, *, itself: bool = False) -> Any:
        """The JSON that a daemon answers; None if it does not."""
        headers = {"X-Snooze-Hops": "1"} if itself else {}
        limit = aiohttp.ClientTimeout(total=5)
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            url = daemon.url + path
            async with self.session.get(url, headers=headers, timeout=limit) as answer:
                return await answer.json() if answer.status == 200 else None

    async def leader(self) -> Daemon | None:
        """The manager that serves as the leader."""
        for manager in self.cluster.managers:
            if manager.runs and await self.get(manager, "/v1/cluster", itself=True) is not None:
                return manager
        return None

    async def hosts(self) -> dict[str, str]:
        """The manager of each host that is joined."""
        hosts = await self.get(self.cluster.bootstraps[0], "/v1/hosts")
        return {h["id"]: h["manager_id"] for h in hosts or () if h["status"] == "active"}

    async def whole(self, hosts: int) -> Daemon:
        """Wait until all managers and hosts are in; the leader."""
        deadline_s = time.monotonic() + PATIENCE_S
        seen = ""
        while time.monotonic() < deadline_s:
            leader = await self.leader()
            managers = await self.get(self.cluster.bootstraps[0], "/v1/managers")
            if leader and len(managers or ()) == len(self.cluster.managers):
                joined = await self.hosts()
                below = Counter(joined.values())
                if len(joined) == hosts and len(below) == len(self.cluster.managers) - 1:
                    return leader
                seen = f"{len(joined)} of {hosts} hosts below {dict(below)}"
            else:
                seen = f"leader {leader and leader.name}, {len(managers or ())} managers"
            await asyncio.sleep(0.1)
        raise SystemExit(f"the hierarchy is not whole after {PATIENCE_S:g} s: {seen}")

    # ------------------------------------------------------------ submitting

    async def submit(self, number: int) -> tuple[str, str]:
        """Submit one VM until it is acknowledged; its name and the task's id."""
        name = f"fo{number}"
        body = {"vms": [{"libvirt_xml": TEMPLATE.format(name=name)}]}
        for attempt in itertools.count():
            front = self.cluster.bootstraps[attempt % len(self.cluster.bootstraps)]
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with self.session.post(
                    f"{front.url}/v1/virtual-clusters",
                    json=body,
                    headers={"Idempotency-Key": name},
                    timeout=aiohttp.ClientTimeout(total=15),
                ) as answer:
                    task = await answer.json()
                    if answer.status in {200, 202}:
                        self.acknowledged.append(name)
                        self.tasks[name] = task["id"]
                        return name, task["id"]
                    if answer.status not in {502, 503, 504}:
                        raise SystemExit(f"a submission was refused: {answer.status} {task}")
            await asyncio.sleep(PAUSE_S)
        raise AssertionError

    async def runs(self, task_id: str) -> None:
        """Wait until a task is done."""
        front = self.cluster.bootstraps[0]
        while True:
            task = await self.get(front, f"/v1/tasks/{task_id}?wait_s=2")
            if task and task["state"] in {"done", "failed", "partial"}:
                if task["state"] != "done":
                    raise SystemExit(f"a task failed: {json.dumps(task)[:600]}")
                return
            await asyncio.sleep(POLL_S)

    async def load(self) -> None:
        """A stream of submissions, as other clients send."""
        while True:
            await self.submit(next(self.numbers))
            await asyncio.sleep(0.5)

    # ------------------------------------------------------------ rounds

    async def leader_dies(self, leader: Daemon) -> None:
        """Kill it at any moment, and measure."""
        await asyncio.sleep(self.chance.uniform(0.0, 2.0))
        leader.kill()
        killed_s = time.monotonic()
        _, task_id = await self.submit(next(self.numbers))
        self.served_s.append(time.monotonic() - killed_s)
        await self.runs(task_id)
        self.running_s.append(time.monotonic() - killed_s)
        leader.start()

    async def leader_freezes(self, leader: Daemon) -> None:
        """Its machine is gone: nothing is refused, nothing answered."""
        leader.pause()
        frozen_s = time.monotonic()
        await self.submit(next(self.numbers))
        self.frozen_s.append(time.monotonic() - frozen_s)
        leader.kill()
        leader.start()

    async def leader_stops(self, leader: Daemon) -> None:
        """Stop it cleanly, and measure."""
        asked_s = time.monotonic()
        stopping = asyncio.create_task(asyncio.to_thread(leader.stop))
        while await self.get(leader, "/v1/cluster", itself=True) is not None:
            pass
        await self.submit(next(self.numbers))
        self.clean_s.append(time.monotonic() - asked_s)
        await stopping
        leader.start()

    async def manager_dies(self, *, silently: bool) -> None:
        """Kill (or freeze) one that has hosts, and see each of them below another."""
        below = Counter((await self.hosts()).values())
        victims = [m for m in self.cluster.managers if below[m.node_id]]
        victim = self.chance.choice(victims)
        lost = {h for h, manager in (await self.hosts()).items() if manager == victim.node_id}
        figures = self.silent_s if silently else self.reattached_s
        if silently:
            victim.pause()
        else:
            victim.kill()
        killed_s = time.monotonic()
        while lost:
            joined = await self.hosts()
            back = {h for h in lost if joined.get(h, victim.node_id) != victim.node_id}
            figures += [time.monotonic() - killed_s] * len(back)
            lost -= back
            await asyncio.sleep(POLL_S)
            if time.monotonic() - killed_s > PATIENCE_S:
                raise SystemExit(f"{len(lost)} hosts are not re-attached")
        victim.kill()
        victim.start()

    async def tell_of(self, name: str) -> None:
        """All that the cluster says of a VM that is not as it should be."""
        front = self.cluster.bootstraps[0]
        for what, path in (
            ("VM", f"/v1/vms/{name}"),
            ("task", f"/v1/tasks/{self.tasks[name]}"),
            ("events", "/v1/events?limit=1000"),
        ):
            told = await self.get(front, path)
            if what == "events":
                told = [event for event in told or () if name in json.dumps(event)]
            print(f"{name}: {what}: {json.dumps(told)}", flush=True)

    async def verdict(self) -> dict[str, int]:
        """What became of every acknowledged VM."""
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            vms = await self.get(self.cluster.bootstraps[0], "/v1/vms")
            count = Counter(vm["name"] for vm in vms or () if vm["state"] == "running")
            lost = [name for name in self.acknowledged if not count[name]]
            doubled = [name for name, times in count.items() if times > 1]
            if not (lost or doubled) or time.monotonic() > deadline_s:
                for name in (lost + doubled)[:10]:
                    await self.tell_of(name)
                return {
                    "acknowledged": len(self.acknowledged),
                    "lost": len(lost),
                    "doubled": len(doubled),
                }
            await asyncio.sleep(1.0)


@asynccontextmanager
async def built(profile: Profile, hosts: int, seed: int) -> AsyncGenerator[Run, None]:
    """The cluster of a profile, whole."""
    with tempfile.TemporaryDirectory(prefix="snooze-failover-") as folder:
        async with zookeeper_ensemble(3, tick_ms=profile.tick_ms) as ensemble:
            quiet: Tables = {"log": {"level": "warning"}, **profile.settings}
            with DaemonCluster(Path(folder), ensemble.hosts, defaults=quiet) as cluster:
                fronts = [cluster.bootstrap(f"front{n}") for n in (1, 2)]
                for number in (1, 2, 3):
                    cluster.manager(f"gm{number}")
                for daemon in cluster:
                    daemon.start()
                process = _hosts(hosts, [f.address for f in fronts], folder, profile.settings)
                try:
                    async with aiohttp.ClientSession() as session:
                        yield Run(cluster, session, random.Random(seed))
                finally:
                    process.kill()
                    process.wait()


def _hosts(
    count: int, fronts: Sequence[str], folder: str, settings: Mapping[str, object]
) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "benchmarks._submission_hosts", str(count), "simulated"),
            *(",".join(fronts), folder, json.dumps(settings)),
        ],
        stdout=subprocess.DEVNULL,
    )


async def measure(name: str, rounds: int, hosts: int, seed: int) -> dict[str, Any]:
    """All rounds of one profile."""
    async with built(PROFILES[name], hosts, seed) as run:
        leader = await run.whole(hosts)
        load = asyncio.create_task(run.load())
        for number in range(1, rounds + 1):
            await run.leader_dies(leader)
            leader = await run.whole(hosts)
            await run.leader_freezes(leader)
            leader = await run.whole(hosts)
            await run.leader_stops(leader)
            await run.whole(hosts)
            await run.manager_dies(silently=False)
            await run.whole(hosts)
            await run.manager_dies(silently=True)
            leader = await run.whole(hosts)
            print(
                f"{name} {number}/{rounds}: served {run.served_s[-1]:.2f} s, "
                f"running {run.running_s[-1]:.2f} s, frozen {run.frozen_s[-1]:.2f} s, "
                f"clean stop {run.clean_s[-1]:.2f} s, "
                f"re-attached {run.reattached_s[-1]:.2f} s, silent {run.silent_s[-1]:.2f} s",
                flush=True,
            )
            if load.done():
                load.result()
        load.cancel()
        await asyncio.wait([load])
        verdict = await run.verdict()
    figures: dict[str, Any] = {"profile": name, "rounds": rounds, "hosts": hosts, **verdict}
    for what in ("served", "running", "frozen", "clean", "reattached", "silent"):
        values = np.array(getattr(run, f"{what}_s"))
        for share in (50, 99):
            figures[f"{what}_p{share}_s"] = float(np.percentile(values, share))
        figures[f"{what}_max_s"] = float(values.max())
    return figures


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks failover", description=__doc__)
    parser.add_argument("--profile", default="fast,default,snooze")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--hosts", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output")
    options = parser.parse_args(arguments)
    results = [
        asyncio.run(measure(name, options.rounds, options.hosts, options.seed))
        for name in options.profile.split(",")
    ]
    print(f"seed {options.seed}; {_report.machine()}")
    columns = ["figure", *(result["profile"] for result in results)]
    keys = [key for key in results[0] if key != "profile"]
    print(_report.table(columns, [[key, *(r[key] for r in results)] for key in keys]))
    _report.write(options.output, {"profiles": results})
    return 1 if any(result["lost"] or result["doubled"] for result in results) else 0
