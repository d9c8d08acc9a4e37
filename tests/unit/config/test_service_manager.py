"""What systemd is told, on a real socket."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from snooze.common.service_manager import notify

Systemd = tuple[socket.socket, dict[str, str]]


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Systemd]:
    name = str(tmp_path / "notify") if request.param == "path" else f"@snooze-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(name.replace("@", "\0", 1))
        listener.setblocking(False)
        yield listener, {"NOTIFY_SOCKET": name}


def test_what_is_sent(systemd: Systemd) -> None:
    listener, environment = systemd
    assert notify("READY=1\nSTATUS=serving", environment=environment)
    assert notify("STOPPING=1", environment=environment)
    assert listener.recv(4096) == b"READY=1\nSTATUS=serving"
    assert listener.recv(4096) == b"STOPPING=1"


@pytest.mark.parametrize("name", ["", "relative", "/nowhere/at/all", "/" + "x" * 500])
def test_nobody_listens(name: str) -> None:
    assert not notify("READY=1", environment={"NOTIFY_SOCKET": name})


def test_nobody_asked() -> None:
    assert not notify("READY=1", environment={})


def test_a_systemd_that_does_not_read_blocks_nobody(tmp_path: Path) -> None:
    name = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(name)
        environment = {"NOTIFY_SOCKET": name}
        while notify("STATUS=" + "x" * 1000, environment=environment):
            pass
