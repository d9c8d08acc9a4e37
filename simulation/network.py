"""Machines and the network between them, down to the bytes of each connection.

What a connection does is what TCP does. Its bytes arrive in order, once: a lost packet is a delay,
never a gap, so a link neither drops, doubles nor reorders what it carries. While a way is cut,
bytes wait and go on when it heals; a process that is killed has its connections closed by its
kernel, a machine without power closes nothing, and whoever still sends to what is gone is told so
(RST) as soon as the machine is back. What came before a reset is read first, as on Linux: a process
that stood still gets late orders of links that have ended. Different connections overtake one
another freely: that is where requests are reordered. What is repeated is repeated by clients whose
answer did not come.

A way is cut in one direction; a partition is made of such cuts.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from snooze.simulation.loop import WALL_START_MS, Process, Schedule, mix

if TYPE_CHECKING:
    import socket

LATENCY_S = (0.0002, 0.0008)
"""The least a packet takes, and what is added at most: two machines on one switch."""
RETRANSMIT_S = 0.2
"""Linux's least retransmission time-out: what a lost packet costs."""
UNREACHABLE_S = 3.0
"""How long Linux asks for the hardware address of a machine that is off."""
CONNECT_TIMEOUT_S = 127.0
"""How long Linux repeats a SYN that is not answered."""
KERNEL_BUFFERS_BYTES = 400_000
"""What the kernels of both ends take before the sender's process notices."""
FIRST_PORT = 40_000


@dataclass
class Weather:
    """What the network does to packets while it lasts, between machines that it concerns."""

    name: str
    machines: frozenset[str]
    loss: float = 0.0
    delay_s: float = 0.0
    salt: int = 0

    def concerns(self, source: str, target: str) -> bool:
        """Whether a packet between these meets it; without names, every packet does."""
        return not self.machines or source in self.machines or target in self.machines


class Machine:
    """A machine: its address, its power, its clocks, who listens on it."""

    def __init__(self, network: "Network", name: str, address: str) -> None:
        self.network = network
        self.name = name
        self.address = address
        self.is_on = True
        self.is_booting = False
        self.boots = 0
        self.is_suspended = False
        self.suspended_since_s = 0.0
        self.slept_s = 0.0
        """How long it has been suspended, before now."""
        self.wall_step_ms = 0
        self.listeners: dict[int, Listener] = {}
        self.ends: dict[End, None] = {}
        self.processes: dict[str, Process] = {}
        self._next_port = FIRST_PORT

    def wall_ms(self) -> int:
        """What its wall clock shows."""
        passed_s = self.network.schedule.now_s - 1000.0
        return WALL_START_MS + round(passed_s * 1000) + self.wall_step_ms

    def listen(
        self, process: Process, factory: Callable[[], asyncio.Protocol], port: int
    ) -> "Listener":
        """Listen on a port. Raises: OSError if another process does."""
        port = port or self.free_port()
        if port in self.listeners:
            raise OSError(98, f"address in use: {self.address}:{port}")
        listener = self.listeners[port] = Listener(self, process, factory, port)
        return listener

    def free_port(self) -> int:
        """A port that nobody has."""
        self._next_port += 1
        return self._next_port

    def end_process(self, process: Process) -> None:
        """The kernel closes what a dead process had open, if there still is a kernel."""
        for port in [p for p, listener in self.listeners.items() if listener.process is process]:
            del self.listeners[port]
        for end in [end for end in self.ends if end.process is process]:
            if self.is_on:
                end.kernel_close()
            else:
                end.vanish()

    def suspend(self) -> None:
        """What runs on it stands still, until ``go_on``."""
        self.is_suspended, self.suspended_since_s = True, self.network.schedule.now_s

    def go_on(self) -> None:
        """Everything on it goes on where it stood: for its timers, no time has passed."""
        self.is_suspended = False
        self.slept_s += self.network.schedule.now_s - self.suspended_since_s
        for process in self.processes.values():
            if not process.paused:
                process.resume()

    def power_off(self) -> None:
        """Everything on it is gone at once, and nobody is told."""
        self.is_on = self.is_suspended = False
        for process in self.processes.values():
            process.kill()
            self.end_process(process)
        self.processes.clear()

    def power_on(self) -> None:
        """It boots: nothing runs on it yet."""
        self.is_on = self.is_booting = True
        self.boots += 1


