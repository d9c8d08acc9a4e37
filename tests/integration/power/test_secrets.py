"""Separate daemons that log all they can: a BMC's password travels, and is shown nowhere."""

import asyncio
import socket
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.error import HTTPError

import pytest

from snooze.client.sdk import Snooze
from snooze.lab.daemons import DaemonCluster
from snooze.lab.zookeeper import zookeeper_server

SECRET = "Geheim-4711"
RMCP = bytes.fromhex("0600ff07")

CALLS = (
    "/v1/cluster",
    "/v1/hosts",
    "/v1/hosts/h1",
    "/v1/managers",
    "/v1/hierarchy",
    "/v1/energy",
    "/v1/decisions",
    "/v1/recovery",
    "/metrics",
    "/ready",
    "/bootstrap?getCompleteHierarchy",
    "/bootstrap?getGroupLeaderDescription",
    "/groupmanager?getGroupManagerDescription",
    "/groupmanager?getLocalControllerList",
)


@pytest.fixture
def bmc() -> Iterator[socket.socket]:
    """A BMC that never answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.settimeout(90)
        yield deaf


@pytest.fixture
def cluster(tmp_path: Path, bmc: socket.socket) -> Iterator[DaemonCluster]:
    options = f"-I lanplus -H 127.0.0.1 -p {bmc.getsockname()[1]} -U admin -P {SECRET}"
    with ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner())
        server = zookeeper_server(tick_ms=500)
        zookeeper = runner.run(server.__aenter__())
        stack.callback(lambda: runner.run(server.__aexit__(None, None, None)))
        defaults: dict[str, dict[str, object]] = {
            "log": {"level": "debug"},
            "coordination": {"session_timeout_s": 1.5},
        }
        daemons = stack.enter_context(DaemonCluster(tmp_path, zookeeper.hosts, defaults=defaults))
        daemons.bootstrap("front")
        daemons.manager("gm1", {"recovery": {"fence_after_s": 0.1, "patience_s": 1.0}})
        daemons.host(
            "h1",
            {
                "hypervisor": {"driver": "simulated"},
                "wakeup": {"driver": "IPMI", "options": options},
                "power": {"driver": "test"},
            },
        )
        yield daemons


def read(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=20) as reply:
            return str(reply.read(), errors="replace")
    except HTTPError as error:
        return str(error.read(), errors="replace")


def test_a_password_is_shown_by_no_call_and_in_no_log(
    cluster: DaemonCluster, bmc: socket.socket
) -> None:
    for daemon in cluster:
        daemon.start()
    for daemon in cluster:
        daemon.wait_ready()
    front = cluster.bootstraps[0].url
    with Snooze([front]) as client:
        assert [host.hostname for host in client.hosts()] == ["h1"]
    shown = {path: read(front + path) for path in CALLS}
    shown |= {f"gm {path}": read(cluster.managers[0].url + path) for path in CALLS}
    shown["host"] = read(cluster.hosts[0].url + "/metrics")
    # the options are there, so that the test looks in the right places
    assert "-U admin -P ***" in shown["/bootstrap?getCompleteHierarchy"]
    assert bmc.recv(4096)[:4] == RMCP  # the leader reads power, by the host's own description
    cluster.hosts[0].kill()
    time.sleep(8)  # longer than it takes to find that the BMC is silent, and to tell
    shown |= {f"after {path}": read(front + path) for path in CALLS}
    shown |= {f"log of {daemon.name}": daemon.log() for daemon in cluster}
    assert [where for where, text in shown.items() if SECRET in text] == []
