"""``snooze record`` on a real cluster: back up, lose everything that ZooKeeper had, restore."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from snooze.client.sdk import Snooze, VmRequest, VmState
from snooze.common.coordination.port import (
    CommitConflict,
    ConflictReason,
    Delete,
    wait_connected,
)
from snooze.common.coordination.zookeeper import ZooKeeperCoordinator
from snooze.lab.daemons import DaemonCluster
from snooze.lab.zookeeper import ZooKeeperServer, zookeeper_server

VMS = 12
DOMAIN = (
    "<domain type='kvm'><name>{name}</name><memory unit='KiB'>65536</memory>"
    "<vcpu>1</vcpu><os><type>hvm</type></os></domain>"
)
QUICK: dict[str, dict[str, object]] = {
    "coordination": {"session_timeout_s": 2.0},
    "heartbeat": {"interval_s": 0.3, "timeout_s": 1.5},
    "join": {"retry_min_s": 0.05, "retry_max_s": 0.5},
    "addresses": {"subnets": ("192.168.200.0/24",)},
    "hypervisor": {"driver": "simulated"},
    "capacity": {"reserved_memory_kib": 0.0},
}


@pytest.fixture
def server() -> Iterator[ZooKeeperServer]:
    context = zookeeper_server(tick_ms=500)
    with asyncio.Runner() as runner:
        yield runner.run(context.__aenter__())
        runner.run(context.__aexit__(None, None, None))


def record(*words: str) -> "subprocess.CompletedProcess[str]":
    """``snooze record ...`` in a process of its own."""
    typings = Path(__file__).resolve().parents[3] / "typings"
    return subprocess.run(
        [sys.executable, "-m", "snooze.client.command", "record", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(typings)},
        timeout=120,
        check=False,
    )


async def wipe(hosts: str) -> None:
    """Delete everything, as someone at the wrong prompt does."""
    client = ZooKeeperCoordinator(hosts, session_timeout_s=5.0)

    async def delete(path: str) -> None:
        try:
            await client.commit([Delete(path)])
        except CommitConflict as conflict:  # The sessions of the dead end meanwhile.
            if conflict.reason is not ConflictReason.MISSING:
                raise

    async def clear(path: str) -> None:
        for name in await client.children(path):
            await clear(f"{path}/{name}")
            await delete(f"{path}/{name}")

    await client.start()
    try:
        await wait_connected(client, 60.0)
        for root in ("hosts", "vms", "tasks", "energy", "candidates", "managers"):
            await clear(f"/{root}")
        for path in ("/epoch", "/layout", "/leader", "/autonomy", "/lease", "/question"):
            await delete(path)
    finally:  # Its threads would trouble the tests that come after a failure.
        await client.close()


def test_a_wiped_store_is_restored_and_every_vm_is_known(
    server: ZooKeeperServer, tmp_path: Path
) -> None:
    backup = tmp_path / "backup"
    with ExitStack() as stack:
        cluster = stack.enter_context(DaemonCluster(tmp_path, server.hosts, defaults=QUICK))
        front = cluster.bootstrap("front")
        managers = [cluster.manager("gm1"), cluster.manager("gm2")]
        host = cluster.host("host")
        for daemon in cluster:
            daemon.start()
        for daemon in cluster:
            daemon.wait_ready()
        settings = str(managers[0].folder / "settings.toml")
        with Snooze([front.url], timeout_s=60.0) as client:
            requests = [VmRequest(libvirt_xml=DOMAIN.format(name=f"vm{n}")) for n in range(VMS)]
            task = client.wait(client.submit(requests), check=True)
            before = {vm.name: (vm.vm_id, vm.ip_address, vm.host_id) for vm in client.vms()}
            assert len(before) == VMS

            done = record("export", str(backup), "-c", settings)
            assert done.returncode == 0, done.stderr
            checked = record("check", "-c", settings, "--output", "json")
            assert checked.returncode == 0, checked.stdout + checked.stderr
            assert json.loads(checked.stdout)["findings"] == []
            refused = record("import", str(backup), "--zookeeper", server.hosts)
            assert refused.returncode == 5
            assert "--force" in refused.stderr

            host.kill()  # What it had is gone with it: only the record can know the VMs.
            for manager in managers:
                manager.kill()
            asyncio.run(wipe(server.hosts))
            done = record("import", str(backup), "--zookeeper", server.hosts)
            assert done.returncode == 0, done.stderr
            assert f"{VMS}" in record("check", "--zookeeper", server.hosts).stdout

            for manager in managers:
                manager.start()
            for manager in managers:
                manager.wait_ready()
            after = {vm.name: (vm.vm_id, vm.ip_address, vm.host_id) for vm in client.vms()}
            assert after == before
            assert client.task(task.id).state == task.state
            assert all(vm.state is not VmState.PENDING for vm in client.vms())


def test_what_cannot_be_done_is_said_in_one_line(server: ZooKeeperServer, tmp_path: Path) -> None:
    nonsense = tmp_path / "nonsense"
    nonsense.write_bytes(b"SNOOZE-RECORD-1\nnot a stream")
    for words, code, what in (
        (("check",), 2, "say where the store is"),
        (("import", str(nonsense), "--zookeeper", server.hosts), 2, "nothing of it was used"),
        (("import", str(tmp_path / "none"), "--zookeeper", server.hosts), 2, "No such file"),
        (("export", "/proc/none/file", "--zookeeper", server.hosts), 2, "No such file"),
        (("check", "--zookeeper", "127.0.0.1:1"), 9, "127.0.0.1:1: no session with the store"),
    ):
        done = record(*words)
        assert done.returncode == code, (words, done.stdout, done.stderr)
        assert what in done.stderr, (words, done.stderr)
        assert "Traceback" not in done.stderr
