"""Disk images of this host: the masters people put there, and the disks made from them.

A *master* is an image file in one of the image directories; it is never written. A VM that asks
for an image gets a qcow2 disk of its own that only holds what differs from the master
(copy-on-write). Its file name carries the ``vm_id``, so that a disk is found and removed without
any record, however often somebody died on the way.

All functions block (they run ``qemu-img`` and touch files): call them in a worker thread.
Everything ``qemu-img`` is given is an argument of its own, no shell is involved.
"""

import contextlib
import logging
import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from snooze.common.clock import SYSTEM_CLOCK, Clock
from snooze.common.errors import Conflict, ExecutionError, InvalidRequest, NotFound, Problem
from snooze.common.template_policy import path_is_inside
from snooze.common.vms import IMAGE_SUFFIXES
from snooze.localcontroller.hypervisor.port import DiskOffer
from snooze.localcontroller.loose_disks import (
    DISK_PREFIX,
    INCOMING_SUFFIX,
    DiskNotes,
    incoming_mark,
)

log = logging.getLogger(__name__)

_PROOF_PREFIX: Final = ".snooze-proof-"
_PROOF_KEPT_MS: Final = 3600 * 1000
_MAX_CHAIN: Final = 16


class Image(msgspec.Struct, frozen=True):
    """A master image.

    Attributes:
        name: of the file; what a client gives as ``imageId``.
        virtual_size_bytes: of the disk as a guest sees it.
        actual_size_bytes: taken on storage.
    """

    name: str
    path: str
    format: str
    virtual_size_bytes: int
    actual_size_bytes: int
    backing_path: str = ""


class _QemuInfo(msgspec.Struct, rename="kebab"):
    """What ``qemu-img info --output=json`` says of one file."""

    filename: str
    format: str
    virtual_size: int
    actual_size: int = 0
    backing_filename: str = ""
    full_backing_filename: str = ""
    backing_filename_format: str = ""


@dataclass(frozen=True, slots=True)
class ImageOptions:
    """Where images lie.

    Attributes:
        directories: of masters; templates' own disks lie in them or below, too.
        disk_directory: where disks of VMs are made, one of ``directories`` or below it.
        host_id: in the notes beside disks.
        timeout_s: of one run of ``qemu-img``.
        max_images: listed at most.
    """

    directories: tuple[str, ...] = ("/var/lib/libvirt/images",)
    disk_directory: str = "/var/lib/libvirt/images"
    host_id: str = "this-host"
    qemu_img: str = "qemu-img"
    timeout_s: float = 30.0
    max_images: int = 1000


