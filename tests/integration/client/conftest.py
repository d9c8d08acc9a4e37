"""A living cluster with an image, shared by the tests of this folder."""

import asyncio
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from snooze.client.allinone import Options, cluster

FORM_TIMEOUT_S = 90


@dataclass(frozen=True)
class LiveCluster:
    """Where it is."""

    url: str


@pytest.fixture(scope="package")
def live_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveCluster]:
    """Two managers and three hosts on libvirt's test driver, and one master image."""
    images = tmp_path_factory.mktemp("images")
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", str(images / "tiny.qcow2"), "16M"],
        check=True,
        timeout=60,
    )
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="live-cluster")
    thread.start()
    stopping = asyncio.Event()

    up: list[str] = []
    formed = threading.Event()

    async def keep() -> None:
        try:
            options = Options(managers=2, hosts=3, port=0, images=(str(images),))
            async with cluster(options) as running:
                up.append(running.url)
                formed.set()
                await stopping.wait()
        finally:
            formed.set()

    keeping = asyncio.run_coroutine_threadsafe(keep(), loop)
    try:
        assert formed.wait(FORM_TIMEOUT_S)
        if not up:
            keeping.result(timeout=0)
        yield LiveCluster(up[0])
    finally:
        loop.call_soon_threadsafe(stopping.set)
        try:
            keeping.result(timeout=FORM_TIMEOUT_S)
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()
