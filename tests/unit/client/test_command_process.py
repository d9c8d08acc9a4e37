"""The command as a process: terminals, signals, pipes, what it loads."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from snooze.client.fake_cluster import FakeCluster

ROOT = Path(__file__).parents[3]
TIMEOUT_S = 60


@pytest.fixture
def environment(fake: FakeCluster) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", "/"),
        "PYTHONPATH": str(ROOT / "typings"),
        "SNOOZE_URL": fake.url,
        "TERM": "xterm-256color",
        "LANG": "C.UTF-8",
    }


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "snooze.client.command", *arguments]


class Terminal:
    """A process on a terminal of its own."""

    def __init__(self, arguments: list[str], environment: dict[str, str], columns: int) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        self.process = subprocess.Popen(
            arguments,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
        )
        os.close(slave)
        self.shown = ""

    def read_until(self, text: str) -> None:
        while text not in self.shown:
            assert self._read(), self.shown

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def end(self) -> int:
        """Read all there is; the exit code."""
        while self._read():
            pass
        os.close(self._master)
        return self.process.wait(TIMEOUT_S)

    def _read(self) -> bool:
        """Take in what is shown next; False when the process has closed its terminal."""
        readable, _, _ = select.select([self._master], [], [], TIMEOUT_S)
        if not readable:
            self.process.kill()
            raise TimeoutError(f"the command hangs after {self.shown!r}")
        try:
            content = os.read(self._master, 4096)
        except OSError:
            return False
        self.shown += content.decode(errors="replace")
        return bool(content)


def test_help_loads_nothing_heavy(environment: dict[str, str]) -> None:
    code = (
        "import sys\n"
        "from snooze.client.command import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "print(' '.join(sys.modules), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    loaded = set(done.stderr.decode().split())
    assert b"migrate" in done.stdout
    assert "snooze.client.command" in loaded
    assert not loaded & {"aiohttp", "asyncio", "numpy", "libcloud", "lxml", "libvirt", "kazoo"}


INTERRUPTED_IMPORT = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)

class Finder:
    def find_spec(self, name, path, target=None):
        if name == "snooze.client.vm_commands":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
from snooze.client.entry import main
main()
"""


def test_an_interrupt_while_modules_are_read_says_nothing(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_IMPORT],
        env=environment,
        capture_output=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")


def test_an_interrupted_wait(fake: FakeCluster, environment: dict[str, str]) -> None:
    fake.add_vm("web")
    fake.stuck = True
    terminal = Terminal(command("suspend", "web"), environment, 80)
    fake.wait_until_asked("/v1/tasks/")
    terminal.interrupt()
    assert terminal.end() == 130
    assert f"The order stands: snooze task {1:032x}" in " ".join(terminal.shown.split())
    assert "Traceback" not in terminal.shown


def test_an_interrupt_without_a_terminal(fake: FakeCluster, environment: dict[str, str]) -> None:
    process = subprocess.Popen(
        command("events", "--follow"),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    fake.wait_until_asked("/v1/cluster")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130
    assert errors.strip() == b""


@pytest.mark.parametrize(
    "arguments", [("list",), ("events", "--follow"), ("list", "-o", "json"), ("decisions",)]
)
def test_a_reader_that_goes_away(
    fake: FakeCluster, environment: dict[str, str], arguments: tuple[str, ...]
) -> None:
    fake.add_vm("web")
    fake.emit("vm.running", "web", "runs")
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            command(*arguments),
            env=environment,
            stdout=writing,
            stderr=subprocess.PIPE,
            timeout=TIMEOUT_S,
            check=False,
        )
    finally:
        os.close(writing)
    assert done.returncode == 141
    assert done.stderr == b""


def test_a_migration_on_a_terminal(fake: FakeCluster, environment: dict[str, str]) -> None:
    fake.add_vm("web")
    terminal = Terminal(command("migrate", "web", "--to", "host-2"), environment, 80)
    assert terminal.end() == 0
    assert "migrate web" in terminal.shown
    assert "MiB of 512.0 MiB" in terminal.shown
    assert "\x1b[32mrunning" in terminal.shown


@pytest.mark.parametrize("view", ["list", "hierarchy"])
def test_a_narrow_terminal_without_colours(
    fake: FakeCluster, environment: dict[str, str], view: str
) -> None:
    fake.add_vm("a-name-that-is-longer-than-the-terminal-is-wide")
    terminal = Terminal(command(view), environment | {"NO_COLOR": "1"}, 24)
    assert terminal.end() == 0
    assert "Traceback" not in terminal.shown
    assert "\x1b[3" not in terminal.shown
    plain = re.sub(r"\x1b\[[0-9;]*m", "", terminal.shown)
    assert max(len(line) for line in plain.splitlines()) <= 24


def test_destroy_asks_on_a_terminal(fake: FakeCluster, environment: dict[str, str]) -> None:
    fake.add_vm("web")
    terminal = Terminal(command("destroy", "web"), environment, 80)
    terminal.read_until("[y/N]")
    terminal.type("n\n")
    assert terminal.end() == 1
    assert "Nothing was destroyed" in terminal.shown
    assert list(fake.vms) == ["web"]
    terminal = Terminal(command("destroy", "web"), environment, 80)
    terminal.read_until("[y/N]")
    terminal.interrupt()
    # A signal just before the read blocks is seen when the read returns.
    terminal.type("\n")
    assert terminal.end() == 130
    terminal = Terminal(command("destroy", "web", "--yes"), environment, 80)
    assert terminal.end() == 0
    assert fake.vms == {}


def test_completion_knows_the_vms(fake: FakeCluster, environment: dict[str, str]) -> None:
    for name in ("web-1", "web-2", "db"):
        fake.add_vm(name)
    asking = {
        "_SNOOZE_COMPLETE": "complete_bash",
        "COMP_WORDS": "snooze info web",
        "COMP_CWORD": "2",
    }
    code = "from snooze.client.command import app; app(prog_name='snooze')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | asking,
        capture_output=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.stdout.decode().split() == ["web-1", "web-2"]
    assert done.stderr == b""
    nobody = environment | asking | {"SNOOZE_URL": "http://127.0.0.1:1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=nobody,
        capture_output=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.stdout.decode().split() == []
    assert done.stderr == b""
