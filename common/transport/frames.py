"""Frames of a link: how a stream of bytes is cut into messages.

A frame is a header of 9 bytes, then ``length`` bytes of MessagePack::

    length (4 bytes, big-endian) | kind (1 byte) | id (4 bytes, big-endian) | payload

==============  ==========================================  ===========================
kind            id                                          payload
==============  ==========================================  ===========================
HELLO           protocol version                            the caller's hello struct
WELCOME         protocol version                            the listener's welcome
REQUEST         chosen by the sender, echoed by the answer  a tagged struct
REPLY           of the request                              the struct asked for, or nil
ERROR           of the request; 0 answers the hello         ErrorReport
NOTIFICATION    0                                           a tagged struct
PING            sender's counter                            empty
PONG            of the ping                                 empty
BYE             0                                           a string: why
==============  ==========================================  ===========================

A frame of another kind, a longer one, or a payload that is not MessagePack ends the connection.
"""

import enum
import struct

PROTOCOL_VERSION = 1
HEADER = struct.Struct(">IBI")


class FrameKind(enum.IntEnum):
    """What a frame is."""

    HELLO = 1
    WELCOME = 2
    REQUEST = 3
    REPLY = 4
    ERROR = 5
    NOTIFICATION = 6
    PING = 7
    PONG = 8
    BYE = 9


_LAST_KIND = max(FrameKind)


class MalformedFrame(Exception):
    """The stream cannot be cut into frames any more."""


class FrameReader:
    """Cuts a stream into frames, however its bytes arrive.

    Holds at most one frame and whatever one read of the socket brought beyond it.
    """

    def __init__(self, max_frame_bytes: int) -> None:
        self._max_frame_bytes = max_frame_bytes
        self._buffer: bytes | bytearray = b""
        self._offset = 0

    @property
    def held_bytes(self) -> int:
        """Bytes received and not yet given out."""
        return len(self._buffer) - self._offset

    def feed(self, data: bytes) -> None:
        """Take what the socket gave."""
        if self._offset == len(self._buffer):
            self._buffer = data
        else:
            # A bytearray, not a list of pieces: a peer that drips one byte a time must not make
            # us hold an object for each.
            if not isinstance(self._buffer, bytearray):
                self._buffer = bytearray(memoryview(self._buffer)[self._offset :])
            else:
                del self._buffer[: self._offset]
            self._buffer += data
        self._offset = 0

    def next_frame(self) -> tuple[int, int, bytes] | None:
        """The next whole frame as (kind, id, payload), or None when it is not all there.

        Raises:
            MalformedFrame: an unknown kind, or longer than the bound.
        """
        start = self._offset
        available = len(self._buffer) - start
        if available < HEADER.size:
            return None
        length, kind, ident = HEADER.unpack_from(self._buffer, start)
        if not FrameKind.HELLO <= kind <= _LAST_KIND:
            raise MalformedFrame(f"frame of unknown kind {kind}")
        if length > self._max_frame_bytes:
            raise MalformedFrame(f"frame of {length} bytes, at most {self._max_frame_bytes}")
        end = start + HEADER.size + length
        if end > len(self._buffer):
            return None
        body = memoryview(self._buffer)[start + HEADER.size : end]
        payload = bytes(body)
        body.release()
        self._offset = end
        return kind, ident, payload
