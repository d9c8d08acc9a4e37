"""Many values in one request: ZooKeeper's ``multiRead``, which kazoo (2.11) does not know.

One request and one answer for hundreds of values, where kazoo spends a third of a millisecond on
each request. Servers know it since ZooKeeper 3.6; older ones answer ``UnimplementedError``.

Source: ZooKeeper 3.8, ``org.apache.zookeeper.MultiOperationRecord``, ``MultiResponse`` and
``ZooDefs.OpCode``.
"""

from __future__ import annotations  # kazoo's classes take no parameters at run time.

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from kazoo.client import KazooClient
from kazoo.interfaces import IAsyncResult
from kazoo.protocol.states import ZnodeStat

Value = tuple[bytes, ZnodeStat]
Children = list[str]

_T = TypeVar("_T")

_GET_DATA = 4
_GET_CHILDREN = 8
_ERROR = -1
_NO_NODE = -101
_HEADER = struct.Struct("!iBi")  # Type of the operation, whether it was the last, error.
_INT = struct.Struct("!i")
_STAT = struct.Struct("!qqqqiiiqiiq")
_END = _HEADER.pack(-1, 1, -1)
_NO_WATCH = b"\0"


class MultiReadError(Exception):
    """The server refused to read one of the paths: not for want of it."""


@dataclass(frozen=True)
class MultiRead(Generic[_T]):
    """The request, as kazoo's connection sends it. Its answer is one result, or None, per path."""

    paths: tuple[str, ...]
    operation: int
    read_result: Callable[[bytes, int], tuple[_T, int]]
    type: int = 22

    def serialize(self) -> bytes:
        """The request's body."""
        header = _HEADER.pack(self.operation, 0, -1)
        parts: list[bytes] = []
        for path in self.paths:
            raw = path.encode()
            parts += (header, _INT.pack(len(raw)), raw, _NO_WATCH)
        parts.append(_END)
        return b"".join(parts)

    def deserialize(self, answer: bytes, offset: int) -> list[_T | None]:
        """Read the server's answer. Raises: MultiReadError, struct.error, UnicodeDecodeError."""
        results: list[_T | None] = []
        while True:
            kind, done, _ = _HEADER.unpack_from(answer, offset)
            offset += _HEADER.size
            if done:
                break
            if kind == _ERROR:
                (error,) = _INT.unpack_from(answer, offset)
                offset += _INT.size
                if error != _NO_NODE:
                    raise MultiReadError(f"ZooKeeper error {error} in a read of many")
                results.append(None)
            else:
                result, offset = self.read_result(answer, offset)
                results.append(result)
        if len(results) != len(self.paths):
            raise MultiReadError(f"{len(results)} answers to {len(self.paths)} reads")
        return results


def get_values(paths: Sequence[str]) -> Callable[[KazooClient], IAsyncResult[list[Value | None]]]:
    """Asks for the value of each path; None for one that is not there."""
    return _asker(MultiRead(tuple(paths), _GET_DATA, _read_value))


def get_children(
    paths: Sequence[str],
) -> Callable[[KazooClient], IAsyncResult[list[Children | None]]]:
    """Asks for the names below each path; None for one that is not there."""
    return _asker(MultiRead(tuple(paths), _GET_CHILDREN, _read_children))


def _asker(request: MultiRead[_T]) -> Callable[[KazooClient], IAsyncResult[list[_T | None]]]:
    def ask(client: KazooClient) -> IAsyncResult[list[_T | None]]:
        result: IAsyncResult[list[_T | None]] = client.handler.async_result()
        client._call(request, result)  # kazoo offers no other way in.
        return result

    return ask


def _read_value(answer: bytes, offset: int) -> tuple[Value, int]:
    (length,) = _INT.unpack_from(answer, offset)
    begin = offset + _INT.size
    end = begin + max(length, 0)
    stat = ZnodeStat._make(_STAT.unpack_from(answer, end))
    return (answer[begin:end], stat), end + _STAT.size


def _read_children(answer: bytes, offset: int) -> tuple[Children, int]:
    (count,) = _INT.unpack_from(answer, offset)
    offset += _INT.size
    names: Children = []
    for _ in range(count):
        (length,) = _INT.unpack_from(answer, offset)
        offset += _INT.size
        names.append(answer[offset : offset + length].decode())
        offset += length
    return names, offset
