"""Disks without their VM, with real files, the real qemu-img and its locks."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from snooze.common.clock import ManualClock
from snooze.common.errors import Conflict, ExecutionError
from snooze.common.vms import LooseDisk
from snooze.localcontroller.images import ImageOptions, ImageStore
from snooze.localcontroller.loose_disks import FOREIGN_S, MAX_LOOSE, UNBORN_S

VM_ID = "0123456789abcdef0123456789abcdef"
NOTHING: frozenset[str] = frozenset()


@pytest.fixture
def clock() -> ManualClock:
    """A little later than whatever a test writes."""
    return ManualClock(wall_start_ms=round(time.time() * 1000) + 10_000)


def store_of(folder: Path, clock: ManualClock, host_id: str = "host-a") -> ImageStore:
    master = folder / "master.raw"
    if not master.exists():
        master.write_bytes(b"\0" * 65536)
    disks = str(folder / "disks")
    return ImageStore(ImageOptions((str(folder),), disks, host_id=host_id), clock)


def make(store: ImageStore, generation: int = 1, *, used: bool = True) -> Path:
    path = Path(store.create_disk(VM_ID, "master.raw", generation))
    if used:
        store.claim(VM_ID, generation, used=True)
    return path


def only(store: ImageStore) -> LooseDisk:
    [disk] = store.notes.loose(NOTHING, NOTHING)
    return disk


def test_what_is_not_ours_is_never_removed(tmp_path: Path, clock: ManualClock) -> None:
    store = store_of(tmp_path, clock)
    path = make(store)
    store.notes.forget(VM_ID)
    assert store.notes.loose(NOTHING, NOTHING) == [], "another's, perhaps: it was written of late"
    clock.advance(FOREIGN_S)
    disk = only(store)
    assert (disk.generation, disk.host_id) == (0, "")
    assert not store.notes.is_unborn(disk)
    with pytest.raises(Conflict, match="no note"):
        store.notes.drop(disk, 0.0, store.check_free)
    assert path.exists()
    for name in ("snooze-short.qcow2", "person.qcow2", f"snooze-{VM_ID}.raw"):
        (tmp_path / "disks" / name).touch()
    (tmp_path / "disks" / f"snooze-{'f' * 32}.qcow2").symlink_to(path)
    assert only(store).vm_id == VM_ID


def test_a_disk_that_a_guest_has_open_stays(tmp_path: Path, clock: ManualClock) -> None:
    store = store_of(tmp_path, clock)
    path = make(store)
    with subprocess.Popen(
        ["qemu-io", "-f", "qcow2", str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as guest:
        assert guest.stdin is not None
        assert guest.stdout is not None
        guest.stdin.write(b"help read\n")
        guest.stdin.flush()
        guest.stdout.readline()  # it is open
        with pytest.raises(ExecutionError, match="lock"):
            store.notes.drop(only(store), 0.0, store.check_free)
        guest.stdin.close()
    assert path.exists()
    store.notes.drop(only(store), 0.0, store.check_free)
    assert not list((tmp_path / "disks").iterdir())


def test_whoever_starts_on_it_meanwhile_has_it(tmp_path: Path, clock: ManualClock) -> None:
    """On shared storage, between the last look and the removal."""
    store, other = store_of(tmp_path, clock), store_of(tmp_path, clock, "host-b")
    path = make(store)
    looks: list[str] = []

    def claimed_by_another(asked: str) -> None:
        if not looks:
            other.claim(VM_ID, 2, used=True)
        looks.append(asked)

    with pytest.raises(Conflict, match="claimed"):
        store.notes.drop(only(store), 0.0, claimed_by_another)
    assert path.exists()
    assert not list(path.parent.glob("*.removed"))
    assert store.notes.loose(NOTHING, NOTHING) == [], "it is the other host's now"


def test_what_was_moved_aside_by_one_that_died_comes_back(
    tmp_path: Path, clock: ManualClock
) -> None:
    store = store_of(tmp_path, clock)
    path = make(store)
    aside = path.rename(path.with_name(f".{path.name}.removed"))
    assert store.notes.loose(NOTHING, NOTHING) == []
    assert aside.exists(), "it may be under way"
    clock.advance(UNBORN_S + 5)
    store.notes.loose(NOTHING, NOTHING)
    assert path.exists()
    assert not aside.exists()


def test_a_domain_that_is_here_makes_its_disk_this_hosts(
    tmp_path: Path, clock: ManualClock
) -> None:
    old, new = store_of(tmp_path, clock), store_of(tmp_path, clock, "host-b")
    make(old, generation=2)
    new.notes.adopt(VM_ID, 1, is_on=True)
    note = new.notes.read(VM_ID)
    assert note is not None
    assert (note.host_id, note.generation) == ("host-a", 2), "a later life of it has it"
    new.notes.adopt(VM_ID, 2, is_on=False)
    assert new.notes.read(VM_ID) == note, "its copy there is off"
    new.notes.adopt(VM_ID, 2, is_on=True)
    note = new.notes.read(VM_ID)
    assert note is not None
    assert note.host_id == "host-b"
    new.notes.forget(VM_ID)
    old.notes.adopt(VM_ID, 3, is_on=False)
    note = old.notes.read(VM_ID)
    assert note is not None
    assert (note.host_id, note.generation, note.used) == ("host-a", 3, True)


def test_what_a_start_that_died_made_is_unborn_until_a_guest_was_on_it(
    tmp_path: Path, clock: ManualClock
) -> None:
    store, other = store_of(tmp_path, clock), store_of(tmp_path, clock, "host-b")
    make(store, used=False)
    assert not store.notes.is_unborn(only(store)), "it may be under way"
    clock.advance(UNBORN_S)
    assert store.notes.is_unborn(only(store))
    clock.advance(FOREIGN_S)
    assert not other.notes.is_unborn(only(other)), "that is for its own host to say"
    other.create_disk(VM_ID, "master.raw", 1)
    assert not other.notes.is_unborn(only(other)), "it was found here, by whomever it was made"
    store.notes.claim(VM_ID, 1, used=False)
    assert not store.notes.is_unborn(only(store)), "once used, always used"


def test_reports_are_bounded_and_ones_own_come_first(tmp_path: Path, clock: ManualClock) -> None:
    store, other = store_of(tmp_path, clock), store_of(tmp_path, clock, "host-b")
    folder = tmp_path / "disks"
    folder.mkdir()
    for number in range(MAX_LOOSE + 1):
        path = folder / f"snooze-{number:032x}.qcow2"
        path.touch()
        os.utime(path, (number, number))
        other.claim(f"{number:032x}", 1, used=True)
    own = f"{'e' * 32}"
    (folder / f"snooze-{own}.qcow2").touch()
    store.claim(own, 1, used=True)
    found = store.notes.loose(NOTHING, NOTHING)
    assert len(found) == MAX_LOOSE
    assert found[0].vm_id == own
    assert found[1].vm_id == f"{0:032x}", "those that were left alone for longest"


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"vm_id":3}', b"\xff" * 10000])
def test_a_note_that_is_garbage_is_none(tmp_path: Path, clock: ManualClock, text: bytes) -> None:
    store = store_of(tmp_path, clock)
    make(store)
    (tmp_path / "disks" / f".snooze-{VM_ID}.note").write_bytes(text)
    assert store.notes.read(VM_ID) is None
