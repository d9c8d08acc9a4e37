"""Calls that no client of ours makes: they are the caller's mistake, and no line in our log."""

from pathlib import Path

import aiohttp
import msgspec
import pytest

from snooze.common.coordination.memory import MemoryStore
from tests.unit.leader.test_taking_over import leads, manager_of


async def test_what_is_no_request_is_refused_without_a_traceback(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        manager_of(MemoryStore(), "gm1", tmp_path) as manager,
        aiohttp.ClientSession(f"http://{manager.identity.control}") as session,
    ):
        await leads(manager)
        nested = b"\x81\xa1x" + b"\x91" * 100_000 + b"\xc0"
        no_text = msgspec.msgpack.encode({"host": {"host_id": "a"}}).replace(b"\xa1a", b"\xa1\xff")
        for body in (nested, no_text, b"", b"x"):
            async with session.post("/internal/assignment", data=body) as reply:
                assert reply.status == 422
        headers = {"Accept": "text/event-stream", "Last-Event-ID": "9" * 5000}
        async with session.get("/v1/events", headers=headers) as reply:
            assert reply.status == 200
            assert await reply.content.readline() == b": following\n"
    assert "failed" not in caplog.text
