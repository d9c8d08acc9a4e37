"""Images, with the real qemu-img."""

import os
import subprocess
from pathlib import Path

import pytest

from snooze.common.clock import ManualClock
from snooze.common.errors import Conflict, ExecutionError, InvalidRequest, NotFound
from snooze.localcontroller.hypervisor.port import DiskOffer
from snooze.localcontroller.images import ImageOptions, ImageStore

VM_ID = "0123456789abcdef0123456789abcdef"


def make_store(folder: Path, name: str = "images") -> ImageStore:
    directory = folder / name
    directory.mkdir(exist_ok=True)
    return ImageStore(ImageOptions((str(directory),), str(directory / "disks")))


def make_image(path: Path, size: str = "1M", kind: str = "qcow2", *more: str) -> Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", kind, *more, str(path), size], check=True)
    return path


def test_masters_are_listed_once_and_looked_at_again_when_they_change(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    master = make_image(tmp_path / "images/a.qcow2", "8M")
    (tmp_path / "images/notes.txt").write_text("raw by qemu's reckoning")
    (tmp_path / "images/.hidden").touch()
    (tmp_path / "images/snooze-x.qcow2").touch()
    (tmp_path / "images/folder").mkdir()
    assert [(i.name, i.format) for i in store.list_images()] == [
        ("a.qcow2", "qcow2"),
        ("notes.txt", "raw"),
    ]
    master.unlink()
    make_image(master, "16M")
    os.utime(master, ns=(1, 1))
    assert store.list_images()[0].virtual_size_bytes == 16 * 2**20


def test_what_is_no_image_is_left_out(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    (tmp_path / "images/broken.qcow2").write_bytes(b"QFI\xfb\0\0\0\x03" + b"\xff" * 600)
    assert store.list_images() == []


@pytest.mark.parametrize("name", ["a.qcow2", "a"])
def test_a_disk_is_made_on_its_master_once(tmp_path: Path, name: str) -> None:
    store = make_store(tmp_path)
    master = make_image(tmp_path / "images/a.qcow2", "8M")
    before = master.read_bytes()
    path = store.create_disk(VM_ID, name)
    assert VM_ID in path
    identity = Path(path).stat().st_ino
    assert store.create_disk(VM_ID, name) == path
    assert Path(path).stat().st_ino == identity, "what the guest wrote is kept"
    store.check_disks([path])
    offer = store.offer_disk(path, "t")
    assert (offer.backing_path, offer.virtual_size_bytes) == (str(master), 8 * 2**20)
    assert store.remove_disk(VM_ID)
    assert not store.remove_disk(VM_ID)
    assert not Path(path).exists()
    assert master.read_bytes() == before


@pytest.mark.parametrize(
    "name", ["", "../a.qcow2", "/etc/shadow", "a/b", "-b", ".hidden", "a\n", "x" * 300, "snooze-x"]
)
def test_an_image_is_named_by_a_file_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidRequest, match="no name of an image"):
        make_store(tmp_path).create_disk(VM_ID, name)


def test_an_unknown_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no image 'missing'"):
        make_store(tmp_path).create_disk(VM_ID, "missing")


def test_a_link_to_outside_is_no_image(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    make_image(tmp_path / "secret.qcow2")
    (tmp_path / "images/link.qcow2").symlink_to(tmp_path / "secret.qcow2")
    assert store.list_images() == []
    with pytest.raises(NotFound):
        store.find("link.qcow2")
    with pytest.raises(InvalidRequest, match="leads to"):
        store.check_disks([str(tmp_path / "images/link.qcow2")])


def test_a_disk_based_on_a_file_outside_is_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    make_image(tmp_path / "secret.qcow2")
    bad = tmp_path / "images/bad.qcow2"
    make_image(bad, "1M", "qcow2", "-b", str(tmp_path / "secret.qcow2"), "-F", "qcow2")
    with pytest.raises(InvalidRequest, match=r"based on .*secret"):
        store.check_disks([str(bad)])


def test_every_missing_disk_is_named(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    paths = [str(tmp_path / "images" / name) for name in ("one.raw", "two.raw")]
    with pytest.raises(InvalidRequest, match=r"one\.raw does not exist.*two\.raw does not exist"):
        store.check_disks(paths)


def test_a_failure_of_qemu_img_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.raw").write_bytes(bytes(512))
    directory = str(tmp_path / "images")
    for tool in ("/bin/false", "/nowhere/qemu-img"):
        store = ImageStore(ImageOptions((directory,), directory, qemu_img=tool))
        with pytest.raises(ExecutionError, match="qemu-img"):
            store.create_disk(VM_ID, "a.raw")
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nexec sleep 30\n")
    slow.chmod(0o755)
    store = ImageStore(ImageOptions((directory,), directory, qemu_img=str(slow), timeout_s=0.1))
    with pytest.raises(ExecutionError, match="in time"):
        store.create_disk(VM_ID, "a.raw")
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["a.raw"]


def make_offer(path: Path, proof: str = "p") -> DiskOffer:
    return DiskOffer(str(path), "raw", 4096, proof=proof)


def test_a_proof_is_seen_where_the_storage_is_shared(tmp_path: Path) -> None:
    here, there = make_store(tmp_path, "here"), make_store(tmp_path, "there")
    disk = make_image(tmp_path / "here/a.raw", "1M", "raw")
    offer = here.offer_disk(str(disk), "token")
    assert here.is_shared(offer)
    elsewhere = DiskOffer(str(tmp_path / "there/a.raw"), "raw", 4096, proof=offer.proof)
    assert not there.is_shared(elsewhere)
    here.withdraw_proofs("token")
    assert not here.is_shared(offer)


def test_proofs_nobody_came_back_for_are_taken_away(tmp_path: Path) -> None:
    clock = ManualClock(wall_start_ms=2_000_000_000_000)
    (tmp_path / "images").mkdir()
    store = ImageStore(ImageOptions((str(tmp_path / "images"),), str(tmp_path / "images")), clock)
    old, new = (tmp_path / f"images/.snooze-proof-{age}" for age in ("old", "new"))
    for proof, age_s in ((old, 7200), (new, 10)):
        proof.touch()
        when_s = clock.wall_ms() / 1000 - age_s
        os.utime(proof, (when_s, when_s))
    store.withdraw_proofs("none")
    assert (old.exists(), new.exists()) == (False, True)


def test_a_proof_beside_a_disk_in_a_folder_of_its_own_is_taken_away(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    (tmp_path / "images/mine").mkdir()
    disk = make_image(tmp_path / "images/mine/a.qcow2")
    assert store.is_shared(store.offer_disk(str(disk), "token"))
    store.withdraw_proofs("token")
    assert list(disk.parent.iterdir()) == [disk]


def test_a_header_that_a_guest_wrote_leads_nowhere_when_it_moves(tmp_path: Path) -> None:
    """Its raw disk says that it is based on a file of the host."""
    store = make_store(tmp_path)
    secret = tmp_path / "private/secret"
    secret.parent.mkdir()
    secret.write_bytes(bytes(4096))
    disk = make_image(tmp_path / "images/a.raw", "1M", "qcow2", "-b", str(secret), "-F", "raw")
    offer = store.offer_disk(str(disk), "token")
    assert list(secret.parent.iterdir()) == [secret]
    disk.unlink()
    with pytest.raises(InvalidRequest, match="image directory"):
        store.make_room(offer, VM_ID, incremental=True)
    assert not disk.exists()


def test_room_is_made_again_after_a_dead_try_and_given_back(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    path = tmp_path / "images/a.raw"
    offer = make_offer(path)
    for _ in range(2):
        store.make_room(offer, VM_ID, incremental=False)
        assert path.stat().st_size == 4096
    store.give_room_back("f" * 32)
    assert path.exists(), "another VM's room is not ours to give"
    store.give_room_back(VM_ID)
    assert list((tmp_path / "images").iterdir()) == []
    store.make_room(offer, VM_ID, incremental=False)
    store.room_is_taken([str(path)], VM_ID)
    store.give_room_back(VM_ID)
    assert path.exists(), "what has arrived stays"


def test_room_is_not_made_over_a_file_or_outside(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    path = tmp_path / "images/a.raw"
    path.write_text("precious")
    with pytest.raises(Conflict, match="already exists"):
        store.make_room(make_offer(path), VM_ID, incremental=False)
    assert path.read_text() == "precious"
    with pytest.raises(InvalidRequest, match="no image directory"):
        store.make_room(make_offer(tmp_path / "b.raw"), VM_ID, incremental=False)
    with pytest.raises(InvalidRequest, match="master"):
        store.make_room(make_offer(tmp_path / "images/c.raw"), VM_ID, incremental=True)


def test_only_disks_inside_are_removed_when_moved(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    inside, outside = tmp_path / "images/a.raw", tmp_path / "b.raw"
    inside.touch()
    outside.touch()
    store.remove_moved([str(inside), str(outside)])
    assert (inside.exists(), outside.exists()) == (False, True)
