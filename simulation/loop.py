"""Virtual time: one schedule for the whole world, one event loop for each process in it.

Theory of operation
    The daemons run as they are: their coroutines, timers and transports only ever touch the event
    loop that is running. Here every simulated process has a loop of its own (``ProcessLoop``), and
    all of them share one ``Schedule``: a queue of what is due now, in the order in which it became
    due, and a heap of what is due later. Work takes no time; only waiting does.

    A process that stands still (SIGSTOP) keeps what becomes due for it until it goes on; of one
    that was killed nothing runs any more, not even a ``finally``. Each process has a monotonic
    clock that runs fast or slow by a constant rate, and a wall clock that steps.

Everything happens in an order that follows from the seed alone: ties go by when they were
scheduled.
"""

import asyncio
import heapq
from asyncio import events as asyncio_events
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Executor
from contextvars import Context
from typing import Any, TypeVar

T = TypeVar("T")

WALL_START_MS = 1_700_000_000_000
START_S = 1000.0
_MASK = (1 << 64) - 1
_LAST_EVENTS = 100_000
"""More than it takes to cancel every task of a world."""


def mix(*numbers: int) -> float:
    """A number in [0, 1) that depends on ``numbers`` alone: randomness without a state to share.

    Source: the finaliser of splitmix64 (Steele, Lea, Flood 2014).
    """
    z = 0x9E3779B97F4A7C15
    for number in numbers:
        z = (z ^ (number & _MASK)) * 0xBF58476D1CE4E5B9 & _MASK
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _MASK
        z ^= z >> 31
    return z / 2**64


class Schedule:
    """What happens, and when: seconds since the world began, and everything due."""

    def __init__(self) -> None:
        self.now_s = START_S
        self.events = 0
        self.digest = 0
        """Changes with each event's time and process: equal digests are equal runs."""
        self._ready: deque[tuple[Process | None, asyncio.Handle | Callable[[], None]]] = deque()
        self._later: list[
            tuple[float, int, Process | None, asyncio.TimerHandle | Callable[[], None]]
        ] = []
        self._number = 0
        self._cancelled = 0
        self.after_event: Callable[[Process | None], None] = lambda _process: None

    def soon(self, step: Callable[[], None]) -> None:
        """Let the world itself do something now."""
        self._ready.append((None, step))

    def at(self, when_s: float, step: Callable[[], None]) -> None:
        """Let the world itself do something at a time."""
        self._push(when_s, None, step)

    def after(self, delay_s: float, step: Callable[[], None]) -> None:
        """Let the world itself do something after a while."""
        self._push(self.now_s + delay_s, None, step)

    def process_soon(self, process: "Process", handle: asyncio.Handle) -> None:
        """A process has something to do now."""
        self._ready.append((process, handle))

    def process_at(self, when_s: float, process: "Process", handle: asyncio.TimerHandle) -> None:
        """A process has something to do later."""
        self._push(when_s, process, handle)

    def _push(
        self,
        when_s: float,
        process: "Process | None",
        item: asyncio.TimerHandle | Callable[[], None],
    ) -> None:
        self._number += 1
        heapq.heappush(self._later, (max(when_s, self.now_s), self._number, process, item))

    def note_cancelled(self) -> None:
        """A timer is not wanted any more; many of those are swept out."""
        self._cancelled += 1
        if self._cancelled > 1000 and self._cancelled * 2 > len(self._later):
            self._later = [
                entry
                for entry in self._later
                if not (isinstance(entry[3], asyncio.Handle) and entry[3].cancelled())
            ]
            heapq.heapify(self._later)
            self._cancelled = 0

    def run_until(self, until_s: float, stop: Callable[[], bool] = lambda: False) -> None:
        """Let time pass up to ``until_s``, or until ``stop`` says so between two events."""
        while not stop():
            if not self._ready:
                if not self._later or self._later[0][0] > until_s:
                    self.now_s = max(self.now_s, until_s)
                    return
                self.now_s, _, process, later = heapq.heappop(self._later)
                self.run_one(process, later)
            else:
                process, item = self._ready.popleft()
                self.run_one(process, item)

    def wind_up(self) -> None:
        """Let only what is due now happen, in processes, and what follows from it; then no more."""
        for _ in range(_LAST_EVENTS):
            if not self._ready:
                break
            process, item = self._ready.popleft()
            if process is not None:
                self.run_one(process, item)
        self._ready.clear()
        self._later.clear()

    def run_one(self, process: "Process | None", item: asyncio.Handle | Callable[[], None]) -> None:
        """One event."""
        number = 0
        if isinstance(item, asyncio.Handle):
            if process is None or not process.takes(item) or item._cancelled:
                return
            asyncio_events._set_running_loop(process.loop)
            try:
                item._run()
            finally:
                asyncio_events._set_running_loop(None)
            number = process.number
        else:
            item()
        self.events += 1
        stamp = int(self.now_s * 1e6) * 31 + number
        self.digest = (self.digest * 1_000_003 ^ stamp) & _MASK
        self.after_event(process)


