"""The record in one file: made by ``snooze record export``, read again by ``import``.

``SNOOZE-RECORD-1`` and a line feed; the rest is one zlib stream of frames. A frame is the length of
its body (4 bytes, big endian) and the body, MessagePack:

=====================  ============================================================================
first                  ``FileHeader``
others                 ``[kind, id, value]``; where it lies is the business of ``record_layout.py``
last                   ``FileTrailer``: how many, and the SHA-256 of all bodies before it
=====================  ============================================================================

A file is written beside its name and renamed when it is whole; only its owner may read it, as
records have what hosts are woken with. Whatever is wrong with a file is found by ``verify`` before
anything of it is used: every length and the stream's own are bounded.
"""

import hashlib
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from snooze.common.errors import InvalidRequest

MAGIC: Final = b"SNOOZE-RECORD-1\n"
MAX_BODY_BYTES: Final = 1_100_000
"""Above the largest value that a transaction can write."""
MAX_ENTRIES: Final = 10_000_000
MAX_BYTES: Final = 16 * 1024**3
"""Of a file unpacked: more than a ZooKeeper, which keeps all of it in memory, is ever given."""
_CHUNK_BYTES: Final = 64 * 1024
_LENGTH: Final = struct.Struct("!I")
_Decoded = TypeVar("_Decoded")


class FileHeader(msgspec.Struct, frozen=True):
    """Where and when a file was made.

    ``epoch``: how many leaders the store had had; a restored one must go on above it, as hosts
    refuse orders of older epochs.
    """

    schema: int
    layout: int
    epoch: int
    made_ms: int
    root: str
    version: str


class FileTrailer(msgspec.Struct, frozen=True):
    """The end of a whole file."""

    entries: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One value: ``kind`` is the first part of its path (``vms``), ``id`` the last, or empty."""

    kind: str
    id: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Verified:
    """A whole file: its header, its number of entries, and what tells it from any other."""

    header: FileHeader
    entries: int
    sha256: str


def write(path: Path, header: FileHeader, entries: Iterable[FileEntry]) -> Verified:
    """Write a file, whole or not at all. Raises: OSError."""
    part = path.with_name(f"{path.name}.part")
    packer = zlib.compressobj(6)
    digest = hashlib.sha256()
    count = 0
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:

        def put(body: bytes) -> None:
            file.write(packer.compress(_LENGTH.pack(len(body)) + body))

        file.write(MAGIC)
        for body in _bodies(header, entries):
            digest.update(body)
            put(body)
            count += 1
        put(msgspec.msgpack.encode(FileTrailer(count - 1, digest.digest())))
        file.write(packer.flush())
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    return Verified(header, count - 1, digest.hexdigest())


def _bodies(header: FileHeader, entries: Iterable[FileEntry]) -> Iterator[bytes]:
    yield msgspec.msgpack.encode(header)
    for entry in entries:
        yield msgspec.msgpack.encode([entry.kind, entry.id, entry.value])


def verify(path: Path) -> Verified:
    """Read a file to its end.

    Raises:
        InvalidRequest: it is no such file, of a newer kind, damaged or cut short; says which.
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    bodies = _frames(path)
    last = next(bodies, None)
    if last is None:
        raise _wrong(path, "it is empty")
    header = _decode(path, last, FileHeader)
    entries = -1
    for body in bodies:
        digest.update(last)
        last = body
        entries += 1
        if entries > MAX_ENTRIES:
            raise _wrong(path, f"it has more than {MAX_ENTRIES} entries")
    trailer = _decode(path, last, FileTrailer)
    if trailer.entries != entries or trailer.sha256 != digest.digest():
        raise _wrong(path, "its checksum does not fit: it was damaged")
    return Verified(header, entries, digest.hexdigest())


def read(path: Path, verified: Verified) -> Iterator[FileEntry]:
    """The entries of a file that was verified. Raises: as ``verify``."""
    for number, body in enumerate(_frames(path)):
        if 1 <= number <= verified.entries:
            kind, entry_id, value = _decode(path, body, tuple[str, str, bytes])
            yield FileEntry(kind, entry_id, value)


def _frames(path: Path) -> Iterator[bytes]:
    """The bodies of all frames, never more than one of them and a chunk in memory."""
    unpacker = zlib.decompressobj()
    buffer = bytearray()
    if path.exists() and not path.is_file():
        raise _wrong(path, "it is no plain file, and is read more than once")
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise _wrong(path, "it was not made by 'snooze record export', or by a newer version")
        total = 0
        while not unpacker.eof:
            packed = unpacker.unconsumed_tail or file.read(_CHUNK_BYTES)
            if not packed:
                raise _wrong(path, "it is cut short")
            try:
                unpacked = unpacker.decompress(packed, _CHUNK_BYTES)
            except zlib.error as error:
                raise _wrong(path, f"it is damaged ({error})") from error
            total += len(unpacked)
            if total > MAX_BYTES:
                raise _wrong(path, f"it unpacks to more than {MAX_BYTES} bytes")
            buffer += unpacked
            yield from _whole_frames(path, buffer)
        if unpacker.unused_data or file.read(1):
            raise _wrong(path, "there is something behind its end")
    if buffer:
        raise _wrong(path, "its last entry is cut short")


def _whole_frames(path: Path, buffer: bytearray) -> Iterator[bytes]:
    begin = 0
    while len(buffer) - begin >= _LENGTH.size:
        (length,) = _LENGTH.unpack_from(buffer, begin)
        if length > MAX_BODY_BYTES:
            raise _wrong(path, f"an entry of {length} bytes is larger than any we write")
        end = begin + _LENGTH.size + length
        if end > len(buffer):
            break
        yield bytes(buffer[begin + _LENGTH.size : end])
        begin = end
    del buffer[:begin]


def _decode(path: Path, body: bytes, kind: type[_Decoded]) -> _Decoded:
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _wrong(path, f"an entry is not what it should be ({error})") from error


def _wrong(path: Path, what: str) -> InvalidRequest:
    return InvalidRequest(f"{path}: {what}; nothing of it was used")