class ImageStore:
    """The images of one host."""

    def __init__(self, options: ImageOptions, clock: Clock = SYSTEM_CLOCK) -> None:
        self.options = options
        self._clock = clock
        self.notes = DiskNotes(options.disk_directory, options.host_id, clock)
        self._seen: dict[tuple[str, int, int], Image | None] = {}

    def list_images(self) -> list[Image]:
        """All masters, by name; files that are no images are left out.

        What ``qemu-img`` said of a file is remembered until the file changes.
        """
        found: dict[str, Image] = {}
        fresh: dict[tuple[str, int, int], Image | None] = {}
        for path in self._candidates():
            try:
                status = path.stat()
            except OSError:
                continue
            key = (str(path), status.st_mtime_ns, status.st_size)
            image = self._seen[key] if key in self._seen else self._inspect_or_none(path)
            fresh[key] = image
            if image is not None:
                found.setdefault(image.name, image)
            if len(found) >= self.options.max_images:
                log.warning("more images than are listed", extra={"max": len(found)})
                break
        self._seen = fresh
        return sorted(found.values(), key=lambda image: image.name)

    def find(self, name: str) -> Image:
        """The master of this name, with or without its file name's suffix.

        Raises:
            InvalidRequest: if the name is none a file in a directory can have.
            NotFound: if there is no such image, or it lies outside by a symbolic link.
        """
        check_image_name(name)
        for directory in self.options.directories:
            for suffix in IMAGE_SUFFIXES:
                path = Path(directory, name + suffix)
                if path.is_file() and self._is_inside(path):
                    return self._inspect(path)
        raise NotFound(
            f"there is no image {name!r} in {', '.join(self.options.directories)}",
            problems=[Problem("image", f"no image {name!r}", "no_such_image")],
        )

    def disk_path(self, vm_id: str) -> str:
        """Where the disk of a VM lies, made or not."""
        return str(Path(self.options.disk_directory, f"{DISK_PREFIX}{vm_id}.qcow2"))

    def has_disk(self, vm_id: str) -> bool:
        """Whether a disk was made for a VM."""
        return Path(self.disk_path(vm_id)).exists()

    def create_disk(self, vm_id: str, image_name: str, generation: int = 1) -> str:
        """Make a copy-on-write disk on a master, once; its path.

        A disk that is already there is kept: it is this VM's, with what its guest wrote. Either way
        the note beside it says first that it is this host's.

        Raises:
            NotFound, InvalidRequest: as ``find``.
            ExecutionError: if ``qemu-img`` fails, or the note cannot be written; nothing is left.
        """
        path = Path(self.disk_path(vm_id))
        master = None if path.exists() else self.find(image_name)
        self.claim(vm_id, generation, used=master is None)
        if path.exists():
            return str(path)
        master = master or self.find(image_name)
        arguments = ["-b", master.path, "-F", master.format]
        try:
            self._create(path, "qcow2", arguments)
        except BaseException:
            self.notes.forget(vm_id)
            raise
        return str(path)

    def claim(self, vm_id: str, generation: int, *, used: bool) -> None:
        """Note whose a disk is, before it is made, and before a guest is started on it.

        Raises:
            ExecutionError: it cannot be noted.
        """
        try:
            Path(self.options.disk_directory).mkdir(parents=True, exist_ok=True)
            self.notes.claim(vm_id, generation, used=used)
        except OSError as error:
            raise ExecutionError(f"cannot write beside disk of VM {vm_id}: {error}") from error

    def check_free(self, path: str) -> None:
        """Refuse a disk that a guest has open, here or on any host that shares qemu's locks.

        Raises:
            ExecutionError: it is in use, or no image.
        """
        self._run(["info", "--", path], f"open {path} alone")

    def remove_disk(self, vm_id: str) -> bool:
        """Remove the disk made for a VM and what a dead try left; True if there was one."""
        path = Path(self.disk_path(vm_id))
        present = path.exists()
        for leftover in (path, _unfinished(path), incoming_mark(path)):
            leftover.unlink(missing_ok=True)
        self.notes.forget(vm_id)
        return present

    def check_disks(self, paths: Iterable[str]) -> None:
        """Make sure that each disk exists, and that it and all it is based on lie inside.

        A guest can write a header into its own raw disk that names any file of the host as its
        base: so the whole chain is looked at before each start.

        Raises:
            InvalidRequest: naming each disk that is missing or leads outside.
        """
        problems: list[Problem] = []
        for path in paths:
            wrong = self._disk_problem(Path(path))
            if wrong is not None:
                problems.append(Problem("devices/disk", wrong, "bad_disk"))
        if problems:
            raise InvalidRequest("; ".join(p.message for p in problems), problems=problems)

    def offer_disk(self, path: str, token: str) -> DiskOffer:
        """Describe a disk that is about to move, and lay a proof beside it.

        Whoever sees the proof file at the same path shares this storage; likewise for its master.

        Raises:
            ExecutionError: if the disk can not be read or the proof not written.
        """
        info = self._info(Path(path), chain=False)[0]
        proof = f"{_PROOF_PREFIX}{token}"
        backing = _backing_of(info, path)
        try:
            Path(path).with_name(proof).touch()
        except OSError as error:
            raise ExecutionError(f"cannot write beside {path}: {error}") from error
        # A guest may have written the name of any file into the header of its own disk.
        if backing and self._is_inside(Path(backing)):
            with contextlib.suppress(OSError):  # then it counts as not shared, which is safe
                Path(backing).with_name(proof).touch()
        return DiskOffer(
            path=path,
            format=info.format,
            virtual_size_bytes=info.virtual_size,
            backing_path=backing,
            backing_format=info.backing_filename_format,
            proof=proof,
        )

    def withdraw_proofs(self, token: str) -> None:
        """Remove the proofs of one offer, and those of others that nobody came back for."""
        for directory in {*self.options.directories, self.options.disk_directory}:
            for proof in Path(directory).rglob(f"{_PROOF_PREFIX}*"):
                try:
                    age_ms = self._clock.wall_ms() - proof.stat().st_mtime_ns // 1_000_000
                    if proof.name == f"{_PROOF_PREFIX}{token}" or age_ms > _PROOF_KEPT_MS:
                        proof.unlink(missing_ok=True)
                except OSError:
                    continue

    def is_shared(self, offer: DiskOffer) -> bool:
        """Whether this host sees the storage on which the offered disk lies."""
        return Path(offer.path).with_name(offer.proof).exists()

    def shares_master(self, offer: DiskOffer) -> bool:
        """Whether this host sees the storage on which the offered disk's master lies."""
        if not offer.backing_path:
            return False
        return Path(offer.backing_path).with_name(offer.proof).exists()

    def make_room(self, offer: DiskOffer, vm_id: str, *, incremental: bool) -> None:
        """Make an empty image into which a migration copies the offered disk.

        A mark beside it says that its content has not arrived; an image with such a mark is a dead
        try's and is made anew, one without a mark is somebody's and is never touched.

        Args:
            incremental: base it on the same master as the source's.

        Raises:
            Conflict: if a file is already there.
            InvalidRequest: if the path or the master is outside, or the master is missing.
        """
        path = Path(offer.path)
        mark = incoming_mark(path)
        if not self._is_inside(path):
            raise InvalidRequest(f"{path} is in no image directory of this host")
        if path.exists() and not _is_marked(mark, vm_id):
            raise Conflict(f"{path} already exists on this host and is not the source's")
        arguments: list[str] = []
        if incremental:
            master = Path(offer.backing_path)
            if not (master.is_file() and self._is_inside(master)):
                raise InvalidRequest(
                    f"the master image {master} is not in an image directory of this host"
                )
            arguments = ["-b", offer.backing_path, "-F", offer.backing_format]
        path.parent.mkdir(parents=True, exist_ok=True)
        mark.write_text(vm_id)
        self._create(path, offer.format, arguments, offer.virtual_size_bytes)

    def room_is_taken(self, paths: Iterable[str], vm_id: str) -> None:
        """The content has arrived: from now on these are the VM's disks."""
        for path in paths:
            mark = incoming_mark(Path(path))
            if _is_marked(mark, vm_id):
                mark.unlink(missing_ok=True)

    def give_room_back(self, vm_id: str) -> None:
        """Remove the images made for a migration of this VM that did not arrive; no others."""
        for directory in {*self.options.directories, self.options.disk_directory}:
            for mark in Path(directory).rglob(f"*{INCOMING_SUFFIX}"):
                if _is_marked(mark, vm_id):
                    mark.with_name(mark.name.removesuffix(INCOMING_SUFFIX)).unlink(missing_ok=True)
                    mark.unlink(missing_ok=True)

    def remove_moved(self, paths: Iterable[str]) -> None:
        """Remove disks whose content now lives on another host; only inside the directories."""
        for path in paths:
            if self._is_inside(Path(path)):
                Path(path).unlink(missing_ok=True)
                name = Path(path).name.removeprefix(DISK_PREFIX).removesuffix(".qcow2")
                if path == self.disk_path(name):
                    self.notes.forget(name)

    def _candidates(self) -> Iterator[Path]:
        for directory in self.options.directories:
            try:
                entries = sorted(Path(directory).iterdir())
            except OSError:
                continue
            for path in entries:
                hidden = path.name.startswith((".", DISK_PREFIX)) or path.name.endswith(
                    INCOMING_SUFFIX
                )
                if not hidden and path.is_file() and self._is_inside(path):
                    yield path

    def _is_inside(self, path: Path) -> bool:
        """Whether a path, all symbolic links followed, lies in the image directories."""
        real = os.path.realpath(path)
        allowed = tuple(
            os.path.realpath(d) for d in (*self.options.directories, self.options.disk_directory)
        )
        return path_is_inside(real, allowed)

    def _disk_problem(self, path: Path) -> str | None:
        if not path.exists():
            return f"the disk image {path} does not exist on this host"
        if not self._is_inside(path):
            return f"the disk image {path} leads to {os.path.realpath(path)}, which is not allowed"
        if not path.is_file():
            return f"the disk image {path} is no regular file"
        try:
            chain = self._info(path, chain=True)
        except ExecutionError as error:
            return error.message
        for info in chain[1:]:
            if not self._is_inside(Path(info.filename)):
                return f"the disk image {path} is based on {info.filename}, which is not allowed"
        return None

    def _inspect(self, path: Path) -> Image:
        info = self._info(path, chain=False)[0]
        backing = _backing_of(info, str(path))
        return Image(
            path.name, str(path), info.format, info.virtual_size, info.actual_size, backing
        )

    def _inspect_or_none(self, path: Path) -> Image | None:
        try:
            return self._inspect(path)
        except ExecutionError as error:
            log.info("not an image", extra={"path": str(path), "reason": error.message})
            return None

    def _info(self, path: Path, *, chain: bool) -> list[_QemuInfo]:
        """What qemu knows of a file, and of all it is based on; ``-U``: it may be in use."""
        command = ["info", "--output=json", "-U", *(["--backing-chain"] if chain else [])]
        output = self._run([*command, "--", str(path)], f"read {path}")
        try:
            if chain:
                infos = msgspec.json.decode(output, type=list[_QemuInfo])
            else:
                infos = [msgspec.json.decode(output, type=_QemuInfo)]
        except msgspec.DecodeError as error:
            raise ExecutionError(f"qemu-img said of {path} what is no answer: {error}") from error
        if not 1 <= len(infos) <= _MAX_CHAIN:
            raise ExecutionError(f"{path} is based on {len(infos)} images, one on the other")
        return infos

    def _create(
        self, path: Path, image_format: str, arguments: list[str], size_bytes: int | None = None
    ) -> None:
        """Make an image beside its place, then move it there: it is never seen half done."""
        if not re.fullmatch(r"[a-z0-9]{1,16}", image_format):
            raise InvalidRequest(f"{image_format[:40]!r} is no format of images")
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = _unfinished(path)
        size = [] if size_bytes is None else [str(size_bytes)]
        command = ["create", "-q", "-f", image_format, *arguments, "--", str(unfinished), *size]
        try:
            self._run(command, f"make {path}")
            unfinished.replace(path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise

    def _run(self, arguments: list[str], what: str) -> bytes:
        try:
            done = subprocess.run(
                [self.options.qemu_img, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=self.options.timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ExecutionError(f"qemu-img did not {what} in time") from error
        except OSError as error:
            raise ExecutionError(f"cannot run {self.options.qemu_img}: {error}") from error
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()[:500]
            raise ExecutionError(f"qemu-img could not {what}: {said}")
        return done.stdout


def check_image_name(name: str) -> None:
    """Refuse what is no plain file name.

    Raises:
        InvalidRequest: saying why.
    """
    wrong = (
        not name
        or len(name.encode(errors="replace")) > 200
        or "/" in name
        or name.startswith((".", "-", DISK_PREFIX))
        or not name.isprintable()
    )
    if wrong:
        message = f"{name[:40]!r} is no name of an image"
        raise InvalidRequest(message, problems=[Problem("image", message, "bad_image_name")])


def _unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name}.unfinished")


def _is_marked(mark: Path, vm_id: str) -> bool:
    try:
        return mark.read_text() == vm_id
    except OSError:
        return False


def _backing_of(info: _QemuInfo, path: str) -> str:
    backing = info.full_backing_filename or info.backing_filename
    return os.path.normpath(Path(path).parent / backing) if backing else ""
