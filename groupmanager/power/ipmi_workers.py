"""Processes that speak IPMI: started on demand, bounded in number, killed when they hang.

Why processes and not a thread: see ``ipmi_worker``. Why several: a BMC that is silent keeps its
worker busy for seconds, and hosts die in groups. One request at a time each; one that failed is
replaced by a new one; one that is idle for ``IDLE_S`` ends.
"""

import asyncio
import contextlib
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import msgspec

from snooze.common.errors import (
    ExecutionError,
    PreconditionError,
    RemoteError,
    RemoteTimeout,
    SnoozeError,
    TooBusy,
)
from snooze.common.transport.delivery import not_sent

IDLE_S: Final = 30.0
MAX_REQUESTS: Final = 500  # of one process: what pyghmi forgets to forget ends with it
GRACE_S: Final = 2.0  # A process watches its time itself; later it is killed.

WORKER: Final = Path(__file__).with_name("ipmi_worker.py")


class IpmiRequest(msgspec.Struct, frozen=True):
    """One order to one BMC; ``op`` is ``state``, ``on``, ``off``, ``shutdown`` or ``power_w``."""

    op: str
    host: str
    port: int
    user: str
    password: str
    kg: str | None
    kg_is_hex: bool
    privilege: int
    poll_s: float
    limit_s: float

    def __repr__(self) -> str:
        return f"IpmiRequest({self.op!r}, {self.host!r})"


class IpmiReply(msgspec.Struct, frozen=True):
    """What came of it; ``is_spent``: the process ends."""

    is_spent: bool = True
    is_on: bool | None = None
    power_w: float | None = None
    error: str = ""
    message: str = ""


class _Worker:
    """One process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.requests = 0

    @classmethod
    async def start(cls) -> "_Worker":
        return cls(
            await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                str(WORKER),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                start_new_session=True,
            )
        )

    @property
    def is_fresh(self) -> bool:
        return self._process.returncode is None and self.requests < MAX_REQUESTS

    async def ask(self, request: IpmiRequest) -> IpmiReply:
        """The answer.

        Raises:
            RemoteError: the process ended, or talked nonsense.
        """
        self.requests += 1
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("a worker without pipes")
        try:
            stdin.write(msgspec.json.encode(request) + b"\n")
            await stdin.drain()
            return msgspec.json.decode(await stdout.readuntil(b"\n"), type=IpmiReply)
        except (OSError, EOFError, asyncio.LimitOverrunError, msgspec.MsgspecError) as error:
            raise RemoteError(
                f"the process that speaks IPMI broke off ({type(error).__name__})"
            ) from None

    async def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()


class IpmiWorkers:
    """At most ``most`` processes, shared by all IPMI controllers of a daemon."""

    def __init__(self, most: int = 8) -> None:
        self._free: list[_Worker] = []
        self._slots = asyncio.Semaphore(most)
        # watts are read all the time: silent BMCs must not take every process from a fencing
        self._reading = asyncio.Semaphore(max(1, most // 2))
        self._idle: asyncio.TimerHandle | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._closed = False

    async def ask(self, request: IpmiRequest) -> IpmiReply:
        """Have ``request`` done, within its ``limit_s`` and the wait for a free process.

        Raises:
            SnoozeError: as the port says; ``TooBusy``: there was no process for it in time.
        """
        whom = f"the BMC at {request.host}"
        async with AsyncExitStack() as slots:
            try:
                async with asyncio.timeout(request.limit_s):
                    if request.op == "power_w":
                        await slots.enter_async_context(self._reading)
                    await slots.enter_async_context(self._slots)
            except TimeoutError:
                raise TooBusy(f"too many BMCs are silent; {whom} was not asked") from None
            reply = await self._ask_one(request, whom)
        if reply.error:
            raise _error(reply, whom)
        return reply

    async def _ask_one(self, request: IpmiRequest, whom: str) -> IpmiReply:
        if self._closed:
            raise RemoteError("the processes that speak IPMI were ended")
        while self._free and not self._free[-1].is_fresh:
            self._end(self._free.pop())
        worker = self._free.pop() if self._free else await self._started(whom)
        keeps = False
        try:
            async with asyncio.timeout(request.limit_s + GRACE_S):
                reply = await worker.ask(request)
            keeps = not reply.is_spent and not self._closed
        except TimeoutError:
            raise RemoteTimeout(
                f"{whom} did not answer within {request.limit_s:g} s; it may have happened"
            ) from None
        finally:
            if keeps:
                self._free.append(worker)
                self._watch_idle()
            else:
                self._end(worker)
        return reply

    async def _started(self, whom: str) -> _Worker:
        """A new process. Raises: TooBusy: this machine starts none now."""
        try:
            return await _Worker.start()
        except OSError as error:
            reason = error.strerror or type(error).__name__
            said = f"no process that speaks IPMI starts ({reason}); {whom} was not asked"
            raise TooBusy(said) from None

    def _end(self, worker: _Worker) -> None:
        """Kill it, without waiting; also called while being cancelled."""
        task = asyncio.ensure_future(worker.kill())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def _watch_idle(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        self._idle = asyncio.get_running_loop().call_later(IDLE_S, self._end_idle)

    def _end_idle(self) -> None:
        while self._free:
            self._end(self._free.pop())

    async def close(self) -> None:
        """End them all; who waits for one is told that it broke off."""
        self._closed = True
        if self._idle is not None:
            self._idle.cancel()
        self._end_idle()
        await asyncio.gather(*self._ending)


def _error(reply: IpmiReply, whom: str) -> SnoozeError:
    said = f"{whom} {reply.message}"
    match reply.error:
        case "refused":
            return PreconditionError(said)
        case "unreachable":
            return not_sent(said)
        case "silent":
            return RemoteTimeout(said)
        case "nonsense":
            return RemoteError(said)
        case _:
            return ExecutionError(said)
