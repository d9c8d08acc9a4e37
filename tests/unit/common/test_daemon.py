# pyright: reportPrivateUsage=false
"""The main function of a daemon: what is left of one that cannot start."""

import asyncio
import gc
import socket

import pytest

from snooze.bootstrap.service import Bootstrap
from snooze.common import daemon
from snooze.common.config import parse
from snooze.common.coordination.memory import MemoryCoordinator, MemoryStore
from snooze.common.settings import BootstrapSettings
from snooze.common.settings_groupmanager import GroupManagerSettings
from snooze.common.settings_localcontroller import LocalControllerSettings
from snooze.groupmanager.service import GroupManager
from snooze.localcontroller.service import LocalController


@pytest.mark.parametrize("role", ["bootstrap", "groupmanager", "localcontroller"])
async def test_a_daemon_whose_port_is_taken_leaves_nothing_open(
    role: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A session that is not closed would be a warning, which is an error here."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        network = {
            "listen_address": "127.0.0.1",
            "advertised_address": "127.0.0.1",
            "control_port": taken.getsockname()[1],
        }

        def make() -> daemon.DaemonService:
            coordinator = MemoryCoordinator(MemoryStore())
            match role:
                case "bootstrap":
                    settings = parse("", BootstrapSettings, overrides={"network": network})
                    return Bootstrap(settings, coordinator, "node")
                case "groupmanager":
                    tables = {"network": {**network, "monitoring_port": 0}}
                    ours = parse("", GroupManagerSettings, overrides=tables)
                    return GroupManager(ours, coordinator, "node")
                case _:
                    tables = {"network": network, "hypervisor": {"driver": "simulated"}}
                    host = parse("", LocalControllerSettings, overrides=tables)
                    return LocalController(host, "node")

        assert await daemon._serve(make, role) == 1
    assert "in use" in capsys.readouterr().err
    await asyncio.sleep(0)
    gc.collect()
