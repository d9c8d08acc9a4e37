"""A living all-in-one cluster, shared by every test that only talks to one."""

import asyncio
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from snooze.client.allinone import Options, cluster

FORM_TIMEOUT_S = 90
MANAGERS, HOSTS = 2, 3
PRINTED_PORT = 5000
"""Of the bootstrap node in Snooze's own documentation; the leader has the next one."""


@dataclass(frozen=True)
class LiveCluster:
    """Where it is."""

    url: str
    """Of the bootstrap node."""
    managers: tuple[str, ...]
    """URLs of the group managers; the first leads."""


@pytest.fixture(scope="session")
def live_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveCluster]:
    """Two managers and three hosts on libvirt's test driver, with the master image ``tiny``.

    On the ports of Snooze's documentation (5000, 5001 and so on) where these are free.
    """
    images = tmp_path_factory.mktemp("images")
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", str(images / "tiny.qcow2"), "16M"],
        check=True,
        timeout=60,
    )
    ports = range(PRINTED_PORT, PRINTED_PORT + 1 + MANAGERS + HOSTS)
    options = Options(
        managers=MANAGERS,
        hosts=HOSTS,
        port=PRINTED_PORT if all(_is_free(port) for port in ports) else 0,
        images=(str(images),),
    )
    with ExitStack() as stack:
        yield _start(options, stack)


def _start(options: Options, stack: ExitStack) -> LiveCluster:
    """Run the cluster in a loop and a thread of its own until the stack is closed."""
    loop = asyncio.new_event_loop()
    stack.callback(loop.close)
    thread = threading.Thread(target=loop.run_forever, name="live-cluster")
    thread.start()
    stack.callback(thread.join)
    stack.callback(lambda: loop.call_soon_threadsafe(loop.stop))
    stopping = asyncio.Event()
    formed = threading.Event()
    up: list[LiveCluster] = []

    async def keep() -> None:
        try:
            async with cluster(options) as running:
                managers = sorted(running.managers, key=lambda manager: manager.leading is None)
                up.append(
                    LiveCluster(
                        running.url,
                        tuple(f"http://{manager.identity.control}" for manager in managers),
                    )
                )
                formed.set()
                await stopping.wait()
        finally:
            formed.set()

    keeping = asyncio.run_coroutine_threadsafe(keep(), loop)
    stack.callback(lambda: keeping.result(timeout=FORM_TIMEOUT_S))
    stack.callback(lambda: loop.call_soon_threadsafe(stopping.set))
    assert formed.wait(FORM_TIMEOUT_S)
    if not up:
        keeping.result(timeout=0)
    return up[0]


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