class Process:
    """A process on a machine: its loop, its clocks, whether it runs."""

    def __init__(
        self,
        schedule: Schedule,
        number: int,
        name: str,
        machine: Any,
        drift: float = 0.0,
    ) -> None:
        """``machine``: a ``network.Machine``. ``drift``: how wrong its monotonic clock is.

        A drift of 0.01 is one percent fast.
        """
        self.schedule = schedule
        self.number = number
        self.name = name
        self.kind = name.rpartition("/")[2]
        """What it is on its machine: ``snooze``, ``hypervisor``, ``client``."""
        self.role: str = machine.name[:2]
        """What its machine is for: ``gm``, ``bs``, ``ho``, ``zk``, ``cl``."""
        self.machine = machine
        self.drift = drift
        self.born_s = schedule.now_s
        self.alive = True
        self.paused = False
        self.closing = False
        self._held: list[asyncio.Handle] = []
        self._unborn: dict[Coroutine[Any, Any, Any], None] = {}
        self.tasks: dict[asyncio.Task[Any], None] = {}
        self.loop = ProcessLoop(self)  # type: ignore[abstract]
        self.defects: list[str] = []

    def monotonic_s(self) -> float:
        """Its own monotonic clock, which stands still while its machine is suspended."""
        slept_s: float = self.machine.slept_s
        return START_S + (self.schedule.now_s - slept_s - START_S) * (1.0 + self.drift)

    def boottime_s(self) -> float:
        """The same, and it counts on while the machine is suspended."""
        return START_S + (self.schedule.now_s - START_S) * (1.0 + self.drift)

    def due_s(self, when: float) -> float:
        """The world's time at which its monotonic clock shows ``when``, or a little after."""
        slept_s: float = self.machine.slept_s
        # A little late rather than early: who is woken has to find that it is time.
        return START_S + (when - START_S) / (1.0 + self.drift) + slept_s + 1e-7

    def wall_ms(self) -> int:
        """Its machine's wall clock."""
        shown: int = self.machine.wall_ms()
        return shown

    def takes(self, handle: asyncio.Handle) -> bool:
        """Whether it does this now; what it cannot do yet is kept."""
        if self.alive and not self.paused and not self.machine.is_suspended:
            return not self._is_early(handle)
        if self.alive:
            self._held.append(handle)
        return self.closing and not self.paused

    def _is_early(self, handle: asyncio.Handle) -> bool:
        """Whether its machine has slept since a timer was set: then it is set anew."""
        if not self.machine.slept_s or not isinstance(handle, asyncio.TimerHandle):
            return False
        if handle.when() <= self.monotonic_s():
            return False
        self.schedule.process_at(self.due_s(handle.when()), self, handle)
        return True

    def pause(self) -> None:
        """SIGSTOP."""
        self.paused = True

    def resume(self) -> None:
        """SIGCONT: everything that became due meanwhile is due now."""
        self.paused = False
        held, self._held = self._held, []
        for handle in held:
            self.schedule.process_soon(self, handle)

    def run(self, work: Callable[[], None]) -> None:
        """Let a callback run in the process, as soon as it runs."""
        self.loop.call_soon(work)

    def spawn(self, work: Coroutine[Any, Any, T]) -> None:
        """Start a task in the process; what it raises is a defect."""

        self._unborn[work] = None

        def begin() -> None:
            del self._unborn[work]
            task = self.loop.create_task(work)
            task.add_done_callback(ended)

        def ended(task: asyncio.Task[T]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                self.defects.append(f"{self.name}: {type(error).__name__}: {error}")

        self.run(begin)

    def kill(self) -> None:
        """SIGKILL: nothing of it runs any more; its sockets are the kernel's to close."""
        self.alive = False
        self._held.clear()

    def bury(self) -> list[asyncio.Task[Any]]:
        """After the end of the world: cancel what never ended."""
        for work in self._unborn:
            work.close()
        self.paused, self.closing = False, True
        left = [task for task in self.tasks if not task.done()]
        for task in left:
            task.cancel()
        return left


class ProcessLoop(asyncio.AbstractEventLoop):
    """The event loop that a process of the world sees."""

    def __init__(self, process: Process) -> None:
        self.process = self._process = process
        self._schedule = process.schedule

    # ------------------------------------------------------------ time and callbacks

    def time(self) -> float:
        """The process's monotonic clock."""
        return self._process.monotonic_s()

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """See asyncio."""
        handle = asyncio.Handle(callback, args, self, context)
        self._schedule.process_soon(self._process, handle)
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_later(  # type: ignore[override]
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """See asyncio."""
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """See asyncio; ``when`` is by the process's clock."""
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._schedule.process_at(self._process.due_s(when), self._process, handle)
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        self._schedule.note_cancelled()

    # ------------------------------------------------------------ futures and tasks

    def create_future(self) -> asyncio.Future[Any]:
        """See asyncio."""
        return asyncio.Future(loop=self)

    def create_task(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: Context | None = None,
    ) -> asyncio.Task[T]:
        """See asyncio."""
        task: asyncio.Task[T] = asyncio.Task(coro, loop=self, name=name, context=context)
        tasks = self._process.tasks
        tasks[task] = None
        task.add_done_callback(lambda done: tasks.pop(done, None))
        return task

    def get_task_factory(self) -> None:
        """See asyncio: none."""

    def get_debug(self) -> bool:
        """See asyncio: no."""
        return False

    def is_running(self) -> bool:
        """See asyncio: always."""
        return True

    def is_closed(self) -> bool:
        """See asyncio: never."""
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """What nobody caught is a defect of the process."""
        if self._process.closing:
            return
        error = context.get("exception")
        told = f"{type(error).__name__}: {error}" if error is not None else ""
        self._process.defects.append(f"{self._process.name}: {context.get('message')} {told}")

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        """See asyncio."""
        self.call_exception_handler(context)

    def run_in_executor(  # type: ignore[override]
        self, executor: Executor | None, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """Threads take no time here: the call is made at once."""
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001  # what a thread raises goes to who waits for it
            future.set_exception(error)
        return future

    # ------------------------------------------------------------ the network

    async def create_server(  # type: ignore[override]
        self, protocol_factory: Callable[[], asyncio.Protocol], host: str, port: int, **_: Any
    ) -> Any:
        """Listen on the machine's address."""
        return self._process.machine.listen(self._process, protocol_factory, port)

    async def create_connection(  # type: ignore[override]
        self,
        protocol_factory: Callable[[], asyncio.Protocol],
        host: str | None = None,
        port: int | None = None,
        *,
        sock: Any = None,
        **_: Any,
    ) -> tuple[asyncio.Transport, asyncio.Protocol]:
        """Connect over the simulated network; or take over what ``sock_connect`` connected."""
        network = self._process.machine.network
        if sock is not None:
            end = network.take_connected(sock)
            sock.close()
        else:
            if host is None or port is None:
                raise ValueError("where to?")
            end = await network.connect(self._process, host, port)
        protocol = protocol_factory()
        transport = end.attach(protocol)
        return transport, protocol

    async def sock_connect(self, sock: Any, address: Any) -> None:
        """The first half of how aiohttp connects: the socket stands for the connection."""
        network = self._process.machine.network
        end = await network.connect(self._process, address[0], address[1])
        network.note_connected(sock, end)

    async def getaddrinfo(
        self,
        host: Any,
        port: Any,
        *,
        family: int = 0,
        type: int = 0,
        proto: int = 0,
        flags: int = 0,
    ) -> list[Any]:
        """Addresses are literal here."""
        return [(2, 1, 6, "", (str(host), int(port or 0)))]
