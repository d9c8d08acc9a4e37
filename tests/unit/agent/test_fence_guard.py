"""The guard beside an agent, where no libvirt is needed; with one: tests/integration/hypervisor."""

import threading

import pytest

from snooze.localcontroller import fence_guard
from snooze.localcontroller.fence_guard import MAX_ASKED, Doomed, fence


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


def _nothing(_doomed: Doomed) -> None:
    """Nothing is noted."""
