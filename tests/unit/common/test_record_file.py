"""Files of the record: whole or refused, whatever was done to them."""

import os
import stat
import zlib
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snooze.common import record_file
from snooze.common.errors import InvalidRequest
from snooze.common.record_file import (
    MAGIC,
    MAX_BODY_BYTES,
    FileEntry,
    FileHeader,
    FileTrailer,
    read,
    verify,
    write,
)

HEADER = FileHeader(2, 2, 7, 1_700_000_000_000, "/snooze", "1.0")
ENTRIES = [
    FileEntry("vms", "ab" * 16, b"\x02value"),
    FileEntry("autonomy", "", b""),
    FileEntry("tasks", "t", b"x" * 1_000_000),
]


def frames(*bodies: bytes) -> bytes:
    return b"".join(len(body).to_bytes(4, "big") + body for body in bodies)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "record"
    written = write(path, HEADER, iter(ENTRIES))
    verified = verify(path)
    assert verified == written
    assert (verified.header, verified.entries) == (HEADER, 3)
    assert list(read(path, verified)) == ENTRIES
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["record"]
    assert path.stat().st_size < 10_000


def test_an_empty_record_is_a_file_too(tmp_path: Path) -> None:
    path = tmp_path / "record"
    write(path, HEADER, ())
    assert list(read(path, verify(path))) == []


def test_a_file_that_cannot_be_finished_leaves_the_former(tmp_path: Path) -> None:
    path = tmp_path / "record"
    write(path, HEADER, ENTRIES[:1])

    def broken() -> "list[FileEntry]":
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        write(path, HEADER, (entry for entry in broken()))
    assert verify(path).entries == 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(where=st.floats(0.0, 1.0, exclude_max=True))
def test_a_file_cut_short_is_refused(tmp_path: Path, where: float) -> None:
    path = tmp_path / "record"
    write(path, HEADER, ENTRIES)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * where)])
    with pytest.raises(InvalidRequest, match="nothing of it was used"):
        verify(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(where=st.floats(0.0, 1.0, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_found(tmp_path: Path, where: float, bit: int) -> None:
    path = tmp_path / "record"
    write(path, HEADER, ENTRIES)
    whole = bytearray(path.read_bytes())
    whole[int(len(whole) * where)] ^= 1 << bit
    path.write_bytes(whole)
    try:
        verified = verify(path)
    except InvalidRequest:
        return
    assert list(read(path, verified)) == ENTRIES, "a bit that means nothing to zlib"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(content=st.binary(max_size=300), packed=st.booleans())
def test_nonsense_is_refused(tmp_path: Path, content: bytes, packed: bool) -> None:
    path = tmp_path / "record"
    path.write_bytes(MAGIC + (zlib.compress(content) if packed else content))
    with pytest.raises(InvalidRequest):
        verify(path)


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "record"
    bomb = (MAX_BODY_BYTES + 1).to_bytes(4, "big") + b"\0" * 200_000_000
    path.write_bytes(MAGIC + zlib.compress(bomb))
    with pytest.raises(InvalidRequest, match="larger than any we write"):
        verify(path)


@pytest.mark.parametrize(
    ("bodies", "what"),
    [
        ([], "empty"),
        ([msgspec.msgpack.encode(HEADER)], "checksum|not what it should be"),
        ([b"\xc1", b"\xc1"], "not what it should be"),
        ([msgspec.msgpack.encode(HEADER), msgspec.msgpack.encode(FileTrailer(0, b""))], "checksum"),
    ],
)
def test_what_only_looks_like_one_is_refused(
    tmp_path: Path, bodies: list[bytes], what: str
) -> None:
    path = tmp_path / "record"
    path.write_bytes(MAGIC + zlib.compress(frames(*bodies)))
    with pytest.raises(InvalidRequest, match=what):
        verify(path)


def test_what_follows_the_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "record"
    write(path, HEADER, ENTRIES)
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(InvalidRequest, match="behind its end"):
        verify(path)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(InvalidRequest, match="no plain file"):
        verify(path)


def test_a_file_that_unpacks_beyond_all_measure_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "record"
    write(path, HEADER, iter(ENTRIES))
    monkeypatch.setattr(record_file, "MAX_BYTES", 500_000)
    with pytest.raises(InvalidRequest, match="unpacks to more than 500000 bytes"):
        verify(path)
