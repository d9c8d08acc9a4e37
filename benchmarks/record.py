"""The record: its size, its writes, and how soon a new leader has read it.

Writes the VMs and tasks of a large cluster into a real ZooKeeper through the leader's own journal,
as submissions and starts do; then lets new leaders take over: from this layout, and
from the older one that it moves.

``python -m benchmarks record [--vms 100000] [--per-task 10] [--heap-mib 1000]``
"""

import argparse
import asyncio
import contextlib
import random
import subprocess
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import psutil

from benchmarks import _report
from snooze.client.demo_template import SEED_TEMPLATE
from snooze.common import record_layout, records
from snooze.common.api import TaskState
from snooze.common.clock import SYSTEM_CLOCK
from snooze.common.config import parse
from snooze.common.coordination.leadership import EPOCH, epoch_guard
from snooze.common.coordination.port import Coordinator, Create, Delete, wait_connected
from snooze.common.coordination.zookeeper import ZooKeeperCoordinator
from snooze.common.resources import Capacity
from snooze.common.settings_groupmanager import GroupManagerSettings
from snooze.common.vm_lifecycle import VmState
from snooze.common.wire import Address, ManagerDescription
from snooze.groupmanager.leader.journal import Journal
from snooze.groupmanager.leader.record_writes import new_task, updates
from snooze.groupmanager.leader.service import LeaderService
from snooze.groupmanager.leader.submission_events import RecordTask, UpdateRecords
from snooze.lab.zookeeper import ZooKeeperServer, zookeeper_server

HOSTS = 1000
FENCE = epoch_guard(1)
ZOOKEEPER_JAR = "/usr/share/java/zookeeper.jar"


def vm_of(number: int, task_id: str, chance: random.Random) -> records.VmRecord:
    """A VM as clients of the original ask for one: 1.3 kB of template."""
    name = f"customer-{number % 97:02}-web-{number}"
    xml = SEED_TEMPLATE.replace("debian1", name).replace("path_to_disk_image", f"/srv/{name}.qcow2")
    return records.VmRecord(
        vm_id=uuid.UUID(int=chance.getrandbits(128)).hex,
        name=name,
        demand=Capacity(float(chance.choice((1, 2, 4))), float(2**20 * chance.choice((1, 2, 4)))),
        state=VmState.PENDING,
        task_id=task_id,
        template=records.pack_template(xml),
        ip_address=f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}",
        mac_address=f"54:56:0a:00:{number >> 8 & 255:02x}:{number & 255:02x}",
        virtual_cluster=f"cluster-{number // 10}",
    )


def task_of(task_id: str, vms: Sequence[records.VmRecord], state: TaskState) -> records.TaskRecord:
    """The task of these VMs."""
    return records.TaskRecord(
        task_id,
        state,
        1_700_000_000_000,
        tuple(
            records.TaskVmRecord(vm.vm_id, vm.name, vm.state, vm.host_id, vm.ip_address)
            for vm in vms
        ),
        0 if state is TaskState.PENDING else 1_700_000_001_000,
        f"key-{task_id}",
        vms[0].virtual_cluster,
    )


@asynccontextmanager
async def client_of(server: ZooKeeperServer, session_s: float) -> AsyncGenerator[Coordinator]:
    client = ZooKeeperCoordinator(server.hosts, session_timeout_s=session_s)
    await client.start()
    await wait_connected(client, 30.0)
    try:
        yield client
    finally:
        await client.close()


