# pyright: reportPrivateUsage=false
"""The guard beside an agent, where no libvirt is needed; with one: tests/integration/hypervisor."""

import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from snooze.common.clock import ManualClock
from snooze.common.resources import Capacity
from snooze.localcontroller import fence_guard
from snooze.localcontroller.domain_xml import VmTag
from snooze.localcontroller.fence_guard import MAX_ASKED, Doomed, Guard, Note, fence
from snooze.localcontroller.lease_file import LeaseFile, LeaseState


def test_a_libvirt_that_hangs_for_hours_is_not_asked_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = threading.Event()
    asked: list[str] = []
    killed: list[None] = []

    def hangs(uri: str, _note: object) -> bool:
        asked.append(uri)
        answers.wait(10)
        return True

    def by_signal(_note: object) -> bool:
        killed.append(None)
        return False

    monkeypatch.setattr(fence_guard, "LIBVIRT_S", 0.001)
    monkeypatch.setattr(fence_guard, "_by_libvirt", hangs)
    monkeypatch.setattr(fence_guard, "_by_signal", by_signal)
    for _ in range(3 * MAX_ASKED):
        assert not fence("qemu:///system", _nothing)
    assert len(asked) == MAX_ASKED
    assert len(killed) == 3 * MAX_ASKED, "what runs is killed each time, without libvirt"
    answers.set()
    monkeypatch.setattr(fence_guard, "LIBVIRT_S", 5.0)
    for thread in threading.enumerate():
        if thread.daemon and thread.name.endswith("(work)"):
            thread.join(5)
    assert fence("qemu:///system", _nothing), "it is asked again once it answers"


def _nothing(_doomed: Doomed) -> bool:
    """Nothing is noted."""
    return True


class Watched:
    """A guard, and what it was told to do."""

    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock()
        self.file = LeaseFile(folder / "lease.json")
        self.notes: list[Note] = []
        self.guard = Guard(LeaseFile(self.file.path), self._fence, self.clock)
        self.grant()

    def grant(self) -> None:
        self.file.write(LeaseState(until_s=self.clock.boottime_s() + 30.0, grace_s=2.0))

    def _fence(self, note: Note) -> bool:
        self.notes.append(note)
        return True


def test_a_lease_whose_file_cannot_be_read_any_more_ends_when_it_would_have(
    tmp_path: Path,
) -> None:
    watched = Watched(tmp_path)
    watched.guard.look()
    watched.file.path.write_bytes(b"\0" * 100)
    watched.clock.advance(31.0)
    watched.guard.look()
    assert watched.notes == []
    watched.clock.advance(2.0)
    watched.guard.look()
    assert len(watched.notes) == 1


def test_what_runs_under_a_new_lease_is_left_alone_by_a_libvirt_that_hung(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    watched.clock.advance(33.0)
    watched.guard.look()
    assert watched.notes[0]({"a": 1})
    watched.grant()
    assert not watched.notes[0]({"b": 1}), "it answers now, and names what was started since"
    assert "b" not in watched.file.read().fenced


def test_a_late_list_ends_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    tag = VmTag("a", 1, Capacity(1.0, 1.0))

    class Domain:
        def XMLDesc(self) -> str:
            return ""

        def destroy(self) -> None:
            ended.append("a")

    class Connection:
        def listAllDomains(self, _flags: int) -> list[Domain]:
            return [Domain()]

        def close(self) -> None:
            pass

    def opened(_uri: str) -> Connection:
        return Connection()

    def facts(_xml: str) -> SimpleNamespace:
        return SimpleNamespace(tag=tag)

    monkeypatch.setattr("libvirt.open", opened)
    monkeypatch.setattr(fence_guard, "read_domain", facts)
    assert fence_guard._by_libvirt("test:///default", lambda doomed: False)
    assert ended == []
    assert fence_guard._by_libvirt("test:///default", lambda doomed: True)
    assert ended == ["a"]
