"""IPMI against ``ipmi_sim``: slow, dying, refusing BMCs, and processes that hang."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from snooze.common.errors import (
    ExecutionError,
    PreconditionError,
    RemoteError,
    RemoteTimeout,
    TooBusy,
)
from snooze.common.power_options import IpmiOptions, parse_power
from snooze.groupmanager.power import ipmi_workers
from snooze.groupmanager.power.ipmi import IpmiController
from snooze.groupmanager.power.ipmi_workers import IpmiWorkers
from snooze.groupmanager.power.port import PowerLimits, PowerState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from tests.contract.ipmi_bmc import IpmiSim

LIMITS = PowerLimits(call_timeout_s=15.0, off_timeout_s=25.0, poll_s=0.1)


@pytest.fixture
async def workers() -> "AsyncIterator[IpmiWorkers]":
    all_of_them = IpmiWorkers(4)
    yield all_of_them
    await all_of_them.close()


def controller(options: str, workers: IpmiWorkers, limits: PowerLimits = LIMITS) -> IpmiController:
    meant = parse_power("IPMI", options)
    assert isinstance(meant, IpmiOptions)
    return IpmiController(meant, workers, limits)


async def test_a_password_file_is_read_at_each_use(
    bmc: "IpmiSim", workers: IpmiWorkers, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("falsch\n")
    secret.chmod(0o600)
    power = controller(f"-H 127.0.0.1 -p {bmc.port} -U admin -f {secret}", workers)
    with pytest.raises(PreconditionError, match="refuses"):
        await power.state()
    secret.write_text("geheim\n")
    assert await power.state() is PowerState.OFF
    secret.chmod(0o644)
    with pytest.raises(PreconditionError, match="chmod"):
        await power.state()


async def test_a_slow_machine_is_asked_again_and_goes_off_once(
    bmc: "IpmiSim", workers: IpmiWorkers
) -> None:
    """Its script takes longer than a client waits for a packet, so orders are repeated."""
    power = controller(bmc.options(), workers)
    (bmc.machine.folder / "slow").write_text("1.5")
    bmc.machine.plug(True)
    assert await power.off() is PowerState.OFF
    assert not bmc.machine.is_on()
    await power.on()
    async with asyncio.timeout(20):
        while not bmc.machine.is_on():  # noqa: ASYNC110 (seen from outside)
            await asyncio.sleep(0.1)


async def test_a_machine_that_stays_on_is_not_off(bmc: "IpmiSim", workers: IpmiWorkers) -> None:
    bmc.machine.plug(True)
    script = (bmc.machine.folder / "chassis").read_text()
    bmc.machine.script("chassis", script.replace("rm -f on", "true"))
    power = controller(bmc.options(), workers, PowerLimits(5.0, 8.0, 0.2))
    with pytest.raises(RemoteTimeout, match="still said on"):
        await power.off()
    assert bmc.machine.orders() >= 2


async def test_a_bmc_that_dies_in_the_middle_proves_nothing(
    bmc: "IpmiSim", workers: IpmiWorkers
) -> None:
    bmc.machine.plug(True)
    script = (bmc.machine.folder / "chassis").read_text()
    bmc.machine.script("chassis", script.replace("rm -f on", "kill -9 $(cat pid); sleep 1"))
    (bmc.machine.folder / "pid").write_text(str(bmc.pid))
    power = controller(bmc.options(), workers)
    with pytest.raises(RemoteError):
        await power.off()
    assert bmc.machine.is_on()


async def test_one_that_is_frozen_and_thaws(bmc: "IpmiSim", workers: IpmiWorkers) -> None:
    bmc.machine.plug(True)
    power = controller(bmc.options(), workers, PowerLimits(3.0, 3.0, 0.1))
    os.kill(bmc.pid, signal.SIGSTOP)
    with pytest.raises(RemoteTimeout):
        await power.off()
    os.kill(bmc.pid, signal.SIGCONT)
    assert await power.off() is PowerState.OFF


async def test_a_user_without_the_right_is_refused(bmc: "IpmiSim", workers: IpmiWorkers) -> None:
    bmc.machine.plug(True)
    viewer = controller(bmc.options("viewer") + " -L USER", workers)
    assert await viewer.state() is PowerState.ON
    with pytest.raises(PreconditionError, match="right"):
        await viewer.off()
    assert bmc.machine.is_on()
    with pytest.raises(PreconditionError):
        await controller(bmc.options("nobody"), workers).state()


async def test_a_port_that_never_answers_and_one_that_nobody_has(workers: IpmiWorkers) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
        deaf.bind(("127.0.0.1", 0))
        port = deaf.getsockname()[1]
        silent = controller(f"-H 127.0.0.1 -p {port} -U a -P geheim", workers)
        with pytest.raises(RemoteTimeout):
            await silent.state()
    closed = controller(f"-H 127.0.0.1 -p {port} -U a -P geheim", workers)
    nameless = controller("-H no-such-bmc.invalid -U a -P geheim", workers)
    for power in (closed, nameless):
        with pytest.raises(RemoteError) as caught:
            await power.state()
        assert "geheim" not in str(caught.value)


async def test_noise_instead_of_ipmi(workers: IpmiWorkers) -> None:
    class Noise(asyncio.DatagramProtocol):
        transport: asyncio.DatagramTransport

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.DatagramTransport)
            self.transport = transport

        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            for answer in (data[::-1], data[:5], b"\x06\x00\xff\x07" + bytes(range(60)), data):
                self.transport.sendto(answer, addr)

    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        Noise, local_addr=("127.0.0.1", 0)
    )
    port = transport.get_extra_info("sockname")[1]
    power = controller(f"-H 127.0.0.1 -p {port} -U a -P geheim", workers, PowerLimits(8.0))
    with pytest.raises((RemoteError, ExecutionError, PreconditionError)) as caught:
        await power.state()
    assert "geheim" not in str(caught.value)
    transport.close()


async def test_when_all_processes_are_busy_it_is_said_that_nothing_was_asked() -> None:
    workers = IpmiWorkers(1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
        deaf.bind(("127.0.0.1", 0))
        options = f"-H 127.0.0.1 -p {deaf.getsockname()[1]} -U a -P b"
        first = asyncio.create_task(controller(options, workers).state())
        await asyncio.sleep(0.1)
        with pytest.raises(TooBusy):
            await controller(options, workers, PowerLimits(0.5)).state()
        with pytest.raises(RemoteTimeout):
            await first
    await workers.close()


HANGING = """
import sys, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("not a reply" if "nonsense" in sys.stdin.readline() else "", end="", flush=True)
while True:
    signal.pause()