class Writer:
    """The leader's journal, and what went through it."""

    def __init__(self, client: Coordinator) -> None:
        self.journal = Journal(client, FENCE, lambda: None)
        self.journal.start()

    async def write(self, operations: Sequence[Any]) -> None:
        """Write, and wait until it is written."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def written(error: object) -> None:
            if error is not None:
                raise SystemExit(f"not written: {error}")
            done.set_result(None)

        self.journal.write(operations, written)
        await done


async def fill(client: Coordinator, options: argparse.Namespace) -> dict[str, Any]:
    """All VMs: submitted, then running; figures of that."""
    chance = random.Random(options.seed)
    writer = Writer(client)
    started_s = time.monotonic()
    vm_bytes = task_bytes = operations = 0
    for begin in range(0, options.vms, options.per_task):
        task_id = str(uuid.UUID(int=chance.getrandbits(128)))
        count = min(options.per_task, options.vms - begin)
        vms = [vm_of(begin + n, task_id, chance) for n in range(count)]
        task = task_of(task_id, vms, TaskState.PENDING)
        submitted = new_task(RecordTask(task, vms))
        running = [
            msgspec.structs.replace(
                vm,
                state=VmState.RUNNING,
                host_id=str(uuid.UUID(int=chance.randrange(HOSTS))),
                manager_id=str(uuid.UUID(int=chance.randrange(10))),
            )
            for vm in vms
        ]
        ended = task_of(task_id, running, TaskState.DONE)
        started = updates(UpdateRecords(vms=running, tasks=[ended]))
        vm_bytes += sum(len(records.encode(vm)) for vm in running)
        task_bytes += len(records.encode(ended))
        operations += len(submitted) + len(started)
        await asyncio.gather(writer.write(submitted), writer.write(started))
    hosts = [
        records.HostRecord(
            str(uuid.UUID(int=n)),
            f"host{n:04}",
            Address("10.0.0.1", 5002),
            str(uuid.UUID(int=n % 10)),
            n,
        )
        for n in range(HOSTS)
    ]
    for begin in range(0, HOSTS, 500):
        await writer.write(
            [
                Create(record_layout.host_path(h.host_id), records.encode(h))
                for h in hosts[begin : begin + 500]
            ]
        )
    took_s = time.monotonic() - started_s
    await writer.journal.close(10.0)
    tasks = -(-options.vms // options.per_task)
    return {
        "vm_value_bytes": vm_bytes / options.vms,
        "task_value_bytes": task_bytes / tasks,
        "task_value_bytes_per_vm": task_bytes / options.vms,
        "operations_per_vm_to_running": operations / options.vms,
        "transactions": writer.journal.transactions,
        "bytes_written_per_vm": writer.journal.bytes_written / options.vms,
        "vms_per_s_written": options.vms / took_s,
    }


async def take_over(client: Coordinator) -> dict[str, float]:
    """A new leader reads it all: how long, and the longest time the event loop stood still."""
    settings = parse("", GroupManagerSettings)
    nowhere = Address("", 0)
    leader = LeaderService(
        settings,
        ManagerDescription("gm", "gm", nowhere, nowhere),
        1,
        client,
        FENCE,
        SYSTEM_CLOCK,
        is_leader=lambda: True,
        step_down=lambda: None,
    )
    stalls = [0.0]
    before = psutil.Process().memory_info().rss

    async def watch() -> None:
        while True:
            seen_s = time.monotonic()
            await asyncio.sleep(0.01)
            stalls.append(time.monotonic() - seen_s - 0.01)

    watcher = asyncio.create_task(watch())
    started_s = time.monotonic()
    await leader.start()
    took_s = time.monotonic() - started_s
    await asyncio.sleep(2.0)
    watcher.cancel()
    vms = len(leader.registry.vms)
    await leader.close(flush=False)
    return {
        "vms": vms,
        "take_over_s": took_s,
        "longest_stall_s": max(stalls),
        "leader_memory_mib": (psutil.Process().memory_info().rss - before) / 2**20,
    }


async def make_old(client: Coordinator) -> None:
    """Put every record where layout 1 had it."""
    for root in record_layout.SHARDED:
        paths = await record_layout.paths_of(client, root)
        for begin in range(0, len(paths), 300):
            batch = paths[begin : begin + 300]
            entries = await client.read_many(batch)
            await client.commit(
                [
                    operation
                    for path in batch
                    for operation in (
                        Delete(path),
                        Create(f"{root}/{path.rpartition('/')[2]}", entries[path].data),
                    )
                ]
            )
        folders = record_layout.shards(root)
        await client.commit([Delete(folder) for folder in folders])
    await client.commit([Delete(record_layout.LAYOUT_PATH)])


def listed(server: ZooKeeperServer, path: str) -> bool:
    """Whether ZooKeeper's own command line tool, with its default limits, can list a path."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        done = subprocess.run(
            [
                "java",
                "-cp",
                f"{ZOOKEEPER_JAR}:/usr/share/java/jline2.jar",
                "org.apache.zookeeper.ZooKeeperMain",
                "-server",
                server.hosts,
                "ls",
                path,
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return "ConnectionLoss" not in done.stderr and "[" in done.stdout
    return False


async def store_figures(server: ZooKeeperServer) -> dict[str, Any]:
    """What the server says of itself."""
    lines = [line.split("\t") for line in (await server.ask("mntr", 30.0)).splitlines()]
    told = {words[0]: words[1] for words in lines if len(words) == 2}
    return {
        "nodes": int(told.get("zk_znode_count", 0)),
        "data_mib": int(told.get("zk_approximate_data_size", 0)) / 2**20,
        "resident_mib": psutil.Process(server.pid).memory_info().rss / 2**20,
    }


async def run(options: argparse.Namespace) -> dict[str, Any]:
    result: dict[str, Any] = {"vms": options.vms, "per_task": options.per_task}
    async with zookeeper_server(tick_ms=2000, heap_mib=options.heap_mib, fsync=True) as server:
        async with client_of(server, 10.0) as client:
            await client.commit([Create(EPOCH)])
            await record_layout.prepare(client, FENCE)
            result |= await fill(client, options)
            result |= {f"store_{k}": v for k, v in (await store_figures(server)).items()}
            lists = await client.children_of_many(record_layout.shards(records.VMS))
            result["longest_list_bytes"] = max(
                sum(len(name) + 4 for name in names) for names in lists.values()
            )
        result["zkcli_lists_a_shard"] = listed(server, f"/snooze{records.VMS}/00")
        async with client_of(server, 4.0) as client:
            result |= await take_over(client)
        print(f"so far: {result}", flush=True)
        async with client_of(server, 20.0) as client:
            await make_old(client)
            result["zkcli_lists_old_layout"] = listed(server, f"/snooze{records.VMS}")
            started_s = time.monotonic()
            moved = await record_layout.prepare(client, FENCE)
            result |= {"moved": moved, "move_s": time.monotonic() - started_s}
            again = await take_over(client)
            result["take_over_after_move_s"] = again["take_over_s"]
            if again["vms"] != options.vms:
                raise SystemExit(f"{again['vms']} of {options.vms} VMs after the move")
    return result


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks record", description=__doc__)
    parser.add_argument("--vms", type=int, default=100_000)
    parser.add_argument("--per-task", type=int, default=10)
    parser.add_argument("--heap-mib", type=int, default=1000, help="ZooKeeper's own default: 1000")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    result = asyncio.run(run(options))
    print(f"seed {options.seed}; {_report.machine()}")
    print(_report.table(["figure", "value"], [[k, v] for k, v in result.items()]))
    _report.write(str(options.output) if options.output else None, result)
    return 0