@dataclass
class _Socket:
    """What ``asyncio.Server.sockets`` shows."""

    address: tuple[str, int]

    def getsockname(self) -> tuple[str, int]:
        """Where it is bound."""
        return self.address


class Listener:
    """A listening socket, as ``create_server`` returns it."""

    def __init__(
        self,
        machine: Machine,
        process: Process,
        factory: Callable[[], asyncio.Protocol],
        port: int,
    ) -> None:
        self.machine = machine
        self.process = process
        self.factory = factory
        self.port = port
        self.sockets = [_Socket((machine.address, port))]

    def close(self) -> None:
        """Take no more connections."""
        if self.machine.listeners.get(self.port) is self:
            del self.machine.listeners[self.port]

    def is_serving(self) -> bool:
        """Whether it takes connections."""
        return self.machine.listeners.get(self.port) is self

    async def wait_closed(self) -> None:
        """See asyncio: nothing to wait for."""


class End:
    """One end of a connection: the kernel's half, and the process's once it is attached."""

    def __init__(self, machine: Machine, process: Process, port: int) -> None:
        self.machine = machine
        self.process = process
        self.port = port
        self.peer: End = self
        self.transport: SimulatedTransport | None = None
        self.received: deque[bytes] = deque()
        self.received_eof = False
        self.received_reset = False
        self.is_open = True
        self.reading = True
        self.unread_by_peer = 0
        self.sent_eof = False
        self.wakeup_due = False
        self.last_arrival_s = 0.0
        self.in_flight: deque[tuple[str, bytes]] = deque()
        self.is_blocked = False
        machine.ends[self] = None

    @property
    def name(self) -> tuple[str, int]:
        """Address and port."""
        return (self.machine.address, self.port)

    def attach(self, protocol: asyncio.Protocol) -> "SimulatedTransport":
        """Give the process's half its protocol."""
        self.transport = SimulatedTransport(self, protocol)
        protocol.connection_made(self.transport)
        self.wake()
        return self.transport

    # ------------------------------------------------------------ sending

    def send(self, kind: str, data: bytes = b"") -> None:
        """Send bytes (``data``), the end of them (``fin``) or a refusal (``rst``) to the peer."""
        network = self.machine.network
        self.unread_by_peer += len(data)
        self.in_flight.append((kind, data))
        if self.is_blocked:
            return
        if network.is_cut(self.machine.name, self.peer.machine.name):
            self._block()
            return
        delay_s = network.delay_s(self.machine.name, self.peer.machine.name)
        self._arrive_at(max(self.last_arrival_s, network.schedule.now_s + delay_s))

    def _arrive_at(self, when_s: float) -> None:
        self.last_arrival_s = when_s
        self.machine.network.schedule.at(when_s, self._arrive)

    def _block(self) -> None:
        self.is_blocked = True
        self.machine.network.blocked[self] = None

    def unblock(self) -> None:
        """The way is free again: the kernel's next repetition gets through."""
        self.is_blocked = False
        network = self.machine.network
        wait_s = RETRANSMIT_S * (0.5 + network.draw())
        for _ in self.in_flight:
            self._arrive_at(max(self.last_arrival_s, network.schedule.now_s + wait_s))

    def _arrive(self) -> None:
        """One segment reaches the peer's machine."""
        if self.is_blocked or not self.in_flight:
            return
        if self.machine.network.is_cut(self.machine.name, self.peer.machine.name):
            self._block()
            return
        kind, data = self.in_flight.popleft()
        self.peer.take(kind, data)

    # ------------------------------------------------------------ receiving

    def take(self, kind: str, data: bytes) -> None:
        """The kernel takes a segment in."""
        if not self.machine.is_on:
            return
        if not self.is_open:
            if kind != "rst" and self.peer.is_open:
                self.send("rst")
            return
        if kind == "data":
            self.received.append(data)
        elif kind == "fin":
            self.received_eof = True
        else:
            self.received_reset = True
        self.wake()

    def wake(self) -> None:
        """Let the process see what has come."""
        if not self.wakeup_due and self.transport is not None:
            self.wakeup_due = True
            self.process.loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        self.wakeup_due = False
        transport = self.transport
        if transport is None or not self.is_open:
            return
        while self.received and self.reading and not transport.is_closing():
            data = self.received.popleft()
            if len(self.received) > 0:
                data = b"".join((data, *self.received))
                self.received.clear()
            self.peer.note_read(len(data))
            transport.protocol.data_received(data)
        if self.received_reset:  # Linux lets what came before it be read first
            transport.lose(ConnectionResetError(104, "connection reset by peer"))
            return
        if self.received_eof and self.reading and not self.received and not transport.is_closing():
            self.received_eof = False
            if not transport.protocol.eof_received():
                transport.close()

    def note_read(self, length: int) -> None:
        """The peer's process has read so much."""
        self.unread_by_peer -= length
        if self.transport is not None:
            self.transport.note_drained()

    # ------------------------------------------------------------ ending

    def kernel_close(self) -> None:
        """Close without the process: its kernel says so to the peer."""
        if self.is_open:
            unread = bool(self.received)
            self.shut()
            self.send("rst" if unread else "fin")

    def shut(self) -> None:
        """Take nothing more."""
        self.is_open = False
        self.machine.ends.pop(self, None)

    def vanish(self) -> None:
        """The machine lost power: nothing is sent, and what was on its way out is lost."""
        self.shut()
        self.in_flight.clear()
        self.machine.network.blocked.pop(self, None)


