"""The servers of the lab leave nothing behind and say what is missing."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from snooze.common.errors import ExecutionError, PreconditionError
from snooze.lab import zookeeper
from snooze.lab.recorder import PATIENCE_S
from snooze.lab.zookeeper import ZooKeeperServer, require_zookeeper

ROOT = Path(__file__).parents[3]

PROGRAM = """
import asyncio, os, sys
from snooze.lab.zookeeper import zookeeper_server

async def main():
    async with zookeeper_server() as server:
        print(server.pid, flush=True)
        if sys.argv[1] == "exit":
            sys.exit()
        os.kill(os.getpid(), 9)

asyncio.run(main())
"""


@pytest.mark.parametrize("end", ["exit", "be killed"])
def test_servers_end_with_the_process_that_started_them(end: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, end],
        env={**os.environ, "PYTHONPATH": str(ROOT / "typings")},
        stdout=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    assert done.returncode == (0 if end == "exit" else -9)
    deadline_s = time.monotonic() + PATIENCE_S
    while is_alive(int(done.stdout)):  # Killed, but perhaps not dead yet.
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(zookeeper, "_JAR", tmp_path / "missing.jar")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        PreconditionError, match=r"apt-get install .* default-jre-headless libzookeeper-java$"
    ):
        require_zookeeper()


async def test_a_server_that_cannot_start_shows_its_log(tmp_path: Path) -> None:
    server = ZooKeeperServer(tmp_path / "1", 0, ["tickTime=nonsense"])
    with pytest.raises(ExecutionError, match="nonsense"):
        await server.start()
    server.end()
    with pytest.raises(PreconditionError, match="is down"):
        server.pause()