"""


@pytest.mark.parametrize(("op", "most", "hanging"), [("state", 4, 3), ("power_w", 2, 1)])
async def test_silent_bmcs_do_not_hold_up_a_fencing(
    bmc: "IpmiSim",
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    op: str,
    most: int,
    hanging: int,
) -> None:
    """Nor do any number of readings of watts, which may take half of the processes."""
    workers = IpmiWorkers(most)
    bad = tmp_path / "hanging_worker.py"
    bad.write_text(HANGING)
    patient = controller(bmc.options(), workers, PowerLimits(100.0))
    with monkeypatch.context() as patch:
        patch.setattr(ipmi_workers, "WORKER", bad)
        asked = 3 if op == "state" else 6
        waiting = [asyncio.create_task(getattr(patient, op)()) for _ in range(asked)]
        async with asyncio.timeout(60):
            while len(mine("hanging_worker")) < hanging:  # noqa: ASYNC110 (processes)
                await asyncio.sleep(0.05)
    bmc.machine.plug(True)
    assert await controller(bmc.options(), workers).off() is PowerState.OFF
    assert not any(task.done() for task in waiting)
    assert len(mine("hanging_worker")) == hanging
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    await workers.close()


async def test_a_process_that_hangs_is_killed_and_replaced(
    bmc: "IpmiSim",
    workers: IpmiWorkers,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bad = tmp_path / "worker.py"
    bad.write_text(HANGING)
    with monkeypatch.context() as patch:
        patch.setattr(ipmi_workers, "WORKER", bad)
        patch.setattr(ipmi_workers, "GRACE_S", 0.1)
        with pytest.raises(RemoteTimeout, match="may have happened"):
            await controller(bmc.options(), workers, PowerLimits(0.5)).state()
        bad.write_text("import sys; sys.stdin.readline(); print('nonsense', flush=True)")
        with pytest.raises(RemoteError):
            await controller(bmc.options(), workers).state()
        bad.write_text("")
        with pytest.raises(RemoteError):
            await controller(bmc.options(), workers).state()
    assert await controller(bmc.options(), workers).state() is PowerState.OFF


async def test_a_caller_that_gives_up_leaves_no_process_busy(
    bmc: "IpmiSim", workers: IpmiWorkers
) -> None:
    os.kill(bmc.pid, signal.SIGSTOP)
    power = controller(bmc.options(), workers)
    for _ in range(6):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await power.state()
    os.kill(bmc.pid, signal.SIGCONT)
    assert await power.state() is PowerState.OFF


@pytest.fixture
def measuring(tmp_path: Path) -> "Iterator[Callable[[str], int]]":
    """Starts a BMC that knows DCMI; takes its mode, gives its port."""
    with ExitStack() as stack:

        def start(mode: str) -> int:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                probe.bind(("127.0.0.1", 0))
                port: int = probe.getsockname()[1]
            server = Path(__file__).with_name("dcmi_bmc.py")
            command = [sys.executable, "-P", str(server), str(port), mode]
            process = stack.enter_context(subprocess.Popen(command, stdin=subprocess.DEVNULL))
            stack.callback(process.kill)
            return port

        yield start


async def ready(power: IpmiController) -> None:
    """Wait until the BMC is up."""
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(RemoteError):
                await power.state()
                return


async def test_watts_by_dcmi(workers: IpmiWorkers, measuring: "Callable[[str], int]") -> None:
    for mode, expected in {"watts": 0x0123, "idle": None}.items():
        options = f"-H 127.0.0.1 -p {measuring(mode)} -U admin -P geheim"
        power = controller(options, workers)
        await ready(power)
        assert await power.power_w() == expected
        intruder = controller(options.replace("geheim", "falsch"), workers)
        with pytest.raises(PreconditionError):
            await intruder.state()


async def test_another_make_of_bmc_that_is_busy_at_first(
    workers: IpmiWorkers, measuring: "Callable[[str], int]"
) -> None:
    power = controller(f"-H 127.0.0.1 -p {measuring('busy')} -U admin -P geheim", workers)
    await ready(power)
    assert await power.state() is PowerState.ON
    assert await power.off() is PowerState.OFF
    await power.on()
    assert await power.state() is PowerState.ON


def mine(marker: str) -> list[int]:
    found: list[int] = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
                parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            except (OSError, IndexError):
                continue
            if parent == str(os.getpid()) and marker.encode() in b" ".join(words):
                found.append(int(folder.name))
    return found


async def test_no_password_is_in_the_list_of_processes_and_none_is_left(bmc: "IpmiSim") -> None:
    workers = IpmiWorkers()
    await controller(bmc.options(), workers).state()
    assert len(mine("ipmi_worker")) == 1
    assert mine("geheim") == []
    await workers.close()
    assert mine("ipmi_worker") == []
