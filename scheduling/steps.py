"""What a decision was made from, when it was made in several steps, one after the other.

A decision's inputs are zlib streams, one behind the other: one a step. As text, one step is its own
document; several are one of format ``snooze-steps/1``.
"""

import zlib
from typing import Final

import msgspec

FORMAT: Final = "snooze-steps/1"
MAX_BYTES: Final = 1024 * 1024
"""Compressed; a further step that is more is left out."""


class _Steps(msgspec.Struct, frozen=True):
    format: str
    steps: tuple[msgspec.Raw, ...]


def join(inputs: bytes, more: bytes) -> bytes:
    """The inputs with those of a further step; without it, if that is too much to keep."""
    return inputs + more if len(inputs) + len(more) <= MAX_BYTES else inputs


def unpack(inputs: bytes, most: int) -> bytes:
    """The text, as JSON.

    Raises:
        ValueError: it is not what it should be, or more than ``most`` bytes; says why.
    """
    texts: list[bytes] = []
    while inputs:
        unpacker = zlib.decompressobj()
        try:
            text = unpacker.decompress(inputs, most)
        except zlib.error as error:
            raise ValueError(str(error)) from error
        most -= len(text)
        if unpacker.unconsumed_tail or most <= 0:
            raise ValueError("they are too large to be shown")
        if not unpacker.eof:
            raise ValueError("their end is missing")
        try:
            msgspec.json.decode(text)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise ValueError(str(error)) from error
        texts.append(text)
        inputs = unpacker.unused_data
    if len(texts) == 1:
        return texts[0]
    return msgspec.json.encode(_Steps(FORMAT, tuple(msgspec.Raw(text) for text in texts)))


def texts_of(text: str) -> list[str]:
    """The documents of a decision's text, one a step."""
    try:
        document = msgspec.json.decode(text, type=_Steps)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return [text]
    if document.format != FORMAT:
        return [text]
    return [bytes(step).decode() for step in document.steps]
