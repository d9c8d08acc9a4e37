"""A fake cluster, and the command run against it in this process."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from snooze.client.command import app
from snooze.client.fake_cluster import FakeCluster


@pytest.fixture
def fake() -> Iterator[FakeCluster]:
    with FakeCluster() as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever the person who runs the tests has set does not count."""
    monkeypatch.delenv("SNOOZE_URL", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def run(fake: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """``run("list", "-o", "json")`` against the fake cluster."""
    monkeypatch.setenv("SNOOZE_URL", fake.url)
    runner = CliRunner()

    def invoke(*arguments: str, text: str | None = None) -> Result:
        return runner.invoke(app, list(arguments), input=text)

    return invoke


@pytest.fixture
def closed_url() -> str:
    """An address where nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"