class SimulatedTransport(asyncio.Transport):
    """A connection as a process sees it."""

    def __init__(self, end: End, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.end = end
        self.protocol: Any = protocol
        self._closing = False
        self._lost = False
        self._write_paused = False
        self._high = 65_536

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """See asyncio."""
        if name == "peername":
            return self.end.peer.name
        return self.end.name if name == "sockname" else default

    def get_protocol(self) -> Any:
        """See asyncio."""
        return self.protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """See asyncio."""
        self.protocol = protocol

    def is_closing(self) -> bool:
        """See asyncio."""
        return self._closing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """See asyncio."""
        if self._closing or self._lost or not data:
            return
        if self.end.is_open:
            self.end.send("data", bytes(data))
            if not self._write_paused and self.get_write_buffer_size() > self._high:
                self._write_paused = True
                self.protocol.pause_writing()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """See asyncio."""
        self.write(b"".join(bytes(data) for data in list_of_data))

    def get_write_buffer_size(self) -> int:
        """What the kernels have not taken."""
        return max(0, self.end.unread_by_peer - KERNEL_BUFFERS_BYTES)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """See asyncio."""
        return (0, self._high)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """See asyncio."""
        self._high = 65_536 if high is None else high

    def note_drained(self) -> None:
        """The peer has read something."""
        if self._write_paused and self.get_write_buffer_size() == 0:
            self._write_paused = False
            self.end.process.loop.call_soon(self.protocol.resume_writing)

    def can_write_eof(self) -> bool:
        """See asyncio."""
        return True

    def write_eof(self) -> None:
        """See asyncio."""
        if self.end.is_open and not self.end.sent_eof:
            self.end.sent_eof = True
            self.end.send("fin")

    def pause_reading(self) -> None:
        """See asyncio."""
        self.end.reading = False

    def resume_reading(self) -> None:
        """See asyncio."""
        if not self.end.reading:
            self.end.reading = True
            self.end.wake()

    def is_reading(self) -> bool:
        """See asyncio."""
        return self.end.reading

    def close(self) -> None:
        """See asyncio: what was written is still sent."""
        if not self._closing:
            self._closing = True
            self.write_eof()
            self.end.process.loop.call_soon(self.lose, None)

    def abort(self) -> None:
        """See asyncio: at once, which closes the socket like any other."""
        if not self._lost:
            self._closing = True
            if self.end.is_open and not self.end.sent_eof:
                self.end.sent_eof = True
                self.end.send("rst" if self.end.received else "fin")
            self.end.process.loop.call_soon(self.lose, None)

    def lose(self, error: Exception | None) -> None:
        """The connection has ended for this process."""
        if not self._lost:
            self._lost = self._closing = True
            self.end.shut()
            self.protocol.connection_lost(error)


@dataclass
class Network:
    """All machines, by address and by name, and the ways between them."""

    schedule: Schedule
    seed: int = 0
    by_name: dict[str, Machine] = field(default_factory=dict[str, Machine])
    by_address: dict[str, Machine] = field(default_factory=dict[str, Machine])
    cuts: dict[tuple[str, str], int] = field(default_factory=dict[tuple[str, str], int])
    weather: list[Weather] = field(default_factory=list[Weather])
    blocked: dict[End, None] = field(default_factory=dict[End, None])
    drawn: int = 0
    on_heal: list[Callable[[], None]] = field(default_factory=list[Callable[[], None]])
    _connected: dict[int, End] = field(default_factory=dict[int, End])

    def machine(self, name: str, address: str) -> Machine:
        """A new machine."""
        machine = Machine(self, name, address)
        self.by_name[name] = self.by_address[address] = machine
        return machine

    def draw(self) -> float:
        """The next number in [0, 1)."""
        self.drawn += 1
        return mix(self.seed, 1, self.drawn)

    def is_cut(self, source: str, target: str) -> bool:
        """Whether packets from one machine to another are lost now, all of them."""
        return bool(self.cuts) and source != target and (source, target) in self.cuts

    def delay_s(self, source: str, target: str) -> float:
        """How long a packet takes now, with its repetitions."""
        if source == target:
            return 0.00002
        delay_s = LATENCY_S[0] + LATENCY_S[1] * self.draw()
        for weather in self.weather:
            if weather.concerns(source, target):
                delay_s += weather.delay_s * self.draw()
                tries = 0
                while tries < 6 and self.draw() < weather.loss:
                    delay_s += RETRANSMIT_S * 2**tries
                    tries += 1
        return delay_s

    # ------------------------------------------------------------ faults

    def cut(self, source: str, target: str) -> None:
        """Lose what goes from one machine to another, until as many ``heal``."""
        self.cuts[source, target] = self.cuts.get((source, target), 0) + 1

    def heal(self, source: str, target: str) -> None:
        """Undo one ``cut``."""
        left = self.cuts.pop((source, target), 1) - 1
        if left > 0:
            self.cuts[source, target] = left
        else:
            self._flow()

    def heal_all(self) -> None:
        """Every way is free, and the weather is fine."""
        self.cuts.clear()
        self.weather.clear()
        self._flow()

    def _flow(self) -> None:
        for end in list(self.blocked):
            if not self.is_cut(end.machine.name, end.peer.machine.name):
                del self.blocked[end]
                end.unblock()
        for callback in list(self.on_heal):
            callback()

    # ------------------------------------------------------------ connecting

    def note_connected(self, sock: "socket.socket", end: End) -> None:
        """A socket of the real machine stands for this connection."""
        self._connected[sock.fileno()] = end

    def take_connected(self, sock: "socket.socket") -> End:
        """The connection for which the socket stands."""
        return self._connected.pop(sock.fileno())

    async def connect(self, process: Process, host: str, port: int) -> End:
        """Open a connection from a process.

        Raises:
            OSError: refused, or nobody is there.
        """
        source = process.machine
        target = self.by_address.get(host)
        if target is None:
            raise OSError(113, f"no route to {host}")
        waited_s = 0.0
        while self.is_cut(source.name, target.name) or self.is_cut(target.name, source.name):
            # SYN, or its answer, is lost: it is repeated, ever more rarely.
            pause_s = min(1.0 + waited_s, CONNECT_TIMEOUT_S - waited_s)
            if pause_s <= 0:
                raise TimeoutError(110, f"{host}:{port} does not answer")
            await asyncio.sleep(pause_s)
            waited_s += pause_s
        if not target.is_on:
            await asyncio.sleep(UNREACHABLE_S)
            raise OSError(113, f"no route to {host}")
        await asyncio.sleep(self.delay_s(source.name, target.name))
        listener = target.listeners.get(port)
        if listener is None or not target.is_on:
            await asyncio.sleep(self.delay_s(target.name, source.name))
            raise ConnectionRefusedError(111, f"connection refused by {host}:{port}")
        ours = End(source, process, source.free_port())
        theirs = End(target, listener.process, port)
        ours.peer, theirs.peer = theirs, ours
        listener.process.loop.call_soon(_accept, listener, theirs)
        try:
            await asyncio.sleep(self.delay_s(target.name, source.name))
        except BaseException:
            ours.kernel_close()
            raise
        return ours


def _accept(listener: Listener, end: End) -> None:
    if end.is_open:
        end.attach(listener.factory())
