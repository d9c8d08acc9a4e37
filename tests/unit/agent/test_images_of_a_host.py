# pyright: reportPrivateUsage=false
"""Images on storage that does not answer: the host is described, and joins, nevertheless."""

import asyncio
import threading
from pathlib import Path

import pytest

from snooze.common.api import ImageView
from snooze.common.config import parse
from snooze.common.settings_localcontroller import LocalControllerSettings
from snooze.localcontroller.hypervisor import libvirt_driver
from snooze.localcontroller.hypervisor.libvirt_driver import LibvirtHypervisor
from snooze.localcontroller.images import Image
from snooze.localcontroller.service import LocalController

SHOWN = (ImageView("a.qcow2", "qcow2", 2, 1),)


async def test_a_host_whose_storage_hangs_is_described_nevertheless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables: dict[str, object] = {
        "network": {"advertised_address": "127.0.0.1"},
        "hypervisor": {"uri": "test:///default"},
        "images": {"directories": (str(tmp_path),)},
        "lease": {"enabled": "never"},
    }
    daemon = LocalController(parse("", LocalControllerSettings, overrides=tables), "id")
    hypervisor = daemon.hypervisor
    assert isinstance(hypervisor, LibvirtHypervisor)
    answers = threading.Event()
    answers.set()
    found = [Image("a.qcow2", "/a.qcow2", "qcow2", 2, 1)]

    def listed() -> list[Image]:
        answers.wait(60)
        return list(found)

    monkeypatch.setattr(hypervisor.images, "list_images", listed)
    await hypervisor.open()
    try:
        async with asyncio.timeout(20):
            assert (await daemon._describe()).images == SHOWN
            monkeypatch.setattr(libvirt_driver, "IMAGES_S", 0.01)
            found.append(Image("b", "/b", "raw", 1, 1))
            answers.clear()
            for _ in range(20):
                assert (await daemon._describe()).images == SHOWN, "as it was"
            monkeypatch.setattr(libvirt_driver, "IMAGES_S", 10.0)
            answers.set()
            while len((await daemon._describe()).images) < 2:  # noqa: ASYNC110 (no event)
                await asyncio.sleep(0.01)
    finally:
        answers.set()
        await hypervisor.close()
